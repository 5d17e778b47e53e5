"""The forms of detection files: how each is recognised, and its reader."""

from __future__ import annotations

import re
import reprlib
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitad.data.formats.values import columns_of, number, rows_of_table
from bitad.runtime.files import read_json, read_text
from bitad.runtime.signatures import signature_of

# No time or score is so large. The bound is that of int64; JSON's integers have none.
_BEYOND = 2**63

# A class as a file states it: its name, or its number in a list of classes.
Label = str | int


@dataclass(frozen=True)
class Found:
    """Detections as a file states them; row i of every column belongs to one detection.

    Args:
        videos: the names of all videos of the file, also of those without detections.
        video: int64 ``[n]``, index into ``videos``.
        segments: float64 ``[n, 2]`` in seconds.
        scores: float64 ``[n]``.
        labels: of each row; None where the file has proposals, which are of no class.
        external: what else it says, its ``external_data``.
    """

    videos: Sequence[str]
    video: NDArray[np.int64]
    segments: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: Sequence[Label] | None
    external: Mapping[str, Any] = field(default_factory=dict)


def by_video(
    path: Path,
    results: Mapping[str, Any],
    *,
    label: str = "label",
    score: str = "score",
    external: Mapping[str, Any] | None = None,
) -> Found:
    """Lists of rows by video, checked at once; the slow look at each row is taken only to name the defect."""
    for name, rows in results.items():
        if not isinstance(rows, list):
            raise ValueError(f"{path}: video {name}: {reprlib.repr(rows)} is not a list of detections")
    rows = list(chain.from_iterable(results.values()))
    keys = {"segment", score}
    # A row of anything else may state its class under a name that is not known here.
    proposals = bool(rows) and all(isinstance(row, dict) and row.keys() == keys for row in rows)
    try:
        segments, scores = _numbers([row["segment"] for row in rows], 2), _numbers([row[score] for row in rows])
        labels = None if proposals else [row[label] for row in rows]
        sound = bool((segments[..., 0] <= segments[..., 1]).all()) and set(map(type, labels or ())) <= {str, int}
        sound = sound and "" not in set(labels or ())
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        for name, row in ((name, row) for name, found in results.items() for row in found):
            if defect := _defect(row, label, score, proposals=proposals):
                raise ValueError(f"{path}: video {name}: {defect}")
    video = np.repeat(np.arange(len(results)), [len(found) for found in results.values()])
    return Found(list(results), video, segments, scores, labels, external or {})


def _defect(row: Any, label: str, score: str, *, proposals: bool) -> str | None:
    """What is wrong with one row of a list."""
    if not isinstance(row, dict):
        return f"{reprlib.repr(row)} is not a detection; one is {{segment, {label}, {score}}}"
    for key in ("segment", score) if proposals else ("segment", label, score):
        if key not in row:
            epic = "; of EPIC-KITCHENS' verb and noun, write one as the label" if {"verb", "noun"} <= row.keys() else ""
            return f"detection {reprlib.repr(row)} has no {key}{epic}"
    segment = row["segment"]
    if not (isinstance(segment, list) and len(segment) == 2):
        return f"segment {reprlib.repr(segment)} is not two finite numbers [start, end]"
    start, end = map(number_of, segment)
    if start is None or end is None:
        return f"segment {reprlib.repr(segment)} is not two finite numbers [start, end]"
    if end < start:
        return f"segment {segment} ends before it starts"
    if not proposals and (type(row[label]) not in (str, int) or row[label] == ""):
        return f"label {reprlib.repr(row[label])} is not a class name or number"
    if number_of(row[score]) is None:
        return f"score {reprlib.repr(row[score])} is not a finite number"
    return None


