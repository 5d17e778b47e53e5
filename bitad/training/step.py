"""A training step: from batches of windows to new weights, of one detector or of two."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bitad.config.schema import Config, TrainingConfig
from bitad.data.dataset import Batch
from bitad.data.transforms import recolour
from bitad.models.adapters import Bottleneck
from bitad.models.build import autocast, build_network
from bitad.models.heads import Points, Prediction
from bitad.models.network import Network
from bitad.models.vit import Block
from bitad.runtime.distributed import Ranks, full_tensor, gradient_sync, shard_like
from bitad.training.losses import DetectionLoss, Losses, Targets, assign
from bitad.training.optimizer import Ema, LearningRates, build_optimizer, build_schedule


class StepOutput(NamedTuple):
    """The figures of one training step.

    Args:
        losses: of each learner, by its name; detached.
        agreement: the weighted agreement loss of experiment 1x; None elsewhere.
        norms: of each learner's gradient before clipping; not finite where it took no step.
        fault: which gradients were not finite; None if all were, or if half precision has overflowed, after which the
            scale of the losses is lowered.
    """

    losses: dict[str, Losses]
    agreement: Tensor | None
    norms: dict[str, float]
    fault: str | None


class LossOutput(NamedTuple):
    """The losses of a prediction, and the targets they compare it with."""

    losses: Losses
    targets: Targets


class Learner:
    """A detector, with what an experiment adds to it: its loss, optimizer, schedule and moving average.

    Two detectors that train together are two learners. Only the loss of a joint experiment connects them.

    Args:
        name: ``forward``, ``reverse``, or of the control ``first`` and ``second``.
        prefix: of the module's parameters in the network.
        module: whose parameters are trained.
        config: the recipe.
        ranks: the processes that train together.
        rates: learning rates.
        steps_per_epoch: of the schedule.
        num_classes: K.
    """

    def __init__(
        self,
        name: str,
        prefix: str,
        module: nn.Module,
        config: TrainingConfig,
        ranks: Ranks,
        *,
        rates: LearningRates,
        steps_per_epoch: int,
        num_classes: int,
    ) -> None:
        self.name, self.prefix, self.module = name, prefix, module
        self.config, self.num_classes = config, num_classes
        self.loss = DetectionLoss(
            label_smoothing=config.label_smoothing,
            regression_weight=config.regression_weight,
            initial_normaliser=config.loss_normaliser,
            processes=ranks.world,
            total=ranks.total,
        ).to(ranks.device)
        self.optimizer = build_optimizer(module, rates, weight_decay=config.weight_decay)
        self.schedule = build_schedule(
            self.optimizer,
            warmup_steps=round(config.warmup_epochs * steps_per_epoch),
            total_steps=(config.schedule_epochs or config.epochs) * steps_per_epoch,
        )
        self.initial_rates = [group["initial_lr"] for group in self.optimizer.param_groups]
        self.ema = Ema(module, decay=config.ema_decay)

    def losses(self, prediction: Prediction, batch: Batch, *, normaliser: Tensor | None = None) -> LossOutput:
        """The losses of a prediction of the batch, both in this learner's view; see :class:`DetectionLoss`."""
        targets = self._targets(prediction.points, batch.segments, batch.labels)
        return LossOutput(self.loss(prediction, targets, normaliser=normaliser), targets)

    def normaliser(self, points: Points, segments: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
        """The divisor of a step's losses, from the ground truth of all its windows in this learner's view."""
        return self.loss.normaliser_of(self._targets(points, segments, labels).positive.sum())

    def _targets(self, points: Points, segments: Sequence[Tensor], labels: Sequence[Tensor]) -> Targets:
        return assign(points, segments, labels, self.num_classes, radius=self.config.centre_radius)

    def clip(self) -> float:
        """Clips the gradients; returns their norm before, which may not be finite."""
        trainable = [p for p in self.module.parameters() if p.requires_grad]
        return float(full_tensor(nn.utils.clip_grad_norm_(trainable, self.config.clip_norm)))

    def step(self) -> None:
        """Updates the weights, and frees the gradients before another detector's activations need the memory."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.module)

    def skip_step(self) -> None:
        """Frees the gradients; the weights stay."""
        self.optimizer.zero_grad(set_to_none=True)

    def advance(self) -> None:
        """Sets the learning rate of the next step."""
        with warnings.catch_warnings():
            # PyTorch warns if the first step was skipped: the schedule counts it all the same.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.schedule.step()

    def averaged(self) -> dict[str, Tensor]:
        """The averaged weights, by their names in the network."""
        return {self.prefix + name: full_tensor(tensor) for name, tensor in self.ema.average.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs in addition to the averaged weights, which the checkpoint holds."""
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
        """Resumes from :meth:`state_dict`; the module holds the averaged weights."""
        parameters = dict(self.module.named_parameters())
        average = {name: parameters[name].detach().clone() for name in self.ema.average}
        self.ema.load_state_dict({"updates": state["ema_updates"], "average": average})
        with torch.no_grad():
            for name, tensor in state["raw"].items():
                parameters[name].copy_(shard_like(tensor, parameters[name]))
        self.loss.load_state_dict(state["loss"])
        # The optimizer numbers its parameters in this order.
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

    def resume_at(self, step: int) -> None:
        """Continues at a step of this learner's own schedule and rates, instead of those of a loaded state."""
        self.schedule.base_lrs = [*self.initial_rates]
        self.schedule.last_epoch = step
        groups = zip(self.optimizer.param_groups, self.initial_rates, self.schedule.lr_lambdas, strict=True)
        for group, rate, factor in groups:
            group["initial_lr"], group["lr"] = rate, rate * factor(step)


class TrainStep:
    """Takes the steps of a training: forward and backward passes, optimizers, schedules and moving averages.

    Args:
        network: on the device of ``ranks``, with its first weights.
        config: of the run.
        ranks: the processes that train together.
        num_classes: K.
        steps_per_epoch: of the schedule.
    """

    def __init__(
        self, network: Network, config: Config, ranks: Ranks, *, num_classes: int, steps_per_epoch: int
    ) -> None:
        self.network, self.config, self.ranks, self.num_classes = network, config, ranks, num_classes
        # What one backward pass goes through: the pair, or one detector after the other.
        self.models = self._wrapped()
        self.rates = LearningRates.of(config.training, ranks.world)
        self.learners = [
            Learner(
                name,
                prefix,
                module,
                config.training,
                ranks,
                rates=self.rates,
                steps_per_epoch=steps_per_epoch,
                num_classes=num_classes,
            )
            for name, (prefix, module) in zip(config.learner_names, network.parts.items(), strict=True)
        ]
        # Scales losses in half precision, whose small gradients would vanish; does nothing in others.
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=config.training.precision == "fp16")
        self.points = network.detectors[0].points(config.window.steps, ranks.device)

    def _wrapped(self) -> list[nn.Module]:
        """The models, wrapped for training by several processes."""
        parts = [self.network] if self.config.plan.joint else list(self.network.detectors)
        if not self.config.training.shard:
            return [self.ranks.wrap(part) for part in parts]
        # Inner modules first.
        units = [[one for one in part.modules() if isinstance(one, Block | Bottleneck)][::-1] for part in parts]
        return [self.ranks.wrap(part, parts=of) for part, of in zip(parts, units, strict=True)]

    def __call__(self, batches: Sequence[Batch]) -> StepOutput:
        """One step of every learner, down the gradient of all windows of the batches (on any device).

        Two detectors that share no graph take turns: the activations of one are freed before those of the other are
        made, and each gradient is that of the sum of both losses.
        """
        normalisers = self._normalisers(batches)
        parts: defaultdict[str, list[Losses]] = defaultdict(list)
        agreements: list[Tensor] = []
        norms: dict[str, float] = {}
        for number, batch in enumerate(batches, start=1):
            views = batch.to(self.ranks.device).in_views(self.config.views)
            for turn, model in enumerate(self.models):
                with gradient_sync(model, number == len(batches)):
                    losses, agreement = self.losses(turn, views, normalisers)
                    self.scaler.scale(total(losses, agreement)).backward()
                for name, one in losses.items():
                    parts[name].append(Losses(*(loss.detach() for loss in one)))
                if agreement is not None:
                    agreements.append(agreement.detach())
                del losses, agreement  # and the graph they hold
                if number == len(batches):
                    norms |= self._descend(self.learners if self.config.plan.joint else [self.learners[turn]])
        summed = {
            name: Losses(*(torch.stack(loss).sum() for loss in zip(*of, strict=True))) for name, of in parts.items()
        }
        fault = self._fault(summed, norms)
        self.scaler.update()
        return StepOutput(summed, torch.stack(agreements).sum() if agreements else None, norms, fault)

    def losses(
        self, turn: int, views: Sequence[Batch], normalisers: Sequence[Tensor | None] = (None, None)
    ) -> tuple[dict[str, Losses], Tensor | None]:
        """The losses of one forward pass, by learner, and the weighted agreement where the experiment asks for it.

        Args:
            turn: which of the models.
            views: a batch in each detector's view, on the device.
            normalisers: of each learner, see :class:`DetectionLoss`.
        """
        own = slice(None) if self.config.plan.joint else slice(turn, turn + 1)
        learners, views = self.learners[own], views[own]
        with autocast(self.ranks.device, self.config.training.precision):
            output = self.models[turn]([self.pictures(view) for view in views], views[0].mask)
        results = [
            learner.losses(prediction, view, normaliser=normaliser)
            for learner, prediction, view, normaliser in zip(
                learners, output.predictions, views, normalisers[own], strict=False
            )
        ]
        losses = {learner.name: result.losses for learner, result in zip(learners, results, strict=True)}
        if not self.config.plan.agreement:
            return losses, None
        apart = [
            learner.loss.agreement(mine, other, result.targets)
            for learner, mine, other, result in zip(learners, output.own, output.aligned, results, strict=True)
        ]
        return losses, self.config.pair.agreement * torch.stack(apart).mean()

    def pictures(self, view: Batch) -> Tensor:
        """The input of a detector: frames with the window's change of colour, or features."""
        return view.inputs if view.colour is None else recolour(view.inputs, view.colour)

    def _normalisers(self, batches: Sequence[Batch]) -> list[Tensor | None]:
        """The divisor of each learner's losses: where a step has several batches, from all their windows."""
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
        """Updates the learners whose gradients have been computed, if all are finite; the norms of these gradients."""
        for learner in learners:
            self.scaler.unscale_(learner.optimizer)
        norms = {learner.name: learner.clip() for learner in learners}
        finite = all(map(math.isfinite, norms.values()))
        for learner in learners:
            if finite:
                learner.step()
            else:
                learner.skip_step()
        return norms

    def _fault(self, losses: dict[str, Losses], norms: dict[str, float]) -> str | None:
        """Which gradients were not finite, unless a lower scale of half precision will help."""
        faults = [name for name, norm in norms.items() if not math.isfinite(norm)]
        loss = sum(one.total.item() for one in losses.values())
        if not faults or (math.isfinite(loss) and self.scaler.is_enabled() and self.scaler.get_scale() > 1):
            return None
        return f"the gradient of the {' and the '.join(faults)} network is not finite"

    @property
    def lr(self) -> float:
        """The learning rate of the next step, of the first group of parameters."""
        return float(self.learners[0].optimizer.param_groups[0]["lr"])

    def train(self) -> None:
        """Sets training mode. Frozen detectors stay in evaluation mode: they train nothing, and drop nothing."""
        self.network.train(self.config.trains_detectors)
        for learner in self.learners:
            learner.loss.train()

    def advance(self) -> None:
        """Sets the learning rates of the next step."""
        for learner in self.learners:
            learner.advance()

    def averaged_weights(self) -> dict[str, Tensor]:
        """The weights of the network, averaged where they train."""
        averaged = {name: full_tensor(tensor) for name, tensor in self.network.state_dict().items()}
        for learner in self.learners:
            averaged |= learner.averaged()
        return averaged

    @contextmanager
    def averaged_network(self) -> Iterator[Network]:
        """The network with the averaged weights, in evaluation mode; a full copy if the weights are sharded."""
        if self.config.training.shard and self.ranks.world > 1:
            # Ranks test different numbers of windows, and could not gather weights for each other.
            with torch.random.fork_rng(devices=[]):  # so that testing draws none of the training's random numbers
                copy = build_network(self.config, self.num_classes)
            copy.load_state_dict(self.averaged_weights())
            yield copy.to(self.ranks.device).eval()
            return
        self.network.eval()
        with ExitStack() as averaged:
            for learner in self.learners:
                averaged.enter_context(learner.ema.applied(learner.module))
            yield self.network

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs in addition to the averaged weights, which the checkpoint holds."""
        learners = {learner.name: learner.state_dict() for learner in self.learners}
        return {"learners": learners, "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from :meth:`state_dict`; the network holds the averaged weights."""
        # In their order: earlier versions had other names for them.
        for learner, own in zip(self.learners, state["learners"].values(), strict=True):
            learner.load_state_dict(own)
        self.scaler.load_state_dict(state["scaler"])

    def resume_at(self, step: int) -> None:
        """Continues at a step of this run's own schedules, instead of those of a loaded state."""
        for learner in self.learners:
            learner.resume_at(step)


def total(losses: dict[str, Losses], agreement: Tensor | None) -> Tensor:
    """The scalar that a backward pass starts from."""
    totals = [one.total for one in losses.values()] + ([] if agreement is None else [agreement])
    return torch.stack(totals).sum()
