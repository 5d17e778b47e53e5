"""Feature pyramids: a window's features at every stride; the base class, and ActionFormer's of transformer blocks
(Zhang et al. 2022, arXiv:2202.07925).

Convolutions embed the features, blocks relate them, and each further block halves the resolution; a layer norm per
level ends it (OpenTAD's identity neck). There are two ways to treat padding:

* ``"reference"``: as ActionFormer and OpenTAD do. The biases of the blocks' first norm and of the levels' norms make
  padded positions non-zero, and the next convolution carries them into the last real position. Published weights were
  trained with it.
* ``"strict"``: padding never reaches a real position. So a reversed window gives the exact mirror image of a forward
  one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Required, TypedDict, Unpack, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitad.config.names import Padding
from bitad.config.schema import Config, TransformerPyramidConfig
from bitad.models.vit import DropPath, sinusoid_table


class Level(NamedTuple):
    """One level of the pyramid: ``features [B, C, T]``, and ``mask [B, T]``, bool, true at real positions."""

    features: Tensor
    mask: Tensor


class _TimeInnermost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return channels_innermost(gradient)


def time_innermost(x: Tensor) -> Tensor:
    """``x [B, C, T]`` with the steps of a channel side by side in memory, as convolutions need them.

    Norms need the channels of a step side by side. On a CPU, an operation on tensors of both layouts takes up to 30
    times as long as on tensors of one, so everything beside convolutions, gradients too, has channels innermost.
    """
    innermost: Tensor = _TimeInnermost.apply(x)
    return innermost


def channels_innermost(x: Tensor) -> Tensor:
    """``x [B, C, T]`` with the channels of a step side by side in memory; see :func:`time_innermost`."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of ``[B, C, T]``, which are innermost afterwards."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(channels_innermost(x).transpose(1, 2)).transpose(1, 2)


class MaskedConv(nn.Module):
    """Convolution, layer norm, ReLU; padding is zero before the norm and after the ReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = ChannelNorm(out_channels, eps=1e-6)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # [B, C, T], [B, T]
        keep = mask[:, None]
        return F.relu(self.norm(self.conv(time_innermost(x)) * keep)) * keep


class AffineDropPath(nn.Module):
    """Drop path after LayerScale (Touvron et al. 2021), if not None."""

    def __init__(self, channels: int, *, drop_path: float, layer_scale: float | None) -> None:
        super().__init__()
        self.scale = None if layer_scale is None else nn.Parameter(torch.full((channels,), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, T]
        return self.drop_path(x if self.scale is None else x * self.scale[:, None])


class ConvProjection(nn.Module):
    """Queries, keys or values: a depthwise convolution, a layer norm, a linear map."""

    def __init__(self, channels: int, *, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)
        self.norm = ChannelNorm(channels)
        self.pointwise = _pointwise(channels, channels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``x [B, C, T]``, mask of the *output* ``[B, T / stride]`` -> ``[B, C, T / stride]``."""
        return self.pointwise(time_innermost(self.norm(self.depthwise(x) * mask[:, None])))


class MaskedAttention(nn.Module):
    """Self-attention over the real positions, or those of an odd ``window`` around each."""

    def __init__(self, channels: int, heads: int, *, stride: int, window: int | None, dropout: float) -> None:
        super().__init__()
        self.heads, self.stride, self.window = heads, stride, window
        self.query, self.key, self.value = (ConvProjection(channels, stride=stride) for _ in range(3))
        self.proj = _pointwise(channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # [B, C, T], [B, T] -> [B, C, T / stride]
        x, mask = time_innermost(x), mask[:, :: self.stride]
        q, k, v = (
            projection(x, mask).unflatten(1, (self.heads, -1)).transpose(2, 3)  # [B, heads, T, C / heads]
            for projection in (self.query, self.key, self.value)
        )
        if self.window is None:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        else:
            out = local_attention(q, k, v, mask, self.window)
        out = self.proj(out.transpose(2, 3).flatten(1, 2))
        return channels_innermost(self.dropout(out)) * mask[:, None]


def local_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, window: int) -> Tensor:
    """Attention in which each position sees the real ones at most ``window // 2`` away.

    Each block of queries meets only the keys it can reach: time and memory grow with ``T * window``, not ``T * T``.
    ``q, k, v [B, heads, T, C]``, ``mask [B, T]``; padded results mean nothing.
    """
    reach, block, length = window // 2, max(window, 16), q.shape[2]
    tail = -length % block
    span = block + 2 * reach  # keys a block can reach

    def blocks_of_keys(x: Tensor) -> Tensor:  # [B, heads, T, C] -> [B * blocks, heads, span, C]
        x = F.pad(x, (0, 0, reach, reach + tail)).unfold(2, span, block)  # [B, heads, blocks, C, span]
        return x.permute(0, 2, 1, 4, 3).flatten(0, 1)

    queries = F.pad(q, (0, 0, 0, tail)).unflatten(2, (-1, block)).transpose(1, 2)  # [B, blocks, heads, block, C]
    real = F.pad(mask, (reach, reach + tail)).unfold(1, span, block).flatten(0, 1)  # [B * blocks, span]
    offset = torch.arange(span, device=q.device) - torch.arange(block, device=q.device)[:, None] - reach
    # A padded query may see itself: some attention kernels give NaN for a row without any key.
    allowed = (offset.abs() <= reach) & (real[:, None] | (offset == 0))  # [B * blocks, block, span]
    out = F.scaled_dot_product_attention(
        queries.flatten(0, 1), blocks_of_keys(k), blocks_of_keys(v), attn_mask=allowed[:, None]
    )
    return out.unflatten(0, (q.shape[0], -1)).transpose(1, 2).flatten(2, 3)[:, :, :length]


