"""What does the second direction buy? F and B on every data set, and the late fusion of any number of them.

Two networks are better than one, whichever direction they watch. So F+B is compared with two F, and two of each with
four F, over all combinations of seeds, with paired 95 % intervals. The data sets are

* playroom, the demo's (5 seeds);
* playroom-hard, whose two parts are also reported apart (3 seeds): in *symmetric* neither direction has an easier task;
  in *graded* half of the classes begin gradually and end abruptly, and the others the other way round;
* 50salads, SVM scores as features, each fold once as the test set (2 seeds). It needs the files of --data.

Data that exist and trainings that have finished are kept; an interrupted call resumes. On two cores the data take about
two minutes and the trainings 22 (playroom 9, playroom-hard 8, 50salads 5); the script prints what is left of them.

    python benchmarks/second_direction.py [--out second-direction] [--stages playroom playroom-hard 50salads]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import gtea

from bitad.demo import DEFAULT, Job, Scale, Trainings, cores, make_data, mark_folder, train_side_by_side
from bitad.demo import playroom_hard as hard
from bitad.evaluation.ensembles import Ensemble
from bitad.reports.comparison import Comparison, compare, with_boundaries, with_ensembles
from bitad.reports.tables import Row, Table
from bitad.runtime.files import atomic_write, write_json
from bitad.runtime.progress import progress_callback
from bitad.timeline import Direction

ENSEMBLES = ("2F", "F+B", "4F", "2F+2B")
STAGES = ("playroom", "playroom-hard", "50salads")
DATA_SEED = 0


@dataclass(frozen=True)
class Plan:
    """What is trained, and where.

    Args:
        out: the folder of data, runs and results.
        features: the folder of 50 Salads' files.
        seeds: of each stage.
        resamples: of the bootstrap.
        overrides: changes to the presets of a stage.
    """

    out: Path
    features: Path
    seeds: Mapping[str, int]
    resamples: int = 1000
    overrides: Mapping[str, tuple[str, ...]] | None = None

    def changes(self, stage: str) -> tuple[str, ...]:
        """The overrides of a stage."""
        return (self.overrides or {}).get(stage, ())

    def trainings(self) -> Trainings:
        """Those of playroom, as the demo's."""
        scale = Scale("second-direction", seeds=self.seeds["playroom"], experiments=())
        return Trainings(self.out, replace(scale, overrides=self.changes("playroom")), DATA_SEED)

    def hard_baseline(self, direction: Direction, seed: int) -> Job:
        """F or B on the harder playroom."""
        data = self.out / "playroom-hard"
        return Job(
            "playroom-hard",
            (
                f"direction={direction}",
                f"seed={seed}",
                f"output={self.out / 'runs'}",
                f"data.annotations={data / 'annotations' / 'playroom.json'}",
                f"data.classes={data / 'annotations' / 'category_idx.txt'}",
                f"data.videos={data / 'raw_data'}",
                *self.changes("playroom-hard"),
            ),
        )

    def salads(self) -> gtea.Plan:
        """Those of 50 Salads."""
        data_set = gtea.DATA_SETS["50salads"]
        return gtea.Plan(
            data_set.features(self.features),
            self.out / "50salads",
            tuple(sorted(data_set.read(self.features).subsets())),
            self.seeds["50salads"],
            experiments=(),
            overrides=self.changes("50salads"),
            data_set=data_set,
        )

    def jobs(self, stage: str) -> list[Job]:
        """The trainings of a stage; its data must be there."""
        if stage == "playroom":
            return self.trainings().jobs()
        if stage == "playroom-hard":
            seeds = range(self.seeds[stage])
            return [self.hard_baseline(direction, seed) for seed in seeds for direction in get_args(Direction)]
        plan = self.salads()
        return [job for fold in plan.folds for job in plan.jobs(fold)]


# Measured on one core: seconds of a step of one network, and of the test after the last.
SECONDS = {"playroom": (0.25, 15), "playroom-hard": (0.25, 25), "50salads": (0.1, 8)}


def prepare(plan: Plan, stage: str) -> None:
    """Writes the data of a stage that are not there: about 60 CPU seconds for playroom, 100 for the harder one.

    Raises:
        ValueError: the folder holds other data.
        FileNotFoundError: the files of 50 Salads are missing.
    """
    if stage == "playroom":
        data_set = {"training": DEFAULT.training, "validation": DEFAULT.validation, "seed": DATA_SEED}
        mark_folder(plan.out, data_set)
        make_data(plan.out / "data", data_set)
    elif stage == "playroom-hard":
        folder = plan.out / "playroom-hard"
        mark_folder(folder, {"seed": DATA_SEED, **asdict(hard.HARD)})
        with progress_callback("rendering videos") as on_progress:
            hard.write_data_set(folder, seed=DATA_SEED, workers=cores(), on_progress=on_progress)
    else:
        salads = plan.salads()
        annotations = salads.data_set.read(plan.features)
        gtea.write_folds(salads, annotations)


