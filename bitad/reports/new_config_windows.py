"""The grid and the windows that ``bitad init`` chooses for a data set and a backbone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitad.config.names import StarterBackbone
from bitad.config.schema import CLIP_FRAMES, WindowConfig
from bitad.data.annotations import AnnotatedVideo
from bitad.data.clocks import same_rate
from bitad.data.feature_folder import SIDECAR, read_own_sidecar
from bitad.data.fit import STRIDES, Fit, choose, fit, round_window
from bitad.data.sources import FeatureFiles, Sampling, VideoFiles
from bitad.timeline import Grid
from bitad.weights.checkpoint import FRAME_RATE_HZ

# Dotted keys of a configuration, with their values and comments.
Settings = Mapping[str, tuple[Any, str]]
# With more padding in its windows, a training spends most of its time on nothing.
MOST_PADDING = 0.5
# A measured stride of features this near to a whole number is that number.
_STRIDE_SLACK = 0.05
# Lengths of videos up to this factor are even.
_EVEN = 1.2
_FEWEST_STEPS = 16
# Videos whose pairs tell the stride of features.
_MOST_PAIRED = 300


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


BACKBONES: Mapping[str, BackboneChoice] = {
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
            "warmup_epochs": 0.5,
            "augmentation": {"crop_area": [0.8, 1.0], "crop_aspect": [0.9, 1.1]},
        },
    ),
    "s": _videomae("s", "hub:MCG-NJU/videomae-small-finetuned-kinetics", 2e-4),
    "b": _videomae("b", "hub:MCG-NJU/videomae-base-finetuned-kinetics", 1e-4),
}
# ActionFormer on pre-computed features.
ON_FEATURES = BackboneChoice(
    "ActionFormer's transformer on your features",
    2048,
    1500,
    {"attention_window": 19, "input_dropout": 0.2},
    {"batch": 2, "reference_batch": 2, "lr": 1e-4, "ema_decay": 0.99, "warmup_epochs": 1},
)


@dataclass(frozen=True)
class Candidate:
    """A way to lay the grid over the videos: its settings, and the grids of the annotated videos."""

    settings: Settings
    grids: Sequence[Grid]

    @property
    def overrides(self) -> str:
        return " ".join(f"{key}={value:g}" for key, (value, _) in self.settings.items())


@dataclass(frozen=True)
class Plan:
    """The chosen grid and windows, and the others.

    Args:
        name: of the chosen one of ``choices``.
        unit: the number of steps of a window is a multiple of it.
        notes: what was assumed; a line each.
    """

    videos: Sequence[AnnotatedVideo]
    choices: Mapping[str, BackboneChoice]
    name: str
    unit: int
    candidate: Candidate
    fit: Fit
    others: Mapping[str, Fit]
    notes: Sequence[str]

    def fit_of(self, choice: BackboneChoice) -> Fit:
        """The windows on the chosen grid with another backbone."""
        return fit(self.videos, self.candidate.grids, most_steps=choice.most_steps, unit=self.unit)


def choose_windows(
    source: VideoFiles | FeatureFiles, videos: Sequence[AnnotatedVideo], backbone: StarterBackbone
) -> Plan:
    """Chooses the grid and the windows for videos with segments."""
    notes: list[str] = []
    if isinstance(source, VideoFiles):
        choices, name, unit = BACKBONES, str(backbone), CLIP_FRAMES
        candidates = _strides(source, videos)
    else:
        choices, name, unit = {"features": ON_FEATURES}, "features", 1
        placement, notes = _placement(source, videos)
        candidates = {1: placement}
    most = choices[name].most_steps
    fits = {stride: fit(videos, one.grids, most_steps=most, unit=unit) for stride, one in candidates.items()}
    stride = choose(fits, videos)
    chosen, candidate = fits[stride], candidates[stride]
    others = {candidates[one].overrides: fits[one] for one in _neighbours(stride, list(candidates))}
    others |= _shorter_windows(videos, candidate.grids, chosen, unit)
    others |= _longer_window(videos, candidate.grids, chosen, unit, most)
    return Plan(videos, choices, name, unit, candidate, chosen, others, notes)


def _strides(source: VideoFiles, videos: Sequence[AnnotatedVideo]) -> dict[int, Candidate]:
    """Grids of videos. Those of several frame rates get a rate of grid steps, by the most frequent frame rate."""
    frames = [source.grid(video) for video in videos]
    rates = Counter(round(grid.fps, 3) for grid in frames)
    usual = rates.most_common(1)[0][0]
    is_mixed = not same_rate(min(rates), max(rates))
    candidates = {}
    for stride in STRIDES:
        per_second = round(usual / stride, 3)
        window = WindowConfig(steps_per_second=per_second) if is_mixed else WindowConfig(stride_frames=stride)
        grids = [Sampling(window).grid(grid.fps, grid.steps) for grid in frames]
        found = [grid.fps / grid.stride_frames for grid in grids]
        settings: Settings = {
            "window.stride_frames": (stride, f"frames per grid step: {np.median(found):.3g} steps per second")
        }
        if is_mixed:
            comment = f"each video takes the nearest stride: {min(found):.3g} to {max(found):.3g} steps per second"
            settings = {"window.steps_per_second": (per_second, comment)}
        candidates[stride] = Candidate(settings, grids)
    return candidates


def _placement(source: FeatureFiles, videos: Sequence[AnnotatedVideo]) -> tuple[Candidate, list[str]]:
    """How features lie in time, as ``features.json`` says, or as their rows and the durations suggest."""
    features = source.store.path
    notes: list[str] = []
    fps = None
    is_reverse = False
    sidecar = read_own_sidecar(features)
    if sidecar is not None:
        stated = sidecar.settings
        channels, stride = stated.feature_channels, float(stated.feature_stride_frames)
        offset, comment = stated.feature_offset_frames, f"by {SIDECAR}"
        is_reverse = stated.direction == "reverse"
    else:
        channels = source.store.shape(videos[0].name)[1]
        rates = [video.clock.rate for video in videos]
        if None in rates:
            fps = FRAME_RATE_HZ
            notes.append(f"assumed: {fps:g} frames per second, as the annotations state no frame rate")
        rows = np.array([source.store.length(video.name) for video in videos])
        frames = np.array(
            [video.duration_s * (fps or rate or 0.0) for video, rate in zip(videos, rates, strict=True)]
        )
        if rows.min() == rows.max() and frames.max() > _EVEN * frames.min():
            raise ValueError(
                f"{features}: all videos have {rows[0]} rows, so they were resized to one length and have no stride; "
                "extract features with a stride: bitad features"
            )
        stride, offset = _measured_placement(rows, frames)
        comment = "assumed"
        notes.append(
            f"assumed: a row of features every {stride:g} frames, the first at frame {offset:g}, by rows and "
            "durations; correct data.feature_stride_frames and data.feature_offset_frames in the file"
        )
    settings: dict[str, tuple[Any, str]] = {
        "data.feature_channels": (channels, ""),
        "data.feature_stride_frames": (stride, f"video frames from one row to the next; {comment}"),
        "data.feature_offset_frames": (offset, f"frame at the centre of the first row; {comment}"),
    }
    if fps is not None:
        settings["data.feature_fps"] = (fps, "frames per second; assumed")
    if is_reverse:
        settings["direction"] = ("reverse", "of the features' playback")
    data = source.data.model_copy(
        update={"feature_fps": fps, "feature_stride_frames": stride, "feature_offset_frames": offset}
    )
    placed = replace(source, data=data)
    grids = [placed.grid(video) for video in videos]
    faults = [
        f"{video.name}: {fault}"
        for video, grid in zip(videos, grids, strict=True)
        if (fault := placed.clock_fault(video, grid)) is not None
    ]
    if faults:
        more = f" (and of {len(faults) - 1} more)" if len(faults) > 1 else ""
        notes.append(
            f"warning: rows and durations do not fit, so a training refuses these features: {faults[0]}{more}; correct "
            "the features, or their stride and offset in the file"
        )
    return Candidate(settings, grids), notes


def _measured_placement(rows: NDArray[np.int64], frames: NDArray[np.float64]) -> tuple[float, float]:
    """The stride and the offset of the first row, in frames, of features that lie in the middle of their videos."""
    stride = float(np.median(frames / rows))
    if rows.max() > _EVEN * rows.min():
        # Features lack the same number of frames in each video: those of a clip. The slope is free of it; its median
        # over pairs of videos (Theil and Sen) is free of single wrong features too.
        first, second = np.triu_indices(min(len(rows), _MOST_PAIRED), 1)
        more = rows[second] - rows[first]
        far = np.abs(more) >= max(1.0, float(np.median(np.abs(more))))
        slope = float(np.median((frames[second] - frames[first])[far] / more[far]))
        stride = slope if slope > 0 else stride
    whole = max(1.0, float(round(stride)))
    stride = whole if abs(stride - whole) <= _STRIDE_SLACK * whole else float(f"{stride:.4g}")
    lacking = max(0.0, float(np.median(frames - stride * rows)))
    return stride, round((lacking + stride) / 2, 2)


def _neighbours(stride: int, strides: Sequence[int]) -> list[int]:
    place = strides.index(stride)
    return [one for one in strides[max(0, place - 2) : place + 3] if one != stride]


def _shorter_windows(
    videos: Sequence[AnnotatedVideo], grids: Sequence[Grid], chosen: Fit, unit: int
) -> dict[str, Fit]:
    """Fits with shorter windows, down to those that are not mostly padding."""
    found: dict[str, Fit] = {}
    steps, padding = chosen.steps // 2, chosen.padding
    while padding > MOST_PADDING and steps >= _FEWEST_STEPS and steps % unit == 0:
        one = fit(videos, grids, most_steps=steps, unit=unit, steps=steps)
        found[f"window.steps={steps} model.levels={one.levels}"] = one
        steps, padding = steps // 2, one.padding
    return found


def _longer_window(
    videos: Sequence[AnnotatedVideo], grids: Sequence[Grid], chosen: Fit, unit: int, most_steps: int
) -> dict[str, Fit]:
    """The fit with a window that holds more of the segments that are too long for the chosen one, if there is one."""
    longest_s = max((one.end_s - one.start_s for one in chosen.missed), default=0.0)
    steps = round_window(longest_s * chosen.rate_hz, most_steps)
    if steps <= chosen.steps:
        return {}
    one = fit(videos, grids, most_steps=steps, unit=unit, steps=steps)
    if len(one.missed) >= len(chosen.missed):
        return {}
    return {f"window.steps={one.steps} model.levels={one.levels}": one}


def padding_warning(chosen: Fit, others: Mapping[str, Fit], videos: Sequence[AnnotatedVideo]) -> str:
    usual_s = float(np.median([video.duration_s for video in videos]))
    text = (
        f"warning: {chosen.padding:.0%} of the windows is padding: they are {chosen.window_s:.3g} s long, and half of "
        f"the videos at most {usual_s:.3g} s"
    )
    less = [
        f"{name} ({one.padding:.0%} padding, {one.work / chosen.work:.2g} times the cost, {len(one.missed)} segments "
        "without a point)"
        for name, one in others.items()
        if one.padding <= chosen.padding - 0.1
    ]
    return f"{text}; with less: {'; '.join(less)}" if less else text
