"""Configuration -> network: assembles modules, and sets what trains."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bitad.config.names import Checkpointing, Precision
from bitad.config.schema import BackboneConfig, Config
from bitad.models.backbone import VideoBackbone
from bitad.models.fusion import ColumnFusion, ConvolutionFusion, Fusion, MeanFusion
from bitad.models.heads import DetectionHead, Head
from bitad.models.network import Detector, Network, Pair, SharedDetector, Side
from bitad.models.pyramid import FeaturePyramid, Pyramid
from bitad.models.sgp import SgpPyramid
from bitad.models.trident import TridentHead
from bitad.models.vit import Block, CrossAdapter, TemporalAdapter, VisionTransformer, is_adapter
from bitad.models.vjepa2 import VJepa2Transformer
from bitad.timeline import View

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Within, matrix products and convolutions of this thread are done in a precision."""
    dtype = DTYPES[precision]
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def hold_frozen(network: nn.Module, precision: Precision) -> None:
    """Holds the blocks of frozen transformers in the precision of the computation, which halves their memory.

    Autocast would cast their weights for every piece of every block, and tokens between single and half precision
    around each norm and addition. Norms, softmax and matrix products still accumulate in single precision. Weights that
    blocks share stay shared.
    """
    dtype = DTYPES[precision]
    if dtype is None:
        return
    held: dict[int, Tensor] = {}
    for block in network.modules():
        if isinstance(block, Block):
            storages = [parameter.untyped_storage()._cdata for parameter in block.frozen()]
            block.hold(dtype)
            for parameter, storage in zip(block.frozen(), storages, strict=True):
                parameter.data = held.setdefault(storage, parameter.data)


class OwnRandomNumbers(TorchFunctionMode):
    """Within, this thread draws initial weights from its own generator."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if "generator" in kwargs or func in (Tensor.uniform_, Tensor.normal_):  # the former: torch.nn.init
            kwargs["generator"] = self.generator
        return func(*args, **kwargs)


def build_network(config: Config, num_classes: int) -> Network:
    """The network or pair of a configuration, freshly initialised, with ``requires_grad`` set."""
    if config.design.networks == 1:
        network: Network = _detector(config, num_classes, config.views[0])
    else:
        network = Pair(
            *(_side(config, num_classes, view) for view in config.views),
            mirrored=len(set(config.clocks)) == 2,
            align=config.pair.align if config.design.aligns else None,
        )
    _set_what_trains(network, config)
    return network


def _side(config: Config, num_classes: int, view: View) -> Side:
    network = _detector(config, num_classes, view)
    cross_adapters = None
    if config.design.adds == "cross-adapter":
        assert isinstance(network.backbone, VideoBackbone)  # the configuration has seen to it
        assert config.model.backbone is not None
        vit, reduction = network.backbone.vit, config.model.backbone.adapter_reduction
        cross_adapters = nn.ModuleList(
            CrossAdapter(vit.dim, reduction=reduction, placement=vit.placement) for _ in vit.blocks
        )
    return Side(network, cross_adapters=cross_adapters, fusion=_fusion(config, network))


def _fusion(config: Config, network: Detector) -> Fusion | None:
    if config.design.fusion is None:
        return None
    name = config.pair.fusion or config.design.fusion
    if name not in FUSIONS:
        raise ValueError(f"pair.fusion={name}: no such fusion; use one of {', '.join(FUSIONS)}")
    points = sum(config.window.steps // stride for stride in network.pyramid.strides)  # N
    return FUSIONS[name](points, init=config.pair.fusion_init)


def _detector(config: Config, num_classes: int, view: View) -> Detector:
    """A detector, shared by both views in experiment 1s."""
    model = config.model
    backbone = None if model.backbone is None else BACKBONES[model.backbone.type](model.backbone, config)
    in_channels = config.data.feature_channels if backbone is None else backbone.vit.dim
    assert in_channels is not None  # the configuration has seen to it
    pyramid = PYRAMIDS[model.pyramid.type](model.pyramid, config, in_channels)
    head = HEADS[model.head.type](model.head, config, num_classes, pyramid.strides)
    if config.design.shared:
        channels = in_channels if config.pair.direction_embedding else None
        return SharedDetector(backbone=backbone, pyramid=pyramid, head=head, direction_channels=channels)
    reverses_features = view == "reversed-features"
    return Detector(backbone=backbone, pyramid=pyramid, head=head, reverses_features=reverses_features)


def _video_backbone(transformer: type[VisionTransformer], model: BackboneConfig, config: Config) -> VideoBackbone:
    size = model.vit

    def adapters() -> list[TemporalAdapter | None]:
        return [
            None
            if block < model.first_adapter
            else TemporalAdapter(size.dim, reduction=model.adapter_reduction, placement=model.adapter_placement)
            for block in range(size.depth)
        ]

    vit = transformer(
        dim=size.dim,
        depth=size.depth,
        heads=size.heads,
        mlp_dim=size.mlp_dim,
        patch_size=size.patch_size,
        image_size=model.table_pixels,
        drop_path=model.drop_path,
        adapters=adapters(),
        bi_adapters=adapters() if config.design.adds == "adapter" else None,
        placement=model.adapter_placement,
        checkpointing=checkpointing_of(config),
    )
    if model.compile:
        _compile_blocks(vit)
    return VideoBackbone(vit, frames_per_step=config.window.frames_per_step)


# Builders by name in the configuration (`type` of model.backbone, model.pyramid and model.head; the fusion of an
# experiment). The first argument is the own section of the configuration, or the number of points.
BACKBONES: dict[str, Callable[[Any, Config], VideoBackbone]] = {
    "videomae": partial(_video_backbone, VisionTransformer),
    "vjepa2": partial(_video_backbone, VJepa2Transformer),
}
PYRAMIDS: dict[str, Callable[[Any, Config, int], Pyramid]] = {
    "transformer": FeaturePyramid.from_config,
    "sgp": SgpPyramid.from_config,
}
HEADS: dict[str, Callable[[Any, Config, int, Sequence[int]], Head]] = {
    "actionformer": DetectionHead.from_config,
    "trident": TridentHead.from_config,
}
FUSIONS: dict[str, Callable[..., Fusion]] = {
    "columns": ColumnFusion,
    "convolution": ConvolutionFusion,
    "mean": MeanFusion,
}


def _compile_blocks(vit: VisionTransformer) -> None:
    """Has each block compiled at its first use, in place: parameters keep their names."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")  # as PyTorch
    if shutil.which(compiler) is None:
        raise ValueError(
            f"model.backbone.compile needs a C++ compiler, and there is no {compiler}; install one, name another in "
            "CXX, or use model.backbone.compile=false"
        )
    for block in vit.blocks:
        block.compile()


def checkpointing_of(config: Config) -> Checkpointing:
    backbone = config.model.backbone
    if backbone is None or backbone.adapter_placement == "beside":  # without gradients, nothing is recomputed
        return "none"
    return backbone.checkpointing or ("blocks" if config.design.joint else "none")


def _set_what_trains(network: nn.Module, config: Config) -> None:
    """Trains all but the pre-trained transformer; or only the modules added to finished networks."""
    for name, parameter in network.named_parameters():
        if config.trains_detectors:
            trains = ".vit." not in f".{name}" or is_adapter(name)
        else:
            trains = ".bi_adapter." in name or ".cross_adapters." in name
        parameter.requires_grad_(trains)
