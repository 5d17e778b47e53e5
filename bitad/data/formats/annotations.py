"""The annotation formats: a table of how files of each are recognised and read. Does not import NumPy.

To add a format, write its reader in a file of this folder and add a row to :data:`FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bitad.data.classes import Classes
from bitad.data.formats import documents, tables
from bitad.data.formats.parsing import (
    ParsedAnnotations,
    ReadOptions,
    TableHead,
    TextHead,
    description_of,
    shortened,
    shortened_list,
    table_columns,
)
from bitad.runtime.files import is_listed, read_json
from bitad.runtime.signatures import signature_of

# In a folder without a format, so many files are tried.
_MOST_FILES = 20


@dataclass(frozen=True)
class AnnotationFormat:
    """A format of annotation files.

    Args:
        description: of the files, for people.
        required: keys or columns that files of this format have.
        matches: whether a file has this format, by its path and :func:`read_head`; None: whether it is a table with
            the required columns.
        patterns: of the files that are read of a folder; empty if only a file can be named.
        names_classes: whether the reader itself applies the list of classes that is given, as its files number them.
    """

    description: str
    read: Callable[[Sequence[Path], ReadOptions], ParsedAnnotations]
    required: tuple[str, ...]
    matches: Callable[[Path, Any], bool] | None = None
    patterns: tuple[str, ...] = ()
    names_classes: bool = False

    def fits(self, path: Path, head: Any) -> bool:
        """Whether a file has this format."""
        if self.matches is None:
            return isinstance(head, TableHead) and set(head.columns).issuperset(self.required)
        return self.matches(path, head)

    def files(self, src: Path) -> list[Path]:
        """The file, or the files of a folder that would be read, without hidden ones and file managers'."""
        if not src.is_dir():
            return [src]
        return sorted({path for pattern in self.patterns for path in src.rglob(pattern) if is_listed(src, path)})


def _never(_: Path, __: Any) -> bool:
    """For formats whose files are recognised as the native format."""
    return False


def _has_seconds(head: Any) -> bool:
    return any("duration_second" in video for video in documents.videos_in(head))


def _names_subset(path: Path) -> bool:
    return any(part in path.name.lower() for part in ("train", "val", "test"))


_DATABASE = ("database", "subset", "annotations", "segment", "label")
_SECONDS = ("duration_second", "annotations", "segment", "label")
_EPIC_FILES = ("EPIC_100_train.csv", "EPIC_100_validation.csv", "EPIC_100_test_timestamps.csv")
_EPIC_COLUMNS = ("video_id", "start_timestamp", "stop_timestamp")

