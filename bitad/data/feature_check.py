"""Checks a set of features against annotated videos: names, arrays, widths, and numbers of rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from bitad.data.annotations import AnnotatedVideo, Defect
from bitad.data.clocks import Clock, coverage_fault, differences, same_length
from bitad.data.feature_files import FeatureStore
from bitad.data.feature_folder import SIDECAR, FeatureVideo, Sidecar, read_own_sidecar
from bitad.runtime.log import shortlist
from bitad.timeline import FloatArray

# Features may lack a clip at either end, whose length is unknown where nothing states it.
_LOST_ROWS = 2


def check_features(
    videos: Sequence[AnnotatedVideo],
    path: str | Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Defect], list[str]]:
    """Compare features with the annotations of their videos; reads every value.

    Where a ``features.json`` describes the rows, their number and the videos' time are compared with it. Elsewhere the
    distance between two rows is estimated, and the numbers of rows are compared with that.

    Args:
        videos: their durations may be unknown (inf); then their rows are not counted.
        path: a folder with an array for each video, or one ``.npz`` file.

    Returns:
        The defects, and lines on the features as a whole.

    Raises:
        FileNotFoundError, ValueError: there are no features, or a ``features.json`` that is damaged.
    """
    store = FeatureStore(path, wanted=partial(tuple, [video.name for video in videos]))
    sidecar = read_own_sidecar(store.path)
    available = set(store.names())
    if not available:
        raise ValueError(f"{path}: no features in it; features are one .npy or .npz file a video")
    defects: list[Defect] = []
    shapes: dict[str, tuple[int, int]] = {}  # rows and width of each video
    own: dict[str, str] = {}
    for done, video in enumerate(videos, start=1):
        try:
            own[video.name] = store.own_name(video.name)
            if own[video.name] not in available:
                defects.append(Defect(video.name, "no features", f"none in {path}"))
            else:
                rows, width = store.read(video.name).shape
                shapes[video.name] = rows, width
        except ValueError as error:
            defects.append(Defect(video.name, "unreadable features", str(error)))
        if on_progress is not None:
            on_progress(done, len(videos))
    read = [video for video in videos if video.name in shapes]
    lines = []
    if others := sorted(available.difference(own.values())):
        lines.append(f"{path}: {len(others)} features of no annotated video: {shortlist(others)}")
    if not read:
        return defects, lines
    widths = Counter(width for _, width in shapes.values())
    usual = widths.most_common(1)[0][0] if sidecar is None else sidecar.settings.feature_channels
    for video in read:
        if (width := shapes[video.name][1]) != usual:
            of_others = f"{SIDECAR} says" if sidecar is not None else "most others have"
            defects.append(
                Defect(video.name, "another width of features", f"{width} channels, {of_others} {usual}")
            )
    rows_of = {name: rows for name, (rows, _) in shapes.items()}
    what = f"{path}: features of {len(read)} of {len(videos)} videos, {usual} channels"
    if sidecar is not None:
        defects += _differences_to_sidecar(read, rows_of, own, sidecar)
        settings = sidecar.settings
        stride, offset = settings.feature_stride_frames, settings.feature_offset_frames
        lines.append(f"{what}, a row every {stride} frames, the first at frame {offset:g} ({SIDECAR})")
        return defects, lines
    if len(widths) > 1 and len(set(rows_of.values())) == 1:
        rows = next(iter(rows_of.values()))
        lines.append(f"{what}; all have {rows} rows and their widths differ: save them as [T, C], time first")
        return defects, lines
    found, clock = _differences_to_estimate(read, rows_of)
    lines.append(f"{what}, {clock}")
    return defects + found, lines


def _differences_to_sidecar(
    videos: Sequence[AnnotatedVideo],
    rows_of: dict[str, int],
    own: dict[str, str],
    sidecar: Sidecar,
) -> Iterator[Defect]:
    settings = sidecar.settings
    for video in videos:
        rows = rows_of[video.name]
        made: FeatureVideo | None = sidecar.videos.get(own[video.name])
        if made is None:
            if sidecar.records_all:
                detail = f"{SIDECAR} does not list them, so they are incomplete; run `bitad features` again"
                yield Defect(video.name, "unreadable features", detail)
            continue
        if made.steps != rows:
            yield Defect(video.name, "another number of rows", f"{rows}, {SIDECAR} says {made.steps}")
            continue
        found = list(differences(video.clock, Clock(made.frames / made.fps, made.frames, made.fps)))
        for kind, detail in found:
            yield Defect(video.name, kind, f"{SIDECAR} says that it {detail}")
        if not found and math.isfinite(video.duration_s):
            stride, offset = settings.feature_stride_frames, settings.feature_offset_frames
            if fault := coverage_fault(rows, stride, offset, made.fps, video.duration_s):
                yield Defect(video.name, "another number of rows", fault)


def _differences_to_estimate(
    videos: Sequence[AnnotatedVideo], rows_of: dict[str, int]
) -> tuple[list[Defect], str]:
    """Defects, and what is assumed about the time from one row to the next."""
    timed = [video for video in videos if math.isfinite(video.duration_s)]
    if not timed:
        return [], "not compared with durations, which are unknown"
    rows = np.array([rows_of[video.name] for video in timed], np.float64)
    seconds = np.array([video.duration_s for video in timed])
    if len(timed) > 1 and len(set(rows)) == 1 and seconds.max() > 1.1 * seconds.min():
        same = f"{rows[0]:.0f} rows for every video, whatever its length"
        return [], f"{same}: resized features, whose rows are not compared with durations"
    distance_s, spread = _row_distance(rows, seconds)
    distances_s = np.full(len(timed), distance_s)
    text = f"{distance_s:.4g} s"
    rates = [video.clock.rate for video in timed]
    if all(rates):
        fps = np.array(rates, np.float64)
        frames, spread_of_frames = _row_distance(rows, seconds * fps)
        if spread_of_frames <= spread:
            distances_s = frames / fps
            text = f"{frames:.4g} frames"
    defects = []
    for video, count, distance_s in zip(timed, rows.tolist(), distances_s.tolist(), strict=True):
        covered_s = count * distance_s
        if not same_length(covered_s, video.duration_s, slack_s=_LOST_ROWS * distance_s):
            detail = f"{count:.0f} rows, one every {text}, cover {covered_s:.2f} s of {video.duration_s:.2f} s"
            defects.append(Defect(video.name, "another number of rows", detail))
    return defects, f"about one row every {text} (estimated, as there is no {SIDECAR})"


def _row_distance(rows: FloatArray, lengths: FloatArray) -> tuple[float, float]:
    """The length from one row to the next, the median over the videos, and how far the videos are from it.

    Videos count by their lengths: what clips lose at the ends matters least in long ones.
    """
    distances = lengths / rows
    order = np.argsort(distances)
    share = np.cumsum(lengths[order]) / lengths.sum()
    median = float(distances[order][np.searchsorted(share, 0.5)])
    return median, float(np.average(np.abs(np.log(distances / median)), weights=lengths))
