"""Error diagnosis: what kind of error each wrong detection is, and which segments are missed.

The definitions are those of DETAD (Alwassel et al., "Diagnosing Error in Temporal Action Detectors", ECCV 2018,
arXiv:1807.10706). docs/diagnosis.md explains them, and where the published tool is not followed.

Segments without length, and those longer than their video, are left out. Segments annotated twice count twice, which
differs from :mod:`bitad.evaluation.mean_average_precision`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bitad.config.names import Ties
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.detections import Detections
from bitad.data.tiou import tiou_pairs
from bitad.evaluation.mean_average_precision import (
    Mask,
    Ranked,
    Truth,
    checked_thresholds,
    matches,
    true_positives,
)
from bitad.timeline import FloatArray, IntArray

# A detection is a true positive, or one kind of error.
KINDS = (
    "true_positive",
    "double_detection",  # right, but the segment is matched by a better-scored detection
    "wrong_label",  # as precise, of a segment of another label
    "localization",  # too imprecise, of a segment of its label
    "confusion",  # too imprecise, of a segment of another label
    "background",  # of no segment
)
# From this tIoU, a detection is of a segment.
LEAST_TIOU = 0.1


def classify(
    ground_truth: Annotations,
    detections: Detections,
    *,
    tiou: Sequence[float],
    ties: Ties = "own",
) -> IntArray:
    """The kind of each detection at each tIoU threshold.

    Detections are matched as by :func:`bitad.evaluation.mean_average_precision.evaluate`. Those that match nothing get
    their kind from the segment of any class with the highest tIoU. Detections of classes, and in videos, without
    ground truth get one too; nothing matches them.

    Args:
        detections: on either clock.
        tiou: T thresholds, each above 0 and at most 1.
        ties: of equally overlapping segments, "own" chooses one of the detection's own label, if there is one;
            "file" the first in the annotations.

    Returns:
        int64 ``[n, T]``, indices into ``KINDS``, in the order of the detections.

    Raises:
        ValueError: no ground truth, no threshold or one outside (0, 1], or reverse detections without durations.
    """
    thresholds = checked_thresholds(tiou)
    detections = detections.forward()
    truth = _truth(ground_truth)
    ranked = Ranked.of(truth, detections)
    kinds = _error_kinds(truth, detections, thresholds, ties)
    correct = true_positives(matches(truth, ranked, thresholds), len(ranked.rows))
    rows, columns = np.nonzero(correct.T)
    kinds[ranked.rows[rows], columns] = 0
    return kinds


def missed(ground_truth: Annotations, detections: Detections, *, tiou: Sequence[float]) -> Mask:
    """Which of the m segments no detection matches at each of T thresholds; raises as :func:`classify`.

    Returns:
        bool ``[m, T]``, in the order of the videos and of their segments. Segments that are left out are not missed.
    """
    return matched_scores(ground_truth, detections, tiou=tiou) == -np.inf


def matched_scores(ground_truth: Annotations, detections: Detections, *, tiou: Sequence[float]) -> FloatArray:
    """The score of the detection that matches each segment; raises as :func:`classify`.

    Returns:
        float64 ``[m, T]``, in the order of the videos and of their segments; -inf where no detection matches, NaN for
        segments that are left out.
    """
    thresholds = checked_thresholds(tiou)
    truth = _truth(ground_truth)
    ranked = Ranked.of(truth, detections.forward())
    kept = np.concatenate([np.empty(0, np.bool_), *map(_usable, ground_truth.videos.values())])
    scores = np.full((len(kept), len(thresholds)), np.nan)
    scores[kept] = np.append(ranked.scores, -np.inf)[matches(truth, ranked, thresholds)].T
    return scores


def _usable(video: AnnotatedVideo) -> Mask:
    """Which segments have a length, and one no longer than the video's, bool ``[n]``."""
    lengths = video.segments[:, 1] - video.segments[:, 0]
    usable: Mask = (lengths > 0) & (lengths / video.duration_s <= 1)
    return usable


def _truth(ground_truth: Annotations) -> Truth:
    """The usable segments as columns."""
    return Truth.of(ground_truth.map(lambda video: video.take(_usable(video))), every_segment=True)


def _error_kinds(truth: Truth, detections: Detections, thresholds: FloatArray, ties: Ties) -> IntArray:
    """The kind of each detection if it matches nothing, ``[n, T]``."""
    segment, overlap = _best_segments(truth, detections, min(LEAST_TIOU, float(thresholds.min())), ties)
    own = _labels_among(truth, detections) == truth.groups[segment] % len(truth.classes)
    precise = np.where(own, KINDS.index("double_detection"), KINDS.index("wrong_label"))
    imprecise = np.where(own, KINDS.index("localization"), KINDS.index("confusion"))
    imprecise[overlap < LEAST_TIOU] = KINDS.index("background")
    return np.where(overlap[:, None] >= thresholds, precise[:, None], imprecise[:, None])


def _labels_among(truth: Truth, detections: Detections) -> IntArray:
    """The labels as indices into the ground truth's classes, ``[n]``; -1 for others."""
    number = {name: i for i, name in enumerate(truth.classes)}
    return np.array([number.get(name, -1) for name in detections.classes], np.int64)[detections.labels]


def _best_segments(truth: Truth, detections: Detections, least: float, ties: Ties) -> tuple[IntArray, FloatArray]:
    """The segment of any class with the highest tIoU with each detection, and that tIoU; 0 and 0 if below ``least``."""
    videos = np.array([truth.videos.get(name, -1) for name in detections.videos], np.int64)
    detection, segment, tiou = tiou_pairs(
        videos[detections.video],
        detections.segments,
        truth.groups // len(truth.classes),
        truth.segments,
        least,
    )
    other = np.zeros(len(segment), np.bool_)
    if ties == "own":
        other = _labels_among(truth, detections)[detection] != truth.groups[segment] % len(truth.classes)
    order = np.lexsort((segment, other, -tiou, detection))
    detection, first = np.unique(detection[order], return_index=True)
    best = np.zeros(len(detections), np.int64)
    highest = np.zeros(len(detections))
    best[detection] = segment[order][first]
    highest[detection] = tiou[order][first]
    return best, highest
