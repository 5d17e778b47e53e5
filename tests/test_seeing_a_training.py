"""What a training shows of itself: lines of the log, curves in the terminal, and TensorBoard's event files."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import config_of, feature_data
from rich.console import Console
from runs import ALONE, records

from bitad.cli import main
from bitad.reports import watch as watch_module
from bitad.reports.watch import watch
from bitad.runtime import progress
from bitad.runtime.progress import duration_text
from bitad.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = ("training.windows_per_video=5",)  # 10 an epoch, so that each has a record


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return feature_data(tmp_path_factory.mktemp("features") / "data", test=1)


@pytest.fixture(scope="module")
def run(features: Path) -> Path:
    """A run of one of its two epochs."""
    assert main(["train", str(features), *STEPS, "training.epochs=2", "--until", "1"]) == 0
    return features.parent / "runs" / "tiny-forward-seed0"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (61, "1 min"), (3599, "1 h 0 min"), (7500, "2 h 5 min"), (97200, "1 d 3 h")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_every_epoch_is_a_line_of_the_log_with_its_mean_loss_and_rate(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    assert main(["train", str(features), *STEPS, "training.epochs=2", f"output={tmp_path}"]) == 0
    run = tmp_path / "tiny-forward-seed0"
    first, second = (line[9:] for line in (run / "log.txt").read_text().splitlines() if "mean loss" in line)
    assert first.startswith("epoch 1 of 2: mean loss ")
    assert first.endswith(" left in all")
    assert second.startswith("epoch 2 of 2: mean loss ")
    assert "left" not in second
    rate = records(run, kind="training")[-1]["lr"]  # of step 20, the last one
    assert f", learning rate {rate:.3g}, " in second
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch 1 of 2: 3 of 10, ")]
    assert [line.endswith(" left in all") for line in shown] == [True]


def test_the_log_says_where_a_run_stopped(run: Path) -> None:
    assert "stopped at the end of epoch 1 of 2; --resume continues" in (run / "log.txt").read_text()


def test_the_time_left_counts_steps_and_evaluations(features: Path) -> None:
    overrides = ("training.epochs=8", "training.evaluate_every=3", "training.evaluate_from=2")
    trainer = Trainer(config_of(features, *STEPS, *overrides, "name=other"), ALONE)
    assert trainer._time_left(8) == "0 s"  # nothing is measured yet
    trainer.step_s.add(1.0)
    assert trainer._time_left(2) == "20 s"
    trainer.evaluation_s.add(3600.0)
    assert trainer._time_left(2) == "20 s"
    assert trainer._time_left(5) == "1 h 1 min"
    assert trainer._time_left(8) == "3 h 1 min"  # after epochs 3, 6 and 8
    trainer.epoch, trainer.epoch_step = 7, 4
    assert trainer._time_left(8) == "1 h 0 min"


# Curves in the terminal.


def test_watch_draws_the_loss_and_the_map_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(run), "--once"]) == 0
    drawn = capsys.readouterr().out
    training, (evaluation,) = records(run, kind="training"), records(run, kind="evaluation")
    assert f"{run}: epoch 1 of 2, step 10, learning rate " in drawn
    losses = [record["loss"] for record in training]
    assert f"loss, last {losses[-1]:.4g}" in drawn
    assert f"{max(losses):.4g} | " in drawn
    assert f"{min(losses):.4g} | " in drawn
    assert f"average mAP (%), last {100 * evaluation['average_map']:.2f}, best " in drawn
    assert any("\u2800" < letter <= "\u28ff" for letter in drawn)


def test_watch_draws_with_asterisks_where_there_is_nothing_better(run: Path) -> None:
    with io.TextIOWrapper(io.BytesIO(), encoding="ascii") as screen:
        watch(run, console=Console(file=screen, width=80))
        screen.seek(0)
        assert "*" in screen.read()


def test_watch_ends_with_the_run(features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["train", str(features), *STEPS, "training.epochs=2", f"output={tmp_path}"]
    assert main([*command, "--until", "1"]) == 0
    screen, looks = io.StringIO(), []

    def meanwhile(seconds: float) -> None:
        looks.append(seconds)
        assert main([*command, "--resume"]) == 0

    monkeypatch.setattr(watch_module.time, "sleep", meanwhile)
    watch(tmp_path / "tiny-forward-seed0", console=Console(file=screen, force_terminal=True, width=100, height=40))
    assert len(looks) == 1
    drawn = " ".join(screen.getvalue().split())  # a long path wraps the line
    assert "epoch 1 of 2" in drawn
    assert "finished" in drawn


def test_watch_waits_for_the_first_step_and_wants_a_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    assert main(["watch", str(tmp_path), "--once"]) == 0
    assert "no step is recorded yet" in capsys.readouterr().out
    assert main(["watch", str(tmp_path / "nothing")]) == 1
    assert "is not a run directory" in capsys.readouterr().err
    assert main(["watch", str(run / "last.pt")]) == 1
    assert capsys.readouterr().err.endswith(f"give {run}\n")


# TensorBoard.


def test_event_files_need_their_package(
    features: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert main(["train", str(features), "name=never", "training.tensorboard=true"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'bitad[tensorboard]'" in line
    assert not (features.parent / "runs" / "never-forward-seed0" / "last.pt").exists()


@pytest.fixture
def curves() -> Callable[[Path], dict[str, list[tuple[int, float]]]]:
    """The curves that TensorBoard shows of a run."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
        events = accumulator.EventAccumulator(str(run)).Reload()
        return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    return curves


def test_tensorboard_shows_one_curve_of_a_resumed_run(
    features: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    curves: Callable[[Path], dict[str, list[tuple[int, float]]]],
) -> None:
    overrides = (*STEPS, "training.epochs=3", "training.tensorboard=true", f"output={tmp_path}")
    config = config_of(features, *overrides)
    dying = Trainer(config, ALONE)
    save = dying._save

    def dies_in_epoch_2(*arguments: object, **keywords: bool) -> None:
        if dying.epoch == 2:  # its steps are recorded, and not in a checkpoint
            raise RuntimeError("out of memory")
        save(*arguments, **keywords)

    monkeypatch.setattr(dying, "_save", dies_in_epoch_2)
    with pytest.raises(RuntimeError):
        dying.run()
    assert [step for step, _ in curves(config.run_directory)["training/loss"]] == [1, 10, 20]
    assert main(["train", str(features), *overrides, "--resume"]) == 0
    shown = curves(config.run_directory)
    for kind, name in (("training", "loss"), ("training", "lr"), ("evaluation", "average_map")):
        recorded = [(one["step"], one[name]) for one in records(config.run_directory, kind=kind)]
        assert [step for step, _ in shown[f"{kind}/{name}"]] == [step for step, _ in recorded]
        assert [value for _, value in shown[f"{kind}/{name}"]] == pytest.approx([value for _, value in recorded])
    assert "training/epoch" not in shown


def test_event_files_may_be_wanted_later_and_change_nothing(
    run: Path, tmp_path: Path, curves: Callable[[Path], dict[str, list[tuple[int, float]]]]
) -> None:
    assert main(["train", str(run / "config.yaml"), "--resume", "training.tensorboard=true"]) == 0
    assert [step for step, _ in curves(run)["training/loss"]] == [20]
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 10, 10, 20, 20]
