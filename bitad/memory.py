"""What becomes of the memory that tensors on a CPU leave behind.

glibc hands the memory of large tensors back to the system as soon as they are freed, and the next ones take it afresh,
page by page: a quarter of a transformer's time. What it keeps instead to use again, it keeps between what is still in
use, in holes that soon fit nothing. So it is told to keep it, and :func:`give_back` is called where the holes are many
and what comes next is large. Elsewhere than with glibc, neither does anything.
"""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from typing import Any

_KEPT_BYTES = 32 * 2**20  # the most that every version of glibc takes
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as in its malloc.h


def keep_freed_memory() -> None:
    """From now on, what this process frees is kept to be used again, but for the largest tensors."""
    libc = _glibc()
    if libc is not None:
        # Left alone, it learns from the sizes that it sees, and a run's peak depends on what came first.
        for option in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            libc.mallopt(option, _KEPT_BYTES)


def give_back() -> None:
    """Hands what is kept back to the system: the memory of a process is then what it holds."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> Any:
    """The C library, where it is GNU's."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
