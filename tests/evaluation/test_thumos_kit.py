"""The rule of the THUMOS'14 kit: a slow reference that does it one by one, and how it stands to ActivityNet's."""

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import builders
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitad.cli import main
from bitad.data.annotations import Annotations
from bitad.data.detections import Detections, read_detections, write_detections
from bitad.data.formats.database import read_annotations, write_annotations
from bitad.evaluation.mean_average_precision import evaluate
from bitad.evaluation.thumos_kit import evaluate_by_thumos_kit, read_ambiguous

THUMOS = Path(__file__).parents[2] / "../shared/data/thumos14"
AMBIGUOUS_TEST = THUMOS / "official/annotations_test/Ambiguous_test.txt"
TIOU = (0.3, 0.4, 0.5, 0.6, 0.7)
needs_thumos = pytest.mark.skipif(not THUMOS.exists(), reason=f"the reference folder {THUMOS} is missing")
# Per tIoU, in percent; their mean is 39.17, where it is 66.83 by ActivityNet's rule.
KIT_MAP = (42.56820361, 42.28700561, 41.33054513, 38.10613632, 31.5524785)
CLASSES = ("a", "b", "c", "Ambiguous")


truth, found = (partial(rows, classes=CLASSES) for rows in (builders.truth, builders.found))


def ap(ground_truth: Annotations, detections: Detections, tiou: float = 0.5) -> float:
    return evaluate_by_thumos_kit(ground_truth, detections, tiou=[tiou]).average_map


# The slow reference


