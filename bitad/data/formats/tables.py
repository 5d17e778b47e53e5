"""Readers of annotation files that are text or tables: THUMOS14, MultiTHUMOS, Charades, EPIC-Kitchens-100, G-TAD's.

Each docstring says where its form is described.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from bitad.data.annotations import UNDECIDED, VideoEntry
from bitad.data.clocks import read_clocks
from bitad.data.formats.rows import Row, Source, Videos, positive, seconds_of, subset_of_file, subset_of_thumos_video
from bitad.data.formats.values import rows_of_table
from bitad.runtime.files import read_text

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


def read_thumos14(files: Sequence[Path]) -> Source:
    """THUMOS14's official text files: ``CLASS_val.txt`` and ``CLASS_test.txt``, "video start end" in seconds a line.

    The videos of the official validation set are those one trains on and called "training", those of the test set
    "validation", as in OpenTAD's ``thumos_14_anno.json``. Durations are not stated.

    Source: the readme of TH14_Temporal_Annotations_Test (http://crcv.ucf.edu/THUMOS14/).
    """
    subsets = {"val": "training", "test": "validation"}

    def label_and_subset(path: Path, _: str) -> tuple[str, str]:
        label, _, part = path.stem.rpartition("_")
        if part not in subsets:
            raise ValueError(f"{path}: not a file of THUMOS14: its name should be CLASS_val.txt or CLASS_test.txt")
        return label, subsets[part]

    seen: dict[str, Path] = {}
    for path in files:
        if path.name in seen:
            raise ValueError(f"{path}: also found as {seen[path.name]}; keep one of the two")
        seen[path.name] = path
    return Source(_read_class_files(files, label_and_subset))


def read_multithumos(files: Sequence[Path]) -> Source:
    """MultiTHUMOS: ``CLASS.txt``, lines as in THUMOS14's; the name of a video tells its subset.

    The classes are in the order of ``class_list.txt``, "number name" a line, where that file is among the others.
    Durations are not stated.

    Source: the readme at http://ai.stanford.edu/~syyeung/everymoment.html; OpenTAD's configurations for the subsets.
    """

    def label_and_subset(path: Path, video: str) -> tuple[str, str]:
        subset = subset_of_thumos_video(video)
        if subset is None:
            raise ValueError(f"{path}: video {video}: its name should begin with video_validation_ or video_test_")
        return path.stem, subset

    of_classes = [path for path in files if path.name != _CLASS_LIST and not path.stem.lower().startswith("readme")]
    listed = [path for path in files if path.name == _CLASS_LIST]
    classes = tuple(fields[-1] for path in listed for _, fields in _lines_of(path))
    return Source(_read_class_files(of_classes, label_and_subset), classes or None)


def read_charades(files: Sequence[Path]) -> Source:
    """Charades: a row a video with ``id``, ``length`` in seconds and ``actions``, "c092 11.90 21.20;c147 0 12.6".

    ``Charades_v1_classes.txt`` beside the tables, "c000 Holding some clothes" a line, names the 157 classes; without
    it a class is called by its number. Subsets are "training" and "testing", as in OpenTAD's configurations.

    Source: https://prior.allenai.org/projects/data/charades/README.txt
    """
    names, notes = _names_beside(files[0].parent / _CHARADES_CLASSES)
    videos = Videos()
    for path in files:
        subset = subset_of_file(path, {"train": "training", "test": "testing"})
        for line, row in rows_of_table(path, ("id", "actions", "length")):
            where = f"{path.name}:{line}"
            video = videos.new(row["id"], subset, where)
            for action in row["actions"].split(";"):
                with video.noting():
                    video.rows += [_charades_row(action, names, where)] if action.strip() else []
            with video.noting():
                video.duration_s = _duration(row["length"], f"{where}: video {video.name}")
    return Source(videos.entries(), tuple(names.values()) or None, notes)


def read_epic_verbs(files: Sequence[Path]) -> Source:
    """EPIC-Kitchens-100's verbs: see :func:`read_epic_kitchens`."""
    return read_epic_kitchens(files, "verb")


def read_epic_nouns(files: Sequence[Path]) -> Source:
    """EPIC-Kitchens-100's nouns: see :func:`read_epic_kitchens`."""
    return read_epic_kitchens(files, "noun")


def read_gtad(files: Sequence[Path]) -> Source:
    """G-TAD's ``{val,test}_Annotation.csv``: a row a segment with ``video``, ``type``, ``start``, ``end`` in seconds.

    AFSD's ``{val,test}_Annotation_ours.csv`` has the same columns. Subsets are those of :func:`read_thumos14` where
    the videos' names are THUMOS14's, else what the file's name tells. Durations are not stated; ``startFrame`` and
    ``endFrame``, seconds at 30 frames a second whatever the video's rate, are not read.

    Source: https://github.com/frostinassiky/gtad, ``data/thumos_annotations`` and ``gtad_lib/dataset.py``;
    https://github.com/TencentYoutuResearch/ActionDetection-AFSD, ``thumos_annotations``.
    """
    parts = [path.name.lower().partition("_annotation")[0] for path in files]
    if repeated := [path for path, part in zip(files, parts, strict=True) if parts.count(part) > 1]:
        raise ValueError(f"{repeated[0]}: {repeated[1].name} beside it holds the same videos; name one of the two")
    videos = Videos()
    for path in files:
        for line, row in rows_of_table(path, ("video", "type", "start", "end")):
            where = f"{path.name}:{line}"
            video = videos.of(row["video"], _subset_of(row["video"], path), where)
            with video.noting():
                start, end = (seconds_of(row[edge], where) for edge in ("start", "end"))
                if not row["type"]:
                    raise ValueError(f"{where}: the type, which is the class, is empty")
                video.rows.append((start, end, row["type"]))
    return Source(videos.entries())


def read_thumos14_groundtruth(files: Sequence[Path]) -> Source:
    """``thumos14_test_groundtruth.csv`` of DAPs, BSN and G-TAD: a row a segment, with its video's duration and frames.

    ``label-idx`` is the place of the class among THUMOS14's twenty in alphabetical order, -1 ``Ambiguous``. Values are
    separated by commas, or by spaces as in DAPs'. Subsets are as for :func:`read_gtad`.

    Source: https://github.com/frostinassiky/gtad, ``data/thumos_annotations``: its rows are those of THUMOS14's own
    files, with these numbers.
    """
    names = dict(enumerate((*UNDECIDED, *_THUMOS14), start=-1))
    videos = Videos()
    for path in files:
        for line, row in rows_of_table(path, ("video-name", "t-init", "t-end", "video-duration", "label-idx")):
            where = f"{path.name}:{line}"
            video = videos.of(row["video-name"], _subset_of(row["video-name"], path), where)
            with video.noting():
                duration_s = _duration(row["video-duration"], f"{where}: video {video.name}")
                if math.isfinite(video.duration_s) and video.duration_s != duration_s:
                    raise ValueError(
                        f"{where}: it lasts {duration_s:g} s here, {video.duration_s:g} s in an earlier row"
                    )
                video.duration_s = duration_s
                if row.get("video-frames"):
                    video.frames = max(1, round(positive(row["video-frames"], f"{where}: video-frames")))
                if row.get("frame-rate"):
                    video.fps = positive(row["frame-rate"], f"{where}: frame-rate")
            with video.noting():
                start, end = (seconds_of(row[edge], where) for edge in ("t-init", "t-end"))
                number = row["label-idx"].removesuffix(".0")
                label = {str(number): name for number, name in names.items()}.get(number)
                if label is None:
                    raise ValueError(f"{where}: label-idx {row['label-idx']!r} is not one of -1 to {len(names) - 2}")
                video.rows.append((start, end, label))
    return Source(videos.entries(), _THUMOS14)


def _subset_of(video: str, path: Path) -> str:
    """The subset of a THUMOS14 video, or of a file of other ones."""
    return subset_of_thumos_video(video) or subset_of_file(
        path, {"train": "training", "val": "validation", "test": "testing"}
    )


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
    videos = Videos()
    unlabelled = 0
    for path in files:
        subset = subset_of_file(path, {"train": "train", "val": "val", "test": "test"})
        for line, row in rows_of_table(path, ("video_id", "start_timestamp", "stop_timestamp")):
            where = f"{path.name}:{line}"
            video = videos.of(row["video_id"], subset, where)
            if f"{part}_class" not in row and subset == "test":
                unlabelled += 1
                continue
            with video.noting():
                start, end = (_clock_time(row[f"{edge}_timestamp"], where) for edge in ("start", "stop"))
                label = _epic_label(row.get(f"{part}_class"), names, f"{where}: {part}_class")
                video.rows.append((start, end, label))
    if unlabelled:
        notes = (*notes, f"{unlabelled} segments of the test set have no {part} and are left out")
    for name, video in videos.items():
        if name in clocks:
            video.duration_s, video.fps = clocks[name].duration_s, clocks[name].fps
    return Source(videos.entries(), tuple(names.values()) or None, notes)


def _read_class_files(
    files: Sequence[Path], label_and_subset: Callable[[Path, str], tuple[str, str]]
) -> list[VideoEntry]:
    """The videos of text files with "video start end" a line, a file a class, ordered by subset and name."""
    videos = Videos()
    for path in files:
        for line, fields in _lines_of(path):
            where = f"{path.name}:{line}"
            name = fields[0]
            label, subset = label_and_subset(path, name)
            video = videos.of(name, subset, where)
            with video.noting():
                if len(fields) != 3:
                    raise ValueError(f"{where}: {' '.join(fields)!r} is not 'video start end'")
                video.rows.append((seconds_of(fields[1], where), seconds_of(fields[2], where), label))
    return [video.entry() for video in sorted(videos.values(), key=lambda video: (video.subset, video.name))]


def _lines_of(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Numbers and fields of a text file's lines, without the empty ones."""
    lines = read_text(path, "lines of a data set's annotations").splitlines()
    return ((number, line.split()) for number, line in enumerate(lines, start=1) if line.strip())


def _duration(stated: str, where: str) -> float:
    seconds = seconds_of(stated, f"{where}: length")
    if seconds <= 0:
        raise ValueError(f"{where}: a duration of {seconds:g} s")
    return seconds


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
    for line, row in rows_of_table(path, ("id", "key")):
        _add_name(names, row["id"], row["key"], f"{path}:{line}")
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
