"""ActivityNet-style average mAP: interpolated average precision, greedy matching by score, each ground truth once.

The rule is that of the ActivityNet challenge, as OpenTAD and ActionFormer compute it. The detections of one class in
all videos are matched by descending score. A detection is a true positive if a ground-truth segment of its video and
class, not matched before, has a tIoU of at least the threshold; it matches the one with the highest tIoU. Average
precision is the area under the precision-recall curve after precision is made non-increasing. mAP is the mean over
classes; average mAP the mean over tIoU thresholds. All figures are fractions, 0 to 1.

Detections with equal scores keep the order of their file. (Other evaluators' sorting is not stable, which changes the
average mAP of rounded scores by up to 0.02 points.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitad.config.names import MapRule
from bitad.data.annotations import Annotations
from bitad.data.classes import UNDECIDED
from bitad.data.detections import Detections
from bitad.data.tiou import best_first, tiou_pairs
from bitad.runtime.files import write_json
from bitad.runtime.log import shortlist
from bitad.timeline import FloatArray, IntArray

Mask = NDArray[np.bool_]

# Ground-truth segments of one label whose both ends are this near are one segment annotated twice (OpenTAD's value).
_SAME_SEGMENT_S = 1e-3


@dataclass(frozen=True, eq=False)
class Truth:
    """Ground truth as columns, one row a segment."""

    videos: dict[str, int]  # number of each video
    classes: tuple[str, ...]  # the K that have a segment
    groups: IntArray  # [m], one number for each pair of video and class
    segments: FloatArray  # [m, 2], in seconds
    segments_per_class: IntArray  # [K]
    dropped: int  # segments left out

    @staticmethod
    def of(annotations: Annotations, *, every_segment: bool = False) -> Truth:
        """The ground truth of all videos; ``every_segment`` also keeps copies and segments without length."""
        videos = list(annotations.videos.values())
        labels = [label for video in videos for label in video.labels]
        number = {name: i for i, name in enumerate(annotations.classes)}
        if undeclared := sorted(set(labels) - number.keys()):
            raise ValueError(
                f"ground truth of {shortlist(undeclared)}, which is not among the annotations' classes"
            )
        video = np.repeat(np.arange(len(videos)), [len(video.labels) for video in videos])
        label = np.array([number[name] for name in labels], np.int64)
        segments = np.concatenate([np.empty((0, 2)), *(video.segments for video in videos)])
        kept = np.ones(len(label), np.bool_)
        if not every_segment:
            kept = _distinct(video * len(number) + label, segments)
        if not kept.any():
            subsets = " and ".join(map(repr, annotations.subsets()))
            raise ValueError(
                f"the ground truth of subset {subsets} ({len(videos)} videos) has no segment to evaluate against; name "
                "a subset that has some"
            )
        video, label, segments = video[kept], label[kept], segments[kept]
        present, label = np.unique(label, return_inverse=True)
        return Truth(
            videos={video.name: i for i, video in enumerate(videos)},
            classes=tuple(annotations.classes[i] for i in present),
            groups=video * len(present) + label,
            segments=segments,
            segments_per_class=np.bincount(label),
            dropped=int((~kept).sum()),
        )


@dataclass(frozen=True, eq=False)
class Ranked:
    """The detections of the ground truth's classes, best first."""

    rows: IntArray  # [n], index into the detections
    groups: IntArray  # [n], as those of the ground truth; -1 in videos that it does not have
    segments: FloatArray  # [n, 2], in seconds
    scores: FloatArray  # [n], descending
    labels: IntArray  # [n], index into the ground truth's classes

    @staticmethod
    def of(truth: Truth, detections: Detections, *, equals_by_video: bool = False) -> Ranked:
        """Detections on the forward clock; of equal scores in the order of the file, or of videos' names first."""
        number = {name: i for i, name in enumerate(truth.classes)}
        videos = np.array([truth.videos.get(name, -1) for name in detections.videos], np.int64)
        classes = np.array([number.get(name, -1) for name in detections.classes], np.int64)
        video, label = videos[detections.video], classes[detections.labels]
        rows = np.flatnonzero(label >= 0)
        if equals_by_video:
            place = np.argsort(np.argsort(np.array(detections.videos)))
            rows = rows[np.argsort(place[detections.video[rows]], kind="stable")]
        rows = rows[np.argsort(-detections.scores[rows], kind="stable")]
        return Ranked(
            rows=rows,
            groups=np.where(video[rows] >= 0, video[rows] * len(truth.classes) + label[rows], -1),
            segments=detections.segments[rows],
            scores=detections.scores[rows],
            labels=label[rows],
        )


