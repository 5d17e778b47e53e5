"""Where a training step on features spends its CPU time: 8 windows of 256 steps, the preset `gtea` otherwise.

    python benchmarks/feature_step.py [--steps 40] [--quick]

The features, 64 channels of random videos, are read from an ``.npz`` and from a folder of ``.npy`` files. CPU
milliseconds on one thread; each part is the median of its steps, as other work on the machine makes some of them slow.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measuring import machine, parser_of

from bitad.config.loading import load_config
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.formats.database import write_annotations
from bitad.reports.tables import Cell, Table
from bitad.runtime.distributed import process_group
from bitad.runtime.environment import set_up_process
from bitad.runtime.files import write_json
from bitad.training.losses import DetectionLoss
from bitad.training.optimizer import Ema
from bitad.training.step import Learner, TrainStep
from bitad.training.trainer import Trainer

CHANNELS, RATE = 64, 4.0
SOURCES = {".npz": "features.npz", "folder": "features"}
# What is measured, by part; a part within another one is taken from it.
PARTS: dict[str, tuple[type, str]] = {
    "forward": (TrainStep, "losses"),
    "losses": (DetectionLoss, "forward"),
    "targets": (Learner, "targets"),
    "backward": (torch.Tensor, "backward"),
    "clipping": (Learner, "clip"),
    "optimizer": (Learner, "step"),
    "average": (Ema, "update"),
    "schedule": (TrainStep, "advance"),
}
WITHIN = {"losses": "forward", "average": "optimizer"}


def write_data(folder: Path, *, videos: int = 20, segments: int = 24) -> None:
    """Writes random features in both forms, and annotations; every fifth video is a test video."""
    rng = np.random.default_rng(0)
    features, annotated = {}, {}
    names = tuple(f"class_{i}" for i in range(10))
    (folder / "features").mkdir()
    for number in range(videos):
        name, rows = f"video_{number:02d}", int(rng.integers(300, 900))
        features[name] = rng.standard_normal((rows, CHANNELS), dtype=np.float32)
        np.save(folder / "features" / f"{name}.npy", features[name])
        start = rng.uniform(0, rows - 20, segments)
        truth = np.stack([start, start + rng.uniform(4, 20, segments)], axis=1) / RATE
        labels = tuple(names[i] for i in rng.integers(0, len(names), segments))
        subset = "test" if number % 5 == 0 else "training"
        annotated[name] = AnnotatedVideo(name, subset, rows / RATE, truth, labels, rows, RATE)
    np.savez(folder / "features.npz", **features)  # type: ignore[arg-type]  # of numpy, which means its other options
    write_annotations(Annotations(annotated, names), folder / "annotations.json")


@contextmanager
def timed_parts() -> Iterator[defaultdict[str, float]]:
    """Within, the CPU seconds of each part are added to the yielded numbers."""
    spent: defaultdict[str, float] = defaultdict(float)

    def timing(part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(work)
        def timed(*arguments: Any, **keywords: Any) -> Any:
            began = time.process_time()
            try:
                return work(*arguments, **keywords)
            finally:
                took = time.process_time() - began
                spent[part] += took
                if part in WITHIN:
                    spent[WITHIN[part]] -= took

        return timed

    originals = {part: getattr(owner, name) for part, (owner, name) in PARTS.items()}
    for part, (owner, name) in PARTS.items():
        setattr(owner, name, timing(part, originals[part]))
    try:
        yield spent
    finally:
        for part, (owner, name) in PARTS.items():
            setattr(owner, name, originals[part])


def measure(folder: Path, source: str, steps: int) -> dict[str, float]:
    """CPU milliseconds of a step's parts, and of all of it."""
    overrides = (
        f"data.annotations={folder / 'annotations.json'}",
        f"data.features={folder / SOURCES[source]}",
        f"data.feature_channels={CHANNELS}",
        "data.feature_offset_frames=0",
        f"output={folder / 'runs'}",
        "window.steps=256",
        f"training.windows_per_video={steps}",
    )
    parts: defaultdict[str, list[float]] = defaultdict(list)
    set_up_process(1)
    with process_group("cpu") as ranks, timed_parts() as spent:
        trainer = Trainer(load_config("gtea", overrides), ranks)
        trainer.train_step.train()
        loader = iter(trainer.loader)
        for _ in range(steps):
            spent.clear()
            began = time.process_time()
            batch = next(loader)
            read = time.process_time()
            trainer.train_step([batch])
            trainer.train_step.advance()
            whole = time.process_time() - began
            measured = {"reading": read - began, **spent}
            for part, took in {**measured, "rest": whole - sum(measured.values()), "all": whole}.items():
                parts[part].append(1000 * took)
    return {part: median(each[steps // 10 :]) for part, each in parts.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, threads=None)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        write_data(Path(place))
        measured = {
            source: measure(Path(place), source, 2 if options.quick else options.steps) for source in SOURCES
        }
    names = ("reading", *PARTS, "rest", "all")
    rows: list[tuple[Cell, ...]] = [(name, *(round(one[name], 2) for one in measured.values())) for name in names]
    notes = (f"{machine()}; one thread.",)
    table = Table("CPU milliseconds of a training step on features", ("part", *measured), rows, notes)
    print(table.text())
    if options.json:
        write_json(measured, options.json)


if __name__ == "__main__":
    main()
