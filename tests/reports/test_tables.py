import json
import math
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitad.evaluation.bootstrap import Bootstrap, Estimate, Intervals
from bitad.evaluation.direction_sensitivity import ClassSensitivity, Evidence, Sensitivity
from bitad.evaluation.mean_average_precision import Evaluation
from bitad.reports.measure_tables import (
    class_table,
    evaluation_notes,
    evaluation_table,
    paired_table,
    sensitivity_table,
)
from bitad.reports.tables import Table


def evaluation(ap, *, classes=("open", "close"), tiou=(0.3, 0.5), **facts):
    defaults = {
        "rule": "activitynet",
        "ambiguous": 0,
        "subsets": ("validation",),
        "videos": 4,
        "segments": np.arange(1, len(classes) + 1),
        "segments_dropped": 0,
        "predictions": 1234,
        "videos_without_prediction": (),
        "classes_without_ground_truth": (),
        "predictions_by_unknown_video": {},
        "predictions_by_unknown_class": {},
    }
    return Evaluation(classes=classes, tiou=tiou, ap=np.array(ap, float), **{**defaults, **facts})


F = evaluation([[0.8, 0.6], [0.4, 0.2]])
B = evaluation([[0.7, 0.5], [0.5, 0.3]])


class Cells(HTMLParser):
    """The text of every cell, and the tags that were opened."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.tags, self.inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.cells[-1] += data


def test_evaluation_table_gives_map_per_tiou_and_the_average_in_percent():
    table = evaluation_table({"F": F, "B": B})
    assert table.columns == ("result", "0.3", "0.5", "average")
    assert table.rows[0] == pytest.approx(("F", 60.0, 40.0, 50.0))
    assert "F       60.00  40.00    50.00" in table.text()
    assert "| F | 60.00 | 40.00 | 50.00 |" in table.markdown()


def test_class_table_puts_results_side_by_side_at_one_tiou():
    one = [evaluation(each.ap[:, 1:], tiou=(0.5,)) for each in (F, B)]
    table = class_table(dict(zip("FB", one, strict=True)))
    assert table.columns == ("class", "segments", "F", "B")
    assert [tuple(row) for row in table.rows] == [
        ("open", 1, pytest.approx(60), pytest.approx(50)),
        ("close", 2, pytest.approx(20), pytest.approx(30)),
    ]


def test_class_table_takes_the_mean_over_tiou():
    table = class_table({"F": F})
    assert [row[2] for row in table.rows] == pytest.approx([70, 30])
    assert "0.3 to 0.5, mean" in table.title


def test_classes_of_one_kind_stand_together():
    several = evaluation(np.eye(4, 2), classes=("open", "sway", "close", "pulse"))
    kinds = {"sway": "symmetric", "pulse": "symmetric", "open": "swapping", "close": "swapping"}
    table = class_table({"F": several}, kinds=kinds)
    assert [row[:2] for row in table.rows] == [
        ("sway", "symmetric"),
        ("pulse", "symmetric"),
        ("open", "swapping"),
        ("close", "swapping"),
    ]


def test_a_class_without_ground_truth_says_so_instead_of_nan():
    absent = evaluation([[0.5, 0.5]], classes=("open",), classes_without_ground_truth=("pour",))
    table = class_table({"F": F, "absent": absent})
    rows = {row[0]: row for row in table.rows}
    assert rows["pour"] == ("pour", 0, "no ground truth", "no ground truth")
    assert rows["close"][3] == "no ground truth"
    assert "nan" not in table.text() + table.markdown() + table.html()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match=r"a number in row \('F', .*is not finite; use text"):
        Table("t", ("result", "mAP"), (("F", bad),))


def test_rows_must_fit_the_columns():
    with pytest.raises(ValueError, match="has 2 columns"):
        Table("t", ("a", "b"), (("x",),))


def test_the_notes_say_what_was_used_and_what_met_nothing():
    facts = {
        "segments_dropped": 2,
        "videos_without_prediction": ("v1", "v2", "v3", "v4"),
        "classes_without_ground_truth": ("pour",),
        "predictions_by_unknown_video": {"stranger": 7},
        "predictions_by_unknown_class": {"pour": 1},
    }
    notes = " ".join(evaluation_notes({"F": evaluation([[0.5, 0.5]] * 2, **facts)}))
    for words in (
        "subset “validation”, 4 videos, 3 segments of 2 classes",
        "1,234 predictions.",
        "2 ground-truth segments left out",
        "4 videos without any prediction: v1, v2, v3 and 1 more",
        "1 class without ground truth, not in the mean: pour",
        "7 predictions in 1 video not in the ground truth, counted as wrong: stranger",
        "1 prediction of 1 class without ground truth, ignored: pour",
    ):
        assert words in notes


def test_facts_that_results_share_are_said_once():
    other = evaluation([[0.5, 0.5]] * 2, predictions=5)
    notes = evaluation_notes({"F": F, "B": B, "few": other})
    assert sum("subset" in note for note in notes) == 1
    assert "F, B: 1,234 predictions." in notes
    assert "few: 5 predictions." in notes


def test_counts_of_predictions_may_be_left_out():
    facts = {"predictions_by_unknown_class": {"pour": 1}, "predictions_by_unknown_video": {"stranger": 7}}
    notes = evaluation_notes({"F": evaluation([[0.5, 0.5]] * 2, **facts)}, counts=False)
    assert len(notes) == 3
    assert "rule" in notes[0]
    assert "subset" in notes[1]
    assert "counted as wrong: stranger" in notes[2]


def test_the_rule_stands_in_the_title_and_under_the_table():
    by_kit = evaluation([[0.5, 0.5]] * 2, rule="thumos-kit")
    assert evaluation_table({"F": F}).title == "mAP (%) by ActivityNet's rule"
    assert evaluation_table({"F": by_kit}).title == "mAP (%) by the THUMOS'14 kit's rule"
    both = evaluation_table({"F": F, "F again": by_kit})
    assert both.title == "mAP (%) by ActivityNet's rule and the THUMOS'14 kit's rule"
    assert any(note.startswith("F: By ActivityNet's rule:") for note in both.notes)
    assert any(note.startswith("F again: By the THUMOS'14 kit's rule:") for note in both.notes)
    assert evaluation_table({"F": F}, title="playroom").title == "playroom"


@pytest.mark.parametrize(
    ("rule", "ambiguous", "says"),
    [
        (
            "activitynet",
            99,
            "99 Ambiguous intervals of the ground truth counted as segments of an additional class.",
        ),
        (
            "thumos-kit",
            1,
            "1 Ambiguous interval: predictions that overlap one and match no segment were left out.",
        ),
        ("thumos-kit", 0, "Without Ambiguous intervals: no prediction was left out for overlapping one."),
    ],
)
def test_the_notes_say_what_became_of_ambiguous_intervals(rule, ambiguous, says):
    assert says in evaluation_notes({"F": evaluation([[0.5, 0.5]] * 2, rule=rule, ambiguous=ambiguous)})


def test_data_sets_without_ambiguous_intervals_hear_nothing_of_them():
    assert not any("Ambiguous" in note for note in evaluation_notes({"F": F}))


SWAPS = Evidence("swap margin", Estimate(0.6, 0.25, 0.8))
NOT_LEARNT = Evidence("learnt", Estimate(0.0, 0.0, 0.0))
IS_KEPT = Evidence("kept", Estimate(1.0, 0.95, 1.04))
SENSITIVITY = Sensitivity(
    (
        ClassSensitivity("open", 14, 0.4, 0.6, 0.05, "close", 0.75, "swapping", SWAPS),
        ClassSensitivity("fly", 12, 0.0, 0.0, 0.0, "nothing", 1.0, "not learnt", NOT_LEARNT),
        ClassSensitivity("spin", 3, 0.5, 0.5, 0.5, "spin", 1.0, "undecided", None),
        ClassSensitivity("sway", 41, 1.0, 0.9, 0.95, "sway", 0.9, "symmetric", IS_KEPT),
    ),
    tiou=(0.3, 0.5),
    networks=(2, 1),
)


def test_a_sensitivity_table_goes_by_verdict_in_percent():
    table = sensitivity_table(SENSITIVITY)
    verdicts = [("sway", "symmetric"), ("open", "swapping"), ("fly", "not learnt"), ("spin", "undecided")]
    assert [row[:2] for row in table.rows] == verdicts
    assert table.rows[1][2:-1] == (14, *map(pytest.approx, (40, 60, 5, 10)), "close", pytest.approx(75))
    assert [row[-1] for row in table.rows] == [
        "kept 100.0 [95.0, 104.0]",
        "swap margin 60.0 [25.0, 80.0]",
        "learnt 0.0 [0.0, 0.0]",
        "too few segments or videos",
    ]
    assert any("fewer than 5 segments or 2 videos" in note for note in table.notes)
    assert table.rows[2][table.columns.index("kept")] is None
    assert any("0.3 to 0.5, mean, of 2 networks F and 1 network B" in note for note in table.notes)
    assert not any("known" in note for note in table.notes)


def test_a_sensitivity_table_says_where_the_verdict_is_not_what_is_known():
    known = {"open": "swapping", "sway": "irreversible"}
    table = sensitivity_table(SENSITIVITY, known=known)
    assert [row[table.columns.index("known")] for row in table.rows] == ["irreversible", "swapping", None, None]
    wrong = "sway (known as irreversible, judged symmetric)"
    assert f"The verdict agrees with what is known for 1 of 2 classes; not for {wrong}." in table.notes
    right = sensitivity_table(SENSITIVITY, known={"open": "swapping"})
    assert "The verdict agrees with what is known for 1 of 1 class." in right.notes
    unsure = sensitivity_table(SENSITIVITY, known={"open": "swapping", "spin": "symmetric"})
    assert "The verdict agrees with what is known for 1 of 1 class. Undecided: spin." in unsure.notes


@pytest.mark.parametrize(
    ("reversal", "contradicted"),
    [
        ({"open": "close"}, None),
        ({"open": "close", "close": "open", "spin": "unknown", "fly": "unknown"}, None),
        ({}, "open (stated: itself, judged: swapping with close)"),
        ({"open": "shut"}, "open (stated: shut, judged: swapping with close)"),
        (
            {"open": "unknown", "sway": "unknown"},
            "open (stated: unknown, judged: swapping with close), sway (stated: unknown, judged: symmetric)",
        ),
        ({"open": "close", "sway": "spin"}, "sway (stated: spin, judged: symmetric)"),
    ],
)
def test_a_sensitivity_table_says_what_the_stated_reversal_contradicts(reversal, contradicted):
    notes = [note for note in sensitivity_table(SENSITIVITY, reversals=[reversal]).notes if "contradicts" in note]
    about = "What reversed windows teach (data.reversal) contradicts the verdict on"
    assert notes == ([] if contradicted is None else [f"{about} {contradicted}."])


def intervals(value, low, high):
    one = Estimate(value, low, high)
    return Intervals((one, one), one, {"open": one, "close": one})


BOOTSTRAP = Bootstrap(
    resamples=1000,
    seed=0,
    videos=4,
    tiou=(0.3, 0.5),
    seeds={"F": 3, "B": 1},
    results={"F": intervals(0.5, 0.4444, 0.61), "B": intervals(0.4, 0.39, 0.8)},
    baseline="F",
    differences={"B": intervals(-0.1, -0.21, -0.0001)},
)


def test_figures_with_intervals_are_numbers_of_one_decimal():
    table = evaluation_table({"F": F, "B": B}, bootstrap=BOOTSTRAP)
    assert " | 50.0 \\[44.4, 61.0\\] | " in table.markdown().replace("]", "\\]")
    assert table.text().splitlines()[4].endswith("  50.0 [44.4, 61.0]")
    assert table.html().count('class="number best">50.0 <small>[44.4, 61.0]</small></td>') == 3
    assert json.loads(json.dumps(table.json()))["rows"][1][1] == {"value": 40.0, "low": 39.0, "high": 80.0}
    note = "In brackets: the 95 % interval over 4 videos and the seeds, by 1,000 resamples of a bootstrap."
    assert f"{note} Of one seed, so only over videos: B." in table.notes
    assert class_table({"F": F, "B": B}, bootstrap=BOOTSTRAP).text().count("[39.0, 80.0]") == 2


def test_differences_have_their_sign_and_zero_has_one_too():
    table = paired_table(BOOTSTRAP)
    assert table.title == "mAP (%) minus that of F, paired"
    assert table.text().splitlines()[4].split("  ")[-1] == "-10.0 [-21.0, +0.0]"


@pytest.mark.parametrize("missing", [float("nan"), float("inf")])
def test_an_estimate_that_is_not_finite_is_refused(missing):
    with pytest.raises(ValueError, match="is not finite; use text"):
        Table("t", ("name", "n"), (("x", Estimate(missing, 0.0, 1.0)),))


def test_results_at_different_tiou_are_not_put_in_one_table():
    with pytest.raises(ValueError, match="all at the same tIoU"):
        evaluation_table({"F": F, "other": evaluation([[0.5]] * 2, tiou=(0.5,))})
    with pytest.raises(ValueError, match="at least one result"):
        evaluation_table({})


def test_the_best_of_a_column_is_bold_also_where_several_print_alike():
    rows = (("a", 1.0), ("b", 2.001), ("c", 2.0), ("d", None))
    html = Table("t", ("name", "n"), rows, best=("n",)).html()
    assert html.count('class="number best">2.00<') == 2
    assert 'best">1.00' not in html


def test_columns_of_numbers_are_flush_right_in_plain_text():
    lines = Table("t", ("이름", "n"), (("열기", 1.5), ("b", 100.25)), notes=("Note.",)).text().splitlines()
    assert lines == ["t", "", "이름       n", "------------", "열기    1.50", "b     100.25", "", "Note."]


def test_json_keeps_the_figures_unrounded():
    table = Table("t", ("a", "b"), (("x", 1 / 3),))
    assert json.loads(json.dumps(table.json()))["rows"] == [["x", 1 / 3]]


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=12), min_size=1, max_size=4))
@settings(deadline=None)
def test_any_text_stays_text_in_html(names):
    names = [name.replace("\r", " ").replace("\0", " ") for name in names]
    seen = Cells(Table("t", ("name",), tuple((name,) for name in names)).html())
    assert seen.cells == ["name", *names]
    assert set(seen.tags) == {"figure", "table", "caption", "thead", "tbody", "tr", "th"}


@given(st.text("|\\*_`<[ab\n", max_size=12))
@settings(deadline=None)
def test_any_name_keeps_a_markdown_row_in_one_line_with_its_cells(name):
    row = Table("t", ("name", "n"), ((name, 1),)).markdown().splitlines()[4]
    unescaped = row.replace("\\\\", "").replace("\\|", "")
    assert unescaped.count("|") == 3
