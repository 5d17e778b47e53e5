"""What makes no sense together in a configuration: each rule is a function, and all that are broken are told at once.

What makes no sense alone is said by the types of the fields in :mod:`bitad.config.schema`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel

if TYPE_CHECKING:
    from bitad.config.schema import Config


Rule = Callable[["Config"], Iterator[str]]

_RULES: list[Rule] = []


def broken_rules(config: Config, unread: Collection[str] = ()) -> list[str]:
    """What is wrong in a configuration whose values are all sound alone, a line each that begins with a path.

    Args:
        config: with any value at the keys that could not be read.
        unread: the paths of these keys, such as ``training.lr``; rules that depend on one are left out.
    """
    known = cast("Config", _Known(config, unread)) if unread else config
    found: dict[str, None] = {}
    for rule in _RULES:
        try:
            for fault in rule(known):
                found[fault] = None
        except _UnreadError:
            continue
    return list(found)


class _UnreadError(Exception):
    """A rule asked for a value that could not be read."""


class _Known:
    """A section of a configuration that gives only what could be read."""

    def __init__(self, section: BaseModel, unread: Collection[str], path: str = "") -> None:
        self._section, self._unread, self._path = section, unread, path

    def __getattr__(self, name: str) -> Any:
        path = f"{self._path}{name}"
        if path in self._unread:
            raise _UnreadError(path)
        derived = getattr(type(self._section), name, None)
        if isinstance(derived, property) and derived.fget is not None:
            return derived.fget(self)  # which asks for what it is derived from
        value = getattr(self._section, name)
        return _Known(value, self._unread, f"{path}.") if isinstance(value, BaseModel) else value


def _rule(function: Rule) -> Rule:
    _RULES.append(function)
    return function


# Data


@_rule
def _one_source(config: Config) -> Iterator[str]:
    if (config.data.videos is None) == (config.data.features is None):
        yield "data: give exactly one of data.videos and data.features"


@_rule
def _features_have_a_width(config: Config) -> Iterator[str]:
    if config.data.features is not None and config.data.feature_channels is None:
        yield "data.features needs data.feature_channels, the width of a feature"


@_rule
def _reversed_playback(config: Config) -> Iterator[str]:
    for kind, remedy in (
        ("features", "name the features of reversed playback"),
        ("videos", "name the folder that `bitad reverse` wrote"),
    ):
        forward, back = getattr(config.data, kind), getattr(config.data, f"reversed_{kind}")
        if back is not None and forward is None:
            yield f"data.reversed_{kind} needs data.{kind}: windows are laid on the forward clock"
        elif back is not None and forward == back:
            yield (
                f"data.reversed_{kind}: {forward} is data.{kind} too; {remedy}, or leave it out and windows are flipped"
            )


@_rule
def _backbone_for_videos(config: Config) -> Iterator[str]:
    if (config.data.videos is None) != (config.model.backbone is None):
        yield "model.backbone: data.videos needs model.backbone, and data.features a model without one"


# Windows


@_rule
def _whole_strides(config: Config) -> Iterator[str]:
    steps, coarsest = config.window.steps, 2 ** (config.model.levels - 1)
    if coarsest > steps:
        yield (
            f"model.levels: {config.model.levels} levels halve a window {config.model.levels - 1} times, but "
            f"window.steps {steps} has room for {steps.bit_length()} levels at most; use fewer levels or longer windows"
        )
    unit, what = coarsest, f"coarsest stride {coarsest}"
    if coarsest < config.clip_steps:  # both are powers of two
        unit, what = config.clip_steps, f"backbone's clip of {config.clip_steps} steps"
    if coarsest <= steps and steps % unit:
        yield f"window.steps {steps} is not a multiple of the {what}; use {-(-steps // unit) * unit}"


@_rule
def _frames_of_a_step(config: Config) -> Iterator[str]:
    window = config.window
    if window.frames_per_step > 1 and config.model.backbone is None:
        yield (f"window.frames_per_step {window.frames_per_step} is of no use to features, of which a step is one")
    if window.layout != "resized" and window.stride_frames % window.frames_per_step:
        yield (
            f"window.stride_frames {window.stride_frames} is not a multiple of the "
            f"{window.frames_per_step} frames of a step (window.frames_per_step)"
        )


@_rule
def _resized_clock(config: Config) -> Iterator[str]:
    window = config.window
    if window.layout != "resized" and window.resized_clock != "centre":
        yield (f"window.resized_clock={window.resized_clock} is of no use to window.layout={window.layout}")


# The network


@_rule
def _heads_of_the_backbone(config: Config) -> Iterator[str]:
    if (backbone := config.model.backbone) is not None and (vit := backbone.vit).dim % vit.heads:
        yield f"model.backbone.size: a width of {vit.dim} is not a multiple of {vit.heads} attention heads"


@_rule
def _a_patch_at_least(config: Config) -> Iterator[str]:
    if (backbone := config.model.backbone) is None:
        return
    patch = backbone.vit.patch_size
    if backbone.pixels < patch:
        yield f"model.backbone.pixels: {backbone.pixels} pixels are less than a patch of {patch}; use {patch} or more"
    if backbone.table_pixels < patch:
        yield (
            f"model.backbone.table_pixels: {backbone.table_pixels} pixels are less than a patch of {patch}; use "
            f"{patch} or more"
        )


@_rule
def _adapters(config: Config) -> Iterator[str]:
    if (backbone := config.model.backbone) is None:
        return
    vit = backbone.vit
    if backbone.first_adapter >= vit.depth:
        yield (
            f"model.backbone.first_adapter: first_adapter {backbone.first_adapter} is behind the last of the "
            f"{vit.depth} blocks, counted from 0; use {vit.depth - 1} or less"
        )
    if backbone.adapter_reduction > vit.dim:
        yield (
            f"model.backbone.adapter_reduction: {backbone.adapter_reduction} leaves adapters no channel of the "
            f"backbone's {vit.dim}; use {vit.dim} or less"
        )


@_rule
def _heads_of_the_pyramid(config: Config) -> Iterator[str]:
    model = config.model
    if model.pyramid.type == "transformer" and model.channels % model.heads:
        yield f"model.channels: {model.channels} channels are not a multiple of {model.heads} heads (model.heads)"


@_rule
def _attention_windows(config: Config) -> Iterator[str]:
    if config.model.pyramid.type != "transformer":
        return
    given = config.model.attention_window
    for window in given if isinstance(given, tuple) else (given,):
        if window == 1:
            yield (
                "model.attention_window: attention_window 1 lets each position see itself alone; use an odd number "
                "from 3 on, or null for all positions"
            )
        elif window is not None and window % 2 == 0:
            yield (
                f"model.attention_window: attention_window {window} must be odd, so that it has a centre; use "
                f"{window + 1}"
            )
    if isinstance(given, tuple) and len(given) != config.model.levels:
        yield f"model.attention_window: {len(given)} attention windows for {config.model.levels} levels; give one each"


@_rule
def _sgp_pyramid(config: Config) -> Iterator[str]:
    pyramid, channels, levels = config.model.pyramid, config.model.channels, config.model.levels
    if pyramid.type != "sgp":
        return
    if channels % pyramid.groups:
        more = -(-channels // pyramid.groups) * pyramid.groups
        yield (
            f"model.channels: {channels} channels are not a multiple of the {pyramid.groups} groups of "
            f"model.pyramid.type=sgp; use {more}"
        )
    if isinstance(pyramid.window, tuple) and len(pyramid.window) != levels:
        yield f"model.pyramid.window: {len(pyramid.window)} windows for {levels} levels; give one each"


@_rule
def _regression_ranges(config: Config) -> Iterator[str]:
    ranges = config.model.regression_ranges
    if ranges is None:
        return
    path = "model.regression_ranges"
    for low, high in ranges:
        if low >= high or high <= 0:
            yield f"{path}: no distance is in the range [{low:g}, {high:g}]; give each as [smallest, largest]"
    for (_, high), (low, _) in itertools.pairwise(_covered(ranges)):
        yield (
            f"{path}: distances between {high:g} and {low:g} steps are in no range, so actions of that length would "
            "never be learned; let each range begin where another one ends, or before"
        )
    if len(ranges) != config.model.levels:
        yield f"{path}: {len(ranges)} regression ranges for {config.model.levels} levels; give one each"
    lowest = min((low for low, _ in ranges), default=0)
    if lowest >= config.window.steps:
        yield (
            f"{path}: distances of {lowest:g} steps and more do not fit into windows of {config.window.steps} steps; "
            "begin with 0"
        )


def _covered(ranges: tuple[tuple[float, float], ...]) -> list[tuple[float, float]]:
    """The union of ranges that are not empty, as ranges that do not meet."""
    union: list[tuple[float, float]] = []
    for low, high in sorted(one for one in ranges if one[0] < one[1]):
        if union and low <= union[-1][1]:
            union[-1] = (union[-1][0], max(high, union[-1][1]))
        else:
            union.append((low, high))
    return union


# Training


@_rule
def _schedule_to_the_end(config: Config) -> Iterator[str]:
    epochs, schedule = config.training.epochs, config.training.schedule_epochs
    if schedule is not None and schedule < epochs:
        yield (
            f"training.schedule_epochs: the learning rate is 0 after {schedule} epochs, but training.epochs is {epochs}"
            f"; use {epochs} or more, or null for training.epochs"
        )


@_rule
def _warm_up_within_the_schedule(config: Config) -> Iterator[str]:
    training = config.training
    schedule = training.schedule_epochs or training.epochs
    if training.warmup_epochs >= schedule:
        yield (
            f"training.warmup_epochs: warmup_epochs {training.warmup_epochs:g} must be less than the {schedule} epochs "
            f"of the schedule; use {schedule / 10:g}, for example"
        )


@_rule
def _decay_by_less_than_all(config: Config) -> Iterator[str]:
    training = config.training
    rates = {"lr": training.lr, **({} if config.model.backbone is None else {"adapter_lr": training.adapter_lr})}
    name = max(rates, key=lambda key: rates[key])
    if rates[name] * training.weight_decay >= 1:
        yield (
            f"training.weight_decay: {training.weight_decay:g} times training.{name} {rates[name]:g} takes all of a "
            "weight away in every step; lower one of them"
        )


@_rule
def _shards_without_scaling(config: Config) -> Iterator[str]:
    if config.training.shard and config.training.precision == "fp16":
        yield (
            "training.shard: shard with precision fp16 would scale each process' losses by its own measure; use "
            "training.precision=bf16"
        )


# Testing


@_rule
def _backbone_over_whole_videos(config: Config) -> Iterator[str]:
    if config.test.backbone == "window":
        return
    if config.model.backbone is None:
        yield "test.backbone=video is of no use to features, which need no backbone"
    if config.window.layout == "resized":
        yield "test.backbone=video is of no use to window.layout=resized, where a video is one window"
    if config.plan.adds == "cross-adapter":
        yield (
            f"test.backbone: experiment {config.experiment} has both backbones tell each other what they see of a "
            "window, block by block: leave out test.backbone=video"
        )


@_rule
def _names_of_whole_videos(config: Config) -> Iterator[str]:
    test = config.test
    if test.video_scores is not None and not config.data.class_agnostic and test.nms.multiclass:
        yield (
            "test.video_scores names every segment itself: give data.class_agnostic=true, or "
            "test.nms.multiclass=false, so that one found in two classes does not count twice"
        )


@_rule
def _two_networks_are_merged(config: Config) -> Iterator[str]:
    if config.plan.networks == 2 and config.test.nms.method == "none":
        yield (
            f"test.nms.method: experiment {config.experiment} merges the detections of two networks, which "
            "test.nms.method=none would leave unmerged"
        )


# Experiments


@_rule
def _first_weights(config: Config) -> Iterator[str]:
    says, given = f"experiment {config.experiment}", (config.init.forward, config.init.reverse)
    if config.plan.starts_from == "baselines" and None in given:
        yield f"init: {says} starts from two finished baselines: give init.forward=RUN and init.reverse=RUN"
    if config.plan.starts_from == "backbone" and given != (None, None):
        yield f"init: {says} starts from the pre-trained backbone: leave out init.forward and init.reverse"


@_rule
def _direction_of_one_network(config: Config) -> Iterator[str]:
    if config.plan.networks == 2 and config.direction != "forward":
        yield (
            f"direction: experiment {config.experiment} has a network for each direction: leave out direction "
            "(pair.second is the second one's)"
        )


@_rule
def _modules_need_a_backbone(config: Config) -> Iterator[str]:
    if config.plan.adds is not None and config.model.backbone is None:
        yield (
            f"experiment {config.experiment} adds modules to the backbone's blocks, but pre-computed "
            "features have no backbone"
        )


@_rule
def _fused_windows_of_one_length(config: Config) -> Iterator[str]:
    if config.plan.fusion is not None and config.window.layout == "whole":
        yield (
            f"window.layout: experiment {config.experiment} fuses windows of one length: window.layout=whole makes "
            "each as long as its video"
        )


@_rule
def _second_network(config: Config) -> Iterator[str]:
    if config.plan.networks == 1 and config.pair.second != "reverse":
        yield f"pair.second is of no use to experiment {config.experiment}, of one network"


@_rule
def _alignment(config: Config) -> Iterator[str]:
    pair = config.pair
    if pair.align != "exact" and not (config.plan.aligns and pair.second == "reverse"):
        yield f"pair.align={pair.align} is of no use to experiment {config.experiment}" + (
            "" if pair.second == "reverse" else " of two forward networks, which share a clock"
        )


@_rule
def _first_fusion(config: Config) -> Iterator[str]:
    if config.pair.fusion_init != "mean" and config.plan.fusion is None:
        yield (
            f"pair.fusion_init={config.pair.fusion_init} is of no use to experiment "
            f"{config.experiment}, which fuses nothing"
        )


@_rule
def _detectors_that_train_too(config: Config) -> Iterator[str]:
    if config.pair.train_detector and config.plan.adds is None:
        yield f"pair.train_detector is of no use to experiment {config.experiment}"
