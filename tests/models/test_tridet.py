"""TriDet's pyramid and head: parity with OpenTAD's recorded tensors, and their own laws.

fp32 and fp64 differ by 1e-5 on the pyramid and the distances and by 1e-4 on proposals (2e-4 on 400 steps). A wrong eps
shows as 1e-3.
"""

from __future__ import annotations

import gzip
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from builders import config_of, feature_data
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import (
    FIXTURES,
    NEEDS_FIXTURES,
    Recording,
    assert_candidates,
    grid_of,
    over_levels,
    settings_of,
)
from runs import ALONE, assert_same_run, both_baselines
from torch import Tensor, nn

from bitad.config.loading import ConfigError, load_config
from bitad.config.names import EXPERIMENTS
from bitad.inference.detect import run_test
from bitad.inference.nms import nms
from bitad.inference.postprocess import Candidates, Stitcher, decode, to_seconds
from bitad.models.build import build_network
from bitad.models.heads import JoinedLevels, Prediction
from bitad.models.network import Detector
from bitad.models.pyramid import Level
from bitad.models.sgp import MaskedGroupNorm, SgpBlock, SgpPyramid
from bitad.models.trident import TridentHead
from bitad.reports.plan import plan_training
from bitad.training.losses import DetectionLoss, Targets, assign, diou_loss, tiou_of_distances
from bitad.training.trainer import Trainer
from bitad.weights.checkpoint import load_checkpoint
from bitad.weights.loading import Weights, load_weights

CLASSES = 7
TRIDET = ("model.pyramid.type=sgp", "model.head.type=trident")
ON_PYRAMID, ON_DISTANCES, ON_PROPOSALS, ON_SCORES = 2e-5, 5e-5, 4e-4, 3e-6


def build(**keywords: Any) -> Detector:
    pyramid = SgpPyramid(40, 32, levels=5, max_length=128, mlp_channels=48, **keywords)
    limits = [0.0, *(4.0 * stride for stride in pyramid.strides[:-1]), 10000.0]
    head = TridentHead(32, CLASSES, strides=pyramid.strides, ranges=list(pairwise(limits)))
    return Detector(backbone=None, pyramid=pyramid, head=head)


LOCAL = Recording("tridet_local", build)


def assert_near(found: Tensor, recorded: Tensor, atol: float) -> None:
    torch.testing.assert_close(found, recorded, rtol=0, atol=atol)


def assert_proposals(prediction: Prediction, recorded: dict[str, Tensor]) -> None:
    """At all points, padded ones too."""
    segments, scores = prediction.points.segments(prediction.distances), prediction.logits.sigmoid()
    for window, mask in enumerate(prediction.mask):
        assert_near(segments[window].transpose(0, 1), recorded[f"proposals.{window}"], ON_PROPOSALS)
        assert_near(scores[window] * mask[:, None], recorded[f"scores.{window}"], ON_SCORES)


@torch.no_grad()
def assert_pyramid(detector: Detector) -> None:
    for name, levels in (
        ("projection", detector.pyramid.project(LOCAL.inputs, LOCAL.mask)),
        ("neck", detector.pyramid(LOCAL.inputs, LOCAL.mask)),
    ):
        for number, (features, mask) in enumerate(levels):
            assert_near(features, LOCAL.outputs[f"{name}.{number}"], ON_PYRAMID)
            assert torch.equal(mask, LOCAL.outputs[f"{name}_mask.{number}"])


@NEEDS_FIXTURES
def test_pyramid() -> None:
    assert_pyramid(LOCAL.detector())


def assert_pyramid_and_distances(detector: Detector) -> None:
    assert_pyramid(detector)
    with torch.no_grad():
        distances = detector.predict(LOCAL.inputs, LOCAL.mask).distances
    assert_near(distances, over_levels(LOCAL.outputs, "offsets"), ON_DISTANCES)


# Parity depends on each eps: of the norms before the blocks and after them, within them, of the group norms, and in the
# head.
NORMS = {"pyramid.embed": 1e-6, "pyramid.norms": 1e-6, ".norm": 1e-5, ".group_norm": 1e-5, "head": 1e-6}


