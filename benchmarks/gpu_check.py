"""Checks and measures BiTAD on a GPU in one run of at most five minutes.

    python benchmarks/gpu_check.py [--out gpu-check.json] [--minutes 5] [--device cuda] [--stages NAME ...]
    python benchmarks/gpu_check.py --quick --device cpu
    python benchmarks/gpu_check.py --tables gpu-check.json

Stages run in the order of importance. The results file is replaced after each stage, so that an interrupted run keeps
its figures. A stage that fails does not stop the others, but the exit status is then 1. A stage that is not run, or
whose time is used up, is named and has no further figures. ``--tables`` prints a results file as Markdown.

Weights and windows are random, from seeds; only the stage ``video`` reads files, and needs PyAV.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import io
import math
import os
import signal
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

# ruff: noqa: E402  # the environment and the place of PyAV are set before imports
# cuBLAS reads it once; deterministic algorithms need it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
import torch.distributed as dist
from torch import Tensor, nn

HAS_AV = importlib.util.find_spec("av") is not None


class _NoPyAV(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports empty modules in place of PyAV, so that code which only names it can be imported."""

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] != "av":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__getattr__"] = self._attribute

    def _attribute(self, name: str) -> MagicMock:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)


if not HAS_AV:
    sys.meta_path.insert(0, _NoPyAV())

from measuring import machine, seconds
from networks import CLASSES, configuration

from bitad.config.loading import load_config, override_config
from bitad.config.names import Checkpointing, Precision
from bitad.config.schema import Config
from bitad.data.samples import Batch
from bitad.demo import cores
from bitad.demo.playroom import write_data_set
from bitad.models.backbone import VideoBackbone
from bitad.models.build import autocast, build_network, hold_frozen
from bitad.models.network import Network
from bitad.reports.plan import plan_training
from bitad.reports.tables import Cell, Table
from bitad.runtime.distributed import Ranks
from bitad.runtime.files import read_json, write_json
from bitad.timeline import Grid
from bitad.training.checkpoints import random_state, set_random_state
from bitad.training.step import TrainStep, total
from bitad.training.step_cost import POLICIES, OpCounter, storage_bytes
from bitad.training.trainer import Trainer

if not HAS_AV:
    # From here on, an import of PyAV fails as it should.
    sys.meta_path.pop(0)
    for _name in [name for name in sys.modules if name.partition(".")[0] == "av"]:
        del sys.modules[_name]

GIB = 2**30
LIMIT_GIB = 78  # of an H100 with 80 GB, without the context and what other processes hold
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
TUBELET = 2  # frames of a token
# The largest relative difference of losses with and without wrappers, in fp32.
SAME_LOSS = 1e-4

Figures = dict[str, Any]


class Skipped(Exception):
    """A stage cannot run here; the message is the reason."""


class TimeUp(Exception):
    """A stage has used its time."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of workloads.

    Args:
        frames, pixels: of a window.
        parity_frames: of a window in the stage ``parity``, which also computes on the CPU.
        small: the backbone of the stages that check results.
        backbones: of the stages that measure, the most important first.
        large: the backbone of the stage ``fit``.
        matrix: rows of the products that measure the peak rate.
        measure_s: seconds for the repetitions of a measurement.
        video_s: of training from video files.
        videos: training videos to render.
    """

    frames: int
    pixels: int
    parity_frames: int
    small: str
    backbones: tuple[str, ...]
    large: str
    matrix: int
    measure_s: float
    video_s: float
    videos: int


FULL = Sizes(768, 160, 96, "s", ("h", "s", "b"), "h", 8192, 1.0, 60.0, 16)
QUICK = Sizes(64, 32, 64, "tiny", ("tiny",), "tiny", 256, 0.05, 2.0, 2)


