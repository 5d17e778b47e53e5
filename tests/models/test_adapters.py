from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bitad.models.vit import CrossAdapter, TemporalAdapter, TokenGrid, is_adapter

GRID = TokenGrid(clips=3, time=2, height=2, width=1)


def learned(adapter: TemporalAdapter) -> None:
    torch.manual_seed(0)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)


def adapter_and_tokens(windows: int = 2, kernel_size: int = 3) -> tuple[TemporalAdapter, Tensor]:
    adapter = TemporalAdapter(8, reduction=2, kernel_size=kernel_size)
    learned(adapter)
    return adapter, torch.randn(windows * 3, 4, 8)


def cross_adapter_and_tokens(kernel_size: int = 3) -> tuple[CrossAdapter, Tensor, Tensor]:
    adapter = CrossAdapter(8, reduction=2, kernel_size=kernel_size)
    learned(adapter)
    return adapter, torch.randn(6, 4, 8), torch.randn(6, 4, 8)


def one_place_at_a_time(
    adapter: TemporalAdapter, tokens: Tensor, windows: int, other: Tensor | None = None
) -> Tensor:
    """The same by its formula, for each window and place by itself, over the time of the window."""
    tokens = tokens.reshape(windows, 6, 2, 8)  # [window, clip and time, place, C]
    out = torch.empty_like(tokens)
    for window in range(windows):
        for place in range(2):
            x = tokens[window, :, place]
            narrow = adapter.down(x)
            if other is not None:
                narrow = narrow + other.reshape(tokens.shape)[window, :, place] @ adapter.down_other.weight.T
            hidden = F.gelu(narrow)
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


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_a_cross_adapter_mixes_both_networks_along_the_time_of_the_window(kernel_size: int) -> None:
    adapter, tokens, other = cross_adapter_and_tokens(kernel_size)
    expected = one_place_at_a_time(adapter, tokens, windows=2, other=other)
    torch.testing.assert_close(adapter(tokens, GRID, other), expected)


def test_a_cross_adapter_sees_the_other_network_as_far_as_its_own() -> None:
    adapter, tokens, other = cross_adapter_and_tokens()
    for x in (tokens, other):
        x.requires_grad_()
    adapter(tokens, GRID, other)[0, 3].sum().backward()
    for x in (tokens, other):
        assert x.grad is not None
        assert (x.grad.abs().sum(-1) > 0).nonzero().tolist() == [[0, 1], [0, 3], [1, 1]]


def test_a_cross_adapter_that_hears_nothing_is_a_temporal_one() -> None:
    adapter, tokens, other = cross_adapter_and_tokens()
    temporal = TemporalAdapter(8, reduction=2)
    temporal.load_state_dict({name: w for name, w in adapter.state_dict().items() if name != "down_other.weight"})
    assert torch.equal(adapter(tokens, GRID, torch.zeros_like(other)), temporal(tokens, GRID))


def test_a_new_adapter_changes_nothing() -> None:
    tokens = torch.randn(6, 4, 8)
    assert torch.equal(TemporalAdapter(8)(tokens, GRID), tokens)
    assert torch.equal(CrossAdapter(8)(tokens, GRID, torch.randn(6, 4, 8)), tokens)


def test_a_new_adapter_can_learn() -> None:
    adapter = TemporalAdapter(8)
    adapter(torch.randn(6, 4, 8), GRID).square().sum().backward()
    assert adapter.up.weight.grad is not None
    assert adapter.up.weight.grad.abs().sum() > 0


def test_a_cross_adapters_first_step_depends_on_the_other_network() -> None:
    torch.manual_seed(0)
    tokens, gradients = torch.randn(6, 4, 8), []
    adapter = CrossAdapter(8)
    for other in (torch.zeros_like(tokens), torch.randn(6, 4, 8)):
        adapter(tokens, GRID, other).square().sum().backward()
        gradients.append(adapter.up.weight.grad)
        adapter.zero_grad()
    assert not torch.allclose(*gradients)


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel 4"):
        TemporalAdapter(8, kernel_size=4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("blocks.0.adapter.down.weight", True),
        ("network.backbone.vit.blocks.11.bi_adapter.gamma", True),
        ("cross_adapters.3.down_other.weight", True),
        ("sides.0.cross_adapters.3.up.bias", True),
        ("blocks.0.attn.qkv.weight", False),
        ("blocks.0.adapters_norm.weight", False),
        ("pyramid.stem.0.norm1.weight", False),
    ],
)
def test_adapters_are_known_by_their_names(name: str, expected: bool) -> None:
    assert is_adapter(name) == expected