@NEEDS_FIXTURES
@pytest.mark.parametrize("part", NORMS)
def test_with_a_wrong_eps_there_is_no_parity(part: str) -> None:
    detector = LOCAL.detector()
    found = 0
    for name, module in detector.named_modules():
        in_block = name.startswith(("pyramid.stem", "pyramid.branch"))
        if isinstance(module, nn.LayerNorm | nn.GroupNorm) and (
            (in_block and name.endswith(part)) or name.startswith(part)
        ):
            assert module.eps == NORMS[part], name
            module.eps = 1e-11 / module.eps  # 1e-5 for 1e-6, 1e-6 for 1e-5
            found += 1
    assert found
    with pytest.raises(AssertionError, match="not close"):
        assert_pyramid_and_distances(detector)


@NEEDS_FIXTURES
@torch.no_grad()
def test_boundaries_and_bins() -> None:
    detector = LOCAL.detector()
    head = detector.head
    assert isinstance(head, TridentHead)
    levels = JoinedLevels.of(detector.pyramid(LOCAL.inputs, LOCAL.mask), gap=head.regression.reach)
    raw = [x * scale for x, scale in zip(head.regression(levels), head.scales, strict=True)]
    for name, found in (("start_pred", head.start(levels)), ("end_pred", head.end(levels)), ("reg_raw", raw)):
        for number, one in enumerate(found):
            assert_near(one.transpose(1, 2), LOCAL.outputs[f"{name}.{number}"], ON_PYRAMID)


@NEEDS_FIXTURES
def test_logits_distances_proposals_and_scores() -> None:
    prediction = LOCAL.prediction
    assert_near(prediction.logits, over_levels(LOCAL.outputs, "cls_pred"), ON_PYRAMID)
    assert_near(prediction.distances, over_levels(LOCAL.outputs, "offsets"), ON_DISTANCES)
    assert_proposals(prediction, LOCAL.outputs)


@NEEDS_FIXTURES
@pytest.mark.parametrize(("length", "padded"), [(100, 128), (150, 160), (400, 400)])
@torch.no_grad()
def test_features_shorter_and_longer_than_the_window(length: int, padded: int) -> None:
    extra = LOCAL.arrays(f"extra_len{length}")
    prediction = LOCAL.detector().predict(extra["in.feats"], extra["in.masks"])
    assert prediction.points.sizes[0] == padded
    assert_proposals(prediction, extra)
    if "cls_pred.0" in extra:
        assert_near(prediction.logits, over_levels(extra, "cls_pred"), ON_PYRAMID)


def targets_of(windows_with_truth: int = 2) -> Targets:
    none = 2 - windows_with_truth
    segments = LOCAL.segments[:windows_with_truth] + [torch.empty(0, 2)] * none
    labels = LOCAL.labels[:windows_with_truth] + [torch.empty(0, dtype=torch.int32)] * none
    return assign(LOCAL.prediction.points, segments, labels, CLASSES)


@NEEDS_FIXTURES
def test_points_targets_and_positive_pairs() -> None:
    prediction, recorded, targets = LOCAL.prediction, LOCAL.arrays("targets"), targets_of()
    points = prediction.points
    columns = torch.stack((points.position, points.low, points.high, points.stride), dim=1)
    assert torch.equal(columns, recorded["points"])
    assert torch.equal(targets.class_targets, recorded["gt_cls"])
    positive = targets.positive
    assert int(positive.sum()) == LOCAL.info["num_pos"]
    assert_near(targets.distances[positive], recorded["gt_reg"][positive], 1e-5)
    taught, distances = targets.of_distances(prediction)
    pairs = taught.nonzero()
    assert torch.equal(pairs, recorded["pos.index"])
    wanted = distances.expand_as(prediction.distances)
    assert_near(points.segments(prediction.distances)[taught], recorded["pos.pred_segments"], ON_PROPOSALS)
    assert_near(points.segments(wanted)[taught], recorded["pos.gt_segments"], 1e-4)
    assert_near(tiou_of_distances(prediction.distances, wanted)[taught], recorded["pos.giou"], 1e-5)
    assert_near(diou_loss(prediction.distances, wanted)[taught], recorded["pos.diou_loss"], 1e-5)


TRAINING = "train_droppath0"


