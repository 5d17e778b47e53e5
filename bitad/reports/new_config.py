"""Writes a configuration that fits a data set: what ``bitad init`` does."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bitad.config.loading import load_config
from bitad.config.names import OnDecodeError
from bitad.config.schema import CLIP_FRAMES, Config, WindowConfig
from bitad.config.text import commented_yaml, flat
from bitad.data.annotations import Annotations
from bitad.data.convert import convert_annotations
from bitad.data.fit import STRIDES, Fit, choose, fit
from bitad.data.formats.database import write_annotations
from bitad.data.sources import Sampling, VideoFiles
from bitad.data.split import choose_validation
from bitad.reports.tables import Table
from bitad.runtime.files import atomic_write
from bitad.runtime.log import shortlist
from bitad.video.names import VideoFinder

# Words in class names that a left-right flip of the frames makes wrong.
_SIDED = re.compile(
    r"(?i)(?<![a-z])(left|right|clockwise|counterclockwise|anticlockwise)(?![a-z])|links|rechts|왼쪽|오른쪽"
)


@dataclass(frozen=True)
class BackboneChoice:
    """A backbone that ``bitad init`` offers.

    Args:
        description: what it is good for, and where its weights come from.
        most_steps: the longest window.
        updates: training steps that a small data set needs.
        model, training: sections of the configuration.
    """

    description: str
    most_steps: int
    updates: int
    model: Mapping[str, Any]
    training: Mapping[str, Any]


def _videomae(size: str, weights: str, adapter_lr: float) -> BackboneChoice:
    return BackboneChoice(
        f"VideoMAE-{size.upper()}, pre-trained on Kinetics-400, downloaded once",
        768,
        1500,
        {"backbone": {"size": size, "weights": weights}},
        {"batch": 2, "reference_batch": 2, "lr": 1e-4, "adapter_lr": adapter_lr, "warmup_epochs": 1},
    )


BACKBONES = {
    "tiny": BackboneChoice(
        "BiTAD's own, 0.6 million parameters, pre-trained on rendered motion; no download, for a first look on a CPU",
        1024,
        360,
        {
            "channels": 96,
            "stem_blocks": 1,
            "attention_window": 9,
            "drop_path": 0.0,
            "layer_scale": None,
            "backbone": {
                "size": "tiny",
                "weights": "package:playroom_backbone.safetensors",
                "pixels": 64,
                "table_pixels": 64,
            },
        },
        {
            "batch": 2,
            "reference_batch": 2,
            "lr": 1e-3,
            "adapter_lr": 1e-3,
            "ema_decay": 0.99,
            "loss_normaliser": 50,
        }
        | {"warmup_epochs": 0.5, "augmentation": {"crop_area": [0.8, 1.0], "crop_aspect": [0.9, 1.1]}},
    ),
    "s": _videomae("s", "hub:MCG-NJU/videomae-small-finetuned-kinetics", 2e-4),
    "b": _videomae("b", "hub:MCG-NJU/videomae-base-finetuned-kinetics", 1e-4),
}


@dataclass(frozen=True)
class NewConfig:
    """A fitted configuration and its reasons.

    Args:
        path: of the written YAML file.
        annotations: the ground truth that it names.
        fit: the chosen settings.
        others: settings at other strides, by name.
        notes: what was changed, or looks wrong; a line each.
    """

    path: Path
    config: Config
    annotations: Path
    fit: Fit
    others: Mapping[str, Fit]
    notes: tuple[str, ...]

    def tables(self) -> tuple[Table, ...]:
        """What was chosen and why, and the alternatives."""
        chosen, window = self.fit, self.config.window
        stride = f"{chosen.rate_hz:.3g} grid steps per second"
        rows = (
            ("window.stride_frames", f"{window.stride_frames}", stride),
            ("window.steps", f"{window.steps}", f"{chosen.window_s:.3g} s; {100 * chosen.padding:.0f} % padding"),
            ("model.levels", f"{chosen.levels}", _levels_text(chosen)),
            ("window.crop", f"{list(chosen.crop)}", "share of a video shorter than a window"),
            (
                "training.windows_per_video",
                f"{chosen.windows_per_video}",
                "random windows of each video in an epoch",
            ),
            ("training.epochs", f"{self.config.training.epochs}", ""),
        )
        settings = Table(f"Chosen settings, in {self.path}", ("key", "value", "reason"), rows)
        alternatives = tuple(
            (
                name,
                f"{one.steps}",
                f"{one.window_s:.3g} s",
                f"{len(one.missed)}",
                f"{one.rate_hz / chosen.rate_hz:.2g}",
            )
            for name, one in self.others.items()
        )
        columns = ("change", "window.steps", "window", "segments without a point", "cost")
        return settings, Table("Alternatives", columns, alternatives)


def _levels_text(chosen: Fit) -> str:
    counts = ", ".join(str(count) for count in chosen.per_level)
    return f"segments learned at each level, finest first: {counts}"


def new_config(
    src: str | Path,
    *,
    videos: str | Path,
    out: Path,
    backbone: str = "tiny",
    format: str | None = None,
    share: float = 0.25,
    seed: int = 0,
    overwrite: bool = False,
    damaged: OnDecodeError = "error",
    on_progress: Callable[[int, int], None] | None = None,
) -> NewConfig:
    """Writes a configuration that fits annotations and videos, and where needed annotations that it can use.

    Args:
        src: annotations of any known format.
        videos: folder of the video files.
        out: the YAML file; annotations that had to be completed are written beside it.
        backbone: of :data:`BACKBONES`.
        format: of the annotations; None: recognised.
        share: of the videos that become the validation subset, if there is none.
        seed: of that choice.
        overwrite: replace files of an earlier call.

    Raises:
        FileNotFoundError: no such file or folder, or a video without a file.
        ValueError: annotations that cannot be read, fewer than two videos with segments, or a file that exists.
    """
    choice = BACKBONES[backbone]
    converted = convert_annotations(src, format=format, videos=videos, undecided="drop", on_progress=on_progress)
    annotations, notes = converted.annotations, list(converted.lines())
    find = VideoFinder(videos, lambda: tuple(annotations.videos))
    annotations, subsets, note = with_subsets(annotations, share=share, seed=seed)
    notes += note
    # The file is used as it is, if nothing had to be completed, left out or split off.
    is_same = converted.format == "native" and not (converted.report or note) and Path(src).is_file()
    target = Path(src) if is_same else out.with_suffix(".json")
    for path in (out, *([target] if target != Path(src) else [])):
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists; choose another --out, or replace it with --overwrite")
    source = VideoFiles(find, pixels=1, sampling=Sampling(WindowConfig(stride_frames=1)), damaged=damaged)
    used = [video for video in annotations.videos.values() if video.labels]
    frames = [source.grid(video) for video in used]
    fits = {}
    for stride in STRIDES:
        sampling = Sampling(WindowConfig(stride_frames=stride))
        grids = [sampling.grid(grid.fps, grid.steps) for grid in frames]
        fits[stride] = fit(used, grids, most_steps=choice.most_steps, unit=CLIP_FRAMES)
    stride = choose(fits, used)
    config = _config(out, target, videos, annotations, subsets, backbone, stride, fits[stride])
    if target != Path(src):
        write_annotations(annotations, target)
    with atomic_write(out) as partial:
        partial.write_text(config, encoding="utf-8")
    others = {f"window.stride_frames={one}": fits[one] for one in _neighbours(stride)}
    return NewConfig(out, load_config(str(out)), target, fits[stride], others, tuple(notes))


def _neighbours(stride: int) -> list[int]:
    place = STRIDES.index(stride)
    return [one for one in STRIDES[max(0, place - 2) : place + 3] if one != stride]


def with_subsets(
    annotations: Annotations, *, share: float, seed: int
) -> tuple[Annotations, tuple[str, str], list[str]]:
    """Ground truth with a subset to train on and one to validate on, their names, and a note about a split."""
    with_segments = Counter(video.subset for video in annotations.videos.values() if video.labels)
    names = list(with_segments)
    training = next((name for name in names if name.lower().startswith("train")), names[0])
    others = [name for name in names if name != training]
    if others:
        validation = next((name for name in others if name.lower().startswith("val")), others[0])
        return annotations, (training, validation), []
    chosen = set(choose_validation(list(annotations.videos.values()), share=share, seed=seed))
    videos = {
        name: replace(video, subset="validation" if name in chosen else video.subset)
        for name, video in annotations.videos.items()
    }
    note = f"validation subset: {len(chosen)} of {with_segments[training]} videos, by class (seed {seed}): "
    return replace(annotations, videos=videos), (training, "validation"), [note + shortlist(sorted(chosen), 5)]


def _config(
    out: Path,
    annotations_file: Path,
    videos: str | Path,
    annotations: Annotations,
    subsets: tuple[str, str],
    backbone: str,
    stride: int,
    chosen: Fit,
) -> str:
    """The text of the YAML file, with comments."""
    choice, folder = BACKBONES[backbone], out.parent
    sided = [name for name in annotations.classes if _SIDED.search(name)]
    epoch = math.ceil(chosen.windows_per_video * _count(annotations, subsets[0]) / choice.training["batch"])
    epochs = max(6, math.ceil(choice.updates / epoch))
    values: dict[str, tuple[Any, str]] = {
        "name": (out.stem, "runs are runs/NAME-forward-seed0, ..."),
        "data.annotations": (_relative(annotations_file, folder), "paths are relative to this file"),
        "data.videos": (_relative(Path(videos), folder), ""),
        "data.training_subset": (subsets[0], ""),
        "data.test_subset": (subsets[1], "best.pt is chosen on it"),
        "window.steps": (chosen.steps, f"grid steps of a window: {chosen.window_s:.3g} s"),
        "window.stride_frames": (stride, f"frames per grid step: {chosen.rate_hz:.3g} steps per second"),
        "window.overlap": (0.25, "of neighbouring windows in testing"),
        "window.crop": (list(chosen.crop), "random share of a video shorter than a window"),
        "model.levels": (chosen.levels, _levels_text(chosen)),
        **{f"model.{key}": (value, "") for key, value in flat(choice.model).items()},
        "training.epochs": (epochs, f"{epoch} steps each"),
        "training.windows_per_video": (chosen.windows_per_video, ""),
        "training.evaluate_every": (max(1, epochs // 3), "epochs; the best evaluation becomes best.pt"),
        **{f"training.{key}": (value, "") for key, value in flat(choice.training).items()},
        "training.augmentation.flip": (
            0.0 if sided else 0.5,
            f"mirrored frames would swap {shortlist(sided, 2)}"
            if sided
            else "0 if a class has a left and a right side",
        ),
        "training.workers": (0 if backbone == "tiny" else 2, "processes that read videos"),
    }
    return f"# Written by `bitad init`; `bitad config --show {out}` shows all keys.\n" + commented_yaml(values)


def _count(annotations: Annotations, subset: str) -> int:
    return sum(bool(video.labels) for video in annotations.subset(subset).videos.values())


def _relative(path: Path, folder: Path) -> str:
    """A path as seen from a folder."""
    return Path(os.path.relpath(str(path), str(folder))).as_posix()
