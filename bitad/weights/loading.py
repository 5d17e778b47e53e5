"""Loads any known project's weights under our parameter names, and says in one line what does not fit.

The project is recognised by its parameter names (:mod:`bitad.weights.formats`). Of several sets of weights in a file,
the average (EMA) is taken. Whatever reads weights goes through :func:`~bitad.weights.files.read_weights`,
:class:`Weights` and :func:`load_weights`.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, equal, nn, strided

from bitad.config.loading import parse_config
from bitad.config.schema import Config
from bitad.models.adapters import is_adapter
from bitad.models.build import Network
from bitad.models.vit import sinusoid_table
from bitad.weights.files import BACKBONE_FILE, OURS, is_checkpoint, read_weights, weights_path, write_safetensors
from bitad.weights.formats import Format, instead_of_names, is_known, recognise, require_ours
from bitad.weights.sizes import size_difference


def require_pretrained(config: Config) -> None:
    """Refuses to train around a frozen transformer that nothing fills.

    Raises:
        ValueError: the configuration names no weights for it, starts from no baselines, and does not ask for random
            ones.
    """
    backbone = config.model.backbone
    if backbone is None or config.plan.starts_from == "baselines" or backbone.random or backbone.weights is not None:
        return
    raise ValueError(
        "model.backbone.weights is null: the transformer is frozen and would keep random weights; name a pre-trained "
        "file, or use model.backbone.random=true if you want that"
    )


def load_pretrained(network: Network, config: Config) -> None:
    """Loads the backbone's pre-trained weights into the network or both of a pair, where there is one.

    Raises:
        FileNotFoundError, ValueError: they are missing or of another network; or as :func:`require_pretrained`.
    """
    require_pretrained(config)
    if config.model.backbone is None or config.model.backbone.weights is None:
        return
    for detector in network.detectors:
        assert detector.backbone is not None  # the configuration has one
        load_backbone(detector.backbone.vit, weights_path(config.model.backbone.weights))


# Where weights usually are in a file, the first first.
_USUAL = (
    "state_dict", "model", "module", "net", "model_state_dict", "model_state", "network", "net_state_dict", "params",
    "weights",
)  # fmt: skip
# A key with one of these words keeps averaged weights: `model_ema`, `ema_state_dict`, `ModelEMA`, `swa_model`.
_OF_AVERAGES = {"ema", "average", "averaged", "avg", "swa", "shadow"}
# What an average holds beside weights: how many there were, and its settings.
COUNTERS = {"n_averaged", "num_updates", "steps", "step", "decay", "initted"}
# What DistributedDataParallel, torch.compile and the like put in front of names, and these also within them.
_WRAPPERS = {"module", "model", "net", "network", "online_model"}
_WITHIN = re.compile(
    r"(^|(?<=\.))(module|_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module|_forward_module|_fpw_module)\."
)
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
        rivals: those of ``others`` that may as well be meant, and are not the same.
    """

    named: dict[str, Tensor]
    key: str | None
    is_averaged: bool
    others: tuple[str, ...]
    without: tuple[str, ...]
    rivals: tuple[str, ...]


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
            raise ValueError(f"weights of no known project: {instead_of_names(content)}")
        known = [max(every, key=lambda one: len(one.tensors))]  # of a project that is not known
    raw = sorted((one for one in known if not one.averages), key=lambda one: one.rank)
    averaged = [one for one in known if one.averages and (not raw or one.names & raw[0].names)]
    averaged.sort(key=lambda one: -one.averages)
    claimed = [*_keys_of_averages(content, raw[0].path if raw else ()), *(one.key for one in every if one.prefix)]
    without = tuple(key for key in claimed if not any(f"{one.key}.".startswith(f"{key}.") for one in averaged))
    first, *others = [*raw, *averaged] if _of_mmengine(content) else [*averaged, *raw]
    rivals = [one.key for one in others if not averaged and one.rank == first.rank and _differ(first, one)]
    return Sets(
        named=first.named(),
        key=first.key or None,
        is_averaged=bool(averaged),
        others=tuple(one.key or "the top" for one in others),
        without=without,
        rivals=tuple(rivals),
    )


def _differ(one: _Set, other: _Set) -> bool:
    """Whether two sets are of one network, but have other values."""
    values, others = ({name: tensor for name, _, tensor in each.tensors} for each in (one, other))
    common = values.keys() & others.keys()
    return bool(common) and not all(_equal(values[name], others[name]) for name in common)


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.is_meta or other.is_meta or not one.layout == other.layout == strided:
        return one is other
    return one.shape == other.shape and one.dtype == other.dtype and equal(one, other)


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


