"""Combinations of values that a configuration must not have; :mod:`bitad.config.schema` refuses single values."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from functools import partial, reduce
from typing import TYPE_CHECKING

from pydantic import BaseModel

if TYPE_CHECKING:
    from bitad.config.schema import Config

    Rule = Callable[[Config], Iterator[str]]
    Condition = Callable[[Config], object]


# Rules of one condition: what must not be, and the fault as a format string of the configuration.
_CONDITIONS: tuple[tuple[Condition, str], ...] = (
    (
        lambda c: (c.data.videos is None) == (c.data.features is None),
        "data: give exactly one of data.videos and data.features",
    ),
    (
        lambda c: c.data.features is not None and c.data.feature_channels is None,
        "data.features needs data.feature_channels",
    ),
    (
        lambda c: c.data.frame_cache is not None and not c.data.keep_frames_mib,
        "data.frame_cache needs data.keep_frames_mib, the most MiB of frames in {c.data.frame_cache}",
    ),
    (
        lambda c: (c.data.videos is None) != (c.model.backbone is None),
        "model.backbone: data.videos needs model.backbone, and data.features a model without one",
    ),
    (
        lambda c: c.window.layout != "resized" and c.window.stride_frames % c.window.frames_per_step,
        "window.stride_frames {c.window.stride_frames} is not a multiple of {c.window.frames_per_step} frames per step",
    ),
    (
        lambda c: c.window.steps_per_second is not None and c.window.frames_per_step > 1,
        "window.steps_per_second: strides of {c.window.frames_per_step} frames per step are the same for all videos; "
        "use window.stride_frames, or window.frames_per_step=1",
    ),
    (
        lambda c: c.model.pyramid.type == "transformer" and c.model.channels % c.model.heads,
        "model.channels: {c.model.channels} channels are not a multiple of {c.model.heads} heads (model.heads)",
    ),
    (
        lambda c: c.model.pyramid.type == "sgp" and c.model.channels % c.model.pyramid.groups,
        "model.channels: {c.model.channels} channels are not a multiple of the {c.model.pyramid.groups} groups of "
        "model.pyramid.type=sgp",
    ),
    (
        lambda c: c.training.schedule_epochs is not None and c.training.schedule_epochs < c.training.epochs,
        "training.schedule_epochs: the learning rate is 0 after {c.training.schedule_epochs} epochs, but "
        "training.epochs is {c.training.epochs}; use {c.training.epochs} or more, or null",
    ),
    (
        lambda c: c.training.shard and c.training.precision == "fp16",
        "training.shard: each process would scale its fp16 losses differently; use training.precision=bf16",
    ),
    (
        lambda c: c.test.backbone == "video" and c.design.adds == "cross-adapter",
        "test.backbone=video: in experiment {c.experiment} the backbones exchange features of a window; leave it out",
    ),
    (
        lambda c: c.test.video_scores is not None and not c.data.class_agnostic and c.test.nms.multiclass,
        "test.video_scores names the classes of segments; set data.class_agnostic=true or test.nms.multiclass=false",
    ),
    (
        lambda c: len(c.views) == 2 and c.test.nms.method == "none",
        "test.nms.method=none: experiment {c.experiment} merges two sets of detections; choose another method",
    ),
    (
        lambda c: c.design.starts_from == "baselines" and None in (c.init.forward, c.init.reverse),
        "init: experiment {c.experiment} starts from two finished baselines: give init.forward and init.reverse",
    ),
    (
        lambda c: c.starts_from == "backbone" and (c.init.forward, c.init.reverse) != (None, None),
        "init: experiment {c.experiment} starts from the pre-trained backbone: leave out init.forward and init.reverse",
    ),
    (
        lambda c: c.design.teacher and c.init.forward is not None and c.init.reverse is not None,
        "init.reverse: experiment {c.experiment} has one network; it may start from init.forward alone",
    ),
    (
        lambda c: c.design.teacher and c.init.teacher is None,
        "init.teacher: experiment {c.experiment} needs a teacher: give a finished run or a file of detections",
    ),
    (
        lambda c: c.init.teaches_by_detections and len(c.init.teacher or ()) > 1,
        "init.teacher: a file of detections teaches alone; give one file, or runs",
    ),
    (
        lambda c: c.design.teacher and c.direction != "forward",
        "direction={c.direction}: experiment {c.experiment} trains a forward network; leave direction out",
    ),
    (
        lambda c: c.design.adds is not None and c.model.backbone is None,
        "experiment {c.experiment} adds modules to the backbone's blocks, but features have no backbone",
    ),
    (
        lambda c: c.design.adds == "cross-adapter" and c.pair.second == "flipped",
        "pair.second=flipped: in experiment {c.experiment} the networks exchange tokens of one place in the frame; use "
        "another experiment",
    ),
    (
        lambda c: c.design.fusion is not None and c.window.layout == "whole",
        "window.layout=whole: experiment {c.experiment} fuses windows of one length; choose another layout",
    ),
)

_EXPERIMENT = "in experiment {c.experiment}, which "

# Keys whose value has no effect under a condition.
_WITHOUT_EFFECT: tuple[tuple[str, Condition, str], ...] = (
    ("window.frames_per_step", lambda c: c.model.backbone is None, "on features, which have one per step"),
    (
        "window.steps_per_second",
        lambda c: c.model.backbone is None,
        "on features, whose stride is data.feature_stride_frames",
    ),
    (
        "window.steps_per_second",
        lambda c: c.window.layout == "resized",
        "with window.layout=resized, where every video has window.steps",
    ),
    (
        "window.stride_frames",
        lambda c: c.window.steps_per_second is not None,
        "with window.steps_per_second={c.window.steps_per_second:g}; leave one of them out",
    ),
    ("window.resized_clock", lambda c: c.window.layout != "resized", "with window.layout={c.window.layout}"),
    ("test.backbone", lambda c: c.model.backbone is None, "on features, which need no backbone"),
    ("test.backbone", lambda c: c.window.layout == "resized", "with window.layout=resized"),
    (
        "direction",
        lambda c: c.design.networks == 2,
        _EXPERIMENT + "has a network for each direction; use pair.second",
    ),
    (
        "direction",
        lambda c: c.design.shared,
        _EXPERIMENT + "has one network for both directions",
    ),
    (
        "pair.direction_embedding",
        lambda c: not c.design.shared,
        _EXPERIMENT + "has no network for both directions; use experiment=1s",
    ),
    ("data.reversal", lambda c: c.data.class_agnostic, "with data.class_agnostic=true, where all classes are one"),
    ("pair.second", lambda c: c.design.networks == 1, _EXPERIMENT + "has one network"),
    ("pair.align", lambda c: not c.design.aligns, _EXPERIMENT + "aligns nothing"),
    ("pair.second_weights", lambda c: c.design.networks == 1, _EXPERIMENT + "has one network"),
    ("pair.second_weights", lambda c: c.model.backbone is None, "on features, which need no backbone"),
    (
        "pair.align",
        lambda c: len(set(c.clocks)) == 1,
        "with pair.second={c.pair.second}, where both networks share a clock",
    ),
    ("pair.fusion", lambda c: c.design.fusion is None, _EXPERIMENT + "has no fusion"),
    ("pair.fusion_init", lambda c: c.design.fusion is None, _EXPERIMENT + "has no fusion"),
    ("pair.train_detector", lambda c: c.design.adds is None, _EXPERIMENT + "trains the detectors anyway"),
    *(
        (key, lambda c: not c.design.teacher, _EXPERIMENT + "has no teacher")
        for key in ("init.teacher", "distil.weight", "distil.temperature")
    ),
)


def broken_rules(config: Config, unread: Collection[str] = ()) -> list[str]:
    """The faults of a configuration, by path. Rules that depend on a path in ``unread`` are skipped."""
    if unread:
        config = config.model_copy(deep=True)
        for path in unread:
            section: object = config
            *sections, key = path.split(".")
            for name in sections:
                section = getattr(section, name, None)
            if isinstance(section, BaseModel):
                vars(section).pop(key, None)  # reading the value is now an AttributeError
    found: dict[str, None] = {}
    conditions: list[Rule] = [partial(_condition, *one) for one in _CONDITIONS]
    without_effect: list[Rule] = [partial(_without_effect, *one) for one in _WITHOUT_EFFECT]
    for rule in (*conditions, *without_effect, *_RULES):
        with suppress(*([AttributeError] if unread else [])):
            for fault in rule(config):
                found[fault] = None
    return list(found)


def _condition(is_broken: Condition, fault: str, config: Config) -> Iterator[str]:
    if is_broken(config):
        yield fault.format(c=config)


def _without_effect(path: str, is_unused: Condition, where: str, config: Config) -> Iterator[str]:
    *sections, key = path.split(".")
    section: BaseModel = reduce(getattr, sections, config)
    value = getattr(section, key)
    if value != type(section).model_fields[key].default and is_unused(config):
        yield f"{path}={'true' if value is True else value} has no effect {where.format(c=config)}"


def _reversed_playback(config: Config) -> Iterator[str]:
    for kind in ("features", "videos"):
        forward, back = getattr(config.data, kind), getattr(config.data, f"reversed_{kind}")
        if back is not None and forward is None:
            yield f"data.reversed_{kind} needs data.{kind}, because windows are laid out on the forward clock"
        elif back is not None and forward.absolute() == back.absolute():
            yield (
                f"data.reversed_{kind}: {back} is also data.{kind}; give {kind} of reversed playback, or leave it "
                "out to flip the windows"
            )


def _flipped(config: Config) -> Iterator[str]:
    if "flipped" not in config.views:
        return
    key = "direction" if config.design.networks == 1 else "pair.second"
    if config.data.features is not None:
        yield f"{key}=flipped mirrors frames, and features have none; choose another one"
    elif (share := config.training.augmentation.flip) > 0:
        yield (
            f"training.augmentation.flip: it mirrors {share:g} of the windows at random, so {key}=flipped would show "
            "nothing else; use 0, also for the networks that it is compared with"
        )


def _window_steps(config: Config) -> Iterator[str]:
    steps, levels = config.window.steps, config.model.levels
    coarsest = 2 ** (levels - 1)
    if coarsest > steps:
        yield (
            f"model.levels: window.steps {steps} has room for {steps.bit_length()} levels, not {levels}; "
            "use fewer levels or longer windows"
        )
    unit, name = coarsest, f"coarsest stride {coarsest}"
    if coarsest < config.clip_steps:  # both are powers of two
        unit, name = config.clip_steps, f"backbone's clip of {config.clip_steps} steps"
    if coarsest <= steps and steps % unit:
        yield f"window.steps {steps} is not a multiple of the {name}; use {-(-steps // unit) * unit}"


def _backbone_pixels(config: Config) -> Iterator[str]:
    if (backbone := config.model.backbone) is None:
        return
    patch = backbone.vit.patch_size
    for key in ("pixels", "table_pixels"):
        if (pixels := getattr(backbone, key)) < patch:
            yield f"model.backbone.{key}: {pixels} pixels are less than a patch of {patch}; use {patch} or more"


def _backbone_size(config: Config) -> Iterator[str]:
    if (backbone := config.model.backbone) is None:
        return
    path, vit = "model.backbone", backbone.vit
    if vit.dim % vit.heads:
        yield f"{path}.size: a width of {vit.dim} is not a multiple of {vit.heads} attention heads"
    if backbone.first_adapter >= vit.depth:
        yield (
            f"{path}.first_adapter: {backbone.first_adapter} is after the last of the {vit.depth} blocks; "
            f"use {vit.depth - 1} or less"
        )
    if backbone.adapter_reduction > vit.dim:
        yield (
            f"{path}.adapter_reduction: {backbone.adapter_reduction} leaves the adapters no channel; "
            f"use {vit.dim} or less"
        )


def _windows_of_levels(config: Config) -> Iterator[str]:
    model, path, window = config.model, "model.attention_window", config.model.attention_window
    if model.pyramid.type == "sgp":
        path, window = "model.pyramid.window", model.pyramid.window
    if isinstance(window, tuple) and len(window) != model.levels:
        yield f"{path}: {len(window)} windows for {model.levels} levels; give one each"


def _regression_ranges(config: Config) -> Iterator[str]:
    ranges, path = config.model.regression_ranges, "model.regression_ranges"
    if ranges is None:
        return
    for low, high in ranges:
        if low >= high or high <= 0:
            yield f"{path}: no distance is in the range [{low:g}, {high:g}]; give each as [smallest, largest]"
    ordered = sorted((low, high) for low, high in ranges if low < high)
    reached = itertools.accumulate((high for _, high in ordered), max)
    for high, (low, _) in zip(reached, ordered[1:], strict=False):
        if low > high:
            yield (
                f"{path}: distances between {high:g} and {low:g} steps are in no range, so actions of that "
                "length are never learned; close the gap"
            )
    if len(ranges) != config.model.levels:
        yield f"{path}: {len(ranges)} regression ranges for {config.model.levels} levels; give one each"
    lowest = min((low for low, _ in ranges), default=0)
    if lowest >= config.window.steps:
        yield f"{path}: distances from {lowest:g} steps do not fit into {config.window.steps} steps; begin with 0"


def _warm_up(config: Config) -> Iterator[str]:
    warm_up, schedule = config.training.warmup_epochs, config.training.schedule_length
    if warm_up >= schedule:
        yield (
            f"training.warmup_epochs: {warm_up:g} must be less than the {schedule} epochs of the schedule; "
            f"use {schedule / 10:g}"
        )


def _weight_decay(config: Config) -> Iterator[str]:
    training = config.training
    rates = {"lr": training.lr}
    if config.model.backbone is not None:
        rates["adapter_lr"] = training.adapter_lr
    name = max(rates, key=lambda key: rates[key])
    if rates[name] * training.weight_decay >= 1:
        yield (
            f"training.weight_decay: {training.weight_decay:g} times training.{name} {rates[name]:g} removes every "
            "weight in each step; lower one of them"
        )


_RULES: tuple[Rule, ...] = (
    _reversed_playback,
    _flipped,
    _window_steps,
    _backbone_pixels,
    _backbone_size,
    _windows_of_levels,
    _regression_ranges,
    _warm_up,
    _weight_decay,
)
