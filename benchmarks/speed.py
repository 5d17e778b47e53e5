"""The cost of a detector's work, next to a lower bound and to OpenTAD's measured cost.

    python benchmarks/speed.py [--rows forward-fp32 map-420000 ...] [--threads 2] [--json FILE] [--quick]

A table with a row per workload, each measured in its own process: CPU seconds (user and system, of all threads), wall
seconds, throughput per CPU second, and peak resident memory (with Python and PyTorch). Data and weights are random,
from seeds. ``benchmarks/growth.py`` measures how cost grows with the work.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import post_processing
import reading
from evaluation_speed import average_map, evaluation, parsing, write_made_up
from measuring import Alone, FailedError, Measured, Took, alone, machine, machine_rates, parser_of, seconds
from networks import forward, make_data, make_long_video, make_weights, step, tested_video

from bitad.reports.tables import Cell, Table
from bitad.runtime.files import write_json
from bitad.runtime.progress import Meter

PRECISIONS = ("fp32", "bf16")
COLUMNS = (
    "work",
    "CPU",
    "clock",
    "a CPU second",
    "peak MiB",
    "floor",
    "over floor",
    "OpenTAD",
    "of OpenTAD's",
    "of its peak",
)
NOTES = (
    "Floors are CPU seconds. Networks: floating-point operations (counted; a step includes recomputation) at the rate "
    "of the machine's fastest matrix products in that precision. Tests: the operations of all windows "
    "(backbone=window) or of each frame once (backbone=video), and decoding the video once with PyAV alone.",
    "Windows: decoding with PyAV alone, from the keyframe before the first frame to the last. Reversed playback: "
    "decoding and encoding every frame with PyAV alone, in forward order.",
    "Suppression, merging and mAP: reading the arrays once at memory copy speed, and sorting the scores. bitad "
    "evaluate: parsing both files as JSON and sorting as many numbers; both include the start of Python.",
)
OPENTAD = (
    "OpenTAD was measured on 2 CPU cores in fp32, on a machine that may differ from this one. Where its clock is "
    "unknown, BiTAD's CPU seconds are compared; with 4 to 15 ms, to the 4 ms; bf16 to its fp32. It is unknown whether "
    "its mAP includes reading the files."
)
QUICKLY = "Quick: the workloads are small and not comparable with OpenTAD's, which are omitted."


@dataclass(frozen=True)
class Reference:
    """OpenTAD's cost of the same work.

    Args:
        seconds: the minimum.
        kind: "CPU" or "clock"; "" if unknown.
        peak_mib: of memory.
        text: for the table, instead of the seconds.
    """

    seconds: float
    kind: str = ""
    peak_mib: float | None = None
    text: str = ""


@dataclass(frozen=True)
class Sizes:
    """The sizes of workloads.

    Args:
        network: the backbone's size and the window's frames and pixels.
        video_s, reversed_s: seconds of the tested and of the reversed video.
        candidates: per window; ten windows are merged.
        detections: per video of 210 videos, few and many.
        repetitions: of short and of long workloads, of which the fastest counts.
    """

    network: Mapping[str, Any]
    video_s: int
    reversed_s: int
    candidates: int
    detections: tuple[int, int]
    repetitions: tuple[int, int]


FULL = Sizes({"size": "s", "frames": 768, "pixels": 160}, 600, 60, 2000, (200, 2000), (20, 2))
QUICK = Sizes({"size": "tiny", "frames": 96, "pixels": 64}, 20, 4, 200, (20, 100), (2, 1))


@dataclass(frozen=True)
class Row:
    """A workload and its references.

    Args:
        title: in the table.
        work: measured alone in a process.
        given: prepares the inputs, and returns the arguments of ``work``.
        share: expected seconds, for the progress display.
        reference: OpenTAD's cost.
        precision: of its matrix products.
        floor: work on the same arguments whose process, start included, is the lower bound of this one's.
    """

    title: str
    work: Callable[..., Measured]
    given: Callable[[], dict[str, Any]]
    share: int
    reference: Reference | None = None
    precision: str = "fp32"
    floor: Callable[..., Measured] | None = None


@dataclass(frozen=True)
class Result:
    """The cost of a row, and its lower bound."""

    alone: Alone
    took: Took
    floor_s: float


class Inputs:
    """Prepares the inputs of rows on first use; methods return the arguments of their work."""

    def __init__(self, folder: Path, sizes: Sizes, threads: int) -> None:
        self.folder, self.sizes = folder, sizes
        self.short, self.long = sizes.repetitions
        self.common = {"folder": str(folder), "threads": threads, **sizes.network}

    @cached_property
    def weights(self) -> None:
        make_weights(self.folder, **self.sizes.network)

    @cached_property
    def training_data(self) -> None:
        make_data(self.folder, frames=self.sizes.network["frames"], pixels=self.sizes.network["pixels"])

    def forward(self, precision: str) -> dict[str, Any]:
        return {**self.common, "precision": precision, "repetitions": self.long}

    def step(self, experiment: str) -> dict[str, Any]:
        _ = self.training_data, self.weights
        return {**self.common, "experiment": experiment, "steps": 1}

    def window(self, training: bool) -> dict[str, Any]:
        steps, path = self.sizes.network["frames"], self.folder / "window.mp4"
        count = reading.frames_of_video(steps)
        reading.render(path, count)
        given = {"video": str(path), "count": count, "steps": steps, "pixels": self.sizes.network["pixels"]}
        return {**given, "training": training, "repetitions": min(5, self.short)}

    def reversed(self) -> dict[str, Any]:
        path, count = self.folder / "reversed.mp4", self.sizes.reversed_s * reading.FPS
        reading.render(path, count)
        return {"video": str(path), "count": count, "repetitions": self.long}

    def suppression(self) -> dict[str, Any]:
        return {"count": self.sizes.candidates, "classes": 20, "repetitions": self.short}

    def answer(self) -> dict[str, Any]:
        return {"steps": self.sizes.network["frames"], "classes": 20, "repetitions": self.short}

    def detections(self, each: int) -> dict[str, Any]:
        return write_made_up(self.folder, videos=210, detections=each)

    def in_memory(self, each: int) -> dict[str, Any]:
        return {**self.detections(each), "repetitions": self.long}

    def long_video(self, backbone: str) -> dict[str, Any]:
        _ = self.weights
        count = self.sizes.video_s * reading.FPS
        make_long_video(self.folder, count=count)
        return {**self.common, "video_frames": count, "backbone": backbone}


def rows_of(inputs: Inputs) -> dict[str, Row]:
    """All rows by the names that ``--rows`` takes."""
    sizes = inputs.sizes
    frames, network = sizes.network["frames"], f"VideoMAE-{sizes.network['size'].upper()}"
    few, many = sizes.detections
    rows = {
        f"forward-{precision}": Row(
            f"forward, {network}, {precision}",
            forward,
            partial(inputs.forward, precision),
            50,
            Reference(21.0, peak_mib=1536),
            precision,
        )
        for precision in PRECISIONS
    }
    for experiment, share in (("baseline", 140), ("1-1", 260), ("3-1", 280)):
        reference = Reference(71.8, peak_mib=3482) if experiment == "baseline" else None
        given = partial(inputs.step, experiment)
        rows[f"step-{experiment}"] = Row(f"training step, {network}, {experiment}", step, given, share, reference)
    for training, name, speed in ((True, "training", 227), (False, "test", 542)):
        given, reference = partial(inputs.window, training), Reference(frames / speed, text=f"{speed} frames/s")
        rows[f"read-{name}"] = Row(f"reading a {name} window", reading.window, given, 30, reference)
    rows["reverse"] = Row(f"reversed playback of {sizes.reversed_s} s", reading.reverse, inputs.reversed, 50)
    count = sizes.candidates
    rows |= {
        "nms": Row(
            f"soft-NMS, {count:,} candidates, 20 classes",
            post_processing.suppression,
            inputs.suppression,
            5,
            Reference(0.004, text="4 to 15 ms"),
        ),
        "post-processing": Row(
            "one window's answer to candidates", post_processing.window, inputs.answer, 5, Reference(0.024)
        ),
        "merging": Row(
            f"merging {10 * count:,} candidates of a video",
            post_processing.merging,
            lambda: {**inputs.suppression(), "windows": 10},
            10,
            Reference(0.142),
        ),
    }
    for each, reference in ((few, Reference(14.6, "CPU")), (many, Reference(84.0, "clock"))):
        what, name = f"{210 * each:,} predictions", "few" if each == few else "many"
        given = partial(inputs.detections, each)
        rows |= {
            f"map-{name}": Row(f"mAP of {what}", average_map, partial(inputs.in_memory, each), 10, reference),
            f"evaluate-{name}": Row(f"bitad evaluate, {what}", evaluation, given, 10, reference, floor=parsing),
        }
    for backbone, share in (("window", 330), ("video", 180)):
        title = f"test, {sizes.video_s} s of video, backbone={backbone}"
        rows[f"test-{backbone}"] = Row(title, tested_video, partial(inputs.long_video, backbone), share)
    return rows


def measure(row: Row, rates: Mapping[str, float], threads: int) -> Result:
    """Measures a row and its floor.

    Raises:
        FailedError: the work failed.
    """
    given = row.given()
    done = alone(row.work, given, threads=threads)
    if row.floor is not None:
        return Result(done, done.process, alone(row.floor, given, threads=threads).process.cpu_s)
    one = done.measured
    floor_s = one.flops / rates[one.precision] + one.bytes / rates["copy"] + one.floor_s
    return Result(done, one.took, floor_s)


def cells(row: Row, result: Result | None, quick: bool) -> tuple[Cell, ...]:
    """A line of the table."""
    if result is None:
        return (row.title, *[None] * (len(COLUMNS) - 1))
    took, one = result.took, result.alone.measured
    reference = None if quick else row.reference
    return (
        row.title,
        seconds(took.cpu_s),
        seconds(took.wall_s),
        f"{one.amount / took.cpu_s:,.0f} {one.unit}",
        round(result.alone.peak_mib),
        seconds(result.floor_s),
        result.took.cpu_s / result.floor_s,
        *(compared(reference, result) if reference else (None, None, None)),
    )


def compared(reference: Reference, result: Result) -> tuple[str, str, float | None]:
    """OpenTAD's time; BiTAD's time and peak memory relative to OpenTAD's."""
    peak = None if reference.peak_mib is None else result.alone.peak_mib / reference.peak_mib
    ours = result.took.wall_s if reference.kind == "clock" else result.took.cpu_s
    text = reference.text or f"{seconds(reference.seconds)} {reference.kind}".rstrip()
    return text, f"{ours / reference.seconds:#.3g}", peak


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    names = list(rows_of(Inputs(Path(), FULL, 1)))
    parser.add_argument("--rows", nargs="+", choices=names, default=names, metavar="ROW", help=", ".join(names))
    return parser.parse_args(arguments)


