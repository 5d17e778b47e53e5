"""mAP by the rule of the THUMOS'14 challenge's own evaluation kit, and how it differs from ActivityNet's.

The rule is that of ``TH14evalDet.m`` in the kit of 30 September 2015, whose AP is not interpolated (unlike that of
August 2014). For one video and class:

* The ground-truth segments take turns, in the order of their file: each takes, of the free detections whose overlap
  with it is *above* the threshold, the one with the largest overlap; of equals, the one with the higher score, then the
  earlier one. (By ActivityNet's rule, the detections take turns, best first.)
* Detections that no segment took and that overlap an ``Ambiguous`` interval of their video are left out. All others are
  false positives, also those in videos without a segment of the class or without ground truth.

Over all videos, by descending score (of equals by the name of the video): AP is the sum of the precision at each true
positive over the number of ground-truth segments. Every segment counts, also copies and those without length, which are
never matched. Overlap is intersection over the span of both. Classes without ground truth are left out of the mean.

All figures are fractions, 0 to 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bitad.data.annotations import Annotations
from bitad.data.classes import UNDECIDED
from bitad.data.detections import Detections
from bitad.data.formats.database import read_annotations
from bitad.data.formats.parsing import line_segment, read_lines
from bitad.data.tiou import tiou_pairs
from bitad.evaluation.mean_average_precision import (
    Evaluation,
    Mask,
    Matches,
    Ranked,
    Truth,
    checked_thresholds,
    take_turns,
)
from bitad.runtime.log import shortlist
from bitad.timeline import FloatArray

# Two ways to compute an overlap differ in the last digits; pairs are searched slightly below the threshold.
_ROUNDING = 1e-6


def evaluate_by_thumos_kit(
    ground_truth: Annotations,
    detections: Detections,
    *,
    tiou: Sequence[float],
    ambiguous: Mapping[str, FloatArray] | None = None,
) -> Evaluation:
    """mAP of ``detections`` against all videos of ``ground_truth`` at the thresholds ``tiou``.

    Args:
        ground_truth: its segments labelled ``Ambiguous`` are the ambiguous intervals.
        ambiguous: more such intervals, ``[n, 2]`` in seconds, by video (:func:`read_ambiguous`).

    Raises:
        ValueError: as ``evaluate``, or ``ambiguous`` names none of the videos.
    """
    decided, undecided = _split_undecided(ground_truth, detections, ambiguous)
    matches = _match(decided, undecided, detections, tiou)
    truth = matches.truth
    ap = np.zeros((len(truth.classes), len(matches.thresholds)))
    for label, segments in enumerate(truth.segments_per_class):
        rows = matches.labels == label
        hits = matches.correct[:, rows]
        among = np.cumsum(matches.counted[:, rows], axis=1)
        # Where no detection counts yet, there is no hit; the floor only prevents 0 / 0.
        precision_at_hits = hits * np.cumsum(hits, axis=1) / np.maximum(among, 1)
        ap[label] = precision_at_hits.sum(axis=1) / segments
    return Evaluation.of(
        ap,
        truth,
        decided,
        detections,
        rule="thumos-kit",
        thresholds=matches.thresholds,
        ambiguous=sum(map(len, undecided.values())),
    )


def match_by_thumos_kit(
    ground_truth: Annotations,
    detections: Detections,
    *,
    tiou: Sequence[float],
    ambiguous: Mapping[str, FloatArray] | None = None,
) -> Matches:
    """The detections that segments take, and those left out; as :func:`evaluate_by_thumos_kit`."""
    return _match(*_split_undecided(ground_truth, detections, ambiguous), detections, tiou)


def _match(
    decided: Annotations, undecided: Mapping[str, FloatArray], detections: Detections, tiou: Sequence[float]
) -> Matches:
    thresholds = checked_thresholds(tiou)
    detections = detections.forward()
    truth = Truth.of(decided, every_segment=True)
    ranked = Ranked.of(truth, detections, equals_by_video=True)
    correct = _true_positives(truth, ranked, thresholds)
    counted = correct | ~_touching(undecided, detections)[ranked.rows]
    return Matches.of("thumos-kit", truth, thresholds, ranked, detections, correct=correct, counted=counted)


def read_ambiguous(path: str | Path) -> dict[str, FloatArray]:
    """The ambiguous intervals ``[n, 2]`` in seconds, by video.

    Args:
        path: the official ``Ambiguous_test.txt`` (every line of a ``.txt`` is one: video, start, end), or annotations
            with segments labelled ``Ambiguous``.
    """
    path = Path(path)
    if path.suffix == ".txt":
        rows: dict[str, list[tuple[float, float]]] = {}
        for line, fields in read_lines(path):
            rows.setdefault(fields[0], []).append(line_segment(fields, f"{path}:{line}"))
        intervals = {video: np.array(segments, np.float64) for video, segments in rows.items()}
    else:
        _, intervals = _without_undecided(read_annotations(path, ignore=()))
    if not intervals:
        raise ValueError(f"{path}: no {UNDECIDED[0]} interval in this file; leave it out, or name another")
    return intervals


def _split_undecided(
    ground_truth: Annotations, detections: Detections, ambiguous: Mapping[str, FloatArray] | None
) -> tuple[Annotations, dict[str, FloatArray]]:
    """The ground truth without its ambiguous segments, and these and ``ambiguous`` by video."""
    decided, undecided = _without_undecided(ground_truth)
    if ambiguous:
        undecided = _union(undecided, ambiguous, {*ground_truth.videos, *detections.videos})
    return decided, undecided


def _without_undecided(annotations: Annotations) -> tuple[Annotations, dict[str, FloatArray]]:
    """The ground truth without its ambiguous segments, and these ``[n, 2]`` by video."""
    videos, intervals = {}, {}
    for name, video in annotations.videos.items():
        undecided = np.isin(video.labels, UNDECIDED)
        videos[name] = video.take(~undecided)
        if undecided.any():
            intervals[name] = video.segments[undecided]
    classes = tuple(name for name in annotations.classes if name not in UNDECIDED)
    return replace(annotations, videos=videos, classes=classes), intervals


def _union(
    own: Mapping[str, FloatArray], more: Mapping[str, FloatArray], videos: set[str]
) -> dict[str, FloatArray]:
    """The ambiguous intervals of both sources in these videos, each once."""
    if not videos & more.keys():
        raise ValueError(
            f"the ambiguous intervals are of {shortlist(list(more))}, but the ground truth has no such video; it has "
            f"{shortlist(sorted(videos), 2)}; give those of the same subset"
        )
    union = dict(own)
    for name in videos & more.keys():
        both = np.concatenate([own.get(name, np.empty((0, 2))), more[name]])
        union[name] = np.unique(both, axis=0)
    return union


def _true_positives(truth: Truth, ranked: Ranked, thresholds: FloatArray) -> Mask:
    """Which detections a ground-truth segment takes at each threshold, bool ``[n_tiou, n]``."""
    segments = np.sort(truth.segments, axis=1)
    lowest = float(thresholds.min()) * (1 - _ROUNDING)
    segment, detection, _ = tiou_pairs(truth.groups, segments, ranked.groups, ranked.segments, lowest)
    starts, ends = np.stack([segments[segment], ranked.segments[detection]]).T
    # As the kit computes it, so that an overlap equal to the threshold falls on the same side.
    intersection = ends.min(axis=1) - starts.max(axis=1)
    overlap = intersection / (ends.max(axis=1) - starts.min(axis=1))
    order = np.lexsort((detection, -overlap, segment))
    segment, detection, overlap = segment[order], detection[order], overlap[order]
    m, n = len(segments), len(ranked.scores)
    first = np.searchsorted(segment, np.arange(m))
    taken = []
    for threshold in thresholds:
        count = np.bincount(segment[overlap > threshold], minlength=m)
        taken.append(take_turns(first, count, detection, n) < m)
    return np.stack(taken)


def _touching(intervals: Mapping[str, FloatArray], detections: Detections) -> Mask:
    """Which detections overlap one of their video's intervals, bool ``[n]``."""
    number = {name: i for i, name in enumerate(detections.videos)}
    known = {number[name]: segments for name, segments in intervals.items() if name in number}
    lengths = [len(segments) for segments in known.values()]
    groups = np.repeat(np.array(list(known), np.int64), lengths)
    segments = np.sort(np.concatenate([np.empty((0, 2)), *known.values()]), axis=1)
    least = float(np.finfo(np.float64).tiny)
    rows, _, _ = tiou_pairs(detections.video, detections.segments, groups, segments, least)
    touching = np.zeros(len(detections), np.bool_)
    touching[rows] = True
    return touching
