"""One static HTML page with tables, pictures, and videos with timelines of their actions.

It opens from disk: style, script and data are in the file, media files beside it or linked by relative paths.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, Literal, NamedTuple, get_args
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

import bitad
from bitad.data.detections import DEFAULT_SCORE, Detections
from bitad.evaluation.diagnosis import KINDS
from bitad.reports.colours import KINDS as KIND_COLOURS
from bitad.reports.colours import colours_of, known_colours
from bitad.reports.measure_tables import kind_name
from bitad.reports.tables import Table
from bitad.runtime.files import atomic_write, write_json
from bitad.timeline import FloatArray, IntArray
from bitad.video.container import open_video

# A page has the best detections of each track, at most so many, and fewer where all tracks would have more rows.
TOP_K = 1000
MOST_ROWS = 400_000
# The thresholds at which a page judges detections.
TIOU = (0.3, 0.4, 0.5, 0.6, 0.7)
DEFAULT_TIOU = 0.5

Kind = Literal["ground-truth", "detection", "defect"]


class _Mark(NamedTuple):
    """How a page shows a kind of detection: a sign, and what it means."""

    sign: str
    meaning: str


_MARKS = {
    "true_positive": _Mark("✓", "matches a segment of its class"),
    "double_detection": _Mark("2", "a better-scored detection matches its segment"),
    "wrong_label": _Mark("≠", "precise, but the segment is of another class"),
    "localization": _Mark("↔", "of a segment of its class, but too imprecise"),
    "confusion": _Mark("~", "of a segment of another class, and too imprecise"),
    "background": _Mark("∅", "of no segment"),
    "missed": _Mark("✗", "no detection that is shown matches the segment"),
}


@dataclass(frozen=True, eq=False)
class Track:
    """One row of timelines: the segments of one result in a video. Raises ValueError for wrong columns."""

    name: str
    kind: Kind
    segments: FloatArray  # [n, 2], start and end in seconds on the forward clock
    labels: Sequence[str]
    scores: FloatArray | None = None  # [n], 0 to 1; None for ground truth, which the page does not filter by score
    min_scores: Mapping[str, float] = field(default_factory=dict)  # by label; of the others, 0.3
    notes: Sequence[str] | None = None  # n sentences, shown with each segment
    kinds: IntArray | None = None  # [n, len(TIOU)], of detections: indices into the diagnosis's KINDS
    # Of ground truth, by the name of a result: [n, len(TIOU)], the score of the detection that matches each segment;
    # -inf where none does, NaN for segments that are not evaluated.
    matched: Mapping[str, FloatArray] = field(default_factory=dict)

    @staticmethod
    def of(name: str, detections: Detections, kinds: IntArray | None = None) -> Track:
        """The detections of one video, perhaps with the kind of each at the page's thresholds."""
        labels = [detections.classes[label] for label in detections.labels]
        found = detections.segments, labels, detections.scores, detections.min_scores
        return Track(name, "detection", *found, kinds=kinds)

    def min_score(self, label: str) -> float:
        """The score from which segments of a label are shown."""
        return self.min_scores.get(label, DEFAULT_SCORE)

    @property
    def shown(self) -> NDArray[np.bool_]:
        """Which segments are shown, bool ``[n]``; those of ground truth all are."""
        if self.scores is None:
            return np.ones(len(self.labels), np.bool_)
        shown: NDArray[np.bool_] = self.scores >= np.array([self.min_score(label) for label in self.labels])
        return shown

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"track {self.name!r} has kind {self.kind!r}; use one of {', '.join(get_args(Kind))}")
        count = len(self.labels)
        scores = np.ones(count) if self.scores is None else self.scores
        if self.segments.shape != (count, 2) or scores.shape != (count,):
            raise ValueError(
                f"track {self.name!r}: segments {self.segments.shape} and scores {scores.shape}, but {count} labels"
            )
        if self.notes is not None and len(self.notes) != count:
            raise ValueError(f"track {self.name!r}: {len(self.notes)} notes, but {count} labels")
        for judged in (*self.matched.values(), *([] if self.kinds is None else [self.kinds])):
            if judged.shape != (count, len(TIOU)):
                raise ValueError(f"track {self.name!r}: judgements {judged.shape}, not {(count, len(TIOU))}")
        starts, ends = self.segments.T
        sound = np.isfinite(starts) & np.isfinite(ends) & (starts <= ends) & (scores >= 0) & (scores <= 1)
        for row in np.flatnonzero(~sound):
            raise ValueError(
                f"track {self.name!r}: segment {row} is {self.segments[row].tolist()} with score {scores[row]}; give "
                "start <= end and a score from 0 to 1"
            )


