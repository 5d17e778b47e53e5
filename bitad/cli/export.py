"""The command ``export``."""

from __future__ import annotations

import argparse
from pathlib import Path

from bitad.cli.commands import (
    Commands,
    add_frame_rate,
    add_media,
    parse_min_score,
    print_written,
)
from bitad.data.formats.annotations import FORMATS, WRITTEN
from bitad.runtime.log import echo

_ABOUT = """
Detections that are shown (--min-score) become segments to correct, with scores where the format has them.
Correct them, and convert the result back: bitad annotations convert (docs/annotating.md).
"""


def add_export(commands: Commands) -> None:
    p = commands.add(
        "export",
        _export,
        "Write detections for annotation tools, video players and tables.",
        "export found/detections.json --to label-studio --videos my_videos",
        "export found/detections.json --to webvtt --min-score 0.4 --out subtitles",
        "export found/detections.json --to native --out pseudo_labels.json",
    )
    width = max(map(len, WRITTEN))
    formats = "\n".join(f"  {name:{width}}  {FORMATS[name].description}" for name in WRITTEN)
    p.description = f"{p.description}\n{_ABOUT.rstrip()}"
    p.epilog = f"formats (--to):\n{formats}\n\n{p.epilog}"
    p.add_argument("source", type=Path, metavar="DETECTIONS", help="a detection file of BiTAD or another project")
    p.add_argument("--to", required=True, choices=WRITTEN, metavar="FORMAT", help="see below")
    p.add_argument(
        "--out",
        type=Path,
        help="output file, or a folder for formats with a file for each video (default: named after both, here)",
    )
    p.add_argument(
        "--min-score",
        type=parse_min_score,
        metavar="auto|SCORE",
        help="write detections with at least this score; auto: by class, the score of best F1 that the file states, "
        "or else 0.3 (default: auto)",
    )
    p.add_argument("--no-overlap", action="store_true", help="keep at most one label at a time")
    p.add_argument("--classes", type=Path, metavar="FILE", help="class names, for detections with numbers")
    known = p.add_mutually_exclusive_group()
    known.add_argument("--videos", type=Path, metavar="DIR", help="folder of the videos, to count their frames")
    known.add_argument("--video-info", type=Path, help="instead: JSON or CSV with their frame rates")
    add_frame_rate(p)
    add_media(p)


def _export(args: argparse.Namespace) -> int:
    from bitad.data.detections import read_detections
    from bitad.data.formats.annotations import write_annotation_files
    from bitad.data.formats.writing import WriteOptions
    from bitad.data.frame_clocks import FrameClocks
    from bitad.runtime.files import check_file, check_folder

    min_score = args.min_score
    if min_score is not None and not 0 <= min_score <= 1:
        raise ValueError(f"--min-score {min_score}: give auto, or a score from 0 to 1")
    suffix = FORMATS[args.to].suffix
    stem = Path(args.source.name.removesuffix(".gz")).stem
    out = args.out or Path(f"{stem}-{args.to}{suffix}")
    if suffix:
        check_file(out, inputs=(args.source, args.classes, args.video_info))
    else:
        check_folder(out)
    frames = FrameClocks.of(args.videos, args.video_info, args.frame_rate)
    found = read_detections(args.source, args.classes)
    scores = None if min_score is None else dict.fromkeys(found.classes, min_score)
    shown = found.shown(scores)
    if args.no_overlap:
        shown = shown.forward().without_overlap()
    annotations = shown.to_annotations()
    options = WriteOptions(frames.among(annotations.videos), args.media)
    written = write_annotation_files(annotations, out, args.to, options)
    of_file = "the score of best F1 of their class" if found.min_scores else "0.3, as the file states no scores"
    least = of_file if min_score is None else f"{min_score:g}"
    echo(f"{len(shown)} of {len(found)} detections in {len(found.videos)} videos, with at least {least}")
    print_written(written, out)
    return 0
