"""What weights, under our names, tell of the network that they are of."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from torch import Tensor

from bitad.config.names import SIZES

_BACKBONE = "backbone.vit."
_CLIP_TUBELETS = 8  # of VideoMAE's clips of 16 frames


@dataclass(frozen=True)
class TransformerSize:
    """A transformer's measures.

    Args:
        dim, mlp_dim: widths.
        depth: blocks.
        patch_size: pixels.
        table_pixels: size of the picture that its position table is made for; None where there is no table.
        adapters: the blocks that have an adapter.
        adapter_dim: width of the adapters.
    """

    dim: int
    depth: int
    mlp_dim: int
    patch_size: int
    table_pixels: int | None
    adapters: tuple[int, ...]
    adapter_dim: int | None

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> TransformerSize | None:
        """The transformer's or the detector's whose weights these are; None where they hold none, or not enough."""
        inner = {name.removeprefix(_BACKBONE): w for name, w in weights.items() if name.startswith(_BACKBONE)}
        vit = inner or weights
        patch, mlp, table = vit.get("patch_embed.weight"), vit.get("blocks.0.mlp.0.weight"), vit.get("pos_embed")
        if patch is None or patch.ndim != 5 or mlp is None or not (mlp.ndim and patch.numel() and mlp.numel()):
            return None
        adapters = _numbers(vit, r"^blocks\.(\d+)\.adapter\.")
        narrow = [w.shape[0] for name, w in vit.items() if name.endswith(".adapter.down.weight") and w.numel()]
        side = None if table is None or table.ndim != 3 else math.sqrt(table.shape[1] / _CLIP_TUBELETS)
        return cls(
            dim=patch.shape[0],
            depth=len(_numbers(vit, r"^blocks\.(\d+)\.attn\.qkv\.weight$")),
            mlp_dim=mlp.shape[0],
            patch_size=patch.shape[-1],
            table_pixels=None if side is None else round(side * patch.shape[-1]),
            adapters=tuple(adapters),
            adapter_dim=narrow[0] if narrow else None,
        )

    @property
    def measures(self) -> tuple[int, int, int, int]:
        """What makes two transformers the same."""
        return self.dim, self.depth, self.mlp_dim, self.patch_size

    @property
    def name(self) -> str | None:
        """The published size's, as in ``model.backbone.size``."""
        known = {(size.dim, size.depth, size.mlp_dim, size.patch_size): name for name, size in SIZES.items()}
        return known.get(self.measures)

    @property
    def heads(self) -> int | None:
        """Weights do not show the attention heads; a published size has them by its name."""
        return None if self.name is None else SIZES[self.name].heads

    def differing_table(self, wanted: TransformerSize) -> list[str]:
        """How its position table is another than ``wanted``, where both have one."""
        if None in (self.table_pixels, wanted.table_pixels) or self.table_pixels == wanted.table_pixels:
            return []
        return [
            f"its position table is made for pictures of {self.table_pixels} pixels, the configuration's for "
            f"{wanted.table_pixels} (model.backbone.table_pixels={self.table_pixels})"
        ]

    def differing_adapters(self, wanted: TransformerSize) -> list[str]:
        """How its adapters are others than ``wanted``, where both have some."""
        if not self.adapters or not wanted.adapters:
            return []
        differences = []
        if self.adapters != wanted.adapters:
            differences.append(
                f"its adapters are from block {self.adapters[0]} to {self.adapters[-1]}, the configuration's from "
                f"{wanted.adapters[0]} to {wanted.adapters[-1]} (model.backbone.first_adapter={self.adapters[0]})"
            )
        if self.adapter_dim != wanted.adapter_dim and self.adapter_dim is not None:
            differences.append(
                f"its adapters are {self.adapter_dim} wide, the configuration's {wanted.adapter_dim} "
                f"(model.backbone.adapter_reduction={self.dim // self.adapter_dim})"
            )
        return differences

    def __str__(self) -> str:
        match self.name:
            case None:
                called = "a transformer"
            case "v2-g":
                called = "VideoMAEv2-g"
            case name:
                called = f"VideoMAE-{name.upper() if len(name) == 1 else name}"
        return f"{called} ({self.dim} wide, {self.depth} blocks, MLP {self.mlp_dim}, patch {self.patch_size})"


