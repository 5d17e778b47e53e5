"""Windows with their ground truth, alone and in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitad.data.transforms import Crop, apply_crop, empty_frames
from bitad.timeline import FloatArray, Grid, IntArray, View, mirror_points, mirror_positions, mirror_segments


@dataclass(frozen=True)
class Sample:
    """One window in one view.

    Args:
        video: its name.
        content: of the real steps in the order of the view, frames ``[V * k, H, W, 3]`` or features ``[V, C]``.
        grid: of the window, on the forward clock.
        segments, labels: ground truth ``[n, 2]`` in grid steps of the view, and ``[n]``; of a segment that teaches no
            class, the label is negative (:class:`~bitad.data.reversal.Reversal`).
        reversed_labels: ``[n]``, on reversed playback; None: the same.
        view: what ``content`` shows, and whose clock ``segments`` have.
        colour: transform ``[3, 4]`` for :func:`bitad.data.transforms.recolour`.
        reversed_copy: what the other view shows instead of ``content``, in the same order.
        repeated: number of damaged frames that the last good one replaces.
        skipped: the windows that this one replaces, and why they could not be read.
    """

    video: str
    content: Tensor
    grid: Grid
    segments: FloatArray = field(default_factory=lambda: np.zeros((0, 2)))
    labels: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    reversed_labels: IntArray | None = None
    view: View = "forward"
    colour: NDArray[np.float32] | None = None
    reversed_copy: Tensor | None = None
    repeated: int = 0
    skipped: tuple[str, ...] = ()

    def cropped(self, crop: Crop, pixels: int) -> Sample:
        """One rectangle of every frame, as ``pixels`` x ``pixels``."""
        cut = partial(apply_crop, crop=crop, pixels=pixels)
        reversed_copy = None if self.reversed_copy is None else cut(self.reversed_copy.numpy())
        return replace(self, content=cut(self.content.numpy()), reversed_copy=reversed_copy)

    def prepended(self, previous: Sample, shared: int) -> Sample:
        """This window after the last ``shared`` steps of the previous one, both in forward order."""
        rows = shared * (len(self.content) // self.grid.steps)
        reversed_copy = None
        if self.reversed_copy is not None and previous.reversed_copy is not None:
            reversed_copy = torch.cat((previous.reversed_copy[-rows:], self.reversed_copy))
        return replace(
            self,
            content=torch.cat((previous.content[-rows:], self.content)),
            reversed_copy=reversed_copy,
            grid=self.grid.window(-shared, shared + self.grid.steps),
        )

    def seen_as(self, view: View) -> Sample:
        """This window, which is in the forward view, in another."""
        if view == "reverse":
            return self.reversed()
        if view == "flipped":
            return replace(self, content=self.content.flip(2), view=view)
        if view == "reversed-features":  # the network reverses them
            return replace(self, segments=mirror_segments(self.segments, self.grid.steps), view=view)
        return self

    def reversed(self) -> Sample:
        """The same window in the other playing direction; its own inverse."""
        return replace(
            self,
            content=(self.content if self.reversed_copy is None else self.reversed_copy).flip(0),
            reversed_copy=None if self.reversed_copy is None else self.content.flip(0),
            segments=mirror_segments(self.segments, self.grid.steps),
            labels=self.labels if self.reversed_labels is None else self.reversed_labels,
            reversed_labels=None if self.reversed_labels is None else self.labels,
            view="reverse" if self.view == "forward" else "forward",
        )


class ReadFailure(NamedTuple):
    """Takes the place of a window if its video cannot be read, and says why."""

    video: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """Windows of one length T, padded after their real steps.

    Args:
        inputs: frames uint8 ``[B, T * k, H, W, 3]``, padded by the last, or features float ``[B, C, T]``, by zeros.
        mask: bool ``[B, T]``, true at the real steps.
        segments, labels: per window, float64 ``[n, 2]`` in grid steps and int64 ``[n]``.
        grids, videos: per window.
        reversed_labels: per window, as of :class:`Sample`.
        colour, reversed_copy, skipped: as of :class:`Sample`, for all windows.
    """

    inputs: Tensor
    mask: Tensor
    segments: list[Tensor]
    labels: list[Tensor]
    grids: list[Grid]
    videos: list[str]
    colour: Tensor | None = None
    reversed_copy: Tensor | None = None
    skipped: tuple[str, ...] = ()
    reversed_labels: list[Tensor] | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return self._map(partial(torch.Tensor.to, device=device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory (called by PyTorch's loader)."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            inputs=change(self.inputs),
            mask=change(self.mask),
            segments=[change(segments) for segments in self.segments],
            labels=[change(labels) for labels in self.labels],
            colour=None if self.colour is None else change(self.colour),
            reversed_copy=None if self.reversed_copy is None else change(self.reversed_copy),
            reversed_labels=None if self.reversed_labels is None else [*map(change, self.reversed_labels)],
        )

    def reversed(self) -> Batch:
        """The same windows in the other playing direction: the batch of their :meth:`Sample.reversed`."""
        inputs = self.inputs if self.reversed_copy is None else self.reversed_copy
        segments, labels = self._truth_seen_as("reverse")
        return replace(
            self,
            inputs=reverse_steps(inputs, self.mask),
            segments=segments,
            labels=labels,
            reversed_labels=None if self.reversed_labels is None else self.labels,
            reversed_copy=None if self.reversed_copy is None else reverse_steps(self.inputs, self.mask),
        )

    def in_views(self, views: Sequence[View]) -> list[Batch]:
        """The batch, which comes in the first view, in each of these views; of several, the first is forward."""
        return [self if view == views[0] else self._seen_as(view) for view in views]

    def _seen_as(self, view: View) -> Batch:
        if view == "flipped":
            return replace(self, inputs=self.inputs.flip(3))
        if view == "reversed-features":  # the network reverses them
            segments, _ = self._truth_seen_as(view)
            return replace(self, segments=segments)
        return self.reversed()

    def truth_in_views(self, views: Sequence[View]) -> list[tuple[list[Tensor], list[Tensor]]]:
        """The segments and labels of :meth:`in_views`, without the inputs."""
        return [(self.segments, self.labels) if view == views[0] else self._truth_seen_as(view) for view in views]

    def _truth_seen_as(self, view: View) -> tuple[list[Tensor], list[Tensor]]:
        if view == "flipped":
            return self.segments, self.labels
        if view == "reversed-features" or self.reversed_labels is None:
            return self.reversed_segments(), self.labels
        return self.reversed_segments(), self.reversed_labels

    def reversed_segments(self) -> list[Tensor]:
        """The windows' ground truth on the other clock, per window ``[n, 2]`` in grid steps."""
        pairs = zip(self.segments, self.grids, strict=True)
        return [mirror_positions(segments, grid.steps).flip(-1) for segments, grid in pairs]


