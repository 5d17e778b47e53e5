"""Fingerprints of data: a run that is resumed or tested must find its training's data.

Each video has a digest of its annotation as the run uses it, and one of its file's content: of all of a file of up to
1 MiB, and of the size and 8 samples of a larger one, so that 400 videos take 210 MB at most.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from bitad.config.schema import Config
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.feature_files import FeatureStore
from bitad.data.sources import annotated_names
from bitad.runtime.log import shortlist
from bitad.runtime.signatures import content_digest, file_digest
from bitad.timeline import View
from bitad.video.names import VideoFinder

# Kind of data -> name of the video, or of a file that holds all videos -> digest.
Fingerprints = dict[str, dict[str, str]]

TRAINING = "training annotations"
VALIDATION = "validation annotations"
TEST = "test annotations"
SCORES = "video scores"
TEACHER = "teacher"
MISSING = "missing"


def fingerprints(
    config: Config,
    training: Iterable[AnnotatedVideo],
    test: Annotations,
    validation: Annotations | None = None,
    *,
    views: Collection[View] = (),
) -> Fingerprints:
    """The fingerprints of the data that a run is trained, validated (unless on the test subset) and tested on.

    ``views``: what a teacher sees, besides the networks' own views.
    """
    data = config.data
    trained = list(training)
    found: Fingerprints = {
        TRAINING: {video.name: _of_annotation(video) for video in trained},
        TEST: {video.name: _of_annotation(video) for video in test.videos.values()},
    }
    validated = {} if validation is None else validation.videos
    if validation is not None:
        found[VALIDATION] = {video.name: _of_annotation(video) for video in validated.values()}
    names = list(dict.fromkeys((*(video.name for video in trained), *validated, *test.videos)))
    wanted = partial(annotated_names, data)
    sources = [("", data.features, data.videos)]
    if "reverse" in (*config.watched, *views):
        sources.append(("reversed ", data.reversed_features, data.reversed_videos))
    for prefix, features, videos in sources:
        if features is not None:
            found[f"{prefix}features"] = _digests(_feature_digest(features, wanted), names)
        if videos is not None:
            found[f"{prefix}videos"] = _digests(_video_digest(videos, wanted), names)
    if (scores := config.test.video_scores) is not None:
        found[SCORES] = _digests(lambda _: file_digest(scores), [SCORES])
    return found


def of_tests(found: Fingerprints) -> Fingerprints:
    """Those of the test videos."""
    tests = found.get(TEST, {})
    return {
        kind: {name: digest for name, digest in digests.items() if kind == SCORES or name in tests}
        for kind, digests in found.items()
        if kind not in (TRAINING, VALIDATION, TEACHER)
    }


def is_valid(value: object) -> bool:
    """Whether a value from a checkpoint has the type of fingerprints."""
    return isinstance(value, dict) and all(
        isinstance(digests, dict) and all(isinstance(one, str) for one in (*digests, *digests.values()))
        for digests in value.values()
    )


def changes(before: Fingerprints, now: Fingerprints) -> list[str]:
    """The differences, in a few words each. Skips kinds that only one side has."""
    kinds = [kind for kind in now if kind in before]
    return list(filter(None, (_change(kind, before[kind], now[kind]) for kind in kinds)))


def _change(kind: str, before: Mapping[str, str], now: Mapping[str, str]) -> str:
    if kind in (SCORES, TEACHER):
        return kind if before != now else ""
    ways: dict[str, list[str]] = {"changed": [], "gone": [], "new": []}
    for name in dict.fromkeys((*before, *now)):
        old = before.get(name, MISSING)
        new = now.get(name, MISSING)
        if old != new:
            ways["new" if old == MISSING else "gone" if new == MISSING else "changed"].append(name)
    parts = [f"{len(names)} {way} ({shortlist(names)})" for way, names in ways.items() if names]
    if not parts and list(before) != list(now):
        parts = ["in another order"]
    return f"{kind} of {len(before)} videos: {', '.join(parts)}" if parts else ""


def _of_annotation(video: AnnotatedVideo) -> str:
    values = (video.duration_s, video.fps, video.frames, video.segments.tolist(), video.labels)
    return content_digest(repr(values).encode())


def _digests(digest_of: Callable[[str], str], names: Iterable[str]) -> dict[str, str]:
    digests = dict.fromkeys(names, MISSING)
    for name in digests:
        with suppress(OSError, ValueError, KeyError):  # code that needs the file reports what is wrong with it
            digests[name] = digest_of(name)
    return digests


def _video_digest(folder: Path, wanted: Callable[[], Iterable[str]]) -> Callable[[str], str]:
    find = VideoFinder(folder, wanted)
    return lambda name: file_digest(find(name))


def _feature_digest(path: Path, wanted: Callable[[], Iterable[str]]) -> Callable[[str], str]:
    store = FeatureStore(path, wanted=wanted)
    if path.is_dir():
        return lambda name: file_digest(store.file(name))
    with zipfile.ZipFile(path) as archive:  # it has a checksum of every array
        arrays = {member.filename: f"{member.file_size} {member.CRC}" for member in archive.infolist()}

    def of_array(name: str) -> str:
        member = f"{name}.npy"
        return content_digest(arrays[member if member in arrays else f"{store.array(name)}.npy"].encode())

    return of_array
