"""What a file of weights holds, and whether it is all that a network of its size needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitad.config.loading import parse_config
from bitad.config.schema import CLIP_FRAMES, Config
from bitad.models.build import build_network
from bitad.weights.checkpoint import checkpoint_in, class_names, is_ours
from bitad.weights.files import BACKBONE_FILE, weights_path
from bitad.weights.loading import Weights, defects_of, read_complete, weights_of, without_adapters
from bitad.weights.sizes import HeadSize, TransformerSize, size_difference

_OPTIMISERS = ("optimizer", "training")
MILLION = 1_000_000


@dataclass(frozen=True)
class Inspection:
    """What a file of weights holds.

    Args:
        path: the file.
        weights: under our names.
        averaged: whether the file says that they are an average (EMA).
        optimiser: whether it has what a training needs to go on.
        also: other sets of weights in it.
        backbone_file: whether its frozen transformer is in the file beside it; it counts like the rest.
        transformer, head: the measures that can be seen from the weights; None: there is none, or too little of it.
        compared: what the weights were compared with.
        defects: what is of another size there, missing, or unexpected.
    """

    path: Path
    weights: Weights
    averaged: bool
    optimiser: bool
    also: tuple[str, ...]
    backbone_file: bool
    transformer: TransformerSize | None
    head: HeadSize | None
    compared: str
    defects: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """How many; a position table is none."""
        return _count(self.weights.tensors, "")

    @property
    def adapter_parameters(self) -> int:
        """How many of them are of adapters."""
        return _count(self.weights.tensors, "adapter")

    def to_json(self) -> dict[str, Any]:
        """The same figures for machines."""
        transformer, weights = self.transformer, self.weights
        return {
            "file": str(self.path),
            "project": self.weights.format.title,
            "kind": self.weights.format.kind,
            "weights": weights.key,
            "averaged": self.averaged,
            "also": list(self.also),
            "without_averaged": list(weights.without),
            "optimiser": self.optimiser,
            "epoch": self.weights.epoch,
            "dtypes": self.weights.dtype_names,
            "parameters": self.parameters,
            "adapter_parameters": self.adapter_parameters,
            "backbone": None
            if transformer is None
            else {
                **asdict(transformer),
                "adapters": list(transformer.adapters),
                "size": transformer.name,
                "heads": transformer.heads,
            },
            "detector": None if self.head is None else asdict(self.head),
            "left_out": list(self.weights.left_out),
            "backbone_file": BACKBONE_FILE if self.backbone_file else None,
            "compared": self.compared,
            "defects": list(self.defects),
        }

    def lines(self) -> list[str]:
        """For people."""
        weights = self.weights
        kind = {"detector": "a detector", "backbone": "a backbone", "pair": "two detectors"}[weights.format.kind]
        where = "" if weights.key is None else f" in {weights.key}"
        epoch = "epoch not said" if weights.epoch is None else f"epoch {weights.epoch}"
        numbers = " and ".join(weights.dtype_names) + (", taken as float32" if weights.converted else "")
        rows = [
            (
                "weights",
                f"{len(weights.tensors)}{where}, {'averaged (EMA)' if self.averaged else 'not said to be EMA'}",
            ),
            ("", f"{epoch}, {'with' if self.optimiser else 'without'} optimiser"),
            ("numbers", f"{numbers}; {self.parameters / MILLION:.2f} M parameters"),
            *self._size_rows(),
        ]
        if self.also:
            rows.append(("also there", f"{', '.join(self.also)}: not used"))
        if weights.without:
            rows.append(("averaged", f"no weights in {', '.join(weights.without)}"))
        if self.backbone_file:
            rows.append(("", f"the frozen transformer is in {BACKBONE_FILE}"))
        if weights.left_out:
            names = ", ".join(weights.left_out[:3]) + (", ..." if len(weights.left_out) > 3 else "")
            rows.append(("not used", f"{len(weights.left_out)}: {names}"))
        verdict = "; ".join(self.defects) or "nothing missing, nothing unexpected"
        rows.append(("compared", f"with {self.compared}: {verdict}"))
        return [f"{self.path}: {weights.format.title}, {kind}", *(f"  {name:<11}{text}" for name, text in rows)]

    def _size_rows(self) -> list[tuple[str, str]]:
        rows, vit, head = [], self.transformer, self.head
        if vit is not None:
            heads = "heads not known" if vit.heads is None else f"{vit.heads} heads"
            table = "no position table" if vit.table_pixels is None else f"position table for {vit.table_pixels} pixels"
            rows.append(("backbone", f"{vit}, {heads}, {table}"))
            if vit.adapters:
                many = f"{self.adapter_parameters / MILLION:.2f} M parameters"
                blocks = f"{len(vit.adapters)} of {vit.depth} blocks ({vit.adapters[0]} to {vit.adapters[-1]})"
                rows.append(("adapters", f"in {blocks}, {vit.adapter_dim} wide, {many}"))
        if head is not None:
            rows.append(
                (
                    "detector",
                    f"{head.in_channels} -> {head.channels} channels, {head.levels} levels, {head.stem_blocks} stem "
                    f"blocks, {head.head_convolutions} convolutions in the head, {head.classes} classes"
                    + ("" if head.level_norms else "; no layer norm at the levels' ends (model.level_norms=false)"),
                )
            )
        return rows


def inspect_weights(path: Path, config: Config | None = None) -> Inspection:
    """Looks into a file of weights.

    Args:
        path: of any known project; a folder stands for the file in it.
        config: of the network to compare it with; None: ours have theirs inside, others are compared with the network
            of the size that they show.

    Raises:
        FileNotFoundError: no such file, or no file of the frozen transformer of a checkpoint of ours.
        ValueError: no weights of a known project.
    """
    path = weights_path(path)
    content = read_complete(path)
    try:
        return _inspected(content, path, config)
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def _inspected(content: Mapping[str, Any], path: Path, config: Config | None) -> Inspection:
    ours = checkpoint_in(content, path) if is_ours(content) else None
    weights = weights_of(content, path)
    transformer, head = TransformerSize.of(weights.tensors), HeadSize.of(weights.tensors)
    compared = "the given configuration"
    if config is None and ours is not None:
        config, compared = ours.config, "the network of its configuration"
    if config is None and weights.format.kind != "pair":
        config, compared = _of_size(transformer, head), "a network of its size"
    return Inspection(
        path=path,
        weights=weights,
        averaged=ours is not None or weights.is_averaged,
        optimiser=any(content.get(key) is not None for key in _OPTIMISERS),
        also=weights.others,
        backbone_file=ours is not None and content.get("backbone") is not None,
        transformer=transformer,
        head=head,
        compared=compared if config is not None else "nothing",
        defects=tuple(_defects(weights, config, head)),
    )


def _defects(weights: Weights, config: Config | None, head: HeadSize | None) -> list[str]:
    if config is None:
        return ["too little of a network for its size to be seen"]
    try:
        classes = len(class_names(config))
    except FileNotFoundError:  # the weights are here, but not the data
        classes = 1 if head is None else head.classes
    with torch.device("meta"):  # names and shapes, no numbers
        network = build_network(config, classes)
    wanted, may_lack = network.state_dict(), without_adapters(weights.tensors)
    if weights.format.kind == "backbone":
        backbone = network.detectors[0].backbone
        if backbone is None:
            return ["it is a backbone, but the configuration takes features"]
        wanted, may_lack = backbone.vit.state_dict(), rf"{may_lack}|^pos_embed$"
    difference = size_difference(weights.tensors, wanted)
    return [difference] if difference else defects_of(weights.tensors, wanted, may_lack=may_lack)


def _of_size(transformer: TransformerSize | None, head: HeadSize | None) -> Config | None:
    """A configuration of a network of such a size; what weights do not show is as it may be."""
    if transformer is None and head is None:
        return None
    model: dict[str, Any] = {}
    data: dict[str, Any] = {"annotations": "none"}
    if head is not None:
        shown = asdict(head)
        shared = ("channels", "levels", "embed_convolutions", "stem_blocks", "head_convolutions")
        model |= {key: shown[key] for key in shared} | {"heads": 1}
        model |= {"layer_scale": 1.0 if head.layer_scale else None, "level_norms": head.level_norms}
        data["feature_channels"] = head.in_channels
    if transformer is None:
        data["features"] = "none"
    else:
        data = {"annotations": "none", "videos": "none"}
        model["backbone"] = _backbone(transformer)
    levels = 6 if head is None else min(head.levels, 64)  # of more, parse_config says that there are too many
    steps = math.lcm(CLIP_FRAMES, 2 ** (levels - 1))
    return parse_config({"name": "inspected", "data": data, "window": {"steps": steps}, "model": model}, "of this size")


def _backbone(size: TransformerSize) -> dict[str, Any]:
    measures = {
        "dim": size.dim,
        "depth": size.depth,
        "heads": 1,
        "mlp_dim": size.mlp_dim,
        "patch_size": size.patch_size,
    }
    backbone: dict[str, Any] = {"size": size.name or measures, "pixels": size.patch_size}
    if size.table_pixels is not None:
        backbone["table_pixels"] = size.table_pixels
    if size.adapters and size.adapter_dim:
        backbone |= {"first_adapter": size.adapters[0], "adapter_reduction": size.dim // size.adapter_dim}
    return backbone


def _count(tensors: Mapping[str, Tensor], part: str) -> int:
    return sum(tensor.numel() for name, tensor in tensors.items() if part in name and not name.endswith("pos_embed"))
