from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bitad.models.pyramid import FeaturePyramid, MaskedConv, TransformerBlock, local_attention


def small(**keywords: Any) -> FeaturePyramid:
    """A small pyramid with no parameter at a trivial value: norms have biases, residual branches count."""
    torch.manual_seed(0)
    keywords = {"levels": 4, "max_length": 32, "heads": 2, "drop_path": 0.0, "layer_scale": 1.0, **keywords}
    pyramid = FeaturePyramid(5, 8, **keywords).eval()
    for parameter in pyramid.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return pyramid


def full_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, window: int) -> Tensor:
    """What :func:`local_attention` stands for: T x T scores, masked."""
    position = torch.arange(q.shape[2])
    near = (position[:, None] - position).abs() <= window // 2
    scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~(near & mask[:, None, None]), -torch.inf)
    return scores.softmax(-1).nan_to_num() @ v


@given(
    length=st.integers(1, 80),
    window=st.sampled_from([3, 5, 9, 19, 41]),
    real=st.lists(st.integers(1, 80), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=40)
def test_local_attention_is_full_attention_with_a_band(
    length: int, window: int, real: list[int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, len(real), 2, length, 4, generator=generator, dtype=torch.float64)
    mask = torch.arange(length) < torch.tensor(real)[:, None]
    found = local_attention(q, k, v, mask, window)
    assert found.shape == q.shape
    assert found.isfinite().all()
    wanted = full_attention(q, k, v, mask, window)
    torch.testing.assert_close(found * mask[:, None, :, None], wanted * mask[:, None, :, None])


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that anything returns."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


def test_local_attention_over_a_long_window_holds_nothing_of_its_length_squared() -> None:
    length, window = 6000, 9
    q, k, v = torch.randn(3, 1, 2, length, 4)
    with LargestTensor() as seen:
        local_attention(q, k, v, torch.ones(1, length, dtype=torch.bool), window)
    assert seen.largest < length * 2 * 8 * window


@pytest.mark.parametrize("window", [None, 5, [5, 5, None, None]])
@given(real=st.integers(1, 32), seed=st.integers(0, 100))
@settings(deadline=None, max_examples=15)
def test_strict_padding_never_reaches_a_real_position(
    window: int | list[int | None] | None, real: int, seed: int
) -> None:
    pyramid = small(window=window, padding="strict")
    mask = torch.arange(32)[None] < real
    features = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(seed))
    other = torch.where(mask[:, None], features, torch.nan)
    with torch.no_grad():
        for (x, level_mask), (y, _) in zip(pyramid(features, mask), pyramid(other, mask), strict=True):
            assert torch.equal(x, y)
            assert x.masked_select(~level_mask[:, None]).abs().sum() == 0


@torch.no_grad()
def test_reference_padding_leaks_and_differs_from_strict_only_then() -> None:
    reference, strict = small(padding="reference"), small(padding="strict")
    features = torch.randn(1, 5, 32)
    whole, half = torch.ones(1, 32, dtype=torch.bool), torch.arange(32)[None] < 17
    for (x, _), (y, _) in zip(reference(features, whole), strict(features, whole), strict=True):
        assert torch.equal(x, y)
    assert any(
        not torch.allclose(x * mask[:, None], y * mask[:, None])
        for (x, mask), (y, _) in zip(reference(features, half), strict(features, half), strict=True)
    )


@pytest.mark.parametrize("padding", ["reference", "strict"])
@torch.no_grad()
def test_windows_of_a_batch_do_not_see_each_other(padding: str) -> None:
    pyramid = small(padding=padding, window=5)
    features = torch.randn(3, 5, 32)
    mask = torch.arange(32) < torch.tensor([[32], [20], [1]])
    together = pyramid(features, mask)
    for i in range(3):
        for (x, _), (y, _) in zip(together, pyramid(features[i : i + 1], mask[i : i + 1]), strict=True):
            torch.testing.assert_close(x[i : i + 1], y)


@torch.no_grad()
def test_each_level_halves_the_length_and_takes_every_second_position_of_the_mask() -> None:
    mask = torch.arange(32)[None] < 21
    levels = small()(torch.randn(1, 5, 32), mask)
    for level, (x, level_mask) in enumerate(levels):
        assert x.shape == (1, 8, 32 // 2**level)
        assert torch.equal(level_mask, mask[:, :: 2**level])


@torch.no_grad()
def test_short_inputs_are_padded_to_the_window() -> None:
    pyramid = small()
    features, mask = torch.randn(2, 5, 20), torch.ones(2, 20, dtype=torch.bool)
    padded = pyramid(F.pad(features, (0, 12)), F.pad(mask, (0, 12)))
    for (x, x_mask), (y, y_mask) in zip(pyramid(features, mask), padded, strict=True):
        assert torch.equal(x, y)
        assert torch.equal(x_mask, y_mask)


@pytest.mark.parametrize(
    ("window", "length", "padded"), [(None, 33, 40), (None, 40, 40), (5, 33, 64), (5, 65, 96), (None, 1, 32)]
)
def test_long_inputs_are_padded_to_a_length_that_divides(window: int | None, length: int, padded: int) -> None:
    pyramid = small(window=window)
    assert pyramid.padded_length(length) == padded
    assert pyramid(torch.randn(1, 5, length), torch.ones(1, length, dtype=torch.bool))[0].mask.shape == (1, padded)


def test_drop_path_has_a_scale_where_asked() -> None:
    assert not any("scale" in name for name in small(layer_scale=None).state_dict())
    scales = {name: w for name, w in FeaturePyramid(5, 8, max_length=32).state_dict().items() if "scale" in name}
    assert len(scales) == 2 * 7
    assert all((scale == 1e-4).all() for scale in scales.values())


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"max_length": 36}, "window 36 is not a multiple of the coarsest stride 8; use 40"),
        ({"heads": 3}, "8 channels do not divide among 3"),
        ({"window": 4}, "attention window 4"),
        ({"padding": "zero"}, "padding 'zero' is not one of reference, strict"),
        ({"window": [5, 5]}, "2 attention windows for 4 levels"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**keywords)


