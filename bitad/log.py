"""The log: lines on standard error, and in `log.txt` of a run directory.

This module does not import torch.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import TextIO

from bitad.printing import LineFormatter, printable

log = logging.getLogger("bitad")

LOG_FILE = "log.txt"  # of a run directory

_said: set[str] = set()


class _LogFile(logging.FileHandler):
    """A file of log lines; that one cannot be written (the disk is full) ends the work like any other failed write."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exception()
        if isinstance(error, OSError):
            error.filename = self.baseFilename
        raise


def set_up_logging(directory: Path | None, *, show: bool = True) -> None:
    """Sends the log to standard error, and to `log.txt` of a run directory if one is given. ``show=False`` ends both.

    Commands do this themselves (:func:`logging_of_a_command`).
    """
    for handler in log.handlers:
        handler.close()
    log.handlers = [_prepared(logging.StreamHandler())] if show else []
    log.setLevel(logging.INFO)
    log.propagate = False
    if directory is not None and show:
        add_log_file(directory)


@contextmanager
def logging_of_a_command() -> Iterator[None]:
    """Within, the log goes to standard error, and Python's warnings go to the log.

    What is said is also kept, for the log file that :func:`add_log_file` may add later.
    """
    _said.clear()
    before = log.handlers, log.level, warnings.showwarning
    early = MemoryHandler(capacity=sys.maxsize, flushLevel=sys.maxsize, flushOnClose=False)
    log.handlers = [_prepared(logging.StreamHandler()), _prepared(early)]
    log.setLevel(logging.INFO)
    warnings.showwarning = _log_warning
    try:
        yield
    finally:
        for handler in log.handlers:
            handler.close()
        log.handlers, log.level, warnings.showwarning = before


def add_log_file(directory: Path) -> None:
    """From now on the log is also written to `log.txt` of a directory; what this command has said before goes first.

    All processes of a run may do this: each line is written at once, at the end of the file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = _prepared(_LogFile(directory / LOG_FILE, encoding="utf-8", delay=True))
    for handler in log.handlers:
        if isinstance(handler, MemoryHandler):
            handler.setTarget(file)
            handler.flush()
            handler.close()
    log.handlers = [*(handler for handler in log.handlers if not isinstance(handler, MemoryHandler)), file]


def say_once(line: str) -> None:
    """Log a line, unless this command, or this process where there is no command, has logged it before."""
    if line not in _said:
        _said.add(line)
        log.info("%s", line)


def say_last(line: str) -> None:
    """Prints the line with which a process ends, as it is, on standard error, and logs it in the file if there is one.

    That the file cannot be written does not hide the line.
    """
    print(printable(line), file=sys.stderr, flush=True)
    for handler in log.handlers:
        if isinstance(handler, _LogFile):
            with suppress(OSError):
                handler.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, line, (), None))


def _prepared(handler: logging.Handler) -> logging.Handler:
    """A handler of the log's format. Of the processes of a run, the first says all, others what is wrong with them."""
    rank = os.environ.get("RANK", "0")
    others = "" if rank == "0" else f"process {rank}: "
    handler.setFormatter(LineFormatter(f"%(asctime)s {others}%(message)s", "%H:%M:%S"))
    handler.setLevel(logging.WARNING if others else logging.INFO)
    return handler


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Logs one of Python's warnings, in one line."""
    log.warning("%s: %s (%s, line %d)", category.__name__, " ".join(str(message).split()), filename, lineno)
