"""Runs the backbone once over each video, and pyramid and head in windows: ``test.backbone=video``.

The backbone's features are those of one window of the video's length: adapters see across the borders of windows.

A video is read in chunks, which bound the memory, except for the features. Each block of the transformer passes on
a clip's tokens when those of the next clip have come. Adapters beside the blocks mix over time at the end of the video.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bitad.config.schema import CLIP_FRAMES, Config
from bitad.data.dataset import TestWindows
from bitad.data.samples import ReadFailure, Sample
from bitad.inference.extract import deal
from bitad.models.backbone import VideoBackbone
from bitad.models.build import Network
from bitad.models.heads import Prediction
from bitad.models.network import Detector, Output
from bitad.models.vit import Block, TemporalAdapter, TokenGrid, add_adapters, pool_tokens
from bitad.runtime.distributed import Ranks
from bitad.runtime.progress import track
from bitad.timeline import Grid

# At least AdaTAD's window, as the borders of a chunk repeat some work.
CHUNK_FRAMES = 768


class WindowOutputs(NamedTuple):
    videos: list[str]  # per window
    grids: list[Grid]
    predictions: tuple[Prediction, ...]  # per network


class FeatureStream:
    """The features of one view of a video, whose frames come in chunks in forward order.

    They equal ``backbone(view[None])`` up to rounding. The view is all frames in playing order, padded by the last to
    ``length`` frames.
    """

    def __init__(self, backbone: VideoBackbone, *, frames: int, length: int, reverse: bool = False) -> None:
        self.backbone = backbone
        self.reverse = reverse
        self.frames = frames
        self.length = length
        self.expected = frames
        self.rest: Tensor | None = None  # frames of an incomplete clip
        self.grid: TokenGrid | None = None
        self.stages = [_Stage(block, reverse=reverse) for block in backbone.vit.blocks]
        # The features [n, t, C], and what adapters beside the blocks take; clips in forward order.
        self.pooled: list[list[Tensor]] = []

    def push(self, frames: Tensor) -> None:
        """Adds the next frames, uint8 ``[n, H, W, 3]``, on the backbone's device."""
        clips = self._padded(frames)
        count = len(clips) // self.backbone.vit.clip_frames
        clips, self.rest = clips.tensor_split([count * self.backbone.vit.clip_frames])
        self.rest = self.rest.clone()  # releases the rest of the chunk
        if count == 0:
            return
        if self.reverse:
            clips = clips.unflatten(0, (count, -1)).flip(1).flatten(0, 1)  # each one in playing order
        tokens, self.grid = self.backbone.begin(clips[None])
        self._run_blocks(tokens, self.grid, last=False)

    def finish(self) -> Tensor:
        """The features ``[C, length / frames_per_step]`` in the order of the view."""
        assert self.grid is not None
        assert self.expected == 0
        vit = self.backbone.vit
        if vit.placement == "inside":
            count = self.grid.time * self.grid.height * self.grid.width
            nothing = self.pooled[0][0].new_empty(0, count, vit.dim)
            self._run_blocks(nothing, self.grid, last=True)
        features, *pooled = (torch.cat(parts) for parts in zip(*self.pooled, strict=True))
        if self.reverse:
            features, *pooled = (part.flip(0) for part in (features, *pooled))
        grid = self.grid._replace(clips=len(features))
        tokens = add_adapters(features, vit.side_adapters, pooled, grid)
        result: Tensor = self.backbone.features(tokens, grid.clips)[0]
        return result

    def _padded(self, frames: Tensor) -> Tensor:
        parts = [frames] if self.rest is None else [self.rest, frames]
        padding = (self.length - self.frames, -1, -1, -1)
        if self.reverse and self.expected == self.frames:
            parts = [frames[:1].expand(padding), *parts]
        self.expected -= len(frames)
        if not self.reverse and self.expected == 0:
            parts = [*parts, frames[-1:].expand(padding)]
        return torch.cat(parts)

    def _run_blocks(self, tokens: Tensor, grid: TokenGrid, *, last: bool) -> None:
        vit = self.backbone.vit
        if vit.placement == "beside":
            self.pooled.append(vit.encode_beside(tokens, grid))
            return
        for stage in self.stages:
            tokens = stage.push(tokens, grid, last=last)
        self.pooled.append([pool_tokens(vit.finish(tokens), grid)])


