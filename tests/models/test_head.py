from __future__ import annotations

import pytest
import torch

from bitad.models.head import DetectionHead, Points
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


def test_no_distance_of_a_new_head_is_cut_off_everywhere() -> None:
    """It would have no gradient and stay so; with a first distance of 0, some of these heads would begin like that."""
    for seed in range(40):
        torch.manual_seed(seed)
        head = DetectionHead(16, 5, strides=STRIDES, ranges=RANGES)
        levels = [Level(torch.randn(4, 16, 64 // s).relu(), torch.ones(4, 64 // s, dtype=torch.bool)) for s in STRIDES]
        distances = head(levels).distances
        assert ((distances > 0).float().mean((0, 1)) > 0.5).all()
        assert 1 < distances.mean() < 3


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
    for level, logits in zip(levels, whole.logits.split((8, 4, 2), dim=1), strict=True):
        torch.testing.assert_close(alone([level]).logits, logits)


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
