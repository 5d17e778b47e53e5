"""Files and folders: listings, atomic writes, text, JSON, and checks of outputs."""

from __future__ import annotations

import errno
import gc
import gzip
import hashlib
import json
import os
import platform
import re
import reprlib
import secrets
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from bitad.runtime.log import shortlist
from bitad.runtime.signatures import SMALL_BYTES, check_expansion, signature_of

# Of macOS archives and Windows.
_LEFTOVERS = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"}


def is_leftover(name: str) -> bool:
    """Whether a file or folder is hidden, or created by a file manager."""
    return name.startswith(".") or name.lower() in _LEFTOVERS


def is_listed(folder: Path, path: Path) -> bool:
    return not any(is_leftover(part) for part in path.relative_to(folder).parts)


def is_file_named(path: Path) -> bool:
    """Whether a file has exactly this name; macOS and Windows ignore case."""
    if not os.path.isfile(path):
        return False
    folder, name = os.path.split(path)
    if not os.path.exists(os.path.join(folder, name.swapcase())):
        return True
    return name in _names_in(folder, os.stat(folder or ".").st_mtime_ns) or name in os.listdir(folder or ".")


@lru_cache(maxsize=8)
def _names_in(folder: str, mtime_ns: int) -> frozenset[str]:
    return frozenset(os.listdir(folder or "."))


def walk(
    folder: Path, *, but: Path | None = None, on_error: Callable[[OSError], object] | None = None
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Like ``os.walk``, but sorted, without leftovers, through links, into each folder once and not into ``but``."""
    seen = {os.path.realpath(folder)}
    if but is not None:
        seen.add(os.path.realpath(but))
    for here, folders, files in os.walk(folder, followlinks=True, onerror=on_error):
        unseen = []
        for name in sorted(name for name in folders if not is_leftover(name)):
            if (place := os.path.realpath(os.path.join(here, name))) not in seen:
                seen.add(place)
                unseen.append(name)
        folders[:] = unseen
        yield Path(here), folders, sorted(name for name in files if not is_leftover(name))


# The system's errors where a file cannot grow: full disk, quota, size limit.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Temporary files are named by machine and process: a process number is meaningful on one machine only.
_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:4]
_TEMPORARY = re.compile(r"\.([0-9a-f]{4})[0-9a-f]{12}\.\d+\.tmp")


@contextmanager
def atomic_write(path: str | Path, *, synced: bool = False) -> Iterator[Path]:
    """Write a file atomically: yields a temporary file that replaces ``path`` when the block succeeds.

    If ``path`` is a link, the link is replaced, not its target. With ``synced`` the file is on disk before it is
    renamed, which also holds if the machine goes down.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = None
    try:
        partial = _create_temporary(path.parent)
        yield partial
        if synced:
            _sync(partial)
        os.replace(partial, path)
        if synced and os.name != "nt":  # Windows cannot open folders
            _sync(path.parent)
    except OSError as error:
        # A full disk names no file, other errors the temporary one.
        if error.errno is not None and (
            partial is None or error.filename is None or os.path.basename(str(error.filename)) == partial.name
        ):
            try:
                error.filename = str(path)
                del error.filename2  # None would be printed
            except AttributeError:  # an FFmpeg error; only a full disk is certainly about this file
                if error.errno in NO_ROOM:
                    raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


def _create_temporary(folder: Path) -> Path:
    while True:
        # Short, whatever the final name: that may have the greatest length.
        partial = folder / f".{_HOST}{secrets.token_hex(6)}.{os.getpid()}.tmp"
        with suppress(FileExistsError):
            os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return partial


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: str | Path) -> None:
    """Remove the temporary files that killed processes of this machine have left in a folder.

    Call it before this process writes there: an earlier process may have had the same number.
    """
    for path in Path(folder).glob(".*.tmp"):
        if (match := _TEMPORARY.fullmatch(path.name)) is not None and match[1] != _HOST:
            continue
        number = path.with_suffix("").suffix[1:]
        if number.isdecimal() and (int(number) == os.getpid() or not _is_running(int(number))):
            with suppress(OSError):  # a folder; on Windows, a file that is open elsewhere
                path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    if os.name == "nt":  # signal 0 would end it there
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's process
        pass
    return True


