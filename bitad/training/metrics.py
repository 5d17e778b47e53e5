"""The file ``metrics.jsonl`` of a run: a JSON record a line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from bitad.runtime.distributed import Ranks
from bitad.runtime.files import atomic_write
from bitad.training.losses import Losses
from bitad.training.step import StepOutput

METRICS = "metrics.jsonl"  # of a run directory

# Which numbers a record of each kind has at least.
_NUMBERS = {"training": ("step", "loss"), "evaluation": ("step", "epoch", "average_map")}


def metrics_line(record: dict[str, Any]) -> str:
    """A record as a line of the file; numbers that are not finite are null there."""
    return json.dumps(_writable(record), allow_nan=False) + "\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a file, in order; null is NaN.

    A last line without a line end counts for nothing: a run writes it now, or died while it did.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not a record.
    """
    *lines, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [_record(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = _readable(json.loads(line))
        sound = all(isinstance(record[name], int | float) for name in _NUMBERS[record["kind"]])
    except (ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise ValueError(f"{where} is not a record of a run; correct or remove the line, or remove the file")
    return dict(record)


def _writable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _writable(one) for key, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _readable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _readable(one) for key, one in value.items()}
    return math.nan if value is None else value


class Records:
    """The records of a run.

    Args:
        directory: of the run.
        ranks: the processes of the run, whose figures are put together; rank 0 writes.

    Attributes:
        step: of the checkpoint from which the run goes on, as it was counted then.
    """

    def __init__(self, directory: Path, ranks: Ranks) -> None:
        self.path, self.ranks, self.step = directory / METRICS, ranks, 0

    def add_step(self, step: StepOutput, *, epoch: int, number: int, lr: float) -> None:
        """Records a step of training: the mean of all processes' losses."""
        figures = [torch.stack(losses) for losses in step.losses.values()]
        agreement = torch.zeros(()) if step.agreement is None else step.agreement
        mine = torch.cat([*figures, agreement.reshape(1).to(figures[0].device)]).cpu()
        mean = torch.stack(self.ranks.gather(mine)).mean(0)
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
        if step.agreement is not None:
            record |= {"agreement": mean[-1].item()}
        self.add(record)

    def add(self, record: dict[str, Any]) -> None:
        """Writes a record behind the others."""
        if not self.ranks.is_main:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(metrics_line(record))
        except OSError as error:
            error.filename = str(self.path)  # a full disk does not say whose line it has no room for
            raise

    def drop_after_checkpoint(self, *, untested: bool) -> None:
        """Drops the records of what a run that died did behind its last checkpoint (half a line at the end, too).

        Args:
            untested: whether the evaluation of that checkpoint is still to come.

        Raises:
            ValueError: a line is no record.
        """
        if not self.path.exists():
            return
        kept = []
        for record in read_metrics(self.path):
            behind, same = record["step"] > self.step, record["step"] == self.step
            if not (behind or (same and untested and record["kind"] == "evaluation")):
                kept.append(metrics_line(record))
        with atomic_write(self.path) as partial_file:
            partial_file.write_text("".join(kept), encoding="utf-8")
