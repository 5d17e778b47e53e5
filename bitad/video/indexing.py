"""Builds the index of a video file by reading it through once, and caches it on disk.

A container's header states a frame count and a frame rate, and both may be wrong. So a file is read packet by packet,
almost without decoding, for the times at which its frames are shown and for whether it breaks off.

Raise ``_VERSION`` when a change here changes what is found.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from bitad.runtime.files import replacing
from bitad.runtime.signatures import check_archive
from bitad.video.container import (
    Film,
    breaks_off,
    ends_in_whole_picture,
    find_film,
    first_times,
    holds_another,
    needs_other_files,
    numbered,
    open_input,
    open_video,
    packets,
    pictures_until_damage,
    states_presentation,
    states_times,
    whole_at_breaks,
    wraps_after,
)
from bitad.video.index import (
    MOST_REORDERED,
    FrameIndex,
    average_rate,
    by_position,
    gaps,
    log_notes,
    one_after_another,
    restarts,
)

# Wrong times show within the first few reordered frames; this many are decoded to see whether the times hold.
_FRAMES_TRIED = 16

# Before a break in a transport stream FFmpeg may mark the last packet but one, whose end its parser still waits for.
_MARKED_EARLY = 2

# Seconds a tick where a file states no times.
_TICK = Fraction(1, 90_000)


def index_video(path: str | Path) -> FrameIndex:
    """Read a file's packets, and decode only its first frames; or all, to count them, where its times are unusable.

    Frames at the beginning that no decoder can give, because what they are made from stands before the file's
    beginning, are none. So are those at the end that are cut off; they count as lost.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: FFmpeg cannot read it, or it has no video stream, no frames or no frame rate.
    """
    path = Path(path)
    try:
        stored = _Stored.of(path)
        index = _by_times(path, stored) or _by_counting(path, stored)
    except av.FFmpegError as error:
        raise ValueError(f"{path}: cannot be decoded: {error.strerror}") from None
    if not index.rate:
        raise ValueError(f"{path}: it states neither a frame rate nor times from which to count one")
    index = replace(index, notes=tuple(_notes(stored, index)))
    log_notes(path, index)
    return index


@dataclass(frozen=True)
class _Stored:
    """A file's packets of pictures, in the order of storage.

    Args:
        film: the stream that holds them.
        numbers: int64 ``[packets]``, each packet's number among all of the stream, counted from 0.
        times: float64 ``[packets]``, presentation times in ticks; NaN where there is none.
        decoded: float64 ``[packets]``, decoding times in ticks; NaN where there is none.
        durations: int64 ``[packets]``, ticks; 0 where there is none.
        keyframes: bool ``[packets]``, whether decoding can begin there.
        marked: bool ``[packets]``, whether FFmpeg takes the packet for damaged though it is whole.
        parts: where in the above the clock starts, the first part's 0 included.
        delay: pictures that the decoder holds back.
        cut: number of packets at the end that are not whole and left out.
        stated: number of packets that the file states; 0 where it does not.
        seconds: duration that the file states; 0 where it does not.
        unread: whether another recording follows what FFmpeg reads.
        breaks_off: whether the file is shorter than it states; None where it states nothing.
        states_times: whether the container states when each frame is shown; else FFmpeg computes it.
        states_presentation: whether any presentation time is stated; else there are decoding times at most.
        rate: frames a second as stated; 0 where nothing is.
        assumed: whether the rate is FFmpeg's own guess.
        time_base: seconds a tick.
    """

    film: Film
    numbers: NDArray[np.int64]
    times: NDArray[np.float64]
    decoded: NDArray[np.float64]
    durations: NDArray[np.int64]
    keyframes: NDArray[np.bool_]
    marked: NDArray[np.bool_]
    parts: list[int]
    delay: int
    cut: int
    stated: int
    seconds: float
    unread: bool
    breaks_off: bool | None
    states_times: bool
    states_presentation: bool
    rate: Fraction
    assumed: bool
    time_base: Fraction

    @classmethod
    def of(cls, path: Path) -> _Stored:
        film = find_film(path)
        container, stream = open_video(path, film.stream)
        with container:
            read, end = [], 0
            for packet in packets(container, stream):
                if packet.size:
                    marks = packet.is_keyframe, packet.is_corrupt, packet.is_discard
                    read.append((packet.pts, packet.dts, packet.duration, *marks))
                    end = max(end, (packet.pos or 0) + packet.size)
            columns = np.array(read, np.float64).reshape(-1, 6)  # None becomes NaN
            numbers = np.flatnonzero(columns[:, 5] == 0)
            times, decoded, durations, key, damage, _ = columns[numbers].T
            keyframes, damaged = key > 0, damage > 0
            # One damaged earlier is found when it is decoded: what is damaged up to the end is cut off.
            kept = 1 + int(max(np.flatnonzero(~damaged), default=-1))
            if kept == len(times) and kept:
                begin = times[keyframes][-1:]
                keyframe = int(begin[0]) if np.isfinite(begin).any() else None
                kept -= not ends_in_whole_picture(path, container, film.stream, keyframe)
            durations = np.nan_to_num(durations[:kept]).astype(np.int64)
            presented = states_presentation(path, film.stream)
            context, bare = stream.codec_context, not np.isfinite(decoded).any() and not presented
            rate = (context.framerate or stream.guessed_rate) if bare else stream.average_rate or stream.guessed_rate
            parts = [0]
            if presented:
                parts += restarts(times[:kept], keyframes[:kept], wrap=wraps_after(container))
            groups = np.union1d(np.flatnonzero(keyframes[:kept]), parts)
            return cls(
                film=film,
                numbers=numbers[:kept],
                times=times[:kept],
                decoded=decoded[:kept],
                durations=durations,
                keyframes=keyframes[:kept],
                marked=_marked_at_breaks(path, film.stream, numbers[:kept], groups, damaged[:kept]),
                parts=parts,
                delay=max(context.reorder_depth, 0),
                cut=len(times) - kept,
                stated=max(0, stream.frames - (len(columns) - len(numbers))),
                seconds=(container.duration or 0) / av.time_base,
                unread=holds_another(path, container, end),
                breaks_off=breaks_off(path, container),
                states_times=states_times(container),
                states_presentation=presented,
                rate=rate or Fraction(0),
                assumed=bare and not context.framerate,
                time_base=stream.time_base or Fraction(0),
            )

    def lost(self, frames: int, cut: int, rate: Fraction) -> int:
        """How many frames were there behind these before the file was cut off.

        Args:
            frames: the number that is there.
            cut: how many at the end have already been left out.
            rate: frames a second.
        """
        if not (self.breaks_off or cut):
            return 0
        stated = self.stated or (round(self.seconds * rate) if self.breaks_off else 0)
        # A file that states its frames and has them all has lost something else.
        return max(cut, stated - frames, 0 if stated else 1)


def _marked_at_breaks(
    path: Path, film: int, numbers: NDArray[np.int64], groups: NDArray[np.int64], damaged: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which of the packets marked as damaged are whole: those that end a group of pictures before a break.

    Args:
        path: the file.
        film: its stream.
        numbers: int64 ``[packets]``, each packet's number in it.
        groups: the packets at which groups of pictures and parts of the file begin, ascending.
        damaged: bool ``[packets]``, whether FFmpeg has marked them.
    """
    ends: dict[int, int] = {}
    for packet in np.flatnonzero(damaged).tolist():
        following = groups[groups.searchsorted(packet, "right") :][:1]
        if len(following) and following[0] - packet <= _MARKED_EARLY:
            ends[packet] = int(numbers[following[0] - 1])
    marked = np.zeros(len(numbers), np.bool_)
    if ends:
        whole = whole_at_breaks(path, film, set(ends.values()))
        marked[[packet for packet, end in ends.items() if end in whole]] = True
    return marked


