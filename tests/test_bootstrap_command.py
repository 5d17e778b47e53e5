"""``bitad evaluate --bootstrap`` and ``bitad report --bootstrap`` as typed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from builders import CLASSES, config_of, feature_data
from runs import guesses, truth_of, write_run

from bitad.cli import main
from bitad.data.detections import read_detections, write_detections
from bitad.evaluation.bootstrap import Estimate, bootstrap
from bitad.evaluation.mean_average_precision import match

TIOU = [0.3, 0.4, 0.5, 0.6, 0.7]
Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return feature_data(tmp_path_factory.mktemp("data"), training=1, test=8)


@pytest.fixture
def here(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two detection files, and F, B and 3-1 of two seeds, but one of B."""
    monkeypatch.chdir(tmp_path)
    truth = truth_of(config_of(data))
    for name, noise in (("good", 0.2), ("worse", 0.6)):
        write_detections(guesses(truth, [3], noise), tmp_path / f"{name}.json")
    start = ("init.forward=f", "init.reverse=b")
    for overrides in (["seed=0"], ["seed=1"], ["direction=reverse"]):
        write_run(config_of(data, "output=runs", "name=my", *overrides))
    for seed in (0, 1):
        write_run(config_of(data, "output=runs", "name=my", "experiment=3-1", *start, f"seed={seed}"), noise=0.1)
    return tmp_path


def evaluate(data: Path, *arguments: object) -> int:
    truth = data.parent / "annotations.json"
    return main(["evaluate", "--ground-truth", str(truth), "--subset", "validation", *map(str, arguments)])


def report(*arguments: object) -> int:
    return main(["report", "runs", "--device", "cpu", *map(str, arguments)])


def refusal(status: int, capsys: Output) -> str:
    assert status == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "--debug" not in err
    return err


def cells(text: str, title: str, row: str) -> list[list[float]]:
    """The numbers in the cells of a row of the printed table whose title begins so."""
    table = text[text.index(title) :]
    line = next(line for line in table.splitlines() if line.startswith(row))
    return [[float(x) for x in cell] for cell in re.findall(r"([-+]?\d+\.\d) \[(\S+), (\S+)\]", line)]


def percent(*estimates: Estimate) -> list[Any]:
    return [pytest.approx([100 * x for x in (e.value, e.low, e.high)], abs=0.051) for e in estimates]


def test_two_files_have_intervals_and_a_paired_difference(data: Path, here: Path, capsys: Output) -> None:
    options = ("--bootstrap", 200, "--per-class", "--json", "out.json")
    assert evaluate(data, "--detections", "good.json", "worse.json", *options) == 0
    printed, content = capsys.readouterr().out, json.loads((here / "out.json").read_text())
    truth, files = truth_of(config_of(data)), ("good.json", "worse.json")
    matches = {name: {"": match(truth, read_detections(name), tiou=TIOU)} for name in files}
    made = bootstrap(matches, resamples=200)
    assert content["bootstrap"] == made.to_json()
    for name, result in made.results.items():
        shown = percent(*result.map_per_tiou, result.average_map)
        assert cells(printed, "mAP (%) by ActivityNet", name) == shown
        assert content["results"][name]["average_map"] == pytest.approx(result.average_map.value, abs=1e-12)
    less = made.differences["worse.json"]
    assert less.average_map.high < 0
    shown = percent(*less.map_per_tiou, less.average_map)
    assert cells(printed, "mAP (%) minus that of good.json, paired", "worse.json") == shown
    for label in CLASSES:
        shown = percent(*(result.per_class[label] for result in made.results.values()))
        assert cells(printed, "AP per class", label) == shown
    assert "In brackets: the 95 % interval over 8 videos, by 200 resamples of a bootstrap." in printed


def test_one_file_keeps_the_form_of_its_figures(data: Path, here: Path, capsys: Output) -> None:
    command = ("--detections", "good.json", "--json", "out.json")
    assert evaluate(data, *command) == 0
    without = json.loads((here / "out.json").read_text())
    assert "[" not in capsys.readouterr().out
    assert evaluate(data, *command, "--bootstrap", 100) == 0
    content = json.loads((here / "out.json").read_text())
    assert content.pop("bootstrap")["differences"] == {}
    assert content == without
    printed = capsys.readouterr().out
    assert "paired" not in printed
    assert len(cells(printed, "mAP (%)", "good.json")) == 6


