"""How long videos last and how many frames they have: read from the videos themselves, or from a list of them.

This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bitad.data.clock_agreement import Clock
from bitad.data.csv_tables import columns_of, rows_of_table
from bitad.data.stated import described, is_missing, number, some
from bitad.files import read_json, read_text
from bitad.video.finder import VideoFinder
from bitad.video.indexing import index_video

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
