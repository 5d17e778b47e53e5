"""The detection formats: a table of how files of each are recognised and read, and the readers.

To add a format, write its reader in a file of this folder and add a row to :data:`FORMATS`.
"""

from __future__ import annotations

import re
import reprlib
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from bitad.data.formats.detection_rows import ParsedDetections, parse_by_video, parse_columns, take_column
from bitad.data.formats.parsing import (
    TableHead,
    TextHead,
    description_of,
    number,
    read_lines,
    read_table,
    table_columns,
)
from bitad.runtime.files import collection_paused, read_json, read_text
from bitad.runtime.signatures import signature_of

# The columns of a table by what they hold. Of several names, a table's first one counts.
_COLUMNS = {
    "video": ("video-id", "video-name", "video", "vid"),
    "start": ("t-start", "start", "t-init", "start-time"),
    "end": ("t-end", "end", "end-time"),
    "label": ("label", "class", "label-id", "label-idx"),
    "score": ("score", "scores", "confidence"),
}


@dataclass(frozen=True)
class DetectionFormat:
    """A format of detection files.

    Args:
        description: of the files, for people.
        matches: whether what a file holds (:func:`read_content`) has this format.
        read: the reader; its arguments are the file and what it holds.
    """

    description: str
    matches: Callable[[Any], bool]
    read: Callable[[Path, Any], ParsedDetections]


@collection_paused()
def read_detection_file(path: Path) -> ParsedDetections:
    """Read a detection file in any of the ``FORMATS``; errors name the file, video or row, and value."""
    content = read_content(path)
    for known in FORMATS.values():
        if known.matches(content):
            return known.read(path, content)
    lacks = 'no "results" object'
    nearest = FORMATS["results"]
    if isinstance(content, (TableHead, TextHead)):
        columns = _columns_of(content.columns if isinstance(content, TableHead) else ())
        lacks = f"no column of the {', '.join(role for role in _COLUMNS if role not in (*columns, 'label'))}"
        nearest = FORMATS["csv"]
    raise ValueError(
        f"{path}: {lacks} in this file: it is {description_of(content)}; the nearest format is {nearest.description}"
    )


def read_content(path: Path) -> Any:
    """The content of JSON, the columns of a table, or the first fields of a text."""
    try:
        kind = signature_of(path).kind
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; check its name") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as detections: {error.strerror}; name one file") from None
    if kind == "pickle" or path.suffix.lower() in (".pkl", ".pickle"):  # old ones have no mark at their start
        code = (
            "import json, pickle, sys; d = pickle.load(open(sys.argv[1], 'rb')); json.dump({k: v.tolist() if "
            "hasattr(v, 'tolist') else v for k, v in d.items()}, open(sys.argv[2], 'w'))"
        )
        command = f'python -c "{code}" {shlex.quote(str(path))} {shlex.quote(path.with_suffix(".json").name)}'
        reason = "a Python pickle, which can run any code, is not read"
        raise ValueError(f"{path}: {reason}; if you trust it, write it as JSON: {command}")
    if kind in ("json", "shards", "gzip") or path.name.lower().endswith((".json", ".json.gz")):
        return read_json(path)
    if kind != "text":
        raise ValueError(f"{path}: no detections: it is {signature_of(path)}")
    line = next((line for line in read_text(path, "detections").split("\n") if line.strip()), "")
    # Spaces separate the kit's lines, and may separate a table's: names of columns tell them apart.
    columns = table_columns(path)
    if "," in line or _is_table(columns):
        return TableHead(columns)
    return TextHead(tuple(line.split()))


def _read_by_video(
    path: Path, content: dict[str, Any], *, key: str, label: str = "label", score: str = "score"
) -> ParsedDetections:
    """Rows by video under a key, as of ActivityNet's submission.

    Sources: sming256/OpenTAD opentad/cores/test_engine.py; open-mmlab/mmaction2
    mmaction/evaluation/metrics/anet_metric.py; happyharrycn/actionformer_release libs/utils/metrics.py.
    """
    external = content.get("external_data") or {}
    if not isinstance(external, dict):
        raise ValueError(f"{path}: external_data is {reprlib.repr(external)}; it must be an object")
    return parse_by_video(path, content[key], label=label, score=score, external=external)


def _read_columns(path: Path, content: dict[str, Any]) -> ParsedDetections:
    """Columns by name: the content of ActionFormer's ``eval_results.pkl``, written as JSON.

    pandas' ``to_json`` writes a column as an object of values by row number.
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
    return parse_columns(columns, lambda row: f"{path}: row {row}")


def _read_records(path: Path, content: list[Any]) -> ParsedDetections:
    """A list of detections, each with its video, as pandas' ``to_json(orient="records")`` writes them."""

    def where(row: int) -> str:
        return f"{path}: row {row}"

    names = _columns_of(content[0])
    return parse_columns({role: take_column(content, name, where) for role, name in names.items()}, where)


