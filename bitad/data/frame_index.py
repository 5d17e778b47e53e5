"""Where the frames of a video file are found: counted, timed and told apart by reading it through once.

A container's header states a frame count and a frame rate, and both may be wrong. So a file is read through, packet by
packet and without decoding, for the times at which its frames are shown.

This module does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream
from numpy.typing import NDArray

# Wrong times show within the first few reordered frames; this many are decoded to see whether the times hold.
_FRAMES_TRIED = 16


@dataclass(frozen=True)
class FrameIndex:
    """Where a video's frames are found.

    Args:
        frames: number of frames.
        rate: frames a second, on average.
        times: int64 ``[frames]``, presentation times in the stream's own ticks, ascending; None where the file's times
            do not tell its frames apart. Those frames are found by decoding from the start and counting.
        keyframes: int64 ``[k]``, the frames at which decoding can begin, ascending; empty without times.
    """

    frames: int
    rate: Fraction
    times: NDArray[np.int64] | None
    keyframes: NDArray[np.int64]

    @classmethod
    def of(cls, path: str | Path) -> FrameIndex:
        """Read a file's packets, and decode only its first frames; or all, to count them, where its times are unusable.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: FFmpeg cannot read it, or it has no video stream, no frames or no frame rate.
        """
        path = Path(path)
        times: NDArray[np.int64] | None
        try:
            container, stream = open_video(path)
            with container:
                packets = [
                    (packet.pts, packet.is_keyframe)
                    for packet in container.demux(stream)
                    if packet.size and not packet.is_discard
                ]
                rate, time_base = stream.average_rate or stream.guessed_rate, stream.time_base
            timed = sorted((time, keyframe) for time, keyframe in packets if time is not None)
            times = np.array([time for time, _ in timed], np.int64)
            keyframes = np.flatnonzero([keyframe for _, keyframe in timed])
            told_apart = len(times) == len(packets) and bool((np.diff(times) > 0).all())
            if told_apart and time_base and _times_hold(path, times):
                frames, rate = len(times), _average_rate(times, time_base, rate)
            else:
                frames, times, keyframes = _count_by_decoding(path), None, np.empty(0, np.int64)
        except av.FFmpegError as error:
            raise ValueError(f"{path}: cannot be decoded: {error.strerror}") from None
        if not frames:
            raise ValueError(f"{path}: no frame in it can be decoded")
        if not rate:
            raise ValueError(f"{path}: it states neither a frame rate nor times from which to count one")
        return cls(frames, rate, times, keyframes)


def open_video(path: Path, threads: int = 1) -> tuple[InputContainer, VideoStream]:
    """Open a file and choose its first video stream (a cover picture is none)."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such video file")
    try:
        container = av.open(str(path))
    except av.FFmpegError as error:
        raise ValueError(f"{path}: not a video that FFmpeg can read: {error.strerror}") from None
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        container.close()
        raise ValueError(f"{path}: no video stream in it")
    streams[0].codec_context.thread_count = threads
    streams[0].codec_context.thread_type = "FRAME" if threads > 1 else "NONE"
    return container, streams[0]


def _times_hold(path: Path, times: NDArray[np.int64]) -> bool:
    """Whether the first pictures appear at the times that the packets state (some writers' B-frames do not)."""
    container, stream = open_video(path)
    with container:
        found = [picture.pts for picture in islice(container.decode(stream), _FRAMES_TRIED)]
    return found == times[:_FRAMES_TRIED].tolist()


def _count_by_decoding(path: Path) -> int:
    container, stream = open_video(path)
    with container:
        return sum(1 for _ in container.decode(stream))


def _average_rate(times: NDArray[np.int64], time_base: Fraction, stated: Fraction | None) -> Fraction | None:
    """Frames a second over the whole video: the stated rate where the times bear it out to the tick."""
    intervals, span = len(times) - 1, int(times[-1] - times[0])
    if intervals == 0 or (stated and abs(intervals / (stated * time_base) - span) <= 1):
        return stated
    return (intervals / (span * time_base)).limit_denominator(1001)
