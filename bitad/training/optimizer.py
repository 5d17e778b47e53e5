"""AdamW in groups, and the schedule of the learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

# What weight decay is for: the weights of linear maps and convolutions; not norms, biases, scales.
DECAYED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class LearningRates:
    """Learning rates stated for a batch of ``reference_batch`` windows a step, scaled linearly to ``effective_batch``.

    The linear rule is that of Goyal et al. 2017 (arXiv:1706.02677).
    """

    lr: float
    adapter_lr: float
    reference_batch: int
    effective_batch: int

    @property
    def factor(self) -> float:
        return self.effective_batch / self.reference_batch

    def __str__(self) -> str:
        return (
            f"learning rate {self.lr * self.factor:.3g}, of adapters {self.adapter_lr * self.factor:.3g} for an "
            f"effective batch of {self.effective_batch} (stated: {self.lr:.3g} and {self.adapter_lr:.3g} for "
            f"{self.reference_batch})"
        )


def build_optimizer(model: nn.Module, rates: LearningRates, *, weight_decay: float) -> AdamW:
    """AdamW over what trains (``requires_grad``), in up to four groups: adapters and the rest, decayed and not.

    Each group carries its name under ``name``.
    """
    decayed = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, DECAYED)
        for name, _ in module.named_parameters(recurse=False)
        if name == "weight"
    }
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((".adapter." in name, name in decayed), []).append(parameter)
    return AdamW(
        [
            {
                "params": parameters,
                "lr": (rates.adapter_lr if adapter else rates.lr) * rates.factor,
                "weight_decay": weight_decay if decay else 0.0,
                "name": f"{'adapters' if adapter else 'detector'}{'' if decay else ', not decayed'}",
            }
            for (adapter, decay), parameters in groups.items()
        ]
    )


def build_schedule(optimizer: AdamW, *, warmup_steps: int, total_steps: int) -> LambdaLR:
    """Linear warm-up from 0, then half a cosine down to 0 at ``total_steps``; one call of ``step()`` a step."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    return LambdaLR(optimizer, factor)