def _by_times(path: Path, stored: _Stored) -> FrameIndex | None:
    """The frames by the times that the packets state; None where these do not tell the frames apart."""
    if not (len(stored.times) and stored.time_base and np.isfinite(stored.times).all()):
        return None
    starts = stored.numbers[stored.parts]
    first, seen = first_times(path, stored.film.stream, starts.tolist(), _FRAMES_TRIED)
    if first is None:
        raise _nothing_decoded(path)
    bounds = [*zip(stored.parts, [*stored.parts[1:], len(stored.times)], strict=True)]
    orders: list[NDArray[np.int64]] = []
    skipped = 0
    for part, (begin, end) in zip(seen, bounds, strict=True):
        times = stored.times[begin:end]
        order = np.argsort(times, kind="stable")  # [frames of the part] -> its packets
        undecodable = _undecodable(np.array(part), times[order], times[stored.keyframes[begin:end]])
        if undecodable is None or not (np.diff(times[order]) > 0).all():
            return None
        orders.append(begin + order[undecodable:])
        skipped += undecodable
    parts = [stored.times[order].astype(np.int64) for order in orders]
    added = [int(there[0] - here[0]) for there, here in zip(one_after_another(parts), parts, strict=True)]
    times = stored.times + np.repeat(added, [end - begin for begin, end in bounds])
    stored, order = replace(stored, times=times), np.concatenate(orders)
    whole = _frames_before_hole(stored, order)
    cut, order = len(order) - whole, order[:whole]
    if stored.states_presentation or not np.isfinite(stored.decoded).all():
        shown = times[order].astype(np.int64)
    else:
        held_back = max(stored.delay, int((order - skipped - np.arange(whole)).max(initial=0)))
        shown = by_position(np.sort(stored.decoded), held_back)[skipped:][:whole]
    rate = average_rate(shown, stored.time_base, stored.rate, rounded=len(orders))
    return FrameIndex(
        frames=whole,
        rate=rate,
        width=first.width,
        height=first.height,
        rotation=_quarter_turns(first),
        lost=stored.lost(skipped + whole, stored.cut + cut, rate),
        time_base=stored.time_base,
        shown=shown,
        times=times[order].astype(np.int64),
        keyframes=np.flatnonzero(stored.keyframes[order]),
        stored=np.argsort(order),
        stream=stored.film.stream,
        joins=np.stack([starts, added], axis=1)[1:],
        sound=frozenset(np.flatnonzero(stored.marked[order]).tolist()),
        notes=(),
    )