def of_table(columns: Mapping[str, list[Any]], where: Callable[[int], str]) -> Found:
    """Rows of a table, by what its columns hold; ``where`` says where a row stands."""
    numbers = {}
    for role in ("start", "end", "score"):
        for row, value in enumerate(columns[role]):
            if number_of(value) is None:
                raise ValueError(f"{where(row)}: {role} {reprlib.repr(value)} is not a finite number")
        numbers[role] = _numbers(columns[role])
    segments = np.stack([numbers["start"], numbers["end"]], axis=1)
    for row in np.flatnonzero(segments[:, 1] < segments[:, 0]).tolist():
        raise ValueError(f"{where(row)}: segment {segments[row].tolist()} ends before it starts")
    for row, name in enumerate(columns["video"]):
        if not (isinstance(name, str) and name):
            raise ValueError(f"{where(row)}: video {reprlib.repr(name)} is not a name")
    labels = columns.get("label")
    if labels is not None:
        labels = list(_labels(labels, where))
    videos = {name: number for number, name in enumerate(dict.fromkeys(columns["video"]))}
    video = np.array([videos[name] for name in columns["video"]], np.int64)
    return Found(list(videos), video, segments, numbers["score"], labels)


def _labels(labels: Sequence[Any], where: Callable[[int], str]) -> Iterator[Label]:
    """Class names, or numbers where all labels of a table are some."""
    for row, label in enumerate(labels):
        if type(label) not in (str, int, float) or label == "":
            raise ValueError(f"{where(row)}: label {reprlib.repr(label)} is not a class name or number")
    texts = {label: str(label) for label in labels}
    numbered = all(re.fullmatch(r"-?\d{1,18}(\.0*)?", text) for text in texts.values())
    yield from (int(texts[label].partition(".")[0]) if numbered else texts[label] for label in labels)


def _numbers(values: list[Any], width: int | None = None) -> NDArray[np.float64]:
    """Numbers, or texts of numbers, ``[n]`` or ``[n, width]``.

    Raises:
        TypeError, ValueError: they are not all of this shape, finite and below ``_BEYOND``.
    """
    shape = (len(values),) if width is None else (len(values), width)
    found = np.array(values) if values else np.empty(shape)
    kinds = set(map(type, chain.from_iterable(values) if width else values))
    if not kinds <= {int, float, str}:  # among numbers, NumPy takes true and false for numbers
        raise ValueError("not numbers")
    if found.dtype.kind == "U" and found.shape == shape:
        texts = chain.from_iterable(values) if width else values
        found = np.array([number_of(text) for text in texts], np.float64).reshape(shape)  # what is no number is NaN
    if found.shape != shape or found.dtype.kind not in "fiu" or not (np.abs(found) < _BEYOND).all():
        raise ValueError("not numbers")
    return found.astype(np.float64)


def number_of(value: Any) -> float | None:
    """A finite number, or the text of one, that int64 can hold."""
    found = number(value)
    return float(found) if found is not None and abs(found) < _BEYOND else None


_WHAT = "detections"


@dataclass(frozen=True)
class Form:
    """A form of detection files.

    Args:
        says: what is read, for people.
        fits: whether a file's content (``_content``) has this form.
        read: reads it; the first argument is the file.
    """

    says: str
    fits: Callable[[Any], bool]
    read: Callable[[Path, Any], Found]


@dataclass(frozen=True)
class _Table:
    """A CSV file, by its columns."""

    columns: tuple[str, ...]


@dataclass(frozen=True)
class _Text:
    """A text that is no table, by the fields of its first line."""

    fields: tuple[str, ...]


def read_found(path: Path) -> Found:
    """Read a detection file in any of the ``FORMS``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it has none of the forms, or the first defect, with file, video or row, and value.
    """
    content = _content(path)
    for form in FORMS.values():
        if form.fits(content):
            return form.read(path, content)
    is_json = not isinstance(content, (_Table, _Text))
    nearest = FORMS["results" if is_json else "csv"].says
    missing = 'no "results" object in this file: ' if is_json else ""
    raise ValueError(
        f"{path}: {missing}it looks like {_looks_like(content)}; the nearest form that is read is {nearest}"
    )


# Readers of JSON


