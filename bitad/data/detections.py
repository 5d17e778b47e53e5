"""Detections of a set of videos, as columns; their files, their classes, and their videos under other names.

Columns rather than a list of objects: a test set has 400,000 detections, and everything done with them (mAP, NMS,
late fusion, conversion of clocks) is done to all of them at once.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
from numpy.typing import NDArray

from bitad.data.annotations import ANY_CLASS, lines_and_numbers, names_by_number
from bitad.data.formats.detections import read_found
from bitad.runtime.files import read_json, write_json
from bitad.runtime.log import log
from bitad.timeline import Direction, reverse_seconds
from bitad.video.names import Matching, new_names


def read_class_numbers(path: str | Path) -> dict[int, str]:
    """The names of a data set's classes by number.

    Three kinds of files are read: names, a line each, numbered from 0; lines of a number and a name, as the THUMOS'14
    kit's ``detclasslist.txt``; and annotations, JSON whose ``label_id`` are the numbers.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it names no class, or a name or a number twice.
    """
    path = Path(path)
    if path.name.lower().endswith((".json", ".json.gz")):
        return _of_annotations(path)
    lines, numbered = lines_and_numbers(path)
    return dict(sorted(numbered.items())) or dict(enumerate(lines))


def _of_annotations(path: Path) -> dict[int, str]:
    content = read_json(path)
    database = content.get("database") if isinstance(content, dict) else None
    videos = database.values() if isinstance(database, dict) else ()
    lists = [video.get("annotations") for video in videos if isinstance(video, dict)]
    rows = chain.from_iterable(rows for rows in lists if isinstance(rows, list))
    pairs = {
        (row["label_id"], row["label"])
        for row in rows
        if isinstance(row, dict) and type(row.get("label_id")) is int and isinstance(row.get("label"), str)
    }
    if not pairs:
        raise ValueError(f"{path}: it names no class with a number (label_id); give a list of the names, a line each")
    return names_by_number(sorted(pairs), path)


def named_classes(
    labels: Sequence[str | int] | None, n: int, stated: Sequence[str] | None, classes: str | Path | None
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The class names of n detections, and each one's index among them, int64 ``[n]``.

    Args:
        labels: as a file states them; None where all are of one class without a name.
        stated: the classes that the file itself lists.
        classes: a list to use instead of that.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_class_numbers`; a label is not among the classes, or a number
            without a list of classes.
    """
    if labels is None:
        return (ANY_CLASS,), np.zeros(n, np.int64)
    numbers = read_class_numbers(classes) if classes is not None else dict(enumerate(stated or ()))
    source = str(classes) if classes is not None else "external_data"
    listed = tuple(numbers.values()) if classes is not None or stated is not None else None
    known = {label: _name_of(label, numbers, listed, source) for label in dict.fromkeys(labels)}
    names = tuple(sorted(set(known.values()))) if listed is None else listed
    place = {name: number for number, name in enumerate(names)}
    return names, np.array([place[known[label]] for label in labels], np.int64)


def _name_of(label: str | int, numbers: Mapping[int, str], listed: Sequence[str] | None, source: str) -> str:
    if isinstance(label, str) and (listed is None or label in listed):
        return label
    if listed is None:
        raise ValueError(
            f"label {label} is the number of a class; name the classes with --classes FILE: names, a line each, or the "
            "annotations whose label_id it is"
        )
    if isinstance(label, str) and not re.fullmatch(r"\d{1,18}", label):
        raise ValueError(f"label {label} is not among the classes that {source} names")
    if int(label) not in numbers:
        raise ValueError(
            f"class number {label} is not one of the {len(numbers)} of {source}, {min(numbers, default=0)} to "
            f"{max(numbers, default=0)}; where classes have other numbers, write lines of NUMBER NAME"
        )
    return numbers[int(label)]


# One video's detections: segments float64 [n, 2] in seconds, scores float64 [n], labels int64 [n].
VideoColumns = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]

# The names in a file's external_data that are fields of Detections; whatever else it holds is ``details``.
_BASIS, _DURATIONS, _CLASSES = "basis", "durations_s", "classes"

# Two files' durations of one video may differ by rounding; by more, and their reverse clocks are different clocks.
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
    segments: NDArray[np.float64]
    labels: NDArray[np.str_]
    scores: NDArray[np.float64]
    duration_s: float | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        return f"VideoDetections({self.name!r}, {len(self)} detections)"