@NEEDS_FIXTURES
@pytest.mark.parametrize(
    ("case", "windows_with_truth", "options"),
    [
        (TRAINING, 2, {}),
        ("train_no_gt", 0, {}),
        (f"{TRAINING}:iou_weight_power=1", 2, {"iou_weight_power": 1.0}),
        (f"{TRAINING}:iou_weight_power=0.25", 2, {"iou_weight_power": 0.25}),
        (f"{TRAINING}:iou_weight_power=0", 2, {"iou_weight_power": 0.0}),
        (f"{TRAINING}:label_smoothing=0.1", 2, {"label_smoothing": 0.1}),
        ("eval", 2, {}),
        ("eval_sample1_no_gt", 1, {}),
        ("eval_no_gt", 0, {}),
    ],
)
def test_losses(case: str, windows_with_truth: int, options: dict[str, float]) -> None:
    training = case.startswith("train")
    loss = DetectionLoss(**{"iou_weight_power": 0.2, **options}).train(training)
    recorded, targets = LOCAL.info["losses"][case], targets_of(windows_with_truth)
    found = loss(LOCAL.prediction, targets)
    # In evaluation the reference divides the classification loss by the moving average, ours by the positive points.
    divisor = 1.0 if training else loss.normaliser.item() / max(1, int(targets.positive.sum()))
    assert found.classification.item() == pytest.approx(recorded["cls_loss"] * divisor, rel=2e-6)
    assert found.regression.item() == pytest.approx(recorded["reg_loss"], rel=1e-5)
    assert loss.normaliser.item() == pytest.approx(recorded["loss_normalizer_after"], rel=1e-6)
    if case == TRAINING:
        again, recorded = loss(LOCAL.prediction, targets), LOCAL.info["losses"][f"{case}_second_call"]
        assert again.total.item() == pytest.approx(recorded["cost"], rel=1e-5)


@NEEDS_FIXTURES
def test_focal_loss_before_the_weights() -> None:
    recorded, prediction = LOCAL.arrays("targets"), LOCAL.prediction
    found = DetectionLoss()(prediction, targets_of(), normaliser=torch.ones(())).classification
    assert found.item() == pytest.approx(recorded["focal_unweighted"].sum().item(), rel=1e-5)


@NEEDS_FIXTURES
def test_gradients() -> None:
    detector = LOCAL.detector(drop_path=0.0).train()
    prediction = detector.predict(LOCAL.inputs, LOCAL.mask)
    targets = assign(prediction.points, LOCAL.segments, LOCAL.labels, CLASSES)
    DetectionLoss(iou_weight_power=0.2)(prediction, targets).total.backward()
    recorded = Weights.of(LOCAL.arrays("grads_train")).tensors
    found = {name: p.grad for name, p in detector.named_parameters() if p.grad is not None}
    assert found.keys() == recorded.keys()
    total = torch.cat([gradient.flatten() for gradient in found.values()]).norm().item()
    assert total == pytest.approx(LOCAL.info["grad_total_norm"], rel=1e-5)
    for name, gradient in recorded.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


@NEEDS_FIXTURES
def test_weight_decay_is_for_the_weights_of_convolutions() -> None:
    decayed = next(group for group in LOCAL.info["optimizer_groups"] if group["weight_decay"])
    wanted = set(Weights.of({name: torch.zeros(1, 1, 1) for name in decayed["params"]}).tensors)
    config = load_config("thumos14/tridet-i3d", ["data.annotations=none"])
    assert config.training.lr == decayed["lr"]
    assert config.training.weight_decay == decayed["weight_decay"]
    convolutions = {f"{n}.weight" for n, module in build().named_modules() if isinstance(module, nn.Conv1d)}
    assert convolutions == wanted


# Post-processing.


def recorded_of(name: str) -> dict[str, Any]:
    return json.loads((LOCAL.folder / f"{name}.json").read_text())


@NEEDS_FIXTURES
def test_candidates_of_windows_in_seconds() -> None:
    recorded, stitcher = recorded_of("post_sliding"), Stitcher(None)
    for meta, candidates, mask in zip(recorded["metas"], decode(LOCAL.prediction), LOCAL.mask, strict=True):
        stitcher.add(meta["video_name"], candidates, grid_of(meta, int(mask.sum())), meta["duration"])
    for name, rows in recorded["results"].items():
        assert_candidates(stitcher.video(name), rows)


