"""FiftyOne's FiftyOneTemporalDetectionDataset: a folder with ``labels.json``, and ``data.json`` with the video files.

``support`` is [first, last], **frame numbers that count from 1, the last one inclusive**: [1, 1] is the first frame. It
is written, and read by the frames' own times. Files may state ``timestamps`` in seconds instead, which are read as
they are: FiftyOne exports there the times of the first and the last frame, with frame N of N at the video's end, so
that such segments end up to a frame early. Export supports, which is its default.

Sources: https://docs.voxel51.com/user_guide/export_datasets.html#fiftyonetemporaldetectiondataset;
``fiftyone.core.labels.TemporalDetection`` and ``eta.core.frameutils`` (``frame_number_to_timestamp``).
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitad.data.formats.documents import parse_segment
from bitad.data.formats.parsing import (
    ParsedAnnotations,
    ParsedVideos,
    ReadOptions,
    Row,
    description_of,
    video_in_address,
)
from bitad.data.formats.writing import WriteOptions, scores_of
from bitad.runtime.files import read_json, write_json

if TYPE_CHECKING:
    from bitad.data.annotations import Annotations

_LABELS, _MEDIA = "labels.json", "data.json"


def is_fiftyone(head: Any) -> bool:
    """Whether JSON is FiftyOne's ``labels.json``."""
    return isinstance(head, dict) and "classes" in head and isinstance(head.get("labels"), dict)


def read_fiftyone(files: Sequence[Path], options: ReadOptions) -> ParsedAnnotations:
    """``labels.json`` or its folder: ``{"classes": [...], "labels": {"VIDEO": [{"label", "support"}]}}``.

    A label may be a number, which counts the ``classes`` from 0. See the module for how frames are counted.
    """
    (path,) = files
    content = read_json(path)
    if not is_fiftyone(content):
        raise ValueError(f'{path}: no "classes" and "labels" by video in it: it is {description_of(content)}')
    classes = content["classes"] if isinstance(content["classes"], list) else []
    names = {uuid: video_in_address(uuid) for uuid in content["labels"]}
    clocks = options.frames.among(names.values())
    videos = ParsedVideos()
    for uuid, stated in content["labels"].items():
        where = f"{path.name}: {uuid}"
        video = videos.new(names[uuid], "training", where)
        with video.collecting():
            if not (stated is None or isinstance(stated, list)):
                raise ValueError(f"{where}: {reprlib.repr(stated)} is not a list of detections")
            for one in stated or []:
                label = _label(one, classes, where)
                if "support" in one:
                    first, last = parse_segment(one["support"], "support")
                    (span,) = clocks.times(video.name).spans([(round(first) - 1, round(last))])
                    video.rows.append(Row(*span, label))
                else:
                    video.rows.append(Row(*parse_segment(one.get("timestamps"), "timestamps"), label))
    return ParsedAnnotations(videos.ordered())


def _label(stated: Mapping[str, Any], classes: Sequence[Any], where: str) -> str:
    label = stated.get("label") if isinstance(stated, dict) else None
    if type(label) is int and 0 <= label < len(classes):
        return str(classes[label])
    if not isinstance(label, str):
        raise ValueError(f"{where}: {reprlib.repr(stated)} has no label of the {len(classes)} classes")
    return label


def write_fiftyone(annotations: Annotations, dst: Path, options: WriteOptions) -> tuple[Path, ...]:
    """``labels.json``, and ``data.json`` with the path of each video's file, in the folder ``dst``.

    Load it with ``fiftyone.Dataset.from_dir(dataset_dir=dst, data_path="data.json", label_field="actions",
    dataset_type=fiftyone.types.FiftyOneTemporalDetectionDataset)``.
    """
    labels: dict[str, list[dict[str, Any]]] = {}
    number = {name: place for place, name in enumerate(annotations.labels())}
    for video in annotations.videos.values():
        scores = scores_of(video)
        labels[video.name] = []
        for i, ((first, after), label) in enumerate(
            zip(options.frame_segments(video).tolist(), video.labels, strict=True)
        ):
            score = {} if scores is None else {"confidence": scores[i]}
            labels[video.name].append({"label": number[label], "support": [first + 1, after], **score})
    write_json({"classes": list(number), "labels": labels}, dst / _LABELS)
    # FiftyOne cuts the extensions of these names off.
    files = {name: options.frames.file(name) for name in labels}
    media = {
        name + (".mp4" if file is None else file.suffix): options.media_of(name) for name, file in files.items()
    }
    write_json(media, dst / _MEDIA)
    return dst / _LABELS, dst / _MEDIA