def _by_counting(path: Path, stored: _Stored) -> FrameIndex:
    """The frames by decoding them all."""
    container, stream = open_video(path, stored.film.stream)
    first, origins, damaged = None, list[int | None](), False
    with container:
        for picture in pictures_until_damage(numbered(packets(container, stream)), stream):
            if picture is None:
                damaged = True
            else:
                first = first or picture
                origins.append(picture.pts)
        if stored.cut or stored.breaks_off:  # what is shown last may stand behind frames that are lost
            origins = origins[: len(origins) - min(len(origins), stream.codec_context.reorder_depth)]
        stored = replace(stored, delay=max(stored.delay, stream.codec_context.reorder_depth))
    frames = len(origins)
    if first is None or not frames:
        raise _nothing_decoded(path)
    time_base = stored.time_base or _TICK
    shown = _shown(stored, origins, time_base)
    if shown is None:
        raise ValueError(f"{path}: it states neither a frame rate nor times from which to count one")
    rate = average_rate(shown, time_base, stored.rate, rounded=len(stored.parts))
    none = np.empty(0, np.int64)
    return FrameIndex(
        frames=frames,
        rate=rate,
        width=first.width,
        height=first.height,
        rotation=_quarter_turns(first),
        # What stands behind a damaged frame cannot be told apart, so it is lost as well.
        lost=stored.lost(frames, max(stored.cut, len(stored.times) - frames if damaged else 0), rate),
        time_base=time_base,
        shown=shown,
        times=None,
        keyframes=none,
        stored=none,
        stream=stored.film.stream,
        joins=none.reshape(0, 2),
        sound=frozenset(),
        notes=(),
    )


