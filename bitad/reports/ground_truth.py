"""A page with the ground truth over its videos: timelines, defects, and figures of lengths, gaps and overlaps."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitad.data.annotations import AnnotatedVideo, Defect
from bitad.data.check import AnnotationReport
from bitad.data.tiou import overlap_ranges, ranges
from bitad.reports.media import MEDIA, relative_link
from bitad.reports.page import PageVideo, Track, check_page, write_page
from bitad.reports.plots import plot_gaps_and_overlaps, plot_lengths
from bitad.reports.tables import Row, Table
from bitad.runtime.files import check_folder
from bitad.runtime.log import log
from bitad.timeline import FloatArray
from bitad.video.names import VideoFinder
from bitad.video.writer import plays_in_browsers, write_preview

MOST_PREVIEWS = 200  # beside a page; the videos with defects come first
_MOST_CLASSES = 60  # in the figure of lengths
_MOST_DEFECTS = 500  # in the table
# Times are rounded; segments that share less only touch.
_ROUNDING_S = 1e-3

_PAGE, _LENGTHS, _GAPS = "index.html", "lengths.png", "gaps.png"


@dataclass(frozen=True)
class Spacing:
    """How the segments of videos lie to one another.

    Args:
        gaps: seconds from the end of all earlier segments of a video to the start of the next one, where above 0.
        touching: number of segments that start within a millisecond of that end.
        overlaps: seconds that two segments of a video share, a number for each pair; ``[n]``.
        same_class: which of these pairs are of one class; bool ``[n]``.
        overlapping: number of segments that share time with another one.
    """

    gaps: FloatArray
    touching: int
    overlaps: FloatArray
    same_class: NDArray[np.bool_]
    overlapping: int

    @staticmethod
    def of(videos: Sequence[AnnotatedVideo]) -> Spacing:
        """Of videos with segments that start before they end."""
        groups = np.repeat(np.arange(len(videos)), [len(video.labels) for video in videos])
        segments = np.concatenate([np.zeros((0, 2)), *(video.segments for video in videos)])
        labels = np.array([label for video in videos for label in video.labels], object)
        gaps = [np.zeros(0)]
        for video in videos:
            start, end = video.segments[np.argsort(video.segments[:, 0], kind="stable")].T
            gaps.append(start[1:] - np.maximum.accumulate(end)[:-1])
        gap = np.concatenate(gaps)
        order, first, count = overlap_ranges(groups, segments, groups, segments)
        one = np.repeat(np.arange(len(segments)), count)
        other = order[ranges(first, count)]
        (start_a, end_a), (start_b, end_b) = segments[one].T, segments[other].T
        shared = np.minimum(end_a, end_b) - np.maximum(start_a, start_b)
        overlap = (one < other) & (shared > _ROUNDING_S)
        one, other = one[overlap], other[overlap]
        return Spacing(
            gaps=gap[gap > _ROUNDING_S],
            touching=int((np.abs(gap) <= _ROUNDING_S).sum()),
            overlaps=shared[overlap],
            same_class=labels[one] == labels[other],
            overlapping=len(np.union1d(one, other)),
        )


def check_ground_truth_page(out: Path, option: str = "--page") -> None:
    """Raises ValueError or OSError if :func:`write_ground_truth_page` cannot or may not write to a folder."""
    check_folder(out, option)
    check_page(out / _PAGE)
    if not (out / _PAGE).exists():
        for name in (_LENGTHS, _GAPS, MEDIA):
            if os.path.lexists(out / name):
                raise ValueError(f"{option} {out}: {out / name} is there already; choose another folder")


def write_ground_truth_page(
    out: Path,
    report: AnnotationReport,
    videos: Path | None = None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes the page ``out``/index.html, which is returned, and its figures.

    An H.264 mp4 is linked where it is. Of other videos, small H.264 previews are written to ``out``/media, of at most
    200; the page has only the timelines of the rest.

    Args:
        videos: the folder of the video files.
        on_progress: called with the number of videos of the page done and in all.
    """
    sound = [_sound(video, report.classes) for video in report.videos]
    spacing = Spacing.of(sound)
    backward = sum(int((video.segments[:, 0] >= video.segments[:, 1]).sum()) for video in report.videos)
    tables = [summary_table(sound, backward), length_table(sound, list(report.classes))]
    if report.defects or report.without_truth:
        tables.append(defect_table(report))
    shown = sorted(report.videos, key=lambda video: video.name not in report.defects)
    find = None if videos is None else VideoFinder(videos, partial(tuple, [video.name for video in report.videos]))
    on_page = []
    previews = 0
    for done, video in enumerate(shown, start=1):
        media = _media(out, video.name, find, may_write=previews < MOST_PREVIEWS)
        previews += media is not None and media.startswith(f"{MEDIA}/")
        on_page.append(_page_video(video, report.defects.get(video.name, ()), media))
        if on_progress is not None:
            on_progress(done, len(shown))
    if previews == MOST_PREVIEWS:
        log.info("the page plays previews of %d videos, and has the timelines of all", previews)
    page = out / _PAGE
    write_page(
        page,
        title=f"Ground truth: {Path(report.path).name}",
        introduction=_introduction(report),
        tables=tables,
        pictures=_draw(out, sound, spacing),
        videos=on_page,
    )
    return page


