"""The Python API. Functions import what they need, so that evaluating and merging do not load PyTorch."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bitad.config.names import (
    Bins,
    FrameRule,
    MapRule,
    MergeMethod,
    OnDecodeError,
    OnReadError,
    RecallRule,
    Ties,
)
from bitad.data.annotations import Annotations
from bitad.data.clocks import require_durations
from bitad.data.detections import DEFAULT_SCORE, Detections, alike, require_any, under_names
from bitad.evaluation import diagnosis, mean_average_precision
from bitad.evaluation.diagnosis import Diagnosis
from bitad.evaluation.mean_average_precision import Evaluation
from bitad.evaluation.operating_points import check_precision, shown_scores
from bitad.runtime.log import log, log_file, shortlist
from bitad.runtime.progress import progress_shown
from bitad.runtime.workers import Stopped
from bitad.timeline import FloatArray

if TYPE_CHECKING:
    import torch

    from bitad.config.schema import Config
    from bitad.data.sources import Source
    from bitad.evaluation.average_recall import AverageRecall
    from bitad.evaluation.bootstrap import Bootstrap
    from bitad.evaluation.per_frame import FrameEvaluation
    from bitad.evaluation.segmentation import SegmentalF1
    from bitad.weights.checkpoint import Checkpoint

StrPath = str | os.PathLike[str]


class Detector:
    """A trained detector, ready to use: one network or two. Several threads may use it at once.

    Attributes:
        config: of its training.
        classes: their names.
        device: where it computes.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        from bitad.inference.detect import operating_points
        from bitad.models.build import OwnRandomNumbers
        from bitad.runtime.distributed import Ranks

        with OwnRandomNumbers():
            self._network = checkpoint.inference_network(device)
        self._checkpoint = replace(checkpoint, model={}, training=None)  # the network has the weights
        self._points = operating_points(checkpoint)
        self._ranks = Ranks(0, 1, device)
        self.config, self.classes, self.device = checkpoint.config, checkpoint.classes, device

    def __repr__(self) -> str:
        what = f"{self.config.variant}, {len(self.classes)} classes, {self.device}"
        return f"Detector({self._checkpoint.source!r}, {what})"

    def detect(
        self,
        videos: StrPath | Iterable[StrPath],
        *,
        on_decode_error: OnDecodeError = "error",
        on_read_error: OnReadError = "error",
        progress: bool = False,
    ) -> Detections:
        """Detects in video files, like ``bitad detect``.

        Args:
            videos: a file, a folder (with its sub-folders), or several of either.
            on_decode_error: "repeat" shows the last good frame instead.
            on_read_error: "skip" skips videos that cannot be read; ``Detections.unread`` says why.

        Returns:
            the detections by the names of the files without suffix, in seconds.

        Raises:
            FileNotFoundError: no such file, or a folder without videos.
            ValueError: two videos have the same name, a video cannot be read, or the detector takes features.
        """
        from bitad.inference.detect import detect_videos

        files = _video_files([videos] if isinstance(videos, str | os.PathLike) else videos)
        with progress_shown(progress):
            detections = detect_videos(
                self._checkpoint,
                files,
                self._ranks,
                network=self._network,
                damaged=on_decode_error,
                on_read_error=on_read_error,
            )
        for name, reason in detections.unread.items():
            log.warning("%s: %s", name, reason)
        return detections

    def min_scores(self, precision: float | None = None) -> dict[str, float]:
        """By class, the score from which detections are shown, for :meth:`Detections.shown`.

        It was found on the videos with which training evaluated these weights. If it never did, or an earlier version
        of BiTAD, it is 0.3, which is logged.

        Args:
            precision: show as many detections as have this precision, above 0 and at most 1; None: at best F1.

        Raises:
            ValueError: ``precision`` is out of its range.
        """
        if precision is not None:
            check_precision(precision)
        return shown_scores(self._points, self.classes, precision=precision)[0]

    def predict(
        self,
        inputs: ArrayLike,
        fps: float | Fraction,
        *,
        name: str = "video",
        duration_s: float | None = None,
        progress: bool = False,
    ) -> Detections:
        """Detects in the frames, or features, of one video in memory.

        Args:
            inputs: all frames, uint8 RGB ``[T, H, W, 3]``; or, for a detector on features, all features, float
                ``[T, C]``, in the stride and offset of its training.
            fps: frames a second of the video, also for features.
            duration_s: of the video, where detections end; None: to the end of the inputs.

        Returns:
            the detections of one video, in seconds from its first frame.

        Raises:
            ValueError: inputs of another shape or type than the detector takes; fps or duration not above 0.
        """
        from bitad.inference.detect import detect_in_source

        for what, number in (("fps", fps), ("duration_s", duration_s)):
            if number is not None and not (math.isfinite(number) and number > 0):
                raise ValueError(f"{what} {number}; give a number above 0")
        # 29.97 means 2997/100, as the rate of a file is.
        rate = Fraction(fps).limit_denominator(10**6) or Fraction(fps)
        source, seconds = self._source(np.asarray(inputs), rate)
        durations = {name: seconds if duration_s is None else float(duration_s)}
        with progress_shown(progress):
            return detect_in_source(self._checkpoint, self._network, durations, source, self._ranks).merged

    def _source(self, inputs: NDArray[Any], rate: Fraction) -> tuple[Source, float]:
        from bitad.data.sources import FeatureFiles, FeaturesInMemory, FramesInMemory, Sampling

        data, window, backbone = self.config.data, self.config.window, self.config.model.backbone
        given = f"{inputs.dtype} of shape {list(inputs.shape)}"
        if backbone is not None:
            if inputs.dtype != np.uint8 or inputs.ndim != 4 or inputs.shape[3] != 3 or 0 in inputs.shape:
                raise ValueError(f"frames are {given}; this detector takes uint8 [T, H, W, 3]")
            sampling = Sampling(window, self._checkpoint.rate_hz)
            source = FramesInMemory(inputs, float(rate), pixels=backbone.pixels, sampling=sampling)
            return source, float(len(inputs) / rate)
        channels = data.feature_channels
        if inputs.dtype.kind != "f" or inputs.ndim != 2 or len(inputs) == 0 or inputs.shape[1] != channels:
            raise ValueError(f"features are {given}; this detector takes float [T, {channels}]")
        if not np.isfinite(inputs).all():
            raise ValueError("features are not finite numbers; make finite ones")
        if data.reversed_features is not None and "reverse" in self.config.views:
            raise ValueError(
                "this detector also takes features of reversed playback, which predict has no argument for; use "
                "`bitad test`"
            )
        stride, offset = data.feature_stride_frames, data.feature_offset_frames
        store = FeaturesInMemory(np.ascontiguousarray(inputs, np.float32))
        features = FeatureFiles(store, data.model_copy(update={"feature_fps": float(rate)}), window)
        return features, (len(inputs) * stride + 2 * max(0.0, offset)) / float(rate)


