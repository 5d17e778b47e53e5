from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitad.models.heads import Points, Prediction
from bitad.training.losses import DetectionLoss, Targets, diou_loss, sigmoid_focal_loss

POINTS = Points.of_levels((4, 2), (1, 2), [(0.0, 4.0), (4.0, 10000.0)])

distance = st.floats(0, 50, allow_subnormal=False).map(lambda d: round(d, 3))
pair = st.tuples(distance, distance)


def focal_by_formula(logit: float, target: int, alpha: float, gamma: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    p_true, weight = (p, alpha) if target else (1 - p, 1 - alpha)
    return -weight * (1 - p_true) ** gamma * math.log(p_true)


@given(
    logit=st.floats(-15, 15),
    target=st.integers(0, 1),
    alpha=st.floats(0, 1),
    gamma=st.sampled_from([0.0, 1.0, 2.0]),
)
@settings(deadline=None)
def test_focal_loss_is_its_formula(logit: float, target: int, alpha: float, gamma: float) -> None:
    found = sigmoid_focal_loss(
        torch.tensor(logit, dtype=torch.float64), torch.tensor(float(target)).double(), alpha=alpha, gamma=gamma
    )
    # The weight is computed from 1 - alpha, which is rounded at 1e-16.
    assert found.item() == pytest.approx(focal_by_formula(logit, target, alpha, gamma), rel=1e-9, abs=1e-14)


def test_focal_loss_stays_finite_for_extreme_logits() -> None:
    logits = torch.tensor([-200.0, 200.0, -200.0, 200.0], requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor([0.0, 0.0, 1.0, 1.0]))
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([0, 150, 50, 0])
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def diou_of_segments(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Distance-IoU of two segments, Zheng et al. 2020, in one dimension."""
    overlap = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - overlap
    hull = max(a[1], b[1]) - min(a[0], b[0])
    between = (a[0] + a[1]) / 2 - (b[0] + b[1]) / 2
    return overlap / union - between**2 / hull**2


@given(predicted=st.lists(pair, min_size=3, max_size=3), wanted=st.lists(pair, min_size=3, max_size=3))
@settings(deadline=None)
def test_diou_loss_is_that_of_the_segments(
    predicted: list[tuple[float, float]], wanted: list[tuple[float, float]]
) -> None:
    wanted = [
        (max(start, 0.01), max(end, 0.01)) for start, end in wanted
    ]  # a positive point lies inside its segment
    found = diou_loss(torch.tensor(predicted).double(), torch.tensor(wanted).double())
    for loss, p, w in zip(found.tolist(), predicted, wanted, strict=True):
        position = 7.0
        a, b = (position - p[0], position + p[1]), (position - w[0], position + w[1])
        assert loss == pytest.approx(1 - diou_of_segments(a, b), abs=1e-6)
        assert -1e-12 <= loss <= 2


def test_diou_loss_is_zero_only_for_the_same_segment_and_pulls_towards_it() -> None:
    wanted = torch.tensor([[2.0, 3.0]])
    assert diou_loss(wanted, wanted).item() == 0
    predicted = torch.tensor([[2.5, 1.0]], requires_grad=True)
    diou_loss(predicted, wanted).sum().backward()
    assert predicted.grad is not None
    assert predicted.grad[0, 0] > 0  # the start is too far out, the end not far enough
    assert predicted.grad[0, 1] < 0


def test_diou_loss_of_nothing_against_nothing_has_finite_gradients() -> None:
    # So look the points without a segment, before they are weighted with zero.
    predicted = torch.zeros(5, 2, requires_grad=True)
    diou_loss(predicted, torch.zeros(5, 2)).sum().backward()
    assert predicted.grad is not None
    assert predicted.grad.isfinite().all()


def batch(seed: int = 0) -> tuple[Prediction, Targets]:
    """Two windows of 6 points and 3 classes; the last two points of the second window are padding."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    distances = torch.rand(2, 6, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    classes = (torch.rand(2, 6, 3, generator=generator) > 0.7).double()
    positive = classes.sum(-1) > 0
    wanted = (torch.rand(2, 6, 2, generator=generator).double() + 0.1) * positive[..., None]
    return Prediction(logits, distances, mask, POINTS), Targets(classes, wanted, positive)


def sums_by_loop(prediction: Prediction, targets: Targets, smoothing: float = 0.0) -> tuple[float, float, int]:
    classification = regression = 0.0
    positives = 0
    for window, point in prediction.mask.nonzero().tolist():
        for k in range(3):
            logit, target = (
                prediction.logits[window, point, k].item(),
                targets.class_targets[window, point, k].item(),
            )
            target = target * (1 - smoothing) + smoothing / 4
            p = 1 / (1 + math.exp(-logit))
            p_true, alpha = p * target + (1 - p) * (1 - target), 0.25 * target + 0.75 * (1 - target)
            cross_entropy = -target * math.log(p) - (1 - target) * math.log(1 - p)
            classification += alpha * (1 - p_true) ** 2 * cross_entropy
        if targets.positive[window, point]:
            positives += 1
            (a, b), (c, d) = (
                prediction.distances[window, point].tolist(),
                targets.distances[window, point].tolist(),
            )
            regression += 1 - diou_of_segments((-a, b), (-c, d))
    return classification, regression, positives


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_evaluation_divides_the_sums_over_real_points_by_the_positives(smoothing: float) -> None:
    prediction, targets = batch()
    classification, regression, positives = sums_by_loop(prediction, targets, smoothing)
    loss = DetectionLoss(label_smoothing=smoothing, regression_weight=2.0).eval()
    found = loss(prediction, targets)
    assert found.classification.item() == pytest.approx(classification / positives)
    assert found.regression.item() == pytest.approx(regression / positives)
    assert found.total.item() == pytest.approx((classification + 2 * regression) / positives)
    assert loss.normaliser.item() == 100


def test_training_divides_by_a_moving_average_of_the_positives() -> None:
    prediction, targets = batch()
    classification, _, positives = sums_by_loop(prediction, targets)
    loss, average = DetectionLoss(initial_normaliser=50.0), 50.0
    for _ in range(3):
        average = 0.9 * average + 0.1 * positives
        assert loss(prediction, targets).classification.item() == pytest.approx(classification / average)
        assert loss.normaliser.item() == pytest.approx(average)


def test_the_moving_average_is_no_integer_and_survives_a_checkpoint() -> None:
    prediction, targets = batch()
    loss, resumed = DetectionLoss(), DetectionLoss()
    loss(prediction, targets)
    assert loss.normaliser.item() != round(loss.normaliser.item())
    resumed.load_state_dict(loss.state_dict())
    assert torch.equal(loss(prediction, targets).total, resumed(prediction, targets).total)


def test_two_forward_passes_may_share_one_backward_pass() -> None:
    # The average is a buffer that the second pass changes; the first one's gradient must not feel it.
    prediction, targets = batch()
    loss = DetectionLoss()
    (loss(prediction, targets).total + loss(prediction, targets).total).backward()
    assert prediction.logits.grad is not None


def test_windows_without_ground_truth_give_finite_gradients_and_no_regression() -> None:
    prediction, targets = batch()
    empty = Targets(*(torch.zeros_like(t) for t in targets[:3]))
    found = DetectionLoss().eval()(prediction, empty)
    assert found.regression.item() == 0
    found.total.backward()
    assert prediction.logits.grad is not None
    assert prediction.distances.grad is not None
    assert prediction.logits.grad.isfinite().all()
    assert prediction.distances.grad.abs().sum() == 0


def reversed_copies(seed: int = 0) -> tuple[Prediction, Prediction, Targets]:
    """Two predictions of one batch, and its targets."""
    (first, targets), (second, _) = batch(seed), batch(seed + 1)
    return first, second, targets


def test_agreement_is_its_sum_over_points_divided_by_the_normaliser() -> None:
    first, second, targets = reversed_copies()
    expected = 0.0
    for window, point in first.mask.nonzero().tolist():
        for a, b in zip(first.logits[window, point].tolist(), second.logits[window, point].tolist(), strict=True):
            expected += (1 / (1 + math.exp(-a)) - 1 / (1 + math.exp(-b))) ** 2
        if targets.positive[window, point]:
            (a, b), (c, d) = first.distances[window, point].tolist(), second.distances[window, point].tolist()
            expected += 1 - diou_of_segments((-a, b), (-c, d))
    assert DetectionLoss(initial_normaliser=7).agreement(first, second, targets).item() == pytest.approx(
        expected / 7
    )


@given(seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_agreement_is_zero_with_oneself_symmetric_and_blind_to_padding(seed: int) -> None:
    first, second, targets = reversed_copies(seed)
    loss = DetectionLoss()
    assert loss.agreement(first, first, targets).item() == pytest.approx(0, abs=1e-12)
    apart = loss.agreement(first, second, targets)
    assert apart.item() > 0
    assert loss.agreement(second, first, targets).item() == pytest.approx(apart.item())
    padded = ~first.mask
    elsewhere = second._replace(
        logits=second.logits.masked_fill(padded[..., None], 9.0),
        distances=second.distances.masked_fill(padded[..., None], 9.0),
    )
    everywhere = targets._replace(positive=targets.positive | padded)
    assert torch.equal(loss.agreement(first, elsewhere, everywhere), apart)


def test_agreement_draws_both_predictions_towards_one_another_and_leaves_the_normaliser() -> None:
    first, second, targets = reversed_copies()
    loss = DetectionLoss()
    before = loss.agreement(first, second, targets)
    before.backward()
    assert loss.normaliser.item() == 100
    for prediction in (first, second):
        for tensor in (prediction.logits, prediction.distances):
            assert tensor.grad is not None
            assert tensor.grad.isfinite().all()
            assert tensor.grad[prediction.mask].any()
            assert not tensor.grad[~prediction.mask].any()
    difference = (first.logits - second.logits)[first.mask]
    assert first.logits.grad is not None
    assert torch.equal(first.logits.grad[first.mask].sign(), difference.sign())
    with torch.no_grad():
        nearer = first._replace(
            logits=first.logits - 5 * first.logits.grad, distances=first.distances - first.distances.grad
        )
    assert loss.agreement(nearer, second, targets) < before


def test_the_padding_does_not_count() -> None:
    prediction, targets = batch()
    padded = ~prediction.mask
    other = prediction._replace(logits=prediction.logits.masked_fill(padded[..., None], 9.0))
    changed = targets._replace(
        positive=targets.positive | padded, class_targets=targets.class_targets.masked_fill(padded[..., None], 1)
    )
    loss = DetectionLoss().eval()
    assert torch.equal(loss(prediction, targets).total, loss(other, changed).total)