def summary_table(videos: Sequence[AnnotatedVideo], backward: int = 0) -> Table:
    """A row for each subset, and one for all: videos, segments, their median length, and the time that they cover.

    Args:
        videos: with segments of classes that start before they end.
        backward: number of the other segments, which are not in the table.
    """
    by_subset: dict[str, list[AnnotatedVideo]] = {}
    for video in videos:
        by_subset.setdefault(video.subset, []).append(video)
    rows = [_summary(name, chosen) for name, chosen in by_subset.items()]
    if len(rows) > 1:
        rows.append(_summary("all", videos))
    columns = (
        "subset",
        "videos",
        "minutes",
        "segments",
        "classes",
        "median length (s)",
        "covered (%)",
        "overlapping",
    )
    notes = [
        "Covered: share of the videos' time within a segment. Overlapping: segments that share time with another one.",
    ]
    if unknown := sum(math.isinf(video.duration_s) for video in videos):
        notes.append(f"{unknown} videos of unknown duration are not in minutes and covered.")
    if backward:
        notes.append(f"Segments that do not start before they end are not counted here: {backward}.")
    return Table("Ground truth", columns, rows, notes)


def length_table(videos: Sequence[AnnotatedVideo], classes: Sequence[str]) -> Table:
    """A row for each class: its segments, their videos, and the least, median and greatest length in seconds."""
    lengths = lengths_of(videos)
    in_videos = Counter(label for video in videos for label in set(video.labels))
    rows: list[Row] = []
    for name in classes:
        seconds = lengths.get(name)
        figures: Row = (None, None, None)
        if seconds is not None:
            figures = (float(seconds.min()), float(np.median(seconds)), float(seconds.max()))
        rows.append((name, 0 if seconds is None else len(seconds), in_videos[name], *figures))
    columns = ("class", "segments", "videos", "shortest (s)", "median (s)", "longest (s)")
    return Table("Lengths per class", columns, rows)


def defect_table(report: AnnotationReport) -> Table:
    """A row for each defect, by video."""
    rows: list[Row] = []
    for name, count in report.without_truth.items():
        rows.append(
            (f"subset {name}", "without ground truth", f"none of its {count} videos has a segment of a class")
        )
    for defects in report.defects.values():
        rows += [(defect.video, defect.kind, defect.detail) for defect in defects]
    notes = []
    if len(rows) > _MOST_DEFECTS:
        notes.append(f"And {len(rows) - _MOST_DEFECTS} more, which `bitad annotations check` prints.")
    return Table("Defects", ("video", "defect", "detail"), rows[:_MOST_DEFECTS], notes)


def lengths_of(videos: Sequence[AnnotatedVideo]) -> dict[str, FloatArray]:
    """The lengths in seconds of the segments of each class that has any."""
    lengths: dict[str, list[float]] = {}
    for video in videos:
        for label, (start, end) in zip(video.labels, video.segments.tolist(), strict=True):
            lengths.setdefault(label, []).append(end - start)
    return {label: np.array(each) for label, each in lengths.items()}


def _sound(video: AnnotatedVideo, classes: dict[str, int]) -> AnnotatedVideo:
    """The video with its segments of classes that start before they end."""
    chosen = video.with_labels(classes)
    return chosen.take(chosen.segments[:, 0] < chosen.segments[:, 1])


