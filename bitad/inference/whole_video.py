"""Runs the backbone once over a whole video, and pyramid and head in windows: ``test.backbone=video``.

Sliding windows that overlap by half show the backbone, which costs nearly everything, each frame twice. Here it runs
once over each video, as over one window as long as the video, and the windows are cut out of its features. So adapters
see across the borders of windows, which they did not in training: that is the difference to ``test.backbone=window``. A
video that fits one window shows none: it is padded in the same way, to the length of a window by its last frame (in
reverse: the first). A longer one is padded to whole clips.

A video comes in pieces, each frame decoded once, also for two networks and in either direction. Each block of the
transformer works as far as it can see: a clip's tokens leave it when those of the next clip have come. Between pieces a
few clips a block are kept, and the finished features: memory is bounded by a piece, except for the features (384
numbers a step with VideoMAE-S, 7 MB in ten minutes of video at 7.5 steps per second).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from bitad.config.schema import CLIP_FRAMES, Config
from bitad.data.dataset import ReadFailure, Sample, TestWindows
from bitad.inference.extract import deal
from bitad.models.adapters import Bottleneck
from bitad.models.backbone import VideoBackbone
from bitad.models.build import Network
from bitad.models.heads import Prediction
from bitad.models.network import Detector, Output
from bitad.models.vit import Block, TokenGrid
from bitad.runtime.distributed import Ranks
from bitad.runtime.log import log
from bitad.runtime.progress import track
from bitad.runtime.signals import ignore_signals
from bitad.timeline import Grid


def read_ahead(items: Dataset[Any], workers: int, **how: Any) -> DataLoader[Any]:
    """A loader of a data set to test on, in its order.

    Args:
        workers: processes that read; 0: this one.
        how: batches are made, as PyTorch's loader takes it.
    """
    return DataLoader(
        items,
        num_workers=workers,
        worker_init_fn=ignore_signals,
        generator=torch.Generator(),  # so that testing draws none of the training's random numbers
        **how,
    )


def log_read_failures(reasons: Mapping[str, str], videos: int, what: str, ranks: Ranks) -> None:
    """Log which videos could not be read.

    Args:
        reasons: by name.
        videos: how many there are.

    Raises:
        ValueError: none of them could.
    """
    if reasons and len(reasons) == videos:
        name, reason = next(iter(reasons.items()))
        raise ValueError(f"{what}: none of the {videos} videos can be read; {name}: {reason}")
    if reasons and ranks.is_main:
        log.warning(
            "%s: %d of %d videos could not be read; what happens in them counts as not found",
            what,
            len(reasons),
            videos,
        )
        for name, reason in sorted(reasons.items()):
            log.warning("%s: %s", name, reason)


# A piece is as long as the windows of a batch, so memory is as in windows, but not shorter than AdaTAD's window: at the
# borders of pieces some work is done twice.
PIECE_FRAMES = 768


class WindowOutputs(NamedTuple):
    """What a network or a pair says about some windows.

    Args:
        videos, grids: per window.
        predictions: of each network.
        repeated: number of damaged frames read for them in whose place another one stands.
    """

    videos: list[str]
    grids: list[Grid]
    predictions: tuple[Prediction, ...]
    repeated: int


class FeatureStream:
    """One playing direction of a video through a backbone, its frames coming piece by piece in forward order.

    The features are those of ``backbone(view[None])``, the view being all frames in the order in which they are played,
    then the last one repeated; to rounding, whatever the pieces.

    Args:
        backbone: in evaluation mode.
        frames: how many will come.
        length: to which the view is padded, in frames; a multiple of the transformer's clip.
        backwards: whether the frames are played newest first.
    """

    def __init__(self, backbone: VideoBackbone, *, frames: int, length: int, backwards: bool = False) -> None:
        self.backbone, self.backwards = backbone, backwards
        self.frames, self.length, self.to_come = frames, length, frames
        self.rest: Tensor | None = None  # frames that make no clip yet
        self.grid: TokenGrid | None = None
        self.stages = [_Stage(block, backwards=backwards) for block in backbone.vit.blocks]
        self.pooled: list[Tensor] = []  # [n, t, C] each, clips as they come

    def push(self, frames: Tensor) -> None:
        """Takes in the next frames, uint8 ``[n, H, W, 3]``, on the backbone's device."""
        clips = self._padded(frames)
        count = len(clips) // self.backbone.vit.clip_frames
        clips, self.rest = clips.tensor_split([count * self.backbone.vit.clip_frames])
        self.rest = self.rest.clone()  # the rest of the piece need not be kept for it
        if count == 0:
            return
        if self.backwards:
            clips = clips.unflatten(0, (count, -1)).flip(1).flatten(0, 1)  # each one as it is played
        tokens, self.grid = self.backbone.vit.begin(self.backbone.clips(clips[None])[0], count)
        self._through_blocks(tokens, self.grid, last=False)

    def finish(self) -> Tensor:
        """The features ``[C, length / frames_per_step]`` in the order of the view, all frames having come."""
        assert self.grid is not None
        assert self.to_come == 0
        tokens = self.grid.time * self.grid.height * self.grid.width
        nothing = self.pooled[0].new_empty(0, tokens, self.backbone.vit.dim)
        self._through_blocks(nothing, self.grid, last=True)
        pooled = torch.cat(self.pooled)
        pooled = pooled.flip(0) if self.backwards else pooled
        features: Tensor = self.backbone.features(pooled[:, :, None, None], len(pooled))[0]
        return features

    def _padded(self, frames: Tensor) -> Tensor:
        """Frames with what is left of those before, and the view's padding where it lies: at its end."""
        parts = [frames] if self.rest is None else [self.rest, frames]
        padding = (self.length - self.frames, -1, -1, -1)
        if self.backwards and self.to_come == self.frames:
            parts = [frames[:1].expand(padding), *parts]
        self.to_come -= len(frames)
        if not self.backwards and self.to_come == 0:
            parts = [*parts, frames[-1:].expand(padding)]
        return torch.cat(parts)

    def _through_blocks(self, tokens: Tensor, grid: TokenGrid, *, last: bool) -> None:
        for stage in self.stages:
            tokens = stage.push(tokens, grid, last=last)
        self.pooled.append(tokens.unflatten(1, (grid.time, grid.height, grid.width)).mean((2, 3)))


