"""The processes of a run: one, or those that torchrun started. All rank checks are here.

With FSDP2 (Zhao et al. 2023, arXiv:2304.11277) weights, gradients, averages and the optimiser's state are DTensors.
Elementwise work uses this process's shard; files contain full tensors, so a checkpoint does not depend on the number
of processes.

:class:`Watch` ends the other processes when one has gone: not all collectives notice that.
"""

from __future__ import annotations

import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from bitad.runtime.log import log_last
from bitad.runtime.workers import Stopped

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


def _is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor is a DTensor, by an attribute: importing the class takes half a second."""
    return hasattr(tensor, "device_mesh")


def local_shard(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor, sharing its memory."""
    return tensor.to_local() if _is_sharded(tensor) else tensor


def gathered(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered on the device of every process, all of which must call this."""
    return tensor.full_tensor() if _is_sharded(tensor) else tensor


def full_tensor(tensor: Tensor, *, keep: bool = True) -> Tensor:
    """As :func:`gathered`, but in the host's memory; empty on the processes that do not ``keep`` it."""
    if not _is_sharded(tensor):
        return tensor
    whole = gathered(tensor)
    return whole.cpu() if keep else torch.empty(0, dtype=whole.dtype)


def shard_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Shard a full tensor like another one of its shape."""
    if not _is_sharded(other) or tensor.shape != other.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)


REMEDY = "see its output for the reason, and resume with --resume"

_ENDED, _FAILED = "ended", "failed"


class Watch:
    """A thread that writes this process's heartbeat, and ends this process when another one has gone.

    Args:
        store: over a connection of its own, as other threads may block theirs without end.
        beat_s: seconds between heartbeats.
        gone_s: seconds without a heartbeat after which a process counts as gone.
        end: called with a line that names the process.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        world: int,
        *,
        beat_s: float = 5.0,
        gone_s: float = 40.0,
        end: Callable[[str], None] | None = None,
    ) -> None:
        self.store, self.rank, self.world = store, rank, world
        self.beat_s, self.gone_s, self.end = beat_s, gone_s, end or _end
        self._stopped = threading.Event()
        self.store.set(_key(rank), "0")  # before any process checks
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def start(self) -> None:
        """Start the thread, once every process has created its watch."""
        self._thread.start()

    def stop(self, *, failed: bool) -> None:
        """Stop the thread, and tell the others whether this process has ended or failed."""
        self._stopped.set()
        # If the store's process has gone, the others notice it themselves.
        with suppress(dist.DistError, RuntimeError):
            self.store.set(_key(self.rank), _FAILED if failed else _ENDED)
        if self._thread.is_alive():
            self._thread.join(self.beat_s)

    def _watch(self) -> None:
        last, seen = [""] * self.world, [time.monotonic()] * self.world
        beats = 0
        while not self._stopped.wait(self.beat_s):
            beats += 1
            try:
                self.store.set(_key(self.rank), str(beats))
                values = self.store.multi_get([_key(rank) for rank in range(self.world)])
            except (dist.DistError, RuntimeError):
                self._end_after("the process with the store (rank 0, or torchrun) has gone")
                return
            now = time.monotonic()
            for rank, value in enumerate(bytes(content).decode() for content in values):
                if value != last[rank]:
                    last[rank], seen[rank] = value, now
                if value == _FAILED:
                    self._end_after(f"process {rank} of this run has failed")
                    return
                if value != _ENDED and now - seen[rank] > self.gone_s:
                    self._end_after(f"process {rank} of this run has not responded for {self.gone_s:.0f} s")
                    return

    def _end_after(self, reason: str) -> None:
        # This process may be about to end normally, or with a better error.
        if not self._stopped.wait(self.beat_s / 2):
            self.end(f"{reason}; {REMEDY}")


def _key(rank: int) -> str:
    return f"alive/{rank}"


def _end(line: str) -> None:
    log_last(f"bitad: error: {line}")
    os._exit(1)


# Buffers are constants, equal on all ranks. PyTorch 2.13 renamed the option that synchronises them.
_NAMES = ("forward_sync_buffers", "broadcast_buffers")
_CONSTANT_BUFFERS: dict[str, Any] = {
    next(name for name in _NAMES if name in signature(DistributedDataParallel).parameters): False
}

# FSDP2 records events on a CPU's streams, which PyTorch 2.6 does not have.
CPU_CAN_SHARD = hasattr(torch.cpu.Stream, "record_event")

# torchrun reports the first process that ends: one that has lost another waits.
_HEAD_START_S = 1.0


