"""The environment of a run: versions, threads, and how the CPU's allocator keeps freed memory.

glibc returns the memory of large tensors to the system as soon as they are freed, and the next ones allocate it again,
page by page: a quarter of a transformer's time. Memory that it keeps instead lies between what is still in use, in
holes that soon fit nothing. So it is told to keep it, and :func:`give_back_holes` is called where many holes may exist
and the next allocations are large. With another C library, or glibc before 2.33, neither does anything.
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

_KEPT_BYTES = 32 * 2**20  # larger tensors are not kept
_HOLES_BYTES = 128 * 2**20  # worth the time that it takes to hand them back
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as in its malloc.h


class _Use(ctypes.Structure):
    """Of memory, as mallinfo2 tells it: ten sizes, of which the ninth is that of the holes."""

    _fields_ = (("_more", ctypes.c_size_t * 8), ("holes", ctypes.c_size_t), ("_top", ctypes.c_size_t))


def keep_freed_memory() -> None:
    """From now on, what this process frees is kept to be used again, but for the largest tensors."""
    libc = _glibc()
    if libc is not None:
        # Left alone, it learns from the sizes that it sees, and a run's peak depends on what came first.
        for option in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            libc.mallopt(option, _KEPT_BYTES)


def give_back_holes() -> None:
    """Hands what is kept back to the system, where it is much: then a process has little more than what it holds."""
    libc = _glibc()
    # Of holes, it counts those too that it has given back before: once they have been many, it is called each time.
    if libc is not None and libc.mallinfo2().holes > _HOLES_BYTES:
        libc.malloc_trim(0)


@cache
def _glibc() -> Any:
    """The C library, where it is GNU's and can tell how memory is used."""
    if platform.libc_ver()[0] != "glibc":
        return None
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        return None
    libc.mallinfo2.restype = _Use
    return libc


ENVIRONMENT = "environment.json"  # of a run directory


def environment(ranks: Ranks) -> dict[str, Any]:
    """What a run was made with."""
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
    """The torchrun that has started this process, by its run id or else by its place; None without one."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"{platform.node()} {os.getppid()}" if run == "none" else run


def is_restarted(directory: Path) -> bool:
    """Whether the run in a directory is to go on, because the torchrun that began it has now begun it again."""
    place = directory / ENVIRONMENT
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" or not place.exists():
        return False
    return bool(read_json(place).get("launcher") == launcher())


def log_repeated_frames(count: int, what: str, ranks: Ranks) -> None:
    """Log how many damaged frames all processes have read with another one in their place."""
    if (total := sum(ranks.gather(count))) and ranks.is_main:
        log.warning("%s: %d damaged frames, the last good one in the place of each", what, total)


def log_skipped_windows(reasons: Counter[str], what: str, ranks: Ranks) -> None:
    """Log of which videos all processes could not read windows, and how many."""
    total = sum(ranks.gather(reasons), Counter[str]())
    if total and ranks.is_main:
        log.warning("%s: %d windows could not be read, others in their place", what, total.total())
        for reason, count in total.most_common():
            log.warning("%d of %s", count, reason)


def set_up_process(threads: int | None) -> None:
    """CPU threads of this process, where the configuration says so (torchrun's and the environment's otherwise), and
    what becomes of memory that it frees."""
    if threads is not None:
        torch.set_num_threads(threads)
    keep_freed_memory()
