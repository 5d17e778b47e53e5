"""Anchor-free heads: classes and distances to start and end at every point. The base class, and ActionFormer's head
(Zhang et al. 2022, arXiv:2202.07925).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from bitad.config.schema import ActionFormerHeadConfig, Config
from bitad.models.pyramid import Level, MaskedConv, time_innermost


@dataclass(frozen=True)
class Points:
    """Where the N points of all levels lie, finest level first.

    Args:
        position: ``[N]``, in grid steps: ``stride * j`` for the j-th point of its level.
        stride: ``[N]``, in grid steps.
        low, high: ``[N]``, in grid steps: the range of distances to the farther end of a point's segments.
        sizes: the number of points of each level.
    """

    position: Tensor
    stride: Tensor
    low: Tensor
    high: Tensor
    sizes: tuple[int, ...]

    @classmethod
    def of_levels(
        cls,
        sizes: Sequence[int],
        strides: Sequence[int],
        ranges: Sequence[tuple[float, float]],
        device: torch.device | None = None,
    ) -> Points:
        levels = [(stride, *limits) for stride, limits in zip(strides, ranges, strict=True)]
        # Without an operation whose result has a length that depends on values: networks are exported with it.
        columns = [
            torch.cat([torch.full((size,), float(value)) for size, value in zip(sizes, values, strict=True)])
            for values in zip(*levels, strict=True)
        ]
        stride, low, high = columns
        position = torch.cat([torch.arange(size) for size in sizes]) * stride
        return cls(position.to(device), stride.to(device), low.to(device), high.to(device), tuple(sizes))

    def __len__(self) -> int:
        return len(self.position)

    def to(self, device: torch.device) -> Points:
        """The points on a device."""
        position, stride, low, high = (one.to(device) for one in (self.position, self.stride, self.low, self.high))
        return Points(position, stride, low, high, self.sizes)

    def segments(self, distances: Tensor) -> Tensor:
        """Distances to start and end in strides, ``[B, N, 2]`` or ``[B, N, K, 2]`` -> segments in grid steps."""
        position, stride = (
            column[:, None] if distances.ndim == 4 else column for column in (self.position, self.stride)
        )
        offsets = distances * stride[..., None]
        return torch.stack((position - offsets[..., 0], position + offsets[..., 1]), dim=-1)


@lru_cache(maxsize=32)
def _kept_points(
    sizes: tuple[int, ...], strides: tuple[int, ...], ranges: tuple[tuple[float, float], ...], device: torch.device
) -> Points:
    # Tensors made in inference mode could not be used in training.
    with torch.inference_mode(False):
        return Points.of_levels(sizes, strides, ranges, device)


class Prediction(NamedTuple):
    """The output of a detector for a batch of windows; N points, K classes.

    Args:
        logits: ``[B, N, K]``.
        distances: to the start and to the end of the action, in strides of the point, >= 0: ``[B, N, 2]``, or
            ``[B, N, K, 2]`` where they depend on the class.
        mask: bool ``[B, N]``; false in the padding, where values mean nothing.
        points: where the N points lie.
    """

    logits: Tensor
    distances: Tensor
    mask: Tensor
    points: Points


class RecoveringReLU(torch.autograd.Function):
    """ReLU of channels ``[..., C]``, with a gradient for a channel that would get none.

    Where a channel is negative at all points that have a gradient, it passes where a step makes the channel larger. One
    network in sixteen begins with a distance that is cut off at nearly all points, and without this could find no start
    (or no end) of any action.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x > 0)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        reached = (positive & (gradient != 0)).any(-2, keepdim=True)  # [..., 1, C]
        return gradient * (positive | (~reached & (gradient < 0)))


class JoinedLevels(NamedTuple):
    """All levels of a pyramid one after the other, so that a convolution runs once and not once for each level.

    Args:
        level: all of them, with padding between two levels.
        lengths: the positions of the first level, of the padding, of the second level, and so on.
    """

    level: Level
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, levels: Sequence[Level], *, gap: int) -> JoinedLevels:
        """``gap``: zeros between two levels, as many as a convolution sees on each side of a position or more."""
        features, masks = [], []
        for x, mask in levels:
            # Joined with the channels of a step side by side, as the levels have them.
            features += [x.transpose(1, 2), x.new_zeros(x.shape[0], gap, x.shape[1])]
            masks += [mask, mask.new_zeros(mask.shape[0], gap)]
        level = Level(torch.cat(features[:-1], dim=1).transpose(1, 2), torch.cat(masks[:-1], dim=1))
        return cls(level, tuple(mask.shape[1] for mask in masks[:-1]))

    def detached(self) -> JoinedLevels:
        """The same without a gradient."""
        return JoinedLevels(Level(self.level.features.detach(), self.level.mask), self.lengths)

    def split(self, x: Tensor) -> list[Tensor]:
        """Values ``[B, T, ...]`` at all positions -> those of each level."""
        return list(x.split(self.lengths, dim=1)[::2])


