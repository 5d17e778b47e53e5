"""Intervals by the bootstrap equal those of resampled files that are evaluated one by one, and cover the truth."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from recordings import FIXTURES

from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.detections import Detections, read_detections
from bitad.data.formats.database import read_annotations
from bitad.evaluation.bootstrap import Draws, Estimate, bootstrap, resampled_ap
from bitad.evaluation.mean_average_precision import Evaluation, Matches, evaluate, match
from bitad.evaluation.thumos_kit import evaluate_by_thumos_kit, match_by_thumos_kit

TIOU = (0.3, 0.5, 0.7)
CLASSES = ("Ambiguous", "close", "jump", "open")
THUMOS14 = FIXTURES.parent / "data" / "thumos14"

Evaluate = Callable[..., Evaluation]
Match = Callable[..., Matches]
RULES = [
    pytest.param(evaluate, match, id="activitynet"),
    pytest.param(evaluate_by_thumos_kit, match_by_thumos_kit, id="thumos-kit"),
]


def made_up(seed: int, *, videos: int, ties: bool = True) -> tuple[Annotations, Detections]:
    """Some videos without segments or detections, one without ground truth; with ties, few different scores."""
    rng = np.random.default_rng(seed)
    truth, found = {}, {}
    for number in range(videos + 1):
        name = f"video {number}"
        n = int(rng.integers(0, 5))
        starts = rng.integers(0, 40, n) / 2
        segments = np.stack([starts, starts + rng.integers(1, 8, n)], axis=1)
        labels = rng.integers(0, len(CLASSES), n)
        if number < videos:
            truth[name] = AnnotatedVideo(name, "test", 60.0, segments, tuple(CLASSES[label] for label in labels))
        again = np.concatenate([segments, segments, segments[:1] + 30])
        again = again + rng.integers(-1, 2, again.shape) / 4
        called = np.where(
            rng.random(len(again)) < 0.3, rng.integers(0, 4, len(again)), np.resize(labels, len(again))
        )
        scores = rng.integers(1, 6, len(again)) / 5 if ties else rng.permutation(50)[: len(again)] / 50
        found[name] = (np.sort(again, axis=1), scores, called.astype(np.int64))
    return Annotations(truth, CLASSES), Detections.from_videos(found, classes=CLASSES)


def resample(truth: Annotations, found: Detections, times: dict[str, int]) -> tuple[Annotations, Detections]:
    """The obvious way: every video as often as it was drawn, each under a name of its own."""
    copies = {name: [f"{name} copy {k}" for k in range(count)] for name, count in times.items()}
    videos = {
        copy: replace(video, name=copy) for name, video in truth.videos.items() for copy in copies.get(name, [])
    }
    names = [copy for of_video in copies.values() for copy in of_video]
    rows, video = [], []
    for row, index in enumerate(found.video.tolist()):
        for copy in copies.get(found.videos[index], []):
            rows.append(row)
            video.append(names.index(copy))
    return Annotations(videos, truth.classes), Detections(
        videos=tuple(names),
        classes=found.classes,
        video=np.array(video, np.int64),
        segments=found.segments[rows],
        scores=found.scores[rows],
        labels=found.labels[rows],
    )


def drawn(draws: Draws, column: int) -> dict[str, int]:
    return {name: int(draws.times[i, column]) for name, i in draws.number.items()}


def slow_ap(
    evaluate: Evaluate, truth: Annotations, found: Detections, classes: tuple[str, ...]
) -> NDArray[np.float64]:
    """AP ``[K, n_tiou]`` of a resample; nan of classes that it lacks."""
    ap = np.full((len(classes), len(TIOU)), np.nan)
    if not any(set(video.labels) & set(classes) for video in truth.videos.values()):
        return ap
    evaluation = evaluate(truth, found, tiou=TIOU)
    for label, of_label in zip(evaluation.classes, evaluation.ap, strict=True):
        ap[classes.index(label)] = of_label
    return ap


@pytest.mark.parametrize(("evaluate", "match"), RULES)
@given(seed=st.integers(0, 10**6), videos=st.integers(2, 6))
@settings(deadline=None, max_examples=40)
def test_a_weighted_ap_is_that_of_files_with_copied_videos(
    evaluate: Evaluate, match: Match, seed: int, videos: int
) -> None:
    """By the kit's rule, equal scores within a video would change places in the copies; elsewhere there are ties."""
    truth, found = made_up(seed, videos=videos, ties=evaluate is not evaluate_by_thumos_kit)
    if not any(set(video.labels) - {"Ambiguous"} for video in truth.videos.values()):
        return
    matches = match(truth, found, tiou=TIOU)
    draws = Draws.of(found.videos, 100, seed)
    ap = resampled_ap(matches, draws)
    for column in (0, 1, 2, 50, 100):
        copies = resample(truth, found, drawn(draws, column))
        np.testing.assert_allclose(
            ap[:, :, column], slow_ap(evaluate, *copies, matches.truth.classes), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize(("evaluate", "match"), RULES)
def test_chunks_of_resamples_change_nothing(
    evaluate: Evaluate, match: Match, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, found = made_up(3, videos=8)
    matches, draws = match(truth, found, tiou=TIOU), Draws.of(found.videos, 100, 0)
    at_once = resampled_ap(matches, draws)
    monkeypatch.setattr("bitad.evaluation.bootstrap._CELLS_AT_ONCE", 100)
    np.testing.assert_array_equal(resampled_ap(matches, draws), at_once)
    np.testing.assert_allclose(
        np.nanmean(at_once[:, :, 0], axis=0), evaluate(truth, found, tiou=TIOU).map_per_tiou, atol=1e-12
    )


@pytest.mark.parametrize(("evaluate", "match"), RULES)
@pytest.mark.parametrize("few", [1, 10**9], ids=["summed between", "accumulated"])
def test_few_and_many_true_positives_are_counted_alike(
    evaluate: Evaluate, match: Match, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, found = made_up(5, videos=8)
    matches, draws = match(truth, found, tiou=TIOU), Draws.of(found.videos, 100, 0)
    expected = resampled_ap(matches, draws)
    assert np.nanmax(expected) > 0
    monkeypatch.setattr("bitad.evaluation.bootstrap._FEW", few)
    np.testing.assert_array_equal(resampled_ap(matches, draws), expected)


def test_every_figure_is_a_percentile_over_slow_resamples() -> None:
    """Two seeds and a rival of one: all by files of copied videos, seed by seed, as the docs say."""
    truth, _ = made_up(5, videos=6)
    of_seeds = {str(seed): made_up(5, videos=6)[1].take(np.arange(seed, 16)) for seed in range(2)}
    rival = made_up(5, videos=6)[1].take(np.arange(3, 22))
    made = bootstrap(
        {
            "ours": {seed: match(truth, found, tiou=TIOU) for seed, found in of_seeds.items()},
            "rival": {"0": match(truth, rival, tiou=TIOU)},
        },
        resamples=100,
        seed=7,
        baseline="rival",
    )
    classes = evaluate(truth, rival, tiou=TIOU).classes
    draws = Draws.of(rival.videos, 100, 7)
    assert made.videos == len(draws.number) == 7
    shares = draws.shares(["0", "1"])
    ours, theirs = [], []
    for column in range(101):
        ap = [
            slow_ap(evaluate, *resample(truth, found, drawn(draws, column)), classes)
            for found in of_seeds.values()
        ]
        ours.append(shares[0, column] * ap[0] + shares[1, column] * ap[1])
        theirs.append(slow_ap(evaluate, *resample(truth, rival, drawn(draws, column)), classes))

    def interval(figure: NDArray[np.float64]) -> tuple[float, ...]:
        return (figure[0], *np.nanpercentile(figure[1:], [2.5, 97.5]))

    def numbers(one: Estimate) -> tuple[float, float, float]:
        return one.value, one.low, one.high

    of_ours, of_theirs = np.array(ours), np.array(theirs)
    for intervals, figures in (
        (made.results["ours"], of_ours),
        (made.results["rival"], of_theirs),
        (made.differences["ours"], of_ours - of_theirs),
    ):
        per_tiou = np.nanmean(figures, axis=1)
        for i, one in enumerate(intervals.map_per_tiou):
            assert numbers(one) == pytest.approx(interval(per_tiou[:, i]), abs=1e-12)
        assert numbers(intervals.average_map) == pytest.approx(interval(per_tiou.mean(axis=1)), abs=1e-12)
        for k, label in enumerate(classes):
            expected = interval(figures[:, k].mean(axis=1))
            assert numbers(intervals.per_class[label]) == pytest.approx(expected, abs=1e-12)


def test_differences_are_paired_and_of_the_same_seeds() -> None:
    """Results that are alike differ less from resample to resample than each does; unpaired, it would be more."""
    truth, found = made_up(11, videos=30)
    worse = found.take(np.arange(len(found)) % 9 > 0)
    results = {"a": found, "same": found, "worse": worse}
    seeds = {
        name: {str(k): match(truth, one.take(np.arange(len(one)) % 7 != k), tiou=TIOU) for k in range(3)}
        for name, one in results.items()
    }
    made = bootstrap(seeds)
    assert made.baseline == "a"
    assert list(made.differences) == ["same", "worse"]
    same = made.differences["same"].average_map
    assert (same.value, same.low, same.high) == (0, 0, 0)
    alone, less = made.results["a"].average_map, made.differences["worse"].average_map
    assert alone.low < alone.value < alone.high
    assert less.high - less.low < alone.high - alone.low
    assert made.seeds == dict.fromkeys(results, 3)
    one_seed = bootstrap({"a": {"0": seeds["a"]["0"]}})
    assert (one_seed.baseline, one_seed.differences) == (None, {})


def test_the_seed_determines_the_intervals() -> None:
    truth, found = made_up(2, videos=9)
    results = {"a": {"0": match(truth, found, tiou=TIOU)}}
    first, again, other = (bootstrap(results, resamples=200, seed=seed).to_json() for seed in (0, 0, 1))
    assert first == again
    assert first["results"] != other["results"]
    assert bootstrap(results).to_json()["seed"] == 0


def test_as_many_videos_and_seeds_are_drawn_as_there_are() -> None:
    draws = Draws.of(["a", "b", "c", "d", "a"], 500, 0)
    assert draws.times.shape == (4, 501)
    assert (draws.times[:, 0] == 1).all()
    assert (draws.times.sum(axis=0) == 4).all()
    assert draws.times[:, 1:].mean(axis=1) == pytest.approx([1] * 4, abs=0.15)
    shares = draws.shares(["0", "1", "2"])
    assert (3 * shares).round(9).sum(axis=0) == pytest.approx(np.full(501, 3))
    np.testing.assert_array_equal(shares, draws.shares(["0", "1", "2"]))
    assert not np.array_equal(shares, draws.shares(["3", "4", "5"]))
    assert (draws.shares(["0"]) == 1).all()


def test_what_cannot_be_resampled_is_refused() -> None:
    truth, found = made_up(2, videos=4)
    results = {"a": {"0": match(truth, found, tiou=TIOU)}}
    for resamples in (0, 99, 10_001):
        with pytest.raises(
            ValueError, match=f"{resamples} is not a useful number of resamples; give 100 to 10,000"
        ):
            bootstrap(results, resamples=resamples)
    with pytest.raises(ValueError, match="no result is called 'F'; the results are a"):
        bootstrap(results, baseline="F")
    with pytest.raises(ValueError, match="no results"):
        bootstrap({})
    with pytest.raises(ValueError, match="several ground truths"):
        bootstrap(results | {"b": {"0": match(truth, found, tiou=(0.5,))}})


def population(rng: np.random.Generator, videos: int) -> tuple[Annotations, Detections]:
    """Videos of one distribution: hard ones, where few of the three actions are found, and easy ones."""
    truth, found = {}, {}
    actions = np.array([[1.0, 3.0], [5.0, 8.0], [10.0, 11.0]])
    for number in range(videos):
        name = f"{number}"
        truth[name] = AnnotatedVideo(name, "test", 20.0, actions, ("open", "open", "jump"))
        right = rng.random(3) < rng.choice([0.3, 0.9])
        segments = actions + np.where(right, 0.0, 12.0)[:, None]
        found[name] = (segments, rng.random(3) + 0.5 * right, np.array([3, 3, 2]))
    return Annotations(truth, CLASSES), Detections.from_videos(found, classes=CLASSES)


def test_intervals_cover_the_figure_of_the_population() -> None:
    """Nominally 95 percent; percentile intervals of 40 videos cover a little less."""
    rng = np.random.default_rng(0)
    exact = evaluate(*population(rng, 20_000), tiou=[0.5]).average_map
    covered, below = 0, 0
    for _ in range(200):
        truth, found = population(rng, 40)
        made = bootstrap({"a": {"0": match(truth, found, tiou=[0.5])}}, resamples=300)
        one = made.results["a"].average_map
        covered += one.low <= exact <= one.high
        below += one.high < exact
    assert 0.88 <= covered / 200 <= 0.99
    assert below / 200 <= 0.07


@pytest.mark.skipif(not THUMOS14.is_dir(), reason="THUMOS14's detections are not beside this checkout")
def test_a_thousand_resamples_of_thumos14_take_seconds() -> None:
    truth = read_annotations(THUMOS14 / "thumos14.json.gz", ignore=()).subset("Test")
    found = read_detections(THUMOS14 / "actionformer_detections.json.gz")
    began = time.process_time()
    made = bootstrap({"a": {"0": match(truth, found, tiou=(0.3, 0.4, 0.5, 0.6, 0.7))}})
    assert time.process_time() - began < 10
    average = made.results["a"].average_map
    assert [round(100 * x, 1) for x in (average.value, average.low, average.high)] == [66.8, 64.1, 70.6]
