"""Non-maximum suppression of segments: hard, soft (Bodla et al., ICCV 2017), and segment voting.

Results equal those of OpenTAD and ActionFormer, except that equal scores keep the order of the input.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from bitad.config.schema import NmsConfig
from bitad.data.tiou import overlap_ranges, ranges, tiou_pairs
from bitad.timeline import FloatArray, IntArray

# Added to every length, as in the reference: segments without length have an IoU of 0.
_LENGTH_FLOOR = 1e-6

_REMOVED = -1.0

# The table of candidates is compacted after at least this many rounds.
_MIN_ROUNDS = 16

# A table that holds several classes has at most this many cells.
_CELLS_AT_ONCE = 2**18


def nms(
    segments: ArrayLike,  # [n, 2]
    scores: ArrayLike,  # [n]
    labels: ArrayLike,  # [n]
    settings: NmsConfig,
) -> tuple[FloatArray, FloatArray, IntArray]:
    """The kept segments ``[k, 2]``, scores ``[k]`` and labels ``[k]``, best first; k <= ``max_segments``.

    Raises:
        ValueError: columns of different lengths, or as :func:`check_candidates`.
    """
    segments = np.asarray(segments, np.float64)
    scores = np.asarray(scores, np.float64)
    labels = np.asarray(labels, np.int64)
    if segments.shape != (len(scores), 2) or labels.shape != scores.shape:
        shapes = f"segments {segments.shape}, scores {scores.shape} and labels {labels.shape}"
        raise ValueError(f"{shapes} must be [n, 2], [n] and [n]")
    check_candidates(segments, scores)
    kept, kept_scores = nms_rows(segments, scores, labels, settings)
    kept_segments = segments[kept]
    if settings.voting_threshold > 0 and not settings.multiclass:
        kept_segments = vote(kept_segments, segments, scores, settings.voting_threshold)
    return kept_segments, kept_scores, labels[kept]


def nms_rows(
    segments: FloatArray, scores: FloatArray, labels: IntArray, settings: NmsConfig
) -> tuple[IntArray, FloatArray]:
    """The rows that :func:`nms` keeps, and their final scores, best first."""
    hard_floor = settings.min_score if settings.method == "hard" else None
    candidates = np.flatnonzero(scores > hard_floor) if hard_floor else np.arange(len(scores))
    groups = labels[candidates] if settings.multiclass else np.zeros(len(candidates), np.int64)
    kept, kept_scores = _select_by_group(segments[candidates], scores[candidates], groups, settings)
    kept = candidates[kept]
    best = np.lexsort((kept, -kept_scores))[: settings.max_segments]
    return kept[best], kept_scores[best]


def check_candidates(segments: FloatArray, scores: FloatArray) -> None:
    """Raises ValueError unless numbers are finite, segments in order and scores not negative."""
    # Written so that NaN fails too.
    valid = np.isfinite(segments).all(axis=1)
    valid &= segments[:, 1] >= segments[:, 0]
    valid &= (scores >= 0) & (scores < np.inf)
    if not valid.all():
        row = int(np.argmin(valid))
        found = f"segment {segments[row].tolist()} with score {scores[row]}"
        raise ValueError(f"{found}; numbers must be finite, the end not before the start, the score not negative")


def _select_by_group(
    segments: FloatArray, scores: FloatArray, groups: IntArray, settings: NmsConfig
) -> tuple[IntArray, FloatArray]:
    """The kept rows and their final scores, unordered; groups of similar sizes share a table."""
    _, group, count = np.unique(groups, return_inverse=True, return_counts=True)
    by_size = np.argsort(-count, kind="stable")
    kept = [(np.empty(0, np.int64), np.empty(0))]
    first = 0
    while first < len(by_size):
        width = count[by_size[first]]
        similar = int(np.searchsorted(-count[by_size], -width / 2, side="right")) - first
        chosen = np.zeros(len(count), np.bool_)
        chosen[by_size[first : first + max(1, min(similar, _CELLS_AT_ONCE // width))]] = True
        rows = np.flatnonzero(chosen[group])
        found, final = _select(segments[rows], scores[rows], _rows_by_group(groups[rows]), settings)
        kept.append((rows[found], final))
        first += int(chosen.sum())
    return np.concatenate([found for found, _ in kept]), np.concatenate([final for _, final in kept])


def _rows_by_group(groups: IntArray) -> IntArray:
    """A line of ascending rows for each group, padded with -1, ``[groups, rows of the largest]``."""
    order = np.argsort(groups, kind="stable")
    _, first, count = np.unique(groups[order], return_index=True, return_counts=True)
    table = np.full((len(first), count.max(initial=0)), -1)
    line = np.repeat(np.arange(len(first)), count)
    place = np.arange(len(groups)) - first[line]
    table[line, place] = order
    return table


def _select(
    segments: FloatArray, scores: FloatArray, table: IntArray, settings: NmsConfig
) -> tuple[IntArray, FloatArray]:
    """The kept rows and their final scores. The rows in a line of ``table`` ``[K, m]`` compete; -1: none."""
    kept = [np.empty(0, np.int64)]
    kept_scores = [np.empty(0)]
    current = np.where(table >= 0, scores[table], _REMOVED)  # [K, m]
    if settings.method != "hard" and settings.min_score and current.size:
        # The reference drops low scores after it has kept the first segment of each line.
        is_best = np.arange(current.shape[1]) == current.argmax(axis=1, keepdims=True)
        current[(current < settings.min_score) & ~is_best] = _REMOVED
    rounds = wanted = settings.max_segments
    while rounds > 0:
        if (lacking := wanted - sum(map(len, kept))) <= 0:
            # Scores never rise, so candidates with a lower score than the best `wanted` cannot replace or change them.
            floor = np.partition(np.concatenate(kept_scores), -wanted)[-wanted]
            current[current < floor] = _REMOVED
        if not (current >= 0).any():
            break
        table, current = _compact(table, current)
        overlaps = _Overlaps(segments, table)
        lines = np.arange(0, current.size, current.shape[1])
        rows = table.ravel()
        flat = current.ravel()
        # After a quarter of the longest line, or when as many as are wanted are kept, a smaller table pays off.
        soon = current.shape[1] // 4
        if lacking > 0:
            soon = min(soon, -(-lacking // len(current)))
        for _ in range(min(rounds, max(_MIN_ROUNDS, soon))):
            best = current.argmax(axis=1) + lines  # [K]; of equals the first
            score = flat[best]
            remains = score >= 0
            best = best[remains]
            kept.append(rows[best])
            kept_scores.append(score[remains])
            flat[best] = _REMOVED
            rivals, iou = overlaps.of(best)
            flat[rivals] = _decay(flat[rivals], iou, settings)
            rounds -= 1
    return np.concatenate(kept), np.concatenate(kept_scores)


def _compact(table: IntArray, current: FloatArray) -> tuple[IntArray, FloatArray]:
    lines = (current >= 0).any(axis=1)
    table = np.where(current >= 0, table, -1)[lines]
    current = current[lines]
    width = (current >= 0).sum(axis=1).max(initial=0)
    order = np.argsort(current < 0, axis=1, kind="stable")[:, :width]
    return np.take_along_axis(table, order, axis=1), np.take_along_axis(current, order, axis=1)


class _Overlaps:
    """Finds the segments of a line that may overlap a given one, by their order in time.

    A cell is a flat position in ``table``.
    """

    def __init__(self, segments: FloatArray, table: IntArray) -> None:
        line, _ = np.nonzero(table >= 0)
        cells = np.flatnonzero(table >= 0)
        own = segments[table.flat[cells]]
        order, first, count = overlap_ranges(line, own, line, own)
        self.cells = cells[order]
        self.start, self.end = own[order].T
        self.length = self.end - self.start + _LENGTH_FLOOR
        self.first = first[order]
        self.count = count[order]
        self.place = np.zeros(table.size, np.int64)
        self.place[self.cells] = np.arange(len(cells))

    def of(self, cells: IntArray) -> tuple[IntArray, FloatArray]:
        """The cells that may overlap these (one per line), and their IoU with these."""
        place = self.place[cells]
        count = self.count[place]
        which = np.repeat(place, count)
        rival = ranges(self.first[place], count)
        start = np.maximum(self.start[rival], self.start[which])
        end = np.minimum(self.end[rival], self.end[which])
        overlap = np.maximum(end - start, 0.0)
        iou = overlap / (self.length[rival] + self.length[which] - overlap)
        return self.cells[rival], iou


def _decay(scores: FloatArray, iou: FloatArray, settings: NmsConfig) -> FloatArray:
    match settings.method:
        case "hard":
            return np.where(iou >= settings.iou_threshold, _REMOVED, scores)
        case "gaussian":
            weight = np.exp(iou * iou * (-1.0 / settings.sigma))
        case "linear":
            weight = np.where(iou >= settings.iou_threshold, 1.0 - iou, 1.0)
        case "vanilla":
            weight = np.where(iou >= settings.iou_threshold, 0.0, 1.0)
    decayed = scores * weight
    return np.where((scores < 0) | (decayed < (settings.min_score or 0.0)), _REMOVED, decayed)


def overlapping(one: FloatArray, other: FloatArray, threshold: float) -> tuple[IntArray, IntArray]:
    """The rows of both sets of segments in each pair with at least that tIoU."""
    groups = [np.zeros(len(segments), np.int64) for segments in (one, other)]
    a, b, _ = tiou_pairs(groups[0], one, groups[1], other, threshold)
    return a, b


def vote(kept: FloatArray, segments: FloatArray, scores: FloatArray, threshold: float) -> FloatArray:
    """Replaces kept segments by the score-weighted mean of all segments with at least that tIoU."""
    a, b = overlapping(kept, segments, threshold)
    total = np.bincount(a, scores[b], minlength=len(kept))
    sums = np.stack(
        [np.bincount(a, scores[b] * segments[b, side], minlength=len(kept)) for side in (0, 1)], axis=1
    )
    return np.where(total[:, None] > 0, sums / np.where(total > 0, total, 1.0)[:, None], kept)
