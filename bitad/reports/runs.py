"""Finds run directories by name, in folders and by patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from bitad.runtime.files import walk
from bitad.runtime.log import shortlist


def find_runs(places: Sequence[Path]) -> list[Path]:
    """The run directories that places stand for, each once and those of a place in alphabetical order.

    Args:
        places: run directories; folders, for all runs in them and in their sub-folders; and patterns of either, such
            as ``runs/my-*``. An existing path is no pattern.

    Raises:
        FileNotFoundError: places without a run; the message names each.
    """
    runs: dict[str, Path] = {}
    faults = []
    for place in places:
        is_pattern = glob.has_magic(str(place)) and not os.path.lexists(place)
        matches = sorted(map(Path, glob.glob(str(place), recursive=True))) if is_pattern else [place]
        found = [run for match in matches for run in _runs_in(match)]
        for run in found:
            runs.setdefault(os.path.realpath(run), run)
        if not found:
            faults.append(_fault(place, is_pattern=is_pattern))
    if faults:
        raise FileNotFoundError(
            f"{'; '.join(faults)}; give a folder that `bitad train` wrote, or a folder of such"
        )
    return list(runs.values())


def _runs_in(place: Path) -> Iterator[Path]:
    for here, folders, files in walk(place):
        if "config.yaml" in files:
            folders.clear()  # a run has no runs in it
            yield here


def _fault(place: Path, *, is_pattern: bool) -> str:
    if not is_pattern:
        reason = "neither it nor a sub-folder has a config.yaml" if place.is_dir() else "no such folder"
        return f"{place} is not a run directory: {reason}"
    there = sorted(run.name for run in _runs_in(place.parent)) if place.parent.is_dir() else []
    return f"{str(place)!r} matches no run directory" + (
        f" ({place.parent} has {shortlist(there)})" if there else ""
    )
