"""VideoMAE's transformer equals a slow one written out here: loops over patches and heads, attention as a softmax."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitad.config.names import Checkpointing
from bitad.models.vit import Block, DropPath, TemporalAdapter, TokenGrid, VisionTransformer, sinusoid_table

DIM, DEPTH, HEADS, PATCH, SIZE = 12, 2, 3, 4, 8


def transformer(**keywords: Any) -> VisionTransformer:
    """A small one in double precision, with biases and norms that are not as at the beginning."""
    torch.manual_seed(0)
    sizes = {"dim": DIM, "depth": DEPTH, "heads": HEADS, "mlp_dim": 20, "patch_size": PATCH, "image_size": SIZE}
    vit = VisionTransformer(**{**sizes, **keywords})
    for name, parameter in vit.named_parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.3)
    return vit.double().eval()


def adapters() -> list[TemporalAdapter]:
    torch.manual_seed(3)
    return [TemporalAdapter(DIM) for _ in range(DEPTH)]


def clips(count: int = 2, height: int = SIZE, width: int = SIZE) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(count, 3, 16, height, width, dtype=torch.float64)


def slow_embedding(vit: VisionTransformer, clip: Tensor) -> Tensor:
    """One clip ``[3, T, H, W]`` -> tokens ``[t, h, w, C]``: the kernel laid over one tubelet at a time."""
    weight, bias = vit.patch_embed.weight, vit.patch_embed.bias
    assert bias is not None
    _, frames, height, width = clip.shape
    out = torch.empty(frames // 2, height // PATCH, width // PATCH, DIM, dtype=clip.dtype)
    for t in range(out.shape[0]):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                tubelet = clip[:, 2 * t : 2 * t + 2, PATCH * y : PATCH * (y + 1), PATCH * x : PATCH * (x + 1)]
                out[t, y, x] = torch.stack([(kernel * tubelet).sum() for kernel in weight]) + bias
    return out


def slow_norm(x: Tensor, norm: nn.Module) -> Tensor:
    assert isinstance(norm, nn.LayerNorm)
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight + norm.bias


def slow_block(block: Block, x: Tensor) -> Tensor:  # [N, C]
    y, attn = slow_norm(x, block.norm1), block.attn
    q, k, v = (y @ part.T for part in attn.qkv.weight.chunk(3))
    q, v = q + attn.q_bias, v + attn.v_bias  # keys have no bias
    heads = []
    for head in range(HEADS):
        part = slice(head * DIM // HEADS, (head + 1) * DIM // HEADS)
        scores = q[:, part] @ k[:, part].T / math.sqrt(DIM / HEADS)
        weights = scores.exp() / scores.exp().sum(1, keepdim=True)
        heads.append(weights @ v[:, part])
    x = x + torch.cat(heads, dim=1) @ attn.proj.weight.T + attn.proj.bias
    y = slow_norm(x, block.norm2)
    hidden = y @ block.mlp[0].weight.T + block.mlp[0].bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + hidden @ block.mlp[2].weight.T + block.mlp[2].bias


@torch.no_grad()
def test_it_equals_the_slow_transformer() -> None:
    vit, inputs = transformer(), clips()
    out = vit(inputs, clips_per_window=2)
    assert out.shape == (2, 8, 2, 2, DIM)
    for clip, tokens in zip(inputs, out, strict=True):
        x = slow_embedding(vit, clip).flatten(0, 2) + vit.get_buffer("pos_embed")[0]
        for block in vit.blocks:
            assert isinstance(block, Block)
            x = slow_block(block, x)
        torch.testing.assert_close(tokens.flatten(0, 2), x, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_tubelets_are_embedded_as_by_a_convolution() -> None:
    vit, inputs = transformer(), clips(height=12, width=20)
    expected = vit.patch_embed(inputs).permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(vit.embed(inputs), expected)


def test_the_position_table_is_the_sinusoid() -> None:
    table = sinusoid_table(50, 6)
    assert table.shape == (1, 50, 6)
    for position in (0, 1, 17, 49):
        for channel in range(6):
            angle = position / 10000 ** (2 * (channel // 2) / 6)
            expected = math.sin(angle) if channel % 2 == 0 else math.cos(angle)
            assert table[0, position, channel].item() == pytest.approx(expected, abs=1e-6)


def cubic_weight(distance: float, a: float = -0.75) -> float:
    """Keys's cubic convolution kernel with PyTorch's a."""
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def cubic_matrix(old: int, new: int) -> Tensor:
    """``[new, old]``: how each new place is made of the old ones, the outermost of them repeated beyond the edge."""
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        place = (i + 0.5) * old / new - 0.5
        for j in range(math.floor(place) - 1, math.floor(place) + 3):
            matrix[i, min(max(j, 0), old - 1)] += cubic_weight(place - j)
    return matrix


@pytest.mark.parametrize(("height", "width"), [(2, 2), (3, 5), (7, 4), (1, 2)])
def test_the_position_table_is_resized_bicubically_over_space_only(height: int, width: int) -> None:
    vit = transformer(image_size=5 * PATCH)
    table = vit.get_buffer("pos_embed").unflatten(1, (8, 5, 5))[0]  # [t, h, w, C]
    expected = torch.einsum("yh,xw,thwc->tyxc", cubic_matrix(5, height), cubic_matrix(5, width), table)
    torch.testing.assert_close(vit.position_table(height, width), expected.flatten(0, 2)[None])


def test_at_its_own_size_the_table_is_used_as_it_is() -> None:
    vit = transformer()
    assert vit.position_table(2, 2) is vit.get_buffer("pos_embed")


@torch.no_grad()
def test_a_resized_table_is_not_the_sinusoid_of_that_size() -> None:
    """Recomputing it instead, as some do, is a silent loss."""
    vit = transformer(image_size=14 * PATCH)
    resized, recomputed = vit.position_table(10, 10), sinusoid_table(8 * 100, DIM).double()
    assert F.cosine_similarity(resized, recomputed, dim=-1).mean() < 0.9


@torch.no_grad()
def test_clips_do_not_see_each_other_without_adapters() -> None:
    vit, inputs = transformer(), clips(4)
    together = vit(inputs, clips_per_window=4)
    torch.testing.assert_close(together, torch.cat([vit(clip[None], clips_per_window=1) for clip in inputs]))


@torch.no_grad()
def test_new_adapters_change_nothing() -> None:
    """Their last layer is zero; what they add is exactly 0."""
    plain = transformer()
    adapted = transformer(adapters=adapters())
    missing = adapted.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing
    assert all(".adapter." in name for name in missing)
    for block in adapted.blocks:
        nn.init.zeros_(block.adapter.up.bias)
    assert torch.equal(adapted(clips(), 2), plain(clips(), 2))


@torch.no_grad()
def test_new_second_adapters_change_nothing() -> None:
    once = transformer(adapters=adapters())
    for block in once.blocks:
        nn.init.normal_(block.adapter.up.weight)
    twice = transformer(adapters=adapters(), bi_adapters=adapters())
    missing = twice.load_state_dict(once.state_dict(), strict=False).missing_keys
    new = {f"blocks.{i}.bi_adapter.{name}" for i in range(DEPTH) for name in TemporalAdapter(DIM).state_dict()}
    assert set(missing) == new
    for block in twice.blocks:
        nn.init.zeros_(block.bi_adapter.up.bias)  # not as at the beginning, by `transformer`
    assert torch.equal(twice(clips(), 2), once(clips(), 2))


@torch.no_grad()
def test_the_second_adapter_follows_the_first() -> None:
    first, second, nothing = TemporalAdapter(DIM), TemporalAdapter(DIM), adapters()[1]
    plain, both = transformer(), transformer(adapters=[first, nothing], bi_adapters=[second, nothing])
    both.load_state_dict(plain.state_dict(), strict=False)
    for parameter in (*first.parameters(), *second.parameters()):
        nn.init.normal_(parameter)
    nn.init.zeros_(nothing.up.bias)
    x, grid = plain.begin(clips(), 2)
    x = second(first(plain.blocks[0](x), grid), grid)
    assert torch.equal(both(clips(), 2).flatten(1, 3), plain.blocks[1](x))


def test_adapters_keep_their_own_first_weights() -> None:
    one, two = adapters(), adapters()
    before = [{name: w.clone() for name, w in adapter.state_dict().items()} for adapter in (*one, *two)]
    VisionTransformer(dim=DIM, depth=DEPTH, heads=HEADS, mlp_dim=20, adapters=one, bi_adapters=two)
    for adapter, weights in zip((*one, *two), before, strict=True):
        assert all(torch.equal(weight, weights[name]) for name, weight in adapter.state_dict().items())


def test_linear_maps_begin_small_and_without_bias() -> None:
    torch.manual_seed(0)
    vit = VisionTransformer(dim=64, depth=2, heads=2, mlp_dim=128)
    linear = [module for module in vit.modules() if isinstance(module, nn.Linear)]
    assert len(linear) == 2 * 4
    for module in linear:
        assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert module.bias is None or not module.bias.any()


@torch.no_grad()
def test_trained_adapters_see_the_neighbouring_clips_of_their_window_only() -> None:
    vit = transformer(adapters=adapters())
    for block in vit.blocks:
        nn.init.normal_(block.adapter.up.weight)
    inputs = clips(4)
    changed = inputs.clone()
    changed[0] += 1
    moved = (vit(inputs, 2) - vit(changed, 2)).abs().flatten(1).amax(1)
    assert (moved[:2] > 1e-6).all()
    assert (moved[2:] == 0).all()


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_checkpointing_gives_the_same_output_and_gradients(drop_path: float) -> None:
    results = []
    for checkpointing in get_args(Checkpointing):
        vit = transformer(
            adapters=adapters(), bi_adapters=adapters(), checkpointing=checkpointing, drop_path=drop_path
        ).train()
        torch.manual_seed(2)
        out = vit(clips(4), 2)
        out.square().mean().backward()
        results.append((out.detach(), [p.grad for p in vit.parameters()]))
    (plain, gradients), *others = results
    for again, recomputed in others:
        assert torch.equal(plain, again)
        assert all(torch.equal(a, b) for a, b in zip(gradients, recomputed, strict=True) if a is not None)
        assert all(gradient is not None for gradient in recomputed)


@pytest.mark.parametrize("checkpointing", get_args(Checkpointing))
def test_clips_a_few_at_a_time_give_what_they_give_together(
    checkpointing: Checkpointing, monkeypatch: pytest.MonkeyPatch
) -> None:
    vit, results = transformer(adapters=adapters(), checkpointing=checkpointing), []
    for size in (6, 4, 1):
        clip_bytes = 8 * 4 * 20 * 8  # of the widest layer
        monkeypatch.setattr(Block, "chunk_bytes", size * clip_bytes)
        vit.zero_grad()
        with told_clips(vit) as told:
            out = vit(clips(6), 3)
            out.square().mean().backward()
        assert max(told) == size
        results.append((out, *(p.grad for p in vit.parameters())))
        with torch.no_grad():
            assert torch.equal(vit(clips(6), 3), out)
    for together, *others in zip(*results, strict=True):
        for piecewise in others:
            torch.testing.assert_close(piecewise, together)


@pytest.mark.parametrize(("checkpointing", "times"), [("none", 1), ("selective", 2), ("blocks", 2)])
def test_clips_are_repeated_once_and_before_the_first_that_trains_not_at_all(
    checkpointing: Checkpointing, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Block, "chunk_bytes", 1)
    vit = transformer(adapters=adapters(), checkpointing=checkpointing)
    for name, parameter in vit.named_parameters():
        parameter.requires_grad_(".adapter." in name)
    with told_clips(vit) as told:
        vit(clips(4), 2).square().mean().backward()
    assert told == [1] * (4 + 4 * times)


@pytest.mark.slow  # a compiler is at work
@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns of its own doings
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("checkpointing", get_args(Checkpointing))
def test_compiled_blocks_give_the_same_output_and_gradients(checkpointing: Checkpointing) -> None:
    results = []
    for compiled in (False, True):
        vit = transformer(adapters=adapters(), checkpointing=checkpointing).train()
        names = list(vit.state_dict())
        for block in vit.blocks:
            if compiled:
                block.compile()
        assert list(vit.state_dict()) == names
        out = vit(clips(4), 2)
        out.square().mean().backward()
        with torch.no_grad():
            torch.testing.assert_close(vit(clips(4), 2), out)
        results.append((out, *(p.grad for p in vit.parameters())))
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain)


@contextmanager
def told_clips(vit: VisionTransformer) -> Iterator[list[int]]:
    """How many clips the blocks are given at a time."""
    told: list[int] = []
    handles = [
        block.register_forward_pre_hook(lambda _, inputs: told.append(len(inputs[0]))) for block in vit.blocks
    ]
    yield told
    for handle in handles:
        handle.remove()


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    out = DropPath(0.25)(torch.ones(4000, 2, 3))
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (out == out[:, :1, :1]).all()
    assert out.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(DropPath(0.25).eval()(torch.ones(8, 2)), torch.ones(8, 2))


def test_drop_path_rises_from_the_first_block_to_the_last() -> None:
    vit = transformer(depth=5, drop_path=0.2)
    assert [block.drop_path.probability for block in vit.blocks] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


def test_what_is_left_over_of_a_picture_is_not_seen() -> None:
    vit, pictures = transformer(), clips(height=SIZE + PATCH - 1, width=SIZE + 1)
    embedded = vit.embed(pictures)
    assert torch.equal(embedded, vit.embed(pictures[..., :SIZE, :SIZE]))
    strided = F.conv3d(pictures, vit.patch_embed.weight, vit.patch_embed.bias, stride=(2, PATCH, PATCH))
    torch.testing.assert_close(embedded, strided.permute(0, 2, 3, 4, 1))


def test_a_block_without_an_adapter_is_a_plain_one() -> None:
    plain, adapted = transformer(), transformer(adapters=[None, adapters()[1]])
    assert [block.adapter is None for block in adapted.blocks] == [True, False]
    adapted.load_state_dict(plain.state_dict(), strict=False)
    adapted.blocks[1].adapter = adapters()[1].double()  # a new one changes nothing
    assert torch.equal(adapted(clips(), 2), plain(clips(), 2))


@pytest.mark.parametrize(
    ("frames", "height", "width"), [(15, SIZE, SIZE), (32, SIZE, SIZE), (16, PATCH - 1, SIZE), (16, SIZE, 0)]
)
def test_clips_of_another_size_are_refused(frames: int, height: int, width: int) -> None:
    with pytest.raises(
        ValueError, match=rf"{frames} frames of {height}x{width}.*16 frames.*at least {PATCH} pixels"
    ):
        transformer()(torch.zeros(1, 3, frames, height, width, dtype=torch.float64), 1)


def test_a_network_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="width 12 is not a multiple of its 5"):
        transformer(heads=5)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        transformer(adapters=[TemporalAdapter(DIM)])
    with pytest.raises(ValueError, match="argument 3 is shorter"):
        transformer(bi_adapters=[TemporalAdapter(DIM)])


def test_an_adapter_is_told_how_the_tokens_lie() -> None:
    told: list[TokenGrid] = []

    class Listening(nn.Module):
        def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
            told.append(grid)
            return x

    transformer(adapters=[Listening(), Listening()])(clips(6, height=8, width=12), clips_per_window=3)
    assert told == [TokenGrid(clips=3, time=8, height=2, width=3)] * 2
