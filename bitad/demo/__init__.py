"""`bitad demo`: the whole system on a data set that it renders itself, without data, GPU or download.

Renders playroom and its time-reversed copy, trains F, B and joint experiments, and adds late fusion and negative
controls. Finished runs are kept, and interrupted ones resume.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol, get_args

import torch
from torch import Tensor

from bitad.config.loading import load_config
from bitad.config.names import EXPERIMENTS
from bitad.config.schema import Config
from bitad.data import fingerprints
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.detections import Detections, read_detections, write_detections
from bitad.data.formats.database import reverse_annotation_file
from bitad.data.sources import VideoFiles, build_source, read_ground_truth, read_test_ground_truth
from bitad.demo.playroom import REVERSED, write_data_set
from bitad.demo.report import DemoResults, write_demo_report, write_full_results
from bitad.evaluation.direction_sensitivity import called_classes, renamed, sensitivity
from bitad.evaluation.mean_average_precision import evaluate
from bitad.evaluation.operating_points import OperatingPoints
from bitad.inference.detect import detect, detect_on_reversed_playback
from bitad.inference.merge import merge
from bitad.models.build import build_network
from bitad.reports.comparison import Run, compare
from bitad.reports.comparison_page import write_comparison
from bitad.reports.page import check_page
from bitad.reports.tables import Row, Table
from bitad.runtime.distributed import Ranks
from bitad.runtime.files import read_json, write_json
from bitad.runtime.log import echo
from bitad.runtime.progress import Meter, progress_callback
from bitad.runtime.workers import start_process
from bitad.timeline import Direction, Grid, View
from bitad.training.metrics import METRICS, read_metrics
from bitad.video.reverse import reverse_folder
from bitad.weights.checkpoint import load_checkpoint
from bitad.weights.loading import load_pretrained

ABLATIONS = (
    ("pair.align=naive", "pair.fusion_init=random"),  # as the research group did
    ("pair.align=naive",),
    ("pair.fusion_init=random",),
)
ONE_PROCESS = Ranks(rank=0, world=1, device=torch.device("cpu"))
# Of one network on playroom, measured on one core.
SECONDS_PER_NETWORK_STEP = 0.55
POLL_SECONDS = 0.5
# What a training imports takes a new interpreter three CPU seconds. PyTorch's first optimiser imports its compiler.
PRELOADED = ("torch._dynamo", "bitad.cli", "bitad.demo", "bitad.training.trainer")


class Work(Protocol):
    """What :func:`train_side_by_side` runs, in a process of its own."""

    @property
    def directory(self) -> Path:
        """What it makes."""

    @property
    def output(self) -> Path:
        """The file of what its process prints."""

    def needs(self) -> set[Path]:
        """What others make and it needs."""

    def is_done(self) -> bool:
        """Whether it has finished; raises ValueError if what exists is not what it makes."""

    def network_steps(self) -> int:
        """The steps of each network together, as a measure of the cost."""

    def network_steps_done(self) -> int:
        """Those that are done."""

    def start(self) -> BaseProcess:
        """Starts or resumes it on one thread."""


@dataclass(frozen=True)
class Job:
    """One training: the arguments of ``bitad train``, and its run."""

    preset: str
    overrides: tuple[str, ...]

    @cached_property
    def config(self) -> Config:
        return load_config(self.preset, self.overrides)

    @property
    def directory(self) -> Path:
        return self.config.run_directory

    @property
    def output(self) -> Path:
        return self.directory / "output.txt"

    def needs(self) -> set[Path]:
        """The run directories or checkpoints that its networks start from, and its teacher."""
        initial = self.config.init
        return {path for path in (initial.forward, initial.reverse, *(initial.teacher or ())) if path is not None}

    def videos(self) -> list[AnnotatedVideo]:
        """The training videos with ground truth."""
        data = self.config.data
        videos = read_ground_truth(data).subset(data.training_subset).videos
        return [video for video in videos.values() if video.labels]

    def network_steps(self) -> int:
        """The steps of each network together, as a measure of the cost."""
        training = self.config.training
        steps = len(self.videos()) * training.windows_per_video // training.batch
        return training.epochs * steps * len(self.config.views)

    def network_steps_done(self) -> int:
        metrics = self.directory / METRICS
        records = read_metrics(metrics) if metrics.exists() else []
        return int(records[-1]["step"]) * len(self.config.views) if records else 0

    def is_done(self) -> bool:
        """Whether the run has finished; raises ValueError if it exists with other settings or data."""
        last = self.directory / "last.pt"
        if not last.exists():
            return False
        saved = load_checkpoint(last)
        changes = saved.changes(self.config)
        if saved.config.init != self.config.init:  # not a change for a resumed run, but another run here
            changes.append(f"init was {saved.config.init}, is {self.config.init}")
        if saved.data is not None and not changes:
            truth = read_test_ground_truth(self.config)
            found = fingerprints.fingerprints(self.config, self.videos(), truth)
            changes = fingerprints.changes(saved.data, found)
        if changes:
            raise ValueError(f"{self.directory} is another run ({'; '.join(changes)}); delete or move it")
        return saved.epoch == self.config.training.epochs

    def start(self) -> BaseProcess:
        """Starts or resumes the training on one thread, with its output in output.txt. It ends with this process."""
        command = ["train", self.preset, *self.overrides, "--device", "cpu"]
        if (self.directory / "last.pt").exists():
            command.append("--resume")
        self.directory.mkdir(parents=True, exist_ok=True)
        return start_process(_run_command, command, output=self.output, preload=PRELOADED)


def _run_command(arguments: Sequence[str]) -> None:
    """As ``python -m bitad``."""
    sys.argv = ["bitad", *arguments]
    runpy.run_module("bitad", run_name="__main__")


def cores() -> int:
    """The number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def train_side_by_side(jobs: Sequence[Work], *, processes: int | None = None) -> None:
    """Runs all jobs in their order; a job waits for those it needs. Finished ones are kept, interrupted ones resume.

    Single-threaded trainings side by side are 1.4 times faster on two cores than multi-threaded ones in turn. If one
    fails, the others stop, to resume in the next call, and the ValueError has its last line.
    """
    waiting = [job for job in jobs if not job.is_done()]
    steps = {job: job.network_steps() for job in waiting}
    running: dict[Work, BaseProcess] = {}

    def steps_left() -> int:
        return sum(steps[job] - job.network_steps_done() for job in (*waiting, *running))

    total = steps_left()
    with Meter("training", total) as meter:
        try:
            while waiting or running:
                not_done = {job.directory for job in (*waiting, *running)}
                ready = [job for job in waiting if not (job.needs() & not_done)]
                for job in ready[: (processes or cores()) - len(running)]:
                    running[job] = job.start()
                    waiting.remove(job)
                wait([process.sentinel for process in running.values()], POLL_SECONDS)
                for job, process in list(running.items()):
                    if process.is_alive():
                        continue
                    if process.exitcode != 0:
                        output = job.output.read_text(encoding="utf-8", errors="replace")
                        last_line = next(filter(None, reversed(output.split("\n"))), "killed")
                        raise ValueError(f"training {job.directory.name} failed: {last_line}")
                    del running[job]
                names = ", ".join(job.directory.name for job in running)
                meter.advance(max(0, total - steps_left() - meter.done), note=names)
        finally:
            for process in running.values():
                process.kill()
            for process in running.values():
                process.join()


