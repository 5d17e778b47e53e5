"""The commands ``annotations``, ``features`` and ``reverse``."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from bitad.cli.commands import (
    Commands,
    add_allow_clock_mismatch,
    add_config,
    add_device,
    add_on_decode_error,
    add_parser,
    print_failures,
)
from bitad.config.names import (
    AmbiguousPolicy,
    AnnotationFormat,
    DefectPolicy,
    FeatureDirection,
    FeaturePrecision,
    MissingPolicy,
    OutsidePolicy,
)
from bitad.data.formats.annotations import FORMATS
from bitad.runtime.log import echo, quoted, shortlist

if TYPE_CHECKING:
    from bitad.timeline import Direction
    from bitad.video.files import VideosReport


_MAX_REMARKS = 10
_CHECK_EXAMPLES = (
    "annotations check thumos_14_anno.json --videos raw_data",
    "annotations check data/for_thumos-14/annotations/thumos_14_anno.json"
    " --videos data/for_thumos-14/raw_data --reversed-videos data/back_thumos-14/raw_data",
    "annotations check TH14_annotations --video-info video_info.json",
)
_CONVERT_EXAMPLES = (
    "annotations convert TH14_annotations data --both-directions --videos data/for_thumos-14/raw_data",
    "annotations convert TH14_annotations thumos14.json --video-info video_info.json --outside clip",
    "annotations convert thumos_14_anno.json thumos14.json --to actionformer"
    " --ambiguous drop --subsets training=Validation,validation=Test",
    "annotations convert epic-kitchens-100-annotations verbs.json --from epic-kitchens-verb --class-list verbs.txt",
)


def add_annotations(commands: Commands) -> None:
    p = commands.add(
        "annotations",
        _check,
        "Check annotation files for defects, or convert them to another format.",
        *_CHECK_EXAMPLES,
        *_CONVERT_EXAMPLES,
    )
    actions = p.add_subparsers(dest="action", required=True, metavar="check|convert")
    width = max(map(len, FORMATS))
    formats = "\n".join(f"  {name:{width}}  {form.description}" for name, form in FORMATS.items())
    for name, add, summary, examples in (
        ("check", _add_check, "List every defect, by video.", _CHECK_EXAMPLES),
        ("convert", _add_convert, "Write ground truth in another format, and list the changes.", _CONVERT_EXAMPLES),
    ):
        add(add_parser(actions, name, summary, examples, notes=f"input formats (--from):\n{formats}\n\n"))


def _add_common(p: argparse.ArgumentParser) -> None:
    p.add_argument("src", type=Path, help="annotation file (.json, .json.gz, .csv), or a data set's annotation folder")
    p.add_argument(
        "--from",
        dest="form",
        choices=tuple(FORMATS),
        metavar="FORMAT",
        help="see below (default: auto-detected)",
    )
    p.add_argument("--classes", type=Path, help="class list, one name per line")
    # Before or after the action; the second parser must not reset what the first one read.
    p.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")


def _add_check(p: argparse.ArgumentParser) -> None:
    _add_common(p)
    p.add_argument("--videos", type=Path, help="folder that must contain every video")
    p.add_argument("--reversed-videos", type=Path, help="folder that must contain every time-reversed copy (slow)")
    p.add_argument(
        "--video-info",
        type=Path,
        help="JSON or CSV with durations (and subsets) of videos",
    )
    p.set_defaults(run=_check)


def _add_convert(p: argparse.ArgumentParser) -> None:
    _add_common(p)
    p.add_argument("dst", type=Path, help="output file (.json, .json.gz); with --both-directions, the data folder")
    p.add_argument("--to", choices=get_args(AnnotationFormat), default="native", help="output format (default: native)")
    p.add_argument(
        "--both-directions",
        action="store_true",
        help="write DST/for_NAME/annotations and, reversed, DST/back_NAME/annotations",
    )
    p.add_argument("--name", default="thumos-14", help="NAME of these folders (default: thumos-14)")
    known = p.add_mutually_exclusive_group()
    known.add_argument("--videos", type=Path, help="videos whose frames are counted (default: DST/for_NAME/raw_data)")
    known.add_argument(
        "--video-info",
        type=Path,
        help='instead of videos: JSON {"VIDEO": {"duration": s, "num_frame": n, "fps": f}}, or such a CSV',
    )
    p.add_argument("--subsets", default="", metavar="OLD=NEW,...", help="rename subsets (training=Validation,...)")
    p.add_argument("--class-list", type=Path, metavar="FILE", help="also write the class names, one per line")
    policies = (
        ("--outside", OutsidePolicy, "keep", "segments beyond the end of their video"),
        ("--backwards", DefectPolicy, "keep", "segments that do not start before they end"),
        ("--duplicates", DefectPolicy, "keep", "segments that occur twice"),
        ("--ambiguous", AmbiguousPolicy, "keep", "segments labelled Ambiguous, which belong to no class"),
        ("--missing", MissingPolicy, "error", "videos of unknown duration"),
    )
    for flag, choices, default, defect in policies:
        help_text = f"what to do with {defect} (default: {default})"
        p.add_argument(flag, choices=get_args(choices), default=default, help=help_text)
    p.add_argument("--all", action="store_true", help=f"list all changes, not the first {_MAX_REMARKS} of a kind")
    add_allow_clock_mismatch(p, "convert although the durations, frames or frame rates of a video disagree")
    p.set_defaults(run=_convert)


def _check(arguments: argparse.Namespace) -> int:
    from bitad.data.check import check_annotations
    from bitad.runtime.progress import progress_callback

    with progress_callback("checking videos") as on_progress:
        report = check_annotations(
            arguments.src,
            arguments.videos,
            reversed_dir=arguments.reversed_videos,
            format=arguments.form,
            video_info=arguments.video_info,
            classes=arguments.classes,
            on_progress=on_progress,
        )
    echo(f"{report.path}: {report.videos} videos, {report.segments} segments of {len(report.classes)} classes")
    echo("subsets: " + ", ".join(f"{name} {count}" for name, count in report.subsets.items()))
    for video, defects in report.by_video().items():
        for defect in defects:
            echo(f"{video}: {defect.kind}: {defect.detail}")
    for subset, count in report.without_truth.items():
        echo(f"subset {subset}: without ground truth: none of its {count} videos has a segment of a class")
    if report.unmeasured:
        echo(
            f"{report.unmeasured} videos have an unknown duration, so segments beyond their end are not found: "
            f"{report.why_unmeasured}"
        )
    count = len(report.defects) + len(report.without_truth)
    echo(f"{count} defects")
    return 1 if count else 0


def _convert(arguments: argparse.Namespace) -> int:
    from bitad.data.classes import class_list, write_classes
    from bitad.data.convert import Policy, convert_annotations, write_both_directions
    from bitad.data.formats.database import write_annotations
    from bitad.runtime.files import check_file, check_folder
    from bitad.runtime.progress import progress_callback

    if arguments.both_directions and arguments.to != "native":
        raise ValueError("--both-directions writes the native format; leave out --to")
    inputs = [path for path in (arguments.src, arguments.classes, arguments.video_info) if path is not None]
    if arguments.both_directions:
        check_folder(arguments.dst, "DST")
    else:
        check_file(arguments.dst, "DST", inputs)
    if arguments.class_list is not None:
        check_file(arguments.class_list, "--class-list", inputs)
        if arguments.class_list.resolve() == arguments.dst.resolve():
            raise ValueError(
                f"--class-list {arguments.class_list}: the annotations are written to this file; name another one"
            )
    with progress_callback("counting frames") as on_progress:
        converted = convert_annotations(
            arguments.src,
            format=arguments.form,
            classes=arguments.classes,
            videos=_videos(arguments),
            video_info=arguments.video_info,
            subsets=_renames(arguments.subsets),
            policy=Policy(arguments.outside, arguments.backwards, arguments.duplicates),
            missing=arguments.missing,
            undecided=arguments.ambiguous,
            allow_clock_mismatch=arguments.allow_clock_mismatch,
            on_progress=on_progress,
        )
    if arguments.class_list is not None:
        class_list(converted.annotations.classes)  # raises before anything is written
    if arguments.both_directions:
        written = write_both_directions(converted.annotations, arguments.dst, arguments.name)
    else:
        write_annotations(converted.annotations, arguments.dst, format=arguments.to)
        written = (arguments.dst,)
    if arguments.class_list is not None:
        write_classes(converted.annotations.classes, arguments.class_list)
        written = (*written, arguments.class_list)
    for line in converted.lines(None if arguments.all else _MAX_REMARKS):
        echo(line)
    unknown = [name for name, video in converted.annotations.videos.items() if math.isinf(video.duration_s)]
    if arguments.both_directions and unknown:
        names = shortlist(unknown, 2, quote=quoted)
        echo(f"only in the forward annotations, because a video without a duration cannot be reversed: {names}")
    echo("written: " + ", ".join(map(str, written)))
    return 0


def _videos(arguments: argparse.Namespace) -> Path | None:
    """The folder of videos; by default that of the forward videos in the research group's layout."""
    usual: Path = arguments.dst / f"for_{arguments.name}" / "raw_data"
    if arguments.videos is None and arguments.video_info is None and arguments.both_directions and usual.is_dir():
        return usual
    folder: Path | None = arguments.videos
    return folder


