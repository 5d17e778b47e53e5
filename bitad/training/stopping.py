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
    """Whether this process has been asked to stop.

    Attributes:
        asked: the signal; None while there was none.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._patient = False

    @contextmanager
    def at_a_step(self) -> Iterator[None]:
        """Within, a first signal is only noted: who steps looks at ``asked``. A second one interrupts."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        impatient = self.asked is not None or not self._patient
        self.asked = signal.Signals(number)
        if impatient:
            raise KeyboardInterrupt


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
