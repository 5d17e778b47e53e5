"""Detections that are shown, timelines with one label at a time, and the least scores in files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitad.data.detections import Detections, read_detections, write_detections

CLASSES = ("b", "a")

Row = tuple[int, int, int, int, int]  # video, start, length, score in tenths, label


def detections(rows: Sequence[Row]) -> Detections:
    video, start, length, score, label = np.array(rows, np.int64).reshape(-1, 5).T
    segments = np.stack([start, start + length], 1).astype(np.float64)
    return Detections(("v", "w"), CLASSES, video, segments, score / 10, label)


rows = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 20), st.integers(0, 9), st.integers(0, 10), st.integers(0, 1)),
    max_size=14,
)


def slow_timeline(found: Detections) -> list[tuple[str, float, float, str, float]]:
    """Second by second: who has it; times in the tests are whole seconds."""
    kept = []
    owner: dict[tuple[str, int], bool] = {}
    ranked = sorted(found.to_rows(), key=lambda row: (-row[4], row[1], row[2] - row[1], row[3]))
    for video, start, end, label, score in ranked:
        free = [second for second in range(int(start), int(end)) if (video, second) not in owner]
        parts: list[list[int]] = []
        for second in free:
            if parts and parts[-1][-1] == second - 1:
                parts[-1].append(second)
            else:
                parts.append([second])
        longest = max(parts, key=len, default=[])
        if longest and 2 * len(longest) >= end - start:
            owner |= {(video, second): True for second in longest}
            kept.append((video, float(longest[0]), float(longest[-1] + 1), label, score))
    return sorted(kept)


@given(rows, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=150)
def test_a_timeline_has_one_label_at_a_time(rows: list[Row], random: Random) -> None:
    found = detections(rows)
    timeline = found.without_overlap()
    assert sorted(timeline.to_rows()) == slow_timeline(found)
    for video in timeline:
        order = np.argsort(video.segments[:, 0])
        starts, ends = video.segments[order].T
        assert (starts[1:] >= ends[:-1]).all()
        assert (starts < ends).all()
    assert timeline.without_overlap().to_rows() == timeline.to_rows()
    random.shuffle(rows)
    assert sorted(detections(rows).without_overlap().to_rows()) == sorted(timeline.to_rows())


def test_a_timeline_of_any_times_has_no_overlap() -> None:
    rng = np.random.default_rng(0)
    start = rng.uniform(0, 50, 300)
    segments = np.stack([start, start + rng.exponential(3, 300)], 1)
    columns = (np.zeros(300, np.int64), segments, rng.uniform(0, 1, 300).round(1), rng.integers(0, 2, 300))
    timeline = Detections(("v",), CLASSES, *columns, details={"run": "r"}).without_overlap()
    starts, ends = timeline.segments[np.argsort(timeline.segments[:, 0])].T
    assert len(timeline) > 10
    assert (starts[1:] >= ends[:-1]).all()
    assert timeline.details == {"run": "r"}
    again = timeline.without_overlap()
    np.testing.assert_array_equal(again.segments, timeline.segments)


def test_what_is_shown_depends_on_the_class() -> None:
    found = detections([(0, 0, 1, 3, 0), (0, 2, 1, 3, 1), (0, 4, 1, 2, 0), (0, 6, 1, 9, 1)])
    assert found.min_scores == {}
    assert found.shown().scores.tolist() == [0.3, 0.3, 0.9]
    chosen = found.with_min_scores({"a": 0.5})
    assert chosen.shown().to_rows() == found.take(np.array([0, 3])).to_rows()
    assert len(chosen.shown({"a": 0.0, "b": 0.0})) == 4
    assert len(chosen.shown({})) == 3
    assert len(Detections.from_videos({}, classes=()).shown()) == 0


def test_least_scores_are_kept_in_files(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    write_detections(detections([(0, 0, 1, 3, 0)]).with_min_scores({"a": 0.25, "b": 0.5}), path)
    again = read_detections(path)
    assert again.min_scores == {"a": 0.25, "b": 0.5}
    assert len(again.shown()) == 0


@pytest.mark.parametrize("wrong", [0.3, [0.3], {"a": "0.3"}, {"a": True}, {"a": None}])
def test_least_scores_that_are_none_are_refused(tmp_path: Path, wrong: object) -> None:
    path = tmp_path / "found.json"
    write_detections(detections([(0, 0, 1, 3, 0)]), path)
    content = json.loads(path.read_text())
    content["external_data"]["min_scores"] = wrong
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"found\.json: external_data's min_scores are .*, not scores by class"):
        read_detections(path)
