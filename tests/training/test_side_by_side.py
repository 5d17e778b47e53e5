"""Many trainings, each after those it needs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from builders import feature_data
from processes import Running

from bitad.demo import Job, train_side_by_side
from bitad.runtime.workers import start_process
from bitad.weights.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> list[Job]:
    """A pair before the two baselines that it starts from."""
    path = str(feature_data(tmp_path_factory.mktemp("features") / "data"))
    output = tmp_path_factory.mktemp("runs")
    common = (f"output={output}", "training.epochs=1")
    baselines = [Job(path, (*common, f"direction={direction}")) for direction in ("forward", "reverse")]
    forward, backward = (job.directory for job in baselines)
    pair = Job(path, (*common, "experiment=3-3", f"init.forward={forward}", f"init.reverse={backward}"))
    made = [pair, *baselines]
    train_side_by_side(made, processes=2)
    return made


def began(job: Job) -> float:
    return (job.directory / "config.yaml").stat().st_mtime


def test_all_jobs_end_and_a_job_waits_for_those_it_needs(jobs: list[Job]) -> None:
    pair, *baselines = jobs
    assert all(job.is_done() for job in jobs)
    assert began(pair) > max((job.directory / "last.pt").stat().st_mtime for job in baselines)


def test_cost_is_counted_in_steps_of_each_network(jobs: list[Job]) -> None:
    for job in jobs:
        steps = load_checkpoint(job.directory / "last.pt").training["step"]
        assert job.network_steps() == steps * len(job.config.views)
        last = json.loads((job.directory / "metrics.jsonl").read_text().splitlines()[-1])
        assert job.network_steps_done() == last["step"] * len(job.config.views)


def test_what_is_done_is_not_done_again(jobs: list[Job]) -> None:
    before = [job.directory.joinpath("last.pt").stat().st_mtime_ns for job in jobs]
    train_side_by_side(jobs)
    assert [job.directory.joinpath("last.pt").stat().st_mtime_ns for job in jobs] == before


def test_a_finished_run_of_other_settings_is_not_taken_for_this_one(jobs: list[Job]) -> None:
    other = Job(jobs[1].preset, (*jobs[1].overrides, "training.lr=0.5"))
    with pytest.raises(ValueError, match=r"is another run \(training.lr was 0.002, is 0.5\); delete or move"):
        train_side_by_side([other])


def test_a_finished_pair_of_other_baselines_is_not_taken_for_this_one(jobs: list[Job]) -> None:
    pair, _, backward = jobs
    moved = f"init.reverse={backward.directory / 'last.pt'}"
    others = [override for override in pair.overrides if not override.startswith("init.reverse=")]
    other = Job(pair.preset, (*others, moved))
    assert other.directory == pair.directory
    with pytest.raises(ValueError, match=r"is another run \(init was .*last\.pt"):
        train_side_by_side([other])


def start_and_fail() -> None:
    print("it starts")
    raise SystemExit("it fails")


class Failing(Job):
    """A training that says something and fails."""

    def start(self) -> BaseProcess:
        self.directory.mkdir(parents=True)
        return start_process(start_and_fail, output=self.output)


def test_a_training_that_fails_is_named_with_what_it_said_last(jobs: list[Job], tmp_path: Path) -> None:
    job = Failing(jobs[1].preset, (f"output={tmp_path}",))
    with pytest.raises(ValueError, match=r"training tiny-forward-seed0 failed: it fails$"):
        train_side_by_side([job])
    assert job.output.read_text() == "it starts\nit fails\n"


def test_what_the_command_says_of_a_training_that_fails_is_named(jobs: list[Job], tmp_path: Path) -> None:
    job = Job(jobs[1].preset, (f"output={tmp_path}", f"data.features={tmp_path / 'missing'}"))
    with pytest.raises(ValueError, match=r"training tiny-forward-seed0 failed: bitad train: .*missing"):
        train_side_by_side([job])


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, "1 glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.check=0", "OMP_NUM_THREADS": "2"}, "1 glibc.malloc.check=0"),
    ],
    ids=["unset", "set by the user"],
)
def test_a_training_beside_others_has_one_thread_and_large_pages(
    own: dict[str, str], expected: str, tmp_path: Path
) -> None:
    program = """
import os, sys
from pathlib import Path
from bitad.runtime.workers import start_process
if __name__ == "__main__":
    before = dict(os.environ)
    process = start_process(os.system, "echo $OMP_NUM_THREADS $GLIBC_TUNABLES", output=Path(sys.argv[1]))
    process.join()
    assert dict(os.environ) == before
"""
    script, said = tmp_path / "start.py", tmp_path / "said.txt"
    script.write_text(program)
    others = {
        name: value for name, value in os.environ.items() if name not in ("GLIBC_TUNABLES", "OMP_NUM_THREADS")
    }
    subprocess.run([sys.executable, str(script), str(said)], check=True, env=others | own, cwd=Path.cwd())
    assert said.read_text() == f"{expected}\n"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_demo_that_ends_leaves_no_training_behind(jobs: list[Job], tmp_path: Path, how: signal.Signals) -> None:
    arguments = (jobs[1].preset, f"output={tmp_path}", "training.epochs=20000", "training.evaluate_every=20000")
    metrics = Job(arguments[0], arguments[1:]).directory / "metrics.jsonl"
    program = """
import sys
from bitad import cli, demo
job = demo.Job(sys.argv[1], tuple(sys.argv[2:]))
cli.train._demo = lambda arguments: demo.train_side_by_side([job])
sys.exit(cli.main(["demo"]))
"""
    parent = Running(*arguments, program=program)
    while not metrics.exists():
        assert parent.poll() is None
        time.sleep(0.1)
    parent.send_signal(how)
    _, said = parent.communicate(timeout=60)
    if how == signal.SIGTERM:
        assert parent.returncode == 130
        assert "interrupted" in said
    end, before = time.monotonic() + 20, b""
    while before != (before := metrics.read_bytes()):
        assert time.monotonic() < end, "the training goes on"
        time.sleep(2)
