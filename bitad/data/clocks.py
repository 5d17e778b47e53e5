"""Whether statements of a video's time agree, within :data:`TOLERANCE`; and lists of videos that state them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bitad.data.formats.parsing import is_missing, positive, read_table, table_columns, videos_by_name
from bitad.runtime.files import read_json
from bitad.runtime.log import shortlist

TOLERANCE = "1 % or 1 s, whichever is more, below 10 s 10 %, of features also a clip at the ends"
_SHARE = 0.01
_SHORT_SHARE = 0.1
_SECONDS = 1.0

# Segments in frames are counted from 0 or from 1, and are rounded.
_ROUNDING_FRAMES = 2

# Strides are integers, so the rate at which a video is sampled is seldom that of the training.
_RATE_SHARE = 0.25

Difference = Literal["another duration", "another frame rate", "another frame count"]


@dataclass(frozen=True)
class Clock:
    """A video's own time: seconds, and number of frames and frames a second, if known."""

    duration_s: float
    frames: int | None = None
    fps: float | None = None

    @property
    def rate(self) -> float | None:
        """Frames a second, stated or computed; None: unknown."""
        if self.fps is not None or self.frames is None or not math.isfinite(self.duration_s):
            return self.fps
        return self.frames / self.duration_s


def tolerance_s(duration_s: float) -> float:
    """How many seconds two statements of a length may differ."""
    return max(_SHARE * duration_s, min(_SECONDS, _SHORT_SHARE * duration_s))


def same_length(seconds: float, duration_s: float, *, slack_s: float = 0.0) -> bool:
    """Whether two lengths agree within the tolerance and ``slack_s``."""
    return abs(seconds - duration_s) <= tolerance_s(duration_s) + slack_s


def same_rate(fps: float, other: float) -> bool:
    """Whether two frame rates agree."""
    return abs(fps - other) <= _SHARE * max(fps, other)


def differences(stated: Clock, found: Clock) -> Iterator[tuple[Difference, str]]:
    """How a video's time differs from the annotations: the kind, and a predicate with both values."""
    if not same_length(found.duration_s, stated.duration_s):
        detail = f"lasts {found.duration_s:.2f} s, the annotations state {stated.duration_s:.2f} s"
        yield "another duration", detail
    elif stated.frames is not None and found.frames is not None:
        fps = found.frames / found.duration_s
        if not same_length(stated.frames / fps, found.duration_s, slack_s=1 / fps):
            yield "another frame count", f"has {found.frames} frames, the annotations state {stated.frames}"
    if stated.fps is not None and found.rate is not None and not same_rate(stated.fps, found.rate):
        yield "another frame rate", f"has {found.rate:.6g} frames a second, the annotations state {stated.fps:.6g}"


def contradictions(
    clock: Clock,
    segments: Iterable[tuple[Sequence[float], Sequence[float]]] = (),
) -> tuple[str, ...]:
    """Where a video's annotations contradict themselves.

    Args:
        segments: start and end in seconds, and the same in frames.
    """
    found = []
    if clock.frames is not None and clock.fps is not None:
        length_s = clock.frames / clock.fps
        if not same_length(length_s, clock.duration_s, slack_s=1 / clock.fps):
            frames_s = f"{clock.frames:.9g} frames at {clock.fps:g} a second are {length_s:.2f} s"
            found.append(f"{frames_s}, its duration is {clock.duration_s:g} s")
    if clock.rate is None:
        return tuple(found)
    for stated, frames in segments:
        slack_s = _ROUNDING_FRAMES / clock.rate
        for second, frame in zip(stated, frames, strict=True):
            if abs(second - frame / clock.rate) > tolerance_s(abs(second)) + slack_s:
                frame_s = f"frame {frame:g} at {clock.rate:.6g} a second is {frame / clock.rate:.2f} s"
                return (*found, f"segment(frames): {frame_s}, in its segment it is {second:g} s")  # one is enough
    return tuple(found)


def coverage_fault(
    rows: int,
    stride_frames: float,
    offset_frames: float,
    fps: float,
    duration_s: float,
) -> str | None:
    """How the time that features cover differs from the video's, if it does.

    ``offset_frames`` is the centre of the first row's clip. Features may lack up to a clip at the ends: twice the
    offset, which is half a clip, and a stride.
    """
    stride_s = stride_frames / fps
    offset_s = offset_frames / fps
    seconds = rows * stride_frames / fps
    begin_s = offset_s - stride_s / 2
    allowed_s = stride_s + tolerance_s(duration_s)
    long_enough = duration_s - seconds <= 2 * max(0.0, offset_s) + allowed_s
    if long_enough and begin_s >= -allowed_s and begin_s + seconds <= duration_s + allowed_s:
        return None
    return (
        f"features cover {100 * seconds / duration_s:.3g} %: {rows} rows x {stride_frames:g} frames / {fps:.6g} fps = "
        f"{seconds:.2f} s of {duration_s:.2f} s"
        + (f", the first at frame {offset_frames:g}" if offset_frames else "")
    )


