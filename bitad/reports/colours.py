"""The colours of results: one table for figures, tables and timelines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Colour:
    """A colour on a light ground, and its counterpart on a dark one; as ``#rrggbb``."""

    light: str
    dark: str


# By the start of a result's name: "3-1, naive, merged" is a result of experiment 3-1.
_RESULTS = {
    "F": Colour("#2f6db3", "#6ba6e6"),
    "B": Colour("#d9791c", "#eb9a4b"),
    "late fusion": Colour("#7a5aa6", "#b39ae0"),
    "late fusion F + B": Colour("#7a5aa6", "#b39ae0"),
    "control F + another F": Colour("#8a939c", "#a9b3bc"),
    "F on reversed playback": Colour("#9cbfe6", "#c5dcf5"),
    "1": Colour("#a08a2c", "#d3bd5c"),
    "1-1": Colour("#8a5a33", "#c79468"),
    "1x": Colour("#cf6fa5", "#eb9cc8"),
    "1s": Colour("#a82e9b", "#e06ad6"),
    "2": Colour("#3b9aa8", "#6cc7d4"),
    "2x": Colour("#1f3f66", "#7d8ff0"),
    "3-1": Colour("#2e8b57", "#58b883"),
    "3-2": Colour("#93b52f", "#b9d95f"),
    "3-3": Colour("#b5475d", "#e8788f"),
    "distil": Colour("#14746f", "#3fd6c6"),
    "both directions": Colour("#5a4fcf", "#a884ff"),
}
# For other names, in this order; the first two also for what is no result.
PALETTE = tuple(_RESULTS[name] for name in ("F", "B", "3-1", "late fusion", "3-3", "2", "1", "1x"))

# Of the kinds of detections; errors other than double detections are shades of red, or grey.
KINDS = {
    "true_positive": Colour("#1b7a3d", "#63d08c"),
    "double_detection": Colour("#c99a3c", "#e5b454"),
    "wrong_label": Colour("#7a1f1a", "#e0473d"),
    "localization": Colour("#c02a22", "#ff7d74"),
    "confusion": Colour("#e8968f", "#ffb9b3"),
    "background": Colour("#c3c9cf", "#9aa4ad"),
}


def colours_of(names: Iterable[str]) -> dict[str, Colour]:
    """The colour of each result by its name.

    A result of an experiment, also of a variant ("3-1, naive") or of one of several runs ("F (small)"), has the
    experiment's colour. Other names take the colours of the palette that no experiment among the names has, in order,
    and all of the palette again where these run out.
    """
    names = tuple(dict.fromkeys(names))
    known = known_colours(names)
    others = [name for name in names if name not in known]
    free = [colour for colour in PALETTE if colour not in known.values()] or list(PALETTE)
    chosen = known | {name: free[i % len(free)] for i, name in enumerate(others)}
    return {name: chosen[name] for name in names}


def known_colours(names: Iterable[str]) -> dict[str, Colour]:
    """The colours of those names that are of results of an experiment, a baseline, late fusion or its control."""
    return {name: found for name in names if (found := _RESULTS.get(_result_of(name))) is not None}


def _result_of(name: str) -> str:
    """The name without the variant and the name of the run."""
    return name.partition(",")[0].partition(" (")[0]
