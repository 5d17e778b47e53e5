"""Reading videos: what a file holds, and any of its frames exactly.

A frame is found by decoding from the keyframe before it, known from the file's ``FrameIndex``, until the picture with
exactly its time appears. A frame that cannot be had is said to be so; never is another one given for it unasked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import ClassVar

import av
import numpy as np
from av.filter import Graph
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import ArrayLike, NDArray

from bitad.config.names import OnDecodeError
from bitad.video.decoding import REMEDY, PictureStream, counted, lost_frames, spans
from bitad.video.index import FrameIndex
from bitad.video.indexing import index_video

# A seek empties the decoder; decoding up to this many unwanted frames is quicker.
_FRAMES_WORTH_A_SEEK = 12


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds.

    Args:
        frames: number of frames, counted.
        fps: frames a second, on average.
        duration_s: frames / fps, in seconds.
        width: pixels, as players show it.
        height: pixels, likewise.
        codec: FFmpeg's name of the decoder ("h264").
        pixel_format: FFmpeg's name of how pixels are stored ("yuv420p").
        container: FFmpeg's names of the file's form ("mov,mp4,m4a,3gp,3g2,mj2").
    """

    frames: int
    fps: float
    duration_s: float
    width: int
    height: int
    codec: str
    pixel_format: str
    container: str

    @classmethod
    def of(cls, index: FrameIndex, pictures: PictureStream, *, frames: int) -> VideoInfo:
        """What an open file holds."""
        context, fps = pictures.stream.codec_context, float(index.rate)
        sides = (index.width, index.height)
        width, height = sides[::-1] if index.rotation % 180 else sides
        return cls(
            frames=frames,
            fps=fps,
            duration_s=frames / fps,
            width=width,
            height=height,
            codec=context.name,
            pixel_format=context.pix_fmt or "",
            container=pictures.container.format.name,
        )


def probe(path: str | Path) -> VideoInfo:
    """What a video file holds: counted, not taken from its header.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: FFmpeg cannot read it, or it has no video stream, no frames or no frame rate.
    """
    with VideoReader(path) as reader:
        return reader.info


class VideoReader:
    """Any frames of one video, exactly and upright; opened once, to be used in a ``with`` block and in one thread.

    Args:
        path: the video file.
        index: its ``FrameIndex``, where known from an earlier reading.
        threads: decoder threads. Several readers side by side do best with one each.
        damaged: what to do about frames that cannot be decoded, or that a cut-off file has lost: an ``"error"``, after
            all that were asked for have been tried, or ``"repeat"`` the last good frame in their place.

    Attributes:
        repeated: number of frames that another one has stood in for.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: FFmpeg cannot read it, or it has no video stream, no frames or no frame rate.
    """

    def __init__(
        self, path: str | Path, *, index: FrameIndex | None = None, threads: int = 1, damaged: OnDecodeError = "error"
    ) -> None:
        self.path = Path(path)
        self.index = index_video(self.path) if index is None else index
        self.damaged, self.repeated = damaged, 0
        self._scaler = PictureScaler(self.index.rotation)
        self._stream = PictureStream(self.path, self.index, threads)
        self.info = VideoInfo.of(self.index, self._stream, frames=counted(self.index, damaged))

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def read(
        self, frames: ArrayLike, *, size: tuple[int, int] | None = None, short_side: int | None = None
    ) -> NDArray[np.uint8]:
        """Frames in any order, also repeated: uint8 ``[T, H, W, 3]``, red, green, blue. Each is decoded once.

        Args:
            frames: T frame numbers, counted from 0.
            size: (height, width) to scale to. Pictures are scaled as they are decoded.
            short_side: the shorter side to scale to, keeping the proportions.

        Raises:
            ValueError: a number is not a frame of the video, both sizes are given, frames cannot be decoded, or a
                picture is of another size than the video.
        """
        numbers = self._checked(frames)
        height, width = self._scaled(size, short_side)
        pixels = np.empty((len(numbers), height, width, 3), np.uint8)  # [T, H, W, 3]
        wanted, first, place = np.unique(numbers, return_index=True, return_inverse=True)
        self._stream.want(wanted.tolist())
        for picture, at in zip(self._mended(wanted.tolist()), first.tolist(), strict=True):
            pixels[at] = self._scaler(picture, height, width)
        return pixels if len(wanted) == len(numbers) else pixels[first[place]]

    def read_windows(
        self,
        windows: Iterable[ArrayLike],
        *,
        size: tuple[int, int] | None = None,
        short_side: int | None = None,
    ) -> Iterator[NDArray[np.uint8]]:
        """``read`` for one window of frames after another, in memory bounded by the windows.

        What a window shares with the one before is not decoded again.
        """
        before = np.empty(0, np.int64)
        pixels = np.empty((0, *self._scaled(size, short_side), 3), np.uint8)
        for window in windows:
            numbers = self._checked(window)
            known = np.isin(numbers, before)
            fresh = self.read(numbers[~known], size=size, short_side=short_side)
            order = np.argsort(before)
            shared = pixels[order[np.searchsorted(before, numbers[known], sorter=order)]]
            pixels = np.empty((len(numbers), *pixels.shape[1:]), np.uint8)
            pixels[known], pixels[~known] = shared, fresh
            before = numbers
            yield pixels

    def pictures(self, frames: Iterable[int]) -> Iterator[av.VideoFrame]:
        """The decoded pictures of frames as FFmpeg holds them, upright, one at a time; quickest in ascending order.

        Raises:
            ValueError: frames cannot be decoded (told behind the last picture, whatever was asked for), or a picture is
                of another size than the video.
        """
        self._stream.want(())  # what an earlier reading passed over may be asked for now
        turn = _Turn(self.index.rotation)
        return map(turn, self._mended(frames))

    def _mended(self, frames: Iterable[int]) -> Iterator[av.VideoFrame]:
        """The pictures of frames as stored, with the last good one in the place of those that are damaged."""
        bad: list[int] = []
        asked, good = 0, None
        for number in frames:
            asked += 1
            picture = self._picture(number) if number < self.index.frames else None
            if picture is None:
                bad.append(number)
                picture = good or self._stand_in(number)
            elif (picture.width, picture.height) != (self.index.width, self.index.height):
                raise ValueError(
                    f"{self.path}: frame {number} is {picture.width}x{picture.height} pixels and the first ones "
                    f"{self.index.width}x{self.index.height}; encode the video anew in one size"
                )
            good = picture
            yield picture
        if bad and self.damaged == "error":
            raise ValueError(f"{self.path}: {spans(bad)} cannot be decoded ({len(bad)} of {asked} asked for): {REMEDY}")
        self.repeated += len(bad)

    def _picture(self, number: int) -> av.VideoFrame | None:
        """One frame as stored: by decoding on where it is near, else from the keyframe before it."""
        stream, index = self._stream, self.index
        keyframe = index.keyframe(number)
        if number < stream.position or keyframe > stream.position + _FRAMES_WORTH_A_SEEK:
            stream.begin(keyframe)
        picture = self._decode_to(number)
        if picture is None and 0 < keyframe == stream.begun:
            # Some encoders' keyframes need a little of what stands before them.
            stream.begin(index.keyframe(max(0, index.keyframe(keyframe - 1) - 1)))
            picture = self._decode_to(number)
        return picture

    def _decode_to(self, number: int) -> av.VideoFrame | None:
        while self._stream.position < number:
            self._stream.next()
        return self._stream.next()

    def _stand_in(self, number: int) -> av.VideoFrame:
        """The last good frame before a damaged one, or else the first good one."""
        last, stream = min(number, self.index.frames), self._stream
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

    def _checked(self, frames: ArrayLike) -> NDArray[np.int64]:
        numbers = np.asarray(frames)
        if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
            raise ValueError(
                f"frames of shape {numbers.shape} and type {numbers.dtype}; a row of whole numbers is needed"
            )
        outside = numbers[(numbers < 0) | (numbers >= self.info.frames)]
        if len(outside):
            cut_off = f"; the file is cut off, {lost_frames(self.index)}" if self.index.lost else ""
            raise ValueError(
                f"{self.path}: frame {outside[0]} is outside the video, whose frames are 0 to "
                f"{self.info.frames - 1}{cut_off}"
            )
        return numbers.astype(np.int64)

    def _scaled(self, size: tuple[int, int] | None, short_side: int | None) -> tuple[int, int]:
        """The height and width to scale to."""
        height, width = self.info.height, self.info.width
        if size is not None and short_side is not None:
            raise ValueError(f"size {size} and short side {short_side} are both given; give one")
        if short_side is not None:
            return scaled_size(height, width, short_side)
        return size or (height, width)


