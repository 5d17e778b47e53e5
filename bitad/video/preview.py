"""Small copies of videos that any browser plays.

This module does not import torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from fractions import Fraction
from math import ceil
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from bitad.files import replacing
from bitad.video.clock import near_rate
from bitad.video.damage import Damaged
from bitad.video.reader import VideoInfo, VideoReader, probe
from bitad.video.reverse import Progress
from bitad.video.writer import write_pictures


def write_preview(
    src: str | Path,
    dst: str | Path,
    *,
    max_height: int = 240,
    max_fps: Fraction | float = 15,
    damaged: Damaged = "error",
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