def _video_files(places: Iterable[StrPath]) -> dict[str, Path]:
    from bitad.video.files import videos_by_name

    paths = [Path(place) for place in places]
    if not paths:
        raise ValueError("no videos; give at least one")
    return videos_by_name(paths)


def load(
    path: StrPath,
    config: StrPath | Config | None = None,
    *,
    overrides: Sequence[str] = (),
    device: str | None = None,
) -> Detector:
    """Loads a trained detector.

    Args:
        path: a run directory, a checkpoint, or a file of OpenTAD's weights.
        config: for weights without one: a YAML file, the name of a preset, or a configuration.
        overrides: changes to the configuration, ``"test.nms.sigma=0.5"`` say.
        device: "cpu", "cuda" or "cuda:1"; None takes a GPU where there is one.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a detector, weights that do not fit, a missing configuration, or no such device.
    """
    from bitad.runtime.distributed import choose_device

    chosen = choose_device(device)
    return Detector(checkpoint_of(path, config, overrides), chosen)


def checkpoint_of(
    path: StrPath, config: StrPath | Config | None = None, overrides: Sequence[str] = ()
) -> Checkpoint:
    """A checkpoint with its own configuration, or the given one, changed by overrides."""
    from bitad.config.loading import check_overrides, load_config, override_config
    from bitad.config.schema import Config

    if config is None:
        check_overrides(overrides)
    elif not isinstance(config, Config):
        config = load_config(Path(config), overrides)
    elif overrides:
        config = override_config(config, overrides)
    from bitad.weights.checkpoint import load_checkpoint  # loads PyTorch, which takes seconds

    checkpoint = load_checkpoint(Path(path), config)
    return checkpoint.changed(overrides) if config is None else checkpoint


