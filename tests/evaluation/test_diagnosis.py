"""Error diagnosis: planted errors, recorded figures of DETAD, and a slow reference that does it one by one."""

import numpy as np
import pytest

from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.detections import Detections
from bitad.evaluation.diagnosis import KINDS, classify, matched_scores, missed


def truth(videos: dict[str, list[tuple[float, float, str]]], classes=("a", "b", "c")) -> Annotations:
    return Annotations(
        {
            name: AnnotatedVideo(
                name=name,
                subset="test",
                duration_s=100.0,
                segments=np.array([row[:2] for row in rows], np.float64).reshape(-1, 2),
                labels=tuple(row[2] for row in rows),
            )
            for name, rows in videos.items()
        },
        classes,
    )


def found(rows: list[tuple[str, float, float, str, float]]) -> Detections:
    videos = tuple(dict.fromkeys(row[0] for row in rows))
    classes = tuple(sorted({row[3] for row in rows}))
    return Detections(
        videos=videos,
        classes=classes,
        video=np.array([videos.index(row[0]) for row in rows], np.int64),
        segments=np.array([row[1:3] for row in rows], np.float64).reshape(-1, 2),
        scores=np.array([row[4] for row in rows], np.float64),
        labels=np.array([classes.index(row[3]) for row in rows], np.int64),
    )


def named(kinds: np.ndarray) -> list[str]:
    return [KINDS[kind] for kind in kinds]


# Planted errors

TRUTH = truth({"v": [(0, 10, "a"), (20, 30, "b"), (50, 70, "a")], "empty": []})
PLANTED = [
    (("v", 0.0, 10.0, "a", 0.95), "true_positive"),
    (("v", 1.0, 10.0, "a", 0.90), "double_detection"),
    (("v", 20.0, 30.0, "a", 0.85), "wrong_label"),
    (("v", 50.0, 55.0, "a", 0.80), "localization"),
    (("v", 20.0, 24.0, "a", 0.75), "confusion"),
    (("v", 80.0, 90.0, "a", 0.70), "background"),
    (("v", 50.0, 51.0, "a", 0.65), "background"),  # tIoU 0.05
    (("empty", 0.0, 10.0, "a", 0.60), "background"),
    (("unknown", 0.0, 10.0, "a", 0.55), "background"),
    (("v", 20.0, 30.0, "stranger", 0.50), "wrong_label"),
    (("v", 80.0, 90.0, "stranger", 0.45), "background"),
    (("v", 5.0, 5.0, "a", 0.40), "background"),  # without length
]


def test_planted_errors_are_named_exactly():
    kinds = classify(TRUTH, found([row for row, _ in PLANTED]), tiou=[0.5])
    assert named(kinds[:, 0]) == [kind for _, kind in PLANTED]
    assert missed(TRUTH, found([row for row, _ in PLANTED]), tiou=[0.5]).tolist() == [[False], [True], [True]]


def test_kinds_depend_on_the_threshold():
    kinds = classify(TRUTH, found([("v", 0.0, 6.0, "a", 0.9), ("v", 20.0, 26.0, "a", 0.8)]), tiou=[0.5, 0.7])
    assert [named(row) for row in kinds] == [["true_positive", "localization"], ["wrong_label", "confusion"]]


def test_a_tie_counts_as_the_own_label_or_as_the_first_of_the_file():
    tied = truth({"v": [(0, 10, "b"), (0, 10, "a")]})
    rows = found([("v", 0.0, 10.0, "a", 0.9), ("v", 0.0, 10.0, "a", 0.8), ("v", 0.0, 3.0, "a", 0.7)])
    assert named(classify(tied, rows, tiou=[0.5])[:, 0]) == ["true_positive", "double_detection", "localization"]
    of_file = classify(tied, rows, tiou=[0.5], ties="file")
    assert named(of_file[:, 0]) == ["true_positive", "wrong_label", "confusion"]


def test_segments_that_are_left_out_match_nothing_and_are_not_missed():
    defective = truth({"v": [(5, 5, "a"), (0, 101, "a"), (20, 30, "a"), (9, 4, "b")]})
    rows = found([("v", 0.0, 100.0, "a", 0.9), ("v", 4.0, 9.0, "b", 0.8)])
    assert named(classify(defective, rows, tiou=[0.5])[:, 0]) == ["localization", "background"]
    assert missed(defective, rows, tiou=[0.5])[:, 0].tolist() == [False, False, True, False]


def test_detections_may_be_none_and_ground_truth_may_not():
    none = found([])
    assert classify(TRUTH, none, tiou=[0.5, 0.7]).shape == (0, 2)
    assert missed(TRUTH, none, tiou=[0.5, 0.7]).all()
    with pytest.raises(ValueError, match="no segment to evaluate against"):
        classify(truth({"v": []}), none, tiou=[0.5])
    with pytest.raises(ValueError, match="thresholds"):
        classify(TRUTH, none, tiou=[0.0])


def test_a_segment_has_the_score_of_the_detection_that_matches_it():
    short = truth({"v": [(0, 10, "a"), (20, 30, "b"), (40, 40, "b")], "w": [(0, 10, "a")]})
    rows = found([("w", 0.0, 10.0, "a", 0.3), ("v", 0.0, 6.0, "a", 0.9), ("v", 0.0, 10.0, "a", 0.8)])
    scores = matched_scores(short, rows, tiou=[0.5, 0.7])
    np.testing.assert_array_equal(scores, [[0.9, 0.8], [-np.inf, -np.inf], [np.nan, np.nan], [0.3, 0.3]])
