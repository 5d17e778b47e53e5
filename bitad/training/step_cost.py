"""The cost of a training step, from a real step on fake tensors: operations and bytes, without the optimizer's."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
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
from bitad.models.build import Network, build_network, checkpointing_of, hold_frozen
from bitad.models.vit import Block
from bitad.runtime.distributed import Ranks
from bitad.timeline import Grid
from bitad.training.distillation import NetworkTeacher
from bitad.training.step import TrainStep, total

_aten = torch.ops.aten
# PyTorch has formulas for all attention kernels but the CPU's, which does the same work as the others.
_EQUIVALENT_KERNELS = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _aten._scaled_dot_product_flash_attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _aten._scaled_dot_product_flash_attention_backward,
}


def fake_tensor_mode() -> FakeTensorMode:
    """A mode that creates tensors without content, as on a CPU; small tensors within a network stay real."""
    return FakeTensorMode(allow_non_fake_inputs=True)


class OpCounter(TorchDispatchMode):
    """Within, counts the operations of :func:`count_flops`, and bytes of storages created and not yet freed.

    ``exclude``: existing tensors, which do not count.
    """

    def __init__(self, *exclude: Tensor | nn.Module) -> None:
        super().__init__()
        self.flops = self.bytes = self.peak_bytes = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        for item in exclude:
            tensors = [*item.parameters(), *item.buffers()] if isinstance(item, nn.Module) else [item]
            for tensor in tensors:
                self._add(tensor.untyped_storage(), 0)

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.flops += count_flops(func, args, kwargs, out)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                self._add(storage, storage.nbytes())
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        return out

    def _add(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key in self._storages:
            return
        self.bytes += size

        def remove(_: object) -> None:
            self.bytes -= size
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, remove)


def count_flops(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: object) -> int:
    """Floating-point operations of a call in a dispatch mode, as ``FlopCounterMode``, with the CPU's attention."""
    kernel = _EQUIVALENT_KERNELS.get(func.overloadpacket, func.overloadpacket)
    return int(flop_registry[kernel](*args, **kwargs, out_val=out)) if kernel in flop_registry else 0


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """The bytes of tensors; a storage that several of them view counts once."""
    return sum({one._cdata: one.nbytes() for one in (tensor.untyped_storage() for tensor in tensors)}.values())


# Values of `model.backbone.checkpointing`, by how much they recompute.
POLICIES: list[Checkpointing] = ["none", "selective", "blocks"]
# Of autocast; weights, gradients and averages are in single precision.
PRECISIONS: list[Precision] = ["fp32", "bf16"]


@dataclass(frozen=True)
class StepCost:
    """The cost of a training step of one process.

    Args:
        checkpointing: of :data:`POLICIES`.
        precision: of :data:`PRECISIONS`.
        batch: windows.
        forward_flops: of the forward passes of all networks that train.
        flops: of the step, with the recomputation in the backward pass and the teacher.
        activation_bytes: kept for the backward pass, of detectors that take turns the largest.
        peak_bytes: the maximum of inputs, activations, gradients and temporary tensors.
        teacher_flops: of the forward passes of the teacher.
    """

    checkpointing: Checkpointing
    precision: Precision
    batch: int
    forward_flops: int
    flops: int
    activation_bytes: int
    peak_bytes: int
    teacher_flops: int = 0


