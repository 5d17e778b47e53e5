"""The benchmark of the second direction: what it trains, that it resumes, and what it reports; without trainings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from runs import write_run

import bitad.demo
from bitad.demo import Job, Scale, playroom, playroom_hard
from bitad.runtime.files import write_json

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with few, small and short videos that are rendered in this process."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import second_direction

    monkeypatch.setattr(second_direction, "DEFAULT", Scale("small", training=1, validation=2))
    monkeypatch.setattr(bitad.demo, "cores", lambda: 0)
    monkeypatch.setattr(
        playroom_hard, "HARD", replace(playroom_hard.HARD, training=1, validation=2, duration_s=(8, 9))
    )
    for module in (playroom, playroom_hard):
        monkeypatch.setattr(module, "PIXELS", 32)
    render = playroom_hard.write_data_set
    monkeypatch.setattr(
        playroom_hard, "write_data_set", lambda *given, **options: render(*given, **{**options, "workers": 0})
    )
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


def only_write(jobs: Sequence[Job]) -> None:
    """In place of training: runs with detections that are guesses."""
    for job in jobs:
        if not job.directory.exists():
            write_run(job.config)


def test_every_stage_has_its_baselines_once(benchmark: ModuleType, salads: Path, tmp_path: Path) -> None:
    plan = benchmark.Plan(tmp_path / "out", salads, {"playroom": 5, "playroom-hard": 3, "50salads": 2})
    for stage, folds in (("playroom", 1), ("playroom-hard", 1), ("50salads", 2)):
        configs = [job.config for job in plan.jobs(stage)]
        assert len({config.run_directory for config in configs}) == len(configs) == 2 * folds * plan.seeds[stage]
        assert {config.direction for config in configs} == {"forward", "reverse"}
        assert {config.experiment for config in configs} == {"baseline"}
        assert all(tmp_path / "out" in config.run_directory.parents for config in configs)


@pytest.mark.parametrize(
    ("seeds", "names"),
    [(1, ["F+B"]), (2, ["2F", "F+B", "2F+2B"]), (3, ["2F", "F+B", "2F+2B"]), (4, ["2F", "F+B", "4F", "2F+2B"])],
)
def test_only_ensembles_that_the_seeds_allow_are_fused(
    benchmark: ModuleType, seeds: int, names: list[str]
) -> None:
    assert [one.name for one in benchmark.possible_ensembles(seeds)] == names


def test_all_stages_are_made_once_and_reported_by_part(
    benchmark: ModuleType, salads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    seeds = {"playroom": 1, "playroom-hard": 2, "50salads": 2}
    plan = benchmark.Plan(out, salads, seeds, resamples=100)
    made = benchmark.run(plan, benchmark.STAGES, train=only_write)
    told = capsys.readouterr().err
    assert [line.split()[:3] for line in told.splitlines() if line.startswith(("playroom", "50salads"))] == [
        ["playroom", "2", "2"],
        ["playroom-hard", "4", "4"],
        ["50salads", "8", "8"],
    ]
    assert {stage: list(parts) for stage, parts in made.items()} == {
        "playroom": [""],
        "playroom-hard": ["", "symmetric", "graded"],
        "50salads": [""],
    }
    hard = made["playroom-hard"]
    assert [len(one.truth.videos) for one in hard.values()] == [4, 2, 2]
    for part in ("symmetric", "graded"):
        assert all(part in name for name in hard[part].truth.videos)
        assert hard[part].results[0].evaluations["0"].predictions_by_unknown_video == {}
    assert sorted(made["50salads"][""].truth.videos) == ["a", "b", "c", "d"]
    tables = benchmark.tables(made)
    titles = [table.title for table in tables]
    assert "playroom-hard, symmetric: Late fusion of several networks by wsf, mAP (%)" in titles
    assert "50salads: Errors of starts and ends (milliseconds)" in titles
    files = [file for file in out.rglob("*") if file.suffix in (".mp4", ".jsonl")]
    dates = {file: file.stat().st_mtime_ns for file in files}
    again = benchmark.run(plan, benchmark.STAGES, train=only_write)
    assert {file: file.stat().st_mtime_ns for file in files} == dates
    assert benchmark.tables(again) == tables


def test_data_of_other_parameters_are_not_mixed_in(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = benchmark.Plan(tmp_path, tmp_path, dict.fromkeys(benchmark.STAGES, 1))
    benchmark.prepare(plan, "playroom-hard")
    monkeypatch.setattr(playroom_hard, "HARD", replace(playroom_hard.HARD, pillars=2))
    with pytest.raises(ValueError, match="playroom-hard holds another data set"):
        benchmark.prepare(plan, "playroom-hard")
