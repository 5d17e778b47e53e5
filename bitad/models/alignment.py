"""Two networks, one clock: the other network's prediction, in one's own view.

The other view shows the V real steps of the same window in the opposite order, padding at the end in both;
:func:`bitad.timeline.mirror_points` maps the points. Experiment 2x aligns tokens of the two backbones block by block.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from bitad.config.names import Alignment, Checkpointing
from bitad.models.backbone import VideoBackbone
from bitad.models.heads import Prediction
from bitad.models.vit import TokenGrid, add_adapters, pool_tokens, run_checkpointed
from bitad.timeline import mirror_points


def aligned(prediction: Prediction, *, how: Alignment = "exact") -> Prediction:
    """Maps the prediction of the other view's network to the points of this view.

    Every point takes the prediction of the nearest real point of its level in the other view, with the two distances
    swapped. ``"exact"`` also corrects them by the gap g between the two points, in strides (``start = end' - g``,
    ``end = start' + g``, floored at 0), so a segment keeps its place. ``"naive"`` is the research group's first
    implementation: it reverses each level with its padding. That is up to ``stride - 1`` steps off on full windows, and
    shifted by the padding's length on others.
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
    logits, gap = logits.take_along_dim(rows, dim=1), gap.to(distances.dtype)
    if distances.ndim == 4:  # per class
        rows, gap = rows[..., None], gap[..., None]
    to_end, to_start = distances.take_along_dim(rows, dim=1).unbind(
        -1
    )  # this view's names; the order is the other's
    distances = torch.stack((to_start - gap, to_end + gap), dim=-1).relu()
    return prediction._replace(logits=logits, distances=distances)


class TubeletAlignment(NamedTuple):
    """Which tubelet of the other view each of the n tubelets of a window meets.

    A window's V real frames are its first ceil(V / tubelet) tubelets. In mirrored views they meet in the opposite
    order: on the same frames where the tubelet divides V, else up to ``tubelet - 1`` frames off.

    Args:
        tubelet: its number in the other view, ``[B, n]``; meaningless for padded ones.
        real: bool ``[B, n]``; padded tubelets meet nothing.
    """

    tubelet: Tensor
    real: Tensor

    @classmethod
    def of(cls, mask: Tensor, tubelet: int, *, mirrored: bool) -> TubeletAlignment:
        """Of windows with the mask ``[B, T]``, true at the real frames; ``mirrored``: in opposite order."""
        numbers = torch.arange(mask.shape[1] // tubelet, device=mask.device)
        count = -(-mask.sum(1, keepdim=True) // tubelet)  # real tubelets, [B, 1]
        index = mirror_points(numbers, 1, count)[0] if mirrored else numbers.expand(len(mask), -1)
        return cls(index, numbers < count)

    def tokens(self, x: Tensor) -> Tensor:
        """The other view's tokens ``[B * clips, t*h*w, C]`` on this view's clock; zeros in the padding."""
        windows, count = self.tubelet.shape
        rows = self.tubelet + count * torch.arange(windows, device=x.device)[:, None]
        met = x.reshape(windows * count, -1).index_select(0, rows.flatten())
        return met.masked_fill(~self.real.flatten()[:, None], 0).reshape(x.shape)


def joint_forward(
    first: VideoBackbone,
    second: VideoBackbone,
    frames: tuple[Tensor, Tensor],
    mask: Tensor,
    cross_adapters: tuple[nn.ModuleList, nn.ModuleList],
    *,
    mirrored: bool,
) -> tuple[Tensor, Tensor]:
    """Two views of the same windows through two backbones of one architecture.

    After each block and its own adapters, each network's cross adapter sees the other network's tokens at the aligned
    time, before its cross adapter. With adapters beside the blocks, all of a depth see the outputs of its two blocks.

    Args:
        first, second: the backbones. If their checkpointing differs, both recompute their blocks.
        frames: each ``[B, T * k, H, W, 3]``, k of each grid step.
        mask: bool ``[B, T]``, true at the V real steps, the first ones in both views.
        cross_adapters: one :class:`~bitad.models.vit.CrossAdapter` a block.
        mirrored: the second view shows the real frames in the opposite order.

    Returns:
        the features of both, ``[B, C, T]`` each, on its own view's clock.

    Raises:
        ValueError: views and mask are not of the same windows, or do not fill clips.
    """
    mask = mask.repeat_interleave(first.frames_per_step, dim=1)  # of frames
    if frames[0].shape != frames[1].shape or mask.shape != frames[0].shape[:2]:
        raise ValueError(
            f"views {list(frames[0].shape)} and {list(frames[1].shape)} with a mask {list(mask.shape)}; "
            "give both views of the same windows [B, T, H, W, 3] and their mask [B, T]"
        )
    (x, grid), (y, _) = first.begin(frames[0]), second.begin(frames[1])
    meeting = TubeletAlignment.of(mask, first.vit.tubelet, mirrored=mirrored)
    depths = list(zip(first.vit.blocks, second.vit.blocks, *cross_adapters, strict=True))
    if first.vit.placement == "beside":
        return _joint_beside(first, second, (x, y), grid, meeting, depths)
    policies = {first.vit.checkpointing, second.vit.checkpointing}
    checkpointing: Checkpointing = policies.pop() if len(policies) == 1 else "blocks"
    for before, depth in pairwise((None, *depths, None)):
        x, y = run_checkpointed(
            _step, x, y, grid, meeting, before, depth, checkpointing, checkpointing=checkpointing
        )
    x, y = (one.vit.finish(tokens).unflatten(1, grid[1:]) for one, tokens in ((first, x), (second, y)))
    return first.features(x, grid.clips), second.features(y, grid.clips)


def _joint_beside(
    first: VideoBackbone,
    second: VideoBackbone,
    tokens: tuple[Tensor, Tensor],
    grid: TokenGrid,
    meeting: TubeletAlignment,
    depths: Iterable[tuple[Any, ...]],
) -> tuple[Tensor, Tensor]:
    """:func:`joint_forward` with adapters beside the blocks."""
    x, y = tokens
    adapters: tuple[list[Any], list[Any]] = ([], [])
    pooled: tuple[list[Tensor], list[Tensor]] = ([], [])
    for block_x, block_y, cross_x, cross_y in depths:
        with torch.no_grad():
            x, y = block_x.run_chunks(x), block_y.run_chunks(y)
        for side, (block, cross, own, other) in enumerate(((block_x, cross_x, x, y), (block_y, cross_y, y, x))):
            adapters[side].extend((*block.adapters, cross))
            pooled[side].extend(adapter.pool(own, grid) for adapter in block.adapters)
            pooled[side].append(cross.pool(own, grid, meeting.tokens(other)))
    features = []
    for backbone, out, own_adapters, own_pooled in zip((first, second), (x, y), adapters, pooled, strict=True):
        with torch.no_grad():
            average = pool_tokens(backbone.vit.finish(out), grid)
        features.append(backbone.features(add_adapters(average, own_adapters, own_pooled, grid), grid.clips))
    return features[0], features[1]


def _step(
    x: Tensor,
    y: Tensor,
    grid: TokenGrid,
    meeting: TubeletAlignment,
    before: tuple[Any, ...] | None,
    depth: tuple[Any, ...] | None,
    checkpointing: Checkpointing,
) -> tuple[Tensor, Tensor]:
    """Runs the adapters and cross adapters of one depth, then attention and MLP of the next.

    A depth has a block of each network and a cross adapter of each.
    """
    if before is not None:
        block_x, block_y, cross_x, cross_y = before
        x, y = block_x.adapt(x, grid), block_y.adapt(y, grid)
        x, y = cross_x(x, grid, meeting.tokens(y)), cross_y(y, grid, meeting.tokens(x))
    if depth is not None:
        x, y = (
            block.run_chunks(z, checkpointing=checkpointing) for block, z in zip(depth[:2], (x, y), strict=True)
        )
    return x, y
