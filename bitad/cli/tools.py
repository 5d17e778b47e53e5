"""The commands ``plan`` and ``weights``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bitad.cli.commands import Commands
from bitad.runtime.log import echo

if TYPE_CHECKING:
    from bitad.config.schema import Config


# Which baselines a run starts from does not change its cost.
_ANY_BASELINES = ("init.forward=RUN", "init.reverse=RUN")


def add_plan(commands: Commands) -> None:
    p = commands.add(
        "plan",
        _plan,
        "Say what a training will cost, before there are weights, videos or a GPU: parameters, FLOPs, memory, steps.",
        "plan thumos14/videomae-h",
        "plan thumos14/videomae-h experiment=3-1 --processes 4 --device-memory 80",
        "plan my.yaml training.batch=4 --json plan.json",
    )
    p.add_argument("config", help="a YAML file, or the name of a preset")
    p.add_argument("overrides", nargs="*", metavar="key.sub=value", help="changes to the configuration")
    p.add_argument("--processes", type=int, default=1, metavar="N", help="that train together, each on a device (1)")
    p.add_argument("--device", choices=["cpu", "gpu"], default="gpu", help="of each; a CPU needs less at a time (gpu)")
    p.add_argument("--device-memory", type=float, metavar="GIB", help="of a device: say whether a process fits into it")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")


def _plan(arguments: argparse.Namespace) -> int:
    from bitad.reports.plan import plan_of
    from bitad.runtime.files import write_json
    from bitad.runtime.progress import progress_callback

    memory = arguments.device_memory
    if memory is not None and not 0 < memory < float("inf"):
        raise ValueError(f"--device-memory {memory} is no device's; give its memory in GiB, 80 say")
    config = _config(arguments.config, arguments.overrides)
    with progress_callback("simulating training steps") as on_progress:
        plan = plan_of(config, processes=arguments.processes, device=arguments.device, on_progress=on_progress)
    print(f"Experiment {config.experiment}: {config.plan.says}.\n")
    print("\n\n".join(table.text() for table in plan.tables()) + "\n")
    echo(*plan.lines())
    if memory is not None:
        echo(plan.fit(round(memory * 2**30)))
    if arguments.json:
        write_json(plan.to_json(), arguments.json)
    return 0


def _config(source: str, overrides: Sequence[str]) -> Config:
    """The configuration, which need not name baselines to start from."""
    from bitad.config.loading import ConfigError, load_config

    faults, given = [], {override.partition("=")[0] for override in overrides}
    for baselines in ((), [one for one in _ANY_BASELINES if one.partition("=")[0] not in given]):
        try:
            return load_config(source, [*baselines, *overrides])
        except ConfigError as fault:
            faults.append(fault)
    raise min(faults, key=lambda fault: len(str(fault)))  # the longer one also tells of baselines


def add_weights(commands: Commands) -> None:
    p = commands.add(
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
    from bitad.config.loading import load_config

    config = None if arguments.config is None else load_config(arguments.config)
    if arguments.action == "convert":
        from bitad.weights.checkpoint import convert_weights

        if arguments.out is None:
            raise ValueError("convert needs the file to write: bitad weights convert FILE OUT.safetensors")
        if arguments.json:
            raise ValueError("--json is for inspect; leave it out")
        convert_weights(arguments.file, arguments.out, config)
        echo(arguments.out)
        return 0
    from bitad.weights.inspect import inspect_weights

    if arguments.out is not None:
        raise ValueError(f"inspect takes one file; {arguments.out} is one too many")
    inspection = inspect_weights(arguments.file, config)
    if arguments.json:
        print(json.dumps(inspection.to_json(), indent=1))
    else:
        echo(*inspection.lines())
    return 1 if inspection.defects else 0
