"""How certain figures are: percentile intervals by the bootstrap over videos and seeds (Efron 1979).

A resample draws as many videos as there are, with replacement, and computes every figure anew. A video that is drawn
twice counts twice: its segments and its detections are there as two separate videos. In the ranking, the copies of a
detection follow one another. A class without ground truth in a resample is left out of its mean over classes. The
videos are those of the ground truth, and others with detections, which are false positives.

Where a result has several seeds (trainings), a resample also draws as many seeds as there are, with replacement, and
takes the mean over them: the drawn seeds, on the drawn videos. Results of the same seeds draw the same ones.

An interval lies between the 2.5th and the 97.5th percentile of a figure over all resamples. All results are computed
on the same resamples, so the intervals of their differences are paired: what makes a video hard for both cancels out.

Detections are only matched within their video, so which are true positives is computed once. A resample is then a
weighted AP, which weighs each detection by how often its video was drawn.

B. Efron, Bootstrap methods: another look at the jackknife, The Annals of Statistics 7(1), 1979; B. Efron and R. J.
Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile intervals).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitad.evaluation.mean_average_precision import Matches
from bitad.timeline import FloatArray, IntArray

# The percentiles of an interval are uncertain with fewer; more only cost time and memory.
MIN_RESAMPLES, MAX_RESAMPLES = 100, 10_000

LEVEL = 0.95

# Resamples are computed in chunks, to bound memory: detections of a class times resamples.
_CELLS_AT_ONCE = 2_000_000

# If fewer than one in so many detections is a true positive, only the sums between true positives are computed.
_FEW = 20


@dataclass(frozen=True)
class Estimate:
    """A figure, and its interval."""

    value: float
    low: float
    high: float

    @staticmethod
    def of(figure: FloatArray) -> Estimate:
        """Of a figure ``[1 + R]``, that of the data first; resamples in which it is not defined (nan) are left out."""
        resampled = figure[1:][~np.isnan(figure[1:])]
        if np.isnan(figure[0]) or not resampled.size:
            return Estimate(float("nan"), float("nan"), float("nan"))
        tail = 50 * (1 - LEVEL)
        low, high = np.percentile(resampled, [tail, 100 - tail]).tolist()
        return Estimate(float(figure[0]), low, high)

    def __mul__(self, factor: float) -> Estimate:
        """In other units; ``factor`` is above 0."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)

    def to_json(self) -> dict[str, float]:
        """The three numbers."""
        return {"value": self.value, "low": self.low, "high": self.high}


def check_resamples(resamples: int) -> None:
    """Raises ValueError unless so many resamples can be drawn."""
    if not MIN_RESAMPLES <= resamples <= MAX_RESAMPLES:
        raise ValueError(
            f"{resamples} is not a useful number of resamples; give {MIN_RESAMPLES} to {MAX_RESAMPLES:,}, such as 1000"
        )


@dataclass(frozen=True, eq=False)
class Draws:
    """What each of R resamples draws. Column 0 is the data itself: each video once, each seed alike."""

    number: dict[str, int]  # of each video
    times: NDArray[np.int32]  # [videos, 1 + R], how often each video is drawn
    seed: int

    @staticmethod
    def of(videos: Iterable[str], resamples: int, seed: int) -> Draws:
        """Raises as :func:`check_resamples`."""
        check_resamples(resamples)
        data = Draws.of_data(videos)
        n = len(data.number)
        drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
        return Draws(data.number, np.concatenate([data.times, drawn.T], axis=1, dtype=np.int32), seed)

    @staticmethod
    def of_data(videos: Iterable[str]) -> Draws:
        """The data itself, and no resample."""
        number = {name: i for i, name in enumerate(dict.fromkeys(videos))}
        return Draws(number, np.ones((len(number), 1), np.int32), 0)

    @staticmethod
    def of_matches(matches: Sequence[Matches], resamples: int, seed: int) -> Draws:
        """Of the videos of their ground truth, and others with detections; raises as :func:`check_resamples`."""
        truth = matches[0].truth.videos
        strangers = {name for one in matches for name in _with_detections(one)} - truth.keys()
        return Draws.of([*truth, *sorted(strangers)], resamples, seed)

    def shares(self, seeds: Sequence[str]) -> FloatArray:
        """The share of each seed in the mean over them, ``[seeds, 1 + R]``; the same ones for the same seeds."""
        n, resamples = len(seeds), self.times.shape[1] - 1
        rng = np.random.default_rng([self.seed, zlib.crc32("\n".join(seeds).encode())])
        shares = np.full((n, 1 + resamples), 1 / n)
        shares[:, 1:] = rng.multinomial(n, np.full(n, 1 / n), size=resamples).T / n
        return shares


