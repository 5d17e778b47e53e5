"""Loads the weights of any known project, and checks that they fit a network.

Of several sets of weights in a file, the averaged ones (EMA) are used.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitad.config.schema import Config
from bitad.data.fingerprints import is_valid
from bitad.models.build import Network
from bitad.models.vit import is_adapter, sinusoid_table
from bitad.weights.files import (
    BACKBONE_FILE,
    OURS,
    is_checkpoint,
    local_path,
    read_weights,
    weights_path,
    write_safetensors,
)
from bitad.weights.formats import (
    BACKBONE_PREFIX,
    Format,
    describe_content,
    find_format,
    recognise,
    require_ours,
    size_differences,
)
from bitad.weights.hub import HubName, is_hub_name

log = logging.getLogger("bitad")

# Keys that usually hold the weights of a file; earlier ones are preferred.
_USUAL_KEYS = (
    "state_dict",
    "model",
    "module",
    "net",
    "model_state_dict",
    "model_state",
    "network",
    "net_state_dict",
    "params",
    "weights",
)
# A key with one of these words holds averaged weights: `model_ema`, `ModelEMA`.
_EMA_WORDS = {"ema", "average", "averaged", "avg", "swa", "shadow"}
# Other content of an average.
_EMA_COUNTERS = {"n_averaged", "num_updates", "steps", "step", "decay", "initted"}
# DistributedDataParallel, torch.compile and others put these before names, or within them.
_WRAPPERS = {"module", "model", "net", "network", "online_model"}
_INNER_WRAPPERS = re.compile(
    r"(^|(?<=\.))(module|_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module|_forward_module|_fpw_module)\."
)
# Limits of the search in nested mappings; an optimizer's state has many.
_MAX_DEPTH, _MAX_MAPPINGS = 6, 100_000
# Other floating-point formats need scales that are stored elsewhere.
_FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_INTEGER_BUFFERS = re.compile(r"(^|\.)(num_batches_tracked|position_ids|relative_position_index)$")
_TABLE, _PATCHES = "pos_embed", "patch_embed.weight"


def require_pretrained(config: Config) -> None:
    """Raises ValueError if the frozen transformer would have random weights, or those of an impossible name."""
    backbone = config.model.backbone
    if backbone is None or config.starts_from == "baselines":
        return
    for file in (backbone.weights, config.pair.second_weights):
        if file is not None and is_hub_name(file):
            HubName.of(file)  # before anything is read
    if backbone.random or backbone.weights is not None:
        return
    raise ValueError(
        "model.backbone.weights is null: the frozen transformer would keep random weights; "
        "name a pre-trained file, or use model.backbone.random=true"
    )


def load_pretrained(network: Network, config: Config) -> None:
    """Loads the pre-trained weights of a configuration, if any, into each backbone."""
    require_pretrained(config)
    if config.model.backbone is None:
        return
    first = config.model.backbone.weights
    for detector, file in zip(network.detectors, (first, config.pair.second_weights or first), strict=False):
        assert detector.backbone is not None  # the configuration has one
        if file is not None:
            load_backbone(detector.backbone.vit, weights_path(file))


@dataclass(frozen=True)
class _WeightSet:
    """Weights (name, name in the file, tensor) in one mapping of a file, or with one prefix there."""

    path: tuple[str, ...]
    prefix: tuple[str, ...]
    tensors: list[tuple[str, str, Tensor]]

    @property
    def key(self) -> str:
        return ".".join((*self.path, *self.prefix))

    @property
    def ema_level(self) -> int:
        """How many parts of the key mean an average."""
        return sum(map(_means_ema, (*self.path, *self.prefix)))

    @property
    def by_name(self) -> dict[str, Tensor]:
        return {name: tensor for name, _, tensor in self.tensors}

    @property
    def rank(self) -> int:
        """Lower ranks are preferred."""
        return _USUAL_KEYS.index(self.path[0]) if self.path and self.path[0] in _USUAL_KEYS else len(_USUAL_KEYS)

    def differs(self, other: _WeightSet) -> bool:
        """Whether two sets have common names, but different values."""
        values, others = self.by_name, other.by_name
        return not all(_equal(values[name], others[name]) for name in values.keys() & others.keys())


def _select(content: Mapping[str, Any]) -> tuple[_WeightSet, list[_WeightSet], tuple[str, ...]]:
    """Selects a set of weights; the others; keys that should hold averaged weights, but hold none.

    mmengine's ``EMAHook`` saves the average as ``state_dict``, and the trained weights as ``ema_state_dict``.
    """
    every = list(_weight_sets(content))
    known = [one for one in every if find_format(one.by_name) is not None]
    if not known:
        if not every:
            raise ValueError(f"weights of no known project: {describe_content(content)}")
        known = [max(every, key=lambda one: len(one.tensors))]  # of an unknown project
    raw = sorted((one for one in known if not one.ema_level), key=lambda one: one.rank)
    averaged = [one for one in known if one.ema_level and (not raw or one.by_name.keys() & raw[0].by_name)]
    averaged.sort(key=lambda one: -one.ema_level)
    ema_keys = [*_ema_keys(content, raw[0].path if raw else ()), *(one.key for one in every if one.prefix)]
    empty = tuple(key for key in ema_keys if not any(f"{one.key}.".startswith(f"{key}.") for one in averaged))
    selected, *others = [*raw, *averaged] if _is_from_mmengine(content) else [*averaged, *raw]
    return selected, others, empty


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.is_meta or other.is_meta or not one.layout == other.layout == torch.strided:
        return one is other
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


def _weight_sets(content: Mapping[str, Any]) -> Iterator[_WeightSet]:
    """All named tensors in a file, one mapping and one prefix at a time, from the top down."""
    waiting: deque[tuple[tuple[str, ...], Mapping[Any, Any]]] = deque([((), content)])
    for _ in range(_MAX_MAPPINGS):  # a crafted file may contain itself
        if not waiting:
            return
        path, mapping = waiting.popleft()
        found: dict[tuple[str, ...], list[tuple[str, str, Tensor]]] = {}
        for key, value in mapping.items():
            if isinstance(key, str) and isinstance(value, Tensor):
                prefix, name = _unwrap(key)
                found.setdefault(prefix, []).append((name, key, value))
            elif isinstance(key, str) and isinstance(value, Mapping) and len(path) < _MAX_DEPTH:
                waiting.append(((*path, key), value))
        yield from (_WeightSet(path, prefix, tensors) for prefix, tensors in found.items())


def _unwrap(name: str) -> tuple[tuple[str, ...], str]:
    """The parts before a name that mean an average, and the name in the network."""
    parts = _INNER_WRAPPERS.sub("", name).split(".")
    first = 0
    while first < len(parts) - 1 and (parts[first] in _WRAPPERS or _means_ema(parts[first])):
        first += 1
    return tuple(part for part in parts[:first] if _means_ema(part)), ".".join(parts[first:])


def _means_ema(key: str) -> bool:
    return any(word.lower() in _EMA_WORDS for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", key))


def _ema_keys(content: Mapping[str, Any], path: Sequence[str]) -> Iterator[str]:
    """The keys that should hold averages, at the top and on a path to other weights."""
    part: Any = content
    for depth, below in enumerate((*path, "")):
        for key, value in part.items() if isinstance(part, Mapping) else ():
            is_setting = isinstance(value, bool | int | float | str | Tensor)
            if isinstance(key, str) and _means_ema(key) and not is_setting:
                yield ".".join((*path[:depth], key))
        part = part.get(below) if isinstance(part, Mapping) else None


def _is_from_mmengine(content: Mapping[str, Any]) -> bool:
    meta = content.get("meta")
    return "message_hub" in content or (isinstance(meta, Mapping) and "mmengine_version" in meta)


@dataclass(frozen=True)
class Weights:
    """Weights of a known project.

    Args:
        format: of the names that they had.
        tensors: by BiTAD's names, floating-point ones in single precision.
        unused: names in the file without a place in BiTAD's networks.
        dtypes: the number formats in the file.
        key: where in the file they were; None: at the top.
        epoch: of their training, if the file has it.
        is_averaged: whether the file says that these are averaged weights (EMA).
        others: keys of other sets of weights in the file.
        empty_averages: keys that should hold averaged weights, but hold none.
    """

    format: Format
    tensors: dict[str, Tensor]
    unused: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    key: str | None
    epoch: int | None
    is_averaged: bool = False
    others: tuple[str, ...] = ()
    empty_averages: tuple[str, ...] = ()

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Weights:
        """The weights in a file's content; ValueError if they are unusable."""
        if not isinstance(content, Mapping):
            raise ValueError(f"weights of no known project: {describe_content(content)}")
        # In BiTAD's checkpoints, only a resumed run needs the others.
        ours = str(content.get("format")).startswith(OURS)
        selected, others, empty_averages = _select({"model": content.get("model")} if ours else content)
        is_averaged = any(one.ema_level for one in (selected, *others))
        counters = [name for name in selected.by_name if is_averaged and name in _EMA_COUNTERS]
        weights = {name: tensor for name, tensor in selected.by_name.items() if name not in counters}
        require_ours(weights)
        known = recognise(weights)
        key, *other_keys = (one.key or "the top" for one in (selected, *others))
        rivals = [one.key for one in others if one.rank == selected.rank and selected.differs(one)]
        if rivals and not is_averaged:
            raise ValueError(
                f"it holds {len(rivals) + 1} sets of weights, {', '.join((key, *rivals))}; "
                "save the one that you mean alone"
            )
        tensors, unused = known.translate(one for one in selected.tensors if one[0] not in counters)
        epoch = content.get("epoch")
        return cls(
            format=known,
            tensors={name: _to_float32(name, tensor) for name, tensor in tensors.items()},
            unused=(*unused, *counters),
            dtypes=tuple(sorted({tensor.dtype for tensor in tensors.values()}, key=str)),
            key=selected.key or None,
            epoch=epoch if isinstance(epoch, int) else None,
            is_averaged=is_averaged,
            others=tuple(other_keys),
            empty_averages=empty_averages,
        )

    @property
    def is_converted(self) -> bool:
        """Whether the file has some in another than single precision."""
        return any(dtype.is_floating_point and dtype != torch.float32 for dtype in self.dtypes)

    @property
    def dtype_names(self) -> list[str]:
        """``float32``, ``float16``, ..."""
        return [str(dtype).removeprefix("torch.") for dtype in self.dtypes]

    def backbone(self, source: str) -> dict[str, Tensor]:
        """The weights of the one transformer, with adapters; ValueError if there is not one."""
        if self.format.kind == "pair":
            raise ValueError(f"{source} holds two networks; give a run of one, or a backbone's file")
        if self.format.kind == "backbone":
            return self.tensors
        inner = {
            name.removeprefix(BACKBONE_PREFIX): weight
            for name, weight in self.tensors.items()
            if name.startswith(BACKBONE_PREFIX)
        }
        if not inner:
            raise ValueError(f"{source} is a detector on features, without a backbone ({self.format.title})")
        return inner


