"""Writes videos (H.264, whole or not at all) and small previews that any browser plays."""

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
from bitad.runtime.files import replacing
from bitad.video.container import open_output
from bitad.video.index import near_rate
from bitad.video.reader import VideoInfo, VideoReader, probe

# The containers written, by suffix: FFmpeg's names.
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
    threads: int = 1,
) -> int:
    """Write H.264 (yuv420p, by libx264), whole or not at all; the number of frames written.

    Args:
        path: the file; its suffix, one of ``H264_CONTAINERS``, names the container.
        frames: uint8 ``[H, W, 3]`` each, red, green, blue; one at a time.
        fps: frames a second; a float is taken as the fraction near it whose denominator is at most 1001, and below 1
            as one whose numerator is.
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
        rate=near_rate(fps),
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
    return open_output(path, H264_CONTAINERS[suffix.lower()], options)


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


def write_preview(
    src: str | Path,
    dst: str | Path,
    *,
    max_height: int = 240,
    max_fps: Fraction | float = 15,
    damaged: OnDecodeError = "error",
    on_progress: Progress | None = None,
) -> VideoInfo:
    """Write a small H.264 mp4 of a video, without sound and of the same duration; what was written.

    Pictures are decoded, scaled and encoded one at a time, so memory does not grow with the video. A whole file that
    browsers play already and that is small enough is copied as it is.

    Args:
        src: any video that FFmpeg reads.
        dst: the preview, an ``.mp4``.
        max_height: pixels; a higher video is scaled down, keeping its proportions.
        max_fps: frames a second; a faster video loses frames, evenly.
        damaged: what to do about frames that cannot be decoded, see :class:`~bitad.video.reader.VideoReader`.
        on_progress: called after each picture with the number of pictures done and in all.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the source cannot be decoded, or ``dst`` is ``src`` or no ``.mp4``.
    """
    src, dst = Path(src), Path(dst)
    if src.resolve() == dst.resolve():
        raise ValueError(f"{dst}: the preview would replace its source; name another file")
    if dst.suffix.lower() != ".mp4":
        raise ValueError(f"{dst}: a preview is an .mp4 file")
    with VideoReader(src, damaged=damaged) as reader:
        rate, limit = reader.index.rate, near_rate(max_fps)
        small = reader.info.height <= max_height and rate <= limit
        if small and not reader.index.lost and _browsers_play(reader.info):
            with replacing(dst) as partial:
                shutil.copyfile(src, partial)
        else:
            shown = min(rate, limit)
            write_pictures(
                dst,
                _pictures(reader, shown, max_height, on_progress),
                rate=shown,
                crf=28,
                preset="veryfast",
                gop=30,
                b_frames=0,
                faststart=True,
            )
    return probe(dst)


def _browsers_play(info: VideoInfo) -> bool:
    return info.codec == "h264" and info.pixel_format == "yuv420p" and "mp4" in info.container.split(",")


def _pictures(
    reader: VideoReader, rate: Fraction, max_height: int, on_progress: Progress | None
) -> Iterator[av.VideoFrame]:
    """The video's pictures at another rate, none higher than ``max_height``, as browsers decode them."""
    info, reformatter = reader.info, VideoReformatter()
    scale = min(Fraction(1), Fraction(max_height, info.height))
    # 4:2:0 halves both sides, so both must be even.
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


# Called with how much is done and how much there is.
Progress = Callable[[int, int], None]
