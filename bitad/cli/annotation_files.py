"""The verb that checks and converts ground truth."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from bitad.cli.verbs import Verbs
from bitad.data.annotation_forms import FORMS
from bitad.printing import say

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


def add_verbs(verbs: Verbs) -> None:
    p = verbs.add(
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
    width = max(map(len, FORMS))
    return ["forms read (--from):", *(f"  {name:{width}}  {form.says}" for name, form in FORMS.items())]


def _add_common(p: argparse.ArgumentParser) -> None:
    p.add_argument("src", type=Path, help="annotation file (.json, .json.gz, .csv), or folder of a data set's files")
    p.add_argument(
        "--from", dest="form", choices=tuple(FORMS), metavar="FORM", help="its form, listed below, where not recognised"
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
    from bitad.data.annotation_check import check_annotations
    from bitad.progress import following

    with following("looking at video files") as on_progress:
        report = check_annotations(
            arguments.src,
            arguments.videos,
            reversed_dir=arguments.reversed_videos,
            form=arguments.form,
            video_info=arguments.video_info,
            classes=arguments.classes,
            on_progress=on_progress,
        )
    say(f"{report.path}: {report.videos} videos, {report.segments} segments of {len(report.classes)} classes")
    say("subsets: " + ", ".join(f"{name} {count}" for name, count in report.subsets.items()))
    for video, defects in report.by_video().items():
        for defect in defects:
            say(f"{video}: {defect.kind}: {defect.detail}")
    for subset, count in report.without_truth.items():
        say(f"subset {subset}: without ground truth: none of its {count} videos has a segment of a class")
    if report.unmeasured:
        say(
            f"{report.unmeasured} videos are of unknown duration, and segments beyond it are not noticed: "
            f"{report.why_unmeasured}"
        )
    count = len(report.defects) + len(report.without_truth)
    say(f"{count} defects")
    return 1 if count else 0


def _convert(arguments: argparse.Namespace) -> int:
    from bitad.data.annotation_convert import class_list, convert_annotations, write_both_directions, write_classes
    from bitad.data.annotation_policy import Policy
    from bitad.data.annotations import write_annotations
    from bitad.outputs import check_file, check_folder
    from bitad.progress import following
    from bitad.video.names import listed

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
    with following("counting frames") as on_progress:
        converted = convert_annotations(
            arguments.src,
            form=arguments.form,
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
        write_annotations(converted.annotations, arguments.dst, form=arguments.to)
        written = (arguments.dst,)
    if arguments.class_list is not None:
        write_classes(converted.annotations.classes, arguments.class_list)
        written = (*written, arguments.class_list)
    for line in converted.lines(None if arguments.all else _MOST_REMARKS):
        say(line)
    unknown = [name for name, video in converted.annotations.videos.items() if math.isinf(video.duration_s)]
    if arguments.both_directions and unknown:
        say(f"in the forward annotations only, as a video without a duration cannot be reversed: {listed(unknown)}")
    say("written: " + ", ".join(map(str, written)))
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