def slow_overlap(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Intersection over span, as the kit's ``intervaloverlapvalseconds`` says."""
    (a_start, a_end), (b_start, b_end) = sorted(a), sorted(b)
    width = min(a_end, b_end) - max(a_start, b_start)
    return width / (max(a_end, b_end) - min(a_start, b_start)) if width > 0 else 0.0


def slow_ap(ground_truth: Annotations, detections: Detections, label: str, threshold: float) -> float:
    """One class's AP, video after video and segment after segment, as the text of ``TH14eventdetpr`` goes."""
    judged: list[tuple[float, bool]] = []
    segments_of_class = 0
    for video in sorted({*ground_truth.videos, *detections.videos}):
        rows = []
        if video in ground_truth.videos:
            known = ground_truth.videos[video]
            rows = [(tuple(s), name) for s, name in zip(known.segments.tolist(), known.labels, strict=True)]
        segments = [segment for segment, name in rows if name == label]
        ambiguous = [segment for segment, name in rows if name == "Ambiguous"]
        segments_of_class += len(segments)
        mine = [
            (detections.scores[i], tuple(detections.segments[i]))
            for i in range(len(detections))
            if detections.videos[detections.video[i]] == video
            and detections.classes[detections.labels[i]] == label
        ]
        mine.sort(key=lambda detection: -detection[0])  # stable, as MATLAB's
        free = [True] * len(mine)
        for segment in segments:
            best, chosen = threshold, None
            for j, (_, candidate) in enumerate(mine):
                if free[j] and slow_overlap(segment, candidate) > best:
                    best, chosen = slow_overlap(segment, candidate), j
            if chosen is not None:
                free[chosen] = False
        for (score, candidate), still_free in zip(mine, free, strict=True):
            if not still_free:
                judged.append((score, True))
            elif not any(slow_overlap(interval, candidate) > 0 for interval in ambiguous):
                judged.append((score, False))
    judged.sort(key=lambda judgement: -judgement[0])
    true = 0
    total = 0.0
    for rank, (_, right) in enumerate(judged, start=1):
        if right:
            true += 1
            total += true / rank
    return total / segments_of_class


def random_case(seed: int, segments: int, predictions: int) -> tuple[Annotations, Detections]:
    """Whole seconds and few scores, so that scores and overlaps tie; copies, segments without length or turned round,
    and videos and classes on one side only; videos not in the order of their names."""
    rng = np.random.default_rng(seed)
    ground_truth: dict[str, list[tuple[float, float, str]]] = {name: [] for name in "wuv"}
    for start, length in rng.integers((0, -1), (20, 12), (segments, 2)).tolist():
        label = str(rng.choice(["a", "b", "Ambiguous"], p=[0.45, 0.45, 0.1]))
        ground_truth[str(rng.choice(["u", "v", "w"]))].append((float(start), float(start + length), label))
    ground_truth["w"].append((0.0, 5.0, "a"))
    detections: dict[str, list[tuple[float, float, str, float]]] = {name: [] for name in "xvu"}
    for start, length in rng.integers((0, 0), (20, 12), (predictions, 2)).tolist():
        row = (float(start), float(start + length), str(rng.choice(CLASSES)), float(rng.integers(1, 6)) / 5)
        detections[str(rng.choice(["u", "v", "x"]))].append(row)
    return truth(ground_truth), found(detections)


@given(st.builds(random_case, st.integers(0, 2**32 - 1), st.integers(1, 25), st.integers(0, 60)))
@settings(deadline=None, max_examples=150)
def test_precision_is_that_of_the_slow_reference(case):
    ground_truth, detections = case
    tiou = (0.1, 0.5, 1.0)
    result = evaluate_by_thumos_kit(ground_truth, detections, tiou=tiou)
    expected = [[slow_ap(ground_truth, detections, name, t) for t in tiou] for name in result.classes]
    np.testing.assert_allclose(result.ap, expected, atol=1e-12)


# THUMOS14


@needs_thumos
def test_published_detections_by_the_kit():
    ground_truth = read_annotations(THUMOS / "thumos14.json.gz").subset("Test")
    detections = read_detections(THUMOS / "actionformer_detections.json.gz")
    start = time.process_time()
    result = evaluate_by_thumos_kit(ground_truth, detections, tiou=TIOU, ambiguous=read_ambiguous(AMBIGUOUS_TEST))
    assert time.process_time() - start < 3
    # What the kit's own TH14eventdetpr gave for these files in Octave 7.3, for every class to 12 digits.
    np.testing.assert_allclose(100 * result.map_per_tiou, KIT_MAP, atol=1e-6)
    assert (result.videos, result.segments.sum(), result.segments_dropped) == (212, 3358, 0)
    # Of the file's 99, the three of a video that neither the ground truth nor the detections have.
    assert result.ambiguous == 96
    without = evaluate_by_thumos_kit(ground_truth, detections, tiou=TIOU)
    assert (without.map_per_tiou < result.map_per_tiou).all()
    assert without.ambiguous == 0


@needs_thumos
def test_the_official_text_file_gives_its_intervals():
    intervals = read_ambiguous(AMBIGUOUS_TEST)
    assert sum(map(len, intervals.values())) == 99
    assert intervals["video_test_0000278"].tolist() == [[0.0, 1.4], [95.7, 97.2]]


# Where the rules differ, and where not


def test_of_many_detections_of_an_action_the_kit_takes_the_one_that_fits_best():
    ground_truth = truth({"u": [(0, 10, "a")]})
    dense = found({"u": [(0, 8, "a", 0.9), (0, 9, "a", 0.8), (0, 10, "a", 0.1)]})
    assert evaluate(ground_truth, dense, tiou=[0.5]).average_map == 1
    assert ap(ground_truth, dense) == pytest.approx(1 / 3)


def test_segments_take_turns_in_the_order_of_the_file():
    # The first takes what would have fitted the second better, which is left with nothing.
    rows = [(0, 10, "a"), (4, 14, "a")]
    detections = found({"u": [(3, 12, "a", 0.9)]})
    one_way = evaluate_by_thumos_kit(truth({"u": rows}), detections, tiou=[0.5]).average_map
    assert one_way == 0.5
    both = found({"u": [(2, 12, "a", 0.9), (0, 6, "a", 0.8)]})
    assert ap(truth({"u": rows}), both) == 0.5
    assert ap(truth({"u": rows[::-1]}), both) == 1


def test_an_overlap_of_just_the_threshold_is_none():
    ground_truth, half = truth({"u": [(0, 10, "a")]}), found({"u": [(0, 5, "a", 0.9)]})
    assert ap(ground_truth, half, tiou=0.5) == 0
    assert ap(ground_truth, half, tiou=0.49) == 1
    assert evaluate(ground_truth, half, tiou=[0.5]).average_map == 1


def test_precision_is_not_interpolated():
    ground_truth = truth({"u": [(0, 10, "a"), (20, 30, "a"), (40, 50, "a")]})
    detections = found({"u": [(60, 70, "a", 0.9), (0, 10, "a", 0.8), (20, 30, "a", 0.7), (40, 50, "a", 0.6)]})
    assert ap(ground_truth, detections) == pytest.approx((1 / 2 + 2 / 3 + 3 / 4) / 3)
    assert evaluate(ground_truth, detections, tiou=[0.5]).average_map == pytest.approx(3 / 4)


@given(st.permutations(range(12)), st.integers(0, 12))
@settings(deadline=None, max_examples=30)
def test_both_rules_agree_where_each_action_has_one_detection_and_the_right_ones_come_first(order, right):
    ground_truth = truth({"u": [(10 * i, 10 * i + 8, "a") for i in range(12)]})
    hits = [(10 * i, 10 * i + 7, "a", 1 - rank / 100) for rank, i in enumerate(order[:right])]
    misses = [(10 * i + 8, 10 * i + 10, "a", 0.5) for i in range(4)]
    detections = found({"u": hits + misses, "v": misses})
    by_kit = evaluate_by_thumos_kit(ground_truth, detections, tiou=TIOU)
    np.testing.assert_allclose(by_kit.ap, evaluate(ground_truth, detections, tiou=TIOU).ap)
    assert by_kit.average_map == pytest.approx(right / 12)


# Ambiguous


def test_a_detection_that_touches_an_ambiguous_interval_counts_only_if_a_segment_takes_it():
    rows = [(0, 10, "a"), (20, 30, "a")]
    detections = found({"u": [(39, 50, "a", 0.9), (0, 10, "a", 0.8), (20, 30, "a", 0.7)]})
    assert ap(truth({"u": rows}), detections) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert ap(truth({"u": [*rows, (30, 40, "Ambiguous")]}), detections) == 1
    assert ap(truth({"u": [*rows, (5, 40, "Ambiguous")]}), detections) == 1
    assert ap(truth({"u": [*rows, (30, 39, "Ambiguous")]}), detections) < 1  # ends where the detection starts
    assert ap(truth({"u": rows, "v": [(30, 40, "Ambiguous")]}), detections) < 1  # another video


def test_ambiguous_is_no_class_for_the_kit_and_one_for_activitynet():
    ground_truth = truth({"u": [(0, 10, "a"), (30, 40, "Ambiguous")]})
    detections = found({"u": [(0, 10, "a", 0.9), (30, 40, "Ambiguous", 0.8)]})
    by_kit = evaluate_by_thumos_kit(ground_truth, detections, tiou=[0.5])
    by_activitynet = evaluate(ground_truth, detections, tiou=[0.5])
    assert by_kit.classes == ("a",)
    assert by_kit.predictions_by_unknown_class == {"Ambiguous": 1}
    assert by_activitynet.classes == ("a", "Ambiguous")
    assert by_kit.ambiguous == by_activitynet.ambiguous == 1


def test_intervals_of_another_file_are_as_good_as_the_ground_truths_own():
    ground_truth, detections = random_case(7, 25, 60)
    expected = evaluate_by_thumos_kit(ground_truth, detections, tiou=TIOU)
    own = {
        name: video.segments[[label == "Ambiguous" for label in video.labels]]
        for name, video in ground_truth.videos.items()
    }
    assert expected.ambiguous == sum(map(len, own.values())) > 0
    without = truth(
        {
            name: [
                (*segment, label)
                for segment, label in zip(video.segments.tolist(), video.labels, strict=True)
                if label != "Ambiguous"
            ]
            for name, video in ground_truth.videos.items()
        }
    )
    assert not np.array_equal(evaluate_by_thumos_kit(without, detections, tiou=TIOU).ap, expected.ap)
    for base in (without, ground_truth):  # given twice is not counted twice
        again = evaluate_by_thumos_kit(base, detections, tiou=TIOU, ambiguous=own)
        np.testing.assert_array_equal(again.ap, expected.ap)
        assert again.ambiguous == expected.ambiguous


# What the ground truth does not have


def test_every_segment_counts_also_copies_and_those_without_length():
    rows = [(0, 10, "a"), (0, 10, "a"), (20, 20, "a")]
    result = evaluate_by_thumos_kit(
        truth({"u": rows}), found({"u": [(0, 10, "a", 0.9), (0, 9, "a", 0.8)]}), tiou=[0.5]
    )
    assert result.segments.tolist() == [3]
    assert result.segments_dropped == 0
    assert result.average_map == pytest.approx(2 / 3)


def test_detections_in_other_videos_are_wrong():
    ground_truth = truth({"u": [(0, 10, "a")], "v": [(0, 10, "b")]})
    right = (0, 10, "a", 0.5)
    assert ap(ground_truth, found({"u": [right]})) == 0.5  # the mean of a's 1 and b's 0
    assert ap(ground_truth, found({"u": [right], "v": [(0, 10, "a", 0.9)]})) == 0.25
    assert ap(ground_truth, found({"u": [right], "x": [(0, 10, "a", 0.9)]})) == 0.25


def test_equal_scores_go_by_the_name_of_the_video_and_then_as_they_come():
    ground_truth = truth({"b": [(0, 10, "a")]})
    right, wrong = (0, 10, "a", 0.5), (50, 60, "a", 0.5)
    assert ap(ground_truth, found({"b": [right], "a": [wrong]})) == 0.5
    assert ap(ground_truth, found({"b": [right], "c": [wrong]})) == 1
    assert ap(ground_truth, found({"b": [right, wrong]})) == 1
    assert ap(ground_truth, found({"b": [wrong, right]})) == 0.5


def test_detections_on_the_reverse_clock_are_brought_to_the_forward_one():
    ground_truth, detections = random_case(3, 20, 50)
    reverse = replace(detections, durations_s=dict.fromkeys(detections.videos, 100.0)).reversed()
    np.testing.assert_array_equal(
        evaluate_by_thumos_kit(ground_truth, reverse, tiou=TIOU).ap,
        evaluate_by_thumos_kit(ground_truth, detections, tiou=TIOU).ap,
    )


def test_refusals():
    ground_truth, nothing = truth({"u": [(0, 10, "a")]}), found({})
    with pytest.raises(ValueError, match="no segment to evaluate against"):
        evaluate_by_thumos_kit(truth({"u": [(0, 10, "Ambiguous")]}), nothing, tiou=TIOU)
    with pytest.raises(ValueError, match="tIoU thresholds"):
        evaluate_by_thumos_kit(ground_truth, nothing, tiou=[0.0])
    with pytest.raises(
        ValueError, match="the ambiguous intervals are of y, but the ground truth has no such video"
    ):
        evaluate_by_thumos_kit(ground_truth, nothing, tiou=TIOU, ambiguous={"y": np.array([[0.0, 1.0]])})


# Files and the command line


def test_annotation_files_give_their_ambiguous_intervals(tmp_path):
    write_annotations(
        truth({"u": [(0, 10, "a"), (30, 40, "Ambiguous")], "v": [(1, 2, "a")]}), tmp_path / "gt.json.gz"
    )
    (intervals,) = read_ambiguous(tmp_path / "gt.json.gz").items()
    assert intervals[0] == "u"
    assert intervals[1].tolist() == [[30, 40]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("u 1.0 2.0\n\nu 3.0\n", "Ambiguous_test.txt:3: 'u 3.0' is not 'video start end'"),
        ("u one 2.0\n", "Ambiguous_test.txt:1: 'one' is not a number of seconds"),
        ("\n", "no Ambiguous interval in this file"),
    ],
)
def test_text_files_that_hold_no_intervals_are_refused(tmp_path, text, says):
    path = tmp_path / "Ambiguous_test.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
        read_ambiguous(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_ambiguous(tmp_path / "Ambiguous_val.txt")


def test_the_command_line_evaluates_by_the_kit(tmp_path, capsys):
    write_annotations(truth({"u": [(0, 10, "a"), (20, 30, "b")]}), tmp_path / "gt.json")
    rows = [(0, 10, "a", 0.5), (41, 50, "a", 0.9), (20, 30, "b", 0.7)]
    write_detections(found({"u": rows}), tmp_path / "found.json")
    (tmp_path / "Ambiguous_test.txt").write_text("u  40.0 45.0\n")
    files = ["--ground-truth", str(tmp_path / "gt.json"), "--detections", str(tmp_path / "found.json")]
    ambiguous = ["--ambiguous", str(tmp_path / "Ambiguous_test.txt")]
    command = ["evaluate", *files, "--subset", "test", "--json", str(tmp_path / "map.json")]

    assert main([*command, "--rule", "thumos-kit", *ambiguous]) == 0
    printed = capsys.readouterr().out
    assert "mAP (%) by the THUMOS'14 kit's rule" in printed
    assert "1 Ambiguous interval: " in printed
    content = json.loads((tmp_path / "map.json").read_text())
    assert content["rule"] == "thumos-kit"
    assert content["average_map"] == 1
    assert content["ambiguous"] == {"intervals": 1, "are": "left out"}

    assert main([*command, "--rule", "thumos-kit"]) == 0
    assert "Without Ambiguous intervals" in capsys.readouterr().out
    assert json.loads((tmp_path / "map.json").read_text())["average_map"] == 0.75

    assert main(command) == 0
    assert "mAP (%) by ActivityNet's rule" in capsys.readouterr().out
    assert json.loads((tmp_path / "map.json").read_text())["rule"] == "activitynet"

    assert main([*command, *ambiguous]) == 1
    assert "use rule thumos-kit" in capsys.readouterr().err
