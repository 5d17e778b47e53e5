"""Plots of training and results in one style; each function writes one PNG or SVG file.

All functions raise a ValueError if there is nothing to plot, or the path ends in neither .png nor .svg.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args
from warnings import catch_warnings, simplefilter, warn_explicit

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from bitad.evaluation.diagnosis import Diagnosis
from bitad.evaluation.direction_sensitivity import Sensitivity, Verdict
from bitad.evaluation.mean_average_precision import PrecisionRecall
from bitad.reports.colours import KINDS as KIND_COLOURS
from bitad.reports.colours import PALETTE, colours_of
from bitad.reports.measure_tables import kind_name
from bitad.runtime.files import atomic_write
from bitad.runtime.log import log_once

_TEXT, _QUIET, _LINE = "#1b2127", "#5b6570", "#dfe3e7"
_DASHES = ("-", "--", ":")  # of curves that share a colour

# For Korean, Chinese or Japanese names, which the default font lacks.
_EAST_ASIAN = ("Noto Sans CJK KR", "Noto Sans KR", "NanumGothic", "Malgun Gothic", "Apple SD Gothic Neo")

# Any, because the keys' type differs between versions of matplotlib.
_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": _QUIET,
    "axes.grid": True,
    "axes.labelcolor": _QUIET,
    "axes.labelsize": 9.5,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": _TEXT,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "font.size": 9.5,
    "grid.color": _LINE,
    "grid.linewidth": 0.8,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "savefig.dpi": 170,
    "svg.hashsalt": "bitad",  # makes files reproducible
    "text.color": _TEXT,
    "text.parse_math": False,  # a dollar sign in the name of a class is literal
    "xtick.color": _QUIET,
    "xtick.labelsize": 9,
    "xtick.major.size": 3,
    "ytick.color": _QUIET,
    "ytick.labelsize": 9,
    "ytick.major.size": 3,
}


def plot_training_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Loss by step, as recorded and smoothed, beside average mAP by epoch; from the records of each run."""
    if not runs:
        raise ValueError("a plot of trainings needs at least one run")
    with _figure(path, width=7.6, height=3.1) as figure:
        left, right = figure.subplots(1, 2)
        drawn: list[str] = []
        for (name, records), colour in zip(runs.items(), _colours(runs), strict=True):
            dash = _DASHES[drawn.count(colour) % len(_DASHES)]
            style: dict[str, Any] = {"color": colour, "linestyle": dash, "linewidth": 1.8}
            drawn.append(colour)
            training = [record for record in records if record["kind"] == "training"]
            steps = np.array([record["step"] for record in training], float)
            losses = np.array([record["loss"] for record in training], float)
            left.plot(steps, losses, color=colour, alpha=0.22, linewidth=0.8)
            left.plot(steps, smoothed(losses), label=name, **style)
            tests = [record for record in records if record["kind"] == "evaluation"]
            epochs = [record["epoch"] for record in tests]
            averages = [100 * record["average_map"] for record in tests]
            right.plot(epochs, averages, marker="o", markersize=4, **style)
        left.set(title="Training loss", xlabel="step", ylabel="loss")
        left.set_ylim(bottom=0)
        right.set(title="Average mAP on the test subset", xlabel="epoch", ylabel="average mAP (%)")
        right.set_ylim(bottom=0)
        right.xaxis.get_major_locator().set_params(integer=True)
        if not any(line.get_xdata().size for line in right.lines):
            label = right.text(0.5, 0.5, "no evaluation recorded", transform=right.transAxes)
            label.set(ha="center", va="center", color=_QUIET)
        _legend(figure, left.get_legend_handles_labels()[0], None)


