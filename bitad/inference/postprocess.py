"""Predictions -> candidates of each window -> seconds -> one NMS for each video -> detections."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bitad.config.schema import NmsConfig
from bitad.data.detections import Detections
from bitad.inference.nms import check_candidates, nms, nms_rows, overlapping, vote
from bitad.models.heads import Prediction
from bitad.timeline import FloatArray, Grid, IntArray, mirror_segments


@dataclass(frozen=True)
class Candidates:
    """Scored segments of one window or video, before or after NMS, as columns."""

    segments: FloatArray  # [n, 2], start and end, in grid steps of the window's view or in seconds
    scores: FloatArray  # [n]
    labels: IntArray  # [n], class indices

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def columns(self) -> tuple[FloatArray, FloatArray, IntArray]:
        return self.segments, self.scores, self.labels

    def take(self, rows: NDArray[Any]) -> Candidates:
        return Candidates(*(column[rows] for column in self.columns))


@torch.no_grad()
def decode(
    prediction: Prediction,
    *,
    score_threshold: float = 0.001,
    top_k: int = 2000,
    names: Sequence[str] | None = None,
) -> list[Candidates]:
    """Each window's best candidates, best first: at most ``top_k`` (point, class) pairs above the threshold.

    A candidate extends from its point by the predicted distances, maybe beyond the window. Equal scores keep the
    order of points, then of classes. Raises ValueError if a score or distance is not finite.
    """
    logits, distances, mask, points = prediction
    broken = ((logits.isnan().any(-1) | ~distances.isfinite().flatten(2).all(-1)) & mask).any(1)  # [B]
    if broken.any():
        window = int(broken.nonzero()[0])
        what = f"window {window}" if names is None else f"video {names[window]}"
        raise ValueError(f"{what}: the network's scores or segments are not finite; use test.precision=fp32")
    classes = logits.shape[-1]
    # -1 is below any threshold, so padded points never become candidates.
    scores = logits.sigmoid().masked_fill(~mask[..., None], -1).flatten(1)  # [B, N * K]
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    scores = scores[:, :top_k]
    order = order[:, :top_k]
    row = order if distances.ndim == 4 else order // classes  # a segment for each class of a point, or one for all
    segments = points.segments(distances).flatten(1, -2).take_along_dim(row[..., None], dim=1)  # [B, top_k, 2]
    counts = (scores > score_threshold).sum(1)
    columns = segments.double(), scores.double(), order % classes
    rows = zip(*(column.cpu().numpy() for column in columns), strict=True)
    return [Candidates(s[:n], p[:n], c[:n]) for (s, p, c), n in zip(rows, counts.tolist(), strict=True)]


# NMS first tries this many candidates for each segment that it may keep.
_FIRST_TRY = 8


def to_seconds(
    candidates: Candidates, grid: Grid, duration_s: float, *, reverse_view: bool = False, rounding: bool = True
) -> Candidates:
    """A window's candidates in grid steps -> in seconds on the video's forward clock, clipped to the video."""
    segments, scores, labels = candidates.columns
    segments = segments.astype(np.float64)
    if reverse_view:
        segments = mirror_segments(segments, grid.steps)
    segments = np.clip(grid.to_seconds(segments), 0.0, duration_s)
    moved = Candidates(segments, scores.astype(np.float64), labels.astype(np.int64))
    return _round(moved) if rounding else moved


def stitch(windows: Iterable[Candidates], settings: NmsConfig | None, *, rounding: bool = True) -> Candidates:
    """One video's detections, best first, from the candidates of all its windows, in seconds.

    The windows are iterated several times. Equal scores keep their order. No settings keep everything.
    """
    if settings is None:
        merged = suppress_overlaps(_concatenate(windows), None)
    else:
        merged = _nms_over_windows(windows, settings)
    return _round(merged) if rounding else merged


def _round(candidates: Candidates) -> Candidates:
    """Candidates rounded as by OpenTAD, before and after NMS."""
    segments, scores, labels = candidates.columns
    return Candidates(np.round(segments, 2), np.round(scores, 4), labels)


def _nms_over_windows(windows: Iterable[Candidates], settings: NmsConfig) -> Candidates:
    """NMS of the candidates of all windows, in bounded memory.

    NMS never raises a score. So candidates after the last kept one do not change the result. The best are
    tried first, then more, until all kept ones come before those not tried.
    """
    count = _FIRST_TRY * settings.max_segments
    while True:
        floor, ties = _floor_of_best(windows, count)
        tried = _concatenate(windows, floor, ties)
        kept, scores = nms_rows(*tried.columns, settings)
        if floor == -np.inf:
            break
        last = np.flatnonzero(tried.scores == floor)[-1]  # before all that were not tried
        if len(kept) == settings.max_segments and ((scores > floor) | (scores == floor) & (kept <= last)).all():
            break
        count *= 4
    best = Candidates(tried.segments[kept], scores, tried.labels[kept])
    if settings.voting_threshold > 0 and not settings.multiclass:
        threshold = settings.voting_threshold
        voters = _concatenate(_voters(window, best, threshold) for window in windows)
        best = replace(best, segments=vote(best.segments, voters.segments, voters.scores, threshold))
    return best


def _floor_of_best(windows: Iterable[Candidates], count: int) -> tuple[float, int]:
    """The lowest of the ``count`` best scores, and how many candidates have it; -inf, 0: these are all."""
    best, total = np.empty(0), 0
    for window in windows:
        check_candidates(window.segments, window.scores)
        best = np.concatenate((best, window.scores))
        total = total + len(window)
        if len(best) > 2 * count:
            best = np.partition(best, len(best) - count)[-count:]
    if total <= count:
        return -np.inf, 0
    best = np.partition(best, len(best) - count)[-count:]
    return float(best[0]), int((best == best[0]).sum())


def _voters(window: Candidates, kept: Candidates, threshold: float) -> Candidates:
    rows, _ = overlapping(window.segments, kept.segments, threshold)
    return window.take(np.unique(rows))


def _concatenate(windows: Iterable[Candidates], floor: float = -np.inf, ties: int = 0) -> Candidates:
    """The candidates with scores above ``floor``, and the first ``ties`` with that score."""
    parts = []
    for window in windows:
        chosen = window.scores > floor
        equal = np.flatnonzero(window.scores == floor)[:ties]
        chosen[equal] = True
        ties -= len(equal)
        parts.append(window.take(chosen))
    nothing = Candidates(np.empty((0, 2)), np.empty(0), np.empty(0, np.int64))
    columns = zip(nothing.columns, *(part.columns for part in parts), strict=True)
    return Candidates(*map(np.concatenate, columns))


def suppress_overlaps(candidates: Candidates, settings: NmsConfig | None) -> Candidates:
    if settings is not None:
        return Candidates(*nms(*candidates.columns, settings))
    return candidates.take(np.argsort(-candidates.scores, kind="stable"))


def _to_single(values: NDArray[Any]) -> NDArray[Any]:
    """Values in single precision, unless that would change them."""
    single = values.astype(np.float32)
    return single if np.array_equal(single, values) else values


@dataclass(frozen=True)
class _Windows:
    """The windows of a video, converted to seconds in each iteration."""

    convert: Sequence[Callable[[], Candidates]]

    def __iter__(self) -> Iterator[Candidates]:
        return (convert() for convert in self.convert)


class Stitcher:
    """Turns the windows of videos, in any order, into detections; one added twice counts once."""

    def __init__(self, settings: NmsConfig | None, *, rounding: bool = True) -> None:
        self.settings = settings
        self.rounding = rounding
        self.windows: dict[str, dict[float, Callable[[], Candidates]]] = {}  # of each video, by first frame
        self.durations_s: dict[str, float] = {}

    def add(
        self, video: str, candidates: Candidates, grid: Grid, duration_s: float, *, reverse_view: bool = False
    ) -> None:
        """Adds the candidates of one window, in the smallest exact types: 13 bytes each."""
        segments, scores, labels = candidates.columns
        smallest = labels.astype(np.min_scalar_type(labels.max(initial=0)))
        packed = Candidates(_to_single(segments), _to_single(scores), smallest)
        self.windows.setdefault(video, {})[grid.first_frame] = partial(
            to_seconds, packed, grid, duration_s, reverse_view=reverse_view, rounding=self.rounding
        )
        self.durations_s[video] = duration_s

    def update(self, other: Stitcher) -> None:
        for video, windows in other.windows.items():
            self.windows.setdefault(video, {}).update(windows)
        self.durations_s.update(other.durations_s)

    def split_off(self, videos: Iterable[str]) -> Stitcher:
        """Moves the windows of these videos to a stitcher of their own."""
        other = Stitcher(self.settings, rounding=self.rounding)
        for video in videos:
            other.windows[video] = self.windows.pop(video)
            other.durations_s[video] = self.durations_s.pop(video)
        return other

    def leave_out(self, videos: Iterable[str]) -> None:
        for video in videos:
            self.windows.pop(video, None)

    def video(self, name: str) -> Candidates:
        """One video's detections, best first; none if it has no windows."""
        windows = self.windows.get(name, {})
        in_order = [windows[frame] for frame in sorted(windows)]
        return stitch(_Windows(in_order), self.settings, rounding=self.rounding)

    def detections(
        self,
        classes: Sequence[str],
        videos: Iterable[str],
        *,
        relabel: Callable[[Candidates, str], Candidates] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> Detections:
        """The detections of videos on the forward clock; ``relabel`` changes candidates, given a video's name."""
        found = {name: self.video(name) for name in videos}
        if relabel is not None:
            found = {name: relabel(merged, name) for name, merged in found.items()}
        return Detections.from_videos(
            {name: merged.columns for name, merged in found.items()},
            classes=classes,
            durations_s={name: self.durations_s[name] for name in found if name in self.durations_s},
            details=details,
        )
