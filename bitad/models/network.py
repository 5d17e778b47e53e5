"""Networks: a detector, or a pair of detectors on the same windows, behind one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bitad.config.names import Alignment
from bitad.data.samples import reverse_steps
from bitad.models.alignment import aligned, joint_forward
from bitad.models.backbone import VideoBackbone
from bitad.models.fusion import Fusion
from bitad.models.heads import Head, Points, Prediction
from bitad.models.pyramid import Pyramid
from bitad.models.vit import is_adapter


class Output(NamedTuple):
    """The output of a network for a batch of windows.

    Args:
        predictions: of each detector or view, on the clock of its view; fused if there is a fusion.
        own: the same before fusion.
        aligned: for each detector, the other detector's prediction on its clock; None where nothing is aligned.
    """

    predictions: tuple[Prediction, ...]
    own: tuple[Prediction, ...]
    aligned: tuple[Prediction, ...] | None = None


class Network(nn.Module, ABC):
    """One or two detectors on the same windows, each with its view, or one with two views."""

    @property
    @abstractmethod
    def detectors(self) -> tuple[Detector, ...]:
        """The detector of each view, in the order of views."""

    @property
    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """The modules with an optimizer, EMA and clipping norm each, by the prefix of their parameter names."""

    @abstractmethod
    def forward(self, views: Sequence[Tensor], mask: Tensor) -> Output:
        """Detects in a batch of windows; errors as :meth:`Detector.predict`.

        Args:
            views: the windows in each detector's view, see :meth:`Detector.predict`.
            mask: bool ``[B, T]``, true at the real steps; the same for all views, with padding at the end.
        """

    @abstractmethod
    def without_backbones(self) -> Network:
        """The same pyramids, heads and fusions (not copies), for features as input."""

    def share_frozen(self) -> bool:
        """Keeps one copy of frozen weights that are equal in all detectors; call it after loading them.

        Returns:
            whether the frozen transformers are equal.
        """
        first, *others = self.parts.values()
        shared = dict(first.named_parameters())
        are_equal = True
        for name, parameter in (item for other in others for item in other.named_parameters()):
            frozen = not (parameter.requires_grad or shared[name].requires_grad)
            if frozen and torch.equal(parameter, shared[name]):
                parameter.data = shared[name].data
            elif ".vit." in name and not is_adapter(name):
                are_equal = False
        return are_equal


class Detector(Network):
    """Backbone (None if the inputs are features), pyramid and head.

    With ``reverses_features``, pyramid and head get the features of the real steps in reverse order, so predictions are
    on the other clock than the inputs.
    """

    def __init__(
        self,
        *,
        backbone: VideoBackbone | None,
        pyramid: Pyramid,
        head: Head,
        reverses_features: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pyramid = pyramid
        self.head = head
        self.reverses_features = reverses_features

    @property
    def detectors(self) -> tuple[Detector, ...]:
        return (self,)

    @property
    def parts(self) -> dict[str, nn.Module]:
        return {"": self}

    def forward(self, views: Sequence[Tensor], mask: Tensor) -> Output:
        (inputs,) = views
        predictions = (self.predict(inputs, mask),)
        return Output(predictions, predictions)

    def without_backbones(self) -> Detector:
        return Detector(
            backbone=None, pyramid=self.pyramid, head=self.head, reverses_features=self.reverses_features
        )

    def predict(self, inputs: Tensor, mask: Tensor) -> Prediction:
        """Detects in a batch of windows.

        Args:
            inputs: frames ``[B, T * k, H, W, 3]`` with a backbone that takes k of each grid step; else features
                ``[B, C, T]``.
            mask: bool ``[B, T]``, true at the real steps.

        Raises:
            ValueError: inputs and mask do not fit the network or one another.
        """
        return self.predict_features(self.features(inputs), mask)

    def features(self, inputs: Tensor) -> Tensor:
        """The features ``[B, C, T]`` of inputs as in :meth:`predict`, in their order."""
        if self.backbone is None and inputs.ndim != 3:
            raise ValueError(
                f"inputs of shape {list(inputs.shape)} to a detector without a backbone; give features [B, C, T]"
            )
        features: Tensor = inputs if self.backbone is None else self.backbone(inputs)
        return features

    def predict_features(self, features: Tensor, mask: Tensor) -> Prediction:
        """Detects in features ``[B, C, T]`` in the order of the inputs."""
        if mask.shape != (features.shape[0], features.shape[2]):
            raise ValueError(f"mask of shape {list(mask.shape)} for features of shape {list(features.shape)}")
        if self.reverses_features:
            features = reverse_steps(features, mask)
        prediction: Prediction = self.head(self.pyramid(features, mask))
        return prediction

    def points(self, steps: int, device: torch.device | None = None) -> Points:
        """The points of windows of this many grid steps."""
        length = self.pyramid.padded_length(steps)
        sizes = [length // stride for stride in self.head.strides]
        return self.head.points(sizes, device)


class SharedDetector(Detector):
    """A detector that sees windows in both playing directions, with the same weights (experiment 1s).

    Args:
        direction_channels: of a learned vector for each direction, which is added to the features; None: no vectors.
    """

    def __init__(
        self,
        *,
        backbone: VideoBackbone | None,
        pyramid: Pyramid,
        head: Head,
        direction_channels: int | None = None,
    ) -> None:
        super().__init__(backbone=backbone, pyramid=pyramid, head=head)
        # Zero at the start, so that both directions begin alike.
        self.direction_embedding = (
            None if direction_channels is None else nn.Parameter(torch.zeros(2, direction_channels))
        )

    @property
    def detectors(self) -> tuple[Detector, ...]:
        return self, self

    def forward(self, views: Sequence[Tensor], mask: Tensor) -> Output:
        features = self.features(torch.cat([*views]))  # of all windows forwards, then backwards
        if self.direction_embedding is not None:
            added = self.direction_embedding[:, None, :, None] * mask[:, None]  # [2, B, C, T], not in the padding
            features = features + added.flatten(0, 1)
        both = self.predict_features(features, torch.cat([mask] * len(views)))
        columns = (column.chunk(len(views)) for column in (both.logits, both.distances, both.mask))
        predictions = tuple(
            Prediction(logits, distances, own, both.points)
            for logits, distances, own in zip(*columns, strict=True)
        )
        return Output(predictions, predictions)

    def without_backbones(self) -> SharedDetector:
        shared = SharedDetector(backbone=None, pyramid=self.pyramid, head=self.head)
        shared.direction_embedding = self.direction_embedding
        return shared


class Side(nn.Module):
    """One detector of a pair, and the modules that an experiment adds to it.

    Args:
        network: the detector.
        cross_adapters: one after each block of its backbone (experiment 2x).
        fusion: with the other's prediction, on this detector's clock (experiments 3-x).
    """

    def __init__(
        self, network: Detector, *, cross_adapters: nn.ModuleList | None = None, fusion: Fusion | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.cross_adapters = cross_adapters
        self.fusion = fusion


class Pair(Network):
    """Two detectors in one graph.

    Args:
        first: sees the windows in forward playback.
        second: sees them in another view, or the same again (a control).
        mirrored: whether the second's predictions are on the other clock.
        align: see :func:`bitad.models.alignment.aligned`; None where nothing needs it.
    """

    def __init__(
        self, first: Side, second: Side, *, mirrored: bool = True, align: Alignment | None = None
    ) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.mirrored, self.align = mirrored, align

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.first, self.second

    @property
    def detectors(self) -> tuple[Detector, ...]:
        return self.first.network, self.second.network

    @property
    def parts(self) -> dict[str, nn.Module]:
        return {"first.": self.first, "second.": self.second}

    def without_backbones(self) -> Pair:
        first, second = (Side(side.network.without_backbones(), fusion=side.fusion) for side in self.sides)
        return Pair(first, second, mirrored=self.mirrored, align=self.align)

    def forward(self, views: Sequence[Tensor], mask: Tensor) -> Output:
        features = zip(self.detectors, self._features(views, mask), strict=True)
        own = tuple(detector.predict_features(one, mask) for detector, one in features)
        if self.align is None:
            return Output(own, own)
        other = tuple(aligned(one, how=self.align) if self.mirrored else one for one in reversed(own))
        fused = tuple(
            mine if side.fusion is None else side.fusion(mine, theirs)
            for side, mine, theirs in zip(self.sides, own, other, strict=True)
        )
        return Output(fused, own, other)

    def _features(self, views: Sequence[Tensor], mask: Tensor) -> Iterable[Tensor]:
        """The features of each detector; without cross adapters, computed one after the other."""
        one, two = self.sides
        if one.cross_adapters is None or two.cross_adapters is None:
            return (detector.features(inputs) for detector, inputs in zip(self.detectors, views, strict=True))
        assert one.network.backbone is not None  # cross adapters follow its blocks
        assert two.network.backbone is not None
        backbones, frames = (one.network.backbone, two.network.backbone), (views[0], views[1])
        cross_adapters = one.cross_adapters, two.cross_adapters
        are_frames_mirrored = self.mirrored and not two.network.reverses_features
        return joint_forward(*backbones, frames, mask, cross_adapters, mirrored=are_frames_mirrored)
