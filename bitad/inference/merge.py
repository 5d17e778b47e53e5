"""Late fusion: the detections of several detectors of the same videos become one set, with no training.

This is what every trained fusion of the forward and the reverse network must be read against. All sets must be on one
clock: ``merge(forward, reverse.forward(), ...)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from bitad.config.names import MergeMethod
from bitad.config.schema import NmsConfig
from bitad.data.detections import Detections, VideoColumns
from bitad.data.tiou import tiou_pairs
from bitad.inference.nms import nms
from bitad.runtime.log import log, shortlist

# Weight of a detection without score in a weighted mean: two of them need some.
_LEAST_WEIGHT = 1e-100

# Pairs are made of about so many detections at once, to bound memory.
_ROWS_AT_ONCE = 2**15


def merge(
    *sets: Detections,
    method: MergeMethod,
    settings: NmsConfig | None = None,
    names: Sequence[str] = (),
) -> Detections:
    """Merge n >= 2 sets of detections; the result is by video, best first.

    * "soft-nms": the union of all, through ``nms`` with these settings.
    * "mean": groups of detections of one video and class are made, with at most one detection of each set, any two of
      which have a tIoU of at least ``settings.iou_threshold``. Pairs of detections of two sets are taken by descending
      tIoU; each joins the groups of its two detections where that keeps to this rule. A group becomes the mean of its
      segments with the sum of its scores over n.
    * "product": the same groups, with the n-th root of the product of their scores. A group that lacks a set is left
      out, as its product with nothing is nothing.
    * "wsf": weighted segment fusion, which is weighted boxes fusion (Solovyev, Wang and Gabruseva, Image and Vision
      Computing 2021) in one dimension. By descending score, a detection joins the group of better ones that it overlaps
      most, by the same rule. A group becomes the score-weighted mean of its segments with the sum of its scores over n.
      Other than in the paper, detections of one set never join each other: soft-NMS leaves weakened copies beside each
      detection, which dilute its score (merged with themselves, ActionFormer's THUMOS14 detections fall from an average
      mAP of 66.8 to 58.6).

    In "mean" and "wsf", a set that lacks a group counts as a score of 0: what one of n sets found alone keeps its
    segment and 1/n of its score. That a set does not mention a video or a class means that it found nothing there, as
    files that list only what was found cannot say it otherwise; the log names such videos and classes.

    All but "soft-nms" use of the settings ``iou_threshold``, ``max_segments`` and ``min_score``. In all, the sets may
    change places: where scores or overlaps are equal, two sets are taken in the given order, more are not.

    Args:
        sets: detections on one clock.
        method: how.
        settings: None: the defaults, without voting.
        names: what errors and the log call the sets: their files, for example.

    Raises:
        ValueError: fewer than two sets, sets on different clocks or that disagree about a duration; a score is
            negative, or the scores of only some sets go beyond 1.
    """
    settings = settings or NmsConfig(voting_threshold=0.0)
    if method not in get_args(MergeMethod):
        raise ValueError(f"merging method {method!r} is not one of {', '.join(get_args(MergeMethod))}")
    if len(sets) < 2:
        raise ValueError(f"{len(sets)} set of detections: merging needs at least two")
    names = tuple(names) or tuple(f"set {number}" for number in range(1, len(sets) + 1))
    _require_scores(sets, names)
    details = {"merged": {"method": method, "settings": _recorded(settings), "details": [one.details for one in sets]}}
    if said := _what_is_not_in_all(sets, names):
        log.info("%s", said)
    # Of equal scores and overlaps the first ones come first: that must not depend on which file was named first. (The
    # two sets of a forward and a reverse network have an order.)
    order = range(len(sets)) if len(sets) == 2 else sorted(range(len(sets)), key=lambda number: _content(sets[number]))
    ordered = [sets[number] for number in order]
    union = Detections.concatenate(ordered, details=details, names=[names[number] for number in order])
    source = np.repeat(np.arange(len(sets)), [len(one) for one in ordered])
    if method == "soft-nms":
        return _through_nms(union, settings)
    return _best(_fused(union, source, len(sets), settings.iou_threshold, method), settings)


def _recorded(settings: NmsConfig) -> dict[str, Any]:
    """The settings as the details of merged detections state them."""
    hard = settings.method == "hard"
    return {"soft": not hard, **settings.model_dump(), "method": "gaussian" if hard else settings.method}


def _require_scores(sets: Sequence[Detections], names: Sequence[str]) -> None:
    """Refuses scores that no method can weigh: negative ones, and those on another scale than other sets'."""
    for found, name in zip(sets, names, strict=True):
        if (found.scores < 0).any():
            row = int(found.scores.argmin())
            raise ValueError(
                f"{name}: video {found.videos[found.video[row]]}: segment {found.segments[row].tolist()} has score "
                f"{found.scores[row]:g}; scores must not be negative: turn logits into scores by a sigmoid"
            )
    highest = [float(found.scores.max(initial=0.0)) for found in sets]
    high = max(range(len(sets)), key=highest.__getitem__)
    if low := [number for number, score in enumerate(highest) if 0 < score <= 1 < highest[high]]:
        raise ValueError(
            f"{names[high]}: scores up to {highest[high]:g}, and {names[low[0]]} up to {highest[low[0]]:g}: they "
            "are on different scales; bring both to 0 to 1 (by a sigmoid of logits, or by dividing percentages by 100)"
        )