@dataclass(frozen=True, eq=False)
class Matches:
    """The ranked detections of the ground truth's classes, and which are right: all that AP is computed from.

    A detection is only matched within its video, so copies of whole videos keep these marks.
    """

    rule: MapRule
    truth: Truth
    thresholds: FloatArray  # [n_tiou], of tIoU
    labels: IntArray  # [n], index into the ground truth's classes, best detection first
    videos: tuple[str, ...]  # of the detections
    video: IntArray  # [n], index into them
    correct: Mask  # [n_tiou, n], true positives
    counted: Mask  # [n_tiou, n], true and false positives; the others are left out

    @staticmethod
    def of(
        rule: MapRule,
        truth: Truth,
        thresholds: FloatArray,
        ranked: Ranked,
        detections: Detections,
        *,
        correct: Mask,
        counted: Mask | None = None,
    ) -> Matches:
        """Those of ``ranked``, which are rows of ``detections``; all are counted by default."""
        return Matches(
            rule=rule,
            truth=truth,
            thresholds=thresholds,
            labels=ranked.labels,
            videos=detections.videos,
            video=detections.video[ranked.rows],
            correct=correct,
            counted=np.broadcast_to(np.True_, correct.shape) if counted is None else counted,
        )


def checked_thresholds(tiou: Sequence[float]) -> FloatArray:
    """The tIoU thresholds ``[n_tiou]``; raises ValueError if there is none, or one is outside (0, 1]."""
    thresholds = np.array(tiou, np.float64)
    if not (thresholds.size and ((thresholds > 0) & (thresholds <= 1)).all()):
        raise ValueError(f"tIoU thresholds {list(tiou)}; give at least one, each above 0 and at most 1")
    return thresholds


def take_turns(first: IntArray, count: IntArray, candidates: IntArray, n_wanted: int) -> IntArray:
    """Greedy matching: n takers in turn take the first of their candidates that is still free.

    Taker i's candidates are ``candidates[first[i] : first[i] + count[i]]``, best first. Returns the taker of each of
    ``n_wanted`` candidates, n where nobody took it. This is the stable matching in which every candidate prefers the
    earlier taker. Deferred acceptance (Gale and Shapley 1962) finds it for all classes and videos at once: all takers
    propose to their next candidate, which keeps the earliest; the others continue.
    """
    n = len(first)
    holder = np.full(n_wanted, n)  # n: free
    following, last = first.copy(), first + count
    proposing = np.flatnonzero(count)
    while proposing.size:
        wanted = candidates[following[proposing]]
        following[proposing] += 1
        before = holder[wanted]
        np.minimum.at(holder, wanted, proposing)
        after = holder[wanted]
        replaced = before[(before != after) & (before < n)]
        refused = np.sort(np.concatenate([proposing[proposing != after], replaced]))
        refused = refused[np.diff(refused, prepend=-1) > 0]  # each once; np.unique is slower
        proposing = refused[following[refused] < last[refused]]
    return holder


