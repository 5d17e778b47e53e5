"""``bitad report --ensembles`` and ``--boundaries`` as typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import CLASSES, config_of, feature_data
from runs import truth_of, write_run

from bitad.cli import main
from bitad.data.annotations import Annotations
from bitad.data.detections import Detections, read_detections
from bitad.evaluation.boundaries import boundary_errors
from bitad.evaluation.mean_average_precision import evaluate
from bitad.inference.merge import merge

TIOU = [0.3, 0.4, 0.5, 0.6, 0.7]
SEEDS = {"F": ("forward", (0, 1, 2)), "B": ("reverse", (0, 1))}
Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return feature_data(tmp_path_factory.mktemp("data"), training=1, test=6)


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """F of three seeds and B of two."""
    folder = tmp_path_factory.mktemp("runs")
    for direction, seeds in SEEDS.values():
        for seed in seeds:
            write_run(config_of(data, f"output={folder}", "name=my", f"direction={direction}", f"seed={seed}"))
    return folder


@pytest.fixture
def found(runs: Path) -> dict[str, list[Detections]]:
    return {
        label: [read_detections(runs / f"my-{direction}-seed{s}" / "detections.json").forward() for s in seeds]
        for label, (direction, seeds) in SEEDS.items()
    }


@pytest.fixture
def truth(data: Path) -> Annotations:
    return truth_of(config_of(data))


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "report"


def report(runs: Path, *arguments: object) -> int:
    return main(["report", str(runs), "--device", "cpu", *map(str, arguments)])


def content(out: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    return results


def row(text: str, title: str, name: str) -> list[str]:
    """The cells of a row of the printed table whose title begins so."""
    lines = text[text.index(title) :].splitlines()
    return next(line.split() for line in lines if line.startswith(f"{name}  "))


def refusal(status: int, capsys: Output) -> str:
    assert status == 1
    out, err = capsys.readouterr()
    assert out == ""
    return err


@pytest.mark.parametrize("method", ["wsf", "soft-nms"])
def test_pairs_of_all_seeds_are_fused_and_compared_with_the_first_of_their_size(
    runs: Path, found: dict[str, list[Detections]], truth: Annotations, out: Path, capsys: Output, method: str
) -> None:
    options = () if method == "wsf" else ("--method", method)
    assert report(runs, "--ensembles", "F+F", "F+B", "2F+2B", *options) == 0
    printed, stored = capsys.readouterr().out, content(out)["ensembles"]
    suppression = config_of(runs / "my-forward-seed0" / "config.yaml").test.nms.suppression

    def average(*sets: Detections) -> float:
        one = merge(*sets, method=method, settings=suppression) if len(sets) > 1 else sets[0]
        return 100 * evaluate(truth, one, tiou=TIOU).average_map

    f, b = found["F"], found["B"]
    two = np.mean([average(f[i], f[j]) for i, j in ((0, 1), (0, 2), (1, 2))])
    mixed = np.mean([average(one, other) for one in f for other in b])
    members = (np.mean([average(one) for one in f]) + np.mean([average(one) for one in b])) / 2
    title = f"Late fusion of several networks by {method}, mAP (%)"
    cells = row(printed, title, "F+B")
    assert cells[6:] == [f"{mixed:.2f}", f"{mixed - members:+.2f}", f"{mixed - two:+.2f}", "2F", "6"]
    assert row(printed, title, "2F")[-3:] == ["–", "–", "3"]
    assert row(printed, title, "2F+2B")[-3:] == ["–", "–", "3"]
    assert stored["method"] == method
    assert list(stored["results"]) == ["2F", "F+B", "2F+2B"]
    assert stored["results"]["F+B"]["average_map"] == pytest.approx(mixed / 100)
    assert "2F+2B" in (out / "index.html").read_text(encoding="utf-8")
    assert "| 2F+2B |" in (out / "results.md").read_text(encoding="utf-8")


def test_ensembles_have_paired_intervals(runs: Path, out: Path, capsys: Output) -> None:
    assert report(runs, "--ensembles", "2F", "F+B", "3F", "--bootstrap", 100) == 0
    printed = capsys.readouterr().out
    results = content(out)["ensembles"]["results"]
    one = results["F+B"]
    for figure in ("average_map", "gain", "difference"):
        assert one[figure]["low"] < one[figure]["value"] < one[figure]["high"]
    assert one["compared"] == "2F"
    assert one["difference"]["value"] == pytest.approx(
        one["average_map"]["value"] - results["2F"]["average_map"]["value"]
    )
    assert "over the videos and the seeds, by 100 resamples of a bootstrap" in printed
    assert "Of one choice, so only over videos: 3F." in printed


def test_boundary_errors_are_those_of_the_library(
    runs: Path, found: dict[str, list[Detections]], truth: Annotations, out: Path, capsys: Output
) -> None:
    assert report(runs, "--boundaries") == 0
    printed, stored = capsys.readouterr().out, content(out)["boundaries"]
    made = boundary_errors(
        truth, {label: {str(s): one for s, one in enumerate(of)} for label, of in found.items()}
    )
    assert stored["tiou"] == 0.5
    assert stored["results"] == {label: one.to_json() for label, one in made.items()}
    for label, one in made.items():
        for side, errors in (("starts", one.overall.start), ("ends", one.overall.end)):
            cells = row(printed, "Errors of starts and ends", f"{label}, {side}")
            absolute = (errors.mean_absolute, errors.median_absolute)
            expected = [f"{round(1000 * x, 1):.2f}" for x in absolute]
            expected += [f"{1000 * x:+.1f}" for x in (errors.mean, errors.median)]
            assert cells[3:7] == expected
    per_class = row(printed, "Mean |error| of starts and ends per class", CLASSES[0])
    assert len(per_class) == 2 + 3 * len(made)
    assert "Errors of starts and ends" in (out / "index.html").read_text(encoding="utf-8")
    assert report(runs, "--boundaries", "--bootstrap", 100) == 0
    interval = content(out)["boundaries"]["results"]["F"]["end_minus_start"]
    assert interval["low"] < interval["value"] < interval["high"]


def test_a_report_has_neither_unless_asked(runs: Path, out: Path, capsys: Output) -> None:
    assert report(runs) == 0
    printed = capsys.readouterr().out
    assert "several networks" not in printed
    assert "Errors of starts" not in printed
    assert not {"ensembles", "boundaries"} & content(out).keys()


def test_what_cannot_be_fused_is_refused_before_anything_is_evaluated(
    runs: Path, out: Path, capsys: Output
) -> None:
    assert "--ensembles: 'F' is one network" in refusal(report(runs, "--ensembles", "F"), capsys)
    said = refusal(report(runs, "--ensembles", "F+C"), capsys)
    assert "ensemble F+C: no network is called 'C'; the networks are F; B" in said
    said = refusal(report(runs, "--ensembles", "3B"), capsys)
    assert "ensemble 3B needs 3 networks B, of different seeds, and there are only 2; train more" in said
    assert "ensemble 2F is given twice" in refusal(report(runs, "--ensembles", "2F", "F+F"), capsys)
    said = refusal(report(runs, "--method", "wsf"), capsys)
    assert "--method only applies with --ensembles; add it, or leave out --method" in said
    assert not (out / "results.json").exists()
