from __future__ import annotations

import copy
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from bitad.config.names import Checkpointing
from bitad.models.alignment import TubeletAlignment, joint_forward
from bitad.models.backbone import VideoBackbone
from bitad.models.vit import CrossAdapter, TemporalAdapter, VisionTransformer
from bitad.timeline import mirror_points
from bitad.training.step_cost import OpCounter, storage_bytes

DIM, STEPS = 8, 32


def backbone(seed: int, *, depth: int = 2, adapted: bool = True, **keywords: Any) -> VideoBackbone:
    """A small one in double precision, its adapters not as at the beginning."""
    torch.manual_seed(seed)
    adapters = [TemporalAdapter(DIM) for _ in range(depth)] if adapted else None
    vit = VisionTransformer(
        dim=DIM, depth=depth, heads=2, mlp_dim=16, patch_size=8, image_size=16, adapters=adapters, **keywords
    )
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.3)
    return VideoBackbone(vit).double().eval()


def cross_adapters(seed: int, *, depth: int = 2, trained: bool = True, **keywords: Any) -> nn.ModuleList:
    torch.manual_seed(seed)
    adapters = nn.ModuleList(CrossAdapter(DIM, **keywords) for _ in range(depth)).double()
    if trained:
        for parameter in adapters.parameters():
            nn.init.normal_(parameter, std=0.3)
    return adapters


def frames(seed: int, batch: int = 2, steps: int = STEPS) -> Tensor:
    torch.manual_seed(seed)
    return torch.randint(0, 256, (batch, steps, 16, 16, 3), dtype=torch.uint8)


def first_real(*real: int, steps: int = STEPS) -> Tensor:
    """The mask ``[B, T]`` of windows with so many real frames."""
    return torch.arange(steps) < torch.tensor(real)[:, None]


MASK = first_real(STEPS, 21)


def partner(tubelet: int, real: int) -> int | None:
    """The real tubelet of the mirrored view that is nearest in time; of two equally near, the earlier on this clock."""
    if 2 * tubelet >= real:
        return None

    def away(i: int) -> tuple[float, int]:
        return abs((real - 1 - (2 * i + 0.5)) - (2 * tubelet + 0.5)), -i

    return min((i for i in range(real) if 2 * i < real), key=away)


