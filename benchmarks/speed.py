"""What the work of a detector takes, beside what it takes at the very least and what OpenTAD was measured to take.

    python benchmarks/speed.py [--rows forward-fp32 map-420000 ...] [--threads 2] [--json FILE] [--quick]

One table, a row for each piece of work, each in a process of its own: CPU seconds (user and system, of all threads),
seconds by the clock, what is done in a CPU second, and the peak of resident memory (with Python and PyTorch). All data
is made up here, from seeds; weights are random. How cost grows with the work is told by ``benchmarks/growth.py``.
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
    "Floors are CPU seconds. Networks: floating-point operations (counted; of a step with what it computes again) at "
    "the rate of the machine's best matrix products in that precision. Tests: those of all windows (backbone=window) "
    "or of each frame once (backbone=video), and the video decoded once by PyAV alone.",
    "Windows: decoded by PyAV alone, from the keyframe before the first frame to the last. Reversed playback: every "
    "frame decoded and encoded by PyAV alone, in its own order.",
    "Suppression, merging and mAP: the arrays read once, at the rate at which memory is copied, and the scores sorted. "
    "bitad evaluate: both files parsed as JSON and as many numbers sorted; both with the start of Python.",
)
OPENTAD = (
    "OpenTAD's figures were measured on 2 CPU cores in fp32, of a machine that may not be like this one. Where it is "
    "not known on which clock, our CPU seconds stand beside them; of 4 to 15 ms, beside the 4; bf16 beside its fp32. "
    "Of its mAP it is not known whether reading the files is part of it."
)
QUICKLY = "Quick: the work is small, and no figure here means anything beside OpenTAD's, which are left out."


@dataclass(frozen=True)
class Reference:
    """What OpenTAD took for the same work.

    Args:
        seconds: the least of them, where they differed.
        kind: "CPU" or "clock"; "" where it is not known which.
        peak_mib: of memory.
        said: how the table says it, if otherwise.
    """

    seconds: float
    kind: str = ""
    peak_mib: float | None = None
    said: str = ""


@dataclass(frozen=True)
class Sizes:
    """How large the work is.

    Args:
        network: the backbone's size and the window's frames and pixels.
        video_s, reversed_s: seconds of the video that is tested, and of the one that is reversed.
        candidates: of a window, ten of which are merged.
        detections: of each of 210 videos, few and many.
        repetitions: of short work and of long, the best of which counts.
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
    """A piece of work, and what it is put beside.

    Args:
        title: in the table.
        work: what is done, alone in a process.
        given: makes what it needs, and returns its arguments.
        share: of the whole command's time, in seconds.
        reference: of the same work.
        precision: of its matrix products.
        floor: work on the same arguments whose whole process is the floor of this one's whole process.
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
    """What a row took, and what it takes at least."""

    alone: Alone
    took: Took
    floor_s: float


class Inputs:
    """Makes what rows work on when it is asked for, once; arguments of their work."""

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
        given, reference = partial(inputs.window, training), Reference(frames / speed, said=f"{speed} frames/s")
        rows[f"read-{name}"] = Row(f"reading a {name} window", reading.window, given, 30, reference)
    rows["reverse"] = Row(f"reversed playback of {sizes.reversed_s} s", reading.reverse, inputs.reversed, 50)
    count = sizes.candidates
    rows |= {
        "nms": Row(
            f"soft-NMS, {count:,} candidates, 20 classes",
            post_processing.suppression,
            inputs.suppression,
            5,
            Reference(0.004, said="4 to 15 ms"),
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
    """Does the work of a row, and of its floor.

    Raises:
        FailedError: it failed.
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
    """What OpenTAD took; our time over its, and our peak of memory."""
    peak = None if reference.peak_mib is None else result.alone.peak_mib / reference.peak_mib
    ours = result.took.wall_s if reference.kind == "clock" else result.took.cpu_s
    said = reference.said or f"{seconds(reference.seconds)} {reference.kind}".rstrip()
    return said, f"{ours / reference.seconds:#.3g}", peak


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    names = list(rows_of(Inputs(Path(), FULL, 1)))
    parser.add_argument("--rows", nargs="+", choices=names, default=names, metavar="ROW", help=", ".join(names))
    return parser.parse_args(arguments)


def notes_of(
    sizes: Sizes, rates: Mapping[str, float], threads: int, remarks: Sequence[str], *, quick: bool
) -> tuple[str, ...]:
    """What is to be known of the table."""
    size, frames, pixels = sizes.network.values()
    products = ", ".join(f"{rate / 1e9:,.3g} GFLOP in {name}" for name, rate in rates.items() if name in PRECISIONS)
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
    """For machines: what a row took in seconds, and all that was counted."""
    more = {"took": result.took._asdict(), "peak_mib": result.alone.peak_mib, "floor_cpu_s": result.floor_s}
    return {**asdict(result.alone.measured), **more}


def main(arguments: Sequence[str] | None = None) -> int:
    options = options_of(arguments)
    sizes, quick, threads = QUICK if options.quick else FULL, options.quick, options.threads
    results: dict[str, Result] = {}
    left_out: dict[str, str] = {}
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
                    left_out[name] = "left out, as this machine multiplies matrices faster in fp32"
                else:
                    try:
                        results[name] = measure(row, rates, threads)
                    except FailedError as fault:
                        failed[name] = str(fault)
                meter.advance(row.share, note=name)
    remarks = [f"{rows[name].title}: {why}." for name, why in (left_out | failed).items()]
    remarks += [
        f"{row.title}: OpenTAD's is less than the floor here, so it is by the clock, or of a faster machine."
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
        write_json({**content, "left_out": left_out, "failed": failed}, options.json)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
