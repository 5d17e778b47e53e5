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
from bitad.reports.comparison import Comparison, difference_table
from bitad.reports.measure_tables import class_table, evaluation_table, sensitivity_table
from bitad.reports.page import write_report
from bitad.reports.page_videos import page_videos
from bitad.reports.plots import (
    plot_class_bars,
    plot_confusion,
    plot_precision_recall,
    plot_sensitivity,
    plot_training_curves,
)
from bitad.reports.tables import Table
from bitad.runtime.files import atomic_write
from bitad.training.metrics import METRICS, read_metrics

KINDS = {label: kind_of(label) for label in CLASSES}

INTRODUCTION = """\
Playroom is a rendered data set: round creatures perform actions that differ only in their motion. F is a detector \
trained on forward playback, B one trained on reverse playback; late fusion merges the detections of both on the \
forward clock. In experiments 3-1 and 3-3 both are trained jointly and their predictions are fused point by point: on \
the forward clock (forward basis), on the reverse clock (reverse basis), and both merged.

The last rows are negative controls: F on reversed playback (where a rise is a fall), F on static frames, and an \
untrained network."""

SMOKE_RUN = "\n\nThis was a smoke run, too short to learn anything: its numbers mean nothing."


@dataclass(frozen=True)
class DemoResults:
    """The results of a demo; mappings are by the name of the result."""

    truth: Annotations
    detections: Mapping[str, Detections]
    evaluations: Mapping[str, Evaluation]
    reversed_labels: Evaluation  # F on reversed playback, against the time-reversed labels
    calls: Mapping[str, Calls]  # of F, in both playing directions
    sensitivity: Sensitivity
    runs: Mapping[str, Path]  # of F, B and the experiments
    seconds: float
    smoke: bool  # whether the demo was too short for its numbers to mean anything

    @property
    def compared(self) -> list[str]:
        """The results in tables and plots of classes: one per detector or experiment, and late fusion."""
        merged = [name for name in self.evaluations if name.endswith(", merged")]
        return ["F", "B", "late fusion", *merged]

    def table(self) -> Table:
        """mAP of every result."""
        evaluations = {}
        for name, evaluation in self.evaluations.items():
            title = "static-frame control of F" if name == "F on still windows" else name
            evaluations[title] = evaluation
        evaluations["F on reversed playback, time-reversed labels"] = self.reversed_labels
        return evaluation_table(evaluations, title="Playroom, validation videos: mAP (%)", counts=False)


def write_demo_report(out: Path, results: DemoResults) -> Path:
    """Writes ``out``/results.md, results.json, the pictures and the page ``out``/index.html, which is returned."""
    tables = [
        results.table(),
        sensitivity_table(results.sensitivity, known=KINDS),
        class_table({name: results.evaluations[name] for name in results.compared}, kinds=KINDS),
    ]
    shown = {name: results.detections[name] for name in results.compared}
    return write_report(
        out,
        title="BiTAD demo: playroom",
        introduction=INTRODUCTION + (SMOKE_RUN if results.smoke else ""),
        tables=tables,
        content={
            "seconds": results.seconds,
            "smoke": results.smoke,
            "results": {name: evaluation.to_json() for name, evaluation in results.evaluations.items()},
            "F on reversed playback, time-reversed labels": results.reversed_labels.to_json(),
            "tables": [table.json() for table in tables],
        },
        pictures=_draw(out, results),
        videos=page_videos(results.truth, shown, "data/forward/raw_data/{}.mp4".format),
    )


def _draw(out: Path, results: DemoResults) -> list[tuple[str, str]]:
    curves = {name: read_metrics(run / METRICS) for name, run in results.runs.items()}
    plot_training_curves(curves, out / "training.png")
    tiou = 0.5
    precision, bars = {}, {}
    for name in results.compared:
        precision[name] = precision_recall(results.truth, results.detections[name], tiou=tiou)
        per_class = results.evaluations[name].per_class
        bars[name] = {label: 100 * ap for label, ap in per_class.items()}
    plot_precision_recall(precision, out / "precision_recall.png", tiou=tiou)
    plot_class_bars(bars, out / "classes.png", kinds=KINDS)
    plot_sensitivity(results.sensitivity, out / "sensitivity.png")
    calls = results.calls["F on reversed playback"]
    plot_confusion(
        100 * calls.counts / np.maximum(1, calls.counts.sum(1, keepdims=True)),
        out / "direction.png",
        classes=calls.classes,
        called=(*calls.classes, NOTHING),
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

Written by `bitad demo --full`{seed}. The same version gives the same numbers on the same kind of processor.
The experiments: [experiments.md](experiments.md); the data: [playroom.md](playroom.md).
{videos} validation videos, {runs} trainings.
"""


def write_full_results(file: Path, results: DemoResults, comparison: Comparison) -> None:
    """Writes the results of all experiments as Markdown."""
    seed = min(run.config.seed for run in comparison.runs)
    options = f" with `--seed {seed}`" if seed else ""
    videos, runs = len(comparison.truth.videos), len(comparison.runs)
    lines = [RESULTS.format(seed=options, videos=videos, runs=runs)]
    for heading, table in (
        ("All results", comparison.table()),
        ("Difference to the baselines", difference_table(comparison)),
        ("First and last losses", comparison.loss_table()),
        ("Direction sensitivity", sensitivity_table(results.sensitivity, known=KINDS)),
    ):
        lines.append(f"## {heading}\n\n{table.markdown()}")
    with atomic_write(file) as partial:
        partial.write_text("\n".join(lines), encoding="utf-8")
