"""Runs side by side. A run is a folder of a configuration, detections and metrics, all written here."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import config_of, feature_data, video_data
from runs import ALONE, guesses, truth_of, write_run

from bitad.data.detections import Detections, read_detections
from bitad.data.formats.database import read_annotations, write_annotations
from bitad.evaluation.mean_average_precision import evaluate
from bitad.inference.merge import merge
from bitad.reports.comparison import (
    TRAINED_PAIRS,
    VARIANTS,
    Comparison,
    Result,
    Run,
    compare,
    sensitivity_of_runs,
)
from bitad.reports.comparison_page import write_comparison

STARTS = ("init.forward=f", "init.reverse=b")
METHODS = ("soft-nms", "mean", "product", "wsf")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a data set whose test subset runs pretend to have looked at."""
    return feature_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def new_run(data: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a run directory of a configuration: detections of a quality, and losses."""

    def make(*overrides: str, noise: float = 0.3, losses: Sequence[float] = (2.0, 1.0)) -> Path:
        config = config_of(data, f"output={tmp_path / 'runs'}", *overrides)
        write_run(config, noise=noise, losses=losses)
        return config.run_directory

    return make


def result(comparison: Comparison, label: str) -> Result:
    return next(r for r in comparison.results if r.label == label)


def labels(comparison: Comparison) -> list[str]:
    return [r.label for r in comparison.results]


@pytest.mark.parametrize(
    ("overrides", "label"),
    [
        ([], "F"),
        (["direction=reverse"], "B"),
        (["experiment=1"], "1"),
        (["experiment=1-1", *STARTS], "1-1"),
        (["experiment=3-1", *STARTS, "pair.second=forward"], "3-1, two forward networks"),
        (["experiment=3-1", *STARTS, "pair.align=naive", "pair.fusion_init=random"], "3-1, naive, random"),
        (["experiment=3-2", *STARTS, "pair.align=naive"], "3-2, naive"),
        (["experiment=3-1", *STARTS, "pair.fusion=mean"], "3-1, mean fusion"),
        (["direction=reversed-features"], "F on reversed features"),
        (["experiment=3-3", *STARTS, "pair.second=reversed-features"], "3-3, reversed features"),
    ],
)
def test_runs_are_called_by_what_they_are_and_not_by_their_seed(
    data: Path, overrides: list[str], label: str
) -> None:
    assert Run(Path(), config_of(data, *overrides)).label == label
    assert Run(Path(), config_of(data, *overrides, "seed=7", "name=other")).label == label


@pytest.fixture(scope="module")
def on_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a data set of videos."""
    return video_data(tmp_path_factory.mktemp("videos") / "data", training=1, test=2, frames=50)


def test_each_control_is_fused_and_named_apart(on_videos: Path, tmp_path: Path) -> None:
    """Seed, encoder, flip, grid and direction, for single networks and trained pairs."""
    unmirrored = (f"output={tmp_path / 'runs'}", "training.augmentation.flip=0")
    encoders = [f"model.backbone.weights={tmp_path / name}.pth" for name in ("one", "two")]
    runs = []

    def make(*overrides: str) -> None:
        config = config_of(on_videos, *unmirrored, *overrides)
        write_run(config)
        runs.append(config.run_directory)

    for seed in ("seed=0", "seed=1"):
        for view in ("forward", "reverse", "flipped", "reversed-features"):
            make(encoders[0], seed, f"direction={view}")
        make(encoders[1], seed, "name=tiny-two")
        make(encoders[1], seed, "name=tiny-three", "training.lr=0.5")  # differs in more than the encoder
        for second in ("forward", "reverse", "flipped", "reversed-features"):
            make(encoders[0], seed, "experiment=3-3", *STARTS, f"pair.second={second}")
        second_encoder = f"pair.second_weights={tmp_path / 'two.pth'}"
        make(encoders[0], seed, "experiment=3-3", *STARTS, "pair.second=forward", second_encoder)
    comparison = compare(runs)
    found = {r.label: r for r in comparison.results}
    for fused, seeds in {
        "late fusion F + B": {"0", "1"},
        "control F + another F": {"0 + 1"},
        "control F + flipped F": {"0", "1"},
        "control F + F on reversed features": {"0", "1"},
        "control F + F on another encoder": {"0", "1"},
    }.items():
        for method in METHODS:
            assert found[f"{fused}, {method} (tiny)"].evaluations.keys() == seeds
    assert not [label for label in found if "encoder" in label and "(tiny)" not in label]
    for changes, bases in {
        "": ("forward basis", "reverse basis"),
        ", two forward networks": ("first network", "second network"),
        ", flipped": ("first network", "second network"),
        ", reversed features": ("forward basis", "reverse basis"),
        ", two forward networks, second encoder": ("first network", "second network"),
    }.items():
        for basis in (*bases, "merged"):
            assert found[f"3-3{changes}, {basis} (tiny)"].evaluations.keys() == {"0", "1"}
    # Late fusion is on one clock.
    files = [
        tmp_path / "runs" / f"tiny-{name}-seed0" / "detections.json" for name in ("forward", "reversed-features")
    ]
    settings = comparison.runs[0].config.test.nms
    fused = merge(*map(read_detections, files), method="wsf", settings=settings)
    expected = evaluate(comparison.truth, fused, tiou=comparison.runs[0].config.test.tiou)
    got = found["control F + F on reversed features, wsf (tiny)"].evaluations["0"]
    assert got.average_map == expected.average_map
    page = write_comparison(tmp_path / "report", comparison)
    assert "control F + F on another encoder, wsf (tiny)" in page.read_text()


def test_a_comparison_of_one_run_is_its_evaluation(data: Path, new_run: Callable[..., Path]) -> None:
    config = config_of(data)
    comparison = compare([new_run()])
    expected = evaluate(
        truth_of(config), guesses(truth_of(config), [0, *b"forward", 1], 0.3), tiou=config.test.tiou
    )
    assert labels(comparison) == ["F"]
    assert comparison.results[0].evaluations["0"].to_json() == expected.to_json()
    label, *figures, spread, lowest, seeds = comparison.table().rows[0]
    mean = 100 * expected.average_map
    assert (label, spread, lowest, seeds) == ("F", None, pytest.approx(mean), 1)
    assert figures == pytest.approx([*100 * expected.map_per_tiou, mean])
    assert comparison.loss_table().rows == []


def test_the_reverse_basis_counts_on_the_forward_clock(data: Path, new_run: Callable[..., Path]) -> None:
    config = config_of(data, "experiment=1")
    comparison = compare([new_run("experiment=1")])
    assert labels(comparison) == ["1, forward basis", "1, reverse basis", "1, merged"]
    truth = truth_of(config)
    first, second = (guesses(truth, [0, *b"1", k], 0.3) for k in (1, 2))
    merged = merge(first, second, method=config.test.merge)
    for row, detections in zip(comparison.results, (first, second, merged), strict=True):
        expected = evaluate(truth, detections, tiou=config.test.tiou)
        np.testing.assert_allclose(row.evaluations["0"].ap, expected.ap)


def test_the_controls_second_network_is_no_reverse_one(new_run: Callable[..., Path]) -> None:
    comparison = compare([new_run("experiment=1", "pair.second=forward")])
    label = "1, two forward networks"
    assert labels(comparison) == [f"{label}, first network", f"{label}, second network", f"{label}, merged"]
    for table in (comparison.table(), comparison.loss_table()):
        assert table.rows
        assert "reverse" not in table.text()


def test_mean_and_spread_are_over_seeds(new_run: Callable[..., Path]) -> None:
    comparison = compare([new_run(f"seed={seed}", noise=0.2 + 0.1 * seed) for seed in range(3)])
    row = dict(zip(comparison.table().columns, comparison.table().rows[0], strict=True))
    averages = [100 * e.average_map for e in comparison.results[0].evaluations.values()]
    assert len(set(averages)) == 3
    assert row["average"] == pytest.approx(np.mean(averages))
    assert row["spread"] == pytest.approx(np.std(averages, ddof=1))
    assert row["lowest seed"] == pytest.approx(min(averages))
    assert row["seeds"] == 3
    at = [100 * e.map_per_tiou[1] for e in comparison.results[0].evaluations.values()]
    assert row["0.4"] == pytest.approx(np.mean(at))


def test_late_fusion_pairs_seeds_and_the_control_goes_round(data: Path, new_run: Callable[..., Path]) -> None:
    runs = [new_run(f"seed={seed}") for seed in range(3)]
    runs += [new_run(f"seed={seed}", "direction=reverse") for seed in range(2)]
    comparison = compare(runs)
    expected = ["F", "B", *(f"late fusion F + B, {m}" for m in METHODS)]
    assert labels(comparison) == expected + [f"control F + another F, {m}" for m in METHODS]
    config = config_of(data)
    truth = truth_of(config)

    def forward(seed: int) -> Detections:
        return guesses(truth, [seed, *b"forward", 1], 0.3)

    def backward(seed: int) -> Detections:
        return guesses(truth, [seed, *b"reverse", 1], 0.3)

    for method in METHODS:
        fused, control = (
            result(comparison, f"{what}, {method}") for what in (expected[2][:17], "control F + another F")
        )
        pairs = {str(seed): (forward(seed), backward(seed)) for seed in range(2)}
        others = {f"{a} + {b}": (forward(a), forward(b)) for a, b in ((0, 1), (1, 2), (2, 0))}
        for found, of in ((fused, pairs), (control, others)):
            assert list(found.evaluations) == list(of)
            for seeds, (one, other) in of.items():
                merged = merge(one, other, method=method, settings=config.test.nms)
                ap = evaluate(truth, merged, tiou=config.test.tiou).ap
                np.testing.assert_allclose(found.evaluations[seeds].ap, ap)


def test_two_seeds_make_one_control_and_one_seed_none(new_run: Callable[..., Path]) -> None:
    first, second = new_run(), new_run("seed=4")
    assert labels(compare([first])) == ["F"]
    assert list(result(compare([second, first]), "control F + another F, wsf").evaluations) == ["0 + 4"]


def test_baselines_come_first_then_experiments_then_ablations(new_run: Callable[..., Path]) -> None:
    pairs = [
        ("experiment=3-1", *STARTS),
        ("experiment=1-1", *STARTS),
        ("experiment=3-1", *STARTS, "pair.align=naive"),
        ("experiment=1-1", *STARTS, "pair.second=forward"),
        ("experiment=1x", *STARTS),
    ]
    runs = [new_run(*overrides) for overrides in pairs] + [new_run("direction=reverse"), new_run()]
    comparison = compare(runs)
    expected = ["F", "B", *(f"late fusion F + B, {m}" for m in METHODS)]
    bases = ("forward basis", "reverse basis", "merged")
    expected += [f"{name}, {basis}" for name in ("1-1", "1x", "3-1") for basis in bases]
    expected += [f"1-1, two forward networks, {what}" for what in ("first network", "second network", "merged")]
    expected += [f"3-1, naive, {basis}" for basis in bases]
    assert labels(comparison) == expected
    assert [row[0] for row in comparison.loss_table().rows] == [
        "1-1",
        "1x",
        "3-1",
        "1-1, two forward networks",
        "3-1, naive",
    ]


def test_the_order_of_the_runs_does_not_matter(new_run: Callable[..., Path]) -> None:
    runs = [new_run(), new_run("seed=1"), new_run("direction=reverse"), new_run("experiment=1")]
    expected = compare(runs)
    for order in itertools.islice(itertools.permutations(runs), 1, None, 7):
        assert compare(order).json() == expected.json()


def test_runs_of_several_names_are_told_apart_and_not_fused(new_run: Callable[..., Path]) -> None:
    comparison = compare(
        [new_run("name=small"), new_run("name=large"), new_run("name=large", "direction=reverse")]
    )
    fused = [f"late fusion F + B, {m} (large)" for m in METHODS]
    assert labels(comparison) == ["F (large)", "F (small)", "B (large)", *fused]


def test_the_notes_name_the_ground_truth_once_and_the_best_baseline(new_run: Callable[..., Path]) -> None:
    runs = [new_run(f"seed={seed}", noise=0.2 + 0.1 * seed) for seed in range(3)] + [new_run("experiment=1")]
    comparison = compare(runs)
    notes = comparison.table().notes
    assert sum("subset “validation”, 3 videos" in note for note in notes) == 1
    best = result(comparison, "F")
    assert best.spread is not None
    assert f"The best baseline is F: {best.mean:.2f}; minus its spread: {best.mean - best.spread:.2f}." in notes
    assert any("next" in note for note in notes)


def test_seeds_of_different_recipes_are_told(new_run: Callable[..., Path]) -> None:
    notes = compare([new_run(), new_run("seed=1", "training.epochs=9")]).table().notes
    assert "F: the seeds also differ in training.epochs." in notes
    assert not any("differ" in note for note in compare([new_run("seed=2"), new_run("seed=3")]).table().notes)


def test_the_loss_table_gives_the_first_losses_and_the_mean_of_the_last(new_run: Callable[..., Path]) -> None:
    runs = [new_run("experiment=1", f"seed={seed}", losses=[8 + seed, *[4] * 17, 2, 1]) for seed in range(2)]
    label, *figures, seeds = compare(runs).loss_table().rows[0]
    assert (label, seeds) == ("1", 2)
    assert figures == pytest.approx([8.5, 0.75 * 8.5, 0.25 * 8.5, 1.5])


def test_losses_that_were_not_told_apart_or_are_not_finite_are_said_so(new_run: Callable[..., Path]) -> None:
    run = new_run("experiment=1")
    (run / "metrics.jsonl").write_text(
        '{"kind": "training", "step": 0, "loss": 3.0}\n{"kind": "training", "step": 1, "loss": null}\n'
    )
    assert compare([run]).loss_table().rows == [("1", 3.0, None, None, "not finite", 1)]
    (run / "metrics.jsonl").unlink()
    assert compare([run]).loss_table().rows == []


def test_progress_counts_every_result(new_run: Callable[..., Path]) -> None:
    seen: list[tuple[int, int]] = []
    compare([new_run(), new_run("direction=reverse")], on_progress=lambda done, total: seen.append((done, total)))
    total = 2 + len(METHODS)
    assert seen == [(done, total) for done in range(1, total + 1)]


def test_what_is_no_finished_run_is_refused(new_run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no runs to compare; give at least one"):
        compare([])
    with pytest.raises(
        FileNotFoundError, match=r"nowhere is not a run directory.*give a folder that `bitad train` wrote"
    ):
        compare([tmp_path / "nowhere"])
    run = new_run("experiment=1")
    (run / "detections.reverse.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"has no detections\.reverse\.json yet; finish its training first"
    ):
        compare([run])


def test_a_run_given_twice_is_refused(new_run: Callable[..., Path], tmp_path: Path) -> None:
    run = new_run()
    for again in (run, run / ".." / run.name):
        with pytest.raises(ValueError, match="are both tiny-forward with seed 0; leave one out"):
            compare([run, again])
    new_run(f"output={tmp_path / 'elsewhere'}")
    with pytest.raises(ValueError, match="are both tiny-forward with seed 0; leave one out"):
        compare([run, tmp_path / "elsewhere" / run.name])


def test_runs_tested_on_different_things_are_refused(
    data: Path, new_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = new_run()
    with pytest.raises(ValueError, match=r"at tIoU 0\.5, run .* at tIoU 0\.3, 0\.4, 0\.5, 0\.6, 0\.7; compare"):
        compare([run, new_run("seed=1", "test.tiou=[0.5]")])
    with pytest.raises(ValueError, match=r"on subset training of .* on subset validation of .*; compare runs"):
        compare([run, new_run("seed=2", "data.test_subset=training")])
    annotations = read_annotations(data.parent / "annotations.json")
    moved = {name: replace(video, segments=video.segments + 0.1) for name, video in annotations.videos.items()}
    write_annotations(replace(annotations, videos=moved), tmp_path / "moved.json")
    with pytest.raises(
        ValueError, match=r"on subset validation of .*moved\.json at .*; compare runs of one test set"
    ):
        compare([run, new_run("seed=3", f"data.annotations={tmp_path / 'moved.json'}")])


def test_copies_of_one_ground_truth_are_the_same(data: Path, new_run: Callable[..., Path], tmp_path: Path) -> None:
    write_annotations(read_annotations(data.parent / "annotations.json"), tmp_path / "copy.json")
    comparison = compare([new_run(), new_run("seed=1", f"data.annotations={tmp_path / 'copy.json'}")])
    assert len(comparison.results[0].evaluations) == 2
    (tmp_path / "copy.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"run .*copy\.json: no such file; correct data\.annotations in its"
    ):
        compare([run.directory for run in comparison.runs])


def test_the_report_holds_tables_pictures_and_timelines(new_run: Callable[..., Path], tmp_path: Path) -> None:
    runs = [
        new_run(),
        new_run("seed=1"),
        new_run("direction=reverse"),
        new_run("experiment=1"),
        new_run("experiment=1x", *STARTS, "pair.align=naive"),
    ]
    comparison = compare(runs)
    out = tmp_path / "report"
    page = write_comparison(out, comparison)
    assert page == out / "index.html"
    assert {path.name for path in out.iterdir()} == {
        "index.html",
        "results.md",
        "results.json",
        "comparison.png",
        "training-baselines.png",
        "training-experiments.png",
        "training-ablations-and-controls.png",
        "errors.png",
        "gains.png",
    }
    stored = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert list(stored["results"]) == labels(comparison)
    assert (
        stored["results"]["F"]["seeds"]["1"]["average_map"] == comparison.results[0].evaluations["1"].average_map
    )
    assert [run["label"] for run in stored["runs"]] == ["F", "F", "B", "1", "1x, naive"]
    diagnosed = stored["diagnosis"]["results"]
    assert list(diagnosed)[:2] == ["F", "B"]
    assert diagnosed["F"]["average_map"] == stored["results"]["F"]["seeds"]["0"]["average_map"]
    assert "**Gain without each kind of error (points)**" in (out / "results.md").read_text(encoding="utf-8")
    assert "| 1, merged |" in (out / "results.md").read_text(encoding="utf-8")
    best = comparison.best(TRAINED_PAIRS, VARIANTS)
    assert best is not None
    html = page.read_text(encoding="utf-8")
    for text in ("test_0", "Ground truth", best.label, "comparison.png"):
        assert text in html
    assert re.findall("<caption>(.*?)</caption>", html)[:3] == [
        "mAP (%)",
        "Average mAP (%): difference to the baselines",
        "Training losses of two networks",
    ]


@pytest.mark.parametrize("inside", [True, False])
def test_the_page_links_to_videos_by_relative_paths(
    new_run: Callable[..., Path], tmp_path: Path, inside: bool
) -> None:
    out = tmp_path / "report"
    videos = (out if inside else tmp_path) / "videos"
    videos.mkdir(parents=True)
    (videos / "test_0.mp4").touch()
    backbone = ("model.backbone.size=tiny", "model.backbone.pixels=32")
    source = ("data.features=null", "data.feature_channels=null", f"data.videos={videos}")
    html = write_comparison(out, compare([new_run(*source, *backbone)])).read_text(encoding="utf-8")
    assert f'"media":"{"" if inside else "../"}videos/test_0.mp4"' in html
    assert str(tmp_path) not in html


def test_a_report_of_baselines_only_has_no_losses_of_two_networks(
    new_run: Callable[..., Path], tmp_path: Path
) -> None:
    write_comparison(tmp_path / "report", compare([new_run()]))
    assert "two networks" not in (tmp_path / "report" / "results.md").read_text(encoding="utf-8")


def test_a_part_of_the_videos_is_evaluated_alone(new_run: Callable[..., Path]) -> None:
    runs = [new_run(), new_run("direction=reverse")]
    comparison = compare(runs, part="_1")
    assert list(comparison.truth.videos) == ["test_1"]
    truth = replace(comparison.truth, videos={"test_1": compare(runs).truth.videos["test_1"]})
    for result, run in zip(comparison.results, runs, strict=False):
        found = read_detections(run / "detections.json").forward().of_video("test_1")
        expected = evaluate(truth, found, tiou=comparison.runs[0].config.test.tiou)
        assert result.averages == [pytest.approx(100 * expected.average_map)]
    assert "Evaluated on videos with '_1' in their names: 1." in comparison.table().notes
    with pytest.raises(ValueError, match="no tested video has 'part' in its name"):
        compare(runs, part="part")
    with pytest.raises(ValueError, match="compare them without a part"):
        sensitivity_of_runs(comparison, ALONE)
