"""Detections of a set of videos, as columns, and the files that hold them (ActivityNet's ``results`` form).

Columns rather than a list of objects: a test set has 400,000 detections, and everything done with them (mAP, NMS,
late fusion, conversion of clocks) is done to all of them at once. This module does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Basis = Literal["forward", "reverse"]


@dataclass(frozen=True)
class Detections:
    """Detections of several videos; row i of every column belongs to one detection.

    Args:
        videos: the names of all videos that were looked at, also those in which nothing was found.
        classes: the class names.
        video: int64 ``[n]``, index into ``videos``.
        segments: float64 ``[n, 2]``, start and end in seconds on the clock that ``basis`` names.
        scores: float64 ``[n]``.
        labels: int64 ``[n]``, index into ``classes``.
        basis: the clock of ``segments``: time t ("forward"), or D - t ("reverse").
        durations_s: duration in seconds by video name, where known (needed to change the basis).
        details: anything else a reader may need (the run, the configuration); kept in the file.
    """

    videos: tuple[str, ...]
    classes: tuple[str, ...]
    video: NDArray[np.int64]
    segments: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    basis: Basis = "forward"
    durations_s: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.scores)
