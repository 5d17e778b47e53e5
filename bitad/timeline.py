"""Conversions between grid steps, frames and seconds, and between the two views of a window.

*Seconds*, of annotations and results, are on the video's own clock. *Frames* are counted from 0. *Grid steps* are
positions of the finest pyramid level: a window's step ``x`` is frame ``first_frame + stride * x``.

Windows lie on the forward clock in both directions. The reverse view of a window's V real steps shows them newest
first, so position ``x`` becomes ``V - 1 - x``. Reverse *seconds* (``D - t``, where D is the annotation's duration) are
a notation: convert them back with the same D before any conversion to frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

Direction = Literal["forward", "reverse"]
# What a network sees: the frames in a playing direction, the frames mirrored left to right, or the features of forward
# playback in reverse order.
View = Literal["forward", "reverse", "flipped", "reversed-features"]
# `both`: windows in a random playing direction.
TrainingView = Literal["forward", "reverse", "flipped", "reversed-features", "both"]
ResizedClock = Literal["centre", "edge"]


def clock_of(view: View) -> Direction:
    """The clock of a view's grid steps."""
    return "reverse" if view in ("reverse", "reversed-features") else "forward"


class Arithmetic(Protocol):
    """A type of times or indices: a number, numpy array or torch tensor."""

    def __add__(self, other: Any, /) -> Any: ...
    def __sub__(self, other: Any, /) -> Any: ...
    def __rsub__(self, other: Any, /) -> Any: ...
    def __mul__(self, other: Any, /) -> Any: ...
    def __truediv__(self, other: Any, /) -> Any: ...
    def __floordiv__(self, other: Any, /) -> Any: ...
    def __rfloordiv__(self, other: Any, /) -> Any: ...


Times = TypeVar("Times", bound=Arithmetic)
Indices = TypeVar("Indices", bound=Arithmetic)


@dataclass(frozen=True)
class Grid:
    """The positions of the grid steps of a window, or of a whole video, in the video.

    Args:
        fps: the video's frames per second.
        stride_frames: frames from one grid step to the next.
        first_frame: frame at step 0, may be fractional; for features the centre of the first snippet.
        steps: V, the number of real steps; the other steps of a window are padding.
    """

    fps: float
    stride_frames: float
    first_frame: float
    steps: int

    def window(self, start: int, steps: int) -> Grid:
        return Grid(self.fps, self.stride_frames, self.first_frame + self.stride_frames * start, steps)

    def resized(self, steps: int, clock: ResizedClock = "centre") -> Grid:
        """The same part of the video in another number of equal steps.

        ``clock`` is a step's position in its share: its centre, as in ``interpolate(align_corners=False)``, or start.
        """
        share = self.steps / steps
        first_frame = self.first_frame + self.stride_frames * ((share if clock == "centre" else 0.0) - 1) / 2
        return Grid(self.fps, self.stride_frames * share, first_frame, steps)

    def to_steps(self, seconds: Times) -> Times:
        """Seconds (forward clock) -> grid positions (forward view)."""
        steps: Times = (seconds * self.fps - self.first_frame) / self.stride_frames
        return steps

    def to_seconds(self, steps: Times) -> Times:
        """Grid positions (forward view) -> seconds (forward clock)."""
        seconds: Times = (steps * self.stride_frames + self.first_frame) / self.fps
        return seconds

    def frames(self, per_step: int = 1, *, centred: bool = False) -> NDArray[np.int64]:
        """Video frames of the real steps, int64 ``[V * per_step]``, ascending.

        The step's own frame is the first of ``per_step``, or with ``centred`` in their centre.
        """
        distance = self.stride_frames / per_step
        first = self.first_frame - (self.stride_frames - distance) / 2 if centred else self.first_frame
        return np.round(first + distance * np.arange(self.steps * per_step)).astype(np.int64)


def mirror_positions(positions: Times, steps: int) -> Times:
    """Grid positions in one view -> in the other view of the same V = ``steps``; its own inverse."""
    mirrored: Times = (steps - 1) - positions
    return mirrored


def mirror_segments(segments: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """Segments ``[n, 2]`` in grid steps -> in the other view, ``[V-1-b, V-1-a]``; its own inverse."""
    return mirror_positions(segments, steps)[:, ::-1]


def mirror_points(points: Indices, stride: Indices | int, steps: Indices | int) -> tuple[Indices, Any]:
    """Find the nearest real point of the same pyramid level in the other view, and its offset.

    The other view's point i is at position ``V - 1 - s*i`` of this view. The nearest one to point j, at ``s*j``, is

        ``i(j) = ceil((V - 1)/s - 1/2) - j``, clamped to the real points ``0 .. ceil(V/s) - 1``,

    the later in this view of two equally near ones. The remaining offset in strides is

        ``g = (V - 1 - s*i - s*j) / s``,

    positive where the other view's point is later in this view, 0 on level 0 and wherever s divides V - 1. Distances
    ``(start', end')`` at point i are ``(end' - g, start' + g)`` at point j.

    Args:
        points: j, integers ``[N]``, counted from 0 within the level.
        stride: s, integers ``[N]``, each point's stride in grid steps.
        steps: V, integers, at least 1; ``[B, 1]`` for the windows of a batch.

    Returns:
        i, integers, and g, of the arguments' broadcast shape. At padded points j they are meaningless, but i is the
        index of a real point.
    """
    last = (steps - 1) // stride
    # Rounded up in integers: rounding half to even would skip half the points of level 1.
    middle = (stride - 1 + (steps - 1) * 2) // (stride * 2)
    index = (middle - points).clip(max=last).clip(min=0)
    gap = (steps - 1 - stride * (index + points)) / stride
    return index, gap


def reverse_seconds(segments: NDArray[np.float64], duration_s: float) -> NDArray[np.float64]:
    """Segments ``[n, 2]`` in seconds -> in reverse seconds, ``[D-b, D-a]``; its own inverse."""
    return (duration_s - segments)[:, ::-1]


def mirror_frames(frames: NDArray[np.int64], frame_count: int) -> NDArray[np.int64]:
    """Frames of a video -> the same frames of its reversed file, ``n - 1 - i``; its own inverse."""
    return frame_count - 1 - frames
