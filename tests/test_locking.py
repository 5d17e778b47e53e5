"""The lock of a folder: it ends with its holder, and is noticed on every file system."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from processes import holder

from bitad.runtime import locking
from bitad.runtime.locking import LOCK, InUse, locked


def test_a_lock_leaves_nothing_behind(tmp_path: Path) -> None:
    with locked(tmp_path / "new", remedy="wait"):
        assert (tmp_path / "new" / LOCK).is_file()
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path, remedy="wait"), pytest.raises(InUse), locked(tmp_path, remedy="wait"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_waits_for_a_holder_that_is_dying(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        threading.Timer(0.5, first.kill).start()
        with locked(tmp_path, remedy="wait", patience_s=30):
            assert first.wait(5) == -signal.SIGKILL


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_does_not_hold_the_lock_of_its_parent(tmp_path: Path) -> None:
    program = """
import os, signal, sys, time
from pathlib import Path
from bitad.runtime.locking import locked
with locked(Path(sys.argv[1]), remedy="wait"):
    parent = os.getpid()
    if not os.fork():
        os.write(1, b"%d\\n" % os.getpid())  # by now it has given up its parent's lock
        os.kill(parent, signal.SIGKILL)
        time.sleep(30)
        os._exit(0)
    time.sleep(30)
"""
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert parent.wait() == -signal.SIGKILL
    parent.stdout.close()
    try:
        with locked(tmp_path, remedy="wait"):
            os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_lock_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK).symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match=LOCK), locked(tmp_path / "out", remedy="wait"):
        pass
    assert (tmp_path / "victim").read_text() == "precious"


# Where the operating system does not decide.


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("_BEAT_S", 0.1), ("_GONE_S", 0.6), ("_SETTLE_S", 0.1), ("_RETRY_S", 0.05)):
        monkeypatch.setattr(locking, name, seconds)


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(locking, "_lock", refuse)


@pytest.mark.usefixtures("impatient", "no_locks")
def test_without_locks_of_the_file_system_a_living_holder_is_noticed_and_a_dead_one_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitad.runtime.log.log.propagate", True)
    with locked(tmp_path, remedy="wait"):
        assert "this file system has no locks" in caplog.text
        with pytest.raises(InUse, match=f"process {os.getpid()} on "), locked(tmp_path, remedy="wait"):
            pass
    dead = {"host": "elsewhere", "pid": 1, "since": "yesterday"}
    (tmp_path / LOCK).write_text(json.dumps(dead))
    with locked(tmp_path, remedy="wait"):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("lives", [True, False])
def test_a_living_holder_on_another_machine_is_noticed_where_locks_do_not_reach_it(
    tmp_path: Path, lives: bool
) -> None:
    path = tmp_path / LOCK
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "since": "yesterday"}))
    program = "import os, sys, time\nfor _ in range(100): os.utime(sys.argv[1]); time.sleep(0.1)"
    beating = subprocess.Popen([sys.executable, "-c", program, str(path)]) if lives else None
    try:
        if lives:
            with (
                pytest.raises(InUse, match="process 1 on elsewhere since yesterday"),
                locked(tmp_path, remedy="wait"),
            ):
                pass
        else:
            with locked(tmp_path, remedy="wait"):
                pass
    finally:
        if beating is not None:
            beating.kill()
            beating.wait()


def test_the_lock_is_importable_where_there_is_no_fcntl() -> None:
    program = """
import sys, types, logging.handlers, json, platform, threading, datetime, pathlib, contextlib, warnings, tempfile
windows = types.ModuleType("msvcrt")
windows.LK_NBLCK, windows.locking = 2, lambda *arguments: None
sys.modules["msvcrt"], sys.modules["fcntl"] = windows, None
sys.platform = "win32"
from bitad.runtime.locking import locked
with tempfile.TemporaryDirectory() as folder, locked(pathlib.Path(folder), remedy="wait"):
    print("held")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, text=True)
    assert ended.stdout == "held\n", ended.stderr
