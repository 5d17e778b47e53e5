"""The cost of a training step: a real step on tensors without content, which need no memory and next to no time.

Every tensor that is made, kept for the backward pass, recomputed there, and freed is followed; floating-point
operations and bytes are counted. The optimiser's work is not part of it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from bitad.config.schema import Config
from bitad.data.dataset import Batch
from bitad.models.build import Network, build_network, checkpointing_of
from bitad.models.heads import Prediction
from bitad.models.network import Detector, Pair
from bitad.models.vit import Block, Checkpointing
from bitad.training.losses import DetectionLoss, Targets

_aten = torch.ops.aten
# PyTorch has formulas for all of its attention kernels but a CPU's, which does what the others do.
_SAME_WORK = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _aten._scaled_dot_product_flash_attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _aten._scaled_dot_product_flash_attention_backward,
}


class Hollow:
    """Makes tensors and modules that have shapes and types but no content.

    They go through a network as those of a CPU do: the same kernels and, under autocast, the same types are chosen,
    the same tensors are kept for the backward pass and freed in it; nothing is computed. (Tensors on PyTorch's ``meta``
    device, from which modules come here, know neither autocast nor which attention a CPU takes.)
    """

    def __init__(self) -> None:
        # Small tensors that a network makes for itself, such as the positions of points, are real.
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)

    def tensor(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor of this shape."""
        with self._mode:
            return torch.empty(shape, dtype=dtype)

    def module(self, on_meta: nn.Module) -> None:
        """Takes a module that was made within ``torch.device("meta")`` from there."""
        with self._mode:
            on_meta.to_empty(device="cpu")


class Tally(TorchDispatchMode):
    """Within, counts floating-point operations, and the bytes of tensors that are made and not yet freed.

    Operations are those of :func:`flops_of`. Bytes are those of storages, however many tensors view one. What kernels
    need within themselves, and what an allocator keeps in reserve, is not seen.

    Args:
        known: what there is already and does not count.
    """

    def __init__(self, *known: Tensor | nn.Module) -> None:
        super().__init__()
        self.flops = self.bytes = self.peak_bytes = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        for tensor in _tensors(known):
            self._take(tensor.untyped_storage(), 0)

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.flops += flops_of(func, args, kwargs, out)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                self._take(storage, storage.nbytes())
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        return out

    def _take(self, storage: torch.UntypedStorage, count: int) -> None:
        key = storage._cdata
        if key in self._storages:
            return
        self.bytes += count

        def freed(_: object) -> None:
            self.bytes -= count
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, freed)


def flops_of(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: object) -> int:
    """Floating-point operations of what PyTorch has called, as a dispatch mode sees it.

    Matrix products, convolutions and attention have them, two for a multiplication and its addition: what
    :class:`torch.utils.flop_counter.FlopCounterMode` counts, and a CPU's attention, which it does not know.
    """
    operation = _SAME_WORK.get(func.overloadpacket, func.overloadpacket)
    return int(flop_registry[operation](*args, **kwargs, out_val=out)) if operation in flop_registry else 0


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """The bytes that tensors take; a storage that several of them view counts once."""
    return sum({one._cdata: one.nbytes() for one in (tensor.untyped_storage() for tensor in tensors)}.values())


def _tensors(known: Iterable[Tensor | nn.Module]) -> Iterator[Tensor]:
    for one in known:
        if isinstance(one, nn.Module):
            yield from one.parameters()
            yield from one.buffers()
        else:
            yield one


# Values of `model.backbone.checkpointing`; the more it recomputes in the backward pass, the later.
POLICIES: list[Checkpointing] = ["none", "selective", "blocks"]
# What autocast computes in; weights, gradients and averages have single precision all the same.
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}
Device = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class StepCost:
    """What a training step of one process costs.

    Args:
        checkpointing: of :data:`POLICIES`.
        precision: of :data:`PRECISIONS`.
        batch: windows.
        forward_flops: of the forward passes of all networks.
        flops: of the step, with what the backward pass recomputes.
        activation_bytes: kept at the end of a forward pass for the backward pass; of networks that take turns, of the
            one with the most.
        peak_bytes: the most that there is of inputs, activations, gradients and passing tensors at a time.
    """

    checkpointing: Checkpointing
    precision: str
    batch: int
    forward_flops: int
    flops: int
    activation_bytes: int
    peak_bytes: int


