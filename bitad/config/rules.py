"""Combinations of values that a configuration must not have. Each rule is a function; all broken rules are reported.

Values that are wrong on their own are refused by the types of the fields in :mod:`bitad.config.schema`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel

if TYPE_CHECKING:
    from bitad.config.schema import Config


Rule = Callable[["Config"], Iterator[str]]

_RULES: list[Rule] = []

# Rules of one condition: what must not be, and the fault as a format string of the configuration.
_CONDITIONS: tuple[tuple[Callable[[Config], object], str], ...] = (
    (
        lambda c: (c.data.videos is None) == (c.data.features is None),
        "data: give exactly one of data.videos and data.features",
    ),
    (
        lambda c: c.data.features is not None and c.data.feature_channels is None,
        "data.features needs data.feature_channels, the number of channels of a feature",
    ),
    (
        lambda c: (c.data.videos is None) != (c.model.backbone is None),
        "model.backbone: data.videos needs model.backbone, and data.features a model without one",
    ),
    (
        lambda c: c.window.frames_per_step > 1 and c.model.backbone is None,
        "window.frames_per_step {c.window.frames_per_step} has no effect on features, which have one per step",
    ),
    (
        lambda c: c.window.layout != "resized" and c.window.stride_frames % c.window.frames_per_step,
        "window.stride_frames {c.window.stride_frames} is not a multiple of the {c.window.frames_per_step} frames per "
        "step (window.frames_per_step)",
    ),
    (
        lambda c: c.window.layout != "resized" and c.window.resized_clock != "centre",
        "window.resized_clock={c.window.resized_clock} has no effect with window.layout={c.window.layout}",
    ),
    (
        lambda c: c.training.schedule_epochs is not None and c.training.schedule_epochs < c.training.epochs,
        "training.schedule_epochs: the learning rate is 0 after {c.training.schedule_epochs} epochs, but "
        "training.epochs is {c.training.epochs}; use {c.training.epochs} or more, or null for training.epochs",
    ),
    (
        lambda c: c.training.shard and c.training.precision == "fp16",
        "training.shard: with precision fp16, each process would scale its losses differently; use "
        "training.precision=bf16",
    ),
    (
        lambda c: c.test.backbone == "video" and c.model.backbone is None,
        "test.backbone=video has no effect on features, which need no backbone",
    ),
    (
        lambda c: c.test.backbone == "video" and c.window.layout == "resized",
        "test.backbone=video has no effect with window.layout=resized, where a video is one window",
    ),
    (
        lambda c: c.test.backbone == "video" and c.design.adds == "cross-adapter",
        "test.backbone: in experiment {c.experiment} the backbones exchange their features of a window block by block; "
        "leave out test.backbone=video",
    ),
    (
        lambda c: c.test.video_scores is not None and not c.data.class_agnostic and c.test.nms.multiclass,
        "test.video_scores names the classes of every segment itself; set data.class_agnostic=true, or "
        "test.nms.multiclass=false so that a segment found in two classes counts once",
    ),
    (
        lambda c: c.design.networks == 2 and c.test.nms.method == "none",
        "test.nms.method: experiment {c.experiment} merges the detections of two networks, which needs a method other "
        "than none",
    ),
    (
        lambda c: c.design.starts_from == "baselines" and None in (c.init.forward, c.init.reverse),
        "init: experiment {c.experiment} starts from two finished baselines: give init.forward=RUN and "
        "init.reverse=RUN",
    ),
    (
        lambda c: c.design.starts_from == "backbone" and (c.init.forward, c.init.reverse) != (None, None),
        "init: experiment {c.experiment} starts from the pre-trained backbone: leave out init.forward and init.reverse",
    ),
    (
        lambda c: c.design.networks == 2 and c.direction != "forward",
        "direction: experiment {c.experiment} has a network for each direction; leave out direction (pair.second sets "
        "that of the second network)",
    ),
    (
        lambda c: c.design.adds is not None and c.model.backbone is None,
        "experiment {c.experiment} adds modules to the backbone's blocks, but features have no backbone",
    ),
    (
        lambda c: c.design.fusion is not None and c.window.layout == "whole",
        "window.layout: experiment {c.experiment} fuses windows of one length, but window.layout=whole makes each as "
        "long as its video",
    ),
    (
        lambda c: c.design.networks == 1 and c.pair.second != "reverse",
        "pair.second has no effect in experiment {c.experiment}, which has one network",
    ),
    (
        lambda c: c.pair.align != "exact" and not c.design.aligns and c.pair.second == "reverse",
        "pair.align={c.pair.align} has no effect in experiment {c.experiment}",
    ),
    (
        lambda c: c.pair.align != "exact" and c.pair.second == "forward",
        "pair.align={c.pair.align} has no effect in experiment {c.experiment} with two forward networks, which share a "
        "clock",
    ),
    (
        lambda c: c.pair.fusion_init != "mean" and c.design.fusion is None,
        "pair.fusion_init={c.pair.fusion_init} has no effect in experiment {c.experiment}, which has no fusion",
    ),
    (
        lambda c: c.pair.train_detector and c.design.adds is None,
        "pair.train_detector has no effect in experiment {c.experiment}",
    ),
)


def broken_rules(config: Config, unread: Collection[str] = ()) -> list[str]:
    """The faults of a configuration, one line each that begins with a path.

    Args:
        config: with any value at the keys that could not be read.
        unread: the paths of these keys, such as ``training.lr``; rules that depend on one are skipped.
    """
    known = cast("Config", _Known(config, unread)) if unread else config
    found: dict[str, None] = {}
    conditions: list[Rule] = [partial(_condition, *one) for one in _CONDITIONS]
    for rule in (*conditions, *_RULES):
        with suppress(_UnreadError):
            for fault in rule(known):
                found[fault] = None
    return list(found)


def _condition(is_broken: Callable[[Config], object], fault: str, config: Config) -> Iterator[str]:
    if is_broken(config):
        yield fault.format(c=config)


class _UnreadError(Exception):
    """A rule asked for a value that could not be read."""


class _Known:
    """A section of a configuration that raises for the values that could not be read."""

    def __init__(self, section: BaseModel, unread: Collection[str], path: str = "") -> None:
        self._section, self._unread, self._path = section, unread, path

    def __getattr__(self, name: str) -> Any:
        path = f"{self._path}{name}"
        if path in self._unread:
            raise _UnreadError(path)
        derived = getattr(type(self._section), name, None)
        if isinstance(derived, property) and derived.fget is not None:
            return derived.fget(self)  # reads what it is derived from through this object
        value = getattr(self._section, name)
        return _Known(value, self._unread, f"{path}.") if isinstance(value, BaseModel) else value


def _rule(function: Rule) -> Rule:
    _RULES.append(function)
    return function


@_rule
def _reversed_playback(config: Config) -> Iterator[str]:
    for kind, remedy in (
        ("features", "give the features of reversed playback"),
        ("videos", "give the folder that `bitad reverse` wrote"),
    ):
        forward, back = getattr(config.data, kind), getattr(config.data, f"reversed_{kind}")
        if back is not None and forward is None:
            yield f"data.reversed_{kind} needs data.{kind}, because windows are laid out on the forward clock"
        elif back is not None and forward == back:
            yield (
                f"data.reversed_{kind}: {forward} is also data.{kind}; {remedy}, or leave it out to flip the windows"
            )


@_rule
def _window_steps(config: Config) -> Iterator[str]:
    steps, coarsest = config.window.steps, 2 ** (config.model.levels - 1)
    if coarsest > steps:
        yield (
            f"model.levels: {config.model.levels} levels halve a window {config.model.levels - 1} times, but "
            f"window.steps {steps} has room for at most {steps.bit_length()} levels; use fewer levels or longer windows"
        )
    unit, name = coarsest, f"coarsest stride {coarsest}"
    if coarsest < config.clip_steps:  # both are powers of two
        unit, name = config.clip_steps, f"backbone's clip of {config.clip_steps} steps"
    if coarsest <= steps and steps % unit:
        yield f"window.steps {steps} is not a multiple of the {name}; use {-(-steps // unit) * unit}"


@_rule
def _backbone_heads(config: Config) -> Iterator[str]:
    if (backbone := config.model.backbone) is not None and (vit := backbone.vit).dim % vit.heads:
        yield f"model.backbone.size: a width of {vit.dim} is not a multiple of {vit.heads} attention heads"


@_rule
def _backbone_pixels(config: Config) -> Iterator[str]:
    if (backbone := config.model.backbone) is None:
        return
    patch = backbone.vit.patch_size
    for key in ("pixels", "table_pixels"):
        if (pixels := getattr(backbone, key)) < patch:
            yield f"model.backbone.{key}: {pixels} pixels are less than a patch of {patch}; use {patch} or more"


@_rule
def _adapters(config: Config) -> Iterator[str]:
    if (backbone := config.model.backbone) is None:
        return
    vit = backbone.vit
    if backbone.first_adapter >= vit.depth:
        yield (
            f"model.backbone.first_adapter: first_adapter {backbone.first_adapter} is after the last of the "
            f"{vit.depth} blocks, counted from 0; use {vit.depth - 1} or less"
        )
    if backbone.adapter_reduction > vit.dim:
        yield (
            f"model.backbone.adapter_reduction: {backbone.adapter_reduction} leaves the adapters no channel of the "
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
                "model.attention_window: attention_window 1 lets each position attend only to itself; use an odd "
                "number from 3, or null for all positions"
            )
        elif window is not None and window % 2 == 0:
            yield f"model.attention_window: attention_window {window} must be odd to have a centre; use {window + 1}"
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
    for (_, high), (low, _) in itertools.pairwise(_union(ranges)):
        yield (
            f"{path}: distances between {high:g} and {low:g} steps are in no range, so actions of that length are "
            "never learned; begin each range where another ends, or before"
        )
    if len(ranges) != config.model.levels:
        yield f"{path}: {len(ranges)} regression ranges for {config.model.levels} levels; give one each"
    lowest = min((low for low, _ in ranges), default=0)
    if lowest >= config.window.steps:
        yield (
            f"{path}: distances from {lowest:g} steps do not fit into windows of {config.window.steps} steps; begin "
            "with 0"
        )


def _union(ranges: tuple[tuple[float, float], ...]) -> list[tuple[float, float]]:
    """The union of the ranges that are not empty, as disjoint ranges in ascending order."""
    union: list[tuple[float, float]] = []
    for low, high in sorted(one for one in ranges if one[0] < one[1]):
        if union and low <= union[-1][1]:
            union[-1] = (union[-1][0], max(high, union[-1][1]))
        else:
            union.append((low, high))
    return union


@_rule
def _warm_up(config: Config) -> Iterator[str]:
    training = config.training
    schedule = training.schedule_epochs or training.epochs
    if training.warmup_epochs >= schedule:
        yield (
            f"training.warmup_epochs: warmup_epochs {training.warmup_epochs:g} must be less than the {schedule} epochs "
            f"of the schedule; use {schedule / 10:g}, for example"
        )


@_rule
def _weight_decay(config: Config) -> Iterator[str]:
    training = config.training
    rates = {"lr": training.lr, **({} if config.model.backbone is None else {"adapter_lr": training.adapter_lr})}
    name = max(rates, key=lambda key: rates[key])
    if rates[name] * training.weight_decay >= 1:
        yield (
            f"training.weight_decay: {training.weight_decay:g} times training.{name} {rates[name]:g} removes every "
            "weight in each step; lower one of them"
        )
