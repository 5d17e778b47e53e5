"""BiTAD's experiments on real features: per-frame SVM scores of GTEA or 50 Salads, each fold once as the test set.

The data are a JSON of segments in rows of the arrays and an ``.npz`` with an array ``[rows, classes + 1]`` per video:
the scores of an SVM, trained on the other folds, for background (column 0) and the actions, about 2.9 times per second
(50 Salads: 0.9 times). For each fold, direction and seed the script runs ``bitad train gtea`` (or ``50salads``), and
from those baselines, with ``bitad train gtea-pair``, every experiment that needs no backbone: with F and B of one seed;
as a control, with F of a seed and F of the next seed (for the last, of the first, so delete its runs before adding
seeds); and, for one seed, 3-1 and 3-2 as the research group ran them. Finished trainings are kept.

The baseline of F and B is the SVM's argmax: neighbouring rows with the same best class are a segment, without
background, scored by the class's mean score over the segment, or by the sum of its softmax, which also rewards length
and is the best scoring of those tried. The baselines of two networks are the better of F and B, late fusion, and the
control.

Detections of the test folds, each from networks that did not see it, are pooled into run directories
(``OUT/runs/pooled-...``, which ``bitad report`` also reads) and evaluated together on all videos; the average mAP of
each fold is also shown.

    python benchmarks/gtea.py [--data ../shared/data/actionseg] [--out gtea] [--seeds 3] [--experiments 3-1 3-3]
    python benchmarks/gtea.py --data-set 50salads [--seeds 2] [--experiments none]
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from bitad.config.names import EXPERIMENTS
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.detections import Detections, read_detections, write_detections
from bitad.data.formats.database import write_annotations
from bitad.demo import Job, train_side_by_side
from bitad.evaluation.mean_average_precision import evaluate
from bitad.reports.comparison import (
    TRAINED_PAIRS,
    UNTRAINED,
    VARIANTS,
    Comparison,
    Result,
    Run,
    compare,
    difference_table,
)
from bitad.reports.tables import Cell, Table
from bitad.runtime.files import atomic_write, read_json, write_json
from bitad.runtime.progress import progress_callback
from bitad.timeline import Direction

DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
POOLED = "pooled"
# Experiments with two networks that add nothing to a backbone; the one from scratch, which takes longest, last.
PAIRS = sorted(
    (name for name, one in EXPERIMENTS.items() if one.networks == 2 and one.adds is None),
    key=lambda name: EXPERIMENTS[name].starts_from == "backbone",
)
# 3-1 and 3-2 as the research group ran them, which did not train.
AS_THE_GROUP_RAN_THEM = ("pair.align=naive", "pair.fusion_init=random")
RUN_BY_THE_GROUP = ("3-1", "3-2")


@dataclass(frozen=True)
class DataSet:
    """One of the data sets: the beginning of its files' names, and the presets of one and of two networks."""

    title: str
    files: str
    rows_per_second: float  # the files state no rate; mAP does not depend on it, but for the rounding of seconds
    preset: str
    pair_preset: str

    def read(self, folder: Path) -> Annotations:
        """Its segments."""
        return read_segments(folder / f"{self.files}.json", self.rows_per_second)

    def features(self, folder: Path) -> Path:
        """Its features."""
        return folder / f"{self.files}.npz"


GTEA = DataSet("GTEA", "gtea_svm", 2.9, "gtea", "gtea-pair")
DATA_SETS = {"gtea": GTEA, "50salads": DataSet("50 Salads", "50salads_eval_svm", 0.9, "50salads", "50salads-pair")}

# Scores [rows, classes] of a run and its class -> the run's score.
Scoring = Callable[[NDArray[np.float64], int], float]


def read_segments(path: Path, rows_per_second: float) -> Annotations:
    """The segments of a data set, on the clock of the rows; a video's subset is its fold, ``fold1`` and so on.

    ``segment(frames)`` is ``[first row, row after the last]``; class names are the numbers of the columns.
    """
    database = read_json(path)["database"]
    videos, columns = {}, set()
    for name, stated in database.items():
        rows = np.array([row["segment(frames)"] for row in stated["annotations"]], np.float64).reshape(-1, 2)
        labels = [int(row["label_id"]) for row in stated["annotations"]]
        columns.update(labels)
        videos[name] = AnnotatedVideo(
            name=name,
            subset=f"fold{stated['split']}",
            duration_s=stated["num_frames"] / rows_per_second,
            segments=rows / rows_per_second,
            labels=tuple(map(str, labels)),
            frames=stated["num_frames"],
            fps=rows_per_second,
        )
    return Annotations(videos, tuple(str(column) for column in sorted(columns)))


