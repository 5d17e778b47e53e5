"""Whether statements of a video's time agree: seconds, frames, frame rate, segments, rows of features.

All comparisons allow the same :data:`TOLERANCE`: 29.97 and 30 frames per second agree, 24 and 25 do not. Durations and
frame counts are read from the videos, or from a list of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bitad.data.formats.values import columns_of, described, is_missing, number, rows_of_table, some
from bitad.runtime.files import read_json, read_text
from bitad.video.indexing import index_video
from bitad.video.names import VideoFinder

TOLERANCE = "1 % or 1 s, whichever is more, below 10 s 10 %, of features also a clip at the ends"
_SHARE, _SHORT_SHARE, _SECONDS = 0.01, 0.1, 1.0

# Segments in frames are counted from 0 or from 1, and are rounded.
_ROUNDING_FRAMES = 2

# Strides are whole frames, so the rate at which a video is sampled is seldom that of the training.
_RATE_SHARE = 0.25

# So many videos a message names with details.
_MOST = 20

Difference = Literal["another duration", "another frame rate", "another frame count"]


@dataclass(frozen=True)
class Clock:
    """A video's own time.

    Args:
        duration_s: how long it lasts, in seconds.
        frames: number of frames, where known.
        fps: frames a second, where known.
    """

    duration_s: float
    frames: int | None = None
    fps: float | None = None

    @property
    def rate(self) -> float | None:
        """Frames a second, stated or counted; None: unknown."""
        if self.fps is not None or self.frames is None or not math.isfinite(self.duration_s):
            return self.fps
        return self.frames / self.duration_s


def tolerance_s(duration_s: float) -> float:
    """How many seconds two statements of a length may differ. Sound that continues after the last picture is within."""
    return max(_SHARE * duration_s, min(_SECONDS, _SHORT_SHARE * duration_s))


def same_length(seconds: float, duration_s: float, *, slack_s: float = 0.0) -> bool:
    """Whether two lengths agree; ``slack_s`` is what they may differ by beside the tolerance."""
    return abs(seconds - duration_s) <= tolerance_s(duration_s) + slack_s


def same_rate(fps: float, other: float) -> bool:
    """Whether two frame rates agree."""
    return abs(fps - other) <= _SHARE * max(fps, other)


def differences(stated: Clock, found: Clock) -> Iterator[tuple[Difference, str]]:
    """How a video's time differs from what the annotations state: the kind, and what was found and stated."""
    if not same_length(found.duration_s, stated.duration_s):
        yield (
            "another duration",
            f"lasts {found.duration_s:.2f} s, the annotations state {stated.duration_s:.2f} s",
        )
    elif stated.frames is not None and found.frames is not None:
        fps = found.frames / found.duration_s
        if not same_length(stated.frames / fps, found.duration_s, slack_s=1 / fps):
            yield "another frame count", f"has {found.frames} frames, the annotations state {stated.frames}"
    if stated.fps is not None and found.rate is not None and not same_rate(stated.fps, found.rate):
        yield (
            "another frame rate",
            f"has {found.rate:.6g} frames a second, the annotations state {stated.fps:.6g}",
        )


def contradictions(clock: Clock, segments: NDArray[np.float64], frame_segments: NDArray[np.float64]) -> tuple[str, ...]:
    """Where a video's annotations contradict themselves: frames over fps the duration, segments in frames the seconds.

    Args:
        clock: as they state it.
        segments: ``[n, 2]`` in seconds.
        frame_segments: the same in frames, NaN where they are not stated.
    """
    found = []
    if clock.frames is not None and clock.fps is not None:
        seconds = clock.frames / clock.fps
        if not same_length(seconds, clock.duration_s, slack_s=1 / clock.fps):
            found.append(
                f"{clock.frames:.9g} frames at {clock.fps:g} a second are {seconds:.2f} s, its duration is "
                f"{clock.duration_s:g} s"
            )
    if clock.rate is None:
        return tuple(found)
    with np.errstate(over="ignore"):
        on_the_clock = frame_segments / clock.rate
    for stated, frames, seconds in zip(segments.tolist(), frame_segments.tolist(), on_the_clock.tolist(), strict=True):
        allowed = [tolerance_s(abs(edge)) + _ROUNDING_FRAMES / clock.rate for edge in stated]
        if any(abs(a - b) > most for a, b, most in zip(stated, seconds, allowed, strict=True)):
            found.append(
                f"segment(frames) [{frames[0]:g}, {frames[1]:g}] at {clock.rate:.6g} a second is [{seconds[0]:.2f}, "
                f"{seconds[1]:.2f}] s, its segment [{stated[0]:g}, {stated[1]:g}] s"
            )
            break  # one tells of all
    return tuple(found)


