"""TriDet's head (Shi et al. 2023, arXiv:2303.07347): distances as expectations over bins, from where boundaries are.

Around each point t there are bins at 0, 1, ..., ``bins`` strides. How probable each is as the distance to the start of
an action of class c depends on the start logit of c at that place, and on what the regression says at t; the distance
is the expectation. So it depends on the class, and an action reaches at most ``bins`` strides from its point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitad.config.names import Padding
from bitad.config.schema import Config, TridentHeadConfig
from bitad.models.heads import Head, JoinedLevels, Tower, options_of
from bitad.models.pyramid import Level


class TridentHead(Head):
    """Levels of a pyramid -> prediction with distances ``[B, N, K, 2]``.

    The towers of the boundaries see the levels' features without passing a gradient on. Start and end logits are 0
    outside of a level; with ``padding="strict"`` they are 0 at padded positions too.

    Args:
        channels: of the levels.
        classes, strides, ranges: see :class:`~bitad.models.heads.Head`.
        bins: the largest distance, in strides.
        convs, kernel_size: of the towers.
        prior_probability: what an untrained head says of every class at every point.
        padding: see :mod:`bitad.models.pyramid`.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        strides: Sequence[int],
        ranges: Sequence[tuple[float, float]],
        bins: int = 16,
        convs: int = 2,
        kernel_size: int = 3,
        prior_probability: float = 0.01,
        padding: Padding = "reference",
    ) -> None:
        super().__init__(classes, strides=strides, ranges=ranges)
        self.bins, self.strict = bins, padding == "strict"
        self.classification, self.regression, self.start, self.end = (
            Tower(channels, outputs, convs=convs, kernel_size=kernel_size)
            for outputs in (classes, 2 * (bins + 1), classes, classes)
        )
        self.scales = nn.Parameter(torch.ones(len(strides)))
        self.classification.fill_bias(math.log(prior_probability / (1 - prior_probability)))
        for tower in (self.regression, self.start, self.end):
            tower.fill_bias(0.0)

    @classmethod
    def from_config(
        cls, own: TridentHeadConfig, config: Config, classes: int, strides: Sequence[int]
    ) -> TridentHead:
        """The head of a configuration (``own`` is its ``model.head``), for levels of these strides."""
        model = config.model
        options = options_of(config)
        return cls(model.channels, classes, strides=strides, bins=own.bins, padding=model.padding, **options)

    def predict(self, levels: Sequence[Level]) -> tuple[Tensor, Tensor]:
        joined = JoinedLevels.of(levels, gap=self.classification.reach)
        logits = torch.cat(self.classification(joined), dim=1)
        detached = joined.detached()
        starts, ends = self.start(detached), self.end(detached)
        columns = zip(levels, starts, ends, self.regression(joined), self.scales, strict=True)
        return logits, torch.cat([self._distances(level.mask, *values) for level, *values in columns], dim=1)

    def _distances(self, mask: Tensor, start: Tensor, end: Tensor, raw: Tensor, scale: Tensor) -> Tensor:
        """The expected distances at the points of a level, ``[B, T, K, 2]``.

        Args:
            mask: ``[B, T]``.
            start, end: logits of boundaries, ``[B, T, K]``.
            raw: the regression's output, ``[B, T, 2 * (bins + 1)]``.
            scale: of the level.
        """
        bins = self.bins
        if self.strict:
            start, end = start * mask[..., None], end * mask[..., None]
        offsets = F.relu(raw * scale).unflatten(2, (2, 1, bins + 1))  # [B, T, 2, 1, bins + 1]
        # Of each point the logits at the places from `bins` before it on, and at those up to `bins` after it.
        starts = F.pad(start, (0, 0, bins, 0)).unfold(1, bins + 1, 1)  # [B, T, K, bins + 1]
        ends = F.pad(end, (0, 0, 0, bins)).unfold(1, bins + 1, 1)
        distance = torch.arange(bins + 1, device=start.device)
        to_start = ((starts + offsets[:, :, 0]).softmax(-1) * distance.flip(0)).sum(-1)
        to_end = ((ends + offsets[:, :, 1]).softmax(-1) * distance).sum(-1)
        return torch.stack((to_start, to_end), dim=-1)
