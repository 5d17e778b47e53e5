"""Adapters beside the frozen transformer: a step without gradients through its blocks, in every experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from builders import CLASSES, PIXELS, config_of, video_data
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import ALONE, assert_same_run, baseline, both_baselines
from torch import Tensor, nn

from bitad.cli import main
from bitad.config.names import EXPERIMENTS
from bitad.inference.whole_video import FeatureStream
from bitad.models.alignment import TubeletAlignment, joint_forward
from bitad.models.backbone import VideoBackbone
from bitad.models.build import build_network, checkpointing_of
from bitad.models.network import Detector, Pair
from bitad.models.vit import Block, CrossAdapter, TemporalAdapter, TokenGrid, VisionTransformer, is_adapter
from bitad.models.vjepa2 import VJepa2Transformer
from bitad.training.step_cost import policies
from bitad.training.trainer import Trainer
from bitad.weights.checkpoint import load_checkpoint
from bitad.weights.loading import load_weights

pytestmark = pytest.mark.usefixtures("one_thread")

BESIDE = "model.backbone.adapter_placement=beside"
DIM, DEPTH = 16, 3
GRID = TokenGrid(clips=3, time=2, height=2, width=1)
BOTH = pytest.mark.parametrize("transformer", [VisionTransformer, VJepa2Transformer])


def adapters(there: Sequence[bool] = (True,) * DEPTH, *, kernel: int = 3) -> list[TemporalAdapter | None]:
    return [TemporalAdapter(DIM, kernel_size=kernel, placement="beside") if one else None for one in there]


def backbone(
    transformer: type[VisionTransformer] = VisionTransformer,
    *,
    first: Sequence[TemporalAdapter | None] | None = None,
    second: Sequence[TemporalAdapter | None] | None = None,
    frames_per_step: int = 1,
    seed: int = 0,
) -> VideoBackbone:
    """In double precision, with random blocks and new adapters, of which no parameter is frozen."""
    torch.manual_seed(seed)
    vit = transformer(
        dim=DIM, depth=DEPTH, heads=2, mlp_dim=32, patch_size=4, image_size=8,
        adapters=first, bi_adapters=second, placement="beside" if first or second else "inside",
    )  # fmt: skip
    for name, parameter in vit.named_parameters():
        if not is_adapter(name):
            nn.init.normal_(parameter, std=0.3)
    return VideoBackbone(vit, frames_per_step=frames_per_step).double().eval()


def learned(module: nn.Module, seed: int = 1) -> None:
    """Adapters none of whose values are as at the beginning."""
    torch.manual_seed(seed)
    for name, parameter in module.named_parameters():
        if is_adapter(f"cross_adapters.{name}" if isinstance(module, nn.ModuleList) else name):
            nn.init.normal_(parameter, std=0.3)


def frames(windows: int = 2, count: int = 32, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (windows, count, 8, 8, 3), dtype=torch.uint8, generator=generator)


def one_step_at_a_time(adapter: TemporalAdapter, hidden: Tensor) -> Tensor:
    """The adapter's output by its formula: hidden ``[B, time of the window, places, C']`` -> ``[B, time, C]``."""
    h = hidden.mean(2)
    kernel = adapter.depthwise.weight[:, 0, :, 0]  # [C', k]
    reach = kernel.shape[1] // 2
    steps = []
    for now in range(h.shape[1]):
        context = adapter.depthwise.bias.expand(len(h), -1)
        for tap in range(kernel.shape[1]):
            if 0 <= now + tap - reach < h.shape[1]:
                context = context + kernel[:, tap] * h[:, now + tap - reach]
        steps.append(adapter.up(h[:, now] + adapter.pointwise(context)))
    return torch.stack(steps, 1)


def reference(backbone: VideoBackbone, views: Tensor) -> Tensor:
    """The slow obvious way: autograd keeps everything, also of the blocks."""
    x, grid = backbone.begin(views)
    side: Tensor | None = None
    for block in backbone.vit.blocks:
        assert isinstance(block, Block)
        x = block(x)
        for adapter in block.adapters:
            # All clips of a window, one after the other.
            hidden = F.gelu(adapter.down(x)).reshape(len(views), grid.clips * grid.time, -1, DIM // 4)
            added = one_step_at_a_time(adapter, hidden)
            side = added if side is None else side + added
    means = backbone.vit.finish(x).reshape(len(views), grid.clips * grid.time, -1, DIM).mean(2)
    assert side is not None
    tokens = (means + side).reshape(-1, grid.time, 1, 1, DIM)
    return backbone.features(tokens, grid.clips)


def test_it_reads_averages_and_convolves_over_the_time_of_a_window() -> None:
    adapter = TemporalAdapter(8, reduction=2, kernel_size=5, placement="beside")
    torch.manual_seed(0)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    tokens = torch.randn(6, 4, 8)  # two windows of three clips
    found = adapter.mix(adapter.pool(tokens, GRID), GRID)
    hidden = F.gelu(adapter.down(tokens)).reshape(2, 6, 2, 4)
    torch.testing.assert_close(found, one_step_at_a_time(adapter, hidden).reshape(6, 2, 8))


@BOTH
def test_a_new_one_gives_the_features_of_the_plain_transformer_to_the_bit(
    transformer: type[VisionTransformer],
) -> None:
    plain, beside = backbone(transformer), backbone(transformer, first=adapters(), second=adapters())
    beside.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(beside(frames()), plain(frames()))


@BOTH
def test_gradients_are_those_of_autograd_and_reach_no_block(transformer: type[VisionTransformer]) -> None:
    network = backbone(transformer, first=adapters(), second=adapters((False, True, True)))
    learned(network)
    expected = reference(network, frames())
    expected.square().sum().backward()
    wanted = {name: p.grad for name, p in network.named_parameters() if is_adapter(name)}
    network.zero_grad()
    found = network(frames())
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    for name, parameter in network.named_parameters():
        if is_adapter(name):
            torch.testing.assert_close(parameter.grad, wanted[name])
        else:
            assert parameter.grad is None
    assert all(gradient is not None for gradient in wanted.values())


def test_a_few_clips_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    network, results = backbone(first=adapters()), []
    learned(network)
    for chunk_bytes in (None, 1):
        monkeypatch.setattr(Block, "chunk_bytes", chunk_bytes)
        network.zero_grad()
        out = network(frames(count=64))
        out.square().sum().backward()
        results.append((out.detach(), *(p.grad for p in network.parameters() if p.grad is not None)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_autograd_keeps_tokens_and_what_adapters_make_of_them() -> None:
    network = backbone(first=adapters())
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(is_adapter(name))
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    views = frames(1, 64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(views).sum().backward()
    tokens = 64 // 2 * 4 * DIM * 8  # bytes
    assert sum(kept.values()) < DEPTH * tokens * (1 + 1 / 4 + 0.6)


def test_a_long_video_in_pieces_has_the_features_of_one_window() -> None:
    @given(data=st.data())
    @settings(deadline=None, max_examples=20)
    @torch.inference_mode()
    def check(data: st.DataObject) -> None:
        flags = st.lists(st.booleans(), min_size=DEPTH, max_size=DEPTH)
        kernel = data.draw(st.sampled_from((3, 19)))
        network = backbone(
            data.draw(st.sampled_from((VisionTransformer, VJepa2Transformer))),
            first=adapters(data.draw(flags), kernel=kernel),
            second=adapters(data.draw(flags), kernel=kernel),
            frames_per_step=data.draw(st.sampled_from((1, 2, 4))),
        )
        learned(network)
        count = data.draw(st.integers(1, 100))
        length = -(-count // 16) * 16 + 16 * data.draw(st.integers(0, 2))
        cuts = data.draw(st.lists(st.integers(1, count), max_size=4))
        reverse = data.draw(st.booleans())
        video = frames(1, count, seed=count)[0]
        stream = FeatureStream(network, frames=count, length=length, reverse=reverse)
        for first, stop in zip([0, *sorted(cuts)], [*sorted(cuts), count], strict=True):
            if stop > first:
                stream.push(video[first:stop])
        view = video.flip(0) if reverse else video
        window = torch.cat((view, view[-1:].expand(length - count, -1, -1, -1)))
        torch.testing.assert_close(stream.finish(), network(window[None])[0])

    check()


# Two networks.


def cross_adapters(seed: int) -> nn.ModuleList:
    torch.manual_seed(seed)
    return nn.ModuleList(CrossAdapter(DIM, placement="beside") for _ in range(DEPTH)).double()


MASK = torch.arange(32) < torch.tensor([32, 21])[:, None]


def test_new_cross_adapters_change_nothing_to_the_bit() -> None:
    one, two = backbone(first=adapters()), backbone(first=adapters(), seed=3)
    views = frames(), frames(seed=4)
    for network in (one, two):
        learned(network)
    with torch.no_grad():
        found = joint_forward(one, two, views, MASK, (cross_adapters(5), cross_adapters(6)), mirrored=True)
        assert torch.equal(found[0], one(views[0]))
        assert torch.equal(found[1], two(views[1]))


@pytest.mark.parametrize("mirrored", [True, False])
def test_cross_adapters_have_the_gradients_of_autograd(mirrored: bool) -> None:
    one, two = backbone(first=adapters()), backbone(first=adapters(), seed=3)
    views, crossing = (frames(), frames(seed=4)), (cross_adapters(5), cross_adapters(6))
    for module in (one, two, *crossing):
        learned(module)
    meeting = TubeletAlignment.of(MASK, 2, mirrored=mirrored)
    outputs = []
    for network in (one, two):  # of every block, kept by autograd
        x, grid = network.begin(views[len(outputs)])
        of_blocks = []
        for block in network.vit.blocks:
            of_blocks.append(x := block(x))
        outputs.append(of_blocks)
    wanted = []
    for side, (network, cross) in enumerate(zip((one, two), crossing, strict=True)):
        expected = reference(network, views[side])
        for adapter, own, other in zip(cross, outputs[side], outputs[1 - side], strict=True):
            hidden = F.gelu(adapter.down(own) + adapter.down_other(meeting.tokens(other)))
            added = one_step_at_a_time(adapter, hidden.reshape(2, 16, -1, DIM // 4))
            expected = expected + network.features(added.reshape(-1, 8, 1, 1, DIM), grid.clips)
        wanted.append(expected)
    modules = nn.ModuleList((one, two, *crossing))
    sum(part.square().sum() for part in wanted).backward()
    kept = {name: p.grad for name, p in modules.named_parameters()}
    modules.zero_grad()
    found = joint_forward(one, two, views, MASK, crossing, mirrored=mirrored)
    torch.testing.assert_close(found, tuple(wanted))
    (found[0].square().sum() + found[1].square().sum()).backward()
    for name, parameter in modules.named_parameters():
        if ".vit." in name and not is_adapter(name):
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, kept[name])


# Configurations, experiments and files.


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video_data(tmp_path_factory.mktemp("videos") / "data")


@pytest.fixture(scope="module")
def init(videos: Path) -> tuple[str, str]:
    return both_baselines(videos, BESIDE)


def overrides(experiment: str, init: tuple[str, str]) -> tuple[str, ...]:
    design = EXPERIMENTS[experiment]
    starts: tuple[str, ...] = init if design.starts_from == "baselines" else ()
    if design.teacher:
        starts = (init[0].replace("init.forward", "init.teacher"),)
    return (BESIDE, f"experiment={experiment}", *starts)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_what_trains_is_what_trains_inside_but_for_the_scale(
    videos: Path, init: tuple[str, str], experiment: str
) -> None:
    there, inside = (
        build_network(config_of(videos, *overrides(experiment, init), *more), len(CLASSES))
        for more in ((), (BESIDE.replace("beside", "inside"),))
    )
    trained, wanted = (
        {name for name, parameter in network.named_parameters() if parameter.requires_grad}
        for network in (there, inside)
    )
    assert trained == {name for name in wanted if not name.endswith(".gamma")}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_trains_is_resumed_to_the_bit_and_tested(
    videos: Path, init: tuple[str, str], experiment: str, tmp_path: Path
) -> None:
    quick = ("training.epochs=2", "training.evaluate_from=2")
    runs = []
    for name in ("whole", "parts"):
        config = config_of(videos, *overrides(experiment, init), *quick, f"output={tmp_path / name}")
        if name == "parts":
            Trainer(config, ALONE).run(until=1)
        Trainer(config, ALONE, resume=name == "parts").run()
        runs.append(config.run_directory)
    assert_same_run(*runs)
    assert main(["test", str(runs[0]), "--device", "cpu"]) == 0
    weights = load_checkpoint(runs[0]).model
    learnt = [weight for name, weight in weights.items() if name.endswith(".up.weight") and is_adapter(name)]
    assert learnt
    assert all(weight.abs().sum() > 0 for weight in learnt)


@pytest.mark.parametrize("experiment", ["2", "2x"])
def test_what_an_experiment_adds_changes_nothing_at_first(
    videos: Path, init: tuple[str, str], experiment: str
) -> None:
    single = build_network(config_of(videos, BESIDE), len(CLASSES)).eval()
    pair = build_network(config_of(videos, *overrides(experiment, init)), len(CLASSES)).eval()
    assert isinstance(single, Detector)
    assert isinstance(pair, Pair)
    learned(single)
    for side in pair.sides:
        load_weights(side.network, single.state_dict(), source="a baseline", may_lack=r"\.bi_adapter\.")
    view = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 32, PIXELS, PIXELS, 3), dtype=np.uint8))
    mask = torch.ones(1, 32, dtype=torch.bool)
    with torch.no_grad():
        (alone,) = single([view], mask).predictions
        for prediction in pair([view, view], mask).own:
            assert torch.equal(prediction.logits, alone.logits)


def test_nothing_is_recomputed(videos: Path) -> None:
    for more in ("experiment=1s", "model.backbone.checkpointing=blocks"):
        config = config_of(videos, BESIDE, more)
        assert checkpointing_of(config) == "none"
        assert policies(config) == ["none"]


def test_weights_of_the_other_placement_are_refused_in_one_line(videos: Path) -> None:
    inside, beside = (
        build_network(config_of(videos, f"model.backbone.adapter_placement={one}"), len(CLASSES))
        for one in ("inside", "beside")
    )
    key = r"model\.backbone\.adapter_placement is"
    with pytest.raises(
        ValueError, match=f"^weights of x.pth do not fit.*{key} inside in the file, beside in the c"
    ):
        load_weights(beside, inside.state_dict(), source="x.pth")
    with pytest.raises(ValueError, match=f"{key} beside in the file, inside in the configuration"):
        load_weights(inside, beside.state_dict(), source="x.pth")


def test_a_baseline_of_the_other_placement_is_refused(
    videos: Path, init: tuple[str, str], refused: object, tmp_path: Path
) -> None:
    inside = baseline(videos, f"output={tmp_path}")
    arguments = ["train", str(videos), "experiment=1-1", f"init.forward={inside}", init[1], BESIDE]
    assert callable(refused)
    message = refused(*arguments, f"output={tmp_path / 'pair'}", "--device", "cpu")
    assert "model.backbone.adapter_placement is inside there and beside here" in message
