"""Two networks that train in step: each as if alone where nothing joins them, else from a sane beginning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from builders import config_of, feature_data, video_data
from runs import ALONE, assert_same, both_baselines
from torch import Tensor

from bitad.config.schema import Config
from bitad.models.fusion import Fusion
from bitad.models.network import Pair
from bitad.training.step import Learner, total
from bitad.training.trainer import Trainer
from bitad.weights.checkpoint import load_checkpoint

# So that a network draws no random numbers, which two in step would draw in turn.
NOTHING_DROPPED = "model.drop_path=0"
UNTESTED = ("training.epochs=2", "training.evaluate_from=1")
NAMES = ("forward", "reverse")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, str]]:
    """A data set of features, and the overrides that name its baselines, which have learnt something."""
    path = feature_data(tmp_path_factory.mktemp("features") / "data")
    return path, both_baselines(path, "training.windows_per_video=3", epochs=5)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, str]]:
    path = video_data(tmp_path_factory.mktemp("videos") / "data")
    return path, both_baselines(path)


def trainer_of(data: tuple[Path, tuple[str, str]], experiment: str, *overrides: str) -> Trainer:
    path, init = data
    init = () if experiment in ("baseline", "1") else init
    return Trainer(config_of(path, f"experiment={experiment}", *init, *overrides), ALONE)


class StartingFrom(Trainer):
    """A trainer of one network that starts from given weights."""

    def __init__(self, config: Config, weights: dict[str, Tensor]) -> None:
        self.weights = weights
        super().__init__(config, ALONE)

    def _load_initial_weights(self) -> None:
        self.network.load_state_dict(self.weights)


def alone(pair: Trainer, number: int, *overrides: str) -> StartingFrom:
    """A baseline's trainer that starts where one network of a pair stands, in the same run but for the experiment."""
    assert isinstance(pair.network, Pair)
    document = pair.config.model_dump(mode="json") | {
        "name": "alone",
        "experiment": "baseline",
        "init": {},
        "pair": {},
        "direction": ("forward", "reverse")[number],
    }
    return StartingFrom(Config.model_validate(document), pair.network.sides[number].network.state_dict())


def gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def gradients_of_a_step(
    trainer: Trainer, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> dict[str, dict[str, Tensor]]:
    """What each learner is given in a step of a trainer, before clipping, by the names within its network."""
    seen: dict[str, dict[str, Tensor]] = {}
    clip = Learner.clip

    def looking(learner: Learner) -> float:
        seen[learner.name] = {n.removeprefix("network."): g for n, g in gradients(learner.module).items()}
        return clip(learner)

    monkeypatch.setattr(Learner, "clip", looking)
    trainer.network.train()
    trainer.train_step([batch])
    monkeypatch.undo()
    return seen


# 1 and 1-1: two trainings in step.


@pytest.mark.parametrize(("data", "experiment"), [("features", "1"), ("features", "1-1"), ("videos", "1-1")])
def test_each_networks_gradient_is_that_of_its_own_training_and_of_the_sum_of_both_losses(
    data: str, experiment: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = trainer_of(request.getfixturevalue(data), experiment, NOTHING_DROPPED)
    batch = next(iter(pair.loader))
    own = []
    for number in range(2):
        trainer = alone(pair, number)
        trainer.network.train()
        total(*trainer.train_step.losses(0, [batch if number == 0 else batch.reversed()])).backward()
        own.append(gradients(trainer.network))
    together = trainer_of(request.getfixturevalue(data), experiment, NOTHING_DROPPED)
    together.network.train()
    views = batch.in_views(together.config.views)
    torch.stack([total(*together.train_step.losses(turn, views)) for turn in range(2)]).sum().backward()
    assert isinstance(together.network, Pair)
    step = gradients_of_a_step(pair, batch, monkeypatch)
    assert list(step) == list(NAMES)
    for name, mine, side in zip(NAMES, own, together.network.sides, strict=True):
        assert mine
        assert_same(step[name], mine, name)
        assert_same(step[name], gradients(side.network), name)


@pytest.mark.parametrize(("data", "experiment"), [("features", "1-1"), ("features", "1"), ("videos", "1-1")])
def test_an_epoch_in_step_trains_each_network_as_alone(
    data: str, experiment: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    overrides = (*UNTESTED, NOTHING_DROPPED, "training.windows_per_video=2", f"output={tmp_path}")
    pair = trainer_of(request.getfixturevalue(data), experiment, *overrides)
    singles = [alone(pair, number) for number in range(2)]
    before = {name: tensor.clone() for name, tensor in pair.network.state_dict().items()}
    for trainer in (pair, *singles):
        trainer.run(until=1)
    for name, trainer, learner in zip(NAMES, singles, pair.train_step.learners, strict=True):
        (single,) = trainer.train_step.learners
        state, expected = learner.state_dict(), single.state_dict()
        raw = {key.removeprefix("network."): tensor for key, tensor in state.pop("raw").items()}
        assert_same(raw, expected.pop("raw"), name)
        assert_same(state, expected, name)  # optimiser, schedule, the loss's normaliser
        averaged = {key.removeprefix("network."): tensor for key, tensor in learner.ema.average.items()}
        assert_same(averaged, single.ema.average, name)
    after = pair.network.state_dict()
    changed = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
    assert set(changed) == {name for name, p in pair.network.named_parameters() if p.requires_grad}


def test_a_huge_loss_of_one_network_changes_no_step_of_the_other(features: tuple[Path, tuple[str, str]]) -> None:
    """Gradients are clipped network by network."""
    found = []
    for factor in (1.0, 1e4):
        trainer = trainer_of(features, "1-1", NOTHING_DROPPED)
        loss = trainer.train_step.learners[0].loss
        forward = loss.forward

        def larger(*arguments: Any, forward: Any = forward, factor: float = factor, **keywords: Any) -> Any:
            losses = forward(*arguments, **keywords)
            return losses._replace(total=factor * losses.total)

        loss.forward = larger
        trainer.network.train()
        step = trainer.train_step([next(iter(trainer.loader))])
        found.append(
            (
                step.norms,
                {n: p.detach().clone() for n, p in trainer.train_step.learners[1].module.named_parameters()},
            )
        )
    (norms, steps), (huge_norms, same_steps) = found
    assert huge_norms["forward"] == pytest.approx(1e4 * norms["forward"], rel=1e-3)
    assert huge_norms["forward"] > 100
    assert huge_norms["reverse"] == norms["reverse"]
    assert_same(steps, same_steps)


def test_in_a_joint_graph_too_each_network_is_clipped_by_its_own_norm(
    features: tuple[Path, tuple[str, str]],
) -> None:
    trainer = trainer_of(features, "3-2", "training.clip_norm=0.5")
    trainer.network.train()
    for number, parameter in enumerate(trainer.network.parameters()):
        parameter.grad = torch.full_like(parameter, 1e-6 * (1 + number % 7))
    first, second = trainer.train_step.learners
    small = gradients(second.module)
    for parameter in first.module.parameters():
        assert parameter.grad is not None
        parameter.grad += 1
    norm = torch.stack([g.square().sum() for g in gradients(first.module).values()]).sum().sqrt().item()
    assert first.clip() == pytest.approx(norm, rel=1e-4)
    clipped = torch.stack([g.square().sum() for g in gradients(first.module).values()]).sum().sqrt()
    assert clipped.item() == pytest.approx(0.5, rel=1e-3)
    assert second.clip() < 0.5
    assert_same(gradients(second.module), small)


# 2 and 2x: frozen networks.


@pytest.mark.parametrize(("experiment", "added"), [("2", ".bi_adapter."), ("2x", ".cross_adapters.")])
def test_nothing_changes_but_the_new_modules(
    videos: tuple[Path, tuple[str, str]], experiment: str, added: str, tmp_path: Path
) -> None:
    overrides = (*UNTESTED, "training.windows_per_video=3", "training.batch=1", "training.weight_decay=0.5")
    trainer = trainer_of(videos, experiment, *overrides, f"output={tmp_path}", "model.drop_path=0.3")
    before = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    trainer.run(until=1)
    assert trainer.step == 6
    saved = load_checkpoint(trainer.checkpoints.last)
    after = trainer.network.state_dict()
    assert after.keys() == before.keys() == saved.model.keys()
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]) == (added not in name), name
        assert torch.equal(saved.model[name], before[name]) == (added not in name), name
    for prefix, override in zip(("first.network.", "second.network."), videos[1], strict=True):
        for name, tensor in load_checkpoint(Path(override.partition("=")[2])).model.items():
            assert torch.equal(after[prefix + name], tensor), name


@pytest.mark.parametrize(("experiment", "added"), [("2", ".bi_adapter."), ("2x", ".cross_adapters.")])
def test_with_the_detectors_too_they_change_and_the_transformers_do_not(
    videos: tuple[Path, tuple[str, str]], experiment: str, added: str, tmp_path: Path
) -> None:
    overrides = (*UNTESTED, "training.windows_per_video=3", "pair.train_detector=true", f"output={tmp_path}")
    trainer = trainer_of(videos, experiment, *overrides)
    before = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    trainer.run(until=1)
    after = trainer.network.state_dict()
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    assert changed == {name for name in before if ".vit." not in name or ".adapter." in name or added in name}


@pytest.mark.parametrize(("options", "random"), [((), False), (("pair.train_detector=true",), True)])
def test_frozen_networks_drop_nothing(
    videos: tuple[Path, tuple[str, str]], options: tuple[str, ...], random: bool, tmp_path: Path
) -> None:
    dropping = ("model.drop_path=0.5", "model.dropout=0.5", "model.backbone.drop_path=0.5", f"output={tmp_path}")
    trainer = trainer_of(videos, "2", *options, *UNTESTED, *dropping)
    trainer.run(until=1)
    batch = next(iter(trainer.loader))
    with torch.no_grad():
        once, again = (trainer.network.detectors[0].predict(batch.inputs, batch.mask).logits for _ in range(2))
    assert torch.equal(once, again) != random


# 3-x: a sane beginning.


def first_losses(trainer: Trainer) -> tuple[list[float], float]:
    """Of each basis over an epoch's windows, and the mean of the two networks' own; nothing trains, nothing drops.

    All are divided by the number of positive points, which is the same for a window and its reverse.
    """
    trainer.network.eval()
    for learner in trainer.train_step.learners:
        learner.loss.eval()
    bases, own = [], []
    with torch.no_grad():
        for batch in trainer.loader:
            views = batch.in_views(trainer.config.views)
            both = trainer.network([view.inputs for view in views], batch.mask)
            losses, _ = trainer.train_step.losses(0, views)
            bases.append([losses[name].total.item() for name in NAMES])
            for learner, prediction, view in zip(trainer.train_step.learners, both.own, views, strict=True):
                targets = learner.targets(prediction.points, view.segments, view.labels)
                own.append(learner.loss(prediction, targets).total.item())
    return torch.tensor(bases).mean(0).tolist(), torch.tensor(own).mean().item()


@pytest.mark.parametrize("experiment", ["3-1", "3-2", "3-3"])
def test_each_bases_first_loss_is_about_that_of_the_networks_and_the_groups_own_start_was_far_from_it(
    features: tuple[Path, tuple[str, str]], experiment: str
) -> None:
    several = "training.windows_per_video=4"
    bases, own = first_losses(trainer_of(features, experiment, several))
    assert all(loss <= 1.1 * own for loss in bases), (bases, own)
    random, naive = "pair.fusion_init=random", "pair.align=naive"
    theirs, same = first_losses(trainer_of(features, experiment, several, random, naive))
    assert same == pytest.approx(own)
    assert (
        sum(theirs) / 2 > (1.2 if experiment == "3-3" else 3) * own
    )  # 3-3 averages the logits, whatever its start


# 1x: agreement.


def test_agreement_is_added_to_the_losses_of_1_1_and_draws_both_networks(
    features: tuple[Path, tuple[str, str]],
) -> None:
    found: dict[float, tuple[float, dict[str, Tensor]]] = {}
    for weight in (1.0, 3.0):
        trainer = trainer_of(features, "1x", NOTHING_DROPPED, f"pair.agreement={weight}")
        separate = trainer_of(features, "1-1", NOTHING_DROPPED)
        batch = next(iter(trainer.loader))
        views = batch.in_views(trainer.config.views)
        losses, agreement = trainer.train_step.losses(0, views)
        assert agreement is not None
        for turn, name in enumerate(NAMES):
            alone_losses, _ = separate.train_step.losses(turn, views)
            assert_same([*alone_losses[name]], [*losses[name]])
        agreement.backward()
        found[weight] = agreement.item(), gradients(trainer.network)
    assert found[3.0][0] == pytest.approx(3 * found[1.0][0])
    assert found[1.0][0] > 0
    for side in ("first.", "second."):
        drawn = [name for name, gradient in found[1.0][1].items() if name.startswith(side) and gradient.any()]
        assert any("head.classification" in name for name in drawn)
        assert any("head.regression" in name for name in drawn)


def test_two_networks_that_say_the_same_agree(features: tuple[Path, tuple[str, str]]) -> None:
    trainer = trainer_of(
        (features[0], (features[1][0], features[1][0].replace("forward=", "reverse=", 1))),
        "1x",
        "pair.second=forward",
        NOTHING_DROPPED,
    )
    _, agreement = trainer.train_step.losses(0, next(iter(trainer.loader)).in_views(trainer.config.views))
    assert agreement is not None
    assert agreement.item() == pytest.approx(0, abs=1e-6)


# What belongs to whom.


@pytest.mark.parametrize("experiment", ["3-1", "3-2", "3-3"])
def test_each_fusion_is_trained_averaged_and_clipped_with_its_own_network(
    features: tuple[Path, tuple[str, str]], experiment: str, tmp_path: Path
) -> None:
    trainer = trainer_of(features, experiment, *UNTESTED, f"output={tmp_path}")
    assert isinstance(trainer.network, Pair)
    for learner, side in zip(trainer.train_step.learners, trainer.network.sides, strict=True):
        assert isinstance(side.fusion, Fusion)
        optimised = {id(p) for group in learner.optimizer.param_groups for p in group["params"]}
        assert optimised == {id(p) for p in side.parameters()}
        assert {f"fusion.{name}" for name, _ in side.fusion.named_parameters()} <= learner.ema.average.keys()
    trainer.run(until=1)
    saved = load_checkpoint(trainer.checkpoints.last)
    for learner, prefix in zip(trainer.train_step.learners, ("first.", "second."), strict=True):
        for name, parameter in learner.module.named_parameters():
            assert torch.equal(saved.model[prefix + name], learner.ema.average[name])
            if name.startswith("fusion."):  # the raw one has gone farther than its average
                assert not torch.equal(parameter, learner.ema.average[name])
                assert learner.schedule.get_last_lr()[0] > 0
