"""GTEA: the conversion of its files, the argmax runs to be beaten, the trainings, and that a brief one beats them."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pytest
from runs import ALONE

from bitad.config.names import EXPERIMENTS, MergeMethod
from bitad.data.detections import read_detections
from bitad.data.formats.database import read_annotations, write_annotations
from bitad.demo import Job, train_side_by_side
from bitad.evaluation.mean_average_precision import evaluate
from bitad.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "../shared/data/actionseg"
METHODS = get_args(MergeMethod)
TIOU = (0.3, 0.4, 0.5, 0.6, 0.7)


def load_benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gtea_benchmark", ROOT / "benchmarks/gtea.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


gtea = load_benchmark()
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the reference data beside the checkout are missing")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two videos in the form of the reference data."""
    database = {
        "a": {
            "split": 1,
            "num_frames": 29,
            "annotations": [
                {"label": "2", "label_id": 2, "segment(frames)": [0, 10]},
                {"label": "1", "label_id": 1, "segment(frames)": [12, 29]},
            ],
        },
        "b": {"split": 2, "num_frames": 58, "annotations": []},
    }
    path = tmp_path / "gtea_svm.json"
    path.write_text(json.dumps({"database": database}))
    return path


def test_rows_become_seconds_and_splits_become_folds(small: Path) -> None:
    annotations = gtea.read_gtea(small)
    assert annotations.classes == ("1", "2")
    video = annotations.videos["a"]
    assert (video.subset, video.labels, video.frames) == ("fold1", ("2", "1"), 29)
    assert video.duration_s == pytest.approx(10.0)
    assert video.segments == pytest.approx(np.array([[0.0, 10.0], [12.0, 29.0]]) / 2.9)
    assert annotations.subsets() == {"fold1": 1, "fold2": 1}


def test_every_fold_is_the_test_set_once_and_its_file_reads_back(small: Path, tmp_path: Path) -> None:
    annotations = gtea.read_gtea(small)
    for fold, tested in (("fold1", "a"), ("fold2", "b")):
        written = tmp_path / f"{fold}.json"
        write_annotations(gtea.with_test_folds(annotations, {fold}), written)
        read = read_annotations(written)
        assert list(read.subset("test").videos) == [tested]
        assert read.subsets() == {"test": 1, "training": 1}
        assert read.classes == annotations.classes
        np.testing.assert_array_equal(read.videos["a"].segments, annotations.videos["a"].segments)


def test_runs_of_the_argmax_are_those_of_a_walk_along_the_rows(small: Path) -> None:
    rng = np.random.default_rng(0)
    annotations = gtea.read_gtea(small)
    features = {name: rng.normal(size=(video.frames, 3)) for name, video in annotations.videos.items()}
    expected = []
    for name, scores in features.items():
        row = 0
        for column, run in groupby(scores.argmax(axis=1).tolist()):
            length = len(list(run))
            if column:
                mean = scores[row : row + length, column].mean()
                expected.append((name, str(column), row / 2.9, (row + length) / 2.9, mean))
            row += length
    found = gtea.argmax_runs(annotations, features, gtea.mean_score)
    assert len(found) == len(expected)
    for i, (name, label, start, end, score) in enumerate(expected):
        assert (found.videos[found.video[i]], found.classes[found.labels[i]]) == (name, label)
        assert (*found.segments[i], found.scores[i]) == pytest.approx((start, end, score))


def test_summed_softmax_is_the_length_of_a_run_without_doubt() -> None:
    certain = np.array([[0.0, 100.0, 0.0]] * 7)
    assert gtea.summed_softmax(certain, 1) == pytest.approx(7)
    assert gtea.summed_softmax(np.zeros((6, 3)), 1) == pytest.approx(2)


def plan_of(out: Path, **changes: Any) -> Any:
    given = {"seeds": 3, "experiments": tuple(gtea.PAIRS), **changes}
    return gtea.Plan(features=out / "gtea_svm.npz", out=out, folds=("fold1", "fold2"), **given)


