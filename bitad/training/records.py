"""Writes the figures of a run: ``metrics.jsonl``, and event files for TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bitad.runtime.distributed import Ranks
from bitad.runtime.files import atomic_write
from bitad.training.losses import Losses
from bitad.training.metrics import METRICS, metrics_line, read_metrics, scalars
from bitad.training.step import StepOutput

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Records:
    """Writes the records of a run, on rank 0.

    Args:
        tensorboard: also write event files, for TensorBoard; ValueError if its package is missing.
    """

    def __init__(self, directory: Path, ranks: Ranks, *, tensorboard: bool = False) -> None:
        self.path, self.ranks = directory / METRICS, ranks
        self._has_events = tensorboard
        self._events: SummaryWriter | None = None
        if tensorboard and find_spec("tensorboard") is None:
            raise ValueError(
                "training.tensorboard=true needs the package tensorboard: pip install 'bitad[tensorboard]'; "
                "or set training.tensorboard=false"
            )

    def add_step(self, step: StepOutput, *, epoch: int, number: int, lr: float) -> None:
        """Adds a training step: the mean of all processes' losses."""
        figures = [torch.stack(losses) for losses in step.losses.values()]
        extra = torch.zeros(()) if step.extra is None else step.extra[1]
        own = torch.cat([*figures, extra.reshape(1).to(figures[0].device)]).cpu()
        mean = torch.stack(self.ranks.gather(own)).mean(0)
        classification, regression, total = mean[:-1].reshape(-1, len(Losses._fields)).unbind(1)
        record = {
            "kind": "training",
            "epoch": epoch,
            "step": number,
            "loss": total.sum().item() + mean[-1].item(),
            "classification": classification.sum().item(),
            "regression": regression.sum().item(),
            "gradient_norm": math.hypot(*step.norms.values()),
            "lr": lr,
        }
        if len(step.losses) > 1:
            record |= {"losses": dict(zip(step.losses, total.tolist(), strict=True)), "gradient_norms": step.norms}
        if step.extra is not None:
            record |= {step.extra[0]: mean[-1].item()}
        self.add(record)

    def add(self, record: dict[str, Any]) -> None:
        if not self.ranks.is_main:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(metrics_line(record))
        except OSError as error:
            error.filename = str(self.path)  # the error of a full disk does not name the file
            raise
        if self._events is not None:
            for name, value in scalars(record):
                self._events.add_scalar(f"{record['kind']}/{name}", value, record["step"])
            self._events.flush()

    @contextmanager
    def opened(self, step: int) -> Iterator[None]:
        """Within this context event files are written, if they are wanted; they continue after ``step``."""
        if not self._has_events or not self.ranks.is_main:
            yield
            return
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard hides the later steps of an interrupted run, which are repeated.
        with SummaryWriter(str(self.path.parent), purge_step=step + 1) as self._events:
            yield
        self._events = None

    def drop_after_checkpoint(self, step: int, *, untested: bool) -> None:
        """Drops records after ``step``, that of the last checkpoint, and half a line at the end.

        ``untested``: the evaluation of the checkpoint is still to come.
        """
        if not self.path.exists():
            return
        records = [record for record in read_metrics(self.path) if record["step"] <= step]
        if untested:
            records = [record for record in records if record["step"] < step or record["kind"] != "evaluation"]
        with atomic_write(self.path) as partial_file:
            partial_file.write_text("".join(map(metrics_line, records)), encoding="utf-8")
