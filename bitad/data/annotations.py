"""Ground truth: videos with their segments and classes, and defects of a video's annotation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bitad.data.classes import ANY_CLASS, UNDECIDED, Classes, read_classes
from bitad.data.clocks import Clock
from bitad.data.formats.parsing import DETAILS, ParsedVideo
from bitad.runtime.log import did_you_mean, log_once, quoted, shortlist
from bitad.timeline import FloatArray, IntArray, reverse_seconds


@dataclass(frozen=True)
class AnnotatedVideo:
    """One video's ground truth.

    Args:
        name: of the video in the annotation file; its file name without extension.
        subset: the part of the data set, such as "training", as in the file.
        duration_s: the annotated duration D in seconds; inf: unknown.
        segments: float64 ``[n, 2]``, start and end in seconds on the forward clock.
        labels: n class names.
        frames, fps: number of frames and frames a second, if stated.
        contradictions: how the file contradicts itself about the video's time.
        details: more about each segment, float64 ``[n]`` by name (:data:`~bitad.data.formats.parsing.DETAILS`), where
            the file states any; NaN where it does not.
    """

    name: str
    subset: str
    duration_s: float
    segments: FloatArray
    labels: tuple[str, ...]
    frames: int | None = None
    fps: float | None = None
    contradictions: tuple[str, ...] = ()
    details: Mapping[str, FloatArray] = field(default_factory=dict)

    @staticmethod
    def from_parsed(video: ParsedVideo) -> AnnotatedVideo:
        """The part of a video that could be read."""
        stated = [row.details or {} for row in video.rows]
        return AnnotatedVideo(
            name=video.name,
            subset=video.subset,
            duration_s=video.duration_s,
            segments=np.array([row[:2] for row in video.rows], np.float64).reshape(-1, 2),
            labels=tuple(row.label for row in video.rows),
            frames=video.frames,
            fps=video.fps,
            contradictions=video.contradictions,
            details={
                name: np.array([each.get(name, math.nan) for each in stated], np.float64)
                for name in DETAILS
                if any(name in each for each in stated)
            },
        )

    @property
    def clock(self) -> Clock:
        """The video's time as annotated."""
        return Clock(self.duration_s, self.frames, self.fps)

    def details_of(self, row: int) -> dict[str, float]:
        """What is stated of a segment."""
        stated = {name: float(values[row]) for name, values in self.details.items()}
        return {name: value for name, value in stated.items() if not math.isnan(value)}

    def take(self, rows: NDArray[np.bool_]) -> AnnotatedVideo:
        """The video with some of its segments, those of a mask ``[n]``."""
        return self._of_rows(np.flatnonzero(rows), self.segments[rows])

    def with_labels(self, labels: Collection[str]) -> AnnotatedVideo:
        """The video with its segments of these labels."""
        return self.take(np.array([label in labels for label in self.labels], np.bool_))

    def reversed(self) -> AnnotatedVideo:
        """The ground truth of reverse playback, ``[D - b, D - a]``, in ascending order."""
        segments, order = reversed_ascending(self.segments, self.duration_s)
        return self._of_rows(order, segments)

    def _of_rows(self, rows: IntArray, segments: FloatArray) -> AnnotatedVideo:
        """The labels and details of some rows, in their order, with these segments."""
        return replace(
            self,
            segments=segments,
            labels=tuple(self.labels[i] for i in rows),
            details={name: values[rows] for name, values in self.details.items()},
        )


