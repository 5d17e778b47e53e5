"""Error diagnosis: the kinds of errors, what each costs, and which segments are hard or missed.

The definitions are those of DETAD (Alwassel et al., "Diagnosing Error in Temporal Action Detectors", ECCV 2018,
arXiv:1807.10706). docs/diagnosis.md explains them, and where the published tool is not followed.

Precision is normalised: with recall R among the G segments of a class, and F false positives, it is
``R N / (R N + F)``, where N is the mean number of segments per class. Classes of any size are then comparable. AP_N and
mAP_N are AP and mAP with this precision.

Segments without length, and those longer than their video, are left out. Segments annotated twice count twice, which
differs from :mod:`bitad.evaluation.mean_average_precision`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bitad.config.names import Bins, Ties
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.detections import Detections
from bitad.data.formats.parsing import DETAILS
from bitad.data.tiou import tiou_pairs
from bitad.evaluation.direction_sensitivity import NOTHING, Calls, called_classes
from bitad.evaluation.mean_average_precision import (
    Mask,
    Ranked,
    Truth,
    checked_thresholds,
    interpolated,
    matches,
    true_positives,
    unknown_counts,
)
from bitad.runtime.files import write_json
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
ERRORS = KINDS[1:]
# From this tIoU, a detection is of a segment.
LEAST_TIOU = 0.1
# Errors are named among the 10 G best detections of a class with G segments, in as many groups.
GROUPS = 10
# Matches at this normalised precision or below do not count when segments are called missed.
LEAST_PRECISION = 0.05

_INF = float("inf")
# The borders and names of the bins (low, high] of what is known of every segment.
_NAMES = ("XS", "S", "M", "L", "XL")
_PUBLISHED: Mapping[Bins, Mapping[str, tuple[float, ...]]] = {
    "thumos14": {
        "coverage": (0, 0.02, 0.04, 0.06, 0.08, 1),
        "length": (0, 3, 6, 12, 18, _INF),
        "num-instances": (-1, 1, 40, 80, _INF),
    },
    "activitynet": {
        "coverage": (0, 0.2, 0.4, 0.6, 0.8, 1),
        "length": (0, 30, 60, 120, 180, _INF),
        "num-instances": (-1, 1, 4, 8, _INF),
    },
}
# The number of quantile bins, and where the last one ends.
_QUANTILES: Mapping[str, tuple[int, float]] = {
    "coverage": (5, 1.0),
    "length": (5, _INF),
    "num-instances": (4, _INF),
}
# The bins of what only some annotations state.
_STATED: Mapping[str, tuple[tuple[float, ...], tuple[str, ...]]] = {
    "context-size": ((-1, 0, 1, 2, 3, 4, 5, 6), ("0", "1", "2", "3", "4", "5", "6")),
    "context-distance": ((-1, 0, 1, 2, 3), ("Inf", "N", "M", "F")),
    "agreement": ((0, 0.2, 0.4, 0.6, 0.8, 1), ("XW", "W", "M", "H", "XH")),
}


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


@dataclass(frozen=True, eq=False)
class Bin:
    """The segments with a characteristic above ``low`` and at most ``high``; the first bin also has its ``low``.

    Args:
        segments: their number.
        share: of all segments.
        sensitivity: average mAP_N of these segments, without the detections of others; None if there are none.
        missed: float64 ``[n_tiou]``, the share of them that is missed; None if there are none.
    """

    name: str
    low: float
    high: float
    segments: int
    share: float
    sensitivity: float | None
    missed: FloatArray | None


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Errors of detections, and what each kind costs. All shares, rates and APs are fractions.

    Args:
        classes: the K classes with segments, in the annotations' order.
        segments: int64 ``[K]``, segments of each class that were used.
        segments_dropped: those left out: without length, or longer than their video.
        classes_dropped: the labels all of whose segments were left out; they have no AP, but count in ``positives``.
        positives: N of the normalised precision: the mean number of segments per label.
        detections: number of detections of the K classes.
        detections_by_unknown_class, detections_by_unknown_video: those of classes without ground truth, which are
            ignored, and those in videos without, which are background.
        ap, ap_n: float64 ``[K, n_tiou]``, AP and AP_N of all detections.
        top_ap_n: float64 ``[K, n_tiou]``, AP_N of the 10 G best detections of each class.
        top_ap_n_without: by kind of error, AP_N of those without the errors of this kind; "all": without any error.
        group_sizes: int64 ``[10]``, the number of detections in each group. Group k has ranks (k - 1) G + 1 to k G of
            each class with G segments.
        group_kinds: int64 ``[10, 6, n_tiou]``, those of each of ``KINDS``.
        class_kinds: int64 ``[K, 6, n_tiou]``, detections of each class among its 10 G best, by kind.
        missed: bool ``[m, n_tiou]``, the segments that no detection of a precision above ``LEAST_PRECISION`` matches,
            in the order of the videos.
        missed_per_class: float64 ``[K, n_tiou]``, their share of each class's segments.
        missed_ap_n: float64 ``[K, n_tiou]``, AP_N where the matches below that precision are errors.
        characteristics: the bins of each; without those that no segment has.
        confusion: how many segments of each class the best-scored detection gives each label, at ``confusion_tiou``.
    """

    tiou: tuple[float, ...]
    ties: Ties
    bins: Bins
    subsets: tuple[str, ...]
    videos: int
    classes: tuple[str, ...]
    segments: IntArray
    segments_dropped: int
    classes_dropped: tuple[str, ...]
    positives: float
    detections: int
    detections_by_unknown_class: dict[str, int]
    detections_by_unknown_video: dict[str, int]
    ap: FloatArray
    ap_n: FloatArray
    top_ap_n: FloatArray
    top_ap_n_without: dict[str, FloatArray]
    group_sizes: IntArray
    group_kinds: IntArray
    class_kinds: IntArray
    missed: Mask
    missed_per_class: FloatArray
    missed_ap_n: FloatArray
    characteristics: dict[str, tuple[Bin, ...]]
    confusion: Calls
    confusion_tiou: float

    @property
    def average_map(self) -> float:
        """The mean of AP over classes and thresholds; of segments annotated twice, both count."""
        return float(self.ap.mean())

    @property
    def average_map_n(self) -> float:
        """The mean of AP_N over classes and thresholds."""
        return float(self.ap_n.mean())

    @property
    def recall(self) -> FloatArray:
        """The share of each class's segments that its 10 G best detections match, float64 ``[K, n_tiou]``."""
        return self.class_kinds[:, 0] / self.segments[:, None]

    @property
    def shares(self) -> dict[str, float | None]:
        """By kind, its share of the 10 G best detections, mean over thresholds; None if there are no detections."""
        return _shares(self.group_kinds.sum(axis=0), int(self.group_sizes.sum()))

    @property
    def group_shares(self) -> list[dict[str, float | None]]:
        """:attr:`shares` of each of the ten groups."""
        return list(map(_shares, self.group_kinds, self.group_sizes.tolist()))

    @property
    def gains(self) -> dict[str, FloatArray]:
        """By kind of error, and "all": how much mAP_N would gain without it, float64 ``[n_tiou]``."""
        return {kind: (ap_n - self.top_ap_n).mean(axis=0) for kind, ap_n in self.top_ap_n_without.items()}

    def __repr__(self) -> str:
        gains = {kind: float(gain.mean()) for kind, gain in self.gains.items() if kind != "all"}
        most = max(gains, key=lambda kind: gains[kind])
        return (
            f"Diagnosis(average_map_n={self.average_map_n:.4f}, missed={self.missed.mean():.4f}, "
            f"gains most without {most}: {gains[most]:+.4f})"
        )

    def to_json(self, path: str | Path | None = None) -> dict[str, Any]:
        """All values but ``missed`` in JSON's types, as docs/diagnosis.md lists; with a path, also written there."""

        def by_class(values: FloatArray | IntArray) -> dict[str, Any]:
            return dict(zip(self.classes, values.tolist(), strict=True))

        def by_kind(values: IntArray) -> dict[str, list[int]]:
            return dict(zip(KINDS, values.tolist(), strict=True))

        content = {
            "settings": {
                "tiou": list(self.tiou),
                "ties": self.ties,
                "bins": self.bins,
                "least_tiou": LEAST_TIOU,
                "groups": GROUPS,
                "least_precision": LEAST_PRECISION,
            },
            "subsets": list(self.subsets),
            "videos": self.videos,
            "segments": by_class(self.segments),
            "segments_dropped": self.segments_dropped,
            "classes_dropped": list(self.classes_dropped),
            "positives": self.positives,
            "detections": self.detections,
            "detections_by_unknown_class": self.detections_by_unknown_class,
            "detections_by_unknown_video": self.detections_by_unknown_video,
            "average_map": self.average_map,
            "map": self.ap.mean(axis=0).tolist(),
            "ap": by_class(self.ap),
            "average_map_n": self.average_map_n,
            "map_n": self.ap_n.mean(axis=0).tolist(),
            "ap_n": by_class(self.ap_n),
            "top": {
                "detections": int(self.group_sizes.sum()),
                "average_map_n": float(self.top_ap_n.mean()),
                "map_n": self.top_ap_n.mean(axis=0).tolist(),
                "ap_n": by_class(self.top_ap_n),
                "shares": self.shares,
                "recall": by_class(self.recall),
                "kinds": {name: by_kind(row) for name, row in zip(self.classes, self.class_kinds, strict=True)},
            },
            "groups": {
                f"{number}G": {"detections": size, "shares": shares, "kinds": by_kind(kinds)}
                for number, size, shares, kinds in zip(
                    range(1, GROUPS + 1),
                    self.group_sizes.tolist(),
                    self.group_shares,
                    self.group_kinds,
                    strict=True,
                )
            },
            "gains": {
                kind: {
                    "average_map_n": float(gain.mean()),
                    "map_n": gain.tolist(),
                    "ap_n": by_class((self.top_ap_n_without[kind] - self.top_ap_n).mean(axis=1)),
                }
                for kind, gain in self.gains.items()
            },
            "missed": {
                "share": self.missed.mean(axis=0).tolist(),
                "per_class": by_class(self.missed_per_class),
                "map_n": self.missed_ap_n.mean(axis=0).tolist(),
            },
            "characteristics": {
                name: {one.name: _bin_json(one) for one in bins} for name, bins in self.characteristics.items()
            },
            "confusion": {
                "tiou": self.confusion_tiou,
                "labels": [*self.classes, NOTHING],
                "segments": by_class(self.confusion.counts),
            },
        }
        if path is not None:
            write_json(content, path)
        return content


