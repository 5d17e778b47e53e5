"""Which of the sets of weights in a file counts: what a training averages (EMA) is what is tested."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

# Under which keys of a file named weights are found, and averaged ones (EMA), which are what is tested.
_KEYS = ("state_dict", "model", "module", "net")
_AVERAGED = ("state_dict_ema", "ema_state_dict", "model_ema", "module_ema", "ema", "ema_model", "model_ema_state_dict")
# What an average holds beside weights: how many there were, and its settings.
COUNTERS = {"n_averaged", "num_updates", "steps", "step", "decay", "initted"}
# What DistributedDataParallel, torch.compile and the like put in front of every name.
_WRAPPERS = re.compile(r"^((module|_orig_mod|model|net)\.)+")


class Sets(NamedTuple):
    """Where in a file's content weights are.

    Args:
        key: of those that count; None: at the top.
        is_averaged: whether the file says that they are averaged (EMA).
        others: keys of other sets.
        without: keys where averaged weights should be, but none are.
    """

    key: str | None
    is_averaged: bool
    others: tuple[str, ...]
    without: tuple[str, ...]


def sets_of(content: Mapping[str, Any]) -> Sets:
    """Which sets of weights a file's content has, and which of them counts.

    mmengine saves the average as ``state_dict``, and what it has trained as ``ema_state_dict``: its ``EMAHook`` swaps
    them in ``before_save_checkpoint`` (github.com/open-mmlab/mmengine, mmengine/hooks/ema_hook.py).
    """
    raw = [key for key in _KEYS if named_in(content.get(key))]
    averaged, without = [], []
    known = set(without_wrappers(named_in(content[raw[0]]))) if raw else set()
    for key in _AVERAGED:
        found = named_in(content.get(key))
        if found and (not known or known & set(without_wrappers(found))):
            averaged.append(key)
        elif key in content and not isinstance(content[key], bool | int | float | str):
            without.append(key)  # a number is a setting
    if _of_mmengine(content) and "state_dict" in raw and "ema_state_dict" in averaged:
        raw.remove("state_dict")
        averaged.remove("ema_state_dict")
        return Sets("state_dict", True, ("ema_state_dict", *averaged, *raw), tuple(without))
    every = (*averaged, *raw)
    return Sets(every[0] if every else None, bool(averaged), every[1:], tuple(without))


def _of_mmengine(content: Mapping[str, Any]) -> bool:
    meta = content.get("meta")
    return "message_hub" in content or (isinstance(meta, Mapping) and "mmengine_version" in meta)


def named_in(value: Any, depth: int = 3) -> Mapping[str, Any]:
    """The tensors by name in a part of a file, or where a wrapper of weights keeps them in it; empty: none."""
    if not (isinstance(value, Mapping) and depth):  # a crafted file may hold itself
        return {}
    for key in (*_KEYS, "shadow"):
        if isinstance(value.get(key), Mapping) and (found := named_in(value[key], depth - 1)):
            return found
    return value if any(isinstance(one, Tensor) for one in value.values()) else {}


def without_wrappers(named: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors under their names in the network itself.

    Raises:
        ValueError: two have the same one.
    """
    found: dict[str, Tensor] = {}
    source: dict[str, str] = {}
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            continue
        new = _WRAPPERS.sub("", name)
        if new in found:
            raise ValueError(f"{source[new]} and {name} are both the weight {new}; keep one of the two")
        found[new], source[new] = tensor, name
    return found
