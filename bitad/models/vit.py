"""VideoMAE's vision transformer (Tong et al. 2022, arXiv:2203.12602) with the temporal adapters of AdaTAD (Liu et al.
2024, arXiv:2311.17241), cross adapters between two networks, and activation checkpointing.

The transformer encodes each clip of 16 frames alone. Adapters, at most two after each block, mix tokens over the time
of the window. The output is not normalised (the ``fc_norm`` of published files belongs to their classifier), and the
bias of the ``qkv`` projection is (q, 0, v), as in BEiT.

Adapters may also be beside the blocks, as in the lighter variant of AdaTAD and in LoSA (Gupta et al. 2024,
arXiv:2404.01282): they read the output of their block, and their outputs are added to the features. The blocks then
run without gradients.

:func:`run_checkpointed` runs the adapters of one block and the next block, and keeps only their input. The backward
pass recomputes the adapters first, then the block a few clips at a time (:func:`run_in_chunks`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts, noop_context_fn

from bitad.config.names import AdapterPlacement, Checkpointing
from bitad.runtime.environment import give_back_holes

Result = TypeVar("Result")

_aten = torch.ops.aten
# `selective` keeps the output of attention: expensive to recompute, and no larger than its input.
_ATTENTION = [
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
]
# Attributes that hold adapters: the first and the second after a block, and those between two networks.
_ADAPTERS = frozenset({"adapter", "bi_adapter", "cross_adapters"})
# Whether this thread recomputes a function of `run_checkpointed`, without use for its output.
_is_recomputing: ContextVar[bool] = ContextVar("is_recomputing", default=False)


@contextmanager
def _recomputing() -> Iterator[None]:
    token = _is_recomputing.set(True)
    try:
        yield
    finally:
        _is_recomputing.reset(token)


def run_checkpointed(function: Callable[..., Result], *inputs: object, checkpointing: Checkpointing) -> Result:
    """``function(*inputs)``; with checkpointing, the backward pass recomputes its activations."""
    if checkpointing == "none" or not torch.is_grad_enabled():
        return function(*inputs)
    result: Result = checkpoint(
        function, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _recomputing())
    )
    return result


def run_in_chunks(module: nn.Module, x: Tensor, size: int, *, checkpointing: Checkpointing) -> Tensor:
    """``module`` on ``size`` independent rows at a time, at the end of a function of :func:`run_checkpointed`.

    Without gradients it is called as ``module(rows, out=tensor)``, and writes its output there.
    """
    chunks = x.split(size)
    if not torch.is_grad_enabled():
        out = torch.empty_like(x)
        for chunk, place in zip(chunks, out.split(size), strict=True):
            module(chunk, out=place)
        return out
    if checkpointing == "none":
        return _joined([module(chunk) for chunk in chunks])
    # The outer recomputation needs only the chunks; their own checkpoints recompute what is inside.
    run = nn.Identity() if _is_recomputing.get() else module
    contexts = noop_context_fn
    if checkpointing == "selective":
        contexts = partial(create_selective_checkpoint_contexts, _ATTENTION)
    return _joined([checkpoint(run, chunk, use_reentrant=False, context_fn=contexts) for chunk in chunks])


def _joined(chunks: list[Tensor]) -> Tensor:
    return chunks[0] if len(chunks) == 1 else torch.cat(chunks)  # which would copy a single one


class TokenGrid(NamedTuple):
    """A window's tokens: ``clips`` clips of ``time`` x ``height`` x ``width``."""

    clips: int
    time: int
    height: int
    width: int


def pool_tokens(tokens: Tensor, grid: TokenGrid) -> Tensor:
    """Tokens ``[n, t*h*w, C]`` -> their averages over space, ``[n, t, C]``."""
    return tokens.unflatten(1, (grid.time, grid.height, grid.width)).mean((2, 3))


