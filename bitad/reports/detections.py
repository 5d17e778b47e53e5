"""Subtitles of detections, and a page with the videos and their timelines."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import bitad
from bitad.config.names import OnDecodeError
from bitad.data.detections import Detections, read_detections, write_detections
from bitad.reports.media import MEDIA
from bitad.reports.page import PageVideo, Track, is_own_page, write_page
from bitad.runtime.files import atomic_write, check_folder, check_not_inputs, walk
from bitad.runtime.locking import LOCK
from bitad.runtime.log import printable, shortlist
from bitad.runtime.progress import progress_callback
from bitad.runtime.signatures import file_digest, sha256_of
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
_PAGE = "index.html"


@dataclass(frozen=True)
class Inputs:
    """What detections were made from, as their file records it.

    Args:
        checkpoint: ``file`` (its name, as runs may be moved) and ``sha256`` of the weights, and ``config`` if one was
            named; empty if there is no file.
        videos: a digest of each readable video file, by name.
    """

    checkpoint: dict[str, str]
    videos: dict[str, str]

    @staticmethod
    def of(weights: Path, config: str | None, videos: Mapping[str, Path]) -> Inputs:
        """Of a file of weights, and of video files by name."""
        found = {"file": weights.name, "sha256": sha256_of(weights)} if weights.is_file() else {}
        if config is not None:
            found["config"] = config
        digests = {}
        for name, file in videos.items():
            with suppress(OSError):  # detecting names the file that cannot be read
                digests[name] = file_digest(file)
        return Inputs(found, digests)

    def lost(self, details: Mapping[str, Any]) -> str | None:
        """What would be lost if results with these ``details`` were replaced; None: they would only be made again."""
        before, videos = details.get("checkpoint"), details.get("videos")
        if not (isinstance(before, dict) and isinstance(videos, dict)):
            return "results of an earlier version, which does not record the checkpoint"
        is_there = "sha256" in self.checkpoint  # loading says what is missing
        if is_there and any(before.get(key) != self.checkpoint.get(key) for key in ("sha256", "config")):
            file, config, sha256 = (before.get(key) for key in ("file", "config", "sha256"))
            made_by = f"{file}, SHA-256 {str(sha256)[:12]}..." + (f", with {config}" if config else "")
            return f"results of another checkpoint ({made_by})"
        if others := [name for name, digest in videos.items() if self.videos.get(name) != digest]:
            return f"results of other videos ({shortlist(others)})"
        return None


def check_detection_report(
    out: Path,
    videos: Mapping[str, Path],
    made_from: Inputs,
    *,
    force: bool = False,
    inputs: Iterable[Path] = (),
) -> None:
    """Checks in advance that :func:`write_detection_report` can and may write its files.

    Results of the same checkpoint and videos may be replaced, perhaps by those of more videos.

    Args:
        made_from: the inputs of the new results.
        force: replace any earlier results, and write beside other files.
        inputs: more files that must not be replaced.

    Raises:
        ValueError, OSError: ``out`` is not writable, or has other results or files.
    """
    check_folder(out)
    check_folder(out / MEDIA)
    planned = _files(out, videos)
    check_not_inputs(planned, [*videos.values(), *inputs])
    earlier = _earlier(out)
    own = set(_files_of(earlier, out))
    if foreign := [path for path in planned if os.path.lexists(path) and path not in own]:
        raise ValueError(
            f"{foreign[0]} was not written by `bitad detect` and is not overwritten; choose another --out"
        )
    if force:
        return
    if earlier is not None and (lost := made_from.lost(earlier.details)):
        raise ValueError(f"{out} has {lost}; choose another --out, or replace them with --force")
    for here, _, files in walk(out):
        for path in (here / name for name in files if name != LOCK):
            if path not in own:
                raise ValueError(
                    f"{path} was not written by `bitad detect`; choose another --out, or write beside it with --force"
                )


def write_detection_report(
    out: Path,
    detections: Detections,
    videos: Mapping[str, Path],
    made_from: Inputs,
    *,
    shown: str,
    damaged: OnDecodeError = "error",
) -> tuple[Path, dict[str, str]]:
    """Writes ``out``/detections.json, ``.srt`` and H.264 preview files of the videos, and the page ``out``/index.html.

    Subtitles and page show detections with at least the score of their class; ``shown`` says how it was chosen.
    Browsers do not play every video, but they play the previews. Other files of an earlier report are removed.
    Returns the page, and for each video without a preview the reason.
    """
    earlier = _files_of(_earlier(out), out)
    videos_read = {name: digest for name, digest in made_from.videos.items() if name in detections}
    record = {"checkpoint": made_from.checkpoint, "videos": videos_read}
    details = {**_MARK, "version": bitad.__version__, **record} | detections.details
    write_detections(replace(detections, details=details), out / "detections.json")
    tracks = {name: Track.of("Detections", detections.of_video(name)) for name in detections.videos}
    for name, track in tracks.items():
        write_srt(out / f"{name}.srt", track)
    without: dict[str, str] = {}
    on_page = []
    for name, track in tracks.items():
        media: str | None = f"{MEDIA}/{name}.mp4"
        try:
            with progress_callback(f"preview of {name}") as on_progress:
                write_preview(videos[name], out / MEDIA / f"{name}.mp4", damaged=damaged, on_progress=on_progress)
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


def _earlier(out: Path) -> Detections | None:
    """The detections of an earlier report in a folder, if there is one."""
    try:
        found = read_detections(out / "detections.json")
    except (OSError, ValueError):
        return None
    return found if _MARK.items() <= found.details.items() else None


def _files_of(found: Detections | None, out: Path) -> list[Path]:
    """The existing files of the report with these detections."""
    if found is None:
        return []
    # The file may come from anyone: it must not name files outside the folder, or a page of something else.
    names = [name for name in found.videos if name == Path(name).name]
    files = [path for path in _files(out, names) if path.is_file()]
    return [path for path in files if path.name != _PAGE or is_own_page(path)]


def _files(out: Path, names: Iterable[str]) -> list[Path]:
    """The files of a report on these videos."""
    files = [out / "detections.json", out / _PAGE]
    for name in names:
        files += [out / f"{name}.srt", out / MEDIA / f"{name}.mp4"]
    return files
