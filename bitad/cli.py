"""The command line: one function a verb, each a few lines over the code that does the work.

Nothing heavy is imported before it is known which verb runs: `bitad evaluate` never loads torch.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import bitad

if TYPE_CHECKING:
    from bitad.data.detections import Detections

Run = Callable[[argparse.Namespace], int]
FUSIONS = ("soft-nms", "mean", "product", "wsf")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status: 0 done, 1 a failure with one line that says what, 2 wrong usage."""
    parsed = _parse(arguments)
    run: Run = parsed.run
    if threading.current_thread() is threading.main_thread():
        # Being terminated is being interrupted: what a verb has begun (processes, temporary files) it ends.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run(parsed)
    except KeyboardInterrupt:
        print(f"bitad {parsed.verb}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if parsed.debug:
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        foreseen = isinstance(error, (ValueError, OSError))
        hint = "" if foreseen else f" ({type(error).__name__}; --debug shows the traceback)"
        print(f"bitad {parsed.verb}: error: {message}{hint}", file=sys.stderr)
        return 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed arguments; wrong usage ends the program with status 2."""
    parser = build_parser()
    parsed, rest = parser.parse_known_args(arguments)
    # argparse wants a list of positional arguments in one piece; changes to a configuration may follow options too.
    late = [argument for argument in rest if "overrides" in parsed and not argument.startswith("-")]
    if len(late) < len(rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if late:
        parsed.overrides = [*parsed.overrides, *late]
    return parsed


class _Verbs:
    """Adds verbs to the parser, each with what all verbs have."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def add(self, name: str, run: Run, says: str, *examples: str) -> argparse.ArgumentParser:
        parser = self.parsers.add_parser(
            name,
            help=says,
            description=says,
            epilog="\n".join(["examples:", *(f"  bitad {example}" for example in examples)]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        parser.set_defaults(run=run)
        return parser


def build_parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    parser = argparse.ArgumentParser(
        prog="bitad", description="Bidirectional temporal action detection: what happens when in a video."
    )
    parser.add_argument("--version", action="version", version=f"bitad {bitad.__version__}")
    verbs = _Verbs(parser)
    _add_data_verbs(verbs)
    _add_network_verbs(verbs)
    _add_result_verbs(verbs)
    return parser


def _add_data_verbs(verbs: _Verbs) -> None:
    p = verbs.add(
        "demo",
        _demo,
        "Render a data set, train on it forwards and backwards, compare and report: no data, GPU or download needed.",
        "demo",
        "demo --smoke --out smoke",
        "demo --full --results docs/results-playroom.md",
    )
    p.add_argument("--out", type=Path, default=Path("playroom-demo"), help="folder to write to (playroom-demo)")
    size = p.add_mutually_exclusive_group()
    size.add_argument("--smoke", action="store_true", help="a quick run of everything; its figures mean nothing")
    size.add_argument("--full", action="store_true", help="every experiment, ablation and control: hours on two cores")
    p.add_argument("--results", type=Path, help="where --full writes its tables (OUT/results-playroom.md)")
    p.add_argument("--seed", type=int, default=0, help="of data and training (0)")

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

    p = verbs.add(
        "annotations",
        _annotations,
        "Check an annotation file: what it holds and every defect, by video.",
        "annotations check thumos_14_anno.json --videos raw_data",
    )
    p.add_argument("action", choices=["check"])
    p.add_argument("src", type=Path, help="annotation file, .json or .json.gz")
    p.add_argument("--videos", type=Path, help="folder that must have a video file for every video")
    p.add_argument("--classes", type=Path, help="class list, a name a line")


def _add_network_verbs(verbs: _Verbs) -> None:
    p = verbs.add(
        "train",
        _train,
        "Train a detector; also under torchrun -m bitad train.",
        "train playroom direction=reverse training.epochs=20",
        "train my.yaml --resume",
    )
    p.add_argument("config", help="a YAML file, or the name of a preset")
    p.add_argument("overrides", nargs="*", metavar="key.sub=value", help="changes to the configuration")
    p.add_argument("--resume", action="store_true", help="go on from the run's last.pt")
    p.add_argument("--until", type=int, metavar="EPOCH", help="stop after this epoch, to be resumed later")
    p.add_argument("--device", help="cpu, cuda, cuda:1 (a GPU if there is one)")

    p = verbs.add(
        "test",
        _test,
        "Test a trained run: detections in forward and in reverse time, and their mAP.",
        "test runs/playroom-forward-seed0",
        "test best.pt data.test_subset=test test.nms.sigma=0.5 --out results",
    )
    p.add_argument("run_or_checkpoint", type=Path, help="a run directory or a .pt file")
    p.add_argument("overrides", nargs="*", metavar="key.sub=value", help="changes to the configuration")
    p.add_argument("--out", type=Path, help="folder to write to (RUN/test)")
    p.add_argument("--device", help="cpu, cuda, cuda:1 (a GPU if there is one)")

    p = verbs.add(
        "detect",
        _detect,
        "Detect actions in videos of any length: JSON, subtitles and a page.",
        "detect holiday.mp4 --checkpoint runs/playroom-forward-seed0 --out found",
    )
    p.add_argument("videos", nargs="+", type=Path, metavar="VIDEO")
    p.add_argument("--checkpoint", type=Path, required=True, help="a run directory or a .pt file")
    p.add_argument("--out", type=Path, default=Path("detections"), help="folder to write to (detections)")
    p.add_argument("--min-score", type=float, default=0.3, help="of subtitles, and at first on the page (0.3)")
    p.add_argument("--device", help="cpu, cuda, cuda:1 (a GPU if there is one)")


def _add_result_verbs(verbs: _Verbs) -> None:
    p = verbs.add(
        "merge",
        _merge,
        "Late fusion of two detection files, of a forward and a reverse detector say.",
        "merge forward.json reverse.json --out merged.json --method wsf",
        "merge forward.json reverse_time.json --reverse-b --annotations gt.json --out merged.json",
    )
    p.add_argument("a", type=Path, help="detection file")
    p.add_argument("b", type=Path, help="detection file")
    p.add_argument("--out", type=Path, required=True, help="detection file to write")
    p.add_argument("--method", choices=FUSIONS, default="soft-nms", help="(soft-nms)")
    p.add_argument("--reverse-b", action="store_true", help="B is in reverse time and does not say so")
    p.add_argument("--annotations", type=Path, help="with the durations by which B is turned round")

    p = verbs.add(
        "evaluate",
        _evaluate,
        "Average mAP of a detection file (ActivityNet's rule).",
        "evaluate --ground-truth thumos14.json --detections found.json --subset Test",
    )
    p.add_argument("--ground-truth", type=Path, required=True, help="annotation file")
    p.add_argument("--detections", type=Path, required=True, help="detection file")
    p.add_argument("--subset", required=True, help="of the ground truth, as written there")
    p.add_argument("--tiou", default="0.3:0.7:0.1", help="thresholds first:last:step, or a,b,c (0.3:0.7:0.1)")
    p.add_argument("--per-class", action="store_true", help="also the AP of each class")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")

    p = verbs.add(
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


def _demo(arguments: argparse.Namespace) -> int:
    from bitad.demo import DEFAULT, FULL, SMOKE, run_demo

    if arguments.results and not arguments.full:
        raise ValueError("--results is where --full writes its tables; add --full, or leave it out")
    scale = SMOKE if arguments.smoke else FULL if arguments.full else DEFAULT
    run_demo(arguments.out, scale=scale, seed=arguments.seed, results_file=arguments.results)
    return 0


def _reverse(arguments: argparse.Namespace) -> int:
    from bitad.data.annotations import reverse_annotation_file
    from bitad.data.reverse import reverse_folder, reverse_video
    from bitad.progress import following

    src, dst = arguments.src, arguments.dst
    if src.name.endswith((".json", ".json.gz")):
        reverse_annotation_file(src, dst)
        return 0
    if not src.is_dir():
        with following(f"reversing {src.name}") as on_progress:
            reverse_video(src, dst, on_progress=on_progress)
        return 0
    with following("reversing videos") as on_progress:
        report = reverse_folder(src, dst, workers=arguments.workers, on_progress=on_progress)
    print(f"{len(report.done)} reversed, {len(report.skipped)} kept from before, {len(report.failed)} failed")
    for name, reason in report.failed.items():
        print(f"bitad reverse: error: {name}: {reason}", file=sys.stderr)
    return 1 if report.failed else 0


def _annotations(arguments: argparse.Namespace) -> int:
    from bitad.data.annotation_check import check_annotations

    report = check_annotations(arguments.src, arguments.videos, classes=arguments.classes)
    print(f"{report.path}: {report.videos} videos, {report.segments} segments of {len(report.classes)} classes")
    print("subsets: " + ", ".join(f"{name} {count}" for name, count in report.subsets.items()))
    for video, defects in report.by_video().items():
        for defect in defects:
            print(f"{video}: {defect.kind}: {defect.detail}")
    print(f"{len(report.defects)} defects")
    return 1 if report.defects else 0


def _train(arguments: argparse.Namespace) -> int:
    from bitad.config import load_config
    from bitad.training.distributed import processes
    from bitad.training.environment import set_threads, set_up_logging
    from bitad.training.trainer import Trainer

    config = load_config(arguments.config, arguments.overrides)
    set_threads(config.threads)
    with processes(arguments.device) as team:
        trainer = Trainer(config, team, resume=arguments.resume)
        set_up_logging(config.run_directory, show=team.is_main)
        best = trainer.run(until=arguments.until)
        if team.is_main:
            print(f"{config.run_directory}: best average mAP {100 * best:.2f}" if best >= 0 else config.run_directory)
    return 0


def _test(arguments: argparse.Namespace) -> int:
    from bitad.inference.testing import run_test
    from bitad.reports.tables import evaluation_table
    from bitad.training.checkpoint import load_checkpoint
    from bitad.training.distributed import processes
    from bitad.training.environment import set_threads

    checkpoint = load_checkpoint(arguments.run_or_checkpoint).changed(arguments.overrides)
    set_threads(checkpoint.config.threads)
    place = arguments.run_or_checkpoint
    out = arguments.out or (place if place.is_dir() else place.parent) / "test"
    with processes(arguments.device) as team:
        evaluations = run_test(checkpoint, out, team)
        if team.is_main:
            print(evaluation_table(evaluations, title=f"{place}: mAP (%)").text())
    return 0


def _detect(arguments: argparse.Namespace) -> int:
    from bitad.inference.detect import detect_videos
    from bitad.reports.detections import write_detection_report
    from bitad.training.checkpoint import load_checkpoint
    from bitad.training.distributed import processes

    checkpoint = load_checkpoint(arguments.checkpoint)
    with processes(arguments.device) as team:
        detections = detect_videos(checkpoint, arguments.videos, team)
        if team.is_main:
            page = write_detection_report(arguments.out, detections, arguments.videos, min_score=arguments.min_score)
            count = int((detections.scores >= arguments.min_score).sum())
            print(f"{count} detections with a score of at least {arguments.min_score}; see {page}")
    return 0


def _merge(arguments: argparse.Namespace) -> int:
    from bitad.data.detections import read_detections, write_detections
    from bitad.inference.merge import merge

    if arguments.annotations and not arguments.reverse_b:
        raise ValueError("--annotations is only for turning B round; add --reverse-b, or leave it out")
    a, b = read_detections(arguments.a), read_detections(arguments.b)
    if arguments.reverse_b:
        b = _said_to_be_reversed(b, arguments.annotations)
    write_detections(merge(a.forward(), b.forward(), method=arguments.method), arguments.out)
    return 0


def _said_to_be_reversed(detections: Detections, annotations: Path | None) -> Detections:
    from dataclasses import replace

    from bitad.data.annotations import read_annotations

    durations = detections.durations_s
    if annotations is not None:
        durations = {name: video.duration_s for name, video in read_annotations(annotations, ignore=()).videos.items()}
    if not durations:
        raise ValueError("--reverse-b needs the videos' durations and B has none; name their --annotations")
    return replace(detections, basis="reverse", durations_s=durations)


def _evaluate(arguments: argparse.Namespace) -> int:
    from bitad.data.annotations import read_annotations
    from bitad.data.detections import read_detections
    from bitad.data.files import write_json
    from bitad.evaluation.mean_average_precision import evaluate
    from bitad.reports.tables import class_table, evaluation_table

    # The evaluator of ActivityNet counts every label of the file as a class, Ambiguous too.
    ground_truth = read_annotations(arguments.ground_truth, ignore=()).subset(arguments.subset)
    evaluation = evaluate(ground_truth, read_detections(arguments.detections), tiou=_thresholds(arguments.tiou))
    print(evaluation_table({arguments.detections.name: evaluation}).text())
    if arguments.per_class:
        print("\n" + class_table({arguments.detections.name: evaluation}).text())
    if arguments.json:
        write_json(evaluation.to_json(), arguments.json)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from bitad.progress import following
    from bitad.reports.comparison import compare
    from bitad.reports.comparison_page import sensitivity_of_runs, write_comparison
    from bitad.reports.tables import sensitivity_table
    from bitad.training.distributed import processes

    with following("evaluating") as on_progress:
        comparison = compare(arguments.runs, on_progress=on_progress)
    sensitive = None
    if arguments.sensitivity:
        with processes(arguments.device) as team:
            sensitive = sensitivity_of_runs(comparison, team)
    page = write_comparison(arguments.out, comparison, sensitive)
    print(comparison.table().text())
    if (losses := comparison.loss_table()).rows:
        print("\n" + losses.text())
    if sensitive is not None:
        print("\n" + sensitivity_table(sensitive).text())
    print(f"\nsee {page}")
    return 0


def _thresholds(text: str) -> list[float]:
    """``0.3:0.7:0.1`` or ``0.5,0.75`` -> thresholds."""
    try:
        if ":" not in text:
            return [float(part) for part in text.split(",")]
        first, last, step = (float(part) for part in text.split(":"))
        return [round(first + i * step, 6) for i in range(round((last - first) / step) + 1)]
    except (ValueError, ArithmeticError):  # also steps of 0, and ends at infinity
        raise ValueError(f"--tiou {text} is neither first:last:step nor a list a,b,c of numbers") from None
