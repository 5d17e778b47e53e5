"""Frozen transformers that are held in the precision of the computation."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from builders import config_of, video_data
from runs import ALONE, both_baselines
from torch import Tensor

from bitad.config.names import Checkpointing, Precision
from bitad.config.schema import Config
from bitad.models.build import autocast, build_network, hold_frozen
from bitad.models.network import Network, Pair
from bitad.models.vit import Block, is_adapter
from bitad.training.trainer import Trainer
from bitad.weights.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
HALF: list[Precision] = ["bf16", "fp16"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video_data(tmp_path_factory.mktemp("data"))


def features_of(network: Network, config: Config, precision: Precision) -> Tensor:
    assert config.model.backbone is not None
    pixels = config.model.backbone.pixels
    frames = config.window.steps * config.window.frames_per_step
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(256, (1, frames, pixels, pixels, 3), dtype=torch.uint8, generator=generator)
    with torch.no_grad(), autocast(CPU, precision):
        return network.detectors[0].features(inputs)


def with_busy_adapters(config: Config, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    network = build_network(config, 3).eval()
    for name, parameter in network.named_parameters():
        if is_adapter(name) and name.endswith("up.weight"):
            torch.nn.init.normal_(parameter, std=0.1)
    return network


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("transformer", ["videomae", "vjepa2"])
def test_held_weights_give_the_features_of_single_precision_within_half_precision(
    data: Path, transformer: str, precision: Precision
) -> None:
    config = config_of(data, f"model.backbone.type={transformer}")
    network = with_busy_adapters(config)
    exact = features_of(network, config, "fp32")

    hold_frozen(network, precision)
    held = features_of(network, config, precision)
    assert held.dtype == torch.float32
    scale = exact.std()
    assert (held - exact).abs().max() / scale < (0.1 if precision == "bf16" else 0.01)


@pytest.mark.parametrize("precision", HALF)
def test_held_weights_give_the_same_gradients_whatever_is_recomputed(data: Path, precision: Precision) -> None:
    results = []
    for policy in get_args(Checkpointing):
        config = config_of(data, f"model.backbone.checkpointing={policy}")
        network = with_busy_adapters(config).train()
        hold_frozen(network, precision)
        backbone = network.detectors[0].backbone
        assert backbone is not None
        frames = torch.randint(
            256, (1, 32, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        with autocast(CPU, precision):
            backbone(frames).square().mean().backward()
        results.append({name: one.grad for name, one in network.named_parameters() if one.grad is not None})
    plain, *others = results
    assert plain
    for other in others:
        torch.testing.assert_close(other, plain, rtol=0, atol=0)


def test_only_the_pre_trained_blocks_are_held(data: Path) -> None:
    config = config_of(data)
    network = build_network(config, 3)
    before = {name: parameter.dtype for name, parameter in network.named_parameters()}
    hold_frozen(network, "fp32")
    assert {name: parameter.dtype for name, parameter in network.named_parameters()} == before
    hold_frozen(network, "bf16")
    for name, parameter in network.named_parameters():
        is_held = ".blocks." in name and not is_adapter(name)
        assert (parameter.dtype == torch.bfloat16) == is_held, name
        assert not (is_held and parameter.requires_grad)


def test_weights_that_two_networks_share_stay_shared(data: Path) -> None:
    config = config_of(data, "experiment=3-1", *both_baselines(data))
    pair = build_network(config, 3)
    assert isinstance(pair, Pair)
    first, second = pair.detectors
    assert first.backbone is not None
    assert second.backbone is not None
    second.backbone.load_state_dict(first.backbone.state_dict())
    assert pair.share_frozen()
    hold_frozen(pair, "bf16")
    blocks = [[one for one in each.modules() if isinstance(one, Block)] for each in (first, second)]
    for mine, theirs in zip(*blocks, strict=True):
        for one, other in zip(mine.frozen(), theirs.frozen(), strict=True):
            assert one.data_ptr() == other.data_ptr()
        assert mine.norm1.weight.data_ptr() != mine.norm2.weight.data_ptr()


def test_pieces_without_gradients_are_those_with_gradients_to_the_bit(data: Path) -> None:
    config = config_of(data)
    network = with_busy_adapters(config)
    block = next(one for one in network.modules() if isinstance(one, Block))
    block.chunk_bytes = 1  # one clip at a time
    width = block.norm1.normalized_shape[0]
    x = torch.randn(5, 8, width)
    kept = block.run_chunks(x).detach()
    with torch.no_grad():
        assert torch.equal(block.run_chunks(x), kept)
        torch.testing.assert_close(block(x), kept)


def test_a_run_in_half_precision_holds_its_backbone_and_saves_it_in_single_precision(
    data: Path, tmp_path: Path
) -> None:
    how = ("training.precision=bf16", "training.epochs=2", "model.drop_path=0")
    whole, parts = (config_of(data, *how, f"output={tmp_path / name}") for name in ("whole", "parts"))
    trainer = Trainer(whole, ALONE)
    exact = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    trainer.run()
    blocks = [one for one in trainer.network.modules() if isinstance(one, Block)]
    assert all(one.held == torch.bfloat16 for one in blocks)
    # The file and what is loaded from the checkpoint have every bit of the pre-trained weights.
    saved = load_checkpoint(whole.run_directory / "last.pt")
    frozen = [name for name in exact if ".vit." in name and not is_adapter(name)]
    assert len(frozen) > 20
    for name in frozen:
        assert saved.model[name].dtype == torch.float32
        assert torch.equal(saved.model[name], exact[name])
    # An interrupted run goes on to the same bits, and does not write the transformer again.
    first = Trainer(parts, ALONE)
    first.run(until=1)
    backbone = parts.run_directory / "backbone.safetensors"
    written = backbone.read_bytes()
    Trainer(parts, ALONE, resume=True).run()
    assert backbone.read_bytes() == written
    resumed = load_checkpoint(parts.run_directory / "last.pt")
    for name, tensor in saved.model.items():
        assert torch.equal(resumed.model[name], tensor), name


@pytest.mark.parametrize(
    "overrides", [("training.precision=bf16", "test.precision=fp32"), ("test.precision=bf16",), ()]
)
def test_a_run_that_tests_in_another_precision_keeps_single_precision(
    data: Path, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    config = config_of(data, "training.epochs=1", f"output={tmp_path}", *overrides)
    trainer = Trainer(config, ALONE)
    trainer.run()
    assert all(one.held is None for one in trainer.network.modules() if isinstance(one, Block))


def test_a_checkpoint_detects_in_the_precision_of_its_training_unless_told_otherwise(
    data: Path, tmp_path: Path
) -> None:
    config = config_of(data, "training.precision=bf16", "training.epochs=1", f"output={tmp_path}")
    Trainer(config, ALONE).run()
    saved = load_checkpoint(config.run_directory / "last.pt")
    for overrides, held in (([], torch.bfloat16), (["test.precision=fp32"], None)):
        network = saved.changed(overrides).inference_network(CPU)
        assert {one.held for one in network.modules() if isinstance(one, Block)} == {held}
