"""A result has one colour in every figure, and legends cover no title."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from bitad.config.names import EXPERIMENTS
from bitad.reports import plots
from bitad.reports.colours import PALETTE, colours_of

SHOWN_TOGETHER = ["F", "B", "late fusion", "control F + another F, wsf", *list(EXPERIMENTS)[1:], "both directions"]


def test_results_that_are_shown_together_differ_on_light_and_dark_ground() -> None:
    colours = colours_of(SHOWN_TOGETHER)
    for ground in ("light", "dark"):
        channels = {
            name: [int(getattr(colour, ground)[at : at + 2], 16) for at in (1, 3, 5)]
            for name, colour in colours.items()
        }
        for one, other in itertools.combinations(channels, 2):
            assert sum(abs(a - b) for a, b in zip(channels[one], channels[other], strict=True)) > 50, (one, other)


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("3-1, merged", "3-1"),
        ("3-1, naive, random, forward basis (large)", "3-1"),
        ("late fusion F + B, wsf (large)", "late fusion"),
        ("F (small)", "F"),
        ("2, two forward networks", "2"),
    ],
)
def test_variants_and_runs_have_the_colour_of_their_experiment(name: str, same: str) -> None:
    assert list(colours_of([name]).values()) == list(colours_of([same]).values())


def test_other_names_take_what_is_left() -> None:
    colours = colours_of(["mine", "F", "3-1, merged", "yours", "mine"])
    assert list(colours) == ["mine", "F", "3-1, merged", "yours"]
    assert len(set(colours.values())) == 4
    many = colours_of(f"run {i}" for i in range(2 * len(PALETTE)))
    assert list(many.values()) == [*PALETTE, *PALETTE]


def test_a_result_has_one_colour_in_every_figure(tmp_path: Path) -> None:
    bars = {name: {"a": 50.0} for name in ("F", "late fusion", "3-1, merged", "3-3, merged")}
    plots.plot_class_bars(bars, tmp_path / "bars.svg")
    plots.plot_comparison({"x": {"3-1, merged": [80.0]}, "y": {"3-3, merged": [81.0]}}, tmp_path / "compared.svg")
    records = [{"kind": "training", "step": step, "epoch": 0, "loss": 1.0} for step in (0, 1)]
    plots.plot_training_curves({"3-3": records, "3-1": records}, tmp_path / "curves.svg")
    for name in ("bars", "compared", "curves"):
        text = (tmp_path / f"{name}.svg").read_text(encoding="utf-8")
        for result, colour in colours_of(["3-1", "3-3", "late fusion"]).items():
            assert (colour.light in text) == (result != "late fusion" or name == "bars")


@pytest.mark.parametrize("count", [2, 6, 12])
def test_legends_lie_within_the_figure_and_cover_no_title(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []

    class Kept(Figure):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)  # type: ignore[arg-type]
            figures.append(self)

    monkeypatch.setattr(plots, "Figure", Kept)
    names = [f"{number}-1, two forward networks" for number in range(count)]
    records = [{"kind": "training", "step": step, "epoch": 0, "loss": 1.0} for step in (0, 1)]
    plots.plot_training_curves(dict.fromkeys(names, records), tmp_path / "a.png")
    plots.plot_class_bars(
        {name: {"a": 50.0, "b": 20.0} for name in names}, tmp_path / "b.png", title="A title " * 4
    )
    plots.plot_comparison({"x": {name: [80.0] for name in names}}, tmp_path / "c.png", reference=("F", 80.0))
    for figure in figures:
        figure.draw_without_rendering()
        boxes = [legend.get_window_extent() for legend in figure.legends]
        for axes in figure.axes:
            title = axes.title if axes.title.get_text() else axes._left_title  # type: ignore[attr-defined]
            boxes += [title.get_window_extent(), *(text.get_window_extent() for text in axes.texts)]
        drawn = [box for box in boxes if box.width > 0]
        assert drawn
        for box in drawn:
            assert box.x0 >= 0
            assert box.x1 <= np.ceil(figure.bbox.x1)
        assert not any(one.overlaps(other) for one, other in itertools.combinations(drawn, 2))
