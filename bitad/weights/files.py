"""Files of weights: PyTorch's, safetensors, and folders of either; read without running code in them."""

from __future__ import annotations

import argparse
import re
import stat
import sys
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._pytree import tree_leaves

from bitad.runtime.files import RepeatedKeyError, atomic_write, parse_json
from bitad.runtime.log import log_once, printable, shortlist
from bitad.runtime.signatures import UnsoundFileError, check_archive, signature_in, signature_of
from bitad.weights.formats import describe_content
from bitad.weights.hub import HubName, hub_file, is_hub_name, similar_name

# The `format` of BiTAD's checkpoints, and of those that this version reads.
OURS = "bitad checkpoint"
FORMAT = f"{OURS} 4"
READABLE_FORMATS = (FORMAT, f"{OURS} 3", f"{OURS} 2")
# The frozen transformer of a run, beside its checkpoints.
BACKBONE_FILE = "backbone.safetensors"
# The files of a run, and of Hugging Face's `save_pretrained`; earlier ones are preferred.
_RUN_FILES = ("best.pt", "last.pt")
_HUGGING_FACE_FILES = ("model.safetensors", "pytorch_model.bin")
_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".tar"}
# Trainers write these beside the weights (Hugging Face's `Trainer`, and BiTAD).
_NOT_WEIGHTS = ("optimizer.", "scheduler.", "scaler.", "training_args.", "rng_state", BACKBONE_FILE)
_INDEX = ".index.json"


def file_in(folder: Path) -> Path:
    """The file of weights that a folder stands for; an error if there are several or none."""
    visible = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
    found = [
        name
        for name in visible
        if Path(name).suffix.lower() in _SUFFIXES and not name.lower().startswith(_NOT_WEIGHTS)
    ]
    for names, allows_others in ((_RUN_FILES, True), (_HUGGING_FACE_FILES, False)):
        if (here := [name for name in names if name in found]) and (allows_others or set(found) <= set(names)):
            return folder / here[0]
    if indices := [name for name in visible if name.endswith(_INDEX)]:
        raise ValueError(f"{folder}: {indices[0]} is {signature_of(folder / indices[0])}")
    if (folder / ".metadata").is_file() and any(name.endswith(".distcp") for name in visible):
        raise ValueError(
            f"{folder} is a distributed checkpoint of PyTorch; make one file of it: "
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.pth"
        )
    if len(found) > 1:
        raise ValueError(f"{folder} holds {len(found)} files of weights; name one of them: {shortlist(found)}")
    if not found:
        raise FileNotFoundError(
            f"run {folder} has no best.pt or last.pt yet and no other file of weights; train it first, or name a file"
        )
    return folder / found[0]


class _NumpyType:
    """Replaces ``numpy.dtype`` in files: it only stores the type's code."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


def _numpy_number(kind: _NumpyType, data: bytes) -> bool | int | float:
    """Replaces NumPy's reader of scalars, which crafted bytes can misuse; reads numbers only."""
    if not re.fullmatch(r"[biuf]\d+", kind.code):
        raise ValueError(f"a NumPy value of type {kind.code!r}; only numbers are read")
    number: bool | int | float = np.frombuffer(data, np.dtype(kind.order.replace("|", "=") + kind.code))[0].item()
    return number


# Harmless content of published files: VideoMAE's have the arguments of their training.
_HARMLESS: dict[str, Callable[..., Any]] = {
    "argparse.Namespace": argparse.Namespace,
    "numpy.dtype": _NumpyType,
    "numpy.core.multiarray.scalar": _numpy_number,
    "numpy._core.multiarray.scalar": _numpy_number,
}
# Tensors may share their storage: two networks what is frozen in both.
_MAX_SHARED = 8


def weights_path(weights: Path) -> Path:
    """The path of a file of weights: of ``hub:OWNER/NAME`` its download, else as :func:`local_path`.

    Raises ValueError or OSError if a name of the Hub cannot be downloaded, see :func:`~bitad.weights.hub.hub_file`.
    """
    if not is_hub_name(weights):
        return local_path(weights)
    file = hub_file(HubName.of(weights))
    log_once(f"{weights}: {file.path}, SHA-256 {file.sha256[:12]}...")
    return file.path


def local_path(weights: Path) -> Path:
    """The path of a file here: of ``package:NAME`` in the package, of a folder its file if it has one."""
    name = str(weights)
    if name.startswith("package:"):
        return Path(str(resources.files("bitad.config") / "presets" / name.removeprefix("package:")))
    if weights.is_dir():
        with suppress(ValueError, FileNotFoundError):
            return file_in(weights)
    return weights


