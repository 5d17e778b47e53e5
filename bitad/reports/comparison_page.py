"""A comparison of runs for people: tables, plots, and a page with timelines."""

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
from bitad.reports.tables import Cell, Table, sensitivity_table
from bitad.runtime.distributed import Ranks
from bitad.runtime.files import atomic_write, write_json
from bitad.video.names import VideoFinder
from bitad.weights.checkpoint import load_checkpoint


def standing_table(comparison: Comparison) -> Table:
    """A row for every result of two networks: its mean, and how far it is above (+) or below (-) each of the others.

    Late fusion stands there with the method that does best on these very data, which favours it. The control of a
    fusion is the same experiment with two forward networks, where there is one; of all else it is the best late fusion
    of two F. "Holds" says whether the mean is at least that of the better of F and B less one standard deviation over
    its seeds.
    """
    by_label = {result.label: result for result in comparison.results}
    without_training = [result for result in comparison.results if result.group == UNTRAINED]
    late = _best(result for result in without_training if result.label.startswith("late fusion"))
    two_forward = _best(result for result in without_training if result.label.startswith("control"))
    best = comparison.best_baseline
    rows: list[tuple[Cell, ...]] = []
    unlike: dict[str, int] = {}  # what results of another number of seeds are compared with
    for result in comparison.results:
        if result.group != TRAINED_PAIRS:
            continue
        others = (best, late, by_label.get(_control_of(result.label), two_forward))
        differences = tuple(None if other is None else f"{result.mean - other.mean:+.2f}" for other in others)
        seeds = len(result.evaluations)
        unlike.update({o.label: len(o.evaluations) for o in others if o is not None and len(o.evaluations) != seeds})
        holds = None if best is None else "yes" if result.mean >= best.mean - (best.spread or 0.0) else "no"
        rows.append((result.label, result.mean, *differences, holds, seeds))
    named = [f"{what}: {one.label}, {one.mean:.2f}." for what, one in (("Best baseline", best),) if one is not None]
    named += [f"Late fusion: {late.label}, {late.mean:.2f}."] if late else []
    named += [f"Control of what fuses nothing: {two_forward.label}, {two_forward.mean:.2f}."] if two_forward else []
    controls = [label for label in map(_control_of, by_label) if label in by_label]
    if controls:
        named.append(f"Control of a fusion: the same of two forward networks, such as {controls[0]!r}.")
    if unlike:
        seeds_of = ", ".join(f"{label} {count}" for label, count in unlike.items())
        named.append(f"Not over the same seeds as all that is compared with it: {seeds_of}.")
    return Table(
        "Average mAP (%) against what it must beat",
        ("result", "average", "− best baseline", "− late fusion", "− control", "holds", "seeds"),
        tuple(rows),
        notes=(*named, "Holds: at least the best baseline less one standard deviation over seeds."),
    )


def _best(results: Iterable[Result]) -> Result | None:
    return max(results, key=lambda result: result.mean, default=None)


def _control_of(label: str) -> str:
    """The control's label: "3-1, forward basis" -> "3-1, two forward networks, first network"."""
    experiment, _, what = label.partition(", ")
    name = {"forward basis": "first network", "reverse basis": "second network"}.get(what, what)
    return f"{experiment}, two forward networks, {name}"


SHOWN_VIDEOS = 8

INTRODUCTION = """\
F is a detector that watches videos forwards, B one that watches them backwards. Late fusion merges what both found, \
with no training; the control merges what two F of different seeds found. What two networks reach that learn together \
is worth something where it beats both.

Of two networks there are three results: what the forward basis says, what the reverse basis says, and both merged."""


def sensitivity_of_runs(comparison: Comparison, ranks: Ranks) -> Sensitivity:
    """How classes take being played backwards, by all baselines that are compared; F is tested on reversed playback.

    Raises:
        ValueError: there is no F or no B among the runs, or an F without a checkpoint.
    """
    single = [run for run in comparison.runs if run.config.plan.networks == 1]
    forward = [run for run in single if run.config.direction == "forward"]
    backward = [run for run in single if run.config.direction == "reverse"]
    if not forward or not backward:
        raise ValueError("direction sensitivity needs a forward and a reverse baseline; give runs of F and B too")
    return sensitivity(
        comparison.truth,
        forward=[_found(comparison, run.detection_files()[""]) for run in forward],
        backward=[_found(comparison, run.detection_files()[""]) for run in backward],
        reversed_playback=[detect_on_reversed_playback(load_checkpoint(run.directory), ranks) for run in forward],
        tiou=comparison.runs[0].config.test.tiou,
    )


def write_comparison(out: Path, comparison: Comparison, sensitivity: Sensitivity | None = None) -> Path:
    """Writes ``out``/results.md, results.json, the pictures and the page ``out``/index.html, which is returned."""
    tables = [
        table for table in (comparison.table(), standing_table(comparison), comparison.loss_table()) if table.rows
    ]
    if sensitivity is not None:
        tables.append(sensitivity_table(sensitivity))
    with atomic_write(out / "results.md") as file:
        file.write_text("\n".join(table.markdown() for table in tables), encoding="utf-8")
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
        ("Average mAP of every result: a dot a seed, a bar at their mean; dashed, the best baseline.", "comparison.png")
    ]
    if sensitivity is not None:
        plot_sensitivity(sensitivity, out / "sensitivity.png")
        pictures.append(
            ("Average precision of each class, by what the networks make of it played backwards.", "sensitivity.png")
        )
    for group, curves in comparison.curves().items():
        name = f"training-{group.replace(' ', '-')}.png"
        plot_training_curves(curves, out / name)
        of = "" if group == BASELINES else " (the sum of both networks')"
        pictures.append((f"Training of the {group}, the first seed of each: loss{of} and average mAP.", name))
    return pictures


def _page_videos(out: Path, comparison: Comparison) -> Iterator[PageVideo]:
    """The first videos, with timelines of ground truth, F, B, and the best result of two networks."""
    shown: list[tuple[str, Kind, Detections]] = []
    kinds: Mapping[str, Kind] = {"F": "forward", "B": "reverse"}
    for run in comparison.runs:
        if run.label in kinds and run.label not in [title for title, _, _ in shown]:
            shown.append((run.label, kinds[run.label], _found(comparison, run.detection_files()[""])))
    if best := comparison.best_pair:
        shown.append((best.label, "merged", _found(comparison, next(iter(best.files.values())))))
    for name in list(comparison.truth.videos)[:SHOWN_VIDEOS]:
        video = comparison.truth.videos[name]
        tracks = [Track("Ground truth", "ground-truth", video.segments, video.labels)]
        for title, kind, detections in shown:
            if name in detections.videos:
                found = detections.of_video(name)
                labels = [found.classes[label] for label in found.labels]
                tracks.append(Track(title, kind, found.segments, labels, found.scores))
        yield PageVideo(name, _media(out, comparison, name), video.duration_s, tracks)


def _found(comparison: Comparison, path: Path) -> Detections:
    """What a file holds, on the forward clock and under the names of the ground truth."""
    return under_names(read_detections(path).forward(), comparison.truth.videos, path)


def _media(out: Path, comparison: Comparison, name: str) -> str | None:
    """The video's file relative to the page, where it lies in the page's folder."""
    for folder in dict.fromkeys(run.config.data.videos for run in comparison.runs):
        if folder is not None and folder.is_dir():
            find = VideoFinder(folder, partial(tuple, comparison.truth.videos))
            try:
                return find(name).resolve().relative_to(out.resolve()).as_posix()
            except (FileNotFoundError, ValueError):  # it has no such video; it lies elsewhere
                continue
    return None
