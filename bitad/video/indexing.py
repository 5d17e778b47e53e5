"""Builds the index of a video file in one pass, and caches it on disk.

Headers may state a wrong frame count or rate. So a file is read packet by packet, almost without decoding.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from bitad.runtime.files import atomic_write
from bitad.runtime.signatures import check_archive
from bitad.timeline import FloatArray, IntArray
from bitad.video.container import (
    complete_at_breaks,
    ends_in_complete_picture,
    find_film,
    first_times,
    has_unread_recording,
    is_truncated,
    needs_other_files,
    numbered,
    open_input,
    open_video,
    packets,
    pictures_until_damage,
    states_presentation,
    states_times,
    wraps_after,
)
from bitad.video.index import (
    MOST_REORDERED,
    Booleans,
    FrameIndex,
    average_rate,
    find_restarts,
    gaps,
    join_clocks,
    log_notes,
    times_by_position,
)

# Wrong times show within the first few reordered frames; this many are decoded to check them.
_FRAMES_TRIED = 16

# Before a break in a transport stream FFmpeg may mark the last packet but one.
_MARKED_EARLY = 2

# Seconds per tick where a file states no times.
_TICK = Fraction(1, 90_000)

INDEX_FOLDER = "index"

# Raise this when a change makes this module find something else in the same file.
_VERSION = 2


def index_video(path: str | Path) -> FrameIndex:
    """Index a file by its packets' times, or if these are unusable by counting its frames.

    Frames that depend on missing ones before the start do not count; frames cut off at the end count as lost.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: FFmpeg cannot read it, or it has no video stream, no frames or no frame rate.
    """
    path = Path(path)
    try:
        stored = _Packets(path)
        index = _by_times(path, stored) or _by_counting(path, stored)
    except av.FFmpegError as error:
        raise ValueError(f"{path}: cannot be decoded: {error.strerror}") from None
    if not index.rate:
        raise _no_rate(path)
    index = replace(index, notes=tuple(_notes(stored, index)))
    log_notes(path, index)
    return index


class _Packets:
    """A file's video packets in storage order, and what its container states.

    Attributes:
        numbers: int64 ``[packets]``, each packet's number among all of the stream.
        times, decoded: float64 ``[packets]``, presentation and decoding times in ticks; NaN where missing.
        durations: int64 ``[packets]``, ticks; 0 where missing.
        marked: bool ``[packets]``, whether FFmpeg marks a good packet as damaged.
        parts: the packets at which the clock starts or restarts.
        delay: pictures that the decoder holds back.
        cut: number of incomplete packets at the end, left out above.
        stated, seconds, rate: as the container states; 0 if it does not.
    """

    def __init__(self, path: Path) -> None:
        self.film = find_film(path)
        container, stream = open_video(path, self.film.stream)
        with container:
            rows, end = [], 0
            for packet in packets(container, stream):
                if packet.size:
                    flags = packet.is_keyframe, packet.is_corrupt, packet.is_discard
                    rows.append((packet.pts, packet.dts, packet.duration, *flags))
                    end = max(end, (packet.pos or 0) + packet.size)
            columns = np.array(rows, np.float64).reshape(-1, 6)  # None becomes NaN
            numbers = np.flatnonzero(columns[:, 5] == 0)
            times, _, _, key, damage, _ = columns[numbers].T
            # Damaged packets at the end are cut off; decoding finds those damaged earlier.
            kept = 1 + int(max(np.flatnonzero(damage == 0), default=-1))
            if kept == len(times) and kept:
                last = times[key > 0][-1:]
                keyframe = int(last[0]) if np.isfinite(last).any() else None
                kept -= not ends_in_complete_picture(path, container, self.film.stream, keyframe)
            self.numbers = numbers[:kept]
            self.cut = len(times) - kept
            self.times, self.decoded, durations, key, damage, _ = columns[self.numbers].T
            self.durations = np.nan_to_num(durations).astype(np.int64)
            self.keyframes = key > 0
            self.states_times = states_times(container)
            self.states_presentation = states_presentation(path, self.film.stream)
            self.parts = [0]
            if self.states_presentation:
                self.parts += find_restarts(self.times, self.keyframes, wrap=wraps_after(container))
            self.marked = self._marked_at_breaks(path, damage > 0)
            context = stream.codec_context
            is_bare = not (self.states_presentation or np.isfinite(columns[numbers, 1]).any())
            rate = (
                (context.framerate or stream.guessed_rate)
                if is_bare
                else stream.average_rate or stream.guessed_rate
            )
            self.rate = rate or Fraction(0)
            self.assumed = is_bare and not context.framerate
            self.time_base = stream.time_base or Fraction(0)
            self.delay = max(context.reorder_depth, 0)
            self.stated = max(0, stream.frames - (len(columns) - len(numbers)))
            self.seconds = (container.duration or 0) / av.time_base
            self.unread = has_unread_recording(path, container, end)
            self.is_truncated = is_truncated(path, container)

    def _marked_at_breaks(self, path: Path, damaged: Booleans) -> Booleans:
        groups = np.union1d(np.flatnonzero(self.keyframes), self.parts)  # where groups and parts begin
        ends: dict[int, int] = {}
        for packet in np.flatnonzero(damaged).tolist():
            following = groups[groups.searchsorted(packet, "right") :][:1]
            if len(following) and following[0] - packet <= _MARKED_EARLY:
                ends[packet] = int(self.numbers[following[0] - 1])
        marked = np.zeros(len(damaged), np.bool_)
        if ends:
            complete = complete_at_breaks(path, self.film.stream, set(ends.values()))
            marked[[packet for packet, end in ends.items() if end in complete]] = True
        return marked

    def index(
        self, first: VideoFrame, shown: IntArray, time_base: Fraction, *, cut: int, skipped: int = 0
    ) -> FrameIndex:
        """The index without packets' times, of frames ``shown`` at ticks."""
        rate = average_rate(shown, time_base, self.rate, rounded=len(self.parts))
        lost, frames = 0, len(shown)
        if self.is_truncated or cut:
            stated = self.stated or (round(self.seconds * rate) if self.is_truncated else 0)
            # A file that has all the frames it states has lost something else.
            lost = max(cut, stated - skipped - frames, 0 if stated else 1)
        return FrameIndex(
            frames=frames,
            rate=rate,
            width=first.width,
            height=first.height,
            rotation=round(first.rotation / 90) * 90 % 360,
            lost=lost,
            time_base=time_base,
            shown=shown,
            stream=self.film.stream,
        )