def resampled_ap(matches: Matches, draws: Draws) -> FloatArray:
    """AP by class, tIoU and resample, ``[K, n_tiou, 1 + R]``; nan where a resample has no segment of the class."""
    truth = matches.truth
    n_classes, resamples = len(truth.classes), draws.times.shape[1]
    place = np.array([draws.number[name] for name in truth.videos], np.int64)
    found = np.zeros((n_classes, len(draws.number)))
    np.add.at(found, (truth.groups % n_classes, place[truth.groups // n_classes]), 1)
    video = np.array([draws.number.get(name, -1) for name in matches.videos], np.int64)[matches.video]
    by_class = np.argsort(matches.labels, kind="stable")
    sizes = np.bincount(matches.labels, minlength=n_classes)
    rows_of = np.split(by_class, np.cumsum(sizes)[:-1])
    ap = np.empty((n_classes, len(matches.thresholds), resamples))
    step = max(1, _CELLS_AT_ONCE // max(1, int(sizes.max())))
    for first in range(0, resamples, step):
        times = draws.times[:, first : first + step]
        segments = found @ times  # [K, chunk]
        for label, rows in enumerate(rows_of):
            gained = _gained(matches, rows, times[video[rows]])
            lacking = segments[label] == 0
            ap[label, :, first : first + step] = np.where(lacking, np.nan, gained / (segments[label] + lacking))
    return ap


def _gained(matches: Matches, rows: IntArray, times: NDArray[np.int32]) -> FloatArray:
    """The sum of precision over the true positives of one class, ``[n_tiou, chunk]``; ``times`` is of its rows."""
    gained = np.zeros((len(matches.thresholds), times.shape[1]))
    ever = np.flatnonzero(matches.correct[:, rows].any(axis=0))  # hits at any tIoU
    among_all = _drawn_until(ever, times)
    for i in range(len(gained)):
        hits = np.flatnonzero(matches.correct[i, rows])
        counted = matches.counted[i, rows]
        if counted.all():
            among = among_all[np.searchsorted(ever, hits)]
        else:
            among = _drawn_until(np.cumsum(counted)[hits] - 1, times[counted])
        drawn = times[hits]
        right = np.cumsum(drawn, axis=0, dtype=np.int32)
        sum_of = _sum_interpolated if matches.rule == "activitynet" else _sum_raw
        gained[i] = sum_of(drawn, right, among)
    return gained


def _drawn_until(hits: IntArray, times: NDArray[np.int32]) -> NDArray[np.int32]:
    """``cumsum(times)[hits]``, of ascending ``hits``."""
    if len(hits) * _FEW > len(times):
        return np.cumsum(times, axis=0, dtype=np.int32)[hits]
    # NumPy sums rows several times faster than it accumulates them.
    between = np.empty((len(hits), times.shape[1]), np.int32)
    for row, first, last in zip(between, [0, *(hits[:-1] + 1)], hits, strict=False):
        np.add.reduce(times[first : last + 1], axis=0, dtype=np.int32, out=row)
    return np.cumsum(between, axis=0, dtype=np.int32)


def _sum_interpolated(drawn: NDArray[np.int32], right: NDArray[np.int32], among: NDArray[np.int32]) -> FloatArray:
    """By ActivityNet's rule. Precision rises from copy to copy of a true positive, so all have that of the last."""
    precision = right / np.maximum(among, 1)
    best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    total: FloatArray = np.einsum("ij,ij->j", best, drawn)
    return total


def _sum_raw(drawn: NDArray[np.int32], right: NDArray[np.int32], among: NDArray[np.int32]) -> FloatArray:
    """By the THUMOS'14 kit's rule, whose AP is not interpolated: each copy has its own precision."""
    total = np.zeros(drawn.shape[1])
    right, among = right - drawn, among - drawn  # before the first copy
    for copy in range(1, int(drawn.max(initial=0)) + 1):
        total += np.where(drawn >= copy, (right + copy) / (among + copy), 0.0).sum(axis=0)
    return total


@dataclass(frozen=True)
class Intervals:
    """The figures of one result with their intervals, as fractions."""

    map_per_tiou: tuple[Estimate, ...]
    average_map: Estimate
    per_class: dict[str, Estimate]  # mean over tIoU

    def to_json(self) -> dict[str, Any]:
        """All values in JSON's types."""
        return {
            "average_map": self.average_map.to_json(),
            "map": [one.to_json() for one in self.map_per_tiou],
            "ap": {label: one.to_json() for label, one in self.per_class.items()},
        }


@dataclass(frozen=True, eq=False)
class _Figures:
    """The figures of one result: of the data, and of each resample."""

    per_tiou: FloatArray  # [n_tiou, 1 + R], mAP
    per_class: FloatArray  # [K, 1 + R], AP, mean over tIoU; nan where a resample lacks the class

    def minus(self, other: _Figures) -> _Figures:
        return _Figures(self.per_tiou - other.per_tiou, self.per_class - other.per_class)

    def intervals(self, classes: Sequence[str]) -> Intervals:
        return Intervals(
            map_per_tiou=tuple(map(Estimate.of, self.per_tiou)),
            average_map=Estimate.of(self.per_tiou.mean(axis=0)),
            per_class=dict(zip(classes, map(Estimate.of, self.per_class), strict=True)),
        )


@dataclass(frozen=True)
class Bootstrap:
    """Intervals of results, and of their differences to one of them.

    Args:
        videos: the number of videos that each resample draws.
        seed: of the random draws.
        seeds: the number of trainings of each result.
        results: by name.
        baseline: the name of the result that is subtracted; None for a single result.
        differences: every other result minus the baseline, on the same resamples.
    """

    resamples: int
    seed: int
    videos: int
    tiou: tuple[float, ...]
    seeds: dict[str, int]
    results: dict[str, Intervals]
    baseline: str | None
    differences: dict[str, Intervals]

    def to_json(self) -> dict[str, Any]:
        """All values in JSON's types."""
        return {
            "resamples": self.resamples,
            "seed": self.seed,
            "level": LEVEL,
            "videos": self.videos,
            "tiou": list(self.tiou),
            "seeds": self.seeds,
            "results": {name: one.to_json() for name, one in self.results.items()},
            "baseline": self.baseline,
            "differences": {name: one.to_json() for name, one in self.differences.items()},
        }


def bootstrap(
    results: Mapping[str, Mapping[str, Matches]],
    *,
    resamples: int = 1000,
    seed: int = 0,
    baseline: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Bootstrap:
    """The intervals of results, and of their differences to ``baseline`` (the first one by default).

    Args:
        results: by name, the matches of each seed, all with the same ground truth and thresholds
            (:func:`~bitad.evaluation.mean_average_precision.match`, or the THUMOS'14 kit's).
        seed: of the random draws; equal ones give equal intervals.

    Raises:
        ValueError: no results, results of another ground truth, too few or too many resamples, or no such baseline.
    """
    check_resamples(resamples)
    every = [matches for of_seeds in results.values() for matches in of_seeds.values()]
    if not every:
        raise ValueError("no results to bootstrap; give at least one")
    check_baseline(baseline, results)
    first = every[0]
    for other in every:
        if (other.truth.classes, other.truth.videos, other.thresholds.tolist()) != (
            first.truth.classes,
            first.truth.videos,
            first.thresholds.tolist(),
        ):
            raise ValueError("results of several ground truths or tIoU thresholds; bootstrap those of one")
    draws = Draws.of_matches(every, resamples, seed)
    figures: dict[str, _Figures] = {}
    done = 0
    for name, of_seeds in results.items():
        of_each = []
        for share, matches in zip(draws.shares(list(of_seeds)), of_seeds.values(), strict=True):
            ap = resampled_ap(matches, draws)
            of_each.append((share * mean_over_classes(ap), share * ap.mean(axis=1)))
            done += 1
            on_progress(done, len(every))
        figures[name] = _Figures(*(np.sum(figure, axis=0) for figure in zip(*of_each, strict=True)))
    classes = first.truth.classes
    if baseline is None and len(figures) > 1:
        baseline = next(iter(figures))
    return Bootstrap(
        resamples=resamples,
        seed=seed,
        videos=len(draws.number),
        tiou=tuple(first.thresholds.tolist()),
        seeds={name: len(of_seeds) for name, of_seeds in results.items()},
        results={name: one.intervals(classes) for name, one in figures.items()},
        baseline=baseline,
        differences={
            name: one.minus(figures[baseline]).intervals(classes)
            for name, one in figures.items()
            if baseline is not None and name != baseline
        },
    )


def check_baseline(baseline: str | None, names: Iterable[str]) -> None:
    """Raises ValueError unless ``baseline`` is among the names of results, or None."""
    if baseline is not None and baseline not in (known := list(names)):
        raise ValueError(f"no result is called {baseline!r}; the results are {'; '.join(known)}")


def _with_detections(matches: Matches) -> list[str]:
    return [matches.videos[i] for i in np.unique(matches.video)]


def mean_over_classes(ap: FloatArray) -> FloatArray:
    """mAP ``[n_tiou, 1 + R]`` of AP by class ``[K, n_tiou, 1 + R]``; nan where a resample has no class."""
    present = (~np.isnan(ap)).sum(axis=0)
    return np.where(present > 0, np.nansum(ap, axis=0) / np.maximum(present, 1), np.nan)
