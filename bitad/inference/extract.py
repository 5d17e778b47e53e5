"""Extraction of the features of many videos, for detectors without a backbone.

The processes share the videos. Each video is decoded once for both directions, and its rows are written chunk by
chunk, so memory depends on a chunk, not on the video.
"""

from __future__ import annotations

import errno
import heapq
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from bitad.config.names import FeaturePrecision, OnDecodeError
from bitad.data.feature_folder import FeatureFolder, FeatureVideo, Stored
from bitad.inference.encoders import Encoder
from bitad.runtime.distributed import Ranks
from bitad.runtime.environment import log_repeated_frames
from bitad.runtime.progress import Meter, track
from bitad.runtime.signatures import FileIdentity
from bitad.timeline import Direction
from bitad.video.decoding import frame_count, require_complete
from bitad.video.files import VideosReport, is_same_file, list_videos, require_video_file
from bitad.video.indexing import IndexCache
from bitad.video.reader import VideoReader

Item = TypeVar("Item")

# Errors of one video's files. Others (a full disk) end the work.
_FILE_ERRORS = {
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


def find_videos(places: Sequence[Path]) -> dict[str, Path]:
    """The given files and all videos of the given folders, by name without suffix."""
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
    """The folder of each direction's features: ``out``, or ``out/forward`` and ``out/reverse``."""
    lacking = [direction for direction in directions if direction not in encoder.directions]
    if lacking:
        known = ", ".join(encoder.directions)
        raise ValueError(f"{encoder.source} has no network for {lacking[0]} playback; only {known}")
    return {
        direction: FeatureFolder(
            out if len(directions) == 1 else out / direction, encoder.settings(direction, precision, stored)
        )
        for direction in directions
    }


def extract_features(
    encoder: Encoder,
    videos: Mapping[str, Path],
    folders: Mapping[Direction, FeatureFolder],
    ranks: Ranks,
    cache: IndexCache,
    *,
    damaged: OnDecodeError = "error",
) -> VideosReport:
    """Writes the features of videos, in each direction that has a folder; the same report on all processes.

    Existing features are verified and kept. A video that cannot be read does not stop the others.
    """
    if ranks.is_main:
        for folder in folders.values():
            folder.begin()
    cache.begin()
    examined = _examine(encoder, videos, folders, ranks, cache, damaged)
    failed = {name: one for name, one in examined.items() if isinstance(one, str)}
    known = {name: one for name in videos if isinstance(one := examined[name], _Examined)}
    missing = {name: one.missing for name, one in known.items() if one.missing}
    again = set()
    for name, views in missing.items():
        if any(os.path.exists(folders[view].file(name)) for view in views):
            again.add(name)
    ranks.barrier()  # no process writes before all have examined
    shares = deal({name: known[name].video.steps * len(missing[name]) for name in missing}, ranks.world)
    own = {name: known[name].video for name in shares[ranks.rank]}
    encoder.to(ranks.device)
    errors: dict[str, str] = {}
    repeated, what = 0, "extracting features"
    try:
        with Meter(what, sum(video.steps for video in own.values()), show=ranks.is_main) as meter:
            for name, video in own.items():
                goal = meter.done + video.steps
                wanted = {direction: folders[direction] for direction in missing[name]}
                try:
                    source = FileIdentity.of(videos[name])
                    with VideoReader(videos[name], index=cache.index(videos[name]), damaged=damaged) as reader:
                        _extract(encoder, name, reader, source, video, wanted, ranks.device, meter.advance)
                except (ValueError, OSError) as error:
                    errors[name] = _describe_error(error, videos[name])
                    meter.advance(goal - meter.done)
                    continue
                repeated += reader.repeated
                done = replace(video, repeated=reader.repeated, source=source)
                for folder in wanted.values():
                    folder.finish(name, done)
    finally:
        for folder in folders.values():
            folder.record()
    log_repeated_frames(repeated, what, ranks)
    failed |= {name: reason for others in ranks.gather(errors) for name, reason in others.items()}
    kept = tuple(name for name in known if name not in missing)
    return VideosReport(
        done=tuple(name for name in missing if name not in failed),
        kept=kept,
        failed={name: failed[name] + _remaining_files(name, folders) for name in videos if name in failed},
        again=tuple(name for name in missing if name in again and name not in failed),
        unrecorded=tuple(name for name in kept if not known[name].is_recorded),
    )


def deal(work: Mapping[str, int], hands: int) -> list[list[str]]:
    """Divides work into nearly equal shares: the largest first, each to the smallest share."""
    dealt: list[list[str]] = [[] for _ in range(hands)]
    loads = [(0, hand) for hand in range(hands)]
    for name in sorted(work, key=lambda name: -work[name]):
        load, hand = loads[0]
        heapq.heapreplace(loads, (load + work[name], hand))
        dealt[hand].append(name)
    return dealt


class _Examined(NamedTuple):
    """A readable video, and the state of its existing features."""

    video: FeatureVideo
    missing: list[Direction]
    is_recorded: bool


def _examine(
    encoder: Encoder,
    videos: Mapping[str, Path],
    folders: Mapping[Direction, FeatureFolder],
    ranks: Ranks,
    cache: IndexCache,
    damaged: OnDecodeError,
) -> dict[str, _Examined | str]:
    names = list(videos)
    found: dict[str, _Examined | str] = {}
    share = ranks.share(len(names))
    for name in track((names[i] for i in share), "looking at videos", len(share), show=ranks.is_main):
        path = videos[name]
        try:
            require_video_file(path)
            index = cache.index(path)
            require_complete(path, index, damaged)
            frames = frame_count(index, damaged)
            video = FeatureVideo(frames, float(index.rate), encoder.steps(frames))
            held = {view: folder.held(name, video, path, damaged) for view, folder in folders.items()}
        except (ValueError, OSError) as error:
            found[name] = _describe_error(error, path)
            continue
        for view, record in held.items():
            if record is not None:
                folders[view].finish(name, record)
        missing = [view for view, record in held.items() if record is None]
        is_recorded = all(record is None or record.is_recorded for record in held.values())
        found[name] = _Examined(video, missing, is_recorded)
    return {name: one for others in ranks.gather(found) for name, one in others.items()}


def _remaining_files(name: str, folders: Mapping[Direction, FeatureFolder]) -> str:
    left = [str(folder.file(name)) for folder in folders.values() if os.path.exists(folder.file(name))]
    return f"; {' and '.join(left)} {'were' if len(left) > 1 else 'was'} not replaced" if left else ""


def _describe_error(error: ValueError | OSError, path: Path) -> str:
    """The message of an error of one video; others are raised again."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    if error.errno not in _FILE_ERRORS:
        raise error
    return f"{error.filename or path}: {error.strerror}"  # a failed read has no file name


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
    chunks = list(encoder.chunks(video.frames))
    with ExitStack() as stack:
        writers = {direction: stack.enter_context(f.writing(name, video)) for direction, f in folders.items()}
        # Closed before the reader, so that its thread has ended by then.
        ahead = stack.enter_context(closing(_prefetch(encoder.pictures(reader, chunks))))
        for chunk, pictures in zip(chunks, ahead, strict=True):
            here = pictures.to(device)
            for direction, write in writers.items():
                half = folders[direction].settings.precision == "bfloat16"
                with torch.autocast(device.type, torch.bfloat16, enabled=half):
                    rows = encoder.encode(here, chunk, direction)
                write(rows.cpu().numpy())
            on_rows(chunk.stop - chunk.first, name)
        source.require_unchanged(reader.path)


def _prefetch(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The same items; a thread makes the next one while one is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item
