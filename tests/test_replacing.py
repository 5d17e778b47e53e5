"""Files are written whole or not at all, under names that nobody knows beforehand."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bitad.runtime.files import atomic_write, read_json, remove_leftovers, write_json
from bitad.training.checkpoints import _link_or_move
from bitad.weights.files import write_safetensors


def test_the_name_written_to_is_new_short_and_another_each_time(tmp_path: Path) -> None:
    names = set()
    for _ in range(20):
        with atomic_write(tmp_path / "out.json") as partial:
            assert partial.parent == tmp_path
            assert partial.read_bytes() == b""
            names.add(partial.name)
    assert len(names) == 20
    assert all(re.fullmatch(rf"\.[0-9a-f]{{16}}\.{os.getpid()}\.tmp", name) for name in names)


def test_a_link_under_a_name_that_was_drawn_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = iter(["victim", "dangling", "free"])
    monkeypatch.setattr("secrets.token_hex", lambda _: next(drawn))
    (tmp_path / "victim").write_text("precious")
    os.symlink(tmp_path / "victim", tmp_path / f".victim.{os.getpid()}.tmp")
    os.symlink(tmp_path / "nowhere", tmp_path / f".dangling.{os.getpid()}.tmp")
    write_json([1], tmp_path / "out.json")
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()
    assert read_json(tmp_path / "out.json") == [1]


def test_the_names_of_before_are_not_used(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    old = tmp_path / f".out.json.{os.getpid()}.tmp"
    os.symlink(tmp_path / "victim", old)
    write_json([1], tmp_path / "out.json")
    assert (tmp_path / "victim").read_text() == "precious"
    assert old.is_symlink()


def test_a_link_that_is_named_is_replaced_and_its_file_stays(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    for name, target in (("link.json", "victim"), ("dangling.json", "nowhere")):
        os.symlink(tmp_path / target, tmp_path / name)
        write_json([1], tmp_path / name)
        assert not (tmp_path / name).is_symlink()
        assert read_json(tmp_path / name) == [1]
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


def test_a_name_as_long_as_the_disk_takes_can_be_written(tmp_path: Path) -> None:
    for name in ("a" * 250 + ".json", "가" * 83 + ".json"):
        write_json([1], tmp_path / name)
        assert read_json(tmp_path / name) == [1]


def test_files_have_the_rights_that_the_process_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_json([1], tmp_path / "out.json")
        write_safetensors({"a": torch.ones(2)}, tmp_path / "w.safetensors")
        with atomic_write(tmp_path / "a.npz") as partial, partial.open("wb") as file:
            np.savez(file, a=np.ones(2))
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o640, path
    assert load_file(tmp_path / "w.safetensors")["a"].tolist() == [1, 1]


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text("old")
    with pytest.raises(UnicodeEncodeError), atomic_write(tmp_path / "out.json") as partial:
        partial.write_text("가", "ascii")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out.json", "old")]


def test_an_error_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("folder", "a" * 256):
        with pytest.raises(OSError) as error:
            write_json([1], tmp_path / name)
        assert str(error.value).endswith(f": '{tmp_path / name}'")
        assert ".tmp" not in str(error.value)


def test_what_a_killed_process_left_is_removed_whatever_else_is_there(tmp_path: Path) -> None:
    ours = tmp_path / f".0123456789ab.{os.getpid()}.tmp"
    ours.touch()
    os.symlink(tmp_path / "nowhere", tmp_path / f".link.{os.getpid()}.tmp")
    (tmp_path / f".folder.{os.getpid()}.tmp").mkdir()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f".folder.{os.getpid()}.tmp"]


def test_what_other_machines_are_writing_to_a_shared_disk_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with atomic_write(tmp_path / "x") as ours:
        monkeypatch.setattr("bitad.runtime.files._HOST", "beef")
        remove_leftovers(tmp_path)
        assert ours.exists()
        ours.write_text("whole")
        monkeypatch.undo()
    assert (tmp_path / "x").read_text() == "whole"


def test_a_file_gets_another_name_without_losing_its_own(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_text("new")
    (tmp_path / "last-1.pt").write_text("old")
    _link_or_move(tmp_path / "last.pt", tmp_path / "last-1.pt")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"last.pt": "new", "last-1.pt": "new"}
