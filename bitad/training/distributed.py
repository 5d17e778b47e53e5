"""The processes of a run: one, or those that torchrun started. Rank checks live here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


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

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as this run's processes train it together: averaged gradients, or itself where it is alone."""
        if self.world == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)

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
        raise ValueError(f"unknown device '{device}'; give cpu, cuda or cuda:NUMBER") from None
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device {device} was asked for, but PyTorch sees no GPU; use --device cpu")
        torch.cuda.set_device(chosen)
    if world > 1:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Processes(rank, world, chosen)
    finally:
        if world > 1:
            dist.destroy_process_group()
