"""What a resumed run takes over from its newest checkpoint, and what must not have changed since."""

from __future__ import annotations

import torch
from torch import Tensor

from bitad.config import Config
from bitad.log import log
from bitad.models.build import Network
from bitad.models.weights import load_weights
from bitad.training.checkpoint import Checkpoint, class_names
from bitad.training.fingerprints import Fingerprints, changes
from bitad.training.keeping import Keeper

# Where these files lie does not matter: a run that is resumed compares their content.
_COMPARED_BY_CONTENT = (
    "data.annotations",
    "data.videos",
    "data.reversed_videos",
    "data.features",
    "data.reversed_features",
    "test.video_scores",
)


def saved_run(keeper: Keeper, config: Config) -> Checkpoint:
    """The newest checkpoint of a run, which is of this configuration.

    Raises:
        FileNotFoundError, ValueError: as :meth:`Keeper.newest`; the configuration is another one.
    """
    saved, path = keeper.newest(config)
    moved = [] if saved.data is None else [*_COMPARED_BY_CONTENT]
    if moved and config.data.classes is not None and class_names(config) == saved.classes:
        moved.append("data.classes")
    if changed := saved.changes(config, moved=moved):
        raise ValueError(
            f"the configuration is not that of run {path.parent}: {'; '.join(changed)}; "
            "resume with the run's own, or start another run"
        )
    return saved


def check_data(saved: Checkpoint, now: Fingerprints, *, allow: bool, show: bool) -> None:
    """Checks that a resumed run finds the data that its checkpoint was made with.

    Args:
        allow: only say what has changed.
        show: whether this process logs it.

    Raises:
        ValueError: annotations, features, videos or scores have changed.
    """
    if saved.data is None:
        if show:
            log.warning("%s says nothing about its data: whether these have changed since cannot be seen", saved.source)
        return
    changed = changes(saved.data, now)
    if not changed:
        return
    said = f"the data have changed since {saved.source} was written: {'; '.join(changed)}"
    if not allow:
        raise ValueError(
            f"{said}; resume with the data that the run began with, start another run, or resume on the changed "
            "data with --allow-changed-data"
        )
    if show:
        log.warning("%s; resumed on the changed data (--allow-changed-data)", said)


def load_saved_weights(network: Network, saved: Checkpoint, classes: tuple[str, ...]) -> None:
    """Gives a network the averaged weights of a checkpoint.

    Raises:
        ValueError: they are of other classes, or do not fit.
    """
    if saved.classes != classes:
        raise ValueError(
            f"{saved.source} was trained on the classes {saved.classes}, not {classes}; resume "
            "with the class list that it was trained with, or start another run"
        )
    load_weights(network, saved.model, source=saved.source)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Of this process' random numbers."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """What :func:`random_state` has given."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
