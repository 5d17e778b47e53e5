"""Each action gets the name of the best detection that covers it, in either playing direction."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import builders
import numpy as np
import pytest
from numpy.typing import NDArray

from bitad.data.annotations import Annotations
from bitad.data.detections import Detections
from bitad.evaluation.bootstrap import Draws
from bitad.evaluation.direction_sensitivity import (
    KEPT,
    LEARNT,
    NOTHING,
    Calls,
    ClassSensitivity,
    Sensitivity,
    called_classes,
    renamed,
    sensitivity,
)
from bitad.evaluation.mean_average_precision import evaluate

CLASSES = ("close", "jump", "open")
DURATION_S = 20.0


def truth(**videos: list[tuple[float, float, str]]) -> Annotations:
    return builders.truth(videos, CLASSES, DURATION_S)


def found(classes: tuple[str, ...] = CLASSES, **videos: list[tuple[float, float, str, float]]) -> Detections:
    return builders.found(videos, classes, DURATION_S)


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


def test_a_class_without_actions_has_no_name() -> None:
    calls = called_classes(truth(a=[(1, 3, "open")]), DETECTIONS)
    with pytest.raises(ValueError, match="class jump has no ground truth"):
        calls.most_frequent("jump")


def test_detections_on_the_reverse_clock_name_the_same_actions() -> None:
    forward, reverse = called_classes(ACTIONS, DETECTIONS), called_classes(ACTIONS, DETECTIONS.reversed())
    np.testing.assert_array_equal(forward.counts, reverse.counts)


def test_the_order_of_the_detectors_classes_does_not_matter() -> None:
    other = DETECTIONS.with_classes(CLASSES[::-1])
    np.testing.assert_array_equal(
        called_classes(ACTIONS, other).counts, called_classes(ACTIONS, DETECTIONS).counts
    )


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


TIOU = (0.3, 0.5, 0.7)
ROWS = [
    [(1, 3, "open"), (5, 7, "close"), (10, 12, "jump")],
    [(2, 4, "open"), (6, 8, "close"), (12, 15, "jump")],
]
SEEN = truth(**{name: ROWS[i % 2] for i, name in enumerate("abcdef")})


def all_found(names: dict[str, str | None], score: float = 0.9) -> Detections:
    """Every action of ``SEEN`` exactly where it is, under another name; none where that is None."""
    rows = {
        name: [
            (start, end, new, score)
            for (start, end), label in zip(video.segments.tolist(), video.labels, strict=True)
            if (new := names[label]) is not None
        ]
        for name, video in SEEN.videos.items()
    }
    return found(**rows)


OWN: dict[str, str | None] = {"open": "open", "close": "close", "jump": "jump"}
AS_EVER = all_found(OWN)


def verdicts(reversed_playback: Detections, trained: Detections = AS_EVER) -> dict[str, str]:
    made = sensitivity(
        SEEN, forward=[trained], backward=[trained], reversed_playback=[reversed_playback], tiou=TIOU
    )
    return {one.label: one.verdict for one in made.classes}


def test_classes_found_on_reversed_playback_as_ever_are_symmetric() -> None:
    assert verdicts(AS_EVER) == dict.fromkeys(CLASSES, "symmetric")


def test_a_class_called_by_its_partners_name_and_its_partner_by_its_is_swapping() -> None:
    assert verdicts(all_found({"open": "close", "close": "open", "jump": "jump"})) == {
        "open": "swapping",
        "close": "swapping",
        "jump": "symmetric",
    }


def test_a_class_that_is_not_found_on_reversed_playback_is_irreversible() -> None:
    assert verdicts(all_found(OWN | {"jump": None}))["jump"] == "irreversible"


def test_a_name_that_is_not_given_back_is_a_mistake_and_no_swap() -> None:
    made = verdicts(all_found({"open": "close", "close": "close", "jump": "open"}))
    assert made == {"open": "irreversible", "close": "irreversible", "jump": "irreversible"}


def test_a_class_found_less_well_under_its_own_name_is_irreversible() -> None:
    """It keeps its name, but half of its segments are no longer covered at the higher thresholds."""
    late = AS_EVER.segments + np.where(AS_EVER.labels == CLASSES.index("jump"), 0.6, 0.0)[:, None]
    made = sensitivity(
        SEEN, forward=[AS_EVER], backward=[AS_EVER], reversed_playback=[replace(AS_EVER, segments=late)], tiou=TIOU
    )
    jump = next(one for one in made.classes if one.label == "jump")
    assert jump.called == "jump"
    assert jump.verdict == "irreversible"
    assert jump.kept == pytest.approx(jump.reversed_playback)
    assert 0 < jump.reversed_playback < 0.9


def test_what_no_network_has_learnt_is_not_sorted() -> None:
    assert verdicts(AS_EVER, trained=all_found(OWN | {"jump": None}))["jump"] == "not learnt"
    nothing = all_found(dict.fromkeys(CLASSES))
    made = sensitivity(SEEN, forward=[nothing], backward=[nothing], reversed_playback=[nothing], tiou=TIOU)
    assert {one.verdict for one in made.classes} == {"not learnt"}
    assert [one.kept for one in made.classes] == [None] * 3


def test_the_figures_are_those_of_the_evaluation() -> None:
    forward, backward = AS_EVER, all_found(OWN | {"jump": "open"})
    reversed_playback = all_found(OWN | {"open": "close"})
    made = sensitivity(
        SEEN, forward=[forward], backward=[backward], reversed_playback=[reversed_playback], tiou=TIOU
    )
    for found_there, figures in (
        (forward, [one.forward for one in made.classes]),
        (backward, [one.backward for one in made.classes]),
        (reversed_playback, [one.reversed_playback for one in made.classes]),
    ):
        np.testing.assert_allclose(figures, evaluate(SEEN, found_there, tiou=TIOU).ap.mean(axis=1))
    assert [one.segments for one in made.classes] == [6, 6, 6]


def test_several_networks_count_as_their_mean() -> None:
    worse = all_found(OWN | {"jump": None})
    made = sensitivity(
        SEEN, forward=[AS_EVER, worse], backward=[AS_EVER], reversed_playback=[worse, AS_EVER], tiou=TIOU
    )
    jump = next(one for one in made.classes if one.label == "jump")
    assert (jump.forward, jump.backward, jump.reversed_playback) == pytest.approx((0.5, 1.0, 0.5))
    assert jump.called_share == 0.5
    assert made.networks == (2, 1)


def test_only_classes_with_ground_truth_are_sorted() -> None:
    few = truth(a=[(1, 3, "open")])
    one = found(a=[(1, 3, "close", 0.9)])
    made = sensitivity(few, forward=[one], backward=[one], reversed_playback=[one], tiou=TIOU)
    assert [c.label for c in made.classes] == ["open"]


def test_each_f_needs_its_detections_on_reversed_playback() -> None:
    with pytest.raises(ValueError, match="2 F, 1 B and 1 F on reverse playback; give at least one F"):
        sensitivity(SEEN, forward=[AS_EVER, AS_EVER], backward=[AS_EVER], reversed_playback=[AS_EVER], tiou=TIOU)
    with pytest.raises(ValueError, match="1 F, 0 B"):
        sensitivity(SEEN, forward=[AS_EVER], backward=[], reversed_playback=[AS_EVER], tiou=TIOU)


# Verdicts with their evidence.


def judged(
    ground_truth: Annotations,
    reversed_playback: Detections,
    trained: Detections | None = None,
) -> dict[str, ClassSensitivity]:
    """Of one F and one B, which find everything by default."""
    trained = everything(ground_truth, OWN) if trained is None else trained
    made = sensitivity(
        ground_truth, forward=[trained], backward=[trained], reversed_playback=[reversed_playback], tiou=TIOU
    )
    return {one.label: one for one in made.classes}


def everything(ground_truth: Annotations, names: dict[str, str | None]) -> Detections:
    rows = {
        name: [
            (start, end, new, 0.9)
            for (start, end), label in zip(video.segments.tolist(), video.labels, strict=True)
            if (new := names[label]) is not None
        ]
        for name, video in ground_truth.videos.items()
    }
    return found(**rows)


SWAPPED: dict[str, str | None] = {"open": "close", "close": "open", "jump": "jump"}


def test_every_verdict_names_what_decided_it() -> None:
    made = judged(SEEN, all_found(SWAPPED | {"jump": None}))
    assert made["open"].evidence is not None
    assert made["open"].evidence.quantity == "swap margin"
    margin = made["open"].evidence.estimate
    assert (margin.value, margin.low, margin.high) == (1, 1, 1)
    assert made["jump"].evidence is not None
    assert made["jump"].evidence.quantity == "kept"
    assert made["jump"].evidence.estimate.high == 0
    missing = judged(SEEN, AS_EVER, trained=all_found(OWN | {"jump": None}))["jump"].evidence
    assert missing is not None
    assert (missing.quantity, missing.estimate.high) == ("learnt", 0)


@pytest.mark.parametrize(
    ("videos", "verdict"), [("abcdef", "symmetric"), ("abcde", "symmetric"), ("abcd", "undecided")]
)
def test_below_five_segments_nothing_is_decided(videos: str, verdict: str) -> None:
    few = truth(**{name: [(1, 3, "jump")] for name in videos})
    jump = judged(few, everything(few, OWN))["jump"]
    assert jump.verdict == verdict
    assert (jump.evidence is None) == (verdict == "undecided")


def test_one_video_decides_nothing_however_many_segments_it_has() -> None:
    one = truth(a=[(2 * i, 2 * i + 1, "jump") for i in range(8)])
    assert judged(one, everything(one, OWN))["jump"].verdict == "undecided"


def test_a_swap_needs_enough_segments_of_both_classes() -> None:
    rows = [(1, 3, "open"), (5, 7, "close")]
    few = truth(**{name: rows[: 1 + (name < "e")] for name in "abcdef"})
    made = judged(few, everything(few, SWAPPED))
    assert (made["close"].segments, made["open"].segments) == (4, 6)
    assert (made["close"].verdict, made["open"].verdict) == ("undecided", "undecided")
    assert made["open"].evidence is not None
    assert made["open"].evidence.quantity == "swap margin"


def test_a_class_near_the_border_is_undecided() -> None:
    """In two of six videos, the jump is found less exactly in reverse playback: too little for tIoU 0.7."""
    late = np.where((AS_EVER.labels == CLASSES.index("jump")) & (AS_EVER.video < 2), 0.6, 0.0)
    jump = judged(SEEN, replace(AS_EVER, segments=AS_EVER.segments + late[:, None]))["jump"]
    assert jump.evidence is not None
    kept = jump.evidence.estimate
    assert (jump.verdict, jump.evidence.quantity) == ("undecided", "kept")
    assert jump.kept == pytest.approx(kept.value)
    assert kept.low < KEPT < kept.high


def test_networks_that_disagree_decide_nothing() -> None:
    """Two of three F swap: over videos alone, the margin would be 1 / 3 without any doubt."""
    networks = [all_found(SWAPPED), all_found(SWAPPED), AS_EVER]
    made = sensitivity(SEEN, forward=[AS_EVER] * 3, backward=[AS_EVER], reversed_playback=networks, tiou=TIOU)
    opened = next(one for one in made.classes if one.label == "open")
    assert opened.evidence is not None
    assert opened.evidence.estimate.value == pytest.approx(1 / 3)
    assert (opened.evidence.estimate.low, opened.evidence.estimate.high) == (-1, 1)
    assert opened.verdict == "undecided"


def test_intervals_are_those_of_slow_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every resample as annotations and detections of copied videos."""
    monkeypatch.setattr("bitad.evaluation.direction_sensitivity._RESAMPLES", 100)
    labels = all_found(SWAPPED).labels.copy()
    labels[np.array([0, 7, 9])] = CLASSES.index("jump")
    late = np.where(labels == CLASSES.index("jump"), 0.6, 0.0) * (AS_EVER.video < 3)
    reversed_playback = replace(
        AS_EVER,
        segments=AS_EVER.segments + late[:, None],
        labels=labels,
        scores=np.linspace(0.9, 0.1, len(labels)),
    )
    made = judged(SEEN, reversed_playback)
    draws = Draws.of(SEEN.videos, 100, 0)

    def copied(column: int) -> tuple[Annotations, Detections, Detections]:
        names = [(f"{n} {k}", n) for n, i in draws.number.items() for k in range(draws.times[i, column])]
        videos = {copy: replace(SEEN.videos[name], name=copy) for copy, name in names}
        sets = []
        for one in (AS_EVER, reversed_playback):
            columns = {}
            for copy, name in names:
                of_video = one.of_video(name)
                columns[copy] = (of_video.segments, of_video.scores, of_video.labels)
            sets.append(Detections.from_videos(columns, classes=CLASSES))
        return Annotations(videos, CLASSES), *sets

    kept: list[NDArray[np.float64]] = []
    margins = []
    for column in range(101):
        actions, own, other = copied(column)
        precision = [evaluate(actions, one, tiou=TIOU).ap.mean(axis=1) for one in (own, other)]
        kept.append(precision[1] / precision[0])
        counts = called_classes(actions, other).counts
        close, opened = (CLASSES.index(name) for name in ("close", "open"))
        mutual = [
            (counts[a, b] - np.delete(counts[a], b).max()) / counts[a].sum()
            for a, b in ((close, opened), (opened, close))
        ]
        margins.append(min(mutual))
    for label, quantity, figures in (
        ("jump", "kept", np.array(kept)[:, CLASSES.index("jump")]),
        ("open", "swap margin", np.array(margins)),
        ("close", "swap margin", np.array(margins)),
    ):
        evidence = made[label].evidence
        assert evidence is not None
        assert evidence.quantity == quantity
        estimate = evidence.estimate
        expected = (figures[0], *np.percentile(figures[1:], [2.5, 97.5]))
        assert estimate.low < estimate.value < estimate.high
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx(expected, abs=1e-12)


