"""Whether a file is as long as its container says, or longer, told by the lengths and headers in it.

This module does not import torch.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from av.container import InputContainer


def breaks_off(path: Path, container: InputContainer) -> bool | None:
    """Whether a file is shorter than its container says; None where that says nothing of it."""
    names = set(container.format.name.split(","))
    size = path.stat().st_size
    with path.open("rb") as file:
        if "mp4" in names:
            end: int | None = _boxes_end(file, size)
        elif "matroska" in names:
            end = _segment_end(file)
        elif "avi" in names:
            end = 8 + int.from_bytes(file.read(8)[4:], "little")
        else:
            unit = _transport_packet(file) if "mpegts" in names else _sector(file) if "mpeg" in names else None
            return True if unit and size % unit else None
    return None if end is None else end > size


def another_behind(path: Path, container: InputContainer, end: int) -> bool:
    """Whether another recording stands behind the one that FFmpeg reads, as where `cat` has joined files.

    Args:
        path: the file.
        container: the file as opened, for its form.
        end: where the last packet ends, at least, in bytes.
    """
    names = set(container.format.name.split(","))
    with path.open("rb") as file:
        if "mp4" in names:
            boxes: list[bytes] = []
            _boxes_end(file, path.stat().st_size, boxes)
            return boxes.count(b"moov") > 1
        file.seek(end)
        return "flv" in names and b"FLV\x01" in file.read(64)


def _boxes_end(file: BinaryIO, size: int, names: list[bytes] | None = None) -> int:
    """Where the last box of an MP4 file should end, in bytes; the boxes' names are added to ``names``."""
    at = 0
    while at < size:
        file.seek(at)
        header = file.read(16)
        if len(header) < 8:
            return at + 8
        (length,) = struct.unpack(">I", header[:4])
        if names is not None:
            names.append(header[4:8])
        if length == 1 and len(header) == 16:
            (length,) = struct.unpack(">Q", header[8:])
        if length < 8:  # 0: to the end of the file; else no box
            return size
        at += length
    return at


def _transport_packet(file: BinaryIO) -> int:
    """The length of a transport stream's packets, in bytes; cameras put four of a time stamp before each."""
    return 188 if file.read(1) == b"\x47" else 192


def _sector(file: BinaryIO) -> int | None:
    """The length in bytes, of which a program stream is a whole number: a DVD's or a Video CD's sector, or None."""
    second = file.read(2**20).find(b"\x00\x00\x01\xba", 4)  # the first pack begins the file
    return next((sector for sector in (2048, 2324) if second > 0 and second % sector == 0), None)


def _segment_end(file: BinaryIO) -> int | None:
    """Where a Matroska file's segment should end, in bytes; None where it does not say (RFC 8794, RFC 9559)."""
    end = 0
    for element in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):  # EBML, Segment
        file.seek(end)
        head = file.read(12)
        if not head.startswith(element) or len(head) < 5:
            return None
        width = 9 - head[4].bit_length()  # bytes of the length, told by its leading zero bits
        if width > 8 or len(head) < 4 + width:
            return None
        value = int.from_bytes(head[4 : 4 + width], "big") & ((1 << 7 * width) - 1)
        if value == (1 << 7 * width) - 1:  # unknown, as of a live stream
            return None
        end += 4 + width + value
    return end
