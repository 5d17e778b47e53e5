"""Detections of a set of videos, as columns, and the files that hold them (ActivityNet's ``results`` form).

Columns rather than a list of objects: a test set has 400,000 detections, and everything done with them (mAP, NMS,
late fusion, conversion of clocks) is done to all of them at once. This module does not import torch.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from bitad.files import read_json, write_json
from bitad.timeline import reverse_seconds

Basis = Literal["forward", "reverse"]

# One video's detections: segments float64 [n, 2] in seconds, scores float64 [n], labels int64 [n].
VideoColumns = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]

# The names in a file's external_data that are fields of Detections; whatever else it holds is ``details``.
_BASIS, _DURATIONS, _CLASSES = "basis", "durations_s", "classes"

# Two files' durations of one video may differ by rounding; by more, and their reverse clocks are different clocks.
_SAME_DURATION_S = 1e-3


@dataclass(frozen=True)
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
    basis: Basis = "forward"
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
        if self.basis not in get_args(Basis):
            raise ValueError(f"basis {self.basis!r} is not one of {', '.join(get_args(Basis))}")
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
        basis: Basis = "forward",
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
    def concatenate(parts: Sequence[Detections], *, details: Mapping[str, Any] | None = None) -> Detections:
        """All rows of several detections of one data set, part after part; classes in the first part's order.

        Raises:
            ValueError: no parts, or parts that disagree about the basis, the class names or a video's duration.
        """
        if not parts:
            raise ValueError("no detections to concatenate")
        first = parts[0]
        videos = tuple(dict.fromkeys(chain.from_iterable(part.videos for part in parts)))
        position = {name: i for i, name in enumerate(videos)}
        durations_s: dict[str, float] = {}
        for part in parts:
            if part.basis != first.basis:
                raise ValueError(
                    f"detections on the {first.basis} and on the {part.basis} clock cannot be put together; "
                    "bring both to one clock with .forward()"
                )
            for name, duration in part.durations_s.items():
                if abs(durations_s.setdefault(name, duration) - duration) > _SAME_DURATION_S:
                    raise ValueError(
                        f"video {name} lasts {durations_s[name]} s in one part and {duration} s in another; "
                        "give both the duration of the annotations"
                    )
        parts = [part.with_classes(first.classes) for part in parts]
        places = [np.array([position[name] for name in part.videos], np.int64) for part in parts]
        return Detections(
            videos=videos,
            classes=first.classes,
            video=np.concatenate([place[part.video] for place, part in zip(places, parts, strict=True)]),
            segments=np.concatenate([part.segments for part in parts]),
            scores=np.concatenate([part.scores for part in parts]),
            labels=np.concatenate([part.labels for part in parts]),
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
        place = np.array([list(classes).index(name) for name in self.classes], np.int64)
        return replace(self, classes=tuple(classes), labels=place[self.labels])


def named(names: Sequence[str], most: int = 3) -> str:
    """Names for a message: the first few, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def read_detections(path: str | Path) -> Detections:
    """Read a detection file: ActivityNet's ``results`` form, ``.json`` or ``.json.gz``.

    ``{"results": {video: [{"segment": [start, end], "label": name, "score": number}, ...]}, "external_data": {...}}``;
    ``external_data`` may be missing. A file that names no classes has those that occur in it, in alphabetical order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the first defect, with file, video and value.
    """
    path = Path(path)
    content = read_json(path)
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, dict):
        raise ValueError(
            f'{path}: no "results" object in this file; a detection file has {{"results": {{video: [...]}}}}'
        )
    for name, rows in results.items():
        if not isinstance(rows, list):
            raise ValueError(f"{path}: video {name}: {reprlib.repr(rows)} is not a list of detections")
    external = content.get("external_data") or {}
    if not isinstance(external, dict):
        raise ValueError(f"{path}: external_data is {reprlib.repr(external)}; it must be an object")
    segments, scores, names = _columns(path, results)
    classes = external.get(_CLASSES, sorted(set(names)))
    if not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise ValueError(f"{path}: external_data's classes are {reprlib.repr(classes)}; they must be a list of names")
    if unknown := sorted(set(names) - set(classes)):
        raise ValueError(f"{path}: label {named(unknown)} is not among the classes that external_data names")
    index = {name: i for i, name in enumerate(classes)}
    durations_s = external.get(_DURATIONS, {})
    if not isinstance(durations_s, dict):
        raise ValueError(f"{path}: external_data's durations_s are {reprlib.repr(durations_s)}; they must be an object")
    try:
        return Detections(
            videos=tuple(results),
            classes=tuple(classes),
            video=np.repeat(np.arange(len(results)), [len(rows) for rows in results.values()]),
            segments=segments,
            scores=scores,
            labels=np.fromiter(map(index.__getitem__, names), np.int64, len(names)),
            basis=external.get(_BASIS, "forward"),
            durations_s=durations_s,
            details={key: value for key, value in external.items() if key not in (_BASIS, _DURATIONS, _CLASSES)},
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


def _columns(path: Path, results: dict[str, list[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str]]:
    """All rows' segments ``[n, 2]``, scores ``[n]`` and label names, checked at once; the slow look at each row
    is taken only to name the defect."""
    rows = list(chain.from_iterable(results.values()))
    if not rows:
        return np.empty((0, 2)), np.empty(0), []
    try:
        segments = np.array([row["segment"] for row in rows])
        scores = np.array([row["score"] for row in rows])
        names = [row["label"] for row in rows]
        kinds = {*map(type, chain.from_iterable(row["segment"] for row in rows)), *(type(row["score"]) for row in rows)}
        sound = (
            kinds <= {int, float}  # among numbers, NumPy takes true and false for numbers
            and segments.shape == (len(rows), 2)
            and scores.shape == (len(rows),)
            and segments.dtype.kind in "fiu"
            and scores.dtype.kind in "fiu"
            and all(isinstance(name, str) for name in set(names))
            and bool(np.isfinite(segments).all() and np.isfinite(scores).all())
            and bool((segments[:, 1] >= segments[:, 0]).all())
        )
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        defects = ((name, _defect(row)) for name, found in results.items() for row in found)
        name, defect = next((name, defect) for name, defect in defects if defect)
        raise ValueError(f"{path}: video {name}: {defect}")
    return segments.astype(np.float64), scores.astype(np.float64), names


def _defect(row: Any) -> str | None:
    """What is wrong with one row of a detection file."""
    if not isinstance(row, dict):
        return f"{reprlib.repr(row)} is not a detection; one is {{segment, label, score}}"
    for key in ("segment", "label", "score"):
        if key not in row:
            return f"detection {reprlib.repr(row)} has no {key}"
    segment, label, score = row["segment"], row["label"], row["score"]
    if not (isinstance(segment, list) and len(segment) == 2 and all(map(_is_number, segment))):
        return f"segment {reprlib.repr(segment)} is not two finite numbers [start, end]"
    if segment[1] < segment[0]:
        return f"segment {segment} ends before it starts"
    if not isinstance(label, str):
        return f"label {reprlib.repr(label)} is not a class name"
    if not _is_number(score):
        return f"score {reprlib.repr(score)} is not a finite number"
    return None


def _is_number(value: Any) -> bool:
    # The bound is that of int64: JSON's integers have none, and NaN compares false.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63
