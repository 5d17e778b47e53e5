"""A data set as the detector sees it: windows of frames or features with their ground truth, in either direction.

A window is read once, on the forward clock; its reverse view is the same content flipped (:meth:`Sample.reversed`, and
:meth:`Batch.reversed` on the device), so both directions of a pair cost one decode. Where there are reverse-playback
files, the reverse view shows what those hold of the same frames. Which random window an item is depends on (seed,
epoch, item) and nothing else: a resumed run, or one with other workers, sees what the uninterrupted one sees.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from bitad.config.schema import AugmentationConfig, Config
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.readers import Readers
from bitad.data.sources import Source
from bitad.data.transforms import Crop, apply_crop, centre_crop, random_colour, random_crop, room_for_frames
from bitad.data.windows import random_window, sliding_windows
from bitad.timeline import Direction, Grid, mirror_points, mirror_positions, mirror_segments

Content = TypeVar("Content")

# Training frames are decoded with room for a crop: AdaTAD's 182 pixels for a picture of 160.
DECODE_MARGIN = 182 / 160


@dataclass(frozen=True)
class Sample:
    """One window in one view.

    Args:
        video: its name.
        content: frames uint8 ``[V * k, H, W, 3]``, k of each step, or features float ``[V, C]`` of the real steps, in
            the order of the view.
        grid: where the window lies (always on the forward clock).
        segments, labels: ground truth ``[n, 2]`` in grid steps of the view, and ``[n]``.
        view: the playing direction of ``content`` and ``segments``.
        colour: float ``[3, 4]``, the window's change of colour.
        twin: what the file of the other playing direction holds of the window, laid out and in order as ``content``;
            None: the other view shows ``content``.
        repeated: number of damaged frames in whose place another one stands.
        skipped: the windows that should have been in its place, and why they could not be read.
    """

    video: str
    content: Tensor
    grid: Grid
    segments: NDArray[np.float64]
    labels: NDArray[np.int64]
    view: Direction = "forward"
    colour: NDArray[np.float32] | None = None
    reversed_copy: Tensor | None = None
    repeated: int = 0
    skipped: tuple[str, ...] = ()

    def cropped(self, crop: Crop, pixels: int) -> Sample:
        """One rectangle of every picture, as ``pixels`` x ``pixels``."""
        cut = partial(apply_crop, crop=crop, pixels=pixels)
        reversed_copy = None if self.reversed_copy is None else cut(self.reversed_copy.numpy())
        return replace(self, content=cut(self.content.numpy()), reversed_copy=reversed_copy)

    def behind(self, before: Sample, shared: int) -> Sample:
        """This stretch of a video with the last ``shared`` steps of the one before it, both in forward order."""
        rows = shared * (len(self.content) // self.grid.steps)
        reversed_copy = None
        if self.reversed_copy is not None and before.reversed_copy is not None:
            reversed_copy = torch.cat((before.reversed_copy[-rows:], self.reversed_copy))
        first = self.grid.first_frame - shared * self.grid.stride_frames
        return replace(
            self,
            content=torch.cat((before.content[-rows:], self.content)),
            reversed_copy=reversed_copy,
            grid=replace(self.grid, first_frame=first, steps=shared + self.grid.steps),
        )

    def reversed(self) -> Sample:
        """The same window played the other way round; twice gives the first again."""
        return replace(
            self,
            content=(self.content if self.reversed_copy is None else self.reversed_copy).flip(0),
            reversed_copy=None if self.reversed_copy is None else self.content.flip(0),
            segments=mirror_segments(self.segments, self.grid.steps),
            view="reverse" if self.view == "forward" else "forward",
        )


@dataclass(frozen=True)
class Batch:
    """Windows of one length T, padded behind their real steps.

    Args:
        inputs: frames uint8 ``[B, T * k, H, W, 3]`` (the last real frame repeated) or features float ``[B, C, T]``
            (zeros).
        mask: bool ``[B, T]``, true at the real steps.
        segments, labels: per window, float64 ``[n, 2]`` in grid steps and int64 ``[n]``.
        grids, videos: per window.
        colour: float ``[B, 3, 4]`` for :func:`bitad.data.transforms.recolour`; None where nothing changes.
        twin: what the files of the other playing direction hold, laid out and in order as ``inputs``; None: the other
            view shows ``inputs``.
        repeated: number of damaged frames in whose place another one stands.
        skipped: the windows that should have been in it, and why they could not be read.
    """

    inputs: Tensor
    mask: Tensor
    segments: list[Tensor]
    labels: list[Tensor]
    grids: list[Grid]
    videos: list[str]
    colour: Tensor | None = None
    reversed_copy: Tensor | None = None
    repeated: int = 0
    skipped: tuple[str, ...] = ()

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, where it can be turned round (:meth:`reversed`) without another copy from here."""
        return self._with_tensors(partial(torch.Tensor.to, device=device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, from where it is copied to a GPU while that computes (a loader calls it)."""
        return self._with_tensors(torch.Tensor.pin_memory)

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            inputs=change(self.inputs),
            mask=change(self.mask),
            segments=[change(segments) for segments in self.segments],
            labels=[change(labels) for labels in self.labels],
            colour=None if self.colour is None else change(self.colour),
            reversed_copy=None if self.reversed_copy is None else change(self.reversed_copy),
        )

    def reversed(self) -> Batch:
        """The same windows played the other way round: the batch of their :meth:`Sample.reversed`.

        The real steps of each window are turned round and the padding stays behind them, made anew.
        """
        return replace(
            self,
            inputs=_turned(self.inputs if self.reversed_copy is None else self.reversed_copy, self.mask),
            segments=self.reversed_segments(),
            reversed_copy=None if self.reversed_copy is None else _turned(self.inputs, self.mask),
        )

    def in_views(self, views: Sequence[Direction]) -> list[Batch]:
        """The batch, which comes in the first view, in each of these views."""
        return [self if view == views[0] else self.reversed() for view in views]

    def reversed_segments(self) -> list[Tensor]:
        """The ground truth of the windows played the other way round, per window ``[n, 2]`` in grid steps."""
        return [
            mirror_positions(segments, grid.steps).flip(-1)
            for segments, grid in zip(self.segments, self.grids, strict=True)
        ]


def _turned(inputs: Tensor, mask: Tensor) -> Tensor:
    """Inputs of a batch, the real steps of each window in the opposite order."""
    frames = inputs.ndim == 5
    count, length = len(inputs), inputs.shape[1 if frames else 2]
    per_step = length // mask.shape[1]
    real = per_step * mask.sum(1, keepdim=True)
    index, _ = mirror_points(torch.arange(length, device=mask.device), 1, real)  # [B, T * k]
    # Behind the real steps it is 0, the frame that is the last real one now: what frames are padded by.
    if not frames:
        return inputs.gather(2, index[:, None].expand_as(inputs)).masked_fill(~mask[:, None], 0)
    rows = index + length * torch.arange(count, device=mask.device)[:, None]
    return inputs.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, (count, length))


def collate(samples: Sequence[Sample], length: int, *, multiple: int = 1) -> Batch:
    """Samples -> one batch of windows of ``length`` steps, or of the next ``multiple`` where one of them is longer."""
    steps = torch.tensor([sample.grid.steps for sample in samples])
    length = max(length, -(-int(steps.max()) // multiple) * multiple)
    rows = length * (len(samples[0].content) // samples[0].grid.steps)
    colours = [sample.colour for sample in samples]
    identity = np.eye(3, 4, dtype=np.float32)
    reversed_copies = [
        sample.reversed_copy for sample in samples if sample.reversed_copy is not None
    ]  # of all, or of none
    return Batch(
        inputs=_padded([sample.content for sample in samples], rows),
        mask=torch.arange(length) < steps[:, None],
        # In double precision, so that turned round they are exactly those of the reversed samples.
        segments=[torch.from_numpy(np.ascontiguousarray(s.segments)) for s in samples],
        labels=[torch.from_numpy(s.labels) for s in samples],
        grids=[s.grid for s in samples],
        videos=[s.video for s in samples],
        colour=torch.from_numpy(np.stack([identity if c is None else c for c in colours]))
        if any(c is not None for c in colours)
        else None,
        reversed_copy=_padded(reversed_copies, rows) if reversed_copies else None,
        repeated=sum(s.repeated for s in samples),
        skipped=tuple(one for s in samples for one in s.skipped),
    )


def _padded(contents: Sequence[Tensor], length: int) -> Tensor:
    """Contents of samples -> inputs of a batch."""
    first = contents[0]
    frames, shape = first.ndim == 4, (len(contents), length, *first.shape[1:])
    inputs = room_for_frames(*shape) if frames else first.new_zeros(shape)
    for i, content in enumerate(contents):
        inputs[i, : len(content)] = content
        if frames:
            inputs[i, len(content) :] = content[-1]
    return inputs if frames else inputs.transpose(1, 2).contiguous()


def _read(
    source: Source,
    video: AnnotatedVideo,
    grid: Grid,
    views: Sequence[Direction],
    segments: NDArray[np.float64],
    labels: NDArray[np.int64],
    *,
    margin: float = 1.0,
) -> Sample:
    """A window in the first view, with the content of the other one where that is wanted and is another."""
    repeated = source.repeated
    content = source.read(video, grid, view=views[0], margin=margin)
    reversed_copy = None
    if source.has_reversed_copies and len(set(views)) > 1:
        reversed_copy = source.read(video, grid, view=views[1], margin=margin)
    if reversed_copy is not None and reversed_copy.shape != content.shape:
        raise ValueError(
            f"a window of {video.name} is {list(content.shape)} and of its reversed playback "
            f"{list(reversed_copy.shape)}: remake that with `bitad reverse` or `bitad features`"
        )
    return Sample(
        video.name, content, grid, segments, labels, reversed_copy=reversed_copy, repeated=source.repeated - repeated
    )


def grid_truth(
    video: AnnotatedVideo, video_grid: Grid, classes: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """A video's ground truth in grid steps ``[n, 2]``, cut off at the video's ends, and class indices ``[n]``."""
    index = {name: i for i, name in enumerate(classes)}
    segments = video_grid.to_steps(video.segments.reshape(-1, 2))
    segments = np.clip(segments, 0, video_grid.steps)
    labels = np.array([index[label] for label in video.labels], np.int64)
    seen = segments[:, 1] > segments[:, 0]  # what starts after the video's end cannot be learnt
    return segments[seen], labels[seen]


class TrainingWindows(Dataset[Sample]):
    """Random windows: item i is window ``i // videos`` of video ``i % videos`` in this epoch (see :meth:`set_epoch`).

    Videos without any ground truth are left out, as in the reference; ``skipped`` names them.
    """

    def __init__(self, annotations: Annotations, source: Source, config: Config) -> None:
        self.source, self.config, self.classes = source, config, annotations.classes
        self.videos = [video for video in annotations.videos.values() if video.labels]
        self.skipped = [video.name for video in annotations.videos.values() if not video.labels]
        if not self.videos:
            raise ValueError(f"no video of subset '{config.data.training_subset}' has any ground truth to learn from")
        training = config.training
        self.readers = Readers([video.name for video in self.videos], training.workers, training.read_timeout_s)
        # A tensor in shared memory, so that workers that live on see the epoch change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """From now on, items are those of this epoch."""
        self._epoch.fill_(epoch)

    def leave_out(self, names: Collection[str]) -> None:
        """From now on, there are no windows of these videos.

        Raises:
            ValueError: there are no others.
        """
        self.videos = [video for video in self.videos if video.name not in names]
        if not self.videos:
            raise ValueError(f"none of the {len(names)} training videos can be read; bitad annotations check says why")

    def median_rate_hz(self) -> float:
        """Grid steps a second, the median over the videos."""
        bases = [self.source.grid(video) for video in self.videos]
        return float(np.median([base.fps / base.stride_frames for base in bases]))

    def __len__(self) -> int:
        return len(self.videos) * self.config.training.windows_per_video

    def __getitem__(self, item: int) -> Sample:
        training = self.config.training
        skipped: list[str] = []
        # In the place of a window that cannot be read comes that of the next video.
        for place in range(item, item + len(self.videos)):
            video = self.videos[place % len(self.videos)]
            try:
                with self.readers.reading(video.name):
                    sample = self._window(place % len(self), video)
                return replace(sample, skipped=tuple(skipped))
            except (OSError, ValueError) as error:
                if training.on_read_error == "error" or place == item + len(self.videos) - 1:
                    raise
                skipped.append(f"{video.name}: {error}")
        raise AssertionError("there is a video")

    def _window(self, item: int, video: AnnotatedVideo) -> Sample:
        rng = np.random.default_rng((self.config.seed, int(self._epoch), item))
        video_grid = self.source.grid(video)
        segments, labels = grid_truth(video, video_grid, self.classes)
        window = self.config.window
        chosen = random_window(
            rng,
            video_grid.steps,
            window.steps,
            segments,
            labels,
            completeness=window.completeness,
            crop=window.crop,
        )
        grid = video_grid.window(chosen.start, chosen.steps)
        backbone, views = self.config.model.backbone, self.config.views
        margin = 1.0 if backbone is None else DECODE_MARGIN
        sample = _read(self.source, video, grid, views, chosen.segments, chosen.labels, margin=margin)
        if backbone is not None:
            crop = _training_crop(rng, sample.content, self.config.training.augmentation)
            colour = _training_colour(rng, self.config.training.augmentation)
            sample = replace(sample.cropped(crop, backbone.pixels), colour=colour)
        return sample.reversed() if views[0] == "reverse" else sample


def _training_crop(rng: np.random.Generator, content: Tensor, how: AugmentationConfig) -> Crop:
    height, width = content.shape[1:3]
    return random_crop(rng, height, width, area=how.crop_area, aspect=how.crop_aspect, flip=how.flip)


def _training_colour(rng: np.random.Generator, how: AugmentationConfig) -> NDArray[np.float32] | None:
    if rng.random() >= how.colour:
        return None
    return random_colour(rng, brightness=how.brightness, contrast=how.contrast, saturation=how.saturation, hue=how.hue)


@dataclass(frozen=True)
class ReadFailure:
    """What there is instead of a window of a video that cannot be read.

    Args:
        video: its name.
        reason: why.
    """

    video: str
    reason: str


class TestWindows(Dataset[Sample | ReadFailure]):
    """All windows of a subset, video after video. Ground truth is not needed and not given.

    Whoever asks for them in their order reads what neighbours share once.

    Attributes:
        videos: of the subset, by name.
        bases: how the grid lies in each video, by name.
        windows: which they are.
        readers: the processes that read them.
        unread: by name, why videos cannot be read, as far as this process knows; they are not tried again.

    Raises:
        ValueError, OSError: for a video that cannot be read, where that is an error (``test.on_read_error``).
    """

    __test__ = False  # not a test, whatever its name makes pytest think

    def __init__(self, annotations: Annotations, source: Source, config: Config) -> None:
        self.source, self.config, self.videos = source, config, annotations.videos
        test, self.unread = config.test, dict[str, str]()
        workers = config.training.workers if test.workers is None else test.workers
        self.readers = Readers(list(annotations.videos), workers, test.read_timeout_s)
        self.bases = {
            name: base
            for name, video in self.videos.items()
            if (base := self._unless_bad(video, partial(source.grid, video))) is not None
        }
        self._before: Sample | None = None  # the window asked for last, in forward order
        self.leave_out({})

    def leave_out(self, reasons: Mapping[str, str]) -> None:
        """From now on, there are no windows of these videos, which others could not read.

        Args:
            reasons: why, by name.
        """
        self.unread |= reasons
        self.bases = {name: base for name, base in self.bases.items() if name not in self.unread}
        self.windows = [(self.videos[name], grid) for name, base in self.bases.items() for grid in self._grids(base)]

    @property
    def workers(self) -> int:
        """How many processes read; 0: this one."""
        return self.readers.processes

    def _grids(self, video_grid: Grid) -> list[Grid]:
        window = self.config.window
        if window.layout == "whole":
            return [video_grid]
        # A video resized to the length of a window gives one.
        return [video_grid.window(*one) for one in sliding_windows(video_grid.steps, window.steps, window.overlap)]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, item: int) -> Sample | ReadFailure:
        video, grid = self.windows[item]
        sample = self._unless_bad(video, partial(self._read_on, video, grid))
        followed = item + 1 < len(self) and self.windows[item + 1][0] is video
        self._before = sample if followed else None
        return self._shown(video, sample)

    def read(self, video: AnnotatedVideo, grid: Grid) -> Sample | ReadFailure:
        """A stretch of a video as one window."""
        return self._shown(video, self._unless_bad(video, partial(self._read, video, grid)))

    def _shown(self, video: AnnotatedVideo, sample: Sample | None) -> Sample | ReadFailure:
        if sample is None:
            return ReadFailure(video.name, self.unread[video.name])
        return sample.reversed() if self.config.views[0] == "reverse" else sample

    def _read_on(self, video: AnnotatedVideo, grid: Grid) -> Sample:
        """A window, of which only that is read which the window before does not have."""
        before = self._before
        if before is not None and before.video == video.name and not before.repeated:
            shared = before.grid.steps - round((grid.first_frame - before.grid.first_frame) / grid.stride_frames)
            if 0 < shared < min(grid.steps, before.grid.steps):
                first = grid.first_frame + shared * grid.stride_frames
                rest = self._read(video, replace(grid, first_frame=first, steps=grid.steps - shared))
                if not rest.repeated:  # else what stands in the place of damaged frames is a matter of the whole window
                    return rest.behind(before, shared)
        return self._read(video, grid)

    def _read(self, video: AnnotatedVideo, grid: Grid) -> Sample:
        """In forward order."""
        backbone, views = self.config.model.backbone, self.config.views
        sample = _read(self.source, video, grid, views, np.zeros((0, 2)), np.zeros(0, np.int64))
        if backbone is not None:
            sample = sample.cropped(centre_crop(*sample.content.shape[1:3]), backbone.pixels)
        return sample

    def _unless_bad(self, video: AnnotatedVideo, read: Callable[[], Content]) -> Content | None:
        """What reading something of a video gives; None where it cannot be read, which may be."""
        if video.name in self.unread:
            return None
        try:
            with self.readers.reading(video.name):
                return read()
        except (OSError, ValueError) as error:
            if self.config.test.on_read_error == "error":
                raise
            self.unread[video.name] = str(error)
            return None
