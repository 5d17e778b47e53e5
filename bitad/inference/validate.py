"""Checks of videos, features and clocks before training and testing."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from bitad.config.schema import Config
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.clocks import disagreement, rate_fault
from bitad.data.dataset import TrainingWindows, ground_truth_in_steps
from bitad.data.sources import FileSource
from bitad.evaluation.mean_average_precision import Truth
from bitad.runtime.distributed import Ranks
from bitad.runtime.log import log, shortlist
from bitad.runtime.progress import track
from bitad.runtime.workers import time_limit
from bitad.timeline import Grid
from bitad.video.indexing import IndexCache

# They place features in time.
_CLOCK_SETTINGS = ("data.feature_stride_frames", "data.feature_offset_frames", "data.feature_fps")


def validate_data(
    windows: TrainingWindows,
    test: Annotations,
    source: FileSource,
    indices: IndexCache,
    config: Config,
    ranks: Ranks,
) -> None:
    """Opens every video without decoding it; removes unreadable training videos from the windows.

    Raises the first error (``on_read_error``), with the number of others; ValueError if clocks disagree.
    """
    Truth.of(test)
    videos = [*windows.videos, *test.videos.values()]
    timeout_s = config.training.read_timeout_s
    for number in ranks.share(len(videos)):  # the processes share the indexing
        with suppress(ValueError, OSError):
            _grid(source, videos[number], timeout_s)
    indices.share(ranks.gather)
    grids: dict[str, Grid] = {}
    faults: list[ValueError | OSError] = []
    unreadable: dict[str, str] = {}
    for number, video in enumerate(track(videos, "validating the data", len(videos), show=ranks.is_main)):
        is_training = number < len(windows.videos)
        try:
            grids[video.name] = _grid(source, video, timeout_s)
        except (ValueError, OSError) as error:
            if (config.training if is_training else config.test).on_read_error == "error":
                faults.append(error)
            elif is_training:  # each test reports the others
                unreadable[video.name] = str(error)
    if len(faults) > 1:
        raise type(faults[0])(f"{faults[0]}; and {len(faults) - 1} more of {len(videos)} videos")
    if faults:
        raise faults[0]
    _compare_clocks({video.name: video for video in videos}, grids, source, config, ranks)
    if ranks.is_main:
        _log_segments_outside(windows, grids)
    by_rank = ranks.gather(unreadable)
    left_out = {name: reason for reasons in by_rank for name, reason in reasons.items()}
    for name, reason in left_out.items() if ranks.is_main else ():
        failed = [rank for rank, reasons in enumerate(by_rank) if name in reasons]
        where = "" if len(failed) == ranks.world else f" (process {', '.join(map(str, failed))})"
        log.warning("training video %s is left out: %s%s", name, reason, where)
    windows.leave_out(left_out)


def validate_clocks(test: Annotations, source: FileSource, config: Config, rate_hz: float, ranks: Ranks) -> None:
    """Compares durations and rates of every test video that can be read; ValueError if they disagree."""
    grids = {}
    for video in test.videos.values():
        with suppress(ValueError, OSError):
            grids[video.name] = _grid(source, video, config.test.read_timeout_s)
    _compare_clocks(test.videos, grids, source, config, ranks)
    log_rates(grids, rate_hz, config, ranks)


def log_rates(grids: Mapping[str, Grid], trained_hz: float, config: Config, ranks: Ranks) -> None:
    """Logs the videos whose grid steps per second differ much from training."""
    if config.window.layout == "resized" or not ranks.is_main:
        return
    faults = {name: rate_fault(grid.fps / grid.stride_frames, trained_hz) for name, grid in grids.items()}
    far = [f"{name} ({fault})" for name, fault in faults.items() if fault is not None]
    if far:
        log.warning("videos at another rate than in training, %d of %d: %s", len(far), len(grids), shortlist(far))


def _grid(source: FileSource, video: AnnotatedVideo, timeout_s: float | None) -> Grid:
    with time_limit(timeout_s, f"reading video {video.name}"):
        return source.grid(video)


def _compare_clocks(
    videos: Mapping[str, AnnotatedVideo],
    grids: Mapping[str, Grid],
    source: FileSource,
    config: Config,
    ranks: Ranks,
) -> None:
    faults: dict[str, str] = {}
    for name, grid in grids.items():
        fault = source.clock_fault(videos[name], grid)
        if found := [*videos[name].contradictions, *([] if fault is None else [fault])]:
            faults[name] = "; ".join(found)
    settings = "" if config.data.features is None else f"{', '.join(_CLOCK_SETTINGS)} or "
    problems = [disagreement(faults, len(videos), f"correct {settings}the annotations")] if faults else []
    late = sum(int((video.segments[:, 0] >= video.duration_s).sum()) for video in videos.values())
    segments = sum(len(video.labels) for video in videos.values())
    if 2 * late > segments:
        starts = f"{late} of {segments} segments start after the end of their video"
        problems.append(f"{config.data.annotations}: {starts}; they must be in seconds, and may be in frames")
    if problems and not config.data.allow_clock_mismatch:
        raise ValueError(f"{'; '.join(problems)}; or continue with data.allow_clock_mismatch=true")
    for problem in problems if ranks.is_main else ():
        log.warning("%s", problem)


def _log_segments_outside(windows: TrainingWindows, grids: Mapping[str, Grid]) -> None:
    outside = {}
    for video in windows.videos:
        if video.name in grids:
            _, labels = ground_truth_in_steps(video, grids[video.name], windows.classes)
            outside[video.name] = len(video.labels) - len(labels)
    if total := sum(outside.values()):
        names = [f"{name} ({count})" for name, count in outside.items() if count]
        log.warning("segments outside their training videos are left out, %d: %s", total, shortlist(names, 20))
