"""Jobs in other processes, time limits, and stop requests by signals.

Unlike with ``concurrent.futures``, a dead process is replaced, and no process outlives its parent.
"""

from __future__ import annotations

import _thread
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Generic, TypeVar, cast

from bitad.runtime.log import command_logging, log

Result = TypeVar("Result")

MOST_WORKERS = 4096
# To remove temporary files; then a process is killed.
_SECONDS_TO_END = 10.0


@contextmanager
def time_limit(seconds: float | None, what: str) -> Iterator[None]:
    """Raise TimeoutError if the block, whose work is ``what``, takes longer. None: no limit.

    Only the main thread has a limit, and not on Windows. Reading from a dead network drive is not interrupted.
    """
    if (
        seconds is None
        or not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return

    def on_alarm(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"{what} took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, on_alarm)
    start = time.monotonic()
    # It repeats: Python ignores what a handler raises within a destructor.
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:  # a timer of the program that uses the library continues
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - start), 1e-6), interval)


def worker_count(workers: int | str) -> int:
    text = str(workers)
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) <= MOST_WORKERS):
        raise ValueError(f"{text[:40]!r} is not a number of workers; give 0 (this process) to {MOST_WORKERS}")
    return int(text)


def in_processes(
    work: Callable[..., Result], jobs: Sequence[tuple[Any, ...]], *, workers: int
) -> Generator[tuple[int, Result | Exception]]:
    """Call ``work(*job)`` for every job in new processes, and yield results as they arrive.

    If a process dies (of lack of memory), its job fails with ``ChildProcessError`` and the process is replaced. If the
    loop over the results ends early, the processes remove their temporary files and end.

    Args:
        work: a function that other processes can import.
        workers: number of processes; 0 runs the jobs in this process, in order.

    Yields:
        a job's index, and its result or exception.
    """
    worker_count(workers)
    return (
        _in_workers(work, jobs, workers) if workers else ((i, _attempt(work, job)) for i, job in enumerate(jobs))
    )


def _attempt(work: Callable[..., Result], job: tuple[Any, ...]) -> Result | Exception:
    try:
        return work(*job)
    except Exception as error:
        return error


def _in_workers(
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
                worker.start(number, jobs[number])
            if not busy:
                return
            for connection in wait(list(busy)):
                worker = busy.pop(cast("Connection", connection))
                number, result = worker.number, worker.result()
                if not worker.is_alive:
                    worker.join()
                    worker = _Worker(work)
                idle.append(worker)
                yield number, result
    finally:
        for worker in (*idle, *busy.values()):
            worker.terminate()
        for worker in (*idle, *busy.values()):
            worker.join()


class _Worker(Generic[Result]):
    """A process for jobs; ``connection`` is readable when it has a result or ends."""

    def __init__(self, work: Callable[..., Result]) -> None:
        # A new interpreter: a forked copy of a process with threads may hang.
        context = multiprocessing.get_context("spawn")
        self.connection, childs = context.Pipe()
        self.number, self.is_alive = -1, True
        self._process = context.Process(target=_serve, args=(childs, work, bool(log.handlers)), daemon=True)
        self._process.start()
        childs.close()  # so that the connection ends with the process

    def start(self, number: int, job: tuple[Any, ...]) -> None:
        self.number = number
        with suppress(OSError):  # the process has ended; result() reports it
            self.connection.send(job)

    def result(self) -> Result | Exception:
        """The job's result, once the connection is readable."""
        try:
            return cast("Result | Exception", self.connection.recv())
        except (EOFError, OSError):
            self.is_alive = False
            self._process.join(_SECONDS_TO_END)
            code = self._process.exitcode
            how = (
                f"was ended by {signal.Signals(-code).name}" if code and code < 0 else f"ended with status {code}"
            )
            return ChildProcessError(
                f"its worker process {how}; check that there is enough memory, and run this again"
            )

    def terminate(self) -> None:
        if self._process.is_alive():
            self._process.terminate()

    def join(self) -> None:
        """Wait until the process has ended; kill it if that takes too long."""
        self.connection.close()
        self._process.join(_SECONDS_TO_END)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


def _serve(connection: Connection, work: Callable[..., Any], logs: bool) -> None:
    # Ctrl-C reaches all processes; the parent then ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    with (
        command_logging()
        if logs
        else nullcontext(),  # as in the parent, whose handlers a new process does not have
        suppress(EOFError, OSError, KeyboardInterrupt),  # the parent has finished or died; asked to end
    ):
        while True:
            result = _attempt(work, connection.recv())
            try:
                connection.send(result)
            except Exception as error:  # it cannot be pickled
                reason = result if isinstance(result, Exception) else f"its result cannot be sent: {error}"
                connection.send(RuntimeError(str(reason)))


def start_process(
    work: Callable[..., object], *arguments: object, output: Path, preload: Sequence[str] = ()
) -> BaseProcess:
    """Start ``work(*arguments)`` on one thread in another process, which ends with this one.

    On Linux, the process asks for large memory pages, unless GLIBC_TUNABLES is set.

    Args:
        work: a function that other processes can import; SystemExit, or another exception, is the process's status.
        output: the file of its standard output and standard error.
        preload: on Linux, where it is forked, modules that are imported once for all processes.
    """
    given = output, multiprocessing.get_start_method(allow_none=True), work, arguments
    process: BaseProcess
    if sys.platform == "linux":
        multiprocessing.set_forkserver_preload(list(preload))
        process = multiprocessing.get_context("forkserver").Process(target=_write_to, args=given)
    else:
        process = multiprocessing.get_context("spawn").Process(target=_write_to, args=given)
    own = dict(os.environ)
    # Libraries read the number of threads when they are imported, and glibc reads its tunables when a process starts.
    # With large pages, a training on a CPU took 0.92 to 1.01 of the time, with the same results.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    try:
        process.start()
    finally:
        for name in ("OMP_NUM_THREADS", "GLIBC_TUNABLES"):
            if name in own:
                os.environ[name] = own[name]
            else:
                del os.environ[name]
    return process


def _write_to(
    output: Path, start_method: str | None, work: Callable[..., object], arguments: tuple[object, ...]
) -> None:
    multiprocessing.set_start_method(start_method, force=True)  # as in the parent
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (
        os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False) for number in (1, 2)
    )
    end_with_parent()
    work(*arguments)


def end_with_parent() -> None:
    """End this process, which multiprocessing started, when its parent ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    end_when(lambda: wait([parent.sentinel]))


def end_when(wait_for_parent: Callable[[], object]) -> None:
    """End this process when its parent ends: when ``wait_for_parent``, called in a thread, returns.

    The process is interrupted so that it removes its temporary files, and ended if that takes too long.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def watch() -> None:
        wait_for_parent()
        if hasattr(signal, "pthread_kill"):  # also interrupts system calls of the main thread
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        else:
            _thread.interrupt_main(signal.SIGTERM)
        threading.Event().wait(_SECONDS_TO_END)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(KeyboardInterrupt):
    """A training has stopped on request; ``where`` says how far it is and how to resume."""

    def __init__(self, number: int, where: str) -> None:
        super().__init__(where)
        self.status = 128 + number  # as in shells


class Stop:
    """The stop request to this process: the first signal is noted, the second one interrupts."""

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
    """Within this context, SIGTERM and SIGINT are stop requests in the main thread."""
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


def initialise_reader(worker: int) -> None:
    """Initialise a data loader's worker: its parent handles the signals, and reports a connection that breaks."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = _print_unless_disconnected


def _print_unless_disconnected(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """An exception hook for the thread that sends tensors, which the parent may leave at any moment."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, traceback)
