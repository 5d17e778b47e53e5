"""What tests of several folders share."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Generator, Iterator

import pytest

# Two workers of pytest on two cores: more threads than that only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Imported modules and collected tests stay to the end: the garbage collector need not search them for garbage."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def log_as_imported() -> None:
    """The log as importing BiTAD leaves it, whatever tests before this one have done to it: `caplog` hears it."""
    log = logging.getLogger("bitad")
    log.handlers, log.propagate = [], True
    log.setLevel(logging.NOTSET)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch on one thread, whatever runs in this process before and after."""
    import torch  # many tests do without it

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that fails with one line of error; returns its message."""
    from bitad.cli import main

    def refused(*command: object) -> str:
        assert main([str(part) for part in command]) == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if " error: " in line]
        return line.partition(" error: ")[2]

    return refused
