"""What names and shapes of weights show: their project, sizes, and networks that BiTAD does not have.

The names are those in the projects' own code; docs/weights.md links the projects.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from bitad.config.names import SIZES, AdapterPlacement
from bitad.runtime.log import shortlist

Kind = Literal["detector", "backbone", "pair"]
Names = tuple[tuple[str, str], ...]
Shapes = tuple[tuple[str, Callable[[Tensor], Tensor]], ...]


@dataclass(frozen=True)
class Format:
    """The parameter names of a project.

    Args:
        kind: a detector, a transformer alone, or two detectors.
        mark: a pattern that matches one of its names; the first format of FORMATS counts.
        names: (pattern, replacement), applied in order. ``NAME#i`` becomes the i-th part of NAME.
        unused: a pattern of renamed names of a classifier, a decoder or the training.
        shapes: (pattern of a name in BiTAD, conversion to BiTAD's shape).
    """

    name: str
    title: str
    kind: Kind
    mark: str
    names: Names = ()
    unused: str = r"(?!)"
    shapes: Shapes = ()

    def translate(self, weights: Iterable[tuple[str, str, Tensor]]) -> tuple[dict[str, Tensor], list[str]]:
        """Weights (name, name in the file, tensor) by BiTAD's names, and the names that BiTAD does not use."""
        translated: dict[str, Tensor] = {}
        originals: dict[str, str] = {}
        parts: dict[str, dict[int, Tensor]] = {}
        unused = []
        for name, original, tensor in weights:
            new = name
            for pattern, replacement in self.names:
                new = re.sub(pattern, replacement, new)
            if (other := originals.setdefault(new, original)) != original:
                raise ValueError(f"{other} and {original} are both the weight {new}; keep one of the two")
            if re.search(self.unused, new):
                unused.append(name)
                continue
            for pattern, convert in self.shapes:
                if re.search(pattern, new) and tensor.layout is torch.strided:
                    tensor = convert(tensor)
            if (part := re.fullmatch(r"(.+)#(\d{1,9})", new)) is None:
                translated[new] = tensor
            else:
                parts.setdefault(part[1], {})[int(part[2])] = tensor
        for name, found in parts.items():
            tensors = [torch.atleast_1d(found[part]) for part in sorted(found)]
            if len({(tensor.shape[1:], tensor.dtype, tensor.layout) for tensor in tensors}) > 1:
                raise ValueError(
                    f"the parts of {name} do not fit together: {[list(one.shape) for one in tensors]}"
                )
            translated[name] = torch.cat(tensors)
        return translated, unused


_MMACTION_NAMES: Names = (
    (r"(^|\.)patch_embed\.projection\.", r"\1patch_embed."),
    (r"\.mlp\.layers\.0\.0\.", ".mlp.0."),
    (r"\.mlp\.layers\.1\.", ".mlp.2."),
    (r"\.adapter\.dwconv\.", ".adapter.depthwise."),
    (r"\.adapter\.conv\.", ".adapter.pointwise."),
    (r"\.adapter\.down_proj\.", ".adapter.down."),
    (r"\.adapter\.up_proj\.", ".adapter.up."),
)
_MMACTION_SHAPES: Shapes = (
    # Convolutions over time there; here over time and space, and a linear map.
    (r"\.adapter\.depthwise\.weight$", lambda weight: weight.unsqueeze(-1)),
    (r"\.adapter\.pointwise\.weight$", lambda weight: weight.squeeze(-1)),
)
# Of ActionFormer's blocks; OpenTAD has the same names.
_PYRAMID_NAMES: Names = (
    (r"^neck\.fpn_norms\.", "pyramid.norms."),
    (r"^(pyramid\..*)\.ln([12])\.", r"\1.norm\2."),
    (r"\.attn\.(query|key|value)_conv\.conv\.", r".attn.\1.depthwise."),
    (r"\.attn\.(query|key|value)_norm\.", r".attn.\1.norm."),
    (r"^(pyramid\..*\.attn)\.(query|key|value)\.(weight|bias)$", r"\1.\2.pointwise.\3"),
)
# Of TriDet's blocks (OpenTAD's names).
_SGP_NAMES: Names = (
    (r"^(pyramid\..*)\.ln\.", r"\1.norm."),
    (r"^(pyramid\..*)\.gn\.", r"\1.group_norm."),
    (r"^(pyramid\..*)\.global_fc\.", r"\1.phi."),
    (r"^(pyramid\..*)\.convw\.", r"\1.narrow."),
    (r"^(pyramid\..*)\.convkw\.", r"\1.wide."),
)
# Per-channel values [1, C, 1] there, [C] here.
_PYRAMID_SHAPES: Shapes = (
    (r"\.drop_path_\w+\.scale$|(\.norm\d?|^pyramid\.norms\.\d+)\.(weight|bias)$", lambda values: values.flatten()),
)

_VJEPA2_PATCHES = r"(^|\.)encoder\.embeddings\.patch_embeddings\.proj\."

FORMATS = (
    Format("bitad-pair", "BiTAD, two networks", "pair", mark=r"^(first|second)\.network\."),
    Format(
        "bitad",
        "BiTAD",
        "detector",
        mark=r"^pyramid\.|^head\.(scales$|classification\.|regression\.)|^backbone\.vit\.",
    ),
    Format(
        "opentad",
        "OpenTAD (AdaTAD, ActionFormer or TriDet)",
        "detector",
        mark=r"^(rpn_head|projection)\.",
        names=(
            (r"^backbone\.model\.backbone\.", "backbone.vit."),
            *_MMACTION_NAMES,
            (r"^projection\.", "pyramid."),
            *_PYRAMID_NAMES,
            *_SGP_NAMES,
            (r"^rpn_head\.cls_convs\.", "head.classification.convs."),
            (r"^rpn_head\.reg_convs\.", "head.regression.convs."),
            (r"^rpn_head\.cls_head\.", "head.classification.output."),
            (r"^rpn_head\.reg_head\.", "head.regression.output."),
            (r"^rpn_head\.cls_(start|end)_convs\.", r"head.\1.convs."),
            (r"^rpn_head\.cls_(start|end)_head\.", r"head.\1.output."),
            (r"^rpn_head\.scale\.(\d+)\.scale$", r"head.scales#\1"),
        ),
        unused=r"^backbone\.vit\.(fc_norm|norm)\.|^backbone\.model\.cls_head\.|^rpn_head\.loss_normalizer$",
        shapes=_MMACTION_SHAPES + _PYRAMID_SHAPES,
    ),
    Format(
        "actionformer",
        "ActionFormer (its own release)",
        "detector",
        mark=r"^backbone\.embd\.|^reg_head\.offset_head\.",
        names=(
            (r"^backbone\.embd\.(\d+)\.", r"pyramid.embed.\1."),
            (r"^backbone\.embd_norm\.(\d+)\.", r"pyramid.embed.\1.norm."),
            (r"^backbone\.", "pyramid."),
            *_PYRAMID_NAMES,
            (r"^cls_head\.(head|norm)\.(\d+)\.(conv\.)?", r"head.classification.convs.\2.\1."),
            (r"^reg_head\.(head|norm)\.(\d+)\.(conv\.)?", r"head.regression.convs.\2.\1."),
            (r"\.convs\.(\d+)\.head\.", r".convs.\1.conv."),
            (r"^cls_head\.cls_head\.conv\.", "head.classification.output."),
            (r"^reg_head\.offset_head\.conv\.", "head.regression.output."),
            (r"^reg_head\.scale\.(\d+)\.scale$", r"head.scales#\1"),
        ),
        shapes=_PYRAMID_SHAPES,
    ),
    Format(
        "huggingface",
        "VideoMAE of Hugging Face's transformers",
        "backbone",
        mark=r"(^|\.)embeddings\.patch_embeddings\.projection\.",
        names=(
            (r"^videomae\.", ""),
            (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed."),
            (r"^embeddings\.position_embeddings$", "pos_embed"),
            (r"^encoder\.layer\.", "blocks."),
            (r"\.attention\.attention\.query\.weight$", ".attn.qkv.weight#0"),
            (r"\.attention\.attention\.key\.weight$", ".attn.qkv.weight#1"),
            (r"\.attention\.attention\.value\.weight$", ".attn.qkv.weight#2"),
            (r"\.attention\.attention\.(q_bias|query\.bias)$", ".attn.q_bias"),
            (r"\.attention\.attention\.(v_bias|value\.bias)$", ".attn.v_bias"),
            (r"\.attention\.output\.dense\.", ".attn.proj."),
            (r"\.intermediate\.dense\.", ".mlp.0."),
            (r"\.output\.dense\.", ".mlp.2."),
            (r"\.layernorm_before\.", ".norm1."),
            (r"\.layernorm_after\.", ".norm2."),
        ),
        unused=r"^(layernorm|fc_norm|classifier|decoder|encoder_to_decoder)\.|^(mask_token|position_embeddings)$",
    ),
    Format(
        "vjepa2",
        "V-JEPA 2 of Hugging Face's transformers",
        "backbone",
        mark=_VJEPA2_PATCHES,
        names=(
            (r"^vjepa2\.", ""),
            (r"^encoder\.embeddings\.patch_embeddings\.proj\.", "patch_embed."),
            (r"^encoder\.layer\.", "blocks."),
            (r"^encoder\.layernorm\.", "norm."),
            (r"\.attention\.query\.weight$", ".attn.qkv.weight#0"),
            (r"\.attention\.key\.weight$", ".attn.qkv.weight#1"),
            (r"\.attention\.value\.weight$", ".attn.qkv.weight#2"),
            (r"\.attention\.query\.bias$", ".attn.qkv_bias#0"),
            (r"\.attention\.key\.bias$", ".attn.qkv_bias#1"),
            (r"\.attention\.value\.bias$", ".attn.qkv_bias#2"),
            (r"\.attention\.proj\.", ".attn.proj."),
            (r"\.mlp\.fc1\.", ".mlp.0."),
            (r"\.mlp\.fc2\.", ".mlp.2."),
        ),
        unused=r"^(predictor|pooler|classifier)\.",
    ),
    Format(
        "mmaction2",
        "VideoMAE of mmaction2",
        "backbone",
        mark=r"^(backbone\.)?patch_embed\.projection\.",
        names=((r"^backbone\.", ""), *_MMACTION_NAMES),
        unused=r"^(fc_norm|norm|cls_head)\.",
        shapes=_MMACTION_SHAPES,
    ),
    Format(
        "videomae",
        "VideoMAE or VideoMAEv2 (the original repositories)",
        "backbone",
        mark=r"^((backbone|encoder)\.)?patch_embed\.proj\.",
        names=(
            (r"^(backbone|encoder)\.", ""),
            (r"^patch_embed\.proj\.", "patch_embed."),
            (r"\.mlp\.fc1\.", ".mlp.0."),
            (r"\.mlp\.fc2\.", ".mlp.2."),
        ),
        unused=r"^(fc_norm|norm|head|decoder|encoder_to_decoder)\.|^mask_token$",
    ),
    Format("bitad-backbone", "BiTAD's VideoMAE or V-JEPA 2", "backbone", mark=r"^patch_embed\.(weight|bias)$"),
)


def find_format(names: Collection[str]) -> Format | None:
    """The project with these parameter names; None: it is not known."""
    return next((known for known in FORMATS if any(re.search(known.mark, name) for name in names)), None)


def recognise(names: Collection[str]) -> Format:
    """As :func:`find_format`, or ValueError."""
    if (known := find_format(names)) is not None:
        return known
    found, known_titles = shortlist(map(repr, names)), ", ".join(known.title for known in FORMATS)
    raise ValueError(f"weights of no known project: tensors {found}; known are {known_titles}")


_ANOTHER_BACKBONE = "name a file of VideoMAE, or train on features of that network (data.features)"
_ANOTHER_DETECTOR = "run it in its own project, and read its detections with bitad evaluate or bitad merge"
_ANOTHER_ACTIONFORMER = "train it with the options of the released configurations, or train one here"
_NOT_A_NETWORK = "name the file, or the key in it, that has the network's weights"

_PATCHES = (
    r"(^|\.)(patch_embed|patch_embed\.proj|patch_embed\.projection|patch_embeddings?\.proj(ection)?)\.weight$"
)
_IMAGE_PATCHES = rf"{_PATCHES}|(^|\.)(patch_embedding|conv_proj|visual\.conv1)\.weight$"
_SWIN = r"(^|\.)layers\.\d+\.blocks\.|(^|\.)features\.\d+\.\d+\..*relative_position_bias_table$"
_RESNET = r"(^|\.)(conv1|conv1a|stem\.0|stem\.conv|layer[1-4]\.\d+\.conv\d)\.((conv|0)\.)?weight$"


@dataclass(frozen=True)
class Foreign:
    """Weights that BiTAD's networks cannot load: "weights of" what, and what to do.

    Args:
        mark: a pattern that matches one of the names.
        ndim: dimensions of that weight; None: any.
        also: a pattern that also matches one of the names.
        lacks: a pattern that matches none of the names.
        alone: whether ``mark`` matches all names.
    """

    what: str
    remedy: str
    mark: str
    ndim: int | None = None
    also: str = ""
    lacks: str = r"(?!)"
    alone: bool = False

    def find_evidence(self, weights: Mapping[str, Tensor]) -> str | None:
        """A name that shows that these are such weights; None: they are not."""
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


# The first row that fits is used.
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
    Foreign(
        "TriDet's own release",
        _ANOTHER_DETECTOR,
        r"\.(convkw|psi|global_fc)\.|(^|\.)(cls_)?(start|end)_(head|convs)\.",
        lacks=r"^(pyramid|projection|rpn_head)\.",
    ),
    Foreign(
        "a detector on Mamba", _ANOTHER_DETECTOR, r"\.(A_log|A_b_log|dt_proj|x_proj)(\.|$)", also=r"rpn_head\."
    ),
    Foreign("BMN", _ANOTHER_DETECTOR, r"(^|\.)(x_1d_[bsep]|x_[23]d_p)\."),
    Foreign("G-TAD", _ANOTHER_DETECTOR, r"(^|\.)(regu_[se]|goi_align)\.|^backbone[12]\.\d"),
    Foreign(
        "BSN's temporal evaluation", _ANOTHER_DETECTOR, r"^conv[123]\.(weight|bias)$", also="^conv3", alone=True
    ),
    Foreign(
        "BSN's proposal evaluation", _ANOTHER_DETECTOR, r"^fc[12]\.(weight|bias)$", also=r"^fc2\.", alone=True
    ),
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
        lacks=r"\.attn\.|\.psi\.",
    ),
    # ActionFormer with options that no released configuration has.
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
    Foreign(
        "MViT", _ANOTHER_BACKBONE, r"\.attn\.(pool|norm)_[qkv](\.|$)|\.rel_pos_[hwt]$|(^|\.)pos_embed_spatial$"
    ),
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
        lacks=_VJEPA2_PATCHES,
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
    """Raises ValueError for weights that a row of :data:`FOREIGN` describes."""
    for row in FOREIGN:
        if (name := row.find_evidence(weights)) is not None:
            raise ValueError(
                f"weights of {row.what}, as {name} {list(weights[name].shape)} shows, "
                f"which no network here can load; {row.remedy}"
            )


def describe_content(content: Any) -> str:
    """What a file holds instead of named weights, and what to do."""
    match content:
        case Tensor():
            shape = list(content.shape)
            return f"it is one tensor, {shape}; save all weights by name: torch.save(network.state_dict(), ...)"
        case {"param_groups": _}:
            return f"it is an optimiser's state; {_NOT_A_NETWORK}"
        case Mapping() if not content:
            return "it is empty; write or download it again"
        case Mapping():
            return f"it has none, only {shortlist(content, quote=repr)}; {_NOT_A_NETWORK}"
        case _:
            return f"it is a {type(content).__name__}; {_NOT_A_NETWORK}"


# Sizes.

BACKBONE_PREFIX = "backbone.vit."
_CLIP_TUBELETS = 8  # of VideoMAE's clips of 16 frames


@dataclass(frozen=True)
class TransformerSize:
    """The size of a transformer.

    Args:
        table_pixels: picture size of its position table; None: it has no table.
        first_adapter, adapter_dim: the first block with an adapter, and the adapters' width; None: it has none.
        adapter_placement: only adapters inside the transformer have a scale.
    """

    dim: int
    depth: int
    mlp_dim: int
    patch_size: int
    table_pixels: int | None
    first_adapter: int | None
    adapter_dim: int | None
    adapter_placement: AdapterPlacement

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> TransformerSize | None:
        """The size of a transformer, or of a detector's; None if the weights do not show it."""
        inner = {
            name.removeprefix(BACKBONE_PREFIX): w
            for name, w in weights.items()
            if name.startswith(BACKBONE_PREFIX)
        }
        vit = inner or weights
        patch, mlp, table = vit.get("patch_embed.weight"), vit.get("blocks.0.mlp.0.weight"), vit.get("pos_embed")
        if patch is None or patch.ndim != 5 or mlp is None or not mlp.ndim:
            return None
        adapters = [w.shape[0] for name, w in vit.items() if name.endswith(".adapter.down.weight") and w.numel()]
        side = None if table is None or table.ndim != 3 else math.sqrt(table.shape[1] / _CLIP_TUBELETS)
        return cls(
            dim=patch.shape[0],
            depth=len(_numbers(vit, r"^blocks\.(\d+)\.attn\.qkv\.weight$")),
            mlp_dim=mlp.shape[0],
            patch_size=patch.shape[-1],
            table_pixels=None if side is None else round(side * patch.shape[-1]),
            first_adapter=min(map(int, _numbers(vit, r"^blocks\.(\d+)\.adapter\.")), default=None),
            adapter_dim=adapters[0] if adapters else None,
            adapter_placement="inside" if any(name.endswith(".adapter.gamma") for name in vit) else "beside",
        )

    @property
    def name(self) -> str | None:
        """The name of a published size, as in ``model.backbone.size``."""
        known = {(size.dim, size.depth, size.mlp_dim, size.patch_size): name for name, size in SIZES.items()}
        return known.get((self.dim, self.depth, self.mlp_dim, self.patch_size))

    @property
    def heads(self) -> int | None:
        """The attention heads of a published size: weights do not show them."""
        return None if self.name is None else SIZES[self.name].heads

    def __str__(self) -> str:
        name = "a transformer" if self.name is None else f"VideoMAE-{self.name}"
        return f"{name} ({self.dim} wide, {self.depth} blocks, MLP {self.mlp_dim}, patch {self.patch_size})"


def count_classes(weights: Mapping[str, Tensor]) -> int | None:
    """The number of classes of a detector, if the weights show it."""
    output = weights.get("head.classification.output.weight")
    return None if output is None or not output.ndim else output.shape[0]


def size_differences(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """How sizes that weights show differ from the ``expected`` ones."""
    sizes, wanted = _sizes(weights), _sizes(expected)
    return [
        f"{key} is {value} in the file, {wanted[key]} in the configuration"
        for key, value in sizes.items()
        if key in wanted and value != wanted[key]
    ]


def _sizes(weights: Mapping[str, Tensor]) -> dict[str, object]:
    """The sizes of a network that its weights show."""
    found: dict[str, object] = {}
    if (size := TransformerSize.of(weights)) is not None:
        found["model.backbone.type"] = "vjepa2" if is_vjepa2(weights) else "videomae"
        found["model.backbone.size"] = str(size)
        if size.table_pixels is not None:
            found["model.backbone.table_pixels"] = size.table_pixels
        if size.adapter_dim is not None:
            found["model.backbone.first_adapter"] = size.first_adapter
            found["model.backbone.adapter_reduction"] = size.dim // size.adapter_dim
            found["model.backbone.adapter_placement"] = size.adapter_placement
    embed, scales, classes = (
        weights.get("pyramid.embed.0.conv.weight"),
        weights.get("head.scales"),
        count_classes(weights),
    )
    if embed is not None and embed.ndim > 1 and scales is not None and classes is not None:
        found |= {
            "the number of input channels": embed.shape[1],
            "model.channels": embed.shape[0],
            "model.levels": scales.numel(),
            "model.embed_convolutions": len(_numbers(weights, r"^pyramid\.embed\.(\d+)\.conv\.")),
            "model.stem_blocks": len(_numbers(weights, r"^pyramid\.stem\.(\d+)\.")),
            "model.head_convolutions": len(_numbers(weights, r"^head\.classification\.convs\.(\d+)\.conv\.")),
            "the number of classes": classes,
            "model.pyramid.type": "sgp"
            if any(name.endswith(".psi.weight") for name in weights)
            else "transformer",
            "model.head.type": "trident" if "head.start.output.weight" in weights else "actionformer",
            "model.level_norms": str(any(name.startswith("pyramid.norms.") for name in weights)).lower(),
        }
    return found


def is_vjepa2(weights: Iterable[str]) -> bool:
    """Whether names are those of BiTAD's V-JEPA 2."""
    return any(name.endswith("blocks.0.attn.qkv_bias") for name in weights)


def _numbers(weights: Mapping[str, Tensor], pattern: str) -> set[str]:
    """The different numbers that a pattern finds in names."""
    return {found[1] for name in weights if (found := re.search(pattern, name))}