class TransformerBlock(nn.Module):
    """Pre-norm transformer block on ``[B, C, T]``; with ``stride`` 2, it halves T."""

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        stride: int,
        window: int | None,
        dropout: float,
        drop_path: float,
        layer_scale: float | None,
        padding: Padding,
    ) -> None:
        super().__init__()
        self.stride, self.strict = stride, padding == "strict"
        self.norm1 = ChannelNorm(channels)
        self.attn = MaskedAttention(channels, heads, stride=stride, window=window, dropout=dropout)
        self.drop_path_attn = AffineDropPath(channels, drop_path=drop_path, layer_scale=layer_scale)
        self.norm2 = ChannelNorm(channels)
        self.mlp = nn.Sequential(
            _pointwise(channels, 4 * channels),
            nn.GELU(),
            nn.Dropout(dropout),
            _pointwise(4 * channels, channels),
            nn.Dropout(dropout),
        )
        self.drop_path_mlp = AffineDropPath(channels, drop_path=drop_path, layer_scale=layer_scale)

    def forward(self, x: Tensor, mask: Tensor) -> Level:  # [B, C, T], [B, T] -> [B, C, T / stride]
        keep = mask[:, None, :: self.stride]
        normed = self.norm1(x)
        if self.strict:
            normed = normed * mask[:, None]
        skip = halved(x, mask, strict=self.strict).features if self.stride > 1 else x
        x = skip * keep + self.drop_path_attn(self.attn(normed, mask))
        x = x + self.drop_path_mlp(channels_innermost(self.mlp(time_innermost(self.norm2(x)))) * keep)
        return Level(x, mask[:, :: self.stride])


def halved(x: Tensor, mask: Tensor, *, strict: bool) -> Level:
    """Every second position, the maximum of three: ``x [B, C, T]``, ``mask [B, T]`` -> a level of T / 2.

    With ``strict``, padding has no part in the maximum, and becomes 0.
    """
    if not strict:
        return Level(F.max_pool1d(x, 3, stride=2, padding=1), mask[:, ::2])
    # Padding counts as zero in the line above, which wins over negative features.
    pooled = F.max_pool1d(torch.where(mask[:, None], x, -torch.inf), 3, stride=2, padding=1)
    return Level(torch.where(mask[:, None, ::2], pooled, 0), mask[:, ::2])


class PyramidOptions(TypedDict, total=False):
    """The options of every :class:`Pyramid`."""

    max_length: Required[int]
    levels: int
    embed_convs: int
    stem_blocks: int
    position_embedding: bool
    input_dropout: float
    level_norms: bool
    padding: Padding


