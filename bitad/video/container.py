"""Opens video files with FFmpeg, reads their packets, and finds out whether a file is truncated.

FFmpeg takes a name such as ``http:host.mp4`` for an address, and some formats refer to other files. So this module
alone opens files, by absolute path and in a list of formats.

A truncated file ends in an incomplete packet. FFmpeg drops or marks it where the container states lengths. Elsewhere
the last picture is decoded again in ways that reveal it.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, dropwhile, islice
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias, cast

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from bitad.runtime.signatures import signature_of

VideoPacket: TypeAlias = "Packet[VideoStream]"

# FFmpeg's names of the accepted formats: they contain video and consist of one file.
FORMATS = (
    *(
        "mov",
        "mp4",
        "matroska",
        "webm",
        "avi",
        "flv",
        "live_flv",
        "kux",
        "asf",
        "asf_o",
        "mpegts",
        "mpeg",
        "mpegvideo",
    ),
    *(
        "h261",
        "h263",
        "h264",
        "hevc",
        "vvc",
        "evc",
        "m4v",
        "av1",
        "obu",
        "ivf",
        "vc1",
        "vc1test",
        "dirac",
        "cavsvideo",
    ),
    *(
        "avs2",
        "avs3",
        "mjpeg",
        "mjpeg_2000",
        "mpjpeg",
        "ogg",
        "nut",
        "nuv",
        "nsv",
        "mxf",
        "gxf",
        "lxf",
        "dv",
        "wtv",
    ),
    *("rm", "ivr", "ty", "pva", "dhav", "swf", "gif", "apng", "amv", "yuv4mpegpipe", "roq", "smk", "bink", "flic"),
)

# Formats of several files, and references in QuickTime files, use the file protocol too.
_READ_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": ",".join(FORMATS), "enable_drefs": "0"}

# Containers that state each packet's length, and when each frame is shown.
_WITH_LENGTHS = {"mp4", "matroska", "avi", "flv", "asf"}
_WITH_TIMES = {"mp4", "matroska", "mpegts", "flv", "asf"}

# Even in these not every packet has a time of its own.
_PACKETS_TRIED = 32

# The first bytes of a recording, where FFmpeg may stop after the first of several.
_FIRST_BYTES = {
    "flv": b"FLV\x01",
    "matroska": b"\x1a\x45\xdf\xa3",
    "asf": b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c",
}
_CHUNK_BYTES = 2**20

# The path of MP4 boxes to the list of files with the data.
_DATA_REFERENCES = (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref")

# A complete picture of these codecs marks its end: bytes after it do not change it.
_SELF_DELIMITING = {"h264", "hevc"}
_PADDING = (b"\x55" * 24, b"\xaa" * 24, b"\xff" * 24)

# As in FFmpeg's av_find_best_stream: a stream with this many pictures is not a still.
_FILM_PICTURES = 5

# Pictures that accompany a film: players show them in its place or above its time line.
_COVER = Disposition.attached_pic | Disposition.timed_thumbnails


def open_input(path: Path, options: Mapping[str, str] | None = None) -> InputContainer:
    """Open a video file to read, with FFmpeg's ``options`` for its format.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: FFmpeg cannot read it, or its format is not one of ``FORMATS``.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such video file")
    try:
        return av.open(str(path.absolute()), options={**(options or {}), **_READ_OPTIONS})
    except av.ArgumentError:
        raise ValueError(
            f"{path}: not a video that FFmpeg can read from this file alone; name a video file"
        ) from None
    except av.FFmpegError as error:
        raise ValueError(
            f"{path}: not a video that FFmpeg can read: {_actual_type(path) or error.strerror}"
        ) from None


def open_output(path: Path, container: str, options: dict[str, str]) -> OutputContainer:
    return av.open(str(path.absolute()), "w", format=container, options=options)


def _actual_type(path: Path) -> str | None:
    found = signature_of(path)
    return None if found.kind in ("video", "picture", "text", "unknown", "empty", "zeros") else f"it is {found}"


def _formats(container: InputContainer) -> set[str]:
    return set(container.format.name.split(","))


class Film(NamedTuple):
    """The index of a stream, and a sentence about other films in the file."""

    stream: int
    note: str = ""


