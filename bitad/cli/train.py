"""The commands ``demo``, ``train``, ``test`` and ``detect``."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from bitad.cli.commands import (
    Commands,
    add_config,
    add_configuration,
    add_device,
    add_on_decode_error,
    add_overrides,
    print_failures,
)
from bitad.runtime.log import echo


def add_commands(commands: Commands) -> None:
    p = commands.add(
        "demo",
        _demo,
        "Render a data set, train forward and reverse detectors, and report. Needs no data, GPU or download.",
        "demo",
        "demo --smoke --out smoke",
        "demo --full --results docs/results-playroom.md",
    )
    p.add_argument("--out", type=Path, default=Path("playroom-demo"), help="output folder (default: playroom-demo)")
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
    )
    add_configuration(p)
    p.add_argument("--resume", action="store_true", help="resume from the run's last.pt")
    p.add_argument(
        "--allow-changed-data",
        action="store_true",
        help="with --resume: continue although data have changed, and log the changes",
    )
    p.add_argument("--until", type=int, metavar="EPOCH", help="stop after this epoch; --resume continues")
    add_device(p)

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
    )
    p.add_argument("videos", nargs="+", type=Path, metavar="VIDEO")
    p.add_argument("--checkpoint", type=Path, required=True, help="a run directory or a file of weights")
    add_config(p)
    p.add_argument("--out", type=Path, default=Path("detections"), help="output folder (default: detections)")
    p.add_argument("--min-score", type=float, default=0.3, help="of subtitles and page (default: 0.3)")
    p.add_argument("--overwrite", action="store_true", help="replace all files of an earlier bitad detect in OUT")
    add_on_decode_error(p)
    add_device(p)


def _demo(arguments: argparse.Namespace) -> int:
    from bitad.demo import DEFAULT, FULL, SMOKE, run_demo
    from bitad.runtime.locking import OTHER_OUT, locked

    if arguments.results and not arguments.full:
        raise ValueError("--results names the file for the tables of --full; add --full, or leave it out")
    if not 0 <= arguments.seed < 2**63:
        raise ValueError(f"--seed {arguments.seed} is out of range; use 0 to 2^63 - 1")
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
        raise ValueError("--allow-changed-data only applies to a resumed run; add --resume, or leave it out")
    if arguments.until is not None and arguments.until < 1:
        raise ValueError(f"--until {arguments.until} is not an epoch; the first is 1")
    notes: list[str] = []
    config = load_config(arguments.config, arguments.overrides, notes)
    opened = open_run(config, device=arguments.device, resume=arguments.resume, allow_changed_data=changed)
    with opened as trainer:
        add_log_file(config.run_directory)  # only now, so that a refused start writes nothing
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
        detections = detect_videos(checkpoint, videos, ranks, damaged=damaged)
        failed = detections.unread
        if ranks.is_main:
            if detections.videos:
                page, without = write_detection_report(out, detections, videos, min_score=min_score, damaged=damaged)
                failed |= {name: f"the page has no preview of it: {reason}" for name, reason in without.items()}
                count = int((detections.scores >= min_score).sum())
                echo(f"{count} detections with a score of at least {min_score}; see {page}")
            print_failures("detect", failed)
    return 1 if failed else 0
