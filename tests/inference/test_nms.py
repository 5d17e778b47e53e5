"""Suppression: recorded cases, a slow reference, and the laws it must keep."""

import json
import tracemalloc
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitad.config.schema import NmsConfig
from bitad.inference.nms import nms

SHARED = Path(__file__).parents[2] / "../shared"
FIXTURES = SHARED / "fixtures/nms"
METHODS = ("vanilla", "linear", "gaussian")


def recorded_settings(case: dict) -> NmsConfig:
    return NmsConfig(
        method=METHODS[case.get("method", 2)] if case["use_soft_nms"] else "hard",
        sigma=case.get("sigma", 0.5),
        iou_threshold=case.get("iou_threshold", 0.5),
        max_segments=case["max_seg_num"],
        multiclass=case["multiclass"],
        voting_threshold=case.get("voting_thresh", 0.0),
        min_score=case.get("min_score"),
    )


def cases() -> dict[str, dict]:
    return json.loads((FIXTURES / "cases.json").read_text())["cases"] if FIXTURES.exists() else {}


@pytest.mark.skipif(not FIXTURES.exists(), reason=f"the reference folder {SHARED} is missing")
@pytest.mark.parametrize("case", cases())
@pytest.mark.parametrize("data", [path.name.removesuffix("_in.npz") for path in sorted(FIXTURES.glob("*_in.npz"))])
def test_recorded_cases_are_reproduced(data, case):
    given_ = np.load(FIXTURES / f"{data}_in.npz")
    expected = np.load(FIXTURES / f"{data}_out.npz")
    segments, scores, labels = nms(
        given_["segments"], given_["scores"], given_["labels"], recorded_settings(cases()[case])
    )
    # None of these cases has equal scores in its result, so the order is settled. The recorded numbers are float32;
    # their voted segments are sums over up to a hundred products.
    np.testing.assert_array_equal(labels, expected[f"{case}.labels"])
    np.testing.assert_allclose(scores, expected[f"{case}.scores"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(segments, expected[f"{case}.segments"], rtol=1e-6, atol=1e-4)


# The slow reference


def slow_nms(segments, scores, labels, how: NmsConfig) -> list[tuple[int, float]]:
    """The kept rows and their scores, class by class and one by one; without voting."""
    kept = []
    for label in sorted(set(labels.tolist())) if how.multiclass else [None]:
        left = {i: scores[i] for i in range(len(scores)) if label is None or labels[i] == label}
        if how.method == "hard" and how.min_score:
            left = {i: score for i, score in left.items() if score > how.min_score}
        while left:
            best = max(left, key=lambda i: (left[i], -i))
            kept.append((best, left.pop(best)))
            for i in list(left):
                (a, b), (c, d) = segments[best], segments[i]
                overlap = max(min(b, d) - max(a, c), 0.0)
                iou = overlap / ((b - a + 1e-6) + (d - c + 1e-6) - overlap)
                competes = iou >= how.iou_threshold
                if how.method == "hard":
                    if competes:
                        del left[i]
                    continue
                gaussian = np.exp(-iou * iou / how.sigma)
                weight = {"gaussian": gaussian, "linear": 1 - iou * competes, "vanilla": 1.0 - competes}[
                    how.method
                ]
                left[i] *= weight
                if left[i] < (how.min_score or 0.0):
                    del left[i]
    return sorted(kept, key=lambda row: (-row[1], row[0]))[: how.max_segments]


def random_candidates(seed: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores that do not tie: equal ones, a rounding apart, may change places between two ways of calculating."""
    rng = np.random.default_rng(seed)
    start = rng.uniform(-5, 20, n)
    length = rng.uniform(0, 10, n) * rng.integers(0, 10, n).clip(0, 1)  # a tenth without length
    return np.stack([start, start + length], axis=1), rng.beta(0.5, 2, n), rng.integers(0, 4, n)


candidates = st.builds(random_candidates, st.integers(0, 2**32 - 1), st.integers(0, 80))
ways = st.builds(
    NmsConfig,
    method=st.sampled_from([*METHODS, "hard"]),
    sigma=st.sampled_from([0.1, 0.7]),
    iou_threshold=st.sampled_from([0.1, 0.5]),
    max_segments=st.sampled_from([1, 5, 2000]),
    multiclass=st.booleans(),
    voting_threshold=st.just(0.0),
    min_score=st.sampled_from([None, 0.0, 0.1]),
)


@given(candidates, ways)
@settings(deadline=None, max_examples=100)
def test_what_is_kept_is_what_the_slow_reference_keeps(found, how):
    segments, _, labels = found
    expected = slow_nms(*found, how)
    rows = [i for i, _ in expected]
    kept_segments, kept_scores, kept_labels = nms(*found, how)
    np.testing.assert_allclose(kept_scores, [score for _, score in expected], rtol=1e-9)
    # Zero is the one score that many end with, "vanilla" making it.
    positive = kept_scores > 0
    np.testing.assert_array_equal(kept_segments[positive], segments[rows][positive])
    np.testing.assert_array_equal(kept_labels[positive], labels[rows][positive])
    assert len(kept_segments) == len(kept_labels) == len(rows)


@given(candidates, ways, st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=50)
def test_the_order_of_the_input_does_not_matter(found, how, seed):
    shuffled = np.random.default_rng(seed).permutation(len(found[1]))
    how = how.model_copy(update={"method": "gaussian"})
    for a, b in zip(nms(*found, how), nms(*(column[shuffled] for column in found), how), strict=True):
        np.testing.assert_array_equal(a, b)


@given(candidates, ways)
@settings(deadline=None, max_examples=50)
def test_keeping_fewer_keeps_the_first(found, how):
    few, many = (nms(*found, how.model_copy(update={"max_segments": n})) for n in (3, 1000))
    for a, b in zip(few, many, strict=True):
        np.testing.assert_array_equal(a, b[:3])


@given(st.builds(random_candidates, st.integers(0, 2**32 - 1), st.just(500)), ways, st.booleans())
@settings(deadline=None, max_examples=50)
def test_stopping_when_the_best_are_known_changes_nothing(found, how, ties):
    segments, scores, labels = found
    scores = scores / (1 + labels) ** 2  # the best are of few classes, which need more rounds than others
    if ties:
        scores = np.round(scores, 1)
    few, many = (
        nms(segments, scores, labels, how.model_copy(update={"max_segments": n, "multiclass": True}))
        for n in (30, 500)
    )
    for a, b in zip(few, many, strict=True):
        np.testing.assert_array_equal(a, b[:30])


@given(candidates, ways)
@settings(deadline=None, max_examples=50)
def test_classes_apart_are_classes_one_after_the_other(found, how):
    segments, scores, labels = found
    how = how.model_copy(update={"multiclass": True, "max_segments": 1000})
    alone = [nms(segments[labels == c], scores[labels == c], labels[labels == c], how) for c in range(4)]
    together = nms(*found, how)
    for c, part in enumerate(alone):
        for a, b in zip(part, together, strict=True):
            np.testing.assert_array_equal(a, b[together[2] == c])


def test_many_rare_classes_beside_a_frequent_one_take_little_memory():
    rare, often = 500, 20_000
    rng = np.random.default_rng(0)
    start = rng.uniform(0, 5000, rare + often)
    segments = np.stack([start, start + rng.uniform(1, 9, len(start))], axis=1)
    labels = np.concatenate([np.arange(1, rare + 1), np.zeros(often, np.int64)])
    tracemalloc.start()
    try:
        kept, _, _ = nms(segments, rng.random(len(start)), labels, NmsConfig(max_segments=200))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(kept) == 200
    assert peak < 500 * len(start)  # one table of them all has a cell of 8 bytes for each candidate and class


# Equal scores


@pytest.mark.parametrize("method", ["gaussian", "hard"])
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_of_equal_scores_the_first_is_first(order, method):
    segments = np.array([[0.0, 10.0], [1.0, 11.0], [30.0, 40.0]])  # the first two compete
    _, _, kept = nms(
        segments[list(order)],
        np.full(3, 0.5),
        np.array(order),
        NmsConfig(method=method, multiclass=False, voting_threshold=0),
    )
    beaten = max((0, 1), key=order.index)
    winners = [i for i in order if i != beaten]
    assert kept.tolist() == ([*winners, beaten] if method == "gaussian" else winners)


# Voting


def slow_voting(kept, segments, scores, threshold):
    voted = []
    for start, end in kept:
        near = []
        for (first, last), score in zip(segments, scores, strict=True):
            overlap = max(min(end, last) - max(start, first), 0.0)
            union = (end - start) + (last - first) - overlap
            if union > 0 and overlap / union >= threshold:
                near.append((score, first, last))
        total = sum(score for score, _, _ in near)
        mean = [sum(row[0] * row[side] for row in near) / total for side in (1, 2)] if total else [start, end]
        voted.append(mean)
    return np.array(voted).reshape(-1, 2)


@given(candidates, ways, st.sampled_from([0.3, 0.7]))
@settings(deadline=None, max_examples=100)
def test_voting_takes_the_mean_of_all_that_overlap(found, how, threshold):
    how = how.model_copy(update={"multiclass": False, "voting_threshold": 0.0})
    plain = nms(*found, how)
    voted = nms(*found, how.model_copy(update={"voting_threshold": threshold}))
    np.testing.assert_allclose(voted[0], slow_voting(plain[0], found[0], found[1], threshold), atol=1e-9)
    np.testing.assert_array_equal(voted[1], plain[1])
    np.testing.assert_array_equal(voted[2], plain[2])


def test_segments_without_length_stay_numbers():
    segments = np.array([[3.0, 3.0], [3.0, 3.0], [0.0, 6.0], [5.0, 5.0]])
    scores = np.array([0.9, 0.8, 0.5, 0.0])
    for method in ("gaussian", "hard"):
        how = NmsConfig(method=method, multiclass=False, voting_threshold=0.5)
        kept, kept_scores, _ = nms(segments, scores, np.zeros(4, np.int64), how)
        np.testing.assert_array_equal(kept, segments)
        np.testing.assert_array_equal(kept_scores, scores)


# Refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "cubic"}, "'gaussian', 'linear', 'vanilla', 'hard' or 'none'"),
        ({"sigma": 0.0}, "sigma"),
        ({"iou_threshold": 0.0}, "iou_threshold"),
        ({"iou_threshold": 1.5}, "iou_threshold"),
        ({"max_segments": 0}, "max_segments"),
        ({"voting_threshold": -0.1}, "voting_threshold"),
        ({"min_score": -1.0}, "min_score"),
        ({"min_score": float("nan")}, "min_score"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError) as caught:
        NmsConfig(**changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("segments", "scores", "message"),
    [
        ([[0.0, 1.0]], [float("nan")], "score nan"),
        ([[0.0, 1.0]], [-0.5], "score -0.5"),
        ([[0.0, float("inf")]], [0.5], "inf"),
        ([[2.0, 1.0]], [0.5], "[2.0, 1.0]"),
        ([[0.0, 1.0]], [0.5, 0.4], "(1, 2)"),
    ],
)
def test_candidates_that_are_none_are_refused(segments, scores, message):
    with pytest.raises(ValueError) as caught:
        nms(np.array(segments), np.array(scores), np.zeros(len(scores), np.int64), NmsConfig())
    assert message in str(caught.value)
