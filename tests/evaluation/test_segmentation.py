"""F1@k and edit score: cases worked by hand, a slow version on frames, as the field computes them, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitad import segmental_f1
from bitad.cli import main
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.detections import Detections, write_detections
from bitad.data.formats.database import write_annotations
from bitad.evaluation.segmentation import SegmentalF1

Rows = list[tuple[str, float, float]]


def truth_of(videos: dict[str, Rows]) -> Annotations:
    found = {}
    for name, rows in videos.items():
        segments = np.array([row[1:] for row in rows], np.float64).reshape(-1, 2)
        found[name] = AnnotatedVideo(name, "test", 100.0, segments, tuple(row[0] for row in rows))
    labels = {row[0] for rows in videos.values() for row in rows}
    return Annotations(found, tuple(sorted(labels)))


def detections_of(videos: dict[str, list[tuple[str, float, float, float]]]) -> Detections:
    classes = sorted({row[0] for rows in videos.values() for row in rows})
    columns = {}
    for name, rows in videos.items():
        segments = np.array([row[1:3] for row in rows], np.float64).reshape(-1, 2)
        labels = np.array([classes.index(row[0]) for row in rows], np.int64)
        columns[name] = (segments, np.array([row[3] for row in rows], np.float64), labels)
    return Detections.from_videos(columns, classes=classes, durations_s=dict.fromkeys(videos, 100.0))


THREE: Rows = [("a", 0, 10), ("b", 10, 20), ("a", 20, 30)]


def measured(truth: Rows, *found: tuple[str, float, float]) -> SegmentalF1:
    rows = [(*row, 0.9) for row in found]
    return segmental_f1(truth_of({"v": truth}), detections_of({"v": rows}), subset="test")


def test_a_segment_found_in_two_parts_makes_one_true_positive() -> None:
    # IoU with their segments: 0.5, 0.45, 0.6 and 0.9.
    result = measured(THREE, ("a", 0, 5), ("a", 5.5, 10), ("b", 10, 16), ("a", 21, 30))
    # 3 true positives among 4 detected and 3 annotated: F1 = 6 / 7.
    assert result.f1.tolist() == pytest.approx([6 / 7] * 3)
    # a a b a -> a b a: one deletion among 4.
    assert result.edit == pytest.approx(0.75)
    # Class a: 2 among 3 and 2; b: 1 among 1 and 1.
    assert result.f1_per_class[:, 2].tolist() == pytest.approx([4 / 5, 1.0])
    assert result.classes == ("a", "b")


def test_each_overlap_has_its_own_threshold() -> None:
    # IoU 0.2, 0.3 and 0.6: 3, 2 and 1 true positives.
    result = measured(THREE, ("a", 0, 2), ("b", 10, 13), ("a", 20, 26))
    assert result.f1.tolist() == pytest.approx([1, 2 / 3, 1 / 3])
    assert result.edit == 1.0


def test_a_detection_does_not_take_its_second_best_segment() -> None:
    truth: Rows = [("a", 0, 4), ("b", 4, 5), ("a", 5, 9)]
    # Both overlap the second a most (1/3 and 3/8); that the first also overlaps the first a by 1/7 does not matter.
    result = measured(truth, ("a", 3, 7), ("a", 7.5, 9))
    assert result.f1.tolist() == pytest.approx([2 * 1 / 5, 2 * 1 / 5, 0])
    # a a -> a b a: one insertion among 3.
    assert result.edit == pytest.approx(2 / 3)


def test_another_label_in_the_right_place_is_wrong() -> None:
    result = measured(THREE, ("b", 0, 10), ("b", 10, 20), ("a", 20, 30))
    # The two b touch, so they are one, of IoU 1/2 with b: 2 true positives among 2 and 3.
    assert result.f1.tolist() == pytest.approx([4 / 5] * 3)
    # b a -> a b a.
    assert result.edit == pytest.approx(2 / 3)


def test_background_is_ignored_on_both_sides() -> None:
    truth: Rows = [("Background", 0, 5), *((label, a + 5, b + 5) for label, a, b in THREE)]
    result = measured(
        truth, ("background", 0, 6), ("a", 6, 15), ("b", 15, 25), ("a", 25, 35), ("background", 40, 60)
    )
    assert result.classes == ("a", "b")
    assert (result.f1.tolist(), result.edit) == ([1.0] * 3, 1.0)


def test_the_mean_of_videos_and_all_of_them_together_differ() -> None:
    truth = truth_of({"v": THREE, "w": [("a", 0, 10)], "empty": []})
    rows = [(*row, 0.9) for row in THREE]
    result = segmental_f1(truth, detections_of({"v": rows, "elsewhere": rows}), subset="test")
    # Together: 3 true positives among 3 and 4. Videos: 1, 0, and 1 of the one with neither.
    assert result.f1.tolist() == pytest.approx([6 / 7] * 3)
    assert result.f1_mean_of_videos.tolist() == pytest.approx([2 / 3] * 3)
    assert result.edits == {"v": 1.0, "w": 0.0, "empty": 1.0}
    assert (result.detections, result.elsewhere) == (3, 3)


def test_detections_become_one_label_a_moment() -> None:
    # b takes 10 to 20 first; of a, 12 of 22 seconds are left, 20 to 30 being the longest part, below a half.
    rows = [("b", 10.0, 20.0, 0.9), ("a", 8.0, 30.0, 0.8), ("a", 0.0, 14.0, 0.7), ("c", 0.0, 100.0, 0.2)]
    result = segmental_f1(truth_of({"v": THREE}), detections_of({"v": rows}), subset="test")
    # Left: a from 0 to 10, b from 10 to 20; c is below 0.3. 2 among 2 and 3.
    assert result.f1.tolist() == pytest.approx([4 / 5] * 3)
    assert result.detections == 3


def test_the_least_score_is_the_files_the_given_one_or_the_default() -> None:
    truth, rows = truth_of({"v": THREE}), [(*row, 0.2) for row in THREE]
    found = detections_of({"v": rows})
    default = segmental_f1(truth, found, subset="test")
    assert (default.detections, default.min_scores_of) == (0, "default")
    assert (default.f1.tolist(), default.edit) == ([0.0] * 3, 0.0)
    own = segmental_f1(truth, found.with_min_scores({"a": 0.1}), subset="test")
    assert (own.detections, own.min_scores_of) == (2, "detections")
    assert own.min_scores == {"a": 0.1, "b": 0.3}
    given_one = segmental_f1(truth, found, subset="test", min_scores={"a": 0.2, "b": 0.2})
    assert (given_one.detections, given_one.min_scores_of) == (3, "arguments")
    assert given_one.f1.tolist() == [1.0] * 3


def test_reverse_time_does_not_matter() -> None:
    truth, found = truth_of({"v": THREE}), detections_of({"v": [(*row, 0.9) for row in THREE]})
    assert segmental_f1(truth, found.reversed(), subset="test").f1.tolist() == [1.0] * 3


def test_copies_and_touching_segments_of_a_label_are_one() -> None:
    truth: Rows = [("a", 0, 10), ("a", 0.0005, 10), ("a", 10, 15), ("b", 14.9995, 20), ("b", 17, 17)]
    assert measured(truth, ("a", 0, 15), ("b", 15, 20)).f1.tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("truth", "told"),
    [
        ([("a", 0, 10), ("b", 9, 12)], r"two labels at a time in v \(a \[0.0, 10.0\] and b \[9.0, 12.0\]\)"),
        ([("a", 0, 10), ("b", 3, 5), ("a", 12, 13)], "two labels at a time in v"),
        ([("background", 0, 10)], "has no segment to evaluate against"),
        ([("a", 5, 5)], "has no segment to evaluate against"),
    ],
)
def test_a_ground_truth_that_has_not_one_label_a_moment_is_refused(truth: Rows, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        measured(truth, ("a", 0, 5))


# A slow version: labels of frames, as the codes of Lea et al. and of MS-TCN have them.


def runs(frames: list[int]) -> list[tuple[int, int, int]]:
    """The stretches (label, start, end) of frames of one label, but 0."""
    found = []
    for i, label in enumerate([*frames, 0]):
        if i == 0 or label != frames[i - 1]:
            if i and frames[i - 1]:
                found[-1] = (*found[-1][:2], i)
            if label:
                found.append((label, i, i))
    return found


def counts(found: list[int], true: list[int], overlap: float) -> tuple[int, int, int]:
    """True positives, detected and annotated segments."""
    annotated = runs(true)
    taken, hits = set(), 0
    for label, start, end in runs(found):
        best, place = 0.0, None
        for i, (other, a, b) in enumerate(annotated):
            iou = (min(end, b) - max(start, a)) / (max(end, b) - min(start, a))
            if label == other and iou > best:
                best, place = iou, i
        if best >= overlap and place not in taken:
            taken.add(place)
            hits += 1
    return hits, len(runs(found)), len(annotated)


def f1(hits: int, detected: int, annotated: int) -> float:
    if not detected + annotated:
        return 1.0
    precision, recall = hits / max(1, detected), hits / max(1, annotated)
    return 2 * precision * recall / (precision + recall) if hits else 0.0


@lru_cache
def distance(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    if not one or not other:
        return len(one) + len(other)
    replaced = distance(one[1:], other[1:]) + (one[0] != other[0])
    return min(replaced, distance(one[1:], other) + 1, distance(one, other[1:]) + 1)


frames_of_video = st.lists(st.integers(0, 2), min_size=6, max_size=14)


@settings(max_examples=150, deadline=None)
@given(
    truth=st.lists(frames_of_video, min_size=1, max_size=3).filter(lambda videos: any(map(any, videos))),
    found=st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 2), st.integers(0, 12), st.integers(1, 8), st.integers(0, 9)),
        max_size=8,
    ),
)
def test_it_is_what_frames_give(truth: list[list[int]], found: list[tuple[int, ...]]) -> None:
    # A ground-truth segment a frame: those of a label that touch are one.
    videos = {
        f"v{i}": [("abc"[label], j, j + 1) for j, label in enumerate(frames) if label]
        for i, frames in enumerate(truth)
    }
    rows: dict[str, list[Any]] = {name: [] for name in videos}
    for video, label, start, length, score in found:
        if video < len(truth):
            rows[f"v{video}"].append(("abc"[label], start, start + length, score / 10))
    result = segmental_f1(truth_of(videos), detections_of(rows), subset="test")
    painted = []
    for one in detections_of(rows).shown().without_overlap():
        frames = [0] * 24
        for (start, end), label in zip(one.segments.tolist(), one.labels, strict=True):
            assert (start, end) == (int(start), int(end))
            frames[int(start) : int(end)] = ["abc".index(label)] * int(end - start)
        painted.append(frames)
    for column, overlap in enumerate((0.1, 0.25, 0.5)):
        each = [counts(frames, true, overlap) for frames, true in zip(painted, truth, strict=True)]
        assert result.f1[column] == pytest.approx(f1(*map(sum, zip(*each, strict=True))))
        assert result.f1_mean_of_videos[column] == pytest.approx(np.mean([f1(*one) for one in each]))
    for frames, true, edit in zip(painted, truth, result.edits.values(), strict=True):
        sequences = [tuple(label for label, _, _ in runs(one)) for one in (frames, true)]
        longest = max(map(len, sequences))
        assert edit == pytest.approx(1 - distance(*sequences) / longest if longest else 1.0)


def test_the_command_prints_and_writes_the_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_annotations(truth_of({"v": THREE}), tmp_path / "gt.json")
    found = detections_of({"v": [("a", 0, 5, 0.9), ("a", 5.5, 10, 0.8), ("b", 10, 16, 0.7), ("a", 21, 30, 0.25)]})
    write_detections(found.with_min_scores({"a": 0.2, "b": 0.3}), tmp_path / "found.json")
    out = tmp_path / "figures.json"
    command = ["evaluate", "--ground-truth", tmp_path / "gt.json", "--detections", tmp_path / "found.json"]
    command = [*map(str, command), "--subset", "test", "--metric", "segmental"]
    assert main([*command, "--per-class", "--json", str(out)]) == 0
    table = capsys.readouterr().out
    lines = table.splitlines()
    assert "Lea et al. 2017" in lines[0]
    assert lines[4].split() == ["found.json", "all", "videos", "together", "85.71", "85.71", "85.71", "75.00"]
    assert "at least the score that their file states for their class (0.20 to 0.30): 4 segments" in table
    assert any(line.split() == ["b", "found.json", "1", "1", "100.00", "100.00", "100.00"] for line in lines)
    content = json.loads(out.read_text())
    assert content["f1"] == pytest.approx([6 / 7] * 3)
    assert content["edit_per_video"] == {"v": 0.75}
    assert main([*command, "--min-score", "0.75"]) == 0
    table = capsys.readouterr().out
    assert "2 detections with a score of at least 0.75: 2 segments" in table


def test_several_files_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, found = truth_of({"v": THREE}), detections_of({"v": [(*row, 0.9) for row in THREE]})
    write_annotations(truth, tmp_path / "gt.json")
    write_detections(found, tmp_path / "one.json")
    write_detections(replace(found, scores=found.scores / 4), tmp_path / "two.json")
    files = [str(tmp_path / name) for name in ("one.json", "two.json")]
    command = ["evaluate", "--ground-truth", str(tmp_path / "gt.json"), "--subset", "test", "--detections", *files]
    out = tmp_path / "figures.json"
    for metric, key in (("segmental", "edit"), ("ar", "auc"), ("frame-map", "map_present_classes")):
        assert main([*command, "--metric", metric, "--json", str(out)]) == 0
        table = capsys.readouterr().out
        assert "one.json" in table
        assert "two.json" in table
        results = json.loads(out.read_text())["results"]
        assert list(results) == ["one.json", "two.json"]
        assert {result["metric"] for result in results.values()} == {metric}
        assert (results["one.json"][key] == results["two.json"][key]) == (metric != "segmental")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            "--metric segmental --rule dense",
            "--rule is not for --metric segmental; leave it out, or use --metric map",
        ),
        ("--metric segmental --min-score nan", "--min-score nan: give auto, or a finite number"),
        ("--metric ar --rule thumos-kit", "--rule thumos-kit is not for --metric ar; use opentad or activitynet"),
        ("--metric ar --max-proposals 0", "--max-proposals 0: give a number of proposals"),
        ("--metric ar --per-class", "--per-class is not for --metric ar"),
        ("--metric ar --bootstrap 1000", "--bootstrap is not for --metric ar; leave it out, or use --metric map"),
        ("--metric ar --class-agnostic", "--class-agnostic is not for --metric ar"),
        ("--metric frame-map --tiou 0.5", "--tiou is not for --metric frame-map"),
        ("--metric frame-map --ambiguous x.txt", "--ambiguous is not for --metric frame-map"),
        ("--metric frame-map --fps 0", "--fps 0.0: give steps a second"),
        ("--metric frame-map --steps 0", "--steps 0: give a number of steps"),
        ("--metric frame-map --fps 1 --steps 5", "--fps and --steps exclude each other"),
        ("--metric frame-map --rule charades-25 --fps 1", "--fps is not for --rule charades-25"),
        ("--metric frame-map --rule activitynet", "--rule activitynet is not for --metric frame-map; use dense"),
        ("--min-score 0.5", "--min-score is not for --metric map; leave it out, or use --metric segmental"),
        ("--fps 0", "--fps is not for --metric map"),
        ("--max-proposals 100", "--max-proposals is not for --metric map"),
        ("--rule opentad", "--rule opentad is not for --metric map; use activitynet or thumos-kit"),
    ],
)
def test_options_of_other_metrics_are_refused_before_anything_is_read(
    options: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--ground-truth", "none.json", "--detections", "none2.json", "--subset", "test"]
    assert main([*command, *options.split()]) == 1
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_scores_of_frames_are_only_for_frame_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_annotations(truth_of({"v": THREE}), tmp_path / "gt.json")
    np.savez(tmp_path / "scores.npz", v=np.zeros((4, 2)))
    command = ["evaluate", "--ground-truth", str(tmp_path / "gt.json"), "--subset", "test"]
    command += ["--detections", str(tmp_path / "scores.npz")]
    for metric in ("map", "ar", "segmental"):
        assert main([*command, "--metric", metric]) == 1
        assert "scores.npz: per-frame scores are for --metric frame-map" in capsys.readouterr().err
    assert main([*command, "--metric", "frame-map", "--fps", "2"]) == 1
    assert "--fps is for detections" in capsys.readouterr().err
