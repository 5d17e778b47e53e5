"""The cost of ``bitad evaluate``, reading both files and average mAP, each in its own process.

    python benchmarks/evaluation_speed.py [--ground-truth GT --detections DET --subset NAME]

Generates two test sets of THUMOS14's size, with 42,000 and 420,000 detections; a real one can be added. CPU is user and
system time of the process, with the start of Python and imports. OpenTAD's evaluator takes 14.6 s of CPU and 8.2 s of
wall time for 42,000 detections on two cores, and 84 s of wall time for 420,000.

Two more rows are crowded: one video of an hour and one class, with segments of 10 s on average and one that lasts the
hour. 1,000,000 detections are evaluated against 5,000 segments, and two sets of 50,000 merged (``--method wsf``); CPU
is that of the work alone, on arrays in memory.

The rows "1,000 resamples" also compute the intervals of ``bitad evaluate --bootstrap 1000``.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from measuring import Alone, Measured, alone, best_of, timed

from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.detections import Detections, read_detections, write_detections
from bitad.data.formats.database import read_annotations, write_annotations
from bitad.evaluation.bootstrap import bootstrap
from bitad.evaluation.mean_average_precision import evaluate, match
from bitad.inference.merge import merge
from bitad.runtime.files import read_json
from bitad.timeline import FloatArray

TIOU = (0.3, 0.4, 0.5, 0.6, 0.7)
SUBSET = "test"


def made_up(videos: int, segments: int, detections: int, classes: int = 20) -> tuple[Annotations, Detections]:
    """A random test set: videos of one class each, with detections around their segments."""
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


def write_made_up(folder: str | Path, *, videos: int, detections: int, classes: int = 20) -> dict[str, str]:
    """Writes a random test set; returns the arguments of :func:`evaluation` and :func:`parsing`."""
    annotations, found = made_up(videos, 16, detections, classes)
    name = f"{videos}-{detections}-{classes}.json"
    paths = {key: Path(folder, f"{key}-{name}") for key in ("truth", "found")}
    write_annotations(annotations, paths["truth"])
    write_detections(found, paths["found"])
    return {**{key: str(path) for key, path in paths.items()}, "subset": SUBSET}


def evaluation(truth: str, found: str, subset: str) -> Measured:
    """Reads a test set and evaluates its detections."""
    facts: dict[str, float] = {}

    def work() -> None:
        detections = read_detections(found)
        result = evaluate(read_annotations(truth).subset(subset), detections, tiou=TIOU)
        facts.update(detections=len(detections), average_map=result.average_map)

    took = timed(work)
    return Measured(took, facts["detections"], "detections", facts=facts)


def intervals(truth: str, found: str, subset: str) -> Measured:
    """Reads a test set and resamples its videos 1,000 times."""
    facts: dict[str, float] = {}

    def work() -> None:
        detections = read_detections(found)
        matches = match(read_annotations(truth).subset(subset), detections, tiou=TIOU)
        average = bootstrap({"": {"": matches}}).results[""].average_map
        facts.update(detections=len(detections), average_map=average.value)

    took = timed(work)
    return Measured(took, facts["detections"], "detections", facts=facts)


def average_map(truth: str, found: str, subset: str, repetitions: int) -> Measured:
    """Evaluates detections in memory; the floor is reading their arrays once, and one sort of their scores."""
    annotations, detections = read_annotations(truth).subset(subset), read_detections(found)
    work = partial(evaluate, annotations, detections, tiou=TIOU)
    took = best_of(repetitions, {"evaluate": work, "sort": partial(np.sort, detections.scores)})
    columns = detections.video, detections.segments, detections.scores, detections.labels
    count = sum(column.nbytes for column in columns)
    return Measured(took["evaluate"], len(detections), "detections", bytes=count, floor_s=took["sort"].cpu_s)


def _crowd(rng: np.random.Generator, n: int) -> FloatArray:
    """Random segments in an hour, 10 s long on average; the first lasts the hour."""
    start = rng.uniform(0, 3600, n)
    segments = np.stack([start, start + rng.gamma(2, 5, n)], axis=1)
    segments[0] = 0, 3600
    return segments


def _crowded_detections(rng: np.random.Generator, n: int) -> Detections:
    columns = _crowd(rng, n), rng.random(n), np.zeros(n, np.int64)
    return Detections.from_videos({"video": columns}, classes=("action",))


def crowded_evaluation(detections: int, segments: int) -> Measured:
    """Evaluates detections of one video and class, in memory."""
    rng = np.random.default_rng(0)
    truth = AnnotatedVideo("video", SUBSET, 3700.0, _crowd(rng, segments), ("action",) * segments)
    annotations, found = Annotations({"video": truth}, ("action",)), _crowded_detections(rng, detections)
    facts: dict[str, float] = {"detections": detections}
    took = timed(lambda: facts.update(average_map=evaluate(annotations, found, tiou=TIOU).average_map))
    return Measured(took, detections, "detections", facts=facts)


def crowded_merge(detections: int) -> Measured:
    """Merges two sets of detections of one video and class by weighted segment fusion, in memory."""
    rng = np.random.default_rng(0)
    sets = [_crowded_detections(rng, detections) for _ in range(2)]
    took = timed(lambda: merge(*sets, method="wsf"))
    return Measured(took, 2 * detections, "detections", facts={"detections": 2 * detections})


def parsing(truth: str, found: str, subset: str) -> Measured:
    """The floor: parses both files as JSON, and sorts as many numbers as there are detections."""
    counts = []

    def work() -> None:
        contents = read_json(truth), read_json(found)
        counts.append(sum(map(len, contents[1]["results"].values())))
        np.sort(np.random.default_rng(0).random(counts[0]))

    return Measured(timed(work), counts[0], "detections")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ground-truth", type=Path)
    parser.add_argument("--detections", type=Path)
    parser.add_argument("--subset", default="Test")
    options = parser.parse_args()
    if bool(options.ground_truth) != bool(options.detections):
        parser.error("--ground-truth and --detections go together")
    rows: dict[str, Alone] = {}
    if options.ground_truth:
        given = {"truth": str(options.ground_truth), "found": str(options.detections), "subset": options.subset}
        rows[options.detections.name] = alone(evaluation, given, threads=1)
        rows["the same, 1,000 resamples"] = alone(intervals, given, threads=1)
    with tempfile.TemporaryDirectory() as folder:
        for each in (200, 2000):
            given = write_made_up(folder, videos=210, detections=each)
            rows[f"made up, {210 * each:,}"] = alone(evaluation, given, threads=1)
            rows[f"made up, {210 * each:,}, 1,000 resamples"] = alone(intervals, given, threads=1)
    rows["crowded, 1,000,000 x 5,000"] = alone(
        crowded_evaluation, {"detections": 1_000_000, "segments": 5000}, threads=1
    )
    rows["crowded, merge wsf 2 x 50,000"] = alone(crowded_merge, {"detections": 50_000}, threads=1)
    print(f"{'file':36} {'detections':>10} {'CPU s':>7} {'wall s':>7} {'peak MiB':>9} {'average mAP':>12}")
    for name, row in rows.items():
        facts = row.measured.facts
        took = row.measured.took if name.startswith("crowded") else row.process
        print(
            f"{name:36} {facts['detections']:10,} {took.cpu_s:7.2f} {took.wall_s:7.2f}"
            f" {row.peak_mib:9.0f} {100 * facts.get('average_map', float('nan')):12.2f}"
        )


if __name__ == "__main__":
    main()
