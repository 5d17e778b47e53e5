"""Where one of the processes that train together is gone, the others end within a minute, say so, and can go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch.distributed as dist
from builders import config_of, feature_data
from processes import Running, ranks
from runs import assert_same_run, records

from bitad.config.schema import Config
from bitad.runtime.distributed import Watch
from bitad.weights.checkpoint import load_checkpoint

# Long enough to be met alive: 40 steps an epoch; and a checkpoint every third.
OFTEN_SAVED = ("training.windows_per_video=40", "training.checkpoint_steps=3", "model.dropout=0.2")
HOW = (*OFTEN_SAVED, "training.epochs=2")

# Impatient, so that a test need not wait for 40 s.
PROGRAM = """
import sys
from functools import partial
import bitad.runtime.distributed as distributed
from bitad.cli import main
distributed.Watch = partial(distributed.Watch, beat_s=0.2, gone_s=3)
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return feature_data(tmp_path_factory.mktemp("features") / "data")


# The watch by itself.


@contextmanager
def two_watches(second: bool = True) -> Iterator[tuple[Watch, Watch, list[str]]]:
    """The first process' watch, begun, the second's, begun or not, and what is said of whoever is gone."""
    store = dist.TCPStore("127.0.0.1", 0, 1, True, wait_for_workers=False)
    said: list[str] = []
    own = [dist.TCPStore("127.0.0.1", store.port, is_master=False) for _ in range(2)]
    first, other = (Watch(own[rank], rank, 2, beat_s=0.05, gone_s=1, end=said.append) for rank in range(2))
    first.start()
    if second:
        other.start()
    yield first, other, said
    first.stop(failed=False)


def wait_for(said: list[str], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not said and time.monotonic() < end:
        time.sleep(0.02)


def test_a_process_that_gives_no_sign_of_life_is_named() -> None:
    with two_watches(second=False) as (_, _, said):
        wait_for(said, 10)
    (line,) = said
    assert line.startswith("process 1 of this run has not responded for 1 s; ")
    assert "--resume" in line


def test_a_process_that_has_failed_is_named_at_once() -> None:
    with two_watches() as (_, second, said):
        second.stop(failed=True)
        wait_for(said, 10)
    (line,) = said
    assert line.startswith("process 1 of this run has failed; ")


def test_processes_that_live_or_have_ended_well_are_left_alone() -> None:
    with two_watches() as (_, second, said):
        time.sleep(1.5)
        assert said == []
        second.stop(failed=False)
        time.sleep(1.5)
    assert said == []


# Without torchrun.


def two_processes(config: Path, *overrides: str) -> AbstractContextManager[list[Running]]:
    """Two processes of one training."""
    return ranks(2, "train", config, *overrides, "--device", "cpu", program=PROGRAM)


def wait_for_step(config: Config, number: int, *, seconds: float = 120) -> None:
    """Until the run has recorded a step."""
    path = config.run_directory / "metrics.jsonl"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.exists() and any(record["step"] >= number for record in records(config.run_directory)):
            return
        time.sleep(0.05)
    raise AssertionError(f"step {number} was not reached in {seconds} s")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_the_others_end_with_a_line_where_one_is_killed_or_hangs(
    features: Path, tmp_path: Path, how: signal.Signals
) -> None:
    overrides = (*OFTEN_SAVED, f"output={tmp_path}", "training.epochs=200")
    config = config_of(features, *overrides)
    with two_processes(features, *overrides) as both:
        wait_for_step(config, 10)
        began = time.monotonic()
        both[1].send_signal(how)
        _, said = both[0].communicate(timeout=60)
        assert time.monotonic() - began < 30
    assert both[0].returncode == 1
    last = said.strip().splitlines()[-1]
    assert "error: " in last
    assert "of this run" in last
    assert last.endswith("resume with --resume")
    assert "Traceback" not in said
    assert load_checkpoint(config.run_directory / "last.pt").training is not None


@pytest.mark.slow
def test_the_others_end_with_a_line_where_one_has_failed(features: Path, tmp_path: Path) -> None:
    folder = feature_data(tmp_path / "data", training=4).parent
    overrides = (*OFTEN_SAVED, f"output={tmp_path}", "training.epochs=200")
    config = config_of(folder / "config.yaml", *overrides)
    with two_processes(folder / "config.yaml", *overrides) as both:
        wait_for_step(config, 10)
        for path in (folder / "features").iterdir():
            path.write_bytes(b"")
        said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [1, 1]
    assert any(".npy" in one for one in said)
    assert not any("Traceback" in one for one in said)


# Under torchrun.


def start_torchrun(config: Path, *overrides: str, restarts: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [f"--max-restarts={restarts}", "-m", "bitad", "train", str(config), *overrides, "--device", "cpu"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def process_of(torchrun: subprocess.Popen[str], rank: int) -> int:
    """The number of the process of a rank."""
    for folder in Path("/proc").iterdir():
        try:
            place = dict(
                line.split("=", 1) for line in (folder / "environ").read_text().split("\0") if "=" in line
            )
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if parent == torchrun.pid and place.get("RANK") == str(rank):
            return int(folder.name)
    raise AssertionError(f"torchrun has no process of rank {rank}")


@pytest.mark.slow
def test_torchrun_begins_again_where_a_process_was_killed_and_ends_as_if_nothing_had_happened(
    features: Path, tmp_path: Path
) -> None:
    undisturbed = config_of(features, *HOW, f"output={tmp_path / 'whole'}")
    whole = start_torchrun(features, *HOW, f"output={tmp_path / 'whole'}")
    said, _ = whole.communicate(timeout=200)
    assert whole.returncode == 0, said

    killed = config_of(features, *HOW, f"output={tmp_path / 'killed'}")
    torchrun = start_torchrun(features, *HOW, f"output={tmp_path / 'killed'}", restarts=1)
    try:
        wait_for_step(killed, 20)
        os.kill(process_of(torchrun, 1), signal.SIGKILL)
        said, _ = torchrun.communicate(timeout=200)
    finally:
        torchrun.kill()
    assert torchrun.returncode == 0, said
    assert "exitcode: -9" in said
    assert_same_run(undisturbed.run_directory, killed.run_directory)


@pytest.mark.slow
def test_torchrun_ends_within_a_minute_and_never_goes_on_with_a_run_that_it_did_not_begin(
    features: Path, tmp_path: Path
) -> None:
    overrides = (*OFTEN_SAVED, f"output={tmp_path}", "training.epochs=200")
    config = config_of(features, *overrides)
    torchrun = start_torchrun(features, *overrides)
    try:
        wait_for_step(config, 10)
        began = time.monotonic()
        os.kill(process_of(torchrun, 0), signal.SIGKILL)
        said, _ = torchrun.communicate(timeout=60)
        assert time.monotonic() - began < 60
    finally:
        torchrun.kill()
    assert torchrun.returncode != 0
    before = (config.run_directory / "last.pt").read_bytes()
    again = start_torchrun(features, *overrides, restarts=1)
    said, _ = again.communicate(timeout=100)
    assert again.returncode != 0
    assert "exists; use --resume" in said
    assert (config.run_directory / "last.pt").read_bytes() == before
