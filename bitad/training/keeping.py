"""The checkpoints of a run on disk: the last ones, to go on from, and the best one, to detect with."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from bitad.config import Config
from bitad.files import replacing
from bitad.log import log
from bitad.models.weights import Pretrained
from bitad.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


class Keeper:
    """Keeps the checkpoints of a run directory: `best.pt`, `last.pt` and before it `last-1.pt`, `last-2.pt`, ...

    Args:
        directory: of the run.
        keep: how many checkpoints there are to go on from.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self.best = directory / "best.pt"
        self._looked = False
        self._pretrained: Pretrained | None = None
        self._last = [directory / ("last.pt" if age == 0 else f"last-{age}.pt") for age in range(keep)]

    @property
    def last(self) -> Path:
        """Where the newest checkpoint is."""
        return self._last[0]

    @property
    def files(self) -> list[Path]:
        """Where checkpoints are written."""
        return [self.best, *self._last]

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

    def newest(self, config: Config | None = None) -> tuple[Checkpoint, Path]:
        """The newest checkpoint that can be read, whole, and its file; what is wrong with newer ones is logged.

        Args:
            config: that may know where the pre-trained transformer is now, see :meth:`Checkpoint.whole`.

        Raises:
            FileNotFoundError: there is none, or no pre-trained transformer.
            ValueError: none can be read, or it holds weights alone, or the pre-trained transformer is another one.
        """
        self.require()
        there = [path for path in self._last if path.exists()]
        if there[0] != self.last:
            log.warning("%s is not there; resuming from %s, made before it", self.last, there[0])
        for path, older in zip(there, [*there[1:], None], strict=True):
            try:
                saved = load_checkpoint(path)
            except ValueError as error:
                if older is None:
                    raise
                log.warning("%s; resuming from %s, made before it", error, older)
                continue
            if saved.training is None:
                raise ValueError(f"{path} holds weights only and cannot be resumed")
            return saved.whole(config), path
        raise AssertionError("the last one was returned or raised")

    def save_last(self, checkpoint: Checkpoint, *, again: bool = False) -> None:
        """Write the newest checkpoint; the ones before it grow older by one, and the oldest goes.

        Args:
            again: of the same moment as the newest one, which it replaces.
        """
        save_checkpoint(self._lean(checkpoint), self.last, before=None if again else self._grow_older)

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Write the best network, without what only a resumed run needs."""
        save_checkpoint(replace(self._lean(checkpoint), training=None), self.best)

    def _lean(self, checkpoint: Checkpoint) -> Checkpoint:
        """Without the pre-trained transformer, where the file that the configuration names has it.

        It does not train, so that one look at it is enough for a run: a large one takes seconds.
        """
        if not self._looked:
            self._looked, self._pretrained = True, _in_its_file(checkpoint)
        if self._pretrained is None:
            return checkpoint
        return replace(checkpoint, model=self._pretrained.without(checkpoint.model), pretrained=self._pretrained)

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


def _in_its_file(checkpoint: Checkpoint) -> Pretrained | None:
    """What checkpoints need not hold; that the file has gone meanwhile is no reason to lose the run."""
    try:
        return checkpoint.to_leave_out()
    except (FileNotFoundError, ValueError) as error:
        log.warning("%s; the checkpoints hold the pre-trained transformer instead", error)
        return None
