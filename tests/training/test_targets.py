from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitad.models.heads import Points
from bitad.training.losses import SAME_LENGTH, assign

CLASSES = 4
POINTS = Points.of_levels((16, 8, 4), (1, 2, 4), [(0.0, 4.0), (4.0, 8.0), (8.0, 10000.0)])


def assign_one_point(
    position: float, stride: float, low: float, high: float, window: list[tuple[float, float, int]], radius: float
) -> tuple[set[int], tuple[float, float] | None]:
    """The classes and the distances of one point, by ActionFormer's rules."""
    candidates = []
    for start, end, label in window:
        middle = (start + end) / 2
        inside = max(start, middle - radius * stride) < position < min(end, middle + radius * stride)
        if inside and low <= max(position - start, end - position) <= high:
            candidates.append((end - start, start, end, label))
    if not candidates:
        return set(), None
    shortest = min(candidates, key=lambda candidate: candidate[0])  # the first of equal ones
    labels = {label for length, _, _, label in candidates if length <= shortest[0] + SAME_LENGTH}
    return labels, ((position - shortest[1]) / stride, (shortest[2] - position) / stride)


def assert_assigned(windows: list[list[tuple[float, float, int]]], radius: float = 1.5) -> None:
    segments = [torch.tensor([row[:2] for row in window]).reshape(-1, 2) for window in windows]
    labels = [torch.tensor([row[2] for row in window], dtype=torch.int32) for window in windows]
    targets = assign(POINTS, segments, labels, CLASSES, radius=radius)
    assert targets.class_targets.shape == (len(windows), len(POINTS), CLASSES)
    rows = torch.stack((POINTS.position, POINTS.stride, POINTS.low, POINTS.high), dim=1).tolist()
    for i, window in enumerate(windows):
        for j, (position, stride, low, high) in enumerate(rows):
            classes, distances = assign_one_point(position, stride, low, high, window, radius)
            assert set(targets.class_targets[i, j].nonzero().flatten().tolist()) == classes
            assert targets.class_targets[i, j].sum() == len(classes)
            assert targets.positive[i, j] == (distances is not None)
            assert targets.distances[i, j].tolist() == list(distances or (0.0, 0.0))


# Multiples of a quarter are exact in single precision, and hit every limit.
quarters = st.integers(0, 64).map(lambda n: n / 4)
action = st.tuples(quarters, quarters, st.integers(0, CLASSES - 1)).map(lambda a: (min(a[:2]), max(a[:2]), a[2]))


@given(
    windows=st.lists(st.lists(action, max_size=6), min_size=1, max_size=3),
    radius=st.sampled_from([0.5, 1.5, 100.0]),
)
@settings(deadline=None, max_examples=60)
def test_every_point_gets_what_the_rules_say(windows: list[list[tuple[float, float, int]]], radius: float) -> None:
    assert_assigned(windows, radius)


@pytest.mark.parametrize(
    "window",
    [
        [(4.0, 8.0, 0), (4.0, 8.0, 1)],  # annotated for two classes
        [(4.0, 8.0, 0), (4.0, 8.0 + 2**-11, 1)],  # nearly so
        [(4.0, 8.0, 2), (4.0, 8.0, 2)],  # twice for one
        [(2.0, 14.0, 0), (6.0, 10.0, 1)],  # one within the other
        [(6.0, 10.0, 1), (2.0, 14.0, 0)],
        [(5.0, 5.0, 3)],  # without length: no point is inside
        [(4.0, 12.0, 0)],  # farther end exactly at a limit of two levels
    ],
)
def test_overlapping_and_degenerate_segments(window: list[tuple[float, float, int]]) -> None:
    assert_assigned([window])


def test_nearly_equal_segments_make_a_point_carry_both_classes() -> None:
    targets = assign(POINTS, [torch.tensor([[4.0, 8.0], [4.0, 8.0005]])], [torch.tensor([0, 3])], CLASSES)
    assert targets.class_targets[0, 6].tolist() == [1, 0, 0, 1]
    assert targets.distances[0, 6].tolist() == [2, 2]


def test_windows_without_ground_truth_are_all_negative() -> None:
    targets = assign(POINTS, [torch.empty(0, 2)] * 2, [torch.empty(0, dtype=torch.long)] * 2, CLASSES)
    assert not targets.positive.any()
    assert targets.class_targets.sum() == targets.distances.abs().sum() == 0


def test_a_windows_targets_do_not_depend_on_the_others_in_the_batch() -> None:
    windows: list[tuple[Tensor, Tensor]] = [
        (torch.tensor([[1.0, 4.0], [2.0, 15.0], [5.5, 9.0]]), torch.tensor([0, 1, 2])),
        (torch.empty(0, 2), torch.empty(0, dtype=torch.long)),
        (torch.tensor([[3.0, 12.0]]), torch.tensor([3])),
    ]
    together = assign(POINTS, [s for s, _ in windows], [c for _, c in windows], CLASSES)
    for i, (segments, labels) in enumerate(windows):
        for batch, alone in zip(together[:3], assign(POINTS, [segments], [labels], CLASSES)[:3], strict=True):
            assert torch.equal(batch[i], alone[0])


def test_targets_decode_to_the_segments() -> None:
    segments = torch.tensor([[0.5, 3.25], [6.0, 15.0]])
    targets = assign(POINTS, [segments], [torch.tensor([0, 1])], CLASSES)
    decoded = POINTS.segments(targets.distances)[targets.positive]
    wanted = segments[targets.class_targets[targets.positive].argmax(-1)]
    torch.testing.assert_close(decoded, wanted)
    assert math.isfinite(decoded.sum())
    assert len(decoded) > 4


@given(
    windows=st.lists(st.lists(st.tuples(action, st.booleans()), max_size=6), min_size=1, max_size=3),
    radius=st.sampled_from([0.5, 1.5, 100.0]),
)
@settings(deadline=None, max_examples=60)
def test_segments_without_a_class_teach_no_class_at_their_points_and_the_rest_as_ever(
    windows: list[list[tuple[tuple[float, float, int], bool]]], radius: float
) -> None:
    segments = [torch.tensor([row[:2] for row, _ in window]).reshape(-1, 2) for window in windows]
    labels = [torch.tensor([~row[2] if untaught else row[2] for row, untaught in w]).long() for w in windows]
    known = [torch.tensor([row[2] for row, _ in window]).long() for window in windows]
    targets = assign(POINTS, segments, labels, CLASSES, radius=radius, some_untaught=True)
    as_ever = assign(POINTS, segments, known, CLASSES, radius=radius)
    assert as_ever.taught is None
    for mine, theirs in zip(targets[:3], as_ever[:3], strict=True):  # distances too, and of which class they are
        assert torch.equal(mine, theirs)
    assert targets.taught is not None
    rows = torch.stack((POINTS.position, POINTS.stride, POINTS.low, POINTS.high), dim=1).tolist()
    for i, window in enumerate(windows):
        # Each segment is told from the others by a class of its own.
        numbered = [(start, end, number) for number, ((start, end, _), _) in enumerate(window)]
        for j, (position, stride, low, high) in enumerate(rows):
            chosen, _ = assign_one_point(position, stride, low, high, numbered, radius)
            named = {window[number][0][2] for number in chosen if not window[number][1]}
            is_open = any(window[number][1] for number in chosen)
            expected = [not is_open or label in named for label in range(CLASSES)]
            assert targets.taught[i, j].tolist() == expected
