"""Decodes a video in order, from any keyframe, with the number of each frame and without damaged ones.

A seek lands on some packet near the time asked for, so packets are skipped until the right keyframe. A decoder that
gets a damaged packet continues with guesses, in pictures that look like any other. So every picture that may depend on
such a packet counts as damaged, up to the next keyframe. Pictures that nobody needs, and on which no other depends, are
not decoded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from bitad.config.names import OnDecodeError
from bitad.video.container import decode, joined, open_video, packets, pictures_until_damage
from bitad.video.index import FrameIndex

# What to do about frames that cannot be decoded.

REMEDY = (
    "fetch it again, leave it out, or have the last good frame repeated (data.on_decode_error=repeat or "
    "--on-decode-error repeat)"
)

# An error names this many stretches of frames.
_SPANS_SHOWN = 4


def spans(numbers: Iterable[int]) -> str:
    """Frame numbers in words: "frame 7", "frames 7, 9 to 12"."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    shown = [str(first) if first == last else f"{first} to {last}" for first, last in runs[:_SPANS_SHOWN]]
    more = f" and {len(runs) - _SPANS_SHOWN} more stretches" if len(runs) > _SPANS_SHOWN else ""
    single = len(runs) == 1 and runs[0][0] == runs[0][1]
    return f"frame{'' if single else 's'} {', '.join(shown)}{more}"


def lost_frames(index: FrameIndex) -> str:
    """What a cut-off file has lost, in words."""
    return f"about {index.lost} frame{'s' if index.lost > 1 else ''} after frame {index.frames - 1} lost"


def counted(index: FrameIndex, damaged: OnDecodeError) -> int:
    """How many frames can be asked for: those that are there and, where damaged ones are repeated, those lost."""
    return index.frames + (index.lost if damaged == "repeat" else 0)


def require_whole(path: Path, index: FrameIndex, damaged: OnDecodeError) -> None:
    """Refuse a file that is cut off, unless what it has lost is to be repeated.

    Raises:
        ValueError: it is.
    """
    if index.lost and damaged == "error":
        raise ValueError(f"{path}: cut off, {lost_frames(index)}: {REMEDY}")


class _OutOfStepError(Exception):
    """Behind a seek come other packets than those that the index has there."""


