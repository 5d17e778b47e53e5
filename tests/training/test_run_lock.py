"""One writer to a run directory, or a folder of results: the second one is told who writes there."""

from __future__ import annotations

import errno
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from builders import config_of, feature_data
from processes import of_two_processes

from bitad import locking
from bitad.cli import main
from bitad.locking import LOCK, InUse, locked
from bitad.training.checkpoint import load_checkpoint

LONG = ("training.epochs=4000", "training.warmup_epochs=0", "training.evaluate_every=4000")


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return feature_data(tmp_path_factory.mktemp("features") / "data")


@contextmanager
def training(path: Path, *overrides: str) -> Iterator[subprocess.Popen[str]]:
    """A training in a process of its own, of which there is a checkpoint already."""
    config = config_of(path, *overrides)
    command = [sys.executable, "-m", "bitad", "train", str(path), *overrides, "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        while not (config.run_directory / "last-1.pt").exists():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has locked a folder."""
    program = "import sys; from pathlib import Path; from bitad.locking import locked\n"
    program += "with locked(Path(sys.argv[1]), remedy='wait'): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("how", [(), ("--resume",)])
def test_of_two_trainings_in_a_run_directory_the_second_ends_with_a_line_and_changes_nothing(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: tuple[str, ...]
) -> None:
    overrides = (*LONG, f"output={tmp_path}")
    run = config_of(features, *overrides).run_directory
    with training(features, *overrides) as first:
        first.send_signal(signal.SIGSTOP)  # alive, but writing nothing
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        assert main(["train", str(features), *overrides, "training.lr=1e-4", *how, "--device", "cpu"]) == 1
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    (line,) = capsys.readouterr().err.splitlines()
    since = json.loads(before[run / LOCK])["since"]
    assert line.startswith(
        f"bitad train: error: {run} is in use by process {first.pid} on {platform.node()} since {since}; wait until "
    )


def test_a_killed_training_leaves_a_run_that_can_be_resumed_at_once(features: Path, tmp_path: Path) -> None:
    overrides = (*LONG, f"output={tmp_path}", "training.workers=1")
    run = config_of(features, *overrides).run_directory
    with training(features, *overrides) as first:
        first.kill()
        first.wait()  # its reader may live some seconds longer
        epoch = load_checkpoint(run / "last.pt").epoch
        until = str(epoch + 1)
        assert main(["train", str(features), *overrides, "--resume", "--until", until, "--device", "cpu"]) == 0
    assert load_checkpoint(run / "last.pt").epoch == epoch + 1
    assert not (run / LOCK).exists()


def test_a_restart_by_torchrun_waits_for_the_processes_before_it_to_end(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = (*LONG, f"output={tmp_path}", "--until", "1", "--device", "cpu")
    run = tmp_path / config_of(features).run_directory.name
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with holder(run) as before:
        threading.Timer(1, before.kill).start()
        assert main(["train", str(features), *overrides]) == 0
        assert before.poll() == -signal.SIGKILL
    assert (run / "last.pt").is_file()


def test_all_processes_of_a_training_end_where_its_run_directory_is_in_use(features: Path, tmp_path: Path) -> None:
    overrides = (*LONG, f"output={tmp_path}")
    run = config_of(features, *overrides).run_directory
    with holder(run) as first:
        ended = of_two_processes("train", features, *overrides, "--device", "cpu")
    for status, _, said in ended:
        assert status == 1
        assert f"in use by process {first.pid} on" in said.splitlines()[-1]
    assert [path.name for path in run.iterdir()] == [LOCK]


@pytest.mark.parametrize(
    "command",
    [("test", "{run}", "--out", "{out}"), ("report", "{run}", "--out", "{out}"), ("demo", "--smoke", "--out", "{out}")],
)
def test_commands_that_write_results_refuse_a_folder_in_use_before_any_work(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    overrides = ("training.epochs=1", "training.warmup_epochs=0", f"output={tmp_path}")
    assert main(["train", str(features), *overrides, "--device", "cpu"]) == 0
    capsys.readouterr()
    run, out = config_of(features, *overrides).run_directory, tmp_path / "out"
    with holder(out) as first:
        assert main([word.format(run=run, out=out) for word in command]) == 1
        assert [path.name for path in out.iterdir()] == [LOCK]
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{out} is in use by process {first.pid} on" in line
    assert line.endswith("or choose another --out")


# The lock by itself.


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
from bitad.locking import locked
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
    for name, seconds in (("_BEAT_S", 0.1), ("_GONE_S", 0.6), ("_SETTLE_S", 0.1), ("_SECONDS_BETWEEN_TRIES", 0.05)):
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
    monkeypatch.setattr("bitad.log.log.propagate", True)
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
def test_a_living_holder_on_another_machine_is_noticed_where_locks_do_not_reach_it(tmp_path: Path, lives: bool) -> None:
    path = tmp_path / LOCK
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "since": "yesterday"}))
    program = "import os, sys, time\nfor _ in range(100): os.utime(sys.argv[1]); time.sleep(0.1)"
    beating = subprocess.Popen([sys.executable, "-c", program, str(path)]) if lives else None
    try:
        if lives:
            with pytest.raises(InUse, match="process 1 on elsewhere since yesterday"), locked(tmp_path, remedy="wait"):
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
from bitad.locking import locked
with tempfile.TemporaryDirectory() as folder, locked(pathlib.Path(folder), remedy="wait"):
    print("held")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, text=True)
    assert ended.stdout == "held\n", ended.stderr
