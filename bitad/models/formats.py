"""How projects name the weights of the networks that we have too: a table for each, and nothing else.

Names and layouts are those of the projects' own code: VideoMAE (github.com/MCG-NJU/VideoMAE) and VideoMAEv2
(github.com/OpenGVLab/VideoMAEv2), mmaction2 (github.com/open-mmlab/mmaction2), Hugging Face's transformers, OpenTAD
(github.com/sming256/OpenTAD), ActionFormer (github.com/happyharrycn/actionformer_release).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Kind = Literal["detector", "backbone", "pair"]
Names = tuple[tuple[str, str], ...]
Shapes = tuple[tuple[str, Callable[[Tensor], Tensor]], ...]


class Translated(NamedTuple):
    """Weights under our names, and the names of those in the file that our networks have no use for."""

    tensors: dict[str, Tensor]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Format:
    """A project's names.

    Args:
        name: for machines.
        title: for people.
        kind: what its files hold: a detector, a transformer alone, or two detectors that learn together.
        mark: a pattern; names of which one matches are this project's, if they are not one's above it in FORMATS.
        names: (pattern, replacement), applied in order. ``NAME#i`` becomes the i-th part of NAME.
        unused: pattern of names, renamed, that belong to a classifier, a decoder or the training.
        shapes: (pattern of a name of ours, what makes its shape ours).
    """

    name: str
    title: str
    kind: Kind
    mark: str
    names: Names = ()
    unused: str = r"(?!)"
    shapes: Shapes = ()

    def translate(self, theirs: Mapping[str, Tensor]) -> Translated:
        """Their weights -> ours.

        Raises:
            ValueError: two of theirs are one of ours.
        """
        ours: dict[str, Tensor] = {}
        source: dict[str, str] = {}
        parts: dict[str, dict[int, Tensor]] = {}
        left_out = []
        for name, tensor in theirs.items():
            new = self.rename(name)
            if re.search(self.unused, new):
                left_out.append(name)
                continue
            for pattern, change in self.shapes:
                if re.search(pattern, new):
                    tensor = change(tensor)
            if (other := source.setdefault(new, name)) != name:
                raise ValueError(f"{other} and {name} are both the weight {new}; keep one of the two")
            whole, number, part = new.partition("#")
            if number:
                parts.setdefault(whole, {})[int(part)] = tensor
            else:
                ours[new] = tensor
        for whole, found in parts.items():
            ours[whole] = torch.cat([torch.atleast_1d(found[part]) for part in sorted(found)])
        return Translated(ours, tuple(left_out))

    def rename(self, name: str) -> str:
        """Their name -> ours."""
        for pattern, replacement in self.names:
            name = re.sub(pattern, replacement, name)
        return name


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
    # Convolutions over time there; over time and place, and a linear map, here.
    (r"\.adapter\.depthwise\.weight$", lambda weight: weight.unsqueeze(-1)),
    (r"\.adapter\.pointwise\.weight$", lambda weight: weight.squeeze(-1)),
)
# Blocks are ActionFormer's, in OpenTAD under the same names.
_PYRAMID_NAMES: Names = (
    (r"^neck\.fpn_norms\.", "pyramid.norms."),
    (r"^(pyramid\..*)\.ln([12])\.", r"\1.norm\2."),
    (r"\.attn\.(query|key|value)_conv\.conv\.", r".attn.\1.depthwise."),
    (r"\.attn\.(query|key|value)_norm\.", r".attn.\1.norm."),
    (r"^(pyramid\..*\.attn)\.(query|key|value)\.(weight|bias)$", r"\1.\2.pointwise.\3"),
)
# Per-channel values [1, C, 1] there, [C] here.
_PYRAMID_SHAPES: Shapes = (
    (r"\.drop_path_\w+\.scale$|(\.norm\d?|^pyramid\.norms\.\d+)\.(weight|bias)$", lambda values: values.flatten()),
)

FORMATS = (
    Format("bitad-pair", "BiTAD, two networks", "pair", mark=r"^(first|second)\.network\."),
    Format(
        "bitad", "BiTAD", "detector", mark=r"^pyramid\.|^head\.(scales$|classification\.|regression\.)|^backbone\.vit\."
    ),
    Format(
        "opentad",
        "OpenTAD (AdaTAD or ActionFormer)",
        "detector",
        mark=r"^(rpn_head|projection)\.",
        names=(
            (r"^backbone\.model\.backbone\.", "backbone.vit."),
            *_MMACTION_NAMES,
            (r"^projection\.", "pyramid."),
            *_PYRAMID_NAMES,
            (r"^rpn_head\.cls_convs\.", "head.classification.convs."),
            (r"^rpn_head\.reg_convs\.", "head.regression.convs."),
            (r"^rpn_head\.cls_head\.", "head.classification.output."),
            (r"^rpn_head\.reg_head\.", "head.regression.output."),
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
    Format("bitad-backbone", "BiTAD's VideoMAE", "backbone", mark=r"^patch_embed\.(weight|bias)$"),
)


def recognise(names: Iterable[str]) -> Format:
    """The project whose parameter names these are, wrappers' prefixes removed.

    Raises:
        ValueError: for names of no known project.
    """
    names = list(names)
    if (known := _recognised(names)) is not None:
        return known
    raise ValueError(
        f"weights of no known project: the first is {next(iter(names), 'none')!r}; known are "
        + ", ".join(known.title for known in FORMATS)
    )


def is_known(names: Collection[str]) -> bool:
    """Whether :func:`recognise` knows whose parameter names these are."""
    return _recognised(names) is not None


def _recognised(names: Collection[str]) -> Format | None:
    return next((known for known in FORMATS if any(re.search(known.mark, name) for name in names)), None)
