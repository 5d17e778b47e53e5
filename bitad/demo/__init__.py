"""`bitad demo`: the whole system on a data set that it renders itself, without data, GPU or download.

Renders playroom and its time-reversed copy, trains F, B and joint experiments, and adds late fusion and negative
controls. Finished runs are kept, and interrupted ones resume.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bitad.config.names import EXPERIMENTS
from bitad.config.schema import Config
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.detections import Detections, read_detections, write_detections
from bitad.data.formats.database import reverse_annotation_file
from bitad.data.sources import Source, build_source, read_test_ground_truth
from bitad.demo.jobs import Job, cores, train_side_by_side
from bitad.demo.playroom import REVERSED, write_data_set
from bitad.demo.report import DemoResults, write_demo_report, write_full_results
from bitad.evaluation.direction_sensitivity import called_classes, renamed, sensitivity
from bitad.evaluation.mean_average_precision import evaluate
from bitad.inference.detect import detect, detect_on_reversed_playback
from bitad.inference.merge import merge
from bitad.models.build import build_network
from bitad.reports.comparison import Run, compare
from bitad.reports.comparison_page import write_comparison
from bitad.reports.page import check_page
from bitad.reports.tables import Cell, Table
from bitad.runtime.distributed import Ranks
from bitad.runtime.files import read_json, write_json
from bitad.runtime.log import echo
from bitad.runtime.progress import progress_callback
from bitad.timeline import Direction, Grid
from bitad.video.reverse import reverse_folder
from bitad.weights.checkpoint import load_checkpoint
from bitad.weights.loading import load_pretrained

DIRECTIONS: tuple[Direction, ...] = ("forward", "reverse")
ABLATIONS = (
    ("pair.align=naive", "pair.fusion_init=random"),  # as the research group did
    ("pair.align=naive",),
    ("pair.fusion_init=random",),
)
ONE_PROCESS = Ranks(rank=0, world=1, device=torch.device("cpu"))
# Of one network on playroom, measured on one core.
SECONDS_PER_NETWORK_STEP = 0.55


@dataclass(frozen=True)
class Scale:
    """The size of a demo.

    Args:
        seeds: number of seeds of each default variant.
        experiments: experiments of two networks, in addition to the baselines.
        ablations: whether ablations and controls of the experiments are run.
        overrides, pair_overrides: changes to the presets of one network and of two.
    """

    name: str
    training: int = 60
    validation: int = 24
    seeds: int = 1
    experiments: tuple[str, ...] = ("3-1", "3-3")
    ablations: bool = False
    overrides: tuple[str, ...] = ()
    pair_overrides: tuple[str, ...] = ()


DEFAULT = Scale("default")
FULL = Scale("full", seeds=3, experiments=tuple(name for name in EXPERIMENTS if name != "baseline"), ablations=True)
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
        overrides = (f"direction={direction}", f"seed={seed}", reversed_copies)
        return Job("playroom", (*overrides, *self._common(), *self.scale.overrides))

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
        """All trainings: the baselines first, then experiments that start from them, then the longest experiments."""
        jobs = [self.baseline(direction, seed) for seed in self.seeds for direction in DIRECTIONS]
        short = [name for name in self.scale.experiments if EXPERIMENTS[name].starts_from == "baselines"]
        jobs += [self.pair(name, seed) for seed in self.seeds for name in short]
        if self.scale.ablations:
            fusing = [name for name in self.scale.experiments if EXPERIMENTS[name].fusion]
            jobs += [self.pair(name, seed, "pair.second=forward") for seed in self.seeds for name in fusing]
            jobs += [self.pair(name, self.seed, *changes) for name in fusing for changes in ABLATIONS]
        return jobs + [
            self.pair(name, seed) for seed in self.seeds for name in self.scale.experiments if name not in short
        ]

    def _common(self) -> tuple[str, ...]:
        forward = self.out / "data" / "forward"
        return (
            f"output={self.out / 'runs'}",
            f"data.annotations={forward / 'annotations' / 'playroom.json'}",
            f"data.classes={forward / 'annotations' / 'category_idx.txt'}",
            f"data.videos={forward / 'raw_data'}",
        )


def training_table(jobs: Sequence[Job]) -> Table:
    """A row per run with its budget, and the estimated total time."""
    rows: list[tuple[Cell, ...]] = []
    for job in jobs:
        left = 0 if job.is_done() else job.network_steps() - job.network_steps_done()
        minutes = job.network_steps() * SECONDS_PER_NETWORK_STEP / 60
        rows.append((job.directory.name, job.config.training.epochs, job.network_steps(), minutes, left))
    total = sum(int(row[-1] or 0) for row in rows) * SECONDS_PER_NETWORK_STEP / 60 / cores()
    note = f"Steps are counted per network. About {total:.0f} minutes on {cores()} cores, plus the tests."
    return Table("Trainings", ("run", "epochs", "steps", "budget (minutes)", "steps left"), tuple(rows), (note,))


def run_demo(out: Path, *, scale: Scale, seed: int, results_file: Path | None = None) -> DemoResults:
    """Runs the demo in the folder ``out``.

    Args:
        results_file: the Markdown file of a full demo; by default ``out``/results-playroom.md.

    Raises:
        ValueError: ``out`` holds a demo with other data or a page of something else, or a training failed.
        OSError: ``out`` is not writable.
    """
    began = time.monotonic()
    check_page(out / "index.html")
    trainings = Trainings(out, scale, seed)
    _mark_folder(out, scale, seed)
    _make_data(out / "data", scale, seed)
    jobs = trainings.jobs()
    print(training_table(jobs).text(), file=sys.stderr)
    train_side_by_side(jobs, what="training")
    forward, reverse = trainings.baseline("forward", seed).config, trainings.baseline("reverse", seed).config
    truth = read_test_ground_truth(forward)
    pairs = {name: trainings.pair(name, seed).directory for name in scale.experiments if EXPERIMENTS[name].fusion}
    detections = _detect_all(forward, reverse, pairs, truth)
    on_reversed = [detections["F on reversed playback"]]
    on_reversed += [
        _detect_on_reversed_playback(trainings.baseline("forward", other).directory) for other in trainings.seeds[1:]
    ]
    for name, found in detections.items():
        write_detections(found, out / "detections" / f"{name}.json")
    tiou = forward.test.tiou
    results = DemoResults(
        truth=truth,
        detections=detections,
        evaluations={name: evaluate(truth, found, tiou=tiou) for name, found in detections.items()},
        reversed_labels=evaluate(renamed(truth, REVERSED), detections["F on reversed playback"], tiou=tiou),
        calls={name: called_classes(truth, detections[name]) for name in ("F", "F on reversed playback")},
        sensitivity=sensitivity(
            truth,
            forward=[_read_result(trainings.baseline("forward", other)) for other in trainings.seeds],
            backward=[_read_result(trainings.baseline("reverse", other)) for other in trainings.seeds],
            reversed_playback=on_reversed,
            tiou=tiou,
        ),
        runs={"F": forward.run_directory, "B": reverse.run_directory, **pairs},
        seconds=time.monotonic() - began,
        smoke=scale is SMOKE,
    )
    page = write_demo_report(out, results)
    print(results.table().text())
    echo("", f"{results.seconds / 60:.1f} minutes; open {page}")
    if scale.ablations:
        comparison = compare([job.directory for job in jobs])
        write_comparison(out / "comparison", comparison)
        file = write_full_results(results_file or out / "results-playroom.md", results, comparison)
        print(f"\n{comparison.table().text()}\n\nsee {file}")
    return results


def _mark_folder(out: Path, scale: Scale, seed: int) -> None:
    """Records the data of the demo in its folder; refuses a folder with other data."""
    wanted = {"training": scale.training, "validation": scale.validation, "seed": seed}
    marker = out / "demo.json"
    if marker.exists():
        found = read_json(marker)
        if found != wanted:
            raise ValueError(f"{out} holds another demo ({found}, not {wanted}); choose another --out or delete it")
    write_json(wanted, marker)


def _make_data(data: Path, scale: Scale, seed: int) -> None:
    """Renders the videos, and writes their time-reversed copies and both annotation files."""
    forward, reverse = data / "forward", data / "reverse"
    annotations = Path("annotations") / "playroom.json"
    if not (forward / annotations).exists():
        with progress_callback("rendering videos") as on_progress:
            write_data_set(
                forward,
                training=scale.training,
                validation=scale.validation,
                seed=seed,
                workers=cores(),
                on_progress=on_progress,
            )
    with progress_callback("reversing videos") as on_progress:
        report = reverse_folder(forward / "raw_data", reverse / "raw_data", workers=cores(), on_progress=on_progress)
    if report.failed:
        raise ValueError(f"some videos cannot be reversed: {report.failed}")
    reverse_annotation_file(forward / annotations, reverse / annotations)


def _read_result(job: Job) -> Detections:
    return read_detections(job.directory / "detections.json").forward()


class StaticFrames:
    """A source that repeats the middle frame of each window: the static-frame control."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def grid(self, video: AnnotatedVideo) -> Grid:
        return self.source.grid(video)

    @property
    def has_reversed_copies(self) -> bool:
        return self.source.has_reversed_copies

    @property
    def repeated(self) -> int:
        return self.source.repeated

    def read(self, video: AnnotatedVideo, grid: Grid, *, view: Direction = "forward", margin: float = 1.0) -> Tensor:
        frames = self.source.read(video, grid, view=view, margin=margin)
        return frames[len(frames) // 2].expand_as(frames)


def _detect_all(
    forward: Config, reverse: Config, pairs: Mapping[str, Path], truth: Annotations
) -> dict[str, Detections]:
    """Detections by name: F, B, their late fusion, joint experiments, and negative controls."""
    found = {
        name: read_detections(config.run_directory / "detections.json")
        for name, config in (("F", forward), ("B", reverse))
    }
    found["late fusion"] = merge(found["F"], found["B"], method="soft-nms")
    for name, directory in pairs.items():
        for basis, file in Run.read(directory).detection_files().items():
            found[f"{name}, {basis}"] = read_detections(file).forward()
    found["F on reversed playback"] = _detect_on_reversed_playback(forward.run_directory)
    torch.manual_seed(forward.seed)
    untrained = build_network(forward, len(truth.classes)).eval()
    load_pretrained(untrained, forward)
    detector, source = load_checkpoint(forward.run_directory).network(), build_source(forward)
    for name, network, frames in (
        ("F on still windows", detector, StaticFrames(source)),
        ("untrained", untrained, source),
    ):
        found[name] = detect(network, truth, frames, forward, ONE_PROCESS, description=f"testing {name}").merged
    return {name: replace(detections, details={"result": name}) for name, detections in found.items()}


def _detect_on_reversed_playback(run: Path) -> Detections:
    return detect_on_reversed_playback(load_checkpoint(run), ONE_PROCESS)
