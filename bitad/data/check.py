"""Checks annotation files, the video files they name, and the time-reversed copies of these."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path

from bitad.data.annotations import AnnotatedVideo, Defect, class_names
from bitad.data.classes import UNDECIDED
from bitad.data.clocks import Clock, differences
from bitad.data.convert import KnownClocks, segment_defects
from bitad.data.formats.annotations import read_annotation_files
from bitad.runtime.log import log_once
from bitad.video.decoding import describe_loss
from bitad.video.index import FrameIndex
from bitad.video.indexing import index_video
from bitad.video.names import VideoFinder
from bitad.video.reverse import copy_defect


@dataclass(frozen=True)
class AnnotationReport:
    """What an annotation file holds and what is wrong with it.

    Args:
        path: the file.
        subsets: number of videos in each subset.
        classes: number of segments of each class, in the order of the classes.
        ignored: number of segments of each ignored label.
        defects: all that were found, video after video.
        without_truth: number of videos in each subset in which no video has a segment of a class.
        unmeasured: number of videos of unknown duration, whose segments may lie outside them unnoticed.
        why_unmeasured: why their durations are unknown, and the remedy; empty if there are none.
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
    format: str | None = None,
    video_info: str | Path | None = None,
    classes: Sequence[str] | PathLike[str] | None = None,
    ignore: Sequence[str] = UNDECIDED,
    on_progress: Callable[[int, int], None] | None = None,
) -> AnnotationReport:
    """Count what an annotation file holds and name every defect, by video.

    Args:
        path: the file, or a folder of files, in any of ``FORMATS``.
        videos_dir: a folder that must hold a complete file of every video, with the annotated clock.
        reversed_dir: with ``videos_dir``, a folder that must hold every video's time-reversed copy.
        format: the file's format; by default, it is recognised.
        video_info: a list of videos (``read_clocks``), compared with the durations that the file states. Those that it
            does not state are taken from the list, or else from ``videos_dir``.
        classes, ignore: as for ``read_annotations``.
        on_progress: called after each video file with the number of videos done and in all.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the file is of no known format, or is not JSON; or no video is in it.
    """
    if reversed_dir is not None and videos_dir is None:
        raise ValueError(f"{reversed_dir}: reversed videos are compared with their originals; name that folder too")
    source = read_annotation_files(path, format, classes=classes, video_info=video_info)
    if not source.videos:
        raise ValueError(f"{path}: no videos in it; there is nothing to check")
    # The list is compared with all durations; counting the frames of all videos would take long.
    to_time = [video.name for video in source.videos if video_info is not None or math.isinf(video.duration_s)]
    clocks = KnownClocks.of(to_time, videos_dir, video_info)
    videos = [clocks.complete(AnnotatedVideo.from_parsed(video)) for video in source.videos]
    names, defects = class_names(source.videos, source.classes, ignore)
    first: dict[str, str] = {}
    for name in (video.name for video in videos):
        # People, and disks of macOS, take names in other code points for the same, as "é" on macOS and on Linux.
        if (other := first.setdefault(unicodedata.normalize("NFC", name), name)) != name:
            detail = f"the same name as another video's in other code points: {other!a} and {name!a}"
            defects.append(Defect(name, "duplicate", detail))
    for parsed, video in zip(source.videos, videos, strict=True):
        if video_info is not None:  # video_defects compares those of videos_dir
            defects += (Defect(video.name, kind, detail) for kind, detail in clocks.faults(video))
        defects += (Defect(video.name, "unreadable", fault) for fault in parsed.faults)
        defects += (Defect(video.name, "contradicting clocks", detail) for detail in video.contradictions)
        defects += (defect for _, defect in segment_defects(video))
        if video.labels and set(video.labels) <= set(ignore) - set(names):
            labels = ", ".join(sorted(set(video.labels)))
            defects.append(Defect(video.name, "only ignored labels", f"all its segments are {labels}"))
    if videos_dir is not None:
        defects += video_defects(videos, videos_dir, reversed_dir, on_progress=on_progress)
    subsets = Counter(video.subset for video in videos)
    with_truth = {video.subset for video in videos if not set(names).isdisjoint(video.labels)}
    place = {video.name: index for index, video in enumerate(videos)}
    counts = Counter(label for video in videos for label in video.labels)
    unmeasured = [video.name for video in videos if math.isinf(video.duration_s)]
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


def video_defects(
    videos: Sequence[AnnotatedVideo],
    folder: str | Path,
    reversed_folder: str | Path | None = None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Defect]:
    """Videos whose file is missing, unreadable or cut off, or has another duration, frame count or frame rate.

    Args:
        videos: as annotated.
        folder: of their files, which are read through but not decoded.
        reversed_folder: of their time-reversed copies, of which samples are compared (:func:`copy_defect`).
        on_progress: called after each video with the number of videos done and in all.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not Path(folder).is_dir():
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
            if index.lost:
                yield Defect(video.name, "cut-off video file", f"{path}: {describe_loss(index)}")
            found = Clock(float(index.frames / index.rate), index.frames, float(index.rate))
            yield from (
                Defect(video.name, kind, f"{path} {detail}") for kind, detail in differences(video.clock, found)
            )
        if find_reversed is not None:
            yield from _copy_defects(video.name, path, index, find_reversed)
        if on_progress is not None:
            on_progress(done, len(videos))
    for finder in (find, find_reversed):
        if finder is not None and (line := finder.line()):
            log_once(line)


def _copy_defects(name: str, path: Path | None, index: FrameIndex | None, find: VideoFinder) -> Iterator[Defect]:
    """Why a folder has no correct time-reversed copy of a video."""
    try:
        reversed_copy = find(name)
        if path is not None and index is not None and (detail := copy_defect(path, reversed_copy, index=index)):
            yield Defect(name, "not the reverse of its video", f"{reversed_copy} {detail}")
    except FileNotFoundError:
        yield Defect(name, "no reversed video file", f"none in {find.folder}; bitad reverse makes it")
    except ValueError as error:
        yield Defect(name, "not the reverse of its video", str(error))
