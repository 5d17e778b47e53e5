"""ActionFormer's network as its authors' release runs it, one position and one head at a time where that is clearer.

It reads the weights under that release's names (github.com/happyharrycn/actionformer_release, libs/modeling), so
neither our translation of names nor our pyramid is needed to know what a file of theirs should give. Unlike OpenTAD,
the release does not clear the padding after a norm and its ReLU, and all of its norms have an epsilon of 1e-5.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor


class SlowActionFormer:
    """One window at a time, without gradients.

    Args:
        weights: under the release's names, without ``module.``.
        heads: of the attention.
        window: positions that each one sees, itself in the middle; None: all.
        clears_padding: as OpenTAD does behind each norm of the embedding and of the heads.
        eps: of the norms of the embedding, the neck and the heads.
    """

    def __init__(
        self,
        weights: dict[str, Tensor],
        *,
        heads: int,
        window: int | None = None,
        clears_padding: bool = False,
        eps: float = 1e-5,
    ) -> None:
        self.weights = {name: weight.double() for name, weight in weights.items()}
        self.heads, self.window, self.clears_padding, self.eps = heads, window, clears_padding, eps

    def __call__(self, features: Tensor, real: int) -> tuple[Tensor, Tensor]:
        """Features ``[C, T]`` of which the first ``real`` steps are real -> logits ``[N, K]``, distances ``[N, 2]``."""
        mask = torch.arange(features.shape[1]) < real
        x = features.double() * mask
        for number in range(self._count(r"backbone\.embd\.(\d+)\.")):
            x = self._conv_norm_relu(x, mask, f"backbone.embd.{number}.conv", f"backbone.embd_norm.{number}")
        for number in range(self._count(r"backbone\.stem\.(\d+)\.")):
            x = self._block(x, mask, f"backbone.stem.{number}", stride=1)
        levels = [(x, mask)]
        for number in range(self._count(r"backbone\.branch\.(\d+)\.")):
            x, mask = self._block(*levels[-1], f"backbone.branch.{number}", stride=2), levels[-1][1][::2]
            levels.append((x, mask))
        # With `fpn_with_ln: false` the neck passes on what it gets.
        levels = [
            (self._norm(x, f"neck.fpn_norms.{number}", self.eps), mask) for number, (x, mask) in enumerate(levels)
        ]
        logits = [self._tower(x, mask, "cls_head", "cls_head.cls_head.conv") for x, mask in levels]
        offsets = [
            (
                self._tower(x, mask, "reg_head", "reg_head.offset_head.conv")
                * self.weights[f"reg_head.scale.{n}.scale"]
            ).relu()
            for n, (x, mask) in enumerate(levels)
        ]
        return torch.cat(logits, 1).T, torch.cat(offsets, 1).T

    def _count(self, pattern: str) -> int:
        return len({found[1] for name in self.weights if (found := re.match(pattern, name))})

    def _conv(self, x: Tensor, name: str, *, stride: int = 1) -> Tensor:
        """A convolution in its definition: a sum over the taps."""
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        taps = weight.shape[2]
        padded = F.pad(x, (taps // 2, taps // 2))
        shifted = [padded[:, tap : tap + x.shape[1]][:, ::stride] for tap in range(taps)]
        if weight.shape[1] == 1 and x.shape[0] > 1:  # of each channel alone
            out = sum(weight[:, 0, tap, None] * shifted[tap] for tap in range(taps))
        else:
            out = sum(weight[:, :, tap] @ shifted[tap] for tap in range(taps))
        assert isinstance(out, Tensor)
        return out if bias is None else out + bias[:, None]

    def _norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        if f"{name}.weight" not in self.weights:
            return x
        centred = x - x.mean(0)
        normed = centred / (centred.square().mean(0) + eps).sqrt()
        return (
            normed * self.weights[f"{name}.weight"].flatten()[:, None]
            + self.weights[f"{name}.bias"].flatten()[:, None]
        )

    def _conv_norm_relu(self, x: Tensor, mask: Tensor, conv: str, norm: str) -> Tensor:
        out = self._norm(self._conv(x, conv) * mask, norm, self.eps).relu()
        return out * mask if self.clears_padding else out

    def _block(self, x: Tensor, mask: Tensor, name: str, *, stride: int) -> Tensor:
        normed, after = self._norm(x, f"{name}.ln1", 1e-5), mask[::stride]
        q, k, v = (
            self._conv(
                self._norm(
                    self._conv(normed, f"{name}.attn.{part}_conv.conv", stride=stride) * after,
                    f"{name}.attn.{part}_norm",
                    1e-5,
                ),
                f"{name}.attn.{part}",
            )
            for part in ("query", "key", "value")
        )
        seen = self._conv(self._attention(q, k, v, after), f"{name}.attn.proj") * after
        if stride == 2:
            x = torch.stack([x[:, max(0, t - 1) : t + 2].amax(1) for t in range(0, x.shape[1], 2)], 1)
        x = x * after + seen * self._scale(f"{name}.drop_path_attn")
        hidden = F.gelu(self._conv(self._norm(x, f"{name}.ln2", 1e-5), f"{name}.mlp.0"))
        return x + self._conv(hidden, f"{name}.mlp.3") * after * self._scale(f"{name}.drop_path_mlp")

    def _scale(self, name: str) -> Tensor | float:
        scale = self.weights.get(f"{name}.scale")
        return 1.0 if scale is None else scale.flatten()[:, None]

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        out, size, reach = (
            torch.zeros_like(v),
            len(q) // self.heads,
            len(mask) if self.window is None else self.window // 2,
        )
        for head in range(self.heads):
            part = slice(head * size, (head + 1) * size)
            for t in mask.nonzero().flatten().tolist():
                near = slice(max(0, t - reach), t + reach + 1)
                scores = q[part, t] @ k[part, near] / size**0.5
                weights = scores.masked_fill(~mask[near], -torch.inf).softmax(0)
                out[part, t] = v[part, near] @ weights
        return out

    def _tower(self, x: Tensor, mask: Tensor, head: str, output: str) -> Tensor:
        for number in range(self._count(rf"{head}\.head\.(\d+)\.")):
            x = self._conv_norm_relu(x, mask, f"{head}.head.{number}.conv", f"{head}.norm.{number}")
        return self._conv(x, output) * mask
