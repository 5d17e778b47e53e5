"""`bitad demo`: the whole system on a data set that it renders itself, without data, GPU or download.

Renders playroom and its reversed twin, trains a forward detector F and a reverse detector B, then pairs of them that
learn together, through `bitad train`; fuses late, and shows beside all that what must fail: an untrained network, F on
windows that stand still, and F on reversed playback. With every experiment (`--full`) it also compares them over seeds.
Every run that is finished is kept, and one that was interrupted goes on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bitad.config.experiments import EXPERIMENTS
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
    ("pair.align=naive", "pair.fusion_init=random"),  # the research group's own
    ("pair.align=naive",),
    ("pair.fusion_init=random",),
)
ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"))
# A step of one network on playroom, on one core of the machine that this was written on.
SECONDS_PER_NETWORK_STEP = 0.55


@dataclass(frozen=True)
class Scale:
    """How large a demo is.

    Args:
        name: of the option that asks for it.
        training, validation: numbers of videos.
        seeds: how many of each default variant.
        experiments: of two networks, beside the baselines.
        ablations: whether the experiments are also run without what makes them work, and as controls.
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
class Plan:
    """The trainings of a demo.

    Args:
        out: the demo's folder.
        scale: of the demo.
        seed: the first one; that of the data, too.
    """

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
        return Job("playroom", (*own, *self._everywhere(), *self.scale.overrides))

    def pair(self, experiment: str, seed: int, *changes: str) -> Job:
        """An experiment of two networks; with ``pair.second=forward`` the control, two F of neighbouring seeds."""
        own = (f"experiment={experiment}", f"seed={seed}", *changes, *self._everywhere())
        if EXPERIMENTS[experiment].starts_from == "backbone":
            # By the baselines' recipe, from which it is to differ in nothing else.
            return Job("playroom", (*own, "data.reversed_videos=null", *self.scale.overrides))
        second: tuple[Direction, int] = ("reverse", seed)
        if "pair.second=forward" in changes:
            second = ("forward", self.seed + (seed - self.seed + 1) % self.scale.seeds)
        initial = (
            f"init.forward={self.baseline('forward', seed).directory}",
            f"init.reverse={self.baseline(*second).directory}",
        )
        return Job("playroom-pair", (*own, *initial, *self.scale.pair_overrides))

    def jobs(self) -> list[Job]:
        """All trainings: those first that others start from, those last that are as long as theirs."""
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

    def _everywhere(self) -> tuple[str, ...]:
        forward = self.out / "data" / "forward"
        return (
            f"output={self.out / 'runs'}",
            f"data.annotations={forward / 'annotations' / 'playroom.json'}",
            f"data.classes={forward / 'annotations' / 'category_idx.txt'}",
            f"data.videos={forward / 'raw_data'}",
        )


def announce(jobs: Sequence[Job]) -> str:
    """What is going to be trained: a line a run with its budget, and how long it may take in all."""
    rows: list[tuple[Cell, ...]] = []
    for job in jobs:
        left = 0 if job.is_done() else job.network_steps() - job.network_steps_done()
        minutes = job.network_steps() * SECONDS_PER_NETWORK_STEP / 60
        rows.append((job.directory.name, job.config.training.epochs, job.network_steps(), minutes, left))
    total = sum(int(row[-1] or 0) for row in rows) * SECONDS_PER_NETWORK_STEP / 60 / cores()
    note = f"Steps are counted for each network. About {total:.0f} minutes on {cores()} cores, and the tests."
    return Table("Trainings", ("run", "epochs", "steps", "budget (minutes)", "steps left"), tuple(rows), (note,)).text()


