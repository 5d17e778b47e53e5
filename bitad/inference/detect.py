"""Videos in, detections out: a trained detector over sliding windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from bitad.config import Config, NmsConfig
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.dataset import Source, TestWindows, VideoFiles, collate
from bitad.data.detections import Detections
from bitad.inference.decode import decode
from bitad.inference.nms import NmsSettings
from bitad.inference.stitch import Stitcher
from bitad.models.detector import Detector
from bitad.progress import track
from bitad.training.checkpoint import Checkpoint
from bitad.training.distributed import Processes


def nms_settings(config: NmsConfig) -> NmsSettings:
    """The settings of the suppression that a configuration names."""
    hard = config.method == "hard"
    return NmsSettings(
        soft=not hard,
        method="gaussian" if config.method == "hard" else config.method,
        sigma=config.sigma,
        iou_threshold=config.iou_threshold,
        max_segments=config.max_segments,
        multiclass=config.multiclass,
        voting_threshold=config.voting_threshold,
        min_score=config.min_score,
    )


@torch.inference_mode()
def detect(
    detector: Detector,
    annotations: Annotations,
    source: Source,
    config: Config,
    team: Processes,
    *,
    details: Mapping[str, Any] | None = None,
    workers: int = 0,
    what: str = "testing",
) -> Detections:
    """Detects in all videos of ``annotations`` (their ground truth is not looked at).

    Windows are spread over the processes, each seen once; every process gets all detections, on the forward clock,
    also those of a detector that watches in reverse.

    Args:
        detector: in evaluation mode, on the device of ``team``.
        source: of the windows.
        details: for :class:`~bitad.data.detections.Detections`.
        workers: processes that read windows.
        what: for the progress display.
    """
    windows = TestWindows(annotations, source, config)
    mine = Subset(windows, list(team.share(len(windows))))
    stitcher = Stitcher(nms_settings(config.test.nms), rounding=config.test.rounding)
    loader = DataLoader(
        mine,
        batch_size=config.test.batch,
        num_workers=workers,
        collate_fn=partial(collate, length=config.window.steps),
        pin_memory=team.device.type == "cuda",
        generator=torch.Generator(),  # so that testing draws none of the training's random numbers
    )
    durations = {video.name: video.duration_s for video in windows.videos}
    for batch in track(loader, what, len(loader), show=team.is_main):
        inputs = batch.inputs.to(team.device, non_blocking=True)
        prediction = detector(inputs, batch.mask.to(team.device, non_blocking=True))
        found = decode(prediction, score_threshold=config.test.score_threshold, top_k=config.test.candidates)
        for name, grid, candidates in zip(batch.videos, batch.grids, found, strict=True):
            stitcher.add(name, candidates, grid, durations[name], reverse_view=config.direction == "reverse")
    for other in team.gather(stitcher):
        stitcher.update(other)
    names = [video.name for video in windows.videos]
    return stitcher.detections(annotations.classes, videos=names, details=details)


def detect_videos(checkpoint: Checkpoint, videos: Sequence[Path], team: Processes) -> Detections:
    """Detects in video files, in memory bounded by a window, sampled at the rate of the detector's training.

    Raises:
        FileNotFoundError, ValueError: for a file that is missing or no video, two files of one name, or a detector
            that takes features.
    """
    config = checkpoint.config
    if config.model.backbone is None:
        raise ValueError("this detector takes pre-computed features, not videos; give one trained with a backbone")
    paths = {path.stem: path for path in videos}
    if len(paths) < len(videos):
        raise ValueError("two videos have the same name; rename one, or detect in them one after the other")
    source = VideoFiles(paths.__getitem__, pixels=config.model.backbone.pixels, rate_hz=checkpoint.rate_hz)
    annotations = Annotations(
        {
            name: AnnotatedVideo(
                name, "detect", float(source.index(path).frames / source.index(path).rate), np.zeros((0, 2)), ()
            )
            for name, path in paths.items()
        },
        checkpoint.classes,
    )
    detector = checkpoint.detector().to(team.device)
    return detect(detector, annotations, source, config, team, what="detecting")