def _by_times(path: Path, stored: _Packets) -> FrameIndex | None:
    if not (len(stored.times) and stored.time_base and np.isfinite(stored.times).all()):
        return None
    starts = stored.numbers[stored.parts]
    first, decoded = first_times(path, stored.film.stream, starts.tolist(), _FRAMES_TRIED)
    if first is None:
        raise _nothing_decoded(path)
    bounds = [*zip(stored.parts, [*stored.parts[1:], len(stored.times)], strict=True)]
    orders: list[IntArray] = []
    skipped = 0
    for part, (begin, end) in zip(decoded, bounds, strict=True):
        times = stored.times[begin:end]
        order = np.argsort(times, kind="stable")  # [frames of the part] -> its packets
        undecodable = _undecodable(np.array(part), times[order], times[stored.keyframes[begin:end]])
        if undecodable is None or not (np.diff(times[order]) > 0).all():
            return None
        orders.append(begin + order[undecodable:])
        skipped += undecodable
    parts = [stored.times[order].astype(np.int64) for order in orders]
    added = [int(placed[0] - part[0]) for placed, part in zip(join_clocks(parts), parts, strict=True)]
    times = stored.times + np.repeat(added, [end - begin for begin, end in bounds])
    order = np.concatenate(orders)
    frames = _frames_before_hole(stored, times[order], order)
    cut = stored.cut + len(order) - frames
    order = order[:frames]
    if stored.states_presentation or not np.isfinite(stored.decoded).all():
        shown = times[order].astype(np.int64)
    else:
        held_back = max(stored.delay, int((order - skipped - np.arange(frames)).max(initial=0)))
        shown = times_by_position(np.sort(stored.decoded), held_back)[skipped:][:frames]
    return replace(
        stored.index(first, shown, stored.time_base, cut=cut, skipped=skipped),
        times=times[order].astype(np.int64),
        keyframes=np.flatnonzero(stored.keyframes[order]),
        stored=np.argsort(order),
        joins=np.stack([starts, added], axis=1)[1:],
        sound=frozenset(np.flatnonzero(stored.marked[order]).tolist()),
    )


