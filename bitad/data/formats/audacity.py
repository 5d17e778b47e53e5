"""Audacity's label tracks: a file ``NAME.txt`` for each video, and a line for each segment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitad.data.formats.parsing import ParsedAnnotations, ParsedVideos, ReadOptions, Row, TextHead, number, seconds
from bitad.data.formats.writing import WriteOptions, check_label, write_by_video
from bitad.runtime.files import read_text

if TYPE_CHECKING:
    from bitad.data.annotations import Annotations

# Begins a line with the frequencies of the label above it.
_FREQUENCIES = "\\"


def is_audacity(head: Any) -> bool:
    """Whether a text begins with a line of a label track: two times and a label."""
    return isinstance(head, TextHead) and len(head.fields) > 2 and None not in map(number, head.fields[:2])


def read_audacity(files: Sequence[Path], _: ReadOptions) -> ParsedAnnotations:
    """Lines of start, end and label, separated by tabs. Times are seconds with six decimals; nothing counts frames.

    The end is where the label's region ends. Labels may overlap. A point has equal start and end, and is a defect here.
    Lines of frequencies, which begin with a backslash, are left out.

    Source: https://manual.audacityteam.org/man/importing_and_exporting_labels.html
    """
    videos = ParsedVideos()
    for path in files:
        video = videos.new(path.stem, "training", path.name)
        for line, text in enumerate(read_text(path, "labels of Audacity").splitlines(), start=1):
            if not text.strip() or text.startswith(_FREQUENCIES):
                continue
            where = f"{path.name}:{line}"
            with video.collecting():
                fields = text.split("\t", 2)
                if len(fields) < 3 or not fields[2].strip():
                    raise ValueError(f"{where}: {text!r:.60} is not 'start, tab, end, tab, label'")
                video.rows.append(Row(seconds(fields[0], where), seconds(fields[1], where), fields[2].strip()))
    return ParsedAnnotations(videos.ordered())


def write_audacity(annotations: Annotations, dst: Path, _: WriteOptions) -> tuple[Path, ...]:
    """A file ``NAME.txt`` for each video in the folder ``dst``; see :func:`read_audacity`."""
    texts = {}
    for video in annotations.videos.values():
        where = f"video {video.name}"
        rows = sorted(zip(video.segments.tolist(), video.labels, strict=True))
        lines = [f"{a:.6f}\t{b:.6f}\t{check_label(label, where, without=chr(9))}\n" for (a, b), label in rows]
        texts[video.name] = "".join(lines)
    return write_by_video(texts, dst, ".txt")
