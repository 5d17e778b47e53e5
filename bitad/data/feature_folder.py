"""A folder of features: ``NAME.npy`` of every video, and ``features.json``, which describes them.

Rows are in the order of forward time, in whichever direction the video was played.
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

from bitad.config.names import FeaturePrecision, OnDecodeError, RowsOf
from bitad.config.schema import Count, DataConfig
from bitad.data.feature_files import read_header
from bitad.runtime.files import atomic_write, is_leftover, read_json, remove_leftovers, write_json
from bitad.runtime.locking import locked
from bitad.runtime.log import log
from bitad.runtime.signatures import FileIdentity
from bitad.timeline import Direction, View

FORMAT = "bitad features 1"
SIDECAR = "features.json"

Stored = Literal["float32", "float16"]
# How often records of finished videos are written; a process that is killed loses the latest.
_SECONDS_BETWEEN_RECORDS = 10.0
# Another process holds the lock while it writes one small file.
_LOCK_TIMEOUT_S = 60.0
# The content of features.json: no other keys, no text in the place of a number.
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class FeatureSettings:
    """Settings of all features of a folder; the first three are keys of ``data`` in a configuration.

    Args:
        feature_offset_frames: frame at the centre of row 0; between frames 0 and 15 that is 7.5.
        direction: of playback. It changes the values of rows, not their order.
        model: the backbone's size: a published one's name, or ``WIDTHxDEPTH``.
        clip_frames: frames in the transformer's input.
        window_steps: rows in the input of a run's adapters; None: each row is computed from one clip.
        pixels: height and width of the frames.
        precision: of the network's matrix products.
        checkpoint, checkpoint_sha256: name of the weights file, and hash of its content; of a folder, of all its files
            of the network and its pictures.
        rows: what a row is of: a clip (or frame), or one tubelet of it.
        tubelet_frames: frames of one token, of another library's encoder.
        frame_step: from one frame of a clip to its next.
        vector: what a row averages or takes, of another library's encoder.
        preprocessing: how frames become the network's pictures, of another library's encoder.

    Row i is at second ``(feature_offset_frames + feature_stride_frames * i) / fps`` of a video.
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
    rows: RowsOf = "clip"
    tubelet_frames: Count | None = None
    frame_step: Count = 1
    vector: str | None = None
    preprocessing: str | None = None

    def changes(self, now: FeatureSettings) -> list[str]:
        """How others differ from these, ``key was x, is y``. The weights file's hash counts, not its name."""
        before = asdict(self)
        after = asdict(now)
        for values in (before, after):
            sha256 = values.pop("checkpoint_sha256")
            values["checkpoint"] = f"{values['checkpoint']} ({sha256[:12]})"
        if self.checkpoint_sha256 == now.checkpoint_sha256:
            after["checkpoint"] = before["checkpoint"]
        return [f"{key} was {before[key]}, is {after[key]}" for key in before if before[key] != after[key]]

    def overrides(self) -> str:
        """The values that a configuration needs for these features, as on the command line."""
        return (
            f"data.feature_channels={self.feature_channels} data.feature_stride_frames={self.feature_stride_frames} "
            f"data.feature_offset_frames={self.feature_offset_frames:g}"
        )


@dataclass(frozen=True)
class FeatureVideo:
    """One video, and the files of its features; earlier versions recorded the first three values only.

    Args:
        frames: number of frames.
        steps: rows of features.
        repeated: damaged frames that were replaced by the last good one.
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
        """Whether the source of the features is known."""
        return self.source is not None and self.rows is not None

    @property
    def clock(self) -> tuple[int, float, int]:
        """Frames, frame rate and rows."""
        return self.frames, self.fps, self.steps

    def to_json(self) -> dict[str, Any]:
        """The video's entry in ``features.json``."""
        if self.is_recorded:
            return asdict(self)
        return {"frames": self.frames, "fps": self.fps, "steps": self.steps}


@dataclass(frozen=True)
class Sidecar:
    """The content of ``features.json``.

    Args:
        records_all: whether arrays of other videos are incomplete; in earlier versions they need not be.
    """

    __pydantic_config__ = _STRICT

    format: str
    settings: FeatureSettings
    videos: dict[str, FeatureVideo] = field(default_factory=dict)
    records_all: bool = False