def _by_counting(path: Path, stored: _Packets) -> FrameIndex:
    container, stream = open_video(path, stored.film.stream)
    first = None
    origins = list[int | None]()
    damaged = False
    with container:
        for picture in pictures_until_damage(numbered(packets(container, stream)), stream):
            if picture is None:
                damaged = True
            else:
                first = first or picture
                origins.append(picture.pts)
        if stored.cut or stored.is_truncated:  # the frames shown last may follow lost ones
            origins = origins[: len(origins) - min(len(origins), stream.codec_context.reorder_depth)]
        delay = max(stored.delay, stream.codec_context.reorder_depth)
    frames = len(origins)
    if first is None or not frames:
        raise _nothing_decoded(path)
    time_base = stored.time_base or _TICK
    shown = _presentation_times(stored, origins, delay, time_base)
    if shown is None:
        raise _no_rate(path)
    # Frames after a damaged one cannot be identified, so they are lost too.
    cut = max(stored.cut, len(stored.times) - frames if damaged else 0)
    return stored.index(first, shown, time_base, cut=cut)


def _presentation_times(
    stored: _Packets, origins: list[int | None], delay: int, time_base: Fraction
) -> IntArray | None:
    frames = len(origins)
    numbers = np.array([-1 if origin is None else origin for origin in origins])
    rows = np.searchsorted(stored.numbers, numbers).clip(max=len(stored.numbers) - 1)
    if len(np.unique(rows)) == frames and (stored.numbers[rows] == numbers).all():
        rows.sort()
        times = stored.times[rows]
        decoded = stored.decoded[rows]
        if stored.states_presentation and np.isfinite(times).all():
            split = np.split(times, np.searchsorted(rows, stored.parts[1:]))
            parts = [np.sort(part).astype(np.int64) for part in split if len(part)]
            if all(2 * len(np.unique(part)) >= len(part) for part in parts):  # otherwise the times do not advance
                return np.concatenate(join_clocks(parts))
        if not stored.states_presentation and np.isfinite(decoded).all():
            return times_by_position(np.sort(decoded), delay)
        if not stored.assumed and (stored.durations > 0).all():
            durations = np.add.reduceat(stored.durations, rows)  # the two fields of a picture may be two packets
            return np.cumsum(durations) - durations
    if not stored.rate:
        return None
    return np.round(np.arange(frames) / float(stored.rate * time_base)).astype(np.int64)


def _undecodable(seen: FloatArray, times: FloatArray, keyframes: FloatArray) -> int | None:
    """How many frames at the beginning depend on missing ones; None if packets' times are wrong.

    Those are right if the times ``seen`` in the first decoded pictures are among them, in order.
    """
    if not np.isin(seen, times).all() or not (np.diff(seen) > 0).all():
        return None
    # Frames of a damaged keyframe exist, and the clock begins with them.
    return int(np.searchsorted(times, seen[0])) if len(seen) and len(keyframes) and seen[0] <= keyframes[0] else 0


def _frames_before_hole(stored: _Packets, times: FloatArray, order: IntArray) -> int:
    """How many frames precede the first one that a truncated end leaves out.

    One of the last frames may be shown after lost ones. At a constant rate the interval reveals that.
    """
    frames = len(order)
    cut_off = bool(stored.cut or stored.is_truncated)
    # Two or three frames may be in order even with reordering.
    reordered = 1 < frames < 4 or bool((np.diff(order) < 0).any())
    if not reordered or (stored.is_truncated is False and not cut_off):
        return frames
    intervals = np.diff(times)
    usual = np.median(intervals)
    end = max(0, len(intervals) - MOST_REORDERED)
    regular = np.abs(intervals - usual) < max(2, usual / 4)
    constant = regular[:end].all() and (end >= MOST_REORDERED or (not cut_off and regular.mean() > 0.7))
    if stored.states_times and constant:
        holes = end + np.flatnonzero(intervals[end:] > 1.5 * usual)
        return 1 + int(holes[0]) if len(holes) else frames
    # Otherwise lost frames may precede any frame from the last stored one on.
    return int(order.argmax()) if cut_off else frames


def _no_rate(path: Path) -> ValueError:
    return ValueError(f"{path}: it states neither a frame rate nor times from which to compute one")


def _nothing_decoded(path: Path) -> ValueError:
    with open_input(path) as container:
        if needs_other_files(path, container):
            return ValueError(f"{path}: its pictures are in another file; export one self-contained file")
    return ValueError(f"{path}: no frame in it can be decoded")


def _notes(stored: _Packets, index: FrameIndex) -> Iterator[str]:
    if stored.film.note:
        yield stored.film.note
    if stored.unread:
        yield "contains another recording that FFmpeg does not read correctly; join the recordings with FFmpeg"
    if restarted := len(stored.parts) - 1:
        times = "once" if restarted == 1 else f"{restarted} times"
        yield f"its clock restarts {times}; the parts are joined without a gap"
    if stored.assumed:
        yield f"states no frame rate; {float(index.rate):g} frames per second are assumed"
    yield from gaps(index)