log = logging.getLogger("bitad")

# Weights are taken in single precision; other floating-point formats need scales that are elsewhere.
_FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# What networks hold beside weights, in whole numbers.
_WHOLE_NUMBERS = re.compile(r"(^|\.)(num_batches_tracked|position_ids|relative_position_index)$")
_BACKBONE = "backbone.vit."
_TABLE, _PATCHES = "pos_embed", "patch_embed.weight"


@dataclass(frozen=True)
class Weights:
    """Weights of a known project.

    Args:
        format: whose names they had.
        tensors: by our names, floating-point ones in single precision.
        left_out: names in the file that have no place in our networks: of a classifier, a decoder, the training.
        dtypes: the number formats in the file.
        key: where in the file they were; None: at the top.
        epoch: of their training, where the file says so.
        is_averaged: whether the file says that these are averaged weights (EMA).
        others: where in the file other sets of weights are.
        without: where averaged weights should be, but none are.
    """

    format: Format
    tensors: dict[str, Tensor]
    left_out: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    key: str | None
    epoch: int | None
    is_averaged: bool = False
    others: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Weights:
        """The weights in a file's content, of several sets the averaged ones (EMA).

        Raises:
            ValueError: for weights of no known project or of a network that is not ours, several sets of which none is
                said to count, two weights of one name, or ones that are no finite floating-point numbers.
        """
        if not isinstance(content, Mapping):
            raise ValueError(f"weights of no known project: {instead_of_names(content)}")
        # In a checkpoint of ours `model` is what is tested; it also has what only a resumed run needs.
        ours = str(content.get("format")).startswith(OURS)
        sets = sets_of({"model": content.get("model")} if ours else content)
        counters = [name for name in sets.named if sets.is_averaged and name in COUNTERS]
        weights = {name: tensor for name, tensor in sets.named.items() if name not in counters}
        require_ours(weights)
        known = recognise(weights)
        if sets.rivals:
            raise ValueError(
                f"it holds {len(sets.rivals) + 1} sets of weights, {', '.join((sets.key or 'the top', *sets.rivals))}; "
                "save the one that you mean alone"
            )
        tensors, left_out = known.translate(weights)
        epoch = content.get("epoch")
        return cls(
            format=known,
            tensors={name: _single(name, tensor) for name, tensor in tensors.items()},
            left_out=(*left_out, *counters),
            dtypes=tuple(sorted({tensor.dtype for tensor in tensors.values()}, key=str)),
            key=sets.key,
            epoch=epoch if isinstance(epoch, int) else None,
            is_averaged=sets.is_averaged,
            others=sets.others,
            without=sets.without,
        )

    @property
    def converted(self) -> bool:
        """Whether some came in another than single precision."""
        return any(dtype.is_floating_point and dtype != torch.float32 for dtype in self.dtypes)

    @property
    def dtype_names(self) -> list[str]:
        """``float32``, ``float16``, ..."""
        return [str(dtype).removeprefix("torch.") for dtype in self.dtypes]

    def backbone(self, source: str) -> dict[str, Tensor]:
        """The weights of the transformer alone, a detector's adapters included.

        Raises:
            ValueError: there is none, or more than one; ``source`` says where in the message.
        """
        if self.format.kind == "pair":
            raise ValueError(f"{source} holds two networks; give a run of one, or a backbone's file")
        if self.format.kind == "backbone":
            return self.tensors
        inner = {
            name.removeprefix(_BACKBONE): weight for name, weight in self.tensors.items() if name.startswith(_BACKBONE)
        }
        if not inner:
            raise ValueError(f"{source} is a detector on features, without a backbone ({self.format.title})")
        return inner


class BackboneError(ValueError):
    """The frozen transformer of a checkpoint is damaged, or another one."""