@dataclass(frozen=True)
class Run:
    """What all stages need.

    Args:
        device: to check.
        quick: small workloads.
        folder: for temporary files.
    """

    device: torch.device
    sizes: Sizes
    quick: bool
    folder: Path

    def config(self, *changes: str, size: str, frames: int | None = None, experiment: str = "baseline") -> Config:
        """The configuration of a network; ``changes`` as on the command line."""
        config = configuration(
            self.folder,
            size=size,
            frames=frames or self.sizes.frames,
            pixels=self.sizes.pixels,
            experiment=experiment,
        )
        # The published pyramid would take most of the time of a small check.
        small = ("model.channels=32", "model.levels=3", "model.stem_blocks=1") if self.quick else ()
        return override_config(config, [*changes, *small])

    def synchronise(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def clean(self) -> None:
        """Frees memory that is no longer used."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def make_network(config: Config, device: torch.device) -> Network:
    """A network with random weights, from a seed; both networks of a pair have the same transformer."""
    torch.manual_seed(0)
    try:
        # Drawing the weights of a large network on the CPU would take most of a stage's time.
        with device:
            network = build_network(config, len(CLASSES))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # an initialisation that this device lacks
        network = build_network(config, len(CLASSES))
    network.to(device)
    first, *others = network.detectors
    for other in others:
        other.load_state_dict(first.state_dict())
    network.share_frozen()
    return network


def make_step(config: Config, network: Network, ranks: Ranks) -> TrainStep:
    """The training step of a network, in training mode."""
    step = TrainStep(network, config, ranks, num_classes=len(CLASSES), steps_per_epoch=2)
    if not config.training.shard:
        hold_frozen(network, config.training.precision)  # as a training
    step.train()
    return step


def make_batch(config: Config, device: torch.device, *, seed: int = 0) -> Batch:
    """One window of random pixels with two actions, and a change of colours."""
    assert config.model.backbone is not None
    steps, pixels = config.window.steps, config.model.backbone.pixels
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(256, (1, steps, pixels, pixels, 3), dtype=torch.uint8, generator=generator)
    colour = torch.eye(3, 4)[None] + 0.05 * torch.randn(1, 3, 4, generator=generator)
    segments = torch.tensor([[0.1, 0.3], [0.5, 0.9]], dtype=torch.float64) * steps
    return Batch(
        inputs,
        torch.ones(1, steps, dtype=torch.bool),
        segments=[segments],
        labels=[torch.tensor([0, 1])],
        grids=[Grid(1.0, 1.0, 0.0, steps)],
        videos=["random"],
        colour=colour,
    ).to(device)


def set_checkpointing(network: Network, policy: Checkpointing) -> None:
    """Sets which activations of the transformers are recomputed."""
    for detector in network.detectors:
        assert isinstance(detector.backbone, VideoBackbone)
        detector.backbone.vit.checkpointing = policy


def relative(value: Tensor, reference: Tensor) -> float:
    """The largest difference over the largest reference.

    Raises:
        ValueError: a number is not finite.
    """
    value, reference = value.detach().double().cpu(), reference.detach().double().cpu()
    if not (value.isfinite().all() and reference.isfinite().all()):
        raise ValueError("a number is not finite")
    scale = float(reference.abs().max())
    difference = float((value - reference).abs().max())
    return difference / scale if scale else difference


# --- parity ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Computed:
    """The results of a forward and backward pass."""

    logits: Tensor
    losses: Tensor
    gradients: dict[str, Tensor]


def compute(config: Config, network: Network, device: torch.device) -> Computed:
    """Logits, losses and gradients of a copy of a network."""
    network = copy.deepcopy(network).to(device)
    step = make_step(config, network, Ranks(0, 1, device))
    batch = make_batch(config, device)
    views = batch.in_views(config.views)
    with torch.no_grad(), autocast(device, config.training.precision):
        output = network([step.network_input(view) for view in views], batch.mask)
    logits = torch.cat([one.logits.float().flatten() for one in output.predictions])
    losses, extra = step.losses(0, views)
    loss = total(losses, extra)
    # Small gradients would underflow in fp16.
    scale = 1024.0 if config.training.precision == "fp16" else 1.0
    (scale * loss).backward()
    parameters = network.named_parameters()
    gradients = {name: one.grad.float() / scale for name, one in parameters if one.grad is not None}
    each = torch.stack(
        [loss.detach().float(), *(value.detach().float() for one in losses.values() for value in one)]
    )
    return Computed(logits, each, gradients)


def parity(run: Run, figures: Figures) -> None:
    """The device's results against the CPU's: in the same precision, and in fp32."""
    rows = figures["rows"] = []
    cpu = torch.device("cpu")
    kinds: list[tuple[str, Precision, bool]] = [(one, one, False) for one in PRECISIONS]
    if run.device.type == "cuda":
        kinds.insert(1, ("fp32, TF32 convolutions", "fp32", True))
    allowed = torch.backends.cudnn.allow_tf32
    try:
        for experiment in ("baseline", "3-1"):
            baseline: Computed | None = None
            for name, precision, tf32 in kinds:
                config = run.config(
                    f"training.precision={precision}",
                    "model.drop_path=0",  # the devices draw other random numbers
                    size=run.sizes.small,
                    frames=run.sizes.parity_frames,
                    experiment=experiment,
                )
                network = make_network(config, cpu)
                with torch.no_grad():
                    for parameter in network.parameters():
                        if parameter.requires_grad:  # some are zero at first, and would hide differences
                            parameter.add_(0.01 * torch.randn_like(parameter))
                torch.backends.cudnn.allow_tf32 = tf32
                theirs = compute(config, network, cpu)
                ours = compute(config, network, run.device)
                baseline = baseline or theirs
                row = {"experiment": experiment, "precision": name, **compared(ours, theirs)}
                rows.append(row | {f"{key}_to_fp32": value for key, value in compared(ours, baseline).items()})
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def compared(ours: Computed, theirs: Computed) -> dict[str, float]:
    """The largest relative differences of logits, of a loss, and of all gradients as one vector."""
    if ours.gradients.keys() != theirs.gradients.keys():
        raise ValueError("other parameters have gradients")
    losses = max(relative(*pair) for pair in zip(ours.losses, theirs.losses, strict=True))
    flat = [torch.cat([one.flatten().cpu() for one in each.gradients.values()]) for each in (ours, theirs)]
    return {"logits": relative(ours.logits, theirs.logits), "losses": losses, "gradients": relative(*flat)}


# --- speed ----------------------------------------------------------------------------------------------------------


def measured_s(run: Run, work: Callable[[], object]) -> float:
    """The median seconds of a call that has been called before."""
    took: list[float] = []
    run.synchronise()
    while len(took) < 2 or (sum(took) < run.sizes.measure_s and len(took) < 50):
        began = time.perf_counter()
        work()
        run.synchronise()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def peak_rate(run: Run) -> float:
    """Operations per second of the fastest measured matrix product in bf16."""
    best = 0.0
    for size in (run.sizes.matrix // 2, run.sizes.matrix):
        a, b = (torch.randn(size, size, device=run.device).bfloat16() for _ in range(2))
        product = partial(torch.matmul, a, b)
        product()
        best = max(best, 2 * size**3 / measured_s(run, product))
    return best


def forward_of(network: Network, config: Config, batch: Batch, device: torch.device) -> Callable[[], object]:
    """A function that runs a forward pass."""

    def forward() -> None:
        with torch.no_grad(), autocast(device, config.training.precision):
            network([batch.inputs], batch.mask)

    return forward


def speed(run: Run, figures: Figures, *, compiled: bool = False) -> None:
    """Forward passes and training steps in bf16: tokens per second, and operations against the peak rate."""
    if compiled and run.quick:
        raise Skipped("compiling takes minutes; left out of --quick")
    peak = figures["peak_flops_per_s"] = peak_rate(run)
    rows = figures["rows"] = []
    for size in run.sizes.backbones:
        run.clean()
        config = run.config(
            f"model.backbone.compile={str(compiled).lower()}", "training.precision=bf16", size=size
        )
        assert config.model.backbone is not None
        tokens = config.window.steps // TUBELET * (run.sizes.pixels // config.model.backbone.vit.patch_size) ** 2
        network, batch = make_network(config, run.device), make_batch(config, run.device)
        step = make_step(config, network, Ranks(0, 1, run.device))

        def add(
            work: str, call: Callable[[], object], policy: str, *, size: str = size, tokens: int = tokens
        ) -> None:
            began = time.perf_counter()
            if compiled:
                flops = None
                call()
            else:
                with OpCounter() as counter:
                    call()
                flops = counter.flops
                call()
            run.synchronise()
            first_s = time.perf_counter() - began
            took = measured_s(run, call)
            row = {"backbone": size, "work": work, "checkpointing": policy, "compiled": compiled, "seconds": took}
            row["tokens_per_s"] = tokens / took
            if flops is not None:  # compiled code is not counted
                row |= {"flops": flops, "share_of_peak": flops / took / peak}
            else:
                row["first_call_s"] = first_s
            rows.append(row)

        network.eval()
        add("forward", forward_of(network, config, batch, run.device), "none")
        step.train()
        for policy in POLICIES:
            set_checkpointing(network, policy)
            try:
                add("step", partial(step, [batch]), policy)
            except torch.OutOfMemoryError:
                rows.append({"backbone": size, "work": "step", "checkpointing": policy, "compiled": compiled})
                rows[-1]["note"] = "out of memory"
                run.clean()
        del network, step


# --- memory ---------------------------------------------------------------------------------------------------------


def persistent(step: TrainStep, batch: Batch) -> list[Tensor]:
    """Tensors that exist between steps."""
    tensors = [batch.inputs, batch.mask, *([] if batch.colour is None else [batch.colour])]
    tensors += [*step.network.parameters(), *step.network.buffers()]
    for learner in step.learners:
        tensors += learner.ema.average.values()
        states = chain.from_iterable(state.values() for state in learner.optimizer.state.values())
        tensors += [one for one in states if isinstance(one, Tensor)]
        tensors += learner.loss.buffers()
    return tensors


def peak_of_step(run: Run, step: TrainStep, batch: Batch) -> int:
    """The peak of bytes in tensors during the second step; on a GPU the allocator's, elsewhere counted."""
    step([batch])  # creates the moments
    run.clean()
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(run.device)
        step([batch])
        run.synchronise()
        return torch.cuda.max_memory_allocated(run.device)
    kept = persistent(step, batch)
    with OpCounter(*kept) as counter:
        step([batch])
    return counter.peak_bytes + storage_bytes(kept)


def memory(run: Run, figures: Figures) -> None:
    """The measured peak of steps against that which ``bitad plan`` computes."""
    rows = figures["rows"] = []
    figures["measured_by"] = "allocator" if run.device.type == "cuda" else "count of tensors"
    for size in run.sizes.backbones:
        for policy in POLICIES:
            run.clean()
            config = run.config(f"model.backbone.checkpointing={policy}", "training.precision=bf16", size=size)
            plan = plan_training(config, device="gpu" if run.device.type == "cuda" else "cpu", as_configured=True)
            planned = plan.peak_bytes(plan.costs[0])
            step = make_step(config, make_network(config, run.device), Ranks(0, 1, run.device))
            row = {"backbone": size, "experiment": "baseline", "checkpointing": policy, "planned_bytes": planned}
            peak = peak_of_step(run, step, make_batch(config, run.device))
            rows.append(row | {"measured_bytes": peak, "measured_over_planned": peak / planned})
            del step


def fit(run: Run, figures: Figures) -> None:
    """Whether pairs with the large backbone train within :data:`LIMIT_GIB`."""
    rows = figures["rows"] = []
    figures["limit_gib"] = LIMIT_GIB
    if run.device.type == "cuda":
        memory_bytes = torch.cuda.get_device_properties(run.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, LIMIT_GIB * GIB / memory_bytes), run.device)
    try:
        for policy in reversed(POLICIES):  # what a GPU of this size is used with comes first
            for experiment in ("3-1", "1-1"):
                run.clean()
                row = {"backbone": run.sizes.large, "experiment": experiment, "checkpointing": policy}
                rows.append(row | _fits(run, experiment, policy))
    finally:
        if run.device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0, run.device)


