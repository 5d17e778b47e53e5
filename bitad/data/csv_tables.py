"""Tables of comma-separated values with a line of column names.

This module does not import torch.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from bitad.files import read_text


def rows_of_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each row of a CSV file stands, and the row by column.

    Args:
        path: the file.
        columns: names of columns that it needs.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such table, or lacks one of ``columns``, or has two columns of one name.
    """
    file = io.StringIO(read_text(path, f"a table with columns {', '.join(columns)}"), newline="")
    try:
        reader = csv.DictReader(file, restval="")
        names = [name for name in reader.fieldnames or () if name]
        if missing := [column for column in columns if column not in names]:
            raise ValueError(f"{path}: no column {missing[0]!r}; it needs {', '.join(columns)}")
        if repeated := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"{path}: column {repeated[0]!r} occurs twice; only the last would be read: keep one")
        for row in reader:
            yield f"{path}:{reader.line_num}", row
    except csv.Error as error:
        raise ValueError(f"{path}: not a table of comma-separated values: {error}") from None
