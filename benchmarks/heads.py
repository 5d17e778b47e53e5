"""ActionFormer's and TriDet's pyramid and head on playroom: F, B, their late fusion, and a trained fusion of both.

Needs the data of ``bitad demo --out OUT``, and keeps what is trained in OUT already: the demo's own runs are those of
ActionFormer's first seed.

    bitad demo --out playroom-demo
    python benchmarks/heads.py [--out playroom-demo] [--seeds 3] [--experiments 3-3] [--processes N]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bitad.config.names import EXPERIMENTS
from bitad.demo import Job, Scale, Trainings, train_side_by_side
from bitad.reports.comparison import compare
from bitad.runtime.files import atomic_write
from bitad.runtime.progress import progress_callback

# By the name of the runs: what they change in the presets.
DETECTORS: dict[str, tuple[str, ...]] = {
    "playroom": (),
    "playroom-tridet": ("model.pyramid.type=sgp", "model.head.type=trident"),
}


def jobs_of(out: Path, *, seeds: int, experiments: Sequence[str]) -> list[Job]:
    """All trainings; those first that others start from."""
    jobs = []
    for name, changes in DETECTORS.items():
        own = (*changes, f"name={name}")
        scale = Scale("heads", seeds=seeds, experiments=tuple(experiments), overrides=own, pair_overrides=own)
        jobs += Trainings(out, scale, 0).jobs()
    return jobs


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("playroom-demo"), help="folder of the demo")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--experiments",
        nargs="*",
        choices=[name for name, one in EXPERIMENTS.items() if one.networks == 2],
        default=["3-3"],
    )
    parser.add_argument(
        "--processes", type=int, help="trainings side by side, of one thread each; default: the cores"
    )
    options = parser.parse_args(arguments)
    if not (options.out / "data").is_dir():
        parser.error(f"{options.out} has no data; run bitad demo --out {options.out} first")
    jobs = jobs_of(options.out, seeds=options.seeds, experiments=options.experiments)
    train_side_by_side(jobs, processes=options.processes)
    with progress_callback("evaluating") as on_progress:
        comparison = compare([job.directory for job in jobs], on_progress=on_progress)
    table = replace(comparison.table(), title="Playroom, mAP (%) of ActionFormer's and TriDet's pyramid and head")
    print(table.text())
    with atomic_write(options.out / "heads.md") as partial:
        partial.write_text(table.markdown(), encoding="utf-8")


if __name__ == "__main__":
    main()
