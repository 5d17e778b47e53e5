"""The forms in which ground truth is found: how each is recognised, and its reader. Readers are imported when used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bitad.data.formats.values import columns_of, described, some
from bitad.runtime.files import is_listed, read_json
from bitad.runtime.signatures import signature_of

if TYPE_CHECKING:
    from bitad.data.annotations import Classes
    from bitad.data.formats.rows import Source


# A folder that has no form is looked through for so many files that have one.
_MOST_FILES = 20
_LINE = 60


class Columns(tuple[str, ...]):
    """The columns of a table."""


class Fields(tuple[str, ...]):
    """The fields of a text's first line."""


# What is neither JSON, a table nor a text.
_OTHER = object()


@dataclass(frozen=True)
class Form:
    """A form of annotation files.

    Args:
        says: what is read, for people.
        reader: "module:function" in ``bitad.data``, which takes the files and, with ``asks``, what is ``Given``.
        needs: keys, columns or lines that files of this form have, for people.
        fits: whether a file, whose head is the second argument (``_head``), has this form; by default whether it has
            the columns that it needs.
        folder: which files of a folder are read; none where only a file can be named.
        asks: for "classes" that its numbers are names of, or the "subsets" of videos.
    """

    says: str
    reader: str
    needs: tuple[str, ...]
    fits: Callable[[Path, Any], bool] | None = None
    folder: tuple[str, ...] = ()
    asks: Literal["classes", "subsets"] | None = None

    def has(self, path: Path, head: Any) -> bool:
        """Whether a file has this form."""
        if self.fits is None:
            return isinstance(head, Columns) and set(head).issuperset(self.needs)
        return self.fits(path, head)

    def files(self, src: Path) -> list[Path]:
        """The file, or the files of a folder that would be read; hidden ones and file managers' are passed over."""
        if not src.is_dir():
            return [src]
        return sorted({path for pattern in self.folder for path in src.rglob(pattern) if is_listed(src, path)})

    def read(self, files: Sequence[Path], classes: Classes | None, video_info: Path | None) -> Source:
        """Read the files."""
        from bitad.data.formats.rows import Given

        module, _, function = self.reader.partition(":")
        read = getattr(import_module(f"bitad.data.formats.{module}"), function)
        source: Source = read(files, Given(classes, video_info)) if self.asks else read(files)
        return source if classes is None or self.asks == "classes" else replace(source, classes=classes)


def _is_row(head: Any) -> bool:
    return isinstance(head, Fields) and len(head) == 3 and head[0].startswith("video_")


def _of_thumos14(path: Path, head: Any) -> bool:
    return path.stem.endswith(("_val", "_test")) and _is_row(head)


def _of_multithumos(path: Path, head: Any) -> bool:
    return not path.stem.endswith(("_val", "_test")) and _is_row(head)


def _frames_stated(head: Any) -> bool:
    """Whether segments are given in frames too, as only ActionFormer does."""
    videos = head["database"].values()
    rows = (video.get("annotations") for video in videos if isinstance(video, dict))
    return any(
        "segment(frames)" in row[0] for row in rows if isinstance(row, list) and row and isinstance(row[0], dict)
    )


def _of_database(head: Any) -> bool:
    return isinstance(head, dict) and isinstance(head.get("database"), dict)


def _of_actionformer(_: Path, head: Any) -> bool:
    return _of_database(head) and _frames_stated(head)


def _of_native(_: Path, head: Any) -> bool:
    return _of_database(head) and not _frames_stated(head)


def _videos(head: Any) -> list[dict[str, Any]]:
    """Videos by name; any of them may be the one that lacks something."""
    return [video for video in head.values() if isinstance(video, dict)] if isinstance(head, dict) else []


def _of_mmaction2(path: Path, head: Any) -> bool:
    return _seconds_stated(head) and _subset_in_name(path)


def _of_bsn(path: Path, head: Any) -> bool:
    return _seconds_stated(head) and not _subset_in_name(path)


