"""Laws of the alignment of two networks' clocks: distances stay exact, turning twice changes nothing, and the mirror
image of a network says of a reversed window what the network says of the window."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mirror import mirrored
from torch import Tensor, nn

from bitad.config.names import Alignment
from bitad.models.alignment import aligned
from bitad.models.backbone import VideoBackbone
from bitad.models.heads import DetectionHead, Head, Points, Prediction
from bitad.models.network import Detector
from bitad.models.pyramid import FeaturePyramid, Pyramid
from bitad.models.sgp import SgpPyramid
from bitad.models.trident import TridentHead
from bitad.models.vit import TemporalAdapter, VisionTransformer

STEPS = 32
laws = settings(deadline=None, max_examples=50)


@st.composite
def windows(draw: st.DrawFn) -> tuple[Points, Tensor]:
    """Points of windows of T steps, and how many steps of each of a few windows are real, ``[B]``."""
    levels = draw(st.integers(1, 6))
    length = 2 ** (levels - 1) * draw(st.integers(1, 96 >> (levels - 1)))
    real = draw(st.lists(st.integers(1, length), min_size=1, max_size=4))
    return level_points(length, levels), torch.tensor(real)


def level_points(length: int, levels: int) -> Points:
    strides = [2**level for level in range(levels)]
    return Points.of_levels([length // stride for stride in strides], strides, [(0, 1)] * levels)


def predicted(points: Points, real: Tensor, *, seed: int = 0, classes: int = 3) -> Prediction:
    """Something random, for windows with ``real [B]`` real steps."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(real), len(points))
    logits = torch.randn(*shape, classes, generator=generator, dtype=torch.float64)
    distances = 5 * torch.rand(*shape, 2, generator=generator, dtype=torch.float64)
    return Prediction(logits, distances, points.position < real[:, None], points)


def forward_time(prediction: Prediction) -> Prediction:
    """The reverse view's points say, as their only logit, where they lie in the forward view."""
    real = prediction.mask[:, : prediction.points.sizes[0]].sum(1, keepdim=True)
    return prediction._replace(logits=(real - 1 - prediction.points.position)[..., None])


@laws
@given(windows(), st.integers(0, 1000))
def test_it_equals_a_search_for_the_nearest_point(window: tuple[Points, Tensor], seed: int) -> None:
    points, real = window
    other = predicted(points, real, seed=seed)
    found = aligned(other)
    assert found.points is points
    assert torch.equal(found.mask, other.mask)
    positions, strides = points.position.tolist(), points.stride.tolist()
    for b, steps in enumerate(real.tolist()):
        valid = other.mask[b].nonzero()[:, 0].tolist()
        for j in valid:
            position, stride = positions[j], strides[j]
            level = [i for i in valid if strides[i] == stride]
            offsets = [steps - 1 - positions[i] - position for i in level]
            offset, i = min(zip(offsets, level, strict=True), key=lambda pair: (abs(pair[0]), pair[1]))
            to_end, to_start = other.distances[b, i].tolist()
            assert torch.equal(found.logits[b, j], other.logits[b, i])
            expected = [max(0.0, to_start - offset / stride), max(0.0, to_end + offset / stride)]
            assert found.distances[b, j].tolist() == pytest.approx(expected)


@laws
@given(windows(), st.tuples(st.floats(-0.2, 1.2), st.floats(-0.2, 1.2)))
def test_exact_distances_stay_exact(window: tuple[Points, Tensor], ends: tuple[float, float]) -> None:
    points, real = window
    other = predicted(points, real)
    position, last = points.position.double(), (real - 1)[:, None].double()
    start, end = (last * fraction for fraction in sorted(ends))  # [B, 1]
    emitted = torch.stack((position - (last - end), (last - start) - position), dim=-1) / points.stride[:, None]
    # What a network would floor itself is not exact: NaN keeps such points apart.
    found = aligned(other._replace(distances=torch.where(emitted >= 0, emitted, torch.nan)))
    exact = (found.distances > 0).all(-1) & found.mask
    decoded = points.segments(found.distances)
    wanted = torch.cat((start, end), dim=1)[:, None].expand_as(decoded).double()
    torch.testing.assert_close(decoded[exact], wanted[exact], rtol=0, atol=1e-4)
    # Of points with a whole stride to spare on both sides, the other view's point is inside the segment too.
    clearance = torch.minimum(position - start, end - position) / points.stride
    some = 1e-9  # more than the rounding of positions
    assert exact[(clearance > 1 + some) & found.mask].all()
    assert exact[:, : points.sizes[0]][((clearance > some) & found.mask)[:, : points.sizes[0]]].all()


