"""Indices of video files kept on disk, so that a file is read through once and not at every start.

This module does not import torch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from bitad.files import replacing
from bitad.video.frame_index import FrameIndex
from bitad.video.indexing import index_video
from bitad.video.notes import say_notes

# Where a run, or a folder of features, has its cache.
INDEX_FOLDER = "index"

# To be raised where bitad.video.indexing comes to find other things in the same file.
_VERSION = 2


@dataclass(frozen=True)
class FileStamp:
    """By what a file is known: another of its name is of another size or time."""

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        stat = path.stat()
        return cls(os.path.abspath(path), stat.st_size, stat.st_mtime_ns)

    def row(self) -> list[str]:
        """As entries have it, with what made them."""
        return [self.path, str(self.size), str(self.mtime_ns), f"{_VERSION}, PyAV {av.__version__}"]


class IndexCache:
    """The indices of video files in a folder, an entry for each file.

    An entry is written whole or not at all, by any number of processes at once. One that is damaged, or of a file that
    has changed since, is made anew, and a folder that cannot be written to costs time and nothing else. Nothing is
    written before :meth:`begin`.

    Args:
        folder: of the entries; it need not be there.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder, self._begun = Path(folder), False
        self._waiting: dict[FileStamp, FrameIndex] = {}  # to be written, or made by another process

    def begin(self) -> None:
        """From now on entries are written, first of all those of the indices made before."""
        self._begun = True
        for stamp, index in self._waiting.items():
            self._write(stamp, index)
        self._waiting.clear()

    def index(self, path: str | Path) -> FrameIndex:
        """Where the frames of a file are.

        Raises:
            FileNotFoundError, ValueError: as :func:`~bitad.video.indexing.index_video`.
        """
        path = Path(path)
        if not path.is_file():
            return index_video(path)  # says so
        stamp = FileStamp.of(path)  # before it is read: what changes meanwhile is not taken for the same
        index = self._waiting.get(stamp) or self._read(stamp)
        if index is not None:
            say_notes(path, index)
        else:
            index = index_video(path)
            if self._begun:
                self._write(stamp, index)
            else:
                self._waiting[stamp] = index
        return index

    def share(self, gather: Callable[[dict[FileStamp, FrameIndex]], list[dict[FileStamp, FrameIndex]]]) -> None:
        """Tells other processes of the indices that wait to be written, and learns of theirs.

        Args:
            gather: this process' piece -> all processes' pieces.
        """
        for others in gather(self._waiting):
            self._waiting = others | self._waiting

    def _entry(self, stamp: FileStamp) -> Path:
        return self.folder / f"{hashlib.sha256(stamp.path.encode(errors='surrogateescape')).hexdigest()[:32]}.npz"

    def _read(self, stamp: FileStamp) -> FrameIndex | None:
        try:
            with self._entry(stamp).open("rb") as file, np.load(file, allow_pickle=False) as entry:
                return _from_arrays(entry) if entry["of"].tolist() == stamp.row() else None
        except Exception:  # a damaged file raises whatever zipfile and numpy lead to, and is made anew
            return None

    def _write(self, stamp: FileStamp, index: FrameIndex) -> None:
        with (
            suppress(OSError, UnicodeError),  # a read-only or full disk; a name that is no text
            replacing(self._entry(stamp)) as partial,
            partial.open("wb") as file,
        ):
            np.savez_compressed(file, of=np.array(stamp.row()), allow_pickle=False, **_to_arrays(index))


def _to_arrays(index: FrameIndex) -> dict[str, NDArray[Any]]:
    """An index as arrays of small numbers: times as steps, the order of storage as distances from that of showing."""
    whole = [index.frames, index.width, index.height, index.rotation, index.lost, index.stream]
    fractions = [*index.rate.as_integer_ratio(), *index.time_base.as_integer_ratio()]
    arrays: dict[str, NDArray[Any]] = {
        "numbers": np.array([*whole, *fractions], np.int64),
        "shown": np.diff(index.shown, prepend=0),
        "keyframes": index.keyframes,
        "joins": index.joins,
        "sound": np.array(sorted(index.sound), np.int64),
        "notes": np.array(index.notes, np.str_),
    }
    if index.times is not None:
        arrays |= {"steps": np.diff(index.times, prepend=0), "moved": index.stored - np.arange(len(index.stored))}
    return arrays


def _from_arrays(arrays: Mapping[str, NDArray[Any]]) -> FrameIndex:
    frames, width, height, rotation, lost, stream, *fractions = arrays["numbers"].tolist()
    timed = "steps" in arrays
    return FrameIndex(
        frames=frames,
        rate=Fraction(*fractions[:2]),
        width=width,
        height=height,
        rotation=rotation,
        lost=lost,
        time_base=Fraction(*fractions[2:]),
        shown=np.cumsum(arrays["shown"]),
        times=np.cumsum(arrays["steps"]) if timed else None,
        keyframes=arrays["keyframes"],
        stored=arrays["moved"] + np.arange(frames) if timed else np.empty(0, np.int64),
        stream=stream,
        joins=arrays["joins"],
        sound=frozenset(arrays["sound"].tolist()),
        notes=tuple(arrays["notes"].tolist()),
    )
