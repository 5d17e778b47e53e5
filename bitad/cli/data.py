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
    add_frame_rate,
    add_media,
    add_on_decode_error,
    add_parser,
    config_of,
    print_failures,
    print_written,
)
from bitad.config.names import (
    AmbiguousPolicy,
    DefectPolicy,
    FeatureDirection,
    FeaturePrecision,
    MissingPolicy,
    RowsOf,
)
from bitad.data.formats.annotations import FORMATS, WRITTEN
from bitad.runtime.log import echo, quoted, shortlist

if TYPE_CHECKING:
    from bitad.config.schema import Config
    from bitad.inference.encoders import Encoder
    from bitad.timeline import Direction
    from bitad.video.files import VideosReport


_MAX_REMARKS = 10
_CHECK_EXAMPLES = (
    "annotations check thumos_14_anno.json --videos raw_data",
    "annotations check TH14_annotations --video-info video_info.json",
    "annotations check my.csv --videos my_videos --page my_page",
    "annotations check my.json --features my_features",
)
_CONVERT_EXAMPLES = (
    "annotations convert TH14_annotations data --both-directions --videos data/for_thumos-14/raw_data",
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
        (
            "convert",
            _add_convert,
            "Write ground truth in another format, and list the changes.",
            _CONVERT_EXAMPLES,
        ),
    ):
        add(add_parser(actions, name, summary, examples, notes=f"input formats (--from):\n{formats}\n\n"))


def _add_common(p: argparse.ArgumentParser) -> None:
    p.add_argument("src", type=Path, help="annotation file, or a folder of those of a data set")
    p.add_argument(
        "--from",
        dest="form",
        choices=tuple(FORMATS),
        metavar="FORMAT",
        help="see below (default: auto-detected)",
    )
    p.add_argument("--classes", type=Path, help="class list, one name per line")
    add_frame_rate(p)
    # Before or after the action; the second parser must not reset what the first one read.
    p.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
    )


def _add_check(p: argparse.ArgumentParser) -> None:
    _add_common(p)
    p.add_argument("--videos", type=Path, help="folder that must contain every video")
    p.add_argument("--reversed-videos", type=Path, help="folder that must contain every time-reversed copy (slow)")
    p.add_argument(
        "--video-info",
        type=Path,
        help="JSON or CSV with durations (and subsets) of videos",
    )
    p.add_argument(
        "--features",
        type=Path,
        metavar="DIR",
        help="folder or .npz file that must contain sound features of every video, of the right length",
    )
    p.add_argument(
        "--page",
        type=Path,
        metavar="DIR",
        help="also write a page with the ground truth over the videos, the defects, and figures of lengths and gaps",
    )
    p.set_defaults(run=_check)


def _add_convert(p: argparse.ArgumentParser) -> None:
    _add_common(p)
    p.add_argument(
        "dst",
        type=Path,
        help="output file; a folder for formats with a file for each video, and with --both-directions",
    )
    p.add_argument(
        "--to",
        choices=WRITTEN,
        default="native",
        metavar="FORMAT",
        help=f"output format (default: native): {', '.join(WRITTEN)}",
    )
    add_media(p)
    p.add_argument(
        "--both-directions",
        action="store_true",
        help="write DST/for_NAME/annotations and, reversed, DST/back_NAME/annotations",
    )
    p.add_argument("--name", default="thumos-14", help="NAME of these folders (default: thumos-14)")
    known = p.add_mutually_exclusive_group()
    known.add_argument(
        "--videos", type=Path, help="videos whose frames are counted (default: DST/for_NAME/raw_data)"
    )
    known.add_argument(
        "--video-info",
        type=Path,
        help='instead of videos: JSON {"VIDEO": {"duration": s, "num_frame": n, "fps": f}}, or such a CSV',
    )
    p.add_argument("--subsets", default="", metavar="OLD=NEW,...", help="rename subsets (training=Validation,...)")
    p.add_argument("--class-list", type=Path, metavar="FILE", help="also write the class names, one per line")
    p.add_argument(
        "--defects",
        "--outside",  # its name in earlier versions
        choices=get_args(DefectPolicy),
        default="keep",
        help="what to do with segments that lie outside their video, do not start before they end, or occur twice; "
        "clip: cut the first at the video's edges, drop the others (default: keep)",
    )
    policies = (
        ("--ambiguous", AmbiguousPolicy, "keep", "segments labelled Ambiguous, which belong to no class"),
        ("--missing", MissingPolicy, "error", "videos of unknown duration"),
    )
    for flag, choices, default, defect in policies:
        help_text = f"what to do with {defect} (default: {default})"
        p.add_argument(flag, choices=get_args(choices), default=default, help=help_text)
    p.add_argument("--all", action="store_true", help=f"list all changes, not the first {_MAX_REMARKS} of a kind")
    add_allow_clock_mismatch(p, "convert although the clocks of a video disagree")
    p.set_defaults(run=_convert)