def notes_of(
    sizes: Sizes, rates: Mapping[str, float], threads: int, remarks: Sequence[str], *, quick: bool
) -> tuple[str, ...]:
    """The notes below the table."""
    size, frames, pixels = sizes.network.values()
    products = ", ".join(
        f"{rate / 1e9:,.3g} GFLOP in {name}" for name, rate in rates.items() if name in PRECISIONS
    )
    return (
        *((QUICKLY,) if quick else ()),
        *remarks,
        f"VideoMAE-{size.upper()}, windows of {frames} frames of {pixels}x{pixels} (every {reading.STRIDE}th of H.264 "
        f"of {reading.WIDTH}x{reading.HEIGHT}, {reading.FPS} a second), batch 1; steps recompute the blocks.",
        f"{machine()}; networks on {threads} threads, all else on one. In a CPU second: matrix products, {products}; "
        f"{rates['copy'] / 1e9:.3g} GB copied.",
        *NOTES,
        *(() if quick else (OPENTAD,)),
    )


def figures_of(result: Result) -> dict[str, Any]:
    """The figures of a row for the JSON file."""
    more = {"took": result.took._asdict(), "peak_mib": result.alone.peak_mib, "floor_cpu_s": result.floor_s}
    return {**asdict(result.alone.measured), **more}