def _seconds_stated(head: Any) -> bool:
    return any("duration_second" in video for video in _videos(head))


def _subset_in_name(path: Path) -> bool:
    return any(part in path.name.lower() for part in ("train", "val", "test"))


def _of_multilabel(_: Path, head: Any) -> bool:
    return any(isinstance(video.get("actions"), list) for video in _videos(head))


def _of_ego4d(_: Path, head: Any) -> bool:
    return isinstance(head, dict) and isinstance(head.get("videos"), list)


def _never(_: Path, __: Any) -> bool:
    """These files are as the native form's, and recognised as such."""
    return False


_DATABASE = ("database", "subset", "annotations", "segment", "label")
_SECONDS = ("duration_second", "annotations", "segment", "label")
_EPIC_FILES = ("EPIC_100_train.csv", "EPIC_100_validation.csv", "EPIC_100_test_timestamps.csv")
_EPIC_COLUMNS = ("video_id", "start_timestamp", "stop_timestamp")

FORMS = {
    "native": Form("JSON with a database of videos, as OpenTAD's", "documents:read_database", _DATABASE, _of_native),
    "actionformer": Form(
        "ActionFormer's JSON, with segment(frames)",
        "documents:read_database",
        (*_DATABASE, "segment(frames)"),
        _of_actionformer,
    ),
    "activitynet": Form(
        "activity_net.v1-3.min.json; G-TAD's and AFSD's thumos_gt.json",
        "documents:read_database",
        _DATABASE,
        _never,
    ),
    "hacs": Form("HACS_segments_v1.1.1.json", "documents:read_database", _DATABASE, _never),
    "fineaction": Form("FineAction's annotations_gt.json", "documents:read_database", _DATABASE, _never),
    "mmaction2": Form(
        "mmaction2's anet_anno_{train,val,test}.json",
        "documents:read_mmaction2",
        _SECONDS,
        _of_mmaction2,
        ("anet_anno_train.json", "anet_anno_val.json", "anet_anno_test.json"),
    ),
    "bsn": Form(
        "BSN's and BMN's anet_anno_action.json, with video_info_new.csv",
        "documents:read_bsn",
        _SECONDS,
        _of_bsn,
        ("anet_anno_action.json",),
        asks="subsets",
    ),
    "multilabel": Form(
        "JSON of videos with [class, start, end] actions: MultiTHUMOS, Charades, TSU",
        "documents:read_multilabel",
        ("subset", "duration", "actions"),
        _of_multilabel,
        asks="classes",
    ),
    "ego4d-mq": Form(
        "Ego4D's moments_{train,val,test_unannotated}.json",
        "documents:read_ego4d_mq",
        ("videos", "split", "clips", "clip_uid", "video_start_sec", "video_end_sec"),
        _of_ego4d,
        ("moments_train.json", "moments_val.json", "moments_test_unannotated.json"),
    ),
    "thumos14": Form(
        "THUMOS14's folder of CLASS_val.txt and CLASS_test.txt",
        "tables:read_thumos14",
        ('lines "video_... start end" in files CLASS_val.txt and CLASS_test.txt',),
        _of_thumos14,
        ("*_val.txt", "*_test.txt"),
    ),
    "multithumos": Form(
        "MultiTHUMOS' folder of CLASS.txt",
        "tables:read_multithumos",
        ('lines "video_... start end" in files CLASS.txt',),
        _of_multithumos,
        ("*.txt",),
    ),
    "thumos14-groundtruth": Form(
        "thumos14_test_groundtruth.csv, of DAPs, BSN, G-TAD",
        "tables:read_thumos14_groundtruth",
        ("video-name", "t-init", "t-end", "video-duration", "label-idx"),
        folder=("*_groundtruth.csv",),
    ),
    "gtad": Form(
        "G-TAD's and AFSD's {val,test}_Annotation.csv",
        "tables:read_gtad",
        ("video", "type", "start", "end"),
        folder=("*_Annotation.csv", "*_Annotation_ours.csv"),
    ),
    "charades": Form(
        "Charades_v1_{train,test}.csv",
        "tables:read_charades",
        ("id", "actions", "length"),
        folder=("Charades*_train.csv", "Charades*_test.csv"),
    ),
    "epic-kitchens-verb": Form(
        "EPIC_100_{train,validation,test_timestamps}.csv, their verbs",
        "tables:read_epic_verbs",
        _EPIC_COLUMNS,
        folder=_EPIC_FILES,
    ),
    "epic-kitchens-noun": Form(
        "EPIC_100_{train,validation,test_timestamps}.csv, their nouns",
        "tables:read_epic_nouns",
        _EPIC_COLUMNS,
        folder=_EPIC_FILES,
    ),
}


