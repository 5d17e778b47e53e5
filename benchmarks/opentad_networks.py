"""OpenTAD's AdaTAD on THUMOS14: its backbone, its detector and its training step, built from its own configuration.

The transformer, ActionFormer's projection, neck, head and losses, the optimizer, the schedule and the average of the
weights are OpenTAD's. The layers around the transformer, and the order of a step, are written here after its
configuration and training loop.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from opentad_imports import EXPERIMENT, Registry, Settings, import_from, merged, read_settings
from torch import Tensor, nn

from bitad.config.names import SIZES, Precision
from bitad.models.backbone import PIXEL_MEAN, PIXEL_STD
from bitad.models.build import autocast

CLIP_FRAMES = 16
_STEPS_PER_EPOCH = 100
_PARTS = (
    "models.detectors.actionformer",
    "models.projections.actionformer_proj",
    "models.necks.fpn",
    "models.dense_heads.actionformer_head",
    "models.dense_heads.prior_generator",
    "models.losses.focal_loss",
    "models.losses.iou_loss",
)


def settings_of(clone: Path, size: str, frames: int) -> Settings:
    """OpenTAD's configuration, with another size of the transformer and another length of windows."""
    vit = SIZES[size]
    transformer = {
        "embed_dims": vit.dim,
        "depth": vit.depth,
        "num_heads": vit.heads,
        "mlp_ratio": vit.mlp_dim / vit.dim,
        "total_frames": frames,
        "adapter_index": list(range(vit.depth)),
    }
    projection = {"in_channels": vit.dim, "max_seq_len": frames}
    changes = {"model": {"backbone": {"backbone": transformer}, "projection": projection}}
    return merged(read_settings(clone / EXPERIMENT), changes)


class Backbone(nn.Module):
    """OpenTAD's transformer, with the layers before and after it; names of parameters are as in its files."""

    def __init__(self, clone: Path, settings: Settings) -> None:
        super().__init__()
        self.freeze_backbone = settings.model.backbone.custom.freeze_backbone  # for its optimizer
        import_from(clone, "models.backbones.vit_adapter")
        self.model: Any = nn.Module()
        with contextlib.redirect_stdout(io.StringIO()):
            self.model.backbone = Registry("models").build(settings.model.backbone.backbone)
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(PIXEL_STD).view(3, 1, 1, 1), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames uint8 ``[B, 1, 3, T, H, W]``, as its loader gives them -> features ``[B, C, T]``."""
        video = (frames.squeeze(1) - self.get_buffer("mean")) / self.get_buffer("std")
        clips = video.unflatten(2, (-1, CLIP_FRAMES)).transpose(1, 2).flatten(0, 1)
        features = self.model.backbone(clips).mean((-1, -2))  # [B * clips, C, t]
        features = features.unflatten(0, (len(frames), -1)).transpose(1, 2).flatten(2)
        return F.interpolate(features, size=frames.shape[3], mode="linear").float()


def build_detector(clone: Path, settings: Settings) -> nn.Module:
    """OpenTAD's ActionFormer on the backbone."""
    for part in _PARTS:
        import_from(clone, part)
    model = {key: value for key, value in settings.model.items() if key != "backbone"}
    detector: nn.Module = Registry("models").build(model)
    detector.backbone = Backbone(clone, settings)
    return detector


class TrainingStep:
    """A step as in OpenTAD's training loop, in one process, with its optimizer, schedule and average of the weights.

    Its loop has fp16 autocast with scaled losses, on a GPU; in bf16, on a CPU, autocast needs no scaling.
    """

    def __init__(self, clone: Path, detector: Any, settings: Settings, precision: Precision) -> None:
        self.detector, self.precision, self.clip_norm = detector, precision, settings.solver.clip_grad_norm
        wrapped, logger = SimpleNamespace(module=detector), logging.getLogger("opentad")
        self.average = import_from(clone, "utils.ema").ModelEma(detector)
        # They change their arguments.
        optimizer, schedule = merged(settings.optimizer, {}), merged(settings.scheduler, {})
        self.optimizer = import_from(clone, "cores.optimizer").build_optimizer(optimizer, wrapped, logger)
        self.schedule, _ = import_from(clone, "cores.scheduler").build_scheduler(
            schedule, self.optimizer, _STEPS_PER_EPOCH
        )

    def __call__(self, data: Mapping[str, Any]) -> dict[str, float]:
        """A step on one batch of the loader; returns its losses."""
        self.optimizer.zero_grad()
        with autocast(torch.device("cpu"), self.precision):
            losses = self.detector(**data, return_loss=True)
        losses["cost"].backward()
        nn.utils.clip_grad_norm_(self.detector.parameters(), self.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        self.average.update(self.detector)
        return {name: loss.item() for name, loss in losses.items()}