def test_pairs_are_the_experiments_that_need_no_backbone() -> None:
    assert set(gtea.PAIRS) == set(EXPERIMENTS) - {"baseline", "1s", "2", "2x"}


@pytest.mark.parametrize(("seeds", "controls"), [(1, 0), (2, 2), (3, 3)])
def test_every_training_is_there_once_and_after_those_it_starts_from(
    seeds: int, controls: int, tmp_path: Path
) -> None:
    jobs = plan_of(tmp_path, seeds=seeds).jobs("fold1")
    found = [(job.config.variant, job.config.seed) for job in jobs]
    each = ["forward", "reverse", *gtea.PAIRS]
    expected = {(variant, seed) for variant in each for seed in range(seeds)}
    expected |= {(f"3-{n}-two-forward", seed) for n in (1, 2, 3) for seed in range(controls)}
    expected |= {("3-1-naive-random", 0), ("3-2-naive-random", 0)}
    assert set(found) == expected
    assert len(found) == len(expected)
    earlier: set[Path] = set()
    for job in jobs:
        assert job.needs() <= earlier
        earlier.add(job.directory)


def test_a_pair_starts_from_its_own_fold_and_a_control_from_the_next_seed_too(tmp_path: Path) -> None:
    for job in plan_of(tmp_path).jobs("fold2"):
        config = job.config
        if config.design.starts_from == "baselines":
            reverse = config.pair.second == "reverse"
            second = ("reverse", config.seed) if reverse else ("forward", (config.seed + 1) % 3)
            assert config.init.forward == tmp_path / f"runs/fold2-forward-seed{config.seed}"
            assert config.init.reverse == tmp_path / "runs/fold2-{}-seed{}".format(*second)


def test_a_pooled_result_is_of_the_same_training_on_every_fold(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    own = {"name", "data", "init"}
    for whole, *folds in zip(*map(plan.jobs, (gtea.POOLED, *plan.folds)), strict=True):
        assert [job.config.name for job in folds] == list(plan.folds)
        for job in folds:
            assert job.config.model_dump(exclude=own) == whole.config.model_dump(exclude=own)


QUICK = (
    "window.steps=16",
    "model.channels=8",
    "model.levels=2",
    "model.attention_window=null",
    "training.epochs=1",
    "training.warmup_epochs=0",
    "training.evaluate_every=1",
    "test.candidates=40",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any, Any]]:
    """A plan of few tiny networks, its annotations, and its first results."""
    out = tmp_path_factory.mktemp("gtea")
    rng = np.random.default_rng(0)
    labels = {name: np.repeat([0, 1, 2, 0, 2, 1, 0], rng.integers(3, 9, 7)) for name in "abcd"}
    np.savez(out / "gtea_svm.npz", **{name: np.eye(11, dtype=np.float32)[rows] for name, rows in labels.items()})
    database = {}
    for split, (name, rows) in zip((1, 1, 2, 2), labels.items(), strict=True):
        edges = [0, *(np.flatnonzero(np.diff(rows)) + 1).tolist(), len(rows)]
        actions = [(int(rows[a]), [a, b]) for a, b in pairwise(edges) if rows[a]]
        stated = [{"label": str(k), "label_id": k, "segment(frames)": segment} for k, segment in actions]
        database[name] = {"split": split, "num_frames": len(rows), "annotations": stated}
    (out / "gtea_svm.json").write_text(json.dumps({"database": database}))
    annotations = gtea.read_gtea(out / "gtea_svm.json")
    plan = plan_of(out, seeds=2, experiments=("3-3",), overrides=QUICK)

    def train_here(jobs: list[Job], **_: Any) -> None:
        for job in jobs:
            Trainer(job.config, ALONE).run()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gtea, "train_side_by_side", train_here)
        yield plan, annotations, gtea.run(plan, annotations)


