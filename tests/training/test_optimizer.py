"""Who is trained at which rate, what decays, and the course of the learning rate."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from builders import config_of, feature_data, video_data
from torch import nn

from bitad.models.build import build_network
from bitad.models.network import Detector, Pair
from bitad.training.optimizer import LearningRates, build_optimizer, build_schedule

RATES = LearningRates(lr=1e-3, adapter_lr=2e-3, fusion_lr=1e-3, reference_batch=2, effective_batch=8)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    path = video_data(tmp_path_factory.mktemp("videos") / "data")
    return build_network(config_of(path, "model.layer_scale=0.1"), 3)


def groups_by_parameter(detector: nn.Module) -> dict[str, list[dict[str, object]]]:
    """The groups that each parameter is in, by the parameter's name."""
    optimizer = build_optimizer(detector, RATES, weight_decay=0.05)
    names = {id(parameter): name for name, parameter in detector.named_parameters()}
    found: dict[str, list[dict[str, object]]] = {name: [] for name in names.values()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            found[names[id(parameter)]].append(group)
    return found


def test_the_groups_are_a_partition_of_what_trains(detector: Detector) -> None:
    for name, groups in groups_by_parameter(detector).items():
        assert len(groups) == int(detector.get_parameter(name).requires_grad), name


def test_weights_of_linear_maps_and_convolutions_decay_and_nothing_else(detector: Detector) -> None:
    decayed = {
        name for name, groups in groups_by_parameter(detector).items() if groups and groups[0]["weight_decay"]
    }
    for name, parameter in detector.named_parameters():
        if not parameter.requires_grad:
            continue
        norm = ".norm" in name
        assert (name in decayed) == (parameter.ndim > 1 and not norm), name
    # Named, so that a change of the rule above cannot hide them.
    kept = {name for name in groups_by_parameter(detector) if name not in decayed}
    for part in ("head.scales", ".bias", ".norm1.weight", ".adapter.gamma", ".scale"):
        assert any(name.endswith(part) for name in kept), part
        assert not any(name.endswith(part) for name in decayed), part


def test_adapters_have_a_rate_of_their_own_and_both_are_scaled(detector: Detector) -> None:
    for name, groups in groups_by_parameter(detector).items():
        if groups:
            stated = 2e-3 if ".adapter." in name else 1e-3
            assert groups[0]["lr"] == pytest.approx(4 * stated)
            assert str(groups[0]["name"]).startswith("adapters" if ".adapter." in name else "detector")


def test_a_network_without_adapters_has_two_groups() -> None:
    optimizer = build_optimizer(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), RATES, weight_decay=0.1)
    assert [group["name"] for group in optimizer.param_groups] == ["detector", "detector, not decayed"]


@pytest.mark.parametrize(("experiment", "fan_in"), [("3-1", {112}), ("3-2", {112, 18}), ("3-3", {112})])
def test_fusions_are_not_decayed_and_have_their_rate_over_what_an_output_sums(
    experiment: str, fan_in: set[int], tmp_path: Path
) -> None:
    """2N inputs of a layer along N points, here 32 + 16 + 8; the 2 x 3 x 3 taps of the convolution."""
    path = feature_data(tmp_path / "data", training=1, test=0)
    pair = build_network(config_of(path, f"experiment={experiment}", "init.forward=f", "init.reverse=b"), 3)
    assert isinstance(pair, Pair)
    found = {
        name: groups for name, groups in groups_by_parameter(pair.first).items() if name.startswith("fusion.")
    }
    assert {id(groups[0]) for groups in found.values()} == {id(group) for (group,) in found.values()}
    assert {len(groups) for groups in found.values()} == {1}
    groups = [group for (group,) in found.values()]
    assert all(group["weight_decay"] == 0 and str(group["name"]).startswith("fusion") for group in groups)
    assert sorted(group["lr"] for group in groups) == pytest.approx(sorted(4 * 1e-3 / inputs for inputs in fan_in))
    rest = [groups for name, groups in groups_by_parameter(pair.first).items() if name not in found]
    assert not any(str(group["name"]).startswith("fusion") for (group,) in rest)


def test_second_and_cross_adapters_have_the_adapters_rate(tmp_path: Path) -> None:
    path = video_data(tmp_path / "data", training=1, test=0)
    for experiment, added in (("2", "bi_adapter"), ("2x", "cross_adapters")):
        pair = build_network(config_of(path, f"experiment={experiment}", "init.forward=f", "init.reverse=b"), 3)
        assert isinstance(pair, Pair)
        found = {name: groups for name, groups in groups_by_parameter(pair.second).items() if groups}
        assert all(added in name.split(".") for name in found)
        assert {groups[0]["lr"] for groups in found.values()} == {4 * 2e-3}
        assert {str(groups[0]["name"]) for groups in found.values()} == {"adapters", "adapters, not decayed"}


def test_the_weight_decay_shrinks_decayed_weights_only() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    nn.init.ones_(network[0].bias)
    optimizer = build_optimizer(network, RATES, weight_decay=0.5)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in network.named_parameters():
        factor = 1 - 4e-3 * 0.5 if name == "0.weight" else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


@pytest.mark.parametrize(("effective", "factor"), [(1, 0.5), (2, 1.0), (16, 8.0)])
def test_rates_are_scaled_linearly_from_the_batch_they_are_stated_for(effective: int, factor: float) -> None:
    rates = LearningRates(lr=1e-4, adapter_lr=3e-4, fusion_lr=1e-3, reference_batch=2, effective_batch=effective)
    assert rates.factor == factor
    optimizer = build_optimizer(nn.Linear(2, 2), rates, weight_decay=0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-4 * factor)


def test_the_sentence_about_the_rates_says_what_is_used_and_what_was_stated() -> None:
    said = str(LearningRates(lr=1e-4, adapter_lr=2e-4, fusion_lr=1e-3, reference_batch=2, effective_batch=8))
    assert said == (
        "learning rate 0.0004, of adapters 0.0008, of fusions 0.004 over their fan-in, for an effective batch of 8 "
        "(stated: 0.0001, 0.0002 and 0.001 for 2)"
    )


def courses(warmup: int, total: int, steps: int) -> list[list[float]]:
    """The learning rate of each group at each step, for a network with two groups."""
    optimizer = build_optimizer(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), RATES, weight_decay=0.1)
    optimizer.param_groups[1]["lr"] *= 3
    schedule = build_schedule(optimizer, warmup_steps=warmup, total_steps=total)
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return [list(column) for column in zip(*found, strict=True)]


def test_the_rate_rises_linearly_and_falls_as_half_a_cosine() -> None:
    warmup, total = 10, 50
    (course, _) = courses(warmup, total, total)
    top = 4e-3
    for step, rate in enumerate(course):
        if step < warmup:
            expected = top * (step + 1) / (warmup + 1)
        else:
            expected = top * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
        assert rate == pytest.approx(expected)
    assert max(course) == course[warmup] == pytest.approx(top)
    assert all(a > b for a, b in zip(course[warmup:], course[warmup + 1 :], strict=False))
    assert 0 < course[-1] < 0.01 * top


def test_all_groups_follow_the_same_course() -> None:
    first, second = courses(3, 20, 20)
    torch.testing.assert_close(torch.tensor(first) * 3, torch.tensor(second))


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    assert courses(0, 10, 1)[0] == [pytest.approx(4e-3)]


def test_beyond_the_last_step_the_rate_stays_at_nothing() -> None:
    assert courses(2, 10, 14)[0][10:] == [pytest.approx(0, abs=1e-12)] * 4
