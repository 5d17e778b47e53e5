"""Checks annotation files, the video files they name, and the time-reversed copies of these."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path

from bitad.data.annotations import UNDECIDED, AnnotatedVideo, Defect, VideoEntry, class_names
from bitad.data.clocks import Clock, differences
from bitad.data.convert import Clocks, segment_defects
from bitad.data.formats.annotations import read_source
from bitad.runtime.log import log_once
from bitad.video.decoding import describe_loss
from bitad.video.index import FrameIndex
from bitad.video.indexing import index_video
from bitad.video.names import VideoFinder
from bitad.video.reverse import copy_defect


def video_defects(
    videos: Sequence[AnnotatedVideo],
    folder: str | Path,
    reversed_folder: str | Path | None = None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Defect]:
    """Videos whose file is missing, cannot be read, is cut off, or has another clock than the annotations state.

    A clock is the duration, the number of frames and the frame rate, as far as the annotations state them.

    Args:
        videos: as annotated.
        folder: of their files, which are read through but not decoded.
        reversed_folder: where given, of their reverse playback, of which samples are compared (:func:`copy_defect`).
        on_progress: called after each video with the number of videos done and in all.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of videos")
    if reversed_folder is not None and not Path(reversed_folder).is_dir():
        raise FileNotFoundError(f"{reversed_folder}: no such folder of reversed videos")
    names = partial(tuple, [video.name for video in videos])
    find = VideoFinder(folder, names)
    find_reversed = None if reversed_folder is None else VideoFinder(reversed_folder, names)
    for done, video in enumerate(videos, start=1):
        index, path = None, None
        try:
            path = find(video.name)
            index = index_video(path)
        except FileNotFoundError:
            yield Defect(video.name, "no video file", f"none in {folder}")
        except ValueError as error:
            yield Defect(video.name, "unreadable video file", str(error))
        else:
            yield from _differences(video, path, index)
        if find_reversed is not None:
            yield from _reversal_defects(video, path, index, find_reversed)
        if on_progress is not None:
            on_progress(done, len(videos))
    for finder in (find, find_reversed):
        if finder is not None and (line := finder.line()):
            log_once(line)


def _differences(video: AnnotatedVideo, path: Path, index: FrameIndex) -> Iterator[Defect]:
    """Where the file is not what the annotations say."""
    if index.lost:
        yield Defect(video.name, "cut-off video file", f"{path}: {describe_loss(index)}")
    found = Clock(float(index.frames / index.rate), index.frames, float(index.rate))
    for kind, detail in differences(video.clock, found):
        yield Defect(video.name, kind, f"{path} {detail}")


def _reversal_defects(
    video: AnnotatedVideo, path: Path | None, index: FrameIndex | None, find: VideoFinder
) -> Iterator[Defect]:
    """Why a folder has no true time-reversed copy of a video."""
    try:
        reversed_copy = find(video.name)
        if path is not None and index is not None and (detail := copy_defect(path, reversed_copy, index=index)):
            yield Defect(video.name, "not the reverse of its video", f"{reversed_copy} {detail}")
    except FileNotFoundError:
        yield Defect(video.name, "no reversed video file", f"none in {find.folder}; bitad reverse makes it")
    except ValueError as error:
        yield Defect(video.name, "not the reverse of its video", str(error))


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
        why_unmeasured: why their durations are unknown, and the remedy; empty where there are none.
    """

    path: str
    subsets: dict[str, int]
    classes: dict[str, int]
    ignored: dict[str, int]
    defects: tuple[Defect, ...]
    without_truth: dict[str, int]
    unmeasured: int
    why_unmeasured: str = ""

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
        ValueError: the file is of no known form, or is not JSON; or no video is in it.
    """
    if reversed_dir is not None and videos_dir is None:
        raise ValueError(f"{reversed_dir}: what should these be the reverse of? name the folder of videos too")
    _, source = read_source(path, form, classes=classes, video_info=video_info)
    unknown = [entry.video.name for entry in source.entries if math.isinf(entry.video.duration_s)]
    # A list is compared with what is stated; counting the frames of such videos would take long.
    names_timed = unknown if video_info is None else [entry.video.name for entry in source.entries]
    clocks = Clocks.of(names_timed, videos_dir, video_info)
    entries = [replace(entry, video=clocks.complete(entry.video)) for entry in source.entries]
    if not entries:
        raise ValueError(f"{path}: no videos in it; there is nothing to check")
    names, defects = class_names(entries, source.classes, ignore)
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
    unmeasured = [entry.video.name for entry in entries if math.isinf(entry.video.duration_s)]
    return AnnotationReport(
        path=str(path),
        subsets=dict(subsets),
        classes={name: counts[name] for name in names},
        ignored={label: counts[label] for label in ignore if label in counts and label not in names},
        defects=tuple(sorted(defects, key=lambda defect: place[defect.video])),
        without_truth={subset: count for subset, count in subsets.items() if subset not in with_truth},
        unmeasured=len(unmeasured),
        why_unmeasured=clocks.why_several_unknown(unmeasured) if unmeasured else "",
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
