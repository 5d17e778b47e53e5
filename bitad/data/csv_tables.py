"""Tables of comma-separated values with a line of column names.

This module does not import torch.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path


def rows_of_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each row of a CSV file stands, and the row by column.

    Args:
        path: the file.
        columns: names of columns that it needs.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such table, or lacks one of ``columns``, or has two columns of one name.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            names = [name for name in reader.fieldnames or () if name]
            if missing := [column for column in columns if column not in names]:
                raise ValueError(f"{path}: no column {missing[0]!r}; it needs {', '.join(columns)}")
            if repeated := [name for name, count in Counter(names).items() if count > 1]:
                raise ValueError(f"{path}: column {repeated[0]!r} occurs twice; only the last would be read: keep one")
            for row in reader:
                yield f"{path}:{reader.line_num}", row
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file: {error.reason} at byte {error.start}") from None
    except csv.Error as error:
        raise ValueError(f"{path}: not a table of comma-separated values: {error}") from None
