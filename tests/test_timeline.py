"""One clock: whatever is converted comes back, and both playing directions agree on when something happens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitad.timeline import Grid, mirror_frames, mirror_points, mirror_positions, mirror_segments, reverse_seconds

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


@given(steps=st.integers(1, 50), stride=st.integers(1, 8), per_step=st.integers(1, 8), first=st.integers(0, 100))
@settings(deadline=None)
def test_many_frames_a_step_lie_evenly_from_its_own_on_or_around_it(
    steps: int, stride: int, per_step: int, first: int
) -> None:
    grid = Grid(25.0, float(stride * per_step), float(first), steps)
    frames = grid.frames(per_step)
    assert frames.tolist() == list(range(first, first + stride * per_step * steps, stride))
    assert frames[::per_step].tolist() == grid.frames().tolist()
    middle = Grid(25.0, grid.stride_frames, 1000.0, steps).frames(per_step, centred=True).reshape(steps, per_step)
    assert np.abs(middle.mean(axis=1) - (1000 + grid.stride_frames * np.arange(steps))).max() <= 0.5


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


@laws
@given(st.integers(1, 40), st.integers(1, 300), st.integers(0, 10))
def test_a_points_mirror_point_is_the_nearest_real_one_of_its_level(stride: int, steps: int, padding: int) -> None:
    real = range(0, steps, stride)
    index, gap = mirror_points(np.arange(len(real) + padding), stride, steps)
    assert ((index >= 0) & (index < len(real))).all()  # of padded points too
    for j, position in enumerate(real):
        forwards = [steps - 1 - other for other in real]  # where the other view's points lie in this one
        nearest = min(range(len(real)), key=lambda i: (abs(forwards[i] - position), i))
        assert index[j] == nearest
        assert gap[j] == pytest.approx((forwards[nearest] - position) / stride)


@laws
@given(st.integers(1, 8), st.integers(0, 5))
def test_mirror_points_are_exact_and_mirror_back_where_the_stride_divides(count: int, level: int) -> None:
    stride = 2**level
    index, gap = mirror_points(np.arange(count), stride, stride * (count - 1) + 1)
    np.testing.assert_array_equal(index, np.arange(count)[::-1])
    assert (gap == 0).all()


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_on_a_full_window_every_mirror_point_but_the_first_is_used(stride: int) -> None:
    """Rounding half to even would leave half the points of stride 2 unused."""
    index, _ = mirror_points(np.arange(64 // stride), stride, 64)
    assert set(range(1, 64 // stride)) <= set(index.tolist())


def test_mirror_points_of_arrays_and_tensors_are_alike_for_windows_and_levels_at_once() -> None:
    points, strides, steps = (
        np.array([0, 1, 2, 3, 0, 1, 0]),
        np.array([1, 1, 1, 1, 2, 2, 4]),
        np.array([[1], [3], [4]]),
    )
    index, gap = mirror_points(points, strides, steps)
    tensors = mirror_points(torch.tensor(points), torch.tensor(strides), torch.tensor(steps))
    np.testing.assert_array_equal(tensors[0].numpy(), index)
    np.testing.assert_allclose(tensors[1].numpy(), gap)
    assert index.shape == gap.shape == (3, 7)
    for row, window in enumerate(steps[:, 0].tolist()):
        for column, (point, stride) in enumerate(zip(points, strides, strict=True)):
            alone = mirror_points(np.array([point]), int(stride), window)
            assert (index[row, column], gap[row, column]) == (alone[0][0], alone[1][0])


def test_on_the_coarsest_level_of_a_full_window_points_are_two_steps_off_and_not_31() -> None:
    points, stride, steps = np.arange(24), 32, 768
    _, gap = mirror_points(points, stride, steps)
    assert np.abs(gap * stride).mean() == 2.25
    turned_round = mirror_positions(stride * points[::-1], steps)
    assert np.abs(turned_round - stride * points).mean() == 31


@laws
@given(grids, segments, st.floats(600, 1000))
def test_ground_truth_comes_back_from_the_reverse_basis(
    grid: Grid, segments: np.ndarray, duration_s: float
) -> None:
    """In seconds, and on the grid of a window."""
    seconds = reverse_seconds(reverse_seconds(segments, duration_s), duration_s)
    reverse = mirror_segments(grid.to_steps(seconds), grid.steps)
    assert (reverse[:, 1] > reverse[:, 0]).all()
    np.testing.assert_allclose(grid.to_seconds(mirror_segments(reverse, grid.steps)), segments, rtol=0, atol=1e-6)
