"""Tiny data sets on disk with a configuration each: what the tests of data, training, testing and commands stand on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from bitad.config.loading import load_config
from bitad.config.schema import Config
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.detections import Detections
from bitad.data.formats.database import write_annotations
from bitad.video.writer import write_video

CLASSES = ("alpha", "beta", "gamma")
FPS = 16.0

CHANNELS = len(CLASSES) + 5
FEATURE_STRIDE, FEATURE_OFFSET = 4.0, 6.0  # frames: 4 grid steps a second, the first at 0.375 s

PIXELS, BITS = 32, 8

TRAINING = {
    "epochs": 4,
    "warmup_epochs": 0.5,
    "batch": 2,
    "reference_batch": 2,
    "lr": 2e-3,
    "adapter_lr": 2e-3,
    "ema_decay": 0.9,
    "evaluate_every": 1,
    "loss_normaliser": 10,
    "workers": 0,
}
MODEL = {"channels": 16, "levels": 3, "stem_blocks": 1, "heads": 2, "layer_scale": None}


def feature_data(folder: Path, *, training: int = 4, test: int = 3, seed: int = 0) -> Path:
    """A data set of features in which every class is plain to see, and its direction too.

    In an action of class k channel k is 1 and channel 3 rises from 0 to 1; all else is weak noise. Videos have 40 to 56
    grid steps, a window 32.

    Returns:
        the path of its configuration.
    """
    rng = np.random.default_rng(seed)
    (folder / "features").mkdir(parents=True)
    videos = []
    for name, subset in _names(training, test):
        steps = int(rng.integers(40, 57))
        features = 0.1 * rng.standard_normal((steps, CHANNELS), dtype=np.float32)
        spans, labels, clock = [], [], int(rng.integers(1, 5))
        while (end := clock + int(rng.integers(4, 10))) < steps - 1:
            label = int(rng.integers(len(CLASSES)))
            features[clock : end + 1, label] += 1
            features[clock : end + 1, len(CLASSES)] += np.linspace(0, 1, end + 1 - clock, dtype=np.float32)
            spans.append((clock, end))
            labels.append(CLASSES[label])
            clock = end + int(rng.integers(3, 8))
        np.save(folder / "features" / f"{name}.npy", features)
        segments = (np.array(spans) * FEATURE_STRIDE + FEATURE_OFFSET) / FPS
        duration_s = (steps * FEATURE_STRIDE + 2 * FEATURE_OFFSET) / FPS
        videos.append(AnnotatedVideo(name, subset, duration_s, segments, tuple(labels), fps=FPS))
    return _write_configuration(
        folder,
        videos,
        {
            "data": {
                "features": str(folder / "features"),
                "feature_channels": CHANNELS,
                "feature_stride_frames": FEATURE_STRIDE,
                "feature_offset_frames": FEATURE_OFFSET,
            },
            "window": {"steps": 32, "overlap": 0.25},
            "model": MODEL,
        },
    )


def video_data(folder: Path, *, training: int = 2, test: int = 1, frames: int = 75, seed: int = 0) -> Path:
    """A data set of small videos whose every frame shows its own number (:func:`numbers_shown`).

    Windows are of 32 steps of 2 frames, so longer than these videos, and the tiny backbone sees 32 pixels. Its weights
    are random where a test names none.

    Returns:
        the path of its configuration.
    """
    rng = np.random.default_rng(seed)
    videos = []
    for name, subset in _names(training, test):
        write_video(
            folder / "videos" / f"{name}.mp4", map(numbered_picture, range(frames)), fps=FPS, crf=12, gop=12
        )
        starts = rng.uniform(0.2, frames / FPS - 2.2, 2)
        segments = np.stack([starts, starts + rng.uniform(0.8, 2.0, 2)], axis=1)
        labels = tuple(CLASSES[i] for i in rng.integers(len(CLASSES), size=2))
        videos.append(AnnotatedVideo(name, subset, frames / FPS, segments, labels, frames, FPS))
    backbone = {"size": "tiny", "pixels": PIXELS, "table_pixels": PIXELS, "random": True}
    return _write_configuration(
        folder,
        videos,
        {
            "data": {"videos": str(folder / "videos")},
            "window": {"steps": 32, "stride_frames": 2},
            "model": {**MODEL, "backbone": backbone},
        },
    )


def config_of(path: Path, *overrides: str) -> Config:
    """The configuration of a data set made here, changed as on the command line; of two changes of a key the last."""
    return load_config(path, list({override.partition("=")[0]: override for override in overrides}.values()))


def truth(
    videos: dict[str, list[tuple[float, float, str]]],
    classes: tuple[str, ...] = ("a", "b", "c"),
    duration_s: float = 100.0,
) -> Annotations:
    """Ground truth by video: start, end and label of each segment."""
    return Annotations(
        {
            name: AnnotatedVideo(
                name=name,
                subset="test",
                duration_s=duration_s,
                segments=np.array([row[:2] for row in rows], np.float64).reshape(-1, 2),
                labels=tuple(row[2] for row in rows),
            )
            for name, rows in videos.items()
        },
        classes,
    )


def found(
    videos: dict[str, list[tuple[float, float, str, float]]],
    classes: tuple[str, ...] = ("a", "b", "c"),
    duration_s: float | None = None,
) -> Detections:
    """Detections by video: start, end, label and score of each."""
    return Detections.from_videos(
        {
            name: (
                np.array([row[:2] for row in rows], np.float64).reshape(-1, 2),
                np.array([row[3] for row in rows], np.float64),
                np.array([classes.index(row[2]) for row in rows], np.int64),
            )
            for name, rows in videos.items()
        },
        classes=classes,
        durations_s={} if duration_s is None else dict.fromkeys(videos, duration_s),
    )


def numbered_picture(number: int) -> NDArray[np.uint8]:
    """A picture ``[32, 32, 3]``: the number's bits as bars across the upper half, a disc on its way in the lower."""
    y, x = np.mgrid[:PIXELS, :PIXELS]
    picture = np.full((PIXELS, PIXELS, 3), 70, np.uint8)
    picture[np.hypot(x - number % PIXELS, y - 24) < 6] = (220, 160, 90)
    bits = (number >> np.arange(BITS)) & 1
    picture[: PIXELS // 2] = np.repeat(255 * bits, PIXELS // BITS)[None, :, None]
    return picture


def numbers_shown(pictures: NDArray[np.uint8]) -> list[int]:
    """The numbers that pictures uint8 ``[T, 32, 32, 3]`` show."""
    upper = pictures[:, : PIXELS // 2].mean(axis=(1, 3))  # [T, W]
    bars = upper.reshape(len(pictures), BITS, -1).mean(axis=2) > 128
    return (bars << np.arange(BITS)).sum(axis=1).tolist()


def _names(training: int, test: int) -> Iterable[tuple[str, str]]:
    yield from ((f"train_{i}", "training") for i in range(training))
    yield from ((f"test_{i}", "validation") for i in range(test))


def _write_configuration(folder: Path, videos: list[AnnotatedVideo], parts: dict[str, Any]) -> Path:
    write_annotations(Annotations({video.name: video for video in videos}, CLASSES), folder / "annotations.json")
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    parts["data"] |= {"annotations": str(folder / "annotations.json"), "classes": str(folder / "classes.txt")}
    document = {"name": "tiny", "output": str(folder / "runs"), "threads": 1, "training": TRAINING, **parts}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path
