"""WebVTT and SubRip subtitles: a file for each video, ``NAME.vtt`` or ``NAME.srt``, and a cue for each segment."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bitad.data.formats.parsing import ParsedAnnotations, ParsedVideos, ReadOptions, Row
from bitad.data.formats.writing import WriteOptions, check_label, milliseconds, write_by_video
from bitad.runtime.files import read_text

if TYPE_CHECKING:
    from bitad.data.annotations import AnnotatedVideo, Annotations

_ARROW = "-->"
_TIME = r"(?:(\d{1,6}):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
_TIMING = re.compile(rf"\s*{_TIME}\s*{_ARROW}\s*{_TIME}(?:\s.*)?")
# Blocks of WebVTT that are not cues.
_NO_CUE = re.compile(r"(?:WEBVTT|NOTE|STYLE|REGION)(?:\s|$)")
_SRT_TAG = re.compile(r"</?(?:b|i|u|font)\b[^>]*>", re.IGNORECASE)
_VTT_TAG = re.compile(r"<[^>]*>")


def read_webvtt(files: Sequence[Path], _: ReadOptions) -> ParsedAnnotations:
    """WebVTT: each line of a cue's text is the label of a segment. Times are seconds, rounded to milliseconds.

    A cue is shown from its start, and no longer at its end; nothing counts frames. Cues may overlap. Tags are left out
    and escapes (``&amp;``) replaced, as players do. Settings, comments, styles and identifiers are ignored.

    Source: https://www.w3.org/TR/webvtt1/, sections 3.1 and 4.
    """
    return _read(files, partial(_plain, tag=_VTT_TAG, is_escaped=True))


def read_srt(files: Sequence[Path], _: ReadOptions) -> ParsedAnnotations:
    """SubRip: each line of a cue's text is the label of a segment. Times are seconds, rounded to milliseconds.

    As WebVTT, but for the comma before the milliseconds. The format has no standard and no escapes; the tags b, i, u
    and font, which players know, are left out. ``bitad detect`` writes other files of this name, to be watched: their
    cues never overlap, and state scores.

    Source: https://www.matroska.org/technical/subtitles.html#srt-subtitles
    """
    return _read(files, partial(_plain, tag=_SRT_TAG, is_escaped=False))


def _read(files: Sequence[Path], label_of: partial[str]) -> ParsedAnnotations:
    videos = ParsedVideos()
    for path in files:
        video = videos.new(path.stem, "training", path.name)
        lines = read_text(path, "subtitles").splitlines()
        block: list[tuple[int, str]] = []
        for number, line in enumerate([*lines, ""], start=1):
            if line.strip():
                block.append((number, line))
                continue
            with video.collecting():
                video.rows += _rows_of(block, path, label_of)
            block = []
    return ParsedAnnotations(videos.ordered())


def _rows_of(block: Sequence[tuple[int, str]], path: Path, label_of: partial[str]) -> list[Row]:
    """The segments of a cue; none of a block that is no cue."""
    if not block or _NO_CUE.match(block[0][1]):
        return []
    place = next((i for i, (_, line) in enumerate(block[:2]) if _ARROW in line), None)
    number, line = block[0 if place is None else place]
    match = None if place is None else _TIMING.fullmatch(line)
    if place is None or match is None:
        raise ValueError(f"{path.name}:{number}: {line.strip()!r:.60} is not the times of a cue, 'start --> end'")
    start, end = (_seconds(match.groups()[part : part + 4]) for part in (0, 4))
    return [Row(start, end, label) for _, text in block[place + 1 :] if (label := label_of(text))]


def _plain(text: str, tag: re.Pattern[str], is_escaped: bool) -> str:
    text = tag.sub("", text)
    return (html.unescape(text) if is_escaped else text).strip()


def _seconds(fields: Sequence[str | None]) -> float:
    hours, minutes, whole, thousandths = fields
    total = 3600 * int(hours or 0) + 60 * int(minutes or 0) + int(whole or 0)
    return (1000 * total + int((thousandths or "0").ljust(3, "0"))) / 1000


def write_webvtt(annotations: Annotations, dst: Path, _: WriteOptions) -> tuple[Path, ...]:
    """A file ``NAME.vtt`` for each video in the folder ``dst``; see :func:`read_webvtt`."""
    texts = {}
    for video in annotations.videos.values():
        cues = [f"{times}\n{html.escape(label, quote=False)}\n" for times, label in _cues(video, ".")]
        texts[video.name] = "\n".join(["WEBVTT\n", *cues])
    return write_by_video(texts, dst, ".vtt")


def write_srt(annotations: Annotations, dst: Path, _: WriteOptions) -> tuple[Path, ...]:
    """A file ``NAME.srt`` for each video in the folder ``dst``; see :func:`read_srt`."""
    texts = {}
    for video in annotations.videos.values():
        for label in video.labels:
            if _SRT_TAG.search(label):
                raise ValueError(
                    f"video {video.name}: label {label!r} contains a tag, which players hide; rename it"
                )
        cues = [
            f"{number}\n{times}\n{label}\n" for number, (times, label) in enumerate(_cues(video, ","), start=1)
        ]
        texts[video.name] = "\n".join(cues)
    return write_by_video(texts, dst, ".srt")


def _cues(video: AnnotatedVideo, separator: str) -> list[tuple[str, str]]:
    """The times and the label of each cue, in the order of time."""
    cues = sorted(zip(milliseconds(video), video.labels, strict=True))
    return [
        (
            f"{clock_text(start, separator)} {_ARROW} {clock_text(end, separator)}",
            check_label(label, f"video {video.name}", without=_ARROW),
        )
        for (start, end), label in cues
    ]


def clock_text(milliseconds: int, separator: str) -> str:
    """``HH:MM:SS``, the separator and the milliseconds."""
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{separator}{milliseconds:03}"
