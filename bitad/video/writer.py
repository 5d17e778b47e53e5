"""Writes H.264 videos atomically, and small previews that any browser plays."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from itertools import chain
from math import ceil
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from bitad.config.names import OnDecodeError
from bitad.runtime.files import atomic_write
from bitad.video.container import open_output, open_video
from bitad.video.index import near_rate
from bitad.video.reader import VideoInfo, VideoReader, probe

# A function called with the number of items done and in all.
Progress = Callable[[int, int], None]

# Suffix -> FFmpeg's name of the container.
H264_CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}


def write_video(
    path: str | Path,
    frames: Iterable[NDArray[np.uint8]],
    *,
    fps: Fraction | float,
    crf: float = 18,
    preset: str = "veryfast",
    gop: int = 30,
    b_frames: int = 0,
) -> None:
    """Write H.264 (yuv420p, by libx264) atomically.

    Args:
        path: its suffix, one of ``H264_CONTAINERS``, selects the container.
        frames: RGB frames, uint8 ``[H, W, 3]`` each.
        fps: frames per second; a float is rounded by :func:`~bitad.video.index.near_rate`.
        crf, preset: of x264. Rate factor 0 is lossless, 18 visually almost lossless, 28 small.
        gop: the most frames from one keyframe to the next.
        b_frames: the most B-frames in a row.

    Raises:
        ValueError: no frames, or a wrong or changing type or size, an odd side, or another suffix.
    """
    reformatter = VideoReformatter()

    def pictures() -> Iterator[av.VideoFrame]:
        shape: tuple[int, ...] | None = None
        for number, frame in enumerate(frames):
            shape = shape or frame.shape
            if frame.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or frame.shape != shape:
                found = f"frame {number} is {frame.dtype} {frame.shape}"
                raise ValueError(f"{path}: {found}; give uint8 [H, W, 3] of one size")
            # BT.601, limited range: players assume it for small videos, and the file states it.
            yield reformatter.reformat(
                av.VideoFrame.from_ndarray(frame, format="rgb24"),
                format="yuv420p",
                dst_colorspace=Colorspace.ITU601,
                dst_color_range=ColorRange.MPEG,
                threads=1,
            )

    write_pictures(path, pictures(), rate=near_rate(fps), crf=crf, preset=preset, gop=gop, b_frames=b_frames)


def write_pictures(
    path: str | Path,
    pictures: Iterable[av.VideoFrame],
    *,
    rate: Fraction,
    crf: float,
    preset: str = "veryfast",
    gop: int = 30,
    b_frames: int = 0,
    faststart: bool = False,
) -> None:
    """Write FFmpeg's pictures of one size and pixel format as H.264; see :func:`write_video`.

    With ``faststart`` browsers find an mp4's table of contents at its front.
    """
    path, remaining = Path(path), iter(pictures)
    first = next(remaining, None)
    if first is None:
        raise ValueError(f"{path}: no frames to write")
    try:
        with (
            atomic_write(path) as partial,
            open_h264(partial, suffix=path.suffix, faststart=faststart) as container,
        ):
            stream = add_h264_stream(container, first, rate, crf=crf, preset=preset, gop=gop, b_frames=b_frames)
            for number, picture in enumerate(chain([first], remaining)):
                # The encoder would obey the type from the picture's decoder.
                picture.pict_type = PictureType.NONE
                picture.pts = number
                picture.time_base = 1 / rate
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
    except av.FFmpegError as error:
        raise ValueError(f"{path}: cannot be written (preset {preset!r}, crf {crf}): {error.strerror}") from None


def open_h264(path: Path, *, suffix: str, faststart: bool) -> OutputContainer:
    if suffix.lower() not in H264_CONTAINERS:
        raise ValueError(f"suffix {suffix!r} is not one for H.264; use {', '.join(H264_CONTAINERS)}")
    options = {"movflags": "+faststart"} if faststart else {}
    return open_output(path, H264_CONTAINERS[suffix.lower()], options)


def add_h264_stream(
    container: OutputContainer,
    like: av.VideoFrame,
    rate: Fraction,
    *,
    crf: float,
    preset: str,
    gop: int,
    b_frames: int = 0,
) -> VideoStream:
    if like.format.name == "yuv420p" and (like.width % 2 or like.height % 2):
        raise ValueError(f"{like.height}x{like.width} pixels: H.264 in 4:2:0 needs an even height and width")
    # forced-idr: a picture of type I begins an independent group of pictures.
    options = {"crf": str(crf), "preset": preset, "forced-idr": "1"}
    stream = container.add_stream("libx264", rate=rate, options=options)
    stream.width = like.width
    stream.height = like.height
    stream.pix_fmt = like.format.name
    context = stream.codec_context
    context.time_base = 1 / rate
    context.thread_count = 1  # gives the same file on every machine
    context.gop_size = gop
    context.max_b_frames = b_frames
    for name in ("color_range", "colorspace", "color_primaries", "color_trc"):
        setattr(context, name, getattr(like, name))
    return stream


def write_preview(
    src: str | Path,
    dst: str | Path,
    *,
    max_height: int = 240,
    max_fps: Fraction | float = 15,
    damaged: OnDecodeError = "error",
    on_progress: Progress | None = None,
) -> VideoInfo:
    """Write a small H.264 mp4 of the same duration, without sound; returns its properties.

    A higher video is scaled down, a faster one loses frames evenly, a playable one is copied.
    """
    src, dst = Path(src), Path(dst)
    if src.resolve() == dst.resolve():
        raise ValueError(f"{dst}: the preview would replace its source; name another file")
    if dst.suffix.lower() != ".mp4":
        raise ValueError(f"{dst}: a preview must be an .mp4 file")
    with VideoReader(src, damaged=damaged) as reader:
        rate = reader.index.rate
        limit = near_rate(max_fps)
        info = reader.info
        is_small = reader.info.height <= max_height and rate <= limit
        is_played = _is_played(info.codec, info.pixel_format, info.container)
        if is_small and is_played and not reader.index.lost:
            with atomic_write(dst) as partial:
                shutil.copyfile(src, partial)
        else:
            rate = min(rate, limit)
            pictures = _scaled_pictures(reader, rate, max_height, on_progress)
            write_pictures(dst, pictures, rate=rate, crf=28, faststart=True)
    return probe(dst)


def plays_in_browsers(path: Path) -> bool:
    """Whether any browser plays a file as it is: H.264 of 8 bits in an ``.mp4``. Raises like :func:`probe`."""
    container, stream = open_video(path)
    with container:
        context = stream.codec_context
        is_played = _is_played(context.name, context.pix_fmt or "", container.format.name)
    return is_played and path.suffix.lower() in (".mp4", ".m4v")


def _is_played(codec: str, pixel_format: str, container: str) -> bool:
    return (codec, pixel_format) == ("h264", "yuv420p") and "mp4" in container.split(",")


def write_playable(src: Path, dst: Path) -> None:
    """Copy a video that every browser plays; of another one write a preview, which repeats frames for damaged ones.

    Raises like :class:`~bitad.video.reader.VideoReader`, and OSError if the copy cannot be written.
    """
    if plays_in_browsers(src):
        with atomic_write(dst) as partial:
            shutil.copyfile(src, partial)
    else:
        write_preview(src, dst, damaged="repeat")


def _scaled_pictures(
    reader: VideoReader, rate: Fraction, max_height: int, on_progress: Progress | None
) -> Iterator[av.VideoFrame]:
    info = reader.info
    reformatter = VideoReformatter()
    scale = min(Fraction(1), Fraction(max_height, info.height))
    # 4:2:0 needs even sides.
    height, width = (max(2, 2 * int(side * scale / 2)) for side in (info.height, info.width))
    step = reader.index.rate / rate
    places = np.array([int(number * step) for number in range(ceil(info.frames / step))])
    for done, picture in enumerate(reader.pictures(reader.index.nearest(places).tolist()), start=1):
        yield reformatter.reformat(
            picture,
            height=height,
            width=width,
            format="yuv420p",
            interpolation=Interpolation.AREA,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        if on_progress is not None:
            on_progress(done, len(places))
