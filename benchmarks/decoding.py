"""The cost of reading a window compared with decoding alone: 768 frames, every 4th, of H.264 like THUMOS14's.

Renders two videos of 320x180 at 30 frames per second: one with a keyframe every 250 frames and B-frames, one with a
keyframe every 12 frames and no B-frames. Reads a training and a test window of each as training and testing do, and for
comparison with PyAV alone: "decoded only", the floor, decodes every frame from the keyframe before the window to its
last frame; "decoded, RGB" also converts the window's frames at the file's size. One thread, CPU seconds, the fastest of
several repetitions, which share only the index of the file.

    python benchmarks/decoding.py [--repetitions 9] [--frames 768] [--pixels 160] [--json FILE]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from measuring import best_of
from reading import FPS, HEIGHT, KINDS, STRIDE, WIDTH, Windows, decode, frames_of_video, render

from bitad.data.dataset import DECODE_MARGIN
from bitad.data.sources import build_source
from bitad.reports.tables import Cell, Table
from bitad.runtime.files import write_json
from bitad.video.reader import VideoReader


class Reading(NamedTuple):
    """Frames, CPU seconds, and their ratio to the floor's."""

    frames: int
    cpu_seconds: float
    over_floor: float | None


def measure(path: Path, count: int, options: argparse.Namespace) -> dict[str, Reading]:
    """The readings of one video with this number of frames, by name."""
    windows = Windows(path, count, steps=options.frames, pixels=options.pixels)
    measured: dict[str, Reading] = {}
    with VideoReader(path) as reader:
        for kind, item, margin in (
            ("training window", windows.training_window, DECODE_MARGIN),
            ("test window", windows.test_window, 1.0),
        ):
            grid = item().grid
            frames, short_side = grid.frames(), round(options.pixels * margin)
            works: dict[str, Callable[[], object]] = {
                "decoded only": partial(decode, path, frames),
                "decoded, RGB": partial(decode, path, frames, convert=True),
                f"VideoReader.read, short side {short_side}": partial(reader.read, frames, short_side=short_side),
                "VideoFiles.read": partial(windows.source.read, windows.video, grid, margin=margin),
                f"cropped to {options.pixels}": item,
            }
            best = best_of(options.repetitions, works)
            for what, one in best.items():
                over = one.cpu_s / best["decoded only"].cpu_s
                measured[f"{kind}: {what}"] = Reading(len(frames), one.cpu_s, over)
    works = {"index of the whole file": lambda: build_source(windows.config).grid(windows.video)}
    for what, one in best_of(options.repetitions, works).items():
        measured[what] = Reading(count, one.cpu_s, None)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--frames", type=int, default=768, help="of a window")
    parser.add_argument("--pixels", type=int, default=160, help="of the network's pictures")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    count = frames_of_video(options.frames)
    measured, sizes = {}, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, kind in enumerate(KINDS):
            path = folder / f"video_{number}.mp4"
            render(path, count, kind=kind)
            sizes.append(f"{kind}: {path.stat().st_size * 8 / (count / FPS) / 1000:.0f} kbit/s")
            measured[kind] = measure(path, count, options)
    rows: list[tuple[Cell, ...]] = [
        (f"{kind}; {what}", one.cpu_seconds, round(one.frames / one.cpu_seconds), one.over_floor)
        for kind, all_of_it in measured.items()
        for what, one in all_of_it.items()
    ]
    columns = ("what is done", "CPU seconds", "frames a CPU second", "over the floor")
    notes = (
        f"{options.frames} frames, every {STRIDE}th, of {WIDTH}x{HEIGHT} H.264 at {FPS} frames a second "
        f"({', '.join(sizes)}); the index is of {count:,} frames.",
        f"One thread, best of {options.repetitions}; the floor is decoding every frame from the keyframe before the "
        "window to its last frame, and nothing else.",
    )
    table = Table("What reading a window costs", columns, tuple(rows), notes)
    print(table.text())
    if options.json:
        figures = {
            kind: {what: one._asdict() for what, one in all_of_it.items()} for kind, all_of_it in measured.items()
        }
        write_json({"table": table.json(), "measured": figures}, options.json)


if __name__ == "__main__":
    main()