class _Stage:
    """One block over clips that come in groups: it passes on those whose neighbours have come.

    Attention and MLP see each clip once; the adapters see clips at the borders again.
    """

    def __init__(self, block: nn.Module, *, reverse: bool) -> None:
        assert isinstance(block, Block)
        self.block, self.reverse = block, reverse
        self.adapters = block.adapters
        self.reach = 0  # how far the adapters see to either side, in tubelets
        for adapter in self.adapters:
            assert isinstance(adapter, TemporalAdapter)
            self.reach += adapter.depthwise.kernel_size[0] // 2
        self.kept: Tensor | None = None  # clips before their adapters, as neighbours of the next
        self.done = 0  # how many of these have been passed on

    def push(self, clips: Tensor, grid: TokenGrid, *, last: bool) -> Tensor:
        """Tokens of the next clips ``[n, t*h*w, C]`` -> those of the finished ones."""
        if len(clips):
            clips = self.block.run_chunks(clips)
        if not self.adapters:
            return clips
        reach = -(-self.reach // grid.time)  # in clips
        if self.kept is not None:
            clips = torch.cat((self.kept, clips))
        first = self.done
        stop = len(clips) if last else max(self.done, len(clips) - reach)
        before = max(0, stop - reach)
        self.kept = clips[before:].clone()
        self.done = stop - before
        if first == stop:
            return clips[:0]
        played = clips.flip(0) if self.reverse else clips
        grid = grid._replace(clips=len(clips))
        for adapter in self.adapters:
            played = adapter(played, grid)
        return (played.flip(0) if self.reverse else played)[first:stop]


def predict_videos(
    network: Network, windows: TestWindows, ranks: Ranks, description: str
) -> Iterator[WindowOutputs]:
    """The predictions for all windows of this process's videos.

    The backbones of the network are independent (not experiment 2x).
    """
    config, grids = windows.config, windows.grids
    mine = set(deal({name: grid.steps for name, grid in grids.items()}, ranks.world)[ranks.rank])
    chunks = []
    for name in grids:
        if name in mine:
            chunks += [(windows.videos[name], chunk) for chunk in _chunks(grids[name], config)]
    on_features = network.without_backbones().eval()
    # Without batches, the loader's processes call ``collate_fn`` on each item.
    loader = windows.readers.loader(chunks, batch_size=None, collate_fn=windows.read)
    samples = track(loader, description, len(chunks), show=ranks.is_main)
    for name, of_video in groupby(samples, lambda sample: sample.video):
        features = _features(network.detectors, of_video, grids[name], config, ranks.device)
        if isinstance(features, ReadFailure):
            windows.unread[name] = features.reason
            continue
        of_windows = [grid for video, grid in windows.windows if video.name == name]
        for i in range(0, len(of_windows), config.test.batch):
            batch = of_windows[i : i + config.test.batch]
            predictions = _predict(on_features, features, batch, grids[name], config)
            yield WindowOutputs([name] * len(batch), batch, predictions)


def _chunks(video_grid: Grid, config: Config) -> list[Grid]:
    frames = max(CHUNK_FRAMES, config.test.batch * config.window.steps * config.window.frames_per_step)
    steps = frames // CLIP_FRAMES * config.clip_steps
    starts = range(0, video_grid.steps, steps)
    return [video_grid.window(start, min(steps, video_grid.steps - start)) for start in starts]


def _features(
    detectors: Sequence[Detector],
    samples: Iterable[Sample | ReadFailure],
    video_grid: Grid,
    config: Config,
    device: torch.device,
) -> list[Tensor] | ReadFailure:
    """Each network's features ``[C, T]`` of a video, in the order of its view."""
    per_step = config.window.frames_per_step
    frames = per_step * video_grid.steps
    length = per_step * _padded_steps(video_grid.steps, config)
    streams = []
    for detector, view in zip(detectors, config.views, strict=True):
        assert detector.backbone is not None  # checked by the configuration
        reverse = view == "reverse"
        streams.append(FeatureStream(detector.backbone, frames=frames, length=length, reverse=reverse))
    for sample in samples:
        if isinstance(sample, ReadFailure):
            return sample
        # Chunks must be in forward order, also for a single network in reverse.
        forward = sample.reversed() if sample.view == "reverse" else sample
        content = forward.content.to(device)
        second = content if forward.reversed_copy is None else forward.reversed_copy.to(device)
        if config.views[1:] == ("flipped",):
            second = content.flip(2)
        for stream, chunk in zip(streams, (content, second), strict=False):
            stream.push(chunk)
    return [stream.finish() for stream in streams]


def _predict(
    network: Network, features: Sequence[Tensor], grids: Sequence[Grid], video_grid: Grid, config: Config
) -> tuple[Prediction, ...]:
    length = _padded_steps(grids[0].steps, config)
    inputs = []
    for view, rows in zip(config.views, features, strict=True):
        offsets = [grid.first_frame - video_grid.first_frame for grid in grids]
        starts = [round(offset / video_grid.stride_frames) for offset in offsets]
        if view == "reverse":
            starts = [video_grid.steps - start - grid.steps for start, grid in zip(starts, grids, strict=True)]
        inputs.append(torch.stack([rows[:, start : start + length] for start in starts]))
    steps = torch.tensor([grid.steps for grid in grids], device=inputs[0].device)
    mask = torch.arange(length, device=steps.device) < steps[:, None]
    output: Output = network(inputs, mask)
    return output.predictions


def _padded_steps(steps: int, config: Config) -> int:
    return max(config.window.steps, -(-steps // config.clip_steps) * config.clip_steps)
