"""What a run is made in: versions, threads and memory; and what all its processes log together."""

from __future__ import annotations

import os
import platform
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bitad
from bitad.files import read_json
from bitad.log import log, set_up_logging
from bitad.memory import keep_freed_memory
from bitad.training.distributed import Processes

__all__ = [
    "ENVIRONMENT",
    "environment",
    "is_restarted",
    "launcher",
    "log",
    "say_repeated",
    "say_skipped",
    "set_up_logging",
    "set_up_process",
]

ENVIRONMENT = "environment.json"  # of a run directory


def environment(team: Processes) -> dict[str, Any]:
    """What a run was made with."""
    return {
        "bitad": bitad.__version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name(team.device) if team.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "processes": team.world,
        "launcher": launcher(),
        "command": sys.argv[1:],
    }


def launcher() -> str | None:
    """The torchrun that has started this process, by its run id or else by its place; None without one."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"{platform.node()} {os.getppid()}" if run == "none" else run


def is_restarted(directory: Path) -> bool:
    """Whether the run in a directory is to go on, because the torchrun that began it has now begun it again."""
    place = directory / ENVIRONMENT
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" or not place.exists():
        return False
    return bool(read_json(place).get("launcher") == launcher())


def say_repeated(count: int, what: str, team: Processes) -> None:
    """Log how many damaged frames all processes have read with another one in their place."""
    if (total := sum(team.gather(count))) and team.is_main:
        log.warning("%s: %d damaged frames, the last good one in the place of each", what, total)


def say_skipped(reasons: Counter[str], what: str, team: Processes) -> None:
    """Log of which videos all processes could not read windows, and how many."""
    total = sum(team.gather(reasons), Counter[str]())
    if total and team.is_main:
        log.warning("%s: %d windows could not be read, others in their place", what, total.total())
        for reason, count in total.most_common():
            log.warning("%d of %s", count, reason)


def set_up_process(threads: int | None) -> None:
    """CPU threads of this process, where the configuration says so (torchrun's and the environment's otherwise), and
    what becomes of memory that it frees."""
    if threads is not None:
        torch.set_num_threads(threads)
    keep_freed_memory()
