"""The report of the demo: tables, plots, and a page with videos and timelines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitad.data.annotations import Annotations
from bitad.data.detections import Detections
from bitad.demo.playroom import CLASSES, REVERSED, kind_of
from bitad.evaluation.direction_sensitivity import NOTHING, Calls, Sensitivity
from bitad.evaluation.mean_average_precision import Evaluation, precision_recall
from bitad.reports.comparison import Comparison
from bitad.reports.comparison_page import difference_table
from bitad.reports.page import Kind, PageVideo, Track, write_page
from bitad.reports.plots import (
    plot_class_bars,
    plot_confusion,
    plot_precision_recall,
    plot_sensitivity,
    plot_training_curves,
)
from bitad.reports.tables import Table, class_table, evaluation_table, sensitivity_table, write_markdown
from bitad.runtime.files import atomic_write, write_json
from bitad.training.metrics import METRICS, read_metrics

SHOWN_VIDEOS = 8
KINDS = {label: kind_of(label) for label in CLASSES}

INTRODUCTION = """\
Playroom is a rendered data set: round creatures perform actions that differ only in their motion. F is a detector \
trained on forward playback, B one trained on reverse playback; late fusion merges the detections of both on the \
forward clock. In experiments 3-1 and 3-3 both are trained jointly and their predictions are fused point by point: on \
the forward clock (forward basis), on the reverse clock (reverse basis), and both merged.

The last rows are negative controls: F on reversed playback (where a rise is a fall), F on static frames, and an \
untrained network."""

# Names of results in tables, where they differ from those of the detection files.
TITLES = {"F on still windows": "static-frame control of F"}


@dataclass(frozen=True)
class DemoResults:
    """The results of a demo.

    Args:
        detections, evaluations: by the name of the result.
        reversed_labels: F on reversed playback, with time-reversed labels as ground truth.
        calls: the labels that F predicts for each class, in both playing directions, by the name of the result.
        runs: run directories of F, B and the experiments, by the name of the result.
        smoke: whether the demo was too short for its numbers to mean anything.
    """

    truth: Annotations
    detections: Mapping[str, Detections]
    evaluations: Mapping[str, Evaluation]
    reversed_labels: Evaluation
    calls: Mapping[str, Calls]
    sensitivity: Sensitivity
    runs: Mapping[str, Path]
    seconds: float
    smoke: bool

    @property
    def compared(self) -> list[str]:
        """The results in tables and plots of classes: one per detector or experiment, and late fusion."""
        return ["F", "B", "late fusion", *(name for name in self.evaluations if name.endswith(", merged"))]

    def table(self) -> Table:
        """mAP of every result."""
        evaluations = {TITLES.get(name, name): evaluation for name, evaluation in self.evaluations.items()}
        return evaluation_table(
            {**evaluations, "F on reversed playback, time-reversed labels": self.reversed_labels},
            title="Playroom, validation videos: mAP (%)",
            counts=False,
        )


def write_demo_report(out: Path, results: DemoResults) -> Path:
    """Writes ``out``/results.md, results.json, the pictures and the page ``out``/index.html, which is returned."""
    tables = [
        results.table(),
        sensitivity_table(results.sensitivity, known=KINDS),
        class_table({name: results.evaluations[name] for name in results.compared}, kinds=KINDS),
    ]
    write_markdown(out / "results.md", tables)
    write_json(
        {
            "seconds": results.seconds,
            "smoke": results.smoke,
            "results": {name: evaluation.to_json() for name, evaluation in results.evaluations.items()},
            "F on reversed playback, time-reversed labels": results.reversed_labels.to_json(),
            "tables": [table.json() for table in tables],
        },
        out / "results.json",
    )
    pictures = _draw(out, results)
    page = out / "index.html"
    introduction = INTRODUCTION
    if results.smoke:
        introduction += "\n\nThis was a smoke run, too short to learn anything: its numbers mean nothing."
    write_page(
        page,
        title="BiTAD demo: playroom",
        introduction=introduction,
        tables=tables,
        pictures=pictures,
        videos=[_page_video(results, name) for name in list(results.truth.videos)[:SHOWN_VIDEOS]],
    )
    return page


def _page_video(results: DemoResults, name: str) -> PageVideo:
    video = results.truth.videos[name]
    tracks = [Track("Ground truth", "ground-truth", video.segments, video.labels)]
    titles: dict[str, tuple[str, Kind]] = {"F": ("Forward (F)", "forward"), "B": ("Reverse (B)", "reverse")}
    for result in results.compared:
        title, kind = titles.get(result, (result.capitalize(), "merged"))
        tracks.append(Track.of(title, kind, results.detections[result], name))
    return PageVideo(name, f"data/forward/raw_data/{name}.mp4", video.duration_s, tracks)


def _draw(out: Path, results: DemoResults) -> list[tuple[str, str]]:
    """The pictures: caption and path relative to ``out``."""
    curves = {name: read_metrics(run / METRICS) for name, run in results.runs.items()}
    plot_training_curves(curves, out / "training.png")
    tiou = 0.5
    found = {name: precision_recall(results.truth, results.detections[name], tiou=tiou) for name in results.compared}
    plot_precision_recall(found, out / "precision_recall.png", tiou=tiou)
    bars = {
        name: dict(zip(e.classes, (100 * e.ap.mean(1)).tolist(), strict=True))
        for name, e in ((name, results.evaluations[name]) for name in results.compared)
    }
    plot_class_bars(bars, out / "classes.png", kinds=KINDS)
    plot_sensitivity(results.sensitivity, out / "sensitivity.png")
    backward = results.calls["F on reversed playback"]
    shares = 100 * backward.counts / np.maximum(1, backward.counts.sum(1, keepdims=True))
    plot_confusion(
        shares,
        out / "direction.png",
        classes=backward.classes,
        called=(*backward.classes, NOTHING),
        expected=REVERSED,
        title="Labels that F predicts on reversed playback (%)",
    )
    return [
        ("Training: loss by step, and average mAP of the EMA weights by epoch.", "training.png"),
        (f"Precision and recall of each class at tIoU {tiou}; the numbers are AP.", "precision_recall.png"),
        ("Average precision of each class over tIoU 0.3 to 0.7.", "classes.png"),
        ("Average precision of each class, by its direction sensitivity.", "sensitivity.png"),
        ("F on reversed playback. Framed: the time-reversed label of each class.", "direction.png"),
    ]


RESULTS = """\
# Playroom: every experiment

Written by `bitad demo --full`{seed}, which reproduces every number. The experiments: [experiments.md](experiments.md);
the data: [playroom.md](playroom.md). {videos} validation videos, {runs} trainings.
"""


def write_full_results(file: Path, results: DemoResults, comparison: Comparison) -> Path:
    """Writes the results of all experiments as Markdown, and returns the file."""
    seed = min(run.config.seed for run in comparison.runs)
    head = RESULTS.format(
        seed="" if seed == 0 else f" with `--seed {seed}`",
        videos=len(comparison.truth.videos),
        runs=len(comparison.runs),
    )
    tables = (
        ("## All results", comparison.table()),
        ("## Difference to the baselines", difference_table(comparison)),
        ("## First and last losses", comparison.loss_table()),
        ("## Direction sensitivity", sensitivity_table(results.sensitivity, known=KINDS)),
    )
    with atomic_write(file) as partial:
        text = "\n".join([head, *(f"{heading}\n\n{table.markdown()}" for heading, table in tables)])
        partial.write_text(text, encoding="utf-8")
    return file