def budget(plan: Plan, stages: Sequence[str]) -> Table:
    """The trainings of each stage, and the minutes that those left take on this machine."""
    rows: list[Row] = []
    whole = 0.0
    for stage in stages:
        step, test = SECONDS[stage]
        jobs = plan.jobs(stage)
        left = [job for job in jobs if not job.is_done()]
        seconds = sum(step * (job.network_steps() - job.network_steps_done()) + test for job in left)
        whole += seconds / 60 / cores()
        rows.append((stage, len(jobs), len(left), seconds / 60, seconds / 60 / cores()))
    notes = [f"About {whole:.0f} minutes of training in all, on {cores()} cores that do nothing else."]
    return Table("Trainings", ("stage", "trainings", "left", "CPU minutes", "minutes"), rows, notes)


def results(plan: Plan, stage: str) -> dict[str, Comparison]:
    """The results of a stage, by part; "" is all of it."""
    if stage == "50salads":
        salads = plan.salads()
        for_folds = {test: salads.jobs(test) for test in (*salads.folds, gtea.POOLED)}
        of_folds = zip(*(for_folds[fold] for fold in salads.folds), strict=True)
        for whole, alike in zip(for_folds[gtea.POOLED], of_folds, strict=True):
            gtea.pool(whole, alike)
        runs = [job.directory for job in for_folds[gtea.POOLED]]
    else:
        runs = [job.directory for job in plan.jobs(stage)]
    parts = ("", *hard.PARTS) if stage == "playroom-hard" else ("",)
    made = {}
    for part in parts:
        with progress_callback(" ".join(filter(None, ("evaluating", stage, part)))) as on_progress:
            comparison = compare(runs, resamples=plan.resamples, part=part, on_progress=on_progress)
        with progress_callback(" ".join(filter(None, ("fusing", stage, part)))) as on_progress:
            comparison = with_ensembles(
                comparison,
                possible_ensembles(plan.seeds[stage]),
                resamples=plan.resamples,
                on_progress=on_progress,
            )
        made[part] = with_boundaries(comparison, resamples=plan.resamples)
    return made


def possible_ensembles(seeds: int) -> list[Ensemble]:
    """Those of :data:`ENSEMBLES` that so many seeds allow."""
    every = map(Ensemble.parse, ENSEMBLES)
    return [one for one in every if max(count for _, count in one.sizes) <= seeds]


def tables(made: Mapping[str, Mapping[str, Comparison]]) -> list[Table]:
    """The tables that the script prints, by stage and part."""
    found = []
    for stage, parts in made.items():
        for part, comparison in parts.items():
            title = f"{stage}, {part}" if part else stage
            of_part = [comparison.table()]
            if comparison.ensembles is not None:
                of_part.append(comparison.ensembles.table())
            if comparison.boundaries is not None:
                of_part += comparison.boundaries.tables()
            found += [replace(table, title=f"{title}: {table.title}") for table in of_part]
    return found


def run(
    plan: Plan, stages: Sequence[str], *, train: Callable[[Sequence[Job]], Any] = train_side_by_side
) -> dict[str, dict[str, Comparison]]:
    """Makes what is missing of the stages; their results.

    Raises:
        ValueError: a training failed, or the folder has other data or runs with other settings.
    """
    for stage in stages:
        prepare(plan, stage)
    print(budget(plan, stages).text(), file=sys.stderr)
    train([job for stage in stages for job in plan.jobs(stage)])
    return {stage: results(plan, stage) for stage in stages}


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("second-direction"), help="folder of all that is made")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/actionseg"), help="of 50 Salads")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="default: all")
    parser.add_argument(
        "--seeds", type=int, nargs=3, default=(5, 3, 2), metavar="N", help="of the three stages; default: 5 3 2"
    )
    parser.add_argument(
        "--processes", type=int, help="trainings side by side, of one thread each; default: the cores"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    began = time.monotonic()
    plan = Plan(options.out, options.data, dict(zip(STAGES, options.seeds, strict=True)))

    def train(jobs: Sequence[Job]) -> None:
        train_side_by_side(jobs, processes=options.processes)

    made = run(plan, options.stages, train=train)
    found = tables(made)
    print("\n\n".join(table.text() for table in found))
    with atomic_write(options.out / "results.md") as partial:
        partial.write_text("\n".join(table.markdown() for table in found), encoding="utf-8")
    content = {stage: {part: one.json() for part, one in parts.items()} for stage, parts in made.items()}
    write_json(content, options.out / "results.json")
    minutes = (time.monotonic() - began) / 60
    print(f"\nthis call took {minutes:.1f} minutes. See {options.out / 'results.md'}")


if __name__ == "__main__":
    main()
