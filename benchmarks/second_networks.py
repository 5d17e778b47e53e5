"""What a second network adds: the gains of `second_direction.py`, with paired 95 % intervals, as tables and a figure.

The gain of two networks is their average mAP minus the mean of their own average mAPs, so a strong member is no gain.
Differences of gains are the decomposition: what the grid, another view of the frames, another encoder and reverse
playback add to a second network. All figures of a data set share the resamples of videos and seeds
(bitad.evaluation.bootstrap), so differences are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bitad.data.annotations import Annotations
from bitad.data.detections import Detections
from bitad.evaluation.bootstrap import Draws, Estimate
from bitad.evaluation.boundaries import ResultBoundaries, boundary_errors
from bitad.evaluation.ensembles import Choice, Ensemble, Network, ensemble_figures, resampled_maps, videos_of
from bitad.reports.measure_tables import boundary_table
from bitad.reports.tables import Cell, Difference, Row, Table
from bitad.timeline import FloatArray

FUSIONS = LATE, TRAINED = "late fusion", "3-3"
# More networks of one kind, and of both directions.
ENSEMBLES = ("2F", "F+B", "4F", "2F+2B")
BOUNDARY_TIOU = 0.5

# The parts of the gain: the control, and the one that is subtracted.
SEED, GRID, FLIP, ENCODER, DIRECTION = "seed", "grid", "flip", "encoder", "direction"
SEED_FIXED_SIDES = "seed, sides fixed"
PARTS = {
    "two networks (seed)": (SEED, None),
    "+ phase of the grid": (GRID, SEED),
    "+ mirrored frames": (FLIP, SEED_FIXED_SIDES),
    "+ another encoder": (ENCODER, SEED),
    "+ reverse playback": (DIRECTION, SEED),
    "reverse playback beyond the grid": (DIRECTION, GRID),
    "reverse playback beyond another encoder": (DIRECTION, ENCODER),
}


@dataclass(frozen=True)
class Pair:
    """Two kinds of networks that are fused; of late fusion all choices of seeds, of training those of each run.

    Args:
        members: of each trained run, by its seed.
        trained: the detections of each trained run.
    """

    first: str
    second: str
    members: Mapping[str, tuple[Network, Network]] = field(default_factory=dict)
    trained: Mapping[str, Detections] = field(default_factory=dict)

    @property
    def ensemble(self) -> Ensemble:
        """Of late fusion."""
        if self.first == self.second:
            return Ensemble(((self.first, 2),))
        return Ensemble(((self.first, 1), (self.second, 1)))


@dataclass(frozen=True)
class Single:
    """One network of another experiment, or of a longer training.

    Args:
        detections: by seed.
        parameters: relative to the first network of a pair.
        epochs: of one view of the data in training, those of a teacher included.
        passes: of the test, of one network on one view.
    """

    detections: Mapping[str, Detections]
    parameters: int
    epochs: str
    passes: int


@dataclass(frozen=True)
class Measured:
    """The detections of one data set.

    Args:
        networks: by kind and seed.
        pairs: by control; one is of both directions.
        singles: by title.
        fuse: for late fusion.
    """

    truth: Annotations
    tiou: Sequence[float]
    networks: Mapping[str, Mapping[str, Detections]]
    pairs: Mapping[str, Pair]
    fuse: Callable[[Sequence[Detections]], Detections]
    singles: Mapping[str, Single] = field(default_factory=dict)

    def part(self, part: str) -> Measured:
        """The same of the videos with this in their names; without other experiments."""
        if not part:
            return self

        def of(every: Mapping[str, Detections]) -> dict[str, Detections]:
            return {seed: found.take(np.flatnonzero(chosen(found)[found.video])) for seed, found in every.items()}

        def chosen(found: Detections) -> NDArray[np.bool_]:
            return np.array([part in name for name in found.videos], np.bool_)

        return replace(
            self,
            truth=self.truth.map(lambda video: video if part in video.name else None),
            networks={kind: of(every) for kind, every in self.networks.items()},
            pairs={control: replace(pair, trained=of(pair.trained)) for control, pair in self.pairs.items()},
            singles={},
        )


@dataclass(frozen=True, eq=False)
class Fused:
    """Two fused networks: average mAP and gain over the members, of the data and each resample ``[1 + R]``."""

    average: FloatArray
    gain: FloatArray
    fusions: int  # choices of networks, or trained runs


@dataclass(frozen=True, eq=False)
class Gains:
    """All figures of one data set."""

    measured: Measured
    resamples: int
    networks: Mapping[str, Mapping[str, FloatArray]]  # average mAP of each network, [1 + R]
    draws: Draws
    fused: Mapping[str, Mapping[str, Fused]]  # by fusion and control
    same_seeds: Mapping[str, Mapping[str, FloatArray]]  # average mAP of F + B of one seed, by fusion
    ensembles: Mapping[str, Fused]
    singles: Mapping[str, Mapping[str, FloatArray]]
    boundaries: Mapping[str, ResultBoundaries]

    def mean(self, of_seeds: Mapping[str, FloatArray]) -> FloatArray:
        """The mean over seeds, ``[1 + R]``."""
        shares = self.draws.shares(list(of_seeds))
        return np.asarray(np.einsum("sr,sr->r", shares, np.stack(list(of_seeds.values()))))

    def part(self, fusion: str, name: str) -> Estimate | None:
        """A part of the gain as a fraction (:data:`PARTS`); None where a control of it is missing."""
        control, less = PARTS[name]
        of_fusion = self.fused[fusion]
        if control not in of_fusion or (less is not None and less not in of_fusion):
            return None
        gain = of_fusion[control].gain
        return Estimate.of(gain if less is None else gain - of_fusion[less].gain)

    def tables(self) -> list[Table]:
        """Networks alone, gains, their parts, other experiments, more networks, and errors of starts and ends."""
        tables = [self._network_table(), self._gain_table(), self._part_table()]
        if self.singles:
            tables.append(self._single_table())
        if self.ensembles:
            tables.append(self._ensemble_table())
        boundaries = boundary_table(dict(self.boundaries), tiou=BOUNDARY_TIOU, resamples=self.resamples)
        return [*tables, boundaries]

    def json(self) -> dict[str, Any]:
        """All figures as fractions, unrounded."""

        def of_fused(one: Fused) -> dict[str, Any]:
            return {
                "average_map": Estimate.of(one.average).to_json(),
                "gain": Estimate.of(one.gain).to_json(),
                "fusions": one.fusions,
            }

        return {
            "networks": {
                title: {seed: float(figure[0]) for seed, figure in of_kind.items()}
                for title, of_kind in {**self.networks, **self.singles}.items()
            },
            "fused": {
                fusion: {name: of_fused(one) for name, one in of.items()} for fusion, of in self.fused.items()
            },
            "parts": {
                fusion: {name: part.to_json() for name in PARTS if (part := self.part(fusion, name)) is not None}
                for fusion in self.fused
            },
            "ensembles": {name: of_fused(one) for name, one in self.ensembles.items()},
            "boundaries": {name: one.to_json() for name, one in self.boundaries.items()},
        }

    def _network_table(self) -> Table:
        rows: list[Row] = []
        for title, of_kind in self.networks.items():
            averages = [100 * float(figure[0]) for figure in of_kind.values()]
            spread = float(np.std(averages, ddof=1)) if len(averages) > 1 else None
            rows.append((title, Estimate.of(self.mean(of_kind)) * 100, spread, len(of_kind)))
        notes = ["Means over seeds; the spread is the standard deviation (n - 1).", self._intervals()]
        return Table("Single networks, average mAP (%)", ("network", "average", "spread", "seeds"), rows, notes)

    def _gain_table(self) -> Table:
        rows: list[Row] = []
        for control, pair in self.measured.pairs.items():
            cells: list[Cell] = []
            for fusion in FUSIONS:
                one = self.fused[fusion].get(control)
                cells += (
                    [None, None, None] if one is None else [_estimate(one.average), _signed(one.gain), one.fusions]
                )
            rows.append((control, f"{pair.first} + {pair.second}", *cells))
        columns = [
            f"{what}, {fusion}" for fusion in FUSIONS for what in ("average", "gain over members", "fusions")
        ]
        notes = [
            "Late fusion: mean over all choices of seeds. 3-3: mean over seeds, by its first network's basis. Gain: "
            "minus the mean of the average mAPs of both members.",
            self._intervals(),
        ]
        return Table("Two networks, average mAP (%)", ("control", "networks", *columns), rows, notes)

    def _part_table(self) -> Table:
        rows: list[Row] = []
        for name, (control, less) in PARTS.items():
            parts = [self.part(fusion, name) for fusion in FUSIONS]
            if any(parts):
                cells = [None if part is None else _difference(part) for part in parts]
                rows.append((name, control if less is None else f"{control} − {less}", *cells))
        notes = ["Differences of gains over members.", self._intervals()]
        return Table("Parts of the gain, points of average mAP", ("part", "gain of", *FUSIONS), rows, notes)

    def _single_table(self) -> Table:
        """Other experiments beside F and both fusions of F and B, each over the seeds of the experiment."""
        rows: list[Row] = []
        forward = self.measured.pairs[DIRECTION].first
        for title, single in self.measured.singles.items():
            of_seeds = self.singles[title]
            average, first, late, trained = (
                self.mean({seed: figures[seed] for seed in of_seeds})
                for figures in (of_seeds, self.networks[forward], self.same_seeds[LATE], self.same_seeds[TRAINED])
            )
            gain = trained[0] - first[0]
            kept = 100 * float((average[0] - first[0]) / gain) if gain > 0 else None
            about = (f"{single.parameters}x", single.epochs, single.passes, _estimate(average))
            less = (_signed(average - other) for other in (first, late, trained))
            rows.append((title, *about, *less, kept, len(of_seeds)))
        columns = ("parameters", "epochs", "test passes", "average", f"− {forward}", "− late fusion", "− 3-3")
        notes = [
            "Epochs: of one view of the training data, of all networks together; a teacher's are added. Differences "
            "are over the same seeds; F and B of a fusion have one seed. Kept: the share of 3-3's gain over F.",
            self._intervals(),
        ]
        title = "One network for the compute of two, average mAP (%)"
        return Table(title, ("network", *columns, "kept (%)", "seeds"), rows, notes)

    def _ensemble_table(self) -> Table:
        rows: list[Row] = [
            (name, _estimate(one.average), _signed(one.gain), one.fusions) for name, one in self.ensembles.items()
        ]
        less = {"F+B": "2F", "2F+2B": "4F"}
        for name, other in less.items():
            if name in self.ensembles and other in self.ensembles:
                one, two = self.ensembles[name], self.ensembles[other]
                rows.append((f"{name} − {other}", None, _signed(one.gain - two.gain), None))
        notes = ["Means over choices of seeds; differences are of gains.", self._intervals()]
        columns = ("networks", "average", "gain over members", "choices")
        return Table("Late fusion of more networks, average mAP (%)", columns, rows, notes)

    def _intervals(self) -> str:
        return f"In brackets: 95 % intervals over videos and seeds, {self.resamples:,} paired resamples of a bootstrap."


def gains(
    measured: Measured,
    *,
    resamples: int,
    workers: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Gains:
    """Evaluates all networks, late fusions and trained pairs on the same resamples.

    Args:
        workers: as of :func:`~bitad.evaluation.ensembles.ensemble_figures`.

    Raises:
        ValueError: too few or too many resamples, or a pair of kinds that were not trained.
    """
    of_singles = {title: single.detections for title, single in measured.singles.items()}
    of_pairs = {f"3-3 {control}": pair.trained for control, pair in measured.pairs.items()}
    everything = {**measured.networks, **of_singles, **of_pairs}
    draws = Draws.of(videos_of(measured.truth, everything), resamples, seed=0)

    same_seeds: dict[str, Choice] = {}
    both = measured.pairs[DIRECTION]
    if measured.singles:
        forward, reverse = measured.networks[both.first], measured.networks[both.second]
        same_seeds = {seed: (forward[seed], reverse[seed]) for seed in forward}
    sets: dict[tuple[str, str], Choice] = {
        (title, seed): (found,) for title, of_seeds in everything.items() for seed, found in of_seeds.items()
    }
    sets |= {(LATE, seed): both for seed, both in same_seeds.items()}
    maps = resampled_maps(
        measured.truth, sets.values(), measured.fuse, tiou=measured.tiou, draws=draws, workers=workers
    )
    averages: dict[str, dict[str, FloatArray]] = {LATE: {}, **{title: {} for title in everything}}
    for (title, seed), figure in zip(sets, maps, strict=True):
        averages[title][seed] = figure.mean(axis=0)
    seeds = {title: list(of_seeds) for title, of_seeds in measured.networks.items()}
    known = {pair.ensemble: None for pair in measured.pairs.values()}
    for one in map(Ensemble.parse, ENSEMBLES):
        if all(len(seeds.get(label, ())) >= count for label, count in one.sizes):
            known[one] = None
    possible = [one for one in known if all(len(seeds[label]) >= count for label, count in one.sizes)]
    figures = {
        one.ensemble.name: Fused(one.average_map, one.gain, one.choices)
        for one in ensemble_figures(
            measured.truth,
            measured.networks,
            possible,
            measured.fuse,
            tiou=measured.tiou,
            draws=draws,
            workers=workers,
            on_progress=on_progress,
        )
    }
    fused: dict[str, dict[str, Fused]] = {LATE: {}, TRAINED: {}}
    for control, pair in measured.pairs.items():
        if pair.ensemble.name in figures:
            fused[LATE][control] = figures[pair.ensemble.name]
        if not pair.trained:
            continue
        whole = np.stack(list(averages[f"3-3 {control}"].values()))
        alone = [
            np.mean([averages[title][seed] for title, seed in pair.members[trained]], axis=0)
            for trained in pair.trained
        ]
        shares = draws.shares(list(pair.trained))
        fused[TRAINED][control] = Fused(
            np.einsum("sr,sr->r", shares, whole),
            np.einsum("sr,sr->r", shares, whole - np.stack(alone)),
            len(pair.trained),
        )
    same = {LATE: averages[LATE], TRAINED: averages[f"3-3 {DIRECTION}"] if measured.singles else {}}
    directions = {title: measured.networks[title] for title in (both.first, both.second)}
    return Gains(
        measured,
        resamples,
        {title: averages[title] for title in measured.networks},
        draws,
        fused,
        same,
        {name: figures[name] for name in ENSEMBLES if name in figures},
        {title: averages[title] for title in of_singles},
        boundary_errors(measured.truth, directions, tiou=BOUNDARY_TIOU, resamples=resamples),
    )


def plot_parts(every: Mapping[str, Gains], path: Path) -> None:
    """The parts of the gain with their intervals, a panel per data set."""
    with matplotlib.rc_context({"font.size": 9, "svg.fonttype": "path"}):
        figure = Figure(figsize=(3.2 * len(every) + 2.2, 3.4), layout="constrained")
        panels = figure.subplots(1, len(every), sharex=True, sharey=True, squeeze=False)[0]
        names = list(PARTS)
        for panel, (title, one) in zip(panels, every.items(), strict=True):
            for offset, colour, fusion in ((-0.17, "#4477aa", LATE), (0.17, "#cc6677", TRAINED)):
                for place, name in enumerate(names):
                    part = one.part(fusion, name)
                    if part is None:
                        continue
                    value, low, high = (100 * figure for figure in (part.value, part.low, part.high))
                    label = fusion if name == names[0] else None
                    spread = [[value - low], [high - value]]
                    panel.errorbar(value, place + offset, xerr=spread, fmt="o", ms=4, color=colour, label=label)
            panel.axvline(0, color="0.6", lw=0.8)
            panel.axhline(4.5, color="0.85", lw=0.8)
            panel.set_title(title, fontsize=10)
            panel.set_xlabel("points of average mAP")
            panel.set_yticks(range(len(names)), names)
            panel.grid(axis="x", color="0.92")
        panels[0].invert_yaxis()
        panels[0].legend(loc="lower right", fontsize=8)
        figure.savefig(path, dpi=150)


def _estimate(figure: FloatArray) -> Estimate:
    return Estimate.of(figure) * 100


def _difference(part: Estimate) -> Difference:
    return Difference(100 * part.value, 100 * part.low, 100 * part.high)


def _signed(figure: FloatArray) -> Difference:
    return _difference(Estimate.of(figure))
