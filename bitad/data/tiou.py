"""Which segments overlap, and by how much: all pairs at once, without a full matrix."""

from __future__ import annotations

import numpy as np

from bitad.timeline import FloatArray, IntArray

# Pairs are computed in chunks, to bound memory.
_PAIRS_AT_ONCE = 1_000_000


def overlap_ranges(
    groups_a: IntArray,  # [n]
    segments_a: FloatArray,  # [n, 2]
    groups_b: IntArray,  # [m]
    segments_b: FloatArray,  # [m, 2]
) -> tuple[IntArray, IntArray, IntArray]:
    """For each row of a, a range that contains the rows of b of its group that overlap it.

    Returns ``order`` ``[m]``, the rows of b by group and start, and ``first`` and ``count`` ``[n]``: the rows of b that
    overlap row i of a are among ``order[first[i] : first[i] + count[i]]``.
    """
    order = np.lexsort((segments_b[:, 0], groups_b))
    # A time within a group is a complex number: numpy orders those by the real part, then the imaginary one.
    start_a, end_a = (groups_a + 1j * segments_a[:, side] for side in (0, 1))
    start_b, end_b = ((groups_b + 1j * segments_b[:, side])[order] for side in (0, 1))
    # The rows before ``first`` end before a starts; those from ``last`` on start after it ends.
    first = np.searchsorted(np.maximum.accumulate(end_b), start_a, side="right")
    last = np.searchsorted(start_b, end_a, side="left")
    return order, first, np.maximum(last - first, 0)


def tiou_pairs(
    groups_a: IntArray,  # [n]
    segments_a: FloatArray,  # [n, 2]
    groups_b: IntArray,  # [m]
    segments_b: FloatArray,  # [m, 2]
    threshold: float,
) -> tuple[IntArray, IntArray, FloatArray]:
    """The pairs (row of a, row of b) of the same group whose tIoU is at least ``threshold`` > 0, and their tIoU.

    tIoU (temporal intersection over union) is the length of the overlap over the length of the union; a segment
    without length has tIoU 0 with every other. Pairs are ordered by row of a.
    """
    order, first, count = overlap_ranges(groups_a, segments_a, groups_b, segments_b)
    total = np.cumsum(count)
    cuts = np.searchsorted(total, np.arange(_PAIRS_AT_ONCE, count.sum(), _PAIRS_AT_ONCE))
    found = []
    for rows in np.split(np.arange(len(groups_a)), cuts):
        a = np.repeat(rows, count[rows])
        b = order[ranges(first[rows], count[rows])]
        start_a, end_a = segments_a[a].T
        start_b, end_b = segments_b[b].T
        overlap = np.maximum(np.minimum(end_a, end_b) - np.maximum(start_a, start_b), 0.0)
        union = (end_a - start_a) + (end_b - start_b) - overlap
        tiou = overlap / np.maximum(union, 1e-8)  # no 0 / 0
        kept = tiou >= threshold
        found.append((a[kept], b[kept], tiou[kept]))
    a, b, tiou = (np.concatenate(column) for column in zip(*found, strict=True))
    return a, b, tiou


def ranges(first: IntArray, count: IntArray) -> IntArray:
    """``first[0], first[0] + 1, ...`` (``count[0]`` of them), then those of ``first[1]``, and so on."""
    total = np.cumsum(count)
    return np.arange(count.sum()) + np.repeat(first + count - total, count)
