"""Video files in a folder, by name.

This module does not import torch.
"""

from __future__ import annotations

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
