"""`bitad merge` of files that list different things: the union, and one line that says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import bitad
from bitad.cli import main
from bitad.data.detections import read_detections

METHODS = ("soft-nms", "mean", "product", "wsf")


def row(start: float, end: float, label: str, score: float) -> dict[str, object]:
    return {"segment": [start, end], "label": label, "score": score}


def write(path: Path, results: dict[str, list[dict[str, object]]], **external: object) -> str:
    path.write_text(json.dumps({"results": results, "external_data": external}), encoding="utf-8")
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    return [
        write(
            tmp_path / "a.json",
            {"a": [row(10, 20, "run", 0.9), row(40, 60, "jump", 0.8)], "b": [row(5, 9, "run", 0.6)]},
        ),
        write(tmp_path / "b.json", {"a": [row(10, 20, "run", 0.9)]}),
        write(tmp_path / "c.json", {"a": [row(10, 20, "run", 0.9)], "c": []}),
    ]


def merged(out: Path) -> dict[tuple[str, str, float], float]:
    found = read_detections(out)
    columns = zip(found.video, found.labels, found.segments, found.scores, strict=True)
    return {(found.videos[v], found.classes[k], segment[0]): score for v, k, segment, score in columns}


def test_files_of_different_videos_and_classes_are_merged_as_a_union(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.json"
    assert main(["merge", *files[:2], "--out", str(out), "--method", "mean"]) == 0
    assert merged(out) == pytest.approx({("a", "run", 10): 0.9, ("a", "jump", 40): 0.4, ("b", "run", 5): 0.3})
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{files[1]} lacks 1 video (b); {files[1]} lacks 1 class (jump)" in line


def test_segments_are_fused_by_their_scores_unless_another_method_is_named(
    files: list[str], tmp_path: Path
) -> None:
    default, named = tmp_path / "default.json", tmp_path / "wsf.json"
    assert main(["merge", *files, *files[:2], "--out", str(default)]) == 0
    assert main(["merge", *files, *files[:2], "--out", str(named), "--method", "wsf"]) == 0
    assert default.read_bytes() == named.read_bytes()
    sets = [read_detections(file) for file in (*files, *files[:2])]
    assert bitad.merge(*sets).scores.tolist() == read_detections(default).scores.tolist()


def test_three_files_are_merged(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.json"
    assert main(["merge", *files, "--out", str(out), "--method", "wsf"]) == 0
    found = merged(out)
    assert found == pytest.approx({("a", "run", 10): 0.9, ("a", "jump", 40): 0.8 / 3, ("b", "run", 5): 0.2})
    assert set(read_detections(out).videos) == {"a", "b", "c"}
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{files[0]} lacks 1 video (c)" in line
    assert f"{files[1]} lacks 2 videos (" in line
    assert main(["merge", *files, "--out", str(out), "--method", "product"]) == 0
    assert merged(out) == pytest.approx({("a", "run", 10): 0.9})


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_three_files_does_not_matter(files: list[str], tmp_path: Path, method: str) -> None:
    found = []
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        out = tmp_path / "m.json"
        assert main(["merge", *(files[i] for i in order), "--out", str(out), "--method", method]) == 0
        found.append(merged(out))
    assert found[0] == found[1] == found[2]


def test_two_names_of_each_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path / "a.json", {f"v{i}": [row(0, 1, f"c{i}", 0.5)] for i in range(6)})
    b = write(tmp_path / "b.json", {"v0": [row(0, 1, "c0", 0.5)]})
    assert main(["merge", a, b, "--out", str(tmp_path / "m.json")]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{b} lacks 5 videos (v1, v2 and 3 more); {b} lacks 5 classes (c1, c2 and 3 more)" in line


def test_files_without_a_video_in_common_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path / "a.json", {"a": [row(0, 1, "run", 0.5)]})
    b = write(tmp_path / "b.json", {"b": [row(0, 1, "run", 0.5)]})
    assert main(["merge", a, b, "--out", str(tmp_path / "m.json")]) == 0
    assert "no video is in all of them" in capsys.readouterr().err


def test_class_lists_that_files_state_may_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path / "a.json", {"a": [row(0, 1, "run", 0.5)]}, classes=["walk", "run"])
    b = write(tmp_path / "b.json", {"a": [row(0, 1, "run", 0.5)]}, classes=["run", "jump"])
    assert main(["merge", a, b, "--out", str(tmp_path / "m.json")]) == 0
    assert read_detections(tmp_path / "m.json").classes == ("walk", "run", "jump")
    assert f"{a} lacks 1 class (jump); {b} lacks 1 class (walk)" in capsys.readouterr().err


def test_files_of_one_data_set_are_merged_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write(tmp_path / "a.json", {"a": [row(0, 1, "run", 0.5)]})
    assert main(["merge", a, a, a, "--out", str(tmp_path / "m.json")]) == 0
    assert capsys.readouterr().err == ""


def test_the_scores_from_which_detections_are_shown_are_not_those_of_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = write(tmp_path / "a.json", {"a": [row(0, 1, "run", 0.5)]})
    scored = write(tmp_path / "b.json", {"a": [row(0, 1, "run", 0.5)]}, min_scores={"run": 0.45})
    assert read_detections(scored).min_scores == {"run": 0.45}
    assert main(["merge", plain, scored, "--out", str(tmp_path / "m.json")]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        f"the scores of best F1 in {scored} do not hold for merged scores; merged detections are shown from 0.3"
    )
    assert read_detections(tmp_path / "m.json").min_scores == {}


def test_one_file_is_nothing_to_merge(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", files[0], "--out", str(tmp_path / "m.json")]) == 1
    assert "merging needs at least two" in capsys.readouterr().err


def test_the_scale_of_the_third_file_is_looked_at_too(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for score, says in ((7.5, "different scales"), (-3, "must not be negative")):
        odd = write(tmp_path / "odd.json", {"a": [row(0, 1, "run", score)]})
        assert main(["merge", *files[:2], odd, "--out", str(tmp_path / "m.json"), "--method", "mean"]) == 1
        err = capsys.readouterr().err
        assert says in err
        assert odd in err


def test_reverse_and_forward_files_are_merged_on_the_forward_clock(tmp_path: Path) -> None:
    durations = {"a": 100.0}
    forward = write(tmp_path / "f.json", {"a": [row(10, 20, "run", 0.9)]}, durations_s=durations)
    reverse = write(tmp_path / "r.json", {"a": [row(80, 90, "run", 0.9)]}, durations_s=durations, basis="reverse")
    silent = write(tmp_path / "s.json", {"a": [row(80, 90, "run", 0.9)]}, durations_s=durations)
    out = tmp_path / "m.json"
    for command in ([forward, forward, reverse], [reverse, silent, forward, "--reverse-b"]):
        assert main(["merge", *command, "--out", str(out), "--method", "mean"]) == 0
        assert merged(out) == pytest.approx({("a", "run", 10): 0.9})


def test_what_files_say_of_durations_is_told_by_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write(tmp_path / "z.json", {"a": [row(1, 2, "run", 0.5)]}, durations_s={"a": 10})
    other = write(tmp_path / "b.json", {"a": [row(1, 2, "run", 0.5)]}, durations_s={"a": 12})
    unknown = write(tmp_path / "c.json", {"a": [row(1, 2, "run", 0.4)]}, basis="reverse")
    empty = tmp_path / "gt.json"
    empty.write_text(json.dumps({"database": {"a": {"subset": "x", "annotations": []}}}), encoding="utf-8")
    out = ["--out", str(tmp_path / "m.json")]
    assert main(["merge", one, one, other, *out]) == 1
    said = capsys.readouterr().err
    assert f"10 s in {one}" in said
    assert f"12 s in {other}" in said
    assert main(["merge", one, one, unknown, *out]) == 1
    assert f"{unknown}: the duration of a is unknown" in capsys.readouterr().err
    assert main(["merge", one, unknown, "--reverse-b", *out]) == 1
    assert f"{unknown} has none" in capsys.readouterr().err
    assert main(["merge", one, unknown, "--reverse-b", "--annotations", str(empty), *out]) == 1
    assert f"{empty} has none" in capsys.readouterr().err