def _shares(counts: IntArray, size: int) -> dict[str, float | None]:
    """By kind, the share of counts ``[6, n_tiou]`` of ``size`` detections, mean over thresholds."""
    means = counts.mean(axis=1).tolist()
    return {kind: mean / size if size else None for kind, mean in zip(KINDS, means, strict=True)}


def _bin_json(one: Bin) -> dict[str, Any]:
    return {
        "low": one.low,
        "high": None if one.high == _INF else one.high,
        "segments": one.segments,
        "share": one.share,
        "sensitivity": one.sensitivity,
        "missed": None if one.missed is None else float(one.missed.mean()),
        "missed_per_tiou": None if one.missed is None else one.missed.tolist(),
    }


def diagnose(
    ground_truth: Annotations,
    detections: Detections,
    *,
    tiou: Sequence[float],
    ties: Ties = "own",
    bins: Bins = "quantiles",
    confusion_tiou: float = 0.5,
) -> Diagnosis:
    """Diagnose the errors of detections against all videos of ``ground_truth``.

    A segment is missed if nothing matches it, or only a detection at whose rank the normalised precision is
    ``LEAST_PRECISION`` or less.

    Args:
        detections: on either clock.
        tiou: thresholds, each above 0 and at most 1, over which figures are means.
        ties: as for :func:`classify`.
        bins: the borders of coverage (length over the video's duration), length in seconds, and number of segments in
            the video: "quantiles" of the ground truth, or DETAD's for the two data sets.
        confusion_tiou: of the confusion matrix.

    Raises:
        ValueError: as :func:`classify`.
    """
    thresholds = checked_thresholds(tiou)
    checked_thresholds([confusion_tiou])
    detections = detections.forward()
    truth = _truth(ground_truth)
    matching = _Matching.of(truth, detections, thresholds, ties)
    labels = {label for video in ground_truth.videos.values() for label in video.labels}
    positives = len(truth.segments) / len(labels)
    parts = list(matching.of_classes(truth))
    shape = (len(parts), len(thresholds))
    ap, ap_n, top_ap_n, lower_ap_n = (np.zeros(shape) for _ in range(4))
    without = {kind: np.zeros(shape) for kind in (*ERRORS, "all")}
    group_kinds = np.zeros((GROUPS, len(KINDS), len(thresholds)), np.int64)
    class_kinds = np.zeros((len(parts), len(KINDS), len(thresholds)), np.int64)
    missed = np.ones((len(thresholds), len(truth.segments)), np.bool_)
    for k, part in enumerate(parts):
        n_segments = int(truth.segments_per_class[k])
        hits = part.segment >= 0
        ap[k] = _average_precision(hits, ~hits, n_segments, n_segments)
        ap_n[k] = _average_precision(hits, ~hits, n_segments, positives)
        # The best ones; matching them alone would give the same, as better detections choose first.
        top = part.first(GROUPS * n_segments)
        right = top.kinds == 0
        top_ap_n[k] = _average_precision(right, ~right, n_segments, positives)
        for number, kind in enumerate(ERRORS, start=1):
            wrong = ~right & (top.kinds != number)
            without[kind][k] = _average_precision(right, wrong, n_segments, positives)
        without["all"][k] = _average_precision(right, np.zeros_like(right), n_segments, positives)
        counts = _counts_by_group(top.kinds, n_segments)
        group_kinds += counts
        class_kinds[k] = counts.sum(axis=0)
        certain = hits & (_precision(hits, ~hits, n_segments, positives) > LEAST_PRECISION)
        lower_ap_n[k] = _average_precision(certain, ~certain, n_segments, positives)
        rows, columns = np.nonzero(certain)
        missed[rows, part.segment[rows, columns]] = False
    of_class = truth.groups % len(truth.classes)
    per_class = [missed[:, of_class == k].mean(axis=1) for k in range(len(parts))]
    return Diagnosis(
        tiou=tuple(thresholds.tolist()),
        ties=ties,
        bins=bins,
        subsets=tuple(ground_truth.subsets()),
        videos=len(ground_truth.videos),
        classes=truth.classes,
        segments=truth.segments_per_class,
        segments_dropped=sum(len(video.labels) for video in ground_truth.videos.values()) - len(truth.segments),
        classes_dropped=tuple(name for name in ground_truth.classes if name in labels - set(truth.classes)),
        positives=positives,
        detections=len(matching.ranked.rows),
        detections_by_unknown_class=unknown_counts(detections.classes, detections.labels, set(truth.classes)),
        detections_by_unknown_video=unknown_counts(detections.videos, detections.video, set(ground_truth.videos)),
        ap=ap,
        ap_n=ap_n,
        top_ap_n=top_ap_n,
        top_ap_n_without=without,
        group_sizes=group_kinds[:, :, 0].sum(axis=1),  # the same at every threshold
        group_kinds=group_kinds,
        class_kinds=class_kinds,
        missed=missed.T,
        missed_per_class=np.stack(per_class),
        missed_ap_n=lower_ap_n,
        characteristics={
            name: tuple(_bins(parts, of_class, values, positives, missed, *_borders(name, values, bins)))
            for name, values in _characteristics(ground_truth).items()
        },
        confusion=_confusion(ground_truth, truth, detections, confusion_tiou),
        confusion_tiou=confusion_tiou,
    )


