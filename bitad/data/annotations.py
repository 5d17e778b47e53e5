"""Ground truth: which action happens when, in which video; the files that hold it; its reversal in time.

This module does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class AnnotatedVideo:
    """One video's ground truth.

    Args:
        name: key of the video in the annotation file; its file name without extension.
        subset: the part of the data set it belongs to ("training", "validation", "test", ...), as in the file.
        duration_s: the annotation's own duration D in seconds.
        segments: float64 ``[n, 2]``, start and end in seconds on the forward clock.
        labels: n class names.
        frames: number of frames, where the file says so.
        fps: frames a second, where the file says so.
    """

    name: str
    subset: str
    duration_s: float
    segments: NDArray[np.float64]
    labels: tuple[str, ...]
    frames: int | None = None
    fps: float | None = None


@dataclass(frozen=True)
class Annotations:
    """A data set's ground truth: videos by name, in the file's order, and the class names in their fixed order."""

    videos: dict[str, AnnotatedVideo]
    classes: tuple[str, ...]
