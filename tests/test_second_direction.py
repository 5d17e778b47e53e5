"""The benchmark of the second direction: what it trains, that it resumes, and what it reports; without trainings."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from runs import write_run

from bitad.config.loading import differences
from bitad.data.detections import Detections, read_detections
from bitad.demo import Job, Scale, playroom, playroom_hard
from bitad.evaluation.mean_average_precision import evaluate
from bitad.reports.comparison import Run
from bitad.runtime.files import write_json

PARTS = {
    "two networks (seed)": ("seed", None),
    "+ phase of the grid": ("grid", "seed"),
    "+ mirrored frames": ("flip", "seed, sides fixed"),
    "+ another encoder": ("encoder", "seed"),
    "+ reverse playback": ("direction", "seed"),
    "reverse playback beyond the grid": ("direction", "grid"),
    "reverse playback beyond another encoder": ("direction", "encoder"),
}
FUSIONS = ("late fusion", "3-3")
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def in_this_process(render: Callable[..., Any], *given: Any, **options: Any) -> Any:
    return render(*given, **{**options, "workers": 0})


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with few, small and short videos that are rendered in this process."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import second_direction

    monkeypatch.setattr(second_direction, "DEFAULT", Scale("small", training=1, validation=2))
    monkeypatch.setattr(
        playroom_hard, "HARD", replace(playroom_hard.HARD, training=1, validation=2, duration_s=(8, 9))
    )
    for module in (playroom, playroom_hard):
        monkeypatch.setattr(module, "PIXELS", 32)
        render = partial(in_this_process, module.write_data_set)
        monkeypatch.setattr(module, "write_data_set", render)
    return second_direction


@pytest.fixture
def salads(tmp_path: Path) -> Path:
    """Four videos of two folds in the form of 50 Salads' files."""
    folder = tmp_path / "salads"
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = {"a": 1, "b": 1, "c": 2, "d": 2}
    np.savez(folder / "50salads_eval_svm.npz", **{name: rng.normal(size=(60, 10)).astype("f4") for name in names})
    segments = [{"label": str(k), "label_id": k, "segment(frames)": [10 * k, 10 * k + 8]} for k in (1, 2, 3)]
    database = {name: {"split": fold, "num_frames": 60, "annotations": segments} for name, fold in names.items()}
    write_json({"database": database}, folder / "50salads_eval_svm.json")
    return folder


def only_write(jobs: Sequence[Any]) -> None:
    """In place of training: runs with detections that are guesses, and an empty encoder."""
    for job in jobs:
        if isinstance(job, Job):
            if not job.directory.exists():
                write_run(job.config)
        elif not job.directory.exists():
            job.directory.touch()


def test_the_trainings_of_the_stages(benchmark: ModuleType, salads: Path, tmp_path: Path) -> None:
    plan = benchmark.Plan(tmp_path / "out", salads, benchmark.SEEDS)
    count = {stage: len(plan.jobs(stage)) for stage in benchmark.STAGES}
    # encoder; F, B, other encoder; three kinds; F for longer; 3-3 of five and of three seeds; 1s twice, distil
    assert count["playroom"] == 1 + 3 * 5 + 3 * 3 + 3 + 3 * 5 + 3 * 3 + 3 * 3
    assert count["playroom-hard"] == 1 + 6 * 3 + 3 * 3
    assert count["50salads"] == 2 * (2 * 2 + 2)
    assert count["longer"] == 1 + 4 * 3 + 3 * 3  # F twice: for two and four times the epochs
    jobs = [job for stage in benchmark.STAGES for job in plan.jobs(stage)]
    assert len({job.directory for job in jobs}) == len(jobs) - 2 - 3  # the encoder, and F for longer, are shared
    trained = [job.config for job in jobs if isinstance(job, Job)]
    assert all(tmp_path / "out" in config.run_directory.parents for config in trained)
    made = set()
    for job in jobs:
        assert job.needs() <= made, job.directory
        made.add(job.directory)