def _what_is_not_in_all(sets: Sequence[Detections], names: Sequence[str]) -> str | None:
    """One line that names videos and classes that some sets have and others have not; None: there are none."""
    said = []
    for thing, plural, lists in (
        ("video", "videos", [found.videos for found in sets]),
        ("class", "classes", [found.classes for found in sets]),
    ):
        everything = dict.fromkeys(chain.from_iterable(lists))
        in_all = set(everything).intersection(*lists)
        for name, own in zip(names, map(set, lists), strict=True):
            if lacking := [one for one in everything if one not in own]:
                count = f"{len(lacking)} {thing if len(lacking) == 1 else plural}"
                said.append(f"{name} lacks {count} ({shortlist(lacking, most=2)})")
        if everything and not in_all:
            said.append(f"no {thing} is in all of them")
    return f"merging the union, as if nothing was found where nothing is stated: {'; '.join(said)}" if said else None


def _content(found: Detections) -> tuple[object, ...]:
    """By what sets can be put in an order that does not depend on how they are given."""
    columns = (found.scores, found.segments, found.video, found.labels)
    return found.videos, found.classes, *(column.tobytes() for column in columns)


def _through_nms(union: Detections, settings: NmsConfig) -> Detections:
    order = np.argsort(union.video, kind="stable")
    ends = np.cumsum(np.bincount(union.video, minlength=len(union.videos)))
    found: dict[str, VideoColumns] = {}
    for name, rows in zip(union.videos, np.split(order, ends[:-1]), strict=False):
        found[name] = nms(union.segments[rows], union.scores[rows], union.labels[rows], settings)
    return Detections.from_videos(
        found, classes=union.classes, basis=union.basis, durations_s=union.durations_s, details=union.details
    )


def _best(merged: Detections, settings: NmsConfig) -> Detections:
    """Each video's ``max_segments`` best, best first, without those below ``min_score``."""
    order = np.lexsort((-merged.scores, merged.video))
    order = order[merged.scores[order] >= (settings.min_score or 0.0)]
    count = np.bincount(merged.video[order], minlength=len(merged.videos))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(count) - count, count)
    return merged.take(order[rank < settings.max_segments])


