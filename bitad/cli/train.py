"""The commands ``demo``, ``train``, ``watch``, ``track``, ``test``, ``detect``, ``plan`` and ``weights``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from bitad.cli.commands import (
    Commands,
    add_config,
    add_configuration,
    add_device,
    add_json,
    add_on_decode_error,
    add_overrides,
    check_seed,
    config_of,
    parse_min_score,
    print_failures,
)
from bitad.config.names import PlanDevice, TrackerName, WeightsAction
from bitad.runtime.log import echo, log

if TYPE_CHECKING:
    from bitad.config.schema import Config


def add_commands(commands: Commands) -> None:
    p = commands.add(
        "demo",
        _demo,
        "Render a data set, train forward and reverse detectors, and report. Needs no data, GPU or download.",
        "demo",
        "demo --smoke --out smoke",
        "demo --full --results docs/results-playroom.md",
    )
    p.add_argument(
        "--out", type=Path, default=Path("playroom-demo"), help="output folder (default: playroom-demo)"
    )
    size = p.add_mutually_exclusive_group()
    size.add_argument("--smoke", action="store_true", help="a quick run of every step; its numbers mean nothing")
    size.add_argument("--full", action="store_true", help="every experiment, ablation and control")
    p.add_argument("--results", type=Path, help="file for the tables of --full (default: OUT/results-playroom.md)")
    p.add_argument("--seed", type=int, default=0, help="seed of the data and of the trainings (default: 0)")

    p = commands.add(
        "train",
        _train,
        "Train a detector. Also runs under torchrun -m bitad train.",
        "train playroom direction=reverse training.epochs=20",
        "train my.yaml --resume",
        "train runs/my-forward-seed0/config.yaml training.epochs=80 training.schedule_epochs=80 --resume",
    )
    add_configuration(p)
    p.add_argument(
        "--resume",
        action="store_true",
        help="resume from the run's last.pt; training.epochs and learning rates may change",
    )
    p.add_argument(
        "--allow-changed-data",
        action="store_true",
        help="with --resume: continue although data have changed, and log the changes",
    )
    p.add_argument("--until", type=int, metavar="EPOCH", help="stop after this epoch; --resume continues")
    add_device(p)

    p = commands.add(
        "watch",
        _watch,
        "Draw the loss and the mAP of a run that is in progress, until it has finished or Ctrl-C.",
        "watch runs/playroom-forward-seed0",
    )
    p.add_argument("directory", type=Path, metavar="RUN", help="a run directory")
    p.add_argument(
        "--once", action="store_true", help="draw once and end; so does output that goes to a file or a pipe"
    )

    p = commands.add(
        "track",
        _track,
        "Send the curves of a run to TensorBoard, MLflow or Weights & Biases, during the training or afterwards.",
        "track runs/my-forward-seed0 --to tensorboard",
        "track runs/my-forward-seed0 --to mlflow --url http://localhost:5000 --follow",
        "track runs/my-forward-seed0 --to wandb --project playroom",
    )
    p.add_argument("directory", type=Path, metavar="RUN", help="a run directory")
    p.add_argument("--to", choices=get_args(TrackerName), required=True, help="the tracker")
    p.add_argument("--follow", action="store_true", help="go on until the run has finished, or Ctrl-C")
    p.add_argument(
        "--url",
        help="of the server of mlflow or wandb (default: the client's own setting, such as MLFLOW_TRACKING_URI)",
    )
    p.add_argument(
        "--project",
        default="bitad",
        help="the experiment of MLflow, the project of Weights & Biases (default: bitad)",
    )

    p = commands.add(
        "test",
        _test,
        "Test a trained run: detections in forward and reverse time, and their mAP.",
        "test runs/playroom-forward-seed0",
        "test best.pt data.test_subset=test test.nms.sigma=0.5 --out results",
        "test epoch_59.pth --config thumos14/videomae-s --out results",
    )
    p.add_argument("run_or_checkpoint", type=Path, help="a run directory, or weights of any supported project")
    add_config(p)
    add_overrides(p)
    p.add_argument("--out", type=Path, help="output folder (default: RUN/test)")
    add_device(p)

    p = commands.add(
        "detect",
        _detect,
        "Detect actions in videos of any length. Writes JSON, subtitles and an HTML page.",
        "detect holiday.mp4 --checkpoint runs/playroom-forward-seed0 --out found",
        "detect my_videos more.mkv --checkpoint runs/my-forward-seed0",
        "detect holiday.mp4 --checkpoint runs/playroom-forward-seed0 --precision 0.9 --no-overlap",
    )
    p.add_argument(
        "videos", nargs="+", type=Path, metavar="VIDEO", help="video files, and folders with their sub-folders"
    )
    p.add_argument("--checkpoint", type=Path, required=True, help="a run directory or a file of weights")
    add_config(p)
    p.add_argument("--out", type=Path, default=Path("detections"), help="output folder (default: detections)")
    p.add_argument(
        "--min-score",
        type=parse_min_score,
        metavar="auto|SCORE",
        help="of subtitles and page; auto: by class, the score of best F1 in the evaluation of the training "
        "(default: auto)",
    )
    p.add_argument(
        "--precision",
        type=float,
        metavar="P",
        help="instead of best F1: the scores from which P of them are right",
    )
    p.add_argument(
        "--no-overlap",
        action="store_true",
        help="keep what is shown, with at most one label at a time; also in JSON",
    )
    p.add_argument(
        "--force",
        "--overwrite",  # its name in earlier versions
        action="store_true",
        help="replace the results of another checkpoint or of other videos in OUT, and write beside other files",
    )
    add_on_decode_error(p)
    add_device(p)


def _demo(args: argparse.Namespace) -> int:
    from bitad.demo import DEFAULT, FULL, SMOKE, run_demo
    from bitad.runtime.locking import OTHER_OUT, locked

    if args.results and not args.full:
        raise ValueError("--results names the file for the tables of --full; add --full, or leave it out")
    check_seed(args.seed)
    scale = SMOKE if args.smoke else FULL if args.full else DEFAULT
    with locked(args.out, remedy=OTHER_OUT):
        run_demo(args.out, scale=scale, seed=args.seed, results_file=args.results)
    return 0


def _train(args: argparse.Namespace) -> int:
    from bitad.config.loading import load_config, require_annotations
    from bitad.runtime.log import add_log_file

    changed = args.allow_changed_data
    if changed and not args.resume:
        raise ValueError("--allow-changed-data only applies to a resumed run; add --resume, or leave it out")
    if args.until is not None and args.until < 1:
        raise ValueError(f"--until {args.until} is not an epoch; the first is 1")
    config = load_config(args.config, args.overrides)
    require_annotations(config.data)
    from bitad.training.trainer import open_run  # loads PyTorch, which takes seconds

    opened = open_run(config, device=args.device, resume=args.resume, allow_changed_data=changed)
    with opened as trainer:
        add_log_file(config.run_directory)  # only now, so that a refused start writes nothing
        best = trainer.run(until=args.until)
        if trainer.ranks.is_main:
            which = "last" if config.training.select == "last" else "best"
            figure = f": {which} average mAP {100 * best:.2f}" if best >= 0 else ""
            echo(f"{config.run_directory}{figure}")
    return 0


def _watch(args: argparse.Namespace) -> int:
    from bitad.reports.watch import watch

    watch(args.directory, once=args.once)
    return 0


def _track(args: argparse.Namespace) -> int:
    from bitad.reports.tracking import track

    sent = track(
        args.directory,
        args.to,
        follow=args.follow,
        url=args.url,
        project=args.project,
        on_start=lambda place: log.info("%s: the curves are at %s", args.directory, place),
    )
    echo(f"{args.directory}: {sent} records sent")
    return 0


def _test(args: argparse.Namespace) -> int:
    from bitad.library import checkpoint_of
    from bitad.weights.hub import is_hub_name

    place = args.run_or_checkpoint
    if args.out is None and is_hub_name(place):
        raise ValueError(f"{place} has no folder for the results; give one with --out")
    checkpoint = checkpoint_of(place, args.config, args.overrides)
    from bitad.inference.detect import run_test
    from bitad.reports.measure_tables import evaluation_table
    from bitad.runtime.distributed import process_group
    from bitad.runtime.environment import set_up_process
    from bitad.training.checkpoints import lock_folder

    set_up_process(checkpoint.config.threads)
    out = args.out or (place if place.is_dir() else place.parent) / "test"
    with process_group(args.device) as ranks, lock_folder(out, ranks):
        evaluations = run_test(checkpoint, out, ranks)
        if ranks.is_main:
            print(evaluation_table(evaluations, title=f"{place}: mAP (%)").text())
    return 0


def _detect(args: argparse.Namespace) -> int:
    config = config_of(args)
    from bitad.evaluation.operating_points import check_precision, shown_scores
    from bitad.inference.detect import detect_videos, operating_points
    from bitad.library import checkpoint_of
    from bitad.reports.detections import Inputs, check_detection_report, write_detection_report
    from bitad.runtime.distributed import process_group
    from bitad.training.checkpoints import lock_folder
    from bitad.video.files import videos_by_name
    from bitad.weights.files import weights_path

    min_score, precision = args.min_score, args.precision
    if min_score is not None and not 0 <= min_score <= 1:
        raise ValueError(f"--min-score {min_score}: give auto, or a score from 0 to 1")
    if precision is not None:
        check_precision(precision, "--precision")
        if min_score is not None:
            raise ValueError(
                f"--min-score {min_score} and --precision {precision} exclude each other; leave out one"
            )
    out = args.out
    videos = videos_by_name(args.videos, but=out)
    inputs = [Path(path) for path in (args.checkpoint, args.config) if path is not None]
    with process_group(args.device) as ranks, lock_folder(out, ranks):
        made_from = Inputs.of(weights_path(args.checkpoint), args.config, videos)
        check_detection_report(out, videos, made_from, force=args.force, inputs=inputs)
        checkpoint = checkpoint_of(args.checkpoint, config)
        points = operating_points(checkpoint)
        damaged = args.on_decode_error
        detections = detect_videos(checkpoint, videos, ranks, damaged=damaged)
        failed = detections.unread
        if ranks.is_main:
            if detections.videos:
                scores, shown = shown_scores(points, checkpoint.classes, min_score=min_score, precision=precision)
                detections = detections.with_min_scores(scores)
                if args.no_overlap:
                    detections = detections.shown().without_overlap()
                page, without = write_detection_report(
                    out, detections, videos, made_from, shown=shown, damaged=damaged
                )
                failed |= {name: f"the page has no preview of it: {reason}" for name, reason in without.items()}
                echo(f"{len(detections.shown())} detections with {shown}; see {page}")
            print_failures("detect", failed)
    return 1 if failed else 0


# The cost of a run does not depend on the baselines it starts from, and of a teacher only that of the teacher itself.
_ANY_RUNS = (("init.forward=RUN", "init.reverse=RUN"), ("init.teacher=RUN",))


def add_plan(commands: Commands) -> None:
    p = commands.add(
        "plan",
        _plan,
        "Compute the cost of a training: parameters, FLOPs, memory and steps. Needs no weights, videos or GPU.",
        "plan thumos14/videomae-h",
        "plan thumos14/videomae-h experiment=3-1 --processes 4 --device-memory 80",
        "plan my.yaml training.batch=4 --json plan.json",
    )
    add_configuration(p)
    p.add_argument("--processes", type=int, default=1, metavar="N", help="processes, one per device (default: 1)")
    p.add_argument("--device", choices=get_args(PlanDevice), default="gpu", help="type of device (default: gpu)")
    p.add_argument(
        "--device-memory", type=float, metavar="GIB", help="check whether a process fits into this memory"
    )
    add_json(p)


def _plan(args: argparse.Namespace) -> int:
    from bitad.runtime.files import write_json
    from bitad.runtime.progress import progress_callback

    memory = args.device_memory
    if memory is not None and not 0 < memory < float("inf"):
        raise ValueError(
            f"--device-memory {memory} is not a memory in GiB; give a positive number, for example 80"
        )
    config = _config(args.config, args.overrides)
    from bitad.reports.plan import plan_training  # loads PyTorch, which takes seconds

    with progress_callback("simulating training steps") as on_progress:
        plan = plan_training(config, processes=args.processes, device=args.device, on_progress=on_progress)
    print(f"Experiment {config.experiment}: {config.design.summary}.\n")
    print("\n\n".join(table.text() for table in plan.tables()) + "\n")
    echo(*plan.lines())
    if memory is not None:
        echo(plan.fit(round(memory * 2**30)))
    if args.json:
        write_json(plan.to_json(), args.json)
    return 0


def _config(source: str, overrides: Sequence[str]) -> Config:
    """The configuration; baselines to start from, or a teacher, may be left out."""
    from bitad.config.loading import ConfigError, load_config

    faults, given = [], {override.partition("=")[0] for override in overrides}
    for runs in ((), *([one for one in runs if one.partition("=")[0] not in given] for runs in _ANY_RUNS)):
        try:
            return load_config(source, [*runs, *overrides])
        except ConfigError as fault:
            faults.append(fault)
    raise min(faults, key=lambda fault: len(str(fault)))  # longer ones also list faults of the runs


def add_weights(commands: Commands) -> None:
    p = commands.add(
        "weights",
        _weights,
        "Inspect weights of any supported project, convert them to safetensors with BiTAD's names, or download them. "
        "Share runs on the Hugging Face Hub.",
        "weights inspect vit-huge-p16_videomae-k400-pre_16x4x1_kinetics-400.pth",
        "weights inspect epoch_73.pth --config thumos14/videomae-h",
        "weights convert epoch_73.pth forward.safetensors --config thumos14/videomae-h",
        "weights download MCG-NJU/videomae-small-finetuned-kinetics",
        "weights push runs/playroom-forward-seed0 OWNER/NAME",
        "weights pull OWNER/NAME playroom",
    )
    p.add_argument("action", choices=get_args(WeightsAction))
    p.add_argument(
        "file",
        type=Path,
        help="weights of VideoMAE, VideoMAEv2, mmaction2, Hugging Face, OpenTAD, ActionFormer, BiTAD: a file, a folder "
        "or hub:OWNER/NAME[@REVISION][:FILE], a file in a repository of the Hugging Face Hub, downloaded once",
    )
    p.add_argument(
        "out",
        type=Path,
        nargs="?",
        help="with convert: the output file, .safetensors; with push: OWNER/NAME[@BRANCH], a repository of the Hub; "
        "with pull: a folder (default: NAME)",
    )
    add_config(p)
    p.add_argument("--public", action="store_true", help="with push: everyone may read a new repository")
    p.add_argument("--json", action="store_true", help="with inspect: print JSON")


def _weights(args: argparse.Namespace) -> int:
    if args.public and args.action != "push":
        raise ValueError("--public only applies to push; leave it out")
    if args.action == "download":
        return _download(args)
    if args.json and args.action != "inspect":
        raise ValueError("--json only applies to inspect; leave it out")
    if args.action == "pull":
        return _pull(args)
    if args.action == "push":
        return _push(args)
    config = config_of(args)
    if args.action == "convert":
        from bitad.weights.checkpoint import convert_weights

        if args.out is None:
            raise ValueError("convert needs an output file: bitad weights convert FILE OUT.safetensors")
        convert_weights(args.file, args.out, config)
        echo(args.out)
        return 0
    from bitad.weights.inspect import inspect_weights

    if args.out is not None:
        raise ValueError(f"inspect takes one file; leave out {args.out}")
    inspection = inspect_weights(args.file, config)
    if args.json:
        print(json.dumps(inspection.to_json(), indent=1))
    else:
        echo(*inspection.lines())
    return 1 if inspection.defects else 0


def _download(args: argparse.Namespace) -> int:
    from bitad.weights.hub import HubName, hub_file

    if args.out is not None or args.config is not None or args.json:
        raise ValueError("download takes a name alone: bitad weights download OWNER/NAME[@REVISION][:FILE]")
    found = hub_file(HubName.of(args.file))
    echo(found.path, f"  size       {found.path.stat().st_size:,} bytes", f"  SHA-256    {found.sha256}")
    return 0


def _push(args: argparse.Namespace) -> int:
    from bitad.weights.hub import HubName

    if args.config is not None:
        raise ValueError("push shares runs of BiTAD, which contain their configuration; leave out --config")
    if args.out is None:
        raise ValueError("push needs a repository: bitad weights push RUN OWNER/NAME")
    name = HubName.of(args.out)
    from bitad.weights.sharing import push_run  # loads PyTorch, which takes seconds

    echo(push_run(args.file, name, public=args.public))
    return 0


def _pull(args: argparse.Namespace) -> int:
    from bitad.weights.hub import HubName

    if args.config is not None:
        raise ValueError("a run contains its configuration; leave out --config")
    name = HubName.of(args.file)
    out = args.out or Path(name.repository.partition("/")[2])
    from bitad.weights.sharing import pull_run  # loads PyTorch, which takes seconds

    echo(pull_run(name, out), f"  folder     {out}")
    return 0