@NEEDS_FIXTURES
@torch.no_grad()
def test_the_best_candidates_of_a_long_window() -> None:
    extra, recorded = LOCAL.arrays("extra_len400"), recorded_of("post_sliding_len400")
    (candidates,) = decode(LOCAL.detector().predict(extra["in.feats"], extra["in.masks"]))
    (meta,) = recorded["metas"]
    assert_candidates(to_seconds(candidates, grid_of(meta, 400), meta["duration"]), recorded["results"]["vid2"])


@NEEDS_FIXTURES
@pytest.mark.parametrize("name", ["post_padding", "post_padding_agnostic_voting"])
def test_candidates_suppressed_within_a_window(name: str) -> None:
    recorded = recorded_of(name)
    suppression = settings_of(recorded["nms"])
    for meta, candidates, mask in zip(recorded["metas"], decode(LOCAL.prediction), LOCAL.mask, strict=True):
        kept = Candidates(*nms(candidates.segments, candidates.scores, candidates.labels, suppression))
        found = to_seconds(kept, grid_of(meta, int(mask.sum())), meta["duration"])
        assert_candidates(found, recorded["results"][meta["video_name"]])


@NEEDS_FIXTURES
def test_the_released_file_fills_the_presets_network() -> None:
    listing = json.loads(gzip.decompress((FIXTURES / "keys_tridet_thumos_i3d.json.gz").read_bytes()))
    config = load_config("thumos14/tridet-i3d")
    with torch.device("meta"):
        network = build_network(config, 20)
        weights = {name: torch.empty(shape) for name, (shape, _) in listing["detector"].items()}
    ours = Weights.of({"state_dict_ema": weights})
    load_weights(network, ours.tensors, source="the listing")
    assert ours.unused == ("rpn_head.loss_normalizer",)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert parameters == listing["n_params"]
    zero = set(Weights.of({name: weights[name] for name in listing["zero_at_init_and_never_trained"]}).tensors)
    torch.manual_seed(0)
    small = build_network(load_config("thumos14/tridet-i3d", ["model.channels=16", "model.levels=6"]), 20)
    assert {name for name, parameter in small.named_parameters() if not parameter.any()} >= zero


# Laws of the pyramid.


def small(**keywords: Any) -> SgpPyramid:
    """A small pyramid in double precision with no parameter at a trivial value."""
    torch.manual_seed(0)
    keywords = {"levels": 4, "max_length": 32, "groups": 2, "drop_path": 0.0, "layer_scale": 1.0, **keywords}
    pyramid = SgpPyramid(5, 8, **keywords).eval()
    for parameter in pyramid.parameters():
        nn.init.normal_(parameter, std=0.3)
    return pyramid.double()


def head_on(pyramid: SgpPyramid, **keywords: Any) -> TridentHead:
    torch.manual_seed(1)
    head = TridentHead(8, 3, strides=pyramid.strides, ranges=[(0, 10)] * 4, bins=5, **keywords).double()
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    return head


@given(real=st.integers(1, 32), seed=st.integers(0, 100), window=st.sampled_from([1, [1, 3, 5, 3]]))
@settings(deadline=None, max_examples=20)
@torch.no_grad()
def test_strict_padding_never_matters_however_much_there_is(real: int, seed: int, window: int | list[int]) -> None:
    features = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mask = torch.arange(32)[None] < real
    pyramid, longer = (small(window=window, padding="strict", max_length=length) for length in (32, 96))
    head = head_on(pyramid, padding="strict")
    levels = pyramid(features, mask)
    more = longer(torch.where(mask[:, None], features, torch.nan), mask)
    for (x, x_mask), (y, _) in zip(levels, more, strict=True):
        assert y.shape[2] == 3 * x.shape[2]
        assert x.masked_select(~x_mask[:, None]).abs().sum() == 0
        torch.testing.assert_close(F.pad(x, (0, y.shape[2] - x.shape[2])), y)
    one, other = head(levels), head(more)
    for found, wanted in ((one.logits, other.logits), (one.distances, other.distances)):
        torch.testing.assert_close(found[one.mask], wanted[other.mask])


