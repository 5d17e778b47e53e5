"""Non-maximum suppression of segments: hard, soft (Bodla et al., ICCV 2017), and segment voting.

Behaves as the 1-D NMS of OpenTAD and ActionFormer, which released numbers were made with, but for equal scores: there
the order is left to chance, here the one that comes first in the input is first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bitad.config.schema import NmsConfig
from bitad.data.tiou import overlap_ranges, ranges, tiou_pairs

# Added to every length, as the reference does, so that two segments without length have an IoU of 0.
_LENGTH_FLOOR = 1e-6

# The score of a candidate that was kept or dropped: no longer in the competition.
_GONE = -1.0

# Rounds after which the candidates still in the competition are squeezed together, at least.
_MIN_ROUNDS = 16

# Classes are treated side by side in tables of at most so many cells, or one class in a table of its own.
_CELLS_AT_ONCE = 2**18


def nms(
    segments: ArrayLike,  # [n, 2]
    scores: ArrayLike,  # [n]
    labels: ArrayLike,  # [n]
    settings: NmsConfig,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """The kept segments ``[k, 2]``, scores ``[k]`` and labels ``[k]``, best first; k <= ``max_segments``.

    All classes are treated at once, one segment of each a round. Equal scores: the one first in the input is first.

    Raises:
        ValueError: columns of different lengths, a number that is not finite, a segment that ends before it starts,
            a negative score.
    """
    segments, scores = np.asarray(segments, np.float64), np.asarray(scores, np.float64)
    labels = np.asarray(labels, np.int64)
    if segments.shape != (len(scores), 2) or labels.shape != scores.shape:
        raise ValueError(
            f"segments {segments.shape}, scores {scores.shape} and labels {labels.shape} must be [n, 2], [n] and [n]"
        )
    check_candidates(segments, scores)
    kept, kept_scores = keep(segments, scores, labels, settings)
    kept_segments = segments[kept]
    if settings.voting_threshold > 0 and not settings.multiclass:
        kept_segments = voted(kept_segments, segments, scores, settings.voting_threshold)
    return kept_segments, kept_scores, labels[kept]


def keep(
    segments: NDArray[np.float64], scores: NDArray[np.float64], labels: NDArray[np.int64], settings: NmsConfig
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The rows that :func:`nms` keeps of candidates without defects, and their final scores, best first."""
    hard_floor = settings.min_score if settings.method == "hard" else None
    candidates = np.flatnonzero(scores > hard_floor) if hard_floor else np.arange(len(scores))
    groups = labels[candidates] if settings.multiclass else np.zeros(len(candidates), np.int64)
    kept, kept_scores = _select_by_group(segments[candidates], scores[candidates], groups, settings)
    kept = candidates[kept]
    best = np.lexsort((kept, -kept_scores))[: settings.max_segments]
    return kept[best], kept_scores[best]


def check_candidates(segments: NDArray[np.float64], scores: NDArray[np.float64]) -> None:
    """Refuse candidates ``[n, 2]`` and ``[n]`` that cannot be suppressed.

    Raises:
        ValueError: a number that is not finite, a segment that ends before it starts, a negative score.
    """
    # Written so that NaN fails too.
    sound = np.isfinite(segments).all(axis=1) & (segments[:, 1] >= segments[:, 0]) & (scores >= 0) & (scores < np.inf)
    if not sound.all():
        row = int(np.argmin(sound))
        raise ValueError(
            f"segment {segments[row].tolist()} with score {scores[row]}: a segment's end must not be before its start, "
            "its score not negative, and all finite"
        )


