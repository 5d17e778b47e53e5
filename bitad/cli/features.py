"""The verb that computes features."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bitad.cli.verbs import Verbs, add_damaged_frames, some
from bitad.printing import say

if TYPE_CHECKING:
    from bitad.data.detections import Basis

ABOUT = """
Of a VideoMAE file: sliding clips of 16 frames, one every 4 frames; a clip's tokens are averaged over space and time.
Of a run of ours: what its pyramid stands on, by its backbone and adapters in windows of the run's length.

--direction reverse plays the frames backwards to the network. That is not the same as turning the features of forward
playback round: the network sees other motion. Clips and windows are the same in both directions, and rows are in the
order of forward time in both, so a configuration reads either folder alike. `both` decodes each video once and writes
DIR/forward and DIR/reverse.

DIR holds NAME.npy [T, C] of every video, features.json, which says what they are, and index/, where the videos' frames
are. What is there already is kept if it is whole and of the videos as they are now, so the same command continues where
it was interrupted; also under torchrun -m bitad features, and while others write to DIR. Videos in sub-folders are
found, too; no two may have one name.
"""


def add_verbs(verbs: Verbs) -> None:
    p = verbs.add(
        "features",
        _features,
        "Compute features of videos with a VideoMAE, or with a trained run's backbone, in forward or reverse playback.",
        "features raw_data --checkpoint vit-huge.pth --out features/h --half",
        "features one.mp4 two.mp4 --checkpoint package:playroom_backbone.safetensors --pixels 64 --out features/tiny",
        "features raw_data --checkpoint runs/thumos14-1-1-seed0 --direction both --out features/own",
    )
    p.description = f"{p.description}\n{ABOUT.rstrip()}"
    p.add_argument("videos", nargs="+", type=Path, metavar="VIDEO", help="a video, or a folder of videos")
    p.add_argument("--checkpoint", type=Path, required=True, help="a VideoMAE file, a run, or a detector's file")
    p.add_argument("--config", help="of another project's detector: a YAML file, or the name of a preset")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    p.add_argument(
        "--direction", choices=["forward", "reverse", "both"], help="of playback (forward, or the run's own)"
    )
    p.add_argument("--stride", type=int, metavar="FRAMES", help="from one row to the next (4, or the run's)")
    p.add_argument("--clip-frames", type=int, metavar="FRAMES", help="of a clip; not of a run (16)")
    p.add_argument("--pixels", type=int, help="height and width of the pictures (224, or the run's)")
    p.add_argument("--half", action="store_true", help="write half precision")
    p.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="to compute in (float32)")
    p.add_argument("--batch", type=int, default=8, metavar="CLIPS", help="computed at once; not of a run (8)")
    add_damaged_frames(p)
    p.add_argument("--device", help="cpu, cuda, cuda:1 (a GPU if there is one)")


def _features(arguments: argparse.Namespace) -> int:
    from bitad.config_files import load_config
    from bitad.inference.encoders import load_encoder
    from bitad.inference.extract import extract_features, feature_folders, find_videos
    from bitad.training.distributed import processes
    from bitad.video.index_cache import INDEX_FOLDER, IndexCache

    videos = find_videos(arguments.videos)
    encoder = load_encoder(
        arguments.checkpoint,
        config=None if arguments.config is None else load_config(arguments.config),
        stride_frames=arguments.stride,
        clip_frames=arguments.clip_frames,
        pixels=arguments.pixels,
        clips=arguments.batch,
    )
    asked: Basis | Literal["both"] | None = arguments.direction
    directions: tuple[Basis, ...] = ("forward", "reverse") if asked == "both" else (asked or encoder.direction,)
    folders = feature_folders(
        encoder,
        arguments.out,
        directions,
        precision=arguments.precision,
        stored="float16" if arguments.half else "float32",
    )
    with processes(arguments.device) as team:
        cache = IndexCache(arguments.out / INDEX_FOLDER)
        report = extract_features(encoder, videos, folders, team, damaged=arguments.damaged_frames, cache=cache)
        if team.is_main:
            say(f"{len(report.done)} done, {len(report.kept)} kept from before, {len(report.failed)} failed")
            for folder in folders.values():
                say(f"data.features={folder.path} {folder.settings.overrides()}")
            for name in report.again:
                say(f"bitad features: {name}: computed again, its video or its features have changed", file=sys.stderr)
            if report.unrecorded:
                say(f"bitad features: {_said_unrecorded(report.unrecorded)}", file=sys.stderr)
            for name, reason in report.failed.items():
                say(f"bitad features: error: {name}: {reason}", file=sys.stderr)
            sys.stdout.flush()  # torchrun ends all processes as soon as one of them has ended with status 1
    return 1 if report.failed else 0


def _said_unrecorded(names: Sequence[str]) -> str:
    return (
        f"{len(names)} kept of which features.json does not say from which files they were made, as an earlier version "
        f"wrote them ({some(names)}); remove their .npy files if the videos were replaced since"
    )
