"""How results of two networks stand against the baselines, late fusion and the control."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bitad.data.annotations import Annotations
from bitad.reports.comparison import (
    BASELINES,
    TRAINED_PAIRS,
    UNTRAINED,
    VARIANTS,
    Comparison,
    Result,
    difference_table,
)


def result(label: str, group: str, *averages: float) -> Result:
    evaluations = {str(seed): SimpleNamespace(average_map=average / 100) for seed, average in enumerate(averages)}
    return Result(label, group, evaluations)


def compared(*results: Result) -> Comparison:
    return Comparison((), Annotations({}, ()), results)


F = result("F", BASELINES, 80, 82, 84)
B = result("B", BASELINES, 79, 80, 81)
LATE = (
    result("late fusion F + B, soft-nms", UNTRAINED, 84, 84, 84),
    result("late fusion F + B, wsf", UNTRAINED, 85, 85, 85),
)
CONTROL = result("control F + another F, wsf", UNTRAINED, 83, 83, 83)


def test_a_result_is_read_against_the_best_baseline_the_best_late_fusion_and_the_control() -> None:
    table = difference_table(compared(F, B, *LATE, CONTROL, result("1, merged", TRAINED_PAIRS, 83, 84, 85)))
    assert table.rows == [("1, merged", pytest.approx(84), "+2.00", "-1.00", "+1.00", "yes", 3)]


def test_the_control_of_a_fusion_is_the_same_fusion_of_two_forward_networks() -> None:
    own = result("3-1, two forward networks, second network", VARIANTS, 87, 87, 87)
    table = difference_table(
        compared(F, *LATE, CONTROL, result("3-1, reverse basis", TRAINED_PAIRS, 86, 86, 86), own)
    )
    assert table.rows[0][4] == "-1.00"


@pytest.mark.parametrize(("average", "holds"), [(80.01, "yes"), (79.99, "no")])
def test_a_result_holds_down_to_a_standard_deviation_below_the_best_baseline(average: float, holds: str) -> None:
    table = difference_table(compared(F, B, result("2, merged", TRAINED_PAIRS, average)))  # F: 82, spread 2
    assert (table.rows[0][3], table.rows[0][4], table.rows[0][5]) == (None, None, holds)


def test_comparisons_over_different_numbers_of_seeds_are_named() -> None:
    alone = result("3-1, two forward networks, merged", VARIANTS, 85)
    pair = result("3-1, merged", TRAINED_PAIRS, 86, 86, 86)
    (note,) = (note for note in difference_table(compared(F, pair, alone)).notes if "same seeds" in note)
    assert "3-1, two forward networks, merged 1." in note
    assert not any("same seeds" in note for note in difference_table(compared(F, pair)).notes)
