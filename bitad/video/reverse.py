"""Time-reversed copies of videos: the same frames in the opposite order.

A file is decoded once, from its start. Every few frames are reversed in memory and encoded at once, as a group of
pictures that stands alone; the encoded groups, small by then, wait in a temporary file and are written in reverse
order. So memory is bounded by one group, nothing is decoded twice, and the source's own groups, times and length do not
matter. (Reading all frames first, or FFmpeg's ``reverse`` filter, hold the whole video.)

A copy records its source in the comment of its container. :func:`copy_defect` compares a copy with its source by count,
duration and sampled frames.
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
from bitad.runtime.files import remove_leftovers, replacing
from bitad.runtime.signatures import FileIdentity, sha256_of
from bitad.runtime.workers import in_processes
from bitad.video.container import open_video
from bitad.video.decoding import require_whole
from bitad.video.files import list_videos, require_video_file
from bitad.video.index import FrameIndex
from bitad.video.indexing import index_video
from bitad.video.reader import VideoReader, probe
from bitad.video.writer import H264_CONTAINERS, Progress, add_h264_stream, open_h264

# Frames are compared small and grey: what a codec loses is noise that the shrinking averages out.
_SIZE = (48, 64)
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # BT.601 luma

# Compared are a frame's mirror place and this many to either side of it, so that a shift shows.
_NEAR = 2

# In grey levels of 255. Twins by x264 of a 64 x 48 film, which no shrinking averages, differ by 0.5 at crf 18 and by
# 4.5 at crf 36; another film differs by 20 and more.
_CODEC_LOSS = 6.0


def copy_defect(
    video: str | Path, reversed_copy: str | Path, *, samples: int = 8, index: FrameIndex | None = None
) -> str | None:
    """What shows that ``twin`` is not ``video`` played backwards; None where nothing does.

    Counts and frame rates are compared, then at ``samples`` places frame n - 1 - i of the twin with frame i of the
    video and its neighbours. A shift shows only where the picture moves. Memory is that of a few dozen small pictures.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: one of them cannot be decoded.
    """
    with VideoReader(video, index=index) as forward, VideoReader(reversed_copy) as backward:
        n, m = forward.info.frames, backward.info.frames
        if n != m:
            return f"{m} frames, where the video has {n}"
        there, back = forward.info.duration_s, backward.info.duration_s
        # A container rounds times to its ticks; half a frame is more than that, and less than what a detector sees.
        if abs(there - back) > 0.5 / forward.info.fps:
            return f"lasts {back:.3f} s, where the video lasts {there:.3f} s"
        near = min(_NEAR, (n - 1) // 2)
        places = np.unique(np.linspace(near, n - 1 - near, samples).round().astype(np.int64))  # [S]
        around = places[:, None] + np.arange(-near, near + 1)  # [S, 2 near + 1]
        shown = _grey(forward, around)  # [S, 2 near + 1, pixels]
        mirrored = _grey(backward, n - 1 - places)[:, None]  # [S, 1, pixels]
        unturned = _grey(backward, places)  # [S, pixels]
    errors = np.abs(shown - mirrored).mean(axis=-1)  # [S, 2 near + 1]
    as_is = np.abs(shown[:, near] - unturned).mean(axis=-1)  # [S]
    return _verdict(errors, as_is, _variation(shown[:, near]), places)


def _verdict(
    errors: NDArray[np.float32], as_is: NDArray[np.float32], variation: float, places: NDArray[np.int64]
) -> str | None:
    """What the differences say: ``errors`` to the mirror place's frames, ``as_is`` to the frame of the same number."""
    near = errors.shape[1] // 2
    mirror = errors[:, near]
    if as_is.mean() < 0.5 * mirror.mean() and mirror.mean() - as_is.mean() > 0.5:
        return "plays forwards, as the video does"
    limit = max(_CODEC_LOSS, variation / 2)
    if errors.min(axis=1).mean() > limit:
        return f"shows something else: its frames differ by {mirror.mean():.1f} of 255 grey levels"
    best = errors.argmin(axis=1)
    # Codec loss is the same for all places, so a truly mirrored frame is never clearly nearer to a neighbour.
    shifted = (errors.min(axis=1) < 0.6 * mirror) & (mirror - errors.min(axis=1) > 0.3)
    if shifted.any():
        first = int(np.flatnonzero(shifted)[0])
        place, found = int(places[first]), int(places[first] + best[first] - near)
        return f"is shifted: the mirror place of frame {place} shows frame {found} ({shifted.sum()} of {len(places)})"
    if mirror.max() > max(2 * _CODEC_LOSS, variation):
        worst = int(mirror.argmax())
        return f"shows something else at frame {places[worst]}: it differs by {mirror[worst]:.1f} of 255 grey levels"
    return None


