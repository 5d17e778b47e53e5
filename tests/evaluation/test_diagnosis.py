"""Error diagnosis: planted errors, recorded figures of DETAD, and a slow reference that does it one by one."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import truth
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import bitad
from bitad.data.annotations import Annotations
from bitad.data.detections import Detections, read_detections
from bitad.data.formats.database import read_annotations
from bitad.evaluation.diagnosis import (
    ERRORS,
    GROUPS,
    KINDS,
    LEAST_PRECISION,
    LEAST_TIOU,
    Bin,
    Diagnosis,
    classify,
    diagnose,
    matched_scores,
    missed,
)

SHARED = Path(__file__).parents[2] / "../shared"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason=f"the reference folder {SHARED} is missing")


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


def test_below_the_least_tiou_a_threshold_still_counts() -> None:
    rows = [("v", 0.0, 10.0, "a", 0.9), ("v", 9.0, 15.0, "a", 0.8), ("v", 9.5, 16.0, "a", 0.7)]
    kinds = classify(TRUTH, found(rows), tiou=[0.05, 0.5])  # tIoU 1, 0.067 and 0.03
    assert [named(row) for row in kinds] == [
        ["true_positive", "true_positive"],
        ["double_detection", "background"],
        ["background", "background"],
    ]


@pytest.mark.parametrize(("wrong", "is_missed"), [(18, False), (19, True)])
def test_a_match_after_nineteen_errors_counts_as_missed(wrong: int, is_missed: bool) -> None:
    rows = [("v", 30.0, 32.0, "a", 0.9)] * wrong + [("v", 0.0, 10.0, "a", 0.5)]
    result = bitad.diagnose(truth({"v": [(0, 10, "a")]}, ("a",)), found(rows), tiou=[0.5])
    assert result.missed.tolist() == [[is_missed]]  # a precision of 1/19, or of 0.05
    assert result.ap[0, 0] == pytest.approx(1 / (wrong + 1))
    assert result.missed_ap_n[0, 0] == pytest.approx(0 if is_missed else 1 / (wrong + 1))
    assert result.recall[0, 0] == 0  # beyond the ten best


def test_a_bin_leaves_out_detections_that_match_outside_it_at_any_threshold() -> None:
    long_and_short = truth({"v": [(0, 10, "a"), (20, 22, "a")]}, ("a",))
    rows = [("v", 0.0, 6.0, "a", 0.9), ("v", 20.0, 22.0, "a", 0.8)]  # the first is right at 0.5, wrong at 0.7
    result = bitad.diagnose(long_and_short, found(rows), tiou=[0.5, 0.7])
    short, long = result.characteristics["length"]
    assert (short.segments, short.sensitivity) == (1, 1.0)
    assert (long.segments, long.sensitivity) == (1, 0.5)


# By kind, a detection near a segment [0, 10]: start, end, and whether its label is the other one.
NEAR = {
    "double_detection": (1.0, 10.0, False),
    "wrong_label": (0.0, 9.0, True),
    "localization": (2.0, 5.0, False),
    "confusion": (6.0, 9.5, True),
    "background": (40.0, 45.0, False),
}


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.booleans(), st.sets(st.sampled_from(ERRORS))), min_size=1, max_size=9
    )
)
def test_planted_errors_are_counted_exactly_and_removing_all_leaves_the_recall(planted: list[Any]) -> None:
    """Segments 100 s apart; some are found, and errors of some kinds are planted near each."""
    segments, rows, kinds = [], [], []
    for place, (label, is_found, errors) in enumerate(planted):
        start = 100.0 * place
        segments.append((start, start + 10, label))
        near = [("true_positive", (0.0, 10.0, False))] if is_found else []
        near += [(kind, NEAR[kind]) for kind in errors if is_found or kind != "double_detection"]
        for kind, (first, last, is_other) in near:
            called = "ba"["ab".index(label)] if is_other else label
            score = 0.9 if kind == "true_positive" else 0.5 + 0.001 * len(rows)
            rows.append(("v", start + first, start + last, called, score))
            kinds.append(kind)
    annotations = truth({"v": segments}, ("a", "b")).map(lambda video: replace(video, duration_s=1000.0))
    detections = found(rows)
    assert named(classify(annotations, detections, tiou=[0.5])[:, 0]) == kinds
    result = diagnose(annotations, detections, tiou=[0.5])
    known = {label for _, _, label in segments}
    expected = Counter(kind for kind, row in zip(kinds, rows, strict=True) if row[3] in known)
    of_class = Counter(row[3] for row in rows)
    if all(of_class[name] <= GROUPS * count for name, count in zip(result.classes, result.segments, strict=True)):
        assert kinds_of(result.class_kinds.sum(axis=(0, 2))) == {kind: expected[kind] for kind in KINDS}
    recall = [np.mean([is_found for name, is_found, _ in planted if name == label]) for label in result.classes]
    np.testing.assert_allclose(result.top_ap_n_without["all"][:, 0], recall)
    np.testing.assert_allclose(result.recall[:, 0], recall)
    assert result.missed[:, 0].tolist() == [not is_found for _, is_found, _ in planted]


# What annotations and detections need not have


def test_detections_and_classes_without_ground_truth_and_classes_without_detections() -> None:
    annotations = truth(
        {"v": [(0, 10, "a"), (20, 30, "b"), (40, 40, "c"), (50, 60, "a")], "empty": [], "late": [(0, 5, "b")]},
        ("a", "b", "c", "never"),
    )
    rows = found(
        [
            ("v", 0.0, 10.0, "a", 0.9),
            ("v", 20.0, 30.0, "stranger", 0.8),
            ("v", 39.0, 41.0, "c", 0.7),
            ("unknown", 0.0, 10.0, "a", 0.6),
            ("v", 20.0, 30.0, "a", 0.5),
        ]
    )
    diagnosis = bitad.diagnose(annotations, rows, tiou=[0.5])
    assert diagnosis.classes == ("a", "b")  # "never" is no label of the videos
    assert diagnosis.classes_dropped == ("c",)
    assert (diagnosis.segments.tolist(), diagnosis.segments_dropped) == ([2, 2], 1)
    assert diagnosis.positives == pytest.approx(4 / 3)
    assert diagnosis.detections == 3
    assert diagnosis.detections_by_unknown_class == {"stranger": 1, "c": 1}
    assert diagnosis.detections_by_unknown_video == {"unknown": 1}
    assert kinds_of(diagnosis.class_kinds[0, :, 0]) == dict.fromkeys(KINDS, 0) | {
        "true_positive": 1,
        "wrong_label": 1,
        "background": 1,
    }
    assert diagnosis.class_kinds[1].sum() == 0
    assert diagnosis.ap.ravel().tolist() == [0.5, 0.0]
    assert diagnosis.missed.ravel().tolist() == [False, True, True, True]
    assert diagnosis.confusion.counts.tolist() == [[1, 0, 1], [1, 0, 1]]
    by_length = {one.name: (one.segments, one.sensitivity) for one in diagnosis.characteristics["length"]}
    assert by_length == {"S": (1, 0.0), "L": (3, 0.25)}
    json.dumps(diagnosis.to_json(), allow_nan=False)


def test_no_detection_of_any_class_misses_everything() -> None:
    diagnosis = bitad.diagnose(TRUTH, found([("v", 0.0, 10.0, "stranger", 0.9)]), tiou=[0.5])
    assert (diagnosis.average_map, diagnosis.detections) == (0.0, 0)
    assert diagnosis.missed.all()
    assert set(diagnosis.shares.values()) == {None}
    assert not np.concatenate(list(diagnosis.gains.values())).any()
    json.dumps(diagnosis.to_json(), allow_nan=False)


def test_an_unknown_duration_leaves_coverage_out() -> None:
    known, unknown = (truth({name: [(0, 10, "a"), (20, 25, "b")]}).videos[name] for name in "vw")
    unknown = replace(unknown, duration_s=float("inf"))
    rows = found([("v", 0.0, 10.0, "a", 0.9)])
    both = bitad.diagnose(Annotations({"v": known, "w": unknown}, ("a", "b")), rows, tiou=[0.5])
    assert [one.segments for one in both.characteristics["coverage"]] == [1, 1]
    assert [one.segments for one in both.characteristics["length"]] == [2, 2]
    without = bitad.diagnose(Annotations({"v": replace(known, duration_s=float("inf"))}, ("a", "b")), rows)
    assert set(without.characteristics) == {"length", "num-instances"}


def test_quantile_bins_are_equally_filled_and_equal_values_share_one() -> None:
    rows = [(10.0 * i, 10.0 * i + 1 + 0.1 * i, "a") for i in range(10)]
    none = found([("v", 0.0, 10.0, "a", 0.9)])
    diagnosis = bitad.diagnose(truth({"v": rows}), none)
    bins = diagnosis.characteristics["length"]
    assert [(one.name, one.segments) for one in bins] == [(name, 2) for name in ("XS", "S", "M", "L", "XL")]
    assert [one.high for one in bins] == pytest.approx([1.1, 1.3, 1.5, 1.7, float("inf")])
    (only,) = diagnosis.characteristics["num-instances"]
    assert (only.name, only.low, only.high, only.segments) == ("all", 0.0, float("inf"), 10)


@pytest.mark.parametrize("option", [{"tiou": []}, {"tiou": [0.0]}, {"confusion_tiou": 1.5}])
def test_thresholds_are_checked(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        bitad.diagnose(TRUTH, found([("v", 0.0, 10.0, "a", 0.9)]), **option)


# The slow reference


class Slow:
    """Every figure one by one, as the definitions' text says, at several thresholds."""

    def __init__(self, annotations: Annotations, rows: Detections, tiou: Sequence[float], ties: str) -> None:
        self.tiou, self.ties = tiou, ties
        self.segments = []  # video, start, end, label, number of segments in the video
        labels = set()
        for video in annotations.videos.values():
            for (start, end), label in zip(video.segments.tolist(), video.labels, strict=True):
                labels.add(label)
                if end > start and (end - start) / video.duration_s <= 1:
                    self.segments.append((video.name, start, end, label, len(video.labels)))
        self.classes = sorted({segment[3] for segment in self.segments})
        self.positives = len(self.segments) / max(1, len(labels))
        self.rows = rows.to_rows()
        self.matched = [{label: self.match(label, t) for label in self.classes} for t in tiou]

    @staticmethod
    def overlap(one: tuple[Any, ...], other: tuple[Any, ...]) -> float:
        common = max(min(one[2], other[2]) - max(one[1], other[1]), 0.0)
        return common / max((one[2] - one[1]) + (other[2] - other[1]) - common, 1e-8)

    def count(self, label: str) -> int:
        return sum(segment[3] == label for segment in self.segments)

    def ranked(self, label: str) -> list[int]:
        return sorted((i for i, r in enumerate(self.rows) if r[3] == label), key=lambda i: -self.rows[i][4])

    def match(self, label: str, t: float) -> list[tuple[int, int | None]]:
        """The detections of a class, best first, each with its segment."""
        taken: set[int] = set()
        matched: list[tuple[int, int | None]] = []
        for i in self.ranked(label):
            free = []
            for j, segment in enumerate(self.segments):
                if segment[0] == self.rows[i][0] and segment[3] == label and j not in taken:
                    free.append((self.overlap(self.rows[i], segment), j))
            best = max(free, default=(0.0, -1))
            matched.append((i, best[1] if best[0] >= t else None))
            if best[0] >= t:
                taken.add(best[1])
        return matched

    def error(self, i: int, t: float) -> str:
        row = self.rows[i]
        best, chosen = 0.0, None
        for segment in self.segments:
            if segment[0] == row[0]:
                value = self.overlap(row, segment)
                mine = self.ties == "own" and segment[3] == row[3] and chosen is not None and chosen != row[3]
                if value > best or (value == best > 0 and mine):
                    best, chosen = value, segment[3]
        if best >= t:
            return "double_detection" if chosen == row[3] else "wrong_label"
        if best >= 0.1:
            return "localization" if chosen == row[3] else "confusion"
        return "background"

    def ap(self, hits: list[bool], segments: int, positives: float) -> float:
        points = []
        for k, hit in enumerate(hits):
            if hit:
                right = sum(hits[: k + 1])
                recall = right / segments
                points.append(recall * positives / (recall * positives + k + 1 - right))
        return sum(max(points[k:]) for k in range(len(points))) / segments

    def mean_ap(self, change: Callable[..., list[bool]], *, segments: Callable[[str], int]) -> float:
        """The mean of AP_N over thresholds and the classes with segments, of hits that ``change`` chooses."""
        values = []
        for t, matched in zip(self.tiou, self.matched, strict=True):
            for label in self.classes:
                if segments(label):
                    values.append(self.ap(change(label, t, matched[label]), segments(label), self.positives))
        return float(np.mean(values)) if values else float("nan")

    def top(self, label: str, matched: list[Any]) -> list[Any]:
        return matched[: 10 * self.count(label)]

    def without(self, kinds: Sequence[str]) -> float:
        def hits(label: str, t: float, matched: list[Any]) -> list[bool]:
            kept = []
            for i, j in self.top(label, matched):
                if j is not None or self.error(i, t) not in kinds:
                    kept.append(j is not None)
            return kept

        return self.mean_ap(hits, segments=self.count)

    def sensitivity(self, inside: Callable[[tuple[Any, ...]], bool]) -> float:
        others = set()
        for matched in self.matched:
            for pairs in matched.values():
                others |= {i for i, j in pairs if j is not None and not inside(self.segments[j])}

        def hits(label: str, t: float, matched: list[Any]) -> list[bool]:
            return [j is not None for i, j in matched if i not in others]

        return self.mean_ap(hits, segments=lambda k: sum(s[3] == k and inside(s) for s in self.segments))

    def missed(self) -> list[list[bool]]:
        found: list[list[bool]] = []
        for matched in self.matched:
            certain = set()
            for label, pairs in matched.items():
                for k in range(len(pairs)):
                    right = sum(j is not None for _, j in pairs[: k + 1])
                    weighted = right / self.count(label) * self.positives
                    if pairs[k][1] is not None and weighted / (weighted + k + 1 - right) > 0.05:
                        certain.add(pairs[k][1])
            found.append([j not in certain for j in range(len(self.segments))])
        return found


