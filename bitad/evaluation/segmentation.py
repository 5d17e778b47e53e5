"""F1@{10, 25, 50} and edit score, the segmental measures of action segmentation (Lea et al., CVPR 2017).

They are of one label a moment, so segments of a label that touch or overlap are one segment. Moments without a label,
and those labelled ``background``, are background, which is left out. Times are exact: nothing is sampled to frames.

* **F1@k**: a detected segment is a true positive if, of the ground-truth segments of its video and label, the one with
  the highest IoU (of equals, the earliest) reaches k percent, and no earlier detected segment is a true positive by it.
  IoU is intersection over the span of both. With TP true positives among P detected and T ground-truth segments,
  ``F1 = 2 * TP / (P + T)``. Later work counts TP, P and T over all videos (MS-TCN's code, Farha and Gall, CVPR 2019):
  ``f1``. Lea et al.'s own code takes the mean of the F1 of each video: ``f1_mean_of_videos``.
* **Edit score** of a video: ``1 - d / max(P, T)``, where d is the Levenshtein distance of the two sequences of labels
  in the order of time; then the mean over the videos.

A video in which neither has a segment has F1 and edit score 1. MS-TCN's code ends a segment that reaches the end of its
video one frame early; this does not. All figures are fractions, 0 to 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bitad.data.annotations import Annotations
from bitad.data.detections import DEFAULT_SCORE, Detections
from bitad.data.tiou import tiou_pairs
from bitad.runtime.files import write_json
from bitad.runtime.log import shortlist
from bitad.timeline import FloatArray, IntArray

OVERLAPS = (0.1, 0.25, 0.5)

_BACKGROUND = "background"
# Ends of segments that touch may differ by rounding.
_TOUCHING_S = 1e-3


@dataclass(frozen=True, eq=False)
class SegmentalF1:
    """The accuracy of a timeline with one label at a time, and the data.

    Args:
        overlaps: the n thresholds of IoU, 0 to 1.
        classes: the K classes with a segment, in the ground truth or in the timeline.
        true_positives: int64 ``[V, K, n]``, by video and class.
        detected: int64 ``[V, K]``, number of segments of the timeline.
        segments: int64 ``[V, K]``, number of ground-truth segments.
        edits: by video, its edit score.
        min_scores: by class, the score from which detections were taken.
        min_scores_of: where these are from: arguments, the detections, or, as these have none, the default.
        detections: number of detections with these scores in videos of the ground truth.
        elsewhere: number of those in other videos; they are ignored.
    """

    overlaps: tuple[float, ...]
    classes: tuple[str, ...]
    true_positives: IntArray
    detected: IntArray
    segments: IntArray
    edits: dict[str, float]
    subsets: tuple[str, ...]
    min_scores: dict[str, float]
    min_scores_of: Literal["arguments", "detections", "default"]
    detections: int
    elsewhere: int

    @property
    def f1(self) -> FloatArray:
        """F1 at each overlap, of all videos together, ``[n]``."""
        return _f1(self.true_positives, self.detected, self.segments, (0, 1))

    @property
    def f1_mean_of_videos(self) -> FloatArray:
        """The mean of the videos' F1 at each overlap, ``[n]``."""
        per_video: FloatArray = _f1(self.true_positives, self.detected, self.segments, (1,)).mean(axis=0)
        return per_video

    @property
    def f1_per_class(self) -> FloatArray:
        """F1 of each class at each overlap, of all videos together, ``[K, n]``."""
        return _f1(self.true_positives, self.detected, self.segments, (0,))

    @property
    def edit(self) -> float:
        """The mean of the videos' edit scores."""
        return float(np.mean(list(self.edits.values())))

    def __repr__(self) -> str:
        pairs = zip(self.overlaps, self.f1.tolist(), strict=True)
        figures = ", ".join(f"F1@{100 * overlap:g}: {value:.4f}" for overlap, value in pairs)
        return f"SegmentalF1({figures}, edit={self.edit:.4f}, {len(self.edits)} videos)"

    def to_json(self, path: str | Path | None = None) -> dict[str, Any]:
        """All values in JSON's types; with a path, also written there."""
        per_class = {
            "f1_per_class": self.f1_per_class,
            "true_positives": self.true_positives.sum(0),
            "detected": self.detected.sum(0),
            "segments": self.segments.sum(0),
        }
        content = {
            "metric": "segmental",
            "overlaps": list(self.overlaps),
            "f1": self.f1.tolist(),
            "f1_mean_of_videos": self.f1_mean_of_videos.tolist(),
            "edit": self.edit,
            "edit_per_video": self.edits,
            **{key: dict(zip(self.classes, rows.tolist(), strict=True)) for key, rows in per_class.items()},
            "subsets": list(self.subsets),
            "videos": len(self.edits),
            "min_scores": self.min_scores,
            "min_scores_of": self.min_scores_of,
            "detections": self.detections,
            "elsewhere": self.elsewhere,
        }
        if path is not None:
            write_json(content, path)
        return content