def _variation(pictures: NDArray[np.float32]) -> float:
    """How much a video's sampled frames ``[S, pixels]`` differ from one to the next: two videos differ by more."""
    return float(np.abs(np.diff(pictures, axis=0)).mean()) if len(pictures) > 1 else 0.0


def _grey(reader: VideoReader, frames: NDArray[np.int64]) -> NDArray[np.float32]:
    """Frames of any shape of numbers, each as a row of grey levels: ``[..., pixels]``."""
    pixels = reader.read(frames.ravel(), size=_SIZE)  # [T, H, W, 3]
    return (pixels @ _GREY).reshape(*frames.shape, -1)


_KEY, _MARK = "comment", "bitad reverse 1 "


@dataclass(frozen=True)
class Origin:
    """From which file a reversed video was made, and how.

    Args:
        source_sha256: of the source's content.
        crf: x264's constant rate factor.
        frames: number of frames written.
        repeated: how many of them replace damaged ones.
    """

    source_sha256: str
    crf: float
    frames: int
    repeated: int

    def metadata(self) -> dict[str, str]:
        """The entry of a container's metadata that :meth:`read` finds again."""
        return {_KEY: _MARK + json.dumps(asdict(self))}

    @staticmethod
    def read(path: Path) -> Origin | None:
        """The origin that a file states; None where it states none, as files of earlier versions.

        Raises:
            FileNotFoundError, ValueError: it cannot be opened.
        """
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


# Frames of a group: this many, unless so large that a group would take more memory than this.
_GROUP_FRAMES = 30
_LEAST_GROUP_FRAMES = 8
_GROUP_BYTES = 96 * 2**20


@dataclass(frozen=True)
class ReverseReport:
    """The outcome for a folder's videos, by file name.

    Args:
        done: reversed now.
        skipped: reversed earlier, with all their frames.
        failed: why a video has no reversed file.
        repeated: of those reversed now, how many frames stand in the place of damaged ones, where any do.
        again: of those done, the ones whose earlier file was not whole, or not made from this video in this way.
        unrecorded: of those skipped, the ones that do not record their source but agree with it in samples of frames.
    """

    done: tuple[str, ...]
    skipped: tuple[str, ...]
    failed: dict[str, str]
    repeated: dict[str, int]
    again: tuple[str, ...] = ()
    unrecorded: tuple[str, ...] = ()

    @classmethod
    def together(cls, parts: Iterable[ReverseReport]) -> ReverseReport:
        """The reports of several processes on one folder as one."""
        parts = list(parts)
        return cls(
            tuple(sorted(name for part in parts for name in part.done)),
            tuple(sorted(name for part in parts for name in part.skipped)),
            dict(sorted(pair for part in parts for pair in part.failed.items())),
            dict(sorted(pair for part in parts for pair in part.repeated.items())),
            tuple(sorted(name for part in parts for name in part.again)),
            tuple(sorted(name for part in parts for name in part.unrecorded)),
        )


@dataclass(frozen=True)
class Reversed:
    """The outcome for one video.

    Args:
        frames: number of frames written.
        repeated: how many of them stand in the place of damaged ones.
    """

    frames: int
    repeated: int


