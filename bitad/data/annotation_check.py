"""What an annotation file holds and what is wrong with it, by video.

This module does not import torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from bitad.data.annotations import UNDECIDED, AnnotatedVideo, Defect, VideoEntry, class_names, read_entries
from bitad.data.files import read_json
from bitad.data.videos import find_video

# A segment may end this much after its video: what a sum of floating-point seconds is off.
_ROUNDING_S = 1e-6


@dataclass(frozen=True)
class AnnotationReport:
    """What an annotation file holds and what is wrong with it.

    Args:
        path: the file.
        subsets: number of videos in each subset.
        classes: number of segments of each class, in the order of the classes.
        ignored: number of segments of each ignored label.
        defects: everything found, video after video.
    """

    path: str
    subsets: dict[str, int]
    classes: dict[str, int]
    ignored: dict[str, int]
    defects: tuple[Defect, ...]

    @property
    def videos(self) -> int:
        """The number of videos."""
        return sum(self.subsets.values())

    @property
    def segments(self) -> int:
        """The number of segments, without the ignored ones."""
        return sum(self.classes.values())

    def by_video(self) -> dict[str, list[Defect]]:
        """The defects of each video that has any."""
        found: dict[str, list[Defect]] = {}
        for defect in self.defects:
            found.setdefault(defect.video, []).append(defect)
        return found


def check_annotations(
    path: str | Path,
    videos_dir: str | Path | None = None,
    *,
    classes: Sequence[str] | PathLike[str] | None = None,
    ignore: Sequence[str] = UNDECIDED,
) -> AnnotationReport:
    """Count what an annotation file holds and name every defect, by video.

    Args:
        path: the JSON file.
        videos_dir: where given, a folder that must hold a video file for every video.
        classes: as for ``read_annotations``.
        ignore: as for ``read_annotations``.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the file is no JSON, or has no ``database``.
    """
    entries = read_entries(read_json(path), path)
    names, defects = class_names(entries, classes, ignore)
    defects += [defect for entry in entries for defect in (*entry.defects, *_segment_defects(entry.video))]
    if videos_dir is not None:
        defects += _missing_files(entries, Path(videos_dir))
    place = {entry.video.name: index for index, entry in enumerate(entries)}
    counts = Counter(label for entry in entries for label in entry.video.labels)
    return AnnotationReport(
        path=str(path),
        subsets=dict(Counter(entry.video.subset for entry in entries)),
        classes={name: counts[name] for name in names},
        ignored={label: counts[label] for label in ignore if label in counts and label not in names},
        defects=tuple(sorted(defects, key=lambda defect: place[defect.video])),
    )


def _segment_defects(video: AnnotatedVideo) -> Iterable[Defect]:
    """Segments that no video could have."""
    seen = set()
    for (start, end), label in zip(video.segments.tolist(), video.labels, strict=True):
        where = f"{label} [{start:g}, {end:g}] s"
        if end > video.duration_s + _ROUNDING_S or start < 0:
            yield Defect(video.name, "segment outside the video", f"{where} of a video of {video.duration_s:g} s")
        if start >= end:
            yield Defect(video.name, "start not before end", where)
        if (start, end, label) in seen:
            yield Defect(video.name, "duplicate", where)
        seen.add((start, end, label))


def _missing_files(entries: list[VideoEntry], folder: Path) -> Iterable[Defect]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of videos")
    for entry in entries:
        try:
            find_video(folder, entry.video.name)
        except FileNotFoundError:
            yield Defect(entry.video.name, "no video file", f"none in {folder}")
