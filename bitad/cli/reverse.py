"""The verb that plays data backwards."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from bitad.cli.verbs import Verbs, add_damaged_frames, some
from bitad.printing import say

if TYPE_CHECKING:
    from bitad.video.reverse import ReverseReport


def add_verbs(verbs: Verbs) -> None:
    p = verbs.add(
        "reverse",
        _reverse,
        "Make the reverse-playback twin of a video, of a folder of videos, or of an annotation file.",
        "reverse data/for_thumos-14/raw_data data/back_thumos-14/raw_data --workers 4",
        "reverse forward.json reverse.json",
    )
    p.add_argument("src", type=Path, help="a video, a folder of videos, or an annotation .json")
    p.add_argument("dst", type=Path, help="what to write: of the same sort as SRC")
    p.description = (
        f"{p.description} A folder's sub-folders are kept, and no two videos may have one name. "
        "What is there already is kept if it is whole and made from the videos as they are now. "
        "Under torchrun -m bitad reverse, the processes share a folder's videos."
    )
    p.add_argument(
        "--workers",
        metavar="N",
        default="1",
        help="processes that reverse a folder's videos side by side; 0: this process, one after another (1)",
    )
    add_damaged_frames(p)
    p.add_argument(
        "--allow-clock-mismatch",
        action="store_true",
        help="reverse annotations that state a video's time in ways that disagree (duration, frames, fps)",
    )


def _reverse(arguments: argparse.Namespace) -> int:
    from bitad.data.annotations import reverse_annotation_file
    from bitad.outputs import check_file
    from bitad.progress import following
    from bitad.video.reverse import reverse_video
    from bitad.workers import worker_count

    src, dst = arguments.src, arguments.dst
    try:
        workers = worker_count(arguments.workers)
    except ValueError as error:
        raise ValueError(f"--workers: {error}") from None
    if src.is_dir():
        return _reverse_folder(arguments, workers)
    if int(os.environ.get("RANK", "0")):  # torchrun's first process does it alone
        return 0
    check_file(dst, "DST")
    if src.name.lower().endswith((".csv", ".txt")):
        raise ValueError(f"{src}: of annotations, JSON is reversed: first `bitad annotations convert {src} FILE.json`")
    if src.name.lower().endswith((".json", ".json.gz")):
        said = reverse_annotation_file(src, dst, allow_clock_mismatch=arguments.allow_clock_mismatch)
        if said is not None:
            say(said, file=sys.stderr)
        return 0
    with following(f"reversing {src.name}") as on_progress:
        done = reverse_video(src, dst, damaged=arguments.damaged_frames, on_progress=on_progress)
    _say_repeated(src.name, done.repeated)
    return 0


def _reverse_folder(arguments: argparse.Namespace, workers: int) -> int:
    from bitad.progress import following
    from bitad.video.reverse import ReverseReport, reverse_folder

    with ExitStack() as stack:
        rank, world, others = 0, 1, None
        if "RANK" in os.environ:  # only then is PyTorch needed
            from bitad.training.distributed import processes

            others = stack.enter_context(processes("cpu"))
            rank, world = others.rank, others.world
        on_progress = stack.enter_context(following("reversing videos")) if rank == 0 else None
        report = reverse_folder(
            arguments.src,
            arguments.dst,
            workers=workers,
            rank=rank,
            world=world,
            damaged=arguments.damaged_frames,
            on_progress=on_progress,
        )
        if others is not None:
            report = ReverseReport.together(others.gather(report))
        if rank == 0:
            _say(report)
    return 1 if report.failed else 0


def _say(report: ReverseReport) -> None:
    say(f"{len(report.done)} reversed, {len(report.skipped)} kept from before, {len(report.failed)} failed")
    for name in report.again:
        say(f"bitad reverse: {name}: reversed again, the video or its reversed file has changed", file=sys.stderr)
    if report.unrecorded:
        say(f"bitad reverse: {_said_unrecorded(report.unrecorded)}", file=sys.stderr)
    for name, reason in report.failed.items():
        say(f"bitad reverse: error: {name}: {reason}", file=sys.stderr)
    for name, count in report.repeated.items():
        _say_repeated(name, count)
    sys.stdout.flush()  # torchrun ends all processes as soon as one of them has ended with status 1


def _said_unrecorded(names: Sequence[str]) -> str:
    return (
        f"{len(names)} kept that do not say from which files they were made, as an earlier version wrote them "
        f"({some(names)}); samples of their frames agree; remove them if the videos were replaced since"
    )


def _say_repeated(name: str, count: int) -> None:
    if count:
        say(f"{name}: {count} damaged frames, the last good one in the place of each")
