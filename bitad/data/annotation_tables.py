"""Readers of annotation files that are text or tables: THUMOS14, MultiTHUMOS, Charades, EPIC-Kitchens-100.

Each docstring says where its form is described. This module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from bitad.data.annotation_rows import (
    Row,
    Source,
    annotations_of_videos,
    seconds_of,
    subset_of_file,
    video_of_rows,
)
from bitad.data.annotations import AnnotatedVideo
from bitad.data.csv_tables import rows_of_table
from bitad.data.video_clocks import read_clocks
from bitad.files import read_text

# A file of MultiTHUMOS that lists its classes, "number name" a line.
_CLASS_LIST = "class_list.txt"
_EPIC_VIDEOS = "EPIC_100_video_info.csv"
_CHARADES_CLASSES = "Charades_v1_classes.txt"


def read_thumos14(files: Sequence[Path]) -> Source:
    """THUMOS14's official text files: ``CLASS_val.txt`` and ``CLASS_test.txt``, "video start end" in seconds a line.

    The videos of the official validation set are those one trains on and called "training", those of the test set
    "validation", as in OpenTAD's ``thumos_14_anno.json``. Durations are not stated.

    Source: the readme of TH14_Temporal_Annotations_Test (http://crcv.ucf.edu/THUMOS14/).
    """
    subsets = {"val": "training", "test": "validation"}

    def label_and_subset(path: Path, _: str) -> tuple[str, str]:
        label, _, part = path.stem.rpartition("_")
        return label, subsets[part]

    seen: dict[str, Path] = {}
    for path in files:
        if path.name in seen:
            raise ValueError(f"{path}: also found as {seen[path.name]}; keep one of the two")
        seen[path.name] = path
    return Source(annotations_of_videos(_read_class_files(files, label_and_subset)))


def read_multithumos(files: Sequence[Path]) -> Source:
    """MultiTHUMOS: ``CLASS.txt``, lines as in THUMOS14's; the name of a video tells its subset.

    The classes are in the order of ``class_list.txt``, "number name" a line, where that file is among the others.
    Durations are not stated.

    Source: the readme at http://ai.stanford.edu/~syyeung/everymoment.html; OpenTAD's configurations for the subsets.
    """
    subsets = {"video_validation_": "training", "video_test_": "validation"}

    def label_and_subset(path: Path, video: str) -> tuple[str, str]:
        for start, subset in subsets.items():
            if video.startswith(start):
                return path.stem, subset
        raise ValueError(f"{path}: video {video}: its name should begin with {' or '.join(subsets)}")

    of_classes = [path for path in files if path.name != _CLASS_LIST and not path.stem.lower().startswith("readme")]
    listed = [path for path in files if path.name == _CLASS_LIST]
    classes = [fields[-1] for path in listed for _, fields in _lines_of(path)]
    return Source(annotations_of_videos(_read_class_files(of_classes, label_and_subset), classes))


def read_charades(files: Sequence[Path]) -> Source:
    """Charades: a row a video with ``id``, ``length`` in seconds and ``actions``, "c092 11.90 21.20;c147 0 12.6".

    ``Charades_v1_classes.txt`` beside the tables, "c000 Holding some clothes" a line, names the 157 classes; without
    it a class is called by its number. Subsets are "training" and "testing", as in OpenTAD's configurations.

    Source: https://prior.allenai.org/projects/data/charades/README.txt
    """
    names, notes = _names_beside(files[0].parent / _CHARADES_CLASSES)
    videos: dict[str, AnnotatedVideo] = {}
    for path in files:
        subset = subset_of_file(path, {"train": "training", "test": "testing"})
        for where, row in rows_of_table(path, ("id", "actions", "length")):
            rows = [_charades_row(action, names, where) for action in row["actions"].split(";") if action.strip()]
            _add(videos, where, row["id"], subset, rows, seconds_of(row["length"], f"{where}: length"))
    return Source(annotations_of_videos(videos, names.values()), notes)


def read_epic_kitchens(files: Sequence[Path], part: Literal["verb", "noun"]) -> Source:
    """EPIC-Kitchens-100: a row a segment with ``video_id``, ``start_timestamp``, ``stop_timestamp`` ("00:01:02.34"),
    and ``verb_class`` and ``noun_class``, of which ``part`` chooses one.

    ``EPIC_100_verb_classes.csv`` (noun likewise) beside the tables names the classes; without it a class is called
    "id_003", as OpenTAD calls it. ``EPIC_100_video_info.csv`` beside them states durations. The test set's rows have
    no classes: its videos are listed without segments.

    Source: https://github.com/epic-kitchens/epic-kitchens-100-annotations
    """
    beside = files[0].parent
    names, notes = _epic_names(beside / f"EPIC_100_{part}_classes.csv")
    clocks = read_clocks(beside / _EPIC_VIDEOS) if (beside / _EPIC_VIDEOS).is_file() else {}
    if clocks:
        notes = (*notes, f"durations are those of {_EPIC_VIDEOS}")
    rows_of: dict[str, list[Row]] = {}
    subset_of: dict[str, str] = {}
    unlabelled = 0
    for path in files:
        subset = subset_of_file(path, {"train": "train", "val": "val", "test": "test"})
        for where, row in rows_of_table(path, ("video_id", "start_timestamp", "stop_timestamp")):
            video = row["video_id"]
            if subset_of.setdefault(video, subset) != subset:
                raise ValueError(f"{where}: video {video} is also in subset {subset_of[video]!r}")
            rows = rows_of.setdefault(video, [])
            if f"{part}_class" not in row and subset == "test":
                unlabelled += 1
                continue
            start, end = (_clock_time(row[f"{edge}_timestamp"], where) for edge in ("start", "stop"))
            rows.append((start, end, _epic_label(row.get(f"{part}_class"), names, f"{where}: {part}_class")))
    if unlabelled:
        notes = (*notes, f"{unlabelled} segments of the test set have no {part} and are left out")
    videos = {}
    for video, rows in rows_of.items():
        clock = clocks.get(video)
        duration_s, fps = (math.inf, None) if clock is None else (clock.duration_s, clock.fps)
        videos[video] = video_of_rows(video, subset_of[video], rows, duration_s=duration_s, fps=fps)
    return Source(annotations_of_videos(videos, names.values()), notes)


def _read_class_files(
    files: Sequence[Path], label_and_subset: Callable[[Path, str], tuple[str, str]]
) -> dict[str, AnnotatedVideo]:
    """The videos of text files with "video start end" a line, a file a class, ordered by subset and name."""
    rows_of: dict[tuple[str, str], list[Row]] = {}
    subset_of: dict[str, str] = {}
    for path in files:
        for line, fields in _lines_of(path):
            where = f"{path}:{line}"
            if len(fields) != 3:
                raise ValueError(f"{where}: {' '.join(fields)!r} is not 'video start end'")
            video, start, end = fields
            label, subset = label_and_subset(path, video)
            if subset_of.setdefault(video, subset) != subset:
                raise ValueError(f"{where}: video {video} is in subset {subset_of[video]!r} elsewhere, here {subset!r}")
            row = (seconds_of(start, where), seconds_of(end, where), label)
            rows_of.setdefault((subset, video), []).append(row)
    return {video: video_of_rows(video, subset, rows) for (subset, video), rows in sorted(rows_of.items())}


def _lines_of(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Numbers and fields of a text file's lines, without the empty ones."""
    lines = read_text(path, "lines of a data set's annotations").splitlines()
    return ((number, line.split()) for number, line in enumerate(lines, start=1) if line.strip())


def _add(
    videos: dict[str, AnnotatedVideo], where: str, name: str, subset: str, rows: list[Row], duration_s: float
) -> None:
    if not name or name in videos:
        raise ValueError(f"{where}: video {name!r} " + ("occurs twice" if name else "has no name"))
    if duration_s <= 0:
        raise ValueError(f"{where}: video {name}: a duration of {duration_s:g} s")
    videos[name] = video_of_rows(name, subset, rows, duration_s=duration_s)


def _names_beside(path: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Names by number of a file with "number name" a line, and a note on it; none where there is no such file."""
    if not path.is_file():
        return {}, (f"no {path.name} beside the tables: classes are called by their numbers",)
    names: dict[str, str] = {}
    for line, fields in _lines_of(path):
        _add_name(names, fields[0], " ".join(fields[1:]) or fields[0], f"{path}:{line}")
    return names, (f"classes are named by {path.name}",)


def _charades_row(action: str, names: dict[str, str], where: str) -> Row:
    fields = action.split()
    if len(fields) != 3:
        raise ValueError(f"{where}: action {action.strip()!r} is not 'class start end'")
    label, start, end = fields
    if names and label not in names:
        raise ValueError(f"{where}: class {label!r} is not in {_CHARADES_CLASSES}")
    return seconds_of(start, where), seconds_of(end, where), names.get(label, label)


def _epic_names(path: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    if not path.is_file():
        return {}, (f"no {path.name} beside the tables: classes are called by their numbers",)
    names: dict[str, str] = {}
    for where, row in rows_of_table(path, ("id", "key")):
        _add_name(names, row["id"], row["key"], where)
    return names, (f"classes are named by {path.name}",)


def _add_name(names: dict[str, str], number: str, name: str, where: str) -> None:
    if number in names:
        raise ValueError(
            f"{where}: class {number} is also in an earlier line, as {names[number]!r}; keep one of the two"
        )
    names[number] = name


def _epic_label(number: str | None, names: dict[str, str], where: str) -> str:
    if not number or not number.isdecimal():
        raise ValueError(f"{where}: {number!r} is not the number of a class")
    if names and number not in names:
        raise ValueError(f"{where}: class {number} is not in the list of classes beside the table")
    return names.get(number, f"id_{int(number):03d}")


def _clock_time(text: str, where: str) -> float:
    """Seconds of "HH:MM:SS.ss"."""
    fields = text.split(":")
    if len(fields) != 3:
        raise ValueError(f"{where}: time {text!r} is not 'HH:MM:SS.ss'")
    hours, minutes, seconds = (seconds_of(field, f"{where}: time {text!r}") for field in fields)
    # Rounded: 3600 h + 60 m + s is off in the last digits of what has hundredths (EPIC states two or three decimals).
    return round(3600 * hours + 60 * minutes + seconds, 6)
