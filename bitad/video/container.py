"""Video files as FFmpeg opens them: formats, streams, packets, and where a file is cut off.

FFmpeg is called here only. It takes a name such as ``http:host.mp4`` or ``concat:a|b`` for an address, and some formats
(playlists, session descriptions, scripts) name further files and addresses. A video file must never make the reader
open anything else, so files are opened by absolute path, in a list of formats.

A cut-off file ends in an incomplete packet. Containers that state lengths (MP4, Matroska, AVI, FLV) show it: FFmpeg
drops such a packet or marks it. Transport streams, program streams and bare streams state none, and a decoder may turn
half a picture into a whole wrong one without an error. There the last picture is decoded again in ways that show it.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, dropwhile, islice
from pathlib import Path
from typing import BinaryIO, cast

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from bitad.runtime.signatures import signature_of

# FFmpeg's names of the formats that are read: they hold video and are read from one file alone.
FORMATS = (
    *("mov", "mp4", "matroska", "webm", "avi", "flv", "live_flv", "kux", "asf", "asf_o", "mpegts", "mpeg", "mpegvideo"),
    *("h261", "h263", "h264", "hevc", "vvc", "evc", "m4v", "av1", "obu", "ivf", "vc1", "vc1test", "dirac", "cavsvideo"),
    *("avs2", "avs3", "mjpeg", "mjpeg_2000", "mpjpeg", "ogg", "nut", "nuv", "nsv", "mxf", "gxf", "lxf", "dv", "wtv"),
    *("rm", "ivr", "ty", "pva", "dhav", "swf", "gif", "apng", "amv", "yuv4mpegpipe", "roq", "smk", "bink", "flic"),
)

# The protocol alone is not enough: a format that is read from several files finds the others by the file protocol, and
# a QuickTime file may refer to another one that holds its pictures.
_READING = {"protocol_whitelist": "file", "format_whitelist": ",".join(FORMATS), "enable_drefs": "0"}


def open_input(path: Path, options: Mapping[str, str] | None = None) -> InputContainer:
    """Open a video file to read.

    Args:
        path: the file.
        options: of FFmpeg's, for its format.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: FFmpeg cannot read it, or its format is not one of ``FORMATS``.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such video file")
    try:
        return av.open(str(path.absolute()), options={**(options or {}), **_READING})
    except av.ArgumentError:
        raise ValueError(
            f"{path}: not a video that FFmpeg can read from this file alone (pictures, sound, subtitles, playlists and "
            "scripts are not read)"
        ) from None
    except av.FFmpegError as error:
        raise ValueError(f"{path}: not a video that FFmpeg can read: {instead(path) or error.strerror}") from None


def open_output(path: Path, container: str, options: Mapping[str, str] | None = None) -> OutputContainer:
    """Open a file to write.

    Args:
        path: the file.
        container: FFmpeg's name of its format.
        options: of that format.
    """
    return av.open(str(path.absolute()), "w", format=container, options=dict(options or {}))


def instead(path: Path) -> str | None:
    """What a file is that should be a video; None where FFmpeg's own message says as much."""
    found = signature_of(path)
    return None if found.kind in ("video", "picture", "text", "unknown", "empty", "zeros") else f"it is {found}"


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


# FFmpeg's names of containers that state how long each packet is, and of those that state when each frame is shown.
_STATING_LENGTHS = {"mp4", "matroska", "avi", "flv", "asf"}
_STATING_TIMES = {"mp4", "matroska", "mpegts", "flv", "asf"}

# Not every packet of a container that states when frames are shown need have a time of its own.
_PACKETS_TRIED = 32

# A whole picture of these codecs says where it ends, so bytes that follow do not change it.
_ENDING_THEMSELVES = {"h264", "hevc"}
_FOLLOWING = (b"\x55" * 24, b"\xaa" * 24, b"\xff" * 24)

# As in FFmpeg's av_find_best_stream: a stream with this many pictures is no still.
_FILM_PICTURES = 5

# Pictures that belong to a film: a player shows them in its place or above its time line.
_COVER = Disposition.attached_pic | Disposition.timed_thumbnails


@dataclass(frozen=True)
class Film:
    """Which stream of a file is read.

    Args:
        stream: its number in the file.
        note: which other films the file holds, in a sentence; empty where there is no other.
    """

    stream: int
    note: str = ""