@dataclass(frozen=True)
class Annotations:
    """A data set's ground truth: videos by name, in the file's order, and the class names in order."""

    videos: dict[str, AnnotatedVideo]
    classes: tuple[str, ...]

    @staticmethod
    def from_parsed(
        videos: Sequence[ParsedVideo],
        path: str | Path,
        *,
        classes: Classes | None = None,
        ignore: Sequence[str] = UNDECIDED,
    ) -> Annotations:
        """Ground truth with the segments of ignored labels; raises a ValueError if a video has a fault."""
        names, clashes = class_names(videos, classes, ignore)
        require_readable(videos, path, clashes)
        return Annotations({video.name: AnnotatedVideo.from_parsed(video) for video in videos}, names)

    def subsets(self) -> dict[str, int]:
        """The number of videos in each subset."""
        return dict(Counter(video.subset for video in self.videos.values()))

    def labels(self) -> tuple[str, ...]:
        """The classes, and after them in alphabetical order the other labels, such as THUMOS14's ``Ambiguous``."""
        used = {label for video in self.videos.values() for label in video.labels}
        return (*self.classes, *sorted(used.difference(self.classes)))

    def subset(self, name: str) -> Annotations:
        """The videos of one subset; upper and lower case differ.

        Raises:
            ValueError: no video is in that subset.
        """
        chosen = self.map(lambda video: video if video.subset == name else None)
        if not chosen.videos:
            counts = self.subsets()
            found = (
                ", ".join(f"{subset} ({count} videos)" for subset, count in counts.items()) or "none: no videos"
            )
            raise ValueError(
                f"no video is in subset {name!r}; the subsets are {found}{did_you_mean(name, counts)}"
            )
        return chosen

    def map(self, change: Callable[[AnnotatedVideo], AnnotatedVideo | None]) -> Annotations:
        """The ground truth with every video changed, or left out if ``change`` returns None."""
        videos = ((name, change(video)) for name, video in self.videos.items())
        return replace(self, videos={name: video for name, video in videos if video is not None})

    def only_classes(self) -> Annotations:
        """Without the segments whose label is none of the classes (THUMOS14's ``Ambiguous``)."""
        known = set(self.classes)
        return self.map(lambda video: video.with_labels(known))

    def class_agnostic(self) -> Annotations:
        """The same segments, all of a single class."""
        videos = self.map(lambda video: replace(video, labels=(ANY_CLASS,) * len(video.labels)))
        return replace(videos, classes=(ANY_CLASS,))

    def require_durations(self, path: object) -> Annotations:
        """The videos of known duration. Others without a segment of a class are left out, and logged.

        Raises:
            ValueError: a video with a segment of a class has no duration.
        """
        unknown = [video for video in self.videos.values() if math.isinf(video.duration_s)]
        require_known_durations(
            [video.name for video in unknown if not set(self.classes).isdisjoint(video.labels)], path
        )
        if not unknown:
            return self
        names = shortlist((video.name for video in unknown), 2, quote=quoted)
        log_once(f"{path}: left out, without a duration and a segment of a class: {names}")
        return self.map(lambda video: None if math.isinf(video.duration_s) else video)

    def reversed(self) -> Annotations:
        """The ground truth of the same videos in reverse playback."""
        return self.map(AnnotatedVideo.reversed)


DefectKind = Literal[
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
    "no features",
    "unreadable features",
    "another width of features",
    "another number of rows",
]


@dataclass(frozen=True)
class Defect:
    """Something wrong with one video's annotation.

    Args:
        segment: start and end in seconds, as annotated, where one segment is wrong.
    """

    video: str
    kind: DefectKind
    detail: str
    segment: tuple[float, float] | None = None


def require_readable(videos: Iterable[ParsedVideo], path: str | Path, more: Iterable[Defect] = ()) -> None:
    """Raise a ValueError that names the first fault of the videos, or the first of ``more`` defects."""
    faults = [Defect(video.name, "unreadable", fault) for video in videos for fault in video.faults]
    for defect in (*faults, *more):
        remedy = "correct it (`bitad annotations check` names every defect)"
        raise ValueError(f"{path}: video {defect.video}: {defect.detail}; {remedy}")


def require_known_durations(unknown: Sequence[str], path: object) -> None:
    """Raise a ValueError if there are videos of unknown duration."""
    if unknown:
        remedy = (
            "write a file with durations: `bitad annotations convert SRC DST --video-info JSON`, or --videos DIR"
        )
        raise ValueError(f"{path}: the duration of {shortlist(unknown)} is not stated; {remedy}")


def reversed_ascending(segments: FloatArray, duration_s: float) -> tuple[FloatArray, IntArray]:
    """Segments ``[n, 2]`` in reverse time, ascending, and which of ``segments`` each one is."""
    mirrored = reverse_seconds(segments, duration_s)
    order = np.lexsort((mirrored[:, 1], mirrored[:, 0]))
    return mirrored[order], order


def class_names(
    videos: Sequence[ParsedVideo], classes: Classes | None, ignore: Collection[str]
) -> tuple[tuple[str, ...], list[Defect]]:
    """The class names in order, and where the labels contradict them or the ``label_id`` each other."""
    defects = []
    if classes is not None:
        names = read_classes(classes)
        known = {*names, *ignore}
        for video in videos:
            for row in video.rows:
                if row.label not in known:
                    detail = f"label {row.label!r} is not one of the {len(names)} classes"
                    defects.append(Defect(video.name, "label outside the classes", detail, row[:2]))
        return names, defects
    # All labels have one number of their own, or none. Each pair is stored with a video that has it.
    pairs: dict[tuple[str, int | None], str] = {}
    for video in videos:
        pairs |= {(row.label, row.label_id): video.name for row in video.rows if row.label not in ignore}
    labels = Counter(label for label, _ in pairs)
    numbers = Counter(number for _, number in pairs)
    has_numbers = any(number is not None for number in numbers)
    for (label, number), name in pairs.items():
        if labels[label] > 1 or (has_numbers and (number is None or numbers[number] > 1)):
            detail = f"label {label!r} has label_id {number}, which the file contradicts elsewhere"
            defects.append(Defect(name, "unreadable", detail))
    order = {label: -1 if number is None else number for label, number in pairs}
    return tuple(sorted(order, key=lambda label: (order[label], label))), defects