@dataclass(frozen=True, eq=False)
class Detections:
    """Detections of several videos; row i of every column belongs to one detection.

    Args:
        videos: the names of all videos that were looked at, also those in which nothing was found.
        classes: the class names.
        video: int64 ``[n]``, index into ``videos``.
        segments: float64 ``[n, 2]``, start and end in seconds on the clock that ``basis`` names.
        scores: float64 ``[n]``.
        labels: int64 ``[n]``, index into ``classes``.
        basis: the clock of ``segments``: time t ("forward"), or D - t ("reverse").
        durations_s: duration in seconds by video name, where known (needed to change the basis).
        details: anything else a reader may need (the run, the configuration); kept in the file.

    Raises:
        ValueError: columns of different lengths, indices out of range, repeated names, numbers that are not finite,
            a segment that ends before it starts, an unknown basis, a duration that is not positive.
    """

    videos: tuple[str, ...]
    classes: tuple[str, ...]
    video: NDArray[np.int64]
    segments: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
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
                raise ValueError(f"{column} runs from {index.min()} to {index.max()}, but there are {len(names)} names")
            if len(set(names)) < len(names):
                raise ValueError(f"a name occurs twice in {reprlib.repr(names)}")
        sound = np.isfinite(self.segments).all(axis=1) & np.isfinite(self.scores)
        sound &= self.segments[:, 1] >= self.segments[:, 0]
        if not sound.all():
            row = int(np.argmin(sound))
            start, end = self.segments[row].tolist()
            raise ValueError(
                f"video {self.videos[self.video[row]]}: segment [{start}, {end}] with score {self.scores[row]}; all "
                "three must be finite, and the end no earlier than the start"
            )
        if self.basis not in get_args(Direction):
            raise ValueError(f"basis {self.basis!r} is not one of {', '.join(get_args(Direction))}")
        for name, duration in self.durations_s.items():
            if not (_is_number(duration) and duration > 0):
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
        """From each video's own segments ``[n, 2]``, scores ``[n]`` and labels ``[n]``, by video name."""
        parts = list(found.values())
        return Detections(
            videos=tuple(found),
            classes=tuple(classes),
            video=np.repeat(np.arange(len(parts)), [len(scores) for _, scores, _ in parts]),
            segments=np.concatenate([np.empty((0, 2)), *(segments for segments, _, _ in parts)]),
            scores=np.concatenate([np.empty(0), *(scores for _, scores, _ in parts)]),
            labels=np.concatenate([np.empty(0, np.int64), *(labels for _, _, labels in parts)]),
            basis=basis,
            durations_s=dict(durations_s or {}),
            details=dict(details or {}),
        )

    @staticmethod
    def concatenate(
        parts: Sequence[Detections], *, details: Mapping[str, Any] | None = None, names: Sequence[str] = ()
    ) -> Detections:
        """All rows of several detections, part after part; videos and classes of all of them, in order of appearance.

        Args:
            parts: on one clock.
            details: of the result.
            names: what errors call the parts: their files, for example.

        Raises:
            ValueError: no parts, or parts that disagree about the basis or a video's duration.
        """
        if not parts:
            raise ValueError("no detections to concatenate")
        first = parts[0]
        videos = tuple(dict.fromkeys(chain.from_iterable(part.videos for part in parts)))
        classes = tuple(dict.fromkeys(chain.from_iterable(part.classes for part in parts)))
        durations_s: dict[str, float] = {}
        source: dict[str, str] = {}
        called = names or [f"part {number}" for number in range(1, len(parts) + 1)]
        for part, own in zip(parts, called, strict=True):
            if part.basis != first.basis:
                raise ValueError(
                    f"detections on the {first.basis} and on the {part.basis} clock cannot be put together; "
                    "bring both to one clock with .forward()"
                )
            for name, duration in part.durations_s.items():
                other = source.setdefault(name, own)
                if abs(durations_s.setdefault(name, duration) - duration) > _SAME_DURATION_S:
                    raise ValueError(
                        f"video {name} lasts {durations_s[name]} s in {other} and {duration} s in {own}; "
                        "give both the duration of the annotations"
                    )
        return Detections(
            videos=videos,
            classes=classes,
            video=np.concatenate([_places(part.videos, videos)[part.video] for part in parts]),
            segments=np.concatenate([part.segments for part in parts]),
            scores=np.concatenate([part.scores for part in parts]),
            labels=np.concatenate([_places(part.classes, classes)[part.labels] for part in parts]),
            basis=first.basis,
            durations_s=durations_s,
            details=dict(details or {}),
        )

    def reversed(self) -> Detections:
        """The same detections on the other clock: ``[a, b]`` becomes ``[D-b, D-a]``; its own inverse.

        Raises:
            ValueError: a video with detections has no duration.
        """
        durations = np.array([self.durations_s.get(name, np.nan) for name in self.videos])[self.video]
        unknown = np.isnan(durations)
        if unknown.any():
            names = [self.videos[i] for i in np.unique(self.video[unknown])]
            raise ValueError(
                f"the duration of {named(names)} is not known, so its detections cannot change to the other clock; "
                "give durations_s, as in the annotations"
            )
        return replace(
            self,
            # Every row has its own D: mirror about 0, then shift.
            segments=reverse_seconds(self.segments, 0.0) + durations[:, None],
            basis="forward" if self.basis == "reverse" else "reverse",
        )

    def forward(self) -> Detections:
        """These detections on the forward clock (themselves, if they are on it already).

        Raises:
            ValueError: they are on the reverse clock and a video with detections has no duration.
        """
        return self if self.basis == "forward" else self.reversed()

    def take(self, rows: NDArray[Any]) -> Detections:
        """Some of the rows: a boolean mask ``[n]``, or row numbers in the wanted order. Videos and classes stay."""
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
            raise ValueError(f"no video {name!r} among these detections; they are of {named(self.videos)}")
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
            raise ValueError(
                f"the class lists differ by {named(sorted(different))}; detections made with different class lists "
                "cannot be put together"
            )
        return replace(self, classes=tuple(classes), labels=_places(self.classes, classes)[self.labels])

    # The names of the columns of `to_rows`.
    COLUMNS: ClassVar[tuple[str, ...]] = ("video", "start_s", "end_s", "label", "score")

    @property
    def unread(self) -> dict[str, str]:
        """By name, the videos that could not be read, and why."""
        return dict(self.details.get("unread", {}))

    def __repr__(self) -> str:
        counts = [(len(self.videos), "videos"), (len(self), "detections"), (len(self.classes), "classes")]
        counts += [(len(self.unread), "videos unread")] if self.unread else []
        return f"Detections({', '.join(f'{count} {what}' for count, what in counts)})"

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

    def _of_rows(self, name: str, rows: NDArray[np.int64]) -> VideoDetections:
        labels = np.array(self.classes, np.str_)[self.labels[rows]]
        return VideoDetections(name, self.segments[rows], labels, self.scores[rows], self.durations_s.get(name))

    def to_rows(self) -> list[tuple[str, float, float, str, float]]:
        """A tuple of ``COLUMNS`` for each detection, times in seconds."""
        columns = (self.video.tolist(), self.segments.tolist(), self.labels.tolist(), self.scores.tolist())
        return [
            (self.videos[video], start, end, self.classes[label], score)
            for video, (start, end), label, score in zip(*columns, strict=True)
        ]

    def to_json(self, path: str | Path) -> None:
        """Writes a file that :func:`read_detections` reads; with ``.gz`` at the end of its name, compressed."""
        write_detections(self, path)


