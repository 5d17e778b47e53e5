"""A folder of features that says what they are: ``NAME.npy`` of every video, and ``features.json`` beside them.

:class:`~bitad.data.feature_files.FeatureStore` reads the arrays; ``features.json`` says what a configuration needs to
place them in time. Rows are in the order of forward time, whichever way the video was played.

This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from bitad.data.detections import Basis
from bitad.files import read_json, replacing, write_json

FORMAT = "bitad features 1"
SIDECAR = "features.json"

Precision = Literal["float32", "bfloat16"]
Stored = Literal["float32", "float16"]
Row = TypeVar("Row", "FeatureSettings", "FeatureVideo")


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

    feature_stride_frames: int
    feature_offset_frames: float
    feature_channels: int
    direction: Basis
    model: str
    clip_frames: int
    window_steps: int | None
    window_overlap: float | None
    pixels: int
    precision: Precision
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
    """One video: its frames, counted; frames a second; rows of features."""

    frames: int
    fps: float
    steps: int


def read_sidecar(folder: Path) -> tuple[FeatureSettings, dict[str, FeatureVideo]]:
    """What a folder's ``features.json`` says: of all its features, and of each video.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: it is not one of ours.
    """
    path = folder / SIDECAR
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} does not describe features of BiTAD ('{FORMAT}'); name another folder")
    settings = _read(FeatureSettings, content.get("settings"), path)
    return settings, {name: _read(FeatureVideo, video, path) for name, video in content.get("videos", {}).items()}


def _read(kind: type[Row], values: Any, path: Path) -> Row:
    wanted = [field.name for field in fields(kind)]
    if not isinstance(values, dict) or values.keys() != set(wanted):
        raise ValueError(f"{path} is damaged: it must have {', '.join(wanted)}; remove the folder and begin again")
    return kind(**values)


class FeatureFolder:
    """A folder to write features to, of one sort only; what an earlier, perhaps interrupted, run has finished is kept.

    Nothing is written before :meth:`begin`.

    Args:
        path: the folder; it need not be there.
        settings: of the features to write.

    Raises:
        ValueError: the folder holds features of other settings, or of unknown ones.
    """

    def __init__(self, path: Path, settings: FeatureSettings) -> None:
        self.path, self.settings = path, settings
        self.videos: dict[str, FeatureVideo] = {}
        if (path / SIDECAR).is_file():
            before, self.videos = read_sidecar(path)
            if changes := before.changes(settings):
                raise ValueError(f"{path} holds other features: {', '.join(changes)}; name another folder")
        elif path.is_dir() and any(file.suffix in (".npy", ".npz") for file in path.iterdir()):
            raise ValueError(f"{path} holds features without a {SIDECAR} that says of what; name another folder")
        elif path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file; name a folder")

    def begin(self) -> None:
        """Says in ``features.json`` of what sort the features are that will come; for one process only."""
        self._describe()

    def finish(self, videos: Mapping[str, FeatureVideo]) -> None:
        """Adds videos whose features are there to ``features.json``; for one process only."""
        self.videos |= videos
        self._describe()

    def holds(self, name: str, video: FeatureVideo) -> bool:
        """Whether the video's features are there whole, and are of the video as it is now."""
        if self.videos.get(name, video) != video:
            return False
        try:
            rows = np.load(self._file(name), mmap_mode="r", allow_pickle=False)
        except (FileNotFoundError, ValueError, EOFError):  # none; damaged; cut short
            return False
        return rows.shape == (video.steps, self.settings.feature_channels) and rows.dtype == self.settings.stored

    @contextmanager
    def writing(self, name: str, video: FeatureVideo) -> Iterator[Callable[[NDArray[np.float32]], None]]:
        """A function that takes the video's rows ``[t, C]``, some at a time, in order.

        They become the video's file when the block ends, and vanish if it fails.

        Raises:
            ValueError: a row is not finite as stored.
        """
        shape, dtype = (video.steps, self.settings.feature_channels), np.dtype(self.settings.stored)
        header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        with replacing(self._file(name)) as partial, partial.open("wb") as stream:
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

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.npy"

    def _describe(self) -> None:
        videos = {name: asdict(video) for name, video in sorted(self.videos.items())}
        write_json({"format": FORMAT, "settings": asdict(self.settings), "videos": videos}, self.path / SIDECAR)
