"""The verb that plays data backwards."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bitad.cli.verbs import Verbs, add_damaged_frames


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
    p.add_argument("--workers", type=int, default=1, help="videos of a folder reversed side by side (1)")
    add_damaged_frames(p)


def _reverse(arguments: argparse.Namespace) -> int:
    from bitad.data.annotations import reverse_annotation_file
    from bitad.progress import following
    from bitad.video.reverse import reverse_folder, reverse_video

    src, dst = arguments.src, arguments.dst
    if src.name.endswith((".json", ".json.gz")):
        reverse_annotation_file(src, dst)
        return 0
    if not src.is_dir():
        with following(f"reversing {src.name}") as on_progress:
            done = reverse_video(src, dst, damaged=arguments.damaged_frames, on_progress=on_progress)
        _say_repeated(src.name, done.repeated)
        return 0
    with following("reversing videos") as on_progress:
        report = reverse_folder(
            src, dst, workers=arguments.workers, damaged=arguments.damaged_frames, on_progress=on_progress
        )
    print(f"{len(report.done)} reversed, {len(report.skipped)} kept from before, {len(report.failed)} failed")
    for name, reason in report.failed.items():
        print(f"bitad reverse: error: {name}: {reason}", file=sys.stderr)
    for name, count in report.repeated.items():
        _say_repeated(name, count)
    return 1 if report.failed else 0


def _say_repeated(name: str, count: int) -> None:
    if count:
        print(f"{name}: {count} damaged frames, the last good one in the place of each")
