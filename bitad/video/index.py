"""The index of a video file: the position and time of each frame."""

from __future__ import annotations

import logging
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitad.runtime.log import log_once
from bitad.timeline import FloatArray, IntArray

Booleans = NDArray[np.bool_]

# No codec stores a picture before more than this many that are shown earlier.
MOST_REORDERED = 16

# A keyframe is shown after all frames stored before it; an earlier time means that the clock restarts. If all frames
# are keyframes, neighbours may be swapped, so the clock must go back by this many intervals.
_JITTER = 2.0

# Longer intervals, in medians, are gaps.
_GAP = 1.5


def find_restarts(times: FloatArray, keyframes: Booleans, *, wrap: int | None = None) -> list[int]:
    """Find the packets at which a clock restarts, as in joined recordings, from times in storage order.

    A keyframe that is shown before an earlier packet reveals a restart, maybe some packets before it. FFmpeg adds
    the ticks ``wrap`` to all times below the first one, so that an earlier time looks like a much later one.
    """
    intervals = np.diff(np.unique(times[np.isfinite(times)]))
    if not len(intervals):
        return []
    interval = float(np.median(intervals))
    jitter = interval * _JITTER if keyframes.all() else 0.0
    # The two fields of a keyframe may be two packets with the same time.
    second = np.append(False, (np.diff(times) == 0) & keyframes[:-1])
    starts: list[int] = []
    latest, fallen = -np.inf, None
    for packet, (time, keyframe) in enumerate(zip(times.tolist(), (keyframes & ~second).tolist(), strict=True)):
        if wrap is not None and np.isfinite(latest) and time - latest > wrap / 2:
            starts.append(packet)
            latest, fallen = time, None
        elif keyframe and latest - time >= jitter:
            starts.append(packet if fallen is None else fallen)
            latest = np.nanmax(times[starts[-1] : packet + 1])
            fallen = None
        elif time > latest or keyframe:
            latest = max(time, latest)
            fallen = None
        elif fallen is None and latest - time > jitter + MOST_REORDERED * interval:
            fallen = packet
    return starts


def usual_interval(times: IntArray) -> Fraction:
    """The mean ticks between frames without gaps; two or more times, ascending."""
    intervals = np.diff(times)
    usual = intervals[intervals <= _GAP * np.median(intervals)]
    mean = Fraction(int(usual.sum()), len(usual)) if len(usual) else Fraction(0)
    return mean or Fraction(int(times[-1] - times[0]), len(intervals))


def join_clocks(parts: Sequence[IntArray]) -> list[IntArray]:
    """Put parts, ascending times in ticks, on one clock: each begins where the one before ends."""
    placed = list(parts[:1])
    for part in parts[1:]:
        before = placed[-1]
        longer = before if len(before) > 1 else part
        interval = usual_interval(longer) if len(longer) > 1 else 1
        placed.append(part - part[0] + before[-1] + round(interval))
    return placed


def times_by_position(decoded: FloatArray, delay: int) -> IntArray:
    """Presentation times ``[frames]`` from ascending decoding times, for AVI, which states only these.

    The decoder outputs the first picture with packet ``delay``, and one more with each further packet.
    """
    times = np.round(decoded).astype(np.int64)
    if len(times) < 2 or not delay:
        return times
    later = times[-1] + np.round(float(usual_interval(times)) * np.arange(1, delay + 1)).astype(np.int64)
    return np.concatenate([times, later])[delay:]


