"""Tables with a row for each segment: CSV and TSV to write (``tables.read_own_table`` reads them), Parquet both ways.

Columns are ``video``, ``start``, ``end``, ``label``, ``subset``, ``duration`` and, of detections, ``score``: what
``pandas.read_csv`` and ``pandas.read_parquet`` give, and ``DataFrame.to_csv(index=False)`` and ``to_parquet`` write.
Times are seconds; nothing counts frames.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitad.data.formats.parsing import (
    ParsedAnnotations,
    ParsedVideos,
    ReadOptions,
    Row,
    is_missing,
    positive,
    seconds,
    shortened_list,
)
from bitad.data.formats.writing import WriteOptions, scores_of, write_text
from bitad.runtime.files import atomic_write

if TYPE_CHECKING:
    from types import ModuleType

    from bitad.data.annotations import Annotations

_COLUMNS = ("video", "start", "end", "label")
_TEXTS = ("video", "label", "subset")
_MORE = ("subset", "duration", "score")


def write_csv(annotations: Annotations, dst: Path, _: WriteOptions) -> tuple[Path, ...]:
    """A table of comma-separated values, or with ``.tsv`` at the end of its name of tab-separated ones.

    A video without segments is a row without start, end and label.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter="\t" if dst.suffix.lower() == ".tsv" else ",", lineterminator="\n")
    columns = _columns(annotations)
    writer.writerow(columns)
    for row in _rows(annotations):
        writer.writerow([repr(value) if isinstance(value, float) else value for value in map(row.get, columns)])
    write_text(file.getvalue(), dst)
    return (dst,)


def write_parquet(annotations: Annotations, dst: Path, _: WriteOptions) -> tuple[Path, ...]:
    """A Parquet file with the same rows. Needs pyarrow.

    Raises:
        ValueError: pyarrow is not installed.
    """
    arrow = _pyarrow(dst)
    rows = list(_rows(annotations))
    kinds = {
        name: arrow.string() if name in ("video", "label", "subset") else arrow.float64()
        for name in _MORE + _COLUMNS
    }
    columns = {name: arrow.array([row.get(name) for row in rows], kinds[name]) for name in _columns(annotations)}
    from pyarrow import parquet

    with atomic_write(dst) as partial:
        parquet.write_table(arrow.table(columns), partial)
    return (dst,)


def _columns(annotations: Annotations) -> tuple[str, ...]:
    videos = annotations.videos.values()
    has_scores = any(scores_of(video) is not None for video in videos)
    has_durations = any(math.isfinite(video.duration_s) for video in videos)
    return (*_COLUMNS, "subset", *(["duration"] if has_durations else []), *(["score"] if has_scores else []))


def _rows(annotations: Annotations) -> Iterator[dict[str, Any]]:
    for video in annotations.videos.values():
        stated: dict[str, Any] = {"video": video.name, "subset": video.subset}
        if math.isfinite(video.duration_s):
            stated["duration"] = video.duration_s
        scores = scores_of(video)
        for i, ((start, end), label) in enumerate(zip(video.segments.tolist(), video.labels, strict=True)):
            score = {} if scores is None else {"score": scores[i]}
            yield {**stated, "start": start, "end": end, "label": label, **score}
        if not video.labels:
            yield stated


def read_parquet(files: Sequence[Path], _: ReadOptions) -> ParsedAnnotations:
    """A Parquet file with ``video``, ``start``, ``end``, ``label`` and, if you like, ``subset`` and ``duration``.

    Times are seconds. A row with a video only lists a video without segments. Other columns are left out.
    """
    videos = ParsedVideos()
    notes = []
    for path in files:
        arrow = _pyarrow(path)
        from pyarrow import parquet

        try:
            names = parquet.read_schema(path).names
            if missing := [name for name in _COLUMNS if name not in names]:
                raise ValueError(f"no column {missing[0]!r}; it has {shortened_list(names)}")
            chosen = [name for name in (*_COLUMNS, *_MORE) if name in names]
            table = parquet.read_table(path, columns=chosen).to_pylist()
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: no such file; check its name") from None
        except (ValueError, arrow.ArrowException) as error:
            raise ValueError(f"{path}: no table of annotations in Parquet: {error}") from None
        if left_out := [name for name in names if name not in (*_COLUMNS, *_MORE)]:
            notes.append(f"columns left out: {shortened_list(left_out)}")
        for place, row in enumerate(table):
            _add_row(videos, row, f"{path.name}: row {place}")
    return ParsedAnnotations(videos.ordered(), notes=tuple(notes))


def _add_row(videos: ParsedVideos, row: dict[str, Any], where: str) -> None:
    row = {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
    subset = row.get("subset")
    video = videos.of(str(row["video"] or ""), "training" if is_missing(subset) else str(subset), where)
    with video.collecting():
        if not is_missing(row.get("duration")):
            video.duration_s = positive(row["duration"], f"{where}: duration")
        if all(is_missing(row[name]) for name in ("start", "end", "label")):
            return
        if is_missing(row["label"]):
            raise ValueError(f"{where}: the label is empty")
        video.rows.append(Row(seconds(row["start"], where), seconds(row["end"], where), str(row["label"])))


def _pyarrow(path: Path) -> ModuleType:
    try:
        import pyarrow
    except ImportError:
        raise ValueError(
            f"{path}: Parquet needs the package pyarrow: pip install 'bitad[parquet]'; or use format csv"
        ) from None
    return pyarrow
