"""How experiments stand against what they must beat: the baselines, late fusion, and the control at equal compute."""

from __future__ import annotations

from collections.abc import Iterable

from bitad.reports.comparison import EXPERIMENTS, UNTRAINED, Comparison, Result
from bitad.reports.tables import Cell, Table


def standing_table(comparison: Comparison) -> Table:
    """A row for every result of two networks: its mean, and how far it is above (+) or below (-) each of the others.

    Late fusion stands there with the method that does best on these very data, which favours it. The control of a
    fusion is the same experiment with two forward networks, where there is one; of all else it is the best late fusion
    of two F. "Holds" says whether the mean is at least that of the better of F and B less one standard deviation over
    its seeds.
    """
    by_label = {result.label: result for result in comparison.results}
    without_training = [result for result in comparison.results if result.group == UNTRAINED]
    late = _best(result for result in without_training if result.label.startswith("late fusion"))
    two_forward = _best(result for result in without_training if result.label.startswith("control"))
    best = comparison.best_baseline
    rows: list[tuple[Cell, ...]] = []
    unlike: dict[str, int] = {}  # what results of another number of seeds are compared with
    for result in comparison.results:
        if result.group != EXPERIMENTS:
            continue
        others = (best, late, by_label.get(_control_of(result.label), two_forward))
        differences = tuple(None if other is None else f"{result.mean - other.mean:+.2f}" for other in others)
        seeds = len(result.evaluations)
        unlike.update({o.label: len(o.evaluations) for o in others if o is not None and len(o.evaluations) != seeds})
        holds = None if best is None else "yes" if result.mean >= best.mean - (best.spread or 0.0) else "no"
        rows.append((result.label, result.mean, *differences, holds, seeds))
    named = [f"{what}: {one.label}, {one.mean:.2f}." for what, one in (("Best baseline", best),) if one is not None]
    named += [f"Late fusion: {late.label}, {late.mean:.2f}."] if late else []
    named += [f"Control of what fuses nothing: {two_forward.label}, {two_forward.mean:.2f}."] if two_forward else []
    controls = [label for label in map(_control_of, by_label) if label in by_label]
    if controls:
        named.append(f"Control of a fusion: the same of two forward networks, such as {controls[0]!r}.")
    if unlike:
        seeds_of = ", ".join(f"{label} {count}" for label, count in unlike.items())
        named.append(f"Not over the same seeds as all that is compared with it: {seeds_of}.")
    return Table(
        "Average mAP (%) against what it must beat",
        ("result", "average", "− best baseline", "− late fusion", "− control", "holds", "seeds"),
        tuple(rows),
        notes=(*named, "Holds: at least the best baseline less one standard deviation over seeds."),
    )


def _best(results: Iterable[Result]) -> Result | None:
    return max(results, key=lambda result: result.mean, default=None)


def _control_of(label: str) -> str:
    """The control's label: "3-1, forward basis" -> "3-1, two forward networks, first network"."""
    experiment, _, what = label.partition(", ")
    name = {"forward basis": "first network", "reverse basis": "second network"}.get(what, what)
    return f"{experiment}, two forward networks, {name}"
