"""Processes that train together watch over one another: where one is gone, the others end too, and say so.

A killed process closes its connections, which some collectives notice and others wait on for ever; one that hangs
closes none. So each writes down every few seconds that it lives, and looks who has not.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import torch.distributed as dist

from bitad.log import say_last

BEAT_S = 5.0
GONE_S = 40.0
REMEDY = "its own output says why; go on with --resume"

_ENDED, _FAILED = "ended", "failed"


class Watch:
    """A thread by which this process says that it lives, and ends where another one does not.

    Args:
        store: that all processes reach.
        rank, world: who we are among them.
        beat_s: seconds from one sign of life to the next.
        gone_s: seconds without one after which a process is taken for dead.
        end: what is done about it, with a line that says which one; ends this process, whatever it waits for.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        world: int,
        *,
        beat_s: float = BEAT_S,
        gone_s: float = GONE_S,
        end: Callable[[str], None] | None = None,
    ) -> None:
        # A connection of its own: the other threads' may be waited on for ever.
        self.store: dist.Store = store.clone()  # type: ignore[attr-defined]  # PyTorch's stubs leave it out
        self.rank, self.world = rank, world
        self.beat_s, self.gone_s, self.end = beat_s, gone_s, end or _end
        self._over = threading.Event()
        self.store.set(_key(rank), "0")  # before any process begins to look
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def start(self) -> None:
        """Begins; every process has made its own watch by now."""
        self._thread.start()

    def stop(self, *, failed: bool) -> None:
        """Ends the watch, and tells the others whether to go on without this process."""
        self._over.set()
        # Where who kept the store is gone, the others see that for themselves.
        with suppress(dist.DistError, RuntimeError):
            self.store.set(_key(self.rank), _FAILED if failed else _ENDED)
        if self._thread.is_alive():
            self._thread.join(self.beat_s)

    def _watch(self) -> None:
        last, seen = [""] * self.world, [time.monotonic()] * self.world
        beats = 0
        while not self._over.wait(self.beat_s):
            beats += 1
            try:
                self.store.set(_key(self.rank), str(beats))
                values = self.store.multi_get([_key(rank) for rank in range(self.world)])
            except (dist.DistError, RuntimeError):
                self._is_gone("the process that the others meet at (rank 0, or torchrun) is gone")
                return
            now = time.monotonic()
            for rank, value in enumerate(bytes(one).decode() for one in values):
                if value != last[rank]:
                    last[rank], seen[rank] = value, now
                if value == _FAILED:
                    self._is_gone(f"process {rank} of this run has failed")
                    return
                if value != _ENDED and now - seen[rank] > self.gone_s:
                    self._is_gone(f"nothing has been heard of process {rank} of this run for {self.gone_s:.0f} s")
                    return

    def _is_gone(self, who: str) -> None:
        # This process may be about to end by itself, well or with a better message.
        if not self._over.wait(self.beat_s / 2):
            self.end(f"{who}; {REMEDY}")


def _key(rank: int) -> str:
    return f"alive/{rank}"


def _end(line: str) -> None:
    say_last(f"bitad: error: {line}")
    os._exit(1)
