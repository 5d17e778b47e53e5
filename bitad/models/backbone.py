"""The backbone of a detector, around VideoMAE's transformer: frames of windows -> features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitad.models.vit import TokenGrid, VisionTransformer

# ImageNet's mean and standard deviation of pixels on 0..255, as in VideoMAE's training.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
_CLIPS_AT_A_TIME = 4


def normalised(patches: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Patches ``[..., 3 * n]``, uint8 or float, one channel after another, minus ``mean`` and over ``std``, ``[3]``."""
    each = patches.shape[-1] // 3
    # Whole rows, in place: faster on a CPU than three channels apart.
    rows = patches.to(mean.dtype, copy=True)
    return rows.sub_(mean.repeat_interleave(each)).div_(std.repeat_interleave(each))


class VideoBackbone(nn.Module):
    """Frames of windows -> a feature per grid step.

    Normalises pixels, cuts windows into clips, averages the transformer's tokens over space and interpolates them from
    tubelets to grid steps, as AdaTAD does.
    """

    def __init__(self, vit: VisionTransformer, *, frames_per_step: int = 1) -> None:
        super().__init__()
        self.vit, self.frames_per_step = vit, frames_per_step
        # Constants, not weights: checkpoints do not hold them.
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(PIXEL_STD), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Encodes frames.

        Args:
            frames: ``[B, T * k, H, W, 3]``, RGB, uint8 or float on 0..255, k of each grid step.

        Returns:
            features ``[B, C, T]``, at least single precision.

        Raises:
            ValueError: the frames do not fill clips, or the clips no patch.
        """
        tokens, grid = self.begin(frames)
        return self.features(self.vit.encode(tokens, grid), grid.clips)

    def begin(self, frames: Tensor) -> tuple[Tensor, TokenGrid]:
        """The input of the transformer's first block: tokens of all clips, and their layout."""
        clips, per_window = self._cut(frames)
        # In single precision they take four times the memory of the frames: a few at a time.
        chunks = [self.vit.begin(chunk, per_window, self._normalise) for chunk in clips.split(_CLIPS_AT_A_TIME)]
        return torch.cat([tokens for tokens, _ in chunks]), chunks[0][1]

    def _cut(self, frames: Tensor) -> tuple[Tensor, int]:
        """Frames ``[B, T, H, W, 3]`` -> clips ``[B * n, 3, t, H, W]``, and n."""
        if frames.ndim != 5 or frames.shape[-1] != 3:
            raise ValueError(f"frames of shape {list(frames.shape)}; the backbone takes [B, T, H, W, 3]")
        length = frames.shape[1]
        if length % self.vit.clip_frames:
            raise ValueError(
                f"window of {length} frames is not a multiple of the clip of {self.vit.clip_frames}; "
                f"use {-(-length // self.vit.clip_frames) * self.vit.clip_frames}"
            )
        clips = frames.unflatten(1, (-1, self.vit.clip_frames)).flatten(0, 1).permute(0, 4, 1, 2, 3)
        return clips, length // self.vit.clip_frames

    def _normalise(self, patches: Tensor) -> Tensor:
        return normalised(patches, self.get_buffer("mean"), self.get_buffer("std"))

    def features(self, tokens: Tensor, per_window: int) -> Tensor:
        """Tokens ``[B * n, t, h, w, C]``, n clips per window -> features ``[B, C, T]``."""
        features = (
            tokens.mean((2, 3)).unflatten(0, (-1, per_window)).flatten(1, 2).transpose(1, 2)
        )  # [B, C, n * t]
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        length = per_window * self.vit.clip_frames // self.frames_per_step
        return F.interpolate(features, size=length, mode="linear", align_corners=False)
