"""How a command begins where no other one may write: all processes of a run under one lock."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bitad.config import Config
from bitad.locking import OTHER_OUT, RESTART_S, locked
from bitad.training.distributed import Processes
from bitad.training.environment import is_restarted
from bitad.training.keeping import Keeper

_OTHER_RUN = "wait until that has ended, or choose another name, seed or output"


@contextmanager
def only_writer(
    folder: Path, team: Processes, *, remedy: str = OTHER_OUT, option: str = "--out", patience_s: float = 0.0
) -> Iterator[None]:
    """Within, no other command that asks writes in the folder. Rank 0 holds the lock for all processes.

    Raises:
        ValueError, OSError: on every rank: as :func:`bitad.locking.locked`.
    """
    with ExitStack() as held:
        fault: ValueError | OSError | None = None
        if team.is_main:
            try:
                held.enter_context(locked(folder, remedy=remedy, option=option, patience_s=patience_s))
            except (ValueError, OSError) as error:
                fault = error
        told = team.gather("" if fault is None else str(fault))[0]
        if fault is not None:
            raise fault  # as it is: how a full disk is told depends on its number
        if told:
            raise ValueError(told)
        yield


@contextmanager
def only_run(config: Config, team: Processes, *, resume: bool) -> Iterator[bool]:
    """Within, these processes are the only ones in the run directory.

    Args:
        resume: whether the user asked for it.

    Yields:
        whether the run is resumed: asked for, or begun again by torchrun after a failure.

    Raises:
        ValueError: another process has locked the directory.
        FileNotFoundError: there is no run to resume.
    """
    directory = config.run_directory
    keeper = Keeper(directory, config.training.keep)
    if resume:
        keeper.require()  # a mistyped name makes no folder
    # The processes before these may be dying still, or held the lock on a machine that went down.
    patience_s = 0.0 if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" else RESTART_S
    with only_writer(directory, team, remedy=_OTHER_RUN, option="output", patience_s=patience_s):
        exists, restarted = team.gather((keeper.exists, is_restarted(directory)))[0]
        yield resume or (restarted and exists)
