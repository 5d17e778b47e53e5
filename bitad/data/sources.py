"""The data that a configuration names: ground truth, and videos or features."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import av
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bitad.config.loading import require_annotations
from bitad.config.names import OnDecodeError
from bitad.config.schema import Config, DataConfig, WindowConfig
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.clocks import Clock, coverage_fault, differences, same_rate
from bitad.data.feature_files import FeatureStore
from bitad.data.feature_folder import SIDECAR, FeatureVideo, require_described
from bitad.data.formats.database import read_annotations
from bitad.data.reversal import check_reversal
from bitad.timeline import Grid, IntArray, View, mirror_frames
from bitad.video.decoding import frame_count, require_complete
from bitad.video.index import FrameIndex
from bitad.video.indexing import IndexCache, index_video
from bitad.video.kept_frames import KeptFrames
from bitad.video.names import VideoFinder
from bitad.video.reader import PictureScaler, VideoReader, scaled_size


def read_ground_truth(data: DataConfig) -> Annotations:
    """All videos, with the classes that networks learn: the data set's own, or a single one for all.

    Raises:
        FileNotFoundError: there is no annotation file, or list of classes.
        ValueError: one cannot be read, or data.reversal names another class.
    """
    require_annotations(data)
    annotations = read_annotations(data.annotations, classes=data.classes).require_durations(data.annotations)
    if data.class_agnostic:
        return annotations.class_agnostic()
    check_reversal(data.reversal or {}, annotations.classes)
    return annotations


def annotated_names(data: DataConfig) -> tuple[str, ...]:
    """The names of all annotated videos."""
    return tuple(read_ground_truth(data).videos)


def read_test_ground_truth(config: Config) -> Annotations:
    """The test subset, with the network's classes, or those of the video-level scores."""
    return _read_tested(config, config.data.test_subset)


def read_evaluation_ground_truth(config: Config) -> Annotations:
    """The subset that a training evaluates, with classes as :func:`read_test_ground_truth`."""
    return _read_tested(config, config.data.evaluation_subset)


def _read_tested(config: Config, subset: str) -> Annotations:
    data = config.data
    if config.test.video_scores is not None:
        data = data.model_copy(update={"class_agnostic": False})
    return read_ground_truth(data).subset(subset)


