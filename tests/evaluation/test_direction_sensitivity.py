"""Each action gets the name of the best detection that covers it, in either playing direction."""

from __future__ import annotations

import numpy as np
import pytest

from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.detections import Detections
from bitad.evaluation.direction_sensitivity import NOTHING, Calls, called_classes, renamed

CLASSES = ("close", "jump", "open")
DURATION_S = 20.0


def truth(**videos: list[tuple[float, float, str]]) -> Annotations:
    return Annotations(
        {
            name: AnnotatedVideo(
                name,
                "test",
                DURATION_S,
                np.array([row[:2] for row in rows], np.float64).reshape(-1, 2),
                tuple(row[2] for row in rows),
            )
            for name, rows in videos.items()
        },
        CLASSES,
    )


def found(classes: tuple[str, ...] = CLASSES, **videos: list[tuple[float, float, str, float]]) -> Detections:
    return Detections.from_videos(
        {
            name: (
                np.array([row[:2] for row in rows], np.float64).reshape(-1, 2),
                np.array([row[3] for row in rows], np.float64),
                np.array([classes.index(row[2]) for row in rows], np.int64),
            )
            for name, rows in videos.items()
        },
        classes=classes,
        durations_s=dict.fromkeys(videos, DURATION_S),
    )


ACTIONS = truth(
    a=[(1.0, 3.0, "open"), (5.0, 7.0, "close"), (10.0, 12.0, "jump")],
    b=[(2.0, 4.0, "open"), (6.0, 8.0, "open")],
    c=[(3.0, 5.0, "jump")],
)
DETECTIONS = found(
    a=[
        (1.0, 3.0, "open", 0.4),
        (1.2, 3.2, "close", 0.9),  # better scored, and tIoU 1.8 / 2.2
        (0.0, 5.0, "jump", 1.0),  # best scored, but tIoU 2 / 5
        (5.0, 7.0, "open", 0.3),
        (11.5, 13.0, "jump", 0.9),  # tIoU 0.5 / 3
    ],
    b=[(2.0, 4.0, "close", 0.2), (6.0, 7.0, "jump", 0.2)],  # tIoU exactly 1 / 2
)


def test_an_action_is_called_what_the_best_scored_detection_over_it_says() -> None:
    calls = called_classes(ACTIONS, DETECTIONS)
    assert calls.classes == CLASSES
    #                            close jump open nothing
    np.testing.assert_array_equal(calls.counts, [[0, 0, 1, 0], [0, 0, 0, 2], [2, 1, 0, 0]])


def test_every_action_is_called_exactly_one_thing() -> None:
    counts = called_classes(ACTIONS, DETECTIONS).counts
    labels = [label for video in ACTIONS.videos.values() for label in video.labels]
    np.testing.assert_array_equal(counts.sum(axis=1), [labels.count(label) for label in CLASSES])


def test_a_lower_threshold_lets_worse_overlaps_name_an_action() -> None:
    counts = called_classes(ACTIONS, DETECTIONS, tiou=0.1).counts
    assert counts[CLASSES.index("open"), CLASSES.index("jump")] == 2
    assert counts[CLASSES.index("jump"), CLASSES.index("jump")] == 1


def test_the_most_frequent_name_comes_with_its_share() -> None:
    calls = called_classes(ACTIONS, DETECTIONS)
    assert calls.most_frequent("open") == ("close", pytest.approx(2 / 3))
    assert calls.most_frequent("close") == ("open", 1.0)
    assert calls.most_frequent("jump") == (NOTHING, 1.0)
    assert calls.share("open", "close") == pytest.approx(2 / 3)
    assert calls.share("open", "open") == 0
    assert calls.share("jump", NOTHING) == 1


def test_a_class_without_actions_has_no_name_and_no_share() -> None:
    calls = called_classes(truth(a=[(1, 3, "open")]), DETECTIONS)
    with pytest.raises(ValueError, match="class jump has no ground truth"):
        calls.most_frequent("jump")
    assert calls.share("jump", "open") == 0


def test_detections_on_the_reverse_clock_name_the_same_actions() -> None:
    forward, reverse = called_classes(ACTIONS, DETECTIONS), called_classes(ACTIONS, DETECTIONS.reversed())
    np.testing.assert_array_equal(forward.counts, reverse.counts)


def test_the_order_of_the_detectors_classes_does_not_matter() -> None:
    other = DETECTIONS.with_classes(CLASSES[::-1])
    np.testing.assert_array_equal(called_classes(ACTIONS, other).counts, called_classes(ACTIONS, DETECTIONS).counts)


def test_other_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="class lists differ"):
        called_classes(ACTIONS, found(("close", "fly", "open"), a=[(1, 3, "fly", 0.5)]))


def test_renaming_leaves_out_what_has_no_name_and_twice_gives_the_rest_back() -> None:
    names = {"open": "close", "close": "open", "jump": None}
    once = renamed(ACTIONS, names)
    assert once.classes == CLASSES
    assert once.videos["a"].labels == ("close", "open")
    np.testing.assert_array_equal(once.videos["a"].segments, [[1, 3], [5, 7]])
    assert once.videos["c"].labels == ()
    assert once.videos["c"].segments.shape == (0, 2)
    twice = renamed(once, names)
    for name, video in twice.videos.items():
        kept = [i for i, label in enumerate(ACTIONS.videos[name].labels) if label != "jump"]
        np.testing.assert_array_equal(video.segments, ACTIONS.videos[name].segments[kept])
        assert video.labels == tuple(ACTIONS.videos[name].labels[i] for i in kept)


def test_calls_are_compared_as_tables() -> None:
    table = Calls(("x", "y"), np.array([[3, 1, 0], [0, 0, 0]]))
    assert table.most_frequent("x") == ("x", 0.75)
