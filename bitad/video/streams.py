"""A video file as FFmpeg gives it: its stream of pictures, the packets that hold them, and where they break off.

A cut-off file ends in a packet that is not whole. Containers that state lengths (MP4, Matroska, AVI, FLV) show it:
FFmpeg drops such a packet or marks it. Transport and program streams and bare streams state none, and a decoder may
turn half a picture into a whole wrong one without a word. There the last picture is decoded again in ways that tell.

This module does not import torch.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from bitad.signatures import signature_of

# FFmpeg's names of containers that state how long each packet is, and of those that state when each frame is shown.
_STATING_LENGTHS = {"mp4", "matroska", "avi", "flv", "asf"}
_STATING_TIMES = {"mp4", "matroska", "mpegts", "flv", "asf"}

# A whole picture of these codecs says where it ends, so what stands behind it changes nothing of it.
_ENDING_THEMSELVES = {"h264", "hevc"}
_BEHIND = (b"\x55" * 24, b"\xaa" * 24, b"\xff" * 24)


def open_video(path: Path, threads: int = 1) -> tuple[InputContainer, VideoStream]:
    """Open a file and choose its first video stream (a cover picture is none).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: FFmpeg cannot read it, or it has no video stream that FFmpeg can decode.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such video file")
    try:
        container = av.open(str(path))
    except av.FFmpegError as error:
        reason = _instead(path) or error.strerror
        raise ValueError(f"{path}: not a video that FFmpeg can read: {reason}") from None
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams or streams[0].codec_context is None:
        container.close()
        reason = "no decoder for its video" if streams else _instead(path) or "no video stream in it"
        raise ValueError(f"{path}: {reason}")
    streams[0].codec_context.thread_count = threads
    streams[0].codec_context.thread_type = "FRAME" if threads > 1 else "NONE"
    return container, streams[0]


def _instead(path: Path) -> str | None:
    """What a file is that should be a video; None: nothing that is known better than FFmpeg knows it."""
    found = signature_of(path)
    return None if found.kind in ("video", "picture", "text", "unknown", "empty", "zeros") else f"it is {found}"


def packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    """The stream's packets in the order of storage, to the file's end or to where it cannot be read on.

    The last one is empty: a decoder then gives what it still holds.
    """
    remaining = container.demux(stream)
    while True:
        try:
            packet = next(remaining, None)
        except av.FFmpegError:
            yield _packet(b"", stream)
            return
        if packet is None:
            return
        yield packet


def _packet(content: bytes, stream: VideoStream) -> Packet[VideoStream]:
    packet = cast("Packet[VideoStream]", Packet(content))
    packet.stream = stream
    return packet


def decode(packet: Packet[VideoStream]) -> tuple[list[VideoFrame], bool]:
    """The pictures that the decoder gives out for a packet, and whether the packet was whole and could be decoded."""
    try:
        return list(packet.decode()), not packet.is_corrupt
    except av.FFmpegError:
        return [], False


def pictures_until_damage(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame | None]:
    """The pictures from a file's beginning, up to the first that is damaged or may be made from a damaged one: a None.

    For files without times, whose frames behind a damaged one cannot be counted.
    """
    held: deque[VideoFrame] = deque()
    for packet in packets(container, stream):
        pictures, whole = decode(packet)
        held.extend(pictures)
        if not whole or any(picture.is_corrupt for picture in pictures):
            yield None  # those held may be made from it
            return
        # A picture may be made from ones that are shown up to this many later.
        while len(held) > max(stream.codec_context.reorder_depth, 0):
            yield held.popleft()
    yield from held


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


def states_times(container: InputContainer) -> bool:
    """Whether a container states for each frame when it is shown; else FFmpeg reckons it from the order of storage."""
    return bool(set(container.format.name.split(",")) & _STATING_TIMES)


def ends_in_whole_picture(path: Path, container: InputContainer, keyframe: int | None) -> bool:
    """Whether the last picture stored is whole, for the containers that do not state how long it is.

    Args:
        path: the file.
        container: the file as opened, for its form.
        keyframe: time in ticks of the last keyframe; None to decode from the beginning.
    """
    if set(container.format.name.split(",")) & _STATING_LENGTHS:
        return True
    if breaks_off(path, container):
        return False
    plain = _last_picture(path, keyframe, b"")
    if plain is None:
        return False
    if container.streams.video[0].codec_context.name not in _ENDING_THEMSELVES:
        return True  # decoded with every error told
    return all(plain == _last_picture(path, keyframe, behind) for behind in _BEHIND)


def _last_picture(path: Path, keyframe: int | None, behind: bytes) -> list[bytes] | None:
    """What the decoder gives out last, with something behind the last packet; None where that packet has errors."""
    container, stream = open_video(path)
    with container:
        strict = stream.codec_context.name not in _ENDING_THEMSELVES
        if strict:
            stream.codec_context.options = {"err_detect": "explode"}
        if keyframe is not None:
            container.seek(keyframe, stream=stream)
        last: Packet[VideoStream] | None = None
        for packet in packets(container, stream):
            if packet.size and (last is not None or keyframe in (None, packet.pts)):
                if last is not None:
                    decode(last)
                last = packet
        if last is None:  # the seek led behind the keyframe
            return None if keyframe is None else _last_picture(path, None, behind)
        extended = _packet(bytes(last) + behind, stream)
        extended.pts, extended.dts, extended.time_base = last.pts, last.dts, last.time_base
        pictures, whole = decode(extended)
        try:
            pictures += stream.codec_context.decode(None)
        except av.FFmpegError:
            return None
    if not whole or any(picture.is_corrupt for picture in pictures):
        return None
    return [picture.to_rgb().to_ndarray().tobytes() for picture in pictures]


def _boxes_end(file: BinaryIO, size: int) -> int:
    """Where the last box of an MP4 file should end, in bytes."""
    at = 0
    while at < size:
        file.seek(at)
        header = file.read(16)
        if len(header) < 8:
            return at + 8
        (length,) = struct.unpack(">I", header[:4])
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
