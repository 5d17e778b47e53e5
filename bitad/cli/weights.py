"""The verb for files of weights, ours and other projects'."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bitad.cli.verbs import Verbs
from bitad.printing import say


def add_verbs(verbs: Verbs) -> None:
    p = verbs.add(
        "weights",
        _weights,
        "Tell what a file of weights of any known project holds, or write it as safetensors with our names.",
        "weights inspect vit-huge-p16_videomae-k400-pre_16x4x1_kinetics-400.pth",
        "weights inspect epoch_73.pth --config thumos14/videomae-h",
        "weights convert epoch_73.pth forward.safetensors --config thumos14/videomae-h",
    )
    p.add_argument("action", choices=["inspect", "convert"])
    p.add_argument(
        "file",
        type=Path,
        help="of VideoMAE, VideoMAEv2, mmaction2, Hugging Face, OpenTAD, ActionFormer or BiTAD; or a folder of one",
    )
    p.add_argument("out", type=Path, nargs="?", help="of convert: the file to write, .safetensors")
    p.add_argument("--config", metavar="CONFIG", help="a YAML file or a preset; of detectors that bring none")
    p.add_argument("--json", action="store_true", help="of inspect: print JSON")


def _weights(arguments: argparse.Namespace) -> int:
    from bitad.config_files import load_config

    config = None if arguments.config is None else load_config(arguments.config)
    if arguments.action == "convert":
        from bitad.training.checkpoint import convert_weights

        if arguments.out is None:
            raise ValueError("convert needs the file to write: bitad weights convert FILE OUT.safetensors")
        if arguments.json:
            raise ValueError("--json is for inspect; leave it out")
        convert_weights(arguments.file, arguments.out, config)
        say(arguments.out)
        return 0
    from bitad.training.inspection import inspect_weights

    if arguments.out is not None:
        raise ValueError(f"inspect takes one file; {arguments.out} is one too many")
    inspection = inspect_weights(arguments.file, config)
    if arguments.json:
        print(json.dumps(inspection.to_json(), indent=1))
    else:
        say(*inspection.lines())
    return 1 if inspection.defects else 0