def find_film(path: Path) -> Film:
    """The stream that FFmpeg would choose, but never a cover, nor a still beside a film."""
    with open_input(path) as container:
        films = [stream for stream in container.streams.video if not stream.disposition & _COVER]
        if not films:
            raise ValueError(f"{path}: {_actual_type(path) or 'no video stream in it'}")
        films = [stream for stream in films if stream.codec_context is not None]
        if not films:
            raise ValueError(f"{path}: no decoder for its video")
        best = container.streams.best("video")
        if len(films) > 1:
            pictures = _count_pictures(container, films)
            films = [stream for stream in films if pictures[stream.index] == max(pictures.values())]
        chosen = best if best is not None and best in films else max(films, key=_prominence)
        if len(films) == 1:
            return Film(chosen.index)
        sizes = ", ".join(f"stream {s.index} ({s.codec_context.width}x{s.codec_context.height})" for s in films)
        return Film(chosen.index, f"holds {len(films)} films, {sizes}; stream {chosen.index} is used")


def _count_pictures(container: InputContainer, streams: Sequence[VideoStream]) -> dict[int, int]:
    pictures = {stream.index: 0 for stream in streams}
    try:
        for packet in container.demux(streams):
            if packet.size and pictures[packet.stream_index] < _FILM_PICTURES:
                pictures[packet.stream_index] += 1
                if min(pictures.values()) == _FILM_PICTURES:
                    break
    except av.FFmpegError:  # the counts so far decide
        pass
    return pictures


def _prominence(stream: VideoStream) -> tuple[bool, int, int]:
    """The order of av_find_best_stream, then of size."""
    context = stream.codec_context
    return bool(stream.disposition & Disposition.default), stream.bit_rate or 0, context.width * context.height


def open_video(path: Path, stream: int | None = None) -> tuple[InputContainer, VideoStream]:
    """Open one video stream of a file, by default that of :func:`find_film`. Raises like :func:`open_input`."""
    if stream is None:
        stream = find_film(path).stream
    container = open_input(path)
    film = next((video for video in container.streams.video if video.index == stream), None)
    if film is None or film.codec_context is None:
        container.close()
        raise ValueError(f"{path}: its stream {stream} is not a video; the file has changed while it was read")
    film.codec_context.thread_count = 1
    film.codec_context.thread_type = "NONE"
    return container, film


def packets(container: InputContainer, stream: VideoStream) -> Iterator[VideoPacket]:
    """The packets in storage order, up to the end or the first read error; the last is empty."""
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


def _packet(content: bytes, stream: VideoStream) -> VideoPacket:
    packet = cast("VideoPacket", Packet(content))
    packet.stream = stream
    return packet


def decode(packet: VideoPacket) -> tuple[list[VideoFrame], bool]:
    """The decoded pictures, and whether the packet is good."""
    try:
        return list(packet.decode()), not packet.is_corrupt
    except av.FFmpegError:
        return [], False


def numbered(stored: Iterable[VideoPacket]) -> Iterator[VideoPacket]:
    """Replace the times of packets by their numbers, which the decoder passes on."""
    number = 0
    for packet in stored:
        if packet.size:
            packet.pts = number
            number += 1
        yield packet


def joined(stored: Iterable[VideoPacket], stream: VideoStream, joins: NDArray[np.int64]) -> Iterator[VideoPacket]:
    """Put packets on one clock by a ``FrameIndex``'s ``joins``; empty ones flush the decoder."""
    offsets = dict(joins.tolist())
    number = offset = 0
    for packet in stored:
        if packet.size:
            if number in offsets:
                offset = offsets[number]
                yield _packet(b"", stream)
            if offset and packet.pts is not None:
                packet.pts += offset
            number += 1
        yield packet


def first_times(
    path: Path, film: int, starts: Sequence[int], many: int
) -> tuple[VideoFrame | None, list[list[float]]]:
    """The first picture, and the times in ticks of the first ``many`` pictures of each part."""
    container, stream = open_video(path, film)
    first: VideoFrame | None = None
    times: list[list[float]] = [[]]
    with container:
        for packet in joined(packets(container, stream), stream, np.array([(start, 0) for start in starts[1:]])):
            if len(times[-1]) < many:
                pictures, _ = decode(packet)
                first = first or next(iter(pictures), None)
                times[-1] += [np.nan if picture.pts is None else picture.pts for picture in pictures]
            elif len(times) == len(starts):
                break
            if not packet.size:
                stream.codec_context.flush_buffers()
                times.append([])
    return first, [part[:many] for part in times[: len(starts)]]


