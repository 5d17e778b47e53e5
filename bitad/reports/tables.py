"""Tables of results: one small type that prints itself as Markdown, plain or rich text, HTML and JSON; its builders."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeGuard, get_args

import numpy as np
import rich.cells
import rich.markup
import rich.table

from bitad.config.names import MapRule
from bitad.evaluation.direction_sensitivity import KEPT, LEARNT, Sensitivity, Verdict
from bitad.evaluation.mean_average_precision import Evaluation
from bitad.runtime.log import printable

Cell = str | int | float | None

NO_GROUND_TRUTH = "no ground truth"

_RULES: dict[MapRule, tuple[str, str]] = {
    "activitynet": (
        "ActivityNet's rule",
        "detections, best first, take the free segment that they overlap most; AP is interpolated.",
    ),
    "thumos-kit": (
        "the THUMOS'14 kit's rule",
        "segments, in their order, take the free detection that they overlap most; AP is not interpolated.",
    ),
}


@dataclass(frozen=True)
class Table:
    """Rows of names and numbers under a title.

    A float prints with two decimals, an integer with a comma between thousands, None as a dash. A column whose cells
    are all numbers (or None) is set flush right.

    Args:
        title: what the table shows.
        columns: the heads.
        rows: as many cells each as there are heads; the first names the row.
        notes: sentences about what was measured, and on what.
        best: heads of the columns whose greatest number the HTML sets in bold.

    Raises:
        ValueError: a row of another length than the head, a number that is not finite, or an unknown best column.
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
                        f"table {self.title!r}, row {row[0]!r}, column {column!r}: {cell}; say why in words instead"
                    )
        if unknown := set(self.best) - set(self.columns):
            raise ValueError(f"table {self.title!r} has no column {sorted(unknown)[0]!r}; it has {self.columns}")

    def markdown(self) -> str:
        """GitHub's Markdown: the title in bold, the table, a list of notes."""
        heads = [_markdown(column) for column in self.columns]
        rules = ["---:" if numeric else ":---" for numeric in self._numeric()]
        rows = [[_markdown(_printed(cell)) for cell in row] for row in self.rows]
        lines = [f"**{_markdown(self.title)}**", ""]
        lines += [f"| {' | '.join(cells)} |" for cells in (heads, rules, *rows)]
        if self.notes:
            lines += ["", *(f"- {_markdown(note)}" for note in self.notes)]
        return "\n".join(lines) + "\n"

    def text(self) -> str:
        """Plain lines with aligned columns, to be printed; the last has no line end."""
        lines = [self._heads(), *([_shown(cell) for cell in row] for row in self.rows)]
        widths = [max(rich.cells.cell_len(line[i]) for line in lines) for i in range(len(self.columns))]
        numeric = self._numeric()

        def padded(text: str, i: int) -> str:
            space = " " * (widths[i] - rich.cells.cell_len(text))
            return space + text if numeric[i] else text + space

        printed = ["  ".join(padded(text, i) for i, text in enumerate(line)).rstrip() for line in lines]
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        return "\n".join([printable(self.title), "", printed[0], rule, *printed[1:], *self._spaced_notes()])

    def __rich__(self) -> rich.table.Table:
        """What ``rich.print(table)`` shows in a terminal."""
        made = rich.table.Table(
            title=rich.markup.escape(printable(self.title)),
            title_justify="left",
            title_style="bold",
            caption=rich.markup.escape("\n".join(map(printable, self.notes))) or None,
            caption_justify="left",
        )
        for column, numeric in zip(self._heads(), self._numeric(), strict=True):
            made.add_column(rich.markup.escape(column), justify="right" if numeric else "left")
        for row in self.rows:
            made.add_row(*(rich.markup.escape(_shown(cell)) for cell in row))
        return made

    def html(self) -> str:
        """A ``<figure>`` with the table and its notes; all text escaped."""
        numeric = self._numeric()
        bests = [self._greatest(i) if column in self.best else "" for i, column in enumerate(self.columns)]

        def tag(name: str, i: int, text: str, attributes: str = "", best: bool = False) -> str:
            classes = " ".join(["number"] * numeric[i] + ["best"] * best)
            attributes += f' class="{classes}"' if classes else ""
            return f"<{name}{attributes}>{escape(text)}</{name}>"

        heads = "".join(tag("th", i, column, ' scope="col"') for i, column in enumerate(self._heads()))
        lines = ['<figure class="table">', "<table>", f"<caption>{escape(printable(self.title))}</caption>"]
        lines += [f"<thead><tr>{heads}</tr></thead>", "<tbody>"]
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
        """The same figures in JSON's types, numbers unrounded."""
        return {
            "title": self.title,
            "columns": list(self.columns),
            "rows": [list(row) for row in self.rows],
            "notes": list(self.notes),
        }

    def _heads(self) -> list[str]:
        return [printable(column) for column in self.columns]

    def _numeric(self) -> list[bool]:
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.columns)
        return [any(map(_is_number, cells)) and not any(isinstance(c, str) for c in cells) for cells in columns]

    def _greatest(self, column: int) -> str:
        numbers = [cell for row in self.rows if _is_number(cell := row[column])]
        return _printed(max(numbers)) if numbers else ""

    def _spaced_notes(self) -> Sequence[str]:
        return ("", *map(printable, self.notes)) if self.notes else ()


