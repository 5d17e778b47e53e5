import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitad.data import tiou as overlap
from bitad.data.tiou import best_first, tiou_pairs


def slow_pairs(groups_a, segments_a, groups_b, segments_b, threshold) -> dict[tuple[int, int], float]:
    found = {}
    for i, (group, (start, end)) in enumerate(zip(groups_a, segments_a, strict=True)):
        for j, (other, (first, last)) in enumerate(zip(groups_b, segments_b, strict=True)):
            shared = max(min(end, last) - max(start, first), 0.0)
            union = (end - start) + (last - first) - shared
            if group == other and shared / max(union, 1e-8) >= threshold:
                found[i, j] = shared / max(union, 1e-8)
    return found


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 30),
    st.integers(0, 30),
    st.sampled_from([1e-9, 1e-6, 0.1, 0.3, 0.5, 0.7, 1.0]),
    st.sampled_from([1.0, 0.1, 1 / 3, 1e-7, 1e9]),
    st.sampled_from([0.0, 1e6 + 0.1]),
    st.sampled_from([0, 2, 1000]),
)
@settings(deadline=None, max_examples=400)
def test_pairs_are_those_of_the_slow_reference(seed, n, m, threshold, unit, shift, many):
    rng = np.random.default_rng(seed)
    # Multiples of a unit: many segments touch, coincide or have no length, and many tIoU are near the threshold.
    segments = np.sort(rng.integers(-5, 8, (n + m, 2)), axis=1) * unit + shift
    groups = rng.integers(-1, 3, n + m)
    args = (groups[:n], segments[:n], groups[n:], segments[n:], threshold)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "_PAIRS_AT_ONCE", 7)
        patch.setattr(overlap, "_MANY", many)
        a, b, tiou = tiou_pairs(*args)
    assert dict(zip(zip(a.tolist(), b.tolist(), strict=True), tiou.tolist(), strict=True)) == slow_pairs(*args)
    start = segments[n:][b, 0]
    assert np.array_equal(np.lexsort((b, start, a)), np.arange(len(a)))


@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 4), st.integers(0, 3))))
def test_rows_are_ordered_by_group_then_value_then_ties(rows):
    groups, values, ties = np.array(sorted(rows), np.int64).reshape(-1, 3).T
    ties = (ties * 7 + values * 5) % 11
    slow = sorted(range(len(rows)), key=lambda row: (groups[row], -values[row], ties[row]))
    assert best_first(groups, values / 4, ties).tolist() == slow