def pictures_until_damage(stored: Iterable[VideoPacket], stream: VideoStream) -> Iterator[VideoFrame | None]:
    """The pictures of a file until one is damaged or may depend on a damaged one: None."""
    held: deque[VideoFrame] = deque()
    for packet in stored:
        pictures, is_good = decode(packet)
        held.extend(pictures)
        if not is_good or any(picture.is_corrupt for picture in pictures):
            yield None  # the held pictures may depend on it
            return
        # A picture may depend on pictures that are shown up to this many later.
        while len(held) > max(stream.codec_context.reorder_depth, 0):
            yield held.popleft()
    yield from held


def states_times(container: InputContainer) -> bool:
    return bool(_formats(container) & _WITH_TIMES)


def states_presentation(path: Path, film: int) -> bool:
    """Whether any of the first packets states when it is shown."""
    with open_input(path, {"fflags": "nofillin"}) as container:
        stated = (packet.pts is not None for packet in container.demux(container.streams[film]) if packet.size)
        try:
            return any(islice(stated, _PACKETS_TRIED))
        except av.FFmpegError:
            return False


def wraps_after(container: InputContainer) -> int | None:
    return 2**33 if _formats(container) & {"mpegts", "mpeg"} else None


def is_truncated(path: Path, container: InputContainer) -> bool | None:
    """Whether a file is shorter than its container states; None if that states nothing."""
    formats, size = _formats(container), path.stat().st_size
    with path.open("rb") as file:
        if "mp4" in formats:
            end: int | None = max((start + length for _, start, length in _boxes(file, 0, size)), default=0)
        elif "matroska" in formats:
            end = _segment_end(file)
        elif "avi" in formats:
            end = 8 + int.from_bytes(file.read(8)[4:], "little")
        else:
            unit = _transport_packet(file) if "mpegts" in formats else _sector(file) if "mpeg" in formats else None
            return True if unit and size % unit else None
    return None if end is None else end > size


def has_unread_recording(path: Path, container: InputContainer, end: int) -> bool:
    """Whether another recording follows those that FFmpeg reads, as in files joined by `cat`."""
    formats, size = _formats(container), path.stat().st_size
    with path.open("rb") as file:
        if "mp4" in formats:
            return sum(name == b"moov" for name, _, _ in _boxes(file, 0, size)) > 1
        return any(_contains(file, end, _FIRST_BYTES[name]) for name in formats & set(_FIRST_BYTES))


def _contains(file: BinaryIO, start: int, sought: bytes) -> bool:
    file.seek(start)
    before = b""
    while chunk := file.read(_CHUNK_BYTES):
        if sought in before + chunk:
            return True
        before = chunk[-len(sought) :]
    return False


def needs_other_files(path: Path, container: InputContainer) -> bool:
    if "mp4" not in _formats(container):
        return False
    with path.open("rb") as file:
        return any(_references(file, 0, path.stat().st_size, _DATA_REFERENCES))


