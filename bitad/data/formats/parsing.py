"""What readers of annotation and detection files share: numbers, tables and videos.

Does not import NumPy: ``bitad --help`` lists the formats, and so imports their readers.
"""

from __future__ import annotations

import csv
import io
import math
import re
import reprlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from bitad.runtime.files import read_text
from bitad.runtime.log import shortlist
from bitad.video.names import without_suffix

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from bitad.data.annotations import Annotations
    from bitad.data.classes import Classes
    from bitad.data.frame_clocks import FrameClocks

_LONGEST = 60

# Numbers that annotators gave a segment, for error diagnosis (DETAD's keys).
DETAILS = ("context-size", "context-distance", "agreement")


class Row(NamedTuple):
    """A segment in seconds with its label, and the number of its class and ``DETAILS`` where the file states them."""

    start: float
    end: float
    label: str
    label_id: int | None = None
    details: Mapping[str, float] | None = None


@dataclass
class ParsedVideo:
    """A video as its files state it.

    Args:
        duration_s: in seconds, inf where the files do not state it.
        frames, fps: number of frames and frames a second, if stated.
        rows: the segments that could be read.
        faults: what could not be read.
        contradictions: how the file contradicts itself about the video's time.
    """

    name: str
    subset: str
    duration_s: float = math.inf
    frames: int | None = None
    fps: float | None = None
    rows: list[Row] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    contradictions: tuple[str, ...] = ()

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Add a ValueError that the block raises to ``faults``."""
        try:
            yield
        except ValueError as error:
            self.faults.append(str(error))


class ParsedVideos(dict[str, ParsedVideo]):
    """Videos by name, while their rows are read."""

    def of(self, name: str, subset: str, where: str) -> ParsedVideo:
        """The video of a row; a second subset, and an empty name, are faults."""
        if name not in self:
            self[name] = ParsedVideo(name, subset, faults=[] if name else [f"{where}: its video has no name"])
        video = self[name]
        if name and video.subset != subset:
            video.faults.append(f"{where}: video {name} is in subset {video.subset!r} elsewhere, here {subset!r}")
        return video

    def new(self, name: str, subset: str, where: str) -> ParsedVideo:
        """A video that has one row; a second row of its name is a fault of the first."""
        if name in self:
            self[name].faults.append(f"{where}: video {name!r} occurs twice")
            return ParsedVideo(name, subset)
        return self.of(name, subset, where)

    def ordered(self) -> list[ParsedVideo]:
        """All videos, their rows in ascending order."""
        for video in self.values():
            video.rows.sort(key=lambda row: row[:3])
        return list(self.values())


@dataclass(frozen=True)
class ReadOptions:
    """Files that the user names beside the annotations.

    Args:
        classes: the class names in order, or a list of them, for readers of class numbers.
        video_info: a list of videos, for readers of files without subsets, or with times in frames.
        frame_clocks: when frames are shown, for readers of files that count frames; None: nothing is known.
    """

    classes: Classes | None = None
    video_info: Path | None = None
    frame_clocks: FrameClocks | None = None

    @property
    def frames(self) -> FrameClocks:
        """When frames are shown."""
        from bitad.data.frame_clocks import FrameClocks

        return self.frame_clocks or FrameClocks()


@dataclass(frozen=True)
class ParsedAnnotations:
    """Ground truth as a data set's own files state it: what a reader returns.

    Args:
        videos: in order.
        classes: the class names in order; None: the labels, ordered by class number or by name.
        notes: what the reader left out or took from other files, a line each.
    """

    videos: Sequence[ParsedVideo]
    classes: Classes | None = None
    notes: tuple[str, ...] = ()
    format: str = ""
    path: Path = field(default_factory=Path)

    @cached_property
    def annotations(self) -> Annotations:
        """Every segment, also those of ignored labels; raises a ValueError if a video has a fault."""
        from bitad.data.annotations import Annotations

        return Annotations.from_parsed(self.videos, self.path, classes=self.classes)


def number(value: Any) -> float | None:
    """A finite number, or the text of one ("92.166667"); None for anything else."""
    if isinstance(value, str) and "_" not in value:
        try:
            value = float(value)
        except ValueError:
            return None
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    # Not math.isfinite: an integer may be too large for a float.
    return value if abs(value) <= sys.float_info.max else None


def seconds(stated: object, where: str) -> float:
    """A finite number. Errors begin with ``where``."""
    value = number(stated)
    if value is None:
        raise ValueError(f"{where}: {reprlib.repr(stated)} is not a number of seconds")
    return float(value)


def video_in_address(address: str) -> str:
    """The name of a video in the path or URL of its file: without folder, extension and query."""
    path = address.partition("?d=")[2] or address.partition("?")[0]  # ?d= as in Label Studio's local files
    return without_suffix(unquote(path).replace("\\", "/").rstrip("/").rpartition("/")[2])


def positive(stated: object, what: str, *, is_count: bool = False) -> float:
    """A positive number; a count is at least 0.5. Errors begin with ``what``."""
    value = number(stated)
    if value is None or value <= 0 or (is_count and round(value) == 0):
        raise ValueError(f"{what} {reprlib.repr(stated)} is not a positive number")
    return float(value)


def is_missing(value: Any) -> bool:
    """Whether a value is not stated: null, or an empty text as in tables."""
    return value is None or (isinstance(value, str) and not value.strip())


def objects_in(stated: Any) -> list[dict[str, Any]]:
    """The objects in a JSON object or list; none in anything else."""
    values = stated.values() if isinstance(stated, dict) else stated if isinstance(stated, list) else ()
    return [value for value in values if isinstance(value, dict)]


def videos_by_name(stated: Any, path: Path) -> dict[str, dict[str, Any]]:
    """A JSON object of objects. Raises a ValueError for anything else."""
    if not isinstance(stated, dict) or len(objects_in(stated)) < len(stated):
        raise ValueError(
            f'{path}: not videos by name, as {{"VIDEO": {{"duration": 12.5}}}}: it is {description_of(stated)}'
        )
    return stated


def subset_in_name(path: Path, names: Mapping[str, str]) -> str:
    """The subset in a file's name; ``names`` has the part of the name, such as "val", -> the subset."""
    found = re.findall("|".join(names), path.name.lower())
    if not found:
        raise ValueError(f"{path}: its name contains no subset; add one of {', '.join(names)} to it")
    return names[found[-1]]


