"""Checks annotation files, the videos and features they name, and the time-reversed copies of the videos."""

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
from bitad.data.clocks import differences
from bitad.data.convert import KnownClocks, clock_of, segment_defects
from bitad.data.feature_check import check_features
from bitad.data.formats.annotations import read_annotation_files
from bitad.data.frame_clocks import FrameClocks
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
        subsets: number of videos in each subset.
        classes, ignored: number of segments of each class, in order, and of each ignored label.
        defects: of each video that has any.
        without_truth: number of videos in each subset in which no video has a segment of a class.
        unmeasured: why segments of some videos may lie outside them unnoticed; empty if none may.
        videos: with the durations that are known; without rows that could not be read.
        of_features: lines on the features as a whole.
    """

    path: str
    subsets: dict[str, int]
    classes: dict[str, int]
    ignored: dict[str, int]
    defects: dict[str, list[Defect]]
    without_truth: dict[str, int]
    unmeasured: str = ""
    videos: tuple[AnnotatedVideo, ...] = ()
    of_features: tuple[str, ...] = ()


def check_annotations(
    path: str | Path,
    videos_dir: str | Path | None = None,
    *,
    reversed_dir: str | Path | None = None,
    features: str | Path | None = None,
    format: str | None = None,
    video_info: str | Path | None = None,
    frame_rate: float | None = None,
    classes: Sequence[str] | PathLike[str] | None = None,
    ignore: Sequence[str] = UNDECIDED,
    on_progress: Callable[[int, int], None] | None = None,
) -> AnnotationReport:
    """Count what an annotation file holds and name every defect, by video.

    Other arguments and errors are those of ``read_annotation_files``.

    Args:
        videos_dir: a folder that must hold a complete file of every video, with the annotated clock.
        reversed_dir: with ``videos_dir``, a folder that must hold every video's time-reversed copy.
        features: a folder or an ``.npz`` file that must hold sound features of every video.
        frame_rate: as for ``convert_annotations``.
        ignore: as for ``read_annotations``.
        on_progress: called after each file of a video with the number of files done and in all.
    """
    if reversed_dir is not None and videos_dir is None:
        raise ValueError(f"{reversed_dir}: reversed videos need their originals; name that folder too")
    frames = FrameClocks.of(videos_dir, video_info, frame_rate)
    source = read_annotation_files(path, format, classes=classes, video_info=video_info, frame_clocks=frames)
    if not source.videos:
        raise ValueError(f"{path}: no videos in it; there is nothing to check")
    # The list is compared with all durations; counting the frames of all videos would take long.
    to_time = [video.name for video in source.videos if video_info is not None or math.isinf(video.duration_s)]
    clocks = KnownClocks.of(to_time, videos_dir, video_info, clock=lambda path: frames.of_file(path).clock)
    videos: list[AnnotatedVideo] = []
    names, defects = class_names(source.videos, source.classes, ignore)
    first: dict[str, str] = {}
    for parsed in source.videos:
        video = clocks.complete(AnnotatedVideo.from_parsed(parsed))
        videos.append(video)
        # Names in other code points look the same, as "é" of macOS and of Linux.
        other = first.setdefault(unicodedata.normalize("NFC", video.name), video.name)
        if other != video.name:
            detail = f"the same name in other code points: {other!a} and {video.name!a}"
            defects.append(Defect(video.name, "duplicate", detail))
        if video_info is not None:  # _video_defects compares those of videos_dir
            defects += clocks.defects(video)
        defects += (Defect(video.name, "unreadable", fault) for fault in parsed.faults)
        for detail in video.contradictions:
            defects.append(Defect(video.name, "contradicting clocks", detail))
        defects += (defect for _, defect in segment_defects(video))
        if video.labels and set(video.labels) <= set(ignore) - set(names):
            labels = ", ".join(sorted(set(video.labels)))
            defects.append(Defect(video.name, "only ignored labels", f"all its segments are {labels}"))
    files = 0 if videos_dir is None else len(videos)
    total = files + (0 if features is None else len(videos))

    def count(done: int, _: int) -> None:
        if on_progress is not None:
            on_progress(done, total)

    if videos_dir is not None:
        defects += _video_defects(videos, Path(videos_dir), reversed_dir, count)
    of_features: list[str] = []
    if features is not None:
        found, of_features = check_features(videos, features, lambda done, _: count(files + done, total))
        defects += found
    by_video: dict[str, list[Defect]] = {video.name: [] for video in videos}
    for defect in defects:
        by_video[defect.video].append(defect)
    subsets = Counter(video.subset for video in videos)
    with_truth = {video.subset for video in videos if not set(names).isdisjoint(video.labels)}
    counts = Counter(label for video in videos for label in video.labels)
    why_unmeasured = ""
    if unmeasured := [video.name for video in videos if math.isinf(video.duration_s)]:
        why = clocks.why_unknown(unmeasured[0])
        why_unmeasured = (
            f"{len(unmeasured)} videos have an unknown duration; segments are not checked by it: {why}"
        )
    return AnnotationReport(
        path=str(path),
        subsets=dict(subsets),
        classes={name: counts[name] for name in names},
        ignored={label: counts[label] for label in ignore if label in counts and label not in names},
        defects={name: found for name, found in by_video.items() if found},
        without_truth={subset: count for subset, count in subsets.items() if subset not in with_truth},
        unmeasured=why_unmeasured,
        videos=tuple(videos),
        of_features=tuple(of_features),
    )


def _video_defects(
    videos: Sequence[AnnotatedVideo],
    folder: Path,
    reversed_folder: str | Path | None,
    on_progress: Callable[[int, int], None],
) -> Iterator[Defect]:
    for place in (folder, reversed_folder):
        if place is not None and not Path(place).is_dir():
            raise FileNotFoundError(f"{place}: no such folder of videos")
    names = partial(tuple, [video.name for video in videos])
    find = VideoFinder(folder, names)
    find_reversed = None if reversed_folder is None else VideoFinder(reversed_folder, names)
    for done, video in enumerate(videos, start=1):
        index = None
        path = None
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
            for kind, detail in differences(video.clock, clock_of(index)):
                yield Defect(video.name, kind, f"{path} {detail}")
        if find_reversed is not None:
            yield from _copy_defects(video.name, path, index, find_reversed)
        on_progress(done, len(videos))
    for finder in (find, find_reversed):
        if finder is not None and (line := finder.line()):
            log_once(line)


def _copy_defects(
    name: str,
    path: Path | None,
    index: FrameIndex | None,
    find: VideoFinder,
) -> Iterator[Defect]:
    try:
        reversed_copy = find(name)
        if path is not None and index is not None and (detail := copy_defect(path, reversed_copy, index=index)):
            yield Defect(name, "not the reverse of its video", f"{reversed_copy} {detail}")
    except FileNotFoundError:
        yield Defect(name, "no reversed video file", f"none in {find.folder}; bitad reverse makes it")
    except ValueError as error:
        yield Defect(name, "not the reverse of its video", str(error))
