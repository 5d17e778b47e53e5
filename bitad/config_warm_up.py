"""A warm-up that was meant for a longer schedule, cut to a shorter one.

Whoever asks for one epoch does not ask for a warm-up of five: that comes from the preset, or from the defaults. Where
the same file or command line sets both, they contradict one another, and :mod:`bitad.config_rules` refuses them.

This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitad.config import TrainingConfig

_SCHEDULE = ("epochs", "schedule_epochs")
_WARM_UP = "warmup_epochs"
# Of the schedule, where the warm-up is cut.
_SHARE = 0.1


def with_fitting_warm_up(document: dict[str, Any], above: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """A configuration's document whose warm-up fits its schedule, if whoever set the schedule did not set the warm-up.

    Args:
        document: with the keys of ``above`` merged into it.
        above: the file or the command line that comes last.
        notes: gets a line, instead of any other, that says what was cut.
    """
    training, set_last = document.get("training", {}), above.get("training", {})
    if not isinstance(training, dict) or not isinstance(set_last, dict) or _WARM_UP in set_last:
        return document
    if _WARM_UP in training and not any(key in set_last for key in _SCHEDULE):
        return document
    values = {key: training.get(key, TrainingConfig.model_fields[key].default) for key in (*_SCHEDULE, _WARM_UP)}
    schedule, warm_up = values["schedule_epochs"] or values["epochs"], values[_WARM_UP]
    if not _is_number(schedule) or not _is_number(warm_up) or not 1 <= schedule <= warm_up:
        return document
    fitting = round(schedule * _SHARE, 10)
    notes[:] = [
        f"training.{_WARM_UP} is {fitting:g}, a tenth of the {schedule:g} epochs of the schedule, and not {warm_up:g}, "
        "which was meant for a longer one"
    ]
    return {**document, "training": {**training, _WARM_UP: fitting}}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