def main(arguments: Sequence[str] | None = None) -> int:
    options = options_of(arguments)
    sizes, quick, threads = QUICK if options.quick else FULL, options.quick, options.threads
    results: dict[str, Result] = {}
    skipped: dict[str, str] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        every = rows_of(Inputs(Path(folder), sizes, threads))
        rows = {name: row for name, row in every.items() if name in options.rows}
        with Meter("measuring (seconds of work)", sum(row.share for row in rows.values())) as meter:
            precisions = sorted({"fp32", *(row.precision for row in rows.values())}, key=PRECISIONS.index)
            given = {"threads": threads, "precisions": precisions, "quick": quick}
            rates = alone(machine_rates, given, threads=threads).measured.facts
            for name, row in rows.items():
                if rates[row.precision] < rates["fp32"]:
                    skipped[name] = "skipped, as this machine multiplies matrices faster in fp32"
                else:
                    try:
                        results[name] = measure(row, rates, threads)
                    except FailedError as fault:
                        failed[name] = str(fault)
                meter.advance(row.share, note=name)
    remarks = [f"{rows[name].title}: {why}." for name, why in (skipped | failed).items()]
    remarks += [
        f"{row.title}: OpenTAD's is below the floor here, so it is wall time, or from a faster machine."
        for name, row in rows.items()
        if not quick and name in results and row.reference and results[name].floor_s > row.reference.seconds
    ]
    lines = tuple(cells(row, results.get(name), quick) for name, row in rows.items())
    notes = notes_of(sizes, rates, threads, remarks, quick=quick)
    table = Table("What work takes, beside its floor and beside OpenTAD", COLUMNS, lines, notes)
    print(table.text())
    if options.json:
        figures = {name: figures_of(result) for name, result in results.items()}
        content = {"table": table.json(), "quick": quick, "rates": dict(rates), "measured": figures}
        write_json({**content, "left_out": skipped, "failed": failed}, options.json)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
