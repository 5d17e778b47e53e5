"""A network in training: what belongs to it and to it alone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bitad.config import TrainingConfig
from bitad.data.dataset import Batch
from bitad.models.head import Points, Prediction
from bitad.training.ema import Ema
from bitad.training.losses import DetectionLoss, Losses
from bitad.training.optimizer import LearningRates, build_optimizer, build_schedule
from bitad.training.sharding import divided_like, whole
from bitad.training.targets import Targets, assign


class Judged(NamedTuple):
    """The losses of a prediction, and the targets they come from."""

    losses: Losses
    targets: Targets


class Learner:
    """A network (and what an experiment adds to it) with its loss, optimiser, schedule and moving average.

    Two networks that learn together are two of these: nothing of one's depends on the other's but through the loss.

    Args:
        name: which one it is: ``forward`` or ``backward``; of a single network its playing direction.
        prefix: of the module's parameters in the names of the whole.
        module: whose parameters are trained.
        loss: of its predictions.
        config: the recipe.
        rates: learning rates.
        steps_per_epoch: of the schedule.
        num_classes: K.
    """

    def __init__(
        self,
        name: str,
        prefix: str,
        module: nn.Module,
        loss: DetectionLoss,
        config: TrainingConfig,
        *,
        rates: LearningRates,
        steps_per_epoch: int,
        num_classes: int,
    ) -> None:
        self.name, self.prefix, self.module, self.loss = name, prefix, module, loss
        self.config, self.num_classes = config, num_classes
        self.optimizer = build_optimizer(module, rates, weight_decay=config.weight_decay)
        self.schedule = build_schedule(
            self.optimizer,
            warmup_steps=round(config.warmup_epochs * steps_per_epoch),
            total_steps=(config.schedule_epochs or config.epochs) * steps_per_epoch,
        )
        self.ema = Ema(module, decay=config.ema_decay)

    def judge(self, prediction: Prediction, batch: Batch, *, normaliser: Tensor | None = None) -> Judged:
        """The losses of a prediction of the batch, both in this network's view; see :class:`DetectionLoss`."""
        targets = self._targets(prediction.points, batch.segments, batch.labels)
        return Judged(self.loss(prediction, targets, normaliser=normaliser), targets)

    def normaliser(self, points: Points, segments: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
        """By what the losses of a step are divided, of all its windows' ground truth in this network's view."""
        return self.loss.normaliser_of(self._targets(points, segments, labels).positive.sum())

    def _targets(self, points: Points, segments: Sequence[Tensor], labels: Sequence[Tensor]) -> Targets:
        return assign(points, segments, labels, self.num_classes, radius=self.config.centre_radius)

    def clip(self) -> float:
        """Shortens the gradients that a backward pass has left; their norm before, which may not be finite."""
        trainable = [p for p in self.module.parameters() if p.requires_grad]
        return float(whole(nn.utils.clip_grad_norm_(trainable, self.config.clip_norm)))

    def step(self) -> None:
        """One step down the gradients, which are freed: they need not lie beside another network's activations."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.module)

    def advance(self) -> None:
        """The learning rate of the next step."""
        with warnings.catch_warnings():
            # Of the first step, where that was left out: the schedule counts it all the same.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.schedule.step()

    def averaged(self) -> dict[str, Tensor]:
        """The averaged weights, by their names in the whole."""
        return {self.prefix + name: whole(tensor) for name, tensor in self.ema.average.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the averaged weights, which the checkpoint holds."""
        parameters = dict(self.module.named_parameters())
        optimizer = self.optimizer.state_dict()
        moments = {
            number: {name: whole(value) if isinstance(value, Tensor) else value for name, value in state.items()}
            for number, state in optimizer["state"].items()
        }
        return {
            "raw": {name: whole(parameters[name].detach()) for name in self.ema.average},
            "loss": self.loss.state_dict(),
            "optimizer": {**optimizer, "state": moments},
            "schedule": self.schedule.state_dict(),
            "ema_updates": self.ema.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from :meth:`state_dict`; the module holds the averaged weights."""
        parameters = dict(self.module.named_parameters())
        average = {name: parameters[name].detach().clone() for name in self.ema.average}
        self.ema.load_state_dict({"updates": state["ema_updates"], "average": average})
        with torch.no_grad():
            for name, tensor in state["raw"].items():
                parameters[name].copy_(divided_like(tensor, parameters[name]))
        self.loss.load_state_dict(state["loss"])
        # The optimiser knows its parameters by their numbers in this order.
        ordered = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        moments = {
            number: {
                name: divided_like(value, ordered[number]) if isinstance(value, Tensor) else value
                for name, value in one.items()
            }
            for number, one in state["optimizer"]["state"].items()
        }
        self.optimizer.load_state_dict({**state["optimizer"], "state": moments})
        self.schedule.load_state_dict(state["schedule"])

    def go_on_at(self, step: int, rates: Sequence[float]) -> None:
        """Goes on from a step of another schedule: other learning rates, and another number of steps.

        Args:
            step: of this schedule.
            rates: of each group of parameters, before the schedule; as they were when this was made.
        """
        self.schedule.base_lrs = [*rates]
        self.schedule.last_epoch = step
        for group, rate, factor in zip(self.optimizer.param_groups, rates, self.schedule.lr_lambdas, strict=True):
            group["initial_lr"], group["lr"] = rate, rate * factor(step)

    def forget(self) -> None:
        """Leaves out a step: its gradients are freed, and nothing else happens."""
        self.optimizer.zero_grad(set_to_none=True)