def _places(names: Sequence[str], among: Sequence[str]) -> NDArray[np.int64]:
    """Where each name stands in another list."""
    place = {name: i for i, name in enumerate(among)}
    return np.array([place[name] for name in names], np.int64)


def named(names: Sequence[str], most: int = 3) -> str:
    """Names for a message: the first few, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def read_detections(path: str | Path, classes: str | Path | None = None) -> Detections:
    """Read a detection file in any of the forms of :data:`bitad.data.formats.detections.FORMS`; ``.json.gz`` too.

    A file that names no classes has those that occur in it, in alphabetical order. Proposals, which have no label, are
    of the class :data:`~bitad.data.annotations.ANY_CLASS`, as is said in the log.

    Args:
        path: the file.
        classes: a file of class names (:func:`~bitad.data.detections.read_class_numbers`): labels may be numbers
            of its classes, and are all of them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the first defect, with file, video and value; a class that the list does not have, or a class
            number without a list.
    """
    path = Path(path)
    found = read_found(path)
    stated = found.external.get(_CLASSES)
    if not (stated is None or (isinstance(stated, list) and all(isinstance(name, str) for name in stated))):
        raise ValueError(f"{path}: external_data's classes are {reprlib.repr(stated)}; they must be a list of names")
    durations_s = found.external.get(_DURATIONS, {})
    if not isinstance(durations_s, dict):
        raise ValueError(f"{path}: external_data's durations_s are {reprlib.repr(durations_s)}; they must be an object")
    try:
        names, labels = named_classes(found.labels, len(found.scores), stated, classes)
        if found.labels is None:
            log.info("%s: proposals without labels; they are read as detections of the class %r", path, ANY_CLASS)
        return Detections(
            videos=tuple(found.videos),
            classes=names,
            video=found.video,
            segments=found.segments,
            scores=found.scores,
            labels=labels,
            basis=found.external.get(_BASIS, "forward"),
            durations_s=durations_s,
            details={key: value for key, value in found.external.items() if key not in (_BASIS, _DURATIONS, _CLASSES)},
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write_detections(detections: Detections, path: str | Path) -> None:
    """Write a detection file that ``read_detections`` reads back: the same rows, video after video.

    The file is written whole or not at all; ``.gz`` compresses it.

    Raises:
        ValueError: ``details`` uses a name that the file uses itself.
    """
    own = {
        _BASIS: detections.basis,
        _DURATIONS: detections.durations_s,
        _CLASSES: list(detections.classes),
    }
    if taken := own.keys() & detections.details.keys():
        raise ValueError(f"details may not be called {named(sorted(taken))}: the file uses that name itself")
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in detections.videos}
    columns = (detections.video, detections.segments, detections.labels, detections.scores)
    for video, segment, label, score in zip(*(column.tolist() for column in columns), strict=True):
        results[detections.videos[video]].append(
            {"segment": segment, "label": detections.classes[label], "score": score}
        )
    # The version is that of ActivityNet's submission form; evaluators of the field ask for the key.
    content = {"version": "VERSION 1.3", "results": results, "external_data": own | detections.details}
    write_json(content, path)


def _is_number(value: Any) -> bool:
    # JSON's integers have no bound, and NaN compares false.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63


def under_names(detections: Detections, wanted: Iterable[str], source: object) -> Detections:
    """The detections with the wanted names of their videos, where these differ by habits; other names stay.

    Args:
        detections: of these and maybe other videos.
        wanted: the names to have.
        source: of the detections, for messages; what was matched is said in the log.

    Raises:
        ValueError: several videos may be meant by a wanted name, or one by several.
    """
    wanted = tuple(wanted)
    if set(wanted).issuperset(detections.videos):
        return detections
    names = new_names(detections.videos, wanted, source)
    if not names:
        return detections
    return replace(
        detections,
        videos=tuple(names.get(name, name) for name in detections.videos),
        durations_s={names.get(name, name): seconds for name, seconds in detections.durations_s.items()},
    )


def alike(sets: Sequence[Detections], sources: Sequence[object], wanted: Iterable[str] = ()) -> list[Detections]:
    """Sets of detections in which a video has one name: the wanted one, or else that of the first set that has it.

    Args:
        sets: of any videos.
        sources: of each, for messages.
        wanted: as of :func:`under_names`. Raises likewise.
    """
    names = list(wanted)
    found = []
    for one, source in zip(sets, sources, strict=True):
        found.append(under_names(one, names, source))
        names.extend(found[-1].videos)
    return found


def require_any(detections: Detections, wanted: Collection[str], source: object, truth: object) -> None:
    """Refuses detections none of which is in a wanted video: they would be measured as if nothing had been found.

    Args:
        detections: under the wanted names.
        wanted: the videos of the ground truth.
        source: of the detections, for the message.
        truth: of the ground truth.

    Raises:
        ValueError: there are detections, and all are in other videos.
    """
    if len(detections) and set(wanted).isdisjoint(detections.videos):
        raise ValueError(
            f"{source}: no detection is in a video of {truth}: {Matching.of(wanted, detections.videos).sides()}; name "
            "the detections or the subset of these videos"
        )
