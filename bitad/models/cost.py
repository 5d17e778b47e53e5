"""What a network costs, counted while it runs: floating-point operations, and bytes. It may run on tensors without
content, which need no memory and next to no time."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

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
