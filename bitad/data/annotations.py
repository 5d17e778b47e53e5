"""Ground truth: videos with their segments and classes, defects of a video, and lists of class names."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bitad.data.clocks import Clock
from bitad.runtime.files import read_text
from bitad.runtime.log import log_once, quoted, shortlist
from bitad.timeline import reverse_seconds

# THUMOS14's mark for spans that its annotators could not decide on: no class to train.
UNDECIDED = ("Ambiguous",)

# What a class-agnostic detector calls whatever it finds.
ANY_CLASS = "action"


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
        segments, order = reversed_ascending(self.segments, self.duration_s)
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

    def require_durations(self, path: str | Path) -> Annotations:
        """The videos whose duration is known. Videos without one and without a segment of a class are left out, and
        the log says so.

        Args:
            path: the file of the annotations, for the messages.

        Raises:
            ValueError: a video with a segment of a class has no duration.
        """
        known = set(self.classes)
        unknown = {name: video for name, video in self.videos.items() if math.isinf(video.duration_s)}
        refuse_without_duration([name for name, video in unknown.items() if known.intersection(video.labels)], path)
        if not unknown:
            return self
        names = shortlist(unknown, 2, quote=quoted)
        log_once(f"{path}: left out, without a duration and a segment of a class: {names}")
        return replace(self, videos={name: video for name, video in self.videos.items() if name not in unknown})

    def reversed(self) -> Annotations:
        """The ground truth of the same videos played backwards."""
        return replace(self, videos={name: video.reversed() for name, video in self.videos.items()})


def refuse_without_duration(names: Sequence[str], path: str | Path) -> None:
    """Refuse videos whose file states no duration.

    Raises:
        ValueError: there are some.
    """
    if names:
        more = f" (nor is that of {len(names) - 1} more)" if len(names) > 1 else ""
        raise ValueError(
            f"{path}: video {names[0]}: its duration is not stated{more}; write a file with durations: "
            "`bitad annotations convert SRC DST --video-info JSON`, or --videos DIR"
        )


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


@dataclass(frozen=True)
class VideoEntry:
    """One video as the file states it, its annotations' ``label_id`` (or None), and what could not be read.

    What could not be read is left out of ``video``; there is none without a defect that says so.
    """

    video: AnnotatedVideo
    label_ids: list[int | None]
    defects: list[Defect]


def _keep(video: AnnotatedVideo, labels: set[str]) -> AnnotatedVideo:
    """The video with only the segments of these labels."""
    kept = [i for i, label in enumerate(video.labels) if label in labels]
    if len(kept) == len(video.labels):
        return video
    return replace(video, segments=video.segments[kept], labels=tuple(video.labels[i] for i in kept))


def reversed_ascending(
    segments: NDArray[np.float64], duration_s: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Segments ``[n, 2]`` on the clock that runs from the end, ascending, and which of ``segments`` each one is."""
    mirrored = reverse_seconds(segments, duration_s)
    order = np.lexsort((mirrored[:, 1], mirrored[:, 0]))
    return mirrored[order], order


# The class names in order, or the path of a list of them.
Classes = Sequence[str] | PathLike[str]

# "1 Walk" in MultiTHUMOS' list, "c000 Holding some clothes" in Charades', "7 BaseballPitch" in the THUMOS'14 kit's.
_NUMBERED = re.compile(r"c?(\d{1,18})[\s,;:]+(\S.*)")


def read_classes(path: str | PathLike[str]) -> tuple[str, ...]:
    """The class names in a file with a name a line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it names no class, or one twice.
    """
    # Not splitlines(): a name may hold what Unicode calls a line end.
    names = [line.strip() for line in re.split(r"\r\n?|\n", read_text(Path(path), "class names, a name a line"))]
    return _distinct([name for name in names if name], path)


def class_names(
    entries: Sequence[VideoEntry], classes: Classes | None, ignore: Sequence[str]
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


def names_of_numbers(numbers: Collection[int], classes: Classes, where: object) -> dict[int, str]:
    """The names of a file's class numbers, in the order of a list of classes.

    The list may number its names, as "1 Walk" a line. A file of whole numbers from 0 counts from there, one whose
    highest is the number of names counts from 1: MultiTHUMOS' JSON is at hand either way, its list numbered from 1.

    Args:
        numbers: those that occur in the file.
        classes: the names in order, or the path of the list.
        where: the file of the numbers, for the error.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_classes`; or it is not told from where the numbers count.
    """
    source = f"{classes}" if isinstance(classes, (str, PathLike)) else "the classes"
    lines, numbered = lines_and_numbers(classes)
    if numbered:
        names = tuple(numbered.values())
        if set(numbers) <= numbered.keys():
            return numbered
        if sorted(numbered) != list(range(min(numbered), min(numbered) + len(numbered))):
            return numbered  # what it does not name is outside the classes
        names = tuple(numbered[number] for number in sorted(numbered))
    else:
        names = lines
    if numbers and 0 not in numbers and len(names) not in numbers:
        says = f"{where}: its class numbers are {min(numbers)} to {max(numbers)}, and {source} names"
        if max(numbers) > len(names):
            raise ValueError(f"{says} only {len(names)}; name the list of these classes")
        raise ValueError(
            f"{says} {len(names)}: it is not told whether they count from 0 or 1; number the names in the list, "
            '"0 NAME" or "1 NAME" a line'
        )
    return dict(enumerate(names, start=0 if 0 in numbers or not numbers else 1))


def names_in_list(labels: Collection[str], classes: Classes) -> tuple[str, ...]:
    """The names of a list of classes, without their numbers where the list numbers them and the labels have none.

    Args:
        labels: those that occur in the file.
        classes: the names in order, or the path of the list.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_classes`.
    """
    lines, numbered = lines_and_numbers(classes)
    if not numbered or not set(lines).isdisjoint(labels):
        return lines
    return tuple(numbered[number] for number in sorted(numbered))


def lines_and_numbers(classes: Classes) -> tuple[tuple[str, ...], dict[int, str]]:
    """The lines of a list of classes, and the names by number if every line has a number.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_classes`; a number or a name occurs twice.
    """
    lines = read_classes(classes) if isinstance(classes, (str, PathLike)) else _distinct(classes, "the classes")
    found = [match for match in map(_NUMBERED.fullmatch, lines) if match is not None]
    if len(found) < len(lines):
        return lines, {}
    source = classes if isinstance(classes, (str, PathLike)) else "the classes"
    return lines, names_by_number([(int(match[1]), match[2]) for match in found], source)


def names_by_number(pairs: Collection[tuple[int, str]], source: object) -> dict[int, str]:
    """Class names by number.

    Raises:
        ValueError: a number has two names, or a name two numbers; ``source`` says where in the message.
    """
    numbered = dict(pairs)
    if min(len(numbered), len(set(numbered.values()))) < len(pairs):
        raise ValueError(f"{source}: a number has two class names in it, or a class name two numbers; keep one")
    return numbered


def _distinct(names: Sequence[str], source: object) -> tuple[str, ...]:
    if not names:
        raise ValueError(f"{source}: no class names; there should be a name a line")
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"{source}: class {name!r} occurs {count} times; name each class once")
    return tuple(names)
