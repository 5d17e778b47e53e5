"""The index of a video file: where its frames are, when they are shown, and which of them a damaged one spoils.

Presentation times become one increasing clock.
"""

from __future__ import annotations

import logging
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# No codec stores a picture before more than this many that are shown earlier.
MOST_REORDERED = 16

# A keyframe is shown after all frames that are stored before it. One that is shown earlier starts the clock again.
# Where every frame is a keyframe, neighbours may have changed places; there the clock must go back this many intervals.
_JITTER = 2.0

# An interval this many times as long as the median is a gap, and is left out of the usual interval.
_GAP = 1.5


def restarts(times: NDArray[np.float64], keyframes: NDArray[np.bool_], *, wrap: int | None = None) -> list[int]:
    """The packets at which a clock starts again, as where recordings are joined.

    A keyframe with a time before that of an earlier packet shows it. The new part may begin some packets before that
    keyframe, within a group of pictures.

    Args:
        times: ``[packets]``, presentation times in ticks in the order of storage; NaN where there is none.
        keyframes: bool ``[packets]``, whether decoding can begin there.
        wrap: ticks after which the container's times begin at 0 again. FFmpeg adds these to all times below the first
            one, so that an earlier time looks like a much later one.
    """
    intervals = np.diff(np.unique(times[np.isfinite(times)]))
    if not len(intervals):
        return []
    interval = float(np.median(intervals))
    jitter = interval * _JITTER if keyframes.all() else 0.0
    # Each field of a keyframe may have its own packet, both with the same time.
    second = np.append(False, (np.diff(times) == 0) & keyframes[:-1])
    starts: list[int] = []
    latest, fallen = -np.inf, None
    for packet, (time, keyframe) in enumerate(zip(times.tolist(), (keyframes & ~second).tolist(), strict=True)):
        if wrap is not None and np.isfinite(latest) and time - latest > wrap / 2:
            starts.append(packet)
            latest, fallen = time, None
        elif keyframe and latest - time >= jitter:
            starts.append(packet if fallen is None else fallen)
            latest, fallen = np.nanmax(times[starts[-1] : packet + 1]), None
        elif time > latest or keyframe:
            latest, fallen = max(time, latest), None
        elif fallen is None and latest - time > jitter + MOST_REORDERED * interval:
            fallen = packet
    return starts


def usual_interval(times: NDArray[np.int64]) -> Fraction:
    """The mean ticks from one frame to the next, gaps left out; times ascend, and there are two or more."""
    intervals = np.diff(times)
    usual = intervals[intervals <= _GAP * np.median(intervals)]
    mean = Fraction(int(usual.sum()), len(usual)) if len(usual) else Fraction(0)
    return mean or Fraction(int(times[-1] - times[0]), len(intervals))


