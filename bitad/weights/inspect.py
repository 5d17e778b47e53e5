"""What a file of weights holds, and what is missing or different in it for a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bitad.config.schema import Config
from bitad.models.build import build_network
from bitad.models.vit import is_adapter
from bitad.weights.checkpoint import class_names, parse_checkpoint
from bitad.weights.files import BACKBONE_FILE, is_checkpoint, weights_path
from bitad.weights.formats import TransformerSize, count_classes
from bitad.weights.loading import Weights, find_defects, log_weights, read_complete, without_adapters

MILLION = 1_000_000
_NOT_COMPARED = "with nothing; give --config to check it against a network"


@dataclass(frozen=True)
class Inspection:
    """What a file of weights holds.

    Args:
        is_averaged: whether the file says that its weights are an average (EMA).
        has_optimizer: whether it has the state to resume a training from.
        has_backbone_file: whether its frozen transformer is in the file beside it; ``weights`` have it all the same.
        compared_with: the network that the weights were compared with; None: with nothing.
        defects: sizes that differ, or weights that are missing, unexpected or of another shape.
    """

    path: Path
    weights: Weights
    is_averaged: bool
    has_optimizer: bool
    has_backbone_file: bool
    compared_with: str | None
    defects: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """How many; a position table is none."""
        return sum(weight.numel() for name, weight in self.weights.tensors.items() if not name.endswith("pos_embed"))

    @property
    def adapter_parameters(self) -> int:
        """How many of them are in adapters."""
        return sum(weight.numel() for name, weight in self.weights.tensors.items() if is_adapter(name))

    @property
    def transformer(self) -> TransformerSize | None:
        """The size of its transformer; None: there is none."""
        return TransformerSize.of(self.weights.tensors)

    def to_json(self) -> dict[str, Any]:
        """The same figures for machines."""
        weights = self.weights
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
            "parameters": self.parameters,
            "adapter_parameters": self.adapter_parameters,
            "backbone": None if self.transformer is None else str(self.transformer),
            "backbone_file": BACKBONE_FILE if self.has_backbone_file else None,
            "left_out": list(weights.unused),
            "compared": self.compared_with,
            "defects": list(self.defects),
        }

    def lines(self) -> list[str]:
        """For people."""
        weights = self.weights
        kind = {"detector": "a detector", "backbone": "a backbone", "pair": "two detectors"}[weights.format.kind]
        where = "" if weights.key is None else f" in {weights.key}"
        average = "averaged (EMA)" if self.is_averaged else "not marked as EMA"
        epoch = "unknown epoch" if weights.epoch is None else f"epoch {weights.epoch}"
        dtypes = " and ".join(weights.dtype_names) + (", read as float32" if weights.is_converted else "")
        adapters = f", {self.adapter_parameters / MILLION:.2f} M in adapters" if self.adapter_parameters else ""
        rows = [
            ("weights", f"{len(weights.tensors)}{where}, {average}"),
            ("", f"{epoch}, {'with' if self.has_optimizer else 'without'} optimizer"),
            ("numbers", f"{dtypes}; {self.parameters / MILLION:.2f} M parameters{adapters}"),
        ]
        if self.transformer is not None:
            rows.append(("backbone", str(self.transformer)))
        if self.has_backbone_file:
            rows.append(("", f"the frozen transformer is in {BACKBONE_FILE}"))
        if weights.others:
            rows.append(("others", f"{', '.join(weights.others)}: not used"))
        if weights.empty_averages:
            rows.append(("averaged", f"no weights in {', '.join(weights.empty_averages)}"))
        if weights.unused:
            names = ", ".join(weights.unused[:3]) + (", ..." if len(weights.unused) > 3 else "")
            rows.append(("not used", f"{len(weights.unused)}: {names}"))
        verdict = f"with {self.compared_with}: {'; '.join(self.defects) or 'nothing missing, nothing unexpected'}"
        rows.append(("compared", _NOT_COMPARED if self.compared_with is None else verdict))
        return [f"{self.path}: {weights.format.title}, {kind}", *(f"  {name:<11}{text}" for name, text in rows)]


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
    try:
        return _inspect(content, path, config)
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def _inspect(content: Mapping[str, Any], path: Path, config: Config | None) -> Inspection:
    checkpoint = parse_checkpoint(content, path) if is_checkpoint(content) else None
    weights = Weights.of(content)
    log_weights(weights, path)
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
