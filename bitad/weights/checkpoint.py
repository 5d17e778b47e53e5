"""Checkpoints: BiTAD's, and with a configuration other projects' detectors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitad.config.loading import KEYS_OF_PATHS, differences, override_config, parse_config
from bitad.config.schema import Config
from bitad.data.classes import ANY_CLASS, read_classes
from bitad.data.feature_folder import require_same_features
from bitad.data.fingerprints import Fingerprints
from bitad.data.formats.database import read_annotations
from bitad.models.build import Network, build_network, hold_frozen
from bitad.runtime.files import atomic_write, check_not_inputs
from bitad.runtime.log import shortlist
from bitad.weights.files import FORMAT, OURS, is_checkpoint, weights_path, write_safetensors
from bitad.weights.loading import (
    VALID_CONTENT,
    BackboneFile,
    Weights,
    is_transformer_of,
    load_backbone,
    load_weights,
    parse_weights,
    read_complete,
    without_adapters,
)

# Assumed of the training videos of another project's detector, if they are missing.
FRAME_RATE_HZ = 30.0
# A resumed run may change these: they do not affect its results.
WITHOUT_EFFECT = (
    "threads",
    "output",
    "data.allow_clock_mismatch",
    "data.frame_cache",
    "data.keep_frames_mib",
    "model.backbone.random",
    "training.workers",
    "training.checkpoint_steps",
    "training.keep_last",
    "training.max_nonfinite_steps",
    "training.shard",
    "training.tensorboard",
    "init.forward",
    "init.reverse",
)
_PRETRAINED = "model.backbone.weights"
_SECOND_PRETRAINED = "pair.second_weights"
# These change how a network is trained, but not the network.
OF_THE_TRAINING = (
    "model.drop_path",
    "model.dropout",
    "model.pyramid.init_std",
    "model.pyramid.input_noise",
    "model.head.iou_weight_power",
    _PRETRAINED,
    _SECOND_PRETRAINED,
    "model.backbone.random",
    "model.backbone.drop_path",
    "model.backbone.checkpointing",
    "model.backbone.compile",
)
# The input that a network was trained for, as keys or sections.
_INPUT_KEYS = (
    "direction",
    "experiment",
    "pair",
    "model",
    "window.stride_frames",
    "window.steps_per_second",
    "window.frames_per_step",
    "window.resized_clock",
    "data.feature_channels",
    "data.feature_stride_frames",
    "data.feature_offset_frames",
    "data.feature_fps",
    "data.class_agnostic",
)


@dataclass
class Checkpoint:
    """The content of a checkpoint file.

    Args:
        classes: names, in the order of the logits.
        model: the state of the network or pair, for testing: averages (EMA) of the weights that train.
        epoch: finished epochs.
        rate_hz: grid steps a second, the median of the training videos.
        source: the file, for messages.
        evaluation: of these weights, if they were evaluated.
        training: what only a resumed run needs (raw weights, optimizer, schedule, EMA, RNG); None in `best.pt`.
        data: fingerprints of the training and test data; None: of an older version, or another project.
        operating_points: recall and detections by score, of the evaluation; see
            :class:`~bitad.evaluation.operating_points.OperatingPoints`, in JSON's types.
    """

    config: Config
    classes: tuple[str, ...]
    model: dict[str, Tensor]
    epoch: int
    rate_hz: float
    source: str = "the checkpoint"
    evaluation: dict[str, Any] | None = None
    training: dict[str, Any] | None = field(default=None, repr=False)
    data: Fingerprints | None = field(default=None, repr=False)
    operating_points: dict[str, Any] | None = field(default=None, repr=False)

    def network(self) -> Network:
        """The trained network, in evaluation mode; ValueError if the weights do not fit or are not finite."""
        network = build_network(self.config, len(self.classes))
        load_weights(network, self.model, source=self.source, may_lack=without_adapters(self.model))
        if broken := [name for name, weight in self.model.items() if not weight.isfinite().all()]:
            raise ValueError(
                f"weights of {self.source} are not finite: {shortlist(broken)}; use another checkpoint"
            )
        return network.eval()

    def inference_network(self, device: torch.device) -> Network:
        """:meth:`network` on a device, its frozen transformer in the precision of ``test.precision``."""
        network = self.network().to(device)
        hold_frozen(network, self.config.test_precision)
        return network

    def changes(self, config: Config, *, moved: Collection[str] = ()) -> list[str]:
        """The differences that change a resumed run; keys in ``moved`` may name another path."""
        return [
            f"{key} was {old}, is {new}"
            for key, old, new in _sorted_differences(self.config, config)
            if key not in WITHOUT_EFFECT
            and not (key == "data.reversal" and not config.learns_both_directions)
            and not (key in moved and None not in (old, new))
            and not (key in KEYS_OF_PATHS and _is_same_place(old, new))
            and not self._has_transformer_of(_pretrained_files(config).get(key))
        ]

    def _has_transformer_of(self, file: Path | None) -> bool:
        """Whether a pre-trained file has the transformer of this network, or one of a pair's."""
        return file is not None and is_transformer_of(self.model, file)

    def changed(self, overrides: Sequence[str]) -> Checkpoint:
        """The checkpoint with overrides of its configuration, for testing.

        Raises:
            ValueError: the network would get other input or another transformer.
        """
        config = override_config(self.config, overrides)
        keys = list(_INPUT_KEYS)
        if config.design.fusion:  # its layer has an input for every point
            keys.append("window.steps")
        if "resized" in (
            self.config.window.layout,
            config.window.layout,
        ):  # other layouts divide the test videos only
            keys += ["window.layout", "window.steps"]
        if config.learns_both_directions:
            keys.append("data.reversal")
        before, now = self.config.data.reversed_features, config.data.reversed_features
        # Features of reversed playback are not flipped features.
        if "reverse" in config.views and (before is None) != (now is None):
            keys.append("data.reversed_features")
        if changed := input_differences(self.config, config, keys):
            values = "; ".join(f"{key} was {old}, is {new}" for key, old, new in changed)
            raise ValueError(
                f"{self.source} was trained otherwise: {values}; leave these keys out, or train another run"
            )
        require_same_features(self.config.data, config.data)
        trained = _pretrained_files(self.config)
        for key, file in _pretrained_files(config).items():
            if file not in (None, trained[key]) and not self._has_transformer_of(file):
                raise ValueError(f"{key}={file} is not the transformer of {self.source}; leave that key out")
        return replace(self, config=config)


