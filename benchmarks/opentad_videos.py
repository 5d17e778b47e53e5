"""OpenTAD's reading of windows for training: its dataset, loader and pipeline for AdaTAD on THUMOS14.

The dataset, the loader, and the steps that choose frames and collect tensors are OpenTAD's. The steps that it takes
from mmaction are replaced by short ones with the same parameters: decoding with decord, resizing with OpenCV, a random
crop, a random flip and the order of dimensions. ImgAug and ColorJitter are left out on both sides: imgaug needs names
that NumPy 2 has not.
"""

from __future__ import annotations

import io
import logging
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import decord
import numpy as np
from numpy.typing import NDArray
from opentad_imports import Registry, Settings, import_from
from torch.utils.data import DataLoader

Results = dict[str, Any]
Picture = NDArray[np.uint8]
_LEFT_OUT = ("mmaction.ImgAug", "mmaction.ColorJitter")


def build_loader(clone: Path, folder: Path, settings: Settings, *, frames: int) -> DataLoader[Any]:
    """OpenTAD's loader of training windows, one at a time, in this process.

    Args:
        folder: with ``annotations.json``, ``classes.txt`` and the folder ``videos``.
        frames: of a window.
    """
    for module in ("end_to_end", "formatting"):
        import_from(clone, f"datasets.transforms.{module}")
    Registry.classes |= _MMACTION_STEPS
    steps = [dict(step) for step in settings.dataset.train.pipeline if step["type"] not in _LEFT_OUT]
    for step in steps:
        if step["type"] == "LoadFrames":
            step["trunc_len"] = frames
    given = {
        **settings.dataset.train,
        "ann_file": str(folder / "annotations.json"),
        "class_map": str(folder / "classes.txt"),
        "data_path": str(folder / "videos"),
        "pipeline": steps,
        "logger": logging.getLogger("opentad"),
    }
    import_from(clone, "datasets.thumos")
    dataset = Registry("dataset").build(given)
    builder = import_from(clone, "datasets.builder")
    loader: DataLoader[Any] = builder.build_dataloader(dataset, batch_size=1, rank=0, world_size=1, num_workers=0)
    return loader


class DecordInit:
    """Opens the video, from its bytes in memory."""

    def __init__(self, num_threads: int) -> None:
        self.threads = num_threads

    def __call__(self, results: Results) -> Results:
        video = decord.VideoReader(io.BytesIO(Path(results["filename"]).read_bytes()), num_threads=self.threads)
        return {**results, "video": video, "total_frames": len(video), "avg_fps": video.get_avg_fps()}


class DecordDecode:
    """Decodes the chosen frames, each exactly, and closes the video."""

    def __call__(self, results: Results) -> Results:
        video = results.pop("video")
        return {**results, "imgs": list(video.get_batch(results["frame_inds"]).asnumpy())}


class Resize:
    """Resizes to (width, height), or with -1 to a shorter side."""

    def __init__(self, scale: tuple[int, int], keep_ratio: bool = True) -> None:
        self.scale, self.keep_ratio = scale, keep_ratio

    def __call__(self, results: Results) -> Results:
        height, width = results["imgs"][0].shape[:2]
        size = self.scale
        if self.keep_ratio:
            factor = max(self.scale) / min(height, width)
            size = (int(width * factor + 0.5), int(height * factor + 0.5))
        return _changed(results, lambda picture: cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR))


class RandomResizedCrop:
    """Crops one random rectangle of 8 to 100 % of the area, with an aspect ratio of 3:4 to 4:3."""

    def __call__(self, results: Results) -> Results:
        height, width = results["imgs"][0].shape[:2]
        for _ in range(10):
            area, aspect = (
                random.uniform(0.08, 1) * height * width,
                np.exp(random.uniform(*np.log([3 / 4, 4 / 3]))),
            )
            w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if w <= width and h <= height:
                break
        else:
            w = h = min(width, height)
        left, top = random.randint(0, width - w), random.randint(0, height - h)
        return _changed(results, lambda picture: picture[top : top + h, left : left + w])


class Flip:
    """Mirrors all pictures, or none."""

    def __init__(self, flip_ratio: float) -> None:
        self.probability = flip_ratio

    def __call__(self, results: Results) -> Results:
        return _changed(results, np.fliplr) if random.random() < self.probability else results


class FormatShape:
    """Stacks the pictures as ``[1, 3, T, H, W]``."""

    def __init__(self, input_format: str) -> None:
        assert input_format == "NCTHW"

    def __call__(self, results: Results) -> Results:
        pictures = np.stack(results["imgs"]).transpose(3, 0, 1, 2)[None]
        return {**results, "imgs": np.ascontiguousarray(pictures)}


def _changed(results: Results, change: Callable[[Picture], Picture]) -> Results:
    pictures: Iterable[Picture] = results["imgs"]
    return {**results, "imgs": [change(picture) for picture in pictures]}


_MMACTION_STEPS = {
    f"mmaction.{step.__name__}": step
    for step in (DecordInit, DecordDecode, Resize, RandomResizedCrop, Flip, FormatShape)
}
