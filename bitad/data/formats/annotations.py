"""The annotation formats: how files of each are recognised and read. Does not import NumPy.

To add a format, write its reader, and its writer if it has one, in a file of this folder and add a row to
:data:`FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitad.data.classes import Classes
from bitad.data.formats import (
    audacity,
    cvat,
    documents,
    elan,
    fiftyone,
    framewise,
    label_studio,
    rows,
    subtitles,
    tables,
    via,
)
from bitad.data.formats.parsing import (
    ParsedAnnotations,
    ReadOptions,
    TableHead,
    TextHead,
    description_of,
    first_line,
    objects_in,
    shortened_list,
    table_columns,
)
from bitad.data.formats.writing import WriteOptions, write_actionformer, write_native
from bitad.runtime.files import is_listed, read_json
from bitad.runtime.log import log_once
from bitad.runtime.signatures import signature_of

if TYPE_CHECKING:
    from bitad.data.annotations import Annotations
    from bitad.data.frame_clocks import FrameClocks

# In a folder without a format, so many files are tried.
_MOST_FILES = 20


@dataclass(frozen=True)
class AnnotationFormat:
    """A format of annotation files.

    Args:
        description: of the files, for people.
        required: keys or columns that files of this format have.
        matches: whether a file has this format, by its path and head; None: a table with the required columns has it.
        patterns: of the files that are read of a folder; empty if only a file can be named.
        names_classes: whether the reader itself applies the list of classes, as its files number them.
        write: writes annotations to a path, and returns the files; None: the format is only read.
        suffix: of the file that is written; empty: a folder with a file for each video.
        has_subsets: whether files that are written state the subsets of videos.
    """

    description: str
    read: Callable[[Sequence[Path], ReadOptions], ParsedAnnotations]
    required: tuple[str, ...]
    matches: Callable[[Path, Any], bool] | None = None
    patterns: tuple[str, ...] = ()
    names_classes: bool = False
    write: Callable[[Annotations, Path, WriteOptions], tuple[Path, ...]] | None = None
    suffix: str = ".json"
    has_subsets: bool = False

    def fits(self, path: Path, head: Any) -> bool:
        """Whether a file has this format."""
        if self.matches is None:
            return isinstance(head, TableHead) and set(head.columns).issuperset(self.required)
        return self.matches(path, head)

    def files(self, src: Path) -> list[Path]:
        """The file, or the files of a folder that would be read."""
        if not src.exists():
            raise FileNotFoundError(f"{src}: no such file or folder of annotations")
        if not src.is_dir():
            return [src]
        return sorted({path for pattern in self.patterns for path in src.rglob(pattern) if is_listed(src, path)})


def _never(_: Path, __: Any) -> bool:
    """For formats whose files are recognised as the native format."""
    return False


def _has_seconds(head: Any) -> bool:
    return any("duration_second" in video for video in objects_in(head))


def _names_subset(path: Path) -> bool:
    return any(part in path.name.lower() for part in ("train", "val", "test"))


_DATABASE = ("database", "subset", "annotations", "segment", "label")
_SECONDS = ("duration_second", "annotations", "segment", "label")

FORMATS = {
    "native": AnnotationFormat(
        "JSON with a database of videos, as OpenTAD's",
        documents.read_database,
        _DATABASE,
        lambda _, head: documents.is_database(head) and not documents.has_frame_segments(head),
        write=write_native,
        has_subsets=True,
    ),
    "actionformer": AnnotationFormat(
        "ActionFormer's JSON, with segment(frames)",
        documents.read_database,
        (*_DATABASE, "segment(frames)"),
        lambda _, head: documents.is_database(head) and documents.has_frame_segments(head),
        write=write_actionformer,
        has_subsets=True,
    ),
    "activitynet": AnnotationFormat(
        "activity_net.v1-3.min.json; G-TAD's and AFSD's thumos_gt.json",
        documents.read_database,
        _DATABASE,
        _never,
        write=write_native,
        has_subsets=True,
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
        lambda _, head: any(isinstance(video.get("actions"), list) for video in objects_in(head)),
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
        "your own table (.csv, .tsv) with columns video, start, end, label (and subset, duration)",
        tables.read_own_table,
        ("video", "start", "end", "label"),
        write=rows.write_csv,
        has_subsets=True,
        suffix=".csv",
    ),
    "parquet": AnnotationFormat(
        "the same table in Parquet, as of pandas",
        rows.read_parquet,
        (),
        lambda path, _: path.suffix.lower() == ".parquet",
        write=rows.write_parquet,
        has_subsets=True,
        suffix=".parquet",
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
    "gtad": AnnotationFormat(
        "G-TAD's and AFSD's {val,test}_Annotation.csv",
        tables.read_gtad,
        ("video", "type", "start", "end"),
        patterns=("*_Annotation.csv", "*_Annotation_ours.csv"),
    ),
    "thumos14-groundtruth": AnnotationFormat(
        "thumos14_test_groundtruth.csv, of DAPs, BSN, G-TAD",
        tables.read_thumos14_groundtruth,
        ("video-name", "t-init", "t-end", "video-duration", "label-idx"),
        patterns=("*_groundtruth.csv",),
    ),
    "charades": AnnotationFormat(
        "Charades_v1_{train,test}.csv",
        tables.read_charades,
        ("id", "actions", "length"),
        patterns=("Charades*_train.csv", "Charades*_test.csv"),
    ),
    **{
        f"epic-kitchens-{part}": AnnotationFormat(
            f"EPIC_100_{{train,validation,test_timestamps}}.csv, their {part}s",
            partial(tables.read_epic_kitchens, part=part),
            ("video_id", "start_timestamp", "stop_timestamp"),
            patterns=("EPIC_100_train.csv", "EPIC_100_validation.csv", "EPIC_100_test_timestamps.csv"),
        )
        for part in ("verb", "noun")
    },
    "label-studio": AnnotationFormat(
        "Label Studio's JSON, segments of a video's timeline",
        label_studio.read_label_studio,
        (),
        lambda _, head: label_studio.is_label_studio(head),
        write=label_studio.write_label_studio,
        has_subsets=True,
    ),
    "webvtt": AnnotationFormat(
        "WebVTT subtitles, NAME.vtt of each video",
        subtitles.read_webvtt,
        (),
        lambda path, _: path.suffix.lower() == ".vtt",
        ("*.vtt",),
        write=subtitles.write_webvtt,
        suffix="",
    ),
    "srt": AnnotationFormat(
        "SubRip subtitles, NAME.srt of each video",
        subtitles.read_srt,
        (),
        lambda path, _: path.suffix.lower() == ".srt",
        ("*.srt",),
        write=subtitles.write_srt,
        suffix="",
    ),
    "elan": AnnotationFormat(
        "ELAN's NAME.eaf of each video",
        elan.read_elan,
        (),
        lambda path, _: path.suffix.lower() == ".eaf",
        ("*.eaf",),
        write=elan.write_elan,
        suffix="",
    ),
    "cvat": AnnotationFormat(
        "CVAT for video 1.1, NAME.xml of each video",
        cvat.read_cvat,
        (),
        lambda path, _: cvat.is_cvat(path),
        ("*.xml",),
        write=cvat.write_cvat,
        suffix="",
    ),
    "via": AnnotationFormat(
        "a project of VIA 3",
        via.read_via,
        (),
        lambda _, head: via.is_via(head),
        write=via.write_via,
    ),
    "fiftyone": AnnotationFormat(
        "folder of FiftyOne's FiftyOneTemporalDetectionDataset, with labels.json",
        fiftyone.read_fiftyone,
        (),
        lambda _, head: fiftyone.is_fiftyone(head),
        ("labels.json",),
        write=fiftyone.write_fiftyone,
        suffix="",
    ),
    "audacity": AnnotationFormat(
        "Audacity's labels, NAME.txt of each video",
        audacity.read_audacity,
        (),
        lambda _, head: audacity.is_audacity(head),
        ("*.txt",),
        write=audacity.write_audacity,
        suffix="",
    ),
    "frame-wise": AnnotationFormat(
        "a label a line in groundTruth/NAME.txt: Breakfast, 50 Salads, GTEA",
        framewise.read_framewise,
        (),
        framewise.is_framewise,
        ("*.txt",),
        write=framewise.write_framewise,
        suffix="",
    ),
}

# The formats that can be written.
WRITTEN = tuple(name for name, known in FORMATS.items() if known.write is not None)


def recognise(src: str | Path) -> str:
    """The name of the format of a file or folder; raises a ValueError if it is unknown or unclear."""
    src = Path(src)
    found, heads = _matching_formats(src)
    if len(found) > 1:
        raise ValueError(f"{src}: its format may be {' or '.join(found)}; name one with --from")
    if found:
        return found[0]
    raise ValueError(
        f"{src}: unknown annotation format: it is {_description(src, heads)}; name one with --from: "
        f"{', '.join(FORMATS)}"
    )


def read_annotation_files(
    src: str | Path,
    format: str | None = None,
    *,
    classes: Classes | None = None,
    video_info: str | Path | None = None,
    frame_clocks: FrameClocks | None = None,
) -> ParsedAnnotations:
    """Read ground truth in any of the ``FORMATS``; what cannot be read of a video is among its faults.

    Args:
        src: a file, or a folder of files of one data set.
        format: the format's name; by default, it is recognised.
        classes: the class names in order, or a list of them; by default the files' own.
        video_info: a list of videos, for formats that need one.
        frame_clocks: when frames are shown, for formats that count frames.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the format is unknown, is not recognised or is not that of the files.
    """
    src = Path(src)
    name = recognise(src) if format is None else format
    if name not in FORMATS:
        raise ValueError(f"there is no annotation format {name!r}; the formats are {', '.join(FORMATS)}")
    chosen = FORMATS[name]
    files = chosen.files(src)
    if not files:
        wanted = ", ".join(chosen.patterns)
        raise ValueError(f"{src}: " + (f"no {wanted} there" if wanted else f"a folder; format {name} is one file"))
    try:
        listed = None if video_info is None else Path(video_info)
        parsed = chosen.read(files, ReadOptions(classes, listed, frame_clocks))
    except ValueError as error:
        raise ValueError(f"{error}{_actual_format(src, name)}") from None
    if classes is not None and not chosen.names_classes:
        parsed = replace(parsed, classes=classes)
    return replace(parsed, format=name, path=src)


def write_annotation_files(
    annotations: Annotations, dst: str | Path, format: str, options: WriteOptions
) -> tuple[Path, ...]:
    """Write ground truth in one of the formats ``WRITTEN``; return the files.

    Args:
        dst: a file, or for a format with a file for each video a folder.

    Raises:
        ValueError: the format cannot be written, or cannot have these annotations.
    """
    write = FORMATS[format].write if format in FORMATS else None
    if write is None:
        raise ValueError(f"annotations cannot be written as {format!r}; the formats are {', '.join(WRITTEN)}")
    subsets = annotations.subsets()
    if len(subsets) > 1 and not FORMATS[format].has_subsets:
        log_once(f"format {format} knows no subsets ({', '.join(subsets)}): all videos are read as training")
    return write(annotations, Path(dst), options)


def _read_head(path: Path) -> Any:
    if path.name.lower().endswith((".json", ".json.gz")):
        return read_json(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        return TableHead(table_columns(path))
    if path.suffix.lower() == ".txt":
        return TextHead(tuple(first_line(path).split()))
    return TextHead(())


def _matching_formats(src: Path) -> tuple[list[str], dict[Path, Any]]:
    heads: dict[Path, Any] = {}
    found = []
    for name, known in FORMATS.items():
        for path in known.files(src):
            if path not in heads:
                heads[path] = _read_head(path)
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
    is_other = len(found) == 1 and FORMATS[found[0]].read != FORMATS[name].read
    return f"; it is of format {found[0]}" if is_other else ""


def _description(src: Path, heads: dict[Path, Any]) -> str:
    """What a file or folder without a known format is, and the nearest format."""
    if src.is_dir():
        return _folder_description(src)
    head = heads[src]
    if isinstance(head, TableHead | TextHead):
        signature = signature_of(src)
        has_suffix = src.suffix.lower() in (".csv", ".txt")
        if signature.kind in ("json", "pickle") or (signature.kind == "text" and not has_suffix):
            return f"{signature.description}; write it, or name it, as .json, .csv or .txt"
        if signature.kind != "text":
            return str(signature)
    match head:
        case TableHead(()) | TextHead(()):
            return description_of(head)
        case TextHead():
            nearest = f"the nearest format is thumos14, {FORMATS['thumos14'].description}"
        case TableHead(columns):
            nearest = _nearest(set(columns), is_table=True)
        case {"results": dict()}:
            nearest = "these are detections, which `bitad evaluate` reads"
        case _:
            nearest = _nearest(set(_keys(head)), is_table=False)
    return f"{description_of(head)}; {nearest}"


def _folder_description(folder: Path) -> str:
    files = sorted(path for path in folder.iterdir() if is_listed(folder, path))
    description = (
        f"a folder with {shortened_list(path.name for path in files)}" if files else "a folder without files"
    )
    for path in files[:_MOST_FILES]:
        with suppress(ValueError):
            if path.is_file():
                return f"{description}; {path.name} in it is of format {recognise(path)}: name that file"
    return description


def _nearest(keys: set[str], *, is_table: bool) -> str:
    """The format that shares most keys with a file, and those that it lacks."""

    def share(name: str) -> float:
        required = FORMATS[name].required
        return len(keys.intersection(required)) / len(required)

    names = [name for name, known in FORMATS.items() if known.required and (known.matches is None) == is_table]
    name = max(names, key=share)  # of equals, the first, which is the most common one
    missing = ", ".join(key for key in FORMATS[name].required if key not in keys)
    return f"the nearest format is {name}, " + (f"without {missing}" if missing else "with its keys elsewhere")


def _keys(content: Any, depth: int = 6) -> Iterator[str]:
    """The keys of the first objects in a JSON document."""
    if isinstance(content, dict):
        yield from content
        content = list(content.values())
    if depth and isinstance(content, list):
        for value in content[:3]:
            yield from _keys(value, depth - 1)