def coverage_fault(rows: int, stride_frames: float, offset_frames: float, fps: float, duration_s: float) -> str | None:
    """How the time that features cover differs from the video's, if it does.

    Clips lie in the video whole, so features lose up to a clip at the ends: twice the offset, which is half a clip, and
    a stride. The last row may stand for less than a stride.

    Args:
        rows: of features, one every ``stride_frames`` frames.
        offset_frames: frame at the centre of the first row's clip.
        fps: frames a second that these count.
        duration_s: of the video, as annotated.
    """
    seconds, stride_s, offset_s = rows * stride_frames / fps, stride_frames / fps, offset_frames / fps
    begin_s, allowed_s = offset_s - stride_s / 2, stride_s + tolerance_s(duration_s)
    long_enough = duration_s - seconds <= 2 * max(0.0, offset_s) + allowed_s
    if long_enough and begin_s >= -allowed_s and begin_s + seconds <= duration_s + allowed_s:
        return None
    return (
        f"features cover {100 * seconds / duration_s:.3g} %: {rows} rows x {stride_frames:g} frames / {fps:.6g} fps = "
        f"{seconds:.2f} s of {duration_s:.2f} s" + (f", the first at frame {offset_frames:g}" if offset_frames else "")
    )


def require_durations(
    stated: Mapping[str, float], found: Mapping[str, float], source: object, *, allowed: bool, remedy: str
) -> str | None:
    """Compares the durations of detections with those of the annotations, of the videos that both know.

    Args:
        stated: by the annotations, in seconds, by video's name.
        found: with the detections.
        source: of the detections, for the message.
        allowed: whether they may disagree.
        remedy: where that is not allowed.

    Returns:
        where they disagree and may, one line that names the videos.

    Raises:
        ValueError: they disagree and may not.
    """
    faults = {
        name: f"{seconds:g} s there, {stated[name]:g} s annotated"
        for name, seconds in found.items()
        if name in stated and not same_length(seconds, stated[name])
    }
    return require_agreement(faults, len(found), source, allowed=allowed, remedy=remedy)


def require_agreement(
    faults: Mapping[str, str], videos: int, source: object, *, allowed: bool, remedy: str
) -> str | None:
    """Refuses videos whose clocks disagree, or says so.

    Args:
        faults: what is wrong, by the video's name.
        videos: the number of videos looked at.
        source: the file, for the message.
        allowed: whether they may disagree.
        remedy: where that is not allowed.

    Returns:
        where there are faults and they are allowed, one line that names the videos.

    Raises:
        ValueError: there are faults, and they are not allowed.
    """
    if not faults:
        return None
    if not allowed:
        raise ValueError(f"{source}: {disagreement(faults, videos, remedy)}")
    return f"{source}: {disagreement(faults, videos, 'used as they are')}"


def rate_fault(rate_hz: float, trained_hz: float) -> str | None:
    """How far the grid steps a second that a network sees are from those it was trained on, if far."""
    if abs(rate_hz - trained_hz) <= _RATE_SHARE * trained_hz:
        return None
    return f"{rate_hz:.3g} grid steps a second, {trained_hz:.3g} in training"


def disagreement(faults: Mapping[str, str], videos: int, remedy: str) -> str:
    """One line that names the videos whose clocks disagree, how, and what to do.

    Args:
        faults: what is wrong, by the video's name; not empty.
        videos: the number of videos looked at.
    """
    told = [f"{name} ({fault})" for name, fault in list(faults.items())[:_MOST]]
    more = f" and {len(faults) - _MOST} more" if len(faults) > _MOST else ""
    return (
        f"the clocks of {len(faults)} of {videos} videos disagree by more than {TOLERANCE}: "
        f"{', '.join(told)}{more}; {remedy}"
    )


# The names under which lists state a video's frames, frames a second (the "rfps" of BSN and mmaction2 is the counted
# one, their "fps" rounded), and seconds. "count" is AFSD's.
_NAMES = {
    "frames": ("num_frame", "frame", "frames", "num_frames", "duration_frame", "numFrame", "video-frames", "count"),
    "fps": ("rfps", "fps", "frame-rate"),
    "duration_s": ("duration", "duration_second", "seconds", "video-duration", "length"),
}
# The names of the column of videos in tables; the first is EPIC-Kitchens', "id" Charades'.
_VIDEO_COLUMNS = ("video_id", "video", "video-name", "video_name", "id")


