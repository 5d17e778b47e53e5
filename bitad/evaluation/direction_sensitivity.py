"""What a detector calls each action: in the direction it knows, and played the other way round.

A forward detector that watches reversed playback tells which classes look the same, which turn into another, and which
into nothing it knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bitad.data.annotations import Annotations
from bitad.data.detections import Detections
from bitad.evaluation.mean_average_precision import evaluate

NOTHING = "nothing"

Verdict = Literal["symmetric", "swapping", "irreversible", "not learnt"]

# The thresholds of `sensitivity`'s rule, which says why.
LEARNT, KEPT = 0.1, 0.9


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


@dataclass(frozen=True)
class ClassSensitivity:
    """One class, played in either direction.

    Args:
        label: the class.
        segments: its ground-truth segments.
        forward: AP of F, mean over tIoU and networks, 0 to 1.
        backward: AP of B, likewise.
        reversed_playback: AP of F on reversed playback, under the class's own name.
        called: the name that F gives it most often then, ``NOTHING`` where it mostly finds none.
        called_share: the share of the segments that get that name, 0 to 1.
        verdict: what kind of class it is, as far as the networks can tell.
    """

    label: str
    segments: int
    forward: float
    backward: float
    reversed_playback: float
    called: str
    called_share: float
    verdict: Verdict

    @property
    def learnt(self) -> float:
        """What networks reach in the direction they were trained for: the mean of both APs."""
        return (self.forward + self.backward) / 2

    @property
    def kept(self) -> float | None:
        """How much of that F keeps under the class's name on reversed playback; None where there is nothing to keep."""
        return self.reversed_playback / self.learnt if self.learnt > 0 else None


@dataclass(frozen=True)
class Sensitivity:
    """Every class with ground truth, in the annotations' order.

    Args:
        classes: what was found of each.
        tiou: the thresholds that AP is the mean over.
        networks: how many F, and how many B, the figures are means of.
    """

    classes: tuple[ClassSensitivity, ...]
    tiou: tuple[float, ...]
    networks: tuple[int, int]

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """The verdict by class."""
        return {one.label: one.verdict for one in self.classes}


def sensitivity(
    ground_truth: Annotations,
    *,
    forward: Sequence[Detections],
    backward: Sequence[Detections],
    reversed_playback: Sequence[Detections],
    tiou: Sequence[float],
) -> Sensitivity:
    """Sorts classes by what forward networks make of reversed playback.

    The rule asks in turn:

    1. *Do they call each other?* "swapping": F calls the class most often by another's name, and that other class most
       often by this one's. That it holds both ways is what tells a swap from a mistake (a class that turns into nothing
       known is called something too), so it needs no threshold.
    2. *Is there anything to lose?* "not learnt": in the directions they were trained for, F and B reach a mean AP
       below ``LEARNT``, too little to say that any of it is kept or lost.
    3. *Is it as good as ever?* "symmetric": F calls the class most often by its own name and keeps at least ``KEPT`` of
       the mean of F's and B's AP; else "irreversible".

    The third question is asked of AP and not of names, because F calls an irreversible action by its own name too, for
    want of a better one; but it scores it less or finds its ends less well than an action that looks as it should, and
    AP falls with either. A truly symmetric class loses nothing at all, so ``KEPT`` only has to leave room for chance: a
    tenth, which is how far a class's AP was seen to differ between two trainings of the demo. What is kept is told
    relative to the mean of F and B, because either estimates the same thing (how well the class is learnt by one who
    knows the direction it is played in), and two are steadier than one. A class of few segments may fall on either
    side; several networks help.

    Args:
        ground_truth: on the forward clock.
        forward: what F found; one or several networks (seeds), of whose APs the mean is taken.
        backward: what B found on its own, reversed playback.
        reversed_playback: what the networks of ``forward`` found there. All on either clock.
        tiou: the thresholds that AP is the mean over.

    Raises:
        ValueError: no network, another number of ``reversed_playback`` than of ``forward``, or as ``evaluate``.
    """
    if not forward or not backward or len(forward) != len(reversed_playback):
        raise ValueError(
            f"{len(forward)} F, {len(backward)} B and {len(reversed_playback)} F on reversed playback; give at least "
            "one F and one B, and each F's detections on reversed playback"
        )
    evaluations = [evaluate(ground_truth, found, tiou=tiou) for found in (*forward, *backward, *reversed_playback)]
    ap = np.stack([evaluation.ap.mean(axis=1) for evaluation in evaluations])  # [networks, K]
    of_f, of_b, of_reversed = np.split(ap, np.cumsum([len(forward), len(backward)]))
    calls = Calls(
        ground_truth.classes,
        np.sum([called_classes(ground_truth, found).counts for found in reversed_playback], axis=0),
    )
    classes = evaluations[0].classes
    called = {label: calls.most_frequent(label) for label in classes}
    found = []
    for number, label in enumerate(classes):
        name, share = called[label]
        one = ClassSensitivity(
            label=label,
            segments=int(evaluations[0].segments[number]),
            forward=float(of_f[:, number].mean()),
            backward=float(of_b[:, number].mean()),
            reversed_playback=float(of_reversed[:, number].mean()),
            called=name,
            called_share=share,
            verdict="irreversible",
        )
        swaps = name != label and name in called and called[name][0] == label
        found.append(replace(one, verdict=_verdict(one, swaps)))
    return Sensitivity(tuple(found), evaluations[0].tiou, (len(forward), len(backward)))


def _verdict(one: ClassSensitivity, swaps: bool) -> Verdict:
    """The rule of ``sensitivity``."""
    if swaps:
        return "swapping"
    if one.learnt < LEARNT:
        return "not learnt"
    keeps = one.called == one.label and one.reversed_playback >= KEPT * one.learnt
    return "symmetric" if keeps else "irreversible"
