from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from bitad.models.heads import DetectionHead, JoinedLevels, Points, RecoveringReLU, Tower
from bitad.models.pyramid import Level

STRIDES, RANGES = (1, 2, 4), [(0.0, 4.0), (4.0, 8.0), (8.0, 10000.0)]


def levels_of(batch: int = 2, channels: int = 6, sizes: tuple[int, ...] = (8, 4, 2)) -> list[Level]:
    return [Level(torch.randn(batch, channels, size), torch.ones(batch, size, dtype=torch.bool)) for size in sizes]


def test_points_lie_at_multiples_of_their_stride() -> None:
    points = Points.of_levels((8, 4, 2), STRIDES, RANGES)
    rows = [
        (stride * j, stride, low, high)
        for size, stride, (low, high) in zip((8, 4, 2), STRIDES, RANGES, strict=True)
        for j in range(size)
    ]
    columns = torch.stack((points.position, points.stride, points.low, points.high), dim=1)
    assert columns.tolist() == [list(map(float, row)) for row in rows]
    assert len(points) == 14
    assert points.sizes == (8, 4, 2)


def test_exact_distances_decode_to_the_segment_at_every_point() -> None:
    points = Points.of_levels((8, 4, 2), STRIDES, RANGES)
    start, end = -3.25, 9.5
    distances = torch.stack((points.position - start, end - points.position), dim=1) / points.stride[:, None]
    segments = points.segments(distances.expand(3, -1, -1))
    torch.testing.assert_close(segments, torch.tensor([start, end]).expand(3, 14, 2))


def test_distances_are_cut_off_by_a_plain_relu_while_every_channel_learns() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 30, 2, requires_grad=True)
    wanted = torch.rand(2, 30, 2)
    (((RecoveringReLU.apply(x) - wanted) ** 2) * wanted).sum().backward()
    gradient, x.grad = x.grad, None
    (((x.relu() - wanted) ** 2) * wanted).sum().backward()
    torch.testing.assert_close(gradient, x.grad, rtol=0, atol=0)


def test_a_distance_that_is_cut_off_everywhere_learns_all_the_same_and_only_upwards() -> None:
    x = torch.stack((-torch.rand(2, 30) - 0.1, torch.rand(2, 30)), dim=-1).requires_grad_()
    out = RecoveringReLU.apply(x)
    assert torch.equal(out, x.relu())
    weight = torch.ones(2, 30, 2)
    weight[0, :10] = 0  # points that are taught nothing
    weight[1, :10] = -1  # points that want less
    ((1 - out) * weight).sum().backward()
    assert (x.grad[0, 10:, 0] == -1).all()
    assert (x.grad[0, :10] == 0).all()
    assert (x.grad[1, :10, 0] == 0).all()


def test_a_network_whose_every_start_is_cut_off_recovers() -> None:
    torch.manual_seed(0)
    head = DetectionHead(6, 5, strides=STRIDES, ranges=RANGES)
    with torch.no_grad():
        head.regression.output.bias[0] = -5
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    levels = levels_of()
    assert (head(levels).distances[..., 0] == 0).all()
    for _ in range(200):
        optimizer.zero_grad()
        (head(levels).distances - 2).square().mean().backward()
        optimizer.step()
    assert (head(levels).distances[..., 0] > 1).float().mean() > 0.9


def test_a_new_head_says_the_prior_probability_everywhere() -> None:
    head = DetectionHead(6, 5, strides=STRIDES, ranges=RANGES, prior_probability=0.02)
    torch.nn.init.zeros_(head.classification.output.weight)
    logits = head(levels_of()).logits
    torch.testing.assert_close(logits.sigmoid(), torch.full((2, 14, 5), 0.02))


def test_levels_lie_end_to_end_in_the_prediction() -> None:
    head = DetectionHead(6, 5, strides=STRIDES, ranges=RANGES)
    levels = levels_of()
    levels[1].mask[1, 3] = False
    whole = head(levels)
    assert whole.logits.shape == (2, 14, 5)
    assert whole.distances.shape == (2, 14, 2)
    assert (whole.distances >= 0).all()
    assert (~whole.mask).nonzero().tolist() == [[1, 8 + 3]]
    # The towers are the same for every level, and no level sees another.
    alone = DetectionHead(6, 5, strides=STRIDES[:1], ranges=RANGES[:1])
    alone.load_state_dict({**head.state_dict(), "scales": torch.ones(1)})
    parts = zip(levels, *(one.split((8, 4, 2), dim=1) for one in (whole.logits, whole.distances)), strict=True)
    for level, logits, distances in parts:
        torch.testing.assert_close(alone([level]).logits, logits)
        torch.testing.assert_close(alone([level]).distances, distances)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("sizes", [(8, 4, 2), (9, 1, 5), (3,)])
def test_a_tower_gives_at_joined_levels_what_it_gives_at_each_alone(
    kernel_size: int, sizes: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    tower = Tower(6, 5, convs=2, kernel_size=kernel_size).double()
    for parameter in tower.parameters():  # biases too, which would leave the gaps
        torch.nn.init.normal_(parameter)
    levels = [Level(x.double().requires_grad_(), mask) for x, mask in levels_of(sizes=sizes)]
    levels[0].mask[1, 2:] = False
    inputs = [*(level.features for level in levels), *tower.parameters()]
    weights = [torch.randn(2, size, 5, dtype=torch.float64) for size in sizes]

    def with_gradients(found: Sequence[Tensor]) -> list[Tensor]:
        total = torch.stack([(one * weight).sum() for one, weight in zip(found, weights, strict=True)]).sum()
        return [*found, *torch.autograd.grad(total, inputs)]

    joined = with_gradients(tower(JoinedLevels.of(levels, gap=tower.reach)))
    alone = with_gradients([tower(JoinedLevels.of([level], gap=0))[0] for level in levels])
    for one, expected in zip(joined, alone, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-9, atol=1e-9)


def test_a_gap_through_which_a_level_would_see_another_is_refused() -> None:
    tower = Tower(6, 5, convs=1, kernel_size=5)
    with pytest.raises(ValueError, match="a gap of 1 for convolutions that see 2 positions"):
        tower(JoinedLevels.of(levels_of(), gap=1))


def test_each_level_has_its_own_scale() -> None:
    head = DetectionHead(6, 5, strides=STRIDES, ranges=RANGES)
    levels = levels_of()
    before = head(levels).distances
    with torch.no_grad():
        head.scales.copy_(torch.tensor([1.0, 3.0, 0.5]))
    factor = torch.tensor([1.0] * 8 + [3.0] * 4 + [0.5] * 2)
    torch.testing.assert_close(head(levels).distances, before * factor[:, None])


def test_the_prediction_is_in_single_precision_under_autocast() -> None:
    head = DetectionHead(6, 5, strides=STRIDES, ranges=RANGES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = head(levels_of())
    assert prediction.logits.dtype == prediction.distances.dtype == torch.float32


def test_ranges_and_levels_must_agree() -> None:
    with pytest.raises(ValueError, match="2 regression ranges for 3 levels"):
        DetectionHead(6, 5, strides=STRIDES, ranges=RANGES[:2])
