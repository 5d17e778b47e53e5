"""Any known project's weights -> our parameter names, and loading that says in one line what does not fit.

Whose a file is, is seen from its parameter names (:mod:`bitad.models.formats`); whatever reads weights goes through
:func:`~bitad.models.weight_files.read_weights`, :class:`Weights` and :func:`load_weights`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitad.models.formats import Format, recognise
from bitad.models.network_size import size_difference
from bitad.models.weight_files import read_weights

__all__ = ["Weights", "convert", "load_backbone", "load_weights", "read_weights"]

log = logging.getLogger("bitad")

# Under which keys of a file named weights are found, the best first: what is tested is the average (EMA).
_KEYS = ("state_dict_ema", "state_dict", "model", "module", "net")
# What DistributedDataParallel, torch.compile and the like put in front of every name.
_WRAPPERS = re.compile(r"^((module|_orig_mod|model|net)\.)+")
_BACKBONE = "backbone.vit."


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
    """

    format: Format
    tensors: dict[str, Tensor]
    left_out: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    key: str | None
    epoch: int | None

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Weights:
        """The weights in a file's content, of several sets the averaged ones (EMA).

        Raises:
            ValueError: for weights of no known project.
        """
        key = next((key for key in _KEYS if isinstance(content.get(key), Mapping)), None)
        inner = content if key is None else content[key]
        named = {_WRAPPERS.sub("", name): tensor for name, tensor in inner.items() if isinstance(tensor, Tensor)}
        known = recognise(named)
        tensors, left_out = known.translate(named)
        dtypes = sorted({tensor.dtype for tensor in tensors.values()}, key=str)
        epoch = content.get("epoch")
        return cls(
            format=known,
            tensors={name: _single(tensor) for name, tensor in tensors.items()},
            left_out=left_out,
            dtypes=tuple(dtypes),
            key=key,
            epoch=epoch if isinstance(epoch, int) else None,
        )

    @property
    def is_averaged(self) -> bool:
        """Whether the file says that these are averaged weights."""
        return self.key == "state_dict_ema"

    @property
    def halved(self) -> bool:
        """Whether some came in less than single precision."""
        return any(dtype.is_floating_point and dtype.itemsize < 4 for dtype in self.dtypes)

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


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


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
    try:
        weights = weights_of(read_weights(path), path)
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    load_weights(vit, weights.backbone(str(path)), source=str(path), may_lack=r"\.(bi_)?adapter\.|^pos_embed$")


def weights_of(content: Mapping[str, Any], path: Path) -> Weights:
    """The weights in the content of a file; says so where they are made more precise. Raises as :meth:`Weights.of`."""
    weights = Weights.of(content)
    if weights.halved:
        log.info("%s holds %s; taken as float32", path, " and ".join(weights.dtype_names))
    return weights


def without_adapters(weights: Mapping[str, Tensor]) -> str:
    """What ``weights`` may lack if they have no adapter at all: all of them, because new ones change nothing."""
    return r"(?!)" if any(".adapter." in name for name in weights) else r"\.adapter\."
