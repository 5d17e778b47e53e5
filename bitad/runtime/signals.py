"""Stop requests: SIGTERM or SIGINT ends a training after its current step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(KeyboardInterrupt):
    """A training has stopped on request, with a checkpoint; ``where`` says how far it is and how to resume."""

    def __init__(self, number: int, where: str) -> None:
        super().__init__(where)
        self.status = 128 + number  # as in shells


class Stop:
    """The stop request to this process, ``asked``: the first signal is noted, the second one interrupts."""

    def __init__(self) -> None:
        self.asked = 0
        self._where: str | None = None

    @contextmanager
    def interruptible(self, where: str) -> Iterator[None]:
        """Within this context the first signal raises Stopped with ``where``, as no work is lost."""
        if self.asked:
            raise Stopped(self.asked, where)
        self._where = where
        try:
            yield
        finally:
            self._where = None

    def note(self, number: int, frame: FrameType | None) -> None:
        if self._where is not None:
            raise Stopped(number, self._where)
        if self.asked:
            raise KeyboardInterrupt
        self.asked = number


@contextmanager
def catch_signals() -> Iterator[Stop]:
    """Within this context SIGTERM and SIGINT are stop requests, if this is the main thread."""
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
    """Initialise a data loader's worker: its parent ends it, and handles the signals."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
