"""The processes that read windows for a loader, and errors for those that hang or die."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch.utils.data import DataLoader, get_worker_info

from bitad.runtime.workers import ignore_signals, time_limit

# A process that still reads this long after its time limit cannot interrupt itself.
_GRACE_S = 30.0
_CHECK_INTERVAL_S = 1.0

# How PyTorch reports that a process has ended, and the reason.
_EXITED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")
_SIGNAL = re.compile(r"is killed by signal: (.*)", re.DOTALL)
_IDLE = -1


class Readers:
    """The processes that read for a loader, and the memory that they share with their parent.

    Args:
        names: of the videos.
        processes: how many read; 0: the parent itself.
        timeout_s: for reading a window; None: no limit.
    """

    def __init__(self, names: Sequence[str], processes: int, timeout_s: float | None) -> None:
        self.names, self.processes, self.timeout_s = tuple(names), processes, timeout_s
        self._indices = {name: index for index, name in enumerate(self.names)}
        # Per process, the parent last: its id, the index of its video, and the time when it began to read.
        self._reads = torch.full((processes + 1, 3), float(_IDLE), dtype=torch.float64).share_memory_()
        self._repeated = torch.zeros(processes + 1, dtype=torch.int64).share_memory_()
        self._reported = 0

    def loader(self, items: Any, **options: Any) -> DataLoader[Any]:
        """PyTorch's loader, with these processes; ``items`` read through :meth:`reading`."""
        return DataLoader(
            items,
            num_workers=self.processes,
            worker_init_fn=ignore_signals,
            # Each iteration draws a seed; neither testing nor resuming may change the training's random numbers.
            generator=torch.Generator(),
            **options,
        )

    @contextmanager
    def reading(self, video: str) -> Iterator[None]:
        """Records that this process reads a window of a video; raises TimeoutError if it takes too long."""
        row = self._reads[self._number()]
        row[2] = time.monotonic()
        row[0] = os.getpid()
        row[1] = self._indices[video]  # last: it makes the row valid
        try:
            with time_limit(self.timeout_s, f"reading video {video}"):
                yield
        finally:
            row[1] = _IDLE

    def count_repeated(self, frames: int) -> None:
        """Adds damaged frames that this process has replaced by other ones."""
        self._repeated[self._number()] += frames

    def pop_repeated(self) -> int:
        """The damaged frames that all processes have replaced since the last call."""
        before, self._reported = self._reported, int(self._repeated.sum())
        return self._reported - before

    def _number(self) -> int:
        """The number of this process; the parent's is the last one."""
        worker = get_worker_info()
        return self.processes if worker is None else min(worker.id, self.processes)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Kills processes that hang, and all processes if the block fails.

        Raises:
            ChildProcessError: a process died or hung; names its video.
        """
        hung: dict[int, str] = {}
        finished = threading.Event()
        watch = threading.Thread(target=self._kill_hung, args=(finished, hung), daemon=True)
        watch.start()
        try:
            yield
        except BaseException as error:
            message = self._exit_message(error, hung) if isinstance(error, RuntimeError) else None
            self._kill_all()
            if message is not None:
                raise ChildProcessError(message) from None
            raise
        finally:
            finished.set()
            watch.join()

    def _kill_hung(self, finished: threading.Event, hung: dict[int, str]) -> None:
        """Kills processes that hang, and records their videos by process id."""
        while self.processes and self.timeout_s is not None and not finished.wait(_CHECK_INTERVAL_S):
            for process, index, began in self._reads[:-1].tolist():
                is_late = index != _IDLE and time.monotonic() - began > self.timeout_s + _GRACE_S
                if is_late and int(process) not in hung:
                    hung[int(process)] = self.names[int(index)]
                    with suppress(ProcessLookupError):
                        os.kill(int(process), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)

    def _exit_message(self, error: RuntimeError, hung: dict[int, str]) -> str | None:
        """What the ended processes were reading, if PyTorch's error reports ended processes."""
        exited = _EXITED.match(str(error))
        if exited is None:
            return None
        processes = [int(number) for number in exited[1].split(",")]
        for process in processes:
            if process in hung:
                return (
                    f"reading video {hung[process]} took longer than {self.timeout_s:g} s and could not be "
                    "interrupted, so its process was killed; check this file and its disk"
                )
        names = [
            self.names[int(index)] for process, index, _ in self._reads.tolist() if process in processes and index >= 0
        ]
        doing = f"was reading video {', '.join(names)}" if names else f"reads videos (process {exited[1]})"
        # The signal is in the error itself or in its cause.
        by_signal = _SIGNAL.search(f"{error} {error.__cause__ or ''}")
        reason = "" if by_signal is None else f": {' '.join(by_signal[1].split())}"
        if reason.startswith(": Killed"):
            reason += " The system kills processes when memory runs out; lower workers or batch."
        return f"a process that {doing} ended unexpectedly{reason}"

    def _kill_all(self) -> None:
        """Kills all processes; one that hangs would block the parent."""
        own = {int(process) for process, _, _ in self._reads.tolist()}
        for child in multiprocessing.active_children():
            if child.pid in own:
                with suppress(RuntimeError):  # PyTorch raises one in the parent when a reader is killed
                    child.kill()
                    child.join(_GRACE_S)
