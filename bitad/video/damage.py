"""What becomes of frames that cannot be decoded, or that a cut-off file has lost.

This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from bitad.video.frame_index import FrameIndex

# What to do about frames that cannot be decoded.
Damaged = Literal["error", "repeat"]

REMEDY = (
    "fetch it again, leave it out, or have the last good frame repeated (data.damaged_frames=repeat or "
    "--damaged-frames repeat)"
)

# An error names this many stretches of frames.
_SPANS_SHOWN = 4


def spans(numbers: Iterable[int]) -> str:
    """Frame numbers in words: "frame 7", "frames 7, 9 to 12"."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    shown = [str(first) if first == last else f"{first} to {last}" for first, last in runs[:_SPANS_SHOWN]]
    more = f" and {len(runs) - _SPANS_SHOWN} more stretches" if len(runs) > _SPANS_SHOWN else ""
    single = len(runs) == 1 and runs[0][0] == runs[0][1]
    return f"frame{'' if single else 's'} {', '.join(shown)}{more}"


def lost_frames(index: FrameIndex) -> str:
    """What a cut-off file has lost, in words."""
    return f"about {index.lost} frame{'s' if index.lost > 1 else ''} after frame {index.frames - 1} lost"


def counted(index: FrameIndex, damaged: Damaged) -> int:
    """How many frames can be asked for: those that are there and, where damaged ones are repeated, those lost."""
    return index.frames + (index.lost if damaged == "repeat" else 0)


def require_whole(path: Path, index: FrameIndex, damaged: Damaged) -> None:
    """Refuse a file that is cut off, unless what it has lost is to be repeated.

    Raises:
        ValueError: it is.
    """
    if index.lost and damaged == "error":
        raise ValueError(f"{path}: cut off, {lost_frames(index)}: {REMEDY}")
