"""Which windows make up which batch of which process."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from bitad.runtime.distributed import Ranks


class EpochSampler(Sampler[list[int]]):
    """This rank's batches of an epoch: one order for all ranks, drawn from (seed, epoch), dealt out in turn.

    A step is of the next windows in that order, on however many processes and in however many batches it comes. Every
    rank gets the same number of them; the windows left over by an uneven division sit out this epoch.

    Args:
        windows: of an epoch.
        batch: windows at a time.
        accumulate: batches of a step.

    Attributes:
        epoch: which one.
        done: how many of its steps have been taken and are left out.
    """

    def __init__(self, windows: int, batch: int, ranks: Ranks, seed: int, *, accumulate: int = 1) -> None:
        self.windows, self.batch, self.ranks, self.seed, self.accumulate = windows, batch, ranks, seed, accumulate
        self.epoch = self.done = 0
        if self.steps == 0:
            several = f"{accumulate} batches of {batch}" if accumulate > 1 else f"one batch of {batch}"
            raise ValueError(
                f"{windows} training windows an epoch do not fill {several} on {ranks.world} processes; "
                "lower training.batch or raise training.windows_per_video"
            )

    @property
    def steps(self) -> int:
        """The steps of a whole epoch."""
        return self.windows // (self.batch * self.accumulate * self.ranks.world)

    def __len__(self) -> int:
        """The batches of a whole epoch."""
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.windows)
        effective = self.batch * self.accumulate * self.ranks.world
        for start in range(self.done * effective, self.steps * effective, effective):
            mine = order[start : start + effective][self.ranks.rank :: self.ranks.world]
            for first in range(0, len(mine), self.batch):
                yield [int(i) for i in mine[first : first + self.batch]]
