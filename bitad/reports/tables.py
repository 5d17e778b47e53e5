"""Tables of results, which can be written as Markdown, plain text, HTML and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, TypeGuard, get_args

import numpy as np
import rich.cells

from bitad.config.names import MapRule
from bitad.evaluation.direction_sensitivity import KEPT, LEARNT, Sensitivity, Verdict
from bitad.evaluation.mean_average_precision import Evaluation
from bitad.runtime.files import atomic_write
from bitad.runtime.log import printable, shortlist

Cell = str | int | float | None

NO_GROUND_TRUTH = "no ground truth"

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

    Floats have two decimals, integers commas between thousands, and None is a dash. A column of numbers (or None) is
    right-aligned.

    Args:
        rows: one cell per column each; the first one names the row.
        notes: sentences about the measurement and its data.
        best: columns whose greatest number is bold in the HTML.

    Raises:
        ValueError: a row with too many or too few cells, a number that is not finite, or an unknown best column.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    best: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.title!r} has {len(self.columns)} columns, but its row {row!r} has {len(row)} cells"
                )
            for column, cell in zip(self.columns, row, strict=True):
                if isinstance(cell, float) and not math.isfinite(cell):
                    raise ValueError(
                        f"table {self.title!r}, row {row[0]!r}, column {column!r}: {cell} is not finite; use text"
                    )
        if unknown := set(self.best) - set(self.columns):
            raise ValueError(f"table {self.title!r} has no column {sorted(unknown)[0]!r}; it has {self.columns}")

    def markdown(self) -> str:
        """GitHub's Markdown: the title in bold, the table, a list of notes."""
        headers = [_markdown(column) for column in self.columns]
        rules = ["---:" if numeric else ":---" for numeric in self._numeric()]
        rows = [[_markdown(_printed(cell)) for cell in row] for row in self.rows]
        lines = [f"**{_markdown(self.title)}**", ""]
        lines += [f"| {' | '.join(cells)} |" for cells in (headers, rules, *rows)]
        if self.notes:
            lines += ["", *(f"- {_markdown(note)}" for note in self.notes)]
        return "\n".join(lines) + "\n"

    def text(self) -> str:
        """Plain text with aligned columns, without a line end."""
        lines = [[_shown(cell) for cell in row] for row in (self.columns, *self.rows)]
        widths = [max(rich.cells.cell_len(line[i]) for line in lines) for i in range(len(self.columns))]
        numeric = self._numeric()

        def padded(text: str, i: int) -> str:
            space = " " * (widths[i] - rich.cells.cell_len(text))
            return space + text if numeric[i] else text + space

        printed = ["  ".join(padded(text, i) for i, text in enumerate(line)).rstrip() for line in lines]
        notes = ["", *map(printable, self.notes)] if self.notes else []
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        return "\n".join([printable(self.title), "", printed[0], rule, *printed[1:], *notes])

    def html(self) -> str:
        """A ``<figure>`` with the table and its notes."""
        numeric = self._numeric()
        bests = [self._greatest(i) if column in self.best else "" for i, column in enumerate(self.columns)]

        def tag(name: str, i: int, text: str, attributes: str = "", best: bool = False) -> str:
            classes = " ".join(["number"] * numeric[i] + ["best"] * best)
            attributes += f' class="{classes}"' if classes else ""
            return f"<{name}{attributes}>{escape(text)}</{name}>"

        headers = "".join(tag("th", i, column, ' scope="col"') for i, column in enumerate(map(printable, self.columns)))
        lines = ['<figure class="table">', "<table>", f"<caption>{escape(printable(self.title))}</caption>"]
        lines += [f"<thead><tr>{headers}</tr></thead>", "<tbody>"]
        for row in self.rows:
            name = tag("th", 0, _printed(row[0]), ' scope="row"')
            cells = [
                tag("td", i, _printed(cell), best=_printed(cell) == bests[i]) for i, cell in enumerate(row[1:], start=1)
            ]
            lines.append(f"<tr>{name}{''.join(cells)}</tr>")
        lines += ["</tbody>", "</table>"]
        if self.notes:
            lines.append(
                f"<figcaption>{''.join(f'<p>{escape(printable(note))}</p>' for note in self.notes)}</figcaption>"
            )
        return "\n".join([*lines, "</figure>"]) + "\n"

    def json(self) -> dict[str, Any]:
        """The content for JSON, with unrounded numbers."""
        return {
            "title": self.title,
            "columns": list(self.columns),
            "rows": [list(row) for row in self.rows],
            "notes": list(self.notes),
        }

    def _numeric(self) -> list[bool]:
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.columns)
        return [any(map(_is_number, cells)) and not any(isinstance(c, str) for c in cells) for cells in columns]

    def _greatest(self, column: int) -> str:
        numbers = [cell for row in self.rows if _is_number(cell := row[column])]
        return _printed(max(numbers)) if numbers else ""


