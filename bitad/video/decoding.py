"""Decodes a video in order from any keyframe, and omits damaged frames.

A seek lands near the requested time, so packets are skipped until the right keyframe. A decoder conceals
damage, so every picture that may depend on a damaged packet counts as damaged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame

from bitad.config.names import OnDecodeError
from bitad.video.container import VideoPacket, decode, joined, open_video, packets, pictures_until_damage
from bitad.video.index import FrameIndex

REMEDY = (
    "download it again, remove it, or repeat the last good frame (data.on_decode_error=repeat or "
    "--on-decode-error repeat)"
)


def describe_loss(index: FrameIndex) -> str:
    return f"about {index.lost} frame{'s' if index.lost > 1 else ''} after frame {index.frames - 1} lost"


def frame_count(index: FrameIndex, damaged: OnDecodeError) -> int:
    """The number of frames that can be read; "repeat" includes lost ones."""
    return index.frames + (index.lost if damaged == "repeat" else 0)


def require_complete(path: Path, index: FrameIndex, damaged: OnDecodeError) -> None:
    """Raise ValueError if a truncated file's lost frames are not repeated."""
    if index.lost and damaged == "error":
        raise ValueError(f"{path}: cut off, {describe_loss(index)}: {REMEDY}")


class _SeekError(Exception):
    """The packets after a seek are not those of the index."""


class PictureStream:
    """The pictures of a video file, from frame ``position`` on; decoding began at frame ``begun``."""

    def __init__(self, path: Path, index: FrameIndex) -> None:
        self._path = path
        self._index = index
        self.container, self.stream = open_video(path, index.stream)
        self._can_seek = not len(index.joins)  # in a joined file a time may occur in each part
        self._unwanted: frozenset[int] = frozenset()
        self.begun = self.position = 0
        self._pictures = self._from_start()

    def close(self) -> None:
        # The generator and this object refer to each other: break the cycle.
        self._pictures = iter(())
        self.container.close()

    def want(self, frames: Collection[int]) -> None:
        """Announce the next frames to read; others between them may come as None."""
        if self._unwanted and self.position <= max(self._unwanted):
            self.begin(self._index.keyframe(self.position))  # a skipped frame may be wanted now
        between = range(min(frames), max(frames)) if frames else ()
        self._unwanted = frozenset(between).difference(frames)

    def begin(self, keyframe: int) -> None:
        """Continue from a keyframe of the index, or from frame 0."""
        if self._index.times is None:
            keyframe = 0
        self.begun = self.position = keyframe
        self._pictures = self._timed(self._from_keyframe(keyframe), keyframe) if keyframe else self._from_start()

    def next(self) -> VideoFrame | None:
        """The picture of the frame at ``position``; None if it cannot be decoded."""
        try:
            picture = next(self._pictures)
        except _SeekError:
            self._can_seek = False
            position = self.position
            self.begin(self.begun)
            while self.position < position:
                self.next()
            return self.next()
        self.position += 1
        return picture

    def _from_start(self) -> Iterator[VideoFrame | None]:
        stored = self._reopened()
        if self._index.times is not None:
            return self._timed(joined(stored, self.stream, self._index.joins), 0)
        pictures = pictures_until_damage(stored, self.stream)
        return (next(pictures, None) for _ in range(self._index.frames))

    def _reopened(self) -> Iterator[VideoPacket]:
        self.container.close()
        self.container, self.stream = open_video(self._path, self._index.stream)
        return packets(self.container, self.stream)

    def _from_keyframe(self, keyframe: int) -> Iterator[VideoPacket]:
        """The packets from a keyframe on. A seek may land after it; then seek further back."""
        index = self._index
        assert index.times is not None
        time = int(index.times[keyframe])
        place = int(index.keyframes.searchsorted(keyframe))
        for back in (0, 1, 4, 16) if self._can_seek else ():
            if back > place:
                break
            try:
                self.container.seek(int(index.times[index.keyframes[place - back]]), stream=self.stream)
            except av.FFmpegError:
                break
            remaining = packets(self.container, self.stream)
            if (first := _find_packet(remaining, time)) is not None:
                yield first
                yield from self._verified(remaining, keyframe)
                return
        stored = self._reopened()
        remaining = joined(stored, self.stream, index.joins)
        if (first := _find_packet(remaining, time, pass_keyframes=True)) is not None:
            yield first
        yield from remaining

    def _verified(self, remaining: Iterator[VideoPacket], keyframe: int) -> Iterator[VideoPacket]:
        """The packets after a keyframe's, if they match the index: after a seek FFmpeg may guess times."""
        index = self._index
        assert index.times is not None
        expected = iter(index.times[index.stored[index.ranks[keyframe] + 1 :]].tolist())
        for packet in remaining:
            if packet.size and not packet.is_discard and packet.pts != next(expected, packet.pts):
                raise _SeekError
            yield packet

    def _timed(self, stored: Iterator[VideoPacket], first: int) -> Iterator[VideoFrame | None]:
        """Every frame from ``first`` on, by the times of the decoder's pictures.

        A picture is held until all pictures that it may depend on have come, as one may be damaged.
        """
        index = self._index
        is_damaged = np.zeros(index.frames, np.bool_)
        held: deque[tuple[int, VideoFrame]] = deque()
        latest, due = -1, first
        skips: bool | None = None  # a used decoder keeps its last setting
        for packet in stored:
            context = self.stream.codec_context  # of the file as it is open now
            stored_frame = index.number(packet.pts) if packet.size else None
            if skips != (skips := stored_frame in self._unwanted):
                context.skip_frame = "NONREF" if skips else "DEFAULT"
            if packet.is_corrupt and stored_frame in index.sound:
                packet.is_corrupt = False
            pictures, is_good = decode(packet)
            if not packet.size:
                context.flush_buffers()  # another part may follow
            if not is_good and stored_frame is not None:
                is_damaged |= index.affected_by(stored_frame)
            for picture in pictures:
                number = index.number(picture.pts)
                if number is None or number < due:
                    continue  # shown before the first keyframe
                if picture.is_corrupt:
                    is_damaged |= index.affected_by(number)
                held.append((number, picture))
                latest = max(latest, number)
            while held and (not packet.size or latest >= index.reach[held[0][0]]):
                number, picture = held.popleft()
                if number < due:
                    continue
                yield from [None] * (number - due)
                yield None if is_damaged[number] else picture
                due = number + 1
        yield from [None] * (index.frames - due)


def _find_packet(
    remaining: Iterator[VideoPacket], time: int, *, pass_keyframes: bool = False
) -> VideoPacket | None:
    """The packet with a time in ticks; None if a later keyframe comes first."""
    for packet in remaining:
        if not packet.size or packet.pts is None:
            continue
        if packet.pts == time:
            return packet
        if packet.is_keyframe and packet.pts > time and not pass_keyframes:
            return None
    return None
