"""Detections as subtitles, for any video player."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitad.files import replacing
from bitad.printing import printable

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
    with replacing(path) as partial_file:
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
