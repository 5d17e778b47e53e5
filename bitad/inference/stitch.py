"""Candidates of windows -> detections of videos: onto the video's clock, then one suppression over all its windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bitad.data.detections import Detections
from bitad.inference.decode import Candidates
from bitad.inference.nms import NmsSettings, nms
from bitad.timeline import Grid

# OpenTAD rounds before the suppression and after it; published numbers were made so.
SECONDS_DECIMALS = 2
SCORE_DECIMALS = 4


def to_seconds(
    candidates: Candidates, grid: Grid, duration_s: float, *, reverse_view: bool = False, rounding: bool = True
) -> Candidates:
    """A window's candidates in grid steps -> in seconds on the video's forward clock, cut off at the video's ends.

    Args:
        candidates: in grid steps of the window.
        grid: where the window lies.
        duration_s: of the video.
        reverse_view: the steps count from the window's last real step backwards.
        rounding: to 2 decimals of a second and 4 of a score.
    """
    if reverse_view:
        candidates = candidates.mirrored(grid.steps)
    segments = np.clip(grid.to_seconds(candidates.segments), 0.0, duration_s)
    moved = Candidates(segments, candidates.scores, candidates.labels)
    return _rounded(moved) if rounding else moved


def stitch(windows: Sequence[Candidates], settings: NmsSettings | None, *, rounding: bool = True) -> Candidates:
    """One video's detections, best first, from the candidates of all its windows.

    Args:
        windows: in seconds on the video's clock, see :func:`to_seconds`. Of equal scores the first window's wins.
        settings: of the suppression; None keeps everything.
        rounding: of the result, as in :func:`to_seconds`.
    """
    segments = np.concatenate([np.empty((0, 2)), *(window.segments for window in windows)])
    scores = np.concatenate([np.empty(0), *(window.scores for window in windows)])
    labels = np.concatenate([np.empty(0, np.int64), *(window.labels for window in windows)])
    merged = suppressed(Candidates(segments, scores, labels), settings)
    return _rounded(merged) if rounding else merged


def suppressed(candidates: Candidates, settings: NmsSettings | None) -> Candidates:
    """What the suppression leaves of candidates on one clock, in any unit, best first; None keeps everything."""
    if settings is not None:
        return Candidates(*nms(candidates.segments, candidates.scores, candidates.labels, settings))
    order = np.argsort(-candidates.scores, kind="stable")
    return Candidates(candidates.segments[order], candidates.scores[order], candidates.labels[order])


class Stitcher:
    """Collects the windows of videos as they come, in any order, and makes detections of them.

    The result depends on neither the order of the windows nor how they were spread over processes: they are put in
    the order of time, and a window that comes twice counts once.

    Args:
        settings: of the suppression over the windows of a video; None keeps everything.
        rounding: as in :func:`to_seconds`.
    """

    def __init__(self, settings: NmsSettings | None, *, rounding: bool = True) -> None:
        self.settings, self.rounding = settings, rounding
        self.windows: dict[str, dict[float, Candidates]] = {}  # of a video, by their first frame
        self.durations_s: dict[str, float] = {}

    def add(
        self, video: str, candidates: Candidates, grid: Grid, duration_s: float, *, reverse_view: bool = False
    ) -> None:
        """Takes in the candidates of one window; arguments as in :func:`to_seconds`."""
        moved = to_seconds(candidates, grid, duration_s, reverse_view=reverse_view, rounding=self.rounding)
        self.windows.setdefault(video, {})[grid.first_frame] = moved
        self.durations_s[video] = duration_s

    def update(self, other: Stitcher) -> None:
        """Takes in what another one, of another process say, has collected."""
        for video, windows in other.windows.items():
            self.windows.setdefault(video, {}).update(windows)
        self.durations_s.update(other.durations_s)

    def leave_out(self, videos: Iterable[str]) -> None:
        """Forgets the windows of these videos."""
        for video in videos:
            self.windows.pop(video, None)

    def video(self, name: str) -> Candidates:
        """One video's detections, best first; none if no window of it was taken in."""
        windows = self.windows.get(name, {})
        return stitch([windows[frame] for frame in sorted(windows)], self.settings, rounding=self.rounding)

    def detections(
        self,
        classes: Sequence[str],
        *,
        videos: Sequence[str] | None = None,
        relabel: Callable[[str, Candidates], Candidates] = lambda video, found: found,
        details: Mapping[str, Any] | None = None,
    ) -> Detections:
        """All videos' detections on the forward clock.

        Args:
            classes: names of the labels.
            videos: which ones, in this order; None: all taken in, by name.
            relabel: a video's name and what was found there -> the same with labels that ``classes`` names.
            details: see :class:`~bitad.data.detections.Detections`.
        """
        names = sorted(self.windows) if videos is None else videos
        found = {name: relabel(name, self.video(name)) for name in names}
        return Detections.from_videos(
            {name: (merged.segments, merged.scores, merged.labels) for name, merged in found.items()},
            classes=classes,
            durations_s={name: self.durations_s[name] for name in names if name in self.durations_s},
            details=details,
        )


def _rounded(candidates: Candidates) -> Candidates:
    return Candidates(
        np.round(candidates.segments, SECONDS_DECIMALS),
        np.round(candidates.scores, SCORE_DECIMALS),
        candidates.labels,
    )
