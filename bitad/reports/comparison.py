"""Compares the results of runs over seeds, with each other and with late fusion of the baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np

from bitad.config.loading import differences, load_config
from bitad.config.names import EXPERIMENTS, RESULTS_OF_PAIRS, MergeMethod
from bitad.config.schema import Config
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.detections import Detections, read_detections, require_any, under_names
from bitad.data.sources import read_test_ground_truth
from bitad.evaluation.mean_average_precision import Evaluation, evaluate
from bitad.inference.merge import merge
from bitad.reports.tables import Cell, Table, evaluation_notes
from bitad.training.metrics import METRICS, read_metrics

# The file that earlier versions wrote for the second network of a control, although it is in forward time.
_EARLIER = {"detections.second.json": "detections.reverse.json"}


def label_of(config: Config) -> str:
    """The name of a run in tables, without its seed: "F", "B", "3-1", "3-1, naive, random", ..."""
    if config.design.networks == 1:
        return "F" if config.direction == "forward" else "B"
    words = (
        (config.pair.second == "forward", "two forward networks"),
        (config.pair.align == "naive", "naive"),
        (config.pair.fusion_init == "random", "random"),
        (config.pair.train_detector, "detector too"),
    )
    return ", ".join([config.experiment, *(word for holds, word in words if holds)])


@dataclass(frozen=True)
class Run:
    """A run directory and its configuration."""

    directory: Path
    config: Config

    @staticmethod
    def read(directory: Path) -> Run:
        """The run in a directory.

        Raises:
            FileNotFoundError: it is not a run directory.
            ConfigError: its configuration is invalid.
        """
        if not (directory / "config.yaml").is_file():
            raise FileNotFoundError(
                f"{directory} is not a run directory: it has no config.yaml; give a folder that `bitad train` wrote"
            )
        return Run(directory, load_config(directory / "config.yaml"))

    @property
    def label(self) -> str:
        return label_of(self.config)

    @property
    def is_ablation(self) -> bool:
        """Whether it differs from the defaults of its experiment."""
        return self.config.design.networks == 2 and self.config.variant != self.config.experiment

    @property
    def rank(self) -> tuple[bool, int, str]:
        """The sort key in tables: baselines, experiments in their order, then ablations and controls."""
        config = self.config
        return self.is_ablation, list(EXPERIMENTS).index(config.experiment), config.variant

    def detection_files(self) -> dict[str, Path]:
        """The detection files by the name of their result; one network has one, named "".

        Raises:
            FileNotFoundError: one is missing.
        """
        names = (
            {"": "detections.json"} if self.config.design.networks == 1 else RESULTS_OF_PAIRS[self.config.pair.second]
        )
        files = {what: self.directory / name for what, name in names.items()}
        for what, name in names.items():
            if not files[what].is_file() and (earlier := self.directory / _EARLIER.get(name, name)).is_file():
                files[what] = earlier
        for path in files.values():
            if not path.is_file():
                raise FileNotFoundError(
                    f"run {self.directory} has no {path.name} yet; finish its training first (bitad train ... --resume)"
                )
        return files

    def records(self) -> list[dict[str, Any]]:
        """The records of its ``metrics.jsonl``, if there is one. Raises as ``read_metrics``."""
        path = self.directory / METRICS
        return read_metrics(path) if path.is_file() else []

    def ground_truth(self) -> Annotations:
        """The annotations of its test subset.

        Raises:
            FileNotFoundError: the annotation file does not exist.
            ValueError: it cannot be read, or no video is in the test subset.
        """
        data = self.config.data
        for path in (data.annotations, data.classes):
            if path is not None and not path.is_file():
                raise FileNotFoundError(
                    f"the ground truth of run {self.directory}, {path}, does not exist; run this command "
                    "where the run was trained, or correct its config.yaml"
                )
        return read_test_ground_truth(self.config)


def read_runs(directories: Sequence[Path]) -> list[Run]:
    """The runs in the order of tables.

    Raises:
        FileNotFoundError: as ``Run.read``.
        ValueError: no run, a directory given twice, or two runs of one name, variant and seed.
    """
    if not directories:
        raise ValueError("no runs to compare; give at least one run directory")
    seen: set[Path] = set()
    for directory in directories:
        if directory.resolve() in seen:
            raise ValueError(f"run {directory} is given twice; give it once")
        seen.add(directory.resolve())
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
    return sorted(runs, key=lambda run: (run.rank, run.config.name, run.config.seed))


def common_ground_truth(runs: Sequence[Run]) -> Annotations:
    """The ground truth of all runs.

    Raises:
        ValueError: the runs were tested on different videos, segments or classes, or at different tIoU.
    """
    first, *others = runs
    truths: dict[tuple[Any, ...], Annotations] = {}

    def truth_of(run: Run) -> Annotations:
        data = run.config.data
        key = (data.annotations, data.classes, data.test_subset)
        if key not in truths:
            truths[key] = run.ground_truth()
        return truths[key]

    for run in others:
        if run.config.test.tiou != first.config.test.tiou:
            raise ValueError(
                f"run {first.directory} was tested at tIoU {_tiou(first)}, run {run.directory} at "
                f"{_tiou(run)}; compare runs that were tested in the same way"
            )
        if _contents(truth_of(run)) != _contents(truth_of(first)):
            mine, its = first.config.data, run.config.data
            raise ValueError(
                f"run {first.directory} was tested on different ground truth ({mine.annotations}, subset "
                f"{mine.test_subset}) than run {run.directory} ({its.annotations}, subset {its.test_subset}); compare "
                "runs of one test set"
            )
    return truth_of(first)


def _tiou(run: Run) -> str:
    return ", ".join(f"{threshold:.4g}" for threshold in run.config.test.tiou)


def _contents(truth: Annotations) -> tuple[Any, ...]:
    def of_video(video: AnnotatedVideo) -> tuple[Any, ...]:
        return video.name, video.duration_s, video.segments.tolist(), video.labels

    return truth.classes, sorted(of_video(video) for video in truth.videos.values())


BASELINES, UNTRAINED, TRAINED_PAIRS, VARIANTS = "baselines", "no training", "experiments", "ablations and controls"

# Keys in which runs of one row may differ although they have the same recipe.
_NO_RECIPE = ("seed", "output", "init.", "threads", "data.", "training.workers")


@dataclass(frozen=True, eq=False)
class Result:
    """A row of the comparison.

    Args:
        group: baselines, no training, experiments, or ablations and controls.
        evaluations: by seed, or by both seeds of two fused baselines.
        files: the detection files by seed, if they are from runs.
        pair: whether two networks were trained together.
    """

    label: str
    group: str
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    pair: bool = False

    @property
    def averages(self) -> list[float]:
        """Average mAP in percent, seed by seed."""
        return [100 * evaluation.average_map for evaluation in self.evaluations.values()]

    @property
    def mean(self) -> float:
        """The mean over seeds of the average mAP in percent."""
        return float(np.mean(self.averages))

    @property
    def spread(self) -> float | None:
        """The standard deviation of the average mAP over seeds in percent points; None for one seed."""
        return float(np.std(self.averages, ddof=1)) if len(self.evaluations) > 1 else None

    @property
    def map_per_tiou(self) -> list[float]:
        """The mean over seeds of mAP at each tIoU in percent."""
        per_seed = [100 * evaluation.map_per_tiou for evaluation in self.evaluations.values()]
        means: list[float] = np.mean(per_seed, axis=0).tolist()
        return means


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs with the same ground truth, and their results in the order of tables.

    Args:
        runs: in the order of tables.
    """

    runs: tuple[Run, ...]
    truth: Annotations
    results: tuple[Result, ...]

    @property
    def best_baseline(self) -> Result | None:
        """The better of F and B by its mean, if there is one."""
        return max((r for r in self.results if r.group == BASELINES), key=lambda r: r.mean, default=None)

    @property
    def best_pair(self) -> Result | None:
        """The best result of two networks trained together, if there is one."""
        return max((r for r in self.results if r.pair), key=lambda r: r.mean, default=None)

    def table(self) -> Table:
        """Every result: mAP in percent at each tIoU and the average, mean and spread over seeds."""
        tiou = self.runs[0].config.test.tiou
        rows: list[tuple[Cell, ...]] = [
            (r.label, *r.map_per_tiou, r.mean, r.spread, min(r.averages), len(r.evaluations)) for r in self.results
        ]
        measured = (*(f"{threshold:.4g}" for threshold in tiou), "average")
        return Table(
            "mAP (%)",
            ("result", *measured, "spread", "lowest seed", "seeds"),
            tuple(rows),
            notes=(*self._column_notes(), *self._evaluation_notes(), *self._recipe_notes()),
            best=measured if len(rows) > 1 else (),
        )

    def loss_table(self) -> Table:
        """The first and last losses of the two networks of each variant; means over seeds."""
        rows: list[tuple[Cell, ...]] = []
        pairs = self._by_label(lambda run: run.config.design.networks == 2)
        two_forward = any(run.config.pair.second == "forward" for runs in pairs.values() for run in runs)
        names = ("first network", "second network") if two_forward else ("forward basis", "reverse basis")
        for label, runs in pairs.items():
            records = [found for run in runs if (found := _training_records(run))]
            if records:
                first = [found[0]["loss"] for found in records]
                bases = [tuple(found[0]["losses"].values()) for found in records if found[0].get("losses")]
                each = [_mean(column) for column in zip(*bases, strict=True)] or [None, None]
                final = [np.mean([r["loss"] for r in found[-max(1, len(found) // 10) :]]) for found in records]
                rows.append((label, _mean(first), *each, _mean(final), len(records)))
        return Table(
            "Training losses of two networks",
            ("run", "first step", *(f"first, {name}" for name in names), "at the end", "seeds"),
            tuple(rows),
            notes=(
                "Means over seeds. The loss is the sum over both bases (in 1x, plus the agreement loss). At the end: "
                "the mean over the last tenth of the recorded steps.",
                *(
                    "The first step of 1-1 is that of the baselines alone; compare the first step of a fusion with it."
                    for row in rows
                    if row[0] == "1-1"
                ),
            ),
        )

    def curves(self) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """The records of the first seed with records of each variant, by group and label."""
        found: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for label, runs in self._by_label(lambda run: True).items():
            for run in runs:
                if _training_records(run):
                    found.setdefault(_group(run), {})[label] = run.records()
                    break
        return found

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
        }

    def _by_label(self, wanted: Callable[[Run], bool]) -> dict[str, list[Run]]:
        by_label: dict[str, list[Run]] = {}
        for run in filter(wanted, self.runs):
            by_label.setdefault(_with_run_name(run.label, run, self.runs), []).append(run)
        return by_label

    def _column_notes(self) -> Iterator[str]:
        yield "The columns are tIoU thresholds; means over seeds."
        if any(len(r.evaluations) > 1 for r in self.results):
            yield "Spread: the standard deviation (n - 1) of the average over seeds."
        if any("another F" in r.label and len(r.evaluations) > 1 for r in self.results):
            yield "The control fuses the F of each seed with that of the next, so its pairs share networks."
        if (best := self.best_baseline) and any(r.group != BASELINES for r in self.results):
            less = "" if best.spread is None else f"; minus its spread: {best.mean - best.spread:.2f}"
            yield f"The best baseline is {best.label}: {best.mean:.2f}{less}."

    def _evaluation_notes(self) -> list[str]:
        return evaluation_notes(
            {f"{r.label}, seed {seed}": e for r in self.results for seed, e in r.evaluations.items()}, counts=False
        )

    def _recipe_notes(self) -> Iterator[str]:
        """The variants whose seeds were trained with different recipes."""
        for label, runs in self._by_label(lambda run: True).items():
            first, *others = (run.config.model_dump(mode="json") for run in runs)
            keys = {
                key for other in others for key, _, _ in differences(first, other) if not key.startswith(_NO_RECIPE)
            }
            if keys:
                yield f"{label}: the seeds also differ in {', '.join(sorted(keys))}."


def compare(runs: Sequence[Path], *, on_progress: Callable[[int, int], None] | None = None) -> Comparison:
    """Evaluates the detections of runs, and late fusion of the baselines among them.

    Late fusion merges the F and the B of each seed, by every method; its control merges the F of each seed and of the
    next.

    Args:
        runs: run directories, in any order.
        on_progress: called with (results evaluated, results in total).

    Raises:
        FileNotFoundError: a folder is not a run directory, or a run has no detections.
        ValueError: a run is given twice, or runs were tested on different ground truth or at different tIoU.
    """
    found = read_runs(runs)
    files = [(run, what, path) for run in found for what, path in run.detection_files().items()]
    truth = common_ground_truth(found)
    tiou = found[0].config.test.tiou
    fusions = list(_fusions(found))
    results: dict[str, Result] = {}
    baselines: dict[Path, Detections] = {}

    def add(row: Result, seed: str, detections: Detections) -> None:
        row.evaluations[seed] = evaluate(truth, detections, tiou=tiou)
        if on_progress is not None:
            on_progress(sum(len(r.evaluations) for r in results.values()), len(files) + len(fusions))

    for run, what, path in files:
        detections = under_names(read_detections(path).forward(), truth.videos, path)
        require_any(detections, truth.videos, path, "the runs' ground truth")
        label = _with_run_name(", ".join(filter(None, (run.label, what))), run, found)
        row = results.setdefault(label, Result(label, _group(run), pair=bool(what)))
        row.files[str(run.config.seed)] = path
        add(row, str(run.config.seed), detections)
        if not what:
            baselines[run.directory] = detections
    for label, seeds, one, other, method in fusions:
        settings = one.config.test.nms.suppression
        merged = merge(baselines[one.directory], baselines[other.directory], method=method, settings=settings)
        add(results.setdefault(label, Result(label, UNTRAINED)), seeds, merged)
    order = (BASELINES, UNTRAINED, TRAINED_PAIRS, VARIANTS)
    return Comparison(tuple(found), truth, tuple(sorted(results.values(), key=lambda r: order.index(r.group))))


def _fusions(runs: Sequence[Run]) -> Iterator[tuple[str, str, Run, Run, MergeMethod]]:
    """The late fusions and controls of the baselines: label, seeds, both runs and the method."""
    for name in dict.fromkeys(run.config.name for run in runs):
        mine = [run for run in runs if run.config.name == name and run.config.design.networks == 1]
        forward = [run for run in mine if run.config.direction == "forward"]
        reverse = {run.config.seed: run for run in mine if run.config.direction == "reverse"}
        following = forward[1:] + forward[: 1 if len(forward) > 2 else 0]
        fused = [(run, reverse[run.config.seed]) for run in forward if run.config.seed in reverse]
        controls = list(zip(forward, following, strict=False))
        for title, pairs in (("late fusion F + B", fused), ("control F + another F", controls)):
            for method in get_args(MergeMethod):
                for one, other in pairs:
                    seeds = dict.fromkeys((str(one.config.seed), str(other.config.seed)))
                    yield _with_run_name(f"{title}, {method}", one, runs), " + ".join(seeds), one, other, method


def _group(run: Run) -> str:
    if run.config.design.networks == 1:
        return BASELINES
    return VARIANTS if run.is_ablation else TRAINED_PAIRS


def _with_run_name(label: str, run: Run, runs: Sequence[Run]) -> str:
    """The label, with the name of the run if the runs have several names."""
    return label if len({other.config.name for other in runs}) == 1 else f"{label} ({run.config.name})"


def _training_records(run: Run) -> list[dict[str, Any]]:
    return [record for record in run.records() if record["kind"] == "training"]


def _mean(values: Sequence[float]) -> Cell:
    mean = float(np.mean(values))
    return mean if np.isfinite(mean) else "not finite"
