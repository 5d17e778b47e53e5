"""What reading a window costs beside decoding alone: 768 frames, every 4th, of H.264 files like THUMOS14's.

Two videos of 320x180 at 30 frames a second are rendered: one with a keyframe every 250 frames and B-frames, one with a
keyframe every 12 frames and none. Of each, a training and a test window are read as training and testing read them,
and for comparison by PyAV alone: every frame from the keyframe before the window to its last frame is decoded
("decoded only", the floor), and besides those of the window are converted to RGB at the file's own size. One thread,
CPU seconds, the best of several repetitions; nothing is kept from one to the next but the index of the file.

    python benchmarks/decoding.py [--repetitions 9] [--frames 768] [--pixels 160] [--json FILE]
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from bitad.config import Config
from bitad.config_files import parse_config
from bitad.data.annotations import AnnotatedVideo, Annotations, write_annotations
from bitad.data.dataset import DECODE_MARGIN, TestWindows, TrainingWindows
from bitad.data.sources import build_source
from bitad.files import write_json
from bitad.reports.tables import Cell, Table
from bitad.video.reader import VideoReader
from bitad.video.writer import write_video

FPS, STRIDE = 30, 4
HEIGHT, WIDTH = 180, 320
KINDS = {"GOP 250, B-frames": {"gop": 250, "b_frames": 3}, "GOP 12": {"gop": 12, "b_frames": 0}}


def texture(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """A picture with detail of every size, uint8 ``[H, W, 3]``."""
    total = torch.zeros(1, 3, height, width)
    for cell in (4, 8, 16, 32, 64):
        coarse = torch.from_numpy(rng.standard_normal((1, 3, height // cell + 2, width // cell + 2), dtype=np.float32))
        total += cell**0.5 * F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return (128 + 8 * total[0].permute(1, 2, 0)).clamp(0, 255).byte().numpy()


def moving_pictures(count: int, seed: int = 0) -> Iterator[NDArray[np.uint8]]:
    """A camera that pans over a textured scene in which textured things move, with a sensor's noise."""
    rng = np.random.default_rng(seed)
    scene, thing = texture(rng, 3 * HEIGHT, 3 * WIDTH), texture(rng, 80, 60)
    noise = rng.normal(0, 2, (8, HEIGHT, WIDTH, 3)).astype(np.int16)
    for number in range(count):
        second = number / FPS
        top, left = (round(size * (1 + 0.9 * np.sin(second * pace))) for size, pace in ((HEIGHT, 0.31), (WIDTH, 0.23)))
        picture = scene[top : top + HEIGHT, left : left + WIDTH].astype(np.int16)
        for pace in (0.7, 1.3, 2.1):
            y, x = (
                round(room * (0.5 + 0.5 * np.sin(second * pace * turn)))
                for room, turn in ((HEIGHT - 80, 1.0), (WIDTH - 60, 1.7))
            )
            picture[y : y + 80, x : x + 60] = thing
        yield (picture + noise[rng.integers(len(noise))]).clip(0, 255).astype(np.uint8)


def configuration(folder: Path, options: argparse.Namespace) -> Config:
    """The published recipe's windows and pictures."""
    return parse_config(
        {
            "name": "decoding",
            "data": {"annotations": str(folder / "annotations.json"), "videos": str(folder)},
            "window": {"steps": options.frames, "stride_frames": STRIDE},
            "model": {"backbone": {"size": "s", "pixels": options.pixels}},
        },
        "of this benchmark",
    )


def best_of(repetitions: int, works: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """CPU seconds of each; they take turns, so that what else the machine does falls on all alike."""
    best = dict.fromkeys(works, math.inf)
    for _ in range(repetitions):
        for what, work in works.items():
            began = time.process_time()
            work()
            best[what] = min(best[what], time.process_time() - began)
    return best


def decode(path: Path, frames: NDArray[np.int64], *, convert: bool) -> None:
    """By PyAV alone, from the keyframe before the first of the frames to the last; those asked for to RGB or not."""
    reformatter = VideoReformatter()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count, stream.codec_context.thread_type = 1, "NONE"
        assert stream.time_base is not None
        wanted = {round(int(number) / FPS / stream.time_base) for number in frames}
        container.seek(min(wanted), stream=stream)
        for picture in container.decode(stream):
            if picture.pts in wanted:
                wanted.remove(picture.pts)
                if convert:
                    reformatter.reformat(picture, format="rgb24", threads=1)
                if not wanted:
                    return
    raise AssertionError(f"{len(wanted)} of {len(frames)} frames were not found")


class Reading(NamedTuple):
    """How many frames were read in how many CPU seconds, and how many times the floor's these are."""

    frames: int
    cpu_seconds: float
    over_floor: float | None


def measure(folder: Path, name: str, options: argparse.Namespace) -> dict[str, Reading]:
    """By what is done with one video."""
    path, config, count = folder / f"{name}.mp4", configuration(folder, options), frames_of_video(options)
    # An action as long as the video: every window holds enough of it.
    video = AnnotatedVideo(name, "training", count / FPS, np.array([[0.0, count / FPS]]), ("action",), count, FPS)
    annotations, source = Annotations({name: video}, ("action",)), build_source(config)
    training = TrainingWindows(annotations, source, config)
    test = TestWindows(annotations, source, config)
    last = len(test) - 1  # it begins within a group of pictures, as most training windows do
    measured: dict[str, Reading] = {}
    with VideoReader(path) as reader:
        for kind, item, margin in (
            ("training window", partial(training.__getitem__, 0), DECODE_MARGIN),
            ("test window", partial(test.__getitem__, last), 1.0),
        ):
            grid = item().grid
            frames, short_side = grid.frames(), round(options.pixels * margin)
            works: dict[str, Callable[[], object]] = {
                "decoded only": partial(decode, path, frames, convert=False),
                "decoded, RGB": partial(decode, path, frames, convert=True),
                f"VideoReader.read, short side {short_side}": partial(reader.read, frames, short_side=short_side),
                "VideoFiles.read": partial(source.read, video, grid, margin=margin),
                f"cropped to {options.pixels}": item,
            }
            seconds = best_of(options.repetitions, works)
            for what, one in seconds.items():
                measured[f"{kind}: {what}"] = Reading(len(frames), one, one / seconds["decoded only"])
    works = {"index of the whole file": lambda: build_source(config).timebase(video)}
    for what, one in best_of(options.repetitions, works).items():
        measured[what] = Reading(count, one, None)
    return measured


def frames_of_video(options: argparse.Namespace) -> int:
    """A quarter more than a window's."""
    return int(options.frames) * STRIDE * 5 // 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--frames", type=int, default=768, help="of a window")
    parser.add_argument("--pixels", type=int, default=160, help="of the network's pictures")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    count = frames_of_video(options)
    measured, sizes = {}, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_annotations(Annotations({}, ("action",)), folder / "annotations.json")
        for number, (kind, how) in enumerate(KINDS.items()):
            path = folder / f"video_{number}.mp4"
            write_video(path, moving_pictures(count), fps=FPS, crf=26, preset="medium", **how)
            sizes.append(f"{kind}: {path.stat().st_size * 8 / (count / FPS) / 1000:.0f} kbit/s")
            measured[kind] = measure(folder, path.stem, options)
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