def reverse_video(
    src: str | Path,
    dst: str | Path,
    *,
    crf: float = 18,
    damaged: OnDecodeError = "error",
    on_progress: Progress | None = None,
) -> Reversed:
    """Write a video's frames in the opposite order: H.264 (x264 veryfast, groups of 30, no B-frames) without sound.

    Frame i of the source is frame n - 1 - i of the target, and shown as long before its end as in the source behind its
    beginning. Size and number of frames stay, pictures are upright; the target is written whole or not at all. It says
    in its container's comment from which content it was made, and how (:class:`~bitad.video.reverse.Origin`).

    Args:
        src: any video that FFmpeg reads.
        dst: the reversed file; its suffix, one of ``H264_CONTAINERS``, names the container.
        crf: x264's constant rate factor; 18 is hardly visible, less is better and larger.
        damaged: what to do about frames that cannot be decoded, see :class:`~bitad.video.reader.VideoReader`.
        on_progress: called now and then with the number of frames done and in all.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not every frame can be decoded and these are an error, the picture's size changes, ``src`` is
            written to meanwhile, ``dst`` is ``src``, or there is no container for ``dst``.
    """
    src, dst = Path(src), Path(dst)
    if src.resolve() == dst.resolve():
        raise ValueError(f"{dst}: the reversed video would replace its source; name another file")
    require_video_file(src)
    try:
        source = FileIdentity.of(src)
        with VideoReader(src, damaged=damaged) as reader, replacing(dst) as partial:
            require_whole(src, reader.index, damaged)
            with (
                tempfile.TemporaryFile(dir=dst.parent) as store,
                # What the file says of itself stands at its front, so that a file that is cut off still says it.
                open_h264(partial, suffix=dst.suffix, faststart=True) as container,
            ):
                _write_reversed(reader, source, container, store, crf, on_progress)
            written = probe(partial).frames
            if written != reader.info.frames:
                raise ValueError(f"{src}: {reader.info.frames} frames, but {written} were written in reverse")
            source.require_unchanged(src)
            return Reversed(written, reader.repeated)
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
) -> ReverseReport:
    """Reverse every video of a folder and its sub-folders into another, under the same names, several at once.

    A target that is whole and was made from its source as it is now, in the same way, is kept, so that an interrupted
    run continues where it stopped. What fails is reported at the end and holds up nothing else. Sources whose container
    cannot hold H.264 become ``.mp4``.

    Args:
        src: the folder of videos (:func:`~bitad.video.files.list_videos`).
        dst: the folder of reversed videos.
        workers: processes side by side, one video and one thread each; 0: this one.
        rank, world: who we are among so many callers, each of whom has a share of the folder: every ``world``-th video,
            the largest first.
        crf: as for ``reverse_video``.
        damaged: likewise.
        on_progress: called after each video with the number of videos done and in all.

    Raises:
        FileNotFoundError: there is no such folder, or it has no videos.
        ValueError: two videos have the same name, or would have the same reversed file, or ``dst`` is ``src``.
    """
    src, dst = Path(src), Path(dst)
    targets = _targets(src, dst)
    mine = sorted(targets, key=lambda path: (-_size(path), path))[rank::world]
    earlier = {path.name for path in mine if os.path.exists(targets[path])}
    done: list[str] = []
    skipped: list[str] = []
    repeated: dict[str, int] = {}
    failed: dict[str, str] = {}
    for folder in {dst, *(target.parent for target in targets.values())}:
        remove_leftovers(folder)
    jobs = [(path, targets[path], crf, damaged) for path in mine]
    with closing(in_processes(_reverse_unless_done, jobs, workers=workers)) as results:
        for finished, (number, result) in enumerate(results, start=1):
            name = mine[number].name
            if isinstance(result, Exception):
                left = f"; {targets[mine[number]]} was not replaced" if name in earlier else ""
                failed[name] = f"{str(result) or type(result).__name__}{left}"
            elif result is None:
                skipped.append(name)
            else:
                done.append(name)
                if result.repeated:
                    repeated[name] = result.repeated
            if on_progress is not None:
                on_progress(finished, len(jobs))
    again = tuple(name for name in done if name in earlier)
    unrecorded = tuple(path.name for path in mine if path.name in skipped and Origin.read(targets[path]) is None)
    return ReverseReport.together([ReverseReport(tuple(done), tuple(skipped), failed, repeated, again, unrecorded)])


def _targets(src: Path, dst: Path) -> dict[Path, Path]:
    """The reversed file of each video in a folder, in the same sub-folder."""
    if src.is_dir() and src.resolve() == dst.resolve():
        raise ValueError(f"{dst}: the reversed videos would replace their sources; name another folder")
    sources: dict[Path, Path] = {}
    for path in list_videos(src, but=dst):
        is_kept = path.suffix.lower() in H264_CONTAINERS
        target = dst / path.relative_to(src).with_name(path.name if is_kept else f"{path.stem}.mp4")
        if target in sources:
            raise ValueError(
                f"{src}: {sources[target].name} and {path.name} would both become {target.name}; rename one"
            )
        sources[target] = path
    return {path: target for target, path in sources.items()}


