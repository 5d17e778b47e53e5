"""The first weights of two networks: those of two finished baselines, ours or another project's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitad.config import Config
from bitad.config_files import differences
from bitad.data.detections import Basis
from bitad.models.pair import Pair
from bitad.models.weights import Weights, load_weights, without_adapters
from bitad.training.checkpoint import OF_THE_TRAINING, Checkpoint, open_checkpoint


def load_initial(pair: Pair, config: Config, classes: tuple[str, ...]) -> None:
    """Gives both networks the averaged weights (EMA) of the baselines that ``config.init`` names.

    Raises:
        FileNotFoundError: there is no such run or checkpoint, or not the pre-trained transformer that it leaves out.
        ValueError: one is not a baseline of that direction, or has other classes, windows or layers than this run. A
            detector of another project says neither its direction nor its windows: these are taken on trust.
    """
    paths = (("forward", config.init.forward), ("backward", config.init.backward))
    for side, view, (name, path) in zip(pair.sides, config.views, paths, strict=True):
        assert path is not None  # the configuration has seen to it
        found = _open(name, path, config)
        if isinstance(found, Checkpoint):
            if faults := list(_faults(found, config, classes, view)):
                raise ValueError(f"init.{name}={path} does not fit this run: {'; '.join(faults)}")
            weights = found.model
        elif found.format.kind == "detector":
            weights = found.tensors
        else:
            raise ValueError(f"init.{name}={path} is {found.format.title}, not a detector; give a finished baseline")
        # The second adapters are new; there are none in a baseline.
        lacking = rf"\.bi_adapter\.|{without_adapters(weights)}"
        load_weights(side.network, weights, source=f"init.{name}={path}", may_lack=lacking)


def _open(name: str, path: Path, config: Config) -> Checkpoint | Weights:
    try:
        found = open_checkpoint(path)
        return found.whole(config) if isinstance(found, Checkpoint) else found
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
        if key not in OF_THE_TRAINING:
            yield f"{key} is {old} there and {new} here"


def _of_the_network(config: Config) -> dict[str, Any]:
    """What both networks and the run must have in common."""
    return {
        "window": config.window.model_dump(include={"steps", "stride_frames", "frames_per_step"}),
        "data": config.data.model_dump(
            include={"feature_channels", "feature_stride_frames", "feature_offset_frames", "feature_fps"}
        ),
        "model": config.model.model_dump(mode="json"),
    }
