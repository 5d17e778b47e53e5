"""A file that is something else than its name says is called what it is, with what to do; libraries' advice is not."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bitad.cli import main
from bitad.data.classes import read_classes
from bitad.data.feature_files import FeatureStore
from bitad.runtime.files import read_json
from bitad.weights.files import read_weights

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n"
HTML = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
# What libraries say and no user must read.
ADVICE = ("weights_only", "allow_pickle", "torch.load", "arbitrary code", "pickle.load", "Re-running")


def torch_bytes(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def zipped(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), "x")  # of no time: these are names of tests
    return stream.getvalue()


def tarred(name: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return stream.getvalue()


def npy_bytes() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ones((3, 2), np.float32))
    return stream.getvalue()


INDEX = json.dumps(
    {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.bin", "b": "model-00002-of-00002.bin"}}
)
SAFETENSORS = struct.pack("<Q", 2) + b"{}"
FILES: dict[str, tuple[bytes, str]] = {
    "git-lfs": (LFS, "a Git LFS pointer, not the file itself; run `git lfs pull`"),
    "git-annex": (b"/annex/objects/MD5E-s12--0f", "a git-annex pointer, not the file itself; run `git annex get`"),
    "html": (HTML, "an HTML page, as a login or an error gives one; download the file itself again"),
    "html after a mark": (b"\xef\xbb\xbf<html>", "an HTML page"),
    "html after a comment": (b"<!-- saved -->\n<HTML>", "an HTML page"),
    "html of a refresh": (b'<meta http-equiv="refresh">', "an HTML page"),
    "xml of a store": (b"<Error><Code>AccessDenied</Code></Error>", "an XML document"),
    "zip of nothing": (b"PK\x05\x06" + bytes(18), "a zip archive"),
    "tar of weights": (tarred("model.safetensors"), "a tar archive; extract it"),
    "pickle of protocol 4": (pickle.dumps({"a": 1}, 4), "a Python pickle not written by torch.save"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML document"),
    "gzip": (gzip.compress(torch_bytes({"a": torch.ones(2)})), "a gzip file; decompress it first"),
    "bzip2": (b"BZh91AY&SY", "a bzip2 file"),
    "xz": (b"\xfd7zXZ\x00\x00", "an xz file"),
    "zstd": (b"\x28\xb5\x2f\xfd\x00", "a Zstandard file"),
    "tar": (b"name".ljust(257, b"\0") + b"ustar\x00", "a tar archive"),
    "7z": (b"7z\xbc\xaf\x27\x1c\x00", "a 7z archive"),
    "zip": (zipped("weights.pth"), "a zip archive; extract it and name the file inside"),
    "keras": (zipped("config.json", "model.weights.h5"), "a Keras model"),
    "npz": (zipped("a.npy"), "a NumPy .npz archive"),
    "hdf5": (b"\x89HDF\r\n\x1a\n\0", "an HDF5 file, as h5py and Keras write"),
    "npy": (npy_bytes(), "a NumPy array"),
    "onnx": (b"\x08\x07\x12\x07pytorch\x1a\x032.6", "an ONNX model"),
    "tensorflow": (b"\x08\x01\x12\xf0\x01", "a TensorFlow model"),
    "tensorflow index": (b"\0\1\2junk" + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb", "a TensorFlow checkpoint's index"),
    "tensorflow list": (b'model_checkpoint_path: "model.ckpt-5"', "TensorFlow's list of checkpoints"),
    "pickle": (pickle.dumps({"a": 1}), "a Python pickle not written by torch.save"),
    "safetensors": (SAFETENSORS, "a safetensors file; give it a name that ends in .safetensors"),
    "shards": (
        INDEX.encode(),
        "an index of shards, which names the files with the weights (2: model-00001-of-00002",
    ),
    "json": (b'{"a": 1}', "a JSON text"),
    "empty": (b"", "empty"),
    "zeros": (bytes(1000), "zero bytes only at its start"),
    "text": (b"hello\n", "a text"),
    "cut": (torch_bytes({"a": torch.ones(200)})[:-200], "damaged or cut off"),
    "noise": (bytes(range(128, 256)) * 4, "of an unknown type"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("suffix", [".pth", ".bin"])
def test_a_file_that_is_no_weights_is_called_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, suffix: str
) -> None:
    content, said = FILES[name]
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    capsys.readouterr()
    for command in (("inspect", path), ("convert", path, tmp_path / "o.safetensors")):
        assert main(["weights", *map(str, command)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert f"error: {path} is not a readable checkpoint or file of weights: it is " in line
        assert said in line
        assert not any(advice in line for advice in ADVICE)


def test_a_pytorch_file_under_a_name_of_safetensors_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(torch_bytes({"a": torch.ones(2)}))
    with pytest.raises(ValueError, match=r"it is a PyTorch file; give it a name that ends in \.pt"):
        read_weights(tmp_path / "w.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"it is a safetensors file; give it a name that ends in \.safetensors"):
        read_weights(tmp_path / "w.pt")


class Foreign:
    """A class of a project that is not here."""


@pytest.mark.parametrize("form", ["zip", "old", "pickle"])
def test_a_file_with_foreign_classes_says_so_without_advice_to_run_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    path = tmp_path / "w.pth"
    content = {"state_dict": {"a": torch.ones(2)}, "args": Foreign()}
    path.write_bytes(
        pickle.dumps(Foreign())
        if form == "pickle"
        else torch_bytes(content, _use_new_zipfile_serialization=form == "zip")
    )
    assert main(["weights", "inspect", str(path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line
    assert ("Foreign" in line) == (form != "pickle")
    assert not any(advice in line for advice in ADVICE)


class Harmful:
    def __reduce__(self) -> Any:
        return os.getenv, ("HOME",)


@pytest.mark.parametrize("form", ["zip", "old"])
def test_a_file_that_would_run_something_is_refused_by_what_it_would_run(tmp_path: Path, form: str) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(torch_bytes({"a": Harmful()}, _use_new_zipfile_serialization=form == "zip"))
    with pytest.raises(ValueError, match=r"w\.pth needs os\.getenv, and weights are read without running code"):
        read_weights(path)


def test_a_name_in_capitals_is_a_name(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "W.SAFETENSORS")
    assert read_weights(tmp_path / "W.SAFETENSORS")["a"].tolist() == [1, 1]


def test_a_scripted_model_is_called_one(tmp_path: Path) -> None:
    """As PyTorch itself writes it, with compressed members."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("m/data.pkl", "m/constants.pkl", "m/code/__torch__.py"):
            archive.writestr(name, "x" * 999)
    (tmp_path / "w.pt").write_bytes(stream.getvalue())
    with pytest.raises(ValueError, match="it is a TorchScript model, which contains code"):
        read_weights(tmp_path / "w.pt")


