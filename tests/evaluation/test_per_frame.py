"""Per-frame mAP: the recorded figures of other projects' code, a slow version of the definition, and the command."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from recordings import FIXTURES, NEEDS_FIXTURES

from bitad import frame_map, read_annotations, read_detections
from bitad.cli import main
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.detections import Detections, write_detections
from bitad.data.formats.database import write_annotations
from bitad.evaluation.per_frame import FrameEvaluation

RECORDED = FIXTURES / "per_frame"
THUMOS14 = FIXTURES.parent / "data" / "thumos14"
EQUAL, EQUAL_FLOAT32 = 1e-9, 1e-5
SYNTHETIC = sorted(RECORDED.glob("synthetic_*_expected.json"))

Arrays = dict[str, NDArray[Any]]


def synthetic(expected: Path) -> tuple[dict[str, Any], Annotations, Arrays]:
    name = expected.name.removesuffix("_expected.json")
    with gzip.open(RECORDED / f"{name}.json.gz", "rt") as file:
        content = json.load(file)
    videos = {}
    for video in content["videos"]:
        segments = np.array([one["segment"] for one in video["annotations"]], np.float64).reshape(-1, 2)
        labels = tuple(one["label"] for one in video["annotations"])
        videos[video["video"]] = AnnotatedVideo(video["video"], "test", video["duration"], segments, labels)
    with np.load(RECORDED / f"{name}_scores.npz") as arrays:
        scores = {video: arrays[video] for video in arrays}
    assert {video["video"]: video["frames"] for video in content["videos"]} == {
        k: len(v) for k, v in scores.items()
    }
    return json.loads(expected.read_text()), Annotations(videos, tuple(content["classes"])), scores


def points(scores: Arrays, missing: list[tuple[str, int]]) -> Arrays:
    """The 25 rows of each video as Charades' tool reads them."""
    rows = {name: array[np.arange(25) * len(array) // 25].copy() for name, array in scores.items()}
    for name, point in missing:
        rows[name][point - 1] = -np.inf
    return rows


def assert_ap(result: FrameEvaluation, expected: dict[str, float | None], equal: float) -> None:
    assert expected.keys() == set(result.classes)
    for name, ap in zip(result.classes, result.ap.tolist(), strict=True):
        recorded = expected[name]
        assert (0.0 if np.isnan(ap) else ap) == pytest.approx(recorded or 0.0, abs=equal)


def assert_positives(result: FrameEvaluation, expected: dict[str, int]) -> None:
    assert dict(zip(result.classes, result.positives.tolist(), strict=True)) == expected


@NEEDS_FIXTURES
@pytest.mark.parametrize("path", SYNTHETIC, ids=lambda path: path.name)
def test_the_recorded_figures_of_scores(path: Path) -> None:
    expected, truth, scores = synthetic(path)
    result = frame_map(truth, scores, subset="test")
    dense = expected.pop("dense")
    assert_ap(result, dense.pop("AP"), EQUAL_FLOAT32)
    assert_ap(result, dense.pop("AP_float64_second_code"), EQUAL)
    assert_positives(result, dense.pop("positives"))
    assert result.frames == dense.pop("frames")
    assert result.map_all_classes == pytest.approx(dense.pop("mAP_mean_over_all_classes"), abs=EQUAL_FLOAT32)
    nonzero = dense.pop("mAP_mean_over_classes_with_nonzero_AP")
    assert result.map_nonzero_classes == pytest.approx(nonzero, abs=EQUAL_FLOAT32)

    sampled = expected.pop("sampled_25_approximation")
    result = frame_map(truth, scores, subset="test", rule="sampled-25")
    assert result.videos == sampled.pop("videos_used") == len(scores) - len(result.videos_left_out)
    assert_ap(result, sampled.pop("AP"), EQUAL_FLOAT32)
    assert result.map_all_classes == pytest.approx(sampled.pop("mAP_mean_over_all_classes"), abs=EQUAL_FLOAT32)
    nonzero = sampled.pop("mAP_mean_over_classes_with_nonzero_AP")
    assert result.map_nonzero_classes == pytest.approx(nonzero, abs=EQUAL_FLOAT32)

    charades = expected.pop("charades_25")
    missing = charades.pop("missing")
    given_points = points(scores, missing)
    result = frame_map(truth, given_points, subset="test", rule="charades-25")
    assert_ap(result, charades.pop("AP"), EQUAL)
    assert_positives(result, charades.pop("positives"))
    present = charades.pop("mAP_over_classes_with_positives")
    assert result.map_present_classes == pytest.approx(present, abs=EQUAL)
    assert charades.pop("mAP_as_is") in (None, present)  # MATLAB's NaN where a class never happens
    assert result.weighted_map == pytest.approx(charades.pop("wAP_over_classes_with_positives"), abs=EQUAL)
    if not missing:
        direct = frame_map(truth, scores, subset="test", rule="charades-25")
        assert direct.ap.tolist() == pytest.approx(result.ap.tolist(), abs=0, nan_ok=True)

    ties = expected.pop("ties_scores_rounded_2_decimals_stable")
    rounded = {name: np.round(array.astype(np.float64), 2) for name, array in scores.items()}
    result = frame_map(truth, rounded, subset="test")
    assert_ap(result, ties.pop("dense_AP"), EQUAL)
    assert result.map_present_classes == pytest.approx(
        ties.pop("dense_mAP_over_classes_with_positives"), abs=EQUAL
    )
    last_first = replace(truth, videos=dict(reversed(truth.videos.items())))
    other = frame_map(last_first, rounded, subset="test").map_present_classes
    assert other == pytest.approx(ties.pop("dense_mAP_other_order_videos_reversed"), abs=EQUAL)
    rounded_points = {name: np.round(array.astype(np.float64), 2) for name, array in given_points.items()}
    result = frame_map(truth, rounded_points, subset="test", rule="charades-25")
    present = ties.pop("charades_25_mAP_over_classes_with_positives")
    assert result.map_present_classes == pytest.approx(present, abs=EQUAL)
    for rest in (dense, sampled, charades, ties, expected):
        assert not rest, "a recorded figure that this test does not compare"


@NEEDS_FIXTURES
@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("dense_1_frame_per_second", {"fps": 1.0}),
        ("charades_25", {"rule": "charades-25"}),
    ],
)
def test_the_recorded_figures_of_detections(key: str, options: dict[str, Any]) -> None:
    every = json.loads((RECORDED / "actionformer_expected.json").read_text())
    assert every.keys() == {"dense_1_frame_per_second", "charades_25"}
    expected = every[key]
    truth = read_annotations(THUMOS14 / "thumos14.json.gz")
    found = read_detections(THUMOS14 / "actionformer_detections.json.gz")
    result = frame_map(truth, found, subset="Test", **options)
    assert result.frames == expected.pop("frames")
    assert_positives(result, expected.pop("positives"))
    assert_ap(result, expected.pop("AP_stable"), EQUAL)
    assert result.map_present_classes == pytest.approx(expected.pop("mAP_stable"), abs=EQUAL)
    assert result.map_present_classes == pytest.approx(expected.pop("mAP_stable_reference"), abs=EQUAL)
    # The spread of unstable sorts.
    assert expected.keys() == {"mAP_reversed_ties", "mAP_unstable_second_code", "mAP_APMeter_torch_sort"}


