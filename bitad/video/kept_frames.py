"""Decoded frames of whole videos, so that a training decodes each video once."""

from __future__ import annotations

import hashlib
import logging
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import bitad
from bitad.runtime.files import atomic_write
from bitad.runtime.log import log_once
from bitad.video.index import FrameIndex
from bitad.video.indexing import FileStamp
from bitad.video.reader import VideoReader, scaled_size


@dataclass(eq=False)
class KeptFrames:
    """The frames of the first videos that fit, in memory or mapped from files.

    Files that are cut off or outdated are written anew. If the folder cannot be written to, a warning says so, and
    frames are kept in memory.

    Args:
        max_bytes: the most bytes of frames to keep.
        folder: of the files, for all processes and runs that read the same videos. None: each process keeps its own
            frames in memory.
    """

    max_bytes: int
    _: KW_ONLY
    folder: Path | None = None
    # By file and short side; None: not kept.
    _videos: dict[tuple[Path, int | None], NDArray[np.uint8] | None] = field(default_factory=dict, init=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_videos": {}}  # a process that reads keeps its own

    @property
    def bytes(self) -> int:
        """Of all frames that are kept."""
        return sum(frames.nbytes for frames in self._videos.values() if frames is not None)

    def video(self, path: Path, index: FrameIndex, short_side: int | None) -> NDArray[np.uint8] | None:
        """All frames of a video, uint8 ``[T, H, W, 3]``, scaled to a short side in pixels.

        None if there is no room, or if some frames cannot be decoded: what replaces a damaged frame depends on the
        frames that are read with it.
        """
        key = path, short_side
        if key not in self._videos:
            height, width = index.height, index.width
            if index.rotation % 180:
                height, width = width, height
            if short_side is not None:
                height, width = scaled_size(height, width, short_side)
            shape = index.frames, height, width, 3
            has_room = not index.lost and np.prod(shape) <= self.max_bytes - self.bytes
            self._videos[key] = self._frames(path, index, shape) if has_room else None
        return self._videos[key]

    def _frames(self, path: Path, index: FrameIndex, shape: tuple[int, int, int, int]) -> NDArray[np.uint8] | None:
        stored = None if self.folder is None else self.folder / _file_name(path, shape)
        if stored is not None and (frames := _mapped(stored, shape)) is not None:
            return frames
        frames = None
        with suppress(ValueError), VideoReader(path, index=index) as reader:
            frames = reader.read(np.arange(index.frames), size=shape[1:3])
        if stored is None or frames is None:
            return frames
        try:
            with atomic_write(stored, synced=True) as partial, partial.open("wb") as file:
                np.save(file, frames, allow_pickle=False)
        except OSError as error:  # a read-only or full disk
            reason = f"{self.folder} cannot be written to ({error.strerror}); frames are kept in memory"
            log_once(f"data.frame_cache: {reason}", logging.WARNING)
            return frames
        return _mapped(stored, shape)


def _file_name(path: Path, shape: tuple[int, ...]) -> str:
    """One name for each version of a video file, size of the frames and version of the decoder."""
    version = "\n".join([*FileStamp.of(path).row(), bitad.__version__, str(shape)])
    return f"{hashlib.sha256(version.encode(errors='surrogateescape')).hexdigest()[:32]}.npy"


def _mapped(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """The frames of a file, read when they are used; None if it does not exist or has another size."""
    try:
        frames = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # a damaged file can raise anything
        return None
    return frames.view(np.ndarray) if (frames.shape, frames.dtype) == (shape, np.uint8) else None
