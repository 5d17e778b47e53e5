"""The cost of two networks and of one: peak memory and time of a training step, VideoMAE-S on 768 frames of 160x160.

Each row is a process that creates the trainer of an experiment (with random weights, the same backbone in all networks,
and a window of a rendered video) and takes steps, without counting the first. Experiment 1 takes the same steps as 1-1,
which starts from other weights; 3-1 starts from two saved sets of random weights. "1, one graph" is experiment 1 with
both losses added before one backward pass, as in the research group's code.

    python benchmarks/pair_cost.py [--steps 2] [--threads 2] [--size s] [--frames 768] [--pixels 160] [--json FILE]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from measuring import alone
from networks import ONE_GRAPH, make_data, make_weights, step

from bitad.reports.tables import Cell, Table
from bitad.runtime.files import write_json
from bitad.runtime.progress import Meter

ROWS = ("baseline", "1", ONE_GRAPH, "1x", "2x", "3-1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1, help="measured steps, after one that is not")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", default="s")
    parser.add_argument("--frames", type=int, default=768)
    parser.add_argument("--pixels", type=int, default=160)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    sizes = {"size": options.size, "frames": options.frames, "pixels": options.pixels}
    measured = {}
    with tempfile.TemporaryDirectory() as folder, Meter("measuring", len(options.rows)) as meter:
        make_data(Path(folder), frames=options.frames, pixels=options.pixels)
        make_weights(Path(folder), **sizes)
        for row in options.rows:
            given = {
                "folder": folder,
                "threads": options.threads,
                "experiment": row,
                "steps": options.steps,
                **sizes,
            }
            measured[row] = alone(step, given, threads=options.threads)
            meter.advance(note=row)
    first = measured[options.rows[0]]
    rows: list[tuple[Cell, ...]] = [
        (
            row,
            one.measured.took.cpu_s,
            one.measured.took.cpu_s / first.measured.took.cpu_s,
            one.peak_mib,
            one.peak_mib / first.peak_mib,
        )
        for row, one in measured.items()
    ]
    columns = ("experiment", "CPU seconds a step", "time, relative", "peak MiB", "memory, relative")
    note = (
        f"VideoMAE-{options.size.upper()}, {options.frames} frames of {options.pixels}x{options.pixels}, batch 1, "
    )
    note += f"single precision, activations recomputed, {options.threads} threads."
    table = Table("What two networks cost in training", columns, tuple(rows), (note,))
    print(table.text())
    if options.json:
        figures = {
            row: {
                "seconds": one.measured.took.wall_s,
                "cpu_seconds": one.measured.took.cpu_s,
                "peak_mib": one.peak_mib,
            }
            for row, one in measured.items()
        }
        write_json({"table": table.json(), "measured": figures}, options.json)


if __name__ == "__main__":
    main()
