"""Finding out where the frames of a video file are, by reading it through once.

A container's header states a frame count and a frame rate, and both may be wrong. So a file is read through, packet by
packet and almost without decoding, for the times at which its frames are shown and for whether it breaks off.

What is found may be kept on disk: who changes what that is raises the version in :mod:`bitad.video.index_cache`.

This module does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from bitad.video.frame_index import FrameIndex
from bitad.video.streams import (
    breaks_off,
    decode,
    ends_in_whole_picture,
    open_video,
    packets,
    pictures_until_damage,
    states_times,
)

# Wrong times show within the first few reordered frames; this many are decoded to see whether the times hold.
_FRAMES_TRIED = 16

# No codec shows a picture after more than this many that are stored behind it.
_MOST_REORDERED = 16


def index_video(path: str | Path) -> FrameIndex:
    """Read a file's packets, and decode only its first frames; or all, to count them, where its times are unusable.

    Frames at the beginning that no decoder can give, because what they are made from stands before the file's
    beginning, are none. So are those at the end that are cut off; they count as lost.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: FFmpeg cannot read it, or it has no video stream, no frames or no frame rate.
    """
    path = Path(path)
    try:
        stored = _Stored.of(path)
        index = _by_times(path, stored) or _by_counting(path, stored)
    except av.FFmpegError as error:
        raise ValueError(f"{path}: cannot be decoded: {error.strerror}") from None
    if not index.rate:
        raise ValueError(f"{path}: it states neither a frame rate nor times from which to count one")
    return index


@dataclass(frozen=True)
class _Stored:
    """A file's packets of pictures, in the order of storage.

    Args:
        times: float64 ``[packets]``, presentation times in ticks; NaN where there is none.
        keyframes: bool ``[packets]``, whether decoding can begin there.
        cut: number of packets at the end that are not whole and left out.
        stated: number of packets that the file states; 0 where it does not.
        seconds: duration that the file states; 0 where it does not.
        breaks_off: whether the file is shorter than it states; None where it states nothing.
        states_times: whether the container states when each frame is shown; else FFmpeg reckons it.
        rate: frames a second as stated; 0 where nothing is.
        time_base: seconds a tick.
    """

    times: NDArray[np.float64]
    keyframes: NDArray[np.bool_]
    cut: int
    stated: int
    seconds: float
    breaks_off: bool | None
    states_times: bool
    rate: Fraction
    time_base: Fraction

    @classmethod
    def of(cls, path: Path) -> _Stored:
        container, stream = open_video(path)
        with container:
            read = [
                (np.nan if packet.pts is None else packet.pts, packet.is_keyframe, packet.is_corrupt, packet.is_discard)
                for packet in packets(container, stream)
                if packet.size
            ]
            columns = np.array(read, np.float64).reshape(-1, 4)
            times, keyframes, damaged, hidden = columns[:, 0], *(columns[:, 1:] > 0).T
            times, keyframes, damaged = times[~hidden], keyframes[~hidden], damaged[~hidden]
            # One damaged earlier is found when it is decoded: what is damaged up to the end is cut off.
            kept = 1 + int(max(np.flatnonzero(~damaged), default=-1))
            if kept == len(times) and kept:
                begin = times[keyframes][-1:]
                keyframe = int(begin[0]) if np.isfinite(begin).any() else None
                kept -= not ends_in_whole_picture(path, container, keyframe)
            return cls(
                times=times[:kept],
                keyframes=keyframes[:kept],
                cut=len(times) - kept,
                stated=max(0, stream.frames - int(hidden.sum())),
                seconds=(container.duration or 0) / av.time_base,
                breaks_off=breaks_off(path, container),
                states_times=states_times(container),
                rate=stream.average_rate or stream.guessed_rate or Fraction(0),
                time_base=stream.time_base or Fraction(0),
            )

    def lost(self, frames: int, cut: int, rate: Fraction) -> int:
        """How many frames were there behind these before the file was cut off.

        Args:
            frames: the number that is there.
            cut: how many at the end have already been left out.
            rate: frames a second.
        """
        if not (self.breaks_off or cut):
            return 0
        stated = self.stated or (round(self.seconds * rate) if self.breaks_off else 0)
        # A file that states its frames and has them all has lost something else.
        return max(cut, stated - frames, 0 if stated else 1)


def _by_times(path: Path, stored: _Stored) -> FrameIndex | None:
    """The frames by the times that the packets state; None where these do not tell the frames apart."""
    order = np.argsort(stored.times, kind="stable")  # [frames] -> packets
    times = stored.times[order]
    if not (len(times) and stored.time_base and np.isfinite(times).all() and (np.diff(times) > 0).all()):
        return None
    first = _first_pictures(path)
    if (skipped := _undecodable(first, times, stored)) is None:
        return None
    order = order[skipped:]
    whole = _frames_before_hole(stored, order)
    cut = len(order) - whole
    order = order[:whole]
    shown = stored.times[order].astype(np.int64)
    rate = _average_rate(shown, stored.time_base, stored.rate)
    return FrameIndex(
        frames=whole,
        rate=rate,
        width=first[0].width,
        height=first[0].height,
        rotation=_quarter_turns(first[0]),
        lost=stored.lost(skipped + whole, stored.cut + cut, rate),
        time_base=stored.time_base,
        times=shown,
        keyframes=np.flatnonzero(stored.keyframes[order]),
        stored=np.argsort(order),
    )


def _by_counting(path: Path, stored: _Stored) -> FrameIndex:
    """The frames by decoding them all."""
    container, stream = open_video(path)
    first, frames, damaged = None, 0, False
    with container:
        for picture in pictures_until_damage(container, stream):
            if picture is None:
                damaged = True
            else:
                first, frames = first or picture, frames + 1
        if stored.cut or stored.breaks_off:  # what is shown last may stand behind frames that are lost
            frames -= min(frames, stream.codec_context.reorder_depth)
    if first is None or not frames:
        raise ValueError(f"{path}: no frame in it can be decoded")
    none = np.empty(0, np.int64)
    return FrameIndex(
        frames=frames,
        rate=stored.rate,
        width=first.width,
        height=first.height,
        rotation=_quarter_turns(first),
        # What stands behind a damaged frame cannot be told apart, so it is lost as well.
        lost=stored.lost(frames, max(stored.cut, len(stored.times) - frames if damaged else 0), stored.rate),
        time_base=stored.time_base,
        times=None,
        keyframes=none,
        stored=none,
    )


def _first_pictures(path: Path) -> list[VideoFrame]:
    """The first pictures that the decoder gives from the file's beginning."""
    container, stream = open_video(path)
    with container:
        decoded = (picture for packet in packets(container, stream) for picture in decode(packet)[0])
        pictures = list(islice(decoded, _FRAMES_TRIED))
    if not pictures:
        raise ValueError(f"{path}: no frame in it can be decoded")
    return pictures


