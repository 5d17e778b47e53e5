"""Distances that depend on the class mean what distances of all classes mean, class by class."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from bitad.config.names import Alignment, FusionInit
from bitad.inference.postprocess import decode
from bitad.models.alignment import aligned
from bitad.models.build import FUSIONS
from bitad.models.heads import Points, Prediction
from bitad.training.losses import DetectionLoss, Targets, assign

STEPS, LEVELS, CLASSES = 16, 3, 4
INITS: tuple[FusionInit, ...] = get_args(FusionInit)
ALIGNMENTS: tuple[Alignment, ...] = get_args(Alignment)


def predicted(seed: int = 0) -> Prediction:
    """Random distances of each class, in windows of 16, 11 and 1 real steps."""
    strides = [2**level for level in range(LEVELS)]
    points = Points.of_levels([STEPS // stride for stride in strides], strides, [(0, 4), (4, 8), (8, 100)])
    generator = torch.Generator().manual_seed(seed)
    mask = points.position < torch.tensor([STEPS, 11, 1])[:, None]
    logits = torch.randn(*mask.shape, CLASSES, generator=generator)
    return Prediction(logits, 5 * torch.rand(*logits.shape, 2, generator=generator), mask, points)


def of_class(prediction: Prediction, number: int) -> Prediction:
    """With the distances of one class for all of them."""
    return prediction._replace(distances=prediction.distances[:, :, number])


def targets_of(prediction: Prediction) -> Targets:
    """Two actions that last equally long at the same time, another one, none."""
    segments = [
        torch.tensor([[2.0, 9.0], [2.0, 9.0], [11.0, 14.0]]),
        torch.tensor([[3.0, 9.0]]),
        torch.empty(0, 2),
    ]
    labels = [torch.tensor([0, 3, 1]), torch.tensor([2]), torch.empty(0, dtype=torch.int64)]
    return assign(prediction.points, segments, labels, CLASSES)


def assert_same_distances(found: Tensor, wanted: Tensor, mask: Tensor) -> None:
    torch.testing.assert_close(found[mask], wanted[mask])


@pytest.mark.parametrize("number", range(CLASSES))
@pytest.mark.parametrize("how", ALIGNMENTS)
def test_alignment_treats_each_class_alike(how: Alignment, number: int) -> None:
    prediction = predicted()
    found, wanted = (aligned(one, how=how) for one in (prediction, of_class(prediction, number)))
    assert torch.equal(found.distances[:, :, number], wanted.distances)
    assert torch.equal(found.logits, wanted.logits)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("name", FUSIONS)
@torch.no_grad()
def test_fusion_treats_each_class_alike(name: str, init: FusionInit) -> None:
    own, other = predicted(0), predicted(1)
    torch.manual_seed(0)
    fuse = FUSIONS[name](len(own.points), init=init)
    found = fuse(own, other)
    assert (found.distances >= 0).all()
    for number in range(CLASSES):
        wanted = fuse(of_class(own, number), of_class(other, number))
        assert_same_distances(found.distances[:, :, number], wanted.distances, own.mask)
        assert_same_distances(found.logits, wanted.logits, own.mask)


def test_each_candidate_has_the_segment_of_its_class() -> None:
    prediction = predicted()
    of_classes = [decode(of_class(prediction, number)) for number in range(CLASSES)]
    for window, found in enumerate(decode(prediction)):
        wanted = np.select(
            [(found.labels == number)[:, None] for number in range(CLASSES)],
            [of_classes[number][window].segments for number in range(CLASSES)],
        )
        np.testing.assert_array_equal(found.segments, wanted)


def test_a_distance_that_is_not_finite_is_refused_in_any_class() -> None:
    prediction = predicted()
    prediction.distances[1, 0, 2, 1] = torch.inf
    with pytest.raises(ValueError, match="window 1"):
        decode(prediction)


def test_a_point_learns_the_distances_of_its_own_classes_once_for_each() -> None:
    prediction = predicted()
    prediction.distances.requires_grad_()
    targets = targets_of(prediction)
    loss = DetectionLoss()
    regression = loss(prediction, targets).regression
    regression.backward()
    assert prediction.distances.grad is not None
    learning = (prediction.distances.grad != 0).any(-1)
    assert torch.equal(learning, (targets.class_targets > 0) & prediction.mask[..., None])
    # The sum of what each class gives alone.
    alone = [
        DetectionLoss()(of_class(prediction, k), targets._replace(positive=targets.class_targets[:, :, k] > 0))
        for k in range(CLASSES)
    ]
    counts = [DetectionLoss().normaliser_of((targets.class_targets[:, :, k] > 0).sum()) for k in range(CLASSES)]
    total = sum(one.regression * count for one, count in zip(alone, counts, strict=True))
    torch.testing.assert_close(regression, total / loss.normaliser)


def test_agreement_compares_the_distances_of_the_classes_that_are_there() -> None:
    one, other = predicted(0), predicted(1)
    targets, loss = targets_of(one), DetectionLoss()
    assert loss.agreement(one, one, targets) == 0
    changed = one._replace(
        distances=torch.where(targets.class_targets[..., None] > 0, one.distances, other.distances)
    )
    assert loss.agreement(one, changed, targets) == 0
    assert loss.agreement(one, one._replace(distances=other.distances), targets) > 0
