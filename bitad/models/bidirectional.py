"""Two networks, one clock: what a network that watches the other way round says, expressed in one's own view.

The other view shows the V real steps of the same window in the opposite order, padding at the end in both. The times
are :func:`bitad.timeline.mirror_points`'s; here only rows are gathered by them. One function serves both ways: network
B's predictions to the forward clock, network F's to the reverse clock.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

from bitad.models.head import Prediction
from bitad.timeline import mirror_points

Alignment = Literal["exact", "naive"]


def aligned(prediction: Prediction, *, how: Alignment = "exact") -> Prediction:
    """What the other view's network says, point by point of this view; K classes, N points.

    Every point takes the words of the nearest real point of its level in the other view, with the roles of the two
    distances swapped: what reaches the action's end there reaches its start here. ``"exact"`` also corrects them by
    the gap g between the two points, in strides (``start = end' - g``, ``end = start' + g``, floored at 0), so a
    segment keeps its place. ``"naive"`` is the research group's first implementation, kept for comparison: each level
    is turned round as a whole, padding included, and the distances swapped, which is up to ``stride - 1`` steps off on
    full windows and shifted by the padding's length on others.

    Args:
        prediction: of the other view: logits ``[B, N, K]``, distances ``[B, N, 2]``, mask ``[B, N]``.
        how: see above.

    Returns:
        the same shapes; the mask, which depends on the windows' lengths alone, and the points are the argument's.

    Raises:
        ValueError: if there is no such alignment.
    """
    if how not in get_args(Alignment):
        raise ValueError(f"alignment {how!r} is not one of {', '.join(get_args(Alignment))}")
    logits, distances, mask, points = prediction
    rows = torch.arange(len(points), device=mask.device)  # [N]
    if how == "naive":
        rows = torch.cat([level.flip(0) for level in rows.split(points.sizes)])
        return prediction._replace(logits=logits[:, rows], distances=distances[:, rows].flip(-1))
    stride = points.stride.long()
    number = points.position.long() // stride  # of the point within its level, [N]
    steps = mask[:, : points.sizes[0]].sum(1, keepdim=True)  # V, [B, 1]
    index, gap = mirror_points(number, stride, steps)  # [B, N]
    rows = (rows - number + index)[..., None]  # [B, N, 1]
    to_end, to_start = distances.take_along_dim(rows, dim=1).unbind(-1)  # this view's names; the order is the other's
    gap = gap.to(distances.dtype)
    return prediction._replace(
        logits=logits.take_along_dim(rows, dim=1),
        distances=torch.stack((to_start - gap, to_end + gap), dim=-1).relu(),
    )
