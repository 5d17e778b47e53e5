"""How far the starts and ends of detections are from those of the segments that they match.

A segment's detection is the one that matches it in the evaluation of mAP, at one tIoU; segments without a match are
left out, so the errors are of actions that were found. An error is the detection's time minus the segment's: a
positive one is late. All seeds of a result are pooled.

Intervals are by the bootstrap over videos and seeds (:mod:`bitad.evaluation.bootstrap`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bitad.data.annotations import Annotations
from bitad.data.detections import Detections
from bitad.evaluation.bootstrap import Draws, Estimate, check_resamples
from bitad.evaluation.mean_average_precision import Mask, Pairs, matched_pairs
from bitad.timeline import FloatArray, IntArray

TIOU = 0.5

# Resamples are computed in chunks, to bound memory: pairs times resamples.
_CELLS_AT_ONCE = 2_000_000

Figure = Estimate | float | None


@dataclass(frozen=True)
class SideErrors:
    """The errors of starts or of ends, in seconds; with intervals if there are resamples."""

    mean: Figure
    median: Figure
    mean_absolute: Figure
    median_absolute: Figure

    def to_json(self) -> dict[str, Any]:
        """All values in JSON's types."""
        return {name: _plain(getattr(self, name)) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class BoundaryErrors:
    """The boundary errors of one result, over all classes or of one; figures are None without a match.

    Args:
        segments: ground-truth segments, of one seed.
        matched: matched segments, of all seeds together.
        difference: the mean absolute error of ends minus that of starts; below 0, ends are found better.
    """

    segments: int
    matched: int
    start: SideErrors
    end: SideErrors
    difference: Figure

    def to_json(self) -> dict[str, Any]:
        """All values in JSON's types."""
        return {
            "segments": self.segments,
            "matched": self.matched,
            "start": self.start.to_json(),
            "end": self.end.to_json(),
            "end_minus_start": _plain(self.difference),
        }


@dataclass(frozen=True)
class ResultBoundaries:
    """The boundary errors of one result.

    Args:
        less: the mean absolute errors of starts and of ends over all classes minus those of the first result, paired;
            None for the first one.
    """

    seeds: int
    overall: BoundaryErrors
    per_class: dict[str, BoundaryErrors]
    less: tuple[Figure, Figure] | None = None

    def to_json(self) -> dict[str, Any]:
        """All values in JSON's types."""
        per_class = {label: one.to_json() for label, one in self.per_class.items()}
        less = None if self.less is None else dict(zip(("start", "end"), map(_plain, self.less), strict=True))
        return {"seeds": self.seeds, **self.overall.to_json(), "minus_first": less, "per_class": per_class}


def boundary_errors(
    ground_truth: Annotations,
    results: Mapping[str, Mapping[str, Detections]],
    *,
    tiou: float = TIOU,
    resamples: int | None = None,
    seed: int = 0,
) -> dict[str, ResultBoundaries]:
    """The boundary errors of results, by name.

    Args:
        results: by name and seed, detections on either clock.
        tiou: from which a detection matches a segment.
        resamples: of the bootstrap; None: no intervals.
        seed: of its random draws.

    Raises:
        ValueError: as :func:`~bitad.evaluation.mean_average_precision.evaluate`, or too few or too many resamples.
    """
    if resamples is not None:
        check_resamples(resamples)
    videos = ground_truth.videos
    draws = Draws.of(videos, resamples, seed) if resamples is not None else Draws.of_data(videos)
    made: dict[str, ResultBoundaries] = {}
    first: FloatArray | None = None
    for name, of_seeds in results.items():
        pairs = [matched_pairs(ground_truth, found, tiou=tiou) for found in of_seeds.values()]
        times = draws.shares(list(of_seeds)) * len(of_seeds)  # how often each seed is drawn
        made[name], absolute = _of_result(pairs, np.round(times).astype(np.int64), draws)
        if first is None:
            first = absolute
        else:
            start, end = absolute - first
            made[name] = replace(made[name], less=(_figure(start), _figure(end)))
    return made


def _of_result(pairs: Sequence[Pairs], times: IntArray, draws: Draws) -> tuple[ResultBoundaries, FloatArray]:
    """The errors, and the mean absolute errors of starts and ends in each resample, ``[2, 1 + R]``."""
    first = pairs[0]
    network = np.repeat(np.arange(len(pairs)), [len(one.video) for one in pairs])
    video = np.concatenate([one.video for one in pairs])
    place = np.array([draws.number[name] for name in first.videos], np.int64)[video]
    labels = np.concatenate([one.labels for one in pairs])
    errors = np.concatenate([one.found - one.truth for one in pairs])  # [n, 2]

    def of(rows: Mask, segments: int) -> tuple[BoundaryErrors, FloatArray]:
        columns = [errors[rows, 0], errors[rows, 1]]
        columns += [np.abs(column) for column in columns]
        means, medians = _means_and_medians(
            columns, place[rows], network[rows], draws.times.astype(np.int64), times
        )
        start, end = (
            SideErrors(*map(_figure, (means[side], medians[side], means[2 + side], medians[2 + side])))
            for side in (0, 1)
        )
        errors_of_rows = BoundaryErrors(segments, int(rows.sum()), start, end, _figure(means[3] - means[2]))
        return errors_of_rows, means[2:]

    overall, absolute = of(np.ones(len(labels), np.bool_), int(first.segments_per_class.sum()))
    result = ResultBoundaries(
        seeds=len(pairs),
        overall=overall,
        per_class={
            name: of(labels == label, int(first.segments_per_class[label]))[0]
            for label, name in enumerate(first.classes)
        },
    )
    return result, absolute


def _means_and_medians(
    columns: Sequence[FloatArray],
    place: IntArray,
    network: IntArray,
    of_videos: IntArray,  # [videos, 1 + R]
    of_networks: IntArray,  # [networks, 1 + R]
) -> tuple[FloatArray, FloatArray]:
    """The mean and the median of each column in each resample, ``[columns, 1 + R]``; nan where it has no row."""
    resamples = of_videos.shape[1]
    means, medians = np.full((2, len(columns), resamples), np.nan)
    n = len(place)
    step = max(1, _CELLS_AT_ONCE // max(1, n))
    orders = [np.argsort(column, kind="stable") for column in columns]
    for first in range(0, resamples if n else 0, step):
        chunk = slice(first, first + step)
        times = of_videos[:, chunk][place] * of_networks[:, chunk][network]  # [n, chunk]
        total = times.sum(axis=0)
        drawn = total > 0
        for i, (column, order) in enumerate(zip(columns, orders, strict=True)):
            means[i, chunk] = np.where(drawn, column @ times / np.maximum(total, 1), np.nan)
            reached = np.cumsum(times[order], axis=0)
            # The two values in the middle, which are one if the total is odd.
            middle = [(reached >= rank).argmax(axis=0) for rank in ((total + 1) // 2, total // 2 + 1)]
            value = (column[order][middle[0]] + column[order][middle[1]]) / 2
            medians[i, chunk] = np.where(drawn, value, np.nan)
    return means, medians


def _figure(figure: FloatArray) -> Figure:
    """Of a figure ``[1 + R]``; None if it is not defined."""
    if np.isnan(figure[0]):
        return None
    return Estimate.of(figure) if len(figure) > 1 else float(figure[0])


def _plain(figure: Figure) -> Any:
    return figure.to_json() if isinstance(figure, Estimate) else figure