# What is read of a file to recognise its format, unless it is JSON.
class TableHead(NamedTuple):
    """The columns of a table."""

    columns: tuple[str, ...]


class TextHead(NamedTuple):
    """The fields of a text's first line."""

    fields: tuple[str, ...]


def read_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV file: line number, and values by column.

    Commas, semicolons, tabs or single spaces separate the values, whichever the first line has. The table must have
    the ``columns``, and none twice; their names may be capitalised.
    """
    text = read_text(path, f"a table with columns {', '.join(columns)}")
    unseen = text.removesuffix(text.lstrip("\r\n")).count("\n")  # empty lines before the header
    file = io.StringIO(text.lstrip("\r\n"), newline="")
    try:
        delimiter = _delimiter_of(file.readline())
        file.seek(0)
        reader = csv.DictReader(file, restval="", delimiter=delimiter, skipinitialspace=True)
        reader.fieldnames = [_column(name) for name in reader.fieldnames or ()]
        names = [name for name in reader.fieldnames if name]
        if missing := [column for column in columns if column not in names]:
            has = f"; it has {shortened_list(names)}" if names else ""
            raise ValueError(f"{path}: no column {missing[0]!r}; it needs {', '.join(columns)}{has}")
        if repeated := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"{path}: column {repeated[0]!r} occurs twice; keep one")
        for row in reader:
            line = reader.line_num + unseen
            if any(more := row.pop(None, ())):  # the values without a column
                raise ValueError(
                    f"{path}:{line}: more values than columns: {shortened_list(more)}; quote a value that contains "
                    f"{delimiter!r}"
                )
            yield line, row
    except csv.Error as error:
        raise ValueError(f"{path}: not a table of comma-separated values: {error}") from None


def read_xml(path: Path, tag: str) -> Element:
    """The root of an XML file, whose tag must be this one.

    A document type is refused: it may define texts that expand without bound, or are read from elsewhere.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or is not such a file.
    """
    from xml.etree import ElementTree

    class NoDocumentType(ElementTree.TreeBuilder):
        def doctype(self, *_: object) -> None:
            raise ValueError("it has a document type (<!DOCTYPE>), which is not read; remove it")

    try:
        root = ElementTree.fromstring(path.read_bytes(), ElementTree.XMLParser(target=NoDocumentType()))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; check its name") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # of an unknown encoding
        raise ValueError(f"{path}: not XML: {error}") from None
    if root.tag != tag:
        raise ValueError(f"{path}: XML of <{shortened(root.tag)}>; it should be <{tag}>")
    return root


def first_line(path: Path) -> str:
    """The first line of a text that is not empty, if it can be read."""
    with suppress(OSError), path.open(encoding="utf-8-sig", errors="replace") as file:
        return next((line for line in file if line.strip()), "").strip()
    return ""


def table_columns(path: Path) -> tuple[str, ...]:
    """The names in the first line of a table."""
    line = first_line(path)
    try:
        return tuple(
            map(_column, next(csv.reader([line], delimiter=_delimiter_of(line), skipinitialspace=True), ()))
        )
    except csv.Error:
        return (line,)


def _column(name: str) -> str:
    """A column's name; "Video" and "VIDEO" are "video"."""
    name = name.strip()
    return name.lower() if name.istitle() or name.isupper() else name