@dataclass(frozen=True)
class BackboneFile:
    """The frozen transformer of a run, which never trains: a run writes it once, and its checkpoints refer to it.

    The checkpoints hold everything else that is frozen: in experiments 2 and 2x the rest of two finished baselines.

    Args:
        sha256: of the transformer, see :func:`transformer_sha256`.
        prefixes: of its parameters' names in the state of a network, or of each network of a pair.
    """

    sha256: str
    prefixes: tuple[str, ...]

    @classmethod
    def write(cls, state: Mapping[str, Tensor], path: Path) -> BackboneFile | None:
        """Writes the frozen transformer in a network's state, unless the file has it already; None: there is none.

        Where the networks of a pair have different ones, it is the first network's; the checkpoints hold the other.
        """
        found = _frozen_transformers(state)
        if not found:
            return None
        first = next(iter(found.values()))
        sha256 = transformer_sha256(first)
        if not _has_content(path, sha256):
            write_safetensors(first, path, said={}, synced=True)
        return cls(sha256, tuple(prefix for prefix, weights in found.items() if _same(weights, first)))

    def to_json(self) -> dict[str, Any]:
        """The reference to the file in a checkpoint."""
        return {"sha256": self.sha256, "prefixes": list(self.prefixes)}

    def remove_from(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A network's state without the transformer."""
        return {
            name: tensor for name, tensor in state.items() if not name.startswith(self.prefixes) or is_adapter(name)
        }


def read_complete(path: Path) -> dict[str, Any]:
    """Reads a file of weights; a checkpoint of BiTAD with the frozen transformer that it refers to.

    Raises:
        FileNotFoundError: no such file, or no file of the transformer.
        BackboneError: the file of the transformer is damaged, or another's.
        ValueError: as :func:`~bitad.weights.files.read_weights`.
    """
    path = weights_path(path)
    content = read_weights(path)
    state = content.get("model")
    if not is_checkpoint(content) or not isinstance(state, dict):
        return content
    match content.get("backbone"), content.get("pretrained"):
        case None, None:
            return content
        case {"sha256": str(sha256), "prefixes": list(prefixes)}, None:
            weights = _read_backbone_file(path, sha256, content)
        case None, {"file": str(file), "sha256": str(sha256), "positions": int(positions), "networks": list(prefixes)}:
            weights = _with_table(_find_pretrained(path, file, sha256), positions)
        case _:
            raise ValueError(f"{path} is a damaged checkpoint, without a sound backbone; take another one")
    frozen = {f"{prefix}{name}": tensor for prefix in prefixes for name, tensor in weights.items()}
    return {**content, "model": {**state, **frozen}}


def _read_backbone_file(checkpoint: Path, sha256: str, content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The frozen transformer in the file beside a checkpoint."""
    path = checkpoint.with_name(BACKBONE_FILE)
    if not path.is_file():
        run = parse_config(content["config"], f"in {checkpoint}").run_directory
        raise FileNotFoundError(
            f"{path} is missing, the frozen transformer of {checkpoint}; copy it from the run directory, {run}"
        )
    try:
        weights, fault = _transformer(path), "its content is another"
    except ValueError as error:
        weights, fault = {}, str(error)
    if transformer_sha256(weights) != sha256:
        raise BackboneError(
            f"{path} is not the frozen transformer of {checkpoint}: {fault}; copy it again from the run directory of "
            "the checkpoint"
        )
    return weights


def _find_pretrained(checkpoint: Path, file: str, sha256: str) -> dict[str, Tensor]:
    """The transformer that a checkpoint of form 3 refers to, from its pre-trained file or a copy beside it."""
    original = weights_path(Path(file))
    beside = checkpoint.with_name(original.name)
    places = [place for place in (original, beside) if place != checkpoint and place.is_file()]
    for place in places:
        weights = _transformer(place)
        if transformer_sha256(weights) == sha256:
            return weights
    fault = f"{' and '.join(map(str, places))}: another transformer" if places else f"{original} is missing"
    raise (BackboneError if places else FileNotFoundError)(
        f"the pre-trained transformer of {checkpoint} is not found: {fault}; copy its file to {beside}"
    )


def is_transformer_of(state: Mapping[str, Tensor], path: Path) -> bool:
    """Whether a file of weights has the frozen transformer of a network's state, or one of a pair's.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or no transformer in it.
    """
    weights = _transformer(path)
    return any(_same(one, _with_table(weights, len(one[_TABLE][0]))) for one in _frozen_transformers(state).values())


def transformer_sha256(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, types, shapes and numbers of weights under BiTAD's names, whatever their file is."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _has_content(path: Path, sha256: str) -> bool:
    """Whether there is a file with a transformer of this content."""
    try:
        return path.is_file() and transformer_sha256(_transformer(path)) == sha256
    except ValueError:
        return False


def _frozen_transformers(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The frozen transformers in the state of a network or a pair, by the prefix of their names there."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        before, vit, inner = name.partition(_BACKBONE)
        if vit and not is_adapter(name):
            found.setdefault(before + vit, {})[inner] = tensor.cpu()
    return found


def _transformer(path: Path) -> dict[str, Tensor]:
    """The transformer in a file of weights, without adapters."""
    weights = _read(path).backbone(str(path))
    if _TABLE not in weights and _PATCHES not in weights:
        raise ValueError(f"{path} holds no whole transformer: there is no {_PATCHES}")
    return {name: tensor for name, tensor in weights.items() if not is_adapter(name)}


def _with_table(weights: dict[str, Tensor], positions: int) -> dict[str, Tensor]:
    """With the position table; where the file has none, it is the sinusoid."""
    return weights if _TABLE in weights else {**weights, _TABLE: sinusoid_table(positions, len(weights[_PATCHES]))}


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def _single(name: str, tensor: Tensor) -> Tensor:
    """A weight in single precision.

    Raises:
        ValueError: it is no floating-point number, or not finite.
    """
    if tensor.dtype not in _FLOATING and _WHOLE_NUMBERS.search(name):
        return tensor
    sort = "quantized" if tensor.is_quantized else "sparse" if tensor.layout is not torch.strided else ""
    if sort or tensor.dtype not in _FLOATING:
        what = sort or str(tensor.dtype).removeprefix("torch.")
        raise ValueError(
            f"weight {name} is {what}; weights must be float32, float16, bfloat16 or float64: convert them where they "
            "were trained"
        )
    single = tensor.float()
    # A sum is infinite or NaN if a part is, and needs no memory of the size of the weights.
    if not single.is_meta and not math.isfinite(single.sum(dtype=torch.float64).item()):
        count = int((~torch.isfinite(single)).sum())
        raise ValueError(f"weight {name} has {count} values that are infinite or no numbers; take another file")
    return single


def convert(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of any known project under our names: a detector's or a backbone's. Raises as :meth:`Weights.of`."""
    return Weights.of(content).tensors


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], *, source: str, may_lack: str = r"(?!)") -> None:
    """Loads all of ``weights`` into all of ``module``, or nothing.

    Args:
        module: what to fill.
        weights: by our names.
        source: where they come from, for the message.
        may_lack: a pattern of names that ``weights`` need not have, such as ``r"\\.adapter\\."``; none by default.

    Raises:
        ValueError: one line with the size that they are of, or the names that are missing, left over, or of another
            shape.
    """
    wanted = module.state_dict()
    if difference := size_difference(weights, wanted):
        raise ValueError(f"weights of {source} do not fit the network: {difference}")
    if defects := defects_of(weights, wanted, may_lack=may_lack):
        raise ValueError(f"weights of {source} do not fit the network; {'; '.join(defects)}")
    module.load_state_dict(dict(weights), strict=False)  # strictness is what was checked above


