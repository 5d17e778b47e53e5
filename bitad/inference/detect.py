"""Detects actions in videos by one network or a pair of them, and tests trained runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bitad.config.experiments import RESULTS_OF_PAIRS
from bitad.config.loading import override_config
from bitad.config.names import OnDecodeError, OnReadError
from bitad.config.schema import Config
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.dataset import Batch, ReadFailure, Sample, TestWindows, collate
from bitad.data.detections import Detections, write_detections
from bitad.data.fingerprints import TEST, changes, fingerprints, of_tests
from bitad.data.sources import (
    FeatureFiles,
    Sampling,
    Source,
    VideoFiles,
    build_source,
    read_test_ground_truth,
)
from bitad.evaluation.mean_average_precision import Evaluation, evaluate
from bitad.inference.merge import merge
from bitad.inference.postprocess import Candidates, Stitcher, decode, suppressed
from bitad.inference.validate import log_rates, validate_clocks
from bitad.inference.video_scores import read_video_scores
from bitad.inference.whole_video import WindowOutputs, log_read_failures, read_ahead, see_videos
from bitad.models.build import autocast
from bitad.models.network import Network, Output
from bitad.runtime.distributed import Ranks
from bitad.runtime.environment import log_repeated_frames
from bitad.runtime.files import check_replaceable, write_json
from bitad.runtime.log import log
from bitad.runtime.progress import track
from bitad.timeline import Direction
from bitad.video.indexing import INDEX_FOLDER, IndexCache
from bitad.weights.checkpoint import Checkpoint, class_names

# Every file of detections that a test may write.
DETECTION_FILES = tuple(dict.fromkeys(file for files in RESULTS_OF_PAIRS.values() for file in files.values()))


@dataclass(frozen=True)
class Results:
    """What a network or a pair found.

    Args:
        bases: for each network's basis its detections, on the forward clock: ``forward`` and ``reverse``, one of them
            for a single network; the control's second network, which watches forwards, comes as ``reverse``.
        views: the playing direction of each.
        merged: the detections of all bases as one set; those of the only one as they are.
        unread: by name, why videos could not be read.
    """

    bases: dict[Direction, Detections]
    views: tuple[Direction, ...]
    merged: Detections
    unread: dict[str, str]

    def named(self) -> dict[str, Detections]:
        """All results under the names that people read; the one that stands for the whole comes last."""
        if len(self.bases) == 1:
            return {str(basis): found for basis, found in self.bases.items()}
        return dict(zip(RESULTS_OF_PAIRS[self.views[1]], (*self.bases.values(), self.merged), strict=True))

    def write(self, out: Path) -> None:
        """Writes ``out``/detections.json and, of a pair, what each network found (``RESULTS_OF_PAIRS``).

        What a network found that watches in reverse is written in reverse time, D - t.
        """
        write_detections(self.merged, out / "detections.json")
        if len(self.bases) > 1:
            files = RESULTS_OF_PAIRS[self.views[1]].values()
            if "detections.reverse.json" not in files:
                (out / "detections.reverse.json").unlink(missing_ok=True)  # an earlier version's, of the control
            for file, found, view in zip(files, self.bases.values(), self.views, strict=False):
                write_detections(found if view == "forward" else found.reversed(), out / file)


def detect(
    network: Network,
    annotations: Annotations,
    source: Source,
    config: Config,
    ranks: Ranks,
    *,
    details: Mapping[str, Any] | None = None,
    what: str = "testing",
) -> Results:
    """Detects in all videos of ``annotations`` (their ground truth is not looked at; their classes name the labels).

    Windows are spread over the processes, each seen once and decoded once for both views of a pair; with
    ``test.backbone=video`` videos are, see :mod:`bitad.inference.whole_video`. Every process gets all detections, on
    the forward clock, also those of a network that watches in reverse.

    Args:
        network: in evaluation mode, on the device of ``ranks``.
        source: of the windows.
        details: for :class:`~bitad.data.detections.Detections`, which also say which videos could not be read, and why,
            where that is allowed (``test.on_read_error``).
        what: for the progress display.

    Raises:
        ValueError, OSError: a video cannot be read, where that is an error; or none can.
        ChildProcessError: a process that reads has died or hangs.
    """
    results = _detect(network, annotations, source, config, ranks, details=details or {}, what=what)
    log_read_failures(results.unread, len(annotations.videos), what, ranks)
    return results


@torch.inference_mode()
def _detect(
    network: Network,
    annotations: Annotations,
    source: Source,
    config: Config,
    ranks: Ranks,
    *,
    details: Mapping[str, Any],
    what: str,
) -> Results:
    """:func:`detect`, which leaves it to the caller to say what could not be read, be it all."""
    views, settings = config.views, config.test.nms.suppression
    # Where a video is one window, the reference suppresses in grid steps, before anything is rounded or cut off.
    one_window = config.window.layout != "sliding"
    stitchers = [Stitcher(None if one_window else settings, rounding=config.test.rounding) for _ in views]
    durations = {video.name: video.duration_s for video in annotations.videos.values()}
    repeated = 0
    windows = TestWindows(annotations, source, config)
    for unread in ranks.gather(windows.unread):  # all processes must share out the same windows
        windows.leave_out(unread)
    see = see_videos if config.test.backbone == "video" else _see_windows
    with windows.readers.watched(), autocast(ranks.device, config.test.precision):
        for seen in see(network, windows, ranks, what=what):
            repeated += seen.repeated
            for prediction, view, stitcher in zip(seen.predictions, views, stitchers, strict=True):
                found = decode(
                    prediction,
                    score_threshold=config.test.score_threshold,
                    top_k=config.test.candidates,
                    names=seen.videos,
                )
                for name, grid, candidates in zip(seen.videos, seen.grids, found, strict=True):
                    kept = suppressed(candidates, settings) if one_window else candidates
                    stitcher.add(name, kept, grid, durations[name], reverse_view=view == "reverse")
    log_repeated_frames(repeated, what, ranks)
    for others in ranks.gather(stitchers):
        for stitcher, other in zip(stitchers, others, strict=True):
            stitcher.update(other)
    for unread in ranks.gather(windows.unread):
        windows.leave_out(unread)
    for stitcher in stitchers:
        stitcher.leave_out(windows.unread)  # of some, there are windows that could be read
    said = {**details, **({"unread": windows.unread} if windows.unread else {})}
    names = list(durations)
    relabel = _relabelling(config, annotations)
    found_by_each = [
        stitcher.detections(annotations.classes, videos=names, relabel=relabel, details={**said, "view": view})
        for stitcher, view in zip(stitchers, views, strict=True)
    ]
    if len(views) == 1:
        return Results({views[0]: found_by_each[0]}, views, found_by_each[0], windows.unread)
    first, second = found_by_each
    merged = merge(first, second, method=config.test.merge, settings=settings)
    return Results({"forward": first, "reverse": second}, views, merged, windows.unread)


def _relabelling(config: Config, annotations: Annotations) -> Callable[[str, Candidates], Candidates]:
    """How what is found gets its classes: as the network has them, or by scores of whole videos."""
    if config.test.video_scores is None:
        return lambda video, found: found
    scores = read_video_scores(config.test.video_scores).with_classes(annotations.classes)
    scores = scores.under_names(annotations.videos)
    return lambda video, found: scores.label(found, video, top_k=config.test.video_classes)


class _Shown(NamedTuple):
    """A batch of the windows that could be read, if any, and why others could not, by the video's name."""

    batch: Batch | None
    unread: dict[str, str]


