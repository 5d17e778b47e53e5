"""By what data is known: a run that is resumed, or tested, must find what it was trained on.

Of each video there is a digest of its annotation as the run uses it, and one of its file's content. A file of up to
1 MiB counts in full. Of a larger one its size and 8 pieces of 64 KiB count, spread over its length, so that 400 videos
take 3,200 reads and 210 MB at most, whatever their size. Names of folders and times of files do not count: a copy is
the same data.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from bitad.config.schema import Config
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.feature_files import FeatureStore
from bitad.data.sources import annotated_names
from bitad.runtime.log import shortlist
from bitad.video.names import VideoFinder

# What is compared (annotations, files) -> name of the video (of the file, where it is of all videos) -> digest.
Fingerprints = dict[str, dict[str, str]]

TRAINING, TEST, SCORES = "training annotations", "test annotations", "video scores"
MISSING = "missing"

_WHOLE = 1 << 20
_PIECE, _PIECES = 1 << 16, 8


def fingerprints(config: Config, training: Iterable[AnnotatedVideo], test: Annotations) -> Fingerprints:
    """Of the data that a run uses.

    Args:
        training: the videos that it learns from.
        test: those that it is tested on.
    """
    data, learnt = config.data, list(training)
    found: Fingerprints = {
        TRAINING: {video.name: _of_annotation(video) for video in learnt},
        TEST: {video.name: _of_annotation(video) for video in test.videos.values()},
    }
    names = list(dict.fromkeys((*(video.name for video in learnt), *test.videos)))
    wanted = partial(annotated_names, data)
    if data.features is not None:
        found["features"] = _of_files(_features(data.features, wanted), names)
    if data.videos is not None:
        found["videos"] = _of_files(_videos(data.videos, wanted), names)
    if "reverse" in config.views and data.reversed_features is not None:
        found["reversed features"] = _of_files(_features(data.reversed_features, wanted), names)
    if "reverse" in config.views and data.reversed_videos is not None:
        found["reversed videos"] = _of_files(_videos(data.reversed_videos, wanted), names)
    if (scores := config.test.video_scores) is not None:
        found[SCORES] = _of_files(lambda name: _of_file(scores), [SCORES])
    return found


def of_tests(found: Fingerprints) -> Fingerprints:
    """Those of the test videos."""
    tests = found.get(TEST, {})
    return {
        kind: {name: digest for name, digest in digests.items() if kind == SCORES or name in tests}
        for kind, digests in found.items()
        if kind != TRAINING
    }


def is_sound(value: object) -> bool:
    """Whether this can be what :func:`fingerprints` gave, as a checkpoint has it."""
    return isinstance(value, dict) and all(
        isinstance(digests, dict) and all(isinstance(one, str) for one in (*digests, *digests.values()))
        for digests in value.values()
    )


def changes(before: Fingerprints, now: Fingerprints) -> list[str]:
    """What differs, in a few words each: the kind, how many videos, which. Kinds that only one has are left out."""
    return [said for kind in now if kind in before and (said := _change(kind, before[kind], now[kind]))]


def _change(kind: str, before: Mapping[str, str], now: Mapping[str, str]) -> str:
    if kind == SCORES:
        return kind if before != now else ""
    names = list(dict.fromkeys((*before, *now)))
    pairs = {name: (before.get(name, MISSING), now.get(name, MISSING)) for name in names}
    ways: dict[str, list[str]] = {"changed": [], "gone": [], "new": []}
    for name, (old, new) in pairs.items():
        if old != new:
            ways["new" if old == MISSING else "gone" if new == MISSING else "changed"].append(name)
    said = [f"{len(names)} {way} ({shortlist(names)})" for way, names in ways.items() if names]
    if not said and list(before) != list(now):
        said = ["in another order"]
    return f"{kind} of {len(before)} videos: {', '.join(said)}" if said else ""


def _of_annotation(video: AnnotatedVideo) -> str:
    said = (video.duration_s, video.fps, video.frames, video.segments.tolist(), video.labels)
    return _digest(repr(said).encode())


def _of_files(of: Callable[[str], str], names: Sequence[str]) -> dict[str, str]:
    """The digest of each video's file; of one that is not there, or cannot be read, that."""
    digests = dict.fromkeys(names, MISSING)
    for name in names:
        with suppress(OSError, ValueError, KeyError):  # whoever needs the file says what is wrong with it
            digests[name] = of(name)
    return digests


def _videos(folder: Path, wanted: Callable[[], Iterable[str]]) -> Callable[[str], str]:
    """What gives the digest of a video's file."""
    find = VideoFinder(folder, wanted)
    return lambda name: _of_file(find(name))


def _features(path: Path, wanted: Callable[[], Iterable[str]]) -> Callable[[str], str]:
    """What gives the digest of a video's features."""
    store = FeatureStore(path, wanted=wanted)
    if path.is_dir():
        return lambda name: _of_file(store.file(name))
    with zipfile.ZipFile(path) as archive:  # it has a checksum of every array
        arrays = {member.filename: f"{member.file_size} {member.CRC}" for member in archive.infolist()}

    def of_array(name: str) -> str:
        member = f"{name}.npy"
        return _digest(arrays[member if member in arrays else f"{store.array(name)}.npy"].encode())

    return of_array


def _of_file(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE:
            return _digest(file.read())
        pieces = [str(size).encode()]
        for i in range(_PIECES):
            file.seek((size - _PIECE) * i // (_PIECES - 1), os.SEEK_SET)
            pieces.append(file.read(_PIECE))
    return _digest(b"".join(pieces))


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()