@NEEDS_FIXTURES
def test_the_command_prints_the_recorded_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, found = THUMOS14 / "thumos14.json.gz", THUMOS14 / "actionformer_detections.json.gz"
    command = ["evaluate", "--ground-truth", str(truth), "--detections", str(found), "--subset", "Test"]
    command += ["--metric", "frame-map"]
    out = tmp_path / "figures.json"
    assert main([*command, "--json", str(out), "--per-class"]) == 0
    table = capsys.readouterr().out
    assert "MultiTHUMOS' definition" in table
    assert table.splitlines()[4].split()[1:4] == ["67.78"] * 3
    assert "BaseballPitch         113" in table
    assert json.loads(out.read_text())["map_present_classes"] == pytest.approx(0.677843273309, abs=EQUAL)
    assert main([*command, "--rule", "charades-25"]) == 0
    table = capsys.readouterr().out
    assert "Charades' definition" in table
    assert table.splitlines()[4].split()[1:4] == ["69.31"] * 3


def frame_map_command(folder: Path) -> list[str]:
    return f"evaluate --ground-truth {folder / 'gt.json'} --subset test --metric frame-map".split()


@NEEDS_FIXTURES
def test_the_command_takes_an_npz_of_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, truth, scores = synthetic(RECORDED / "synthetic_b_expected.json")
    write_annotations(truth, tmp_path / "gt.json")
    (tmp_path / "classes.txt").write_text("".join(f"{name}\n" for name in truth.classes))
    (tmp_path / "folder").mkdir()
    for name, array in scores.items():
        np.save(tmp_path / "folder" / f"v_{name}.npy", array)
    command = frame_map_command(tmp_path)
    command += ["--classes", str(tmp_path / "classes.txt")]
    for place in (RECORDED / "synthetic_b_scores.npz", tmp_path / "folder"):
        assert main([*command, "--detections", str(place)]) == 0
        table = capsys.readouterr().out
        assert table.splitlines()[4].split()[1:] == ["69.29", "63.52", "69.29", "68.57"]
        assert "1 class in no frame: NeverHappens." in table
    # Without the list, the annotations have a class less than the columns.
    assert main([*command[:-2], "--detections", str(RECORDED / "synthetic_b_scores.npz")]) == 1
    told = capsys.readouterr().err
    assert "give numbers [T, 11], a column for each class" in told
    assert "its columns are the annotations' 11 classes in order: Billiards, " in told