def segmental_f1(
    ground_truth: Annotations,
    detections: Detections,
    *,
    min_scores: Mapping[str, float] | None = None,
    overlaps: Sequence[float] = OVERLAPS,
) -> SegmentalF1:
    """F1@k and edit score of detections on either clock against all videos of ``ground_truth``.

    Detections become one label a moment by :meth:`Detections.shown` and :meth:`Detections.without_overlap`.

    Args:
        min_scores: by class, the least score; None: the detections' own ones. Classes without one have 0.3.
        overlaps: thresholds of IoU, each above 0 and at most 1.

    Raises:
        ValueError: the ground truth has no segment, or two labels at a time; an overlap out of its range; reverse
            detections without durations.
    """
    thresholds = np.array(overlaps, np.float64)
    if not (thresholds.size and ((thresholds > 0) & (thresholds <= 1)).all()):
        raise ValueError(f"overlaps {list(overlaps)}; give at least one, each above 0 and at most 1")
    ground_truth = ground_truth.only_classes()
    videos = ground_truth.videos
    names = tuple(dict.fromkeys([*ground_truth.classes, *detections.classes]))
    true = _runs_of_truth(ground_truth, names)

    scores = detections.min_scores if min_scores is None else min_scores
    number = {name: i for i, name in enumerate(videos)}
    shown = detections.forward().shown(scores)
    among = np.array([number.get(name, -1) for name in shown.videos], np.int64)
    known = shown.take(among[shown.video] >= 0)
    timeline = known.without_overlap()
    own = np.array([names.index(name) for name in timeline.classes], np.int64)
    found = _Runs.of(among[timeline.video], timeline.segments, own[timeline.labels], names)

    best, overlap = _best_matches(true, found, len(names))
    hits = np.zeros((len(videos), len(names), len(thresholds)), np.int64)
    for column, threshold in enumerate(thresholds):
        # A ground-truth segment makes one true positive, however many have it as their best.
        matched = np.unique(best[overlap >= threshold])
        np.add.at(hits[:, :, column], (true.video[matched], true.labels[matched]), 1)
    detected, segments = (runs.counts(len(videos), len(names)) for runs in (found, true))
    present = np.flatnonzero((detected + segments).any(axis=0))
    return SegmentalF1(
        overlaps=tuple(thresholds.tolist()),
        classes=tuple(names[i] for i in present),
        true_positives=hits[:, present],
        detected=detected[:, present],
        segments=segments[:, present],
        edits=dict(zip(videos, _edit_scores(found, true, len(videos)), strict=True)),
        subsets=tuple(ground_truth.subsets()),
        min_scores={name: scores.get(name, DEFAULT_SCORE) for name in detections.classes},
        min_scores_of="arguments" if min_scores is not None else "detections" if scores else "default",
        detections=len(known),
        elsewhere=len(shown) - len(known),
    )


@dataclass(frozen=True, eq=False)
class _Runs:
    """Stretches of time of one label each, by video and start."""

    video: IntArray  # [n]
    segments: FloatArray  # [n, 2], in seconds
    labels: IntArray  # [n]

    @staticmethod
    def of(video: IntArray, segments: FloatArray, labels: IntArray, names: Sequence[str]) -> _Runs:
        """The segments without background, those of a label that touch or overlap as one."""
        ignored = np.array([name.casefold() == _BACKGROUND for name in names], np.bool_)
        kept = (segments[:, 1] > segments[:, 0]) & ~ignored[labels]
        video, segments, labels = video[kept], segments[kept], labels[kept]
        rows: list[tuple[int, float, float, int]] = []
        for row in np.lexsort((segments[:, 0], labels, video)).tolist():
            place, label, (start, end) = int(video[row]), int(labels[row]), segments[row].tolist()
            if rows and (rows[-1][0], rows[-1][3]) == (place, label) and start <= rows[-1][2] + _TOUCHING_S:
                rows[-1] = (place, rows[-1][1], max(rows[-1][2], end), label)
            else:
                rows.append((place, start, end, label))
        rows.sort()
        columns = np.array(rows, np.float64).reshape(-1, 4)
        return _Runs(columns[:, 0].astype(np.int64), columns[:, 1:3], columns[:, 3].astype(np.int64))

    def counts(self, n_videos: int, n_classes: int) -> IntArray:
        """The number of runs of each video and class, ``[V, K]``."""
        table = np.bincount(self.video * n_classes + self.labels, minlength=n_videos * n_classes)
        return table.reshape(n_videos, n_classes)


