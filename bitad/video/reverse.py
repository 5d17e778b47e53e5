"""Writes and checks time-reversed copies of videos: the same frames in the opposite order.

A file is decoded once. Every few frames are reversed in memory and encoded as an independent group of pictures. The
groups wait in a temporary file and are written in reverse order, so memory is bounded by one.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import accumulate, islice
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
from av.container import OutputContainer
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from bitad.config.names import OnDecodeError
from bitad.runtime.files import atomic_write, remove_leftovers
from bitad.runtime.signatures import FileIdentity, sha256_of
from bitad.runtime.workers import in_processes
from bitad.video.container import open_video
from bitad.video.decoding import require_complete
from bitad.video.files import VideosReport, list_videos, require_video_file
from bitad.video.index import FrameIndex
from bitad.video.indexing import index_video
from bitad.video.reader import VideoReader, probe
from bitad.video.writer import H264_CONTAINERS, Progress, add_h264_stream, open_h264

# Frames of a group, unless they need more memory than this.
_GROUP_FRAMES = 30
_LEAST_GROUP_FRAMES = 8
_GROUP_BYTES = 96 * 2**20

# The entry of a container's metadata that records the source of a copy.
_KEY, _MARK = "comment", "bitad reverse 1 "

# Frames are compared small and grey: shrinking averages out the noise of the codec.
_SIZE = (48, 64)
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # BT.601 luma

# Neighbours of the mirror place on each side, which reveal shifts.
_NEAR = 2

# In grey levels of 255. Copies by x264 of a 64 x 48 video, which is not shrunk, differ by 0.5 at crf 18 and by 4.5 at
# crf 36; another video differs by 20 or more.
_CODEC_LOSS = 6.0


def reverse_video(
    src: str | Path,
    dst: str | Path,
    *,
    crf: float = 18,
    damaged: OnDecodeError = "error",
    on_progress: Progress | None = None,
) -> int:
    """Write a video's frames in the opposite order: H.264 (x264 veryfast, groups of 30, no B-frames) without sound.

    Frame i of the source is frame n - 1 - i of the copy, shown as long before its end as in the source after its start.
    The copy is upright, is written atomically, and records its source and settings (:class:`Origin`).

    Args:
        dst: its suffix, one of ``H264_CONTAINERS``, selects the container.
        crf: x264's constant rate factor; 18 is visually almost lossless.
        on_progress: called now and then with the number of frames done and in all.

    Returns:
        how many of the frames repeat others in place of damaged ones.

    Raises:
        ValueError: a frame cannot be decoded, the source changes, or ``dst`` is unsuitable.
    """
    src, dst = Path(src), Path(dst)
    if src.resolve() == dst.resolve():
        raise ValueError(f"{dst}: the reversed video would replace its source; name another file")
    require_video_file(src)
    try:
        source = FileIdentity.of(src)
        with VideoReader(src, damaged=damaged) as reader, atomic_write(dst) as partial:
            require_complete(src, reader.index, damaged)
            with (
                tempfile.TemporaryFile(dir=dst.parent) as store,
                # Metadata goes to the front, so that a truncated file still has it.
                open_h264(partial, suffix=dst.suffix, faststart=True) as container,
            ):
                _write_reversed(reader, source, container, store, crf, on_progress)
            written = probe(partial).frames
            if written != reader.info.frames:
                raise ValueError(f"{src}: {reader.info.frames} frames, but {written} were written")
            source.require_unchanged(src)
            return reader.repeated
    except av.FFmpegError as error:
        raise ValueError(f"{src}: cannot be reversed: {error.strerror}") from None


def reverse_folder(
    src: str | Path,
    dst: str | Path,
    *,
    workers: int = 1,
    rank: int = 0,
    world: int = 1,
    crf: float = 18,
    damaged: OnDecodeError = "error",
    on_progress: Progress | None = None,
) -> VideosReport:
    """Reverse every video of a folder and its sub-folders into another folder, under the same names.

    Complete and up-to-date copies are kept. Failures are reported and do not stop the others. Sources whose container
    cannot hold H.264 become ``.mp4``.

    Args:
        workers: number of processes, each with one video at a time; 0: this process.
        rank, world: this caller's share: every ``world``-th video, the largest first.
        on_progress: called after each video with the number of videos done and in all.
    """
    src, dst = Path(src), Path(dst)
    targets = _targets(src, dst)
    sizes = {path: os.path.getsize(path) if os.path.exists(path) else 0 for path in targets}
    mine = sorted(targets, key=lambda path: (-sizes[path], path))[rank::world]
    earlier = {path for path in mine if os.path.exists(targets[path])}
    for folder in {dst, *(target.parent for target in targets.values())}:
        remove_leftovers(folder)
    jobs = [(path, targets[path], crf, damaged) for path in mine]
    reports = []
    with closing(in_processes(_reverse_unless_done, jobs, workers=workers)) as results:
        for number, result in results:
            path = mine[number]
            names = (path.name,)
            again = names if path in earlier else ()
            if isinstance(result, Exception):
                kept = f"; {targets[path]} was not replaced" if again else ""
                reason = str(result) or type(result).__name__
                reports.append(VideosReport(failed={path.name: f"{reason}{kept}"}))
            elif result is None:
                unrecorded = names if Origin.read(targets[path]) is None else ()
                reports.append(VideosReport(kept=names, unrecorded=unrecorded))
            else:
                repeated = {path.name: result} if result else {}
                reports.append(VideosReport(done=names, again=again, repeated=repeated))
            if on_progress is not None:
                on_progress(len(reports), len(jobs))
    return VideosReport.together(reports)


def _targets(src: Path, dst: Path) -> dict[Path, Path]:
    if src.is_dir() and src.resolve() == dst.resolve():
        raise ValueError(f"{dst}: the reversed videos would replace their sources; name another folder")
    sources: dict[Path, Path] = {}
    for path in list_videos(src, but=dst):
        can_stay = path.suffix.lower() in H264_CONTAINERS
        target = dst / path.relative_to(src).with_name(path.name if can_stay else f"{path.stem}.mp4")
        if target in sources:
            other = sources[target].name
            raise ValueError(f"{src}: {other} and {path.name} would both become {target.name}; rename one")
        sources[target] = path
    return {path: target for target, path in sources.items()}


def _reverse_unless_done(src: Path, dst: Path, crf: float, damaged: OnDecodeError) -> int | None:
    require_video_file(src)
    if dst.exists() and _is_done(src, dst, crf, damaged):
        return None
    return reverse_video(src, dst, crf=crf, damaged=damaged)


def _is_done(src: Path, dst: Path, crf: float, damaged: OnDecodeError) -> bool:
    try:
        target = index_video(dst)
        origin = Origin.read(dst)
        if target.lost:
            return False
        if origin is not None:
            return (
                (target.frames, crf) == (origin.frames, origin.crf)
                and (damaged == "repeat" or not origin.repeated)
                and sha256_of(src) == origin.source_sha256
                # Frames that replace damaged ones cannot be compared.
                and (origin.repeated > 0 or copy_defect(src, dst, samples=2) is None)
            )
        index = index_video(src)
        require_complete(src, index, damaged)
        return copy_defect(src, dst, index=index) is None
    except ValueError:  # one of them is damaged; if it is the source, reversing it will raise
        return False


def _write_reversed(
    reader: VideoReader,
    source: FileIdentity,
    container: OutputContainer,
    store: IO[bytes],
    crf: float,
    on_progress: Progress | None,
) -> None:
    frames = reader.info.frames
    rate = reader.index.rate
    times, tick = _mirrored_times(reader)
    frame_bytes = reader.info.height * reader.info.width * 3 // 2
    group = min(_GROUP_FRAMES, max(_LEAST_GROUP_FRAMES, _GROUP_BYTES // frame_bytes))
    # Without B-frames every picture is one packet, in the same order.
    like = next(_pictures(reader, [0]))
    stream = add_h264_stream(container, like, rate, crf=crf, preset="veryfast", gop=group)
    sizes = _encode_groups(reader, stream, store, group, on_progress)
    # The first packet writes the header, so metadata must be set before.
    origin = Origin(source.sha256, crf, frames, reader.repeated)
    container.metadata[_KEY] = _MARK + json.dumps(asdict(origin))
    starts = [0, *accumulate(sizes)]
    written = 0
    for first in reversed(range(0, frames, group)):
        store.seek(starts[first])
        for place, size in enumerate(sizes[first : first + group]):
            packet = av.Packet(store.read(size))
            packet.stream = stream
            packet.time_base = tick
            packet.pts = packet.dts = times[written]
            packet.is_keyframe = place == 0
            container.mux(packet)
            written += 1


def _encode_groups(
    reader: VideoReader, stream: VideoStream, store: IO[bytes], group: int, on_progress: Progress | None
) -> list[int]:
    frames = reader.info.frames
    rate = reader.index.rate
    sizes: list[int] = []
    decoded = _pictures(reader, range(frames))
    for first in range(0, frames, group):
        pictures = list(islice(decoded, group))
        for place, picture in enumerate(reversed(pictures)):
            # The first picture of a group is a keyframe; the others must not keep the type from their decoder.
            picture.pict_type = PictureType.NONE if place else PictureType.I
            picture.pts = first + place
            picture.time_base = 1 / rate
            sizes += [store.write(bytes(packet)) for packet in stream.encode(picture)]
        if on_progress is not None:
            on_progress(first + len(pictures), frames)
    next(decoded, None)  # the reader reports damaged frames after the last picture
    sizes += [store.write(bytes(packet)) for packet in stream.encode(None)]
    return sizes


def _mirrored_times(reader: VideoReader) -> tuple[list[int], Fraction]:
    index = reader.index
    frames = reader.info.frames
    even = np.arange(frames)
    if frames > index.frames or (index.nearest(even) == even).all():
        return even.tolist(), 1 / index.rate
    return (index.shown[-1] - index.shown[::-1]).tolist(), index.time_base


def _pictures(reader: VideoReader, frames: Iterable[int]) -> Iterator[av.VideoFrame]:
    info = reader.info
    reformatter = VideoReformatter()
    # 4:2:0 halves both sides; an odd side needs 4:4:4.
    pixel_format = "yuv444p" if info.height % 2 or info.width % 2 else "yuv420p"
    for picture in reader.pictures(frames):
        yield reformatter.reformat(picture, width=info.width, height=info.height, format=pixel_format, threads=1)


@dataclass(frozen=True)
class Origin:
    """The source and settings of a reversed video."""

    source_sha256: str
    crf: float
    frames: int
    repeated: int

    @staticmethod
    def read(path: Path) -> Origin | None:
        """The origin in a file; None in files of earlier versions."""
        container, _ = open_video(path)
        with container:
            entries = {key.lower(): value for key, value in container.metadata.items()}
        comment = entries.get(_KEY, "")
        if not comment.startswith(_MARK):
            return None
        try:
            values: Any = json.loads(comment.removeprefix(_MARK))
            return Origin(str(values["source_sha256"]), values["crf"], values["frames"], values["repeated"])
        except (ValueError, LookupError, TypeError, RecursionError):
            return None


def copy_defect(
    video: str | Path, reversed_copy: str | Path, *, samples: int = 8, index: FrameIndex | None = None
) -> str | None:
    """Describe why a file is not the time-reversed copy of a video; None if nothing shows that.

    A shift shows only where the picture moves. Raises like :class:`VideoReader`.
    """
    with VideoReader(video, index=index) as forward, VideoReader(reversed_copy) as backward:
        n = forward.info.frames
        m = backward.info.frames
        if n != m:
            return f"{m} frames, where the video has {n}"
        there = forward.info.duration_s
        back = backward.info.duration_s
        # Containers round times to their ticks, by less than half a frame.
        if abs(there - back) > 0.5 / forward.info.fps:
            return f"lasts {back:.3f} s, where the video lasts {there:.3f} s"
        near = min(_NEAR, (n - 1) // 2)
        places = np.unique(np.linspace(near, n - 1 - near, samples).round().astype(np.int64))  # [S]
        around = places[:, None] + np.arange(-near, near + 1)  # [S, 2 near + 1]
        original = _grey(forward, around)  # [S, 2 near + 1, pixels]
        mirrored = _grey(backward, n - 1 - places)[:, None]  # [S, 1, pixels]
        same_place = _grey(backward, places)  # [S, pixels]
    errors = np.abs(original - mirrored).mean(axis=-1)  # [S, 2 near + 1]
    forward_error = np.abs(original[:, near] - same_place).mean(axis=-1)  # [S]
    # The mean difference between successive frames; two videos differ by more.
    variation = float(np.abs(np.diff(original[:, near], axis=0)).mean()) if len(places) > 1 else 0.0
    return _describe_difference(errors, forward_error, variation, places)


def _describe_difference(
    errors: NDArray[np.float32], forward_error: NDArray[np.float32], variation: float, places: NDArray[np.int64]
) -> str | None:
    """Interpret the errors around the mirror place, and at the same place."""
    near = errors.shape[1] // 2
    mirror = errors[:, near]
    if forward_error.mean() < 0.5 * mirror.mean() and mirror.mean() - forward_error.mean() > 0.5:
        return "plays forwards, as the video does"
    limit = max(_CODEC_LOSS, variation / 2)
    if errors.min(axis=1).mean() > limit:
        return f"shows something else: its frames differ by {mirror.mean():.1f} of 255 grey levels"
    best = errors.argmin(axis=1)
    # Codec loss is equal at all places, so no mirrored frame is clearly closer to a neighbour.
    shifted = (errors.min(axis=1) < 0.6 * mirror) & (mirror - errors.min(axis=1) > 0.3)
    if shifted.any():
        first = int(np.flatnonzero(shifted)[0])
        place = int(places[first])
        found = int(places[first] + best[first] - near)
        return (
            f"is shifted: the mirror place of frame {place} shows frame {found} ({shifted.sum()} of {len(places)})"
        )
    if mirror.max() > max(2 * _CODEC_LOSS, variation):
        worst = int(mirror.argmax())
        return (
            f"shows something else at frame {places[worst]}: it differs by {mirror[worst]:.1f} of 255 grey levels"
        )
    return None


def _grey(reader: VideoReader, frames: NDArray[np.int64]) -> NDArray[np.float32]:
    pixels = reader.read(frames.ravel(), size=_SIZE)  # [T, H, W, 3]
    return (pixels @ _GREY).reshape(*frames.shape, -1)