def slow(
    truth: Annotations, times: dict[str, list[float]], scores: Arrays, *, inclusive: bool
) -> list[float | None]:
    """AP of each class, frame by frame."""
    found = []
    for label, name in enumerate(truth.classes):
        frames = []
        for video, own in times.items():
            annotated = truth.videos[video]
            for row, time in enumerate(own):
                happens = False
                for (start, end), other in zip(annotated.segments, annotated.labels, strict=True):
                    within = start <= time <= end if inclusive else start < time < end
                    happens |= other == name and within
                frames.append((float(scores[video][row][label]), happens))
        frames.sort(key=lambda frame: -frame[0])
        precisions = []
        for rank, (_, happens) in enumerate(frames, start=1):
            if happens:
                precisions.append(sum(one for _, one in frames[:rank]) / rank)
        found.append(sum(precisions) / len(precisions) if precisions else None)
    return found


span = st.tuples(st.integers(0, 10), st.integers(0, 5)).map(lambda pair: (pair[0] / 2, (pair[0] + pair[1]) / 2))
rows_of_spans = st.lists(st.tuples(span, st.integers(0, 1)), max_size=4)


def annotated(rows: list[Any], name: str) -> AnnotatedVideo:
    segments = np.array([span for span, _ in rows], np.float64).reshape(-1, 2)
    return AnnotatedVideo(name, "test", 8.0, segments, tuple("pq"[label] for _, label in rows))


