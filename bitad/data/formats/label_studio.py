"""Label Studio's tasks with segments of a video's timeline (``<TimelineLabels>``): exports to read, imports to write.

**Frames are steps of a clock, and count from 1.** Label Studio does not read the frames of a file: it divides the time
by the ``frameRate`` of the ``<Video>`` tag, 24 a second unless the labeling configuration says otherwise. Frame n is
shown from (n - 1) / frameRate, and a range contains its ``end``: ``{"start": 3, "end": 5}`` are three frames, from
2 / frameRate to 5 / frameRate. A range of one frame has the same start and end.

So a task states its rate as ``fps``, and the configuration reads it (``frameRate="$fps"``). At a variable rate, it is
the rate of the shortest frame, so that every edge is at most half a frame off. A segment that is shorter than this
frame becomes one step of the clock, so its edges are less than a frame off.

Sources: https://labelstud.io/tags/timelinelabels, https://labelstud.io/tags/video,
https://labelstud.io/guide/predictions; https://github.com/HumanSignal/label-studio, ``web/libs/editor/src``:
``regions/TimelineRegion.js`` (ranges), ``tags/object/Video/Video.js`` (``fullFrameRange``, ``addTimelineRegion``) and
``components/VideoCanvas/VideoCanvas.tsx`` (``goToFrame``).
"""

from __future__ import annotations

import html
import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitad.data.formats.parsing import (
    ParsedAnnotations,
    ParsedVideos,
    ReadOptions,
    Row,
    number,
    objects_in,
    positive,
    video_in_address,
)
from bitad.data.formats.writing import WriteOptions, scores_of, write_text
from bitad.runtime.files import check_file, read_json, write_json

if TYPE_CHECKING:
    from bitad.data.annotations import AnnotatedVideo, Annotations

_LABELS = "timelinelabels"
_RATE = 24.0  # of a <Video> tag without frameRate
# Of the tags of our configuration.
_CONTROL, _VIDEO = "action", "video"


def is_label_studio(head: Any) -> bool:
    """Whether JSON is an export of Label Studio with segments of a timeline, or an import."""
    if not isinstance(head, list):
        return False
    return any(_has_results(task) or any(True for _ in _minimal_regions(task)) for task in objects_in(head))


def _has_results(task: Mapping[str, Any]) -> bool:
    return isinstance(task.get("data"), dict) and any(
        isinstance(task.get(key), list) for key in ("annotations", "predictions", "completions")
    )


def read_label_studio(files: Sequence[Path], options: ReadOptions) -> ParsedAnnotations:
    """An export as JSON or JSON-MIN. Predictions are not annotations: tasks that nobody has annotated are left out.

    Of several annotations of a task, the one that was changed last counts. The data of a task may state ``name``,
    ``subset``, ``fps`` and ``duration``, as written here. See the module for how frames are counted.
    """
    (path,) = files
    content = read_json(path)
    if not isinstance(content, list):
        raise ValueError(f"{path}: not a list of Label Studio's tasks; export them as JSON")
    notes: dict[str, int] = {}
    annotated = []
    for place, task in enumerate(objects_in(content)):
        where = f"{path.name}: task {task.get('id', place)}"
        data = task["data"] if isinstance(task.get("data"), dict) else task
        if (regions := _regions(task, notes)) is not None:
            annotated.append((_name(data, where), data, regions, where))
    clocks = options.frames.among(name for name, *_ in annotated)
    videos = ParsedVideos()
    for name, data, regions, where in annotated:
        subset = data.get("subset")
        video = videos.new(name, subset if isinstance(subset, str) and subset else "training", where)
        with video.collecting():
            if data.get("duration") is not None:
                video.duration_s = positive(data["duration"], f"{where}: duration")
            rate = _rate(data, clocks.rate(name), notes, where)
            end_s = video.duration_s if math.isfinite(video.duration_s) else clocks.duration_s(name)
            for region in regions:
                video.rows += _rows_of(region, rate, math.inf if end_s is None else end_s, where)
    return ParsedAnnotations(videos.ordered(), notes=tuple(f"{note}: {count}" for note, count in notes.items()))


def _regions(task: Mapping[str, Any], notes: dict[str, int]) -> list[Mapping[str, Any]] | None:
    """The values of a task's regions; None: nobody has annotated it."""
    if not isinstance(task.get("data"), dict):
        return list(_minimal_regions(task))
    stated = objects_in(task.get("annotations", task.get("completions")))
    done = [one for one in stated if not one.get("was_cancelled")]
    if not done:
        _count(notes, "tasks without an annotation are left out; their predictions are not ground truth")
        return None
    if len(done) > 1:
        _count(notes, "tasks have several annotations, of which the one that was changed last counts")
    latest = max(done, key=lambda one: str(one.get("updated_at", "")))
    values = [item.get("value") for item in objects_in(latest.get("result")) if item.get("type") == _LABELS]
    return [value for value in values if isinstance(value, dict)]


