"""Encoders of frames to features: a VideoMAE over sliding clips, or a run's backbone over windows.

Rows are in forward order in both directions. For reverse playback the frames of each clip or window are reversed
before the network, which is not the same as to reverse its features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitad.config.names import SIZES, FeaturePrecision, VitSize
from bitad.config.schema import CLIP_FRAMES, Config
from bitad.data.dataset import sliding_windows
from bitad.data.feature_folder import FeatureSettings, Stored
from bitad.data.transforms import apply_crop, centre_crop
from bitad.models.backbone import VideoBackbone
from bitad.models.vit import Block, VisionTransformer, sinusoid_table
from bitad.runtime.signatures import sha256_of
from bitad.timeline import Direction, Grid
from bitad.video.reader import VideoReader
from bitad.weights.checkpoint import Checkpoint, load_checkpoint, open_checkpoint
from bitad.weights.files import weights_path
from bitad.weights.formats import TransformerSize, is_vjepa2
from bitad.weights.loading import Weights, load_weights

# Defaults for the clips of a backbone file.
CLIP_STRIDE, PIXELS = 4, 224


@dataclass(frozen=True)
class Chunk:
    """A part of a video that goes through the network at once."""

    frames: NDArray[np.int64]  # [n], to read, ascending
    first: int  # row of features
    stop: int


class Encoder(ABC):
    """Frames of a video -> rows of features, one every ``stride_frames`` frames.

    Attributes:
        offset_frames: the frame at the centre of row 0.
        directions: playing directions that it has a network for; the first is the default.
        source: the weights, as messages name them.
    """

    offset_frames: float
    stride_frames: int
    directions: tuple[Direction, ...]
    source: str

    @abstractmethod
    def to(self, device: torch.device) -> None:
        """Move the networks, to evaluate them there."""

    @abstractmethod
    def steps(self, frames: int) -> int:
        """The number of rows of a video."""

    @abstractmethod
    def chunks(self, frames: int) -> Iterator[Chunk]:
        """The chunks of a video, in order."""

    @abstractmethod
    def pictures(self, reader: VideoReader, chunks: Sequence[Chunk]) -> Iterator[Tensor]:
        """What :meth:`encode` takes of each chunk's frames ``[n, ...]``, in order; called in a thread."""

    @abstractmethod
    def encode(self, pictures: Tensor, chunk: Chunk, direction: Direction) -> Tensor:
        """The rows ``[stop - first, C]`` of a chunk, single precision, in forward order.

        ``pictures`` are those of ``chunk.frames``, on the device of the networks.
        """

    @abstractmethod
    def settings(self, direction: Direction, precision: FeaturePrecision, stored: Stored) -> FeatureSettings:
        """What ``features.json`` says of the rows."""


class BackboneEncoder(Encoder):
    """An encoder with a VideoMAE for each direction; its pictures are uint8 ``[n, pixels, pixels, 3]``."""

    window_steps: int | None = None
    window_overlap: float | None = None

    def __init__(
        self, backbones: Mapping[Direction, VideoBackbone], *, stride_frames: int, pixels: int, file: Path
    ) -> None:
        self.backbones = dict(backbones)
        self.directions = tuple(self.backbones)
        self.stride_frames = stride_frames
        self.pixels = pixels
        self.file = file
        self.source = str(file)
        self.vit = next(iter(self.backbones.values())).vit
        if stride_frames < 1:
            raise ValueError(f"a stride of {stride_frames} frames; it must be at least 1")
        if pixels < 1 or pixels % self.vit.patch_size:
            raise ValueError(
                f"{pixels} pixels are not a multiple of the backbone's patch of {self.vit.patch_size}"
            )

    @property
    def model(self) -> str:
        """The backbone's size: the name of a published one, or ``WIDTHxDEPTH``."""
        block = self.vit.blocks[0]
        assert isinstance(block, Block)
        mlp_dim, heads = block.mlp[0].out_features, block.attn.heads
        assert isinstance(mlp_dim, int)
        assert isinstance(heads, int)
        own = VitSize(self.vit.dim, len(self.vit.blocks), heads, mlp_dim, self.vit.patch_size)
        return next((name for name, size in SIZES.items() if size == own), f"{own.dim}x{own.depth}")

    @cached_property
    def sha256(self) -> str:
        return sha256_of(self.file)

    def to(self, device: torch.device) -> None:
        for backbone in self.backbones.values():
            backbone.eval().to(device)

    def pictures(self, reader: VideoReader, chunks: Sequence[Chunk]) -> Iterator[Tensor]:
        """The middle squares of each chunk's frames."""
        wanted = (reader.index.nearest(chunk.frames) for chunk in chunks)
        for frames in reader.read_windows(wanted, short_side=self.pixels):
            yield apply_crop(frames, centre_crop(*frames.shape[1:3]), self.pixels)

    def settings(self, direction: Direction, precision: FeaturePrecision, stored: Stored) -> FeatureSettings:
        run = f"{self.file.parent.name}/" if self.window_steps is not None else ""
        return FeatureSettings(
            feature_stride_frames=self.stride_frames,
            feature_offset_frames=self.offset_frames,
            feature_channels=self.vit.dim,
            direction=direction,
            model=self.model,
            clip_frames=self.vit.clip_frames,
            window_steps=self.window_steps,
            window_overlap=self.window_overlap,
            pixels=self.pixels,
            precision=precision,
            stored=stored,
            checkpoint=f"{run}{self.file.name}",
            checkpoint_sha256=self.sha256,
        )


