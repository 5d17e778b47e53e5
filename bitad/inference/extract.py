"""Features of many videos, computed once and kept: what a detector without a backbone learns from.

Videos are dealt out to the processes by their length. A video is decoded once, a piece at a time, whatever its clips or
windows share and whether one direction is wanted or both; its rows go to disk as they come. So memory is bounded by a
piece, not by the video.
"""

from __future__ import annotations

import errno
import heapq
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from bitad.config.names import FeaturePrecision, OnDecodeError
from bitad.data.feature_folder import FeatureFolder, FeatureSettings, FeatureVideo, Stored
from bitad.data.transforms import apply_crop, centre_crop
from bitad.inference.encoders import Encoder, Piece
from bitad.runtime.distributed import Ranks
from bitad.runtime.environment import log_repeated_frames
from bitad.runtime.progress import Meter, track
from bitad.runtime.signatures import FileIdentity, sha256_of
from bitad.timeline import Direction
from bitad.video.decoding import frame_count, require_complete
from bitad.video.files import is_same_file, list_videos, require_video_file
from bitad.video.index import FrameIndex
from bitad.video.indexing import IndexCache, index_video
from bitad.video.reader import VideoReader

Item = TypeVar("Item")

# What is wrong with one video's files. Anything else (a full disk) is wrong with all of them and ends the work.
_OF_ONE_FILE = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.ESTALE,
}


@dataclass(frozen=True)
class ExtractionReport:
    """What became of the videos, by name.

    Args:
        done: their features were computed now.
        kept: they were there from before, whole.
        failed: why a video has no features.
        again: of those done, they replace others: of another file, damaged, or with more repeated frames.
        unrecorded: of those kept, an earlier version wrote them, and it is not known from which file.
    """

    done: tuple[str, ...]
    kept: tuple[str, ...]
    failed: dict[str, str]
    again: tuple[str, ...] = ()
    unrecorded: tuple[str, ...] = ()


def find_videos(places: Sequence[Path]) -> dict[str, Path]:
    """Video files by their names without suffix: files as they are given, and the videos of folders and sub-folders.

    Raises:
        FileNotFoundError: there is no such file or folder, or a folder has no videos.
        ValueError: two videos have the same name.
    """
    videos: dict[str, Path] = {}
    for place in places:
        if not os.path.lexists(place):
            raise FileNotFoundError(f"{place}: no such video or folder of videos")
        for path in list_videos(place) if place.is_dir() else [place]:
            other = videos.setdefault(path.stem, path)
            if other != path and not is_same_file(other, path):
                raise ValueError(f"{other} and {path} would have the same features' file; rename one")
    return videos


def feature_folders(
    encoder: Encoder,
    out: Path,
    directions: Sequence[Direction],
    *,
    precision: FeaturePrecision = "float32",
    stored: Stored = "float32",
) -> dict[Direction, FeatureFolder]:
    """The folder of each direction's features: ``out``, or of two ``out/forward`` and ``out/reverse``.

    Raises:
        ValueError: there are no features of a direction, or see :class:`FeatureFolder`.
    """
    lacking = [direction for direction in directions if direction not in encoder.backbones]
    if lacking:
        raise ValueError(
            f"{encoder.file} has no network for {lacking[0]} playback; only {', '.join(encoder.backbones)}"
        )
    sha256 = sha256_of(encoder.file)
    run = f"{encoder.file.parent.name}/" if encoder.window_steps is not None else ""
    return {
        direction: FeatureFolder(
            out if len(directions) == 1 else out / direction,
            FeatureSettings(
                feature_stride_frames=encoder.stride_frames,
                feature_offset_frames=encoder.offset_frames,
                feature_channels=encoder.vit.dim,
                direction=direction,
                model=encoder.model,
                clip_frames=encoder.vit.clip_frames,
                window_steps=encoder.window_steps,
                window_overlap=encoder.window_overlap,
                pixels=encoder.pixels,
                precision=precision,
                stored=stored,
                checkpoint=f"{run}{encoder.file.name}",
                checkpoint_sha256=sha256,
            ),
        )
        for direction in directions
    }


def extract_features(
    encoder: Encoder,
    videos: Mapping[str, Path],
    folders: Mapping[Direction, FeatureFolder],
    ranks: Ranks,
    *,
    damaged: OnDecodeError = "error",
    cache: IndexCache | None = None,
) -> ExtractionReport:
    """Writes the features of videos to folders, in each direction that has one; the same report on every process.

    What the folders hold already is verified and kept. A video that cannot be read holds up nothing else.

    Args:
        videos: files by name.
        folders: as :func:`feature_folders` makes them.
        damaged: what to do about frames that cannot be decoded, see :class:`~bitad.video.reader.VideoReader`.
        cache: of the files' indices, so that whoever goes on need not read them all through again; None does.
    """
    if ranks.is_main:
        for folder in folders.values():
            folder.begin()
    if cache is not None:
        cache.begin()
    index_of = index_video if cache is None else cache.index
    found = _look_at(encoder, videos, folders, ranks, index_of, damaged)
    known, missing, failed = found.known, found.missing, found.failed
    again = {name for name in missing for view in missing[name] if os.path.exists(folders[view].file(name))}
    ranks.barrier()  # nobody writes before all have looked
    hands = deal({name: known[name].steps * len(missing[name]) for name in videos if missing.get(name)}, ranks.world)
    mine = hands[ranks.rank]
    encoder.to(ranks.device)
    errors: dict[str, str] = {}
    repeated, what = 0, "extracting features"
    try:
        with Meter(what, sum(known[name].steps for name in mine), show=ranks.is_main) as meter:
            for name in mine:
                goal = meter.done + known[name].steps
                wanted = {direction: folders[direction] for direction in missing[name]}
                try:
                    source = FileIdentity.of(videos[name])
                    with VideoReader(videos[name], index=index_of(videos[name]), damaged=damaged) as reader:
                        _extract(encoder, name, reader, source, known[name], wanted, ranks.device, meter.advance)
                except (ValueError, OSError) as error:
                    errors[name] = _said_of_one(error, videos[name])
                    meter.advance(goal - meter.done)
                    continue
                repeated += reader.repeated
                done = replace(known[name], repeated=reader.repeated, source=source)
                for folder in wanted.values():
                    folder.finish(name, done)
    finally:
        for folder in folders.values():
            folder.record()
    log_repeated_frames(repeated, what, ranks)
    failed |= {name: reason for others in ranks.gather(errors) for name, reason in others.items()}
    return ExtractionReport(
        done=tuple(name for name in videos if missing.get(name) and name not in failed),
        kept=tuple(name for name in videos if missing.get(name) == []),
        failed={name: failed[name] + _said_of_earlier(name, folders) for name in videos if name in failed},
        again=tuple(name for name in videos if name in again and name not in failed),
        unrecorded=tuple(name for name in videos if missing.get(name) == [] and name in found.unrecorded),
    )


