"""What a detector calls each action: in the direction it knows, and played the other way round.

A forward detector that watches reversed playback tells which classes look the same, which turn into another, and which
into nothing it knows. This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bitad.data.annotations import Annotations
from bitad.data.detections import Detections

NOTHING = "nothing"


@dataclass(frozen=True, eq=False)
class Calls:
    """How often each class was called what.

    Args:
        classes: K class names.
        counts: int64 ``[K, K + 1]``: ground-truth segments of the row's class that got the column's name; the last
            column counts those that no detection overlaps.
    """

    classes: tuple[str, ...]
    counts: NDArray[np.int64]

    def most_frequent(self, label: str) -> tuple[str, float]:
        """The name that a class got most often, and its share of the class's segments.

        Raises:
            ValueError: the class has no segment.
        """
        row = self.counts[self.classes.index(label)]
        if row.sum() == 0:
            raise ValueError(f"class {label} has no ground truth, so it was called nothing at all")
        called = int(row.argmax())
        return (*self.classes, NOTHING)[called], float(row[called] / row.sum())

    def segments(self, label: str) -> int:
        """The number of ground-truth segments of a class."""
        return int(self.counts[self.classes.index(label)].sum())

    def share(self, label: str, called: str) -> float:
        """The share of a class's segments that got the name ``called``; 0 where the class has none."""
        row = self.counts[self.classes.index(label)]
        return float(row[(*self.classes, NOTHING).index(called)] / max(1, row.sum()))


def called_classes(ground_truth: Annotations, detections: Detections, *, tiou: float = 0.5) -> Calls:
    """Names each ground-truth segment by the best-scored detection that overlaps it by at least ``tiou``.

    Args:
        ground_truth: segments on the forward clock.
        detections: on either clock; of the same classes.
    """
    classes = ground_truth.classes
    detections = detections.forward().with_classes(classes)
    counts = np.zeros((len(classes), len(classes) + 1), np.int64)
    for video in ground_truth.videos.values():
        if video.name not in detections.videos:
            found = detections.take(np.zeros(0, np.int64))
        else:
            found = detections.of_video(video.name)
        for (start, end), label in zip(video.segments, video.labels, strict=True):
            overlap = np.minimum(end, found.segments[:, 1]) - np.maximum(start, found.segments[:, 0])
            union = (end - start) + (found.segments[:, 1] - found.segments[:, 0]) - overlap
            near = np.flatnonzero(overlap >= tiou * union)
            called = found.labels[near[found.scores[near].argmax()]] if len(near) else len(classes)
            counts[classes.index(label), called] += 1
    return Calls(classes, counts)


def renamed(ground_truth: Annotations, names: Mapping[str, str | None]) -> Annotations:
    """Ground truth under other labels; segments whose new name is None are left out.

    With the names that classes have when played backwards, this is what a forward detector should say of reversed
    playback.
    """
    videos = {}
    for name, video in ground_truth.videos.items():
        kept = np.array([names[label] is not None for label in video.labels], bool)
        labels = tuple(new for label in video.labels if (new := names[label]) is not None)
        videos[name] = replace(video, segments=video.segments[kept], labels=labels)
    return Annotations(videos, ground_truth.classes)