def test_pooled_detections_are_those_of_the_folds_each_video_once(trained: tuple[Any, Any, Any]) -> None:
    plan, annotations, _ = trained
    for name in (
        "3-3-seed1/detections.json",
        "3-3-seed1/detections.reverse.json",
        "reverse-seed0/detections.json",
    ):
        pooled = read_detections(plan.out / f"runs/pooled-{name}")
        assert sorted(pooled.videos) == sorted(annotations.videos)
        for fold in plan.folds:
            part = read_detections(plan.out / f"runs/{fold}-{name}")
            assert set(part.videos) == set(annotations.subset(fold).videos)
            for video in part.videos:
                np.testing.assert_array_equal(pooled.of_video(video).segments, part.of_video(video).segments)


def test_tables_have_a_row_for_everything_that_was_compared(trained: tuple[Any, Any, Any]) -> None:
    pooled, standing, folds, *losses = gtea.tables(trained[2])
    rows = [row[0] for row in pooled.rows]
    fused = [f"{what}, {method}" for what in ("late fusion F + B", "control F + another F") for method in METHODS]
    bases = ["3-3, forward basis", "3-3, reverse basis", "3-3, merged"]
    control = [f"3-3, two forward networks, {what}" for what in ("first network", "second network", "merged")]
    argmax = ["argmax runs, mean score", "argmax runs, summed softmax"]
    assert rows == [*argmax, "F", "B", *fused, *bases, *control]
    assert [row[0] for row in standing.rows] == bases
    assert [row[0] for row in folds.rows] == rows
    assert len(losses) == 2
    for row in folds.rows:
        assert row[-1] == pytest.approx(np.mean(row[1:-1]))
    assert pooled.rows[0][-1] == 1
    assert all(row[-1] == 2 for row in pooled.rows if row[0] in ("F", "B", *bases, *control))


def test_a_second_call_trains_nothing_and_finds_the_same(
    trained: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, annotations, first = trained

    def refuse(job: Job) -> None:
        raise AssertionError(f"{job.directory} was trained again")

    monkeypatch.setattr(gtea, "train_side_by_side", train_side_by_side)
    monkeypatch.setattr(Job, "start", refuse)
    assert gtea.tables(gtea.run(plan, annotations)) == gtea.tables(first)
    more = replace(plan, seeds=3)
    # The last of two seeds has the first one's F as the partner of its control, the last of three another.
    with pytest.raises(ValueError, match="fold1-3-3-two-forward-seed1 is another run"):
        gtea.run(more, annotations)
    with pytest.raises(AssertionError, match="fold1-forward-seed2 was trained again"):
        gtea.run(replace(more, experiments=()), annotations)


@needs_data
def test_the_reference_data_convert_and_their_argmax_scores_as_stated() -> None:
    annotations = gtea.read_gtea(DATA / "gtea_svm.json")
    assert len(annotations.videos) == 21
    assert annotations.subsets() == {"fold1": 7, "fold2": 7, "fold3": 7}
    assert annotations.classes == tuple(str(column) for column in range(1, 11))
    assert sum(len(video.labels) for video in annotations.videos.values()) == 391
    with np.load(DATA / "gtea_svm.npz") as features:
        assert all(len(features[name]) == video.frames for name, video in annotations.videos.items())
        average = {
            scoring: evaluate(annotations, gtea.argmax_runs(annotations, features, scoring), tiou=TIOU).average_map
            for scoring in (gtea.mean_score, gtea.summed_softmax)
        }
    assert 100 * average[gtea.mean_score] == pytest.approx(17.09, abs=0.01)
    assert 100 * average[gtea.summed_softmax] == pytest.approx(20.21, abs=0.01)


@needs_data
@pytest.mark.slow
def test_a_brief_training_beats_the_argmax_on_the_same_fold(tmp_path: Path) -> None:
    brief = ("training.epochs=6", "training.evaluate_every=6")
    annotations = gtea.read_gtea(DATA / "gtea_svm.json")
    plan = gtea.Plan(DATA / "gtea_svm.npz", tmp_path, ("fold3",), seeds=1, experiments=(), overrides=brief)
    average = {result.label: result.mean for result in gtea.run(plan, annotations)["fold3"].results}
    assert average["F"] > average["argmax runs, summed softmax"]
    assert average["B"] > average["argmax runs, summed softmax"]
