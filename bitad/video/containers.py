"""Whether a file is cut off, holds several recordings or needs other files, by the lengths and headers in it.

This module does not import torch.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from av.container import InputContainer

# With what a recording begins, by FFmpeg's name of its container, where FFmpeg may stop at the end of the first one.
_BEGINNINGS = {
    "flv": b"FLV\x01",
    "matroska": b"\x1a\x45\xdf\xa3",
    "asf": b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c",
}
_PIECE_BYTES = 2**20

# The boxes of an MP4 file that lead to the list of the files that hold its data.
_TO_DATA_REFERENCES = (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref")


def breaks_off(path: Path, container: InputContainer) -> bool | None:
    """Whether a file is shorter than its container says; None where the container does not say."""
    names = set(container.format.name.split(","))
    size = path.stat().st_size
    with path.open("rb") as file:
        if "mp4" in names:
            end: int | None = max((start + length for _, start, length in _boxes(file, 0, size)), default=0)
        elif "matroska" in names:
            end = _segment_end(file)
        elif "avi" in names:
            end = 8 + int.from_bytes(file.read(8)[4:], "little")
        else:
            unit = _transport_packet(file) if "mpegts" in names else _sector(file) if "mpeg" in names else None
            return True if unit and size % unit else None
    return None if end is None else end > size


def holds_another(path: Path, container: InputContainer, end: int) -> bool:
    """Whether another recording follows the ones that FFmpeg reads, as where `cat` has joined files.

    Args:
        path: the file.
        container: the file as opened, for its form.
        end: where the last packet ends, at least, in bytes.
    """
    names = set(container.format.name.split(","))
    size = path.stat().st_size
    with path.open("rb") as file:
        if "mp4" in names:
            return sum(name == b"moov" for name, _, _ in _boxes(file, 0, size)) > 1
        return any(_contains(file, end, _BEGINNINGS[name]) for name in names & set(_BEGINNINGS))


def _contains(file: BinaryIO, start: int, sought: bytes) -> bool:
    """Whether bytes are in a file from a place on."""
    file.seek(start)
    before = b""
    while piece := file.read(_PIECE_BYTES):
        if sought in before + piece:
            return True
        before = piece[-len(sought) :]
    return False


def needs_other_files(path: Path, container: InputContainer) -> bool:
    """Whether a file says that some of its pictures or sound are in another one, as QuickTime's reference movies do."""
    if "mp4" not in set(container.format.name.split(",")):
        return False
    with path.open("rb") as file:
        return any(_names_files(file, 0, path.stat().st_size, _TO_DATA_REFERENCES))


def _names_files(file: BinaryIO, start: int, end: int, steps: tuple[bytes, ...]) -> Iterator[bool]:
    """For each data reference in some boxes whether it names another file (ISO/IEC 14496-12, 8.7.2)."""
    for name, at, length in _boxes(file, start, end):
        if not steps:
            file.seek(at + 8)
            yield not file.read(4).endswith(b"\x01")  # flag 1: the data is in this file
        elif name == steps[0]:
            # A list of references begins with a version and a count of four bytes each.
            inside = at + (16 if name == b"dref" else 8)
            yield from _names_files(file, inside, min(at + length, end), steps[1:])


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes of an MP4 file between two places: the name of each, where it begins, and its length in bytes."""
    while start < end:
        file.seek(start)
        header = file.read(16)
        if len(header) < 8:
            yield b"", start, 8  # cut off
            return
        length, name = struct.unpack(">I4s", header[:8])
        if length == 1 and len(header) == 16:
            (length,) = struct.unpack(">Q", header[8:])
        if length < 8:  # 0: to the end; else no box
            length = end - start
        yield name, start, length
        start += length


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
        width = 9 - head[4].bit_length()  # bytes of the length, which its leading zero bits give
        if width > 8 or len(head) < 4 + width:
            return None
        value = int.from_bytes(head[4 : 4 + width], "big") & ((1 << 7 * width) - 1)
        if value == (1 << 7 * width) - 1:  # unknown, as of a live stream
            return None
        end += 4 + width + value
    return end
