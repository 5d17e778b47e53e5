"""Reading ahead in other processes while this one computes, and what to say of videos that could not be read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from bitad.training.distributed import Processes
from bitad.training.environment import log
from bitad.training.stopping import ignore_signals


def read_ahead(items: Dataset[Any], workers: int, **how: Any) -> DataLoader[Any]:
    """A loader of a data set to test on, in its order.

    Args:
        workers: processes that read; 0: this one.
        how: batches are made, as PyTorch's loader takes it.
    """
    return DataLoader(
        items,
        num_workers=workers,
        worker_init_fn=ignore_signals,
        generator=torch.Generator(),  # so that testing draws none of the training's random numbers
        **how,
    )


def say_unread(reasons: Mapping[str, str], videos: int, what: str, team: Processes) -> None:
    """Log which videos could not be read.

    Args:
        reasons: by name.
        videos: how many there are.

    Raises:
        ValueError: none of them could.
    """
    if reasons and len(reasons) == videos:
        name, reason = next(iter(reasons.items()))
        raise ValueError(f"{what}: none of the {videos} videos can be read; {name}: {reason}")
    if reasons and team.is_main:
        log.warning(
            "%s: %d of %d videos could not be read; what happens in them counts as not found",
            what,
            len(reasons),
            videos,
        )
        for name, reason in sorted(reasons.items()):
            log.warning("%s: %s", name, reason)
