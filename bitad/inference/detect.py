"""Detects actions in videos with one network or a pair, and tests trained runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitad.config.experiments import RESULTS_OF_PAIRS
from bitad.config.loading import override_config
from bitad.config.names import OnDecodeError
from bitad.config.schema import Config
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.dataset import TestWindows
from bitad.data.detections import Detections, write_detections
from bitad.data.fingerprints import TEST, changes, fingerprints, of_tests
from bitad.data.samples import Batch, ReadFailure, Sample, collate
from bitad.data.sources import Source, VideoFiles, build_source, read_test_ground_truth
from bitad.evaluation.mean_average_precision import Evaluation, evaluate
from bitad.inference.merge import merge
from bitad.inference.postprocess import Candidates, Stitcher, decode, suppress
from bitad.inference.validate import log_rates, validate_clocks
from bitad.inference.video_scores import read_video_scores
from bitad.inference.whole_video import WindowOutputs, predict_videos
from bitad.models.build import autocast
from bitad.models.network import Network, Output
from bitad.runtime.distributed import Ranks
from bitad.runtime.environment import log_repeated_frames
from bitad.runtime.files import check_places, write_json
from bitad.runtime.log import log
from bitad.runtime.progress import track
from bitad.timeline import Direction
from bitad.video.indexing import INDEX_FOLDER, IndexCache
from bitad.weights.checkpoint import Checkpoint, class_names

# Every file of detections that a test may write.
DETECTION_FILES = tuple(dict.fromkeys(file for files in RESULTS_OF_PAIRS.values() for file in files.values()))


@dataclass(frozen=True)
class Results:
    """The detections of a network or a pair.

    Args:
        bases: for each network's basis its detections, on the forward clock: ``forward`` and ``reverse``, one of them
            for a single network; ``reverse`` also holds the second of two forward networks.
        views: the playing direction of each.
        merged: the detections of all bases as one set.
        unread: by name, why videos could not be read.
    """

    bases: dict[Direction, Detections]
    views: tuple[Direction, ...]
    merged: Detections
    unread: dict[str, str]

    def named(self) -> dict[str, Detections]:
        """All results under the names that people read; the run's main result comes last."""
        if len(self.bases) == 1:
            return {str(basis): found for basis, found in self.bases.items()}
        return dict(zip(RESULTS_OF_PAIRS[self.views[1]], (*self.bases.values(), self.merged), strict=True))

    def write(self, out: Path) -> None:
        """Writes ``out``/detections.json and, for a pair, each network's detections (``RESULTS_OF_PAIRS``).

        Those of a network in reverse are written in reverse time, D - t.
        """
        write_detections(self.merged, out / "detections.json")
        if len(self.bases) > 1:
            files = RESULTS_OF_PAIRS[self.views[1]].values()
            if "detections.reverse.json" not in files:
                (out / "detections.reverse.json").unlink(missing_ok=True)  # earlier versions wrote it
            for file, found, view in zip(files, self.bases.values(), self.views, strict=False):
                write_detections(found if view == "forward" else found.reversed(), out / file)