class Tower(nn.Module):
    """Convolutions and an output layer, the same for every level.

    ``reach``: how many positions a convolution sees on each side.
    """

    def __init__(self, channels: int, outputs: int, *, convs: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.convs = nn.ModuleList(MaskedConv(channels, channels, kernel_size=kernel_size) for _ in range(convs))
        self.reach = kernel_size // 2
        self.output = nn.Conv1d(channels, outputs, kernel_size, padding=self.reach)

    def fill_bias(self, value: float) -> None:
        assert self.output.bias is not None
        nn.init.constant_(self.output.bias, value)

    def forward(self, levels: JoinedLevels) -> list[Tensor]:
        """Levels -> ``[B, T, outputs]`` of each level.

        Raises:
            ValueError: the gap between levels is smaller than ``reach``, so that a level would see another.
        """
        if (gap := min(levels.lengths[1::2], default=self.reach)) < self.reach:
            raise ValueError(f"a gap of {gap} for convolutions that see {self.reach} positions on each side")
        x, mask = levels.level
        for conv in self.convs:
            x = conv(x, mask)
        out: Tensor = self.output(time_innermost(x)).transpose(1, 2)
        # Distances of a long action do not fit into half precision.
        return levels.split(out.to(torch.promote_types(out.dtype, torch.float32)))


class Head(nn.Module, ABC):
    """Levels of a pyramid -> prediction of K classes.

    Args:
        strides: of the levels, in grid steps.
        ranges: (low, high) of each level in grid steps, see :class:`Points`.
    """

    def __init__(self, classes: int, *, strides: Sequence[int], ranges: Sequence[tuple[float, float]]) -> None:
        super().__init__()
        self.classes, self.strides = classes, tuple(strides)
        self.ranges = tuple((low, high) for low, high in ranges)
        if len(self.ranges) != len(self.strides):
            raise ValueError(
                f"{len(self.ranges)} regression ranges for {len(self.strides)} levels; give one for each"
            )

    @abstractmethod
    def predict(self, levels: Sequence[Level]) -> tuple[Tensor, Tensor]:
        """The logits and distances of a :class:`Prediction` at the points of all levels."""

    def forward(self, levels: Sequence[Level]) -> Prediction:
        logits, distances = self.predict(levels)
        sizes = [level.mask.shape[1] for level in levels]
        return Prediction(
            logits=logits,
            distances=distances,
            mask=torch.cat([level.mask for level in levels], dim=1),
            points=self.points(sizes, levels[0].mask.device),
        )

    def points(self, sizes: Sequence[int], device: torch.device | None = None) -> Points:
        """The points of levels with these sizes; on a GPU they are made once, as copying them there waits for it."""
        if device is None or device.type != "cuda" or torch.compiler.is_compiling():
            return Points.of_levels(sizes, self.strides, self.ranges, device)
        return _kept_points(tuple(sizes), self.strides, self.ranges, device)


class HeadOptions(TypedDict):
    """What every head takes of a configuration: regression ranges by level in grid steps, convolutions, prior."""

    ranges: Sequence[tuple[float, float]]
    convs: int
    prior_probability: float


def options_of(config: Config) -> HeadOptions:
    """The options in a configuration."""
    model = config.model
    return {
        "ranges": model.ranges,
        "convs": model.head_convolutions,
        "prior_probability": model.prior_probability,
    }


class DetectionHead(Head):
    """ActionFormer's head: one segment at each point; two towers of ``convs`` convolutions.

    ``prior_probability`` is an untrained head's of every class at every point (Lin et al. 2017).
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        strides: Sequence[int],
        ranges: Sequence[tuple[float, float]],
        convs: int = 2,
        prior_probability: float = 0.01,
    ) -> None:
        super().__init__(classes, strides=strides, ranges=ranges)
        self.classification, self.regression = (Tower(channels, outputs, convs=convs) for outputs in (classes, 2))
        self.scales = nn.Parameter(torch.ones(len(strides)))
        self.classification.fill_bias(math.log(prior_probability / (1 - prior_probability)))
        self.regression.fill_bias(0.0)

    @classmethod
    def from_config(
        cls, own: ActionFormerHeadConfig, config: Config, classes: int, strides: Sequence[int]
    ) -> DetectionHead:
        return cls(config.model.channels, classes, strides=strides, **options_of(config))

    def predict(self, levels: Sequence[Level]) -> tuple[Tensor, Tensor]:
        joined = JoinedLevels.of(levels, gap=self.classification.reach)
        raw = [x * scale for x, scale in zip(self.regression(joined), self.scales, strict=True)]
        return torch.cat(self.classification(joined), dim=1), RecoveringReLU.apply(torch.cat(raw, dim=1))
