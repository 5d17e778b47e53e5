"""Classes that files state by number, and the lists that name them.

This module does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitad.data.annotated import ANY_CLASS
from bitad.data.annotation_classes import lines_and_numbers, names_by_number
from bitad.files import read_json


def read_class_numbers(path: str | Path) -> dict[int, str]:
    """The names of a data set's classes by number.

    Three kinds of files are read: names, a line each, numbered from 0; lines of a number and a name, as the THUMOS'14
    kit's ``detclasslist.txt``; and annotations, JSON whose ``label_id`` are the numbers.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it names no class, or a name or a number twice.
    """
    path = Path(path)
    if path.name.lower().endswith((".json", ".json.gz")):
        return _of_annotations(path)
    lines, numbered = lines_and_numbers(path)
    return dict(sorted(numbered.items())) or dict(enumerate(lines))


def _of_annotations(path: Path) -> dict[int, str]:
    content = read_json(path)
    database = content.get("database") if isinstance(content, dict) else None
    videos = database.values() if isinstance(database, dict) else ()
    lists = [video.get("annotations") for video in videos if isinstance(video, dict)]
    rows = chain.from_iterable(rows for rows in lists if isinstance(rows, list))
    pairs = {
        (row["label_id"], row["label"])
        for row in rows
        if isinstance(row, dict) and type(row.get("label_id")) is int and isinstance(row.get("label"), str)
    }
    if not pairs:
        raise ValueError(f"{path}: it names no class with a number (label_id); give a list of the names, a line each")
    return names_by_number(sorted(pairs), path)


def named_classes(
    labels: Sequence[str | int] | None, n: int, stated: Sequence[str] | None, classes: str | Path | None
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The class names of n detections, and each one's index among them, int64 ``[n]``.

    Args:
        labels: as a file states them; None where all are of one class without a name.
        stated: the classes that the file itself lists.
        classes: a list to use instead of that.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_class_numbers`; a label is not among the classes, or a number
            without a list of classes.
    """
    if labels is None:
        return (ANY_CLASS,), np.zeros(n, np.int64)
    numbers = read_class_numbers(classes) if classes is not None else dict(enumerate(stated or ()))
    source = str(classes) if classes is not None else "external_data"
    listed = tuple(numbers.values()) if classes is not None or stated is not None else None
    known = {label: _name_of(label, numbers, listed, source) for label in dict.fromkeys(labels)}
    names = tuple(sorted(set(known.values()))) if listed is None else listed
    place = {name: number for number, name in enumerate(names)}
    return names, np.array([place[known[label]] for label in labels], np.int64)


def _name_of(label: str | int, numbers: Mapping[int, str], listed: Sequence[str] | None, source: str) -> str:
    if isinstance(label, str) and (listed is None or label in listed):
        return label
    if listed is None:
        raise ValueError(
            f"label {label} is the number of a class; name the classes with --classes FILE: names, a line each, or the "
            "annotations whose label_id it is"
        )
    if isinstance(label, str) and not re.fullmatch(r"\d{1,18}", label):
        raise ValueError(f"label {label} is not among the classes that {source} names")
    if int(label) not in numbers:
        raise ValueError(
            f"class number {label} is not one of the {len(numbers)} of {source}, {min(numbers, default=0)} to "
            f"{max(numbers, default=0)}; where classes have other numbers, write lines of NUMBER NAME"
        )
    return numbers[int(label)]
