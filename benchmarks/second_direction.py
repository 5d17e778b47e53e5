"""What does the second direction buy? Five controls that could refute it, and other ways to spend the same compute.

Two networks are better than one, whichever direction they watch. So B is compared with other second networks, by late
fusion and by experiment 3-3, at the same cost of training and testing (docs/experiments.md, "Controls"):

* *seed*: F of another seed;
* *encoder*: F on another pre-trained encoder, which `pretrain_playroom.py --seed 1` makes first (about 30 CPU minutes);
* *flip*: F that sees every frame mirrored left to right;
* *grid*: F whose features are reversed behind the encoder;
* *direction*: B.

The figure of a control is its gain over the mean of its two members, which does not credit it for a strong member.
Beside them: F trained for as many epochs as a pair, one network for both directions (1s), and one network taught by a
pair (distil). The stages are

* playroom, the demo's data (5 seeds; 3 of flip, grid, 1s and distil);
* playroom-hard (3 seeds), whose two parts are also reported apart: in *symmetric* neither direction has an easier task;
  in *graded* half of the classes begin gradually and end abruptly, and the others the other way round; 3-3 of seed,
  encoder and direction only;
* 50salads: SVM scores as features, each fold once as the test set (2 seeds, one of 3-3). It needs the files of --data;
* longer: F, B and F on another encoder for twice the epochs on playroom, their pairs, and F for four times the epochs,
  the compute of such a pair (3 seeds). Only on request.

Data that exist and trainings that have finished are kept; an interrupted call resumes. The budget of the first three
stages is 80 minutes on two cores. One call from a fresh clone took 76: 72 of training, the rest of rendering and
evaluation. The script prints what is left. Decoded frames take 1.6 GiB in OUT.

    python benchmarks/second_direction.py [--out second-direction] [--stages playroom playroom-hard 50salads]
    python benchmarks/second_direction.py --stages longer
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import gtea
import pretrain_playroom
import second_networks
from second_networks import Gains, Measured, Pair, Single

from bitad.config.schema import NmsConfig
from bitad.data.annotations import Annotations
from bitad.data.detections import Detections
from bitad.demo import (
    DEFAULT,
    PRELOADED,
    Job,
    Work,
    cores,
    mark_folder,
    playroom,
    playroom_hard,
    train_side_by_side,
)
from bitad.inference.merge import merge
from bitad.reports.comparison import Run, common_ground_truth, read_forward
from bitad.reports.tables import Row, Table
from bitad.runtime.files import atomic_write, write_json
from bitad.runtime.progress import progress_callback
from bitad.runtime.workers import start_process

STAGES = ("playroom", "playroom-hard", "50salads", "longer")
DEFAULT_STAGES = STAGES[:-1]
SEEDS = {"playroom": 5, "playroom-hard": 3, "50salads": 2, "longer": 3}
DATA_SEED = 0
EPOCHS = 12  # of playroom's presets
# All trainings on the same videos share their decoded frames: 0.6 GiB of playroom, 1.0 GiB of the harder one.
FRAMES_MIB = 4096


@dataclass(frozen=True)
class Kind:
    """A kind of single network.

    Args:
        title: in tables.
        suffix: of the name of its runs, where F with that name would be another network.
        overrides: of the preset.
        on_other_encoder: whether it stands on the second encoder.
        epochs: of training; it is tested after the last one only.
    """

    title: str
    suffix: str = ""
    overrides: tuple[str, ...] = ()
    on_other_encoder: bool = False
    epochs: int = EPOCHS

    def longer(self, times: int = 2) -> Kind:
        """The same for twice the epochs, or for more."""
        epochs = times * self.epochs
        title, suffix = f"{self.title}, {epochs} epochs", f"{self.suffix}-{epochs}-epochs"
        return replace(self, title=title, suffix=suffix, epochs=epochs)


F = Kind("F")
B = Kind("B", overrides=("direction=reverse",))
ENCODER = Kind("F on another encoder", "-encoder1", on_other_encoder=True)
GRID = Kind("F on reversed features", overrides=("direction=reversed-features",))
# Without random mirroring, which would show both networks the same.
FIXED_SIDES = Kind("F, sides fixed", "-unmirrored", ("training.augmentation.flip=0",))
FLIPPED = Kind("F, mirrored", "-unmirrored", ("training.augmentation.flip=0", "direction=flipped"))
KINDS = (F, B, ENCODER, GRID, FIXED_SIDES, FLIPPED)


@dataclass(frozen=True)
class Control:
    """A pair of networks, fused late and by 3-3; ``options`` are those of the pair."""

    title: str
    first: Kind
    second: Kind
    options: tuple[str, ...] = ()

    def longer(self) -> Control:
        """The same of networks that were trained for twice the epochs."""
        return Control(self.title, self.first.longer(), self.second.longer(), self.options)


SEED = Control(second_networks.SEED, F, F, ("pair.second=forward",))
OTHER_ENCODER = Control(second_networks.ENCODER, F, ENCODER, ("pair.second=forward",))
DIRECTION = Control(second_networks.DIRECTION, F, B)
SEED_FIXED_SIDES = Control(
    second_networks.SEED_FIXED_SIDES,
    FIXED_SIDES,
    FIXED_SIDES,
    ("pair.second=forward", "training.augmentation.flip=0"),
)
FLIP = Control(second_networks.FLIP, FIXED_SIDES, FLIPPED, ("pair.second=flipped", "training.augmentation.flip=0"))
ON_GRID = Control(second_networks.GRID, F, GRID, ("pair.second=reversed-features",))
VERDICT = (SEED, OTHER_ENCODER, DIRECTION)
CONTROLS = (SEED, ON_GRID, SEED_FIXED_SIDES, FLIP, OTHER_ENCODER, DIRECTION)
# The kinds and the other experiments that the verdict does not rest on have at most so many seeds.
FEW_SEEDS = 3

REVERSAL = ", ".join(f"{label}: {partner or 'unknown'}" for label, partner in playroom.REVERSED.items())
# Other ways to spend the compute of a pair on one network.
SHARED = "1s"
SHARED_EMBEDDING = "1s, direction embedding"
DISTILLED = "distil"


@dataclass(frozen=True)
class EncoderJob:
    """The pre-training of the second encoder, among the trainings."""

    file: Path
    SECONDS_PER_STEP = 0.5

    @property
    def directory(self) -> Path:
        return self.file

    @property
    def output(self) -> Path:
        return self.file.with_suffix(".txt")

    def needs(self) -> set[Path]:
        return set()

    def is_done(self) -> bool:
        return self.file.exists()

    def network_steps(self) -> int:
        return 3000

    def network_steps_done(self) -> int:
        text = self.output.read_text(encoding="utf-8", errors="replace") if self.output.exists() else ""
        steps = re.findall(r"step ([0-9]+) of", text)
        return int(steps[-1]) if steps else 0

    def start(self) -> BaseProcess:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        arguments = ["--seed", "1", "--out", str(self.file)]
        return start_process(pretrain_playroom.main, arguments, output=self.output, preload=PRELOADED)


@dataclass(frozen=True)
class NeedsEncoder(Job):
    """A training that waits for the second encoder."""

    encoder: Path

    def needs(self) -> set[Path]:
        return super().needs() | {self.encoder}


@dataclass(frozen=True)
class Plan:
    """What is trained, and where.

    Args:
        out: the folder of data, runs and results.
        features: the folder of 50 Salads' files.
        seeds: of each stage.
        resamples: of the bootstrap.
        workers: processes that evaluate; 0: this one.
    """

    out: Path
    features: Path
    seeds: Mapping[str, int]
    resamples: int = 1000
    workers: int = 0

    @property
    def encoder(self) -> Path:
        """The file of the second encoder."""
        return self.out / "encoder1.safetensors"

    def seeds_of(self, stage: str, *kinds: Kind) -> range:
        """The seeds of a network, or of a pair, in a stage."""
        seeds = self.seeds[stage]
        decides = all(kind in (F, B, ENCODER) for kind in kinds)
        return range(seeds if decides else min(seeds, FEW_SEEDS))

    def kinds(self, stage: str) -> tuple[Kind, ...]:
        """The kinds of single networks of a stage; those of "longer" beside playroom's."""
        if stage == "longer":
            return (*(kind.longer() for kind in (F, B, ENCODER)), F.longer(4))
        return (*KINDS, F.longer()) if stage == "playroom" else KINDS

    def controls(self, stage: str) -> tuple[Control, ...]:
        """Those that are fused late."""
        return tuple(control.longer() for control in VERDICT) if stage == "longer" else CONTROLS

    def trained_controls(self, stage: str) -> tuple[Control, ...]:
        """Those of which 3-3 is trained."""
        return VERDICT if stage == "playroom-hard" else self.controls(stage)

    def network(self, stage: str, kind: Kind, seed: int) -> Job:
        """A single network on playroom or the harder one."""
        epochs = (f"training.epochs={kind.epochs}", f"training.evaluate_every={kind.epochs}")
        own = (*self._common(stage, kind.suffix, seed), *epochs, *kind.overrides)
        if kind.on_other_encoder:
            weights = f"model.backbone.weights={self.encoder}"
            return NeedsEncoder(_data_of(stage), (*own, weights), self.encoder)
        return Job(_data_of(stage), own)

    def pair(self, stage: str, control: Control, seed: int) -> Job:
        """3-3 of two finished networks; of two F, the second has the next seed."""
        second = seed
        if control.first == control.second:
            second = (seed + 1) % len(self.seeds_of(stage, control.first))
        own = (
            "experiment=3-3",
            *self._common(stage, control.first.suffix, seed),
            *control.options,
            f"init.forward={self.network(stage, control.first, seed).directory}",
            f"init.reverse={self.network(stage, control.second, second).directory}",
        )
        preset = f"{_data_of(stage)}-pair"
        if control.second.on_other_encoder:
            return NeedsEncoder(preset, (*own, f"pair.second_weights={self.encoder}"), self.encoder)
        return Job(preset, own)

    def single(self, title: str, seed: int) -> Job:
        """One network of another experiment, on playroom."""
        own = (*self._common("playroom", "", seed), f"training.evaluate_every={EPOCHS}")
        if title == DISTILLED:
            teacher = self.pair("playroom", DIRECTION, seed).directory
            return Job("playroom", (*own, "experiment=distil", f"init.teacher={teacher}"))
        embedding = ("pair.direction_embedding=true",) if title == SHARED_EMBEDDING else ()
        # As in the presets of pairs: memory is no concern at this size.
        keep = "model.backbone.checkpointing=none"
        return Job("playroom", (*own, "experiment=1s", f"data.reversal={{{REVERSAL}}}", *embedding, keep))

    def salads(self) -> gtea.Plan:
        """Those of 50 Salads."""
        data_set = gtea.DATA_SETS["50salads"]
        return gtea.Plan(
            data_set.features(self.features),
            self.out / "50salads",
            tuple(sorted(data_set.read(self.features).subsets())),
            self.seeds["50salads"],
            experiments=("3-3",),
            data_set=data_set,
            pair_seeds=1,
        )

    def jobs(self, stage: str) -> list[Work]:
        """The trainings of a stage, in the order of their importance; its data must be there."""
        if stage == "50salads":
            plan = self.salads()
            return [job for fold in plan.folds for job in plan.jobs(fold)]
        jobs: list[Work] = [EncoderJob(self.encoder)]
        for kind in self.kinds(stage):
            jobs += [self.network(stage, kind, seed) for seed in self.seeds_of(stage, kind)]
        for control in self.trained_controls(stage):
            seeds = self.seeds_of(stage, control.first, control.second)
            jobs += [self.pair(stage, control, seed) for seed in seeds]
        if stage == "playroom":
            few = range(min(self.seeds[stage], FEW_SEEDS))
            jobs += [self.single(title, seed) for title in (SHARED, SHARED_EMBEDDING, DISTILLED) for seed in few]
        return jobs

    def _common(self, stage: str, suffix: str, seed: int) -> tuple[str, ...]:
        data_set = _data_of(stage)
        data = self.out / data_set
        return (
            f"name={data_set}{suffix}",
            f"seed={seed}",
            f"output={self.out / 'runs'}",
            f"data.annotations={data / 'annotations' / 'playroom.json'}",
            f"data.classes={data / 'annotations' / 'category_idx.txt'}",
            f"data.videos={data / 'raw_data'}",
            "data.reversed_videos=null",  # all networks see the same frames
            f"data.keep_frames_mib={FRAMES_MIB}",
            f"data.frame_cache={data / 'frames'}",
        )


