"""The CPU seconds of a forward pass and of a training step, by kind of kernel.

    python benchmarks/kernels.py [--threads 2] [--json FILE] [--quick]

Times every operation of PyTorch, also in the backward pass. The table shows each kind's share and its rate, in GFLOP
per CPU second and relative to the machine's fastest matrix products, measured in the same run.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from measuring import Alone, FailedError, Measured, alone, machine, machine_rates, parser_of, seconds, timed
from networks import configuration, make_data, make_weights, one_forward, one_step
from torch.utils._python_dispatch import TorchDispatchMode

from bitad.reports.tables import Cell, Table
from bitad.runtime.environment import set_up_process
from bitad.runtime.files import write_json
from bitad.runtime.progress import Meter
from bitad.training.step_cost import count_flops

WORK = ("forward", "training step")
REST = "all else"
KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward"),
    "attention": (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
    "GELU": ("gelu", "gelu_backward"),
    "layer norms": ("native_layer_norm", "native_layer_norm_backward"),
}
_KIND_OF = {operation: kind for kind, operations in KINDS.items() for operation in operations}
COLUMNS = ("work", "kernels", "CPU", "share", "GFLOP a CPU second", "of the best")


class Kernels(TorchDispatchMode):
    """Within, sums CPU seconds and floating-point operations by kind."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu_s: defaultdict[str, float] = defaultdict(float)
        self.flops: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kind = _KIND_OF.get(func.overloadpacket.__name__, REST)
        out = None

        def run() -> None:
            nonlocal out
            out = func(*args, **(kwargs or {}))

        self.cpu_s[kind] += timed(run).cpu_s
        self.flops[kind] += count_flops(func, args, kwargs or {}, out)
        return out


def work(folder: str, threads: int, *, what: str, **sizes: Any) -> Measured:
    """A forward pass or a training step on one window, after a warm-up."""
    set_up_process(threads)
    config = configuration(folder, **sizes)
    run = one_forward(config) if what == "forward" else one_step(config)
    with Kernels():
        run()
    with Kernels() as kernels:
        took = timed(run)
    # Python and autograd take time between the operations.
    kernels.cpu_s[REST] += took.cpu_s - sum(kernels.cpu_s.values())
    return Measured(took, 1, "windows", facts={"cpu_s": dict(kernels.cpu_s), "flops": dict(kernels.flops)})


def table_of(done: Mapping[str, Alone], *, best: float, notes: Sequence[str]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for what, one in done.items():
        facts = one.measured.facts
        for kind in (*KINDS, REST):
            cpu_s, flops = facts["cpu_s"].get(kind, 0.0), facts["flops"].get(kind, 0)
            rate = flops / cpu_s if flops else None
            rows.append(
                (
                    what,
                    kind,
                    seconds(cpu_s),
                    cpu_s / one.measured.took.cpu_s,
                    None if rate is None else round(rate / 1e9),
                    None if rate is None else rate / best,
                )
            )
    return Table("Where a network's time goes", COLUMNS, tuple(rows), tuple(notes))


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser_of(__doc__).parse_args(arguments)
    sizes: dict[str, Any] = {"size": "s", "frames": 768, "pixels": 160}
    if options.quick:
        sizes = {"size": "tiny", "frames": 96, "pixels": 64}
    done = {}
    try:
        with tempfile.TemporaryDirectory() as folder, Meter("measuring", len(WORK) + 1) as meter:
            given = {"precisions": ["fp32"], "quick": options.quick, "threads": options.threads}
            best = alone(machine_rates, given, threads=options.threads).measured.facts["fp32"]
            meter.advance(1, "the machine")
            make_data(Path(folder), frames=sizes["frames"], pixels=sizes["pixels"])
            make_weights(Path(folder), **sizes)
            for what in WORK:
                given = {"folder": folder, "threads": options.threads, "what": what, **sizes}
                done[what] = alone(work, given, threads=options.threads)
                meter.advance(1, what)
    except FailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    notes = (
        f"VideoMAE-{sizes['size'].upper()}, a window of {sizes['frames']} frames of {sizes['pixels']}x"
        f"{sizes['pixels']}, fp32; the step recomputes the blocks.",
        f"{machine()}, {options.threads} threads; its best matrix products: {best / 1e9:.0f} GFLOP a CPU second.",
    )
    print(table_of(done, best=best, notes=notes).text())
    if options.json is not None:
        figures = {what: dict(one.measured.facts) for what, one in done.items()}
        write_json({"best_flops_per_cpu_s": best, "measured": figures}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
