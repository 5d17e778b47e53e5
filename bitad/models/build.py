"""Configuration -> network: the only place that assembles modules, and the only one that says what trains."""

from __future__ import annotations

import os
import shutil
import sys

from torch import nn

from bitad.config import BackboneConfig, Config
from bitad.models.adapters import CrossAdapter, TemporalAdapter, is_adapter
from bitad.models.detector import Detector, VideoBackbone
from bitad.models.fusion import ColumnFusion, ConvolutionFusion, Fusion, MeanFusion
from bitad.models.head import DetectionHead
from bitad.models.pair import Pair, Side
from bitad.models.pyramid import FeaturePyramid
from bitad.models.recompute import Checkpointing
from bitad.models.videomae import VisionTransformer
from bitad.models.weight_files import weights_path
from bitad.models.weights import load_backbone

Network = Detector | Pair


def build_network(config: Config, num_classes: int) -> Network:
    """The network or pair of a configuration, freshly initialised, with ``requires_grad`` set to what trains.

    Weights are not loaded: see :func:`load_pretrained` and :func:`bitad.training.initial.load_initial`.
    """
    if config.plan.networks == 1:
        network: Network = _detector(config, num_classes)
    else:
        network = Pair(
            _side(config, num_classes),
            _side(config, num_classes),
            mirrored=config.views[0] != config.views[1],
            align=config.pair.align if config.plan.aligns else None,
        )
    _set_what_trains(network, config)
    return network


def _side(config: Config, num_classes: int) -> Side:
    network = _detector(config, num_classes)
    cross_adapters = None
    if config.plan.adds == "cross-adapter":
        assert isinstance(network.backbone, VideoBackbone)  # the configuration has seen to it
        assert config.model.backbone is not None
        vit, reduction = network.backbone.vit, config.model.backbone.adapter_reduction
        cross_adapters = nn.ModuleList(CrossAdapter(vit.dim, reduction=reduction) for _ in vit.blocks)
    return Side(network, cross_adapters=cross_adapters, fusion=_fusion(config, network))


def _fusion(config: Config, network: Detector) -> Fusion | None:
    points = sum(config.window.steps // stride for stride in network.pyramid.strides)  # N
    match config.plan.fusion:
        case "columns":
            return ColumnFusion(points, init=config.pair.fusion_init)
        case "convolution":
            return ConvolutionFusion(points, init=config.pair.fusion_init)
        case "mean":
            return MeanFusion(points, init=config.pair.fusion_init)
        case None:
            return None


def _detector(config: Config, num_classes: int) -> Detector:
    model = config.model
    backbone = None if model.backbone is None else _backbone(model.backbone, config)
    in_channels = config.data.feature_channels if backbone is None else backbone.vit.dim
    assert in_channels is not None  # the configuration has seen to it
    pyramid = FeaturePyramid(
        in_channels,
        model.channels,
        levels=model.levels,
        embed_convs=model.embed_convolutions,
        max_length=config.window.steps,
        stem_blocks=model.stem_blocks,
        heads=model.heads,
        window=model.attention_window,
        position_embedding=model.position_embedding,
        input_dropout=model.input_dropout,
        dropout=model.dropout,
        drop_path=model.drop_path,
        layer_scale=model.layer_scale,
        level_norms=model.level_norms,
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
    return Detector(backbone=backbone, pyramid=pyramid, head=head)


def _backbone(model: BackboneConfig, config: Config) -> VideoBackbone:
    size = model.vit

    def adapters() -> list[TemporalAdapter | None]:
        return [
            TemporalAdapter(size.dim, reduction=model.adapter_reduction) if block >= model.first_adapter else None
            for block in range(size.depth)
        ]

    vit = VisionTransformer(
        dim=size.dim,
        depth=size.depth,
        heads=size.heads,
        mlp_dim=size.mlp_dim,
        patch_size=size.patch_size,
        image_size=model.table_pixels,
        drop_path=model.drop_path,
        adapters=adapters(),
        bi_adapters=adapters() if config.plan.adds == "adapter" else None,
        checkpointing=checkpointing_of(config),
    )
    if model.compile:
        _compile_blocks(vit)
    return VideoBackbone(vit, frames_per_step=config.window.frames_per_step)


def _compile_blocks(vit: VisionTransformer) -> None:
    """Has each block compiled when it is first used; in place, so that no parameter changes its name."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")  # what PyTorch takes
    if shutil.which(compiler) is None:
        raise ValueError(
            f"model.backbone.compile needs a C++ compiler, and there is no {compiler} on this machine; install one, "
            "name another in CXX, or use model.backbone.compile=false"
        )
    for block in vit.blocks:
        block.compile()


def checkpointing_of(config: Config) -> Checkpointing:
    """What the backward passes of a configuration's backbone recompute."""
    backbone = config.model.backbone
    if backbone is None:
        return "none"
    return backbone.checkpointing or ("blocks" if config.plan.joint else "none")


def _set_what_trains(network: nn.Module, config: Config) -> None:
    """Everything but the pre-trained transformer, of which the adapters alone; or, in experiments that add modules to
    finished networks, these modules alone."""
    for name, parameter in network.named_parameters():
        if config.trains_detectors:
            trains = ".vit." not in f".{name}" or is_adapter(name)
        else:
            trains = ".bi_adapter." in name or ".cross_adapters." in name
        parameter.requires_grad_(trains)


def require_pretrained(config: Config) -> None:
    """Refuses to train around a frozen transformer that nothing fills.

    Raises:
        ValueError: the configuration names no weights for it, starts from no baselines, and does not ask for random
            ones.
    """
    backbone = config.model.backbone
    if backbone is None or config.plan.starts_from == "baselines" or backbone.random or backbone.weights is not None:
        return
    raise ValueError(
        "model.backbone.weights is null: the transformer is frozen and would keep random weights; name a pre-trained "
        "file, or use model.backbone.random=true if you want that"
    )


def load_pretrained(network: Network, config: Config) -> None:
    """Loads the backbone's pre-trained weights into the network or both of a pair, where there is one.

    Raises:
        FileNotFoundError, ValueError: they are missing or of another network; or as :func:`require_pretrained`.
    """
    require_pretrained(config)
    if config.model.backbone is None or config.model.backbone.weights is None:
        return
    detectors = [network] if isinstance(network, Detector) else [side.network for side in network.sides]
    for detector in detectors:
        assert isinstance(detector.backbone, VideoBackbone)
        load_backbone(detector.backbone.vit, weights_path(config.model.backbone.weights))