@torch.inference_mode()
def detect(
    network: Network,
    annotations: Annotations,
    source: Source,
    config: Config,
    ranks: Ranks,
    *,
    details: Mapping[str, Any] | None = None,
    description: str = "testing",
    log_unread: bool = True,
) -> Results:
    """Detects in all videos of ``annotations``, whose ground truth is not used; their classes name the labels.

    Windows are distributed over the processes; each is decoded once for both views of a pair. With
    ``test.backbone=video``, videos are distributed, see :mod:`bitad.inference.whole_video`. Every process gets all
    detections, on the forward clock.

    Args:
        network: in evaluation mode, on the device of ``ranks``.
        source: of the windows.
        details: for :class:`~bitad.data.detections.Detections`; videos that could not be read are added, if allowed
            (``test.on_read_error``).
        description: for the progress display and the log.
        log_unread: log the videos that could not be read, and raise if none could; else the caller does.

    Raises:
        ValueError, OSError: a video cannot be read, if that is an error; or none can.
        ChildProcessError: a process that reads has died or hangs.
    """
    views, settings = config.views, config.test.nms.suppression
    # If a video is one window, the reference applies NMS in grid steps, before rounding and clipping.
    one_window = config.window.layout != "sliding"
    stitchers = [Stitcher(None if one_window else settings, rounding=config.test.rounding) for _ in views]
    durations_s = {video.name: video.duration_s for video in annotations.videos.values()}
    windows = TestWindows(annotations, source, config)
    for unread in ranks.gather(windows.unread):  # all processes must distribute the same windows
        windows.leave_out(unread)
    predict = predict_videos if config.test.backbone == "video" else _predict_windows
    with windows.readers.watched(), autocast(ranks.device, config.test.precision):
        for output in predict(network, windows, ranks, description=description):
            for prediction, view, stitcher in zip(output.predictions, views, stitchers, strict=True):
                found = decode(
                    prediction,
                    score_threshold=config.test.score_threshold,
                    top_k=config.test.candidates,
                    names=output.videos,
                )
                for name, grid, candidates in zip(output.videos, output.grids, found, strict=True):
                    kept = suppress(candidates, settings) if one_window else candidates
                    stitcher.add(name, kept, grid, durations_s[name], reverse_view=view == "reverse")
    log_repeated_frames(windows.readers.pop_repeated(), description, ranks)
    for others in ranks.gather(stitchers):
        for stitcher, other in zip(stitchers, others, strict=True):
            stitcher.update(other)
    for unread in ranks.gather(windows.unread):
        windows.leave_out(unread)
    all_details = {**(details or {}), **({"unread": windows.unread} if windows.unread else {})}
    relabel = _relabel_function(config, annotations)
    detections = []
    for stitcher, view in zip(stitchers, views, strict=True):
        stitcher.leave_out(windows.unread)  # some of their windows may have been read
        detections.append(
            stitcher.detections(
                annotations.classes,
                videos=list(durations_s),
                relabel=relabel,
                details={**all_details, "view": view},
            )
        )
    if log_unread:
        _log_unread(windows.unread, len(durations_s), description, ranks)
    if len(views) == 1:
        return Results({views[0]: detections[0]}, views, detections[0], windows.unread)
    merged = merge(*detections, method=config.test.merge, settings=settings)
    return Results({"forward": detections[0], "reverse": detections[1]}, views, merged, windows.unread)


def _relabel_function(config: Config, annotations: Annotations) -> Callable[[str, Candidates], Candidates]:
    """Labels a video's candidates by video-level scores, if the configuration names them."""
    if config.test.video_scores is None:
        return lambda video, found: found
    scores = read_video_scores(config.test.video_scores).with_classes(annotations.classes)
    scores = scores.under_names(annotations.videos)
    return lambda video, found: scores.label(found, video, top_k=config.test.video_classes)


def _log_unread(reasons: Mapping[str, str], videos: int, description: str, ranks: Ranks) -> None:
    """Logs which of so many videos could not be read; raises if none could."""
    if reasons and len(reasons) == videos:
        name, reason = next(iter(reasons.items()))
        raise ValueError(f"{description}: none of the {videos} videos can be read; {name}: {reason}")
    if reasons and ranks.is_main:
        log.warning(
            "%s: %d of %d videos could not be read; actions in them count as not found",
            description,
            len(reasons),
            videos,
        )
        for name, reason in sorted(reasons.items()):
            log.warning("%s: %s", name, reason)


