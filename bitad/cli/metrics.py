"""The metrics of ``bitad evaluate``: their options, and all but mAP."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, get_args

from bitad.cli.commands import parse_min_score
from bitad.config.names import FrameRule, MapRule, Metric, RecallRule

if TYPE_CHECKING:
    from bitad.data.annotations import Annotations
    from bitad.evaluation.per_frame import FrameEvaluation
    from bitad.reports.tables import Table

_TIOU: dict[Metric, str] = {"map": "0.3:0.7:0.1", "ar": "0.5:0.95:0.05"}

# The first one is the default.
_RULES: dict[Metric, tuple[str, ...]] = {
    "map": get_args(MapRule),
    "ar": get_args(RecallRule),
    "frame-map": get_args(FrameRule),
}

# The options that do not apply to every metric.
_METRICS: dict[str, tuple[Metric, ...]] = {
    "--ambiguous": ("map",),
    "--bootstrap": ("map",),
    "--class-agnostic": ("map",),
    "--fps": ("frame-map",),
    "--max-proposals": ("ar",),
    "--min-score": ("segmental",),
    "--per-class": ("map", "frame-map", "segmental"),
    "--rule": tuple(_RULES),
    "--steps": ("frame-map",),
    "--tiou": tuple(_TIOU),
}


class _Result(Protocol):
    def to_json(self) -> dict[str, Any]: ...


def add_metric(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metric",
        choices=get_args(Metric),
        default="map",
        help="map: mean average precision; ar: average recall of proposals (AR@AN, AUC); frame-map: per-frame mAP "
        "(MultiTHUMOS, Charades); segmental: F1@{10,25,50} and edit score (action segmentation); docs/measures.md has "
        "the definitions (default: map)",
    )


def add_metric_options(parser: argparse.ArgumentParser) -> None:
    rules = "; ".join(f"{metric}: {', '.join(names)}" for metric, names in _RULES.items())
    default = ", ".join(f"{tiou} for {metric}" for metric, tiou in _TIOU.items())
    parser.add_argument("--tiou", help=f"tIoU thresholds, as first:last:step or a,b,c (default: {default})")
    parser.add_argument(
        "--rule",
        choices=tuple(dict.fromkeys(name for names in _RULES.values() for name in names)),
        metavar="RULE",
        help=f"whose definition of the metric; {rules} (default: the first)",
    )
    parser.add_argument(
        "--max-proposals",
        type=int,
        metavar="M",
        help="with --metric ar: the greatest average number of proposals in a video (default: 100)",
    )
    parser.add_argument(
        "--fps",
        type=float,
        help="with --metric frame-map, of detections: sampled steps a second (default: 1)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        metavar="T",
        help="with --metric frame-map, of detections: sampled steps a video, instead of --fps",
    )
    parser.add_argument(
        "--min-score",
        type=parse_min_score,
        metavar="auto|SCORE",
        help="with --metric segmental: the least score; auto: of each class, as the file of detections states it, or "
        "0.3 (default: auto)",
    )


def check_metric_options(args: argparse.Namespace) -> None:
    """Sets the defaults of --rule and --tiou; raises ValueError for an option of another metric, or out of range."""
    for option, metrics in _METRICS.items():
        given = getattr(args, option.removeprefix("--").replace("-", "_"))
        if given is not None and given is not False and args.metric not in metrics:
            raise ValueError(
                f"{option} is not for --metric {args.metric}; leave it out, or use --metric {' or '.join(metrics)}"
            )
    if args.tiou is None:
        args.tiou = _TIOU.get(args.metric)
    if rules := _RULES.get(args.metric):
        args.rule = args.rule or rules[0]
        if args.rule not in rules:
            raise ValueError(f"--rule {args.rule} is not for --metric {args.metric}; use {' or '.join(rules)}")
    if args.metric != "frame-map":
        for path in args.detections:
            if path.suffix.lower() == ".npz":
                raise ValueError(
                    f"{path}: per-frame scores are for --metric frame-map; use that, or name detections"
                )
    if args.metric == "ar" and args.max_proposals is not None:
        from bitad.evaluation.average_recall import check_max_proposals

        check_max_proposals(args.max_proposals, "--max-proposals")
    if args.metric == "frame-map":
        _check_sampling(args)
    if args.min_score is not None and not math.isfinite(args.min_score):
        raise ValueError(f"--min-score {args.min_score}: give auto, or a finite number")


def _check_sampling(args: argparse.Namespace) -> None:
    from bitad.data.frame_scores import holds_frame_scores
    from bitad.evaluation.per_frame import check_fps, check_steps

    given = [option for option, value in (("--fps", args.fps), ("--steps", args.steps)) if value is not None]
    if args.fps is not None:
        check_fps(args.fps, "--fps")
    if args.steps is not None:
        check_steps(args.steps, "--steps")
    if len(given) > 1:
        raise ValueError("--fps and --steps exclude each other; leave out one")
    if given and args.rule == "charades-25":
        raise ValueError(f"{given[0]} is not for --rule charades-25, which has 25 points a video; leave it out")
    if given and all(map(holds_frame_scores, args.detections)):
        raise ValueError(
            f"{given[0]} is for detections; the steps of per-frame scores are their rows; leave it out"
        )


def measure(
    args: argparse.Namespace, files: Mapping[str, Path], tiou: Sequence[float]
) -> tuple[list[Table], dict[str, Any]]:
    """The tables and the JSON of a metric other than mAP, of files of detections by name."""
    from bitad.data.classes import UNDECIDED
    from bitad.data.formats.database import read_annotations

    # OpenTAD's and ActivityNet's codes count every segment for average recall, whatever its label.
    annotations = read_annotations(args.ground_truth, ignore=() if args.metric == "ar" else UNDECIDED)
    if args.metric == "ar":
        return _average_recall(args, annotations, files, tiou)
    if args.metric == "frame-map":
        return _frame_map(args, annotations, files)
    return _segmental(args, annotations, files)


def _average_recall(
    args: argparse.Namespace, annotations: Annotations, files: Mapping[str, Path], tiou: Sequence[float]
) -> tuple[list[Table], dict[str, Any]]:
    from bitad.data.detections import read_detections
    from bitad.library import average_recall
    from bitad.reports.measure_tables import recall_table

    results = {}
    for name, path in files.items():
        results[name] = average_recall(
            annotations,
            read_detections(path, args.classes),
            subset=args.subset,
            tiou=tiou,
            max_proposals=100 if args.max_proposals is None else args.max_proposals,
            rule=args.rule,
            allow_clock_mismatch=args.allow_clock_mismatch,
            sources=(args.ground_truth, path),
        )
    return [recall_table(results)], json_of(results)


def _frame_map(
    args: argparse.Namespace, annotations: Annotations, files: Mapping[str, Path]
) -> tuple[list[Table], dict[str, Any]]:
    from bitad.reports.measure_tables import frame_class_table, frame_table

    results = {name: _frame_map_of(args, annotations, path) for name, path in files.items()}
    tables = [frame_table(results)]
    if args.per_class:
        tables.append(frame_class_table(results))
    return tables, json_of(results)


def _frame_map_of(args: argparse.Namespace, annotations: Annotations, path: Path) -> FrameEvaluation:
    from bitad.data.detections import read_detections
    from bitad.data.frame_scores import holds_frame_scores, read_frame_scores, with_columns
    from bitad.library import frame_map

    if holds_frame_scores(path):
        scores = read_frame_scores(path, annotations.subset(args.subset).videos)
        return frame_map(
            with_columns(annotations, path, args.classes),
            scores,
            subset=args.subset,
            rule=args.rule,
            sources=(args.ground_truth, path),
        )
    return frame_map(
        annotations,
        read_detections(path, args.classes),
        subset=args.subset,
        rule=args.rule,
        fps=args.fps,
        steps=args.steps,
        allow_clock_mismatch=args.allow_clock_mismatch,
        sources=(args.ground_truth, path),
    )


def _segmental(
    args: argparse.Namespace, annotations: Annotations, files: Mapping[str, Path]
) -> tuple[list[Table], dict[str, Any]]:
    from bitad.data.detections import read_detections
    from bitad.library import segmental_f1
    from bitad.reports.measure_tables import segmental_class_table, segmental_table

    results = {}
    for name, path in files.items():
        found = read_detections(path, args.classes)
        results[name] = segmental_f1(
            annotations,
            found,
            subset=args.subset,
            min_scores=None if args.min_score is None else dict.fromkeys(found.classes, args.min_score),
            allow_clock_mismatch=args.allow_clock_mismatch,
            sources=(args.ground_truth, path),
        )
    tables = [segmental_table(results)]
    if args.per_class:
        tables.append(segmental_class_table(results))
    return tables, json_of(results)


def json_of(results: Mapping[str, _Result]) -> dict[str, Any]:
    """The figures for --json: of one file, or by file."""
    contents = {name: result.to_json() for name, result in results.items()}
    return next(iter(contents.values())) if len(contents) == 1 else {"results": contents}
