"""A JSON with a ``database`` of videos, read video by video: what it says, and what cannot be read of each.

This module does not import torch.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitad.data.annotated import UNDECIDED, AnnotatedVideo, Annotations, Defect, VideoEntry
from bitad.data.annotation_classes import Classes, class_names
from bitad.data.clock_agreement import Clock, contradictions
from bitad.data.stated import described, is_missing, number

FRAME_SEGMENT = "segment(frames)"


def annotations_of_entries(
    entries: Sequence[VideoEntry],
    path: str | Path,
    *,
    classes: Classes | None = None,
    ignore: Sequence[str] = UNDECIDED,
) -> Annotations:
    """The videos as ground truth, segments of ignored labels too.

    Args:
        entries: the videos.
        path: where they are from, for the error.
        classes: as for ``read_annotations``.
        ignore: as for ``read_annotations``.

    Raises:
        ValueError: something of a video could not be read, or a label is not one of the classes.
    """
    names, clashes = class_names(entries, classes, ignore)
    refuse(path, [*(defect for entry in entries for defect in entry.defects), *clashes])
    return Annotations({entry.video.name: entry.video for entry in entries}, names)


def refuse(path: str | Path, defects: Iterable[Defect]) -> None:
    """Raise a ValueError that tells the first defect, if there is one."""
    for defect in defects:
        raise ValueError(
            f"{path}: video {defect.video}: {defect.detail}; correct it (`bitad annotations check` names every defect)"
        )


def read_entries(content: Any, path: str | Path) -> list[VideoEntry]:
    """What the JSON of an annotation file says, video by video, defects included.

    Numbers may be strings, as HACS' durations are. A duration that is missing or null is unknown, ``inf``, unless
    ``frame`` and ``fps`` tell it. A video without ``annotations`` has no segment in a test subset of which no video
    has them. COIN's file calls them ``annotation``.

    Raises:
        ValueError: there is no ``database``.
    """
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict):
        raise ValueError(
            f'{path}: no "database" of videos by name: it is {described(content)}; `bitad annotations convert` makes '
            "one of other forms"
        )
    annotated = {
        subset
        for stated in database.values()
        if isinstance(stated, dict) and rows_key(stated) is not None
        if isinstance(subset := stated.get("subset"), str)
    }
    return [_read_entry(name, stated, annotated) for name, stated in database.items()]


def rows_key(stated: Mapping[str, Any]) -> str | None:
    """The key of a video's list of annotations, if it has one."""
    return next((key for key in ("annotations", "annotation") if stated.get(key) is not None), None)


def _read_entry(name: str, stated: Any, annotated: set[str]) -> VideoEntry:
    """Read one video of the ``database``, noting what is missing or malformed."""
    defects: list[Defect] = []

    def note(detail: str) -> None:
        defects.append(Defect(name, "unreadable", detail))

    if not isinstance(stated, dict):
        note(f"{reprlib.repr(stated)} is not a video's {{subset, duration, annotations}}")
        stated = {"subset": "", "annotations": []}
    if "subset" not in stated:
        note('"subset" is missing')
    subset = stated.get("subset", "")
    if not isinstance(subset, str):
        note(f"subset {reprlib.repr(subset)} is not a name")
    numbers: dict[str, float | None] = {}
    for what in ("duration", "frame", "fps"):
        value = stated.get(what)
        numbers[what] = found = number(value)
        if not is_missing(value) and not (found is not None and (round(found) if what == "frame" else found) > 0):
            note(f"{what} {reprlib.repr(value)} is not a positive number")
            numbers[what] = None
    rows = [] if (key := rows_key(stated)) is None else stated[key]
    if key is None and ("test" not in str(subset).lower() or subset in annotated):
        note('"annotations" is missing')
    if not isinstance(rows, list):
        note(f"annotations {reprlib.repr(rows)} are not a list")
        rows = []
    sound: list[_Row] = []
    for row in rows:
        try:
            sound.append(_read_row(row))
        except ValueError as error:
            note(str(error))
    frames, fps = numbers["frame"], numbers["fps"]
    duration_s = numbers["duration"]
    if duration_s is None:
        duration_s = frames / fps if frames is not None and fps is not None else math.inf
    clock = Clock(float(duration_s), None if frames is None else round(frames), None if fps is None else float(fps))
    segments = np.array([row.segment for row in sound], np.float64).reshape(-1, 2)
    in_frames = np.array([row.in_frames for row in sound], np.float64).reshape(-1, 2)
    video = AnnotatedVideo(
        name=name,
        subset=str(subset),
        duration_s=clock.duration_s,
        segments=segments,
        labels=tuple(row.label for row in sound),
        frames=clock.frames,
        fps=clock.fps,
        contradictions=contradictions(clock, segments, in_frames),
    )
    return VideoEntry(video, [row.label_id for row in sound], defects)


@dataclass(frozen=True)
class _Row:
    """One annotation of a video; NaN in frames where it states none."""

    segment: tuple[float, float]
    in_frames: tuple[float, float]
    label: str
    label_id: int | None


def _read_row(row: Any) -> _Row:
    if not isinstance(row, dict):
        raise ValueError(f"{reprlib.repr(row)} is not an annotation; one is {{segment, label}}")
    for key in ("segment", "label"):
        if key not in row:
            raise ValueError(f'annotation {reprlib.repr(row)} has no "{key}"')
    segment = segment_of(row["segment"], "segment")
    in_frames = segment_in_frames(row) or (math.nan, math.nan)
    label, label_id = row["label"], row.get("label_id")
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"label {reprlib.repr(label)} is not a name")
    if label_id is not None and (not isinstance(label_id, int) or isinstance(label_id, bool)):
        raise ValueError(f"label_id {reprlib.repr(label_id)} is not a whole number")
    return _Row(segment, in_frames, label, label_id)


def segment_in_frames(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """Start and end in frames that an annotation states, as ActionFormer's do; None where it leaves them empty.

    Raises:
        ValueError: what it states is no start and end.
    """
    stated = row.get(FRAME_SEGMENT)
    if is_missing(stated) or (isinstance(stated, list) and all(map(is_missing, stated))):
        return None
    return segment_of(stated, FRAME_SEGMENT)


def segment_of(stated: Any, key: str) -> tuple[float, float]:
    """Start and end of a list of two numbers.

    Raises:
        ValueError: it is none.
    """
    edges = [number(edge) for edge in stated] if isinstance(stated, list) and len(stated) == 2 else [None]
    match edges:
        case [float() | int() as start, float() | int() as end]:
            return float(start), float(end)
    raise ValueError(f"{key} {reprlib.repr(stated)} is not [start, end]")
