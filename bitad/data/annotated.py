"""What ground truth is: videos with their segments and classes, and what is wrong with one.

This module does not import torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bitad.data.clock_agreement import Clock
from bitad.log import say_once
from bitad.timeline import reverse_seconds
from bitad.video.names import listed

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
        say_once(f"{path}: left out, without a duration and a segment of a class: {listed(list(unknown))}")
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
