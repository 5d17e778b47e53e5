"""Late fusion of any number of networks: every choice of networks, the gain over their mean, and paired intervals.

An ensemble such as ``2F+2B`` is of two networks that are called F and two that are called B. With several seeds there
are several choices of networks; its figures are means over all of them. The gain of a choice is its figure minus the
mean of its members' figures, so a strong member is no gain.

Intervals are by the bootstrap over videos and seeds (:mod:`bitad.evaluation.bootstrap`). A resample draws as many seeds
of each kind of network as there are, with replacement. A choice of networks counts as often as it can be made from
those drawn; a network is never fused with itself. Where no choice can be made, the resample is left out. All ensembles
share the resamples, so their differences are paired.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import comb, prod
from typing import Any

import numpy as np

from bitad.data.annotations import Annotations
from bitad.data.detections import Detections
from bitad.evaluation.bootstrap import Draws, Estimate, check_resamples, mean_over_classes, resampled_ap
from bitad.evaluation.mean_average_precision import match
from bitad.runtime.workers import in_processes
from bitad.timeline import FloatArray

# Of more choices of networks, so many are drawn at random: each is merged and evaluated.
MAX_CHOICES = 100

# A network: its label in tables, and its seed.
Network = tuple[str, str]
# The detections of one network, or of those that are fused.
Choice = tuple[Detections, ...]


@dataclass(frozen=True)
class Ensemble:
    """How many networks of each label are fused."""

    sizes: tuple[tuple[str, int], ...]

    @staticmethod
    def parse(text: str) -> Ensemble:
        """``2F+2B``, ``F+B`` or ``F+F`` (the same as ``2F``); raises ValueError for anything else."""
        sizes: Counter[str] = Counter()
        for part in text.split("+"):
            found = re.fullmatch(r"\s*([0-9]*)\s*(\D.*?)\s*", part)
            if found is None or found[1] == "0":
                raise ValueError(
                    f"{text!r} is no ensemble; name networks and their number, such as F+B, 2F or 2F+2B"
                )
            sizes[found[2]] += int(found[1] or 1)
        if sizes.total() < 2:
            raise ValueError(f"{text!r} is one network; an ensemble has at least two, such as F+B or 2F")
        return Ensemble(tuple(sizes.items()))

    @property
    def name(self) -> str:
        """As in tables: ``2F+2B``."""
        return "+".join(f"{count if count > 1 else ''}{label}" for label, count in self.sizes)

    @property
    def networks(self) -> int:
        """The number of networks that are fused."""
        return sum(count for _, count in self.sizes)

    def possible(self, seeds: Mapping[str, Sequence[str]]) -> int:
        """The number of choices of networks, given the seeds of each label; raises ValueError if there is none."""
        for label, count in self.sizes:
            if label not in seeds:
                raise ValueError(
                    f"ensemble {self.name}: no network is called {label!r}; the networks are {'; '.join(seeds)}"
                )
            if len(seeds[label]) < count:
                raise ValueError(
                    f"ensemble {self.name} needs {count} networks {label}, of different seeds, and there are only "
                    f"{len(seeds[label])}; train more"
                )
        return prod(comb(len(seeds[label]), count) for label, count in self.sizes)

    def choices(self, seeds: Mapping[str, Sequence[str]]) -> list[tuple[Network, ...]]:
        """Every choice of networks, or :data:`MAX_CHOICES` of them, always the same; raises as :meth:`possible`."""
        possible = self.possible(seeds)
        of_labels = (combinations([(label, seed) for seed in seeds[label]], count) for label, count in self.sizes)
        every = (sum(parts, ()) for parts in product(*of_labels))
        if possible <= MAX_CHOICES:
            return list(every)
        kept = set(np.random.default_rng(0).choice(possible, MAX_CHOICES, replace=False).tolist())
        return [choice for number, choice in enumerate(every) if number in kept]


@dataclass(frozen=True)
class EnsembleResult:
    """The figures of an ensemble, as fractions: means over choices of networks, with intervals if there are resamples.

    Args:
        choices: the number of choices of networks that were fused.
        possible: the number of all choices.
        gain: the average mAP minus that of the members' mean.
        compared: the name of the first ensemble of as many networks; None for that one itself.
        difference: the average mAP minus that of ``compared``.
    """

    name: str
    networks: int
    choices: int
    possible: int
    map_per_tiou: tuple[Estimate | float, ...]
    average_map: Estimate | float
    gain: Estimate | float
    compared: str | None
    difference: Estimate | float | None

    def to_json(self) -> dict[str, Any]:
        """All values in JSON's types."""

        def plain(figure: Estimate | float | None) -> Any:
            return figure.to_json() if isinstance(figure, Estimate) else figure

        return {
            "networks": self.networks,
            "choices": self.choices,
            "possible": self.possible,
            "map": [plain(figure) for figure in self.map_per_tiou],
            "average_map": plain(self.average_map),
            "gain": plain(self.gain),
            "compared": self.compared,
            "difference": plain(self.difference),
        }


