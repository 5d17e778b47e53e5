"""Converts ground truth from any annotation format: completes durations, repairs segments, renames subsets."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from os import PathLike
from pathlib import Path

import numpy as np

from bitad.config.names import AmbiguousPolicy, DefectPolicy, MissingPolicy
from bitad.data.annotations import AnnotatedVideo, Annotations, Defect
from bitad.data.classes import UNDECIDED, class_list, write_classes
from bitad.data.clocks import Clock, contradictions, differences, read_clocks, require_agreement
from bitad.data.formats.annotations import read_annotation_files
from bitad.data.formats.database import write_annotations
from bitad.data.frame_clocks import FrameClocks
from bitad.runtime.log import did_you_mean
from bitad.video.index import FrameIndex
from bitad.video.indexing import index_video
from bitad.video.names import Matching, VideoFinder, renamed

CLASS_LIST = "category_idx.txt"

# A segment may end this much after its video: what a sum of floating-point seconds is off.
_ROUNDING_S = 1e-6


# Lines for people, by kind: those of one kind say the same of different videos.
Report = defaultdict[str, list[str]]


def repair_segments(annotations: Annotations, policy: DefectPolicy, report: Report) -> Annotations:
    """Ground truth without defective segments: outside their video, without length, or twice with one label.

    Args:
        policy: "keep" keeps them, as published figures are measured with them (30 of THUMOS14's lie beyond their
            videos); "clip" cuts those outside at the video's edges, and drops what has no length then, and the others.
        report: gets a line for each video, kind of defect and outcome.

    Raises:
        ValueError: a segment is defective, with the policy "error".
    """
    counts: Counter[tuple[str, str, str]] = Counter()

    def repaired(video: AnnotatedVideo) -> AnnotatedVideo:
        segments = video.segments.copy()
        keep = np.ones(len(video.labels), bool)
        for i, defect in segment_defects(video):
            if policy == "error":
                raise ValueError(
                    f"video {video.name}: {defect.kind}: {defect.detail}; correct it, or choose another --defects"
                )
            outcome = "kept" if policy == "keep" else "dropped"
            if policy == "clip" and defect.kind == "segment outside the video":
                segments[i] = segments[i].clip(0, video.duration_s)
                outcome = "clipped" if segments[i, 0] < segments[i, 1] else "dropped"
            keep[i] &= outcome != "dropped"
            counts[video.name, defect.kind, outcome] += 1
        return replace(video, segments=segments).take(keep)

    annotations = annotations.map(repaired)
    for (video, kind, outcome), count in counts.items():
        report[f"{kind}, {outcome}"].append(f"{video}: {kind}: {count} {outcome}")
    return annotations


def segment_defects(video: AnnotatedVideo) -> Iterator[tuple[int, Defect]]:
    """The segments that no video could have: index in the video, and what is wrong."""
    seen = set()
    for i, ((start, end), label) in enumerate(zip(video.segments.tolist(), video.labels, strict=True)):
        where = f"{label} [{start:g}, {end:g}] s"
        if end > video.duration_s + _ROUNDING_S or start < 0:
            detail = f"{where} of a video of {video.duration_s:g} s"
            yield i, Defect(video.name, "segment outside the video", detail, (start, end))
        if start >= end:
            yield i, Defect(video.name, "start not before end", where, (start, end))
        if (start, end, label) in seen:
            yield i, Defect(video.name, "duplicate", where, (start, end))
        seen.add((start, end, label))


@dataclass(frozen=True)
class KnownClocks:
    """Durations and frame counts by video name, from a list or from files; and why others are missing."""

    known: Mapping[str, Clock] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    source: str = ""

    @classmethod
    def of(
        cls,
        names: Iterable[str],
        videos: str | Path | None,
        video_info: str | Path | None,
        on_progress: Callable[[int, int], None] | None = None,
        clock: Callable[[Path], Clock] | None = None,
    ) -> KnownClocks:
        """Read the list of videos, if given, or else count the frames of the files in the folder, if given.

        ``clock`` reads the time of a file, by default with :func:`~bitad.video.indexing.index_video`.
        """
        names = list(names)
        if video_info is not None:
            listed = read_clocks(video_info)
            known = renamed(listed, names, video_info)
            unlisted = [name for name in names if name not in known]
            sides = Matching.of(names, listed).sides() if unlisted else ""
            if unlisted and len(unlisted) == len(names):
                raise ValueError(f"{video_info} lists none of the videos: {sides}; name the list of these videos")
            why = f"{video_info} does not list its duration; {sides}"
            return cls(known, dict.fromkeys(unlisted, why), str(video_info))
        if videos is None:
            return cls()
        if not Path(videos).is_dir():
            raise FileNotFoundError(f"{videos}: no such folder of videos")
        find = VideoFinder(videos, partial(tuple, names))
        read = clock or (lambda path: clock_of(index_video(path)))
        counted: dict[str, Clock] = {}
        missing: dict[str, str] = {}
        if on_progress is not None:
            on_progress(0, len(names))
        for done, name in enumerate(names, start=1):
            try:
                counted[name] = read(find(name))
            except (ValueError, FileNotFoundError) as error:
                missing[name] = str(error)
            if on_progress is not None:
                on_progress(done, len(names))
        return cls(counted, missing, str(videos))

    def complete(self, video: AnnotatedVideo) -> AnnotatedVideo:
        """The video with the values that its file does not state; those that it states are unchanged."""
        clock = self.known.get(video.name)
        if clock is None:
            return video
        return replace(
            video,
            duration_s=video.duration_s if math.isfinite(video.duration_s) else clock.duration_s,
            frames=clock.frames if video.frames is None else video.frames,
            fps=clock.fps if video.fps is None else video.fps,
        )

    def defects(self, video: AnnotatedVideo) -> Iterator[Defect]:
        """How a video's known clock contradicts itself, or differs from its annotations."""
        if (clock := self.known.get(video.name)) is None:
            return
        for fault in contradictions(clock):
            yield Defect(video.name, "contradicting clocks", f"{self.source} says {fault}")
        for kind, detail in differences(video.clock, clock):
            yield Defect(video.name, kind, f"{self.source} says that it {detail}")

    def why_unknown(self, name: str) -> str:
        """Why a video has no duration, and the remedy."""
        return self.missing.get(name, "its file states none; give --videos DIR or --video-info JSON")


