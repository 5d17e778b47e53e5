"""ActivityNet's JSON with a ``database`` of videos, which is also BiTAD's native format: read, written, reversed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitad.config.names import AnnotationFormat
from bitad.data.annotations import (
    AnnotatedVideo,
    Annotations,
    require_known_durations,
    require_readable,
    reversed_ascending,
)
from bitad.data.classes import UNDECIDED, Classes
from bitad.data.clocks import require_agreement
from bitad.data.formats.documents import FRAME_SEGMENT, frame_segment, parse_database, rows_key
from bitad.runtime.files import read_json, write_json


def read_annotations(
    path: str | Path,
    *,
    classes: Classes | None = None,
    ignore: Sequence[str] = UNDECIDED,
) -> Annotations:
    """Read ground truth in ActivityNet's format as OpenTAD writes it, or in ActionFormer's; ``.gz`` is decompressed.

    Defective segments are kept. Videos without a duration last ``inf`` seconds.

    Args:
        classes: the class names in order, or the path of a file with a name a line (``category_idx.txt``). By default,
            the file's own labels in the order of their ``label_id``, or by name where the file has none.
        ignore: labels whose segments are left out, unless ``classes`` names them. Training leaves out THUMOS14's
            ``Ambiguous``, and evaluation counts it as a class (``ignore=()``), as in OpenTAD.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not JSON, something is missing or no number, or a label is not one of the classes.
    """
    videos = parse_database(read_json(path), path)
    return Annotations.from_parsed(videos, path, classes=classes, ignore=ignore).only_classes()


def write_annotations(
    annotations: Annotations,
    path: str | Path,
    *,
    format: AnnotationFormat = "native",
) -> None:
    """Write the native format or ActionFormer's; the file is replaced atomically, and ``.gz`` compresses it.

    ``label_id`` keeps the order of the classes; other labels (``Ambiguous``) are numbered after them.

    Raises:
        ValueError: ActionFormer's format needs a video's frame rate, and neither it nor a frame count is known.
    """
    number = {label: index for index, label in enumerate(annotations.labels())}
    database = {}
    for video in annotations.videos.values():
        known = {"frame": video.frames, "fps": video.fps}
        rows: list[dict[str, Any]] = [
            {"segment": segment, "label": label, "label_id": number[label], **video.details_of(i)}
            for i, (segment, label) in enumerate(zip(video.segments.tolist(), video.labels, strict=True))
        ]
        if format == "actionformer":
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


def _frame_rate(video: AnnotatedVideo, path: str | Path) -> float:
    if (rate := video.clock.rate) is None:
        remedy = "give --video-info or --videos that has it"
        if math.isinf(video.duration_s):
            remedy += "; or leave it out with --missing drop"
        raise ValueError(f"{path}: video {video.name}: ActionFormer's format needs its frame rate; {remedy}")
    return rate


def reverse_annotation_file(
    src: str | Path,
    dst: str | Path,
    *,
    allow_clock_mismatch: bool = False,
) -> str | None:
    """Write the annotations of the reversed videos: ``[a, b]`` becomes ``[D - b, D - a]``, in ascending order.

    ActionFormer's ``segment(frames)`` is mirrored in the frame count F, or else in F = D * fps. Everything else is
    unchanged.

    Args:
        allow_clock_mismatch: whether the file may contradict itself about a video's time; the result names these
            videos in one line.
    """
    if Path(src).resolve() == Path(dst).resolve():
        raise ValueError(f"{dst}: the reversed annotations would replace their source; name another file")
    content = read_json(src)
    parsed = parse_database(content, src)
    require_readable(parsed, src)
    faults = {video.name: "; ".join(video.contradictions) for video in parsed if video.contradictions}
    remedy = "correct the annotations, or reverse them as they are with --allow-clock-mismatch"
    warning = require_agreement(faults, len(parsed), src, allowed=allow_clock_mismatch, remedy=remedy)
    require_known_durations([video.name for video in parsed if video.rows and math.isinf(video.duration_s)], src)
    for video in map(AnnotatedVideo.from_parsed, parsed):
        stated = content["database"][video.name]
        if (key := rows_key(stated)) is not None:
            stated[key] = _reversed_rows(stated[key], video, src)
    write_json(content, dst)
    return warning


def _reversed_rows(
    rows: list[dict[str, Any]],
    video: AnnotatedVideo,
    path: str | Path,
) -> list[dict[str, Any]]:
    segments, order = reversed_ascending(video.segments, video.duration_s)
    reversed_rows = [rows[i] | {"segment": segment} for i, segment in zip(order, segments.tolist(), strict=True)]
    for row in reversed_rows:
        if (in_frames := frame_segment(row)) is None:
            continue
        frames = video.frames or (None if video.fps is None else video.duration_s * video.fps)
        if frames is None:
            raise ValueError(f'{path}: video {video.name}: to reverse "{FRAME_SEGMENT}", state "frame" or "fps"')
        start, end = in_frames
        row[FRAME_SEGMENT] = [frames - end, frames - start]
    return reversed_rows