def rate_fault(rate_hz: float, trained_hz: float) -> str | None:
    """How the grid steps a second of a video differ from those of the training, if too much."""
    if abs(rate_hz - trained_hz) <= _RATE_SHARE * trained_hz:
        return None
    return f"{rate_hz:.3g} grid steps a second, {trained_hz:.3g} in training"


def require_durations(
    stated: Mapping[str, float], found: Mapping[str, float], source: object, *, allowed: bool, remedy: str
) -> str | None:
    """Compare durations of detections with those of annotations, as :func:`require_agreement`."""
    faults = {
        name: f"{seconds:g} s there, {stated[name]:g} s annotated"
        for name, seconds in found.items()
        if name in stated and not same_length(seconds, stated[name])
    }
    return require_agreement(faults, len(found), source, allowed=allowed, remedy=remedy)


def require_agreement(
    faults: Mapping[str, str], videos: int, source: object, *, allowed: bool, remedy: str
) -> str | None:
    """Raise a ValueError if clocks disagree, or return a line that names the videos if that is ``allowed``.

    Args:
        faults: what is wrong, by video name.
        videos: the number of videos compared.
    """
    if faults and not allowed:
        raise ValueError(f"{source}: {disagreement(faults, videos, remedy)}")
    return f"{source}: {disagreement(faults, videos, 'used as they are')}" if faults else None


def disagreement(faults: Mapping[str, str], videos: int, remedy: str) -> str:
    """The line of :func:`require_agreement`."""
    names = shortlist((f"{name} ({fault})" for name, fault in faults.items()), 20)
    return f"the clocks of {len(faults)} of {videos} videos disagree by more than {TOLERANCE}: {names}; {remedy}"


# Names in lists of videos. BSN and mmaction2 call the counted rate "rfps", and the rounded one "fps".
_FRAMES = ("num_frame", "frame", "frames", "num_frames", "duration_frame", "numFrame", "video-frames", "count")
_FPS = ("rfps", "fps", "frame-rate")
_DURATION = ("duration", "duration_second", "seconds", "video-duration", "length")
_CLOCK = (*_FRAMES, *_FPS, *_DURATION)
# The names of the column of videos in tables; the first is EPIC-Kitchens', "id" Charades'.
_VIDEO_COLUMNS = ("video_id", "video", "video-name", "video_name", "id")


def read_clocks(path: str | Path) -> dict[str, Clock]:
    """Read a list of videos: JSON ``{"VIDEO": {"duration": seconds, "num_frame": n, "fps": f}}``, or a table.

    A video needs its duration, or frames and fps. The JSON may have the videos under ``database``, or be the
    ``features.json`` of BiTAD's features. Videos without any of these values are left out, unless all are without.
    """
    listed = _read_list(Path(path))
    stated = {name: video for name, video in listed.items() if _first_of(video, _CLOCK)}
    return {name: _clock(video, f"{path}: video {name}") for name, video in (stated or listed).items()}


def read_subsets(path: str | Path) -> dict[str, str]:
    """The subsets of the videos in such a list that states them; raises as :func:`read_clocks`."""
    subsets: dict[str, str] = {}
    for name, video in _read_list(Path(path)).items():
        subset = video.get("subset")
        if isinstance(subset, str) and subset:
            subsets[name] = subset
    return subsets


def _read_list(path: Path) -> Mapping[str, Mapping[str, Any]]:
    if path.suffix.lower() == ".csv":
        return _read_csv_list(path)
    content = read_json(path)
    if isinstance(content, dict):
        is_of_features = str(content.get("format")).startswith("bitad features")
        content = content.get("videos" if is_of_features else "database", content)
    return videos_by_name(content, path)


def _read_csv_list(path: Path) -> dict[str, dict[str, str]]:
    """A table's rows by video. A video may have several rows, if their values agree."""
    columns = table_columns(path)
    # Without such a column, read_table raises for the first one.
    key = next((column for column in _VIDEO_COLUMNS if column in columns), _VIDEO_COLUMNS[0])
    rows: dict[str, dict[str, str]] = {}
    for line, row in read_table(path, (key,)):
        values = {name: row[name] for name in (*_CLOCK, "subset") if name in row}
        if not (name := row[key]):
            raise ValueError(f"{path}:{line}: its video has no name")
        if rows.setdefault(name, values) != values:
            raise ValueError(f"{path}:{line}: video {name} is also in an earlier row, with other values; keep one")
    return rows


def _clock(video: Mapping[str, Any], where: str) -> Clock:
    keys = (_first_of(video, names) for names in (_FRAMES, _FPS, _DURATION))
    frames, fps, duration_s = (
        positive(video[key], f"{where}: {key}", is_count=key in _FRAMES) if key else None for key in keys
    )
    if duration_s is None and frames is not None and fps is not None:
        duration_s = frames / fps
    if duration_s is None:
        raise ValueError(f"{where}: neither its duration nor its frames and fps are stated")
    return Clock(duration_s, None if frames is None else round(frames), fps)


def _first_of(video: Mapping[str, Any], names: Iterable[str]) -> str | None:
    return next((name for name in names if not is_missing(video.get(name))), None)