def run_demo(out: Path, *, scale: Scale, seed: int, results_file: Path | None = None) -> DemoResults:
    """Runs the demo in the folder ``out``.

    Args:
        results_file: where a full demo writes its results as Markdown; by default ``out``/results-playroom.md.

    Raises:
        ValueError: ``out`` holds a demo of other data, or a page that is not BiTAD's; or a training failed.
        OSError: nothing can be written there.
    """
    began = time.monotonic()
    check_page(out / "index.html")
    plan = Plan(out, scale, seed)
    _claim(out, scale, seed)
    _make_data(out / "data", scale, seed)
    jobs = plan.jobs()
    print(announce(jobs), file=sys.stderr)
    train_side_by_side(jobs, what="training")
    forward, reverse = plan.baseline("forward", seed).config, plan.baseline("reverse", seed).config
    truth = read_test_ground_truth(forward)
    pairs = {name: plan.pair(name, seed).directory for name in scale.experiments if EXPERIMENTS[name].fusion}
    detections = _detect_everything(forward, reverse, pairs, truth)
    on_reversed = [detections["F on reversed playback"]]
    on_reversed += [_on_reversed_playback(plan.baseline("forward", other).directory) for other in plan.seeds[1:]]
    for name, found in detections.items():
        write_detections(found, out / "detections" / f"{name}.json")
    tiou = forward.test.tiou
    results = DemoResults(
        truth=truth,
        detections=detections,
        evaluations={name: evaluate(truth, found, tiou=tiou) for name, found in detections.items()},
        evaluation_by_partner=evaluate(renamed(truth, REVERSED), detections["F on reversed playback"], tiou=tiou),
        calls={name: called_classes(truth, detections[name]) for name in ("F", "F on reversed playback")},
        sensitivity=sensitivity(
            truth,
            forward=[_found(plan.baseline("forward", other)) for other in plan.seeds],
            backward=[_found(plan.baseline("reverse", other)) for other in plan.seeds],
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


def _claim(out: Path, scale: Scale, seed: int) -> None:
    """Marks the folder as one with this data; a folder with other data is refused."""
    wanted = {"training": scale.training, "validation": scale.validation, "seed": seed}
    marker = out / "demo.json"
    if marker.exists():
        found = read_json(marker)
        if found != wanted:
            raise ValueError(f"{out} holds another demo ({found}, not {wanted}); choose another --out or delete it")
    write_json(wanted, marker)


def _make_data(data: Path, scale: Scale, seed: int) -> None:
    """The rendered videos, their reverse-playback twins and both annotation files, in the group's folder layout."""
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
        raise ValueError(f"videos that could not be reversed: {report.failed}")
    reverse_annotation_file(forward / annotations, reverse / annotations)


def _found(job: Job) -> Detections:
    return read_detections(job.directory / "detections.json").forward()


class StandingStill:
    """A source whose windows show nothing but their middle frame: what a detector knows without motion."""

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


def _detect_everything(
    forward: Config, reverse: Config, pairs: Mapping[str, Path], truth: Annotations
) -> dict[str, Detections]:
    """Detections by name: of F, B and their late fusion, of pairs (by experiment), and of what must fail."""
    found = {
        name: read_detections(config.run_directory / "detections.json")
        for name, config in (("F", forward), ("B", reverse))
    }
    found["late fusion"] = merge(found["F"], found["B"], method="soft-nms")
    for name, directory in pairs.items():
        for basis, file in Run.read(directory).detection_files().items():
            found[f"{name}, {basis}"] = read_detections(file).forward()
    found["F on reversed playback"] = _on_reversed_playback(forward.run_directory)
    torch.manual_seed(forward.seed)
    untrained = build_network(forward, len(truth.classes)).eval()
    load_pretrained(untrained, forward)
    detector, source = load_checkpoint(forward.run_directory).network(), build_source(forward)
    for name, network, frames in (
        ("F on still windows", detector, StandingStill(source)),
        ("untrained", untrained, source),
    ):
        found[name] = detect(network, truth, frames, forward, ALONE, what=f"testing {name}").merged
    return {name: replace(detections, details={"result": name}) for name, detections in found.items()}


def _on_reversed_playback(forward: Path) -> Detections:
    return detect_on_reversed_playback(load_checkpoint(forward), ALONE)