def _check(args: argparse.Namespace) -> int:
    from bitad.data.check import check_annotations
    from bitad.data.classes import alike
    from bitad.runtime.progress import progress_callback

    if args.page is not None:
        from bitad.reports.ground_truth import check_ground_truth_page, write_ground_truth_page

        check_ground_truth_page(args.page)
    with progress_callback("checking videos") as on_progress:
        report = check_annotations(
            args.src,
            args.videos,
            reversed_dir=args.reversed_videos,
            features=args.features,
            format=args.form,
            video_info=args.video_info,
            frame_rate=args.frame_rate,
            classes=args.classes,
            on_progress=on_progress,
        )
    videos, segments = sum(report.subsets.values()), sum(report.classes.values())
    echo(f"{report.path}: {videos} videos, {segments} segments of {len(report.classes)} classes")
    echo("subsets: " + ", ".join(f"{name} {count}" for name, count in report.subsets.items()))
    for video, defects in report.defects.items():
        for defect in defects:
            echo(f"{video}: {defect.kind}: {defect.detail}")
    for subset, count in report.without_truth.items():
        echo(f"subset {subset}: without ground truth: none of its {count} videos has a segment of a class")
    for names in alike(report.classes):
        echo(f"classes {shortlist(names, 3, quote=quoted)} have nearly the same name")
    if report.unmeasured:
        echo(report.unmeasured)
    if report.of_features:
        echo(*report.of_features)
    count = sum(map(len, report.defects.values())) + len(report.without_truth)
    echo(f"{count} defects")
    if args.page is not None:
        with progress_callback("writing the page") as on_progress:
            page = write_ground_truth_page(args.page, report, args.videos, on_progress=on_progress)
        echo(f"see {page}")
    return 1 if count else 0


def _convert(args: argparse.Namespace) -> int:
    from bitad.data.classes import class_list, write_classes
    from bitad.data.convert import convert_annotations, write_both_directions
    from bitad.data.formats.annotations import write_annotation_files
    from bitad.data.formats.writing import WriteOptions
    from bitad.runtime.files import check_file, check_folder
    from bitad.runtime.progress import progress_callback

    if args.both_directions and args.to != "native":
        raise ValueError("--both-directions writes the native format; leave out --to")
    inputs = (args.src, args.classes, args.video_info)
    if args.both_directions or not FORMATS[args.to].suffix:
        check_folder(args.dst, "DST")
    else:
        check_file(args.dst, "DST", inputs)
    if args.class_list is not None:
        check_file(args.class_list, "--class-list", inputs)
        if args.class_list.resolve() == args.dst.resolve():
            raise ValueError(f"--class-list {args.class_list} is also DST; name another file")
    videos, usual = args.videos, args.dst / f"for_{args.name}" / "raw_data"
    if args.both_directions and videos is None and args.video_info is None and usual.is_dir():
        videos = usual
    with progress_callback("counting frames") as on_progress:
        converted = convert_annotations(
            args.src,
            format=args.form,
            classes=args.classes,
            videos=videos,
            video_info=args.video_info,
            frame_rate=args.frame_rate,
            subsets=_renames(args.subsets),
            defects=args.defects,
            missing=args.missing,
            undecided=args.ambiguous,
            allow_clock_mismatch=args.allow_clock_mismatch,
            on_progress=on_progress,
        )
    if args.class_list is not None:
        class_list(converted.annotations.classes)  # raises before anything is written
    if args.both_directions:
        written = write_both_directions(converted.annotations, args.dst, args.name)
    else:
        options = WriteOptions(converted.frames, args.media)
        written = write_annotation_files(converted.annotations, args.dst, args.to, options)
    if args.class_list is not None:
        write_classes(converted.annotations.classes, args.class_list)
        written = (*written, args.class_list)
    for line in converted.lines(None if args.all else _MAX_REMARKS):
        echo(line)
    unknown = [name for name, video in converted.annotations.videos.items() if math.isinf(video.duration_s)]
    if args.both_directions and unknown:
        names = shortlist(unknown, 2, quote=quoted)
        echo(f"only in the forward annotations, as they have no duration: {names}")
    print_written(written, args.dst)
    return 0