TIMES = st.tuples(st.integers(0, 12), st.integers(0, 6)).map(lambda pair: (pair[0] / 2, sum(pair) / 2))
SEGMENTS = st.dictionaries(st.sampled_from("uv"), st.lists(st.tuples(TIMES, st.sampled_from("ab")), max_size=5))
ROWS = st.lists(
    st.tuples(st.sampled_from("uvw"), TIMES, st.sampled_from("abx"), st.integers(1, 60)), min_size=1, max_size=60
)


@settings(deadline=None, max_examples=120)
@given(SEGMENTS, ROWS, st.sampled_from(("own", "file")), st.sampled_from(([0.5], [0.3, 0.5, 0.8], [0.05])))
def test_figures_are_those_of_the_slow_reference(
    segments: dict[str, list[Any]], rows: list[Any], ties: Any, tiou: list[float]
) -> None:
    annotations = truth({name: [(*times, label) for times, label in listed] for name, listed in segments.items()})
    annotations = annotations.map(lambda video: replace(video, duration_s=5.0))
    detections = found([(name, *times, label, score / 60) for name, times, label, score in rows])
    slow = Slow(annotations, detections, tiou, ties)
    assume(slow.segments)
    result = diagnose(annotations, detections, tiou=tiou, ties=ties, bins="thumos14")

    kinds = [[slow.error(i, t) for t in tiou] for i in range(len(detections))]
    for column, matched in enumerate(slow.matched):
        for i, j in (pair for pairs in matched.values() for pair in pairs):
            kinds[i][column] = "true_positive" if j is not None else kinds[i][column]
    assert [named(row) for row in classify(annotations, detections, tiou=tiou, ties=ties)] == kinds

    assert result.positives == pytest.approx(slow.positives)
    assert result.top_ap_n.mean() == pytest.approx(slow.without([]))
    for kind in ERRORS:
        assert result.top_ap_n_without[kind].mean() == pytest.approx(slow.without([kind]))
    assert result.top_ap_n_without["all"].mean() == pytest.approx(slow.without(ERRORS))
    np.testing.assert_allclose(result.top_ap_n_without["all"], result.recall)
    assert result.missed.T.tolist() == slow.missed()
    for k, label in enumerate(slow.classes):
        count = slow.count(label)
        top = slow.top(label, slow.ranked(label))
        for column in range(len(tiou)):
            expected = Counter(kinds[i][column] for i in top)
            assert kinds_of(result.class_kinds[k, :, column]) == {kind: expected[kind] for kind in KINDS}
        assert result.class_kinds[k, :, 0].sum() == min(len(slow.ranked(label)), GROUPS * count)
    for group in range(GROUPS):
        members = [
            i
            for label in slow.classes
            for i in slow.ranked(label)[group * slow.count(label) : (group + 1) * slow.count(label)]
        ]
        expected = Counter(kinds[i][-1] for i in members)
        assert kinds_of(result.group_kinds[group, :, -1]) == {kind: expected[kind] for kind in KINDS}
    for name, value in {"length": lambda s: s[2] - s[1], "num-instances": lambda s: s[4]}.items():
        for one in result.characteristics[name]:
            inside = [one.low < value(s) <= one.high for s in slow.segments]
            assert one.segments == sum(inside)
            if sum(inside):
                figure = slow.sensitivity(lambda s, one=one, value=value: one.low < value(s) <= one.high)
                assert one.sensitivity == pytest.approx(figure)
                rates = [np.mean([m for m, k in zip(row, inside, strict=True) if k]) for row in slow.missed()]
                np.testing.assert_allclose(one.missed, rates)


