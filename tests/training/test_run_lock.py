"""One writer to a run directory, or a folder of results: the second one is told who writes there."""

from __future__ import annotations

import json
import platform
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from builders import config_of, feature_data
from processes import Running, holder, of_two_processes

from bitad.cli import main
from bitad.weights.checkpoint import load_checkpoint

LOCK = "bitad.lock"
LONG = ("training.epochs=4000", "training.warmup_epochs=0", "training.evaluate_every=4000")


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return feature_data(tmp_path_factory.mktemp("features") / "data")


@contextmanager
def training(path: Path, *overrides: str) -> Iterator[Running]:
    """A training in a process of its own, of which there is a checkpoint already."""
    config = config_of(path, *overrides)
    process = Running("train", path, *overrides, "--device", "cpu")
    try:
        while not (config.run_directory / "last-1.pt").exists():
            assert process.poll() is None, process.output
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("how", [("training.lr=1e-4",), ("--resume", "--until", "1")])
def test_of_two_trainings_in_a_run_directory_the_second_ends_with_a_line_and_changes_nothing(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: tuple[str, ...]
) -> None:
    overrides = (*LONG, f"output={tmp_path}")
    run = config_of(features, *overrides).run_directory
    with training(features, *overrides) as first:
        first.send_signal(signal.SIGSTOP)  # alive, but writing nothing
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        assert main(["train", str(features), *overrides, *how, "--device", "cpu"]) == 1
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    (line,) = capsys.readouterr().err.splitlines()
    said = f"bitad train: error: {run} is in use by process {first.pid} on {platform.node()} since "
    assert line.startswith(said)
    assert line.startswith(f"{said}{json.loads(before[run / LOCK])['since']}; wait until ")


def test_a_killed_training_leaves_a_run_that_can_be_resumed_at_once(features: Path, tmp_path: Path) -> None:
    overrides = (*LONG, f"output={tmp_path}", "training.workers=1")
    run = config_of(features, *overrides).run_directory
    with training(features, *overrides) as first:
        first.kill()
        first.wait()  # its reader may live some seconds longer
        epoch = load_checkpoint(run / "last.pt").epoch
        until = str(epoch + 1)
        assert main(["train", str(features), *overrides, "--resume", "--until", until, "--device", "cpu"]) == 0
    assert load_checkpoint(run / "last.pt").epoch == epoch + 1
    assert not (run / LOCK).exists()


def test_a_restart_by_torchrun_waits_for_the_processes_before_it_to_end(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = (*LONG, f"output={tmp_path}", "--until", "1", "--device", "cpu")
    run = tmp_path / config_of(features).run_directory.name
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with holder(run) as before:
        threading.Timer(1, before.kill).start()
        assert main(["train", str(features), *overrides]) == 0
        assert before.poll() == -signal.SIGKILL
    assert (run / "last.pt").is_file()


def test_all_processes_of_a_training_end_where_its_run_directory_is_in_use(features: Path, tmp_path: Path) -> None:
    overrides = (*LONG, f"output={tmp_path}")
    run = config_of(features, *overrides).run_directory
    with holder(run) as first:
        ended = of_two_processes("train", features, *overrides, "--device", "cpu")
    for status, _, said in ended:
        assert status == 1, said
        assert f"in use by process {first.pid} on" in said.splitlines()[-1]
    assert [path.name for path in run.iterdir()] == [LOCK]


@pytest.fixture(scope="module")
def run(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has ended."""
    overrides = ("training.epochs=1", "training.warmup_epochs=0", f"output={tmp_path_factory.mktemp('runs')}")
    assert main(["train", str(features), *overrides, "--device", "cpu"]) == 0
    return config_of(features, *overrides).run_directory


@pytest.mark.parametrize(
    "command",
    [
        ("test", "{run}", "--out", "{out}"),
        ("report", "{run}", "--out", "{out}"),
        ("demo", "--smoke", "--out", "{out}"),
    ],
)
def test_commands_that_write_results_refuse_a_folder_in_use_before_any_work(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    with holder(out) as first:
        assert main([word.format(run=run, out=out) for word in command]) == 1
        assert [path.name for path in out.iterdir()] == [LOCK]
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{out} is in use by process {first.pid} on" in line
    assert line.endswith("or choose another --out")
