"""The checkpoints of a run, baselines to start from, and the lock on the run directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bitad.config.schema import Config, TrainingConfig
from bitad.data.fingerprints import Fingerprints, changes
from bitad.models.build import Network
from bitad.runtime.distributed import Ranks
from bitad.runtime.environment import is_restarted
from bitad.runtime.files import atomic_write
from bitad.runtime.locking import OTHER_OUT, RESTART_S, locked
from bitad.runtime.log import log
from bitad.timeline import View
from bitad.weights.checkpoint import (
    Checkpoint,
    class_names,
    input_differences,
    load_checkpoint,
    open_checkpoint,
    save_checkpoint,
)
from bitad.weights.files import BACKBONE_FILE
from bitad.weights.loading import (
    BackboneError,
    BackboneFile,
    is_transformer_of,
    load_weights,
    without_adapters,
)


class CheckpointManager:
    """The checkpoints of a run: `best.pt`, and ``keep`` to resume from: `last.pt`, `last-1.pt`, ..."""

    def __init__(self, directory: Path, keep: int) -> None:
        self.best = directory / "best.pt"
        self._last = [directory / ("last.pt" if age == 0 else f"last-{age}.pt") for age in range(keep)]
        self.last = self._last[0]  # the newest
        self._backbone: BackboneFile | None = None
        self._backbone_path = directory / BACKBONE_FILE

    @property
    def files(self) -> list[Path]:
        """The paths of the checkpoints and of the frozen transformer."""
        return [self.best, *self._last, self._backbone_path]

    @property
    def exists(self) -> bool:
        """Whether there is a run to resume."""
        return any(path.exists() for path in self._last)

    def require(self, *, resume: bool = True) -> None:
        """Raises an error if there is no run to resume, or a new run would overwrite one."""
        if resume and not self.exists:
            raise FileNotFoundError(f"no run to resume: {self.last} does not exist; start it without --resume")
        if self.exists and not resume:
            raise ValueError(
                f"run {self.last.parent} exists; use --resume, or choose another name, seed or output"
            )

    def newest(self) -> tuple[Checkpoint, Path]:
        """The newest readable checkpoint, and its file; logs the faults of newer ones.

        Raises:
            FileNotFoundError: there is none, or no file of its frozen transformer.
            ValueError: none can be read, or it holds weights alone.
        """
        self.require()
        existing = [path for path in self._last if path.exists()]
        if existing[0] != self.last:
            log.warning("%s is missing; resuming from %s, the one before it", self.last, existing[0])
        for path, older in zip(existing, [*existing[1:], None], strict=True):
            try:
                saved = load_checkpoint(path)
            except ValueError as error:
                if older is None or isinstance(error, BackboneError):
                    raise
                log.warning("%s; resuming from %s, the one before it", error, older)
                continue
            if saved.training is None:
                raise ValueError(f"{path} holds weights only and cannot be resumed")
            return saved, path
        raise AssertionError("the last one was returned or raised")

    def save_backbone(self, state: Mapping[str, Tensor]) -> None:
        """Writes the frozen transformer of a network; checkpoints then refer to it."""
        self._backbone = BackboneFile.write(state, self._backbone_path)

    def save_last(self, checkpoint: Checkpoint, *, again: bool = False) -> None:
        """Writes the newest checkpoint and removes the oldest; ``again``: replaces the newest."""
        self._save(checkpoint, self.last, before=None if again else self._rotate)

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Writes the best network, without the state for resuming."""
        self._save(replace(checkpoint, training=None), self.best)

    def _save(self, checkpoint: Checkpoint, path: Path, *, before: Callable[[], None] | None = None) -> None:
        if self._backbone is not None and not self._backbone_path.is_file():  # removed since
            self.save_backbone(checkpoint.model)
            log.warning(
                "%s was removed while the run used it; it is written again, in the precision of this training",
                self._backbone_path,
            )
        save_checkpoint(checkpoint, path, backbone=self._backbone, before=before)

    def _rotate(self) -> None:
        """Makes room for a new checkpoint; a run killed in between can be resumed."""
        for newer, older in reversed(list(zip(self._last, self._last[1:], strict=False))):
            if newer.exists():
                _link_or_move(newer, older)


def _link_or_move(path: Path, other: Path) -> None:
    """Gives a file a second name; the first one stays until it is replaced."""
    try:
        with atomic_write(other) as partial:
            partial.unlink()  # a link needs a free name
            os.link(path, partial)
    except OSError:  # this file system has no links
        os.replace(path, other)