def detect(
    videos: StrPath | Iterable[StrPath],
    checkpoint: StrPath,
    config: StrPath | Config | None = None,
    *,
    device: str | None = None,
    on_decode_error: OnDecodeError = "error",
    on_read_error: OnReadError = "error",
    progress: bool = False,
) -> Detections:
    """As :func:`load`, then :meth:`Detector.detect`."""
    detector = load(checkpoint, config, device=device)
    return detector.detect(videos, on_decode_error=on_decode_error, on_read_error=on_read_error, progress=progress)


def evaluate(
    annotations: Annotations,
    detections: Detections,
    *,
    subset: str,
    tiou: Sequence[float] = (0.3, 0.4, 0.5, 0.6, 0.7),
    rule: MapRule = "activitynet",
    ambiguous: StrPath | None = None,
    class_agnostic: bool = False,
    allow_clock_mismatch: bool = False,
    sources: tuple[object, object] = ("the annotations", "the detections"),
) -> Evaluation:
    """Average mAP of detections, like ``bitad evaluate``.

    Args:
        annotations: the ground truth; ``read_annotations(path, ignore=())`` counts THUMOS14's ``Ambiguous`` as a
            class, as OpenTAD's evaluator and the command line do.
        detections: of these videos; on the reverse clock, they are reversed first.
        tiou: thresholds, each above 0 and at most 1.
        ambiguous: the kit's file of ambiguous segments, where the ground truth has none.
        class_agnostic: measure when something happens, not what; by ActivityNet's rule.
        allow_clock_mismatch: log, and do not refuse, durations that differ from the annotations.
        sources: what errors call annotations and detections.

    Raises:
        ValueError: a subset without ground truth or detections; thresholds outside (0, 1]; durations that differ;
            options that exclude each other.
    """
    from bitad.evaluation.thumos_kit import evaluate_by_thumos_kit

    truth, found, marked = _test_set(annotations, detections, subset, rule, ambiguous, class_agnostic, sources)
    if rule == "activitynet":
        evaluation = mean_average_precision.evaluate(truth, found, tiou=tiou)
    else:
        evaluation = evaluate_by_thumos_kit(truth, found, tiou=tiou, ambiguous=marked)
    compare_durations(truth, found, sources[1], allowed=allow_clock_mismatch)
    return evaluation


def bootstrap(
    annotations: Annotations,
    detections: Sequence[Detections],
    *,
    subset: str,
    resamples: int = 1000,
    seed: int = 0,
    tiou: Sequence[float] = (0.3, 0.4, 0.5, 0.6, 0.7),
    rule: MapRule = "activitynet",
    ambiguous: StrPath | None = None,
    class_agnostic: bool = False,
    allow_clock_mismatch: bool = False,
    names: Sequence[str] = (),
) -> Bootstrap:
    """95 % intervals of mAP and AP over the choice of videos, like ``bitad evaluate --bootstrap``.

    Args:
        annotations, subset, tiou, rule, ambiguous, class_agnostic, allow_clock_mismatch: as in :func:`evaluate`.
        detections: one or several sets; the intervals of differences are those of each minus the first.
        resamples: how often videos are drawn, 100 to 10,000.
        seed: of the random draws; equal ones give equal intervals.
        names: what the result calls the sets.

    Raises:
        ValueError: no set, two of one name, another number of resamples, or as :func:`evaluate`.
    """
    from bitad.evaluation import bootstrap as resampling
    from bitad.evaluation.thumos_kit import match_by_thumos_kit

    resampling.check_resamples(resamples)
    names = names or [f"set {number}" for number in range(1, len(detections) + 1)]
    if len(set(names)) != len(detections):
        raise ValueError(f"{len(detections)} sets of detections and the names {list(names)}; give each its own")
    matches = {}
    for name, one in zip(names, detections, strict=True):
        sources = "the annotations", name
        truth, found, marked = _test_set(annotations, one, subset, rule, ambiguous, class_agnostic, sources)
        if rule == "activitynet":
            matches[name] = {"": mean_average_precision.match(truth, found, tiou=tiou)}
        else:
            matches[name] = {"": match_by_thumos_kit(truth, found, tiou=tiou, ambiguous=marked)}
        compare_durations(truth, found, name, allowed=allow_clock_mismatch)
    return resampling.bootstrap(matches, resamples=resamples, seed=seed)


