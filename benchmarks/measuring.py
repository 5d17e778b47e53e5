"""What pieces of work take, each in a process of its own, and what the machine can do at best.

A piece of work is a function of a module of this folder that takes what JSON can say and returns :class:`Measured`.
:func:`alone` runs it in a fresh interpreter, so that nothing done before counts towards its memory, and where asked in
several that know each other as torchrun's do.

This module does not import torch until a rate of matrix products is asked for.
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
    """What a piece of work took, and what it cannot do without.

    Args:
        took: by the work alone, without imports and preparation.
        amount: of what it does, in ``unit``: "frames", "detections", ...
        flops: floating-point operations that it needs.
        precision: in which they are done.
        bytes: that it must at least read once.
        floor_s: CPU seconds of what else it cannot do without, measured beside it.
        facts: what else is worth keeping.
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
    """A piece of work and the process, or processes, in which it was done.

    Args:
        measured: of the work: CPU seconds of all processes, those by the clock of the slowest.
        peak_mib: the most resident memory of a process, in MiB.
        process: the whole of it, with the start of Python and imports.
    """

    measured: Measured
    peak_mib: float
    process: Took


class FailedError(Exception):
    """A piece of work that did not come to its end; the message is one line."""


def now() -> Took:
    """Readings of both clocks, of which differences mean something."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Took(time.process_time() + children.ru_utime + children.ru_stime, time.monotonic())


def timed(work: Callable[[], object]) -> Took:
    """What calling it takes."""
    began = now()
    work()
    return now() - began


def best_of(repetitions: int, works: Mapping[str, Callable[[], object]]) -> dict[str, Took]:
    """The least that each takes; they take turns, so that what else the machine does falls on all alike."""
    best = dict.fromkeys(works, Took(math.inf, math.inf))
    for _ in range(repetitions):
        for what, work in works.items():
            best[what] = Took(*map(min, best[what], timed(work)))
    return best


def alone(work: Callable[..., Measured], given: Mapping[str, Any], *, threads: int, processes: int = 1) -> Alone:
    """Does a piece of work in a process of its own, or in several together.

    Args:
        work: a function at the top of a module of this folder.
        given: its arguments; what JSON can say.
        threads: of each process.

    Raises:
        FailedError: it failed, or was killed.
    """
    # By the file: in a script that is being run the module's name says less.
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
        running.append(subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    try:
        said = [process.communicate() for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, error) in zip(running, said, strict=True):
        if process.returncode:
            last = error.strip().splitlines()[-1:] or ["it said nothing"]
            raise FailedError(f"{work.__name__} ended with status {process.returncode}: {last[0]}")
    return _together([json.loads(out.splitlines()[-1]) for out, _ in said], time.monotonic() - began)


def _together(reports: list[dict[str, Any]], wall_s: float) -> Alone:
    """What the processes have reported, as one."""
    measured = [report["measured"] for report in reports]
    cpu_s, walls_s = zip(*(one["took"] for one in measured), strict=True)
    process = Took(sum(report["cpu_s"] for report in reports), wall_s)
    peak = max(report["peak_mib"] for report in reports)
    return Alone(Measured(**{**measured[0], "took": Took(sum(cpu_s), max(walls_s))}), peak, process)


def peak_mib() -> float:
    """The most memory that this process has had resident, in MiB."""
    if _STATUS.exists():
        # What getrusage says is at least what the process had that started this one.
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)


def machine_rates(*, threads: int, precisions: Iterable[str], quick: bool) -> Measured:
    """What the machine does at best in a CPU second: operations of matrix products in each precision, copied bytes.

    Returns:
        its ``facts`` hold them, by the precision's name and as "copy".
    """
    import torch

    torch.set_num_threads(threads)
    began = now()
    rates = {"copy": _copy_rate(2**24 if quick else 2**28)}
    for precision in precisions:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        best = 0.0
        for size in (512, 1024, 2048):
            a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
            once = best_of(2, {"product": partial(torch.matmul, a, b)})["product"].cpu_s
            # Of a few milliseconds, a clock of CPU seconds tells too little, and a machine's first ones may be faster.
            count = max(1, round((0.02 if quick else 0.5) / once))
            took = best_of(2 if quick else 4, {"products": partial(_multiply, a, b, count)})["products"]
            best = max(best, count * 2 * size**3 / took.cpu_s)
            if count == 1:  # without instructions of its own a precision takes a minute
                break
        rates[precision] = best
    return Measured(now() - began, len(rates), "rates", facts=rates)


def _multiply(a: Any, b: Any, count: int) -> None:
    for _ in range(count):
        a @ b


def _copy_rate(size: int) -> float:
    """Bytes copied in a CPU second."""
    source, target = np.ones(size, np.uint8), np.empty(size, np.uint8)
    return size / best_of(5, {"copy": partial(np.copyto, target, source)})["copy"].cpu_s


def machine() -> str:
    """The processor's name, and how many of its cores there are."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    return f"{name}, {os.cpu_count()} cores"


def parser_of(description: str | None, *, threads: int | None = 2) -> argparse.ArgumentParser:
    """What benchmarks are told on the command line; ``threads`` None: how many is not asked."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if threads is not None:
        parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--quick", action="store_true", help="little work: to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser


def seconds(value: float) -> str:
    """Seconds with three digits: "142 ms", "21.0 s"."""
    if value < 0.9995:
        return f"{value * 1000:#.3g}".rstrip(".") + " ms"
    return (f"{value:#.3g}" if value < 999.5 else f"{value:,.0f}").rstrip(".") + " s"


def _main() -> None:
    """In the process of a piece of work: does it, and says in a last line what it took."""
    module, name, given = sys.argv[1:]
    measured = getattr(import_module(module), name)(**json.loads(given))
    report = {"measured": asdict(measured), "peak_mib": peak_mib(), "cpu_s": now().cpu_s}
    print("\n" + json.dumps(report))


if __name__ == "__main__":
    _main()
