"""What is wrong with the video files of annotations, and with their reverse playback.

This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from bitad.data.annotations import AnnotatedVideo, Defect
from bitad.data.clock_agreement import Clock, differences
from bitad.log import say_once
from bitad.video.damage import lost_frames
from bitad.video.finder import VideoFinder
from bitad.video.frame_index import FrameIndex
from bitad.video.indexing import index_video
from bitad.video.twins import twin_defect


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
        reversed_folder: where given, of their reverse playback, of which samples are compared (:func:`twin_defect`).
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
            say_once(line)


def _differences(video: AnnotatedVideo, path: Path, index: FrameIndex) -> Iterator[Defect]:
    """Where the file is not what the annotations say."""
    if index.lost:
        yield Defect(video.name, "cut-off video file", f"{path}: {lost_frames(index)}")
    found = Clock(float(index.frames / index.rate), index.frames, float(index.rate))
    for kind, detail in differences(video.clock, found):
        yield Defect(video.name, kind, f"{path} {detail}")


def _reversal_defects(
    video: AnnotatedVideo, path: Path | None, index: FrameIndex | None, find: VideoFinder
) -> Iterator[Defect]:
    """Why a folder has no true time-reversed copy of a video."""
    try:
        reversed_copy = find(video.name)
        if path is not None and index is not None and (detail := twin_defect(path, reversed_copy, index=index)):
            yield Defect(video.name, "not the reverse of its video", f"{reversed_copy} {detail}")
    except FileNotFoundError:
        yield Defect(video.name, "no reversed video file", f"none in {find.folder}; bitad reverse makes it")
    except ValueError as error:
        yield Defect(video.name, "not the reverse of its video", str(error))