def test_a_torchscript_model_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(zipped("m/constants.pkl", "m/data.pkl", "m/code/__torch__.py"))
    with pytest.raises(ValueError, match="a TorchScript model, which contains code"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.json", LFS, "x.json: not a JSON file: it is a Git LFS pointer"),
        ("x.json", HTML, "x.json: not a JSON file: it is an HTML page"),
        ("x.json", gzip.compress(b"{}", mtime=0), "it is a gzip file; give it a name that ends in .json.gz"),
        ("x.json", zipped("x.json"), "it is a zip archive"),
        ("x.json", b"", "not a JSON file: it is empty"),
        ("x.json.gz", b"{}", "it is a JSON text, not compressed; leave .gz out of its name"),
        ("x.json.gz", HTML, "cannot be read: it is an HTML page"),
        ("x.json", b"{", "not a JSON file: Expecting property name"),
        ("x.json", b'"caf\xe9"', "not a JSON file: 'utf-8' codec can't decode byte 0xe9"),
        ("x.json", b'{"a": %s}' % (b"9" * 5000), "for integer string conversion"),
        ("x.json", b"[" * 100_000, "recursion depth exceeded"),
        ("x.json.gz", gzip.compress(b"{}", mtime=0)[:-3], "damaged or cut off; copy or download it again"),
        ("x.json.gz", gzip.compress(b"{}", mtime=0) + b"junk", "damaged or cut off; copy or download it again"),
    ],
)
def test_a_file_that_is_no_json_is_called_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_json(path)
    assert said in str(error.value)
    for command in (
        ("annotations", "check", path),
        ("merge", path, path, "--out", tmp_path / "o.json"),
    ):
        assert main([str(argument) for argument in command]) == 1
        assert said in capsys.readouterr().err


