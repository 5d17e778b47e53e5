"""Weights, gradients, averages and the optimiser's state divided among processes: FSDP2 (Zhao et al. 2023,
arXiv:2304.11277, in PyTorch's second form), for what outgrows a GPU.

A divided tensor is a DTensor. What is computed element by element is computed on this process' share of it
(:func:`local`); what is saved is whole (:func:`whole`), so that a checkpoint does not know how many processes wrote it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def sharded(model: nn.Module, parts: Iterable[nn.Module], mesh: DeviceMesh) -> nn.Module:
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


def divided_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, divided as another one of its shape is."""
    if not isinstance(other, DTensor) or tensor.shape != other.shape:
        return tensor
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)
