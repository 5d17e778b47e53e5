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
from bitad.reports.measure_tables import kind_name, tiou_range
from bitad.reports.page import write_report
from bitad.reports.plots import plot_characteristics, plot_confusion, plot_gains, plot_kinds
from bitad.reports.tables import Cell, Row, Table
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


# Diagnoses by the name of the result and by seed; of what has no seeds, one diagnosis under any key.
Results = Mapping[str, Mapping[str, Diagnosis]]


def diagnosis_tables(results: Results, *, per_class: bool = True) -> list[Table]:
    """The tables of results by name, all against the same ground truth and at the same tIoU thresholds.

    Figures are means over seeds. The first result is that with which the others are compared.
    """
    tables = [overview_table(results), *_comparing_tables(results)]
    tables += [
        kinds_table(name if len(results) > 1 else "", list(seeds.values())) for name, seeds in results.items()
    ]
    tables += [characteristic_table(results), confusion_table(results)]
    if per_class:
        tables.append(diagnosis_class_table(results))
    return [table for table in tables if table.rows]


def _comparing_tables(results: Results) -> list[Table]:
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
    found = {name: {"": diagnose(ground_truth, detections, tiou=tiou)} for name, detections in results.items()}
    tables = [*_comparing_tables(found), characteristic_table(found), confusion_table(found)]
    shown = [table for table in tables if table.rows]
    return Section(shown, _draw_errors(out, _first_seeds(found)), diagnosis_json(found))


def overview_table(results: Results) -> Table:
    """A row per result and seed: mAP, mAP_N, recall, and missed segments, in percent."""
    rows: list[Row] = []
    for name, one in _every(results).items():
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
    if any(len(seeds) > 1 for seeds in results.values()):
        notes.append("The other tables have means over seeds, the pictures the first seed.")
    best = ("mAP", "mAP_N", "best 10G", "recall") if len(rows) > 1 else ()
    return Table(f"Diagnosis (%), {tiou_range(first.tiou)}", columns, rows, notes, best=best)


def gain_table(results: Results) -> Table:
    """A row per kind of error: how much mAP_N would gain without it, by result, and differences to the first."""
    rows: list[Row] = []
    for kind in (*ERRORS, "all"):
        gains = [
            100 * _mean([float(one.gains[kind].mean()) for one in seeds.values()]) for seeds in results.values()
        ]
        rows.append((kind_name(kind), *_compared(gains)))
    notes = [
        "Gains of average mAP_N (best 10G) in percentage points if all errors of one kind were deleted. They need not "
        "add up. Without all errors, mAP_N is the recall."
    ]
    if len(results) > 1:
        notes.append("A negative difference: the kind costs less than in the first result.")
    return Table("Gain without each kind of error (points)", ("kind", *_columns(results)), rows, notes)


def best_group_table(results: Results) -> Table:
    """A row per kind: its share of the best G detections of each class, by result, and differences to the first."""
    rows: list[Row] = []
    for kind in KINDS:
        shares = [_percent([one.group_shares[0][kind] for one in seeds.values()]) for seeds in results.values()]
        rows.append((kind_name(kind), *_compared(shares)))
    notes = ["As many detections of each class as it has segments G: a perfect detector has 100 % right."]
    return Table("The best G detections (%)", ("kind", *_columns(results)), rows, notes)


def found_table(results: Results) -> Table:
    """A row per result after the first: segments that only it, or only the first, finds; means over thresholds.

    Seeds are compared one by one; a result with other seeds is left out, unless both have only one.
    """
    (name, first), *others = results.items()
    rows: list[Row] = []
    for other, seeds in others:
        if seeds.keys() == first.keys():
            pairs = [found_and_lost(one, seeds[seed]) for seed, one in first.items()]
        elif len(seeds) == len(first) == 1:
            pairs = [found_and_lost(*first.values(), *seeds.values())]
        else:
            continue
        found, lost = (_mean([float(pair[side].mean()) for pair in pairs]) for side in (0, 1))
        rows.append((other, found, lost, found - lost, int(_first(results).segments.sum())))
    columns = ("result", f"missed by {name}, found", f"found by {name}, missed", "difference", "of segments")
    notes = ["Numbers of segments, means over tIoU."]
    return Table(f"Segments found and missed, compared with {name}", columns, rows, notes)


