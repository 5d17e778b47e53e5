"""Values as files state them: numbers that may be strings, and what a file looks like, for errors.

This module does not import torch, nor NumPy: the command line's help needs it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

# So many keys, columns or files an error names.
_MOST = 8
_LONGEST = 60


def number(value: Any) -> float | None:
    """A finite number, which may stand in a string ("92.166667"); None: it is none."""
    if isinstance(value, str) and "_" not in value:
        try:
            value = float(value)
        except ValueError:
            return None
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    # Not math.isfinite: a whole number may be too large for a float.
    return value if abs(value) <= sys.float_info.max else None


def is_missing(value: Any) -> bool:
    """Whether a value is not stated: null, or an empty string as in tables."""
    return value is None or (isinstance(value, str) and not value.strip())


def some(names: Iterable[str]) -> str:
    """The first of some names, each shortened, for people."""
    told = [name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..." for name in map(_printable, names)]
    return ", ".join(told[:_MOST]) + (f", ... ({len(told)} in all)" if len(told) > _MOST else "")


def described(content: Any) -> str:
    """What a JSON document looks like, for people, after "it is"."""
    match content:
        case dict() if not content:
            return "a JSON object without keys"
        case dict():
            first = next(iter(content.values()))
            inner = f", the first with keys {some(first)}" if isinstance(first, dict) and first else ""
            return f"a JSON object with keys {some(content)}{inner}"
        case list():
            first = next(iter(content), None)
            inner = f", the first with keys {some(first)}" if isinstance(first, dict) and first else ""
            return f"a JSON list of {len(content)} {'objects' if isinstance(first, dict) else 'values'}{inner}"
        case str():
            return "a JSON string"
        case None:
            return "JSON's null"
        case _:
            return f"JSON's {content!r:.60}"


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)
