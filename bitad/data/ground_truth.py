"""The ground truth that a configuration names: as networks learn it, and as results are measured by it."""

from __future__ import annotations

from bitad.config import Config, DataConfig
from bitad.data.annotations import Annotations, read_annotations


def read_ground_truth(data: DataConfig) -> Annotations:
    """All videos, with the classes that networks learn: the data set's own, or a single one of all.

    Raises:
        FileNotFoundError, ValueError: as :func:`~bitad.data.annotations.read_annotations`, and for a video of unknown
            duration.
    """
    for key, path in (("annotations", data.annotations), ("classes", data.classes)):
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; name the right one in data.{key}")
    annotations = read_annotations(data.annotations, classes=data.classes).require_durations(data.annotations)
    return annotations.class_agnostic() if data.class_agnostic else annotations


def annotated_names(data: DataConfig) -> tuple[str, ...]:
    """The names of all annotated videos, whatever their subset.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_ground_truth`.
    """
    return tuple(read_ground_truth(data).videos)


def read_test_ground_truth(config: Config) -> Annotations:
    """The test subset, with the classes that detections have: those learnt, or those of the videos' scores.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_ground_truth`, and for a subset without videos.
    """
    data = config.data
    if config.test.video_scores is not None:
        data = data.model_copy(update={"class_agnostic": False})
    return read_ground_truth(data).subset(data.test_subset)
