"""Detections as the files of other projects state them: rows and columns, checked.

This module does not import torch.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitad.data.stated import number

# No time or score is so large. The bound is that of int64; JSON's integers have none.
_BEYOND = 2**63

# A class as a file states it: its name, or its number in a list of classes.
Label = str | int


@dataclass(frozen=True)
class Found:
    """Detections as a file states them; row i of every column belongs to one detection.

    Args:
        videos: the names of all videos of the file, also of those without detections.
        video: int64 ``[n]``, index into ``videos``.
        segments: float64 ``[n, 2]`` in seconds.
        scores: float64 ``[n]``.
        labels: of each row; None where the file has proposals, which are of no class.
        external: what else it says, its ``external_data``.
    """

    videos: Sequence[str]
    video: NDArray[np.int64]
    segments: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: Sequence[Label] | None
    external: Mapping[str, Any] = field(default_factory=dict)


def by_video(
    path: Path,
    results: Mapping[str, Any],
    *,
    label: str = "label",
    score: str = "score",
    external: Mapping[str, Any] | None = None,
) -> Found:
    """Lists of rows by video, checked at once; the slow look at each row is taken only to name the defect."""
    for name, rows in results.items():
        if not isinstance(rows, list):
            raise ValueError(f"{path}: video {name}: {reprlib.repr(rows)} is not a list of detections")
    rows = list(chain.from_iterable(results.values()))
    keys = {"segment", score}
    # A row of anything else may state its class under a name that is not known here.
    proposals = bool(rows) and all(isinstance(row, dict) and row.keys() == keys for row in rows)
    try:
        segments, scores = _numbers([row["segment"] for row in rows], 2), _numbers([row[score] for row in rows])
        labels = None if proposals else [row[label] for row in rows]
        sound = bool((segments[..., 0] <= segments[..., 1]).all()) and set(map(type, labels or ())) <= {str, int}
        sound = sound and "" not in set(labels or ())
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        for name, row in ((name, row) for name, found in results.items() for row in found):
            if defect := _defect(row, label, score, proposals=proposals):
                raise ValueError(f"{path}: video {name}: {defect}")
    video = np.repeat(np.arange(len(results)), [len(found) for found in results.values()])
    return Found(list(results), video, segments, scores, labels, external or {})


def _defect(row: Any, label: str, score: str, *, proposals: bool) -> str | None:
    """What is wrong with one row of a list."""
    if not isinstance(row, dict):
        return f"{reprlib.repr(row)} is not a detection; one is {{segment, {label}, {score}}}"
    for key in ("segment", score) if proposals else ("segment", label, score):
        if key not in row:
            epic = "; of EPIC-KITCHENS' verb and noun, write one as the label" if {"verb", "noun"} <= row.keys() else ""
            return f"detection {reprlib.repr(row)} has no {key}{epic}"
    segment = row["segment"]
    if not (isinstance(segment, list) and len(segment) == 2):
        return f"segment {reprlib.repr(segment)} is not two finite numbers [start, end]"
    start, end = map(number_of, segment)
    if start is None or end is None:
        return f"segment {reprlib.repr(segment)} is not two finite numbers [start, end]"
    if end < start:
        return f"segment {segment} ends before it starts"
    if not proposals and (type(row[label]) not in (str, int) or row[label] == ""):
        return f"label {reprlib.repr(row[label])} is not a class name or number"
    if number_of(row[score]) is None:
        return f"score {reprlib.repr(row[score])} is not a finite number"
    return None


def of_table(columns: Mapping[str, list[Any]], where: Callable[[int], str]) -> Found:
    """Rows of a table, by what its columns hold; ``where`` says where a row stands."""
    numbers = {}
    for role in ("start", "end", "score"):
        for row, value in enumerate(columns[role]):
            if number_of(value) is None:
                raise ValueError(f"{where(row)}: {role} {reprlib.repr(value)} is not a finite number")
        numbers[role] = _numbers(columns[role])
    segments = np.stack([numbers["start"], numbers["end"]], axis=1)
    for row in np.flatnonzero(segments[:, 1] < segments[:, 0]).tolist():
        raise ValueError(f"{where(row)}: segment {segments[row].tolist()} ends before it starts")
    for row, name in enumerate(columns["video"]):
        if not (isinstance(name, str) and name):
            raise ValueError(f"{where(row)}: video {reprlib.repr(name)} is not a name")
    labels = columns.get("label")
    if labels is not None:
        labels = list(_labels(labels, where))
    videos = {name: number for number, name in enumerate(dict.fromkeys(columns["video"]))}
    video = np.array([videos[name] for name in columns["video"]], np.int64)
    return Found(list(videos), video, segments, numbers["score"], labels)


def _labels(labels: Sequence[Any], where: Callable[[int], str]) -> Iterator[Label]:
    """Class names, or numbers where all labels of a table are some."""
    for row, label in enumerate(labels):
        if type(label) not in (str, int, float) or label == "":
            raise ValueError(f"{where(row)}: label {reprlib.repr(label)} is not a class name or number")
    texts = {label: str(label) for label in labels}
    numbered = all(re.fullmatch(r"-?\d{1,18}(\.0*)?", text) for text in texts.values())
    yield from (int(texts[label].partition(".")[0]) if numbered else texts[label] for label in labels)


def _numbers(values: list[Any], width: int | None = None) -> NDArray[np.float64]:
    """Numbers, or texts of numbers, ``[n]`` or ``[n, width]``.

    Raises:
        TypeError, ValueError: they are not all of this shape, finite and below ``_BEYOND``.
    """
    shape = (len(values),) if width is None else (len(values), width)
    found = np.array(values) if values else np.empty(shape)
    kinds = set(map(type, chain.from_iterable(values) if width else values))
    if not kinds <= {int, float, str}:  # among numbers, NumPy takes true and false for numbers
        raise ValueError("not numbers")
    if found.dtype.kind == "U" and found.shape == shape:
        texts = chain.from_iterable(values) if width else values
        found = np.array([number_of(text) for text in texts], np.float64).reshape(shape)  # what is no number is NaN
    if found.shape != shape or found.dtype.kind not in "fiu" or not (np.abs(found) < _BEYOND).all():
        raise ValueError("not numbers")
    return found.astype(np.float64)


def number_of(value: Any) -> float | None:
    """A finite number, or the text of one, that int64 can hold."""
    found = number(value)
    return float(found) if found is not None and abs(found) < _BEYOND else None
