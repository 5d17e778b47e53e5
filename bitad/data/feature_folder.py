"""A folder of features: ``NAME.npy`` of every video, and ``features.json``, which describes them.

:class:`~bitad.data.feature_files.FeatureStore` reads the arrays; ``features.json`` states what a configuration needs to
place them in time, and is compared with the configuration. Rows are in the order of forward time, whichever way the
video was played. Folders of other projects have no such file, and are taken on trust.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from bitad.config.names import OnDecodeError
from bitad.config.schema import Count, DataConfig
from bitad.data.feature_files import header_of
from bitad.runtime.files import atomic_write, is_leftover, read_json, remove_leftovers, write_json
from bitad.runtime.locking import locked
from bitad.runtime.log import log
from bitad.runtime.signatures import FileIdentity
from bitad.timeline import Direction

FORMAT = "bitad features 1"
SIDECAR = "features.json"

FeaturePrecision = Literal["float32", "bfloat16"]
Stored = Literal["float32", "float16"]
# Records of finished videos are written so often; a process that is killed loses those since.
_SECONDS_BETWEEN_RECORDS = 10.0
# Another process holds the lock for the writing of one small file.
_PATIENCE_S = 60.0
# Of what features.json holds: no other keys, no text in the place of a number.
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class FeatureSettings:
    """What all features of a folder have in common; the first three are keys of ``data`` in a configuration.

    Args:
        feature_stride_frames: video frames from one row to the next.
        feature_offset_frames: frame at the centre of row 0; between frames 0 and 15 that is 7.5.
        feature_channels: C, width of a row.
        direction: in which the frames were played to the network. It changes what rows say, not their order.
        model: the backbone's size: a published one's name, or ``WIDTHxDEPTH``.
        clip_frames: frames that the transformer sees at once.
        window_steps: rows that a run's adapters see at once; None: every row is of a clip by itself.
        window_overlap: of neighbouring windows; None without windows.
        pixels: height and width of the pictures.
        precision: of the network's products.
        stored: of the rows.
        checkpoint: name of the file of weights.
        checkpoint_sha256: of its content.
    """

    __pydantic_config__ = _STRICT

    feature_stride_frames: Count
    feature_offset_frames: float
    feature_channels: Count
    direction: Direction
    model: str
    clip_frames: Count
    window_steps: int | None
    window_overlap: float | None
    pixels: int
    precision: FeaturePrecision
    stored: Stored
    checkpoint: str
    checkpoint_sha256: str

    def changes(self, now: FeatureSettings) -> list[str]:
        """How others differ from these, ``key was x, is y``; a file of weights under another name is the same one."""
        before, after = asdict(self), asdict(now)
        for values in (before, after):
            values["checkpoint"] = f"{values['checkpoint']} ({values['checkpoint_sha256'][:12]})"
        same_weights = self.checkpoint_sha256 == now.checkpoint_sha256
        looked_at = before.keys() - {"checkpoint_sha256"} - ({"checkpoint"} if same_weights else set())
        return [
            f"{key} was {before[key]}, is {after[key]}"
            for key in before
            if key in looked_at and before[key] != after[key]
        ]

    def overrides(self) -> str:
        """What a configuration must say of these features, as on the command line."""
        return (
            f"data.feature_channels={self.feature_channels} data.feature_stride_frames={self.feature_stride_frames} "
            f"data.feature_offset_frames={self.feature_offset_frames:g}"
        )


@dataclass(frozen=True)
class FeatureVideo:
    """One video, and what its features were made from; earlier versions recorded the first three only.

    Args:
        frames: of the video, counted.
        fps: frames a second.
        steps: rows of features.
        repeated: how many frames were damaged and replaced by the last good one.
        source: the video's file.
        rows: the file of features.
    """

    __pydantic_config__ = _STRICT

    frames: Count
    fps: Annotated[float, Field(gt=0)]
    steps: Count
    repeated: Annotated[int, Field(ge=0)] = 0
    source: FileIdentity | None = None
    rows: FileIdentity | None = None

    @property
    def is_recorded(self) -> bool:
        """Whether it is known from which file the features were made."""
        return self.source is not None and self.rows is not None

    def has_clock_of(self, other: FeatureVideo) -> bool:
        """Whether frames, frame rate and rows are the other's."""
        return (self.frames, self.fps, self.steps) == (other.frames, other.fps, other.steps)


@dataclass(frozen=True)
class _Sidecar:
    """The content of ``features.json``.

    Args:
        format: :data:`FORMAT`.
        settings: of all features.
        videos: by name.
        records_all: whether features of a video that is not among them are unfinished business of a process that was
            killed, or is running. Earlier versions recorded videos at their end only.
    """

    __pydantic_config__ = _STRICT

    format: str
    settings: FeatureSettings
    videos: dict[str, FeatureVideo] = field(default_factory=dict)
    records_all: bool = False


def read_sidecar(folder: Path) -> tuple[FeatureSettings, dict[str, FeatureVideo]]:
    """What a folder's ``features.json`` says: of all its features, and of each video.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: it is not one of ours.
    """
    content = _read(folder)
    return content.settings, content.videos


