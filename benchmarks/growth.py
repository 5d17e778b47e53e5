"""How cost grows with the work: frames of a window, videos, classes, processes.

    python benchmarks/growth.py [--rows forward-frames map-videos ...] [--json FILE] [--quick]

A row per workload; each size is measured in its own process (one thread), and an exponent is fitted to the costs: cost
grows as size ** exponent. Processes share the same work, so over their number the exponent is at best 0 for CPU seconds
and -1 for wall seconds. Data are generated, and the networks are small.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import post_processing
import reading
from evaluation_speed import evaluation, write_made_up
from measuring import Alone, FailedError, Measured, alone, machine, parser_of, seconds
from networks import forward, make_data, make_long_video, make_weights, step, tested_features, tested_video

from bitad.reports.tables import Cell, Table
from bitad.runtime.files import write_json
from bitad.runtime.progress import Meter

NETWORK: dict[str, Any] = {"size": "tiny", "pixels": 64}
COLUMNS = ("work", "grows", "sizes", "CPU", "exponent", "clock", "its exponent", "peak MiB")


@dataclass(frozen=True)
class Series:
    """A workload at several sizes.

    Args:
        title: in the table.
        grows: the quantity that grows.
        sizes: its values.
        work: measured alone in a process.
        given: prepares the inputs for a size, and returns the arguments of ``work``.
        together: the size is the number of processes that share the work.
    """

    title: str
    grows: str
    sizes: Sequence[int]
    work: Callable[..., Measured]
    given: Callable[[int], dict[str, Any]]
    together: bool = False


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The p of cost ~ size ** p, by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


class Inputs:
    """Prepares inputs on first use; methods return the arguments of the work."""

    def __init__(self, folder: Path, quick: bool) -> None:
        self.folder = folder
        self.repetitions = 1 if quick else 3
        self.frames = (96, 192) if quick else (192, 384, 768, 1536)
        self.videos = (1, 5) if quick else (1, 3, 10, 30, 100)
        self.classes = (20, 40) if quick else (20, 50, 100, 200)
        self.each = 20 if quick else 2000  # detections of a video
        self.video_s = 20 if quick else 120

    def network(self, frames: int) -> dict[str, Any]:
        folder = self.folder / f"network-{frames}"
        if not folder.exists():
            make_data(folder, frames=frames, pixels=NETWORK["pixels"])
            make_weights(folder, frames=frames, **NETWORK)
        return {"folder": str(folder), "threads": 1, "frames": frames, **NETWORK}

    @cached_property
    def video(self) -> tuple[Path, int]:
        """The video for windows of all lengths, and its number of frames."""
        path, count = self.folder / "windows.mp4", reading.frames_of_video(max(self.frames))
        reading.render(path, count, preset="veryfast")
        return path, count

    def forward(self, frames: int) -> dict[str, Any]:
        return {**self.network(frames), "precision": "fp32", "repetitions": self.repetitions}

    def step(self, frames: int) -> dict[str, Any]:
        return {**self.network(frames), "experiment": "baseline", "steps": self.repetitions}

    def window(self, frames: int) -> dict[str, Any]:
        path, count = self.video
        given = {"video": str(path), "count": count, "steps": frames, "pixels": 160, "training": False}
        return {**given, "repetitions": self.repetitions}

    def features(self, videos: int) -> dict[str, Any]:
        return {
            "folder": str(self.folder / f"features-{videos}"),
            "threads": 1,
            "videos": videos,
            "channels": 64,
            "steps": 1000,
        }

    def detections(self, videos: int = 21, classes: int = 20) -> dict[str, Any]:
        return write_made_up(self.folder, videos=videos, detections=self.each, classes=classes)

    def long_video(self) -> dict[str, Any]:
        network, count = self.network(self.frames[0]), self.video_s * reading.FPS
        make_long_video(Path(network["folder"]), count=count)
        return {**network, "video_frames": count, "backbone": "window"}


def series_of(inputs: Inputs) -> dict[str, Series]:
    """All rows by the names that ``--rows`` takes."""
    repeated = {"repetitions": 5 * inputs.repetitions}
    frames, videos, classes = inputs.frames, inputs.videos, inputs.classes
    mean = f"{21 * inputs.each:,}"
    return {
        "forward-frames": Series("forward of a window", "frames", frames, forward, inputs.forward),
        "step-frames": Series("training step", "frames", frames, step, inputs.step),
        "read-frames": Series("reading a test window", "frames", frames, reading.window, inputs.window),
        "test-videos": Series("test on features", "videos", videos, tested_features, inputs.features),
        "map-videos": Series(
            f"mAP, {inputs.each:,} predictions a video", "videos", videos, evaluation, inputs.detections
        ),
        "map-classes": Series(
            f"mAP of {mean} predictions", "classes", classes, evaluation, lambda n: inputs.detections(classes=n)
        ),
        "nms-classes": Series(
            "soft-NMS of 2,000 candidates",
            "classes",
            classes,
            post_processing.suppression,
            lambda n: {"count": 2000, "classes": n, **repeated},
        ),
        "answer-classes": Series(
            "one window's answer to candidates",
            "classes",
            classes,
            post_processing.window,
            lambda n: {"steps": 768, "classes": n, **repeated},
        ),
        "step-processes": Series(
            "training step, batch of 2 divided",
            "processes",
            (1, 2),
            step,
            lambda n: {**inputs.step(frames[-2]), "batch": 2, "pixels": 160},
            together=True,
        ),
        "test-processes": Series(
            f"test of {inputs.video_s} s of video",
            "processes",
            (1, 2),
            tested_video,
            lambda n: inputs.long_video(),
            together=True,
        ),
    }


def measure(series: Series, meter: Meter) -> list[Alone]:
    """Measures the work at every size.

    Raises:
        FailedError: the work failed.
    """
    done = []
    for size in series.sizes:
        done.append(alone(series.work, series.given(size), threads=1, processes=size if series.together else 1))
        meter.advance(note=f"{series.title}, {size} {series.grows}")
    return done


def cells(series: Series, done: Sequence[Alone]) -> tuple[Cell, ...]:
    """A line of the table."""
    cpu_s, wall_s = zip(*(one.measured.took for one in done), strict=True)
    return (
        series.title,
        series.grows,
        ", ".join(f"{size:,}" for size in series.sizes),
        ", ".join(map(seconds, cpu_s)),
        exponent(series.sizes, cpu_s),
        ", ".join(map(seconds, wall_s)),
        exponent(series.sizes, wall_s),
        ", ".join(f"{one.peak_mib:,.0f}" for one in done),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of(__doc__, threads=None)
    names = list(series_of(Inputs(Path(), False)))
    parser.add_argument("--rows", nargs="+", choices=names, default=names, metavar="ROW", help=", ".join(names))
    options = parser.parse_args(arguments)
    measured: dict[str, list[Alone]] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        inputs = Inputs(Path(folder), options.quick)
        rows = {name: series for name, series in series_of(inputs).items() if name in options.rows}
        with Meter("measuring", sum(len(series.sizes) for series in rows.values())) as meter:
            for name, series in rows.items():
                try:
                    measured[name] = measure(series, meter)
                except FailedError as fault:
                    failed[name] = str(fault)
    lines = tuple(cells(rows[name], done) for name, done in measured.items())
    notes = (
        *(("Quick: the sizes are small, and the exponents mean nothing.",) if options.quick else ()),
        *(f"{rows[name].title}: {fault}." for name, fault in failed.items()),
        f"{machine()}; one thread a process. Networks: VideoMAE-{NETWORK['size'].upper()}, {NETWORK['pixels']} pixels; "
        "CPU seconds are those of all processes, the clock's those of the slowest, memory that of the largest.",
    )
    table = Table("How cost grows: as size ** exponent", COLUMNS, lines, notes)
    print(table.text())
    if options.json:
        figures = {
            name: {str(size): _figures(one) for size, one in zip(rows[name].sizes, done, strict=True)}
            for name, done in measured.items()
        }
        write_json(
            {"table": table.json(), "quick": options.quick, "measured": figures, "failed": failed}, options.json
        )
    return 1 if failed else 0


def _figures(one: Alone) -> Mapping[str, float]:
    return {**one.measured.took._asdict(), "peak_mib": one.peak_mib}


if __name__ == "__main__":
    sys.exit(main())
