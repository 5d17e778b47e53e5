"""The page of a comparison of runs: its tables, pictures, and videos with the results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bitad.data.annotations import Annotations
from bitad.data.detections import Detections
from bitad.evaluation.direction_sensitivity import Sensitivity
from bitad.evaluation.operating_points import OperatingPoints
from bitad.reports.comparison import (
    BASELINES,
    TRAINED_PAIRS,
    UNTRAINED,
    VARIANTS,
    Comparison,
    difference_table,
    late_fusion,
    read_forward,
)
from bitad.reports.diagnosis import diagnosis_section
from bitad.reports.measure_tables import (
    paired_table,
    sensitivity_table,
)
from bitad.reports.media import copy_videos, link_videos
from bitad.reports.page import PageVideo, write_report
from bitad.reports.page_videos import page_videos, worst_first
from bitad.reports.plots import plot_comparison, plot_sensitivity, plot_training_curves
from bitad.runtime.log import log, shortlist
from bitad.runtime.progress import progress_callback
from bitad.video.names import VideoFinder

# So many videos are copied beside a page, those with the lowest mAP.
COPIED_VIDEOS = 8
INTRODUCTION = """\
F is a detector trained on forward playback, B one trained on reverse playback. Late fusion merges the detections of \
both without training; the control merges those of two F with different seeds. A joint experiment is useful if it \
beats both. It has three results: the forward basis, the reverse basis, and both merged."""


def write_comparison(
    out: Path,
    comparison: Comparison,
    sensitivity: Sensitivity | None = None,
    *,
    videos: Path | None = None,
    copy: bool = False,
) -> Path:
    """Writes ``out``/results.md, results.json, the pictures and the page ``out``/index.html, which is returned.

    Args:
        videos: the folder of the videos; None: that of the runs.
        copy: copy the eight videos with the lowest mAP into ``out``/media, and link to none.
    """
    tables = [comparison.table(), difference_table(comparison), comparison.loss_table()]
    if comparison.bootstrap is not None:
        tables.insert(1, paired_table(comparison.bootstrap))
    if comparison.ensembles is not None:
        tables.append(comparison.ensembles.table())
    if comparison.boundaries is not None:
        tables += comparison.boundaries.tables()
    if sensitivity is not None:
        tables.append(sensitivity_table(sensitivity, reversals=comparison.reversals))
    results = _shown_results(comparison)
    pages = _page_videos(out, comparison, results, _video_files(comparison, videos), copy=copy)
    errors = diagnosis_section(out, comparison.truth, results, tiou=comparison.runs[0].config.test.tiou)
    return write_report(
        out,
        title="BiTAD: runs compared",
        introduction=INTRODUCTION,
        tables=[table for table in (*tables, *errors.tables) if table.rows],
        content={**comparison.json(), "diagnosis": errors.content},
        pictures=[*_draw(out, comparison, sensitivity), *errors.pictures],
        videos=pages,
    )


def _shown_results(comparison: Comparison) -> dict[str, Detections]:
    """The detections of the first seed of F, B, their best late fusion and the best experiment, by label."""
    results: dict[str, Detections] = {}
    for run in comparison.runs:
        if run.group == BASELINES and run.label not in results:
            results[run.label] = read_forward(run.detection_files()[""], comparison.truth, comparison.part)
    if late := comparison.best(UNTRAINED, label="late fusion"):
        results[late.label] = late_fusion(comparison, late.label)
    if best := comparison.best(TRAINED_PAIRS, VARIANTS):
        results[best.label] = read_forward(next(iter(best.files.values())), comparison.truth, comparison.part)
    return {name: _with_min_scores(found, comparison.truth) for name, found in results.items()}


def _page_videos(
    out: Path,
    comparison: Comparison,
    results: Mapping[str, Detections],
    files: Mapping[str, Path],
    *,
    copy: bool,
) -> list[PageVideo]:
    """All videos with these results; their files are linked, or some of them copied."""
    videos = page_videos(comparison.truth, results)
    if not copy:
        links = link_videos(files, out)
        return [replace(video, media=links.get(video.name)) for video in videos]
    worst = [video.name for video in worst_first(videos) if video.name in files][:COPIED_VIDEOS]
    with progress_callback("copying videos") as on_progress:
        copies = copy_videos({name: files[name] for name in worst}, out, on_progress=on_progress)
    if rest := len(files) - len(worst):
        log.info(
            "videos copied: %d, those with the lowest mAP; not copied: %d, with timelines only", len(worst), rest
        )
    reason = f"Not copied: it is not among the {len(worst)} with the lowest mAP."
    shown = []
    for video in videos:
        without = reason if video.name in files else video.without_media
        shown.append(replace(video, media=copies.get(video.name), without_media=without))
    return shown


def _with_min_scores(found: Detections, truth: Annotations) -> Detections:
    """Detections with their own scores from which they are shown; merged ones and those of old files, of best F1."""
    return (
        found
        if found.min_scores
        else found.with_min_scores(OperatingPoints.of(truth, found).scores(found.classes))
    )


def _draw(
    out: Path,
    comparison: Comparison,
    sensitivity: Sensitivity | None,
) -> list[tuple[str, str]]:
    groups: dict[str, dict[str, list[float]]] = {}
    for result in comparison.results:
        groups.setdefault(result.group, {})[result.label] = result.averages
    best = comparison.best(BASELINES)
    reference = None if best is None else (best.label, best.mean)
    plot_comparison(groups, out / "comparison.png", reference=reference)
    caption = "Average mAP of every result: a dot per seed, a bar at the mean; dashed: the best baseline."
    pictures = [(caption, "comparison.png")]
    if sensitivity is not None:
        plot_sensitivity(sensitivity, out / "sensitivity.png")
        caption = "Average precision of each class, by its direction sensitivity."
        pictures.append((caption, "sensitivity.png"))
    curves: dict[str, dict[str, list[dict[str, Any]]]] = {}  # of the first seed, by group and label
    for label, runs in comparison.by_label().items():
        if trained := next((run for run in runs if run.losses()), None):
            curves.setdefault(trained.group, {})[label] = trained.records()
    for group, of_group in curves.items():
        name = f"training-{group.replace(' ', '-')}.png"
        plot_training_curves(of_group, out / name)
        loss = "loss" if group == BASELINES else "loss (of two networks, their sum)"
        caption = f"Training of the {group}, the first seed of each: {loss} and average mAP."
        pictures.append((caption, name))
    return pictures


def _video_files(comparison: Comparison, given: Path | None) -> dict[str, Path]:
    """The files of the videos that the page shows, by name; the log says what has none."""
    shown = list(comparison.truth.videos)
    folders = [given] if given is not None else [run.config.data.videos for run in comparison.runs]
    stated = [folder for folder in dict.fromkeys(folders) if folder is not None]
    if not stated:
        log.info("the page has no videos: the runs take features; name the folder of the videos with --videos")
        return {}
    files: dict[str, Path] = {}
    for folder in stated:
        if not folder.is_dir():
            log.warning("%s: no such folder of videos; name the folder with --videos", folder)
            continue
        find = VideoFinder(folder, partial(tuple, comparison.truth.videos))
        for name in shown:
            try:
                files[name] = files.get(name) or find(name)
            except FileNotFoundError:
                continue
            except ValueError as error:  # several may be meant
                log.warning("%s", error)
    if missing := [name for name in shown if name not in files]:
        log.warning("the page lacks %d of its %d videos: %s", len(missing), len(shown), shortlist(missing))
    return {name: files[name] for name in shown if name in files}
