"""Fusions equal slow ones written out here, start as the mean of both predictions, and never look at the padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitad.config.names import FusionInit
from bitad.models.alignment import aligned
from bitad.models.fusion import ColumnFusion, ConvolutionFusion, Fusion, MeanFusion, PointLayer
from bitad.models.heads import Points, Prediction

LENGTH, LEVELS, CLASSES = 8, 3, 4
AnyFusion = type[ColumnFusion] | type[ConvolutionFusion] | type[MeanFusion]
FUSIONS: list[AnyFusion] = [ColumnFusion, ConvolutionFusion, MeanFusion]
INITS: tuple[FusionInit, ...] = ("mean", "random")
laws = settings(deadline=None, max_examples=30)
lengths = st.lists(st.integers(1, LENGTH), min_size=1, max_size=3)


def level_points(length: int = LENGTH, levels: int = LEVELS) -> Points:
    strides = [2**level for level in range(levels)]
    return Points.of_levels([length // stride for stride in strides], strides, [(0, 1)] * levels)


def predictions(real: list[int], *, seed: int = 0, points: Points | None = None) -> tuple[Prediction, Prediction]:
    """Own and the other's, random, of windows with ``real`` real steps."""
    points = points or level_points()
    generator = torch.Generator().manual_seed(seed)
    mask = points.position < torch.tensor(real)[:, None]
    own, other = (
        Prediction(
            torch.randn(*mask.shape, CLASSES, generator=generator) - 3,
            5 * torch.rand(*mask.shape, 2, generator=generator),
            mask,
            points,
        )
        for _ in range(2)
    )
    return own, other


def with_padding(prediction: Prediction, value: float) -> Prediction:
    padded = ~prediction.mask[..., None]
    return prediction._replace(
        logits=prediction.logits.masked_fill(padded, value),
        distances=prediction.distances.masked_fill(padded, value),
    )


def made(fusion: AnyFusion, init: FusionInit, points: int = 14) -> Fusion:
    torch.manual_seed(0)
    return fusion(points, init=init)


