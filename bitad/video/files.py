"""Video files in a folder, by name.

This module does not import torch.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

# In the order of preference where a folder holds several files of one name.
VIDEO_SUFFIXES = (
    ".mp4",
    ".mkv",
    ".webm",
    ".mov",
    ".m4v",
    ".avi",
    ".mpg",
    ".mpeg",
    ".ts",
    ".m2ts",
    ".flv",
    ".wmv",
    ".3gp",
    ".h264",
    ".264",
    ".hevc",
    ".265",
)

# Results of a video are files of its name with another suffix, of four bytes; file systems take names of 255.
_MOST_BYTES = 251


def videos_by_name(paths: Sequence[Path]) -> dict[str, Path]:
    """Video files by the names under which results are written: those of the files, without the suffix.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a folder; two files of one name; a name under which nothing can be written.
    """
    videos: dict[str, Path] = {}
    for path in paths:
        if path.is_dir():
            raise ValueError(f"{path} is a folder; give the video files in it")
        if not path.is_file():
            raise FileNotFoundError(f"{str(path)!r}: no such video file; check its name")
        if defect := _name_defect(path.stem):
            raise ValueError(f"{str(path)!r}: its results cannot be written under its name, {defect}; rename the file")
        if path.stem in videos:
            raise ValueError(
                f"{videos[path.stem]} and {path} have the same name, {path.stem!r}, under which results are written; "
                "rename one, or give them one at a time, each with an --out of its own"
            )
        videos[path.stem] = path
    return videos


def _name_defect(name: str) -> str | None:
    """Why a name cannot be that of results: these are files, JSON, lines in a terminal and addresses in a page."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "which is not UTF-8"
    if "\\" in name:
        return "which has a backslash in it"
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in name):
        return "which has a control character in it"
    if len(os.fsencode(name)) > _MOST_BYTES:
        return "which is too long"
    return None


def find_video(folder: str | Path, name: str) -> Path:
    """The video file of an annotation's video: ``name`` with any of ``VIDEO_SUFFIXES``, or ``name`` itself.

    Raises:
        FileNotFoundError: the folder has none.
    """
    folder = Path(folder)
    itself = [""] if Path(name).suffix.lower() in VIDEO_SUFFIXES else []
    for ending in (*itself, *chain(*((suffix, suffix.upper()) for suffix in VIDEO_SUFFIXES))):
        if (path := folder / f"{name}{ending}").is_file():
            return path
    raise FileNotFoundError(f"{folder}: no video {name!r} there ({', '.join(VIDEO_SUFFIXES)})")