class PictureStream:
    """The pictures of a video file in order.

    Args:
        path: the video file.
        index: where its frames are.
        threads: decoder threads.

    Attributes:
        begun: the frame at which decoding began.
        position: the frame that comes next.
    """

    def __init__(self, path: Path, index: FrameIndex, threads: int = 1) -> None:
        self._path, self._index, self._threads = path, index, threads
        self._container, self._stream = open_video(path, index.stream, threads)
        self._seeks = not len(index.joins)  # a time may stand in each part of a joined file
        self._unwanted: frozenset[int] = frozenset()
        self.begun = self.position = 0
        self._pictures = self._from_the_start()

    @property
    def stream(self) -> VideoStream:
        """The file's stream of pictures."""
        return self._stream

    @property
    def container(self) -> InputContainer:
        """The open file."""
        return self._container

    def close(self) -> None:
        """Close the file."""
        # The generator holds this object, which holds it: without this, both would wait for the garbage collector.
        self._pictures = iter(())
        self._container.close()

    def want(self, frames: Collection[int]) -> None:
        """Say which frames will be asked for next: of those between them, some need not be decoded.

        They come as None like damaged ones. Behind the last one wanted every frame is decoded.
        """
        if self._unwanted and self.position <= max(self._unwanted):
            self.begin(self._index.keyframe(self.position))  # one passed over may be wanted now
        between = range(min(frames), max(frames)) if frames else ()
        self._unwanted = frozenset(between).difference(frames)

    def begin(self, keyframe: int) -> None:
        """Go on from a keyframe of the index, or from frame 0."""
        self.begun = self.position = keyframe
        if keyframe == 0 or self._index.times is None:
            self.begun = self.position = 0
            self._pictures = self._from_the_start()
        else:
            self._pictures = self._timed(self._from_keyframe(keyframe), keyframe)

    def next(self) -> VideoFrame | None:
        """The picture of the frame at ``position``, or None where it cannot be decoded."""
        try:
            picture = next(self._pictures)
        except _OutOfStepError:
            self._seeks, position = False, self.position
            self.begin(self.begun)
            while self.position < position:
                self.next()
            return self.next()
        self.position += 1
        return picture

    def _from_the_start(self) -> Iterator[VideoFrame | None]:
        self._reopen()
        if self._index.times is None:
            return self._counted()
        return self._timed(self._packets(), 0)

    def _packets(self) -> Iterator[Packet[VideoStream]]:
        """The packets of a file that has just been opened."""
        return joined(packets(self._container, self._stream), self._stream, self._index.joins)

    def _reopen(self) -> None:
        self._container.close()
        self._container, self._stream = open_video(self._path, self._index.stream, self._threads)

    def _from_keyframe(self, keyframe: int) -> Iterator[Packet[VideoStream]]:
        """The packets from a keyframe's own on. Some containers' seeks land behind it; then from further back."""
        index = self._index
        assert index.times is not None
        place = int(index.keyframes.searchsorted(keyframe))
        for back in (0, 1, 4, 16) if self._seeks else ():
            if back > place:
                break
            try:
                self._container.seek(int(index.times[index.keyframes[place - back]]), stream=self._stream)
            except av.FFmpegError:
                break
            remaining = packets(self._container, self._stream)
            if (first := _found(remaining, int(index.times[keyframe]))) is not None:
                yield first
                yield from self._in_step(remaining, keyframe)
                return
        self._reopen()
        remaining = self._packets()
        if (first := _found(remaining, int(index.times[keyframe]), among_later=True)) is not None:
            yield first
        yield from remaining

    def _in_step(self, remaining: Iterator[Packet[VideoStream]], keyframe: int) -> Iterator[Packet[VideoStream]]:
        """The packets behind a keyframe's, as long as they are those that the index has there.

        Some containers state a time for some packets only, and behind a seek the others' are guesses.
        """
        index = self._index
        assert index.times is not None
        ahead = iter(index.times[index.stored[index.ranks[keyframe] + 1 :]].tolist())
        for packet in remaining:
            if packet.size and not packet.is_discard and packet.pts != next(ahead, packet.pts):
                raise _OutOfStepError
            yield packet

    def _timed(self, stored: Iterator[Packet[VideoStream]], first: int) -> Iterator[VideoFrame | None]:
        """Every frame from ``first`` on, the decoder's pictures told by their times.

        A picture is held back until all from which it may be made have come too, for one of them may be damaged.
        """
        index = self._index
        spoilt = np.zeros(index.frames, np.bool_)
        held: deque[tuple[int, VideoFrame]] = deque()
        latest, due = -1, first
        skips: bool | None = None  # a decoder that is used again still has what it was last told
        for packet in stored:
            context = self._stream.codec_context  # of the file as it is open now
            if skips != (skips := self._may_skip(packet)):
                context.skip_frame = "NONREF" if skips else "DEFAULT"
            if packet.is_corrupt and index.number(packet.pts) in index.sound:
                packet.is_corrupt = False
            pictures, whole = decode(packet)
            if not packet.size:
                context.flush_buffers()  # another part may follow
            if not whole and (number := self._damaged(packet)) is not None:
                spoilt |= index.spoilt(number)
            for picture in pictures:
                number = index.number(picture.pts)
                if number is None or number < due:
                    continue  # it is shown before the keyframe from which decoding began
                if picture.is_corrupt:
                    spoilt |= index.spoilt(number)
                held.append((number, picture))
                latest = max(latest, number)
            while held and (not packet.size or latest >= index.reach[held[0][0]]):
                number, picture = held.popleft()
                if number < due:
                    continue
                yield from [None] * (number - due)
                yield None if spoilt[number] else picture
                due = number + 1
        yield from [None] * (index.frames - due)

    def _may_skip(self, packet: Packet[VideoStream]) -> bool:
        """Whether a packet's picture need not be decoded, if no other is made from it."""
        return packet.size > 0 and self._threads == 1 and self._index.number(packet.pts) in self._unwanted

    def _damaged(self, packet: Packet[VideoStream]) -> int | None:
        """The frame of a packet that could not be decoded; of the earliest that it may be, with several threads."""
        number = self._index.number(packet.pts)
        if number is None or self._threads == 1:
            return number
        return int(self._index.stored[max(0, self._index.ranks[number] - self._threads)])

    def _counted(self) -> Iterator[VideoFrame | None]:
        """Every frame of a file without times."""
        pictures = pictures_until_damage(packets(self._container, self._stream), self._stream)
        for _ in range(self._index.frames):
            yield next(pictures, None)


def _found(
    remaining: Iterator[Packet[VideoStream]], time: int, *, among_later: bool = False
) -> Packet[VideoStream] | None:
    """The packet of a time in ticks; None where a later keyframe comes before it, unless told to look on."""
    for packet in remaining:
        if packet.size and packet.pts == time:
            return packet
        if not among_later and packet.size and packet.is_keyframe and packet.pts is not None and packet.pts > time:
            return None
    return None