def reverse_steps(inputs: Tensor, mask: Tensor) -> Tensor:
    """Inputs of a :class:`Batch` with the real steps of each window in reverse order."""
    frames = inputs.ndim == 5
    count = len(inputs)
    length = inputs.shape[1 if frames else 2]
    per_step = length // mask.shape[1]
    real = per_step * mask.sum(1, keepdim=True)
    index, _ = mirror_points(torch.arange(length, device=mask.device), 1, real)  # [B, T * k]
    # After the real steps the index is 0, which pads by the last real frame of the reversed window.
    if not frames:
        return inputs.gather(2, index[:, None].expand_as(inputs)).masked_fill(~mask[:, None], 0)
    rows = index + length * torch.arange(count, device=mask.device)[:, None]
    return inputs.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, (count, length))


def collate(samples: Sequence[Sample], length: int, *, multiple: int = 1) -> Batch:
    """Samples -> a batch of ``length`` steps; longer ones are padded to the next ``multiple``."""
    steps = torch.tensor([sample.grid.steps for sample in samples])
    length = max(length, -(-int(steps.max()) // multiple) * multiple)
    rows = length * (len(samples[0].content) // samples[0].grid.steps)
    colour = None
    if any(sample.colour is not None for sample in samples):
        identity = np.eye(3, 4, dtype=np.float32)
        colours = [identity if sample.colour is None else sample.colour for sample in samples]
        colour = torch.from_numpy(np.stack(colours))
    reversed_labels = [
        torch.from_numpy(sample.labels if sample.reversed_labels is None else sample.reversed_labels)
        for sample in samples
    ]
    copies = [
        sample.reversed_copy for sample in samples if sample.reversed_copy is not None
    ]  # all have one, or none
    return Batch(
        inputs=_pad([sample.content for sample in samples], rows),
        mask=torch.arange(length) < steps[:, None],
        # In double precision, reversed segments equal those of the reversed samples exactly.
        segments=[torch.from_numpy(np.ascontiguousarray(sample.segments)) for sample in samples],
        labels=[torch.from_numpy(sample.labels) for sample in samples],
        grids=[sample.grid for sample in samples],
        videos=[sample.video for sample in samples],
        colour=colour,
        reversed_copy=_pad(copies, rows) if copies else None,
        skipped=tuple(skipped for sample in samples for skipped in sample.skipped),
        reversed_labels=reversed_labels if any(one.reversed_labels is not None for one in samples) else None,
    )


def _pad(contents: Sequence[Tensor], length: int) -> Tensor:
    first = contents[0]
    shape = (len(contents), length, *first.shape[1:])
    is_frames = first.ndim == 4
    inputs = empty_frames(*shape) if is_frames else first.new_zeros(shape)
    for row, content in zip(inputs, contents, strict=True):
        row[: len(content)] = content
        if is_frames:
            row[len(content) :] = content[-1]
    return inputs if is_frames else inputs.transpose(1, 2).contiguous()
