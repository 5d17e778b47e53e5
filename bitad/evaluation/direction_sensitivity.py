"""Direction sensitivity: which class names a forward detector assigns to actions in forward and reverse playback.

It shows which classes look the same in reverse, which turn into another, and which into nothing known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from bitad.data.annotations import Annotations
from bitad.data.detections import Detections
from bitad.evaluation.mean_average_precision import evaluate
from bitad.timeline import IntArray

NOTHING = "nothing"

Verdict = Literal["symmetric", "swapping", "irreversible", "not learnt"]

# Thresholds of the rule of `sensitivity`, which explains them.
LEARNT, KEPT = 0.1, 0.9


@dataclass(frozen=True, eq=False)
class Calls:
    """How many ground-truth segments of each class (row) were assigned each name (column).

    The last column counts those that no detection overlaps.
    """

    classes: tuple[str, ...]
    counts: IntArray  # [K, K + 1]

    def most_frequent(self, label: str) -> tuple[str, float]:
        """The most frequent name of a class, and its share of the class's segments; ValueError if it has none."""
        row = self.counts[self.classes.index(label)]
        if row.sum() == 0:
            raise ValueError(f"class {label} has no ground truth, so it has no name")
        called = int(row.argmax())
        return (*self.classes, NOTHING)[called], float(row[called] / row.sum())


def called_classes(ground_truth: Annotations, detections: Detections, *, tiou: float = 0.5) -> Calls:
    """Assign each ground-truth segment the class of the best-scored detection that overlaps it by ``tiou`` or more."""
    classes = ground_truth.classes
    detections = detections.forward().with_classes(classes)
    detections = detections.take(np.argsort(detections.video, kind="stable"))
    number = {name: i for i, name in enumerate(detections.videos)}
    counts = np.zeros((len(classes), len(classes) + 1), np.int64)
    for video in ground_truth.videos.values():
        place = number.get(video.name, -1)
        found = detections.take(np.arange(*np.searchsorted(detections.video, (place, place + 1))))
        starts, ends = found.segments.T
        for (start, end), label in zip(video.segments, video.labels, strict=True):
            overlap = np.minimum(end, ends) - np.maximum(start, starts)
            union = (end - start) + (ends - starts) - overlap
            near = np.flatnonzero(overlap >= tiou * union)
            called = len(classes)
            if len(near):
                called = found.labels[near[found.scores[near].argmax()]]
            counts[classes.index(label), called] += 1
    return Calls(classes, counts)


def renamed(ground_truth: Annotations, names: Mapping[str, str | None]) -> Annotations:
    """Ground truth under other labels; segments whose new name is None are left out."""
    videos = {}
    for name, video in ground_truth.videos.items():
        kept = video.take(np.array([names[label] is not None for label in video.labels], bool))
        videos[name] = replace(kept, labels=tuple(str(names[label]) for label in kept.labels))
    return Annotations(videos, ground_truth.classes)


@dataclass(frozen=True)
class ClassSensitivity:
    """One class in forward and reverse playback; AP is the mean over tIoU and networks, 0 to 1."""

    label: str
    segments: int  # of the ground truth
    forward: float  # AP of F
    backward: float  # AP of B
    reversed_playback: float  # AP of F on reverse playback, under the class's own name
    called: str  # the most frequent name that F assigns there, or NOTHING
    called_share: float  # of the segments that get that name
    verdict: Verdict

    @property
    def kept(self) -> float | None:
        """F on reverse playback over the mean AP of F and B; None if that is 0."""
        learnt = (self.forward + self.backward) / 2
        return self.reversed_playback / learnt if learnt > 0 else None


@dataclass(frozen=True)
class Sensitivity:
    """Every class with ground truth, in the annotations' order."""

    classes: tuple[ClassSensitivity, ...]
    tiou: tuple[float, ...]
    networks: tuple[int, int]  # F and B, of which the figures are means


def sensitivity(
    ground_truth: Annotations,
    *,
    forward: Sequence[Detections],
    backward: Sequence[Detections],
    reversed_playback: Sequence[Detections],
    tiou: Sequence[float],
) -> Sensitivity:
    """Classify classes by how forward networks detect them in reverse playback.

    A class is the first of these that holds:

    1. "swapping": its most frequent name is another class, and that class's most frequent name is this one. A mistake
       would not hold both ways, so no threshold is needed.
    2. "not learnt": the mean AP of F and B, in the directions they were trained for, is below ``LEARNT``.
    3. "symmetric": its most frequent name is its own, and F keeps at least ``KEPT`` of the mean AP of F and B. F also
       gives an irreversible action its own name if no other fits better, but with a worse score or boundaries.
       ``KEPT`` leaves room for chance: a class's AP differed by a tenth between two trainings of the demo.
    4. "irreversible".

    Args:
        forward, backward: detections of F in forward and of B in reverse playback, of one or several networks (seeds).
        reversed_playback: detections of the networks of ``forward`` in reverse playback.

    Raises:
        ValueError: no network, another number of ``reversed_playback`` than of ``forward``, or as ``evaluate``.
    """
    if not (forward and backward and len(forward) == len(reversed_playback)):
        raise ValueError(
            f"{len(forward)} F, {len(backward)} B and {len(reversed_playback)} F on reverse playback; give at least "
            "one F and one B, and each F's detections on reverse playback"
        )
    detections = (*forward, *backward, *reversed_playback)
    evaluations = [evaluate(ground_truth, found, tiou=tiou) for found in detections]
    ap = np.stack([evaluation.ap.mean(axis=1) for evaluation in evaluations])  # [networks, K]
    of_f, of_b, of_reversed = np.split(ap, np.cumsum([len(forward), len(backward)]))
    counts = [called_classes(ground_truth, found).counts for found in reversed_playback]
    calls = Calls(ground_truth.classes, np.sum(counts, axis=0))
    classes = evaluations[0].classes
    called = {label: calls.most_frequent(label) for label in classes}
    results = []
    for number, label in enumerate(classes):
        name, share = called[label]
        f = float(of_f[:, number].mean())
        b = float(of_b[:, number].mean())
        f_reversed = float(of_reversed[:, number].mean())
        learnt = (f + b) / 2
        if name != label and name in called and called[name][0] == label:
            verdict: Verdict = "swapping"
        elif learnt < LEARNT:
            verdict = "not learnt"
        else:
            is_kept = name == label and f_reversed >= KEPT * learnt
            verdict = "symmetric" if is_kept else "irreversible"
        segments = int(evaluations[0].segments[number])
        results.append(ClassSensitivity(label, segments, f, b, f_reversed, name, share, verdict))
    return Sensitivity(tuple(results), evaluations[0].tiou, (len(forward), len(backward)))