class ClipEncoder(BackboneEncoder):
    """Sliding clips: row i averages the tokens of frames ``stride * i`` to ``stride * i + 15``.

    No clip goes beyond the video. A shorter video gives one row, with its last frame (in reverse: the first) repeated.
    As in the detector, the norm of a published classifier (``fc_norm``) is not applied.
    """

    def __init__(
        self, backbone: VideoBackbone, *, stride_frames: int, pixels: int, file: Path, clips: int = 8
    ) -> None:
        both: dict[Direction, VideoBackbone] = {"forward": backbone, "reverse": backbone}
        super().__init__(both, stride_frames=stride_frames, pixels=pixels, file=file)
        if clips < 1:
            raise ValueError(f"a batch of {clips} clips; it must be at least 1")
        self.clips = clips
        self.clip_frames = backbone.vit.clip_frames
        self.offset_frames = (self.clip_frames - 1) / 2

    def steps(self, frames: int) -> int:
        return max(0, frames - self.clip_frames) // self.stride_frames + 1

    def chunks(self, frames: int) -> Iterator[Chunk]:
        within, steps = np.arange(min(frames, self.clip_frames)), self.steps(frames)
        for first in range(0, steps, self.clips):
            stop = min(first + self.clips, steps)
            clips = self.stride_frames * np.arange(first, stop)[:, None] + within  # [N, 16]
            yield Chunk(np.unique(clips), first, stop)

    def encode(self, pictures: Tensor, chunk: Chunk, direction: Direction) -> Tensor:
        played = playing_order(min(len(chunk.frames), self.clip_frames), self.clip_frames, direction)
        clips = self.stride_frames * np.arange(chunk.first, chunk.stop)[:, None] + played  # frames [N, 16]
        backbone = self.backbones[direction]
        windows = pictures[np.searchsorted(chunk.frames, clips)]  # of one clip each
        tokens: Tensor = backbone.vit.encode(*backbone.begin(windows))  # [N, t, h, w, C]
        return tokens.mean((1, 2, 3), dtype=torch.float32)