class FileStamp(NamedTuple):
    """The path, size and time that identify a version of a file."""

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        stat = path.stat()
        return cls(os.path.abspath(path), stat.st_size, stat.st_mtime_ns)

    def row(self) -> list[str]:
        return [*map(str, self), f"{_VERSION}, PyAV {av.__version__}"]


class IndexCache:
    """A folder of indices, with an entry for each video file. Processes may share it.

    Damaged or outdated entries are recomputed; a folder that cannot be written to only costs time.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._begun = False
        self._waiting: dict[FileStamp, FrameIndex] = {}  # not yet written, or from another process

    def begin(self) -> None:
        """Write entries from now on, beginning with the waiting ones; nothing was written before."""
        self._begun = True
        while self._waiting:
            self._write(*self._waiting.popitem())

    def index(self, path: str | Path) -> FrameIndex:
        """The index of a file. Raises like :func:`index_video`."""
        path = Path(path)
        if not path.is_file():
            return index_video(path)  # raises
        stamp = FileStamp.of(path)  # taken before reading, in case the file changes meanwhile
        if (index := self._waiting.get(stamp) or self._read(stamp)) is not None:
            log_notes(path, index)
            return index
        index = self._waiting[stamp] = index_video(path)
        if self._begun:
            self.begin()
        return index

    def share(self, gather: Callable[[dict[FileStamp, FrameIndex]], list[dict[FileStamp, FrameIndex]]]) -> None:
        for others in gather(self._waiting):
            self._waiting = others | self._waiting

    def _entry(self, stamp: FileStamp) -> Path:
        return self.folder / f"{hashlib.sha256(stamp.path.encode(errors='surrogateescape')).hexdigest()[:32]}.npz"

    def _read(self, stamp: FileStamp) -> FrameIndex | None:
        try:
            path = self._entry(stamp)
            with zipfile.ZipFile(path) as archive:
                check_archive(archive, path.stat().st_size, str(path), compressed=True)
            with path.open("rb") as file, np.load(file, allow_pickle=False) as entry:
                return _from_arrays(entry) if entry["of"].tolist() == stamp.row() else None
        except Exception:  # a damaged file can raise anything, and is recomputed
            return None

    def _write(self, stamp: FileStamp, index: FrameIndex) -> None:
        with (
            suppress(OSError, UnicodeError),  # a read-only or full disk; a name that is not UTF-8
            atomic_write(self._entry(stamp)) as partial,
            partial.open("wb") as file,
        ):
            np.savez_compressed(file, of=np.array(stamp.row()), allow_pickle=False, **_to_arrays(index))


_INTEGERS = ("frames", "width", "height", "rotation", "lost", "stream")


def _to_arrays(index: FrameIndex) -> dict[str, NDArray[Any]]:
    numbers = [getattr(index, name) for name in _INTEGERS]
    numbers += [*index.rate.as_integer_ratio(), *index.time_base.as_integer_ratio()]
    arrays: dict[str, NDArray[Any]] = {
        "numbers": np.array(numbers, np.int64),
        "shown": np.diff(index.shown, prepend=0),
        "keyframes": index.keyframes,
        "joins": index.joins,
        "sound": np.array(sorted(index.sound), np.int64),
        "notes": np.array(index.notes, np.str_),
    }
    if index.times is not None:
        arrays |= {"steps": np.diff(index.times, prepend=0), "moved": index.stored - np.arange(len(index.stored))}
    return arrays


def _from_arrays(arrays: Mapping[str, NDArray[Any]]) -> FrameIndex:
    *integers, rate, rate_divisor, ticks, ticks_divisor = arrays["numbers"].tolist()
    index = FrameIndex(
        **dict(zip(_INTEGERS, integers, strict=True)),
        rate=Fraction(rate, rate_divisor),
        time_base=Fraction(ticks, ticks_divisor),
        shown=np.cumsum(arrays["shown"]),
        keyframes=arrays["keyframes"],
        joins=arrays["joins"],
        sound=frozenset(arrays["sound"].tolist()),
        notes=tuple(arrays["notes"].tolist()),
    )
    if "steps" not in arrays:
        return index
    return replace(index, times=np.cumsum(arrays["steps"]), stored=arrays["moved"] + np.arange(index.frames))
