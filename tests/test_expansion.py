"""Small files that claim to be large, or expand to be, are refused by name before they fill the memory."""

from __future__ import annotations

import gzip
import io
import json
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib import format as npy

from bitad.cli import main
from bitad.config.loading import ConfigError, load_config
from bitad.data.feature_files import FeatureStore
from bitad.runtime.files import read_json
from bitad.weights.files import read_weights

MIB = 2**20


def header(shape: tuple[int, ...], descr: str = "<f4", fortran: bool = False) -> bytes:
    stream = io.BytesIO()
    npy.write_array_header_1_0(stream, {"descr": descr, "fortran_order": fortran, "shape": shape})
    return stream.getvalue()


def gzip_bomb(path: Path) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(24):
            file.write(bytes(16 * MIB))


def npz_bomb(path: Path) -> None:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("v.npy", "w") as file,
    ):
        file.write(header((12 * MIB, 8)))
        for _ in range(24):
            file.write(bytes(16 * MIB))


def pt_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("archive/data.pkl", "w") as file:
            for _ in range(24):
                file.write(bytes(16 * MIB))
        archive.writestr("archive/version", "3")


# Of each sort: who makes it, what is imported to read it, and how it is read.
BOMBS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "bomb.json.gz": (gzip_bomb, "from bitad.runtime.files import read_json", "read_json(path)"),
    "bomb.npz": (npz_bomb, "from bitad.data.feature_files import FeatureStore", "FeatureStore(path).read('v')"),
    "bomb.pt": (pt_bomb, "from bitad.weights.files import read_weights", "read_weights(path)"),
}
READING = """
import resource, sys
from pathlib import Path
{imports}
path, before = Path(sys.argv[1]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    {use}
except ValueError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("name", BOMBS)
def test_what_expands_without_end_is_refused_in_little_memory(tmp_path: Path, name: str) -> None:
    make, imports, use = BOMBS[name]
    path = tmp_path / name
    make(path)
    assert path.stat().st_size < 4 * MIB
    command = [sys.executable, "-c", READING.format(imports=imports, use=use), str(path)]
    said, took_kib = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert str(path) in said
    assert "compressed" in said
    assert int(took_kib) * 1024 < 160 * MIB  # of the 384 MiB that it holds


@pytest.mark.parametrize(
    ("name", "command"), [("bomb.json.gz", ("annotations", "check")), ("bomb.pt", ("weights", "inspect"))]
)
def test_the_command_line_names_the_file_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, command: tuple[str, str]
) -> None:
    path = tmp_path / name
    BOMBS[name][0](path)
    assert main([*command, str(path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line
    assert "--debug" not in line


def test_regular_but_honest_files_are_read(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "spaces.json.gz", "wb") as file:
        file.write(b" " * 32 * MIB + b'{"a": 1}')
    assert read_json(tmp_path / "spaces.json.gz") == {"a": 1}
    np.savez_compressed(tmp_path / "zeros.npz", v=np.zeros((MIB, 8), np.float32))
    assert FeatureStore(tmp_path / "zeros.npz").length("v") == MIB


@pytest.mark.parametrize("limit", [MIB, 1000 * MIB])
def test_a_large_gzip_file_is_read_whole_or_refused_though_it_hardly_compresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr("bitad.runtime.signatures.MOST_BYTES", limit)
    monkeypatch.setattr("bitad.runtime.files.SMALL_BYTES", MIB // 2)
    numbers = list(range(300_000))
    (tmp_path / "x.json.gz").write_bytes(gzip.compress(json.dumps(numbers).encode()))
    if limit > MIB:
        assert read_json(tmp_path / "x.json.gz") == numbers
        return
    with pytest.raises(ValueError, match=r"x\.json\.gz: .* compressed bytes expand to"):
        read_json(tmp_path / "x.json.gz")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (header((2**40, 8)) + bytes(64), "35,184,372,088,832 bytes, but 64 are there"),
        (header((2**62, 2**62)) + bytes(64), "but 64 are there"),
        (header((-5, 8)) + bytes(64), r"claims the shape \[-5, 8\]"),
        (header((-4, -4)) + bytes(64), r"claims the shape \[-4, -4\]"),
        (header((2**40, 8), fortran=True) + bytes(64), "but 64 are there"),
        (header((2, 8), "|O") + bytes(64), "features are numbers"),
        (header((1, 8)) + bytes(64), "32 bytes, but 64 are there"),
        (b"\x93NUMPY\x01\x00\x20\x00" + b"(" * 32, "its header is damaged"),
        (b"\x93NUMPY\x01\x00\xf0\x0f" + b"-" * 4080, "its header is damaged"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_header_that_claims_what_is_not_there_is_refused(
    tmp_path: Path, content: bytes, said: str, packed: bool
) -> None:
    if packed:
        with zipfile.ZipFile(tmp_path / "v.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("v.npy", content)
    else:
        (tmp_path / "v.npy").write_bytes(content)
    store = FeatureStore(tmp_path)
    for look in (store.length, store.read):
        with pytest.raises(ValueError, match=said) as error:
            look("v")
        assert str(tmp_path / ("v.npz" if packed else "v.npy")) in str(error.value)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_of_another_compression_is_refused(tmp_path: Path, method: int) -> None:
    """What bounds the reading of a deflated array does not bound these."""
    with zipfile.ZipFile(tmp_path / "v.npz", "w", method) as archive:
        archive.writestr("v.npy", header((2, 4)) + bytes(32))
    with pytest.raises(
        ValueError, match=rf"v\.npz: v\.npy is .*method {method}, .*; write it again with numpy\.savez"
    ):
        FeatureStore(tmp_path).read("v")


def test_a_transposed_array_is_read_as_it_is(tmp_path: Path) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.save(tmp_path / "v.npy", np.asfortranarray(rows))
    np.testing.assert_array_equal(FeatureStore(tmp_path).read("v"), rows)


def number(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little")


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor_file(path: Path, stored: int, size: int, stride: int) -> None:
    """A PyTorch file with one tensor of ``size`` numbers in a storage said to have ``stored``; there are 16."""
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        + number(stored)
        + b"tQ"
    )
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + numbers(size) + numbers(stride)
    tensor += b"\x89ccollections\nOrderedDict\n)RtR"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}(X\x01\x00\x00\x00a" + tensor + b"u.")
        archive.writestr("archive/version", "3")
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", bytes(64))


def test_a_tensor_that_is_as_large_as_its_storage_is_read(tmp_path: Path) -> None:
    tensor_file(tmp_path / "w.pt", 16, 16, 1)
    assert read_weights(tmp_path / "w.pt")["a"].tolist() == [0.0] * 16


@pytest.mark.parametrize(
    ("stored", "size", "stride"),
    [(2**36, 2**36, 1), (16, 2**36, 0), (40, 40, 1)],
    ids=["huge", "spread", "beyond"],
)
def test_a_tensor_that_claims_more_than_the_file_has_is_refused(
    tmp_path: Path, stored: int, size: int, stride: int
) -> None:
    tensor_file(tmp_path / "w.pt", stored, size, stride)
    with pytest.raises(ValueError, match=r"w\.pt is not a readable checkpoint or file of weights: "):
        read_weights(tmp_path / "w.pt")


def test_many_names_of_one_large_tensor_are_refused(tmp_path: Path) -> None:
    tensor = torch.zeros(1000)
    torch.save({f"w{i}": tensor for i in range(100)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"its tensors claim 400,000 bytes"):
        read_weights(tmp_path / "w.pt")
    torch.save({"a": tensor, "b": tensor}, tmp_path / "w.pt")
    assert read_weights(tmp_path / "w.pt").keys() == {"a", "b"}


def test_a_safetensors_header_that_claims_more_than_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", 2**40) + b'{"a": 1}')
    with pytest.raises(ValueError, match=r"its header claims 1,099,511,627,776 bytes, but the file has 16"):
        read_weights(tmp_path / "w.safetensors")
    text = b'{"a": {"dtype": "F32", "shape": [1099511627776], "data_offsets": [0, 4398046511104]}}'
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(ValueError, match=r"w\.safetensors is not a readable .* damaged or cut off"):
        read_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize("merge", [False, True])
def test_aliases_that_multiply_are_refused_in_no_time(tmp_path: Path, merge: bool) -> None:
    lines = ["a: &a {x: 1}" if merge else "a: &a [x, x, x, x, x, x, x, x, x]"]
    for one, other in zip("abcdefghi", "bcdefghij", strict=True):
        many = ", ".join([f"*{one}"] * 9)
        lines.append(f"{other}: &{other} {{<<: [{many}]}}" if merge else f"{other}: &{other} [{many}]")
    (tmp_path / "laughs.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="more than 100,000 values, counting those repeated by aliases"):
        load_config(tmp_path / "laughs.yaml")


def test_a_configuration_of_many_megabytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_bytes(b"# " + bytes(2 * MIB).replace(b"\0", b"x"))
    with pytest.raises(ConfigError, match=r"big\.yaml is not YAML: larger than 1 MiB"):
        load_config(tmp_path / "big.yaml")
