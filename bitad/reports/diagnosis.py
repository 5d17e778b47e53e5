"""Error diagnoses of one result, or of several side by side: tables, figures, JSON and a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitad.data.annotations import Annotations
from bitad.data.detections import Detections
from bitad.evaluation.diagnosis import ERRORS, GROUPS, KINDS, Bin, Diagnosis, diagnose
from bitad.evaluation.direction_sensitivity import NOTHING
from bitad.reports.page import write_report
from bitad.reports.plots import plot_characteristics, plot_confusion, plot_gains, plot_kinds
from bitad.reports.tables import Cell, Row, Table, kind_name, tiou_range
from bitad.runtime.log import shortlist
from bitad.timeline import FloatArray

INTRODUCTION = """\
Errors are named after DETAD (Alwassel et al. 2018). A detection is right if it matches a segment. It is a double \
detection if a better-scored one matches its segment. Other errors are named by the segment that the detection \
overlaps most: wrong label and confusion, if that has another label; localization and confusion, if the overlap is too \
small; background, if there is hardly any. docs/diagnosis.md explains every figure."""

# The most classes of a picture of a confusion matrix, and rows of its table.
_MOST_CLASSES = 30
_MOST_CONFUSIONS = 10


def diagnosis_tables(results: Mapping[str, Diagnosis], *, per_class: bool = True) -> list[Table]:
    """The tables of results by name, all against the same ground truth and at the same tIoU thresholds.

    The first result is that with which the others are compared.
    """
    tables = [overview_table(results), *_comparing_tables(results)]
    tables += [kinds_table(name if len(results) > 1 else "", one) for name, one in results.items()]
    tables += [characteristic_table(results), confusion_table(results)]
    if per_class:
        tables.append(diagnosis_class_table(results))
    return [table for table in tables if table.rows]


def _comparing_tables(results: Mapping[str, Diagnosis]) -> list[Table]:
    tables = [gain_table(results)]
    if len(results) > 1:
        tables += [best_group_table(results), found_table(results)]
    return tables


@dataclass(frozen=True)
class Section:
    """What a page shows of diagnoses: tables, pictures (caption, file) and the content of its JSON."""

    tables: list[Table]
    pictures: list[tuple[str, str]]
    content: dict[str, Any]


def diagnosis_section(
    out: Path, ground_truth: Annotations, results: Mapping[str, Detections], *, tiou: Sequence[float]
) -> Section:
    """Diagnoses results and writes the pictures into the folder of a page."""
    found = {name: diagnose(ground_truth, detections, tiou=tiou) for name, detections in results.items()}
    tables = [*_comparing_tables(found), characteristic_table(found), confusion_table(found)]
    return Section([table for table in tables if table.rows], _draw_errors(out, found), diagnosis_json(found))


def overview_table(results: Mapping[str, Diagnosis]) -> Table:
    """A row per result: mAP, mAP_N, recall, and missed segments, in percent."""
    rows: list[Row] = []
    for name, one in results.items():
        figures = (one.average_map, one.average_map_n, one.top_ap_n.mean(), one.recall.mean(), one.missed.mean())
        rows.append((name, *(100 * float(figure) for figure in figures), one.detections, _judged(one)))
    columns = ("result", "mAP", "mAP_N", "best 10G", "recall", "missed", "detections", "of them best 10G")
    first = _first(results)
    notes = [
        "mAP_N: mAP with normalised precision, as if every class had as many segments as the mean class, "
        f"{first.positives:.4g}.",
        "Best 10G: mAP_N of the best detections of each class, ten times as many as it has segments G; recall: the "
        "share of segments that they find, mean over classes.",
        "Missed: the share of segments that no detection of a normalised precision above 0.05 finds.",
        *_ground_truth_notes(results),
    ]
    best = ("mAP", "mAP_N", "best 10G", "recall") if len(results) > 1 else ()
    return Table(f"Diagnosis (%), {tiou_range(first.tiou)}", columns, rows, notes, best=best)


def gain_table(results: Mapping[str, Diagnosis]) -> Table:
    """A row per kind of error: how much mAP_N would gain without it, by result, and differences to the first."""
    gains = {name: {kind: 100 * float(g.mean()) for kind, g in one.gains.items()} for name, one in results.items()}
    rows = [(kind_name(kind), *_compared([of[kind] for of in gains.values()])) for kind in (*ERRORS, "all")]
    notes = [
        "Gains of average mAP_N (best 10G) in percentage points if all errors of one kind were deleted. They need not "
        "add up. Without all errors, mAP_N is the recall."
    ]
    if len(results) > 1:
        notes.append("A negative difference: the kind costs less than in the first result.")
    return Table("Gain without each kind of error (points)", ("kind", *_columns(results)), rows, notes)


def best_group_table(results: Mapping[str, Diagnosis]) -> Table:
    """A row per kind: its share of the best G detections of each class, by result, and differences to the first."""
    rows: list[Row] = []
    for kind in KINDS:
        shares = [one.group_shares[0][kind] for one in results.values()]
        rows.append((kind_name(kind), *_compared([None if share is None else 100 * share for share in shares])))
    notes = ["As many detections of each class as it has segments G: a perfect detector has 100 % right."]
    return Table("The best G detections (%)", ("kind", *_columns(results)), rows, notes)


def found_table(results: Mapping[str, Diagnosis]) -> Table:
    """A row per result after the first: segments that only it, or only the first, finds; means over thresholds."""
    (name, first), *others = results.items()
    rows: list[Row] = []
    for other, one in others:
        found, lost = found_and_lost(first, one)
        rows.append((other, found.mean(), lost.mean(), found.mean() - lost.mean(), int(first.segments.sum())))
    columns = ("result", f"missed by {name}, found", f"found by {name}, missed", "difference", "of segments")
    notes = ["Numbers of segments, means over tIoU."]
    return Table(f"Segments found and missed, compared with {name}", columns, rows, notes)


def found_and_lost(first: Diagnosis, other: Diagnosis) -> tuple[FloatArray, FloatArray]:
    """The number of segments that only ``other`` finds, and that only ``first`` does; float64 ``[n_tiou]`` each."""
    found = (first.missed & ~other.missed).sum(axis=0, dtype=np.float64)
    lost = (~first.missed & other.missed).sum(axis=0, dtype=np.float64)
    return found, lost


def kinds_table(name: str, diagnosis: Diagnosis) -> Table:
    """A row per group by rank, 1G to 10G, and one of all: the share of each kind in percent."""
    groups = [*diagnosis.group_shares, diagnosis.shares]
    labels = [*(f"{number}G" for number in range(1, GROUPS + 1)), "all"]
    sizes = [*diagnosis.group_sizes.tolist(), _judged(diagnosis)]
    rows: list[Row] = []
    for label, size, shares in zip(labels, sizes, groups, strict=True):
        figures = [None if (share := shares[kind]) is None else 100 * share for kind in KINDS]
        rows.append((label, size, *figures))
    notes = [
        "A class with G segments has ranks 1 to G in 1G, G + 1 to 2 G in 2G, and so on; the groups are not cumulative.",
        f"Of equally overlapping segments, {_TIES[diagnosis.ties]} decides.",
    ]
    title = f"Kinds of detections by rank (%), {tiou_range(diagnosis.tiou)}"
    columns = ("group", "detections", *map(kind_name, KINDS))
    return Table(f"{title}: {name}" if name else title, columns, rows, notes)


_TIES = {"own": "one of the detection's own label", "file": "the first in the annotations"}


def characteristic_table(results: Mapping[str, Diagnosis]) -> Table:
    """A row per bin of each characteristic: its segments, and mAP_N and missed segments of each result in percent."""
    rows: list[Row] = []
    first = _first(results)
    for name, bins in first.characteristics.items():
        for number, one in enumerate(bins):
            figures: list[Cell] = []
            for diagnosis in results.values():
                of_bin = diagnosis.characteristics[name][number]
                figures += _bin_figures(of_bin, diagnosis.average_map_n)[:: 2 if len(results) > 1 else 1]
            rows.append((f"{name.replace('-', ' ')} {one.name}", _interval(one), one.segments, *figures))
    columns = ["segments with", "from, to", "segments"]
    for name in results:
        columns += ["mAP_N", "relative", "missed"] if len(results) == 1 else [f"{name}: mAP_N", f"{name}: missed"]
    relative = "" if len(results) > 1 else "; relative: over the mAP_N of all"
    notes = [
        f"mAP_N of the segments of a bin alone{relative}. Missed: their share that is missed.",
        "Coverage: length over the video's duration. Length: in seconds. Num instances: segments in the video.",
        "An interval has its upper end, not its lower one. Borders: "
        + ("quantiles of these segments." if first.bins == "quantiles" else f"DETAD's for {first.bins}."),
    ]
    return Table("Easy and hard segments (%)", columns, rows, notes)


def _bin_figures(one: Bin, average: float) -> tuple[Cell, Cell, Cell]:
    if one.sensitivity is None or one.missed is None:
        return None, None, None
    relative = 100 * one.sensitivity / average if average > 0 else None
    return 100 * one.sensitivity, relative, 100 * float(one.missed.mean())


def confusion_table(results: Mapping[str, Diagnosis]) -> Table:
    """The most frequent wrong labels: of the segments of a class, those whose best detection has another label."""
    rows: list[Row] = []
    counts_of: list[int] = []
    for name, one in results.items():
        counts = one.confusion.counts
        for row, column in np.argwhere(counts[:, :-1] - np.diag(counts.diagonal())):
            count = int(counts[row, column])
            share = 100 * count / int(counts[row].sum())
            cells = (one.classes[row], one.classes[column], count, share)
            rows.append(cells if len(results) == 1 else (name, *cells))
            counts_of.append(count)
    order = sorted(range(len(rows)), key=lambda i: -counts_of[i])
    rows = [rows[i] for i in order[:_MOST_CONFUSIONS]]
    first = _first(results)
    columns = ["segments of", "labelled", "segments", "% of the class"]
    if len(results) > 1:
        columns.insert(0, "result")
    notes = [
        "The label of a segment is that of its best-scored detection of any class with a tIoU of at least "
        f"{first.confusion_tiou:.4g}. The {_MOST_CONFUSIONS} most frequent wrong ones."
    ]
    return Table("Segments with a wrong label", columns, rows, notes)


def diagnosis_class_table(results: Mapping[str, Diagnosis]) -> Table:
    """A row per class: its segments, and of each result AP_N, missed segments and the costliest kind of error."""
    first = _first(results)
    rows: list[Row] = []
    for number, label in enumerate(first.classes):
        figures: list[Cell] = []
        for one in results.values():
            gains = {
                kind: 100 * float((one.top_ap_n_without[kind] - one.top_ap_n)[number].mean()) for kind in ERRORS
            }
            most = max(gains, key=lambda kind: gains[kind])
            costliest = f"{kind_name(most)} {gains[most]:+.2f}" if gains[most] > 0 else None
            missed = 100 * float(one.missed_per_class[number].mean())
            figures += [100 * float(one.ap_n[number].mean()), missed, costliest]
        rows.append((label, int(first.segments[number]), *figures))
    columns = ["class", "segments"]
    for name in results:
        prefix = f"{name}: " if len(results) > 1 else ""
        columns += [f"{prefix}AP_N", f"{prefix}missed", f"{prefix}gains most without"]
    notes = ["In percent, means over tIoU. Gains: of AP_N, in percentage points, without one kind of error."]
    return Table(f"Diagnosis per class (%), {tiou_range(first.tiou)}", columns, rows, notes)


def draw_diagnosis(out: Path, results: Mapping[str, Diagnosis]) -> list[tuple[str, str]]:
    """Writes the pictures into a folder; their captions and file names."""
    pictures = _draw_errors(out, results)
    plot_characteristics(results, out / "characteristics.png")
    bins = "Average mAP_N and missed segments, by what is known of the segments; dashed: all segments."
    pictures.append((bins, "characteristics.png"))
    for number, (name, diagnosis) in enumerate(results.items(), start=1):
        file = "confusion.png" if len(results) == 1 else f"confusion-{number}.png"
        _draw_confusion(diagnosis, out / file, name if len(results) > 1 else "")
        of_result = f" in {name}" if len(results) > 1 else ""
        tiou = f"at tIoU {diagnosis.confusion_tiou:.4g}"
        pictures.append((f"The label of the best-scored detection of each segment{of_result}, {tiou}.", file))
    return pictures


def _draw_errors(out: Path, results: Mapping[str, Diagnosis]) -> list[tuple[str, str]]:
    plot_kinds(results, out / "errors.png")
    plot_gains(results, out / "gains.png")
    groups = "Kinds of detections by rank: 1G is as many of each class as it has segments G, the best ones."
    return [(groups, "errors.png"), ("What average mAP_N would gain without each kind of error.", "gains.png")]


def _draw_confusion(diagnosis: Diagnosis, path: Path, name: str) -> None:
    """The confusion matrix; of many classes, those with most wrong labels."""
    counts = diagnosis.confusion.counts
    wrong = counts[:, :-1].sum(axis=1) - counts.diagonal()
    shown = np.sort(np.argsort(-wrong, kind="stable")[:_MOST_CLASSES])
    rest = np.delete(counts[shown, :-1], shown, axis=1).sum(axis=1)
    columns = [counts[shown][:, shown], rest[:, None], counts[shown, -1:]]
    called = [diagnosis.classes[k] for k in shown] + ["another", NOTHING]
    if len(shown) == len(diagnosis.classes):
        del columns[1], called[-2]
    shares = 100 * np.concatenate(columns, axis=1) / counts[shown].sum(axis=1, keepdims=True)
    classes = [diagnosis.classes[k] for k in shown]
    title = "Confusion" + (f": {name}" if name else "")
    plot_confusion(shares, path, classes=classes, called=called, expected={}, title=title)


def diagnosis_json(results: Mapping[str, Diagnosis]) -> dict[str, Any]:
    """Every figure by the name of its result, and the segments that each one finds and misses beside the first."""
    first = _first(results)
    compared = {}
    for name, one in results.items():
        if one is not first:
            found, lost = found_and_lost(first, one)
            compared[name] = {"found": found.tolist(), "lost": lost.tolist()}
    return {"results": {name: one.to_json() for name, one in results.items()}, "segments_beside_first": compared}


def write_diagnosis(out: Path, results: Mapping[str, Diagnosis]) -> Path:
    """Writes ``out``/results.md, results.json, the pictures and the page ``out``/index.html, which is returned."""
    return write_report(
        out,
        title="BiTAD: errors diagnosed",
        introduction=INTRODUCTION,
        tables=diagnosis_tables(results),
        content=diagnosis_json(results),
        pictures=draw_diagnosis(out, results),
        videos=[],
    )


def _ground_truth_notes(results: Mapping[str, Diagnosis]) -> Iterator[str]:
    first = _first(results)
    subsets = " and ".join(f"“{subset}”" for subset in first.subsets)
    yield (
        f"Ground truth: subset {subsets}, {first.videos:,} videos, {int(first.segments.sum()):,} segments of "
        f"{len(first.classes):,} classes. Segments annotated twice count twice."
    )
    if first.segments_dropped:
        yield f"Segments left out (without length, or longer than their video): {first.segments_dropped:,}."
    if first.classes_dropped:
        yield f"Classes without any other segment, not in the means: {shortlist(first.classes_dropped)}."
    for name, one in results.items():
        prefix = f"{name}: " if len(results) > 1 else ""
        if unfound := [
            label for label, kinds in zip(one.classes, one.class_kinds, strict=True) if not kinds.any()
        ]:
            yield f"{prefix}Classes without detections: {shortlist(unfound)}."
        for what, strangers in {
            "Detections of classes without ground truth, ignored": one.detections_by_unknown_class,
            "Detections in videos without ground truth, which are background": one.detections_by_unknown_video,
        }.items():
            if strangers:
                yield f"{prefix}{what}: {sum(strangers.values()):,} ({shortlist(strangers)})."


def _judged(diagnosis: Diagnosis) -> int:
    return int(diagnosis.group_sizes.sum())


def _first(results: Mapping[str, Diagnosis]) -> Diagnosis:
    return next(iter(results.values()))


def _columns(results: Mapping[str, Diagnosis]) -> list[str]:
    """The results' names, and those of the differences of all but the first to the first."""
    first, *others = results
    return [first, *others, *(f"{name} − {first}" for name in others)]


def _compared(figures: list[float | None] | list[float]) -> list[Cell]:
    """Figures, and the differences of all but the first to the first."""
    first, *others = figures
    differences = [None if first is None or other is None else f"{other - first:+.2f}" for other in others]
    return [*figures, *differences]


def _interval(one: Bin) -> str:
    return f"{one.low:.4g} to {one.high:.4g}" if np.isfinite(one.high) else f"above {one.low:.4g}"
