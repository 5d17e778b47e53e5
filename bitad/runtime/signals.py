"""Being asked to stop: a signal ends a training at its next step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(KeyboardInterrupt):
    """A training has ended as it was asked to, with a checkpoint.

    Args:
        number: the signal.
        where: where it stands, and how to go on.
    """

    def __init__(self, number: int, where: str) -> None:
        super().__init__(where)
        self.status = 128 + number  # as shells have it


class Stop:
    """Whether this process has been asked to stop: a first signal is noted, a second one interrupts.

    Attributes:
        asked: the signal; 0 while there was none.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._at_once: str | None = None

    @contextmanager
    def at_once(self, where: str) -> Iterator[None]:
        """Within, where nothing is lost by it, the first signal interrupts too.

        Raises:
            Stopped: with these words.
        """
        if self.asked:
            raise Stopped(self.asked, where)
        self._at_once = where
        try:
            yield
        finally:
            self._at_once = None

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        if self._at_once is not None:
            raise Stopped(number, self._at_once)
        if self.asked:
            raise KeyboardInterrupt
        self.asked = number


@contextmanager
def listening() -> Iterator[Stop]:
    """Within, this process listens to SIGTERM and SIGINT, if it can: only a main thread does."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.note) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals(worker: int) -> None:
    """For processes that read windows: their parent, asked to stop, ends them once it is done with them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