# These files may move: a resumed run compares their content.
_COMPARED_BY_CONTENT = (
    "data.annotations",
    "data.videos",
    "data.reversed_videos",
    "data.features",
    "data.reversed_features",
    "test.video_scores",
    "init.teacher",
)

# A resumed run may change these keys of `training`; its next step takes the learning rate of the new schedule.
_RATES = ("lr", "adapter_lr", "fusion_lr")
_SCHEDULE = ("epochs", "schedule_epochs", *_RATES)


def saved_run(keeper: CheckpointManager, config: Config) -> Checkpoint:
    """The newest checkpoint of a run.

    Raises:
        ValueError: its configuration is another one, or the run cannot go on to the new number of epochs.
    """
    saved, path = keeper.newest()
    moved = [] if saved.data is None else [*_COMPARED_BY_CONTENT]
    if moved and config.data.classes is not None and class_names(config) == saved.classes:
        moved.append("data.classes")
    was = saved.config.training
    as_before = config.training.model_copy(update={key: getattr(was, key) for key in _SCHEDULE})
    if changed := saved.changes(config.model_copy(update={"training": as_before}), moved=moved):
        raise ValueError(
            f"the configuration is not that of run {path.parent}: {'; '.join(changed)}; "
            "resume with the run's own, or start another run"
        )
    _check_epochs(saved, config.training, path.parent)
    return saved


def _check_epochs(saved: Checkpoint, now: TrainingConfig, run: Path) -> None:
    """Raises ValueError if the run has trained for longer, or its schedule would change without being stated."""
    begun = saved.epoch + bool(saved.training and saved.training.get("done"))
    if now.epochs < begun:
        raise ValueError(f"training.epochs={now.epochs}, but run {run} is in epoch {begun}; use {begun} or more")
    before, after = saved.config.training.schedule_length, now.schedule_length
    if before == after or now.schedule_epochs is not None:
        return
    keep = f", or training.schedule_epochs={before} to keep the schedule" if now.epochs <= before else ""
    raise ValueError(
        f"the learning rate of run {run} falls to 0 over {before} epochs; training.epochs={now.epochs} alone "
        f"would change that to {after}; if that is meant, also set training.schedule_epochs={after}{keep}"
    )


def schedule_changes(saved: Checkpoint, now: TrainingConfig) -> list[str]:
    """How the learning rates of a resumed run differ from those it would have had."""
    was = saved.config.training
    changed = [
        f"training.{key} was {old:g}, is {new:g}"
        for key in _RATES
        if (old := getattr(was, key)) != (new := getattr(now, key))
    ]
    if was.schedule_length != now.schedule_length:
        changed.append(f"the schedule was of {was.schedule_length} epochs, is of {now.schedule_length}")
    return changed


def check_data(saved: Checkpoint, now: Fingerprints, *, allow: bool, show: bool) -> None:
    """Raises ValueError if the data have changed; with ``allow``, logs it if ``show``."""
    if saved.data is None:
        if show:
            log.warning("%s has no fingerprints of its data; changes are not checked", saved.source)
        return
    changed = changes(saved.data, now)
    if not changed:
        return
    fault = f"the data have changed since {saved.source} was written: {'; '.join(changed)}"
    if not allow:
        raise ValueError(f"{fault}; resume with the original data, start another run, or use --allow-changed-data")
    if show:
        log.warning("%s; resumed on the changed data (--allow-changed-data)", fault)


def load_saved_weights(network: Network, saved: Checkpoint, classes: tuple[str, ...]) -> None:
    """Loads the averaged weights of a checkpoint; ValueError if they are of other classes."""
    if saved.classes != classes:
        raise ValueError(
            f"{saved.source} was trained on the classes {saved.classes}, not {classes}; "
            "resume with the original class list, or start another run"
        )
    load_weights(network, saved.model, source=saved.source)


