"""Per-frame mAP: how well scores rank the frames of a class, MultiTHUMOS' and Charades' measure.

For each class the frames of all videos are sorted by descending score. AP is the mean, over the frames in which the
class happens, of the precision at their rank; it is not interpolated. Frames of equal scores keep the order of the
videos in the annotations, then of time. The rule says which frames there are, and in which of them a class happens:

* ``dense``: every step of a video's features, T of them, step i at the time ``i / (T / duration)``. A class happens
  where ``start < time < end``. (MultiTHUMOS, Yeung et al., IJCV 2018, as super-events, TGM, PDAN and MS-TCT evaluate
  it.) There is no fixed rate: figures of other numbers of steps are not comparable.
* ``charades-25``: 25 points a video, point j of 0 to 24 at ``j / 25 * duration``. A class happens where
  ``start <= time <= end``. Scores of T steps are taken at step ``floor(j * T / 25)``; this choice is BiTAD's. (The
  official measure of localization on Charades, the data set of Sigurdsson et al., ECCV 2016.)
* ``sampled-25``: of a video with T > 25, the 25 steps 1, 1 + s, 1 + 2 s and so on of ``dense``, where
  ``s = int(T / 25)``; other videos are left out. (MS-TCT's approximation of Charades' measure, Dai et al., CVPR 2022;
  not the official one.)

Evaluators differ in what they do with a class that happens in no frame, so there are several means
(:class:`FrameEvaluation`). All figures are fractions, 0 to 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitad.config.names import FrameRule
from bitad.data.annotations import Annotations
from bitad.data.detections import Detections
from bitad.runtime.files import write_json
from bitad.runtime.log import log_once, shortlist
from bitad.timeline import FloatArray, IntArray

# Of detections, steps a second.
DEFAULT_FPS = 1.0

_POINTS = 25
_MAX_STEPS = 1_000_000  # of a video; more suggest a mistake

Scores = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class FrameEvaluation:
    """The accuracy of scores of frames, with the rule and the data.

    Args:
        rule: which frames there are, and in which of them a class happens.
        of_detections: whether the scores are those of detections.
        fps: of detections, steps a second; None where these do not matter.
        steps: of detections, steps of every video, if one number was given.
        classes: the K classes of the annotations, in their order.
        ap: float64 ``[K]``, average precision; NaN for a class that happens in no frame.
        positives: int64 ``[K]``, the number of frames in which each class happens.
        frames: number of frames, in ``videos`` videos.
        videos_left_out: those that are too short for ``sampled-25``.
        videos_without_scores: those without scores, or without a detection. For ``charades-25``, frames without scores
            rank last.
        elsewhere: videos with scores or detections that the ground truth does not have; they are ignored.
    """

    rule: FrameRule
    of_detections: bool
    fps: float | None
    steps: int | None
    classes: tuple[str, ...]
    ap: FloatArray
    positives: IntArray
    subsets: tuple[str, ...]
    frames: int
    videos: int
    videos_left_out: tuple[str, ...]
    videos_without_scores: tuple[str, ...]
    elsewhere: tuple[str, ...]

    @property
    def map_all_classes(self) -> float:
        """The mean over all classes; one that happens in no frame counts as 0 (super-events, TGM, MS-TCT's test)."""
        return float(np.nan_to_num(self.ap).mean())

    @property
    def map_nonzero_classes(self) -> float:
        """The mean over the classes whose AP is not 0 (PDAN, MS-TCT's training)."""
        values = np.nan_to_num(self.ap)
        return float(values.sum() / max(1, np.count_nonzero(values)))

    @property
    def map_present_classes(self) -> float:
        """The mean over the classes that happen in some frame."""
        return float(self.ap[self.positives > 0].mean())

    @property
    def weighted_map(self) -> float:
        """The mean over the classes, each weighted by its number of frames (Charades' wAP)."""
        present = self.positives > 0
        return float((self.ap[present] * self.positives[present]).sum() / self.positives.sum())

    def __repr__(self) -> str:
        figures = f"map_present_classes={self.map_present_classes:.4f}, weighted_map={self.weighted_map:.4f}"
        return f"FrameEvaluation({figures}, {len(self.classes)} classes, {self.frames} frames)"

    def to_json(self, path: str | Path | None = None) -> dict[str, Any]:
        """All values in JSON's types; with a path, also written there."""
        ap = [value if count else None for value, count in zip(self.ap.tolist(), self.positives, strict=True)]
        content = {
            "metric": "frame-map",
            "rule": self.rule,
            "of_detections": self.of_detections,
            "fps": self.fps,
            "steps": self.steps,
            "map_all_classes": self.map_all_classes,
            "map_nonzero_classes": self.map_nonzero_classes,
            "map_present_classes": self.map_present_classes,
            "weighted_map": self.weighted_map,
            "ap": dict(zip(self.classes, ap, strict=True)),
            "positives": dict(zip(self.classes, self.positives.tolist(), strict=True)),
            "subsets": list(self.subsets),
            "frames": self.frames,
            "videos": self.videos,
            "videos_left_out": list(self.videos_left_out),
            "videos_without_scores": list(self.videos_without_scores),
            "elsewhere": list(self.elsewhere),
        }
        if path is not None:
            write_json(content, path)
        return content


def frame_map(
    ground_truth: Annotations,
    scores: Scores | Detections,
    *,
    rule: FrameRule = "dense",
    fps: float | None = None,
    steps: int | Mapping[str, int] | None = None,
    source: object = "the scores",
) -> FrameEvaluation:
    """Per-frame mAP against all videos of ``ground_truth``, which have durations.

    Args:
        scores: by video, the scores ``[T, K]`` of its steps, in the order of the annotations' classes; minus infinity
            for a step without scores. Or detections on either clock: the score of a class at a time is the highest of
            its detections with ``start <= time <= end``, and 0 without one (minus infinity if any score is below 0).
        fps: of detections, steps a second (default: 1): ``T = round(duration * fps)``.
        steps: of detections, T instead: of every video, or by video. ``charades-25`` needs neither.
        source: what errors call scores of frames.

    Raises:
        ValueError: no class happens in any frame; an array of another shape, or with NaN or infinity; a video without
            scores, but for ``charades-25``; ``fps`` or ``steps`` out of range, or for scores of frames.
    """
    if isinstance(scores, Detections):
        frames = _Frames(ground_truth, _steps(ground_truth, rule, fps, steps), rule)
        found = scores.forward()
        columns = _columns_of_detections(ground_truth, found, frames)
        searched = {found.videos[i] for i in np.unique(found.video)}
        rate = fps or DEFAULT_FPS if steps is None and rule != "charades-25" else None
    else:
        if fps is not None or steps is not None:
            option = "fps" if steps is None else "steps"
            raise ValueError(f"{option} is for detections; the steps of per-frame scores are their rows")
        checked = _checked(ground_truth, scores, rule, source)
        frames = _Frames(ground_truth, {name: len(array) for name, array in checked.items()}, rule)
        columns = _columns_of_scores(ground_truth, checked, frames)
        searched = set(scores)
        rate = None
    ap = np.full(len(ground_truth.classes), np.nan)
    positives = np.zeros(len(ap), np.int64)
    for label, (happens, values) in enumerate(zip(_columns_of_truth(ground_truth, frames), columns, strict=True)):
        positives[label] = happens.sum()
        if positives[label]:
            ap[label] = _average_precision(happens, values)
    if not positives.any():
        subsets = " and ".join(map(repr, ground_truth.subsets()))
        raise ValueError(
            f"no class happens in any of the {frames.count:,} frames of subset {subsets}; name another"
        )
    return FrameEvaluation(
        rule=rule,
        of_detections=isinstance(scores, Detections),
        fps=rate,
        steps=steps if isinstance(steps, int) else None,
        classes=ground_truth.classes,
        ap=ap,
        positives=positives,
        subsets=tuple(ground_truth.subsets()),
        frames=frames.count,
        videos=len(frames.times),
        videos_left_out=frames.left_out,
        videos_without_scores=tuple(name for name in frames.times if name not in searched),
        elsewhere=tuple(sorted(searched - ground_truth.videos.keys())),
    )


class _Frames:
    """The frames of all videos, one after another: which steps they are, and their times.

    Args:
        steps: T of each video; a video without is one without scores.
    """

    def __init__(self, ground_truth: Annotations, steps: Mapping[str, int], rule: FrameRule) -> None:
        self.inclusive = rule == "charades-25"
        self.rows: dict[str, IntArray] = {}
        self.times: dict[str, FloatArray] = {}
        self.first: dict[str, int] = {}
        self.count = 0
        left_out = []
        for name, video in ground_truth.videos.items():
            total = steps.get(name, 0)
            if rule == "charades-25":
                rows = np.arange(_POINTS) * total // _POINTS
                times = np.arange(_POINTS) / _POINTS * video.duration_s
            elif rule == "sampled-25" and total <= _POINTS:
                left_out.append(name)
                continue
            else:
                rows = np.arange(total)
                if rule == "sampled-25":
                    rows = 1 + int(total / _POINTS) * np.arange(_POINTS)
                times = rows / (total / video.duration_s) if total else np.empty(0)
            self.rows[name], self.times[name], self.first[name] = rows, times, self.count
            self.count += len(times)
        self.left_out = tuple(left_out)

    def ranges(self, name: str, segments: FloatArray, *, inclusive: bool) -> IntArray:
        """The first frame within each segment of a video, and the one after the last, ``[n, 2]``."""
        times = self.times[name]
        first = np.searchsorted(times, segments[:, 0], side="left" if inclusive else "right")
        last = np.searchsorted(times, segments[:, 1], side="right" if inclusive else "left")
        return self.first[name] + np.stack([first, last], axis=1)


def check_fps(fps: float, name: str = "fps") -> None:
    """Raises ValueError if steps a second are not above 0 and at most 1,000,000."""
    if not 0 < fps <= _MAX_STEPS:
        raise ValueError(f"{name} {fps}: give steps a second, above 0 and at most {_MAX_STEPS:,}")


def check_steps(steps: int, name: str = "steps") -> None:
    """Raises ValueError if a number of steps a video is not 1 to 1,000,000."""
    if not 1 <= steps <= _MAX_STEPS:
        raise ValueError(f"{name} {steps}: give a number of steps a video from 1 to {_MAX_STEPS:,}")


def _steps(
    ground_truth: Annotations, rule: FrameRule, fps: float | None, steps: int | Mapping[str, int] | None
) -> dict[str, int]:
    """T of each video, where detections are to be sampled."""
    if rule == "charades-25":
        if fps is not None or steps is not None:
            option = "fps" if steps is None else "steps"
            raise ValueError(
                f"{option} is not for rule charades-25, which has {_POINTS} points a video; leave it out"
            )
        return {}
    if fps is not None and steps is not None:
        raise ValueError("fps and steps exclude each other; leave out one")
    if steps is None:
        rate = DEFAULT_FPS if fps is None else fps
        check_fps(rate)
        found = {name: round(video.duration_s * rate) for name, video in ground_truth.videos.items()}
    elif isinstance(steps, int):
        found = dict.fromkeys(ground_truth.videos, steps)
    else:
        if missing := ground_truth.videos.keys() - steps.keys():
            raise ValueError(f"steps has no number for {shortlist(sorted(missing))}; give one for every video")
        found = {name: steps[name] for name in ground_truth.videos}
    for name, number in found.items():
        if number or steps is not None:  # a very short video has no step
            check_steps(number, f"steps of {name}")
    return found


def _checked(
    ground_truth: Annotations, scores: Scores, rule: FrameRule, source: object
) -> dict[str, NDArray[Any]]:
    """The scores of the ground truth's videos; raises a ValueError where they do not fit."""
    missing = [name for name in ground_truth.videos if name not in scores]
    if len(missing) == len(ground_truth.videos):
        raise ValueError(f"{source}: no scores of {shortlist(missing)}, only of {shortlist(sorted(scores))}")
    if missing and rule != "charades-25":
        raise ValueError(
            f"{source}: no scores of {shortlist(missing)}; rule {rule} needs those of every video, whose rows are its "
            "frames"
        )
    width = len(ground_truth.classes)
    checked = {}
    for name in ground_truth.videos:
        if name not in scores:
            continue
        array = np.asarray(scores[name])
        if array.ndim != 2 or array.dtype.kind not in "fiu" or not len(array) or array.shape[1] != width:
            shape = f"{array.dtype} of shape {list(array.shape)}"
            raise ValueError(
                f"{source}: video {name}: {shape}; give numbers [T, {width}], a column for each class"
            )
        wrong = np.isnan(array) | (array == np.inf)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            value = f"{array[row, column]} in row {row}, column {column}"
            raise ValueError(
                f"{source}: video {name}: {value}; give finite ones, or minus infinity where there are none"
            )
        checked[name] = array
    return checked


def _columns_of_scores(
    ground_truth: Annotations, scores: Mapping[str, NDArray[Any]], frames: _Frames
) -> Iterator[NDArray[Any]]:
    """The scores ``[n_frames]`` of each class."""
    for label in range(len(ground_truth.classes)):
        parts = []
        for name, rows in frames.rows.items():
            if name in scores:
                parts.append(scores[name][rows, label])
            else:
                parts.append(np.full(len(rows), -np.inf, np.float32))
        yield np.concatenate(parts)


def _columns_of_detections(
    ground_truth: Annotations, detections: Detections, frames: _Frames
) -> Iterator[FloatArray]:
    """The highest score ``[n_frames]`` of each class's detections at each frame."""
    number = {name: i for i, name in enumerate(ground_truth.classes)}
    label = np.array([number.get(name, -1) for name in detections.classes], np.int64)[detections.labels]
    ranges = np.zeros((len(detections), 2), np.int64)
    order = np.argsort(detections.video, kind="stable")
    ends = np.cumsum(np.bincount(detections.video, minlength=len(detections.videos)))
    for name, rows in zip(detections.videos, np.split(order, ends[:-1]), strict=False):
        if name in frames.times:
            ranges[rows] = frames.ranges(name, detections.segments[rows], inclusive=True)
    nothing = 0.0
    if (detections.scores < 0).any():
        nothing = -np.inf
        log_once("scores below 0: a frame without a detection of a class ranks below all others, not as score 0")
    filled = (label >= 0) & (ranges[:, 1] > ranges[:, 0])
    for i in range(len(ground_truth.classes)):
        rows = np.flatnonzero(filled & (label == i))
        rows = rows[np.argsort(detections.scores[rows], kind="stable")]
        column = np.full(frames.count, nothing)
        # Ascending, so that the highest score stays.
        for (first, last), score in zip(ranges[rows].tolist(), detections.scores[rows].tolist(), strict=True):
            column[first:last] = score
        yield column


def _columns_of_truth(ground_truth: Annotations, frames: _Frames) -> Iterator[NDArray[np.bool_]]:
    """In which frames each class happens, ``[n_frames]``."""
    number = {name: i for i, name in enumerate(ground_truth.classes)}
    ranges: list[list[list[int]]] = [[] for _ in ground_truth.classes]
    for name in frames.times:
        video = ground_truth.videos[name]
        within = frames.ranges(name, video.segments, inclusive=frames.inclusive).tolist()
        for label, span in zip(video.labels, within, strict=True):
            if label in number:
                ranges[number[label]].append(span)
    for spans in ranges:
        happens = np.zeros(frames.count, np.bool_)
        for first, last in spans:
            happens[first:last] = True
        yield happens


def _average_precision(happens: NDArray[np.bool_], scores: NDArray[Any]) -> float:
    """The mean of the precision at the rank of each frame in which the class happens."""
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    ranks = np.flatnonzero(happens[order]) + 1
    return float((np.arange(1, len(ranks) + 1) / ranks).mean())
