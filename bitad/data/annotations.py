"""Ground truth: which action happens when, in which video; the files that hold it; its reversal in time.

This module does not import torch.
"""

from __future__ import annotations

import math
import re
import reprlib
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bitad.data.clock_agreement import Clock, contradictions, require_agreement
from bitad.files import read_json, read_text, write_json
from bitad.timeline import reverse_seconds

# THUMOS14's mark for spans that its annotators could not decide on: no class to train.
UNDECIDED = ("Ambiguous",)

# What a class-agnostic detector calls whatever it finds.
ANY_CLASS = "action"

_FRAME_SEGMENT = "segment(frames)"


@dataclass(frozen=True)
class AnnotatedVideo:
    """One video's ground truth.

    Args:
        name: key of the video in the annotation file; its file name without extension.
        subset: the part of the data set it belongs to ("training", "validation", "test", ...), as in the file.
        duration_s: the annotation's own duration D in seconds.
        segments: float64 ``[n, 2]``, start and end in seconds on the forward clock.
        labels: n class names.
        frames: number of frames, where the file says so.
        fps: frames a second, where the file says so.
        contradictions: how its file contradicts itself about the video's time.
    """

    name: str
    subset: str
    duration_s: float
    segments: NDArray[np.float64]
    labels: tuple[str, ...]
    frames: int | None = None
    fps: float | None = None
    contradictions: tuple[str, ...] = ()

    @property
    def clock(self) -> Clock:
        """The video's time as annotated."""
        return Clock(self.duration_s, self.frames, self.fps)

    def reversed(self) -> AnnotatedVideo:
        """The ground truth of the reverse playback, ``[D - b, D - a]``, in ascending order; its own inverse, but
        for the order of the segments."""
        segments, order = _reversed_ascending(self.segments, self.duration_s)
        return replace(self, segments=segments, labels=tuple(self.labels[i] for i in order))


@dataclass(frozen=True)
class Annotations:
    """A data set's ground truth: videos by name, in the file's order, and the class names in their fixed order."""

    videos: dict[str, AnnotatedVideo]
    classes: tuple[str, ...]

    def subsets(self) -> dict[str, int]:
        """The number of videos in each subset."""
        return dict(Counter(video.subset for video in self.videos.values()))

    def subset(self, name: str) -> Annotations:
        """The videos of one subset; upper and lower case differ.

        Raises:
            ValueError: no video is in that subset.
        """
        videos = {video.name: video for video in self.videos.values() if video.subset == name}
        if not videos:
            found = ", ".join(f"{subset} ({count} videos)" for subset, count in self.subsets().items())
            raise ValueError(f"no video is in subset {name!r}; the subsets are {found or 'none: no videos'}")
        return replace(self, videos=videos)

    def only_classes(self) -> Annotations:
        """Without the segments whose label is none of the classes (THUMOS14's ``Ambiguous``)."""
        known = set(self.classes)
        return replace(self, videos={name: _keep(video, known) for name, video in self.videos.items()})

    def class_agnostic(self) -> Annotations:
        """The same segments, all of a single class."""
        videos = {name: replace(video, labels=(ANY_CLASS,) * len(video.labels)) for name, video in self.videos.items()}
        return replace(self, videos=videos, classes=(ANY_CLASS,))

    def reversed(self) -> Annotations:
        """The ground truth of the same videos played backwards."""
        return replace(self, videos={name: video.reversed() for name, video in self.videos.items()})


Kind = Literal[
    "unreadable",
    "segment outside the video",
    "start not before end",
    "duplicate",
    "label outside the classes",
    "only ignored labels",
    "no video file",
    "unreadable video file",
    "cut-off video file",
    "contradicting clocks",
    "another duration",
    "another frame rate",
    "another frame count",
    "no reversed video file",
    "not the reverse of its video",
]


@dataclass(frozen=True)
class Defect:
    """Something wrong with one video's annotation."""

    video: str
    kind: Kind
    detail: str