def _renames(text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    for old, _, new in pairs:
        if not (old and new):
            raise ValueError(f"--subsets {text} is not of the form OLD=NEW,..., as in training=Validation,...")
    renames = {old: new for old, _, new in pairs}
    if len(renames) < len(pairs):
        raise ValueError(f"--subsets {text} renames a subset twice; name each once")
    return renames


_ABOUT_FEATURES = """
With a VideoMAE file: sliding clips of 16 frames, one every 4 frames; a clip's tokens are averaged over space and time.
With a BiTAD run: the input of its pyramid, in windows of the run's length.

--direction reverse plays the frames backwards, which is not the same as flipping the features of forward playback.
Rows are in forward time in both directions. `both` decodes each video once and writes DIR/forward and DIR/reverse.

DIR holds NAME.npy [T, C] of every video, features.json, which describes them, and index/, with frame indices. Existing
features are kept if they are complete and match the current videos, so the same command resumes an interrupted one.
Also runs under torchrun -m bitad features. Videos in sub-folders are included; their names must be unique.
"""


def add_features(commands: Commands) -> None:
    p = commands.add(
        "features",
        _features,
        "Extract features of videos with a VideoMAE or a trained run's backbone, in forward or reverse playback.",
        "features raw_data --checkpoint vit-huge.pth --out features/h --half",
        "features one.mp4 two.mp4 --checkpoint package:playroom_backbone.safetensors --pixels 64 --out features/tiny",
        "features raw_data --checkpoint runs/thumos14-1-1-seed0 --direction both --out features/own",
    )
    p.description = f"{p.description}\n{_ABOUT_FEATURES.rstrip()}"
    p.add_argument("videos", nargs="+", type=Path, metavar="VIDEO", help="a video, or a folder of videos")
    p.add_argument("--checkpoint", type=Path, required=True, help="a VideoMAE file, a run, or a detector's file")
    add_config(p)
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="output folder")
    p.add_argument(
        "--direction",
        choices=get_args(FeatureDirection),
        help="playing direction (default: forward, or the run's)",
    )
    p.add_argument("--stride", type=int, metavar="FRAMES", help="frames per row (default: 4, or the run's)")
    p.add_argument("--clip-frames", type=int, metavar="FRAMES", help="frames of a clip; not for a run (default: 16)")
    p.add_argument("--pixels", type=int, help="height and width of the frames (default: 224, or the run's)")
    p.add_argument("--half", action="store_true", help="write half precision")
    p.add_argument("--precision", choices=get_args(FeaturePrecision), default="float32", help="default: float32")
    p.add_argument("--batch", type=int, default=8, metavar="CLIPS", help="clips at a time; not for a run (default: 8)")
    add_on_decode_error(p)
    add_device(p)


