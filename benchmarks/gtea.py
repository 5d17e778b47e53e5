"""BiTAD's detector on real features: GTEA's per-frame SVM scores, each fold once as the test set, both directions.

The data are a JSON of segments in rows of the arrays and an ``.npz`` with an array ``[rows, 11]`` a video: the scores
that an SVM, trained on the other folds, gives to background (column 0) and ten actions about 2.9 times a second. The
script writes each fold's annotations in the native form and runs ``bitad train gtea`` on it, forwards and backwards.

What must be beaten are the runs of the SVM's own argmax: neighbouring rows with the same best class are a segment,
background left out, scored either by the class's mean score over the run or by the sum of its softmax over the run,
which also rewards length and is the best scoring of those tried.

The detections of the test folds, each from its own network, are pooled and evaluated together against all videos; the
mean of the folds' own average mAPs is given beside that. Late fusion merges F's and B's detections; the control
merges those of two F of different seeds.

    python benchmarks/gtea.py [--data ../shared/data/actionseg] [--out gtea] [--seeds 3]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from bitad.config import load_config
from bitad.data.annotations import AnnotatedVideo, Annotations, write_annotations
from bitad.data.detections import Basis, Detections, read_detections
from bitad.data.files import read_json, write_json
from bitad.evaluation.mean_average_precision import Evaluation, evaluate
from bitad.inference.merge import MergeMethod, merge
from bitad.reports.tables import Cell, Table

# The files state no rate; mAP does not depend on it, but for the rounding of seconds.
ROWS_PER_SECOND = 2.9
DIRECTIONS: tuple[Basis, ...] = get_args(Basis)
TIOU = (0.3, 0.4, 0.5, 0.6, 0.7)

# Scores [rows, classes] of a run and its class -> the run's score.
Scoring = Callable[[NDArray[np.float64], int], float]


def read_gtea(path: Path) -> Annotations:
    """GTEA's segments, on the clock of the rows; a video's subset is its fold, ``fold1`` and so on.

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
            duration_s=stated["num_frames"] / ROWS_PER_SECOND,
            segments=rows / ROWS_PER_SECOND,
            labels=tuple(map(str, labels)),
            frames=stated["num_frames"],
            fps=ROWS_PER_SECOND,
        )
    return Annotations(videos, tuple(str(column) for column in sorted(columns)))


def with_test_fold(annotations: Annotations, fold: str) -> Annotations:
    """The same videos, those of one fold in the subset "test" and all others in "training"."""
    videos = {
        name: replace(video, subset="test" if video.subset == fold else "training")
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


def argmax_runs(annotations: Annotations, features: Mapping[str, NDArray[np.float32]], scoring: Scoring) -> Detections:
    """The runs of equal argmax of each video, as detections; background (column 0) left out."""
    found = {}
    for name in annotations.videos:
        scores = features[name].astype(np.float64)  # [rows, 11]
        best = scores.argmax(axis=1)
        starts = np.flatnonzero(np.diff(best, prepend=-1))
        ends = np.append(starts[1:], len(best))
        runs = [(a, b, best[a]) for a, b in zip(starts, ends, strict=True) if best[a] != 0]
        segments = np.array([(a, b) for a, b, _ in runs], np.float64).reshape(-1, 2) / ROWS_PER_SECOND
        labels = np.array([annotations.classes.index(str(column)) for _, _, column in runs], np.int64)
        found[name] = (segments, np.array([scoring(scores[a:b], int(column)) for a, b, column in runs]), labels)
    return Detections.from_videos(found, classes=annotations.classes)


def train(arguments: list[str]) -> float:
    """Runs ``bitad train`` in a process of its own, on one thread; the seconds it took.

    Raises:
        RuntimeError: it failed; with what it said last.
    """
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "bitad", "train", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"bitad train {' '.join(arguments)}: {done.stderr.strip().splitlines()[-1]}")
    return time.monotonic() - began


@dataclass(frozen=True)
class Run:
    """One training: a test fold, a direction and a seed."""

    fold: str
    direction: Basis
    seed: int

    def overrides(self, features: Path, out: Path) -> list[str]:
        """What ``bitad train gtea`` gets on its command line."""
        return [
            f"name={self.fold}",
            f"direction={self.direction}",
            f"seed={self.seed}",
            f"data.annotations={out / self.fold}.json",
            f"data.features={features}",
            f"output={out / 'runs'}",
        ]

    def execute(self, features: Path, out: Path) -> tuple[Detections, float]:
        """Trains; the test fold's detections, and the seconds it took."""
        overrides = self.overrides(features, out)
        directory = load_config("gtea", overrides).run_directory
        seconds = train(["gtea", *overrides])
        print(f"{directory}: {seconds:.0f} s", file=sys.stderr)
        return read_detections(directory / "detections.json"), seconds


