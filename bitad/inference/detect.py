"""Detects actions in videos with one network or a pair, and tests trained runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitad.config.loading import override_config
from bitad.config.names import RESULTS_OF_PAIRS, OnDecodeError, OnReadError
from bitad.config.schema import Config
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.dataset import TestWindows
from bitad.data.detections import Detections, write_detections
from bitad.data.fingerprints import TEST, changes, fingerprints, of_tests
from bitad.data.reversal import Reversal
from bitad.data.samples import Batch, ReadFailure, Sample, collate
from bitad.data.sources import (
    Sampling,
    Source,
    VideoFiles,
    build_source,
    read_evaluation_ground_truth,
    read_test_ground_truth,
)
from bitad.evaluation.mean_average_precision import Evaluation, evaluate
from bitad.evaluation.operating_points import OperatingPoints
from bitad.inference.merge import merge
from bitad.inference.postprocess import Stitcher, decode, suppress_overlaps
from bitad.inference.validate import log_rates, validate_clocks
from bitad.inference.video_scores import read_video_scores
from bitad.inference.whole_video import WindowOutputs, predict_videos
from bitad.models.build import autocast
from bitad.models.network import Network, Output
from bitad.runtime.distributed import Ranks
from bitad.runtime.environment import log_repeated_frames
from bitad.runtime.files import check_replaceable, write_json
from bitad.runtime.log import log
from bitad.runtime.progress import track
from bitad.timeline import View, clock_of
from bitad.video.indexing import INDEX_FOLDER, IndexCache
from bitad.weights.checkpoint import Checkpoint, class_names

# Every file of detections that a test may write.
DETECTION_FILES = tuple(dict.fromkeys(file for files in RESULTS_OF_PAIRS.values() for file in files.values()))


@dataclass(frozen=True)
class Results:
    """The detections of a network or a pair, or of both views of a shared network.

    Args:
        bases: by network or view, on the forward clock; of a pair, ``forward`` and ``reverse``, also of controls.
        views: what each sees.
        merged: all bases as one set.
        unread: by name, why videos could not be read.
    """

    bases: dict[View, Detections]
    views: tuple[View, ...]
    merged: Detections
    unread: dict[str, str]

    def named(self) -> dict[str, Detections]:
        """All results by their display names; the main one comes last."""
        if len(self.bases) == 1:
            return {str(basis): found for basis, found in self.bases.items()}
        return dict(
            zip(RESULTS_OF_PAIRS[clock_of(self.views[1])], (*self.bases.values(), self.merged), strict=True)
        )

    def with_min_scores(self, ground_truth: Annotations) -> tuple[Results, OperatingPoints]:
        """The results with the scores of best F1 of each, and the operating points of the main one."""
        points = OperatingPoints.of(ground_truth, self.merged)
        merged = self.merged.with_min_scores(points.scores(self.merged.classes))
        bases = dict.fromkeys(self.bases, merged)
        if len(self.bases) > 1:
            for basis, found in self.bases.items():
                own = OperatingPoints.of(ground_truth, found)
                bases[basis] = found.with_min_scores(own.scores(found.classes))
        return replace(self, bases=bases, merged=merged), points

    def write(self, out: Path) -> None:
        """Writes detections.json and, for a pair, each network's file, in its own time."""
        write_detections(self.merged, out / "detections.json")
        if len(self.bases) > 1:
            files = RESULTS_OF_PAIRS[clock_of(self.views[1])].values()
            if "detections.reverse.json" not in files:
                (out / "detections.reverse.json").unlink(missing_ok=True)  # earlier versions wrote it
            for file, found, view in zip(files, self.bases.values(), self.views, strict=False):
                write_detections(found if clock_of(view) == "forward" else found.reversed(), out / file)


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
    list_unread: bool = True,
) -> Results:
    """Detects in all videos of ``annotations``; their ground truth is not used.

    Windows are distributed over the processes, and each is decoded once for both views of a pair. Each process
    suppresses and merges the detections of its videos. Every process gets all detections, on the forward clock.

    Args:
        network: in evaluation mode, on the device of ``ranks``.
        details: of the detections; unread videos are added.
        description: for the progress display and the log.
        list_unread: log unread videos and list them without detections; raise if there are no others.

    Raises:
        ValueError, OSError: a video cannot be read (``test.on_read_error``), or none can.
        ChildProcessError: a process that reads has died or hangs.
    """
    windows = TestWindows(annotations, source, config)
    for unread in ranks.gather(windows.unread):  # all processes must distribute the same windows
        windows.leave_out(unread)
    reversal = Reversal.of(config.reversal, annotations.classes)
    stitchers, owners = _stitch_windows(network, windows, reversal, ranks, description)
    for unread in ranks.gather(windows.unread):
        windows.leave_out(unread)
    videos = list(windows.videos)
    if list_unread:
        _log_unread(windows.unread, len(videos), description, ranks)
    else:
        videos = [name for name in videos if name not in windows.unread]
    all_details = {**(details or {}), **({"unread": windows.unread} if windows.unread else {})}
    relabel = None
    if config.test.video_scores is not None:
        scores = read_video_scores(config.test.video_scores).with_classes(annotations.classes)
        relabel = partial(scores.under_names(annotations.videos).label, top_k=config.test.video_classes)
    own = [name for name in videos if owners.get(name, 0) == ranks.rank]
    found = []
    for stitcher, view in zip(stitchers, config.views, strict=True):
        stitcher.leave_out(windows.unread)  # some of their windows may have been read
        view_details = {**all_details, "view": view}
        found.append(stitcher.detections(annotations.classes, own, relabel=relabel, details=view_details))
    if len(found) > 1:
        found.append(merge(*found, method=config.test.merge, settings=config.test.nms.suppression))
    first, *others = (_of_all(parts, videos) for parts in zip(*ranks.gather(found), strict=True))
    if not others:
        return Results({config.views[0]: first}, config.views, first, windows.unread)
    second, merged = others
    return Results({"forward": first, "reverse": second}, config.views, merged, windows.unread)