def add_adapters(
    features: Tensor, adapters: Iterable[TemporalAdapter], pooled: Iterable[Tensor], grid: TokenGrid
) -> Tensor:
    """Adds the outputs of adapters beside the blocks.

    Args:
        features: averages of tokens over space, ``[B * clips, t, C]``.
        pooled: for each adapter, its part of the blocks' outputs (:meth:`TemporalAdapter.pool`).

    Returns:
        tokens ``[B * clips, t, 1, 1, C]``.
    """
    features = features.to(torch.promote_types(features.dtype, torch.float32))  # a sum of many small numbers
    for adapter, part in zip(adapters, pooled, strict=True):
        features = features + adapter.mix(part, grid)
    return features[:, :, None, None]


def sinusoid_table(positions: int, dim: int) -> Tensor:
    """Sines on even channels, cosines on odd, ``[1, positions, dim]`` (Vaswani et al. 2017)."""
    channel = torch.arange(dim, dtype=torch.float64)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] / 10000 ** (2 * (channel // 2) / dim)
    table = torch.where(torch.arange(dim) % 2 == 0, angle.sin(), angle.cos())
    return table.float()[None]


def is_adapter(name: str) -> bool:
    """Whether the parameter with this dotted name belongs to an adapter."""
    return not _ADAPTERS.isdisjoint(name.split("."))


class TemporalAdapter(nn.Module):
    """Mixes each token with its neighbours in time, across the clips of a window.

    ``x + gamma * up(h + pointwise(depthwise(h)))`` with ``h = gelu(down(x))``; a new adapter changes nothing.

    Beside the blocks, it gives ``up(h + pointwise(depthwise(h)))`` with ``h`` averaged over space (:meth:`pool`,
    :meth:`mix`).

    Args:
        dim: C, width of the tokens.
        reduction: the adapter works in C' = ``dim // reduction`` channels.
        kernel_size: of the temporal convolution, in tubelets; odd.
        placement: inside the transformer, or beside it.
    """

    down_other: nn.Linear  # of cross adapters alone

    def __init__(
        self, dim: int, *, reduction: int = 4, kernel_size: int = 3, placement: AdapterPlacement = "inside"
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"adapter kernel {kernel_size} has no middle; use an odd size")
        hidden = dim // reduction
        self.down = nn.Linear(dim, hidden)
        # In 2-D, it reads tokens in their memory layout: 10-20x faster on a CPU than 1-D.
        self.depthwise = nn.Conv2d(hidden, hidden, (kernel_size, 1), padding=(kernel_size // 2, 0), groups=hidden)
        self.pointwise = nn.Linear(hidden, hidden)
        self.up = nn.Linear(hidden, dim)
        # AdaTAD's scale. Its name in a file of weights tells that the adapters are inside.
        self.gamma = nn.Parameter(self.up.weight.new_ones(1)) if placement == "inside" else None
        nn.init.trunc_normal_(self.down.weight, std=0.02)
        nn.init.normal_(self.depthwise.weight, std=math.sqrt(2 / kernel_size))
        nn.init.normal_(self.pointwise.weight, std=math.sqrt(2 / hidden))
        for layer in (self.down, self.depthwise, self.pointwise, self.up):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor, grid: TokenGrid, other: Tensor | None = None) -> Tensor:
        """Tokens ``[B * clips, t*h*w, C]`` -> the same shape; ``other``: see :class:`CrossAdapter`."""
        return x + self._change(self._hidden(x, other), grid)

    def pool(self, x: Tensor, grid: TokenGrid, other: Tensor | None = None) -> Tensor:
        """Tokens ``[n, t*h*w, C]`` of clips -> what :meth:`mix` takes, ``[n, t, C']``; no gradient to the tokens."""
        if other is not None:
            other = other.detach()
        return pool_tokens(self._hidden(x.detach(), other), grid)

    def mix(self, pooled: Tensor, grid: TokenGrid) -> Tensor:
        """Of all clips of windows ``[B * clips, t, C']`` -> what is added to the features, ``[B * clips, t, C]``."""
        return self._change(pooled, grid._replace(height=1, width=1))

    def _hidden(self, x: Tensor, other: Tensor | None) -> Tensor:
        narrow = self.down(x)
        if other is not None:
            narrow = narrow + self.down_other(other)
        return F.gelu(narrow)

    def _change(self, hidden: Tensor, grid: TokenGrid) -> Tensor:
        # [B, C', time of the window, places]
        h = hidden.reshape(-1, grid.clips * grid.time, grid.height * grid.width, hidden.shape[-1]).permute(
            0, 3, 1, 2
        )
        context = self.pointwise(self.depthwise(h).permute(0, 2, 3, 1)).reshape(hidden.shape)
        if self.gamma is None:
            return self.up(hidden + context)
        # Gamma scales the weights: autograd would keep their larger output.
        return F.linear(hidden + context, self.up.weight * self.gamma, self.up.bias * self.gamma)


class CrossAdapter(TemporalAdapter):
    """A temporal adapter that also takes the other network's tokens: ``h = gelu(down(x) + down_other(other))``.

    Where these are 0, it is a temporal adapter.
    """

    def __init__(
        self, dim: int, *, reduction: int = 4, kernel_size: int = 3, placement: AdapterPlacement = "inside"
    ) -> None:
        super().__init__(dim, reduction=reduction, kernel_size=kernel_size, placement=placement)
        self.down_other = nn.Linear(dim, dim // reduction, bias=False)
        nn.init.trunc_normal_(self.down_other.weight, std=0.02)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): drops a residual branch for samples."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        keep = 1 - self.probability
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * mask / keep


class Attention(nn.Module):
    """Multi-head self-attention over the tokens of one clip."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:  # [B, N, C] -> [B, N, C]
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, bias)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, N, C / heads]
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """One pre-norm transformer block, and the adapters that follow it."""

    # The widest layer's output for a chunk of clips on a CPU stays in the caches. None: all clips.
    chunk_bytes: int | None = 20 * 2**20
    held: torch.dtype | None = (
        None  # the precision of :meth:`hold`; None: autocast's, from single-precision weights
    )

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_dim: int,
        *,
        drop_path: float,
        adapter: nn.Module | None = None,
        bi_adapter: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.mlp_dim = mlp_dim
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn: nn.Module = Attention(dim, heads)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_dim), nn.GELU(), nn.Linear(mlp_dim, dim))
        self.adapter = adapter
        self.bi_adapter = bi_adapter

    def frozen(self) -> list[nn.Parameter]:
        """The parameters of the pre-trained block, without its adapters."""
        return [parameter for name, parameter in self.named_parameters() if not is_adapter(name)]

    def hold(self, dtype: torch.dtype) -> None:
        """Holds the pre-trained block in a precision, and computes in it; the adapters stay as they are."""
        for parameter in self.frozen():
            parameter.data = parameter.data.to(dtype)
        self.held = dtype

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """The block without its adapters: tokens ``[n, t*h*w, C]`` -> the same shape, in ``out`` if given."""
        if self.held is None:
            return self._forward(x, out)
        # Autocast would cast to and from single precision around the norms.
        with torch.autocast(x.device.type, enabled=False):
            return self._forward(x, out)

    def _forward(self, x: Tensor, out: Tensor | None) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return torch.add(x, self.drop_path(self.mlp(self.norm2(x))), out=out)

    def run_chunks(self, x: Tensor, *, checkpointing: Checkpointing = "none") -> Tensor:
        """:meth:`forward`, on a CPU as many clips at a time as fit its caches."""
        if self.held is not None:
            x = x.to(self.held)
        size = len(x)
        if x.device.type == "cpu" and self.chunk_bytes is not None:
            give_back_holes()  # left by the block before
            widest = x.shape[1] * self.mlp_dim * x.element_size()  # of a clip
            size = max(1, self.chunk_bytes // widest)
        return run_in_chunks(self, x, size, checkpointing=checkpointing)

    @property
    def adapters(self) -> list[Any]:
        """The adapters that follow it, in their order."""
        return [adapter for adapter in (self.adapter, self.bi_adapter) if adapter is not None]

    def adapt(self, x: Tensor, grid: TokenGrid) -> Tensor:
        """The adapters: tokens ``[B * clips, t*h*w, C]`` -> the same shape."""
        for adapter in self.adapters:
            x = adapter(x, grid)
        return x

    def initialise(self) -> None:
        """Truncated normal of 0.02 for linear maps, as VideoMAE."""
        for module in (*self.attn.modules(), *self.mlp.modules()):
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


class VisionTransformer(nn.Module):
    """VideoMAE's encoder over the clips of windows.

    Args:
        dim, depth, heads, mlp_dim, patch_size: see :class:`VitSize`.
        image_size: pixels of the position table's square picture; for other sizes it is resized bicubically.
        clip_frames: frames of one clip; a multiple of ``tubelet``.
        tubelet: frames of one token.
        drop_path: rate of the last block; rises linearly from 0 at the first.
        adapters, bi_adapters: for each block a module or None, called as ``adapter(tokens, grid)`` after it.
        placement: of the adapters. ``"beside"``: the blocks run without gradients, and have nothing to recompute.
        checkpointing: the backward pass recomputes all but the blocks' inputs ("blocks"), or all but these and the
            outputs of attention ("selective").
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        patch_size: int = 16,
        image_size: int = 224,
        clip_frames: int = 16,
        tubelet: int = 2,
        drop_path: float = 0.0,
        adapters: Sequence[nn.Module | None] | None = None,
        bi_adapters: Sequence[nn.Module | None] | None = None,
        placement: AdapterPlacement = "inside",
        checkpointing: Checkpointing = "none",
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"width {dim} is not a multiple of its {heads} attention heads")
        self.dim, self.patch_size, self.tubelet, self.clip_frames = dim, patch_size, tubelet, clip_frames
        self.table_size = image_size // patch_size
        self.placement: AdapterPlacement = placement
        self.checkpointing: Checkpointing = checkpointing
        self.patch_embed = nn.Conv3d(3, dim, (tubelet, patch_size, patch_size), (tubelet, patch_size, patch_size))
        positions = clip_frames // tubelet * self.table_size**2
        self.register_buffer("pos_embed", sinusoid_table(positions, dim))
        rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        columns = zip(rates, adapters or [None] * depth, bi_adapters or [None] * depth, strict=True)
        blocks = [
            Block(dim, heads, mlp_dim, drop_path=rate, adapter=adapter, bi_adapter=bi_adapter)
            for rate, adapter, bi_adapter in columns
        ]
        for block in blocks:
            block.initialise()
        self.blocks = nn.ModuleList(blocks)

    def position_table(self, height: int, width: int) -> Tensor:
        """The position table ``[1, t*h*w, C]`` for pictures of ``height`` x ``width`` patches."""
        table: Tensor = self.get_buffer("pos_embed")
        if (height, width) == (self.table_size, self.table_size):
            return table
        table = table.unflatten(1, (-1, self.table_size, self.table_size))[0].permute(0, 3, 1, 2)  # [t, C, h0, w0]
        table = F.interpolate(table, size=(height, width), mode="bicubic", align_corners=False)
        return table.permute(0, 2, 3, 1).flatten(0, 2)[None]

    def embed(self, clips: Tensor, normalise: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Clips ``[B, 3, T, H, W]`` -> tokens ``[B, t, h, w, C]``; ignores pixels that fill no patch.

        Args:
            normalise: is applied to the patches ``[B, t, h, w, 3 * n]``, n values of each channel after another; None:
                the clips are normalised. Cutting bytes into patches and then normalising them is faster.
        """
        # One matrix product: faster on a CPU than conv3d.
        dt, p = self.tubelet, self.patch_size
        clips = clips[..., : clips.shape[3] // p * p, : clips.shape[4] // p * p]
        b, c, frames, height, width = clips.shape
        patches = clips.reshape(b, c, frames // dt, dt, height // p, p, width // p, p)
        patches = patches.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)  # [B, t, h, w, 3 * dt * p * p]
        if normalise is not None:
            patches = normalise(patches)
        return F.linear(patches, self.patch_embed.weight.flatten(1), self.patch_embed.bias)

    def begin(
        self, clips: Tensor, clips_per_window: int, normalise: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, TokenGrid]:
        """The input of the first block: tokens ``[B * clips_per_window, t*h*w, C]``, and their layout."""
        if clips.shape[2] != self.clip_frames or min(clips.shape[3:]) < self.patch_size:
            raise ValueError(
                f"clips of {clips.shape[2]} frames of {clips.shape[3]}x{clips.shape[4]} pixels; "
                f"the backbone takes {self.clip_frames} frames and sides of at least {self.patch_size} pixels"
            )
        tokens = self.embed(clips, normalise)
        _, time, height, width, _ = tokens.shape
        grid = TokenGrid(clips_per_window, time, height, width)
        return self.add_positions(tokens.flatten(1, 3), height, width), grid

    def add_positions(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Tokens ``[n, t*h*w, C]`` that know their positions."""
        return tokens + self.position_table(height, width)

    def forward(self, clips: Tensor, clips_per_window: int) -> Tensor:
        """Encodes clips.

        Args:
            clips: float ``[B * clips_per_window, 3, T, H, W]``, normalised, the clips of a window in order of time.
            clips_per_window: consecutive clips that the adapters see as one window.

        Returns:
            tokens ``[B * clips_per_window, t, h, w, C]``; with adapters beside the blocks, averages over space:
            h = w = 1.

        Raises:
            ValueError: the clips have another length, or are smaller than a patch.
        """
        return self.encode(*self.begin(clips, clips_per_window))

    def encode(self, x: Tensor, grid: TokenGrid) -> Tensor:
        """The blocks: the output of :meth:`begin` -> tokens as of :meth:`forward`."""
        if self.placement == "beside":
            features, *pooled = self.encode_beside(x, grid)
            return add_adapters(features, self.side_adapters, pooled, grid)
        for previous, block in pairwise((None, *self.blocks, None)):
            x = run_checkpointed(self._step, x, grid, previous, block, checkpointing=self.checkpointing)
        return self.finish(x).unflatten(1, (grid.time, grid.height, grid.width))

    @property
    def side_adapters(self) -> list[TemporalAdapter]:
        """The adapters beside the blocks, in their order; none if they are inside."""
        if self.placement == "inside":
            return []
        return [adapter for block in self.blocks if isinstance(block, Block) for adapter in block.adapters]

    def encode_beside(self, x: Tensor, grid: TokenGrid) -> list[Tensor]:
        """The part of :meth:`encode` that sees each clip alone.

        Returns:
            the averages of the output over space, ``[n, t, C]``; then, for each of :attr:`side_adapters`, its part of
            the block's output (:meth:`TemporalAdapter.pool`).
        """
        pooled: list[Tensor] = []
        for block in self.blocks:
            assert isinstance(block, Block)
            with torch.no_grad():
                x = block.run_chunks(x)
            pooled += [adapter.pool(x, grid) for adapter in block.adapters]
        with torch.no_grad():
            return [pool_tokens(self.finish(x), grid), *pooled]

    def finish(self, tokens: Tensor) -> Tensor:
        """The output from the last block's, of the same shape; here they are equal."""
        return tokens

    def _step(self, x: Tensor, grid: TokenGrid, previous: Block | None, block: Block | None) -> Tensor:
        """The adapters of the previous block, then the next block."""
        if previous is not None:
            x = previous.adapt(x, grid)
        return x if block is None else block.run_chunks(x, checkpointing=self.checkpointing)
