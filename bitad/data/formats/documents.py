"""Readers of annotation files in JSON. Each docstring says where its format is described."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitad.data.classes import Classes, names_in_list, names_of_numbers
from bitad.data.clocks import Clock, contradictions, read_clocks, read_subsets, same_length
from bitad.data.formats.parsing import (
    DETAILS,
    ParsedAnnotations,
    ParsedVideo,
    ParsedVideos,
    ReadOptions,
    Row,
    description_of,
    is_missing,
    number,
    objects_in,
    positive,
    seconds,
    subset_in_name,
    videos_by_name,
)
from bitad.runtime.files import read_json
from bitad.video.names import Matching, renamed

FRAME_SEGMENT = "segment(frames)"

_BSN_VIDEOS = "video_info_new.csv"
# What is read of a video of a database, and of one of its annotations.
_VIDEO_KEYS = {"subset", "duration", "frame", "fps", "annotations", "annotation"}
_ROW_KEYS = {"segment", FRAME_SEGMENT, "label", "label_id", *DETAILS}
# MultiTHUMOS' and Charades'.
_CLASS_LISTS = ("class_list.txt", "Charades_v1_classes.txt")


def read_database(files: Sequence[Path], _: ReadOptions) -> ParsedAnnotations:
    """The native format, ActionFormer's, ActivityNet's, HACS's and FineAction's.

    ``{"database": {"VIDEO": {"subset", "duration", "annotations": [{"segment": [start, end], "label"}]}}}``.

    Sources: http://activity-net.org/download.html; https://github.com/hangzhaomit/HACS-dataset;
    https://github.com/Richard-61/FineAction; ActionFormer's ``libs/datasets/thumos14.py``.
    """
    (path,) = files
    content = read_json(path)
    videos = parse_database(content, path)
    left_out: set[str] = set()
    unannotated = 0
    for stated in objects_in(content["database"]):
        left_out |= stated.keys() - _VIDEO_KEYS
        key = rows_key(stated)
        unannotated += key is None
        for row in objects_in(stated.get(key or "annotations")):
            left_out.update(f"{name} of annotations" for name in row.keys() - _ROW_KEYS)
    notes = [f"{unannotated} videos of the file have no list of annotations"] if unannotated else []
    if left_out:
        notes.append(f"left out, as the native format lacks them: {', '.join(sorted(left_out))}")
    return ParsedAnnotations(videos, notes=tuple(notes))


def is_database(content: Any) -> bool:
    """Whether JSON has a ``database`` of videos."""
    return isinstance(content, dict) and isinstance(content.get("database"), dict)


def has_frame_segments(content: Any) -> bool:
    """Whether the segments of a ``database`` are given in frames too, as only ActionFormer's are."""
    rows = (objects_in(video.get("annotations"))[:1] for video in objects_in(content["database"]))
    return any(FRAME_SEGMENT in row for first in rows for row in first)


def parse_database(content: Any, path: str | Path) -> list[ParsedVideo]:
    """The videos of an annotation file's JSON, faults included; raises a ValueError if it has no ``database``.

    Numbers may be strings, as HACS' durations are. Videos of a test subset may all be without ``annotations``.
    """
    if not is_database(content):
        remedy = "`bitad annotations convert` makes one of other formats"
        raise ValueError(f'{path}: no "database" of videos by name: it is {description_of(content)}; {remedy}')
    database = content["database"]
    annotated = {str(video.get("subset")) for video in objects_in(database) if rows_key(video) is not None}
    return [_parse_video(name, stated, annotated) for name, stated in database.items()]


def rows_key(stated: Mapping[str, Any]) -> str | None:
    """The key of a video's list of annotations, if it has one; COIN's file calls it ``annotation``."""
    for key in ("annotations", "annotation"):
        if stated.get(key) is not None:
            return key
    return None