def rows_by_group(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows of each group in a line, int64 ``[groups, most rows of one]``, ascending, then -1; groups ascending."""
    order = np.argsort(groups, kind="stable")
    _, first, count = np.unique(groups[order], return_index=True, return_counts=True)
    table = np.full((len(first), count.max(initial=0)), -1)
    table[np.repeat(np.arange(len(first)), count), np.arange(len(groups)) - np.repeat(first, count)] = order
    return table


def _select_by_group(
    segments: NDArray[np.float64], scores: NDArray[np.float64], groups: NDArray[np.int64], settings: NmsConfig
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The kept rows and their final scores, in no particular order.

    Groups do not compete, so they may be treated in any number of tables. A table is as wide as its largest group:
    groups of like sizes share one, since a few large ones among many small ones would mostly be padding.
    """
    _, group, count = np.unique(groups, return_inverse=True, return_counts=True)
    by_size = np.argsort(-count, kind="stable")
    kept, first = [(np.empty(0, np.int64), np.empty(0))], 0
    while first < len(by_size):
        width = count[by_size[first]]
        like = int(np.searchsorted(-count[by_size], -width / 2, side="right")) - first
        chosen = np.zeros(len(count), np.bool_)
        chosen[by_size[first : first + max(1, min(like, _CELLS_AT_ONCE // width))]] = True
        rows = np.flatnonzero(chosen[group])
        found, final = _select(segments[rows], scores[rows], rows_by_group(groups[rows]), settings)
        kept.append((rows[found], final))
        first += int(chosen.sum())
    return np.concatenate([found for found, _ in kept]), np.concatenate([final for _, final in kept])


def _select(
    segments: NDArray[np.float64], scores: NDArray[np.float64], table: NDArray[np.int64], settings: NmsConfig
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The kept rows and their final scores. ``table`` ``[K, m]``: the rows that compete, line by line, -1: none."""
    kept, kept_scores = [np.empty(0, np.int64)], [np.empty(0)]
    left = np.where(table >= 0, scores[table], _GONE)  # [K, m]
    if settings.method != "hard" and settings.min_score and left.size:
        # The reference drops what is below the minimum after the first segment of each line is kept.
        best = left.argmax(axis=1, keepdims=True)
        exempt = np.arange(left.shape[1]) == best
        left[(left < settings.min_score) & ~exempt] = _GONE
    turns = settings.max_segments
    while turns > 0 and (left >= 0).any():
        table, left = _squeezed(table, left)
        overlaps = _Overlaps(segments, table)
        lines = np.arange(0, left.size, left.shape[1])
        rows, flat = table.ravel(), left.ravel()
        # Until about a quarter of the longest line is gone: then a smaller table pays.
        for _ in range(min(turns, max(_MIN_ROUNDS, left.shape[1] // 4))):
            best = left.argmax(axis=1) + lines  # [K]; of equals the first
            score = flat[best]
            going = score >= 0
            best = best[going]
            kept.append(rows[best])
            kept_scores.append(score[going])
            flat[best] = _GONE
            rivals, iou = overlaps.of(best)
            flat[rivals] = _weakened(flat[rivals], iou, settings)
            turns -= 1
    return np.concatenate(kept), np.concatenate(kept_scores)


def _squeezed(table: NDArray[np.int64], left: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Without the lines and columns in which nothing is left; the order within a line stays."""
    lines = (left >= 0).any(axis=1)
    table, left = np.where(left >= 0, table, -1)[lines], left[lines]
    width = (left >= 0).sum(axis=1).max(initial=0)
    order = np.argsort(left < 0, axis=1, kind="stable")[:, :width]
    return np.take_along_axis(table, order, axis=1), np.take_along_axis(left, order, axis=1)


class _Overlaps:
    """Which segments of its line may overlap a given one, found through their order in time.

    In a long video a segment overlaps few others, and only those are looked at: a round over 200,000 candidates costs
    a twentieth of what it does over whole lines. Segments are named by their cells, flat positions in ``table``.
    """

    def __init__(self, segments: NDArray[np.float64], table: NDArray[np.int64]) -> None:
        line, _ = np.nonzero(table >= 0)
        cells = np.flatnonzero(table >= 0)
        own = segments[table.flat[cells]]
        order, first, count = overlap_ranges(line, own, line, own)
        self.cells = cells[order]
        self.start, self.end = own[order].T
        self.length = self.end - self.start + _LENGTH_FLOOR
        self.first, self.count = first[order], count[order]
        self.place = np.zeros(table.size, np.int64)
        self.place[self.cells] = np.arange(len(cells))

    def of(self, cells: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The cells that may overlap these (each of another line), and their IoU with the one of their line."""
        place = self.place[cells]
        count = self.count[place]
        which = np.repeat(place, count)
        rival = ranges(self.first[place], count)
        overlap = np.minimum(self.end[rival], self.end[which]) - np.maximum(self.start[rival], self.start[which])
        overlap = np.maximum(overlap, 0.0)
        iou = overlap / (self.length[rival] + self.length[which] - overlap)
        return self.cells[rival], iou


def _weakened(left: NDArray[np.float64], iou: NDArray[np.float64], settings: NmsConfig) -> NDArray[np.float64]:
    """The scores ``[r]`` of candidates after one with which they have these IoUs ``[r]`` was kept."""
    if settings.method == "hard":
        return np.where(iou >= settings.iou_threshold, _GONE, left)
    match settings.method:
        case "gaussian":
            weight = np.exp(iou * iou * (-1.0 / settings.sigma))
        case "linear":
            weight = np.where(iou >= settings.iou_threshold, 1.0 - iou, 1.0)
        case "vanilla":
            weight = np.where(iou >= settings.iou_threshold, 0.0, 1.0)
    weakened = left * weight
    return np.where((left < 0) | (weakened < (settings.min_score or 0.0)), _GONE, weakened)


def voted(
    kept: NDArray[np.float64], segments: NDArray[np.float64], scores: NDArray[np.float64], threshold: float
) -> NDArray[np.float64]:
    """Each kept segment as the score-weighted mean of all segments with that tIoU to it; itself where there are none
    (a segment without length)."""
    one_group = np.zeros(max(len(kept), len(segments)), np.int64)
    a, b, _ = tiou_pairs(one_group[: len(kept)], kept, one_group[: len(segments)], segments, threshold)
    total = np.bincount(a, scores[b], minlength=len(kept))
    sums = np.stack([np.bincount(a, scores[b] * segments[b, side], minlength=len(kept)) for side in (0, 1)], axis=1)
    return np.where(total[:, None] > 0, sums / np.where(total > 0, total, 1.0)[:, None], kept)