def probe_clocks(
    folder: str | Path, names: Iterable[str], *, on_progress: Callable[[int, int], None] | None = None
) -> tuple[dict[str, Clock], dict[str, str]]:
    """Count the frames of videos; the duration of each is its frames over its frame rate.

    Args:
        folder: where the files are.
        names: the videos' names, without extension.
        on_progress: called after each video with the number of videos done and in all.

    Returns:
        the clocks by name, and by name why there is none.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folder, names = Path(folder), list(names)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of videos")
    find = VideoFinder(folder, partial(tuple, names))
    clocks: dict[str, Clock] = {}
    reasons: dict[str, str] = {}
    for done, name in enumerate(names, start=1):
        try:
            index = index_video(find(name))
            clocks[name] = Clock(float(index.frames / index.rate), index.frames, float(index.rate))
        except (ValueError, FileNotFoundError) as error:
            reasons[name] = str(error)
        if on_progress is not None:
            on_progress(done, len(names))
    return clocks, reasons


def read_clocks(path: str | Path) -> dict[str, Clock]:
    """Read a list of videos: JSON ``{"VIDEO": {"duration": seconds, "num_frame": n, "fps": f}}``, or a table.

    Of duration, frames and fps a video needs the first or the other two. The JSON may hold the videos under
    ``database``, so that an annotation file of OpenTAD's serves too, and use mmaction2's names (``duration_second``,
    ``duration_frame``). A table (``.csv``) has a column ``video_id`` or ``video`` and ``duration`` or the others:
    EPIC-Kitchens-100's ``EPIC_100_video_info.csv``, BSN's ``video_info_new.csv`` (``seconds``, ``numFrame``, ``rfps``),
    AFSD's ``val_video_info.csv``, Charades' tables, ``thumos14_test_groundtruth.csv``. Videos of which it states none
    of these are passed over, unless it does so of all.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such list, or lacks what a video needs.
    """
    listed = _listed(Path(path))
    stated = {name: video for name, video in listed.items() if any(map(partial(_states, video), _NAMES.values()))}
    return {name: _clock(video, f"{path}: video {name}") for name, video in (stated or listed).items()}


def _states(video: Mapping[str, Any], names: Iterable[str]) -> bool:
    return not all(is_missing(video.get(name)) for name in names)


def read_subsets(path: str | Path) -> dict[str, str]:
    """The subsets of the videos in such a list, as far as it states them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such list.
    """
    stated = {name: video.get("subset") for name, video in _listed(Path(path)).items()}
    return {name: subset for name, subset in stated.items() if isinstance(subset, str) and subset}


def _listed(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """What a list of videos says of each."""
    if path.suffix.lower() == ".csv":
        return _rows_by_video(path)
    stated = content = read_json(path)
    if isinstance(stated, dict):
        stated = stated.get("database", stated)
    if not isinstance(stated, dict) or not all(isinstance(video, dict) for video in stated.values()):
        raise ValueError(
            f'{path}: not a list of videos; one is {{"VIDEO": {{"duration": 12.5, "num_frame": 375}}}}, and this is '
            f"{described(content)}"
        )
    return stated


def _rows_by_video(path: Path) -> dict[str, dict[str, str]]:
    """A table's rows by video; rows of segments may repeat their video's, where they state the same of it."""
    columns = columns_of(path)
    key = next((column for column in _VIDEO_COLUMNS if column in columns), None)
    if key is None and path.is_file():
        read_text(path, "a list of videos")  # which tells what is no text
        has = f"; it has {some(columns)}" if columns else ""
        raise ValueError(f"{path}: no column {' or '.join(map(repr, _VIDEO_COLUMNS))} of the videos' names{has}")
    key = key or _VIDEO_COLUMNS[0]
    rows: dict[str, dict[str, str]] = {}
    for line, row in rows_of_table(path, (key,)):
        own = {name: row[name] for names in (*_NAMES.values(), ("subset",)) for name in names if name in row}
        if not (name := row[key]):
            raise ValueError(f"{path}:{line}: its video has no name")
        if rows.setdefault(name, own) != own:
            raise ValueError(f"{path}:{line}: video {name} is also in an earlier row, with other values; keep one")
    return rows


def _clock(video: Mapping[str, Any], where: str) -> Clock:
    numbers = {ours: _number(video, names, where) for ours, names in _NAMES.items()}
    frames, fps, duration_s = numbers["frames"], numbers["fps"], numbers["duration_s"]
    if frames is not None and round(frames) == 0:
        raise ValueError(f"{where}: {frames:g} frames are not a positive number of them")
    if duration_s is None and frames is not None and fps is not None:
        duration_s = frames / fps
    if duration_s is None:
        raise ValueError(f"{where}: neither its duration nor its frames and fps are stated")
    return Clock(duration_s, None if frames is None else round(frames), fps)


def _number(video: Mapping[str, Any], names: Iterable[str], where: str) -> float | None:
    """The first of these that is stated, a positive number."""
    for name in names:
        if is_missing(stated := video.get(name)):
            continue
        value = number(stated)
        if value is None or value <= 0:
            raise ValueError(f"{where}: {name} {stated!r} is not a positive number")
        return float(value)
    return None