def read_sidecar(folder: Path) -> Sidecar:
    """The content of a folder's ``features.json``; raises a ValueError if it is not BiTAD's."""
    path = folder / SIDECAR
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} does not describe features of BiTAD ('{FORMAT}'); name another folder")
    try:
        # From JSON: objects become dataclasses, and true is no number.
        return TypeAdapter(Sidecar).validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"{path} is damaged: {place}: {first['msg']}; restore it, or name another folder"
        ) from None


class FeatureFolder:
    """A folder to write features to, all of the same settings; finished videos of an earlier run are kept.

    Several processes may write to one folder at once. Nothing is written before :meth:`begin`.

    Args:
        path: the folder; it need not exist.

    Raises:
        ValueError: the folder holds features of other settings, or of unknown ones.
    """

    def __init__(self, path: Path, settings: FeatureSettings) -> None:
        self.path = path
        self.settings = settings
        self.videos: dict[str, FeatureVideo] = {}
        self._records_all = True
        self._waiting: dict[str, FeatureVideo] = {}
        self._written: dict[str, FileIdentity] = {}
        self._recorded = time.monotonic()
        if (path / SIDECAR).is_file():
            self._load()
        elif path.is_dir() and any(
            file.suffix in (".npy", ".npz") and not is_leftover(file.name) for file in path.iterdir()
        ):
            raise ValueError(f"{path} holds features without a {SIDECAR}; name another folder")
        elif path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file; name a folder")

    def begin(self) -> None:
        """Write the settings to ``features.json``; call it in one process only."""
        remove_leftovers(self.path)
        self._write()

    def finish(self, name: str, video: FeatureVideo) -> None:
        """Mark a video as complete; ``features.json`` gets it from time to time, and by :meth:`record`."""
        video = replace(video, rows=self._written.pop(name, video.rows))
        if name in self.videos and self.videos[name].to_json() == video.to_json():
            return
        self._waiting[name] = video
        if time.monotonic() - self._recorded > _SECONDS_BETWEEN_RECORDS:
            self.record()

    def record(self) -> None:
        """Add the complete videos to ``features.json``; those of other processes are kept."""
        if self._waiting:
            self._write()

    def held(
        self,
        name: str,
        video: FeatureVideo,
        source: Path,
        damaged: OnDecodeError,
    ) -> FeatureVideo | None:
        """The record of a video whose features are complete and up to date; None: they must be computed."""
        try:
            shape, dtype = read_header(self.file(name))
        except (FileNotFoundError, ValueError):  # none; damaged or cut off
            return None
        if name not in self.videos and self._records_all:
            return None
        record = self.videos.get(name, video)
        if record.clock != video.clock or (record.repeated and damaged == "error"):
            return None
        if shape != (video.steps, self.settings.feature_channels) or dtype != self.settings.stored:
            return None
        if record.source is None or record.rows is None:
            return record
        same_source = record.source.now(source)
        same_rows = record.rows.now(self.file(name))
        if same_source is None or same_rows is None:
            return None
        return replace(record, source=same_source, rows=same_rows)

    @contextmanager
    def writing(self, name: str, video: FeatureVideo) -> Iterator[Callable[[NDArray[np.float32]], None]]:
        """A function that writes rows ``[t, C]`` of the video, called several times, in order.

        They become the video's file when the block ends, and are removed if it fails or they are not finite.
        """
        shape = (video.steps, self.settings.feature_channels)
        dtype = np.dtype(self.settings.stored)
        header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        with atomic_write(self.file(name)) as partial:
            with partial.open("wb") as stream:
                npy.write_array_header_1_0(stream, header)
                begins = stream.tell()

                def write(rows: NDArray[np.float32]) -> None:
                    with np.errstate(over="ignore"):  # a number too large for half precision becomes infinite
                        stored = np.ascontiguousarray(rows, dtype)
                    if not np.isfinite(stored).all():
                        remedy = "; leave out --half" if dtype == np.float16 else ""
                        raise ValueError(
                            f"features up to {np.abs(rows).max():g} are not finite in {dtype}{remedy}"
                        )
                    stream.write(stored.tobytes())

                yield write
                assert stream.tell() == begins + dtype.itemsize * shape[0] * shape[1], "a row for every step"
            self._written[name] = FileIdentity.of(partial)  # another process may replace the file at any time

    def file(self, name: str) -> Path:
        """The file of a video's features."""
        return self.path / f"{name}.npy"

    def _load(self) -> None:
        before = read_sidecar(self.path)
        if changes := before.settings.changes(self.settings):
            raise ValueError(f"{self.path} holds other features: {', '.join(changes)}; name another folder")
        self.videos = before.videos
        self._records_all = before.records_all

    def _write(self) -> None:
        remedy = "wait until it has ended, or choose another --out"
        with locked(self.path, remedy=remedy, patience_s=_LOCK_TIMEOUT_S):
            if (self.path / SIDECAR).is_file():
                self._load()
            for name, video in self._waiting.items():
                if self._is_current(name, video):
                    self.videos[name] = video
            rows = {name: video.to_json() for name, video in sorted(self.videos.items())}
            content = {"format": FORMAT, "settings": asdict(self.settings), "videos": rows}
            write_json(content | {"records_all": self._records_all}, self.path / SIDECAR)
        self._waiting = {}
        self._recorded = time.monotonic()

    def _is_current(self, name: str, video: FeatureVideo) -> bool:
        if video.rows is None or video.rows.now(self.file(name)) is not None:
            return True
        log.warning("%s: replaced by another process, whose features are kept", self.file(name))
        return False


