"""Testing where videos cannot be read, or not in time, or the process that reads them dies."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import CLASSES, config_of, video_data
from processes import Running
from runs import OneOfTwo
from torch import Tensor
from torch.utils.data import Dataset

from bitad.cli import main
from bitad.config.schema import Config
from bitad.data import dataset
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.detections import Detections, read_detections
from bitad.data.formats.database import read_annotations
from bitad.data.sources import VideoFiles, build_source
from bitad.evaluation.mean_average_precision import evaluate
from bitad.inference.detect import Results, detect
from bitad.models.build import build_network
from bitad.runtime.distributed import Ranks
from bitad.runtime.log import log
from bitad.weights.checkpoint import Checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"))
BACKBONES = ("window", "video")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four test videos of four windows each; of the second, the pictures of the end are damaged."""
    path = video_data(tmp_path_factory.mktemp("videos") / "data", training=1, test=4, frames=150)
    video = path.parent / "videos" / "test_1.mp4"
    content = bytearray(video.read_bytes())
    start, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    content[(start + 3 * end) // 4 : end] = bytes(end - (start + 3 * end) // 4)
    video.write_bytes(content)
    return path


@pytest.fixture(autouse=True)
def logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "propagate", True)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "_GRACE_S", 0.3)
    monkeypatch.setattr(dataset, "_CHECK_INTERVAL_S", 0.1)


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


def of(path: Path, *overrides: str) -> Config:
    return config_of(path, "test.batch=3", "test.nms.voting_threshold=0", *overrides)


def truth_of(config: Config, *without: str) -> Annotations:
    truth = read_annotations(config.data.annotations, classes=config.data.classes).subset("validation")
    return replace(truth, videos={name: video for name, video in truth.videos.items() if name not in without})


def results(config: Config, *without: str) -> Results:
    torch.manual_seed(0)
    network = build_network(config, len(CLASSES)).eval()
    return detect(network, truth_of(config, *without), build_source(config), config, ALONE)


def rows(found: Detections, name: str) -> list[Any]:
    of_video = found.of_video(name)
    return [of_video.segments.tolist(), of_video.scores.tolist(), of_video.labels.tolist()]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_cannot_be_read_is_named_and_the_rest_is_found(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, backbone: str, workers: int
) -> None:
    how = (f"test.backbone={backbone}", f"test.workers={workers}")
    expected = results(of(path, *how), "test_0", "test_1").merged
    reading(monkeypatch, "test_0", hang)
    began = time.monotonic()
    found = results(of(path, *how, "test.on_read_error=skip", "test.read_timeout_s=3")).merged
    assert time.monotonic() - began < 30
    assert found.videos == ("test_0", "test_1", "test_2", "test_3")
    assert set(np.unique(found.video)) == {2, 3}  # nor is anything found in the windows that can be read
    for name in ("test_2", "test_3"):
        assert len(expected.of_video(name)) > 0
        assert rows(found, name) == rows(expected, name)
    assert found.details["unread"]["test_0"] == "reading video test_0 took longer than 3 s"
    assert "test_1.mp4: frame" in found.details["unread"]["test_1"]
    assert "testing: 2 of 4 videos could not be read; actions in them count as not found" in caplog.text
    assert "test_0: reading video test_0 took longer than 3 s" in caplog.text
    assert "test_1.mp4: frame" in caplog.text


