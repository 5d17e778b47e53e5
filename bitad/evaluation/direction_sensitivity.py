"""Direction sensitivity: which class names a forward detector assigns to actions in forward and reverse playback.

It shows which classes look the same in reverse, which turn into another, and which into nothing known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from bitad.config.names import UNKNOWN
from bitad.data.annotations import Annotations
from bitad.data.detections import Detections
from bitad.evaluation.bootstrap import Draws, Estimate, resampled_ap
from bitad.evaluation.mean_average_precision import match
from bitad.timeline import FloatArray, IntArray

NOTHING = "nothing"

Verdict = Literal["symmetric", "swapping", "irreversible", "not learnt", "undecided"]
Quantity = Literal["swap margin", "learnt", "own-label margin", "kept"]

# Thresholds of the rule of `sensitivity`, which explains them.
LEARNT, KEPT = 0.1, 0.9
MIN_SEGMENTS, MIN_VIDEOS = 5, 2

_RESAMPLES = 1000


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
    _, labels, called = _called(ground_truth, detections, tiou)
    counts = np.zeros((len(classes), len(classes) + 1), np.int64)
    np.add.at(counts, (labels, called), 1)
    return Calls(classes, counts)


def _called(
    ground_truth: Annotations, detections: Detections, tiou: float
) -> tuple[list[str], IntArray, IntArray]:
    """Of each segment the video, the class, and the name that it is called: an index into classes and NOTHING."""
    classes = ground_truth.classes
    detections = detections.forward().with_classes(classes)
    detections = detections.take(np.argsort(detections.video, kind="stable"))
    number = {name: i for i, name in enumerate(detections.videos)}
    names, labels, calls = [], [], []
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
            names.append(video.name)
            labels.append(classes.index(label))
            calls.append(called)
    return names, np.array(labels, np.int64), np.array(calls, np.int64)


def renamed(ground_truth: Annotations, names: Mapping[str, str | None]) -> Annotations:
    """Ground truth under other labels; segments whose new name is None are left out."""
    videos = {}
    for name, video in ground_truth.videos.items():
        kept = video.take(np.array([names[label] is not None for label in video.labels], bool))
        videos[name] = replace(kept, labels=tuple(str(names[label]) for label in kept.labels))
    return Annotations(videos, ground_truth.classes)


@dataclass(frozen=True)
class Evidence:
    """The quantity that decides a verdict, or that leaves it undecided, as a fraction; and its interval."""

    quantity: Quantity
    estimate: Estimate


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
    evidence: Evidence | None  # None: too few segments or videos to decide

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
       would not hold both ways, so no threshold is needed. The *swap margin* is above 0: by how much the share of
       segments that get the partner's name exceeds that of any other name, for the class or for its partner, whichever
       is less. (The partner is the class with the largest such margin.)
    2. "not learnt": the mean AP of F and B, in the directions they were trained for, is below ``LEARNT``.
    3. "symmetric": its most frequent name is its own (the *own-label margin* is above 0), and F keeps at least ``KEPT``
       of the mean AP of F and B. F also gives an irreversible action its own name if no other fits better, but with a
       worse score or boundaries. ``KEPT`` leaves room for chance: a class's AP differed by a tenth between two
       trainings of the demo.
    4. "irreversible".

    A step holds, or does not, only if the 95 % interval of its quantity lies on one side of the border. Otherwise the
    class is "undecided", and also with fewer than ``MIN_SEGMENTS`` segments or in fewer than ``MIN_VIDEOS`` videos (a
    swap needs as many of the partner). Intervals are by 1,000 resamples of the videos and, where there are several, of
    the networks (:mod:`bitad.evaluation.bootstrap`). F and B are drawn alike if there are as many of both.

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
    matches = [match(ground_truth, found, tiou=tiou) for found in detections]
    truth = matches[0].truth
    draws = Draws.of_matches(matches, _RESAMPLES, seed=0)
    ap = np.stack([resampled_ap(one, draws).mean(axis=1) for one in matches])  # [networks, K, 1 + R]
    shares_of_f, shares_of_b = (
        draws.shares(list(map(str, range(len(networks)))))[:, None] for networks in (forward, backward)
    )
    of_f, of_b, of_reversed = np.split(ap, np.cumsum([len(forward), len(backward)]))
    f, f_reversed = (of_f * shares_of_f).sum(axis=0), (of_reversed * shares_of_f).sum(axis=0)
    b = (of_b * shares_of_b).sum(axis=0)
    learnt = (f + b) / 2
    kept = np.divide(f_reversed, learnt, out=np.full_like(learnt, np.nan), where=learnt > 0)
    names = _Names.of(ground_truth, reversed_playback, draws, shares_of_f[:, 0])
    calls = Calls(ground_truth.classes, names.counts)
    enough = {}
    for label, segments in zip(truth.classes, truth.segments_per_class.tolist(), strict=True):
        enough[label] = segments >= MIN_SEGMENTS and names.n_videos(label) >= MIN_VIDEOS
    results = []
    for number, label in enumerate(truth.classes):
        partner, swap = names.swap(label, truth.classes)
        verdict, evidence = _decide(
            swap=Estimate.of(swap),
            learnt=Estimate.of(learnt[number]),
            own=Estimate.of(names.margin(label, label)),
            kept=Estimate.of(kept[number]),
            can_swap=partner is not None and enough[partner],
        )
        if not enough[label]:
            verdict, evidence = "undecided", None
        name, share = calls.most_frequent(label)
        results.append(
            ClassSensitivity(
                label=label,
                segments=int(truth.segments_per_class[number]),
                forward=float(f[number, 0]),
                backward=float(b[number, 0]),
                reversed_playback=float(f_reversed[number, 0]),
                called=name,
                called_share=share,
                verdict=verdict,
                evidence=evidence,
            )
        )
    return Sensitivity(tuple(results), tuple(matches[0].thresholds.tolist()), (len(forward), len(backward)))


def contradictions(sensitivity: Sensitivity, reversal: Mapping[str, str]) -> list[str]:
    """The classes whose verdict contradicts what ``data.reversal`` states of them, each in words.

    Classes that are not learnt or undecided contradict nothing.

    Args:
        reversal: by class, the class that it looks like on reversed playback, itself, or ``unknown``; a class that is
            left out is stated to look like itself.
    """
    found = []
    for one in sensitivity.classes:
        other = reversal.get(one.label, one.label)
        verdicts = {"symmetric": one.label, "swapping": one.called, "irreversible": UNKNOWN}
        if other != verdicts.get(one.verdict, other):
            stated = "itself" if other == one.label else other
            judged = f"swapping with {one.called}" if one.verdict == "swapping" else one.verdict
            found.append(f"{one.label} (stated: {stated}, judged: {judged})")
    return found


def _decide(
    *, swap: Estimate, learnt: Estimate, own: Estimate, kept: Estimate, can_swap: bool
) -> tuple[Verdict, Evidence | None]:
    """The verdict by the rule of :func:`sensitivity`, and what decides it."""
    of_swap, of_learnt = Evidence("swap margin", swap), Evidence("learnt", learnt)
    of_own, of_kept = Evidence("own-label margin", own), Evidence("kept", kept)
    if swap.high >= 0:
        return ("swapping" if swap.low > 0 and can_swap else "undecided"), of_swap
    if learnt.low < LEARNT:
        return ("not learnt" if learnt.high < LEARNT else "undecided"), of_learnt
    if kept.high < KEPT:
        return "irreversible", of_kept
    if own.low <= 0:
        return ("irreversible" if own.high < 0 else "undecided"), of_own
    return ("symmetric" if kept.low >= KEPT else "undecided"), of_kept


@dataclass(frozen=True, eq=False)
class _Names:
    """The names that ground-truth segments are called on reverse playback, in the data and in each resample."""

    classes: tuple[str, ...]
    labels: IntArray  # [m], classes of the segments
    videos: IntArray  # [m], numbers of their videos
    called: IntArray  # [networks, m]
    draws: Draws
    shares: FloatArray  # [networks, 1 + R]

    @staticmethod
    def of(
        ground_truth: Annotations, detections: Sequence[Detections], draws: Draws, shares: FloatArray
    ) -> _Names:
        calls = [_called(ground_truth, found, tiou=0.5) for found in detections]
        videos, labels, _ = calls[0]
        number = np.array([draws.number[name] for name in videos], np.int64)
        return _Names(ground_truth.classes, labels, number, np.stack([c[2] for c in calls]), draws, shares)

    @property
    def counts(self) -> IntArray:
        """How often each class (row) is called each name (column), over all networks, ``[K, K + 1]``."""
        counts = np.zeros((len(self.classes), len(self.classes) + 1), np.int64)
        np.add.at(counts, (self.labels, self.called), 1)
        return counts

    def n_videos(self, label: str) -> int:
        """How many videos have the class."""
        return len(np.unique(self.videos[self.labels == self.classes.index(label)]))

    def margin(self, label: str, name: str) -> FloatArray:
        """The share of a class's segments that are called ``name``, minus the largest of another, ``[1 + R]``."""
        rows = np.flatnonzero(self.labels == self.classes.index(label))
        drawn = self.draws.times[self.videos[rows]]
        counts = np.zeros((len(self.classes) + 1, drawn.shape[1]))
        for called, share in zip(self.called, self.shares, strict=True):
            np.add.at(counts, called[rows], share * drawn)
        column, total = self.classes.index(name), drawn.sum(axis=0)
        margin = counts[column] - np.delete(counts, column, axis=0).max(axis=0)
        return np.where(total > 0, margin / np.maximum(total, 1), np.nan)

    def swap(self, label: str, present: Sequence[str]) -> tuple[str | None, FloatArray]:
        """The most probable partner among the classes with ground truth, and the swap margin with it, ``[1 + R]``."""
        rows = [self.classes.index(name) for name in present]
        counts = self.counts
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        ordered = np.sort(shares, axis=1)
        others = np.where(shares == ordered[:, -1:], ordered[:, -2:-1], ordered[:, -1:])
        margins = (shares - others)[np.ix_(rows, rows)]
        own = present.index(label)
        mutual = np.minimum(margins[own], margins[:, own])
        mutual[own] = -np.inf
        partner = present[int(mutual.argmax())]
        if partner == label:
            return None, np.full(self.draws.times.shape[1], -1.0)
        return partner, np.minimum(self.margin(label, partner), self.margin(partner, label))
