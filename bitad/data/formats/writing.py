"""What writers of annotation files share. Does not import NumPy: ``bitad --help`` lists the formats."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bitad.runtime.files import atomic_write, check_replaceable, is_leftover
from bitad.runtime.log import log_once, shortlist

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from bitad.data.annotations import AnnotatedVideo, Annotations
    from bitad.data.frame_clocks import FrameClocks, FrameTimes
    from bitad.timeline import IntArray

# Characters that XML 1.0 does not allow, escaped or not.
_NOT_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
# In ``AnnotatedVideo.details``: the scores of detections.
SCORE = "score"


@dataclass(frozen=True)
class WriteOptions:
    """What writers need to know beside the annotations.

    Args:
        frames: the times of frames, for formats that count frames.
        media: is put before the names of video files, such as a folder or an address, where a format names them; None:
            the paths of the files are written.
    """

    frames: FrameClocks
    media: str | None = None

    def media_of(self, name: str) -> str:
        """What a file calls a video: where it is, or its name alone if that is not known."""
        file = self.frames.file(name)
        if self.media is not None:
            return self.media + self.media_name(name)
        return name if file is None else str(file.resolve())

    def media_name(self, name: str) -> str:
        """The name of a video's file, or where that is not known the video's own."""
        file = self.frames.file(name)
        return name if file is None else file.name

    def times(self, video: AnnotatedVideo) -> FrameTimes:
        """The times of a video's frames."""
        return self.frames.times(video.name, video.clock)

    def frame_segments(self, video: AnnotatedVideo) -> IntArray:
        """The video's segments as first frame and frame after the last one, int64 ``[n, 2]``."""
        times = self.times(video)
        cut = video.segments[:, 0] < -0.5 / float(times.rate)
        if times.frames is not None:
            last = times.to_seconds(cut.astype("int64") * 0 + times.frames)
            cut |= video.segments[:, 1] > last + 0.5 / float(times.rate)
        if cut.any():
            log_once(f"video {video.name}: segments outside it are cut at its edges: {int(cut.sum())}")
        return times.to_frames(video.segments)


def milliseconds(video: AnnotatedVideo) -> list[tuple[int, int]]:
    """The video's segments in whole milliseconds, at least one long; none begins before 0.

    Those that end with the video do not end after it: there the end is rounded down.
    """
    if (video.segments < 0).any():
        log_once(f"video {video.name}: segments that begin before it are cut at 0 s")
    rows = []
    for start, end in (1000 * video.segments.clip(min=0)).tolist():
        last = math.floor(end) if round(end) > 1000 * video.duration_s >= end else round(end)
        rows.append((round(start), max(last, round(start) + 1)))
    return rows


def check_label(label: str, where: object, *, without: str = "") -> str:
    """A label that is one line; raises a ValueError for others, and for one that contains ``without``."""
    if label != label.strip() or len(label.splitlines()) != 1:
        raise ValueError(f"{where}: label {label!r} cannot be written as one line; rename it")
    if without and without in label:
        raise ValueError(
            f"{where}: label {label!r} contains {without!r}, which this format cannot have; rename it"
        )
    return label


def scores_of(video: AnnotatedVideo) -> list[float] | None:
    """The scores of detections; None: these are annotations."""
    return video.details[SCORE].tolist() if SCORE in video.details else None


def write_by_video(texts: Mapping[str, str], folder: Path, suffix: str) -> tuple[Path, ...]:
    """Write a text file ``NAME + suffix`` for each video.

    Raises:
        ValueError: a name cannot be that of a file, or the folder has other files of the kind, which would be read
            with these.
    """
    for name in texts:
        if not name or name != Path(name).name or is_leftover(name) or "\0" in name or "\\" in name:
            raise ValueError(f"video {name!r}: its name cannot be that of a file; rename it")
    files = {folder / f"{name}{suffix}": text for name, text in texts.items()}
    check_replaceable(files)
    others = [path.name for path in sorted(folder.glob(f"*{suffix}")) if path not in files]
    if others:
        raise ValueError(f"{folder}: has other {suffix} files ({shortlist(others)}); give another folder")
    for path, text in files.items():
        write_text(text, path)
    return tuple(files)


def address_of(media: str) -> str:
    """A path as a ``file:`` address; addresses and names alone as they are."""
    path = Path(media)
    return path.as_uri() if path.is_absolute() else media


def xml_text(root: Element) -> str:
    """An XML document.

    Raises:
        ValueError: a text has a character that XML cannot have.
    """
    from xml.etree import ElementTree

    ElementTree.indent(root, " ")
    text = ElementTree.tostring(root, "unicode")
    if (found := _NOT_XML.search(text)) is not None:
        raise ValueError(
            f"{text[max(0, found.start() - 20) : found.end()]!r} ends in a character that XML cannot have"
        )
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def write_text(text: str, path: Path) -> None:
    """Write a text file in UTF-8 atomically."""
    with atomic_write(path) as partial:
        partial.write_bytes(text.encode())


def write_native(annotations: Annotations, dst: Path, _: WriteOptions) -> tuple[Path, ...]:
    """The native format, which is ActivityNet's; see :func:`~bitad.data.formats.database.write_annotations`."""
    from bitad.data.formats.database import write_annotations

    write_annotations(annotations, dst)
    return (dst,)


def write_actionformer(annotations: Annotations, dst: Path, options: WriteOptions) -> tuple[Path, ...]:
    """ActionFormer's format: the native one with ``segment(frames)``, seconds times the average frame rate."""
    from bitad.data.formats.database import write_annotations

    def with_rate(video: AnnotatedVideo) -> AnnotatedVideo:
        if video.clock.rate is None:
            with suppress(ValueError, FileNotFoundError):  # writing names the video and the remedy
                return replace(video, fps=float(options.times(video).rate))
        return video

    write_annotations(annotations.map(with_rate), dst, format="actionformer")
    return (dst,)
