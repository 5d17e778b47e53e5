"""One writer to a folder: a lock that ends with the process that holds it, however that ends.

The operating system locks the file `bitad.lock` of the folder: among the processes of a machine, and on shared disks
(NFS 4, Lustre, SMB) among machines too. The file also says who holds it, and its time shows every few seconds that the
holder is alive. That decides where the file system has no locks, or where its locks hold on one machine only.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from bitad.runtime.files import check_folder, check_places
from bitad.runtime.log import log, log_last

LOCK = "bitad.lock"
OTHER_OUT = "wait until that has ended, or choose another --out"
# Locks that a machine that went down held on an NFS 4 server are free after its lease, of 90 s.
RESTART_S = 100.0

_BEAT_S = 5.0
_GONE_S = 20.0  # without a beat
_SETTLE_S = 2.0
_SECONDS_BETWEEN_TRIES = 0.2
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
_TAKEN = {errno.EAGAIN, errno.EACCES, errno.EDEADLK}

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # what is locked cannot be read there, so not the record
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


class InUse(ValueError):
    """Another process writes in the folder."""


@contextmanager
def locked(folder: Path, *, remedy: str, option: str = "--out", patience_s: float = 0.0) -> Iterator[None]:
    """Within, this process is the only one that has locked the folder, which is made if need be.

    Folders that were made, and are empty in the end, are removed.

    Args:
        remedy: for the message: what to do where another process has locked it.
        option: for the message: what names the folder.
        patience_s: seconds to wait for it.

    Raises:
        InUse: another process has, with its machine, number and since when.
        ValueError, OSError: the folder cannot be made or written to; in the place of the lock's file is something else.
    """
    check_folder(folder, option)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path, end = folder / LOCK, time.monotonic() + patience_s
    try:
        check_places([path])
        while (lock := _Lock.taken(path)) is None:
            if time.monotonic() >= end:
                raise InUse(f"{folder} is in use {_said_by(path)}; {remedy}")
            time.sleep(_SECONDS_BETWEEN_TRIES)
        try:
            yield
        finally:
            lock.release()
    finally:
        with suppress(OSError):  # one is not empty
            for place in made:
                place.rmdir()


class _Lock:
    """The lock of a file that this process holds.

    Args:
        path, descriptor: of the file.
        is_sure: whether the operating system keeps others out.
    """

    def __init__(self, path: Path, descriptor: int, *, is_sure: bool) -> None:
        self.path, self.descriptor, self.is_sure = path, descriptor, is_sure
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        self.record = json.dumps({"host": platform.node(), "pid": os.getpid(), "since": since}).encode()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)

    @classmethod
    def taken(cls, path: Path) -> _Lock | None:
        """The lock of a file, made if need be; None: another process holds it."""
        while True:
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
            descriptor, kept = os.open(path, flags, 0o666), False
            try:
                is_sure = True
                try:
                    _lock(descriptor)
                except OSError as error:
                    if error.errno in _TAKEN:
                        return None
                    if error.errno not in _NO_LOCKS:
                        raise
                    is_sure = False
                if not _is_file(path, descriptor):
                    continue  # whoever held it has removed it meanwhile
                lock = cls(path, descriptor, is_sure=is_sure)
                try:
                    kept = lock._claim()
                except OSError as error:  # a full disk does not say what could not be written
                    path.unlink(missing_ok=True)
                    error.filename = error.filename or str(path)
                    raise
                return lock if kept else None
            finally:
                if not kept:
                    os.close(descriptor)

    def _claim(self) -> bool:
        """Writes down that this process holds the lock, unless another process turns out to hold it."""
        before = _read(self.path)
        host = _parsed(before).get("host")
        if before and (not self.is_sure or host != platform.node()) and _lives(self.path):
            return False
        os.ftruncate(self.descriptor, 0)
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        os.write(self.descriptor, self.record)
        if not self.is_sure:
            time.sleep(_SETTLE_S)  # of several that wrote at once, the last one holds it
            if _read(self.path) != self.record:
                return False
            log.warning(
                "%s: this file system has no locks; a second process on it is noticed by this file alone",
                self.path,
            )
        _held.add(self.descriptor)
        self._thread.start()
        return True

    def _beat(self) -> None:
        while not self._over.wait(_BEAT_S):
            if not self.is_sure and _read(self.path) != self.record:
                log_last(f"bitad: error: {self.path.parent} was taken over {_said_by(self.path)}: this process ends")
                os._exit(1)
            with suppress(OSError):
                os.utime(self.path)

    def release(self) -> None:
        """Gives the lock back; the file goes."""
        self._over.set()
        self._thread.join()
        _held.discard(self.descriptor)
        with suppress(OSError):  # Windows removes no file that is open
            self.path.unlink()
        os.close(self.descriptor)


_held: set[int] = set()


def _close_in_child() -> None:
    # The lock belongs to the open file, which a forked process shares: it must not outlive its holder there.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def _is_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _lives(path: Path) -> bool:
    """Whether the file shows that its holder is alive: looks at it until it has, or until it should have."""
    end = time.monotonic() + _GONE_S
    first = _seen(path)
    while time.monotonic() < end:
        time.sleep(_SECONDS_BETWEEN_TRIES)
        if _seen(path) != first:
            return bool(_read(path))  # else it was given back
    return False


def _seen(path: Path) -> tuple[bytes, int]:
    content = _read(path)  # opened, so that a shared disk is asked for the time as it is now
    try:
        return content, path.stat().st_mtime_ns
    except OSError:
        return content, 0


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _parsed(record: bytes) -> dict[str, object]:
    try:
        content = json.loads(record)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _said_by(path: Path) -> str:
    """Who holds the lock, by what is in its file."""
    time.sleep(_SECONDS_BETWEEN_TRIES)  # whoever has just taken it may not have said so yet
    said = _parsed(_read(path))
    if not {"host", "pid", "since"} <= said.keys():
        return "by another process"
    return f"by process {said['pid']} on {said['host']} since {said['since']}"
