"""Exponential moving average of what trains: the weights that are tested."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bitad.training.sharding import local


class Ema:
    """Averages the trainable parameters of a model; what is frozen is neither copied nor averaged.

    The decay rises as ``(1 + n) / (10 + n)`` with the number of updates n up to ``decay`` (as in TensorFlow's
    ExponentialMovingAverage), so that a short training is not held back by its random beginning.

    Args:
        model: whose parameters with ``requires_grad`` are averaged, from their present values on.
        decay: how much of the average stays at an update.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.average = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes in the model's present parameters."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        parameters = dict(model.named_parameters())
        averages = [local(tensor) for tensor in self.average.values()]
        torch._foreach_lerp_(averages, [local(parameters[name]) for name in self.average], 1 - decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within, the model has the averaged parameters; afterwards its own again."""
        parameters = {name: p for name, p in model.named_parameters() if name in self.average}
        own = {name: p.detach().clone() for name, p in parameters.items()}
        self._load(parameters, self.average)
        try:
            yield
        finally:
            self._load(parameters, own)

    @staticmethod
    @torch.no_grad()
    def _load(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
        for name, parameter in parameters.items():
            parameter.copy_(values[name])

    def state_dict(self) -> dict[str, object]:
        """What a resumed run needs."""
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Goes on from :meth:`state_dict`."""
        updates, average = state["updates"], state["average"]
        assert isinstance(updates, int)
        assert isinstance(average, dict)
        self.updates = updates
        for name, tensor in self.average.items():
            tensor.copy_(average[name])