def _runs_of_truth(ground_truth: Annotations, names: Sequence[str]) -> _Runs:
    """The ground truth as runs; raises a ValueError if it has none, or two labels at a time."""
    videos = list(ground_truth.videos.values())
    index = {name: i for i, name in enumerate(names)}
    labels = [index[label] for video in videos for label in video.labels]
    place = np.repeat(np.arange(len(videos)), [len(video.labels) for video in videos])
    segments = np.concatenate([np.empty((0, 2)), *(video.segments for video in videos)])
    runs = _Runs.of(place, segments, np.array(labels, np.int64), names)
    if not len(runs.labels):
        subsets = " and ".join(map(repr, ground_truth.subsets()))
        raise ValueError(f"the ground truth of subset {subsets} has no segment to evaluate against; name another")
    both = (runs.video[1:] == runs.video[:-1]) & (runs.segments[1:, 0] < runs.segments[:-1, 1] - _TOUCHING_S)
    if both.any():
        row = int(np.argmax(both))
        parts = [f"{names[runs.labels[i]]} {runs.segments[i].tolist()}" for i in (row, row + 1)]
        named = shortlist(videos[i].name for i in np.unique(runs.video[1:][both]))
        raise ValueError(
            f"the ground truth has two labels at a time in {named} ({' and '.join(parts)}); F1@k and edit score are of "
            "one label at a time; use another metric"
        )
    return runs


def _best_matches(true: _Runs, found: _Runs, n_classes: int) -> tuple[IntArray, FloatArray]:
    """Of each detected segment that overlaps one of its label: the ground-truth segment of highest IoU, and that."""
    detected, segment, _ = tiou_pairs(
        found.video * n_classes + found.labels,
        found.segments,
        true.video * n_classes + true.labels,
        true.segments,
        float(np.finfo(np.float64).tiny),
    )
    (start_a, end_a), (start_b, end_b) = found.segments[detected].T, true.segments[segment].T
    intersection = np.minimum(end_a, end_b) - np.maximum(start_a, start_b)
    overlap = intersection / (np.maximum(end_a, end_b) - np.minimum(start_a, start_b))
    order = np.lexsort((segment, -overlap, detected))
    _, first = np.unique(detected[order], return_index=True)
    return segment[order[first]], overlap[order[first]]


def _f1(hits: IntArray, detected: IntArray, segments: IntArray, axes: tuple[int, ...]) -> FloatArray:
    """F1 of counts ``[V, K, n]`` and ``[V, K]`` summed over some of their axes; 1 where there is no segment."""
    total = (detected + segments).sum(axis=axes)[..., None]
    return np.where(total > 0, 2 * hits.sum(axis=axes) / np.maximum(total, 1), 1.0)


def _edit_scores(found: _Runs, true: _Runs, n_videos: int) -> list[float]:
    """The edit score of each video."""
    cuts = np.arange(1, n_videos)
    sequences = (np.split(runs.labels, np.searchsorted(runs.video, cuts)) for runs in (found, true))
    scores = []
    for one, other in zip(*sequences, strict=True):
        longest = max(len(one), len(other))
        scores.append(1 - _levenshtein(one, other) / longest if longest else 1.0)
    return scores


def _levenshtein(one: IntArray, other: IntArray) -> int:
    """The least number of insertions, deletions and replacements that turn one sequence into the other."""
    place = np.arange(len(other) + 1)
    distances = place
    for i, label in enumerate(one.tolist(), start=1):
        best = np.minimum(distances[1:] + 1, distances[:-1] + (other != label))
        # An insertion adds 1 to the distance of any earlier place.
        distances = np.minimum.accumulate(np.append(i, best) - place) + place
    return int(distances[-1])