TEXTS: dict[str, tuple[bytes, str]] = {
    "lfs": (LFS, "a Git LFS pointer, not the file itself; run `git lfs pull`"),
    "html": (HTML, "an HTML page"),
    "gzip": (gzip.compress(b"a\n", mtime=0), "a gzip file; decompress it first"),
    "utf-16": ("a\nb\n".encode("utf-16"), "a text in UTF-16; save it as UTF-8"),
    "latin": (b"caf\xe9\n", "byte 3 is not UTF-8; save it as UTF-8"),
    "json": (b'["a",\n"b"]', "a JSON text"),
    "zeros": (bytes(500), "zero bytes only at its start"),
    "zero": (b"a\0\n", "has a zero byte"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_file_that_is_no_text_of_its_kind_is_called_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    content, said = TEXTS[name]
    path, table = tmp_path / "list.txt", tmp_path / "EPIC_100_train.csv"
    path.write_bytes(content)
    table.write_bytes(content)
    truth, found, out = (str(tmp_path / file) for file in ("truth.json", "found.json", "out.json"))
    row = {"segment": [1, 2], "label": "a"}
    Path(truth).write_text(json.dumps({"database": {"v": {"subset": "t", "duration": 9, "annotations": [row]}}}))
    Path(found).write_text(json.dumps({"results": {"v": [row | {"score": 0.5}]}}))
    evaluate = [
        "evaluate",
        "--ground-truth",
        truth,
        "--detections",
        found,
        "--subset",
        "t",
        "--rule",
        "thumos-kit",
    ]
    for command, file in (
        (["annotations", "check", truth, "--classes", str(path)], path),
        (["annotations", "convert", truth, out, "--classes", str(path)], path),
        (["annotations", "convert", str(path), out, "--from", "multithumos"], path),
        (["annotations", "convert", str(table), out, "--from", "epic-kitchens-verb"], table),
        (["annotations", "check", truth, "--video-info", str(table)], table),
        ([*evaluate, "--ambiguous", str(path)], path),
    ):
        assert main(command) == 1, command
        (line,) = capsys.readouterr().err.splitlines()
        assert str(file) in line
        assert said in line
    assert not Path(out).exists()


def test_annotations_of_no_known_form_are_called_what_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content, said in (
        ("a.csv", LFS, "a Git LFS pointer"),
        ("a.json.bz2", b"BZh91AY&SY", "a bzip2 file"),
    ):
        (tmp_path / name).write_bytes(content)
        assert main(["annotations", "check", str(tmp_path / name)]) == 1
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[a]\nb\n", "{b\n[a]\n", "\ufeff[a]\r\nb\r\n"])
def test_class_names_may_begin_with_a_bracket(tmp_path: Path, text: str) -> None:
    (tmp_path / "classes.txt").write_bytes(text.encode())
    assert {"[a]"} < set(read_classes(tmp_path / "classes.txt"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("v.npy", LFS, "run `git lfs pull`"),
        ("v.npy", LFS, "no array that numpy reads: it is a Git LFS pointer"),
        ("v.npy", HTML, "no array that numpy reads: it is an HTML page"),
        ("v.npy", b"", "no array that numpy reads: it is empty"),
        ("v.npy", zipped("v.npy"), "no array that numpy reads: it is a NumPy .npz archive"),
        ("v.npy", pickle.dumps([1]), "it is a Python pickle"),
        ("v.npz", LFS, "no .npz file: it is a Git LFS pointer"),
        ("v.npz", npy_bytes(), "no .npz file: it is a NumPy array"),
    ],
)
def test_a_file_that_is_no_features_is_called_what_it_is(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        FeatureStore(tmp_path).read("v")
    assert said in str(error.value)
    assert not any(advice in str(error.value) for advice in ADVICE)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LFS, "a Git LFS pointer"),
        (HTML, "an HTML page"),
        (zipped("x.mp4"), "a zip archive"),
        (SAFETENSORS, "a safe"),
    ],
)
def test_a_file_that_is_no_video_is_called_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, said: str
) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(content)
    assert main(["reverse", str(path), str(tmp_path / "r.mp4")]) == 1
    assert f"it is {said}" in capsys.readouterr().err


def test_what_is_as_its_name_says_is_read(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth")["a"].tolist() == [1, 1]
