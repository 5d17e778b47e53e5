"""best.pt is chosen on a subset of its own, or not at all, and the log says which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import feature_data

import bitad.training.trainer as trainer_module
from bitad.cli import main
from bitad.data.detections import read_detections
from bitad.data.formats.database import read_annotations, write_annotations
from bitad.evaluation.mean_average_precision import Evaluation, evaluate
from bitad.weights.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

HELD_OUT = "data.validation_subset=held-out"


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with two videos to validate on and two to test on."""
    path = feature_data(tmp_path_factory.mktemp("features") / "data", test=4)
    file = path.parent / "annotations.json"
    truth = read_annotations(file)
    for name in ("test_0", "test_1"):
        truth.videos[name] = replace(truth.videos[name], subset="held-out")
    write_annotations(truth, file)
    return path


@pytest.fixture
def train(features: Path, tmp_path: Path) -> Callable[..., tuple[int, Path]]:
    """Trains, by default an epoch; the status and the run directory."""

    def train(*arguments: str) -> tuple[int, Path]:
        epochs = [] if any("training.epochs" in one for one in arguments) else ["training.epochs=1"]
        status = main(["train", str(features), f"output={tmp_path}", *epochs, *arguments])
        return status, tmp_path / "tiny-forward-seed0"

    return train


def test_the_run_evaluates_the_validation_subset_and_bitad_test_the_test_subset(
    train: Callable[..., tuple[int, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, run = train(HELD_OUT)
    assert status == 0
    assert read_detections(run / "detections.json").videos == ("test_0", "test_1")
    log = (run / "log.txt").read_text()
    assert "2 validation videos" in log
    assert log.count("best.pt is chosen on the validation subset, held-out") == 1
    assert "also tested" not in log
    assert main(["test", str(run)]) == 0
    assert read_detections(run / "test" / "detections.json").videos == ("test_2", "test_3")
    capsys.readouterr()
    assert main(["report", str(run), "--out", str(tmp_path / "report")]) == 0
    assert "Evaluated on the validation subset held-out" in capsys.readouterr().out


def test_without_one_the_log_says_that_the_choice_is_on_tested_videos(
    train: Callable[..., tuple[int, Path]],
) -> None:
    for name, override in (("none", "data.validation_subset=null"), ("same", "data.validation_subset=validation")):
        status, run = train(override, f"name={name}")
        assert status == 0
        log = (run.with_name(f"{name}-forward-seed0") / "log.txt").read_text()
        assert log.count("best.pt is chosen on the subset that is also tested, validation") == 1


def test_a_choice_on_the_videos_of_the_training_is_logged(train: Callable[..., tuple[int, Path]]) -> None:
    status, run = train("data.validation_subset=training")
    assert status == 0
    log = (run / "log.txt").read_text()
    assert log.count("best.pt is chosen on the subset that is also trained on, training, ") == 1
    assert "on the validation subset" not in log


def test_a_subset_without_videos_is_refused_before_training(
    train: Callable[..., tuple[int, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    status, run = train("data.validation_subset=held_out")
    assert status == 1
    assert "held_out" in capsys.readouterr().err
    assert not (run / "last.pt").exists()


@pytest.mark.parametrize(("video", "kind"), [("test_0", "validation"), ("test_2", "test")])
def test_changed_validation_videos_are_noticed(
    features: Path,
    train: Callable[..., tuple[int, Path]],
    capsys: pytest.CaptureFixture[str],
    video: str,
    kind: str,
) -> None:
    assert train(HELD_OUT)[0] == 0
    file = features.parent / "annotations.json"
    before = file.read_bytes()
    truth = read_annotations(file)
    truth.videos[video].segments[0] += 0.1
    write_annotations(truth, file)
    try:
        assert train(HELD_OUT, "--resume")[0] == 1
    finally:
        file.write_bytes(before)
    assert f"{kind} annotations of 2 videos: 1 changed ({video})" in capsys.readouterr().err


def test_another_validation_subset_is_another_run(
    train: Callable[..., tuple[int, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(HELD_OUT)[0] == 0
    assert train("--resume")[0] == 1
    assert "data.validation_subset was held-out, is None" in capsys.readouterr().err


def test_the_last_epochs_weights_can_be_kept_whatever_their_map(
    train: Callable[..., tuple[int, Path]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    coming = iter((0.5, 0.2, 0.3))

    def pretended(*arguments: Any, **keywords: Any) -> Evaluation:
        found = evaluate(*arguments, **keywords)
        return replace(found, ap=np.full_like(found.ap, next(coming)))

    monkeypatch.setattr(trainer_module, "evaluate", pretended)
    last = ("training.select=last", "training.schedule_epochs=3")
    status, run = train(*last, "training.epochs=2")
    assert status == 0
    assert load_checkpoint(run / "best.pt").epoch == 2
    assert read_detections(run / "detections.json").details["epoch"] == 2
    assert "last average mAP 20.00" in capsys.readouterr().out
    assert "training.select=last" in (run / "log.txt").read_text()
    assert train(*last, "training.epochs=3", "--resume")[0] == 0
    assert load_checkpoint(run / "best.pt").epoch == 3