def _read_results(path: Path, content: dict[str, Any]) -> Found:
    """ActivityNet's submission: ``{"results": {video: [{"segment": [start, end], "label": name, "score": number}]}}``.

    So write OpenTAD (``result_detection.json``), mmaction2 (``ANetMetric``, whose proposals have no label and whose
    videos lack the ``v_`` of their files), HACS, AFSD, G-TAD, and BiTAD with more in ``external_data``.
    Sources: sming256/OpenTAD opentad/cores/test_engine.py; open-mmlab/mmaction2
    mmaction/evaluation/metrics/anet_metric.py.
    """
    external = content.get("external_data") or {}
    if not isinstance(external, dict):
        raise ValueError(f"{path}: external_data is {reprlib.repr(external)}; it must be an object")
    return by_video(path, content["results"], external=external)


def _read_ego4d(path: Path, content: dict[str, Any]) -> Found:
    """Ego4D's moment queries: as ActivityNet's, the clips under ``detect_results``; ``retrieve_results`` is not read.

    Source: the tool of sming256/OpenTAD that writes ``"challenge": "ego4d_moment_queries"``.
    """
    return by_video(path, content["detect_results"])


def _read_actionformer(path: Path, content: dict[str, Any]) -> Found:
    """ActionFormer's JSON of predictions: ``{"database": {video: [{"segment", "label_id", "scores"}]}}``.

    Source: happyharrycn/actionformer_release libs/utils/metrics.py, ``load_pred_seg_from_json``.
    """
    return by_video(path, content["database"], label="label_id", score="scores")


def _read_columns(path: Path, content: dict[str, Any]) -> Found:
    """Columns by name: what ActionFormer's ``eval_results.pkl`` holds, written as JSON.

    Sources: happyharrycn/actionformer_release libs/utils/train_utils.py, ``valid_one_epoch``; pandas' ``to_json``,
    which writes a column as an object of values by row number.
    """
    names = _columns_of(content)
    index = content[names["video"]]
    columns: dict[str, list[Any]] = {}
    for role, name in names.items():
        column = content[name]
        if isinstance(column, dict):
            if not isinstance(index, dict) or column.keys() != index.keys():
                raise ValueError(f"{path}: columns {names['video']} and {name} have different rows")
            column = [column[row] for row in index]
        if not isinstance(column, list):
            raise ValueError(f"{path}: column {name} is {reprlib.repr(column)}; it must be a list")
        columns[role] = column
    if len({len(column) for column in columns.values()}) > 1:
        lengths = ", ".join(f"{names[role]} {len(column)}" for role, column in columns.items())
        raise ValueError(f"{path}: its columns are of different lengths: {lengths}")
    return of_table(columns, lambda row: f"{path}: row {row}")


def _read_records(path: Path, content: list[Any]) -> Found:
    """A list of detections, each with its video: ``[{"video-id", "t-start", "t-end", "label", "score"}]``.

    Source: pandas' ``to_json(orient="records")`` of ActionFormer's table.
    """
    names = _columns_of(content[0])
    columns: dict[str, list[Any]] = {role: [] for role in names}
    for index, row in enumerate(content):
        for role, name in names.items():
            if not (isinstance(row, dict) and name in row):
                raise ValueError(f"{path}: row {index}: detection {reprlib.repr(row)} has no {name}")
            columns[role].append(row[name])
    return of_table(columns, lambda row: f"{path}: row {row}")


# Readers of tables


def _read_csv(path: Path, content: _Table) -> Found:
    """A table with the columns of ``_COLUMNS``, of which only the label may be missing.

    Source: pandas' ``to_csv`` of ActionFormer's table.
    """
    names = _columns_of(content.columns)
    columns: dict[str, list[Any]] = {role: [] for role in names}
    places = []
    for line, row in rows_of_table(path, list(names.values())):
        places.append(f"{path}:{line}")
        for role, name in names.items():
            columns[role].append(row[name])
    return of_table(columns, places.__getitem__)


