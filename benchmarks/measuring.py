"""Measures workloads, each in its own process, and the peak rates of the machine.

A workload is a function in a module of this folder that takes JSON values and returns :class:`Measured`. :func:`alone`
runs it in a new interpreter, so that its peak memory is its own, or in several that form a process group as under
torchrun.

This module imports torch only to measure the rate of matrix products.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import os
import platform
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_STATUS = Path("/proc/self/status")


class Took(NamedTuple):
    """CPU seconds, user and system, of all threads and finished child processes; and seconds by the clock."""

    cpu_s: float
    wall_s: float

    def __sub__(self, other: Took) -> Took:
        return Took(self.cpu_s - other.cpu_s, self.wall_s - other.wall_s)


@dataclass(frozen=True)
class Measured:
    """The cost of a workload, and its minimum needs.

    Args:
        took: by the work alone, without imports and preparation.
        amount: of work, in ``unit``: "frames", "detections", ...
        flops: necessary floating-point operations.
        precision: of these operations.
        bytes: that must be read at least once.
        floor_s: CPU seconds of other necessary work, measured in the same process.
        facts: other results.
    """

    took: Took
    amount: float
    unit: str
    flops: float = 0.0
    precision: str = "fp32"
    bytes: float = 0.0
    floor_s: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)


class Alone(NamedTuple):
    """A workload and its process or processes.

    Args:
        measured: of the work: CPU seconds of all processes, wall seconds of the slowest.
        peak_mib: the largest peak of resident memory of a process, in MiB.
        process: the cost of the processes, with the start of Python and imports.
    """

    measured: Measured
    peak_mib: float
    process: Took


class FailedError(Exception):
    """A workload failed; the message is one line."""


def now() -> Took:
    """Readings of both clocks; only differences have a meaning."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Took(time.process_time() + children.ru_utime + children.ru_stime, time.monotonic())


def timed(work: Callable[[], object]) -> Took:
    """The cost of a call."""
    began = now()
    work()
    return now() - began


def best_of(repetitions: int, works: Mapping[str, Callable[[], object]]) -> dict[str, Took]:
    """The minimum cost of each; they alternate, so that other load on the machine affects all equally."""
    best = dict.fromkeys(works, Took(math.inf, math.inf))
    for _ in range(repetitions):
        for what, work in works.items():
            best[what] = Took(*map(min, best[what], timed(work)))
    return best


def alone(work: Callable[..., Measured], given: Mapping[str, Any], *, threads: int, processes: int = 1) -> Alone:
    """Runs a workload in its own process, or in several together.

    Args:
        work: a top-level function in a module of this folder.
        given: its arguments; JSON values.
        threads: of each process.

    Raises:
        FailedError: it failed, or was killed.
    """
    # By the file: the module of a running script is named __main__.
    command = [sys.executable, __file__, Path(inspect.getfile(work)).stem, work.__name__, json.dumps(given)]
    ranks = {}
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    began = time.monotonic()
    running = []
    for rank in range(processes):
        place = {**ranks, "RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks else {}
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), **place}
        running.append(
            subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        )
    try:
        outputs = [process.communicate() for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, error) in zip(running, outputs, strict=True):
        if process.returncode:
            last = error.strip().splitlines()[-1:] or ["no output"]
            raise FailedError(f"{work.__name__} ended with status {process.returncode}: {last[0]}")
    return _together([json.loads(out.splitlines()[-1]) for out, _ in outputs], time.monotonic() - began)


def _together(reports: list[dict[str, Any]], wall_s: float) -> Alone:
    """The reports of all processes as one."""
    measured = [report["measured"] for report in reports]
    cpu_s, walls_s = zip(*(one["took"] for one in measured), strict=True)
    process = Took(sum(report["cpu_s"] for report in reports), wall_s)
    peak = max(report["peak_mib"] for report in reports)
    return Alone(Measured(**{**measured[0], "took": Took(sum(cpu_s), max(walls_s))}), peak, process)


def peak_mib() -> float:
    """The peak of this process' resident memory, in MiB."""
    if _STATUS.exists():
        # getrusage's value is at least that of the parent process.
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)


def machine_rates(*, threads: int, precisions: Iterable[str], quick: bool) -> Measured:
    """The machine's peak rates per CPU second: operations of matrix products in each precision, and copied bytes.

    Returns:
        the rates as ``facts``, by the precision's name and as "copy".
    """
    import torch

    torch.set_num_threads(threads)
    began = now()
    rates = {"copy": _copy_rate(2**24 if quick else 2**28)}
    for precision in precisions:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        best = 0.0
        for size in (256, 512) if quick else (512, 1024, 2048):
            a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
            once = best_of(2, {"product": partial(torch.matmul, a, b)})["product"].cpu_s
            # A few milliseconds are too short for the CPU clock, and a machine's first ones may be faster.
            count = max(1, round((0.02 if quick else 0.5) / once))
            took = best_of(2 if quick else 4, {"products": partial(_multiply, a, b, count)})["products"]
            best = max(best, count * 2 * size**3 / took.cpu_s)
            if count == 1:  # a precision without CPU instructions takes a minute
                break
        rates[precision] = best
    return Measured(now() - began, len(rates), "rates", facts=rates)


def _multiply(a: Any, b: Any, count: int) -> None:
    for _ in range(count):
        a @ b


def _copy_rate(size: int) -> float:
    """Bytes copied per CPU second."""
    source, target = np.ones(size, np.uint8), np.empty(size, np.uint8)
    return size / best_of(5, {"copy": partial(np.copyto, target, source)})["copy"].cpu_s


def machine() -> str:
    """The processor's name and its number of cores."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        name = names[0] if names else name
    return f"{name}, {os.cpu_count()} cores"


def parser_of(description: str | None, *, threads: int | None = 2) -> argparse.ArgumentParser:
    """The command line of benchmarks; ``threads`` None: without the option."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if threads is not None:
        parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--quick", action="store_true", help="small workloads, to check that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    return parser


def seconds(value: float) -> str:
    """Seconds with three digits: "142 ms", "21.0 s"."""
    if value < 0.9995:
        return f"{value * 1000:#.3g}".rstrip(".") + " ms"
    return (f"{value:#.3g}" if value < 999.5 else f"{value:,.0f}").rstrip(".") + " s"


def _main() -> None:
    """Runs a workload in this process, and prints its cost as the last line."""
    module, name, given = sys.argv[1:]
    measured = getattr(import_module(module), name)(**json.loads(given))
    report = {"measured": asdict(measured), "peak_mib": peak_mib(), "cpu_s": now().cpu_s}
    print("\n" + json.dumps(report))


if __name__ == "__main__":
    _main()
