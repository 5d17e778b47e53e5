"""What is in a folder, without what file managers leave behind there.

This module does not import torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

# Of macOS's archives, and of Windows. macOS's other files (._NAME, .DS_Store) begin with a dot, as temporary ones do.
_LEFTOVERS = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"}


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name is passed over: a hidden one, or one that a file manager made."""
    return name.startswith(".") or name.lower() in _LEFTOVERS


def is_below(folder: Path, path: Path) -> bool:
    """Whether a path in a folder is neither a leftover nor in one."""
    return not any(is_leftover(part) for part in path.relative_to(folder).parts)


def is_file_named(path: Path) -> bool:
    """Whether there is a file of just this name. Folders of macOS and Windows find it under others too."""
    if not os.path.isfile(path):
        return False
    folder, name = os.path.split(path)
    if not os.path.exists(os.path.join(folder, name.swapcase())):
        return True
    return name in _entries(folder, os.stat(folder or ".").st_mtime_ns) or name in os.listdir(folder or ".")


@lru_cache(maxsize=8)
def _entries(folder: str, changed_ns: int) -> frozenset[str]:
    """The names in a folder that was changed last at a time."""
    return frozenset(os.listdir(folder or "."))


def walk(
    folder: Path, *, but: Path | None = None, on_error: Callable[[OSError], object] | None = None
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """A folder and its sub-folders, links to folders too, in order and each once: where, its folders, its files.

    Leftovers are left out. Sub-folders that are removed from the list are not entered, as with ``os.walk``.

    Args:
        folder: where to begin.
        but: a sub-folder that is not entered.
        on_error: called with what a sub-folder that cannot be listed raises, which is then passed over.
    """
    seen = {os.path.realpath(folder)}
    if but is not None:
        seen.add(os.path.realpath(but))
    for here, folders, files in os.walk(folder, followlinks=True, onerror=on_error):
        fresh = []
        for name in sorted(name for name in folders if not is_leftover(name)):
            if (place := os.path.realpath(os.path.join(here, name))) not in seen:
                seen.add(place)
                fresh.append(name)
        folders[:] = fresh
        yield Path(here), folders, sorted(name for name in files if not is_leftover(name))