def _undecodable(first: list[VideoFrame], times: NDArray[np.float64], stored: _Stored) -> int | None:
    """How many frames at the beginning cannot be decoded for want of earlier ones; None if the times do not hold.

    They hold if the first pictures appear at times that the packets state, in order; some writers' B-frames do not.
    """
    shown = np.array([np.nan if picture.pts is None else picture.pts for picture in first])
    if not np.isin(shown, times).all() or not (np.diff(shown) > 0).all():
        return None
    begin = stored.times[stored.keyframes][:1]
    # A damaged keyframe is no such reason: its frames are there, and the clock begins with them.
    return int(np.searchsorted(times, shown[0])) if len(begin) and shown[0] <= begin[0] else 0


def _frames_before_hole(stored: _Stored, order: NDArray[np.int64]) -> int:
    """How many frames there are up to where a cut-off end leaves out one that is shown before others that are there.

    Pictures are stored behind those that they are made from, so of the last few stored, one may be shown after others
    that are lost. At a constant rate the interval before it tells.

    Args:
        stored: the packets.
        order: ``[frames]``, each frame's packet.
    """
    frames, cut_off = len(order), bool(stored.cut or stored.breaks_off)
    # Of two or three frames none need have come out of turn yet.
    reordered = 1 < frames < 4 or bool((np.diff(order) < 0).any())
    if not reordered or (stored.breaks_off is False and not cut_off):
        return frames
    intervals = np.diff(stored.times[order])
    usual, end = np.median(intervals), max(0, len(intervals) - _MOST_REORDERED)
    regular = np.abs(intervals - usual) < max(2, usual / 4)
    constant = regular[:end].all() and (end >= _MOST_REORDERED or (not cut_off and regular.mean() > 0.7))
    if stored.states_times and constant:
        holes = end + np.flatnonzero(intervals[end:] > 1.5 * usual)
        return 1 + int(holes[0]) if len(holes) else frames
    # At a variable rate, or where times are reckoned, nothing tells: any from the last one stored on may be behind it.
    return int(order.argmax()) if cut_off else frames


def _quarter_turns(picture: VideoFrame) -> int:
    """Degrees anticlockwise by which players turn a picture, as whole quarters."""
    return round(picture.rotation / 90) * 90 % 360


def _average_rate(times: NDArray[np.int64], time_base: Fraction, stated: Fraction) -> Fraction:
    """Frames a second over the whole video: the stated rate where the times bear it out to the tick."""
    intervals, span = len(times) - 1, int(times[-1] - times[0])
    if intervals == 0 or (stated and abs(intervals / (stated * time_base) - span) <= 1):
        return stated
    return (intervals / (span * time_base)).limit_denominator(1001)
