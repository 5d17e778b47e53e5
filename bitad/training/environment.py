"""What a run is made in: versions, log and threads."""

from __future__ import annotations

import logging
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bitad
from bitad.training.distributed import Processes

log = logging.getLogger("bitad")


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
        "command": sys.argv[1:],
    }


def set_up_logging(directory: Path | None, *, show: bool = True) -> None:
    """The project's log: lines on standard error, and in `log.txt` of a run directory if one is given."""
    handlers: Sequence[logging.Handler] = [logging.StreamHandler()] if show else []
    if directory is not None and show:
        directory.mkdir(parents=True, exist_ok=True)
        handlers = [*handlers, logging.FileHandler(directory / "log.txt", encoding="utf-8")]
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for handler in log.handlers:
        handler.close()
    log.handlers = list(handlers)
    log.setLevel(logging.INFO)
    log.propagate = False


def set_threads(threads: int | None) -> None:
    """CPU threads of this process, where the configuration says so; torchrun's and the environment's otherwise."""
    if threads is not None:
        torch.set_num_threads(threads)