@dataclass(frozen=True)
class PageVideo:
    """A video and its rows of timelines. Raises ValueError for a wrong path or duration."""

    name: str
    media: str | None  # a file that browsers play, relative to the page's folder
    duration_s: float
    tracks: Sequence[Track]
    defects: Sequence[str] = ()  # sentences, listed with the video
    # By the name of a result: mAP at each of TIOU, 0 to 1, over the classes that the video has segments of.
    average_precision: Mapping[str, Sequence[float]] = field(default_factory=dict)
    without_media: str = "This page was written without this video."  # shown where there is no file

    def __post_init__(self) -> None:
        if self.media is not None:
            _check_relative(self.media)
        if not 0 < self.duration_s < float("inf"):
            raise ValueError(f"video {self.name!r} has a duration of {self.duration_s} s; give a positive one")


def write_page(
    path: Path,
    *,
    title: str,
    introduction: str,
    tables: Sequence[Table] = (),
    pictures: Sequence[tuple[str, str]] = (),
    videos: Sequence[PageVideo] = (),
) -> None:
    """Writes the page with all videos. Media files are not copied; the page notes which are missing when it is written.

    Its slider starts at the least score of the tracks; if they have several, at those, by class.

    Args:
        introduction: plain text; an empty line starts a paragraph.
        pictures: caption and path relative to the page's folder.
    """
    sections = (("videos", "Videos", videos), ("tables", "Results", tables), ("pictures", "Figures", pictures))
    links = [f'<a href="#{anchor}">{heading}</a>' for anchor, heading, content in sections if content]
    paragraphs = map(str.strip, introduction.split("\n\n"))
    page = Template(_part("page.html.in")).substitute(
        version=escape(bitad.__version__),
        title=escape(title),
        style=_part("page.css") + _mark_style(),
        introduction="\n".join(f"<p>{escape(text)}</p>" for text in paragraphs if text),
        navigation=f'<nav aria-label="Parts of this page">{"".join(links)}</nav>' if len(links) > 1 else "",
        videos_hidden="" if videos else " hidden",
        tables=_section("tables", "Results", [table.html() for table in tables]),
        pictures=_section("pictures", "Figures", [_picture(*picture) for picture in pictures]),
        data=_embedded(_data(videos, tables, path.parent)),
        script=_part("page.js"),
    )
    with atomic_write(path) as partial_file:
        partial_file.write_text(page, encoding="utf-8")


def write_report(
    out: Path,
    *,
    title: str,
    introduction: str,
    tables: Sequence[Table],
    content: Mapping[str, Any],
    pictures: Sequence[tuple[str, str]],
    videos: Sequence[PageVideo],
) -> Path:
    """Writes ``out``/results.md, results.json with ``content``, and the page ``out``/index.html, which is returned."""
    with atomic_write(out / "results.md") as partial_file:
        partial_file.write_text("\n".join(table.markdown() for table in tables), encoding="utf-8")
    write_json(content, out / "results.json")
    page = out / "index.html"
    write_page(page, title=title, introduction=introduction, tables=tables, pictures=pictures, videos=videos)
    return page


def best_result(videos: Sequence[PageVideo]) -> str | None:
    """The result with the highest mean of the videos' mAP at the default tIoU; None if there is no mAP."""
    at = TIOU.index(DEFAULT_TIOU)
    by_result: dict[str, list[float]] = {}
    for video in videos:
        for name, figures in video.average_precision.items():
            by_result.setdefault(name, []).append(figures[at])
    means = {name: float(np.mean(figures)) for name, figures in by_result.items()}
    return max(means, key=means.__getitem__, default=None)


def is_own_page(path: Path) -> bool:
    """Whether a file is a page written by BiTAD."""
    try:
        with path.open("rb") as file:
            return b'<meta name="generator" content="BiTAD' in file.read(1000)
    except OSError:
        return False


def check_page(path: Path) -> None:
    """Raises ValueError if there is a file that is no page of BiTAD."""
    if os.path.lexists(path) and not is_own_page(path):
        raise ValueError(f"{path} was not written by BiTAD and is not overwritten; choose another folder")


def _mark_style() -> str:
    """The colours of the kinds of detections, as style sheet rules."""
    light = "\n".join(f'[data-mark="{kind}"] {{ --mark: {c.light}; }}' for kind, c in KIND_COLOURS.items())
    dark = "\n".join(f'[data-mark="{kind}"] {{ --mark: {c.dark}; }}' for kind, c in KIND_COLOURS.items())
    return f"\n{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"


def _part(name: str) -> str:
    return resources.files("bitad.reports").joinpath(name).read_text(encoding="utf-8")


def _section(anchor: str, heading: str, parts: Sequence[str]) -> str:
    if not parts:
        return ""
    body = "".join(parts)
    return f'<section id="{anchor}">\n<h2>{heading}</h2>\n<div class="{anchor}">\n{body}</div>\n</section>'


def _picture(caption: str, path: str) -> str:
    _check_relative(path)
    text, link = escape(caption), escape(quote(path))
    return (
        f'<figure class="picture"><a href="{link}"><img src="{link}" alt="{text}"></a>'
        f"<figcaption>{text}</figcaption></figure>\n"
    )


