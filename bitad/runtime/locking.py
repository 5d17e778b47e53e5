"""A lock on a folder, so that only one process writes there. It ends with the process.

The operating system locks the file `bitad.lock`, on shared disks (NFS 4, Lustre, SMB) also between machines. The
file records the holder, and its time changes while the holder is alive. This record decides where the file system
has no locks, or only locks within a machine.
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

from bitad.runtime.files import check_folder, check_replaceable
from bitad.runtime.log import log, log_last

LOCK = "bitad.lock"
OTHER_OUT = "wait until it has ended, or choose another --out"
# An NFS 4 server frees the locks of a machine that went down when its lease, of 90 s, ends.
RESTART_S = 100.0

_BEAT_S = 5.0
_GONE_S = 20.0  # a holder without a beat for this long has ended
_SETTLE_S = 2.0
_RETRY_S = 0.2
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
_IS_LOCKED = {errno.EAGAIN, errno.EACCES, errno.EDEADLK}

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # locked bytes cannot be read, so not those of the record
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


class InUse(ValueError):
    """Another process has locked the folder."""


@contextmanager
def locked(folder: Path, *, remedy: str, option: str = "--out", patience_s: float = 0.0) -> Iterator[None]:
    """Within this context this process has the folder's lock. A missing folder is created.

    Args:
        remedy, option: for errors: what to do, and what names the folder.
        patience_s: seconds to wait for the lock.

    Raises:
        InUse: another process has the lock.
        ValueError, OSError: the folder cannot be created or written to, or the lock is not a regular file.
    """
    check_folder(folder, option)
    created = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path, end = folder / LOCK, time.monotonic() + patience_s
    try:
        check_replaceable([path])
        while (lock := _Lock.acquire(path)) is None:
            if time.monotonic() >= end:
                raise InUse(f"{folder} is in use by {_describe_holder(path)}; {remedy}")
            time.sleep(_RETRY_S)
        try:
            yield
        finally:
            lock.release()
    finally:
        with suppress(OSError):  # not empty
            for place in created:
                place.rmdir()


class _Lock:
    """The lock of this process; ``is_enforced`` if the operating system keeps others out."""

    def __init__(self, path: Path, descriptor: int, *, is_enforced: bool) -> None:
        self.path, self.descriptor, self.is_enforced = path, descriptor, is_enforced
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        self.record = json.dumps({"host": platform.node(), "pid": os.getpid(), "since": since}).encode()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)

    @classmethod
    def acquire(cls, path: Path) -> _Lock | None:
        """Acquire the lock; None if another process has it."""
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
        while True:
            descriptor, is_acquired, is_enforced = os.open(path, flags, 0o666), False, True
            try:
                try:
                    _lock(descriptor)
                except OSError as error:
                    if error.errno in _IS_LOCKED:
                        return None
                    if error.errno not in _NO_LOCKS:
                        raise
                    is_enforced = False
                if not _is_file(path, descriptor):
                    continue  # its holder has just removed it
                lock = cls(path, descriptor, is_enforced=is_enforced)
                try:
                    is_acquired = lock._write_record()
                except OSError as error:  # a full disk does not name the file
                    path.unlink(missing_ok=True)
                    error.filename = error.filename or str(path)
                    raise
                return lock if is_acquired else None
            finally:
                if not is_acquired:
                    os.close(descriptor)

    def _write_record(self) -> bool:
        """Record this process as the holder; False if another process is it."""
        before = _read(self.path)
        is_here = before.startswith(self.record.partition(b", ")[0])  # its holder is on this machine
        if before and not (self.is_enforced and is_here) and _is_beating(self.path):
            return False
        os.ftruncate(self.descriptor, 0)
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        os.write(self.descriptor, self.record)
        if not self.is_enforced:
            time.sleep(_SETTLE_S)  # if several processes write at once, the last one is the holder
            if _read(self.path) != self.record:
                return False
            log.warning(
                "%s: this file system has no locks; only this file shows other processes that it is in use",
                self.path,
            )
        _held.add(self.descriptor)
        self._thread.start()
        return True

    def _beat(self) -> None:
        while not self._released.wait(_BEAT_S):
            if not self.is_enforced and _read(self.path) != self.record:
                holder = _describe_holder(self.path)
                log_last(f"bitad: error: {self.path.parent} was taken over by {holder}; this process ends")
                os._exit(1)
            with suppress(OSError):
                os.utime(self.path)

    def release(self) -> None:
        self._released.set()
        self._thread.join()
        _held.discard(self.descriptor)
        if os.name == "nt":  # where open files cannot be removed, neither this one nor that of a new holder
            os.close(self.descriptor)
        with suppress(OSError):
            self.path.unlink()
        if os.name != "nt":  # first removed: a new holder's file would be, too
            os.close(self.descriptor)


_held: set[int] = set()


def _close_in_child() -> None:
    # A forked process shares the lock, which must not outlive its holder.
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


def _is_beating(path: Path) -> bool:
    end = time.monotonic() + _GONE_S
    first = _state(path)
    while time.monotonic() < end:
        time.sleep(_RETRY_S)
        if _state(path) != first:
            return bool(_read(path))  # empty: it has been released
    return False


def _state(path: Path) -> tuple[bytes, int]:
    try:
        return path.read_bytes(), path.stat().st_mtime_ns  # opening it makes a shared disk refresh the time
    except OSError:
        return b"", 0


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _describe_holder(path: Path) -> str:
    time.sleep(_RETRY_S)  # a new holder may not have written its record yet
    try:
        record = json.loads(_read(path))
        return f"process {record['pid']} on {record['host']} since {record['since']}"
    except (ValueError, LookupError, TypeError):
        return "another process"
