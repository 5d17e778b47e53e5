"""The environment of a run: versions, threads, restarts, and the CPU allocator.

By default glibc returns the memory of large tensors to the system, and the next tensors fault it in again: a quarter
of a transformer's time. Here it keeps memory, and returns holes before large allocations. Needs glibc 2.33.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bitad
from bitad.runtime.distributed import Ranks
from bitad.runtime.files import read_json
from bitad.runtime.log import log

ENVIRONMENT = "environment.json"  # in a run directory

_KEPT_BYTES = 32 * 2**20  # larger tensors are not kept
_HOLES_BYTES = 128 * 2**20  # fewer are not worth the time to return them
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # from malloc.h


def environment(ranks: Ranks) -> dict[str, Any]:
    return {
        "bitad": bitad.__version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "processes": ranks.world,
        "launcher": launcher(),
        "command": sys.argv[1:],
    }


def launcher() -> str | None:
    """The torchrun that started this process; None without torchrun."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"{platform.node()} {os.getppid()}" if run == "none" else run


def is_restarted(directory: Path) -> bool:
    """Whether torchrun has restarted the run in a directory, so that it must be resumed."""
    place = directory / ENVIRONMENT
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" or not place.exists():
        return False
    return bool(read_json(place).get("launcher") == launcher())


def set_up_process(threads: int | None) -> None:
    """Set the allocator and, if configured, the number of CPU threads."""
    if threads is not None:
        torch.set_num_threads(threads)
    keep_freed_memory()


def keep_freed_memory() -> None:
    libc = _glibc()
    if libc is not None:
        # By default glibc adapts, so that a run's peak depends on what came first.
        for option in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            libc.mallopt(option, _KEPT_BYTES)


def give_back_holes() -> None:
    """Return kept memory to the system if there is much of it."""
    libc = _glibc()
    # glibc also counts holes it has returned before: after many holes, every call trims.
    if libc is not None and libc.mallinfo2().holes > _HOLES_BYTES:
        libc.malloc_trim(0)


class _MemoryUse(ctypes.Structure):
    """The result of mallinfo2: ten sizes."""

    _fields_ = (("_more", ctypes.c_size_t * 8), ("holes", ctypes.c_size_t), ("_top", ctypes.c_size_t))


@cache
def _glibc() -> Any:
    if platform.libc_ver()[0] != "glibc":
        return None
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        return None
    libc.mallinfo2.restype = _MemoryUse
    return libc


def log_repeated_frames(count: int, what: str, ranks: Ranks) -> None:
    if (total := sum(ranks.gather(count))) and ranks.is_main:
        log.warning("%s: %d damaged frames, each replaced by the last good one", what, total)


def log_skipped_windows(reasons: Counter[str], what: str, ranks: Ranks) -> None:
    total = sum(ranks.gather(reasons), Counter[str]())
    if total and ranks.is_main:
        log.warning("%s: %d windows could not be read and were replaced by others", what, total.total())
        for reason, count in total.most_common():
            log.warning("%d of %s", count, reason)
