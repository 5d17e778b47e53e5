"""Features computed beforehand: one array a video, in a folder of ``.npy`` / ``.npz`` files or in a single ``.npz``."""

from __future__ import annotations

import math
import reprlib
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from bitad.runtime.files import is_file_named, is_leftover
from bitad.runtime.signatures import check_archive, signature_of
from bitad.video.names import Lookup

_SUFFIXES = (".npy", ".npz")

# What reading an array raises that is none, or that is cut short or altered, plain or compressed.
_DAMAGED = (ValueError, EOFError, zipfile.BadZipFile, zlib.error)


class FeatureStore:
    """The features of a set of videos, read from disk one video at a time; fit for several processes at once.

    Args:
        path: a folder with a file for each video (``NAME.npy`` or ``NAME.npz``), or one ``.npz`` file that holds each
            video's array under the video's name.
        channels_first: the arrays on disk are ``[C, T]``, not ``[T, C]``.
        channels: C, where known; another width is refused.
        key: the array's name in the ``.npz`` files of a folder; not needed where each holds a single array.
        wanted: the names of all videos that may be asked for. Where the features have another name, that may differ by
            a habit (:mod:`bitad.video.names`).

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: a file that is no ``.npz``, or an ``.npz`` file together with ``key``.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        channels_first: bool = False,
        channels: int | None = None,
        key: str | None = None,
        wanted: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self.path, self.channels_first, self.channels, self.key = Path(path), channels_first, channels, key
        if not self.path.exists():
            raise FileNotFoundError(
                f"{self.path}: no such folder or .npz file of features; name the right one, or make it: bitad features"
            )
        if self.path.is_file() and not zipfile.is_zipfile(self.path):
            raise ValueError(
                f"{self.path}: features are a folder of .npy or .npz files, or one .npz file; this is "
                f"{signature_of(self.path)}"
            )
        if self.path.is_file() and key is not None:
            raise ValueError(f"{self.path}: arrays in one .npz are named after the videos; leave out the key {key!r}")
        self._lookup = Lookup(self.path, wanted, self.names)

    def names(self) -> tuple[str, ...]:
        """The names of the videos that have features, in alphabetical order."""
        if self.path.is_dir():
            files = [file for file in self.path.iterdir() if not is_leftover(file.name)]
            return tuple(sorted({file.stem for file in files if file.suffix in _SUFFIXES}))
        return tuple(sorted(_keys(self.path)))

    def length(self, name: str) -> int:
        """T, the number of rows of a video's features; only the array's header is read.

        Raises:
            FileNotFoundError: the folder has no file for the video.
            ValueError: the ``.npz`` has no such array, or it is none of numbers ``[T, C]`` of the right width.
        """
        with self._opened(name) as array:
            return self._checked(array)[0]

    def read(self, name: str) -> NDArray[np.float32]:
        """A video's features, float32 ``[T, C]``.

        Raises:
            FileNotFoundError: the folder has no file for the video.
            ValueError: the ``.npz`` has no such array, or it is none of finite numbers ``[T, C]`` of the right width.
        """
        with self._opened(name) as stored:
            self._checked(stored)
            array, where = stored.read(), stored.where
        features = np.ascontiguousarray(array.T if self.channels_first else array, np.float32)  # [T, C]
        unsound = np.argwhere(~np.isfinite(features))
        if len(unsound):
            row, column = unsound[0]
            raise ValueError(
                f"{where}: {features[row, column]} in row {row}, channel {column} ({len(unsound)} such values); "
                "make finite ones"
            )
        return features

    @contextmanager
    def _opened(self, name: str) -> Iterator[_Stored]:
        """A video's array, of which the header has been read."""
        file = self.path if self.path.is_file() else self.file(name)
        if file.suffix == ".npy":
            with file.open("rb") as stream:
                yield _Stored.of(stream, file.stat().st_size, str(file), file)
            return
        key = self.array(name) if file == self.path else self._only_key(file)
        if file != self.path and key not in (keys := _keys(file)):
            raise ValueError(f"{file}: no array {key!r}; it has {reprlib.repr(sorted(keys))}")
        with zipfile.ZipFile(file) as archive, archive.open(f"{key}.npy") as stream:
            yield _Stored.of(stream, archive.getinfo(f"{key}.npy").file_size, f"{file}: {key}")

    def file(self, name: str) -> Path:
        """The file of a video in a folder.

        Raises:
            FileNotFoundError: the folder has none.
            ValueError: several may be meant.
        """
        if (file := self._file(name)) is not None:
            return file
        if (found := self._lookup.find(name)) is not None and (file := self._file(found)) is not None:
            return file
        raise FileNotFoundError(
            f"{self.path}: no features of {name!r} there ({' or '.join(_SUFFIXES)}); make them, or leave it out "
            f"of the annotations; {self._lookup.sides(name)}"
        )

    def own_name(self, name: str) -> str:
        """The name that a video's features have in a folder.

        Raises:
            ValueError: several may be meant.
        """
        return name if self._file(name) is not None else self._lookup.find(name) or name

    def array(self, name: str) -> str:
        """The name of a video's array in the single ``.npz``.

        Raises:
            ValueError: there is none, or several may be meant.
        """
        if name in (keys := _keys(self.path)):
            return name
        if (found := self._lookup.find(name)) is not None:
            return found
        raise ValueError(
            f"{self.path}: no array {name!r}; it has {reprlib.repr(sorted(keys))}; {self._lookup.sides(name)}"
        )

    def _file(self, name: str) -> Path | None:
        files = (self.path / f"{name}{suffix}" for suffix in _SUFFIXES)
        return next((file for file in files if is_file_named(file)), None)

    def _only_key(self, file: Path) -> str:
        """The name of the array to read from one video's ``.npz``."""
        if self.key is not None:
            return self.key
        keys = _keys(file)
        if len(keys) != 1:
            raise ValueError(f"{file}: {len(keys)} arrays, {reprlib.repr(sorted(keys))}; name the key of one")
        return keys[0]

    def _checked(self, array: _Stored) -> tuple[int, int]:
        """T and C of an array on disk."""
        shape, dtype, where = array.shape, array.dtype, array.where
        form = "[C, T]" if self.channels_first else "[T, C]"
        if len(shape) != 2 or 0 in shape or dtype.kind not in "fiu":
            raise ValueError(f"{where}: {dtype} of shape {list(shape)}; features are numbers {form}")
        rows, channels = shape[::-1] if self.channels_first else shape
        if self.channels is not None and channels != self.channels:
            raise ValueError(
                f"{where}: shape {list(shape)} read as {form}; {self.channels} channels are expected "
                "(data.feature_channels)"
            )
        return rows, channels


