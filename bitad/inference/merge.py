"""Late fusion: merges the detections of several detectors into one set, without training.

It is the baseline for every trained fusion of the forward and the reverse network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, get_args

import numpy as np

from bitad.config.names import MergeMethod
from bitad.config.schema import NmsConfig
from bitad.data.detections import Detections
from bitad.data.tiou import best_first, tiou_pairs
from bitad.inference.nms import nms
from bitad.runtime.log import log, shortlist
from bitad.timeline import FloatArray, IntArray

# Smallest weight in a weighted mean, so that two detections with a score of 0 have one.
_MIN_WEIGHT = 1e-100

# Pairs are found among about this many detections at once, to bound memory.
_ROWS_AT_ONCE = 2**15


def merge(
    *sets: Detections,
    method: MergeMethod,
    settings: NmsConfig | None = None,
    names: Sequence[str] = (),
) -> Detections:
    """Merge n >= 2 sets of detections on one clock; the result is by video, best first.

    * "soft-nms": the union of all sets, through ``nms`` with these settings.
    * "mean": detections of one video and class form groups, with at most one of each set, and a tIoU of at least
      ``settings.iou_threshold`` between any two. Pairs are taken by descending tIoU, and join the groups of their
      detections if allowed. A group becomes the mean of its segments with the sum of its scores over n.
    * "product": the same groups, with the n-th root of the product of their scores, if complete.
    * "wsf": weighted segment fusion, one-dimensional weighted boxes fusion (Solovyev, Wang and Gabruseva, Image and
      Vision Computing 2021). By descending score, a detection joins the group of better ones that it overlaps most.
      A group becomes the score-weighted mean of its segments with the sum of its scores over n. Unlike in the paper,
      detections of one set never join: soft-NMS leaves weakened copies, which dilute scores.

    A set that lacks a group counts as a score of 0. All methods except "soft-nms" only use the settings
    ``iou_threshold``, ``max_segments`` and ``min_score``. The order of sets decides at most between equal ones.
    ``names`` are those of the sets in errors and the log. By default there is no voting.

    Raises:
        ValueError: fewer than two sets; other clocks or durations; negative scores or other scales.
    """
    settings = settings or NmsConfig(voting_threshold=0.0)
    if method not in get_args(MergeMethod):
        raise ValueError(f"merging method {method!r} is not one of {', '.join(get_args(MergeMethod))}")
    if len(sets) < 2:
        raise ValueError(f"{len(sets)} set of detections: merging needs at least two")
    names = tuple(names) or tuple(f"set {number}" for number in range(1, len(sets) + 1))
    _check_scores(sets, names)
    record = _record(settings)
    details = {"merged": {"method": method, "settings": record, "details": [one.details for one in sets]}}
    if differences := _describe_differences(sets, names):
        log.info("%s", differences)
    # The order decides between equal scores; it is fixed for three or more files.
    order = list(range(len(sets)))
    if len(sets) > 2:
        order.sort(key=lambda number: _content(sets[number]))
    ordered = [sets[number] for number in order]
    union = Detections.concatenate(ordered, details=details, names=[names[number] for number in order])
    source = np.repeat(np.arange(len(sets)), [len(one) for one in ordered])
    if method == "soft-nms":
        return _nms_by_video(union, settings)
    return _best(_fuse(union, source, len(sets), settings.iou_threshold, method), settings)


def _record(settings: NmsConfig) -> dict[str, Any]:
    hard = settings.method == "hard"
    return {"soft": not hard, **settings.model_dump(), "method": "gaussian" if hard else settings.method}


def _check_scores(sets: Sequence[Detections], names: Sequence[str]) -> None:
    for found, name in zip(sets, names, strict=True):
        if (found.scores < 0).any():
            row = int(found.scores.argmin())
            where = f"{name}: video {found.videos[found.video[row]]}: segment {found.segments[row].tolist()}"
            raise ValueError(
                f"{where} has score {found.scores[row]:g}; scores must not be negative: use a sigmoid"
            )
    highest = [float(found.scores.max(initial=0.0)) for found in sets]
    high = max(range(len(sets)), key=highest.__getitem__)
    if low := [number for number, score in enumerate(highest) if 0 < score <= 1 < highest[high]]:
        scales = f"scores up to {highest[high]:g}, and {names[low[0]]} up to {highest[low[0]]:g}"
        raise ValueError(f"{names[high]}: {scales}: they are on different scales; bring both to 0 to 1")


def _describe_differences(sets: Sequence[Detections], names: Sequence[str]) -> str | None:
    found = []
    for thing, plural, lists in (
        ("video", "videos", [one.videos for one in sets]),
        ("class", "classes", [one.classes for one in sets]),
    ):
        union = dict.fromkeys(chain.from_iterable(lists))
        for name, own in zip(names, map(set, lists), strict=True):
            if missing := [one for one in union if one not in own]:
                count = f"{len(missing)} {thing if len(missing) == 1 else plural}"
                found.append(f"{name} lacks {count} ({shortlist(missing, most=2)})")
        if union and not set(union).intersection(*lists):
            found.append(f"no {thing} is in all of them")
    if not found:
        return None
    return f"merging the union; missing videos and classes count as nothing found: {'; '.join(found)}"


def _content(found: Detections) -> tuple[object, ...]:
    columns = (found.scores, found.segments, found.video, found.labels)
    return found.videos, found.classes, *(column.tobytes() for column in columns)


def _nms_by_video(union: Detections, settings: NmsConfig) -> Detections:
    order = np.argsort(union.video, kind="stable")
    ends = np.cumsum(np.bincount(union.video, minlength=len(union.videos)))
    found = {
        name: nms(union.segments[rows], union.scores[rows], union.labels[rows], settings)
        for name, rows in zip(union.videos, np.split(order, ends[:-1]), strict=False)
    }
    return Detections.from_videos(
        found, classes=union.classes, basis=union.basis, durations_s=union.durations_s, details=union.details
    )


def _best(merged: Detections, settings: NmsConfig) -> Detections:
    order = np.lexsort((-merged.scores, merged.video))
    order = order[merged.scores[order] >= (settings.min_score or 0.0)]
    count = np.bincount(merged.video[order], minlength=len(merged.videos))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(count) - count, count)
    return merged.take(order[rank < settings.max_segments])


def _fuse(union: Detections, source: IntArray, n_sets: int, threshold: float, method: MergeMethod) -> Detections:
    """``union`` with each group merged into its first row; ``source`` ``[n]`` numbers each row's set."""
    groups = _groups(union, source, threshold, method)
    members = np.argsort(groups, kind="stable")  # by group, then in their order
    _, first, count = np.unique(groups[members], return_index=True, return_counts=True)
    place = np.arange(len(members)) - np.repeat(first, count)
    weight = np.maximum(union.scores, _MIN_WEIGHT) if method == "wsf" else np.ones(len(union))
    segments = union.segments.copy()
    scores = union.scores / n_sets
    product = union.scores.copy()
    for number in range(1, n_sets):
        rows = members[place == number]
        into = groups[rows]
        share = (weight[into] / (weight[into] + weight[rows]))[:, None]
        segments[into] = share * segments[into] + (1 - share) * union.segments[rows]
        weight[into] += weight[rows]
        scores[into] += union.scores[rows] / n_sets
        product[into] *= union.scores[rows]
    kept = members[place == 0]
    if method == "product":
        kept = kept[count == n_sets]
        scores = product ** (1 / n_sets)
    return replace(union, segments=segments, scores=scores).take(np.sort(kept))


