"""Predictions -> detections: candidates of each window in grid steps, placed in the video, one suppression a video."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray

from bitad.config.schema import NmsConfig
from bitad.data.detections import Detections
from bitad.data.tiou import tiou_pairs
from bitad.inference.nms import check_candidates, keep, nms, voted
from bitad.models.heads import Prediction
from bitad.timeline import Grid, mirror_segments


@dataclass(frozen=True)
class Candidates:
    """Scored segments of one window or video, before or after suppression, as columns.

    Args:
        segments: float64 ``[n, 2]``, start and end, in grid steps of the window's view or in seconds.
        scores: float64 ``[n]``.
        labels: int64 ``[n]``, class indices.
    """

    segments: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scores)

    def mirrored(self, steps: int) -> Candidates:
        """The same candidates in the other view of a window of ``steps`` real steps; its own inverse."""
        return replace(self, segments=mirror_segments(self.segments, steps))

    def take(self, rows: NDArray[Any]) -> Candidates:
        """Some of the rows: a boolean mask ``[n]``, or row numbers in the wanted order."""
        return Candidates(self.segments[rows], self.scores[rows], self.labels[rows])


@torch.no_grad()
def decode(
    prediction: Prediction,
    *,
    score_threshold: float = 0.001,
    top_k: int = 2000,
    names: Sequence[str] | None = None,
) -> list[Candidates]:
    """Each window's best candidates, best first: at most ``top_k`` (point, class) pairs scoring above the threshold.

    A candidate reaches from its point the predicted distances to both sides, and may reach beyond the window. Equal
    scores keep the order of points, then of classes.

    Args:
        prediction: of B windows.
        score_threshold: on probabilities; at least 0.
        top_k: of each window.
        names: of the windows' videos, for messages.

    Raises:
        ValueError: a score or distance at a real point is not finite.
    """
    logits, distances, mask, points = prediction
    broken = ((logits.isnan().any(-1) | ~distances.isfinite().flatten(2).all(-1)) & mask).any(1)  # [B]
    if broken.any():
        window = int(broken.nonzero()[0])
        what = f"window {window}" if names is None else f"video {names[window]}"
        raise ValueError(
            f"{what}: the network's scores or segments are not finite; test with test.precision=fp32, or another "
            "checkpoint"
        )
    classes = logits.shape[-1]
    # Below any threshold, so that padded points never become candidates.
    scores = logits.sigmoid().masked_fill(~mask[..., None], -1).flatten(1)  # [B, N * K]
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, :top_k], order[:, :top_k]
    row = order if distances.ndim == 4 else order // classes  # a segment for each class of a point, or one for all
    segments = points.segments(distances).flatten(1, -2).take_along_dim(row[..., None], dim=1)  # [B, top_k, 2]
    counts = (scores > score_threshold).sum(1)
    rows = zip(*(column.cpu().numpy() for column in (segments.double(), scores.double(), order % classes)), strict=True)
    return [Candidates(s[:n], p[:n], c[:n]) for (s, p, c), n in zip(rows, counts.tolist(), strict=True)]


# OpenTAD rounds before the suppression and after it; published numbers were made so.
SECONDS_DECIMALS = 2
SCORE_DECIMALS = 4

# How many candidates the suppression tries at first, for each segment that it is to keep.
_TRIED_AT_FIRST = 8


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


def stitch(windows: Sequence[Candidates], settings: NmsConfig | None, *, rounding: bool = True) -> Candidates:
    """One video's detections, best first, from the candidates of all its windows.

    Args:
        windows: in seconds on the video's clock, see :func:`to_seconds`. Of equal scores the first window's wins.
            They are gone over several times, and may be computed each time.
        settings: of the suppression; None keeps everything.
        rounding: of the result, as in :func:`to_seconds`.

    Raises:
        ValueError: as :func:`~bitad.inference.nms.nms`.
    """
    merged = suppressed(_joined(windows), None) if settings is None else _best(windows, settings)
    return _rounded(merged) if rounding else merged


def _best(windows: Sequence[Candidates], settings: NmsConfig) -> Candidates:
    """What :func:`~bitad.inference.nms.nms` leaves of the candidates of all windows, from as few as that takes.

    The suppression lowers scores and never raises one, and of equal scores takes the first. So candidates that come
    after the last one kept, by score and then by their order, have no part in the result. The best are tried first,
    then more of them, until what is kept comes before all that was left out. How many that takes depends on
    ``max_segments``, hardly on the length of the video; and so does the memory.
    """
    count = _TRIED_AT_FIRST * settings.max_segments
    while True:
        floor, ties = _least_of_best(windows, count)
        tried = _joined(windows, floor, ties)
        kept, scores = keep(tried.segments, tried.scores, tried.labels, settings)
        if floor == -np.inf:
            break
        last = np.flatnonzero(tried.scores == floor)[-1]  # none of those left out comes before it
        if len(kept) == settings.max_segments and ((scores > floor) | (scores == floor) & (kept <= last)).all():
            break
        count *= 4
    best = Candidates(tried.segments[kept], scores, tried.labels[kept])
    if settings.voting_threshold > 0 and not settings.multiclass:
        threshold = settings.voting_threshold
        voters = _joined([_voters(window, best, threshold) for window in windows])
        best = replace(best, segments=voted(best.segments, voters.segments, voters.scores, threshold))
    return best


def _least_of_best(windows: Sequence[Candidates], count: int) -> tuple[float, int]:
    """The least score of the ``count`` best candidates, and how many of them have it; minus infinity and 0 where there
    are no more candidates than those."""
    best, total = np.empty(0), 0
    for window in windows:
        check_candidates(window.segments, window.scores)
        best, total = np.concatenate((best, window.scores)), total + len(window)
        if len(best) > 2 * count:
            best = np.partition(best, len(best) - count)[-count:]
    if total <= count:
        return -np.inf, 0
    best = np.partition(best, len(best) - count)[-count:]
    return float(best[0]), int((best == best[0]).sum())


def _voters(window: Candidates, kept: Candidates, threshold: float) -> Candidates:
    """The candidates of a window that have a tIoU of at least this to a kept segment."""
    one_group = np.zeros(max(len(window), len(kept)), np.int64)
    rows, _, _ = tiou_pairs(one_group[: len(window)], window.segments, one_group[: len(kept)], kept.segments, threshold)
    return window.take(np.unique(rows))


def _joined(windows: Iterable[Candidates], floor: float = -np.inf, ties: int = 0) -> Candidates:
    """The candidates of all windows that score more than ``floor``, and the first ``ties`` of those that score it."""
    parts = []
    for window in windows:
        chosen = window.scores > floor
        equal = np.flatnonzero(window.scores == floor)[:ties]
        chosen[equal] = True
        ties -= len(equal)
        parts.append(window.take(chosen))
    return Candidates(
        np.concatenate([np.empty((0, 2)), *(part.segments for part in parts)]),
        np.concatenate([np.empty(0), *(part.scores for part in parts)]),
        np.concatenate([np.empty(0, np.int64), *(part.labels for part in parts)]),
    )


def suppressed(candidates: Candidates, settings: NmsConfig | None) -> Candidates:
    """What the suppression leaves of candidates on one clock, in any unit, best first; None keeps everything."""
    if settings is not None:
        return Candidates(*nms(candidates.segments, candidates.scores, candidates.labels, settings))
    order = np.argsort(-candidates.scores, kind="stable")
    return Candidates(candidates.segments[order], candidates.scores[order], candidates.labels[order])


class _Window(NamedTuple):
    """The candidates of one window as the network gives them, and what brings them to seconds.

    They are kept in the smallest types that hold them exactly: 13 bytes a candidate, and 32 once in seconds.
    """

    candidates: Candidates
    grid: Grid
    reverse_view: bool

    @classmethod
    def of(cls, candidates: Candidates, grid: Grid, *, reverse_view: bool) -> _Window:
        labels = candidates.labels
        packed = Candidates(
            _in_single_precision(candidates.segments),
            _in_single_precision(candidates.scores),
            labels.astype(np.min_scalar_type(labels.max(initial=0))),
        )
        return cls(packed, grid, reverse_view)

    def unpacked(self) -> Candidates:
        segments, scores, labels = self.candidates.segments, self.candidates.scores, self.candidates.labels
        return Candidates(segments.astype(np.float64), scores.astype(np.float64), labels.astype(np.int64))


def _in_single_precision(values: NDArray[Any]) -> NDArray[Any]:
    """Values in single precision, a copy; as they are where they would change."""
    single = values.astype(np.float32)
    return single if np.array_equal(single, values) else values


class _InSeconds(Sequence[Candidates]):
    """The windows of a video, each brought to seconds when it is asked for."""

    def __init__(self, windows: Sequence[_Window], duration_s: float, *, rounding: bool) -> None:
        self.windows, self.duration_s, self.rounding = windows, duration_s, rounding

    def __len__(self) -> int:
        return len(self.windows)

    @overload
    def __getitem__(self, item: int) -> Candidates: ...
    @overload
    def __getitem__(self, item: slice) -> _InSeconds: ...
    def __getitem__(self, item: int | slice) -> Candidates | _InSeconds:
        if isinstance(item, slice):
            return _InSeconds(self.windows[item], self.duration_s, rounding=self.rounding)
        window = self.windows[item]
        return to_seconds(
            window.unpacked(), window.grid, self.duration_s, reverse_view=window.reverse_view, rounding=self.rounding
        )


class Stitcher:
    """Collects the windows of videos as they come, in any order, and makes detections of them.

    The result depends on neither the order of the windows nor how they were spread over processes: they are put in
    the order of time, and a window that comes twice counts once.

    Args:
        settings: of the suppression over the windows of a video; None keeps everything.
        rounding: as in :func:`to_seconds`.
    """

    def __init__(self, settings: NmsConfig | None, *, rounding: bool = True) -> None:
        self.settings, self.rounding = settings, rounding
        self.windows: dict[str, dict[float, _Window]] = {}  # of a video, by their first frame
        self.durations_s: dict[str, float] = {}

    def add(
        self, video: str, candidates: Candidates, grid: Grid, duration_s: float, *, reverse_view: bool = False
    ) -> None:
        """Takes in the candidates of one window; arguments as in :func:`to_seconds`."""
        window = _Window.of(candidates, grid, reverse_view=reverse_view)
        self.windows.setdefault(video, {})[grid.first_frame] = window
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
        in_order = [windows[frame] for frame in sorted(windows)]
        in_seconds = _InSeconds(in_order, self.durations_s.get(name, 0.0), rounding=self.rounding)
        return stitch(in_seconds, self.settings, rounding=self.rounding)

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
