"""A run that is killed again and again, wherever it stands, ends as if nothing had happened.

The runs are commands in processes of their own, ended by SIGKILL: nothing in them gets to tidy up.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from builders import config_of, feature_data, video_data
from processes import Running
from runs import ALONE, assert_same_run, both_baselines, records

from bitad.config.schema import Config
from bitad.runtime.files import remove_leftovers
from bitad.training.trainer import Trainer
from bitad.weights.checkpoint import load_checkpoint

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill a process"),
]

# What depends on PyTorch's random numbers; many short epochs, of which every second one is tested after.
RUN = ("model.dropout=0.2", "model.drop_path=0.2", "training.windows_per_video=2", "training.evaluate_every=2")

# A command line that kills its process within the writing of a checkpoint.
DYING = """
import io, os, signal, sys
import torch
from bitad.cli import main

place, write, share = os.environ["DIES"].split()
writes_left = int(write)
replace, save = os.replace, torch.save


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Dying:
    def __init__(self, stream, size):
        self.stream, self.left = stream, size

    def write(self, data):
        if len(data) >= self.left:
            self.stream.write(bytes(data)[: self.left])
            self.stream.flush()
            die()
        self.left -= len(data)
        return self.stream.write(data)

    def __getattr__(self, name):
        return getattr(self.stream, name)


def dying_save(content, stream):
    if place == "within" and writes_left == 1:
        buffer = io.BytesIO()
        save(content, buffer)
        stream = Dying(stream, int(float(share) * len(buffer.getvalue())))
    save(content, stream)


def dying_replace(source, target):
    global writes_left
    written = str(source).endswith(".tmp") and os.path.basename(target) in ("last.pt", "best.pt")
    writes_left -= written
    if place == "before" and written and not writes_left:
        die()
    replace(source, target)
    if place == "after" and written and not writes_left:
        die()


os.replace, torch.save = dying_replace, dying_save
sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Kill:
    """When a run is killed.

    Args:
        place: while it trains or tests, or while it writes a checkpoint: within the file, when that is written but has
            not its name yet, or right after it has.
        after: epochs that end before, or checkpoints written up to that one.
        share: of an epoch's time that passes besides, or of the checkpoint that is written.
    """

    place: Literal["training", "within", "before", "after"]
    after: int
    share: float


class KilledRun:
    """A run that `bitad train` starts, and resumes each time it was killed."""

    def __init__(self, path: Path, folder: Path, *overrides: str) -> None:
        self.arguments = [str(path), *overrides, f"output={folder / 'runs'}"]
        self.config = config_of(path, *self.arguments[1:])
        self.directory = self.config.run_directory
        self.last, self.log = self.directory / "last.pt", self.directory / "log.txt"
        self.folder = folder
        self.process: Running | None = None

    def start(self, dies: str = "") -> Running:
        resume = [] if self.newest() is None else ["--resume"]
        self.process = Running(
            "train",
            *self.arguments,
            "--device",
            "cpu",
            *resume,
            program=DYING if dies else None,
            env={"DIES": dies},
        )
        return self.process

    def said(self) -> str:
        return "" if self.process is None else "".join(self.process.output)

    def finish(self) -> None:
        process = self.start()
        assert process.wait(300) == 0, self.said()

    def kill(self, when: Kill, epoch_s: float) -> None:
        """Begin or go on, and be killed then."""
        epochs = self.epochs()
        if when.place == "training":
            process = self.start()
            self._wait(process, begins=self.begins() + 1, epochs=epochs + when.after)
            time.sleep(when.share * epoch_s)
            process.kill()
        else:
            process = self.start(f"{when.place} {when.after} {when.share}")
        assert process.wait(300) == -signal.SIGKILL, f"{when}: {self.said()}"
        left = list(self.directory.glob(f".*.{process.pid}.tmp"))
        if when.place != "training":
            assert len(left) == (when.place != "after")

    def _wait(self, process: Running, *, begins: int, epochs: int) -> None:
        """Until the run has begun so often, and so many of its epochs are saved."""
        end = time.monotonic() + 300
        while self.begins() < begins or self.epochs() < epochs:
            assert process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.005)

    def begins(self) -> int:
        return self.log.read_text(encoding="utf-8").count("training videos") if self.log.exists() else 0

    def epochs(self) -> int:
        while True:
            newest = self.newest()
            try:
                return 0 if newest is None else load_checkpoint(newest).epoch
            except FileNotFoundError:  # renamed in between
                continue

    def newest(self) -> Path | None:
        """The newest checkpoint. One that dies before the new one has its name has renamed the one before it."""
        return next((path for path in (self.last, self.directory / "last-1.pt") if path.exists()), None)


