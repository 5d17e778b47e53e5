"""Memory that is freed is kept, and given back once it is much."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bitad.runtime import environment as memory

HOLES = """
import torch
from bitad.runtime.environment import give_back_holes, keep_freed_memory

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS"))

keep_freed_memory()
for count in (20, 100):
    tensors = [torch.ones(2**19) for _ in range(2 * count)]  # of 2 MiB
    full = resident()
    tensors = tensors[1::2]  # each second one is a hole
    holed = resident()
    give_back_holes()
    print(count, full - holed, holed - resident())
    assert all(float(tensor.sum()) == 2**19 for tensor in tensors)
"""


@pytest.mark.skipif(memory._glibc() is None, reason="another C library, or an older one, does as it likes")
def test_freed_memory_is_kept_and_given_back_where_it_is_much() -> None:
    said = subprocess.run([sys.executable, "-c", HOLES], check=True, capture_output=True, text=True).stdout
    for line, given_back in zip(said.splitlines(), (False, True), strict=True):
        count, at_once, in_the_end = map(int, line.split())
        assert at_once < 0.1 * 2 * count
        assert (in_the_end > 0.9 * 2 * count) == given_back
