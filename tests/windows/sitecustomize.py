"""What BiTAD meets on Windows, in an interpreter that finds this file at its start (PYTHONPATH), and in its children.

* The modules and names that Python has only on POSIX are missing for BiTAD; other packages keep them, as their builds
  for Windows do without. ``sys.platform`` is "win32", ``os.name`` is "nt", and ``msvcrt`` locks files.
* New processes start by "spawn".
* Files that this process holds open, or maps into memory, cannot be replaced or removed.
* Files cannot be created under names that Windows refuses.
* Text without an encoding is an error, because Windows's is not UTF-8.

Source: the "Availability" lines of https://docs.python.org/3/library/os.html and signal.html.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import multiprocessing
import os
import re
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

MISSING_MODULES = {
    *("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix", "readline", "curses"),
    *("crypt", "spwd", "_posixsubprocess", "_posixshmem"),
}
MISSING = {
    "os": re.compile(
        r"fork|forkpty|register_at_fork|sched_\w+|\w*affinity|get[er]?[ug]id|getres[ug]id|getgroups|getgrouplist"
        r"|set(re|res|e)?[ug]id|setgroups|initgroups|getpgid|getpgrp|getsid|setpgid|setpgrp|setsid|killpg|nice|get_?priority"
        r"|setpriority|uname(_result)?|ctermid|tcgetpgrp|tcsetpgrp|openpty|login_tty|ttyname|statvfs(_result)?|fstatvfs|mkfifo"
        r"|mknod|makedev|major|minor|l?chown|fchown|fchmod|lchmod|l?chflags|fchdir|chroot|getloadavg|sysconf(_names)?|confstr\w*"
        r"|f?pathconf|pathconf_names|preadv?|pwritev?|readv|writev|posix_\w+|lockf|wait[34]?|waitid|W[A-Z]+|P_P\w+|pipe2|sendfile"
        r"|copy_file_range|splice|memfd_create|eventfd\w*|pidfd_open|[gsl]etxattr|listxattr|removexattr|setns|unshare|sync"
        r"|fdatasync|getrandom|set_blocking|get_blocking|O_(CLOEXEC|NOFOLLOW|DIRECTORY|NONBLOCK|NDELAY|SYNC|DSYNC|RSYNC|DIRECT"
        r"|NOCTTY|PATH|TMPFILE|NOATIME|ASYNC|ACCMODE|LARGEFILE)|EX_\w+|F_\w+|RTLD_\w+|SCHED_\w+|PRIO_\w+|GRND_\w+|ST_\w+|XATTR_\w+"
        r"|MFD_\w+|CLONE_\w+|fwalk|environb|getenvb|supports_bytes_environ_"
    ),
    "signal": re.compile(
        r"SIG(KILL|HUP|QUIT|USR[12]|ALRM|CHLD|CLD|CONT|STOP|TSTP|TTIN|TTOU|PIPE|WINCH|BUS|TRAP|XCPU|XFSZ|VTALRM|PROF|IO|POLL|PWR"
        r"|SYS|URG|RTMIN|RTMAX|STKFLT)|SIG_(BLOCK|UNBLOCK|SETMASK)|ITIMER_\w+|alarm|pause|[gs]etitimer|siginterrupt|pthread_\w+"
        r"|sigpending|sigwait\w*|sigtimedwait|pidfd_send_signal|ItimerError"
    ),
    "time": re.compile(r"clock_\w+|CLOCK_\w+|pthread_getcpuclockid|tzset"),
    "select": re.compile(r"poll|epoll|kqueue|EPOLL\w+|POLL\w+"),
    "socket": re.compile(r"AF_UNIX|socketpair_|CMSG_\w+|SO_REUSEPORT"),
    "shutil": re.compile(r"chown"),
    "threading": re.compile(r"pthread_\w+"),
    "sys": re.compile(r"getdlopenflags|setdlopenflags|abiflags"),
    "platform": re.compile(r"freedesktop_os_release"),
}
CHANGED: dict[str, dict[str, Any]] = {"os": {"name": "nt"}, "sys": {"platform": "win32"}}
_IS_OURS = re.compile(r"bitad(\.|$)")
_PASSES = {"os", "pathlib", "pathlib._local", "shutil", "tempfile", "contextlib", __name__}
# https://learn.microsoft.com/windows/win32/fileio/naming-a-file
_REFUSED = re.compile(r'[<>:"\\|?*\x00-\x1f]|[ .]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)


class Seen(types.ModuleType):
    """A module without the names that it lacks on Windows."""

    def __init__(self, module: types.ModuleType) -> None:
        super().__init__(module.__name__)
        self.__dict__["_module"] = module

    def __getattr__(self, name: str) -> Any:
        module = self.__dict__["_module"]
        changed = CHANGED.get(module.__name__, {})
        if name in changed:
            return changed[name]
        if MISSING[module.__name__].fullmatch(name):
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r} on Windows")
        return getattr(module, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.__dict__["_module"], name, value)

    def __dir__(self) -> list[str]:
        module = self.__dict__["_module"]
        return [name for name in dir(module) if not MISSING[module.__name__].fullmatch(name)]


def _locking(descriptor: int, mode: int, count: int) -> None:
    del mode, count
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


_msvcrt: Any = types.ModuleType("msvcrt")
_msvcrt.locking, _msvcrt.LK_NBLCK = _locking, 2
_seen: dict[str, types.ModuleType] = {"msvcrt": _msvcrt}
_import = builtins.__import__


def _import_as_on_windows(
    name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
) -> Any:
    if level == 0 and _IS_OURS.match((globals or {}).get("__name__", "")):
        top = name.partition(".")[0]
        if top in MISSING_MODULES:
            raise ModuleNotFoundError(f"No module named {name!r} on Windows", name=name)
        if top in _seen:
            return _seen[top]
        if top in MISSING and not (fromlist and "." in name):
            return _seen.setdefault(top, Seen(_import(top)))
    return _import(name, globals, locals, fromlist, level)


def _asked_by_us() -> bool:
    """Whether the call comes from BiTAD, perhaps through Python's own modules for files."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__") in _PASSES:
        frame = frame.f_back
    return _IS_OURS.match(frame.f_globals.get("__name__", "")) is not None