def uninterrupted(config: Config) -> tuple[Path, float]:
    """A run that nothing happens to, and the seconds that its epochs took on average."""
    Trainer(config, ALONE).run()
    began, ended = ((config.run_directory / name).stat().st_mtime for name in ("environment.json", "last.pt"))
    return config.run_directory, (ended - began) / config.training.epochs


def killed_and_whole_are_the_same(path: Path, folder: Path, kills: list[Kill], *overrides: str) -> None:
    whole, epoch_s = uninterrupted(config_of(path, *RUN, *overrides, f"output={folder / 'whole'}"))
    run = KilledRun(path, folder, *RUN, *overrides)
    for when in kills:
        run.kill(when, epoch_s)
    assert run.epochs() < run.config.training.epochs, "nothing was left to go on with after the last kill"
    run.finish()
    assert_same_run(whole, run.directory)
    assert len(records(run.directory, kind="training")) > 3
    assert [file.name for file in run.directory.glob(".*")] == []


def drawn_kills(seed: int, *, training: int, writing: int) -> list[Kill]:
    """So many kills at random moments of training, and so many within the writing of a checkpoint, in any order.

    Of the latter, the first three are in the middle of the file, before it has its name, and after.
    """
    rng = np.random.default_rng(seed)
    places: list[Literal["within", "before", "after"]] = ["within", "before", "after"]
    kills = [Kill("training", int(rng.integers(0, 2)), float(rng.random())) for _ in range(training)]
    kills += [Kill(places[i % 3], int(rng.integers(1, 4)), float(rng.random())) for i in range(writing)]
    return [kills[i] for i in rng.permutation(len(kills))]


def test_a_run_killed_in_an_epoch_and_in_writing_ends_as_if_it_were_not(tmp_path: Path) -> None:
    kills = [Kill("training", 1, 0.5), Kill("within", 2, 0.7)]
    killed_and_whole_are_the_same(feature_data(tmp_path / "data"), tmp_path, kills, "training.epochs=9")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_killed_ten_times_ends_as_if_it_were_not(tmp_path: Path) -> None:
    path, kills = feature_data(tmp_path / "data"), drawn_kills(1, training=6, writing=4)
    killed_and_whole_are_the_same(path, tmp_path, kills, "training.epochs=40")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_on_videos_killed_ten_times_ends_as_if_it_were_not(tmp_path: Path) -> None:
    path, kills = video_data(tmp_path / "data"), drawn_kills(2, training=6, writing=4)
    pretrained = ("model.backbone.weights=package:playroom_backbone.safetensors", "model.backbone.table_pixels=64")
    overrides = ("training.epochs=40", "training.workers=1", "model.backbone.drop_path=0.3", *pretrained)
    killed_and_whole_are_the_same(path, tmp_path, kills, *overrides)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("experiment", ["1", "3-1"])
def test_two_networks_killed_four_times_end_as_if_they_were_not(tmp_path: Path, experiment: str) -> None:
    path = feature_data(tmp_path / "data")
    start = () if experiment == "1" else both_baselines(path)
    kills = drawn_kills(3, training=2, writing=2)
    killed_and_whole_are_the_same(path, tmp_path, kills, f"experiment={experiment}", *start, "training.epochs=20")


# What is left of files that were being written.


def test_what_dead_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    ours, theirs = f".last.pt.{os.getpid()}.tmp", f".last.pt.{os.getppid()}.tmp"
    kept = {"last.pt", theirs, ".notes.tmp", ".tmp", "last.pt.123.tmp", ".last.pt.0x7.tmp", ".last.pt.tmp"}
    for name in {*kept, ours, f".last.pt.{dead.pid}.tmp", f".metrics.jsonl.{10**30}.tmp"}:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept
