"""ActionFormer's own release: a file of it gives what its network gives, with and without norms at the levels' ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import layouts
import pytest
import torch
from slow_actionformer import SlowActionFormer
from torch import Tensor, nn

from bitad.cli import main
from bitad.config.loading import parse_config
from bitad.config.schema import Config
from bitad.models.build import build_network
from bitad.models.network import Detector
from bitad.weights.checkpoint import load_checkpoint
from bitad.weights.inspect import inspect_weights

CLASSES = ("a", "b", "c", "d", "e")


def config_of(folder: Path, **model: Any) -> Config:
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    document = {
        "name": "tiny",
        "data": {
            "annotations": str(folder / "none.json"),
            "classes": str(folder / "classes.txt"),
            "features": "none",
            "feature_channels": 8,
        },
        "window": {"steps": 32},
        "model": {"channels": 16, "levels": 3, "stem_blocks": 1, "heads": 2, "padding": "reference", **model},
    }
    return parse_config(document, "in this test")


def released(config: Config, seed: int = 0) -> dict[str, Any]:
    """A file of ActionFormer's release: norms near one, branches that count."""
    torch.manual_seed(seed)
    network = build_network(config, len(CLASSES))
    for name, parameter in network.named_parameters():
        if "norm" in name or name.endswith("scale") or name == "head.scales":
            nn.init.normal_(parameter, mean=0.0 if name.endswith("bias") else 1.0, std=0.2)
        elif name.endswith("bias"):
            nn.init.normal_(parameter, std=0.2)
    return layouts.actionformer_file(network.state_dict())


def names_of(content: dict[str, Any]) -> dict[str, Tensor]:
    return {name.removeprefix("module."): weight for name, weight in content["state_dict_ema"].items()}


@pytest.mark.parametrize("level_norms", [True, False])
@pytest.mark.parametrize(
    "model", [{}, {"attention_window": 5, "stem_blocks": 2, "levels": 4}, {"layer_scale": None}]
)
@torch.no_grad()
def test_its_files_give_its_output(tmp_path: Path, level_norms: bool, model: dict[str, Any]) -> None:
    config = config_of(tmp_path, level_norms=level_norms, **model)
    content = released(config)
    assert any(name.startswith("neck.fpn_norms.") for name in names_of(content)) == level_norms
    torch.save(content, tmp_path / "epoch_034.pth.tar")
    network = load_checkpoint(tmp_path / "epoch_034.pth.tar", config).network()
    assert isinstance(network, Detector)
    slow = SlowActionFormer(names_of(content), heads=2, window=config.model.attention_window)  # type: ignore[arg-type]
    features = torch.randn(8, 32)
    found = network.predict(features[None], torch.ones(1, 32, dtype=torch.bool))
    logits, distances = slow(features, real=32)
    # Theirs have another epsilon in some norms.
    assert (found.logits[0] - logits).abs().max() <= 3e-4
    assert (found.distances[0] - distances).abs().max() <= 3e-4


@pytest.mark.parametrize("level_norms", [True, False])
@torch.no_grad()
def test_with_our_epsilon_and_padding_the_output_is_the_same_in_padded_windows_too(
    tmp_path: Path, level_norms: bool
) -> None:
    config = config_of(tmp_path, level_norms=level_norms)
    content = released(config, seed=1)
    torch.save(content, tmp_path / "epoch_034.pth.tar")
    network = load_checkpoint(tmp_path / "epoch_034.pth.tar", config).network()
    slow = SlowActionFormer(names_of(content), heads=2, clears_padding=True, eps=1e-6)
    features = torch.randn(8, 32)
    for real in (1, 7, 21, 32):
        mask = torch.arange(32) < real
        found = network.predict((features * mask)[None], mask[None])
        logits, distances = slow(features, real)
        seen = found.mask[0]
        assert (found.logits[0] - logits)[seen].abs().max() <= 2e-5
        assert (found.distances[0] - distances)[seen].abs().max() <= 2e-5


@pytest.mark.parametrize(
    ("has", "said"),
    [
        (False, "model.level_norms is false in the file, true in the configuration"),
        (True, "model.level_norms is true in the file, false in the configuration"),
    ],
)
def test_a_configuration_of_the_other_kind_names_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], has: bool, said: str
) -> None:
    path, yaml = tmp_path / "epoch_034.pth.tar", tmp_path / "config.yaml"
    torch.save(released(config_of(tmp_path, level_norms=has)), path)
    yaml.write_text(config_of(tmp_path, level_norms=not has).to_yaml())
    out = tmp_path / "out.safetensors"
    assert main(["weights", "inspect", str(path), "--config", str(yaml)]) == 1
    assert said in capsys.readouterr().out
    assert main(["weights", "convert", str(path), str(out), "--config", str(yaml)]) == 1
    assert said in capsys.readouterr().err
    yaml.write_text(config_of(tmp_path, level_norms=has).to_yaml())
    assert main(["weights", "convert", str(path), str(out), "--config", str(yaml)]) == 0
    assert load_checkpoint(out).config.model.level_norms is has


def test_opentads_neck_without_norms_is_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = config_of(tmp_path, level_norms=False)
    network = build_network(config, len(CLASSES))
    torch.save(layouts.opentad_file(network.state_dict()), tmp_path / "epoch_59.pth")
    assert inspect_weights(tmp_path / "epoch_59.pth", config).defects == ()
