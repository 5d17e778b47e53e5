"""Paths in a configuration file are relative to the file; a run's own configuration holds absolute ones."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from builders import feature_data

from bitad.cli import main
from bitad.config.loading import KEYS_OF_PATHS, absolute_paths, load_config, load_run_config
from bitad.weights.checkpoint import Checkpoint

RELATIVE = """
name: mine
output: out
data: {annotations: ../gt.json, features: rows, feature_channels: 8}
window: {steps: 64}
model: {channels: 16, levels: 3}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a folder of configurations, ``configs``."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.yaml").write_text(RELATIVE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_keys_of_paths_are_all_files_and_folders_that_are_read() -> None:
    assert set(KEYS_OF_PATHS) == {
        *(f"data.{kind}" for kind in ("annotations", "classes", "videos", "reversed_videos")),
        *(
            "data.features",
            "data.frame_cache",
            "data.reversed_features",
            "init.forward",
            "init.reverse",
            "init.teacher",
        ),
        *("model.backbone.weights", "pair.second_weights", "test.video_scores"),
    }


def test_paths_in_a_file_are_relative_to_it_but_output_and_overrides_are_not(place: Path) -> None:
    config = load_config("configs/mine.yaml", ["data.classes=names.txt"])
    assert (config.data.annotations, config.data.features) == (Path("gt.json"), Path("configs/rows"))
    assert (config.data.classes, config.output) == (Path("names.txt"), Path("out"))
    absolute = load_config(place / "configs" / "mine.yaml")
    assert (absolute.data.annotations, absolute.data.features) == (place / "gt.json", place / "configs" / "rows")


def test_each_path_of_a_list_is_relative_to_the_file(place: Path) -> None:
    Path("configs/top.yaml").write_text(
        "base: mine.yaml\nexperiment: distil\ninit: {teacher: [f, ../b, 'hub:me/b']}\n"
    )
    assert load_config("configs/top.yaml").init.teacher == (Path("configs/f"), Path("b"), Path("hub:me/b"))
    Path("configs/top.yaml").write_text("base: mine.yaml\nexperiment: distil\ninit: {teacher: f}\n")
    config = load_config("configs/top.yaml")
    assert config.init.teacher == (Path("configs/f"),)
    assert absolute_paths(config).init.teacher == (place / "configs" / "f",)


def test_paths_in_a_base_are_relative_to_the_base(place: Path) -> None:
    Path("other").mkdir()
    Path("other/top.yaml").write_text("base: ../configs/mine.yaml\ndata: {classes: names.txt}\n")
    data = load_config("other/top.yaml").data
    assert (data.annotations, data.features) == (Path("gt.json"), Path("configs/rows"))
    assert data.classes == Path("other/names.txt")


def test_paths_of_presets_are_relative_to_the_working_directory(place: Path) -> None:
    Path("configs/top.yaml").write_text("base: thumos14/videomae-s\nname: top\n")
    assert load_config("configs/top.yaml", ["name=thumos14-videomae-s"]) == load_config("thumos14/videomae-s")


@pytest.mark.parametrize(
    "name", ["package:playroom_backbone.safetensors", "hub:MCG-NJU/videomae-base-finetuned-kinetics"]
)
def test_names_of_weights_are_no_paths(place: Path, name: str) -> None:
    Path("configs/top.yaml").write_text(f"base: playroom\nmodel: {{backbone: {{weights: '{name}'}}}}\n")
    backbone = load_config("configs/top.yaml").model.backbone
    assert backbone is not None
    assert str(backbone.weights) == name


def test_a_path_through_a_link_is_not_shortened_to_another_file(place: Path) -> None:
    Path("elsewhere/configs").mkdir(parents=True)
    shutil.copy("configs/mine.yaml", "elsewhere/configs")
    Path("link").symlink_to("elsewhere/configs")
    assert load_config("link/mine.yaml").data.annotations.resolve() == place / "elsewhere" / "gt.json"


def test_a_path_that_only_the_working_directory_has_is_read_there_with_a_warning(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Path("rows").mkdir()
    assert load_config("configs/mine.yaml").data.features == Path("rows")
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said.startswith("configs/mine.yaml: data.features: rows is read from the working directory")
    assert "there is no configs/rows" in said
    Path("configs/rows").mkdir()
    assert load_config("configs/mine.yaml").data.features == Path("configs/rows")


@pytest.mark.parametrize("value", ["''", "true", "null", "[a]", "{a: b}", '"a\\0b"'])
def test_a_value_that_is_no_path_is_refused_as_before(
    place: Path, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("configs/top.yaml").write_text(f"base: mine.yaml\ndata: {{annotations: {value}}}\n")
    assert main(["plan", "configs/top.yaml"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "data.annotations: " in line
    assert "is not a path; give a file or folder" in line


def test_an_absolute_path_is_no_change_of_a_run(place: Path) -> None:
    config = load_config("playroom", ["model.backbone.weights=vit.pth"])
    checkpoint = Checkpoint(config, ("a",), {}, epoch=1, rate_hz=8.0)
    assert checkpoint.changes(absolute_paths(config)) == []
    assert "vit.pth" in str(absolute_paths(config).model.backbone)
    with pytest.raises(FileNotFoundError, match=r"other\.pth"):
        checkpoint.changes(load_config("playroom", ["model.backbone.weights=other.pth"]))


def test_a_run_keeps_absolute_paths_and_is_tested_compared_and_resumed_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    file = feature_data(tmp_path / "data")
    document = yaml.safe_load(file.read_text())
    document["output"] = "runs"
    document["data"] |= {"annotations": "annotations.json", "classes": "classes.txt", "features": "features"}
    file.write_text(yaml.safe_dump(document))
    work, elsewhere = tmp_path / "work", tmp_path / "elsewhere"
    work.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(work)
    quick = ["training.epochs=2", "training.windows_per_video=2"]
    assert main(["train", "../data/config.yaml", *quick, "--until", "1", "--device", "cpu"]) == 0
    run = work / "runs" / "tiny-forward-seed0"
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert written["output"] == str(work / "runs")
    assert Path(written["data"]["annotations"]).is_absolute()
    assert Path(written["data"]["annotations"]).samefile(tmp_path / "data" / "annotations.json")

    monkeypatch.chdir(elsewhere)
    assert main(["train", str(run / "config.yaml"), "--resume", "--device", "cpu"]) == 0
    monkeypatch.chdir(work)
    assert main(["train", "../data/config.yaml", *quick, "--resume", "--device", "cpu"]) == 0
    moved = run.rename(elsewhere / "moved")
    assert main(["test", str(moved), "--device", "cpu"]) == 0
    monkeypatch.chdir(elsewhere)
    assert main(["report", "moved", "--out", "report"]) == 0
    capsys.readouterr()

    # A run of an earlier version has the paths as they were given.
    written["data"] |= {"annotations": "../data/annotations.json", "classes": "../data/classes.txt"}
    (moved / "config.yaml").write_text(yaml.safe_dump(written))
    assert load_run_config(moved).data.annotations == Path("../data/annotations.json")
    assert main(["report", "moved", "--out", "report"]) == 0
    assert "is read from the working directory" not in capsys.readouterr().err
    torch.set_num_threads(threads)
