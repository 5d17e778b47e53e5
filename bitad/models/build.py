"""Configuration -> network: the only place that assembles modules, and the only one that says what trains."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from torch import nn

from bitad.config import BackboneConfig, Config
from bitad.models.adapters import TemporalAdapter
from bitad.models.detector import Detector, VideoBackbone
from bitad.models.head import DetectionHead
from bitad.models.pyramid import FeaturePyramid
from bitad.models.sizes import SIZES
from bitad.models.videomae import VisionTransformer
from bitad.models.weights import load_backbone


def build_detector(config: Config, num_classes: int) -> Detector:
    """The detector of a configuration, freshly initialised, with ``requires_grad`` set to what trains.

    The pre-trained weights of the backbone are not loaded: see :func:`load_pretrained`.
    """
    model = config.model
    backbone = None if model.backbone is None else _backbone(model.backbone)
    in_channels = config.data.feature_channels if backbone is None else backbone.vit.dim
    assert in_channels is not None  # the configuration has seen to it
    pyramid = FeaturePyramid(
        in_channels,
        model.channels,
        levels=model.levels,
        max_length=config.window.steps,
        stem_blocks=model.stem_blocks,
        heads=model.heads,
        window=model.attention_window,
        dropout=model.dropout,
        drop_path=model.drop_path,
        layer_scale=model.layer_scale,
        padding=model.padding,
    )
    head = DetectionHead(
        model.channels,
        num_classes,
        strides=pyramid.strides,
        ranges=model.ranges,
        convs=model.head_convolutions,
        prior_probability=model.prior_probability,
    )
    detector = Detector(backbone=backbone, pyramid=pyramid, head=head)
    _set_what_trains(detector)
    return detector


def _backbone(config: BackboneConfig) -> VideoBackbone:
    size = SIZES[config.size]
    adapters = [TemporalAdapter(size.dim, reduction=config.adapter_reduction) for _ in range(size.depth)]
    vit = VisionTransformer(
        dim=size.dim,
        depth=size.depth,
        heads=size.heads,
        mlp_dim=size.mlp_dim,
        patch_size=size.patch_size,
        image_size=config.table_pixels,
        drop_path=config.drop_path,
        adapters=adapters,
        checkpointing=config.checkpointing,
    )
    return VideoBackbone(vit)


def _set_what_trains(detector: nn.Module) -> None:
    """Everything but the pre-trained transformer; of that, the adapters alone."""
    for name, parameter in detector.named_parameters():
        parameter.requires_grad_(not name.startswith("backbone.vit.") or ".adapter." in name)


def load_pretrained(detector: Detector, config: Config) -> None:
    """Loads the backbone's pre-trained weights, where the configuration names some.

    Raises:
        FileNotFoundError, ValueError: if they are missing or of another network.
    """
    if config.model.backbone is None or config.model.backbone.weights is None:
        return
    assert isinstance(detector.backbone, VideoBackbone)
    load_backbone(detector.backbone.vit, weights_path(config.model.backbone.weights))


def weights_path(weights: Path) -> Path:
    """Where a file of weights lies; ``package:NAME`` is one that comes with the package."""
    name = str(weights)
    if name.startswith("package:"):
        return Path(str(resources.files("bitad") / "presets" / name.removeprefix("package:")))
    return weights
