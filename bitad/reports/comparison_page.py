"""The report of a comparison: tables, plots, and a page with timelines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from bitad.data.detections import Detections, read_detections, under_names
from bitad.evaluation.direction_sensitivity import Sensitivity, sensitivity
from bitad.inference.detect import detect_on_reversed_playback
from bitad.reports.comparison import BASELINES, TRAINED_PAIRS, UNTRAINED, Comparison, Result
from bitad.reports.page import Kind, PageVideo, Track, write_page
from bitad.reports.plots import plot_comparison, plot_sensitivity, plot_training_curves
from bitad.reports.tables import Cell, Table, sensitivity_table, write_markdown
from bitad.runtime.distributed import Ranks
from bitad.runtime.files import write_json
from bitad.video.names import VideoFinder
from bitad.weights.checkpoint import load_checkpoint


def difference_table(comparison: Comparison) -> Table:
    """A row per result of two networks: its mean and the differences to the baselines, late fusion and the control.

    Late fusion uses the method that is best on these data. The control of a fusion is the same experiment with two
    forward networks, if there is one; otherwise it is the best late fusion of two F.
    """
    by_label = {result.label: result for result in comparison.results}
    without_training = [result for result in comparison.results if result.group == UNTRAINED]
    late = _best(result for result in without_training if result.label.startswith("late fusion"))
    two_forward = _best(result for result in without_training if result.label.startswith("control"))
    best = comparison.best_baseline
    rows: list[tuple[Cell, ...]] = []
    other_seeds: dict[str, int] = {}  # compared results with another number of seeds
    for result in comparison.results:
        if result.group != TRAINED_PAIRS:
            continue
        others = (best, late, by_label.get(_control_of(result.label), two_forward))
        differences = tuple(None if other is None else f"{result.mean - other.mean:+.2f}" for other in others)
        seeds = len(result.evaluations)
        other_seeds.update(
            {o.label: len(o.evaluations) for o in others if o is not None and len(o.evaluations) != seeds}
        )
        reaches = None if best is None else "yes" if result.mean >= best.mean - (best.spread or 0.0) else "no"
        rows.append((result.label, result.mean, *differences, reaches, seeds))
    compared = (("Best baseline", best), ("Late fusion", late), ("Control without fusion", two_forward))
    notes = [f"{name}: {result.label}, {result.mean:.2f}." for name, result in compared if result is not None]
    controls = [label for label in map(_control_of, by_label) if label in by_label]
    if controls:
        notes.append(f"Control of a fusion: the same experiment with two forward networks, such as {controls[0]!r}.")
    if other_seeds:
        seeds_of = ", ".join(f"{label} {count}" for label, count in other_seeds.items())
        notes.append(f"Not over the same seeds as the results compared with it: {seeds_of}.")
    return Table(
        "Average mAP (%): difference to the baselines",
        ("result", "average", "− best baseline", "− late fusion", "− control", "within spread", "seeds"),
        tuple(rows),
        notes=(*notes, "Within spread: at least the best baseline minus its standard deviation over seeds."),
    )


def _best(results: Iterable[Result]) -> Result | None:
    return max(results, key=lambda result: result.mean, default=None)


def _control_of(label: str) -> str:
    """The label of the control: "3-1, forward basis" -> "3-1, two forward networks, first network"."""
    experiment, _, what = label.partition(", ")
    name = {"forward basis": "first network", "reverse basis": "second network"}.get(what, what)
    return f"{experiment}, two forward networks, {name}"


SHOWN_VIDEOS = 8

INTRODUCTION = """\
F is a detector trained on forward playback, B one trained on reverse playback. Late fusion merges the detections of \
both without training; the control merges the detections of two F with different seeds. A joint experiment is useful \
if it beats both.

