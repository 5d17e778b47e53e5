"""Any known project's weights -> our parameter names, and loading that says in one line what does not fit.

Whose a file is, is seen from its parameter names (:mod:`bitad.models.formats`); whatever reads weights goes through
:func:`~bitad.models.weight_files.read_weights`, :class:`Weights` and :func:`load_weights`.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitad.models.adapters import is_adapter
from bitad.models.formats import Format, recognise
from bitad.models.network_size import size_difference
from bitad.models.videomae import sinusoid_table
from bitad.models.weight_files import OURS, read_weights, weights_path
from bitad.models.weight_sets import COUNTERS, sets_of

__all__ = ["Pretrained", "Weights", "convert", "load_backbone", "load_weights", "read_weights"]

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
            ValueError: for weights of no known project, two of one name, or ones that are no finite floating-point
                numbers.
        """
        # In a checkpoint of ours `model` is what is tested; it also has what only a resumed run needs.
        ours = str(content.get("format")).startswith(OURS)
        sets = sets_of({"model": content.get("model")} if ours else content)
        counters = [name for name in sets.named if sets.is_averaged and name in COUNTERS]
        weights = {name: tensor for name, tensor in sets.named.items() if name not in counters}
        known = recognise(weights)
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


@dataclass(frozen=True)
class Pretrained:
    """The pre-trained transformer that never trains: a run's checkpoints name its file instead of holding it.

    Whatever else is frozen they hold. In experiments 2 and 2x these are the rest of two finished baselines, and a
    baseline's run may be deleted or trained anew, where the published file of a transformer stays what it is.

    Args:
        file: as the run's configuration names it.
        sha256: of the transformer in it, see :func:`content_hash`.
        positions: of the position table; where the file has none, it is the sinusoid.
        networks: what stands before its names in the state of a network, or of a pair: then once for each of the two.
    """

    file: str
    sha256: str
    positions: int
    networks: tuple[str, ...]

    @classmethod
    def of(cls, state: Mapping[str, Tensor], file: Path) -> Pretrained | None:
        """What of a network's state is, to the bit, the transformer in a file; None: nothing is.

        Raises:
            FileNotFoundError, ValueError: there is no such file, or no transformer in it.
        """
        networks: dict[str, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            before, vit, inner = name.partition(_BACKBONE)
            if vit and not is_adapter(name):
                networks.setdefault(before + vit, {})[inner] = tensor
        tables = [len(vit[_TABLE][0]) for vit in networks.values()]
        if not tables:
            return None
        wanted = _with_table(_transformer(weights_path(file)), tables[0])
        same = tuple(before for before, vit in networks.items() if _equal(vit, wanted))
        return cls(str(file), content_hash(weights_path(file)), tables[0], same) if same else None

    @classmethod
    def said_in(cls, content: Mapping[str, Any]) -> Pretrained | None:
        """What a checkpoint says that it leaves out; None: nothing, or it is none of ours.

        Raises:
            ValueError: it says so in a way that we do not.
        """
        said = content.get("pretrained") if str(content.get("format", "")).startswith(OURS) else None
        match said:
            case None:
                return None
            case {"file": str(file), "sha256": str(sha256), "positions": int(positions), "networks": list(networks)}:
                return cls(file, sha256, positions, tuple(map(str, networks)))
            case _:
                raise ValueError("it does not say soundly which pre-trained transformer it leaves out")

    def to_json(self) -> dict[str, Any]:
        """What :meth:`said_in` reads."""
        return {**vars(self), "networks": list(self.networks)}

    def without(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A network's state less the transformer."""
        return {
            name: tensor for name, tensor in state.items() if not name.startswith(self.networks) or is_adapter(name)
        }

    def filled(self, state: Mapping[str, Tensor], source: str, *also: Path) -> dict[str, Tensor]:
        """A network's whole state: what a checkpoint holds, and what it leaves out, which stays in its file if it can.

        Args:
            state: what it holds.
            source: the checkpoint's path; the file is looked for where it was, and beside the checkpoint.
            also: where to look first.

        Raises:
            FileNotFoundError: it is in none of these places.
            ValueError: what is there is another transformer.
        """
        where = weights_path(Path(self.file))
        beside = Path(source).with_name(where.name)
        others = []
        for place in dict.fromkeys((*also, where, beside)):
            if place == Path(source) or not place.is_file():
                continue
            if self.is_in(place):
                vit = _with_table(_transformer(place), self.positions)
                return {**state, **{before + name: tensor for before in self.networks for name, tensor in vit.items()}}
            others.append(f"{place} ({content_hash(place)[:12]})")
        said = f"the pre-trained transformer of {source}, {where} of content {self.sha256[:12]}"
        remedy = f"copy it to {beside}, or name it by model.backbone.weights=PATH where keys can be changed"
        if not others:
            raise FileNotFoundError(f"{said}, is not there; {remedy}")
        raise ValueError(f"{said}, is not what is there now: {', '.join(others)}; {remedy}")

    def is_in(self, path: Path) -> bool:
        """Whether a file holds this transformer. Raises as :func:`content_hash`."""
        return content_hash(path) == self.sha256


def content_hash(path: Path) -> str:
    """SHA-256 over the names, types, shapes and numbers of the transformer in a file, under our names: whatever form
    the file has, and whatever else is in it. Once for each file: a large one takes seconds.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or no transformer in it.
    """
    state = path.stat() if path.is_file() else None
    return _content_hash(path, None if state is None else (state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=16)
def _content_hash(path: Path, _version: tuple[int, int] | None) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(_transformer(path).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _transformer(path: Path) -> dict[str, Tensor]:
    """What is frozen of the transformer in a file."""
    weights = _read(path).backbone(str(path))
    if _TABLE not in weights and _PATCHES not in weights:
        raise ValueError(f"{path} holds no whole transformer: there is no {_PATCHES}")
    return {name: tensor for name, tensor in weights.items() if not is_adapter(name)}


def _with_table(vit: dict[str, Tensor], positions: int) -> dict[str, Tensor]:
    return vit if _TABLE in vit else {**vit, _TABLE: sinusoid_table(positions, len(vit[_PATCHES]))}


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor.cpu(), other[name]) for name, tensor in one.items()
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
        FileNotFoundError, ValueError: as :meth:`Weights.of` and :meth:`Pretrained.filled`.
    """
    weights = _whole(content, path)
    _say(weights, path)
    return weights


def _whole(content: Mapping[str, Any], path: Path) -> Weights:
    weights, pretrained = Weights.of(content), Pretrained.said_in(content)
    return weights if pretrained is None else replace(weights, tensors=pretrained.filled(weights.tensors, str(path)))


def _read(path: Path) -> Weights:
    """The weights in a file; errors name it."""
    content = read_weights(path)
    try:
        return _whole(content, path)
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
