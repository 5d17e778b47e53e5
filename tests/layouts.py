"""Our weights as other projects' files hold them: their names, their shapes, and what else is in their files."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def renamed(weights: Weights, *rules: tuple[str, str]) -> Weights:
    """Every name by all rules, in order."""
    result = {}
    for name, weight in weights.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        result[name] = weight
    return result


def norm(prefix: str, dim: int) -> Weights:
    return {f"{prefix}.weight": torch.ones(dim), f"{prefix}.bias": torch.zeros(dim)}


def linear(prefix: str, dim: int, outputs: int) -> Weights:
    return {f"{prefix}.weight": torch.ones(outputs, dim), f"{prefix}.bias": torch.zeros(outputs)}


def without_table(vit: Weights) -> Weights:
    """VideoMAE's own files have no position table: it is a constant there."""
    return {name: weight for name, weight in vit.items() if name != "pos_embed"}


VIDEOMAE = (
    (r"^patch_embed\.", "patch_embed.proj."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.2\.", ".mlp.fc2."),
)


def videomae_finetuned(vit: Weights, classes: int = 400) -> dict[str, Any]:
    """github.com/MCG-NJU/VideoMAE, fine-tuned."""
    dim = vit["patch_embed.bias"].shape[0]
    model = renamed(without_table(vit), *VIDEOMAE) | norm("fc_norm", dim) | linear("head", dim, classes)
    return {"module": model}


def videomae_pretrained(vit: Weights) -> dict[str, Any]:
    """github.com/MCG-NJU/VideoMAE before fine-tuning: encoder and decoder."""
    dim = vit["patch_embed.bias"].shape[0]
    encoder = renamed(without_table(vit), *VIDEOMAE) | norm("norm", dim)
    decoder = {name: weight for name, weight in encoder.items() if name.startswith("blocks.0.")}
    decoder |= norm("norm", dim) | linear("head", dim, 1536)
    model = {f"encoder.{name}": weight for name, weight in encoder.items()}
    model |= {f"decoder.{name}": weight for name, weight in decoder.items()}
    model |= {"encoder_to_decoder.weight": torch.ones(dim, dim), "mask_token": torch.zeros(1, 1, dim)}
    return {"model": model, "epoch": 1599}


def videomaev2(vit: Weights) -> dict[str, Any]:
    """github.com/OpenGVLab/VideoMAEv2, fine-tuned on Kinetics-710."""
    return videomae_finetuned(vit, classes=710)


def videomaev2_huggingface(vit: Weights) -> dict[str, Any]:
    """huggingface.co/OpenGVLab/VideoMAEv2-*: the original code behind a wrapper, without a classifier."""
    dim = vit["patch_embed.bias"].shape[0]
    names = renamed(without_table(vit), *VIDEOMAE) | norm("fc_norm", dim)
    return {f"model.{name}": weight for name, weight in names.items()}


MMACTION = (
    (r"(^|\.)patch_embed\.", r"\1patch_embed.projection."),
    (r"(blocks\.\d+)\.mlp\.0\.", r"\1.mlp.layers.0.0."),
    (r"(blocks\.\d+)\.mlp\.2\.", r"\1.mlp.layers.1."),
    (r"\.adapter\.depthwise\.", ".adapter.dwconv."),
    (r"\.adapter\.pointwise\.", ".adapter.conv."),
    (r"\.adapter\.down\.", ".adapter.down_proj."),
    (r"\.adapter\.up\.", ".adapter.up_proj."),
)


def mmaction2(vit: Weights) -> dict[str, Any]:
    """github.com/open-mmlab/mmaction2, Recognizer3D."""
    dim = vit["patch_embed.bias"].shape[0]
    names = renamed(vit, *MMACTION) | norm("fc_norm", dim)
    backbone = {f"backbone.{name}": weight for name, weight in names.items()}
    return {"meta": {}, "state_dict": backbone | linear("cls_head.fc_cls", dim, 400)}


HUGGINGFACE = (
    (r"^patch_embed\.", "embeddings.patch_embeddings.projection."),
    (r"^blocks\.", "encoder.layer."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.", ".attention.attention."),
    (r"\.mlp\.0\.", ".intermediate.dense."),
    (r"\.mlp\.2\.", ".output.dense."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
)


def huggingface_model(vit: Weights) -> Weights:
    """transformers.VideoMAEModel."""
    result = {}
    for name, weight in renamed(without_table(vit), *HUGGINGFACE).items():
        if name.endswith(".qkv.weight"):
            for part, third in zip(("query", "key", "value"), weight.chunk(3), strict=True):
                result[name.replace("qkv", part)] = third.clone()
        else:
            result[name] = weight
    return result


def huggingface_classifier(vit: Weights) -> Weights:
    """transformers.VideoMAEForVideoClassification."""
    dim = vit["patch_embed.bias"].shape[0]
    model = {f"videomae.{name}": weight for name, weight in huggingface_model(vit).items()}
    return model | norm("fc_norm", dim) | linear("classifier", dim, 400)


def huggingface_pretraining(vit: Weights) -> Weights:
    """transformers.VideoMAEForPreTraining."""
    dim = vit["patch_embed.bias"].shape[0]
    model = huggingface_model(vit)
    decoder = {
        name.replace("encoder.layer.", "decoder.decoder_layers."): weight.clone()
        for name, weight in model.items()
        if name.startswith("encoder.layer.0.")
    }
    decoder |= norm("decoder.norm", dim) | linear("decoder.head", dim, 1536)
    model = {f"videomae.{name}": weight for name, weight in (model | norm("layernorm", dim)).items()}
    return (
        model | decoder | {"encoder_to_decoder.weight": torch.ones(dim, dim), "mask_token": torch.zeros(1, 1, dim)}
    )


PYRAMID = (
    (r"\.norm([12])\.", r".ln\1."),
    (r"\.attn\.(query|key|value)\.depthwise\.", r".attn.\1_conv.conv."),
    (r"\.attn\.(query|key|value)\.norm\.", r".attn.\1_norm."),
    (r"\.attn\.(query|key|value)\.pointwise\.", r".attn.\1."),
)


def opentad(detector: Weights) -> Weights:
    """The names of an OpenTAD detector, ``module.`` before each."""
    result: Weights = {}
    for name, weight in detector.items():
        if name.startswith("backbone.vit."):
            (new,) = renamed({name: weight}, (r"^backbone\.vit\.", "backbone.model.backbone."), *MMACTION)
            if new.endswith("dwconv.weight"):
                weight = weight.squeeze(-1)
            elif new.endswith("adapter.conv.weight"):
                weight = weight.unsqueeze(-1)
        elif name == "head.scales":
            result |= {f"rpn_head.scale.{level}.scale": scale for level, scale in enumerate(weight)}
            continue
        else:
            (new,) = renamed(
                {name: weight},
                (r"^pyramid\.norms\.", "neck.fpn_norms."),
                (r"^pyramid\.", "projection."),
                *PYRAMID,
                (r"^head\.classification\.convs\.", "rpn_head.cls_convs."),
                (r"^head\.regression\.convs\.", "rpn_head.reg_convs."),
                (r"^head\.classification\.output\.", "rpn_head.cls_head."),
                (r"^head\.regression\.output\.", "rpn_head.reg_head."),
            )
            if new.endswith(".scale"):
                weight = weight[None, :, None]
        result[new] = weight
    if any(name.startswith("backbone.") for name in result):
        result |= norm("backbone.model.backbone.fc_norm", result["backbone.model.backbone.pos_embed"].shape[2])
    result["rpn_head.loss_normalizer"] = torch.tensor(100)
    return {f"module.{name}": weight for name, weight in result.items()}


def opentad_file(detector: Weights) -> dict[str, Any]:
    """A checkpoint of OpenTAD's training: the raw weights are others than the averaged ones."""
    averaged = opentad(detector)
    raw = {name: weight + 1 for name, weight in averaged.items()}
    return {
        "epoch": 73,
        "state_dict": raw,
        "optimizer": {"state": {}},
        "scheduler": {},
        "state_dict_ema": averaged,
    }


def actionformer_file(detector: Weights) -> dict[str, Any]:
    """A checkpoint of ActionFormer's own code, on features."""
    result: Weights = {}
    for name, weight in detector.items():
        if name == "head.scales":
            result |= {f"reg_head.scale.{level}.scale": scale for level, scale in enumerate(weight)}
            continue
        (new,) = renamed(
            {name: weight},
            (r"^pyramid\.norms\.", "neck.fpn_norms."),
            (r"^pyramid\.embed\.(\d+)\.norm\.", r"backbone.embd_norm.\1."),
            (r"^pyramid\.embed\.", "backbone.embd."),
            (r"^pyramid\.", "backbone."),
            *PYRAMID,
            (r"^head\.(cls|reg|classification|regression)", r"\1"),
            (r"^classification\.", "cls_head."),
            (r"^regression\.", "reg_head."),
            (r"\.convs\.(\d+)\.conv\.", r".head.\1.conv."),
            (r"\.convs\.(\d+)\.norm\.", r".norm.\1."),
            (r"^cls_head\.output\.", "cls_head.cls_head.conv."),
            (r"^reg_head\.output\.", "reg_head.offset_head.conv."),
        )
        is_norm = "norm" in new or re.search(r"\.ln[12]\.", new)
        result[new] = weight[None, :, None] if is_norm or new.endswith(".scale") else weight
    averaged = {f"module.{name}": weight for name, weight in result.items()}
    raw = {name: weight + 1 for name, weight in averaged.items()}
    return {"epoch": 34, "state_dict": raw, "scheduler": {}, "optimizer": {}, "state_dict_ema": averaged}


BACKBONES: dict[str, Callable[[Weights], dict[str, Any]]] = {
    "videomae": videomae_finetuned,
    "videomae-pretrained": videomae_pretrained,
    "videomaev2": videomaev2,
    "videomaev2-huggingface": videomaev2_huggingface,
    "mmaction2": mmaction2,
    "huggingface": huggingface_model,
    "huggingface-classifier": huggingface_classifier,
    "huggingface-pretraining": huggingface_pretraining,
    "bitad": dict,
}
