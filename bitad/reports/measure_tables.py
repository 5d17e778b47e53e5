"""Tables of measures: mAP, recall, per-frame mAP, F1@k, intervals, ensembles, boundary errors, directions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import get_args

from bitad.config.names import FrameRule, MapRule, MergeMethod
from bitad.evaluation.average_recall import AverageRecall
from bitad.evaluation.bootstrap import LEVEL, Bootstrap, Estimate
from bitad.evaluation.boundaries import Figure, ResultBoundaries, SideErrors
from bitad.evaluation.direction_sensitivity import (
    KEPT,
    LEARNT,
    MIN_SEGMENTS,
    MIN_VIDEOS,
    ClassSensitivity,
    Sensitivity,
    Verdict,
    contradictions,
)
from bitad.evaluation.ensembles import MAX_CHOICES, EnsembleResult
from bitad.evaluation.mean_average_precision import Evaluation
from bitad.evaluation.per_frame import FrameEvaluation
from bitad.evaluation.segmentation import SegmentalF1
from bitad.reports.tables import Cell, Difference, Row, Table, printed
from bitad.runtime.log import shortlist

_RULES: dict[MapRule, tuple[str, str]] = {
    "activitynet": (
        "ActivityNet's rule",
        "each detection, best first, matches the free segment with the highest tIoU; AP is interpolated.",
    ),
    "thumos-kit": (
        "the THUMOS'14 kit's rule",
        "each segment, in order, matches the free detection with the highest tIoU; AP is not interpolated.",
    ),
}


def evaluation_table(
    evaluations: Mapping[str, Evaluation],
    *,
    title: str | None = None,
    counts: bool = True,
    bootstrap: Bootstrap | None = None,
) -> Table:
    """A row per result: mAP in percent at each tIoU, and the average, with :func:`evaluation_notes`.

    With a bootstrap of the same results, each figure has its interval.
    """
    tiou = _common_tiou(evaluations)
    rows: list[Row] = []
    for name, evaluation in evaluations.items():
        if bootstrap is not None:
            rows.append((name, *estimates(bootstrap, name)))
            continue
        per_tiou = (100 * evaluation.map_per_tiou).tolist()
        rows.append((name, *per_tiou, 100 * evaluation.average_map))
    columns = ("result", *(f"{threshold:.4g}" for threshold in tiou), "average")
    if title is None:
        rules = dict.fromkeys(_RULES[evaluation.rule][0] for evaluation in evaluations.values())
        title = f"mAP (%) by {' and '.join(rules)}"
    about = () if bootstrap is None else (bootstrap_note(bootstrap),)
    notes = ("The columns are tIoU thresholds.", *about, *evaluation_notes(evaluations, counts=counts))
    return Table(title, columns, rows, notes, best=columns[1:] if len(rows) > 1 else ())


def class_table(
    evaluations: Mapping[str, Evaluation],
    *,
    kinds: Mapping[str, str] | None = None,
    bootstrap: Bootstrap | None = None,
) -> Table:
    """A row per class, sorted by kind: its segments, and its AP in percent in each result, mean over tIoU.

    With a bootstrap of the same results, each figure has its interval.
    """
    tiou = _common_tiou(evaluations)
    segments: dict[str, int] = {}
    for evaluation in evaluations.values():
        segments |= dict(zip(evaluation.classes, evaluation.segments.tolist(), strict=True))
    for evaluation in evaluations.values():
        for name in evaluation.classes_without_ground_truth:
            segments.setdefault(name, 0)
    order = list(segments)
    if kinds is not None:
        ranks = {kind: rank for rank, kind in enumerate(dict.fromkeys(kinds.values()))}
        order.sort(key=lambda name: ranks.get(kinds.get(name, ""), len(ranks)))
    precision: list[Mapping[str, float | Estimate]] = [each.per_class for each in evaluations.values()]
    if bootstrap is not None:
        precision = [bootstrap.results[name].per_class for name in evaluations]
    rows: list[Row] = []
    for name in order:
        figures = [each[name] * 100 if name in each else "no ground truth" for each in precision]
        kind: Row = () if kinds is None else (kinds.get(name),)
        rows.append((name, *kind, segments[name], *figures))
    columns = ("class", *(() if kinds is None else ("kind",)), "segments", *evaluations)
    return Table(f"AP per class (%), {tiou_range(tiou)}", columns, rows)


def recall_table(results: Mapping[str, AverageRecall]) -> Table:
    """A row per result, all of one rule and of the same options: average recall in percent, and its AUC."""
    rows: list[Row] = []
    for name, result in results.items():
        rows.append((name, *(100 * value for value in result.reported.values()), 100 * result.auc))
    first = next(iter(results.values()))
    columns = ("result", *(f"AR@{number}" for number in first.reported), "AUC")
    whose = "OpenTAD's" if first.rule == "opentad" else "ActivityNet's"
    notes = _notes({name: _recall_facts(result) for name, result in results.items()})
    best = columns[1:] if len(rows) > 1 else ()
    return Table(f"Average recall (%) of proposals by {whose} definition", columns, rows, notes, best)


def _recall_facts(result: AverageRecall) -> Iterator[str]:
    most = result.max_proposals
    yield (
        f"AR@N: recall at {tiou_range(result.tiou)}, of an average of N proposals in a video, which are a share of "
        f"each video's list. AUC: area under AR up to N = {most}, over {most}."
    )
    yield (
        "Labels are ignored, and a proposal may recall several segments."
        + (" The curve has 100 points." if result.rule == "activitynet" else "")
    )
    subsets = " and ".join(f"“{subset}”" for subset in result.subsets)
    videos, with_segments = _count(result.videos, "video"), f"{result.videos_with_segments:,} with segments"
    yield f"Ground truth: subset {subsets}, {videos}, {with_segments}, {_count(result.segments, 'segment')}."
    yield f"{_count(result.proposals, 'proposal')}, of which {result.proposals_used:,} are used at N = {most}."
    if result.segments_dropped:
        yield f"{_count(result.segments_dropped, 'ground-truth segment')} left out: empty or annotated twice."
    if result.ambiguous:
        yield f"{_count(result.ambiguous, 'Ambiguous interval')} of the ground truth counted as segments."
    if missing := result.videos_without_proposal:
        yield f"{_count(len(missing), 'video')} without any proposal: {shortlist(missing)}."
    if result.proposals_elsewhere:
        number = _count(result.proposals_elsewhere, "proposal")
        yield f"{number} in videos without segments: not used, but part of the average number."


_FRAME_RULES: dict[FrameRule, tuple[str, str]] = {
    "dense": (
        "on every step (MultiTHUMOS' definition)",
        "Frames: every step; a class happens where start < time < end.",
    ),
    "charades-25": (
        "on 25 points a video (Charades' definition)",
        "Frames: 25 points a video, from its start; a class happens where start <= time <= end.",
    ),
    "sampled-25": (
        "on 25 steps a video (MS-TCT's approximation of Charades' definition)",
        "Frames: of videos with more than 25 steps, every s-th from the second one; a class happens where start < time "
        "< end. It is not Charades' official figure.",
    ),
}


def frame_table(results: Mapping[str, FrameEvaluation]) -> Table:
    """A row per result, all of one rule: per-frame mAP in percent, as several means over classes."""
    rows: list[Row] = []
    for name, result in results.items():
        means = (
            result.map_present_classes,
            result.map_all_classes,
            result.map_nonzero_classes,
            result.weighted_map,
        )
        rows.append((name, *(100 * mean for mean in means)))
    columns = ("result", "mAP", "all classes", "AP above 0", "weighted")
    where = _FRAME_RULES[next(iter(results.values())).rule][0]
    notes = _notes({name: _frame_facts(result) for name, result in results.items()})
    return Table(f"Per-frame mAP (%) {where}", columns, rows, notes, best=columns[1:] if len(rows) > 1 else ())


def _frame_facts(result: FrameEvaluation) -> Iterator[str]:
    yield _FRAME_RULES[result.rule][1]
    yield (
        "mAP: mean AP, not interpolated, of the classes that happen in some frame. All classes: others count "
        "as 0 (super-events, TGM, MS-TCT). AP above 0: mean of those only (PDAN). Weighted: by number of frames."
    )
    subsets = " and ".join(f"“{subset}”" for subset in result.subsets)
    frames = f"{_count(result.frames, 'frame')} of {_count(result.videos, 'video')}"
    yield f"Ground truth: subset {subsets}, {frames}, {_count(len(result.classes), 'class')}."
    sampled = "the score of a class is the highest of its detections that contain the frame"
    if result.fps is not None:
        yield f"Detections, sampled {result.fps:g} times a second: {sampled}."
    elif result.steps is not None:
        yield f"Detections, sampled at {_count(result.steps, 'step')} a video: {sampled}."
    elif result.of_detections:
        yield f"Detections: {sampled}."
    absent = [name for name, count in zip(result.classes, result.positives, strict=True) if not count]
    if absent:
        yield f"{_count(len(absent), 'class')} in no frame: {shortlist(absent)}."
    if short := result.videos_left_out:
        yield f"{_count(len(short), 'video')} of at most 25 steps left out: {shortlist(short)}."
    if missing := result.videos_without_scores:
        what = "any detection" if result.of_detections else "scores, which rank last"
        yield f"{_count(len(missing), 'video')} without {what}: {shortlist(missing)}."
    if strangers := result.elsewhere:
        ignored = f"{_count(len(strangers), 'video')} not in the ground truth, ignored"
        yield f"Detections in {ignored}: {shortlist(strangers)}."


def frame_class_table(results: Mapping[str, FrameEvaluation]) -> Table:
    """A row per class: its number of frames, and its AP in percent in each result."""
    rows: list[Row] = []
    for name in dict.fromkeys(name for result in results.values() for name in result.classes):
        frames = 0
        figures: list[Cell] = []
        for result in results.values():
            place = result.classes.index(name) if name in result.classes else None
            if place is None or not result.positives[place]:
                figures.append("in no frame")
            else:
                frames = max(frames, int(result.positives[place]))
                figures.append(100 * float(result.ap[place]))
        rows.append((name, frames, *figures))
    return Table("Per-frame AP per class (%)", ("class", "frames", *results), rows)


def segmental_table(results: Mapping[str, SegmentalF1]) -> Table:
    """Two rows per result: F1 at each overlap in percent, of all videos and as their mean, and the edit score."""
    rows: list[Row] = []
    for name, result in results.items():
        rows.append((name, "all videos together", *(100 * result.f1).tolist(), 100 * result.edit))
        rows.append((name, "mean of videos", *(100 * result.f1_mean_of_videos).tolist(), 100 * result.edit))
    columns = ("result", "F1 of", *_f1_columns(results), "edit")
    notes = _notes({name: _segmental_facts(result) for name, result in results.items()})
    return Table("F1@k and edit score (%), action segmentation's (Lea et al. 2017)", columns, rows, notes)


def _f1_columns(results: Mapping[str, SegmentalF1]) -> list[str]:
    return [f"F1@{100 * overlap:g}" for overlap in next(iter(results.values())).overlaps]


def _segmental_facts(result: SegmentalF1) -> Iterator[str]:
    yield (
        "F1@k: a detection is right if the segment of its label that it overlaps most has an IoU of k percent, and no "
        "other is right by that. F1 of all videos together: MS-TCN's code and later work; mean of videos: Lea et al.'s "
        "code."
    )
    yield "Edit: 1 minus the edit distance of the sequences of labels over the longer one's length, mean of videos."
    scores = result.min_scores.values()
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    values = f"{low:.4g}" if low == high else f"{low:.2f} to {high:.2f}"
    least = {
        "arguments": f"a score of at least {values}",
        "detections": f"at least the score that their file states for their class ({values})",
        "default": f"a score of at least {values}, as their file states none",
    }[result.min_scores_of]
    segments = _count(int(result.detected.sum()), "segment")
    yield f"{_count(result.detections, 'detection')} with {least}: {segments} without overlap; background is ignored."
    subsets = " and ".join(f"“{subset}”" for subset in result.subsets)
    videos, true = _count(len(result.edits), "video"), _count(int(result.segments.sum()), "segment")
    yield f"Ground truth: subset {subsets}, {videos}, {true}."
    if result.elsewhere:
        yield f"{_count(result.elsewhere, 'detection')} in videos not in the ground truth, ignored."


def segmental_class_table(results: Mapping[str, SegmentalF1]) -> Table:
    """A row per class and result: its number of segments, and its F1 at each overlap in percent."""
    rows: list[Row] = []
    for name in dict.fromkeys(name for result in results.values() for name in result.classes):
        for source, result in results.items():
            if name in result.classes:
                place = result.classes.index(name)
                counts = (int(table[:, place].sum()) for table in (result.segments, result.detected))
                rows.append((name, source, *counts, *(100 * result.f1_per_class[place]).tolist()))
    columns = ("class", "result", "segments", "detected", *_f1_columns(results))
    return Table("F1@k per class (%), all videos together", columns, rows)


def estimates(bootstrap: Bootstrap, name: str) -> list[Estimate]:
    """A result's mAP in percent at each tIoU, and the average, with intervals."""
    result = bootstrap.results[name]
    return [figure * 100 for figure in (*result.map_per_tiou, result.average_map)]