def with_test_folds(annotations: Annotations, folds: Collection[str]) -> Annotations:
    """The same videos, those of some folds in the subset "test" and all others in "training"."""
    videos = {
        name: replace(video, subset="test" if video.subset in folds else "training")
        for name, video in annotations.videos.items()
    }
    return replace(annotations, videos=videos)


def mean_score(scores: NDArray[np.float64], column: int) -> float:
    """The mean of the class's scores over a run."""
    return float(scores[:, column].mean())


def summed_softmax(scores: NDArray[np.float64], column: int) -> float:
    """The sum over a run of the class's share in the softmax over classes."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return float((powers[:, column] / powers.sum(axis=1)).sum())


def argmax_runs(
    annotations: Annotations, features: Mapping[str, NDArray[np.float32]], scoring: Scoring
) -> Detections:
    """The runs of equal argmax of each video, as detections; background (column 0) left out."""
    found = {}
    for name, video in annotations.videos.items():
        assert video.fps is not None  # read_segments states it
        scores = features[name].astype(np.float64)  # [rows, classes + 1]
        best = scores.argmax(axis=1)
        starts = np.flatnonzero(np.diff(best, prepend=-1))
        ends = np.append(starts[1:], len(best))
        runs = [(a, b, best[a]) for a, b in zip(starts, ends, strict=True) if best[a] != 0]
        segments = np.array([(a, b) for a, b, _ in runs], np.float64).reshape(-1, 2) / video.fps
        labels = np.array([annotations.classes.index(str(column)) for _, _, column in runs], np.int64)
        found[name] = (segments, np.array([scoring(scores[a:b], int(column)) for a, b, column in runs]), labels)
    return Detections.from_videos(found, classes=annotations.classes)


@dataclass(frozen=True)
class Plan:
    """The trainings.

    Args:
        features: the ``.npz``.
        out: the folder of annotations and runs.
        folds: each is the test set once.
        seeds: networks of each fold and direction.
        experiments: with two networks, besides the baselines.
        overrides: changes to the presets.
        pair_seeds: of each experiment; None: as many as ``seeds``.
        data_set: whose features they are.
    """

    features: Path
    out: Path
    folds: tuple[str, ...]
    seeds: int
    experiments: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    data_set: DataSet = GTEA
    pair_seeds: int | None = None

    def jobs(self, test: str) -> list[Job]:
        """The trainings with one test set, a fold or all of them (``POOLED``); those first that others start from."""
        seeds = range(self.seeds)
        fusing = [name for name in self.experiments if EXPERIMENTS[name].fusion]
        jobs = [self._baseline(test, direction, seed) for seed in seeds for direction in DIRECTIONS]
        pair_seeds = seeds[: self.pair_seeds]
        jobs += [self._pair(test, name, seed) for seed in pair_seeds for name in self.experiments]
        if self.seeds > 1:
            jobs += [self._pair(test, name, seed, "pair.second=forward") for seed in pair_seeds for name in fusing]
        jobs += [self._pair(test, name, 0, *AS_THE_GROUP_RAN_THEM) for name in fusing if name in RUN_BY_THE_GROUP]
        return jobs

    def _baseline(self, test: str, direction: Direction, seed: int) -> Job:
        return Job(self.data_set.preset, (f"direction={direction}", *self._common(test, seed)))

    def _pair(self, test: str, experiment: str, seed: int, *changes: str) -> Job:
        own = (f"experiment={experiment}", *changes, *self._common(test, seed))
        if EXPERIMENTS[experiment].starts_from == "backbone":
            return Job(self.data_set.preset, own)  # by the baselines' recipe
        second: tuple[Direction, int] = ("reverse", seed)
        if "pair.second=forward" in changes:
            second = ("forward", (seed + 1) % self.seeds)
        initial = (
            f"init.forward={self._baseline(test, 'forward', seed).directory}",
            f"init.reverse={self._baseline(test, *second).directory}",
        )
        return Job(self.data_set.pair_preset, (*own, *initial))

    def _common(self, test: str, seed: int) -> tuple[str, ...]:
        return (
            f"name={test}",
            f"seed={seed}",
            f"data.annotations={self.out / test}.json",
            f"data.features={self.features}",
            f"output={self.out / 'runs'}",
            *self.overrides,
        )


def write_folds(plan: Plan, annotations: Annotations) -> None:
    """Writes the annotations with each fold as the test set, and with all of them."""
    for fold in plan.folds:
        write_annotations(with_test_folds(annotations, {fold}), plan.out / f"{fold}.json")
    write_annotations(with_test_folds(annotations, plan.folds), plan.out / f"{POOLED}.json")


def pool(whole: Job, folds: Sequence[Job]) -> None:
    """Writes the detections of all folds as the run ``whole``, for reports."""
    for name in (path.name for path in Run(folds[0].directory, folds[0].config).detection_files().values()):
        found = [read_detections(job.directory / name) for job in folds]
        write_detections(Detections.concatenate(found), whole.directory / name)
    with atomic_write(whole.directory / "config.yaml") as partial:
        partial.write_text(whole.config.to_yaml(), encoding="utf-8")


def compared(what: str, jobs: Sequence[Job], features: Mapping[str, NDArray[np.float32]]) -> Comparison:
    """The results of jobs with one test set, and those of the SVM's argmax."""
    with progress_callback(f"evaluating {what}") as on_progress:
        comparison = compare([job.directory for job in jobs], on_progress=on_progress)
    tiou = comparison.runs[0].config.test.tiou
    argmax = []
    for label, scoring in (("mean score", mean_score), ("summed softmax", summed_softmax)):
        found = argmax_runs(comparison.truth, features, scoring)
        evaluation = evaluate(comparison.truth, found, tiou=tiou)
        argmax.append(Result(f"argmax runs, {label}", UNTRAINED, {"none": evaluation}))
    return replace(comparison, results=(*argmax, *comparison.results))