def clock_of(index: FrameIndex) -> Clock:
    """The time of a video file."""
    return Clock(float(index.frames / index.rate), index.frames, float(index.rate))


@dataclass(frozen=True)
class Conversion:
    """Ground truth read from another format; ``frames`` is when the frames of its videos are shown."""

    format: str
    annotations: Annotations
    report: Report
    frames: FrameClocks

    def lines(self, most: int | None = None) -> Iterator[str]:
        """A summary of the ground truth and the report; at most ``most`` lines of each kind."""
        classes = set(self.annotations.classes)
        labels = Counter(label for video in self.annotations.videos.values() for label in video.labels)
        of_classes = sum(count for label, count in labels.items() if label in classes)
        others = [f", and {count} {label}" for label, count in sorted(labels.items()) if label not in classes]
        subsets = ", ".join(f"{name} {count}" for name, count in self.annotations.subsets().items())
        yield (
            f"{self.format}: {len(self.annotations.videos)} videos, {of_classes} segments of {len(classes)} classes"
            + "".join(others)
        )
        yield f"subsets: {subsets or 'none'}"
        for kind, texts in self.report.items():
            yield from texts[:most]
            if most is not None and len(texts) > most:
                remedy = "--all lists every one, `bitad annotations check` every defect"
                yield f"and {len(texts) - most} more ({kind}): {remedy}"


