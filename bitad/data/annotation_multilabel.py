"""The reader of multi-label work's JSON: a list of [class, start, end] a video.

This module does not import torch.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitad.data.annotation_classes import Classes, names_in_list, names_of_numbers
from bitad.data.annotation_documents import as_name, videos_by_name
from bitad.data.annotation_rows import Given, Row, Source, VideoRows, Videos, positive, seconds_of
from bitad.data.clock_agreement import Clock, same_length
from bitad.data.stated import is_missing, number
from bitad.data.video_clocks import read_clocks
from bitad.files import read_json
from bitad.video.names import renamed

# MultiTHUMOS' and Charades'.
_CLASS_LISTS = ("class_list.txt", "Charades_v1_classes.txt")


def read_multilabel(files: Sequence[Path], given: Given) -> Source:
    """Multi-label work's one JSON: ``{"VIDEO": {"subset", "duration", "actions": [[class, start, end], ...]}}``.

    ``multithumos.json``, ``charades.json``, ``smarthome_CS_51.json`` (TSU) and the like. Classes are numbers, or
    names. Numbers are named by the list of classes that is given, or by MultiTHUMOS' ``class_list.txt`` or Charades'
    ``Charades_v1_classes.txt`` beside the file; without a list a class is called by its number.

    Charades' and TSU's numbers count from 0, MultiTHUMOS' from 1 in the original and from 0 in other copies
    (:func:`~bitad.data.annotation_classes.names_of_numbers`). TSU's times are frames in some copies: where a list of
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
