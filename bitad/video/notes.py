"""What is unusual about a video file, for the log.

This module does not import torch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from bitad.video.clock import usual_interval
from bitad.video.frame_index import FrameIndex

# A gap is worth a line in the log if it is this many seconds and usual intervals long.
_LONG_GAP_S, _LONG_GAP = 5.0, 10

log = logging.getLogger("bitad")


def gaps(index: FrameIndex) -> Iterator[str]:
    """Where a video has no frames for a long time, in a sentence."""
    if index.frames < 2:
        return
    intervals = np.diff(index.shown)
    longest_usual = max(_LONG_GAP_S / float(index.time_base), _LONG_GAP * float(usual_interval(index.shown)))
    found = np.flatnonzero(intervals > longest_usual)
    if len(found):
        seconds = float(intervals[found[0]] * index.time_base)
        more = f" (and {len(found) - 1} more such gaps)" if len(found) > 1 else ""
        yield f"has no frames for {seconds:.1f} s after frame {found[0]}{more}; its frames keep their times"


def say_notes(path: Path, index: FrameIndex) -> None:
    """Log what is unusual about a file, once in a process."""
    for note in index.notes:
        _say(f"{path}: {note}")


@cache
def _say(line: str) -> None:
    log.warning("%s", line)