def write_markdown(path: Path, tables: Iterable[Table]) -> None:
    """Writes tables as a Markdown file."""
    with atomic_write(path) as partial:
        partial.write_text("\n".join(table.markdown() for table in tables), encoding="utf-8")


def evaluation_table(evaluations: Mapping[str, Evaluation], *, title: str | None = None, counts: bool = True) -> Table:
    """A row per result: mAP in percent at each tIoU, and the average; notes on the evaluation.

    Args:
        counts: as in :func:`evaluation_notes`.

    Raises:
        ValueError: no result, or results at different tIoU thresholds.
    """
    tiou = _common_tiou(evaluations)
    rows: list[tuple[Cell, ...]] = [
        (name, *(100 * float(value) for value in (*evaluation.map_per_tiou, evaluation.average_map)))
        for name, evaluation in evaluations.items()
    ]
    columns = ("result", *(f"{threshold:.4g}" for threshold in tiou), "average")
    if title is None:
        rules = dict.fromkeys(_RULES[evaluation.rule][0] for evaluation in evaluations.values())
        title = f"mAP (%) by {' and '.join(rules)}"
    notes = ("The columns are tIoU thresholds.", *evaluation_notes(evaluations, counts=counts))
    return Table(title, columns, tuple(rows), notes, best=columns[1:] if len(rows) > 1 else ())


def class_table(evaluations: Mapping[str, Evaluation], *, kinds: Mapping[str, str] | None = None) -> Table:
    """A row per class: its number of segments, and its AP in percent in each result, averaged over tIoU.

    Args:
        kinds: the kind of each class; adds a column and sorts by it, in the order of first occurrence.

    Raises:
        ValueError: no result, or results at different tIoU thresholds.
    """
    tiou = _common_tiou(evaluations)
    segments: dict[str, int] = {}
    for evaluation in evaluations.values():
        segments |= dict(zip(evaluation.classes, evaluation.segments.tolist(), strict=True))
    for evaluation in evaluations.values():
        for name in evaluation.classes_without_ground_truth:
            segments.setdefault(name, 0)
    precision = [dict(zip(each.classes, 100 * each.ap.mean(axis=1), strict=True)) for each in evaluations.values()]
    order = list(segments)
    if kinds is not None:
        ranks = {kind: rank for rank, kind in enumerate(dict.fromkeys(kinds.values()))}
        order.sort(key=lambda name: ranks.get(kinds.get(name, ""), len(ranks)))
    rows: list[tuple[Cell, ...]] = []
    for name in order:
        figures = [float(each[name]) if name in each else NO_GROUND_TRUTH for each in precision]
        kind: tuple[Cell, ...] = () if kinds is None else (kinds.get(name),)
        rows.append((name, *kind, segments[name], *figures))
    columns = ("class", *(() if kinds is None else ("kind",)), "segments", *evaluations)
    return Table(f"AP per class (%), {_range(tiou)}", columns, tuple(rows))


def sensitivity_table(
    sensitivity: Sensitivity,
    *,
    known: Mapping[str, str] | None = None,
) -> Table:
    """A row per class, by verdict: AP in percent of F, B and F on reversed playback, and the label F then predicts.

    Args:
        known: the true kind of classes, if known; adds a column and a note on the agreement.
    """
    kinds = get_args(Verdict)
    rows: list[tuple[Cell, ...]] = []
    for one in sorted(sensitivity.classes, key=lambda one: kinds.index(one.verdict)):
        truth: tuple[Cell, ...] = () if known is None else (known.get(one.label),)
        rows.append(
            (
                one.label,
                one.verdict,
                *truth,
                one.segments,
                *(100 * ap for ap in (one.forward, one.backward, one.reversed_playback)),
                None if one.kept is None else 100 * one.kept,
                one.called,
                100 * one.called_share,
            )
        )
    columns = ("class", "verdict", *(() if known is None else ("known",)), "segments", "F", "B", "F reversed")
    return Table(
        "Direction sensitivity per class",
        (*columns, "kept", "F then predicts", "share"),
        tuple(rows),
        notes=(*_verdict_notes(sensitivity), *_agreement_notes(sensitivity, known or {})),
    )


def _verdict_notes(sensitivity: Sensitivity) -> list[str]:
    tiou, (forward, backward) = sensitivity.tiou, sensitivity.networks
    return [
        f"In percent. F, B and F reversed (F on reversed playback, with the original labels): AP, {_range(tiou)}, of "
        f"{_count(forward, 'network')} F and {_count(backward, 'network')} B.",
        "Kept: F reversed over the mean of F and B.",
        "F then predicts: the most frequent label of the best-scored detections at tIoU 0.5 with the segments of the "
        "class, on reversed playback; share: its frequency.",
        "Swapping: F mostly predicts another class, and this class for that one. Symmetric: F mostly predicts the "
        f"class itself and keeps {100 * KEPT:.0f} percent. Irreversible: neither. Not learnt: the mean AP of F and B "
        f"is below {100 * LEARNT:.0f} percent.",
    ]


