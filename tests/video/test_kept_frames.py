"""Frames that are kept are those that the reader gives, whatever happens to their files or to the video."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bar_codes import KINDS
from numpy.typing import NDArray

from bitad.video import kept_frames
from bitad.video.indexing import index_video
from bitad.video.kept_frames import KeptFrames
from bitad.video.reader import VideoReader

AMPLE = 2**30
SHORT_SIDE = 24


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return KINDS["h264 mp4"].write(tmp_path_factory.mktemp("video") / "a.mp4")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are decoded for keeping."""
    paths: list[Path] = []

    class Noting(VideoReader):
        def __init__(self, path: Path, **how: object) -> None:
            paths.append(path)
            super().__init__(path, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(kept_frames, "VideoReader", Noting)
    return paths


def wanted(path: Path, short_side: int | None = SHORT_SIDE) -> NDArray[np.uint8]:
    with VideoReader(path) as reader:
        return reader.read(range(reader.info.frames), short_side=short_side)


def kept_in(kept: KeptFrames, path: Path, short_side: int | None = SHORT_SIDE) -> NDArray[np.uint8] | None:
    return kept.video(path, index_video(path), short_side)


def assert_kept(kept: KeptFrames, path: Path, short_side: int | None = SHORT_SIDE) -> None:
    frames = kept_in(kept, path, short_side)
    assert frames is not None
    np.testing.assert_array_equal(frames, wanted(path, short_side))


@pytest.mark.parametrize("kind", ["h264 mp4", "odd size mkv", "vp9 webm"])
@pytest.mark.parametrize("rotation", [0, 90])
@pytest.mark.parametrize("short_side", [None, SHORT_SIDE, 21])
def test_kept_frames_are_those_of_the_reader(
    tmp_path: Path, decoded: list[Path], kind: str, rotation: int, short_side: int | None
) -> None:
    path = KINDS[kind].write(tmp_path / f"a.{KINDS[kind].suffix}")
    index = replace(index_video(path), rotation=rotation)
    with VideoReader(path, index=index) as reader:
        frames = reader.read(range(index.frames), short_side=short_side)
    for folder in (None, tmp_path / "frames", tmp_path / "frames"):
        kept = KeptFrames(AMPLE, folder=folder).video(path, index, short_side)
        assert kept is not None
        np.testing.assert_array_equal(kept, frames)
    assert len(decoded) == 2


def test_sizes_have_files_of_their_own(video: Path, tmp_path: Path, decoded: list[Path]) -> None:
    for _ in range(2):
        kept = KeptFrames(AMPLE, folder=tmp_path)
        for short_side in (None, 20, 30):
            assert_kept(kept, video, short_side)
    assert len(decoded) == len(list(tmp_path.iterdir())) == 3


def test_only_the_first_videos_that_fit_are_kept(video: Path, tmp_path: Path) -> None:
    size = wanted(video).nbytes
    paths = [shutil.copy(video, tmp_path / f"{name}.mp4") for name in "abc"]
    for folder in (None, tmp_path / "frames", tmp_path / "frames"):
        kept = KeptFrames(2 * size + 1, folder=folder)
        assert [kept_in(kept, path) is None for path in paths] == [False, False, True]
        assert kept.bytes == 2 * size
    assert len(list((tmp_path / "frames").iterdir())) == 2


def _replaced(path: Path, frames: Path) -> None:
    KINDS["h264 mp4"].write(path, 30)


def _touched(path: Path, frames: Path) -> None:
    os.utime(path, ns=(1, 1))


def _cut(path: Path, frames: Path) -> None:
    os.truncate(frames, frames.stat().st_size - 1)


def _emptied(path: Path, frames: Path) -> None:
    frames.write_bytes(b"")


def _other_shape(path: Path, frames: Path) -> None:
    np.save(frames, np.zeros((2, 3), np.uint8))


def _pickled(path: Path, frames: Path) -> None:
    np.save(frames, np.array([{}], object), allow_pickle=True)


@pytest.mark.parametrize("happens", [_replaced, _touched, _cut, _emptied, _other_shape, _pickled])
def test_outdated_and_damaged_files_are_written_anew(
    video: Path, tmp_path: Path, decoded: list[Path], happens: Callable[[Path, Path], None]
) -> None:
    path, folder = shutil.copy(video, tmp_path / "a.mp4"), tmp_path / "frames"
    assert_kept(KeptFrames(AMPLE, folder=folder), path)
    (file,) = folder.iterdir()
    happens(path, file)
    for _ in range(2):
        assert_kept(KeptFrames(AMPLE, folder=folder), path)
    assert len(decoded) == 2


def test_a_folder_that_cannot_be_written_to_is_named_and_frames_are_kept_in_memory(
    video: Path, tmp_path: Path, decoded: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    kept = KeptFrames(AMPLE, folder=tmp_path / "file" / "frames")
    for _ in range(2):
        assert_kept(kept, video)
    assert len(decoded) == 1
    assert f"data.frame_cache: {kept.folder} cannot be written to (Not a directory)" in caplog.text


def test_a_cut_off_video_is_not_kept(video: Path, decoded: list[Path]) -> None:
    cut_off = replace(index_video(video), lost=2)
    assert KeptFrames(AMPLE).video(video, cut_off, SHORT_SIDE) is None
    assert not decoded
