"""The commands ``merge``, ``evaluate`` and ``report``."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from bitad.cli.commands import Commands
from bitad.config.names import MapRule, MergeMethod
from bitad.runtime.log import decode_argument, echo

if TYPE_CHECKING:
    from bitad.data.annotations import Annotations
    from bitad.data.detections import Detections


# More thresholds than anybody averages over: a step was meant to be larger.
_MOST_THRESHOLDS = 1000


def add_commands(commands: Commands) -> None:
    p = commands.add(
        "merge",
        _merge,
        "Late fusion of detection files, of a forward and a reverse detector for example.",
        "merge forward.json reverse.json --out merged.json --method wsf",
        "merge forward.json reverse_time.json --reverse-b --annotations gt.json --out merged.json",
        "merge seed0.json seed1.json result_detection.json --out merged.json --method mean",
    )
    p.add_argument("files", type=Path, nargs="+", metavar="FILE", help="detection files: A, B and more")
    p.add_argument("--out", type=Path, required=True, help="detection file to write")
    p.add_argument("--method", choices=get_args(MergeMethod), default="soft-nms", help="(soft-nms)")
    p.add_argument("--reverse-b", action="store_true", help="B is in reverse time and does not say so")
    p.add_argument("--annotations", type=Path, help="with the durations by which B is reversed")
    _add_classes(p)
    _add_allow(p)

    p = commands.add(
        "evaluate",
        _evaluate,
        "Average mAP of a detection file, by ActivityNet's rule or the THUMOS'14 kit's.",
        "evaluate --ground-truth thumos14.json --detections found.json --subset Test",
        "evaluate --ground-truth thumos14.json --detections found.json --subset Test --rule thumos-kit "
        "--ambiguous Ambiguous_test.txt",
    )
    p.add_argument("--ground-truth", type=Path, required=True, help="annotation file")
    p.add_argument("--detections", type=Path, required=True, help="detection file, of BiTAD or another project")
    _add_classes(p)
    p.add_argument(
        "--class-agnostic",
        action="store_true",
        help="measure when something happens, not what: all segments are of one class",
    )
    p.add_argument("--subset", type=decode_argument, required=True, help="of the ground truth, as written there")
    p.add_argument("--tiou", default="0.3:0.7:0.1", help="thresholds first:last:step, or a,b,c (0.3:0.7:0.1)")
    p.add_argument("--rule", choices=get_args(MapRule), default="activitynet", help="(activitynet)")
    p.add_argument(
        "--ambiguous",
        type=Path,
        metavar="FILE",
        help="with --rule thumos-kit: the official Ambiguous_test.txt, or an annotation file that has such segments, "
        "where the ground truth has none",
    )
    _add_allow(p)
    p.add_argument("--per-class", action="store_true", help="also the AP of each class")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")

    p = commands.add(
        "report",
        _report,
        "Compare runs: one table (mean and spread over seeds), late fusion and its control, plots and a page.",
        "report runs/*-seed* --out report",
        "report runs/my-forward-seed0 runs/my-reverse-seed0 --sensitivity",
    )
    p.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    p.add_argument(
        "--sensitivity", action="store_true", help="also test F on reversed playback: what becomes of classes"
    )
    p.add_argument("--device", help="of these tests: cpu, cuda, cuda:1 (a GPU if there is one)")
    p.add_argument("--out", type=Path, default=Path("report"), help="folder to write to (report)")


def _add_classes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="names the classes of detections that state numbers: a name a line, or NUMBER NAME, or annotations with "
        "label_id",
    )


def _add_allow(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-clock-mismatch",
        action="store_true",
        help="continue where detections and annotations state different durations of a video",
    )


def _merge(arguments: argparse.Namespace) -> int:
    from bitad.data.detections import alike, read_detections, write_detections
    from bitad.data.formats.database import read_annotations
    from bitad.library import merge
    from bitad.runtime.files import check_file

    if arguments.annotations and not arguments.reverse_b:
        raise ValueError("--annotations is only for reversing B; add --reverse-b, or leave it out")
    files = arguments.files
    if len(files) < 2:
        raise ValueError(f"{files[0]}: one file is nothing to merge; name at least two")
    check_file(arguments.out, inputs=_given(*files, arguments.annotations, arguments.classes))
    sets = [read_detections(path, arguments.classes) for path in files]
    annotations = None
    if arguments.annotations is not None:
        annotations = read_annotations(arguments.annotations).require_durations(arguments.annotations)
    sets = alike(sets, files, annotations.videos if annotations else ())
    if arguments.reverse_b:
        sets[1] = _said_to_be_reversed(sets[1], annotations, arguments)
    merged = merge(*sets, method=arguments.method, names=list(map(str, files)))
    write_detections(merged, arguments.out)
    return 0


def _said_to_be_reversed(
    detections: Detections, annotations: Annotations | None, arguments: argparse.Namespace
) -> Detections:
    from dataclasses import replace

    from bitad.library import compare_durations

    durations = detections.durations_s
    if annotations is not None:
        compare_durations(annotations, detections, arguments.files[1], allowed=arguments.allow_clock_mismatch)
        durations = {name: video.duration_s for name, video in annotations.videos.items()}
    if not durations:
        source = arguments.annotations or arguments.files[1]
        raise ValueError(f"--reverse-b needs the videos' durations, and {source} has none; name their --annotations")
    return replace(detections, basis="reverse", durations_s=durations)


def _evaluate(arguments: argparse.Namespace) -> int:
    from bitad.data.detections import read_detections
    from bitad.data.formats.database import read_annotations
    from bitad.library import evaluate
    from bitad.reports.tables import class_table, evaluation_table
    from bitad.runtime.files import check_file

    if arguments.ambiguous and arguments.rule != "thumos-kit":
        raise ValueError("--ambiguous is only for the kit's rule; add --rule thumos-kit, or leave it out")
    if arguments.class_agnostic and arguments.rule != "activitynet":
        raise ValueError(f"--class-agnostic is only for ActivityNet's rule; leave out --rule {arguments.rule}")
    tiou = _thresholds(arguments.tiou)  # before anything is read
    if arguments.json:
        inputs = _given(arguments.ground_truth, arguments.detections, arguments.classes, arguments.ambiguous)
        check_file(arguments.json, "--json", inputs)
    # Ambiguous too: the evaluator of ActivityNet counts every label of the file as a class, the kit knows that one.
    annotations = read_annotations(arguments.ground_truth, ignore=())
    evaluation = evaluate(
        annotations,
        read_detections(arguments.detections, arguments.classes),
        subset=arguments.subset,
        tiou=tiou,
        rule=arguments.rule,
        ambiguous=arguments.ambiguous,
        class_agnostic=arguments.class_agnostic,
        allow_clock_mismatch=arguments.allow_clock_mismatch,
        sources=(arguments.ground_truth, arguments.detections),
    )
    print(evaluation_table({arguments.detections.name: evaluation}).text())
    if arguments.per_class:
        print("\n" + class_table({arguments.detections.name: evaluation}).text())
    if arguments.json:
        evaluation.to_json(arguments.json)
    return 0


def _given(*paths: Path | None) -> list[Path]:
    return [path for path in paths if path is not None]


def _report(arguments: argparse.Namespace) -> int:
    from bitad.reports.comparison import compare
    from bitad.reports.comparison_page import sensitivity_of_runs, write_comparison
    from bitad.reports.page import check_page
    from bitad.reports.tables import sensitivity_table
    from bitad.runtime.distributed import process_group
    from bitad.runtime.progress import progress_callback
    from bitad.training.checkpoints import lock_folder

    with process_group(arguments.device) as ranks, lock_folder(arguments.out, ranks):
        check_page(arguments.out / "index.html")
        with progress_callback("evaluating") as on_progress:
            comparison = compare(arguments.runs, on_progress=on_progress)
        sensitive = sensitivity_of_runs(comparison, ranks) if arguments.sensitivity else None
        if not ranks.is_main:
            return 0
        page = write_comparison(arguments.out, comparison, sensitive)
    print(comparison.table().text())
    if (losses := comparison.loss_table()).rows:
        print("\n" + losses.text())
    if sensitive is not None:
        print("\n" + sensitivity_table(sensitive).text())
    echo("", f"see {page}")
    return 0


def _thresholds(text: str) -> list[float]:
    """``0.3:0.7:0.1`` or ``0.5,0.75`` -> thresholds; a range ends at the last one that is not beyond its end."""
    try:
        numbers = [float(part) for part in text.split(":" if ":" in text else ",")]
    except ValueError:
        numbers = []
    if not numbers or not all(map(math.isfinite, numbers)) or (":" in text and len(numbers) != 3):
        raise ValueError(f"--tiou {text} is neither first:last:step nor a list a,b,c of numbers")
    if ":" in text:
        first, last, step = numbers
        if step <= 0 or last < first:
            raise ValueError(
                f"--tiou {text}: first:last:step needs a step above 0 and a last threshold not below first"
            )
        if (last - first) / step >= _MOST_THRESHOLDS:
            raise ValueError(f"--tiou {text}: more than {_MOST_THRESHOLDS} thresholds; take a larger step")
        # A sum of floating-point steps may be a little beyond the end that it should reach.
        count = 1 + math.floor((last - first) / step + 1e-6)
        numbers = [round(first + i * step, 6) for i in range(count)]
    for number in numbers:
        if not 0 < number <= 1:
            raise ValueError(f"--tiou {text}: threshold {number:g} is not above 0 and at most 1")
        if numbers.count(number) > 1:
            raise ValueError(f"--tiou {text}: threshold {number:g} occurs twice; name it once")
    return numbers
