"""The commands ``plan`` and ``weights``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from bitad.cli.commands import Commands, add_config, add_configuration, add_json
from bitad.config.names import PlanDevice, WeightsAction
from bitad.runtime.log import echo

if TYPE_CHECKING:
    from bitad.config.schema import Config


# The cost of a run does not depend on the baselines it starts from.
_ANY_BASELINES = ("init.forward=RUN", "init.reverse=RUN")


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
    p.add_argument("--device-memory", type=float, metavar="GIB", help="check whether a process fits into this memory")
    add_json(p)


def _plan(arguments: argparse.Namespace) -> int:
    from bitad.reports.plan import plan_training
    from bitad.runtime.files import write_json
    from bitad.runtime.progress import progress_callback

    memory = arguments.device_memory
    if memory is not None and not 0 < memory < float("inf"):
        raise ValueError(f"--device-memory {memory} is not a memory in GiB; give a positive number, for example 80")
    config = _config(arguments.config, arguments.overrides)
    with progress_callback("simulating training steps") as on_progress:
        plan = plan_training(config, processes=arguments.processes, device=arguments.device, on_progress=on_progress)
    print(f"Experiment {config.experiment}: {config.design.summary}.\n")
    print("\n\n".join(table.text() for table in plan.tables()) + "\n")
    echo(*plan.lines())
    if memory is not None:
        echo(plan.fit(round(memory * 2**30)))
    if arguments.json:
        write_json(plan.to_json(), arguments.json)
    return 0


def _config(source: str, overrides: Sequence[str]) -> Config:
    """The configuration; baselines to start from may be left out."""
    from bitad.config.loading import ConfigError, load_config

    faults, given = [], {override.partition("=")[0] for override in overrides}
    for baselines in ((), [one for one in _ANY_BASELINES if one.partition("=")[0] not in given]):
        try:
            return load_config(source, [*baselines, *overrides])
        except ConfigError as fault:
            faults.append(fault)
    raise min(faults, key=lambda fault: len(str(fault)))  # the longer one also lists faults of the baselines


def add_weights(commands: Commands) -> None:
    p = commands.add(
        "weights",
        _weights,
        "Inspect a file of weights of any supported project, or convert it to safetensors with BiTAD's names.",
        "weights inspect vit-huge-p16_videomae-k400-pre_16x4x1_kinetics-400.pth",
        "weights inspect epoch_73.pth --config thumos14/videomae-h",
        "weights convert epoch_73.pth forward.safetensors --config thumos14/videomae-h",
    )
    p.add_argument("action", choices=get_args(WeightsAction))
    p.add_argument(
        "file",
        type=Path,
        help="weights of VideoMAE, VideoMAEv2, mmaction2, Hugging Face, OpenTAD, ActionFormer, BiTAD (file or folder)",
    )
    p.add_argument("out", type=Path, nargs="?", help="with convert: the output file, .safetensors")
    add_config(p)
    p.add_argument("--json", action="store_true", help="with inspect: print JSON")


def _weights(arguments: argparse.Namespace) -> int:
    from bitad.config.loading import load_config

    config = None if arguments.config is None else load_config(arguments.config)
    if arguments.action == "convert":
        from bitad.weights.checkpoint import convert_weights

        if arguments.out is None:
            raise ValueError("convert needs an output file: bitad weights convert FILE OUT.safetensors")
        if arguments.json:
            raise ValueError("--json only applies to inspect; leave it out")
        convert_weights(arguments.file, arguments.out, config)
        echo(arguments.out)
        return 0
    from bitad.weights.inspect import inspect_weights

    if arguments.out is not None:
        raise ValueError(f"inspect takes one file; leave out {arguments.out}")
    inspection = inspect_weights(arguments.file, config)
    if arguments.json:
        print(json.dumps(inspection.to_json(), indent=1))
    else:
        echo(*inspection.lines())
    return 1 if inspection.defects else 0
