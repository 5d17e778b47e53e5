"""Readers of annotation files that are JSON: everything with a ``database``, mmaction2's, Ego4D's moments.

Each docstring says where its form is described. This module does not import torch.
"""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitad.data.annotation_rows import (
    Row,
    Source,
    annotations_of_videos,
    seconds_of,
    subset_of_file,
    video_of_rows,
)
from bitad.data.annotations import AnnotatedVideo, annotations_of
from bitad.files import read_json

# What is carried over from a video of a database, and from one of its annotations.
_VIDEO_KEYS = {"subset", "duration", "frame", "fps", "annotations"}
_ROW_KEYS = {"segment", "segment(frames)", "label", "label_id"}


def read_database(files: Sequence[Path]) -> Source:
    """A JSON with a ``database`` of videos: the native form, ActionFormer's, ActivityNet's, HACS's and FineAction's.

    ActivityNet 1.3, HACS Segments and FineAction share one form: ``{"database": {"VIDEO": {"subset", "duration",
    "annotations": [{"segment": [start, end], "label"}]}}}``. HACS states durations as strings. OpenTAD's files of
    EPIC-Kitchens and Ego4D have test videos without ``annotations``: they have no segment here.

    Sources: http://activity-net.org/download.html; https://github.com/hangzhaomit/HACS-dataset (readme);
    https://github.com/Richard-61/FineAction (the file itself was not at hand: OpenTAD reads it as ActivityNet's);
    OpenTAD's ``opentad/datasets``; ActionFormer's ``libs/datasets/thumos14.py``.
    """
    (path,) = files
    content, notes = _native(read_json(path), path)
    return Source(annotations_of(content, path), notes)


def _native(content: Any, path: Path) -> tuple[Any, tuple[str, ...]]:
    """The content of a JSON with a ``database``, in the native form, and what that changed or leaves out."""
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict):
        return content, ()
    left_out: Counter[str] = Counter()
    unannotated = 0
    videos: dict[str, Any] = {}
    for name, stated in database.items():
        if not isinstance(stated, dict):
            videos[name] = stated
            continue
        video = dict(stated)
        if isinstance(video.get("duration"), str):
            video["duration"] = seconds_of(video["duration"], f"{path}: video {name}: duration")
        if "annotations" not in video and "subset" in video:
            video["annotations"] = []
            unannotated += 1
        left_out.update(key for key in video if key not in _VIDEO_KEYS)
        rows = video.get("annotations")
        sound = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        left_out.update(f"{key} of annotations" for row in sound for key in row if key not in _ROW_KEYS)
        videos[name] = video
    notes = [f"{count} videos of the file have no list of annotations" for count in [unannotated] if count]
    if left_out:
        notes.append(f"left out, for no form written here holds it: {', '.join(sorted(left_out))}")
    return {**content, "database": videos}, tuple(notes)


def read_mmaction2(files: Sequence[Path]) -> Source:
    """mmaction2's ``anet_anno_{train,val,test}.json``: ``{"VIDEO": {"duration_second", "duration_frame", "annotations":
    [{"segment", "label"}], "feature_frame", "fps", "rfps"}}``.

    The name of a file tells the subset ("training", "validation", "testing"). Frames a second are ``rfps``, those
    counted, where stated. Segments are seconds of ``duration_second``; ``feature_frame``, the frames that mmaction2's
    features cover, is left out.

    Source: https://github.com/open-mmlab/mmaction2, ``tools/data/activitynet/process_annotations.py`` and
    ``mmaction/datasets/activitynet_dataset.py``.
    """
    videos: dict[str, AnnotatedVideo] = {}
    for path in files:
        subset = subset_of_file(path, {"train": "training", "val": "validation", "test": "testing"})
        for name, stated in _items(read_json(path), path).items():
            if name in videos:
                raise ValueError(f"{path}: video {name} is also in another of the files")
            frames = stated.get("duration_frame")
            native = {
                "subset": subset,
                "duration": stated.get("duration_second"),
                "annotations": stated.get("annotations", []),
                **({} if frames is None else {"frame": frames}),
                **({"fps": stated.get("rfps", stated.get("fps"))} if {"rfps", "fps"} & stated.keys() else {}),
            }
            videos |= annotations_of({"database": {name: native}}, path).videos
    return Source(annotations_of_videos(videos))


