"""A training step: from batches of windows to new weights, of one network or of two."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bitad.config.schema import Config, TrainingConfig
from bitad.data.dataset import Batch
from bitad.data.transforms import recolour
from bitad.models.adapters import Bottleneck
from bitad.models.build import Network, autocast
from bitad.models.heads import Points, Prediction
from bitad.models.network import Detector, Pair
from bitad.models.vit import Block
from bitad.runtime.distributed import Ranks, full_tensor, reducing, shard_like
from bitad.training.losses import DetectionLoss, Losses, Targets, assign
from bitad.training.optimizer import Ema, LearningRates, build_optimizer, build_schedule


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
        return float(full_tensor(nn.utils.clip_grad_norm_(trainable, self.config.clip_norm)))

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
        return {self.prefix + name: full_tensor(tensor) for name, tensor in self.ema.average.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the averaged weights, which the checkpoint holds."""
        parameters = dict(self.module.named_parameters())
        optimizer = self.optimizer.state_dict()
        moments = {
            number: {name: full_tensor(value) if isinstance(value, Tensor) else value for name, value in state.items()}
            for number, state in optimizer["state"].items()
        }
        return {
            "raw": {name: full_tensor(parameters[name].detach()) for name in self.ema.average},
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
                parameters[name].copy_(shard_like(tensor, parameters[name]))
        self.loss.load_state_dict(state["loss"])
        # The optimiser knows its parameters by their numbers in this order.
        ordered = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        moments = {
            number: {
                name: shard_like(value, ordered[number]) if isinstance(value, Tensor) else value
                for name, value in one.items()
            }
            for number, one in state["optimizer"]["state"].items()
        }
        self.optimizer.load_state_dict({**state["optimizer"], "state": moments})
        self.schedule.load_state_dict(state["schedule"])

    def resume_at(self, step: int, rates: Sequence[float]) -> None:
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


class Step(NamedTuple):
    """One step of training, network by network.

    Args:
        losses: of each network's basis, by the learner's name; without the graph behind them.
        agreement: what experiment 1x adds to them, weighted.
        norms: of each network's gradient before clipping; not finite where the network took no step.
        fault: what was not finite and should have been; None also where half precision has overflowed, and the next
            step's losses are scaled by less.
    """

    losses: dict[str, Losses]
    agreement: Tensor | None
    norms: dict[str, float]
    fault: str | None


class Descent:
    """Takes the steps of a training.

    Args:
        config: of the run.
        ranks: the processes that take each step together.
        network: in training.
        models: its parts that one backward pass goes through each, see :func:`together`.
        learners: one, or one for each network of a pair.
        scaler: of the losses.
    """

    def __init__(
        self,
        config: Config,
        ranks: Ranks,
        network: Network,
        models: Sequence[nn.Module],
        learners: Sequence[Learner],
        scaler: torch.amp.GradScaler,
    ) -> None:
        self.config, self.ranks, self.learners, self.scaler = config, ranks, learners, scaler
        self.models = models
        self.points = _detectors(network)[0].points(config.window.steps, ranks.device)

    def step(self, batches: Sequence[Batch]) -> Step:
        """One step of every network, down the gradient of all windows of the batches (:class:`Batch`, on any device).

        Two networks that share no graph take turns: one's activations are gone before the other's are made, and each
        gradient is that of the sum of both losses all the same.
        """
        normalisers = self._normalisers(batches)
        parts: defaultdict[str, list[Losses]] = defaultdict(list)
        agreements: list[Tensor] = []
        norms: dict[str, float] = {}
        for number, batch in enumerate(batches, start=1):
            views = self.views(batch)
            for turn, model in enumerate(self.models):
                with reducing(model, number == len(batches)):
                    losses, agreement = self._losses(turn, views, normalisers)
                    totals = [one.total for one in losses.values()] + ([] if agreement is None else [agreement])
                    self.scaler.scale(torch.stack(totals).sum()).backward()
                for name, one in losses.items():
                    parts[name].append(Losses(*(loss.detach() for loss in one)))
                if agreement is not None:
                    agreements.append(agreement.detach())
                del losses, agreement, totals  # and the graph behind them
                if number == len(batches):
                    norms |= self._descend(self.learners if self.config.plan.joint else [self.learners[turn]])
        summed = {
            name: Losses(*(torch.stack(loss).sum() for loss in zip(*of, strict=True))) for name, of in parts.items()
        }
        fault = self._fault(summed, norms)
        self.scaler.update()
        return Step(summed, torch.stack(agreements).sum() if agreements else None, norms, fault)

    def views(self, batch: Batch) -> list[Batch]:
        """Each network's view of a batch, on the device; decoded and copied there once."""
        first, *others = self.config.views
        batch = batch.to(self.ranks.device)
        return [batch, *(batch if view == first else batch.reversed() for view in others)]

    def losses_alone(self, number: int, view: Batch, normaliser: Tensor | None = None) -> Losses:
        """The losses of one network, which depends on no other, on its view of a batch; see :class:`DetectionLoss`."""
        with autocast(self.ranks.device, self.config.training.precision):
            prediction = self.models[number](_pictures(view), view.mask)
        return self.learners[number].judge(prediction, view, normaliser=normaliser).losses

    def losses_together(
        self, views: Sequence[Batch], normalisers: Sequence[Tensor | None] = (None, None)
    ) -> tuple[dict[str, Losses], Tensor | None]:
        """The losses of both bases of a pair, and the weighted agreement where the experiment asks for it."""
        with autocast(self.ranks.device, self.config.training.precision):
            both = self.models[0](tuple(_pictures(view) for view in views), views[0].mask)
        results = zip(self.learners, (both.first, both.second), views, normalisers, strict=True)
        judged = [learner.judge(prediction, view, normaliser=one) for learner, prediction, view, one in results]
        losses = {learner.name: one.losses for learner, one in zip(self.learners, judged, strict=True)}
        if not self.config.plan.agreement:
            return losses, None
        apart = [
            learner.loss.agreement(own, other, one.targets)
            for learner, own, other, one in zip(self.learners, both.own, both.aligned, judged, strict=True)
        ]
        return losses, self.config.pair.agreement * torch.stack(apart).mean()

    def _losses(
        self, turn: int, views: Sequence[Batch], normalisers: Sequence[Tensor | None]
    ) -> tuple[dict[str, Losses], Tensor | None]:
        if self.config.plan.joint:
            return self.losses_together(views, normalisers)
        return {self.learners[turn].name: self.losses_alone(turn, views[turn], normalisers[turn])}, None

    def _normalisers(self, batches: Sequence[Batch]) -> list[Tensor | None]:
        """By what each network's losses are divided, where a step comes in several batches: of all their windows."""
        if len(batches) == 1:
            return [None] * len(self.learners)
        first = self.config.views[0]
        labels = [one for batch in batches for one in batch.labels]
        normalisers: list[Tensor | None] = []
        for learner, view in zip(self.learners, self.config.views, strict=True):
            segments = [batch.segments if view == first else batch.reversed_segments() for batch in batches]
            normalisers.append(learner.normaliser(self.points, [one for part in segments for one in part], labels))
        return normalisers

    def _descend(self, learners: Sequence[Learner]) -> dict[str, float]:
        """A step of the learners whose gradients are there, if all are finite; the norms of these gradients."""
        for learner in learners:
            self.scaler.unscale_(learner.optimizer)
        norms = {learner.name: learner.clip() for learner in learners}
        finite = all(map(math.isfinite, norms.values()))
        for learner in learners:
            if finite:
                learner.step()
            else:
                learner.forget()
        return norms

    def _fault(self, losses: dict[str, Losses], norms: dict[str, float]) -> str | None:
        """What was not finite, though single precision would not have helped, or nothing."""
        faults = [name for name, norm in norms.items() if not math.isfinite(norm)]
        total = sum(one.total.item() for one in losses.values())
        if not faults or (math.isfinite(total) and self.scaler.is_enabled() and self.scaler.get_scale() > 1):
            return None
        return f"the gradient of the {' and the '.join(faults)} network is not finite"


def together(network: Network, config: Config, ranks: Ranks) -> list[nn.Module]:
    """What one backward pass of a network or pair goes through each, as the processes train it together."""
    parts = [network] if config.plan.joint else _detectors(network)
    if not config.training.shard:
        return [ranks.wrap(part) for part in parts]
    # What is within another one comes first.
    units = [[one for one in part.modules() if isinstance(one, Block | Bottleneck)][::-1] for part in parts]
    return [ranks.wrap(part, parts=of) for part, of in zip(parts, units, strict=True)]


def _detectors(network: Network) -> list[Detector]:
    return [side.network for side in network.sides] if isinstance(network, Pair) else [network]


def _pictures(view: Batch) -> Tensor:
    """What a network is given of its view: frames under the window's change of colour, or features."""
    return view.inputs if view.colour is None else recolour(view.inputs, view.colour)
