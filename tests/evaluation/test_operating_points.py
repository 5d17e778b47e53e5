"""Scores from which detections are shown: against a slow reference, and whether they hold for other videos."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.detections import DEFAULT_SCORE, Detections, read_detections
from bitad.data.formats.database import read_annotations
from bitad.evaluation.mean_average_precision import precision_recall
from bitad.evaluation.operating_points import SCORES, TIOU, OperatingPoints, shown_scores

CLASSES = ("a", "b", "c")
PLAYROOM = Path(__file__).parent  # detections of F in playroom's validation videos, with a score of at least 0.05

Row = tuple[int, float]  # the second at which a segment starts, and a score


def truth_of(starts: dict[str, list[int]]) -> Annotations:
    """One video with segments of a second, by class; copies of one are among the starts."""
    rows = [(start, name) for name, of_class in starts.items() for start in of_class]
    segments = np.array([[start, start + 1] for start, _ in rows], np.float64).reshape(-1, 2)
    video = AnnotatedVideo("v", "test", 100.0, segments, tuple(name for _, name in rows))
    return Annotations({"v": video}, (*CLASSES, "Ambiguous"))


def found_of(rows: dict[str, list[Row]]) -> Detections:
    columns = [(start, score, CLASSES.index(name)) for name, of_class in rows.items() for start, score in of_class]
    segments = np.array([[start, start + 1] for start, _, _ in columns], np.float64).reshape(-1, 2)
    scores = np.array([score for _, score, _ in columns], np.float64)
    labels = np.array([label for _, _, label in columns], np.int64)
    return Detections.from_videos({"v": (segments, scores, labels)}, classes=CLASSES)


def slow_points(starts: dict[str, list[int]], rows: dict[str, list[Row]]) -> dict[str, list[tuple[float, float]]]:
    """Recall, and detections over segments, by class and score: counted, then smoothed number by number."""
    segments = {name: set(of_class) for name, of_class in starts.items() if of_class and name in CLASSES}
    raw = {}
    for name, true in segments.items():
        raw[name] = []
        for least in SCORES:
            shown = [start for start, score in rows.get(name, []) if score >= least]
            raw[name].append((len(true & set(shown)) / len(true), len(shown) / len(true)))
    step = math.log(1000) / (len(SCORES) - 1)
    reach = round(0.4 / step)
    weights = [math.exp(-0.5 * (k * step / 0.1) ** 2) for k in range(-reach, reach + 1)]
    last = len(SCORES) - 1
    smooth = {
        name: [
            tuple(
                sum(w * values[min(max(i + k - reach, 0), last)][which] for k, w in enumerate(weights))
                / sum(weights)
                for which in (0, 1)
            )
            for i in range(len(SCORES))
        ]
        for name, values in raw.items()
    }
    points = {}
    for name, values in smooth.items():
        count = len(segments[name])
        points[name] = []
        for i, own in enumerate(values):
            mean = [sum(other[i][which] for other in smooth.values()) / len(smooth) for which in (0, 1)]
            recall, detections = ((count * own[which] + 15 * mean[which]) / (count + 15) for which in (0, 1))
            if all(values[i][0] == 0 for values in raw.values()):
                recall = 0.0
            points[name].append((recall, detections))
    return points


starts = st.dictionaries(
    st.sampled_from([*CLASSES, "Ambiguous"]), st.lists(st.integers(0, 12), max_size=8), min_size=1
).filter(lambda drawn: any(drawn.values()))
rows = st.dictionaries(
    st.sampled_from(CLASSES),
    st.lists(
        st.tuples(st.integers(0, 12), st.sampled_from([0.0, 0.0005, *SCORES[::20].tolist(), 0.4, 1.0])), max_size=8
    ),
)


@given(starts, rows)
@settings(deadline=None, max_examples=30)
def test_points_and_scores_are_those_of_a_slow_reference(
    starts: dict[str, list[int]], rows: dict[str, list[Row]]
) -> None:
    points = OperatingPoints.of(truth_of(starts), found_of(rows))
    slow = slow_points(starts, rows)
    assert set(points.classes) == set(slow)
    assert points.subset == "test"
    for row, name in enumerate(points.classes):
        np.testing.assert_allclose(
            np.stack([points.recall[row], points.detections[row]], 1), slow[name], atol=1e-9
        )
    for precision in (None, 0.5, 1.0):
        chosen = points.scores(CLASSES, precision)
        assert list(chosen) == list(CLASSES)
        own = []
        for name, values in slow.items():
            if max(recall for recall, _ in values) == 0:
                continue
            own.append(chosen[name])
            recall, detections = values[int(np.flatnonzero(chosen[name] == SCORES)[0])]
            reached = [r / max(d, 1e-9) for r, d in values]
            if precision is None:
                best = max(2 * r / (1 + d) for r, d in values)
                assert 2 * recall / (1 + detections) == pytest.approx(best, abs=1e-8)
            elif max(reached) >= precision:
                assert recall / detections >= precision - 1e-8
                enough = [r for (r, _), p in zip(values, reached, strict=True) if p >= precision]
                assert recall == pytest.approx(max(enough))
            else:
                assert recall / detections == pytest.approx(max(reached))
                assert name in points.unreached(precision)
        rest = float(np.median(own)) if own else DEFAULT_SCORE
        assert all(chosen[name] == rest for name in CLASSES if name not in slow)


def test_the_order_of_videos_and_detections_changes_nothing() -> None:
    found, truth = playroom()
    rows = np.random.default_rng(0).permutation(len(found))
    other = OperatingPoints.of(of_videos(truth, reversed(truth.videos)), found.take(rows))
    assert other.scores(found.classes) == OperatingPoints.of(truth, found).scores(found.classes)


def test_scores_that_are_nearly_alike_still_show_what_is_right() -> None:
    found = found_of({"a": [(1, 0.0202), (5, 0.0201), (9, 0.02)], "b": [(3, 0.0203)]})
    points = OperatingPoints.of(truth_of({"a": [1, 5], "b": [3]}), found)
    for precision in (None, 0.5, 1.0):
        assert len(found.shown(points.scores(CLASSES, precision))) > 0


def test_points_come_back_from_json_whatever_their_scores() -> None:
    found = found_of({"a": [(1, 0.9), (2, 0.2)], "b": [(3, 0.5)]})
    points = OperatingPoints.of(truth_of({"a": [1, 5], "b": [3]}), found)
    again = OperatingPoints.from_json(json.loads(json.dumps(points.to_json())))
    assert (again.classes, again.subset) == (points.classes, points.subset)
    np.testing.assert_array_equal(again.recall, points.recall)
    np.testing.assert_array_equal(again.detections, points.detections)
    for precision in (None, 0.9):
        assert again.scores(CLASSES, precision) == points.scores(CLASSES, precision)
    fewer = replace(points, at=points.at[::2], recall=points.recall[:, ::2], detections=points.detections[:, ::2])
    assert OperatingPoints.from_json(fewer.to_json()).scores(CLASSES) == fewer.scores(CLASSES)


@pytest.mark.parametrize(
    "change",
    [
        {"recall": None},
        {"recall": [[0.1]]},
        {"detections": "many"},
        {"scores": [0.1, math.nan]},
        {"classes": 3},
        {"recall": [[-1.0] * len(SCORES)]},
    ],
)
def test_damaged_points_are_refused_in_one_line(change: dict[str, object]) -> None:
    content = OperatingPoints.of(truth_of({"a": [1]}), found_of({"a": [(1, 0.9)]})).to_json() | change
    with pytest.raises(ValueError, match=r"^best\.pt: damaged operating points \(.*\)$"):
        OperatingPoints.from_json(content, "best.pt")


def test_what_is_shown_is_said(caplog: pytest.LogCaptureFixture) -> None:
    points = OperatingPoints.of(truth_of({"a": [1, 5]}), found_of({"a": [(1, 0.9), (2, 0.95)]}))
    caplog.set_level(logging.INFO)
    scores, said = shown_scores(points, CLASSES)
    assert scores == points.scores(CLASSES)
    assert said.startswith("at least the score of best F1 of their class (0.")
    assert said.endswith(" on subset test)")
    assert shown_scores(points, CLASSES, min_score=0.25) == (
        dict.fromkeys(CLASSES, 0.25),
        "a score of at least 0.25",
    )
    assert caplog.messages == []
    scores, said = shown_scores(points, CLASSES, precision=0.9)
    assert said.startswith("at least the score of precision 0.9 of their class")
    assert "precision 0.9 is not reached by a" in caplog.messages.pop()
    assert shown_scores(None, CLASSES) == (dict.fromkeys(CLASSES, 0.3), "a score of at least 0.3")
    assert "(its checkpoint has none); detections from 0.3 are shown" in caplog.messages.pop()
    nothing = OperatingPoints.of(truth_of({"a": [1, 5]}), found_of({"a": [(2, 0.9)]}))
    assert shown_scores(nothing, CLASSES) == (dict.fromkeys(CLASSES, 0.3), "a score of at least 0.3")
    assert "(its evaluation found nothing right); detections from 0.3 are shown" in caplog.messages.pop()
    for wrong in (0.0, 1.1, math.nan, 90):
        with pytest.raises(ValueError, match=r"precision above 0 and at most 1"):
            shown_scores(points, CLASSES, precision=wrong)


# Other videos.


def playroom() -> tuple[Detections, Annotations]:
    found = read_detections(PLAYROOM / "playroom_detections.json.gz")
    return found, read_annotations(PLAYROOM / "playroom_truth.json.gz")


def of_videos(truth: Annotations, names: Iterable[str]) -> Annotations:
    return replace(truth, videos={name: truth.videos[name] for name in names})


def figures(truth: Annotations, found: Detections, scores: dict[str, float]) -> tuple[float, float]:
    """Macro F1, and precision of all detections together, of those with at least these scores."""
    f1, right, shown = [], 0.0, 0
    for name, curve in precision_recall(truth, found, tiou=TIOU).items():
        segments = sum(video.labels.count(name) for video in truth.videos.values())
        count = int((curve.scores >= scores[name]).sum())
        hits = curve.recall[count - 1] * segments if count else 0.0
        f1.append(2 * hits / (count + segments))
        right, shown = right + hits, shown + count
    return float(np.mean(f1)), right / max(1, shown)


def test_scores_also_hold_for_other_videos() -> None:
    """On 20 random halves of playroom: within 3 points of scores that are fitted on the very videos."""
    found, truth = playroom()
    names = list(truth.videos)
    of, on = {}, []
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(names).tolist()
        halves = []
        for half in (order[:12], order[12:]):
            rows = np.isin(np.array(found.videos)[found.video], half)
            halves.append((of_videos(truth, half), found.take(rows)))
        fitted, own = (OperatingPoints.of(*half) for half in halves)
        for what, scores in (
            ("held out", fitted.scores(found.classes)),
            ("fitted", own.scores(found.classes)),
            ("0.3", dict.fromkeys(found.classes, DEFAULT_SCORE)),
        ):
            of.setdefault(what, []).append(100 * figures(*halves[1], scores)[0])
        on.append(figures(*halves[1], fitted.scores(found.classes, 0.9))[1])
    mean = {what: float(np.mean(values)) for what, values in of.items()}
    assert mean["held out"] >= mean["fitted"] - 3
    assert mean["held out"] >= mean["0.3"] + 1
    assert 0.9 <= float(np.mean(on)) <= 0.96