@laws
@given(windows(), st.integers(0, 1000))
def test_aligning_twice_changes_nothing_where_the_stride_divides(window: tuple[Points, Tensor], seed: int) -> None:
    points, real = window
    prediction = predicted(points, real, seed=seed)
    twice = aligned(aligned(prediction))
    kept = prediction.mask & ((real[:, None] - 1) % points.stride == 0)
    assert kept[:, : points.sizes[0]].sum() == real.sum()  # all of level 0
    assert torch.equal(twice.logits[kept], prediction.logits[kept])
    torch.testing.assert_close(twice.distances[kept], prediction.distances[kept])


@laws
@given(windows())
def test_the_naive_alignment_turned_twice_changes_nothing_at_all(window: tuple[Points, Tensor]) -> None:
    prediction = predicted(*window)
    twice = aligned(aligned(prediction, how="naive"), how="naive")
    assert torch.equal(twice.logits, prediction.logits)
    assert torch.equal(twice.distances, prediction.distances)


def test_on_a_full_window_the_naive_alignment_is_a_stride_off_and_the_exact_one_half_a_stride_at_most() -> None:
    points = level_points(768, 6)
    other = forward_time(predicted(points, torch.tensor([768])))
    naive = aligned(other, how="naive").logits[0, :, 0] - points.position
    assert torch.equal(naive, points.stride - 1)
    exact = (aligned(other).logits[0, :, 0] - points.position).abs()
    coarsest = points.stride == 32
    assert (naive[coarsest].mean().item(), exact[coarsest].mean().item()) == (31, 2.25)
    first = points.position == 0  # nothing lies beyond the last point
    assert (exact <= points.stride / 2)[~first].all()


@pytest.mark.parametrize("real", [1, 16, 31])
def test_on_a_part_of_a_window_the_naive_alignment_is_off_by_the_padding(real: int) -> None:
    points = level_points(STEPS, 4)
    other = forward_time(predicted(points, torch.tensor([real])))
    off = (aligned(other, how="naive").logits[0, :, 0] - points.position)[:STEPS]
    assert (off == real - STEPS).all()
    exact = aligned(other).logits[0, :, 0] - points.position
    assert (exact[:STEPS][:real] == 0).all()


@pytest.mark.parametrize("how", ["exact", "naive"])
def test_windows_of_a_batch_are_aligned_as_each_alone(how: Alignment) -> None:
    points, real = level_points(STEPS, 4), torch.tensor([1, 17, 30, 32])
    batch = predicted(points, real)
    together = aligned(batch, how=how)
    for b in range(len(real)):
        alone = Prediction(*(column[b : b + 1] for column in batch[:3]), points)
        assert torch.equal(together.logits[b], aligned(alone, how=how).logits[0])
        assert torch.equal(together.distances[b], aligned(alone, how=how).distances[0])


@pytest.mark.parametrize("how", ["exact", "naive"])
def test_gradients_return_to_the_points_that_were_heard(how: Alignment) -> None:
    points, real = level_points(STEPS, 4), torch.tensor([17, 32])
    other = predicted(points, real)
    logits, distances = other.logits.requires_grad_(), (other.distances + 2).requires_grad_()
    found = aligned(other._replace(logits=logits, distances=distances), how=how)
    (found.logits.sum() + found.distances[..., 0].sum()).backward()
    assert logits.grad is not None
    assert distances.grad is not None
    # On level 0 of a full window each is heard once, and the other view's end is this view's start.
    assert (logits.grad[1, :STEPS] == 1).all()
    assert (distances.grad[1, :STEPS] == torch.tensor([0.0, 1.0])).all()


@pytest.mark.parametrize("how", ["exact", "naive"])
def test_the_host_never_waits_for_the_device(how: Alignment) -> None:
    """Tensors without values have nothing to wait for."""
    cpu = predicted(level_points(STEPS, 4), torch.tensor([20, 32]))
    points = Points(
        *(getattr(cpu.points, name).to("meta") for name in ("position", "stride", "low", "high")), (32, 16, 8, 4)
    )
    found = aligned(Prediction(*(column.to("meta") for column in cpu[:3]), points), how=how)
    assert found.logits.shape == cpu.logits.shape
    assert found.distances.shape == cpu.distances.shape


def test_an_unknown_alignment_is_refused() -> None:
    with pytest.raises(ValueError, match="alignment 'nearest' is not one of exact, naive"):
        aligned(predicted(level_points(4, 1), torch.tensor([4])), how="nearest")


# The mirror image of a network.


