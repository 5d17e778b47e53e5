"""Videos: what a file holds, any of its frames exactly, and writing H.264.

A seek lands on some keyframe near the time asked for. So a frame is found by seeking to the keyframe before it and
decoding until the picture with exactly its time, known from the file's ``FrameIndex``, appears.

This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.container import OutputContainer
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import ArrayLike, NDArray

from bitad.data.files import replacing
from bitad.data.frame_index import FrameIndex, open_video

# In the order of preference where a folder holds several files of one name.
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".m4v", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp")

# The containers written, by suffix: FFmpeg's names.
H264_CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}

# A seek empties the decoder; decoding up to this many unwanted frames is quicker.
_FRAMES_WORTH_A_SEEK = 12


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds.

    Args:
        frames: number of frames, counted.
        fps: frames a second, on average.
        duration_s: frames / fps, in seconds.
        width: pixels.
        height: pixels.
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


def probe(path: str | Path) -> VideoInfo:
    """What a video file holds: counted, not taken from its header.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: FFmpeg cannot read it, or it has no video stream, no frames or no frame rate.
    """
    with VideoReader(path) as reader:
        return reader.info


def find_video(folder: str | Path, name: str) -> Path:
    """The video file of an annotation's video: ``name`` with any of ``VIDEO_SUFFIXES``, or ``name`` itself.

    Raises:
        FileNotFoundError: the folder has none.
    """
    folder = Path(folder)
    itself = [""] if Path(name).suffix.lower() in VIDEO_SUFFIXES else []
    for ending in (*itself, *chain(*((suffix, suffix.upper()) for suffix in VIDEO_SUFFIXES))):
        if (path := folder / f"{name}{ending}").is_file():
            return path
    raise FileNotFoundError(f"{folder}: no video {name!r} there ({', '.join(VIDEO_SUFFIXES)})")


class VideoReader:
    """Any frames of one video, exactly; opened once, to be used in a ``with`` block and in one thread.

    Args:
        path: the video file.
        index: its ``FrameIndex``, where known from an earlier reading.
        threads: decoder threads. Several readers side by side do best with one each.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: FFmpeg cannot read it, or it has no video stream, no frames or no frame rate.
    """

    def __init__(self, path: str | Path, *, index: FrameIndex | None = None, threads: int = 1) -> None:
        self.path = Path(path)
        self.index = FrameIndex.of(self.path) if index is None else index
        self._threads = threads
        self._reformatter = VideoReformatter()
        self._container, self._stream = open_video(self.path, threads)
        self._decoded = self._numbered()
        self._position = 0  # the frame that the decoder gives next
        context, fps = self._stream.codec_context, float(self.index.rate)
        self.info = VideoInfo(
            frames=self.index.frames,
            fps=fps,
            duration_s=self.index.frames / fps,
            width=context.width,
            height=context.height,
            codec=context.name,
            pixel_format=context.pix_fmt or "",
            container=self._container.format.name,
        )

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        # The generator holds this reader, which holds it: without this, both would wait for the garbage collector.
        self._decoded = iter(())
        self._container.close()

    def read(
        self, frames: ArrayLike, *, size: tuple[int, int] | None = None, short_side: int | None = None
    ) -> NDArray[np.uint8]:
        """Frames in any order, also repeated: uint8 ``[T, H, W, 3]``, red, green, blue. Each is decoded once.

        Args:
            frames: T frame numbers, counted from 0.
            size: (height, width) to scale to. Pictures are scaled as they are decoded.
            short_side: the shorter side to scale to, keeping the proportions.

        Raises:
            ValueError: a number is not a frame of the video, both sizes are given, or a frame cannot be decoded.
        """
        numbers = self._checked(frames)
        height, width = self._scaled(size, short_side)
        pixels = np.empty((len(numbers), height, width, 3), np.uint8)  # [T, H, W, 3]
        wanted, place = np.unique(numbers, return_inverse=True)
        for i, picture in enumerate(self.pictures(wanted.tolist())):
            pixels[place == i] = self._rgb(picture, height, width)
        return pixels

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
        """The decoded pictures of frames as FFmpeg holds them, one at a time; quickest in ascending order.

        Raises:
            ValueError: a frame cannot be decoded.
        """
        for number in frames:
            try:
                yield self._picture(number)
            except av.FFmpegError as error:
                raise ValueError(
                    f"{self.path}: frame {number} of {self.index.frames} cannot be decoded: {error.strerror}"
                ) from None

    def _picture(self, number: int) -> av.VideoFrame:
        """Decode on to one frame where it is near, else from its keyframe, or from further back if that is past it."""
        keyframes = self.index.keyframes
        start = int(np.searchsorted(keyframes, number, "right")) - 1
        keyframe = keyframes[start] if start >= 0 else 0
        if number < self._position or keyframe > self._position + _FRAMES_WORTH_A_SEEK:
            self._begin(start)
        back = 1
        while (picture := self._decode_to(number)) is None:
            if start < 0:
                raise ValueError(f"{self.path}: frame {number} of {self.index.frames} cannot be decoded")
            start, back = start - back, 2 * back
            self._begin(start)
        return picture

    def _begin(self, start: int) -> None:
        """Let decoding begin at the keyframe of this number, or at the start of the file where it is negative."""
        if start < 0 or self.index.times is None:
            self._container.close()
            self._container, self._stream = open_video(self.path, self._threads)
            self._position = 0
        else:
            keyframe = int(self.index.keyframes[start])
            self._container.seek(int(self.index.times[keyframe]), stream=self._stream)
            self._position = keyframe
        self._decoded = self._numbered()

    def _decode_to(self, number: int) -> av.VideoFrame | None:
        """Decode up to one frame; None if the decoder is past it."""
        for found, picture in self._decoded:
            self._position = found + 1
            if found == number:
                return picture
            if found > number:
                break
        return None

    def _numbered(self) -> Iterator[tuple[int, av.VideoFrame]]:
        """The pictures from where the container stands, with their frame numbers."""
        pictures, times = self._container.decode(self._stream), self.index.times
        if times is None:
            yield from enumerate(pictures)
            return
        for picture in pictures:
            if picture.pts is not None and picture.pts <= times[-1]:
                number = int(times.searchsorted(picture.pts))
                if times[number] == picture.pts:
                    yield number, picture

    def _checked(self, frames: ArrayLike) -> NDArray[np.int64]:
        numbers = np.asarray(frames)
        if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
            raise ValueError(
                f"frames of shape {numbers.shape} and type {numbers.dtype}; a row of whole numbers is needed"
            )
        outside = numbers[(numbers < 0) | (numbers >= self.index.frames)]
        if len(outside):
            raise ValueError(
                f"{self.path}: frame {outside[0]} is outside the video, whose frames are 0 to {self.index.frames - 1}"
            )
        return numbers.astype(np.int64)

    def _scaled(self, size: tuple[int, int] | None, short_side: int | None) -> tuple[int, int]:
        """The height and width to scale to."""
        height, width = self.info.height, self.info.width
        if size is not None and short_side is not None:
            raise ValueError(f"size {size} and short side {short_side} are both given; give one")
        if short_side is not None:
            scale = Fraction(short_side, min(height, width))
            size = max(1, round(height * scale)), max(1, round(width * scale))
        return size or (height, width)

    def _rgb(self, picture: av.VideoFrame, height: int, width: int) -> NDArray[np.uint8]:
        """One picture, scaled: uint8 ``[H, W, 3]``, valid until the next one."""
        shrinks = height < picture.height or width < picture.width
        rgb = self._reformatter.reformat(
            picture,
            width=width,
            height=height,
            format="rgb24",
            interpolation=Interpolation.AREA if shrinks else Interpolation.BICUBIC,
            threads=1,
        )
        plane = rgb.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
        return rows[:, : 3 * width].reshape(height, width, 3)


def write_video(
    path: str | Path,
    frames: Iterable[NDArray[np.uint8]],
    *,
    fps: Fraction | float,
    crf: float = 18,
    preset: str = "veryfast",
    gop: int = 30,
    b_frames: int = 0,
    threads: int = 1,
) -> int:
    """Write H.264 (yuv420p, by libx264), whole or not at all; the number of frames written.

    Args:
        path: the file; its suffix, one of ``H264_CONTAINERS``, names the container.
        frames: uint8 ``[H, W, 3]`` each, red, green, blue; one at a time.
        fps: frames a second; a float is taken as the fraction near it whose denominator is at most 1001.
        crf: x264's constant rate factor: 0 is lossless, 18 hardly visible, 28 small.
        preset: x264's "ultrafast" to "veryslow".
        gop: at most this many frames from one keyframe to the next.
        b_frames: at most this many B-frames in a row.
        threads: encoder threads; one gives the same file on every machine.

    Raises:
        ValueError: no frames, frames of another form or size, an odd height or width, or a suffix for which there is no
            container.
    """
    reformatter = VideoReformatter()
    first_shape: tuple[int, ...] | None = None

    def pictures() -> Iterator[av.VideoFrame]:
        nonlocal first_shape
        for number, frame in enumerate(frames):
            first_shape = first_shape or frame.shape
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.shape != first_shape:
                raise ValueError(
                    f"{path}: frame {number} is {frame.dtype} {frame.shape}; uint8 [H, W, 3] of one size is needed"
                )
            # BT.601, limited range: what players assume of small videos, and tagged so that none has to.
            yield reformatter.reformat(
                av.VideoFrame.from_ndarray(frame, format="rgb24"),
                format="yuv420p",
                dst_colorspace=Colorspace.ITU601,
                dst_color_range=ColorRange.MPEG,
                threads=1,
            )

    return write_pictures(
        path,
        pictures(),
        rate=Fraction(fps).limit_denominator(1001),
        crf=crf,
        preset=preset,
        gop=gop,
        b_frames=b_frames,
        threads=threads,
    )


def write_pictures(
    path: str | Path,
    pictures: Iterable[av.VideoFrame],
    *,
    rate: Fraction,
    crf: float,
    preset: str,
    gop: int,
    b_frames: int,
    threads: int = 1,
    faststart: bool = False,
) -> int:
    """Write pictures as FFmpeg holds them, all of one size and pixel format, as H.264; otherwise ``write_video``.

    With ``faststart`` an mp4's table of contents stands at its front, where browsers look for it.
    """
    path, remaining = Path(path), iter(pictures)
    first = next(remaining, None)
    if first is None:
        raise ValueError(f"{path}: no frames to write")
    count = 0
    try:
        with replacing(path) as partial, open_h264(partial, suffix=path.suffix, faststart=faststart) as container:
            stream = add_h264_stream(
                container, first, rate=rate, crf=crf, preset=preset, gop=gop, b_frames=b_frames, threads=threads
            )
            for picture in chain([first], remaining):
                # The type a decoder left in the picture would force the encoder's hand.
                picture.pict_type = PictureType.NONE
                picture.pts, picture.time_base = count, 1 / rate
                container.mux(stream.encode(picture))
                count += 1
            container.mux(stream.encode(None))
    except av.FFmpegError as error:
        raise ValueError(f"{path}: cannot be written (preset {preset!r}, crf {crf}): {error.strerror}") from None
    return count


def open_h264(path: Path, *, suffix: str, faststart: bool = False) -> OutputContainer:
    """Open a file to write H.264 to, in the container that ``suffix`` names."""
    if suffix.lower() not in H264_CONTAINERS:
        raise ValueError(f"{suffix or 'no suffix'}: H.264 is written to {', '.join(H264_CONTAINERS)}")
    options = {"movflags": "+faststart"} if faststart else {}
    return av.open(str(path), "w", format=H264_CONTAINERS[suffix.lower()], options=options)


def add_h264_stream(
    container: OutputContainer,
    like: av.VideoFrame,
    *,
    rate: Fraction,
    crf: float,
    preset: str,
    gop: int,
    b_frames: int,
    threads: int = 1,
) -> VideoStream:
    """Add an H.264 stream for pictures of the size, pixel format and colours of ``like``."""
    if like.format.name == "yuv420p" and (like.width % 2 or like.height % 2):
        raise ValueError(f"{like.height}x{like.width} pixels: H.264 in 4:2:0 needs an even height and width")
    # forced-idr: a picture marked I begins a group of pictures that stands alone.
    options = {"crf": str(crf), "preset": preset, "forced-idr": "1"}
    stream = container.add_stream("libx264", rate=rate, options=options)
    stream.width, stream.height, stream.pix_fmt = like.width, like.height, like.format.name
    stream.codec_context.time_base = 1 / rate
    stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, b_frames
    stream.codec_context.thread_count = threads
    stream.codec_context.color_range, stream.codec_context.colorspace = like.color_range, like.colorspace
    stream.codec_context.color_primaries, stream.codec_context.color_trc = like.color_primaries, like.color_trc
    return stream
