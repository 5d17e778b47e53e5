"""The commands ``annotations``, ``features`` and ``reverse``."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bitad.cli.commands import Commands, add_on_decode_error, some
from bitad.data.formats.annotations import FORMATS
from bitad.runtime.log import echo, quoted, shortlist

if TYPE_CHECKING:
    from bitad.timeline import Direction
    from bitad.video.reverse import ReverseReport


_MOST_REMARKS = 10
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
        "Check annotation files: what they hold and every defect, by video; or convert them into another form.",
        *_CHECK_EXAMPLES,
        *_CONVERT_EXAMPLES,
    )
    actions = p.add_subparsers(dest="action", required=True, metavar="check|convert")
    for name, add, says, examples in (
        ("check", _add_check, "Name every defect, by video.", _CHECK_EXAMPLES),
        (
            "convert",
            _add_convert,
            "Write ground truth in another form; says what it changed.",
            _CONVERT_EXAMPLES,
        ),
    ):
        action = actions.add_parser(
            name,
            help=says,
            description=says,
            epilog="\n".join([*_forms(), "", "examples:", *(f"  bitad {example}" for example in examples)]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add(action)


def _forms() -> list[str]:
    """The table of forms, for --help."""
    width = max(map(len, FORMATS))
    return ["forms read (--from):", *(f"  {name:{width}}  {form.description}" for name, form in FORMATS.items())]


def _add_common(p: argparse.ArgumentParser) -> None:
    p.add_argument("src", type=Path, help="annotation file (.json, .json.gz, .csv), or folder of a data set's files")
    p.add_argument(
        "--from",
        dest="form",
        choices=tuple(FORMATS),
        metavar="FORM",
        help="its form, listed below (auto-detected)",
    )
    p.add_argument("--classes", type=Path, help="class list, a name a line")
    # Before or after the action; the second parser must not undo what the first one read.
    p.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")


def _add_check(p: argparse.ArgumentParser) -> None:
    _add_common(p)
    p.add_argument("--videos", type=Path, help="folder that must have a video file for every video")
    p.add_argument(
        "--reversed-videos", type=Path, help="folder that must have the reverse playback of every video (slow: decodes)"
    )
    p.add_argument(
        "--video-info",
        type=Path,
        help="JSON or CSV of videos: durations (and subsets), to compare and for files that state none",
    )
    p.set_defaults(run=_check)


def _add_convert(p: argparse.ArgumentParser) -> None:
    _add_common(p)
    p.add_argument("dst", type=Path, help="file to write (.json, .json.gz); with --both-directions the data folder")
    p.add_argument("--to", choices=["native", "actionformer"], default="native", help="form to write (native)")
    p.add_argument(
        "--both-directions",
        action="store_true",
        help="write DST/for_NAME/annotations and DST/back_NAME/annotations, reversed, each with category_idx.txt",
    )
    p.add_argument("--name", default="thumos-14", help="NAME of those folders (thumos-14)")
    known = p.add_mutually_exclusive_group()
    known.add_argument("--videos", type=Path, help="folder of videos, to count the frames of (DST/for_NAME/raw_data)")
    known.add_argument(
        "--video-info",
        type=Path,
        help='instead of videos: JSON {"VIDEO": {"duration": s, "num_frame": n, "fps": f}}, or such a CSV',
    )
    p.add_argument("--subsets", default="", metavar="OLD=NEW,...", help="rename subsets (training=Validation,...)")
    p.add_argument("--class-list", type=Path, metavar="FILE", help="write the class names too, a name a line")
    kinds = (
        ("--outside", ["keep", "clip", "drop", "error"], "segments beyond their video"),
        ("--backwards", ["keep", "drop", "error"], "segments that do not start before their end"),
        ("--duplicates", ["keep", "drop", "error"], "segments that occur twice"),
        ("--ambiguous", ["keep", "drop"], "segments labelled Ambiguous, which are of no class"),
    )
    for flag, choices, what in kinds:
        p.add_argument(flag, choices=choices, default="keep", help=f"what to do with {what} (keep)")
    p.add_argument(
        "--missing",
        choices=["error", "drop"],
        default="error",
        help="what to do with videos of no known duration (error)",
    )
    p.add_argument("--all", action="store_true", help=f"list every remark, not the first {_MOST_REMARKS} of a kind")
    p.add_argument(
        "--allow-clock-mismatch",
        action="store_true",
        help="convert what states a video's time in ways that disagree (duration, frames, fps, segments in frames)",
    )
    p.set_defaults(run=_convert)


def _check(arguments: argparse.Namespace) -> int:
    from bitad.data.check import check_annotations
    from bitad.runtime.progress import progress_callback

    with progress_callback("looking at video files") as on_progress:
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
            f"{report.unmeasured} videos are of unknown duration, and segments beyond it are not noticed: "
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
        raise ValueError("--both-directions writes the native form; leave --to out")
    inputs = [path for path in (arguments.src, arguments.classes, arguments.video_info) if path is not None]
    if arguments.both_directions:
        check_folder(arguments.dst, "DST")
    else:
        check_file(arguments.dst, "DST", inputs)
    if arguments.class_list is not None:
        check_file(arguments.class_list, "--class-list", inputs)
        if arguments.class_list.resolve() == arguments.dst.resolve():
            raise ValueError(
                f"--class-list {arguments.class_list}: the annotations are written there; name another file"
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
        class_list(converted.annotations.classes)  # or nothing is written
    if arguments.both_directions:
        written = write_both_directions(converted.annotations, arguments.dst, arguments.name)
    else:
        write_annotations(converted.annotations, arguments.dst, format=arguments.to)
        written = (arguments.dst,)
    if arguments.class_list is not None:
        write_classes(converted.annotations.classes, arguments.class_list)
        written = (*written, arguments.class_list)
    for line in converted.lines(None if arguments.all else _MOST_REMARKS):
        echo(line)
    unknown = [name for name, video in converted.annotations.videos.items() if math.isinf(video.duration_s)]
    if arguments.both_directions and unknown:
        names = shortlist(unknown, 2, quote=quoted)
        echo(f"in the forward annotations only, as a video without a duration cannot be reversed: {names}")
    echo("written: " + ", ".join(map(str, written)))
    return 0


def _videos(arguments: argparse.Namespace) -> Path | None:
    """The folder of videos: in the research group's layout the place of the forward ones goes without saying."""
    usual: Path = arguments.dst / f"for_{arguments.name}" / "raw_data"
    if arguments.videos is None and arguments.video_info is None and arguments.both_directions and usual.is_dir():
        return usual
    folder: Path | None = arguments.videos
    return folder


