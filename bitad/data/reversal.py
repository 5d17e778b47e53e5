"""What classes look like on reversed playback (``data.reversal``), for networks that learn from both directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitad.config.names import UNKNOWN
from bitad.runtime.log import did_you_mean
from bitad.timeline import IntArray


@dataclass(frozen=True, eq=False)
class Reversal:
    """The label of each class on reversed playback; reversing twice gives the class again.

    Args:
        partner: ``[K]``, the class that each class looks like; itself where that is unknown.
        known: bool ``[K]``.
    """

    partner: IntArray
    known: NDArray[np.bool_]

    @staticmethod
    def of(reversal: Mapping[str, str], classes: Sequence[str]) -> Reversal:
        """The names of ``data.reversal`` as indices; other classes look like themselves.

        Raises:
            ValueError: a name is none of the classes.
        """
        check_reversal(reversal, classes)
        known = np.array([reversal.get(name) != UNKNOWN for name in classes], bool)
        seen = [name if reversal.get(name) == UNKNOWN else reversal.get(name, name) for name in classes]
        return Reversal(np.array([classes.index(name) for name in seen], np.int64), known)

    @property
    def keeps_labels(self) -> bool:
        """Whether all classes look like themselves."""
        return bool(self.known.all() and (self.partner == np.arange(len(self.partner))).all())

    def labels(self, labels: IntArray) -> IntArray:
        """The labels ``[n]`` of segments in the other view; its own inverse.

        A class k that is unknown becomes ``~k``, which is negative: the segment teaches no class there.
        """
        index = np.where(labels < 0, ~labels, labels)
        return np.where(labels < 0, index, np.where(self.known[index], self.partner[index], ~index))


def check_reversal(reversal: Mapping[str, str], classes: Sequence[str]) -> None:
    """Raises ValueError if a name of ``data.reversal`` is none of the classes."""
    for name in (*reversal, *(other for other in reversal.values() if other != UNKNOWN)):
        if name not in classes:
            raise ValueError(
                f"data.reversal: unknown class '{name}'; one of {', '.join(classes)}{did_you_mean(name, classes)}"
            )


def reversal_in_words(reversal: Mapping[str, str], classes: Sequence[str]) -> str:
    """What a network that learns from both directions is taught in reversed windows, as a clause."""
    swapped, unknown, kept = [], [], []
    for name in classes:
        other = reversal.get(name, name)
        if other == UNKNOWN:
            unknown.append(name)
        elif other == name:
            kept.append(name)
        else:
            swapped.append(f"{name} is {other}")
    parts = [", ".join(swapped)] if swapped else []
    if unknown:
        parts.append(f"no class is learned of {', '.join(unknown)}")
    if kept:
        which = "all" if len(kept) == len(classes) else "other"
        parts.append(f"{which} classes keep their labels: {', '.join(kept)}")
    return "; ".join(parts)
