"""AdaTAD's backbone in BiTAD and in OpenTAD, on this machine: a forward pass over one window, and a training step.

    git clone https://github.com/sming256/OpenTAD
    python benchmarks/beside_opentad.py OpenTAD [--threads 2] [--rounds 2] [--json FILE] [--quick]

Imports OpenTAD's transformer with adapters from the clone, with PyTorch layers in place of those of mmcv, mmengine and
mmaction. Pixels are normalised and cut into clips before the blocks, tokens are averaged and interpolated after them,
as in its configuration of AdaTAD on THUMOS14. Both have the same weights, and must give the same features. A step is
the forward and the backward pass of the adapters, with activation checkpointing, without optimizer and average.

Each runs in its own processes, alternating, so that other load on the machine affects both equally; the fastest round
counts.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
import types
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from measuring import Alone, FailedError, Measured, alone, machine, parser_of, seconds, timed
from torch import Tensor, nn

from bitad.config.names import SIZES, Checkpointing
from bitad.models.backbone import PIXEL_MEAN, PIXEL_STD, VideoBackbone
from bitad.models.vit import TemporalAdapter, VisionTransformer, is_adapter, sinusoid_table
from bitad.reports.tables import Cell, Table
from bitad.runtime.environment import set_up_process
from bitad.runtime.files import write_json
from bitad.runtime.progress import Meter
from bitad.weights.loading import Weights, load_weights

THEIRS = "OpenTAD"
WHOSE: dict[str, tuple[str, ...]] = {
    "forward": (THEIRS, "blocks"),
    "training step": (THEIRS, "blocks", "selective"),
}
FILE = Path("opentad/models/backbones/vit_adapter.py")
PIXELS = 160
DROP_PATH = 0.1  # of its configuration; BiTAD's drops none in frozen layers
COLUMNS = ("work", "whose", "CPU", "of OpenTAD's", "clock", "of OpenTAD's", "peak MiB", "of OpenTAD's")


class Theirs(nn.Module):
    """OpenTAD's transformer, with the layers before and after it."""

    def __init__(self, clone: Path, size: str, frames: int, *, drop_path: float) -> None:
        super().__init__()
        vit = SIZES[size]
        with contextlib.redirect_stdout(io.StringIO()):
            self.vit = _their_class(clone)(
                embed_dims=vit.dim,
                depth=vit.depth,
                num_heads=vit.heads,
                mlp_ratio=vit.mlp_dim / vit.dim,
                drop_path_rate=drop_path,
                return_feat_map=True,
                with_cp=True,
                total_frames=frames,
                adapter_index=list(range(vit.depth)),
            )
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1, 1))
        self.register_buffer("std", torch.tensor(PIXEL_STD).view(3, 1, 1, 1))

    def forward(self, frames: Tensor) -> Tensor:  # [1, T, H, W, 3] -> [1, C, T]
        video = (frames.permute(0, 4, 1, 2, 3).contiguous() - self.get_buffer("mean")) / self.get_buffer("std")
        clips = video.unflatten(2, (-1, 16)).transpose(1, 2).flatten(0, 1)
        features = self.vit(clips).mean((-1, -2))  # [clips, C, t]
        return F.interpolate(features.transpose(0, 1).flatten(1)[None], size=frames.shape[1], mode="linear")


def ours(size: str, checkpointing: Checkpointing) -> VideoBackbone:
    vit = SIZES[size]
    backbone = VideoBackbone(
        VisionTransformer(
            dim=vit.dim,
            depth=vit.depth,
            heads=vit.heads,
            mlp_dim=vit.mlp_dim,
            adapters=[TemporalAdapter(vit.dim) for _ in range(vit.depth)],
            checkpointing=checkpointing,
        )
    )
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(is_adapter(name))
    return backbone


def work(clone: str, threads: int, *, what: str, whose: str, size: str, frames: int) -> Measured:
    """A forward pass or a training step of one of the backbones on one window, after a warm-up."""
    network: nn.Module
    if whose == THEIRS:
        torch.set_num_threads(threads)
        network = Theirs(Path(clone), size, frames, drop_path=DROP_PATH)
    else:
        set_up_process(threads)
        network = ours(size, cast(Checkpointing, whose))
    window = torch.randint(256, (1, frames, PIXELS, PIXELS, 3), dtype=torch.uint8)

    def step() -> None:
        network(window).square().mean().backward()

    run = step
    if what == "forward":
        network.eval()
        run = partial(torch.inference_mode()(network), window)
    run()
    return Measured(timed(run), frames, "frames")


def agreement(clone: str, *, size: str) -> Measured:
    """The difference between the features of both, with OpenTAD's initial weights but random adapters."""
    torch.manual_seed(0)
    theirs, mine = Theirs(Path(clone), size, 32, drop_path=0).eval(), ours(size, "none").eval()
    for name, parameter in theirs.named_parameters():
        if "adapter" in name:
            nn.init.normal_(parameter, std=0.05)
    load_weights(mine.vit, Weights.of(theirs.vit.state_dict()).tensors, source="OpenTAD")
    window = torch.randint(256, (1, 32, PIXELS, PIXELS, 3), dtype=torch.uint8)
    with torch.inference_mode():
        wanted = theirs(window)
        took = timed(lambda: mine(window))
        apart = float((mine(window) - wanted).abs().max() / wanted.abs().max())
    return Measured(took, 32, "frames", facts={"apart": apart})


