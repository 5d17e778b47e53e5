"""The cost of networks with random weights: a forward pass, a training step, the test of a video."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Measured, Took, best_of, now, timed
from reading import FPS, STRIDE, decode, render

from bitad.cli import main as bitad
from bitad.config.loading import parse_config
from bitad.config.schema import Config
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.dataset import TestWindows
from bitad.data.formats.database import write_annotations
from bitad.data.samples import Batch
from bitad.data.sources import build_source
from bitad.models.backbone import VideoBackbone
from bitad.models.build import build_network
from bitad.models.network import Detector
from bitad.models.vit import is_adapter
from bitad.runtime.distributed import process_group
from bitad.runtime.environment import set_up_process
from bitad.training.step import total
from bitad.training.step_cost import OpCounter, fake_tensor_mode, network_on_meta, step_cost
from bitad.training.trainer import Trainer
from bitad.video.writer import write_video
from bitad.weights.checkpoint import Checkpoint, save_checkpoint
from bitad.weights.files import write_safetensors
from bitad.weights.loading import load_pretrained

CLASSES = tuple(f"class_{i:02d}" for i in range(20))
ONE_GRAPH = "1, one graph"
_BACKBONE = "backbone.safetensors"
_LONG = "long"


def configuration(
    folder: str | Path, *, size: str, frames: int, pixels: int, experiment: str = "baseline", batch: int = 1
) -> Config:
    """A run of an experiment with the published recipe and activation checkpointing.

    Args:
        folder: of the data.
        size: of the backbone.
        frames: of a window, every 4th of the video.
        pixels: of a picture.
    """
    folder = Path(folder)
    document: dict[str, Any] = {
        "name": "cost",
        "experiment": experiment,
        "output": str(folder / "runs"),
        "data": {
            "annotations": str(folder / "annotations.json"),
            "classes": str(folder / "classes.txt"),
            "videos": str(folder / "videos"),
        },
        "window": {"steps": frames, "stride_frames": STRIDE, "crop": [1.0, 1.0]},
        "model": {
            "padding": "reference",
            "backbone": {
                "size": size,
                "pixels": pixels,
                "weights": str(folder / _BACKBONE),
                "checkpointing": True,
            },
        },
        "training": {"batch": batch, "workers": 0, "windows_per_video": 8},
        "test": {"nms": {"sigma": 0.7}},
    }
    if experiment not in ("baseline", "1"):
        document["init"] = {key: str(folder / f"{key}.pt") for key in ("forward", "reverse")}
    return parse_config(document, "of this benchmark")


def make_data(folder: Path, *, frames: int, pixels: int) -> None:
    """Writes a video of one window with one action to train on; a link to it is the test video."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (pixels, pixels, 3), dtype=np.uint8)
    count = frames * STRIDE
    write_video(folder / "videos" / "one.mp4", (np.roll(picture, i, axis=1) for i in range(count)), fps=FPS)
    (folder / "videos" / "two.mp4").symlink_to("one.mp4")  # a training validates its test videos
    annotate(folder, {"one": ("training", count), "two": ("validation", count)})


def make_weights(folder: Path, **sizes: Any) -> None:
    """Writes a backbone and two untrained baselines with it. ``sizes``: of :func:`configuration`."""
    config = configuration(folder, **sizes)
    network = build_network(config, len(CLASSES))
    assert isinstance(network, Detector)
    assert isinstance(network.backbone, VideoBackbone)
    frozen = {name: tensor for name, tensor in network.backbone.vit.state_dict().items() if not is_adapter(name)}
    write_safetensors(frozen, folder / _BACKBONE)
    for direction in ("forward", "reverse"):
        config = config.model_copy(update={"direction": direction})
        network = build_network(config, len(CLASSES))
        load_pretrained(network, config)
        save_checkpoint(
            Checkpoint(config, CLASSES, network.state_dict(), 0, FPS / STRIDE), folder / f"{direction}.pt"
        )


def make_long_video(folder: Path, *, count: int) -> None:
    """Writes a test video with this number of frames."""
    render(folder / "videos" / f"{_LONG}.mp4", count, preset="veryfast")


