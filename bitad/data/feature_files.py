"""Pre-computed features: one array a video, in a folder or in a single ``.npz``."""

from __future__ import annotations

import io
import math
import os
import reprlib
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from bitad.runtime.files import is_file_named, is_leftover
from bitad.runtime.log import printable
from bitad.runtime.signatures import check_archive, signature_of
from bitad.video.names import Lookup

_SUFFIXES = (".npy", ".npz")

# Raised when a file, plain or compressed, holds no array, or one that is cut off or damaged.
_DAMAGED = (ValueError, EOFError, zipfile.BadZipFile, zlib.error)


class FeatureStore:
    """The features of a set of videos, read one video at a time; several processes may share a store.

    Args:
        path: a folder with ``NAME.npy`` or ``NAME.npz`` (of one array) for each video, or one ``.npz`` file.
        channels: C, if known; another width is refused.
        wanted: the names of all videos that may be asked for, which may be variations (:mod:`bitad.video.names`).

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: the file is no ``.npz``.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        channels: int | None = None,
        wanted: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self.path = Path(path)
        self.channels = channels
        if not self.path.exists():
            remedy = "name the right one, or make it: bitad features"
            raise FileNotFoundError(f"{self.path}: no such folder or .npz file of features; {remedy}")
        if self.path.is_file() and not zipfile.is_zipfile(self.path):
            raise ValueError(
                f"{self.path}: features are a folder or an .npz file; this is {signature_of(self.path)}"
            )
        self._lookup = Lookup(self.path, wanted, self.names)
        # By video: its file in a folder; and the shape of its array, with what tells that the file is the same.
        self._files: dict[str, Path] = {}
        self._shapes: dict[str, tuple[tuple[int, ...], tuple[int, int]]] = {}

    def names(self) -> tuple[str, ...]:
        """The names of the videos that have features, in alphabetical order."""
        if self.path.is_dir():
            files = [file for file in self.path.iterdir() if not is_leftover(file.name)]
            return tuple(sorted({file.stem for file in files if file.suffix in _SUFFIXES}))
        return tuple(sorted(_open_archive(self.path).names))

    def shape(self, name: str) -> tuple[int, int]:
        """T and C, the numbers of rows and channels of a video's features; reads only the array's header.

        Raises:
            FileNotFoundError, ValueError: there are none, or they are no numbers ``[T, C]`` of the right width.
        """
        path = self.path if self.path.is_file() else self.file(name)
        state = path.stat()
        same = state.st_mtime_ns, state.st_size
        known = self._shapes.get(name)
        if known is None or known[1] != same or self.channels not in (None, known[0][1]):
            with self._open(name) as (_, _, header):
                self._shapes[name] = known = header.shape, same
        rows, channels = known[0]
        return rows, channels

    def length(self, name: str) -> int:
        """T, the number of rows of a video's features; raises like :meth:`shape`."""
        return self.shape(name)[0]

    def stored(self, name: str) -> tuple[NDArray[Any], str]:
        """A video's array as it is stored, numbers ``[T, C]``, and its name in messages; raises like :meth:`length`."""
        with self._open(name) as (stream, where, header):
            try:
                return _read_array(stream, header), where
            except _DAMAGED as error:
                raise ValueError(f"{where}: no array that numpy reads: {error}") from None

    def read(self, name: str) -> NDArray[np.float32]:
        """A video's features, float32 ``[T, C]``, finite; raises like :meth:`length`."""
        array, where = self.stored(name)
        features = np.ascontiguousarray(array, np.float32)
        is_finite = np.isfinite(features)
        if not is_finite.all():
            invalid = np.argwhere(~is_finite)
            row, column = invalid[0]
            value = f"{features[row, column]} in row {row}, channel {column} ({len(invalid)} such values)"
            raise ValueError(f"{where}: {value}; make finite ones")
        return features

    def own_name(self, name: str) -> str:
        """The name of a video's features, or the given one; raises a ValueError if it is unclear."""
        names = () if self.path.is_dir() else _open_archive(self.path).names
        return name if name in names or self._file(name) is not None else self._lookup.find(name) or name

    def file(self, name: str) -> Path:
        """The file of a video in a folder; raises a FileNotFoundError if there is none."""
        if (known := self._files.get(name)) is not None and known.is_file():
            return known
        if (file := self._file(self.own_name(name))) is not None:
            self._files[name] = file
            return file
        remedy = f"make them, or leave it out; {self._lookup.sides(name)}"
        raise FileNotFoundError(f"{self.path}: no features of {name!r} there ({' or '.join(_SUFFIXES)}); {remedy}")

    def array(self, name: str) -> str:
        """The name of a video's array in the single ``.npz``; raises a ValueError if there is none."""
        found = self.own_name(name)
        if found in _open_archive(self.path).names:
            return found
        raise ValueError(f"{self.path}: no array {name!r}; {self._lookup.sides(name)}")

    def _file(self, name: str) -> Path | None:
        files = (self.path / f"{name}{suffix}" for suffix in _SUFFIXES)
        return next((file for file in files if is_file_named(file)), None)

    @contextmanager
    def _open(self, name: str) -> Iterator[tuple[IO[bytes], str, Header]]:
        """The bytes of an array ``[T, C]`` after its header, its name in messages, and the header."""
        file = self.path if self.path.is_file() else self.file(name)
        if file.suffix == ".npy":
            with file.open("rb") as stream:
                yield stream, str(file), self._checked_header(stream, file.stat().st_size, str(file), file)
            return
        if file == self.path:
            archive, member = _open_archive(file).archive, self.array(name)
            with self._open_member(archive, member, f"{file}: {printable(member)}") as opened:
                yield opened
            return
        with _zip(file) as archive:
            names = _array_names(archive, file)
            if len(names) != 1:
                raise ValueError(f"{file}: {len(names)} arrays, {reprlib.repr(sorted(names))}; keep one")
            with self._open_member(archive, names[0], f"{file}: {printable(names[0])}") as opened:
                yield opened

    @contextmanager
    def _open_member(
        self, archive: zipfile.ZipFile, member: str, where: str
    ) -> Iterator[tuple[IO[bytes], str, Header]]:
        size = archive.getinfo(f"{member}.npy").file_size
        with archive.open(f"{member}.npy") as stream:
            yield stream, where, self._checked_header(stream, size, where)

    def _checked_header(
        self,
        stream: IO[bytes],
        size: int,
        where: str,
        file: Path | None = None,
    ) -> Header:
        header = _parse_header(stream, size, where, file)
        shape, _, dtype = header
        if len(shape) != 2 or 0 in shape or dtype.kind not in "fiu":
            raise ValueError(f"{where}: {dtype} of shape {list(shape)}; features are numbers [T, C]")
        if self.channels is not None and shape[1] != self.channels:
            remedy = f"{self.channels} channels are expected (data.feature_channels)"
            raise ValueError(f"{where}: shape {list(shape)} read as [T, C]; {remedy}")
        return header