def _their_class(clone: Path) -> Any:
    """OpenTAD's transformer with adapters.

    Raises:
        FileNotFoundError: its file does not exist.
    """
    for name, content in _stand_ins().items():
        sys.modules[name] = module = types.ModuleType(name)
        vars(module).update(content)
    spec = importlib.util.spec_from_file_location("vit_adapter", clone / FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.VisionTransformerAdapter


def _stand_ins() -> dict[str, dict[str, Any]]:
    """The file's imports from other projects, as far as AdaTAD uses them."""

    class Module(nn.Module):
        def __init__(self, init_cfg: object = None) -> None:
            super().__init__()

    class Registry:
        def register_module(self) -> Any:
            return lambda registered: registered

    class PatchEmbed(Module):
        def __init__(self, in_channels: int, embed_dims: int, kernel_size: Any, stride: Any, **_: object) -> None:
            super().__init__()
            self.projection = nn.Conv3d(in_channels, embed_dims, kernel_size, stride)

        def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
            x = self.projection(x)
            return x.flatten(2).transpose(1, 2), tuple(x.shape[2:])

    class FeedForward(Module):
        def __init__(self, embed_dims: int, feedforward_channels: int, **_: object) -> None:
            super().__init__()
            widen = nn.Sequential(nn.Linear(embed_dims, int(feedforward_channels)), nn.GELU(), nn.Dropout(0.0))
            self.layers = nn.Sequential(widen, nn.Linear(int(feedforward_channels), embed_dims), nn.Dropout(0.0))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layers(x)
            return out

    class DropPath(nn.Module):
        def __init__(self, probability: float) -> None:
            super().__init__()
            self.keep = 1 - probability

        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                return x
            return x / self.keep * torch.bernoulli(x.new_full((len(x), 1, 1), self.keep))

    def constant(module: Any, value: float, bias: float = 0.0) -> None:
        nn.init.constant_(module.weight, value)
        nn.init.constant_(module.bias, bias)

    def truncated_normal(module: Any, std: float = 1.0, bias: float = 0.0) -> None:
        nn.init.trunc_normal_(module.weight, std=std)
        nn.init.constant_(module.bias, bias)

    def norm(config: dict[str, Any], dim: int) -> tuple[str, nn.Module]:
        return "norm", nn.LayerNorm(dim, eps=config["eps"])

    return {
        "mmcv": {},
        "mmcv.cnn": {"build_norm_layer": norm},
        "mmcv.cnn.bricks": {"DropPath": DropPath},
        "mmcv.cnn.bricks.transformer": {"FFN": FeedForward, "PatchEmbed": PatchEmbed},
        "mmengine": {},
        "mmengine.registry": {"MODELS": Registry()},
        "mmengine.model": {"BaseModule": Module, "ModuleList": type("ModuleList", (nn.ModuleList,), {})},
        "mmengine.model.weight_init": {"constant_init": constant, "trunc_normal_init": truncated_normal},
        "mmaction": {},
        "mmaction.utils": {"ConfigType": dict, "OptConfigType": dict},
        "mmaction.models": {},
        "mmaction.models.backbones": {},
        "mmaction.models.backbones.vit_mae": {"get_sinusoid_encoding": sinusoid_table},
    }


def table_of(best: dict[tuple[str, str], Alone], *, notes: Sequence[str]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for (what, whose), done in best.items():
        took, theirs = done.measured.took, best[what, THEIRS]
        reference = theirs.measured.took
        rows.append(
            (
                what,
                THEIRS if whose == THEIRS else f"bitad, {whose}",
                seconds(took.cpu_s),
                took.cpu_s / reference.cpu_s,
                seconds(took.wall_s),
                took.wall_s / reference.wall_s,
                round(done.peak_mib),
                done.peak_mib / theirs.peak_mib,
            )
        )
    return Table("AdaTAD's backbone in OpenTAD and in BiTAD", COLUMNS, tuple(rows), tuple(notes))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of(__doc__)
    parser.add_argument("clone", type=Path, help="of OpenTAD")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args(arguments)
    if not (options.clone / FILE).exists():
        print(f"error: {options.clone} is not a clone of OpenTAD: it has no {FILE}", file=sys.stderr)
        return 1
    size, frames = ("tiny", 32) if options.quick else ("s", 768)
    given = {"clone": str(options.clone.resolve()), "size": size}
    best: dict[tuple[str, str], Alone] = {}
    turns = [(what, whose) for _ in range(options.rounds) for what, every in WHOSE.items() for whose in every]
    try:
        apart = alone(agreement, given, threads=options.threads).measured.facts["apart"]
        if apart > 1e-4:
            raise FailedError(f"the features differ by {apart:.1e}, so the costs cannot be compared")
        with Meter("measuring", len(turns)) as meter:
            for what, whose in turns:
                more = {"threads": options.threads, "frames": frames, "what": what, "whose": whose}
                done = alone(work, {**given, **more}, threads=options.threads)
                least = best.setdefault((what, whose), done)
                if done.measured.took.cpu_s < least.measured.took.cpu_s:
                    best[what, whose] = done
                meter.advance(1, f"{what}, {whose}")
    except FailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    notes = (
        f"VideoMAE-{size.upper()} with adapters, a window of {frames} frames of {PIXELS}x{PIXELS}, fp32; the same "
        f"weights give features that differ by {apart:.0e}, relative to the largest. OpenTAD recomputes its blocks.",
        f"{machine()}, {options.threads} threads; the best of {options.rounds} in turns. In the peak: Python, PyTorch.",
    )
    table = table_of(best, notes=notes)
    print(table.text())
    if options.json is not None:
        figures = {
            f"{what}, {whose}": {**one.measured.took._asdict(), "peak_mib": one.peak_mib}
            for (what, whose), one in best.items()
        }
        write_json({"apart": apart, "measured": figures}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