def _read(folder: Path) -> _Sidecar:
    path = folder / SIDECAR
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} does not describe features of BiTAD ('{FORMAT}'); name another folder")
    try:
        # As JSON: objects become dataclasses, and true is no number.
        return TypeAdapter(_Sidecar).validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"{path} is damaged: {place}: {first['msg']}; correct or restore it, or name another folder"
        ) from None


class FeatureFolder:
    """A folder to write features to, of one sort only; what an earlier, perhaps interrupted, run has finished is kept.

    Several processes may write to one folder at once. Nothing is written before :meth:`begin`.

    Args:
        path: the folder; it need not be there.
        settings: of the features to write.

    Raises:
        ValueError: the folder holds features of other settings, or of unknown ones.
    """

    def __init__(self, path: Path, settings: FeatureSettings) -> None:
        self.path, self.settings = path, settings
        self.videos: dict[str, FeatureVideo] = {}
        self._records_all = True
        self._waiting: dict[str, FeatureVideo] = {}
        self._written: dict[str, FileIdentity] = {}
        self._recorded = time.monotonic()
        if (path / SIDECAR).is_file():
            self._read()
        elif path.is_dir() and any(
            file.suffix in (".npy", ".npz") and not is_leftover(file.name) for file in path.iterdir()
        ):
            raise ValueError(f"{path} holds features without a {SIDECAR} that says of what; name another folder")
        elif path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file; name a folder")

    def begin(self) -> None:
        """Says in ``features.json`` of what sort the features are that will come; for one process only.

        Raises:
            ValueError: another process has meanwhile begun with other settings.
        """
        remove_leftovers(self.path)
        self._record({})

    def finish(self, name: str, video: FeatureVideo) -> None:
        """Notes a video whose features are there; :meth:`record` writes it down, at the latest."""
        video = replace(video, rows=self._written.pop(name, video.rows))
        if name in self.videos and _row(self.videos[name]) == _row(video):
            return
        self._waiting[name] = video
        if time.monotonic() - self._recorded > _SECONDS_BETWEEN_RECORDS:
            self.record()

    def record(self) -> None:
        """Adds the videos noted to ``features.json``, and keeps what other processes have added."""
        if self._waiting:
            self._record(self._waiting)
            self._waiting = {}

    def held(self, name: str, video: FeatureVideo, source: Path, damaged: OnDecodeError) -> FeatureVideo | None:
        """What is recorded of a video whose features are there whole; None: they must be computed.

        Features that an earlier version wrote are compared with the video as far as it recorded it, and are kept.

        Args:
            video: as it is now.
            source: its file.
            damaged: what to do about damaged frames now.
        """
        try:
            shape, dtype = header_of(self.file(name))
        except (FileNotFoundError, ValueError):  # none; damaged or cut off
            return None
        if name not in self.videos and self._records_all:
            return None
        record = self.videos.get(name, video)
        if not record.has_clock_of(video) or (record.repeated and damaged == "error"):
            return None
        if shape != (video.steps, self.settings.feature_channels) or dtype != self.settings.stored:
            return None
        if record.source is None or record.rows is None:
            return record
        same_source, same_rows = record.source.now(source), record.rows.now(self.file(name))
        if same_source is None or same_rows is None:
            return None
        return replace(record, source=same_source, rows=same_rows)

    @contextmanager
    def writing(self, name: str, video: FeatureVideo) -> Iterator[Callable[[NDArray[np.float32]], None]]:
        """A function that takes the video's rows ``[t, C]``, some at a time, in order.

        They become the video's file when the block ends, and vanish if it fails.

        Raises:
            ValueError: a row is not finite as stored.
        """
        shape, dtype = (video.steps, self.settings.feature_channels), np.dtype(self.settings.stored)
        header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        with atomic_write(self.file(name)) as partial:
            with partial.open("wb") as stream:
                npy.write_array_header_1_0(stream, header)
                begins = stream.tell()

                def write(rows: NDArray[np.float32]) -> None:
                    with np.errstate(over="ignore"):  # what is too large for half precision becomes infinite
                        stored = np.ascontiguousarray(rows, dtype)
                    if not np.isfinite(stored).all():
                        remedy = "; leave out --half" if dtype == np.float16 else ""
                        raise ValueError(f"features up to {np.abs(rows).max():g} are not finite in {dtype}{remedy}")
                    stream.write(stored.tobytes())

                yield write
                assert stream.tell() == begins + dtype.itemsize * shape[0] * shape[1], "a row for every step"
            self._written[name] = FileIdentity.of(partial)  # another process may replace the file at any time

    def file(self, name: str) -> Path:
        """Where a video's features are."""
        return self.path / f"{name}.npy"

    def _read(self) -> None:
        """Learns what ``features.json`` says."""
        before = _read(self.path)
        if changes := before.settings.changes(self.settings):
            raise ValueError(f"{self.path} holds other features: {', '.join(changes)}; name another folder")
        self.videos, self._records_all = before.videos, before.records_all

    def _record(self, videos: Mapping[str, FeatureVideo]) -> None:
        remedy = "wait until that has ended, or choose another --out"
        with locked(self.path, remedy=remedy, patience_s=_PATIENCE_S):
            if (self.path / SIDECAR).is_file():
                self._read()
            self.videos |= {name: video for name, video in videos.items() if self._is_still_there(name, video)}
            rows = {name: _row(video) for name, video in sorted(self.videos.items())}
            content = {"format": FORMAT, "settings": asdict(self.settings), "videos": rows}
            write_json(content | {"records_all": self._records_all}, self.path / SIDECAR)
        self._recorded = time.monotonic()

    def _is_still_there(self, name: str, video: FeatureVideo) -> bool:
        """Whether a video's file has the rows that were noted; else whoever has replaced it records it."""
        if video.rows is None or video.rows.now(self.file(name)) is not None:
            return True
        log.warning("%s: was replaced by another process meanwhile; its features count", self.file(name))
        return False


