"""What a training will cost, told beforehand: no weights are made, no video is read, nothing is computed.

* Counted, of the very network that would train: parameters, floating-point operations, steps, learning rates.
* Simulated: the memory of a training step, by taking one on tensors without content (:mod:`bitad.training.step_cost`).
  Every tensor that is made, kept for the backward pass, made again there, and freed is followed. A GPU is taken to keep
  what a CPU keeps: its attention is as frugal; its autocast leaves norms in single precision, a CPU's does not.
* Estimated: what the optimiser's step needs beside weights, gradients and moments.
* Left out: what a process has without any network (PyTorch, a GPU's context, the data being read), what kernels need
  within themselves, and what an allocator keeps in reserve.

How near it comes: operations are those that PyTorch counts on the real network, activations those that autograd holds,
to the byte in single precision and within one percent under bf16. The peak resident memory of real steps on a CPU
(VideoMAE-S, 768 frames of 160 pixels, blocks recomputed, experiments baseline, 1-1 and 3-1; 2.4 to 3.9 GiB) was 700 to
860 MiB above what is told here, of which 250 MiB are a process that has imported PyTorch (docs/scaling.md). On a GPU it
is not measured.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bitad.config.schema import Config
from bitad.data.classes import read_classes
from bitad.data.sources import read_ground_truth
from bitad.models.adapters import is_adapter
from bitad.models.build import Network
from bitad.reports.tables import Cell, Table
from bitad.runtime.distributed import Ranks
from bitad.training.optimizer import LearningRates
from bitad.training.sampler import EpochSampler
from bitad.training.step_cost import POLICIES, PRECISIONS, Device, StepCost, network_on_meta, policies, step_cost

PARTS = ("backbone", "adapters", "pyramid", "head", "fusion")
_ASSUMED_CLASSES = 20
# Of a device's memory: its context, and what the allocator cannot use.
_RESERVE = 0.1
_MIB, _GIB = 2**20, 2**30


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU, as its data sheet has it.

    Args:
        memory_gib: what programs see of it.
        tflops: a second, of dense matrix products, by precision; PyTorch's single precision is not TF32.
    """

    name: str
    memory_gib: float
    tflops: dict[str, float]

    def least_seconds(self, cost: StepCost) -> float:
        """Of a step, if nothing but its operations took time, and these went at the full rate."""
        return cost.flops / (1e12 * self.tflops[cost.precision])


# The half precision of those without bf16 is fp16.
GPUS = (
    Gpu("T4", 15, {"fp32": 8.1, "bf16": 65}),
    Gpu("V100", 32, {"fp32": 15.7, "bf16": 125}),
    Gpu("RTX 3090", 24, {"fp32": 35.6, "bf16": 71}),
    Gpu("RTX 4090", 24, {"fp32": 82.6, "bf16": 165}),
    Gpu("L40S", 45, {"fp32": 91.6, "bf16": 362}),
    Gpu("A100 40 GB", 40, {"fp32": 19.5, "bf16": 312}),
    Gpu("A100 80 GB", 80, {"fp32": 19.5, "bf16": 312}),
    Gpu("H100", 80, {"fp32": 67, "bf16": 989}),
    Gpu("H200", 140, {"fp32": 67, "bf16": 989}),
)


@dataclass(frozen=True)
class Size:
    """Numbers of parameters."""

    all: int
    trainable: int


