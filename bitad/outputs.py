"""Where results are written, checked before the work that makes them.

This module does not import torch.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path


def check_folder(folder: Path, option: str = "--out") -> None:
    """Refuse a folder that results cannot be written to. One that is missing will be made; nothing is made here.

    Args:
        option: which names the folder, for the message.

    Raises:
        ValueError: it is a file, or lies in one; its name is not UTF-8.
        OSError: nothing can be written there.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{option} {str(folder)!r}: the name is not UTF-8; give another folder") from None
    place = Path(os.path.abspath(folder))
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise ValueError(f"{option} {folder}: {place} is no folder; give another one")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise OSError(f"{option} {folder}: cannot write to {place}: {error.strerror}; give another folder") from None


def check_apart(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse output files that would replace an input file.

    Raises:
        ValueError: an output is an input, by whatever name.
    """
    read = [path for path in inputs if path.is_file()]
    for output in outputs:
        for path in read if output.exists() else []:
            if output.samefile(path):
                raise ValueError(f"{output}: the output would replace the input {path}; write it somewhere else")


def check_places(files: Iterable[Path]) -> None:
    """Refuse output files in whose places there is something else than a file.

    Raises:
        ValueError: a folder, a link to nothing, a pipe or a device.
    """
    for file in files:
        if os.path.lexists(file) and not file.is_file():
            kind = "a folder" if file.is_dir() else "a link to nothing" if file.is_symlink() else "a pipe or a device"
            raise ValueError(f"{file} will be written but is {kind}; move or remove it")


def check_file(file: Path, option: str = "--out", inputs: Iterable[Path] = ()) -> None:
    """Refuse a file that cannot be written, or whose writing would replace an input.

    Raises:
        ValueError: it is a folder or an input; its folder is none.
        OSError: nothing can be written in its folder.
    """
    if file.is_dir():
        raise ValueError(f"{option} {file}: it is a folder; give the name of a file")
    check_folder(file.parent, option)
    check_apart([file], inputs)
