"""What an annotation file holds and what is wrong with it, by video.

This module does not import torch.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from bitad.data.annotation_convert import Clocks
from bitad.data.annotation_documents import read_database
from bitad.data.annotation_forms import FORMS, read_form, recognise
from bitad.data.annotation_policy import segment_defects
from bitad.data.annotations import UNDECIDED, Defect, VideoEntry, class_names, read_entries
from bitad.data.video_check import video_defects
from bitad.files import read_json


@dataclass(frozen=True)
class AnnotationReport:
    """What an annotation file holds and what is wrong with it.

    Args:
        path: the file.
        subsets: number of videos in each subset.
        classes: number of segments of each class, in the order of the classes.
        ignored: number of segments of each ignored label.
        defects: everything found, video after video.
        without_truth: number of videos in each subset none of whose videos has a segment of a class.
        unmeasured: number of videos of unknown duration, whose segments may be outside unnoticed.
    """

    path: str
    subsets: dict[str, int]
    classes: dict[str, int]
    ignored: dict[str, int]
    defects: tuple[Defect, ...]
    without_truth: dict[str, int]
    unmeasured: int

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
    reversed_dir: str | Path | None = None,
    form: str | None = None,
    video_info: str | Path | None = None,
    classes: Sequence[str] | PathLike[str] | None = None,
    ignore: Sequence[str] = UNDECIDED,
    on_progress: Callable[[int, int], None] | None = None,
) -> AnnotationReport:
    """Count what an annotation file holds and name every defect, by video.

    Args:
        path: the file, or a folder of files, in any of ``FORMS``.
        videos_dir: where given, a folder that must hold a whole video file for every video, as long as is stated.
        reversed_dir: where given, with ``videos_dir``, a folder that must hold every video's reverse playback.
        form: the file's form; recognised where not given.
        video_info: a list of videos (``read_clocks``) with the durations that the file does not state; those that it
            states are compared. Without it they are those of ``videos_dir``, where that is given.
        classes: as for ``read_annotations``.
        ignore: as for ``read_annotations``.
        on_progress: called after each video file looked at, with the number of videos done and in all.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the file is of no known form, or is not JSON; a line of a table is malformed; or no video is in it.
    """
    if reversed_dir is not None and videos_dir is None:
        raise ValueError(f"{reversed_dir}: what should these be the reverse of? name the folder of videos too")
    entries, classes, clocks = _read(Path(path), form, classes, videos_dir, video_info)
    if not entries:
        raise ValueError(f"{path}: no videos in it; there is nothing to check")
    names, defects = class_names(entries, classes, ignore)
    if video_info is not None:  # the clocks of videos_dir are compared below
        defects += (
            Defect(entry.video.name, kind, detail) for entry in entries for kind, detail in clocks.faults(entry.video)
        )
    defects += _names_alike(entries)
    for entry in entries:
        defects += entry.defects
        defects += (Defect(entry.video.name, "contradicting clocks", detail) for detail in entry.video.contradictions)
        defects += (defect for _, defect in segment_defects(entry.video))
        if entry.video.labels and not set(entry.video.labels).difference(set(ignore).difference(names)):
            labels = ", ".join(sorted(set(entry.video.labels)))
            defects.append(Defect(entry.video.name, "only ignored labels", f"all its segments are {labels}"))
    if videos_dir is not None:
        videos = [entry.video for entry in entries]
        defects += video_defects(videos, videos_dir, reversed_dir, on_progress=on_progress)
    subsets = Counter(entry.video.subset for entry in entries)
    with_truth = {entry.video.subset for entry in entries if not set(names).isdisjoint(entry.video.labels)}
    place = {entry.video.name: index for index, entry in enumerate(entries)}
    counts = Counter(label for entry in entries for label in entry.video.labels)
    return AnnotationReport(
        path=str(path),
        subsets=dict(subsets),
        classes={name: counts[name] for name in names},
        ignored={label: counts[label] for label in ignore if label in counts and label not in names},
        defects=tuple(sorted(defects, key=lambda defect: place[defect.video])),
        without_truth={subset: count for subset, count in subsets.items() if subset not in with_truth},
        unmeasured=sum(math.isinf(entry.video.duration_s) for entry in entries),
    )


def _names_alike(entries: Sequence[VideoEntry]) -> list[Defect]:
    """Videos whose names are the same text in other code points, as macOS and Linux write "é": for people, and for
    disks of macOS, they are one video."""
    first: dict[str, str] = {}
    defects = []
    for name in (entry.video.name for entry in entries):
        if (other := first.setdefault(unicodedata.normalize("NFC", name), name)) != name:
            points = " and ".join(ascii(one) for one in (other, name))
            defects.append(
                Defect(name, "duplicate", f"the same name as another video's in other code points: {points}")
            )
    return defects


def _read(
    path: Path,
    form: str | None,
    classes: Sequence[str] | PathLike[str] | None,
    videos_dir: str | Path | None,
    video_info: str | Path | None,
) -> tuple[list[VideoEntry], Sequence[str] | PathLike[str] | None, Clocks]:
    """The videos, with what could not be read of each in a JSON with a database; the classes where known; their clocks.

    A JSON with a database is judged as ``read_annotations`` would read it. Other forms are read whole or not at all.
    """
    form = recognise(path) if form is None else form
    if form in FORMS and FORMS[form].read is read_database:
        entries = read_entries(read_json(path), path)
        # Counting the frames of videos for what is stated would take long.
        clocks = (
            Clocks() if video_info is None else Clocks.of([entry.video.name for entry in entries], None, video_info)
        )
        return [replace(entry, video=clocks.complete(entry.video)) for entry in entries], classes, clocks
    _, read = read_form(path, form)
    clocks = Clocks.of(read.annotations.videos, videos_dir, video_info)
    videos = [clocks.complete(video) for video in read.annotations.videos.values()]
    entries = [VideoEntry(video, [None] * len(video.labels), []) for video in videos]
    return entries, read.annotations.classes if classes is None else classes, clocks
