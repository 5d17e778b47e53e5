"""Runs for tests: made quickly or only written, and compared to the bit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from builders import config_of
from torch import Tensor

from bitad.config.schema import Config
from bitad.data.annotations import Annotations
from bitad.data.detections import Detections, read_detections, write_detections
from bitad.data.formats.database import read_annotations
from bitad.inference.merge import merge
from bitad.inference.postprocess import Stitcher
from bitad.runtime.distributed import Ranks
from bitad.training.trainer import Trainer
from bitad.weights.checkpoint import load_checkpoint

ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"))


def baseline(path: Path, *overrides: str, epochs: int = 1) -> Path:
    """Trains a baseline that is never tested; its run directory, with a `best.pt`, which is read faster."""
    quick = (f"training.epochs={epochs + 1}", f"training.evaluate_from={epochs}")
    config = config_of(path, *quick, *overrides)
    trainer = Trainer(config, ALONE)
    trainer.run(until=epochs)
    trainer.checkpoints.save_best(load_checkpoint(trainer.checkpoints.last))
    return config.run_directory


def both_baselines(path: Path, *overrides: str, epochs: int = 1) -> tuple[str, str]:
    """Trains one baseline of each playing direction; the overrides with which an experiment starts from them."""
    forward, reverse = (
        baseline(path, f"direction={view}", *overrides, epochs=epochs) for view in ("forward", "reverse")
    )
    return f"init.forward={forward}", f"init.reverse={reverse}"


def truth_of(config: Config) -> Annotations:
    annotations = read_annotations(config.data.annotations, classes=config.data.classes)
    return annotations.subset(config.data.test_subset)


def guesses(truth: Annotations, seed: Sequence[int], noise: float) -> Detections:
    """Each action, its ends off by normal noise in seconds, a third of them called by any name."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, video in truth.videos.items():
        segments = np.sort(video.segments + noise * rng.standard_normal(video.segments.shape), axis=1)
        labels = np.array([truth.classes.index(label) for label in video.labels], np.int64)
        other = rng.integers(len(truth.classes), size=len(labels))
        labels = np.where(rng.random(len(labels)) < 1 / 3, other, labels)
        found[name] = (segments, rng.uniform(0.3, 1.0, len(labels)), labels)
    durations = {name: video.duration_s for name, video in truth.videos.items()}
    return Detections.from_videos(found, classes=truth.classes, durations_s=durations)


def write_run(config: Config, *, noise: float = 0.3, losses: Sequence[float] = (2.0, 1.0)) -> None:
    """Writes the run directory of a configuration without training: its detections are guesses.

    Args:
        noise: seconds, of the ends of segments.
        losses: of its training steps.
    """
    folder, truth = config.run_directory, truth_of(config)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    salt = [config.seed, *config.variant.encode()]
    first, second = guesses(truth, [*salt, 1], noise), guesses(truth, [*salt, 2], noise)
    pair = len(config.views) == 2
    write_detections(merge(first, second, method=config.test.merge) if pair else first, folder / "detections.json")
    if pair:
        reverse = second if config.clocks[1] == "forward" else second.reversed()
        write_detections(first, folder / "detections.forward.json")
        write_detections(reverse, folder / "detections.reverse.json")
    records: list[dict[str, object]] = []
    for step, loss in enumerate(losses):
        each = {"losses": {"forward": 0.75 * loss, "reverse": 0.25 * loss}} if pair else {}
        records.append({"kind": "training", "epoch": 0, "step": 10 * step, "loss": loss, **each})
    records.append({"kind": "evaluation", "epoch": 1, "step": 10, "average_map": 0.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


def records(directory: Path, *, kind: str | None = None) -> list[dict[str, Any]]:
    """What a run has recorded, but for how long it took."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    kept = [line for line in lines if kind in (None, line["kind"])]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in kept]


def assert_same(a: Any, b: Any, path: str = "") -> None:
    """Equal to the bit, also inside of dicts and lists."""
    assert type(a) is type(b), path
    if isinstance(a, Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}.{i}")
    else:
        assert a == b, path


def assert_same_run(a: Path, b: Path) -> None:
    """Weights, averages, optimiser, schedule, random numbers, figures, best network: all of it."""
    for name in ("last.pt", "best.pt"):
        one, other = load_checkpoint(a / name), load_checkpoint(b / name)
        assert_same(one.model, other.model, f"{name}: model")
        assert_same(one.training, other.training, f"{name}: training")
        assert_same((one.epoch, one.evaluation), (other.epoch, other.evaluation), name)
        assert_same(one.operating_points, other.operating_points, f"{name}: operating points")
    assert records(a) == records(b)
    found = {file.name for file in a.glob("detections*.json")}
    assert found == {file.name for file in b.glob("detections*.json")}
    for name in found:
        assert read_detections(a / name).scores.tolist() == read_detections(b / name).scores.tolist(), name


class OneOfTwo(Ranks):
    """One of two processes, the other of which has no windows, and perhaps cannot read videos."""

    def __init__(self, rank: int, *, unread: Mapping[str, str] | None = None) -> None:
        super().__init__(rank, 2, torch.device("cpu"))
        object.__setattr__(self, "unread", dict(unread or {}))

    def gather(self, value: Any) -> list[Any]:
        values = [self._answer(value)] * 2
        values[self.rank] = value
        return values

    def _answer(self, value: Any) -> Any:
        match value:
            case dict():
                return self.unread
            case [Stitcher(), *_]:
                return [one.split_off([]) for one in value]
            case [Detections(), *_]:
                return [Detections.from_videos({}, classes=one.classes, details=one.details) for one in value]
            case _:
                return type(value)()  # no names of videos, no frames

    def total(self, number: Tensor) -> Tensor:
        return number