@torch.no_grad()
def test_reference_padding_changes_even_the_first_position_and_strict_is_the_same_without_padding() -> None:
    reference, strict = small(padding="reference"), small(padding="strict")
    features = torch.randn(1, 5, 32, dtype=torch.float64)
    full, half = torch.ones(1, 32, dtype=torch.bool), torch.arange(32)[None] < 17
    for (x, _), (y, _) in zip(reference(features, full), strict(features, full), strict=True):
        torch.testing.assert_close(x, y)
    assert not torch.allclose(
        reference(features, half)[0].features[..., 0], strict(features, half)[0].features[..., 0]
    )
    predictions = [head_on(reference, padding=how)(reference(features, full)) for how in ("reference", "strict")]
    torch.testing.assert_close(predictions[0].distances, predictions[1].distances)


@torch.no_grad()
def test_windows_of_a_batch_do_not_see_each_other() -> None:
    pyramid = small(padding="strict")
    features = torch.randn(3, 5, 32, dtype=torch.float64)
    mask = torch.arange(32) < torch.tensor([[32], [20], [1]])
    together = pyramid(features, mask)
    for i in range(3):
        for (x, _), (y, _) in zip(together, pyramid(features[i : i + 1], mask[i : i + 1]), strict=True):
            torch.testing.assert_close(x[i : i + 1], y)


@torch.no_grad()
def test_a_group_norm_over_real_positions_is_that_of_these_positions_alone() -> None:
    norm = MaskedGroupNorm(2, 8).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 8, 12, dtype=torch.float64)
    mask = torch.arange(12) < torch.tensor([[12], [5]])
    found = norm.masked(x, mask)
    torch.testing.assert_close(found[:1], norm(x[:1]))
    torch.testing.assert_close(found[1:, :, :5], norm(x[1:, :, :5]))


@pytest.mark.parametrize(
    ("window", "k", "wide"), [(1, 5.0, 11), (3, 1.5, 7), (1, 1.5, 3), (5, 2.0, 13), (1, 1.2, 3)]
)
def test_the_wide_windows_size_is_odd(window: int, k: float, wide: int) -> None:
    block = small(window=window, k=k).branch[0]
    assert isinstance(block, SgpBlock)
    assert (block.narrow.kernel_size, block.wide.kernel_size) == ((window,), (wide,))


def gradients_of_convolutions(init_std: float) -> dict[str, Tensor]:
    torch.manual_seed(0)
    pyramid = SgpPyramid(5, 16, levels=3, max_length=32, init_std=init_std, layer_scale=None, padding="strict")
    levels = pyramid(torch.randn(4, 5, 32), torch.ones(4, 32, dtype=torch.bool))
    sum((level.features * torch.randn_like(level.features)).sum() for level in levels).backward()
    return {
        name: parameter.grad
        for name, parameter in pyramid.named_parameters()
        if parameter.grad is not None and name.split(".")[2] in ("psi", "fc", "phi", "narrow", "wide")
    }


def test_convolutions_that_begin_at_0_never_train_and_by_default_all_do() -> None:
    nothing, default = gradients_of_convolutions(0.0), gradients_of_convolutions(0.1)
    assert nothing.keys() == default.keys()
    assert len(nothing) == 2 * 5 * 4
    assert not any(gradient.any() for gradient in nothing.values())
    assert all(gradient.any() for gradient in default.values())
    assert load_config("playroom", [*TRIDET]).model_dump()["model"]["pyramid"]["init_std"] > 0
    assert load_config("thumos14/tridet-i3d").model_dump()["model"]["pyramid"]["init_std"] == 0


def test_noise_is_added_in_training_only_and_not_to_the_callers_tensor() -> None:
    pyramid = small(input_noise=0.5)
    features, mask = torch.randn(1, 5, 32, dtype=torch.float64), torch.ones(1, 32, dtype=torch.bool)
    before = features.clone()
    one, other = (pyramid.train()(features, mask)[0].features for _ in range(2))
    assert not torch.equal(one, other)
    assert torch.equal(features, before)
    assert torch.equal(pyramid.eval()(features, mask)[0].features, pyramid(features, mask)[0].features)


# Laws of the head.


