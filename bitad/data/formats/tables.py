"""Readers of annotation files that are text or tables. Each docstring says where its format is described."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bitad.data.classes import UNDECIDED
from bitad.data.clocks import read_clocks
from bitad.data.formats.parsing import (
    ParsedAnnotations,
    ParsedVideo,
    ParsedVideos,
    ReadOptions,
    Row,
    TextHead,
    line_segment,
    positive,
    read_lines,
    read_table,
    seconds,
    subset_in_name,
)
from bitad.data.formats.parsing import number as as_number
from bitad.video.names import without_suffix

# A file of MultiTHUMOS that lists its classes, "number name" a line.
_CLASS_LIST = "class_list.txt"
_EPIC_VIDEOS = "EPIC_100_video_info.csv"
_CHARADES_CLASSES = "Charades_v1_classes.txt"
# fmt: off
_THUMOS14 = (
    "BaseballPitch", "BasketballDunk", "Billiards", "CleanAndJerk", "CliffDiving", "CricketBowling", "CricketShot",
    "Diving", "FrisbeeCatch", "GolfSwing", "HammerThrow", "HighJump", "JavelinThrow", "LongJump", "PoleVault",
    "Shotput", "SoccerPenalty", "TennisSwing", "ThrowDiscus", "VolleyballSpiking",
)
# fmt: on


def read_thumos14(files: Sequence[Path], _: ReadOptions) -> ParsedAnnotations:
    """THUMOS14's official text files: ``CLASS_val.txt`` and ``CLASS_test.txt``, "video start end" in seconds a line.

    Source: the readme of TH14_Temporal_Annotations_Test (http://crcv.ucf.edu/THUMOS14/). Subsets are called as in
    OpenTAD's ``thumos_14_anno.json``: one trains on the official validation set.
    """

    def label_and_subset(path: Path, _: str) -> tuple[str, str]:
        label, _, part = path.stem.rpartition("_")
        subset = {"val": "training", "test": "validation"}.get(part)
        if subset is None or names.count(path.name) > 1:
            raise ValueError(f"{path}: its name should be CLASS_val.txt or CLASS_test.txt, and no other file's")
        return label, subset

    names = [path.name for path in files]
    return ParsedAnnotations(_read_class_files(files, label_and_subset))


def is_thumos_line(head: Any) -> bool:
    """Whether a text begins with a line of THUMOS14's or MultiTHUMOS'."""
    return isinstance(head, TextHead) and len(head.fields) == 3 and head.fields[0].startswith("video_")


def read_multithumos(files: Sequence[Path], _: ReadOptions) -> ParsedAnnotations:
    """MultiTHUMOS: ``CLASS.txt``, lines as in THUMOS14's; ``class_list.txt``, "number name" a line, orders the classes.

    Source: the readme at http://ai.stanford.edu/~syyeung/everymoment.html.
    """

    def label_and_subset(path: Path, video: str) -> tuple[str, str]:
        subset = _thumos_subset(video)
        if subset is None:
            raise ValueError(f"{path}: video {video}: its name should begin with video_validation_ or video_test_")
        return path.stem, subset

    of_classes = [
        path for path in files if path.name != _CLASS_LIST and not path.stem.lower().startswith("readme")
    ]
    listed = [path for path in files if path.name == _CLASS_LIST]
    classes = tuple(fields[-1] for path in listed for _, fields in read_lines(path))
    return ParsedAnnotations(_read_class_files(of_classes, label_and_subset), classes or None)


def _read_class_files(
    files: Sequence[Path], label_and_subset: Callable[[Path, str], tuple[str, str]]
) -> list[ParsedVideo]:
    videos = ParsedVideos()
    for path in files:
        for line, fields in read_lines(path):
            where = f"{path.name}:{line}"
            label, subset = label_and_subset(path, fields[0])
            video = videos.of(fields[0], subset, where)
            with video.collecting():
                video.rows.append(Row(*line_segment(fields, where), label))
    return sorted(videos.ordered(), key=lambda video: (video.subset, video.name))


def read_charades(files: Sequence[Path], _: ReadOptions) -> ParsedAnnotations:
    """Charades: a row a video with ``id``, ``length`` in seconds and ``actions``, "c092 11.90 21.20;c147 0 12.6".

    Source: https://prior.allenai.org/projects/data/charades/README.txt
    """
    names, notes = _read_class_names(files[0].parent / _CHARADES_CLASSES)
    videos = ParsedVideos()
    for path, where, row in _rows(files, ("id", "actions", "length")):
        video = videos.new(row["id"], subset_in_name(path, {"train": "training", "test": "testing"}), where)
        for action in row["actions"].split(";"):
            with video.collecting():
                video.rows += [_charades_row(action, names, where)] if action.strip() else []
        with video.collecting():
            video.duration_s = positive(row["length"], f"{where}: video {video.name}: length")
    return ParsedAnnotations(videos.ordered(), tuple(names.values()) or None, notes)


def _charades_row(action: str, names: dict[str, str], where: str) -> Row:
    fields = action.split()
    if len(fields) != 3:
        raise ValueError(f"{where}: action {action.strip()!r} is not 'class start end'")
    label, start, end = fields
    if names and label not in names:
        raise ValueError(f"{where}: class {label!r} is not in {_CHARADES_CLASSES}")
    return Row(seconds(start, where), seconds(end, where), names.get(label, label))


def read_gtad(files: Sequence[Path], _: ReadOptions) -> ParsedAnnotations:
    """G-TAD's and AFSD's tables: a row a segment with ``video``, ``type``, ``start``, ``end`` in seconds.

    Sources: https://github.com/frostinassiky/gtad, ``data/thumos_annotations``;
    https://github.com/TencentYoutuResearch/ActionDetection-AFSD, ``thumos_annotations``.
    """
    subsets = [path.name.lower().partition("_annotation")[0] for path in files]
    if len(set(subsets)) < len(files):
        names = " and ".join(path.name for path in files)
        raise ValueError(f"{files[0].parent}: several of {names} hold the same videos; name one of them")

    def label_of(row: dict[str, str], where: str, _: ParsedVideo) -> str:
        if not row["type"]:
            raise ValueError(f"{where}: the type, which is the class, is empty")
        return row["type"]

    return ParsedAnnotations(_read_segments(files, ("video", "start", "end", "type"), label_of))


def read_thumos14_groundtruth(files: Sequence[Path], _: ReadOptions) -> ParsedAnnotations:
    """``thumos14_test_groundtruth.csv`` of DAPs, BSN and G-TAD: a row a segment, with its video's duration and frames.

    ``label-idx`` is the index of the class among THUMOS14's twenty in alphabetical order, -1 ``Ambiguous``.

    Source: https://github.com/frostinassiky/gtad, ``data/thumos_annotations``.
    """
    names = (*_THUMOS14, *UNDECIDED)  # -1 is the last

    def label_of(row: dict[str, str], where: str, video: ParsedVideo) -> str:
        duration_s = positive(row["video-duration"], f"{where}: video {video.name}: video-duration")
        if math.isfinite(video.duration_s) and video.duration_s != duration_s:
            raise ValueError(f"{where}: it lasts {duration_s:g} s here, {video.duration_s:g} s in an earlier row")
        video.duration_s = duration_s
        if row.get("video-frames"):
            video.frames = max(1, round(positive(row["video-frames"], f"{where}: video-frames")))
        if row.get("frame-rate"):
            video.fps = positive(row["frame-rate"], f"{where}: frame-rate")
        number = row["label-idx"].removesuffix(".0")
        if not re.fullmatch(r"-1|1?\d", number):
            raise ValueError(f"{where}: label-idx {number!r} is not one of -1 to 19")
        return names[int(number)]

    columns = ("video-name", "t-init", "t-end", "video-duration", "label-idx")
    return ParsedAnnotations(_read_segments(files, columns, label_of), _THUMOS14)


def _read_segments(
    files: Sequence[Path], columns: Sequence[str], label_of: Callable[[dict[str, str], str, ParsedVideo], str]
) -> list[ParsedVideo]:
    """The videos of tables with a row a segment; the first columns are the video, start and end."""
    videos = ParsedVideos()
    for path, where, row in _rows(files, columns):
        name, start, end = (row[column] for column in columns[:3])
        subsets = {"train": "training", "val": "validation", "test": "testing"}
        video = videos.of(name, _thumos_subset(name) or subset_in_name(path, subsets), where)
        with video.collecting():
            label = label_of(row, where, video)
            video.rows.append(Row(seconds(start, where), seconds(end, where), label))
    return videos.ordered()


def _thumos_subset(video: str) -> str | None:
    """The subset of a THUMOS14 video, as OpenTAD calls it: one trains on the official validation set."""
    if video.startswith("video_validation_"):
        return "training"
    return "validation" if video.startswith("video_test_") else None


def read_own_table(files: Sequence[Path], _: ReadOptions) -> ParsedAnnotations:
    """Your own table: a row a segment with ``video``, ``start``, ``end``, ``label``.

    If you like, also ``subset`` and ``duration``, the seconds of the video.

    Times are seconds ("75.5") or clock times ("1:15.5", "0:01:15.5"). ``video`` is the name of a file, with or without
    its extension and its folder. A row with a video only lists a video without segments. Nothing counts frames.
    """
    videos = ParsedVideos()
    for _path, where, row in _rows(files, ("video", "start", "end", "label")):
        name = without_suffix(row["video"].strip().replace("\\", "/").rpartition("/")[2])
        video = videos.of(name, row.get("subset", "").strip() or "training", where)
        with video.collecting():
            if row.get("duration", "").strip():
                video.duration_s = positive(row["duration"], f"{where}: duration")
        if not any(row[column].strip() for column in ("start", "end", "label")):
            continue
        with video.collecting():
            if not row["label"].strip():
                raise ValueError(f"{where}: the label is empty")
            start, end = (_time(row[edge].strip(), f"{where}: {edge}") for edge in ("start", "end"))
            video.rows.append(Row(start, end, row["label"].strip()))
    return ParsedAnnotations(videos.ordered())


def _time(text: str, where: str) -> float:
    """Seconds of "75.5", "1:15.5" or "0:01:15.5"."""
    *larger, last = text.split(":")
    if not larger:
        return seconds(text, where)
    whole = [int(part) if part.isdecimal() else -1 for part in larger]
    # A rounded time may end in 60.00.
    rest = as_number(last)
    if len(whole) > 2 or min(whole) < 0 or max(whole[1:], default=0) > 59 or rest is None or not 0 <= rest <= 60:
        raise ValueError(f"{where}: {text!r} is not a time; write seconds (75.5) or minutes and seconds (1:15.5)")
    minutes = whole[-1] + (60 * whole[0] if len(whole) == 2 else 0)
    return round(60 * minutes + float(rest), 6)


def read_epic_kitchens(files: Sequence[Path], _: ReadOptions, *, part: str) -> ParsedAnnotations:
    """EPIC-Kitchens-100: a row a segment with ``video_id``, ``start_timestamp``, ``stop_timestamp`` ("00:01:02.34"),
    and ``verb_class`` and ``noun_class``, of which ``part`` chooses one. Rows of the test set have no classes.

    Source: https://github.com/epic-kitchens/epic-kitchens-100-annotations
    """
    folder = files[0].parent
    names, notes = _read_class_names(folder / f"EPIC_100_{part}_classes.csv")
    videos = ParsedVideos()
    unlabelled = 0
    for path, where, row in _rows(files, ("video_id", "start_timestamp", "stop_timestamp")):
        subset = subset_in_name(path, {"train": "train", "val": "val", "test": "test"})
        video = videos.of(row["video_id"], subset, where)
        if f"{part}_class" not in row and subset == "test":
            unlabelled += 1
            continue
        with video.collecting():
            start, end = (_clock_time(row[f"{edge}_timestamp"], where) for edge in ("start", "stop"))
            video.rows.append(
                Row(start, end, _epic_label(row.get(f"{part}_class"), names, f"{where}: {part}_class"))
            )
    if unlabelled:
        notes = (*notes, f"{unlabelled} segments of the test set have no {part} and are left out")
    if (folder / _EPIC_VIDEOS).is_file():
        for name, clock in read_clocks(folder / _EPIC_VIDEOS).items():
            if name in videos:
                videos[name].duration_s = clock.duration_s
                videos[name].fps = clock.fps
        notes = (*notes, f"durations are those of {_EPIC_VIDEOS}")
    return ParsedAnnotations(videos.ordered(), tuple(names.values()) or None, notes)


def _epic_label(number: str | None, names: dict[str, str], where: str) -> str:
    if not number or not number.isdecimal():
        raise ValueError(f"{where}: {number!r} is not the number of a class")
    if names and number not in names:
        raise ValueError(f"{where}: class {number} is not in the list of classes beside the table")
    return names.get(number, f"id_{int(number):03d}")


def _clock_time(text: str, where: str) -> float:
    """Seconds of "HH:MM:SS.ss"."""
    where = f"{where}: time {text!r}"
    fields = text.split(":")
    if len(fields) != 3:
        raise ValueError(f"{where} is not 'HH:MM:SS.ss'")
    hours, minutes, rest = (seconds(field, where) for field in fields)
    # Rounded: the sum is off in the last digits, and EPIC states two or three decimals.
    return round(3600 * hours + 60 * minutes + rest, 6)


def _rows(files: Sequence[Path], columns: Sequence[str]) -> Iterator[tuple[Path, str, dict[str, str]]]:
    for path in files:
        for line, row in read_table(path, columns):
            yield path, f"{path.name}:{line}", row


def _read_class_names(path: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Class names by number, and a note, from a table or a text with "number name" a line."""
    if not path.is_file():
        return {}, (f"no {path.name} beside the tables: classes are called by their numbers",)
    if path.suffix == ".csv":
        pairs = [(row["id"], row["key"]) for _, row in read_table(path, ("id", "key"))]
    else:
        pairs = [(number, " ".join(words) or number) for _, (number, *words) in read_lines(path)]
    for number, count in Counter(number for number, _ in pairs).items():
        if count > 1:
            raise ValueError(f"{path}: class {number} occurs {count} times; keep one")
    return dict(pairs), (f"classes are named by {path.name}",)
