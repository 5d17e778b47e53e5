from __future__ import annotations

import tracemalloc
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitad.config.schema import NmsConfig
from bitad.inference import postprocess as stitching
from bitad.inference.nms import nms
from bitad.inference.postprocess import Candidates, Stitcher, stitch, to_seconds
from bitad.timeline import Grid, mirror_segments

SOFT = NmsConfig(sigma=0.7, max_segments=50)
DURATION_S = 20.0


def grid_of(window: int, *, steps: int = 40) -> Grid:
    return Grid(fps=25.0, stride_frames=4, first_frame=100 * window, steps=steps)


def candidates_of(seed: int, count: int = 30) -> Candidates:
    rng = np.random.default_rng(seed)
    start = rng.uniform(-5, 40, count)
    segments = np.column_stack((start, start + rng.uniform(0, 20, count)))
    # Scores tie, as rounded ones do.
    return Candidates(segments, rng.integers(1, 10, count) / 10 + 0.01234567, rng.integers(0, 3, count))


def test_seconds_are_those_of_the_grid_rounded_and_within_the_video() -> None:
    candidates = Candidates(np.array([[-3.0, 2.111], [1.0, 500.0]]), np.array([0.123456, 0.5]), np.array([0, 1]))
    found = to_seconds(candidates, grid_of(1), DURATION_S)
    # Step x is at (100 + 4 x) / 25 seconds.
    assert found.segments.tolist() == [[3.52, 4.34], [4.16, 20.0]]
    assert found.scores.tolist() == [0.1235, 0.5]
    exact = to_seconds(candidates, grid_of(1), DURATION_S, rounding=False)
    assert exact.segments[0].tolist() == pytest.approx([3.52, 4.33776])
    assert exact.scores[0] == 0.123456
    assert to_seconds(candidates, grid_of(0), DURATION_S).segments[0, 0] == 0.0


@given(seed=st.integers(0, 100), steps=st.integers(1, 40))
@settings(deadline=None)
def test_a_reverse_views_candidates_come_out_on_the_forward_clock(seed: int, steps: int) -> None:
    grid, candidates = grid_of(1, steps=steps), candidates_of(seed)
    forward = to_seconds(candidates, grid, DURATION_S, rounding=False)
    mirrored = replace(candidates, segments=mirror_segments(candidates.segments, steps))
    reverse = to_seconds(mirrored, grid, DURATION_S, reverse_view=True, rounding=False)
    np.testing.assert_allclose(reverse.segments, forward.segments, atol=1e-12)


def test_there_is_one_suppression_over_all_windows_of_rounded_values() -> None:
    windows = [to_seconds(candidates_of(i), grid_of(i), DURATION_S) for i in range(3)]
    segments, scores, labels = nms(
        np.concatenate([w.segments for w in windows]),
        np.concatenate([w.scores for w in windows]),
        np.concatenate([w.labels for w in windows]),
        SOFT,
    )
    found = stitch(windows, SOFT)
    assert found.segments.tolist() == segments.round(2).tolist()
    assert found.scores.tolist() == scores.round(4).tolist()
    assert found.labels.tolist() == labels.tolist()
    exact = stitch(windows, SOFT, rounding=False)
    assert exact.scores.tolist() == scores.tolist()
    assert exact.scores.tolist() != found.scores.tolist()


ways = st.builds(
    NmsConfig,
    method=st.sampled_from(["gaussian", "linear", "vanilla", "hard"]),
    sigma=st.sampled_from([0.1, 0.7]),
    iou_threshold=st.sampled_from([0.1, 0.5]),
    max_segments=st.sampled_from([1, 4, 60, 2000]),
    multiclass=st.booleans(),
    voting_threshold=st.sampled_from([0.0, 0.3, 0.7]),
    min_score=st.sampled_from([None, 0.2]),
)


@given(seed=st.integers(0, 1000), windows=st.integers(0, 8), kinds=st.sampled_from([1, 2, 100]), how=ways)
@settings(deadline=None, max_examples=60)
def test_the_suppression_of_windows_is_that_of_all_their_candidates_bit_by_bit(
    seed: int, windows: int, kinds: int, how: NmsConfig
) -> None:
    parts = [to_seconds(candidates_of(seed + i, 60), grid_of(i), DURATION_S) for i in range(windows)]
    parts = [replace(part, scores=np.ceil(part.scores * kinds) / kinds) for part in parts]
    plain = nms(
        np.concatenate([np.empty((0, 2)), *(part.segments for part in parts)]),
        np.concatenate([np.empty(0), *(part.scores for part in parts)]),
        np.concatenate([np.empty(0, np.int64), *(part.labels for part in parts)]),
        how,
    )
    with mock.patch.object(stitching, "_FIRST_TRY", 1):  # so that few are soon too few
        found = stitch(parts, how, rounding=False)
    for column, expected in zip((found.segments, found.scores, found.labels), plain, strict=True):
        np.testing.assert_array_equal(column, expected)


