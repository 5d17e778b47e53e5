"""Parity with OpenTAD: the recorded tensors of the reference folder, fp32, relative error at most 1e-4.

The seam between our parameter names and OpenTAD's, ``bitad.weights.loading``, is tested by the way: nothing here would
match if a name went astray.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
import torch
from recordings import (
    NEEDS_FIXTURES,
    TOLERANCE,
    Recording,
    assert_candidates,
    assert_close,
    assert_levels,
    grid_of,
    over_levels,
    settings_of,
)

from bitad.config.names import Checkpointing
from bitad.inference.nms import nms
from bitad.inference.postprocess import Candidates, Stitcher, decode, to_seconds
from bitad.models.backbone import VideoBackbone
from bitad.models.heads import DetectionHead
from bitad.models.network import Detector
from bitad.models.pyramid import FeaturePyramid
from bitad.models.vit import TemporalAdapter, VisionTransformer
from bitad.training.losses import DetectionLoss, Targets, assign
from bitad.weights.loading import Weights

pytestmark = NEEDS_FIXTURES


def head_on(pyramid: FeaturePyramid) -> DetectionHead:
    limits = [0.0, *(4.0 * stride for stride in pyramid.strides[:-1]), 10000.0]
    return DetectionHead(32, 20, strides=pyramid.strides, ranges=list(pairwise(limits)))


def adatad_tiny(*, checkpointing: Checkpointing = "none", **keywords: Any) -> Detector:
    vit = VisionTransformer(
        dim=32,
        depth=2,
        heads=2,
        mlp_dim=128,
        adapters=[TemporalAdapter(32), TemporalAdapter(32)],
        checkpointing=checkpointing,
    )
    pyramid = FeaturePyramid(32, 32, levels=6, max_length=64, **keywords)
    return Detector(backbone=VideoBackbone(vit), pyramid=pyramid, head=head_on(pyramid))


def actionformer_local(**keywords: Any) -> Detector:
    pyramid = FeaturePyramid(40, 32, levels=5, max_length=128, window=9, **keywords)
    return Detector(backbone=None, pyramid=pyramid, head=head_on(pyramid))


RECORDINGS = [Recording("adatad_tiny", adatad_tiny), Recording("actionformer_local", actionformer_local)]


@pytest.fixture(params=RECORDINGS, ids=lambda recording: recording.name)
def recording(request: pytest.FixtureRequest) -> Recording:
    return request.param


def test_backbone_features() -> None:
    tiny = RECORDINGS[0]
    backbone = tiny.detector().backbone
    assert backbone is not None
    with torch.no_grad():
        assert_close(backbone(tiny.inputs), tiny.outputs["backbone"])


@torch.no_grad()
def test_pyramid(recording: Recording) -> None:
    detector = recording.detector()
    features = recording.inputs if detector.backbone is None else detector.backbone(recording.inputs)
    assert_levels(detector.pyramid.project(features, recording.mask), recording.outputs, "projection")
    assert_levels(detector.pyramid(features, recording.mask), recording.outputs, "neck")


def test_logits_and_distances(recording: Recording) -> None:
    prediction = recording.prediction
    assert_close(prediction.logits, over_levels(recording.outputs, "cls_pred"))
    assert_close(prediction.distances, over_levels(recording.outputs, "reg_pred"))


def test_proposals_and_scores(recording: Recording) -> None:
    logits, distances, mask, points = recording.prediction
    for window in range(2):
        assert_close(points.segments(distances)[window][mask[window]], recording.outputs[f"proposals.{window}"])
        assert_close(logits[window][mask[window]].sigmoid(), recording.outputs[f"scores.{window}"])


@pytest.mark.parametrize("length", [100, 150])
@torch.no_grad()
def test_features_shorter_and_longer_than_the_window(length: int) -> None:
    local = RECORDINGS[1]
    extra = local.arrays(f"extra_len{length}")
    logits, distances, mask, points = local.detector().predict(extra["in.feats"], extra["in.masks"])
    assert_close(logits, over_levels(extra, "cls_pred"))
    assert_close(distances, over_levels(extra, "reg_pred"))
    for window in range(len(logits)):
        assert_close(points.segments(distances)[window][mask[window]], extra[f"proposals.{window}"])


def test_points_and_targets(recording: Recording) -> None:
    points, recorded = recording.prediction.points, recording.arrays("targets")
    columns = torch.stack((points.position, points.low, points.high, points.stride), dim=1)
    assert torch.equal(columns, recorded["points"])
    targets = assign(points, recording.segments, recording.labels, 20)
    positive = recorded["gt_cls"].sum(-1) > 0
    assert torch.equal(targets.positive, positive)
    assert torch.equal(targets.class_targets, recorded["gt_cls"])
    assert_close(targets.distances[positive], recorded["gt_reg"][positive])


def targets_of(recording: Recording, windows_with_truth: int) -> Targets:
    none = 2 - windows_with_truth
    segments = recording.segments[:windows_with_truth] + [torch.empty(0, 2)] * none
    labels = recording.labels[:windows_with_truth] + [torch.empty(0, dtype=torch.int32)] * none
    return assign(recording.prediction.points, segments, labels, 20)


@pytest.mark.parametrize(
    ("case", "windows_with_truth"),
    [
        ("eval", 2),
        ("eval_sample1_no_gt", 1),
        ("eval_no_gt", 0),
        ("train_droppath0", 2),
        ("train_no_gt", 0),
    ],
)
def test_losses(recording: Recording, case: str, windows_with_truth: int) -> None:
    loss = DetectionLoss().train(case.startswith("train"))
    targets = targets_of(recording, windows_with_truth)
    assert_loss(loss, recording, targets, case)
    if case == "train_droppath0":
        assert_loss(loss, recording, targets, f"{case}_second_call")


def assert_loss(loss: DetectionLoss, recording: Recording, targets: Targets, case: str) -> None:
    found, recorded = loss(recording.prediction, targets), recording.info["losses"][case]
    assert found.classification.item() == pytest.approx(recorded["cls_loss"], rel=TOLERANCE)
    assert found.regression.item() == pytest.approx(recorded["reg_loss"], rel=TOLERANCE)
    assert found.total.item() == pytest.approx(recorded["cost"], rel=TOLERANCE)
    assert loss.normaliser.item() == pytest.approx(recorded["loss_normalizer_after"], rel=1e-6)


@pytest.mark.parametrize(
    ("recording", "keywords"),
    [(RECORDINGS[0], {}), (RECORDINGS[0], {"checkpointing": "blocks"}), (RECORDINGS[1], {})],
    ids=["adatad_tiny", "adatad_tiny-checkpointing", "actionformer_local"],
)
def test_gradients(recording: Recording, keywords: dict[str, Any]) -> None:
    detector = recording.detector(drop_path=0.0, **keywords).train()
    for name, parameter in detector.named_parameters():
        parameter.requires_grad_(not name.startswith("backbone") or ".adapter." in name)
    prediction = detector.predict(recording.inputs, recording.mask)
    targets = assign(prediction.points, recording.segments, recording.labels, 20)
    DetectionLoss()(prediction, targets).total.backward()

    recorded = Weights.of(recording.arrays("grads_train")).tensors
    found = {name: p.grad for name, p in detector.named_parameters() if p.grad is not None}
    assert found.keys() == recorded.keys()
    total = recording.info["grad_total_norm"]
    assert torch.cat([g.flatten() for g in found.values()]).norm().item() == pytest.approx(total, rel=TOLERANCE)
    for name, gradient in recorded.items():
        # A softmax does not feel the bias of the keys: their gradients are rounding errors.
        noise = 1e-8 * total if ".attn.key." in name and name.endswith("bias") else 0.0
        assert (found[name] - gradient).norm() <= TOLERANCE * gradient.norm() + noise, name


def test_candidates_of_windows_in_seconds(recording: Recording) -> None:
    recorded = json.loads((recording.folder / "post_sliding.json").read_text())
    stitcher = Stitcher(None)
    for meta, candidates, mask in zip(
        recorded["metas"], decode(recording.prediction), recording.mask, strict=True
    ):
        stitcher.add(meta["video_name"], candidates, grid_of(meta, int(mask.sum())), meta["duration"])
    for name, rows in recorded["results"].items():
        assert_candidates(stitcher.video(name), rows)


def test_candidates_suppressed_within_a_window(recording: Recording) -> None:
    # A video that is one window is suppressed in grid steps there, before anything is rounded.
    recorded = json.loads((recording.folder / "post_padding.json").read_text())
    settings = settings_of(recorded["nms"])
    for meta, candidates, mask in zip(
        recorded["metas"], decode(recording.prediction), recording.mask, strict=True
    ):
        kept = Candidates(*nms(candidates.segments, candidates.scores, candidates.labels, settings))
        found = to_seconds(kept, grid_of(meta, int(mask.sum())), meta["duration"])
        assert_candidates(found, recorded["results"][meta["video_name"]])
