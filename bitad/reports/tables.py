"""Tables of results, which can be written as Markdown, plain text, HTML and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeGuard, get_args

from rich.cells import cell_len

from bitad.config.names import MapRule
from bitad.evaluation.direction_sensitivity import KEPT, LEARNT, Sensitivity, Verdict
from bitad.evaluation.mean_average_precision import Evaluation
from bitad.runtime.log import printable, shortlist

Cell = str | int | float | None
Row = tuple[Cell, ...]

_RULES: dict[MapRule, tuple[str, str]] = {
    "activitynet": (
        "ActivityNet's rule",
        "each detection, best first, matches the free segment with the highest tIoU; AP is interpolated.",
    ),
    "thumos-kit": (
        "the THUMOS'14 kit's rule",
        "each segment, in order, matches the free detection with the highest tIoU; AP is not interpolated.",
    ),
}


@dataclass(frozen=True)
class Table:
    """Rows of names and numbers under a title.

    Floats have two decimals, integers commas between thousands, and None is a dash. Columns of numbers are
    right-aligned. Raises ValueError for rows that do not fit the columns, and for numbers that are not finite.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Row]  # the first cell of each names it
    notes: Sequence[str] = ()
    best: Sequence[str] = ()  # columns whose greatest number is bold in the HTML

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.title!r} has {len(self.columns)} columns, but its row is {row!r}")
            if not all(math.isfinite(cell) for cell in row if _is_number(cell)):
                raise ValueError(f"table {self.title!r}: a number in row {row!r} is not finite; use text")
        if not set(self.best).issubset(self.columns):
            raise ValueError(f"table {self.title!r} has no column {self.best!r}; it has {self.columns!r}")

    def markdown(self) -> str:
        """GitHub's Markdown."""
        rules = ["---:" if numeric else ":---" for numeric in self._numeric()]
        lines = [f"**{_markdown(self.title)}**", ""]
        for row in (self.columns, *self.rows):
            cells = [_markdown(_printed(cell)) for cell in row]
            lines.append(f"| {' | '.join(cells)} |")
        lines.insert(3, f"| {' | '.join(rules)} |")
        if self.notes:
            lines += ["", *(f"- {_markdown(note)}" for note in self.notes)]
        return "\n".join(lines) + "\n"

    def text(self) -> str:
        """Plain text with aligned columns, without a line end."""
        lines = [[printable(_printed(cell)) for cell in row] for row in (self.columns, *self.rows)]
        widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            for i, numeric in enumerate(self._numeric()):
                space = " " * (widths[i] - cell_len(line[i]))
                line[i] = space + line[i] if numeric else line[i] + space
        header, *rows = ("  ".join(line).rstrip() for line in lines)
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        notes = ["", *map(printable, self.notes)] if self.notes else []
        return "\n".join([printable(self.title), "", header, rule, *rows, *notes])

    def html(self) -> str:
        """A ``<figure>`` with the table and its notes."""
        numeric = self._numeric()

        def cell(i: int, text: str, scope: str = "") -> str:
            classes = ["number"] if numeric[i] else []
            if not scope and self.columns[i] in self.best and text == self._greatest(i):
                classes.append("best")
            attributes = f' scope="{scope}"' if scope else ""
            if classes:
                attributes += f' class="{" ".join(classes)}"'
            tag = "th" if scope else "td"
            return f"<{tag}{attributes}>{escape(text)}</{tag}>"

        headers = [cell(i, printable(column), "col") for i, column in enumerate(self.columns)]
        lines = [
            '<figure class="table">',
            "<table>",
            f"<caption>{escape(printable(self.title))}</caption>",
            f"<thead><tr>{''.join(headers)}</tr></thead>",
            "<tbody>",
        ]
        for row in self.rows:
            cells = [cell(i, _printed(each), "" if i else "row") for i, each in enumerate(row)]
            lines.append(f"<tr>{''.join(cells)}</tr>")
        lines += ["</tbody>", "</table>"]
        if self.notes:
            notes = (f"<p>{escape(printable(note))}</p>" for note in self.notes)
            lines.append(f"<figcaption>{''.join(notes)}</figcaption>")
        return "\n".join([*lines, "</figure>"]) + "\n"

    def json(self) -> dict[str, Any]:
        """The content for JSON, with unrounded numbers."""
        return {"title": self.title, "columns": self.columns, "rows": self.rows, "notes": self.notes}

    def _numeric(self) -> list[bool]:
        """Which columns are of numbers only."""
        if not self.rows:
            return [False] * len(self.columns)
        numeric = []
        for cells in zip(*self.rows, strict=True):
            types = {type(cell) for cell in cells if cell is not None}
            numeric.append(bool(types) and str not in types)
        return numeric

    def _greatest(self, column: int) -> str:
        numbers = [cell for row in self.rows if _is_number(cell := row[column])]
        return _printed(max(numbers)) if numbers else ""


