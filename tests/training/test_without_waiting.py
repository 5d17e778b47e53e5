"""The device skips steps that are not finite, as the host does, and the host does not wait for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import config_of, feature_data, video_data
from runs import ALONE, assert_same_run, both_baselines, records
from torch import Tensor, nn

from bitad.data.samples import Batch
from bitad.models.heads import _kept_points
from bitad.runtime.distributed import Ranks, full_tensor
from bitad.training import step as step_module
from bitad.training import trainer as trainer_module
from bitad.training.optimizer import Ema
from bitad.training.step import TrainStep
from bitad.training.trainer import Trainer
from bitad.weights.checkpoint import load_checkpoint

NOTHING_DROPPED = "model.drop_path=0"
WITH_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
LATE = partial(TrainStep, on_device=True)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, str]]:
    path = feature_data(tmp_path_factory.mktemp("features") / "data")
    return path, both_baselines(path)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training videos, one of which has features whose gradients overflow."""
    folder = tmp_path_factory.mktemp("broken") / "data"
    path = feature_data(folder, training=4)
    file = folder / "features" / "train_1.npy"
    np.save(file, np.load(file) + np.float32(1e38))
    return path


def trainers(data: tuple[Path, tuple[str, str]], experiment: str, *overrides: str) -> tuple[Trainer, Trainer]:
    """A trainer whose host decides on steps, and one whose device does, with the same optimizer."""
    path, init = data
    init = init if experiment in ("1-1", "3-1") else ()
    config = config_of(path, f"experiment={experiment}", NOTHING_DROPPED, *init, "name=new", *overrides)
    plain = Trainer(config, ALONE)
    with late():
        other = Trainer(config, ALONE)
    use_fused(plain)
    for trainer in (plain, other):
        trainer.train_step.train()
    return plain, other


def use_fused(trainer: Trainer) -> None:
    for learner in trainer.train_step.learners:
        for group in learner.optimizer.param_groups:
            group |= {"fused": True, "foreach": False}