class Header(NamedTuple):
    """The header of an array in a file."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]


def _parse_header(stream: IO[bytes], size: int, where: str, file: Path | None = None) -> Header:
    """The header of an array, which must have ``size`` bytes in all."""
    try:
        is_version_1 = npy.read_magic(stream) == (1, 0)
        parse = npy.read_array_header_1_0 if is_version_1 else npy.read_array_header_2_0
        shape, is_fortran, dtype = parse(stream)
    except Exception:  # NumPy parses the header as Python: damaged bytes may raise anything
        found = None if file is None else signature_of(file)
        reason = "its header is damaged" if found is None or found.kind == "npy" else f"it is {found}"
        raise ValueError(f"{where}: no array that numpy reads: {reason}") from None
    # Arrays of objects have no fixed size; FeatureStore refuses their type.
    claimed = math.prod(shape) * dtype.itemsize
    actual = size - stream.tell()
    if min(shape, default=0) < 0 or (claimed != actual and not dtype.hasobject):
        claim = f"claims the shape {list(shape)} of {dtype}, {claimed:,} bytes, but {actual:,} are there"
        remedy = "it is damaged or cut off: write it again"
        raise ValueError(f"{where}: no array that numpy reads: its header {claim}; {remedy}")
    return Header(shape, is_fortran, dtype)


def _read_array(stream: IO[bytes], header: Header) -> NDArray[Any]:
    """The array after its header; raises one of ``_DAMAGED``."""
    count = math.prod(header.shape)
    if isinstance(stream, io.BufferedReader):
        array = np.fromfile(stream, header.dtype, count)
    else:
        array = np.frombuffer(bytearray(stream.read()), header.dtype)
    if len(array) != count:
        raise EOFError(f"{len(array)} of {count} numbers are there")
    return array.reshape(header.shape[::-1]).T if header.is_fortran else array.reshape(header.shape)


def read_header(file: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array in an ``.npy`` file; raises a ValueError for another file."""
    with file.open("rb") as stream:
        shape, _, dtype = _parse_header(stream, file.stat().st_size, str(file), file)
        return shape, dtype


class Archive(NamedTuple):
    """An ``.npz`` file that this process keeps open, and the names of its arrays."""

    archive: zipfile.ZipFile
    names: frozenset[str]


def _open_archive(file: Path) -> Archive:
    """An ``.npz`` file, opened once by each process, and again if it has changed."""
    state = file.stat()
    return _opened(str(file), os.getpid(), state.st_ino, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4)
def _opened(file: str, *state: int) -> Archive:
    archive = _zip(Path(file))
    return Archive(archive, frozenset(_array_names(archive, Path(file))))


def _zip(file: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except zipfile.BadZipFile:
        raise ValueError(f"{file}: no .npz file: it is {signature_of(file)}") from None


def _array_names(archive: zipfile.ZipFile, file: Path) -> list[str]:
    check_archive(archive, file.stat().st_size, str(file), compressed=True)
    members = [member for member in archive.namelist() if not any(map(is_leftover, member.split("/")))]
    return [member.removesuffix(".npy") for member in members]
