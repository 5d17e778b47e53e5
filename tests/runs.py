"""Runs for tests: made quickly, and compared to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from builders import config_of
from torch import Tensor

from bitad.data.detections import read_detections
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
