"""Chooses the grid, the windows and the pyramid of a configuration from the lengths of a data set's videos and actions.

A segment is learned at the points of the pyramid that are responsible for it (ActionFormer's rule, see
:func:`bitad.training.losses.assign`). :func:`fit` chooses settings at which every segment has one, and names the
segments for which there are none.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitad.data.annotations import AnnotatedVideo
from bitad.timeline import Grid

# VideoMAE is pre-trained on clips of every fourth frame at 30 frames a second; published detectors sample like this.
USUAL_RATE_HZ = 7.5
# Strides that are tried, in frames.
STRIDES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)
# The finest regression range ends here, in grid steps; each level's range is twice as long (ActionFormer).
_FIRST_RANGE = 4.0
_FEWEST_LEVELS, _MOST_LEVELS = 3, 9
_FEWEST_STEPS = 64
# Videos of up to so many grid steps are one window.
_ONE_WINDOW = 128
# The share of the segments that a coarser grid may miss; their names and the finer grid's cost are shown.
_MISSED_SHARE = 0.01
# Nine in ten segments should have so many grid steps, so that their ends can be found within a step.
_FINE_STEPS = 3.0
# A window holds the longest of nearly all actions this many times, and the usual ones.
_TIMES_LONGEST, _TIMES_USUAL, _NEARLY_ALL = 2.0, 8.0, 98
# Fewer windows in an epoch make epochs too short for the evaluation after each.
_FEWEST_WINDOWS = 60


@dataclass(frozen=True)
class Missed:
    """A segment that no point of the pyramid learns; times are in seconds."""

    video: str
    label: str
    start_s: float
    end_s: float
    reason: str

    def __str__(self) -> str:
        return f"{self.video}: {self.label} [{self.start_s:g}, {self.end_s:g}] s: {self.reason}"


@dataclass(frozen=True)
class Fit:
    """Settings for a data set, and what they mean for it.

    Args:
        rate_hz: grid steps per second, the median over the videos.
        steps: of a window.
        levels: of the pyramid.
        crop: the random share that training takes of a video shorter than a window.
        windows_per_video: random windows of each video in an epoch.
        missed: segments that no point learns.
        per_level: number of segments by the finest level that learns them.
        padding: the share of padding in the windows of all videos.
        work: grid steps of these windows, padding included.
    """

    rate_hz: float
    steps: int
    levels: int
    crop: tuple[float, float]
    windows_per_video: int
    missed: tuple[Missed, ...]
    per_level: tuple[int, ...]
    padding: float
    work: int

    @property
    def window_s(self) -> float:
        """The seconds that a window covers."""
        return self.steps / self.rate_hz


def fit(
    videos: Sequence[AnnotatedVideo],
    grids: Sequence[Grid],
    *,
    most_steps: int,
    unit: int,
    steps: int | None = None,
    completeness: float = 0.75,
) -> Fit:
    """The windows and the pyramid for a data set on a grid.

    Args:
        videos: with segments of known classes.
        grids: of the whole videos.
        most_steps: of a window.
        unit: the number of steps of a window is a multiple of it: of the steps in a clip of the backbone.
        steps: of a window; None: chosen.
        completeness: ``window.completeness``.

    Raises:
        ValueError: no video has a segment.
    """
    in_steps = [grid.to_steps(video.segments.reshape(-1, 2)) for video, grid in zip(videos, grids, strict=True)]
    sizes = np.array([grid.steps for grid in grids])
    steps_of = np.concatenate([np.full(len(one), size) for one, size in zip(in_steps, sizes, strict=True)])
    segments = np.concatenate(in_steps).clip(0, steps_of[:, None])
    if not len(segments):
        raise ValueError("no video has a segment of a class; there is nothing to fit")
    lengths = segments[:, 1] - segments[:, 0]
    sound = lengths[lengths > 0] if (lengths > 0).any() else np.zeros(1)
    longest = float(np.percentile(sound, _NEARLY_ALL))
    if steps is None:
        wanted = max(_TIMES_LONGEST * longest, _TIMES_USUAL * float(np.median(sound)), _FEWEST_STEPS)
        largest = int(sizes.max())
        steps = round_window(largest if largest <= _ONE_WINDOW else min(wanted, largest), most_steps)
    levels = _levels(min(longest, steps), steps)
    steps = max(steps, unit, 2 ** (levels - 1))
    found = finest_levels(segments, steps_of, doubling_ranges(levels))
    too_long = lengths * completeness > steps
    missed = tuple(
        Missed(video.name, label, start, end, _reason(start < end, lengths[i], bool(too_long[i]), steps))
        for i, (video, label, (start, end)) in enumerate(_rows(videos))
        if found[i] < 0 or too_long[i]
    )
    shorter = sizes < steps
    real = np.where(shorter, sizes, np.ceil(sizes / steps) * steps)
    windows = np.where(shorter, 1, np.ceil(sizes / steps))
    return Fit(
        rate_hz=float(np.median([grid.fps / grid.stride_frames for grid in grids])),
        steps=steps,
        levels=levels,
        crop=(_least_share(longest, sizes[shorter]), 1.0),
        windows_per_video=max(1, round(float(windows.mean())), math.ceil(_FEWEST_WINDOWS / len(videos))),
        missed=missed,
        per_level=tuple(int((found == level).sum()) for level in range(levels)),
        padding=1 - float(real.sum() / (windows * steps).sum()),
        work=int((windows * steps).sum()),
    )


def choose(fits: Mapping[int, Fit], videos: Sequence[AnnotatedVideo]) -> int:
    """The stride of several whose fit is best.

    Of those that miss hardly more segments than the best, and at which nine in ten segments have enough grid steps, it
    is the one nearest to :data:`USUAL_RATE_HZ`.
    """
    lengths = np.concatenate([video.segments[:, 1] - video.segments[:, 0] for video in videos])
    short_s = float(np.percentile(lengths[lengths > 0], 10)) if (lengths > 0).any() else 0.0
    allowed = min(len(one.missed) for one in fits.values()) + _MISSED_SHARE * len(lengths)
    good = {stride: one for stride, one in fits.items() if len(one.missed) <= allowed}
    fine = {stride: one for stride, one in good.items() if short_s * one.rate_hz >= _FINE_STEPS}
    candidates = fine or {min(good): good[min(good)]}
    return min(candidates, key=lambda stride: abs(math.log(candidates[stride].rate_hz / USUAL_RATE_HZ)))


def round_window(steps: float, most: int) -> int:
    """The least usual number of steps of a window, 64, 96, 128, 192, ..., that is enough, up to ``most``."""
    sizes = (size for power in range(6, 30) for size in (2**power, 3 * 2 ** (power - 1)))
    return next(size for size in sizes if size >= min(steps, most))


def _levels(longest: float, steps: int) -> int:
    """The levels at which the longest action is in a range that ends; the coarsest has at least 4 points."""
    needed = 1 + math.ceil(math.log2(max(1.0, longest / 2 / _FIRST_RANGE)))
    room = steps.bit_length() - 3
    return max(1, min(max(needed, _FEWEST_LEVELS), _MOST_LEVELS, room, (steps & -steps).bit_length()))


def _least_share(longest: float, sizes: NDArray[np.int64]) -> float:
    """The least share of a short video that training takes, 0.5 to 0.9: it holds twice the longest action."""
    if not len(sizes):
        return 0.9
    return round(min(0.9, max(0.5, 2 * longest / float(np.median(sizes)))), 2)


def _reason(is_forward: bool, length: float, is_too_long: bool, steps: int) -> str:
    if not is_forward:
        return "it does not start before it ends"
    if length <= 0:
        return "outside its video"
    if is_too_long:
        return f"longer than a window of {steps} steps"
    return f"{length:.2g} grid steps long, with no grid step inside" if length < 2 else "at the end of its video"


def _rows(videos: Sequence[AnnotatedVideo]) -> Iterator[tuple[AnnotatedVideo, str, tuple[float, float]]]:
    for video in videos:
        for label, (start, end) in zip(video.labels, video.segments.tolist(), strict=True):
            yield video, label, (start, end)


def finest_levels(
    segments: NDArray[np.float64],
    steps: NDArray[np.int64] | int,
    ranges: Sequence[tuple[float, float]],
    *,
    radius: float = 1.5,
) -> NDArray[np.int64]:
    """The finest level of the pyramid with a point that learns each segment; -1 where none does.

    Args:
        segments: ``[n, 2]``, in grid steps of a video, or of a window.
        steps: number of real steps of each segment's video.
        ranges: of the levels, in grid steps, finest first.
        radius: of ``training.centre_radius``, in strides.

    Returns:
        int64 ``[n]``. The rule is that of :func:`bitad.training.losses.assign`.
    """
    start, end = segments[:, :1], segments[:, 1:]
    middle = (start + end) / 2
    found = np.full(len(segments), -1)
    around = np.arange(-math.ceil(radius), math.ceil(radius) + 2)
    for level, (low, high) in reversed(list(enumerate(ranges))):
        stride = 2**level
        points = stride * (np.floor(middle / stride) + around)  # [n, P]
        central = np.minimum(
            points - np.maximum(middle - radius * stride, start),
            np.minimum(middle + radius * stride, end) - points,
        )
        farthest = np.maximum(points - start, end - points)
        is_real = (points >= 0) & (points < np.reshape(steps, (-1, 1)))
        found[((central > 0) & (farthest >= low) & (farthest <= high) & is_real).any(1)] = level
    return found


def doubling_ranges(levels: int) -> tuple[tuple[float, float], ...]:
    """The usual regression ranges: [0, 4], [4, 8], ... grid steps, the last without an end."""
    edges = [0.0, *(_FIRST_RANGE * 2**level for level in range(levels - 1)), 10000.0]
    return tuple(itertools.pairwise(edges))
