"""The cost of a training, computed without weights, videos or a GPU.

Memory is that of a step on fake tensors (:mod:`bitad.training.step_cost`), as on a CPU, or of the optimizer's step,
which is estimated. docs/scaling.md compares the result with measurements.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bitad.config.loading import load_run_config
from bitad.config.names import PlanDevice
from bitad.config.schema import Config
from bitad.data.classes import read_classes
from bitad.data.sources import read_ground_truth
from bitad.models.build import Network
from bitad.models.vit import Block, is_adapter
from bitad.reports.tables import Row, Table
from bitad.runtime.distributed import Ranks
from bitad.training.optimizer import LearningRates
from bitad.training.step_cost import POLICIES, PRECISIONS, StepCost, network_on_meta, policies, step_cost
from bitad.training.trainer import EpochSampler

PARTS = ("backbone", "adapters", "direction_embedding", "pyramid", "head", "fusion")
_ASSUMED_CLASSES = 20
# The share of a device's memory for its context and the losses of its allocator.
_RESERVE = 0.1
_MIB, _GIB = 2**20, 2**30

# The memory that programs see, in GiB.
GPU_MEMORY_GIB = {
    "T4": 15,
    "RTX 3090": 24,
    "RTX 4090": 24,
    "V100": 32,
    "A100 40 GB": 40,
    "L40S": 45,
    "A100 80 GB": 80,
    "H100": 80,
    "H200": 140,
}


@dataclass(frozen=True)
class Size:
    """Numbers of parameters."""

    all: int
    trainable: int


@dataclass(frozen=True)
class TrainingPlan:
    """The cost of a run."""

    config: Config
    processes: int  # that train together
    classes: int
    sizes: dict[str, dict[str, Size]]  # by the names of the network and the part
    weight_bytes: int  # of all parameters and buffers; shared ones count once
    device: PlanDevice
    costs: tuple[StepCost, ...]  # for every checkpointing policy and precision; that of the configuration first
    rates: LearningRates
    videos: int | None  # with ground truth, for training; None if unknown
    windows: int | None  # per epoch
    steps: int | None  # per epoch
    left_out: tuple[str, ...]  # figures that cannot be computed, and why
    teachers: tuple[Config, ...] = ()  # of the networks that teach, where known
    teacher_bytes: int = 0  # of their weights, which every process holds
    held_bytes: int = 0  # of the weights that half precision holds in half of the memory, see `hold_frozen`

    @property
    def trainable(self) -> int:
        """The number of parameters that train."""
        return sum(size.trainable for parts in self.sizes.values() for size in parts.values())

    @property
    def fixed_bytes(self) -> dict[str, int]:
        """Memory that is in use all the time, by its purpose."""
        each = 4 * self.trainable
        shards = self.processes if self.config.training.shard else 1
        fixed = {
            "weights": self.weight_bytes,
            "their moving average": each,
            "Adam's moments": 2 * each,
        }
        fixed = {name: -(-count // shards) for name, count in fixed.items()}
        return fixed | ({"the teacher's weights": self.teacher_bytes} if self.teachers else {})

    def peak_bytes(self, cost: StepCost) -> int:
        """The peak memory of a training with this step."""
        # The optimizer's step holds the gradients and temporary tensors of the same size.
        saved = 0 if cost.precision == "fp32" else self.held_bytes // 2
        return sum(self.fixed_bytes.values()) - saved + max(cost.peak_bytes, 2 * 4 * self.trainable)

    def fit(self, device_bytes: int) -> str:
        """Whether it fits into the memory of a device; if not, the changes with which it does."""
        memory = f"{_gib(device_bytes)}, a tenth of which is reserved for the device's context and allocator"
        own, *others = self.costs
        if self._fits(own, device_bytes):
            return f"It fits into {memory}."
        least = own
        for cost in itertools.chain(others, self._smaller_batches()):
            if self._fits(cost, device_bytes):
                changes, peak = _changes(own, cost), _gib(self.peak_bytes(cost))
                return f"It does not fit into {memory}; with {changes} it does: {peak}."
            least = min(least, cost, key=self.peak_bytes)
        even = f", not even with {_changes(own, least)}" if least is not own else ""
        return (
            f"It does not fit into {memory}{even}: {_gib(self.peak_bytes(least))}; take a smaller network, smaller "
            "pictures or shorter windows (model, window)."
        )

    def _fits(self, cost: StepCost, device_bytes: int) -> bool:
        return self.peak_bytes(cost) <= (1 - _RESERVE) * device_bytes

    def _smaller_batches(self) -> Iterator[StepCost]:
        """Costs of steps with fewer windows and all checkpointing."""
        policy = max(policies(self.config), key=POLICIES.index)
        batch = self.config.training.batch
        while batch := batch // 2:
            training = self.config.training.model_copy(update={"batch": batch})
            config = self.config.model_copy(update={"training": training})
            for precision in PRECISIONS:
                yield step_cost(
                    config,
                    self.classes,
                    checkpointing=policy,
                    precision=precision,
                    device=self.device,
                    teachers=self.teachers,
                )

    def tables(self) -> tuple[Table, ...]:
        """Parameters, floating-point operations, memory and GPUs."""
        return self._parameters(), self._operations(), self._memory(), self._gpus()

    def _parameters(self) -> Table:
        columns = ["part"]
        numbers: dict[str, list[int]] = {part: [] for part in (*PARTS, "all")}
        for name, sizes in self.sizes.items():
            columns += [name, f"{name}, trained"]
            for part in PARTS:
                size = sizes.get(part, Size(0, 0))
                numbers[part] += [size.all, size.trainable]
            numbers["all"] += [
                sum(size.all for size in sizes.values()),
                sum(size.trainable for size in sizes.values()),
            ]
        notes = [f"{self.classes} classes."]
        if len(self.sizes) > 1 and _shares_frozen(self.config):
            notes.append("Both networks share the frozen backbone.")
        rows: list[Row] = [(part, *row) for part, row in numbers.items() if any(row)]
        return Table("Parameters", columns, rows, notes)

    def _operations(self) -> Table:
        rows: list[Row] = [("forward", self.costs[0].forward_flops / self.costs[0].batch / 1e9)]
        by_policy = {cost.checkpointing: cost for cost in self.costs}
        for cost in sorted(by_policy.values(), key=lambda cost: cost.flops):
            rows.append((f"training step, checkpointing {cost.checkpointing}", cost.flops / cost.batch / 1e9))
        notes = []
        if self.teachers:
            own = self.costs[0]
            rows.insert(1, ("forward, of the teacher", own.teacher_flops / own.batch / 1e9))
            share = 100 * own.teacher_flops / (own.flops - own.teacher_flops)
            notes.append(
                f"The teacher adds {share:.0f} percent to a training step, and nothing to testing: the checkpoint has "
                "the trained network alone."
            )
        note = "A multiplication with its addition counts as two; of matrix products, convolutions and attention"
        if self.config.design.shared:
            note += ", of both views."
        else:
            note += "." if len(self.sizes) == 1 else ", in both networks."
        return Table("Floating-point operations per window", ("part", "GFLOP"), rows, [note, *notes])

    def _memory(self) -> Table:
        rows: list[Row] = []
        for cost in self.costs:
            counts = (cost.activation_bytes, cost.peak_bytes, self.peak_bytes(cost))
            mib = [round(count / _MIB) for count in counts]
            rows.append((f"{cost.checkpointing}, {cost.precision}", *mib))
        fixed = ", ".join(f"{what} {count / _MIB:,.0f} MiB" for what, count in self.fixed_bytes.items())
        saved = self.held_bytes / 2 / _MIB
        notes = (
            f"Total: including {fixed}. The first row is the configuration.",
            *([f"In half precision, the frozen transformer takes {saved:,.0f} MiB less."] if saved else []),
            "Activations: saved by the forward pass for the backward pass. Step: the peak, with inputs, gradients and "
            "temporary tensors.",
            "Simulated, without PyTorch itself and temporary memory of kernels (on a CPU about 800 MiB), or a GPU's "
            "context and the reserve of its allocator.",
        )
        batch = self.config.training.batch
        windows = "window" if batch == 1 else "windows"
        title = f"Memory of a training process, batches of {batch} {windows} (MiB)"
        return Table(title, ("checkpointing, precision", "activations", "step", "total"), rows, notes)

    def _gpus(self) -> Table:
        rows: list[Row] = []
        for name, gib in GPU_MEMORY_GIB.items():
            fits = "no"
            for cost in reversed(self.costs):
                if self._fits(cost, gib * _GIB):
                    fits = _changes(self.costs[0], cost) or "yes"
            rows.append((name, gib, fits))
        note = "Fits: yes as configured, or the changes needed, in nine tenths of the memory. Simulated, not measured."
        return Table("Fit into one GPU of each kind", ("GPU", "GiB", "fits"), rows, [note])

    def lines(self) -> list[str]:
        """Learning rates, steps, and what is left out, as sentences."""
        rates = str(self.rates)
        lines = [f"{rates[0].upper()}{rates[1:]}."]
        if self.steps is not None:
            epochs = self.config.training.epochs
            lines.append(
                f"{self.videos} training videos, {self.windows} windows and {self.steps} steps per epoch; "
                f"{self.steps * epochs} steps in {epochs} epochs."
            )
        return [*lines, *(f"Left out: {what}." for what in self.left_out)]

    def to_json(self) -> dict[str, Any]:
        """All figures, in bytes, parameters and floating-point operations (per batch)."""
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


def plan_training(
    config: Config,
    *,
    processes: int = 1,
    device: PlanDevice = "gpu",
    as_configured: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> TrainingPlan:
    """Computes the cost of a run from its annotations; without them, figures that need them are left out.

    Args:
        as_configured: compute only the cost of the configuration, without other checkpointing and precision.
    """
    if processes < 1:
        raise ValueError(f"{processes} processes cannot train; use 1 or more")
    training = config.training
    classes, videos, left_out = _data(config)
    windows = None if videos is None else videos * training.windows_per_video
    steps = None
    if windows is not None:
        ranks = Ranks(0, processes, torch.device("cpu"))
        sampler = EpochSampler(
            windows,
            batch=training.batch,
            ranks=ranks,
            seed=config.seed,
            accumulate=training.accumulate,
        )
        steps = sampler.steps
    network = network_on_meta(config, classes)
    teachers, unknown = _teachers(config)
    # fp16 needs the memory of bf16. The configuration's precision comes first.
    precisions = sorted(PRECISIONS, key=lambda precision: (precision == "fp32") != (training.precision == "fp32"))
    choices = list(itertools.product(precisions, policies(config)))[: 1 if as_configured else None]
    costs = []
    for number, (precision, policy) in enumerate(choices, start=1):
        costs.append(
            step_cost(config, classes, checkpointing=policy, precision=precision, device=device, teachers=teachers)
        )
        on_progress(number, len(choices))
    return TrainingPlan(
        config=config,
        processes=processes,
        classes=classes,
        sizes=_sizes(network, config),
        weight_bytes=_weight_bytes(network, config),
        held_bytes=_held_bytes(network, config),
        device=device,
        costs=tuple(costs),
        rates=LearningRates.of(training, processes),
        videos=videos,
        windows=windows,
        steps=steps,
        left_out=(*left_out, *unknown),
        teachers=teachers,
        teacher_bytes=sum(_weight_bytes(network_on_meta(one, classes), one) for one in teachers),
    )


def _teachers(config: Config) -> tuple[tuple[Config, ...], tuple[str, ...]]:
    """The configurations of the networks that teach, by the runs' own; and the figures left out if one has none."""
    if config.init.teacher is None or config.init.teaches_by_detections:
        return (), ()
    found = []
    for path in config.init.teacher:
        run = path if path.is_dir() else path.parent
        if not (run / "config.yaml").is_file():
            return (), (f"the teacher's cost, which needs init.teacher ({path} is in no run directory)",)
        found.append(load_run_config(run))
    return tuple(found), ()


