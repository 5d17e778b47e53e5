"""GTEA: the conversion of its files, the argmax runs to be beaten, and that a brief training beats them."""

from __future__ import annotations

import importlib.util
import json
import sys
from itertools import groupby
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from bitad.data.annotations import read_annotations, write_annotations
from bitad.data.detections import read_detections
from bitad.evaluation.mean_average_precision import evaluate

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "../shared/data/actionseg"


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
        write_annotations(gtea.with_test_fold(annotations, fold), written)
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
            scoring: evaluate(annotations, gtea.argmax_runs(annotations, features, scoring), tiou=gtea.TIOU).average_map
            for scoring in (gtea.mean_score, gtea.summed_softmax)
        }
    assert 100 * average[gtea.mean_score] == pytest.approx(17.09, abs=0.01)
    assert 100 * average[gtea.summed_softmax] == pytest.approx(20.21, abs=0.01)


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_brief_training_beats_the_argmax_on_the_same_fold(direction: str, tmp_path: Path) -> None:
    annotations = gtea.read_gtea(DATA / "gtea_svm.json")
    write_annotations(gtea.with_test_fold(annotations, "fold3"), tmp_path / "fold3.json")
    run = gtea.Run("fold3", direction, 0)
    brief = ["training.epochs=6", "training.evaluate_every=6"]
    overrides = [*run.overrides(DATA / "gtea_svm.npz", tmp_path), *brief]
    gtea.train(["gtea", *overrides])
    found = read_detections(tmp_path / "runs" / f"fold3-{direction}-seed0" / "detections.json")
    truth = annotations.subset("fold3")
    with np.load(DATA / "gtea_svm.npz") as features:
        argmax = gtea.argmax_runs(truth, features, gtea.summed_softmax)
    assert found.basis == "forward"
    assert evaluate(truth, found, tiou=gtea.TIOU).average_map > evaluate(truth, argmax, tiou=gtea.TIOU).average_map