A joint experiment has three results: the forward basis, the reverse basis, and both merged."""


def sensitivity_of_runs(comparison: Comparison, ranks: Ranks) -> Sensitivity:
    """The direction sensitivity of the classes by all compared baselines; F is tested on reversed playback.

    Raises:
        ValueError: the runs have no F or no B, or an F has no checkpoint.
    """
    single = [run for run in comparison.runs if run.config.design.networks == 1]
    forward = [run for run in single if run.config.direction == "forward"]
    reverse = [run for run in single if run.config.direction == "reverse"]
    if not forward or not reverse:
        raise ValueError("direction sensitivity needs a forward and a reverse baseline; also give runs of F and B")
    return sensitivity(
        comparison.truth,
        forward=[_read_forward(comparison, run.detection_files()[""]) for run in forward],
        backward=[_read_forward(comparison, run.detection_files()[""]) for run in reverse],
        reversed_playback=[detect_on_reversed_playback(load_checkpoint(run.directory), ranks) for run in forward],
        tiou=comparison.runs[0].config.test.tiou,
    )


def write_comparison(out: Path, comparison: Comparison, sensitivity: Sensitivity | None = None) -> Path:
    """Writes ``out``/results.md, results.json, the pictures and the page ``out``/index.html, which is returned."""
    tables = [
        table for table in (comparison.table(), difference_table(comparison), comparison.loss_table()) if table.rows
    ]
    if sensitivity is not None:
        tables.append(sensitivity_table(sensitivity))
    write_markdown(out / "results.md", tables)
    write_json(comparison.json(), out / "results.json")
    page = out / "index.html"
    write_page(
        page,
        title="BiTAD: runs compared",
        introduction=INTRODUCTION,
        tables=tables,
        pictures=_draw(out, comparison, sensitivity),
        videos=list(_page_videos(out, comparison)),
    )
    return page


def _draw(out: Path, comparison: Comparison, sensitivity: Sensitivity | None) -> list[tuple[str, str]]:
    """The pictures: caption and path relative to ``out``."""
    groups: dict[str, dict[str, list[float]]] = {}
    for result in comparison.results:
        groups.setdefault(result.group, {})[result.label] = result.averages
    best = comparison.best_baseline
    plot_comparison(groups, out / "comparison.png", reference=None if best is None else (best.label, best.mean))
    pictures = [
        ("Average mAP of every result: a dot per seed, a bar at the mean; dashed: the best baseline.", "comparison.png")
    ]
    if sensitivity is not None:
        plot_sensitivity(sensitivity, out / "sensitivity.png")
        pictures.append(("Average precision of each class, by its direction sensitivity.", "sensitivity.png"))
    for group, curves in comparison.curves().items():
        name = f"training-{group.replace(' ', '-')}.png"
        plot_training_curves(curves, out / name)
        loss = "loss" if group == BASELINES else "loss (the sum of both networks)"
        pictures.append((f"Training of the {group}, the first seed of each: {loss} and average mAP.", name))
    return pictures


def _page_videos(out: Path, comparison: Comparison) -> Iterator[PageVideo]:
    """The first videos, with timelines of ground truth, F, B, and the best result of two networks."""
    shown: list[tuple[str, Kind, Detections]] = []
    kinds: Mapping[str, Kind] = {"F": "forward", "B": "reverse"}
    for run in comparison.runs:
        if run.label in kinds and run.label not in [title for title, _, _ in shown]:
            shown.append((run.label, kinds[run.label], _read_forward(comparison, run.detection_files()[""])))
    if best := comparison.best_pair:
        shown.append((best.label, "merged", _read_forward(comparison, next(iter(best.files.values())))))
    for name in list(comparison.truth.videos)[:SHOWN_VIDEOS]:
        video = comparison.truth.videos[name]
        tracks = [Track("Ground truth", "ground-truth", video.segments, video.labels)]
        for title, kind, detections in shown:
            if name in detections.videos:
                tracks.append(Track.of(title, kind, detections, name))
        yield PageVideo(name, _media(out, comparison, name), video.duration_s, tracks)


def _read_forward(comparison: Comparison, path: Path) -> Detections:
    """The detections of a file on the forward clock, with the video names of the ground truth."""
    return under_names(read_detections(path).forward(), comparison.truth.videos, path)


def _media(out: Path, comparison: Comparison, name: str) -> str | None:
    """The file of the video relative to the page, if it is in the page's folder."""
    for folder in dict.fromkeys(run.config.data.videos for run in comparison.runs):
        if folder is not None and folder.is_dir():
            find = VideoFinder(folder, partial(tuple, comparison.truth.videos))
            try:
                return find(name).resolve().relative_to(out.resolve()).as_posix()
            except (FileNotFoundError, ValueError):  # the folder lacks the video, or is elsewhere
                continue
    return None
