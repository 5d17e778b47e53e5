"""The mirror image of a detector."""

from __future__ import annotations

import copy

import torch
from torch import nn

from bitad.models.heads import DetectionHead
from bitad.models.network import Detector
from bitad.models.trident import TridentHead


def mirrored(network: Detector) -> Detector:
    """The detector that does on a reversed window what ``network`` does on the window.

    Kernels are flipped along time, and so are tables of positions, which are right for full windows alone. Start and
    end change places.
    """
    image = copy.deepcopy(network)
    with torch.no_grad():
        for module in image.modules():
            if isinstance(
                module, nn.Conv1d | nn.Conv2d | nn.Conv3d
            ):  # in all, time is the first axis of the kernel
                module.weight.copy_(module.weight.flip(2))
        assert isinstance(image.head, DetectionHead | TridentHead)
        # Channels: to the start, to the end; or the bins of both, those of the start from the farthest one on.
        for parameter in image.head.regression.output.parameters():
            parameter.copy_(parameter.flip(0))
        if isinstance(image.head, TridentHead):
            image.head.start, image.head.end = image.head.end, image.head.start
        if image.pyramid.positions is not None:
            image.pyramid.positions.copy_(image.pyramid.positions.flip(2))
        if image.backbone is not None:
            vit = image.backbone.vit
            by_tubelet = vit.get_buffer("pos_embed").unflatten(1, (vit.clip_frames // vit.tubelet, -1))
            vit.get_buffer("pos_embed").copy_(by_tubelet.flip(1).flatten(1, 2))
    return image
