"""The sizes that VideoMAE is published in. Apart from the network, so that a configuration is read without torch."""

from __future__ import annotations

from dataclasses import dataclass

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