@pytest.mark.parametrize(
    ("control", "second", "changes"),
    [
        ("SEED", "playroom-forward-seed1", set()),
        ("OTHER_ENCODER", "playroom-encoder1-forward-seed0", {"model.backbone.weights"}),
        ("DIRECTION", "playroom-reverse-seed0", {"direction"}),
        ("ON_GRID", "playroom-reversed-features-seed0", {"direction"}),
        ("SEED_FIXED_SIDES", "playroom-unmirrored-forward-seed1", set()),
        ("FLIP", "playroom-unmirrored-flipped-seed0", {"direction"}),
    ],
)
def test_the_networks_of_a_control_differ_in_one_thing(
    benchmark: ModuleType, tmp_path: Path, control: str, second: str, changes: set[str]
) -> None:
    plan = benchmark.Plan(tmp_path, tmp_path, benchmark.SEEDS)
    control = getattr(benchmark, control)
    pair = plan.pair("playroom", control, 0)
    assert pair.config.init.reverse.name == second
    jobs = {job.directory: job for job in plan.jobs("playroom")}
    assert pair.directory in jobs
    one, other = (jobs[path].config for path in (pair.config.init.forward, pair.config.init.reverse))
    found = {key for key, _, _ in differences(*(config.model_dump(mode="json") for config in (one, other)))}
    assert found - {"name", "seed"} == changes
    assert (pair.config.pair.second_weights is not None) == ("model.backbone.weights" in changes)
    assert pair.config.views == (*one.views, *other.views)
    assert pair.config.training.augmentation.flip == one.training.augmentation.flip
    assert ("flip" in control.title or "sides" in control.title) == (one.training.augmentation.flip == 0)


def test_a_training_waits_for_the_encoder_that_it_stands_on(benchmark: ModuleType, tmp_path: Path) -> None:
    plan = benchmark.Plan(tmp_path, tmp_path, benchmark.SEEDS)
    for job in plan.jobs("playroom")[1:]:
        files = {job.config.model.backbone.weights, job.config.pair.second_weights}
        assert (plan.encoder in job.needs()) == any(str(plan.encoder) in str(file) for file in files)