@settings(max_examples=60, deadline=None)
@given(
    truth=st.lists(rows_of_spans, min_size=1, max_size=3),
    found=st.lists(st.tuples(st.integers(0, 3), span, st.integers(0, 1), st.integers(0, 4)), max_size=8),
    rule=st.sampled_from(["dense", "charades-25", "sampled-25"]),
    fps=st.sampled_from([1.0, 2.5, 4.0]),
)
def test_detections_are_sampled_by_the_definition(
    truth: list[Any], found: list[Any], rule: Any, fps: float
) -> None:
    videos = {f"v{i}": annotated(rows, f"v{i}") for i, rows in enumerate(truth)}
    annotations = Annotations(videos, ("p", "q"))
    detections = Detections(
        videos=("v0", "v1", "v2", "other"),
        classes=("q", "p"),
        video=np.array([row[0] for row in found], np.int64),
        segments=np.array([row[1] for row in found], np.float64).reshape(-1, 2),
        scores=np.array([row[3] / 4 for row in found], np.float64),
        labels=np.array([row[2] for row in found], np.int64),
    )
    times, scores = {}, {}
    for name in videos:
        total = round(8 * fps)
        own = [i / (total / 8.0) for i in range(total)]
        if rule == "charades-25":
            own = [j / 25 * 8.0 for j in range(25)]
        elif rule == "sampled-25":
            own = own[1 :: int(total / 25)][:25] if total > 25 else []
        table = np.zeros((len(own), 2))
        for video, start, end, label, score in detections.to_rows():
            for row, time in enumerate(own):
                if video == name and start <= time <= end:
                    column = "pq".index(label)
                    table[row, column] = max(table[row, column], score)
        times[name], scores[name] = own, table
    expected = slow(annotations, times, scores, inclusive=rule == "charades-25")
    options: dict[str, Any] = {"subset": "test", "rule": rule}
    if rule != "charades-25":
        options["fps"] = fps
    if expected == [None, None]:
        with pytest.raises(ValueError, match="no class happens in any of the"):
            frame_map(annotations, detections, **options)
        return
    result = frame_map(annotations, detections, **options)
    assert [None if np.isnan(ap) else ap for ap in result.ap.tolist()] == pytest.approx(expected, abs=1e-12)
    known = [ap or 0.0 for ap in expected]
    assert result.map_all_classes == pytest.approx(sum(known) / 2)
    assert result.map_nonzero_classes == pytest.approx(sum(known) / max(1, sum(ap > 0 for ap in known)))


def world() -> tuple[Annotations, Detections]:
    truth = Annotations({"v0": annotated([((1, 3), 0)], "v0"), "v1": annotated([((2, 5), 1)], "v1")}, ("p", "q"))
    columns = {
        "v0": (np.array([[1.0, 3.0]]), np.array([0.9]), np.array([0])),
        "v1": (np.array([[4.0, 6.0]]), np.array([0.5]), np.array([1])),
    }
    return truth, Detections.from_videos(columns, classes=["p", "q"])


def test_detections_in_reverse_time_are_reversed() -> None:
    truth, found = world()
    found = replace(found, durations_s={"v0": 8.0, "v1": 8.0})
    one = frame_map(truth, found, subset="test", steps=16)
    assert one.ap.tolist() == frame_map(truth, found.reversed(), subset="test", steps=16).ap.tolist()
    assert (one.steps, one.fps) == (16, None)


def test_steps_may_differ_between_videos() -> None:
    truth, found = world()
    result = frame_map(truth, found, subset="test", steps={"v0": 8, "v1": 40})
    assert result.frames == 48
    with pytest.raises(ValueError, match="steps has no number for v1; give one for every video"):
        frame_map(truth, found, subset="test", steps={"v0": 8})


def test_a_frame_without_a_detection_ranks_below_scores_below_zero() -> None:
    truth, found = world()
    below = frame_map(truth, replace(found, scores=found.scores - 5), subset="test", fps=4)
    assert below.ap.tolist() == frame_map(truth, found, subset="test", fps=4).ap.tolist()


