"""`bitad diagnose` as typed: runs, detection files, their ground truth, and what is printed and written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import config_of, feature_data
from matplotlib.image import imread
from runs import guesses, truth_of, write_run

import bitad
from bitad.cli import main
from bitad.config.schema import Config
from bitad.data.detections import read_detections, write_detections
from bitad.data.formats.database import read_annotations, write_annotations

SHARED = Path(__file__).parents[1] / "../shared"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason=f"the reference folder {SHARED} is missing")

Command = Callable[..., str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return feature_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def here(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a folder of runs: F and B of seed 0, F of seed 1, and a pair."""
    monkeypatch.chdir(tmp_path)
    for overrides in ([], ["direction=reverse"], ["seed=1"], ["experiment=1"]):
        write_run(config_of(data, "output=runs", "name=my", *overrides))
    return tmp_path


@pytest.fixture
def truth(data: Path) -> Path:
    return data.parent / "annotations.json"


@pytest.fixture
def said(here: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command that must succeed; what it printed."""

    def run(*arguments: object) -> str:
        assert main(["diagnose", *map(str, arguments)]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(here: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command that must fail with one line; that line."""

    def run(*arguments: object) -> str:
        assert main(["diagnose", *map(str, arguments)]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        (line,) = [line for line in err.splitlines() if ": error: " in line]
        assert "--debug" not in line, "an error that nobody foresaw"
        return line

    return run


FORWARD, REVERSE, PAIR = "runs/my-forward-seed0", "runs/my-reverse-seed0", "runs/my-1-seed0"


def test_a_run_is_diagnosed_against_its_own_ground_truth(said: Command, data: Path, tmp_path: Path) -> None:
    printed = said(FORWARD, "--json", "figures.json", "--per-class")
    config = config_of(data)
    expected = bitad.diagnose(
        truth_of(config), read_detections(f"{FORWARD}/detections.json"), tiou=config.test.tiou
    )
    stored = json.loads(Path("figures.json").read_text())
    assert stored["results"] == {"F": json.loads(json.dumps(expected.to_json()))}
    assert stored["segments_compared_with_first"] == {}
    for text in (
        f"{100 * expected.average_map_n:.2f}",
        f"{100 * expected.gains['background'].mean():.2f}",
        f"{100 * expected.group_shares[0]['localization']:.2f}",
        *expected.classes,
        "Borders: quantiles of these segments.",
    ):
        assert text in printed


def test_several_results_stand_side_by_side_with_differences_to_the_first(said: Command) -> None:
    merged = bitad.merge(*(read_detections(f"{run}/detections.json") for run in (FORWARD, REVERSE)))
    merged.to_json("late.json")
    printed = said(FORWARD, REVERSE, "late.json", "--json", "figures.json")
    stored = json.loads(Path("figures.json").read_text())["results"]
    assert list(stored) == ["F", "B", "late.json"]
    rows = [line for line in printed.splitlines() if line.startswith("localization")]
    gains = [100 * one["gains"]["localization"]["average_map_n"] for one in stored.values()]
    assert rows[0].split() == [
        "localization",
        *(f"{gain:.2f}" for gain in gains),
        *(f"{gain - gains[0]:+.2f}" for gain in gains[1:]),
    ]
    assert "missed by F, found" in printed
    missed = [one["missed"]["share"] for one in stored.values()]
    beside = json.loads(Path("figures.json").read_text())["segments_compared_with_first"]
    segments = sum(stored["F"]["segments"].values())
    for name, share in zip(("B", "late.json"), missed[1:], strict=True):
        change = [found - lost for found, lost in zip(beside[name]["found"], beside[name]["lost"], strict=True)]
        fewer = [segments * (first - other) for first, other in zip(missed[0], share, strict=True)]
        assert change == pytest.approx(fewer)


def test_a_pair_is_diagnosed_by_its_merged_result(said: Command) -> None:
    said(PAIR, "--json", "pair.json")
    merged = bitad.diagnose(truth_of(config_at(PAIR)), read_detections(f"{PAIR}/detections.json"))
    assert json.loads(Path("pair.json").read_text())["results"]["1"]["ap_n"] == merged.to_json()["ap_n"]


def test_seeds_of_one_variant_are_averaged(said: Command, data: Path) -> None:
    write_run(config_of(data, "output=runs", "name=my", "direction=reverse", "seed=1"))
    printed = said("runs/my-forward-seed?", "runs/my-reverse-seed?", PAIR, "--per-class", "--json", "figures.json")
    stored = json.loads(Path("figures.json").read_text())
    results = stored["results"]
    assert list(results) == ["F, seed 0", "F, seed 1", "B, seed 0", "B, seed 1", "1"]
    assert [line.split("  ")[0] for line in printed.splitlines()[4:9]] == list(results)
    means = []
    for names in (("F, seed 0", "F, seed 1"), ("B, seed 0", "B, seed 1"), ("1",)):
        gains = [100 * results[name]["gains"]["localization"]["average_map_n"] for name in names]
        means.append(sum(gains) / len(gains))
    (gain, *_) = (line.split() for line in printed.splitlines() if line.startswith("localization"))
    assert gain[1:] == [*(f"{mean:.2f}" for mean in means), *(f"{mean - means[0]:+.2f}" for mean in means[1:])]
    # Seed 0 of B beside seed 0 of F, and seed 1 beside seed 1; the pair has only seed 0.
    segments = sum(results["1"]["segments"].values())
    after = printed[printed.index("Segments found and missed") :].split("\n\n")[1].splitlines()
    (beside,) = (line.split() for line in after if line.endswith(str(segments)))
    assert beside[0] == "B"
    fewer = [
        np.mean(results[f"F, seed {seed}"]["missed"]["share"])
        - np.mean(results[f"B, seed {seed}"]["missed"]["share"])
        for seed in (0, 1)
    ]
    assert float(beside[3]) == pytest.approx(segments * np.mean(fewer), abs=0.006)
    assert float(beside[1]) - float(beside[2]) == pytest.approx(float(beside[3]), abs=0.011)
    assert "The other tables have means over seeds" in printed


def test_runs_of_several_names_are_told_apart(said: Command, data: Path) -> None:
    write_run(config_of(data, "output=runs", "name=your"))
    said(FORWARD, "runs/your-forward-seed0", "--json", "figures.json")
    assert list(json.loads(Path("figures.json").read_text())["results"]) == ["F (my)", "F (your)"]


def config_at(run: str) -> Config:
    from bitad.config.loading import load_run_config

    return load_run_config(Path(run))


def test_options_choose_thresholds_ties_and_bins(said: Command, truth: Path) -> None:
    file = f"{FORWARD}/detections.json"
    given = (file, "--ground-truth", truth, "--subset", "validation")
    printed = said(*given, "--json", "a.json")
    assert "tIoU 0.3 to 0.7, mean" in printed
    options = ("--tiou", "0.5", "--ties", "file", "--bins", "activitynet", "--confusion-tiou", "0.7")
    printed = said(*given, *options, "--json", "b.json")
    assert "Diagnosis (%), tIoU 0.5\n" in printed
    assert "the first in the annotations decides" in printed
    assert "Borders: DETAD's for activitynet." in printed
    stored = json.loads(Path("b.json").read_text())["results"]["detections.json"]
    annotations = bitad.read_annotations(truth)
    chosen = {"tiou": [0.5], "ties": "file", "bins": "activitynet", "confusion_tiou": 0.7}
    expected = bitad.diagnose(annotations, read_detections(file), subset="validation", **chosen)
    assert stored == json.loads(json.dumps(expected.to_json()))
    assert stored["settings"]["ties"] == "file"
    assert stored["confusion"]["tiou"] == 0.7


def test_a_folder_holds_tables_figures_and_a_page(said: Command) -> None:
    printed = said(FORWARD, REVERSE, "--out", "errors")
    assert "see errors/index.html" in printed
    written = {path.name for path in Path("errors").iterdir()}
    pictures = {"errors.png", "gains.png", "characteristics.png", "confusion-1.png", "confusion-2.png"}
    assert written == {"index.html", "results.json", "results.md"} | pictures
    page = Path("errors/index.html").read_text()
    for picture in pictures:
        assert f'src="{picture}"' in page
        assert imread(f"errors/{picture}").std() > 0
    assert json.loads(Path("errors/results.json").read_text())["results"].keys() == {"F", "B"}
    assert "**Easy and hard segments (%)**" in Path("errors/results.md").read_text()
    said(FORWARD, "--out", "errors")  # its own page may be replaced
    Path("errors/index.html").write_text("mine")
    assert main(["diagnose", FORWARD, "--out", "errors"]) == 1


def test_what_is_missing_or_wrong_is_told_before_the_work(refused: Command, truth: Path, data: Path) -> None:
    file = f"{FORWARD}/detections.json"
    assert "name its annotations with --ground-truth" in refused(file)
    assert "has the subsets training, validation; name one with --subset" in refused(file, "--ground-truth", truth)
    assert "--subset only applies with --ground-truth" in refused(FORWARD, "--subset", "validation")
    assert "no video is in subset 'Test'" in refused(file, "--ground-truth", truth, "--subset", "Test")
    assert "none.json: no such file" in refused("none.json", "--ground-truth", truth, "--subset", "validation")
    assert "'runs/your-*' matches no run directory" in refused("runs/your-*")
    assert "is given twice" in refused(FORWARD, FORWARD)
    assert "is given twice" in refused(FORWARD, file)
    assert "--classes only applies to detection files" in refused(FORWARD, "--classes", truth)
    shutil.copytree(FORWARD, "copy")
    assert "are both F, seed 0; leave one out" in refused(FORWARD, "copy")
    write_run(config_of(data, "output=other", "name=my", "seed=5", "test.tiou=[0.5]"))
    given = ("--ground-truth", truth, "--subset", "validation")
    assert "was tested at another tIoU than run runs" in refused(FORWARD, "other/my-forward-seed5", *given)
    assert "compare runs of one test set and tIoU" in refused(FORWARD, "other/my-forward-seed5")
    assert "--tiou 0.5:2:0.5: give first:last:step" in refused(FORWARD, "--tiou", "0.5:2:0.5")
    assert "--confusion-tiou 0: give a number above 0" in refused(FORWARD, "--confusion-tiou", "0")
    assert "the output would replace the input" in refused(FORWARD, "--json", file)
    Path("results.json").write_bytes(Path(file).read_bytes())
    assert "would replace the input results.json" in refused(FORWARD, "results.json", "--out", ".")
    other = guesses(truth_of(config_of(data)), [1], 0.1)
    elsewhere = replace(other, videos=tuple(f"other {i}" for i in range(len(other.videos))), durations_s={})
    write_detections(elsewhere, "elsewhere.json")
    assert "no detection is in a video of the runs' ground truth" in refused(FORWARD, "elsewhere.json")


def test_detections_that_fit_the_ground_truth_in_part_only_are_diagnosed(said: Command, tmp_path: Path) -> None:
    """A class and a video without ground truth, a class without detections, one without usable segments."""
    segments = {"v": [(0, 4, "a"), (5, 9, "b"), (9, 9, "c")], "w": [(1, 3, "a")]}
    database = {
        name: {
            "subset": "test",
            "duration": 10,
            "annotations": [{"segment": [start, end], "label": label} for start, end, label in rows],
        }
        for name, rows in segments.items()
    }
    Path("gt.json").write_text(json.dumps({"database": database}))
    rows = {"v": [(0, 4, "a", 0.9), (5, 9, "x", 0.8), (8, 10, "c", 0.7)], "z": [(1, 3, "a", 0.6)]}
    results = {
        name: [{"segment": [start, end], "label": label, "score": score} for start, end, label, score in found]
        for name, found in rows.items()
    }
    Path("found.json").write_text(json.dumps({"results": results}))
    printed = said("found.json", "--ground-truth", "gt.json", "--out", "errors", "--per-class")
    assert "Classes without detections: b." in printed
    assert "Detections of classes without ground truth, ignored: 2 (c, x)." in printed
    assert "Detections in videos without ground truth, which are background: 1 (z)." in printed
    assert "Segments left out (without length, or longer than their video): 1." in printed
    assert "Classes without any other segment, not in the means: c." in printed
    stored = json.loads(Path("errors/results.json").read_text())["results"]["found.json"]
    assert stored["ap"] == {"a": [0.5] * 5, "b": [0.0] * 5}


def test_ambiguous_segments_are_left_out_which_is_logged(
    said: Command, truth: Path, caplog: pytest.LogCaptureFixture
) -> None:
    annotations = read_annotations(truth)
    some = {n: replace(v, labels=("Ambiguous", *v.labels[1:])) for n, v in annotations.videos.items()}
    write_annotations(replace(annotations, videos=some), "some.json")
    given = ("--subset", "validation", "--json", "figures.json")
    with caplog.at_level("INFO", "bitad"):
        said(f"{FORWARD}/detections.json", "--ground-truth", "some.json", *given)
    assert f"some.json: {len(some)} segments of no class (Ambiguous) are left out" in caplog.text
    assert (
        "Ambiguous" not in json.loads(Path("figures.json").read_text())["results"]["detections.json"]["segments"]
    )


@needs_shared
def test_a_test_set_is_diagnosed_in_five_seconds_of_cpu_time() -> None:
    resource = pytest.importorskip("resource", reason="this system does not count a process's CPU time")
    thumos = SHARED / "data/thumos14"
    files = [str(thumos / "actionformer_detections.json.gz"), "--ground-truth", str(thumos / "thumos14.json.gz")]
    command = [sys.executable, "-m", "bitad", "diagnose", *files, "--subset", "Test", "--bins", "thumos14"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 5
    assert (
        "10.46" in printed.splitlines()[-1] or "16.81" in printed
    )  # localization of the best 10 G, own label first