def paired_table(bootstrap: Bootstrap) -> Table:
    """A row per result: its mAP minus the baseline's in percent points at each tIoU, and the average."""
    rows: list[Row] = []
    for name, result in bootstrap.differences.items():
        figures = [figure * 100 for figure in (*result.map_per_tiou, result.average_map)]
        rows.append((name, *(Difference(each.value, each.low, each.high) for each in figures)))
    columns = ("result", *(f"{threshold:.4g}" for threshold in bootstrap.tiou), "average")
    notes = [
        "Paired: both results of a difference are computed on the same resamples. Where an interval contains 0, the "
        "choice of the videos and seeds alone may explain the difference."
    ]
    if len(rows) > 1:
        notes.append(f"Each interval is for one comparison; among {len(rows)}, one may exclude 0 by chance.")
    return Table(f"mAP (%) minus that of {bootstrap.baseline}, paired", columns, rows, notes)


def bootstrap_note(bootstrap: Bootstrap) -> str:
    """What the intervals are of."""
    drawn, one_seed = f"over {_count(bootstrap.videos, 'video')}", ""
    if max(bootstrap.seeds.values()) > 1:
        drawn += " and the seeds"
        if alone := [name for name, count in bootstrap.seeds.items() if count == 1]:
            one_seed = f" Of one seed, so only over videos: {shortlist(alone)}."
    return (
        f"In brackets: the {100 * LEVEL:.0f} % interval {drawn}, by {bootstrap.resamples:,} resamples of a bootstrap."
        + one_seed
    )