def _row(video: FeatureVideo) -> dict[str, Any]:
    """A video as ``features.json`` has it; what is not known is left out."""
    if video.is_recorded:
        return asdict(video)
    return {key: getattr(video, key) for key in ("frames", "fps", "steps")}


# Keys of `data` that a sidecar states under the same names.
_PLACED = ("feature_stride_frames", "feature_offset_frames", "feature_channels")
# These change the last digits of rows only.
_ROUNDING = ("precision", "stored")


@dataclass(frozen=True)
class Described:
    """A folder of features with the ``features.json`` in it."""

    folder: Path
    settings: FeatureSettings
    videos: dict[str, FeatureVideo]

    @staticmethod
    def of(path: Path) -> Described | None:
        """What a folder says of its features; None: it says nothing, or it is a file.

        Raises:
            ValueError: its ``features.json`` cannot be read.
        """
        if not (path / SIDECAR).is_file():
            return None
        content = read_json(path / SIDECAR)
        project = FORMAT.rpartition(" ")[0]
        if not (isinstance(content, dict) and str(content.get("format")).startswith(project)):
            return None  # a file of that name by someone else
        return Described(path, *read_sidecar(path))

    def faults(self, data: DataConfig) -> list[str]:
        """Where a configuration states something else of these features."""
        return [
            f"{self.folder / SIDECAR} says {key} {stated}, the configuration data.{key}={given}"
            for key in _PLACED
            if (stated := getattr(self.settings, key)) != (given := getattr(data, key))
        ]


def require_described(data: DataConfig, views: Sequence[Direction]) -> Mapping[str, FeatureVideo]:
    """Compares a configuration with the ``features.json`` of its features; what that says of each video, by name.

    Args:
        data: with ``features``.
        views: the playing directions that are shown.

    Raises:
        ValueError: another stride, offset, width or direction than the configuration's; or the two folders of a pair
            are not of the same network, clips or pictures.
    """
    assert data.features is not None
    forward = Described.of(data.features)
    back = None if data.reversed_features is None else Described.of(data.reversed_features)
    faults = [fault for one in (forward, back) if one is not None for fault in one.faults(data)]
    # Alone, features of reversed playback are what a network that watches backwards is to see.
    alone_in_reverse = data.reversed_features is None and set(views) == {"reverse"}
    for key, one, wanted in (("features", forward, "forward"), ("reversed_features", back, "reverse")):
        if one is not None and one.settings.direction != wanted and not alone_in_reverse:
            faults.append(
                f"{one.folder / SIDECAR} says direction {one.settings.direction}, but data.{key} is to hold features "
                f"of {wanted} playback"
            )
    if not faults and forward is not None and back is not None:
        faults += _differences(forward, back, "direction")
    if faults:
        raise ValueError(f"{'; '.join(faults)}; correct the configuration, or name other features")
    return {} if forward is None else forward.videos


def require_same_features(before: DataConfig, now: DataConfig) -> None:
    """Refuses features of another network, of other clips or of other pictures than a run was trained on.

    Raises:
        ValueError: the ``features.json`` of both say so. Where one is missing, nothing is known.
    """
    for key in ("features", "reversed_features"):
        trained, given = getattr(before, key), getattr(now, key)
        if trained is None or given is None or trained == given:
            continue
        one, other = Described.of(trained), Described.of(given)
        if one is not None and other is not None and (faults := _differences(one, other, "direction")):
            raise ValueError(
                f"data.{key}={given} holds other features than the run was trained on: {'; '.join(faults)}"
            )


def _differences(one: Described, other: Described, *but: str) -> list[str]:
    """In which settings two folders differ where they should not; ``but`` are not compared."""
    same = {key: getattr(one.settings, key) for key in (*but, *_ROUNDING)}
    changes = one.settings.changes(replace(other.settings, **same))
    return [f"{one.folder / SIDECAR} and {other.folder / SIDECAR} differ: {', '.join(changes)}"] if changes else []
