"""The difference between ActionFormer's release and OpenTAD (and so BiTAD) near the padding of a window.

The release does not mask the padding after the norms of its embedding and heads, so their biases reach the last real
steps. The effect depends on these biases: here they are random, in networks of the released configuration of THUMOS14
(2304 steps, 512 channels) on normal features of random length.

Prints the largest difference of logits and of distances, and how far from the end of the video a logit differs by more
than a hundredth of the largest difference, in strides of its level.

    python benchmarks/padding_leak.py --networks 30 --bias 0.1
"""

from __future__ import annotations

import argparse
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitad.config.loading import load_config
from bitad.models.build import build_network
from bitad.models.pyramid import MaskedConv

CLASSES = 20


def uncleared(conv: MaskedConv, x: Tensor, mask: Tensor) -> Tensor:
    """:meth:`MaskedConv.forward` as in the release."""
    return F.relu(conv.norm(conv.conv(x) * mask[:, None]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=30)
    parser.add_argument("--bias", type=float, default=0.1, help="standard deviation of the norms' biases (0.1)")
    parser.add_argument("--scale", type=float, default=0.1, help="layer scale of the blocks (0.1)")
    arguments = parser.parse_args()
    config = load_config("thumos14/actionformer-i3d", [f"model.layer_scale={arguments.scale}"])
    logits, distances, reaches = [], [], []
    for seed in range(arguments.networks):
        torch.manual_seed(seed)
        network = build_network(config, CLASSES).eval()
        for module in network.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.normal_(module.bias, std=arguments.bias)
        steps = config.window.steps
        real = int(torch.randint(64, steps - 64, ()))
        features, mask = torch.randn(1, config.data.feature_channels or 0, steps), torch.arange(steps)[None] < real
        with torch.no_grad():
            features = features * mask  # as windows are padded
            ours = network.detectors[0].predict(features, mask)
            with patch.object(MaskedConv, "forward", uncleared):
                theirs = network.detectors[0].predict(features, mask)
        near = (ours.logits - theirs.logits)[0].abs().amax(1)[ours.mask[0]]
        from_end = (real - ours.points.position[ours.mask[0]]) / ours.points.stride[ours.mask[0]]
        logits.append(near.max().item())
        distances.append((ours.distances - theirs.distances)[ours.mask].abs().max().item())
        reaches.append(from_end[near > logits[-1] / 100].max().item())
    for name, values in (("logit", logits), ("distance, in strides", distances), ("reach, in strides", reaches)):
        ordered = sorted(values)
        print(
            f"{name}: median {ordered[len(ordered) // 2]:.3f}, largest {ordered[-1]:.3f} of {len(ordered)} networks"
        )


if __name__ == "__main__":
    main()