def _distinct(groups: IntArray, segments: FloatArray) -> Mask:
    """Which segments have a length and do not copy an earlier one, bool ``[m]``."""
    kept = segments[:, 1] > segments[:, 0]
    order = np.lexsort((segments[:, 0], groups))
    copies: list[tuple[int, int]] = []  # (later, earlier) in file order
    # Compare each with its successors by start time, until no start is near.
    for offset in range(1, len(order)):
        a, b = order[:-offset], order[offset:]
        apart = np.abs(segments[a] - segments[b])
        near = (groups[a] == groups[b]) & (apart[:, 0] <= _SAME_SEGMENT_S)
        if not near.any():
            break
        near &= apart[:, 1] <= _SAME_SEGMENT_S
        later, earlier = np.maximum(a, b)[near], np.minimum(a, b)[near]
        copies += zip(later.tolist(), earlier.tolist(), strict=True)
    for copy, original in sorted(copies):  # whether the original is kept is settled by then
        kept[copy] &= not kept[original]
    return kept


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The accuracy of detections, with the rule and the data.

    Args:
        rule: how detections were matched and AP was computed.
        classes: the K classes with ground truth, in the annotations' order.
        ap: float64 ``[K, n_tiou]``, average precision, 0 to 1; interpolated by ActivityNet's rule.
        segments: int64 ``[K]``, ground-truth segments per class that were used.
        segments_dropped: those left out: without length, or annotated twice.
        ambiguous: number of Ambiguous intervals. By ActivityNet's rule they are the segments of one more class; by the
            kit's, detections that touch one and match nothing are left out.
        predictions: number of detections of the classes with ground truth.
        predictions_by_unknown_video: those in each video without ground truth, which are false positives.
        predictions_by_unknown_class: detections of each class without ground truth, which are ignored.
    """

    rule: MapRule
    classes: tuple[str, ...]
    tiou: tuple[float, ...]
    ap: FloatArray
    subsets: tuple[str, ...]
    videos: int
    segments: IntArray
    segments_dropped: int
    ambiguous: int
    predictions: int
    videos_without_prediction: tuple[str, ...]
    classes_without_ground_truth: tuple[str, ...]
    predictions_by_unknown_video: dict[str, int]
    predictions_by_unknown_class: dict[str, int]

    @staticmethod
    def of(
        ap: FloatArray,
        truth: Truth,
        ground_truth: Annotations,
        detections: Detections,
        *,
        rule: MapRule,
        thresholds: FloatArray,
        ambiguous: int,
    ) -> Evaluation:
        """The evaluation with ``ap``; ``truth`` is ``ground_truth`` as columns."""
        found = {detections.videos[i] for i in np.unique(detections.video)}
        unknown = unknown_counts(detections.classes, detections.labels, set(truth.classes))
        return Evaluation(
            rule=rule,
            classes=truth.classes,
            tiou=tuple(thresholds.tolist()),
            ap=ap,
            subsets=tuple(ground_truth.subsets()),
            videos=len(ground_truth.videos),
            segments=truth.segments_per_class,
            segments_dropped=truth.dropped,
            ambiguous=ambiguous,
            predictions=len(detections) - sum(unknown.values()),
            videos_without_prediction=tuple(name for name in ground_truth.videos if name not in found),
            classes_without_ground_truth=tuple(n for n in ground_truth.classes if n not in truth.classes),
            predictions_by_unknown_video=unknown_counts(
                detections.videos, detections.video, set(ground_truth.videos)
            ),
            predictions_by_unknown_class=unknown,
        )

    @property
    def map_per_tiou(self) -> FloatArray:
        """mAP at each tIoU, 0 to 1, ``[n_tiou]``."""
        return self.ap.mean(axis=0)

    @property
    def average_map(self) -> float:
        """The mean of mAP over the tIoU thresholds, 0 to 1."""
        return float(self.map_per_tiou.mean())

    @property
    def per_class(self) -> dict[str, float]:
        """By class, the mean of AP over the tIoU thresholds, 0 to 1."""
        return dict(zip(self.classes, self.ap.mean(axis=1).tolist(), strict=True))

    def __repr__(self) -> str:
        figures = zip(self.tiou, self.map_per_tiou, strict=True)
        per_tiou = ", ".join(f"{threshold:g}: {value:.4f}" for threshold, value in figures)
        return (
            f"Evaluation(average_map={self.average_map:.4f}, map_per_tiou={{{per_tiou}}}, "
            f"{len(self.classes)} classes, {self.videos} videos)"
        )

    def to_json(self, path: str | Path | None = None) -> dict[str, Any]:
        """All values in JSON's types; with a path, also written there."""
        content = {
            "rule": self.rule,
            "average_map": self.average_map,
            "tiou": list(self.tiou),
            "map": self.map_per_tiou.tolist(),
            "ap": dict(zip(self.classes, self.ap.tolist(), strict=True)),
            "subsets": list(self.subsets),
            "videos": self.videos,
            "segments": dict(zip(self.classes, self.segments.tolist(), strict=True)),
            "segments_dropped": self.segments_dropped,
            "ambiguous": {
                "intervals": self.ambiguous,
                "are": "a class" if self.rule == "activitynet" else "left out",
            },
            "predictions": self.predictions,
            "videos_without_prediction": list(self.videos_without_prediction),
            "classes_without_ground_truth": list(self.classes_without_ground_truth),
            "predictions_by_unknown_video": self.predictions_by_unknown_video,
            "predictions_by_unknown_class": self.predictions_by_unknown_class,
        }
        if path is not None:
            write_json(content, path)
        return content


