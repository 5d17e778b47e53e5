"""AdaTAD's temporal adapter (Liu et al. 2024, arXiv:2311.17241): the trainable part of a frozen backbone."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from bitad.models.videomae import TokenGrid


class TemporalAdapter(nn.Module):
    """Lets every token look at its neighbours in time, across the clips of a window, at the same place in the picture.

    ``x + gamma * up(h + pointwise(depthwise(h)))`` with ``h = gelu(down(x))``; ``up`` starts at zero, so a new adapter
    changes nothing.

    Args:
        dim: C, width of the tokens.
        reduction: the adapter works in ``dim // reduction`` channels.
        kernel_size: of the temporal convolution, in tubelets; odd.
    """

    def __init__(self, dim: int, *, reduction: int = 4, kernel_size: int = 3) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"adapter kernel {kernel_size} has no middle; use an odd size")
        hidden = dim // reduction
        self.down = nn.Linear(dim, hidden)
        # In two dimensions, time and place, it takes the tokens as they lie in memory: 10-20x faster on a CPU than 1-D.
        self.depthwise = nn.Conv2d(hidden, hidden, (kernel_size, 1), padding=(kernel_size // 2, 0), groups=hidden)
        self.pointwise = nn.Linear(hidden, hidden)
        self.up = nn.Linear(hidden, dim)
        self.gamma = nn.Parameter(self.up.weight.new_ones(1))
        nn.init.trunc_normal_(self.down.weight, std=0.02)
        nn.init.normal_(self.depthwise.weight, std=math.sqrt(2 / kernel_size))
        nn.init.normal_(self.pointwise.weight, std=math.sqrt(2 / hidden))
        for layer in (self.down, self.depthwise, self.pointwise, self.up):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        """Tokens ``[B * clips, t*h*w, C]`` of whole windows -> the same shape."""
        hidden = F.gelu(self.down(x))
        # [B, C', time of the whole window, places]
        h = hidden.reshape(-1, grid.clips * grid.time, grid.height * grid.width, hidden.shape[-1]).permute(0, 3, 1, 2)
        context = self.pointwise(self.depthwise(h).permute(0, 2, 3, 1)).reshape(hidden.shape)
        return x + self.up(hidden + context) * self.gamma
