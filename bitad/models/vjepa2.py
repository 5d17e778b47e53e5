"""V-JEPA 2's encoder (Assran et al. 2025, arXiv:2506.09985) as a backbone, in place of VideoMAE's transformer.

It has no position table: attention rotates queries and keys by the positions of their tokens in time, height and width
(RoPE, Su et al. 2021, arXiv:2104.09864). So pictures and clips may have any size. The output is normalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitad.models.vit import Block, TokenGrid, VisionTransformer

_BASE = 10000.0  # of the rotations' frequencies


class RopeAttention(nn.Module):
    """Self-attention over the tokens of one clip of square pictures, with rotated queries and keys.

    A third of each head's channels, rounded down to an even number, is rotated by the position in time, a third by
    that in height and a third by that in width. Channel pairs are neighbours, but share the frequencies of the halves,
    as in the published network.

    Args:
        tubelets: t, of a clip.
    """

    def __init__(self, dim: int, heads: int, tubelets: int) -> None:
        super().__init__()
        self.heads, self.tubelets = heads, tubelets
        self.rotated = dim // heads // 3 // 2 * 2
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.qkv_bias = nn.Parameter(torch.zeros(3 * dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:  # [B, N, C] -> [B, N, C]
        qkv = F.linear(x, self.qkv.weight, self.qkv_bias)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, N, C / heads]
        cosines, sines = self._rotations(x.shape[1], x.device)
        q, k = (_rotate(z, cosines, sines).to(v.dtype) for z in (q, k))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))

    def _rotations(self, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[N, 3 * rotated]`` of the angles of all tokens."""
        side = math.isqrt(tokens // self.tubelets)
        if self.tubelets * side**2 != tokens:
            raise ValueError(f"{tokens} tokens are not {self.tubelets} tubelets of square pictures")
        time, height, width = (torch.arange(size, device=device) for size in (self.tubelets, side, side))
        places = torch.cartesian_prod(time, height, width).float()  # [N, 3]
        channels = torch.arange(self.rotated // 2, device=device) / (self.rotated / 2)
        angles = places[:, :, None] * _BASE**-channels  # [N, 3, rotated / 2]
        angles = angles.repeat(1, 1, 2).flatten(1)
        return angles.cos(), angles.sin()


def _rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotates pairs of the first channels of ``[..., N, C]``."""
    rotated, rest = x.tensor_split([cosines.shape[-1]], dim=-1)
    first, second = rotated.unflatten(-1, (-1, 2)).unbind(-1)
    perpendicular = torch.stack((-second, first), -1).flatten(-2)
    return torch.cat((rotated * cosines + perpendicular * sines, rest), -1)


class VJepa2Transformer(VisionTransformer):
    """V-JEPA 2's encoder over the clips of windows; arguments as :class:`VisionTransformer`, no table."""

    def __init__(self, *, dim: int, heads: int, **others: Any) -> None:
        super().__init__(dim=dim, heads=heads, **others)
        del self.pos_embed
        for block in self.blocks:
            assert isinstance(block, Block)
            block.attn = RopeAttention(dim, heads, self.clip_frames // self.tubelet)
            block.initialise()
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def begin(
        self, clips: Tensor, clips_per_window: int, normalise: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, TokenGrid]:
        if clips.shape[3] != clips.shape[4]:
            raise ValueError(f"pictures of {clips.shape[3]}x{clips.shape[4]} pixels; V-JEPA 2 takes square ones")
        return super().begin(clips, clips_per_window, normalise)

    def add_positions(self, tokens: Tensor, height: int, width: int) -> Tensor:
        return tokens

    def finish(self, tokens: Tensor) -> Tensor:
        normalised: Tensor = self.norm(tokens)
        return normalised