def evaluation_table(
    evaluations: Mapping[str, Evaluation],
    *,
    title: str | None = None,
    counts: bool = True,
) -> Table:
    """A row per result: mAP in percent at each tIoU, and the average, with :func:`evaluation_notes`."""
    tiou = _common_tiou(evaluations)
    rows: list[Row] = []
    for name, evaluation in evaluations.items():
        per_tiou = (100 * evaluation.map_per_tiou).tolist()
        rows.append((name, *per_tiou, 100 * evaluation.average_map))
    columns = ("result", *(f"{threshold:.4g}" for threshold in tiou), "average")
    if title is None:
        rules = dict.fromkeys(_RULES[evaluation.rule][0] for evaluation in evaluations.values())
        title = f"mAP (%) by {' and '.join(rules)}"
    notes = ("The columns are tIoU thresholds.", *evaluation_notes(evaluations, counts=counts))
    return Table(title, columns, rows, notes, best=columns[1:] if len(rows) > 1 else ())


def class_table(
    evaluations: Mapping[str, Evaluation],
    *,
    kinds: Mapping[str, str] | None = None,
) -> Table:
    """A row per class, sorted by kind: its segments, and its AP in percent in each result, mean over tIoU."""
    tiou = _common_tiou(evaluations)
    segments: dict[str, int] = {}
    for evaluation in evaluations.values():
        segments |= dict(zip(evaluation.classes, evaluation.segments.tolist(), strict=True))
    for evaluation in evaluations.values():
        for name in evaluation.classes_without_ground_truth:
            segments.setdefault(name, 0)
    order = list(segments)
    if kinds is not None:
        ranks = {kind: rank for rank, kind in enumerate(dict.fromkeys(kinds.values()))}
        order.sort(key=lambda name: ranks.get(kinds.get(name, ""), len(ranks)))
    precision = [evaluation.per_class for evaluation in evaluations.values()]
    rows: list[Row] = []
    for name in order:
        figures = [100 * each[name] if name in each else "no ground truth" for each in precision]
        kind: Row = () if kinds is None else (kinds.get(name),)
        rows.append((name, *kind, segments[name], *figures))
    columns = ("class", *(() if kinds is None else ("kind",)), "segments", *evaluations)
    return Table(f"AP per class (%), {tiou_range(tiou)}", columns, rows)


def sensitivity_table(sensitivity: Sensitivity, *, known: Mapping[str, str] | None = None) -> Table:
    """A row per class, by verdict; the known kinds of classes add a column and a note on the agreement."""
    classes = sorted(sensitivity.classes, key=lambda one: get_args(Verdict).index(one.verdict))
    rows: list[Row] = []
    for one in classes:
        truth: Row = () if known is None else (known.get(one.label),)
        rows.append(
            (
                one.label,
                one.verdict,
                *truth,
                one.segments,
                100 * one.forward,
                100 * one.backward,
                100 * one.reversed_playback,
                None if one.kept is None else 100 * one.kept,
                one.called,
                100 * one.called_share,
            )
        )
    columns = ["class", "verdict", "segments", "F", "B", "F reversed", "kept", "F then predicts", "share"]
    if known is not None:
        columns.insert(2, "known")
    tiou, (forward, backward) = sensitivity.tiou, sensitivity.networks
    notes = [
        "In percent. F, B and F reversed (F on reversed playback, with the original labels): AP, "
        f"{tiou_range(tiou)}, of {_count(forward, 'network')} F and {_count(backward, 'network')} B.",
        "Kept: F reversed over the mean of F and B.",
        "F then predicts: the most frequent label of the best-scored detections at tIoU 0.5 with the segments of the "
        "class, on reversed playback; share: its frequency.",
        "Swapping: F mostly predicts another class, and this class for that one. Symmetric: F mostly predicts the "
        f"class itself and keeps {100 * KEPT:.0f} percent. Irreversible: neither. Not learnt: the mean AP of F and B "
        f"is below {100 * LEARNT:.0f} percent.",
    ]
    known = known or {}
    judged = [one for one in sensitivity.classes if one.label in known]
    wrong = []
    for one in judged:
        if one.verdict != known[one.label]:
            wrong.append(f"{one.label} (known as {known[one.label]}, judged {one.verdict})")
    if judged:
        but = f"; not for {', '.join(wrong)}" if wrong else ""
        agreed = f"{len(judged) - len(wrong)} of {_count(len(judged), 'class')}"
        notes.append(f"The verdict agrees with what is known for {agreed}{but}.")
    return Table("Direction sensitivity per class", columns, rows, notes)