FORMATS = {
    "native": AnnotationFormat(
        "JSON with a database of videos, as OpenTAD's",
        documents.read_database,
        _DATABASE,
        lambda _, head: documents.is_database(head) and not documents.has_frame_segments(head),
    ),
    "actionformer": AnnotationFormat(
        "ActionFormer's JSON, with segment(frames)",
        documents.read_database,
        (*_DATABASE, "segment(frames)"),
        lambda _, head: documents.is_database(head) and documents.has_frame_segments(head),
    ),
    "activitynet": AnnotationFormat(
        "activity_net.v1-3.min.json; G-TAD's and AFSD's thumos_gt.json",
        documents.read_database,
        _DATABASE,
        _never,
    ),
    "hacs": AnnotationFormat("HACS_segments_v1.1.1.json", documents.read_database, _DATABASE, _never),
    "fineaction": AnnotationFormat("FineAction's annotations_gt.json", documents.read_database, _DATABASE, _never),
    "mmaction2": AnnotationFormat(
        "mmaction2's anet_anno_{train,val,test}.json",
        documents.read_mmaction2,
        _SECONDS,
        lambda path, head: _has_seconds(head) and _names_subset(path),
        ("anet_anno_train.json", "anet_anno_val.json", "anet_anno_test.json"),
    ),
    "bsn": AnnotationFormat(
        "BSN's and BMN's anet_anno_action.json, with video_info_new.csv",
        documents.read_bsn,
        _SECONDS,
        lambda path, head: _has_seconds(head) and not _names_subset(path),
        ("anet_anno_action.json",),
    ),
    "multilabel": AnnotationFormat(
        "JSON of videos with [class, start, end] actions: MultiTHUMOS, Charades, TSU",
        documents.read_multilabel,
        ("subset", "duration", "actions"),
        lambda _, head: any(isinstance(video.get("actions"), list) for video in documents.videos_in(head)),
        names_classes=True,
    ),
    "ego4d-mq": AnnotationFormat(
        "Ego4D's moments_{train,val,test_unannotated}.json",
        documents.read_ego4d_mq,
        ("videos", "split", "clips", "clip_uid", "video_start_sec", "video_end_sec"),
        lambda _, head: isinstance(head, dict) and isinstance(head.get("videos"), list),
        ("moments_train.json", "moments_val.json", "moments_test_unannotated.json"),
    ),
    "csv": AnnotationFormat(
        "your own table with columns video, start, end, label (and subset)",
        tables.read_segments,
        ("video", "start", "end", "label"),
    ),
    "thumos14": AnnotationFormat(
        "THUMOS14's folder of CLASS_val.txt and CLASS_test.txt",
        tables.read_thumos14,
        (),
        lambda path, head: tables.is_thumos_line(head) and path.stem.endswith(("_val", "_test")),
        ("*_val.txt", "*_test.txt"),
    ),
    "multithumos": AnnotationFormat(
        "MultiTHUMOS' folder of CLASS.txt",
        tables.read_multithumos,
        (),
        lambda path, head: tables.is_thumos_line(head) and not path.stem.endswith(("_val", "_test")),
        ("*.txt",),
    ),
    "thumos14-groundtruth": AnnotationFormat(
        "thumos14_test_groundtruth.csv, of DAPs, BSN, G-TAD",
        tables.read_thumos14_groundtruth,
        ("video-name", "t-init", "t-end", "video-duration", "label-idx"),
        patterns=("*_groundtruth.csv",),
    ),
    "gtad": AnnotationFormat(
        "G-TAD's and AFSD's {val,test}_Annotation.csv",
        tables.read_gtad,
        ("video", "type", "start", "end"),
        patterns=("*_Annotation.csv", "*_Annotation_ours.csv"),
    ),
    "charades": AnnotationFormat(
        "Charades_v1_{train,test}.csv",
        tables.read_charades,
        ("id", "actions", "length"),
        patterns=("Charades*_train.csv", "Charades*_test.csv"),
    ),
    "epic-kitchens-verb": AnnotationFormat(
        "EPIC_100_{train,validation,test_timestamps}.csv, their verbs",
        partial(tables.read_epic_kitchens, part="verb"),
        _EPIC_COLUMNS,
        patterns=_EPIC_FILES,
    ),
    "epic-kitchens-noun": AnnotationFormat(
        "EPIC_100_{train,validation,test_timestamps}.csv, their nouns",
        partial(tables.read_epic_kitchens, part="noun"),
        _EPIC_COLUMNS,
        patterns=_EPIC_FILES,
    ),
}


def recognise(src: str | Path) -> str:
    """The name of the format of a file or folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no known format, or may have several; or it is JSON by name and cannot be read.
    """
    src = Path(src)
    if not src.exists():
        raise FileNotFoundError(f"{src}: no such file or folder of annotations")
    found, heads = _matching_formats(src)
    if not found:
        raise ValueError(
            f"{src}: unknown annotation format: it is {_description(src, heads)}; name one with --from: "
            f"{', '.join(FORMATS)}"
        )
    if len(found) > 1:
        raise ValueError(f"{src}: its format may be {' or '.join(found)}; name one with --from")
    return found[0]


def read_annotation_files(
    src: str | Path,
    format: str | None = None,
    *,
    classes: Classes | None = None,
    video_info: str | Path | None = None,
) -> ParsedAnnotations:
    """Read ground truth in any of the ``FORMATS``; what cannot be read of a video is among its faults.

    Args:
        src: a file, or a folder of files of one data set.
        format: the format's name; by default, it is recognised.
        classes: the class names in order, or a list of them; by default the files' own.
        video_info: a list of videos, for formats that need one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the format is unknown, is not recognised or is not that of the files.
    """
    src = Path(src)
    name = recognise(src) if format is None else format
    if name not in FORMATS:
        raise ValueError(f"there is no annotation format {name!r}; the formats are {', '.join(FORMATS)}")
    if not src.exists():
        raise FileNotFoundError(f"{src}: no such file or folder of annotations")
    chosen = FORMATS[name]
    files = chosen.files(src)
    if not files:
        wanted = ", ".join(chosen.patterns)
        raise ValueError(f"{src}: " + (f"no {wanted} there" if wanted else f"a folder; format {name} is one file"))
    try:
        parsed = chosen.read(files, ReadOptions(classes, None if video_info is None else Path(video_info)))
    except ValueError as error:
        raise ValueError(f"{error}{_actual_format(src, name)}") from None
    if classes is not None and not chosen.names_classes:
        parsed = replace(parsed, classes=classes)
    return replace(parsed, format=name, path=src)


