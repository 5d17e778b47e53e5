"""One static HTML page: tables, pictures, and videos with timelines of what happens when.

It opens from disk by double click: style, script and data lie in the file; only media are beside it, linked relatively.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, Literal, get_args
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

import bitad
from bitad.reports.tables import Table
from bitad.runtime.files import atomic_write

Kind = Literal["ground-truth", "forward", "reverse", "merged", "detection"]


@dataclass(frozen=True, eq=False)
class Track:
    """One row of timelines: what one source says about a video.

    Args:
        name: as shown ("Forward (F)").
        kind: the sort of source; it sets the row's colour.
        segments: float64 ``[n, 2]``, start and end in seconds on the forward clock.
        labels: n class names.
        scores: float64 ``[n]``, 0 to 1; None for ground truth, which the page's minimum score leaves alone.

    Raises:
        ValueError: columns of different lengths, an unknown kind, ends before starts, or scores outside [0, 1].
    """

    name: str
    kind: Kind
    segments: NDArray[np.float64]
    labels: Sequence[str]
    scores: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"track {self.name!r} is of kind {self.kind!r}; use one of {', '.join(get_args(Kind))}")
        count = len(self.labels)
        if self.segments.shape != (count, 2) or (self.scores is not None and self.scores.shape != (count,)):
            scores = "none" if self.scores is None else self.scores.shape
            raise ValueError(
                f"track {self.name!r}: segments {self.segments.shape}, scores {scores}, but {count} labels;"
                " give segments [n, 2], scores [n] and n labels"
            )
        sound = np.isfinite(self.segments).all(axis=1) & (self.segments[:, 0] <= self.segments[:, 1])
        if not sound.all():
            row = int(np.argmin(sound))
            raise ValueError(f"track {self.name!r}: segment {row} is {self.segments[row].tolist()}; give start <= end")
        if self.scores is not None and not (sound := (self.scores >= 0) & (self.scores <= 1)).all():
            row = int(np.argmin(sound))
            raise ValueError(f"track {self.name!r}: score {row} is {self.scores[row]}; give scores from 0 to 1")


@dataclass(frozen=True)
class PageVideo:
    """A video and its rows of timelines.

    Args:
        name: as shown.
        media: path of an H.264 mp4 relative to the page's folder, with ``/`` between parts; None where there is none.
        duration_s: the video's duration in seconds.
        tracks: the rows, top to bottom.

    Raises:
        ValueError: a path that is not relative, or a duration that is not positive.
    """

    name: str
    media: str | None
    duration_s: float
    tracks: Sequence[Track]

    def __post_init__(self) -> None:
        if self.media is not None:
            _check_relative(self.media)
        if not (math.isfinite(self.duration_s) and self.duration_s > 0):
            raise ValueError(f"video {self.name!r} lasts {self.duration_s} s; give its duration in seconds")


def write_page(
    path: Path,
    *,
    title: str,
    introduction: str,
    tables: Sequence[Table] = (),
    pictures: Sequence[tuple[str, str]] = (),
    videos: Sequence[PageVideo] = (),
    min_score: float = 0.3,
    top_k: int = 1000,
) -> None:
    """Writes the page. No media are copied: they should lie beside it already, for it notes which are missing.

    Args:
        path: the HTML file; a missing folder is made.
        title: of the page.
        introduction: plain text; an empty line starts a paragraph.
        tables: shown in order.
        pictures: caption and path relative to the page's folder.
        videos: to choose from; the first is shown at the start.
        min_score: where the reader's filter of detections stands at the start.
        top_k: how many detections of a track are written, by descending score; the page says of how many.

    Raises:
        ValueError: a picture's path is not relative, ``min_score`` lies outside [0, 1], or ``top_k`` is below 1.
    """
    if not 0 <= min_score <= 1:
        raise ValueError(f"min_score is {min_score}; give a score from 0 to 1")
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}; give at least 1")
    sections = [
        ("videos", "Videos", bool(videos)),
        ("tables", "Results", bool(tables)),
        ("pictures", "Figures", bool(pictures)),
    ]
    links = [f'<a href="#{anchor}">{name}</a>' for anchor, name, present in sections if present]
    page = Template(_part("page.html.in")).substitute(
        version=escape(bitad.__version__),
        title=escape(title),
        style=_part("page.css"),
        introduction="\n".join(f"<p>{escape(text.strip())}</p>" for text in introduction.split("\n\n") if text.strip()),
        navigation=f'<nav aria-label="Parts of this page">{"".join(links)}</nav>' if len(links) > 1 else "",
        videos_hidden="" if videos else " hidden",
        tables=_section("tables", "Results", [table.html() for table in tables]),
        pictures=_section("pictures", "Figures", [_picture(*picture) for picture in pictures]),
        data=_embedded(_data(videos, path.parent, min_score, top_k)),
        script=_part("page.js"),
    )
    with atomic_write(path) as partial_file:
        partial_file.write_text(page, encoding="utf-8")


def is_own_page(path: Path) -> bool:
    """Whether a file is a page that BiTAD has written."""
    try:
        with path.open("rb") as file:
            return b'<meta name="generator" content="BiTAD' in file.read(1000)
    except OSError:
        return False


def check_page(path: Path) -> None:
    """Refuse a place for a page at which there is something else than a page of BiTAD, which may be replaced.

    Raises:
        ValueError: there is.
    """
    if os.path.lexists(path) and not is_own_page(path):
        raise ValueError(f"{path} was not written by BiTAD and is not overwritten; give another folder")


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


def _check_relative(path: str) -> None:
    # A Windows drive and a URL's scheme both start with letters and a colon.
    if not path or path.startswith("/") or "\\" in path or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", path):
        raise ValueError(f"{path!r} is no path relative to the page; copy the file beside it and give `folder/name`")


def _data(videos: Sequence[PageVideo], folder: Path, min_score: float, top_k: int) -> dict[str, Any]:
    classes = sorted({label for video in videos for track in video.tracks for label in track.labels})
    number = {name: i for i, name in enumerate(classes)}
    return {
        "threshold": min_score,
        "classes": classes,
        "videos": [
            {
                "name": video.name,
                "media": None if video.media is None else quote(video.media),
                "absent": _absent(video.media, folder),
                "duration": round(video.duration_s, 3),
                "tracks": [_columns(track, number, top_k) for track in video.tracks],
            }
            for video in videos
        ],
    }


def _absent(media: str | None, folder: Path) -> str:
    """Why the page does not try to play this (a browser that finds no file complains in its console); "" if it does."""
    if media is None:
        return "This page was written without this video."
    return "" if (folder / media).is_file() else f"“{media}” was not beside this page when it was written."


def _columns(track: Track, number: dict[str, int], top_k: int) -> dict[str, Any]:
    """A track's best ``top_k`` rows by descending score (of ground truth all, by start) as the page's script wants."""
    starts = track.segments[:, 0]
    if track.scores is None:
        order = np.argsort(starts, kind="stable")
    else:
        order = np.argsort(-track.scores, kind="stable")[:top_k]
    return {
        "name": track.name,
        "kind": track.kind,
        "total": len(track.labels),
        "start": starts[order].round(3).tolist(),
        "end": track.segments[order, 1].round(3).tolist(),
        "label": [number[track.labels[i]] for i in order],
        "score": None if track.scores is None else track.scores[order].round(4).tolist(),
    }


def _embedded(data: dict[str, Any]) -> str:
    """JSON that can stand in a script element: without ``<`` nothing can end it or open a comment in it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
