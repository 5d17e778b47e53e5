"""The commands ``merge``, ``evaluate``, ``diagnose`` and ``report``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from bitad.cli.commands import Commands, add_allow_clock_mismatch, add_device, add_json
from bitad.cli.metrics import (
    add_metric,
    add_metric_options,
    check_metric_options,
    json_of,
    measure,
)
from bitad.config.names import Bins, MergeMethod, Ties
from bitad.runtime.log import decode_argument, echo

if TYPE_CHECKING:
    from bitad.data.annotations import Annotations
    from bitad.data.detections import Detections
    from bitad.evaluation.diagnosis import Diagnosis
    from bitad.evaluation.ensembles import Ensemble
    from bitad.reports.tables import Table


_DEFAULT_TIOU = "0.3:0.7:0.1"
_MAX_THRESHOLDS = 1000  # more suggest a mistaken step


def add_commands(commands: Commands) -> None:
    p = commands.add(
        "merge",
        _merge,
        "Merge detection files (late fusion), for example of a forward and a reverse detector.",
        "merge forward.json reverse.json --out merged.json",
        "merge forward.json reverse_time.json --reverse-b --annotations gt.json --out merged.json",
        "merge seed0.json seed1.json result_detection.json --out merged.json --method mean",
    )
    p.add_argument("files", type=Path, nargs="+", metavar="FILE", help="detection files: A, B and more")
    p.add_argument("--out", type=Path, required=True, help="output file")
    p.add_argument(
        "--method", choices=get_args(MergeMethod), default="wsf", help="default: wsf, weighted segment fusion"
    )
    p.add_argument("--reverse-b", action="store_true", help="B is in reverse time but does not record it")
    p.add_argument("--annotations", type=Path, help="with --reverse-b: durations of the videos")
    _add_classes(p)
    _add_allow_clock_mismatch(p)

    p = commands.add(
        "evaluate",
        _evaluate,
        "Measure detection files: mAP, average recall, per-frame mAP, or F1@k and edit score.",
        "evaluate --ground-truth thumos14.json --detections found.json --subset Test",
        "evaluate --ground-truth thumos14.json --detections a.json b.json --subset Test --bootstrap 1000",
        "evaluate --ground-truth thumos14.json --detections found.json --subset Test --rule thumos-kit "
        "--ambiguous Ambiguous_test.txt",
        "evaluate --ground-truth thumos14.json --detections found.json --subset Test --metric ar --max-proposals 200",
        "evaluate --ground-truth multithumos.json --detections scores.npz --subset test --metric frame-map",
        "evaluate --ground-truth gtea.json --detections found.json --subset test --metric segmental",
    )
    add_metric(p)
    p.add_argument("--ground-truth", type=Path, required=True, help="annotation file")
    p.add_argument(
        "--detections",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="detection files of BiTAD or another project; for frame-map also per-frame scores: an .npz, or a folder, "
        "with an array [T, classes] for each video, in the order of --classes or of the annotations' classes",
    )
    _add_classes(p)
    p.add_argument("--class-agnostic", action="store_true", help="treat all segments as one class")
    p.add_argument("--subset", type=decode_argument, required=True, help="subset of the ground truth")
    add_metric_options(p)
    p.add_argument(
        "--ambiguous",
        type=Path,
        metavar="FILE",
        help="with --rule thumos-kit: Ambiguous_test.txt or annotations, if the ground truth has none",
    )
    _add_allow_clock_mismatch(p)
    p.add_argument("--per-class", action="store_true", help="also print the figures of each class")
    _add_bootstrap(p, "those of the first file", "the videos")
    add_json(p)

    _add_diagnose(commands)

    p = commands.add(
        "report",
        _report,
        "Compare runs: mean and spread over seeds, late fusion and its control, plots and a page.",
        "report runs",
        "report 'runs/my-*' --out report --copy-videos",
        "report runs/my-forward-seed0 runs/my-reverse-seed0 --sensitivity",
        "report runs --ensembles 2F F+B 4F 2F+2B --boundaries --bootstrap 1000",
    )
    p.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run directories, folders of them, or patterns in quotes"
    )
    p.add_argument("--sensitivity", action="store_true", help="also test F on reversed playback")
    p.add_argument(
        "--ensembles",
        nargs="+",
        type=decode_argument,
        metavar="NETWORKS",
        help="also fuse several single networks, of all combinations of seeds: 2F (two F), F+B, 2F+2B, ...; each is "
        "compared with the first of as many networks",
    )
    p.add_argument(
        "--method",
        choices=get_args(MergeMethod),
        help="with --ensembles: how they are merged (default: wsf, weighted segment fusion)",
    )
    p.add_argument(
        "--boundaries",
        action="store_true",
        help="also give the errors of the starts and the ends of matched segments",
    )
    _add_bootstrap(p, "those of --baseline", "the videos and seeds")
    p.add_argument(
        "--baseline",
        type=decode_argument,
        metavar="RESULT",
        help="with --bootstrap: the result in the table from which others differ (default: the first)",
    )
    add_device(p)
    p.add_argument("--out", type=Path, default=Path("report"), help="output folder (default: report)")
    p.add_argument("--videos", type=Path, metavar="DIR", help="folder of the videos (default: that of the runs)")
    p.add_argument(
        "--copy-videos",
        action="store_true",
        help="copy the eight videos with the lowest mAP beside the page, to be moved with it (default: link to all)",
    )


def _add_diagnose(commands: Commands) -> None:
    p = commands.add(
        "diagnose",
        _diagnose,
        "Name the errors of detections by kind, what each costs, and which segments are missed.",
        "diagnose runs/my-forward-seed0",
        "diagnose runs/my-forward-seed0 runs/my-reverse-seed0 merged.json --out diagnosis",
        "diagnose found.json --ground-truth thumos14.json --subset Test --bins thumos14",
    )
    p.add_argument(
        "results",
        nargs="+",
        type=Path,
        metavar="RUN|DETECTIONS",
        help="run directories, folders or patterns of them, and detection files; the first is compared with the others",
    )
    p.add_argument("--ground-truth", type=Path, help="annotation file (default: that of the runs)")
    p.add_argument("--subset", type=decode_argument, help="with --ground-truth: its subset, if it has several")
    _add_classes(p)
    p.add_argument(
        "--tiou",
        help=f"tIoU thresholds, as first:last:step or a,b,c (default: those of the runs, or {_DEFAULT_TIOU})",
    )
    p.add_argument(
        "--bins",
        choices=get_args(Bins),
        default="quantiles",
        help="of the segments' coverage, length and number: quantiles of the ground truth, or DETAD's for a data set "
        "(default: quantiles)",
    )
    p.add_argument(
        "--ties",
        choices=get_args(Ties),
        default="own",
        help="which of equally overlapping segments decides the kind of an error: one of the detection's own label, "
        "or as in DETAD the first of the file (default: own)",
    )
    p.add_argument(
        "--confusion-tiou",
        type=float,
        default=0.5,
        metavar="TIOU",
        help="from which a detection labels a segment, for the confusion matrix (default: 0.5)",
    )
    _add_allow_clock_mismatch(p)
    p.add_argument("--per-class", action="store_true", help="also print a row for each class")
    add_json(p)
    p.add_argument("--out", type=Path, metavar="DIR", help="also write tables, figures and a page to this folder")


def _add_classes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="class names, for detections with numbers: lines of NAME or NUMBER NAME, or annotations",
    )


def _add_allow_clock_mismatch(parser: argparse.ArgumentParser) -> None:
    add_allow_clock_mismatch(
        parser, "continue although detections and annotations disagree on the duration of a video"
    )


def _add_bootstrap(parser: argparse.ArgumentParser, baseline: str, drawn: str) -> None:
    parser.add_argument(
        "--bootstrap",
        type=int,
        metavar="N",
        help=f"also give 95 %% intervals of all figures, and of their differences to {baseline}, by N resamples of "
        f"{drawn}; 1000 is usual",
    )


def _merge(args: argparse.Namespace) -> int:
    from bitad.data.detections import alike, read_detections, write_detections
    from bitad.data.formats.database import read_annotations
    from bitad.library import merge
    from bitad.runtime.files import check_file

    if args.annotations and not args.reverse_b:
        raise ValueError("--annotations only applies with --reverse-b; add it, or leave out --annotations")
    files = args.files
    if len(files) < 2:
        raise ValueError(f"{files[0]} is the only file; merging needs at least two")
    check_file(args.out, inputs=(*files, args.annotations, args.classes))
    sets = [read_detections(path, args.classes) for path in files]
    annotations = None
    if args.annotations is not None:
        annotations = read_annotations(args.annotations).require_durations(args.annotations)
    sets = alike(sets, files, annotations.videos if annotations else ())
    if args.reverse_b:
        sets[1] = _in_reverse_time(sets[1], annotations, args)
    merged = merge(*sets, method=args.method, names=list(map(str, files)))
    write_detections(merged, args.out)
    return 0


def _in_reverse_time(
    detections: Detections, annotations: Annotations | None, args: argparse.Namespace
) -> Detections:
    from dataclasses import replace

    from bitad.library import compare_durations

    durations = detections.durations_s
    if annotations is not None:
        compare_durations(annotations, detections, args.files[1], allowed=args.allow_clock_mismatch)
        durations = {name: video.duration_s for name, video in annotations.videos.items()}
    if not durations:
        source = args.annotations or args.files[1]
        raise ValueError(
            f"--reverse-b needs the durations of the videos, and {source} has none; give their --annotations"
        )
    return replace(detections, basis="reverse", durations_s=durations)


def _evaluate(args: argparse.Namespace) -> int:
    from bitad.runtime.files import check_file, write_json

    check_metric_options(args)
    tiou = [] if args.tiou is None else _thresholds(args.tiou)  # fails before anything is read
    _check_bootstrap(args.bootstrap)
    files = args.detections
    if len(set(files)) < len(files):
        raise ValueError(f"--detections {' '.join(map(str, files))}: a file occurs twice; name each once")
    if args.json:
        check_file(args.json, "--json", (args.ground_truth, *files, args.classes, args.ambiguous))
    # Files of several runs have one name.
    is_distinct = len({path.name for path in files}) == len(files)
    named = {path.name if is_distinct else str(path): path for path in files}
    tables, content = _mean_ap(args, named, tiou) if args.metric == "map" else measure(args, named, tiou)
    print("\n\n".join(table.text() for table in tables))
    if args.json:
        write_json(content, args.json)
    return 0


def _mean_ap(
    args: argparse.Namespace, files: Mapping[str, Path], tiou: Sequence[float]
) -> tuple[list[Table], dict[str, Any]]:
    """The tables and the JSON of --metric map."""
    from bitad.data.detections import read_detections
    from bitad.data.formats.database import read_annotations
    from bitad.library import bootstrap, evaluate
    from bitad.reports.measure_tables import class_table, evaluation_table, paired_table

    # Keeps Ambiguous: ActivityNet's evaluator counts it as a class, and the kit expects it.
    annotations = read_annotations(args.ground_truth, ignore=())
    options = {
        "subset": args.subset,
        "tiou": tiou,
        "rule": args.rule,
        "ambiguous": args.ambiguous,
        "class_agnostic": args.class_agnostic,
        "allow_clock_mismatch": args.allow_clock_mismatch,
    }
    sets = {name: read_detections(path, args.classes) for name, path in files.items()}
    evaluations = {}
    for name, found in sets.items():
        evaluations[name] = evaluate(annotations, found, **options, sources=(args.ground_truth, files[name]))
    intervals = None
    if args.bootstrap is not None:
        every = list(sets.values())
        intervals = bootstrap(annotations, every, resamples=args.bootstrap, names=list(sets), **options)
    tables = [evaluation_table(evaluations, bootstrap=intervals)]
    if intervals is not None and intervals.differences:
        tables.append(paired_table(intervals))
    if args.per_class:
        tables.append(class_table(evaluations, bootstrap=intervals))
    content = json_of(evaluations)
    return tables, content if intervals is None else {**content, "bootstrap": intervals.to_json()}


def _check_bootstrap(resamples: int | None) -> None:
    from bitad.evaluation.bootstrap import check_resamples

    if resamples is None:
        return
    try:
        check_resamples(resamples)
    except ValueError as error:
        raise ValueError(f"--bootstrap: {error}") from None


def _diagnose(args: argparse.Namespace) -> int:
    from bitad.data.detections import read_detections
    from bitad.library import diagnose
    from bitad.reports.diagnosis_inputs import read_diagnosis_inputs
    from bitad.reports.page import check_page
    from bitad.runtime.files import check_file, check_folder, check_not_inputs, write_json

    thresholds = None if args.tiou is None else _thresholds(args.tiou)
    if not 0 < args.confusion_tiou <= 1:
        raise ValueError(f"--confusion-tiou {args.confusion_tiou:g}: give a number above 0 and at most 1")
    if args.subset is not None and args.ground_truth is None:
        raise ValueError("--subset only applies with --ground-truth; add it, or leave out --subset")
    if args.out:
        check_folder(args.out)
        check_page(args.out / "index.html")
    if args.json:
        check_file(args.json, "--json")
    inputs = read_diagnosis_inputs(args.results, args.ground_truth, args.subset)
    if args.classes is not None and all("" not in seeds for seeds in inputs.files.values()):
        raise ValueError("--classes only applies to detection files; name one, or leave out --classes")
    paths = [path for seeds in inputs.files.values() for path in seeds.values()]
    outputs = [args.json] if args.json else []
    outputs += [args.out / name for name in ("results.json", "results.md")] if args.out else []
    check_not_inputs(outputs, (*paths, args.ground_truth, args.classes))
    results: dict[str, dict[str, Diagnosis]] = {}
    for name, seeds in inputs.files.items():
        for seed, path in seeds.items():
            results.setdefault(name, {})[seed] = diagnose(
                inputs.truth,
                read_detections(path, args.classes if seed == "" else None),
                tiou=thresholds or inputs.tiou or _thresholds(_DEFAULT_TIOU),
                ties=args.ties,
                bins=args.bins,
                confusion_tiou=args.confusion_tiou,
                allow_clock_mismatch=args.allow_clock_mismatch,
                sources=(inputs.source, path),
            )
    from bitad.reports.diagnosis import diagnosis_json, diagnosis_tables, write_diagnosis

    print("\n\n".join(table.text() for table in diagnosis_tables(results, per_class=args.per_class)))
    if args.json:
        write_json(diagnosis_json(results), args.json)
    if args.out:
        echo("", f"see {write_diagnosis(args.out, results)}")
    return 0


def _report(args: argparse.Namespace) -> int:
    from bitad.reports.runs import find_runs

    runs = find_runs(args.runs)  # fails before PyTorch is loaded
    if args.videos is not None and not args.videos.is_dir():
        raise FileNotFoundError(f"--videos {args.videos}: no such folder of videos")
    _check_bootstrap(args.bootstrap)
    if args.baseline is not None and args.bootstrap is None:
        raise ValueError("--baseline only applies with --bootstrap; add it, or leave out --baseline")
    if args.method is not None and args.ensembles is None:
        raise ValueError("--method only applies with --ensembles; add it, or leave out --method")
    ensembles = _ensembles(args.ensembles or ())
    from bitad.reports.comparison import (
        check_ensembles_of,
        compare,
        sensitivity_of_runs,
        with_boundaries,
        with_ensembles,
    )
    from bitad.reports.comparison_page import write_comparison
    from bitad.reports.measure_tables import paired_table, sensitivity_table
    from bitad.reports.page import check_page
    from bitad.runtime.distributed import process_group
    from bitad.runtime.progress import progress_callback
    from bitad.training.checkpoints import lock_folder

    with process_group(args.device) as ranks, lock_folder(args.out, ranks):
        check_page(args.out / "index.html")
        check_ensembles_of(runs, ensembles)
        with progress_callback("evaluating") as on_progress:
            comparison = compare(runs, resamples=args.bootstrap, baseline=args.baseline, on_progress=on_progress)
        if ensembles:
            with progress_callback("fusing") as on_progress:
                comparison = with_ensembles(
                    comparison,
                    ensembles,
                    method=args.method or "wsf",
                    resamples=args.bootstrap,
                    on_progress=on_progress,
                )
        if args.boundaries:
            comparison = with_boundaries(comparison, resamples=args.bootstrap)
        sensitivity = sensitivity_of_runs(comparison, ranks) if args.sensitivity else None
        if not ranks.is_main:
            return 0
        page = write_comparison(args.out, comparison, sensitivity, videos=args.videos, copy=args.copy_videos)
    print(comparison.table().text())
    if comparison.bootstrap is not None and comparison.bootstrap.differences:
        print("\n" + paired_table(comparison.bootstrap).text())
    if (losses := comparison.loss_table()).rows:
        print("\n" + losses.text())
    if comparison.ensembles is not None:
        print("\n" + comparison.ensembles.table().text())
    if comparison.boundaries is not None:
        print("".join(f"\n{table.text()}\n" for table in comparison.boundaries.tables()), end="")
    if sensitivity is not None:
        print("\n" + sensitivity_table(sensitivity, reversals=comparison.reversals).text())
    echo("", f"see {page}")
    return 0


def _ensembles(texts: Sequence[str]) -> list[Ensemble]:
    from bitad.evaluation.ensembles import Ensemble

    try:
        return [Ensemble.parse(text) for text in texts]
    except ValueError as error:
        raise ValueError(f"--ensembles: {error}") from None


def _thresholds(text: str) -> list[float]:
    """``0.3:0.7:0.1`` or ``0.5,0.75`` -> thresholds; a range includes its end if a step reaches it."""
    try:
        numbers = [float(part) for part in text.split(":" if ":" in text else ",")]
        if ":" in text:
            first, last, step = numbers
            # A sum of floating-point steps may end slightly beyond the last threshold.
            count = 1 + math.floor((last - first) / step + 1e-6)
            numbers = [round(first + i * step, 6) for i in range(min(count, _MAX_THRESHOLDS + 1))]
    except (ValueError, ArithmeticError):
        numbers = []
    is_distinct = 0 < len(numbers) == len(set(numbers)) <= _MAX_THRESHOLDS
    if not is_distinct or not all(0 < number <= 1 for number in numbers):
        raise ValueError(
            f"--tiou {text}: give first:last:step or a,b,c, at most {_MAX_THRESHOLDS:,} different numbers, "
            "each above 0 and at most 1"
        )
    return numbers