def _fits(run: Run, experiment: str, policy: Checkpointing) -> Figures:
    config = run.config(
        f"model.backbone.checkpointing={policy}",
        "training.precision=bf16",
        size=run.sizes.large,
        experiment=experiment,
    )
    try:
        step = make_step(config, make_network(config, run.device), Ranks(0, 1, run.device))
        peak = peak_of_step(run, step, make_batch(config, run.device))
    except torch.OutOfMemoryError:
        return {"fits": False, "note": "out of memory"}
    found: Figures = {"fits": peak <= LIMIT_GIB * GIB, "measured_bytes": peak}
    if run.device.type == "cuda":
        found["reserved_bytes"] = torch.cuda.max_memory_reserved(run.device)
    return found


# --- results that must not change -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wrapping(Ranks):
    """One process that wraps its models all the same; BiTAD itself leaves them as they are."""

    def wrap(self, model: nn.Module, *, parts: Any = None) -> nn.Module:
        if parts is None:
            devices = [self.device] if self.device.type == "cuda" else None
            return nn.parallel.DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        warnings.filterwarnings("ignore", r"(?s).*returned a view tensor", UserWarning)
        mesh = init_device_mesh(self.device.type, (1,))
        for part in (*parts, model):
            fully_shard(part, mesh=mesh)
        return model


