"""Values and tables as files state them: numbers that may be strings, comma-separated values.

Does not import NumPy: ``--help`` needs it.
"""

from __future__ import annotations

import csv
import io
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bitad.runtime.files import read_text

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


def rows_of_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The number of the line that each row of a CSV file stands in, and the row by column.

    Values may be separated by commas, semicolons, tabs or single spaces, as the line of names tells.

    Args:
        path: the file.
        columns: names of columns that it needs.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such table, or lacks one of ``columns``, or has two columns of one name.
    """
    file = io.StringIO(read_text(path, f"a table with columns {', '.join(columns)}"), newline="")
    try:
        delimiter = _delimiter_of(file.readline())
        file.seek(0)
        reader = csv.DictReader(file, restval="", delimiter=delimiter, skipinitialspace=True)
        names = [name for name in reader.fieldnames or () if name]
        if missing := [column for column in columns if column not in names]:
            has = f"; it has {some(names)}" if names else ""
            raise ValueError(f"{path}: no column {missing[0]!r}; it needs {', '.join(columns)}{has}")
        if repeated := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"{path}: column {repeated[0]!r} occurs twice; only the last would be read: keep one")
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{path}: not a table of comma-separated values: {error}") from None


def columns_of(path: Path) -> tuple[str, ...]:
    """The names in the first line of a table; none where it is empty or cannot be read."""
    line = ""
    with suppress(OSError), path.open(encoding="utf-8-sig", errors="replace") as file:
        line = next((line for line in file if line.strip()), "").strip()
    try:
        return tuple(next(csv.reader([line], delimiter=_delimiter_of(line), skipinitialspace=True), ()))
    except csv.Error:
        return (line,)


def _delimiter_of(line: str) -> str:
    """What separates the names in a table's first line."""
    return next((one for one in ",;\t " if one in line.strip()), ",")
