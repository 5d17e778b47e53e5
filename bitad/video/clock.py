"""When a video's frames are shown: presentation times as one increasing clock, and the average rate on it.

This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

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
