"""What is said of a file of weights is what was put into it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import layouts
import pytest
import torch
from builders import CLASSES, config_of, feature_data, video_data

from bitad.cli import main
from bitad.config.schema import Config
from bitad.models.build import build_network
from bitad.models.vit import VisionTransformer
from bitad.weights.checkpoint import Checkpoint, save_checkpoint
from bitad.weights.inspect import Inspection, inspect_weights


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return feature_data(tmp_path_factory.mktemp("features") / "data")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video_data(tmp_path_factory.mktemp("videos") / "data", training=1, test=1)


def saved(content: dict[str, Any], path: Path) -> Inspection:
    torch.save(content, path)
    return inspect_weights(path)


def weights_of(config: Config) -> dict[str, torch.Tensor]:
    return build_network(config, len(CLASSES)).state_dict()


def small_vit() -> dict[str, torch.Tensor]:
    return VisionTransformer(dim=8, depth=3, heads=2, mlp_dim=20, image_size=32).state_dict()


def tiny_vit() -> dict[str, torch.Tensor]:
    """Of the size of the videos' configuration."""
    return VisionTransformer(dim=96, depth=4, heads=3, mlp_dim=384, image_size=32).state_dict()


@pytest.mark.parametrize("project", layouts.BACKBONES)
def test_a_backbone_is_counted_and_its_size_named(project: str, tmp_path: Path) -> None:
    found = saved(layouts.BACKBONES[project](small_vit()), tmp_path / "vit.pth")
    assert (found.compared_with, found.defects) == (None, ())
    assert found.to_json()["backbone"] == "a transformer (8 wide, 3 blocks, MLP 20, patch 16)"
    assert not found.is_averaged
    parameters = sum(weight.numel() for name, weight in small_vit().items() if name != "pos_embed")
    assert found.to_json()["parameters"] == parameters
    assert "a backbone" in found.lines()[0]
    assert found.lines()[-1].endswith("give --config to check it against a network")


def test_published_sizes_are_named(tmp_path: Path) -> None:
    vit = VisionTransformer(dim=96, depth=4, heads=3, mlp_dim=384).state_dict()
    found = saved(layouts.mmaction2(vit), tmp_path / "vit.pth")
    assert "  backbone   VideoMAE-tiny (96 wide, 4 blocks, MLP 384, patch 16)" in found.lines()
    assert found.to_json()["backbone"] == "VideoMAE-tiny (96 wide, 4 blocks, MLP 384, patch 16)"


def test_a_detector_is_counted(videos: Path, tmp_path: Path) -> None:
    weights = weights_of(config_of(videos))
    found = saved(layouts.opentad_file(weights), tmp_path / "epoch_73.pth")
    assert (found.is_averaged, found.weights.others, found.weights.epoch) == (True, ("state_dict",), 73)
    assert found.has_optimizer
    assert found.to_json()["adapter_parameters"] == sum(
        w.numel() for name, w in weights.items() if ".adapter." in name
    )
    assert found.to_json() == json.loads(json.dumps(found.to_json()))
    content = layouts.opentad_file(weights)
    published = saved({"epoch": 59, "state_dict_ema": content["state_dict_ema"]}, tmp_path / "published.pth")
    assert (published.has_optimizer, published.weights.others) == (False, ())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_ours_are_compared_with_their_own_configuration(suffix: str, features: Path, tmp_path: Path) -> None:
    config = config_of(features)
    checkpoint = Checkpoint(config, CLASSES, weights_of(config), epoch=4, rate_hz=4.0, training={"step": 1})
    save_checkpoint(checkpoint, tmp_path / f"last{suffix}")
    found = inspect_weights(tmp_path / f"last{suffix}")
    assert (found.defects, found.is_averaged, found.compared_with) == (
        (),
        True,
        "the network of its configuration",
    )
    assert found.has_optimizer == (suffix == ".pt")
    assert found.weights.epoch == 4


def test_what_is_missing_and_what_is_too_much_is_named(features: Path, videos: Path, tmp_path: Path) -> None:
    config = config_of(videos)
    vit = layouts.videomae_finetuned(tiny_vit())["module"]
    del vit["blocks.1.norm1.weight"]
    vit["blocks.0.gamma_1"] = torch.ones(8)
    torch.save({"module": vit}, tmp_path / "vit.pth")
    found = inspect_weights(tmp_path / "vit.pth", config)
    assert found.defects == ("1 missing: blocks.1.norm1.weight", "1 not in the network: blocks.0.gamma_1")
    detector = layouts.opentad(weights_of(config_of(features)))
    del detector["module.rpn_head.reg_head.bias"]
    torch.save(detector, tmp_path / "detector.pth")
    found = inspect_weights(tmp_path / "detector.pth", config_of(features))
    assert found.defects == ("1 missing: head.regression.output.bias",)


