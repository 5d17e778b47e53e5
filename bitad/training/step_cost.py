"""The cost of a training step: a real step on tensors without content, which need no memory and next to no time.

Every tensor that is made, kept for the backward pass, recomputed there, and freed is followed; floating-point
operations and bytes are counted. The optimiser's work is not part of it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from bitad.config.names import Checkpointing, PlanDevice, Precision
from bitad.config.schema import Config
from bitad.data.samples import Batch
from bitad.models.build import Network, build_network, checkpointing_of
from bitad.models.vit import Block
from bitad.runtime.distributed import Ranks
from bitad.timeline import Grid
from bitad.training.step import TrainStep, total

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
PRECISIONS: list[Precision] = ["fp32", "bf16"]


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
    precision: Precision
    batch: int
    forward_flops: int
    flops: int
    activation_bytes: int
    peak_bytes: int


def step_cost(
    config: Config, classes: int, *, checkpointing: Checkpointing, precision: Precision, device: PlanDevice
) -> StepCost:
    """What a training step costs under a policy and in a precision, by taking it on tensors without content.

    Args:
        device: a GPU works on all clips of a block at once, a CPU on a few at a time.
    """
    config = _with_backbone(config, checkpointing=checkpointing)
    training = config.training.model_copy(update={"precision": precision, "shard": False})
    config = config.model_copy(update={"training": training})
    hollow = Hollow()
    network = network_on_meta(config, classes)
    if device == "gpu":
        for module in network.modules():
            if isinstance(module, Block):
                module.piece_bytes = None
    hollow.module(network)
    step = _HollowStep(network, config, Ranks(0, 1, torch.device("cpu")), num_classes=classes, steps_per_epoch=1)
    for learner in step.learners:
        hollow.module(learner.loss)
    step.train()
    batch = _windows(config, hollow)
    given = [tensor for tensor in (batch.inputs, batch.mask, batch.colour) if tensor is not None]
    forward_flops = activation_bytes = 0
    with Tally(network, *(learner.loss for learner in step.learners), *given) as tally:
        views = batch.in_views(config.views)
        there, before = tally.bytes, tally.flops
        for turn in range(len(step.models)):
            loss = total(*step.losses(turn, views))
            forward_flops += tally.flops - before
            activation_bytes = max(activation_bytes, tally.bytes - there)
            loss.backward()
            network.zero_grad(set_to_none=True)
            del loss
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


class _HollowStep(TrainStep):
    """A training step on tensors without content."""

    def pictures(self, view: Batch) -> Tensor:
        # A change of colour is a copy, made in small parts.
        return view.inputs if view.colour is None else view.inputs.clone()


def _windows(config: Config, hollow: Hollow) -> Batch:
    """A batch of windows as it comes from the data set, with no action in them."""
    window, count, backbone = config.window, config.training.batch, config.model.backbone
    colour = None
    if backbone is None:
        assert config.data.feature_channels is not None  # the configuration has it
        inputs = hollow.tensor(count, config.data.feature_channels, window.steps)
    else:
        shape = (count, window.steps * window.frames_per_step, backbone.pixels, backbone.pixels, 3)
        inputs = hollow.tensor(*shape, dtype=torch.uint8)
        if config.training.augmentation.colour:
            colour = hollow.tensor(count, 3, 4)
    mask = hollow.tensor(count, window.steps, dtype=torch.bool)
    grids = [Grid(1.0, 1.0, 0.0, window.steps)] * count
    return Batch(
        inputs,
        mask,
        segments=[torch.zeros(0, 2, dtype=torch.float64)] * count,
        labels=[torch.zeros(0, dtype=torch.int64)] * count,
        grids=grids,
        videos=[""] * count,
        colour=colour,
    )


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
