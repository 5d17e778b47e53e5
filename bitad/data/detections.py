"""Detections of a set of videos, as columns; their files, and their videos under other names.

Operations on columns are vectorized: a test set has 400,000 detections.
"""

from __future__ import annotations

import math
import reprlib
from bisect import insort
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
from numpy.typing import NDArray

from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.classes import ANY_CLASS, index_labels
from bitad.data.formats.detections import read_detection_file
from bitad.data.formats.writing import SCORE
from bitad.runtime.files import write_json
from bitad.runtime.log import log, shortlist
from bitad.timeline import Direction, FloatArray, IntArray, reverse_seconds
from bitad.video.names import Matching, new_names

# One video's detections: segments float64 [n, 2] in seconds, scores float64 [n], labels int64 [n].
VideoColumns = tuple[FloatArray, FloatArray, IntArray]

# Keys of a file's external_data that are fields of Detections; all others are ``details``.
_BASIS = "basis"
_DURATIONS = "durations_s"
_CLASSES = "classes"

# In ``details``: by class, the score from which its detections are shown.
_MIN_SCORES = "min_scores"
# The least score that is shown where nothing is known about a detector's scores.
DEFAULT_SCORE = 0.3

# Two files' durations of one video may differ by rounding only.
_SAME_DURATION_S = 1e-3


@dataclass(frozen=True, eq=False)
class VideoDetections:
    """The detections of one video.

    Args:
        name: of the video.
        segments: float64 ``[n, 2]``, start and end in seconds.
        labels: n class names, an array of strings.
        scores: float64 ``[n]``.
        duration_s: of the video, in seconds; None if unknown.
    """

    name: str
    segments: FloatArray
    labels: NDArray[np.str_]
    scores: FloatArray
    duration_s: float | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        return f"VideoDetections({self.name!r}, {len(self)} detections)"


