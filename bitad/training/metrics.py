"""The file ``metrics.jsonl`` of a run: one JSON record per line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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


def scalars(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a record that make curves, by name."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name not in ("epoch", "step", "seconds"):
            yield f"{prefix}{name}", value


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