def scaled_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """The height and width of a picture whose shorter side is scaled to ``short_side``."""
    scale = Fraction(short_side, min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


class PictureScaler:
    """Scales pictures and turns them upright, by multiples of 90 degrees of ``rotation``."""

    def __init__(self, rotation: int = 0) -> None:
        self.rotation = rotation
        self._scaler, self._reformatter = VideoReformatter(), VideoReformatter()

    def __call__(self, picture: av.VideoFrame, height: int, width: int) -> NDArray[np.uint8]:
        """One picture as uint8 ``[H, W, 3]``, valid until the next one."""
        quarters = self.rotation // 90
        if quarters % 2:  # it is turned after it has been scaled: there is less of it then
            height, width = width, height
        shrinks = height < picture.height or width < picture.width
        filtered = Interpolation.AREA if shrinks else Interpolation.BICUBIC
        if (height, width) != (picture.height, picture.width) and not (height % 2 or width % 2):
            # The quick way from YUV to RGB takes even sides and does not scale, so it follows scaling in YUV: half the
            # time of both at once, and nearer to exact arithmetic.
            picture = self._scaler.reformat(
                picture, width=width, height=height, format="yuv422p", interpolation=filtered, threads=1
            )
        rgb = self._reformatter.reformat(
            picture, width=width, height=height, format="rgb24", interpolation=filtered, threads=1
        )
        plane = rgb.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
        return np.rot90(rows[:, : 3 * width].reshape(height, width, 3), quarters)


class _Turn:
    """Turns pictures by quarters anticlockwise, in FFmpeg's own pixel formats."""

    _FILTERS: ClassVar[dict[int, tuple[str, ...]]] = {90: ("cclock",), 180: ("clock", "clock"), 270: ("clock",)}

    def __init__(self, rotation: int) -> None:
        self._steps = self._FILTERS.get(rotation, ())
        self._graph: Graph | None = None

    def __call__(self, picture: av.VideoFrame) -> av.VideoFrame:
        if not self._steps:
            return picture
        if self._graph is None:
            self._graph = Graph()
            source = self._graph.add_buffer(
                width=picture.width,
                height=picture.height,
                format=picture.format,
                time_base=picture.time_base or Fraction(1, 1000),
            )
            turns = [self._graph.add("transpose", f"dir={direction}") for direction in self._steps]
            self._graph.link_nodes(source, *turns, self._graph.add("buffersink")).configure()
        self._graph.push(picture)
        turned = self._graph.pull()
        assert isinstance(turned, av.VideoFrame)
        return turned
