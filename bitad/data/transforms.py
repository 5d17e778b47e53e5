"""Changes of a window's picture: one draw for all its frames, so that motion stays what it was.

Cutting, resizing and flipping work on uint8 frames as they come from the decoder; colour is one matrix a window,
applied on the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

# Luma weights of ITU-R BT.601, and the matrix to and from its YIQ space, where hue is an angle.
LUMA = np.array([0.299, 0.587, 0.114])
TO_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


@dataclass(frozen=True)
class Crop:
    """A rectangle of the picture, in pixels, and whether it is flipped left to right."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False


def centre_crop(height: int, width: int) -> Crop:
    """The largest square in the middle."""
    side = min(height, width)
    return Crop((height - side) // 2, (width - side) // 2, side, side)


def random_crop(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    area: tuple[float, float],
    aspect: tuple[float, float],
    flip: float,
) -> Crop:
    """A random rectangle (Szegedy et al. 2015, arXiv:1409.4842): share of the area, then the aspect on a log scale.

    Args:
        area: smallest and largest share of the picture.
        aspect: smallest and largest width / height.
        flip: probability of a flip.
    """
    flipped = bool(rng.random() < flip)
    for _ in range(10):
        target = height * width * rng.uniform(*area)
        ratio = np.exp(rng.uniform(*np.log(aspect)))
        w, h = round(np.sqrt(target * ratio)), round(np.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Crop(int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w, flipped)
    square = centre_crop(height, width)
    return Crop(square.top, square.left, square.height, square.width, flipped)


def room_for_frames(*shape: int) -> Tensor:
    """Uninitialised uint8 frames of a shape, in the machine's memory.

    NumPy asks Linux for large pages and torch does not: a whole window is filled for the first time in a quarter of the
    time.
    """
    return torch.from_numpy(np.empty(shape, np.uint8))


def apply_crop(frames: NDArray[np.uint8], crop: Crop, pixels: int) -> Tensor:
    """Cuts frames ``[T, H, W, 3]``, resizes to ``pixels`` x ``pixels`` and flips; uint8 ``[T, pixels, pixels, 3]``."""
    cut = torch.from_numpy(frames[:, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width])
    out = room_for_frames(len(frames), pixels, pixels, 3)
    # A few frames at a time: what lies between two steps stays in the cache.
    for part, changed in zip(cut.split(8), out.split(8), strict=True):
        picture = part.permute(0, 3, 1, 2)
        if (crop.height, crop.width) != (pixels, pixels):
            picture = picture.contiguous(memory_format=torch.channels_last)  # which is resized the quick way
            picture = F.interpolate(picture, (pixels, pixels), mode="bilinear", align_corners=False, antialias=True)
        if crop.flip:
            picture = picture.flip(3)
        changed.copy_(picture.permute(0, 2, 3, 1))
    return out


def random_colour(
    rng: np.random.Generator, *, brightness: float, contrast: float, saturation: float, hue: float
) -> NDArray[np.float32]:
    """One affine change of colour, float32 ``[3, 4]`` on pixels of 0..255: brightness, contrast, saturation, hue.

    Each of the first three is a factor drawn from [1 - x, 1 + x]; ``hue`` the largest turn, in full circles.
    Contrast is taken about middle grey.
    """
    factor = {
        name: rng.uniform(max(0, 1 - x), 1 + x) for name, x in (("b", brightness), ("c", contrast), ("s", saturation))
    }
    angle = 2 * np.pi * rng.uniform(-hue, hue)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    matrix = np.linalg.inv(TO_YIQ) @ turn @ TO_YIQ
    matrix = (factor["s"] * np.eye(3) + (1 - factor["s"]) * LUMA) @ matrix  # towards each pixel's own grey
    matrix = factor["b"] * factor["c"] * matrix
    grey = 127.5 * (1 - factor["c"])
    return np.concatenate([matrix, np.full((3, 1), grey)], 1).astype(np.float32)


def recolour(frames: Tensor, matrices: Tensor) -> Tensor:
    """Applies :func:`random_colour` on the device.

    Args:
        frames: uint8 ``[B, T, H, W, 3]``.
        matrices: float ``[B, 3, 4]``.

    Returns:
        uint8, as ``frames``.
    """
    out = (
        room_for_frames(*frames.shape)
        if frames.is_cpu
        else torch.empty(frames.shape, dtype=torch.uint8, device=frames.device)
    )
    if not frames.numel():
        return out
    # A product with a 3x3 matrix is too small to be quick, so several pixels are one row, and go through it at once.
    together = math.gcd(frames[0].numel() // 3, 8)
    pixels, changed = (one.reshape(len(frames), -1, 3 * together) for one in (frames, out))
    rows = 2**12 if frames.is_cpu else 2**18  # whose floats stay in the cache, or which keep a GPU busy
    floats = torch.empty((2, min(rows, pixels.shape[1]), 3 * together), device=frames.device)
    with torch.autocast(frames.device.type, enabled=False):  # bf16 would round the colours
        for i, matrix in enumerate(matrices.float()):
            turn = torch.block_diag(*[matrix[:, :3].T] * together)
            shift = matrix[:, 3].repeat(together) + 0.5  # the whole part is then the nearest number
            for part, target in zip(pixels[i].split(rows), changed[i].split(rows), strict=True):
                given, turned = floats[:, : len(part)]
                torch.addmm(shift, given.copy_(part), turn, out=turned)
                target.copy_(turned.clamp_(0, 255))
    return out
