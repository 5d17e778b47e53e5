"""Ground truth and detections as columns with common numbers, and the matching of one with the other by turns.

What the rules of evaluation share; each rule says who takes turns, in what order and for what. This module does not
import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitad.data.annotations import Annotations
from bitad.data.detections import Detections, named

# Ground-truth segments of one label whose both ends are this near are one segment annotated twice (OpenTAD's value).
_SAME_SEGMENT_S = 1e-3


@dataclass(frozen=True, eq=False)
class Truth:
    """Ground truth as columns, one row a segment.

    Args:
        videos: the number of each video, by name.
        classes: the K classes that have a segment.
        groups: int64 ``[m]``, the number of the segment's pair of video and class.
        segments: float64 ``[m, 2]``, in seconds.
        segments_per_class: int64 ``[K]``.
        dropped: segments that were left out.
    """

    videos: dict[str, int]
    classes: tuple[str, ...]
    groups: NDArray[np.int64]
    segments: NDArray[np.float64]
    segments_per_class: NDArray[np.int64]
    dropped: int

    @staticmethod
    def of(annotations: Annotations, *, every_segment: bool = False) -> Truth:
        """The ground truth of all videos.

        Args:
            annotations: of these videos.
            every_segment: also segments without length, and copies of others; else these are dropped.

        Raises:
            ValueError: nothing is left, or a label is none of the annotations' classes.
        """
        videos = list(annotations.videos.values())
        labels = [label for video in videos for label in video.labels]
        if undeclared := sorted(set(labels) - set(annotations.classes)):
            raise ValueError(f"ground truth of {named(undeclared)}, which is not among the annotations' classes")
        number = {name: i for i, name in enumerate(annotations.classes)}
        video = np.repeat(np.arange(len(videos)), [len(video.labels) for video in videos])
        label = np.array([number[name] for name in labels], np.int64)
        segments = np.concatenate([np.empty((0, 2)), *(video.segments for video in videos)])
        kept = np.ones(len(label), np.bool_) if every_segment else _distinct(video * len(number) + label, segments)
        if not kept.any():
            subsets = " and ".join(repr(subset) for subset in dict.fromkeys(video.subset for video in videos))
            raise ValueError(
                f"the ground truth of subset {subsets} ({len(videos)} videos) has no segment to evaluate against; name "
                "a subset that has some"
            )
        video, label, segments = video[kept], label[kept], segments[kept]
        present, label = np.unique(label, return_inverse=True)
        return Truth(
            videos={video.name: i for i, video in enumerate(videos)},
            classes=tuple(annotations.classes[i] for i in present),
            groups=video * len(present) + label,
            segments=segments,
            segments_per_class=np.bincount(label),
            dropped=int((~kept).sum()),
        )


@dataclass(frozen=True, eq=False)
class Ranked:
    """The detections of the ground truth's classes, best first.

    Args:
        rows: int64 ``[n]``, which of the detections each one is.
        groups: int64 ``[n]``, numbers as the ground truth's; -1 in videos that it does not have.
        segments: float64 ``[n, 2]``, in seconds.
        scores: float64 ``[n]``, descending.
        labels: int64 ``[n]``, index into the ground truth's classes.
    """

    rows: NDArray[np.int64]
    groups: NDArray[np.int64]
    segments: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]

    @staticmethod
    def of(truth: Truth, detections: Detections, *, equals_by_video: bool = False) -> Ranked:
        """Detections on the forward clock in the order of their scores.

        Args:
            truth: that they are measured by.
            detections: of any videos and classes.
            equals_by_video: those of equal score go by the name of their video, and only then as they come.
        """
        number = {name: i for i, name in enumerate(truth.classes)}
        video = np.array([truth.videos.get(name, -1) for name in detections.videos], np.int64)[detections.video]
        label = np.array([number.get(name, -1) for name in detections.classes], np.int64)[detections.labels]
        rows = np.flatnonzero(label >= 0)
        if equals_by_video:
            place = np.argsort(np.argsort(np.array(detections.videos)))
            rows = rows[np.argsort(place[detections.video[rows]], kind="stable")]
        rows = rows[np.argsort(-detections.scores[rows], kind="stable")]
        return Ranked(
            rows=rows,
            groups=np.where(video[rows] >= 0, video[rows] * len(truth.classes) + label[rows], -1),
            segments=detections.segments[rows],
            scores=detections.scores[rows],
            labels=label[rows],
        )


def checked_thresholds(tiou: Sequence[float]) -> NDArray[np.float64]:
    """The tIoU thresholds ``[n_tiou]``.

    Raises:
        ValueError: there is none, or one is outside (0, 1].
    """
    thresholds = np.array(tiou, np.float64)
    if not (thresholds.size and ((thresholds > 0) & (thresholds <= 1)).all()):
        raise ValueError(f"tIoU thresholds {list(tiou)}; give at least one, each above 0 and at most 1")
    return thresholds


def take_turns(
    first: NDArray[np.int64], count: NDArray[np.int64], candidates: NDArray[np.int64], n_wanted: int
) -> NDArray[np.int64]:
    """Who gets each of ``n_wanted`` things when everyone in turn takes the first of its candidates still free.

    Taker i's candidates are ``candidates[first[i] : first[i] + count[i]]``, best first. Returns the taker of each
    thing, int64 ``[n_wanted]``, and n, the number of takers, where nobody took it. Taking turns is the one stable
    matching in which everything prefers the earlier taker, so deferred acceptance (Gale and Shapley 1962) finds it for
    all classes and videos at once: all propose to their next candidate, which keeps the earliest; the others go on.
    Rounds are about as many as a taker has candidates.
    """
    n = len(first)
    holder = np.full(n_wanted, n)  # n: nobody yet
    following, last = first.copy(), first + count
    proposing = np.flatnonzero(count)
    while proposing.size:
        wanted = candidates[following[proposing]]
        following[proposing] += 1
        before = holder[wanted]
        np.minimum.at(holder, wanted, proposing)
        after = holder[wanted]
        refused = np.unique(np.concatenate([proposing[proposing != after], before[(before != after) & (before < n)]]))
        proposing = refused[following[refused] < last[refused]]
    return holder


def _distinct(groups: NDArray[np.int64], segments: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which segments to evaluate against, bool ``[m]``: not without length, nor the copy of an earlier kept one."""
    kept = segments[:, 1] > segments[:, 0]
    order = np.lexsort((segments[:, 0], groups))
    copies: list[tuple[int, int]] = []  # (later, earlier) in file order
    # Compare each with its successors by start time, until no start is near enough.
    for offset in range(1, len(order)):
        a, b = order[:-offset], order[offset:]
        near = (groups[a] == groups[b]) & (np.abs(segments[a, 0] - segments[b, 0]) <= _SAME_SEGMENT_S)
        if not near.any():
            break
        near &= np.abs(segments[a, 1] - segments[b, 1]) <= _SAME_SEGMENT_S
        pairs = zip(a[near].tolist(), b[near].tolist(), strict=True)
        copies += [(max(pair), min(pair)) for pair in pairs]
    # By ascending later one: whether the earlier one stays is settled by then.
    for later, earlier in sorted(copies):
        if kept[earlier]:
            kept[later] = False
    return kept
