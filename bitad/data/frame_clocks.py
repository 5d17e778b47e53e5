"""When the frames of a video are shown, for files that count frames.

Frame i is shown from edge i to edge i + 1. Seconds are counted from the first frame, as everywhere in BiTAD.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np

from bitad.data.clocks import Clock, read_clocks
from bitad.runtime.log import log_once
from bitad.timeline import FloatArray, IntArray
from bitad.video.index import FrameIndex
from bitad.video.indexing import index_video
from bitad.video.names import VideoFinder, renamed

# No video has more; floats are exact up to it.
_MOST_FRAMES = 2**53
# Steps a second of an even clock, at most; and how much shorter than a step a frame may be.
_FINEST = 240.0
_JITTER = 0.1


@dataclass(frozen=True, eq=False)
class FrameTimes:
    """When the frames of a video are shown.

    Args:
        rate: average frames a second.
        frames: their number; None: unknown.
        edges: float64 ``[frames + 1]``, when each frame begins and the last one ends, in seconds; None: the rate is
            constant.
        size: width and height of the pictures as they are shown, in pixels, if known.
    """

    rate: Fraction
    frames: int | None = None
    edges: FloatArray | None = None
    size: tuple[int, int] | None = None

    @staticmethod
    def of(index: FrameIndex) -> FrameTimes:
        """Of a video file. The last frame lasts for the usual interval, so that the video ends at frames / rate."""
        begins = (index.shown - index.shown[0]) * float(index.time_base)
        end = max(float(index.frames / index.rate), float(begins[-1] + float(index.time_base)))
        width, height = index.width, index.height
        size = (height, width) if index.rotation % 180 else (width, height)
        return FrameTimes(index.rate, index.frames, np.append(begins, end), size)

    @property
    def clock(self) -> Clock:
        """The time of the video, whose number of frames is known."""
        assert self.frames is not None
        return Clock(float(self.frames / self.rate), self.frames, float(self.rate))

    @property
    def even_rate(self) -> float:
        """The rate of a clock of equal steps that are no longer than a frame, so that it rounds to half of one.

        It is the average rate if no frame is more than a tenth shorter, which is the jitter of rounded times, or else
        that of the shortest frame; at most 240.
        """
        rate = float(self.rate)
        shortest = 1 / rate if self.edges is None else float(np.diff(self.edges).min())
        return rate if shortest >= (1 - _JITTER) / rate else 1 / max(1 / _FINEST, shortest)

    def to_seconds(self, frames: IntArray) -> FloatArray:
        """When frames begin, which is when the ones before end. Beyond the video, frames have the average rate."""
        if self.edges is None:
            return frames / float(self.rate)
        inside = frames.clip(0, len(self.edges) - 1)
        return self.edges[inside] + (frames - inside) / float(self.rate)

    def spans(self, frames: Iterable[tuple[int, int]]) -> list[tuple[float, float]]:
        """Start and end in seconds of pairs of a first frame and the frame after the last one.

        Raises:
            ValueError: a number is too large for a frame's.
        """
        stated = list(frames)
        if large := [pair for pair in stated if max(map(abs, pair)) > _MOST_FRAMES]:
            raise ValueError(f"frames {large[0]} are no frames of a video")
        pairs = np.array(stated, np.int64).reshape(-1, 2)
        return list(map(tuple, self.to_seconds(pairs).tolist()))

    def to_frames(self, segments: FloatArray) -> IntArray:
        """Segments ``[n, 2]`` in seconds as the first frame and the frame after the last one, int64 ``[n, 2]``.

        Start and end are rounded to the nearest edges. A segment has at least one frame, and none outside the video.
        """
        last = np.iinfo(np.int64).max if self.frames is None else self.frames
        first, end = self._nearest(segments).clip(0, last).T
        # Of a segment shorter than a frame: the frame that shows its middle.
        middle = self._within(segments.mean(axis=1)).clip(0, last - 1)
        is_empty = first >= end
        return np.stack([np.where(is_empty, middle, first), np.where(is_empty, middle + 1, end)], axis=1)

    def _nearest(self, seconds: FloatArray) -> IntArray:
        if self.edges is None:
            return np.rint(seconds * float(self.rate)).astype(np.int64)
        middles = (self.edges[1:] + self.edges[:-1]) / 2
        return np.searchsorted(middles, seconds)

    def _within(self, seconds: FloatArray) -> IntArray:
        if self.edges is None:
            return np.floor(seconds * float(self.rate)).astype(np.int64)
        return np.searchsorted(self.edges, seconds, side="right") - 1


@dataclass(frozen=True)
class FrameClocks:
    """The times of frames by video: of the video files, or at a constant rate.

    Args:
        videos: a folder of video files, whose frames have their own times.
        video_info: a list of videos with frame rates (:func:`~bitad.data.clocks.read_clocks`).
        frame_rate: frames a second of all videos, instead.
        index: reads the frames of a file.
        names: of all videos, which may differ from those of the files by habits.
    """

    videos: Path | None = None
    video_info: Path | None = None
    frame_rate: float | None = None
    index: Callable[[Path], FrameIndex] = index_video
    names: tuple[str, ...] = ()
    _read: dict[Path, FrameTimes] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(
        videos: str | Path | None = None,
        video_info: str | Path | None = None,
        frame_rate: float | None = None,
        index: Callable[[Path], FrameIndex] = index_video,
    ) -> FrameClocks:
        """Checks the arguments.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: the frame rate is not a positive number.
        """
        if frame_rate is not None and not 0 < frame_rate < float("inf"):
            raise ValueError(f"frame rate {frame_rate}: give a positive number of frames a second")
        if videos is not None and not Path(videos).is_dir():
            raise FileNotFoundError(f"{videos}: no such folder of videos")
        folder = None if videos is None else Path(videos)
        return FrameClocks(folder, None if video_info is None else Path(video_info), frame_rate, index)

    def among(self, names: Iterable[str]) -> FrameClocks:
        """The same for videos of these names."""
        return replace(self, names=tuple(names))

    def of_file(self, path: Path) -> FrameTimes:
        """The times of a file's frames; every file is read once."""
        if path not in self._read:
            self._read[path] = FrameTimes.of(self.index(path))
        return self._read[path]

    def file(self, name: str) -> Path | None:
        """The file of a video; None, which is logged, if the folder has none, or if there is no folder."""
        if self._find is None:
            return None
        try:
            return self._find(name)
        except FileNotFoundError as error:
            log_once(f"{error}; the video's name is used alone")
            return None

    def rate(self, name: str) -> float | None:
        """The frame rate that the arguments or the list state for a video."""
        if self.frame_rate is not None:
            return self.frame_rate
        return self._listed[name].rate if name in self._listed else None

    def duration_s(self, name: str) -> float | None:
        """The duration of a video that its file or the list states; None: unknown."""
        if (file := self.file(name)) is not None:
            return self.of_file(file).clock.duration_s
        return self._listed[name].duration_s if name in self._listed else None

    def times(self, name: str, stated: Clock | None = None) -> FrameTimes:
        """The times of a video's frames.

        Args:
            stated: what the annotations say, for a video that neither the arguments nor a list or a file describe.

        Raises:
            FileNotFoundError: there is a folder of videos, without this one.
            ValueError: nothing says how the frames lie in time, or the file cannot be read.
        """
        rate = self.rate(name)
        if rate is None and self._find is not None:
            return self.of_file(self._find(name))
        if rate is None and stated is not None:
            rate = stated.rate
        if rate is None:
            remedy = "give --videos DIR, which also reads variable rates, --video-info FILE or --frame-rate"
            raise ValueError(f"video {name}: frames are counted, and its frame rate is not known; {remedy}")
        log_once(
            "frames are counted at a constant rate, as stated; for videos of variable rate, give --videos DIR instead"
        )
        frames = None if stated is None else stated.frames
        return FrameTimes(Fraction(rate), frames)

    @cached_property
    def _find(self) -> VideoFinder | None:
        return None if self.videos is None else VideoFinder(self.videos, lambda: self.names)

    @cached_property
    def _listed(self) -> Mapping[str, Clock]:
        if self.video_info is None:
            return {}
        return renamed(read_clocks(self.video_info), self.names, self.video_info)