def _data_of(stage: str) -> str:
    return "playroom" if stage == "longer" else stage


def prepare(plan: Plan, stage: str) -> None:
    """Writes the data of a stage that are not there: about 40 CPU seconds for playroom, 100 for the harder one.

    Raises:
        ValueError: the folder holds other data.
        FileNotFoundError: the files of 50 Salads are missing.
    """
    if stage == "50salads":
        salads = plan.salads()
        gtea.write_folds(salads, salads.data_set.read(plan.features))
        return
    folder = plan.out / _data_of(stage)
    sizes = {"training": DEFAULT.training, "validation": DEFAULT.validation}
    is_hard = stage == "playroom-hard"
    mark_folder(folder, {"seed": DATA_SEED, **(asdict(playroom_hard.HARD) if is_hard else sizes)})
    if (folder / "annotations" / "playroom.json").exists():
        return
    with progress_callback(f"rendering {folder.name}") as on_progress:
        if is_hard:
            playroom_hard.write_data_set(folder, seed=DATA_SEED, workers=cores(), on_progress=on_progress)
        else:
            playroom.write_data_set(folder, **sizes, seed=DATA_SEED, workers=cores(), on_progress=on_progress)


# Measured on one core beside another such process: seconds of a step of one network, and of start and test.
SECONDS = {"playroom": (0.17, 11), "playroom-hard": (0.17, 19), "50salads": (0.06, 5), "longer": (0.17, 11)}


