"""Text of files and names made fit to be printed: it cannot steer a terminal, break a line or hide in a log.

This module does not import torch.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


def say(*lines: object, file: TextIO | None = None) -> None:
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