# The documented figures


def test_the_page_names_every_key_of_the_json() -> None:
    page = (Path(__file__).parents[2] / "docs/diagnosis.md").read_text(encoding="utf-8")
    content = bitad.diagnose(TRUTH, found([row for row, _ in PLANTED])).to_json()
    keys = {*content, *content["settings"], *content["top"], *content["groups"]["1G"], *content["gains"]["all"]}
    keys |= {*content["gains"], *content["missed"], *content["confusion"], *content["characteristics"]}
    keys |= set(next(iter(content["characteristics"]["length"].values())))
    assert {key for key in keys if f"`{key}`" not in page and f"| {key}" not in page} == set()


# Recorded figures of the published tool


def expected_files() -> list[Path]:
    return sorted((SHARED / "fixtures/detad").glob("*_expected.json"))


def recorded_case(path: Path) -> tuple[Annotations, Detections]:
    """Ground truth and detections of a file of expected figures."""
    if path.name.startswith("actionformer"):
        truth_file, found_file = "thumos14.json.gz", "actionformer_detections.json.gz"
        folder = SHARED / "data/thumos14"
    else:
        folder, case = path.parent, path.name.removesuffix("_expected.json")
        truth_file, found_file = f"{case}_gt.json.gz", f"{case}_pred.json.gz"
    return read_annotations(folder / truth_file), read_detections(folder / found_file)