def budget(plan: Plan, stages: Sequence[str]) -> Table:
    """The trainings of each stage, and the minutes that those left take on this machine."""
    rows: list[Row] = []
    whole = 0.0
    known: set[Path] = set()
    for stage in stages:
        jobs = [job for job in plan.jobs(stage) if job.directory not in known]
        known |= {job.directory for job in jobs}
        left = [job for job in jobs if not job.is_done()]
        seconds = 0.0
        for job in left:
            step, test = (job.SECONDS_PER_STEP, 10) if isinstance(job, EncoderJob) else SECONDS[stage]
            seconds += step * (job.network_steps() - job.network_steps_done()) + test
        whole += seconds / 60 / cores()
        rows.append((stage, len(jobs), len(left), seconds / 60, seconds / 60 / cores()))
    notes = [f"About {whole:.0f} minutes of training in all, on {cores()} cores that do nothing else."]
    return Table("Trainings", ("stage", "trainings", "left", "CPU minutes", "minutes"), rows, notes)


def measured(plan: Plan, stage: str) -> Measured:
    """The detections of a stage."""
    if stage == "50salads":
        return _measured_salads(plan)
    kinds = plan.kinds(stage)
    networks = {kind: [plan.network(stage, kind, seed) for seed in plan.seeds_of(stage, kind)] for kind in kinds}
    config = networks[kinds[0]][0].config
    truth = _truth(networks[kinds[0]][0])
    pairs = {}
    for control in plan.controls(stage):
        members, trained = {}, {}
        if control in plan.trained_controls(stage):
            for seed in plan.seeds_of(stage, control.first, control.second):
                job = plan.pair(stage, control, seed)
                trained[str(seed)] = _detections(job, truth)
                members[str(seed)] = _members(job, control)
        pairs[control.title] = Pair(control.first.title, control.second.title, members, trained)
    return Measured(
        truth=truth,
        tiou=config.test.tiou,
        networks={
            kind.title: {str(job.config.seed): _detections(job, truth) for job in of}
            for kind, of in networks.items()
        },
        pairs=pairs,
        fuse=partial(_fuse, settings=config.test.nms.suppression),
        singles=_singles(plan, stage, truth),
    )


