"""The first weights of two networks: those of two finished baselines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitad.config import Config
from bitad.config_files import differences
from bitad.data.detections import Basis
from bitad.models.pair import Pair
from bitad.models.weights import load_weights
from bitad.training.checkpoint import Checkpoint, load_checkpoint

# Parts of `model` that change how a network is trained and not what it is.
_OF_THE_TRAINING = ("drop_path", "dropout", "backbone.weights", "backbone.drop_path", "backbone.checkpointing")


def load_initial(pair: Pair, config: Config, classes: tuple[str, ...]) -> None:
    """Gives both networks the averaged weights (EMA) of the baselines that ``config.init`` names.

    Raises:
        FileNotFoundError: there is no such run or checkpoint.
        ValueError: one is not a baseline of that direction, or has other classes, windows or layers than this run.
    """
    paths = (("forward", config.init.forward), ("backward", config.init.backward))
    for side, view, (name, path) in zip(pair.sides, config.views, paths, strict=True):
        assert path is not None  # the configuration has seen to it
        checkpoint = _load(name, path)
        if faults := list(_faults(checkpoint, config, classes, view)):
            raise ValueError(f"init.{name}={path} does not fit this run: {'; '.join(faults)}")
        # The second adapters are new; there are none in a baseline.
        load_weights(side.network, checkpoint.model, source=str(path), may_lack=r"\.bi_adapter\.")


def _load(name: str, path: Path) -> Checkpoint:
    try:
        return load_checkpoint(path)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"init.{name}: {error}") from None


def _faults(checkpoint: Checkpoint, config: Config, classes: tuple[str, ...], view: Basis) -> Iterator[str]:
    theirs = checkpoint.config
    if theirs.plan.networks != 1:
        yield f"it is a run of experiment {theirs.experiment}, give one of the baseline"
        return
    if theirs.direction != view:
        yield f"it watches {theirs.direction} playback, this network {view}"
    if checkpoint.classes != classes:
        yield f"its classes are {', '.join(checkpoint.classes)}, here {', '.join(classes)}"
    for key, old, new in differences(_of_the_network(theirs), _of_the_network(config)):
        if key.removeprefix("model.") not in _OF_THE_TRAINING:
            yield f"{key} is {old} there and {new} here"


def _of_the_network(config: Config) -> dict[str, Any]:
    """What both networks and the run must have in common."""
    return {
        "window": {"steps": config.window.steps, "stride_frames": config.window.stride_frames},
        "data": config.data.model_dump(include={"feature_channels", "feature_stride_frames"}),
        "model": config.model.model_dump(mode="json"),
    }