def evaluation_table(evaluations: Mapping[str, Evaluation], *, title: str | None = None, counts: bool = True) -> Table:
    """A row per named result: mAP in percent at each tIoU, and the average; the notes say what was evaluated, and how.

    Args:
        evaluations: the results, by name.
        title: of the table, in place of one that names the rule.
        counts: as in :func:`what_was_evaluated`.

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
    notes = ("The columns are tIoU thresholds.", *what_was_evaluated(evaluations, counts=counts))
    return Table(title, columns, tuple(rows), notes, best=columns[1:] if len(rows) > 1 else ())


def class_table(
    evaluations: Mapping[str, Evaluation],
    *,
    tiou: float | None = None,
    kinds: Mapping[str, str] | None = None,
    title: str | None = None,
) -> Table:
    """A row per class: its ground-truth segments, and its AP in percent in each named result.

    Args:
        evaluations: the results, by name.
        tiou: one of their thresholds; None takes the mean over all of them.
        kinds: what kind of class each is; adds a column, and sorts by it in the order in which kinds first occur.
        title: in place of the one that names the threshold.

    Raises:
        ValueError: no result, results at different tIoU thresholds, or a threshold that is not among them.
    """
    thresholds = _common_tiou(evaluations)
    if tiou is None:
        chosen = list(range(len(thresholds)))
        at = f"tIoU {thresholds[0]:.4g}" + (f" to {thresholds[-1]:.4g}, mean" if len(thresholds) > 1 else "")
    else:
        chosen = [i for i, threshold in enumerate(thresholds) if math.isclose(threshold, tiou, abs_tol=1e-6)]
        at = f"tIoU {tiou:.4g}"
        if not chosen:
            known = ", ".join(f"{threshold:.4g}" for threshold in thresholds)
            raise ValueError(f"no result was evaluated at tIoU {tiou:.4g}; choose one of {known}")
    segments: dict[str, int] = {}
    for evaluation in evaluations.values():
        segments |= dict(zip(evaluation.classes, evaluation.segments.tolist(), strict=True))
    for evaluation in evaluations.values():
        for name in evaluation.classes_without_ground_truth:
            segments.setdefault(name, 0)
    precision = [
        dict(zip(evaluation.classes, 100 * evaluation.ap[:, chosen].mean(axis=1), strict=True))
        for evaluation in evaluations.values()
    ]
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
    return Table(title or f"AP per class (%), {at}", columns, tuple(rows))


def sensitivity_table(
    sensitivity: Sensitivity,
    *,
    known: Mapping[str, str] | None = None,
    title: str = "Direction sensitivity per class",
) -> Table:
    """A row per class, by verdict: AP in percent of F, of B, and of F on reversed playback, and what F calls it then.

    Args:
        sensitivity: of networks F and B.
        known: what kind of class each really is, where someone knows; adds a column and a note on the agreement.
        title: of the table.
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
        title,
        (*columns, "kept", "F then says mostly", "share"),
        tuple(rows),
        notes=(*_what_the_verdicts_mean(sensitivity), *_agreement(sensitivity, known or {})),
    )


def _what_the_verdicts_mean(sensitivity: Sensitivity) -> list[str]:
    tiou, (forward, backward) = sensitivity.tiou, sensitivity.networks
    at = f"tIoU {tiou[0]:.4g}" + (f" to {tiou[-1]:.4g}, mean" if len(tiou) > 1 else "")
    return [
        f"In percent; F, B and F reversed (F on reversed playback, under the class's own name): AP, {at}, of "
        f"{_count(forward, 'network')} F and {_count(backward, 'network')} B.",
        "Kept: F reversed over the mean of F and B.",
        "F then says: the best-scored detection at tIoU 0.5 over a segment of the class on reversed playback.",
        "Swapping: F mostly calls the class by another's name and that one by this one's. Symmetric: F mostly calls it "
        f"by its own and keeps {100 * KEPT:.0f} percent. Irreversible: neither. Not learnt: F and B reach a mean AP "
        f"below {100 * LEARNT:.0f} percent.",
    ]