def wrappers(run: Run, figures: Figures) -> None:
    """Steps in a process group of one: without a wrapper, with DDP and with FSDP2."""
    backend = figures["backend"] = "nccl" if run.device.type == "cuda" else "gloo"
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    losses: dict[str, list[float]] = {}
    rows: list[Figures] = []
    figures["rows"] = rows
    try:
        number = torch.ones(1, device=run.device)
        dist.all_reduce(number)
        for name in ("none", "DDP", "FSDP2"):
            shard = str(name == "FSDP2").lower()
            config = run.config(
                f"training.shard={shard}",
                "model.drop_path=0",
                size=run.sizes.small,
                frames=run.sizes.parity_frames,
                experiment="3-1",
            )
            kind = Ranks if name == "none" else Wrapping
            step = make_step(config, make_network(config, run.device), kind(0, 1, run.device))
            batch = make_batch(config, run.device)
            losses[name] = [_loss_of(step, batch) for _ in range(3)]
            pairs = zip(losses[name], losses["none"], strict=True)
            difference = max(abs(one - other) / abs(other) for one, other in pairs)
            rows.append({"wrapper": name, "losses": losses[name], "difference": difference})
            del step
    finally:
        dist.destroy_process_group()
    if (largest := max(row["difference"] for row in rows)) > SAME_LOSS:
        raise ValueError(f"losses differ by {largest:.2g} of their size; at most {SAME_LOSS:g} is rounding")