def _references(file: BinaryIO, start: int, end: int, steps: tuple[bytes, ...]) -> Iterator[bool]:
    """For each data reference in some boxes, whether it names another file (ISO/IEC 14496-12, 8.7.2)."""
    for name, at, length in _boxes(file, start, end):
        if not steps:
            file.seek(at + 8)
            yield not file.read(4).endswith(b"\x01")  # flag 1: the data is in this file
        elif name == steps[0]:
            # A list of references begins with a version and a count of four bytes each.
            inside = at + (16 if name == b"dref" else 8)
            yield from _references(file, inside, min(at + length, end), steps[1:])


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The MP4 boxes between two positions: name, position and length in bytes."""
    while start < end:
        file.seek(start)
        header = file.read(16)
        if len(header) < 8:
            yield b"", start, 8  # truncated
            return
        length, name = struct.unpack(">I4s", header[:8])
        if length == 1 and len(header) == 16:
            (length,) = struct.unpack(">Q", header[8:])
        if length < 8:  # 0: to the end; otherwise not a box
            length = end - start
        yield name, start, length
        start += length


def _transport_packet(file: BinaryIO) -> int:
    return 188 if file.read(1) == b"\x47" else 192


def _sector(file: BinaryIO) -> int | None:
    """The sector length of a DVD's or a Video CD's program stream, in bytes."""
    second = file.read(2**20).find(b"\x00\x00\x01\xba", 4)  # the first pack begins the file
    return next((sector for sector in (2048, 2324) if second > 0 and second % sector == 0), None)


def _segment_end(file: BinaryIO) -> int | None:
    """The stated end of a Matroska file's segment, in bytes; None if it states none (RFC 8794, RFC 9559)."""
    end = 0
    for element in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):  # EBML, Segment
        file.seek(end)
        head = file.read(12)
        if not head.startswith(element) or len(head) < 5:
            return None
        width = 9 - head[4].bit_length()  # bytes of the length, given by its leading zero bits
        if width > 8 or len(head) < 4 + width:
            return None
        value = int.from_bytes(head[4 : 4 + width], "big") & ((1 << 7 * width) - 1)
        if value == (1 << 7 * width) - 1:  # unknown, as in a live stream
            return None
        end += 4 + width + value
    return end


def ends_in_complete_picture(path: Path, container: InputContainer, film: int, keyframe: int | None) -> bool:
    """Whether the last stored picture is complete, decoded from a keyframe's time or the start."""
    if _formats(container) & _WITH_LENGTHS:
        return True
    if is_truncated(path, container):
        return False
    codec = next(stream for stream in container.streams.video if stream.index == film).codec_context.name
    return _is_complete(codec, partial(_decode_end, path, film, keyframe))


def complete_at_breaks(path: Path, film: int, ends: Collection[int]) -> set[int]:
    """Which of these last packets of groups of pictures are complete.

    FFmpeg marks packets before a break in the stream as damaged, even where recordings are joined.
    """
    container, stream = open_video(path, film)
    group: list[VideoPacket] = []
    complete = set()
    with container:
        stream.codec_context.options = {"err_detect": "explode"}
        for number, packet in enumerate(packet for packet in packets(container, stream) if packet.size):
            group = [packet] if packet.is_keyframe else [*group, packet]
            if number in ends:
                for held in group:
                    held.is_corrupt = False
                if _is_complete(stream.codec_context.name, partial(_decode_last, stream, group)):
                    complete.add(number)
    return complete


def _is_complete(codec: str, decode_padded: Callable[[bytes], list[bytes] | None]) -> bool:
    plain = decode_padded(b"")
    if plain is None or codec not in _SELF_DELIMITING:  # other codecs report every error
        return plain is not None
    return all(plain == decode_padded(padding) for padding in _PADDING)


def _decode_end(path: Path, film: int, keyframe: int | None, padding: bytes) -> list[bytes] | None:
    container, stream = open_video(path, film)
    with container:
        if stream.codec_context.name not in _SELF_DELIMITING:
            stream.codec_context.options = {"err_detect": "explode"}
        if keyframe is not None:
            container.seek(keyframe, stream=stream)
        stored = (packet for packet in packets(container, stream) if packet.size)
        group = stored if keyframe is None else dropwhile(lambda packet: packet.pts != keyframe, stored)
        if (first := next(group, None)) is not None:
            return _decode_last(stream, chain([first], group), padding)
    # The seek may have passed the keyframe.
    return None if keyframe is None else _decode_end(path, film, None, padding)


def _decode_last(stream: VideoStream, group: Iterable[VideoPacket], padding: bytes) -> list[bytes] | None:
    """The last pictures of some packets with bytes added; None if they have errors."""
    context = stream.codec_context
    context.flush_buffers()
    last: VideoPacket | None = None
    for packet in group:
        if last is not None:
            decode(last)
        last = packet
    assert last is not None
    padded = _packet(bytes(last) + padding, stream)
    padded.pts = last.pts
    padded.dts = last.dts
    padded.time_base = last.time_base
    pictures, is_good = decode(padded)
    try:
        pictures += context.decode(None)
    except av.FFmpegError:
        return None
    if not is_good or any(picture.is_corrupt for picture in pictures):
        return None
    return [picture.to_rgb().to_ndarray().tobytes() for picture in pictures]
