"""The choices of the configuration and the command line, each listed once.

Imports neither PyTorch nor pydantic, so ``--help`` is fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["fp32", "bf16", "fp16"]
OnDecodeError = Literal["error", "repeat"]
OnReadError = Literal["error", "skip"]
# What the backward pass recomputes of the transformer; the more, the later.
Checkpointing = Literal["none", "selective", "blocks"]
Padding = Literal["reference", "strict"]
Alignment = Literal["exact", "naive"]
FusionInit = Literal["mean", "random"]
NmsMethod = Literal["gaussian", "linear", "vanilla", "hard", "none"]
MergeMethod = Literal["soft-nms", "mean", "product", "wsf"]
# By whose rule mAP is computed.
MapRule = Literal["activitynet", "thumos-kit"]

AnnotationFormat = Literal["native", "actionformer"]
# What a conversion of annotations does with a segment that lies beyond its video, and with other defects.
OutsidePolicy = Literal["keep", "clip", "drop", "error"]
DefectPolicy = Literal["keep", "drop", "error"]
AmbiguousPolicy = Literal["keep", "drop"]
MissingPolicy = Literal["error", "drop"]

FeatureDirection = Literal["forward", "reverse", "both"]
FeaturePrecision = Literal["float32", "bfloat16"]
PlanDevice = Literal["cpu", "gpu"]
WeightsAction = Literal["inspect", "convert"]

# Keys of earlier versions, and what they are called now. They are read for one release, with a warning.
RENAMED_KEYS = {
    "data.damaged_frames": "data.on_decode_error",
    "init.backward": "init.reverse",
    "pair.detector_too": "pair.train_detector",
    "training.bad_steps": "training.max_nonfinite_steps",
    "training.bad_videos": "training.on_read_error",
    "training.keep": "training.keep_last",
    "training.reading_s": "training.read_timeout_s",
    "test.bad_videos": "test.on_read_error",
    "test.reading_s": "test.read_timeout_s",
}


@dataclass(frozen=True)
class VitSize:
    """Width, depth, heads and MLP width of a published VideoMAE; ``patch_size`` in pixels."""

    dim: int
    depth: int
    heads: int
    mlp_dim: int
    patch_size: int = 16


SIZES = {
    "tiny": VitSize(dim=96, depth=4, heads=3, mlp_dim=384),  # the demo's
    "s": VitSize(dim=384, depth=12, heads=6, mlp_dim=1536),
    "b": VitSize(dim=768, depth=12, heads=12, mlp_dim=3072),
    "l": VitSize(dim=1024, depth=24, heads=16, mlp_dim=4096),
    "h": VitSize(dim=1280, depth=32, heads=16, mlp_dim=5120),
    # VideoMAEv2, arXiv:2303.16727
    "v2-g": VitSize(dim=1408, depth=40, heads=16, mlp_dim=6144, patch_size=14),
}