def _shown(stored: _Stored, origins: list[int | None], time_base: Fraction) -> NDArray[np.int64] | None:
    """When frames are shown that come in this order from these packets; None where nothing says when.

    Args:
        stored: the packets.
        origins: ``[frames]``, the number of each frame's packet.
        time_base: seconds a tick.
    """
    frames = len(origins)
    known = np.array([-1 if origin is None else origin for origin in origins])
    rows = np.searchsorted(stored.numbers, known).clip(max=len(stored.numbers) - 1)
    if len(np.unique(rows)) == frames and (stored.numbers[rows] == known).all():
        rows.sort()
        times, decoded = stored.times[rows], stored.decoded[rows]
        if stored.states_presentation and np.isfinite(times).all():
            split = np.split(times, np.searchsorted(rows, stored.parts[1:]))
            parts = [np.sort(part).astype(np.int64) for part in split if len(part)]
            if all(2 * len(np.unique(part)) >= len(part) for part in parts):  # else the times stand still
                return np.concatenate(one_after_another(parts))
        if not stored.states_presentation and np.isfinite(decoded).all():
            return by_position(np.sort(decoded), stored.delay)
        if not stored.assumed and (stored.durations > 0).all():
            lasting = np.add.reduceat(stored.durations, rows)  # a picture of two fields may have a packet for each
            return np.cumsum(lasting) - lasting
    if not stored.rate:
        return None
    return np.round(np.arange(frames) / float(stored.rate * time_base)).astype(np.int64)


def _undecodable(seen: NDArray[np.float64], times: NDArray[np.float64], keyframes: NDArray[np.float64]) -> int | None:
    """How many frames at the beginning cannot be decoded for want of earlier ones; None if the times do not hold.

    They hold if the first pictures appear at times that the packets state, in order; some writers' B-frames do not.

    Args:
        seen: the times of the first pictures that the decoder gives.
        times: ``[frames]``, those of the packets, ascending.
        keyframes: those of the keyframes among them, in the order of storage.
    """
    if not np.isin(seen, times).all() or not (np.diff(seen) > 0).all():
        return None
    # A damaged keyframe is no such reason: its frames are there, and the clock begins with them.
    return int(np.searchsorted(times, seen[0])) if len(seen) and len(keyframes) and seen[0] <= keyframes[0] else 0


def _frames_before_hole(stored: _Stored, order: NDArray[np.int64]) -> int:
    """How many frames there are up to where a cut-off end leaves out one that is shown before others that are there.

    Pictures are stored behind those that they are made from, so of the last few stored, one may be shown after others
    that are lost. At a constant rate the interval before it tells.

    Args:
        stored: the packets.
        order: ``[frames]``, each frame's packet.
    """
    frames, cut_off = len(order), bool(stored.cut or stored.breaks_off)
    # Of two or three frames none need have come out of turn yet.
    reordered = 1 < frames < 4 or bool((np.diff(order) < 0).any())
    if not reordered or (stored.breaks_off is False and not cut_off):
        return frames
    intervals = np.diff(stored.times[order])
    usual, end = np.median(intervals), max(0, len(intervals) - MOST_REORDERED)
    regular = np.abs(intervals - usual) < max(2, usual / 4)
    constant = regular[:end].all() and (end >= MOST_REORDERED or (not cut_off and regular.mean() > 0.7))
    if stored.states_times and constant:
        holes = end + np.flatnonzero(intervals[end:] > 1.5 * usual)
        return 1 + int(holes[0]) if len(holes) else frames
    # At a variable rate, or where times are reckoned, nothing tells: any from the last one stored on may be behind it.
    return int(order.argmax()) if cut_off else frames


def _nothing_decoded(path: Path) -> ValueError:
    with open_input(path) as container:
        if needs_other_files(path, container):
            return ValueError(
                f"{path}: its pictures are in another file, and files that a video names are not opened; "
                "export it as one self-contained file"
            )
    return ValueError(f"{path}: no frame in it can be decoded")


def _quarter_turns(picture: VideoFrame) -> int:
    """Degrees anticlockwise by which players turn a picture, as whole quarters."""
    return round(picture.rotation / 90) * 90 % 360


def _notes(stored: _Stored, index: FrameIndex) -> Iterator[str]:
    """What a user of the file's frames and clock should know, a sentence each."""
    if stored.film.note:
        yield stored.film.note
    if stored.unread:
        yield "holds another recording that FFmpeg does not read, or not correctly; join the recordings with FFmpeg"
    if restarted := len(stored.parts) - 1:
        times = "once" if restarted == 1 else f"{restarted} times"
        yield f"its clock starts again {times}; the parts are taken to follow one another without a gap"
    if stored.assumed:
        yield f"states no frame rate; {float(index.rate):g} frames a second are assumed"
    yield from gaps(index)