@dataclass(frozen=True)
class Scale:
    """The size of a demo."""

    name: str
    training: int = 60  # videos
    validation: int = 24
    seeds: int = 1  # of each default variant
    experiments: tuple[str, ...] = ("3-1", "3-3")  # in addition to the baselines
    ablations: bool = False  # whether to run ablations and controls too
    overrides: tuple[str, ...] = ()  # of the preset of one network
    pair_overrides: tuple[str, ...] = ()  # of that of two


DEFAULT = Scale("default")
FULL = Scale(
    "full",
    seeds=3,
    experiments=tuple(name for name, experiment in EXPERIMENTS.items() if experiment.networks == 2),
    ablations=True,
)
_SHORT = ("training.epochs=2", "training.evaluate_every=2")
SMOKE = Scale("smoke", training=4, validation=2, overrides=_SHORT, pair_overrides=_SHORT)


@dataclass(frozen=True)
class Trainings:
    """The trainings of a demo."""

    out: Path
    scale: Scale
    seed: int

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.scale.seeds)

    def baseline(self, direction: Direction, seed: int) -> Job:
        """F or B."""
        reversed_copies = f"data.reversed_videos={self.out / 'data' / 'reverse' / 'raw_data'}"
        own = (f"direction={direction}", f"seed={seed}", reversed_copies)
        return Job("playroom", (*own, *self._common(), *self.scale.overrides))

    def pair(self, experiment: str, seed: int, *changes: str) -> Job:
        """An experiment of two networks; with ``pair.second=forward``, its control of two F with consecutive seeds."""
        overrides = (f"experiment={experiment}", f"seed={seed}", *changes, *self._common())
        if EXPERIMENTS[experiment].starts_from == "backbone":
            # The recipe of the baselines, so that the experiment is the only difference.
            return Job("playroom", (*overrides, "data.reversed_videos=null", *self.scale.overrides))
        second: tuple[Direction, int] = ("reverse", seed)
        if "pair.second=forward" in changes:
            second = ("forward", self.seed + (seed - self.seed + 1) % self.scale.seeds)
        initial = (
            f"init.forward={self.baseline('forward', seed).directory}",
            f"init.reverse={self.baseline(*second).directory}",
        )
        return Job("playroom-pair", (*overrides, *initial, *self.scale.pair_overrides))

    def jobs(self) -> list[Job]:
        """The baselines, then the experiments that start from them, then the longest experiments."""
        names = self.scale.experiments
        short = [name for name in names if EXPERIMENTS[name].starts_from == "baselines"]
        long = [name for name in names if name not in short]
        jobs = []
        for seed in self.seeds:
            jobs += [self.baseline(direction, seed) for direction in get_args(Direction)]
        jobs += [self.pair(name, seed) for seed in self.seeds for name in short]
        if self.scale.ablations:
            fusing = [name for name in names if EXPERIMENTS[name].fusion]
            for seed in self.seeds:
                jobs += [self.pair(name, seed, "pair.second=forward") for name in fusing]
            for name in fusing:
                jobs += [self.pair(name, self.seed, *changes) for changes in ABLATIONS]
        return jobs + [self.pair(name, seed) for seed in self.seeds for name in long]

    def _common(self) -> tuple[str, ...]:
        forward = self.out / "data" / "forward"
        return (
            f"output={self.out / 'runs'}",
            f"data.annotations={forward / 'annotations' / 'playroom.json'}",
            f"data.classes={forward / 'annotations' / 'category_idx.txt'}",
            f"data.videos={forward / 'raw_data'}",
        )


