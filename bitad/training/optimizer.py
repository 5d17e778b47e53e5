"""AdamW in parameter groups, the learning rate schedule, and the moving average (EMA) of what trains."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from bitad.config.schema import TrainingConfig
from bitad.models.adapters import is_adapter
from bitad.models.fusion import Fusion
from bitad.runtime.distributed import local_shard

# What weight decay is for: the weights of linear maps and convolutions; not norms, biases, scales.
DECAYED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class LearningRates:
    """Learning rates stated for a batch of ``reference_batch`` windows a step, scaled linearly to ``effective_batch``.

    The linear rule is that of Goyal et al. 2017 (arXiv:1706.02677).
    """

    lr: float
    adapter_lr: float
    fusion_lr: float
    reference_batch: int
    effective_batch: int

    @classmethod
    def of(cls, config: TrainingConfig, world: int) -> LearningRates:
        """The rates of a recipe, for this number of processes."""
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
    """AdamW over what trains (``requires_grad``), in groups: adapters and the rest, decayed and not, and fusions.

    A fusion is not decayed, for 0 is not where its weights belong, and its learning rate is divided by the number of
    inputs that an output sums (the fan-in, as Yang et al. 2021, arXiv:2203.03466, do for hidden layers under Adam). Its
    inputs are all alike (a trained head says about -5 at nearly every point), so a step of Adam, which moves every
    weight by the learning rate, would move each of its outputs by some thousand times that.

    Each group carries its name under ``name``.
    """
    decayed = {
        f"{prefix}.weight" if prefix else "weight"
        for prefix, module in model.named_modules()
        if isinstance(module, DECAYED)
    }
    fused = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, Fusion)
        for name, _ in module.named_parameters()
    }
    groups: dict[tuple[str, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name in fused:
            group = ("fusion", rates.fusion_lr / parameter[0].numel(), False)
        elif is_adapter(name):
            group = ("adapters", rates.adapter_lr, name in decayed)
        else:
            group = ("detector", rates.lr, name in decayed)
        groups.setdefault(group, []).append(parameter)
    on_gpu = any(parameter.is_cuda for parameter in model.parameters())
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
        # All parameters at once; on a CPU to the bit as one after the other, which `fused` is not.
        fused=on_gpu,
        foreach=not on_gpu,
    )


def build_schedule(optimizer: AdamW, *, warmup_steps: int, total_steps: int) -> LambdaLR:
    """Linear warm-up from 0, then half a cosine down to 0 at ``total_steps``; one call of ``step()`` a step."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    return LambdaLR(optimizer, factor)


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
        averages = [local_shard(tensor) for tensor in self.average.values()]
        torch._foreach_lerp_(averages, [local_shard(parameters[name]) for name in self.average], 1 - decay)

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
