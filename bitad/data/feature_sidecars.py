"""What ``features.json`` says of features, compared with what a configuration says of them.

Folders that other projects wrote have no such file, and are taken on trust. This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bitad.config import DataConfig
from bitad.data.detections import Basis
from bitad.data.feature_folder import FORMAT, SIDECAR, FeatureSettings, FeatureVideo, read_sidecar
from bitad.files import read_json

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


def require_described(data: DataConfig, views: Sequence[Basis]) -> Mapping[str, FeatureVideo]:
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