def read_annotations(
    path: str | Path,
    *,
    classes: Sequence[str] | PathLike[str] | None = None,
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

    Segments that end after their video or not after their start are kept: ``check_annotations`` names them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not JSON, something is missing or no number, or a label is not one of the classes.
    """
    return annotations_of(read_json(path), path, classes=classes, ignore=ignore).only_classes()


def annotations_of(
    content: Any,
    path: str | Path,
    *,
    classes: Sequence[str] | PathLike[str] | None = None,
    ignore: Sequence[str] = UNDECIDED,
) -> Annotations:
    """What the JSON of an annotation file says: ``read_annotations``, but segments of ignored labels are kept.

    Raises:
        ValueError: something is missing or no number, or a label is not one of the classes.
    """
    entries = read_entries(content, path)
    names, clashes = class_names(entries, classes, ignore)
    _refuse(path, [*(defect for entry in entries for defect in entry.defects), *clashes])
    return Annotations({entry.video.name: entry.video for entry in entries}, names)


# The forms written: OpenTAD's, and ActionFormer's, which also counts segments in frames.
WrittenForm = Literal["native", "actionformer"]


def write_annotations(annotations: Annotations, path: str | Path, *, form: WrittenForm = "native") -> None:
    """Write the native form or ActionFormer's, whole or not at all; ``.gz`` compresses.

    ``label_id`` keeps the order of the classes; labels that are none of them (``Ambiguous``) are numbered after them.
    ``read_annotations`` gives the same back; a class without a segment only where it is given the classes.
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
                row[_FRAME_SEGMENT] = frames
        database[video.name] = {
            "subset": video.subset,
            "duration": video.duration_s,
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
    _refuse(src, (defect for entry in entries for defect in entry.defects))
    faults = {entry.video.name: "; ".join(found) for entry in entries if (found := entry.video.contradictions)}
    remedy = "correct the annotations, or reverse them as they are with --allow-clock-mismatch"
    said = require_agreement(faults, len(entries), src, allowed=allow_clock_mismatch, remedy=remedy)
    for entry in entries:
        stated = content["database"][entry.video.name]
        stated["annotations"] = _reversed_rows(stated["annotations"], entry.video, src)
    write_json(content, dst)
    return said


def read_classes(path: str | PathLike[str]) -> tuple[str, ...]:
    """The class names in a file with a name a line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it names no class, or one twice.
    """
    # Not splitlines(): a name may hold what Unicode calls a line end.
    names = [line.strip() for line in re.split(r"\r\n?|\n", read_text(Path(path), "class names, a name a line"))]
    return _distinct([name for name in names if name], path)


@dataclass(frozen=True)
class VideoEntry:
    """One video as the file states it, its annotations' ``label_id`` (or None), and what could not be read.

    What could not be read is left out of ``video``; there is none without a defect that says so.
    """

    video: AnnotatedVideo
    label_ids: list[int | None]
    defects: list[Defect]


def read_entries(content: Any, path: str | Path) -> list[VideoEntry]:
    """What the JSON of an annotation file says, video by video, defects included.

    Raises:
        ValueError: there is no ``database``.
    """
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict):
        raise ValueError(f'{path}: no "database" of videos by name; is this an annotation file?')
    return [_read_entry(name, stated) for name, stated in database.items()]


def _refuse(path: str | Path, defects: Iterable[Defect]) -> None:
    for defect in defects:
        raise ValueError(
            f"{path}: video {defect.video}: {defect.detail}; correct it (`bitad annotations check` names every defect)"
        )


def _read_entry(name: str, stated: Any) -> VideoEntry:
    """Read one video of the ``database``, noting what is missing or malformed."""
    defects: list[Defect] = []

    def note(detail: str) -> None:
        defects.append(Defect(name, "unreadable", detail))

    if not isinstance(stated, dict):
        note(f"{reprlib.repr(stated)} is not a video's {{subset, duration, annotations}}")
        stated = {"subset": "", "duration": math.inf, "annotations": []}
    for key in ("subset", "duration", "annotations"):
        if key not in stated:
            note(f'"{key}" is missing')
    subset = stated.get("subset", "")
    if not isinstance(subset, str):
        note(f"subset {reprlib.repr(subset)} is not a name")
    numbers: dict[str, float | None] = {}
    for key in ("duration", "frame", "fps"):
        number = stated.get(key)
        if key in stated and not (_is_number(number) and (round(number) if key == "frame" else number) > 0):
            note(f"{key} {reprlib.repr(number)} is not a positive number")
            number = None
        numbers[key] = number
    rows = stated.get("annotations", [])
    if not isinstance(rows, list):
        note(f"annotations {reprlib.repr(rows)} are not a list")
        rows = []
    sound = []
    for row in rows:
        if detail := _row_defect(row):
            note(detail)
        else:
            sound.append(row)
    duration_s, frames, fps = numbers["duration"], numbers["frame"], numbers["fps"]
    video = AnnotatedVideo(
        name=name,
        subset=str(subset),
        duration_s=math.inf if duration_s is None else float(duration_s),
        segments=np.array([row["segment"] for row in sound], np.float64).reshape(-1, 2),
        labels=tuple(row["label"] for row in sound),
        frames=None if frames is None else round(frames),
        fps=None if fps is None else float(fps),
    )
    in_frames = np.array([row.get(_FRAME_SEGMENT, [math.nan] * 2) for row in sound], np.float64).reshape(-1, 2)
    video = replace(video, contradictions=contradictions(video.clock, video.segments, in_frames))
    return VideoEntry(video, [row.get("label_id") for row in sound], defects)


def _row_defect(row: Any) -> str | None:
    """What keeps one annotation of a video from being read."""
    if not isinstance(row, dict):
        return f"{reprlib.repr(row)} is not an annotation; one is {{segment, label}}"
    for key in ("segment", "label"):
        if key not in row:
            return f'annotation {reprlib.repr(row)} has no "{key}"'
    for key in ("segment", _FRAME_SEGMENT):
        segment = row.get(key, [0, 0])
        if not isinstance(segment, list) or len(segment) != 2 or not all(map(_is_number, segment)):
            return f"{key} {reprlib.repr(segment)} is not [start, end]"
    label, label_id = row["label"], row.get("label_id")
    if not isinstance(label, str):
        return f"label {reprlib.repr(label)} is not a name"
    if label_id is not None and not isinstance(label_id, int):
        return f"label_id {reprlib.repr(label_id)} is not a whole number"
    return None


def _is_number(value: Any) -> bool:
    # Not math.isfinite: a whole number may be too large for a float.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def class_names(
    entries: list[VideoEntry], classes: Sequence[str] | PathLike[str] | None, ignore: Sequence[str]
) -> tuple[tuple[str, ...], list[Defect]]:
    """The class names in order, and where the file's labels contradict them or its ``label_id`` each other."""
    rows = [
        (entry.video.name, label, label_id)
        for entry in entries
        for label, label_id in zip(entry.video.labels, entry.label_ids, strict=True)
    ]
    if classes is not None:
        names = read_classes(classes) if isinstance(classes, (str, PathLike)) else _distinct(classes, "classes")
        known = {*names, *ignore}
        outside = [
            Defect(video, "label outside the classes", f"label {label!r} is not one of the {len(names)} classes")
            for video, label, _ in rows
            if label not in known
        ]
        return names, outside
    # Each pair of a label and its number, with a video that has it: all labels have one number of their own, or none.
    pairs = {(label, label_id): video for video, label, label_id in rows if label not in ignore}
    numbers = {label: -1 if label_id is None else label_id for label, label_id in pairs}
    numbers_of = Counter(label for label, _ in pairs)
    labels_of: Counter[int | None] = Counter(label_id for _, label_id in pairs if label_id is not None)
    clashes = [
        Defect(video, "unreadable", f"label {label!r} has label_id {label_id}, which the file contradicts elsewhere")
        for (label, label_id), video in pairs.items()
        if numbers_of[label] > 1 or (labels_of and labels_of.get(label_id) != 1)
    ]
    return tuple(sorted(numbers, key=lambda label: (numbers[label], label))), clashes


