"""Files of weights: PyTorch's, read without running code in them, safetensors, and folders that hold either."""

from __future__ import annotations

import argparse
import re
import stat
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bitad.data.detections import named
from bitad.runtime.files import RepeatedKeyError, parse_json, replacing
from bitad.runtime.signatures import UnsoundFileError, check_archive, signature_in, signature_of
from bitad.weights.formats import instead_of_names

# Of a run of ours, and of a folder that Hugging Face's `save_pretrained` writes: the first that is there is meant.
_OF_A_RUN = ("best.pt", "last.pt")
_OF_HUGGING_FACE = ("model.safetensors", "pytorch_model.bin")
_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".tar"}
# What trainers write beside the weights (Hugging Face's `Trainer`).
_NO_WEIGHTS = ("optimizer.", "scheduler.", "scaler.", "training_args.", "rng_state")
_INDEX = ".index.json"


def file_in(folder: Path) -> Path:
    """The file of weights that a folder stands for.

    Raises:
        FileNotFoundError: there is none in it.
        ValueError: there are several, or the weights are in shards.
    """
    visible = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
    found = [
        name
        for name in visible
        if Path(name).suffix.lower() in _SUFFIXES and not name.lower().startswith(_NO_WEIGHTS) and name != BACKBONE_FILE
    ]
    for names, others_too in ((_OF_A_RUN, True), (_OF_HUGGING_FACE, False)):
        if (here := [name for name in names if name in found]) and (others_too or set(found) <= set(names)):
            return folder / here[0]
    if indices := [name for name in visible if name.endswith(_INDEX)]:
        raise ValueError(f"{folder}: {indices[0]} is {signature_of(folder / indices[0])}")
    if (folder / ".metadata").is_file() and any(name.endswith(".distcp") for name in visible):
        raise ValueError(
            f"{folder} is a distributed checkpoint of PyTorch; make one file of it: "
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.pth"
        )
    if len(found) > 1:
        raise ValueError(f"{folder} holds {len(found)} files of weights; name one of them: {named(found)}")
    if not found:
        raise FileNotFoundError(
            f"run {folder} has no checkpoint (best.pt or last.pt) yet, and no other file of weights is in it; train it "
            "first, or name a file"
        )
    return folder / found[0]


# The `format` of BiTAD's checkpoints, and of those that this version reads; a safetensors file without it is tensors.
OURS = "bitad checkpoint"
FORMAT = f"{OURS} 4"
READABLE_FORMATS = (FORMAT, f"{OURS} 3", f"{OURS} 2")
# The frozen transformer of a run, beside its checkpoints.
BACKBONE_FILE = "backbone.safetensors"


class _NumpyType:
    """Stands for ``numpy.dtype`` while a file is read: it keeps the type's code and does nothing else."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


def _numpy_number(kind: _NumpyType, data: bytes) -> bool | int | float:
    """Stands for NumPy's own reader of scalars, which crafted bytes could lead astray; this one takes numbers only."""
    if not re.fullmatch(r"[biuf]\d+", kind.code):
        raise ValueError(f"a NumPy value of type {kind.code!r}; only numbers are read")
    number: bool | int | float = np.frombuffer(data, np.dtype(kind.order.replace("|", "=") + kind.code))[0].item()
    return number


# What published files hold beside tensors and cannot do harm: VideoMAE's keep the arguments of their training.
_HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    (_NumpyType, "numpy.dtype"),
    (_numpy_number, "numpy.core.multiarray.scalar"),
    (_numpy_number, "numpy._core.multiarray.scalar"),
]
# Tensors may share what is stored: two networks what is frozen in both.
_MOST_SHARED = 8
_KNOWN = {"argparse.Namespace", "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"}


def weights_path(weights: Path) -> Path:
    """Where a file of weights lies; ``package:NAME`` is one that comes with the package.

    A folder is the file that it stands for; where that is not clear it stays, and reading it says why.
    """
    name = str(weights)
    if name.startswith("package:"):
        return Path(str(resources.files("bitad.config") / "presets" / name.removeprefix("package:")))
    if weights.is_dir():
        with suppress(ValueError, FileNotFoundError):
            return file_in(weights)
    return weights


