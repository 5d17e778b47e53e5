import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitad.config.schema import WindowConfig
from bitad.data.dataset import random_window, sliding_windows
from bitad.timeline import Grid


@given(total=st.integers(1, 3000), length=st.integers(1, 800), overlap=st.floats(0, 0.95))
@settings(deadline=None)
def test_sliding_windows_cover_every_step_and_stay_inside_the_video(total, length, overlap):
    windows = sliding_windows(total, length, overlap)
    seen = np.zeros(total, bool)
    for start, steps in windows:
        assert start >= 0
        assert start + steps <= total
        assert steps == min(length, total)
        seen[start : start + steps] = True
    assert seen.all()
    assert len(set(windows)) == len(windows)


def test_half_overlapping_windows_advance_by_half_a_window():
    assert sliding_windows(2000, 768, 0.5) == [(0, 768), (384, 768), (768, 768), (1152, 768), (1232, 768)]


@given(
    steps=st.integers(1, 5000),
    resized=st.integers(1, 5000),
    stride=st.floats(0.5, 16),
    offset=st.floats(-8, 8),
)
@settings(deadline=None)
def test_a_resized_video_keeps_its_ends_and_its_even_distances(steps, resized, stride, offset):
    base = Grid(25.0, stride, offset, steps)
    other = base.resized(resized)
    # A step stands for half a stride on both of its sides.
    for one, its_steps in ((base, steps), (other, resized)):
        assert one.to_seconds(-0.5) == pytest.approx((offset - stride / 2) / 25, abs=1e-6)
        assert one.to_seconds(its_steps - 0.5) == pytest.approx((offset + stride * (steps - 0.5)) / 25, abs=1e-6)
    assert base.resized(steps) == base
    edge = base.resized(resized, "edge")
    assert edge.to_seconds(0) == pytest.approx((offset - stride / 2) / 25, abs=1e-6)
    assert edge.to_seconds(resized) == pytest.approx((offset + stride * (steps - 0.5)) / 25, abs=1e-6)


@given(frames=st.integers(1, 3000), steps=st.integers(1, 3000))
@settings(deadline=None)
def test_the_frames_of_a_resized_video_exist(frames, steps):
    found = Grid(25.0, 1.0, 0.0, frames).resized(steps).frames()
    assert len(found) == steps
    assert found.min() >= 0
    assert found.max() <= frames - 1
    assert (np.diff(found) >= 0).all()


@pytest.mark.parametrize(("total", "overlap"), [(0, 0.5), (10, 1.0), (10, -0.1)])
def test_impossible_windows_are_refused(total, overlap):
    with pytest.raises(ValueError, match=r"steps|overlap"):
        sliding_windows(total, 8, overlap)


@st.composite
def videos(draw):
    total = draw(st.integers(20, 500))
    starts = draw(st.lists(st.floats(0, total - 10), max_size=6))
    segments = np.array([(a, a + draw(st.floats(0.5, 10))) for a in starts], float).reshape(-1, 2)
    return total, segments


@given(videos(), st.integers(8, 200), st.integers(0, 2**31))
@settings(deadline=None)
def test_a_random_window_keeps_only_actions_that_are_complete_enough(video, length, seed):
    total, segments = video
    labels = np.arange(len(segments))
    start, steps, kept, kept_labels = random_window(
        np.random.default_rng(seed), total, segments, labels, WindowConfig(steps=length)
    )
    assert start >= 0
    assert start + steps <= total
    assert steps <= length
    for segment, label in zip(kept, kept_labels, strict=True):
        original = segments[label]
        assert 0 <= segment[0] <= segment[1] <= steps
        assert (segment[1] - segment[0]) >= 0.75 * (original[1] - original[0]) - 1e-9
    for label in set(labels) - set(kept_labels):
        a, b = segments[label]
        visible = min(b, start + steps) - max(a, start)
        assert visible < 0.75 * (b - a) + 1e-9


@given(st.integers(0, 2**31))
@settings(deadline=None)
def test_a_random_window_contains_an_action_where_one_fits(seed):
    segments, labels = np.array([[400.0, 410.0]]), np.array([3])
    *_, kept_labels = random_window(np.random.default_rng(seed), 600, segments, labels, WindowConfig(steps=200))
    assert list(kept_labels) == [3]