def read_head(path: Path) -> Any:
    """What identifies a file's format: the content of JSON, the columns of a table, or the first fields of a text."""
    if path.name.lower().endswith((".json", ".json.gz")):
        return read_json(path)
    suffix = path.suffix.lower()
    if suffix == ".csv" and not path.is_dir():
        return TableHead(table_columns(path))
    if suffix != ".txt" or path.is_dir():
        return TextHead(())
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return TextHead(tuple(next((line for line in file if line.strip()), "").split()))


def _matching_formats(src: Path) -> tuple[list[str], dict[Path, Any]]:
    """The names of the formats that a file or folder may have, and the heads of its files."""
    heads: dict[Path, Any] = {}
    found = []
    for name, known in FORMATS.items():
        for path in known.files(src):
            if path not in heads:
                heads[path] = read_head(path)
            if known.fits(path, heads[path]):
                found.append(name)
                break
    return found, heads


def _actual_format(src: Path, name: str) -> str:
    """The end of an error: what a file is instead of the format that was named."""
    try:
        found, heads = _matching_formats(src)
    except ValueError:  # JSON by name that cannot be read, which the error says
        return ""
    if not found:
        return f"; it is {_description(src, heads)}"
    if len(found) > 1 or FORMATS[found[0]].read == FORMATS[name].read:
        return ""
    return f"; it is of format {found[0]}"


def _description(src: Path, heads: dict[Path, Any]) -> str:
    """What a file or folder without a known format is, and the nearest format."""
    if src.is_dir():
        names = sorted(path.name for path in src.iterdir() if not path.name.startswith("."))
        files = f"with {shortened_list(names)}" if names else "without files"
        return f"a folder {files}{_file_with_format(src)}"
    head = heads[src]
    is_json = not isinstance(head, TableHead | TextHead)
    signature = signature_of(src)
    if not is_json and signature.kind != "text":
        remedy = {
            "json": "give it a name that ends in .json, if it is one JSON document",
            "pickle": "write it as JSON with the project that wrote it",
        }.get(signature.kind, signature.remedy)
        return f"{signature.description}; {remedy}"
    match head:
        case TextHead() if src.suffix.lower() != ".txt":
            return f"{signature.description}; give it a name that ends in .csv or .txt, if it is a table or lines"
        case TextHead(()) | TableHead(()):
            return "a file of empty lines"
        case TextHead(fields):
            return (
                f'a text with lines such as "{shortened(" ".join(fields))}"; the nearest format is thumos14, which has '
                'lines "video_... start end" in files CLASS_val.txt and CLASS_test.txt'
            )
        case TableHead(columns):
            return f"a CSV file with columns {shortened_list(columns)}; {_nearest(set(columns), head)}"
        case {"results": dict()}:
            return f"{description_of(head)}; these are detections, which `bitad evaluate` reads"
    return f"{description_of(head)}; {_nearest(set(_keys(head)), head)}"


def _file_with_format(folder: Path) -> str:
    """A file in a folder that has a format, for the end of a description."""
    for path in sorted(path for path in folder.iterdir() if is_listed(folder, path))[:_MOST_FILES]:
        with suppress(ValueError):
            if path.is_file():
                return f"; {path.name} in it is of format {recognise(path)}: name that file"
    return ""


def _nearest(keys: set[str], head: Any) -> str:
    """The format that shares most keys or columns with a file, and those that the file lacks."""
    is_table = isinstance(head, TableHead)
    shares = {
        name: len(keys.intersection(known.required)) / len(known.required)
        for name, known in FORMATS.items()
        if known.required and (known.matches is None) == is_table
    }
    name = max(shares, key=lambda name: shares[name])
    if not shares[name]:  # the most common one
        name = "gtad" if is_table else "native"
    missing = ", ".join(key for key in FORMATS[name].required if key not in keys)
    what = "columns" if is_table else "keys"
    return f"the nearest format is {name}, " + (
        f"without the {what} {missing}" if missing else "with its keys elsewhere"
    )


def _keys(content: Any, depth: int = 6) -> Iterator[str]:
    """The keys of objects in a JSON document, of the first few of each list and object."""
    if isinstance(content, dict):
        yield from content
        content = list(content.values())
    if depth and isinstance(content, list):
        for value in content[:3]:
            yield from _keys(value, depth - 1)