def training_table(jobs: Sequence[Job]) -> Table:
    """The budget of each run, and the estimated total time."""
    rows: list[Row] = []
    total = 0
    for job in jobs:
        steps = job.network_steps()
        left = 0 if job.is_done() else steps - job.network_steps_done()
        minutes = steps * SECONDS_PER_NETWORK_STEP / 60
        rows.append((job.directory.name, job.config.training.epochs, steps, minutes, left))
        total += left
    minutes = total * SECONDS_PER_NETWORK_STEP / 60 / cores()
    note = f"Steps are counted per network. About {minutes:.0f} minutes on {cores()} cores, plus the tests."
    columns = ("run", "epochs", "steps", "budget (minutes)", "steps left")
    return Table("Trainings", columns, rows, [note])


def run_demo(
    out: Path,
    *,
    scale: Scale,
    seed: int,
    results_file: Path | None = None,
) -> DemoResults:
    """Runs the demo in ``out``; a full one also writes ``results_file`` (``out``/results-playroom.md)."""
    began = time.monotonic()
    check_page(out / "index.html")
    trainings = Trainings(out, scale, seed)
    data_set = {"training": scale.training, "validation": scale.validation, "seed": seed}
    mark_folder(out, data_set)
    make_data(out / "data", data_set)
    jobs = trainings.jobs()
    print(training_table(jobs).text(), file=sys.stderr)
    train_side_by_side(jobs)
    forward = [trainings.baseline("forward", each) for each in trainings.seeds]
    reverse = [trainings.baseline("reverse", each) for each in trainings.seeds]
    of_f = [read_detections(job.directory / "detections.json") for job in forward]
    of_b = [read_detections(job.directory / "detections.json") for job in reverse]
    reversed_playback = []
    for job in forward:
        checkpoint = load_checkpoint(job.directory)
        reversed_playback.append(detect_on_reversed_playback(checkpoint, ONE_PROCESS))
    found = {
        "F": of_f[0],
        "B": of_b[0],
        "late fusion": merge(of_f[0], of_b[0], method="soft-nms"),
    }
    runs = {"F": forward[0].directory, "B": reverse[0].directory}
    for name in scale.experiments:
        if EXPERIMENTS[name].fusion:
            runs[name] = trainings.pair(name, seed).directory
            for basis, file in Run.read(runs[name]).detection_files().items():
                found[f"{name}, {basis}"] = read_detections(file).forward()
    found["F on reversed playback"] = reversed_playback[0]
    config = forward[0].config
    truth = read_test_ground_truth(config)
    found |= _detect_without_cues(config, truth)
    detections = {}
    for name, one in found.items():
        scores = OperatingPoints.of(truth, one).scores(one.classes)
        detections[name] = replace(one, details={"result": name}).with_min_scores(scores)
        write_detections(detections[name], out / "detections" / f"{name}.json")
    tiou = config.test.tiou
    results = DemoResults(
        truth=truth,
        detections=detections,
        evaluations={name: evaluate(truth, one, tiou=tiou) for name, one in detections.items()},
        reversed_labels=evaluate(renamed(truth, REVERSED), reversed_playback[0], tiou=tiou),
        calls={name: called_classes(truth, detections[name]) for name in ("F", "F on reversed playback")},
        sensitivity=sensitivity(
            truth,
            forward=of_f,
            backward=of_b,
            reversed_playback=reversed_playback,
            tiou=tiou,
        ),
        runs=runs,
        seconds=time.monotonic() - began,
        smoke=scale is SMOKE,
    )
    page = write_demo_report(out, results)
    print(results.table().text())
    echo("", f"{results.seconds / 60:.1f} minutes; open {page}")
    if scale.ablations:
        comparison = compare([job.directory for job in jobs])
        write_comparison(out / "comparison", comparison)
        file = results_file or out / "results-playroom.md"
        write_full_results(file, results, comparison)
        print(f"\n{comparison.table().text()}\n\nsee {file}")
    return results


