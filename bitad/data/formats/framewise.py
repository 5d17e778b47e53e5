"""Frame-wise text of action segmentation: ``groundTruth/NAME.txt`` with a label a line, and ``mapping.txt``.

Line n, counted from 0, is the label of frame n, from edge n to edge n + 1. Equal neighbours are one segment, so that
two segments of a class that touch become one. The label ``background`` is no segment.

Frames are those of the data set's features, at its own rate: 15 a second for Breakfast and GTEA, 30 for 50 Salads. No
file states it. MS-TCN's evaluation ends a segment that reaches the last line one frame early (``eval.py``,
``get_labels_start_end_time``); this does not.

Source: https://github.com/yabufarha/ms-tcn, ``main.py``, ``batch_gen.py`` and ``eval.py``, of
Farha and Gall, MS-TCN, CVPR 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitad.data.formats.parsing import ParsedAnnotations, ParsedVideo, ParsedVideos, ReadOptions, Row, TextHead
from bitad.data.formats.writing import WriteOptions, check_label, write_by_video, write_text
from bitad.runtime.files import read_text

if TYPE_CHECKING:
    from bitad.data.annotations import AnnotatedVideo, Annotations

_FOLDER = "groundTruth"
_MAPPING = "mapping.txt"
_BACKGROUND = "background"


def is_framewise(path: Path, head: Any) -> bool:
    """Whether a text is of such a folder."""
    return isinstance(head, TextHead) and len(head.fields) > 0 and path.parent.name == _FOLDER


def read_framewise(files: Sequence[Path], options: ReadOptions) -> ParsedAnnotations:
    """The folder ``groundTruth``, or the one above it. See the module for how frames are counted.

    ``mapping.txt`` beside ``groundTruth``, "number name" a line, orders the classes. The subset of all is "training".
    """
    texts = [path for path in files if path.name != _MAPPING]
    clocks = options.frames.among(path.stem for path in texts)
    videos = ParsedVideos()
    for path in texts:
        video = videos.new(path.stem, "training", path.name)
        lines = [line.strip() for line in read_text(path, "a label a line").rstrip().split("\n")]
        with video.collecting():
            if "" in lines:
                raise ValueError(f"{path.name}:{lines.index('') + 1}: the line is empty; it should be a label")
            runs = [(label, len(list(run))) for label, run in groupby(lines)]
            edges = accumulate((length for _, length in runs), initial=0)
            spans = clocks.times(path.stem).spans(pairwise(edges))
            video.frames, video.duration_s = len(lines), spans[-1][1]
            video.rows += [
                Row(*span, label)
                for (label, _), span in zip(runs, spans, strict=True)
                if label.casefold() != _BACKGROUND
            ]
    return ParsedAnnotations(videos.ordered(), *_classes(texts, list(videos.values())))


def _classes(
    texts: Sequence[Path], videos: Sequence[ParsedVideo]
) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """The classes of ``mapping.txt`` in order, and notes."""
    notes = (f"lines labelled {_BACKGROUND} are no segments",)
    beside = [folder / _MAPPING for path in texts[:1] for folder in path.parents[:2]]
    mapping = next((path for path in beside if path.is_file()), None)
    if mapping is None:
        return None, notes
    names = []
    for line, text in enumerate(read_text(mapping, "the classes").splitlines(), start=1):
        number, _, name = text.strip().partition(" ")
        if text.strip() and not (number.isdecimal() and name.strip()):
            raise ValueError(f"{mapping}:{line}: {text!r:.60} is not 'number name'")
        if name.strip() and name.strip().casefold() != _BACKGROUND:
            names.append((int(number), name.strip()))
    return tuple(name for _, name in sorted(names)), (*notes, f"classes are those of {mapping}")


def write_framewise(annotations: Annotations, dst: Path, options: WriteOptions) -> tuple[Path, ...]:
    """``groundTruth/NAME.txt`` of each video, and ``mapping.txt``, in the folder ``dst``.

    Raises:
        ValueError: two segments of a video overlap, or its number of frames is not known.
    """
    texts = {
        video.name: "".join(f"{label}\n" for label in _labels(video, options))
        for video in annotations.videos.values()
    }
    names = [_BACKGROUND, *(name for name in annotations.labels() if name.casefold() != _BACKGROUND)]
    mapping = "".join(f"{number} {check_label(name, 'the classes')}\n" for number, name in enumerate(names))
    files = write_by_video(texts, dst / _FOLDER, ".txt")
    write_text(mapping, dst / _MAPPING)
    return (*files, dst / _MAPPING)


def _labels(video: AnnotatedVideo, options: WriteOptions) -> list[str]:
    """The label of each frame."""
    times = options.times(video)
    frames = times.frames
    if frames is None:
        if video.duration_s == float("inf"):
            raise ValueError(
                f"video {video.name}: its number of frames is not known; give --videos or --video-info"
            )
        frames = max(1, round(video.duration_s * float(times.rate)))
    labels = [_BACKGROUND] * frames
    rows = sorted(zip(video.segments.tolist(), options.frame_segments(video).tolist(), video.labels, strict=True))
    for ((_, end), _, label), ((start, _), _, other) in pairwise(rows):
        if end - start > 0.5 / float(times.rate):
            raise ValueError(
                f"video {video.name}: {label} and {other} overlap at {start:g} s, and a frame has one label here; "
                "export with --no-overlap, or choose another format"
            )
    for _, (first, after), label in rows:
        check_label(label, f"video {video.name}")
        labels[first:after] = [label] * (min(after, frames) - min(first, frames))
    return labels