def detector(
    pyramid: str = "transformer",
    head: str = "actionformer",
    *,
    backbone: VideoBackbone | None = None,
    bins: int = 5,
    convs: int = 2,
    **keywords: Any,
) -> Detector:
    """A small one in double precision with no weight, and no bias, at a trivial value."""
    torch.manual_seed(0)
    channels = 5 if backbone is None else backbone.vit.dim
    keywords = {"levels": 4, "max_length": STEPS, "layer_scale": 1.0, **keywords}
    levels: Pyramid
    if pyramid == "sgp":
        levels = SgpPyramid(channels, 8, **{"groups": 2, "k": 2.0, **keywords})
    else:
        levels = FeaturePyramid(channels, 8, heads=2, **keywords)
    limits = [0.0, *(4.0 * stride for stride in levels.strides[:-1]), 10000.0]
    options: Any = {"strides": levels.strides, "ranges": list(pairwise(limits)), "convs": convs}
    top: Head
    if head == "trident":
        top = TridentHead(8, 3, bins=bins, padding=keywords["padding"], **options)
    else:
        top = DetectionHead(8, 3, **options)
    network = Detector(backbone=backbone, pyramid=levels, head=top)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.double().eval()


@st.composite
def networks(draw: st.DrawFn) -> Detector:
    """Any pyramid with any head, of windows of :data:`STEPS` or more."""
    pyramid, levels = draw(st.sampled_from(("transformer", "sgp"))), draw(st.integers(1, 5))
    odd = st.integers(1, 4).map(lambda half: 2 * half + 1)
    keywords: dict[str, Any] = {
        "levels": levels,
        "embed_convs": draw(st.integers(1, 2)),
        "stem_blocks": draw(st.integers(0, 2)),
        "level_norms": draw(st.booleans()),
        "layer_scale": draw(st.sampled_from((None, 0.5))),
    }
    if pyramid == "sgp":
        window = odd | st.just(1)
        keywords |= {"k": draw(st.sampled_from((1.0, 2.5, 5.0))), "groups": draw(st.sampled_from((1, 4)))}
    else:
        window = odd | st.none()
    keywords["window"] = draw(st.lists(window, min_size=levels, max_size=levels))
    return detector(
        pyramid,
        draw(st.sampled_from(("actionformer", "trident"))),
        bins=draw(st.integers(1, 9)),
        convs=draw(st.integers(1, 2)),
        padding="strict",
        **keywords,
    )