def _features(arguments: argparse.Namespace) -> int:
    from bitad.config.loading import load_config
    from bitad.inference.encoders import load_encoder
    from bitad.inference.extract import extract_features, feature_folders, find_videos
    from bitad.runtime.distributed import process_group
    from bitad.video.indexing import INDEX_FOLDER, IndexCache

    videos = find_videos(arguments.videos)
    encoder = load_encoder(
        arguments.checkpoint,
        config=None if arguments.config is None else load_config(arguments.config),
        stride_frames=arguments.stride,
        clip_frames=arguments.clip_frames,
        pixels=arguments.pixels,
        clips=arguments.batch,
    )
    asked: FeatureDirection | None = arguments.direction
    directions: tuple[Direction, ...] = ("forward", "reverse") if asked == "both" else (asked or encoder.direction,)
    folders = feature_folders(
        encoder,
        arguments.out,
        directions,
        precision=arguments.precision,
        stored="float16" if arguments.half else "float32",
    )
    with process_group(arguments.device) as ranks:
        cache = IndexCache(arguments.out / INDEX_FOLDER)
        report = extract_features(encoder, videos, folders, ranks, cache, damaged=arguments.on_decode_error)
        if ranks.is_main:
            echo(f"{len(report.done)} done, {len(report.kept)} kept from before, {len(report.failed)} failed")
            for folder in folders.values():
                echo(f"data.features={folder.path} {folder.settings.overrides()}")
            for name in report.again:
                echo(
                    f"bitad features: {name}: extracted again, because the video or its features have changed",
                    file=sys.stderr,
                )
            if report.unrecorded:
                echo(
                    f"bitad features: {_kept_by_earlier_version(report.unrecorded)}; remove their .npy files if the "
                    "videos were replaced since",
                    file=sys.stderr,
                )
            print_failures("features", report.failed)
    return 1 if report.failed else 0