def _test_set(
    annotations: Annotations,
    detections: Detections,
    subset: str,
    rule: MapRule,
    ambiguous: StrPath | None,
    class_agnostic: bool,
    sources: tuple[object, object],
) -> tuple[Annotations, Detections, dict[str, FloatArray] | None]:
    """The ground truth, the detections under its names, and the kit's ambiguous intervals."""
    from bitad.evaluation.thumos_kit import read_ambiguous
    from bitad.video.names import renamed

    if ambiguous is not None and rule != "thumos-kit":
        raise ValueError("ambiguous segments are only for the kit's rule; use rule thumos-kit, or leave them out")
    if class_agnostic and rule != "activitynet":
        raise ValueError(f"class-agnostic evaluation is only by ActivityNet's rule; leave out rule {rule}")
    truth = annotations.subset(subset)
    found = _comparable(detections, annotations, truth, sources)
    if class_agnostic:
        truth, found = truth.only_classes().class_agnostic(), found.class_agnostic()
    marked = None if ambiguous is None else renamed(read_ambiguous(Path(ambiguous)), truth.videos, ambiguous)
    return truth, found, marked


def average_recall(
    annotations: Annotations,
    detections: Detections,
    *,
    subset: str,
    tiou: Sequence[float] | None = None,
    max_proposals: int = 100,
    rule: RecallRule = "opentad",
    allow_clock_mismatch: bool = False,
    sources: tuple[object, object] = ("the annotations", "the detections"),
) -> AverageRecall:
    """Average recall of detections as proposals (AR@AN, AUC), like ``bitad evaluate --metric ar``.

    Args:
        annotations, detections, subset, allow_clock_mismatch, sources: as in :func:`evaluate`; labels are ignored.
        tiou: thresholds, each above 0 and at most 1; None: 0.5 to 0.95 in steps of 0.05.
        max_proposals: the greatest average number of proposals in a video, 1 to 10,000.
        rule: "opentad", or "activitynet" for the code of ActivityNet's challenge, see
            :mod:`bitad.evaluation.average_recall`.

    Raises:
        ValueError: as :func:`evaluate`, or ``max_proposals`` is out of its range.
    """
    from bitad.evaluation import average_recall as recall

    truth = annotations.subset(subset)
    found = _comparable(detections, annotations, truth, sources)
    thresholds = recall.TIOU if tiou is None else tiou
    result = recall.average_recall(truth, found, tiou=thresholds, max_proposals=max_proposals, rule=rule)
    compare_durations(truth, found, sources[1], allowed=allow_clock_mismatch)
    return result