def plot_precision_recall(
    results: Mapping[str, Mapping[str, PrecisionRecall]],
    path: Path,
    *,
    tiou: float,
) -> None:
    """A panel per class: precision over recall of each result by name and class, and its AP."""
    classes = _classes(results)
    columns = min(5, len(classes))
    rows = -(-len(classes) // columns)
    with _figure(path, width=max(4.5, 1.55 * columns), height=1.5 * rows + 0.9) as figure:
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for panel, name in zip(panels.flat, classes, strict=False):
            for k, (curves, colour) in enumerate(zip(results.values(), _colours(results), strict=True)):
                if name in curves:
                    _plot_curve(panel, curves[name], colour, len(results) - 1 - k)
            panel.set(title=name, xlim=(0, 1), ylim=(0, 1.03))
            panel.set(xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        for panel in panels.flat[len(classes) :]:
            panel.set_axis_off()
        figure.supxlabel("recall", fontsize=9.5, color=_QUIET)
        figure.supylabel("precision", fontsize=9.5, color=_QUIET)
        _legend(figure, _patches(results), f"Precision and recall at tIoU {tiou:.4g}, with AP (%)")


def plot_class_bars(
    results: Mapping[str, Mapping[str, float]],
    path: Path,
    *,
    kinds: Mapping[str, str] | None = None,
    title: str = "Average precision per class",
) -> None:
    """A bar in percent per result and class; classes are grouped by kind."""
    kinds = kinds or {}
    groups: dict[str, list[str]] = {}
    for name in _classes(results):
        groups.setdefault(kinds.get(name, ""), []).append(name)
    place: dict[str, float] = {}
    for gap, group in enumerate(groups.values()):
        for name in group:
            place[name] = len(place) + 0.5 * gap
    bar = 0.8 / len(results)
    with _figure(path, width=max(5.0, 0.66 * len(place) + 1.4), height=3.3) as figure:
        axes = figure.subplots()
        for k, (figures, colour) in enumerate(zip(results.values(), _colours(results), strict=True)):
            shift = (k - (len(results) - 1) / 2) * bar
            places = [place[name] + shift for name in figures]
            axes.bar(places, list(figures.values()), 0.92 * bar, color=colour)
        axes.set(ylabel="AP (%)", ylim=(0, 108), yticks=range(0, 101, 20))
        axes.set_xlim(-0.6, max(place.values()) + 0.6)
        rotation = 0 if len(place) <= 12 else 40
        axes.set_xticks(list(place.values()), list(place), rotation=rotation)
        axes.grid(visible=False, axis="x")
        for kind, group in groups.items():
            middle = (place[group[0]] + place[group[-1]]) / 2
            label = axes.text(middle, 107, kind, ha="center", va="top")
            label.set(color=_QUIET, fontstyle="italic")
        _legend(figure, _patches(results), title)


def plot_sensitivity(sensitivity: Sensitivity, path: Path) -> None:
    """AP of F, B, and F on reversed playback with the original labels, by class and verdict."""
    order = sorted(sensitivity.classes, key=lambda one: get_args(Verdict).index(one.verdict))
    plot_class_bars(
        {
            "F": {one.label: 100 * one.forward for one in order},
            "B": {one.label: 100 * one.backward for one in order},
            "F on reversed playback": {one.label: 100 * one.reversed_playback for one in order},
        },
        path,
        kinds={one.label: one.verdict for one in order},
        title="Direction sensitivity",
    )


def plot_comparison(
    groups: Mapping[str, Mapping[str, Sequence[float]]],
    path: Path,
    *,
    reference: tuple[str, float] | None = None,
) -> None:
    """Average mAP in percent, by group and result: a dot per seed, a bar at the mean; a line at the reference."""
    names = [name for group in groups.values() for name in group]
    if not names or not all(figures for group in groups.values() for figures in group.values()):
        raise ValueError("a plot needs at least one result, and each result needs at least one value")
    height = 0.21 * (len(names) + 1.4 * len(groups)) + 1.1
    with _figure(path, width=7.6, height=height) as figure:
        axes = figure.subplots()
        colours = dict(zip(names, _colours(names), strict=True))
        ticks: dict[float, str] = {}
        place = -1.4
        for title, group in groups.items():
            place += 1.4
            ticks[place] = title
            for name, figures in group.items():
                place += 1
                ticks[place] = name
                mean = float(np.mean(figures))
                (dots,) = axes.plot(figures, [place] * len(figures), "o", color=colours[name])
                dots.set(alpha=0.45, markersize=4.5, markeredgewidth=0)
                bar = [place - 0.36, place + 0.36]
                axes.plot([mean, mean], bar, color=colours[name], linewidth=2.2, solid_capstyle="butt")
        if reference is not None:
            name, value = reference
            axes.axvline(value, color=_QUIET, linewidth=1, linestyle="--", zorder=0.9)
            label = axes.annotate(
                f"{name}: {value:.2f}",
                (value, 1),
                (3, 2),
                xycoords=axes.get_xaxis_transform(),
                textcoords="offset points",
            )
            label.set(color=_QUIET, fontsize=8.5)
        axes.set(xlabel="average mAP (%)", ylim=(place + 0.8, -0.8))
        axes.set_title("Average mAP", pad=18)  # above the name of the reference
        axes.set_yticks(list(ticks), list(ticks.values()))
        for tick, name in zip(axes.get_yticklabels(), ticks.values(), strict=True):
            if name in groups:
                tick.set(fontstyle="italic", color=_QUIET)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")


def plot_confusion(
    shares: NDArray[np.float64],
    path: Path,
    *,
    classes: Sequence[str],
    called: Sequence[str],
    expected: Mapping[str, str | None],
    title: str,
) -> None:
    """A heat map ``[K, M]`` in percent: a row per class, a column per predicted label, expected ones framed."""
    rows, columns = shares.shape
    with _figure(path, width=0.5 * columns + 2.0, height=0.38 * rows + 1.5) as figure:
        axes = figure.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=115, aspect="auto")
        for row, column in np.argwhere(shares >= 0.5):
            share = shares[row, column]
            label = axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=9)
            label.set_color("white" if share > 60 else _TEXT)
        for row, name in enumerate(classes):
            if (partner := expected.get(name)) is not None:
                corner = (called.index(partner) - 0.5, row - 0.5)
                frame = Rectangle(corner, 1, 1, fill=False, edgecolor=PALETTE[1].light, linewidth=1.8)
                axes.add_patch(frame)
        axes.set(title=title, xlabel="predicted label (% of the class's segments)", ylabel="class")
        axes.set_xticks(range(columns), called, rotation=35, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(rows), classes)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)


