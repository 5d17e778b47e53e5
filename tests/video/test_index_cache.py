"""Indices kept on disk are those of the files, whatever has become of the entries or of the files."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bar_codes import KINDS
from hypothesis import given, settings
from hypothesis import strategies as st

from bitad.video import indexing as index_cache
from bitad.video.index import FrameIndex
from bitad.video.indexing import FileStamp, IndexCache, index_video


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return KINDS["h264 mp4"].write(tmp_path_factory.mktemp("video") / "a.mp4")


@pytest.fixture
def read_through(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read through."""
    paths: list[Path] = []

    def counted(path: str | Path) -> FrameIndex:
        paths.append(Path(path))
        return index_video(path)

    monkeypatch.setattr(index_cache, "index_video", counted)
    return paths


def begun(folder: Path) -> IndexCache:
    cache = IndexCache(folder)
    cache.begin()
    return cache


def entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


def assert_same(a: FrameIndex, b: FrameIndex) -> None:
    for field in dataclasses.fields(FrameIndex):
        one, other = getattr(a, field.name), getattr(b, field.name)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype, field.name
            np.testing.assert_array_equal(one, other, field.name)
        else:
            assert one == other, field.name
            assert type(one) is type(other), field.name


@pytest.mark.parametrize("kind", ["h264 avi", "h264 bare", "open groups ts", "variable rate mkv", "late start ts"])
def test_what_is_kept_is_what_was_found(tmp_path: Path, kind: str, read_through: list[Path]) -> None:
    path = KINDS[kind].write(tmp_path / f"v.{KINDS[kind].suffix}")
    found, kept = (begun(tmp_path / "index").index(path) for _ in range(2))
    assert read_through == [path]
    assert_same(kept, found)


def test_a_cut_off_file_is_still_one(tmp_path: Path, read_through: list[Path]) -> None:
    cut = KINDS["h264 ts"].write(tmp_path / "cut.ts")
    cut.write_bytes(cut.read_bytes()[: int(0.7 * cut.stat().st_size)])
    found, kept = (begun(tmp_path / "index").index(cut) for _ in range(2))
    assert found.lost
    assert len(read_through) == 1
    assert_same(kept, found)


def _touched(path: Path) -> None:
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def _another(path: Path) -> None:
    stat = path.stat()
    KINDS["h264 mp4"].write(path, 40)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("change", [_touched, _another])
def test_of_a_file_that_has_changed_it_is_made_anew(
    tmp_path: Path, video: Path, read_through: list[Path], change: Callable[[Path], None]
) -> None:
    path = Path(shutil.copy(video, tmp_path / "b.mp4"))
    begun(tmp_path / "index").index(path)
    change(path)
    for _ in range(2):
        assert_same(begun(tmp_path / "index").index(path), index_video(path))
    assert read_through == [path, path]
    assert len(entries(tmp_path / "index")) == 1


def test_what_another_version_has_found_is_made_anew(
    tmp_path: Path, video: Path, read_through: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(tmp_path).index(video)
    monkeypatch.setattr(index_cache, "_VERSION", 0)
    begun(tmp_path).index(video)
    assert len(read_through) == 2


@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_damaged_entries_are_made_anew(
    data: st.DataObject, video: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("index")
    begun(folder).index(video)
    (entry,) = entries(folder)
    content = bytearray(entry.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    entry.write_bytes(content)
    for _ in range(2):
        assert_same(begun(folder).index(video), index_video(video))


def test_nothing_is_written_before_it_begins(tmp_path: Path, video: Path, read_through: list[Path]) -> None:
    cache = IndexCache(tmp_path / "index")
    cache.index(video)
    assert_same(cache.index(video), index_video(video))
    assert len(read_through) == 1
    assert entries(tmp_path / "index") == []
    cache.begin()
    assert len(entries(tmp_path / "index")) == 1
    assert_same(IndexCache(tmp_path / "index").index(video), index_video(video))
    assert len(read_through) == 1


def test_a_folder_that_cannot_be_written_to_only_costs_time(tmp_path: Path, video: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert_same(begun(tmp_path / "file" / "index").index(video), index_video(video))


def test_what_one_process_has_found_the_others_need_not_find(
    tmp_path: Path, video: Path, read_through: list[Path]
) -> None:
    other = Path(shutil.copy(video, tmp_path / "b.mp4"))
    one, two = (IndexCache(tmp_path / "index") for _ in range(2))
    one.index(video)
    two.index(other)
    pieces: list[dict[FileStamp, FrameIndex]] = []

    def gather(piece: dict[FileStamp, FrameIndex]) -> list[dict[FileStamp, FrameIndex]]:
        pieces.append(piece)
        return pieces

    one.share(gather)
    two.share(gather)
    assert_same(two.index(video), index_video(video))
    two.begin()
    assert len(entries(tmp_path / "index")) == 2
    assert read_through == [video, other]


def test_a_missing_file_is_missed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.mp4: no such video file"):
        begun(tmp_path / "index").index(tmp_path / "none.mp4")
    assert entries(tmp_path / "index") == []