# Signatures of files that may be JSON, and of those that may be text.
_MAYBE_JSON = {"json", "shards"}
_MAYBE_TEXT = {"text", "empty", "unknown"} | _MAYBE_JSON

# Half of a surrogate pair, escaped or not. It cannot be printed without the other half.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")
# A string of JSON.
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_CHUNK_BYTES = 2**20


class RepeatedKeyError(ValueError):
    """A JSON text in which an object has a key twice."""


class NotJsonError(ValueError):
    """A text that is not JSON; ``reason`` says why."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def read_text(path: str | Path, what: str) -> str:
    """Read a text file in UTF-8; errors call its content ``what``.

    Raises FileNotFoundError, or ValueError if it cannot be read or is another type of file.
    """
    path = Path(path)
    try:
        found, data = signature_of(path), path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; it should contain {what}") from None
    except OSError as error:  # such as a folder
        raise ValueError(f"{path}: cannot be read as {what}: {error.strerror}") from None
    if found.kind not in _MAYBE_TEXT or (found.kind in _MAYBE_JSON and _is_json(data)):
        raise ValueError(f"{path}: cannot be read as {what}: it is {found}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = f"byte {error.start} is not UTF-8"
        raise ValueError(f"{path}: cannot be read as {what}: {place}; save it as UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{path}: cannot be read as {what}: it has a zero byte; check where it comes from")
    return text


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):  # a text that begins with a bracket
        return False
    return True


def read_json(path: str | Path) -> Any:
    """Read a JSON file; decompress it if its name ends in ``.gz``.

    Raises FileNotFoundError, or ValueError if it cannot be read, is not JSON, expands too much or has a key twice.
    """
    path = Path(path)
    try:
        data = _decompress(path) if path.suffix == ".gz" else path.read_bytes()
        if not data:
            raise ValueError(f"{path}: not a JSON file: it is empty")
        return parse_json(data, str(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; check its name") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        reason = _actual_type(path) or "it is a gzip file that is damaged or cut off; copy or download it again"
        raise ValueError(f"{path}: cannot be read: {reason}") from None
    except OSError as error:  # such as a folder
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except NotJsonError as error:
        raise NotJsonError(
            f"{path}: not a JSON file: {_actual_type(path) or error.reason}", error.reason
        ) from None


def _decompress(path: Path) -> bytes:
    with gzip.open(path) as file:
        data = file.read(SMALL_BYTES + 1)
        if len(data) <= SMALL_BYTES:
            return data
        # Measure before keeping: a refused file takes no memory.
        stored, size, data = path.stat().st_size, len(data), b""
        while chunk := file.read(_CHUNK_BYTES):
            size += len(chunk)
            check_expansion(size, stored, str(path))
        file.seek(0)
        return file.read()


def _actual_type(path: Path) -> str | None:
    """The type of a file that should be JSON; None if the parser's error is better."""
    try:
        found = signature_of(path)
    except OSError:
        return None
    compressed = path.suffix == ".gz"
    if found.kind in _MAYBE_JSON:
        return f"it is {found.description}, not compressed; leave .gz out of its name" if compressed else None
    if found.kind == "gzip":
        return None if compressed else f"it is {found.description}; give it a name that ends in .json.gz"
    return None if found.kind in _MAYBE_TEXT else f"it is {found}"