@dataclass(frozen=True)
class Plan:
    """What a run will cost.

    Args:
        config: the run.
        processes: how many train together.
        classes: K.
        sizes: parameters, by the network's name and the part's.
        weight_bytes: of all parameters and buffers; what two networks share counts once.
        device: of each.
        costs: of a step, for every checkpointing policy and precision; those of the configuration first.
        rates: learning rates.
        videos, windows, steps: training videos with ground truth, windows and steps an epoch; None where unknown.
        left_out: what is not told, and why.
    """

    config: Config
    processes: int
    classes: int
    sizes: dict[str, dict[str, Size]]
    weight_bytes: int
    device: Device
    costs: tuple[StepCost, ...]
    rates: LearningRates
    videos: int | None
    windows: int | None
    steps: int | None
    left_out: tuple[str, ...]

    @property
    def trainable(self) -> int:
        """The number of parameters that train."""
        return sum(size.trainable for parts in self.sizes.values() for size in parts.values())

    @property
    def fixed_bytes(self) -> dict[str, int]:
        """What is there all the time, by what it is."""
        each = 4 * self.trainable
        among = self.processes if self.config.training.shard else 1
        fixed = {"weights": self.weight_bytes, "their moving average": each, "Adam's moments": 2 * each}
        return {what: -(-count // among) for what, count in fixed.items()}

    def peak_bytes(self, cost: StepCost) -> int:
        """The most memory at a time in training, where a step costs this."""
        # While the optimiser steps, there are the gradients and as much again in passing.
        return sum(self.fixed_bytes.values()) + max(cost.peak_bytes, 2 * 4 * self.trainable)

    def fit(self, device_bytes: int) -> str:
        """Whether it fits into a device's memory; if not, with what it does."""
        has = f"{_gib(device_bytes)}, a tenth of it left to the device's context and its allocator"
        own, *others = self.costs
        if self._fits(own, device_bytes):
            return f"It fits into {has}."
        least = own
        for cost in itertools.chain(others, self._smaller_batches()):
            if self._fits(cost, device_bytes):
                changes, peak = _changes(own, cost), _gib(self.peak_bytes(cost))
                return f"It does not fit into {has}; with {changes} it does: {peak}."
            least = min(least, cost, key=self.peak_bytes)
        even = f", not even with {_changes(own, least)}" if least is not own else ""
        return (
            f"It does not fit into {has}{even}: {_gib(self.peak_bytes(least))}; take a smaller network, smaller "
            "pictures or shorter windows (model, window)."
        )

    def _fits(self, cost: StepCost, device_bytes: int) -> bool:
        return self.peak_bytes(cost) <= (1 - _RESERVE) * device_bytes

    def _smaller_batches(self) -> Iterator[StepCost]:
        """Costs of steps of fewer windows, recomputing what can be."""
        policy = max(policies(self.config), key=POLICIES.index)
        batch = self.config.training.batch
        while batch := batch // 2:
            training = self.config.training.model_copy(update={"batch": batch})
            config = self.config.model_copy(update={"training": training})
            for precision in PRECISIONS:
                yield step_cost(config, self.classes, checkpointing=policy, precision=precision, device=self.device)

    def tables(self) -> tuple[Table, ...]:
        """Parameters, floating-point operations and memory."""
        return self._parameters(), self._operations(), self._memory(), self._gpus()

    def _parameters(self) -> Table:
        parts = [part for part in PARTS if any(part in sizes for sizes in self.sizes.values())]
        numbers = [list(self._of_part(part)) for part in parts]
        numbers.append([sum(column) for column in zip(*numbers, strict=True)])
        rows: list[tuple[Cell, ...]] = [(part, *row) for part, row in zip((*parts, "all"), numbers, strict=True)]
        columns = [f"{name}{what}" for name in self.sizes for what in ("", ", trained")]
        notes = [f"{self.classes} classes."]
        if len(self.sizes) > 1 and _shares_frozen(self.config):
            notes.append("The frozen backbone is the same in both networks and is kept once.")
        return Table("Parameters", ("part", *columns), tuple(rows), tuple(notes))

    def _of_part(self, part: str) -> Iterator[int]:
        for sizes in self.sizes.values():
            size = sizes.get(part, Size(0, 0))
            yield from (size.all, size.trainable)

    def _operations(self) -> Table:
        by_policy = {cost.checkpointing: cost for cost in self.costs}
        rows: list[tuple[Cell, ...]] = [("forward", self.costs[0].forward_flops / self.costs[0].batch / 1e9)]
        rows += [
            (f"training step, checkpointing {policy}", cost.flops / cost.batch / 1e9)
            for policy, cost in sorted(by_policy.items(), key=lambda item: item[1].flops)
        ]
        note = "Two for a multiplication and its addition; of matrix products, convolutions and attention"
        note += "." if len(self.sizes) == 1 else ", in both networks."
        return Table("Floating-point operations a window", ("of", "GFLOP"), tuple(rows), (note,))

    def _memory(self) -> Table:
        rows = [
            (
                f"{cost.checkpointing}, {cost.precision}",
                round(cost.activation_bytes / _MIB),
                round(cost.peak_bytes / _MIB),
                round(self.peak_bytes(cost) / _MIB),
            )
            for cost in self.costs
        ]
        fixed = ", ".join(f"{what} {count / _MIB:,.0f} MiB" for what, count in self.fixed_bytes.items())
        notes = (
            f"In all: with {fixed}. The configuration's is the first row.",
            "Activations: what a forward pass leaves for the backward pass. Step: the most at a time, with inputs, "
            "gradients and what is only passing.",
            "Simulated; without PyTorch itself and what kernels need within themselves (on a CPU about 800 MiB), or a "
            "GPU's context and what its allocator keeps in reserve.",
        )
        batch = self.config.training.batch
        title = f"Memory of a process in training, batches of {batch} {'window' if batch == 1 else 'windows'} (MiB)"
        return Table(title, ("checkpointing, precision", "activations", "step", "in all"), tuple(rows), notes)

    def _gpus(self) -> Table:
        own = self.costs[0]
        rows: list[tuple[Cell, ...]] = [
            (gpu.name, gpu.memory_gib, self._way_into(gpu), *map(gpu.least_seconds, self._of_policy(own)))
            for gpu in GPUS
        ]
        notes = (
            f"Least: the operations of a process' step ({own.checkpointing}) at the rate that data sheets state for "
            "dense matrices; real steps take longer. Not measured.",
            "Fits: as configured, or with what; in nine tenths of the memory.",
        )
        columns = ("GPU", "GiB", "fits", *(f"least s a step, {cost.precision}" for cost in self._of_policy(own)))
        return Table("On one GPU of each kind", columns, tuple(rows), notes)

    def _of_policy(self, own: StepCost) -> list[StepCost]:
        return [cost for cost in self.costs if cost.checkpointing == own.checkpointing]

    def _way_into(self, gpu: Gpu) -> str:
        """What of the costs that are known fits into a GPU."""
        for cost in self.costs:
            if self._fits(cost, round(gpu.memory_gib * _GIB)):
                return _changes(self.costs[0], cost) or "yes"
        return "no"

    def lines(self) -> list[str]:
        """Steps and learning rates in words, and what is left out."""
        said = [f"{self.rates}."]
        if self.steps is not None:
            epochs = self.config.training.epochs
            said.append(
                f"{self.videos} training videos, {self.windows} windows and {self.steps} steps an epoch; "
                f"{self.steps * epochs} steps in {epochs} epochs."
            )
        return [line[0].upper() + line[1:] for line in said] + [f"Left out: {what}." for what in self.left_out]

    def to_json(self) -> dict[str, Any]:
        """All figures, in bytes, parameters and floating-point operations (of the whole batch)."""
        return {
            "run": str(self.config.run_directory),
            "experiment": self.config.experiment,
            "processes": self.processes,
            "classes": self.classes,
            "parameters": {
                name: {part: asdict(size) for part, size in parts.items()} for name, parts in self.sizes.items()
            },
            "fixed_bytes": self.fixed_bytes,
            "steps": [{**asdict(cost), "peak_bytes_in_all": self.peak_bytes(cost)} for cost in self.costs],
            "learning_rates": {**asdict(self.rates), "factor": self.rates.factor},
            "videos": self.videos,
            "windows_per_epoch": self.windows,
            "steps_per_epoch": self.steps,
            "epochs": self.config.training.epochs,
            "left_out": list(self.left_out),
        }


def plan_of(
    config: Config,
    *,
    processes: int = 1,
    device: Device = "gpu",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Plan:
    """What a run will cost. Only the annotations are read, and what is told without them where there are none.

    Args:
        config: the run; neither its videos or features nor its weights need exist.
        processes: how many train together.
        device: of each.
        on_progress: called with (steps simulated, steps to simulate).

    Raises:
        ValueError: for annotations that cannot be read, and fewer windows than a batch.
    """
    if processes < 1:
        raise ValueError(f"{processes} processes cannot train; give 1 or more")
    training = config.training
    classes, videos, left_out = _data(config)
    windows = None if videos is None else videos * training.windows_per_video
    ranks = Ranks(0, processes, torch.device("cpu"))
    sampler = partial(EpochSampler, batch=training.batch, ranks=ranks, seed=config.seed, accumulate=training.accumulate)
    steps = None if windows is None else sampler(windows).steps
    network = network_on_meta(config, classes)
    # What is the same size for fp16; the configuration's first.
    precisions = sorted(PRECISIONS, key=lambda precision: (precision == "fp32") != (training.precision == "fp32"))
    choices = list(itertools.product(precisions, policies(config)))
    costs = []
    for number, (precision, policy) in enumerate(choices, start=1):
        costs.append(step_cost(config, classes, checkpointing=policy, precision=precision, device=device))
        on_progress(number, len(choices))
    return Plan(
        config=config,
        processes=processes,
        classes=classes,
        sizes=_sizes(network, config),
        weight_bytes=_weight_bytes(network, config),
        device=device,
        costs=tuple(costs),
        rates=LearningRates(
            training.lr,
            training.adapter_lr,
            training.fusion_lr,
            training.reference_batch,
            training.batch * training.accumulate * processes,
        ),
        videos=videos,
        windows=windows,
        steps=steps,
        left_out=left_out,
    )


def _data(config: Config) -> tuple[int, int | None, tuple[str, ...]]:
    """Number of classes, training videos with ground truth if known, and what cannot be told."""
    data = config.data
    named: list[tuple[str, Path | None]] = [("data.annotations", data.annotations), ("data.classes", data.classes)]
    missing = [f"{key} ({path} does not exist)" for key, path in named if path is not None and not path.is_file()]
    if not missing:
        annotations = read_ground_truth(data)
        training = annotations.subset(data.training_subset).videos.values()
        return len(annotations.classes), sum(bool(video.labels) for video in training), ()
    needs = f"need {' and '.join(missing)}"
    if data.class_agnostic:
        return 1, None, (f"steps an epoch, which {needs}",)
    if data.classes is not None and data.classes.is_file():
        return len(read_classes(data.classes)), None, (f"steps an epoch, which {needs}",)
    taken = f"the number of classes, taken to be {_ASSUMED_CLASSES}"
    return _ASSUMED_CLASSES, None, (f"steps an epoch and {taken}, which {needs}",)


def _sizes(network: Network, config: Config) -> dict[str, dict[str, Size]]:
    """Parameters by network and part."""
    sizes: dict[str, dict[str, Size]] = {name: {} for name in config.learner_names}
    for name, module in zip(config.learner_names, network.parts.values(), strict=True):
        for path, parameter in module.named_parameters():
            part = _part(path)
            before, count = sizes[name].get(part, Size(0, 0)), parameter.numel()
            sizes[name][part] = Size(before.all + count, before.trainable + count * parameter.requires_grad)
    return sizes


def _part(path: str) -> str:
    """The part of a network that a parameter belongs to."""
    if is_adapter(path):
        return "adapters"
    return next(part for part in PARTS if part in path.split("."))


def _shares_frozen(config: Config) -> bool:
    """Whether two networks have the same frozen backbone: where it is pre-trained, or that of two baselines."""
    backbone = config.model.backbone
    return backbone is not None and (backbone.weights is not None or config.plan.starts_from == "baselines")


def _weight_bytes(network: Network, config: Config) -> int:
    """Bytes of parameters and buffers, what two networks share (:meth:`Pair.share_frozen`) once."""
    count = sum(4 * parameter.numel() for parameter in network.parameters())
    count += sum(buffer.untyped_storage().nbytes() for buffer in network.buffers())
    if _shares_frozen(config):
        count -= sum(
            4 * parameter.numel()
            for part in list(network.parts.values())[1:]
            for path, parameter in part.named_parameters()
            if _part(path) == "backbone" and not parameter.requires_grad
        )
    return count


def _changes(own: StepCost, other: StepCost) -> str:
    """What to change for another cost."""
    changes = [
        (
            own.checkpointing != other.checkpointing,
            f"model.backbone.checkpointing={other.checkpointing}",
        ),
        (own.precision != other.precision, f"training.precision={other.precision}"),
        (own.batch != other.batch, f"training.batch={other.batch}"),
    ]
    return " and ".join(words for differs, words in changes if differs)


def _gib(count: int) -> str:
    return f"{count / _GIB:.1f} GiB"
