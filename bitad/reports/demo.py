"""The demo's report: tables, curves, and a page with its videos and timelines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitad.data.annotations import Annotations
from bitad.data.detections import Detections
from bitad.data.files import write_json
from bitad.data.playroom import CLASSES, REVERSED, kind_of
from bitad.evaluation.direction_sensitivity import Calls
from bitad.evaluation.mean_average_precision import Evaluation, precision_recall
from bitad.reports.files import write_whole
from bitad.reports.page import PageVideo, Track, write_page
from bitad.reports.plots import plot_class_bars, plot_confusion, plot_precision_recall, plot_training_curves
from bitad.reports.tables import Table, class_table, evaluation_table

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
        rows = []
        for label in sorted(CLASSES, key=lambda name: (kind_of(name), name)):
            partner = REVERSED[label]
            name, share = backward.most_frequent(label)
            rows.append(
                (
                    label,
                    kind_of(label),
                    100 * forward.share(label, label),
                    partner or "no class",
                    name,
                    100 * share,
                    100 * backward.share(label, label),
                )
            )
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
            notes=("Of the ground-truth segments; a segment is called what the best-scored detection at tIoU 0.5 says.",),
        )


def write_demo_report(out: Path, results: DemoResults) -> Path:
    """Writes ``out``/results.md, results.json, the pictures and the page ``out``/index.html, which is returned."""
    tables = [
        results.table(),
        results.direction_table(),
        class_table(
            {name: results.evaluations[name] for name in COMPARED}, kinds={name: kind_of(name) for name in CLASSES}
        ),
    ]
    write_whole(out / "results.md", "\n".join(table.markdown() for table in tables).encode())
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
    for result, title, kind in (
        ("F", "Forward (F)", "forward"),
        ("B", "Reverse (B)", "reverse"),
        ("late fusion", "Late fusion", "merged"),
    ):
        found = results.detections[result].of_video(name)
        labels = [found.classes[label] for label in found.labels]
        tracks.append(Track(title, kind, found.segments, labels, found.scores))
    return PageVideo(name, f"data/forward/raw_data/{name}.mp4", video.duration_s, tracks)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