@dataclass(frozen=True, eq=False)
class EnsembleFigures:
    """The figures of an ensemble, of the data and of each resample: means over choices of networks."""

    ensemble: Ensemble
    choices: int
    possible: int
    map_per_tiou: FloatArray  # [n_tiou, 1 + R]; nan where no choice can be made of the drawn seeds
    gain: FloatArray  # [1 + R]

    @property
    def average_map(self) -> FloatArray:
        """``[1 + R]``."""
        return np.asarray(self.map_per_tiou.mean(axis=0))


def evaluate_ensembles(
    ground_truth: Annotations,
    networks: Mapping[str, Mapping[str, Detections]],
    ensembles: Sequence[Ensemble],
    fuse: Callable[[Sequence[Detections]], Detections],
    *,
    tiou: Sequence[float],
    resamples: int | None = None,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[EnsembleResult]:
    """Fuses and evaluates every choice of networks of each ensemble.

    Args:
        networks: detections on the forward clock, by label and seed.
        fuse: merges detections, such as ``bitad.inference.merge.merge``.
        resamples: of the bootstrap; None: no intervals.
        seed: of the random draws.

    Raises:
        ValueError: an ensemble is given twice or cannot be formed, or too few or too many resamples.
    """
    if resamples is not None:
        check_resamples(resamples)
    videos = videos_of(ground_truth, networks)
    draws = Draws.of(videos, resamples, seed) if resamples is not None else Draws.of_data(videos)
    figures = ensemble_figures(
        ground_truth, networks, ensembles, fuse, tiou=tiou, draws=draws, on_progress=on_progress
    )
    first: dict[int, EnsembleFigures] = {}  # by the number of networks
    results = []
    for one in figures:
        compared = first.setdefault(one.ensemble.networks, one)
        is_first = compared is one
        results.append(
            EnsembleResult(
                name=one.ensemble.name,
                networks=one.ensemble.networks,
                choices=one.choices,
                possible=one.possible,
                map_per_tiou=tuple(map(_estimate, one.map_per_tiou)),
                average_map=_estimate(one.average_map),
                gain=_estimate(one.gain),
                compared=None if is_first else compared.ensemble.name,
                difference=None if is_first else _estimate(one.average_map - compared.average_map),
            )
        )
    return results


def videos_of(ground_truth: Annotations, networks: Mapping[str, Mapping[str, Detections]]) -> list[str]:
    """The videos of the ground truth, and others with detections."""
    videos = dict.fromkeys(ground_truth.videos)
    for of_label in networks.values():
        for found in of_label.values():
            videos |= dict.fromkeys(found.videos[i] for i in np.unique(found.video))
    return list(videos)


def ensemble_figures(
    ground_truth: Annotations,
    networks: Mapping[str, Mapping[str, Detections]],
    ensembles: Sequence[Ensemble],
    fuse: Callable[[Sequence[Detections]], Detections],
    *,
    tiou: Sequence[float],
    draws: Draws,
    workers: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[EnsembleFigures]:
    """As :func:`evaluate_ensembles`, with the figures of every resample, for differences between any of them.

    Args:
        draws: of all videos (:func:`videos_of`).
        workers: processes that fuse and evaluate, to which ``fuse`` can be sent; 0: this one.
    """
    seeds = {label: list(of_label) for label, of_label in networks.items()}
    check_ensembles(ensembles, seeds)
    choices = {one: one.choices(seeds) for one in ensembles}
    used = sorted({network for of_one in choices.values() for choice in of_one for network in choice})
    times = {label: dict(zip(of, draws.shares(of), strict=True)) for label, of in seeds.items()}
    singly = [(network,) for network in used]
    fused = [*singly, *dict.fromkeys(choice for of_one in choices.values() for choice in of_one)]
    sets = [tuple(networks[label][one] for label, one in choice) for choice in fused]
    maps = resampled_maps(
        ground_truth, sets, fuse, tiou=tiou, draws=draws, workers=workers, on_progress=on_progress
    )
    figures = dict(zip(fused, maps, strict=True))
    results = []
    for ensemble, of_one in choices.items():
        weight = np.array([prod((times[label][one] for label, one in choice), start=1.0) for choice in of_one])
        with np.errstate(invalid="ignore"):
            weight = weight / weight.sum(axis=0)  # nan where no choice can be made
        whole, gain = 0.0, 0.0
        for share, choice in zip(weight, of_one, strict=True):
            figure = figures[choice]
            members = np.mean([figures[(network,)].mean(axis=0) for network in choice], axis=0)
            whole = whole + share * figure
            gain = gain + share * (figure.mean(axis=0) - members)
        results.append(
            EnsembleFigures(ensemble, len(of_one), ensemble.possible(seeds), np.asarray(whole), np.asarray(gain))
        )
    return results


def resampled_maps(
    ground_truth: Annotations,
    choices: Collection[Choice],
    fuse: Callable[[Sequence[Detections]], Detections],
    *,
    tiou: Sequence[float],
    draws: Draws,
    workers: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[FloatArray]:
    """mAP of each choice of detections, which are fused if there are several, ``[n_tiou, 1 + R]``.

    Args:
        draws, workers: as of :func:`ensemble_figures`.
    """
    figures: dict[int, FloatArray] = {}
    jobs = [(ground_truth, choice, fuse, tiou, draws) for choice in choices]
    for number, figure in in_processes(_resampled_map, jobs, workers=workers):
        if isinstance(figure, Exception):
            raise figure
        figures[number] = figure
        on_progress(len(figures), len(jobs))
    return [figures[number] for number in range(len(jobs))]


def _resampled_map(
    ground_truth: Annotations,
    choice: Choice,
    fuse: Callable[[Sequence[Detections]], Detections],
    tiou: Sequence[float],
    draws: Draws,
) -> FloatArray:
    found = choice[0] if len(choice) == 1 else fuse(choice)
    return mean_over_classes(resampled_ap(match(ground_truth, found, tiou=tiou), draws))


def check_ensembles(ensembles: Sequence[Ensemble], seeds: Mapping[str, Sequence[str]]) -> None:
    """Raises ValueError if an ensemble is given twice, or cannot be formed of the seeds of each label."""
    if twice := [name for name, count in Counter(one.name for one in ensembles).items() if count > 1]:
        raise ValueError(f"ensemble {twice[0]} is given twice; name each once")
    for one in ensembles:
        one.possible(seeds)


def _estimate(figure: FloatArray) -> Estimate | float:
    """Of a figure ``[1 + R]``; without resamples the figure itself."""
    return Estimate.of(figure) if len(figure) > 1 else float(figure[0])
