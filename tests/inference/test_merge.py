"""Late fusion: each method against its rule written out slowly, and the laws they keep."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitad.config.schema import NmsConfig
from bitad.data.detections import Detections
from bitad.inference.merge import _join, _match, merge
from bitad.inference.nms import nms

METHODS = ("soft-nms", "mean", "product", "wsf")
PAIRING = ("mean", "product", "wsf")


def random_detections(rng: np.random.Generator, n: int) -> Detections:
    start = rng.uniform(0, 20, n)
    return Detections(
        videos=("u", "v", "empty"),
        classes=("open", "close"),
        video=rng.integers(0, 2, n),
        segments=np.stack([start, start + rng.uniform(0.5, 10, n)], axis=1),
        scores=rng.uniform(0, 1, n),
        labels=rng.integers(0, 2, n),
        durations_s={"u": 30.0, "v": 30.5, "empty": 1.0},
    )


def random_pair(seed: int, n: int, m: int) -> tuple[Detections, Detections]:
    rng = np.random.default_rng(seed)
    return random_detections(rng, n), random_detections(rng, m)


pairs = st.builds(random_pair, st.integers(0, 2**32 - 1), st.integers(0, 30), st.integers(0, 30))
thresholds = st.sampled_from([0.2, 0.5, 0.8])


def rows(detections: Detections) -> list[tuple]:
    """Every row, in a fixed order: by video and class, then best first."""
    columns = (detections.video, detections.labels, -detections.scores, *detections.segments.T)
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


def assert_same(a: Detections, b: Detections) -> None:
    found, expected = rows(a), rows(b)
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-9, atol=1e-12)


def tiou(a, b) -> float:
    overlap = max(min(a[1], b[1]) - max(a[0], b[0]), 0.0)
    return overlap / ((a[1] - a[0]) + (b[1] - b[0]) - overlap)


# The rules, written out


def slow_fusion(a: Detections, b: Detections, threshold: float, method: str) -> Detections:
    """Pairs by descending tIoU, or ("wsf") each detection, by descending score, with a better one."""
    union = Detections.concatenate([a, b])
    side = [0] * len(a) + [1] * len(b)
    group = list(zip(union.video.tolist(), union.labels.tolist(), strict=True))
    overlap = {
        (i, j): tiou(union.segments[i], union.segments[j])
        for i in range(len(union))
        for j in range(len(union))
        if side[i] != side[j] and group[i] == group[j]
    }
    overlap = {pair: value for pair, value in overlap.items() if value >= threshold}
    partner: dict[int, int] = {}
    if method != "wsf":
        for i, j in sorted(overlap, key=lambda pair: -overlap[pair]):
            if i not in partner and j not in partner:
                partner |= {i: j, j: i}
    else:
        seen: list[int] = []
        for i in sorted(range(len(union)), key=lambda i: -union.scores[i]):
            alone = [j for j in seen if (i, j) in overlap and j not in partner]
            if alone:
                j = max(alone, key=lambda j: overlap[i, j])
                partner |= {i: j, j: i}
            seen.append(i)
    segments, scores, kept = union.segments.copy(), union.scores / 2, []
    for i in range(len(union)):
        j = partner.get(i)
        if j is None:
            kept += [i] if method != "product" else []
        elif i < j:
            kept.append(i)
            weights = union.scores[[i, j]] if method == "wsf" else [1.0, 1.0]
            segments[i] = np.average(union.segments[[i, j]], axis=0, weights=weights)
            both = union.scores[[i, j]]
            scores[i] = np.sqrt(both.prod()) if method == "product" else both.mean()
    return replace(union, segments=segments, scores=scores).take(np.array(kept, np.int64))


@given(pairs, thresholds, st.sampled_from(PAIRING))
@settings(deadline=None, max_examples=80)
def test_pairs_are_fused_as_the_rule_says(pair, threshold, method):
    merged = merge(*pair, method=method, settings=NmsConfig(iou_threshold=threshold))
    assert_same(merged, slow_fusion(*pair, threshold, method))


@given(pairs)
@settings(deadline=None, max_examples=50)
def test_soft_nms_goes_over_the_union_of_each_video(pair):
    how = NmsConfig(sigma=0.5, min_score=0.05)
    merged = merge(*pair, method="soft-nms", settings=how)
    for name in ("u", "v", "empty"):
        a, b = (part.of_video(name) for part in pair)
        segments, scores, labels = nms(
            np.concatenate([a.segments, b.segments]),
            np.concatenate([a.scores, b.scores]),
            np.concatenate([a.labels, b.labels]),
            how,
        )
        found = merged.of_video(name)
        np.testing.assert_array_equal(found.segments, segments)
        np.testing.assert_array_equal(found.scores, scores)
        np.testing.assert_array_equal(found.labels, labels)


# Laws


@given(pairs, thresholds, st.sampled_from(METHODS))
@settings(deadline=None, max_examples=60)
def test_the_two_sets_may_change_places(pair, threshold, method):
    a, b = pair
    how = NmsConfig(iou_threshold=threshold)
    assert_same(merge(a, b, method=method, settings=how), merge(b, a, method=method, settings=how))


@given(pairs, st.sampled_from(PAIRING))
@settings(deadline=None, max_examples=60)
def test_a_set_merged_with_itself_stays_what_it_is(pair, method):
    a, _ = pair
    assert_same(merge(a, a, method=method), a)


@given(pairs, st.sampled_from(PAIRING))
@settings(deadline=None, max_examples=30)
def test_merging_in_reverse_time_is_reversing_the_merged(pair, method):
    a, b = pair
    back = merge(a.reversed(), b.reversed(), method=method)
    assert back.basis == "reverse"
    assert_same(back.forward(), merge(a, b, method=method))


@given(pairs, st.sampled_from(METHODS))
@settings(deadline=None, max_examples=60)
def test_each_video_keeps_its_best_by_descending_score(pair, method):
    few, many = (merge(*pair, method=method, settings=NmsConfig(max_segments=n)) for n in (4, 1000))
    for name in few.videos:
        scores = few.of_video(name).scores
        assert (np.diff(scores) <= 0).all()
        np.testing.assert_array_equal(scores, many.of_video(name).scores[:4])


def test_a_product_with_what_the_other_set_did_not_find_is_nothing():
    assert len(merge(*random_pair(0, 20, 0), method="product")) == 0


def test_what_the_other_set_did_not_find_counts_half():
    a, b = random_pair(0, 20, 0)
    merged = merge(a, b, method="mean")
    assert_same(merged, replace(a, scores=a.scores / 2))
    low = merge(a, b, method="mean", settings=NmsConfig(min_score=0.25))
    assert sorted(low.scores) == sorted(a.scores[a.scores >= 0.5] / 2)


def test_two_detections_without_score_are_fused_to_their_mean():
    a, b = (random_pair(0, 1, 0)[0] for _ in range(2))
    a, b = (replace(a, segments=np.array([[0.0, 10.0]]), scores=np.zeros(1)), replace(b, scores=np.zeros(1)))
    b = replace(b, segments=np.array([[2.0, 10.0]]))
    np.testing.assert_array_equal(merge(a, b, method="wsf").segments, [[1.0, 10.0]])


def test_order_of_videos_and_classes_may_differ():
    a, b = random_pair(1, 30, 30)
    other = Detections.from_videos(
        {
            name: (part.segments, part.scores, 1 - part.labels)
            for name in ("v", "empty", "u")
            for part in [b.of_video(name)]
        },
        classes=("close", "open"),
        durations_s=b.durations_s,
    )
    for method in METHODS:
        assert_same(merge(a, other, method=method), merge(a, b, method=method))


def test_the_result_says_how_it_was_made():
    a, b = random_pair(1, 5, 5)
    a, b = replace(a, details={"run": "F"}), replace(b, details={"run": "B"})
    merged = merge(a, b, method="wsf", settings=NmsConfig(iou_threshold=0.7))
    assert merged.details["merged"]["method"] == "wsf"
    assert merged.details["merged"]["settings"]["iou_threshold"] == 0.7
    assert merged.details["merged"]["details"] == [{"run": "F"}, {"run": "B"}]
    assert merged.durations_s == a.durations_s


# More than two sets, and sets of different videos and classes


def random_sets(seed: int, counts: list[int], digits: int) -> list[Detections]:
    """Sets whose scores and times are rounded, so that many are equal, and whose videos and classes differ."""
    rng = np.random.default_rng(seed)
    sets = []
    for n in counts:
        found = random_detections(rng, n)
        found = replace(found, segments=found.segments.round(digits), scores=found.scores.round(digits))
        rows = np.isin(found.video, rng.integers(0, 2, 2)) & np.isin(found.labels, rng.integers(0, 2, 3))
        sets.append(without_what_is_empty(found.take(rows)))
    return sets


def without_what_is_empty(found: Detections) -> Detections:
    """As a file is that lists only what was found."""
    videos, video = np.unique(found.video, return_inverse=True)
    classes, labels = np.unique(found.labels, return_inverse=True)
    return replace(
        found,
        videos=tuple(found.videos[i] for i in videos),
        classes=tuple(found.classes[i] for i in classes),
        video=video.astype(np.int64),
        labels=labels.astype(np.int64),
    )


many = st.builds(
    random_sets,
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 15), min_size=3, max_size=5),
    st.sampled_from([0, 1, 9]),
)


def by_name(detections: Detections) -> list[tuple]:
    columns = (detections.scores.tolist(), *detections.segments.T.tolist())
    video, label = detections.video.tolist(), detections.labels.tolist()
    names = ((detections.videos[v], detections.classes[k]) for v, k in zip(video, label, strict=True))
    return sorted((*name, *row) for name, row in zip(names, zip(*columns, strict=True), strict=True))


@given(many, st.randoms(), st.sampled_from(METHODS))
@settings(deadline=None, max_examples=80)
def test_the_order_of_many_sets_does_not_matter(sets, random, method):
    mixed = random.sample(sets, len(sets))
    assert by_name(merge(*sets, method=method)) == by_name(merge(*mixed, method=method))


@given(many, st.sampled_from(METHODS))
@settings(deadline=None, max_examples=50)
def test_what_a_set_does_not_mention_is_as_if_it_had_found_nothing_there(sets, method):
    videos, classes = ("u", "v", "empty"), ("open", "close")

    def told(found: Detections) -> Detections:
        video = np.array([videos.index(found.videos[i]) for i in found.video], np.int64)
        labels = np.array([classes.index(found.classes[i]) for i in found.labels], np.int64)
        return replace(found, videos=videos, classes=classes, video=video, labels=labels)

    pair = sets[:2]
    assert by_name(merge(*pair, method=method)) == by_name(merge(*map(told, pair), method=method))


def slow_groups(sets: list[Detections], threshold: float, method: str) -> list[tuple]:
    """The rule written out: pairs one after the other, each joining its groups if these allow it."""
    union = Detections.concatenate(sets)
    source = [number for number, found in enumerate(sets) for _ in range(len(found))]
    kind = list(zip(union.video.tolist(), union.labels.tolist(), strict=True))
    n, scores = len(union), union.scores
    overlap = {
        frozenset((i, j)): tiou(union.segments[i], union.segments[j])
        for i in range(n)
        for j in range(i)
        if source[i] != source[j] and kind[i] == kind[j]
    }
    overlap = {pair: value for pair, value in overlap.items() if value >= threshold}
    if method == "wsf":
        order = sorted(overlap, key=lambda pair: (-min(scores[list(pair)]), -overlap[pair]))
    else:
        order = sorted(overlap, key=lambda pair: -overlap[pair])
    group = {i: frozenset([i]) for i in range(n)}
    for i, j in map(tuple, order):
        if group[i] != group[j] and all(frozenset((p, q)) in overlap for p in group[i] for q in group[j]):
            joined = group[i] | group[j]
            group.update(dict.fromkeys(joined, joined))
    found = []
    for members in map(sorted, set(group.values())):
        weights = scores[members] if method == "wsf" else np.ones(len(members))
        start, end = np.average(union.segments[members], axis=0, weights=weights)
        score = scores[members].sum() / len(sets)
        if method == "product":
            score = scores[members].prod() ** (1 / len(sets))
        if method != "product" or len(members) == len(sets):
            found.append(
                (union.videos[kind[members[0]][0]], union.classes[kind[members[0]][1]], score, start, end)
            )
    return sorted(found)


@given(
    st.builds(
        random_sets, st.integers(0, 2**32 - 1), st.lists(st.integers(0, 15), min_size=2, max_size=4), st.just(15)
    ),
    thresholds,
    st.sampled_from(PAIRING),
)
@settings(deadline=None, max_examples=80)
def test_groups_are_fused_as_the_rule_says(sets, threshold, method):
    merged = by_name(merge(*sets, method=method, settings=NmsConfig(iou_threshold=threshold)))
    expected = slow_groups(sets, threshold, method)
    assert [row[:2] for row in merged] == [row[:2] for row in expected]
    figures = [np.array([row[2:] for row in found]).reshape(-1, 3) for found in (merged, expected)]
    np.testing.assert_allclose(*figures, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", PAIRING)
@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_set_merged_with_itself_many_times_stays_what_it_is(method, n):
    a, _ = random_pair(3, 40, 0)
    assert_same(merge(*[a] * n, method=method), a)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_what_one_of_many_found_alone_counts_by_their_number(n):
    a, nothing = random_pair(0, 20, 0)
    rest = [nothing] * (n - 1)
    for method in ("mean", "wsf"):
        assert_same(merge(*rest, a, method=method), replace(a, scores=a.scores / n))
    assert len(merge(a, *rest, method="product")) == 0
    assert_same(merge(a, *rest, method="soft-nms"), merge(a, nothing, method="soft-nms"))


# Refusals


@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_rows_of_two_sets_join_as_those_of_many_do(n, m, data):
    every = [(a, n + b) for a in range(n) for b in range(m)]
    some = data.draw(st.lists(st.sampled_from(every), unique=True))
    a, b = np.array(some, np.int64).reshape(-1, 2).T
    source = np.repeat([0, 1], [n, m])
    assert _match(a, b, source).tolist() == _join(a, b, source).tolist()


def test_sets_that_cannot_be_merged_say_why():
    a, b = random_pair(2, 5, 5)
    for other, message in [
        (b.reversed(), "detections of basis forward and reverse"),
        (replace(b, durations_s={"u": 29.0}), "video u lasts 30.0 s in set 1 and 29.0 s in set 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            merge(a, other, method="mean")
    with pytest.raises(ValueError, match="1 set of detections: merging needs at least two"):
        merge(a, method="mean")
    with pytest.raises(ValueError, match="'median' is not one of soft-nms, mean, product, wsf"):
        merge(a, b, method="median")
