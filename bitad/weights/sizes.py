"""The sizes of a network, read from its weights: for error messages, and to build the transformer of a file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from bitad.config.names import SIZES

BACKBONE_PREFIX = "backbone.vit."
_CLIP_TUBELETS = 8  # of VideoMAE's clips of 16 frames


@dataclass(frozen=True)
class TransformerSize:
    """The size of a transformer: widths, blocks, pixels of a patch.

    Args:
        table_pixels: picture size of its position table; None: it has no table.
        adapters: the blocks with an adapter.
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
        """The size of a transformer or of a detector's; None: the weights do not show it."""
        inner = {
            name.removeprefix(BACKBONE_PREFIX): w for name, w in weights.items() if name.startswith(BACKBONE_PREFIX)
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
            adapters=tuple(_numbers(vit, r"^blocks\.(\d+)\.adapter\.")),
            adapter_dim=adapters[0] if adapters else None,
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

    def differences(self, expected: TransformerSize) -> list[str]:
        """How it differs from the size that a configuration has, in words."""
        if str(self) != str(expected):
            remedy = "" if self.name is None else f" (model.backbone.size={self.name})"
            return [f"it is {self}, the configuration wants {expected}{remedy}"]
        found = []
        if None not in (self.table_pixels, expected.table_pixels) and self.table_pixels != expected.table_pixels:
            found.append(
                f"its position table is made for pictures of {self.table_pixels} pixels, the configuration's for "
                f"{expected.table_pixels} (model.backbone.table_pixels={self.table_pixels})"
            )
        if self.adapters and expected.adapters and self.adapters != expected.adapters:
            found.append(
                f"its adapters are from block {self.adapters[0]} to {self.adapters[-1]}, the configuration's from "
                f"{expected.adapters[0]} to {expected.adapters[-1]} (model.backbone.first_adapter={self.adapters[0]})"
            )
        if self.adapter_dim and expected.adapter_dim and self.adapter_dim != expected.adapter_dim:
            found.append(
                f"its adapters are {self.adapter_dim} wide, the configuration's {expected.adapter_dim} "
                f"(model.backbone.adapter_reduction={self.dim // self.adapter_dim})"
            )
        return found

    def __str__(self) -> str:
        name = self.name
        title = {None: "a transformer", "v2-g": "VideoMAEv2-g"}.get(
            name, f"VideoMAE-{name.upper() if name and len(name) == 1 else name}"
        )
        return f"{title} ({self.dim} wide, {self.depth} blocks, MLP {self.mlp_dim}, patch {self.patch_size})"


def count_classes(weights: Mapping[str, Tensor]) -> int | None:
    """The number of classes of a detector; None: the weights do not show it."""
    output = weights.get("head.classification.output.weight")
    return None if output is None or not output.ndim else output.shape[0]


def _detector_sizes(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """The sizes of a detector's pyramid and head by name; none where the weights do not show them."""
    embed, scales, classes = (
        weights.get("pyramid.embed.0.conv.weight"), weights.get("head.scales"), count_classes(weights)
    )  # fmt: skip
    if embed is None or embed.ndim < 2 or scales is None or classes is None:
        return {}
    return {
        "in channels": embed.shape[1],
        "channels": embed.shape[0],
        "levels": scales.numel(),
        "embed convolutions": len(_numbers(weights, r"^pyramid\.embed\.(\d+)\.conv\.")),
        "stem blocks": len(_numbers(weights, r"^pyramid\.stem\.(\d+)\.")),
        "head convolutions": len(_numbers(weights, r"^head\.classification\.convs\.(\d+)\.conv\.")),
        "classes": classes,
    }


def _types(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """The types of a detector's pyramid and head, as in the configuration."""
    return {
        "pyramid": "sgp" if any(name.endswith(".psi.weight") for name in weights) else "transformer",
        "head": "trident" if "head.start.output.weight" in weights else "actionformer",
    }


def size_differences(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """How the size of the network of some weights differs from the ``expected`` one, in words."""
    found = []
    size, expected_size = TransformerSize.of(weights), TransformerSize.of(expected)
    if size is not None and expected_size is not None:
        found += size.differences(expected_size)
    sizes, expected_sizes = _detector_sizes(weights), _detector_sizes(expected)
    if sizes and expected_sizes:
        found += [
            f"it has {count} {name}, the configuration {expected_sizes[name]}"
            for name, count in sizes.items()
            if count != expected_sizes[name]
        ]
        types, expected_types = _types(weights), _types(expected)
        found += [
            f"its {part} is of the type {name}, the configuration's {expected_types[part]} (model.{part}.type={name})"
            for part, name in types.items()
            if name != expected_types[part]
        ]
        has_norms, expects_norms = (bool(_numbers(one, r"^pyramid\.norms\.(\d+)\.")) for one in (weights, expected))
        if has_norms != expects_norms:
            has, others = ("a", "has none") if has_norms else ("no", "has one")
            found.append(
                f"it has {has} layer norm at the end of each level, the configuration {others} "
                f"(model.level_norms={str(has_norms).lower()}, ActionFormer's fpn_with_ln)"
            )
    return found


def _numbers(weights: Mapping[str, Tensor], pattern: str) -> list[int]:
    """The different numbers that a pattern finds in names, ascending."""
    return sorted({int(found[1]) for name in weights if (found := re.search(pattern, name))})
