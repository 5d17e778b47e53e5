"""Videos that cannot be read, or not in time: named, bounded in time, and skipped where that is asked for."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import config_of, video_data
from runs import ALONE
from torch import Tensor

from bitad.config.schema import Config
from bitad.data import dataset
from bitad.data.annotations import AnnotatedVideo
from bitad.data.detections import read_detections
from bitad.data.samples import collate
from bitad.data.sources import VideoFiles
from bitad.runtime.log import log
from bitad.runtime.workers import time_limit
from bitad.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return video_data(tmp_path / "data", training=3)


@pytest.fixture(autouse=True)
def logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "propagate", True)


def reading(monkeypatch: pytest.MonkeyPatch, name: str, does: Callable[[], object]) -> None:
    """Whoever reads this video does something else first."""
    read = VideoFiles.read

    def otherwise(self: VideoFiles, video: AnnotatedVideo, *arguments: Any, **keywords: Any) -> Tensor:
        if video.name == name:
            does()
        return read(self, video, *arguments, **keywords)

    monkeypatch.setattr(VideoFiles, "read", otherwise)


def hang() -> None:
    while True:
        time.sleep(0.05)


def hang_whatever_comes() -> None:
    """As a call of the system that no signal reaches."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    hang()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def damage(path: Path, name: str) -> None:
    """Zeros instead of some of a video's pictures: found only when these are decoded."""
    video = path.parent / "videos" / f"{name}.mp4"
    content = bytearray(video.read_bytes())
    start, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    middle = (start + end) // 2
    content[middle:end] = bytes(end - middle)
    video.write_bytes(content)


def of(path: Path, *overrides: str) -> Config:
    return config_of(path, "training.epochs=2", "training.evaluate_from=2", "training.batch=1", *overrides)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_hanging_and_a_corrupt_video_are_named_and_the_run_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    damage(path, "train_0")
    reading(monkeypatch, "train_1", hang)
    options = ("training.on_read_error=skip", "training.read_timeout_s=0.5", f"training.workers={workers}")
    trainer = Trainer(of(path, *options), ALONE)
    began = time.monotonic()
    trainer.run()
    assert time.monotonic() - began < 60
    assert (trainer.epoch, trainer.step) == (2, 6)
    assert "epoch 1 of 2: 3 windows could not be read and were replaced by others" in caplog.text
    assert "2 of train_1: reading video train_1 took longer than 0.5 s" in caplog.text
    assert "1 of train_0: " in caplog.text
    assert "cannot be decoded (" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_goes_on_whose_test_videos_hang_or_are_corrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    path = video_data(tmp_path / "more", training=1, test=3)
    damage(path, "test_0")
    reading(monkeypatch, "test_2", hang)
    quick = (
        "training.epochs=1",
        "training.warmup_epochs=0",
        f"training.workers={workers}",
        "test.read_timeout_s=0.5",
    )
    config = of(path, *quick, "test.on_read_error=skip")
    began = time.monotonic()
    Trainer(config, ALONE).run()
    assert time.monotonic() - began < 60
    assert "testing: 2 of 3 videos could not be read; actions in them count as not found" in caplog.text
    assert "test_2: reading video test_2 took longer than 0.5 s" in caplog.text
    assert "test_0: " in caplog.text
    found = read_detections(config.run_directory / "detections.json")
    assert set(found.details["unread"]) == {"test_0", "test_2"}
    assert set(found.video.tolist()) == {found.videos.index("test_1")}


@pytest.mark.parametrize(
    ("does", "said"),
    [
        (die, "a process that was reading video train_1 ended unexpectedly: Killed"),
        (hang_whatever_comes, "reading video train_1 took longer than 1 s and could not be interrupted"),
    ],
)
def test_a_process_that_dies_or_that_nothing_interrupts_is_an_error_that_says_what_it_read(
    path: Path, monkeypatch: pytest.MonkeyPatch, does: Callable[[], object], said: str
) -> None:
    monkeypatch.setattr(dataset, "_GRACE_S", 0.3)
    monkeypatch.setattr(dataset, "_CHECK_INTERVAL_S", 0.1)
    reading(monkeypatch, "train_1", does)
    windows = Trainer(
        of(path, "training.workers=2", "training.read_timeout_s=1", "training.on_read_error=skip"), ALONE
    ).windows
    loader = windows.readers.loader(windows, collate_fn=partial(collate, length=32), persistent_workers=True)
    began = time.monotonic()
    with pytest.raises(ChildProcessError, match=said), windows.readers.watched():
        list(loader)
    assert time.monotonic() - began < 20
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 1])
def test_without_being_asked_to_leave_them_out_the_run_ends_in_time_and_names_the_video(
    path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    reading(monkeypatch, "train_2", hang)
    trainer = Trainer(of(path, "training.read_timeout_s=0.5", f"training.workers={workers}"), ALONE)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"reading video train_2 took longer than 0\.5 s"):
        trainer.run()
    assert time.monotonic() - began < 60


def test_videos_that_cannot_even_be_opened_are_left_out_before_training(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (path.parent / "videos" / "train_1.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"train_1\.mp4: not a video"):
        Trainer(of(path), ALONE)
    trainer = Trainer(of(path, "training.on_read_error=skip"), ALONE)
    assert [video.name for video in trainer.windows.videos] == ["train_0", "train_2"]
    assert "training video train_1 is left out: " in caplog.text
    shutil.rmtree(path.parent / "videos")
    with pytest.raises(FileNotFoundError):  # nor is there anything to test on
        Trainer(of(path, "training.on_read_error=skip"), ALONE)


def test_where_no_window_can_be_read_the_run_ends_whatever_was_asked_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*arguments: Any, **keywords: Any) -> Tensor:
        raise ValueError("not today")

    monkeypatch.setattr(VideoFiles, "read", unreadable)
    with pytest.raises(ValueError, match="not today"):
        Trainer(of(path, "training.on_read_error=skip", "training.workers=0"), ALONE).run()


def test_a_window_in_anothers_place_is_that_videos_own(path: Path) -> None:
    damage(path, "train_0")
    windows = Trainer(of(path, "training.on_read_error=skip"), ALONE).windows
    instead, own = windows[0], windows[1]
    assert instead.video == own.video == "train_1"
    assert instead.skipped[0].startswith("train_0: ")
    assert own.skipped == ()
    assert torch.equal(instead.content, own.content)
    np.testing.assert_array_equal(instead.segments, own.segments)


def test_who_is_in_time_is_not_interrupted_later() -> None:
    with time_limit(0.05, "this"):
        pass
    time.sleep(0.1)
    with time_limit(None, "this"):
        time.sleep(0.01)
    with pytest.raises(TimeoutError, match=r"this took longer than 0\.05 s"), time_limit(0.05, "this"):
        time.sleep(5)


def test_a_limit_that_something_swallows_comes_again() -> None:
    def swallow_once() -> None:
        with contextlib.suppress(TimeoutError):  # as a destructor does
            time.sleep(5)
        time.sleep(5)

    with pytest.raises(TimeoutError), time_limit(0.05, "this"):
        swallow_once()