# Keys of `data` that features.json states under the same names.
_PLACED = ("feature_stride_frames", "feature_offset_frames", "feature_channels")
# Settings in which two folders may differ: the direction, and those that change the last digits of rows only.
_MAY_DIFFER = ("direction", "precision", "stored")


def read_own_sidecar(folder: Path) -> Sidecar | None:
    """The content of a folder's ``features.json``; None if there is none, or another project's."""
    if not (folder / SIDECAR).is_file():
        return None
    content = read_json(folder / SIDECAR)
    if isinstance(content, dict) and str(content.get("format")).startswith("bitad features"):
        return read_sidecar(folder)
    return None


def require_described(data: DataConfig, views: Sequence[View]) -> Mapping[str, FeatureVideo]:
    """Compare a configuration with the ``features.json`` of its features; return its videos by name.

    Raises:
        ValueError: they differ, or the two folders of a pair are of different networks, clips or frame sizes.
    """
    assert data.features is not None
    faults = []
    found: dict[str, Sidecar] = {}
    # Alone, features of reverse playback are the input of a reverse network.
    reverse_alone = data.reversed_features is None and set(views) == {"reverse"}
    for key, folder, wanted in (
        ("features", data.features, "forward"),
        ("reversed_features", data.reversed_features, "reverse"),
    ):
        if folder is None or (sidecar := read_own_sidecar(folder)) is None:
            continue
        found[key] = sidecar
        faults += [
            f"{folder / SIDECAR} says {name} {stated}, the configuration data.{name}={given}"
            for name in _PLACED
            if (stated := getattr(sidecar.settings, name)) != (given := getattr(data, name))
        ]
        if sidecar.settings.direction != wanted and not reverse_alone:
            stated = f"{folder / SIDECAR} says direction {sidecar.settings.direction}"
            faults.append(f"{stated}, but data.{key} must hold features of {wanted} playback")
    if not faults and data.reversed_features is not None:
        faults += _differences(data.features, data.reversed_features)
    if faults:
        raise ValueError(f"{'; '.join(faults)}; correct the configuration, or name other features")
    return found["features"].videos if "features" in found else {}


def require_same_features(before: DataConfig, now: DataConfig) -> None:
    """Raise a ValueError for features of another network, clip length or frame size than in training."""
    for key in ("features", "reversed_features"):
        trained = getattr(before, key)
        given = getattr(now, key)
        if trained is None or given is None or trained == given:
            continue
        if faults := _differences(trained, given):
            raise ValueError(f"data.{key}={given} holds other features than in training: {'; '.join(faults)}")


def _differences(one: Path, other: Path) -> list[str]:
    """The settings in which two folders differ but should not; none where one has no ``features.json``."""
    mine = read_own_sidecar(one)
    theirs = read_own_sidecar(other)
    if mine is None or theirs is None:
        return []
    same = {key: getattr(mine.settings, key) for key in _MAY_DIFFER}
    changes = mine.settings.changes(replace(theirs.settings, **same))
    return [f"{one / SIDECAR} and {other / SIDECAR} differ: {', '.join(changes)}"] if changes else []