@dataclass(frozen=True, eq=False)
class Detections:
    """Detections of several videos; row i of every column belongs to one detection.

    Args:
        videos: the names of all videos that were searched, also those without detections.
        video: int64 ``[n]``, index into ``videos``.
        segments: float64 ``[n, 2]``, start and end in seconds on the clock that ``basis`` names.
        scores: float64 ``[n]``.
        labels: int64 ``[n]``, index into ``classes``.
        basis: the clock of ``segments``: time t ("forward"), or D - t ("reverse").
        durations_s: duration in seconds by video name, where known (needed to change the basis).
        details: other information, such as the run and the configuration; kept in the file.

    Raises:
        ValueError: a column or name that contradicts this, or a segment that ends before it starts.
    """

    videos: tuple[str, ...]
    classes: tuple[str, ...]
    video: IntArray
    segments: FloatArray
    scores: FloatArray
    labels: IntArray
    basis: Direction = "forward"
    durations_s: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.scores)
        for column, shape in (("video", (n,)), ("segments", (n, 2)), ("scores", (n,)), ("labels", (n,))):
            found = getattr(self, column).shape
            if found != shape:
                raise ValueError(f"{column} has shape {found}; with {n} scores it must be {shape}")
        for column, names in (("video", self.videos), ("labels", self.classes)):
            index = getattr(self, column)
            if n and not (index.min() >= 0 and index.max() < len(names)):
                raise ValueError(
                    f"{column} runs from {index.min()} to {index.max()}, but there are {len(names)} names"
                )
            if len(set(names)) < len(names):
                raise ValueError(f"a name occurs twice in {reprlib.repr(names)}")
        sound = np.isfinite(self.segments).all(axis=1) & np.isfinite(self.scores)
        sound &= self.segments[:, 1] >= self.segments[:, 0]
        if not sound.all():
            row = int(np.argmin(sound))
            start, end = self.segments[row].tolist()
            found = f"video {self.videos[self.video[row]]}: segment [{start}, {end}] with score {self.scores[row]}"
            raise ValueError(f"{found}; all three must be finite, and the end no earlier than the start")
        if self.basis not in get_args(Direction):
            raise ValueError(f"basis {self.basis!r} is not one of {', '.join(get_args(Direction))}")
        for name, duration in self.durations_s.items():
            is_number = isinstance(duration, int | float) and not isinstance(duration, bool)
            if not (is_number and 0 < duration < 2**63):  # JSON's integers have no bound, and NaN compares false
                raise ValueError(f"video {name}: duration {duration!r} is not a positive number of seconds")

    def __len__(self) -> int:
        return len(self.scores)

    @staticmethod
    def from_videos(
        found: Mapping[str, VideoColumns],
        *,
        classes: Sequence[str],
        basis: Direction = "forward",
        durations_s: Mapping[str, float] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> Detections:
        """From the segments ``[n, 2]``, scores ``[n]`` and labels ``[n]`` of each video, by name."""
        none = (np.empty((0, 2)), np.empty(0), np.empty(0, np.int64))
        segments, scores, labels = map(np.concatenate, zip(none, *found.values(), strict=True))
        return Detections(
            videos=tuple(found),
            classes=tuple(classes),
            video=np.repeat(np.arange(len(found)), [len(scores) for _, scores, _ in found.values()]),
            segments=segments,
            scores=scores,
            labels=labels,
            basis=basis,
            durations_s=dict(durations_s or {}),
            details=dict(details or {}),
        )

    @staticmethod
    def concatenate(
        parts: Sequence[Detections],
        *,
        details: Mapping[str, Any] | None = None,
        names: Sequence[str] = (),
    ) -> Detections:
        """All rows of several detections, part after part; videos and classes of all of them, in order of appearance.

        Raises:
            ValueError: there are no parts, or they disagree about the basis or a video's duration.
        """
        if not parts:
            raise ValueError("no detections to concatenate")
        first = parts[0]
        videos = tuple(dict.fromkeys(chain.from_iterable(part.videos for part in parts)))
        classes = tuple(dict.fromkeys(chain.from_iterable(part.classes for part in parts)))
        durations_s: dict[str, float] = {}
        source: dict[str, str] = {}
        names = names or [f"part {number}" for number in range(1, len(parts) + 1)]
        for part, own in zip(parts, names, strict=True):
            if part.basis != first.basis:
                raise ValueError(f"detections of basis {first.basis} and {part.basis}; call .forward() of both")
            for name, duration in part.durations_s.items():
                other = source.setdefault(name, own)
                if abs(durations_s.setdefault(name, duration) - duration) > _SAME_DURATION_S:
                    found = f"video {name} lasts {durations_s[name]} s in {other} and {duration} s in {own}"
                    raise ValueError(f"{found}; give both the duration of the annotations")
        return Detections(
            videos=videos,
            classes=classes,
            video=np.concatenate([_index_among(part.videos, videos)[part.video] for part in parts]),
            segments=np.concatenate([part.segments for part in parts]),
            scores=np.concatenate([part.scores for part in parts]),
            labels=np.concatenate([_index_among(part.classes, classes)[part.labels] for part in parts]),
            basis=first.basis,
            durations_s=durations_s,
            details=dict(details or {}),
        )

    def reversed(self) -> Detections:
        """The same detections on the other clock: ``[a, b]`` becomes ``[D-b, D-a]``; its own inverse.

        Raises:
            ValueError: a video with detections has no duration.
        """
        unknown = [self.videos[i] for i in np.unique(self.video) if self.videos[i] not in self.durations_s]
        if unknown:
            reason = f"the duration of {shortlist(unknown)} is unknown"
            raise ValueError(f"{reason}; to change to the other clock, give durations_s, as in the annotations")
        durations = np.array([self.durations_s.get(name, np.nan) for name in self.videos])[self.video]
        return replace(
            self,
            # Every row has its own D: mirror about 0, then shift.
            segments=reverse_seconds(self.segments, 0.0) + durations[:, None],
            basis="forward" if self.basis == "reverse" else "reverse",
        )

    def forward(self) -> Detections:
        """These detections on the forward clock; raises as :meth:`reversed`."""
        return self if self.basis == "forward" else self.reversed()

    def take(self, rows: NDArray[Any]) -> Detections:
        """Some of the rows: a boolean mask ``[n]``, or row numbers. Videos and classes stay."""
        return replace(
            self,
            video=self.video[rows],
            segments=self.segments[rows],
            scores=self.scores[rows],
            labels=self.labels[rows],
        )

    def of_video(self, name: str) -> Detections:
        """One video's detections, in their order; ``videos`` is that one name.

        Raises:
            ValueError: no such video.
        """
        if name not in self.videos:
            raise ValueError(f"no video {name!r} among these detections; they are of {shortlist(self.videos)}")
        rows = self.take(self.video == self.videos.index(name))
        return replace(rows, videos=(name,), video=np.zeros(len(rows), np.int64))

    def class_agnostic(self) -> Detections:
        """The same detections, all of a single class."""
        return replace(self, classes=(ANY_CLASS,), labels=np.zeros_like(self.labels))

    def with_classes(self, classes: Sequence[str]) -> Detections:
        """The same detections with the same class names in another order.

        Raises:
            ValueError: a name occurs in only one of the two lists.
        """
        if tuple(classes) == self.classes:
            return self
        if different := set(classes) ^ set(self.classes):
            raise ValueError(f"the class lists differ by {shortlist(sorted(different))}; give one list")
        labels = _index_among(self.classes, classes)[self.labels]
        return replace(self, classes=tuple(classes), labels=labels)

    @property
    def min_scores(self) -> dict[str, float]:
        """By class, the score from which detections are shown; empty if nothing is known about the scores."""
        return dict(self.details.get(_MIN_SCORES, {}))

    def with_min_scores(self, scores: Mapping[str, float]) -> Detections:
        """The same detections with these ``min_scores``, which their file keeps."""
        return replace(self, details=self.details | {_MIN_SCORES: dict(scores)})

    def shown(self, min_scores: Mapping[str, float] | None = None) -> Detections:
        """The detections with at least the score of their class, in their order.

        Args:
            min_scores: by class; None: their own. Classes without one have 0.3.
        """
        scores = self.min_scores if min_scores is None else min_scores
        least = np.array([scores.get(name, DEFAULT_SCORE) for name in self.classes], np.float64)
        return self.take(self.scores >= least[self.labels])

    def without_overlap(self) -> Detections:
        """A timeline with at most one label at a time; the rows that are left keep their order.

        Detections take their time in the order of their scores (of equal ones, the earlier, then the shorter, then the
        first by name). One that better ones cover in part keeps the longest part that is left, if that is at least
        half of it; otherwise it is left out, as are detections without length.
        """
        rank = np.argsort(np.argsort(np.array(self.classes, np.str_)))
        lengths = self.segments[:, 1] - self.segments[:, 0]
        order = np.lexsort((rank[self.labels], lengths, self.segments[:, 0], -self.scores))
        taken: dict[int, list[tuple[float, float]]] = {}
        segments = self.segments.copy()
        kept = np.zeros(len(self), np.bool_)
        for row in order.tolist():
            times = taken.setdefault(int(self.video[row]), [])
            start, end = _longest_free(float(segments[row, 0]), float(segments[row, 1]), times)
            if end > start and end - start >= lengths[row] / 2:
                segments[row] = start, end
                insort(times, (start, end))
                kept[row] = True
        return replace(self, segments=segments).take(kept)

    # The names of the columns of `to_rows`.
    COLUMNS: ClassVar[tuple[str, ...]] = ("video", "start_s", "end_s", "label", "score")

    @property
    def unread(self) -> dict[str, str]:
        """By name, the videos that could not be read, and why."""
        return dict(self.details.get("unread", {}))

    def __repr__(self) -> str:
        counts = f"{len(self.videos)} videos, {len(self)} detections, {len(self.classes)} classes"
        unread = f", {len(self.unread)} videos unread" if self.unread else ""
        return f"Detections({counts}{unread})"

    def __iter__(self) -> Iterator[VideoDetections]:
        """Each video with its detections, in their order."""
        order = np.argsort(self.video, kind="stable")
        ends = np.cumsum(np.bincount(self.video, minlength=len(self.videos)))
        return map(self._of_rows, self.videos, np.split(order, ends[:-1]))

    def __getitem__(self, name: str) -> VideoDetections:
        """One video's detections.

        Raises:
            KeyError: no such video.
        """
        if name not in self.videos:
            raise KeyError(name)
        return self._of_rows(name, np.flatnonzero(self.video == self.videos.index(name)))

    def __contains__(self, name: object) -> bool:
        return name in self.videos

    def _of_rows(self, name: str, rows: IntArray) -> VideoDetections:
        labels = np.array(self.classes, np.str_)[self.labels[rows]]
        return VideoDetections(
            name,
            segments=self.segments[rows],
            labels=labels,
            scores=self.scores[rows],
            duration_s=self.durations_s.get(name),
        )

    def to_rows(self) -> list[tuple[str, float, float, str, float]]:
        """A tuple of ``COLUMNS`` for each detection, times in seconds."""
        columns = (self.video.tolist(), self.segments.tolist(), self.labels.tolist(), self.scores.tolist())
        return [
            (self.videos[video], start, end, self.classes[label], score)
            for video, (start, end), label, score in zip(*columns, strict=True)
        ]

    def to_annotations(self, subset: str = "training") -> Annotations:
        """The detections as ground truth of videos in one subset, on the forward clock; their scores are details.

        Raises:
            ValueError: as :meth:`reversed`, of detections in reverse time.
        """
        detections = self.forward()
        videos = {
            video.name: AnnotatedVideo(
                name=video.name,
                subset=subset,
                duration_s=math.inf if video.duration_s is None else video.duration_s,
                segments=video.segments,
                labels=tuple(video.labels.tolist()),
                details={SCORE: video.scores},
            )
            for video in detections
        }
        return Annotations(videos, detections.classes)

    def to_json(self, path: str | Path) -> None:
        """Writes a file that :func:`read_detections` reads; with ``.gz`` at the end of its name, compressed."""
        write_detections(self, path)


def _longest_free(start: float, end: float, taken: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The longest part of a segment outside ``taken``, ascending and disjoint; the first of equally long ones.

    It ends no later than it starts if there is none.
    """
    free, place = [], start
    for low, high in taken:
        if high > start and low < end:
            free.append((place, low))
            place = high
    free.append((place, end))
    return max(free, key=lambda part: part[1] - part[0])


def _index_among(names: Sequence[str], among: Sequence[str]) -> IntArray:
    index = {name: i for i, name in enumerate(among)}
    return np.array([index[name] for name in names], np.int64)


def read_detections(path: str | Path, classes: str | Path | None = None) -> Detections:
    """Read a detection file in any of the formats of :data:`bitad.data.formats.detections.FORMATS`; ``.json.gz`` too.

    The classes of a file that lists none are its labels, in alphabetical order. Proposals have the class "action".

    Args:
        classes: a file of class names (:func:`~bitad.data.classes.read_class_numbers`): labels may be numbers of its
            classes, and it replaces the file's own list.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the first defect, with file, video and value; or a class that the list does not have.
    """
    path = Path(path)
    found = read_detection_file(path)
    stated = found.external.get(_CLASSES)
    if not (stated is None or (isinstance(stated, list) and all(isinstance(name, str) for name in stated))):
        raise ValueError(f"{path}: external_data's classes are {reprlib.repr(stated)}, not a list of names")
    durations_s = found.external.get(_DURATIONS, {})
    if not isinstance(durations_s, dict):
        raise ValueError(f"{path}: external_data's durations_s are {reprlib.repr(durations_s)}, not an object")
    if not _are_scores(min_scores := found.external.get(_MIN_SCORES, {})):
        raise ValueError(f"{path}: external_data's min_scores are {reprlib.repr(min_scores)}, not scores by class")
    names: tuple[str, ...] = (ANY_CLASS,)
    labels = [0] * len(found.scores)
    keys = (_BASIS, _DURATIONS, _CLASSES)
    try:
        if found.labels is None:
            log.info("%s: proposals without labels are read as detections of the class %r", path, ANY_CLASS)
        else:
            names, labels = index_labels(found.labels, stated, classes)
        return Detections(
            videos=tuple(found.videos),
            classes=names,
            video=found.video,
            segments=found.segments,
            scores=found.scores,
            labels=np.array(labels, np.int64),
            basis=found.external.get(_BASIS, "forward"),
            durations_s=durations_s,
            details={key: value for key, value in found.external.items() if key not in keys},
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _are_scores(value: object) -> bool:
    """Whether a value is an object of finite numbers."""
    if not isinstance(value, dict):
        return False
    return all(type(score) in (int, float) and math.isfinite(score) for score in value.values())


def write_detections(detections: Detections, path: str | Path) -> None:
    """Write a file that ``read_detections`` reads: the same rows, video after video. ``.gz`` compresses it.

    The file is replaced atomically.

    Raises:
        ValueError: ``details`` uses a key that is reserved.
    """
    own = {_BASIS: detections.basis, _DURATIONS: detections.durations_s, _CLASSES: list(detections.classes)}
    if taken := own.keys() & detections.details.keys():
        raise ValueError(f"details has the reserved key {shortlist(sorted(taken))}; rename it")
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in detections.videos}
    for video, start, end, label, score in detections.to_rows():
        results[video].append({"segment": [start, end], "label": label, "score": score})
    # The version is that of ActivityNet's submission format; other evaluators require the key.
    content = {"version": "VERSION 1.3", "results": results, "external_data": own | detections.details}
    write_json(content, path)


def under_names(detections: Detections, wanted: Iterable[str], source: object) -> Detections:
    """The detections with the wanted names of their videos, where these differ by habits, which is logged.

    Raises:
        ValueError: several videos may be meant by a wanted name, or one by several.
    """
    wanted = tuple(wanted)
    if set(wanted).issuperset(detections.videos):
        return detections
    names = new_names(detections.videos, wanted, source)
    return replace(
        detections,
        videos=tuple(names.get(name, name) for name in detections.videos),
        durations_s={names.get(name, name): seconds for name, seconds in detections.durations_s.items()},
    )


def alike(
    sets: Sequence[Detections],
    sources: Sequence[object],
    wanted: Iterable[str] = (),
) -> list[Detections]:
    """The sets with one name for each video: the wanted one, or that of the first set that has it."""
    names = list(wanted)
    found = []
    for one, source in zip(sets, sources, strict=True):
        found.append(under_names(one, names, source))
        names.extend(found[-1].videos)
    return found


def require_any(detections: Detections, wanted: Collection[str], source: object, truth: object) -> None:
    """Raise a ValueError if there are detections, and all are in other videos than the wanted ones."""
    if len(detections) and set(wanted).isdisjoint(detections.videos):
        sides = Matching.of(wanted, detections.videos).sides()
        remedy = "name the detections or the subset of these videos"
        raise ValueError(f"{source}: no detection is in a video of {truth}: {sides}; {remedy}")
