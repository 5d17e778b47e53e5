"""What a command says reaches standard error, and what a run says its `log.txt` too, whenever and whoever says it."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from builders import config_of, feature_data, video_data
from processes import Running, of_two_processes, ranks

from bitad.cli import main
from bitad.inference import detect as testing
from bitad.runtime.log import log
from bitad.training.trainer import Trainer

QUICK = ("training.epochs=2", "training.warmup_epochs=0", "training.evaluate_from=1")
LOG_FILE = "log.txt"
LINE = re.compile(r"\d\d:\d\d:\d\d .")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return feature_data(tmp_path / "data")


def train(path: Path, *more: str) -> int:
    return main(["train", str(path), *QUICK, *more, "--device", "cpu"])


def logged(path: Path) -> str:
    """What is in the log of the run."""
    return (config_of(path, *QUICK).run_directory / LOG_FILE).read_text(encoding="utf-8")


def test_videos_left_out_at_the_start_are_in_the_log(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path.parent / "features" / "train_1.npy").unlink()
    assert train(path, "training.on_read_error=skip") == 0
    for said in (logged(path), capsys.readouterr().err):
        assert said.count("training video train_1 is left out: ") == 1
        assert all(LINE.match(line) for line in said.splitlines())


def test_a_warm_up_that_was_cut_to_the_schedule_is_in_the_log(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text(path.read_text().replace("warmup_epochs: 0.5", "warmup_epochs: 3"))
    assert "warmup_epochs: 3" in path.read_text()
    assert main(["train", str(path), "training.epochs=2", "training.evaluate_from=1", "--device", "cpu"]) == 0
    for said in (logged(path), capsys.readouterr().err):
        assert said.count("training.warmup_epochs is 0.2, a tenth of the schedule of 2 epochs, instead of 3") == 1


def test_an_older_checkpoint_and_another_number_of_processes_are_in_the_log(path: Path) -> None:
    assert train(path, "--until", "1") == 0
    run = config_of(path, *QUICK).run_directory
    (run / "last-1.pt").write_bytes((run / "last.pt").read_bytes())
    (run / "last.pt").write_bytes(b"PK")
    ended = of_two_processes("train", path, *QUICK, "training.batch=2", "--resume", "--device", "cpu")
    assert [status for status, *_ in ended] == [0, 0], ended
    said = logged(path)
    assert "last-1.pt, the one before it" in said
    assert said.count("the run had 1 processes and now has 2") == 1


def test_warnings_of_libraries_are_in_the_log_in_one_line(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Trainer.run

    def warn(trainer: Trainer, **options: int | None) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("this will\nchange", FutureWarning, stacklevel=1)
        return run(trainer, **options)

    monkeypatch.setattr(Trainer, "run", warn)
    showed = warnings.showwarning
    assert train(path, "--until", "1") == 0
    for said in (logged(path), capsys.readouterr().err):
        assert re.search(
            r"^\d\d:\d\d:\d\d FutureWarning: this will change \(.*test_run_log.py, line \d+\)$", said, re.M
        )
    assert warnings.showwarning is showed


def test_the_error_that_ends_a_run_is_in_its_log_and_once_on_standard_error(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = path.parent / "features" / "train_1.npy"
    np.save(bad, np.load(bad) + np.float32(1e38))
    assert train(path, "training.batch=1") == 1
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("bitad train: error: ")
    assert logged(path).splitlines()[-1][9:] == last


def test_a_failed_first_start_leaves_nothing_and_can_be_repeated(path: Path) -> None:
    gone = path.parent / "features" / "train_1.npy"
    content = gone.read_bytes()
    gone.unlink()
    assert train(path) == 1
    assert not config_of(path).run_directory.exists()
    gone.write_bytes(content)
    assert train(path, "--until", "1") == 0


def test_a_refused_start_writes_nothing_into_the_log_of_the_run(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(path, "--until", "1") == 0
    before = logged(path)
    assert train(path) == 1
    assert "exists; use --resume" in capsys.readouterr().err
    assert logged(path) == before
    assert main(["train", str(path), "name=misspelt", "--resume"]) == 1
    assert not config_of(path, "name=misspelt").run_directory.exists()


def test_what_other_processes_have_to_say_is_in_the_log_with_their_number(path: Path) -> None:
    program = """
import os, sys
from bitad.cli import main
from bitad.runtime.log import log
from bitad.training.trainer import Trainer
run = Trainer.run
def said(trainer, **options):
    log.info("all is well")
    log.warning("something is strange")
    return run(trainer, **options)
Trainer.run = said
sys.exit(main(sys.argv[1:]))
"""
    with ranks(2, "train", path, *QUICK, "training.batch=1", "--device", "cpu", program=program) as both:
        said = [process.communicate(timeout=100)[1] for process in both]
        assert [process.returncode for process in both] == [0, 0], said
    lines = [line[9:] for line in logged(path).splitlines()]
    assert [lines.count(line) for line in ("something is strange", "process 1: something is strange")] == [1, 1]
    assert [lines.count(line) for line in ("all is well", "process 1: all is well")] == [1, 0]
    assert "process 1: something is strange" in said[1]


def test_a_failure_of_another_process_is_in_the_log(tmp_path: Path) -> None:
    path = feature_data(tmp_path / "data")
    for name in ("train_0", "train_1", "train_2", "train_3"):
        bad = path.parent / "features" / f"{name}.npy"
        np.save(bad, np.load(bad) + np.float32(1e38))
    ended = of_two_processes("train", path, *QUICK, "training.batch=1", "--device", "cpu")
    assert [status for status, *_ in ended] == [1, 1]
    assert re.search(r"^\d\d:\d\d:\d\d process 1: bitad\b.*: error: ", logged(path), re.M)


@pytest.mark.skipif(not Path("/proc").exists(), reason="this system does not list processes there")
def test_a_training_whose_reader_is_killed_ends_with_a_line_that_names_it(tmp_path: Path) -> None:
    path = video_data(tmp_path / "data", training=4)
    options = (
        "training.epochs=4000",
        "training.evaluate_every=4000",
        "training.workers=2",
        "training.warmup_epochs=0",
    )
    run = config_of(path).run_directory
    process = Running("train", path, *options, "--device", "cpu")
    try:
        while not (run / "last.pt").exists():
            assert process.poll() is None
            time.sleep(0.02)
        readers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(readers[-1]), signal.SIGKILL)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1
    *_, last = said.splitlines()
    named = rf"was reading video train_\d|reads videos \(process {readers[-1]}\)"
    assert re.match(rf"bitad train: error: a process that ({named}) ended unexpectedly: Killed", last), last
    assert (run / LOG_FILE).read_text(encoding="utf-8").splitlines()[-1][9:] == last
    assert "Traceback" not in said
    assert not any(Path(f"/proc/{reader}").exists() for reader in readers)


def test_other_commands_say_warnings_in_the_format_of_the_log(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(path, "--until", "1") == 0
    run_directory = config_of(path).run_directory
    detect = testing.detect

    def strange(*arguments: object, **keywords: object) -> object:
        log.warning("something is strange")
        return detect(*arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(testing, "detect", strange)
    capsys.readouterr()
    handlers = log.handlers
    assert main(["test", str(run_directory), "--device", "cpu"]) == 0
    assert re.search(r"^\d\d:\d\d:\d\d something is strange$", capsys.readouterr().err, re.M)
    assert log.handlers == handlers
    assert "strange" not in logged(path)
    assert multiprocessing.active_children() == []
