"""Files written whole or not at all, and JSON files, compressed or not.

This module does not import torch.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Half of a character of two halves, escaped or not, which may lack the other half: no text, and not to be printed.
_HALF = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")


@contextmanager
def replacing(path: str | Path, *, synced: bool = False) -> Iterator[Path]:
    """A name beside ``path`` to write to; it becomes ``path`` when the block ends, and is removed if the block fails.

    A reader therefore sees the old file or the new one, never a part of one. Missing folders are made. With ``synced``
    that holds even where the machine goes down: what is written is on the disk before it is renamed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process's number keeps two writers of one file apart; the leading dot hides it from listings of videos.
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield partial
        if synced:
            _sync(partial)
        os.replace(partial, path)
        if synced and os.name != "nt":  # there folders cannot be opened
            _sync(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a full disk, say: what could not be written there
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file, or what a folder says of its files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: str | Path) -> None:
    """Remove what killed processes have left in a folder of files that they were writing (see ``replacing``).

    To be called before this process writes there: a process of its number may have run before, as in a container that
    was started again.
    """
    for path in Path(folder).glob(".*.tmp"):
        number = path.with_suffix("").suffix[1:]
        if number.isdecimal() and (int(number) == os.getpid() or not _runs(int(number))):
            path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    """Whether a process of this number is running."""
    if os.name == "nt":  # there the question would be a signal
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):  # no such process; no number of one
        return False
    except PermissionError:  # someone else's
        pass
    return True


def read_json(path: str | Path) -> Any:
    """The content of a JSON file; a name that ends in ``.gz`` is decompressed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or is not JSON.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        content = json.loads(data)
        if _HALF.search(data):
            json.dumps(content, ensure_ascii=False).encode()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; check its name") from None
    except (OSError, EOFError, zlib.error) as error:  # a folder; not gzip, cut short or damaged
        raise ValueError(f"{path}: cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from None
    return content


def write_json(content: Any, path: str | Path) -> None:
    """Write JSON, whole or not at all; a name that ends in ``.gz`` is compressed. NaN is a ValueError."""
    path = Path(path)
    text = json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    with replacing(path) as partial:
        # Without a time stamp the same content gives the same file.
        partial.write_bytes(gzip.compress(text, compresslevel=6, mtime=0) if path.suffix == ".gz" else text)