def defects_of(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, may_lack: str = r"(?!)") -> list[str]:
    """What is missing, left over or of another shape; a few words and the first names for each."""
    missing = [name for name in wanted if name not in weights and not re.search(may_lack, name)]
    unexpected = [name for name in weights if name not in wanted]
    reshaped = [
        f"{name} {list(weights[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    return [
        f"{len(found)} {kind}: {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}"
        for kind, found in (("missing", missing), ("not in the network", unexpected), ("of another shape", reshaped))
        if found
    ]


def load_backbone(vit: nn.Module, path: Path) -> None:
    """Loads a VideoMAE file, or the backbone of a detector's, into a transformer.

    Adapters stay as they are unless the file has them, and so does the position table, which most files leave out
    because it is a fixed sinusoid.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_weights`, :meth:`Weights.of` and :func:`load_weights`.
    """
    weights = _read(path)
    _say(weights, path)
    load_weights(vit, weights.backbone(str(path)), source=str(path), may_lack=r"\.(bi_)?adapter\.|^pos_embed$")


def weights_of(content: Mapping[str, Any], path: Path) -> Weights:
    """The weights in the content of a file; says which of several are taken, and what is made of them.

    Raises:
        ValueError: as :meth:`Weights.of`.
    """
    weights = Weights.of(content)
    _say(weights, path)
    return weights


def _read(path: Path) -> Weights:
    """The weights in a file; errors name it."""
    path = weights_path(path)
    content = read_complete(path)
    try:
        return Weights.of(content)
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def _say(weights: Weights, path: Path) -> None:
    if weights.without and not weights.is_averaged:
        log.warning("%s has no averaged weights in %s; others are taken", path, " and ".join(weights.without))
    if weights.others:
        sort, others = "averaged weights" if weights.is_averaged else "weights", " and ".join(weights.others)
        log.info("%s: the %s (%s) are taken, not %s", path, sort, weights.key or "the top", others)
    if weights.converted:
        log.info("%s holds %s; taken as float32", path, " and ".join(weights.dtype_names))


def without_adapters(weights: Mapping[str, Tensor]) -> str:
    """What ``weights`` may lack if they have no adapter at all: all of them, because new ones change nothing."""
    return r"(?!)" if any(".adapter." in name for name in weights) else r"\.adapter\."