def slow_layer(weight: Tensor, own: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """``[N, 2N]`` times the rows of one window, ``[N, M]`` each: a sum for every point and column."""
    points, columns = own.shape
    out = torch.zeros(points, columns)
    for n in range(points):
        for column in range(columns):
            for m in range(points):
                if mask[m]:
                    out[n, column] += weight[n, m] * own[m, column] + weight[n, points + m] * other[m, column]
    return out


def slow_convolution(kernel: Tensor, own: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """A kernel ``[2, 3, 3]`` laid over both networks' logits of one window, ``[N, K]`` each."""
    points, classes = own.shape
    out = torch.zeros(points, classes)
    for n in range(points):
        for k in range(classes):
            for i, m in enumerate((n - 1, n, n + 1)):
                for j, c in enumerate((k - 1, k, k + 1)):
                    if 0 <= m < points and 0 <= c < classes and mask[m]:
                        out[n, k] += kernel[0, i, j] * own[m, c] + kernel[1, i, j] * other[m, c]
    return out


def slow_fusion(
    fusion: Fusion, own: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], mask: Tensor
) -> list[Tensor]:
    """Logits and distances of one window, ``[N, K]`` and ``[N, 2]``, of both networks -> the fused ones."""
    weights = fusion.state_dict()
    if isinstance(fusion, ColumnFusion):
        rows, other_rows = torch.cat(own, dim=1), torch.cat(other, dim=1)
        fused = slow_layer(weights["columns.linear.weight"], rows, other_rows, mask)
        return [fused[:, :CLASSES], fused[:, CLASSES:].clamp(min=0)]
    distances = slow_layer(weights["distances.linear.weight"], own[1], other[1], mask).clamp(min=0)
    if isinstance(fusion, MeanFusion):
        return [(own[0] + other[0]) / 2, distances]
    return [slow_convolution(weights["logits.conv.weight"][0, 0], own[0], other[0], mask), distances]


@torch.no_grad()
@pytest.mark.parametrize("fusion", FUSIONS)
def test_each_equals_a_slow_one(fusion: AnyFusion) -> None:
    own, other = predictions([LENGTH, 5, 1])
    fuse = made(fusion, "random")
    fused = fuse(own, other)
    assert fused.points is own.points
    assert torch.equal(fused.mask, own.mask)
    for b, mask in enumerate(own.mask):
        mine, theirs = ((p.logits[b], p.distances[b]) for p in (own, other))
        found = (fused.logits[b], fused.distances[b])
        for columns, wanted in zip(found, slow_fusion(fuse, mine, theirs, mask), strict=True):
            torch.testing.assert_close(columns[mask], wanted[mask], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("fusion", FUSIONS)
@laws
@given(real=lengths, seed=st.integers(0, 1000), padding=st.sampled_from([0.0, 1e6, torch.inf, torch.nan]))
def test_each_starts_as_the_mean_of_the_two_aligned_predictions(
    fusion: AnyFusion, real: list[int], seed: int, padding: float
) -> None:
    own, other = predictions(real, seed=seed)
    own, other = with_padding(own, padding), with_padding(aligned(other), padding)
    fused = made(fusion, "mean")(own, other)
    for found, one, two in (
        (fused.logits, own.logits, other.logits),
        (fused.distances, own.distances, other.distances),
    ):
        torch.testing.assert_close(found[own.mask], ((one + two) / 2)[own.mask])
        assert (found[~own.mask] == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("fusion", FUSIONS)
@laws
@given(real=lengths, seed=st.integers(0, 1000))
def test_what_stands_in_the_padding_changes_nothing(
    fusion: AnyFusion, init: FusionInit, real: list[int], seed: int
) -> None:
    own, other = predictions(real, seed=seed)
    fuse = made(fusion, init)
    one, two = fuse(own, other), fuse(with_padding(own, torch.nan), with_padding(other, -torch.inf))
    assert torch.equal(one.logits, two.logits)
    assert torch.equal(one.distances, two.distances)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_gradients_reach_both_networks_and_the_weights_but_not_the_padding(
    fusion: AnyFusion, init: FusionInit
) -> None:
    fuse = made(fusion, init)
    both = [with_padding(p, torch.nan) for p in predictions([LENGTH, 5])]
    for prediction in both:
        prediction.logits.requires_grad_()
        prediction.distances.requires_grad_()
    fused = fuse(*both)
    (fused.logits.square().sum() + fused.distances.square().sum()).backward()
    for prediction in both:
        for column in (prediction.logits, prediction.distances):
            assert column.grad is not None
            assert column.grad.isfinite().all()
            assert (column.grad[prediction.mask] != 0).any(-1).float().mean() > 0.9
            assert (column.grad[~prediction.mask] == 0).all()
    for parameter in fuse.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0


@torch.no_grad()
@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_random_start_cuts_off_the_distances_of_half_the_points(fusion: AnyFusion) -> None:
    points = level_points(256, 6)
    own, other = predictions([256] * 4, points=points)
    dead = {init: (made(fusion, init, len(points))(own, other).distances == 0).float().mean() for init in INITS}
    assert 0.3 < dead["random"] < 0.7
    assert dead["mean"] == 0


@torch.no_grad()
def test_a_random_start_of_columns_calls_every_action_even_odds() -> None:
    """Where both networks said, with a trained detector's prior, that hardly any goes on."""
    points = level_points(256, 6)
    own, other = (p._replace(logits=p.logits - 2) for p in predictions([256] * 4, points=points))
    scores = {init: made(ColumnFusion, init, len(points))(own, other).logits.sigmoid().mean() for init in INITS}
    assert scores["mean"] < 0.02
    assert 0.35 < scores["random"] < 0.65


@torch.no_grad()
@pytest.mark.parametrize("fusion", FUSIONS)
def test_mixed_precision_does_not_reach_into_a_fusion(
    fusion: AnyFusion,
) -> None:
    fuse, (own, other) = made(fusion, "random"), predictions([LENGTH, 5])
    plain = fuse(own, other)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = fuse(own, other)
    half = fuse(*(p._replace(logits=p.logits.bfloat16(), distances=p.distances.bfloat16()) for p in (own, other)))
    for one, two, three in zip(plain[:2], mixed[:2], half[:2], strict=True):
        assert torch.equal(one, two)
        assert three.dtype == torch.float32
        torch.testing.assert_close(one, three, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_its_state_is_its_parameters(fusion: AnyFusion) -> None:
    fuse = made(fusion, "mean")
    assert fuse.state_dict().keys() == {name for name, _ in fuse.named_parameters()}
    assert all(parameter.requires_grad for parameter in fuse.parameters())


@pytest.mark.parametrize("fusion", FUSIONS)
def test_windows_of_another_length_are_refused(fusion: AnyFusion) -> None:
    with pytest.raises(ValueError, match="28 points for a fusion of 14; use windows of the training length"):
        made(fusion, "mean")(*predictions([9], points=level_points(2 * LENGTH)))


def test_unknown_starts_are_refused() -> None:
    for make in (lambda: PointLayer(4, init="zero"), lambda: ConvolutionFusion(4, init="zero")):
        with pytest.raises(ValueError, match="fusion initialisation 'zero' is not one of mean, random"):
            make()
