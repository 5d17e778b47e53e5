"""The clocks of a video and the conversions between them: grid step <-> frame <-> second, forwards <-> backwards.

Three units of time occur in BiTAD:

* *seconds* on the video's own clock; annotations and results are in seconds;
* *frames*, counted from 0;
* *grid steps*: positions of the finest pyramid level. A window's step ``x`` is frame ``first_frame + stride * x``.

and two directions. Windows are laid on the forward clock for both playing directions. A window has ``steps``
(written V) real steps; the reverse view shows the same V steps newest first, so the position ``x`` becomes
``V - 1 - x``. Reverse *seconds* (``D - t``, with D the annotation's own duration) are notation only: undo them with
the same D before any conversion to frames.

Every conversion lives here. The functions take and return floats, numpy arrays or tensors alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

ResizedClock = Literal["centre", "edge"]


class Arithmetic(Protocol):
    """What times can be: a float, a numpy array or a torch tensor."""

    def __add__(self, other: Any, /) -> Any: ...
    def __sub__(self, other: Any, /) -> Any: ...
    def __rsub__(self, other: Any, /) -> Any: ...
    def __mul__(self, other: Any, /) -> Any: ...
    def __truediv__(self, other: Any, /) -> Any: ...


Times = TypeVar("Times", bound=Arithmetic)


class IndexArithmetic(Protocol):
    """What indices can be: an integer numpy array or torch tensor."""

    def __add__(self, other: Any, /) -> Any: ...
    def __sub__(self, other: Any, /) -> Any: ...
    def __rsub__(self, other: Any, /) -> Any: ...
    def __mul__(self, other: Any, /) -> Any: ...
    def __rmul__(self, other: Any, /) -> Any: ...
    def __neg__(self) -> Any: ...
    def __floordiv__(self, other: Any, /) -> Any: ...
    def __rfloordiv__(self, other: Any, /) -> Any: ...


Indices = TypeVar("Indices", bound=IndexArithmetic)


@dataclass(frozen=True)
class Grid:
    """Where the grid steps of a window, or of a whole video, lie in the video.

    Args:
        fps: frames per second of the video.
        stride_frames: frames from one grid step to the next.
        first_frame: frame at step 0. For pre-computed features, the centre of the first snippet; may be fractional.
        steps: V, the number of real steps (the rest of a window is padding).
    """

    fps: float
    stride_frames: float
    first_frame: float
    steps: int

    def window(self, start: int, steps: int) -> Grid:
        """The grid of ``steps`` steps from step ``start``."""
        return Grid(self.fps, self.stride_frames, self.first_frame + self.stride_frames * start, steps)

    def resized(self, steps: int, clock: ResizedClock = "centre") -> Grid:
        """The same stretch of the video in another number of steps, each with an equal share of it.

        Args:
            steps: how many.
            clock: where a step lies in its share: in the middle, where ``interpolate(..., align_corners=False)`` puts
                it, or at the beginning.
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
        """The video frames of the real steps, int64 ``[V * per_step]``, ascending.

        Args:
            per_step: frames of each step, at even distances.
            centred: they lie around the step's own frame; else that is the first of them.
        """
        distance = self.stride_frames / per_step
        first = self.first_frame - (self.stride_frames - distance) / 2 if centred else self.first_frame
        return np.round(first + distance * np.arange(self.steps * per_step)).astype(np.int64)


def mirror_positions(positions: Times, steps: int) -> Times:
    """Grid positions of the forward view -> those of the reverse view of the same V = ``steps``; its own inverse."""
    mirrored: Times = (steps - 1) - positions
    return mirrored


def mirror_segments(segments: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """Segments ``[n, 2]`` in grid steps -> the same segments in the other view: ``[V-1-b, V-1-a]``; its own inverse."""
    return mirror_positions(segments, steps)[:, ::-1]


def mirror_points(points: Indices, stride: Indices | int, steps: Indices | int) -> tuple[Indices, Any]:
    """For points of a pyramid level, the nearest real points of the same level in the other view, and how far off.

    The other view's point i lies at this view's position ``V - 1 - s*i``, so nearest to point j, at ``s*j``, is

        ``i(j) = ceil((V - 1)/s - 1/2) - j``, clamped to the real points ``0 .. ceil(V/s) - 1``,

    the later in this view of two equally near ones. What is left between the two is

        ``g = (V - 1 - s*i - s*j) / s``:

    positive where the other view's point lies later in this view than ours, 0 everywhere on level 0 and wherever s
    divides V - 1. Distances ``(start', end')`` that the other view's point i states are, from ours,
    ``(end' - g, start' + g)``.

    Args:
        points: j, integers, each counted from 0 within its level; ``[N]``.
        stride: s, integers, of each point's level in grid steps; ``[N]``.
        steps: V, integers, the window's real steps, at least 1; ``[B, 1]`` for windows of a batch.

    Returns:
        i, integers, and g in strides, both of the arguments' common shape. Of padded points j they mean nothing, but i
        is the index of a real point all the same.
    """
    last = -(-steps // stride) - 1
    # ceil(x) in integers is -floor(-x); rounding instead, half to even, would leave out half the points of level 1.
    middle = -((stride - 2 * (steps - 1)) // (2 * stride))
    index = (middle - points).clip(max=last).clip(min=0)
    gap = (steps - 1 - stride * (index + points)) / stride
    return index, gap


def reverse_seconds(segments: NDArray[np.float64], duration_s: float) -> NDArray[np.float64]:
    """Segments ``[n, 2]`` in seconds -> on the clock from the video's end: ``[D-b, D-a]``; its own inverse."""
    return (duration_s - segments)[:, ::-1]


def mirror_frames(frames: NDArray[np.int64], frame_count: int) -> NDArray[np.int64]:
    """Frames of a video -> where the same pictures lie in its reversed file: ``n - 1 - i``; its own inverse."""
    return frame_count - 1 - frames


Direction = Literal["forward", "reverse"]