def film(windows: int, *, voting: float = 0.0, equal: bool = False) -> Stitcher:
    """Windows that each see actions of their own and say much else that scores little."""
    stitcher = Stitcher(NmsConfig(max_segments=500, multiclass=not voting, voting_threshold=voting))
    rng = np.random.default_rng(0)
    for window in range(windows):
        start = rng.uniform(0, 40, 2000)
        segments = np.column_stack((start, start + rng.uniform(0.5, 10, 2000))).astype(np.float32)
        scores = np.full(2000, 0.01) if equal else rng.beta(0.3, 6, 2000).astype(np.float32)
        seen = Candidates(segments.astype(np.float64), scores.astype(np.float64), rng.integers(0, 20, 2000))
        stitcher.add("film", seen, grid_of(window), 1e6)
    return stitcher


@pytest.mark.parametrize(("voting", "equal"), [(0.0, False), (0.7, False), (0.0, True)])
def test_suppression_takes_no_more_memory_for_a_film_twelve_times_as_long(voting: float, equal: bool) -> None:
    def peak(windows: int) -> int:
        stitcher = film(windows, voting=voting, equal=equal)
        tracemalloc.start()
        try:
            assert len(stitcher.video("film")) == 500
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)  # what is imported and cached once
    assert peak(120) < 1.15 * peak(10)


def test_a_window_is_kept_in_few_bytes_and_comes_out_exactly() -> None:
    tracemalloc.start()
    stitcher = film(50)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 15 * 2000 * 50
    exact = candidates_of(3)  # in double precision, as after a suppression in grid steps
    stitcher = Stitcher(None, rounding=False)
    stitcher.add("v", exact, grid_of(0), DURATION_S)
    found, expected = stitcher.video("v"), to_seconds(exact, grid_of(0), DURATION_S, rounding=False)
    order = np.argsort(-expected.scores, kind="stable")
    np.testing.assert_array_equal(found.segments, expected.segments[order])
    np.testing.assert_array_equal(found.scores, expected.scores[order])
    np.testing.assert_array_equal(found.labels, expected.labels[order])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused_however_little_they_score(value: float) -> None:
    windows = [candidates_of(i, 60) for i in range(5)]
    windows[2].segments[7, 1], windows[2].scores[7] = value, 0.0
    with pytest.raises(ValueError, match="must be finite"):
        stitch(windows, NmsConfig(max_segments=1))


def test_an_action_seen_by_two_windows_is_weakened_once() -> None:
    # Steps 25..35 of the first window are steps 0..10 of the second.
    stitcher = Stitcher(NmsConfig(sigma=0.7))
    for window, (start, end) in enumerate([(25.0, 35.0), (0.0, 10.0)]):
        seen = Candidates(np.array([[start, end]]), np.array([0.9 - 0.1 * window]), np.array([0]))
        stitcher.add("video", seen, grid_of(window), DURATION_S)
    found = stitcher.video("video")
    assert found.segments.tolist() == [[4.0, 5.6]] * 2
    assert found.scores.tolist() == pytest.approx([0.9, 0.8 * np.exp(-1 / 0.7)], abs=1e-4)


def collect(order: list[tuple[str, int]]) -> Stitcher:
    stitcher = Stitcher(SOFT)
    for video, window in order:
        stitcher.add(video, candidates_of(window + ord(video)), grid_of(window), DURATION_S)
    return stitcher


ALL_WINDOWS = [(video, window) for video in "abc" for window in range(3)]


@given(order=st.permutations(ALL_WINDOWS), cut=st.integers(0, 9), repeated=st.integers(0, 3))
@settings(deadline=None, max_examples=20)
def test_the_order_of_windows_and_their_spread_over_processes_change_nothing(
    order: list[tuple[str, int]], cut: int, repeated: int
) -> None:
    whole = collect(ALL_WINDOWS).detections(["x", "y", "z"], "abc")
    parts = collect(order[:cut])
    parts.update(collect(order[cut:] + order[:repeated]))  # a sampler may repeat windows to fill up
    found = parts.detections(["x", "y", "z"], "abc")
    assert found.videos == whole.videos == ("a", "b", "c")
    for column in ("video", "segments", "scores", "labels"):
        np.testing.assert_array_equal(getattr(found, column), getattr(whole, column))
    assert found.durations_s == dict.fromkeys("abc", DURATION_S)
    assert found.basis == "forward"


def test_videos_come_in_the_order_asked_for_and_may_have_no_detection() -> None:
    found = collect([("a", 0), ("b", 0)]).detections(
        ["x", "y", "z"], videos=["b", "nothing", "a"], details={"run": 1}
    )
    assert found.videos == ("b", "nothing", "a")
    assert set(found.video.tolist()) == {0, 2}
    assert set(found.durations_s) == {"a", "b"}
    assert found.details == {"run": 1}


def test_without_suppression_everything_stays_best_first() -> None:
    windows = [candidates_of(1), candidates_of(2)]
    found = stitch(windows, None, rounding=False)
    assert found.scores.tolist() == sorted(np.concatenate([w.scores for w in windows]), reverse=True)
    assert len(stitch([], None)) == len(stitch([], SOFT)) == 0
