"""Average mAP: recorded cases, the published THUMOS14 figures, and a slow reference that does it one by one."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import found, truth
from hypothesis import given, settings
from hypothesis import strategies as st

from bitad.data.annotations import Annotations
from bitad.data.detections import Detections, read_detections
from bitad.data.formats.database import read_annotations
from bitad.evaluation.mean_average_precision import evaluate, precision_recall

SHARED = Path(__file__).parents[2] / "../shared"
TIOU = (0.3, 0.4, 0.5, 0.6, 0.7)
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason=f"the reference folder {SHARED} is missing")


# Recorded cases


def case_names() -> list[str]:
    return sorted(path.name.removesuffix("_expected.json") for path in SHARED.glob("fixtures/map/*_expected.json"))


@needs_shared
@pytest.mark.parametrize("name", case_names())
def test_recorded_cases_give_the_recorded_precision(name):
    folder = SHARED / "fixtures/map"
    expected = json.loads((folder / f"{name}_expected.json").read_text())
    # The recorded evaluator counts THUMOS14's Ambiguous as a class.
    ground_truth = read_annotations(folder / f"{name}_gt.json", ignore=()).subset(expected["subset"])
    (predictions,) = folder.glob(f"{name}_pred.json*")
    result = evaluate(ground_truth, read_detections(predictions), tiou=expected["tiou_thresholds"])

    assert result.segments.sum() == expected["n_gt"]
    # Equal scores in the order of the file; the recorded evaluator leaves their order open.
    np.testing.assert_allclose(result.map_per_tiou, expected["twin_stable_descending"]["mAP"], atol=1e-12)
    assert result.average_map == pytest.approx(expected["twin_stable_descending"]["average"], abs=1e-12)
    if not expected["predictions_that_tie_with_another_in_class"]:
        columns = [expected["activity_index"][name] for name in result.classes]
        assert sorted(columns) == list(range(len(expected["activity_index"])))
        np.testing.assert_allclose(result.ap, np.array(expected["ap"]).T[columns], atol=1e-12)


@needs_shared
def test_published_detections_give_the_published_figures():
    ground_truth = read_annotations(SHARED / "data/thumos14/thumos14.json.gz").subset("Test")
    detections = read_detections(SHARED / "data/thumos14/actionformer_detections.json.gz")
    result = evaluate(ground_truth, detections, tiou=TIOU)
    np.testing.assert_allclose(100 * result.map_per_tiou, [82.13, 77.80, 70.95, 59.40, 43.88], atol=0.01)
    assert 100 * result.average_map == pytest.approx(66.83, abs=0.01)
    assert (result.videos, result.segments.sum(), result.predictions) == (212, 3358, 42_400)
    assert result.subsets == ("Test",)


@needs_shared
def test_a_test_set_is_evaluated_in_a_fifth_of_the_reference_evaluators_cpu_time():
    resource = pytest.importorskip("resource", reason="this system does not count a process's CPU time")
    thumos = SHARED / "data/thumos14"
    code = (
        "from bitad.data.formats.database import read_annotations\n"
        "from bitad.data.detections import read_detections\n"
        "from bitad.evaluation.mean_average_precision import evaluate\n"
        f"truth = read_annotations({str(thumos / 'thumos14.json.gz')!r}).subset('Test')\n"
        f"found = read_detections({str(thumos / 'actionformer_detections.json.gz')!r})\n"
        f"evaluate(truth, found, tiou={TIOU})\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    # OpenTAD: 14.6 s of CPU for a file of this size.
    assert cpu_s < 14.6 / 5


def test_evaluation_and_merging_do_not_import_torch():
    code = (
        "import sys, bitad.evaluation.mean_average_precision, bitad.evaluation.thumos_kit, bitad.inference.merge\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# The slow reference


def slow_ap(ground_truth: Annotations, detections: Detections, label: str, tiou: float) -> float:
    """One class's interpolated AP, detection by detection, as the rule's text says."""
    videos = ground_truth.videos.values()
    segments = {
        video.name: [
            tuple(s) for s, name in zip(video.segments.tolist(), video.labels, strict=True) if name == label
        ]
        for video in videos
    }
    total = sum(map(len, segments.values()))
    ranked = sorted(
        (i for i in range(len(detections)) if detections.classes[detections.labels[i]] == label),
        key=lambda i: -detections.scores[i],
    )
    taken: set[tuple[str, int]] = set()
    hits = []
    for i in ranked:
        name, (start, end) = detections.videos[detections.video[i]], detections.segments[i]
        best, chosen = tiou, None
        for j, (first, last) in enumerate(segments.get(name, [])):
            overlap = max(min(end, last) - max(start, first), 0.0)
            value = overlap / max((end - start) + (last - first) - overlap, 1e-8)
            if (name, j) not in taken and value >= best:
                best, chosen = value, j
        hits.append(chosen is not None)
        if chosen is not None:
            taken.add((name, chosen))
    precision = [sum(hits[: k + 1]) / (k + 1) for k in range(len(hits))]
    return sum(max(precision[k:]) for k in range(len(hits)) if hits[k]) / total


def random_case(seed: int, segments: int, predictions: int) -> tuple[Annotations, Detections]:
    """Whole seconds and few scores, so that scores and tIoUs tie; some videos and classes on one side only."""
    rng = np.random.default_rng(seed)
    ground_truth: dict[str, list[tuple[float, float, str]]] = {name: [] for name in "uvw"}
    for start, length in rng.integers((0, 1), (20, 12), (segments, 2)).tolist():
        row = (float(start), float(start + length), str(rng.choice(["a", "b"])))
        video = ground_truth[str(rng.choice(["u", "v", "w"]))]
        if row not in video:
            video.append(row)
    detections: dict[str, list[tuple[float, float, str, float]]] = {name: [] for name in "uvx"}
    for start, length in rng.integers((0, 0), (20, 12), (predictions, 2)).tolist():
        score = float(rng.integers(1, 6)) / 5
        row_ = (float(start), float(start + length), str(rng.choice(["a", "b", "c"])), score)
        detections[str(rng.choice(["u", "v", "x"]))].append(row_)
    return truth(ground_truth), found(detections)


cases = st.builds(random_case, st.integers(0, 2**32 - 1), st.integers(1, 25), st.integers(0, 60))


@given(cases)
@settings(deadline=None, max_examples=150)
def test_precision_is_that_of_the_slow_reference(case):
    ground_truth, detections = case
    tiou = (0.1, 0.5, 1.0)
    result = evaluate(ground_truth, detections, tiou=tiou)
    expected = [[slow_ap(ground_truth, detections, name, t) for t in tiou] for name in result.classes]
    np.testing.assert_allclose(result.ap, expected, atol=1e-12)


@given(cases, st.sampled_from([0.3, 0.7]))
@settings(deadline=None, max_examples=50)
def test_precision_recall_curves_enclose_the_average_precision(case, tiou):
    ground_truth, detections = case
    result = evaluate(ground_truth, detections, tiou=[tiou])
    curves = precision_recall(ground_truth, detections, tiou=tiou)
    assert tuple(curves) == result.classes
    for curve, ap in zip(curves.values(), result.ap[:, 0], strict=True):
        assert curve.ap == pytest.approx(ap)
        steps = np.diff(curve.recall, prepend=0.0)
        assert (steps * curve.interpolated).sum() == pytest.approx(ap)
        assert (steps >= 0).all()
        assert (np.diff(curve.scores) <= 0).all()
        assert (np.diff(curve.interpolated) <= 0).all()
        assert (curve.interpolated >= curve.precision).all()
        assert not len(curve.recall) or curve.recall[-1] <= 1


# Laws


def test_the_ground_truth_as_detections_is_perfect():
    ground_truth, _ = random_case(0, 25, 0)
    rows = {
        video.name: [(*s, n, 0.5) for s, n in zip(video.segments.tolist(), video.labels, strict=True)]
        for video in ground_truth.videos.values()
    }
    assert (evaluate(ground_truth, found(rows), tiou=TIOU).ap == 1).all()


def test_no_detections_give_zero_and_name_the_videos():
    result = evaluate(truth({"u": [(0, 1, "a")], "v": [(0, 1, "b")]}), found({"u": []}), tiou=TIOU)
    assert result.average_map == 0
    assert result.predictions == 0
    assert result.videos_without_prediction == ("u", "v")


def test_each_segment_is_found_once():
    ground_truth = truth({"u": [(0, 10, "a"), (20, 30, "a")]})
    twice = found({"u": [(0, 10, "a", 0.9), (0, 10, "a", 0.8), (20, 30, "a", 0.7)]})
    # Recall 1/2 at precision 1, then recall 1 at precision 2/3.
    assert evaluate(ground_truth, twice, tiou=[0.5]).ap[0, 0] == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_equal_scores_keep_the_order_of_the_file():
    ground_truth = truth({"u": [(0, 10, "a")]})
    right_first = found({"u": [(0, 10, "a", 0.5), (50, 60, "a", 0.5)]})
    wrong_first = found({"u": [(50, 60, "a", 0.5), (0, 10, "a", 0.5)]})
    assert evaluate(ground_truth, right_first, tiou=[0.5]).average_map == 1
    assert evaluate(ground_truth, wrong_first, tiou=[0.5]).average_map == 0.5


def test_segments_without_length_or_annotated_twice_are_dropped_and_counted():
    rows = [(0, 10, "a"), (0, 10, "a"), (0.0009, 9.9995, "a"), (4, 4, "a"), (0, 10.002, "a"), (0, 10, "b")]
    result = evaluate(truth({"u": rows, "v": [(0, 10, "a")]}), found({"u": []}), tiou=TIOU)
    assert result.segments.tolist() == [3, 1]
    assert result.segments_dropped == 3


def test_a_copy_of_a_dropped_copy_stays():
    # Each is within a millisecond of the one before, the third not of the first.
    rows = [(0, 10, "a"), (0.0008, 10, "a"), (0.0016, 10, "a")]
    assert evaluate(truth({"u": rows}), found({"u": []}), tiou=TIOU).segments.tolist() == [2]


def test_classes_without_ground_truth_are_left_out_and_named():
    ground_truth = truth({"u": [(0, 10, "a"), (3, 3, "b")]})
    detections = found({"u": [(0, 10, "a", 0.5), (0, 10, "c", 0.9), (3, 4, "b", 0.9), (5, 6, "c", 0.1)]})
    result = evaluate(ground_truth, detections, tiou=TIOU)
    assert result.classes == ("a",)
    assert result.average_map == 1
    assert result.classes_without_ground_truth == ("b", "c")
    assert result.predictions_by_unknown_class == {"b": 1, "c": 2}
    assert result.predictions == 1


def test_detections_in_unknown_videos_count_as_wrong_and_are_named():
    ground_truth = truth({"u": [(0, 10, "a")]})
    detections = found({"u": [(0, 10, "a", 0.5)], "x": [(0, 10, "a", 0.9), (0, 10, "c", 0.9)]})
    result = evaluate(ground_truth, detections, tiou=TIOU)
    assert result.average_map == 0.5
    assert result.predictions_by_unknown_video == {"x": 2}


def test_class_numbers_of_the_two_sides_need_not_agree():
    ground_truth = truth({"u": [(0, 10, "a"), (20, 30, "b")]})
    detections = found({"u": [(20, 30, "b", 0.5), (0, 10, "a", 0.5)]}, classes=("z", "b", "a"))
    assert evaluate(ground_truth, detections, tiou=TIOU).average_map == 1


def test_detections_on_the_reverse_clock_are_brought_to_the_forward_one():
    ground_truth, detections = random_case(3, 20, 50)
    reverse = replace(detections, durations_s=dict.fromkeys(detections.videos, 100.0)).reversed()
    assert reverse.basis == "reverse"
    np.testing.assert_array_equal(
        evaluate(ground_truth, reverse, tiou=TIOU).ap, evaluate(ground_truth, detections, tiou=TIOU).ap
    )
    with pytest.raises(ValueError, match="duration"):
        evaluate(ground_truth, replace(reverse, durations_s={}), tiou=TIOU)


def test_everything_goes_into_the_json():
    ground_truth, detections = random_case(5, 20, 50)
    result = evaluate(ground_truth, detections, tiou=TIOU)
    content = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert content["average_map"] == result.average_map
    assert content["map"] == result.map_per_tiou.tolist()
    assert content["ap"] == dict(zip(result.classes, result.ap.tolist(), strict=True))
    assert content["predictions_by_unknown_video"] == result.predictions_by_unknown_video


# Refusals


@pytest.mark.parametrize("rows", [{}, {"u": []}, {"u": [(3, 3, "a")]}])
def test_without_ground_truth_there_is_no_map(rows):
    with pytest.raises(ValueError, match="no segment to evaluate against"):
        evaluate(truth(rows), found({"u": [(0, 10, "a", 0.5)]}), tiou=TIOU)


@pytest.mark.parametrize("tiou", [[], [0.0], [0.5, 1.1], [float("nan")]])
def test_thresholds_outside_their_range_are_refused(tiou):
    with pytest.raises(ValueError, match="tIoU thresholds"):
        evaluate(truth({"u": [(0, 1, "a")]}), found({}), tiou=tiou)


def test_a_label_outside_the_class_list_is_refused():
    with pytest.raises(ValueError, match="ground truth of b"):
        evaluate(truth({"u": [(0, 1, "b")]}, classes=("a",)), found({}), tiou=TIOU)