def recognise(src: str | Path) -> str:
    """The name of the form that a file or a folder has.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has none of them, or may have several; or it is JSON by name and cannot be read.
    """
    src = Path(src)
    if not src.exists():
        raise FileNotFoundError(f"{src}: no such file or folder of annotations")
    found, heads = _fitting(src)
    if not found:
        raise ValueError(
            f"{src}: none of the known forms of annotations: it is {_looks(src, heads)}; name one with --from: "
            f"{', '.join(FORMS)}"
        )
    if len(found) > 1:
        raise ValueError(f"{src}: could be {' or '.join(found)}; say which with --from")
    return found[0]


def _fitting(src: Path) -> tuple[list[str], dict[Path, Any]]:
    """The names of the forms that a file or a folder may have, and what tells it: the heads of its files."""
    heads: dict[Path, Any] = {}
    found = []
    for name, form in FORMS.items():
        for path in form.files(src):
            if path not in heads:
                heads[path] = _head(path)
            if form.has(path, heads[path]):
                found.append(name)
                break
    return found, heads


def read_source(
    src: str | Path,
    form: str | None = None,
    *,
    classes: Classes | None = None,
    video_info: str | Path | None = None,
) -> tuple[str, Source]:
    """Read ground truth in any of the ``FORMS``: the form's name, and the videos with what cannot be read of each.

    Args:
        src: a file, or a folder of files of one data set.
        form: the form's name; recognised where not given.
        classes: the class names in order, or a list of them; by default the files' own.
        video_info: a list of videos, whose subsets a form takes that states none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a form unknown, unrecognised or not that of the files.
    """
    src = Path(src)
    name = recognise(src) if form is None else form
    if name not in FORMS:
        raise ValueError(f"no form of annotations is called {name!r}; the forms are {', '.join(FORMS)}")
    if not src.exists():
        raise FileNotFoundError(f"{src}: no such file or folder of annotations")
    files = FORMS[name].files(src)
    if not files:
        wanted = ", ".join(FORMS[name].folder)
        raise ValueError(f"{src}: " + (f"no {wanted} there" if wanted else f"a folder; form {name} is one file"))
    try:
        source = FORMS[name].read(files, classes, None if video_info is None else Path(video_info))
    except ValueError as error:
        raise ValueError(f"{error}{_instead(src, name)}") from None
    return name, replace(source, path=src)


def read_form(
    src: str | Path,
    form: str | None = None,
    *,
    classes: Classes | None = None,
    video_info: str | Path | None = None,
) -> tuple[str, Source]:
    """As :func:`read_source`, where everything can be read.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_source`; a line or value that is malformed; a label that is not
            one of the classes.
    """
    name, source = read_source(src, form, classes=classes, video_info=video_info)
    _ = source.annotations  # refuses what could not be read
    return name, source


def _head(path: Path) -> Any:
    """What tells a file's form: the content of JSON, a table's columns, a text's first fields."""
    if path.name.lower().endswith((".json", ".json.gz")):
        return read_json(path)
    if path.is_dir() or path.suffix.lower() not in (".csv", ".txt"):
        return _OTHER
    if path.suffix.lower() == ".csv":
        return Columns(columns_of(path))
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return Fields(next((line for line in file if line.strip()), "").split())