def slow_distance(start: Tensor, offsets: Tensor, t: int, step: int, bins: int) -> float:
    """The expectation over 0, ..., bins of one class at t, towards smaller (step -1) or larger t."""
    logits = [
        (start[t + step * d].item() if 0 <= t + step * d < len(start) else 0.0) + offsets[d].item()
        for d in range(bins + 1)
    ]
    weights = [math.exp(logit) for logit in logits]
    return sum(d * weight for d, weight in enumerate(weights)) / sum(weights)


@torch.no_grad()
def test_distances_are_expectations_over_bins() -> None:
    bins, steps = 4, 7
    head = TridentHead(8, 3, strides=[1], ranges=[(0, 100)], bins=bins).double()
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    level = Level(torch.randn(1, 8, steps, dtype=torch.float64), torch.ones(1, steps, dtype=torch.bool))
    found = head([level]).distances[0]  # [T, K, 2]
    assert (found >= 0).all()
    assert (found <= bins).all()
    start, end, raw = (
        tower(JoinedLevels.of([level], gap=1))[0][0] for tower in (head.start, head.end, head.regression)
    )
    raw = (raw * head.scales[0]).relu()
    left, right = raw[:, : bins + 1].flip(1), raw[:, bins + 1 :]  # by distance
    for t in range(steps):
        for k in range(3):
            assert found[t, k, 0].item() == pytest.approx(slow_distance(start[:, k], left[t], t, -1, bins))
            assert found[t, k, 1].item() == pytest.approx(slow_distance(end[:, k], right[t], t, 1, bins))


def test_the_boundaries_towers_train_and_pass_no_gradient_to_the_pyramid() -> None:
    head = head_on(small())
    with torch.no_grad():
        head.scales.zero_()  # so that the regression passes none either
    features = torch.randn(1, 8, 32, dtype=torch.float64, requires_grad=True)
    levels = [
        Level(features[..., :: 2**level], torch.ones(1, 32 >> level, dtype=torch.bool)) for level in range(4)
    ]
    head(levels).distances.sum().backward()
    assert features.grad is None or not features.grad.any()
    assert all(parameter.grad.any() for parameter in head.start.parameters())
    assert all(parameter.grad.any() for parameter in head.end.parameters())


def test_an_untrained_head_says_what_its_prior_says() -> None:
    torch.manual_seed(0)
    head = TridentHead(16, 5, strides=[1], ranges=[(0, 100)], prior_probability=0.02)
    level = Level(torch.randn(1, 16, 32), torch.ones(1, 32, dtype=torch.bool))
    assert head([level]).logits.sigmoid().mean().item() == pytest.approx(0.02, abs=0.01)


@pytest.mark.parametrize("per_class", [False, True])
def test_a_weight_by_tiou_has_finite_gradients_where_nothing_overlaps(per_class: bool) -> None:
    prediction = prediction_of(per_class)
    prediction.distances.zero_()
    prediction.distances.requires_grad_()
    targets = assign(prediction.points, [torch.tensor([[2.0, 6.0]])], [torch.tensor([1])], 3)
    assert targets.positive.any()
    loss = DetectionLoss(iou_weight_power=0.2)
    loss(prediction, targets).total.backward()
    assert prediction.distances.grad is not None
    assert prediction.distances.grad.isfinite().all()


@pytest.mark.parametrize("per_class", [False, True])
def test_a_weight_by_tiou_is_1_where_the_segment_is_right_and_at_what_is_not_there(per_class: bool) -> None:
    prediction = prediction_of(per_class)
    targets = assign(prediction.points, [torch.tensor([[2.0, 6.0]])], [torch.tensor([1])], 3)
    wanted = targets.distances[:, :, None].expand_as(prediction.distances) if per_class else targets.distances
    right = prediction._replace(distances=wanted)
    plain, weighted = (DetectionLoss(iou_weight_power=power) for power in (0.0, 1.0))
    torch.testing.assert_close(weighted(right, targets).classification, plain(right, targets).classification)
    assert weighted(prediction, targets).classification < plain(prediction, targets).classification


def prediction_of(per_class: bool) -> Prediction:
    points = build().points(128)
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(1, len(points), dtype=torch.bool)
    logits = torch.randn(1, len(points), 3, generator=generator)
    shape = (*logits.shape, 2) if per_class else (*mask.shape, 2)
    return Prediction(logits, torch.rand(shape, generator=generator), mask, points)