class BackboneError(ValueError):
    """The frozen transformer of a checkpoint is damaged, or another one."""


@dataclass(frozen=True)
class BackboneFile:
    """The frozen transformer of a run: the run writes it once, and its checkpoints refer to it.

    The checkpoints hold everything else, frozen or not.

    Args:
        sha256: of the transformer, see :func:`transformer_sha256`.
        prefixes: of its parameters' names in the state of a network, or of each network of a pair.
    """

    sha256: str
    prefixes: tuple[str, ...]

    @classmethod
    def write(cls, state: Mapping[str, Tensor], path: Path) -> BackboneFile | None:
        """Writes the frozen transformer in a network's state, of a pair the first one, unless the file has it."""
        found = _frozen_transformers(state)
        if not found:
            return None
        first = next(iter(found.values()))
        sha256 = transformer_sha256(first)
        try:
            is_written = path.is_file() and transformer_sha256(_transformer(path)) == sha256
        except ValueError:  # damaged
            is_written = False
        if not is_written:
            write_safetensors(first, path, synced=True)
        return cls(sha256, tuple(prefix for prefix, one in found.items() if transformer_sha256(one) == sha256))

    def to_json(self) -> dict[str, Any]:
        """The reference to the file in a checkpoint."""
        return {"sha256": self.sha256, "prefixes": list(self.prefixes)}

    def remove_from(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A network's state without the transformer."""
        return {
            name: tensor
            for name, tensor in state.items()
            if not name.startswith(self.prefixes) or is_adapter(name)
        }


# The content of a checkpoint of BiTAD.
VALID_CONTENT: dict[str, Callable[[Any], bool]] = {
    "config": lambda value: isinstance(value, dict),
    "classes": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    "model": lambda value: isinstance(value, dict) and all(isinstance(part, Tensor) for part in value.values()),
    "epoch": lambda value: isinstance(value, int),
    "rate_hz": lambda value: isinstance(value, float) and 0 < value < math.inf,
    "evaluation": lambda value: isinstance(value, dict | None),
    "training": lambda value: isinstance(value, dict | None),
    "data": lambda value: value is None or is_valid(value),
    "operating_points": lambda value: isinstance(value, dict | None),
}


def read_complete(path: Path) -> dict[str, Any]:
    """Reads a file of weights; a checkpoint of BiTAD with the frozen transformer that it refers to.

    Raises:
        FileNotFoundError: no such file, or no file of the transformer.
        ValueError: not weights.
        BackboneError: the transformer is damaged, or another one.
    """
    path = weights_path(path)
    content = read_weights(path)
    if not is_checkpoint(content):
        return content
    if faults := [key for key, check in VALID_CONTENT.items() if not check(content.get(key))]:
        raise ValueError(f"{path} is a damaged checkpoint, without a valid {', '.join(faults)}; use another one")
    match content.get("backbone"), content.get("pretrained"):
        case None, None:
            return content
        case {"sha256": str(sha256), "prefixes": list(prefixes)}, None:
            weights = _find_transformer(path, [path.with_name(BACKBONE_FILE)], sha256)
        case None, {
            "file": str(file),
            "sha256": str(sha256),
            "positions": int(positions),
            "networks": list(prefixes),
        }:
            original = local_path(Path(file))  # of the pre-trained transformer, in checkpoints of form 3
            places = [one for one in (original, path.with_name(original.name)) if one != path]
            weights = _with_table(_find_transformer(path, places, sha256), positions)
        case _:
            raise ValueError(f"{path} is a damaged checkpoint, without a valid backbone; use another one")
    frozen = {f"{prefix}{name}": tensor for prefix in prefixes for name, tensor in weights.items()}
    return {**content, "model": {**content["model"], **frozen}}


def _find_transformer(checkpoint: Path, places: Sequence[Path], sha256: str) -> dict[str, Tensor]:
    """The frozen transformer that a checkpoint refers to, from one of several files."""
    missing, faults = [f"{path} is missing" for path in places if not path.is_file()], []
    for path in filter(Path.is_file, places):
        try:
            weights = _transformer(path)
        except ValueError as error:
            faults.append(str(error))
            continue
        if transformer_sha256(weights) == sha256:
            return weights
        faults.append(f"{path} has other content")
    raise (BackboneError if faults else FileNotFoundError)(
        f"the frozen transformer of {checkpoint} is not found: {'; '.join([*missing, *faults])}; "
        f"copy it to {places[-1]} from where the checkpoint was trained"
    )


def is_transformer_of(state: Mapping[str, Tensor], path: Path) -> bool:
    """Whether the transformer in a file is that of a network's state, or one of a pair's."""
    weights = _transformer(path)
    return any(
        transformer_sha256(one)
        == transformer_sha256(_with_table(weights, len(one[_TABLE][0])) if _TABLE in one else weights)
        for one in _frozen_transformers(state).values()
    )


def transformer_sha256(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, types, shapes and numbers of weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _frozen_transformers(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The frozen transformers in the state of a network or a pair, by prefix."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        before, vit, inner = name.partition(BACKBONE_PREFIX)
        if vit and not is_adapter(name):
            found.setdefault(before + vit, {})[inner] = tensor.cpu()
    return found


def _transformer(path: Path) -> dict[str, Tensor]:
    """The transformer in a file of weights, without adapters."""
    weights = parse_weights(read_complete(path), path).backbone(str(path))
    if _TABLE not in weights and _PATCHES not in weights:
        raise ValueError(f"{path} holds no complete transformer: there is no {_PATCHES}")
    return {name: tensor for name, tensor in weights.items() if not is_adapter(name)}


def _with_table(weights: dict[str, Tensor], positions: int) -> dict[str, Tensor]:
    """With the position table; without one, the sinusoid."""
    return weights if _TABLE in weights else {**weights, _TABLE: sinusoid_table(positions, len(weights[_PATCHES]))}


def _to_float32(name: str, tensor: Tensor) -> Tensor:
    """A weight in single precision; ValueError if it is no finite floating-point number."""
    if tensor.dtype not in _FLOATING and _INTEGER_BUFFERS.search(name):
        return tensor
    sort = "quantized" if tensor.is_quantized else "sparse" if tensor.layout is not torch.strided else ""
    if sort or tensor.dtype not in _FLOATING:
        raise ValueError(
            f"weight {name} is {sort or str(tensor.dtype).removeprefix('torch.')}; weights must be float32, float16, "
            "bfloat16 or float64: convert them where they were trained"
        )
    single = tensor.float()
    # A sum is infinite or NaN if a part is, and needs less memory.
    if not single.is_meta and not math.isfinite(single.sum(dtype=torch.float64).item()):
        count = int((~torch.isfinite(single)).sum())
        raise ValueError(f"weight {name} has {count} values that are infinite or NaN; use another file")
    return single


def load_weights(
    module: nn.Module, weights: Mapping[str, Tensor], *, source: str, may_lack: str = r"(?!)"
) -> None:
    """Loads all of ``weights`` into all of ``module``, or nothing.

    Args:
        source: their file, for the message.
        may_lack: a pattern of names that ``weights`` need not have.

    Raises:
        ValueError: sizes differ, or names are missing, unexpected or of another shape.
    """
    if defects := find_defects(weights, module.state_dict(), may_lack=may_lack):
        raise ValueError(f"weights of {source} do not fit the network: {'; '.join(defects)}")
    module.load_state_dict(dict(weights), strict=False)  # strictness is what was checked above


def find_defects(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, may_lack: str) -> list[str]:
    """The sizes that differ; else weights that are missing, unexpected or of another shape."""
    if differences := size_differences(weights, expected):
        return differences
    missing = [name for name in expected if name not in weights and not re.search(may_lack, name)]
    unexpected = [name for name in weights if name not in expected]
    reshaped = [
        f"{name} {list(weights[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    return [
        f"{len(found)} {kind}: {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}"
        for kind, found in (
            ("missing", missing),
            ("not in the network", unexpected),
            ("of another shape", reshaped),
        )
        if found
    ]


def load_backbone(vit: nn.Module, path: Path) -> None:
    """Loads a backbone's file, or the backbone of a detector's, into a transformer.

    Adapters and the position table, in most projects a fixed sinusoid, stay unless the file has them.
    """
    weights = parse_weights(read_complete(path), path).backbone(str(path))
    load_weights(vit, weights, source=str(path), may_lack=r"\.(bi_)?adapter\.|^pos_embed$")


def parse_weights(content: Mapping[str, Any], path: Path) -> Weights:
    """As :meth:`Weights.of`, with the file in errors; logs the set that is used, and conversions."""
    try:
        weights = Weights.of(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if weights.empty_averages and not weights.is_averaged:
        log.warning("%s has no averaged weights in %s; using others", path, " and ".join(weights.empty_averages))
    if weights.others:
        sort, others = "averaged weights" if weights.is_averaged else "weights", " and ".join(weights.others)
        log.info("%s: using the %s (%s), not %s", path, sort, weights.key or "the top", others)
    if weights.is_converted:
        log.info("%s holds %s; read as float32", path, " and ".join(weights.dtype_names))
    return weights


def without_adapters(weights: Mapping[str, Tensor]) -> str:
    """The ``may_lack`` of weights: they may lack all adapters, because new ones change nothing."""
    return r"(?!)" if any(".adapter." in name for name in weights) else r"\.adapter\."