def _is_open(path: Any) -> bool:
    try:
        there = os.stat(path)
    except OSError:
        return False
    place = (there.st_dev, there.st_ino)
    for number in os.listdir("/proc/self/fd"):
        try:
            if place == ((state := os.fstat(int(number))).st_dev, state.st_ino):
                return True
        except OSError:  # the one that listed the folder
            continue
    real = os.path.realpath(path)
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        return any(line.rstrip("\n").endswith(f" {real}") for line in maps)


def _refusing_open(function: Callable[..., Any]) -> Callable[..., Any]:
    def refusing(*paths: Any, **options: Any) -> Any:
        if _asked_by_us():
            for path in paths:
                if _is_open(path):
                    raise PermissionError(
                        errno.EACCES, "it is open in this process, as on Windows", os.fspath(path)
                    )
        return function(*paths, **options)

    return refusing


def _check_name(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
        path, _, flags = arguments
        if not flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            return
    elif event in ("os.mkdir", "os.rename", "os.link"):
        path = arguments[event != "os.mkdir"]
    else:
        return
    if isinstance(path, str | os.PathLike):
        name = os.path.basename(os.fspath(path))
        if isinstance(name, str) and _REFUSED.search(name) and _asked_by_us():
            raise OSError(errno.EINVAL, "no name of a file on Windows", name)


for _name in ("replace", "rename", "unlink", "remove"):
    setattr(os, _name, _refusing_open(getattr(os, _name)))
sys.addaudithook(_check_name)
warnings.simplefilter("ignore", EncodingWarning)  # of other packages
warnings.filterwarnings("error", category=EncodingWarning, module=r"bitad(\.|$)")
builtins.__import__ = _import_as_on_windows
if multiprocessing.get_start_method(allow_none=True) is None:
    multiprocessing.set_start_method("spawn")
