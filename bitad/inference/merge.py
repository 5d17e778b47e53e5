"""Late fusion: the detections of two detectors of the same videos become one set, with no training.

This is what every trained fusion of the forward and the reverse network must be read against. Both sets must be on one
clock: ``merge(forward, reverse.forward(), ...)``. This module does not import torch.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from bitad.data.detections import Detections, VideoColumns, named
from bitad.data.overlap import tiou_pairs
from bitad.inference.nms import NmsSettings, nms

MergeMethod = Literal["soft-nms", "mean", "product", "wsf"]

# Weight of a detection without score in a weighted mean: two of them need some.
_LEAST_WEIGHT = 1e-100


def merge(
    a: Detections,
    b: Detections,
    *,
    method: MergeMethod,
    settings: NmsSettings | None = None,
    names: tuple[str, str] = ("the first set", "the second set"),
) -> Detections:
    """Merge two sets of detections of the same videos; the result is by video, best first.

    * "soft-nms": the union of both, through ``nms`` with these settings.
    * "mean": pairs of a detection of each set, of one video and class, with a tIoU of at least
      ``settings.iou_threshold``, are made by descending tIoU, each detection being in one pair at most. A pair becomes
      the mean of its segments with the mean of its scores.
    * "product": the same pairs, with the root of the product of their scores; what found no partner is left out, as its
      product with nothing is nothing.
    * "wsf": weighted segment fusion, which is weighted boxes fusion (Solovyev, Wang and Gabruseva, Image and Vision
      Computing 2021) in one dimension. By descending score, a detection joins the detection of the other set that it
      overlaps most, among the better ones that are still alone, from the same tIoU on. A pair becomes the
      score-weighted mean of its segments with the mean of its scores. Other than in the paper, detections of one set
      never join each other: soft-NMS leaves weakened copies beside each detection, which dilute its score (merged
      with themselves, ActionFormer's THUMOS14 detections fall from an average mAP of 66.8 to 58.6).

    In "mean" and "wsf", what found no partner keeps its segment and half its score, as if the other set gave it 0. All
    but "soft-nms" use of the settings ``iou_threshold``, ``max_segments`` and ``min_score``. In all, a and b may change
    places.

    Args:
        settings: ``NmsSettings()`` if not given.
        names: what errors call the two sets: their files, for example.

    Raises:
        ValueError: the sets are on different clocks, of different videos or classes, or disagree about a duration; a
            score is negative, or the scores of only one set go beyond 1.
    """
    settings = settings or NmsSettings()
    _require_scores((a, b), names)
    if different := sorted(set(a.videos) ^ set(b.videos)):
        raise ValueError(
            f"{len(different)} of the videos are in only one of the two sets of detections: {named(different)}; both "
            "detectors must have looked at the same videos"
        )
    details = {"merged": {"method": method, "settings": asdict(settings), "details": [a.details, b.details]}}
    union = Detections.concatenate([a, b], details=details)
    match method:
        case "soft-nms":
            return _through_nms(union, settings)
        case "mean" | "product" | "wsf":
            return _best(_fused_pairs(union, len(a), settings.iou_threshold, method), settings)
        case _:
            raise ValueError(f"merging method {method!r} is not one of {', '.join(get_args(MergeMethod))}")


def _require_scores(sets: tuple[Detections, Detections], names: tuple[str, str]) -> None:
    """Refuses scores that no method can weigh: negative ones, and those on another scale than the other set's."""
    for found, name in zip(sets, names, strict=True):
        if (found.scores < 0).any():
            row = int(found.scores.argmin())
            raise ValueError(
                f"{name}: video {found.videos[found.video[row]]}: segment {found.segments[row].tolist()} has score "
                f"{found.scores[row]:g}; scores must not be negative: turn logits into scores by a sigmoid"
            )
    highest = [float(found.scores.max(initial=0.0)) for found in sets]
    if min(highest) <= 1 < max(highest) and min(highest) > 0:
        high = int(highest[1] > highest[0])
        raise ValueError(
            f"{names[high]}: scores up to {highest[high]:g}, and {names[1 - high]} up to {highest[1 - high]:g}: they "
            "are on different scales; bring both to 0 to 1 (by a sigmoid of logits, or by dividing percentages by 100)"
        )


def _through_nms(union: Detections, settings: NmsSettings) -> Detections:
    order = np.argsort(union.video, kind="stable")
    ends = np.cumsum(np.bincount(union.video, minlength=len(union.videos)))
    found: dict[str, VideoColumns] = {}
    for name, rows in zip(union.videos, np.split(order, ends[:-1]), strict=False):
        found[name] = nms(union.segments[rows], union.scores[rows], union.labels[rows], settings)
    return Detections.from_videos(
        found, classes=union.classes, basis=union.basis, durations_s=union.durations_s, details=union.details
    )


def _best(merged: Detections, settings: NmsSettings) -> Detections:
    """Each video's ``max_segments`` best, best first, without those below ``min_score``."""
    order = np.lexsort((-merged.scores, merged.video))
    order = order[merged.scores[order] >= (settings.min_score or 0.0)]
    count = np.bincount(merged.video[order], minlength=len(merged.videos))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(count) - count, count)
    return merged.take(order[rank < settings.max_segments])