def found_and_lost(first: Diagnosis, other: Diagnosis) -> tuple[FloatArray, FloatArray]:
    """The number of segments that only ``other`` finds, and that only ``first`` does; float64 ``[n_tiou]`` each."""
    found = (first.missed & ~other.missed).sum(axis=0, dtype=np.float64)
    lost = (~first.missed & other.missed).sum(axis=0, dtype=np.float64)
    return found, lost


def kinds_table(name: str, seeds: Sequence[Diagnosis]) -> Table:
    """A row per group by rank, 1G to 10G, and one of all: the share of each kind in percent."""
    labels = [*(f"{number}G" for number in range(1, GROUPS + 1)), "all"]
    sizes = np.mean([[*one.group_sizes.tolist(), _judged(one)] for one in seeds], axis=0).round().astype(int)
    groups = [[*one.group_shares, one.shares] for one in seeds]
    rows: list[Row] = []
    for row, (label, size) in enumerate(zip(labels, sizes.tolist(), strict=True)):
        rows.append((label, size, *(_percent([of_seed[row][kind] for of_seed in groups]) for kind in KINDS)))
    notes = [
        "A class with G segments has ranks 1 to G in 1G, G + 1 to 2 G in 2G, and so on; the groups are not cumulative.",
        f"Of equally overlapping segments, {_TIES[seeds[0].ties]} decides.",
    ]
    title = f"Kinds of detections by rank (%), {tiou_range(seeds[0].tiou)}"
    columns = ("group", "detections", *map(kind_name, KINDS))
    return Table(f"{title}: {name}" if name else title, columns, rows, notes)


_TIES = {"own": "one of the detection's own label", "file": "the first in the annotations"}


def characteristic_table(results: Results) -> Table:
    """A row per bin of each characteristic: its segments, and mAP_N and missed segments of each result in percent."""
    rows: list[Row] = []
    first = _first(results)
    for name, bins in first.characteristics.items():
        for number, one in enumerate(bins):
            figures: list[Cell] = []
            for seeds in results.values():
                of_bin = [diagnosis.characteristics[name][number] for diagnosis in seeds.values()]
                precision = _percent([each.sensitivity for each in of_bin])
                average = _mean([diagnosis.average_map_n for diagnosis in seeds.values()])
                relative = None if precision is None or average <= 0 else precision / average
                missed = _percent([None if each.missed is None else float(each.missed.mean()) for each in of_bin])
                figures += [precision, missed] if len(results) > 1 else [precision, relative, missed]
            rows.append((f"{name.replace('-', ' ')} {one.name}", _interval(one), one.segments, *figures))
    columns = ["segments with", "from, to", "segments"]
    for name in results:
        columns += ["mAP_N", "relative", "missed"] if len(results) == 1 else [f"{name}: mAP_N", f"{name}: missed"]
    relative_note = "" if len(results) > 1 else "; relative: over the mAP_N of all"
    notes = [
        f"mAP_N of the segments of a bin alone{relative_note}. Missed: their share that is missed.",
        "Coverage: length over the video's duration. Length: in seconds. Num instances: segments in the video.",
        "An interval has its upper end, not its lower one. Borders: "
        + ("quantiles of these segments." if first.bins == "quantiles" else f"DETAD's for {first.bins}."),
    ]
    return Table("Easy and hard segments (%)", columns, rows, notes)


def confusion_table(results: Results) -> Table:
    """The most frequent wrong labels: of the segments of a class, those whose best detection has another label."""
    first = _first(results)
    found: list[tuple[float, Row]] = []
    for name, seeds in results.items():
        counts = np.mean([one.confusion.counts for one in seeds.values()], axis=0)
        for row, column in np.argwhere(counts[:, :-1] - np.diag(counts.diagonal())):
            count = float(counts[row, column])
            shown = count if len(seeds) > 1 else int(count)
            cells = (first.classes[row], first.classes[column], shown, 100 * count / float(counts[row].sum()))
            found.append((count, cells if len(results) == 1 else (name, *cells)))
    found.sort(key=lambda pair: -pair[0])
    columns = ["segments of", "labelled", "segments", "% of the class"]
    if len(results) > 1:
        columns.insert(0, "result")
    notes = [
        "The label of a segment is that of its best-scored detection of any class with a tIoU of at least "
        f"{first.confusion_tiou:.4g}. The {_MOST_CONFUSIONS} most frequent wrong ones."
    ]
    return Table("Segments with a wrong label", columns, [row for _, row in found[:_MOST_CONFUSIONS]], notes)


