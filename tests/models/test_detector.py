from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bitad.models.backbone import VideoBackbone
from bitad.models.heads import DetectionHead, Prediction
from bitad.models.network import Detector
from bitad.models.pyramid import FeaturePyramid
from bitad.models.vit import TemporalAdapter, VisionTransformer, is_adapter

STEPS = 32


def vision_transformer(**keywords: Any) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(dim=8, depth=2, heads=2, mlp_dim=16, patch_size=8, image_size=16, **keywords)


def detector(*, backbone: VideoBackbone | None = None, steps: int = STEPS, **keywords: Any) -> Detector:
    torch.manual_seed(0)
    channels = 5 if backbone is None else backbone.vit.dim
    pyramid = FeaturePyramid(channels, 8, levels=4, max_length=steps, heads=2, **keywords)
    limits = [0.0, *(4.0 * stride for stride in pyramid.strides[:-1]), 10000.0]
    head = DetectionHead(8, 3, strides=pyramid.strides, ranges=list(pairwise(limits)))
    return Detector(backbone=backbone, pyramid=pyramid, head=head)


def frames(batch: int = 2, steps: int = STEPS) -> Tensor:
    return torch.randint(0, 256, (batch, steps, 16, 16, 3), dtype=torch.uint8)


def test_backbone_features_are_the_clips_averages_interpolated() -> None:
    backbone, video = VideoBackbone(vision_transformer()), frames()
    rows = []
    for window in video:
        tubelets = []
        for clip in window.split(16):  # without adapters every clip stands alone
            pixels = (clip.float() - torch.tensor([123.675, 116.28, 103.53])) / torch.tensor(
                [58.395, 57.12, 57.375]
            )
            tokens = backbone.vit(pixels.permute(3, 0, 1, 2)[None], 1)  # [1, 8, 2, 2, C]
            tubelets += [tokens[0, t].mean((0, 1)) for t in range(8)]
        # Tubelet i covers the frames 2i and 2i + 1, so its middle is at 2i + 0.5.
        features = []
        for frame in range(len(window)):
            place = min(max((frame - 0.5) / 2, 0.0), len(tubelets) - 1.0)
            left = min(int(place), len(tubelets) - 2)
            features.append(tubelets[left] * (left + 1 - place) + tubelets[left + 1] * (place - left))
        rows.append(torch.stack(features, dim=1))
    torch.testing.assert_close(backbone(video), torch.stack(rows))