def _collate(samples: Sequence[Sample | ReadFailure], *, length: int, multiple: int) -> _Shown:
    read = [sample for sample in samples if isinstance(sample, Sample)]
    return _Shown(
        collate(read, length, multiple=multiple) if read else None,
        {sample.video: sample.reason for sample in samples if isinstance(sample, ReadFailure)},
    )


def _in_stretches(first: int, stop: int, *, batch: int, readers: int) -> list[list[int]]:
    """Windows in batches of neighbours, so that each of the processes that read them in turn gets a stretch of these.

    Neighbours overlap, and what they share is read once.
    """
    batches = [list(range(start, min(start + batch, stop))) for start in range(first, stop, batch)]
    stretches = np.array_split(np.arange(len(batches)), readers)  # the longer ones first
    return [batches[own[turn]] for turn in range(len(stretches[0])) for own in stretches if turn < len(own)]


def _see_windows(network: Network, windows: TestWindows, ranks: Ranks, *, what: str) -> Iterator[WindowOutputs]:
    """What a network or a pair says about this process' share of all windows, each by itself."""
    config = windows.config
    loader = read_ahead(
        windows,
        windows.workers,
        batch_sampler=_in_stretches(
            len(windows) * ranks.rank // ranks.world,
            len(windows) * (ranks.rank + 1) // ranks.world,
            batch=1 if config.window.layout == "whole" else config.test.batch,  # their lengths differ
            readers=max(1, windows.workers),
        ),
        collate_fn=partial(_collate, length=config.window.steps, multiple=config.clip_steps),
        pin_memory=ranks.device.type == "cuda",
    )
    for batch, unread in track(loader, what, len(loader), show=ranks.is_main):
        windows.unread.update(unread)
        if batch is not None:
            views = batch.to(ranks.device).in_views(config.views)
            output: Output = network([view.inputs for view in views], views[0].mask)
            yield WindowOutputs(batch.videos, batch.grids, output.predictions, batch.repeated)