@dataclass(frozen=True, eq=False)
class PrecisionRecall:
    """One class's precision-recall curve at one tIoU, ``[n]`` each; point i is of the i + 1 best detections."""

    scores: FloatArray
    precision: FloatArray  # true positives / detections
    recall: FloatArray  # true positives / ground-truth segments
    interpolated: FloatArray  # the best precision at this recall or a higher one
    ap: float  # the area under it


def evaluate(ground_truth: Annotations, detections: Detections, *, tiou: Sequence[float]) -> Evaluation:
    """Average mAP of detections on either clock against all videos of ``ground_truth``, at the thresholds ``tiou``.

    Raises:
        ValueError: no ground truth, no threshold or one outside (0, 1], or reverse detections without durations.
    """
    matches = match(ground_truth, detections, tiou=tiou)
    truth = matches.truth
    ap = np.zeros((len(truth.classes), len(matches.thresholds)))
    for label, segments in enumerate(truth.segments_per_class):
        hits = matches.correct[:, matches.labels == label]
        precision = interpolated(_precision(hits))
        ap[label] = (precision * hits).sum(axis=1) / segments
    ambiguous = int(truth.segments_per_class[np.isin(truth.classes, UNDECIDED)].sum())
    return Evaluation.of(
        ap,
        truth,
        ground_truth,
        detections,
        rule="activitynet",
        thresholds=matches.thresholds,
        ambiguous=ambiguous,
    )


