"""Ground truth: which action happens when, in which video; the files that hold it; its reversal in time.

This module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from bitad.data.annotated import ANY_CLASS as ANY_CLASS
from bitad.data.annotated import UNDECIDED, AnnotatedVideo, Annotations, refuse_without_duration, reversed_ascending
from bitad.data.annotated import Defect as Defect
from bitad.data.annotated import Kind as Kind
from bitad.data.annotation_classes import Classes
from bitad.data.annotation_classes import read_classes as read_classes
from bitad.data.annotation_entries import (
    FRAME_SEGMENT,
    annotations_of_entries,
    read_entries,
    refuse,
    rows_key,
    segment_in_frames,
)
from bitad.data.clock_agreement import require_agreement
from bitad.files import read_json, write_json


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
WrittenForm = Literal["native", "actionformer"]


def write_annotations(annotations: Annotations, path: str | Path, *, form: WrittenForm = "native") -> None:
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
