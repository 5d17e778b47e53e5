"""Reads any frames of a video exactly, and its properties.

A frame is found by decoding from the keyframe before it until the picture with exactly its time. A frame that cannot
be decoded is an error; another one replaces it only on request.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.filter import Graph
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import ArrayLike, NDArray

from bitad.config.names import OnDecodeError
from bitad.runtime.log import shortlist
from bitad.video.decoding import REMEDY, PictureStream, describe_loss, frame_count
from bitad.video.index import FrameIndex
from bitad.video.indexing import index_video

# A seek flushes the decoder; decoding up to this many unwanted frames is faster.
_FRAMES_WORTH_A_SEEK = 12


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video file, counted rather than taken from its header.

    Width and height are in pixels, as players show it; other names are FFmpeg's.
    """

    frames: int
    fps: float
    duration_s: float
    width: int
    height: int
    codec: str
    pixel_format: str
    container: str


def probe(path: str | Path) -> VideoInfo:
    """The properties of a video file. Raises like :class:`VideoReader`."""
    with VideoReader(path) as reader:
        return reader.info


class VideoReader:
    """Reads any frames of one video, exactly and upright. Use it in a ``with`` block and in one thread.

    Args:
        index: the file's ``FrameIndex``, if already known.
        damaged: for frames that cannot be decoded or are lost: ``"error"`` raises after all requested frames have
            been tried; ``"repeat"`` repeats the last good frame.

    Attributes:
        repeated: number of frames replaced by another one.
    """

    def __init__(
        self, path: str | Path, *, index: FrameIndex | None = None, damaged: OnDecodeError = "error"
    ) -> None:
        self.path = Path(path)
        self.index = index_video(self.path) if index is None else index
        self.damaged = damaged
        self.repeated = 0
        self._scaler = PictureScaler(self.index.rotation)
        self._stream = PictureStream(self.path, self.index)
        self.info = self._read_info()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._stream.close()

    def _read_info(self) -> VideoInfo:
        index = self.index
        context = self._stream.stream.codec_context
        frames = frame_count(index, self.damaged)
        width, height = index.width, index.height
        if index.rotation % 180:
            width, height = height, width
        return VideoInfo(
            frames=frames,
            fps=float(index.rate),
            duration_s=frames / float(index.rate),
            width=width,
            height=height,
            codec=context.name,
            pixel_format=context.pix_fmt or "",
            container=self._stream.container.format.name,
        )

    def read(
        self, frames: ArrayLike, *, size: tuple[int, int] | None = None, short_side: int | None = None
    ) -> NDArray[np.uint8]:
        """Read RGB frames, uint8 ``[T, H, W, 3]``, decoding each frame once.

        Args:
            frames: T frame numbers, counted from 0, in any order; they may repeat.
            size: (height, width) to scale to.
            short_side: the shorter side to scale to, keeping the aspect ratio.

        Raises:
            ValueError: a frame is outside the video or cannot be decoded, or the picture size changes.
        """
        numbers = self._validated(frames)
        height, width = self._target_size(size, short_side)
        pixels = np.empty((len(numbers), height, width, 3), np.uint8)  # [T, H, W, 3]
        wanted, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
        self._stream.want(wanted.tolist())
        for picture, at in zip(self._decoded(wanted.tolist()), first.tolist(), strict=True):
            pixels[at] = self._scaler(picture, height, width)
        return pixels if len(wanted) == len(numbers) else pixels[first[inverse]]

    def read_windows(
        self, windows: Iterable[ArrayLike], *, size: tuple[int, int] | None = None, short_side: int | None = None
    ) -> Iterator[NDArray[np.uint8]]:
        """``read`` one window after another, decoding shared frames once."""
        before = np.empty(0, np.int64)
        pixels = np.empty((0, *self._target_size(size, short_side), 3), np.uint8)
        for window in windows:
            numbers = self._validated(window)
            is_shared = np.isin(numbers, before)
            added = self.read(numbers[~is_shared], size=size, short_side=short_side)
            order = np.argsort(before)
            shared = pixels[order[np.searchsorted(before, numbers[is_shared], sorter=order)]]
            pixels = np.empty((len(numbers), *pixels.shape[1:]), np.uint8)
            pixels[is_shared] = shared
            pixels[~is_shared] = added
            before = numbers
            yield pixels

    def pictures(self, frames: Iterable[int]) -> Iterator[av.VideoFrame]:
        """The upright pictures of frames as FFmpeg has them, one at a time.

        Frames that cannot be decoded raise ValueError after the last picture.
        """
        self._stream.want(())  # frames skipped by an earlier call may be wanted now
        pictures = self._decoded(frames)
        return _rotated(pictures, self.index.rotation) if self.index.rotation else pictures

    def _decoded(self, frames: Iterable[int]) -> Iterator[av.VideoFrame]:
        """The stored pictures of frames; the last good one replaces damaged ones."""
        bad: list[int] = []
        requested, good = 0, None
        for number in frames:
            requested += 1
            picture = self._picture(number) if number < self.index.frames else None
            if picture is None:
                bad.append(number)
                picture = good or self._replacement(number)
            elif (picture.width, picture.height) != (self.index.width, self.index.height):
                first = f"{self.index.width}x{self.index.height}"
                sizes = f"{picture.width}x{picture.height} pixels and the first ones {first}"
                raise ValueError(f"{self.path}: frame {number} is {sizes}; encode the video again in one size")
            good = picture
            yield picture
        if bad and self.damaged == "error":
            named = f"frame{'s' if len(bad) > 1 else ''} {shortlist(sorted(bad), 4)}"
            raise ValueError(
                f"{self.path}: {named} cannot be decoded ({len(bad)} of {requested} requested): {REMEDY}"
            )
        self.repeated += len(bad)

    def _picture(self, number: int) -> av.VideoFrame | None:
        """One stored picture, decoded on or from the keyframe before it."""
        stream, index = self._stream, self.index
        keyframe = index.keyframe(number)
        if number < stream.position or keyframe > stream.position + _FRAMES_WORTH_A_SEEK:
            stream.begin(keyframe)
        picture = self._decode_to(number)
        if picture is None and 0 < keyframe == stream.begun:
            # Keyframes of some encoders depend on a few frames before them.
            stream.begin(index.keyframe(max(0, index.keyframe(keyframe - 1) - 1)))
            picture = self._decode_to(number)
        return picture

    def _decode_to(self, number: int) -> av.VideoFrame | None:
        while self._stream.position < number:
            self._stream.next()
        return self._stream.next()

    def _replacement(self, number: int) -> av.VideoFrame:
        last = min(number, self.index.frames)
        stream = self._stream
        before = last
        while before > 0:
            before = self.index.keyframe(before - 1)
            stream.begin(before)
            good = None
            while stream.position < last:
                good = stream.next() or good
            if good is not None:
                return good
        while stream.position < self.index.frames:
            if (good := stream.next()) is not None:
                return good
        raise ValueError(f"{self.path}: no frame in it can be decoded")

    def _validated(self, frames: ArrayLike) -> NDArray[np.int64]:
        numbers = np.asarray(frames)
        if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
            raise ValueError(f"frames of shape {numbers.shape} and type {numbers.dtype}; give integers [T]")
        outside = numbers[(numbers < 0) | (numbers >= self.info.frames)]
        if len(outside):
            cut_off = f"; the file is cut off, {describe_loss(self.index)}" if self.index.lost else ""
            last = self.info.frames - 1
            raise ValueError(f"{self.path}: frame {outside[0]} is outside the video's frames 0 to {last}{cut_off}")
        return numbers.astype(np.int64)

    def _target_size(self, size: tuple[int, int] | None, short_side: int | None) -> tuple[int, int]:
        height = self.info.height
        width = self.info.width
        if size is not None and short_side is not None:
            raise ValueError(f"size {size} and short side {short_side} are both given; give one")
        if short_side is not None:
            return scaled_size(height, width, short_side)
        return size or (height, width)


