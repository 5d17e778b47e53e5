"""The averaged weights are the slow formula's, are lent to the model and given back, and leave out what is frozen."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bitad.training.optimizer import Ema


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[2].requires_grad_(False)
    return model


def walk(model: nn.Module) -> None:
    """A step of some training."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_it_equals_the_slow_average(decay: float) -> None:
    model = network()
    ema, slow = Ema(model, decay=decay), values(model)
    for n in range(1, 30):
        walk(model)
        ema.update(model)
        kept = min(decay, (1 + n) / (10 + n))
        slow = {name: kept * slow[name] + (1 - kept) * value for name, value in values(model).items()}
    for name, average in ema.average.items():
        torch.testing.assert_close(average, slow[name])


def test_it_begins_with_the_models_weights_and_does_not_move_with_them() -> None:
    model = network()
    ema, before = Ema(model, decay=0.9), values(model)
    walk(model)
    assert all(torch.equal(ema.average[name], before[name]) for name in ema.average)


def test_the_average_of_weights_that_stay_is_what_they_are() -> None:
    model = network()
    ema = Ema(model, decay=0.9)
    for _ in range(5):
        ema.update(model)
    assert all(torch.equal(average, model.get_parameter(name)) for name, average in ema.average.items())


def test_what_is_frozen_is_neither_copied_nor_touched() -> None:
    model = network()
    ema = Ema(model, decay=0.9)
    assert set(ema.average) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    frozen = model[2].weight
    with torch.no_grad():
        frozen.fill_(7)
    ema.update(model)
    with ema.applied(model):
        assert (model[2].weight == 7).all()
        assert model[2].weight is frozen


def test_applied_lends_the_average_and_gives_the_own_weights_back() -> None:
    model = network()
    ema = Ema(model, decay=0.9)
    walk(model)
    ema.update(model)
    own = values(model)
    with ema.applied(model):
        assert all(torch.equal(model.get_parameter(name), average) for name, average in ema.average.items())
        assert not torch.equal(model[0].weight, own["0.weight"])
    assert all(torch.equal(value, own[name]) for name, value in values(model).items())


def test_applied_gives_the_weights_back_after_an_error_too() -> None:
    model = network()
    ema = Ema(model, decay=0.9)
    walk(model)
    own = values(model)

    def fail() -> None:
        with ema.applied(model):
            raise ValueError("in the middle of testing")

    with pytest.raises(ValueError, match="in the middle"):
        fail()
    assert all(torch.equal(value, own[name]) for name, value in values(model).items())


def test_a_restarted_one_repeats_the_one_that_never_stopped() -> None:
    model = network()
    ema = Ema(model, decay=0.99)
    for _ in range(4):
        walk(model)
        ema.update(model)
    resumed = Ema(network(), decay=0.99)
    with ema.applied(model):
        resumed.restart(model, updates=ema.updates)
    for _ in range(4):
        walk(model)
        ema.update(model)
        resumed.update(model)
    assert resumed.updates == ema.updates == 8
    assert all(torch.equal(resumed.average[name], average) for name, average in ema.average.items())
