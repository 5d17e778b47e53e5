"""Files and folders: atomic writes, text and JSON (compressed or not), listings, and checks of output places.

Outputs are checked before the work that makes them. Listings leave out what file managers leave behind.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import platform
import re
import secrets
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from bitad.runtime.signatures import SMALL_BYTES, check_expansion, signature_of

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


# Half of a character of two halves, escaped or not, which may lack the other half: no text, and not to be printed.
_HALF = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")

# What the system says where a file cannot grow: the disk is full, or a quota or a limit is reached.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PIECE_BYTES = 2**20
# Begins the names of temporary files: process numbers mean something on one machine only.
_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:4]
_TEMPORARY = re.compile(r"\.([0-9a-f]{4})[0-9a-f]{12}\.\d+\.tmp")
# What a text may be by its first bytes, and what may be JSON.
_MAYBE_JSON = {"json", "shards"}
_MAYBE_TEXT = {"text", "empty", "unknown"} | _MAYBE_JSON
# An error names so many of a document's repeated keys.
_MOST_NAMED = 5


@contextmanager
def replacing(path: str | Path, *, synced: bool = False) -> Iterator[Path]:
    """A new file beside ``path`` to write to; it becomes ``path`` when the block ends, and is removed if that fails.

    A reader therefore sees the old file or the new one, never a part of one. Missing folders are made. With ``synced``
    that holds even where the machine goes down: what is written is on the disk before it is renamed.

    Nobody can know the new file's name beforehand, and a link is never followed to write: where ``path`` is a link, the
    link is replaced and the file that it points to stays as it is.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = None
    try:
        partial = _new_file(path.parent)
        yield partial
        if synced:
            _sync(partial)
        os.replace(partial, path)
        if synced and os.name != "nt":  # there folders cannot be opened
            _sync(path.parent)
    except OSError as error:
        # A full disk does not say what could not be written, others name a file that nobody knows.
        if error.errno is not None and (
            partial is None or error.filename is None or os.path.basename(str(error.filename)) == partial.name
        ):
            try:
                error.filename = str(path)
                del error.filename2  # None would be printed
            except AttributeError:  # FFmpeg's: of these only a full disk is sure to be about this file
                if error.errno in NO_ROOM:
                    raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


