"""The log, on standard error and in ``log.txt`` of a run directory, and text made safe to print.

Text of files and names cannot steer a terminal, break a line or hide in a log.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any, TextIO

# Control characters (ESC begins a terminal's commands), what Unicode calls line ends, marks that reverse the order in
# which text is shown, and halves of characters, which stand for bytes of file names that are no text.
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff]")
_SHORT = {"\t": r"\t", "\n": r"\n", "\r": r"\r"}


def printable(text: object, *, keep: str = "") -> str:
    r"""Text in which every character that would steer a terminal is shown as an escape: ESC as ``\x1b``.

    Args:
        text: what is to be printed.
        keep: characters that stay, ``"\n"`` say.
    """
    return _STEERING.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), str(text))


class _Pipe(io.FileIO):
    """Standard output or error as bytes. When nobody reads it any more, what is written to it is dropped.

    The work goes on, as files may be to be written. (That a reader such as `head` has ended is no error.)
    """

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, self.fileno())
            finally:
                os.close(nowhere)
            return len(memoryview(data).cast("B"))


@contextmanager
def printing_to_anything() -> Iterator[None]:
    """Within, any text can be printed, wherever standard output and error lead to.

    Characters that their encoding does not have are escaped, and a pipe that is no longer read drops what it is given.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_to_anything, before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError):  # there is none; the disk is full, as has been said
                stream.flush()
        sys.stdout, sys.stderr = before


def _to_anything(stream: TextIO) -> TextIO:
    """A stream to the same file that takes any text; without a file of its own (tests have such) it stays."""
    if not isinstance(stream, io.TextIOWrapper):  # None, where it was closed before the program began
        return stream
    raw = getattr(stream.buffer, "raw", stream.buffer)  # the latter with python -u
    if type(raw) is not io.FileIO:
        stream.reconfigure(errors="backslashreplace")
        return stream
    stream.flush()
    pipe = _Pipe(raw.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        pipe if raw is stream.buffer else io.BufferedWriter(pipe),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def as_typed(argument: str) -> str:
    """An argument of the command line that names what a file holds: UTF-8 also where that is not the locale's encoding.

    There Python keeps bytes that it cannot decode as halves of characters; with them a file's name is found, no text.
    """
    try:
        return os.fsencode(argument).decode()
    except UnicodeError:
        return argument


def echo(*lines: object, file: TextIO | None = None) -> None:
    """Print lines; each is one line, whatever names it holds."""
    print("\n".join(map(printable, lines)), file=sys.stdout if file is None else file)


class LineFormatter(logging.Formatter):
    """Log messages are one line each, whatever names it holds."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return printable(super().formatException(ei), keep="\n")


def _escaped(character: str) -> str:
    code = ord(character)
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


log = logging.getLogger("bitad")
log.addHandler(logging.NullHandler())  # a library prints nothing until its user configures logging

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


@contextmanager
def log_file(directory: Path) -> Iterator[None]:
    """Within, the log is also written to `log.txt` of a directory, and what other handlers get does not change."""
    file = _prepared(_LogFile(directory / LOG_FILE, encoding="utf-8", delay=True))
    level, shown = log.level, log.getEffectiveLevel()

    def write(record: logging.LogRecord) -> bool:
        if record.levelno >= file.level:
            file.handle(record)
        return record.levelno >= shown

    log.addFilter(write)
    log.setLevel(min(shown, logging.INFO))
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeFilter(write)
        file.close()


def log_once(line: str, level: int = logging.INFO) -> None:
    """Log a line, unless this command, or this process where there is no command, has logged it before."""
    if line not in _said:
        _said.add(line)
        log.log(level, "%s", line)


def log_last(line: str) -> None:
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