def _fused_pairs(
    union: Detections, first_of_b: int, threshold: float, method: Literal["mean", "product", "wsf"]
) -> Detections:
    """``union`` with each pair of a row before ``first_of_b`` and one from there on made one row, and the other rows
    at half their score, or left out."""
    groups = union.video * len(union.classes) + union.labels
    in_a, in_b = np.split(np.arange(len(union)), [first_of_b])
    a, b, tiou = tiou_pairs(groups[in_a], union.segments[in_a], groups[in_b], union.segments[in_b], threshold)
    a, b = in_a[a], in_b[b]
    rank = np.empty(len(union), np.int64)
    rank[np.argsort(-union.scores, kind="stable")] = np.arange(len(union))
    better, worse = np.minimum(rank[a], rank[b]), np.maximum(rank[a], rank[b])
    # The order in which pairs are made. Of equal ones those with high scores come first, so that a set merged with
    # itself stays what it is.
    order = np.lexsort((better, -tiou, worse) if method == "wsf" else (worse, better, -tiou))
    chosen = order[_one_to_one(a[order], b[order], len(union))]
    a, b = a[chosen], b[chosen]
    weight = np.maximum(union.scores, _LEAST_WEIGHT) if method == "wsf" else np.ones(len(union))
    share = (weight[a] / (weight[a] + weight[b]))[:, None]
    segments, scores = union.segments.copy(), union.scores / 2
    segments[a] = share * union.segments[a] + (1 - share) * union.segments[b]
    if method == "product":
        scores[a] = np.sqrt(union.scores[a] * union.scores[b])
        return replace(union, segments=segments, scores=scores).take(np.sort(a))
    scores[a] += union.scores[b] / 2
    return replace(union, segments=segments, scores=scores).take(np.delete(np.arange(len(union)), b))


def _one_to_one(a: NDArray[np.int64], b: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Which pairs (a row a, a row b, both below n), taken in their order, still find both rows free.

    Of the pairs that remain, every one that is the first for both its rows is taken, and those that share a row with
    it fall out, until none remains: the same as one after the other, in a few rounds.
    """
    taken: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    pairs = np.arange(len(a))
    while pairs.size:
        first = np.full(n, len(a))
        np.minimum.at(first, a[pairs], pairs)
        np.minimum.at(first, b[pairs], pairs)
        sure = pairs[(first[a[pairs]] == pairs) & (first[b[pairs]] == pairs)]
        taken.append(sure)
        free = np.ones(n, np.bool_)
        free[a[sure]] = free[b[sure]] = False
        pairs = pairs[free[a[pairs]] & free[b[pairs]]]
    return np.concatenate(taken)
