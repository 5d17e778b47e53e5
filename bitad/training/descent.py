"""A step of gradient descent: from batches of windows to new weights, of one network or of two."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bitad.config import Config
from bitad.data.dataset import Batch
from bitad.data.transforms import recolour
from bitad.models.adapters import Bottleneck
from bitad.models.build import Network
from bitad.models.detector import Detector
from bitad.models.pair import Pair
from bitad.models.precision import autocast
from bitad.models.videomae import Block
from bitad.training.distributed import Processes, reducing
from bitad.training.learner import Learner
from bitad.training.losses import Losses


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
        team: the processes that take each step together.
        network: in training.
        models: its parts that one backward pass goes through each, see :func:`together`.
        learners: one, or one for each network of a pair.
        scaler: of the losses.
    """

    def __init__(
        self,
        config: Config,
        team: Processes,
        network: Network,
        models: Sequence[nn.Module],
        learners: Sequence[Learner],
        scaler: torch.amp.GradScaler,
    ) -> None:
        self.config, self.team, self.learners, self.scaler = config, team, learners, scaler
        self.models = models
        self.points = _detectors(network)[0].points(config.window.steps, team.device)

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
        batch = batch.to(self.team.device)
        return [batch, *(batch if view == first else batch.reversed() for view in others)]

    def losses_alone(self, number: int, view: Batch, normaliser: Tensor | None = None) -> Losses:
        """The losses of one network, which depends on no other, on its view of a batch; see :class:`DetectionLoss`."""
        with autocast(self.team.device, self.config.training.precision):
            prediction = self.models[number](_pictures(view), view.mask)
        return self.learners[number].judge(prediction, view, normaliser=normaliser).losses

    def losses_together(
        self, views: Sequence[Batch], normalisers: Sequence[Tensor | None] = (None, None)
    ) -> tuple[dict[str, Losses], Tensor | None]:
        """The losses of both bases of a pair, and the weighted agreement where the experiment asks for it."""
        with autocast(self.team.device, self.config.training.precision):
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


def together(network: Network, config: Config, team: Processes) -> list[nn.Module]:
    """What one backward pass of a network or pair goes through each, as the processes train it together."""
    parts = [network] if config.plan.joint else _detectors(network)
    if not config.training.shard:
        return [team.wrap(part) for part in parts]
    # What is within another one comes first.
    units = [[one for one in part.modules() if isinstance(one, Block | Bottleneck)][::-1] for part in parts]
    return [team.wrap(part, parts=of) for part, of in zip(parts, units, strict=True)]


def _detectors(network: Network) -> list[Detector]:
    return [side.network for side in network.sides] if isinstance(network, Pair) else [network]


def _pictures(view: Batch) -> Tensor:
    """What a network is given of its view: frames under the window's change of colour, or features."""
    return view.inputs if view.colour is None else recolour(view.inputs, view.colour)
