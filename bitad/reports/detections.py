"""Detections for people: subtitles, and a page with the videos and their timelines."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import bitad
from bitad.config.names import OnDecodeError
from bitad.data.detections import Detections, read_detections, write_detections
from bitad.reports.page import PageVideo, Track, is_own_page, write_page
from bitad.runtime.files import atomic_write, check_folder, check_not_inputs
from bitad.runtime.log import printable, shortlist
from bitad.runtime.progress import progress_callback
from bitad.video.writer import write_preview

MOST_LINES = 3


def write_srt(
    path: Path,
    segments: NDArray[np.float64],
    labels: Sequence[str],
    scores: NDArray[np.float64],
    *,
    min_score: float,
) -> None:
    """Writes a SubRip file whose cues never overlap: wherever what happens changes, the next cue begins.

    A cue has a line for each class that happens then, the best-scored first, at most three. Segments that round to
    no millisecond, and what lies before 0, are left out. Without any detection the file is empty, which is valid.

    Args:
        path: the file, in UTF-8.
        segments: float64 ``[n, 2]``, start and end in seconds on the forward clock, in any order.
        labels: n class names.
        scores: float64 ``[n]``.
        min_score: detections below it are left out.

    Raises:
        ValueError: columns of different lengths, or times that are not finite.
    """
    if segments.shape != (len(labels), 2) or scores.shape != (len(labels),):
        raise ValueError(
            f"segments {segments.shape} and scores {scores.shape} do not fit {len(labels)} labels;"
            " give segments [n, 2], scores [n] and n labels"
        )
    if not np.isfinite(segments).all():
        row = int(np.argmin(np.isfinite(segments).all(axis=1)))
        raise ValueError(f"segment {row} is {segments[row].tolist()}; give finite times in seconds")
    kept = np.flatnonzero(scores >= min_score)
    kept = kept[np.argsort(-scores[kept], kind="stable")]  # best first, and so in every cue
    times_ms = np.round(1000 * segments[kept].clip(min=0)).astype(np.int64)
    names = [_plain(labels[i]) for i in kept.tolist()]
    lines = [f"{name} {score:.2f}" for name, score in zip(names, scores[kept].tolist(), strict=True)]
    cues: list[tuple[int, int, str]] = []
    boundaries = np.unique(times_ms)
    for start, end in zip(boundaries[:-1].tolist(), boundaries[1:].tolist(), strict=True):
        happening = np.flatnonzero((times_ms[:, 0] <= start) & (times_ms[:, 1] >= end))
        best: dict[str, str] = {}
        for i in happening:
            best.setdefault(names[i], lines[i])
        text = "\n".join(list(best.values())[:MOST_LINES])
        if cues and cues[-1][1:] == (start, text):
            start = cues.pop()[0]
        if text:
            cues.append((start, end, text))
    blocks = [
        f"{number}\n{_clock(start)} --> {_clock(end)}\n{text}\n"
        for number, (start, end, text) in enumerate(cues, start=1)
    ]
    with atomic_write(path) as partial_file:
        partial_file.write_text("\n".join(blocks), encoding="utf-8")


def _clock(milliseconds: int) -> str:
    """``hh:mm:ss,mmm``."""
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02},{milliseconds:03}"


def _plain(label: str) -> str:
    """On one line, and without what a player takes for a tag or the arrow of a cue's times; SubRip has no escapes."""
    return printable(" ".join(label.split())).replace("<", "‹").replace(">", "›")


# What a report says of itself in detections.json.
_MADE_BY = "made_by"
_DETECT = "bitad detect"