def _of_all(parts: Sequence[Detections], videos: Sequence[str]) -> Detections:
    """The detections of all processes, each of other videos, in the order of ``videos``."""
    if len(parts) == 1:
        return parts[0]
    union = Detections.concatenate(parts, details=parts[0].details)
    number = {name: i for i, name in enumerate(videos)}
    video = np.array([number[name] for name in union.videos], np.int64)[union.video]
    in_order = replace(
        union,
        videos=tuple(videos),
        video=video,
        durations_s={name: union.durations_s[name] for name in videos if name in union.durations_s},
    )
    return in_order.take(np.argsort(video, kind="stable"))


def _stitch_windows(
    network: Network, windows: TestWindows, reversal: Reversal, ranks: Ranks, description: str
) -> tuple[list[Stitcher], dict[str, int]]:
    """The windows of this process's videos, in a stitcher for each view, and each video's process."""
    config = windows.config
    settings = windows.config.test.nms.suppression
    # If a video is one window, the reference applies NMS before rounding and clipping.
    one_window = config.window.layout != "sliding"
    stitchers = [Stitcher(None if one_window else settings, rounding=config.test.rounding) for _ in config.views]
    predict = predict_videos if config.test.backbone == "video" else _predict_windows
    with windows.readers.watched(), autocast(ranks.device, config.test_precision):
        for videos, grids, predictions in predict(network, windows, ranks, description):
            for prediction, clock, stitcher in zip(predictions, config.clocks, stitchers, strict=True):
                found = decode(
                    prediction,
                    score_threshold=config.test.score_threshold,
                    top_k=config.test.candidates,
                    names=videos,
                )
                for name, grid, candidates in zip(videos, grids, found, strict=True):
                    if clock == "reverse":
                        candidates = replace(candidates, labels=reversal.partner[candidates.labels])
                    kept = suppress_overlaps(candidates, settings) if one_window else candidates
                    duration_s = windows.videos[name].duration_s
                    stitcher.add(name, kept, grid, duration_s, reverse_view=clock == "reverse")
    log_repeated_frames(windows.readers.pop_repeated(), description, ranks)
    return stitchers, _bring_together(stitchers, ranks)


def _bring_together(stitchers: Sequence[Stitcher], ranks: Ranks) -> dict[str, int]:
    """Moves the windows of each video to the first process that has some; returns each video's process.

    Neighbouring windows are in one process, so few videos move.
    """
    owners: dict[str, int] = {}
    names = list(stitchers[0].windows)
    for rank, others in enumerate(ranks.gather(names)):
        for name in others:
            owners.setdefault(name, rank)
    away = [name for name in names if owners[name] != ranks.rank]
    for parts in ranks.gather([stitcher.split_off(away) for stitcher in stitchers]):
        for stitcher, part in zip(stitchers, parts, strict=True):
            stitcher.update(part.split_off([name for name in part.windows if owners[name] == ranks.rank]))
    return owners