# In runs.


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, str]]:
    """A data set, and the overrides that name its baselines."""
    path = feature_data(tmp_path_factory.mktemp("features") / "data")
    return path, both_baselines(path, *TRIDET)


JOINT = [name for name, experiment in EXPERIMENTS.items() if experiment.networks == 2 and experiment.adds is None]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("experiment", ["baseline", "1s", *JOINT])
def test_an_experiment_trains_resumes_to_the_bit_and_is_tested(
    features: tuple[Path, tuple[str, str]], experiment: str, tmp_path: Path
) -> None:
    path, init = features
    overrides = [
        f"experiment={experiment}",
        *TRIDET,
        "training.epochs=2",
        "training.evaluate_every=2",
        "model.drop_path=0.1",
    ]
    overrides += ["model.pyramid.input_noise=0.01", "test.candidates=40"]
    overrides += init if EXPERIMENTS[experiment].starts_from == "baselines" else ()
    overrides += ["data.reversal={alpha: unknown, beta: gamma}"] if experiment == "1s" else []
    whole, parts = (config_of(path, *overrides, f"output={tmp_path / name}") for name in ("whole", "parts"))
    Trainer(whole, ALONE).run()
    for stop in (1, None):
        torch.manual_seed(99)
        Trainer(parts, ALONE, resume=stop is None).run(until=stop)
    assert_same_run(whole.run_directory, parts.run_directory)
    saved = load_checkpoint(whole.run_directory / "last.pt")
    assert saved.config.model.head.type == "trident"
    evaluations = run_test(saved, tmp_path / "test", ALONE)
    assert len(evaluations) == (1 if experiment == "baseline" else 3)
    for detector in saved.network().detectors:
        assert isinstance(detector.head, TridentHead)
        assert isinstance(detector.pyramid, SgpPyramid)


@pytest.mark.parametrize("types", [TRIDET[:1], TRIDET[1:]])
@pytest.mark.parametrize("padding", ["strict", "reference"])
def test_each_goes_with_actionformers_other_half(types: tuple[str, ...], padding: str) -> None:
    overrides = (
        *types,
        f"model.padding={padding}",
        "model.channels=32",
        "data.feature_channels=5",
        "window.steps=64",
    )
    network = build_network(load_config("thumos14/actionformer-i3d", overrides), 3)
    assert isinstance(network, Detector)
    prediction = network.predict(torch.randn(2, 5, 64), torch.arange(64) < torch.tensor([[64], [40]]))
    assert isinstance(network.pyramid, SgpPyramid) == ("sgp" in types[0])
    assert prediction.distances.shape[2:] == ((3, 2) if "trident" in types[0] else (2,))
    assert prediction.distances[prediction.mask].isfinite().all()


def test_a_plan_counts_it() -> None:
    config = load_config("thumos14/tridet-i3d", ["window.steps=64", "model.levels=3", "model.channels=32"])
    found = plan_training(config)
    with torch.device("meta"):
        network = build_network(config, 20)
    assert found.trainable == sum(parameter.numel() for parameter in network.parameters())


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ConfigError) as refused:
        load_config("playroom", [*TRIDET, "model.channels=40", "model.pyramid.window=[1, 3]", "model.heads=4"])
    assert "40 channels are not a multiple of the 16 groups of model.pyramid.type=sgp" in str(refused.value)
    assert "2 windows for 5 levels" in str(refused.value)
    for override, said in (
        ("model.pyramid.type=lstm", "model.pyramid: unknown type; one of transformer, sgp"),
        ("model.pyramid.window=4", "model.pyramid.window: 4 must be odd, so that it has a centre; use 5"),
        ("model.head.binz=8", "model.head.binz: unknown key; did you mean model.head.bins?"),
    ):
        with pytest.raises(ConfigError) as refused:
            load_config("playroom", list({one.partition("=")[0]: one for one in (*TRIDET, override)}.values()))
        assert said in str(refused.value)
    with pytest.raises(
        ConfigError, match=r"model\.head\.bins: unknown key; only another model\.head\.type has it"
    ):
        load_config("playroom", ["model.head.bins=8"])