class _Stage:
    """One block over clips that come some at a time: it hands on those whose surroundings have come on both sides.

    Attention and MLP keep to a clip, so they see each one once; the adapters, a twentieth of the block's cost, see the
    clips at the borders of pieces again.

    Args:
        block: of the transformer.
        backwards: the clips come in the opposite order of that in which they are played.
    """

    def __init__(self, block: nn.Module, *, backwards: bool) -> None:
        assert isinstance(block, Block)
        self.block, self.backwards = block, backwards
        self.adapters = [adapter for adapter in (block.adapter, block.bi_adapter) if adapter is not None]
        self.reach = sum(_reach(adapter) for adapter in self.adapters)  # in tubelets
        self.kept: Tensor | None = None  # clips before their adapters, which the next ones need beside them
        self.done = 0  # of these, how many have been handed on

    def push(self, clips: Tensor, grid: TokenGrid, *, last: bool) -> Tensor:
        """Tokens of the next clips ``[n, t*h*w, C]`` -> those of the clips that are finished, after the ``last`` all.

        Args:
            grid: how the tokens of a clip lie.
        """
        if len(clips):
            clips = self.block.run_chunks(clips)
        if not self.adapters:
            return clips
        reach = -(-self.reach // grid.time)  # in clips
        if self.kept is not None:
            clips = torch.cat((self.kept, clips))
        first, stop = self.done, len(clips) if last else max(self.done, len(clips) - reach)
        before = max(0, stop - reach)
        self.kept, self.done = clips[before:].clone(), stop - before
        if first == stop:
            return clips[:0]
        played, grid = clips.flip(0) if self.backwards else clips, grid._replace(clips=len(clips))
        for adapter in self.adapters:
            played = adapter(played, grid)
        return (played.flip(0) if self.backwards else played)[first:stop]


def _reach(adapter: nn.Module) -> int:
    """How far an adapter sees to either side, in tubelets."""
    assert isinstance(adapter, Bottleneck)
    return adapter.depthwise.kernel_size[0] // 2


class VideoPieces(Dataset[Sample | ReadFailure]):
    """Videos in pieces that lie end to end, one sample each.

    Args:
        windows: of the videos, and perhaps of others.
        names: which videos.
    """

    def __init__(self, windows: TestWindows, names: Collection[str]) -> None:
        self.windows = windows
        self.pieces = [
            (windows.videos[name], grid)
            for name, base in windows.bases.items()
            if name in names
            for grid in _pieces(base, windows.config)
        ]

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, item: int) -> Sample | ReadFailure:
        return self.windows.read(*self.pieces[item])


