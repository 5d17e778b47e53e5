"""Where the frames of a video file are found, which of them a damaged one spoils, and which is shown when.

This module does not import torch.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


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
