"""Videos for benchmarks, the cost of reading and reversing them, and the floors: PyAV alone."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from av.video.reformatter import VideoReformatter
from measuring import Measured, best_of
from numpy.typing import NDArray

from bitad.config.loading import parse_config
from bitad.config.schema import Config
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.dataset import TestWindows, TrainingWindows
from bitad.data.formats.database import write_annotations
from bitad.data.samples import Sample, collate
from bitad.data.sources import VideoFiles, build_source
from bitad.data.transforms import recolour
from bitad.video.container import open_video
from bitad.video.reverse import reverse_video
from bitad.video.writer import write_pictures, write_video

FPS, STRIDE = 30, 4
HEIGHT, WIDTH = 180, 320
KINDS = {"GOP 250, B-frames": {"gop": 250, "b_frames": 3}, "GOP 12": {"gop": 12, "b_frames": 0}}


def texture(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """A picture with detail at every scale, uint8 ``[H, W, 3]``."""
    total = torch.zeros(1, 3, height, width)
    for cell in (4, 8, 16, 32, 64):
        coarse = torch.from_numpy(
            rng.standard_normal((1, 3, height // cell + 2, width // cell + 2), dtype=np.float32)
        )
        total += cell**0.5 * F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return (128 + 8 * total[0].permute(1, 2, 0)).clamp(0, 255).byte().numpy()


def moving_pictures(count: int, seed: int = 0) -> Iterator[NDArray[np.uint8]]:
    """A camera pans over a textured scene with moving textured objects, with sensor noise."""
    rng = np.random.default_rng(seed)
    scene, thing = texture(rng, 3 * HEIGHT, 3 * WIDTH), texture(rng, 80, 60)
    noise = rng.normal(0, 2, (8, HEIGHT, WIDTH, 3)).astype(np.int16)
    for number in range(count):
        second = number / FPS
        top, left = (
            round(size * (1 + 0.9 * np.sin(second * pace))) for size, pace in ((HEIGHT, 0.31), (WIDTH, 0.23))
        )
        picture = scene[top : top + HEIGHT, left : left + WIDTH].astype(np.int16)
        for pace in (0.7, 1.3, 2.1):
            y, x = (
                round(room * (0.5 + 0.5 * np.sin(second * pace * turn)))
                for room, turn in ((HEIGHT - 80, 1.0), (WIDTH - 60, 1.7))
            )
            picture[y : y + 80, x : x + 60] = thing
        yield (picture + noise[rng.integers(len(noise))]).clip(0, 255).astype(np.uint8)


def render(path: Path, count: int, *, kind: str = "GOP 250, B-frames", preset: str = "medium") -> None:
    """Writes an H.264 video like THUMOS14's with this number of frames, unless the file exists."""
    if not path.exists():
        write_video(path, moving_pictures(count), fps=FPS, crf=26, preset=preset, **KINDS[kind])


def decode(path: Path, frames: NDArray[np.int64], *, convert: bool = False) -> None:
    """Decodes with PyAV alone, from the keyframe before the first frame to the last; ``convert``: frames to RGB."""
    reformatter = VideoReformatter()
    container, stream = open_video(path)
    with container:
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


def transcode(source: Path, target: Path) -> None:
    """Decodes and encodes each frame with PyAV alone, as for reversed playback but in forward order."""
    container, stream = open_video(source)
    with container:
        pictures = container.decode(stream)
        write_pictures(target, pictures, rate=Fraction(FPS), crf=18, preset="veryfast", gop=30, b_frames=0)


class Windows:
    """Windows of one video as training and testing read them with the published recipe.

    Args:
        path: of a video of :func:`render`.
        count: its number of frames.
        steps: grid steps of a window, a frame of every 4 each.
        pixels: of the network's pictures.
    """

    def __init__(self, path: Path, count: int, *, steps: int, pixels: int) -> None:
        self.config = _configuration(path.parent, steps=steps, pixels=pixels)
        # An action as long as the video: every window holds enough of it.
        whole = np.array([[0.0, count / FPS]])
        self.video = AnnotatedVideo(path.stem, "training", count / FPS, whole, ("action",), count, FPS)
        annotations, source = Annotations({path.stem: self.video}, ("action",)), build_source(self.config)
        assert isinstance(source, VideoFiles)
        self.source = source
        self.training = TrainingWindows(annotations, source, self.config)
        self.test = TestWindows(annotations, source, self.config)

    def training_window(self) -> Sample:
        """The first training window of the first epoch."""
        return self.training[0]

    def test_window(self) -> Sample:
        """The last test window, which starts within a group of pictures, as most training windows do."""
        sample = self.test[len(self.test) - 1]
        assert isinstance(sample, Sample)
        return sample


def _configuration(folder: Path, *, steps: int, pixels: int) -> Config:
    write_annotations(Annotations({}, ("action",)), folder / "no_annotations.json")
    return parse_config(
        {
            "name": "reading",
            "data": {"annotations": str(folder / "no_annotations.json"), "videos": str(folder)},
            "window": {"steps": steps, "stride_frames": STRIDE},
            "model": {"backbone": {"size": "s", "pixels": pixels}},
            "training": {"augmentation": {"colour": 1.0}},
        },
        "of this benchmark",
    )


def frames_of_video(steps: int) -> int:
    """The number of frames of a video for windows: a quarter more than a window spans."""
    return steps * STRIDE * 5 // 4


def window(video: str, count: int, steps: int, pixels: int, training: bool, repetitions: int) -> Measured:
    """Reads one window of a video; a training window is cropped, flipped and recoloured."""
    torch.set_num_threads(1)
    path = Path(video)
    windows = Windows(path, count, steps=steps, pixels=pixels)
    item = windows.training_window if training else windows.test_window

    def read() -> None:
        batch = collate([item()], length=steps)
        if batch.colour is not None:
            recolour(batch.inputs, batch.colour)

    frames = item().grid.frames()
    took = best_of(repetitions, {"read": read, "decoded": partial(decode, path, frames)})
    return Measured(took["read"], len(frames), "frames", floor_s=took["decoded"].cpu_s)


def reverse(video: str, count: int, repetitions: int) -> Measured:
    """Writes a video in reversed playback."""
    path = Path(video)
    target, forward = path.with_name(f"{path.stem}.reversed.mp4"), path.with_name(f"{path.stem}.again.mp4")
    took = best_of(
        repetitions,
        {"reversed": lambda: reverse_video(path, target), "transcoded": lambda: transcode(path, forward)},
    )
    return Measured(took["reversed"], count, "frames", floor_s=took["transcoded"].cpu_s)
