"""The verb that says beforehand what a training will cost."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bitad.cli.verbs import Verbs

if TYPE_CHECKING:
    from bitad.config import Config

# Which baselines a run starts from does not change its cost.
_ANY_BASELINES = ("init.forward=RUN", "init.backward=RUN")


def add_verbs(verbs: Verbs) -> None:
    p = verbs.add(
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
    from bitad.files import write_json
    from bitad.planning import plan_of
    from bitad.progress import following

    memory = arguments.device_memory
    if memory is not None and not 0 < memory < float("inf"):
        raise ValueError(f"--device-memory {memory} is no device's; give its memory in GiB, 80 say")
    config = _config(arguments.config, arguments.overrides)
    with following("simulating training steps") as on_progress:
        plan = plan_of(config, processes=arguments.processes, device=arguments.device, on_progress=on_progress)
    print(f"Experiment {config.experiment}: {config.plan.says}.\n")
    print("\n\n".join(table.text() for table in plan.tables()) + "\n")
    print("\n".join(plan.lines()))
    if memory is not None:
        print(plan.fit(round(memory * 2**30)))
    if arguments.json:
        write_json(plan.to_json(), arguments.json)
    return 0


def _config(source: str, overrides: Sequence[str]) -> Config:
    """The configuration, which need not name baselines to start from."""
    from bitad.config_files import ConfigError, load_config

    faults, given = [], {override.partition("=")[0] for override in overrides}
    for baselines in ((), [one for one in _ANY_BASELINES if one.partition("=")[0] not in given]):
        try:
            return load_config(source, [*baselines, *overrides])
        except ConfigError as fault:
            faults.append(fault)
    raise min(faults, key=lambda fault: len(str(fault)))  # the longer one also tells of baselines