@dataclass(frozen=True, eq=False)
class _Part:
    """The detections of one class, best first."""

    kinds: IntArray  # [n_tiou, n]
    segment: IntArray  # [n_tiou, n], the segment that each matches; -1 for none

    def first(self, n: int) -> _Part:
        return _Part(self.kinds[:, :n], self.segment[:, :n])


@dataclass(frozen=True, eq=False)
class _Matching:
    """The detections of the ground truth's classes, best first, with their kinds and segments."""

    ranked: Ranked
    kinds: IntArray  # [n_tiou, n]
    segment: IntArray  # [n_tiou, n], the segment that each matches; -1 for none

    @staticmethod
    def of(truth: Truth, detections: Detections, thresholds: FloatArray, ties: Ties) -> _Matching:
        ranked = Ranked.of(truth, detections)
        n = len(ranked.rows)
        segment = np.full((len(thresholds), n + 1), -1)  # the last column is for segments that nothing matches
        np.put_along_axis(
            segment, matches(truth, ranked, thresholds), np.arange(len(truth.segments))[None], axis=1
        )
        segment = segment[:, :n]
        kinds = _error_kinds(truth, detections, thresholds, ties)[ranked.rows].T
        return _Matching(ranked, np.where(segment >= 0, 0, kinds), segment)

    def of_classes(self, truth: Truth) -> Iterator[_Part]:
        order = np.argsort(self.ranked.labels, kind="stable")
        ends = np.cumsum(np.bincount(self.ranked.labels, minlength=len(truth.classes)))
        for rows in np.split(order, ends[:-1]):
            yield _Part(self.kinds[:, rows], self.segment[:, rows])


