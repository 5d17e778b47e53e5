"""Networks: one detector, and a pair of two that watch the same windows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from bitad.models.alignment import Alignment, aligned, joint_forward
from bitad.models.backbone import VideoBackbone
from bitad.models.fusion import Fusion
from bitad.models.heads import DetectionHead, Points, Prediction
from bitad.models.pyramid import FeaturePyramid


class Detector(nn.Module):
    """Backbone (or features from disk), pyramid, head; the same forward pass in training and evaluation.

    The loss (:mod:`bitad.training.losses`) and the decoding (:mod:`bitad.inference.postprocess`) are functions of what
    it returns.

    Args:
        backbone: frames -> features; None where the inputs are features already.
        pyramid: features -> levels.
        head: levels -> prediction.
    """

    def __init__(self, *, backbone: nn.Module | None, pyramid: FeaturePyramid, head: DetectionHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.pyramid = pyramid
        self.head = head

    def forward(self, inputs: Tensor, mask: Tensor) -> Prediction:
        """Looks at a batch of windows.

        Args:
            inputs: frames ``[B, T * k, H, W, 3]`` with a backbone that sees k of each grid step, features ``[B, C, T]``
                without.
            mask: bool ``[B, T]``, true at the real steps.

        Raises:
            ValueError: if inputs and mask do not fit the network or one another.
        """
        return self.predict(self.features(inputs), mask)

    def features(self, inputs: Tensor) -> Tensor:
        """What the pyramid stands on, ``[B, C, T]``; inputs and errors as :meth:`forward`."""
        if self.backbone is None and inputs.ndim != 3:
            raise ValueError(
                f"inputs of shape {list(inputs.shape)} to a detector without a backbone; give features [B, C, T]"
            )
        return inputs if self.backbone is None else self.backbone(inputs)

    def points(self, steps: int, device: torch.device | None = None) -> Points:
        """Where the points of windows of so many grid steps lie, known before any window is looked at."""
        length = self.pyramid.padded_length(steps)
        sizes = [length // stride for stride in self.head.strides]
        return Points.of_levels(sizes, self.head.strides, self.head.ranges, device)

    def predict(self, features: Tensor, mask: Tensor) -> Prediction:
        """Looks at features ``[B, C, T]``, whoever made them; mask and errors as :meth:`forward`."""
        if mask.shape != (features.shape[0], features.shape[2]):
            raise ValueError(f"mask of shape {list(mask.shape)} for features of shape {list(features.shape)}")
        return self.head(self.pyramid(features, mask))


class Side(nn.Module):
    """A network with what an experiment adds to it; they learn together (one optimiser, schedule, EMA, clipping group).

    Args:
        network: the detector.
        cross_adapters: one behind each block of its backbone, that also sees the other side's tokens (experiment 2x).
        fusion: of this network's prediction with the other's, on this network's clock (experiments 3-x).
    """

    def __init__(
        self, network: Detector, *, cross_adapters: nn.ModuleList | None = None, fusion: Fusion | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.cross_adapters = cross_adapters
        self.fusion = fusion


class Both(NamedTuple):
    """What a pair says about a batch of windows.

    Args:
        first, second: each on its own network's clock; fused where there is a fusion.
        aligned: for each of the two, the other *network's* prediction on its clock; None where nothing was aligned.
        own: the two networks' own predictions.
    """

    first: Prediction
    second: Prediction
    aligned: tuple[Prediction, Prediction] | None
    own: tuple[Prediction, Prediction]


class Pair(nn.Module):
    """Two sides in one graph.

    Args:
        first: watches the windows forwards.
        second: watches them in reverse, or forwards too (the control).
        mirrored: whether the second one's view is the first's reversed.
        align: how one's prediction comes to the other's clock, see :func:`bitad.models.alignment.aligned`; None
            where nothing asks for it.
    """

    def __init__(self, first: Side, second: Side, *, mirrored: bool = True, align: Alignment | None = None) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.mirrored, self.align = mirrored, align

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.first, self.second

    def share_frozen(self) -> None:
        """Keeps one copy of what is frozen and the same in both networks: the pre-trained transformer.

        To be called when the weights are loaded and on their device.
        """
        theirs = dict(self.first.named_parameters())
        for name, parameter in self.second.named_parameters():
            other = theirs[name]
            if not (parameter.requires_grad or other.requires_grad) and torch.equal(parameter, other):
                parameter.data = other.data

    def forward(self, inputs: tuple[Tensor, Tensor], mask: Tensor) -> Both:
        """Looks at a batch of windows.

        Args:
            inputs: each network's view, as :meth:`Detector.forward` takes it.
            mask: bool ``[B, T]``; the same for both views, whose padding is at the end.
        """
        first, second = self._networks(inputs, mask)
        if self.align is None:
            return Both(first, second, None, (first, second))
        across = (self._aligned(second), self._aligned(first))
        fused = [
            own if side.fusion is None else side.fusion(own, other)
            for side, own, other in zip(self.sides, (first, second), across, strict=True)
        ]
        return Both(fused[0], fused[1], across, (first, second))

    def _networks(self, inputs: tuple[Tensor, Tensor], mask: Tensor) -> tuple[Prediction, Prediction]:
        one, two = self.sides
        if one.cross_adapters is None or two.cross_adapters is None:
            return one.network(inputs[0], mask), two.network(inputs[1], mask)
        assert isinstance(one.network.backbone, VideoBackbone)  # cross adapters are behind its blocks
        assert isinstance(two.network.backbone, VideoBackbone)
        features = joint_forward(
            one.network.backbone,
            two.network.backbone,
            inputs,
            mask,
            (one.cross_adapters, two.cross_adapters),
            mirrored=self.mirrored,
        )
        return one.network.predict(features[0], mask), two.network.predict(features[1], mask)

    def _aligned(self, prediction: Prediction) -> Prediction:
        """A network's prediction on the other one's clock."""
        assert self.align is not None
        return aligned(prediction, how=self.align) if self.mirrored else prediction
