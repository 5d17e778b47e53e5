"""Time and memory of trainings on this machine, estimated before they start."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

from bitad.config.schema import Config
from bitad.reports.plan import plan_training
from bitad.reports.tables import Row, Table
from bitad.runtime.distributed import choose_device

_MEASURED_S = 0.5
# Width of the matrices: large enough to keep all cores of a CPU, or a GPU, busy.
_WIDTH = {"cpu": 1024, "cuda": 8192}
# A step reaches this share of the rate of matrix products: it also normalises, pools, copies and updates weights.
_SHARE = 0.5
_GIB = 2**30


def matrix_rate(device: torch.device) -> float:
    """Floating-point operations a second in matrix products of single precision, measured for half a second."""
    width = _WIDTH[device.type]
    matrix = torch.rand(width, width, device=device)

    def multiply() -> None:
        product = matrix @ matrix
        product[0, 0].item()  # waits for a GPU

    multiply()  # the first call prepares the library
    start, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < _MEASURED_S or count == 0:
        multiply()
        count += 1
    return 2 * width**3 * count / elapsed


def cost_table(
    configs: Mapping[str, Config],
    descriptions: Mapping[str, str],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Table:
    """The estimated time and memory of training each configuration on this machine's GPU, or else its CPU.

    Args:
        configs: by name, with annotations that can be read.
        descriptions: of the configurations, by the same names.
    """
    on_progress(0, len(configs))  # before the rate is measured
    device = choose_device()
    rate = matrix_rate(device)
    rows: list[Row] = []
    for number, (name, config) in enumerate(configs.items(), start=1):
        plan = plan_training(config, device="cpu" if device.type == "cpu" else "gpu", as_configured=True)
        (cost,) = plan.costs
        assert plan.steps is not None  # the annotations have been read
        steps = plan.steps * config.training.epochs
        step_s = cost.flops / (_SHARE * rate)
        gib = plan.peak_bytes(cost) / _GIB
        memory = f"{gib:.1f} GiB" if gib >= 0.1 else f"{gib:.2f} GiB"
        rows.append((name, memory, _duration(step_s), steps, _duration(step_s * steps), descriptions[name]))
        on_progress(number, len(configs))
    threads = torch.get_num_threads()
    where = f"{threads} thread{'s' if threads > 1 else ''} of the CPU"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    notes = [
        f"Estimates for {where}: the operations of the steps, at {_SHARE:.0%} of the {rate / 1e9:,.0f} GFLOP/s that "
        "matrix products reached just now. Reading videos and evaluation come on top.",
        "Memory: simulated, without PyTorch itself (on a CPU about 0.8 GiB).",
    ]
    columns = ("", "memory", "one step", "steps", "in all", "description")
    return Table("Training on this machine, estimated", columns, rows, notes)


def _duration(seconds: float) -> str:
    """For people: `40 s`, `12 min`, `3.5 h`, `6 days`."""
    for unit, length, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds < most * length:
            count = seconds / length
            return f"{count:.0f} {unit}" if count >= 10 else f"{count:.2g} {unit}"
    return f"{seconds / 86400:,.0f} days"
