"""Pictures of frames as the processor of a published model makes them.

The processor's file (``preprocessor_config.json`` and the like, of the library ``transformers``) states how frames are
scaled, cropped and normalised. Frames are scaled as by the library's processors that use torchvision; the library's
others, on Pillow, differ by a grey level at some pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bitad.runtime.files import read_json

# Names of processors' files, and the part of each that is meant; of several the first.
_VIDEO_FILES = (
    ("processor_config.json", "video_processor"),
    ("video_preprocessor_config.json", None),
    ("preprocessor_config.json", None),
    ("processor_config.json", "image_processor"),
)
_IMAGE_FILES = (("processor_config.json", "image_processor"), ("preprocessor_config.json", None))
PROCESSOR_FILES = ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json")
# Pillow's numbers of filters, as the files have them.
_FILTERS = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class Preprocessing:
    """Frames -> pictures of one size.

    Args:
        size: (height, width) to scale to, or the shorter side; None: frames are not scaled.
        crop: (height, width) cut from the middle, with black around smaller frames; None: all of it.
        filter: ``"bilinear"`` or ``"bicubic"``, of scaling.
        scale, shift: of pixels on 0..255, before they are normalised.
        mean, std: of each channel.
        rounds: whether scaled pixels are whole numbers.
    """

    size: tuple[int, int] | int | None
    crop: tuple[int, int] | None
    filter: str
    scale: float
    shift: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rounds: bool = True

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        size = self.crop or self.size
        assert isinstance(size, tuple)
        return size

    def __str__(self) -> str:
        size = (
            f"shorter side {self.size}" if isinstance(self.size, int) else "{} x {}".format(*self.size or ("", ""))
        )
        scaled = f"{size}, {self.filter}" if self.size else "not scaled"
        crop = "middle {} x {}; ".format(*self.crop) if self.crop else ""
        mean, std = (" ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        shift = f" {self.shift:+g}" if self.shift else ""
        return f"{scaled}; {crop}pixels * {self.scale:.6g}{shift}; mean {mean}; std {std}"

    def scale_and_crop(self, frames: NDArray[np.uint8]) -> Tensor:
        """Frames uint8 ``[n, H, W, 3]`` -> ``[n, 3, h, w]`` on 0..255; uint8, or float without :attr:`rounds`."""
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
        height, width = pixels.shape[2:]
        if isinstance(self.size, int):
            long = int(self.size * max(height, width) / min(height, width))
            target = (self.size, long) if height <= width else (long, self.size)
        else:
            target = self.size or (height, width)
        if not self.rounds:
            pixels = pixels.float()
        if target != (height, width):
            pixels = F.interpolate(pixels, target, mode=self.filter, antialias=True, align_corners=False)
        return pixels.contiguous() if self.crop is None else _middle(pixels, *self.crop)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels on 0..255 ``[..., 3, h, w]`` -> single precision."""
        mean, std = (torch.tensor(values, device=pixels.device).view(-1, 1, 1) for values in (self.mean, self.std))
        # One multiplication and one addition: ((x * scale + shift) - mean) / std.
        return pixels.float() * (self.scale / std) + (self.shift - mean) / std


def _middle(pixels: Tensor, height: int, width: int) -> Tensor:
    missing = max(0, height - pixels.shape[2]), max(0, width - pixels.shape[3])
    if any(missing):
        top, left = missing[0] // 2, missing[1] // 2
        pixels = F.pad(pixels, (left, missing[1] - left, top, missing[0] - top))
    top, left = (pixels.shape[2] - height) // 2, (pixels.shape[3] - width) // 2
    return pixels[:, :, top : top + height, left : left + width].contiguous()


def read_preprocessing(folder: Path, *, of_videos: bool) -> Preprocessing:
    """The preprocessing that the processor's file in a model's folder states.

    Args:
        of_videos: whether the model takes clips; its file for videos comes first then.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it asks for something that is not known, or states no size of the pictures.
    """
    for name, part in _VIDEO_FILES if of_videos else _IMAGE_FILES:
        path = folder / name
        if not path.is_file():
            continue
        content = read_json(path)
        if part is not None and isinstance(content, dict):
            content = content.get(part)
            if content is None:
                continue
        if not isinstance(content, dict):
            raise ValueError(f"{path} is damaged: it holds no settings of a processor")
        try:
            return _preprocessing({key: value for key, value in content.items() if value is not None})
        except (KeyError, TypeError, IndexError):
            raise ValueError(f"{path} is damaged: its sizes or numbers are of no known form") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    names = ", ".join(PROCESSOR_FILES)
    raise FileNotFoundError(
        f"{folder} has no processor's file ({names}); copy it from where the model is published"
    )


def _preprocessing(content: Mapping[str, Any]) -> Preprocessing:
    for key in ("do_pad", "do_flip_channel_order", "do_reduce_labels", "do_image_splitting"):
        if content.get(key):
            raise ValueError(f"{key} is not supported")
    kinds = [
        content.get(f"{kind}_type", "") for kind in ("video_processor", "image_processor", "feature_extractor")
    ]
    kind = next((kind for kind in kinds if kind), "")
    crop = None
    # Files of early versions lack keys that had no other value.
    if content.get("do_center_crop", "crop_size" in content):
        crop = _pair(content["crop_size"])
    size: tuple[int, int] | int | None = None
    if content.get("do_resize", True):
        stated = content["size"]
        if isinstance(stated, int):
            size = stated if crop else (stated, stated)
        elif set(stated) == {"shortest_edge"}:
            size = int(stated["shortest_edge"])
        else:
            size = _pair(stated)
    if crop is None and not isinstance(size, tuple):
        raise ValueError("it states no size of the pictures (size with height and width, or crop_size)")
    number = content.get("resample", 2)
    if number not in _FILTERS:
        raise ValueError(f"resample={number} is not supported, only {', '.join(map(str, _FILTERS))}")
    rescales = content.get("do_rescale", True)
    # ViViT's pixels are on -1..1; the library's processor of its videos always does that.
    shifts = rescales and content.get("offset", kind == "VivitVideoProcessor")
    normalises = content.get("do_normalize", True)
    return Preprocessing(
        size=size,
        crop=crop,
        filter=_FILTERS[number],
        scale=float(content.get("rescale_factor", 1 / 255)) if rescales else 1.0,
        shift=-1.0 if shifts else 0.0,
        mean=_channels(content["image_mean"]) if normalises else (0.0,) * 3,
        std=_channels(content["image_std"]) if normalises else (1.0,) * 3,
        rounds=not kind.startswith("DINOv3"),  # its processor scales fractions
    )


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, list):
        return int(size[0]), int(size[1])
    if set(size) != {"height", "width"}:
        raise ValueError(f"a size of {', '.join(map(str, size))} is not supported")
    return int(size["height"]), int(size["width"])


def _channels(values: Any) -> tuple[float, ...]:
    numbers = tuple(map(float, values))
    if len(numbers) != 3:
        raise ValueError(f"{len(numbers)} channels, where pictures have 3")
    return numbers
