"""The forms in which ground truth is found: how each is recognised, and its reader.

This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bitad.data.annotation_documents import read_database, read_ego4d_mq, read_mmaction2
from bitad.data.annotation_rows import Source
from bitad.data.annotation_tables import read_charades, read_epic_kitchens, read_multithumos, read_thumos14
from bitad.files import read_json
from bitad.folders import is_below
from bitad.signatures import signature_of


@dataclass(frozen=True)
class Form:
    """A form of annotation files.

    Args:
        says: what is read, for people.
        folder: which files of a folder are read; none where only a file can be named.
        fits: whether a file, whose head is the second argument (``_head``), has this form.
        read: reads the files.
    """

    says: str
    folder: tuple[str, ...]
    fits: Callable[[Path, Any], bool]
    read: Callable[[Sequence[Path]], Source]

    def files(self, src: Path) -> list[Path]:
        """The file, or the files of a folder that would be read; hidden ones and file managers' are passed over."""
        if not src.is_dir():
            return [src]
        return sorted({path for pattern in self.folder for path in src.rglob(pattern) if is_below(src, path)})


def _is_row(head: Any) -> bool:
    return isinstance(head, tuple) and len(head) == 3 and head[0].startswith("video_")


def _of_thumos14(path: Path, head: Any) -> bool:
    return path.stem.endswith(("_val", "_test")) and _is_row(head)


def _of_multithumos(path: Path, head: Any) -> bool:
    return not path.stem.endswith(("_val", "_test")) and _is_row(head)


def _has_columns(*columns: str) -> Callable[[Path, Any], bool]:
    return lambda _, head: isinstance(head, set) and head.issuperset(columns)


def _frames_stated(head: Any) -> bool:
    """Whether segments are given in frames too, as only ActionFormer does."""
    videos = head["database"].values()
    rows = (video.get("annotations") for video in videos if isinstance(video, dict))
    return any(
        "segment(frames)" in row[0] for row in rows if isinstance(row, list) and row and isinstance(row[0], dict)
    )


def _of_database(path: Path, head: Any) -> bool:
    return isinstance(head, dict) and isinstance(head.get("database"), dict)


def _of_actionformer(path: Path, head: Any) -> bool:
    return _of_database(path, head) and _frames_stated(head)


def _of_native(path: Path, head: Any) -> bool:
    return _of_database(path, head) and not _frames_stated(head)


def _of_mmaction2(_: Path, head: Any) -> bool:
    first = next(iter(head.values()), None) if isinstance(head, dict) else None
    return isinstance(first, dict) and "duration_second" in first


def _of_ego4d(_: Path, head: Any) -> bool:
    return isinstance(head, dict) and isinstance(head.get("videos"), list)


def _never(_: Path, __: Any) -> bool:
    """These files are as the native form's, and recognised as such."""
    return False


_EPIC_FILES = ("EPIC_100_train.csv", "EPIC_100_validation.csv", "EPIC_100_test_timestamps.csv")
_EPIC_COLUMNS = ("video_id", "start_timestamp", "stop_timestamp")

FORMS = {
    "native": Form("JSON with a database of videos, as OpenTAD's", (), _of_native, read_database),
    "actionformer": Form("ActionFormer's JSON, with segment(frames)", (), _of_actionformer, read_database),
    "activitynet": Form("activity_net.v1-3.min.json", (), _never, read_database),
    "hacs": Form("HACS_segments_v1.1.1.json", (), _never, read_database),
    "fineaction": Form("FineAction's annotations_gt.json", (), _never, read_database),
    "mmaction2": Form(
        "anet_anno_{train,val,test}.json",
        ("anet_anno_train.json", "anet_anno_val.json", "anet_anno_test.json"),
        _of_mmaction2,
        read_mmaction2,
    ),
    "ego4d-mq": Form(
        "moments_{train,val,test_unannotated}.json",
        ("moments_train.json", "moments_val.json", "moments_test_unannotated.json"),
        _of_ego4d,
        read_ego4d_mq,
    ),
    "thumos14": Form(
        "folder of CLASS_val.txt and CLASS_test.txt", ("*_val.txt", "*_test.txt"), _of_thumos14, read_thumos14
    ),
    "multithumos": Form("folder of CLASS.txt", ("*.txt",), _of_multithumos, read_multithumos),
    "charades": Form(
        "Charades_v1_{train,test}.csv",
        ("Charades*_train.csv", "Charades*_test.csv"),
        _has_columns("id", "actions", "length"),
        read_charades,
    ),
    "epic-kitchens-verb": Form(
        "EPIC_100_{train,validation,test_timestamps}.csv",
        _EPIC_FILES,
        _has_columns(*_EPIC_COLUMNS),
        partial(read_epic_kitchens, part="verb"),
    ),
    "epic-kitchens-noun": Form(
        "EPIC_100_{train,validation,test_timestamps}.csv",
        _EPIC_FILES,
        _has_columns(*_EPIC_COLUMNS),
        partial(read_epic_kitchens, part="noun"),
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
    heads: dict[Path, Any] = {}
    found = []
    for name, form in FORMS.items():
        for path in form.files(src):
            if path not in heads:
                heads[path] = _head(path)
            if form.fits(path, heads[path]):
                found.append(name)
                break
    if not found:
        if src.is_file() and (kind := signature_of(src)).kind not in ("text", "json", "unknown"):
            raise ValueError(f"{src}: no annotations: it is {kind}")
        raise ValueError(f"{src}: none of the known forms of annotations; name one with --from: {', '.join(FORMS)}")
    if len(found) > 1:
        raise ValueError(f"{src}: could be {' or '.join(found)}; say which with --from")
    return found[0]


def read_form(src: str | Path, form: str | None = None) -> tuple[str, Source]:
    """Read ground truth in any of the ``FORMS``; the form's name and what was read.

    Args:
        src: a file, or a folder of files of one data set.
        form: the form's name; recognised where not given.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a form unknown, unrecognised or not that of the files; a line or value that is malformed.
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
    return name, FORMS[name].read(files)


def _head(path: Path) -> Any:
    """What tells a file's form: the content of JSON, a table's columns as a set, a text's first fields as a tuple."""
    if path.name.lower().endswith((".json", ".json.gz")):
        return read_json(path)
    if path.is_dir() or path.suffix.lower() not in (".csv", ".txt"):
        return None
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        line = next((line for line in file if line.strip()), "")
    return set(line.strip().split(",")) if path.suffix.lower() == ".csv" else tuple(line.split())