def random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def load_initial(network: Network, config: Config, classes: tuple[str, ...]) -> None:
    """Loads the averaged weights (EMA) of the baselines in ``config.init`` into the network, or both of a pair.

    Raises:
        FileNotFoundError: there is no such run or checkpoint, or no file of its frozen transformer.
        ConnectionError: one is named ``hub:...`` and cannot be downloaded.
        ValueError: one is no baseline of that view, or has other classes, windows, layers or frozen weights.
    """
    paths = (("forward", config.init.forward), ("reverse", config.init.reverse))
    encoders = (None, config.pair.second_weights)
    for detector, view, (name, path), encoder in zip(
        network.detectors, config.views, paths, encoders, strict=False
    ):
        assert path is not None  # the configuration requires it
        try:
            found = open_checkpoint(path)
        except (FileNotFoundError, ConnectionError, ValueError) as error:
            raise type(error)(f"init.{name}: {error}") from None
        if isinstance(found, Checkpoint):
            if faults := list(_mismatches(found, config, classes, view)):
                raise ValueError(f"init.{name}={path} does not fit this run: {'; '.join(faults)}")
            weights = found.model
        elif found.format.kind == "detector":
            weights = found.tensors
        else:
            raise ValueError(
                f"init.{name}={path} is {found.format.title}, not a detector; give a finished baseline"
            )
        if encoder is not None and not is_transformer_of(weights, encoder):
            raise ValueError(
                f"init.{name}={path} does not stand on pair.second_weights={encoder}; give a baseline that was trained "
                "on that file"
            )
        # The second adapters are new; a baseline has none.
        lacking = rf"\.bi_adapter\.|{without_adapters(weights)}"
        load_weights(detector, weights, source=f"init.{name}={path}", may_lack=lacking)


# The input that a run has in common with its baselines and its teacher.
COMMON_INPUT = (
    "window.steps",
    "window.stride_frames",
    "window.steps_per_second",
    "window.frames_per_step",
    "data.feature_channels",
    "data.feature_stride_frames",
    "data.feature_offset_frames",
    "data.feature_fps",
)


def _mismatches(checkpoint: Checkpoint, config: Config, classes: tuple[str, ...], view: View) -> Iterator[str]:
    """Why a checkpoint is not the baseline of one network of a run."""
    theirs = checkpoint.config
    if theirs.experiment != "baseline":
        yield f"it is a run of experiment {theirs.experiment}, give one of the baseline"
        return
    if theirs.direction != view:
        yield f"it was trained with direction={theirs.direction}, this network needs {view}"
    flip = theirs.training.augmentation.flip
    if "flipped" in config.views and flip > 0:
        yield f"training.augmentation.flip is {flip:g} there, so it has seen flipped frames; give one trained with 0"
    if checkpoint.classes != classes:
        yield f"its classes are {', '.join(checkpoint.classes)}, here {', '.join(classes)}"
    for key, old, new in input_differences(theirs, config, (*COMMON_INPUT, "model")):
        yield f"{key} is {old} there and {new} here"


@contextmanager
def lock_folder(
    folder: Path, ranks: Ranks, *, remedy: str = OTHER_OUT, option: str = "--out", patience_s: float = 0.0
) -> Iterator[None]:
    """As :func:`bitad.runtime.locking.locked`: rank 0 holds the lock, every rank raises its error."""
    with ExitStack() as held:
        fault: ValueError | OSError | None = None
        if ranks.is_main:
            try:
                held.enter_context(locked(folder, remedy=remedy, option=option, patience_s=patience_s))
            except (ValueError, OSError) as error:
                fault = error
        message = ranks.gather("" if fault is None else str(fault))[0]
        if fault is not None:
            raise fault  # unchanged: the message of a full disk depends on its number
        if message:
            raise ValueError(message)
        yield


@contextmanager
def lock_run(config: Config, ranks: Ranks, *, resume: bool) -> Iterator[bool]:
    """Keeps other processes from writing in the run directory; yields whether the run is resumed.

    A run is resumed if the user asks for it, or torchrun restarts it after a failure.

    Raises:
        ValueError: another process has locked the directory.
        FileNotFoundError: there is no run to resume.
    """
    directory = config.run_directory
    keeper = CheckpointManager(directory, config.training.keep_last)
    if resume:
        keeper.require()  # before a mistyped name makes a folder
    # Former processes may still be ending, or the lock may be of a machine that went down.
    patience_s = 0.0 if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" else RESTART_S
    remedy = "wait until that has ended, or choose another name, seed or output"
    with lock_folder(directory, ranks, remedy=remedy, option="output", patience_s=patience_s):
        exists, restarted = ranks.gather((keeper.exists, is_restarted(directory)))[0]
        yield resume or (restarted and exists)
