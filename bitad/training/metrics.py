"""The file `metrics.jsonl` of a run: a JSON record a line. This module does not import torch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

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
