"""Tables of results, which can be written as Markdown, plain text, HTML and JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeGuard

from rich.cells import cell_len

from bitad.evaluation.bootstrap import Estimate
from bitad.runtime.log import printable

Cell = str | int | float | Estimate | None
Row = tuple[Cell, ...]


@dataclass(frozen=True)
class Difference(Estimate):
    """An estimate that is shown with its sign."""


@dataclass(frozen=True)
class Table:
    """Rows of names and numbers under a title.

    Floats have two decimals, integers commas between thousands, and None is a dash; an estimate is a number and its
    interval, with one decimal. Columns of numbers are right-aligned.

    Raises:
        ValueError: rows that do not fit the columns, or numbers that are not finite.
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
            if not all(math.isfinite(_number(cell)) for cell in row if _is_number(cell)):
                raise ValueError(f"table {self.title!r}: a number in row {row!r} is not finite; use text")
        if not set(self.best).issubset(self.columns):
            raise ValueError(f"table {self.title!r} has no column {self.best!r}; it has {self.columns!r}")

    def markdown(self) -> str:
        """GitHub's Markdown."""
        rules = ["---:" if numeric else ":---" for numeric in self._numeric()]
        lines = [f"**{_markdown(self.title)}**", ""]
        for row in (self.columns, *self.rows):
            cells = [_markdown(printed(cell)) for cell in row]
            lines.append(f"| {' | '.join(cells)} |")
        lines.insert(3, f"| {' | '.join(rules)} |")
        if self.notes:
            lines += ["", *(f"- {_markdown(note)}" for note in self.notes)]
        return "\n".join(lines) + "\n"

    def text(self) -> str:
        """Plain text with aligned columns, without a line end."""
        lines = [[printable(printed(cell)) for cell in row] for row in (self.columns, *self.rows)]
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

        def cell(i: int, content: Cell, scope: str = "") -> str:
            text = printed(content)
            classes = ["number"] if numeric[i] else []
            if not scope and self.columns[i] in self.best and text == self._greatest(i):
                classes.append("best")
            attributes = f' scope="{scope}"' if scope else ""
            if classes:
                attributes += f' class="{" ".join(classes)}"'
            tag = "th" if scope else "td"
            number, _, interval = text.partition(" ") if isinstance(content, Estimate) else (text, "", "")
            small = f" <small>{escape(interval)}</small>" if interval else ""
            return f"<{tag}{attributes}>{escape(number)}{small}</{tag}>"

        headers = [cell(i, printable(column), "col") for i, column in enumerate(self.columns)]
        lines = [
            '<figure class="table">',
            "<table>",
            f"<caption>{escape(printable(self.title))}</caption>",
            f"<thead><tr>{''.join(headers)}</tr></thead>",
            "<tbody>",
        ]
        for row in self.rows:
            cells = [cell(i, each, "" if i else "row") for i, each in enumerate(row)]
            lines.append(f"<tr>{''.join(cells)}</tr>")
        lines += ["</tbody>", "</table>"]
        if self.notes:
            notes = (f"<p>{escape(printable(note))}</p>" for note in self.notes)
            lines.append(f"<figcaption>{''.join(notes)}</figcaption>")
        return "\n".join([*lines, "</figure>"]) + "\n"

    def json(self) -> dict[str, Any]:
        """The content for JSON, with unrounded numbers."""
        rows = tuple(
            tuple(cell.to_json() if isinstance(cell, Estimate) else cell for cell in row) for row in self.rows
        )
        return {"title": self.title, "columns": self.columns, "rows": rows, "notes": self.notes}

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
        return printed(max(numbers, key=_number)) if numbers else ""


def _is_number(cell: Cell) -> TypeGuard[int | float | Estimate]:
    return isinstance(cell, (int, float, Estimate))


def _number(cell: int | float | Estimate) -> float:
    return cell.value if isinstance(cell, Estimate) else cell


def printed(cell: Cell) -> str:
    match cell:
        case None:
            return "–"
        case Estimate():
            sign = "+" if isinstance(cell, Difference) else ""
            # Adding 0 makes -0.0 a 0.0.
            value, low, high = (f"{round(x, 1) + 0.0:{sign}.1f}" for x in (cell.value, cell.low, cell.high))
            return f"{value} [{low}, {high}]"
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