def by_bin(diagnosis: Diagnosis, figure: Callable[[Bin], object], *, empty: bool) -> dict[str, dict[str, object]]:
    """A figure of every bin; of those without segments only with ``empty``."""
    return {
        name: {one.name: figure(one) for one in bins if empty or one.segments}
        for name, bins in diagnosis.characteristics.items()
    }


def of_missed(one: Bin) -> np.ndarray:
    assert one.missed is not None
    return one.missed


def gains(diagnosis: Diagnosis) -> dict[str, object]:
    return {kind: gain.mean() for kind, gain in diagnosis.gains.items() if kind != "all"}


def groups_of(figures: Sequence[object]) -> dict[str, object]:
    return {f"{number}G": figure for number, figure in enumerate(figures, start=1)}


def kinds_of(counts: np.ndarray) -> dict[str, list[int]]:
    return dict(zip(KINDS, counts.tolist(), strict=True))


# How each recorded key is called here. A file with another key fails.
FIGURES: dict[str, Callable[[Diagnosis], object]] = {
    "average_mAP": lambda d: d.average_map,
    "mAP": lambda d: d.ap.mean(axis=0),
    "average_mAP_N": lambda d: d.average_map_n,
    "mAP_N": lambda d: d.ap_n.mean(axis=0),
    "AP_N_per_class": lambda d: dict(zip(d.classes, d.ap_n, strict=True)),
    "top_10G": lambda d: {
        "average_mAP_N": d.top_ap_n.mean(),
        "mAP_N": d.top_ap_n.mean(axis=0),
        "share": d.shares,
    },
    "fp_profile_share": lambda d: groups_of(d.group_shares),
    "fp_profile_size": lambda d: groups_of(d.group_sizes.tolist()),
    "fp_profile_count_per_tiou": lambda d: groups_of([kinds_of(counts) for counts in d.group_kinds]),
    "gain_average_mAP_N": gains,
    "gain_mAP_N_per_tiou": lambda d: {kind: gain for kind, gain in d.gains.items() if kind != "all"},
    "sensitivity_average_mAP_N": lambda d: by_bin(d, lambda one: one.sensitivity, empty=True),
    "false_negative_rate": lambda d: by_bin(d, lambda one: of_missed(one).mean(), empty=False),
    "false_negative_rate_per_tiou": lambda d: by_bin(d, of_missed, empty=False),
    "share_of_ground_truth": lambda d: by_bin(d, lambda one: one.share, empty=False),
    "false_negative_all_per_tiou": lambda d: d.missed.mean(axis=0),
    "false_negative_run_mAP_N": lambda d: d.missed_ap_n.mean(axis=0),
    "counts": lambda d: {
        "ground_truth_kept": d.segments.sum(),
        "N_average_instances_per_class": d.positives,
        "predictions": d.detections,
        "predictions_in_top_10G": d.group_sizes.sum(),
        "per_bin": by_bin(d, lambda one: one.segments, empty=True),
    },
    "settings": lambda d: {
        "tiou": d.tiou,
        "subset": d.subsets[0],
        "bins": d.bins,
        "borders": {
            key: [d.characteristics[name][0].low, *(one.high for one in d.characteristics[name])]
            for key, name in {
                "coverage": "coverage",
                "length_s": "length",
                "num_instances": "num-instances",
            }.items()
        },
        "min_tiou": LEAST_TIOU,
        "top_limit_G": GROUPS,
        "fn_min_normalised_precision": LEAST_PRECISION,
    },
}
OF_OWN_LABEL: dict[str, Callable[[Diagnosis], object]] = {
    "share_top_10G": lambda d: d.shares,
    "fp_profile_share": FIGURES["fp_profile_share"],
    "gain_average_mAP_N": gains,
}


