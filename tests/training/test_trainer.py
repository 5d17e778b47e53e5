"""A run learns, can be stopped and resumed to the bit, and keeps its best."""

from __future__ import annotations

import json
import logging
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import config_of, feature_data, video_data
from runs import ALONE, assert_same, assert_same_run, records

import bitad.training.trainer as trainer_module
from bitad.config.loading import load_config
from bitad.data.detections import read_detections
from bitad.data.formats.database import read_annotations
from bitad.data.sources import build_source
from bitad.evaluation.mean_average_precision import Evaluation, evaluate
from bitad.inference.detect import detect
from bitad.runtime.distributed import Ranks
from bitad.runtime.environment import environment
from bitad.runtime.log import add_log_file, command_logging
from bitad.training.step import total
from bitad.training.trainer import EpochSampler, Trainer
from bitad.weights.checkpoint import load_checkpoint, save_checkpoint

# Depends on PyTorch's random numbers; 2 epochs of 6 steps.
RANDOM = ("model.dropout=0.2", "model.drop_path=0.2", "training.windows_per_video=3", "training.epochs=2")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return feature_data(tmp_path_factory.mktemp("features") / "data")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video_data(tmp_path_factory.mktemp("videos") / "data")


# Learning.


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_it_overfits_a_handful_of_windows(features: Path, tmp_path: Path, direction: str) -> None:
    config = config_of(
        features,
        f"direction={direction}",
        f"output={tmp_path}",
        "data.test_subset=training",
        "training.epochs=2",
        "training.evaluate_every=2",
        "training.windows_per_video=12",
        "training.lr=5e-3",
    )
    trainer = Trainer(config, ALONE)
    untrained = trainer._evaluate()[0].average_map
    best = trainer.run()
    losses = [record["loss"] for record in records(config.run_directory, kind="training")]
    assert losses[-1] < 0.3 * losses[0]
    assert untrained < 0.2
    assert best > 0.8
    assert best == records(config.run_directory, kind="evaluation")[-1]["average_map"]


# Resuming.


