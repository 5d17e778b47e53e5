"""What the readers of detection files share: rows by video or by column, validated and converted to arrays."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitad.data.formats.parsing import number

# All times and scores are below this, the bound of int64; JSON's integers have none.
_BOUND = 2**63


@dataclass(frozen=True)
class ParsedDetections:
    """Detections as a file states them: what a reader returns. Row i of every column belongs to one detection.

    Args:
        videos: the names of all videos of the file, also of those without detections.
        video: int64 ``[n]``, index into ``videos``.
        segments: float64 ``[n, 2]`` in seconds.
        scores: float64 ``[n]``.
        labels: class names, or numbers in a list of classes; None if the file holds proposals, which have no class.
        external: the file's ``external_data``.
    """

    videos: Sequence[str]
    video: NDArray[np.int64]
    segments: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: Sequence[str | int] | None
    external: Mapping[str, Any] = field(default_factory=dict)


def parse_by_video(
    path: Path,
    results: Mapping[str, Any],
    *,
    label: str = "label",
    score: str = "score",
    external: Mapping[str, Any] | None = None,
) -> ParsedDetections:
    """Lists of rows by video, validated all at once; each row is looked at only to name a defect.

    Args:
        results: ``{video: [{"segment": [start, end], label: ..., score: ...}]}``.

    Raises:
        ValueError: the first defect.
    """
    for name, rows in results.items():
        if not isinstance(rows, list):
            raise ValueError(f"{path}: video {name}: {reprlib.repr(rows)} is not a list of detections")
    rows = list(chain.from_iterable(results.values()))
    # A row with other keys may state its class under an unknown name.
    proposals = bool(rows) and all(isinstance(row, dict) and row.keys() == {"segment", score} for row in rows)
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
    return ParsedDetections(list(results), video, segments, scores, labels, external or {})


def _defect(row: Any, label: str, score: str, *, proposals: bool) -> str | None:
    """What is wrong with one row of a list."""
    if not isinstance(row, dict):
        return f"{reprlib.repr(row)} is not a detection; one is {{segment, {label}, {score}}}"
    for key in ("segment", score) if proposals else ("segment", label, score):
        if key not in row:
            epic = "; of EPIC-KITCHENS' verb and noun, write one as the label" if {"verb", "noun"} <= row.keys() else ""
            return f"detection {reprlib.repr(row)} has no {key}{epic}"
    segment = row["segment"]
    edges = [number_of(edge) for edge in segment] if isinstance(segment, list) else []
    if len(edges) != 2 or edges[0] is None or edges[1] is None:
        return f"segment {reprlib.repr(segment)} is not two finite numbers [start, end]"
    if edges[1] < edges[0]:
        return f"segment {segment} ends before it starts"
    if not proposals and (type(row[label]) not in (str, int) or row[label] == ""):
        return f"label {reprlib.repr(row[label])} is not a class name or number"
    if number_of(row[score]) is None:
        return f"score {reprlib.repr(row[score])} is not a finite number"
    return None


def parse_columns(columns: Mapping[str, list[Any]], where: Callable[[int], str]) -> ParsedDetections:
    """The rows of a table.

    Args:
        columns: "video", "start", "end", "score" and, unless they are proposals, "label".
        where: the place of a row, for messages.

    Raises:
        ValueError: the first defect.
    """
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
    for row, label in enumerate(labels or ()):
        if type(label) not in (str, int, float) or label == "":
            raise ValueError(f"{where(row)}: label {reprlib.repr(label)} is not a class name or number")
    if labels is not None:
        texts = {label: str(label) for label in labels}
        if all(re.fullmatch(r"-?\d{1,18}(\.0*)?", text) for text in texts.values()):
            labels = [int(texts[label].partition(".")[0]) for label in labels]
        else:
            labels = [texts[label] for label in labels]
    videos = {name: number for number, name in enumerate(dict.fromkeys(columns["video"]))}
    video = np.array([videos[name] for name in columns["video"]], np.int64)
    return ParsedDetections(list(videos), video, segments, numbers["score"], labels)


def _numbers(values: list[Any], width: int | None = None) -> NDArray[np.float64]:
    """Numbers, or texts of numbers, ``[n]`` or ``[n, width]``. Raises a TypeError or ValueError if one is none."""
    shape = (len(values),) if width is None else (len(values), width)
    found = np.array(values) if values else np.empty(shape)
    flat = list(chain.from_iterable(values)) if width else values
    if not set(map(type, flat)) <= {int, float, str}:  # among numbers, NumPy takes true and false for numbers
        raise ValueError("not numbers")
    if found.dtype.kind == "U" and found.shape == shape:
        found = np.array([number_of(text) for text in flat], np.float64).reshape(shape)  # None becomes NaN
    if found.shape != shape or found.dtype.kind not in "fiu" or not (np.abs(found) < _BOUND).all():
        raise ValueError("not numbers")
    return found.astype(np.float64)


def number_of(value: Any) -> float | None:
    """A finite number below ``_BOUND``, or the text of one."""
    found = number(value)
    return float(found) if found is not None and abs(found) < _BOUND else None
