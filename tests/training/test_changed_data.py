"""A run is resumed, tested and kept with the data that it was trained on, or says what has changed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import config_of, feature_data, video_data
from runs import ALONE, assert_same_run

from bitad.cli import main
from bitad.data.formats.database import read_annotations, write_annotations
from bitad.demo import Job
from bitad.training.trainer import Trainer
from bitad.weights.checkpoint import load_checkpoint, save_checkpoint

QUICK = ("training.epochs=2", "training.evaluate_from=1", "model.dropout=0.2", "training.warmup_epochs=0")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return feature_data(tmp_path / "data").parent


def begun(data: Path, *overrides: str) -> Path:
    """A run with an epoch to go; its directory."""
    config = config_of(data / "config.yaml", *QUICK, *overrides)
    Trainer(config, ALONE).run(until=1)
    return config.run_directory


def resume(data: Path, *more: str) -> int:
    return main(["train", str(data / "config.yaml"), *QUICK, "--resume", "--device", "cpu", *more])


def shift_features(data: Path, *names: str) -> None:
    for name in names:
        path = data / "features" / f"{name}.npy"
        np.save(path, np.load(path) + np.float32(0.01))


def move_an_action(data: Path, name: str) -> None:
    truth = read_annotations(data / "annotations.json")
    video = truth.videos[name]
    moved = replace(video, segments=video.segments + 0.01)
    write_annotations(replace(truth, videos={**truth.videos, name: moved}), data / "annotations.json")


def reorder(data: Path) -> None:
    truth = read_annotations(data / "annotations.json")
    write_annotations(replace(truth, videos=dict(reversed(truth.videos.items()))), data / "annotations.json")


def leave_out(data: Path, name: str) -> None:
    truth = read_annotations(data / "annotations.json")
    videos = {other: video for other, video in truth.videos.items() if other != name}
    write_annotations(replace(truth, videos=videos), data / "annotations.json")


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "features": (
        lambda data: shift_features(data, "train_1", "test_2"),
        "features of 7 videos: 2 changed (train_1, test_2)",
    ),
    "a missing file": (
        lambda data: (data / "features" / "train_1.npy").unlink(),
        "features of 7 videos: 1 gone (train_1)",
    ),
    "training": (
        lambda data: move_an_action(data, "train_0"),
        "training annotations of 4 videos: 1 changed (train_0)",
    ),
    "test": (lambda data: move_an_action(data, "test_0"), "test annotations of 3 videos: 1 changed (test_0)"),
    "a video less": (
        lambda data: leave_out(data, "train_3"),
        "training annotations of 4 videos: 1 gone (train_3)",
    ),
    "order": (reorder, "training annotations of 4 videos: in another order"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_run_is_not_resumed_on_changed_data_and_says_which(
    data: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    change, said = CHANGES[what]
    run = begun(data)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    change(data)
    capsys.readouterr()
    assert resume(data) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bitad train: error: the data have changed since {run / 'last.pt'} was written: ")
    assert said in line
    assert "--allow-changed-data" in line
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("what", ["features", "training", "a video less"])
def test_a_run_is_resumed_on_changed_data_where_that_is_allowed_and_logs_it_once(data: Path, what: str) -> None:
    change, said = CHANGES[what]
    run = begun(data)
    change(data)
    assert resume(data, "--until", "1", "--allow-changed-data") == 0
    assert said in (run / "log.txt").read_text(encoding="utf-8")
    assert resume(data, "--allow-changed-data") == 0
    checkpoint = load_checkpoint(run / "last.pt")
    assert checkpoint.training is not None
    steps = 1 if what == "a video less" else 2  # of an epoch, in batches of two
    assert (checkpoint.epoch, checkpoint.training["step"]) == (2, 2 * steps)
    assert resume(data) == 0  # the newest checkpoint was made with these data


def test_allowing_changed_data_is_for_a_resumed_run(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(data / "config.yaml"), "--allow-changed-data"]) == 1
    assert "add --resume" in capsys.readouterr().err


def test_a_copy_of_the_data_elsewhere_and_of_another_time_is_the_same_data(data: Path, tmp_path: Path) -> None:
    whole = config_of(data / "config.yaml", *QUICK, f"output={tmp_path / 'whole'}")
    Trainer(whole, ALONE).run()
    run = begun(data)
    copy = Path(shutil.copytree(data, tmp_path / "copy", ignore=shutil.ignore_patterns("runs")))
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
    document = json.loads((copy / "annotations.json").read_text(encoding="utf-8"))
    (copy / "annotations.json").write_text(json.dumps(document, indent=2), encoding="utf-8")
    shutil.rmtree(data / "features")
    files = {"features": "features", "annotations": "annotations.json", "classes": "classes.txt"}
    moved = [f"data.{key}={copy / name}" for key, name in files.items()]
    assert resume(data, *moved) == 0
    assert_same_run(whole.run_directory, run)


def test_changed_videos_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = video_data(tmp_path / "data")
    data = path.parent
    run = begun(data)
    shutil.copy(data / "videos" / "test_0.mp4", data / "videos" / "train_0.mp4")
    with (data / "videos" / "train_0.mp4").open("ab") as file:
        file.write(b"\0\0\0\x08free")  # the same film in a longer file
    capsys.readouterr()
    assert resume(data) == 1
    assert f"{run / 'last.pt'} was written: videos of 3 videos: 1 changed (train_0); " in capsys.readouterr().err


def test_changed_scores_of_videos_are_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = data / "scores.json"
    content = {"class": ["alpha", "beta", "gamma"], "results": {f"test_{i}": [0.2, 0.3, 0.5] for i in range(3)}}
    scores.write_text(json.dumps(content), encoding="utf-8")
    named = (f"test.video_scores={scores}", "test.nms.multiclass=false")
    begun(data, *named)
    content["results"]["test_1"] = [0.5, 0.3, 0.2]  # type: ignore[call-overload, index]
    scores.write_text(json.dumps(content), encoding="utf-8")
    capsys.readouterr()
    assert resume(data, *named) == 1
    assert "was written: video scores; " in capsys.readouterr().err


def test_changed_features_of_reversed_playback_are_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(data / "features", data / "reversed")
    reverse = ("direction=reverse", f"data.reversed_features={data / 'reversed'}")
    begun(data, *reverse)
    np.save(data / "reversed" / "train_2.npy", np.load(data / "reversed" / "train_2.npy") + 1)
    capsys.readouterr()
    assert resume(data, *reverse) == 1
    assert "was written: reversed features of 7 videos: 1 changed (train_2); " in capsys.readouterr().err


def test_a_changed_base_of_the_configuration_is_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun(data)
    (data / "config.yaml").rename(data / "base.yaml")
    (data / "config.yaml").write_text("base: base.yaml\ntraining:\n  ema_decay: 0.5\n", encoding="utf-8")
    capsys.readouterr()
    assert resume(data) == 1
    assert "training.ema_decay was 0.9, is 0.5" in capsys.readouterr().err


def test_a_checkpoint_without_fingerprints_is_resumed_and_says_so(data: Path, tmp_path: Path) -> None:
    whole = config_of(data / "config.yaml", *QUICK, f"output={tmp_path / 'whole'}")
    Trainer(whole, ALONE).run()
    run = begun(data)
    save_checkpoint(replace(load_checkpoint(run / "last.pt"), data=None), run / "last.pt")
    assert resume(data) == 0
    said = (run / "log.txt").read_text(encoding="utf-8")
    assert "last.pt has no fingerprints of its data; changes are not checked" in said
    assert_same_run(whole.run_directory, run)


def test_testing_says_which_test_data_have_changed_since_the_run(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun(data)

    def said() -> list[str]:
        capsys.readouterr()
        assert main(["test", str(run), "--device", "cpu"]) == 0
        return [line for line in capsys.readouterr().err.splitlines() if "changed since" in line]

    assert said() == []
    move_an_action(data, "train_0")  # of no effect on a test
    assert said() == []
    move_an_action(data, "test_0")
    shift_features(data, "test_1", "train_1")
    (line,) = said()
    assert "the test data have changed since " in line
    assert line.endswith(
        "test annotations of 3 videos: 1 changed (test_0); features of 3 videos: 1 changed (test_1)"
    )


def test_a_finished_run_of_other_data_is_not_taken_for_this_one(data: Path) -> None:
    overrides = ("training.epochs=1", "training.warmup_epochs=0")
    Trainer(config_of(data / "config.yaml", *overrides), ALONE).run()
    job = Job(str(data / "config.yaml"), overrides)
    assert job.is_done()
    shift_features(data, "train_1")
    with pytest.raises(ValueError, match=r"is another run \(features of 7 videos: 1 changed \(train_1\)\)"):
        job.is_done()


def test_unsound_fingerprints_are_a_damaged_checkpoint(data: Path) -> None:
    run = begun(data)
    content = torch.load(run / "last.pt", weights_only=True)
    torch.save({**content, "data": {"features": ["train_0"]}}, run / "last.pt")
    with pytest.raises(ValueError, match="damaged checkpoint, without a valid data"):
        load_checkpoint(run / "last.pt")
