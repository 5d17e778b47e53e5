"""What a backward pass needs of a forward pass is kept, or made again from less: activation checkpointing.

A network that sees a window as a whole here and clip by clip there is a chain of such parts::

    whole -> clips -> whole -> clips -> ...

:func:`run_part` takes a whole part with the clips behind it, and keeps what it is given and nothing else. In the
backward pass, its whole part is repeated for what the clips are given; :func:`run_pieces` then repeats the clips, some
at a time, so that the activations of a few clips of one block are all there ever is beside what is kept.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts, noop_context_fn

Checkpointing = Literal["none", "blocks", "selective"]
Result = TypeVar("Result")

_aten = torch.ops.aten
# What `selective` keeps: dear to make again, and no larger than what goes in. Layers in front of frozen weights, which
# want no inputs kept for their gradients, are quickly made again; what they make is three and four times as large.
_ATTENTION = [
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
]


class _Repeating(threading.local):
    """Whether this thread repeats a part, of which only what is kept on the way matters, not what comes out."""

    now = False


_repeating = _Repeating()


@contextmanager
def _repetition() -> Iterator[None]:
    _repeating.now = True
    try:
        yield
    finally:
        _repeating.now = False


def run_part(part: Callable[..., Result], *inputs: object, checkpointing: Checkpointing) -> Result:
    """``part(*inputs)``; repeated in the backward pass, unless nothing is to be, instead of keeping its activations."""
    if checkpointing == "none" or not torch.is_grad_enabled():
        return part(*inputs)
    result: Result = checkpoint(part, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _repetition()))
    return result


def run_pieces(part: Callable[[Tensor], Tensor], x: Tensor, size: int, *, checkpointing: Checkpointing) -> Tensor:
    """``part`` of ``size`` rows of x at a time, which do not see each other; repeated likewise, piece by piece.

    To stand at the end of what :func:`run_part` is given.
    """
    pieces = x.split(size)
    if checkpointing == "none" or not torch.is_grad_enabled():
        return torch.cat([part(piece) for piece in pieces])
    # The backward pass asks for the pieces first, and only then, one by one, for what is within them.
    run = _unchanged if _repeating.now else part
    contexts = noop_context_fn
    if checkpointing == "selective":
        contexts = partial(create_selective_checkpoint_contexts, _ATTENTION)
    return torch.cat([checkpoint(run, piece, use_reentrant=False, context_fn=contexts) for piece in pieces])


def _unchanged(x: Tensor) -> Tensor:
    return x