def one_after_another(parts: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """Parts of a video on one clock: each further part begins where the last frame before it ends.

    Args:
        parts: of each, when its frames are shown in ticks of its own clock, ascending.
    """
    placed = list(parts[:1])
    for part in parts[1:]:
        before = placed[-1]
        interval = usual_interval(before if len(before) > 1 else part) if max(len(before), len(part)) > 1 else 1
        placed.append(part - part[0] + before[-1] + round(interval))
    return placed


def by_position(decoded: NDArray[np.float64], delay: int) -> NDArray[np.int64]:
    """When frames are shown, where a container states only when each packet is decoded (AVI: the chunk's position).

    The decoder gives the first picture with packet number ``delay``, and one more with every further packet.

    Args:
        decoded: ``[frames]``, decoding times in ticks, ascending.
        delay: how many pictures the decoder holds back to put them in order.

    Returns:
        presentation times ``[frames]`` in ticks, ascending.
    """
    times = np.round(decoded).astype(np.int64)
    if len(times) < 2 or not delay:
        return times
    later = times[-1] + np.round(float(usual_interval(times)) * np.arange(1, delay + 1)).astype(np.int64)
    return np.concatenate([times, later])[delay:]


def average_rate(times: NDArray[np.int64], time_base: Fraction, stated: Fraction, *, rounded: int = 1) -> Fraction:
    """Frames a second over the whole video, whose last frame is shown for the usual interval.

    Args:
        times: ``[frames]``, when each is shown, in ticks, ascending.
        time_base: seconds a tick.
        stated: the rate that the file states, returned where the times agree with it; 0 where it states none.
        rounded: by how many ticks the times may differ from it.
    """
    frames, span = len(times), int(times[-1] - times[0])
    if span == 0 or (stated and abs((frames - 1) / (stated * time_base) - span) <= rounded):
        return stated
    return _simplest(frames, (span + usual_interval(times)) * time_base, time_base)


def _simplest(frames: int, seconds: Fraction, error: Fraction) -> Fraction:
    """A rate of few digits, as encoders take it, at which so many frames last so long, to within ``error`` seconds."""
    rate = frames / seconds
    simple = near_rate(rate)
    if abs(frames / simple - seconds) <= error:
        return simple
    return near_rate(rate, digits=max(1, 10**9 // (1 + int(max(rate, 1 / rate)))))


def near_rate(rate: Fraction | float, *, digits: int = 1001) -> Fraction:
    """The nearest rate, of frames a second, whose denominator is at most ``digits``; below 1, whose numerator is."""
    rate = Fraction(rate)
    return 1 / (1 / rate).limit_denominator(digits) if 0 < rate < 1 else rate.limit_denominator(digits)


@dataclass(frozen=True, eq=False)
class FrameIndex:
    """Where a video's frames are found.

    Args:
        frames: number of frames that are there.
        rate: frames a second, on average; the last frame is taken to be shown for the usual interval.
        width: pixels of the pictures as stored, before any rotation.
        height: pixels, likewise.
        rotation: degrees anticlockwise by which players turn the pictures: 0, 90, 180 or 270.
        lost: number of frames, at least or about, that were there before the file was cut off; 0 for a whole file.
        time_base: seconds a tick.
        shown: int64 ``[frames]``, when each frame is shown, in ticks of one clock that never goes back.
        times: int64 ``[frames]``, the times in ticks by which FFmpeg's packets and pictures are known, ascending; None
            where these do not tell the frames apart. Those frames are found by decoding from the start and counting.
        keyframes: int64 ``[k]``, the frames at which decoding can begin, ascending; empty without times.
        stored: int64 ``[frames]``, the frames in the order in which the file holds them; empty without times.
        stream: the file's stream that holds the frames.
        joins: int64 ``[j, 2]``, the packets of that stream, counted from 0, at which its clock starts again, and the
            ticks added to the times from there on.
        sound: whole frames whose packets FFmpeg marks as damaged, because the stream breaks after them.
        notes: what is unusual about the file, a sentence each.
    """

    frames: int
    rate: Fraction
    width: int
    height: int
    rotation: int
    lost: int
    time_base: Fraction
    shown: NDArray[np.int64]
    times: NDArray[np.int64] | None
    keyframes: NDArray[np.int64]
    stored: NDArray[np.int64]
    stream: int
    joins: NDArray[np.int64]
    sound: frozenset[int]
    notes: tuple[str, ...]

    def nearest(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The frames shown nearest to positions on the average clock, where frame i stands at i / rate seconds.

        At a constant rate they are the positions themselves. At a variable rate the clock, on which annotations are,
        advances evenly while the frames do not. Positions after the last frame, which a cut-off file has lost, stay.

        Args:
            positions: int64 ``[T]``, counted from 0.
        """
        if self.frames == 1:
            return positions
        ticks = positions / float(self.rate * self.time_base)
        shown = self.shown - self.shown[0]
        later = np.searchsorted(shown, ticks).clip(1, self.frames - 1)
        earlier = later - 1
        nearest = np.where(shown[later] - ticks < ticks - shown[earlier], later, earlier)
        return np.where(positions < self.frames, nearest, positions)

    def keyframe(self, number: int) -> int:
        """The frame at which decoding begins to have another one: the last keyframe not after it, or else frame 0."""
        place = int(np.searchsorted(self.keyframes, number, "right")) - 1
        return int(self.keyframes[place]) if place >= 0 else 0

    def number(self, time: int | None) -> int | None:
        """The frame of a packet or picture by its time in ticks; None where it is none."""
        return None if time is None else self._numbers.get(time)

    @cached_property
    def _numbers(self) -> _Numbers:
        return _Numbers(np.empty(0, np.int64) if self.times is None else self.times)

    @cached_property
    def ranks(self) -> NDArray[np.int64]:
        """Each frame's place in the order of storage, int64 ``[frames]``."""
        return np.argsort(self.stored)

    @cached_property
    def reach(self) -> NDArray[np.int64]:
        """The last shown of the frames stored up to each one, int64 ``[frames]``: it may be made from that."""
        return np.maximum.accumulate(self.stored)[self.ranks]

    def spoilt(self, number: int) -> NDArray[np.bool_]:
        """The frames that may be made from a damaged one, and itself; bool ``[frames]``.

        These are stored from it on up to the next keyframe, or behind that but shown before it.
        """
        rank, ranks = self.ranks[number], self.ranks
        spoilt = ranks >= rank
        later = self.keyframes[ranks[self.keyframes] > rank]
        if len(later):
            keyframe = later[ranks[later].argmin()]
            spoilt &= (ranks < ranks[keyframe]) | (np.arange(self.frames) < keyframe)
        return spoilt


class _Numbers:
    """Each frame by its time in ticks: asked for every packet and picture, for which a search by numpy takes too long.

    Args:
        times: int64 ``[frames]``, ascending.
    """

    def __init__(self, times: NDArray[np.int64]) -> None:
        self._times = array("q", times.tobytes())  # 8 bytes a frame; a dict takes about 100

    def get(self, time: int) -> int | None:
        number = bisect_left(self._times, time)
        return number if number < len(self._times) and self._times[number] == time else None


# A gap is worth a line in the log if it is this many seconds and usual intervals long.
_LONG_GAP_S, _LONG_GAP = 5.0, 10

log = logging.getLogger("bitad")


def gaps(index: FrameIndex) -> Iterator[str]:
    """Where a video has no frames for a long time, in a sentence."""
    if index.frames < 2:
        return
    intervals = np.diff(index.shown)
    longest_usual = max(_LONG_GAP_S / float(index.time_base), _LONG_GAP * float(usual_interval(index.shown)))
    found = np.flatnonzero(intervals > longest_usual)
    if len(found):
        seconds = float(intervals[found[0]] * index.time_base)
        more = f" (and {len(found) - 1} more such gaps)" if len(found) > 1 else ""
        yield f"has no frames for {seconds:.1f} s after frame {found[0]}{more}; its frames keep their times"


def log_notes(path: Path, index: FrameIndex) -> None:
    """Log what is unusual about a file, once in a process."""
    for note in index.notes:
        _say(f"{path}: {note}")


@cache
def _say(line: str) -> None:
    log.warning("%s", line)
