"""The README's commands do what it says, as they are written."""

from __future__ import annotations

import json
import re
import shlex
import time
from pathlib import Path

import pytest
from bar_clips import write_clips, write_table

from bitad import read_annotations, read_detections
from bitad.cli import main
from bitad.data.tiou import tiou_pairs

README = Path(__file__).resolve().parents[1] / "README.md"


def commands(text: str, heading: str) -> list[list[str]]:
    """The commands of the first shell block below a heading."""
    block = re.search(rf"^## {heading}\n.*?^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert block is not None
    return [shlex.split(line, comments=True) for line in block[1].splitlines() if line.strip()]


def shown_and_right(truth: Path, found: Path) -> tuple[int, int]:
    """How many segments of the validation videos a shown detection finds at tIoU 0.5, and how many there are."""
    detections = read_detections(found)
    least = detections.details["min_scores"]
    right = total = 0
    for video in read_annotations(truth).subset("validation").videos.values():
        for segment, label in zip(video.segments, video.labels, strict=True):
            own = detections.of_video(video.name)
            is_shown = (own.labels == label) & (own.scores >= least[label])
            overlaps = [tiou(segment, other) for other in own.segments[is_shown]]
            right += max(overlaps, default=0.0) >= 0.5
            total += 1
    return right, total


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