def _summary(name: str, videos: Sequence[AnnotatedVideo]) -> Row:
    timed = [video for video in videos if math.isfinite(video.duration_s)]
    seconds = sum(video.duration_s for video in timed)
    covered_s = sum(map(_covered_s, timed))
    lengths = np.concatenate([np.zeros(0), *lengths_of(videos).values()])
    return (
        name,
        len(videos),
        seconds / 60 if timed else None,
        len(lengths),
        len({label for video in videos for label in video.labels}),
        float(np.median(lengths)) if len(lengths) else None,
        100 * covered_s / seconds if timed else None,
        Spacing.of(videos).overlapping,
    )


def _covered_s(video: AnnotatedVideo) -> float:
    """The seconds of a video of known duration that lie within a segment."""
    start, end = video.segments[np.argsort(video.segments[:, 0], kind="stable")].clip(0, video.duration_s).T
    before = np.maximum.accumulate(np.concatenate([[0.0], end]))[:-1]
    return float(np.maximum(end - np.maximum(start, before), 0.0).sum())


def _introduction(report: AnnotationReport) -> str:
    count = sum(map(len, report.defects.values())) + len(report.without_truth)
    parts = [
        f"{len(report.videos)} videos, {sum(report.classes.values())} segments of {len(report.classes)} classes. "
        + (f"{count} defects, in {len(report.defects)} videos." if count else "No defects.")
    ]
    if report.ignored:
        parts.append(f"Of no class: {', '.join(f'{count} {label}' for label, count in report.ignored.items())}.")
    if report.unmeasured:
        parts.append(report.unmeasured)
    parts += report.of_features
    return "\n\n".join(parts)


def _page_video(video: AnnotatedVideo, defects: Sequence[Defect], media: str | None) -> PageVideo:
    # What ends before it starts is among the defects only.
    drawn = video.take(video.segments[:, 0] <= video.segments[:, 1])
    tracks = [Track("Ground truth", "ground-truth", drawn.segments.clip(min=0), drawn.labels)]
    if marked := [defect for defect in defects if defect.segment is not None]:
        segments = np.sort(np.array([defect.segment for defect in marked], np.float64), axis=1)
        kinds = [defect.kind for defect in marked]
        tracks.append(
            Track("Defects", "defect", segments.clip(min=0), kinds, notes=[defect.detail for defect in marked])
        )
    duration_s = video.duration_s
    if math.isinf(duration_s):
        duration_s = max(1e-3, float(np.max(drawn.segments, initial=0.0)))
    return PageVideo(video.name, media, duration_s, tracks, [f"{each.kind}: {each.detail}" for each in defects])


def _media(out: Path, name: str, find: VideoFinder | None, *, may_write: bool) -> str | None:
    """The file that the page plays, relative to it; None if there is none, or if it would be one preview too many."""
    if find is None:
        return None
    try:
        path = find(name)
        if not plays_in_browsers(path):
            if not may_write:
                return None
            path, original = out / MEDIA / f"{path.stem}.mp4", path
            write_preview(original, path, damaged="repeat")
    except FileNotFoundError:  # is among the defects
        return None
    except ValueError as error:
        log.warning("%s: the page does not play it: %s", name, error)
        return None
    link = relative_link(path, out)
    if link is None:
        log.warning("%s: the page does not play it: a page in %s cannot name %s; rename the file", name, out, path)
    return link


def _draw(out: Path, videos: Sequence[AnnotatedVideo], spacing: Spacing) -> list[tuple[str, str]]:
    lengths = lengths_of(videos)
    if not lengths:
        return []
    frequent = sorted(lengths, key=lambda name: -len(lengths[name]))[:_MOST_CLASSES]
    frequent.sort(key=lambda name: float(np.median(lengths[name])))
    plot_lengths({name: lengths[name] for name in frequent}, out / _LENGTHS)
    of_classes = f"the {_MOST_CLASSES} most frequent classes" if len(lengths) > _MOST_CLASSES else "each class"
    caption = f"Lengths of the segments of {of_classes}: a dot per segment, a bar at the median."
    pictures = [(caption, _LENGTHS)]
    same = spacing.same_class
    overlaps = {"of one class": spacing.overlaps[same], "of two classes": spacing.overlaps[~same]}
    plot_gaps_and_overlaps(spacing.gaps, overlaps, out / _GAPS)
    total = sum(map(len, lengths.values()))
    caption = (
        f"Seconds from the end of a segment to the start of the next, and those that two segments share. "
        f"{spacing.overlapping} of {total} segments overlap another one; {spacing.touching} start where others end."
    )
    return [*pictures, (caption, _GAPS)]
