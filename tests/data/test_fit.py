"""The settings that fit a data set: every segment is learned, or named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitad.config.schema import WindowConfig
from bitad.data.annotations import AnnotatedVideo
from bitad.data.fit import STRIDES, choose, doubling_ranges, finest_levels, fit, round_window
from bitad.data.sources import Sampling
from bitad.data.split import choose_validation
from bitad.models.heads import Points
from bitad.training.losses import assign


def video(
    name: str, duration_s: float, segments: list[tuple[float, float]], label: str = "jump"
) -> AnnotatedVideo:
    return AnnotatedVideo(
        name, "training", duration_s, np.array(segments).reshape(-1, 2), (label,) * len(segments)
    )


def sampling(stride_frames: int) -> Sampling:
    return Sampling(WindowConfig(stride_frames=stride_frames))


def learned_by(segments: np.ndarray, steps: int, levels: int) -> list[int]:
    """The finest level that learns each segment, by the targets of training."""
    sizes, strides = [-(-steps // 2**level) for level in range(levels)], [2**level for level in range(levels)]
    single = Points.of_levels(sizes, strides, doubling_ranges(levels))
    points = Points(
        *(column.double() for column in (single.position, single.stride, single.low, single.high)), sizes
    )
    level_of = np.repeat(np.arange(levels), sizes)
    found = []
    for segment in segments:
        positive = assign(points, [torch.from_numpy(segment[None])], [torch.zeros(1)], 1).positive[0].numpy()
        found.append(int(level_of[positive].min(initial=99)) if positive.any() else -1)
    return found


moments = st.floats(0, 200, allow_nan=False).map(lambda value: round(value, 3))


@given(
    ends=st.lists(st.tuples(moments, moments), min_size=1, max_size=10),
    steps=st.integers(1, 200),
    levels=st.integers(1, 7),
)
@settings(deadline=None, max_examples=60)
def test_the_rule_is_that_of_training(ends: list[tuple[float, float]], steps: int, levels: int) -> None:
    segments = np.sort(np.array(ends), axis=1).clip(0, steps)
    segments = segments[segments[:, 1] > segments[:, 0]]
    assert finest_levels(segments, steps, doubling_ranges(levels)).tolist() == learned_by(segments, steps, levels)


lengths = st.one_of(st.floats(0.02, 1), st.floats(1, 20), st.floats(20, 500))
film = st.tuples(st.floats(0.5, 1200), st.lists(st.tuples(st.floats(0, 1), lengths), max_size=6))


@given(st.lists(film, min_size=1, max_size=4), st.sampled_from([15.0, 29.97, 60.0]))
@settings(deadline=None, max_examples=60)
def test_every_segment_is_learned_or_named(films: list, fps: float) -> None:
    videos = []
    for number, (duration_s, placed) in enumerate(films):
        segments = [(share * duration_s, min(duration_s, share * duration_s + length)) for share, length in placed]
        videos.append(video(f"v{number}", duration_s, [one for one in segments if one[0] < one[1]]))
    videos = [one for one in videos if one.labels]
    if not videos:
        return
    grids = {
        stride: [sampling(stride).grid(fps, max(1, round(one.duration_s * fps))) for one in videos]
        for stride in STRIDES
    }
    fits = {stride: fit(videos, grids[stride], most_steps=512, unit=16) for stride in STRIDES}
    stride = choose(fits, videos)
    chosen = fits[stride]
    assert chosen.steps % max(16, 2 ** (chosen.levels - 1)) == 0
    named = {(one.video, one.start_s, one.end_s) for one in chosen.missed}
    for one, grid in zip(videos, grids[stride], strict=True):
        segments = grid.to_steps(one.segments).clip(0, grid.steps)
        for row, level in enumerate(learned_by(segments, min(grid.steps, 3000), chosen.levels)):
            too_far = segments[row, 1] > 3000  # of the slow reference
            if level < 0 and not too_far:
                assert (one.name, *one.segments[row].tolist()) in named


def test_short_clips_with_short_actions_get_a_small_pyramid_and_window() -> None:
    videos = [video(f"v{n}", 15.0, [(1 + 2 * i, 1.5 + 0.1 * i + 2 * i) for i in range(6)]) for n in range(8)]
    fits = {
        stride: fit(videos, [sampling(stride).grid(30.0, 450)] * 8, most_steps=1024, unit=16) for stride in STRIDES
    }
    chosen = fits[choose(fits, videos)]
    assert (chosen.steps, chosen.levels, chosen.missed) == (128, 3, ())


def test_a_segment_between_two_grid_steps_is_named_with_the_reason() -> None:
    videos = [video("v", 60.0, [(10.01, 10.11), (20.0, 24.0)])]
    grid = sampling(8).grid(32.0, 1920)  # a step every 0.25 s
    (missed,) = fit(videos, [grid], most_steps=512, unit=16).missed
    assert str(missed) == "v: jump [10.01, 10.11] s: 0.4 grid steps long, with no grid step inside"


def test_a_segment_longer_than_any_window_is_named() -> None:
    videos = [video("v", 3600.0, [(0.0, 3000.0), (3100.0, 3102.0)])]
    fitted = fit(videos, [sampling(4).grid(30.0, 108_000)], most_steps=512, unit=16)
    assert [one.reason for one in fitted.missed] == ["longer than a window of 512 steps"]


@pytest.mark.parametrize(("steps", "window"), [(1, 64), (65, 96), (113, 128), (129, 192), (5000, 1024)])
def test_windows_have_usual_lengths(steps: int, window: int) -> None:
    assert round_window(steps, 1024) == window


def test_nothing_to_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="no video has a segment"):
        fit([video("v", 3.0, [])], [sampling(1).grid(30.0, 90)], most_steps=64, unit=1)


TO_SPLIT = [
    video(f"v{n:02d}", 9.0, [(1.0, 2.0)] * (1 + n % 3), label)
    for n, label in enumerate(["rise"] * 12 + ["fall"] * 4 + ["rare"] * 2)
]


class TestValidationSubset:
    """A validation subset is chosen by video, and has every class."""

    def test_both_sides_have_every_class_that_two_videos_have(self) -> None:
        chosen = set(choose_validation(TO_SPLIT, share=0.25, seed=3))
        for label in ("rise", "fall", "rare"):
            on_side = {one.name in chosen for one in TO_SPLIT if label in one.labels}
            assert on_side == {True, False}, label

    def test_the_shares_are_near_the_wanted_one(self) -> None:
        chosen = set(choose_validation(TO_SPLIT, share=0.25))
        assert 4 <= len(chosen) <= 5
        rises = [len(one.labels) for one in TO_SPLIT if "rise" in one.labels and one.name in chosen]
        assert 3 <= sum(rises) <= 9  # of 24

    def test_a_seed_repeats_its_choice(self) -> None:
        assert choose_validation(TO_SPLIT, seed=5) == choose_validation(TO_SPLIT, seed=5)
        assert len({tuple(choose_validation(TO_SPLIT, seed=seed)) for seed in range(5)}) > 1

    def test_one_video_cannot_be_split(self) -> None:
        with pytest.raises(ValueError, match="at least one each"):
            choose_validation(TO_SPLIT[:1])