def parse_json(data: bytes | str, where: str) -> Any:
    """Parse JSON as Python's ``json`` does; errors call it ``where``.

    Of repeated keys all but the last would be lost, so they are errors.
    """
    given = data
    data = data.encode(errors="surrogatepass") if isinstance(data, str) else data
    with collection_paused():
        try:
            return _parse_fast(data)
        except ValueError:
            pass  # Python's parser knows more encodings of bytes, and finds the reason
        try:
            content = json.loads(given, object_pairs_hook=_unique_dict)
            if (b"\\u" in data or b"\xed" in data) and _SURROGATE.search(data):
                json.dumps(content, ensure_ascii=False).encode()
        except RepeatedKeyError as error:
            raise RepeatedKeyError(f"{where}: key {error}; only the last would count: keep one") from None
        except (ValueError, RecursionError) as error:
            reason = str(error).partition(";")[0]  # Python's remedy is for programmers
            raise NotJsonError(f"{where}: not JSON: {reason}", reason) from None
        return content


@contextmanager
def collection_paused() -> Iterator[None]:
    """Garbage collection would look through all objects that are read, again and again: half of the time.

    It does so once more if they still exist at the end.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _parse_fast(data: bytes) -> Any:
    """Parse JSON with pydantic's parser, which takes the last of repeated keys; raises ValueError if there are any."""
    from pydantic_core import from_json  # not at the start of `bitad --help`

    content = from_json(data)
    # A colon follows each key; others are in strings.
    if (keys := _count_keys(content)) != data.count(b":"):
        in_strings = sum(text.count(b":") for text in _STRING.findall(data))
        if keys != data.count(b":") - in_strings:
            raise ValueError("a key is repeated")
    return content


def _count_keys(content: Any) -> int:
    """The number of keys of all objects."""
    count, values = 0, [content]
    while values:
        types = set(map(type, values))  # most values are numbers and text, which need no loop
        objects = [one for one in values if type(one) is dict] if dict in types else []
        lists = [one for one in values if type(one) is list] if list in types else []
        count += sum(map(len, objects))
        values = [*chain.from_iterable(chain(map(dict.values, objects), lists))]
    return count


def _unique_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        keys = shortlist([key for key in counts if counts[key] > 1], quote=json.dumps)
        raise RepeatedKeyError(f"{keys} occurs more than once in {reprlib.repr(content)}")
    return content


def write_json(content: Any, path: str | Path) -> None:
    """Write JSON atomically; compress it if the name ends in ``.gz``. NaN raises ValueError."""
    path = Path(path)
    text = json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    with atomic_write(path) as partial:
        # Without a time stamp, equal content gives equal files.
        partial.write_bytes(gzip.compress(text, compresslevel=6, mtime=0) if path.suffix == ".gz" else text)


def check_folder(folder: Path, option: str = "--out") -> None:
    """Check that results can be written to a folder, which may be missing.

    Raises OSError if it is not writable, ValueError if it is a file or in one, or its name is not UTF-8.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{option} {str(folder)!r}: the name is not UTF-8; give another folder") from None
    place = Path(os.path.abspath(folder))
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise ValueError(f"{option} {folder}: {place} is not a folder; give another one")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise OSError(
            f"{option} {folder}: cannot write to {place}: {error.strerror}; give another folder"
        ) from None


def check_file(file: Path, option: str = "--out", inputs: Iterable[Path | None] = ()) -> None:
    """Check that an output file can be written and replaces no input."""
    if file.is_dir():
        raise ValueError(f"{option} {file}: it is a folder; give the name of a file")
    check_folder(file.parent, option)
    check_not_inputs([file], inputs)


def check_not_inputs(outputs: Iterable[Path], inputs: Iterable[Path | None]) -> None:
    """Raise ValueError if an output is an input, perhaps by another name."""
    existing = [path for path in inputs if path is not None and path.is_file()]
    for output in outputs:
        for path in existing if output.exists() else []:
            if output.samefile(path):
                raise ValueError(f"{output}: the output would replace the input {path}; write it somewhere else")


def check_replaceable(files: Iterable[Path]) -> None:
    """Raise ValueError if anything but a regular file is in the place of an output file."""
    for file in files:
        if os.path.lexists(file) and not file.is_file():
            other = "a link to a missing file" if file.is_symlink() else "a pipe or a device"
            kind = "a folder" if file.is_dir() else other
            raise ValueError(f"{file} will be written but is {kind}; move or remove it")