def small_study(seed: int) -> Sensitivity:
    """Ten videos, 2 to 8 segments a class; on reverse playback, F finds two thirds under the time-reversed label."""
    rng = np.random.default_rng(seed)
    reverse = (2, 1, 0)
    rows, of_f, of_reversed = {}, {}, {}
    for name in map(str, range(10)):
        labels = rng.integers(0, 3, 2)
        spans = [(1.0, 3.0), (5.0, 8.0)]
        rows[name] = [(*span, CLASSES[label]) for span, label in zip(spans, labels, strict=True)]
        for video, truly in ((of_f, labels), (of_reversed, [reverse[label] for label in labels])):
            video[name] = []
            for (start, end), label in zip(spans, truly, strict=True):
                right = rng.random() < 0.65
                shift = 0.0 if rng.random() < 0.9 else 10.0
                named = label if right else rng.integers(0, 3)
                score = float(rng.random() + 0.3 * right)
                video[name].append((start + shift, end + shift, CLASSES[named], score))
    trained = found(**of_f)
    return sensitivity(
        truth(**rows), forward=[trained], backward=[trained], reversed_playback=[found(**of_reversed)], tiou=TIOU
    )


def test_exact_swaps_of_few_segments_are_not_called_irreversible() -> None:
    """The time-reversed label of open is close, exactly. Without intervals, chance called many irreversible."""
    by_point, by_interval = Counter[str](), Counter[str]()
    for seed in range(40):
        classes = {one.label: one for one in small_study(seed).classes}
        for one in classes.values():
            if one.label == "jump":
                continue
            partner = classes.get(one.called)
            learnt = (one.forward + one.backward) / 2
            if partner is not None and one.called != one.label == partner.called:
                by_point["swapping"] += 1
            elif learnt < LEARNT:
                by_point["not learnt"] += 1
            else:
                kept = one.called == one.label and one.reversed_playback >= KEPT * learnt
                by_point["symmetric" if kept else "irreversible"] += 1
            by_interval[one.verdict] += 1
    assert by_point["irreversible"] >= 8
    assert set(by_interval) == {"undecided", "swapping"}
