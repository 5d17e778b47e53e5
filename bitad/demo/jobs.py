"""Many trainings at once, each ``bitad train`` in a process of its own, in the order in which they need each other."""

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

SECONDS_BETWEEN_LOOKS = 0.5

_PROGRAM = """
import sys
from bitad.cli import main
from bitad.runtime.workers import end_with_input
end_with_input()
sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Job:
    """One training: what ``bitad train`` gets on its command line, and what becomes of it.

    Args:
        preset: a configuration file or the name of one of ours.
        overrides: ``key.sub=value`` each.
    """

    preset: str
    overrides: tuple[str, ...]

    @cached_property
    def config(self) -> Config:
        return load_config(self.preset, self.overrides)

    @property
    def directory(self) -> Path:
        """Where the run writes."""
        return self.config.run_directory

    def needs(self) -> set[Path]:
        """The run directories (or checkpoints) that its networks start from."""
        return {path for path in (self.config.init.forward, self.config.init.reverse) if path is not None}

    def network_steps(self) -> int:
        """The steps of the whole training, counted once for each network: a measure of its cost."""
        config = self.config
        videos = read_ground_truth(config.data).subset(config.data.training_subset).videos.values()
        windows = sum(bool(video.labels) for video in videos) * config.training.windows_per_video
        return config.training.epochs * (windows // config.training.batch) * len(config.views)

    def network_steps_done(self) -> int:
        """As far as the run's records tell."""
        metrics = self.directory / METRICS
        records = read_metrics(metrics) if metrics.exists() else []
        return int(records[-1]["step"]) * len(self.config.views) if records else 0

    def is_done(self) -> bool:
        """Whether the run has finished all its epochs.

        Raises:
            ValueError: there is such a run, of another configuration or other data.
        """
        last = self.directory / "last.pt"
        if not last.exists():
            return False
        saved = load_checkpoint(last)
        changes = saved.changes(self.config)
        if saved.config.init != self.config.init:  # of no effect on a run that goes on, but another run is wanted here
            changes.append(f"init was {saved.config.init}, is {self.config.init}")
        if changes:
            raise ValueError(f"{self.directory} is a run of other settings ({'; '.join(changes)}); delete or move it")
        if saved.data is not None and (changes := data_changes(saved.data, self._fingerprints())):
            raise ValueError(f"{self.directory} is a run of other data ({'; '.join(changes)}); delete or move it")
        return saved.epoch == self.config.training.epochs

    def _fingerprints(self) -> Fingerprints:
        """Of the data as they are now."""
        training = read_ground_truth(self.config.data).subset(self.config.data.training_subset)
        learnt = [video for video in training.videos.values() if video.labels]
        return fingerprints(self.config, learnt, read_test_ground_truth(self.config))

    def start(self) -> subprocess.Popen[bytes]:
        """Begins or resumes the training, on one thread; it ends when this process does.

        What it says goes to output.txt of the run.
        """
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
    """CPU cores that this process may use."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def train_side_by_side(jobs: Sequence[Job], *, what: str, processes: int | None = None) -> None:
    """Finishes all jobs: those that are done already are kept, those begun are resumed.

    Single-threaded trainings side by side beat many-threaded ones in turn (by 1.4 on two cores).

    Args:
        jobs: in the order in which to begin them; one waits until those it needs are done.
        what: for the progress display, which shows the time left for all of them.
        processes: at once; as many as there are cores if not given.

    Raises:
        ValueError: a training failed (with what it said last; the others are stopped, and go on when called again).
    """
    waiting = [job for job in jobs if not job.is_done()]
    steps = {job.directory: job.network_steps() for job in waiting}  # of the runs that are not done
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
                time.sleep(SECONDS_BETWEEN_LOOKS)
                finished |= _ended_well(running)
                for job in finished & set(running):
                    del running[job]
                now = sum(steps[job.directory] for job in finished)
                now += sum(job.network_steps_done() for job in (*waiting, *running))
                names = ", ".join(job.directory.name for job in running)
                meter.advance(max(0, now - done_before - meter.done), note=names)
        finally:
            for process in running.values():
                process.kill()


def _ended_well(running: Mapping[Job, subprocess.Popen[bytes]]) -> set[Job]:
    ended = {job for job, process in running.items() if process.poll() is not None}
    for job in ended:
        if running[job].returncode != 0:
            said = (job.directory / "output.txt").read_text(errors="replace").split("\n")
            last_words = next((line for line in reversed(said) if line), "killed")
            raise ValueError(f"training {job.directory.name} failed: {last_words}")
    return ended