def _renames(text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    renames = {old: new for old, _, new in pairs if old and new}
    if len(renames) < len(pairs):
        raise ValueError(f"--subsets {text}: give OLD=NEW,..., as in training=Validation, and each subset once")
    return renames


_ABOUT_FEATURES = """
With a VideoMAE file: clips of 16 frames, one every 4 frames, whose tokens are averaged over space and time.
With a BiTAD run: the input of its pyramid, in windows of the run's length.
With --encoder: clips of the model's length (VideoMAE, V-JEPA 2, ViViT, TimeSformer, X-CLIP) or single frames
(DINOv2, DINOv3, CLIP, SigLIP, ViT), scaled, cropped and normalised as the model's processor file states.

--direction reverse plays the frames backwards, which is not the same as flipping forward features. Rows
are in forward time. `both` decodes each video once and writes DIR/forward and DIR/reverse.

DIR holds NAME.npy [T, C] of every video, and features.json. Complete features of unchanged videos are
kept, so the same command resumes. Also runs under torchrun -m bitad features.
"""


def add_features(commands: Commands) -> None:
    p = commands.add(
        "features",
        _features,
        "Extract features of videos with a published encoder or a run's backbone, in forward or reverse playback.",
        "features raw_data --checkpoint vit-huge.pth --out features/h --half",
        "features one.mp4 two.mp4 --checkpoint package:playroom_backbone.safetensors --pixels 64 --out features/tiny",
        "features raw_data --checkpoint runs/thumos14-1-1-seed0 --direction both --out features/own",
        "features raw_data --encoder hf:facebook/vjepa2-vitl-fpc64-256 --direction both --out features/v",
    )
    p.description = f"{p.description}\n{_ABOUT_FEATURES.rstrip()}"
    p.add_argument("videos", nargs="+", type=Path, metavar="VIDEO", help="a video, or a folder of videos")
    weights = p.add_mutually_exclusive_group(required=True)
    weights.add_argument(
        "--checkpoint", type=Path, help="a VideoMAE file (hub:OWNER/NAME: downloaded), a run, or a detector's file"
    )
    weights.add_argument(
        "--encoder",
        metavar="MODEL",
        help="hf:OWNER/NAME[@REVISION] (downloaded) or a folder: a model of transformers; needs bitad[encoders]",
    )
    add_config(p)
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="output folder")
    p.add_argument(
        "--direction",
        choices=get_args(FeatureDirection),
        help="playing direction (default: forward, or the run's)",
    )
    p.add_argument("--stride", type=int, metavar="FRAMES", help="frames per row (default: 4, or the run's)")
    p.add_argument(
        "--clip-frames",
        type=int,
        metavar="FRAMES",
        help="frames of a clip; not for a run (default: 16, or the model's)",
    )
    p.add_argument(
        "--frame-step",
        type=int,
        metavar="FRAMES",
        help="with --encoder: from one frame of a clip to its next (default: 1)",
    )
    p.add_argument(
        "--rows", choices=get_args(RowsOf), help="with --encoder: a row of each clip or tubelet (default: clip)"
    )
    p.add_argument(
        "--pixels",
        type=int,
        help="height and width of the frames; not with --encoder (default: 224, or the run's)",
    )
    p.add_argument("--half", action="store_true", help="write half precision")
    p.add_argument("--precision", choices=get_args(FeaturePrecision), default="float32", help="default: float32")
    p.add_argument(
        "--batch", type=int, default=8, metavar="CLIPS", help="clips at a time; not for a run (default: 8)"
    )
    add_on_decode_error(p)
    add_device(p)


