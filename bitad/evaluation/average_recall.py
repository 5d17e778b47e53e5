"""Average recall at an average number of proposals (AR@AN), and the area under its curve (AUC).

The measure of temporal proposals (Escorcia et al., DAPs, ECCV 2016; ActivityNet's proposal challenge of 2016 to 2018).
Labels play no part in it: every detection is a proposal. The definition is that of OpenTAD's code:

1. V is the number of videos with a ground-truth segment, T the number of *all* proposals, also those in other videos,
   M the greatest average number of proposals.
2. A video keeps its best ``n = min(int(count * ratio), count)`` proposals by score, where ``ratio = M * V / T``. U is
   the sum of n.
3. At point j of P, ``f = (j / P) * (M * V / U)``, and the video uses its best ``min(int(n * f), n)`` proposals. So a
   video with more proposals uses more of them; their average number is ``f * U / V``.
4. Recall is the share of segments that a used proposal overlaps with at least the tIoU threshold. One proposal may
   recall several segments. Average recall is the mean over the thresholds.
5. AUC is the area under the average recall over the average number (trapezoids, from the first point to the last), over
   the last average number. It is (M - 1) / M where every segment is recalled by the first proposal of its video.

``int`` truncates floating-point products, so their order matters; it is the one above.

OpenTAD has P = M points, and leaves out segments without length and copies of a segment of the same label. The code of
ActivityNet's challenge has 100 points, and keeps every segment.

All figures are fractions, 0 to 1. Proposals with equal scores keep the order of their file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitad.config.names import RecallRule
from bitad.data.annotations import Annotations
from bitad.data.classes import UNDECIDED
from bitad.data.detections import Detections
from bitad.data.tiou import tiou_pairs
from bitad.evaluation.mean_average_precision import Truth, checked_thresholds
from bitad.runtime.files import write_json
from bitad.timeline import FloatArray, IntArray

# The thresholds of ActivityNet's challenge; OpenTAD's for THUMOS14 also have 1.0.
TIOU = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)

_POINTS_OF_ACTIVITYNET = 100
_REPORTED = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_MAX_PROPOSALS = 10_000  # more suggest a mistake


@dataclass(frozen=True, eq=False)
class AverageRecall:
    """The recall of proposals, with the definition and the data.

    Args:
        rule: whose code is followed.
        max_proposals: M, the greatest average number of proposals in a video.
        average_proposals: float64 ``[P]``, the average number of proposals used at each point.
        recall: float64 ``[n_tiou, P]``.
        videos: number of videos of the ground truth; V of them have a segment (``videos_with_segments``).
        segments_dropped: ground-truth segments left out: without length, or annotated twice.
        ambiguous: number of ``segments`` that are labelled Ambiguous.
        proposals: T, the number of all proposals; ``proposals_used`` are those of the last point.
        proposals_elsewhere: number of proposals in videos without a segment. They count in T.
    """

    rule: RecallRule
    tiou: tuple[float, ...]
    max_proposals: int
    average_proposals: FloatArray
    recall: FloatArray
    subsets: tuple[str, ...]
    videos: int
    videos_with_segments: int
    videos_without_proposal: tuple[str, ...]
    segments: int
    segments_dropped: int
    ambiguous: int
    proposals: int
    proposals_used: int
    proposals_elsewhere: int

    @property
    def curve(self) -> FloatArray:
        """Average recall, the mean over the thresholds, at each point, ``[P]``."""
        return self.recall.mean(axis=0)

    @property
    def auc(self) -> float:
        """The area under the average recall over the average number of proposals, over its last value."""
        x, y = self.average_proposals, self.curve
        return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum() / x[-1])

    def index(self, number: int) -> int | None:
        """The index of the point of this average number of proposals; None if there is none."""
        point, rest = divmod(number * len(self.average_proposals), self.max_proposals)
        return None if rest or not 0 < point <= len(self.average_proposals) else point - 1

    def at(self, number: int) -> float:
        """AR@AN at an average of ``number`` proposals; raises a ValueError if the curve has no such point."""
        if (index := self.index(number)) is None:
            raise ValueError(
                f"the curve has no point at {number} proposals; it has {len(self.average_proposals)} points up to "
                f"{self.max_proposals}"
            )
        return float(self.curve[index])

    @property
    def reported(self) -> dict[int, float]:
        """AR@AN at 1, 2, 5, 10, 20, 50, 100 and so on, where the curve has a point, and at M."""
        numbers = sorted({*(n for n in _REPORTED if n < self.max_proposals), self.max_proposals})
        return {number: self.at(number) for number in numbers if self.index(number) is not None}

    def __repr__(self) -> str:
        figures = ", ".join(f"AR@{number}: {value:.4f}" for number, value in self.reported.items())
        return f"AverageRecall({figures}, auc={self.auc:.4f}, {self.videos} videos)"

    def to_json(self, path: str | Path | None = None) -> dict[str, Any]:
        """All values in JSON's types; with a path, also written there."""
        content = {
            "metric": "ar",
            "rule": self.rule,
            "tiou": list(self.tiou),
            "max_proposals": self.max_proposals,
            "auc": self.auc,
            "ar": {str(number): value for number, value in self.reported.items()},
            "average_proposals": self.average_proposals.tolist(),
            "average_recall": self.curve.tolist(),
            "recall": self.recall.tolist(),
            "subsets": list(self.subsets),
            "videos": self.videos,
            "videos_with_segments": self.videos_with_segments,
            "videos_without_proposal": list(self.videos_without_proposal),
            "segments": self.segments,
            "segments_dropped": self.segments_dropped,
            "ambiguous": self.ambiguous,
            "proposals": self.proposals,
            "proposals_used": self.proposals_used,
            "proposals_elsewhere": self.proposals_elsewhere,
        }
        if path is not None:
            write_json(content, path)
        return content


