"""What readers of detection files share: rows by video or by column, converted to arrays."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from bitad.data.formats.parsing import number
from bitad.timeline import FloatArray, IntArray

# All times and scores are below this, the bound of int64; JSON's integers have none.
_BOUND = 2**63

# Row -> its place in the file, for messages.
Where = Callable[[int], str]


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
    video: IntArray
    segments: FloatArray
    scores: FloatArray
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
    """Lists of rows by video, ``{video: [{"segment": [start, end], label: ..., score: ...}]}``.

    Raises:
        ValueError: the first defect.
    """
    rows: list[Any] = []
    names: list[str] = []
    for name, found in results.items():
        if not isinstance(found, list):
            raise ValueError(f"{path}: video {name}: {reprlib.repr(found)} is not a list of detections")
        rows += found
        names += [name] * len(found)

    def where(row: int) -> str:
        return f"{path}: video {names[row]}"

    segments = take_column(rows, "segment", where)
    # Loops that only name the first defect run only if there is one.
    if set(map(type, segments)) - {list} or set(map(len, segments)) - {2}:
        row = next(i for i, one in enumerate(segments) if not isinstance(one, list) or len(one) != 2)
        raise ValueError(
            f"{where(row)}: segment {reprlib.repr(segments[row])} is not two finite numbers [start, end]"
        )
    times = list(chain.from_iterable(segments))
    columns = {
        "video": names,
        "start": times[::2],
        "end": times[1::2],
        "score": take_column(rows, score, where),
    }
    # A row with other keys may state its class under an unknown name.
    if not rows or any(row.keys() != {"segment", score} for row in rows):
        columns["label"] = take_column(rows, label, where)
    return replace(_parse(columns, where, list(results), (str, int)), external=external or {})


def take_column(rows: Sequence[Any], key: str, where: Where) -> list[Any]:
    """The values under a key of all rows. Raises a ValueError for the first row without it."""
    try:
        return list(map(itemgetter(key), rows))
    except (KeyError, TypeError):
        index = next(i for i, row in enumerate(rows) if not isinstance(row, dict) or key not in row)
    row = rows[index]
    epic = isinstance(row, dict) and {"verb", "noun"} <= row.keys()
    remedy = "; of EPIC-KITCHENS' verb and noun, write one as the label" if epic else ""
    raise ValueError(f"{where(index)}: detection {reprlib.repr(row)} has no {key}{remedy}")


def parse_columns(columns: Mapping[str, list[Any]], where: Where) -> ParsedDetections:
    """The rows of a table.

    Args:
        columns: "video", "start", "end", "score" and, unless they are proposals, "label".
        where: the place of a row, for messages.

    Raises:
        ValueError: the first defect.
    """
    for row, name in enumerate(columns["video"]):
        if not (isinstance(name, str) and name):
            raise ValueError(f"{where(row)}: video {reprlib.repr(name)} is not a name")
    parsed = _parse(columns, where, list(dict.fromkeys(columns["video"])), (str, int, float))
    if parsed.labels is None:
        return parsed
    texts = list(map(str, parsed.labels))
    if all(re.fullmatch(r"-?\d{1,18}(\.0*)?", text) for text in set(texts)):
        return replace(parsed, labels=[int(text.partition(".")[0]) for text in texts])
    return replace(parsed, labels=texts)


def _parse(
    columns: Mapping[str, list[Any]], where: Where, videos: list[str], label_types: tuple[type, ...]
) -> ParsedDetections:
    start, end, scores = (_numbers(columns[role], role, where) for role in ("start", "end", "score"))
    for row in np.flatnonzero(end < start).tolist():
        raise ValueError(f"{where(row)}: segment [{start[row]}, {end[row]}] ends before it starts")
    labels = columns.get("label")
    if labels and (set(map(type, labels)).difference(label_types) or "" in labels):
        row = next(i for i, label in enumerate(labels) if type(label) not in label_types or label == "")
        raise ValueError(f"{where(row)}: label {reprlib.repr(labels[row])} is not a class name or number")
    index = {name: i for i, name in enumerate(videos)}
    video = np.fromiter(map(index.__getitem__, columns["video"]), np.int64, len(start))
    return ParsedDetections(videos, video, np.stack([start, end], axis=1), scores, labels)


def _numbers(values: Sequence[Any], role: str, where: Where) -> FloatArray:
    is_parsed = set(map(type, values)) <= {float}
    numbers = np.array(values if is_parsed else list(map(number, values)), np.float64)  # None becomes NaN
    for row in np.flatnonzero(~(np.abs(numbers) < _BOUND)).tolist():
        raise ValueError(f"{where(row)}: {role} {reprlib.repr(values[row])} is not a finite number")
    return numbers
