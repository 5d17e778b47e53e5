"""`bitad demo`: the whole system on a data set that it renders itself, without data, GPU or download.

Renders playroom and its reversed twin, trains a forward detector F and a reverse detector B side by side through
`bitad train`, tests both, fuses them late, and shows beside them what must fail: an untrained network, F on windows
that stand still, and F on reversed playback. Every step that is done is kept, so an interrupted demo goes on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bitad.config import Config, load_config
from bitad.data.annotations import AnnotatedVideo, Annotations, read_annotations, reverse_annotation_file
from bitad.data.dataset import Source, build_source
from bitad.data.detections import Basis, Detections, read_detections, write_detections
from bitad.data.files import read_json, write_json
from bitad.data.playroom import REVERSED, write_data_set
from bitad.data.reverse import reverse_folder
from bitad.data.windows import Timebase
from bitad.evaluation.direction_sensitivity import called_classes, renamed
from bitad.evaluation.mean_average_precision import evaluate
from bitad.inference.detect import detect
from bitad.inference.merge import merge
from bitad.models.build import build_network, load_pretrained
from bitad.progress import Meter, following
from bitad.reports.demo import DemoResults, write_demo_report
from bitad.timeline import Grid
from bitad.training.checkpoint import load_checkpoint
from bitad.training.distributed import Processes

DIRECTIONS = ("forward", "reverse")
SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True)
class Scale:
    """How large a demo is: numbers of videos, and changes to the preset `playroom`."""

    name: str
    training: int
    validation: int
    overrides: tuple[str, ...] = ()


FULL = Scale("full", training=60, validation=24)
SMOKE = Scale("smoke", training=4, validation=2, overrides=("training.epochs=2", "training.evaluate_every=2"))


def run_demo(out: Path, *, scale: Scale, seed: int) -> DemoResults:
    """Runs the demo in the folder ``out``.

    Raises:
        ValueError: ``out`` holds a demo of another size or seed, or a training failed.
    """
    began = time.monotonic()
    _claim(out, scale, seed)
    _make_data(out / "data", scale, seed)
    configs = {direction: load_config("playroom", _overrides(out, scale, seed, direction)) for direction in DIRECTIONS}
    _train_side_by_side(out, configs, scale, seed)
    truth = read_annotations(configs["forward"].data.annotations, classes=configs["forward"].data.classes)
    truth = truth.subset(configs["forward"].data.test_subset)
    detections = _detect_everything(configs, truth)
    for name, found in detections.items():
        write_detections(found, out / "detections" / f"{name}.json")
    tiou = configs["forward"].test.tiou
    results = DemoResults(
        truth=truth,
        detections=detections,
        evaluations={name: evaluate(truth, found, tiou=tiou) for name, found in detections.items()},
        evaluation_by_partner=evaluate(renamed(truth, REVERSED), detections["F on reversed playback"], tiou=tiou),
        calls={name: called_classes(truth, detections[name]) for name in ("F", "F on reversed playback")},
        runs={direction: config.run_directory for direction, config in configs.items()},
        seconds=time.monotonic() - began,
        smoke=scale is SMOKE,
    )
    page = write_demo_report(out, results)
    print(results.table().text())
    print(f"\n{results.seconds / 60:.1f} minutes; open {page}")
    return results


def _claim(out: Path, scale: Scale, seed: int) -> None:
    """Marks the folder as this demo's; a folder of another one is refused."""
    wanted = {"scale": scale.name, "seed": seed}
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
        with following("rendering videos") as on_progress:
            write_data_set(
                forward,
                training=scale.training,
                validation=scale.validation,
                seed=seed,
                workers=_cores(),
                on_progress=on_progress,
            )
    with following("reversing videos") as on_progress:
        report = reverse_folder(forward / "raw_data", reverse / "raw_data", workers=_cores(), on_progress=on_progress)
    if report.failed:
        raise ValueError(f"videos that could not be reversed: {report.failed}")
    reverse_annotation_file(forward / annotations, reverse / annotations)


