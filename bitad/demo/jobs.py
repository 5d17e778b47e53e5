"""Trainings side by side, each a ``bitad train`` process, in the order of their dependencies."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bitad.config.loading import load_config
from bitad.config.schema import Config
from bitad.data.fingerprints import Fingerprints, fingerprints
from bitad.data.fingerprints import changes as data_changes
from bitad.data.sources import read_ground_truth, read_test_ground_truth
from bitad.runtime.progress import Meter
from bitad.training.metrics import METRICS, read_metrics
from bitad.weights.checkpoint import load_checkpoint

POLL_SECONDS = 0.5

_PROGRAM = """
import sys
from bitad.cli import main
from bitad.runtime.workers import end_with_input
end_with_input()
sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Job:
    """One training: the arguments of ``bitad train``, and its run.

    Args:
        preset: a configuration file or the name of a preset.
        overrides: ``key.sub=value`` each.
    """

    preset: str
    overrides: tuple[str, ...]

    @cached_property
    def config(self) -> Config:
        return load_config(self.preset, self.overrides)

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self.config.run_directory

    def needs(self) -> set[Path]:
        """The run directories or checkpoints that its networks start from."""
        return {path for path in (self.config.init.forward, self.config.init.reverse) if path is not None}

    def network_steps(self) -> int:
        """The steps of the training, counted for each network, as a measure of its cost."""
        config = self.config
        videos = read_ground_truth(config.data).subset(config.data.training_subset).videos.values()
        windows = sum(bool(video.labels) for video in videos) * config.training.windows_per_video
        return config.training.epochs * (windows // config.training.batch) * len(config.views)

    def network_steps_done(self) -> int:
        """The steps so far, by the records of the run."""
        metrics = self.directory / METRICS
        records = read_metrics(metrics) if metrics.exists() else []
        return int(records[-1]["step"]) * len(self.config.views) if records else 0

    def is_done(self) -> bool:
        """Whether the run has finished all epochs.

        Raises:
            ValueError: the run exists with another configuration or other data.
        """
        last = self.directory / "last.pt"
        if not last.exists():
            return False
        saved = load_checkpoint(last)
        changes = saved.changes(self.config)
        if saved.config.init != self.config.init:  # not a change for a resumed run, but another run here
            changes.append(f"init was {saved.config.init}, is {self.config.init}")
        if changes:
            raise ValueError(f"{self.directory} is a run with other settings ({'; '.join(changes)}); delete or move it")
        if saved.data is not None and (changes := data_changes(saved.data, self._fingerprints())):
            raise ValueError(f"{self.directory} is a run with other data ({'; '.join(changes)}); delete or move it")
        return saved.epoch == self.config.training.epochs

    def _fingerprints(self) -> Fingerprints:
        """Fingerprints of the current data."""
        training = read_ground_truth(self.config.data).subset(self.config.data.training_subset)
        labelled = [video for video in training.videos.values() if video.labels]
        return fingerprints(self.config, labelled, read_test_ground_truth(self.config))

    def start(self) -> subprocess.Popen[bytes]:
        """Starts or resumes the training on one thread, with its output in output.txt. It ends with this process."""
        command = [sys.executable, "-c", _PROGRAM, "train", self.preset, *self.overrides, "--device", "cpu"]
        if (self.directory / "last.pt").exists():
            command.append("--resume")
        self.directory.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (self.directory / "output.txt").open("wb") as output:
            return subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=environment
            )


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def train_side_by_side(jobs: Sequence[Job], *, what: str, processes: int | None = None) -> None:
    """Runs all jobs; finished ones are kept, and interrupted ones resume.

    Single-threaded trainings side by side are 1.4 times faster on two cores than multi-threaded ones in turn.

    Args:
        jobs: in order of start; a job waits for those it needs.
        what: title of the progress display, which shows the time left for all jobs.
        processes: number of processes at a time; by default the number of cores.

    Raises:
        ValueError: a training failed; the message has its last line. The others stop, and resume in the next call.
    """
    waiting = [job for job in jobs if not job.is_done()]
    steps = {job.directory: job.network_steps() for job in waiting}  # of unfinished runs
    done_before = sum(job.network_steps_done() for job in waiting)
    running: dict[Job, subprocess.Popen[bytes]] = {}
    finished: set[Job] = set()
    with ExitStack() as started, Meter(what, sum(steps.values()) - done_before) as meter:
        try:
            while waiting or running:
                not_done = {job.directory for job in (*waiting, *running)}
                ready = [job for job in waiting if not (job.needs() & not_done)]
                for job in ready[: (processes or cores()) - len(running)]:
                    running[job] = started.enter_context(job.start())
                    waiting.remove(job)
                time.sleep(POLL_SECONDS)
                finished |= _finished(running)
                for job in finished & set(running):
                    del running[job]
                now = sum(steps[job.directory] for job in finished)
                now += sum(job.network_steps_done() for job in (*waiting, *running))
                names = ", ".join(job.directory.name for job in running)
                meter.advance(max(0, now - done_before - meter.done), note=names)
        finally:
            for process in running.values():
                process.kill()


def _finished(running: Mapping[Job, subprocess.Popen[bytes]]) -> set[Job]:
    ended = {job for job, process in running.items() if process.poll() is not None}
    for job in ended:
        if running[job].returncode != 0:
            output = (job.directory / "output.txt").read_text(errors="replace").split("\n")
            last_line = next((line for line in reversed(output) if line), "killed")
            raise ValueError(f"training {job.directory.name} failed: {last_line}")
    return ended