def _is_same_place(path: str | None, other: str | None) -> bool:
    """Whether two paths are one, as a relative path here and an absolute one in a run's configuration."""
    return None not in (path, other) and os.path.abspath(str(path)) == os.path.abspath(str(other))


def _sorted_differences(before: Config, now: Config) -> list[tuple[str, Any, Any]]:
    """The keys that differ between two configurations, by name, with both values."""
    found = differences(before.model_dump(mode="json"), now.model_dump(mode="json"))
    return sorted(found, key=itemgetter(0))


def input_differences(before: Config, now: Config, keys: Collection[str]) -> list[tuple[str, Any, Any]]:
    """The differences in ``keys`` and sections that affect a trained network."""
    beginnings = tuple(f"{key}." for key in keys)
    return [
        (key, old, new)
        for key, old, new in _sorted_differences(before, now)
        if key not in OF_THE_TRAINING and f"{key}.".startswith(beginnings)
    ]


def save_checkpoint(
    checkpoint: Checkpoint,
    path: Path,
    *,
    backbone: BackboneFile | None = None,
    before: Callable[[], None] | None = None,
) -> None:
    """Writes a checkpoint, atomically.

    Args:
        checkpoint: to a path that ends in ``.safetensors``, it is written without ``training``.
        backbone: in the same folder; the checkpoint refers to it.
        before: called when the file is written, before it replaces an existing one.
    """
    values = {
        "config": checkpoint.config.model_dump(mode="json"),
        "classes": list(checkpoint.classes),
        "epoch": checkpoint.epoch,
        "rate_hz": checkpoint.rate_hz,
        "evaluation": checkpoint.evaluation,
        "data": checkpoint.data,
        "operating_points": checkpoint.operating_points,
    }
    if path.suffix == ".safetensors":
        texts = {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}
        write_safetensors(checkpoint.model, path, metadata={"format": FORMAT, **texts})
        return
    content = {
        "format": FORMAT,
        **values,
        "backbone": None if backbone is None else backbone.to_json(),
        "model": checkpoint.model if backbone is None else backbone.remove_from(checkpoint.model),
        "training": checkpoint.training,
    }
    with atomic_write(path, synced=True) as partial:
        with partial.open("wb") as stream:
            try:
                torch.save(content, stream)
            except RuntimeError as error:
                if isinstance(error.__context__, OSError):  # PyTorch's message hides a full disk
                    raise error.__context__ from None
                raise
        if before is not None:
            before()