def convert_annotations(
    src: str | Path,
    *,
    format: str | None = None,
    classes: Sequence[str] | PathLike[str] | None = None,
    videos: str | Path | None = None,
    video_info: str | Path | None = None,
    frame_rate: float | None = None,
    subsets: Mapping[str, str] | None = None,
    defects: DefectPolicy = "keep",
    missing: MissingPolicy = "error",
    undecided: AmbiguousPolicy = "keep",
    allow_clock_mismatch: bool = False,
    index: Callable[[Path], FrameIndex] = index_video,
    on_progress: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Read ground truth in any of ``FORMATS``, and complete and repair it.

    Args:
        src: a file, or a folder of files of one data set.
        format: its format; by default, it is recognised.
        classes: the class names in order, or a file of them; by default those of the files.
        videos: a folder of videos, to count the frames and durations that the files do not state.
        video_info: a list of videos (``read_clocks``) that states them instead.
        frame_rate: frames a second that files which count frames have, instead of those of the videos.
        subsets: new names of subsets, by old name.
        defects: what to do with defective segments, see :func:`repair_segments`.
        missing: whether a video with segments but without a known duration is an error, or is left out.
        undecided: whether segments of ``UNDECIDED`` labels (THUMOS14's Ambiguous) are kept.
        allow_clock_mismatch: whether contradictions about a video's time are only reported.
        index: counts the frames of a video file; a cache spares a second reading.
        on_progress: called after each video counted, with the number of videos done and in all.
    """
    frames = FrameClocks.of(videos, video_info, frame_rate, index)
    parsed = read_annotation_files(src, format, classes=classes, video_info=video_info, frame_clocks=frames)
    annotations = parsed.annotations
    frames = frames.among(annotations.videos)
    if not annotations.videos:
        raise ValueError(f"{src}: no videos in it; there is nothing to convert")
    report = Report(list, {"of the files": list(parsed.notes)})
    if undecided == "drop":
        known = set(annotations.classes)
        if count := sum(label not in known for video in annotations.videos.values() for label in video.labels):
            text = f"{count} segments are of no class ({', '.join(UNDECIDED)}) and left out"
            report["segments of no class"].append(text)
        annotations = annotations.only_classes()
    clocks = KnownClocks.of(
        annotations.videos, videos, video_info, on_progress, lambda path: frames.of_file(path).clock
    )
    faults = {
        name: "; ".join(found)
        for name, video in annotations.videos.items()
        if (found := [*video.contradictions, *(defect.detail for defect in clocks.defects(video))])
    }
    remedy = "correct the annotations, or convert them as they are with --allow-clock-mismatch"
    if line := require_agreement(
        faults, len(annotations.videos), src, allowed=allow_clock_mismatch, remedy=remedy
    ):
        report["clocks"].append(line)
    annotations = _complete_durations(annotations, clocks, missing, src, report)
    annotations = repair_segments(annotations, defects, report)
    subsets = subsets or {}
    if unknown := [name for name in subsets if name not in annotations.subsets()]:
        names = ", ".join(annotations.subsets())
        near = did_you_mean(unknown[0], annotations.subsets())
        raise ValueError(f"{src}: no subset {unknown[0]!r} to rename; the subsets are {names}{near}")
    annotations = annotations.map(lambda video: replace(video, subset=subsets.get(video.subset, video.subset)))
    return Conversion(parsed.format, annotations, report, frames)


def write_both_directions(annotations: Annotations, folder: str | Path, name: str) -> tuple[Path, ...]:
    """Write the ground truth of both directions in the research group's layout; return the files.

    Videos of unknown duration, which cannot be reversed, are in the forward file only.
    """
    class_list(annotations.classes)  # raises before anything is written
    forward, back = (Path(folder) / f"{way}_{name}" / "annotations" for way in ("for", "back"))
    file = f"{name.replace('-', '_')}_anno.json"
    write_annotations(annotations, forward / file)
    with_duration = annotations.map(lambda video: video if math.isfinite(video.duration_s) else None)
    write_annotations(with_duration.reversed(), back / file)
    for directory in (forward, back):
        write_classes(annotations.classes, directory / CLASS_LIST)
    return forward / file, forward / CLASS_LIST, back / file, back / CLASS_LIST


def _complete_durations(
    annotations: Annotations, clocks: KnownClocks, missing: MissingPolicy, src: str | Path, report: Report
) -> Annotations:
    """The ground truth with durations and frames filled in, without the videos whose duration remains unknown.

    Those with only undecided segments are kept by default: the rule of THUMOS14's kit needs them.
    """
    completed = annotations.map(clocks.complete)
    dropped: list[AnnotatedVideo] = []
    report["no videos"] = []  # before the lines below
    for name, video in completed.videos.items():
        why = clocks.why_unknown(name)
        if math.isfinite(video.duration_s):
            continue
        if missing == "error" and video.labels and set(video.labels).isdisjoint(annotations.classes):
            text = f"{name}: written without a duration ({_label_counts(video)}): {why}; --ambiguous drop leaves it out"
            report["videos without a duration"].append(text)
        else:
            dropped.append(video)
            text = f"{name}: left out ({_label_counts(video)}): its duration is not known: {why}"
            report["videos left out"].append(text)
    if missing == "error" and (needed := [video.name for video in dropped if video.labels]):
        more = f" (and of {len(needed) - 1} more)" if len(needed) > 1 else ""
        why = clocks.why_unknown(needed[0])
        remedy = "state it, or leave such videos out with --missing drop"
        raise ValueError(f"{src}: video {needed[0]}: its duration{more} is not known: {why}; {remedy}")
    labels = set(UNDECIDED).difference(annotations.classes)
    if undecided := [video for video in dropped if not labels.isdisjoint(video.labels)]:
        change = "figures by the rule of THUMOS14's kit change"
        kept = f"{len(undecided)} of these videos have {', '.join(UNDECIDED)} segments"
        report["figures"].append(f"{change}: {kept}, and detections that touch them now count as false")
    names = {video.name for video in dropped}
    completed = completed.map(lambda video: None if video.name in names else video)
    if not completed.videos:
        report["no videos"].append("no video is left: the file written holds no ground truth")
    if filled := sum(video.clock != annotations.videos[name].clock for name, video in completed.videos.items()):
        report["durations"].append(f"unstated durations and frames of {filled} videos are from {clocks.source}")
    return completed


def _label_counts(video: AnnotatedVideo) -> str:
    counts = sorted(Counter(video.labels).items())
    return ", ".join(f"{count} {label}" for label, count in counts) or "no segments"