def mark_folder(out: Path, data_set: Mapping[str, Any]) -> None:
    """Records the data set in its folder; raises ValueError for a folder with another."""
    marker = out / "demo.json"
    if marker.exists() and (found := read_json(marker)) != json.loads(json.dumps(data_set)):
        raise ValueError(
            f"{out} holds another data set ({found}, not {data_set}); choose another --out or delete it"
        )
    write_json(data_set, marker)


def make_data(data: Path, data_set: Mapping[str, int]) -> None:
    """Writes the videos, their time-reversed copies and both annotation files."""
    forward, reverse = data / "forward", data / "reverse"
    annotations = Path("annotations") / "playroom.json"
    if not (forward / annotations).exists():
        with progress_callback("rendering videos") as on_progress:
            write_data_set(forward, **data_set, workers=cores(), on_progress=on_progress)
    with progress_callback("reversing videos") as on_progress:
        folders = forward / "raw_data", reverse / "raw_data"
        report = reverse_folder(*folders, workers=cores(), on_progress=on_progress)
    if report.failed:
        raise ValueError(f"some videos cannot be reversed: {report.failed}")
    reverse_annotation_file(forward / annotations, reverse / annotations)


class StaticFrames(VideoFiles):
    """Video files of which each window repeats its middle frame: the static-frame control."""

    def read(self, video: AnnotatedVideo, grid: Grid, *, view: View = "forward", margin: float = 1.0) -> Tensor:
        frames = super().read(video, grid, view=view, margin=margin)
        return frames[len(frames) // 2].expand_as(frames)


def _detect_without_cues(config: Config, truth: Annotations) -> dict[str, Detections]:
    """Negative controls: detections of F without motion, and of a network without training."""
    torch.manual_seed(config.seed)
    untrained = build_network(config, len(truth.classes)).eval()
    load_pretrained(untrained, config)
    source = build_source(config)
    settings = {field.name: getattr(source, field.name) for field in fields(source) if field.init}
    controls = {
        "F on still windows": (load_checkpoint(config.run_directory).network(), StaticFrames(**settings)),
        "untrained": (untrained, source),
    }
    found = {}
    for name, (network, frames) in controls.items():
        results = detect(network, truth, frames, config, ONE_PROCESS, description=f"testing {name}")
        found[name] = results.merged
    return found