def _read_kit(path: Path, _: _Text) -> Found:
    """What the THUMOS'14 kit's ``TH14evaldet`` reads: lines of a video, its start, end, class number and score.

    Source: the kit's TH14evaldet.m. Its class numbers are those of ``detclasslist.txt``, 7 (BaseballPitch) to 97.
    """
    columns: dict[str, list[Any]] = {role: [] for role in ("video", "start", "end", "label", "score")}
    places = []
    for line_number, line in enumerate(read_text(path, _WHAT).split("\n"), start=1):
        if fields := line.split():
            where = f"{path}:{line_number}"
            if len(fields) != len(columns):
                raise ValueError(f"{where}: {len(fields)} fields; a line has a video, start, end, class and score")
            if not re.fullmatch(r"\d{1,18}", fields[3]):
                raise ValueError(f"{where}: class {reprlib.repr(fields[3])} is not a class number of the kit")
            places.append(where)
            for column, value in zip(columns.values(), fields, strict=True):
                column.append(value)
    return of_table(columns, places.__getitem__)


# How forms are told apart. The columns of a table by what they hold: the first name that is there counts.
_COLUMNS = {
    "video": ("video-id", "video-name", "video", "vid"),
    "start": ("t-start", "start", "t-init", "start-time"),
    "end": ("t-end", "end", "end-time"),
    "label": ("label", "class", "label-id", "label-idx"),
    "score": ("score", "scores", "confidence"),
}


def _columns_of(names: Iterable[Any]) -> dict[str, str]:
    """The names of ``_COLUMNS`` that a table has, by what they hold; case and underscores do not matter."""
    there = {name.strip().lower().replace("_", "-"): name for name in names if isinstance(name, str)}
    found = {role: [there[name] for name in known if name in there] for role, known in _COLUMNS.items()}
    return {role: columns[0] for role, columns in found.items() if columns}


def _is_table(names: Iterable[Any]) -> bool:
    return _columns_of(names).keys() >= _COLUMNS.keys() - {"label"}


def _lists(content: Any) -> bool:
    """Whether it is an object of lists, some of which have a row."""
    return (
        isinstance(content, dict) and all(isinstance(rows, list) for rows in content.values()) and any(content.values())
    )


def _are_detections(content: Any) -> bool:
    first = next(chain.from_iterable(content.values())) if _lists(content) else None
    return isinstance(first, dict) and first.keys() >= {"segment", "score"}


def _is_kit(content: Any) -> bool:
    if not (isinstance(content, _Text) and len(content.fields) == 5):
        return False
    _, start, end, number, score = content.fields
    return number.isdecimal() and None not in map(number_of, (start, end, score))


FORMS = {
    "results": Form(
        'JSON with "results" by video, each a list of {segment, label, score}, as ActivityNet, OpenTAD and mmaction2 '
        "have it",
        lambda content: isinstance(content, dict) and isinstance(content.get("results"), dict),
        _read_results,
    ),
    "ego4d-mq": Form(
        'the same with "detect_results", as Ego4D\'s moment queries',
        lambda content: isinstance(content, dict) and _lists(content.get("detect_results")),
        _read_ego4d,
    ),
    "actionformer": Form(
        'ActionFormer\'s JSON of predictions: {segment, label_id, scores} by video under "database"',
        lambda content: isinstance(content, dict) and _lists(content.get("database")),
        _read_actionformer,
    ),
    "by-video": Form(
        "JSON of videos alone, each a list of {segment, label, score}", _are_detections, lambda p, c: by_video(p, c)
    ),
    "columns": Form(
        "JSON of columns: video-id, t-start, t-end, label, score",
        lambda content: isinstance(content, dict) and _is_table(content),
        _read_columns,
    ),
    "records": Form(
        "JSON of a list of {video-id, t-start, t-end, label, score}",
        lambda content: (
            isinstance(content, list) and any(isinstance(row, dict) and _is_table(row) for row in content[:1])
        ),
        _read_records,
    ),
    "csv": Form(
        "CSV with the columns video-id, t-start, t-end, label, score (seconds)",
        lambda content: isinstance(content, _Table) and _is_table(content.columns),
        _read_csv,
    ),
    "thumos-kit": Form("the THUMOS'14 kit's text: lines of video, start, end, class number, score", _is_kit, _read_kit),
}

