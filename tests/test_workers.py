"""Jobs in several processes: one that dies costs its own job, and none outlives its parent. With real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from bitad.runtime.workers import in_processes
from bitad.video.reader import probe
from bitad.video.writer import write_video

# A module of jobs: processes that are begun afresh must find it.
JOBS = """
import os, signal, sys, time
from contextlib import closing
from pathlib import Path

from bitad.runtime.workers import in_processes


def work(value, place):
    if value == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if value == "raises":
        raise ValueError(f"{value} here")
    if value == "waits":
        partial = Path(place) / f"{os.getpid()}.partial"
        partial.touch()
        try:
            time.sleep(100)
        finally:
            partial.unlink()
    return value * 2


if __name__ == "__main__":
    jobs = [(value, sys.argv[1]) for value in sys.argv[2:]]
    with closing(in_processes(work, jobs, workers=2)) as results:
        for number, result in results:
            print(number, type(result).__name__, result, flush=True)
"""


@pytest.fixture
def jobs(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Begins a program that does jobs of these values in two processes."""
    program = tmp_path / "jobs.py"
    program.write_text(JOBS)

    def begin(*values: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(program), str(tmp_path), *values]
        return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    return begin


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> bool:
    """Whether a condition becomes true in this time."""
    end = time.monotonic() + seconds
    while not (fulfilled := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return fulfilled


def runs(process: int) -> bool:
    """Whether a process of this number runs: a dead child that nobody has asked about does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def children(process: int) -> list[int]:
    """The processes that a process has begun to work for it."""
    begun = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in begun if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]


def test_every_job_is_done_once_whatever_others_end_in(jobs: Callable[..., subprocess.Popen[str]]) -> None:
    values = ["a", "dies", "b", "raises", "dies", "c", "d"]
    out, err = jobs(*values).communicate(timeout=60)
    said = {int(line.split()[0]): line.split(maxsplit=2)[1:] for line in out.splitlines()}
    assert [said[number][1] for number in (0, 2, 5, 6)] == ["aa", "bb", "cc", "dd"]
    assert said[3] == ["ValueError", "raises here"]
    for number in (1, 4):
        assert said[number][0] == "ChildProcessError"
        assert "was ended by SIGKILL" in said[number][1]
    assert len(said) == len(values)
    assert err == ""


def test_no_jobs_need_no_process() -> None:
    assert list(in_processes(abs, [], workers=2)) == []


def test_a_loop_that_ends_early_ends_the_processes() -> None:
    with closing(in_processes(abs, [(-i,) for i in range(9)], workers=2)) as results:
        number, result = next(results)
        assert result == number
        mine = children(os.getpid())
        assert mine
    assert not any(map(runs, mine))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="the processes are looked up in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_its_parent_nor_leaves_what_it_had_begun(
    jobs: Callable[..., subprocess.Popen[str]], tmp_path: Path, how: signal.Signals
) -> None:
    parent = jobs("waits", "waits", "a")
    assert wait_for(lambda: len(list(tmp_path.glob("*.partial"))) == 2)
    own = [int(path.stem) for path in tmp_path.glob("*.partial")]
    parent.send_signal(how)
    parent.communicate(timeout=30)
    assert wait_for(lambda: not any(map(runs, own)))
    assert not list(tmp_path.glob("*.partial")) or how == signal.SIGTERM  # unhandled, that kills as SIGKILL does


@pytest.fixture
def film_folder(tmp_path: Path) -> Path:
    """Four films that take a while to reverse."""
    folder = tmp_path / "films"
    folder.mkdir()
    frames = np.random.default_rng(0).integers(0, 256, (120, 180, 240, 3), np.uint8)
    write_video(folder / "v0.mp4", frames, fps=30, crf=30, preset="ultrafast")
    for number in range(1, 4):
        (folder / f"v{number}.mp4").write_bytes((folder / "v0.mp4").read_bytes())
    return folder


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="the processes are looked up in /proc")
def test_a_killed_process_of_reverse_costs_its_video_and_no_other(film_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "reversed"
    command = [sys.executable, "-m", "bitad", "reverse", str(film_folder), str(out), "--workers", "2"]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    # A temporary file shows that a video is being written.
    assert wait_for(lambda: out.is_dir() and any(path.name.startswith(".") for path in out.iterdir()))
    os.kill(children(process.pid)[0], signal.SIGKILL)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "3 reversed, 0 kept from before, 1 failed" in said
    (line,) = [line for line in errors.splitlines() if "error" in line]
    assert "was ended by SIGKILL" in line
    assert sum(probe(path).frames == 120 for path in out.glob("v*.mp4")) == 3
    # The next run does what is left, and nothing of the killed process stays.
    again = subprocess.run(command, text=True, capture_output=True, timeout=120, check=True)
    assert "1 reversed, 3 kept from before, 0 failed" in again.stdout
    assert sorted(path.name for path in out.glob("*.mp4")) == [f"v{number}.mp4" for number in range(4)]
    assert not [path for path in out.iterdir() if path.name.endswith(".tmp")]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="the processes are looked up in /proc")
def test_killed_reverse_leaves_no_process_and_no_partial_file(film_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "reversed"
    command = [sys.executable, "-m", "bitad", "reverse", str(film_folder), str(out), "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert wait_for(lambda: out.is_dir() and any(path.name.startswith(".") for path in out.iterdir()))
    workers = children(process.pid)
    process.kill()
    process.wait()
    assert wait_for(lambda: not any(map(runs, workers)))
    whole = [path for path in out.iterdir() if not path.name.startswith(".")]
    assert all(probe(path).frames == 120 for path in whole)
    assert not [path for path in out.iterdir() if path.name.endswith(".tmp")]