def test_without_the_data_classes_are_counted_in_the_file(features: Path, tmp_path: Path) -> None:
    torch.save(layouts.opentad_file(weights_of(config_of(features))), tmp_path / "epoch_73.pth")
    nowhere = config_of(features, "data.classes=null", f"data.annotations={tmp_path / 'none.json'}")
    assert inspect_weights(tmp_path / "epoch_73.pth", nowhere).defects == ()


def test_half_precision_is_told(tmp_path: Path) -> None:
    halved = {name: weight.half() for name, weight in small_vit().items()}
    found = saved(halved, tmp_path / "vit.pth")
    assert "float16, read as float32" in "\n".join(found.lines())


def test_a_given_configuration_is_what_it_is_compared_with(features: Path, videos: Path, tmp_path: Path) -> None:
    torch.save(layouts.opentad_file(weights_of(config_of(features))), tmp_path / "epoch_73.pth")
    path = tmp_path / "epoch_73.pth"
    assert inspect_weights(path, config_of(features)).defects == ()
    other = inspect_weights(path, config_of(features, "model.channels=32"))
    assert other.defects == ("model.channels is 16 in the file, 32 in the configuration",)
    torch.save(layouts.mmaction2(small_vit()), tmp_path / "vit.pth")
    (defect,) = inspect_weights(tmp_path / "vit.pth", config_of(videos)).defects
    assert "model.backbone.size is a transformer (8 wide, 3 blocks" in defect
    assert "in the file, VideoMAE-tiny (96 wide, 4 blocks" in defect
    (defect,) = inspect_weights(tmp_path / "vit.pth", config_of(features)).defects
    assert "takes features" in defect


# By the command line.


def test_the_command_inspects_and_converts(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "epoch_73.pth", tmp_path / "forward.safetensors"
    torch.save(layouts.opentad_file(weights_of(config_of(features))), path)
    assert main(["weights", "inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert "OpenTAD" in text
    assert "give --config to check it against a network" in text
    assert main(["weights", "inspect", str(path), "--config", str(features)]) == 0
    assert "with the given configuration: nothing missing, nothing unexpected" in capsys.readouterr().out
    assert main(["weights", "inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["compared"] is None
    assert main(["weights", "convert", str(path), str(out), "--config", str(features)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert main(["weights", "convert", str(out), str(out), "--config", str(features)]) == 1
    assert "would replace the input" in capsys.readouterr().err
    assert main(["weights", "inspect", str(out)]) == 0
    assert "BiTAD, a detector" in capsys.readouterr().out
    tested = ["--out", str(tmp_path / "test")]
    assert main(["test", str(path), "--config", str(features), "test.batch=1", *tested]) == 0
    one = (tmp_path / "test" / "metrics.json").read_text()
    assert main(["test", str(out), "test.batch=1", *tested]) == 0
    assert (tmp_path / "test" / "metrics.json").read_text() == one


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inspect", "{path}", "{out}"], "takes one file"),
        (["convert", "{path}"], "needs an output file"),
        (["convert", "{path}", "{out}"], "name one with --config"),
        (["convert", "{path}", "{out}", "--json"], "--json only applies to inspect"),
        (["inspect", "nowhere.pth"], "no weights at nowhere.pth"),
    ],
)
def test_wrong_commands_are_refused_in_one_line(
    arguments: list[str], said: str, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "epoch_73.pth"
    torch.save(layouts.opentad_file(weights_of(config_of(features))), path)
    filled = [argument.format(path=path, out=tmp_path / "out.safetensors") for argument in arguments]
    assert main(["weights", *filled]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "averaged weights" not in line]
    assert line.startswith("bitad weights: error: ")
    assert said in line


def test_what_does_not_fit_has_status_1(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vit = layouts.videomae_finetuned(tiny_vit())["module"]
    del vit["blocks.1.norm1.weight"]
    torch.save(vit, tmp_path / "vit.pth")
    assert main(["weights", "inspect", str(tmp_path / "vit.pth"), "--config", str(videos)]) == 1
    assert "1 missing: blocks.1.norm1.weight" in capsys.readouterr().out