def detect_videos(
    checkpoint: Checkpoint,
    videos: Mapping[str, Path],
    ranks: Ranks,
    *,
    network: Network | None = None,
    damaged: OnDecodeError = "error",
    on_read_error: OnReadError = "skip",
) -> tuple[Detections, dict[str, str]]:
    """Detects in video files, sampled at the rate of the training.

    Memory is bounded by a window, except for the candidates: 13 bytes each, at most ``test.candidates`` in a window of
    each network.

    Args:
        videos: files by name.
        network: of the checkpoint, on the device of ``ranks``; None builds it.
        damaged: what to do about frames that cannot be decoded, see :class:`~bitad.video.reader.VideoReader`.
        on_read_error: raise the error of the first video that cannot be read, or skip the video.

    Returns:
        the detections of all videos that can be read; and why others cannot, by name.

    Raises:
        ValueError: the detector takes features.
        ValueError, OSError: a video cannot be read, with ``on_read_error="error"``.
    """
    if checkpoint.config.model.backbone is None:
        raise ValueError("this detector takes pre-computed features, not videos; give one trained with a backbone")
    source = VideoFiles(
        videos.__getitem__,
        pixels=checkpoint.config.model.backbone.pixels,
        sampling=Sampling.of(checkpoint.config.window, checkpoint.rate_hz),
        damaged=damaged,
    )
    known, failed = _durations(source, videos, ranks, on_read_error)
    if not known:
        return Detections.from_videos({}, classes=checkpoint.classes, details={"unread": failed}), failed
    network = checkpoint.network().to(ranks.device) if network is None else network
    results = detect_in_source(checkpoint, network, known, source, ranks, on_read_error=on_read_error)
    found, failed = results.merged, failed | results.unread
    of_each = {name: found.of_video(name) for name in known if name not in failed}
    detections = Detections.from_videos(
        {name: (one.segments, one.scores, one.labels) for name, one in of_each.items()},
        classes=found.classes,
        durations_s={name: known[name] for name in of_each},
        details=found.details | ({"unread": failed} if failed else {}),
    )
    return detections, failed


def detect_in_source(
    checkpoint: Checkpoint,
    network: Network,
    durations_s: Mapping[str, float],
    source: Source,
    ranks: Ranks,
    *,
    on_read_error: OnReadError = "error",
) -> Results:
    """Detects in videos without annotations.

    Args:
        network: of the checkpoint, on the device of ``ranks``.
        durations_s: of the videos, by name.
        source: of their windows.
        on_read_error: as of :func:`detect_videos`.
    """
    annotations = Annotations(
        {
            name: AnnotatedVideo(name, "detect", duration, np.zeros((0, 2)), ())
            for name, duration in durations_s.items()
        },
        checkpoint.classes,
    )
    if checkpoint.config.window.layout != "resized" and ranks.is_main:  # there each video has a rate of its own
        bases = {name: source.grid(video) for name, video in annotations.videos.items()}
        log_rates({name: base.fps / base.stride_frames for name, base in bases.items()}, checkpoint.rate_hz)
    # Nobody has scored these videos as a whole: the classes are the network's own. And what the machine that trained
    # had room for, other processes and what they share, this one need not have.
    changes = ["test.video_scores=null", f"test.on_read_error={on_read_error}", "test.workers=0"]
    config = override_config(checkpoint.config, changes)
    return _detect(network, annotations, source, config, ranks, details={}, what="detecting")