def _loss_of(step: TrainStep, batch: Batch) -> float:
    loss = step([batch]).loss
    step.advance()
    if not math.isfinite(loss):
        raise ValueError("a loss is not finite")
    return loss


def resume(run: Run, figures: Figures) -> None:
    """The bits of a resumed run against those of the uninterrupted one, with deterministic algorithms."""
    rows = figures["rows"] = []
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        for experiment, precision in (("baseline", "fp32"), ("3-1", "bf16")):
            config = run.config(
                f"training.precision={precision}",
                size=run.sizes.small,
                frames=run.sizes.parity_frames,
                experiment=experiment,
            )
            ends, bits = [], []
            saved = io.BytesIO()
            step = make_step(config, make_network(config, run.device), Ranks(0, 1, run.device))
            for number in range(4):
                if number == 2:
                    state = {"model": step.averaged_weights(), "training": step.state_dict()}
                    torch.save(state | {"random": random_state(run.device)}, saved)
                loss = _loss_of(step, make_batch(config, run.device, seed=number))
            ends.append(loss)
            bits.append(copy.deepcopy(step.averaged_weights() | _raw(step)))
            del step
            saved.seek(0)
            state = torch.load(saved, map_location=run.device, weights_only=True)
            network = make_network(config, run.device)
            network.load_state_dict(state["model"])
            step = make_step(config, network, Ranks(0, 1, run.device))
            step.load_state_dict(state["training"])
            set_random_state({key: value.cpu() for key, value in state["random"].items()}, run.device)
            for number in (2, 3):
                loss = _loss_of(step, make_batch(config, run.device, seed=number))
            ends.append(loss)
            bits.append(step.averaged_weights() | _raw(step))
            other = [name for name, tensor in bits[0].items() if not torch.equal(tensor, bits[1][name])]
            equal = not other and ends[0] == ends[1]
            rows.append(
                {"experiment": experiment, "precision": precision, "equal": equal, "differing": len(other)}
            )
            del step, network
    finally:
        torch.use_deterministic_algorithms(before)
    if not all(row["equal"] for row in rows):
        raise ValueError("a resumed run has other bits than the uninterrupted one")


