"""A video file as FFmpeg gives it: its stream of pictures, the packets that hold them, and where they break off.

A cut-off file ends in a packet that is not whole. Containers that state lengths (MP4, Matroska, AVI, FLV) show it:
FFmpeg drops such a packet or marks it. Transport and program streams and bare streams state none, and a decoder may
turn half a picture into a whole wrong one without a word. There the last picture is decoded again in ways that tell.

This module does not import torch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, dropwhile, islice
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from bitad.video.containers import breaks_off
from bitad.video.ffmpeg import instead, open_input

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
        joins: as :class:`~bitad.video.frame_index.FrameIndex` has them.
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