def assert_recorded(figure: object, recorded: object, where: str) -> int:
    """Equal up to 1e-9, with the same keys; the number of numbers that were compared."""
    if isinstance(recorded, dict):
        assert isinstance(figure, dict), where
        assert figure.keys() == recorded.keys(), where
        return sum(assert_recorded(figure[key], recorded[key], f"{where} {key}") for key in recorded)
    if isinstance(recorded, list):
        values = np.asarray(figure).tolist()
        assert len(values) == len(recorded), where
        return sum(assert_recorded(*pair, where) for pair in zip(values, recorded, strict=True))
    if isinstance(recorded, float | int):
        assert figure == pytest.approx(recorded, abs=1e-9), where
        return 1
    assert figure == (float("inf") if recorded == "inf" else recorded), where
    return recorded is None


@needs_shared
@pytest.mark.parametrize("path", expected_files(), ids=lambda path: path.name.removesuffix("_expected.json"))
def test_the_published_tools_figures_are_reproduced(path: Path) -> None:
    recorded = json.loads(path.read_text())
    annotations, detections = recorded_case(path)
    given = {"subset": recorded["settings"]["subset"], "tiou": recorded["settings"]["tiou"]}
    given["bins"] = recorded["settings"]["bins"]
    of_file = bitad.diagnose(annotations, detections, ties="file", **given)
    own = bitad.diagnose(annotations, detections, **given)
    compared = 0
    for key, values in recorded.items():
        if "as_is" in key:
            continue
        if key == "variant_own_label_wins_ties":
            assert values.keys() == OF_OWN_LABEL.keys()
            for name, variant in values.items():
                compared += assert_recorded(OF_OWN_LABEL[name](own), variant, f"{key} {name}")
        else:
            compared += assert_recorded(FIGURES[key](of_file), values, key)
    assert recorded.keys() >= FIGURES.keys()
    assert compared > 300


@needs_shared
def test_the_page_of_kinds_and_the_diagnosis_agree() -> None:
    path = SHARED / "fixtures/detad/synthetic_a_expected.json"
    annotations, detections = recorded_case(path)
    ground_truth = annotations.subset("Test")
    diagnosis = bitad.diagnose(ground_truth, detections, tiou=[0.5])
    kinds = classify(ground_truth, detections, tiou=[0.5])
    counts = np.bincount(kinds[:, 0], minlength=len(KINDS))
    within = diagnosis.class_kinds.sum(axis=(0, 2))
    assert (counts >= within).all()
    assert counts.sum() == len(detections) > within.sum()
