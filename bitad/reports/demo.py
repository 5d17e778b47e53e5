"""The demo's report: tables, curves, and a page with its videos and timelines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitad.data.annotations import Annotations
from bitad.data.detections import Detections
from bitad.data.files import replacing, write_json
from bitad.data.playroom import CLASSES, REVERSED, kind_of
from bitad.evaluation.direction_sensitivity import NOTHING, Calls
from bitad.evaluation.mean_average_precision import Evaluation, precision_recall
from bitad.reports.page import Kind, PageVideo, Track, write_page
from bitad.reports.plots import (
    plot_class_bars,
    plot_confusion,
    plot_precision_recall,
    plot_training_curves,
    read_metrics,
)
from bitad.reports.tables import NO_GROUND_TRUTH, Cell, Table, class_table, evaluation_table

COMPARED = ("F", "B", "late fusion")
SHOWN_VIDEOS = 8

INTRODUCTION = """\
Playroom is rendered: round creatures perform actions that only their motion tells apart. F is a detector that watched \
the videos forwards, B one that watched them backwards; late fusion merges what both found, on the forward clock.

The rows below the three show what must fail: F on reversed playback (there a rise is a fall), F on windows that stand \
still, and a network that has not been trained."""


@dataclass(frozen=True)
class DemoResults:
    """What the demo found out.

    Args:
        truth: ground truth of the validation videos.
        detections, evaluations: by the name of the result.
        evaluation_by_partner: F on reversed playback against ground truth under the names that classes have then.
        calls: what F calls each class, in either playing direction, by the name of the result.
        runs: the run directories by direction.
        seconds: the whole demo took.
        smoke: a run too short for its figures to mean anything.
    """

    truth: Annotations
    detections: Mapping[str, Detections]
    evaluations: Mapping[str, Evaluation]
    evaluation_by_partner: Evaluation
    calls: Mapping[str, Calls]
    runs: Mapping[str, Path]
    seconds: float
    smoke: bool

    def table(self) -> Table:
        """mAP of every result."""
        return evaluation_table(
            {**self.evaluations, "F on reversed playback, partner names": self.evaluation_by_partner},
            title="Playroom, validation videos: mAP (%)",
        )

    def direction_table(self) -> Table:
        """Class by class, what F calls it in either playing direction."""
        forward, backward = self.calls["F"], self.calls["F on reversed playback"]
        rows: list[tuple[Cell, ...]] = []
        for label in sorted(CLASSES, key=lambda name: (kind_of(name), name)):
            then = (REVERSED[label] or "no class", *_said_of(backward, label))
            rows.append((label, kind_of(label), _own_name(forward, label), *then, _own_name(backward, label)))
        return Table(
            "What F calls each class",
            (
                "class",
                "kind",
                "forwards: its name (%)",
                "played backwards it is",
                "F then says mostly",
                "share (%)",
                "still its own name (%)",
            ),
            tuple(rows),
            notes=(
                "Of the ground-truth segments; a segment is called what the best-scored detection at tIoU 0.5 says.",
            ),
        )


def _own_name(calls: Calls, label: str) -> Cell:
    """The share of a class's segments that are called by its name, in percent."""
    return 100 * calls.share(label, label) if calls.segments(label) else NO_GROUND_TRUTH


def _said_of(calls: Calls, label: str) -> tuple[Cell, Cell]:
    """The name a class gets most often, and how often in percent."""
    if not calls.segments(label):
        return NO_GROUND_TRUTH, None
    name, share = calls.most_frequent(label)
    return name, 100 * share


def write_demo_report(out: Path, results: DemoResults) -> Path:
    """Writes ``out``/results.md, results.json, the pictures and the page ``out``/index.html, which is returned."""
    tables = [
        results.table(),
        results.direction_table(),
        class_table(
            {name: results.evaluations[name] for name in COMPARED}, kinds={name: kind_of(name) for name in CLASSES}
        ),
    ]
    with replacing(out / "results.md") as partial:
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
    rows: tuple[tuple[str, str, Kind], ...] = (
        ("F", "Forward (F)", "forward"),
        ("B", "Reverse (B)", "reverse"),
        ("late fusion", "Late fusion", "merged"),
    )
    for result, title, kind in rows:
        found = results.detections[result].of_video(name)
        labels = [found.classes[label] for label in found.labels]
        tracks.append(Track(title, kind, found.segments, labels, found.scores))
    return PageVideo(name, f"data/forward/raw_data/{name}.mp4", video.duration_s, tracks)


def _draw(out: Path, results: DemoResults) -> list[tuple[str, str]]:
    """The pictures: caption and path relative to ``out``."""
    names = {"forward": "F", "reverse": "B"}
    curves = {names[direction]: read_metrics(run / "metrics.jsonl") for direction, run in results.runs.items()}
    plot_training_curves(curves, out / "training.png")
    tiou = 0.5
    found = {name: precision_recall(results.truth, results.detections[name], tiou=tiou) for name in COMPARED}
    plot_precision_recall(found, out / "precision_recall.png", tiou=tiou)
    kinds = {label: kind_of(label) for label in CLASSES}
    bars = {
        name: dict(zip(e.classes, (100 * e.ap.mean(1)).tolist(), strict=True))
        for name, e in ((name, results.evaluations[name]) for name in COMPARED)
    }
    plot_class_bars(bars, out / "classes.png", kinds=kinds)
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
        ("A forward detector on reversed playback. Framed: the name that each class has then.", "direction.png"),
    ]