def read_weights(path: Path) -> dict[str, Any]:
    """Reads a file of weights as it stands, onto the CPU.

    PyTorch files are read with ``weights_only=True``: nothing in them is run. A safetensors file that is a checkpoint
    of ours gives the same content as the ``.pt`` that it was made of.

    A checkpoint of ours, which a run that goes on replaces, is read from one opened file, into memory, and its
    checksums are looked at. Tensors of other PyTorch files stay in them until they are used, where their form allows.

    Args:
        path: a file, or a folder that stands for one (:func:`~bitad.weights.files.file_in`).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of weights, a damaged one, or one that holds more than weights; a folder of several.
    """
    if path.is_dir():
        path = file_in(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; check the path")
    unreadable = f"{path} is not a readable checkpoint or file of weights"
    try:
        content = (_read_safetensors if _is_safetensors(path) else _read_pytorch)(path, unreadable)
    except (UnsoundFileError, RepeatedKeyError):
        raise
    except Exception as error:  # torch.load raises whatever the damaged bytes lead to
        if isinstance(error, UnicodeEncodeError) and error.object == str(path):
            raise ValueError(
                f"{path}: PyTorch can open only names that are UTF-8, and in this locale, whose encoding is "
                f"{sys.getfilesystemencoding()}, this one is not; set PYTHONUTF8=1, or rename it"
            ) from None
        if needs := _needs(path, error):
            raise ValueError(
                f"{path} needs {named(needs)}, and weights are read without running anything; where you trust it "
                "and have its project, read it there and save its weights alone: "
                "torch.save({'state_dict': content['state_dict']}, ...)"
            ) from None
        # What the libraries say is for those who call them: PyTorch advises to run what is in the file.
        raise ValueError(f"{unreadable}: {_instead(path)}") from None
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ValueError(f"{path} holds a {kind}, not named weights: {instead_of_names(content)}")
    return content


def _read_pytorch(path: Path, unreadable: str) -> Any:
    with torch.serialization.safe_globals(_HARMLESS), path.open("rb") as file:
        if (found := signature_in(file)).kind != "pytorch":  # PyTorch would warn, and advise to run what is in it
            raise UnsoundFileError(f"{unreadable}: it is {found}")
        if not zipfile.is_zipfile(file):  # the form before PyTorch 1.6, which cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True)
        size = file.seek(0, 2)
        with zipfile.ZipFile(file) as archive:
            check_archive(archive, size, unreadable, compressed=False)
            records = {member.file_size for member in archive.infolist() if "/data/" in member.filename}
            ours = any(OURS.encode() in archive.read(name) for name in archive.namelist() if _is_pickle(name))
            # torch.load does not look at the checksums: weights that were damaged on the way would go unnoticed.
            damaged = archive.testzip() if ours else None
        if damaged is not None:
            raise UnsoundFileError(f"{unreadable}: {damaged} in it is damaged; take another copy")
        file.seek(0)
        content = torch.load(file if ours else path, map_location="cpu", weights_only=True, mmap=not ours)
    _check_tensors(content, size, records, unreadable)
    return content


def _is_safetensors(path: Path) -> bool:
    return path.suffix.lower() == ".safetensors"


def _is_pickle(name: str) -> bool:
    return name.endswith("/data.pkl")


def _check_tensors(content: Any, size: int, records: set[int], unreadable: str) -> None:
    """Refuse tensors that claim more numbers than the file has: mapped ones would show what lies behind theirs."""
    claimed = 0
    for tensor in _tensors(content):
        if tensor.is_meta:
            raise UnsoundFileError(f"{unreadable}: a tensor of shape {list(tensor.shape)} in it has no content")
        if tensor.layout is not torch.strided:
            continue  # sparse: no weights of ours, which is said where they are used
        bytes_, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
        claimed += bytes_
        if bytes_ > stored or (stored and stored not in records):
            raise UnsoundFileError(
                f"{unreadable}: a tensor of shape {list(tensor.shape)} in it claims more bytes than are stored for it"
            )
    if claimed > _MOST_SHARED * size:
        raise UnsoundFileError(f"{unreadable}: its tensors claim {claimed:,} bytes, but the file has {size:,}")


def _tensors(content: Any) -> Iterator[Tensor]:
    """All tensors in a file's content."""
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value


def _needs(path: Path, error: Exception) -> list[str]:
    """The classes and functions by which a PyTorch file is more than weights."""
    if _is_safetensors(path):
        return []
    if not zipfile.is_zipfile(path):
        return re.findall(r"(?i)unsupported (?:global: )?GLOBAL ([\w.]+)", str(error))[:1]
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a damaged file: what was raised before says so
        return []
    return sorted(set(found) - _KNOWN)


def _instead(path: Path) -> str:
    """What a file is that should be weights, and what to do."""
    found = signature_of(path)
    if found.kind == ("safetensors" if _is_safetensors(path) else "pytorch"):
        return f"it begins as {found.says}, but is damaged or cut off; download or write it again"
    return f"it is {found}"


def _read_safetensors(path: Path, unreadable: str) -> dict[str, Any]:
    size = path.stat().st_size
    with path.open("rb") as header:
        length = int.from_bytes(header.read(8), "little")
        begins = header.read(1)
        if begins == b"{" and length > size - 8:
            raise UnsoundFileError(
                f"{unreadable}: its header claims {length:,} bytes, but the file has {size:,}; it is damaged or cut off"
            )
        if begins == b"{":
            parse_json(begins + header.read(length - 1), unreadable)  # without names that occur twice
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        said = file.metadata() or {}
    if not said.get("format", "").startswith(OURS):
        return tensors
    values = {key: parse_json(value, f"{unreadable}: {key}") for key, value in said.items() if key != "format"}
    return {"format": said["format"], "model": tensors, **values}


def is_checkpoint(content: Mapping[str, Any]) -> bool:
    """Whether this is the content of a checkpoint of BiTAD that this version reads."""
    return content.get("format") in READABLE_FORMATS


def write_safetensors(
    tensors: Mapping[str, Tensor], path: Path, *, said: Mapping[str, str], synced: bool = False
) -> None:
    """Writes tensors and what is said of them, whole or not at all; ``synced`` as for `replacing`."""
    apart: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        # Two networks may share what is frozen; the form cannot say so.
        apart[name] = tensor.clone() if tensor.data_ptr() in seen else tensor.contiguous()
        seen.add(tensor.data_ptr())
    with replacing(path, synced=synced) as partial:
        rights = stat.S_IMODE(partial.stat().st_mode)
        try:
            save_file(apart, partial, metadata=dict(said))
            partial.chmod(rights)  # newer versions write another file in its place, which nobody else may read
        except SafetensorError as error:  # not an OSError, but what the disk said
            raise OSError(f"{path} cannot be written: {error}") from None
