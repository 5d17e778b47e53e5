"""The commands ``demo``, ``train``, ``test`` and ``detect``."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from bitad.cli.commands import Commands, add_on_decode_error
from bitad.runtime.log import echo


def add_commands(commands: Commands) -> None:
    p = commands.add(
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

    p = commands.add(
        "train",
        _train,
        "Train a detector; also under torchrun -m bitad train.",
        "train playroom direction=reverse training.epochs=20",
        "train my.yaml --resume",
    )
    p.add_argument("config", help="a YAML file, or the name of a preset")
    p.add_argument("overrides", nargs="*", metavar="key.sub=value", help="changes to the configuration")
    p.add_argument("--resume", action="store_true", help="go on from the run's last.pt")
    p.add_argument(
        "--allow-changed-data",
        action="store_true",
        help="with --resume: continue although annotations, features or videos have changed since, and log what has",
    )
    p.add_argument("--until", type=int, metavar="EPOCH", help="stop after this epoch, to be resumed later")
    p.add_argument("--device", help="cpu, cuda, cuda:1 (a GPU if there is one)")

    p = commands.add(
        "test",
        _test,
        "Test a trained run: detections in forward and in reverse time, and their mAP.",
        "test runs/playroom-forward-seed0",
        "test best.pt data.test_subset=test test.nms.sigma=0.5 --out results",
        "test epoch_59.pth --config thumos14/videomae-s --out results",
    )
    p.add_argument("run_or_checkpoint", type=Path, help="a run directory or a file of weights of any known project")
    _add_config(p)
    p.add_argument("overrides", nargs="*", metavar="key.sub=value", help="changes to the configuration")
    p.add_argument("--out", type=Path, help="folder to write to (RUN/test)")
    p.add_argument("--device", help="cpu, cuda, cuda:1 (a GPU if there is one)")

    p = commands.add(
        "detect",
        _detect,
        "Detect actions in videos of any length: JSON, subtitles and a page.",
        "detect holiday.mp4 --checkpoint runs/playroom-forward-seed0 --out found",
    )
    p.add_argument("videos", nargs="+", type=Path, metavar="VIDEO")
    p.add_argument("--checkpoint", type=Path, required=True, help="a run directory or a file of weights")
    _add_config(p)
    p.add_argument("--out", type=Path, default=Path("detections"), help="folder to write to (detections)")
    p.add_argument("--min-score", type=float, default=0.3, help="of subtitles, and at first on the page (0.3)")
    p.add_argument(
        "--overwrite", action="store_true", help="replace what an earlier bitad detect has written to OUT, all of it"
    )
    add_on_decode_error(p)
    p.add_argument("--device", help="cpu, cuda, cuda:1 (a GPU if there is one)")


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", metavar="CONFIG", help="of another project's detector, which brings none: a YAML file or a preset"
    )


def _demo(arguments: argparse.Namespace) -> int:
    from bitad.demo import DEFAULT, FULL, SMOKE, run_demo
    from bitad.runtime.locking import OTHER_OUT, locked

    if arguments.results and not arguments.full:
        raise ValueError("--results is where --full writes its tables; add --full, or leave it out")
    if not 0 <= arguments.seed < 2**63:
        raise ValueError(f"--seed {arguments.seed} is not from 0 to 2^63 - 1")
    scale = SMOKE if arguments.smoke else FULL if arguments.full else DEFAULT
    with locked(arguments.out, remedy=OTHER_OUT):
        run_demo(arguments.out, scale=scale, seed=arguments.seed, results_file=arguments.results)
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from bitad.config.loading import load_config
    from bitad.runtime.log import add_log_file
    from bitad.training.trainer import open_run

    changed = arguments.allow_changed_data
    if changed and not arguments.resume:
        raise ValueError("--allow-changed-data is for a run that is resumed; add --resume, or leave it out")
    if arguments.until is not None and arguments.until < 1:
        raise ValueError(f"--until {arguments.until} is no epoch; the first is 1")
    notes: list[str] = []
    config = load_config(arguments.config, arguments.overrides, notes)
    opened = open_run(config, device=arguments.device, resume=arguments.resume, allow_changed_data=changed)
    with opened as trainer:
        add_log_file(config.run_directory)  # a start that was refused has written nothing
        for note in notes:
            logging.getLogger("bitad").info(note)
        best = trainer.run(until=arguments.until)
        if trainer.ranks.is_main:
            echo(f"{config.run_directory}: best average mAP {100 * best:.2f}" if best >= 0 else config.run_directory)
    return 0


def _test(arguments: argparse.Namespace) -> int:
    from bitad.inference.detect import run_test
    from bitad.library import checkpoint_of
    from bitad.reports.tables import evaluation_table
    from bitad.runtime.distributed import process_group
    from bitad.runtime.environment import set_up_process
    from bitad.training.checkpoints import lock_folder

    checkpoint = checkpoint_of(arguments.run_or_checkpoint, arguments.config, arguments.overrides)
    set_up_process(checkpoint.config.threads)
    place = arguments.run_or_checkpoint
    out = arguments.out or (place if place.is_dir() else place.parent) / "test"
    with process_group(arguments.device) as ranks, lock_folder(out, ranks):
        evaluations = run_test(checkpoint, out, ranks)
        if ranks.is_main:
            print(evaluation_table(evaluations, title=f"{place}: mAP (%)").text())
    return 0


def _detect(arguments: argparse.Namespace) -> int:
    from bitad.inference.detect import detect_videos
    from bitad.library import checkpoint_of
    from bitad.reports.detections import check_detection_report, write_detection_report
    from bitad.runtime.distributed import process_group
    from bitad.training.checkpoints import lock_folder
    from bitad.video.files import videos_by_name

    videos, out, min_score = videos_by_name(arguments.videos), arguments.out, arguments.min_score
    inputs = [Path(path) for path in (arguments.checkpoint, arguments.config) if path is not None]
    with process_group(arguments.device) as ranks, lock_folder(out, ranks):
        check_detection_report(out, videos, min_score=min_score, overwrite=arguments.overwrite, inputs=inputs)
        checkpoint = checkpoint_of(arguments.checkpoint, arguments.config)
        damaged = arguments.on_decode_error
        detections, failed = detect_videos(checkpoint, videos, ranks, damaged=damaged)
        if ranks.is_main:
            if detections.videos:
                page, without = write_detection_report(out, detections, videos, min_score=min_score, damaged=damaged)
                failed |= {name: f"no preview of it on the page: {reason}" for name, reason in without.items()}
                count = int((detections.scores >= min_score).sum())
                echo(f"{count} detections with a score of at least {min_score}; see {page}")
            for name, reason in failed.items():
                echo(f"bitad detect: error: {name}: {reason}", file=sys.stderr)
            sys.stdout.flush()  # torchrun ends all processes as soon as one of them has ended with status 1
    return 1 if failed else 0
