"""A training step of one or two detectors: batches of windows -> updated weights."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from bitad.config.names import UNKNOWN
from bitad.config.schema import Config
from bitad.data.samples import Batch
from bitad.data.transforms import recolour
from bitad.models.build import autocast, build_network
from bitad.models.heads import Points, Prediction
from bitad.models.network import Network
from bitad.models.vit import Block, TemporalAdapter
from bitad.runtime.distributed import Ranks, full_tensor, gathered, gradient_sync, shard_like
from bitad.training.distillation import SoftTargets, Teacher, distillation_loss
from bitad.training.losses import DetectionLoss, Losses, Targets, assign
from bitad.training.optimizer import Ema, LearningRates, build_optimizer, build_schedule


class StepOutput:
    """The figures of one training step.

    They begin their way to the host when this is made. Reading a number waits until they have arrived, which is no
    wait once a later step is launched and this one has ended.

    Args:
        losses: by learner, of a network with two views by view; detached, on the device.
        extra: the name and the weighted loss beside those of detection, of experiments 1x and distil; None elsewhere.
        norms: of the gradients before clipping, by learner.
        scale: of the losses in fp16; None in other precisions.
    """

    def __init__(
        self,
        losses: dict[str, Losses],
        extra: tuple[str, Tensor] | None,
        norms: dict[str, Tensor],
        scale: Tensor | None = None,
    ) -> None:
        self.losses, self.extra = losses, extra
        self._names, self._has_scale = tuple(norms), scale is not None
        others = [] if extra is None else [extra[1]]
        others += [] if scale is None else [scale]
        totals = [one.total for one in losses.values()]
        # Pinned memory, where they come from a GPU.
        self._numbers = torch.stack([*norms.values(), *totals, *others]).to("cpu", non_blocking=True)
        self._arrived: torch.cuda.Event | None = None
        if totals[0].is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    @cached_property
    def _read(self) -> list[float]:
        if self._arrived is not None:
            self._arrived.synchronize()
        numbers: list[float] = self._numbers.tolist()
        return numbers

    @property
    def norms(self) -> dict[str, float]:
        """The norms of the gradients before clipping, by learner; not finite if the step was skipped."""
        return dict(zip(self._names, self._read, strict=False))

    @property
    def loss(self) -> float:
        """The total loss of all learners, without the extra loss."""
        return sum(self._read[len(self._names) :][: len(self.losses)])

    @property
    def whole_loss(self) -> float:
        """The total loss of all learners, with the extra loss."""
        return self.loss + (0.0 if self.extra is None else self._read[len(self._names) + len(self.losses)])

    @property
    def fault(self) -> str | None:
        """Which gradients were not finite, unless a lower loss scale of fp16 will help."""
        faults = [name for name, norm in self.norms.items() if not math.isfinite(norm)]
        if not faults or (self._has_scale and math.isfinite(self.loss) and self._read[-1] > 1):
            return None
        return f"the gradient of the {' and the '.join(faults)} network is not finite"


class Learner:
    """The loss, optimizer, schedule and moving average of a detector and the modules added to it.

    A pair has two learners. Only the loss of a joint experiment connects them.
    """

    def __init__(
        self,
        name: str,
        prefix: str,
        module: nn.Module,
        config: Config,
        ranks: Ranks,
        *,
        num_classes: int,
        steps_per_epoch: int,
    ) -> None:
        self.name, self.prefix, self.module = name, prefix, module
        self.is_main = ranks.is_main
        self.config, self.distil, self.num_classes = config.training, config.distil, num_classes
        self.some_untaught = UNKNOWN in config.reversal.values()
        self.loss = DetectionLoss(
            label_smoothing=self.config.label_smoothing,
            regression_weight=self.config.regression_weight,
            iou_weight_power=config.model.head.iou_weight_power,
            initial_normaliser=self.config.loss_normaliser,
            processes=ranks.world,
            total=ranks.total,
        ).to(ranks.device)
        self.rates = LearningRates.of(self.config, ranks.world)
        self.optimizer = build_optimizer(module, self.rates, weight_decay=self.config.weight_decay)
        self.schedule = build_schedule(
            self.optimizer,
            warmup_steps=round(self.config.warmup_epochs * steps_per_epoch),
            total_steps=self.config.schedule_length * steps_per_epoch,
        )
        self.initial_rates = [group["initial_lr"] for group in self.optimizer.param_groups]
        self.ema = Ema(module, decay=self.config.ema_decay)
        self.trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def targets(self, points: Points, segments: Sequence[Tensor], labels: Sequence[Tensor]) -> Targets:
        """The targets of windows in this learner's view."""
        return assign(
            points,
            segments,
            labels,
            self.num_classes,
            radius=self.config.centre_radius,
            some_untaught=self.some_untaught,
        )

    def distillation(self, prediction: Prediction, soft: SoftTargets) -> Tensor:
        """The distance from a teacher, normalised as the last loss."""
        apart = distillation_loss(
            prediction,
            soft,
            temperature=self.distil.temperature,
            regression_weight=self.config.regression_weight,
        )
        return apart / self.loss.last_normaliser

    def clip(self) -> Tensor:
        """Clips the gradients; returns their norm before clipping, which may not be finite."""
        return gathered(nn.utils.clip_grad_norm_(self.trainable, self.config.clip_norm))

    def step(self, finite: Tensor | None = None) -> None:
        """Updates the weights and their average, unless ``finite`` is false, which the device decides."""
        if finite is not None:
            # A fused optimizer leaves weights, moments and counters as they are where this is 1 (as GradScaler does).
            self.optimizer.found_inf = finite.logical_not().float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.ema.update(self.module, finite)

    def advance(self) -> None:
        """Sets the learning rate of the next step."""
        with warnings.catch_warnings():
            # The schedule counts skipped steps too.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of a resumed run, without the averaged weights; sharded tensors are empty but on rank 0."""
        parameters = dict(self.module.named_parameters())
        full = partial(full_tensor, keep=self.is_main)
        return {
            "raw": {name: full(parameters[name].detach()) for name in self.ema.average},
            "loss": self.loss.state_dict(),
            "optimizer": tree_map_only(Tensor, full, self.optimizer.state_dict()),
            "schedule": self.schedule.state_dict(),
            "ema_updates": int(self.ema.updates),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from :meth:`state_dict`; the module holds the averaged weights."""
        parameters = dict(self.module.named_parameters())
        self.ema.restart(self.module, updates=state["ema_updates"])
        with torch.no_grad():
            for name, tensor in state["raw"].items():
                parameters[name].copy_(shard_like(tensor, parameters[name]))
        self.loss.load_state_dict(state["loss"])
        # The optimizer numbers its parameters in this order.
        ordered = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        moments = {
            number: tree_map_only(Tensor, partial(shard_like, other=ordered[number]), values)
            for number, values in state["optimizer"]["state"].items()
        }
        # The kernels are those of this version, not of the one that has saved.
        groups = [
            {**group, "fused": own["fused"], "foreach": own["foreach"]}
            for group, own in zip(state["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True)
        ]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.schedule.load_state_dict(state["schedule"])

    def resume_at(self, step: int) -> None:
        """Continues at a step of this run's schedule and rates, not of the loaded ones."""
        self.schedule.base_lrs = [*self.initial_rates]
        self.schedule.last_epoch = step
        groups = zip(self.optimizer.param_groups, self.initial_rates, self.schedule.lr_lambdas, strict=True)
        for group, rate, factor in groups:
            group["initial_lr"], group["lr"] = rate, rate * factor(step)


class TrainStep:
    """Takes training steps with a network, and a teacher if it has one, that are on the device of ``ranks``.

    Args:
        on_device: the device skips a step whose gradients are not finite, and the host does not wait for it. Otherwise
            the host reads the norm of the gradients in each step. None: on a GPU.
    """

    def __init__(
        self,
        network: Network,
        config: Config,
        ranks: Ranks,
        *,
        num_classes: int,
        steps_per_epoch: int,
        teacher: Teacher | None = None,
        on_device: bool | None = None,
    ) -> None:
        self.network, self.config, self.ranks, self.num_classes = network, config, ranks, num_classes
        self.on_device = ranks.device.type == "cuda" if on_device is None else on_device
        self.teacher = teacher
        self.models = self._wrap_models()
        self.learners = [
            Learner(
                name,
                prefix,
                module,
                config,
                ranks,
                num_classes=num_classes,
                steps_per_epoch=steps_per_epoch,
            )
            for name, (prefix, module) in zip(config.learner_names, network.parts.items(), strict=True)
        ]
        # Scales losses in fp16, where small gradients would underflow.
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=config.training.precision == "fp16")
        self.points = network.detectors[0].points(config.window.steps, ranks.device)

    def _wrap_models(self) -> list[nn.Module]:
        """The model of each backward pass, wrapped for distributed training."""
        models = [self.network] if self.config.design.joint else list(self.network.detectors)
        if not self.config.training.shard:
            return [self.ranks.wrap(model) for model in models]
        # Inner modules first.
        units = [
            [one for one in model.modules() if isinstance(one, Block | TemporalAdapter)][::-1] for model in models
        ]
        return [self.ranks.wrap(model, parts=parts) for model, parts in zip(models, units, strict=True)]

    def __call__(self, batches: Sequence[Batch]) -> StepOutput:
        """One step of every learner, by the gradient of all windows of the batches.

        Two detectors that share no graph take turns, so that only one has activations at a time.
        """
        truths = [batch.truth_in_views(self.config.views) for batch in batches]
        targets = [self._targets(self.learners, self.points, truth) for truth in truths]
        normalisers = self._normalisers(targets)
        losses_per_batch: defaultdict[str, list[Losses]] = defaultdict(list)
        extras: list[Tensor] = []
        norms: dict[str, Tensor] = {}
        for number, batch in enumerate(batches, start=1):
            is_last = number == len(batches)
            views = batch.to(self.ranks.device).in_views(self.config.views)
            for index, model in enumerate(self.models):
                with gradient_sync(model, is_last):
                    losses, extra = self.losses(index, views, normalisers, targets[number - 1])
                    self.scaler.scale(total(losses, extra)).backward()
                for name, one in losses.items():
                    losses_per_batch[name].append(Losses(*(loss.detach() for loss in one)))
                if extra is not None:
                    extras.append(extra.detach())
                del losses, extra  # frees the graph
                if is_last:
                    norms |= self._update(self.learners if self.config.design.joint else [self.learners[index]])
        summed = {
            name: Losses(*(torch.stack(loss).sum() for loss in zip(*each, strict=True)))
            for name, each in losses_per_batch.items()
        }
        extra_name = self.config.design.extra_loss
        summed_extra = (extra_name, torch.stack(extras).sum()) if extra_name and extras else None
        scale = self.scaler.scale(torch.ones((), device=self.ranks.device)) if self.scaler.is_enabled() else None
        step = StepOutput(summed, summed_extra, norms, scale)
        self.scaler.update()
        return step

    def losses(
        self,
        index: int,
        views: Sequence[Batch],
        normalisers: Sequence[Tensor | None] = (None, None),
        targets: Sequence[Targets] | None = None,
    ) -> tuple[dict[str, Losses], Tensor | None]:
        """The losses of a model, by learner or view, and the weighted extra loss, for a batch in each view.

        ``targets``: of each view; None: they are assigned.
        """
        own = slice(None) if self.config.design.joint else slice(index, index + 1)
        learners, views = self.learners[own], views[own]
        with autocast(self.ranks.device, self.config.training.precision):
            soft = None if self.teacher is None else self.teacher(views[0], self.network_input)
            output = self.models[index]([self.network_input(view) for view in views], views[0].mask)
        if targets is None:
            truths = [(view.segments, view.labels) for view in views]
            targets = self._targets(learners, output.predictions[0].points, truths)
        else:
            targets = targets[own]
        if self.config.design.shared:
            return self._losses_of_views(output.predictions, targets, normalisers[0]), None
        columns = zip(learners, output.predictions, targets, normalisers[own], strict=False)
        losses = {
            learner.name: learner.loss(prediction, one, normaliser=normaliser)
            for learner, prediction, one, normaliser in columns
        }
        if soft is not None:
            (learner,), (prediction,) = learners, output.predictions
            return losses, self.config.distil.weight * learner.distillation(prediction, soft)
        if not self.config.design.agreement:
            return losses, None
        agreements = [
            learner.loss.agreement(mine, other, one)
            for learner, mine, other, one in zip(learners, output.own, output.aligned, targets, strict=True)
        ]
        return losses, self.config.pair.agreement * torch.stack(agreements).mean()

    def _losses_of_views(
        self, predictions: Sequence[Prediction], targets: Sequence[Targets], normaliser: Tensor | None
    ) -> dict[str, Losses]:
        """The losses of a shared network, by view; their sum is that of one batch with the windows of all views."""
        (learner,) = self.learners
        if normaliser is None:
            counts = [(each.positive & one.mask).sum() for each, one in zip(targets, predictions, strict=True)]
            normaliser = learner.loss.normaliser_of(torch.stack(counts).sum())
        names = zip(self.config.views, predictions, targets, strict=True)
        return {name: learner.loss(one, each, normaliser=normaliser) for name, one, each in names}

    def network_input(self, view: Batch) -> Tensor:
        """The input of a detector: frames with the window's change of colour, or features."""
        return view.inputs if view.colour is None else recolour(view.inputs, view.colour)

    def _targets(
        self,
        learners: Sequence[Learner],
        points: Points,
        truths: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]],
    ) -> list[Targets]:
        """The targets of each view, from its segments and labels."""
        if self.config.design.shared:  # one learner for both views
            learners = [*learners] * len(truths)
        columns = zip(learners, truths, strict=False)
        return [learner.targets(points, segments, labels) for learner, (segments, labels) in columns]

    def _normalisers(self, targets: Sequence[Sequence[Targets]]) -> list[Tensor | None]:
        """The normaliser of each learner's losses, from the targets of all batches; None for a single batch."""
        if len(targets) == 1:
            return [None] * len(self.learners)
        views = zip(*targets, strict=True)
        positives = [torch.stack([one.positive.sum() for one in view]).sum() for view in views]
        if self.config.design.shared:
            positives = [torch.stack(positives).sum()]
        return [learner.loss.normaliser_of(count) for learner, count in zip(self.learners, positives, strict=True)]

    def _update(self, learners: Sequence[Learner]) -> dict[str, Tensor]:
        """Updates learners if all gradients are finite; returns their norms."""
        for learner in learners:
            self.scaler.unscale_(learner.optimizer)
        norms = {learner.name: learner.clip() for learner in learners}
        are_finite = torch.stack([*norms.values()]).isfinite().all()
        for learner in learners:
            if self.on_device:
                learner.step(are_finite)
            elif are_finite:
                learner.step()
            learner.optimizer.zero_grad(set_to_none=True)  # frees memory for the other detector
        return norms

    @property
    def lr(self) -> float:
        """The learning rate of the next step, of the first parameter group."""
        return float(self.learners[0].optimizer.param_groups[0]["lr"])

    def train(self) -> None:
        """Sets training mode. Frozen detectors stay in evaluation mode, without dropout."""
        self.network.train(self.config.trains_detectors)
        for learner in self.learners:
            learner.loss.train()

    def advance(self) -> None:
        """Sets the learning rates of the next step."""
        for learner in self.learners:
            learner.advance()

    def averaged_weights(self, *, everywhere: bool = True) -> dict[str, Tensor]:
        """The weights of the network; trainable ones are averaged.

        ``everywhere``: on every rank; otherwise sharded tensors are empty but on rank 0.
        """
        full = partial(full_tensor, keep=everywhere or self.ranks.is_main)
        averaged = {name: full(tensor) for name, tensor in self.network.state_dict().items()}
        for learner in self.learners:
            averaged |= {learner.prefix + name: full(tensor) for name, tensor in learner.ema.average.items()}
        return averaged

    @contextmanager
    def averaged_network(self) -> Iterator[Network]:
        """The averaged network in evaluation mode; a copy if weights are sharded."""
        if self.config.training.shard and self.ranks.world > 1:
            # Ranks test different numbers of windows, and cannot gather weights together.
            with torch.random.fork_rng(devices=[]):  # the training's random numbers must not change
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
        """The state of a resumed run, without the averaged weights."""
        learners = {learner.name: learner.state_dict() for learner in self.learners}
        return {"learners": learners, "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from :meth:`state_dict`; the network holds the averaged weights."""
        # By order, not by name: earlier versions had other names.
        for learner, learner_state in zip(self.learners, state["learners"].values(), strict=True):
            learner.load_state_dict(learner_state)
        self.scaler.load_state_dict(state["scaler"])

    def resume_at(self, step: int) -> None:
        """Continues at a step of this run's schedules and rates, not of the loaded ones."""
        for learner in self.learners:
            learner.resume_at(step)


def total(losses: dict[str, Losses], extra: Tensor | None) -> Tensor:
    """The sum of all losses, for a backward pass."""
    totals = [one.total for one in losses.values()] + ([] if extra is None else [extra])
    return torch.stack(totals).sum()