def _fused(
    union: Detections,
    source: NDArray[np.int64],  # [n], the number of the set that a row is of
    n_sets: int,
    threshold: float,
    method: Literal["mean", "product", "wsf"],
) -> Detections:
    """``union`` with each group made one row, its first."""
    groups = _groups(union, source, threshold, method)
    # By group, rows in their order: each is added to the group's first.
    members = np.argsort(groups, kind="stable")
    _, first, count = np.unique(groups[members], return_index=True, return_counts=True)
    place = np.arange(len(members)) - np.repeat(first, count)
    weight = np.maximum(union.scores, _LEAST_WEIGHT) if method == "wsf" else np.ones(len(union))
    segments, scores = union.segments.copy(), union.scores / n_sets
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
        kept, scores = kept[count == n_sets], product ** (1 / n_sets)
    return replace(union, segments=segments, scores=scores).take(np.sort(kept))


def _groups(
    union: Detections, source: NDArray[np.int64], threshold: float, method: Literal["mean", "product", "wsf"]
) -> NDArray[np.int64]:
    """The number of each row's group ``[n]``, which is that of its first row."""
    groups = np.arange(len(union))
    # Some videos at a time, whose pairs fit into memory; videos have nothing to do with each other.
    count = np.bincount(union.video, minlength=len(union.videos))
    piece = ((np.cumsum(count) - count) // _ROWS_AT_ONCE)[union.video]
    for number in np.unique(piece):
        rows = np.flatnonzero(piece == number)
        groups[rows] = rows[_groups_at_once(union.take(rows), source[rows], threshold, method)]
    return groups


def _groups_at_once(
    union: Detections, source: NDArray[np.int64], threshold: float, method: Literal["mean", "product", "wsf"]
) -> NDArray[np.int64]:
    """As :func:`_groups`, of all videos together."""
    a, b, tiou = _pairs_of_sets(union, source, threshold)
    rank = np.empty(len(union), np.int64)
    rank[np.argsort(-union.scores, kind="stable")] = np.arange(len(union))
    better, worse = np.minimum(rank[a], rank[b]), np.maximum(rank[a], rank[b])
    # The order in which pairs are made. Of equal ones those with high scores come first, so that a set merged with
    # itself stays what it is.
    order = np.lexsort((better, -tiou, worse) if method == "wsf" else (worse, better, -tiou))
    return _joined(a[order], b[order], source)


def _pairs_of_sets(
    union: Detections, source: NDArray[np.int64], threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The pairs of rows of two sets, of one video and class, that overlap enough, and their tIoU."""
    kinds = union.video * len(union.classes) + union.labels
    found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    for number in range(1, int(source.max(initial=0)) + 1):
        before, own = np.flatnonzero(source < number), np.flatnonzero(source == number)
        a, b, tiou = tiou_pairs(kinds[before], union.segments[before], kinds[own], union.segments[own], threshold)
        found.append((before[a], own[b], tiou))
    a, b, tiou = (np.concatenate(column) for column in zip(*found, strict=True))
    return a, b, tiou


def _joined(a: NDArray[np.int64], b: NDArray[np.int64], source: NDArray[np.int64]) -> NDArray[np.int64]:
    """The groups ``[n]`` that joining pairs (a row a, a row b), taken in their order, makes of n rows.

    Two groups are joined where they have no set in common, and each row of one is in a pair with each of the other.
    A pair that may not join its groups never may later, as groups only grow. Of the pairs that remain, every one that
    is the first for both its groups is therefore taken at once, until none remains: the same as one after the other,
    in a few rounds.
    """
    n = len(source)
    groups = np.arange(n)
    size = np.ones(n, np.int64)
    pairs = np.arange(len(a))
    while pairs.size:
        one, other = np.sort([groups[a[pairs]], groups[b[pairs]]], axis=0)
        # Within a pair of groups each pair of rows occurs once, and pairs of a set with itself never do: all rows are
        # paired exactly where no set is in both groups and all overlap enough. Single rows of a pair are.
        complete, needed = one != other, size[one] * size[other]
        large = np.flatnonzero(complete & (needed > 1))
        _, inverse, count = np.unique(one[large] * n + other[large], return_inverse=True, return_counts=True)
        complete[large] = count[inverse] == needed[large]
        pairs, one, other = pairs[complete], one[complete], other[complete]
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
