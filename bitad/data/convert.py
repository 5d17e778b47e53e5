"""Converts ground truth from one form into another: read, timed, renamed, checked against a policy and written.

The policy says whether segments that lie outside their video are kept, clipped, dropped or refused.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np

from bitad.data.annotations import UNDECIDED, AnnotatedVideo, Annotations, Defect
from bitad.data.clocks import (
    Clock,
    Difference,
    contradictions,
    differences,
    probe_clocks,
    read_clocks,
    require_agreement,
)
from bitad.data.formats.annotations import read_form
from bitad.data.formats.database import write_annotations
from bitad.runtime.files import atomic_write
from bitad.video.names import Matching, renamed

# A segment may end this much after its video: what a sum of floating-point seconds is off.
_ROUNDING_S = 1e-6

Outside = Literal["keep", "clip", "drop", "error"]
Other = Literal["keep", "drop", "error"]
Outcome = Literal["kept", "clipped", "dropped"]


@dataclass(frozen=True)
class Policy:
    """What to do with each kind of defective segment.

    Everything is kept unless asked otherwise: a conversion changes the form and not the ground truth, and published
    figures are measured with such segments in it (30 of THUMOS14's lie beyond the end of their videos).

    Args:
        outside: segments that begin before their video or end after it. "clip" cuts them at the video's edges and drops
            those of which nothing remains.
        backwards: segments that do not start before their end.
        duplicate: segments that repeat another of the same label.
    """

    outside: Outside = "keep"
    backwards: Other = "keep"
    duplicate: Other = "keep"

    def of(self, defect: Defect) -> Outside:
        """What to do about a defect that ``segment_defects`` found."""
        match defect.kind:
            case "segment outside the video":
                return self.outside
            case "start not before end":
                return self.backwards
            case _:
                return self.duplicate

    def apply(self, annotations: Annotations) -> tuple[Annotations, tuple[Treated, ...]]:
        """The ground truth as the policy leaves it, and what was done about each defect.

        Raises:
            ValueError: a segment has a defect that is an error here.
        """
        videos, treated = {}, []
        for name, video in annotations.videos.items():
            videos[name], of_video = self._apply(video)
            treated += of_video
        return replace(annotations, videos=videos), tuple(treated)

    def _apply(self, video: AnnotatedVideo) -> tuple[AnnotatedVideo, list[Treated]]:
        found = list(segment_defects(video))
        if not found:
            return video, []
        segments, keep = video.segments.copy(), np.ones(len(video.labels), bool)
        treated = []
        for i, defect in found:
            outcome: Outcome = "kept"
            match self.of(defect):
                case "error":
                    raise ValueError(f"video {video.name}: {defect.kind}: {defect.detail}; its policy is error")
                case "drop":
                    outcome = "dropped"
                case "clip":
                    segments[i] = segments[i].clip(0, video.duration_s)
                    outcome = "clipped" if segments[i, 0] < segments[i, 1] else "dropped"
            keep[i] &= outcome != "dropped"
            treated.append(Treated(defect, outcome))
        labels = tuple(label for label, kept in zip(video.labels, keep, strict=True) if kept)
        return replace(video, segments=segments[keep], labels=labels), treated


@dataclass(frozen=True)
class Treated:
    """A defect and what was done about it."""

    defect: Defect
    outcome: Outcome


def segment_defects(video: AnnotatedVideo) -> Iterator[tuple[int, Defect]]:
    """The segments that no video could have, by their place in it, and what is wrong with each."""
    seen = set()
    for i, ((start, end), label) in enumerate(zip(video.segments.tolist(), video.labels, strict=True)):
        where = f"{label} [{start:g}, {end:g}] s"
        if end > video.duration_s + _ROUNDING_S or start < 0:
            yield i, Defect(video.name, "segment outside the video", f"{where} of a video of {video.duration_s:g} s")
        if start >= end:
            yield i, Defect(video.name, "start not before end", where)
        if (start, end, label) in seen:
            yield i, Defect(video.name, "duplicate", where)
        seen.add((start, end, label))


@dataclass(frozen=True)
class Remark:
    """One line of a report.

    Args:
        kind: of the lines that say the same of different videos.
        says: the line.
    """

    kind: str
    says: str


def summary(treated: Iterable[Treated]) -> list[Remark]:
    """What was done, a remark for each video, kind and outcome."""
    counts = Counter((one.defect.video, one.defect.kind, one.outcome) for one in treated)
    return [
        Remark(f"{kind}, {outcome}", f"{video}: {kind}: {count} {outcome}")
        for (video, kind, outcome), count in counts.items()
    ]


def abridged(report: Iterable[Remark], most: int | None, remedy: str) -> Iterator[str]:
    """The lines of a report by kind, of each kind at most ``most`` and then how many more there are.

    Args:
        most: None for all.
        remedy: how to see the others.
    """
    lines: dict[str, list[str]] = {}
    for remark in report:
        lines.setdefault(remark.kind, []).append(remark.says)
    for kind, said in lines.items():
        yield from said[:most]
        if most is not None and len(said) > most:
            yield f"and {len(said) - most} more ({kind}): {remedy}"


CLASS_LIST = "category_idx.txt"


@dataclass(frozen=True)
class Clocks:
    """The durations and frame counts at hand.

    Args:
        known: by video's name.
        missing: by video's name, why there is none.
        source: where they are from, for people; empty where nothing was asked for.
        sides: two names that the source does not list, and two that it does; empty where it lists all.
    """

    known: Mapping[str, Clock] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    sides: str = ""

    @classmethod
    def of(
        cls,
        names: Iterable[str],
        videos: str | Path | None,
        video_info: str | Path | None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Clocks:
        """Read from a list of videos where that is given, else counted in the folder of videos where that is.

        Args:
            names: of all annotated videos; clocks are known under these names.
            videos: the folder.
            video_info: the list.
            on_progress: called after each video counted, with the number of videos done and in all.

        Raises:
            FileNotFoundError: there is no such folder or list.
            ValueError: the list cannot be read, or has none of the videos.
        """
        if video_info is not None:
            names = tuple(names)
            listed = read_clocks(video_info)
            known = renamed(listed, names, video_info)
            unlisted = {name: f"{video_info} does not list its duration" for name in names if name not in known}
            sides = Matching.of(names, listed).sides() if unlisted else ""
            if unlisted and len(unlisted) == len(names):
                raise ValueError(f"{video_info} lists none of the videos: {sides}; name the list of these videos")
            return cls(known, unlisted, str(video_info), sides)
        if videos is None:
            return cls()
        known, missing = probe_clocks(videos, names, on_progress=on_progress)
        return cls(known, missing, str(videos))

    def complete(self, video: AnnotatedVideo) -> AnnotatedVideo:
        """The video with what its file does not state; what it states stays."""
        clock = self.known.get(video.name)
        if clock is None:
            return video
        return replace(
            video,
            duration_s=video.duration_s if math.isfinite(video.duration_s) else clock.duration_s,
            frames=clock.frames if video.frames is None else video.frames,
            fps=clock.fps if video.fps is None else video.fps,
        )

    def faults(self, video: AnnotatedVideo) -> list[tuple[Literal["contradicting clocks"] | Difference, str]]:
        """How a video's own time differs from what its file states, or contradicts itself: kind and detail."""
        clock = self.known.get(video.name)
        if clock is None:
            return []
        within = contradictions(clock, np.empty((0, 2)), np.empty((0, 2)))
        return [
            *(("contradicting clocks", f"{self.source} says {fault}") for fault in within),
            *((kind, f"{self.source} says that it {detail}") for kind, detail in differences(video.clock, clock)),
        ]

    def why_unknown(self, name: str) -> str:
        """Why a video has no duration, and the remedy."""
        if name in self.missing:
            return self.missing[name]
        return "its file states none; give --videos DIR or --video-info JSON"

    def why_several_unknown(self, names: Sequence[str]) -> str:
        """Why videos have no duration, told of the first, and the remedy."""
        return self.why_unknown(names[0]) + (f"; {self.sides}" if self.sides else "")


@dataclass(frozen=True)
class Conversion:
    """Ground truth read from another form.

    Args:
        form: the form it was in.
        annotations: the ground truth, every video with a duration.
        report: what was left out, filled in or found wrong.
    """

    form: str
    annotations: Annotations
    report: tuple[Remark, ...]

    def lines(self, most: int | None = None) -> list[str]:
        """What was read, and the report, for people; of each kind of remark at most ``most`` lines."""
        classes = set(self.annotations.classes)
        labels = Counter(label for video in self.annotations.videos.values() for label in video.labels)
        of_classes = sum(count for label, count in labels.items() if label in classes)
        beside = [f", and {count} {label}" for label, count in sorted(labels.items()) if label not in classes]
        subsets = ", ".join(f"{name} {count}" for name, count in self.annotations.subsets().items())
        return [
            f"{self.form}: {len(self.annotations.videos)} videos, {of_classes} segments of {len(classes)} classes"
            + "".join(beside),
            f"subsets: {subsets or 'none'}",
            *abridged(self.report, most, "--all lists every one, `bitad annotations check` every defect"),
        ]


def convert_annotations(
    src: str | Path,
    *,
    form: str | None = None,
    classes: Sequence[str] | PathLike[str] | None = None,
    videos: str | Path | None = None,
    video_info: str | Path | None = None,
    subsets: Mapping[str, str] | None = None,
    policy: Policy | None = None,
    missing: Literal["error", "drop"] = "error",
    undecided: Literal["keep", "drop"] = "keep",
    allow_clock_mismatch: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Read ground truth in any of ``FORMS`` and make it whole.

    Args:
        src: a file, or a folder of files of one data set.
        form: its form; recognised where not given.
        classes: the class names in order, or a file of them; else those of the files, in the files' own order.
        videos: a folder of videos, to count what the files do not state.
        video_info: a list of videos (``read_clocks``) that states it instead.
        subsets: new names of subsets, by old name.
        policy: what to do with defective segments.
        missing: whether a video with segments whose duration nobody states is an error, or left out and reported. One
            without segments is left out and reported in either case.
        undecided: whether segments of ``UNDECIDED`` labels (THUMOS14's Ambiguous) stay, beside the classes. Where they
            do, a video that has no others is needed: the rule of THUMOS14's kit leaves out detections that touch them.
        allow_clock_mismatch: whether what a file states of a video's time may contradict itself, or the videos; it is
            then reported.
        on_progress: called after each video counted, with the number of videos done and in all.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: something cannot be read, a label is not one of the classes, a subset to rename does not exist,
            clocks disagree, or what the policy calls an error.
    """
    form, read = read_form(src, form, classes=classes, video_info=video_info)
    annotations = read.annotations
    if not annotations.videos:
        raise ValueError(f"{src}: no videos in it; there is nothing to convert")
    report = [Remark("of the files", note) for note in read.notes]
    if undecided == "drop":
        count = _segments(annotations)
        annotations = annotations.only_classes()
        if count := count - _segments(annotations):
            says = f"{count} segments are of no class ({', '.join(UNDECIDED)}) and left out"
            report.append(Remark("segments of no class", says))
    clocks = Clocks.of(annotations.videos, videos, video_info, on_progress)
    report += _disagreeing(annotations, clocks, allow_clock_mismatch, src)
    annotations, timed = _timed(annotations, clocks, missing, src)
    report += timed
    annotations, treated = (policy or Policy()).apply(annotations)
    report += summary(treated)
    return Conversion(form, _renamed(annotations, subsets or {}, src), tuple(report))


def write_both_directions(annotations: Annotations, folder: str | Path, name: str) -> tuple[Path, ...]:
    """Write the ground truth of forward and of reverse playback in the research group's layout; the files.

    What the annotations state of a video's time is not compared; :func:`convert_annotations` has done so. Videos of
    unknown duration, which cannot be reversed, are in the forward file only.

    ``FOLDER/for_NAME/annotations/`` and ``FOLDER/back_NAME/annotations/`` hold ``NAME_anno.json`` (with ``_`` for
    ``-``) and ``category_idx.txt``, a class name a line; ``raw_data/`` beside them is the place of the videos.
    """
    class_list(annotations.classes)  # or nothing is written
    forward, back = (Path(folder) / f"{way}_{name}" / "annotations" for way in ("for", "back"))
    file = f"{name.replace('-', '_')}_anno.json"
    write_annotations(annotations, forward / file)
    with_duration = {name: video for name, video in annotations.videos.items() if math.isfinite(video.duration_s)}
    write_annotations(replace(annotations, videos=with_duration).reversed(), back / file)
    for directory in (forward, back):
        write_classes(annotations.classes, directory / CLASS_LIST)
    return forward / file, forward / CLASS_LIST, back / file, back / CLASS_LIST


def write_classes(classes: Sequence[str], path: str | Path) -> None:
    """Write class names, a name a line, whole or not at all. Raises as :func:`class_list`."""
    text = class_list(classes)
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def class_list(classes: Sequence[str]) -> str:
    """The text of a class list, a name a line.

    Raises:
        ValueError: a name that would not be read back: with a line end in it, or with a space at an end.
    """
    for name in classes:
        if name != name.strip() or "\n" in name or "\r" in name or not name:
            raise ValueError(f"class {name!r} cannot stand in a list of a name a line; rename it")
    return "".join(f"{name}\n" for name in classes)


def _segments(annotations: Annotations) -> int:
    return sum(len(video.labels) for video in annotations.videos.values())


def _disagreeing(annotations: Annotations, clocks: Clocks, allowed: bool, src: str | Path) -> list[Remark]:
    """A remark that names the videos whose clocks disagree, if any.

    Raises:
        ValueError: there are some, and that is not allowed.
    """
    faults = {}
    for name, video in annotations.videos.items():
        if found := [*video.contradictions, *(detail for _, detail in clocks.faults(video))]:
            faults[name] = "; ".join(found)
    remedy = "correct the annotations, or convert them as they are with --allow-clock-mismatch"
    said = require_agreement(faults, len(annotations.videos), src, allowed=allowed, remedy=remedy)
    return [] if said is None else [Remark("clocks", said)]


def _timed(
    annotations: Annotations, clocks: Clocks, missing: Literal["error", "drop"], src: str | Path
) -> tuple[Annotations, list[Remark]]:
    """The ground truth with durations and frames filled in, without the videos that nobody states a duration of.

    Of these, the ones with only undecided segments stay unless ``missing`` is "drop": the rule of THUMOS14's kit needs
    no duration of them, but its figures depend on their segments.
    """
    videos: dict[str, AnnotatedVideo] = {}
    unknown: list[AnnotatedVideo] = []
    kept: list[AnnotatedVideo] = []
    for name, video in annotations.videos.items():
        completed = clocks.complete(video)
        if math.isfinite(completed.duration_s):
            videos[name] = completed
        elif missing == "error" and video.labels and not set(video.labels).intersection(annotations.classes):
            videos[name] = completed
            kept.append(video)
        else:
            unknown.append(video)
    if missing == "error":
        _refuse_unknown([video for video in unknown if video.labels], clocks, src)
    report = [*_kept(kept, clocks), *_left_out(unknown, annotations, clocks)]
    if not videos:
        report.insert(0, Remark("no videos", "no video is left: what is written holds no ground truth"))
    if filled := sum(name in clocks.known for name in videos):
        says = f"what the files do not state of {filled} videos' durations and frames is from {clocks.source}"
        report.append(Remark("durations", says))
    return replace(annotations, videos=videos), report


def _refuse_unknown(needed: Sequence[AnnotatedVideo], clocks: Clocks, src: str | Path) -> None:
    """Refuses to leave out videos that have segments.

    Raises:
        ValueError: there are some.
    """
    if not needed:
        return
    first, count = needed[0], len(needed)
    more = f" (and of {count - 1} more)" if count > 1 else ""
    remedy = "state it, or leave such videos out with --missing drop"
    why = clocks.why_several_unknown([video.name for video in needed])
    raise ValueError(f"{src}: video {first.name}: its duration{more} is not known: {why}; {remedy}")


def _counts(video: AnnotatedVideo) -> str:
    counts = sorted(Counter(video.labels).items())
    return ", ".join(f"{count} {label}" for label, count in counts) or "no segments"


def _kept(videos: Sequence[AnnotatedVideo], clocks: Clocks) -> Iterator[Remark]:
    """What is said of the videos that are written without a duration."""
    for video in videos:
        why = clocks.why_unknown(video.name)
        says = f"{video.name}: written without a duration ({_counts(video)}): {why}; --ambiguous drop leaves it out"
        yield Remark("videos without a duration", says)


def _left_out(unknown: Sequence[AnnotatedVideo], annotations: Annotations, clocks: Clocks) -> Iterator[Remark]:
    """What is said of the videos that are left out, since nobody states their durations."""
    for video in unknown:
        why = clocks.why_unknown(video.name)
        says = f"{video.name}: left out ({_counts(video)}): its duration is not known: {why}"
        yield Remark("videos left out", says)
    undecided = [
        video for video in unknown if set(video.labels).intersection(UNDECIDED).difference(annotations.classes)
    ]
    if undecided:
        says = (
            f"figures by the rule of THUMOS14's kit change: {len(undecided)} of these videos have "
            f"{', '.join(UNDECIDED)} segments, and detections that touch them count as false now"
        )
        yield Remark("figures", says)


def _renamed(annotations: Annotations, subsets: Mapping[str, str], src: str | Path) -> Annotations:
    found = annotations.subsets()
    for name in subsets:
        if name not in found:
            raise ValueError(f"{src}: no subset {name!r} to rename; the subsets are {', '.join(found)}")
    return replace(
        annotations,
        videos={
            name: replace(video, subset=subsets.get(video.subset, video.subset))
            for name, video in annotations.videos.items()
        },
    )