def _parse_video(name: str, stated: Any, annotated: set[str]) -> ParsedVideo:
    video = ParsedVideo(name, "")
    if not isinstance(stated, dict):
        video.faults.append(f"{reprlib.repr(stated)} is not a video's {{subset, duration, annotations}}")
        return video
    subset = stated.get("subset")
    if isinstance(subset, str):
        video.subset = subset
    else:
        fault = '"subset" is missing' if subset is None else f"subset {reprlib.repr(subset)} is not a name"
        video.faults.append(fault)
    numbers: dict[str, float] = {}
    for what in ("duration", "frame", "fps"):
        with video.collecting():
            if not is_missing(stated.get(what)):
                numbers[what] = positive(stated[what], what, is_count=what == "frame")
    frames = numbers.get("frame")
    video.fps = numbers.get("fps")
    video.frames = None if frames is None else round(frames)
    if "duration" in numbers:
        video.duration_s = numbers["duration"]
    elif frames is not None and video.fps is not None:
        video.duration_s = frames / video.fps
    key = rows_key(stated)
    rows: Any = [] if key is None else stated[key]
    if key is None and ("test" not in video.subset.lower() or video.subset in annotated):
        video.faults.append('"annotations" is missing')
    if not isinstance(rows, list):
        video.faults.append(f"annotations {reprlib.repr(rows)} are not a list")
        rows = []
    in_frames = []
    for row in rows:
        with video.collecting():
            parsed = _parse_row(row)
            in_frames.append(frame_segment(row) or (math.nan, math.nan))
            video.rows.append(parsed)
    clock = Clock(video.duration_s, video.frames, video.fps)
    video.contradictions = contradictions(clock, zip([row[:2] for row in video.rows], in_frames, strict=True))
    return video


def _parse_row(row: Any) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{reprlib.repr(row)} is not an annotation; one is {{segment, label}}")
    start, end = parse_segment(row.get("segment"), "segment")
    label = row.get("label")
    label_id = row.get("label_id")
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"label {reprlib.repr(label)} is not a name")
    if label_id is not None and type(label_id) is not int:
        raise ValueError(f"label_id {reprlib.repr(label_id)} is not an integer")
    details = {key: float(value) for key in DETAILS if (value := number(row.get(key))) is not None}
    return Row(start, end, label, label_id, details or None)


