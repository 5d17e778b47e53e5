"""AdamW with parameter groups, the learning rate schedule, and the moving average (EMA) of weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from bitad.config.schema import TrainingConfig
from bitad.models.fusion import Fusion
from bitad.models.vit import is_adapter
from bitad.runtime.distributed import local_shard

# Weight decay applies to the weights of linear maps and convolutions; not to norms, biases and scales.
DECAYED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class LearningRates:
    """Learning rates for ``reference_batch`` windows, scaled linearly (Goyal et al. 2017, arXiv:1706.02677)."""

    lr: float
    adapter_lr: float
    fusion_lr: float
    reference_batch: int
    effective_batch: int

    @classmethod
    def of(cls, config: TrainingConfig, world: int) -> LearningRates:
        """The rates of a recipe with this number of processes."""
        batch = config.batch * config.accumulate * world
        return cls(config.lr, config.adapter_lr, config.fusion_lr, config.reference_batch, batch)

    @property
    def factor(self) -> float:
        return self.effective_batch / self.reference_batch

    def __str__(self) -> str:
        return (
            f"learning rate {self.lr * self.factor:.3g}, of adapters {self.adapter_lr * self.factor:.3g}, of fusions "
            f"{self.fusion_lr * self.factor:.3g} over their fan-in, for an effective batch of {self.effective_batch} "
            f"(stated: {self.lr:.3g}, {self.adapter_lr:.3g} and {self.fusion_lr:.3g} for {self.reference_batch})"
        )


def build_optimizer(model: nn.Module, rates: LearningRates, *, weight_decay: float) -> AdamW:
    """AdamW over trainable parameters, in groups: adapters, fusions, the rest; decayed and not.

    Fusions have no weight decay, as their weights should not be near 0. Their learning rate is divided by the fan-in
    (Yang et al. 2021, arXiv:2203.03466): their inputs are nearly equal, so a step at the full rate would change each
    output by about a thousand times the rate.
    """
    decayed = {id(module.weight) for module in model.modules() if isinstance(module, DECAYED)}
    fusions = {id(p) for module in model.modules() if isinstance(module, Fusion) for p in module.parameters()}
    groups: dict[tuple[str, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in fusions:
            group = ("fusion", rates.fusion_lr / math.prod(parameter.shape[1:]), False)
        elif is_adapter(name):
            group = ("adapters", rates.adapter_lr, id(parameter) in decayed)
        else:
            group = ("detector", rates.lr, id(parameter) in decayed)
        groups.setdefault(group, []).append(parameter)
    return AdamW(
        [
            {
                "params": parameters,
                "lr": lr * rates.factor,
                "weight_decay": weight_decay if decay else 0.0,
                "name": f"{what}{'' if decay else ', not decayed'}",
            }
            for (what, lr, decay), parameters in groups.items()
        ],
        fused=True,  # one kernel for the whole update
    )


def build_schedule(optimizer: AdamW, *, warmup_steps: int, total_steps: int) -> LambdaLR:
    """Linear warm-up from 0, then half a cosine down to 0 at ``total_steps``."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    return LambdaLR(optimizer, factor)


class Ema:
    """The moving average of a model's trainable parameters, from their current values on.

    The decay rises as ``(1 + n) / (10 + n)`` with the number of updates n up to ``decay``, as in TensorFlow, so that
    the initial weights do not dominate a short training.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.updates: int | Tensor = 0
        self.average = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, model: nn.Module, finite: Tensor | None = None) -> None:
        """Adds the model's current parameters, unless ``finite`` is false.

        ``finite``: a boolean on the device of the parameters, where it is applied without being read.
        """
        parameters = dict(model.named_parameters())
        averages = [local_shard(tensor) for tensor in self.average.values()]
        current = [local_shard(parameters[name]) for name in self.average]
        if finite is None:
            self.updates = updates = int(self.updates) + 1
            torch._foreach_lerp_(averages, current, 1 - min(self.decay, (1 + updates) / (10 + updates)))
            return
        self.updates = self.updates + finite
        count = self.updates.double()  # as Python computes
        weight = finite * (1 - ((1 + count) / (10 + count)).clamp(max=self.decay))
        torch._foreach_lerp_(averages, current, [weight.float()] * len(averages))

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within, the model has the averaged parameters; afterwards its own."""
        parameters = {name: p for name, p in model.named_parameters() if name in self.average}
        own = {name: p.detach().clone() for name, p in parameters.items()}
        self._load(parameters, self.average)
        try:
            yield
        finally:
            self._load(parameters, own)

    @staticmethod
    @torch.no_grad()
    def _load(target: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
        for name, tensor in target.items():
            tensor.copy_(values[name])

    def restart(self, model: nn.Module, *, updates: int) -> None:
        """Continues from an average of this many updates, which is the model's parameters."""
        self.updates = updates
        self._load(self.average, dict(model.named_parameters()))