def read_weights(path: Path) -> dict[str, Any]:
    """Reads the content of a file of weights, onto the CPU.

    PyTorch files are read with ``weights_only=True``: no code in them runs. A checkpoint of BiTAD, which its run may
    replace meanwhile, is read into memory, and its checksums are verified. Other PyTorch files are mapped.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of weights, or a damaged one; a folder of several.
    """
    if path.is_dir():
        path = file_in(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no weights at {path}; give a run directory or a file of weights, put there by hand, or a name to "
            f"download, such as {similar_name(path)}"
        )
    unreadable = f"{path} is not a readable checkpoint or file of weights"
    try:
        content = (_read_safetensors if _is_safetensors(path) else _read_pytorch)(path, unreadable)
    except (UnsoundFileError, RepeatedKeyError):
        raise
    except Exception as error:  # damaged bytes can make torch.load raise anything
        if isinstance(error, UnicodeEncodeError) and error.object == str(path):
            encoding = sys.getfilesystemencoding()
            raise ValueError(
                f"{path}: PyTorch cannot open this name in the encoding {encoding}; set PYTHONUTF8=1, or rename it"
            ) from None
        if needs := _needed_globals(path, error):
            raise ValueError(
                f"{path} needs {shortlist(needs)}, and weights are read without running code; if you trust the file, "
                "save its weights alone in its project: torch.save({'state_dict': content['state_dict']}, ...)"
            ) from None
        # PyTorch's own message advises to run the code in the file.
        raise ValueError(f"{unreadable}: {_describe(path)}") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a {type(content).__name__}, not named weights: {describe_content(content)}"
        )
    return content


def is_checkpoint(content: Mapping[str, Any]) -> bool:
    """Whether this is the content of a checkpoint of BiTAD that this version reads."""
    return content.get("format") in READABLE_FORMATS


def _read_pytorch(path: Path, unreadable: str) -> Any:
    globals_: list[Any] = [(replacement, name) for name, replacement in _HARMLESS.items()]
    with torch.serialization.safe_globals(globals_), path.open("rb") as file:
        if (found := signature_in(file)).kind != "pytorch":  # PyTorch would warn, and advise to run its code
            raise UnsoundFileError(f"{unreadable}: it is {found}")
        if not zipfile.is_zipfile(file):  # the form before PyTorch 1.6, which cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True)
        size = file.seek(0, 2)
        with zipfile.ZipFile(file) as archive:
            check_archive(archive, size, unreadable, compressed=False)
            records = {member.file_size for member in archive.infolist() if "/data/" in member.filename}
            ours = any(
                OURS.encode() in archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl")
            )
            # torch.load does not verify the checksums.
            damaged = archive.testzip() if ours else None
        if damaged is not None:
            raise UnsoundFileError(f"{unreadable}: {printable(damaged)} in it is damaged; use another copy")
        file.seek(0)
        content = torch.load(file if ours else path, map_location="cpu", weights_only=True, mmap=not ours)
    _check_tensors(content, size, records, unreadable)
    return content


def _is_safetensors(path: Path) -> bool:
    return path.suffix.lower() == ".safetensors"


def _check_tensors(content: Any, size: int, records: set[int], unreadable: str) -> None:
    """Refuses tensors that claim more numbers than are stored: mapped ones would show other parts of the file."""
    claimed = 0
    for tensor in tree_leaves(content):
        if not isinstance(tensor, Tensor):
            continue
        if tensor.is_meta:
            raise UnsoundFileError(f"{unreadable}: a tensor of shape {list(tensor.shape)} in it has no content")
        if tensor.layout is not torch.strided:
            continue  # sparse: refused where it is used
        bytes_, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
        claimed += bytes_
        if bytes_ > stored or (stored and stored not in records):
            raise UnsoundFileError(
                f"{unreadable}: a tensor of shape {list(tensor.shape)} in it claims more bytes than are stored"
            )
    if claimed > _MAX_SHARED * size:
        raise UnsoundFileError(f"{unreadable}: its tensors claim {claimed:,} bytes, but the file has {size:,}")


def _needed_globals(path: Path, error: Exception) -> list[str]:
    """The classes and functions that a PyTorch file needs beyond weights."""
    if _is_safetensors(path):
        return []
    if not zipfile.is_zipfile(path):
        return re.findall(r"(?i)unsupported (?:global: )?GLOBAL ([\w.]+)", str(error))[:1]
    with suppress(Exception):  # a damaged file: the error raised before says so
        return sorted(set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - _HARMLESS.keys())
    return []


def _describe(path: Path) -> str:
    """What a file is that should be weights, and what to do."""
    found = signature_of(path)
    if found.kind == ("safetensors" if _is_safetensors(path) else "pytorch"):
        return f"it begins as {found.description}, but is damaged or cut off; download or write it again"
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
            parse_json(begins + header.read(length - 1), unreadable)  # repeated names
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        metadata = file.metadata() or {}
    if not metadata.get("format", "").startswith(OURS):
        return tensors
    values = {key: parse_json(value, f"{unreadable}: {key}") for key, value in metadata.items() if key != "format"}
    return {"format": metadata["format"], "model": tensors, **values}


def write_safetensors(
    tensors: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, str] | None = None, synced: bool = False
) -> None:
    """Writes tensors and metadata, atomically; ``synced``: also if the machine goes down."""
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        # Two networks may share frozen weights; this form cannot.
        separate[name] = tensor.clone() if tensor.data_ptr() in seen else tensor.contiguous()
        seen.add(tensor.data_ptr())
    with atomic_write(path, synced=synced) as partial:
        rights = stat.S_IMODE(partial.stat().st_mode)
        try:
            save_file(separate, partial, metadata=dict(metadata or {}))
            partial.chmod(rights)  # newer versions replace the file by one that nobody else may read
        except SafetensorError as error:  # not an OSError, but the disk's message
            raise OSError(f"{path} cannot be written: {error}") from None