def step_cost(
    config: Config, classes: int, *, checkpointing: Checkpointing, precision: str, device: Device
) -> StepCost:
    """What a training step costs under a policy and in a precision, by taking it on tensors without content.

    Args:
        device: a GPU works on all clips of a block at once, a CPU on a few at a time.
    """
    config = _with_backbone(config, checkpointing=checkpointing)
    hollow = Hollow()
    network = network_on_meta(config, classes)
    if device == "gpu":
        for module in network.modules():
            if isinstance(module, Block):
                module.piece_bytes = None
    with torch.device("meta"):
        loss = DetectionLoss()
    for module in (network, loss):
        hollow.module(module)
    network.train(config.trains_detectors)
    step = _Step(config, network, loss, hollow, PRECISIONS[precision])
    batch = step.windows()
    given = [tensor for tensor in (batch.inputs, batch.mask, batch.colour) if tensor is not None]
    forward_flops = activation_bytes = 0
    with Tally(network, loss, *given) as tally:
        views = [batch, *(batch if view == config.views[0] else batch.reversed() for view in config.views[1:])]
        there, before = tally.bytes, tally.flops
        for forward in step.passes(views):
            total = forward()
            forward_flops += tally.flops - before
            activation_bytes = max(activation_bytes, tally.bytes - there)
            total.backward()
            network.zero_grad(set_to_none=True)
            del total
            before = tally.flops
    return StepCost(
        checkpointing=checkpointing,
        precision=precision,
        batch=config.training.batch,
        forward_flops=forward_flops,
        flops=tally.flops,
        activation_bytes=activation_bytes,
        peak_bytes=tally.peak_bytes + storage_bytes(given),
    )


@dataclass(frozen=True)
class _Step:
    """A training step on tensors without content: what :class:`bitad.training.trainer.Trainer` does, in short."""

    config: Config
    network: Network
    loss: DetectionLoss
    hollow: Hollow
    precision: torch.dtype | None

    def windows(self) -> Batch:
        """A batch of windows, as it comes from the data set."""
        window, count, backbone = self.config.window, self.config.training.batch, self.config.model.backbone
        colour = None
        if backbone is None:
            assert self.config.data.feature_channels is not None  # the configuration has seen to it
            inputs = self.hollow.tensor(count, self.config.data.feature_channels, window.steps)
        else:
            shape = (count, window.steps * window.frames_per_step, backbone.pixels, backbone.pixels, 3)
            inputs = self.hollow.tensor(*shape, dtype=torch.uint8)
            if self.config.training.augmentation.colour:
                colour = self.hollow.tensor(count, 3, 4)
        mask = self.hollow.tensor(count, window.steps, dtype=torch.bool)
        return Batch(inputs, mask, segments=[], labels=[], grids=[], videos=[], colour=colour)

    def passes(self, views: list[Batch]) -> Iterator[Callable[[], Tensor]]:
        """The forward passes to a loss each, behind which there is a backward pass."""
        network = self.network
        if not isinstance(network, Pair):
            yield partial(self._alone, network, views[0])
        elif self.config.plan.joint:
            yield partial(self._together, network, views)
        else:
            for side, view in zip(network.sides, views, strict=True):
                yield partial(self._alone, side.network, view)

    def _alone(self, network: Detector, view: Batch) -> Tensor:
        with self._autocast():
            prediction = network(_pictures(view), view.mask)
        return self.loss(prediction, self._targets(prediction)).total

    def _together(self, pair: Pair, views: list[Batch]) -> Tensor:
        with self._autocast():
            both = pair((_pictures(views[0]), _pictures(views[1])), views[0].mask)
        totals = [self.loss(one, self._targets(one)).total for one in (both.first, both.second)]
        if self.config.plan.agreement:
            totals += [
                self.loss.agreement(own, other, self._targets(own))
                for own, other in zip(both.own, both.aligned, strict=True)
            ]
        return torch.stack(totals).sum()

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", self.precision or torch.bfloat16, enabled=self.precision is not None)

    def _targets(self, prediction: Prediction) -> Targets:
        shape = prediction.logits.shape
        return Targets(
            self.hollow.tensor(*shape),
            self.hollow.tensor(*shape[:2], 2),
            self.hollow.tensor(*shape[:2], dtype=torch.bool),
        )


def _pictures(view: Batch) -> Tensor:
    """What a network is given of its view, as in training: a change of colour is a copy, made in small parts."""
    return view.inputs if view.colour is None else view.inputs.clone()


def network_on_meta(config: Config, classes: int) -> Network:
    """The network of a configuration, of K classes, without weights."""
    with torch.device("meta"):
        return build_network(_with_backbone(config, compile=False), classes)


def policies(config: Config) -> list[Checkpointing]:
    """The policies that there are for a configuration, its own first; only a backbone has blocks to recompute."""
    if config.model.backbone is None:
        return ["none"]
    own = checkpointing_of(config)
    return sorted(POLICIES, key=lambda policy: policy != own)


def _with_backbone(config: Config, **changes: object) -> Config:
    """The configuration with changes to its backbone, where it has one."""
    if config.model.backbone is None:
        return config
    backbone = config.model.backbone.model_copy(update=changes)
    return config.model_copy(update={"model": config.model.model_copy(update={"backbone": backbone})})
