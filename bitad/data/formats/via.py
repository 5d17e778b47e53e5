"""Projects of VIA 3, the VGG Image, Video and Audio Annotator: JSON with the temporal segments of videos.

``"z": [start, end]`` are seconds of the browser's player, with fractions; nothing counts frames. Segments of an
attribute with the anchor ``FILE1_Z2_XY0`` are read, and those with one time or with a region of the picture are left
out. An attribute's value is a text (type 1), or the numbers of its options (checkbox 2, radio 3, select 4).

Source: https://gitlab.com/vgg/via, ``via-3.x.y/src/js``: ``_via_metadata.js``, ``_via_attribute.js``, ``_via_file.js``;
https://www.robots.ox.ac.uk/~vgg/software/via/. Dutta and Zisserman, The VIA Annotation Software for Images, Audio and
Video, ACM Multimedia 2019.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping, Sequence
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
from bitad.data.formats.writing import WriteOptions, address_of
from bitad.runtime.files import read_json, write_json

if TYPE_CHECKING:
    from bitad.data.annotations import Annotations

_SEGMENT = "FILE1_Z2_XY0"  # one file, two times, no region
_TEXT, _SELECT = 1, 4  # types of attributes
_VIDEO = 4  # type of a file
_LOCAL, _HTTP, _FILE = 1, 2, 3  # where a file is: chosen in the browser, or at an address
_KEYS = ("project", "attribute", "file", "metadata", "view")


def is_via(head: Any) -> bool:
    """Whether JSON is a project of VIA 3."""
    return isinstance(head, dict) and all(isinstance(head.get(key), dict) for key in _KEYS)


def read_via(files: Sequence[Path], _: ReadOptions) -> ParsedAnnotations:
    """A project, as VIA 3 saves it: a video for each view, which shows one file. See the module for what is read."""
    (path,) = files
    content = read_json(path)
    if not is_via(content):
        raise ValueError(f"{path}: not a project of VIA 3: it is {description_of(content)}")
    attributes = {key: one for key, one in content["attribute"].items() if _anchor(one) == _SEGMENT}
    videos = ParsedVideos()
    of_view = {}
    for view, stated in content["view"].items():
        name = _name(stated, content["file"])
        of_view[view] = videos.new(name, "training", f"{path.name}: view {view}")
    others = 0
    for key, stated in content["metadata"].items():
        where = f"{path.name}: metadata {key}"
        if not isinstance(stated, dict) or str(stated.get("vid")) not in of_view:
            raise ValueError(f"{where}: {reprlib.repr(stated)} is of no view")
        if stated.get("xy") or not isinstance(stated.get("z"), list) or len(stated["z"]) != 2:
            others += 1
            continue
        video = of_view[str(stated["vid"])]
        with video.collecting():
            labels = list(_labels(stated.get("av"), attributes, where))
            if not labels:
                raise ValueError(f"{where}: the segment {stated['z']} has no label")
            video.rows += [Row(*parse_segment(stated["z"], "z"), label) for label in labels]
    notes = (f"left out, as they are no segments of time: {others} regions and times",) if others else ()
    return ParsedAnnotations(videos.ordered(), notes=notes)


def _anchor(attribute: Any) -> object:
    return attribute.get("anchor_id") if isinstance(attribute, dict) else None


def _name(view: Any, files: Mapping[str, Any]) -> str:
    """The video of a view's first file; empty if it has none."""
    listed = view.get("fid_list") if isinstance(view, dict) else None
    file = files.get(str(listed[0])) if isinstance(listed, list) and listed else None
    stated = file.get("fname") if isinstance(file, dict) else None
    return video_in_address(stated) if isinstance(stated, str) else ""


def _labels(values: Any, attributes: Mapping[str, Mapping[str, Any]], where: str) -> Iterator[str]:
    """The labels of a segment: the values of its attributes, or the names of the options that they number."""
    for key, value in values.items() if isinstance(values, dict) else ():
        if key not in attributes or not str(value).strip():
            continue
        options = attributes[key].get("options")
        if attributes[key].get("type") == _TEXT or not isinstance(options, dict):
            yield str(value).strip()
            continue
        for number in str(value).split(","):
            if (name := options.get(number.strip())) is None:
                raise ValueError(f"{where}: {number!r} is no option of attribute {attributes[key].get('aname')!r}")
            yield str(name)


def write_via(annotations: Annotations, dst: Path, options: WriteOptions) -> tuple[Path, ...]:
    """A project with an attribute "action", whose options are the classes. Scores have no place in it."""
    numbers = {name: str(place) for place, name in enumerate(annotations.labels(), start=1)}
    files, views, metadata = {}, {}, {}
    for place, video in enumerate(annotations.videos.values(), start=1):
        key, media = str(place), options.media_of(video.name)
        source = address_of(media)
        is_there = source.partition(":")[0] in ("http", "https", "file")
        where = _LOCAL if not is_there else _FILE if source.startswith("file:") else _HTTP
        name = options.media_name(video.name)
        files[key] = {"fid": key, "fname": name, "type": _VIDEO, "loc": where, "src": source if is_there else ""}
        views[key] = {"fid_list": [key]}
        rows = zip(video.segments.tolist(), video.labels, strict=True)
        for row, (segment, label) in enumerate(rows, start=1):
            metadata[f"{key}_{row}"] = {"vid": key, "flg": 0, "z": segment, "xy": [], "av": {"1": numbers[label]}}
    attribute = {
        "aname": "action",
        "anchor_id": _SEGMENT,
        "type": _SELECT,
        "desc": "",
        "options": {number: name for name, number in numbers.items()},
        "default_option_id": "",
    }
    project = {
        "pid": "__VIA_PROJECT_ID__",
        "rev": "__VIA_PROJECT_REV_ID__",
        "rev_timestamp": "__VIA_PROJECT_REV_TIMESTAMP__",
        "pname": dst.stem,
        "data_format_version": "3.1.1",
        "creator": "bitad",
        "created": 0,
        "vid_list": list(views),
    }
    content = {
        "project": project,
        "config": {
            "file": {"loc_prefix": {"1": "", "2": "", "3": "", "4": ""}},
            "ui": {
                "file_content_align": "center",
                "file_metadata_editor_visible": True,
                "spatial_metadata_editor_visible": True,
                "spatial_region_label_attribute_id": "",
            },
        },
        "attribute": {"1": attribute},
        "file": files,
        "metadata": metadata,
        "view": views,
    }
    write_json(content, dst)
    return (dst,)