@contextmanager
def late() -> Iterator[None]:
    """Within, the device decides on the steps of trainers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "TrainStep", LATE)
        yield


def state(trainer: Trainer) -> dict[str, Tensor]:
    """Weights, averages, moments and counters of steps; moments of 0 are as good as none."""
    found = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    for learner in trainer.train_step.learners:
        found |= {f"average {learner.name} {name}": one.clone() for name, one in learner.ema.average.items()}
        found[f"updates {learner.name}"] = torch.tensor(int(learner.ema.updates))
        for name, parameter in learner.module.named_parameters():
            for key in ("step", "exp_avg", "exp_avg_sq") if parameter.requires_grad else ():
                empty = torch.zeros(()) if key == "step" else torch.zeros_like(parameter)
                found[f"{key} {learner.name} {name}"] = learner.optimizer.state[parameter].get(key, empty).clone()
    return found


def assert_equal(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name


def spoil(trainer: Trainer, learner: int, patch: pytest.MonkeyPatch) -> None:
    """The next losses of a learner are not finite."""
    loss = trainer.train_step.learners[learner].loss
    forward = loss.forward

    def infinite(*arguments: Any, **keywords: Any) -> Any:
        losses = forward(*arguments, **keywords)
        return losses._replace(total=losses.total * torch.inf)

    patch.setattr(loss, "forward", infinite)


@pytest.mark.parametrize("experiment", ["baseline", "1-1", "3-1"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_device_takes_and_skips_the_steps_that_the_host_takes_and_skips(
    features: tuple[Path, tuple[str, str]], experiment: str, precision: str
) -> None:
    plain, other = trainers(features, experiment, f"training.precision={precision}")
    batch = next(iter(plain.loader))
    names = []
    for number in range(5):
        before = state(other)
        with pytest.MonkeyPatch.context() as patch:
            if number in (0, 3):  # also the first one, before there are moments
                for trainer in (plain, other):
                    spoil(trainer, 0, patch)
            mine, theirs = (trainer.train_step([batch]) for trainer in (plain, other))
        for trainer in (plain, other):
            trainer.train_step.advance()
        assert theirs.fault == mine.fault
        assert theirs.norms == pytest.approx(mine.norms, nan_ok=True)
        assert theirs.loss == pytest.approx(mine.loss, nan_ok=True)
        names.append(mine.fault)
        assert_equal(state(plain), state(other))
        first = next(iter(other.train_step.learners[0].ema.average))
        key = f"average {other.train_step.learners[0].name} {first}"
        assert torch.equal(before[key], state(other)[key]) == (number in (0, 3))
        if number in (0, 3) and experiment != "1-1":  # there the other network takes its step
            assert_equal(before, state(other))
    assert [fault is None for fault in names] == [False, True, True, False, True]
    if experiment == "1-1":
        assert names[0] == "the gradient of the forward network is not finite"
    assert other.train_step.scaler.state_dict() == plain.train_step.scaler.state_dict()


def test_a_whole_run_has_the_weights_and_records_of_one_whose_host_decides(
    features: tuple[Path, tuple[str, str]], tmp_path: Path
) -> None:
    path, _ = features
    how = ("training.epochs=2", "training.evaluate_from=1", "training.windows_per_video=3", NOTHING_DROPPED)
    plain = Trainer(config_of(path, *how, f"output={tmp_path / 'plain'}"), ALONE)
    use_fused(plain)
    with late():
        other = Trainer(config_of(path, *how, f"output={tmp_path / 'late'}"), ALONE)
    for trainer in (plain, other):
        trainer.run()
    assert not other._unread
    assert records(other.directory) == records(plain.directory)
    assert other.epoch_loss.value == plain.epoch_loss.value
    assert_equal(state(plain), state(other))


def test_a_run_whose_device_decides_resumes_to_the_bit(
    features: tuple[Path, tuple[str, str]], tmp_path: Path
) -> None:
    path, _ = features
    how = ("training.epochs=2", "training.evaluate_from=1", "model.dropout=0.2")
    several = [config_of(path, *how, f"output={tmp_path / name}") for name in ("whole", "parts")]
    with late():
        Trainer(several[0], ALONE).run()
        Trainer(several[1], ALONE).run(until=1)
        resumed = Trainer(several[1], ALONE, resume=True)
        resumed.run()
    assert_same_run(several[0].run_directory, several[1].run_directory)
    assert isinstance(resumed.train_step.learners[0].ema.updates, Tensor)


def test_a_checkpoint_of_other_kernels_leaves_the_optimizer_its_own(
    features: tuple[Path, tuple[str, str]],
) -> None:
    path, _ = features
    trainers = [Trainer(config_of(path, f"name={name}"), ALONE) for name in ("saved", "resumed")]
    saved, resumed = (trainer.train_step for trainer in trainers)
    batch = next(iter(trainers[0].loader))
    saved.train()
    saved([batch])
    state = saved.state_dict()
    (learner,) = state["learners"].values()
    for group in learner["optimizer"]["param_groups"]:
        group.update(fused=False, foreach=True)  # as those of earlier versions on a CPU
    resumed.load_state_dict(state)
    resumed.train()
    resumed([batch])
    for group in resumed.learners[0].optimizer.param_groups:
        assert group["fused"]
        assert not group["foreach"]


# What is read late.


def test_a_fault_is_named_one_step_late_at_most_with_its_own_step_and_videos(
    broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("bitad.runtime.log.log.propagate", True)
    how = ("training.batch=1", "training.epochs=2", "training.evaluate_from=2", "training.max_nonfinite_steps=2")
    said = []
    for name, patch in (("plain", TrainStep), ("late", LATE)):
        monkeypatch.setattr(trainer_module, "TrainStep", patch)
        trainer = Trainer(config_of(broken, *how, f"output={tmp_path / name}"), ALONE)
        take, taken = trainer._take_step, []

        def taking(batches: list[Batch], trainer: Trainer = trainer, take: Any = take, taken: Any = taken) -> Any:
            before = len(caplog.messages)
            found = take(batches)
            taken.append(trainer.step)
            for line in caplog.messages[before:]:
                assert any(f"at step {step}," in line for step in taken[-2:])
            return found

        monkeypatch.setattr(trainer, "_take_step", taking)
        caplog.clear()
        trainer.run()
        assert all(torch.isfinite(parameter).all() for parameter in trainer.network.parameters())
        said.append([line.split(",")[0] for line in caplog.messages if line.endswith("the step is skipped")])
    assert len(said[0]) == 2  # once an epoch
    assert said[1] == said[0]


@pytest.mark.parametrize("every", [1, 2])
def test_no_checkpoint_is_saved_after_a_fault_that_stops_the_run(broken: Path, tmp_path: Path, every: int) -> None:
    how = ("training.batch=1", f"training.checkpoint_steps={every}", f"output={tmp_path}")
    with late():
        trainer = Trainer(config_of(broken, *how), ALONE)
    with pytest.raises(ValueError, match=r"not finite at step (\d), .*\(videos train_1\)") as error:
        trainer.run()
    step = int(str(error.value).split("at step ")[1][0])
    last = trainer.checkpoints.last
    assert (load_checkpoint(last).training or {"step": 0})["step"] <= step if last.exists() else step < every


def test_the_figures_of_a_step_are_read_when_they_are_asked_for(
    features: tuple[Path, tuple[str, str]],
) -> None:
    _, other = trainers(features, "baseline")
    batch = next(iter(other.loader))
    first = other._take_step([batch])
    assert [step for step, _, _ in other._unread] == [first]
    assert "_read" not in vars(first)
    second = other._take_step([batch])
    assert [step for step, _, _ in other._unread] == [second]
    assert "_read" in vars(first)
    other._checkpoint()
    assert not other._unread


# Averages.


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_an_average_on_the_device_is_that_of_the_finite_steps(decay: float) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 4)
    plain, other = Ema(model, decay=decay), Ema(model, decay=decay)
    for number in range(30):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        finite = number % 3 > 0
        if finite:
            plain.update(model)
        other.update(model, torch.tensor(finite))
        assert_equal(plain.average, other.average)
    assert int(other.updates) == plain.updates == 20


# Targets and points.


@pytest.mark.parametrize("experiment", ["baseline", "1s", "1-1", "3-1"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_targets_are_assigned_once_for_each_batch_and_view(
    features: tuple[Path, tuple[str, str]],
    experiment: str,
    accumulate: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, _ = trainers(features, experiment, "training.batch=1")
    assigned = []
    assign = step_module.assign
    monkeypatch.setattr(step_module, "assign", lambda *a, **k: assigned.append(1) or assign(*a, **k))
    batches = list(plain.loader)[:accumulate]
    plain.train_step(batches)
    assert len(assigned) == accumulate * len(plain.config.views)


def test_the_truth_of_a_batch_in_views_is_that_of_the_batches(features: tuple[Path, tuple[str, str]]) -> None:
    path, init = features
    for overrides in (
        ("experiment=1s", "data.reversal={alpha: unknown, beta: gamma}"),
        ("experiment=1-1", *init),
    ):
        trainer = Trainer(config_of(path, *overrides, "name=views"), ALONE)
        batch = next(iter(trainer.loader))
        for views in (("forward", "reverse"), ("forward", "reversed-features"), ("reverse",)):
            seen = batch.in_views(views)
            for view, (segments, labels) in zip(seen, batch.truth_in_views(views), strict=True):
                for mine, theirs in ((segments, view.segments), (labels, view.labels)):
                    assert all(map(torch.equal, mine, theirs))


def test_kept_points_are_made_once_and_serve_training_after_inference() -> None:
    arguments = ((8, 4), (1, 2), ((0.0, 4.0), (4.0, 8.0)), torch.device("cpu"))
    with torch.inference_mode():
        points = _kept_points(*arguments)
    assert _kept_points(*arguments) is points
    distances = torch.ones(1, 12, 2, requires_grad=True)
    points.segments(distances).sum().backward()
    assert distances.grad is not None


# Several processes.


def test_only_the_process_that_keeps_a_gathered_tensor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gatherings = []

    class Sharded:
        device_mesh = None

        def full_tensor(self) -> Tensor:
            gatherings.append(self)
            return torch.ones(3)

    one: Any = Sharded()
    assert torch.equal(full_tensor(one), torch.ones(3))
    assert full_tensor(one, keep=False).numel() == 0
    assert len(gatherings) == 2  # all have to take part
    whole = torch.ones(3)
    assert full_tensor(whole, keep=False) is whole


def test_whether_to_stop_is_asked_without_the_device(features: tuple[Path, tuple[str, str]]) -> None:
    asked: list[Tensor] = []

    class Asked(Ranks):
        def total(self, number: Tensor) -> Tensor:
            asked.append(number)
            return number

    trainer = Trainer(config_of(features[0], "name=asked"), ALONE)
    trainer.ranks = Asked(0, 1, torch.device("meta"))
    trainer._save_or_stop()
    assert [number.device.type for number in asked] == ["cpu"]


# On a GPU.


@pytest.fixture
def synchronisation_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@WITH_GPU
@pytest.mark.parametrize("kind", ["features", "videos"])
@pytest.mark.parametrize("experiment", ["baseline", "1s", "1-1", "3-1"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_on_a_gpu_is_launched_without_waiting(
    kind: str,
    experiment: str,
    precision: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    path = (feature_data if kind == "features" else video_data)(tmp_path / "data")
    init = both_baselines(path, f"output={tmp_path}") if experiment in ("1-1", "3-1") else ()
    config = config_of(path, f"experiment={experiment}", f"training.precision={precision}", *init, "name=new")
    trainer = Trainer(config, Ranks(0, 1, torch.device("cuda", 0)))
    trainer.train_step.train()
    batch = next(iter(trainer.loader))
    for batches in ([batch], [batch, batch]):
        trainer._take_step(batches)  # libraries are initialised
        trainer.train_step.advance()
    request.getfixturevalue("synchronisation_is_an_error")
    for batches in ([batch], [batch, batch], [batch]):
        trainer._take_step(batches)
        trainer.train_step.advance()


@WITH_GPU
def test_a_gpu_skips_a_step_that_is_not_finite(broken: Path, tmp_path: Path) -> None:
    how = ("training.batch=1", "training.epochs=1", "training.max_nonfinite_steps=2", f"output={tmp_path}")
    trainer = Trainer(config_of(broken, *how), Ranks(0, 1, torch.device("cuda", 0)))
    trainer.run()
    assert all(torch.isfinite(parameter).all() for parameter in trainer.network.parameters())
    learner = trainer.train_step.learners[0]
    assert all(torch.isfinite(average).all() for average in learner.ema.average.values())
    assert int(learner.ema.updates) == 3