def _predict_windows(
    network: Network, windows: TestWindows, ranks: Ranks, *, description: str
) -> Iterator[WindowOutputs]:
    """The predictions for this process's share of all windows."""
    config = windows.config
    loader = windows.readers.loader(
        windows,
        batch_sampler=_consecutive_batches(
            len(windows) * ranks.rank // ranks.world,
            len(windows) * (ranks.rank + 1) // ranks.world,
            batch=1 if config.window.layout == "whole" else config.test.batch,  # whole videos differ in length
            readers=max(1, windows.readers.processes),
        ),
        collate_fn=partial(_collate, length=config.window.steps, multiple=config.clip_steps),
        pin_memory=ranks.device.type == "cuda",
    )
    for batch, unread in track(loader, description, len(loader), show=ranks.is_main):
        windows.unread.update(unread)
        if batch is not None:
            views = batch.to(ranks.device).in_views(config.views)
            output: Output = network([view.inputs for view in views], views[0].mask)
            yield WindowOutputs(batch.videos, batch.grids, output.predictions)


def _consecutive_batches(first: int, stop: int, *, batch: int, readers: int) -> list[list[int]]:
    """Windows ``first`` to ``stop`` in batches, ordered so that each reader, in turn, gets consecutive batches.

    Neighbouring windows overlap, and a reader decodes what they share once.
    """
    batches = [list(range(start, min(start + batch, stop))) for start in range(first, stop, batch)]
    by_reader = np.array_split(np.arange(len(batches)), readers)  # the longer parts first
    return [batches[own[turn]] for turn in range(len(by_reader[0])) for own in by_reader if turn < len(own)]


def _collate(
    samples: Sequence[Sample | ReadFailure], *, length: int, multiple: int
) -> tuple[Batch | None, dict[str, str]]:
    """The windows that could be read, if any, and by the video's name why others could not."""
    read = [sample for sample in samples if isinstance(sample, Sample)]
    unread = {sample.video: sample.reason for sample in samples if isinstance(sample, ReadFailure)}
    return collate(read, length, multiple=multiple) if read else None, unread


def detect_videos(
    checkpoint: Checkpoint, videos: Mapping[str, Path], ranks: Ranks, *, damaged: OnDecodeError = "error"
) -> tuple[Detections, dict[str, str]]:
    """Detects in video files, sampled at the rate of the training; merges what the two networks of a pair find.

    Memory is bounded by a window, except for the candidates: 13 bytes each, at most ``test.candidates`` in a window of
    each network.

    Args:
        videos: files by name.
        damaged: how to handle frames that cannot be decoded, see :class:`~bitad.video.reader.VideoReader`.

    Returns:
        the detections of all videos that can be read; and by name why others cannot.

    Raises:
        ValueError: the detector takes features.
    """
    config = checkpoint.config
    if config.model.backbone is None:
        raise ValueError("this detector takes pre-computed features, not videos; use one trained with a backbone")
    source = VideoFiles(
        videos.__getitem__,
        pixels=config.model.backbone.pixels,
        rate_hz=checkpoint.rate_hz,
        steps=config.window.resized_steps,
        clock=config.window.resized_clock,
        frames_per_step=config.window.frames_per_step,
        damaged=damaged,
    )
    durations_s, failed = _durations(source, videos, ranks)
    if not durations_s:
        return Detections.from_videos({}, classes=checkpoint.classes), failed
    annotated = {name: AnnotatedVideo(name, "detect", s, np.zeros((0, 2)), ()) for name, s in durations_s.items()}
    log_rates({name: source.grid(video) for name, video in annotated.items()}, checkpoint.rate_hz, config, ranks)
    network = checkpoint.network().to(ranks.device)
    # These videos have no video-level scores. Worker processes are a choice for the training's machine.
    config = override_config(config, ["test.video_scores=null", "test.on_read_error=skip", "test.workers=0"])
    annotations = Annotations(annotated, checkpoint.classes)
    results = detect(network, annotations, source, config, ranks, description="detecting", log_unread=False)
    found, failed = results.merged, failed | results.unread
    of_each = {name: found.of_video(name) for name in durations_s if name not in failed}
    detections = Detections.from_videos(
        {name: (one.segments, one.scores, one.labels) for name, one in of_each.items()},
        classes=found.classes,
        durations_s={name: durations_s[name] for name in of_each},
        details=found.details | ({"unread": failed} if failed else {}),
    )
    return detections, failed


