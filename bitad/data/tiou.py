"""Which segments overlap, and by how much: all pairs at once, without a full matrix."""

from __future__ import annotations

import numpy as np

from bitad.timeline import FloatArray, IntArray

# Pairs are computed in chunks that fit in a cache.
_PAIRS_AT_ONCE = 50_000

# A threshold narrows ranges if it is above this, and if they have more rows than this on average.
_LEAST_THRESHOLD = 1e-6
_MANY = 2

# Of a segment's length and start, added to bounds, so that rounding errors never exclude a pair.
_MARGIN = 1e-9


def overlap_ranges(
    groups_a: IntArray,  # [n]
    segments_a: FloatArray,  # [n, 2]
    groups_b: IntArray,  # [m]
    segments_b: FloatArray,  # [m, 2]
    threshold: float = 0.0,
) -> tuple[IntArray, IntArray, IntArray]:
    """For each row of a, a range that contains the rows of b of its group that overlap it.

    Returns ``order`` ``[m]``, the rows of b by group and start, and ``first`` and ``count`` ``[n]``: the rows of b that
    overlap row i of a are among ``order[first[i] : first[i] + count[i]]``. With a ``threshold``, the range may leave
    out rows with a lower tIoU.
    """
    order = np.lexsort((segments_b[:, 0], groups_b))
    # A time within a group is a complex number: numpy orders those by the real part, then the imaginary one.
    start_a, end_a = (groups_a + 1j * segments_a[:, side] for side in (0, 1))
    start_b, end_b = ((groups_b + 1j * segments_b[:, side])[order] for side in (0, 1))
    # The rows before ``first`` end before a starts; those from ``last`` on start after it ends.
    first = np.searchsorted(np.maximum.accumulate(end_b), start_a, side="right")
    last = np.searchsorted(start_b, end_a, side="left")
    count = np.maximum(last - first, 0)
    if threshold > _LEAST_THRESHOLD and count.sum() > _MANY * len(count):
        # If b starts d earlier, the union is at least d longer than the overlap; if d later, the overlap is at least
        # d shorter than a. The margin is far above rounding errors.
        length = segments_a[:, 1] - segments_a[:, 0]
        margin = _MARGIN * (length + np.abs(segments_a[:, 0]))
        earliest = segments_a[:, 0] - length * (1 / threshold - 1) - margin
        latest = segments_a[:, 0] + length * (1 - threshold) + margin
        first = np.maximum(first, np.searchsorted(start_b, groups_a + 1j * earliest, side="left"))
        last = np.minimum(last, np.searchsorted(start_b, groups_a + 1j * latest, side="right"))
        count = np.maximum(last - first, 0)
    return order, first, count


def tiou_pairs(
    groups_a: IntArray,  # [n]
    segments_a: FloatArray,  # [n, 2]
    groups_b: IntArray,  # [m]
    segments_b: FloatArray,  # [m, 2]
    threshold: float,
) -> tuple[IntArray, IntArray, FloatArray]:
    """The pairs (row of a, row of b) of the same group whose tIoU is at least ``threshold`` > 0, and their tIoU.

    tIoU (temporal intersection over union) is the length of the overlap over the length of the union; a segment
    without length has tIoU 0 with every other. Pairs are ordered by row of a, then by start and row of b.
    """
    order, first, count = overlap_ranges(groups_a, segments_a, groups_b, segments_b, threshold)
    start_a, end_a = np.ascontiguousarray(segments_a.T)
    start_b, end_b = np.ascontiguousarray(segments_b[order].T)
    length_a = end_a - start_a
    length_b = end_b - start_b
    total = np.cumsum(count)
    cuts = np.searchsorted(total, np.arange(_PAIRS_AT_ONCE, count.sum(), _PAIRS_AT_ONCE))
    found = []
    for rows in np.split(np.arange(len(groups_a)), cuts):
        a = np.repeat(rows, count[rows])
        b = ranges(first[rows], count[rows])
        overlap = np.maximum(np.minimum(end_a[a], end_b[b]) - np.maximum(start_a[a], start_b[b]), 0.0)
        union = length_a[a] + length_b[b] - overlap
        tiou = overlap / np.maximum(union, 1e-8)  # no 0 / 0
        kept = np.flatnonzero(tiou >= threshold)
        found.append((a[kept], order[b[kept]], tiou[kept]))
    a, b, tiou = (np.concatenate(column) for column in zip(*found, strict=True))
    return a, b, tiou


def ranges(first: IntArray, count: IntArray) -> IntArray:
    """``first[0], first[0] + 1, ...`` (``count[0]`` of them), then those of ``first[1]``, and so on."""
    total = np.cumsum(count)
    return np.arange(count.sum()) + np.repeat(first + count - total, count)


def best_first(groups: IntArray, values: FloatArray, ties: IntArray) -> IntArray:
    """The order of rows by group, then by descending value, then by ascending ``ties``; ``groups`` ascend.

    It equals ``np.lexsort((ties, -values, groups))``, but sorts groups of one size together as the rows of a matrix.
    """
    order = np.arange(len(groups))
    starts = np.flatnonzero(np.diff(groups, prepend=groups[:1] - 1))
    sizes = np.diff(starts, append=len(groups))
    by_size = np.argsort(sizes, kind="stable")
    size, first, how_many = np.unique(sizes[by_size], return_index=True, return_counts=True)
    for i in np.flatnonzero(size > 1).tolist():
        some = by_size[first[i] : first[i] + how_many[i]]
        rows = starts[some][:, None] + np.arange(size[i])
        place = np.argsort(-values[rows], axis=1, kind="stable")
        order[rows] = np.take_along_axis(rows, place, axis=1)
    # Equal values are rare, and so only their groups are sorted by ties.
    value, group = values[order], groups[order]
    equal = np.flatnonzero((value[1:] == value[:-1]) & (group[1:] == group[:-1]))
    if equal.size:
        tied = np.zeros(len(groups), np.bool_)
        tied[equal] = tied[equal + 1] = True
        some = order[tied]
        order[tied] = some[np.lexsort((ties[some], -values[some], groups[some]))]
    return order
