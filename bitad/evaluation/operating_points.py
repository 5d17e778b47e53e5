"""The score from which detections of a class are shown: that of best F1, or of a wanted precision.

Scores rank the detections of a detector. They are not probabilities, and differ between classes and trainings, so that
no single score separates right from wrong. On videos with ground truth, every score has a recall and a precision. Both
are noisy with a few segments per class; smoothing over scores, and over classes, finds scores that also hold for other
videos.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bitad.data.annotations import Annotations
from bitad.data.detections import DEFAULT_SCORE, Detections
from bitad.evaluation.mean_average_precision import Truth, precision_recall
from bitad.runtime.log import log, shortlist
from bitad.timeline import FloatArray

# A detection is right from this tIoU.
TIOU = 0.5
# The scores of a curve, ascending; neighbours differ by 5 %.
SCORES: FloatArray = np.geomspace(0.001, 1.0, 142).round(5)
# Standard deviation of the smoothing over scores, relative to the score.
_SMOOTHING = 0.1
# A class counts as its own segments and this many of the mean of all classes.
_SEGMENTS_OF_MEAN = 15.0
# Measures that differ by less are equal.
_EQUAL = 1e-9


@dataclass(frozen=True, eq=False)
class OperatingPoints:
    """Recall, and number of detections, of each class by the least score that is shown.

    Args:
        classes: those of the detector with ground truth.
        recall: float64 ``[K, S]``: right detections over segments; smoothed.
        detections: float64 ``[K, S]``: all detections over segments; smoothed.
        subset: of the videos with ground truth.
        at: float64 ``[S]``, the least scores, ascending.
    """

    classes: tuple[str, ...]
    recall: FloatArray
    detections: FloatArray
    subset: str = ""
    at: FloatArray = field(default_factory=SCORES.copy)

    @staticmethod
    def of(ground_truth: Annotations, detections: Detections) -> OperatingPoints:
        """The points of detections on either clock, against all videos of ``ground_truth``.

        Raises:
            ValueError: no ground truth, or reverse detections without durations.
        """
        truth = Truth.of(ground_truth)
        known = np.isin(truth.classes, detections.classes)
        segments = truth.segments_per_class[known, None].astype(np.float64)
        curves = precision_recall(ground_truth, detections, tiou=TIOU)
        classes = tuple(name for name in curves if name in detections.classes)
        recall, found = (np.zeros((len(classes), len(SCORES))) for _ in range(2))
        for row, name in enumerate(classes):
            # The number of detections with at least each score.
            count = np.searchsorted(-curves[name].scores, -SCORES, side="right")
            recall[row] = np.append(0.0, curves[name].recall)[count]
            found[row] = count / segments[row]
        smooth = _smoothed(recall, segments)
        smooth[:, ~recall.any(0)] = 0.0  # smoothing must not reach scores beyond those of all right detections
        return OperatingPoints(classes, smooth, _smoothed(found, segments), ", ".join(ground_truth.subsets()))

    def scores(self, classes: Sequence[str], precision: float | None = None) -> dict[str, float]:
        """The least score to show, by class.

        Args:
            precision: show as many detections as have at least this precision, above 0 and at most 1; None: the score
                of best F1.

        Returns:
            of equally good scores the middle one. For a class that never reaches the precision, the score of its
            highest precision; for one without ground truth, the median of the others. 0.3 where nothing right is
            found in any class.

        Raises:
            ValueError: ``precision`` is out of its range.
        """
        if precision is not None:
            check_precision(precision)
        reached = self.recall / np.maximum(self.detections, _EQUAL)
        if precision is None:
            measure = 2 * self.recall / (1 + self.detections)  # F1
        else:
            measure = np.where(reached >= precision - _EQUAL, 1 + self.recall, reached)
        own = {}
        for name, values in zip(self.classes, measure, strict=True):
            if values.max() > 0:
                best = np.flatnonzero(values >= values.max() - _EQUAL)
                own[name] = float(self.at[best[len(best) // 2]])
        rest = float(np.median(list(own.values()))) if own else DEFAULT_SCORE
        return {name: own.get(name, rest) for name in classes}

    def unreached(self, precision: float) -> list[str]:
        """The classes that have this precision at no score."""
        reached = self.recall / np.maximum(self.detections, _EQUAL)
        return [name for name, best in zip(self.classes, reached.max(1), strict=True) if best < precision - _EQUAL]

    def to_json(self) -> dict[str, Any]:
        """In JSON's types; :meth:`from_json` reads it."""
        return {
            "subset": self.subset,
            "classes": list(self.classes),
            "scores": self.at.tolist(),
            "recall": self.recall.tolist(),
            "detections": self.detections.tolist(),
        }

    @staticmethod
    def from_json(content: Mapping[str, Any], source: object = "the operating points") -> OperatingPoints:
        """From :meth:`to_json`; a ValueError names ``source`` if it is none."""
        try:
            classes = tuple(map(str, content["classes"]))
            at, recall, found = (np.array(content[key], np.float64) for key in ("scores", "recall", "detections"))
            shape = (len(classes), len(at))
            points = OperatingPoints(
                classes, recall.reshape(shape), found.reshape(shape), str(content["subset"]), at
            )
            if not all(np.isfinite(column).all() and (column >= 0).all() for column in (at, recall, found)):
                raise ValueError("numbers below 0 or not finite")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{source}: damaged operating points ({type(error).__name__}: {error})") from None
        return points


