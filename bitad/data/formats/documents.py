"""Readers of annotation files in JSON: ActivityNet's ``database``, mmaction2, BSN, Ego4D's moments, multi-label lists.

Each docstring says where its form is described.
"""

from __future__ import annotations

import math
import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitad.data.annotations import Classes, names_in_list, names_of_numbers
from bitad.data.clocks import Clock, read_clocks, read_subsets, same_length
from bitad.data.formats.database import read_entries, rows_key
from bitad.data.formats.rows import Given, Row, Source, VideoRows, Videos, positive, seconds_of, subset_of_file
from bitad.data.formats.values import described, is_missing, number
from bitad.runtime.files import read_json
from bitad.video.names import Matching, renamed

_BSN_VIDEOS = "video_info_new.csv"
# What is carried over from a video of a database, and from one of its annotations.
_VIDEO_KEYS = {"subset", "duration", "frame", "fps", "annotations", "annotation"}
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
    content = read_json(path)
    entries = read_entries(content, path)
    return Source(
        entries, notes=_notes([stated for stated in content["database"].values() if isinstance(stated, dict)])
    )


def _notes(videos: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What of the videos of a ``database`` is missing or left out."""
    left_out: Counter[str] = Counter()
    unannotated = 0
    for video in videos:
        left_out.update(key for key in video if key not in _VIDEO_KEYS)
        key = rows_key(video)
        unannotated += key is None
        rows = None if key is None else video[key]
        sound = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        left_out.update(f"{key} of annotations" for row in sound for key in row if key not in _ROW_KEYS)
    notes = [f"{count} videos of the file have no list of annotations" for count in [unannotated] if count]
    if left_out:
        notes.append(f"left out, as the written form has no place for them: {', '.join(sorted(left_out))}")
    return tuple(notes)


def read_mmaction2(files: Sequence[Path]) -> Source:
    """mmaction2's ActivityNet files, ``anet_anno_{train,val,test}.json``: videos by name, the file's name the subset.

    Frames a second are ``rfps``, which mmaction2 counted, where a file states it; ``fps`` is the nominal rate, which
    contradicts ``duration_frame`` of ``duration_second``; ``feature_frame``, the frames that mmaction2's
    features cover, is left out.

    Source: https://github.com/open-mmlab/mmaction2, ``tools/data/activitynet/process_annotations.py`` and
    ``mmaction/datasets/activitynet_dataset.py``.
    """
    videos: dict[str, Any] = {}
    for path in files:
        subset = subset_of_file(path, {"train": "training", "val": "validation", "test": "testing"})
        for name, stated in videos_by_name(read_json(path), path).items():
            if name in videos:
                raise ValueError(f"{path}: video {name} is also in another of the files")
            videos[name] = {"subset": subset, **_native(stated)}
    return Source(read_entries({"database": videos}, files[0]))


def read_bsn(files: Sequence[Path], given: Given) -> Source:
    """BSN's ``anet_anno_action.json``, which BMN and G-TAD use too: mmaction2's form, all subsets in one file.

    The subsets are in ``video_info_new.csv`` beside it, or in the list of videos that is given, which must then state
    them; so are frame rates.

    Source: https://github.com/wzmsltw/BSN-boundary-sensitive-network, ``data/activitynet_annotations``.
    """
    (path,) = files
    stated = videos_by_name(read_json(path), path)
    beside = path.parent / _BSN_VIDEOS
    table = given.video_info or (beside if beside.is_file() else None)
    subsets = {} if table is None else renamed(read_subsets(table), stated, table)
    if unlisted := [name for name, video in stated.items() if name not in subsets and "subset" not in video]:
        _refuse_unlisted(unlisted, table, path)
    clocks = {} if table is None else renamed(read_clocks(table), stated, table)
    videos: dict[str, Any] = {}
    for name, video in stated.items():
        rate = {"rfps": clocks[name].fps} if name in clocks else {}
        subset = {"subset": subsets[name]} if name in subsets else {}
        videos[name] = {**subset, **_native({**rate, **video})}
    notes = () if table is None else (f"subsets and frame rates are those of {table}",)
    return Source(read_entries({"database": videos}, path), notes=notes)


def _refuse_unlisted(unlisted: Sequence[str], table: Path | None, path: Path) -> None:
    """Refuses BSN's videos whose subsets neither their file nor the list of videos states."""
    if table is None:
        raise ValueError(f"{path}: it states no subsets; put {_BSN_VIDEOS} beside it, or name that with --video-info")
    if not (subsets := read_subsets(table)):
        raise ValueError(f"{path}: it states no subsets, nor does {table}; name {_BSN_VIDEOS} with --video-info")
    more = f" (and of {len(unlisted) - 1} more)" if len(unlisted) > 1 else ""
    sides = Matching.of(unlisted, subsets).sides()
    raise ValueError(
        f"{table}: no subset of video {unlisted[0]}{more} of {path}; {sides}; name the list of these videos with "
        "--video-info"
    )


def _native(stated: Mapping[str, Any]) -> dict[str, Any]:
    """A video of mmaction2's or BSN's as the native form states it."""
    fps = stated.get("rfps", stated.get("fps"))
    own = {"duration": stated.get("duration_second"), "frame": stated.get("duration_frame"), "fps": fps}
    subset = {"subset": stated["subset"]} if "subset" in stated else {}
    rows = {"annotations": stated["annotations"]} if "annotations" in stated else {}
    return {**subset, **own, **rows}


def read_ego4d_mq(files: Sequence[Path]) -> Source:
    """Ego4D's moments queries, ``moments_{train,val,test_unannotated}.json``: videos -> clips -> annotations -> labels.

    A clip is a video here, named by its ``clip_uid``, and its clock begins at ``video_start_sec``; labels are those
    that are ``primary``, of all annotators. A video's ``split`` is the subset.

    Source: https://ego4d-data.org/docs/data/annotations-schemas and OpenTAD's
    ``tools/prepare_data/ego4d/convert_ego4d_anno.py``, which leaves clips without a primary label out; here they stay.
    """
    videos = Videos()
    secondary = 0
    for path in files:
        for stated in objects(read_json(path), "videos", str(path)):
            of_video = f"{path}: video {reprlib.repr(stated.get('video_uid'))}"
            for clip in objects(stated, "clips", of_video):
                name, subset = clip.get("clip_uid"), stated.get("split")
                where = f"{path.name}: clip {reprlib.repr(name)}"
                video = videos.new(as_name(name), as_name(subset), where)
                with video.noting():
                    secondary += _read_clip(clip, video, where)
                if not isinstance(subset, str):
                    video.note(f"split {reprlib.repr(subset)} is not a name")
    notes = (f"{secondary} labels that are not primary are left out",) if secondary else ()
    return Source(videos.entries(), notes=notes)


def _read_clip(clip: Mapping[str, Any], video: VideoRows, where: str) -> int:
    """Read a clip as a video; the number of its labels that are not primary."""
    annotators = objects(clip, "annotations", where) if clip.get("annotations") is not None else []
    labels = [label for by in annotators for label in objects(by, "labels", where)]
    primary = [label for label in labels if label.get("primary")]
    start = max(_seconds(clip, "video_start_sec", where), 0.0)
    # Times are rounded as OpenTAD's converter rounds them: differences of stated times are off in their last digits.
    duration_s = round(_seconds(clip, "video_end_sec", where) - start, 4)
    if duration_s <= 0:
        raise ValueError(f"{where}: it ends {-duration_s:g} s before its start")
    video.duration_s = duration_s
    for label in primary:
        with video.noting():
            if not isinstance(label.get("label"), str):
                raise ValueError(f"{where}: {reprlib.repr(dict(label))} has no label")
            edges = (_seconds(label, f"video_{edge}_time", where) for edge in ("start", "end"))
            first, last = (round(edge - start, 4) for edge in edges)
            video.rows.append((first, last, label["label"]))
    if "video_start_frame" in clip and "video_end_frame" in clip:
        counted = _seconds(clip, "video_end_frame", where) - max(_seconds(clip, "video_start_frame", where), 0)
        video.frames = int(counted) if counted > 0 else None
    return len(labels) - len(primary)


def as_name(stated: object) -> str:
    """A name; none, "", where something else is stated."""
    return stated if isinstance(stated, str) else ""


def videos_by_name(content: Any, where: object) -> Mapping[str, Mapping[str, Any]]:
    """An object of objects.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(content, dict) or not all(isinstance(value, dict) for value in content.values()):
        raise ValueError(f"{where}: not videos by name: it is {described(content)}")
    return content


def objects(stated: Any, key: str, where: str) -> list[dict[str, Any]]:
    """The list of objects under a key.

    Raises:
        ValueError: there is none.
    """
    found = stated.get(key) if isinstance(stated, dict) else None
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ValueError(f'{where}: no list "{key}" of objects in it: it is {described(stated)}')
    return found


def _seconds(stated: Mapping[str, Any], key: str, where: str) -> float:
    if key not in stated:
        raise ValueError(f'{where}: "{key}" is missing')
    return seconds_of(stated[key], f"{where}: {key}")


# MultiTHUMOS' and Charades'.
_CLASS_LISTS = ("class_list.txt", "Charades_v1_classes.txt")


def read_multilabel(files: Sequence[Path], given: Given) -> Source:
    """Multi-label work's one JSON: ``{"VIDEO": {"subset", "duration", "actions": [[class, start, end], ...]}}``.

    ``multithumos.json``, ``charades.json``, ``smarthome_CS_51.json`` (TSU) and the like. Classes are numbers, or
    names. Numbers are named by the list of classes that is given, or by MultiTHUMOS' ``class_list.txt`` or Charades'
    ``Charades_v1_classes.txt`` beside the file; without a list a class is called by its number.

    Charades' and TSU's numbers count from 0, MultiTHUMOS' from 1 in the original and from 0 in other copies
    (:func:`~bitad.data.annotations.names_of_numbers`). TSU's times are frames in some copies: where a list of
    videos that is given tells so, they are made seconds.

    Sources: https://github.com/piergiaj/super-events-cvpr18, ``data/multithumos.json`` and ``data/charades.json``;
    https://github.com/sstraccialini/ASO-Temba, ``data/multithumos.json`` and ``data/smarthome.json``.
    """
    (path,) = files
    videos = Videos()
    for name, stated in videos_by_name(read_json(path), path).items():
        _read_video(stated, videos.of(name, as_name(stated.get("subset")), path.name))
    table = given.video_info
    clocks = {} if table is None else renamed(read_clocks(table), videos, table)
    notes = _in_seconds(videos, clocks, path)
    classes, numbers, named = _classes(videos, given.classes, path)
    entries = [video.entry(numbers) for video in videos.values()]
    return Source(entries, classes, (*notes, *named))


def _read_video(stated: Mapping[str, Any], video: VideoRows) -> None:
    if not isinstance(stated.get("subset"), str):
        video.note(f"subset {reprlib.repr(stated.get('subset'))} is not a name")
    with video.noting():
        if not is_missing(stated.get("duration")):
            video.duration_s = positive(stated["duration"], "duration")
    actions = stated.get("actions")
    if not isinstance(actions, list):
        video.note(f"actions {reprlib.repr(actions)} are not a list")
        return
    for action in actions:
        with video.noting():
            video.rows.append(_action(action))


def _action(stated: Any) -> Row:
    if not isinstance(stated, list) or len(stated) != 3:
        raise ValueError(f"action {reprlib.repr(stated)} is not [class, start, end]")
    label, start, end = stated
    where = f"action {reprlib.repr(stated)}"
    value = number(label)
    if value is not None and value >= 0 and value == int(value):
        label = str(int(value))  # NumPy's arrays make 12 of a class 12.0
    elif not isinstance(label, str) or not label.strip():
        raise ValueError(f"{where}: class {reprlib.repr(label)} is neither a name nor a whole number from 0 on")
    return seconds_of(start, where), seconds_of(end, where), label


def _classes(
    videos: Videos, given: Classes | None, path: Path
) -> tuple[Classes | None, dict[str, int], tuple[str, ...]]:
    """The classes in order, the numbers of the labels, and a note; numbers are replaced by names where there are."""
    labels = {row[2] for video in videos.values() for row in video.rows}
    if not all(label.isdecimal() for label in labels):
        return (None if given is None else names_in_list(labels, given)), {}, ()
    numbers = {label: int(label) for label in labels}
    beside = [path.parent / name for name in _CLASS_LISTS if (path.parent / name).is_file()]
    source = given if given is not None else next(iter(beside), None)
    if source is None:
        return None, numbers, ("no list of classes: they are called by their numbers; name one with --classes",)
    names = names_of_numbers(set(numbers.values()), source, path)
    for video in videos.values():
        for label in {label for *_, label in video.rows if numbers[label] not in names}:
            video.note(f"class {label} is not one of the {len(names)} of the list of classes, from {min(names)} on")
        video.rows = [(a, b, names[numbers[label]]) for a, b, label in video.rows if numbers[label] in names]
    note = f"classes are named by {source}, from {min(names)} on" if isinstance(source, Path) else ""
    return tuple(names[index] for index in sorted(names)), {}, (note,) if note else ()


def _in_seconds(videos: Videos, clocks: Mapping[str, Clock], path: Path) -> tuple[str, ...]:
    """Make seconds of frames, where the list of videos tells that the times are frames; a note on it."""
    timed = [video for video in videos.values() if math.isfinite(video.duration_s)]
    compared = [(video, clocks[video.name]) for video in timed if video.name in clocks]
    counted = [(video, clock) for video, clock in compared if clock.frames is not None]
    in_frames = all(same_length(video.duration_s, float(clock.frames or 0)) for video, clock in counted)
    in_seconds = all(same_length(video.duration_s, clock.duration_s) for video, clock in compared)
    if counted and in_frames and not in_seconds:
        for video in videos.values():
            if video.name not in clocks or (frames := clocks[video.name].frames) is None:
                raise ValueError(
                    f"{path}: its times count frames, and the list of videos does not tell the frames and duration of "
                    f"{video.name}"
                )
            scale = clocks[video.name].duration_s / frames
            video.duration_s, video.frames = video.duration_s * scale, frames
            video.rows = [(start * scale, end * scale, label) for start, end, label in video.rows]
        return ("times are frames in the file; they are made seconds by the list of videos",)
    whole = all(edge == int(edge) for video in timed for row in video.rows for edge in (video.duration_s, *row[:2]))
    if compared or not whole or not any(video.rows for video in timed):
        return ()
    return ("all times are whole numbers: if they count frames, name the videos' durations and frames: --video-info",)