def test_it_counts_against_the_map(path: Path) -> None:
    config = of(path)
    truth = truth_of(config)
    perfect = Detections.from_videos(
        {
            name: (
                video.segments,
                np.ones(len(video.labels)),
                np.array([CLASSES.index(one) for one in video.labels]),
            )
            for name, video in truth.videos.items()
            if name != "test_1"
        },
        classes=CLASSES,
    )
    found = results(of(path, "test.on_read_error=skip")).merged
    assert len(found.of_video("test_1")) == 0
    assert evaluate(truth_of(config, "test_1"), perfect, tiou=[0.5]).average_map == 1
    assert evaluate(truth, perfect, tiou=[0.5]).average_map < 1


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_without_being_asked_to_leave_it_out_it_is_an_error_that_names_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, backbone: str, workers: int
) -> None:
    config = of(path, f"test.backbone={backbone}", f"test.workers={workers}", "test.read_timeout_s=1")
    with pytest.raises(ValueError, match=r"test_1\.mp4: frame"):
        results(config)
    reading(monkeypatch, "test_2", hang)
    with pytest.raises(TimeoutError, match="reading video test_2 took longer than 1 s"):
        results(config, "test_1")


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_file_that_is_no_video_is_one_that_cannot_be_read(
    path: Path, tmp_path: Path, backbone: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "test_3.mp4").write_text("404 Not Found")
    for name in ("test_0", "test_2"):
        (tmp_path / f"{name}.mp4").symlink_to(path.parent / "videos" / f"{name}.mp4")
    how = (f"test.backbone={backbone}", f"data.videos={tmp_path}")
    with pytest.raises(FileNotFoundError, match="no video 'test_1' there"):
        results(of(path, *how))
    found = results(of(path, *how, "test.on_read_error=skip")).merged
    assert set(np.unique(found.video)) == {0, 2}
    assert set(found.details["unread"]) == {"test_1", "test_3"}
    with pytest.raises(
        ValueError, match=r"testing: none of the 2 videos can be read; test_1: .*no video 'test_1'"
    ):
        results(of(path, *how, "test.on_read_error=skip"), "test_0", "test_2")


@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_one_process_cannot_read_is_left_out_by_all(path: Path, backbone: str) -> None:
    config = of(path, f"test.backbone={backbone}", "test.on_read_error=skip")
    torch.manual_seed(0)
    network = build_network(config, len(CLASSES)).eval()
    truth = truth_of(config, "test_1")
    shares = [
        detect(
            network, truth, build_source(config), config, OneOfTwo(rank, unread={"test_3": "stale file handle"})
        ).merged
        for rank in range(2)
    ]
    assert all(share.details["unread"] == {"test_3": "stale file handle"} for share in shares)
    assert {int(video) for share in shares for video in np.unique(share.video)} == {0, 1}  # test_0 and test_2
    if backbone == "video":  # each is one process's
        assert sum(map(len, shares)) == len(results(config, "test_1", "test_3").merged)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_process_that_is_killed_is_an_error_that_says_what_it_read(
    path: Path, monkeypatch: pytest.MonkeyPatch, backbone: str
) -> None:
    reading(monkeypatch, "test_2", die)
    config = of(path, f"test.backbone={backbone}", "test.workers=2", "test.on_read_error=skip")
    with pytest.raises(
        ChildProcessError, match=r"was reading video test_2 ended unexpectedly: Killed.*memory runs out"
    ):
        results(config, "test_1")
    assert multiprocessing.active_children() == []


def test_a_process_that_has_not_begun_when_another_fails_is_ended_too(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    initialise = dataset.initialise_reader

    def slowly(worker: int) -> None:
        time.sleep(60 * worker)
        initialise(worker)

    monkeypatch.setattr(dataset, "initialise_reader", slowly)
    reading(monkeypatch, "test_0", die)
    began = time.monotonic()
    with pytest.raises(ChildProcessError, match="was reading video test_0 ended unexpectedly"):
        results(of(path, "test.workers=2"), "test_1")
    assert multiprocessing.active_children() == []
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("limit", [300, "null"])
def test_a_process_that_does_not_start_is_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | str
) -> None:
    monkeypatch.setattr(dataset, "_START_S", 3)
    monkeypatch.setattr(dataset, "_CHECK_INTERVAL_S", 0.1)
    monkeypatch.setattr(dataset, "initialise_reader", lambda worker: time.sleep(60))
    began = time.monotonic()
    with pytest.raises(ChildProcessError, match="did not start within 3 s: killed; run this again, or give fewer"):
        results(of(path, "test.workers=1", f"test.read_timeout_s={limit}"), "test_1")
    assert multiprocessing.active_children() == []
    assert time.monotonic() - began < 30


class Numbers(Dataset[int]):
    """Items that are read through ``readers``, which a process that is not forked gets as a copy."""

    def __init__(self, readers: dataset.Readers) -> None:
        self.readers = readers

    def __len__(self) -> int:
        return 8

    def __getitem__(self, item: int) -> int:
        with self.readers.reading("a"):
            return item


def test_a_process_that_has_started_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "_CHECK_INTERVAL_S", 0.1)
    readers = dataset.Readers(["a"], 1, None)
    with readers.watched():
        items = iter(readers.loader(Numbers(readers), batch_size=None))
        first = next(items)
        monkeypatch.setattr(dataset, "_START_S", 0)
        time.sleep(0.5)
        assert [first, *items] == list(range(8))


