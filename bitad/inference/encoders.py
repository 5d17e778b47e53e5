"""What makes features of a video's frames: a VideoMAE over sliding clips, or a trained run's backbone over windows.

Both lie on the forward clock. For reverse playback the frames of each clip or window are turned round before the
network sees them, which is not turning its features round: what it makes of a door that opens is not what it makes of
one that closes. Row i is about the same frames in either direction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitad.config.names import SIZES, VitSize
from bitad.config.schema import CLIP_FRAMES, Config
from bitad.data.windows import sliding_windows
from bitad.models.backbone import VideoBackbone
from bitad.models.vit import Block, VisionTransformer, sinusoid_table
from bitad.timeline import Direction, Grid
from bitad.weights.checkpoint import Checkpoint, load_checkpoint, open_checkpoint
from bitad.weights.files import weights_path
from bitad.weights.loading import Weights, load_weights
from bitad.weights.sizes import TransformerSize

# Of a backbone file's clips and pictures, if nothing else is asked for.
CLIP_STRIDE, PIXELS = 4, 224


@dataclass(frozen=True)
class Piece:
    """A part of a video that goes through the network at once.

    Args:
        frames: int64 ``[n]``, those to be read, ascending.
        first, stop: the video's rows of features that come of it: from ``first`` to before ``stop``.
    """

    frames: NDArray[np.int64]
    first: int
    stop: int


class Encoder(ABC):
    """Frames of a video -> rows of features.

    Args:
        backbones: for each playing direction that there are features of, what makes them.
        stride_frames: video frames from one row to the next.
        pixels: height and width of the pictures; a multiple of the patch.
        file: of the weights.
    """

    offset_frames: float  # frame at the centre of row 0
    window_steps: int | None = None
    window_overlap: float | None = None

    def __init__(
        self, backbones: Mapping[Direction, VideoBackbone], *, stride_frames: int, pixels: int, file: Path
    ) -> None:
        self.backbones, self.stride_frames, self.pixels, self.file = dict(backbones), stride_frames, pixels, file
        self.vit = next(iter(self.backbones.values())).vit
        if stride_frames < 1:
            raise ValueError(f"a stride of {stride_frames} frames; it must be at least 1")
        if pixels < 1 or pixels % self.vit.patch_size:
            raise ValueError(f"{pixels} pixels are not a multiple of the backbone's patch of {self.vit.patch_size}")

    @property
    def direction(self) -> Direction:
        """The playing direction that the network is meant for."""
        return next(iter(self.backbones))

    @property
    def model(self) -> str:
        """The backbone's size: a published one's name, or ``WIDTHxDEPTH``."""
        block = self.vit.blocks[0]
        assert isinstance(block, Block)
        mlp_dim = block.mlp[0].out_features
        assert isinstance(mlp_dim, int)
        mine = VitSize(self.vit.dim, len(self.vit.blocks), block.attn.heads, mlp_dim, self.vit.patch_size)
        return next((name for name, size in SIZES.items() if size == mine), f"{mine.dim}x{mine.depth}")

    def to(self, device: torch.device) -> None:
        """Moves the networks, in evaluation mode."""
        for backbone in self.backbones.values():
            backbone.eval().to(device)

    @abstractmethod
    def steps(self, frames: int) -> int:
        """Rows of a video of so many frames."""

    @abstractmethod
    def pieces(self, frames: int) -> Iterator[Piece]:
        """A video of so many frames in parts, in order; what one shares with the next is to be read once."""

    @abstractmethod
    def encode(self, pictures: Tensor, piece: Piece, direction: Direction) -> Tensor:
        """The rows ``[stop - first, C]`` of a piece, single precision, in forward order whatever the direction.

        Args:
            pictures: uint8 ``[n, H, W, 3]``, of ``piece.frames``.
        """


class ClipEncoder(Encoder):
    """Sliding clips: row i is of frames ``stride * i`` to ``stride * i + 15``, its tokens averaged over space and time.

    Every clip lies in the video whole, so the last one ends up to a stride before the video's end; a video shorter than
    a clip gives one row, its last frame (in reverse: the first) repeated. The tokens are what the last block gives: the
    norm of a published classifier (``fc_norm``) is not applied, here as in the detector.

    Args:
        clips: that go through the network at once.
    """

    def __init__(self, backbone: VideoBackbone, *, stride_frames: int, pixels: int, file: Path, clips: int = 8) -> None:
        both: dict[Direction, VideoBackbone] = {"forward": backbone, "reverse": backbone}
        super().__init__(both, stride_frames=stride_frames, pixels=pixels, file=file)
        if clips < 1:
            raise ValueError(f"a batch of {clips} clips; it must be at least 1")
        self.clips, self.clip_frames = clips, backbone.vit.clip_frames
        self.offset_frames = (self.clip_frames - 1) / 2

    def steps(self, frames: int) -> int:
        return max(0, frames - self.clip_frames) // self.stride_frames + 1

    def pieces(self, frames: int) -> Iterator[Piece]:
        within, steps = np.arange(min(frames, self.clip_frames)), self.steps(frames)
        for first in range(0, steps, self.clips):
            stop = min(first + self.clips, steps)
            clips = self.stride_frames * np.arange(first, stop)[:, None] + within  # [N, 16]
            yield Piece(np.unique(clips), first, stop)

    def encode(self, pictures: Tensor, piece: Piece, direction: Direction) -> Tensor:
        played = _played(min(len(piece.frames), self.clip_frames), self.clip_frames, direction)
        clips = self.stride_frames * np.arange(piece.first, piece.stop)[:, None] + played  # frames [N, 16]
        backbone = self.backbones[direction]
        inputs, _ = backbone.clips(pictures[np.searchsorted(piece.frames, clips)])  # each clip a window of its own
        tokens: Tensor = backbone.vit(inputs, 1)  # [N, t, h, w, C]
        return tokens.mean((1, 2, 3), dtype=torch.float32)


class WindowEncoder(Encoder):
    """What a run's pyramid stands on, ``[T, C]``: row i is of the grid step at frame ``stride * i``, in a window.

    Adapters look along a whole window, so a row depends on where its window lies. Windows lie as in testing: they
    overlap, and the last one ends where the video ends. Each row is taken from the window in whose middle it lies
    nearest, the earlier one of two equally near. A video shorter than a window is padded by its last frame (in reverse:
    the first), as in training.

    Args:
        steps: T, rows of a window.
        overlap: share of a window that the next one shares.
    """

    offset_frames = 0.0

    def __init__(
        self,
        backbones: Mapping[Direction, VideoBackbone],
        *,
        steps: int,
        overlap: float,
        stride_frames: int,
        pixels: int,
        file: Path,
    ) -> None:
        super().__init__(backbones, stride_frames=stride_frames, pixels=pixels, file=file)
        self.window_steps: int = steps
        self.window_overlap: float = overlap
        self.frames_per_step = next(iter(self.backbones.values())).frames_per_step
        if stride_frames % self.frames_per_step:
            step = f"the run's {self.frames_per_step} frames a step"
            raise ValueError(f"a stride of {stride_frames} frames is not a multiple of {step}")

    def steps(self, frames: int) -> int:
        return -(-frames // self.stride_frames)

    def pieces(self, frames: int) -> Iterator[Piece]:
        total = self.steps(frames)
        windows = sliding_windows(total, self.window_steps, self.window_overlap)
        starts = [start for start, _ in windows]
        # A window's middle is at start + (T - 1) / 2; half-way between two middles the earlier window ends.
        ends = [(a + b + self.window_steps + 1) // 2 for a, b in pairwise(starts)]
        for (start, steps), first, stop in zip(windows, [0, *ends], [*ends, total], strict=True):
            seen = Grid(1.0, self.stride_frames, self.stride_frames * start, steps).frames(self.frames_per_step)
            yield Piece(seen.clip(max=frames - 1), first, stop)  # of the last step there may be less

    def encode(self, pictures: Tensor, piece: Piece, direction: Direction) -> Tensor:
        real, length = len(pictures), self.window_steps * self.frames_per_step
        inputs = pictures[_played(real, length, direction)]  # [T * k, H, W, 3]
        features: Tensor = self.backbones[direction](inputs[None])[0, :, : real // self.frames_per_step]  # [C, V]
        if direction == "reverse":
            features = features.flip(1)
        start = int(piece.frames[0]) // self.stride_frames
        return features[:, piece.first - start : piece.stop - start].T.float()


def _played(real: int, length: int, direction: Direction) -> NDArray[np.int64]:
    """The order in which ``real`` frames are played, ``[length]``; the last one played is repeated to the end."""
    order = np.minimum(np.arange(length), real - 1)
    return order if direction == "forward" else real - 1 - order


def load_encoder(
    path: Path,
    *,
    config: Config | None = None,
    stride_frames: int | None = None,
    clip_frames: int | None = None,
    pixels: int | None = None,
    clips: int = 8,
) -> Encoder:
    """What a file of weights makes features with.

    Args:
        path: a VideoMAE file of any known project (``package:NAME``: one of ours), for sliding clips; or a run or
            checkpoint of ours, or with a configuration another project's detector, for windows of its own length.
        config: of a detector that brings none.
        stride_frames: from one row to the next; None: 4, or the run's.
        clip_frames: of a backbone file's clips; None: 16.
        pixels: of the pictures; None: 224, or the run's.
        clips: of a backbone file, that go through the network at once.

    Raises:
        FileNotFoundError: no such file, or a run without checkpoints.
        ValueError: not weights with a backbone, or settings that do not fit it.
    """
    file = weights_path(path)
    found = open_checkpoint(file)
    if isinstance(found, Weights) and found.format.kind == "backbone":
        if config is not None:
            raise ValueError(f"{path} is a backbone's file, which needs no configuration; leave out --config")
        return ClipEncoder(
            _backbone(found.tensors, file, CLIP_FRAMES if clip_frames is None else clip_frames),
            stride_frames=CLIP_STRIDE if stride_frames is None else stride_frames,
            pixels=PIXELS if pixels is None else pixels,
            file=file,
            clips=clips,
        )
    run = found if isinstance(found, Checkpoint) and config is None else load_checkpoint(file, config)
    if clip_frames not in (None, CLIP_FRAMES):
        raise ValueError(f"{path} sees windows of {run.config.window.steps} steps, not clips of {clip_frames} frames")
    return _of_run(run, stride_frames, pixels)


def _of_run(run: Checkpoint, stride_frames: int | None, pixels: int | None) -> WindowEncoder:
    model, window = run.config.model.backbone, run.config.window
    if model is None:
        raise ValueError(f"{run.source} is a detector on features, without a backbone; give one on videos")
    if window.layout != "sliding":
        raise ValueError(
            f"{run.source} looks at videos by window.layout={window.layout}; features are computed in sliding "
            "windows of one stride: give a run that was trained so"
        )
    return WindowEncoder(
        _backbones(run),
        steps=window.steps,
        overlap=window.overlap,
        stride_frames=window.stride_frames if stride_frames is None else stride_frames,
        pixels=model.pixels if pixels is None else pixels,
        file=Path(run.source),
    )


def _backbones(run: Checkpoint) -> dict[Direction, VideoBackbone]:
    """The backbone for each playing direction: that of a single network for both, its own direction first."""
    if run.config.design.adds == "cross-adapter":
        raise ValueError(f"{run.source}: in experiment {run.config.experiment} neither backbone works alone")
    views, detectors = run.config.views, run.network().detectors
    if len(views) == 1:
        views, detectors = (*views, "forward", "reverse"), detectors * 3
    found: dict[Direction, VideoBackbone] = {}
    for view, detector in zip(views, detectors, strict=True):
        assert detector.backbone is not None  # the configuration has one
        found.setdefault(view, detector.backbone)  # of two forward ones the first
    return found


def _backbone(weights: Mapping[str, Tensor], file: Path, clip_frames: int) -> VideoBackbone:
    """A transformer without adapters; its size is seen from the weights."""
    size = TransformerSize.of(weights)
    if size is None:
        raise ValueError(f"{file}: no transformer of VideoMAE in it")
    if size.adapters:
        raise ValueError(f"{file} has adapters, but not the windows they look along; give the whole detector or run")
    if size.heads is None:
        raise ValueError(f"{file} holds {size}, of unknown attention heads; known are {', '.join(SIZES)}")
    tubelet, table = weights["patch_embed.weight"].shape[2], weights.get("pos_embed")
    if clip_frames < 1 or clip_frames % tubelet:
        raise ValueError(f"clips of {clip_frames} frames; the backbone takes a multiple of {tubelet}")
    if table is not None and clip_frames != CLIP_FRAMES:
        # VideoMAE's own table is a sinusoid along all tokens, frame after frame: it goes on, or ends earlier.
        if not torch.allclose(table, sinusoid_table(table.shape[1], size.dim), atol=1e-3):
            raise ValueError(f"{file}: its position table is learnt, for clips of {CLIP_FRAMES} frames only")
        weights = {name: weight for name, weight in weights.items() if name != "pos_embed"}
    vit = VisionTransformer(
        dim=size.dim,
        depth=size.depth,
        heads=size.heads,
        mlp_dim=size.mlp_dim,
        patch_size=size.patch_size,
        image_size=PIXELS if size.table_pixels is None else size.table_pixels,
        clip_frames=clip_frames,
        tubelet=tubelet,
    )
    load_weights(vit, weights, source=str(file), may_lack=r"^pos_embed$")
    return VideoBackbone(vit)