def _delimiter_of(line: str) -> str:
    return next((one for one in ",;\t " if one in line.strip()), ",")


def read_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines of a text file that are not empty: line number, and fields."""
    lines = read_text(path, "lines of a data set's annotations").splitlines()
    return ((number, line.split()) for number, line in enumerate(lines, start=1) if line.strip())


def line_segment(fields: Sequence[str], where: str) -> tuple[float, float]:
    """Start and end of a line "video start end". Raises a ValueError for other lines."""
    if len(fields) != 3:
        raise ValueError(f"{where}: {' '.join(fields)!r} is not 'video start end'")
    return seconds(fields[1], where), seconds(fields[2], where)


def shortened(text: str) -> str:
    """A text in printable characters, cut where it is long, for messages."""
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def shortened_list(names: Iterable[str]) -> str:
    """The first names of keys, columns or files, for messages."""
    return shortlist(names, 8, quote=shortened)


def description_of(content: Any) -> str:
    """What a JSON document or the head of another file is, for messages, after "it is"."""
    match content:
        case TableHead(()) | TextHead(()):
            return "a file of empty lines"
        case TableHead(columns):
            return f"a CSV file with columns {shortened_list(columns)}"
        case TextHead(fields):
            return f'a text with lines such as "{shortened(" ".join(fields))}"'
        case dict() if not content:
            return "a JSON object without keys"
        case dict():
            return f"a JSON object with keys {shortened_list(content)}{_first_keys(content.values())}"
        case list():
            items = "objects" if content and isinstance(content[0], dict) else "values"
            return f"a JSON list of {len(content)} {items}{_first_keys(content)}"
        case str():
            return "a JSON string"
        case None:
            return "JSON's null"
        case _:
            return f"JSON's {content!r:.60}"


def _first_keys(values: Iterable[Any]) -> str:
    first = next(iter(values), None)
    return f", the first with keys {shortened_list(first)}" if isinstance(first, dict) and first else ""