def _new_file(folder: Path) -> Path:
    """An empty file of a new name, with the rights that the process gives to its files."""
    while True:
        # Short, whatever the name of what is written: that may be as long as the file system takes. The leading dot
        # hides it from listings of videos; the process's number tells whether anybody is still writing to it.
        partial = folder / f".{_HOST}{secrets.token_hex(6)}.{os.getpid()}.tmp"
        try:
            os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            continue
        return partial


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
    was started again. What other machines are writing to a shared disk stays.
    """
    for path in Path(folder).glob(".*.tmp"):
        if (of := _TEMPORARY.fullmatch(path.name)) is not None and of[1] != _HOST:
            continue
        number = path.with_suffix("").suffix[1:]
        if number.isdecimal() and (int(number) == os.getpid() or not _runs(int(number))):
            with suppress(OSError):  # a folder, or open elsewhere on Windows
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
        ValueError: it cannot be read, is not JSON, expands to more than any file of annotations or detections
            (:func:`~bitad.runtime.signatures.check_expansion`), or has a key twice in one object.
    """
    path = Path(path)
    try:
        data = _decompressed(path) if path.suffix == ".gz" else path.read_bytes()
        if not data:
            raise ValueError(f"{path}: not a JSON file: it is empty")
        return parse_json(data, str(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; check its name") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        reason = _instead(path) or "it is a gzip file that is damaged or cut off; copy or download it again"
        raise ValueError(f"{path}: cannot be read: {reason}") from None
    except OSError as error:  # a folder
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except NotJsonError as error:
        raise NotJsonError(f"{path}: not a JSON file: {_instead(path) or error.reason}", error.reason) from None


def read_text(path: str | Path, what: str) -> str:
    """The content of a text file in UTF-8, with or without a byte order mark.

    Args:
        path: the file.
        what: what should be in it, for errors: ``"class names, a name a line"``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or is something else than a text of its own.
    """
    path = Path(path)
    try:
        found, data = signature_of(path), path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; it should hold {what}") from None
    except OSError as error:  # a folder, say
        raise ValueError(f"{path}: cannot be read as {what}: {error.strerror}") from None
    if found.kind not in _MAYBE_TEXT or (found.kind in _MAYBE_JSON and _is_json(data)):
        raise ValueError(f"{path}: cannot be read as {what}: it is {found}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: cannot be read as {what}: byte {error.start} is not UTF-8; save it as UTF-8"
        ) from None
    if "\0" in text:
        raise ValueError(f"{path}: cannot be read as {what}: it has a zero byte; check where it comes from")
    return text


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):  # a text that begins with a bracket
        return False
    return True


class RepeatedKeyError(ValueError):
    """A JSON text in which an object has a key twice."""


class NotJsonError(ValueError):
    """A text that is not JSON; ``reason`` says why."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def parse_json(data: bytes | str, where: str) -> Any:
    """The content of a JSON text, in which no object has a key twice: only the last entry of each would be kept.

    Args:
        data: the text.
        where: what to call it in an error.

    Raises:
        NotJsonError: it is not JSON.
        RepeatedKeyError: an object has a key twice.
    """
    data = data.encode(errors="surrogatepass") if isinstance(data, str) else data
    try:
        content = json.loads(data, object_pairs_hook=_object)
        if (b"\\u" in data or b"\xed" in data) and _HALF.search(data):
            json.dumps(content, ensure_ascii=False).encode()
    except _RepeatedError:
        raise RepeatedKeyError(
            f"{where}: {_said_of_repeated(data)}; only the last of each would count: keep one"
        ) from None
    except (ValueError, RecursionError) as error:
        reason = _said_of_json(error)
        raise NotJsonError(f"{where}: not JSON: {reason}", reason) from None
    return content


def _said_of_json(error: ValueError | RecursionError) -> str:
    """Why a text is not JSON, without what Python advises its programmers."""
    if isinstance(error, json.JSONDecodeError):
        return str(error)
    if isinstance(error, UnicodeError):
        return "it is not UTF-8, or has half of a character"
    if isinstance(error, RecursionError):
        return "its lists and objects are nested too deeply"
    return "it has a whole number of more digits than any that is meant"


class _RepeatedError(Exception):
    """An object has a key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _RepeatedError
    return made


class _Pairs(list[tuple[str, Any]]):
    """An object of JSON with all of its entries."""


def _said_of_repeated(data: bytes) -> str:
    """Which keys are repeated, and where in the document."""
    found = [
        f"key {json.dumps(key, ensure_ascii=False)} occurs {count} times in {place}"
        for place, entries in _objects(json.loads(data, object_pairs_hook=_Pairs))
        for key, count in Counter(key for key, _ in entries).items()
        if count > 1
    ]
    more = f"; and {len(found) - _MOST_NAMED} more such keys" if len(found) > _MOST_NAMED else ""
    return "; ".join(found[:_MOST_NAMED]) + more


def _objects(content: Any) -> Iterator[tuple[str, _Pairs]]:
    """All objects of a document, and the path of each: ``database.video_1.annotations[3]``."""
    waiting = [("", content)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, _Pairs):
            yield place or "the document", value
            inner = [(f"{place}.{key}" if place else key, one) for key, one in value]
        else:
            inner = [(f"{place}[{number}]", one) for number, one in enumerate(value)]
        waiting += [pair for pair in reversed(inner) if isinstance(pair[1], list)]


def _decompressed(path: Path) -> bytes:
    """The content of a gzip file, as far as it is what an honest one may hold."""
    with gzip.open(path) as file:
        data = file.read(SMALL_BYTES + 1)
        if len(data) <= SMALL_BYTES:
            return data
        # Measured before it is kept: what is refused takes no memory.
        stored, size, data = path.stat().st_size, len(data), b""
        while piece := file.read(_PIECE_BYTES):
            size += len(piece)
            check_expansion(size, stored, str(path))
        file.seek(0)
        return file.read()


def _instead(path: Path) -> str | None:
    """What a file is that should be JSON, with a remedy; None: nothing that is known better."""
    try:
        found = signature_of(path)
    except OSError:
        return None
    if found.kind in ("json", "shards"):
        return f"it is {found.says}, not compressed; leave .gz out of its name" if path.suffix == ".gz" else None
    if found.kind == "gzip":
        return None if path.suffix == ".gz" else f"it is {found.says}; give it a name that ends in .json.gz"
    return None if found.kind in ("text", "empty", "unknown") else f"it is {found}"


def write_json(content: Any, path: str | Path) -> None:
    """Write JSON, whole or not at all; a name that ends in ``.gz`` is compressed. NaN is a ValueError."""
    path = Path(path)
    text = json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    with replacing(path) as partial:
        # Without a time stamp the same content gives the same file.
        partial.write_bytes(gzip.compress(text, compresslevel=6, mtime=0) if path.suffix == ".gz" else text)


def check_folder(folder: Path, option: str = "--out") -> None:
    """Refuse a folder that results cannot be written to. One that is missing will be made; nothing is made here.

    Args:
        option: which names the folder, for the message.

    Raises:
        ValueError: it is a file, or lies in one; its name is not UTF-8.
        OSError: nothing can be written there.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{option} {str(folder)!r}: the name is not UTF-8; give another folder") from None
    place = Path(os.path.abspath(folder))
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise ValueError(f"{option} {folder}: {place} is no folder; give another one")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise OSError(f"{option} {folder}: cannot write to {place}: {error.strerror}; give another folder") from None


def check_apart(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse output files that would replace an input file.

    Raises:
        ValueError: an output is an input, by whatever name.
    """
    read = [path for path in inputs if path.is_file()]
    for output in outputs:
        for path in read if output.exists() else []:
            if output.samefile(path):
                raise ValueError(f"{output}: the output would replace the input {path}; write it somewhere else")


def check_places(files: Iterable[Path]) -> None:
    """Refuse output files in whose places there is something else than a file.

    Raises:
        ValueError: a folder, a link to nothing, a pipe or a device.
    """
    for file in files:
        if os.path.lexists(file) and not file.is_file():
            kind = "a folder" if file.is_dir() else "a link to nothing" if file.is_symlink() else "a pipe or a device"
            raise ValueError(f"{file} will be written but is {kind}; move or remove it")


def check_file(file: Path, option: str = "--out", inputs: Iterable[Path] = ()) -> None:
    """Refuse a file that cannot be written, or whose writing would replace an input.

    Raises:
        ValueError: it is a folder or an input; its folder is none.
        OSError: nothing can be written in its folder.
    """
    if file.is_dir():
        raise ValueError(f"{option} {file}: it is a folder; give the name of a file")
    check_folder(file.parent, option)
    check_apart([file], inputs)
