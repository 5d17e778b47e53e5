"""The log, on standard error and in ``log.txt`` of a run directory, and text that is safe to print.

Text from files and names cannot control a terminal, break a line or hide in a log.
"""

from __future__ import annotations

import difflib
import io
import logging
import os
import re
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any, TextIO

# Without a handler, in a program that configures no logging, Python prints warnings.
log = logging.getLogger("bitad")

LOG_FILE = "log.txt"  # in a run directory

# Control characters, Unicode line ends, marks that reverse text, and surrogates.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff]")


def printable(text: object, *, keep: str = "") -> str:
    r"""Escape characters that can control a terminal, except ``keep``: ESC becomes ``\x1b``."""

    def escaped(match: re.Match[str]) -> str:
        return match[0] if match[0] in keep else match[0].encode("unicode_escape").decode()

    return _UNPRINTABLE.sub(escaped, str(text))


def quoted(name: str) -> str:
    """A name in quotes, in ASCII if its Unicode form is unusual (not NFC)."""
    return repr(name) if unicodedata.is_normalized("NFC", name) else ascii(name)


def shortlist(names: Iterable[Any], most: int = 3, *, quote: Callable[[Any], str] = str) -> str:
    """The first few names, and how many more there are: ``a, b, c and 4 more``."""
    texts = [quote(name) for name in names]
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """``; did you mean NAME?`` with the most similar of the known names, in any case of letters; or nothing."""
    folded = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(given.casefold(), folded, n=1, cutoff=0.6)
    return f"; did you mean {folded[near[0]]}?" if near else ""


def echo(*lines: object, file: TextIO | None = None) -> None:
    """Print each argument as one line, whatever names it contains."""
    print("\n".join(map(printable, lines)), file=sys.stdout if file is None else file)


def decode_argument(argument: str) -> str:
    """Decode a command-line argument as UTF-8, even where the locale has another encoding."""
    try:
        return os.fsencode(argument).decode()
    except UnicodeError:
        return argument


class _Pipe(io.FileIO):
    """Standard output or error as bytes. After its reader (`head`) has ended, it discards output."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            devnull = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(devnull, self.fileno())
            finally:
                os.close(devnull)
            return len(memoryview(data).cast("B"))


@contextmanager
def tolerant_output() -> Iterator[None]:
    """Within this context any text can be printed, also to closed pipes."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_tolerant, before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError):  # None; a full disk, already reported
                stream.flush()
        sys.stdout, sys.stderr = before


def _tolerant(stream: TextIO) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper):  # None if it was closed before the program started
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


class LineFormatter(logging.Formatter):
    """Formats each message as one line, whatever names it contains."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return printable(super().formatException(ei), keep="\n")


class _LogFile(logging.FileHandler):
    """A log file. A failed write (full disk) raises, like a failed write of any other file."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exception()
        if isinstance(error, OSError):
            error.filename = self.baseFilename
        raise


def _configured(handler: logging.Handler) -> logging.Handler:
    """The handler with the log's format. Ranks above 0 log only warnings, with their rank."""
    rank = os.environ.get("RANK", "0")
    prefix = "" if rank == "0" else f"process {rank}: "
    handler.setFormatter(LineFormatter(f"%(asctime)s {prefix}%(message)s", "%H:%M:%S"))
    handler.setLevel(logging.WARNING if prefix else logging.INFO)
    return handler


@contextmanager
def command_logging() -> Iterator[None]:
    """Within this context the log goes to standard error, and Python's warnings go to the log.

    A log file added later (:func:`add_log_file`) begins with the messages so far.
    """
    _logged_once.clear()
    before = log.handlers, log.level, warnings.showwarning
    kept = MemoryHandler(capacity=sys.maxsize, flushLevel=sys.maxsize, flushOnClose=False)
    log.handlers = [_configured(logging.StreamHandler()), _configured(kept)]
    log.setLevel(logging.INFO)
    warnings.showwarning = _log_warning
    try:
        yield
    finally:
        for handler in log.handlers:
            handler.close()
        log.handlers, log.level, warnings.showwarning = before


def _log_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    log.warning("%s: %s (%s, line %d)", category.__name__, " ".join(str(message).split()), filename, lineno)


def add_log_file(directory: Path) -> None:
    """Also append the log to `log.txt` of a directory; all processes of a run may do so."""
    directory.mkdir(parents=True, exist_ok=True)
    file = _configured(_LogFile(directory / LOG_FILE, encoding="utf-8", delay=True))
    for handler in log.handlers:
        if isinstance(handler, MemoryHandler):
            handler.setTarget(file)
            handler.flush()
            handler.close()
    log.handlers = [*(handler for handler in log.handlers if not isinstance(handler, MemoryHandler)), file]


@contextmanager
def log_file(directory: Path) -> Iterator[None]:
    """Within this context the log is also written to `log.txt` of a directory."""
    file = _configured(_LogFile(directory / LOG_FILE, encoding="utf-8", delay=True))
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


_logged_once: set[str] = set()


def log_once(line: str, level: int = logging.INFO) -> None:
    """Log a line unless this command, or else this process, has logged it before."""
    if line not in _logged_once:
        _logged_once.add(line)
        log.log(level, "%s", line)


def log_last(line: str) -> None:
    """Print a process's last line, and write it to the log file if possible."""
    print(printable(line), file=sys.stderr, flush=True)
    for handler in log.handlers:
        if isinstance(handler, _LogFile):
            with suppress(OSError):
                handler.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, line, (), None))
