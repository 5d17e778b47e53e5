"""What the readers of annotation files share: rows of seconds and labels, gathered by video, and what they yield."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from bitad.data.annotations import AnnotatedVideo, Annotations, Classes, Defect, VideoEntry
from bitad.data.formats.database import annotations_of_entries
from bitad.data.formats.values import number

# Start and end in seconds, and the label.
Row = tuple[float, float, str]


@dataclass(frozen=True)
class Given:
    """What is named beside the files of annotations.

    Args:
        classes: the class names in order, or a list of them; a reader whose files number their classes needs it.
        video_info: a list of videos; a reader whose files state no subsets needs it.
    """

    classes: Classes | None = None
    video_info: Path | None = None


@dataclass(frozen=True)
class Source:
    """Ground truth as a data set's own files state it.

    Args:
        entries: the videos, in order, with what could not be read of each. A video whose duration no file states has
            an infinite one.
        classes: the class names in order; None: the labels, by their numbers or names.
        notes: what was left out or taken from elsewhere, a line each.
        path: the file or folder.
    """

    entries: Sequence[VideoEntry]
    classes: Classes | None = None
    notes: tuple[str, ...] = ()
    path: Path = field(default_factory=Path)

    @cached_property
    def annotations(self) -> Annotations:
        """Every segment, those of ignored labels too.

        Raises:
            ValueError: something of a video could not be read, or a label is not one of the classes.
        """
        return annotations_of_entries(self.entries, self.path, classes=self.classes)


@dataclass
class VideoRows:
    """A video whose rows are being read.

    Args:
        name: of the video.
        subset: of the video.
        where: the place of its first row, for people.
        duration_s: in seconds, inf where unknown.
        frames: number of frames, where known.
        fps: frames a second, where known.
        rows: those that could be read.
        defects: what could not.
    """

    name: str
    subset: str
    where: str
    duration_s: float = math.inf
    frames: int | None = None
    fps: float | None = None
    rows: list[Row] = field(default_factory=list)
    defects: list[Defect] = field(default_factory=list)

    def note(self, detail: str) -> None:
        """Something cannot be read."""
        self.defects.append(Defect(self.name, "unreadable", detail))

    @contextmanager
    def noting(self) -> Iterator[None]:
        """What raises a ValueError in the block is noted."""
        try:
            yield
        except ValueError as error:
            self.note(str(error))

    def entry(self, numbers: Mapping[str, int] | None = None) -> VideoEntry:
        """The video with its rows in ascending order; ``numbers`` are those of its labels, where the file has them."""
        if not self.name:
            self.note(f"{self.where}: its video has no name")
        ordered = sorted(self.rows)
        segments = np.array([row[:2] for row in ordered], np.float64).reshape(-1, 2)
        labels = tuple(row[2] for row in ordered)
        video = AnnotatedVideo(self.name, self.subset, self.duration_s, segments, labels, self.frames, self.fps)
        return VideoEntry(video, [(numbers or {}).get(label) for label in labels], self.defects)


class Videos(dict[str, VideoRows]):
    """Videos whose rows are being read, by name."""

    def of(self, name: str, subset: str, where: str) -> VideoRows:
        """The video of a row; that it is in another subset elsewhere is noted."""
        video = self.setdefault(name, VideoRows(name, subset, where))
        if name and video.subset != subset:
            video.note(f"{where}: video {name} is in subset {video.subset!r} elsewhere, here {subset!r}")
        return video

    def new(self, name: str, subset: str, where: str) -> VideoRows:
        """A video of one row; that there is another of its name is noted, and the second is left out."""
        if name in self:
            self[name].note(f"{where}: video {name!r} occurs twice")
            return VideoRows(name, subset, where)
        return self.of(name, subset, where)

    def entries(self) -> list[VideoEntry]:
        """All videos."""
        return [video.entry() for video in self.values()]


def seconds_of(stated: object, where: str) -> float:
    """A finite number, or a ValueError that says where it should stand."""
    value = number(stated)
    if value is None:
        raise ValueError(f"{where}: {stated!r} is not a number of seconds")
    return float(value)


def positive(stated: object, what: str) -> float:
    """A positive number, or a ValueError that says what it should be."""
    value = number(stated)
    if value is None or value <= 0:
        raise ValueError(f"{what} {stated!r} is not a positive number")
    return float(value)


def subset_of_file(path: Path, names: Mapping[str, str]) -> str:
    """The subset that a file's name tells by ``train``, ``val`` or ``test`` in it; ``names`` says what each is called.

    Raises:
        ValueError: the name tells none.
    """
    found = re.findall("|".join(names), path.name.lower())
    if not found:
        raise ValueError(f"{path}: its name tells no subset; let it contain {', '.join(names)}")
    return names[found[-1]]


def subset_of_thumos_video(video: str) -> str | None:
    """THUMOS14's subset that a video's name tells, as OpenTAD calls it: one trains on the official validation set."""
    starts = {"video_validation_": "training", "video_test_": "validation"}
    return next((subset for start, subset in starts.items() if video.startswith(start)), None)
