"""The commands ``init`` and ``config``."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import get_args

from bitad.cli.commands import Commands, add_on_decode_error, add_overrides, check_seed
from bitad.config.names import MissingPolicy, StarterBackbone
from bitad.data.formats.annotations import FORMATS
from bitad.runtime.log import echo, printable

_MOST_LISTED = 10


def add_init(commands: Commands) -> None:
    p = commands.add(
        "init",
        _init,
        "Write a configuration that fits your annotations, and your videos or features.",
        "init my.csv --videos my_videos",
        "init my.json --features my_features",
        "init my.json --videos my_videos --backbone s --out configs/my.yaml",
    )
    p.add_argument(
        "annotations", type=Path, help="annotations of any known format, or a CSV: video,start,end,label"
    )
    content = p.add_mutually_exclusive_group(required=True)
    content.add_argument("--videos", type=Path, metavar="DIR", help="folder of the video files")
    content.add_argument("--features", type=Path, metavar="DIR", help="pre-computed features, instead of videos")
    p.add_argument(
        "--video-info",
        type=Path,
        metavar="FILE",
        help="with --features: list of videos that states their durations",
    )
    p.add_argument("--out", type=Path, help="the configuration (default: the name of the annotations, .yaml)")
    p.add_argument("--from", dest="form", choices=tuple(FORMATS), metavar="FORMAT", help="default: auto-detected")
    p.add_argument("--backbone", choices=get_args(StarterBackbone), help="for videos (default: tiny)")
    p.add_argument(
        "--missing",
        choices=get_args(MissingPolicy),
        default="error",
        help="a video without a usable file, or of unknown duration: error, or leave it out (default: error)",
    )
    p.add_argument(
        "--validation",
        type=float,
        default=0.25,
        metavar="SHARE",
        help="share of the videos that become the validation subset, if there is none (default: 0.25)",
    )
    p.add_argument("--seed", type=int, default=0, help="of that choice (default: 0)")
    p.add_argument("--overwrite", action="store_true", help="replace the files of an earlier call")
    p.add_argument("--all", action="store_true", help="list every remark and segment, not only the first")
    add_on_decode_error(p)


def _init(args: argparse.Namespace) -> int:
    from bitad.reports.new_config import new_config
    from bitad.runtime.progress import progress_callback

    if not 0 < args.validation < 1:
        raise ValueError(f"--validation {args.validation} is not a share of the videos; give 0.25, for example")
    check_seed(args.seed)
    if args.features is not None and args.backbone is not None:
        raise ValueError("--backbone is for videos, and --features need none; leave one of them out")
    if args.videos is not None and args.video_info is not None:
        raise ValueError("--video-info is for features, and --videos state their durations; leave one of them out")
    out = args.out or Path(f"{args.annotations.name.partition('.')[0]}.yaml")
    with progress_callback("reading videos") as on_progress:
        made = new_config(
            args.annotations,
            videos=args.videos,
            features=args.features,
            out=out,
            backbone=args.backbone or "tiny",
            format=args.form,
            video_info=args.video_info,
            missing=args.missing,
            share=args.validation,
            seed=args.seed,
            overwrite=args.overwrite,
            damaged=args.on_decode_error,
            on_progress=on_progress,
        )
    with progress_callback("estimating costs") as on_progress:
        costs = made.costs(on_progress)
    most = None if args.all else _MOST_LISTED
    echo(*made.conversion.lines(most), *made.notes, "")
    print("\n\n".join(table.text() for table in (*made.tables(), costs)))
    if missed := made.fit.missed:
        share = f"{len(missed)} of {made.segments} segments have no point of the pyramid, so they are not learned"
        remedy = "none of the alternatives leaves fewer"
        if any(len(one.missed) < len(missed) for one in made.others.values()):
            remedy = "the alternatives above state how many they leave"
        elif args.features is not None:
            remedy = "features of a finer stride may leave fewer"
        echo("", f"{share}; {remedy}:", *missed[:most])
    if most is not None and len(missed) > most:
        echo(f"and {len(missed) - most} more: --all lists every one")
    echo("", f"written: {', '.join(map(str, made.written))}", f"next: bitad train {out}")
    return 0


def add_config(commands: Commands) -> None:
    p = commands.add(
        "config",
        _config,
        "List the presets, show a configuration and where its values come from, or print the schema for editors.",
        "config --presets",
        "config --show thumos14/videomae-s training.lr=1e-3",
        "config --schema",
    )
    action = p.add_mutually_exclusive_group(required=True)
    action.add_argument("--presets", action="store_true", help="list the presets")
    action.add_argument(
        "--show", metavar="SOURCE", help="print all keys of a YAML file or preset, and their origins"
    )
    action.add_argument("--schema", action="store_true", help="print the JSON schema of configuration files")
    add_overrides(p)


def _config(args: argparse.Namespace) -> int:
    from bitad.config.loading import explain_config, preset_descriptions
    from bitad.config.text import commented_yaml, flat, schema_text

    if args.overrides and args.show is None:
        raise ValueError(f"{args.overrides[0]}: changes to a configuration only apply to --show SOURCE")
    if args.presets:
        descriptions = preset_descriptions()
        width = max(map(len, descriptions))
        echo(*(f"{name:{width}}  {description}" for name, description in descriptions.items()))
    elif args.schema:
        print(schema_text(), end="")
    else:
        config, origins = explain_config(args.show, args.overrides)
        values = flat(config.model_dump(mode="json"))
        command = shlex.join(["bitad", "config", "--show", args.show, *args.overrides])
        echo(
            f"# {command}",
            "# Relative paths are relative to the working directory.",
            *commented_yaml({key: (value, printable(origins[key])) for key, value in values.items()})
            .removesuffix("\n")
            .split("\n"),
        )
    return 0