def _durations(
    source: VideoFiles, videos: Mapping[str, Path], ranks: Ranks, on_read_error: OnReadError
) -> tuple[dict[str, float], dict[str, str]]:
    """How many seconds videos last, which reads each file through; and why others cannot be read, by name."""
    known: dict[str, float] = {}
    failed: dict[str, str] = {}
    for name, path in track(videos.items(), "reading through", len(videos), show=ranks.is_main):
        try:
            known[name] = float(source.frames(path) / source.index(path).rate)
        except (OSError, ValueError) as error:
            if on_read_error == "error":
                raise
            failed[name] = str(error)
    for others in ranks.gather(failed):  # all processes must share out the same windows
        failed |= others
    return {name: duration for name, duration in known.items() if name not in failed}, failed


def detect_on_reversed_playback(checkpoint: Checkpoint, ranks: Ranks) -> Detections:
    """What a forward network finds in its test videos played backwards, on the forward clock.

    The windows are those of forward playback, flipped. What it says there tells how much classes depend on the
    direction: :func:`bitad.evaluation.direction_sensitivity.sensitivity`.
    """
    config = checkpoint.config
    subset = read_test_ground_truth(config)
    flipped = config.model_copy(update={"direction": "reverse"})
    source = _source(checkpoint)
    validate_clocks(subset, source, config, checkpoint.rate_hz, ranks)
    network = checkpoint.network().to(ranks.device)
    what = f"testing {config.run_directory.name} on reversed playback"
    return detect(network, subset, source, flipped, ranks, what=what).merged


def run_test(checkpoint: Checkpoint, out: Path, ranks: Ranks) -> dict[str, Evaluation]:
    """Detects in the test subset and writes what was found; the evaluation of every result, the whole run's last.

    Writes ``out``/detections.json (forward time), ``out``/detections.reverse.json (reverse time, D - t) and
    ``out``/metrics.json. Of one network the two files of detections hold the same ones; of a pair the first holds the
    merged ones, the second those of the reverse basis, and ``out``/detections.forward.json those of the forward basis;
    of two forward networks ``out``/detections.second.json has those of the second one, in forward time.

    What was found is written before it is evaluated, and stays where that fails.

    Raises:
        ValueError: if the data set has other classes than the network; if its clocks disagree; if the subset has no
            ground truth, and then the message says where the detections are.
    """
    config, metrics = checkpoint.config, out / "metrics.json"
    check_replaceable([metrics, *(out / name for name in DETECTION_FILES)])
    classes = class_names(config)
    if classes != checkpoint.classes:
        raise ValueError(
            f"{config.data.classes or config.data.annotations} has the classes {', '.join(classes)}, but the detector "
            f"was trained on {', '.join(checkpoint.classes)}; test on its own data set, or name its class list in "
            "data.classes"
        )
    subset = read_test_ground_truth(config)
    details = {"variant": config.variant, "epoch": checkpoint.epoch, "name": config.name, "seed": config.seed}
    source = _source(checkpoint)
    validate_clocks(subset, source, config, checkpoint.rate_hz, ranks)
    network = checkpoint.network().to(ranks.device)
    results = detect(network, subset, source, config, ranks, details=details)
    named = results.named()
    if ranks.is_main:
        _say_changed(checkpoint, subset)
        metrics.unlink(missing_ok=True)  # an earlier test's, which would be taken for these detections' own
        results.write(out)
        if len(named) == 1:
            write_detections(results.merged.reversed(), out / "detections.reverse.json")
    try:
        evaluations = {name: evaluate(subset, found, tiou=config.test.tiou) for name, found in named.items()}
    except ValueError as error:
        raise ValueError(f"{error}; the detections are in {out / 'detections.json'}") from None
    if ranks.is_main:
        write_json({name: evaluation.to_json() for name, evaluation in evaluations.items()}, metrics)
    return evaluations


def _say_changed(checkpoint: Checkpoint, subset: Annotations) -> None:
    """Log what of the test videos has changed since the checkpoint was written, if these are the ones of its run."""
    before = of_tests(checkpoint.data or {})
    if before.get(TEST, {}).keys().isdisjoint(subset.videos):
        return  # an older checkpoint, another data set, or another part of it
    if changed := changes(before, of_tests(fingerprints(checkpoint.config, [], subset))):
        log.warning("the test data have changed since %s was written: %s", checkpoint.source, "; ".join(changed))


def _source(checkpoint: Checkpoint) -> VideoFiles | FeatureFiles:
    """Of the windows to test on; what the run knows of its videos' frames need not be found out again."""
    return build_source(checkpoint.config, IndexCache(Path(checkpoint.source).parent / INDEX_FOLDER))
