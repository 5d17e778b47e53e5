"""What a run survives: a wish to stop, damaged checkpoints, a full disk, bad steps, another number of processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import config_of, feature_data
from full_disk import files_of_at_most
from processes import Running
from runs import ALONE, assert_same_run, records

from bitad.cli import main
from bitad.runtime.distributed import Ranks
from bitad.runtime.workers import Stopped
from bitad.training.trainer import Trainer
from bitad.weights.checkpoint import load_checkpoint

# Depends on PyTorch's random numbers; 2 epochs of 4 steps.
RANDOM = ("model.dropout=0.2", "model.drop_path=0.2", "training.windows_per_video=2", "training.epochs=2")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return feature_data(tmp_path_factory.mktemp("features") / "data")


@pytest.fixture(scope="module")
def whole(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted."""
    config = config_of(features, *RANDOM, f"output={tmp_path_factory.mktemp('whole')}")
    Trainer(config, ALONE).run()
    return config.run_directory


def during(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, step: int, happens: Any) -> None:
    """Something happens within a step."""
    train_step = trainer._take_step

    def with_it(*arguments: Any) -> Any:
        if trainer.step == step:
            happens()
        return train_step(*arguments)

    monkeypatch.setattr(trainer, "_take_step", with_it)


# Being asked to stop.


# The first and the last step of the run and of an epoch, and one between.
@pytest.mark.parametrize(("step", "number"), [*((s, signal.SIGTERM) for s in (0, 3, 4, 5, 7)), (5, signal.SIGINT)])
def test_a_run_that_is_asked_to_stop_stops_after_its_step_and_resumes_from_there(
    features: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, step: int
) -> None:
    config = config_of(features, *RANDOM, f"output={tmp_path}")
    trainer = Trainer(config, ALONE)
    during(trainer, monkeypatch, step, lambda: os.kill(os.getpid(), number))
    where = rf"after step {step % 4 + 1} of 4 of epoch {step // 4 + 1}; .*--resume"
    with pytest.raises(Stopped, match=where) as stopped:
        trainer.run()
    assert stopped.value.status == 128 + number
    saved = load_checkpoint(config.run_directory / "last.pt").training
    assert saved is not None
    assert (saved["step"], saved["done"]) == (step + 1, step % 4 + 1)
    torch.manual_seed(99)  # a new process knows nothing of the old one's random numbers
    Trainer(config, ALONE, resume=True).run()
    assert_same_run(whole, config.run_directory)