def deal(work: Mapping[str, int], hands: int) -> list[list[str]]:
    """Pieces of work of known sizes in so many nearly equal hands: the largest first, each to who has least."""
    dealt: list[list[str]] = [[] for _ in range(hands)]
    loads = [(0, hand) for hand in range(hands)]
    for name in sorted(work, key=lambda name: -work[name]):
        load, hand = loads[0]
        heapq.heapreplace(loads, (load + work[name], hand))
        dealt[hand].append(name)
    return dealt


@dataclass(frozen=True)
class _Found:
    """By name, what the videos are, in which directions their features are missing, and why some cannot be read."""

    known: dict[str, FeatureVideo]
    missing: dict[str, list[Direction]]
    failed: dict[str, str]
    unrecorded: set[str]


def _look_at(
    encoder: Encoder,
    videos: Mapping[str, Path],
    folders: Mapping[Direction, FeatureFolder],
    ranks: Ranks,
    index_of: Callable[[Path], FrameIndex],
    damaged: OnDecodeError,
) -> _Found:
    """Each video is looked at by one process, before any of them writes, so that all know the same."""
    names = list(videos)
    found = _Found({}, {}, {}, set())
    share = ranks.share(len(names))
    for name in track((names[i] for i in share), "looking at videos", len(share), show=ranks.is_main):
        path = videos[name]
        try:
            require_video_file(path)
            index = index_of(path)
            require_complete(path, index, damaged)
            frames = frame_count(index, damaged)
            video = FeatureVideo(frames, float(index.rate), encoder.steps(frames))
            held = {view: folder.held(name, video, path, damaged) for view, folder in folders.items()}
        except (ValueError, OSError) as error:
            found.failed[name] = _said_of_one(error, path)
            continue
        found.known[name] = video
        found.missing[name] = [view for view, record in held.items() if record is None]
        for view, record in held.items():
            if record is not None:
                folders[view].finish(name, record)
                if not record.is_recorded:
                    found.unrecorded.add(name)
    for others in ranks.gather(found):
        found.known.update(others.known)
        found.missing.update(others.missing)
        found.failed.update(others.failed)
        found.unrecorded.update(others.unrecorded)
    return found


def _said_of_earlier(name: str, folders: Mapping[Direction, FeatureFolder]) -> str:
    """Which features of a video are left from before, in words."""
    left = [str(folder.file(name)) for folder in folders.values() if os.path.exists(folder.file(name))]
    return f"; {' and '.join(left)} {'were' if len(left) > 1 else 'was'} not replaced" if left else ""


def _said_of_one(error: ValueError | OSError, path: Path) -> str:
    """What is wrong with one video, of this file; an error that is not of one video is raised again."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    if error.errno not in _OF_ONE_FILE:
        raise error
    return f"{error.filename or path}: {error.strerror}"  # a read that fails does not say of what


@torch.inference_mode()
def _extract(
    encoder: Encoder,
    name: str,
    reader: VideoReader,
    source: FileIdentity,
    video: FeatureVideo,
    folders: Mapping[Direction, FeatureFolder],
    device: torch.device,
    on_rows: Callable[[int, str], None],
) -> None:
    """One video's features, into the folder of each direction."""
    pieces = list(encoder.pieces(video.frames))
    with ExitStack() as stack:
        writers = {direction: stack.enter_context(f.writing(name, video)) for direction, f in folders.items()}
        # Closed before the reader: its thread must have ended by then.
        ahead = stack.enter_context(closing(_one_ahead(_pictures(reader, pieces, encoder.pixels))))
        for piece, pictures in zip(pieces, ahead, strict=True):
            here = pictures.to(device)
            for direction, write in writers.items():
                half = folders[direction].settings.precision == "bfloat16"
                with torch.autocast(device.type, torch.bfloat16, enabled=half):
                    rows = encoder.encode(here, piece, direction)
                write(rows.cpu().numpy())
            on_rows(piece.stop - piece.first, name)
        source.require_unchanged(reader.path)


def _pictures(reader: VideoReader, pieces: Sequence[Piece], pixels: int) -> Iterator[Tensor]:
    """The middle squares of each piece's frames, uint8 ``[n, pixels, pixels, 3]``; each frame is decoded once."""
    wanted = (reader.index.nearest(piece.frames) for piece in pieces)
    for frames in reader.read_windows(wanted, short_side=pixels):
        yield apply_crop(frames, centre_crop(*frames.shape[1:3]), pixels)


def _one_ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The same items, the next of which is made in a thread while one is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item
