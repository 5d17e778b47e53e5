"""The processes of a run: one, or those that torchrun started. Rank checks live here.

With FSDP2 (Zhao et al. 2023, arXiv:2304.11277, in PyTorch's second form) weights, gradients, averages and the
optimiser's state are sharded. A sharded tensor is a DTensor. Elementwise work uses this process's shard
(:func:`local`); what is saved is the full tensor (:func:`whole`), so a checkpoint does not depend on the number of
processes.

:class:`Watch` ends the other processes when one is gone. A killed process closes its connections, which some
collectives notice and others wait on for ever; a process that hangs closes none. So each one writes every few seconds
that it is alive, and checks the others.
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
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from bitad.runtime.log import log_last
from bitad.runtime.signals import Stopped


def shard_model(model: nn.Module, parts: Iterable[nn.Module], mesh: DeviceMesh) -> nn.Module:
    """Divides the weights of a model among the processes of a mesh, in place.

    Args:
        parts: of the model, inner ones first; the weights of each, and of what is left, are brought together while it
            computes.
    """
    # That a module's result is a view would matter to who changes it in place; nobody does.
    warnings.filterwarnings("ignore", r"(?s).*returned a view tensor", UserWarning)
    for part in parts:
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def local(tensor: Tensor) -> Tensor:
    """This process' share of a tensor, in the same memory; all of one that is not divided."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every process (which must all ask for it), in main memory if it was divided."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, divided as another one of its shape is."""
    if not isinstance(other, DTensor) or tensor.shape != other.shape:
        return tensor
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)


BEAT_S = 5.0
GONE_S = 40.0
REMEDY = "its own output says why; go on with --resume"

_ENDED, _FAILED = "ended", "failed"


class Watch:
    """A thread by which this process says that it lives, and ends where another one does not.

    Args:
        store: that all processes reach.
        rank, world: who we are among them.
        beat_s: seconds from one sign of life to the next.
        gone_s: seconds without one after which a process is taken for dead.
        end: what is done about it, with a line that says which one; ends this process, whatever it waits for.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        world: int,
        *,
        beat_s: float = BEAT_S,
        gone_s: float = GONE_S,
        end: Callable[[str], None] | None = None,
    ) -> None:
        # A connection of its own: the other threads' may be waited on for ever.
        self.store: dist.Store = store.clone()  # type: ignore[attr-defined]  # PyTorch's stubs leave it out
        self.rank, self.world = rank, world
        self.beat_s, self.gone_s, self.end = beat_s, gone_s, end or _end
        self._over = threading.Event()
        self.store.set(_key(rank), "0")  # before any process begins to look
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def start(self) -> None:
        """Begins; every process has made its own watch by now."""
        self._thread.start()

    def stop(self, *, failed: bool) -> None:
        """Ends the watch, and tells the others whether to go on without this process."""
        self._over.set()
        # Where who kept the store is gone, the others see that for themselves.
        with suppress(dist.DistError, RuntimeError):
            self.store.set(_key(self.rank), _FAILED if failed else _ENDED)
        if self._thread.is_alive():
            self._thread.join(self.beat_s)

    def _watch(self) -> None:
        last, seen = [""] * self.world, [time.monotonic()] * self.world
        beats = 0
        while not self._over.wait(self.beat_s):
            beats += 1
            try:
                self.store.set(_key(self.rank), str(beats))
                values = self.store.multi_get([_key(rank) for rank in range(self.world)])
            except (dist.DistError, RuntimeError):
                self._is_gone("the process that the others meet at (rank 0, or torchrun) is gone")
                return
            now = time.monotonic()
            for rank, value in enumerate(bytes(one).decode() for one in values):
                if value != last[rank]:
                    last[rank], seen[rank] = value, now
                if value == _FAILED:
                    self._is_gone(f"process {rank} of this run has failed")
                    return
                if value != _ENDED and now - seen[rank] > self.gone_s:
                    self._is_gone(f"nothing has been heard of process {rank} of this run for {self.gone_s:.0f} s")
                    return

    def _is_gone(self, who: str) -> None:
        # This process may be about to end by itself, well or with a better message.
        if not self._over.wait(self.beat_s / 2):
            self.end(f"{who}; {REMEDY}")


def _key(rank: int) -> str:
    return f"alive/{rank}"


def _end(line: str) -> None:
    log_last(f"bitad: error: {line}")
    os._exit(1)


# Buffers are constants here, the same everywhere; PyTorch 2.13 has given the option for it another name.
_NAMES = ("forward_sync_buffers", "broadcast_buffers")
_CONSTANT_BUFFERS: dict[str, Any] = {
    next(name for name in _NAMES if name in signature(DistributedDataParallel).parameters): False
}


# torchrun reports the first process that it finds ended. A process that has only lost another one waits so long before
# it ends, in seconds, so that this is the other one.
_HEAD_START_S = 1.0


@dataclass(frozen=True)
class Ranks:
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
            parts: of the model; each process keeps its share of every weight (:mod:`bitad.runtime.distributed`) and
                gets a part's others while that computes. None: each keeps all weights.
        """
        if self.world == 1:
            return model
        if parts is not None:
            return shard_model(model, parts, init_device_mesh(self.device.type, (self.world,)))
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


def choose_device(device: str | None = None, number: int = 0) -> torch.device:
    """The device to compute on.

    Args:
        device: "cpu", "cuda" (the GPU of this ``number``) or "cuda:1"; None takes a GPU where there is one.

    Raises:
        ValueError: there is no such device.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device("cuda", number) if device == "cuda" else torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"unknown device '{device}'; give cpu, cuda or cuda:NUMBER")
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device {device} was asked for, but PyTorch sees no GPU; use the device cpu")
        if chosen.index is not None and chosen.index >= (count := torch.cuda.device_count()):
            raise ValueError(f"device {chosen} was asked for, but PyTorch sees {count} GPUs; they count from cuda:0")
    return chosen


@contextmanager
def process_group(device: str | None = None) -> Iterator[Ranks]:
    """Joins the processes that torchrun started, if any: NCCL on GPUs, gloo on CPUs.

    Args:
        device: as of :func:`choose_device`, which raises; with "cuda", each process takes the GPU of its own number.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world == 1:
        yield Ranks(rank, world, chosen)
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
        yield Ranks(rank, world, chosen)
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
    """Within, a backward pass of a model that processes train together (:meth:`Ranks.wrap`).

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
