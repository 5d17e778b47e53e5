import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitad.data import tiou as overlap
from bitad.data.tiou import tiou_pairs


def slow_pairs(groups_a, segments_a, groups_b, segments_b, threshold) -> dict[tuple[int, int], float]:
    found = {}
    for i, (group, (start, end)) in enumerate(zip(groups_a, segments_a, strict=True)):
        for j, (other, (first, last)) in enumerate(zip(groups_b, segments_b, strict=True)):
            shared = max(min(end, last) - max(start, first), 0.0)
            union = (end - start) + (last - first) - shared
            if group == other and union > 0 and shared / union >= threshold:
                found[i, j] = shared / union
    return found


@given(st.integers(0, 2**32 - 1), st.integers(0, 30), st.integers(0, 30), st.sampled_from([1e-6, 0.3, 0.5, 1.0]))
@settings(deadline=None, max_examples=200)
def test_pairs_are_those_of_the_slow_reference(seed, n, m, threshold):
    rng = np.random.default_rng(seed)
    # Whole numbers: many segments touch, coincide or have no length.
    segments = np.sort(rng.integers(-5, 8, (n + m, 2)), axis=1).astype(np.float64)
    groups = rng.integers(-1, 3, n + m)
    args = (groups[:n], segments[:n], groups[n:], segments[n:], threshold)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "_PAIRS_AT_ONCE", 7)
        a, b, tiou = tiou_pairs(*args)
    assert dict(zip(zip(a.tolist(), b.tolist(), strict=True), tiou.tolist(), strict=True)) == slow_pairs(*args)
    assert (np.diff(a) >= 0).all()
