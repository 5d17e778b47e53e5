"""Checkpoints: everything a run needs to go on, or a user to detect with; read with ``weights_only=True``, always."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitad.config import Config
from bitad.config_files import differences, override_config, parse_config
from bitad.data.files import replacing
from bitad.models.build import Network, build_network
from bitad.models.weights import load_weights

FORMAT = "bitad checkpoint 2"
# A resumed run may change these: what it goes on to do does not depend on them.
WITHOUT_EFFECT = ("threads", "output", "training.workers", "init.forward", "init.backward")


@dataclass
class Checkpoint:
    """The content of a checkpoint file.

    Args:
        config: the resolved configuration of the run.
        classes: class names, in the order of the logits.
        model: the state of the network or pair; what trains is there as its average (EMA), which is what is tested.
        epoch: epochs finished.
        rate_hz: grid steps a second of the training videos (their median), by which other videos are sampled alike.
        evaluation: of these weights, if they were evaluated.
        training: what only a resumed run needs (raw weights, optimiser, schedule, EMA, RNG); None in `best.pt`.
    """

    config: Config
    classes: tuple[str, ...]
    model: dict[str, Tensor]
    epoch: int
    rate_hz: float
    evaluation: dict[str, Any] | None = None
    training: dict[str, Any] | None = field(default=None, repr=False)

    def network(self) -> Network:
        """The trained network or pair, in evaluation mode."""
        network = build_network(self.config, len(self.classes))
        load_weights(network, self.model, source="the checkpoint")
        return network.eval()

    def changes(self, config: Config) -> list[str]:
        """How a configuration differs from this run's where that changes what the run does: ``key was x, is y``."""
        before, now = self.config.model_dump(mode="json"), config.model_dump(mode="json")
        return [
            f"{key} was {old}, is {new}"
            for key, old, new in sorted(differences(before, now), key=lambda difference: difference[0])
            if key not in WITHOUT_EFFECT
        ]

    def changed(self, overrides: Sequence[str]) -> Checkpoint:
        """With another configuration to test under, changed as on the command line.

        Raises:
            ValueError: a fusion would meet windows of another length than it was trained with, or see
                :func:`bitad.config_files.override_config`.
        """
        config = override_config(self.config, overrides)
        trained, wanted = self.config.window.steps, config.window.steps
        if config.plan.fusion and trained != wanted:
            raise ValueError(
                f"the fusion of experiment {config.experiment} was trained on windows of {trained} steps and cannot "
                f"take {wanted}: its layer has an input for every point; test with window.steps={trained}"
            )
        return replace(self, config=config)


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Writes a checkpoint, whole or not at all."""
    content = {
        "format": FORMAT,
        "config": checkpoint.config.model_dump(mode="json"),
        "classes": list(checkpoint.classes),
        "model": checkpoint.model,
        "epoch": checkpoint.epoch,
        "rate_hz": checkpoint.rate_hz,
        "evaluation": checkpoint.evaluation,
        "training": checkpoint.training,
    }
    with replacing(path) as partial:
        torch.save(content, partial)


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint of ours; a run directory stands for its `best.pt`, else its `last.pt`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of ours, or a damaged one.
    """
    if path.is_dir():
        found = [path / name for name in ("best.pt", "last.pt") if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(f"run {path} has no checkpoint (best.pt or last.pt) yet; train it first")
        path = found[0]
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; give a run directory or a .pt file")
    try:
        # torch.load does not look at the checksums: weights that were damaged on the way would go unnoticed.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} in it is damaged")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever damaged bytes lead to
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is not a readable checkpoint ({reason})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of BiTAD ('{FORMAT}'); train one, or convert it")
    return Checkpoint(
        config=parse_config(content["config"], f"in {path}"),
        classes=tuple(content["classes"]),
        model=content["model"],
        epoch=content["epoch"],
        rate_hz=content["rate_hz"],
        evaluation=content["evaluation"],
        training=content["training"],
    )