def test_features_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="features have 7 channels, the pyramid takes 5"):
        small()(torch.randn(1, 7, 32), torch.ones(1, 32, dtype=torch.bool))


def slow_sinusoid(position: int, channels: int) -> list[float]:
    angles = [position / 10000 ** (2 * (channel // 2) / channels) for channel in range(channels)]
    return [math.cos(angle) if channel % 2 else math.sin(angle) for channel, angle in enumerate(angles)]


@torch.no_grad()
def test_positions_are_added_to_what_the_stem_sees_and_nowhere_else() -> None:
    plain, told = small(), small(position_embedding=True)
    assert plain.state_dict().keys() == told.state_dict().keys()  # a constant
    mask = torch.arange(32) < torch.tensor([32, 20])[:, None]
    seen: list[Tensor] = []
    for pyramid in (plain, told):
        pyramid.stem[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        pyramid(torch.ones(2, 5, 32), mask)
    table = torch.tensor([slow_sinusoid(position, 8) for position in range(32)]).T / math.sqrt(8)
    torch.testing.assert_close(seen[1] - seen[0], table * mask[:, None])


def test_positions_of_longer_inputs_are_those_of_the_window_stretched() -> None:
    pyramid = small(position_embedding=True)
    stretched = pyramid._positions(64)
    torch.testing.assert_close(
        stretched[:, :, 1:-1].unfold(2, 2, 2).mean(-1), pyramid._positions(32).unfold(2, 2, 1).mean(-1)
    )
    assert torch.equal(pyramid._positions(16), pyramid._positions(32)[:, :, :16])


def test_input_dropout_drops_whole_channels_and_only_in_training() -> None:
    torch.manual_seed(0)
    pyramid = small(input_dropout=0.5)
    features = torch.ones(64, 5, 32)
    dropped = pyramid.train().input_dropout(features)
    assert ((dropped == 0) | (dropped == 2)).all()
    assert torch.equal(dropped, dropped[:, :, :1].expand_as(dropped))
    assert dropped.mean().item() == pytest.approx(1, abs=0.2)
    assert torch.equal(pyramid.eval().input_dropout(features), features)


def has_channels_innermost(x: Tensor) -> bool:
    return x.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("padding", ["reference", "strict"])
def test_features_and_gradients_between_blocks_have_channels_innermost(padding: str) -> None:
    pyramid = small(padding=padding, layer_scale=1e-4).train()
    outputs: list[Tensor] = []
    gradients: list[Tensor] = []

    def collect(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        features = output if isinstance(output, Tensor) else output.features
        outputs.append(features)
        features.register_hook(gradients.append)

    blocks = [one for one in pyramid.modules() if isinstance(one, MaskedConv | TransformerBlock)]
    for block in blocks:
        block.register_forward_hook(collect)
    mask = torch.arange(32) < torch.tensor([[32], [20]])
    levels = pyramid(torch.randn(2, 5, 32), mask)
    torch.stack([level.features.square().sum() for level in levels]).sum().backward()
    assert len(gradients) == len(outputs) == len(blocks)
    assert all(map(has_channels_innermost, (*outputs, *gradients)))