def _durations(source: VideoFiles, videos: Mapping[str, Path], ranks: Ranks) -> tuple[dict[str, float], dict[str, str]]:
    """The seconds of each video, from its index; and by name why others cannot be read."""
    durations_s: dict[str, float] = {}
    failed: dict[str, str] = {}
    for name, path in track(videos.items(), "indexing", len(videos), show=ranks.is_main):
        try:
            durations_s[name] = float(source.frames(path) / source.index(path).rate)
        except (OSError, ValueError) as error:
            failed[name] = str(error)
    for others in ranks.gather(failed):  # all processes must distribute the same windows
        failed |= others
    return {name: seconds for name, seconds in durations_s.items() if name not in failed}, failed


def detect_on_reversed_playback(checkpoint: Checkpoint, ranks: Ranks) -> Detections:
    """A forward network's detections in its test videos played backwards, on the forward clock.

    The windows are those of forward playback, flipped. The result shows how much classes depend on the direction:
    :func:`bitad.evaluation.direction_sensitivity.sensitivity`.
    """
    config = checkpoint.config.model_copy(update={"direction": "reverse"})
    description = f"testing {config.run_directory.name} on reversed playback"
    return _detect_in_test_subset(checkpoint, config, ranks, description=description)[1].merged


def _detect_in_test_subset(
    checkpoint: Checkpoint, config: Config, ranks: Ranks, **options: Any
) -> tuple[Annotations, Results]:
    """The checkpoint's test subset, and the detections in it under a changed configuration."""
    subset = read_test_ground_truth(checkpoint.config)
    # The run has indexed its videos already.
    source = build_source(checkpoint.config, IndexCache(Path(checkpoint.source).parent / INDEX_FOLDER))
    validate_clocks(subset, source, config, checkpoint.rate_hz, ranks)
    network = checkpoint.network().to(ranks.device)
    return subset, detect(network, subset, source, config, ranks, **options)


def run_test(checkpoint: Checkpoint, out: Path, ranks: Ranks) -> dict[str, Evaluation]:
    """Detects in the test subset, writes the detections, and evaluates every result; the run's main one comes last.

    Writes ``out``/detections.json (forward time), ``out``/detections.reverse.json (reverse time, D - t) and
    ``out``/metrics.json. For one network, both files hold the same detections. For a pair, the first holds the merged
    ones, the second those of the reverse basis, and ``out``/detections.forward.json those of the forward basis; for two
    forward networks, ``out``/detections.second.json holds those of the second one, in forward time.

    The detections are written before the evaluation, and stay if that fails.

    Raises:
        ValueError: the data set has other classes than the network; its clocks disagree; or the subset has no ground
            truth (the message names the detections).
    """
    config, metrics = checkpoint.config, out / "metrics.json"
    check_places([metrics, *(out / name for name in DETECTION_FILES)])
    classes = class_names(config)
    if classes != checkpoint.classes:
        raise ValueError(
            f"{config.data.classes or config.data.annotations} has the classes {', '.join(classes)}, but the detector "
            f"was trained on {', '.join(checkpoint.classes)}; test on its own data set, or name its class list in "
            "data.classes"
        )
    details = {"variant": config.variant, "epoch": checkpoint.epoch, "name": config.name, "seed": config.seed}
    subset, results = _detect_in_test_subset(checkpoint, config, ranks, details=details)
    named = results.named()
    if ranks.is_main:
        _log_changed_data(checkpoint, subset)
        metrics.unlink(missing_ok=True)  # an earlier test's, which would not belong to these detections
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


def _log_changed_data(checkpoint: Checkpoint, subset: Annotations) -> None:
    """Logs how the run's test data have changed since the checkpoint was written."""
    before = of_tests(checkpoint.data or {})
    if before.get(TEST, {}).keys().isdisjoint(subset.videos):
        return  # an older checkpoint, another data set, or another part of it
    if changed := changes(before, of_tests(fingerprints(checkpoint.config, [], subset))):
        log.warning("the test data have changed since %s was written: %s", checkpoint.source, "; ".join(changed))
