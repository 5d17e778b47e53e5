"""CVAT for video 1.1: a file ``NAME.xml`` for each video, with a track for each segment.

CVAT labels boxes and other shapes in frames. A segment is the time in which a track's shape is shown, wherever it is
in the picture. **Frames count from 0; a track is hidden from the shape with ``outside="1"`` on**, which is the frame
after the segment's last one. A track without such a shape lasts to the end of the task, whose ``stop_frame`` is
inclusive. Frames are those of the video file, also where the task has only every n-th one.

Sources: https://docs.cvat.ai/docs/dataset_management/formats/format-xml/;
https://github.com/cvat-ai/cvat, ``cvat/apps/dataset_manager/formats/cvat.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bitad.data.formats.parsing import (
    ParsedAnnotations,
    ParsedVideos,
    ReadOptions,
    Row,
    number,
    read_xml,
    video_in_address,
)
from bitad.data.formats.writing import WriteOptions, check_label, write_by_video, xml_text

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from bitad.data.annotations import AnnotatedVideo, Annotations

_ROOT = "annotations"
# Of the box where the size of the pictures is not known, in pixels.
_BOX = 64


def is_cvat(path: Path) -> bool:
    """Whether a file begins like XML of CVAT."""
    if path.suffix.lower() != ".xml":
        return False
    with suppress(OSError), path.open("rb") as file:
        return f"<{_ROOT}".encode() in file.read(1024)
    return False


def read_cvat(files: Sequence[Path], options: ReadOptions) -> ParsedAnnotations:
    """The tracks of tasks, jobs and projects that are exported as "CVAT for video 1.1"; unzip the file first.

    A video is called as the task's ``source``, or else as the file. See the module for how frames are counted.
    """
    roots = {path: read_xml(path, _ROOT) for path in files}
    tasks = {path: _tasks(root, path.stem) for path, root in roots.items()}
    clocks = options.frames.among(name for own in tasks.values() for name, _ in own.values())
    videos = ParsedVideos()
    for path, root in roots.items():
        if root.find("image") is not None:
            raise ValueError(f"{path}: it is CVAT for images; export the task as CVAT for video 1.1")
        own = [(name, stop, videos.new(name, "training", path.name)) for name, stop in tasks[path].values()]
        by_task = dict(zip(tasks[path], own, strict=True))
        for track in root.findall("track"):
            name, stop, video = by_task.get(track.get("task_id", ""), own[0])
            where = f"{path.name}: track {track.get('id')}"
            with video.collecting():
                label = track.get("label", "").strip()
                spans = list(_spans(track, stop, where))
                if not label:
                    raise ValueError(f"{where}: it has no label")
                if spans:
                    video.rows += [Row(*span, label) for span in clocks.times(name).spans(spans)]
    return ParsedAnnotations(videos.ordered())


def _tasks(root: Element, name: str) -> dict[str, tuple[str, int | None]]:
    """The video and the last frame of each task, by its number; at least one task."""
    stated = [*root.iterfind("meta/task"), *root.iterfind("meta/job"), *root.iterfind("meta/project/tasks/task")]
    tasks = {}
    for task in stated:
        source = (task.findtext("source") or root.findtext("meta/source") or "").strip()
        stop = number(task.findtext("stop_frame"))
        if stop is None and (size := number(task.findtext("size"))) is not None:
            stop = size - 1
        found = video_in_address(source) or (name if len(stated) == 1 else (task.findtext("name") or "").strip())
        tasks[(task.findtext("id") or "").strip()] = (found, None if stop is None else round(stop))
    return tasks or {"": (name, None)}


def _spans(track: Element, stop: int | None, where: str) -> Iterator[tuple[int, int]]:
    """The frames in which a track is shown: the first, and the one after the last."""
    shapes = []
    for shape in track:
        frame = number(shape.get("frame"))
        if frame is None or frame != int(frame):
            raise ValueError(f"{where}: frame {shape.get('frame')!r} is not a number")
        shapes.append((int(frame), shape.get("outside") == "1"))
    first: int | None = None
    last = -1
    for frame, is_outside in sorted(shapes):
        if is_outside and first is not None:
            yield first, frame
        first = None if is_outside else frame if first is None else first
        last = frame
    if first is not None:
        yield first, 1 + (last if stop is None else max(last, stop))


def write_cvat(annotations: Annotations, dst: Path, options: WriteOptions) -> tuple[Path, ...]:
    """A file ``NAME.xml`` for each video in the folder ``dst``: boxes of the whole picture, to import into its task.

    Where the videos are not given, boxes have 64 x 64 pixels.
    """
    labels = annotations.labels()
    texts = {video.name: _document(video, labels, options) for video in annotations.videos.values()}
    return write_by_video(texts, dst, ".xml")


def _document(video: AnnotatedVideo, classes: Sequence[str], options: WriteOptions) -> str:
    from xml.etree.ElementTree import Element, SubElement

    times = options.times(video)
    width, height = times.size or (_BOX, _BOX)
    root = Element(_ROOT)
    SubElement(root, "version").text = "1.1"
    task = SubElement(SubElement(root, "meta"), "task")
    SubElement(task, "name").text = video.name
    if times.frames is not None:
        SubElement(task, "size").text = str(times.frames)
        SubElement(task, "start_frame").text = "0"
        SubElement(task, "stop_frame").text = str(times.frames - 1)
    labels = SubElement(task, "labels")
    for name in classes:
        SubElement(SubElement(labels, "label"), "name").text = name
    SubElement(task, "source").text = options.media_name(video.name)
    rows = zip(options.frame_segments(video).tolist(), video.labels, strict=True)
    for place, ((first, after), label) in enumerate(rows):
        track = SubElement(
            root, "track", id=str(place), label=check_label(label, f"video {video.name}"), source="auto"
        )
        for frame, outside in ((first, "0"), (after, "1")):
            if frame == times.frames:  # the task ends here
                continue
            place_in_picture = {"xtl": "0", "ytl": "0", "xbr": str(width), "ybr": str(height)}
            flags = {"outside": outside, "occluded": "0", "keyframe": "1", "z_order": "0"}
            SubElement(track, "box", {"frame": str(frame), **flags, **place_in_picture})
    return xml_text(root)