def plot_kinds(results: Mapping[str, Diagnosis], path: Path) -> None:
    """A panel per result: the kinds of detections, in percent of each group by rank, 1G to 10G."""
    _require_results(results)
    columns = min(3, len(results))
    rows = -(-len(results) // columns)
    with _figure(path, width=max(5.0, 2.9 * columns), height=2.4 * rows + 0.9) as figure:
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for panel, (name, diagnosis) in zip(panels.flat, results.items(), strict=False):
            places = np.arange(len(diagnosis.group_sizes))
            below = np.zeros(len(places))
            for kind, colour in KIND_COLOURS.items():
                shares = np.array([100 * (group[kind] or 0.0) for group in diagnosis.group_shares])
                panel.bar(places, shares, 0.86, below, color=colour.light)
                below += shares
            panel.set(title=name, ylim=(0, 100))
            panel.set_xticks(places, [f"{place + 1}G" for place in places], fontsize=8)
            panel.grid(visible=False, axis="x")
        for panel in panels.flat[len(results) :]:
            panel.set_axis_off()
        figure.supxlabel("detections of each class by rank", fontsize=9.5, color=_QUIET)
        figure.supylabel("% of the group", fontsize=9.5, color=_QUIET)
        handles = [Patch(color=colour.light, label=kind_name(kind)) for kind, colour in KIND_COLOURS.items()]
        _legend(figure, handles, "Kinds of detections")


def plot_gains(results: Mapping[str, Diagnosis], path: Path) -> None:
    """How much average mAP_N would gain without each kind of error, in percentage points: a bar per result."""
    _require_results(results)
    with _figure(path, width=6.4, height=3.1) as figure:
        axes = figure.subplots()
        gains = {}
        for name, diagnosis in results.items():
            of_errors = {kind: gain for kind, gain in diagnosis.gains.items() if kind in KIND_COLOURS}
            gains[name] = {kind_name(kind): 100 * float(gain.mean()) for kind, gain in of_errors.items()}
        _plot_groups(axes, gains)
        axes.set(ylabel="gain of average mAP_N (points)")
        _legend(figure, _patches(results), "What each kind of error costs")


def plot_characteristics(results: Mapping[str, Diagnosis], path: Path) -> None:
    """A column per characteristic of segments: average mAP_N, and missed segments, by bin and result in percent."""
    _require_results(results)
    names = list(next(iter(results.values())).characteristics)
    with _figure(path, width=1.0 + 2.6 * len(names), height=4.8) as figure:
        panels = figure.subplots(2, len(names), sharey="row", squeeze=False)
        for column, characteristic in enumerate(names):
            precision: dict[str, dict[str, float | None]] = {}
            missed: dict[str, dict[str, float | None]] = {}
            for name, diagnosis in results.items():
                bins = diagnosis.characteristics[characteristic]
                precision[name] = {b.name: None if b.sensitivity is None else 100 * b.sensitivity for b in bins}
                missed[name] = {b.name: None if b.missed is None else 100 * float(b.missed.mean()) for b in bins}
            upper, lower = panels[:, column]
            _plot_groups(upper, precision)
            _plot_groups(lower, missed)
            for name, colour in zip(results, _colours(results), strict=True):
                upper.axhline(100 * results[name].average_map_n, color=colour, linewidth=1, linestyle="--")
                lower.axhline(100 * float(results[name].missed.mean()), color=colour, linewidth=1, linestyle="--")
            upper.set(title=characteristic.replace("-", " "), ylim=(0, 100))
            lower.set_ylim(bottom=0)
        panels[0, 0].set(ylabel="average mAP_N (%)")
        panels[1, 0].set(ylabel="missed segments (%)")
        _legend(figure, _patches(results), "Easy and hard segments (dashed: all)")


def plot_lengths(lengths: Mapping[str, NDArray[np.float64]], path: Path) -> None:
    """The lengths of the segments of each class in seconds, all above 0: a dot per segment, a bar at the median."""
    if not lengths or not all(len(each) for each in lengths.values()):
        raise ValueError("a plot of lengths needs at least one class, and each class at least one segment")
    with _figure(path, width=7.6, height=max(2.2, 0.21 * len(lengths) + 1.1)) as figure:
        axes = figure.subplots()
        for place, seconds in enumerate(lengths.values()):
            (dots,) = axes.plot(seconds, np.full(len(seconds), place), "o", color=PALETTE[0].light)
            dots.set(alpha=0.25, markersize=4.5, markeredgewidth=0)
            median = float(np.median(seconds))
            bar = [place - 0.36, place + 0.36]
            axes.plot([median, median], bar, color=PALETTE[1].light, linewidth=2.2, solid_capstyle="butt")
        axes.set(title="Lengths of the segments", ylim=(len(lengths) - 0.2, -0.8))
        _set_seconds(axes, np.concatenate(list(lengths.values())))
        axes.set_yticks(range(len(lengths)), list(lengths))
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")


def plot_gaps_and_overlaps(
    gaps: NDArray[np.float64],
    overlaps: Mapping[str, NDArray[np.float64]],
    path: Path,
) -> None:
    """Histograms of the seconds between segments, and of those that pairs of segments share, by kind of pair."""
    with _figure(path, width=7.6, height=2.9) as figure:
        left, right = figure.subplots(1, 2)
        _plot_seconds(left, {"": gaps}, "no gaps")
        left.set(title="Gaps between segments", ylabel="gaps")
        _plot_seconds(right, overlaps, "no segments overlap")
        right.set(title="Overlaps of segments", ylabel="pairs of segments")
        if any(map(len, overlaps.values())):
            right.margins(y=0.35)  # room for the legend
            right.legend(loc="upper right")


def smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The centred moving mean over about n / 30 of n values, fewer near the ends."""
    kernel = np.ones(2 * (len(values) // 60) + 1)
    if len(kernel) == 1:
        return values
    sums = np.convolve(values, kernel, "same")
    counts = np.convolve(np.ones(len(values)), kernel, "same")
    return sums / counts


@contextmanager
def _figure(path: Path, *, width: float, height: float) -> Iterator[Figure]:
    """A figure in the common style, size in inches; writes it to ``path`` when the block ends."""
    form = path.suffix.lower().lstrip(".")
    if form not in ("png", "svg"):
        raise ValueError(f"{path.name} is neither .png nor .svg; use one of these suffixes")
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        installed = {font.name for font in font_manager.fontManager.ttflist}
        families = ["DejaVu Sans", *(name for name in _EAST_ASIAN if name in installed)]
        for text in figure.findobj(Text):
            if isinstance(text, Text) and not text.get_text().isascii():
                text.set_fontfamily(families)
        with atomic_write(path) as partial_file:
            metadata = {"Date": None} if form == "svg" else None
            with _one_line_of_missing_letters():
                figure.savefig(partial_file, format=form, metadata=metadata)


@contextmanager
def _one_line_of_missing_letters() -> Iterator[None]:
    """Logs a line instead of a warning of matplotlib for every letter that no installed font has."""
    with catch_warnings(record=True) as caught:
        simplefilter("always")
        yield
    others = [one for one in caught if "missing from font" not in str(one.message)]
    if len(others) < len(caught):
        log_once(
            f"figures show some letters as boxes, as no installed font has them; install {_EAST_ASIAN[0]} for Korean, "
            "Chinese and Japanese"
        )
    for one in others:
        warn_explicit(one.message, one.category, one.filename, one.lineno)


def _plot_seconds(axes: Axes, groups: Mapping[str, NDArray[np.float64]], empty: str) -> None:
    """A stacked histogram of lengths in seconds, all above 0, by name of the group."""
    seconds = np.concatenate(list(groups.values()))
    if not len(seconds):
        axes.text(0.5, 0.5, empty, transform=axes.transAxes, ha="center", va="center", color=_QUIET)
        axes.set(xticks=[], yticks=[])
        return
    least, most = _set_seconds(axes, seconds)
    edges = np.geomspace(least, most, 25).tolist()
    axes.hist(list(groups.values()), edges, stacked=True, label=list(groups), color=_colours(groups))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _set_seconds(axes: Axes, seconds: NDArray[np.float64]) -> tuple[float, float]:
    """A logarithmic x axis that holds all lengths; returns its ends."""
    least, most = float(seconds.min()) / 1.3, float(seconds.max()) * 1.3
    axes.set(xscale="log", xlabel="seconds", xlim=(least, most))
    steps = (1.0, 2.0, 5.0) if most / least < 200 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    # The usual labels are formulas, which the style leaves as text.
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    return least, most


def _plot_curve(panel: Axes, curve: PrecisionRecall, colour: str, line: int) -> None:
    if curve.recall.size:
        recall = np.insert(curve.recall, 0, 0.0)
        precision = np.insert(curve.interpolated, 0, curve.interpolated[0])
        panel.plot(recall, precision, color=colour, linewidth=1.5, clip_on=False)
    place = 0.05, 0.07 + 0.13 * line
    label = panel.text(*place, f"{100 * curve.ap:.0f}", transform=panel.transAxes)
    label.set(color=colour, fontsize=8.5)


def _require_results(results: Mapping[str, Diagnosis]) -> None:
    if not results:
        raise ValueError("a plot of a diagnosis needs at least one result")


def _plot_groups(axes: Axes, results: Mapping[str, Mapping[str, float | None]]) -> None:
    """A group of bars for each name, with a bar per result; None has no bar."""
    bar = 0.8 / max(1, len(results))
    for k, (figures, colour) in enumerate(zip(results.values(), _colours(results), strict=True)):
        shift = (k - (len(results) - 1) / 2) * bar
        heights = [0.0 if figure is None else figure for figure in figures.values()]
        axes.bar(np.arange(len(heights)) + shift, heights, 0.92 * bar, color=colour)
        axes.set_xticks(range(len(heights)), list(figures))
    axes.grid(visible=False, axis="x")


def _legend(figure: Figure, handles: Sequence[Artist], title: str | None) -> None:
    """A legend above the axes, below its title, in as many columns as fit."""
    font = {"size": 10.5, "weight": "bold"}
    for columns in range(len(handles), 0, -1):
        legend = figure.legend(
            handles=handles,
            title=title,
            title_fontproperties=font,
            alignment="left",
            loc="outside upper left",
            ncols=columns,
        )
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def _patches(names: Iterable[str]) -> list[Patch]:
    names = list(names)
    return [Patch(color=colour, label=name) for name, colour in zip(names, _colours(names), strict=True)]


def _colours(names: Iterable[str]) -> list[str]:
    """The colours of different names, in their order."""
    return [colour.light for colour in colours_of(names).values()]


def _classes(results: Mapping[str, Mapping[str, object]]) -> list[str]:
    """The classes of all results, each once."""
    classes = list(dict.fromkeys(name for figures in results.values() for name in figures))
    if not classes:
        raise ValueError("a plot of classes needs at least one result with a class")
    return classes
