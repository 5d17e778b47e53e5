"""The processes that read windows for a loader: what each one reads, and what becomes of one that hangs or dies."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch.utils.data import get_worker_info

from bitad.runtime.workers import time_limit

# A read that its own process can interrupt is interrupted in time; so much later it will not be.
_GRACE_S = 30.0
_SECONDS_BETWEEN_LOOKS = 1.0

# As PyTorch tells of a process that is gone, and why.
_GONE = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")
_SIGNAL = re.compile(r"is killed by signal: (.*)", re.DOTALL)
_NOTHING = -1


class Readers:
    """What each process of a loader is reading, as all of them and their parent know it.

    Args:
        names: of the videos.
        processes: how many read; 0: the parent itself.
        seconds: that reading a window may take; None: any time.
    """

    def __init__(self, names: Sequence[str], processes: int, seconds: float | None) -> None:
        self.names, self.processes, self.seconds = tuple(names), processes, seconds
        self._places = {name: place for place, name in enumerate(self.names)}
        # Of each process its number, the place of the video's name, and since when; in shared memory.
        self._rows = torch.full((processes, 3), float(_NOTHING), dtype=torch.float64).share_memory_()

    @contextmanager
    def reading(self, video: str) -> Iterator[None]:
        """Within, this process reads a window of a video.

        Raises:
            TimeoutError: for too long.
        """
        worker = get_worker_info()
        row = self._rows[worker.id] if worker is not None and worker.id < self.processes else None
        if row is not None:
            row[2] = time.monotonic()
            row[0] = os.getpid()
            row[1] = self._places[video]  # last: with it the row counts
        try:
            with time_limit(self.seconds, f"reading video {video}"):
                yield
        finally:
            if row is not None:
                row[1] = _NOTHING

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within, a process that dies while it reads (for want of memory, say) is an error that names the video.

        One that hangs where nothing interrupts it is ended, which is the same. However the block fails, no process goes
        on reading.

        Raises:
            ChildProcessError: a process died or hung.
        """
        hung: dict[int, str] = {}
        over = threading.Event()
        watch = threading.Thread(target=self._watch, args=(over, hung), daemon=True)
        watch.start()
        try:
            yield
        except BaseException as error:
            told = self._told(error, hung) if isinstance(error, RuntimeError) else None
            self._end_all()
            if told is not None:
                raise ChildProcessError(told) from None
            raise
        finally:
            over.set()
            watch.join()

    def _watch(self, over: threading.Event, hung: dict[int, str]) -> None:
        """Ends processes that hang, and notes at what, until it is over."""
        while self.processes and self.seconds is not None and not over.wait(_SECONDS_BETWEEN_LOOKS):
            for process, place, since in self._rows.tolist():
                if (
                    place != _NOTHING
                    and time.monotonic() - since > self.seconds + _GRACE_S
                    and int(process) not in hung
                ):
                    hung[int(process)] = self.names[int(place)]
                    with suppress(ProcessLookupError):
                        os.kill(int(process), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)

    def _told(self, error: RuntimeError, hung: dict[int, str]) -> str | None:
        """What PyTorch says of processes that are gone, if it is that, in words that say what they were reading."""
        died = _GONE.match(str(error))
        if died is None:
            return None
        gone = [int(number) for number in died[1].split(",")]
        for process in gone:
            if process in hung:
                return (
                    f"reading video {hung[process]} took longer than {self.seconds:g} s and could not be interrupted: "
                    "its process was ended; look at this file and where it lies"
                )
        names = [self.names[int(place)] for process, place, _ in self._rows.tolist() if process in gone and place >= 0]
        what = f"was reading video {', '.join(names)}" if names else f"reads videos (process {died[1]})"
        # One that waits for it finds it gone, another one is told of the signal.
        by_signal = _SIGNAL.search(f"{error} {error.__cause__ or ''}")
        how = "" if by_signal is None else f": {' '.join(by_signal[1].split())}"
        if how.startswith(": Killed"):
            how += " The system does so where memory runs out: lower workers or batch."
        return f"a process that {what} ended unexpectedly{how}"

    def _end_all(self) -> None:
        """Ends all processes; what they read is not wanted any more, and one that hangs would hold up the parent."""
        mine = {int(process) for process, _, _ in self._rows.tolist()}
        for child in multiprocessing.active_children():
            if child.pid in mine:
                with suppress(RuntimeError):  # PyTorch raises one wherever the parent is when a reader is killed
                    child.kill()
                    child.join(_GRACE_S)
