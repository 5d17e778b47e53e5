"""Compares the results of runs over seeds, with each other and with late fusion of the baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from bitad.config.loading import differences, load_run_config
from bitad.config.names import EXPERIMENTS, RESULTS_OF_PAIRS, MergeMethod
from bitad.config.schema import Config
from bitad.data.annotations import Annotations
from bitad.data.detections import Detections, read_detections, require_any, under_names
from bitad.data.sources import read_evaluation_ground_truth
from bitad.evaluation.bootstrap import Bootstrap, bootstrap, check_baseline, check_resamples
from bitad.evaluation.boundaries import TIOU as BOUNDARY_TIOU
from bitad.evaluation.boundaries import ResultBoundaries, boundary_errors
from bitad.evaluation.direction_sensitivity import Sensitivity, sensitivity
from bitad.evaluation.ensembles import Ensemble, EnsembleResult, check_ensembles, evaluate_ensembles
from bitad.evaluation.mean_average_precision import Evaluation, Matches, evaluate, match
from bitad.inference.detect import detect_on_reversed_playback
from bitad.inference.merge import merge
from bitad.reports.measure_tables import (
    bootstrap_note,
    boundary_class_table,
    boundary_table,
    ensemble_table,
    estimates,
    evaluation_notes,
)
from bitad.reports.tables import Cell, Row, Table
from bitad.runtime.distributed import Ranks
from bitad.timeline import View
from bitad.training.metrics import METRICS, read_metrics
from bitad.weights.checkpoint import load_checkpoint

# The file that earlier versions wrote for the second network of a control.
_EARLIER = {"detections.second.json": "detections.reverse.json"}
# Groups of results.
BASELINES = "baselines"
UNTRAINED = "no training"
TRAINED_PAIRS = "experiments"
VARIANTS = "ablations and controls"
GROUPS = (BASELINES, UNTRAINED, TRAINED_PAIRS, VARIANTS)
# Baselines by what they see.
BASELINE_LABELS: Mapping[View, str] = {
    "forward": "F",
    "reverse": "B",
    "flipped": "flipped F",
    "reversed-features": "F on reversed features",
}


@dataclass(frozen=True)
class Run:
    """A run directory and its configuration."""

    directory: Path
    config: Config

    @staticmethod
    def read(directory: Path) -> Run:
        """The run in a directory; raises as :func:`~bitad.config.loading.load_run_config`."""
        return Run(directory, load_run_config(directory))

    @property
    def label(self) -> str:
        """The name in tables, without the seed: "F", "B", "distil", "3-1", "3-1, naive, random", ..."""
        config = self.config
        if config.experiment == "baseline":
            return "both directions" if config.direction == "both" else BASELINE_LABELS[config.direction]
        changes = ["two forward networks" if one == "two forward" else one for one in config.pair_changes]
        return ", ".join([config.experiment, *changes])

    @property
    def group(self) -> str:
        """The group in tables; ablations and controls differ from the defaults of their experiment."""
        config = self.config
        if config.experiment == "baseline":
            return VARIANTS if config.direction == "both" else BASELINES
        return TRAINED_PAIRS if config.variant == config.experiment else VARIANTS

    def detection_files(self) -> dict[str, Path]:
        """The detection files by the name of their result; a network with one view has one, named ""."""
        names: Mapping[str, str] = {"": "detections.json"}
        if len(self.config.views) == 2:
            names = RESULTS_OF_PAIRS[self.config.clocks[1]]
        files = {}
        for result, name in names.items():
            path = self.directory / name
            earlier = self.directory / _EARLIER.get(name, name)
            files[result] = path if path.is_file() else earlier
            if not files[result].is_file():
                raise FileNotFoundError(
                    f"run {self.directory} has no {name} yet; finish its training first (bitad train ... --resume)"
                )
        return files

    @property
    def result_file(self) -> Path:
        """The detection file of its final result: of two networks, of both merged."""
        return list(self.detection_files().values())[-1]

    def records(self) -> list[dict[str, Any]]:
        """The records of its ``metrics.jsonl``, if there is one."""
        path = self.directory / METRICS
        return read_metrics(path) if path.is_file() else []

    def losses(self) -> list[dict[str, Any]]:
        """Those of its training steps."""
        return [record for record in self.records() if record["kind"] == "training"]


def read_runs(directories: Sequence[Path]) -> list[Run]:
    """The runs in the order of tables; raises ValueError for two of one name, variant and seed."""
    if not directories:
        raise ValueError("no runs to compare; give at least one run directory")
    runs = [Run.read(directory) for directory in directories]
    known: dict[tuple[str, str, int], Run] = {}
    for run in runs:
        config = run.config
        first = known.setdefault((config.name, config.variant, config.seed), run)
        if first is not run:
            raise ValueError(
                f"{first.directory} and {run.directory} are both {config.name}-{config.variant} with seed "
                f"{config.seed}; leave one out, or train it with another name or seed"
            )

    def place(run: Run) -> tuple[Any, ...]:
        number = list(EXPERIMENTS).index(run.config.experiment)
        return run.group == VARIANTS, number, run.config.variant, run.config.name, run.config.seed

    return sorted(runs, key=place)


def common_ground_truth(runs: Sequence[Run]) -> Annotations:
    """The subset that all runs evaluated; raises ValueError if they differ in videos, segments, classes or tIoU."""
    truths: dict[tuple[object, ...], Annotations] = {}
    first = runs[0]
    for run in runs:
        data, test = run.config.data, run.config.test
        key = (data.annotations, data.classes, data.evaluation_subset, data.class_agnostic, test.video_scores)
        try:
            truth = truths[key] = truths.get(key) or read_evaluation_ground_truth(run.config)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"run {run.directory}: {error} in its config.yaml") from None
        common = next(iter(truths.values()))
        if test.tiou != first.config.test.tiou or _contents(truth) != _contents(common):
            raise ValueError(
                f"run {run.directory} was tested on {_test_of(run)}, run {first.directory} on {_test_of(first)}; "
                "compare runs of one test set and tIoU"
            )
    return common


def _test_of(run: Run) -> str:
    data = run.config.data
    tiou = ", ".join(f"{threshold:.4g}" for threshold in run.config.test.tiou)
    return f"subset {data.evaluation_subset} of {data.annotations} at tIoU {tiou}"


def _contents(truth: Annotations) -> tuple[Any, ...]:
    videos = []
    for video in truth.videos.values():
        videos.append((video.name, video.duration_s, video.segments.tolist(), video.labels))
    return truth.classes, sorted(videos)


# Keys that are not part of a recipe.
_NO_RECIPE = ("seed", "output", "init.", "threads", "data.", "training.workers", "training.tensorboard")
_ENCODER = "model.backbone.weights"


@dataclass(frozen=True, eq=False)
class Result:
    """A row of the comparison; evaluations are by seed, or by both seeds of two fused baselines."""

    label: str
    group: str
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)  # of detections by seed, if they are from runs

    @property
    def averages(self) -> list[float]:
        """Average mAP in percent, seed by seed."""
        return [100 * evaluation.average_map for evaluation in self.evaluations.values()]

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return float(np.mean(self.averages))

    @property
    def spread(self) -> float | None:
        """The standard deviation over seeds in percent points; None for one seed."""
        return float(np.std(self.averages, ddof=1)) if len(self.evaluations) > 1 else None


@dataclass(frozen=True)
class Ensembles:
    """Late fusions of several of the compared networks."""

    results: tuple[EnsembleResult, ...]
    tiou: tuple[float, ...]
    method: MergeMethod
    resamples: int | None

    def table(self) -> Table:
        """A row per ensemble."""
        return ensemble_table(self.results, tiou=self.tiou, method=self.method, resamples=self.resamples)

    def json(self) -> dict[str, Any]:
        """All content, unrounded."""
        return {"method": self.method, "results": {one.name: one.to_json() for one in self.results}}


@dataclass(frozen=True)
class Boundaries:
    """The errors of starts and ends of the compared runs' results."""

    results: dict[str, ResultBoundaries]
    baselines: tuple[str, ...]  # their labels
    resamples: int | None

    def tables(self) -> list[Table]:
        """Of every result over all classes; and of the baselines per class, if there are some."""
        tables = [boundary_table(self.results, tiou=BOUNDARY_TIOU, resamples=self.resamples)]
        if self.baselines:
            tables.append(boundary_class_table({label: self.results[label] for label in self.baselines}))
        return tables

    def json(self) -> dict[str, Any]:
        """All content in seconds, unrounded."""
        return {"tiou": BOUNDARY_TIOU, "results": {name: one.to_json() for name, one in self.results.items()}}


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs with the same ground truth, and their results, both in the order of tables."""

    runs: tuple[Run, ...]
    truth: Annotations  # of the evaluated videos
    results: tuple[Result, ...]
    bootstrap: Bootstrap | None = None  # of the same results
    ensembles: Ensembles | None = None
    boundaries: Boundaries | None = None
    part: str = ""  # what the names of the evaluated videos contain

    def best(self, *groups: str, label: str = "") -> Result | None:
        """The best result of some groups, among those whose label begins with ``label``."""
        results = (r for r in self.results if r.group in groups and r.label.startswith(label))
        return max(results, key=lambda r: r.mean, default=None)

    @property
    def reversals(self) -> list[Mapping[str, str]]:
        """The different ``data.reversal`` of the runs; empty of a run that learns from both directions without it."""
        stated: list[Mapping[str, str]] = []
        for config in (run.config for run in self.runs):
            if config.data.reversal is not None or config.learns_both_directions:
                stated.append(config.data.reversal or {})
        return [one for number, one in enumerate(stated) if one not in stated[:number]]

    def by_label(self) -> dict[str, list[Run]]:
        """The seeds of each variant."""
        return _by_label(self.runs)

    def table(self) -> Table:
        """Every result: mAP in percent at each tIoU and the average, mean and spread over seeds."""
        rows: list[Row] = []
        evaluations = {}
        for r in self.results:
            per_tiou = [100 * evaluation.map_per_tiou for evaluation in r.evaluations.values()]
            figures = [*np.mean(per_tiou, axis=0).tolist(), r.mean]
            if self.bootstrap is not None:
                figures = estimates(self.bootstrap, r.label)
            rows.append((r.label, *figures, r.spread, min(r.averages), len(r.evaluations)))
            for seed, evaluation in r.evaluations.items():
                evaluations[f"{r.label}, seed {seed}"] = evaluation
        tiou = self.runs[0].config.test.tiou
        measured = [*(f"{threshold:.4g}" for threshold in tiou), "average"]
        about = evaluation_notes(evaluations, counts=False)
        notes = [*self._column_notes(), *about, *self._recipe_notes()]
        columns = ["result", *measured, "spread", "lowest seed", "seeds"]
        return Table("mAP (%)", columns, rows, notes, best=measured if len(rows) > 1 else ())

    def loss_table(self) -> Table:
        """The first and last losses of the two networks of each variant; means over seeds."""
        rows: list[Row] = []
        names = ("forward basis", "reverse basis")
        for label, runs in self.by_label().items():
            if len(runs[0].config.views) == 1:
                continue
            if runs[0].config.clocks[1] == "forward":
                names = ("first network", "second network")
            seeds = [records for run in runs if (records := run.losses())]
            if seeds:
                first = [records[0] for records in seeds]
                total = _mean([record["loss"] for record in first])
                bases = [record["losses"].values() for record in first if record.get("losses")]
                each = [_mean(column) for column in zip(*bases, strict=True)] or [None, None]
                final = []
                for records in seeds:
                    last = records[-max(1, len(records) // 10) :]
                    final.append(np.mean([record["loss"] for record in last]))
                rows.append((label, total, *each, _mean(final), len(seeds)))
        notes = [
            "Means over seeds. The loss is the sum over both bases (in 1x, plus the agreement loss). At the end: "
            "the mean over the last tenth of the recorded steps."
        ]
        if any(run.config.design.shared for run in self.runs):
            notes.append(
                "Both losses of 1s are divided by the positive points of both views, others by those of one."
            )
        if any(row[0] == "1-1" for row in rows):
            notes.append(
                "The first step of 1-1 is that of the baselines alone; compare the first step of a fusion with it."
            )
        first_losses = (f"first, {name}" for name in names)
        columns = ("run", "first step", *first_losses, "at the end", "seeds")
        return Table("Training losses of two networks", columns, rows, notes)

    def json(self) -> dict[str, Any]:
        """All content, unrounded."""
        return {
            "runs": [
                {
                    "directory": str(run.directory),
                    "name": run.config.name,
                    "variant": run.config.variant,
                    "label": run.label,
                    "seed": run.config.seed,
                }
                for run in self.runs
            ],
            "results": {
                r.label: {
                    "group": r.group,
                    "average_map": r.mean / 100,
                    "spread": None if r.spread is None else r.spread / 100,
                    "seeds": {seed: evaluation.to_json() for seed, evaluation in r.evaluations.items()},
                }
                for r in self.results
            },
            "tables": [self.table().json(), self.loss_table().json()],
            **({} if self.bootstrap is None else {"bootstrap": self.bootstrap.to_json()}),
            **({} if self.ensembles is None else {"ensembles": self.ensembles.json()}),
            **({} if self.boundaries is None else {"boundaries": self.boundaries.json()}),
        }

    def _column_notes(self) -> Iterator[str]:
        yield "The columns are tIoU thresholds; means over seeds."
        if self.part:
            yield f"Evaluated on videos with {self.part!r} in their names: {len(self.truth.videos)}."
        if self.bootstrap is not None:
            yield bootstrap_note(self.bootstrap)
        if (subset := self.runs[0].config.data.validation_subset) is not None:
            yield f"Evaluated on the validation subset {subset}; `bitad test` tests data.test_subset."
        of_seeds = [r.label for r in self.results if len(r.evaluations) > 1]
        if of_seeds:
            yield "Spread: the standard deviation (n - 1) of the average over seeds."
        if any("another F" in label for label in of_seeds):
            yield "The control fuses the F of each seed with that of the next, so its pairs share networks."
        if (best := self.best(BASELINES)) and any(r.group != BASELINES for r in self.results):
            less = "" if best.spread is None else f"; minus its spread: {best.mean - best.spread:.2f}"
            yield f"The best baseline is {best.label}: {best.mean:.2f}{less}."

    def _recipe_notes(self) -> Iterator[str]:
        """The variants whose seeds were trained with different recipes."""
        for label, runs in self.by_label().items():
            first, *others = (run.config.model_dump(mode="json") for run in runs)
            keys = set()
            for other in others:
                for key, _, _ in differences(first, other):
                    if not key.startswith(_NO_RECIPE):
                        keys.add(key)
            if keys:
                yield f"{label}: the seeds also differ in {', '.join(sorted(keys))}."


def compare(
    runs: Sequence[Path],
    *,
    resamples: int | None = None,
    baseline: str | None = None,
    part: str = "",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Comparison:
    """Evaluates the detections of runs, and late fusion of the baselines among them.

    Late fusion merges F and B of each seed, by every method. Its controls merge F of each seed with F of the next
    seed, and of the same seed with flipped frames, with reversed features, and on another encoder (a run of another
    name, whose recipe differs in ``model.backbone.weights`` alone).

    Args:
        resamples: of a bootstrap of all results; None: no intervals.
        baseline: the label of the result to which the bootstrap takes differences; None: the first one.
        part: only evaluate videos with this in their names.

    Raises:
        FileNotFoundError: a folder is not a run directory, or a run lacks detections or annotations.
        ValueError: a run is given twice, runs were tested on different ground truth or tIoU, there is no such
            baseline or part, or too few or too many resamples.
    """
    found = read_runs(runs)
    files = []
    for run in found:
        for name, path in run.detection_files().items():
            label = _with_run_name(", ".join(filter(None, (run.label, name))), run, found)
            files.append((label, run, path))
    truth = common_ground_truth(found)
    if part:
        truth = truth.map(lambda video: video if part in video.name else None)
        if not truth.videos:
            raise ValueError(f"no tested video has {part!r} in its name")
    fusions = list(_fusions(found))
    if resamples is not None:
        check_resamples(resamples)
    labels = [label for label, *_ in files] + [label for label, *_ in fusions]
    check_baseline(baseline, dict.fromkeys(labels))
    tiou = found[0].config.test.tiou
    total = len(files) + len(fusions)
    whole = total if resamples is None else 2 * total
    results: dict[str, Result] = {}
    baselines: dict[Path, Detections] = {}
    matches: dict[str, dict[str, Matches]] = {}  # by label, and the seed that is drawn

    def add(label: str, run: Run, group: str, seeds: str, detections: Detections) -> Result:
        result = results.setdefault(label, Result(label, group))
        result.evaluations[seeds] = evaluate(truth, detections, tiou=tiou)
        if resamples is not None:
            matches.setdefault(label, {})[str(run.config.seed)] = match(truth, detections, tiou=tiou)
        done = sum(len(r.evaluations) for r in results.values())
        on_progress(done, whole)
        return result

    for label, run, path in files:
        detections = read_forward(path, truth, part)
        require_any(detections, truth.videos, path, "the runs' ground truth")
        seed = str(run.config.seed)
        add(label, run, run.group, seed, detections).files[seed] = path
        if run.group == BASELINES:
            baselines[run.directory] = detections
    for label, seeds, one, other, method in fusions:
        sets = baselines[one.directory], baselines[other.directory]
        add(label, one, UNTRAINED, seeds, _fuse(sets, one, method))
    ordered = sorted(results.values(), key=lambda r: GROUPS.index(r.group))
    intervals = None
    if resamples is not None:
        intervals = bootstrap(
            {r.label: matches[r.label] for r in ordered},
            resamples=resamples,
            baseline=baseline,
            on_progress=lambda done, _: on_progress(total + done, whole),
        )
    return Comparison(tuple(found), truth, tuple(ordered), intervals, part=part)


def check_ensembles_of(runs: Sequence[Path], ensembles: Sequence[Ensemble]) -> None:
    """Raises ValueError if an ensemble cannot be formed of the single networks among the runs, or is given twice."""
    found = _single_networks(read_runs(runs))
    check_ensembles(ensembles, {label: [str(run.config.seed) for run in of] for label, of in found.items()})


def with_ensembles(
    comparison: Comparison,
    ensembles: Sequence[Ensemble],
    *,
    method: MergeMethod = "wsf",
    resamples: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Comparison:
    """Adds late fusions of any number of the compared baselines, called as in the table.

    Raises:
        ValueError: as :func:`~bitad.evaluation.ensembles.evaluate_ensembles`.
    """
    networks = {
        label: {
            str(run.config.seed): read_forward(run.detection_files()[""], comparison.truth, comparison.part)
            for run in runs
        }
        for label, runs in _single_networks(comparison.runs).items()
    }
    tiou = comparison.runs[0].config.test.tiou
    results = evaluate_ensembles(
        comparison.truth,
        networks,
        ensembles,
        lambda sets: _fuse(sets, comparison.runs[0], method),
        tiou=tiou,
        resamples=resamples,
        on_progress=on_progress,
    )
    return replace(comparison, ensembles=Ensembles(tuple(results), tuple(tiou), method, resamples))


def with_boundaries(comparison: Comparison, *, resamples: int | None = None) -> Comparison:
    """Adds the errors of starts and ends of every result of a run, at a tIoU of 0.5."""
    results = {
        one.label: {
            seed: read_forward(path, comparison.truth, comparison.part) for seed, path in one.files.items()
        }
        for one in comparison.results
        if one.files
    }
    errors = boundary_errors(comparison.truth, results, tiou=BOUNDARY_TIOU, resamples=resamples)
    baselines = tuple(one.label for one in comparison.results if one.group == BASELINES)
    return replace(comparison, boundaries=Boundaries(errors, baselines, resamples))


def _fuse(sets: Sequence[Detections], run: Run, method: MergeMethod) -> Detections:
    return merge(*sets, method=method, settings=run.config.test.nms.suppression)


def read_forward(path: Path, truth: Annotations, part: str = "") -> Detections:
    """The detections of a file on the forward clock, with the video names of the ground truth, of a part of them."""
    found = under_names(read_detections(path).forward(), truth.videos, path)
    if not part:
        return found
    kept = np.array([part in name for name in found.videos], np.bool_)
    return found.take(np.flatnonzero(kept[found.video]))


def _fusions(runs: Sequence[Run]) -> Iterator[tuple[str, str, Run, Run, MergeMethod]]:
    """The late fusions and controls of the baselines: label, seeds, both runs and the method."""
    for name in dict.fromkeys(run.config.name for run in runs):
        mine = [run for run in runs if run.config.name == name]
        forward = [run for run in mine if run.label == "F"]
        following = forward[1:] + forward[: 1 if len(forward) > 2 else 0]
        titles = {
            "late fusion F + B": _of_same_seed(forward, [run for run in mine if run.label == "B"]),
            "control F + another F": list(zip(forward, following, strict=False)),
        }
        for view in ("flipped", "reversed-features"):
            others = [run for run in mine if run.config.views == (view,)]
            titles[f"control F + {BASELINE_LABELS[view]}"] = _of_same_seed(forward, others)
        on_encoders = [
            run for run in runs if run.label == "F" and forward and _is_on_other_encoder(run, forward[0])
        ]
        titles["control F + F on another encoder"] = _of_same_seed(forward, on_encoders)
        for title, pairs in titles.items():
            for method in get_args(MergeMethod):
                label = f"{title}, {method}"
                for one, other in pairs:
                    seeds = dict.fromkeys((str(one.config.seed), str(other.config.seed)))
                    yield _with_run_name(label, one, runs), " + ".join(seeds), one, other, method


def _of_same_seed(runs: Sequence[Run], others: Sequence[Run]) -> list[tuple[Run, Run]]:
    by_seed = {run.config.seed: run for run in others}
    return [(run, by_seed[run.config.seed]) for run in runs if run.config.seed in by_seed]


def _is_on_other_encoder(run: Run, other: Run) -> bool:
    """Whether two runs differ in the pre-trained file alone; of two such runs, that of the later name is the other."""
    one, two = (each.config.model_dump(mode="json") for each in (run, other))
    keys = {key for key, _, _ in differences(one, two) if not key.startswith(_NO_RECIPE)}
    return keys == {"name", _ENCODER} and run.config.name > other.config.name


def _by_label(runs: Sequence[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(_with_run_name(run.label, run, runs), []).append(run)
    return found


def _single_networks(runs: Sequence[Run]) -> dict[str, list[Run]]:
    return {label: of_label for label, of_label in _by_label(runs).items() if of_label[0].group == BASELINES}


def _with_run_name(label: str, run: Run, runs: Sequence[Run]) -> str:
    """The label, with the name of the run if the runs have several names."""
    names = {other.config.name for other in runs}
    return label if len(names) == 1 else f"{label} ({run.config.name})"


def _mean(values: Sequence[float]) -> Cell:
    mean = float(np.mean(values))
    return mean if np.isfinite(mean) else "not finite"


def difference_table(comparison: Comparison) -> Table:
    """The differences of results of two networks to the best baseline, late fusion and control.

    The control is the same experiment with two forward networks, if there is one, or else late fusion of two F.
    """
    by_label = {result.label: result for result in comparison.results}
    best = comparison.best(BASELINES)
    late = comparison.best(UNTRAINED, label="late fusion")
    two_forward = comparison.best(UNTRAINED, label="control")
    rows: list[Row] = []
    other_seeds: dict[str, int] = {}  # compared results with another number of seeds
    for result in comparison.results:
        if result.group != TRAINED_PAIRS:
            continue
        seeds = len(result.evaluations)
        differences = []
        for other in (best, late, by_label.get(_control_of(result.label), two_forward)):
            differences.append(None if other is None else f"{result.mean - other.mean:+.2f}")
            if other is not None and len(other.evaluations) != seeds:
                other_seeds[other.label] = len(other.evaluations)
        reaches = None
        if best is not None:
            reaches = "yes" if result.mean >= best.mean - (best.spread or 0.0) else "no"
        rows.append((result.label, result.mean, *differences, reaches, seeds))
    notes = []
    compared = {
        "Best baseline": best,
        "Late fusion": late,
        "Control without fusion": two_forward,
    }
    for name, other in compared.items():
        if other is not None:
            notes.append(f"{name}: {other.label}, {other.mean:.2f}.")
    if controls := [label for label in map(_control_of, by_label) if label in by_label]:
        notes.append(
            f"Control of a fusion: the same experiment with two forward networks, such as {controls[0]!r}."
        )
    if other_seeds:
        seeds_of = ", ".join(f"{label} {count}" for label, count in other_seeds.items())
        notes.append(f"Not over the same seeds as the results compared with it: {seeds_of}.")
    notes.append("Within spread: at least the best baseline minus its standard deviation over seeds.")
    columns = ("− best baseline", "− late fusion", "− control", "within spread", "seeds")
    return Table(
        "Average mAP (%): difference to the baselines",
        ("result", "average", *columns),
        rows,
        notes,
    )


def _control_of(label: str) -> str:
    """The label of the control: "3-1, forward basis" -> "3-1, two forward networks, first network"."""
    experiment, _, basis = label.partition(", ")
    name = {"forward basis": "first network", "reverse basis": "second network"}.get(basis, basis)
    return f"{experiment}, two forward networks, {name}"


def sensitivity_of_runs(comparison: Comparison, ranks: Ranks) -> Sensitivity:
    """The direction sensitivity by all compared baselines; tests F on reversed playback."""
    if comparison.part:
        raise ValueError("direction sensitivity is of all tested videos; compare them without a part")
    truth = comparison.truth
    detections: dict[str, list[Detections]] = {"F": [], "B": []}
    reversed_playback = []
    for run in comparison.runs:
        if run.label in detections:
            detections[run.label].append(read_forward(run.detection_files()[""], truth))
    if not all(detections.values()):
        raise ValueError("direction sensitivity needs runs of F and of B; give both")
    for run in comparison.runs:
        if run.label == "F":
            checkpoint = load_checkpoint(run.directory)
            reversed_playback.append(detect_on_reversed_playback(checkpoint, ranks))
    return sensitivity(
        truth,
        forward=detections["F"],
        backward=detections["B"],
        reversed_playback=reversed_playback,
        tiou=comparison.runs[0].config.test.tiou,
    )


def late_fusion(comparison: Comparison, label: str) -> Detections:
    """The detections of a late fusion, of the first seed."""
    fusions = (fusion for fusion in _fusions(comparison.runs) if fusion[0] == label)
    _, _, one, other, method = next(fusions)
    sets = [read_forward(run.detection_files()[""], comparison.truth, comparison.part) for run in (one, other)]
    return _fuse(sets, one, method)
