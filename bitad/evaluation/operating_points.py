"""The score from which detections of a class are shown: that of best F1, or of a wanted precision.

Scores rank the detections of a detector. They are not probabilities, and differ between classes and trainings, so that
no single score separates right from wrong. On videos with ground truth, every score has a recall and a precision. Both
are noisy with a few segments per class; smoothing over scores, and over classes, finds scores that also hold for other
videos.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitad.data.annotations import Annotations
from bitad.data.detections import Detections
from bitad.evaluation.mean_average_precision import precision_recall

# A detection is right from this tIoU.
TIOU = 0.5
# The least score that is shown where nothing is known about a detector's scores.
DEFAULT_SCORE = 0.3
# The scores of a curve, ascending; neighbours differ by 5 %.
SCORES: NDArray[np.float64] = np.geomspace(0.005, 1.0, 110)
# Standard deviation of the smoothing over scores, relative to the score.
_SMOOTHING = 0.1
# A class counts as its own segments and this many of the mean of all classes.
_SEGMENTS_OF_MEAN = 15.0


@dataclass(frozen=True, eq=False)
class OperatingPoints:
    """Recall, and number of detections, of each class by the least score that is shown.

    Args:
        classes: those with ground truth.
        recall: float64 ``[K, S]``, at :data:`SCORES`: right detections over segments; smoothed.
        detections: float64 ``[K, S]``: all detections over segments; smoothed.
        subset: of the videos with ground truth.
    """

    classes: tuple[str, ...]
    recall: NDArray[np.float64]
    detections: NDArray[np.float64]
    subset: str = ""

    @staticmethod
    def of(ground_truth: Annotations, detections: Detections) -> OperatingPoints:
        """The points of detections on either clock, against all videos of ``ground_truth``.

        Raises:
            ValueError: no ground truth, or reverse detections without durations.
        """
        curves = precision_recall(ground_truth, detections, tiou=TIOU)
        labels = [label for video in ground_truth.videos.values() for label in video.labels]
        segments = np.array([[labels.count(name)] for name in curves], np.float64)
        recall, found = (np.zeros((len(curves), len(SCORES))) for _ in range(2))
        for row, curve in enumerate(curves.values()):
            count = np.searchsorted(-curve.scores, -SCORES, side="right")  # detections of at least each score
            recall[row] = np.append(0.0, curve.recall)[count]
            found[row] = count / segments[row]
        return OperatingPoints(
            tuple(curves),
            _smoothed(recall, segments),
            _smoothed(found, segments),
            ", ".join(dict.fromkeys(video.subset for video in ground_truth.videos.values())),
        )

    def scores(self, classes: Sequence[str], precision: float | None = None) -> dict[str, float]:
        """The least score to show, by class.

        Args:
            precision: show as many detections as have at least this precision, 0 to 1; None: the score of best F1.

        Returns:
            for a class that never reaches the precision, the score of its highest precision; for one without ground
            truth, the median of the others.
        """
        reached = self.recall / np.maximum(self.detections, 1e-9)
        if precision is None:
            measure = 2 * self.recall / (1 + self.detections)  # F1
        else:
            measure = np.where(reached >= precision, 1 + self.recall, reached)
        own = dict(zip(self.classes, SCORES[measure.argmax(1)].tolist(), strict=True))
        rest = float(np.median(list(own.values()))) if own else DEFAULT_SCORE
        return {name: own.get(name, rest) for name in classes}

    def to_json(self) -> dict[str, Any]:
        """In JSON's types; :meth:`from_json` reads it."""
        columns = {"recall": self.recall, "detections": self.detections}
        rounded = {name: np.round(column, 5).tolist() for name, column in columns.items()}
        return {"classes": list(self.classes), "subset": self.subset, **rounded}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> OperatingPoints:
        """From :meth:`to_json`."""
        recall, found = (np.array(content[key]).reshape(-1, len(SCORES)) for key in ("recall", "detections"))
        return OperatingPoints(tuple(content["classes"]), recall, found, str(content["subset"]))


def is_shown(detections: Detections, scores: Mapping[str, float]) -> NDArray[np.bool_]:
    """Which detections have at least the score of their class, bool ``[n]``."""
    least = np.array([scores.get(name, DEFAULT_SCORE) for name in detections.classes])
    shown: NDArray[np.bool_] = detections.scores >= least[detections.labels]
    return shown


def without_overlap(detections: Detections) -> Detections:
    """A timeline with at most one label at a time.

    Detections take their time in the order of their scores (of equal ones, the earlier, then the shorter, then the
    first by name). One that better ones cover in part keeps the longest part that is left, if that is at least half of
    it; otherwise it is left out.
    """
    rank = np.argsort(np.argsort(np.array(detections.classes)))
    lengths = detections.segments[:, 1] - detections.segments[:, 0]
    order = np.lexsort((rank[detections.labels], lengths, detections.segments[:, 0], -detections.scores))
    taken: dict[int, list[tuple[float, float]]] = {}
    segments = detections.segments.copy()
    kept = []
    for row in order.tolist():
        times = taken.setdefault(int(detections.video[row]), [])
        start, end = _longest_free(segments[row, 0], segments[row, 1], times)
        if end > start and end - start >= lengths[row] / 2:
            segments[row] = start, end
            insort(times, (start, end))
            kept.append(row)
    rows = np.sort(np.array(kept, np.int64))
    return replace(
        detections,
        video=detections.video[rows],
        segments=segments[rows],
        scores=detections.scores[rows],
        labels=detections.labels[rows],
    )


def _longest_free(start: float, end: float, taken: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The longest part of a segment outside ``taken``, ascending and disjoint; the first of equally long ones."""
    free, place = [], start
    for low, high in taken:
        if high > start and low < end:
            free.append((place, low))
            place = high
    free.append((place, end))
    return max(free, key=lambda part: part[1] - part[0])


def _smoothed(values: NDArray[np.float64], segments: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values ``[K, S]``, smoothed over scores, and towards the mean of the classes; ``segments`` are ``[K, 1]``."""
    step = float(np.log(SCORES[1] / SCORES[0]))
    reach = round(4 * _SMOOTHING / step)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * step / _SMOOTHING) ** 2)
    padded = np.pad(values, ((0, 0), (reach, reach)), mode="edge")
    smooth = np.lib.stride_tricks.sliding_window_view(padded, len(kernel), axis=1) @ (kernel / kernel.sum())
    return (segments * smooth + _SEGMENTS_OF_MEAN * smooth.mean(0)) / (segments + _SEGMENTS_OF_MEAN)
