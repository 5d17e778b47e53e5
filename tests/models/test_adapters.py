from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bitad.models.adapters import TemporalAdapter
from bitad.models.videomae import TokenGrid

GRID = TokenGrid(clips=3, time=2, height=2, width=1)


def adapter_and_tokens(windows: int = 2, kernel_size: int = 3) -> tuple[TemporalAdapter, Tensor]:
    torch.manual_seed(0)
    adapter = TemporalAdapter(8, reduction=2, kernel_size=kernel_size)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    return adapter, torch.randn(windows * 3, 4, 8)


def one_place_at_a_time(adapter: TemporalAdapter, tokens: Tensor, windows: int) -> Tensor:
    """The same by its formula, for each window and place by itself, over the time of the window."""
    tokens = tokens.reshape(windows, 6, 2, 8)  # [window, clip and time, place, C]
    out = torch.empty_like(tokens)
    for window in range(windows):
        for place in range(2):
            x = tokens[window, :, place]
            hidden = F.gelu(adapter.down(x))
            kernel = adapter.depthwise.weight[..., 0]  # [C', 1, k]
            along = F.conv1d(
                hidden.T, kernel, adapter.depthwise.bias, padding=kernel.shape[-1] // 2, groups=len(kernel)
            )
            out[window, :, place] = x + adapter.gamma * adapter.up(hidden + adapter.pointwise(along.T))
    return out.reshape(windows * 3, 4, 8)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_it_convolves_over_the_time_of_the_whole_window(kernel_size: int) -> None:
    adapter, tokens = adapter_and_tokens(kernel_size=kernel_size)
    torch.testing.assert_close(adapter(tokens, GRID), one_place_at_a_time(adapter, tokens, windows=2))


def test_it_sees_across_clips_but_not_across_windows() -> None:
    adapter, tokens = adapter_and_tokens()
    tokens.requires_grad_()
    # The first step of the second window's first clip.
    adapter(tokens, GRID)[3, 0].sum().backward()
    assert tokens.grad is not None
    seen = tokens.grad.abs().sum(-1) > 0  # [window and clip, time and place]
    assert seen.nonzero().tolist() == [[3, 0], [3, 2]]
    tokens.grad = None
    # The last step of a clip meets the first one of the next.
    adapter(tokens, GRID)[0, 3].sum().backward()
    assert (tokens.grad.abs().sum(-1) > 0).nonzero().tolist() == [[0, 1], [0, 3], [1, 1]]


def test_a_new_adapter_changes_nothing() -> None:
    tokens = torch.randn(6, 4, 8)
    assert torch.equal(TemporalAdapter(8)(tokens, GRID), tokens)


def test_a_new_adapter_can_learn() -> None:
    adapter = TemporalAdapter(8)
    adapter(torch.randn(6, 4, 8), GRID).square().sum().backward()
    assert adapter.up.weight.grad is not None
    assert adapter.up.weight.grad.abs().sum() > 0


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel 4"):
        TemporalAdapter(8, kernel_size=4)
