from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitad.inference.postprocess import decode
from bitad.models.heads import Points, Prediction
from bitad.timeline import mirror_positions, mirror_segments

POINTS = Points.of_levels((4, 2), (1, 2), [(0.0, 4.0), (4.0, 10000.0)])


def prediction_of(seed: int = 0, *, steps_of_score: int = 1000) -> Prediction:
    """Two windows of 6 points and 3 classes, the second with two padded points; coarse scores tie."""
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.integers(1, steps_of_score, (2, 6, 3)) / steps_of_score)
    mask = torch.tensor([[True] * 6, [True, True, True, False, True, False]])
    return Prediction(scores.logit(), torch.from_numpy(rng.random((2, 6, 2)) * 5), mask, POINTS)


def candidates_by_loop(
    prediction: Prediction, window: int, threshold: float, top_k: int
) -> list[tuple[float, float, float, int]]:
    rows = []
    for point in range(6):
        for label in range(3):
            score = prediction.logits[window, point, label].sigmoid().item()
            if prediction.mask[window, point] and score > threshold:
                before, after = (prediction.distances[window, point] * POINTS.stride[point]).tolist()
                position = POINTS.position[point].item()
                rows.append((position - before, position + after, score, label))
    return sorted(rows, key=lambda row: -row[2])[:top_k]  # stable: ties stay in the order of points and classes


@given(
    seed=st.integers(0, 1000),
    steps_of_score=st.sampled_from([3, 1000]),
    threshold=st.sampled_from([0.0, 0.5, 1.0]),
    top_k=st.sampled_from([1, 5, 2000]),
)
@settings(deadline=None, max_examples=50)
def test_candidates_are_the_best_pairs_of_point_and_class(
    seed: int, steps_of_score: int, threshold: float, top_k: int
) -> None:
    prediction = prediction_of(seed, steps_of_score=steps_of_score)
    found = decode(prediction, score_threshold=threshold, top_k=top_k)
    assert len(found) == 2
    for window, candidates in enumerate(found):
        rows = candidates_by_loop(prediction, window, threshold, top_k)
        assert len(candidates) == len(rows)
        assert candidates.segments.shape == (len(rows), 2)
        for i, (start, end, score, label) in enumerate(rows):
            assert candidates.segments[i].tolist() == pytest.approx([start, end])
            assert candidates.scores[i] == pytest.approx(score)
            assert candidates.labels[i] == label


def test_padding_is_never_a_candidate() -> None:
    prediction = prediction_of()
    logits = prediction.logits.masked_fill(~prediction.mask[..., None], torch.nan)
    distances = prediction.distances.masked_fill(~prediction.mask[..., None], torch.nan)
    found = decode(prediction._replace(logits=logits, distances=distances), score_threshold=0.0)
    assert [len(candidates) for candidates in found] == [18, 12]
    assert all(np.isfinite(candidates.segments).all() for candidates in found)


def test_decoding_builds_no_graph() -> None:
    prediction = prediction_of()
    decode(prediction._replace(logits=prediction.logits.requires_grad_()))


def test_mirroring_swaps_the_ends_and_is_its_own_inverse() -> None:
    segments = np.array([[2.0, 5.0], [-1.0, 0.5]])
    mirrored = mirror_segments(segments, 10)
    assert mirrored.tolist() == [[4.0, 7.0], [8.5, 10.0]]
    assert mirrored[0, 0] == mirror_positions(5.0, 10)
    assert mirror_segments(mirrored, 10).tolist() == segments.tolist()


@pytest.mark.parametrize("broken", ["logits", "distances"])
def test_what_is_no_number_is_refused_by_the_name_of_its_video_and_in_the_padding_is_nothing(broken: str) -> None:
    prediction = prediction_of()
    changed = {broken: getattr(prediction, broken).clone()}
    changed[broken][1, 3] = torch.nan  # in the padding
    assert len(decode(prediction._replace(**changed))) == 2
    changed[broken][1, 1] = torch.nan
    with pytest.raises(ValueError, match=r"^video b: the network's scores or segments are not finite"):
        decode(prediction._replace(**changed), names=["a", "b"])