def _data(config: Config) -> tuple[int, int | None, tuple[str, ...]]:
    """Number of classes, training videos with ground truth if known, and the figures left out."""
    data = config.data
    files: dict[str, Path | None] = {
        "data.annotations": data.annotations,
        "data.classes": data.classes,
    }
    missing = []
    for key, path in files.items():
        if path is not None and not path.is_file():
            missing.append(f"{key} ({path} does not exist)")
    if not missing:
        annotations = read_ground_truth(data)
        training = annotations.subset(data.training_subset).videos.values()
        return len(annotations.classes), sum(bool(video.labels) for video in training), ()
    needs = f"need {' and '.join(missing)}"
    if data.class_agnostic:
        return 1, None, (f"steps per epoch, which {needs}",)
    if data.classes is not None and data.classes.is_file():
        return len(read_classes(data.classes)), None, (f"steps per epoch, which {needs}",)
    assumed = f"the number of classes, assumed to be {_ASSUMED_CLASSES}"
    return _ASSUMED_CLASSES, None, (f"steps per epoch and {assumed}, which {needs}",)


def _sizes(network: Network, config: Config) -> dict[str, dict[str, Size]]:
    sizes: dict[str, dict[str, Size]] = {name: {} for name in config.learner_names}
    for name, module in zip(config.learner_names, network.parts.values(), strict=True):
        for path, parameter in module.named_parameters():
            part = _part(path)
            before, count = sizes[name].get(part, Size(0, 0)), parameter.numel()
            trainable = count if parameter.requires_grad else 0
            sizes[name][part] = Size(before.all + count, before.trainable + trainable)
    return sizes


