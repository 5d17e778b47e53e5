"""Work in other processes, and time limits on reading.

:func:`in_processes` runs jobs in parallel. ``concurrent.futures`` fails all jobs when one process dies, and its
processes continue when their parent is killed. Here a dead process is replaced, and no process outlives its parent.
"""

from __future__ import annotations

import _thread
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any, Generic, TypeVar, cast


@contextmanager
def time_limit(seconds: float | None, what: str) -> Iterator[None]:
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
    began = time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:  # the timer of the program that uses the library continues
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 1e-6), interval)


Result = TypeVar("Result")

MOST_WORKERS = 4096
# A process that is asked to end removes its temporary files first; after this long it is killed.
_SECONDS_TO_END = 10.0


def in_processes(
    work: Callable[..., Result], jobs: Sequence[tuple[Any, ...]], *, workers: int
) -> Generator[tuple[int, Result | Exception]]:
    """Call ``work(*job)`` for every job, in new processes or in this one; yield the results as they arrive.

    The job of a process that dies (killed because memory ran out, say) fails with a ``ChildProcessError``, and the
    process is replaced. If the loop over the results ends early, or this process dies, the others remove their
    temporary files and end too.

    Args:
        work: a function of a module, so that another process finds it.
        jobs: the arguments of each call.
        workers: the number of processes; 0: this one does the jobs, one after another.

    Yields:
        the number of a job and its result, or the exception that it ended in.

    Raises:
        ValueError: as :func:`worker_count`, at once.
    """
    worker_count(workers)
    return _in_others(work, jobs, workers) if workers else _in_this(work, jobs)


def worker_count(workers: int | str) -> int:
    """A number of processes as it is given, or typed.

    Raises:
        ValueError: it is none from 0 to :data:`MOST_WORKERS`.
    """
    text = str(workers)
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) <= MOST_WORKERS):
        raise ValueError(
            f"{text[:40]!r} is no number of workers; give one from 0 (this process does it) to {MOST_WORKERS}"
        )
    return int(text)


def _in_this(work: Callable[..., Result], jobs: Sequence[tuple[Any, ...]]) -> Generator[tuple[int, Result | Exception]]:
    for number, job in enumerate(jobs):
        try:
            result: Result | Exception = work(*job)
        except Exception as error:
            result = error
        yield number, result


def _in_others(
    work: Callable[..., Result], jobs: Sequence[tuple[Any, ...]], workers: int
) -> Generator[tuple[int, Result | Exception]]:
    waiting = iter(range(len(jobs)))
    idle: list[_Worker[Result]] = []
    busy: dict[Connection, _Worker[Result]] = {}
    try:
        for _ in range(min(workers, len(jobs))):
            idle.append(_Worker(work))
        while True:
            for worker, number in zip(idle.copy(), waiting, strict=False):
                idle.remove(worker)
                busy[worker.connection] = worker
                worker.begin(number, jobs[number])
            if not busy:
                return
            for connection in wait(list(busy)):
                worker = busy.pop(cast("Connection", connection))
                number, result = worker.number, worker.result()
                if not worker.lives:
                    worker.end()
                    worker = _Worker(work)
                idle.append(worker)
                yield number, result
    finally:
        for worker in (*idle, *busy.values()):
            worker.ask_to_end()
        for worker in (*idle, *busy.values()):
            worker.end()


class _Worker(Generic[Result]):
    """A process that does one job after another.

    Attributes:
        connection: readable when a result is there, or when the process is gone.
        number: of the job that it has.
        lives: whether it can be given another job.
    """

    def __init__(self, work: Callable[..., Result]) -> None:
        # A new interpreter: forked copies of a process with threads may hang.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.number, self.lives = -1, True
        self._process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        self._process.start()
        theirs.close()  # so that the connection ends when the process does

    def begin(self, number: int, job: tuple[Any, ...]) -> None:
        self.number = number
        with suppress(OSError):  # the process is gone: result() says so
            self.connection.send(job)

    def result(self) -> Result | Exception:
        """The job's result, once the connection is readable."""
        try:
            return cast("Result | Exception", self.connection.recv())
        except (EOFError, OSError):
            self.lives = False
            self._process.join(_SECONDS_TO_END)
            code = self._process.exitcode
            how = f"was ended by {signal.Signals(-code).name}" if code and code < 0 else f"ended with status {code}"
            return ChildProcessError(
                f"the process that worked on it {how}; see that there is enough memory, and run the command again"
            )

    def ask_to_end(self) -> None:
        if self._process.is_alive():
            self._process.terminate()

    def end(self) -> None:
        """Wait for the process to end, and kill it if that takes long."""
        self.connection.close()
        self._process.join(_SECONDS_TO_END)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


def _serve(connection: Connection, work: Callable[..., Any]) -> None:
    """What a process does: one job after another, until it is asked to end."""
    # Ctrl-C reaches all processes; the parent then asks the others to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    end_when(lambda: wait([parent.sentinel]))
    with suppress(EOFError, OSError, KeyboardInterrupt):  # the parent is done or gone; asked to end
        while True:
            job = connection.recv()
            try:
                result: Any = work(*job)
            except Exception as error:
                result = error
            try:
                connection.send(result)
            except Exception as error:  # it cannot be pickled
                reason = result if isinstance(result, Exception) else f"its result cannot be sent: {error}"
                connection.send(RuntimeError(str(reason)))


def end_with_input() -> None:
    """Let this process end when its standard input does: a pipe from its parent, which never writes to it."""
    end_when(lambda: os.read(0, 1))


def end_when(gone: Callable[[], object]) -> None:
    """Let this process end when its parent does, however the parent ends.

    It is interrupted, so that it removes its temporary files, and ends at once if that takes long.

    Args:
        gone: returns once the parent has ended; called in a thread.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def watch() -> None:
        gone()
        if hasattr(signal, "pthread_kill"):  # interrupts what the main thread waits for, too
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        else:
            _thread.interrupt_main(signal.SIGTERM)
        threading.Event().wait(_SECONDS_TO_END)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
