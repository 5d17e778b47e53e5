"""What a configuration builds, what of it trains, and what stays as it was loaded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from builders import CHANNELS, CLASSES, config_of, feature_data, video_data
from safetensors.torch import save_file

from bitad.config.loading import load_config
from bitad.config.names import EXPERIMENTS, SIZES
from bitad.config.schema import ModelConfig, Section
from bitad.models.backbone import VideoBackbone
from bitad.models.build import BACKBONES, FUSIONS, HEADS, PYRAMIDS, build_network
from bitad.models.network import Detector
from bitad.runtime.distributed import Ranks
from bitad.training.trainer import Trainer
from bitad.weights.files import weights_path
from bitad.weights.loading import load_pretrained, load_weights

ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video_data(tmp_path_factory.mktemp("videos") / "data")


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return feature_data(tmp_path_factory.mktemp("features") / "data")


def trainable(detector: Detector) -> set[str]:
    return {name for name, parameter in detector.named_parameters() if parameter.requires_grad}


def test_of_the_backbone_only_the_adapters_train_and_everything_else_does(videos: Path) -> None:
    detector = build_network(config_of(videos), len(CLASSES))
    names = {name for name, _ in detector.named_parameters()}
    backbone = {name for name in names if name.startswith("backbone.")}
    adapters = {name for name in backbone if ".adapter." in name}
    assert trainable(detector) == (names - backbone) | adapters
    assert len(adapters) == SIZES["tiny"].depth * len({name.split(".adapter.")[1] for name in adapters})
    assert {"pyramid", "head"} == {name.split(".")[0] for name in names - backbone}


def test_without_a_backbone_everything_trains(features: Path) -> None:
    detector = build_network(config_of(features), len(CLASSES))
    assert detector.backbone is None
    assert trainable(detector) == {name for name, _ in detector.named_parameters()}


def test_what_is_frozen_never_changes_and_what_trains_does(videos: Path, tmp_path: Path) -> None:
    overrides = (
        "training.epochs=3",
        "training.evaluate_from=2",
        f"output={tmp_path}",
        "training.weight_decay=0.5",
    )
    trainer = Trainer(config_of(videos, *overrides), ALONE)
    before = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    trainer.run(until=2)
    after = trainer.network.state_dict()
    learning = trainable(trainer.network)
    assert all(torch.equal(after[name], before[name]) for name in before.keys() - learning)
    # Only parameters without any influence on this data could have stayed the same: there are none.
    assert [name for name in learning if torch.equal(after[name], before[name])] == []


def test_the_network_has_the_sizes_that_the_configuration_names(features: Path, videos: Path) -> None:
    config = config_of(
        features, "model.levels=4", "model.channels=24", "model.head_convolutions=1", "model.heads=3"
    )
    detector = build_network(config, 7).eval()
    prediction = detector.predict(torch.randn(2, CHANNELS, 32), torch.ones(2, 32, dtype=torch.bool))
    assert prediction.logits.shape == (2, 32 + 16 + 8 + 4, 7)
    assert prediction.points.sizes == (32, 16, 8, 4)
    assert len(detector.head.classification.convs) == 1
    config = config_of(videos, "model.backbone.drop_path=0.3", "model.backbone.adapter_reduction=8")
    backbone = build_network(config, 7).backbone
    assert isinstance(backbone, VideoBackbone)
    assert backbone.vit.blocks[-1].drop_path.probability == 0.3
    assert backbone.vit.blocks[0].adapter.down.out_features == SIZES["tiny"].dim // 8


def test_every_name_of_a_module_has_a_builder_and_old_configurations_name_none(features: Path) -> None:
    config = config_of(features)
    assert (config.model.pyramid.type, config.model.head.type) == ("transformer", "actionformer")
    assert config_of(features, "model.pyramid.type=transformer", "model.head.type=actionformer") == config
    for section, table in (("pyramid", PYRAMIDS), ("head", HEADS), ("backbone", BACKBONES)):
        assert types_of(ModelConfig.model_fields[section].annotation) == set(table)
    assert {one.fusion for one in EXPERIMENTS.values()} - {None} == set(FUSIONS)


def types_of(annotation: Any) -> set[str]:
    """The values of ``type`` that the sections in an annotation have."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return set(get_args(annotation.model_fields["type"].annotation))
    return {name for one in get_args(annotation) for name in types_of(one)}


def test_the_same_seed_builds_the_same_network(features: Path) -> None:
    networks = []
    for _ in range(2):
        torch.manual_seed(5)
        networks.append(build_network(config_of(features), len(CLASSES)).state_dict())
    assert all(torch.equal(networks[0][name], networks[1][name]) for name in networks[0])


