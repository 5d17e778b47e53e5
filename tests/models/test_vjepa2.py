"""V-JEPA 2 as a backbone: the library's numbers on every path through a detector, its files, and a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from builders import PIXELS, config_of, video_data
from published_models import SIDE
from torch import Tensor

from bitad.cli import main
from bitad.data.feature_files import FeatureStore
from bitad.inference.whole_video import FeatureStream
from bitad.models.alignment import joint_forward
from bitad.models.backbone import PIXEL_MEAN, PIXEL_STD, VideoBackbone
from bitad.models.build import build_network
from bitad.models.network import Detector
from bitad.models.vit import CrossAdapter
from bitad.models.vjepa2 import VJepa2Transformer
from bitad.weights.checkpoint import load_checkpoint
from bitad.weights.loading import load_pretrained

transformers = pytest.importorskip("transformers", reason="the oracle, transformers, is not installed")

pytestmark = pytest.mark.usefixtures("one_thread")

# A head has 20 channels, of which 18 are rotated.
SIZE = "{dim: 40, depth: 3, heads: 2, mlp_dim: 160}"


@pytest.fixture(scope="module")
def theirs() -> Any:
    config = transformers.VJEPA2Config(
        hidden_size=40,
        num_hidden_layers=3,
        num_attention_heads=2,
        crop_size=SIDE,
        patch_size=16,
        frames_per_clip=16,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
    )
    torch.manual_seed(0)
    model = transformers.VJEPA2Model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="module")
def folder(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vjepa2")
    theirs.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video_data(tmp_path_factory.mktemp("data") / "data")


def keys(folder: Path) -> list[str]:
    return [
        "model.backbone.type=vjepa2",
        f"model.backbone.size={SIZE}",
        f"model.backbone.weights={folder}",
        "model.backbone.random=false",
    ]


@pytest.fixture(scope="module")
def backbone(data: Path, folder: Path) -> VideoBackbone:
    config = config_of(data, *keys(folder))
    network = build_network(config, 3).eval()
    load_pretrained(network, config)
    assert isinstance(network, Detector)
    assert network.backbone is not None
    return network.backbone


def frames(count: int, *, seed: int = 0, side: int = PIXELS) -> Tensor:
    return torch.randint(0, 256, (1, count, side, side, 3), generator=torch.Generator().manual_seed(seed)).byte()


def disturbed(backbone: VideoBackbone) -> VideoBackbone:
    """With adapters that do something; parameters of the transformer are shared."""
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if ".adapter." in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    return backbone


@pytest.mark.parametrize("side", [32, 48])
def test_new_adapters_leave_the_librarys_features(
    backbone: VideoBackbone, theirs: Any, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for layer in theirs.encoder.layer:  # it takes the pictures' size from its configuration
        monkeypatch.setattr(layer.attention, "grid_size", side // 16)
    inputs = frames(32, side=side)
    clips = (inputs[0].float() - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)
    clips = clips.permute(0, 3, 1, 2).unflatten(0, (2, 16))  # [2, 16, 3, H, W]
    with torch.no_grad():
        tokens = theirs.get_vision_features(clips)
        found = backbone(inputs)
    tubelets = tokens.unflatten(1, (8, -1)).mean(2).flatten(0, 1)  # [16, C]
    expected = F.interpolate(tubelets.T[None], size=32, mode="linear", align_corners=False)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert expected.std(2).mean() > 1e-3


def test_all_parts_but_the_adapters_are_frozen(data: Path, folder: Path) -> None:
    network = build_network(config_of(data, *keys(folder)), 3)
    assert isinstance(network, Detector)
    assert network.backbone is not None
    trained = {name for name, one in network.backbone.named_parameters() if one.requires_grad}
    assert trained == {name for name, _ in network.backbone.named_parameters() if ".adapter." in name}
    assert {name.split(".")[2] for name in trained} == {"0", "1", "2"}
    before = {name: one.clone() for name, one in network.state_dict().items()}
    network.backbone(frames(32)).sum().backward()
    assert all(one.grad is not None for one in network.backbone.parameters() if one.requires_grad)
    assert all(torch.equal(before[name], one) for name, one in network.state_dict().items())


def test_every_path_through_a_detector_has_the_same_features(data: Path, folder: Path) -> None:
    config = config_of(data, *keys(folder))
    network = build_network(config, 3).eval()
    load_pretrained(network, config)
    assert isinstance(network, Detector)
    assert network.backbone is not None
    ours = disturbed(network.backbone)
    inputs = frames(48)
    with torch.no_grad():
        expected = ours(inputs)
        for reverse in (False, True):
            stream = FeatureStream(ours, frames=48, length=48, reverse=reverse)
            for part in inputs[0].split(20):
                stream.push(part)
            whole = ours(inputs.flip(1))[0] if reverse else expected[0]
            torch.testing.assert_close(stream.finish(), whole, rtol=1e-4, atol=1e-4)
        cross = [torch.nn.ModuleList(CrossAdapter(40, reduction=4) for _ in range(3)) for _ in range(2)]
        views = inputs, inputs.flip(1)
        both = joint_forward(ours, ours, views, torch.ones(1, 48) > 0, (cross[0], cross[1]), mirrored=True)
    torch.testing.assert_close(both[0], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both[1], ours(inputs.flip(1)), rtol=1e-4, atol=1e-4)


def test_pictures_that_are_not_square_are_refused() -> None:
    vit = VJepa2Transformer(dim=40, depth=1, heads=2, mlp_dim=80)
    with pytest.raises(ValueError, match="pictures of 32x48 pixels; V-JEPA 2 takes square ones"):
        vit.begin(torch.zeros(1, 3, 16, 32, 48), 1)


@pytest.mark.parametrize("placement", ["inside", "beside"])
def test_a_pair_trains_on_it_and_its_run_is_complete(
    data: Path, folder: Path, theirs: Any, tmp_path: Path, placement: str
) -> None:
    changes = [*keys(folder), "experiment=1", "training.epochs=1", f"output={tmp_path}", "window.steps=32"]
    changes.append(f"model.backbone.adapter_placement={placement}")
    assert main(["train", str(data), *changes, "--device", "cpu"]) == 0
    run = tmp_path / "tiny-1-seed0"
    for detector in load_checkpoint(run / "best.pt").network().detectors:
        assert detector.backbone is not None
        norm = detector.backbone.vit.get_parameter("norm.weight")
        assert torch.equal(norm, theirs.encoder.layernorm.weight)
    for test in ("window", "video"):
        assert (
            main(["test", str(run), f"test.backbone={test}", "--out", str(tmp_path / test), "--device", "cpu"])
            == 0
        )
    out = ("--direction", "both", "--out", str(tmp_path / "features"), "--device", "cpu")
    assert main(["features", str(data.parent / "videos"), "--checkpoint", str(run), *out]) == 0
    rows = FeatureStore(tmp_path / "features" / "reverse").read("test_0")
    assert rows.shape == (38, 40)
    assert np.isfinite(rows).all()


def test_files_of_the_other_type_are_refused(
    data: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [*keys(folder)[1:], f"output={tmp_path / 'runs'}"]
    assert main(["train", str(data), *changes, "--device", "cpu"]) == 1
    assert "model.backbone.type is vjepa2 in the file, videomae in the configuration" in capsys.readouterr().err
    videos, out = str(data.parent / "videos"), str(tmp_path / "out")
    assert main(["features", videos, "--checkpoint", str(folder), "--out", out]) == 1
    assert "is V-JEPA 2; give the folder of the file with --encoder, not --checkpoint" in capsys.readouterr().err
    assert main(["weights", "inspect", str(folder)]) == 0
    assert "V-JEPA 2 of Hugging Face's transformers" in capsys.readouterr().out