def _groups(union: Detections, source: IntArray, threshold: float, method: MergeMethod) -> IntArray:
    """The group of each row ``[n]``, numbered by its first row."""
    groups = np.arange(len(union))
    # Some videos at a time, to bound memory.
    count = np.bincount(union.video, minlength=len(union.videos))
    part = ((np.cumsum(count) - count) // _ROWS_AT_ONCE)[union.video]
    for number in np.unique(part):
        rows = np.flatnonzero(part == number)
        some = union.take(rows)
        a, b, tiou = _pairs_of_sets(some, source[rows], threshold)
        rank = np.empty(len(some), np.int64)
        rank[np.argsort(-some.scores, kind="stable")] = np.arange(len(some))
        better = np.minimum(rank[a], rank[b])
        worse = np.maximum(rank[a], rank[b])
        # High scores come first, so that merging a set with itself does not change it.
        if method == "wsf":
            order = np.argsort(worse, kind="stable")
            order = order[best_first(worse[order], tiou[order], better[order])]
        else:
            order = best_first(np.zeros(len(tiou), np.int64), tiou, better * len(some) + worse)
        join = _match if source.max(initial=0) < 2 else _join
        groups[rows] = rows[join(a[order], b[order], source[rows])]
    return groups


def _pairs_of_sets(union: Detections, source: IntArray, threshold: float) -> tuple[IntArray, IntArray, FloatArray]:
    video_and_class = union.video * len(union.classes) + union.labels
    found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    for number in range(1, int(source.max(initial=0)) + 1):
        before = np.flatnonzero(source < number)
        own = np.flatnonzero(source == number)
        a, b, tiou = tiou_pairs(
            video_and_class[before], union.segments[before], video_and_class[own], union.segments[own], threshold
        )
        found.append((before[a], own[b], tiou))
    a, b, tiou = (np.concatenate(column) for column in zip(*found, strict=True))
    return a, b, tiou


def _match(a: IntArray, b: IntArray, source: IntArray) -> IntArray:
    """The result of :func:`_join` for two sets: a row joins once, as groups have at most one row of each set."""
    groups = list(range(len(source)))
    free = bytearray(b"\x01") * len(source)
    for one, other in zip(a.tolist(), b.tolist(), strict=True):
        if free[one] and free[other]:
            free[one] = free[other] = 0
            groups[max(one, other)] = min(one, other)
    return np.array(groups, np.int64)


def _join(a: IntArray, b: IntArray, source: IntArray) -> IntArray:
    """The groups ``[n]`` of n rows after pairs (a row a, a row b) have joined them in this order.

    Two groups join if they share no set and all their rows are in pairs. A pair that cannot join its
    groups never can later. So all pairs that are the first of both their groups join at once.
    """
    n = len(source)
    groups = np.arange(n)
    size = np.ones(n, np.int64)
    pairs = np.arange(len(a))
    while pairs.size:
        left, right = groups[a[pairs]], groups[b[pairs]]
        one, other = np.minimum(left, right), np.maximum(left, right)
        # Each pair of rows occurs once, so the count shows whether groups may join.
        complete = one != other
        needed = size[one] * size[other]
        large = np.flatnonzero(complete & (needed > 1))
        _, inverse, count = np.unique(one[large] * n + other[large], return_inverse=True, return_counts=True)
        complete[large] = count[inverse] == needed[large]
        pairs = pairs[complete]
        one = one[complete]
        other = other[complete]
        first = np.full(n, len(a))
        np.minimum.at(first, one, pairs)
        np.minimum.at(first, other, pairs)
        sure = (first[one] == pairs) & (first[other] == pairs)
        into = np.arange(n)
        into[other[sure]] = one[sure]
        size[one[sure]] += size[other[sure]]
        groups = into[groups]
        pairs = pairs[~sure]
    return groups