def _read_csv(path: Path, content: TableHead) -> ParsedDetections:
    names = _columns_of(content.columns)
    rows = list(read_table(path, list(names.values())))
    columns = {role: [row[name] for _, row in rows] for role, name in names.items()}
    return parse_columns(columns, lambda row: f"{path}:{rows[row][0]}")


def _read_kit(path: Path, _: TextHead) -> ParsedDetections:
    """Lines of video, start, end, class number and score, as the kit's TH14evaldet.m reads them."""
    lines = list(read_lines(path))
    for line, fields in lines:
        if len(fields) != 5:
            raise ValueError(
                f"{path}:{line}: {len(fields)} fields; a line has a video, start, end, class and score"
            )
        if not re.fullmatch(r"\d{1,18}", fields[3]):
            raise ValueError(f"{path}:{line}: class {reprlib.repr(fields[3])} is not a class number of the kit")
    columns = {
        role: [fields[i] for _, fields in lines]
        for i, role in enumerate(("video", "start", "end", "label", "score"))
    }
    return parse_columns(columns, lambda row: f"{path}:{lines[row][0]}")


def _columns_of(names: Iterable[Any]) -> dict[str, str]:
    """The names of ``_COLUMNS`` that a table has; case and underscores do not matter."""
    known = {_column_name(name): name for name in names if isinstance(name, str)}
    found = {role: [known[name] for name in choices if name in known] for role, choices in _COLUMNS.items()}
    return {role: columns[0] for role, columns in found.items() if columns}


def _column_name(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def _is_table(names: Iterable[Any]) -> bool:
    return _columns_of(names).keys() >= _COLUMNS.keys() - {"label"}


def _first_rows(content: Any) -> list[Any]:
    """The first row of an object of lists; none if it is anything else, or all lists are empty."""
    is_lists = isinstance(content, dict) and all(isinstance(rows, list) for rows in content.values())
    return list(islice(chain.from_iterable(content.values()), 1)) if is_lists else []


def _keys_of(row: Any) -> Iterable[str]:
    return row if isinstance(row, dict) else ()


def _is_kit(content: Any) -> bool:
    if not (isinstance(content, TextHead) and len(content.fields) == 5):
        return False
    _, start, end, label, score = content.fields
    return label.isdecimal() and None not in map(number, (start, end, score))


FORMATS = {
    "results": DetectionFormat(
        'JSON with "results" by video, each a list of {segment, label, score}, as ActivityNet, OpenTAD and mmaction2 '
        "have it",
        lambda content: isinstance(content, dict) and isinstance(content.get("results"), dict),
        partial(_read_by_video, key="results"),
    ),
    "ego4d-mq": DetectionFormat(
        'the same with "detect_results", as Ego4D\'s moment queries',
        lambda content: isinstance(content, dict) and bool(_first_rows(content.get("detect_results"))),
        partial(_read_by_video, key="detect_results"),
    ),
    "actionformer": DetectionFormat(
        'ActionFormer\'s JSON of predictions: {segment, label_id, scores} by video under "database"',
        lambda content: isinstance(content, dict) and bool(_first_rows(content.get("database"))),
        partial(_read_by_video, key="database", label="label_id", score="scores"),
    ),
    "by-video": DetectionFormat(
        "JSON of videos alone, each a list of {segment, label, score}",
        lambda content: any({"segment", "score"} <= set(_keys_of(row)) for row in _first_rows(content)),
        parse_by_video,
    ),
    "columns": DetectionFormat(
        "JSON of columns: video-id, t-start, t-end, label, score",
        lambda content: isinstance(content, dict) and _is_table(content),
        _read_columns,
    ),
    "records": DetectionFormat(
        "JSON of a list of {video-id, t-start, t-end, label, score}",
        lambda content: isinstance(content, list) and any(_is_table(_keys_of(row)) for row in content[:1]),
        _read_records,
    ),
    "csv": DetectionFormat(
        "CSV with the columns video-id, t-start, t-end, label, score (seconds)",
        lambda content: isinstance(content, TableHead) and _is_table(content.columns),
        _read_csv,
    ),
    "thumos-kit": DetectionFormat(
        "the THUMOS'14 kit's text: lines of video, start, end, class number, score", _is_kit, _read_kit
    ),
}