def test_the_kits_rule_has_intervals_too(data: Path, here: Path, capsys: Output) -> None:
    options = ("--rule", "thumos-kit", "--tiou", "0.5", "--bootstrap", 100, "--json", "out.json")
    assert evaluate(data, "--detections", "good.json", *options) == 0
    content = json.loads((here / "out.json").read_text())
    average = content["bootstrap"]["results"]["good.json"]["average_map"]
    assert average["low"] < content["average_map"] < average["high"]
    assert average["value"] == pytest.approx(content["average_map"], abs=1e-12)


def test_files_of_one_name_are_called_by_their_paths(data: Path, here: Path, capsys: Output) -> None:
    for folder in ("a", "b"):
        (here / folder).mkdir()
        (here / folder / "good.json").write_bytes((here / "good.json").read_bytes())
    assert evaluate(data, "--detections", "a/good.json", "b/good.json") == 0
    printed = capsys.readouterr().out
    assert "a/good.json  " in printed
    assert "b/good.json  " in printed
    said = refusal(evaluate(data, "--detections", "good.json", "good.json"), capsys)
    assert "--detections good.json good.json: a file occurs twice" in said


@pytest.mark.parametrize("resamples", [0, 99, 100_001])
def test_so_many_resamples_are_refused_before_anything_is_read(
    data: Path, here: Path, capsys: Output, resamples: int
) -> None:
    said = f"--bootstrap {resamples} resamples of a bootstrap; give 100 to 100,000, 1000 for example"
    assert said in refusal(evaluate(data, "--detections", "missing.json", "--bootstrap", resamples), capsys)
    assert said in refusal(report("--bootstrap", resamples), capsys)
    assert not (here / "report").exists()


def test_a_report_resamples_videos_and_seeds_together(data: Path, here: Path, capsys: Output) -> None:
    assert report("--bootstrap", 200, "--baseline", "F") == 0
    printed = capsys.readouterr().out
    content = json.loads((here / "report" / "results.json").read_text())["bootstrap"]
    truth = truth_of(config_of(data))

    def matches(run: str, file: str) -> Any:
        return match(truth, read_detections(here / "runs" / run / file).forward(), tiou=TIOU)

    made = bootstrap(
        {
            "F": {str(seed): matches(f"my-forward-seed{seed}", "detections.json") for seed in (0, 1)},
            "B": {"0": matches("my-reverse-seed0", "detections.json")},
            "3-1, forward basis": {
                str(seed): matches(f"my-3-1-seed{seed}", "detections.forward.json") for seed in (0, 1)
            },
        },
        resamples=200,
    )
    for label, result in made.results.items():
        assert content["results"][label] == result.to_json()
        assert cells(printed, "mAP (%)", label) == percent(*result.map_per_tiou, result.average_map)
    for label, less in made.differences.items():
        assert content["differences"][label] == less.to_json()
        assert cells(printed, "mAP (%) minus that of F, paired", label) == percent(
            *less.map_per_tiou, less.average_map
        )
    assert (content["baseline"], content["videos"], content["seeds"]["F"], content["seeds"]["B"]) == ("F", 8, 2, 1)
    assert "the 95 % interval over 8 videos and the seeds, by 200 resamples" in printed
    assert "Of one seed, so only over videos: B, " in printed
    page = (here / "report" / "index.html").read_text(encoding="utf-8")
    (cell,) = {f"{x:.1f} [{y:.1f}, {z:.1f}]" for x, y, z in cells(printed, "mAP (%)", "3-1, forward")[-1:]}
    assert f">{cell}<" in page
    assert "minus that of F, paired" in page
    assert cell.replace("[", "\\[") in (here / "report" / "results.md").read_text(encoding="utf-8")


def test_a_report_without_a_bootstrap_has_no_intervals(here: Path, capsys: Output) -> None:
    assert report() == 0
    assert "paired" not in capsys.readouterr().out
    assert "bootstrap" not in json.loads((here / "report" / "results.json").read_text())


def test_a_baseline_is_a_row_of_the_table(here: Path, capsys: Output) -> None:
    said = refusal(report("--bootstrap", 100, "--baseline", "G"), capsys)
    assert "no result is called 'G'; the results are F; B; 3-1, forward basis; " in said
    assert "--baseline only applies with --bootstrap" in refusal(report("--baseline", "F"), capsys)
    assert report("--bootstrap", 100, "--baseline", "late fusion F + B, wsf") == 0
    assert "mAP (%) minus that of late fusion F + B, wsf, paired" in capsys.readouterr().out