def _frame_rate(video: AnnotatedVideo, path: str | Path) -> float:
    if video.fps is not None:
        return video.fps
    if video.frames is None:
        raise ValueError(
            f"{path}: video {video.name}: ActionFormer's form needs its frame rate; give --video-info or --videos"
        )
    return video.frames / video.duration_s


def _distinct(names: Sequence[str], source: object) -> tuple[str, ...]:
    if not names:
        raise ValueError(f"{source}: no class names; there should be a name a line")
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"{source}: class {name!r} occurs {count} times; name each class once")
    return tuple(names)


def _keep(video: AnnotatedVideo, labels: set[str]) -> AnnotatedVideo:
    """The video with only the segments of these labels."""
    kept = [i for i, label in enumerate(video.labels) if label in labels]
    if len(kept) == len(video.labels):
        return video
    return replace(video, segments=video.segments[kept], labels=tuple(video.labels[i] for i in kept))


def _reversed_ascending(
    segments: NDArray[np.float64], duration_s: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Segments ``[n, 2]`` on the clock that runs from the end, ascending, and which of ``segments`` each one is."""
    mirrored = reverse_seconds(segments, duration_s)
    order = np.lexsort((mirrored[:, 1], mirrored[:, 0]))
    return mirrored[order], order


def _reversed_rows(rows: list[dict[str, Any]], video: AnnotatedVideo, path: str | Path) -> list[dict[str, Any]]:
    """A video's annotations as its file states them, reversed."""
    segments, order = _reversed_ascending(video.segments, video.duration_s)
    reversed_rows = [rows[i] | {"segment": segment} for i, segment in zip(order, segments.tolist(), strict=True)]
    for row in reversed_rows:
        if _FRAME_SEGMENT not in row:
            continue
        if video.frames is not None:
            frames: float = video.frames
        elif video.fps is not None:
            frames = video.duration_s * video.fps
        else:
            raise ValueError(f'{path}: video {video.name}: to reverse "{_FRAME_SEGMENT}", state "frame" or "fps"')
        start, end = row[_FRAME_SEGMENT]
        row[_FRAME_SEGMENT] = [frames - end, frames - start]
    return reversed_rows
