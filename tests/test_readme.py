"""The README's commands do what it says, as they are written."""

from __future__ import annotations

import json
import re
import shlex
import time
from pathlib import Path

import numpy as np
import pytest
from bar_clips import write_clips, write_table
from numpy.typing import NDArray

from bitad import read_annotations, read_detections
from bitad.cli import main

README = Path(__file__).resolve().parents[1] / "README.md"


def commands(text: str, heading: str) -> list[list[str]]:
    """The commands of the first shell block below a heading."""
    block = re.search(rf"^## {heading}\n.*?^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert block is not None
    return [shlex.split(line, comments=True) for line in block[1].splitlines() if line.strip()]


def tiou(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    shared = min(one[1], other[1]) - max(one[0], other[0])
    return max(0.0, shared) / (one[1] - one[0] + other[1] - other[0] - max(0.0, shared))


def shown_share(truth: Path, found: Path) -> float:
    """The share of the validation videos' segments that a detection shown by default finds at tIoU 0.5."""
    detections = read_detections(found)
    least = detections.details["min_scores"]
    hits = []
    for video in read_annotations(truth).subset("validation").videos.values():
        own = next(one for one in detections if one.name == video.name)
        for segment, label in zip(video.segments, video.labels, strict=True):
            is_shown = (own.labels == label) & (own.scores >= least[label])
            hits.append(max((tiou(segment, other) for other in own.segments[is_shown]), default=0.0) >= 0.5)
    return sum(hits) / len(hits)


def test_both_languages_have_the_same_commands() -> None:
    def lines(text: str) -> list[list[str]]:
        blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]

    korean = README.with_name("README.ko.md").read_text(encoding="utf-8")
    assert lines(korean) == lines(README.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_five_lines_take_a_user_from_clips_and_a_table_to_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(write_clips(tmp_path / "my_videos", 12), tmp_path / "my.csv")
    write_clips(tmp_path / "new", 1, seed=9)
    (tmp_path / "new/clip00.mp4").rename(tmp_path / "holiday.mp4")
    lines = commands(README.read_text(encoding="utf-8"), "Your own videos")
    assert len(lines) == 5
    begin = time.monotonic()
    for program, *arguments in lines:
        assert program == "bitad"
        assert main(arguments) == 0
    assert time.monotonic() - begin < 300
    run = tmp_path / "runs/my-forward-seed0"
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(line.get("average_map", 0.0) for line in metrics) > 0.5
    assert shown_share(tmp_path / "my.json", run / "detections.json") >= 0.8
    page = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert "<video" in page
    assert (tmp_path / "detections/index.html").is_file()
    assert (tmp_path / "detections/holiday.srt").read_text(encoding="utf-8").strip()
