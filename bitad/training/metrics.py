"""The file ``metrics.jsonl`` of a run: one JSON record per line."""

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
# The numbers that a record of each kind must have.
_NUMBERS = {"training": ("step", "loss"), "evaluation": ("step", "epoch", "average_map")}


def metrics_line(record: dict[str, Any]) -> str:
    """A record as a line of the file; numbers that are not finite become null."""
    return json.dumps(_nan_to_null(record), allow_nan=False) + "\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a file, in order; null is NaN. ValueError if a line is not a record.

    A last line without a line end is ignored: a run is writing it, or died while writing it.
    """
    *lines, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [_record(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line, object_hook=_null_to_nan)
        is_valid = all(isinstance(record[name], int | float) for name in _NUMBERS[record["kind"]])
    except (ValueError, KeyError, TypeError, RecursionError):
        is_valid = False
    if not is_valid:
        raise ValueError(f"{where} is not a record of a run; correct the line, or remove it or the file")
    return dict(record)


def _null_to_nan(record: dict[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in record.items()}


def _nan_to_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nan_to_null(one) for key, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Records:
    """Writes the records of a run, on rank 0."""

    def __init__(self, directory: Path, ranks: Ranks) -> None:
        self.path, self.ranks = directory / METRICS, ranks

    def add_step(self, step: StepOutput, *, epoch: int, number: int, lr: float) -> None:
        """Adds a training step: the mean of all processes' losses."""
        figures = [torch.stack(losses) for losses in step.losses.values()]
        agreement = torch.zeros(()) if step.agreement is None else step.agreement
        own = torch.cat([*figures, agreement.reshape(1).to(figures[0].device)]).cpu()
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
        if step.agreement is not None:
            record |= {"agreement": mean[-1].item()}
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
