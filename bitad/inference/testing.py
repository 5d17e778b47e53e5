"""Testing a trained detector: detections in both times, and their mAP."""

from __future__ import annotations

from pathlib import Path

from bitad.data.annotations import read_annotations
from bitad.data.dataset import build_source
from bitad.data.detections import write_detections
from bitad.data.files import write_json
from bitad.evaluation.mean_average_precision import Evaluation, evaluate
from bitad.inference.detect import detect
from bitad.training.checkpoint import Checkpoint
from bitad.training.distributed import Processes


def run_test(checkpoint: Checkpoint, out: Path, team: Processes) -> Evaluation:
    """Detects in the test subset and writes what was found.

    Writes ``out``/detections.json (forward time), ``out``/detections.reverse.json (the same in reverse time, D - t) and
    ``out``/metrics.json.

    Raises:
        ValueError: if the data set has other classes than the detector.
    """
    config = checkpoint.config
    annotations = read_annotations(config.data.annotations, classes=config.data.classes)
    if annotations.classes != checkpoint.classes:
        raise ValueError(
            f"{config.data.annotations} has the classes {', '.join(annotations.classes)}, but the detector was trained "
            f"on {', '.join(checkpoint.classes)}; test on its own data set, or name its class list in data.classes"
        )
    subset = annotations.subset(config.data.test_subset)
    details = {"direction": config.direction, "epoch": checkpoint.epoch, "name": config.name, "seed": config.seed}
    detections = detect(
        checkpoint.detector().to(team.device), subset, build_source(config), config, team, details=details
    )
    evaluation = evaluate(subset, detections, tiou=config.test.tiou)
    if team.is_main:
        write_detections(detections, out / "detections.json")
        write_detections(detections.reversed(), out / "detections.reverse.json")
        write_json(evaluation.to_json(), out / "metrics.json")
    return evaluation
