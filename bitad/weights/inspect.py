"""What a file of weights holds, and what is missing or different in it for a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bitad.config.schema import Config
from bitad.models.build import build_network
from bitad.models.vit import is_adapter
from bitad.runtime.log import shortlist
from bitad.weights.checkpoint import class_names, parse_checkpoint
from bitad.weights.files import BACKBONE_FILE, is_checkpoint, weights_path
from bitad.weights.formats import TransformerSize, count_classes
from bitad.weights.loading import Weights, find_defects, parse_weights, read_complete, without_adapters

_KINDS = {"detector": "a detector", "backbone": "a backbone", "pair": "two detectors"}


@dataclass(frozen=True)
class Inspection:
    """What a file of weights holds.

    Args:
        is_averaged: whether the file says that its weights are an average (EMA).
        has_optimizer: whether it has the state to resume a training from.
        has_backbone_file: whether its frozen transformer, which ``weights`` include, is in the file beside it.
        compared_with: the network that the weights were compared with, if any.
        defects: sizes that differ, or weights that are missing, unexpected or of another shape.
    """

    path: Path
    weights: Weights
    is_averaged: bool
    has_optimizer: bool
    has_backbone_file: bool
    compared_with: str | None
    defects: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The figures, without position tables."""
        weights = self.weights
        counts = {name: one.numel() for name, one in weights.tensors.items() if not name.endswith("pos_embed")}
        transformer = TransformerSize.of(weights.tensors)
        return {
            "file": str(self.path),
            "project": weights.format.title,
            "kind": weights.format.kind,
            "weights": weights.key,
            "averaged": self.is_averaged,
            "also": list(weights.others),
            "without_averaged": list(weights.empty_averages),
            "optimiser": self.has_optimizer,
            "epoch": weights.epoch,
            "dtypes": weights.dtype_names,
            "parameters": sum(counts.values()),
            "adapter_parameters": sum(count for name, count in counts.items() if is_adapter(name)),
            "backbone": None if transformer is None else str(transformer),
            "backbone_file": BACKBONE_FILE if self.has_backbone_file else None,
            "left_out": list(weights.unused),
            "compared": self.compared_with,
            "defects": list(self.defects),
        }

    def lines(self) -> list[str]:
        """The figures as a text."""
        weights, figures = self.weights, self.to_json()
        where = "" if weights.key is None else f" in {weights.key}"
        average = "averaged (EMA)" if self.is_averaged else "not marked as EMA"
        epoch = "unknown epoch" if weights.epoch is None else f"epoch {weights.epoch}"
        dtypes = " and ".join(weights.dtype_names) + (", read as float32" if weights.is_converted else "")
        parameters, adapters = (figures[name] / 1e6 for name in ("parameters", "adapter_parameters"))
        in_adapters = f", {adapters:.2f} M in adapters" if adapters else ""
        compared = f"with {self.compared_with}: {'; '.join(self.defects) or 'nothing missing, nothing unexpected'}"
        if self.compared_with is None:
            compared = "with nothing; give --config to check it against a network"
        rows = {
            "weights": f"{len(weights.tensors)}{where}, {average}",
            "training": f"{epoch}, {'with' if self.has_optimizer else 'without'} optimizer",
            "numbers": f"{dtypes}; {parameters:.2f} M parameters{in_adapters}",
            "backbone": figures["backbone"],
            "frozen": f"the frozen transformer is in {BACKBONE_FILE}" if self.has_backbone_file else "",
            "others": f"{', '.join(weights.others)}: not used" if weights.others else "",
            "averaged": f"no weights in {', '.join(weights.empty_averages)}" if weights.empty_averages else "",
            "not used": f"{len(weights.unused)}: {shortlist(weights.unused)}" if weights.unused else "",
            "compared": compared,
        }
        title = f"{self.path}: {weights.format.title}, {_KINDS[weights.format.kind]}"
        return [title, *(f"  {name:<11}{text}" for name, text in rows.items() if text)]


def inspect_weights(path: Path, config: Config | None = None) -> Inspection:
    """Looks into a file of weights.

    Args:
        path: of any known project, or a folder with one such file.
        config: of the network to compare it with; None: BiTAD's checkpoints are compared with their own network.

    Raises:
        FileNotFoundError: no such file, or no file of the frozen transformer of a checkpoint.
        ValueError: no weights of a known project.
    """
    path = weights_path(path)
    content = read_complete(path)
    checkpoint = parse_checkpoint(content, path) if is_checkpoint(content) else None
    weights = parse_weights(content, path)
    compared_with, defects = None, []
    if config is not None:
        try:
            classes = len(class_names(config))
        except FileNotFoundError:  # the weights are here, but not the data
            classes = count_classes(weights.tensors) or 1
        compared_with, defects = "the given configuration", _defects(weights, config, classes)
    elif checkpoint is not None:
        compared_with = "the network of its configuration"
        defects = _defects(weights, checkpoint.config, len(checkpoint.classes))
    return Inspection(
        path=path,
        weights=weights,
        is_averaged=checkpoint is not None or weights.is_averaged,
        has_optimizer=any(content.get(key) is not None for key in ("optimizer", "training")),
        has_backbone_file=checkpoint is not None and content.get("backbone") is not None,
        compared_with=compared_with,
        defects=tuple(defects),
    )


def _defects(weights: Weights, config: Config, classes: int) -> list[str]:
    with torch.device("meta"):  # names and shapes, no numbers
        network = build_network(config, classes)
    expected, may_lack = network.state_dict(), without_adapters(weights.tensors)
    if weights.format.kind == "backbone":
        backbone = network.detectors[0].backbone
        if backbone is None:
            return ["it is a backbone, but the configuration takes features"]
        expected, may_lack = backbone.vit.state_dict(), rf"{may_lack}|^pos_embed$"
    return find_defects(weights.tensors, expected, may_lack=may_lack)
