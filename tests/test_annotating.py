"""docs/annotating.md: its commands lead from a detector's videos to corrected annotations and the next training."""

from __future__ import annotations

import contextlib
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from bar_clips import Action, write_clips, write_table
from documents import ROOT, Document

from bitad.cli import main
from bitad.data.formats.database import read_annotations

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("one_thread")]

COMMANDS = [command.removeprefix("bitad ") for command in Document(ROOT / "docs/annotating.md").block_commands]
DETECT, EXPORT, CONVERT, CHECK, INIT, TRAIN, *FRAME_WISE = COMMANDS


def shorten(configuration: Path) -> None:
    """Make the training of a configuration as short as it can be."""
    document = yaml.safe_load(configuration.read_text(encoding="utf-8"))
    document["training"] |= {"epochs": 1, "windows_per_video": 1, "warmup_epochs": 0}
    configuration.write_text(yaml.safe_dump(document), encoding="utf-8")


def corrected(task: dict[str, Any], actions: list[Action]) -> dict[str, Any]:
    """A task whose predictions a person has replaced by the true actions, as Label Studio exports it."""
    rate = task["data"]["fps"]
    results = [
        {
            "type": "timelinelabels",
            "value": {
                "ranges": [{"start": round(start * rate) + 1, "end": round(end * rate)}],
                "timelinelabels": [label],
            },
        }
        for start, end, label in actions
    ]
    return {**task, "annotations": [{"result": results, "was_cancelled": False}]}


def test_the_commands_of_the_page_lead_from_detections_to_the_next_training(tmp_path: Path) -> None:
    files = write_clips(tmp_path / "my_videos", 5, seconds=6.0)
    write_table(files, tmp_path / "my.csv")
    clips = {name.removesuffix(".mp4"): actions for name, actions in files.items()}
    with contextlib.chdir(tmp_path):
        assert main(["init", "my.csv", "--videos", "my_videos"]) == 0
        shorten(Path("my.yaml"))
        assert main(["train", "my.yaml", "--device", "cpu"]) == 0
        assert main([*shlex.split(DETECT), "--device", "cpu"]) == 0
        assert main(shlex.split(EXPORT)) == 0
        tasks = json.loads(Path("tasks.json").read_text(encoding="utf-8"))
        assert [task["data"]["name"] for task in tasks] == sorted(clips)
        assert tasks[0]["data"]["video"].startswith("/data/local-files/?d=my_videos/clip00.")
        done = [corrected(task, clips[task["data"]["name"]]) for task in tasks]
        Path("corrected-tasks.json").write_text(json.dumps(done), encoding="utf-8")
        assert main(shlex.split(CONVERT)) == 0
        assert main(shlex.split(CHECK)) == 0
        assert main(shlex.split(INIT)) == 0
        shorten(Path("corrected.yaml"))
        assert main([*shlex.split(TRAIN), "--device", "cpu"]) == 0
        assert Path("runs/corrected-forward-seed0/best.pt").is_file()
        read = read_annotations("corrected.json")
        for task in tasks:
            name, rate = task["data"]["name"], task["data"]["fps"]
            actions = clips[name]
            times = [(start, end) for start, end, _ in actions]
            assert read.videos[name].labels == tuple(label for *_, label in actions)
            assert abs(read.videos[name].segments - times).max() <= 0.5 / rate + 1e-6


def test_the_commands_for_frame_wise_data_convert_there_and_back(tmp_path: Path) -> None:
    folder = tmp_path / "data/gtea/groundTruth"
    folder.mkdir(parents=True)
    lines = ["background"] * 10 + ["take"] * 20 + ["open"] * 15 + ["background"] * 5
    (folder / "S1_Tea_C1.txt").write_text("\n".join(lines) + "\n")
    with contextlib.chdir(tmp_path):
        for command in FRAME_WISE:
            assert main(shlex.split(command)) == 0
    assert (tmp_path / "data/mine/groundTruth/S1_Tea_C1.txt").read_text().split() == lines
    assert (tmp_path / "data/mine/mapping.txt").read_text() == "0 background\n1 open\n2 take\n"