def ensemble_table(
    results: Sequence[EnsembleResult], *, tiou: Sequence[float], method: MergeMethod, resamples: int | None
) -> Table:
    """A row per ensemble: mAP in percent, the gain over its members, and the difference to another of its size."""

    def signed(figure: Estimate | float | None) -> Cell:
        if isinstance(figure, Estimate):
            return Difference(100 * figure.value, 100 * figure.low, 100 * figure.high)
        return None if figure is None else f"{100 * figure:+.2f}"

    rows: list[Row] = []
    for one in results:
        figures = [figure * 100 for figure in (*one.map_per_tiou, one.average_map)]
        less = signed(one.difference)
        rows.append((one.name, *figures, signed(one.gain), less, one.compared, one.choices))
    columns = (
        "networks",
        *(f"{threshold:.4g}" for threshold in tiou),
        "average",
        "gain over members",
        "difference",
        "to",
        "choices",
    )
    notes = [
        "Means over choices of networks: every combination of seeds. Gain over members: the average minus the mean of "
        "the members' averages. Difference: the average minus that of the first row of as many networks."
    ]
    if some := [f"{one.name} {one.possible:,}" for one in results if one.choices < one.possible]:
        notes.append(f"Of more choices than {MAX_CHOICES}, so many are drawn at random: {', '.join(some)}.")
    if resamples is not None:
        notes.append(
            f"In brackets: the {100 * LEVEL:.0f} % interval over the videos and the seeds, by {resamples:,} resamples "
            "of a bootstrap; differences and gains are paired."
        )
        if alone := [one.name for one in results if one.possible == 1]:
            notes.append(f"Of one choice, so only over videos: {shortlist(alone)}.")
    return Table(f"Late fusion of several networks by {method}, mAP (%)", columns, rows, notes)


