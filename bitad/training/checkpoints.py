"""The checkpoints of a run: saved, resumed from, started from; and the lock on the run directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitad.config.loading import differences
from bitad.config.schema import Config
from bitad.data.fingerprints import Fingerprints, changes
from bitad.models.build import Network
from bitad.runtime.distributed import Ranks
from bitad.runtime.environment import is_restarted
from bitad.runtime.files import replacing
from bitad.runtime.locking import OTHER_OUT, RESTART_S, locked
from bitad.runtime.log import log
from bitad.timeline import Direction
from bitad.weights.checkpoint import (
    OF_THE_TRAINING,
    Checkpoint,
    class_names,
    load_checkpoint,
    open_checkpoint,
    save_checkpoint,
)
from bitad.weights.files import BACKBONE_FILE
from bitad.weights.loading import BackboneError, BackboneFile, Weights, load_weights, without_adapters


class CheckpointManager:
    """Keeps the checkpoints of a run directory: `best.pt`, `last.pt` and before it `last-1.pt`, `last-2.pt`, ...

    Args:
        directory: of the run.
        keep: how many checkpoints there are to go on from.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self.best = directory / "best.pt"
        self._backbone: BackboneFile | None = None
        self._backbone_path = directory / BACKBONE_FILE
        self._last = [directory / ("last.pt" if age == 0 else f"last-{age}.pt") for age in range(keep)]

    @property
    def last(self) -> Path:
        """Where the newest checkpoint is."""
        return self._last[0]

    @property
    def files(self) -> list[Path]:
        """Where checkpoints and the frozen transformer are written."""
        return [self.best, *self._last, self._backbone_path]

    @property
    def exists(self) -> bool:
        """Whether there is a run to go on with."""
        return any(path.exists() for path in self._last)

    def require(self) -> None:
        """Checks that there is a run to resume.

        Raises:
            FileNotFoundError: there is none.
        """
        if not self.exists:
            raise FileNotFoundError(f"no run to resume: {self.last} does not exist; start it without --resume")

    def in_the_way(self) -> ValueError:
        """The error where a new run finds this one."""
        return ValueError(f"run {self.last.parent} exists; go on with --resume, or choose another name, seed or output")

    def newest(self) -> tuple[Checkpoint, Path]:
        """The newest checkpoint that can be read, and its file; what is wrong with newer ones is logged.

        Raises:
            FileNotFoundError: there is none, or no file of its frozen transformer.
            ValueError: none can be read, or it holds weights alone.
        """
        self.require()
        there = [path for path in self._last if path.exists()]
        if there[0] != self.last:
            log.warning("%s is not there; resuming from %s, made before it", self.last, there[0])
        for path, older in zip(there, [*there[1:], None], strict=True):
            try:
                saved = load_checkpoint(path)
            except ValueError as error:
                if older is None or isinstance(error, BackboneError):
                    raise
                log.warning("%s; resuming from %s, made before it", error, older)
                continue
            if saved.training is None:
                raise ValueError(f"{path} holds weights only and cannot be resumed")
            return saved, path
        raise AssertionError("the last one was returned or raised")

    def save_last(self, checkpoint: Checkpoint, *, again: bool = False) -> None:
        """Write the newest checkpoint; the ones before it grow older by one, and the oldest goes.

        Args:
            again: of the same moment as the newest one, which it replaces.
        """
        self._save(checkpoint, self.last, before=None if again else self._grow_older)

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Write the best network, without what only a resumed run needs."""
        self._save(replace(checkpoint, training=None), self.best)

    def save_backbone(self, state: Mapping[str, Tensor]) -> None:
        """Write the frozen transformer of a network, unless its file is right; checkpoints then refer to it."""
        self._backbone = BackboneFile.write(state, self._backbone_path)

    def _save(self, checkpoint: Checkpoint, path: Path, *, before: Callable[[], None] | None = None) -> None:
        if self._backbone is not None and not self._backbone_path.is_file():  # removed since
            self.save_backbone(checkpoint.model)
        save_checkpoint(checkpoint, path, backbone=self._backbone, before=before)

    def _grow_older(self) -> None:
        """Make room for a new one, written already; whoever dies here leaves a run to go on with."""
        for newer, older in reversed(list(zip(self._last, self._last[1:], strict=False))):
            if newer.exists():
                _copy_by_name(newer, older)


def _copy_by_name(path: Path, other: Path) -> None:
    """Give a file another name too, so that whoever looks for the first one finds it until it is replaced."""
    try:
        with replacing(other) as partial:
            partial.unlink()  # a link is made only where there is nothing
            os.link(path, partial)
    except OSError:  # not every file system can
        os.replace(path, other)


# Where these files lie does not matter: a run that is resumed compares their content.
_COMPARED_BY_CONTENT = (
    "data.annotations",
    "data.videos",
    "data.reversed_videos",
    "data.features",
    "data.reversed_features",
    "test.video_scores",
)


def saved_run(keeper: CheckpointManager, config: Config) -> Checkpoint:
    """The newest checkpoint of a run, which is of this configuration.

    Raises:
        FileNotFoundError, ValueError: as :meth:`CheckpointManager.newest`; the configuration is another one.
    """
    saved, path = keeper.newest()
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


def load_initial(network: Network, config: Config, classes: tuple[str, ...]) -> None:
    """Gives both networks the averaged weights (EMA) of the baselines that ``config.init`` names.

    Raises:
        FileNotFoundError: there is no such run or checkpoint, or no file of its frozen transformer.
        ValueError: one is not a baseline of that direction, or has other classes, windows or layers than this run. A
            detector of another project says neither its direction nor its windows: these are taken on trust.
    """
    paths = (("forward", config.init.forward), ("reverse", config.init.reverse))
    for detector, view, (name, path) in zip(network.detectors, config.views, paths, strict=True):
        assert path is not None  # the configuration has seen to it
        found = _open(name, path)
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
        load_weights(detector, weights, source=f"init.{name}={path}", may_lack=lacking)


def _open(name: str, path: Path) -> Checkpoint | Weights:
    try:
        return open_checkpoint(path)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"init.{name}: {error}") from None


def _faults(checkpoint: Checkpoint, config: Config, classes: tuple[str, ...], view: Direction) -> Iterator[str]:
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


_OTHER_RUN = "wait until that has ended, or choose another name, seed or output"


@contextmanager
def lock_folder(
    folder: Path, ranks: Ranks, *, remedy: str = OTHER_OUT, option: str = "--out", patience_s: float = 0.0
) -> Iterator[None]:
    """Within, no other command that asks writes in the folder. Rank 0 holds the lock for all processes.

    Raises:
        ValueError, OSError: on every rank: as :func:`bitad.runtime.locking.locked`.
    """
    with ExitStack() as held:
        fault: ValueError | OSError | None = None
        if ranks.is_main:
            try:
                held.enter_context(locked(folder, remedy=remedy, option=option, patience_s=patience_s))
            except (ValueError, OSError) as error:
                fault = error
        told = ranks.gather("" if fault is None else str(fault))[0]
        if fault is not None:
            raise fault  # as it is: how a full disk is told depends on its number
        if told:
            raise ValueError(told)
        yield


@contextmanager
def lock_run(config: Config, ranks: Ranks, *, resume: bool) -> Iterator[bool]:
    """Within, these processes are the only ones in the run directory.

    Args:
        resume: whether the user asked for it.

    Yields:
        whether the run is resumed: asked for, or begun again by torchrun after a failure.

    Raises:
        ValueError: another process has locked the directory.
        FileNotFoundError: there is no run to resume.
    """
    directory = config.run_directory
    keeper = CheckpointManager(directory, config.training.keep_last)
    if resume:
        keeper.require()  # a mistyped name makes no folder
    # The processes before these may be dying still, or held the lock on a machine that went down.
    patience_s = 0.0 if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" else RESTART_S
    with lock_folder(directory, ranks, remedy=_OTHER_RUN, option="output", patience_s=patience_s):
        exists, restarted = ranks.gather((keeper.exists, is_restarted(directory)))[0]
        yield resume or (restarted and exists)