def _kept_by_earlier_version(names: Sequence[str]) -> str:
    return (
        f"kept {len(names)} that do not record their source files, as an earlier version wrote them "
        f"({shortlist(names, 5)})"
    )


def add_reverse(commands: Commands) -> None:
    p = commands.add(
        "reverse",
        _reverse,
        "Make the time-reversed copy of a video, a folder of videos, or an annotation file.",
        "reverse data/for_thumos-14/raw_data data/back_thumos-14/raw_data --workers 4",
        "reverse forward.json reverse.json",
    )
    p.description = f"""{p.description}

The sub-folders of a folder are kept; the names of its videos must be unique. Existing copies are kept if they are
complete and match the current videos. Under torchrun -m bitad reverse, the processes share the videos of a folder."""
    p.add_argument("src", type=Path, help="a video, a folder of videos, or an annotation .json")
    p.add_argument("dst", type=Path, help="the output, of the same type as SRC")
    p.add_argument(
        "--workers",
        metavar="N",
        default="1",
        help="processes that reverse the videos of a folder; 0: none but this one (default: 1)",
    )
    add_on_decode_error(p)
    add_allow_clock_mismatch(p, "reverse annotations although duration, frame count and frame rate of a video disagree")


def _reverse(arguments: argparse.Namespace) -> int:
    from bitad.data.formats.database import reverse_annotation_file
    from bitad.runtime.files import check_file
    from bitad.runtime.progress import progress_callback
    from bitad.runtime.workers import worker_count
    from bitad.video.reverse import reverse_video

    src, dst = arguments.src, arguments.dst
    try:
        workers = worker_count(arguments.workers)
    except ValueError as error:
        raise ValueError(f"--workers: {error}") from None
    if src.is_dir():
        return _reverse_folder(arguments, workers)
    if int(os.environ.get("RANK", "0")):  # the first process of torchrun does this alone
        return 0
    check_file(dst, "DST")
    if src.name.lower().endswith((".csv", ".txt")):
        raise ValueError(
            f"{src}: only JSON annotations can be reversed; first run `bitad annotations convert {src} FILE.json`"
        )
    if src.name.lower().endswith((".json", ".json.gz")):
        warning = reverse_annotation_file(src, dst, allow_clock_mismatch=arguments.allow_clock_mismatch)
        if warning is not None:
            echo(warning, file=sys.stderr)
        return 0
    with progress_callback(f"reversing {src.name}") as on_progress:
        repeated = reverse_video(src, dst, damaged=arguments.on_decode_error, on_progress=on_progress)
    _print_repeated(src.name, repeated)
    return 0


def _reverse_folder(arguments: argparse.Namespace, workers: int) -> int:
    from bitad.runtime.progress import progress_callback
    from bitad.video.files import VideosReport
    from bitad.video.reverse import reverse_folder

    with ExitStack() as stack:
        rank, world, ranks = 0, 1, None
        if "RANK" in os.environ:  # only then is PyTorch needed
            from bitad.runtime.distributed import process_group

            ranks = stack.enter_context(process_group("cpu"))
            rank, world = ranks.rank, ranks.world
        on_progress = stack.enter_context(progress_callback("reversing videos")) if rank == 0 else None
        report = reverse_folder(
            arguments.src,
            arguments.dst,
            workers=workers,
            rank=rank,
            world=world,
            damaged=arguments.on_decode_error,
            on_progress=on_progress,
        )
        if ranks is not None:
            report = VideosReport.together(ranks.gather(report))
        if rank == 0:
            _print_report(report)
    return 1 if report.failed else 0


def _print_report(report: VideosReport) -> None:
    echo(f"{len(report.done)} reversed, {len(report.kept)} kept from before, {len(report.failed)} failed")
    for name in report.again:
        echo(f"bitad reverse: {name}: reversed again, because the video or its copy has changed", file=sys.stderr)
    if report.unrecorded:
        echo(
            f"bitad reverse: {_kept_by_earlier_version(report.unrecorded)}; samples of their frames match; remove them "
            "if the videos were replaced since",
            file=sys.stderr,
        )
    for name, count in report.repeated.items():
        _print_repeated(name, count)
    print_failures("reverse", report.failed)


def _print_repeated(name: str, count: int) -> None:
    if count:
        echo(f"{name}: {count} damaged frames, each replaced by the last good one")
