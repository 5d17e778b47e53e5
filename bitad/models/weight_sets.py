"""Which of the sets of weights in a file counts: what a training averages (EMA) is what is tested."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from bitad.models.formats import is_known

# Where weights usually are in a file, the first first.
_USUAL = ("state_dict", "model", "module", "net")
# A key with one of these words keeps averaged weights: `model_ema`, `ema_state_dict`, `ModelEMA`, `swa_model`.
_OF_AVERAGES = {"ema", "average", "averaged", "avg", "swa", "shadow"}
# What an average holds beside weights: how many there were, and its settings.
COUNTERS = {"n_averaged", "num_updates", "steps", "step", "decay", "initted"}
# What DistributedDataParallel, torch.compile and the like put in front of names, and these also within them.
_WRAPPERS = {"module", "model", "net", "online_model"}
_WITHIN = re.compile(r"(^|(?<=\.))(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
# Mappings in mappings, and all of them: those of an optimiser are many.
_DEEPEST, _MOST_MAPPINGS = 6, 100_000


class Sets(NamedTuple):
    """Where in a file's content weights are.

    Args:
        named: the weights that count, under their names in the network itself.
        key: where they are, keys joined by dots; None: at the top.
        is_averaged: whether the file says that they are averaged (EMA).
        others: keys of other sets.
        without: keys where averaged weights should be, but none are.
    """

    named: dict[str, Tensor]
    key: str | None
    is_averaged: bool
    others: tuple[str, ...]
    without: tuple[str, ...]


@dataclass(frozen=True)
class _Set:
    """Weights of one mapping in a file, each with its name in the network, and the one in the file.

    Those of an average may be among others, and have its key in front of their names: ``prefix``.
    """

    path: tuple[str, ...]
    prefix: tuple[str, ...]
    tensors: list[tuple[str, str, Tensor]]

    @property
    def key(self) -> str:
        return ".".join((*self.path, *self.prefix))

    @property
    def averages(self) -> int:
        """How many parts of the key say that these are averaged: what keeps an average may also have the raw ones."""
        return sum(map(_of_an_average, (*self.path, *self.prefix)))

    @property
    def names(self) -> set[str]:
        return {name for name, _, _ in self.tensors}

    @property
    def rank(self) -> int:
        """The lower, the sooner taken."""
        return _USUAL.index(self.path[0]) if self.path and self.path[0] in _USUAL else len(_USUAL)

    def named(self) -> dict[str, Tensor]:
        """The weights by name. Raises ValueError where two have the same one."""
        found: dict[str, Tensor] = {}
        source: dict[str, str] = {}
        for name, original, tensor in self.tensors:
            if name in found:
                raise ValueError(f"{source[name]} and {original} are both the weight {name}; keep one of the two")
            found[name], source[name] = tensor, original
        return found


def sets_of(content: Mapping[str, Any]) -> Sets:
    """Which sets of weights a file's content has, and which of them counts.

    mmengine saves the average as ``state_dict``, and what it has trained as ``ema_state_dict``: its ``EMAHook`` swaps
    them in ``before_save_checkpoint`` (github.com/open-mmlab/mmengine, mmengine/hooks/ema_hook.py).

    Raises:
        ValueError: there are none; two of those that count have the same name.
    """
    every = list(_sets_in(content))
    known = [one for one in every if is_known(one.names)]
    if not known:
        if not every:
            keys = ", ".join(map(repr, [*content][:5]))
            raise ValueError(f"weights of no known project: it names none{keys and f', only {keys}'}")
        known = [max(every, key=lambda one: len(one.tensors))]  # of a project that is not known
    raw = sorted((one for one in known if not one.averages), key=lambda one: one.rank)
    averaged = [one for one in known if one.averages and (not raw or one.names & raw[0].names)]
    averaged.sort(key=lambda one: -one.averages)
    claimed = [*_keys_of_averages(content, raw[0].path if raw else ()), *(one.key for one in every if one.prefix)]
    without = tuple(key for key in claimed if not any(f"{one.key}.".startswith(f"{key}.") for one in averaged))
    first, *others = [*raw, *averaged] if _of_mmengine(content) else [*averaged, *raw]
    return Sets(
        first.named(), first.key or None, bool(averaged), tuple(one.key or "the top" for one in others), without
    )


def _sets_in(content: Mapping[str, Any]) -> Iterator[_Set]:
    """All named tensors in a file's content, one mapping and one prefix at a time; those at the top first."""
    waiting: deque[tuple[tuple[str, ...], Mapping[Any, Any]]] = deque([((), content)])
    for _ in range(_MOST_MAPPINGS):  # a crafted file may hold itself
        if not waiting:
            return
        path, mapping = waiting.popleft()
        found: dict[tuple[str, ...], list[tuple[str, str, Tensor]]] = {}
        for key, value in mapping.items():
            if isinstance(key, str) and isinstance(value, Tensor):
                prefix, name = _unwrapped(key)
                found.setdefault(prefix, []).append((name, key, value))
            elif isinstance(key, str) and isinstance(value, Mapping) and len(path) < _DEEPEST:
                waiting.append(((*path, key), value))
        yield from (_Set(path, prefix, tensors) for prefix, tensors in found.items())


def _unwrapped(name: str) -> tuple[tuple[str, ...], str]:
    """The parts in front of a name that are of an average, and the name in the network itself."""
    parts = _WITHIN.sub("", name).split(".")
    first = 0
    while first < len(parts) - 1 and (parts[first] in _WRAPPERS or _of_an_average(parts[first])):
        first += 1
    return tuple(part for part in parts[:first] if _of_an_average(part)), ".".join(parts[first:])


def _of_an_average(key: str) -> bool:
    return any(word.lower() in _OF_AVERAGES for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", key))


def _keys_of_averages(content: Mapping[str, Any], path: Sequence[str]) -> Iterator[str]:
    """The keys that should keep averages, at the top and on a path to other weights; a number is a setting."""
    part: Any = content
    for depth, below in enumerate((*path, "")):
        for key, value in part.items() if isinstance(part, Mapping) else ():
            is_setting = isinstance(value, bool | int | float | str | Tensor)
            if isinstance(key, str) and _of_an_average(key) and not is_setting:
                yield ".".join((*path[:depth], key))
        part = part.get(below) if isinstance(part, Mapping) else None


def _of_mmengine(content: Mapping[str, Any]) -> bool:
    meta = content.get("meta")
    return "message_hub" in content or (isinstance(meta, Mapping) and "mmengine_version" in meta)