def shown_scores(
    points: OperatingPoints | None,
    classes: Sequence[str],
    *,
    min_score: float | None = None,
    precision: float | None = None,
) -> tuple[dict[str, float], str]:
    """The scores by class from which detections are shown, and what they are, after "detections with".

    Args:
        points: of the detector; None: unknown, so that 0.3 is the score of every class, which is logged.
        min_score: the score of every class; None: that of best F1, or of ``precision``.

    Raises:
        ValueError: ``precision`` is out of its range.
    """
    if min_score is None and points is not None and points.recall.any():
        scores = points.scores(classes, precision)
        kind = "best F1" if precision is None else f"precision {precision:g}"
        if precision is not None and (unreached := points.unreached(precision)):
            log.warning(
                "precision %g is not reached by %s; the score of their highest precision is used",
                precision,
                shortlist(unreached),
            )
        low, high = min(scores.values()), max(scores.values())
        of_videos = f" on subset {points.subset}" if points.subset else ""
        return scores, f"at least the score of {kind} of their class ({low:.2f} to {high:.2f}{of_videos})"
    if min_score is None:
        min_score = DEFAULT_SCORE
        level = logging.INFO if precision is None else logging.WARNING
        why = "its checkpoint has none" if points is None else "its evaluation found nothing right"
        what = "scores of best F1" if precision is None else f"score of precision {precision:g}"
        log.log(level, "the detector has no %s (%s); detections from %g are shown", what, why, min_score)
    return dict.fromkeys(classes, min_score), f"a score of at least {min_score:g}"


def check_precision(precision: float, name: str = "precision") -> None:
    """Raises ValueError if a precision is not above 0 and at most 1."""
    if not 0 < precision <= 1:
        raise ValueError(f"{name} {precision}: give a precision above 0 and at most 1")


def _smoothed(values: FloatArray, segments: FloatArray) -> FloatArray:
    """Values ``[K, S]``, smoothed over scores, and towards the mean of the classes; ``segments`` are ``[K, 1]``."""
    step = float(np.log(SCORES[-1] / SCORES[0])) / (len(SCORES) - 1)
    reach = round(4 * _SMOOTHING / step)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * step / _SMOOTHING) ** 2)
    padded = np.pad(values, ((0, 0), (reach, reach)), mode="edge")
    smooth = np.lib.stride_tricks.sliding_window_view(padded, len(kernel), axis=1) @ (kernel / kernel.sum())
    mean = smooth.sum(0) / max(1, len(smooth))
    smoothed: FloatArray = (segments * smooth + _SEGMENTS_OF_MEAN * mean) / (segments + _SEGMENTS_OF_MEAN)
    return smoothed
