"""Detectors as ONNX files: what ONNX Runtime computes is what PyTorch computes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import CHANNELS, CLASSES, PIXELS, config_of, feature_data, video_data
from torch import Tensor, nn

from bitad.cli import main
from bitad.config.schema import Config
from bitad.data.samples import reverse_steps
from bitad.models.build import build_network
from bitad.models.network import Network
from bitad.timeline import Grid, mirror_segments
from bitad.weights.checkpoint import Checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

CLOSE = 1e-4


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return feature_data(tmp_path_factory.mktemp("features") / "data", training=1, test=1)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video_data(tmp_path_factory.mktemp("videos") / "data", training=1, test=1)


def random_checkpoint(config: Config, path: Path) -> Network:
    """Writes a checkpoint of random weights, all of them; the network."""
    torch.manual_seed(0)
    network = build_network(config, len(CLASSES)).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.15)
    weights = dict(network.state_dict())
    save_checkpoint(Checkpoint(config, CLASSES, weights, epoch=1, rate_hz=4.0), path)
    return network


def exported(config: Config, folder: Path, *options: str) -> tuple[Network, Any]:
    """A random network of a configuration, and the session of its file."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="no onnxruntime; pip install 'bitad[onnx]'")
    network = random_checkpoint(config, folder / "random.safetensors")
    out = folder / "random.onnx"
    assert main(["export", str(folder / "random.safetensors"), "--to", "onnx", "--out", str(out), *options]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["random.onnx", "random.safetensors"]
    return network, onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])


def values_of(session: Any, key: str) -> Any:
    return json.loads(session.get_modelmeta().custom_metadata_map[key])


def windows(session: Any, reals: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """A batch of random windows with these numbers of real steps: mask and views, of which the second is reversed."""
    mask_input, first, *others = session.get_inputs()
    steps = mask_input.shape[1]
    mask = torch.arange(steps) < torch.tensor(reals)[:, None]
    generator = torch.Generator().manual_seed(len(reals))
    shape = (len(reals), *first.shape[1:])
    if len(shape) == 3:
        inputs = torch.randn(shape, generator=generator) * mask[:, None]
    else:
        inputs = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    return mask, [inputs, *(reverse_steps(inputs, mask) for _ in others)]


def largest_difference(network: Network, session: Any, reals: Sequence[int]) -> float:
    """Between PyTorch and ONNX Runtime at real points, of logits and distances."""
    if session.get_inputs()[0].shape[0] == 1 < len(reals):
        return max(largest_difference(network, session, [real]) for real in reals)
    mask, views = windows(session, reals)
    with torch.no_grad():
        predictions = network(views, mask).predictions
    inputs = {one.name: tensor.numpy() for one, tensor in zip(session.get_inputs(), [mask, *views], strict=True)}
    names = [one.name for one in session.get_outputs()]
    real, *found = session.run(names, inputs)
    assert names[0] == "real_points"
    assert np.array_equal(real, predictions[0].mask.numpy())
    expected = [tensor.numpy() for one in predictions for tensor in (one.logits, one.distances)]
    assert [one.shape for one in found] == [one.shape for one in expected]
    # No trivial network; of a window with few real steps, all distances may be cut off at 0.
    varied = expected if min(reals) == mask.shape[1] else expected[::2]
    assert min(float(np.ptp(one[real])) for one in varied) > 10 * CLOSE
    return max(float(np.abs(one - other)[real].max()) for one, other in zip(found, expected, strict=True))


BESIDE = "model.backbone.adapter_placement=beside"
TWO_X = ("experiment=2x", "init.forward=hub:a/b", "init.reverse=hub:a/b")
PAIR = ("experiment=3-1", "init.forward=hub:a/b", "init.reverse=hub:a/b", "pair.second=forward")


@pytest.mark.slow
@pytest.mark.parametrize("steps", [16, 32, 44])
def test_one_network_at_all_paddings(features: Path, tmp_path: Path, steps: int) -> None:
    network, session = exported(config_of(features), tmp_path, "--steps", str(steps))
    assert session.get_inputs()[1].shape == ["batch", CHANNELS, steps]
    assert largest_difference(network, session, range(1, steps + 1)) < CLOSE
    assert largest_difference(network, session, [steps]) < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize("steps", [16, 32, 44])
def test_a_pair_with_its_fusion_at_all_paddings(features: Path, tmp_path: Path, steps: int) -> None:
    config = config_of(features, *PAIR, f"window.steps={steps}", "pair.second=reversed-features")
    network, session = exported(config, tmp_path)
    assert largest_difference(network, session, range(1, steps + 1)) < CLOSE
    assert [one.name for one in session.get_inputs()] == ["mask", "features_forward", "features_reversed_features"]
    clocks = [one.get("clock") for one in values_of(session, "outputs").values()]
    assert clocks == [None, "forward", "forward", "reverse", "reverse"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("model.padding=reference", "model.attention_window=5", "model.position_embedding=true"),
        ("model.pyramid.type=sgp", "model.head.type=trident"),
        ("model.pyramid.type=sgp", "model.head.type=trident", "model.padding=reference"),
    ],
    ids=["local attention", "TriDet", "TriDet with OpenTAD's padding"],
)
def test_other_networks_at_all_paddings(features: Path, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    network, session = exported(config_of(features, *overrides), tmp_path)
    assert largest_difference(network, session, range(1, 33)) < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ((), ["frames"]),
        (TWO_X, ["frames_forward", "frames_reverse"]),
        ((BESIDE,), ["frames"]),
        ((*TWO_X, BESIDE), ["frames_forward", "frames_reverse"]),
    ],
    ids=["one", "pair with cross adapters", "adapters beside", "cross adapters beside"],
)
def test_networks_from_frames_at_all_paddings(
    videos: Path, tmp_path: Path, overrides: tuple[str, ...], names: list[str]
) -> None:
    network, session = exported(config_of(videos, *overrides), tmp_path)
    assert [one.name for one in session.get_inputs()] == ["mask", *names]
    assert session.get_inputs()[1].shape == [1, 32, PIXELS, PIXELS, 3]
    assert session.get_inputs()[1].type == "tensor(uint8)"
    assert largest_difference(network, session, range(1, 33)) < CLOSE


