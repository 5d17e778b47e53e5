"""Splits the videos of a data set into training and validation, by class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bitad.data.annotations import AnnotatedVideo

_TRIES = 1000


def choose_validation(videos: Sequence[AnnotatedVideo], *, share: float = 0.25, seed: int = 0) -> list[str]:
    """Names of videos for validation, such that they hold about ``share`` of the segments of every class.

    Of :data:`_TRIES` random choices, the one with the most even shares. A class without segments on one of the two
    sides, although two videos have it, counts as a share that is off by 1.

    Args:
        share: of the videos, at least one and not all.
        seed: the same seed chooses the same videos.

    Raises:
        ValueError: fewer than two videos have a segment.
    """
    annotated = [video for video in videos if video.labels]
    if len(annotated) < 2:
        raise ValueError(
            "fewer than two videos have segments; training and validation need at least one each: annotate another "
            "video, or cut one into two files"
        )
    classes = sorted({label for video in annotated for label in video.labels})
    counts = np.array([[video.labels.count(name) for name in classes] for video in annotated])  # [videos, classes]
    total, can_be_on_both = counts.sum(0), (counts > 0).sum(0) >= 2
    size = min(max(1, round(share * len(annotated))), len(annotated) - 1)
    rng = np.random.default_rng(seed)
    best, least = np.arange(size), np.inf
    for _ in range(_TRIES):
        rows = rng.permutation(len(annotated))[:size]
        held = counts[rows].sum(0)
        error = np.abs(held / total - share) + (can_be_on_both & ((held == 0) | (held == total)))
        if error.sum() < least:
            best, least = rows, error.sum()
    return [annotated[row].name for row in sorted(best.tolist())]