def _looks(src: Path, heads: dict[Path, Any]) -> str:
    """What a file or folder of no known form looks like, and the form that is nearest."""
    if src.is_dir():
        names = sorted(path.name for path in src.iterdir() if not path.name.startswith("."))
        inner = _inner_form(src)
        return f"a folder {f'with {some(names)}' if names else 'without files'}" + (f"; {inner}" if inner else "")
    head = heads[src]
    signature = signature_of(src)
    if not _is_json(head):
        if remedy := {
            "json": "give it a name that ends in .json, if it is one JSON document",
            "text": "give it a name that ends in .csv or .txt, if it is a table or lines" if head is _OTHER else "",
            "pickle": "write it as JSON with the project that wrote it",
        }.get(signature.kind):
            return f"{signature.description}; {remedy}"
        if signature.kind != "text":
            return str(signature)
    if isinstance(head, Columns | Fields) and not head:
        return "a file of empty lines"
    if isinstance(head, Columns):
        looks = f"a CSV file with columns {some(head)}"
    elif isinstance(head, Fields):
        looks = f'a text with lines such as "{_shortened(" ".join(head))}"'
    else:
        looks = described(head)
        if isinstance(head, dict) and isinstance(head.get("results"), dict):
            return f"{looks}; these are detections, which `bitad evaluate` reads"
    near = _nearest(head)
    return f"{looks}; the nearest form is {near}"


def _instead(src: Path, name: str) -> str:
    """What a file is instead of the form that was named, for the end of an error."""
    try:
        found, heads = _fitting(src)
    except ValueError:  # JSON by name that cannot be read, as the error itself says
        return ""
    if not found:
        return f"; it is {_looks(src, heads)}"
    if len(found) > 1 or FORMS[found[0]].reader == FORMS[name].reader:
        return ""
    return f"; it is of form {found[0]}"


def _inner_form(folder: Path) -> str | None:
    """A file in a folder that has a form by itself."""
    for path in sorted(path for path in folder.iterdir() if is_listed(folder, path))[:_MOST_FILES]:
        with suppress(ValueError):
            if path.is_file():
                return f"{path.name} in it is of form {recognise(path)}: name that file"
    return None


def _nearest(head: Any) -> str:
    """The form that shares most keys or columns with a file, and what the file lacks of it."""
    if isinstance(head, Fields):
        return f"thumos14, which has {FORMS['thumos14'].needs[0]}"
    table = isinstance(head, Columns)
    keys = set(head) if table else set(_keys(head))
    shares = {
        name: len(keys.intersection(form.needs)) / len(form.needs)
        for name, form in FORMS.items()
        if (form.fits is None) == table
    }
    name = max(shares, key=lambda name: shares[name])
    if not shares[name]:  # the commonest one
        name = "gtad" if table else "native"
    lacks = [key for key in FORMS[name].needs if key not in keys]
    what = "columns" if table else "keys"
    return f"{name}, " + (f"of which it lacks the {what} {', '.join(lacks)}" if lacks else "with its keys elsewhere")


def _keys(content: Any, depth: int = 6) -> Iterator[str]:
    """The keys of objects in a JSON document, of the first few of each list and object."""
    if depth and isinstance(content, dict):
        yield from content
        for value in list(content.values())[:3]:
            yield from _keys(value, depth - 1)
    elif depth and isinstance(content, list):
        for value in content[:3]:
            yield from _keys(value, depth - 1)


def _is_json(head: Any) -> bool:
    return not isinstance(head, Columns | Fields) and head is not _OTHER


def _shortened(text: str) -> str:
    text = "".join(one if one.isprintable() else "?" for one in text)
    return text if len(text) <= _LINE else f"{text[:_LINE]}..."
