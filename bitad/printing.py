"""Text of files and names made fit to be printed: it cannot steer a terminal, break a line or hide in a log.

This module does not import torch.
"""

from __future__ import annotations

import logging
import re
import sys
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