def is_relative(path: str) -> bool:
    """Whether a page can name a file by this path: it is relative to the page's folder, and has no backslash."""
    # A Windows drive and a URL's scheme both start with letters and a colon.
    has_root = path.startswith("/") or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", path) is not None
    return path != "" and "\\" not in path and not has_root


def _check_relative(path: str) -> None:
    if not is_relative(path):
        raise ValueError(
            f"{path!r} is not a path relative to the page; copy the file beside it and give `folder/name`"
        )


def _data(videos: Sequence[PageVideo], tables: Sequence[Table], folder: Path) -> dict[str, Any]:
    classes = sorted({label for video in videos for track in video.tracks for label in track.labels})
    number = {name: i for i, name in enumerate(classes)}
    found = [track for video in videos for track in video.tracks if track.scores is not None]
    least = sorted({track.min_score(label) for track in found for label in set(track.labels)} or {DEFAULT_SCORE})
    in_tables = (str(name) for table in tables for name in (*table.columns, *(row[0] for row in table.rows)))
    colours = known_colours(in_tables) | colours_of(track.name for track in found)
    results = list(dict.fromkeys(track.name for track in found if track.kinds is not None))
    most = min(TOP_K, max(10, MOST_ROWS // max(1, len(found))))
    min_scores: dict[tuple[float, ...], int] = {}
    return {
        "threshold": least[0] if len(least) == 1 else None,
        "least": [least[0], least[len(least) // 2], least[-1]],
        "classes": classes,
        "colours": {name: [colour.light, colour.dark] for name, colour in colours.items()},
        "most": most,
        "tiou": TIOU,
        "default_tiou": TIOU.index(DEFAULT_TIOU),
        "results": results,
        "best": best_result(videos) or next(iter(results), None),
        "marks": [
            {"kind": kind, "name": kind_name(kind), **_MARKS[kind]._asdict()} for kind in (*KINDS, "missed")
        ],
        "videos": [
            {
                "name": video.name,
                "media": video.media and quote(video.media),
                "absent": _absent(video, folder),
                "duration": round(video.duration_s, 3),
                "fps": _frame_rate(video.media, folder),
                "tracks": [_columns(track, number, most, min_scores) for track in video.tracks],
                "defects": list(video.defects),
                "ap": {name: _percent(figures) for name, figures in video.average_precision.items()},
            }
            for video in videos
        ],
        "min_scores": list(min_scores),
    }


def _percent(figures: Sequence[float]) -> list[float]:
    return [round(100 * figure, 1) for figure in figures]


def _absent(video: PageVideo, folder: Path) -> str:
    """Why the page cannot play this video; empty if it can."""
    if video.media is None:
        return video.without_media
    return "" if (folder / video.media).is_file() else f"“{video.media}” was not there when this page was written."


def _frame_rate(media: str | None, folder: Path) -> float | None:
    """Frames per second of a file; None if they are not known."""
    if media is None:
        return None
    try:
        container, stream = open_video(folder / media)
    except (OSError, ValueError):
        return None
    with container:
        rate = stream.average_rate
    return None if not rate else round(float(rate), 4)


def _columns(
    track: Track,
    number: Mapping[str, int],
    most: int,
    min_scores: dict[tuple[float, ...], int],
) -> dict[str, Any]:
    """The best rows of a track by descending score (of ground truth, all by start)."""
    starts = track.segments[:, 0]
    if track.scores is None:
        order = np.argsort(starts, kind="stable")
    else:
        first = np.lexsort((-track.scores, ~track.shown))[:most]  # what is shown by class may score less
        order = first[np.argsort(-track.scores[first], kind="stable")]
    columns = {
        "name": track.name,
        "kind": track.kind,
        "total": len(track.labels),
        "start": starts[order].round(3).tolist(),
        "end": track.segments[order, 1].round(3).tolist(),
        "label": [number[track.labels[i]] for i in order],
        "score": None if track.scores is None else track.scores[order].round(4).tolist(),
        "note": None if track.notes is None else [track.notes[i] for i in order],
        "least": None,  # an index into the page's ``min_scores``
    }
    if track.scores is not None:
        by_class = tuple(track.min_score(name) for name in number)
        columns["least"] = min_scores.setdefault(by_class, len(min_scores))
    if track.kinds is not None:  # a string of digits for each threshold
        columns["kinds"] = ["".join(map(str, column)) for column in track.kinds[order].T.tolist()]
    if track.matched:
        columns["matched"] = {name: _scores(scores[order]) for name, scores in track.matched.items()}
    return columns


def _scores(matched: FloatArray) -> list[list[float | None]]:
    """By threshold: -1 where nothing matches the segment, null where it is not evaluated."""
    by_threshold = matched.T.clip(min=-1).round(4).tolist()
    return [[None if score != score else score for score in column] for column in by_threshold]


def _embedded(data: dict[str, Any]) -> str:
    """JSON for a script element; without ``<``, nothing can end the element or open a comment."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
