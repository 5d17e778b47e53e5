"""What the detector says at its points -> scored candidate segments of each window, in grid steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bitad.models.head import Prediction
from bitad.timeline import mirror_segments


@dataclass(frozen=True)
class Candidates:
    """Scored segments of one window or video, before or after suppression, as columns.

    Args:
        segments: float64 ``[n, 2]``, start and end, in grid steps of the window's view or in seconds.
        scores: float64 ``[n]``.
        labels: int64 ``[n]``, class indices.
    """

    segments: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scores)

    def mirrored(self, steps: int) -> Candidates:
        """The same candidates in the other view of a window of ``steps`` real steps; its own inverse."""
        return replace(self, segments=mirror_segments(self.segments, steps))

    def take(self, rows: NDArray[Any]) -> Candidates:
        """Some of the rows: a boolean mask ``[n]``, or row numbers in the wanted order."""
        return Candidates(self.segments[rows], self.scores[rows], self.labels[rows])


@torch.no_grad()
def decode(
    prediction: Prediction,
    *,
    score_threshold: float = 0.001,
    top_k: int = 2000,
    names: Sequence[str] | None = None,
) -> list[Candidates]:
    """Each window's best candidates, best first: at most ``top_k`` (point, class) pairs scoring above the threshold.

    A candidate reaches from its point the predicted distances to both sides, and may reach beyond the window. Equal
    scores keep the order of points, then of classes.

    Args:
        prediction: of B windows.
        score_threshold: on probabilities; at least 0.
        top_k: of each window.
        names: of the windows' videos, for messages.

    Raises:
        ValueError: a score or distance at a real point is not finite.
    """
    logits, distances, mask, points = prediction
    broken = ((logits.isnan().any(-1) | ~distances.isfinite().all(-1)) & mask).any(1)  # [B]
    if broken.any():
        window = int(broken.nonzero()[0])
        what = f"window {window}" if names is None else f"video {names[window]}"
        raise ValueError(
            f"{what}: the network's scores or segments are not finite; test with test.precision=fp32, or another "
            "checkpoint"
        )
    classes = logits.shape[-1]
    # Below any threshold, so that padded points never become candidates.
    scores = logits.sigmoid().masked_fill(~mask[..., None], -1).flatten(1)  # [B, N * K]
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, :top_k], order[:, :top_k]
    point = (order // classes)[..., None].expand(-1, -1, 2)
    segments = points.segments(distances).gather(1, point)  # [B, top_k, 2]
    counts = (scores > score_threshold).sum(1)
    rows = zip(*(column.cpu().numpy() for column in (segments.double(), scores.double(), order % classes)), strict=True)
    return [Candidates(s[:n], p[:n], c[:n]) for (s, p, c), n in zip(rows, counts.tolist(), strict=True)]
