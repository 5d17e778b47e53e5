"""Ensembles are fused of every combination of seeds; their figures equal those of a slow evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product

import numpy as np
import pytest
from numpy.typing import NDArray

from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.detections import Detections
from bitad.evaluation import ensembles as module
from bitad.evaluation.bootstrap import Draws, Estimate
from bitad.evaluation.ensembles import Ensemble, EnsembleResult, ensemble_figures, evaluate_ensembles
from bitad.evaluation.mean_average_precision import evaluate, match
from bitad.inference.merge import merge

TIOU = (0.3, 0.6)
CLASSES = ("close", "open")
SEEDS = {"F": ["0", "1", "2"], "B": ["0", "1", "2"], "alone": ["7"]}


def fuse(sets: Sequence[Detections]) -> Detections:
    return merge(*sets, method="wsf")


@pytest.fixture(scope="module")
def truth() -> Annotations:
    rng = np.random.default_rng(0)
    videos = {}
    for number in range(8):
        starts = np.arange(4) * 5 + rng.uniform(0, 2, 4)
        segments = np.stack([starts, starts + rng.uniform(1, 3, 4)], axis=1)
        labels = tuple(CLASSES[k] for k in rng.integers(0, 2, 4))
        videos[f"{number}"] = AnnotatedVideo(f"{number}", "test", 25.0, segments, labels)
    return Annotations(videos, CLASSES)


@pytest.fixture(scope="module")
def networks(truth: Annotations) -> dict[str, dict[str, Detections]]:
    def guess(*key: int) -> Detections:
        rng = np.random.default_rng(key)
        found = {}
        for name, video in truth.videos.items():
            segments = video.segments + rng.normal(0, 0.5, video.segments.shape)
            labels = np.array([CLASSES.index(label) for label in video.labels])
            labels = np.where(rng.random(4) < 0.3, 1 - labels, labels)
            found[name] = (np.sort(segments, axis=1), rng.random(4), labels)
        return Detections.from_videos(found, classes=CLASSES)

    return {label: {s: guess(n, int(s)) for s in of} for n, (label, of) in enumerate(SEEDS.items())}


def average(truth: Annotations, found: Detections) -> float:
    return evaluate(truth, found, tiou=TIOU).average_map


@pytest.mark.parametrize(
    ("text", "name", "networks", "choices"),
    [
        ("F+B", "F+B", 2, 9),
        ("F+F", "2F", 2, 3),
        ("2F", "2F", 2, 3),
        (" 2F + 2B ", "2F+2B", 4, 9),
        ("F+B+F", "2F+B", 3, 9),
        ("alone+3F", "alone+3F", 4, 1),
    ],
)
def test_an_ensemble_is_read_and_formed_of_all_combinations_of_seeds(
    text: str, name: str, networks: int, choices: int
) -> None:
    one = Ensemble.parse(text)
    assert (one.name, one.networks) == (name, networks)
    found = one.choices(SEEDS)
    assert len(found) == len(set(found)) == one.possible(SEEDS) == choices
    for choice in found:
        assert len(set(choice)) == networks
        assert [sum(label == network[0] for network in choice) for label, _ in one.sizes] == [
            n for _, n in one.sizes
        ]


@pytest.mark.parametrize("text", ["", "F+", "0F+B", "+", "3"])
def test_what_is_no_ensemble_is_refused(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"is no ensemble; name networks and their number, such as F\+B, 2F or 2F\+2B"
    ):
        Ensemble.parse(text)


def test_what_cannot_be_formed_is_refused(truth: Annotations, networks: dict[str, dict[str, Detections]]) -> None:
    def refused(*names: str) -> str:
        with pytest.raises(ValueError) as error:
            evaluate_ensembles(truth, networks, [Ensemble.parse(name) for name in names], fuse, tiou=TIOU)
        return str(error.value)

    with pytest.raises(ValueError, match="'F' is one network; an ensemble has at least two"):
        Ensemble.parse("F")
    assert refused("F+G") == "ensemble F+G: no network is called 'G'; the networks are F; B; alone"
    assert refused("4F") == "ensemble 4F needs 4 networks F, of different seeds, and there are only 3; train more"
    assert refused("2F", "F+F") == "ensemble 2F is given twice; name each once"


def test_other_processes_find_the_same_figures(
    truth: Annotations, networks: dict[str, dict[str, Detections]]
) -> None:
    draws = Draws.of(list(truth.videos), 100, seed=0)
    made = [Ensemble.parse(name) for name in ("2F", "2F+2B")]
    here, there = (
        ensemble_figures(truth, networks, made, fuse, tiou=TIOU, draws=draws, workers=workers)
        for workers in (0, 2)
    )
    for one, other in zip(here, there, strict=True):
        assert np.array_equal(one.map_per_tiou, other.map_per_tiou, equal_nan=True)
        assert np.array_equal(one.gain, other.gain, equal_nan=True)


def test_figures_are_means_over_all_combinations(
    truth: Annotations, networks: dict[str, dict[str, Detections]]
) -> None:
    told: list[tuple[int, int]] = []
    names = ("2F", "F+B", "2F+B", "3F")
    two, mixed, three, last = evaluate_ensembles(
        truth,
        networks,
        [Ensemble.parse(name) for name in names],
        fuse,
        tiou=TIOU,
        on_progress=lambda *step: told.append(step),
    )
    alone = {(label, s): average(truth, found) for label, of in networks.items() for s, found in of.items()}
    pairs = list(combinations([("F", s) for s in SEEDS["F"]], 2))
    crossed = list(product([("F", s) for s in SEEDS["F"]], [("B", s) for s in SEEDS["B"]]))
    for result, choices in ((two, pairs), (mixed, crossed)):
        fused = [average(truth, fuse([networks[label][s] for label, s in choice])) for choice in choices]
        gains = [
            value - np.mean([alone[one] for one in choice]) for value, choice in zip(fused, choices, strict=True)
        ]
        assert result.average_map == pytest.approx(np.mean(fused))
        assert result.gain == pytest.approx(np.mean(gains))
        assert np.mean(result.map_per_tiou) == pytest.approx(np.mean(fused))
    assert (two.compared, two.difference) == (None, None)
    assert (mixed.compared, mixed.difference) == ("2F", pytest.approx(mixed.average_map - two.average_map))
    assert (three.compared, last.compared) == (None, "2F+B")
    assert (mixed.networks, mixed.choices, mixed.possible) == (2, 9, 9)
    total = 6 + 3 + 9 + 9 + 1
    assert told == [(done, total) for done in range(1, total + 1)]
    assert mixed.to_json()["difference"] == mixed.difference


def test_intervals_are_those_of_slow_resamples(
    truth: Annotations, networks: dict[str, dict[str, Detections]]
) -> None:
    """Each resample one by one: copied videos, and every combination of the networks that were drawn."""
    names = ("2F", "F+B")
    found = evaluate_ensembles(
        truth, networks, [Ensemble.parse(name) for name in names], fuse, tiou=TIOU, resamples=100, seed=3
    )
    draws = Draws.of(truth.videos, 100, 3)
    drawn = np.round(draws.shares(["0", "1", "2"]) * 3).astype(int)  # [seeds, 1 + R]
    fused: dict[tuple[tuple[str, str], ...], NDArray[np.float64]] = {}

    def curve(choice: tuple[tuple[str, str], ...]) -> NDArray[np.float64]:
        """The average mAP in every resample."""
        if choice not in fused:
            sets = [networks[label][s] for label, s in choice]
            matches = match(truth, fuse(sets) if len(sets) > 1 else sets[0], tiou=TIOU)
            ap = module.resampled_ap(matches, draws)
            fused[choice] = np.nanmean(ap, axis=0).mean(axis=0)
        return fused[choice]

    def slow(name: str, column: int) -> tuple[float, float]:
        of = {"2F": ("F", "F"), "F+B": ("F", "B")}[name]
        pool = [[(label, s, copy) for s in range(3) for copy in range(drawn[s, column])] for label in of]
        values, gains = [], []
        for one, other in product(*pool):
            if one[:2] == other[:2]:
                continue
            choice = tuple(sorted([(one[0], str(one[1])), (other[0], str(other[1]))], reverse=of[0] != of[1]))
            value = curve(choice)[column]
            values.append(value)
            gains.append(value - np.mean([curve((network,))[column] for network in choice]))
        return (float(np.mean(values)), float(np.mean(gains))) if values else (np.nan, np.nan)

    curves = {name: np.array([slow(name, column) for column in range(101)]).T for name in names}

    def same(one: object, figure: NDArray[np.float64]) -> None:
        assert isinstance(one, Estimate)
        low, high = np.nanpercentile(figure[1:], [2.5, 97.5])
        assert (one.value, one.low, one.high) == pytest.approx((figure[0], low, high), abs=1e-12)

    for result in found:
        value, gain = curves[result.name]
        same(result.average_map, value)
        same(result.gain, gain)
    same(found[1].difference, curves["F+B"][0] - curves["2F"][0])


def test_of_very_many_combinations_some_are_drawn(
    truth: Annotations, networks: dict[str, dict[str, Detections]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_CHOICES", 5)
    one = Ensemble.parse("F+B")
    every = list(product([("F", s) for s in SEEDS["F"]], [("B", s) for s in SEEDS["B"]]))
    chosen = one.choices(SEEDS)
    assert len(chosen) == 5
    assert set(chosen) < set(every)
    assert chosen == one.choices(SEEDS)
    result: EnsembleResult = evaluate_ensembles(truth, networks, [one], fuse, tiou=TIOU)[0]
    assert (result.choices, result.possible) == (5, 9)
