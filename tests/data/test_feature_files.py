"""Features on disk are read whatever of the usual forms they have, and refused with a reason where they are unsound."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bitad.data.feature_files import FeatureStore

GTEA = Path(__file__).resolve().parents[2] / "../shared/data/actionseg/gtea_svm.npz"


def features(rows: int, channels: int = 4, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, channels)).astype(np.float32)


def save_folder(path: Path) -> Path:
    path.mkdir()
    np.save(path / "a.npy", features(7))
    np.save(path / "b.c.npy", features(9, seed=1).astype(np.float64))
    np.savez(path / "d.npz", feats=features(5, seed=2))
    return path


def save_single(path: Path) -> Path:
    arrays = {"a": features(7), "b.c": features(9, seed=1).astype(np.float64), "d": features(5, seed=2)}
    np.savez_compressed(path.with_suffix(".npz"), **arrays)
    return path.with_suffix(".npz")


@pytest.mark.parametrize("save", [save_folder, save_single])
def test_every_form_gives_the_same_features(tmp_path: Path, save: Callable[[Path], Path]) -> None:
    store = FeatureStore(save(tmp_path / "features"), channels=4)
    assert store.names() == ("a", "b.c", "d")
    for seed, (name, rows) in enumerate({"a": 7, "b.c": 9, "d": 5}.items()):
        read = store.read(name)
        assert read.dtype == np.float32
        assert read.flags.c_contiguous
        np.testing.assert_array_equal(read, features(rows, seed=seed))
        assert store.length(name) == rows


def test_arrays_in_either_memory_order_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", features(7))
    np.save(tmp_path / "w.npy", np.asfortranarray(features(7)))
    store = FeatureStore(tmp_path, channels=4)
    for name in store.names():
        assert store.length(name) == 7
        np.testing.assert_array_equal(store.read(name), features(7))
        assert store.read(name).flags.c_contiguous


def test_a_video_with_several_arrays_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", rgb=features(3), flow=features(3, seed=1))
    with pytest.raises(ValueError, match=r"v\.npz: 2 arrays, \['flow', 'rgb'\]; keep one"):
        FeatureStore(tmp_path).read("v")


def test_the_length_needs_only_the_header(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", features(1000))
    whole = (tmp_path / "v.npy").read_bytes()
    (tmp_path / "v.npy").write_bytes(whole[:128] + b"\xff" * len(whole[128:]))  # NaN, which only reading sees
    store = FeatureStore(tmp_path)
    assert store.length("v") == 1000
    with pytest.raises(ValueError, match=r"v\.npy: nan in row 0"):
        store.read("v")


def test_an_array_that_is_cut_off_is_refused_by_its_length(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", features(1000))
    (tmp_path / "v.npy").write_bytes((tmp_path / "v.npy").read_bytes()[:200])
    store = FeatureStore(tmp_path)
    for look in (store.length, store.read):
        with pytest.raises(
            ValueError, match=r"v\.npy: no array that numpy reads: .* 16,000 bytes, but 72 are there"
        ):
            look("v")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (features(6, 5), r"shape \[6, 5\] read as \[T, C\]; 4 channels are expected"),
        (features(6).T, r"shape \[4, 6\] read as \[T, C\]; 4 channels"),
        (features(6)[None], r"float32 of shape \[1, 6, 4\]; features are numbers \[T, C\]"),
        (features(0), r"float32 of shape \[0, 4\]"),
        (np.array([["a"] * 4]), r"<U1 of shape \[1, 4\]"),
    ],
)
def test_arrays_of_another_form_are_refused(tmp_path: Path, array: NDArray[Any], message: str) -> None:
    np.save(tmp_path / "v.npy", array)
    store = FeatureStore(tmp_path, channels=4)
    for look in (store.read, store.length):
        with pytest.raises(ValueError, match=message) as caught:
            look("v")
        assert str(tmp_path / "v.npy") in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    array = features(6)
    array[4, 2] = array[5, 0] = value
    np.savez(tmp_path / "all.npz", v=array)
    with pytest.raises(ValueError, match=rf"all\.npz: v: {value} in row 4, channel 2 \(2 such values\)"):
        FeatureStore(tmp_path / "all.npz").read("v")


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "text.npz").write_text("no archive")
    np.save(tmp_path / "object.npy", np.array([{}], object), allow_pickle=True)
    np.savez(tmp_path / "all.npz", v=features(3))
    store = FeatureStore(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no features of 'missing' there \(\.npy or \.npz\)"):
        store.read("missing")
    for name, message in (
        ("text", "text.npy: no array that numpy reads"),
        ("object", "object.npy: object of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            store.read(name)
    (tmp_path / "text.npy").unlink()
    with pytest.raises(ValueError, match=r"text\.npz: no \.npz file"):
        store.length("text")
    with pytest.raises(ValueError, match=r"all\.npz: no array 'w'; missing: 'w'; there: 'v'"):
        FeatureStore(tmp_path / "all.npz").read("w")
    with pytest.raises(FileNotFoundError, match="no such folder or"):
        FeatureStore(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"text\.npz: features are a folder"):
        FeatureStore(tmp_path / "text.npz")


@pytest.mark.skipif(not GTEA.is_file(), reason="the reference data beside the checkout is missing")
def test_gtea_features_are_read() -> None:
    store = FeatureStore(GTEA, channels=11)
    assert len(store.names()) == 21
    with np.load(GTEA) as arrays:
        for name in store.names():
            np.testing.assert_array_equal(store.read(name), arrays[name])
            assert store.length(name) == len(arrays[name])


def test_a_single_file_is_opened_once_and_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(5, 3)).astype("f4") for name in "ab"}
    path = tmp_path / "all.npz"
    np.savez(path, **arrays)
    opened, begin = list[str](), zipfile.ZipFile.__init__

    def noting(self: zipfile.ZipFile, file: Any, mode: Any = "r", **keywords: Any) -> None:
        if mode == "r":
            opened.append(str(file))
        begin(self, file, mode, **keywords)

    monkeypatch.setattr(zipfile.ZipFile, "__init__", noting)
    store = FeatureStore(path)
    for name in "abab":
        assert store.length(name) == 5
        assert np.array_equal(store.read(name), arrays[name])
    assert opened == [str(path)]
    arrays = {name: array[:4] + 1 for name, array in arrays.items()}
    np.savez(tmp_path / "new.npz", **arrays)
    os.replace(tmp_path / "new.npz", path)
    opened.clear()
    for name in "ab":
        assert store.length(name) == 4
        assert np.array_equal(store.read(name), arrays[name])
    assert opened == [str(path)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_processes_that_were_forked_read_the_same_file_at_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"{number}": rng.normal(size=(50, 200)).astype("f4") for number in range(20)}
    np.savez(tmp_path / "all.npz", **arrays)
    store = FeatureStore(tmp_path / "all.npz")
    store.read("0")  # this process has opened it
    children = []
    for child in range(4):
        pid = os.fork()
        if pid == 0:
            order = np.random.default_rng(child).integers(0, 20, 300).astype(str)
            os._exit(int(not all(np.array_equal(store.read(name), arrays[name]) for name in order)))
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 4


def test_a_file_of_a_folder_that_changes_is_read_anew(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 2), "f4"))
    store = FeatureStore(tmp_path)
    assert (store.length("a"), store.read("a").sum()) == (4, 0)
    np.save(tmp_path / "a.npy", np.ones((7, 2), "f4"))
    assert (store.length("a"), store.read("a").sum()) == (7, 14)
    (tmp_path / "a.npy").unlink()
    with pytest.raises(FileNotFoundError, match="no features of 'a'"):
        store.read("a")


def test_a_known_shape_is_compared_with_channels_that_are_stated_later(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 2), "f4"))
    store = FeatureStore(tmp_path)
    assert store.shape("a") == (4, 2)
    store.channels = 3
    with pytest.raises(ValueError, match="3 channels are expected"):
        store.shape("a")
