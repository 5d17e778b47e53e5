"""What becomes of segments that no video could have: kept, clipped, dropped or refused, and reported either way.

This module does not import torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from bitad.data.annotations import AnnotatedVideo, Annotations, Defect

# A segment may end this much after its video: what a sum of floating-point seconds is off.
_ROUNDING_S = 1e-6

Outside = Literal["keep", "clip", "drop", "error"]
Other = Literal["keep", "drop", "error"]
Outcome = Literal["kept", "clipped", "dropped"]


@dataclass(frozen=True)
class Policy:
    """What to do with each kind of defective segment.

    Everything is kept unless asked otherwise: a conversion changes the form and not the ground truth, and published
    figures are measured with such segments in it (30 of THUMOS14's lie beyond the end of their videos).

    Args:
        outside: segments that begin before their video or end after it. "clip" cuts them at the video's edges and drops
            those of which nothing remains.
        backwards: segments that do not start before their end.
        duplicate: segments that repeat another of the same label.
    """

    outside: Outside = "keep"
    backwards: Other = "keep"
    duplicate: Other = "keep"

    def of(self, defect: Defect) -> Outside:
        """What to do about a defect that ``segment_defects`` found."""
        match defect.kind:
            case "segment outside the video":
                return self.outside
            case "start not before end":
                return self.backwards
            case _:
                return self.duplicate

    def apply(self, annotations: Annotations) -> tuple[Annotations, tuple[Treated, ...]]:
        """The ground truth as the policy leaves it, and what was done about each defect.

        Raises:
            ValueError: a segment has a defect that is an error here.
        """
        videos, treated = {}, []
        for name, video in annotations.videos.items():
            videos[name], of_video = self._apply(video)
            treated += of_video
        return replace(annotations, videos=videos), tuple(treated)

    def _apply(self, video: AnnotatedVideo) -> tuple[AnnotatedVideo, list[Treated]]:
        found = list(segment_defects(video))
        if not found:
            return video, []
        segments, keep = video.segments.copy(), np.ones(len(video.labels), bool)
        treated = []
        for i, defect in found:
            outcome: Outcome = "kept"
            match self.of(defect):
                case "error":
                    raise ValueError(f"video {video.name}: {defect.kind}: {defect.detail}; its policy is error")
                case "drop":
                    outcome = "dropped"
                case "clip":
                    segments[i] = segments[i].clip(0, video.duration_s)
                    outcome = "clipped" if segments[i, 0] < segments[i, 1] else "dropped"
            keep[i] &= outcome != "dropped"
            treated.append(Treated(defect, outcome))
        labels = tuple(label for label, kept in zip(video.labels, keep, strict=True) if kept)
        return replace(video, segments=segments[keep], labels=labels), treated


@dataclass(frozen=True)
class Treated:
    """A defect and what was done about it."""

    defect: Defect
    outcome: Outcome


def segment_defects(video: AnnotatedVideo) -> Iterator[tuple[int, Defect]]:
    """The segments that no video could have, by their place in it, and what is wrong with each."""
    seen = set()
    for i, ((start, end), label) in enumerate(zip(video.segments.tolist(), video.labels, strict=True)):
        where = f"{label} [{start:g}, {end:g}] s"
        if end > video.duration_s + _ROUNDING_S or start < 0:
            yield i, Defect(video.name, "segment outside the video", f"{where} of a video of {video.duration_s:g} s")
        if start >= end:
            yield i, Defect(video.name, "start not before end", where)
        if (start, end, label) in seen:
            yield i, Defect(video.name, "duplicate", where)
        seen.add((start, end, label))


@dataclass(frozen=True)
class Remark:
    """One line of a report.

    Args:
        kind: of the lines that say the same of different videos.
        says: the line.
    """

    kind: str
    says: str


def summary(treated: Iterable[Treated]) -> list[Remark]:
    """What was done, a remark for each video, kind and outcome."""
    counts = Counter((one.defect.video, one.defect.kind, one.outcome) for one in treated)
    return [
        Remark(f"{kind}, {outcome}", f"{video}: {kind}: {count} {outcome}")
        for (video, kind, outcome), count in counts.items()
    ]


def abridged(report: Iterable[Remark], most: int | None, remedy: str) -> Iterator[str]:
    """The lines of a report by kind, of each kind at most ``most`` and then how many more there are.

    Args:
        most: None for all.
        remedy: how to see the others.
    """
    lines: dict[str, list[str]] = {}
    for remark in report:
        lines.setdefault(remark.kind, []).append(remark.says)
    for kind, said in lines.items():
        yield from said[:most]
        if most is not None and len(said) > most:
            yield f"and {len(said) - most} more ({kind}): {remedy}"
