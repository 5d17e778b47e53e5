"""The processes of a run: one, or those that torchrun started. Rank checks live here."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from bitad.training.sharding import sharded
from bitad.training.stopping import Stopped
from bitad.training.watch import REMEDY, Watch

# Buffers are constants here, the same everywhere; PyTorch 2.13 has given the option for it another name.
_NAMES = ("forward_sync_buffers", "broadcast_buffers")
_CONSTANT_BUFFERS: dict[str, Any] = {
    next(name for name in _NAMES if name in signature(DistributedDataParallel).parameters): False
}


# torchrun reports the first process that it finds ended. A process that has only lost another one waits so long before
# it ends, in seconds, so that this is the other one.
_HEAD_START_S = 1.0


@dataclass(frozen=True)
class Processes:
    """Who we are among the processes of a run, and the device that this one computes on."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Rank 0 writes; the others do not."""
        return self.rank == 0

    def wrap(self, model: nn.Module, *, parts: Iterable[nn.Module] | None = None) -> nn.Module:
        """The model as this run's processes train it together: averaged gradients, or itself where it is alone.

        Args:
            parts: of the model; each process keeps its share of every weight (:mod:`bitad.training.sharding`) and gets
                a part's others while that computes. None: each keeps all weights.
        """
        if self.world == 1:
            return model
        if parts is not None:
            return sharded(model, parts, init_device_mesh(self.device.type, (self.world,)))
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True, **_CONSTANT_BUFFERS)

    def share(self, total: int) -> range:
        """This rank's part of ``total`` pieces of work, each in exactly one rank's."""
        return range(self.rank, total, self.world)

    def gather(self, piece: Any) -> list[Any]:
        """Every rank's piece, by rank, on every rank."""
        if self.world == 1:
            return [piece]
        pieces: list[Any] = [None] * self.world
        dist.all_gather_object(pieces, piece)
        return pieces

    def total(self, number: Tensor) -> Tensor:
        """The sum of every rank's number, on every rank."""
        if self.world > 1:
            number = number.clone()
            dist.all_reduce(number)
        return number

    def barrier(self) -> None:
        """Waits until every rank has come here."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def processes(device: str | None = None) -> Iterator[Processes]:
    """Joins the processes that torchrun started, if any: NCCL on GPUs, gloo on CPUs.

    Args:
        device: "cpu", "cuda" (each process takes the GPU of its own number) or "cuda:1"; None takes a GPU where there
            is one.

    Raises:
        ValueError: there is no such device.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device("cuda", local) if device == "cuda" else torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"unknown device '{device}'; give cpu, cuda or cuda:NUMBER")
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device {device} was asked for, but PyTorch sees no GPU; use --device cpu")
        if chosen.index is not None and chosen.index >= (count := torch.cuda.device_count()):
            raise ValueError(f"device {chosen} was asked for, but PyTorch sees {count} GPUs; they count from cuda:0")
        torch.cuda.set_device(chosen)
    if world == 1:
        yield Processes(rank, world, chosen)
        return
    store, rank, world = next(iter(dist.rendezvous("env://")))
    # Under torchrun a store outlives its processes: those that begin again do not meet the ones before them.
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    watch = Watch(store, rank, world)
    try:
        # Processes may wait long for one another, for rank 0 to write or the last one to test; the watch sees who died.
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timedelta(days=7))
        watch.start()
        yield Processes(rank, world, chosen)
        dist.barrier()  # who ends first does not take the others' meeting point away
    except BaseException as error:
        watch.stop(failed=not isinstance(error, Stopped))
        if _is_lost_connection(error):
            time.sleep(_HEAD_START_S)
            raise ValueError(f"another process of this run has ended; {REMEDY}") from error
        raise
    watch.stop(failed=False)
    dist.destroy_process_group()


def reducing(model: nn.Module, whole: bool) -> AbstractContextManager[None]:
    """Within, a backward pass of a model that processes train together (:meth:`Processes.wrap`).

    Args:
        whole: it is the last one of its step, whose gradients are averaged; others wait and are added up.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(whole)
    elif isinstance(model, DistributedDataParallel) and not whole:
        held: AbstractContextManager[None] = model.no_sync()
        return held
    return nullcontext()


def _is_lost_connection(error: BaseException) -> bool:
    """Whether an error is what PyTorch raises where another process has gone: not always one of its own classes."""
    lost = re.search(r"gloo|NCCL|Connection (closed|reset)|Broken pipe|Socket", str(error))
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and lost is not None)