def annotate(folder: Path, videos: dict[str, tuple[str, int]]) -> None:
    """Writes annotations, an action in the middle of each video: name -> subset, number of frames."""
    annotated = {
        name: AnnotatedVideo(name, subset, n / FPS, np.array([[0.4, 0.6]]) * n / FPS, CLASSES[:1], n, FPS)
        for name, (subset, n) in videos.items()
    }
    write_annotations(Annotations(annotated, CLASSES), folder / "annotations.json")
    (folder / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")


def forward(folder: str, threads: int, *, precision: str, repetitions: int, **sizes: Any) -> Measured:
    """A forward pass over one window."""
    set_up_process(threads)
    config = configuration(folder, **sizes)
    run = one_forward(config)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        took = best_of(repetitions, {"forward": run})["forward"]
    flops = forward_flops(config)
    return Measured(took, flops / 1e9, "GFLOP", flops=flops, precision=precision)


def one_forward(config: Config) -> Callable[[], object]:
    """A function that runs a forward pass over one window, with the same pixels each time."""
    assert config.model.backbone is not None
    network, pixels = build_network(config, len(CLASSES)).eval(), config.model.backbone.pixels
    shape = (1, config.window.steps, pixels, pixels, 3)
    frames, mask = torch.randint(256, shape, dtype=torch.uint8), torch.ones(shape[:2], dtype=torch.bool)
    # Not inference_mode, where dispatch modes see composite operations, which are not counted.
    return torch.no_grad()(partial(network, (frames,), mask))


def forward_flops(config: Config) -> int:
    """Floating-point operations of a forward pass over one window."""
    assert config.model.backbone is not None
    network = network_on_meta(config, len(CLASSES)).eval()
    steps, pixels = config.window.steps, config.model.backbone.pixels
    with fake_tensor_mode():
        network.to_empty(device="cpu")
        frames = torch.empty(1, steps, pixels, pixels, 3, dtype=torch.uint8)
        mask = torch.empty(1, steps, dtype=torch.bool)
    with OpCounter(network, frames, mask) as counter, torch.no_grad():
        network.detectors[0].predict(frames, mask)
    return counter.flops


def step(folder: str, threads: int, *, experiment: str, steps: int, batch: int = 1, **sizes: Any) -> Measured:
    """Training steps, the mean of all but the first; processes share the ``batch``."""
    set_up_process(threads)
    name = "1" if experiment == ONE_GRAPH else experiment
    with process_group("cpu") as ranks:
        config = configuration(folder, experiment=name, batch=batch // ranks.world, **sizes)
        trainer = Trainer(config, ranks)
        trainer.network.train(config.trains_detectors)
        take = partial(_take_steps, trainer, next(iter(trainer.loader)), one_graph=experiment == ONE_GRAPH)
        take(1)
        ranks.barrier()
        took = timed(partial(take, steps))
    took = Took(took.cpu_s / steps, took.wall_s / steps)
    flops = (
        ranks.world * step_cost(config, len(CLASSES), checkpointing="blocks", precision="fp32", device="cpu").flops
    )
    return Measured(took, flops / 1e9, "GFLOP", flops=flops)


def one_step(config: Config) -> Callable[[], None]:
    """A function that takes a training step of one process, on the same windows each time."""
    with process_group("cpu") as ranks:
        trainer = Trainer(config, ranks)
    trainer.network.train(config.trains_detectors)
    return partial(_take_steps, trainer, next(iter(trainer.loader)), 1, one_graph=False)


def _take_steps(trainer: Trainer, windows: Batch, count: int, *, one_graph: bool) -> None:
    """Takes training steps on one batch.

    Args:
        one_graph: add both networks' losses before one backward pass, as the research group's code does.
    """
    step = trainer.train_step
    for _ in range(count):
        if one_graph:
            views = windows.in_views(trainer.config.views)
            losses = [total(*step.losses(turn, views)) for turn in range(len(step.models))]
            torch.stack(losses).sum().backward()
            for learner in step.learners:
                learner.clip()
                learner.step()
                learner.optimizer.zero_grad(set_to_none=True)
        else:
            step([windows])


def tested_video(folder: str, threads: int, *, video_frames: int, backbone: str, **sizes: Any) -> Measured:
    """The test of one long video with ``bitad test``, from the file to its mAP, by a baseline of :func:`make_weights`.

    Args:
        video_frames: of the video of :func:`make_long_video`.
        backbone: "window": on every window; "video": on the video, once.
    """
    set_up_process(threads)
    place = Path(folder)
    video = place / "videos" / f"{_LONG}.mp4"
    annotate(place, {_LONG: ("validation", video_frames)})
    config = configuration(folder, **sizes)
    out = place / f"test-{backbone}"
    took = _bitad("test", str(place / "forward.pt"), "--out", str(out), f"test.backbone={backbone}")
    annotations = Annotations(
        {_LONG: AnnotatedVideo(_LONG, "validation", video_frames / FPS, np.zeros((0, 2)), ())}, CLASSES
    )
    windows = len(TestWindows(annotations, build_source(config), config))
    seen = windows if backbone == "window" else video_frames / STRIDE / config.window.steps
    floor_s = timed(partial(decode, video, np.arange(video_frames))).cpu_s
    facts = {"windows": windows}
    return Measured(took, video_frames, "frames", flops=seen * forward_flops(config), floor_s=floor_s, facts=facts)


def tested_features(folder: str, threads: int, *, videos: int, channels: int, steps: int) -> Measured:
    """The test of videos as features, with this number of grid steps each, by a small pyramid."""
    set_up_process(threads)
    place, rng = Path(folder), np.random.default_rng(0)
    (place / "features").mkdir(parents=True)
    names = [f"video_{i:03d}" for i in range(videos)]
    for name in names:
        np.save(place / "features" / f"{name}.npy", rng.standard_normal((steps, channels), dtype=np.float32))
    annotate(place, dict.fromkeys(names, ("validation", steps * STRIDE)))
    document = {
        "name": "features",
        "data": {
            "annotations": str(place / "annotations.json"),
            "classes": str(place / "classes.txt"),
            "features": str(place / "features"),
            "feature_channels": channels,
            "feature_stride_frames": STRIDE,
        },
        "model": {"channels": channels},
    }
    config = parse_config(document, "of this benchmark")
    network = build_network(config, len(CLASSES))
    save_checkpoint(Checkpoint(config, CLASSES, network.state_dict(), 0, FPS / STRIDE), place / "forward.pt")
    return Measured(_bitad("test", str(place / "forward.pt"), "--out", str(place / "test")), videos, "videos")


def _bitad(*command: str) -> Took:
    """The cost of a command."""
    began = now()
    if status := bitad([*command, "--device", "cpu"]):
        raise RuntimeError(f"bitad {' '.join(command)} ended with status {status}")
    return now() - began