def _renames(text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    for old, _, new in pairs:
        if not (old and new):
            raise ValueError(f"--subsets {text}: OLD=NEW,... is needed, as in training=Validation,validation=Test")
    renames = {old: new for old, _, new in pairs}
    if len(renames) < len(pairs):
        raise ValueError(f"--subsets {text}: a subset is renamed twice; name each once")
    return renames


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


def add_features(commands: Commands) -> None:
    p = commands.add(
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
    add_on_decode_error(p)
    p.add_argument("--device", help="cpu, cuda, cuda:1 (a GPU if there is one)")


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
    asked: Direction | Literal["both"] | None = arguments.direction
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
        report = extract_features(encoder, videos, folders, ranks, damaged=arguments.on_decode_error, cache=cache)
        if ranks.is_main:
            echo(f"{len(report.done)} done, {len(report.kept)} kept from before, {len(report.failed)} failed")
            for folder in folders.values():
                echo(f"data.features={folder.path} {folder.settings.overrides()}")
            for name in report.again:
                echo(f"bitad features: {name}: computed again, its video or its features have changed", file=sys.stderr)
            if report.unrecorded:
                echo(f"bitad features: {_said_unrecorded(report.unrecorded)}", file=sys.stderr)
            for name, reason in report.failed.items():
                echo(f"bitad features: error: {name}: {reason}", file=sys.stderr)
            sys.stdout.flush()  # torchrun ends all processes as soon as one of them has ended with status 1
    return 1 if report.failed else 0


def _said_features_unrecorded(names: Sequence[str]) -> str:
    return (
        f"{len(names)} kept of which features.json does not say from which files they were made, as an earlier version "
        f"wrote them ({some(names)}); remove their .npy files if the videos were replaced since"
    )


def add_reverse(commands: Commands) -> None:
    p = commands.add(
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
    add_on_decode_error(p)
    p.add_argument(
        "--allow-clock-mismatch",
        action="store_true",
        help="reverse annotations that state a video's time in ways that disagree (duration, frames, fps)",
    )


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
    if int(os.environ.get("RANK", "0")):  # torchrun's first process does it alone
        return 0
    check_file(dst, "DST")
    if src.name.lower().endswith((".csv", ".txt")):
        raise ValueError(f"{src}: of annotations, JSON is reversed: first `bitad annotations convert {src} FILE.json`")
    if src.name.lower().endswith((".json", ".json.gz")):
        said = reverse_annotation_file(src, dst, allow_clock_mismatch=arguments.allow_clock_mismatch)
        if said is not None:
            echo(said, file=sys.stderr)
        return 0
    with progress_callback(f"reversing {src.name}") as on_progress:
        done = reverse_video(src, dst, damaged=arguments.on_decode_error, on_progress=on_progress)
    _say_repeated(src.name, done.repeated)
    return 0


def _reverse_folder(arguments: argparse.Namespace, workers: int) -> int:
    from bitad.runtime.progress import progress_callback
    from bitad.video.reverse import ReverseReport, reverse_folder

    with ExitStack() as stack:
        rank, world, others = 0, 1, None
        if "RANK" in os.environ:  # only then is PyTorch needed
            from bitad.runtime.distributed import process_group

            others = stack.enter_context(process_group("cpu"))
            rank, world = others.rank, others.world
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
        if others is not None:
            report = ReverseReport.together(others.gather(report))
        if rank == 0:
            _say(report)
    return 1 if report.failed else 0


def _say(report: ReverseReport) -> None:
    echo(f"{len(report.done)} reversed, {len(report.skipped)} kept from before, {len(report.failed)} failed")
    for name in report.again:
        echo(f"bitad reverse: {name}: reversed again, the video or its reversed file has changed", file=sys.stderr)
    if report.unrecorded:
        echo(f"bitad reverse: {_said_unrecorded(report.unrecorded)}", file=sys.stderr)
    for name, reason in report.failed.items():
        echo(f"bitad reverse: error: {name}: {reason}", file=sys.stderr)
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
        echo(f"{name}: {count} damaged frames, the last good one in the place of each")
