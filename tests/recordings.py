"""Recorded tensors of reference detectors, and how ours are compared with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bitad.config.schema import NmsConfig
from bitad.inference.postprocess import Candidates
from bitad.models.heads import Prediction
from bitad.models.network import Detector
from bitad.models.pyramid import Level
from bitad.timeline import Grid
from bitad.weights.files import read_weights
from bitad.weights.loading import Weights, load_weights

FIXTURES = Path(__file__).parents[1] / "../shared/fixtures"
TOLERANCE = 1e-4
NEEDS_FIXTURES = pytest.mark.skipif(
    not FIXTURES.is_dir(),
    reason="the recorded reference tensors, ../shared/fixtures, are not beside this checkout",
)


@dataclass(frozen=True)
class Recording:
    """One folder of recorded tensors and the network they were recorded from."""

    name: str
    build: Callable[..., Detector] = field(repr=False)

    @property
    def folder(self) -> Path:
        return FIXTURES / self.name

    def arrays(self, file: str) -> dict[str, Tensor]:
        with np.load(self.folder / f"{file}.npz") as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays}

    @cached_property
    def outputs(self) -> dict[str, Tensor]:
        return self.arrays("outputs")

    @cached_property
    def info(self) -> dict[str, Any]:
        return json.loads((self.folder / "info.json").read_text())

    @cached_property
    def given(self) -> dict[str, Tensor]:
        return self.arrays("inputs")

    @property
    def mask(self) -> Tensor:
        return self.given["in.masks"]

    @property
    def inputs(self) -> Tensor:
        if "in.feats" in self.given:
            return self.given["in.feats"]
        return self.given["in.frames"][:, 0].permute(0, 2, 3, 4, 1).contiguous()  # [B, T, H, W, 3]

    @property
    def segments(self) -> list[Tensor]:
        return [self.given["in.gt_segments.0"], self.given["in.gt_segments.1"]]

    @property
    def labels(self) -> list[Tensor]:
        return [self.given["in.gt_labels.0"], self.given["in.gt_labels.1"]]

    def detector(self, **keywords: Any) -> Detector:
        detector = self.build(**keywords)
        weights = Weights.of(read_weights(self.folder / "checkpoint.pth")).tensors
        load_weights(detector, weights, source=self.name)
        return detector.eval()

    @cached_property
    def prediction(self) -> Prediction:
        with torch.no_grad():
            return self.detector().predict(self.inputs, self.mask)


def assert_close(found: Tensor, recorded: Tensor) -> None:
    assert found.shape == recorded.shape
    assert (found - recorded).abs().max() <= TOLERANCE * recorded.abs().max()


def over_levels(arrays: dict[str, Tensor], name: str) -> Tensor:
    """``name.0 [B, C, T_0]``, ``name.1``, ... -> ``[B, N, C]``."""
    levels = sum(key.startswith(f"{name}.") for key in arrays)
    return torch.cat([arrays[f"{name}.{level}"] for level in range(levels)], dim=2).transpose(1, 2)


def assert_levels(found: list[Level], arrays: dict[str, Tensor], name: str) -> None:
    for level, (features, mask) in enumerate(found):
        assert_close(features, arrays[f"{name}.{level}"])
        assert torch.equal(mask, arrays[f"{name}_mask.{level}"])


def settings_of(recorded: dict[str, Any]) -> NmsConfig:
    return NmsConfig(
        method="gaussian" if recorded["use_soft_nms"] else "hard",
        sigma=recorded["sigma"],
        max_segments=recorded["max_seg_num"],
        min_score=recorded["min_score"],
        multiclass=recorded["multiclass"],
        voting_threshold=recorded["voting_thresh"],
    )


def grid_of(meta: dict[str, Any], steps: int) -> Grid:
    return Grid(meta["fps"], meta["snippet_stride"], meta["window_start_frame"] + meta["offset_frames"], steps)


def assert_candidates(found: Candidates, recorded: list[dict[str, Any]]) -> None:
    """The same, row by row, but for a last decimal here and there and neighbours of equal score changing places."""
    assert len(found) == len(recorded)
    segments = np.array([row["segment"] for row in recorded])
    scores = np.array([row["score"] for row in recorded])
    labels = np.array([int(row["label"].removeprefix("class")) for row in recorded])
    np.testing.assert_allclose(found.scores, scores, atol=1.01e-4)
    same = (found.labels == labels) & (np.abs(found.segments - segments).max(axis=1) < 0.0101)
    assert same.mean() >= 0.995