def find_film(path: Path) -> Film:
    """Choose the stream that FFmpeg would, but never a cover, nor a still where there is a film.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: FFmpeg cannot read it, or it has no video stream that FFmpeg can decode.
    """
    with open_input(path) as container:
        films = [stream for stream in container.streams.video if not stream.disposition & _COVER]
        if not films:
            raise ValueError(f"{path}: {instead(path) or 'no video stream in it'}")
        films = [stream for stream in films if stream.codec_context is not None]
        if not films:
            raise ValueError(f"{path}: no decoder for its video")
        best = container.streams.best("video")
        if len(films) > 1:
            pictures = _pictures_up_to(_FILM_PICTURES, container, films)
            films = [stream for stream in films if pictures[stream.index] == max(pictures.values())]
        chosen = next((stream for stream in films if stream is best), None) or max(films, key=_prominence)
        if len(films) == 1:
            return Film(chosen.index)
        described = ", ".join(
            f"stream {stream.index} ({stream.codec_context.width}x{stream.codec_context.height})" for stream in films
        )
        return Film(chosen.index, f"holds {len(films)} films, {described}; stream {chosen.index} is used")


def _pictures_up_to(most: int, container: InputContainer, streams: Sequence[VideoStream]) -> dict[int, int]:
    """How many pictures each of some streams has, by its number, counted up to a limit."""
    pictures = {stream.index: 0 for stream in streams}
    try:
        for packet in container.demux(streams):
            if packet.size and pictures[packet.stream_index] < most:
                pictures[packet.stream_index] += 1
                if min(pictures.values()) == most:
                    break
    except av.FFmpegError:  # those counted so far decide
        pass
    return pictures


def _prominence(stream: VideoStream) -> tuple[bool, int, int]:
    """By what av_find_best_stream ranks streams, and then by size."""
    context = stream.codec_context
    return bool(stream.disposition & Disposition.default), stream.bit_rate or 0, context.width * context.height


def open_video(path: Path, stream: int | None = None, threads: int = 1) -> tuple[InputContainer, VideoStream]:
    """Open a file and one of its streams of pictures.

    Args:
        path: the file.
        stream: the stream's number in the file; by default the one that :func:`find_film` chooses.
        threads: decoder threads.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: FFmpeg cannot read it, or it has no video stream that FFmpeg can decode.
    """
    if stream is None:
        stream = find_film(path).stream
    container = open_input(path)
    film = next((video for video in container.streams.video if video.index == stream), None)
    if film is None or film.codec_context is None:
        container.close()
        raise ValueError(f"{path}: its stream {stream} is no video; the file has changed while it was read")
    film.codec_context.thread_count = threads
    film.codec_context.thread_type = "FRAME" if threads > 1 else "NONE"
    return container, film


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


def numbered(stored: Iterable[Packet[VideoStream]]) -> Iterator[Packet[VideoStream]]:
    """Packets from a file's beginning with their numbers, counted from 0, in the place of their times.

    A decoder passes them on to the pictures, which so tell what they come from.
    """
    number = 0
    for packet in stored:
        if packet.size:
            packet.pts = number
            number += 1
        yield packet


def joined(
    stored: Iterable[Packet[VideoStream]], stream: VideoStream, joins: NDArray[np.int64]
) -> Iterator[Packet[VideoStream]]:
    """Packets from a file's beginning with the times of one clock; an empty one where the decoder must restart.

    Args:
        stored: the packets.
        stream: of them.
        joins: as :class:`~bitad.video.index.FrameIndex` has them.
    """
    added = dict(joins.tolist())
    number = offset = 0
    for packet in stored:
        if packet.size:
            if number in added:
                offset = added[number]
                yield _packet(b"", stream)
            if offset and packet.pts is not None:
                packet.pts += offset
            number += 1
        yield packet


def first_times(path: Path, film: int, starts: Sequence[int], many: int) -> tuple[VideoFrame | None, list[list[float]]]:
    """The times of the first pictures that a decoder gives from a file's beginning and from each join on.

    Args:
        path: the file.
        film: its stream.
        starts: the packets, counted from 0, at which the parts of the file begin.
        many: pictures of each part.

    Returns:
        the very first picture, and for each part the times as FFmpeg has them; NaN where there is none.
    """
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


def pictures_until_damage(stored: Iterable[Packet[VideoStream]], stream: VideoStream) -> Iterator[VideoFrame | None]:
    """The pictures from a file's beginning, up to the first that is damaged or may be made from a damaged one: a None.

    For files without times, whose frames behind a damaged one cannot be counted.

    Args:
        stored: the file's packets, from the first to the last.
        stream: of them.
    """
    held: deque[VideoFrame] = deque()
    for packet in stored:
        pictures, whole = decode(packet)
        held.extend(pictures)
        if not whole or any(picture.is_corrupt for picture in pictures):
            yield None  # those held may be made from it
            return
        # A picture may be made from ones that are shown up to this many later.
        while len(held) > max(stream.codec_context.reorder_depth, 0):
            yield held.popleft()
    yield from held