def frame_map(
    annotations: Annotations,
    scores: Detections | Mapping[str, NDArray[Any]],
    *,
    subset: str,
    rule: FrameRule = "dense",
    fps: float | None = None,
    steps: int | Mapping[str, int] | None = None,
    allow_clock_mismatch: bool = False,
    sources: tuple[object, object] = ("the annotations", "the scores"),
) -> FrameEvaluation:
    """Per-frame mAP of detections or of scores of frames, like ``bitad evaluate --metric frame-map``.

    Args:
        annotations, subset, allow_clock_mismatch, sources: as in :func:`evaluate`.
        scores: by video, an array ``[T, classes]`` in the order of ``annotations.classes``, with minus infinity for a
            step without scores; or detections: the score of a class at a time is the highest of those that contain it.
        rule: "dense", "charades-25" or "sampled-25", see :mod:`bitad.evaluation.per_frame`.
        fps: of detections, steps a second (default: 1).
        steps: of detections, the number of steps instead: of every video, or by video.

    Raises:
        ValueError: as :func:`evaluate`; a video has no duration; scores do not fit; ``fps`` or ``steps`` out of range,
            or where they do not apply.
    """
    from bitad.evaluation import per_frame

    truth = annotations.subset(subset).require_durations(sources[0])
    if isinstance(scores, Detections):
        scores = _comparable(scores, annotations, truth, sources)
        compare_durations(truth, scores, sources[1], allowed=allow_clock_mismatch)
    return per_frame.frame_map(truth, scores, rule=rule, fps=fps, steps=steps, source=sources[1])


def segmental_f1(
    annotations: Annotations,
    detections: Detections,
    *,
    subset: str,
    min_scores: Mapping[str, float] | None = None,
    allow_clock_mismatch: bool = False,
    sources: tuple[object, object] = ("the annotations", "the detections"),
) -> SegmentalF1:
    """F1@{10, 25, 50} and edit score, like ``bitad evaluate --metric segmental``.

    Detections become one label a moment: those with at least the score of their class, without overlap.

    Args:
        annotations, detections, subset, allow_clock_mismatch, sources: as in :func:`evaluate`.
        min_scores: by class, the least score; None: the detections' own ``min_scores``. Classes without one have 0.3.

    Raises:
        ValueError: as :func:`evaluate`, or the ground truth has two labels at a time.
    """
    from bitad.evaluation import segmentation

    truth = annotations.subset(subset)
    found = _comparable(detections, annotations, truth, sources)
    result = segmentation.segmental_f1(truth, found, min_scores=min_scores)
    compare_durations(truth, found, sources[1], allowed=allow_clock_mismatch)
    return result


def _comparable(
    detections: Detections, annotations: Annotations, truth: Annotations, sources: tuple[object, object]
) -> Detections:
    """The detections under the annotations' names of videos; ValueError if none is in a video of the truth."""
    truth_source, source = sources
    found = under_names(detections, annotations.videos, source)
    subsets = " and ".join(map(repr, truth.subsets()))
    require_any(found, truth.videos, source, f"{truth_source}, subset {subsets}")
    return found


def diagnose(
    annotations: Annotations,
    detections: Detections,
    *,
    subset: str | None = None,
    tiou: Sequence[float] = (0.3, 0.4, 0.5, 0.6, 0.7),
    ties: Ties = "own",
    bins: Bins = "quantiles",
    confusion_tiou: float = 0.5,
    allow_clock_mismatch: bool = False,
    sources: tuple[object, object] = ("the annotations", "the detections"),
) -> Diagnosis:
    """The kinds of errors of detections, and what each costs, like ``bitad diagnose``.

    Args:
        annotations: the ground truth.
        detections: of these videos; on the reverse clock, they are reversed first.
        subset: of the annotations; None: all videos.
        tiou: thresholds, each above 0 and at most 1, over which figures are means.
        ties: of equally overlapping segments, "own" blames one of the detection's own label, "file" the first.
        bins: of coverage, length and number of segments: the data's "quantiles", or DETAD's for "thumos14" or
            "activitynet".
        confusion_tiou: of the confusion matrix.
        allow_clock_mismatch: log, and do not refuse, durations that differ from the annotations.
        sources: what errors call annotations and detections.

    Raises:
        ValueError: no ground truth or detections in the subset; thresholds outside (0, 1]; durations that differ.
    """
    truth = annotations if subset is None else annotations.subset(subset)
    found = _comparable(detections, annotations, truth, sources)
    result = diagnosis.diagnose(truth, found, tiou=tiou, ties=ties, bins=bins, confusion_tiou=confusion_tiou)
    compare_durations(truth, found, sources[1], allowed=allow_clock_mismatch)
    return result