def match(ground_truth: Annotations, detections: Detections, *, tiou: Sequence[float]) -> Matches:
    """The true positives among all detections; arguments and errors as those of ``evaluate``."""
    thresholds = checked_thresholds(tiou)
    truth = Truth.of(ground_truth)
    ranked = Ranked.of(truth, detections.forward())
    correct = _true_positives(truth, ranked, thresholds)
    return Matches.of("activitynet", truth, thresholds, ranked, detections, correct=correct)


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs of a ground-truth segment and the detection that matches it, one row a pair."""

    videos: tuple[str, ...]
    classes: tuple[str, ...]  # those with a segment
    segments_per_class: IntArray  # [K], matched or not
    video: IntArray  # [n], index into the videos
    labels: IntArray  # [n], index into the classes
    truth: FloatArray  # [n, 2], in seconds
    found: FloatArray  # [n, 2], in seconds


def matched_pairs(ground_truth: Annotations, detections: Detections, *, tiou: float) -> Pairs:
    """The matched segments and their detections at one tIoU; raises as ``evaluate``."""
    threshold = float(checked_thresholds([tiou])[0])
    truth = Truth.of(ground_truth)
    ranked = Ranked.of(truth, detections.forward())
    (taker,) = matches(truth, ranked, np.array([threshold]))
    rows = np.flatnonzero(taker < len(ranked.scores))
    return Pairs(
        videos=tuple(truth.videos),
        classes=truth.classes,
        segments_per_class=truth.segments_per_class,
        video=truth.groups[rows] // len(truth.classes),
        labels=truth.groups[rows] % len(truth.classes),
        truth=truth.segments[rows],
        found=ranked.segments[taker[rows]],
    )


def precision_recall(
    ground_truth: Annotations,
    detections: Detections,
    *,
    tiou: float,
) -> dict[str, PrecisionRecall]:
    """The precision-recall curve of every class with ground truth, by name, at one tIoU; raises as ``evaluate``."""
    truth = Truth.of(ground_truth)
    ranked = Ranked.of(truth, detections.forward())
    correct = _true_positives(truth, ranked, checked_thresholds([tiou]))
    curves = {}
    for label, name in enumerate(truth.classes):
        rows = ranked.labels == label
        segments = truth.segments_per_class[label]
        hits = correct[:, rows]
        precision = _precision(hits)
        best = interpolated(precision)
        curves[name] = PrecisionRecall(
            scores=ranked.scores[rows],
            precision=precision[0],
            recall=np.cumsum(hits[0]) / segments,
            interpolated=best[0],
            ap=float((best * hits).sum() / segments),
        )
    return curves


def matches(truth: Truth, ranked: Ranked, thresholds: FloatArray) -> IntArray:
    """The rank of the detection that each segment is matched to, ``[n_tiou, m]``; n where there is none."""
    detection, segment, tiou = tiou_pairs(
        ranked.groups, ranked.segments, truth.groups, truth.segments, float(thresholds.min())
    )
    # Each detection's candidates, highest tIoU first; of equals, the later one, as in the reference evaluator.
    order = best_first(detection, tiou, -segment)
    detection, segment, tiou = detection[order], segment[order], tiou[order]
    n = len(ranked.scores)
    candidates = np.bincount(detection, minlength=n)
    first = np.cumsum(candidates) - candidates
    matched = np.empty((len(thresholds), len(truth.segments)), np.int64)
    for row, threshold in zip(matched, thresholds, strict=True):
        count = np.bincount(detection[tiou >= threshold], minlength=n)
        row[:] = take_turns(first, count, segment, len(truth.segments))
    return matched


def true_positives(matched: IntArray, n: int) -> Mask:
    """Which of n detections match a segment at each threshold, bool ``[n_tiou, n]``; from :func:`matches`."""
    correct = np.zeros((len(matched), n + 1), np.bool_)  # the last column is for segments that nothing matches
    np.put_along_axis(correct, matched, np.True_, axis=1)
    return correct[:, :n]


def _true_positives(truth: Truth, ranked: Ranked, thresholds: FloatArray) -> Mask:
    return true_positives(matches(truth, ranked, thresholds), len(ranked.scores))


def _precision(hits: Mask) -> FloatArray:
    """Precision among the first i + 1, ``[n_tiou, n]``."""
    return np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)


def interpolated(precision: FloatArray) -> FloatArray:
    """The best precision from here on, ``[n_tiou, n]`` (as VOC 2010 and later)."""
    return np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]


def unknown_counts(names: Sequence[str], index: IntArray, known: set[str]) -> dict[str, int]:
    """The number of rows of each name that is not known."""
    counts = np.bincount(index, minlength=len(names)).tolist()
    return {name: n for name, n in zip(names, counts, strict=True) if n and name not in known}
