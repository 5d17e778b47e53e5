"""What a training and its tests will need of the data, asked for beforehand rather than hours later."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from bitad.config.schema import Config
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.clocks import disagreement, rate_fault
from bitad.data.dataset import TrainingWindows, grid_truth
from bitad.data.sources import FeatureFiles, VideoFiles
from bitad.evaluation.mean_average_precision import Truth
from bitad.runtime.distributed import Ranks
from bitad.runtime.log import log, shortlist
from bitad.runtime.progress import track
from bitad.runtime.workers import time_limit
from bitad.timeline import Grid
from bitad.video.indexing import IndexCache

Videos = VideoFiles | FeatureFiles


def validate_data(
    windows: TrainingWindows, test: Annotations, source: Videos, indices: IndexCache, config: Config, ranks: Ranks
) -> None:
    """Looks at every video, without decoding it; training videos that are to be skipped are left out of the windows.

    Args:
        source: of the windows, which keeps its indices in ``indices``.
        test: whose ground truth there must be.

    Raises:
        ValueError, OSError: for the first thing that is wrong, with how many more are; for clocks that disagree.
    """
    Truth.of(test)
    videos = [*windows.videos, *test.videos.values()]
    bases: dict[str, Grid] = {}

    def look_at(video: AnnotatedVideo) -> None:
        with time_limit(config.training.read_timeout_s, f"reading video {video.name}"):
            bases[video.name] = source.grid(video)

    for number in ranks.share(len(videos)):  # each process looks at some, and tells the others
        with suppress(ValueError, OSError):
            look_at(videos[number])
    indices.share(ranks.gather)
    faults: list[ValueError | OSError] = []
    unreadable: dict[str, str] = {}
    for number, video in enumerate(track(videos, "looking at the data", len(videos), show=ranks.is_main)):
        training = number < len(windows.videos)
        try:
            look_at(video)
        except (ValueError, OSError) as error:
            if (config.training.on_read_error if training else config.test.on_read_error) == "error":
                faults.append(error)
            elif training:  # of others each test says so
                unreadable[video.name] = str(error)
    if len(faults) > 1:
        raise type(faults[0])(f"{faults[0]}; and {len(faults) - 1} more of {len(videos)} videos")
    if faults:
        raise faults[0]
    _compare_clocks({video.name: video for video in videos}, bases, source, config, ranks)
    if ranks.is_main:
        _say_outside(windows, bases)
    everywhere = ranks.gather(unreadable)
    left_out = {name: reason for reasons in everywhere for name, reason in reasons.items()}
    for name, reason in left_out.items() if ranks.is_main else ():
        by = [rank for rank, reasons in enumerate(everywhere) if name in reasons]
        where = "" if len(by) == ranks.world else f" (process {', '.join(map(str, by))})"
        log.warning("training video %s is left out: %s%s", name, reason, where)
    windows.leave_out(left_out)


def validate_clocks(test: Annotations, source: Videos, config: Config, rate_hz: float, ranks: Ranks) -> None:
    """Compares the time that there is content of with the annotated one, of every video that can be read.

    Args:
        test: the videos to test on.
        source: of their windows.
        rate_hz: grid steps a second that the network was trained on; that others are far from it is logged.

    Raises:
        ValueError: they disagree, and that is not allowed (``data.allow_clock_mismatch``).
    """
    bases = {}
    for video in test.videos.values():
        with suppress(ValueError, OSError), time_limit(config.test.read_timeout_s, f"reading video {video.name}"):
            bases[video.name] = source.grid(video)
    _compare_clocks(test.videos, bases, source, config, ranks)
    if config.window.layout != "resized" and ranks.is_main:  # there each video has a rate of its own
        log_rates({name: base.fps / base.stride_frames for name, base in bases.items()}, rate_hz)


def log_rates(rates_hz: Mapping[str, float], trained_hz: float) -> None:
    """Logs the videos, by name, whose grid steps a second are far from those that a network was trained on."""
    far = {name: fault for name, rate in rates_hz.items() if (fault := rate_fault(rate, trained_hz)) is not None}
    if far:
        names = [f"{name} ({fault})" for name, fault in far.items()]
        log.warning(
            "videos seen at another rate than in training, %d of %d: %s", len(far), len(rates_hz), shortlist(names)
        )


def _compare_clocks(
    videos: Mapping[str, AnnotatedVideo], bases: Mapping[str, Grid], source: Videos, config: Config, ranks: Ranks
) -> None:
    """Refuses clocks that disagree; where that is allowed, logs them."""
    faults: dict[str, str] = {}
    for name, base in bases.items():
        of_content = source.clock_fault(videos[name], base)
        if told := [*videos[name].contradictions, *([] if of_content is None else [of_content])]:
            faults[name] = "; ".join(told)
    said = []
    where = "the annotations"
    if config.data.features is not None:
        where = "data.feature_stride_frames, data.feature_offset_frames, data.feature_fps or the annotations"
    if faults:
        said.append(disagreement(faults, len(videos), f"correct {where}"))
    late = sum(int((video.segments[:, 0] >= video.duration_s).sum()) for video in videos.values())
    segments = sum(len(video.labels) for video in videos.values())
    if 2 * late > segments:
        said.append(
            f"{config.data.annotations}: {late} of {segments} segments start after the end of their video: they must "
            "be in seconds, and may be in frames"
        )
    if said and not config.data.allow_clock_mismatch:
        raise ValueError(f"{'; '.join(said)}; or continue with data.allow_clock_mismatch=true")
    if ranks.is_main:
        for line in said:
            log.warning("%s", line)


def _say_outside(windows: TrainingWindows, bases: Mapping[str, Grid]) -> None:
    """Logs of which training videos segments cannot be learnt, since there is no content of their time."""
    outside = {}
    for video in windows.videos:
        if video.name in bases:
            _, labels = grid_truth(video, bases[video.name], windows.classes)
            outside[video.name] = len(video.labels) - len(labels)
    if total := sum(outside.values()):
        names = [f"{name} ({count})" for name, count in outside.items() if count]
        log.warning("segments outside their training videos are left out, %d: %s", total, shortlist(names, 20))