@dataclass(frozen=True)
class HeadSize:
    """The measures of a detector's pyramid and head: what :class:`~bitad.config.schema.ModelConfig` calls them.

    Args:
        in_channels: of the features.
        classes: K.
        layer_scale: whether the blocks' branches have one.
        level_norms: whether a layer norm ends each level.
        pyramid, head: their types.
    """

    in_channels: int
    channels: int
    levels: int
    embed_convolutions: int
    stem_blocks: int
    head_convolutions: int
    classes: int
    layer_scale: bool
    level_norms: bool
    pyramid: str
    head: str

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> HeadSize | None:
        """Those of a detector's weights; None where they are none's, or not enough."""
        embed, output = weights.get("pyramid.embed.0.conv.weight"), weights.get("head.classification.output.weight")
        if embed is None or output is None or embed.ndim < 2 or not (output.ndim and embed.numel() and output.numel()):
            return None
        scales, norms = weights.get("head.scales"), _numbers(weights, r"^pyramid\.norms\.(\d+)\.")
        levels = len(norms) if scales is None else scales.numel()
        if not levels:
            return None
        return cls(
            in_channels=embed.shape[1],
            channels=embed.shape[0],
            levels=levels,
            embed_convolutions=len(_numbers(weights, r"^pyramid\.embed\.(\d+)\.conv\.")),
            stem_blocks=len(_numbers(weights, r"^pyramid\.stem\.(\d+)\.")),
            head_convolutions=len(_numbers(weights, r"^head\.classification\.convs\.(\d+)\.conv\.")),
            classes=output.shape[0],
            layer_scale=any(name.endswith(".drop_path_mlp.scale") for name in weights),
            level_norms=bool(norms),
            pyramid="sgp" if any(name.endswith(".psi.weight") for name in weights) else "transformer",
            head="trident" if "head.start.output.weight" in weights else "actionformer",
        )


def size_difference(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
    """What about the network of ``found`` is another size than in that of ``wanted``, in words; None if nothing is."""
    differences = []
    one, other = TransformerSize.of(found), TransformerSize.of(wanted)
    if one is not None and other is not None:
        if one.measures != other.measures:
            remedy = "" if one.name is None else f" (model.backbone.size={one.name})"
            differences.append(f"it is {one}, the configuration wants {other}{remedy}")
        else:
            differences += [*one.differing_table(other), *one.differing_adapters(other)]
    head, wanted_head = HeadSize.of(found), HeadSize.of(wanted)
    if head is not None and wanted_head is not None:
        sizes = asdict(wanted_head)
        differences += [
            f"it has {theirs} {field.replace('_', ' ')}, the configuration {sizes[field]}"
            for field, theirs in asdict(head).items()
            if theirs != sizes[field] and not isinstance(theirs, bool | str)
        ]
        differences += [
            f"its {part} is of the type {theirs}, the configuration's {sizes[part]} (model.{part}.type={theirs})"
            for part, theirs in (("pyramid", head.pyramid), ("head", head.head))
            if theirs != sizes[part]
        ]
        if head.level_norms != wanted_head.level_norms:
            has, others = ("a", "has none") if head.level_norms else ("no", "has one")
            differences.append(
                f"it has {has} layer norm at the end of each level, the configuration {others} "
                f"(model.level_norms={str(head.level_norms).lower()}, ActionFormer's fpn_with_ln)"
            )
    return "; ".join(differences) or None


def _numbers(weights: Mapping[str, Tensor], pattern: str) -> list[int]:
    """The different numbers that a pattern finds in names, ascending."""
    return sorted({int(found[1]) for name in weights if (found := re.search(pattern, name))})