def _agreement(sensitivity: Sensitivity, known: Mapping[str, str]) -> list[str]:
    judged = [one for one in sensitivity.classes if one.label in known]
    if not judged:
        return []
    wrong = [
        f"{one.label} (known as {known[one.label]}, called {one.verdict})"
        for one in judged
        if one.verdict != known[one.label]
    ]
    agreed = f"The verdict agrees with what is known for {len(judged) - len(wrong)} of {_count(len(judged), 'class')}"
    return [f"{agreed}; not for {_listed(wrong, len(wrong))}." if wrong else f"{agreed}."]


def what_was_evaluated(evaluations: Mapping[str, Evaluation], *, counts: bool = True) -> list[str]:
    """Sentences: rule, subset, videos, segments, predictions, and everything that was left out or met nothing.

    Results that agree share a sentence; others are told apart by their names.

    Args:
        evaluations: the results, by name.
        counts: also say how many predictions counted and how many were ignored, which differs from result to result.
    """
    facts: dict[str, list[str]] = {}
    for name, evaluation in evaluations.items():
        for fact in _facts(evaluation, counts):
            facts.setdefault(fact, []).append(name)
    return [_of(names, list(evaluations), fact) for fact, names in facts.items()]


def _of(names: Sequence[str], everyone: Sequence[str], fact: str) -> str:
    others = [name for name in everyone if name not in names]
    if not others:
        return fact
    if len(others) <= 2 < len(names):
        return f"All but {' and '.join(others)}: {fact}"
    return f"{_listed(names, 12)}: {fact}"


def _facts(evaluation: Evaluation, counts: bool) -> list[str]:
    subsets = " and ".join(f"“{subset}”" for subset in evaluation.subsets)
    rule, says = _RULES[evaluation.rule]
    facts = [
        f"By {rule}: {says}",
        f"Ground truth: subset {subsets}, {_count(evaluation.videos, 'video')},"
        f" {_count(int(np.sum(evaluation.segments)), 'segment')} of {_count(len(evaluation.classes), 'class')}.",
    ]
    if counts:
        facts.append(f"{_count(evaluation.predictions, 'prediction')}.")
    if evaluation.segments_dropped:
        dropped = _count(evaluation.segments_dropped, "ground-truth segment")
        facts.append(f"{dropped} left out: without length, or annotated twice.")
    facts += _about_ambiguous(evaluation)
    if missing := evaluation.videos_without_prediction:
        facts.append(f"{_count(len(missing), 'video')} without any prediction: {_listed(missing)}.")
    if absent := evaluation.classes_without_ground_truth:
        facts.append(f"{_count(len(absent), 'class')} without ground truth, not in the mean: {_listed(absent)}.")
    if strangers := evaluation.predictions_by_unknown_video:
        facts.append(
            f"{_count(sum(strangers.values()), 'prediction')} in {_count(len(strangers), 'video')} that the ground"
            f" truth does not have, counted as wrong: {_listed(strangers)}."
        )
    if counts and (strangers := evaluation.predictions_by_unknown_class):
        facts.append(
            f"{_count(sum(strangers.values()), 'prediction')} of {_count(len(strangers), 'class')} without ground"
            f" truth, ignored: {_listed(strangers)}."
        )
    return facts


def _about_ambiguous(evaluation: Evaluation) -> list[str]:
    """What became of THUMOS14's Ambiguous intervals, where the rule knows them or the ground truth has them."""
    intervals = _count(evaluation.ambiguous, "Ambiguous interval")
    match evaluation.rule, evaluation.ambiguous:
        case "activitynet", 0:
            return []
        case "activitynet", _:
            return [f"{intervals} of the ground truth counted as segments of one more class."]
        case _, 0:
            return ["No Ambiguous interval is known: no prediction was left out for touching one."]
    return [f"{intervals}: predictions that touch one and are taken by no segment were left out."]


def _common_tiou(evaluations: Mapping[str, Evaluation]) -> tuple[float, ...]:
    if not evaluations:
        raise ValueError("a table of results needs at least one result; there is none")
    (first, reference), *others = evaluations.items()
    for name, evaluation in others:
        if evaluation.tiou != reference.tiou:
            raise ValueError(
                f"{name} was evaluated at tIoU {evaluation.tiou}, {first} at {reference.tiou}; evaluate both alike"
            )
    return reference.tiou


def _count(number: int, thing: str) -> str:
    plural = f"{thing}es" if thing.endswith("s") else f"{thing}s"
    return f"{number:,} {thing if number == 1 else plural}"


def _listed(names: Iterable[str], most: int = 3) -> str:
    all_names = list(names)
    more = f" and {len(all_names) - most} more" if len(all_names) > most else ""
    return ", ".join(all_names[:most]) + more


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