def boundary_table(results: Mapping[str, ResultBoundaries], *, tiou: float, resamples: int | None) -> Table:
    """Two rows per result, its starts and its ends: their errors in milliseconds."""
    rows: list[Row] = []
    for name, one in results.items():
        errors = one.overall
        found = 100 * errors.matched / (one.seeds * errors.segments)
        starts, ends = one.less or (None, None)
        rows.append((f"{name}, starts", found, *_side(errors.start), _milliseconds(starts, signed=True), None))
        both = (ends, errors.difference)
        rows.append(
            (f"{name}, ends", found, *_side(errors.end), *(_milliseconds(each, signed=True) for each in both))
        )
    less = f"− {next(iter(results))}"
    columns = ("result", "matched (%)", "mean |error|", "median |error|", "mean", "median", less, "ends − starts")
    notes = [
        f"Of ground-truth segments that a detection matches at tIoU {tiou:g}, over all classes and seeds. An error is "
        "the detection's time minus the segment's: a positive one is late. The last two columns are differences of the "
        "mean |error|: to the first result, and ends minus starts, which is negative where ends are found better."
    ]
    if resamples is not None:
        notes.append(
            f"In brackets: the {100 * LEVEL:.0f} % interval over the videos and the seeds, by {resamples:,} resamples "
            "of a bootstrap."
        )
    return Table("Errors of starts and ends (milliseconds)", columns, rows, notes)


