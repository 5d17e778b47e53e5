"""Post-processing: the candidates of a window, suppression, and merging the windows of a video.

The floor of each is reading its arrays once at memory copy speed, and one sort of the scores.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from measuring import Measured, best_of

from bitad.config.schema import NmsConfig
from bitad.inference.nms import nms
from bitad.inference.postprocess import Candidates, Stitcher, decode, stitch
from bitad.models.heads import Points, Prediction
from bitad.timeline import Grid

# AdaTAD's, for THUMOS14.
SETTINGS = NmsConfig(sigma=0.7, max_segments=2000, voting_threshold=0.7)
WINDOW_S = 768 * 4 / 30
LEVELS = 6


def candidates(count: int, classes: int, *, begin_s: float = 0.0, seed: int = 0) -> Candidates:
    """Random candidates of a window: segments around actions, in seconds, of any class; rounded, so with ties."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(begin_s, begin_s + WINDOW_S - 8, 16)
    start = actions[rng.integers(len(actions), size=count)] + rng.normal(0, 1, count)
    segments = np.stack([start, start + rng.gamma(2, 2, count)], axis=1).clip(begin_s, begin_s + WINDOW_S)
    scores = 0.001 + 0.9 * rng.beta(0.5, 6, count)
    return Candidates(np.round(segments, 2), np.round(scores, 4), rng.integers(classes, size=count))


def suppression(count: int, classes: int, repetitions: int) -> Measured:
    """Soft-NMS of the candidates of one window."""
    found = candidates(count, classes)
    work = partial(nms, found.segments, found.scores, found.labels, SETTINGS)
    return _measure_with_sort(work, found, repetitions, "candidates")


def merging(windows: int, count: int, classes: int, repetitions: int) -> Measured:
    """Merging the windows of a video, which overlap by half."""
    parts = [candidates(count, classes, begin_s=i * WINDOW_S / 2, seed=i) for i in range(windows)]
    together = Candidates(*(np.concatenate(columns) for columns in zip(*map(_columns, parts), strict=True)))
    return _measure_with_sort(partial(stitch, parts, SETTINGS), together, repetitions, "candidates")


def window(steps: int, classes: int, repetitions: int) -> Measured:
    """A network's prediction of a window -> its best 2,000 candidates in seconds, added to the stitcher."""
    torch.set_num_threads(1)
    strides = [2**level for level in range(LEVELS)]
    points = Points.of_levels([steps // stride for stride in strides], strides, [(0.0, 1e4)] * LEVELS)
    generator = torch.Generator().manual_seed(0)
    prediction = Prediction(
        torch.randn(1, len(points), classes, generator=generator) - 4,
        4 * torch.rand(1, len(points), 2, generator=generator),
        torch.ones(1, len(points), dtype=torch.bool),
        points,
    )
    grid = Grid(30.0, 4.0, 0.0, steps)

    def work() -> None:
        (found,) = decode(prediction, top_k=2000)
        Stitcher(SETTINGS).add("video", found, grid, steps * 4 / 30)

    scores = prediction.logits.flatten().numpy()
    took = best_of(repetitions, {"work": work, "sort": partial(np.sort, scores)})
    count = scores.nbytes + prediction.distances.nbytes
    return Measured(took["work"], len(scores), "scores", bytes=count, floor_s=took["sort"].cpu_s)


def _columns(found: Candidates) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return found.segments, found.scores, found.labels


def _measure_with_sort(work: Callable[[], object], found: Candidates, repetitions: int, unit: str) -> Measured:
    took = best_of(repetitions, {"work": work, "sort": partial(np.sort, found.scores)})
    count = sum(column.nbytes for column in _columns(found))
    return Measured(took["work"], len(found), unit, bytes=count, floor_s=took["sort"].cpu_s)
