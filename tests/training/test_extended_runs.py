"""A run goes on for more epochs, or with another learning rate, where its schedule is stated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import feature_data
from runs import assert_same_run, records

from bitad.cli import main
from bitad.weights.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

# Depends on PyTorch's random numbers; 10 steps an epoch, so that each has a record.
RANDOM = ("model.dropout=0.2", "training.windows_per_video=5")
Train = Callable[..., Path]


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return feature_data(tmp_path_factory.mktemp("features") / "data", test=1)


@pytest.fixture
def train(features: Path, tmp_path: Path) -> Train:
    """Trains; the run directory."""

    def train(*arguments: str, output: str = "runs") -> Path:
        assert main(["train", str(features), *RANDOM, f"output={tmp_path / output}", *arguments]) == 0
        return tmp_path / output / "tiny-forward-seed0"

    return train


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line with which the command refuses to resume a run from its own configuration."""

    def refused(run: Path, *overrides: str) -> str:
        capsys.readouterr()
        before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
        assert main(["train", str(run / "config.yaml"), "--resume", *overrides]) == 1
        assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return refused


def resume(run: Path, *overrides: str) -> str:
    """Resumes a run from its own configuration; its log."""
    assert main(["train", str(run / "config.yaml"), "--resume", *overrides]) == 0
    return (run / "log.txt").read_text()


def rates(run: Path) -> dict[int, Any]:
    return {record["step"]: record["lr"] for record in records(run, kind="training")}


def test_a_run_is_extended_along_its_schedule_to_the_bit(train: Train, refused: Callable[..., str]) -> None:
    whole = train("training.epochs=2", "training.schedule_epochs=3", output="whole")
    run = train("training.epochs=1", "training.schedule_epochs=3")
    resume(run, "training.epochs=2")
    assert_same_run(whole, run)
    assert "epochs 2 to 2" in (run / "log.txt").read_text()
    assert load_checkpoint(run / "best.pt").config.training.epochs == 2
    fault = refused(run, "training.epochs=4")
    assert "use 4 or more, or null" in fault  # of the rule for every configuration
    assert "also set training.schedule_epochs=4" in refused(
        run, "training.epochs=4", "training.schedule_epochs=null"
    )


def test_a_finished_schedule_is_extended_where_the_new_one_is_stated(
    train: Train, refused: Callable[..., str]
) -> None:
    run = train("training.epochs=1")
    fault = refused(run, "training.epochs=2")
    assert "falls to 0 over 1 epochs; training.epochs=2 alone would change that to 2" in fault
    assert fault.endswith("if that is meant, also set training.schedule_epochs=2")
    log = resume(run, "training.epochs=2", "training.schedule_epochs=2")
    assert "the schedule was of 1 epochs, is of 2; the next step has a rate of " in log
    assert load_checkpoint(run / "last.pt").epoch == 2
    whole = train("training.epochs=2", "training.warmup_epochs=0.5", output="whole")
    assert rates(run)[20] == rates(whole)[20] > 0
    assert "training.epochs=1, but run" in refused(run, "training.epochs=1", "training.schedule_epochs=2")


def test_a_run_that_ends_earlier_keeps_its_schedule_and_is_tested(
    train: Train, refused: Callable[..., str]
) -> None:
    run = train("training.epochs=3", "training.evaluate_every=3", "--until", "1")
    assert not (run / "best.pt").exists()
    assert "or training.schedule_epochs=3 to keep the schedule" in refused(run, "training.epochs=1")
    resume(run, "training.epochs=1", "training.schedule_epochs=3")
    assert load_checkpoint(run / "best.pt").epoch == 1
    assert [record["epoch"] for record in records(run, kind="evaluation")] == [1]


@pytest.mark.parametrize("rate", [5e-4, 4e-3])
def test_a_resumed_run_takes_another_learning_rate_and_says_so(train: Train, rate: float) -> None:
    run = train("training.epochs=2", "--until", "1")
    other = train("training.epochs=2", f"training.lr={rate}", output="other")
    log = resume(run, f"training.lr={rate}")
    assert f"training.lr was 0.002, is {rate:g}; the next step has a rate of " in log
    assert rates(run)[10] == pytest.approx(rates(other)[10] * 0.002 / rate)
    assert rates(run)[20] == rates(other)[20]
    assert "training.lr was" not in resume(run).partition("the next step")[2]  # it is the run's own from now on