def test_all_stages_are_made_once_and_reported_by_part(
    benchmark: ModuleType, salads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    seeds = {"playroom": 2, "playroom-hard": 2, "50salads": 2, "longer": 2}
    plan = benchmark.Plan(out, salads, seeds, resamples=100)
    made = benchmark.run(plan, benchmark.STAGES, train=only_write)
    told = capsys.readouterr().err
    assert [
        line.split()[:3] for line in told.splitlines() if line.startswith(("playroom", "50salads", "longer"))
    ] == [
        ["playroom", "33", "33"],
        ["playroom-hard", "18", "18"],
        ["50salads", "12", "12"],
        ["longer", "12", "12"],
    ]
    assert list(made) == [
        "playroom",
        "playroom-hard",
        "playroom-hard, symmetric",
        "playroom-hard, graded",
        "50salads",
        "longer",
    ]
    hard = [made[title] for title in made if "hard" in title]
    assert [len(one.measured.truth.videos) for one in hard] == [4, 2, 2]
    assert sorted(made["50salads"].measured.truth.videos) == ["a", "b", "c", "d"]
    for title, one in made.items():
        parts = {fusion: [name for name in PARTS if one.part(fusion, name)] for fusion in FUSIONS}
        direct = ["two networks (seed)", "+ reverse playback"]
        verdict = [name for name in PARTS if not {"flip", "grid"}.intersection(PARTS[name])]
        late = {"50salads": direct, "longer": verdict}.get(title, list(PARTS))
        trained = {"playroom": list(PARTS), "50salads": direct}.get(title, verdict)
        assert parts == {"late fusion": late, "3-3": trained}
        titles = [table.title for table in one.tables()]
        assert ("One network for the compute of two, average mAP (%)" in titles) == (
            title in ("playroom", "longer")
        )
    (table,) = [table for table in made["longer"].tables() if table.title.startswith("One network")]
    shown = dict(zip(table.columns, table.rows[0], strict=True))
    networks = made["longer"].json()["networks"]
    half, whole = (np.mean(list(networks[f"F, {epochs} epochs"].values())) for epochs in (24, 48))
    assert (shown["network"], shown["epochs"]) == ("F, 48 epochs", "48")
    assert shown["− F, 24 epochs"].value == pytest.approx(100 * (whole - half), abs=1e-9)
    files = [file for file in out.rglob("*") if file.suffix in (".mp4", ".jsonl")]
    dates = {file: file.stat().st_mtime_ns for file in files}
    again = benchmark.run(plan, benchmark.STAGES, train=only_write)
    assert {file: file.stat().st_mtime_ns for file in files} == dates
    assert [one.json() for one in again.values()] == [one.json() for one in made.values()]
    benchmark.second_networks.plot_parts(made, tmp_path / "parts.png")
    assert (tmp_path / "parts.png").stat().st_size > 10_000


def test_gains_are_those_of_the_evaluation(benchmark: ModuleType, tmp_path: Path) -> None:
    """By the obvious way: evaluate each fusion and its members, and subtract."""
    plan = benchmark.Plan(tmp_path, tmp_path, dict.fromkeys(benchmark.STAGES, 2), resamples=100)
    found = benchmark.run(plan, ["playroom"], train=only_write)["playroom"]
    truth = found.measured.truth

    def average(detections: Detections) -> float:
        return float(evaluate(truth, detections, tiou=found.measured.tiou).average_map)

    def stored(job: Job) -> float:
        return average(read_detections(next(iter(Run.read(job.directory).detection_files().values()))).forward())

    alone = {
        (kind.title, seed): stored(plan.network("playroom", kind, seed))
        for kind in benchmark.KINDS
        for seed in (0, 1)
    }
    for control in benchmark.CONTROLS:
        if control.first == control.second:
            chosen = [(0, 1)]
            members = [np.mean([alone[control.first.title, seed] for seed in (0, 1)])] * 2
        else:
            chosen = [(one, other) for one in (0, 1) for other in (0, 1)]
            members = [(alone[control.first.title, s] + alone[control.second.title, s]) / 2 for s in (0, 1)]
        late = []
        for one, other in chosen:
            sets = (
                found.measured.networks[control.first.title][str(one)],
                (found.measured.networks[control.second.title][str(other)]),
            )
            late.append(average(found.measured.fuse(sets)))
        whole = [stored(plan.pair("playroom", control, seed)) for seed in (0, 1)]
        fused = {fusion: found.fused[fusion][control.title] for fusion in FUSIONS}
        assert fused["late fusion"].average[0] == pytest.approx(np.mean(late), abs=1e-12)
        assert fused["late fusion"].gain[0] == pytest.approx(np.mean(late) - np.mean(members), abs=1e-12)
        assert fused["3-3"].average[0] == pytest.approx(np.mean(whole), abs=1e-12)
        assert fused["3-3"].gain[0] == pytest.approx(np.mean(whole) - np.mean(members), abs=1e-12)


def test_an_interrupted_pre_training_continues(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pretrain_playroom as script

    monkeypatch.setattr(script, "SAVE_EVERY", 2)
    monkeypatch.setattr(script, "accuracy", lambda model, count: 0.5)

    def pretrain(file: str, *options: str) -> None:
        given = [
            "pretrain",
            "--out",
            str(tmp_path / file),
            "--clips",
            "12",
            "--batch",
            "3",
            "--seed",
            "1",
            *options,
        ]
        monkeypatch.setattr(sys, "argv", given)
        script.main()

    pretrain("whole")
    clip = script.sample_clip
    with monkeypatch.context() as killed:
        killed.setattr(script, "save", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pretrain("parts")
    assert not (tmp_path / "parts").exists()
    (tmp_path / "parts.state").stat()
    with pytest.raises(SystemExit):
        pretrain("parts", "--lr", "0.1")
    assert script.sample_clip is clip
    pretrain("parts")
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    assert not (tmp_path / "parts.state").exists()


def test_data_of_other_parameters_are_not_mixed_in(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = benchmark.Plan(tmp_path, tmp_path, dict.fromkeys(benchmark.STAGES, 1))
    benchmark.prepare(plan, "playroom-hard")
    monkeypatch.setattr(playroom_hard, "HARD", replace(playroom_hard.HARD, pillars=2))
    with pytest.raises(ValueError, match="playroom-hard holds another data set"):
        benchmark.prepare(plan, "playroom-hard")