@dataclass(frozen=True)
class Figures:
    """One result: pooled over the folds, and the folds' own average mAPs."""

    pooled: Evaluation
    folds: dict[str, float]

    @classmethod
    def of(cls, annotations: Annotations, detections: Detections) -> Figures:
        """Evaluates detections of all videos."""
        folds = {}
        for fold in annotations.subsets():
            truth = annotations.subset(fold)
            inside = np.array([name in truth.videos for name in detections.videos])[detections.video]
            folds[fold] = evaluate(truth, detections.take(inside), tiou=TIOU).average_map
        return cls(evaluate(annotations, detections, tiou=TIOU), folds)


def results(
    annotations: Annotations, features: Mapping[str, NDArray[np.float32]], found: Mapping[tuple[Basis, int], Detections]
) -> dict[str, list[Figures]]:
    """The rows of the table: for each result its figures, seed by seed.

    Args:
        found: detections of all videos by direction and seed.
    """
    seeds = sorted({seed for _, seed in found})
    rows: dict[str, list[Detections]] = {
        "argmax runs, mean score": [argmax_runs(annotations, features, mean_score)],
        "argmax runs, summed softmax": [argmax_runs(annotations, features, summed_softmax)],
        "F (forward)": [found["forward", seed] for seed in seeds],
        "B (reverse)": [found["reverse", seed] for seed in seeds],
    }
    pairs = list(combinations(seeds, 2))
    for method in get_args(MergeMethod):
        rows[f"F + B, {method}"] = [
            merge(found["forward", seed], found["reverse", seed], method=method) for seed in seeds
        ]
        if pairs:
            rows[f"F + another F, {method}"] = [
                merge(found["forward", one], found["forward", other], method=method) for one, other in pairs
            ]
    return {name: [Figures.of(annotations, detections) for detections in row] for name, row in rows.items()}


def table(rows: Mapping[str, list[Figures]], notes: tuple[str, ...]) -> Table:
    """Percent, the mean over seeds; the spread is the standard deviation of the average mAP over seeds."""
    columns = ("result", *(f"{t:.1f}" for t in TIOU), "average", "spread", "lowest", "mean of folds")
    lines: list[tuple[Cell, ...]] = []
    for name, row in rows.items():
        average = 100 * np.array([figures.pooled.average_map for figures in row])
        per_tiou = 100 * np.mean([figures.pooled.map_per_tiou for figures in row], axis=0)
        per_fold = 100 * np.mean([list(figures.folds.values()) for figures in row])
        spread = float(average.std(ddof=1)) if len(row) > 1 else None
        lines.append((name, *per_tiou.tolist(), float(average.mean()), spread, float(average.min()), float(per_fold)))
    return Table("GTEA, mAP (%) of the pooled test folds", columns, tuple(lines), notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/actionseg"))
    parser.add_argument("--out", type=Path, default=Path("gtea"), help="a new folder for annotations, runs and results")
    parser.add_argument("--seeds", type=int, default=1, help="networks of each fold and direction")
    parser.add_argument("--processes", type=int, default=2, help="trainings side by side, of one thread each")
    options = parser.parse_args()
    began = time.monotonic()
    annotations = read_gtea(options.data / "gtea_svm.json")
    array_file = options.data / "gtea_svm.npz"
    folds = sorted(annotations.subsets())
    for fold in folds:
        write_annotations(with_test_fold(annotations, fold), options.out / f"{fold}.json")
    seeds = range(options.seeds)
    runs = [Run(fold, direction, seed) for seed, direction, fold in product(seeds, DIRECTIONS, folds)]
    with ThreadPoolExecutor(options.processes) as pool:
        done = dict(zip(runs, pool.map(lambda run: run.execute(array_file, options.out), runs), strict=True))
    minutes = (time.monotonic() - began) / 60
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_minutes = (used.ru_utime + used.ru_stime) / 60
    found = {
        (direction, seed): Detections.concatenate([done[Run(fold, direction, seed)][0] for fold in folds])
        for direction, seed in product(DIRECTIONS, seeds)
    }
    with np.load(array_file) as features:
        rows = results(annotations, features, found)
    notes = (
        f"{len(annotations.videos)} videos in {len(folds)} folds, "
        f"{sum(len(video.labels) for video in annotations.videos.values())} segments of {len(annotations.classes)} "
        "classes; each fold's detections come from networks that were not trained on it.",
        f"Seeds {', '.join(map(str, seeds))}; spread is the standard deviation of the average over them.",
        f"{len(runs)} runs took {minutes:.1f} minutes by the clock and {cpu_minutes:.1f} of CPU, {options.processes} "
        "side by side on one thread each.",
    )
    made = table(rows, notes)
    print(made.text())
    write_json(
        {
            "table": made.json(),
            "minutes": minutes,
            "cpu_minutes": cpu_minutes,
            "seconds": {f"{run.fold} {run.direction} {run.seed}": seconds for run, (_, seconds) in done.items()},
            "results": {
                name: [{"pooled": figures.pooled.to_json(), "folds": figures.folds} for figures in row]
                for name, row in rows.items()
            },
        },
        options.out / "results.json",
    )


if __name__ == "__main__":
    main()