def _counts_by_group(kinds: IntArray, segments: int) -> IntArray:
    """The number of detections of each kind, ``[10, 6, n_tiou]``, among kinds ``[n_tiou, n]`` of the 10 G best."""
    n_tiou, n = kinds.shape
    cells = (np.arange(n) // segments * len(KINDS) + kinds) * n_tiou + np.arange(n_tiou)[:, None]
    counts = np.bincount(cells.ravel(), minlength=GROUPS * len(KINDS) * n_tiou)
    return counts.reshape(GROUPS, len(KINDS), n_tiou)


def _precision(right: Mask, wrong: Mask, segments: int, positives: float) -> FloatArray:
    """The normalised precision at each rank, ``[n_tiou, n]``."""
    found = np.cumsum(right, axis=1) / segments * positives
    precision: FloatArray = found / np.maximum(found + np.cumsum(wrong, axis=1), 1e-9)  # no 0 / 0
    return precision


def _average_precision(right: Mask, wrong: Mask, segments: int, positives: float) -> FloatArray:
    """The interpolated AP ``[n_tiou]`` of a class with some segments; a rank may be neither right nor wrong."""
    best = interpolated(_precision(right, wrong, segments, positives))
    ap: FloatArray = (best * right).sum(axis=1) / segments
    return ap


def _characteristics(ground_truth: Annotations) -> dict[str, FloatArray]:
    """What is known of the usable segments, ``[m]`` by name; NaN where it is not known, no name if of none."""
    found: dict[str, list[FloatArray]] = {}
    for video in ground_truth.videos.values():
        usable = _usable(video)
        lengths = (video.segments[:, 1] - video.segments[:, 0])[usable]
        is_timed = np.isfinite(video.duration_s)
        values = {
            "coverage": lengths / video.duration_s if is_timed else np.full(len(lengths), np.nan),
            "length": lengths,
            "num-instances": np.full(len(lengths), len(video.labels), np.float64),
        }
        for name in DETAILS:
            values[name] = video.details[name][usable] if name in video.details else np.full(len(lengths), np.nan)
        for name, of_video in values.items():
            found.setdefault(name, []).append(of_video)
    columns = {name: np.concatenate(parts) for name, parts in found.items()}
    return {name: values for name, values in columns.items() if not np.isnan(values).all()}


def _borders(name: str, values: FloatArray, bins: Bins) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """The borders of a characteristic's bins, and their names."""
    if name in _STATED:
        return _STATED[name]
    if bins != "quantiles":
        borders = _PUBLISHED[bins][name]
        return borders, _NAMES[: len(borders) - 1]
    values = values[~np.isnan(values)]
    count, last = _QUANTILES[name]
    # Values of the data; equal ones share a bin, so that there may be fewer bins.
    inner = np.unique(np.quantile(values, np.arange(1, count) / count, method="inverted_cdf"))
    inner = inner[inner < values.max()]
    return (0.0, *inner.tolist(), last), _NAMES_OF_COUNT[len(inner) + 1]


_NAMES_OF_COUNT = {1: ("all",), 2: ("S", "L"), 3: _NAMES[1:4], 4: _NAMES[:4], 5: _NAMES}


def _bins(
    parts: Sequence[_Part],
    of_class: IntArray,  # [m]
    values: FloatArray,  # [m]
    positives: float,
    missed: Mask,  # [n_tiou, m]
    borders: Sequence[float],
    names: Sequence[str],
) -> Iterator[Bin]:
    """The figures of each bin of a characteristic."""
    number = np.searchsorted(borders, values, side="left") - 1  # beyond the last bin where it is not known
    number[values == borders[0]] = 0
    for b, name in enumerate(names):
        inside = number == b
        yield Bin(
            name=name,
            low=borders[b],
            high=borders[b + 1],
            segments=int(inside.sum()),
            share=float(inside.mean()),
            sensitivity=_sensitivity(parts, inside, of_class, positives),
            missed=missed[:, inside].mean(axis=1) if inside.any() else None,
        )


def _sensitivity(parts: Sequence[_Part], inside: Mask, of_class: IntArray, positives: float) -> float | None:
    """Average mAP_N of some segments, without detections that match another one at any threshold."""
    counts = np.bincount(of_class[inside], minlength=len(parts)).tolist()
    known = np.append(inside, False)  # the last for no segment, -1
    found = []
    for part, segments in zip(parts, counts, strict=True):
        if segments:
            right = known[part.segment]
            kept = (right | (part.segment < 0)).all(axis=0)
            found.append(_average_precision(right[:, kept], ~right[:, kept], segments, positives).mean())
    return float(np.mean(found)) if found else None


def _confusion(ground_truth: Annotations, truth: Truth, detections: Detections, tiou: float) -> Calls:
    """The label of the best-scored detection of each usable segment, among classes with segments."""
    usable = ground_truth.map(lambda video: video.take(_usable(video)))
    labels = _labels_among(truth, detections)
    known = replace(detections, classes=truth.classes, labels=np.maximum(labels, 0)).take(labels >= 0)
    return called_classes(replace(usable, classes=truth.classes), known, tiou=tiou)
