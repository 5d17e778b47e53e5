"""Losses and label assignment of ActionFormer (Zhang et al. 2022, arXiv:2202.07925) and TriDet (Shi et al. 2023,
arXiv:2303.07347), which weights the focal loss by tIoU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from bitad.models.heads import Points, Prediction

# Segments are equally short if their lengths differ by at most this, in grid steps (OpenTAD's value).
SAME_LENGTH = 1e-3
_MOMENTUM = 0.9  # of the moving average of positive points
_EPS = 1e-7  # the smallest denominator
# The least tIoU in a weight: the gradient of a power below 1 is infinite at 0.
_LEAST_TIOU = 1e-4


class Targets(NamedTuple):
    """The targets of a batch of windows; N points, K classes.

    Args:
        class_targets: float ``[B, N, K]``, 0 or 1; a point can have several classes.
        distances: ``[B, N, 2]``, to start and end of a point's segment, in strides; 0 without one.
        positive: bool ``[B, N]``, the points with a segment.
        taught: bool ``[B, N, K]``, the class targets that have a loss; None: all.
    """

    class_targets: Tensor
    distances: Tensor
    positive: Tensor
    taught: Tensor | None = None

    def of_distances(self, prediction: Prediction) -> tuple[Tensor, Tensor]:
        """The distances that train, bool ``[B, N]``, and their targets ``[B, N, 2]``.

        Where distances depend on the class: bool ``[B, N, K]`` and ``[B, N, 1, 2]``.
        """
        positive, distances = self.positive & prediction.mask, self.distances.to(prediction.distances.dtype)
        if prediction.distances.ndim == 3:
            return positive, distances
        return positive[..., None] & (self.class_targets > 0), distances[:, :, None]


@torch.no_grad()
def assign(
    points: Points,
    segments: Sequence[Tensor],
    labels: Sequence[Tensor],
    num_classes: int,
    *,
    radius: float = 1.5,
    some_untaught: bool = False,
) -> Targets:
    """Assigns ground truth to points.

    A point takes a segment if it lies strictly inside, less than ``radius`` strides from the middle, and the farther
    end is within the point's range. Of several segments it takes the shortest, or the first of equally short ones; its
    classes are those of all equally short ones.

    Args:
        segments: for each window ``[n, 2]`` in grid steps; n may be 0.
        labels: for each window, int ``[n]``.
        some_untaught: labels can be ``~k``: segments that teach no class at the points that take them, but their
            distances, of class k where those depend on the class.
    """
    device, dtype = points.position.device, points.position.dtype
    # Padded with at least one empty segment per window; no point lies strictly inside it.
    ends = pad_sequence(
        [F.pad(s.to(device, dtype, non_blocking=True).reshape(-1, 2), (0, 0, 0, 1)) for s in segments],
        batch_first=True,
    )
    classes = pad_sequence(
        [F.pad(c.to(device, non_blocking=True).long(), (0, 1)) for c in labels], batch_first=True
    )  # [B, M]

    to_ends, candidate = candidates(points, ends, radius=radius)
    start, end = ends[:, None].unbind(-1)  # [B, 1, M]
    stride = points.stride[:, None]  # [N, 1]
    length = torch.where(candidate, end - start, torch.inf)
    shortest = length.amin(-1, keepdim=True)
    chosen = candidate & (length <= shortest + SAME_LENGTH)
    untaught = classes < 0 if some_untaught else None  # [B, M]
    if untaught is not None:
        classes = torch.where(untaught, ~classes, classes)
    # A class annotated twice at a point counts once.
    class_targets = (chosen.to(dtype) @ F.one_hot(classes, num_classes).to(dtype)).clamp(max=1)
    positive = candidate.any(-1)
    index = length.argmin(-1)[..., None, None].expand(-1, -1, -1, 2)  # the first of equally short ones
    distances = to_ends.gather(2, index).squeeze(2) / stride
    taught = None
    if untaught is not None:
        named = (chosen & ~untaught[:, None]).to(dtype) @ F.one_hot(classes, num_classes).to(dtype) > 0
        taught = named | ~(chosen & untaught[:, None]).any(-1, keepdim=True)
    return Targets(class_targets, distances * positive[..., None], positive, taught)


def candidates(points: Points, segments: Tensor, *, radius: float) -> tuple[Tensor, Tensor]:
    """The segments ``[B, M, 2]``, in grid steps, that each of N points could take, as described in :func:`assign`.

    Returns:
        each point's distances to start and end, ``[B, N, M, 2]`` in grid steps, and bool ``[B, N, M]``.
    """
    start, end = segments[:, None].unbind(-1)  # [B, 1, M]
    position, stride = points.position[:, None], points.stride[:, None]  # [N, 1]
    to_ends = torch.stack((position - start, end - position), dim=-1)
    middle, reach = (start + end) / 2, radius * stride
    central = torch.minimum(
        position - torch.maximum(middle - reach, start), torch.minimum(middle + reach, end) - position
    )
    farthest = to_ends.amax(-1)
    in_range = (farthest >= points.low[:, None]) & (farthest <= points.high[:, None])
    return to_ends, (central > 0) & in_range


class Losses(NamedTuple):
    """Scalars; training minimises ``total``."""

    classification: Tensor
    regression: Tensor
    total: Tensor


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of independent classes (Lin et al. 2017, arXiv:1708.02002), elementwise.

    Args:
        targets: on 0..1.
        alpha: weight of positives; that of negatives is ``1 - alpha``.
        gamma: the exponent that lowers the weight of well classified elements.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    probability = logits.sigmoid()
    error = probability + targets - 2 * probability * targets  # 1 - p at positives, p at negatives
    weight = (1 - alpha) + (2 * alpha - 1) * targets
    return weight * error**gamma * cross_entropy


def tiou_of_distances(distances: Tensor, targets: Tensor) -> Tensor:
    """tIoU of segments around the same point: distances >= 0 to start and end ``[..., 2]`` -> ``[...]``."""
    intersection = torch.minimum(distances, targets).sum(-1)
    union = (distances + targets).sum(-1) - intersection
    return intersection / union.clamp(min=_EPS)


def diou_loss(distances: Tensor, targets: Tensor) -> Tensor:
    """1 - DIoU (Zheng et al. 2020, arXiv:1911.08287), on 0..2; arguments as :func:`tiou_of_distances`."""
    tiou = tiou_of_distances(distances, targets)
    enclosing = torch.maximum(distances, targets).sum(-1)
    offset = (targets - distances).diff(dim=-1).squeeze(-1) / 2  # between the two middles
    return 1 - tiou + offset**2 / (enclosing**2).clamp(min=_EPS)


class DetectionLoss(nn.Module):
    """The loss of a batch of windows.

    Both losses are sums over the batch's real points, divided by the number of positive points, in training by its
    moving average (a buffer). The batches of several processes count as one: the mean of their losses is the loss of
    one process with all windows.

    Args:
        initial_normaliser: the first value of the moving average.
        label_smoothing: the share of a class target that is spread over all classes.
        regression_weight: of the regression in the total.
        iou_weight_power: the tIoU of a point's predicted segment to this power weights the loss of its classes.
        total: a number of this process -> its sum over all ``processes``.
    """

    def __init__(
        self,
        *,
        initial_normaliser: float = 100.0,
        label_smoothing: float = 0.0,
        regression_weight: float = 1.0,
        iou_weight_power: float = 0.0,
        processes: int = 1,
        total: Callable[[Tensor], Tensor] = lambda number: number,
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.regression_weight = regression_weight
        self.iou_weight_power = iou_weight_power
        self.processes, self.total = processes, total
        self.register_buffer("normaliser", torch.tensor(float(initial_normaliser)))

    def forward(self, prediction: Prediction, targets: Targets, *, normaliser: Tensor | None = None) -> Losses:
        """The losses; in a step of several batches, with the step's :meth:`normaliser_of`."""
        logits, distances, mask, _ = prediction
        if normaliser is None:
            normaliser = self.normaliser_of((targets.positive & mask).sum())
        wanted = targets.class_targets.to(logits.dtype)
        if self.label_smoothing:
            wanted = wanted * (1 - self.label_smoothing) + self.label_smoothing / (logits.shape[-1] + 1)
        # Weighted by the masks rather than indexed by them: indexing waits for the device.
        taught, wanted_distances = targets.of_distances(prediction)
        focal = sigmoid_focal_loss(logits, wanted)
        if self.iou_weight_power:
            weight = tiou_of_distances(distances, wanted_distances).clamp(min=_LEAST_TIOU) ** self.iou_weight_power
            weight = weight if distances.ndim == 4 else weight[..., None]
            focal = torch.where(targets.class_targets > 0, weight, 1) * focal
        if targets.taught is not None:
            focal = focal * targets.taught
        classification = (focal * mask[..., None]).sum() / normaliser
        regression = (diou_loss(distances, wanted_distances) * taught).sum() / normaliser
        return Losses(classification, regression, classification + self.regression_weight * regression)

    def agreement(self, prediction: Prediction, other: Prediction, targets: Targets) -> Tensor:
        """The disagreement of two predictions on one clock, normalised as the last :meth:`forward`.

        The squared difference of probabilities, plus 1 - DIoU where there are targets: a symmetric form of mutual
        learning (Zhang et al. 2018, arXiv:1706.00384).
        """
        apart = (prediction.logits.sigmoid() - other.logits.sigmoid()) ** 2
        taught, _ = targets.of_distances(prediction)
        segments = diou_loss(prediction.distances, other.distances) * taught
        total: Tensor = ((apart * prediction.mask[..., None]).sum() + segments.sum()) / self.last_normaliser
        return total

    @property
    def last_normaliser(self) -> Tensor:
        """The normaliser of the last step in training."""
        return self.get_buffer("normaliser") / self.processes

    def normaliser_of(self, positives: Tensor) -> Tensor:
        """The normaliser of a step with this process's number of positive points."""
        dtype = self.get_buffer("normaliser").dtype
        if not self.training:
            return positives.clamp(min=1).to(dtype)
        current = self.total(positives).clamp(min=1).to(dtype)
        average = _MOMENTUM * self.get_buffer("normaliser") + (1 - _MOMENTUM) * current
        self.get_buffer("normaliser").copy_(average)
        return average / self.processes  # as gradients are averaged over processes, not added
