"""Fusion of two networks' predictions on one clock: experiments 3-1, 3-2 and 3-3 of the research group.

Each takes one's own prediction and the other network's, aligned to one's own clock
(:func:`bitad.models.alignment.aligned`), and gives a prediction at one's own points. The layers along the point
axis fix N, the number of points, so a fusion serves windows of the training length only.

``init="mean"`` starts each as the mean of the two predictions. ``"random"`` is the group's own start: noise around 0
instead of two trained predictions. Their losses stayed above 100 with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import get_args

import torch
from torch import Tensor, nn

from bitad.config.names import FusionInit
from bitad.models.heads import Prediction


class PointLayer(nn.Module):
    """A linear layer along the point axis, 2N -> N, the same for every column, without bias.

    Args:
        points: N.
        init: ``"mean"``: the mean of both inputs, ``W = [I/2 | I/2]``; ``"random"``: as :class:`torch.nn.Linear`.
    """

    def __init__(self, points: int, *, init: FusionInit = "mean") -> None:
        super().__init__()
        if init not in get_args(FusionInit):
            raise ValueError(f"fusion initialisation {init!r} is not one of {', '.join(get_args(FusionInit))}")
        self.points = points
        self.linear = nn.Linear(2 * points, points, bias=False)
        if init == "mean":
            with torch.no_grad():
                self.linear.weight.copy_(torch.eye(points).repeat(1, 2) / 2)

    def forward(self, own: Tensor, other: Tensor, mask: Tensor) -> Tensor:
        """Two tables of M columns -> one; in single precision at least, under autocast too.

        Args:
            own, other: ``[B, N, M]``, or ``[B, N, ...]``, whose further axes are columns.
            mask: bool ``[B, N]``; the rest are padded points, whose rows enter as zeros.

        Returns:
            of the same shape; rows of padded points mean nothing.
        """
        if mask.shape[1] != self.points:
            raise ValueError(
                f"predictions at {mask.shape[1]} points for a fusion of {self.points}; "
                "use windows of the training length"
            )
        with torch.autocast(own.device.type, enabled=False):
            both = [_real_rows(table.flatten(2), mask) for table in (own, other)]
            rows = torch.cat(both, dim=1)  # [B, 2N, M]
            fused: Tensor = self.linear(rows.transpose(1, 2))  # [B, M, N]
        return fused.transpose(1, 2).reshape(own.shape)


class LogitConvolution(nn.Module):
    """A 3-D convolution over (network, point, class), one channel in and out; without bias.

    It sees a point's neighbours in the list of all points and a class's in the list of classes. ``init="mean"``: the
    two centre taps 1/2, the rest 0; ``"random"``: as :class:`torch.nn.Conv3d`.
    """

    def __init__(self, *, init: FusionInit) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 1, (2, 3, 3), padding=(0, 1, 1), bias=False)
        if init == "mean":
            with torch.no_grad():
                self.conv.weight.zero_()[..., 1, 1] = 0.5

    def forward(self, own: Tensor, other: Tensor, mask: Tensor) -> Tensor:
        """Logits ``[B, N, K]`` of both and the mask ``[B, N]`` -> ``[B, N, K]``, as :meth:`PointLayer.forward`."""
        with torch.autocast(own.device.type, enabled=False):
            both = torch.stack((_real_rows(own, mask), _real_rows(other, mask)), dim=1)  # [B, 2, N, K]
            fused: Tensor = self.conv(both[:, None])  # [B, 1, 1, N, K]
        return fused[:, 0, 0]


class Fusion(nn.Module, ABC):
    """Own and the other network's aligned prediction -> one at the same points."""

    @abstractmethod
    def combine(self, own: Prediction, other: Prediction) -> tuple[Tensor, Tensor]:
        """The fused logits and distances, of the shapes of the arguments'; those of padded points mean nothing."""

    def forward(self, own: Prediction, other: Prediction) -> Prediction:
        """Fuses two predictions of the same shapes on one clock, in single precision at least.

        Distances are >= 0, padded points zero. Raises ValueError if N is not the one that the fusion was made for.
        """
        logits, distances = self.combine(own, other)
        # One table: how a sigmoid rounds depends on how its argument lies in memory.
        table = _real_rows(torch.cat((distances.flatten(2), logits), dim=-1), own.mask)
        classes = logits.shape[2]
        return own._replace(
            logits=table[..., -classes:], distances=table[..., :-classes].relu().reshape(distances.shape)
        )


class ColumnFusion(Fusion):
    """Experiment 3-1: distances and logits side by side, ``[2N, 2 + K]``, through one layer along the points."""

    def __init__(self, points: int, *, init: FusionInit = "mean") -> None:
        super().__init__()
        self.columns = PointLayer(points, init=init)

    def combine(self, own: Prediction, other: Prediction) -> tuple[Tensor, Tensor]:
        mine, theirs = (torch.cat((p.distances.flatten(2), p.logits), dim=-1) for p in (own, other))
        fused = self.columns(mine, theirs, own.mask)  # [B, N, 2 + K]
        classes = own.logits.shape[2]
        return fused[..., -classes:], fused[..., :-classes].reshape(own.distances.shape)


class MeanFusion(Fusion):
    """Experiment 3-3: distances ``[2N, 2]`` through a layer along the points; the mean of the logits."""

    def __init__(self, points: int, *, init: FusionInit = "mean") -> None:
        super().__init__()
        self.distances = PointLayer(points, init=init)

    def combine(self, own: Prediction, other: Prediction) -> tuple[Tensor, Tensor]:
        distances = self.distances(own.distances, other.distances, own.mask)
        return (own.logits + other.logits) / 2, distances


class ConvolutionFusion(Fusion):
    """Experiment 3-2: as 3-3, but the logits ``[2, N, K]`` go through a 3-D convolution."""

    def __init__(self, points: int, *, init: FusionInit = "mean") -> None:
        super().__init__()
        self.distances = PointLayer(points, init=init)
        self.logits = LogitConvolution(init=init)

    def combine(self, own: Prediction, other: Prediction) -> tuple[Tensor, Tensor]:
        distances = self.distances(own.distances, other.distances, own.mask)
        return self.logits(own.logits, other.logits, own.mask), distances


def _real_rows(table: Tensor, mask: Tensor) -> Tensor:
    """A table ``[B, N, M]`` with zeros at padded points, in single precision at least."""
    return table.to(torch.promote_types(table.dtype, torch.float32)).masked_fill(~mask[..., None], 0)
