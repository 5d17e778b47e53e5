"""Which stretch of a video the detector gets to see: sliding windows for testing, random ones for training.

Windows are counted in grid steps on the forward clock, whatever direction the video is played in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def sliding_windows(total_steps: int, length: int, overlap: float) -> list[tuple[int, int]]:
    """Windows that cover a video: ``(first step, real steps)`` each, ascending.

    Neighbours share the fraction ``overlap`` of their length; the last window ends where the video ends, so it may
    share more. A video no longer than a window gets one window, padded. Every step is in at least one window (the
    reference loses up to 383 steps at the end of a video at 25% overlap).

    Raises:
        ValueError: for a video without steps, or an overlap outside [0, 1).
    """
    if total_steps < 1:
        raise ValueError(f"a video of {total_steps} grid steps has no window; it must have at least one")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap {overlap} of windows is outside [0, 1)")
    if total_steps <= length:
        return [(0, total_steps)]
    hop = max(1, int(length * (1 - overlap)))
    starts = list(range(0, total_steps - length, hop))
    return [(start, length) for start in (*starts, total_steps - length)]


@dataclass(frozen=True)
class TrainingWindow:
    """A stretch of a video and the ground truth in it, in grid steps of that stretch (forward view)."""

    start: int
    steps: int
    segments: NDArray[np.float64]  # [n, 2]
    labels: NDArray[np.int64]  # [n]


def random_window(
    rng: np.random.Generator,
    total_steps: int,
    length: int,
    segments: NDArray[np.float64],
    labels: NDArray[np.int64],
    *,
    completeness: float = 0.75,
    crop: tuple[float, float] = (0.9, 1.0),
    tries: int = 200,
) -> TrainingWindow:
    """A random stretch with at least one action in it (random truncation; ActionFormer, arXiv:2202.07925).

    A longer video gives a window of ``length`` steps; a shorter one a stretch of ``crop`` of its own length, drawn
    anew each time. An action belongs to the window if at least ``completeness`` of it lies inside; it is cut off at
    the window's ends. A video without actions gives a random window without ground truth.

    Args:
        segments, labels: ground truth ``[n, 2]`` and ``[n]`` in grid steps of the whole video.
        tries: draws after which the last one is taken, action or none.
    """
    if total_steps > length:
        steps = length
    else:
        low, high = (max(1, round(share * total_steps)) for share in crop)
        steps = int(rng.integers(low, high + 1))
    span = np.maximum(segments[:, 1] - segments[:, 0], 1e-9)
    for _ in range(tries):
        start = int(rng.integers(0, total_steps - steps + 1))
        inside = np.clip(segments, start, start + steps)
        kept = (inside[:, 1] - inside[:, 0]) / span >= completeness
        if kept.any() or len(segments) == 0:
            break
    return TrainingWindow(start, steps, inside[kept] - start, labels[kept])