class Source(Protocol):
    """Where the content of windows comes from."""

    @property
    def has_reversed_copies(self) -> bool:
        """Whether the reverse view shows time-reversed copies."""

    @property
    def repeated(self) -> int:
        """The number of damaged frames that this process has replaced by the last good one."""

    def grid(self, video: AnnotatedVideo) -> Grid:
        """How the grid lies in the video; reads no content."""

    def read(
        self,
        video: AnnotatedVideo,
        grid: Grid,
        *,
        view: View = "forward",
        margin: float = 1.0,
    ) -> Tensor:
        """The real steps of a window, in forward order whatever the view.

        Args:
            view: the first or second of the configuration; `reverse` reads time-reversed copies, if there are any.
            margin: factor by which frames may exceed the network's size.
        """


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video the network sees.

    Args:
        window: of the configuration.
        rate_hz: grid steps per second instead of the window's stride, unless the window has some; each video gets the
            nearest stride.
    """

    window: WindowConfig
    rate_hz: float | None = None

    def grid(self, fps: float, frames: int) -> Grid:
        """The grid of a video with so many frames."""
        if self.window.resized_steps is not None:
            return Grid(fps, 1.0, 0.0, frames).resized(self.window.resized_steps, self.window.resized_clock)
        rate_hz = self.rate_hz if self.window.steps_per_second is None else self.window.steps_per_second
        stride = self.window.stride_frames if rate_hz is None else max(1, round(fps / rate_hz))
        return Grid(fps, stride, 0.0, -(-frames // stride))

    def frames(self, grid: Grid, count: int) -> IntArray:
        """The frames of a window in a video of ``count``: int64 ``[V * frames_per_step]``, ascending."""
        is_resized = self.window.resized_steps is not None
        if is_resized and self.window.resized_clock == "edge":  # still reads the frames in the middle
            grid = replace(grid, first_frame=grid.first_frame + grid.stride_frames / 2)
        # A resized video's steps lie in the middle of their share of it, others at its start.
        frames = grid.frames(self.window.frames_per_step, centred=is_resized)
        return frames.clip(0, count - 1)  # the last step may be incomplete


def _short_side(height: int, width: int, pixels: int, margin: float) -> int | None:
    """The short side of scaled frames for a network of ``pixels``; None: frames keep their size."""
    available = min(height, width)
    wanted = round(pixels * margin)
    # Enlarging frames for a margin would add no detail.
    return None if pixels <= available <= wanted else wanted


@dataclass(eq=False)
class VideoFiles:
    """Windows from video files.

    Args:
        find: name of a video -> its file.
        pixels: short side of the network's frames.
        find_reversed: name of a video -> its time-reversed copy, for the reverse view.
        damaged: as of :class:`~bitad.video.reader.VideoReader`.
        cache: of the files' indices.
        kept: the videos that are decoded whole, once; by default none.
    """

    find: Callable[[str], Path]
    _: KW_ONLY
    pixels: int
    sampling: Sampling
    find_reversed: Callable[[str], Path] | None = None
    damaged: OnDecodeError = "error"
    cache: IndexCache | None = None
    kept: KeptFrames | None = None
    repeated: int = field(default=0, init=False)
    _indices: dict[Path, FrameIndex] = field(default_factory=dict, init=False)

    @property
    def has_reversed_copies(self) -> bool:
        return self.find_reversed is not None

    def index(self, path: Path) -> FrameIndex:
        """The index of a file's frames, read once."""
        if path not in self._indices:
            index = index_video(path) if self.cache is None else self.cache.index(path)
            require_complete(path, index, self.damaged)
            self._indices[path] = index
        return self._indices[path]

    def frames(self, path: Path) -> int:
        """The number of frames of a file."""
        return frame_count(self.index(path), self.damaged)

    def grid(self, video: AnnotatedVideo) -> Grid:
        path = self.find(video.name)
        self._reversed_copy(video)  # raises for a wrong copy before anything is read
        return self.sampling.grid(float(self.index(path).rate), self.frames(path))

    def clock_fault(self, video: AnnotatedVideo, video_grid: Grid) -> str | None:
        """How the file's duration differs from the annotated one, if it does."""
        path = self.find(video.name)
        found = Clock(self.frames(path) / video_grid.fps)
        return next((f"{path} {detail}" for _, detail in differences(Clock(video.duration_s), found)), None)

    def read(
        self,
        video: AnnotatedVideo,
        grid: Grid,
        *,
        view: View = "forward",
        margin: float = 1.0,
    ) -> Tensor:
        path = self.find(video.name)
        count = self.frames(path)
        frames = self.index(path).nearest(self.sampling.frames(grid, count))
        reversed_copy = None if view == "forward" else self._reversed_copy(video)
        if reversed_copy is None:
            return torch.from_numpy(self._decode(path, frames, margin))
        return torch.from_numpy(self._decode(reversed_copy, mirror_frames(frames, count), margin))

    def _reversed_copy(self, video: AnnotatedVideo) -> Path | None:
        if self.find_reversed is None:
            return None
        path = self.find(video.name)
        reversed_copy = self.find_reversed(video.name)
        if (count := self.frames(path)) != (copied := self.frames(reversed_copy)):
            raise ValueError(f"{reversed_copy} has {copied} frames, {path} has {count}; repeat `bitad reverse`")
        return reversed_copy

    def _decode(self, path: Path, frames: IntArray, margin: float) -> NDArray[np.uint8]:
        index = self.index(path)
        short_side = _short_side(index.height, index.width, self.pixels, margin)
        if self.kept is not None and (whole := self.kept.video(path, index, short_side)) is not None:
            return whole[frames]
        with VideoReader(path, index=index, damaged=self.damaged) as reader:
            pixels = reader.read(frames, short_side=short_side)
            self.repeated += reader.repeated
            return pixels


@dataclass(eq=False)
class FramesInMemory:
    """Windows from the frames of one video, as from a lossless file.

    Args:
        images: uint8 ``[T, H, W, 3]``, red, green, blue.
        pixels, sampling: as of :class:`VideoFiles`.
    """

    images: NDArray[np.uint8]
    fps: float
    _: KW_ONLY
    pixels: int
    sampling: Sampling

    has_reversed_copies = False
    repeated = 0

    def grid(self, video: AnnotatedVideo) -> Grid:
        return self.sampling.grid(self.fps, len(self.images))

    def read(
        self,
        video: AnnotatedVideo,
        grid: Grid,
        *,
        view: View = "forward",
        margin: float = 1.0,
    ) -> Tensor:
        images = self.images[self.sampling.frames(grid, len(self.images))]
        _, height, width, _ = images.shape
        short_side = _short_side(height, width, self.pixels, margin)
        if short_side is None:
            return torch.from_numpy(images)
        size = scaled_size(height, width, short_side)
        scale = PictureScaler()
        scaled = np.empty((len(images), *size, 3), np.uint8)
        for number, image in enumerate(images):
            # FFmpeg scales each pixel format a little differently; lossless RGB files are decoded to this one.
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="bgr0")
            scaled[number] = scale(frame, *size)
        return torch.from_numpy(scaled)


