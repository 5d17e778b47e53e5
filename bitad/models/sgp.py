"""TriDet's feature pyramid (Shi et al. 2023, arXiv:2303.07347): blocks of scalable-granularity perception (SGP).

Depth-wise convolutions take the place of self-attention. With ``padding="reference"`` padded positions count in the
mean over time and in the group norm, so the same video gives other numbers when it is padded to another length; with
``"strict"`` both are over real positions only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitad.config.names import Padding
from bitad.config.schema import Config, SgpPyramidConfig
from bitad.models.pyramid import (
    AffineDropPath,
    ChannelNorm,
    Level,
    Pyramid,
    PyramidOptions,
    halved,
    options_of,
)


class MaskedGroupNorm(nn.GroupNorm):
    """Group norm of ``[B, C, T]`` over the channels of a group and over time; with a mask, over real positions only."""

    def masked(self, x: Tensor, mask: Tensor) -> Tensor:
        """``x [B, C, T]``, ``mask [B, T]`` -> ``[B, C, T]``; padded positions mean nothing."""
        keep = mask[:, None, None]
        grouped = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(1, (self.num_groups, -1))
        count = keep.sum(-1, keepdim=True) * grouped.shape[2]
        mean = (grouped * keep).sum((2, 3), keepdim=True) / count
        variance = ((grouped - mean).square() * keep).sum((2, 3), keepdim=True) / count
        normed = ((grouped - mean) * (variance + self.eps).rsqrt()).flatten(1, 2)
        return normed * self.weight[:, None] + self.bias[:, None]


class SgpBlock(nn.Module):
    """An SGP block on ``[B, C, T]``; with ``stride`` 2 it first halves T by max pooling.

    With y the layer norm of x, phi = ReLU(``phi``(mean of y over time)) and convolutions that are all depth-wise::

        x + fc(y) phi + (narrow(y) + wide(y)) psi(y) + y, to which an MLP of the group norm is added

    Args:
        channels: C.
        stride: 1 or 2.
        window, wide_window: kernel sizes of ``narrow`` and ``wide``, odd.
        mlp_channels: width of the MLP.
        groups: of the group norm.
        init_std: of the first values of the depth-wise convolutions; their biases begin at 0. With 0 they stay at 0:
            each has a gradient of exactly 0 there.
        drop_path, layer_scale: see :class:`AffineDropPath`.
        padding: see the module.
    """

    def __init__(
        self,
        channels: int,
        *,
        stride: int = 1,
        window: int = 1,
        wide_window: int = 11,
        mlp_channels: int,
        groups: int = 16,
        init_std: float = 0.1,
        drop_path: float = 0.1,
        layer_scale: float | None = 1e-4,
        padding: Padding = "reference",
    ) -> None:
        super().__init__()
        self.stride, self.strict = stride, padding == "strict"
        self.norm = ChannelNorm(channels)
        self.psi, self.fc, self.phi = (_depthwise(channels, 1, std=init_std) for _ in range(3))
        self.narrow = _depthwise(channels, window, std=init_std)
        self.wide = _depthwise(channels, wide_window, std=init_std)
        self.drop_path_out = AffineDropPath(channels, drop_path=drop_path, layer_scale=layer_scale)
        self.group_norm = MaskedGroupNorm(groups, channels)
        self.mlp = nn.Sequential(
            nn.Conv1d(channels, mlp_channels, 1), nn.GELU(), nn.Conv1d(mlp_channels, channels, 1)
        )
        self.drop_path_mlp = AffineDropPath(channels, drop_path=drop_path, layer_scale=layer_scale)

    def forward(self, x: Tensor, mask: Tensor) -> Level:  # [B, C, T], [B, T] -> [B, C, T / stride]
        if self.stride > 1:
            x, mask = halved(x, mask, strict=self.strict)
            x = x.contiguous()  # time innermost, for the convolutions and the sums over time
        keep = mask[:, None]
        y = self.norm(x)
        if self.strict:
            y = y * keep
            mean = y.sum(2, keepdim=True) / keep.sum(2, keepdim=True)
        else:
            mean = y.mean(2, keepdim=True)
        branch = self.fc(y) * F.relu(self.phi(mean)) + (self.narrow(y) + self.wide(y)) * self.psi(y) + y
        x = x * keep + self.drop_path_out(branch)
        x = x + self.drop_path_mlp(
            self.mlp(self.group_norm.masked(x, mask) if self.strict else self.group_norm(x))
        )
        return Level(x * keep if self.strict else x, mask)


class SgpPyramid(Pyramid):
    """TriDet's pyramid.

    Args:
        in_channels, channels, options: see :class:`Pyramid`.
        window: kernel size of the narrow convolutions, odd: one for all levels, or one a level. The stem has 1.
        k: the wide convolutions see ``k (window + 1)`` positions, and one more if that is even.
        mlp_channels: width of the MLPs; None: one and a half times C.
        input_noise: standard deviation of noise that training adds to the features.
        groups, init_std: see :class:`SgpBlock`.
        drop_path, layer_scale: see :class:`AffineDropPath`. The stem has neither.

    Raises:
        ValueError: for sizes that do not fit together.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        window: int | Sequence[int] = 1,
        k: float = 5.0,
        mlp_channels: int | None = None,
        groups: int = 16,
        init_std: float = 0.1,
        input_noise: float = 0.0,
        drop_path: float = 0.1,
        layer_scale: float | None = 1e-4,
        **options: Unpack[PyramidOptions],
    ) -> None:
        levels = options.setdefault("levels", 6)
        windows = list(window) if isinstance(window, Sequence) else [window] * levels
        if len(windows) != levels:
            raise ValueError(f"{len(windows)} windows for {levels} levels; give one for each")

        def block(level: int) -> SgpBlock:
            in_branch = level > 0
            narrow = windows[level] if in_branch else 1
            return SgpBlock(
                channels,
                stride=2 if in_branch else 1,
                window=narrow,
                wide_window=round((narrow + 1) * k) // 2 * 2 + 1,
                mlp_channels=mlp_channels or 3 * channels // 2,
                groups=groups,
                init_std=init_std,
                drop_path=drop_path if in_branch else 0.0,
                layer_scale=layer_scale if in_branch else None,
                padding=options.get("padding", "reference"),
            )

        super().__init__(
            in_channels,
            channels,
            stem=partial(block, 0),
            branch=block,
            length_multiple=max(2**level * one for level, one in enumerate(windows)),
            **options,
        )
        self.input_noise = input_noise

    @classmethod
    def from_config(cls, own: SgpPyramidConfig, config: Config, in_channels: int) -> SgpPyramid:
        """The pyramid of a configuration; ``own`` is its ``model.pyramid``."""
        model = config.model
        return cls(
            in_channels,
            model.channels,
            window=own.window,
            k=own.k,
            mlp_channels=own.mlp_channels,
            groups=own.groups,
            init_std=own.init_std,
            input_noise=own.input_noise,
            drop_path=model.drop_path,
            layer_scale=model.layer_scale,
            **options_of(config),
        )

    def project(self, features: Tensor, mask: Tensor) -> list[Level]:
        if self.training and self.input_noise:
            features = features + self.input_noise * torch.randn_like(features)
        return super().project(features, mask)


def _depthwise(channels: int, kernel_size: int, *, std: float) -> nn.Conv1d:
    conv = nn.Conv1d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
    assert conv.bias is not None
    nn.init.normal_(conv.weight, std=std)
    nn.init.zeros_(conv.bias)
    return conv
