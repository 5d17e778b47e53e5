"""What a training and its tests will need of the data, asked for beforehand rather than hours later."""

from __future__ import annotations

from contextlib import suppress

from bitad.config import Config
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.dataset import TrainingWindows
from bitad.data.patience import within
from bitad.data.sources import Source
from bitad.evaluation.matching import Truth
from bitad.log import log
from bitad.progress import track
from bitad.training.distributed import Processes
from bitad.video.index_cache import IndexCache


def look_at_data(
    windows: TrainingWindows, test: Annotations, source: Source, indices: IndexCache, config: Config, team: Processes
) -> None:
    """Looks at every video, without decoding it; training videos that are to be skipped are left out of the windows.

    Args:
        source: of the windows, which keeps its indices in ``indices``.
        test: whose ground truth there must be.

    Raises:
        ValueError, OSError: for the first thing that is wrong, with how many more are.
    """
    Truth.of(test)
    videos = [*windows.videos, *test.videos.values()]

    def look_at(video: AnnotatedVideo) -> None:
        with within(config.training.reading_s, f"reading video {video.name}"):
            source.timebase(video)

    for number in team.share(len(videos)):  # each process looks at some, and tells the others
        with suppress(ValueError, OSError):
            look_at(videos[number])
    indices.share(team.gather)
    faults: list[ValueError | OSError] = []
    unreadable: dict[str, str] = {}
    for number, video in enumerate(track(videos, "looking at the data", len(videos), show=team.is_main)):
        training = number < len(windows.videos)
        try:
            look_at(video)
        except (ValueError, OSError) as error:
            if (config.training.bad_videos if training else config.test.bad_videos) == "error":
                faults.append(error)
            elif training:  # of others each test says so
                unreadable[video.name] = str(error)
    if len(faults) > 1:
        raise type(faults[0])(f"{faults[0]}; and {len(faults) - 1} more of {len(videos)} videos")
    if faults:
        raise faults[0]
    everywhere = team.gather(unreadable)
    left_out = {name: reason for reasons in everywhere for name, reason in reasons.items()}
    for name, reason in left_out.items() if team.is_main else ():
        by = [rank for rank, reasons in enumerate(everywhere) if name in reasons]
        where = "" if len(by) == team.world else f" (process {', '.join(map(str, by))})"
        log.warning("training video %s is left out: %s%s", name, reason, where)
    windows.leave_out(left_out)