def compare_durations(annotations: Annotations, detections: Detections, source: object, *, allowed: bool) -> None:
    mismatch = require_durations(
        {name: video.duration_s for name, video in annotations.videos.items()},
        detections.durations_s,
        source,
        allowed=allowed,
        remedy="name the annotations of these videos, or continue with --allow-clock-mismatch "
        "(allow_clock_mismatch=True)",
    )
    if mismatch is not None:
        log.warning("%s", mismatch)


def merge(*detections: Detections, method: MergeMethod = "wsf", names: Sequence[str] = ()) -> Detections:
    """Late fusion of the detections of several detectors, like ``bitad merge``.

    Merged scores are on another scale, so the result has no ``min_scores``; the log says so if one of the sets has any.

    Args:
        detections: at least two sets, each on its own clock; the result is on the forward clock.
        method: "wsf" (weighted segment fusion), "soft-nms", "mean" or "product", see
            :func:`bitad.inference.merge.merge`.
        names: what errors and the log call the sets.

    Raises:
        ValueError: fewer than two sets, different durations, none in a reversed set, or scores on different scales.
    """
    from bitad.inference import merge as fusion

    names = names or [f"set {number}" for number in range(1, len(detections) + 1)]
    sets = alike(detections, names)
    merged = fusion.merge(*map(_forward, sets, names), method=method, names=names)
    if stated := [str(name) for name, one in zip(names, sets, strict=True) if one.min_scores]:
        log.info(
            "the scores of best F1 in %s do not hold for merged scores; merged detections are shown from %g",
            shortlist(stated, most=2),
            DEFAULT_SCORE,
        )
    return merged


def _forward(detections: Detections, name: str) -> Detections:
    try:
        return detections.forward()
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


@dataclass(frozen=True)
class Run:
    """A training that has ended.

    Args:
        directory: of the run, with its checkpoints, metrics and log.
        average_map: the best of its evaluations, 0 to 1; None if there was none.
    """

    directory: Path
    average_map: float | None

    def load(self, *, device: str | None = None) -> Detector:
        """The detector of its best evaluation, or of its last checkpoint if there was none; see :func:`load`."""
        return load(self.directory, device=device)


# A training uses the random numbers of the process.
_training = threading.Lock()


def train(
    config: Config,
    *,
    resume: bool = False,
    until: int | None = None,
    device: str | None = None,
    allow_changed_data: bool = False,
    progress: bool = False,
) -> Run:
    """Trains a detector, like ``bitad train``; also under torchrun.

    In the main thread, Ctrl-C (or a notebook's interrupt) ends the training after its current step, with a checkpoint;
    ``resume=True`` continues there. PyTorch's random numbers and threads are restored.

    Args:
        resume: continue the run; without it, an existing run is never overwritten.
        until: stop after this epoch, to be resumed later.
        allow_changed_data: resume although data have changed, and log what has.

    Raises:
        FileNotFoundError, ValueError: the run exists, or there is none to resume; data or weights do not fit; another
            process writes to the run directory.
        KeyboardInterrupt: interrupted; the message says where the run stands.
    """
    from bitad.training.trainer import open_run

    if allow_changed_data and not resume:
        raise ValueError("allow_changed_data is for a run that is resumed; add resume=True, or leave it out")
    if until is not None and until < 1:
        raise ValueError(f"until={until} is not an epoch; give 1 or more")
    if not _training.acquire(blocking=False):
        raise ValueError("another thread of this process is training; wait until that has ended")
    try:
        opened = open_run(config, device=device, resume=resume, allow_changed_data=allow_changed_data)
        with progress_shown(progress), opened as trainer, log_file(trainer.directory):
            try:
                best = trainer.run(until=until)
            except Stopped as stopped:
                log.info("stopped %s", stopped)
                raise
    finally:
        _training.release()
    return Run(trainer.directory, best if best >= 0 else None)
