"""What weights are that our networks cannot take: a table of names and shapes, and what to do instead.

The names are those of the projects' own code: Video Swin (github.com/SwinTransformer/Video-Swin-Transformer), SlowFast
and MViT (github.com/facebookresearch/SlowFast), torchvision, mmaction2, timm, DINOv2
(github.com/facebookresearch/dinov2), Hugging Face's transformers, I3D (github.com/piergiaj/pytorch-i3d), BMN
(github.com/JJBOY/BMN-Boundary-Matching-Network), G-TAD (github.com/frostinassiky/gtad), TriDet
(github.com/dingfengshi/TriDet), TadTR (github.com/xlliu7/TadTR), ActionFormer and OpenTAD (see
:mod:`bitad.models.formats`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_ANOTHER_BACKBONE = (
    "the backbone here is VideoMAE: name a file of it, or compute features with that network and train on them "
    "(data.features)"
)
_ANOTHER_DETECTOR = (
    "the detectors here are ActionFormer and AdaTAD: run it in its own project, and read its detections with "
    "bitad evaluate or bitad merge"
)
_ANOTHER_ACTIONFORMER = "train it with the options of the released configurations, or train one here"
_NOT_A_NETWORK = "name the file, or the key in it, that has the network's weights"

_PATCHES = r"(^|\.)(patch_embed|patch_embed\.proj|patch_embed\.projection|patch_embeddings?\.proj(ection)?)\.weight$"
_IMAGE_PATCHES = rf"{_PATCHES}|(^|\.)(patch_embedding|conv_proj|visual\.conv1)\.weight$"
_SWIN = r"(^|\.)layers\.\d+\.blocks\.|(^|\.)features\.\d+\.\d+\..*relative_position_bias_table$"
_RESNET = r"(^|\.)(conv1|conv1a|stem\.0|stem\.conv|layer[1-4]\.\d+\.conv\d)\.((conv|0)\.)?weight$"


@dataclass(frozen=True)
class Foreign:
    """A kind of weights that is not ours.

    Args:
        what: it is, after "weights of".
        remedy: what to do.
        mark: a pattern that finds one of the names.
        ndim: dimensions of that weight; None: any.
        also: a pattern that finds one of the names too.
        lacks: a pattern that finds none of the names.
        alone: whether ``mark`` finds all of the names.
    """

    what: str
    remedy: str
    mark: str
    ndim: int | None = None
    also: str = ""
    lacks: str = r"(?!)"
    alone: bool = False

    def shown_by(self, weights: Mapping[str, Tensor]) -> str | None:
        """The name that shows that weights are of this kind; None: they are not."""
        found = [
            name
            for name, tensor in weights.items()
            if re.search(self.mark, name) and (self.ndim is None or tensor.ndim == self.ndim)
        ]
        fits = (
            found
            and (len(found) == len(weights) or not self.alone)
            and any(re.search(self.also, name) for name in weights)
            and not any(re.search(self.lacks, name) for name in weights)
        )
        return found[0] if fits else None


# The first that fits counts.
FOREIGN = (
    Foreign(
        "an optimiser's state",
        _NOT_A_NETWORK,
        r"(^|\.)(exp_avg|exp_avg_sq|exp_inf|max_exp_avg_sq|momentum_buffer|square_avg|acc_delta|sum|step)$",
        alone=True,
    ),
    Foreign(
        "one process of a sharded training (FSDP)",
        "gather them where they were trained, as a full state dict",
        r"(^|\.)_?flat_param(_\d+)?$",
    ),
    Foreign("LoRA's changes of a network", "merge them into the network's own weights first", r"\.lora_[AB]\."),
    # Detectors.
    Foreign("DyFADet", _ANOTHER_DETECTOR, r"\.(kernel_conv|dynamic_convs)\."),
    Foreign("TriDet", _ANOTHER_DETECTOR, r"\.(convkw|psi|global_fc)\.|(^|\.)(cls_)?(start|end)_(head|convs)\."),
    Foreign("a detector on Mamba", _ANOTHER_DETECTOR, r"\.(A_log|A_b_log|dt_proj|x_proj)(\.|$)", also=r"rpn_head\."),
    Foreign("BMN", _ANOTHER_DETECTOR, r"(^|\.)(x_1d_[bsep]|x_[23]d_p)\."),
    Foreign("G-TAD", _ANOTHER_DETECTOR, r"(^|\.)(regu_[se]|goi_align)\.|^backbone[12]\.\d"),
    Foreign("BSN's temporal evaluation", _ANOTHER_DETECTOR, r"^conv[123]\.(weight|bias)$", also="^conv3", alone=True),
    Foreign("BSN's proposal evaluation", _ANOTHER_DETECTOR, r"^fc[12]\.(weight|bias)$", also=r"^fc2\.", alone=True),
    Foreign("AFSD", _ANOTHER_DETECTOR, r"(^|\.)(coarse_pyramid_detection|loc_tower|conf_tower)\."),
    Foreign(
        "a detector of proposals (BMN, G-TAD, TSI or ETAD of OpenTAD)",
        _ANOTHER_DETECTOR,
        r"(^|\.)(roi_head|proposal_roi_extractor|proposal_head|rpn_head\.tem)\.",
    ),
    Foreign(
        "a detector of the DETR kind (TadTR, RTD-Net, ...)",
        _ANOTHER_DETECTOR,
        r"(^|\.)(class_embed|segment_embed|bbox_embed|query_embed|query_embedding|sampling_offsets)(\.|$)",
    ),
    Foreign(
        "TemporalMaxer",
        _ANOTHER_DETECTOR,
        r"^(reg_head|rpn_head)\.scale\.1\.scale$",
        also=r"(embd|embed)\.",
        lacks=r"\.attn\.",
    ),
    # ActionFormer with other options than any released configuration of it has.
    Foreign(
        "ActionFormer with a top-down neck (fpn_type: fpn)",
        _ANOTHER_ACTIONFORMER,
        r"^neck\.(lateral_convs|fpn_convs)\.",
        also=r"^(reg_head|rpn_head)\.",
    ),
    Foreign(
        "ActionFormer with relative positions (use_rel_pe: true)",
        _ANOTHER_ACTIONFORMER,
        r"^(backbone|projection)\..*\.rel_pe$",
    ),
    Foreign(
        "ActionFormer on several features at once (input_dim: a list)",
        _ANOTHER_ACTIONFORMER,
        r"^(backbone|projection)\.proj\.\d+\.",
    ),
    Foreign(
        "ActionFormer without norms in its embedding (embd_with_ln: false)",
        _ANOTHER_ACTIONFORMER,
        r"^(backbone\.embd|projection\.embed)\.\d+\.conv\.bias$",
    ),
    Foreign(
        "ActionFormer without norms in its heads (head_with_ln: false)",
        _ANOTHER_ACTIONFORMER,
        r"^((cls|reg)_head\.head|rpn_head\.(cls|reg)_convs)\.\d+\.conv\.bias$",
    ),
    Foreign(
        "ActionFormer of convolutions alone (backbone_type: conv)",
        _ANOTHER_ACTIONFORMER,
        r"^backbone\.(stem|branch)\.\d+\.conv[12]\.",
    ),
    # Backbones.
    Foreign("a network of Mamba (VideoMamba)", _ANOTHER_BACKBONE, r"\.(A_log|A_b_log|dt_proj|x_proj)(\.|$)"),
    Foreign("Video Swin", _ANOTHER_BACKBONE, _PATCHES, ndim=5, also=_SWIN),
    Foreign("Swin, of images", _ANOTHER_BACKBONE, _PATCHES, ndim=4, also=_SWIN),
    Foreign("Swin or Video Swin", _ANOTHER_BACKBONE, _SWIN),
    Foreign("MViT", _ANOTHER_BACKBONE, r"\.attn\.(pool|norm)_[qkv](\.|$)|\.rel_pos_[hwt]$|(^|\.)pos_embed_spatial$"),
    Foreign("UniFormer", _ANOTHER_BACKBONE, r"(^|\.)(patch_embed[1-4]|blocks[1-4]\.\d+)\."),
    Foreign(
        "CLIP or another network of images and texts",
        _ANOTHER_BACKBONE,
        r"(^|\.)(logit_scale$|transformer\.resblocks\.|vision_model\.|text_model\.|pre_layrnorm\.)",
    ),
    Foreign("TimeSformer", _ANOTHER_BACKBONE, r"(^|\.)(temporal_attn|temporal_attention|time_embeddings?)(\.|$)"),
    Foreign(
        "DINO or DINOv2, of images",
        _ANOTHER_BACKBONE,
        _IMAGE_PATCHES,
        ndim=4,
        also=r"\.ls1\.gamma$|\.layer_scale1\.lambda1$|(^|\.)(register_tokens$|dino_head\.|last_layer\.)",
    ),
    Foreign("a transformer of images (ViT, DeiT, MAE, DINO, ...)", _ANOTHER_BACKBONE, _IMAGE_PATCHES, ndim=4),
    Foreign(
        "another video transformer than VideoMAE, with a class token or a bias of the keys (V-JEPA, ViViT, ...)",
        _ANOTHER_BACKBONE,
        _PATCHES,
        ndim=5,
        also=r"(^|\.)cls_token$|^(?!.*decoder).*\.(attn\.qkv|attention\.key|attention\.k_proj)\.bias$|\.ls1\.gamma$",
    ),
    Foreign("SlowFast", _ANOTHER_BACKBONE, r"(^|\.)(slow_path|fast_path)\.|pathway[01]_|multipathway"),
    Foreign("R(2+1)D", _ANOTHER_BACKBONE, r"\.conv_s\.weight$|\.conv\d\.0\.0\.weight$", ndim=5),
    Foreign("I3D", _ANOTHER_BACKBONE, r"(?i)(^|\.)(conv3d_1a_7x7|mixed_3b)\."),
    Foreign("a 3-D ResNet (I3D, SlowOnly, R3D, CSN, C3D, ...)", _ANOTHER_BACKBONE, _RESNET, ndim=5),
    Foreign("a 2-D ResNet (TSN, TSM, or one of images)", _ANOTHER_BACKBONE, _RESNET, ndim=4),
    Foreign("a language model", _ANOTHER_BACKBONE, r"(^|\.)(embed_tokens|wte|word_embeddings)\.weight$"),
    Foreign(
        "a classifier's last layers alone",
        _NOT_A_NETWORK,
        r"^(.*\.)?(head|heads|cls_head|fc\d*|fc_cls|fc_norm|classifier|linear|logits|proj|norm)\.(.*\.)?(weight|bias)$"
        r"|^(weight|bias)$",
        alone=True,
        lacks=r"patch_embed|\.(blocks|layers?|attn|convs?|scale)\.|^rpn_head\.|^(cls|reg)_head\.(cls|offset)_head\.",
    ),
)


def require_ours(weights: Mapping[str, Tensor]) -> None:
    """Names the project or the part of a training whose weights our networks cannot take.

    Args:
        weights: by the names in the file, without wrappers' prefixes.

    Raises:
        ValueError: they are of a kind in :data:`FOREIGN`.
    """
    for kind in FOREIGN:
        if (name := kind.shown_by(weights)) is not None:
            shown = f"{name} {list(weights[name].shape)}"
            raise ValueError(f"weights of {kind.what}, as {shown} shows, which no network here takes; {kind.remedy}")


def instead_of_names(content: Any) -> str:
    """What a file's content is that names no weights, and what to do; a line's end."""
    match content:
        case Tensor():
            shape = list(content.shape)
            return f"it is one tensor, {shape}; save all weights by name: torch.save(network.state_dict(), ...)"
        case list() | tuple() | set():
            kinds = ", ".join(dict.fromkeys(type(one).__name__ for one in list(content)[:5]))
            held = f" ({kinds})" if kinds else ""
            return f"it is a list of {len(content)}{held}; save the part that names weights alone"
        case {"param_groups": _}:
            return f"it is an optimiser's state; {_NOT_A_NETWORK}"
        case Mapping() if not content:
            return "it names none, being empty; write or download it again"
        case Mapping():
            keys = [repr(key)[:60] for key in content]
            return f"it names none, only {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}; {_NOT_A_NETWORK}"
        case _:
            return f"it is a {type(content).__name__}; {_NOT_A_NETWORK}"