@pytest.fixture(scope="module")
def whole(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted."""
    config = config_of(features, *RANDOM, f"output={tmp_path_factory.mktemp('whole')}")
    Trainer(config, ALONE).run()
    return config.run_directory


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_repeats_the_uninterrupted_one(
    features: Path, whole: Path, tmp_path: Path, workers: int
) -> None:
    config = config_of(features, *RANDOM, f"training.workers={workers}", f"output={tmp_path}")
    Trainer(config, ALONE).run(until=1)
    assert load_checkpoint(config.run_directory / "last.pt").epoch == 1
    torch.manual_seed(99)  # a new process knows nothing of the old one's random numbers
    Trainer(config, ALONE, resume=True).run()
    assert load_checkpoint(config.run_directory / "last.pt").epoch == 2
    assert_same_run(whole, config.run_directory)


def test_a_resumed_run_on_videos_repeats_the_uninterrupted_one(videos: Path, tmp_path: Path) -> None:
    overrides = (*RANDOM, "model.backbone.drop_path=0.3", "training.evaluate_from=1")
    uninterrupted = config_of(videos, *overrides, f"output={tmp_path / 'whole'}")
    Trainer(uninterrupted, ALONE).run()
    parts = config_of(videos, *overrides, f"output={tmp_path / 'parts'}")
    Trainer(parts, ALONE).run(until=1)
    Trainer(parts, ALONE, resume=True).run()
    assert_same_run(uninterrupted.run_directory, parts.run_directory)


def test_random_numbers_matter_to_these_runs(features: Path) -> None:
    """Else the two laws above would say little."""
    trainer = Trainer(config_of(features, *RANDOM), ALONE)
    trainer.network.train()
    batch = next(iter(trainer.loader))
    first, second = (total(*trainer.train_step.losses(0, [batch])) for _ in range(2))
    assert first != second


def test_a_run_that_dies_within_an_epoch_repeats_that_epoch(
    features: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(features, *RANDOM, f"output={tmp_path}")
    dying = Trainer(config, ALONE)
    train_step = dying._take_step

    def until_step_11(*arguments: Any) -> Any:
        if dying.step == 11:  # of 6 an epoch; step 10 is recorded
            raise KeyboardInterrupt
        return train_step(*arguments)

    monkeypatch.setattr(dying, "_take_step", until_step_11)
    with pytest.raises(KeyboardInterrupt):
        dying.run()
    assert records(config.run_directory)[-1]["step"] == 10
    assert load_checkpoint(config.run_directory / "last.pt").epoch == 1
    Trainer(config, ALONE, resume=True).run()
    assert_same_run(whole, config.run_directory)


def test_a_run_that_dies_in_its_first_epoch_starts_again(
    features: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(features, *RANDOM, f"output={tmp_path}")
    dying = Trainer(config, ALONE)
    monkeypatch.setattr(trainer_module, "STEPS_BETWEEN_RECORDS", 1)
    monkeypatch.setattr(dying, "_checkpoint", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        dying.run()
    assert [record["step"] for record in records(config.run_directory)] == [1, 2, 3, 4, 5, 6]
    monkeypatch.undo()
    Trainer(config, ALONE).run()
    assert_same_run(whole, config.run_directory)


def test_how_often_it_is_tested_changes_nothing_of_the_training(
    features: Path, whole: Path, tmp_path: Path
) -> None:
    config = config_of(features, *RANDOM, "training.evaluate_every=2", f"output={tmp_path}")
    Trainer(config, ALONE).run()
    assert_same(load_checkpoint(whole / "last.pt").model, load_checkpoint(config.run_directory / "last.pt").model)


def test_the_same_configuration_gives_the_same_run_and_another_seed_another(
    features: Path, tmp_path: Path
) -> None:
    configs = [
        config_of(features, "training.epochs=1", f"seed={seed}", f"output={tmp_path / name}")
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    for config in configs:
        Trainer(config, ALONE).run()
    a, b, c = (load_checkpoint(config.run_directory / "last.pt").model for config in configs)
    assert_same(a, b)
    assert not torch.equal(a["head.classification.output.weight"], c["head.classification.output.weight"])


def test_resuming_a_finished_run_changes_nothing(features: Path, tmp_path: Path) -> None:
    config = config_of(features, f"output={tmp_path}", "training.epochs=2")
    best = Trainer(config, ALONE).run()
    before = records(config.run_directory)
    assert Trainer(config, ALONE, resume=True).run() == best
    assert records(config.run_directory) == before


def test_until_no_epoch_trains_nothing(features: Path, tmp_path: Path) -> None:
    config = config_of(features, f"output={tmp_path}")
    trainer = Trainer(config, ALONE)
    trainer.run(until=0)
    assert (trainer.epoch, trainer.step) == (0, 0)


# Refusals.


@pytest.fixture(scope="module")
def short_run(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one of its two epochs."""
    output = tmp_path_factory.mktemp("runs")
    config = config_of(features, f"output={output}", "training.epochs=2", "training.evaluate_from=1")
    Trainer(config, ALONE).run(until=1)
    return config.run_directory


def test_resuming_with_another_configuration_is_refused_with_the_key_and_both_values(
    features: Path, short_run: Path
) -> None:
    changed = config_of(
        features,
        f"output={short_run.parent}",
        "training.epochs=2",
        "training.evaluate_from=1",
        "training.clip_norm=0.5",
        "data.test_subset=training",
    )
    with pytest.raises(ValueError, match="not that of run") as refused:
        Trainer(changed, ALONE, resume=True)
    message = str(refused.value)
    assert "training.clip_norm was 1.0, is 0.5" in message
    assert "data.test_subset was validation, is training" in message
    assert message.count(" was ") == 2
    assert "\n" not in message


def test_a_run_may_be_moved_and_resumed_with_other_threads_after_half_a_line_was_written(
    features: Path, short_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(short_run, tmp_path / short_run.name)
    metrics = tmp_path / short_run.name / "metrics.jsonl"
    lines = '{"kind": "training", "step": 1, "loss": null}\n'
    metrics.write_text(lines + '{"kind": "trai')
    moved = config_of(features, f"output={tmp_path}", "training.epochs=2", "training.evaluate_from=1", "threads=1")
    Trainer(moved, ALONE, resume=True).run(until=1)
    assert metrics.read_text() == lines


def test_an_existing_run_is_not_overwritten(short_run: Path) -> None:
    before = {path.name: path.read_bytes() for path in short_run.iterdir()}
    with pytest.raises(ValueError, match=r"exists; use --resume"):
        Trainer(load_config(short_run / "config.yaml"), ALONE)
    assert {path.name: path.read_bytes() for path in short_run.iterdir()} == before


def test_there_must_be_a_run_to_resume(features: Path, tmp_path: Path) -> None:
    config = config_of(features, f"output={tmp_path}")
    with pytest.raises(FileNotFoundError, match=r"no run to resume: .*last\.pt does not exist; start it without"):
        Trainer(config, ALONE, resume=True)
    assert not config.run_directory.exists()


def test_weights_alone_cannot_be_resumed(short_run: Path, tmp_path: Path) -> None:
    directory = tmp_path / short_run.name
    shutil.copytree(short_run, directory)
    saved = load_checkpoint(directory / "last.pt")
    config = saved.config.model_copy(update={"output": tmp_path})
    save_checkpoint(replace(saved, config=config, training=None), directory / "last.pt")
    with pytest.raises(ValueError, match="holds weights only"):
        Trainer(config, ALONE, resume=True)


def test_classes_that_changed_under_a_run_are_refused(short_run: Path, tmp_path: Path) -> None:
    directory = tmp_path / short_run.name
    shutil.copytree(short_run, directory)
    saved = load_checkpoint(directory / "last.pt")
    config = saved.config.model_copy(update={"output": tmp_path})
    save_checkpoint(replace(saved, config=config, classes=("beta", "alpha", "gamma")), directory / "last.pt")
    with pytest.raises(ValueError, match=r"\('beta', 'alpha', 'gamma'\), not \('alpha', 'beta', 'gamma'\)"):
        Trainer(config, ALONE, resume=True)


def test_a_gradient_that_is_not_finite_stops_the_run_and_names_the_videos(tmp_path: Path) -> None:
    path = feature_data(tmp_path / "data", training=2)
    broken = tmp_path / "data" / "features" / "train_1.npy"
    np.save(broken, np.load(broken) + np.float32(1e38))
    trainer = Trainer(config_of(path, "training.batch=1"), ALONE)
    with pytest.raises(ValueError, match=r"not finite .*\(videos train_1\).*training\.lr"):
        trainer.run()
    assert all(torch.isfinite(parameter).all() for parameter in trainer.network.parameters())
    assert all(torch.isfinite(average).all() for average in trainer.train_step.learners[0].ema.average.values())


def test_too_few_windows_for_a_batch_are_refused_before_training(features: Path) -> None:
    with pytest.raises(ValueError, match=r"4 training windows .* one batch of 5 .*training\.batch"):
        Trainer(config_of(features, "training.batch=5"), ALONE)


# The best network.


def evaluations(monkeypatch: pytest.MonkeyPatch, *figures: float) -> None:
    """From now on evaluations find these average mAPs, one after the other."""
    coming = iter(figures)

    def pretended(*arguments: Any, **keywords: Any) -> Evaluation:
        found = evaluate(*arguments, **keywords)
        return replace(found, ap=np.full_like(found.ap, next(coming)))

    monkeypatch.setattr(trainer_module, "evaluate", pretended)


def test_the_best_network_is_the_one_with_the_best_average_map(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(features, f"output={tmp_path}")
    evaluations(monkeypatch, 0.2, 0.5, 0.5, 0.3)
    assert Trainer(config, ALONE).run() == 0.5
    best, last = (load_checkpoint(config.run_directory / name) for name in ("best.pt", "last.pt"))
    assert (best.epoch, last.epoch) == (2, 4)  # of equally good ones the first
    assert best.training is None
    assert best.evaluation is not None
    assert best.evaluation["average_map"] == 0.5
    assert read_detections(config.run_directory / "detections.json").details["epoch"] == 2
    recorded = [record["average_map"] for record in records(config.run_directory, kind="evaluation")]
    assert recorded == pytest.approx([0.2, 0.5, 0.5, 0.3])


def test_a_resumed_run_remembers_its_best(features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(features, f"output={tmp_path}")
    evaluations(monkeypatch, 0.2, 0.5, 0.4, 0.3)
    Trainer(config, ALONE).run(until=2)
    assert Trainer(config, ALONE, resume=True).run() == 0.5
    assert load_checkpoint(config.run_directory / "best.pt").epoch == 2


def test_a_network_without_any_right_detection_is_kept_too(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(features, f"output={tmp_path}", "training.epochs=1")
    evaluations(monkeypatch, 0.0)
    assert Trainer(config, ALONE).run() == 0
    assert (config.run_directory / "best.pt").exists()


def test_the_best_checkpoint_holds_the_weights_that_were_tested(features: Path, tmp_path: Path) -> None:
    config = config_of(
        features, f"output={tmp_path}", "training.epochs=3", "training.windows_per_video=3", "training.lr=5e-3"
    )
    best = Trainer(config, ALONE).run()
    checkpoint = load_checkpoint(config.run_directory / "best.pt")
    truth = read_annotations(config.data.annotations, classes=config.data.classes).subset("validation")
    found = detect(checkpoint.network(), truth, build_source(config), config, ALONE).merged
    assert evaluate(truth, found, tiou=config.test.tiou).average_map == best > 0
    assert checkpoint.evaluation == evaluate(truth, found, tiou=config.test.tiou).to_json()
    assert checkpoint.rate_hz == 4.0


def test_it_is_tested_every_few_epochs_from_one_on_and_at_the_end(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(
        features,
        f"output={tmp_path}",
        "training.epochs=7",
        "training.evaluate_every=2",
        "training.evaluate_from=2",
    )
    evaluations(monkeypatch, *[0.1] * 7)
    Trainer(config, ALONE).run()
    assert [record["epoch"] for record in records(config.run_directory, kind="evaluation")] == [4, 6, 7]


# What a run leaves behind.


def test_a_run_leaves_its_configuration_environment_and_log(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(features, f"output={tmp_path}", "training.epochs=1", "training.batch=4")
    with command_logging():
        add_log_file(config.run_directory)
        Trainer(config, ALONE).run()
    assert load_config(config.run_directory / "config.yaml") == config
    left = json.loads((config.run_directory / "environment.json").read_text())
    assert left == environment(ALONE)
    assert left["torch"] == torch.__version__
    log = (config.run_directory / "log.txt").read_text()
    assert log == capsys.readouterr().err
    for said in (
        "learning rate 0.004, of adapters 0.004, of fusions 0.002 over their fan-in, for an effective batch of 4",
        "experiment baseline: one network, one playing direction",
        "4 training videos, 4 windows and 1 steps per epoch; 3 test videos",
        "average mAP",
    ):
        assert said in log


def test_the_log_of_another_run_does_not_go_to_the_first_ones_file(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with command_logging():
            add_log_file(tmp_path / name)
            logging.getLogger("bitad").info("this is the %s", name)
    assert "second" not in (tmp_path / "first" / "log.txt").read_text()
    assert "this is the second" in (tmp_path / "second" / "log.txt").read_text()


def test_records_carry_the_figures_of_training(features: Path, tmp_path: Path) -> None:
    config = config_of(features, f"output={tmp_path}", "training.windows_per_video=5", "training.epochs=2")
    Trainer(config, ALONE).run()
    training = records(config.run_directory, kind="training")
    assert [(record["epoch"], record["step"]) for record in training] == [(0, 1), (0, 10), (1, 20)]
    for record in training:
        assert record["loss"] == pytest.approx(record["classification"] + record["regression"], rel=1e-5)
        assert record["gradient_norm"] > 0
        # The rate of that very step: half a cosine over 20 steps, of which the first 5 warm up.
        share = (record["step"] - 1 - 5) / (20 - 5)
        factor = 1 / 6 if record["step"] == 1 else (1 + math.cos(math.pi * share)) / 2
        assert record["lr"] == pytest.approx(0.002 * factor)


# The order of windows.


def ranks(world: int) -> list[Ranks]:
    return [Ranks(rank, world, torch.device("cpu")) for rank in range(world)]


def test_an_epoch_takes_each_window_once_in_an_order_of_its_own() -> None:
    sampler = EpochSampler(10, 2, ALONE, seed=1)
    orders = []
    for epoch in (0, 1, 0):
        sampler.epoch = epoch
        orders.append([i for batch in sampler for i in batch])
    assert sorted(orders[0]) == list(range(10))
    assert orders[0] != orders[1]
    assert orders[0] == orders[2]
    assert orders[0] != [i for batch in EpochSampler(10, 2, ALONE, seed=2) for i in batch]


def test_a_rest_that_fills_no_batch_sits_out() -> None:
    sampler = EpochSampler(11, 3, ALONE, seed=0)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 3
    assert all(len(batch) == 3 for batch in batches)


@pytest.mark.parametrize("world", [2, 3])
def test_the_ranks_share_the_batches_of_one_process_of_the_whole_batch(world: int) -> None:
    together = list(EpochSampler(25, 2 * world, ALONE, seed=4))
    apart = zip(*(EpochSampler(25, 2, ranks, seed=4) for ranks in ranks(world)), strict=True)
    for whole, parts in zip(together, apart, strict=True):
        assert sorted(whole) == sorted(i for part in parts for i in part)
        assert all(len(part) == 2 for part in parts)
