"""What two networks cost beside one: peak memory and time of a training step, VideoMAE-S on 768 frames of 160x160.

Each row is a process of its own that makes the trainer of that experiment (random weights, of the backbone one set for
all networks, as of a pre-trained file; a window is decoded from a rendered video) and takes steps; the first one is not
counted. Experiment 1 takes the very steps of 1-1, which only
starts from other weights; 3-1 and its like are measured from two saved sets of random weights. "1, one graph" is what
experiment 1 would cost if both losses were added before one backward pass, as the research group's code does.

    python benchmarks/pair_cost.py [--steps 2] [--threads 2] [--size s] [--frames 768] [--pixels 160] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bitad.config import Config
from bitad.config_files import parse_config
from bitad.data.annotations import AnnotatedVideo, Annotations, write_annotations
from bitad.files import write_json
from bitad.models.adapters import is_adapter
from bitad.models.build import build_network
from bitad.models.detector import Detector, VideoBackbone
from bitad.models.weight_files import write_safetensors
from bitad.reports.tables import Cell, Table
from bitad.training.checkpoint import Checkpoint, save_checkpoint
from bitad.training.distributed import Processes
from bitad.training.environment import set_up_process
from bitad.training.trainer import Trainer
from bitad.video.writer import write_video

FPS, STRIDE = 30.0, 4
ONE_GRAPH = "1, one graph"
BACKBONE = "backbone.safetensors"
ROWS = ("baseline", "1", ONE_GRAPH, "1x", "2x", "3-1")


def make_data(folder: Path, frames: int, pixels: int) -> None:
    """One video just long enough for a window, with one action."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (pixels, pixels, 3), dtype=np.uint8)
    count = frames * STRIDE
    write_video(folder / "videos" / "one.mp4", (np.roll(picture, i, axis=1) for i in range(count)), fps=FPS)
    (folder / "videos" / "two.mp4").symlink_to("one.mp4")  # a training looks at its test videos before it begins
    duration_s = count / FPS
    segment = np.array([[0.4, 0.6]]) * duration_s
    video = AnnotatedVideo("one", "training", duration_s, segment, ("action",), count, FPS)
    test = AnnotatedVideo("two", "validation", duration_s, segment, ("action",), count, FPS)
    write_annotations(Annotations({"one": video, "two": test}, ("action",)), folder / "annotations.json")


def configuration(folder: Path, experiment: str, options: argparse.Namespace) -> Config:
    """A run of the experiment, by the published recipe's sizes, activations recomputed in the backward pass."""
    document = {
        "name": "cost",
        "experiment": experiment,
        "output": str(folder / "runs"),
        "data": {"annotations": str(folder / "annotations.json"), "videos": str(folder / "videos")},
        "window": {"steps": options.frames, "stride_frames": STRIDE, "crop": [1.0, 1.0]},
        "model": {
            "backbone": {
                "size": options.size,
                "pixels": options.pixels,
                "weights": str(folder / BACKBONE),
                "checkpointing": True,
            }
        },
        "training": {"batch": 1, "workers": 0},
    }
    starts = {key: str(folder / f"{key}.pt") for key in ("forward", "backward")}
    if experiment not in ("baseline", "1"):
        document["init"] = starts
    return parse_config(document, "of this benchmark")


def save_first_weights(folder: Path, options: argparse.Namespace) -> None:
    """A backbone, and two baselines on it that have learnt nothing."""
    network = build_network(configuration(folder, "baseline", options), 1)
    assert isinstance(network, Detector)
    assert isinstance(network.backbone, VideoBackbone)
    frozen = {name: tensor for name, tensor in network.backbone.vit.state_dict().items() if not is_adapter(name)}
    write_safetensors(frozen, folder / BACKBONE, said={})
    for key, direction in (("forward", "forward"), ("backward", "reverse")):
        config = configuration(folder, "baseline", options).model_copy(update={"direction": direction})
        trainer = Trainer(config, Processes(0, 1, torch.device("cpu")))
        save_checkpoint(Checkpoint(config, ("action",), trainer.network.state_dict(), 0, 7.5), folder / f"{key}.pt")


def measure(folder: Path, row: str, options: argparse.Namespace) -> dict[str, float]:
    """CPU seconds and seconds of a step, and the peak resident memory of this process in MiB."""
    set_up_process(options.threads)
    config = configuration(folder, "1" if row == ONE_GRAPH else row, options)
    trainer = Trainer(config, Processes(0, 1, torch.device("cpu")))
    trainer.network.train()
    batch = next(iter(trainer.loader))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(1 + options.steps):
        began, cpu = time.monotonic(), time.process_time()
        if row == ONE_GRAPH:
            losses = [trainer.losses_alone(i, view) for i, view in enumerate(trainer.views(batch))]
            torch.stack([one.total for one in losses]).sum().backward()
            for learner in trainer.learners:
                learner.clip()
                learner.step()
        else:
            trainer._train_step(batch)
        times.append((time.monotonic() - began, time.process_time() - cpu))
    seconds, cpu_seconds = np.mean(times[1:], axis=0).tolist()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mib": peak / 1024, "before_mib": before / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1, help="measured steps, after one that is not")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", default="s")
    parser.add_argument("--frames", type=int, default=768)
    parser.add_argument("--pixels", type=int, default=160)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of the data, in a process for one row
    options = parser.parse_args()
    if options.folder is not None:
        print(json.dumps(measure(options.folder, options.rows[0], options)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder, options.frames, options.pixels)
        save_first_weights(folder, options)
        measured = {}
        for row in options.rows:
            command = [sys.executable, __file__, "--folder", name, "--rows", row]
            for key in ("steps", "threads", "size", "frames", "pixels"):
                command += [f"--{key}", str(getattr(options, key))]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            measured[row] = json.loads(said.splitlines()[-1])
            print(row, measured[row], file=sys.stderr)
    first = measured[options.rows[0]]
    rows: list[tuple[Cell, ...]] = [
        (
            row,
            one["cpu_seconds"],
            one["cpu_seconds"] / first["cpu_seconds"],
            one["peak_mib"],
            one["peak_mib"] / first["peak_mib"],
        )
        for row, one in measured.items()
    ]
    columns = ("experiment", "CPU seconds a step", "time, relative", "peak MiB", "memory, relative")
    note = f"VideoMAE-{options.size.upper()}, {options.frames} frames of {options.pixels}x{options.pixels}, batch 1, "
    note += f"single precision, activations recomputed, {options.threads} threads."
    table = Table("What two networks cost in training", columns, tuple(rows), (note,))
    print(table.text())
    if options.json:
        write_json({"table": table.json(), "measured": measured}, options.json)


if __name__ == "__main__":
    main()