def test_a_video_without_rows_ranks_last_on_charades_and_is_refused_elsewhere() -> None:
    truth, _ = world()
    scores = {"v0": np.tile([0.1, 0.9], (25, 1))}
    result = frame_map(truth, scores, subset="test", rule="charades-25")
    assert result.videos_without_scores == ("v1",)
    # q happens at 9 or 10 points of v1 only, whose rows follow the 25 of v0.
    first = next(j for j in range(25) if j / 25 * 8 >= 2)
    ranks = [26 + j for j in range(25) if 2 <= j / 25 * 8 <= 5]
    assert ranks[0] == 26 + first
    expected = np.mean([(i + 1) / rank for i, rank in enumerate(ranks)])
    assert result.ap[1] == pytest.approx(expected)
    with pytest.raises(ValueError, match="no scores of v1; rule dense needs those of every video"):
        frame_map(truth, scores, subset="test")


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros((4, 3)), r"float64 of shape \[4, 3\]; give numbers \[T, 2\]"),
        (np.zeros(4), r"float64 of shape \[4\]; give numbers \[T, 2\]"),
        (np.zeros((0, 2)), r"of shape \[0, 2\]"),
        (np.array([[0.0, np.nan]]), "nan in row 0, column 1; give finite ones"),
        (np.array([[0.0, 1.0], [np.inf, 1.0]]), "inf in row 1, column 0; give finite ones"),
        (np.array([["a", "b"]]), "give numbers"),
    ],
)
def test_scores_that_do_not_fit_are_refused(array: NDArray[Any], told: str) -> None:
    truth, _ = world()
    with pytest.raises(ValueError, match=f"the scores: video v1: .*{told}"):
        frame_map(truth, {"v0": np.zeros((4, 2)), "v1": array}, subset="test")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"fps": 0}, "fps 0: give steps a second"),
        ({"fps": float("nan")}, "fps nan: give steps a second"),
        ({"steps": 0}, "steps of v0 0: give a number of steps"),
        ({"fps": 1, "steps": 3}, "fps and steps exclude each other"),
        ({"fps": 1, "rule": "charades-25"}, "fps is not for rule charades-25"),
        ({"steps": 4, "rule": "charades-25"}, "steps is not for rule charades-25"),
    ],
)
def test_options_that_do_not_apply_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        frame_map(*world(), subset="test", **options)


def test_the_sampling_of_scores_is_their_own() -> None:
    truth, _ = world()
    with pytest.raises(ValueError, match="fps is for detections"):
        frame_map(truth, dict.fromkeys(("v0", "v1"), np.zeros((4, 2))), subset="test", fps=2)


def test_a_ground_truth_without_durations_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, found = world()
    rows = [{"segment": [1, 3], "label": "p"}]
    (tmp_path / "gt.json").write_text(json.dumps({"database": {"v0": {"subset": "test", "annotations": rows}}}))
    write_detections(found, tmp_path / "found.json")
    command = ["evaluate", "--ground-truth", tmp_path / "gt.json", "--detections", tmp_path / "found.json"]
    assert main([*map(str, command), "--subset", "test", "--metric", "frame-map"]) == 1
    assert "the duration of v0 is not stated" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arrays", "classes", "told"),
    [
        (None, None, "no such .npz file or folder of per-frame scores"),
        ({"w": np.zeros((4, 2))}, None, "no scores of v0, v1; its arrays are w; name an array by its video"),
        ({}, None, "no scores of v0, v1; it has no array"),
        ({"v0": np.zeros((4, 2))}, None, "scores.npz: no scores of v1; rule dense needs those of every video"),
        ({"v0": np.zeros((4, 2)), "v1": np.zeros((4, 3))}, None, "scores.npz: video v1: float64 of shape [4, 3]"),
        ({"v0": np.zeros((4, 2)), "v1": np.zeros((4, 2))}, "p\nr\n", "no q, of the annotations' classes"),
    ],
)
def test_a_file_of_scores_that_does_not_fit_is_refused(
    arrays: Arrays | None, classes: str | None, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_annotations(world()[0], tmp_path / "gt.json")
    if arrays is not None:
        np.savez(tmp_path / "scores.npz", **arrays)
    command = frame_map_command(tmp_path)
    command += ["--detections", str(tmp_path / "scores.npz")]
    if classes is not None:
        (tmp_path / "classes.txt").write_text(classes)
        command += ["--classes", str(tmp_path / "classes.txt")]
    assert main(command) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("bitad evaluate: error: ")
    assert told in error
