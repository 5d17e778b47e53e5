"""Processes of their own, for tests of what several do together and of what is left when one is killed.

They are forked from a server that has imported PyTorch and BiTAD once: a new interpreter spends three CPU seconds on
that, if it trains.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_START_METHOD = multiprocessing.get_start_method()
_CONTEXT.set_forkserver_preload(
    # PyTorch's first optimiser imports its compiler.
    ["torch._dynamo", "bitad.cli", "bitad.reports.plan", "bitad.training.trainer", "bitad.weights.inspect"]
)


class Running:
    """A process that runs a program of Python, as :class:`subprocess.Popen` has it.

    Args:
        arguments: what follows ``python -m bitad``, or with ``program`` the program's arguments.
        program: its text; None: the command line of BiTAD.
        env: changes of the environment.
        new_session: it begins a session, and so a group of processes.
        piped: its standard input is a pipe that ends with this process; else it is empty.
    """

    def __init__(
        self,
        *arguments: object,
        program: str | None = None,
        env: Mapping[str, object] | None = None,
        new_session: bool = False,
        piped: bool = False,
    ) -> None:
        folder = Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._out, self._err = folder / "out", folder / "err"
        environment = os.environ | {key: str(value) for key, value in (env or {}).items()}
        stdin, self._stdin = _CONTEXT.Pipe(duplex=False) if piped else (None, None)
        given = ([str(one) for one in arguments], program, environment, new_session, stdin, self._out, self._err)
        self._process = _CONTEXT.Process(target=_run, args=given)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("bitad", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    @property
    def output(self) -> tuple[str, str]:
        """What it has written so far on standard output and standard error."""
        out, err = (path.read_text() if path.exists() else "" for path in (self._out, self._err))
        return out, err

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return self.output


def _run(
    arguments: list[str],
    program: str | None,
    env: dict[str, str],
    new_session: bool,
    stdin: Connection | None,
    out: Path,
    err: Path,
) -> None:
    """In the new process: the program, whose standard streams are files."""
    multiprocessing.set_start_method(_START_METHOD, force=True)  # its own processes start as in a new interpreter
    if new_session:
        os.setsid()
    os.environ.clear()
    os.environ.update(env)
    for descriptor, path in enumerate((Path(os.devnull), out, err)):
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    if stdin is not None:
        os.dup2(stdin.fileno(), 0)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False, errors="backslashreplace")
    sys.argv = ["bitad", *arguments]
    if program is not None:
        exec(compile(program, "program of a test", "exec"), {"__name__": "__main__"})
        return
    from bitad.cli import main

    sys.exit(main(arguments))


def free_port() -> int:
    """A port that nobody listens at, and that the system gives to nobody who asks for any."""
    while True:
        port = random.SystemRandom().randrange(15_000, 30_000)  # Linux gives those from 32,768 on
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


@contextmanager
def ranks(world: int, *arguments: object, program: str | None = None) -> Iterator[list[Running]]:
    """Processes that know each other as torchrun's do, by rank, on one thread each; ended in the end."""
    place = {"WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "OMP_NUM_THREADS": 1}
    processes = [
        Running(*arguments, program=program, env={**place, "RANK": rank, "LOCAL_RANK": rank})
        for rank in range(world)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def of_two_processes(*command: object) -> list[tuple[int, str, str]]:
    """Runs a command of `bitad` in two processes.

    Returns:
        each one's status, and what it said on standard output and standard error.
    """
    with ranks(2, *command) as both:
        said = [process.communicate(timeout=200) for process in both]
        return [(process.wait(), *texts) for process, texts in zip(both, said, strict=True)]


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has locked a folder."""
    program = "import sys; from pathlib import Path; from bitad.runtime.locking import locked\n"
    program += "with locked(Path(sys.argv[1]), remedy='wait'): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()
