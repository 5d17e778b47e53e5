"""Scores of frames: one array ``[T, classes]`` a video, in an ``.npz`` or a folder."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bitad.data.annotations import Annotations
from bitad.data.classes import read_class_numbers
from bitad.data.feature_files import FeatureStore
from bitad.runtime.log import log_once, shortlist


def holds_frame_scores(path: Path) -> bool:
    """Whether a path is that of scores of frames, and not of detections: an ``.npz`` or a folder."""
    return path.suffix.lower() == ".npz" or path.is_dir()


def read_frame_scores(path: str | Path, videos: Collection[str]) -> dict[str, NDArray[Any]]:
    """The arrays of these videos, of those that have one.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no ``.npz``, no array of any of the videos, one that is damaged or not of numbers ``[T, classes]``,
            or an unclear name.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such .npz file or folder of per-frame scores")
    store = FeatureStore(path, wanted=lambda: videos)
    stored = set(store.names())
    scores = {name: store.stored(name)[0] for name in videos if store.own_name(name) in stored}
    if not scores:
        arrays = f"its arrays are {shortlist(sorted(stored))}" if stored else "it has no array"
        raise ValueError(f"{path}: no scores of {shortlist(videos)}; {arrays}; name an array by its video")
    return scores


def with_columns(annotations: Annotations, path: str | Path, classes: str | Path | None) -> Annotations:
    """The annotations with the classes of the columns of scores, in their order.

    Args:
        path: of the scores, for messages.
        classes: a list of the columns' classes (:func:`~bitad.data.classes.read_class_numbers`); None: the columns are
            the annotations' classes, which is logged.

    Raises:
        ValueError: the list lacks a class of the annotations.
    """
    if classes is None:
        names = shortlist(annotations.classes)
        log_once(f"{path}: its columns are the annotations' {len(annotations.classes)} classes in order: {names}")
        return annotations
    listed = tuple(read_class_numbers(classes).values())
    if missing := sorted(set(annotations.classes).difference(listed)):
        raise ValueError(
            f"{classes}: no {shortlist(missing)}, of the annotations' classes; list every column's class"
        )
    return replace(annotations, classes=listed)