@pytest.mark.parametrize("start", multiprocessing.get_all_start_methods())
def test_processes_start_as_the_program_says(monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    monkeypatch.setattr(multiprocessing, "get_context", partial(multiprocessing.get_context, start))
    readers = dataset.Readers(["a"], 2, None)
    items = iter(readers.loader(Numbers(readers), batch_size=None))
    first = next(items)
    kinds = {type(child).__name__.lower() for child in multiprocessing.active_children()}
    assert kinds == {f"{start}process"}
    assert [first, *items] == list(range(8))


def test_two_processes_killed_at_one_video_name_it_once() -> None:
    readers = dataset.Readers(["a", "b"], 2, None)
    readers._reads[:2, :2] = torch.tensor([[11, 1], [12, 1]])  # ids of processes, indices of videos
    with pytest.raises(ChildProcessError, match=r"was reading video b ended unexpectedly"), readers.watched():
        raise RuntimeError("DataLoader worker (pid(s) 11, 12) exited unexpectedly")


# Items are sent as fast as the parent takes them, and a process is killed meanwhile.
KILLED_WHILE_SENDING = """
import multiprocessing, os, signal, threading, time
import torch
from torch.utils.data import Dataset
from bitad.data.dataset import Readers


class Zeros(Dataset):
    def __len__(self):
        return 1_000_000

    def __getitem__(self, item):
        with readers.reading("a"):
            return torch.zeros(100)


def kill():
    time.sleep(0.2)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)


for _ in range(4):
    readers = Readers(["a"], 2, None)
    try:
        with readers.watched():
            items = iter(readers.loader(Zeros()))
            threading.Thread(target=kill).start()
            for item in items:
                pass
    except Exception as error:
        print(type(error).__name__, error, len(multiprocessing.active_children()), flush=True)
"""


def test_a_process_that_is_killed_while_it_sends_is_the_same_error() -> None:
    """More often than not, its parent sees a broken connection first."""
    process = Running(program=KILLED_WHILE_SENDING)
    try:
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    message = r"ChildProcessError a process that (was reading video a|reads videos .*) ended unexpectedly.* 0"
    lines = out.splitlines()
    assert len(lines) == 4
    assert all(re.fullmatch(message, line) for line in lines), out


def test_a_connection_that_breaks_elsewhere_stays_what_it_is() -> None:
    readers = dataset.Readers(["a"], 2, None)
    with pytest.raises(ConnectionResetError, match="by a server"), readers.watched():
        raise ConnectionResetError("by a server")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_process_that_nothing_interrupts_is_ended_and_is_an_error_that_says_what_it_read(
    path: Path, monkeypatch: pytest.MonkeyPatch, backbone: str
) -> None:
    reading(monkeypatch, "test_2", hang_whatever_comes)
    config = of(path, f"test.backbone={backbone}", "test.workers=2", "test.read_timeout_s=1")
    began = time.monotonic()
    with pytest.raises(
        ChildProcessError, match="reading video test_2 took longer than 1 s and could not be interr"
    ):
        results(config, "test_1")
    assert time.monotonic() - began < 20
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("impatient")
def test_the_command_ends_with_one_line(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = of(path, "test.workers=1", "test.read_timeout_s=1", "test.on_read_error=skip")
    checkpoint = Checkpoint(config, CLASSES, build_network(config, len(CLASSES)).state_dict(), 1, rate_hz=8.0)
    save_checkpoint(checkpoint, tmp_path / "best.pt")
    assert main(["test", str(tmp_path / "best.pt"), "--device", "cpu"]) == 0
    written = read_detections(tmp_path / "test" / "detections.json")
    assert list(written.details["unread"]) == ["test_1"]
    assert json.loads((tmp_path / "test" / "metrics.json").read_text())
    for does, said in (
        (hang_whatever_comes, "test_0 took longer than 1 s and could not"),
        (die, "reading video test_0 e"),
    ):
        with monkeypatch.context() as patched:
            reading(patched, "test_0", does)
            capsys.readouterr()
            assert main(["test", str(tmp_path / "best.pt"), "--device", "cpu"]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("bitad test: error: ")
        assert said in line
