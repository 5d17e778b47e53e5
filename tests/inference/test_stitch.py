from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitad.inference.decode import Candidates
from bitad.inference.nms import NmsSettings, nms
from bitad.inference.stitch import Stitcher, stitch, to_seconds
from bitad.timeline import Grid

SOFT = NmsSettings(sigma=0.7, max_segments=50)
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
    reverse = to_seconds(candidates.mirrored(steps), grid, DURATION_S, reverse_view=True, rounding=False)
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


def test_an_action_seen_by_two_windows_is_weakened_once() -> None:
    # Steps 25..35 of the first window are steps 0..10 of the second.
    stitcher = Stitcher(NmsSettings(sigma=0.7))
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
    whole = collect(ALL_WINDOWS).detections(["x", "y", "z"])
    parts = collect(order[:cut])
    parts.update(collect(order[cut:] + order[:repeated]))  # a sampler may repeat windows to fill up
    found = parts.detections(["x", "y", "z"])
    assert found.videos == whole.videos == ("a", "b", "c")
    for column in ("video", "segments", "scores", "labels"):
        np.testing.assert_array_equal(getattr(found, column), getattr(whole, column))
    assert found.durations_s == dict.fromkeys("abc", DURATION_S)
    assert found.basis == "forward"


def test_videos_come_in_the_order_asked_for_and_may_have_no_detection() -> None:
    found = collect([("a", 0), ("b", 0)]).detections(["x", "y", "z"], videos=["b", "nothing", "a"], details={"run": 1})
    assert found.videos == ("b", "nothing", "a")
    assert set(found.video.tolist()) == {0, 2}
    assert set(found.durations_s) == {"a", "b"}
    assert found.details == {"run": 1}


def test_without_suppression_everything_stays_best_first() -> None:
    windows = [candidates_of(1), candidates_of(2)]
    found = stitch(windows, None, rounding=False)
    assert found.scores.tolist() == sorted(np.concatenate([w.scores for w in windows]), reverse=True)
    assert len(stitch([], None)) == len(stitch([], SOFT)) == 0