@settings(deadline=None, max_examples=60)
@given(networks(), st.integers(1, STEPS), st.integers(0, 1000))
@torch.no_grad()
def test_the_mirror_image_of_any_network_differs_in_the_phase_of_its_grid_alone(
    network: Detector, real: int, seed: int
) -> None:
    """What it says of a reversed window is what the network says of the window on a grid that begins a little earlier.

    If every stride divides V - 1, the grid is the same.
    """
    coarsest = network.pyramid.strides[-1]
    shift = -(real - 1) % coarsest  # the grid begins so many steps before the window
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, 5, real, generator=generator, dtype=torch.float64)
    length = network.pyramid.padded_length(shift + real)
    step = torch.arange(length)[None]
    early = network.predict(
        F.pad(features, (shift, length - shift - real)), (step >= shift) & (step < shift + real)
    )
    of_reversed = mirrored(network).predict(F.pad(features.flip(2), (0, length - real)), step < real)
    points = early.points
    assert of_reversed.points.sizes == points.sizes
    number = (points.position // points.stride).long()
    partner = torch.arange(len(points)) - number + (shift + real - 1) // points.stride.long() - number
    found = early.mask[0].nonzero()[:, 0]
    assert of_reversed.mask.sum() == early.mask.sum() == of_reversed.mask[0, partner[found]].sum() >= real
    close = {"rtol": 1e-7, "atol": 1e-9}
    torch.testing.assert_close(of_reversed.logits[0, partner[found]], early.logits[0, found], **close)
    torch.testing.assert_close(
        of_reversed.distances[0, partner[found]].flip(-1), early.distances[0, found], **close
    )
    if shift == 0:  # it repeats the network's own output
        own = network.predict(F.pad(features, (0, length - real)), step < real)
        assert same(own, aligned(of_reversed), own.mask)


@settings(deadline=None, max_examples=20)
@given(networks(), st.integers(1, STEPS))
@torch.no_grad()
def test_as_a_network_on_reversed_features_the_mirror_image_is_the_network(network: Detector, real: int) -> None:
    """So on fixed features, a network that is trained in reverse is another seed, and another phase of the grid."""
    features = torch.randn(1, 5, STEPS, generator=torch.Generator().manual_seed(real), dtype=torch.float64)
    mask = torch.arange(STEPS)[None] < real
    forward = network.predict(features, mask)
    image = mirrored(network)
    image.reverses_features = True
    divides = (real - 1) % forward.points.stride[None] == 0
    assert same(forward, aligned(image.predict(features, mask)), forward.mask & divides)


def feature_windows() -> tuple[Tensor, Tensor, Tensor]:
    """A window of every length up to T: forward and reversed features ``[T, 5, T]``, mask ``[T, T]``."""
    features = torch.randn(STEPS, 5, STEPS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    reverse = torch.stack([F.pad(x[:, :n].flip(1), (0, STEPS - n)) for n, x in enumerate(features, 1)])
    mask = torch.arange(STEPS) < torch.arange(1, STEPS + 1)[:, None]
    return features * mask[:, None], reverse, mask


def same(one: Prediction, two: Prediction, kept: Tensor) -> bool:
    """Whether both say the same at the points ``kept [B, N]``, up to rounding in double precision."""
    close = {"rtol": 1e-7, "atol": 1e-9}
    return torch.allclose(one.logits[kept], two.logits[kept], **close) and torch.allclose(
        one.distances[kept], two.distances[kept], **close
    )


# Each pyramid with its own head, and with that of the other project.
PARTS = [("transformer", "actionformer"), ("sgp", "trident"), ("transformer", "trident"), ("sgp", "actionformer")]


@pytest.mark.parametrize(("pyramid", "head"), PARTS)
@torch.no_grad()
def test_with_strict_padding_no_weaker_mirror_will_do(pyramid: str, head: str) -> None:
    network = detector(pyramid, head, padding="strict", window=5)
    features, reverse, mask = feature_windows()
    forward, turned = network.predict(features, mask), aligned(mirrored(network).predict(reverse, mask))
    divides = (mask.sum(1, keepdim=True) - 1) % forward.points.stride == 0
    assert same(forward, turned, forward.mask & divides)
    assert not same(forward, turned, forward.mask & ~divides)
    level_0 = forward.mask & (forward.points.stride == 1)
    assert not same(forward, aligned(network.predict(reverse, mask)), level_0)
    assert not same(forward, aligned(mirrored(network).predict(reverse, mask), how="naive"), level_0)


@pytest.mark.parametrize("position_embedding", [False, True])
@pytest.mark.parametrize(("pyramid", "head"), PARTS)
@torch.no_grad()
def test_with_reference_padding_or_positions_the_mirror_image_agrees_on_full_windows(
    pyramid: str, head: str, position_embedding: bool
) -> None:
    padding = "strict" if position_embedding else "reference"
    network = detector(pyramid, head, padding=padding, position_embedding=position_embedding)
    features, reverse, mask = feature_windows()
    forward, turned = network.predict(features, mask), aligned(mirrored(network).predict(reverse, mask))
    level_0 = forward.mask & (forward.points.stride == 1)
    full = mask.all(1, keepdim=True)
    assert same(forward, turned, level_0 & full)
    # The biases of the norms leak out of the padding; positions are counted from the other end of the window.
    assert not same(forward, turned, level_0 & ~full)


@torch.no_grad()
def test_with_reference_padding_and_norms_without_bias_the_mirror_image_agrees_on_every_window() -> None:
    network = detector(padding="reference")
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.zeros_(module.bias)
    features, reverse, mask = feature_windows()
    forward, turned = network.predict(features, mask), aligned(mirrored(network).predict(reverse, mask))
    assert same(forward, turned, forward.mask & (forward.points.stride == 1))


@torch.no_grad()
def test_from_raw_frames_the_mirror_image_agrees_on_full_windows() -> None:
    vit = VisionTransformer(
        dim=8,
        depth=2,
        heads=2,
        mlp_dim=16,
        patch_size=8,
        image_size=16,
        adapters=[TemporalAdapter(8), TemporalAdapter(8)],
    )
    network = detector(backbone=VideoBackbone(vit), padding="reference")
    frames = torch.randint(
        0, 256, (1, STEPS, 16, 16, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    mask = torch.ones(1, STEPS, dtype=torch.bool)
    forward = network.predict(frames, mask)
    level_0 = forward.points.stride[None] == 1
    image = mirrored(network)
    assert same(forward, aligned(image.predict(frames.flip(1), mask)), level_0)
    # It does depend on the backbone's part of the mirror.
    image.backbone = network.backbone
    assert not same(forward, aligned(image.predict(frames.flip(1), mask)), level_0)