def kind_name(kind: str) -> str:
    """What a kind of detections (:data:`bitad.evaluation.diagnosis.KINDS`) is called: "right", "wrong label"."""
    return {"true_positive": "right", "all": "all errors"}.get(kind, kind.replace("_", " "))


def evaluation_notes(evaluations: Mapping[str, Evaluation], *, counts: bool = True) -> list[str]:
    """Sentences on the rule, the data, and what was left out; each once, with the names of its results unless all."""
    facts: dict[str, list[str]] = {}
    for name, evaluation in evaluations.items():
        for fact in _facts(evaluation, counts):
            facts.setdefault(fact, []).append(name)
    notes = []
    for fact, names in facts.items():
        others = [name for name in evaluations if name not in names]
        if not others:
            notes.append(fact)
        elif len(others) <= 2 < len(names):
            notes.append(f"All but {' and '.join(others)}: {fact}")
        else:
            notes.append(f"{shortlist(names, 12)}: {fact}")
    return notes


def _facts(evaluation: Evaluation, counts: bool) -> Iterator[str]:
    rule, description = _RULES[evaluation.rule]
    yield f"By {rule}: {description}"
    subsets = " and ".join(f"“{subset}”" for subset in evaluation.subsets)
    segments = _count(int(evaluation.segments.sum()), "segment")
    classes = _count(len(evaluation.classes), "class")
    yield f"Ground truth: subset {subsets}, {_count(evaluation.videos, 'video')}, {segments} of {classes}."
    if counts:
        yield f"{_count(evaluation.predictions, 'prediction')}."
    if evaluation.segments_dropped:
        dropped = _count(evaluation.segments_dropped, "ground-truth segment")
        yield f"{dropped} left out: empty or annotated twice."
    intervals = _count(evaluation.ambiguous, "Ambiguous interval")
    if evaluation.rule == "activitynet" and evaluation.ambiguous:
        yield f"{intervals} of the ground truth counted as segments of an additional class."
    elif evaluation.rule == "thumos-kit" and evaluation.ambiguous:
        yield f"{intervals}: predictions that overlap one and match no segment were left out."
    elif evaluation.rule == "thumos-kit":
        yield "Without Ambiguous intervals: no prediction was left out for overlapping one."
    if missing := evaluation.videos_without_prediction:
        yield f"{_count(len(missing), 'video')} without any prediction: {shortlist(missing)}."
    if absent := evaluation.classes_without_ground_truth:
        yield f"{_count(len(absent), 'class')} without ground truth, not in the mean: {shortlist(absent)}."
    if strangers := evaluation.predictions_by_unknown_video:
        among = f"{_count(sum(strangers.values()), 'prediction')} in {_count(len(strangers), 'video')}"
        yield f"{among} not in the ground truth, counted as wrong: {shortlist(strangers)}."
    if counts and (strangers := evaluation.predictions_by_unknown_class):
        among = f"{_count(sum(strangers.values()), 'prediction')} of {_count(len(strangers), 'class')}"
        yield f"{among} without ground truth, ignored: {shortlist(strangers)}."


def _common_tiou(evaluations: Mapping[str, Evaluation]) -> tuple[float, ...]:
    tiou = {name: evaluation.tiou for name, evaluation in evaluations.items()}
    if len(set(tiou.values())) != 1:
        raise ValueError(f"a table needs at least one result, all at the same tIoU; these are at {tiou}")
    return next(iter(tiou.values()))


def tiou_range(tiou: Sequence[float]) -> str:
    """The thresholds of a figure, for titles: "tIoU 0.3 to 0.7, mean"."""
    return f"tIoU {tiou[0]:.4g}" + (f" to {tiou[-1]:.4g}, mean" if len(tiou) > 1 else "")


def _count(number: int, thing: str) -> str:
    plural = f"{thing}es" if thing.endswith("s") else f"{thing}s"
    return f"{number:,} {thing if number == 1 else plural}"


def _is_number(cell: Cell) -> TypeGuard[int | float]:
    return isinstance(cell, (int, float))


def _printed(cell: Cell) -> str:
    match cell:
        case None:
            return "–"
        case float():
            return f"{cell:.2f}"
        case int():
            return f"{cell:,}"
    return cell


def _markdown(text: str) -> str:
    text = printable(" ".join(text.split()))
    for special in "\\|*_`<[":
        text = text.replace(special, "\\" + special)
    return text