def _raw(step: TrainStep) -> dict[str, Tensor]:
    """The weights that train, not averaged."""
    return {f"raw.{name}": one.detach() for name, one in step.network.named_parameters() if one.requires_grad}


def synchronisation(run: Run, figures: Figures) -> None:
    """How often a step waits for the GPU, by the line that does."""
    if run.device.type != "cuda":
        raise Skipped("needs a GPU")
    rows = figures["rows"] = []
    for experiment in ("baseline", "1", "3-1"):
        config = run.config("training.precision=bf16", size=run.sizes.small, experiment=experiment)
        step = make_step(config, make_network(config, run.device), Ranks(0, 1, run.device))
        batch = make_batch(config, run.device)
        step([batch])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                step([batch])
            finally:
                torch.cuda.set_sync_debug_mode("default")
        places = Counter(
            f"{'/'.join(Path(one.filename).parts[-3:])}:{one.lineno}"
            for one in caught
            if "synchroniz" in str(one.message)
        )
        rows.append({"experiment": experiment, "count": places.total(), "places": dict(places.most_common())})
        del step


def video(run: Run, figures: Figures) -> None:
    """Training of playroom from video files."""
    if not HAS_AV:
        raise Skipped("PyAV (av) is not installed")
    data, workers = run.folder / "playroom", 0 if run.quick else min(8, cores())
    began = time.perf_counter()
    write_data_set(
        data,
        training=run.sizes.videos,
        validation=1,
        seed=0,
        workers=1 if run.quick else cores(),
        on_progress=lambda done, all_: None,
    )
    figures["rendering_s"] = time.perf_counter() - began
    config = load_config(
        "playroom",
        [
            f"output={run.folder / 'runs'}",
            f"data.annotations={data / 'annotations' / 'playroom.json'}",
            f"data.classes={data / 'annotations' / 'category_idx.txt'}",
            f"data.videos={data / 'raw_data'}",
            "data.reversed_videos=null",
            f"training.workers={workers}",
            f"training.windows_per_video={1 if run.quick else 16}",
        ],
    )
    trainer = Trainer(config, Ranks(0, 1, run.device))
    trainer.train_step.train()
    losses: list[float] = []
    windows = 0
    began = time.perf_counter()
    while time.perf_counter() - began < run.sizes.video_s:
        trainer.windows.set_epoch(trainer.epoch)
        trainer.sampler.epoch, trainer.sampler.first_step = trainer.epoch, 0
        with trainer.windows.readers.watched():
            for batch in trainer.loader:
                losses.append(_loss_of(trainer.train_step, batch))
                windows += len(batch.videos)
                if time.perf_counter() - began >= run.sizes.video_s:
                    break
        trainer.epoch += 1
    took = time.perf_counter() - began
    few = max(1, len(losses) // 10)
    figures |= {
        "training_s": took,
        "steps": len(losses),
        "windows_per_s": windows / took,
        "frames_per_s": windows * config.window.steps / took,
        "first_loss": statistics.mean(losses[:few]),
        "last_loss": statistics.mean(losses[-few:]),
    }


@dataclass(frozen=True)
class Stage:
    """A stage and its share of the time.

    Args:
        work: fills a dictionary with its figures.
        share: of the time, at most. Times add up to more than all: few stages take all of theirs.
    """

    work: Callable[[Run, Figures], None]
    share: float


STAGES = {
    "parity": Stage(parity, 0.2),
    "speed": Stage(speed, 0.3),
    "memory": Stage(memory, 0.2),
    "fit": Stage(fit, 0.2),
    "wrappers": Stage(wrappers, 0.1),
    "resume": Stage(resume, 0.1),
    "synchronisation": Stage(synchronisation, 0.1),
    "video": Stage(video, 0.35),
    # The last, as compiling may take minutes.
    "compiled": Stage(partial(speed, compiled=True), 1.0),
}


@contextmanager
def time_limit(limit_s: float) -> Iterator[None]:
    """Raises :class:`TimeUp` in the main thread after some seconds; without an effect on Windows."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def end(*_: object) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_stage(name: str, run: Run, left_s: float, budget_s: float) -> Figures:
    """Runs a stage within its time; returns its figures, status and seconds."""
    if left_s <= 0:
        return {"status": "skipped", "seconds": 0.0, "error": f"the {budget_s / 60:g} minutes are used up"}
    stage, figures = STAGES[name], Figures()
    limit_s = min(left_s, stage.share * budget_s)
    status, error = "ok", None
    began = time.perf_counter()
    try:
        with time_limit(limit_s):
            stage.work(run, figures)
    except Skipped as reason:
        status, error = "skipped", str(reason)
    except TimeUp:
        status, error = "skipped", f"ended after {limit_s:.0f} s; what it measured until then is kept"
    except Exception as fault:
        lines = str(fault).strip().splitlines() or [""]
        status, error = "failed", f"{type(fault).__name__}: {lines[0]}".removesuffix(": ")
    with_error = {} if error is None else {"error": error}
    return {"status": status, "seconds": time.perf_counter() - began, **with_error, **figures}


# --- tables ---------------------------------------------------------------------------------------------------------


def _scientific(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def _gib(row: Figures, key: str) -> Cell:
    return f"{row[key] / GIB:.3g}" if key in row else None


def tables(content: Figures) -> list[Table]:
    """The tables of a results file; what was not measured has none."""
    stages = content["stages"]
    lines: list[tuple[Cell, ...]]
    lines = [(name, one["status"], round(one["seconds"], 1), one.get("error")) for name, one in stages.items()]
    device, version = content["device_name"], content["torch"]
    where = f"{device}, PyTorch {version}{'; small workloads, to check that it runs' if content['quick'] else ''}."
    made = [Table("Stages", ("stage", "status", "seconds", "reason"), lines, [where])]
    window = (
        f"Windows of {content['frames']} frames of {content['pixels']}x{content['pixels']}, one at a time, bf16."
    )
    if rows := stages.get("parity", {}).get("rows"):
        keys = ("logits", "losses", "gradients", "logits_to_fp32", "losses_to_fp32", "gradients_to_fp32")
        columns = ("experiment", "precision", *(key.replace("_to_fp32", ", to fp32") for key in keys))
        cells = [(one["experiment"], one["precision"], *(_scientific(one[key]) for key in keys)) for one in rows]
        note = "The largest difference over the largest value: to the CPU in the same precision, and in fp32."
        made.append(Table("Results against the CPU", columns, cells, [note]))
    both = [row for name in ("speed", "compiled") for row in stages.get(name, {}).get("rows", [])]
    if both:
        made.append(_speed_table(both, stages, window))
    if rows := stages.get("memory", {}).get("rows"):
        lines = [
            (
                one["backbone"].upper(),
                one["checkpointing"],
                _gib(one, "planned_bytes"),
                _gib(one, "measured_bytes"),
                one["measured_over_planned"],
            )
            for one in rows
        ]
        columns = ("backbone", "checkpointing", "planned, GiB", "measured, GiB", "measured over planned")
        note = f"Measured: by the {stages['memory']['measured_by']}."
        made.append(Table("Peak memory of a step", columns, lines, [window, note]))
    if rows := stages.get("fit", {}).get("rows"):
        limit = stages["fit"]["limit_gib"]
        lines = [
            (
                one["experiment"],
                one["backbone"].upper(),
                one["checkpointing"],
                "yes" if one["fits"] else "no",
                _gib(one, "measured_bytes"),
            )
            for one in rows
        ]
        columns = ("experiment", "backbone", "checkpointing", "fits", "peak, GiB")
        made.append(Table(f"Pairs within {limit} GiB", columns, lines, [window]))
    if rows := stages.get("wrappers", {}).get("rows"):
        lines = [(one["wrapper"], f"{one['losses'][-1]:.6g}", _scientific(one["difference"])) for one in rows]
        title = f"One process with {stages['wrappers']['backend']}"
        made.append(Table(title, ("wrapper", "loss of step 3", "largest difference"), lines))
    if rows := stages.get("resume", {}).get("rows"):
        lines = [(one["experiment"], one["precision"], "equal" if one["equal"] else "differ") for one in rows]
        made.append(Table("Bits of a resumed run", ("experiment", "precision", "bits"), lines))
    if rows := stages.get("synchronisation", {}).get("rows"):
        lines = [(one["experiment"], one["count"], ", ".join(one["places"])) for one in rows]
        made.append(Table("Waits for the GPU in a step", ("experiment", "waits", "lines"), lines))
    if "steps" in (one := stages.get("video", {})):
        keys = ("training_s", "steps", "windows_per_s", "frames_per_s", "first_loss", "last_loss")
        columns = (
            "training",
            *(key.replace("_per_s", "/s").replace("_s", ", s").replace("_", " ") for key in keys),
        )
        made.append(Table("Playroom from video files", columns, [("F", *(one[key] for key in keys))]))
    return made


def _speed_table(rows: Sequence[Figures], stages: Figures, window: str) -> Table:
    lines = [
        (
            one["backbone"].upper(),
            one["work"],
            one["checkpointing"],
            "yes" if one["compiled"] else "no",
            seconds(one["seconds"]) if "seconds" in one else one["note"],
            round(one["tokens_per_s"]) if "tokens_per_s" in one else None,
            f"{100 * one['share_of_peak']:.1f}" if "share_of_peak" in one else None,
        )
        for one in rows
    ]
    peaks = [
        stages[name]["peak_flops_per_s"] / 1e12
        for name in ("speed", "compiled")
        if name in stages and "peak_flops_per_s" in stages[name]
    ]
    note = f"The peak is that of matrix products, {peaks[0]:.3g} TFLOP/s; recomputed operations count."
    columns = ("backbone", "work", "checkpointing", "compiled", "time", "tokens/s", "% of the peak")
    return Table("Speed", columns, lines, [window, note])


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-check.json"), metavar="FILE", help="results")
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:1 or cpu")
    parser.add_argument("--minutes", type=float, default=5.0, help="for all stages (default: 5)")
    parser.add_argument("--quick", action="store_true", help="small workloads, to check that it runs")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), metavar="STAGE")
    parser.add_argument("--tables", type=Path, metavar="FILE", help="print the tables of these results, and end")
    options = parser.parse_args(arguments)
    if not options.minutes > 0:
        parser.error("--minutes: give a number above 0")
    if options.tables is None and options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: PyTorch finds no GPU; use --quick --device cpu")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    began = time.monotonic()
    options = options_of(arguments)
    if options.tables is not None:
        print("\n".join(table.markdown() for table in tables(read_json(options.tables))), end="")
        return 0
    device, sizes = torch.device(options.device), QUICK if options.quick else FULL
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    stages: dict[str, Figures] = {}
    content = {
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else machine(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "quick": options.quick,
        "minutes": options.minutes,
        "frames": sizes.frames,
        "pixels": sizes.pixels,
        "stages": stages,
    }
    budget_s = 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        run = Run(device, sizes, options.quick, Path(folder))
        for name in options.stages:
            stages[name] = run_stage(name, run, budget_s - (time.monotonic() - began), budget_s)
            write_json(content, options.out)
            one = stages[name]
            print(f"{name}: {one['status']}, {one['seconds']:.1f} s", one.get("error", ""), flush=True)
            run.clean()
    return 1 if any(one["status"] == "failed" for one in stages.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
