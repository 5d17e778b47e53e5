"""Draws the loss and the mAP of a run that is in progress, in the terminal."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.text import Text

from bitad.config.loading import load_run_config
from bitad.runtime.log import printable
from bitad.runtime.progress import duration_text
from bitad.training.metrics import METRICS, read_metrics

_SECONDS_BETWEEN_LOOKS = 2.0
_LABEL = 9  # columns of the numbers beside a chart
_HEIGHTS = (4, 12)  # rows of a chart, the least and the most
# The dots of a Braille character, by row and column.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BRAILLE = 0x2800

Curve = list[tuple[float, float]]


def watch(directory: Path, *, once: bool = False, console: Console | None = None) -> None:
    """Draws the curves of a run, again and again until it has finished or is interrupted.

    Args:
        once: draw them once; so does a console that is no terminal.

    Raises:
        FileNotFoundError, ValueError: no run directory, or its configuration or metrics cannot be read.
    """
    console = Console() if console is None else console
    text, has_finished = _picture(directory, console)
    if once or has_finished or not console.is_terminal:
        console.print(text, soft_wrap=True)
        return
    with suppress(KeyboardInterrupt), Live(text, console=console, auto_refresh=False) as live:
        while not has_finished:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            text, has_finished = _picture(directory, console)
            live.update(text, refresh=True)


def _picture(directory: Path, console: Console) -> tuple[Text, bool]:
    """The curves of a run as they are now, and whether it has finished."""
    epochs = load_run_config(directory).training.epochs  # an extended run has more
    path = directory / METRICS
    records = read_metrics(path) if path.is_file() else []
    trained = [record for record in records if record["kind"] == "training"]
    evaluated = [record for record in records if record["kind"] == "evaluation"]
    has_finished = any(record["epoch"] == epochs for record in evaluated)
    if not trained:
        return Text(printable(f"{directory}: no step is recorded yet")), False
    now = trained[-1]
    ago = duration_text(max(0.0, time.time() - path.stat().st_mtime))
    state = "finished" if has_finished else f"epoch {now['epoch'] + 1} of {epochs}, step {now['step']}"
    lines = [printable(f"{directory}: {state}, learning rate {now['lr']:.3g}; last record {ago} ago"), ""]
    draw = _Chart(console, (records[0]["step"], records[-1]["step"]))
    lines += [f"loss, last {now['loss']:.4g}", *draw(_curve(trained, "loss"))]
    if evaluated:
        best = max(evaluated, key=lambda record: record["average_map"])
        title = (
            f"average mAP (%), last {100 * evaluated[-1]['average_map']:.2f}, best {100 * best['average_map']:.2f}"
        )
        lines += ["", f"{title} after epoch {best['epoch']}", *draw(_curve(evaluated, "average_map", 100.0))]
    return Text("\n".join(lines)), has_finished


def _curve(records: Sequence[dict[str, Any]], name: str, scale: float = 1.0) -> Curve:
    return [(record["step"], scale * record[name]) for record in records if math.isfinite(record[name])]


class _Chart:
    """Draws curves over the same steps, in Braille characters, or in asterisks where the output has none."""

    def __init__(self, console: Console, steps: tuple[float, float]) -> None:
        self.width = max(20, console.width - _LABEL - 3)
        self.height = min(max((console.height - 8) // 2, _HEIGHTS[0]), _HEIGHTS[1])
        self.first, self.last = steps
        try:
            chr(_BRAILLE).encode(console.encoding)
            self.has_braille = True
        except (UnicodeEncodeError, LookupError):
            self.has_braille = False

    def __call__(self, curve: Curve) -> Iterator[str]:
        """The lines of a chart, with the range of its values on the left."""
        if not curve:
            return
        columns, rows = (2 * self.width, 4 * self.height) if self.has_braille else (self.width, self.height)
        x, values = np.array(curve).T
        places = ((x - self.first) / max(1.0, self.last - self.first) * (columns - 1)).round()
        at = np.unique(places)
        means = np.array([values[places == column].mean() for column in at])
        low, high = float(means.min()), float(means.max())
        heights = (high - means) / (high - low) * (rows - 1) if high > low else np.full(len(means), rows - 1.0)
        cells = np.zeros((self.height, self.width), int)
        for row, column in _line(list(zip(heights.tolist(), at.tolist(), strict=True))):
            if self.has_braille:
                cells[row // 4, column // 2] |= _DOTS[row % 4][column % 2]
            else:
                cells[row, column] = 1
        for number, line in enumerate(cells):
            label = f"{high:.4g}" if number == 0 else f"{low:.4g}" if number == self.height - 1 else ""
            drawn = "".join(chr(_BRAILLE + cell) if self.has_braille else " *"[cell] for cell in line)
            yield f"{label:>{_LABEL}} | {drawn}".rstrip()
        ends = f"step {self.first:.0f}", f"{self.last:.0f}"
        yield f"{'':{_LABEL}}   {ends[0]}{ends[1]:>{self.width - len(ends[0])}}"


def _line(points: Sequence[tuple[float, float]]) -> Iterator[tuple[int, int]]:
    """The places on straight lines from each point to the next."""
    for place in points[:1]:
        yield round(place[0]), round(place[1])
    for start, end in itertools.pairwise(points):
        count = 1 + math.ceil(max(abs(end[0] - start[0]), abs(end[1] - start[1])))
        rows, columns = np.linspace(start, end, count).round().astype(int).T.tolist()
        yield from zip(rows, columns, strict=True)
