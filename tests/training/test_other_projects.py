"""Detectors of other projects become checkpoints with a configuration, baselines to start from, and files of ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import layouts
import pytest
import torch
from builders import CHANNELS, CLASSES, config_of, feature_data, video_data
from safetensors import safe_open
from torch import Tensor, nn

from bitad.config.loading import parse_config
from bitad.config.schema import Config
from bitad.data.classes import ANY_CLASS
from bitad.models.build import build_network
from bitad.models.network import Detector, Pair
from bitad.training.checkpoints import load_initial
from bitad.weights.checkpoint import FRAME_RATE_HZ, Checkpoint, convert_weights, load_checkpoint, save_checkpoint
from bitad.weights.loading import load_pretrained

FIXTURES = Path(__file__).parents[2] / "../shared/fixtures"


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return feature_data(tmp_path_factory.mktemp("features") / "data")


@pytest.fixture(scope="module")
def config(features: Path) -> Config:
    return config_of(features)


def detector_of(config: Config, seed: int = 0, classes: int = len(CLASSES)) -> Detector:
    """A detector no value of which is as at the beginning."""
    torch.manual_seed(seed)
    network = build_network(config, classes)
    assert isinstance(network, Detector)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.eval()


@pytest.fixture(scope="module")
def theirs(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("opentad") / "epoch_73.pth"
    torch.save(layouts.opentad_file(detector_of(config).state_dict()), path)
    return path


def refusal(call: Any, *arguments: Any, kind: type[Exception] = ValueError) -> str:
    with pytest.raises(kind) as refused:
        call(*arguments)
    message = str(refused.value)
    assert "\n" not in message
    return message


def same_weights(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


# Reading.


@pytest.mark.parametrize("layout", [layouts.opentad_file, layouts.actionformer_file])
def test_with_a_configuration_a_detector_is_a_checkpoint(layout: Any, config: Config, tmp_path: Path) -> None:
    source = detector_of(config)
    torch.save(layout(source.state_dict()), tmp_path / "theirs.pth")
    checkpoint = load_checkpoint(tmp_path / "theirs.pth", config)
    assert (checkpoint.config, checkpoint.classes, checkpoint.rate_hz) == (config, CLASSES, 4.0)
    assert checkpoint.epoch in (73, 34)
    network = checkpoint.network()
    assert same_weights(network.state_dict(), source.state_dict())
    inputs, mask = torch.randn(1, CHANNELS, 32), torch.ones(1, 32, dtype=torch.bool)
    assert torch.equal(network.predict(inputs, mask).logits, source.predict(inputs, mask).logits)


def test_the_configuration_is_asked_for_where_there_is_none_and_refused_where_there_is_one(
    theirs: Path, config: Config, tmp_path: Path
) -> None:
    message = refusal(load_checkpoint, theirs)
    assert "not a checkpoint of BiTAD but a detector of OpenTAD" in message
    assert "--config" in message
    ours = Checkpoint(config, CLASSES, detector_of(config).state_dict(), epoch=1, rate_hz=4.0)
    save_checkpoint(ours, tmp_path / "best.pt")
    assert "leave out --config" in refusal(load_checkpoint, tmp_path / "best.pt", config)


def test_another_number_of_classes_is_said_in_one_line(theirs: Path, config: Config, tmp_path: Path) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_text("alpha\nbeta\n")
    other = config.model_copy(update={"data": config.data.model_copy(update={"classes": classes})})
    message = refusal(load_checkpoint(theirs, other).network)
    assert message.endswith(
        "epoch_73.pth do not fit the network: the number of classes is 3 in the file, 2 in the configuration"
    )


def test_another_size_is_said_in_one_line(theirs: Path, features: Path) -> None:
    other = config_of(features, "model.channels=32", "model.levels=4")
    message = refusal(load_checkpoint(theirs, other).network)
    assert (
        "model.channels is 16 in the file, 32 in the configuration; model.levels is 3 in the file, 4 in" in message
    )


def test_a_pair_is_not_loaded_from_one_detector(theirs: Path, config: Config) -> None:
    for experiment, has in (("1", "two"), ("1s", "one for both directions")):
        other = config.model_copy(update={"experiment": experiment})
        assert f"one detector, but experiment {experiment} has {has}; use experiment=baseline" in refusal(
            load_checkpoint, theirs, other
        )
    student = config.model_copy(update={"experiment": "distil"})
    assert load_checkpoint(theirs, student).classes == load_checkpoint(theirs, config).classes


def test_a_backbone_is_no_detector(config: Config, tmp_path: Path) -> None:
    vit = {"patch_embed.weight": torch.ones(8, 3, 2, 16, 16)}
    torch.save(vit, tmp_path / "vit.pth")
    assert "name it in model.backbone.weights" in refusal(load_checkpoint, tmp_path / "vit.pth", config)


def test_classes_come_from_their_list_or_from_the_annotations(
    theirs: Path, config: Config, tmp_path: Path
) -> None:
    def with_data(**changes: Any) -> Config:
        return config.model_copy(update={"data": config.data.model_copy(update=changes)})

    assert load_checkpoint(theirs, with_data(classes=None)).classes == CLASSES
    assert load_checkpoint(theirs, with_data(class_agnostic=True)).classes == (ANY_CLASS,)
    nowhere = tmp_path / "nowhere.json"
    unknown = load_checkpoint(theirs, with_data(annotations=nowhere))
    assert unknown.classes == CLASSES
    assert unknown.rate_hz == FRAME_RATE_HZ / config.data.feature_stride_frames
    message = refusal(
        load_checkpoint, theirs, with_data(annotations=nowhere, classes=None), kind=FileNotFoundError
    )
    assert "a list of the classes in data.classes" in message


def test_a_detector_without_adapters_is_one_whose_adapters_change_nothing(tmp_path: Path) -> None:
    config = config_of(video_data(tmp_path / "data", training=1, test=1))
    source = detector_of(config)
    weights = {name: weight for name, weight in source.state_dict().items() if ".adapter." not in name}
    torch.save(layouts.opentad_file(weights), tmp_path / "frozen.pth")
    network = load_checkpoint(tmp_path / "frozen.pth", config).network()
    assert all(torch.equal(network.state_dict()[name], weight) for name, weight in weights.items())
    assert not network.get_parameter("backbone.vit.blocks.0.adapter.up.weight").any()
    del weights["backbone.vit.blocks.0.norm1.weight"]
    torch.save(layouts.opentad_file(weights), tmp_path / "frozen.pth")
    broken = load_checkpoint(tmp_path / "frozen.pth", config)
    assert "1 missing: backbone.vit.blocks.0.norm1.weight" in refusal(broken.network)


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the recorded checkpoints, ../shared/fixtures, are not there")
def test_the_recorded_detectors_load_with_their_configurations(features: Path, tmp_path: Path) -> None:
    classes = tmp_path / "category_idx.txt"
    classes.write_text("".join(f"class{i}\n" for i in range(20)))
    backbone = {"size": {"dim": 32, "depth": 2, "heads": 2, "mlp_dim": 128}, "pixels": 64}
    for name, data, steps, model in (
        ("adatad_tiny", {"videos": "none"}, 64, {"backbone": backbone}),
        (
            "actionformer_local",
            {"features": "none", "feature_channels": 40},
            128,
            {"levels": 5, "attention_window": 9},
        ),
    ):
        config = parse_config(
            {
                "name": name,
                "data": {"annotations": "none", "classes": str(classes), **data},
                "window": {"steps": steps},
                "model": {"channels": 32, "padding": "reference", **model},
            },
            "in this test",
        )
        checkpoint = load_checkpoint(FIXTURES / name / "checkpoint.pth", config)
        assert checkpoint.epoch == 59
        assert same_weights(checkpoint.network().state_dict(), checkpoint.model)
        convert_weights(FIXTURES / name / "checkpoint.pth", tmp_path / f"{name}.safetensors", config)
        again = load_checkpoint(tmp_path / f"{name}.safetensors")
        assert again.config == config
        assert same_weights(again.network().state_dict(), checkpoint.model)


# Starting from.


def pair_config(features: Path, forward: Path, backward: Path) -> Config:
    return config_of(features, "experiment=1-1", f"init.forward={forward}", f"init.reverse={backward}")


def test_two_networks_start_from_detectors_of_other_projects(
    features: Path, config: Config, tmp_path: Path
) -> None:
    forward, backward = detector_of(config, seed=1), detector_of(config, seed=2)
    torch.save(layouts.opentad_file(forward.state_dict()), tmp_path / "epoch_73.pth")
    torch.save(layouts.actionformer_file(backward.state_dict()), tmp_path / "epoch_61.pth")
    of_pair = pair_config(features, tmp_path / "epoch_73.pth", tmp_path / "epoch_61.pth")
    pair = build_network(of_pair, len(CLASSES))
    assert isinstance(pair, Pair)
    load_initial(pair, of_pair, CLASSES)
    assert same_weights(pair.first.network.state_dict(), forward.state_dict())
    assert same_weights(pair.second.network.state_dict(), backward.state_dict())


def test_second_adapters_are_new_where_two_networks_start_from_detectors_of_other_projects(tmp_path: Path) -> None:
    videos = video_data(tmp_path / "data", training=1, test=1)
    source = detector_of(config_of(videos))
    torch.save(layouts.opentad_file(source.state_dict()), tmp_path / "epoch_73.pth")
    inits = [f"init.{name}={tmp_path / 'epoch_73.pth'}" for name in ("forward", "reverse")]
    config = config_of(videos, "experiment=2", *inits)
    pair = build_network(config, len(CLASSES))
    assert isinstance(pair, Pair)
    load_initial(pair, config, CLASSES)
    loaded = pair.second.network.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in source.state_dict().items())
    assert any(".bi_adapter." in name for name in loaded)


def test_a_baseline_of_other_classes_or_no_baseline_is_refused_by_its_key(
    features: Path, config: Config, theirs: Path, tmp_path: Path
) -> None:
    torch.save(layouts.opentad_file(detector_of(config, classes=20).state_dict()), tmp_path / "thumos.pth")
    torch.save({"patch_embed.weight": torch.ones(8, 3, 2, 16, 16)}, tmp_path / "vit.pth")
    for name, said in (
        (
            "thumos.pth",
            "init.reverse={path} do not fit the network: the number of classes is 20 in the file, 3 in",
        ),
        ("vit.pth", "init.reverse={path} is BiTAD's VideoMAE or V-JEPA 2, not a detector"),
    ):
        path = tmp_path / name
        of_pair = pair_config(features, theirs, path)
        pair = build_network(of_pair, len(CLASSES))
        assert said.format(path=path) in refusal(load_initial, pair, of_pair, CLASSES)


# Writing.


def test_a_converted_detector_is_a_checkpoint_wherever_one_is_named(
    theirs: Path, config: Config, tmp_path: Path
) -> None:
    out = tmp_path / "forward.safetensors"
    convert_weights(theirs, out, config)
    theirs_loaded, ours = load_checkpoint(theirs, config), load_checkpoint(out)
    assert replace(ours, source="", model={}) == replace(theirs_loaded, source="", model={})
    assert same_weights(ours.model, theirs_loaded.model)
    assert same_weights(ours.network().state_dict(), theirs_loaded.model)
    with safe_open(out, framework="pt") as file:
        assert {"format", "config", "classes", "rate_hz"} <= file.metadata().keys()
    assert "leave out --config" in refusal(load_checkpoint, out, config)


def test_a_run_of_ours_is_converted_without_what_only_resuming_needs(config: Config, tmp_path: Path) -> None:
    evaluation = {"average_map": 0.25, "tiou": [0.3, 0.5]}
    source = Checkpoint(
        config=config,
        classes=CLASSES,
        model=detector_of(config).state_dict(),
        epoch=3,
        rate_hz=4.0,
        evaluation=evaluation,
        training={"step": 6},
    )
    save_checkpoint(source, tmp_path / "run" / "last.pt")
    convert_weights(tmp_path / "run", tmp_path / "run.safetensors")
    back = load_checkpoint(tmp_path / "run.safetensors")
    assert same_weights(back.model, source.model)
    assert (back.config, back.classes, back.epoch, back.evaluation) == (config, CLASSES, 3, evaluation)
    assert back.training is None


def test_a_converted_backbone_and_a_converted_detector_give_their_backbone(tmp_path: Path) -> None:
    videos = video_data(tmp_path / "data", training=1, test=1)
    source = detector_of(config_of(videos))
    vit = source.get_submodule("backbone.vit").state_dict()
    plain = {name: weight for name, weight in vit.items() if ".adapter." not in name}
    torch.save(layouts.mmaction2(plain), tmp_path / "vit.pth")
    torch.save(layouts.opentad_file(source.state_dict()), tmp_path / "epoch_73.pth")
    convert_weights(tmp_path / "vit.pth", tmp_path / "vit.safetensors", config_of(videos))
    convert_weights(tmp_path / "epoch_73.pth", tmp_path / "detector.safetensors", config_of(videos))
    for name, wanted in (("vit", plain), ("detector", vit)):
        config = config_of(videos, f"model.backbone.weights={tmp_path / name}.safetensors")
        network = build_network(config, len(CLASSES))
        load_pretrained(network, config)
        loaded = network.get_submodule("backbone.vit").state_dict()
        assert all(torch.equal(loaded[key], weight) for key, weight in wanted.items())


def test_what_cannot_be_converted_leaves_no_file(
    theirs: Path, config: Config, features: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    assert "ends in .safetensors" in refusal(convert_weights, theirs, tmp_path / "out.pt", config)
    assert "--config" in refusal(convert_weights, theirs, out)
    assert "channels" in refusal(convert_weights, theirs, out, config_of(features, "model.channels=32"))
    torch.save({"patch_embed.weight": torch.ones(8, 3, 2, 16, 16)}, tmp_path / "vit.pth")
    assert "takes features" in refusal(convert_weights, tmp_path / "vit.pth", out, config)
    assert [file.name for file in tmp_path.iterdir()] == ["vit.pth"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_converted_file_cut_short_is_refused(share: float, theirs: Path, config: Config, tmp_path: Path) -> None:
    convert_weights(theirs, tmp_path / "whole.safetensors", config)
    whole = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: int(share * len(whole))])
    assert "not a readable checkpoint" in refusal(load_checkpoint, tmp_path / "cut.safetensors")
