"""What each point of the pyramid should say: ActionFormer's label assignment (Zhang et al. 2022, arXiv:2202.07925)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bitad.models.head import Points

# Segments whose lengths differ by no more than this count as equally short, in grid steps (OpenTAD's value): THUMOS14
# annotates some segments once for each of two classes.
SAME_LENGTH = 1e-3


class Targets(NamedTuple):
    """What a batch of windows should be predicted as; N points, K classes.

    Args:
        class_targets: float ``[B, N, K]``, 0 or 1; a point can carry several classes.
        distances: ``[B, N, 2]``, to the start and to the end of its segment, in strides; 0 at points without one.
        positive: bool ``[B, N]``, points that have a segment.
    """

    class_targets: Tensor
    distances: Tensor
    positive: Tensor


@torch.no_grad()
def assign(
    points: Points,
    segments: Sequence[Tensor],
    labels: Sequence[Tensor],
    num_classes: int,
    *,
    radius: float = 1.5,
) -> Targets:
    """Assigns ground truth to points.

    A point takes a segment if it lies strictly inside it, less than ``radius`` of its strides from its middle, and if
    the farther end is within the point's range, limits included. Of several it takes the shortest, the first of
    equally short ones; its classes are those of all that are equally short.

    Args:
        points: the N points.
        segments: for each window ``[n, 2]`` in grid steps; n may be 0.
        labels: for each window, int ``[n]``.
        num_classes: K.
        radius: of the sampling around a segment's middle, in strides.
    """
    device, dtype = points.position.device, points.position.dtype
    # Padded by segments without length, which no point lies strictly inside: at least one a window.
    ends = pad_sequence([F.pad(s.to(device, dtype).reshape(-1, 2), (0, 0, 0, 1)) for s in segments], batch_first=True)
    classes = pad_sequence([F.pad(c.to(device).long(), (0, 1)) for c in labels], batch_first=True)  # [B, M]

    start, end = ends[:, None].unbind(-1)  # [B, 1, M]
    position, stride = points.position[:, None], points.stride[:, None]  # [N, 1]
    to_ends = torch.stack((position - start, end - position), dim=-1)  # [B, N, M, 2]
    middle, reach = (start + end) / 2, radius * stride
    central = torch.minimum(
        position - torch.maximum(middle - reach, start), torch.minimum(middle + reach, end) - position
    )
    farthest = to_ends.amax(-1)
    in_range = (farthest >= points.low[:, None]) & (farthest <= points.high[:, None])
    candidate = (central > 0) & in_range  # [B, N, M]

    length = torch.where(candidate, end - start, torch.inf)
    shortest = length.amin(-1, keepdim=True)
    chosen = candidate & (length <= shortest + SAME_LENGTH)
    # A class annotated twice at a point still counts once.
    class_targets = (chosen.to(dtype) @ F.one_hot(classes, num_classes).to(dtype)).clamp(max=1)
    positive = candidate.any(-1)
    index = length.argmin(-1)[..., None, None].expand(-1, -1, -1, 2)  # the first of equally short ones
    distances = to_ends.gather(2, index).squeeze(2) / stride
    return Targets(class_targets, distances * positive[..., None], positive)