@torch.no_grad()
@pytest.mark.parametrize("per_step", [2, 4, 8])
def test_of_many_frames_a_step_the_backbone_gives_one_feature_a_step(per_step: int) -> None:
    backbone, video = VideoBackbone(vision_transformer(), frames_per_step=per_step), frames()
    tokens = backbone.vit.encode(*backbone.begin(video))  # [B * clips, 8, h, w, C]
    tubelets = tokens.mean((2, 3)).reshape(2, STEPS // 2, 8).transpose(1, 2)
    found = backbone(video)
    assert found.shape == (2, 8, STEPS // per_step)
    # A step is k frames, so k / 2 tubelets; linear interpolation reads the middle of them.
    groups = tubelets.unflatten(2, (-1, per_step // 2))
    middle = groups[..., (per_step // 2 - 1) // 2 : per_step // 4 + 1].mean(-1)
    torch.testing.assert_close(found, middle)


@torch.no_grad()
def test_frames_may_be_bytes_or_floats() -> None:
    backbone, video = VideoBackbone(vision_transformer()), frames()
    assert torch.equal(backbone(video), backbone(video.float()))


def test_the_backbones_constants_are_not_weights() -> None:
    assert all(name.startswith("vit.") for name in VideoBackbone(vision_transformer()).state_dict())


def test_adapters_learn_behind_a_frozen_backbone_with_and_without_checkpointing() -> None:
    gradients = []
    for checkpointing in ("none", "blocks"):
        torch.manual_seed(0)
        first, second = ([TemporalAdapter(8), TemporalAdapter(8)] for _ in range(2))
        vit = vision_transformer(adapters=first, bi_adapters=second, checkpointing=checkpointing)
        for name, parameter in vit.named_parameters():
            parameter.requires_grad_(is_adapter(name))
        network = detector(backbone=VideoBackbone(vit), drop_path=0.0)
        prediction = network.predict(frames(), torch.ones(2, STEPS, dtype=torch.bool))
        (prediction.logits.square().mean() + prediction.distances.mean()).backward()
        gradients.append({name: p.grad for name, p in vit.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) == 2 * 2 * len(list(TemporalAdapter(8).parameters()))
    assert all(is_adapter(name) for name in gradients[0])
    assert any(gradient.abs().sum() > 0 for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name])


@pytest.mark.parametrize("training", [True, False])
def test_training_and_evaluation_return_the_same_type(training: bool) -> None:
    prediction = (
        detector().train(training).predict(torch.randn(2, 5, STEPS), torch.ones(2, STEPS, dtype=torch.bool))
    )
    assert isinstance(prediction, Prediction)
    assert prediction.logits.shape == (2, 60, 3)
    assert len(prediction.points) == 60


@pytest.mark.parametrize("kind", ["features", "frames"])
@torch.no_grad()
def test_a_prediction_is_made_of_the_features_alone(kind: str) -> None:
    network = detector(backbone=VideoBackbone(vision_transformer()) if kind == "frames" else None).eval()
    inputs = frames() if kind == "frames" else torch.randn(2, 5, STEPS)
    mask = torch.arange(STEPS) < torch.tensor([[STEPS], [20]])
    whole, parts = network.predict(inputs, mask), network.predict_features(network.features(inputs), mask)
    assert torch.equal(whole.logits, parts.logits)
    assert torch.equal(whole.distances, parts.distances)
    assert torch.equal(whole.mask, parts.mask)


def mirror_image(network: Detector) -> Detector:
    """The network that does on a reversed window what ``network`` does on the window."""
    mirrored = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in mirrored.parameters():
            if parameter.ndim == 3:  # temporal kernels
                parameter.copy_(parameter.flip(2))
        to_ends = mirrored.head.regression.output
        for parameter in to_ends.parameters():
            parameter.copy_(parameter.flip(0))
    return mirrored


@pytest.mark.parametrize("window", [None, 5])
# On level l it is exact where 2^l divides V - 1.
@pytest.mark.parametrize(("real", "exact_levels"), [(32, 1), (25, 4), (21, 3), (14, 1), (1, 4)])
@torch.no_grad()
def test_with_strict_padding_the_mirror_image_of_a_network_sees_reversed_windows_alike(
    real: int, exact_levels: int, window: int | None
) -> None:
    network = detector(padding="strict", window=window, layer_scale=1.0).double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    mask = torch.arange(STEPS)[None] < real
    features = torch.randn(1, 5, real, dtype=torch.float64)
    pad = (0, STEPS - real)
    forward = network.predict(F.pad(features, pad), mask)
    reverse = mirror_image(network).predict(F.pad(features.flip(2), pad), mask)
    sizes = forward.points.sizes
    for level in range(exact_levels):
        kept = forward.mask.split(sizes, dim=1)[level]
        logits, turned = (p.logits.split(sizes, dim=1)[level][kept] for p in (forward, reverse))
        torch.testing.assert_close(logits, turned.flip(0))
        distances, turned = (p.distances.split(sizes, dim=1)[level][kept] for p in (forward, reverse))
        torch.testing.assert_close(distances, turned.flip((0, 1)))


def test_inputs_that_do_not_fit_are_refused() -> None:
    mask = torch.ones(1, STEPS, dtype=torch.bool)
    backbone = VideoBackbone(vision_transformer())
    with pytest.raises(ValueError, match=r"window of 24 frames .* clip of 16; use 32"):
        backbone(frames(1, 24))
    with pytest.raises(ValueError, match=r"frames of shape \[1, 5, 32\]"):
        detector(backbone=backbone).predict(torch.randn(1, 5, STEPS), mask)
    with pytest.raises(ValueError, match="detector without a backbone"):
        detector().predict(frames(1), mask)
    with pytest.raises(ValueError, match=r"mask of shape \[1, 32\] for features of shape \[1, 5, 31\]"):
        detector().predict(torch.randn(1, 5, 31), mask)
