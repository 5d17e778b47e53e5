"""Reading within a time, so that what never comes is an error that names it.

This module does not import torch.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def within(seconds: float | None, what: str) -> Iterator[None]:
    """Interrupt a block that takes longer; None lets it take any time.

    A timer interrupts it, which only a process's main thread can have, and not on Windows: elsewhere any time is
    allowed. A call of the system that cannot be interrupted (a dead network drive) is not.

    Args:
        seconds: for the block.
        what: it does, for the message.

    Raises:
        TimeoutError: it took longer.
    """
    if seconds is None or not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def too_long(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"{what} took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