@pytest.mark.slow
def test_a_file_says_how_it_is_used(features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, session = exported(config_of(features, "direction=reverse"), tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'random.onnx'}: ")
    assert lines[1].startswith("  CPU time of a window, 1 thread: PyTorch ")
    assert "ms, ONNX Runtime " in lines[1]
    assert float(lines[2].rpartition(" ")[2]) < CLOSE
    texts = session.get_modelmeta().custom_metadata_map
    assert texts["format"] == "bitad onnx 1"
    assert str(features.parent) not in json.dumps(texts)
    assert values_of(session, "classes") == list(CLASSES)
    assert values_of(session, "inputs")["features"]["view"] == "reverse"
    # With the metadata alone, a point's distances become seconds.
    window, levels = values_of(session, "window"), values_of(session, "levels")
    stride = np.concatenate([np.full(one["points"], one["stride"]) for one in levels])
    position = np.concatenate([one["stride"] * np.arange(one["points"]) for one in levels])
    mask, views = windows(session, [20])
    _, _, distances = session.run(None, {"mask": mask.numpy(), "features": views[0].numpy()})
    assert values_of(session, "outputs")["logits"]["shape"] == ["batch", len(position), len(CLASSES)]
    segments = np.stack((position - stride * distances[0, :, 0], position + stride * distances[0, :, 1]), axis=-1)
    assert values_of(session, "outputs")["logits"]["clock"] == "reverse"
    grid = Grid(25.0, window["stride_frames"], window["first_frame"], 20)
    seconds = (window["first_frame"] + window["stride_frames"] * (19 - segments[:, ::-1])) / 25.0
    with torch.no_grad():
        (prediction,) = network(views, mask).predictions
    expected = prediction.points.segments(prediction.distances)[0].double().numpy()
    assert seconds == pytest.approx(grid.to_seconds(mirror_segments(expected, 20)), abs=1e-4)


def test_a_missing_package_is_one_line_that_names_the_extra(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    random_checkpoint(config_of(features), tmp_path / "random.safetensors")
    for name in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["export", str(tmp_path / "random.safetensors"), "--to", "onnx"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bitad export: error: --to onnx needs onnx, onnxscript")
    assert line.endswith(": pip install 'bitad[onnx]'")


def test_windows_that_a_network_cannot_have_are_refused(
    features: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript", reason="no onnxscript; pip install 'bitad[onnx]'")
    pair = config_of(features, *PAIR)
    for config, options, message in (
        (config_of(videos), ("--steps", "40"), "--steps 40 is not a multiple of the 16 steps of a clip"),
        (config_of(features), ("--steps", "0"), "--steps 0 is not a multiple of the 1 steps of a clip"),
        (
            pair,
            ("--steps", "40"),
            "--steps 40: the fusion of this pair was made for windows of 32 steps; leave it out",
        ),
        (pair, ("--out", str(tmp_path / "a.pt")), "give a name that ends in .onnx"),
        (pair, ("--out", str(tmp_path)), "give a name that ends in .onnx"),
    ):
        random_checkpoint(config, tmp_path / "random.safetensors")
        assert main(["export", str(tmp_path / "random.safetensors"), "--to", "onnx", *options]) == 1
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["random.safetensors"]