# Tables that other projects write and that do not hold what detections need: their columns, and what they are.
_OTHER_TABLES = (
    (
        {"action", "start", "end", "tmin", "tmax"},
        "the probabilities of action, start and end along one video, from which BSN and BMN make proposals",
    ),
    (
        {"tmin", "tmax", "score"},
        "one video's proposals of BSN in mmaction2: times are fractions of the video, which it does not name",
    ),
    (
        {"xmin", "xmax", "score"},
        "one video's proposals of BSN or BMN: times are fractions of the video, which it does not name",
    ),
    ({"xmin", "xmax"}, "one video's proposals of BSN or BMN: times are fractions of the video, which it does not name"),
    ({"f-init", "f-end"}, "proposals of DAPs: times are in frames"),
)


def _content(path: Path) -> Any:
    """What tells a file's form: the content of JSON, or the head of a table or a text."""
    try:
        kind = signature_of(path).kind
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; check its name") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as detections: {error.strerror}; name one file") from None
    if kind == "pickle" or path.suffix.lower() in (".pkl", ".pickle"):  # old ones have no mark at their start
        raise ValueError(_about_pickle(path))
    if kind in ("json", "shards", "gzip") or path.name.lower().endswith((".json", ".json.gz")):
        return read_json(path)
    if kind != "text":
        raise ValueError(f"{path}: no detections: it is {signature_of(path)}")
    line = next((line for line in read_text(path, _WHAT).split("\n") if line.strip()), "")
    # Lines of the kit are separated by spaces, as a table may be: names of columns tell them apart.
    columns = columns_of(path)
    if "," in line or _is_table(columns):
        return _Table(columns)
    return _Text(tuple(line.split()))


def _about_pickle(path: Path) -> str:
    """That a pickle is not read, and how to write what is in it as JSON: in that of ActionFormer, columns by name."""
    out = path.with_suffix(".json").name
    code = (
        "import json, pickle, sys; d = pickle.load(open(sys.argv[1], 'rb')); json.dump({k: v.tolist() if hasattr(v, "
        "'tolist') else v for k, v in d.items()}, open(sys.argv[2], 'w'))"
    )
    return (
        f"{path}: a Python pickle, as ActionFormer's eval_results.pkl, can run any code when it is read, and is not "
        "read; if you trust it, write it as JSON where NumPy is installed: "
        f'python -c "{code}" {shlex.quote(str(path))} {shlex.quote(out)}'
    )


def _looks_like(content: Any) -> str:
    """What a file is that has none of the forms."""
    match content:
        case _Table(columns):
            there = {name.strip().lower().replace("_", "-") for name in columns}
            for known, says in _OTHER_TABLES:
                if there >= known:
                    return says
            missing = [role for role in _COLUMNS if role not in (*_columns_of(columns), "label")]
            return f"a table with the columns {_some(columns)}, none of which is the {' or the '.join(missing)}"
        case _Text(()):
            return "an empty text"
        case _Text(fields):
            return f"a text with lines of {len(fields)} fields, the first {_some(fields)}"
        case {"database": dict()}:
            return "annotations, with a database of videos"
        case {"results": results}:
            return f'JSON whose "results" are {reprlib.repr(results)}'
        case dict():
            return f"a JSON object with {_some(content)}" if content else "an empty JSON object"
        case list():
            return (
                f"a JSON list of {len(content)}, the first {reprlib.repr(content[0])}" if content else "an empty list"
            )
    return f"JSON of one value, {reprlib.repr(content)}"


def _some(names: Iterable[str], most: int = 6) -> str:
    listed = list(names)
    return ", ".join(map(reprlib.repr, listed[:most])) + (", ..." if len(listed) > most else "")