def boundary_class_table(results: Mapping[str, ResultBoundaries]) -> Table:
    """A row per class: the mean absolute errors of its starts and ends in milliseconds, in each result."""
    classes = next(iter(results.values())).per_class
    rows: list[Row] = []
    for label in classes:
        row: list[Cell] = [label, classes[label].segments]
        for one in results.values():
            errors = one.per_class[label]
            row += [
                _milliseconds(errors.start.mean_absolute),
                _milliseconds(errors.end.mean_absolute),
                _milliseconds(errors.difference, signed=True),
            ]
        rows.append(tuple(row))
    of_each = (f"{name}, {what}" for name in results for what in ("starts", "ends", "ends − starts"))
    return Table("Mean |error| of starts and ends per class (milliseconds)", ("class", "segments", *of_each), rows)


def _side(errors: SideErrors) -> list[Cell]:
    absolute = (errors.mean_absolute, errors.median_absolute)
    return [
        *map(_milliseconds, absolute),
        *(_milliseconds(figure, signed=True) for figure in (errors.mean, errors.median)),
    ]


def _milliseconds(figure: Figure, *, signed: bool = False) -> Cell:
    if isinstance(figure, Estimate):
        made = figure * 1000
        return Difference(made.value, made.low, made.high) if signed else made
    if figure is None:
        return None
    return f"{1000 * figure:+.1f}" if signed else round(1000 * figure, 1)


