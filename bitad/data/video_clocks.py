"""How long videos last and how many frames they have: read from the videos themselves, or from a list of them.

This module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from bitad.data.clock_agreement import Clock
from bitad.data.csv_tables import rows_of_table
from bitad.files import read_json
from bitad.video.files import find_video
from bitad.video.indexing import index_video

# The names under which lists state a video's frames, frames a second (mmaction2's "rfps" is the counted one), and
# seconds.
_NAMES = {
    "frames": ("num_frame", "frame", "frames", "num_frames", "duration_frame"),
    "fps": ("rfps", "fps"),
    "duration_s": ("duration", "duration_second"),
}


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
    clocks: dict[str, Clock] = {}
    reasons: dict[str, str] = {}
    for done, name in enumerate(names, start=1):
        try:
            index = index_video(find_video(folder, name))
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
    ``duration_frame``). A table (``.csv``) has columns ``video_id`` and ``duration`` or the others, as
    EPIC-Kitchens-100's ``EPIC_100_video_info.csv`` does.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such list, or lacks what a video needs.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        stated: Any = _rows_by_video(path)
    else:
        stated = read_json(path)
        if isinstance(stated, dict):
            stated = stated.get("database", stated)
    if not isinstance(stated, dict) or not all(isinstance(video, dict) for video in stated.values()):
        raise ValueError(f'{path}: not a list of videos; one is {{"VIDEO": {{"duration": 12.5, "num_frame": 375}}}}')
    return {name: _clock(video, f"{path}: video {name}") for name, video in stated.items()}


def _rows_by_video(path: Path) -> dict[str, dict[str, str]]:
    rows: dict[str, dict[str, str]] = {}
    for where, row in rows_of_table(path, ("video_id",)):
        if (name := row["video_id"]) in rows:
            raise ValueError(f"{where}: video {name} is also in an earlier row; keep one of the two")
        rows[name] = row
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
        value = video.get(name)
        if value in (None, ""):
            continue
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not (math.isfinite(number) and number > 0):
            raise ValueError(f"{where}: {name} {value!r} is not a positive number")
        return number
    return None
