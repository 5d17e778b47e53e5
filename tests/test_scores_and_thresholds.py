"""Thresholds and scores that people and other projects' files give to `bitad evaluate` and `bitad merge`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitad.cli import main

DETECTIONS = {"a": [([10, 20], "run", 0.9), ([40, 60], "jump", 0.8)], "b": [([5, 9], "run", 0.7)]}


def detection_file(path: Path, scores: dict[str, list[float]]) -> Path:
    """Detections of two videos with these scores."""
    results = {
        video: [
            {"segment": segment, "label": label, "score": score}
            for (segment, label, _), score in zip(DETECTIONS[video], of_video, strict=True)
        ]
        for video, of_video in scores.items()
    }
    path.write_text(json.dumps({"results": results}))
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Ground truth, and detections that find all of it."""
    truth = tmp_path / "truth.json"
    database = {
        video: {
            "subset": "test",
            "duration": 100,
            "annotations": [{"segment": segment, "label": label} for segment, label, _ in rows],
        }
        for video, rows in DETECTIONS.items()
    }
    truth.write_text(json.dumps({"database": database}))
    return truth, detection_file(tmp_path / "found.json", {"a": [0.9, 0.8], "b": [0.7]})


def evaluated(files: tuple[Path, Path], tiou: str, out: Path) -> list[float]:
    truth, found = map(str, files)
    command = ["evaluate", "--ground-truth", truth, "--detections", found, "--subset", "test", "--tiou", tiou]
    assert main([*command, "--json", str(out)]) == 0
    thresholds: list[float] = json.loads(out.read_text())["tiou"]
    return thresholds


@pytest.mark.parametrize(
    ("tiou", "right"),
    [
        ("0.5:0.9:0.25", [0.5, 0.75]),
        ("0.3:0.7:0.1", [0.3, 0.4, 0.5, 0.6, 0.7]),
        ("0.5:0.95:0.05", [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]),
        ("0.1:0.9:0.2", [0.1, 0.3, 0.5, 0.7, 0.9]),
        ("0.5:0.95:0.1", [0.5, 0.6, 0.7, 0.8, 0.9]),
        ("0.5:0.5:0.1", [0.5]),
        ("0.5:1:0.7", [0.5]),
        ("0.75,0.5", [0.75, 0.5]),
    ],
)
def test_a_range_of_thresholds_ends_at_its_end_or_before(
    files: tuple[Path, Path], tmp_path: Path, tiou: str, right: list[float]
) -> None:
    assert evaluated(files, tiou, tmp_path / "figures.json") == right


@pytest.mark.parametrize(
    ("tiou", "why"),
    [
        ("0.9:0.5:0.1", "give first:last:step or a,b,c"),
        ("0.5:0.9:-0.1", "give first:last:step or a,b,c"),
        ("0.1:1:1e-9", "at most 1,000 different numbers"),
        ("0:0.5:0.1", "each above 0 and at most 1"),
        ("0.9:1.3:0.2", "each above 0 and at most 1"),
        ("0.5,0.5", "different numbers"),
        ("0.5,nan", "give first:last:step or a,b,c"),
        ("0.1:0.5:nan", "give first:last:step or a,b,c"),
        ("0.1:0.2:0.3:0.4", "give first:last:step or a,b,c"),
    ],
)
def test_thresholds_that_cannot_be_meant_are_named_as_typed(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tiou: str, why: str
) -> None:
    truth, found = map(str, files)
    command = ["evaluate", "--ground-truth", truth, "--detections", found, "--subset", "test", "--tiou", tiou]
    assert main(command) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert f"--tiou {tiou}" in said.err
    assert why in said.err


@pytest.mark.parametrize("method", ["soft-nms", "mean", "product", "wsf"])
@pytest.mark.parametrize(
    ("scores", "right"),
    [
        ({"a": [7.3, 0.8], "b": [-3]}, "video b: segment [5.0, 9.0] has score -3; scores must not be negative"),
        ({"a": [73, 20], "b": [4]}, "scores up to 73, and {other} up to 0.9: they are on different scales"),
    ],
)
def test_no_method_merges_scores_that_are_none(
    files: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    method: str,
    scores: dict[str, list[float]],
    right: str,
) -> None:
    """The file is named, whichever of the two it is, and nothing is written."""
    other, out = files[1], tmp_path / "merged.json"
    bad = detection_file(tmp_path / "bad.json", scores)
    for pair in ((other, bad), (bad, other)):
        assert main(["merge", *map(str, pair), "--out", str(out), "--method", method]) == 1
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1
        assert f"{bad}: {right.format(other=other)}" in said
    assert not out.exists()


@pytest.mark.parametrize(("key", "value"), [("score", True), ("segment", [True, 9])])
def test_true_is_no_number_among_numbers(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str], key: str, value: object
) -> None:
    truth, found = files
    content = json.loads(found.read_text())
    content["results"]["b"][0][key] = value
    found.write_text(json.dumps(content))
    assert main(["evaluate", "--ground-truth", str(truth), "--detections", str(found), "--subset", "test"]) == 1
    what = "start" if key == "segment" else key
    assert f"{found}: video b: {what} True is not" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["soft-nms", "mean", "product", "wsf"])
def test_scores_of_one_scale_are_merged_whatever_it_is(tmp_path: Path, method: str) -> None:
    """Percentages in both files, or nothing but zeros in one."""
    percent = detection_file(tmp_path / "percent.json", {"a": [90, 80], "b": [70]})
    zero = detection_file(tmp_path / "zero.json", {"a": [0, 0], "b": [0]})
    for pair in ((percent, percent), (percent, zero)):
        assert main(["merge", *map(str, pair), "--out", str(tmp_path / "m.json"), "--method", method]) == 0