@dataclass(frozen=True)
class Ranks:
    """This process's rank in a run of ``world`` processes, and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the only one that writes."""
        return self.rank == 0

    def wrap(self, model: nn.Module, *, parts: Iterable[nn.Module] | None = None) -> nn.Module:
        """Wrap a model for training by all processes, with averaged gradients.

        Args:
            parts: modules to shard with FSDP2, inner ones first: the full weights of a part exist only while it
                computes. None: every process keeps all weights.

        Raises:
            ValueError: this PyTorch cannot shard on a CPU.
        """
        if self.world == 1:
            return model
        if parts is not None:
            if self.device.type == "cpu" and not CPU_CAN_SHARD:
                raise ValueError(
                    f"training.shard on a CPU needs a newer PyTorch than {torch.__version__}; update it, use GPUs, or "
                    "training.shard=false"
                )
            from torch.distributed.fsdp import fully_shard

            # Changing a module's output in place would be an error if it is a view; no code does.
            warnings.filterwarnings("ignore", r"(?s).*returned a view tensor", UserWarning)
            mesh = init_device_mesh(self.device.type, (self.world,))
            for part in (*parts, model):
                fully_shard(part, mesh=mesh)
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            model, device_ids=devices, gradient_as_bucket_view=True, **_CONSTANT_BUFFERS
        )

    def share(self, total: int) -> range:
        """The indices of this rank's share of ``total`` items; every item belongs to one rank."""
        return range(self.rank, total, self.world)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def total(self, number: Tensor) -> Tensor:
        """The sum over all ranks, on every rank; of a number on the CPU, no rank waits for its device."""
        if self.world > 1:
            number = number.clone()
            dist.all_reduce(number)
        return number

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()


def choose_device(device: str | None = None, number: int = 0) -> torch.device:
    """The device to compute on: "cpu", "cuda" (the GPU ``number``) or "cuda:1"; None: a GPU if available."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device("cuda", number) if device == "cuda" else torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        if chosen is not None and chosen.type == "mps":
            raise ValueError(f"device {device}: BiTAD does not compute on Apple's GPUs; use the device cpu")
        raise ValueError(f"unknown device '{device}'; give cpu, cuda or cuda:NUMBER")
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device {device}: PyTorch finds no GPU; use the device cpu")
        if chosen.index is not None and chosen.index >= (count := torch.cuda.device_count()):
            raise ValueError(f"device {chosen}: PyTorch finds {count} GPUs, counted from cuda:0")
    return chosen


@contextmanager
def process_group(device: str | None = None) -> Iterator[Ranks]:
    """Join the processes that torchrun started, if any: NCCL for tensors on GPUs, gloo for those on CPUs.

    With the device "cuda" each process takes the GPU of its local rank.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world == 1:
        yield Ranks(rank, world, chosen)
        return
    store, rank, world = next(iter(dist.rendezvous("env://")))
    # Under torchrun the store outlives its processes: restarted ones need keys of their own.
    attempt = f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    store = dist.PrefixStore(attempt, store)
    # A second connection to the server of the first one; `Store.clone` is missing in PyTorch 2.6.
    connection = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    watch = Watch(dist.PrefixStore(attempt, connection), rank, world)
    try:
        # Processes may wait long for each other; the watch notices dead ones.
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timedelta(days=7))
        watch.start()
        yield Ranks(rank, world, chosen)
        dist.barrier()  # rank 0 may hold the store: no process ends before the others
    except BaseException as error:
        watch.stop(failed=not isinstance(error, Stopped))
        if _is_lost_connection(error):
            time.sleep(_HEAD_START_S)
            raise ValueError(f"another process of this run has ended; {REMEDY}") from error
        raise
    watch.stop(failed=False)
    dist.destroy_process_group()


def gradient_sync(model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """A context for a backward pass: the last one of a step averages the processes' gradients."""
    if _is_fsdp(model):
        model.set_requires_gradient_sync(is_last)
    elif isinstance(model, DistributedDataParallel) and not is_last:
        no_sync: AbstractContextManager[None] = model.no_sync()
        return no_sync
    return nullcontext()


def _is_fsdp(model: nn.Module) -> TypeGuard[FSDPModule]:
    return hasattr(model, "set_requires_gradient_sync")


def _is_lost_connection(error: BaseException) -> bool:
    lost = re.search(r"gloo|NCCL|Connection (closed|reset)|Broken pipe|Socket", str(error))
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and lost is not None)