def read_ego4d_mq(files: Sequence[Path]) -> Source:
    """Ego4D's moments queries, ``moments_{train,val,test_unannotated}.json``: videos -> clips -> annotations -> labels.

    A clip is a video here, named by its ``clip_uid``, and its clock begins at ``video_start_sec``; labels are those
    that are ``primary``, of all annotators. A video's ``split`` is the subset.

    Source: https://ego4d-data.org/docs/data/annotations-schemas and OpenTAD's
    ``tools/prepare_data/ego4d/convert_ego4d_anno.py``, which leaves clips without a primary label out; here they stay.
    """
    videos: dict[str, AnnotatedVideo] = {}
    secondary = 0
    for path in files:
        for stated in _list(read_json(path), "videos", str(path)):
            for clip in _list(stated, "clips", f"{path}: video {stated.get('video_uid')}"):
                name = str(clip.get("clip_uid"))
                where = f"{path}: clip {name}"
                if name in videos:
                    raise ValueError(f"{where} occurs twice")
                annotators = _list(clip, "annotations", where) if clip.get("annotations") is not None else []
                labels = [label for by in annotators for label in _list(by, "labels", where)]
                primary = [label for label in labels if label.get("primary")]
                secondary += len(labels) - len(primary)
                videos[name] = _ego4d_clip(name, str(stated.get("split")), clip, primary, where)
    notes = (f"{secondary} labels that are not primary are left out",) if secondary else ()
    return Source(annotations_of_videos(videos), notes)


def _ego4d_clip(
    name: str, subset: str, clip: Mapping[str, Any], labels: Sequence[Mapping[str, Any]], where: str
) -> AnnotatedVideo:
    start = max(_seconds(clip, "video_start_sec", where), 0.0)
    # Times are rounded as OpenTAD's converter rounds them: differences of stated times are off in their last digits.
    duration_s = round(_seconds(clip, "video_end_sec", where) - start, 4)
    if duration_s <= 0:
        raise ValueError(f"{where}: it ends {-duration_s:g} s before its start")
    rows: list[Row] = []
    for label in labels:
        if not isinstance(label.get("label"), str):
            raise ValueError(f"{where}: {reprlib.repr(dict(label))} has no label")
        first, last = (round(_seconds(label, f"video_{edge}_time", where) - start, 4) for edge in ("start", "end"))
        rows.append((first, last, label["label"]))
    frames = None
    if "video_start_frame" in clip and "video_end_frame" in clip:
        counted = _seconds(clip, "video_end_frame", where) - max(_seconds(clip, "video_start_frame", where), 0)
        frames = int(counted) if counted > 0 else None
    return video_of_rows(name, subset, rows, duration_s=duration_s, frames=frames)


def _items(content: Any, where: object) -> Mapping[str, Mapping[str, Any]]:
    if not isinstance(content, dict) or not all(isinstance(value, dict) for value in content.values()):
        raise ValueError(f"{where}: not videos by name")
    return content


def _list(stated: Any, key: str, where: str) -> list[dict[str, Any]]:
    """A list of objects, or a ValueError that says what is there instead."""
    found = stated.get(key) if isinstance(stated, dict) else None
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ValueError(f'{where}: no list "{key}"')
    return found


def _seconds(stated: Mapping[str, Any], key: str, where: str) -> float:
    if key not in stated:
        raise ValueError(f'{where}: "{key}" is missing')
    return seconds_of(stated[key], f"{where}: {key}")
