"""Processes that know each other as torchrun's do, for tests of what they do together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def ranks(world: int, arguments: Sequence[str]) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes of Python with these arguments, by rank, on one thread each; ended in the end, whatever they do."""
    place = {"WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "OMP_NUM_THREADS": 1}
    processes = []
    for rank in range(world):
        env = os.environ | {key: str(value) for key, value in {**place, "RANK": rank, "LOCAL_RANK": rank}.items()}
        command = [sys.executable, *arguments]
        processes.append(subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def of_two_processes(*command: object) -> list[tuple[int, str, str]]:
    """Runs a command of `bitad` in two processes.

    Returns:
        each one's status, and what it said on standard output and standard error.
    """
    with ranks(2, ["-m", "bitad", *map(str, command)]) as both:
        said = [process.communicate(timeout=200) for process in both]
        return [(process.returncode, *texts) for process, texts in zip(both, said, strict=True)]


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
