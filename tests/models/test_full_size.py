"""The published detectors in their full size, on real windows: S on all of its 768 frames, the others on fewer."""

from __future__ import annotations

import pytest
import torch

from bitad.config.loading import load_config
from bitad.models.build import build_network
from bitad.models.network import Detector


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("size", "frames"), [("s", 768), ("b", 64), ("l", 64), ("h", 64)])
@torch.inference_mode()
def test_a_full_size_detector_sees_a_window(size: str, frames: int) -> None:
    config = load_config(f"thumos14/videomae-{size}", [f"window.steps={frames}", "model.backbone.weights=null"])
    torch.manual_seed(0)
    network = build_network(config, 20).eval()
    assert isinstance(network, Detector)
    window = torch.randint(0, 256, (1, frames, 160, 160, 3), dtype=torch.uint8)
    prediction = network.predict(window, torch.ones(1, frames, dtype=torch.bool))
    points = sum(frames // 2**level for level in range(6))
    assert prediction.logits.shape == (1, points, 20)
    assert prediction.logits.isfinite().all()
    assert (prediction.distances >= 0).all()
    # An untrained head says what its prior says.
    assert prediction.logits.sigmoid().mean().item() == pytest.approx(0.01, abs=0.01)