class WindowEncoder(BackboneEncoder):
    """The input of a run's pyramid, ``[T, C]``: row i is the grid step at frame ``stride * i``, in a window.

    Adapters look along a whole window, so each row comes from the window of testing with the nearest middle, of two
    the earlier one. A shorter video is padded with its last frame (in reverse: the first).
    """

    offset_frames = 0.0
    window_steps: int
    window_overlap: float

    def __init__(self, run: Checkpoint, stride_frames: int | None = None, pixels: int | None = None) -> None:
        model = run.config.model.backbone
        window = run.config.window
        if model is None:
            raise ValueError(f"{run.source} is a detector on features, without a backbone; give one on videos")
        if window.layout != "sliding":
            raise ValueError(
                f"{run.source} has window.layout={window.layout}; give a run with window.layout=sliding"
            )
        if stride_frames is None:
            if window.steps_per_second is not None:
                raise ValueError(
                    f"{run.source} takes {window.steps_per_second:g} grid steps a second of any video, and features "
                    "have one stride; give --stride FRAMES, for the frame rate of these videos"
                )
            stride_frames = window.stride_frames
        pixels = model.pixels if pixels is None else pixels
        super().__init__(_backbones(run), stride_frames=stride_frames, pixels=pixels, file=Path(run.source))
        self.flips = run.config.views == ("flipped",)
        self.window_steps = window.steps
        self.window_overlap = window.overlap
        self.frames_per_step = window.frames_per_step
        if stride_frames % self.frames_per_step:
            step = f"the run's {self.frames_per_step} frames a step"
            raise ValueError(f"a stride of {stride_frames} frames is not a multiple of {step}")

    def steps(self, frames: int) -> int:
        return -(-frames // self.stride_frames)

    def chunks(self, frames: int) -> Iterator[Chunk]:
        total = self.steps(frames)
        windows = sliding_windows(total, self.window_steps, self.window_overlap)
        starts = [start for start, _ in windows]
        # A window's middle is start + (T - 1) / 2; the earlier window is used up to half-way between two middles.
        ends = [(a + b + self.window_steps + 1) // 2 for a, b in pairwise(starts)]
        for (start, steps), first, stop in zip(windows, [0, *ends], [*ends, total], strict=True):
            seen = Grid(1.0, self.stride_frames, self.stride_frames * start, steps).frames(self.frames_per_step)
            yield Chunk(seen.clip(max=frames - 1), first, stop)  # the last step may have less

    def encode(self, pictures: Tensor, chunk: Chunk, direction: Direction) -> Tensor:
        real = len(pictures)
        length = self.window_steps * self.frames_per_step
        inputs = pictures[playing_order(real, length, direction)]  # [T * k, H, W, 3]
        if self.flips:
            inputs = inputs.flip(2)
        features: Tensor = self.backbones[direction](inputs[None])[0, :, : real // self.frames_per_step]  # [C, V]
        if direction == "reverse":
            features = features.flip(1)
        start = int(chunk.frames[0]) // self.stride_frames
        return features[:, chunk.first - start : chunk.stop - start].T.float()


def playing_order(real: int, length: int, direction: Direction) -> NDArray[np.int64]:
    """The order ``[length]`` in which frames are played; the last one played is repeated."""
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
) -> BackboneEncoder:
    """The encoder of a file of weights; None stands for the defaults, or a run's own settings.

    Args:
        path: for sliding clips a VideoMAE file of any known project (``package:NAME``: one of BiTAD's); for windows a
            run or checkpoint, or with a configuration another project's detector.
        clips: of a backbone file, how many go through the network at once.
    """
    file = weights_path(path)
    found = open_checkpoint(file)
    if isinstance(found, Weights) and found.format.kind == "backbone":
        if is_vjepa2(found.tensors):
            raise ValueError(f"{path} is V-JEPA 2; give the folder of the file with --encoder, not --checkpoint")
        if config is not None:
            raise ValueError(f"{path} is a backbone, which needs no configuration; leave out --config")
        return ClipEncoder(
            _backbone(found.tensors, file, CLIP_FRAMES if clip_frames is None else clip_frames),
            stride_frames=CLIP_STRIDE if stride_frames is None else stride_frames,
            pixels=PIXELS if pixels is None else pixels,
            file=file,
            clips=clips,
        )
    run = found if isinstance(found, Checkpoint) and config is None else load_checkpoint(file, config)
    if clip_frames not in (None, CLIP_FRAMES):
        raise ValueError(
            f"{path} sees windows of {run.config.window.steps} steps, not clips of {clip_frames} frames"
        )
    return WindowEncoder(run, stride_frames, pixels)


def _backbones(run: Checkpoint) -> dict[Direction, VideoBackbone]:
    if run.config.design.adds == "cross-adapter":
        raise ValueError(f"{run.source}: in experiment {run.config.experiment} neither backbone works alone")
    directions: list[Direction] = ["reverse" if view == "reverse" else "forward" for view in run.config.views]
    detectors = run.network().detectors
    if len(directions) == 1:
        directions += ["forward", "reverse"]
        detectors = detectors * 3
    found: dict[Direction, VideoBackbone] = {}
    for direction, detector in zip(directions, detectors, strict=True):
        assert detector.backbone is not None  # the configuration has one
        found.setdefault(direction, detector.backbone)  # the first of two forward ones
    return found


def _backbone(weights: Mapping[str, Tensor], file: Path, clip_frames: int) -> VideoBackbone:
    size = TransformerSize.of(weights)
    if size is None:
        raise ValueError(f"{file}: no transformer of VideoMAE in it")
    if size.first_adapter is not None:
        raise ValueError(f"{file} has adapters, but not the length of their windows; give the detector or run")
    if size.name is None:
        raise ValueError(f"{file} holds {size}, with unknown attention heads; known sizes are {', '.join(SIZES)}")
    tubelet = weights["patch_embed.weight"].shape[2]
    table = weights.get("pos_embed")
    if clip_frames < 1 or clip_frames % tubelet:
        raise ValueError(f"clips of {clip_frames} frames; the backbone takes a multiple of {tubelet}")
    if table is not None and clip_frames != CLIP_FRAMES:
        # VideoMAE's own table is a sinusoid along all tokens, frame after frame, which has any length.
        if not torch.allclose(table, sinusoid_table(table.shape[1], size.dim), atol=1e-3):
            raise ValueError(f"{file}: its position table is learnt, for clips of {CLIP_FRAMES} frames only")
        weights = {name: weight for name, weight in weights.items() if name != "pos_embed"}
    pixels = PIXELS if size.table_pixels is None else size.table_pixels
    widths = asdict(SIZES[size.name])
    vit = VisionTransformer(**widths, image_size=pixels, clip_frames=clip_frames, tubelet=tubelet)
    load_weights(vit, weights, source=str(file), may_lack=r"^pos_embed$")
    return VideoBackbone(vit)
