"""Average recall: the recorded figures of OpenTAD and of ActivityNet's code, and a slow version of the definition."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import FIXTURES, NEEDS_FIXTURES

from bitad import average_recall, read_annotations, read_detections
from bitad.cli import build_parser, main
from bitad.cli.metrics import check_metric_options
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.detections import Detections, write_detections
from bitad.data.formats.database import write_annotations

RECORDED = FIXTURES / "recall"
THUMOS14 = FIXTURES.parent / "data" / "thumos14"
EQUAL = 1e-9


def files(name: str) -> tuple[Path, Path]:
    if name == "actionformer":
        return THUMOS14 / "thumos14.json.gz", THUMOS14 / "actionformer_detections.json.gz"
    return RECORDED / f"{name}_gt.json.gz", RECORDED / f"{name}_pred.json.gz"


def recorded() -> list[tuple[str, str]]:
    if not RECORDED.is_dir():
        return [("none", "none")]
    names = sorted(path.name.removesuffix("_expected.json") for path in RECORDED.glob("*_expected.json"))
    return [(name, key) for name in names for key in json.loads((RECORDED / f"{name}_expected.json").read_text())]


@NEEDS_FIXTURES
@pytest.mark.parametrize(("name", "key"), recorded())
def test_the_recorded_figures(name: str, key: str) -> None:
    expected: dict[str, Any] = json.loads((RECORDED / f"{name}_expected.json").read_text())[key]
    gt, pred = files(name)
    truth, found = read_annotations(gt, ignore=()), read_detections(pred)
    options = {
        "subset": "Test",
        "tiou": expected.pop("tiou"),
        "max_proposals": expected.pop("max_avg_nr_proposals"),
    }
    result = average_recall(truth, found, **options)
    assert result.segments == expected.pop("ground_truth")
    assert result.videos_with_segments == expected.pop("videos_with_ground_truth")
    assert result.auc == pytest.approx(expected.pop("AUC"), abs=EQUAL)
    for number, value in expected.pop("AR").items():
        assert result.at(int(number)) == pytest.approx(value, abs=EQUAL)
    for number, values in expected.pop("recall_per_tiou_at").items():
        point = result.index(int(number))
        assert result.recall[:, point] == pytest.approx(values, abs=EQUAL)
    assert result.curve == pytest.approx(expected.pop("average_recall_curve"), abs=EQUAL)
    other, code = (
        expected.pop("activitynet_2018_code"),
        average_recall(truth, found, **options, rule="activitynet"),
    )
    assert code.auc == pytest.approx(other.pop("AUC"), abs=EQUAL)
    assert code.curve == pytest.approx(other.pop("average_recall_curve_100_points"), abs=EQUAL)
    assert not expected | other, "a recorded figure that this test does not compare"


@NEEDS_FIXTURES
def test_the_command_prints_and_writes_the_recorded_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, found = files("actionformer")
    command = ["evaluate", "--ground-truth", str(truth), "--detections", str(found), "--subset", "Test"]
    out = tmp_path / "ar.json"
    assert main([*command, "--metric", "ar", "--max-proposals", "200", "--json", str(out)]) == 0
    table = capsys.readouterr().out
    assert "by OpenTAD's definition" in table
    assert table.splitlines()[4].split()[1:] == [
        "3.53",
        "6.57",
        "14.25",
        "23.97",
        "36.80",
        "52.40",
        "60.34",
        "65.94",
        "55.16",
    ]
    content = json.loads(out.read_text())
    assert content["auc"] == pytest.approx(0.55163147707, abs=EQUAL)
    assert content["ar"]["200"] == pytest.approx(0.659380583681, abs=EQUAL)
    assert main([*command, "--metric", "ar", "--rule", "activitynet", "--tiou", "0.5:1.0:0.05"]) == 0
    table = capsys.readouterr().out
    assert "by ActivityNet's definition" in table
    assert table.splitlines()[4].split()[-2:] == ["54.85", "42.54"]


def slow(truth: Annotations, found: Detections, tiou: list[float], most: int, rule: str) -> tuple[Any, float]:
    """The definition, instance by instance."""
    instances: dict[str, list[tuple[float, float]]] = {}
    for name, video in truth.videos.items():
        kept: list[tuple[str, float, float]] = []
        for (start, end), label in zip(video.segments.tolist(), video.labels, strict=True):
            copy = any(own == label and abs(start - a) <= 1e-3 and abs(end - b) <= 1e-3 for own, a, b in kept)
            if rule == "activitynet" or (end > start and not copy):
                kept.append((label, start, end))
        if kept:
            instances[name] = [(start, end) for _, start, end in kept]
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in instances}
    for name, start, end, _, _ in sorted(found.to_rows(), key=lambda row: -row[4]):
        if name in rows:
            rows[name].append((start, end))
    ratio = most * len(instances) / len(found)
    for name, own in rows.items():
        rows[name] = own[: min(int(len(own) * ratio), len(own))]
    used = sum(map(len, rows.values()))
    points = most if rule == "opentad" else 100
    recall = np.zeros((len(tiou), points))
    total = sum(map(len, instances.values()))
    for j in range(points):
        factor = (j + 1) / points * (most * len(instances) / used) if used else 0.0
        for name, segments in instances.items():
            first = rows[name][: min(int(len(rows[name]) * factor), len(rows[name]))]
            for a, b in segments:
                overlaps = []
                for start, end in first:
                    shared = max(0.0, min(b, end) - max(a, start))
                    union = (b - a) + (end - start) - shared
                    overlaps.append(shared / union if shared else 0.0)
                for row, threshold in enumerate(tiou):
                    recall[row, j] += any(overlap >= threshold for overlap in overlaps) / total
    curve = recall.mean(axis=0)
    numbers = np.arange(1, points + 1) * most / points
    area = sum((curve[j] + curve[j + 1]) / 2 * (numbers[j + 1] - numbers[j]) for j in range(points - 1))
    return recall, float(area / numbers[-1])


segment = st.tuples(st.integers(0, 12), st.integers(0, 6)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@settings(max_examples=60, deadline=None)
@given(
    truth=st.lists(st.lists(st.tuples(segment, st.sampled_from("pq")), max_size=4), min_size=1, max_size=4),
    found=st.lists(st.tuples(st.integers(0, 5), segment, st.sampled_from("pq"), st.integers(0, 9)), min_size=1),
    most=st.integers(1, 7),
    rule=st.sampled_from(["opentad", "activitynet"]),
)
def test_it_is_the_definition(truth: list[Any], found: list[Any], most: int, rule: Any) -> None:
    videos = {}
    for i, rows in enumerate(truth):
        segments = np.array([span for span, _ in rows], np.float64).reshape(-1, 2)
        videos[f"v{i}"] = AnnotatedVideo(f"v{i}", "test", 20.0, segments, tuple(label for _, label in rows))
    annotations = Annotations(videos, ("p", "q"))
    names = tuple(f"v{i}" for i in range(6))  # those beyond the ground truth are unknown
    detections = Detections(
        videos=names,
        classes=("p", "q"),
        video=np.array([row[0] for row in found], np.int64),
        segments=np.array([row[1] for row in found], np.float64),
        scores=np.array([row[3] / 10 for row in found], np.float64),
        labels=np.array(["pq".index(row[2]) for row in found], np.int64),
    )
    has_segment = any(end > start or rule == "activitynet" for rows in truth for (start, end), _ in rows)
    if not has_segment:
        with pytest.raises(ValueError, match="has no segment"):
            average_recall(annotations, detections, subset="test", max_proposals=most, rule=rule)
        return
    tiou = [0.5, 0.75, 1.0]
    result = average_recall(annotations, detections, subset="test", tiou=tiou, max_proposals=most, rule=rule)
    recall, auc = slow(annotations, detections, tiou, most, rule)
    np.testing.assert_allclose(result.recall, recall, atol=1e-12)
    assert result.auc == pytest.approx(auc, abs=1e-12)


def perfect() -> tuple[Annotations, Detections]:
    segments = np.array([[1.0, 3.0]])
    videos = {name: AnnotatedVideo(name, "test", 9.0, segments, ("a",)) for name in ("x", "y")}
    columns = {name: (segments, np.array([0.9]), np.array([0])) for name in videos}
    return Annotations(videos, ("a",)), Detections.from_videos(columns, classes=["a"])


def test_a_perfect_detector_misses_only_the_area_before_the_first_point() -> None:
    result = average_recall(*perfect(), subset="test", max_proposals=1)
    assert result.recall.min() == 1.0
    assert result.auc == 0.0  # of one point
    truth, found = perfect()
    hundred = [found] + [replace(found, scores=found.scores * 0.9**i) for i in range(1, 100)]
    assert average_recall(truth, Detections.concatenate(hundred), subset="test").auc == pytest.approx(0.99)


def test_labels_and_reverse_time_do_not_matter() -> None:
    truth, found = perfect()
    found = replace(found, durations_s={"x": 9.0, "y": 9.0}, classes=("b",))
    assert average_recall(truth, found.reversed(), subset="test").reported[1] == 1.0


def test_without_proposals_nothing_is_recalled() -> None:
    truth, found = perfect()
    none = average_recall(truth, found.take(np.zeros(2, np.bool_)), subset="test", max_proposals=10)
    assert (none.curve.max(), none.auc, none.proposals) == (0.0, 0.0, 0)
    assert none.videos_without_proposal == ("x", "y")
    assert none.average_proposals.tolist() == list(range(1, 11))


def test_a_number_between_points_is_refused() -> None:
    result = average_recall(*perfect(), subset="test", max_proposals=150, rule="activitynet")
    assert list(result.reported) == [150]
    with pytest.raises(ValueError, match="no point at 10 proposals"):
        result.at(10)


@pytest.mark.parametrize("most", [0, -1, 10_001])
def test_a_number_of_proposals_out_of_range_is_refused(most: int) -> None:
    with pytest.raises(ValueError, match=f"max_proposals {most}: give .* from 1 to 10,000"):
        average_recall(*perfect(), subset="test", max_proposals=most)


def test_proposals_elsewhere_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, found = perfect()
    write_annotations(truth, tmp_path / "gt.json")
    other = replace(found, videos=("x", "z"))
    write_detections(other, tmp_path / "found.json")
    command = ["evaluate", "--ground-truth", tmp_path / "gt.json", "--detections", tmp_path / "found.json"]
    assert main([*map(str, command), "--subset", "test", "--metric", "ar", "--max-proposals", "1"]) == 0
    table = capsys.readouterr().out
    assert "1 proposal in videos without segments" in table
    assert "1 video without any proposal: y." in table
    assert table.splitlines()[4].split() == ["found.json", "50.00", "0.00"]


def test_ambiguous_segments_count_and_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, found = perfect()
    video = truth.videos["x"]
    both = replace(video, segments=np.array([[1.0, 3.0], [6.0, 8.0]]), labels=("a", "Ambiguous"))
    truth = Annotations(truth.videos | {"x": both}, ("a", "Ambiguous"))
    write_annotations(truth, tmp_path / "gt.json")
    write_detections(found, tmp_path / "found.json")
    command = ["evaluate", "--ground-truth", tmp_path / "gt.json", "--detections", tmp_path / "found.json"]
    assert main([*map(str, command), "--subset", "test", "--metric", "ar", "--max-proposals", "1"]) == 0
    table = capsys.readouterr().out
    assert "1 Ambiguous interval of the ground truth counted" in table
    assert table.splitlines()[4].split()[1] == "66.67"


def test_the_commands_of_the_page_are_accepted() -> None:
    page = (Path(__file__).parents[2] / "docs/measures.md").read_text(encoding="utf-8").replace("\\\n", "")
    commands = [line.strip() for line in page.splitlines() if line.startswith("    bitad ")]
    assert len(commands) == 5
    for command in commands:
        args = build_parser().parse_args(shlex.split(command)[1:])
        check_metric_options(args)


@NEEDS_FIXTURES
def test_the_figures_of_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs/measures.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (0\.5:[\d.]+:0\.05), M = (\d+) \| (.+) \|$", page, re.MULTILINE)
    assert len(rows) == 4
    expected = json.loads((RECORDED / "actionformer_expected.json").read_text())
    for tiou, most, cells in rows:
        one = expected[f"{'anet' if '0.95' in tiou else 'thumos'}_max{most}"]
        figures = [one["AR"].get(number) for number in ("1", "5", "10", "50", "100", "200")] + [one["AUC"]]
        assert [cell.strip() for cell in cells.split("|")] == [
            "" if value is None else f"{100 * value:.2f}" for value in figures
        ]