def diagnosis_class_table(results: Results) -> Table:
    """A row per class: its segments, and of each result AP_N, missed segments and the costliest kind of error."""
    first = _first(results)
    rows: list[Row] = []
    for number, label in enumerate(first.classes):
        figures: list[Cell] = []
        for seeds in results.values():
            gains = {
                kind: 100 * _mean([_gain_of_class(one, kind, number) for one in seeds.values()]) for kind in ERRORS
            }
            most = max(gains, key=lambda kind: gains[kind])
            figures += [
                100 * _mean([float(one.ap_n[number].mean()) for one in seeds.values()]),
                100 * _mean([float(one.missed_per_class[number].mean()) for one in seeds.values()]),
                f"{kind_name(most)} {gains[most]:+.2f}" if gains[most] > 0 else None,
            ]
        rows.append((label, int(first.segments[number]), *figures))
    columns = ["class", "segments"]
    for name in results:
        prefix = f"{name}: " if len(results) > 1 else ""
        columns += [f"{prefix}AP_N", f"{prefix}missed", f"{prefix}gains most without"]
    notes = ["In percent, means over tIoU. Gains: of AP_N, in percentage points, without one kind of error."]
    return Table(f"Diagnosis per class (%), {tiou_range(first.tiou)}", columns, rows, notes)


def _gain_of_class(one: Diagnosis, kind: str, number: int) -> float:
    return float((one.top_ap_n_without[kind] - one.top_ap_n)[number].mean())


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


def diagnosis_json(results: Results) -> dict[str, Any]:
    """Every figure by the name of its result and seed, and the segments that each finds and misses beside the first."""
    first = _first(results)
    every = _every(results)
    compared = {}
    for name, one in every.items():
        if one is not first:
            found, lost = found_and_lost(first, one)
            compared[name] = {"found": found.tolist(), "lost": lost.tolist()}
    return {
        "results": {name: one.to_json() for name, one in every.items()},
        "segments_compared_with_first": compared,
    }


def write_diagnosis(out: Path, results: Results) -> Path:
    """Writes ``out``/results.md, results.json, the pictures and the page ``out``/index.html, which is returned."""
    return write_report(
        out,
        title="BiTAD: errors diagnosed",
        introduction=INTRODUCTION,
        tables=diagnosis_tables(results),
        content=diagnosis_json(results),
        pictures=draw_diagnosis(out, _first_seeds(results)),
        videos=[],
    )


def _ground_truth_notes(results: Results) -> Iterator[str]:
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
    every = _every(results)
    for name, one in every.items():
        prefix = f"{name}: " if len(every) > 1 else ""
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


def _first(results: Results) -> Diagnosis:
    return next(iter(_first_seeds(results).values()))


def _first_seeds(results: Results) -> dict[str, Diagnosis]:
    return {name: next(iter(seeds.values())) for name, seeds in results.items()}


def _every(results: Results) -> dict[str, Diagnosis]:
    """Each diagnosis by the name of its result, and its seed where there are several."""
    every = {}
    for name, seeds in results.items():
        for seed, one in seeds.items():
            every[name if len(seeds) == 1 else f"{name}, seed {seed}"] = one
    return every


def _mean(figures: Sequence[float]) -> float:
    return float(np.mean(figures))


def _percent(figures: Sequence[float | None]) -> float | None:
    """The mean in percent; None if one is None."""
    known = [figure for figure in figures if figure is not None]
    return 100 * _mean(known) if known and len(known) == len(figures) else None


def _columns(results: Results) -> list[str]:
    """The results' names, and those of the differences of all but the first to the first."""
    first, *others = results
    return [first, *others, *(f"{name} − {first}" for name in others)]


def _compared(figures: Sequence[float | None]) -> list[Cell]:
    """Figures, and the differences of all but the first to the first."""
    first, *others = figures
    differences = [None if first is None or other is None else f"{other - first:+.2f}" for other in others]
    return [*figures, *differences]


def _interval(one: Bin) -> str:
    return f"{one.low:.4g} to {one.high:.4g}" if np.isfinite(one.high) else f"above {one.low:.4g}"