def check_detection_report(
    out: Path,
    videos: Mapping[str, Path],
    *,
    min_score: float,
    overwrite: bool = False,
    inputs: Iterable[Path] = (),
) -> None:
    """Refuse, before anything is detected, what :func:`write_detection_report` could not or should not write.

    Args:
        out: the folder to write to.
        videos: the files, by name.
        min_score: of subtitles and page.
        overwrite: whether the files of an earlier report may be replaced. Other files never are.
        inputs: other files that are read.

    Raises:
        ValueError, OSError: ``min_score`` is not in [0, 1], ``out`` cannot be written to, or a file to be written is
            there already.
    """
    if not 0 <= min_score <= 1:
        raise ValueError(f"--min-score {min_score}: give a score from 0 to 1")
    check_folder(out)
    check_folder(_media(out))
    planned = _files(out, videos)
    check_not_inputs(planned, [*videos.values(), *inputs])
    there = [path for path in planned if os.path.lexists(path)]
    if there and not overwrite:
        raise ValueError(
            f"{shortlist(there, most=1)} would be overwritten; give another --out, or replace what an "
            "earlier `bitad detect` has written there with --overwrite"
        )
    own = _earlier_files(out)
    if foreign := [path for path in there if path not in own]:
        raise ValueError(f"{foreign[0]} was not written by `bitad detect` and is not overwritten; give another --out")


def write_detection_report(
    out: Path, detections: Detections, videos: Mapping[str, Path], *, min_score: float, damaged: OnDecodeError = "error"
) -> tuple[Path, dict[str, str]]:
    """Writes ``out``/detections.json, a ``.srt`` and an H.264 preview a video, and the page ``out``/index.html.

    Browsers do not play every file that FFmpeg reads (no MPEG-4 AVI, say): the page shows previews. One that cannot be
    made costs no detections: the page is without it. What else an earlier report has written there is removed.

    Args:
        detections: on the forward clock.
        videos: the files of the detections' videos, by name.
        min_score: least score of the subtitles, and of the page at first.
        damaged: what to do about frames of a preview that cannot be decoded.

    Returns:
        the page; and, by the name of the video, why it has no preview.
    """
    earlier = _earlier_files(out)
    details = {_MADE_BY: _DETECT, "version": bitad.__version__} | detections.details
    write_detections(replace(detections, details=details), out / "detections.json")
    tracks = {}
    for name in detections.videos:
        found = detections.of_video(name)
        labels = [detections.classes[label] for label in found.labels]
        write_srt(_subtitles(out, name), found.segments, labels, found.scores, min_score=min_score)
        tracks[name] = Track("Detections", "detection", found.segments, labels, found.scores)
    without = dict(_write_previews(out, detections.videos, videos, damaged))
    page = _page(out)
    best = float(np.max(detections.scores, initial=0.0))
    write_page(
        page,
        title="Detected actions",
        introduction=f"Looked for: {', '.join(detections.classes)}. The best score of a detection is {best:.2f}.",
        videos=[
            PageVideo(
                name,
                None if name in without else _preview(out, name).relative_to(out).as_posix(),
                detections.durations_s[name],
                [track],
            )
            for name, track in tracks.items()
        ],
        min_score=min_score,
    )
    for path in set(earlier) - set(_files(out, set(detections.videos) - without.keys())):
        path.unlink()
    return page, without


def _write_previews(
    out: Path, names: Iterable[str], videos: Mapping[str, Path], damaged: OnDecodeError
) -> Iterator[tuple[str, str]]:
    """Writes previews; which videos have none, and why."""
    for name in names:
        try:
            with progress_callback(f"preview of {name}") as on_progress:
                write_preview(videos[name], _preview(out, name), damaged=damaged, on_progress=on_progress)
        except (OSError, ValueError) as error:
            yield name, str(error)


def _earlier_files(out: Path) -> list[Path]:
    """The files of the report in a folder; none where there is no report."""
    try:
        found = read_detections(out / "detections.json")
    except (OSError, ValueError):
        return []
    if found.details.get(_MADE_BY) != _DETECT:
        return []
    # The file may be anyone's: it names nothing outside its folder, nor a page that is not ours.
    names = [name for name in found.videos if name == Path(name).name]
    return [path for path in _files(out, names) if path.is_file() and (path != _page(out) or is_own_page(path))]


def _files(out: Path, names: Iterable[str]) -> list[Path]:
    """The files of a report on these videos."""
    of_videos = [path for name in names for path in (_subtitles(out, name), _preview(out, name))]
    return [out / "detections.json", _page(out), *of_videos]


def _page(out: Path) -> Path:
    return out / "index.html"


def _subtitles(out: Path, name: str) -> Path:
    return out / f"{name}.srt"


def _media(out: Path) -> Path:
    return out / "media"


def _preview(out: Path, name: str) -> Path:
    return _media(out) / f"{name}.mp4"