def step_cost(
    config: Config,
    classes: int,
    *,
    checkpointing: Checkpointing,
    precision: Precision,
    device: PlanDevice,
    teachers: Sequence[Config] = (),
) -> StepCost:
    """The cost of a training step; a GPU processes all clips at once, a CPU a few at a time.

    ``teachers``: the configurations of the networks that teach.
    """
    config = _with_backbone(config, checkpointing=checkpointing)
    training = config.training.model_copy(update={"precision": precision, "shard": False})
    config = config.model_copy(update={"training": training})
    network = network_on_meta(config, classes)
    teaching = [(network_on_meta(one, classes), one) for one in teachers]
    mode = fake_tensor_mode()
    for each in (network, *(one for one, _ in teaching)):
        if device == "gpu":
            for module in each.modules():
                if isinstance(module, Block):
                    module.chunk_bytes = None
        hold_frozen(each, precision)
        with mode:
            each.to_empty(device="cpu")
    teacher = NetworkTeacher(teaching, {}) if teaching else None
    step = _FakeTrainStep(
        network,
        config,
        Ranks(0, 1, torch.device("cpu")),
        num_classes=classes,
        steps_per_epoch=1,
        teacher=teacher,
    )
    with mode:
        for learner in step.learners:
            learner.loss.to_empty(device="cpu")
    step.train()
    batch = _fake_batch(config, mode)
    inputs = [tensor for tensor in (batch.inputs, batch.mask, batch.colour) if tensor is not None]
    forward_flops = activation_bytes = teacher_flops = 0
    fixed = [network, *(one for one, _ in teaching), *(learner.loss for learner in step.learners)]
    with OpCounter(*fixed, *inputs) as counter:
        views = batch.in_views(config.views)
        if teacher is not None:
            teacher(batch, step.network_input)
            teacher_flops = counter.flops
            counter.flops = 0
        bytes_before, flops_before = counter.bytes, counter.flops
        for index in range(len(step.models)):
            loss = total(*step.losses(index, views))
            forward_flops += counter.flops - flops_before - teacher_flops
            activation_bytes = max(activation_bytes, counter.bytes - bytes_before)
            loss.backward()
            network.zero_grad(set_to_none=True)
            del loss
            flops_before = counter.flops
    peak_bytes = counter.peak_bytes + storage_bytes(inputs)
    batch_size, flops = config.training.batch, counter.flops
    return StepCost(
        checkpointing, precision, batch_size, forward_flops, flops, activation_bytes, peak_bytes, teacher_flops
    )


class _FakeTrainStep(TrainStep):
    def network_input(self, view: Batch) -> Tensor:
        # The change of colour is a copy, which is computed in small parts.
        return view.inputs if view.colour is None else view.inputs.clone()


def _fake_batch(config: Config, mode: FakeTensorMode) -> Batch:
    """A batch of windows without actions."""
    window, count, backbone = config.window, config.training.batch, config.model.backbone
    colour = None
    with mode:
        if backbone is None:
            assert config.data.feature_channels is not None  # the configuration requires it
            inputs = torch.empty(count, config.data.feature_channels, window.steps)
        else:
            shape = (count, window.steps * window.frames_per_step, backbone.pixels, backbone.pixels, 3)
            inputs = torch.empty(shape, dtype=torch.uint8)
            if config.training.augmentation.colour:
                colour = torch.empty(count, 3, 4)
        mask = torch.empty(count, window.steps, dtype=torch.bool)
    return Batch(
        inputs,
        mask,
        segments=[torch.zeros(0, 2, dtype=torch.float64)] * count,
        labels=[torch.zeros(0, dtype=torch.int64)] * count,
        grids=[Grid(1.0, 1.0, 0.0, window.steps)] * count,
        videos=[""] * count,
        colour=colour,
    )


def network_on_meta(config: Config, classes: int) -> Network:
    """The network of a configuration on the ``meta`` device, without weights."""
    with torch.device("meta"):
        return build_network(_with_backbone(config, compile=False), classes)


def policies(config: Config) -> list[Checkpointing]:
    """The policies for a configuration, its own first; only blocks with gradients are recomputed."""
    if config.model.backbone is None or config.model.backbone.adapter_placement == "beside":
        return ["none"]
    return sorted(POLICIES, key=lambda policy: policy != checkpointing_of(config))


def _with_backbone(config: Config, **changes: object) -> Config:
    """The configuration with changes to its backbone, if it has one."""
    if config.model.backbone is None:
        return config
    backbone = config.model.backbone.model_copy(update=changes)
    return config.model_copy(update={"model": config.model.model_copy(update={"backbone": backbone})})