def _pieces(video_grid: Grid, config: Config) -> list[Grid]:
    frames = max(PIECE_FRAMES, config.test.batch * config.window.steps * config.window.frames_per_step)
    steps = frames // CLIP_FRAMES * config.clip_steps
    starts = range(0, video_grid.steps, steps)
    return [video_grid.window(start, min(steps, video_grid.steps - start)) for start in starts]


def see_videos(
    network: Network, windows: TestWindows, ranks: Ranks, *, what: str = "testing"
) -> Iterator[WindowOutputs]:
    """What a network or a pair says about all windows of this process' videos, which are dealt out by their length.

    Args:
        network: in evaluation mode, on the device of ``ranks``; with backbones that work alone (not experiment 2x).
        windows: of all videos; those of a video that cannot be read are left out, and it is added to its ``unread``.
        what: for the progress display.
    """
    config, bases = windows.config, windows.bases
    mine = set(deal({name: base.steps for name, base in bases.items()}, ranks.world)[ranks.rank])
    pieces = VideoPieces(windows, mine)
    on_features = network.without_backbones().eval()
    loader = read_ahead(pieces, windows.workers, batch_size=None)
    samples = track(loader, what, len(pieces), show=ranks.is_main)
    for name, of_video in groupby(samples, lambda sample: sample.video):
        found = _features(network.detectors, of_video, bases[name], config, ranks.device)
        if isinstance(found, ReadFailure):
            windows.unread[name] = found.reason
            continue
        features, repeated = found
        grids = [grid for video, grid in windows.windows if video.name == name]
        for i in range(0, len(grids), config.test.batch):
            batch = grids[i : i + config.test.batch]
            predictions = _predict(on_features, features, batch, bases[name], config)
            yield WindowOutputs([name] * len(batch), batch, predictions, 0 if i else repeated)


def _features(
    detectors: Sequence[Detector],
    samples: Iterable[Sample | ReadFailure],
    base: Grid,
    config: Config,
    device: torch.device,
) -> tuple[list[Tensor], int] | ReadFailure:
    """Each network's features ``[C, T]`` of a video that comes in pieces, in the order of its view; damaged frames."""
    per_step = config.window.frames_per_step
    streams = []
    for detector, view in zip(detectors, config.views, strict=True):
        assert detector.backbone is not None  # the configuration has one
        frames, length = per_step * base.steps, per_step * _padded(base.steps, config)
        streams.append(FeatureStream(detector.backbone, frames=frames, length=length, backwards=view == "reverse"))
    repeated = 0
    for sample in samples:
        if isinstance(sample, ReadFailure):
            return sample
        # A single network's reversed view is turned round again: pieces are wanted in forward order.
        forward = sample if sample.view == "forward" else sample.reversed()
        shown = forward.content.to(device)
        second = shown if forward.reversed_copy is None else forward.reversed_copy.to(device)
        for stream, pictures in zip(streams, (shown, second), strict=False):
            stream.push(pictures)
        repeated += sample.repeated
    return [stream.finish() for stream in streams], repeated


def _predict(
    network: Network, features: Sequence[Tensor], grids: Sequence[Grid], base: Grid, config: Config
) -> tuple[Prediction, ...]:
    """What each network says about a batch of windows of a video, by the video's features in each view."""
    length = _padded(grids[0].steps, config)
    inputs = []
    for view, rows in zip(config.views, features, strict=True):
        starts = [round((grid.first_frame - base.first_frame) / base.stride_frames) for grid in grids]
        if view == "reverse":
            starts = [base.steps - start - grid.steps for start, grid in zip(starts, grids, strict=True)]
        inputs.append(torch.stack([rows[:, start : start + length] for start in starts]))
    steps = torch.tensor([grid.steps for grid in grids], device=inputs[0].device)
    mask = torch.arange(length, device=steps.device) < steps[:, None]
    output: Output = network(inputs, mask)
    return output.predictions


def _padded(steps: int, config: Config) -> int:
    """The grid steps to which a window is padded, or a video as one window."""
    return max(config.window.steps, -(-steps // config.clip_steps) * config.clip_steps)
