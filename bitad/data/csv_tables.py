"""Tables of comma-separated values with a line of column names.

This module does not import torch, nor NumPy: the command line's help needs it.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from bitad.data.stated import some
from bitad.files import read_text


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