@dataclass(eq=False)
class FeatureFiles:
    """Windows from pre-computed features.

    Args:
        store: the files.
        data, window: of the configuration.
        reversed_store: features of the time-reversed copies, with rows of the same frames.
        described: the videos that the features were extracted from, by the features' names.
    """

    store: FeatureStore
    data: DataConfig
    window: WindowConfig
    _: KW_ONLY
    reversed_store: FeatureStore | None = None
    described: Mapping[str, FeatureVideo] | None = None

    repeated = 0  # features have no damaged frames

    @property
    def has_reversed_copies(self) -> bool:
        return self.reversed_store is not None

    def grid(self, video: AnnotatedVideo) -> Grid:
        rows = self.store.length(video.name)
        if self.reversed_store is not None and (others := self.reversed_store.length(video.name)) != rows:
            found = f"{self.reversed_store.path} has {others} rows of {video.name}, {self.store.path} has {rows}"
            raise ValueError(f"{found}; extract both with `bitad features --direction both`")
        fps = video.clock.rate if self.data.feature_fps is None else self.data.feature_fps
        if fps is None:
            raise ValueError(f"annotation of {video.name} has neither `fps` nor `frame`; state data.feature_fps")
        grid = Grid(fps, self.data.feature_stride_frames, self.data.feature_offset_frames, rows)
        steps = self.window.resized_steps
        return grid if steps is None else grid.resized(steps, self.window.resized_clock)

    def clock_fault(self, video: AnnotatedVideo, video_grid: Grid) -> str | None:
        """How the time that the features cover differs from the annotated one, if it does."""
        fps = video_grid.fps
        stride_frames = self.data.feature_stride_frames
        rows = round(video_grid.steps * video_grid.stride_frames / stride_frames)  # also of a resized video
        if self.described and (made := self.described.get(self.store.own_name(video.name))) is not None:
            if made.steps != rows:
                return f"{rows} rows of features, {SIDECAR} says {made.steps}"
            # Else the rate is frames over duration, which includes the sound.
            is_stated = (self.data.feature_fps or video.fps) is not None
            if is_stated and not same_rate(made.fps, fps):
                return f"features of {made.fps:.6g} frames a second by {SIDECAR}, placed in time as of {fps:.6g}"
            clock = Clock(video.duration_s, None if is_stated else video.frames)
            if difference := next(differences(clock, Clock(made.frames / made.fps, made.frames)), None):
                return f"{SIDECAR} says that it {difference[1]}"
        return coverage_fault(rows, stride_frames, self.data.feature_offset_frames, fps, video.duration_s)

    def read(
        self,
        video: AnnotatedVideo,
        grid: Grid,
        *,
        view: View = "forward",
        margin: float = 1.0,
    ) -> Tensor:
        store = self.store if self.reversed_store is None or view == "forward" else self.reversed_store
        features = torch.from_numpy(store.read(video.name))  # [T, C]
        first_frame = self.data.feature_offset_frames
        steps = self.window.resized_steps
        if steps is not None:
            first_frame = self.grid(video).first_frame
            features = F.interpolate(features.T[None], size=steps, mode="linear", align_corners=False)[0].T
        start = round((grid.first_frame - first_frame) / grid.stride_frames)
        return features[start : start + grid.steps]


class FeaturesInMemory(FeatureStore):
    """The features of one video, float ``[T, C]``, whatever its name."""

    def __init__(self, features: NDArray[np.float32]) -> None:
        self.features = features

    def length(self, name: str) -> int:
        return len(self.features)

    def read(self, name: str) -> NDArray[np.float32]:
        return self.features


FileSource = VideoFiles | FeatureFiles


def build_source(config: Config, cache: IndexCache | None = None, *, views: Collection[View] = ()) -> FileSource:
    """The source of windows that a configuration names, with a cache of the indices of video files.

    ``views``: what a teacher sees, besides the networks' own views.
    """
    data = config.data
    window = config.window
    wanted = partial(annotated_names, data)  # called only when a name is not found
    reversed_files = None
    views = tuple(dict.fromkeys((*config.watched, *views)))
    if "reverse" in views:
        reversed_files = data.reversed_videos or data.reversed_features
    if data.features is not None:
        open_store = partial(FeatureStore, channels=data.feature_channels, wanted=wanted)
        return FeatureFiles(
            open_store(data.features),
            data,
            window,
            reversed_store=None if reversed_files is None else open_store(reversed_files),
            described=require_described(data, views),
        )
    assert data.videos is not None  # checked by the configuration
    assert config.model.backbone is not None
    return VideoFiles(
        VideoFinder(data.videos, wanted),
        pixels=config.model.backbone.pixels,
        sampling=Sampling(window),
        find_reversed=None if reversed_files is None else VideoFinder(reversed_files, wanted),
        damaged=data.on_decode_error,
        cache=cache,
        kept=KeptFrames(data.keep_frames_mib * 2**20, folder=data.frame_cache) if data.keep_frames_mib else None,
    )