def _part(path: str) -> str:
    """A parameter's part of the network."""
    if is_adapter(path):
        return "adapters"
    return next(part for part in PARTS if part in path.split("."))


def _shares_frozen(config: Config) -> bool:
    """Whether two networks share a frozen backbone: pre-trained, or that of two baselines."""
    backbone = config.model.backbone
    if backbone is None:
        return False
    if config.pair.second_weights is not None:
        return False
    return backbone.weights is not None or config.starts_from == "baselines"


def _weight_bytes(network: Network, config: Config) -> int:
    """Bytes of parameters and buffers; shared ones (:meth:`Pair.share_frozen`) count once."""
    count = sum(buffer.untyped_storage().nbytes() for buffer in network.buffers())
    for number, part in enumerate(network.parts.values()):
        for path, parameter in part.named_parameters():
            is_frozen = _part(path) == "backbone" and not parameter.requires_grad
            if number == 0 or not is_frozen or not _shares_frozen(config):
                count += 4 * parameter.numel()
    return count


def _held_bytes(network: Network, config: Config) -> int:
    """Bytes of the frozen transformer that training in half precision holds in it."""
    follows = config.test.precision is None or config.can_hold_frozen
    if config.training.shard or not follows or config.pair.second_weights is not None:
        return 0
    parts = list(network.parts.values())[: 1 if _shares_frozen(config) else None]
    blocks = [module for part in parts for module in part.modules() if isinstance(module, Block)]
    return sum(4 * parameter.numel() for block in blocks for parameter in block.frozen())


def _changes(own: StepCost, other: StepCost) -> str:
    """The changes of the configuration that lead to another cost."""
    keys = {"checkpointing": "model.backbone", "precision": "training", "batch": "training"}
    return " and ".join(
        f"{section}.{key}={getattr(other, key)}"
        for key, section in keys.items()
        if getattr(own, key) != getattr(other, key)
    )


def _gib(count: int) -> str:
    return f"{count / _GIB:.1f} GiB"