def _members(job: Job, control: Control) -> tuple[tuple[str, str], tuple[str, str]]:
    """The kind and seed of both networks that a pair started from."""
    initial = job.config.init
    first, second = (str(path).rpartition("-seed")[2] for path in (initial.forward, initial.reverse))
    return (control.first.title, first), (control.second.title, second)


def _singles(plan: Plan, stage: str, truth: Annotations) -> dict[str, Single]:
    """What the compute of a pair also buys; first F, trained for as many epochs as both networks of a late fusion."""
    if stage not in ("playroom", "longer"):
        return {}
    seeds = range(min(plan.seeds[stage], FEW_SEEDS))

    def of(title: str, result: int = 0) -> dict[str, Detections]:
        return {str(seed): _detections(plan.single(title, seed), truth, result) for seed in seeds}

    kind = F.longer(4 if stage == "longer" else 2)
    long = {str(seed): _detections(plan.network(stage, kind, seed), truth) for seed in seeds}
    singles = {kind.title: Single(long, 1, str(kind.epochs), 1)}
    if stage == "longer":
        return singles
    for title in (SHARED, SHARED_EMBEDDING):
        singles[f"{title}, forward"] = Single(of(title), 1, str(2 * EPOCHS), 1)
        singles[f"{title}, both views merged"] = Single(of(title, -1), 1, str(2 * EPOCHS), 2)
    pair_epochs = 2 * (EPOCHS + plan.pair("playroom", DIRECTION, 0).config.training.epochs)
    singles[DISTILLED] = Single(of(DISTILLED), 1, f"{EPOCHS} + {pair_epochs}", 1)
    return singles


