"""How long ``bitad evaluate`` takes: reading both files and average mAP, each in a process of its own.

    python benchmarks/evaluation_speed.py [--ground-truth GT --detections DET --subset NAME]

Two test sets of THUMOS14's size are made up, with 42,000 and 420,000 detections; a real one can be added. CPU is user
and system time of the whole process, the start of Python and the imports included. For a file of 42,000 detections
OpenTAD's evaluator takes 14.6 s of CPU and 8.2 s by the clock on two cores, for 420,000 it takes 84 s by the clock.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bitad.data.annotations import AnnotatedVideo, Annotations, read_annotations, write_annotations
from bitad.data.detections import Detections, read_detections, write_detections
from bitad.evaluation.mean_average_precision import evaluate

TIOU = (0.3, 0.4, 0.5, 0.6, 0.7)
SUBSET = "test"


def made_up(videos: int, segments: int, detections: int, classes: int = 20) -> tuple[Annotations, Detections]:
    """A test set: each video of one class, its detections scattered about its segments."""
    rng = np.random.default_rng(0)
    names = tuple(f"class_{i:02d}" for i in range(classes))
    annotated, found = {}, {}
    for i in range(videos):
        name, label = f"video_{i:04d}", names[i % classes]
        start = rng.uniform(0, 200, segments)
        truth = np.stack([start, start + rng.gamma(2, 2, segments)], axis=1)
        annotated[name] = AnnotatedVideo(name, SUBSET, 220.0, truth, (label,) * segments)
        about = rng.integers(0, segments, detections)
        distance = rng.exponential(1.0, detections)
        near = np.sort(truth[about] + rng.normal(0, 1, (detections, 2)) * distance[:, None], axis=1)
        labels = np.where(rng.random(detections) < 0.8, i % classes, rng.integers(0, classes, detections))
        found[name] = (near, np.exp(-distance) * rng.random(detections), labels)
    return Annotations(annotated, names), Detections.from_videos(found, classes=names)


def timed(ground_truth: Path, detections: Path, subset: str) -> dict[str, float]:
    """The evaluation in a process of its own; what it used and found."""
    start = time.perf_counter()
    command = [sys.executable, __file__, "--alone", str(ground_truth), str(detections), subset]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result | {"wall_s": time.perf_counter() - start}


def alone(ground_truth: str, detections: str, subset: str) -> None:
    found = read_detections(detections)
    result = evaluate(read_annotations(ground_truth).subset(subset), found, tiou=TIOU)
    used = resource.getrusage(resource.RUSAGE_SELF)
    facts = {
        "detections": len(found),
        "cpu_s": used.ru_utime + used.ru_stime,
        "peak_mib": used.ru_maxrss / 1024,
        "average_map": result.average_map,
    }
    print(json.dumps(facts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ground-truth", type=Path)
    parser.add_argument("--detections", type=Path)
    parser.add_argument("--subset", default="Test")
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        alone(*options.alone)
        return
    if bool(options.ground_truth) != bool(options.detections):
        parser.error("--ground-truth and --detections go together")
    rows = {}
    if options.ground_truth:
        rows[options.detections.name] = timed(options.ground_truth, options.detections, options.subset)
    with tempfile.TemporaryDirectory() as folder:
        for each in (200, 2000):
            annotations, detections = made_up(videos=210, segments=16, detections=each)
            write_annotations(annotations, Path(folder, "truth.json"))
            write_detections(detections, Path(folder, "found.json"))
            name = f"made up, {len(detections):,}"
            rows[name] = timed(Path(folder, "truth.json"), Path(folder, "found.json"), SUBSET)
    print(f"{'file':36} {'detections':>10} {'CPU s':>7} {'wall s':>7} {'peak MiB':>9} {'average mAP':>12}")
    for name, row in rows.items():
        print(
            f"{name:36} {row['detections']:10,} {row['cpu_s']:7.2f} {row['wall_s']:7.2f} {row['peak_mib']:9.0f}"
            f" {100 * row['average_map']:12.2f}"
        )


if __name__ == "__main__":
    main()