def frame_segment(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """Start and end in frames, as in ActionFormer's annotations; None where they are empty."""
    stated = row.get(FRAME_SEGMENT)
    if is_missing(stated) or (isinstance(stated, list) and all(map(is_missing, stated))):
        return None
    return parse_segment(stated, FRAME_SEGMENT)


def parse_segment(stated: Any, key: str) -> tuple[float, float]:
    """Start and end of a list of two numbers. Raises a ValueError for anything else."""
    edges = [number(edge) for edge in stated] if isinstance(stated, list) else []
    if len(edges) != 2 or edges[0] is None or edges[1] is None:
        raise ValueError(f"{key} {reprlib.repr(stated)} is not [start, end]")
    return float(edges[0]), float(edges[1])


def read_mmaction2(files: Sequence[Path], _: ReadOptions) -> ParsedAnnotations:
    """mmaction2's ``anet_anno_{train,val,test}.json``: videos by name.

    Source: https://github.com/open-mmlab/mmaction2, ``tools/data/activitynet/process_annotations.py``.
    """
    videos: dict[str, Any] = {}
    for path in files:
        subset = subset_in_name(path, {"train": "training", "val": "validation", "test": "testing"})
        for name, stated in videos_by_name(read_json(path), path).items():
            if name in videos:
                raise ValueError(f"{path}: video {name} is also in another of the files")
            videos[name] = {"subset": subset, **_as_native(stated)}
    return ParsedAnnotations(parse_database({"database": videos}, files[0]))


def read_bsn(files: Sequence[Path], options: ReadOptions) -> ParsedAnnotations:
    """BSN's ``anet_anno_action.json``: mmaction2's format; subsets and frame rates are in ``video_info_new.csv``.

    Source: https://github.com/wzmsltw/BSN-boundary-sensitive-network, ``data/activitynet_annotations``.
    """
    (path,) = files
    stated = videos_by_name(read_json(path), path)
    beside = path.parent / _BSN_VIDEOS
    table = options.video_info or (beside if beside.is_file() else None)
    listed = {} if table is None else read_subsets(table)
    subsets = renamed(listed, stated, table)
    if unlisted := [name for name, video in stated.items() if name not in subsets and "subset" not in video]:
        more = f" (and of {len(unlisted) - 1} more)" if len(unlisted) > 1 else ""
        sides = Matching.of(unlisted, listed).sides()
        remedy = f"name the list of these videos, such as {_BSN_VIDEOS}, with --video-info"
        raise ValueError(f"{table or path}: no subset of video {unlisted[0]}{more}; {sides}; {remedy}")
    clocks = {} if table is None else renamed(read_clocks(table), stated, table)
    videos: dict[str, Any] = {}
    for name, video in stated.items():
        rate = {"rfps": clocks[name].fps} if name in clocks else {}
        subset = {"subset": subsets[name]} if name in subsets else {}
        videos[name] = _as_native({**rate, **subset, **video})
    notes = () if table is None else (f"subsets and frame rates are those of {table}",)
    return ParsedAnnotations(parse_database({"database": videos}, path), notes=notes)


def _as_native(stated: Mapping[str, Any]) -> dict[str, Any]:
    native = {
        "duration": stated.get("duration_second"),
        "frame": stated.get("duration_frame"),
        "fps": stated.get("rfps", stated.get("fps")),  # as counted; ``fps`` is nominal, and contradicts the frames
    }
    return native | {key: stated[key] for key in ("subset", "annotations") if key in stated}


def read_ego4d_mq(files: Sequence[Path], _: ReadOptions) -> ParsedAnnotations:
    """Ego4D's moments queries: videos -> clips -> annotations -> labels. A clip is a video here, and starts at 0 s.

    Sources: https://ego4d-data.org/docs/data/annotations-schemas; OpenTAD's
    ``tools/prepare_data/ego4d/convert_ego4d_anno.py``, which leaves out clips without a primary label.
    """
    videos = ParsedVideos()
    secondary = 0
    for path in files:
        for stated in _object_list(read_json(path), "videos", str(path)):
            subset = stated.get("split")
            for clip in _object_list(stated, "clips", f"{path}: video {reprlib.repr(stated.get('video_uid'))}"):
                name = clip.get("clip_uid")
                where = f"{path.name}: clip {reprlib.repr(name)}"
                video = videos.new(_name_or_empty(name), _name_or_empty(subset), where)
                with video.collecting():
                    secondary += _read_clip(clip, video, where)
                if not isinstance(subset, str):
                    video.faults.append(f"split {reprlib.repr(subset)} is not a name")
    notes = (f"{secondary} labels that are not primary are left out",) if secondary else ()
    return ParsedAnnotations(videos.ordered(), notes=notes)


def _read_clip(clip: Mapping[str, Any], video: ParsedVideo, where: str) -> int:
    """Read a clip as a video; return the number of its labels that are not primary."""
    annotators = []
    if clip.get("annotations") is not None:
        annotators = _object_list(clip, "annotations", where)
    labels = [label for by in annotators for label in _object_list(by, "labels", where)]
    primary = [label for label in labels if label.get("primary")]
    start = max(_seconds_at(clip, "video_start_sec", where), 0.0)
    # Times are rounded as in OpenTAD: differences of stated times are off in their last digits.
    duration_s = round(_seconds_at(clip, "video_end_sec", where) - start, 4)
    if duration_s <= 0:
        raise ValueError(f"{where}: it ends {-duration_s:g} s before its start")
    video.duration_s = duration_s
    for label in primary:
        with video.collecting():
            if not isinstance(label.get("label"), str):
                raise ValueError(f"{where}: {reprlib.repr(dict(label))} has no label")
            edges = (_seconds_at(label, f"video_{edge}_time", where) for edge in ("start", "end"))
            first, last = (round(edge - start, 4) for edge in edges)
            video.rows.append(Row(first, last, label["label"]))
    if "video_start_frame" in clip and "video_end_frame" in clip:
        first_frame = max(_seconds_at(clip, "video_start_frame", where), 0)
        counted = int(_seconds_at(clip, "video_end_frame", where) - first_frame)
        video.frames = counted if counted > 0 else None
    return len(labels) - len(primary)


def read_multilabel(files: Sequence[Path], options: ReadOptions) -> ParsedAnnotations:
    """Multi-label work's one JSON: ``{"VIDEO": {"subset", "duration", "actions": [[class, start, end], ...]}}``.

    Classes are names, or numbers of the given list of classes, or of one beside the file. TSU's times are frames in
    some copies: they are converted if the given list of videos shows that.

    Sources: https://github.com/piergiaj/super-events-cvpr18 and https://github.com/sstraccialini/ASO-Temba, ``data``.
    """
    (path,) = files
    stated = videos_by_name(read_json(path), path)
    database = {name: _actions_as_native(video) for name, video in stated.items()}
    videos = parse_database({"database": database}, path)
    for video in videos:
        video.rows.sort(key=lambda row: row[:3])
        if not video.name:
            video.faults.append(f"{path.name}: its video has no name")
    table = options.video_info
    clocks = {} if table is None else renamed(read_clocks(table), database, table)
    notes = _convert_frames(videos, clocks, path)
    classes, more = _name_classes(videos, options.classes, path)
    return ParsedAnnotations(videos, classes, (*notes, *more))


def _actions_as_native(stated: Mapping[str, Any]) -> dict[str, Any]:
    actions = stated.get("actions")
    rows: Any = f"actions {reprlib.repr(actions)}"  # a fault of the video
    if isinstance(actions, list):
        rows = [_action_as_native(action) for action in actions]
    return {"subset": stated.get("subset"), "duration": stated.get("duration"), "annotations": rows}


def _action_as_native(stated: Any) -> Any:
    if not isinstance(stated, list) or len(stated) != 3:
        return f"action {reprlib.repr(stated)}"  # a fault of the video
    label, start, end = stated
    value = number(label)
    if value is not None and value >= 0 and value == int(value):
        label = str(int(value))  # NumPy's arrays make 12 of a class 12.0
    return {"segment": [start, end], "label": label}


def _name_classes(
    videos: Sequence[ParsedVideo], given: Classes | None, path: Path
) -> tuple[Classes | None, tuple[str, ...]]:
    """Replace class numbers by names if there is a list of classes; the classes in order, and notes."""
    labels = {row.label for video in videos for row in video.rows}
    if not all(label.isdecimal() for label in labels):
        return (None if given is None else names_in_list(labels, given)), ()
    source = given
    for name in _CLASS_LISTS:
        if source is None and (path.parent / name).is_file():
            source = path.parent / name
    if source is None:
        for video in videos:
            video.rows = [row._replace(label_id=int(row.label)) for row in video.rows]
        return None, ("no list of classes: they are called by their numbers; name one with --classes",)
    names = names_of_numbers({int(label) for label in labels}, source, path)
    for video in videos:
        listed = f"the {len(names)} of the list of classes, from {min(names)} on"
        for label in {row.label for row in video.rows if int(row.label) not in names}:
            video.faults.append(f"class {label} is not one of {listed}")
        rows = [row for row in video.rows if int(row.label) in names]
        video.rows = [row._replace(label=names[int(row.label)]) for row in rows]
    classes = tuple(names[index] for index in sorted(names))
    if not isinstance(source, Path):
        return classes, ()
    return classes, (f"classes are named by {source}, from {min(names)} on",)


def _convert_frames(
    videos: Sequence[ParsedVideo],
    clocks: Mapping[str, Clock],
    path: Path,
) -> tuple[str, ...]:
    """Convert times to seconds if the list of videos shows that they are frames."""
    timed = [video for video in videos if math.isfinite(video.duration_s)]
    compared = [(video, clocks[video.name]) for video in timed if video.name in clocks]
    counted = [(video, clock) for video, clock in compared if clock.frames is not None]
    in_frames = all(same_length(video.duration_s, float(clock.frames or 0)) for video, clock in counted)
    in_seconds = all(same_length(video.duration_s, clock.duration_s) for video, clock in compared)
    if counted and in_frames and not in_seconds:
        for video in videos:
            if video.name not in clocks or (frames := clocks[video.name].frames) is None:
                raise ValueError(f"{path}: its times count frames; list the frames and duration of {video.name}")
            scale = clocks[video.name].duration_s / frames
            video.duration_s = video.duration_s * scale
            video.frames = frames
            video.rows = [Row(row.start * scale, row.end * scale, row.label) for row in video.rows]
        return ("times are frames in the file, converted to seconds by the list of videos",)
    are_integers = all(
        edge == int(edge) for video in timed for row in video.rows for edge in (video.duration_s, *row[:2])
    )
    if compared or not are_integers or not any(video.rows for video in timed):
        return ()
    return (
        "all times are integers: if they count frames, name the videos' durations and frames with --video-info",
    )


def _name_or_empty(stated: object) -> str:
    return stated if isinstance(stated, str) else ""


def _object_list(stated: Any, key: str, where: str) -> list[dict[str, Any]]:
    found = stated.get(key) if isinstance(stated, dict) else None
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ValueError(f'{where}: no list "{key}" of objects in it: it is {description_of(stated)}')
    return found


def _seconds_at(stated: Mapping[str, Any], key: str, where: str) -> float:
    if key not in stated:
        raise ValueError(f'{where}: "{key}" is missing')
    return seconds(stated[key], f"{where}: {key}")