def test_a_run_that_is_asked_to_stop_while_it_is_tested_tests_again(
    features: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(features, *RANDOM, f"output={tmp_path}")
    trainer = Trainer(config, ALONE)
    monkeypatch.setattr(trainer, "_evaluate", lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match="while testing epoch 1; resume from"):
        trainer.run()
    assert load_checkpoint(config.run_directory / "last.pt").evaluation is None
    Trainer(config, ALONE, resume=True).run()
    assert_same_run(whole, config.run_directory)


def test_afterwards_signals_mean_what_they_meant(features: Path, tmp_path: Path) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    Trainer(config_of(features, f"output={tmp_path}", "training.epochs=1"), ALONE).run()
    assert {number: signal.getsignal(number) for number in before} == before


def test_the_command_says_where_it_stopped_and_with_what_status(features: Path, tmp_path: Path) -> None:
    """A process of its own, with workers that get the signal too, as of a terminal or a scheduler."""
    options = ("training.epochs=4000", "training.workers=1", "training.evaluate_every=4000", f"output={tmp_path}")
    process = Running("train", features, *options, "--device", "cpu", new_session=True)
    run = tmp_path / "tiny-forward-seed0"
    while not (run / "last-1.pt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM
    last = said.splitlines()[-1]
    assert last.startswith("bitad train: stopped after step ")
    assert (run / "log.txt").read_text().splitlines()[-1].endswith(last)
    assert "Traceback" not in said
    assert load_checkpoint(run / "last.pt").training is not None


# Checkpoints.


def test_a_run_that_dies_resumes_from_its_last_checkpoint_within_the_epoch(
    features: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(features, *RANDOM, f"output={tmp_path}", "training.checkpoint_steps=3")
    trainer = Trainer(config, ALONE)

    def die() -> None:
        raise RuntimeError("out of memory")

    during(trainer, monkeypatch, 7, die)  # the last step
    with pytest.raises(RuntimeError):
        trainer.run()
    saved = load_checkpoint(config.run_directory / "last.pt")
    assert saved.training is not None
    assert (saved.epoch, saved.training["done"]) == (1, 2)
    resumed = Trainer(
        config_of(features, *RANDOM, f"output={tmp_path}"), ALONE, resume=True
    )  # the option may change
    resumed.run()
    assert_same_run(whole, config.run_directory)


@pytest.mark.parametrize("keep", [1, 3])
def test_the_last_checkpoints_are_kept_each_of_its_epoch(features: Path, tmp_path: Path, keep: int) -> None:
    config = config_of(features, f"output={tmp_path}", "training.epochs=4", f"training.keep_last={keep}")
    Trainer(config, ALONE).run()
    kept = {path.name: load_checkpoint(path).epoch for path in config.run_directory.glob("last*.pt")}
    assert kept == dict(list({"last.pt": 4, "last-1.pt": 3, "last-2.pt": 2}.items())[:keep])
    assert load_checkpoint(config.run_directory / "last.pt").evaluation is not None


def test_a_damaged_checkpoint_is_said_and_the_one_before_it_used(
    features: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", str(features), *RANDOM, f"output={tmp_path}", "--device", "cpu"]
    assert main([*arguments, "--until", "2"]) == 0
    run = tmp_path / "tiny-forward-seed0"
    content = bytearray((run / "last.pt").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (run / "last.pt").write_bytes(content)
    capsys.readouterr()
    assert main([*arguments, "--resume"]) == 0
    assert_same_run(whole, run)
    (run / "last.pt").write_bytes(b"")
    (run / "last-1.pt").write_bytes(b"")
    assert main([*arguments, "--resume"]) == 1
    assert "last-1.pt" in capsys.readouterr().err


def test_what_is_wrong_with_a_damaged_checkpoint_is_logged(
    features: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(features, *RANDOM, f"output={tmp_path}")
    Trainer(config, ALONE).run(until=2)
    (config.run_directory / "last.pt").write_bytes(b"PK")
    monkeypatch.setattr("bitad.runtime.log.log.propagate", True)
    resumed = Trainer(config, ALONE, resume=True)
    assert resumed.epoch == 1
    assert f"resuming from {config.run_directory / 'last-1.pt'}, the one before it" in caplog.text


# A full disk.


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder that is a disk of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here (it takes Linux and its root)")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def nearly_full(disk: Path, left: int) -> Iterator[None]:
    """Within, so many bytes can be written there."""
    state = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(max(0, state.f_bavail * state.f_frsize - left)))
    try:
        yield
    finally:
        (disk / "filler").unlink()


def trains(features: Path, output: Path) -> Callable[..., int]:
    """The command that trains, or resumes with ``--resume``."""
    return lambda *more: main(["train", str(features), *RANDOM, f"output={output}", "--device", "cpu", *more])


def says_what_it_could_not_write(run: Path, why: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The name of the file; what was there before is still of use, and nothing half written is."""
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bitad train: error: {why}: '{run}{os.sep}")
    assert line.endswith("; free some space and run the command again (bitad train resumes with --resume)")
    assert list(run.glob(".*")) == []
    for name in ("last.pt", "best.pt"):
        load_checkpoint(run / name).network()
    return Path(line.split("'")[1]).name


def resumes(train: Callable[..., int], run: Path, whole: Path) -> None:
    assert train("--resume") == 0
    assert_same_run(whole, run)


# In sizes of a checkpoint: less than one; one, but not what testing finds.
@pytest.mark.parametrize(("left", "unwritten"), [(0.15, "last.pt"), (0.75, "last.pt"), (1.1, "detections.json")])
def test_a_run_whose_disk_is_full_says_so_and_resumes_as_if_it_had_not_been(
    features: Path, whole: Path, disk: Path, capsys: pytest.CaptureFixture[str], left: float, unwritten: str
) -> None:
    train, run = trains(features, disk), disk / whole.name
    assert train("--until", "1") == 0
    before = (run / "last.pt").read_bytes()
    with nearly_full(disk, int(left * len(before))):
        assert train("--resume") == 1
    assert says_what_it_could_not_write(run, "[Errno 28] No space left on device", capsys) == unwritten
    assert ((run / "last.pt").read_bytes() == before) == (unwritten == "last.pt")
    resumes(train, run, whole)


@pytest.mark.slow
@pytest.mark.parametrize("left", [0.0, 0.02, 0.4, 0.98, 1.0, 1.02, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8])
def test_however_full_the_disk_is_a_run_resumes_as_if_it_had_not_been(
    features: Path, whole: Path, disk: Path, capsys: pytest.CaptureFixture[str], left: float
) -> None:
    train, run = trains(features, disk), disk / whole.name
    assert train("--until", "1") == 0
    with nearly_full(disk, int(left * (run / "last.pt").stat().st_size)):
        status = train("--resume")
    if status:
        says_what_it_could_not_write(run, "[Errno 28] No space left on device", capsys)
    else:
        assert left > 1.5
    resumes(train, run, whole)


def test_a_run_whose_files_can_grow_no_more_resumes_as_if_they_could(
    features: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, run = trains(features, tmp_path), tmp_path / whole.name
    assert train("--until", "1") == 0
    before = (run / "last.pt").read_bytes()
    with files_of_at_most(len(before) // 2):
        assert train("--resume") == 1
    assert says_what_it_could_not_write(run, "[Errno 27] File too large", capsys) == "last.pt"
    assert (run / "last.pt").read_bytes() == before
    resumes(train, run, whole)


def test_a_run_whose_disk_is_full_before_its_first_checkpoint_starts_again(
    features: Path, whole: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, run = trains(features, disk), disk / whole.name
    with nearly_full(disk, 100_000):
        assert train() == 1
    assert f"No space left on device: '{run / 'last.pt'}'; free some space" in capsys.readouterr().err
    assert train() == 0
    assert_same_run(whole, run)


# Steps that cannot be taken.


def test_nonfinite_steps_are_skipped_and_too_many_in_a_row_stop_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = feature_data(tmp_path / "data", training=4)
    broken = tmp_path / "data" / "features" / "train_1.npy"
    np.save(broken, np.load(broken) + np.float32(1e38))
    quick = ("training.batch=1", "training.epochs=2", "training.evaluate_from=2")
    config = config_of(path, *quick, "training.max_nonfinite_steps=2", f"output={tmp_path / 'two'}")
    monkeypatch.setattr("bitad.runtime.log.log.propagate", True)
    trainer = Trainer(config, ALONE)
    trainer.run()
    skipped = {message for message in caplog.messages if message.endswith("(videos train_1); the step is skipped")}
    assert len(skipped) == 2  # once an epoch
    assert all(torch.isfinite(parameter).all() for parameter in trainer.network.parameters())
    assert trainer.step == 8
    with pytest.raises(ValueError, match=r"not finite at step .*\(videos train_1\)"):
        Trainer(config_of(path, *quick, f"output={tmp_path / 'one'}"), ALONE).run()


# Another number of processes.


def test_with_another_number_of_processes_a_run_resumes_where_it_stands_and_says_so(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(features, *RANDOM, f"output={tmp_path}", "training.batch=1")
    one = Trainer(config, ALONE)  # 8 steps an epoch
    during(one, monkeypatch, 12, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match="after step 5 of 8 of epoch 2"):
        one.run()

    class Two(Ranks):
        """The first of two processes; the other does nothing here."""

        def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
            return model

        def gather(self, piece: Any) -> list[Any]:
            return [piece]

        def total(self, number: torch.Tensor) -> torch.Tensor:
            return number

    monkeypatch.setattr("bitad.runtime.log.log.propagate", True)
    two = Trainer(config, Two(0, 2, torch.device("cpu")), resume=True)  # 4 steps an epoch
    assert "the run had 1 processes and now has 2" in caplog.text
    assert (two.epoch, two.epoch_step, two.step) == (1, 2, 6)
    fresh = Trainer(config.model_copy(update={"output": tmp_path / "new"}), Two(0, 2, torch.device("cpu")))
    for mine, theirs in zip(two.train_step.learners, fresh.train_step.learners, strict=True):
        for _ in range(6):
            theirs.optimizer.step()
            theirs.schedule.step()
        assert mine.schedule.get_last_lr() != [0.0]
        assert [group["lr"] for group in mine.optimizer.param_groups] == pytest.approx(
            theirs.schedule.get_last_lr()
        )
    before = records(config.run_directory)
    two.run(until=2)
    assert (two.epoch, two.step) == (2, 8)
    assert records(config.run_directory)[: len(before)] == before