def _log_unread(reasons: Mapping[str, str], videos: int, description: str, ranks: Ranks) -> None:
    if reasons and len(reasons) == videos:
        name, reason = next(iter(reasons.items()))
        raise ValueError(f"{description}: none of the {videos} videos can be read; {name}: {reason}")
    if reasons and ranks.is_main:
        count = f"{len(reasons)} of {videos} videos"
        log.warning("%s: %s could not be read; actions in them count as not found", description, count)
        for name, reason in sorted(reasons.items()):
            log.warning("%s: %s", name, reason)


def _predict_windows(
    network: Network, windows: TestWindows, ranks: Ranks, description: str
) -> Iterator[WindowOutputs]:
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
    """Windows ``first`` to ``stop`` in batches, in an order that gives each reader consecutive ones.

    Neighbours overlap, and a reader decodes what they share once.
    """
    batches = [list(range(start, min(start + batch, stop))) for start in range(first, stop, batch)]
    by_reader = np.array_split(np.arange(len(batches)), readers)  # the longer parts first
    ordered = []
    for turn in range(len(by_reader[0])):
        ordered += [batches[own[turn]] for own in by_reader if turn < len(own)]
    return ordered


def _collate(
    samples: Sequence[Sample | ReadFailure], length: int, multiple: int
) -> tuple[Batch | None, dict[str, str]]:
    read = [sample for sample in samples if isinstance(sample, Sample)]
    unread = {sample.video: sample.reason for sample in samples if isinstance(sample, ReadFailure)}
    return collate(read, length, multiple=multiple) if read else None, unread


def detect_videos(
    checkpoint: Checkpoint,
    videos: Mapping[str, Path],
    ranks: Ranks,
    *,
    network: Network | None = None,
    damaged: OnDecodeError = "error",
    on_read_error: OnReadError = "skip",
) -> Detections:
    """Detects in video files, by name, sampled at the rate of the training.

    Memory is bounded by a window, except for 13 bytes per candidate. ``on_read_error`` raises the first error, or
    skips the video (``Detections.unread``).
    """
    if checkpoint.config.model.backbone is None:
        raise ValueError("this detector takes pre-computed features, not videos; use one trained with a backbone")
    source = VideoFiles(
        videos.__getitem__,
        pixels=checkpoint.config.model.backbone.pixels,
        sampling=Sampling(checkpoint.config.window, checkpoint.rate_hz),
        damaged=damaged,
    )
    durations_s, failed = _durations(source, videos, ranks, on_read_error)
    if not durations_s:
        return Detections.from_videos({}, classes=checkpoint.classes, details={"unread": failed})
    network = checkpoint.inference_network(ranks.device) if network is None else network
    results = detect_in_source(checkpoint, network, durations_s, source, ranks, on_read_error=on_read_error)
    failed |= results.unread
    if not failed:
        return results.merged
    return replace(results.merged, details=results.merged.details | {"unread": failed})


def detect_in_source(
    checkpoint: Checkpoint,
    network: Network,
    durations_s: Mapping[str, float],
    source: Source,
    ranks: Ranks,
    *,
    on_read_error: OnReadError = "error",
) -> Results:
    """Detects in videos of known durations without annotations; the main result has the checkpoint's min_scores."""
    nothing = np.zeros((0, 2))
    annotated = {name: AnnotatedVideo(name, "detect", s, nothing, ()) for name, s in durations_s.items()}
    grids = {name: source.grid(video) for name, video in annotated.items()}
    log_rates(grids, checkpoint.rate_hz, checkpoint.config, ranks)
    # There are no video-level scores of these videos, and maybe no room for workers.
    overrides = ["test.video_scores=null", f"test.on_read_error={on_read_error}", "test.workers=0"]
    config = override_config(checkpoint.config, overrides)
    annotations = Annotations(annotated, checkpoint.classes)
    points = operating_points(checkpoint)
    results = detect(network, annotations, source, config, ranks, description="detecting", list_unread=False)
    if points is None:
        return results
    return replace(results, merged=results.merged.with_min_scores(points.scores(checkpoint.classes)))


