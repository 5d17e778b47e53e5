"""Augmentation: all frames of a window get the same random crop, flip and colour, which preserves motion."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bitad.config.schema import AugmentationConfig

# Luma weights of ITU-R BT.601, and the matrix to and from its YIQ space, where hue is an angle.
LUMA = np.array([0.299, 0.587, 0.114])
TO_YIQ = np.array(
    [
        LUMA,
        [0.5959, -0.2746, -0.3213],
        [0.2115, -0.5227, 0.3112],
    ]
)


@dataclass(frozen=True)
class Crop:
    """A rectangle of the frame, in pixels, and whether it is flipped left to right."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False


def centre_crop(height: int, width: int) -> Crop:
    """The largest centred square."""
    side = min(height, width)
    return Crop((height - side) // 2, (width - side) // 2, side, side)


def random_crop(rng: np.random.Generator, height: int, width: int, config: AugmentationConfig) -> Crop:
    """A random rectangle (Szegedy et al. 2015, arXiv:1409.4842).

    Its share of the frame is drawn uniformly, its width / height on a log scale.
    """
    flipped = bool(rng.random() < config.flip)
    for _ in range(10):
        target = height * width * rng.uniform(*config.crop_area)
        ratio = np.exp(rng.uniform(*np.log(config.crop_aspect)))
        w = round(np.sqrt(target * ratio))
        h = round(np.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(0, height - h + 1))
            left = int(rng.integers(0, width - w + 1))
            return Crop(top, left, h, w, flipped)
    return replace(centre_crop(height, width), flip=flipped)


def empty_frames(*shape: int, device: torch.device | None = None) -> Tensor:
    """Uninitialised uint8 frames, in main memory if there is no device."""
    if device is not None and device.type != "cpu":
        return torch.empty(shape, dtype=torch.uint8, device=device)
    # NumPy asks Linux for large pages and torch does not: the first write takes a quarter of the time.
    return torch.from_numpy(np.empty(shape, np.uint8))


def apply_crop(frames: NDArray[np.uint8], crop: Crop, pixels: int) -> Tensor:
    """Crops frames ``[T, H, W, 3]``, resizes them to ``[T, pixels, pixels, 3]`` and flips them; uint8."""
    rows = slice(crop.top, crop.top + crop.height)
    columns = slice(crop.left, crop.left + crop.width)
    cut = torch.from_numpy(frames[:, rows, columns])
    out = empty_frames(len(frames), pixels, pixels, 3)
    # A few frames at a time, so that intermediate results stay in the cache.
    for part, changed in zip(cut.split(8), out.split(8), strict=True):
        picture = part.permute(0, 3, 1, 2)
        if (crop.height, crop.width) != (pixels, pixels):
            picture = picture.contiguous(memory_format=torch.channels_last)  # resized faster
            picture = F.interpolate(
                picture, (pixels, pixels), mode="bilinear", align_corners=False, antialias=True
            )
        if crop.flip:
            picture = picture.flip(3)
        changed.copy_(picture.permute(0, 2, 3, 1))
    return out


def random_colour(rng: np.random.Generator, config: AugmentationConfig) -> NDArray[np.float32]:
    """A random affine colour transform, float32 ``[3, 4]`` on pixels of 0..255.

    The factors of brightness, contrast and saturation are drawn from [1 - x, 1 + x]; hue is the largest rotation.
    """
    shares = (config.brightness, config.contrast, config.saturation)
    b, c, s = (rng.uniform(max(0, 1 - x), 1 + x) for x in shares)
    angle = 2 * np.pi * rng.uniform(-config.hue, config.hue)
    rotation = np.array(
        [
            [1, 0, 0],
            [0, np.cos(angle), -np.sin(angle)],
            [0, np.sin(angle), np.cos(angle)],
        ]
    )
    matrix = np.linalg.inv(TO_YIQ) @ rotation @ TO_YIQ
    matrix = b * c * ((s * np.eye(3) + (1 - s) * LUMA) @ matrix)  # saturation moves towards each pixel's grey
    shift = np.full((3, 1), 127.5 * (1 - c))
    return np.concatenate([matrix, shift], 1).astype(np.float32)


def recolour(frames: Tensor, matrices: Tensor) -> Tensor:
    """Applies matrices ``[B, 3, 4]`` of :func:`random_colour` to frames uint8 ``[B, T, H, W, 3]`` on their device."""
    out = empty_frames(*frames.shape, device=frames.device)
    if not frames.numel():
        return out
    # A product with a 3x3 matrix is too small to be fast, so a row holds several pixels.
    per_row = math.gcd(frames[0].numel() // 3, 8)
    pixels, changed = (one.reshape(len(frames), -1, 3 * per_row) for one in (frames, out))
    rows = 2**12 if frames.is_cpu else 2**18  # their floats fit the cache, or keep a GPU busy
    floats = torch.empty((2, min(rows, pixels.shape[1]), 3 * per_row), device=frames.device)
    with torch.autocast(frames.device.type, enabled=False):  # bf16 would round the colours
        for i, matrix in enumerate(matrices.float()):
            factors = torch.block_diag(*[matrix[:, :3].T] * per_row)
            shift = matrix[:, 3].repeat(per_row) + 0.5  # so that truncation rounds to the nearest integer
            for part, target in zip(pixels[i].split(rows), changed[i].split(rows), strict=True):
                before, after = floats[:, : len(part)]
                torch.addmm(shift, before.copy_(part), factors, out=after)
                target.copy_(after.clamp_(0, 255))
    return out
