"""Tiny models of the library ``transformers`` with random weights, in folders as ``save_pretrained`` writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

SIDE = 32  # pixels of the pictures
# What processors' files state; frames of 32x48 pixels are not scaled, and their middle square is taken.
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
CROPPED = {
    "do_resize": True,
    "size": {"shortest_edge": SIDE},
    "resample": 2,
    "do_center_crop": True,
    "crop_size": {"height": SIDE, "width": SIDE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "videomae": (
        "preprocessor_config.json",
        {**CROPPED, **IMAGENET, "image_processor_type": "VideoMAEImageProcessor"},
    ),
    "vjepa2": (
        "video_preprocessor_config.json",
        {**CROPPED, **IMAGENET, "video_processor_type": "VJEPA2VideoProcessor"},
    ),
    "vivit": (
        "preprocessor_config.json",
        {
            **CROPPED,
            **HALF,
            "rescale_factor": 1 / 127.5,
            "offset": True,
            "image_processor_type": "VivitImageProcessor",
        },
    ),
    # As early versions wrote it.
    "timesformer": (
        "preprocessor_config.json",
        {
            **HALF,
            "size": SIDE,
            "crop_size": SIDE,
            "resample": 2,
            "feature_extractor_type": "VideoMAEFeatureExtractor",
        },
    ),
    "xclip": (
        "preprocessor_config.json",
        {**CROPPED, **IMAGENET, "feature_extractor_type": "VideoMAEFeatureExtractor"},
    ),
    "dinov2": ("preprocessor_config.json", {**CROPPED, **IMAGENET, "image_processor_type": "BitImageProcessor"}),
    "dinov3_vit": (
        "preprocessor_config.json",
        {**CROPPED, **IMAGENET, "image_processor_type": "DINOv3ViTImageProcessor"},
    ),
    "vit": ("preprocessor_config.json", {**CROPPED, **HALF, "image_processor_type": "ViTImageProcessor"}),
    "clip": (
        "processor_config.json",
        {"image_processor": {**CROPPED, **HALF, "resample": 3, "image_processor_type": "CLIPImageProcessor"}},
    ),
    "siglip": ("preprocessor_config.json", {**CROPPED, **HALF, "image_processor_type": "SiglipImageProcessor"}),
}
_SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
_TEXT = {**_SIZES, "vocab_size": 20, "max_position_embeddings": 8, "eos_token_id": 2}


def model_of(kind: str) -> Any:
    """A model with weights far from 0, so that clips differ."""
    import transformers as library

    picture = {"image_size": SIDE, "patch_size": 16}
    torch.manual_seed(0)
    model: Any
    if kind == "videomae":
        model = library.VideoMAEModel(library.VideoMAEConfig(**_SIZES, **picture, num_frames=4))
    elif kind == "vjepa2":
        own = {name: value for name, value in _SIZES.items() if name != "intermediate_size"}
        pred = {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
        config = library.VJEPA2Config(**own, **pred, crop_size=SIDE, patch_size=16, frames_per_clip=8)
        model = library.VJEPA2Model(config)
    elif kind == "vivit":
        config = library.VivitConfig(**_SIZES, image_size=SIDE, num_frames=8, tubelet_size=[4, 16, 16])
        model = library.VivitModel(config)
    elif kind == "timesformer":
        model = library.TimesformerModel(library.TimesformerConfig(**_SIZES, **picture, num_frames=4))
    elif kind == "xclip":
        frames = {
            "num_frames": 4,
            "mit_hidden_size": 16,
            "mit_intermediate_size": 32,
            "mit_num_attention_heads": 2,
        }
        vision = {**_SIZES, **picture, **frames}
        prompts = {"prompt_num_attention_heads": 2, "prompt_layers": 1}
        config = library.XCLIPConfig(text_config=_TEXT, vision_config=vision, projection_dim=16, **prompts)
        model = library.XCLIPModel(config)
    elif kind == "dinov2":
        own = {name: value for name, value in _SIZES.items() if name != "intermediate_size"}
        model = library.Dinov2Model(library.Dinov2Config(**own, **picture))
    elif kind == "dinov3_vit":
        model = library.DINOv3ViTModel(library.DINOv3ViTConfig(**_SIZES, **picture, num_register_tokens=2))
    elif kind == "vit":
        model = library.ViTModel(library.ViTConfig(**_SIZES, **picture))
    elif kind == "clip":
        config = library.CLIPConfig(text_config=_TEXT, vision_config={**_SIZES, **picture}, projection_dim=16)
        model = library.CLIPModel(config)
    elif kind == "siglip":
        model = library.SiglipModel(library.SiglipConfig(text_config=_TEXT, vision_config={**_SIZES, **picture}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def save_model(kind: str, folder: Path, model: Any = None) -> Path:
    """Writes a model and its processor's file; returns the folder."""
    (model_of(kind) if model is None else model).save_pretrained(folder)
    name, content = PROCESSORS[kind]
    (folder / name).write_text(json.dumps(content))
    return folder