def operating_points(checkpoint: Checkpoint) -> OperatingPoints | None:
    """Those of a checkpoint's evaluation; None: of an older version, never evaluated, or another project.

    Raises:
        ValueError: they are damaged.
    """
    if checkpoint.operating_points is None:
        return None
    return OperatingPoints.from_json(checkpoint.operating_points, checkpoint.source)


def _durations(
    source: VideoFiles, videos: Mapping[str, Path], ranks: Ranks, on_read_error: OnReadError
) -> tuple[dict[str, float], dict[str, str]]:
    durations_s: dict[str, float] = {}
    failed: dict[str, str] = {}
    for name, path in track(videos.items(), "indexing", len(videos), show=ranks.is_main):
        try:
            durations_s[name] = float(source.frames(path) / source.index(path).rate)
        except (OSError, ValueError) as error:
            if on_read_error == "error":
                raise
            failed[name] = str(error)
    for others in ranks.gather(failed):  # all processes must distribute the same windows
        failed |= others
    return {name: seconds for name, seconds in durations_s.items() if name not in failed}, failed


def detect_on_reversed_playback(checkpoint: Checkpoint, ranks: Ranks) -> Detections:
    """A forward network's detections in the videos that its training evaluated, played backwards.

    They are on the forward clock.
    """
    config = checkpoint.config.model_copy(update={"direction": "reverse"})
    description = f"testing {config.run_directory.name} on reversed playback"
    subset = read_evaluation_ground_truth(config)
    return _detect_in_subset(checkpoint, subset, config, ranks, description=description).merged


def _detect_in_subset(
    checkpoint: Checkpoint, subset: Annotations, config: Config, ranks: Ranks, **options: Any
) -> Results:
    # The run has indexed its videos already.
    source = build_source(checkpoint.config, IndexCache(Path(checkpoint.source).parent / INDEX_FOLDER))
    validate_clocks(subset, source, config, checkpoint.rate_hz, ranks)
    network = checkpoint.inference_network(ranks.device)
    return detect(network, subset, source, config, ranks, **options)


def run_test(checkpoint: Checkpoint, out: Path, ranks: Ranks) -> dict[str, Evaluation]:
    """Detects in the test subset, evaluates every result, and writes the detections; the main one comes last.

    Detection files have the scores of best F1 as their ``min_scores``. Writes metrics.json and the files of
    :meth:`Results.write`; for one network, also detections.reverse.json. If the evaluation fails, the detections stay.

    Raises:
        ValueError: other classes or clocks than in training, or no ground truth.
    """
    config = checkpoint.config
    metrics = out / "metrics.json"
    check_replaceable([metrics, *(out / name for name in DETECTION_FILES)])
    classes = class_names(config)
    if classes != checkpoint.classes:
        trained = f"the detector was trained on {', '.join(checkpoint.classes)}"
        has = f"{config.data.classes or config.data.annotations} has the classes {', '.join(classes)}"
        raise ValueError(f"{has}, but {trained}; name its class list in data.classes")
    details = {"variant": config.variant, "epoch": checkpoint.epoch, "name": config.name, "seed": config.seed}
    subset = read_test_ground_truth(config)
    results = _detect_in_subset(checkpoint, subset, config, ranks, details=details)
    named = results.named()
    if ranks.is_main:
        _log_changed_data(checkpoint, subset)
        metrics.unlink(missing_ok=True)  # an earlier test's, which would not belong to these detections
    scored = results
    try:
        evaluations = {name: evaluate(subset, found, tiou=config.test.tiou) for name, found in named.items()}
        scored, _ = results.with_min_scores(subset)
    except ValueError as error:
        raise ValueError(f"{error}; the detections are in {out / 'detections.json'}") from None
    finally:
        if ranks.is_main:
            scored.write(out)
            if len(named) == 1:
                write_detections(scored.merged.reversed(), out / "detections.reverse.json")
    if ranks.is_main:
        write_json({name: evaluation.to_json() for name, evaluation in evaluations.items()}, metrics)
    return evaluations


def _log_changed_data(checkpoint: Checkpoint, subset: Annotations) -> None:
    before = of_tests(checkpoint.data or {})
    if before.get(TEST, {}).keys().isdisjoint(subset.videos):
        return  # an older checkpoint, another data set, or another part of it
    if changed := changes(before, of_tests(fingerprints(checkpoint.config, [], subset))):
        log.warning("the test data have changed since %s was written: %s", checkpoint.source, "; ".join(changed))