class Pyramid(nn.Module):
    """Features of a window -> a list of levels; level l has the stride ``2**l``.

    Args:
        channels: C, of every level.
        stem: makes a block at full resolution.
        branch: makes the block that halves the resolution and ends in a level, from 1 on.
        length_multiple: inputs longer than ``max_length`` are padded to a multiple of it.
        max_length: T in grid steps; shorter inputs are padded to it.
        stem_blocks: blocks at full resolution.
        position_embedding: add a sinusoid, scaled by 1/sqrt(C), to the stem's input; longer inputs get it stretched.
        input_dropout: rate at which channels of the features are dropped.
        level_norms: end each level with a layer norm (ActionFormer's ``fpn_with_ln``).
        padding: see the module.

    Raises:
        ValueError: for sizes that do not fit together.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stem: Callable[[], nn.Module],
        branch: Callable[[int], nn.Module],
        length_multiple: int,
        max_length: int,
        levels: int = 6,
        embed_convs: int = 2,
        stem_blocks: int = 2,
        position_embedding: bool = False,
        input_dropout: float = 0.0,
        level_norms: bool = True,
        padding: Padding = "reference",
    ) -> None:
        super().__init__()
        if padding not in get_args(Padding):
            raise ValueError(f"padding {padding!r} is not one of {', '.join(get_args(Padding))}")
        self.strides = tuple(2**level for level in range(levels))
        self.in_channels, self.max_length, self.strict = in_channels, max_length, padding == "strict"
        self.length_multiple = length_multiple
        if max_length % self.strides[-1]:
            nearest = -(-max_length // self.strides[-1]) * self.strides[-1]
            raise ValueError(
                f"window {max_length} is not a multiple of the coarsest stride {self.strides[-1]}; use {nearest}"
            )
        self.input_dropout = nn.Dropout1d(input_dropout)
        table = (
            sinusoid_table(max_length, channels).transpose(1, 2) / channels**0.5 if position_embedding else None
        )
        self.register_buffer("positions", table, persistent=False)  # [1, C, T], a constant
        self.embed = nn.ModuleList(
            MaskedConv(channels if i else in_channels, channels) for i in range(embed_convs)
        )
        self.stem = nn.ModuleList(stem() for _ in range(stem_blocks))
        self.branch = nn.ModuleList(branch(level) for level in range(1, levels))
        self.norms = nn.ModuleList(
            ChannelNorm(channels, eps=1e-6) if level_norms else nn.Identity() for _ in range(levels)
        )

    def padded_length(self, length: int) -> int:
        """The number of level-0 positions of an input of ``length`` grid steps."""
        if length <= self.max_length:
            return self.max_length
        return -(-length // self.length_multiple) * self.length_multiple

    def project(self, features: Tensor, mask: Tensor) -> list[Level]:
        """The levels before their norms."""
        if features.shape[1] != self.in_channels:
            raise ValueError(
                f"features have {features.shape[1]} channels, the pyramid takes {self.in_channels}; "
                "set data.feature_channels"
            )
        pad = self.padded_length(features.shape[2]) - features.shape[2]
        x, mask = F.pad(features, (0, pad)), F.pad(mask, (0, pad))
        if self.strict:
            x = x.masked_fill(~mask[:, None], 0)
        x = self.input_dropout(x)
        for conv in self.embed:
            x = conv(x, mask)
        if self.positions is not None:
            x = x + self._positions(x.shape[2]) * mask[:, None]
        for block in self.stem:
            x, mask = block(x, mask)
        levels = [Level(x, mask)]
        for block in self.branch:
            levels.append(block(*levels[-1]))
        return levels

    def _positions(self, length: int) -> Tensor:
        """The position embedding ``[1, C, length]``."""
        table = self.get_buffer("positions")
        if length <= table.shape[2]:
            return table[:, :, :length]
        return F.interpolate(table, size=length, mode="linear", align_corners=False)

    def forward(self, features: Tensor, mask: Tensor) -> list[Level]:
        """Features ``[B, in_channels, T]``, mask ``[B, T]`` -> levels, finest first, ``T_0 = padded_length(T)``."""
        levels = [
            Level(norm(x), mask) for norm, (x, mask) in zip(self.norms, self.project(features, mask), strict=True)
        ]
        if self.strict:
            levels = [Level(x * mask[:, None], mask) for x, mask in levels]
        return levels


def options_of(config: Config) -> PyramidOptions:
    """The options in a configuration."""
    model = config.model
    return {
        "max_length": config.window.steps,
        "levels": model.levels,
        "embed_convs": model.embed_convolutions,
        "stem_blocks": model.stem_blocks,
        "position_embedding": model.position_embedding,
        "input_dropout": model.input_dropout,
        "level_norms": model.level_norms,
        "padding": model.padding,
    }


class FeaturePyramid(Pyramid):
    """ActionFormer's pyramid, of transformer blocks.

    ``window`` is the attention window in positions, of all levels or each; None sees everything.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        heads: int = 4,
        window: int | Sequence[int | None] | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.1,
        layer_scale: float | None = 1e-4,
        **options: Unpack[PyramidOptions],
    ) -> None:
        levels = options.setdefault("levels", 6)
        windows = list(window) if isinstance(window, Sequence) else [window] * levels
        if channels % heads:
            raise ValueError(f"{channels} channels do not divide among {heads} attention heads")
        if len(windows) != levels:
            raise ValueError(f"{len(windows)} attention windows for {levels} levels; give one for each")
        for one in windows:
            if one is not None and (one < 3 or one % 2 == 0):
                raise ValueError(f"attention window {one}; use an odd number from 3, or none to see everything")

        def block(level: int, *, stride: int) -> TransformerBlock:
            return TransformerBlock(
                channels,
                heads,
                stride=stride,
                window=windows[level],
                dropout=dropout,
                drop_path=drop_path,
                layer_scale=layer_scale,
                padding=options.get("padding", "reference"),
            )

        super().__init__(
            in_channels,
            channels,
            stem=partial(block, 0, stride=1),
            branch=partial(block, stride=2),
            # ActionFormer's multiple for long inputs: whole attention chunks on every level.
            length_multiple=max(2**level * (1 if w is None else 2 * (w // 2)) for level, w in enumerate(windows)),
            **options,
        )

    @classmethod
    def from_config(cls, own: TransformerPyramidConfig, config: Config, in_channels: int) -> FeaturePyramid:
        model = config.model
        return cls(
            in_channels,
            model.channels,
            heads=model.heads,
            window=model.attention_window,
            dropout=model.dropout,
            drop_path=model.drop_path,
            layer_scale=model.layer_scale,
            **options_of(config),
        )


def _pointwise(in_channels: int, out_channels: int) -> nn.Conv1d:
    """A linear map of the channels; its bias starts at zero, as in ActionFormer."""
    conv = nn.Conv1d(in_channels, out_channels, 1)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
