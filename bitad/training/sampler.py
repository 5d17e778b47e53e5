"""Which windows make up which batch of which process."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from bitad.training.distributed import Processes


class EpochSampler(Sampler[list[int]]):
    """This rank's batches of an epoch: one order for all ranks, drawn from (seed, epoch), dealt out in turn.

    Every rank gets the same number of batches; the windows left over by an uneven division sit out this epoch.

    Attributes:
        epoch: which one.
        done: how many of its batches have been taken and are left out.
    """

    def __init__(self, windows: int, batch: int, team: Processes, seed: int) -> None:
        self.windows, self.batch, self.team, self.seed = windows, batch, team, seed
        self.epoch = self.done = 0
        if len(self) == 0:
            raise ValueError(
                f"{windows} training windows an epoch do not fill one batch of {batch} on {team.world} processes; "
                "lower training.batch or raise training.windows_per_video"
            )

    def __len__(self) -> int:
        """The batches of a whole epoch."""
        return self.windows // (self.batch * self.team.world)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.windows)
        effective = self.batch * self.team.world
        for start in range(self.done * effective, len(self) * effective, effective):
            mine = order[start : start + effective][self.team.rank :: self.team.world]
            yield [int(i) for i in mine]
