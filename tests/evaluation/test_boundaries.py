"""Boundary errors equal those of a slow matching, and resamples those of repeated lists of errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.detections import Detections
from bitad.evaluation.bootstrap import Draws, Estimate
from bitad.evaluation.boundaries import BoundaryErrors, boundary_errors

CLASSES = ("close", "open", "unused")


def made_up(seed: int, videos: int = 5) -> tuple[Annotations, dict[str, Detections]]:
    """Videos with some segments each, and the detections of two seeds, of which some are far off."""
    rng = np.random.default_rng(seed)
    truth = {}
    for number in range(videos):
        n = int(rng.integers(0, 5))
        starts = rng.uniform(0, 40, n)
        segments = np.stack([starts, starts + rng.uniform(1, 8, n)], axis=1)
        truth[f"{number}"] = AnnotatedVideo(
            f"{number}", "test", 60.0, segments, tuple(CLASSES[k] for k in rng.integers(0, 2, n))
        )
    annotations = Annotations(truth, CLASSES)
    return annotations, {str(s): detections(rng, annotations) for s in range(2)}


def detections(rng: np.random.Generator, truth: Annotations) -> Detections:
    found = {}
    for name, video in truth.videos.items():
        again = np.concatenate([video.segments, video.segments])
        again = np.sort(again + rng.normal(0, 0.8, again.shape), axis=1)
        labels = np.array([CLASSES.index(label) for label in video.labels] * 2, np.int64)
        found[name] = (again, rng.permutation(len(again)) / 20, labels)
    return Detections.from_videos(found, classes=CLASSES, durations_s=dict.fromkeys(truth.videos, 60.0))


def slow_pairs(truth: Annotations, found: Detections) -> list[tuple[str, str, float, float]]:
    """Video, label, and errors of start and end, by the obvious loop."""
    pairs = []
    taken: set[tuple[str, int]] = set()
    for row in np.argsort(-found.scores, kind="stable"):
        name, label = found.videos[found.video[row]], found.classes[found.labels[row]]
        video = truth.videos[name]
        best, best_tiou = None, 0.5
        a, b = found.segments[row]
        for i, (start, end) in enumerate(video.segments):
            overlap = max(0.0, min(b, end) - max(a, start))
            tiou = overlap / ((b - a) + (end - start) - overlap)
            if video.labels[i] == label and (name, i) not in taken and tiou >= best_tiou:
                best, best_tiou = i, tiou
        if best is not None:
            taken.add((name, best))
            start, end = video.segments[best]
            pairs.append((name, label, float(a - start), float(b - end)))
    return pairs


def figures(one: BoundaryErrors) -> list[Estimate | float | None]:
    sides = [(s.mean, s.median, s.mean_absolute, s.median_absolute) for s in (one.start, one.end)]
    return [*sides[0], *sides[1], one.difference]


def slow_figures(pairs: list[tuple[str, str, float, float]]) -> list[float]:
    made = []
    for side in (2, 3):
        errors = np.array([pair[side] for pair in pairs])
        made += [errors.mean(), np.median(errors), np.abs(errors).mean(), np.median(np.abs(errors))]
    return [*made, made[6] - made[2]]


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=25)
def test_errors_are_those_of_a_slow_matching(seed: int) -> None:
    truth, found = made_up(seed)
    if not any(video.labels for video in truth.videos.values()):
        return
    made = boundary_errors(truth, {"F": found})["F"]
    pairs = [pair for one in found.values() for pair in slow_pairs(truth, one)]
    assert made.seeds == 2
    assert made.overall.matched == len(pairs)
    assert made.overall.segments == sum(len(video.labels) for video in truth.videos.values())
    for label, one in (("", made.overall), *made.per_class.items()):
        of_label = [pair for pair in pairs if label in ("", pair[1])]
        assert one.matched == len(of_label)
        if of_label:
            assert figures(one) == pytest.approx(slow_figures(of_label))
        else:
            assert figures(one) == [None] * 9


def test_intervals_are_those_of_repeated_errors() -> None:
    truth, found = made_up(3, videos=9)
    made = boundary_errors(truth, {"F": found}, resamples=100, seed=5)["F"]
    draws = Draws.of(truth.videos, 100, 5)
    seeds = np.round(draws.shares(["0", "1"]) * 2).astype(int)
    pairs = {s: slow_pairs(truth, one) for s, one in found.items()}
    curves = []
    for column in range(101):
        repeated = [
            pair
            for s, of_seed in pairs.items()
            for pair in of_seed
            for _ in range(seeds[int(s), column] * draws.times[draws.number[pair[0]], column])
        ]
        curves.append(slow_figures(repeated))
    for one, figure in zip(figures(made.overall), np.array(curves).T, strict=True):
        assert isinstance(one, Estimate)
        low, high = np.percentile(figure[1:], [2.5, 97.5])
        assert (one.value, one.low, one.high) == pytest.approx((figure[0], low, high))


def test_results_are_compared_with_the_first_on_the_same_resamples() -> None:
    truth, found = made_up(3, videos=9)
    other = made_up(3, videos=9)[1]
    moved = {seed: replace(one, segments=one.segments + np.array([0.0, 0.1])) for seed, one in other.items()}
    first, same, later = boundary_errors(truth, {"F": found, "same": other, "B": moved}, resamples=100).values()
    assert first.less is None
    assert same.less == (Estimate(0, 0, 0), Estimate(0, 0, 0))
    assert later.less is not None
    for one, side in zip(later.less, ("start", "end"), strict=True):
        here, there = (getattr(result.overall, side).mean_absolute for result in (later, first))
        assert isinstance(one, Estimate)
        assert one.value == pytest.approx(here.value - there.value)
    assert later.less[1].high - later.less[1].low < here.high - here.low


def test_chunks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, found = made_up(4, videos=9)
    at_once = boundary_errors(truth, {"F": found}, resamples=100)["F"].overall
    monkeypatch.setattr("bitad.evaluation.boundaries._CELLS_AT_ONCE", 100)
    chunks = boundary_errors(truth, {"F": found}, resamples=100)["F"].overall
    for one, other in zip(figures(chunks), figures(at_once), strict=True):
        assert isinstance(one, Estimate)
        assert isinstance(other, Estimate)
        assert list(one.to_json().values()) == pytest.approx(list(other.to_json().values()))


def test_in_reverse_playback_starts_and_ends_change_places_and_late_is_early() -> None:
    truth, found = made_up(6, videos=9)
    backwards = {seed: one.reversed() for seed, one in found.items()}
    forward = boundary_errors(truth, {"F": found})["F"].overall
    again = boundary_errors(truth, {"F": backwards})["F"].overall  # read on the forward clock
    assert figures(again) == pytest.approx(figures(forward))
    played = {seed: replace(one, basis="forward") for seed, one in backwards.items()}
    mirrored = boundary_errors(truth.reversed(), {"F": played})["F"].overall
    assert mirrored.start.mean == pytest.approx(-forward.end.mean)
    assert mirrored.end.median == pytest.approx(-forward.start.median)
    assert mirrored.start.mean_absolute == pytest.approx(forward.end.mean_absolute)
    assert mirrored.difference == pytest.approx(-forward.difference)