def _size(path: Path) -> int:
    """A file's size in bytes; 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _reverse_unless_done(src: Path, dst: Path, crf: float, damaged: OnDecodeError) -> Reversed | None:
    """Reverse one video of a folder; None if that was done before."""
    require_video_file(src)
    if dst.exists() and _is_done(src, dst, crf, damaged):
        return None
    return reverse_video(src, dst, crf=crf, damaged=damaged)


def _is_done(src: Path, dst: Path, crf: float, damaged: OnDecodeError) -> bool:
    """Whether an earlier target is whole, of its source as it is now, and made in the same way."""
    try:
        target, origin = index_video(dst), Origin.read(dst)
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
        require_whole(src, index, damaged)
        return copy_defect(src, dst, index=index) is None
    except ValueError:  # one of them is damaged; if it is the source, reversing it says so
        return False


def _write_reversed(
    reader: VideoReader,
    source: FileIdentity,
    container: OutputContainer,
    store: IO[bytes],
    crf: float,
    on_progress: Progress | None,
) -> None:
    """Write a video's frames in the opposite order; encoded groups wait in ``store`` for their turn."""
    frames, rate = reader.info.frames, reader.index.rate
    times, tick = _mirrored_times(reader)
    frame_bytes = reader.info.height * reader.info.width * 3 // 2
    group = min(_GROUP_FRAMES, max(_LEAST_GROUP_FRAMES, _GROUP_BYTES // frame_bytes))
    # Each group is whole by itself only without B-frames; then every picture is one packet, in the same order.
    like = next(_pictures(reader, [0]))
    stream = add_h264_stream(container, like, rate=rate, crf=crf, preset="veryfast", gop=group, b_frames=0)
    sizes = _encode_groups(reader, stream, store, group, on_progress)
    # Before the first packet, with which the header is written.
    container.metadata.update(Origin(source.sha256, crf, frames, reader.repeated).metadata())
    starts = [0, *accumulate(sizes)]
    written = 0
    for first in reversed(range(0, frames, group)):
        store.seek(starts[first])
        for place, size in enumerate(sizes[first : first + group]):
            packet = av.Packet(store.read(size))
            packet.stream, packet.time_base = stream, tick
            packet.pts = packet.dts = times[written]
            packet.is_keyframe = place == 0
            container.mux(packet)
            written += 1


def _encode_groups(
    reader: VideoReader, stream: VideoStream, store: IO[bytes], group: int, on_progress: Progress | None
) -> list[int]:
    """Encode each group of frames turned round, the groups in the source's order; the sizes of the packets stored."""
    frames, rate = reader.info.frames, reader.index.rate
    sizes: list[int] = []
    decoded = _pictures(reader, range(frames))
    for first in range(0, frames, group):
        pictures = list(islice(decoded, group))
        for place, picture in enumerate(reversed(pictures)):
            # A group's first picture needs no other; the rest must lose the type that their decoder left in them.
            picture.pict_type = PictureType.NONE if place else PictureType.I
            picture.pts, picture.time_base = first + place, 1 / rate
            sizes += [store.write(bytes(packet)) for packet in stream.encode(picture)]
        if on_progress is not None:
            on_progress(first + len(pictures), frames)
    next(decoded, None)  # only behind its last picture does the reader say which ones were damaged
    sizes += [store.write(bytes(packet)) for packet in stream.encode(None)]
    return sizes


def _mirrored_times(reader: VideoReader) -> tuple[list[int], Fraction]:
    """When each frame of the target is shown, and in which ticks, in seconds."""
    index, frames = reader.index, reader.info.frames
    even = np.arange(frames)
    if frames > index.frames or (index.nearest(even) == even).all():
        return even.tolist(), 1 / index.rate
    return (index.shown[-1] - index.shown[::-1]).tolist(), index.time_base


def _pictures(reader: VideoReader, frames: Iterable[int]) -> Iterator[av.VideoFrame]:
    """Pictures of one size in a pixel format that can be encoded; they pass untouched where they are that already."""
    info, reformatter = reader.info, VideoReformatter()
    # 4:2:0 halves both sides, so an odd side needs 4:4:4.
    pixel_format = "yuv444p" if info.height % 2 or info.width % 2 else "yuv420p"
    for picture in reader.pictures(frames):
        yield reformatter.reformat(picture, width=info.width, height=info.height, format=pixel_format, threads=1)