def _minimal_regions(task: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The regions of a task of JSON-MIN, which are lists under the names of the configuration's tags."""
    for stated in task.values():
        if isinstance(stated, list):
            yield from (region for region in objects_in(stated) if _LABELS in region)


def _name(data: Mapping[str, Any], where: str) -> str:
    if isinstance(data.get("name"), str):
        return str(data["name"])
    # The configuration names the key of the video; usually it is this one.
    addresses = [data.get("video"), *data.values()]
    for address in addresses:
        if isinstance(address, str) and (name := video_in_address(address)):
            return name
    raise ValueError(f"{where}: {reprlib.repr(dict(data))} names no video")


def _rate(data: Mapping[str, Any], given: float | None, notes: dict[str, int], where: str) -> float:
    if data.get("fps") is not None:
        return positive(data["fps"], f"{where}: fps")
    if given is not None:
        return given
    _count(
        notes, f"tasks do not state fps: {_RATE:g} is assumed, Label Studio's default; --frame-rate gives another"
    )
    return _RATE


def _count(notes: dict[str, int], note: str) -> None:
    notes[note] = notes.get(note, 0) + 1


def _rows_of(region: Mapping[str, Any], rate: float, end_s: float, where: str) -> Iterator[Row]:
    """The segments of a region. The last step of the clock may reach beyond the end of the video, ``end_s``."""
    for stated in objects_in(region.get("ranges")):
        edges = number(stated.get("start")), number(stated.get("end"))
        labels = region.get(_LABELS)
        if edges[0] is None or edges[1] is None or not isinstance(labels, list):
            raise ValueError(f"{where}: {reprlib.repr(dict(region))} is not {{ranges, {_LABELS}}}")
        start, end = (edges[0] - 1) / rate, edges[1] / rate
        if max(start, end - 1 / rate) < end_s:
            end = min(end, end_s)
        yield from (Row(start, end, str(label)) for label in labels)


def write_label_studio(annotations: Annotations, dst: Path, options: WriteOptions) -> tuple[Path, ...]:
    """Tasks to import: detections as predictions, ground truth as annotations; and the labeling configuration.

    The configuration has the name of ``dst`` with ``.xml``; paste it into the project's settings before importing.
    """
    config = dst.with_name(f"{dst.name.removesuffix('.gz').removesuffix('.json')}.xml")
    check_file(config)
    tasks = [_task(place, video, options) for place, video in enumerate(annotations.videos.values(), start=1)]
    write_json(tasks, dst)
    write_text(label_config(annotations.labels()), config)
    return dst, config


def _task(place: int, video: AnnotatedVideo, options: WriteOptions) -> dict[str, Any]:
    rate = options.times(video).even_rate
    scores = scores_of(video)
    results = []
    for i, ((start, end), label) in enumerate(zip(video.segments.tolist(), video.labels, strict=True)):
        first = 1 + max(0, round(start * rate))
        results.append(
            {
                "id": f"{place}-{i + 1}",
                "from_name": _CONTROL,
                "to_name": _VIDEO,
                "type": _LABELS,
                "value": {
                    "ranges": [{"start": first, "end": max(first, round(end * rate))}],
                    _LABELS: [label],
                },
                **({} if scores is None else {"score": _share(scores[i])}),
            }
        )
    data = {"video": options.media_of(video.name), "name": video.name, "subset": video.subset, "fps": rate}
    if math.isfinite(video.duration_s):
        data["duration"] = video.duration_s
    if scores is None:
        return {"data": data, "annotations": [{"result": results}]}
    best = {"score": _share(max(scores))} if scores else {}
    return {"data": data, "predictions": [{"model_version": "bitad", **best, "result": results}]}


def _share(score: float) -> float:
    """A score from 0 to 1, which Label Studio requires."""
    return min(1.0, max(0.0, score))


def label_config(classes: Sequence[str]) -> str:
    """The labeling configuration: a video with a timeline, and the classes."""
    labels = "\n".join(f'    <Label value="{html.escape(name)}"/>' for name in classes)
    return (
        f'<View>\n  <TimelineLabels name="{_CONTROL}" toName="{_VIDEO}">\n{labels}\n  </TimelineLabels>\n'
        f'  <Video name="{_VIDEO}" value="$video" frameRate="$fps" timelineHeight="120"/>\n</View>\n'
    )