def _agreement_notes(sensitivity: Sensitivity, known: Mapping[str, str]) -> list[str]:
    judged = [one for one in sensitivity.classes if one.label in known]
    if not judged:
        return []
    wrong = [
        f"{one.label} (known as {known[one.label]}, judged {one.verdict})"
        for one in judged
        if one.verdict != known[one.label]
    ]
    agreed = f"The verdict agrees with what is known for {len(judged) - len(wrong)} of {_count(len(judged), 'class')}"
    return [f"{agreed}; not for {shortlist(wrong, len(wrong))}." if wrong else f"{agreed}."]


def evaluation_notes(evaluations: Mapping[str, Evaluation], *, counts: bool = True) -> list[str]:
    """Sentences on the rule, subset, videos, segments and predictions, and on what was left out or did not match.

    A fact is stated once, with the names of its results unless all share it.

    Args:
        counts: include the numbers of predictions and of ignored ones, which differ between results.
    """
    facts: dict[str, list[str]] = {}
    for name, evaluation in evaluations.items():
        for fact in _facts(evaluation, counts):
            facts.setdefault(fact, []).append(name)
    return [_with_names(fact, names, list(evaluations)) for fact, names in facts.items()]


def _with_names(fact: str, names: Sequence[str], all_names: Sequence[str]) -> str:
    others = [name for name in all_names if name not in names]
    if not others:
        return fact
    if len(others) <= 2 < len(names):
        return f"All but {' and '.join(others)}: {fact}"
    return f"{shortlist(names, 12)}: {fact}"


def _facts(evaluation: Evaluation, counts: bool) -> list[str]:
    subsets = " and ".join(f"“{subset}”" for subset in evaluation.subsets)
    rule, description = _RULES[evaluation.rule]
    facts = [
        f"By {rule}: {description}",
        f"Ground truth: subset {subsets}, {_count(evaluation.videos, 'video')},"
        f" {_count(int(np.sum(evaluation.segments)), 'segment')} of {_count(len(evaluation.classes), 'class')}.",
    ]
    if counts:
        facts.append(f"{_count(evaluation.predictions, 'prediction')}.")
    if evaluation.segments_dropped:
        dropped = _count(evaluation.segments_dropped, "ground-truth segment")
        facts.append(f"{dropped} left out: empty or annotated twice.")
    facts += _ambiguous_facts(evaluation)
    if missing := evaluation.videos_without_prediction:
        facts.append(f"{_count(len(missing), 'video')} without any prediction: {shortlist(missing)}.")
    if absent := evaluation.classes_without_ground_truth:
        facts.append(f"{_count(len(absent), 'class')} without ground truth, not in the mean: {shortlist(absent)}.")
    if strangers := evaluation.predictions_by_unknown_video:
        facts.append(
            f"{_count(sum(strangers.values()), 'prediction')} in {_count(len(strangers), 'video')} not in the"
            f" ground truth, counted as wrong: {shortlist(strangers)}."
        )
    if counts and (strangers := evaluation.predictions_by_unknown_class):
        facts.append(
            f"{_count(sum(strangers.values()), 'prediction')} of {_count(len(strangers), 'class')} without ground"
            f" truth, ignored: {shortlist(strangers)}."
        )
    return facts


def _ambiguous_facts(evaluation: Evaluation) -> list[str]:
    """How THUMOS14's Ambiguous intervals were evaluated, if the rule or the ground truth has them."""
    intervals = _count(evaluation.ambiguous, "Ambiguous interval")
    match evaluation.rule, evaluation.ambiguous:
        case "activitynet", 0:
            return []
        case "activitynet", _:
            return [f"{intervals} of the ground truth counted as segments of an additional class."]
        case _, 0:
            return ["Without Ambiguous intervals: no prediction was left out for overlapping one."]
    return [f"{intervals}: predictions that overlap one and match no segment were left out."]


def _common_tiou(evaluations: Mapping[str, Evaluation]) -> tuple[float, ...]:
    if not evaluations:
        raise ValueError("a table of results needs at least one result")
    (first, reference), *others = evaluations.items()
    for name, evaluation in others:
        if evaluation.tiou != reference.tiou:
            raise ValueError(
                f"{name} was evaluated at tIoU {evaluation.tiou}, {first} at {reference.tiou}; use the same for both"
            )
    return reference.tiou


def _range(tiou: Sequence[float]) -> str:
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


def _shown(cell: Cell) -> str:
    return printable(_printed(cell))


def _markdown(text: str) -> str:
    text = printable(" ".join(text.split()))
    for special in "\\|*_`<[":
        text = text.replace(special, "\\" + special)
    return text