def scaled_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    scale = Fraction(short_side, min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


class PictureScaler:
    """Scales pictures and rotates them anticlockwise by a multiple of 90 degrees."""

    def __init__(self, rotation: int = 0) -> None:
        self.rotation = rotation
        self._scaler = VideoReformatter()
        self._reformatter = VideoReformatter()

    def __call__(self, picture: av.VideoFrame, height: int, width: int) -> NDArray[np.uint8]:
        """One scaled and upright picture, uint8 ``[H, W, 3]``, valid until the next call."""
        quarters = self.rotation // 90
        if quarters % 2:  # rotation follows scaling, as it then has fewer pixels
            height, width = width, height
        shrinks = height < picture.height or width < picture.width
        filtered = Interpolation.AREA if shrinks else Interpolation.BICUBIC
        if (height, width) != (picture.height, picture.width) and not (height % 2 or width % 2):
            # The fast conversion from YUV to RGB needs even sides and does not scale, so scaling in YUV comes first:
            # half the time of one call for both, and more exact.
            picture = self._scaler.reformat(
                picture, width=width, height=height, format="yuv422p", interpolation=filtered, threads=1
            )
        rgb = self._reformatter.reformat(
            picture, width=width, height=height, format="rgb24", interpolation=filtered, threads=1
        )
        plane = rgb.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
        return np.rot90(rows[:, : 3 * width].reshape(height, width, 3), quarters)


# Anticlockwise degrees -> the directions of FFmpeg's transpositions.
_TRANSPOSITIONS = {90: ("cclock",), 180: ("clock", "clock"), 270: ("clock",)}


def _rotated(pictures: Iterator[av.VideoFrame], degrees: int) -> Iterator[av.VideoFrame]:
    """Pictures rotated anticlockwise, in their own pixel format."""
    graph: Graph | None = None
    for picture in pictures:
        if graph is None:
            graph = Graph()
            source = graph.add_buffer(
                width=picture.width,
                height=picture.height,
                format=picture.format,
                time_base=picture.time_base or Fraction(1, 1000),
            )
            steps = [graph.add("transpose", f"dir={direction}") for direction in _TRANSPOSITIONS[degrees]]
            graph.link_nodes(source, *steps, graph.add("buffersink")).configure()
        graph.push(picture)
        rotated = graph.pull()
        assert isinstance(rotated, av.VideoFrame)
        yield rotated
