"""One clock: whatever is converted comes back, and both playing directions agree on when something happens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitad.timeline import Grid, mirror_frames, mirror_positions, mirror_segments, reverse_seconds

laws = settings(deadline=None, max_examples=60)

grids = st.builds(
    Grid,
    fps=st.floats(5, 120),
    stride_frames=st.integers(1, 16).map(float),
    first_frame=st.integers(0, 10_000).map(float),
    steps=st.integers(1, 800),
)
positions = st.floats(-50, 900)
segments = st.lists(st.tuples(st.floats(0, 500), st.floats(0.01, 50)), min_size=1, max_size=8).map(
    lambda spans: np.array([(start, start + length) for start, length in spans])
)


@laws
@given(grids, positions)
def test_steps_to_seconds_and_back_changes_nothing(grid: Grid, position: float) -> None:
    assert grid.to_steps(grid.to_seconds(position)) == pytest.approx(position, abs=1e-6)


@laws
@given(grids)
def test_a_step_is_at_the_second_of_its_frame(grid: Grid) -> None:
    np.testing.assert_allclose(grid.to_seconds(np.arange(grid.steps)), grid.frames() / grid.fps)
    assert len(grid.frames()) == grid.steps


@pytest.mark.parametrize("times", [5.2, np.array([5.2]), torch.tensor([5.2], dtype=torch.float64)])
def test_numbers_arrays_and_tensors_are_converted_alike(times: Any) -> None:
    grid = Grid(fps=30.0, stride_frames=4, first_frame=120, steps=10)
    assert isinstance(grid.to_steps(times), type(times))
    assert grid.to_steps(times) == pytest.approx((5.2 * 30 - 120) / 4)
    assert grid.to_seconds(times) == pytest.approx((5.2 * 4 + 120) / 30)
    assert mirror_positions(times, 10) == pytest.approx(9 - 5.2)


@laws
@given(segments, st.integers(1, 800))
def test_mirroring_twice_changes_nothing(segments: np.ndarray, steps: int) -> None:
    np.testing.assert_allclose(mirror_segments(mirror_segments(segments, steps), steps), segments, atol=1e-9)
    np.testing.assert_allclose(mirror_positions(mirror_positions(segments, steps), steps), segments, atol=1e-9)


@laws
@given(segments, st.integers(1, 800))
def test_a_mirrored_segment_starts_where_the_original_ends(segments: np.ndarray, steps: int) -> None:
    for (start, end), mirrored in zip(segments, mirror_segments(segments, steps), strict=True):
        np.testing.assert_allclose(mirrored, (steps - 1 - end, steps - 1 - start))


@laws
@given(grids)
def test_a_reverse_position_shows_the_frame_that_its_mirrored_position_names(grid: Grid) -> None:
    newest_first = grid.frames()[::-1]
    for position in range(0, grid.steps, 7):
        assert newest_first[position] == grid.frames()[mirror_positions(position, grid.steps)]


@laws
@given(grids, positions)
def test_a_detection_in_the_reverse_view_is_at_its_frames_forward_second(grid: Grid, position: float) -> None:
    expected = (grid.first_frame + grid.stride_frames * (grid.steps - 1 - position)) / grid.fps
    assert grid.to_seconds(mirror_positions(position, grid.steps)) == pytest.approx(expected, abs=1e-9)


@laws
@given(st.integers(1, 5000), st.data())
def test_frames_mirrored_twice_are_themselves_and_stay_in_the_video(count: int, data: st.DataObject) -> None:
    frames = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=20)))
    mirrored = mirror_frames(frames, count)
    np.testing.assert_array_equal(mirrored, count - 1 - frames)
    np.testing.assert_array_equal(mirror_frames(mirrored, count), frames)


def test_sampling_a_reversed_file_from_its_own_start_meets_other_frames() -> None:
    """Why a reversed file is read at the mirrored frames of the forward window and not at every 4th of its own."""
    grid = Grid(fps=30.0, stride_frames=4, first_frame=0, steps=25)
    file = np.arange(102)[::-1]  # what the frames of the reversed file show
    np.testing.assert_array_equal(file[mirror_frames(grid.frames(), 102)], grid.frames())
    assert not set(file[::4]) & set(grid.frames())


@laws
@given(segments, st.floats(1, 1000))
def test_reversing_seconds_twice_changes_nothing(segments: np.ndarray, duration_s: float) -> None:
    once = reverse_seconds(segments, duration_s)
    np.testing.assert_allclose(once, np.stack([duration_s - segments[:, 1], duration_s - segments[:, 0]], axis=1))
    assert (once[:, 1] > once[:, 0]).all()
    np.testing.assert_allclose(reverse_seconds(once, duration_s), segments, atol=1e-6)


def test_reverse_seconds_are_notation_and_not_the_time_in_a_reversed_file() -> None:
    """A reversed file shows the frame of time t at ``D - 1/fps - t``: one frame away from ``D - t``."""
    fps, count = 25.0, 100
    frames = np.array([[10, 60]])
    in_file = mirror_frames(frames, count)[:, ::-1] / fps
    np.testing.assert_allclose(reverse_seconds(frames / fps, count / fps) - in_file, 1 / fps)
