"""By what data is known."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from builders import feature_data

from bitad.config.loading import load_config
from bitad.config.schema import Config
from bitad.data.fingerprints import changes, fingerprints
from bitad.data.formats.database import read_annotations


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return feature_data(tmp_path / "data").parent


def found(config: Config) -> dict[str, dict[str, str]]:
    truth = read_annotations(config.data.annotations)
    return fingerprints(config, truth.subset("training").videos.values(), truth.subset("validation"))


def test_arrays_in_one_archive_are_told_apart(data: Path) -> None:
    arrays = {path.stem: np.load(path) for path in (data / "features").iterdir()}
    np.savez(data / "all.npz", **arrays)
    config = load_config(data / "config.yaml", [f"data.features={data / 'all.npz'}"])
    before = found(config)
    arrays["train_2"] = arrays["train_2"] + 1
    np.savez(data / "all.npz", **arrays)
    assert changes(before, found(config)) == ["features of 7 videos: 1 changed (train_2)"]


def test_a_large_file_is_known_by_pieces_of_it(data: Path) -> None:
    config = load_config(data / "config.yaml", [])
    path = data / "features" / "train_0.npy"
    path.write_bytes(bytes(5 << 20))
    before = found(config)
    with path.open("r+b") as file:
        file.seek(-10, os.SEEK_END)
        file.write(b"x")
    assert changes(before, found(config)) == ["features of 7 videos: 1 changed (train_0)"]
    path.write_bytes(bytes((5 << 20) + 1))
    assert changes(before, found(config)) == ["features of 7 videos: 1 changed (train_0)"]
    path.write_bytes(bytes(5 << 20))
    assert changes(before, found(config)) == []
