"""What the readers of data sets' own annotation files share: rows of seconds and labels, gathered by video.

This module does not import torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitad.data.annotations import UNDECIDED, AnnotatedVideo, Annotations

# Start and end in seconds, and the label.
Row = tuple[float, float, str]


@dataclass(frozen=True)
class Source:
    """Ground truth as a data set's own files state it.

    Args:
        annotations: every segment. A video whose duration no file states has an infinite one.
        notes: what was left out or taken from elsewhere, a line each.
    """

    annotations: Annotations
    notes: tuple[str, ...] = ()


def video_of_rows(
    name: str,
    subset: str,
    rows: Iterable[Row],
    *,
    duration_s: float = math.inf,
    frames: int | None = None,
    fps: float | None = None,
) -> AnnotatedVideo:
    """A video with its rows in ascending order."""
    ordered = sorted(rows)
    segments = np.array([row[:2] for row in ordered], np.float64).reshape(-1, 2)
    return AnnotatedVideo(name, subset, duration_s, segments, tuple(row[2] for row in ordered), frames, fps)


def annotations_of_videos(videos: Mapping[str, AnnotatedVideo], classes: Iterable[str] = ()) -> Annotations:
    """The videos with these classes; without them, with the labels that occur, by name."""
    found = {label for video in videos.values() for label in video.labels} - set(UNDECIDED)
    return Annotations(dict(videos), tuple(classes) or tuple(sorted(found)))


def seconds_of(text: object, where: str) -> float:
    """A finite number, or a ValueError that says where it should stand."""
    try:
        value = float(str(text))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: {text!r} is not a number of seconds")
    return value


def subset_of_file(path: Path, names: Mapping[str, str]) -> str:
    """The subset that a file's name tells by ``train``, ``val`` or ``test`` in it; ``names`` says what each is called.

    Raises:
        ValueError: the name tells none.
    """
    found = re.findall("|".join(names), path.name.lower())
    if not found:
        raise ValueError(f"{path}: its name tells no subset; let it contain {', '.join(names)}")
    return names[found[-1]]