def _cores() -> int:
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _overrides(out: Path, scale: Scale, seed: int, direction: str) -> list[str]:
    forward = out / "data" / "forward"
    return [
        f"direction={direction}",
        f"seed={seed}",
        f"output={out / 'runs'}",
        f"data.annotations={forward / 'annotations' / 'playroom.json'}",
        f"data.classes={forward / 'annotations' / 'category_idx.txt'}",
        f"data.videos={forward / 'raw_data'}",
        f"data.reversed_videos={out / 'data' / 'reverse' / 'raw_data'}",
        *scale.overrides,
    ]


def _train_side_by_side(out: Path, configs: dict[str, Config], scale: Scale, seed: int) -> None:
    """`bitad train` for both directions at once: two single-threaded processes beat one after the other by 1.4."""
    running: dict[str, subprocess.Popen[bytes]] = {}
    for direction, config in configs.items():
        last = config.run_directory / "last.pt"
        if last.exists() and load_checkpoint(last).epoch == config.training.epochs:
            continue
        command = [sys.executable, "-m", "bitad", "train", "playroom", *_overrides(out, scale, seed, direction)]
        command += ["--device", "cpu", *(["--resume"] if last.exists() else [])]
        config.run_directory.mkdir(parents=True, exist_ok=True)
        with (config.run_directory / "output.txt").open("wb") as output:
            running[direction] = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
    try:
        _wait(running, configs, scale)
    finally:
        for process in running.values():
            process.kill()


def _wait(running: dict[str, subprocess.Popen[bytes]], configs: dict[str, Config], scale: Scale) -> None:
    """Shows how far the trainings are until they have ended well.

    Raises:
        ValueError: one did not; the message ends with what it said last.
    """
    if not running:
        return
    training = configs["forward"].training
    steps = training.epochs * (scale.training * training.windows_per_video // training.batch)
    waiting = dict(running)
    with Meter("training F and B", steps * len(running)) as meter:
        while waiting:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            done = sum(_steps_done(configs[direction].run_directory / "metrics.jsonl") for direction in running)
            meter.advance(max(0, done - meter.done))
            for direction, process in list(waiting.items()):
                if process.poll() is None:
                    continue
                if process.returncode != 0:
                    said = (configs[direction].run_directory / "output.txt").read_text(errors="replace").split("\n")
                    raise ValueError(f"training {direction} failed: {next((s for s in reversed(said) if s), 'killed')}")
                del waiting[direction]


def _steps_done(metrics: Path) -> int:
    if not metrics.exists():
        return 0
    lines = metrics.read_text(encoding="utf-8").splitlines()
    return int(json.loads(lines[-1])["step"]) if lines else 0


class StandingStill:
    """A source whose windows show nothing but their middle frame: what a detector knows without motion."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def timebase(self, video: AnnotatedVideo) -> Timebase:
        return self.source.timebase(video)

    @property
    def has_twins(self) -> bool:
        return self.source.has_twins

    def read(self, video: AnnotatedVideo, grid: Grid, *, view: Basis = "forward", margin: float = 1.0) -> Tensor:
        frames = self.source.read(video, grid, view=view, margin=margin)
        return frames[len(frames) // 2].expand_as(frames)


def _detect_everything(configs: dict[str, Config], truth: Annotations) -> dict[str, Detections]:
    """Detections by name: of F, B, their late fusion, and of what must fail."""
    team = Processes(rank=0, world=1, device=torch.device("cpu"))
    forward, reverse = configs["forward"], configs["reverse"]
    found = {
        name: read_detections(config.run_directory / "detections.json")
        for name, config in (("F", forward), ("B", reverse))
    }
    found["late fusion"] = merge(found["F"], found["B"], method="soft-nms")
    detector = load_checkpoint(forward.run_directory / "best.pt").network()
    source = build_source(forward)
    # Reversed playback of the same files: the windows flipped, the results mapped to forward time.
    flipped = forward.model_copy(update={"direction": "reverse"})
    torch.manual_seed(forward.seed)
    untrained = build_network(forward, len(truth.classes))
    load_pretrained(untrained, forward)
    for name, network, frames, config in (
        ("F on reversed playback", detector, source, flipped),
        ("F on still windows", detector, StandingStill(source), forward),
        ("untrained", untrained.eval(), source, forward),
    ):
        found[name] = detect(network, truth, frames, config, team, what=f"testing {name}").merged
    return {name: replace(detections, details={"result": name}) for name, detections in found.items()}
