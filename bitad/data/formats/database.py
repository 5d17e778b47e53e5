"""ActivityNet's JSON with a ``database`` of videos, which is also BiTAD's own form: read, written, time-reversed."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitad.config.names import AnnotationFormat
from bitad.data.annotations import ANY_CLASS as ANY_CLASS
from bitad.data.annotations import (
    UNDECIDED,
    AnnotatedVideo,
    Annotations,
    Classes,
    Defect,
    VideoEntry,
    class_names,
    refuse_without_duration,
    reversed_ascending,
)
from bitad.data.annotations import Kind as Kind
from bitad.data.annotations import read_classes as read_classes
from bitad.data.clocks import Clock, contradictions, require_agreement
from bitad.data.formats.values import described, is_missing, number
from bitad.runtime.files import read_json, write_json

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


def read_annotations(
    path: str | Path,
    *,
    classes: Classes | None = None,
    ignore: Sequence[str] = UNDECIDED,
) -> Annotations:
    """Read ground truth in ActivityNet's form as OpenTAD writes it, or in ActionFormer's; ``.gz`` is decompressed.

    Args:
        path: the JSON file.
        classes: the class names in order, or the path of a file with a name a line (``category_idx.txt``). Without
            it: the file's own labels in the order of their ``label_id``, and by name where the file has none.
        ignore: labels whose segments are left out, unless ``classes`` names them. Training leaves out THUMOS14's
            ``Ambiguous``, as OpenTAD's data set does; its evaluator counts that label as a class, so evaluation
            reads with ``ignore=()``.

    Segments that end after their video or not after their start are kept: ``check_annotations`` names them. Videos
    whose duration the file does not state last ``inf`` seconds, see ``Annotations.require_durations``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not JSON, something is missing or no number, or a label is not one of the classes.
    """
    entries = read_entries(read_json(path), path)
    return annotations_of_entries(entries, path, classes=classes, ignore=ignore).only_classes()


# The forms written: OpenTAD's, and ActionFormer's, which also counts segments in frames.


def write_annotations(annotations: Annotations, path: str | Path, *, form: AnnotationFormat = "native") -> None:
    """Write the native form or ActionFormer's, whole or not at all; ``.gz`` compresses.

    ``label_id`` keeps the order of the classes; labels that are none of them (``Ambiguous``) are numbered after them.
    ``read_annotations`` gives the same back; a class without a segment only where it is given the classes. A video
    of unknown duration, ``inf``, is written without one.
    ActionFormer's form adds ``segment(frames)``, seconds times ``fps``, as in its ``thumos14.json``.

    Raises:
        ValueError: ActionFormer's form needs a video's frame rate, and neither it nor a frame count is known.
    """
    outside = {label for video in annotations.videos.values() for label in video.labels} - set(annotations.classes)
    number = {label: index for index, label in enumerate([*annotations.classes, *sorted(outside)])}
    database = {}
    for video in annotations.videos.values():
        known = {"frame": video.frames, "fps": video.fps}
        rows: list[dict[str, Any]] = [
            {"segment": segment, "label": label, "label_id": number[label]}
            for segment, label in zip(video.segments.tolist(), video.labels, strict=True)
        ]
        if form == "actionformer":
            known["fps"] = fps = _frame_rate(video, path)
            for row, frames in zip(rows, (video.segments * fps).tolist(), strict=True):
                row[FRAME_SEGMENT] = frames
        database[video.name] = {
            "subset": video.subset,
            **({"duration": video.duration_s} if math.isfinite(video.duration_s) else {}),
            **{key: value for key, value in known.items() if value is not None},
            "annotations": rows,
        }
    write_json({"database": database}, path)


def reverse_annotation_file(src: str | Path, dst: str | Path, *, allow_clock_mismatch: bool = False) -> str | None:
    """Write the annotations of the reversed videos: ``[a, b]`` becomes ``[D - b, D - a]``, in ascending order.

    ActionFormer's ``segment(frames)`` is mirrored in the frame count F, ``[F - b, F - a]``; where the file states none,
    in F = D * fps, so that seconds and frames keep agreeing. Everything else stays as it is, labels and unknown keys
    too. Reversing twice gives the same set of segments within 1e-6 s.

    Args:
        src: the file.
        dst: the file to write.
        allow_clock_mismatch: whether what the file states of a video's time may contradict itself.

    Returns:
        where it does and may, one line that names the videos.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read as annotations, contradicts itself about a video's time, or ``dst`` is
            ``src``.
    """
    if Path(src).resolve() == Path(dst).resolve():
        raise ValueError(f"{dst}: the reversed annotations would replace their source; name another file")
    content = read_json(src)
    entries = read_entries(content, src)
    refuse(src, (defect for entry in entries for defect in entry.defects))
    faults = {entry.video.name: "; ".join(found) for entry in entries if (found := entry.video.contradictions)}
    remedy = "correct the annotations, or reverse them as they are with --allow-clock-mismatch"
    said = require_agreement(faults, len(entries), src, allowed=allow_clock_mismatch, remedy=remedy)
    videos = [entry.video for entry in entries]
    refuse_without_duration([video.name for video in videos if video.labels and math.isinf(video.duration_s)], src)
    for entry in entries:
        stated = content["database"][entry.video.name]
        if (key := rows_key(stated)) is not None:
            stated[key] = _reversed_rows(stated[key], entry.video, src)
    write_json(content, dst)
    return said


def _frame_rate(video: AnnotatedVideo, path: str | Path) -> float:
    if video.fps is not None:
        return video.fps
    if video.frames is None or math.isinf(video.duration_s):
        remedy = "; or leave it out with --missing drop" if math.isinf(video.duration_s) else ""
        raise ValueError(
            f"{path}: video {video.name}: ActionFormer's form needs its frame rate; give --video-info or --videos that "
            f"has it{remedy}"
        )
    return video.frames / video.duration_s


def _reversed_rows(rows: list[dict[str, Any]], video: AnnotatedVideo, path: str | Path) -> list[dict[str, Any]]:
    """A video's annotations as its file states them, reversed."""
    segments, order = reversed_ascending(video.segments, video.duration_s)
    reversed_rows = [rows[i] | {"segment": segment} for i, segment in zip(order, segments.tolist(), strict=True)]
    for row in reversed_rows:
        if (in_frames := segment_in_frames(row)) is None:
            continue
        if video.frames is not None:
            frames: float = video.frames
        elif video.fps is not None:
            frames = video.duration_s * video.fps
        else:
            raise ValueError(f'{path}: video {video.name}: to reverse "{FRAME_SEGMENT}", state "frame" or "fps"')
        start, end = in_frames
        row[FRAME_SEGMENT] = [frames - end, frames - start]
    return reversed_rows