def sensitivity_table(
    sensitivity: Sensitivity,
    *,
    known: Mapping[str, str] | None = None,
    reversals: Sequence[Mapping[str, str]] = (),
) -> Table:
    """A row per class, by verdict.

    Args:
        known: the kinds of classes, for a column and a note on the agreement.
        reversals: what ``data.reversal`` states in the runs, for a note on contradictions.
    """
    classes = sorted(sensitivity.classes, key=lambda one: get_args(Verdict).index(one.verdict))
    rows: list[Row] = []
    for one in classes:
        truth: Row = () if known is None else (known.get(one.label),)
        rows.append(
            (
                one.label,
                one.verdict,
                *truth,
                one.segments,
                100 * one.forward,
                100 * one.backward,
                100 * one.reversed_playback,
                None if one.kept is None else 100 * one.kept,
                one.called,
                100 * one.called_share,
                _evidence(one),
            )
        )
    columns = [
        "class",
        "verdict",
        "segments",
        "F",
        "B",
        "F reversed",
        "kept",
        "F then predicts",
        "share",
        "evidence",
    ]
    if known is not None:
        columns.insert(2, "known")
    tiou, (forward, backward) = sensitivity.tiou, sensitivity.networks
    notes = [
        "In percent. F, B and F reversed (F on reversed playback, with the original labels): AP, "
        f"{tiou_range(tiou)}, of {_count(forward, 'network')} F and {_count(backward, 'network')} B.",
        "Kept: F reversed over the mean of F and B.",
        "F then predicts: the most frequent label of the best-scored detections at tIoU 0.5 with the segments of the "
        "class, on reversed playback; share: its frequency.",
        "Swapping: F mostly predicts another class, and this class for that one. Symmetric: F mostly predicts the "
        f"class itself and keeps {100 * KEPT:.0f} percent. Irreversible: neither. Not learnt: the mean AP of F and B "
        f"is below {100 * LEARNT:.0f} percent.",
        f"Evidence: what decides, with its {100 * LEVEL:.0f} % interval over videos and networks. Undecided: the "
        f"interval contains the border, or fewer than {MIN_SEGMENTS} segments or {MIN_VIDEOS} videos (swapping needs "
        f"as many of the other class). The borders: swap margin and own-label margin 0, kept {100 * KEPT:.0f}, learnt "
        f"{100 * LEARNT:.0f}.",
        "Swap margin: in each of the two classes, the share of the other's label minus the largest share of any other "
        "label; the lesser of both. Own-label margin: the same for the class's own label.",
    ]
    known = known or {}
    undecided = [one.label for one in sensitivity.classes if one.label in known and one.verdict == "undecided"]
    judged = [one for one in sensitivity.classes if one.label in known and one.verdict != "undecided"]
    wrong = []
    for one in judged:
        if one.verdict != known[one.label]:
            wrong.append(f"{one.label} (known as {known[one.label]}, judged {one.verdict})")
    if judged:
        but = f"; not for {', '.join(wrong)}" if wrong else ""
        agreed = f"{len(judged) - len(wrong)} of {_count(len(judged), 'class')}"
        left = f" Undecided: {', '.join(undecided)}." if undecided else ""
        notes.append(f"The verdict agrees with what is known for {agreed}{but}.{left}")
    for reversal in reversals:
        if found := contradictions(sensitivity, reversal):
            notes.append(
                f"What reversed windows teach (data.reversal) contradicts the verdict on {', '.join(found)}."
            )
    return Table("Direction sensitivity per class", columns, rows, notes)


def _evidence(one: ClassSensitivity) -> str:
    if one.evidence is None:
        return "too few segments or videos"
    return f"{one.evidence.quantity} {printed(one.evidence.estimate * 100)}"


def kind_name(kind: str) -> str:
    """What a kind of detections (:data:`bitad.evaluation.diagnosis.KINDS`) is called: "right", "wrong label"."""
    return {"true_positive": "right", "all": "all errors"}.get(kind, kind.replace("_", " "))