def states_times(container: InputContainer) -> bool:
    """Whether a container states for each frame when it is shown; else FFmpeg reckons it from the order of storage."""
    return bool(set(container.format.name.split(",")) & _STATING_TIMES)


def wraps_after(container: InputContainer) -> int | None:
    """The ticks after which a container's times begin at 0 again, if any."""
    return 2**33 if set(container.format.name.split(",")) & {"mpegts", "mpeg"} else None


def states_presentation(path: Path, film: int) -> bool:
    """Whether any of a file's first packets states when it is shown, not only when it is decoded, or neither."""
    with open_input(path, {"fflags": "nofillin"}) as container:
        stated = (packet.pts is not None for packet in container.demux(container.streams[film]) if packet.size)
        try:
            return any(islice(stated, _PACKETS_TRIED))
        except av.FFmpegError:
            return False


def ends_in_whole_picture(path: Path, container: InputContainer, film: int, keyframe: int | None) -> bool:
    """Whether the last picture stored is whole, for the containers that do not state how long it is.

    Args:
        path: the file.
        container: the file as opened, for its form.
        film: the stream.
        keyframe: time in ticks of the last keyframe; None to decode from the beginning.
    """
    if set(container.format.name.split(",")) & _STATING_LENGTHS:
        return True
    if breaks_off(path, container):
        return False
    codec = next(stream for stream in container.streams.video if stream.index == film).codec_context.name
    return _is_whole(codec, partial(_picture_at_end, path, film, keyframe))


def whole_at_breaks(path: Path, film: int, ends: Collection[int]) -> set[int]:
    """Of groups of pictures that end where a stream breaks, those whose last picture is whole.

    FFmpeg marks packets there as damaged, even where two whole recordings are joined.

    Args:
        path: the file.
        film: its stream.
        ends: the last packet of each group, counted from 0 from the file's beginning.
    """
    container, stream = open_video(path, film)
    group: list[Packet[VideoStream]] = []
    whole = set()
    with container:
        stream.codec_context.options = {"err_detect": "explode"}
        for number, packet in enumerate(packet for packet in packets(container, stream) if packet.size):
            group = [packet] if packet.is_keyframe else [*group, packet]
            if number in ends:
                for held in group:
                    held.is_corrupt = False
                if _is_whole(stream.codec_context.name, partial(_last_picture, stream, group)):
                    whole.add(number)
    return whole


def _is_whole(codec: str, last_picture: Callable[[bytes], list[bytes] | None]) -> bool:
    """Whether a picture is whole: it has no errors, and bytes that follow it do not change it.

    Args:
        codec: FFmpeg's name of it.
        last_picture: bytes that follow the picture -> what the decoder gives for it.
    """
    plain = last_picture(b"")
    if plain is None:
        return False
    if codec not in _ENDING_THEMSELVES:
        return True  # decoded with every error told
    return all(plain == last_picture(following) for following in _FOLLOWING)


def _picture_at_end(path: Path, film: int, keyframe: int | None, following: bytes) -> list[bytes] | None:
    """The pictures that the decoder gives last for a file, with bytes after its end; None where these have errors."""
    container, stream = open_video(path, film)
    with container:
        if stream.codec_context.name not in _ENDING_THEMSELVES:
            stream.codec_context.options = {"err_detect": "explode"}
        if keyframe is not None:
            container.seek(keyframe, stream=stream)
        stored = (packet for packet in packets(container, stream) if packet.size)
        group = stored if keyframe is None else dropwhile(lambda packet: packet.pts != keyframe, stored)
        if (first := next(group, None)) is not None:
            return _last_picture(stream, chain([first], group), following)
    # The seek may have led past the keyframe.
    return None if keyframe is None else _picture_at_end(path, film, None, following)


def _last_picture(stream: VideoStream, group: Iterable[Packet[VideoStream]], following: bytes) -> list[bytes] | None:
    """What the decoder gives last for some packets, with bytes after them; None where these have errors."""
    context = stream.codec_context
    context.flush_buffers()
    last: Packet[VideoStream] | None = None
    for packet in group:
        if last is not None:
            decode(last)
        last = packet
    assert last is not None
    extended = _packet(bytes(last) + following, stream)
    extended.pts, extended.dts, extended.time_base = last.pts, last.dts, last.time_base
    pictures, whole = decode(extended)
    try:
        pictures += context.decode(None)
    except av.FFmpegError:
        return None
    if not whole or any(picture.is_corrupt for picture in pictures):
        return None
    return [picture.to_rgb().to_ndarray().tobytes() for picture in pictures]