def test_tubelets_meet_the_nearest_real_one_of_the_mirrored_view() -> None:
    lengths = range(1, STEPS + 1)
    meeting = TubeletAlignment.of(first_real(*lengths), 2, mirrored=True)
    assert meeting.tubelet.shape == meeting.real.shape == (STEPS, STEPS // 2)
    assert meeting.tubelet.min() >= 0
    for row, real in enumerate(lengths):
        found = [
            int(i) if meets else None for i, meets in zip(meeting.tubelet[row], meeting.real[row], strict=True)
        ]
        assert found == [partner(k, real) for k in range(STEPS // 2)]
        if real % 2 == 0:  # the very same frames
            assert all(real - 1 - (2 * i + 1) == 2 * k for k, i in enumerate(found) if i is not None)


def test_meeting_is_mutual() -> None:
    tubelet, real = TubeletAlignment.of(first_real(*range(1, STEPS + 1)), 2, mirrored=True)
    there_and_back = tubelet.gather(1, tubelet)
    assert torch.equal(there_and_back[real], torch.arange(STEPS // 2).expand_as(real)[real])


def test_tubelets_meet_as_points_of_a_level_of_stride_2_do() -> None:
    steps = torch.arange(1, STEPS + 1)[:, None]
    index, _ = mirror_points(torch.arange(STEPS // 2), 2, steps)
    tubelet, real = TubeletAlignment.of(first_real(*range(1, STEPS + 1)), 2, mirrored=True)
    assert torch.equal(tubelet[real], index[real])


def test_tubelets_of_two_forward_views_meet_their_like() -> None:
    tubelet, real = TubeletAlignment.of(first_real(*range(1, STEPS + 1)), 2, mirrored=False)
    assert torch.equal(tubelet, torch.arange(STEPS // 2).expand(STEPS, -1))
    assert real.sum(1).tolist() == [-(-length // 2) for length in range(1, STEPS + 1)]


@pytest.mark.parametrize("mirrored", [True, False])
@torch.no_grad()
def test_new_cross_adapters_change_nothing(mirrored: bool) -> None:
    one, two, views = backbone(0), backbone(1), (frames(2), frames(3))
    new = cross_adapters(4, trained=False), cross_adapters(5, trained=False)
    x, y = joint_forward(one, two, views, MASK, new, mirrored=mirrored)
    assert torch.equal(x, one(views[0]))
    assert torch.equal(y, two(views[1]))


@pytest.mark.parametrize("real", [16, 12, 11, 1])
@pytest.mark.parametrize("mirrored", [True, False])
@torch.no_grad()
def test_a_frame_of_one_view_is_felt_in_the_other_at_its_own_time_and_padding_nowhere(
    real: int, mirrored: bool
) -> None:
    """Clips are single tubelets here and the kernels 1, so that nothing else carries a change through time."""
    steps = 16
    one, two = (backbone(seed, depth=1, adapted=False, clip_frames=2) for seed in (0, 1))
    cross = cross_adapters(4, depth=1, kernel_size=1), cross_adapters(5, depth=1, kernel_size=1)
    here, there = (frames(seed, 1, steps).expand(steps, -1, -1, -1, -1) for seed in (2, 3))
    changed = there.clone()
    changed[range(steps), range(steps)] ^= 1  # in window p, frame p
    mask = first_real(*[real] * steps, steps=steps)
    before, _ = joint_forward(one, two, (here, there), mask, cross, mirrored=mirrored)
    after, _ = joint_forward(one, two, (here, changed), mask, cross, mirrored=mirrored)
    felt = (before != after).any(1)  # [p, frame here]
    expected = torch.zeros(steps, steps, dtype=torch.bool)
    for tubelet in range(-(-real // 2)):
        met = partner(tubelet, real) if mirrored else tubelet
        assert met is not None
        # A tubelet makes its two frames and, being interpolated, the frames beside them.
        expected[2 * met : 2 * met + 2, max(2 * tubelet - 1, 0) : 2 * tubelet + 3] = True
    assert torch.equal(felt, expected)


@pytest.mark.parametrize("mirrored", [True, False])
@torch.no_grad()
def test_windows_do_not_see_each_other(mirrored: bool) -> None:
    one, two, views = backbone(0), backbone(1), (frames(2), frames(3))
    cross = cross_adapters(4), cross_adapters(5)
    together = joint_forward(one, two, views, MASK, cross, mirrored=mirrored)
    for window in range(2):
        alone = joint_forward(
            one, two, (views[0][[window]], views[1][[window]]), MASK[[window]], cross, mirrored=mirrored
        )
        for all_windows, single in zip(together, alone, strict=True):
            torch.testing.assert_close(all_windows[[window]], single)


@pytest.mark.parametrize("mirrored", [True, False])
@torch.no_grad()
def test_swapping_the_networks_and_views_swaps_the_features(mirrored: bool) -> None:
    one, two, here, there = backbone(0), backbone(1), frames(2), frames(3)
    cross, crossed = cross_adapters(4), cross_adapters(5)
    x, y = joint_forward(one, two, (here, there), MASK, (cross, crossed), mirrored=mirrored)
    v, u = joint_forward(two, one, (there, here), MASK, (crossed, cross), mirrored=mirrored)
    assert torch.equal(x, u)
    assert torch.equal(y, v)
    assert not torch.allclose(x, one(here))


@torch.no_grad()
def test_a_network_hears_from_its_mirror_image_what_it_sees_itself() -> None:
    """So its cross adapter is a second adapter whose way down is the sum of both."""
    one, cross, view = backbone(0), cross_adapters(4), frames(2)
    two, crossed = copy.deepcopy(one), copy.deepcopy(cross)
    for parameter in (*two.parameters(), *crossed.parameters()):
        if parameter.ndim >= 3:  # kernels of tubelets and of adapters: time is the third dimension
            parameter.copy_(parameter.flip(2))
    table = two.vit.get_buffer("pos_embed")
    table.copy_(table.unflatten(1, (8, -1)).flip(1).flatten(1, 2))

    single = copy.deepcopy(one)
    for block, adapter in zip(single.vit.blocks, cross, strict=True):
        weights = adapter.state_dict()
        weights["down.weight"] = weights["down.weight"] + weights.pop("down_other.weight")
        block.bi_adapter = TemporalAdapter(DIM).double()
        block.bi_adapter.load_state_dict(weights)

    views, full = (view, view.flip(1)), first_real(STEPS, STEPS)
    x, y = joint_forward(one, two, views, full, (cross, crossed), mirrored=True)
    torch.testing.assert_close(x, single(view))
    torch.testing.assert_close(y.flip(2), single(view))
    x, _ = joint_forward(one, two, views, full, (cross, crossed), mirrored=False)
    assert not torch.allclose(x, single(view))


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_checkpointing_gives_the_same_features_and_gradients(drop_path: float) -> None:
    results = []
    for checkpointing in get_args(Checkpointing):
        one, two = (backbone(seed, checkpointing=checkpointing, drop_path=drop_path).train() for seed in (0, 1))
        cross = cross_adapters(4), cross_adapters(5)
        for parameter in (*one.parameters(), *two.parameters()):
            parameter.requires_grad_(False)
        torch.manual_seed(6)
        x, y = joint_forward(one, two, (frames(2), frames(3)), MASK, cross, mirrored=True)
        (x.square().mean() + y.square().mean()).backward()
        results.append((x.detach(), y.detach(), *(p.grad for adapters in cross for p in adapters.parameters())))
    for plain, *others in zip(*results, strict=True):
        assert plain is not None
        assert plain.any()
        assert all(torch.equal(plain, recomputed) for recomputed in others)


def test_checkpointing_keeps_only_what_passes_from_depth_to_depth() -> None:
    cross, views = (cross_adapters(4), cross_adapters(5)), (frames(2), frames(3))
    kept = []
    for checkpointing in ("none", "blocks"):
        one, two = (backbone(seed, checkpointing=checkpointing).requires_grad_(False) for seed in (0, 1))
        with OpCounter(one, two, *cross, *views, MASK) as counter:
            features = joint_forward(one, two, views, MASK, cross, mirrored=True)
            kept.append(counter.bytes - storage_bytes(features))
    everything, with_checkpointing = kept
    tokens = 2 * STEPS // 2 * 4 * DIM * 8  # bytes of a network's, of two windows
    passed = 2 * 2 * tokens  # from depth to depth twice, in two networks
    assert passed <= with_checkpointing < passed + tokens < everything / 4


def test_what_one_network_is_to_say_teaches_the_others_cross_adapters_too() -> None:
    one, two, cross = backbone(0), backbone(1), (cross_adapters(4), cross_adapters(5))
    x, _ = joint_forward(one, two, (frames(2), frames(3)), MASK, cross, mirrored=True)
    x.square().mean().backward()
    taught = [all(p.grad is not None and p.grad.any() for p in adapter.parameters()) for adapter in cross[1]]
    assert taught == [True, False]  # what it says behind the last block, the other does not hear


def test_views_of_different_windows_are_refused() -> None:
    one, two, cross = backbone(0), backbone(1), (cross_adapters(4), cross_adapters(5))
    with pytest.raises(ValueError, match=r"views \[2, 32, 16, 16, 3\] and \[2, 16, 16, 16, 3\] with a mask"):
        joint_forward(one, two, (frames(2), frames(3, steps=16)), MASK, cross, mirrored=True)
    with pytest.raises(ValueError, match=r"with a mask \[2, 16\]; give both views"):
        joint_forward(one, two, (frames(2), frames(3)), MASK[:, :16], cross, mirrored=True)
    with pytest.raises(ValueError, match=r"window of 24 frames .* clip of 16; use 32"):
        joint_forward(one, two, (frames(2, 2, 24), frames(3, 2, 24)), MASK[:, :24], cross, mirrored=True)