def evaluation_notes(evaluations: Mapping[str, Evaluation], *, counts: bool = True) -> list[str]:
    """Sentences on the rule, the data, and what was left out; each once, with the names of its results unless all."""
    return _notes({name: _facts(evaluation, counts) for name, evaluation in evaluations.items()})


def _notes(facts_of: Mapping[str, Iterable[str]]) -> list[str]:
    """The facts of several results, each once, with the names of its results unless all."""
    facts: dict[str, list[str]] = {}
    for name, own in facts_of.items():
        for fact in own:
            facts.setdefault(fact, []).append(name)
    notes = []
    for fact, names in facts.items():
        others = [name for name in facts_of if name not in names]
        if not others:
            notes.append(fact)
        elif len(others) <= 2 < len(names):
            notes.append(f"All but {' and '.join(others)}: {fact}")
        else:
            notes.append(f"{shortlist(names, 12)}: {fact}")
    return notes


def _facts(evaluation: Evaluation, counts: bool) -> Iterator[str]:
    rule, description = _RULES[evaluation.rule]
    yield f"By {rule}: {description}"
    subsets = " and ".join(f"“{subset}”" for subset in evaluation.subsets)
    segments = _count(int(evaluation.segments.sum()), "segment")
    classes = _count(len(evaluation.classes), "class")
    yield f"Ground truth: subset {subsets}, {_count(evaluation.videos, 'video')}, {segments} of {classes}."
    if counts:
        yield f"{_count(evaluation.predictions, 'prediction')}."
    if evaluation.segments_dropped:
        dropped = _count(evaluation.segments_dropped, "ground-truth segment")
        yield f"{dropped} left out: empty or annotated twice."
    intervals = _count(evaluation.ambiguous, "Ambiguous interval")
    if evaluation.rule == "activitynet" and evaluation.ambiguous:
        yield f"{intervals} of the ground truth counted as segments of an additional class."
    elif evaluation.rule == "thumos-kit" and evaluation.ambiguous:
        yield f"{intervals}: predictions that overlap one and match no segment were left out."
    elif evaluation.rule == "thumos-kit":
        yield "Without Ambiguous intervals: no prediction was left out for overlapping one."
    if missing := evaluation.videos_without_prediction:
        yield f"{_count(len(missing), 'video')} without any prediction: {shortlist(missing)}."
    if absent := evaluation.classes_without_ground_truth:
        yield f"{_count(len(absent), 'class')} without ground truth, not in the mean: {shortlist(absent)}."
    if strangers := evaluation.predictions_by_unknown_video:
        among = f"{_count(sum(strangers.values()), 'prediction')} in {_count(len(strangers), 'video')}"
        yield f"{among} not in the ground truth, counted as wrong: {shortlist(strangers)}."
    if counts and (strangers := evaluation.predictions_by_unknown_class):
        among = f"{_count(sum(strangers.values()), 'prediction')} of {_count(len(strangers), 'class')}"
        yield f"{among} without ground truth, ignored: {shortlist(strangers)}."


def _common_tiou(evaluations: Mapping[str, Evaluation]) -> tuple[float, ...]:
    tiou = {name: evaluation.tiou for name, evaluation in evaluations.items()}
    if len(set(tiou.values())) != 1:
        raise ValueError(f"a table needs at least one result, all at the same tIoU; these are at {tiou}")
    return next(iter(tiou.values()))


def tiou_range(tiou: Sequence[float]) -> str:
    """The thresholds of a figure, for titles: "tIoU 0.3 to 0.7, mean"."""
    return f"tIoU {tiou[0]:.4g}" + (f" to {tiou[-1]:.4g}, mean" if len(tiou) > 1 else "")


def _count(number: int, thing: str) -> str:
    plural = f"{thing}es" if thing.endswith("s") else f"{thing}s"
    return f"{number:,} {thing if number == 1 else plural}"