def average_rate(times: IntArray, time_base: Fraction, stated: Fraction, *, rounded: int = 1) -> Fraction:
    """The average frames per second; the last frame lasts for the usual interval.

    A ``stated`` rate (0: none) is returned if the times agree within ``rounded`` ticks.
    """
    frames = len(times)
    span = int(times[-1] - times[0])
    if span == 0 or (stated and abs((frames - 1) / (stated * time_base) - span) <= rounded):
        return stated
    seconds = (span + usual_interval(times)) * time_base
    rate = frames / seconds
    simple = near_rate(rate)  # encoders need few digits
    if abs(frames / simple - seconds) <= time_base:
        return simple
    return near_rate(rate, digits=max(1, 10**9 // (1 + int(max(rate, 1 / rate)))))


def near_rate(rate: Fraction | float, *, digits: int = 1001) -> Fraction:
    """The nearest frame rate whose denominator (below 1: numerator) is at most ``digits``."""
    rate = Fraction(rate)
    return 1 / (1 / rate).limit_denominator(digits) if 0 < rate < 1 else rate.limit_denominator(digits)


def _empty() -> IntArray:
    return np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class FrameIndex:
    """The index of a video's frames.

    Args:
        rate: average frames per second; the last frame lasts for the usual interval.
        width, height: pixels of the pictures as stored, before rotation.
        rotation: degrees anticlockwise by which players rotate the pictures.
        lost: about how many frames a truncated file has lost at its end.
        time_base: seconds per tick.
        shown: int64 ``[frames]``, presentation times in ticks of one increasing clock.
        times: int64 ``[frames]``, the ascending times in ticks of FFmpeg's packets and pictures; None if they do not
            distinguish the frames, which are then found by counting.
        keyframes: int64 ``[k]``, the frames at which decoding can begin, ascending.
        stored: int64 ``[frames]``, the frames in storage order; empty without times.
        joins: int64 ``[j, 2]``, the packets at which the clock restarts, and the ticks to add from there.
        sound: good frames that FFmpeg marks as damaged before a break in the stream.
        notes: sentences about unusual properties of the file.
    """

    frames: int
    rate: Fraction
    width: int
    height: int
    rotation: int
    lost: int
    time_base: Fraction
    shown: IntArray
    stream: int
    times: IntArray | None = None
    keyframes: IntArray = field(default_factory=_empty)
    stored: IntArray = field(default_factory=_empty)
    joins: IntArray = field(default_factory=lambda: _empty().reshape(0, 2))
    sound: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()

    def nearest(self, positions: IntArray) -> IntArray:
        """The frames nearest to positions ``[T]`` on the average clock, where frame i is at i / rate seconds.

        At a constant rate these are the positions. Positions in the lost end of a truncated file stay.
        """
        if self.frames == 1:
            return positions
        ticks = positions / float(self.rate * self.time_base)
        shown = self.shown - self.shown[0]
        later = np.searchsorted(shown, ticks).clip(1, self.frames - 1)
        nearest = np.where(shown[later] - ticks < ticks - shown[later - 1], later, later - 1)
        return np.where(positions < self.frames, nearest, positions)

    def keyframe(self, number: int) -> int:
        """The last keyframe up to a frame, or else frame 0."""
        place = int(np.searchsorted(self.keyframes, number, "right")) - 1
        return int(self.keyframes[place]) if place >= 0 else 0

    def number(self, time: int | None) -> int | None:
        """The frame with a time in ticks; None if there is none."""
        if time is None:
            return None
        number = bisect_left(self._times, time)
        return number if number < len(self._times) and self._times[number] == time else None

    @cached_property
    def _times(self) -> array[int]:
        # Searched for every picture: numpy is too slow, and a dict takes 100 bytes per frame.
        return array("q", b"" if self.times is None else self.times.tobytes())

    @cached_property
    def ranks(self) -> IntArray:
        """Each frame's position in storage order, int64 ``[frames]``."""
        return np.argsort(self.stored)

    @cached_property
    def reach(self) -> IntArray:
        """The latest frame that each frame may depend on, int64 ``[frames]``."""
        return np.maximum.accumulate(self.stored)[self.ranks]

    def affected_by(self, number: int) -> Booleans:
        """The frames that depend on a damaged one, itself included; bool ``[frames]``.

        They are stored from it up to the next keyframe, or after that but shown before it.
        """
        rank = self.ranks[number]
        ranks = self.ranks
        affected = ranks >= rank
        later = self.keyframes[ranks[self.keyframes] > rank]
        if len(later):
            keyframe = later[ranks[later].argmin()]
            affected &= (ranks < ranks[keyframe]) | (np.arange(self.frames) < keyframe)
        return affected


# Gaps of this many seconds and usual intervals are logged.
_LONG_GAP_S, _LONG_GAP = 5.0, 10


def gaps(index: FrameIndex) -> Iterator[str]:
    """A sentence about long times without frames, if any."""
    if index.frames < 2:
        return
    intervals = np.diff(index.shown)
    limit = max(_LONG_GAP_S / float(index.time_base), _LONG_GAP * float(usual_interval(index.shown)))
    found = np.flatnonzero(intervals > limit)
    if len(found):
        seconds = float(intervals[found[0]] * index.time_base)
        more = f" (and {len(found) - 1} more such gaps)" if len(found) > 1 else ""
        yield f"has no frames for {seconds:.1f} s after frame {found[0]}{more}; its frames keep their times"


def log_notes(path: Path, index: FrameIndex) -> None:
    for note in index.notes:
        log_once(f"{path}: {note}", logging.WARNING)
