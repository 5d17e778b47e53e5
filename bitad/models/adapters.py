"""The trainable layers of a frozen backbone: AdaTAD's temporal adapter (Liu et al. 2024, arXiv:2311.17241), and BiTAD's
cross adapter, which also sees the other network's tokens.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from bitad.models.vit import TokenGrid

# Attributes that hold adapters: the first and the second after a block, and those between two networks.
NAMES = frozenset({"adapter", "bi_adapter", "cross_adapters"})


def is_adapter(name: str) -> bool:
    """Whether the parameter with this dotted name belongs to an adapter."""
    return not NAMES.isdisjoint(name.split("."))


class Bottleneck(nn.Module):
    """The base class of adapters: a narrow layer, mixed over the time of a window.

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
        # In 2-D, time and place, it reads tokens in their memory layout: 10-20x faster on a CPU than 1-D.
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

    def change(self, narrow: Tensor, grid: TokenGrid) -> Tensor:
        """The narrow layer ``[B * clips, t*h*w, C']`` -> the change of the tokens ``[B * clips, t*h*w, C]``."""
        hidden = F.gelu(narrow)
        # [B, C', time of the window, places]
        h = hidden.reshape(-1, grid.clips * grid.time, grid.height * grid.width, hidden.shape[-1]).permute(0, 3, 1, 2)
        context = self.pointwise(self.depthwise(h).permute(0, 2, 3, 1)).reshape(hidden.shape)
        # Gamma scales the weights, not their output: that is larger, and autograd would keep it for gamma's gradient.
        return F.linear(hidden + context, self.up.weight * self.gamma, self.up.bias * self.gamma)


class TemporalAdapter(Bottleneck):
    """Mixes each token with its neighbours in time, across the clips of a window, at the same place in the picture.

    ``x + gamma * up(h + pointwise(depthwise(h)))`` with ``h = gelu(down(x))``; ``up`` starts at zero, so a new adapter
    changes nothing. Arguments as :class:`Bottleneck`.
    """

    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        """Tokens ``[B * clips, t*h*w, C]`` of windows -> the same shape."""
        return x + self.change(self.down(x), grid)


class CrossAdapter(Bottleneck):
    """A temporal adapter that also takes the other network's tokens of the same time and place.

    As :class:`TemporalAdapter`, with ``h = gelu(down(x) + down_other(other))``. ``down_other`` has no bias: where the
    other network's tokens are 0, this is a temporal adapter. A new one changes nothing.
    """

    def __init__(self, dim: int, *, reduction: int = 4, kernel_size: int = 3) -> None:
        super().__init__(dim, reduction=reduction, kernel_size=kernel_size)
        self.down_other = nn.Linear(dim, dim // reduction, bias=False)
        nn.init.trunc_normal_(self.down_other.weight, std=0.02)

    def forward(self, x: Tensor, other: Tensor, grid: TokenGrid) -> Tensor:
        """Tokens ``[B * clips, t*h*w, C]`` of windows and the other network's, aligned -> the shape of ``x``."""
        return x + self.change(self.down(x) + self.down_other(other), grid)
