"""``bitad export RUN --to onnx``."""

from __future__ import annotations

import argparse
from pathlib import Path

from bitad.cli.commands import Commands, add_config, config_of
from bitad.runtime.log import echo


def add_export(commands: Commands) -> None:
    p = commands.add(
        "export",
        export_onnx,
        "Write a detector as an ONNX file, for programs without PyTorch.",
        "export runs/my-forward-seed0 --to onnx --out my.onnx",
        "export hub:OWNER/NAME --to onnx --steps 1536",
    )
    p.add_argument("source", type=Path, metavar="RUN", help="a run directory or a file of weights")
    p.add_argument("--to", required=True, choices=["onnx"], help="the format")
    p.add_argument("--out", type=Path, help="the output file (default: named after the run, here)")
    add_onnx_options(p)


def add_onnx_options(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--steps", type=int, metavar="T", help="grid steps of a window (default: those of the training)"
    )
    add_config(p)


def export_onnx(args: argparse.Namespace) -> int:
    config = config_of(args)
    from bitad.inference.onnx_export import export_onnx, require_packages
    from bitad.weights.checkpoint import load_checkpoint

    require_packages()
    checkpoint = load_checkpoint(args.source, config)
    out = args.out or Path(f"{checkpoint.config.run_directory.name}.onnx")
    echo(*export_onnx(checkpoint, out, steps=args.steps).lines())
    return 0