def average_recall(
    ground_truth: Annotations,
    detections: Detections,
    *,
    tiou: Sequence[float] = TIOU,
    max_proposals: int = 100,
    rule: RecallRule = "opentad",
) -> AverageRecall:
    """Average recall of detections on either clock against all videos of ``ground_truth``; labels are ignored.

    Args:
        max_proposals: M, the greatest average number of proposals in a video, 1 to 10,000.
        rule: "opentad", or "activitynet" for the code of ActivityNet's challenge.

    Raises:
        ValueError: no ground truth, no threshold or one outside (0, 1], ``max_proposals`` out of its range, or reverse
            detections without durations.
    """
    thresholds = checked_thresholds(tiou)
    check_max_proposals(max_proposals)
    truth = Truth.of(ground_truth, every_segment=rule == "activitynet")
    names = list(truth.videos)
    # Videos are numbered among the V.
    own, video = np.unique(truth.groups // len(truth.classes), return_inverse=True)
    number = {names[i]: place for place, i in enumerate(own.tolist())}
    proposals = detections.forward()
    among = np.array([number.get(name, -1) for name in proposals.videos], np.int64)[proposals.video]
    order = np.lexsort((-proposals.scores, among))
    order = order[among[order] >= 0]
    count = np.bincount(among[order], minlength=len(own))
    kept = _kept(count, max_proposals, len(proposals))
    used = int(kept.sum())
    place = np.arange(len(order)) - np.repeat(np.cumsum(count) - count, count)  # rank in the video, from 0
    best = place < kept[among[order]]
    order, place = order[best], place[best]

    needed = np.full((len(thresholds), len(video)), np.iinfo(np.int64).max)  # proposals before the first hit
    segment, proposal, overlap = tiou_pairs(
        video, truth.segments, among[order], proposals.segments[order], float(thresholds.min())
    )
    for row, threshold in zip(needed, thresholds, strict=True):
        hit = overlap >= threshold
        np.minimum.at(row, segment[hit], place[proposal[hit]])

    points = max_proposals if rule == "opentad" else _POINTS_OF_ACTIVITYNET
    share = np.arange(1, points + 1) / points
    factor = share * (max_proposals * len(own) / used) if used else share
    average = factor * used / len(own) if used else share * max_proposals
    recalled = np.zeros((len(thresholds), points + 1), np.int64)  # by the first point that recalls; the last: none
    for i, n in enumerate(kept.tolist()):
        in_use = np.minimum((n * factor).astype(np.int64), n)
        for row, columns in zip(recalled, needed[:, video == i], strict=True):
            np.add.at(row, np.searchsorted(in_use, columns, side="right"), 1)
    searched = {proposals.videos[i] for i in np.unique(proposals.video)}
    return AverageRecall(
        rule=rule,
        tiou=tuple(thresholds.tolist()),
        max_proposals=max_proposals,
        average_proposals=average,
        recall=np.cumsum(recalled[:, :points], axis=1) / len(video),
        subsets=tuple(ground_truth.subsets()),
        videos=len(names),
        videos_with_segments=len(own),
        videos_without_proposal=tuple(name for name in number if name not in searched),
        segments=len(video),
        segments_dropped=truth.dropped,
        ambiguous=int(truth.segments_per_class[np.isin(truth.classes, UNDECIDED)].sum()),
        proposals=len(proposals),
        proposals_used=used,
        proposals_elsewhere=int((among < 0).sum()),
    )


def check_max_proposals(number: int, name: str = "max_proposals") -> None:
    """Raises ValueError if a greatest average number of proposals is not 1 to 10,000."""
    if not 1 <= number <= _MAX_PROPOSALS:
        raise ValueError(f"{name} {number}: give a number of proposals a video from 1 to {_MAX_PROPOSALS:,}")


def _kept(count: IntArray, most: int, total: int) -> IntArray:
    """The number of proposals that each of the V videos keeps of its ``count``, ``[V]``."""
    if not total:
        return count
    return np.minimum((count * (most * len(count) / total)).astype(np.int64), count)