def run(plan: Plan, annotations: Annotations, *, processes: int | None = None) -> dict[str, Comparison]:
    """Runs the missing trainings; returns the results of each fold, and last those of all folds pooled.

    Raises:
        ValueError: a training failed, or ``plan.out`` has these runs with other settings.
    """
    write_folds(plan, annotations)
    jobs = {test: plan.jobs(test) for test in (*plan.folds, POOLED)}
    of_folds = list(zip(*(jobs[fold] for fold in plan.folds), strict=True))
    train_side_by_side([job for alike in of_folds for job in alike], processes=processes)
    for whole, alike in zip(jobs[POOLED], of_folds, strict=True):
        pool(whole, alike)
    with np.load(plan.features) as features:
        return {test: compared(test, trained, features) for test, trained in jobs.items()}


def fold_table(comparisons: Mapping[str, Comparison], title: str) -> Table:
    """Average mAP of each fold, means over seeds, and the mean of the folds."""
    folds = [test for test in comparisons if test != POOLED]
    means = [{result.label: result.mean for result in comparisons[fold].results} for fold in folds]
    rows: list[tuple[Cell, ...]] = []
    for label in means[0]:
        row = [fold[label] for fold in means]
        rows.append((label, *row, float(np.mean(row))))
    return Table(
        f"{title}, average mAP (%) of each test fold",
        ("result", *folds, "mean"),
        tuple(rows),
        notes=("Means over seeds.",),
    )


def tables(comparisons: Mapping[str, Comparison], title: str = GTEA.title) -> list[Table]:
    """The tables that the script prints; ``title`` is that of the data set."""
    pooled = comparisons[POOLED]
    standing = [difference_table(pooled)] if pooled.best(TRAINED_PAIRS, VARIANTS) else []
    losses = [
        replace(table, title=f"{table.title}, test {fold}")
        for fold, comparison in comparisons.items()
        if (table := comparison.loss_table()).rows
    ]
    return [
        replace(pooled.table(), title=f"{title}, mAP (%) of the pooled test folds"),
        *standing,
        fold_table(comparisons, title),
        *losses,
    ]


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/actionseg"))
    parser.add_argument("--data-set", choices=DATA_SETS, default="gtea")
    parser.add_argument(
        "--out", type=Path, help="folder of annotations, runs and results; default: the name of the data set"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, help="networks of each fold and direction; controls need two"
    )
    parser.add_argument(
        "--experiments", nargs="+", choices=(*PAIRS, "none"), default=PAIRS, help="of two networks; default: all"
    )
    parser.add_argument(
        "--processes", type=int, help="trainings side by side, of one thread each; default: the cores"
    )
    options = parser.parse_args(arguments)
    options.out = options.out or Path(options.data_set)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    began = time.monotonic()
    data_set = DATA_SETS[options.data_set]
    annotations = data_set.read(options.data)
    experiments = tuple(name for name in options.experiments if name != "none")
    folds = tuple(sorted(annotations.subsets()))
    features = data_set.features(options.data)
    plan = Plan(features, options.out, folds, options.seeds, experiments, data_set=data_set)
    comparisons = run(plan, annotations, processes=options.processes)
    made = tables(comparisons, data_set.title)
    print("\n\n".join(table.text() for table in made))
    with atomic_write(options.out / "results.md") as partial:
        partial.write_text("\n".join(table.markdown() for table in made), encoding="utf-8")
    write_json({test: comparison.json() for test, comparison in comparisons.items()}, options.out / "results.json")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    minutes = (time.monotonic() - began) / 60
    print(
        f"\n{len(plan.folds) * len(plan.jobs(POOLED))} trainings; this call took {minutes:.1f} minutes, and those of "
        f"them that it ran {(used.ru_utime + used.ru_stime) / 60:.1f} of CPU. See {options.out / 'results.md'}"
    )


if __name__ == "__main__":
    main()