# Where a run, or a folder of features, has its cache.
INDEX_FOLDER = "index"

# To be raised where bitad.video.indexing comes to find other things in the same file.
_VERSION = 2


@dataclass(frozen=True)
class FileStamp:
    """By what a file is known: another of its name is of another size or time."""

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        stat = path.stat()
        return cls(os.path.abspath(path), stat.st_size, stat.st_mtime_ns)

    def row(self) -> list[str]:
        """As entries have it, with what made them."""
        return [self.path, str(self.size), str(self.mtime_ns), f"{_VERSION}, PyAV {av.__version__}"]


class IndexCache:
    """The indices of video files in a folder, an entry for each file.

    An entry is written whole or not at all, by any number of processes at once. One that is damaged, or of a file that
    has changed since, is made anew, and a folder that cannot be written to costs time and nothing else. Nothing is
    written before :meth:`begin`.

    Args:
        folder: of the entries; it need not be there.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder, self._begun = Path(folder), False
        self._waiting: dict[FileStamp, FrameIndex] = {}  # to be written, or made by another process

    def begin(self) -> None:
        """From now on entries are written, first of all those of the indices made before."""
        self._begun = True
        for stamp, index in self._waiting.items():
            self._write(stamp, index)
        self._waiting.clear()

    def index(self, path: str | Path) -> FrameIndex:
        """Where the frames of a file are.

        Raises:
            FileNotFoundError, ValueError: as :func:`~bitad.video.indexing.index_video`.
        """
        path = Path(path)
        if not path.is_file():
            return index_video(path)  # says so
        stamp = FileStamp.of(path)  # before it is read: what changes meanwhile is not taken for the same
        index = self._waiting.get(stamp) or self._read(stamp)
        if index is not None:
            log_notes(path, index)
        else:
            index = index_video(path)
            if self._begun:
                self._write(stamp, index)
            else:
                self._waiting[stamp] = index
        return index

    def share(self, gather: Callable[[dict[FileStamp, FrameIndex]], list[dict[FileStamp, FrameIndex]]]) -> None:
        """Tells other processes of the indices that wait to be written, and learns of theirs.

        Args:
            gather: this process' piece -> all processes' pieces.
        """
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
        except Exception:  # a damaged file raises whatever zipfile and numpy lead to, and is made anew
            return None

    def _write(self, stamp: FileStamp, index: FrameIndex) -> None:
        with (
            suppress(OSError, UnicodeError),  # a read-only or full disk; a name that is no text
            replacing(self._entry(stamp)) as partial,
            partial.open("wb") as file,
        ):
            np.savez_compressed(file, of=np.array(stamp.row()), allow_pickle=False, **_to_arrays(index))


def _to_arrays(index: FrameIndex) -> dict[str, NDArray[Any]]:
    """An index as arrays of small numbers: times as steps, the order of storage as distances from that of showing."""
    whole = [index.frames, index.width, index.height, index.rotation, index.lost, index.stream]
    fractions = [*index.rate.as_integer_ratio(), *index.time_base.as_integer_ratio()]
    arrays: dict[str, NDArray[Any]] = {
        "numbers": np.array([*whole, *fractions], np.int64),
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
    frames, width, height, rotation, lost, stream, *fractions = arrays["numbers"].tolist()
    timed = "steps" in arrays
    return FrameIndex(
        frames=frames,
        rate=Fraction(*fractions[:2]),
        width=width,
        height=height,
        rotation=rotation,
        lost=lost,
        time_base=Fraction(*fractions[2:]),
        shown=np.cumsum(arrays["shown"]),
        times=np.cumsum(arrays["steps"]) if timed else None,
        keyframes=arrays["keyframes"],
        stored=arrays["moved"] + np.arange(frames) if timed else np.empty(0, np.int64),
        stream=stream,
        joins=arrays["joins"],
        sound=frozenset(arrays["sound"].tolist()),
        notes=tuple(arrays["notes"].tolist()),
    )
