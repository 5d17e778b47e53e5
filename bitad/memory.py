"""What becomes of the memory that tensors on a CPU leave behind.

glibc hands the memory of large tensors back to the system as soon as they are freed, and the next ones take it afresh,
page by page: a quarter of a transformer's time. What it keeps instead to use again, it keeps between what is still in
use, in holes that soon fit nothing. So it is told to keep it, and :func:`give_back_holes` is called where many may have
come about and what comes next is large. With another C library, or glibc before 2.33, neither does anything.
"""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from typing import Any

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