def test_pretrained_weights_fill_the_transformer_and_leave_the_adapters(videos: Path, tmp_path: Path) -> None:
    config = config_of(videos)
    donor, receiver = build_network(config, 3), build_network(config, 3)
    assert isinstance(donor.backbone, VideoBackbone)
    weights = {
        name: w.contiguous() for name, w in donor.backbone.vit.state_dict().items() if ".adapter." not in name
    }
    save_file(weights, tmp_path / "vit.safetensors")
    before = {name: tensor.clone() for name, tensor in receiver.state_dict().items()}
    load_pretrained(receiver, config_of(videos, f"model.backbone.weights={tmp_path / 'vit.safetensors'}"))
    for name, tensor in receiver.state_dict().items():
        source = weights.get(name.removeprefix("backbone.vit."))
        assert torch.equal(tensor, before[name] if source is None else source)


def test_weights_of_another_network_are_refused_in_one_line(videos: Path, tmp_path: Path) -> None:
    detector = build_network(config_of(videos), 3)
    assert isinstance(detector.backbone, VideoBackbone)
    weights = {
        name: w.clone() for name, w in detector.backbone.vit.state_dict().items() if ".adapter." not in name
    }
    del weights["blocks.0.norm1.weight"]
    weights["blocks.9.norm1.weight"] = torch.zeros(96)
    weights["patch_embed.bias"] = torch.zeros(7)
    save_file(weights, tmp_path / "other.safetensors")
    config = config_of(videos, f"model.backbone.weights={tmp_path / 'other.safetensors'}")
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    with pytest.raises(ValueError, match=r"other\.safetensors") as refused:
        load_pretrained(detector, config)
    message = str(refused.value)
    assert "\n" not in message
    for said in (
        "1 missing: blocks.0.norm1.weight",
        "1 not in the network: blocks.9.norm1.weight",
        "patch_embed.bias [7] instead of [96]",
    ):
        assert said in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.state_dict().items())


def test_a_checkpoint_must_have_every_weight_of_the_detector(features: Path) -> None:
    detector = build_network(config_of(features), 3)
    weights = {name: w for name, w in detector.state_dict().items() if name != "head.scales"}
    with pytest.raises(ValueError, match=r"the checkpoint .*1 missing: head\.scales"):
        load_weights(detector, weights, source="the checkpoint")


def test_missing_weights_are_refused_by_their_path(videos: Path) -> None:
    config = config_of(videos, "model.backbone.weights=nowhere/vit.safetensors")
    with pytest.raises(FileNotFoundError, match=r"nowhere/vit\.safetensors"):
        load_pretrained(build_network(config, 3), config)


def test_weights_of_the_package_are_found_beside_the_presets() -> None:
    found = weights_path(Path("package:playroom_backbone.safetensors"))
    assert found.is_file(), "the demo's backbone is not in the package"
    assert weights_path(Path("folder/own.pth")) == Path("folder/own.pth")


def test_the_demos_backbone_fits_the_demos_configuration_and_stays_small() -> None:
    config = load_config("playroom")
    detector = build_network(config, 10)
    assert isinstance(detector.backbone, VideoBackbone)
    before = detector.backbone.vit.patch_embed.weight.clone()
    load_pretrained(detector, config)
    assert not torch.equal(detector.backbone.vit.patch_embed.weight, before)
    assert config.model.backbone is not None
    assert config.model.backbone.weights is not None
    assert weights_path(config.model.backbone.weights).stat().st_size <= 4_000_000


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # within PyTorch
def test_a_machine_without_a_compiler_compiles_nothing(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(videos, "model.backbone.compile=true")
    monkeypatch.setenv(
        "CXX", sys.executable
    )  # something that is there: blocks are compiled when they are first used
    plain = build_network(config_of(videos), len(CLASSES))
    assert list(build_network(config, len(CLASSES)).state_dict()) == list(plain.state_dict())
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler, and there is no no-such-compiler; install one"):
        build_network(config, len(CLASSES))


@pytest.mark.parametrize(
    ("said", "expected"),
    [("true", "blocks"), ("false", "none"), ("none", "none"), ("selective", "selective"), ("null", "none")],
)
def test_checkpointing_is_what_is_said_now_and_was_in_older_configurations(
    videos: Path, said: str, expected: str
) -> None:
    detector = build_network(config_of(videos, f"model.backbone.checkpointing={said}"), len(CLASSES))
    assert isinstance(detector, Detector)
    assert isinstance(detector.backbone, VideoBackbone)
    assert detector.backbone.vit.checkpointing == expected