@dataclass(frozen=True)
class _Stored:
    """An array on disk, of which the header has been read, and no more.

    Args:
        stream: the bytes of an ``.npy`` file.
        where: what to call it in an error.
        shape, dtype: what its header says.
    """

    stream: IO[bytes]
    where: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, stream: IO[bytes], size: int, where: str, file: Path | None = None) -> _Stored:
        """Read the header of an array that has ``size`` bytes in all, and compare it with them.

        Raises:
            ValueError: ``stream`` holds no array, or one of another size than its header says.
        """
        try:
            first_form = npy.read_magic(stream) == (1, 0)
            shape, _, dtype = (npy.read_array_header_1_0 if first_form else npy.read_array_header_2_0)(stream)
        except Exception:  # NumPy parses the header as Python: damaged bytes raise whatever that leads to
            found = None if file is None else signature_of(file)
            reason = "its header is damaged" if found is None or found.kind == "npy" else f"it is {found}"
            raise ValueError(f"{where}: no array that numpy reads: {reason}") from None
        if any(length < 0 for length in shape):
            raise ValueError(
                f"{where}: no array that numpy reads: its header claims the shape {list(shape)}; write it again"
            )
        # Objects have no size on disk; they are refused by their type.
        claimed, there = math.prod(shape) * dtype.itemsize, size - stream.tell()
        if claimed != there and not dtype.hasobject:
            raise ValueError(
                f"{where}: no array that numpy reads: its header claims {dtype} of shape {list(shape)}, {claimed:,} "
                f"bytes, but {there:,} are there; it is damaged or cut off: write it again"
            )
        return cls(stream, where, shape, dtype)

    def read(self) -> NDArray[Any]:
        """The array."""
        try:
            self.stream.seek(0)
            return npy.read_array(self.stream, allow_pickle=False)
        except _DAMAGED as error:
            raise ValueError(f"{self.where}: no array that numpy reads: {error}") from None


def header_of(file: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array in an ``.npy`` file, which has as many bytes as these say; only its header is read.

    Raises:
        OSError: it cannot be opened.
        ValueError: it holds no array, or one of another size.
    """
    with file.open("rb") as stream:
        array = _Stored.of(stream, file.stat().st_size, str(file), file)
    return array.shape, array.dtype


def _keys(file: Path) -> list[str]:
    """The names of the arrays in an ``.npz`` file."""
    try:
        with zipfile.ZipFile(file) as archive:
            check_archive(archive, file.stat().st_size, str(file), compressed=True)
            members = [member for member in archive.namelist() if not any(map(is_leftover, member.split("/")))]
            return [member.removesuffix(".npy") for member in members]
    except zipfile.BadZipFile:
        raise ValueError(f"{file}: no .npz file: it is {signature_of(file)}") from None