def _features(args: argparse.Namespace) -> int:
    if args.encoder is None:
        foreign, why = ("frame_step", "rows"), "is for --encoder; leave it out with --checkpoint"
    else:
        foreign, why = (
            ("config", "pixels"),
            "is not for --encoder, whose files state how it is built and what it sees",
        )
    for option in foreign:
        if getattr(args, option) is not None:
            raise ValueError(f"--{option.replace('_', '-')} {why}")
    config = config_of(args)
    from bitad.inference.extract import extract_features, feature_folders, find_videos
    from bitad.runtime.distributed import process_group
    from bitad.video.indexing import INDEX_FOLDER, IndexCache

    videos = find_videos(args.videos)
    encoder = _encoder(args, config)
    asked: FeatureDirection | None = args.direction
    directions: tuple[Direction, ...] = (
        ("forward", "reverse") if asked == "both" else (asked or encoder.directions[0],)
    )
    folders = feature_folders(
        encoder,
        args.out,
        directions,
        precision=args.precision,
        stored="float16" if args.half else "float32",
    )
    with process_group(args.device) as ranks:
        cache = IndexCache(args.out / INDEX_FOLDER)
        report = extract_features(encoder, videos, folders, ranks, cache, damaged=args.on_decode_error)
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


def _encoder(args: argparse.Namespace, config: Config | None) -> Encoder:
    if args.encoder is not None:
        from bitad.inference.published_encoders import load_published_encoder

        return load_published_encoder(
            args.encoder,
            stride_frames=args.stride,
            clip_frames=args.clip_frames,
            frame_step=1 if args.frame_step is None else args.frame_step,
            rows=args.rows or "clip",
            clips=args.batch,
        )
    from bitad.inference.encoders import load_encoder

    return load_encoder(
        args.checkpoint,
        config=config,
        stride_frames=args.stride,
        clip_frames=args.clip_frames,
        pixels=args.pixels,
        clips=args.batch,
    )


def _kept_by_earlier_version(names: Sequence[str]) -> str:
    return (
        f"kept {len(names)} of an earlier version, which do not record their source files ({shortlist(names, 5)})"
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

The names of videos must be unique. Complete copies of unchanged videos are kept. Under
torchrun -m bitad reverse, the processes share the videos of a folder."""
    p.add_argument("src", type=Path, help="a video, a folder of videos, or an annotation .json")
    p.add_argument("dst", type=Path, help="the output, of the same type as SRC")
    p.add_argument(
        "--workers",
        metavar="N",
        default="1",
        help="processes that reverse the videos of a folder; 0: none but this one (default: 1)",
    )
    add_on_decode_error(p)
    add_allow_clock_mismatch(p, "reverse annotations although the clocks of a video disagree")


def _reverse(args: argparse.Namespace) -> int:
    from bitad.data.formats.database import reverse_annotation_file
    from bitad.runtime.files import check_file
    from bitad.runtime.progress import progress_callback
    from bitad.runtime.workers import worker_count
    from bitad.video.reverse import reverse_video

    src, dst = args.src, args.dst
    workers = worker_count(args.workers)
    if src.is_dir():
        return _reverse_folder(args, workers)
    if int(os.environ.get("RANK", "0")):  # the first process of torchrun does this alone
        return 0
    check_file(dst, "DST")
    if src.name.lower().endswith((".csv", ".txt")):
        raise ValueError(
            f"{src}: only JSON annotations can be reversed; first run `bitad annotations convert {src} FILE.json`"
        )
    if src.name.lower().endswith((".json", ".json.gz")):
        warning = reverse_annotation_file(src, dst, allow_clock_mismatch=args.allow_clock_mismatch)
        if warning is not None:
            echo(warning, file=sys.stderr)
        return 0
    with progress_callback(f"reversing {src.name}") as on_progress:
        repeated = reverse_video(src, dst, damaged=args.on_decode_error, on_progress=on_progress)
    _print_repeated(src.name, repeated)
    return 0


def _reverse_folder(args: argparse.Namespace, workers: int) -> int:
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
            args.src,
            args.dst,
            workers=workers,
            rank=rank,
            world=world,
            damaged=args.on_decode_error,
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
