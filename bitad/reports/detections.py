"""Subtitles of detections, and a page with the videos and their timelines."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

import bitad
from bitad.config.names import OnDecodeError
from bitad.data.detections import Detections, read_detections, write_detections
from bitad.reports.page import PageVideo, Track, is_own_page, write_page
from bitad.runtime.files import atomic_write, check_folder, check_not_inputs
from bitad.runtime.log import printable, shortlist
from bitad.runtime.progress import progress_callback
from bitad.video.writer import write_preview

MAX_LINES = 3


def write_srt(path: Path, track: Track) -> None:
    """Writes a SubRip file with cues that never overlap: a new cue begins wherever the detected classes change.

    A cue is of detections with at least the score of their class. It has a line for each class, the best-scored first,
    at most three.
    """
    assert track.scores is not None
    kept = np.argsort(-track.scores, kind="stable")  # the best first, also in every cue
    kept = kept[track.shown[kept]]
    starts, ends = np.round(1000 * track.segments[kept].clip(min=0)).astype(np.int64).T
    names = [_plain(track.labels[i]) for i in kept]
    scores = track.scores[kept]
    cues: list[tuple[int, int, str]] = []
    for start, end in pairwise(np.unique([starts, ends]).tolist()):
        best: dict[str, str] = {}
        for i in np.flatnonzero((starts <= start) & (ends >= end)):
            best.setdefault(names[i], f"{names[i]} {scores[i]:.2f}")
        text = "\n".join(list(best.values())[:MAX_LINES])
        if cues and cues[-1][1:] == (start, text):
            start = cues.pop()[0]
        if text:
            cues.append((start, end, text))
    blocks = []
    for number, (start, end, text) in enumerate(cues, start=1):
        blocks.append(f"{number}\n{_clock(start)} --> {_clock(end)}\n{text}\n")
    with atomic_write(path) as partial_file:
        partial_file.write_text("\n".join(blocks), encoding="utf-8")


def _clock(milliseconds: int) -> str:
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02},{milliseconds:03}"


def _plain(label: str) -> str:
    """One line without the characters of tags and of the arrow between times; SubRip has no escapes."""
    return printable(" ".join(label.split())).replace("<", "‹").replace(">", "›")


_MARK = {"made_by": "bitad detect"}  # in the detections.json of a report
_PAGE, _MEDIA = "index.html", "media"


def check_detection_report(
    out: Path,
    videos: Mapping[str, Path],
    *,
    overwrite: bool = False,
    inputs: Iterable[Path] = (),
) -> None:
    """Checks in advance that :func:`write_detection_report` can and may write its files.

    Raises:
        ValueError, OSError: ``out`` is not writable, or a file exists already.
    """
    check_folder(out)
    check_folder(out / _MEDIA)
    planned = _files(out, videos)
    check_not_inputs(planned, [*videos.values(), *inputs])
    existing = [path for path in planned if os.path.lexists(path)]
    if existing and not overwrite:
        raise ValueError(
            f"{shortlist(existing, most=1)} would be overwritten; choose another --out, or replace the files of an "
            "earlier `bitad detect` with --overwrite"
        )
    if foreign := [path for path in existing if path not in _earlier_files(out)]:
        raise ValueError(
            f"{foreign[0]} was not written by `bitad detect` and is not overwritten; choose another --out"
        )


def write_detection_report(
    out: Path,
    detections: Detections,
    videos: Mapping[str, Path],
    *,
    shown: str,
    damaged: OnDecodeError = "error",
) -> tuple[Path, dict[str, str]]:
    """Writes ``out``/detections.json, ``.srt`` and H.264 preview files of the videos, and the page ``out``/index.html.

    Subtitles and page show detections with at least the score of their class; ``shown`` says how it was chosen.
    Browsers do not play every video, but they play the previews. Other files of an earlier report are removed.
    Returns the page, and for each video without a preview the reason.
    """
    earlier = _earlier_files(out)
    details = {**_MARK, "version": bitad.__version__} | detections.details
    write_detections(replace(detections, details=details), out / "detections.json")
    tracks = {name: Track.of("Detections", "detection", detections, name) for name in detections.videos}
    for name, track in tracks.items():
        write_srt(out / f"{name}.srt", track)
    without: dict[str, str] = {}
    on_page = []
    for name, track in tracks.items():
        media: str | None = f"{_MEDIA}/{name}.mp4"
        try:
            with progress_callback(f"preview of {name}") as on_progress:
                write_preview(videos[name], out / _MEDIA / f"{name}.mp4", damaged=damaged, on_progress=on_progress)
        except (OSError, ValueError) as error:
            media, without[name] = None, str(error)
        on_page.append(PageVideo(name, media, detections.durations_s[name], [track]))
    best = float(np.max(detections.scores, initial=0.0))
    introduction = f"Classes: {', '.join(detections.classes)}. The best score of a detection is {best:.2f}."
    introduction += f" Shown at first: detections with {shown}."
    page = out / _PAGE
    write_page(page, title="Detected actions", introduction=introduction, videos=on_page)
    for path in set(earlier) - set(_files(out, set(detections.videos) - without.keys())):
        path.unlink()
    return page, without


def _earlier_files(out: Path) -> list[Path]:
    """The files of an earlier report in a folder, if there is one."""
    try:
        found = read_detections(out / "detections.json")
    except (OSError, ValueError):
        return []
    if not _MARK.items() <= found.details.items():
        return []
    # The file may come from anyone: it must not name files outside the folder, or a page of something else.
    names = [name for name in found.videos if name == Path(name).name]
    files = [path for path in _files(out, names) if path.is_file()]
    return [path for path in files if path.name != _PAGE or is_own_page(path)]


def _files(out: Path, names: Iterable[str]) -> list[Path]:
    """The files of a report on these videos."""
    files = [out / "detections.json", out / _PAGE]
    for name in names:
        files += [out / f"{name}.srt", out / _MEDIA / f"{name}.mp4"]
    return files