def load_checkpoint(path: Path, config: Config | None = None) -> Checkpoint:
    """Reads a checkpoint of BiTAD, or with a configuration any known project's detector.

    Args:
        path: a file, or a folder that stands for one: of a run `best.pt`, else `last.pt`.
        config: for a detector without one. Its data set names the classes.

    Raises:
        FileNotFoundError: no such file, or no file of its frozen transformer.
        ValueError: no checkpoint or detector, or a configuration is missing or not allowed.
    """
    path = weights_path(path)
    found = open_checkpoint(path)
    if isinstance(found, Checkpoint):
        if config is not None:
            raise ValueError(f"{path} contains its configuration; leave out --config, or use key=value")
        return found
    fault = None
    if found.format.kind == "pair":
        fault = "the weights of two networks, without a configuration; give their run or checkpoint"
    elif found.format.kind == "backbone":
        fault = f"a backbone: {found.format.title}; name it in model.backbone.weights and train a detector on it"
    elif config is None:
        fault = f"a detector of {found.format.title}, without a configuration; name one with --config, such as a preset"
    if config is None or fault is not None:
        raise ValueError(f"{path} is not a checkpoint of BiTAD but {fault}")
    if config.design.networks == 2 or config.design.shared:
        has = "one for both directions" if config.design.shared else "two"
        raise ValueError(
            f"{path} is one detector, but experiment {config.experiment} has {has}; use experiment=baseline"
        )
    return Checkpoint(
        config=config,
        classes=class_names(config),
        model=found.tensors,
        epoch=found.epoch or 0,
        rate_hz=_rate_hz(config),
        source=str(path),
    )


def open_checkpoint(path: Path) -> Checkpoint | Weights:
    """A checkpoint of BiTAD, or the weights of any known project."""
    path = weights_path(path)
    content = read_complete(path)
    if is_checkpoint(content):
        return parse_checkpoint(content, path)
    if str(content.get("format")).startswith(OURS):
        raise ValueError(
            f"{path} is a checkpoint of another version of BiTAD ({content['format']!r}, not '{FORMAT}'); "
            "read it with that version, or train again"
        )
    return parse_weights(content, path)


def parse_checkpoint(content: Mapping[str, Any], path: Path) -> Checkpoint:
    """The checkpoint in the content of a file from :func:`~bitad.weights.loading.read_complete`."""
    values: dict[str, Any] = {key: content.get(key) for key in VALID_CONTENT}
    values |= {"config": parse_config(values["config"], f"in {path}"), "classes": tuple(values["classes"])}
    return Checkpoint(**values, source=str(path))


def convert_weights(path: Path, out: Path, config: Config | None = None) -> None:
    """Writes weights of any known project as safetensors: a complete checkpoint, or a backbone.

    Args:
        path: as :func:`load_checkpoint`, or a backbone's.
        config: for a detector without one; of a backbone, the network that it must fit.
    """
    if out.suffix != ".safetensors":
        raise ValueError(f"{out}: weights are written as safetensors; give a name that ends in .safetensors")
    path = weights_path(path)
    check_not_inputs([out], [path])
    found = open_checkpoint(path)
    if isinstance(found, Checkpoint) or found.format.kind != "backbone":
        checkpoint = load_checkpoint(path, config)
        checkpoint.network()  # raises if the weights do not fit
        save_checkpoint(checkpoint, out)
        return
    if config is not None:
        if config.model.backbone is None:
            raise ValueError(f"{path} is a backbone ({found.format.title}), but the configuration takes features")
        backbone = build_network(config, 1).detectors[0].backbone
        assert backbone is not None  # the configuration has one
        load_backbone(backbone.vit, path)
    write_safetensors(found.tensors, out, metadata={"project": found.format.title, "source": path.name})


def _pretrained_files(config: Config) -> dict[str, Path | None]:
    """The pre-trained files of a configuration, by key."""
    first = None if config.model.backbone is None else config.model.backbone.weights
    return {_PRETRAINED: first, _SECOND_PRETRAINED: config.pair.second_weights}


def class_names(config: Config) -> tuple[str, ...]:
    """The classes of a configuration's data set, in the order of the logits."""
    data = config.data
    if data.class_agnostic:
        return (ANY_CLASS,)
    if data.classes is not None:
        return read_classes(data.classes)
    if not data.annotations.is_file():
        raise FileNotFoundError(
            f"{data.annotations}: no such file; correct data.annotations, or name a list of the classes in data.classes"
        )
    return read_annotations(data.annotations).classes


def _rate_hz(config: Config) -> float:
    """Grid steps a second of a configuration's data set, the median of its videos."""
    data = config.data
    if config.window.steps_per_second is not None:
        return config.window.steps_per_second
    rates = [] if data.feature_fps is None else [data.feature_fps]
    if not rates and data.annotations.is_file():
        videos = read_annotations(data.annotations).videos.values()
        rates = [video.fps for video in videos if video.fps is not None]
    stride = config.window.stride_frames if data.features is None else data.feature_stride_frames
    return float(np.median(rates or [FRAME_RATE_HZ])) / stride
