"""Files of weights as they lie on disk: PyTorch's, read without running anything in them, and safetensors."""

from __future__ import annotations

import argparse
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bitad.files import replacing

# What a safetensors file says in its `format` where it is one of our checkpoints; else it is tensors alone.
OURS = "bitad checkpoint"


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
_KNOWN = {"argparse.Namespace", "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"}


def weights_path(weights: Path) -> Path:
    """Where a file of weights lies; ``package:NAME`` is one that comes with the package."""
    name = str(weights)
    if name.startswith("package:"):
        return Path(str(resources.files("bitad") / "presets" / name.removeprefix("package:")))
    return weights


def read_weights(path: Path) -> dict[str, Any]:
    """Reads a file of weights as it stands, onto the CPU.

    PyTorch files are read with ``weights_only=True``: nothing in them is run. A safetensors file that is a checkpoint
    of ours gives the same content as the ``.pt`` that it was made of.

    A checkpoint of ours, which a run that goes on replaces, is read from one opened file, into memory, and its
    checksums are looked at. Tensors of other PyTorch files stay in them until they are used, where their form allows.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of weights, a damaged one, or one that holds more than weights.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; check the path")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        with torch.serialization.safe_globals(_HARMLESS), path.open("rb") as file:
            if not zipfile.is_zipfile(file):  # the form before PyTorch 1.6, which cannot be mapped
                content = torch.load(path, map_location="cpu", weights_only=True)
            elif _is_of_ours(file):
                content = _read_sound(file)
            else:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises whatever the damaged bytes lead to
        if needs := _needs(path):
            raise ValueError(
                f"{path} needs {', '.join(needs)}, and weights are read without running anything; where you trust it "
                "and have its project, read it there and save its weights alone: "
                "torch.save({'state_dict': content['state_dict']}, ...)"
            ) from None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is not a readable checkpoint or file of weights ({reason})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not named weights")
    return content


def _is_of_ours(file: BinaryIO) -> bool:
    with zipfile.ZipFile(file) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        return any(OURS.encode() in archive.read(name) for name in pickles)


def _read_sound(file: BinaryIO) -> Any:
    # torch.load does not look at the checksums: weights that were damaged on the way would go unnoticed.
    with zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} in it is damaged")
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


def _needs(path: Path) -> list[str]:
    """The classes and functions by which a PyTorch file is more than weights."""
    if path.suffix == ".safetensors" or not zipfile.is_zipfile(path):
        return []
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a damaged file: what was raised before says so
        return []
    return sorted(set(found) - _KNOWN)


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        said = file.metadata() or {}
    if not said.get("format", "").startswith(OURS):
        return tensors
    values = {key: json.loads(value) for key, value in said.items() if key != "format"}
    return {"format": said["format"], "model": tensors, **values}


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, *, said: Mapping[str, str]) -> None:
    """Writes tensors and what is said of them, whole or not at all."""
    apart: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        # Two networks may share what is frozen; the form cannot say so.
        apart[name] = tensor.clone() if tensor.data_ptr() in seen else tensor.contiguous()
        seen.add(tensor.data_ptr())
    with replacing(path) as partial:
        try:
            save_file(apart, partial, metadata=dict(said))
        except SafetensorError as error:  # not an OSError, but what the disk said
            raise OSError(f"{path} cannot be written: {error}") from None