def _measured_salads(plan: Plan) -> Measured:
    """The detections of all test folds pooled."""
    salads = plan.salads()
    of_folds = zip(*(salads.jobs(fold) for fold in salads.folds), strict=True)
    jobs = salads.jobs(gtea.POOLED)
    for whole, alike in zip(jobs, of_folds, strict=True):
        gtea.pool(whole, alike)
    config, truth = jobs[0].config, _truth(jobs[0])
    networks: dict[str, dict[str, Detections]] = {"F": {}, "B": {}}
    pairs = {}
    for job in jobs:
        label, seed = Run.read(job.directory).label, str(job.config.seed)
        if label in networks:
            networks[label][seed] = _detections(job, truth)
            continue
        control = SEED if "two forward networks" in label else DIRECTION
        members = {seed: _members(job, control)}
        pairs[control.title] = Pair(
            control.first.title, control.second.title, members, {seed: _detections(job, truth)}
        )
    return Measured(
        truth=truth,
        tiou=config.test.tiou,
        networks=networks,
        pairs={control.title: pairs[control.title] for control in (SEED, DIRECTION) if control.title in pairs},
        fuse=partial(_fuse, settings=config.test.nms.suppression),
    )


def _fuse(sets: Sequence[Detections], settings: NmsConfig | None) -> Detections:
    return merge(*sets, method="wsf", settings=settings)


def _truth(job: Job) -> Annotations:
    return common_ground_truth([Run.read(job.directory)])


def _detections(job: Job, truth: Annotations, result: int = 0) -> Detections:
    """Of a result of a run; the first one of two networks or views is forward, the last one merged."""
    return read_forward(list(Run.read(job.directory).detection_files().values())[result], truth)


def results(plan: Plan, stages: Sequence[str]) -> dict[str, Gains]:
    """The results of each stage, and of the parts of the harder playroom."""
    made = {}
    for stage in stages:
        found = measured(plan, stage)
        for part in ("", *playroom_hard.PARTS) if stage == "playroom-hard" else ("",):
            title = ", ".join(filter(None, (stage, part)))
            with progress_callback(f"evaluating {title}") as on_progress:
                made[title] = second_networks.gains(
                    found.part(part), resamples=plan.resamples, workers=plan.workers, on_progress=on_progress
                )
    return made


def run(
    plan: Plan, stages: Sequence[str], *, train: Callable[[Sequence[Work]], Any] = train_side_by_side
) -> dict[str, Gains]:
    """Makes what is missing of the stages; their results.

    Raises:
        ValueError: a training failed, or the folder has other data or runs with other settings.
    """
    for stage in stages:
        prepare(plan, stage)
    print(budget(plan, stages).text(), file=sys.stderr)
    jobs = {job.directory: job for stage in stages for job in plan.jobs(stage)}
    train(list(jobs.values()))
    return results(plan, stages)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("second-direction"), help="folder of all that is made")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/actionseg"), help="of 50 Salads")
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, default=DEFAULT_STAGES, help="default: all but longer"
    )
    parser.add_argument(
        "--processes", type=int, help="trainings side by side, of one thread each; default: the cores"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    began = time.monotonic()
    plan = Plan(options.out, options.data, SEEDS, workers=cores())

    training_s = 0.0

    def train(jobs: Sequence[Work]) -> None:
        nonlocal training_s
        start = time.monotonic()
        train_side_by_side(jobs, processes=options.processes)
        training_s = time.monotonic() - start

    made = run(plan, options.stages, train=train)
    tables = [
        replace(table, title=f"{title}: {table.title}") for title, one in made.items() for table in one.tables()
    ]
    print("\n\n".join(table.text() for table in tables))
    name = "-".join(["results", *(stage for stage in options.stages if stage not in DEFAULT_STAGES)])
    with atomic_write(options.out / f"{name}.md") as partial:
        partial.write_text("\n".join(table.markdown() for table in tables), encoding="utf-8")
    write_json({title: one.json() for title, one in made.items()}, options.out / f"{name}.json")
    whole = {title: one for title, one in made.items() if title in STAGES}
    second_networks.plot_parts(whole, options.out / f"{name}.png")
    minutes = (time.monotonic() - began) / 60
    print(
        f"\nthis call took {minutes:.1f} minutes, of which {training_s / 60:.1f} for training. "
        f"See {options.out / name}.md and .png"
    )


if __name__ == "__main__":
    main()
