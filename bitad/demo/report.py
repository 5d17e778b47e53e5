"""The demo's report: tables, curves, and a page with its videos and timelines."""

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
from bitad.reports.comparison_page import standing_table
from bitad.reports.page import Kind, PageVideo, Track, write_page
from bitad.reports.plots import (
    plot_class_bars,
    plot_confusion,
    plot_precision_recall,
    plot_sensitivity,
    plot_training_curves,
)
from bitad.reports.tables import Table, class_table, evaluation_table, sensitivity_table
from bitad.runtime.files import atomic_write, write_json
from bitad.training.metrics import METRICS, read_metrics

SHOWN_VIDEOS = 8
KINDS = {label: kind_of(label) for label in CLASSES}

INTRODUCTION = """\
Playroom is rendered: round creatures perform actions that only their motion tells apart. F is a detector that watched \
the videos forwards, B one that watched them backwards; late fusion merges what both found, on the forward clock. \
In experiments 3-1 and 3-3 the two go on learning together, their predictions fused point by point: on the forward \
clock (forward basis), on the reverse one (reverse basis), and both merged.

The last rows show what must fail: F on reversed playback (there a rise is a fall), F on windows that stand \
still, and a network that has not been trained."""


@dataclass(frozen=True)
class DemoResults:
    """What the demo found out.

    Args:
        truth: ground truth of the validation videos.
        detections, evaluations: by the name of the result.
        evaluation_by_partner: F on reversed playback against ground truth under the names that classes have then.
        calls: what F calls each class, in either playing direction, by the name of the result.
        sensitivity: of the classes to the playing direction.
        runs: the run directories by the name of the result: F, B, and experiments.
        seconds: the whole demo took.
        smoke: a run too short for its figures to mean anything.
    """

    truth: Annotations
    detections: Mapping[str, Detections]
    evaluations: Mapping[str, Evaluation]
    evaluation_by_partner: Evaluation
    calls: Mapping[str, Calls]
    sensitivity: Sensitivity
    runs: Mapping[str, Path]
    seconds: float
    smoke: bool

    @property
    def compared(self) -> list[str]:
        """The results that tables and plots of classes show: of each trained detector or pair one, and late fusion."""
        return ["F", "B", "late fusion", *(name for name in self.evaluations if name.endswith(", merged"))]

    def table(self) -> Table:
        """mAP of every result."""
        return evaluation_table(
            {**self.evaluations, "F on reversed playback, partner names": self.evaluation_by_partner},
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
    with atomic_write(out / "results.md") as partial:
        partial.write_text("\n".join(table.markdown() for table in tables), encoding="utf-8")
    write_json(
        {
            "seconds": results.seconds,
            "smoke": results.smoke,
            "results": {name: evaluation.to_json() for name, evaluation in results.evaluations.items()},
            "F on reversed playback, partner names": results.evaluation_by_partner.to_json(),
            "tables": [table.json() for table in tables],
        },
        out / "results.json",
    )
    pictures = _draw(out, results)
    page = out / "index.html"
    introduction = INTRODUCTION
    if results.smoke:
        introduction += "\n\nThis was a smoke run, far too short to learn anything: its figures mean nothing."
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
        found = results.detections[result].of_video(name)
        labels = [found.classes[label] for label in found.labels]
        tracks.append(Track(title, kind, found.segments, labels, found.scores))
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
        title="What F calls each class on reversed playback (%)",
    )
    return [
        ("Training: loss by step, and average mAP of the averaged weights by epoch.", "training.png"),
        (f"Precision and recall of each class at tIoU {tiou}; the numbers are AP.", "precision_recall.png"),
        ("Average precision of each class over tIoU 0.3 to 0.7.", "classes.png"),
        ("Average precision of each class, by what the networks say of it played backwards.", "sensitivity.png"),
        ("A forward detector on reversed playback. Framed: the name that each class has then.", "direction.png"),
    ]


RESULTS = """\
# Playroom: every experiment

Written by `bitad demo --full` as it came out; that command makes every number again{seed}. What the rows mean:
[experiments.md](experiments.md); the data: [playroom.md](playroom.md). {videos} validation videos, {runs} trainings.
"""


def write_full_results(file: Path, results: DemoResults, comparison: Comparison) -> Path:
    """Writes what all experiments gave as Markdown, and returns the file."""
    seed = min(run.config.seed for run in comparison.runs)
    head = RESULTS.format(
        seed="" if seed == 0 else f" with `--seed {seed}`",
        videos=len(comparison.truth.videos),
        runs=len(comparison.runs),
    )
    tables = (
        ("## All results", comparison.table()),
        ("## Against what they must beat", standing_table(comparison)),
        ("## How training began and ended", comparison.loss_table()),
        ("## Direction sensitivity", sensitivity_table(results.sensitivity, known=KINDS)),
    )
    with atomic_write(file) as partial:
        text = "\n".join([head, *(f"{heading}\n\n{table.markdown()}" for heading, table in tables)])
        partial.write_text(text, encoding="utf-8")
    return file
