"""Of several sets of weights in a file the averaged ones are taken; what is no weights is refused by name."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import layouts
import pytest
import torch
from torch import Tensor

from bitad.cli import main
from bitad.models.vit import VisionTransformer
from bitad.weights.checkpoint import convert_weights
from bitad.weights.loading import Weights, load_backbone

# Every key under which the averaged weights of some project lie.
AVERAGED = (
    "model_ema", "ema", "ema_state_dict", "state_dict_ema", "module_ema", "ema_model", "model_ema_state_dict",
    "ema_weights", "params_ema", "ModelEMA", "swa_model", "averaged_model", "shadow",
)  # fmt: skip


def vit() -> VisionTransformer:
    return VisionTransformer(dim=8, depth=1, heads=2, mlp_dim=16, image_size=32)


def named(value: float) -> dict[str, Tensor]:
    """Weights as VideoMAE names them, all of one value."""
    weights = layouts.videomae_finetuned(vit().state_dict())["module"]
    return {name: torch.full_like(tensor, value) for name, tensor in weights.items()}


def prefixed(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in weights.items()}


def taken(content: dict[str, Any], path: Path) -> float:
    """The value of all weights that are taken from a file."""
    torch.save(content, path)
    network = vit()
    load_backbone(network, path)
    (value,) = {
        weight
        for name, tensor in network.state_dict().items()
        if name != "pos_embed"
        for weight in tensor.unique().tolist()
    }
    return value


@pytest.mark.parametrize("raw", ["model", "state_dict", "module", "net", "model_state_dict", "network", None])
@pytest.mark.parametrize("key", AVERAGED)
def test_averaged_weights_are_taken_wherever_they_are(tmp_path: Path, key: str, raw: str | None) -> None:
    content = {key: named(2.0)} if raw is None else {raw: named(1.0), key: named(2.0), "epoch": 5}
    assert taken(content, tmp_path / "w.pth") == 2.0
    weights = Weights.of(content)
    assert weights.is_averaged
    assert weights.key == key
    assert weights.others == (() if raw is None else (raw,))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: (
            {f"module.{name}": tensor for name, tensor in weights.items()} | {"n_averaged": torch.tensor(7)}
        ),
        lambda weights: {"decay": 0.99, "updates": 3, "module": weights},
        lambda weights: {"decay": 0.99, "shadow": weights},
        lambda weights: {"state_dict": weights, "num_updates": torch.tensor(3)},
        lambda weights: {"params": weights},
        lambda weights: {"ema_model": {"module": weights}},
        lambda weights: prefixed(weights, "ema_model") | {"step": torch.tensor(7)},
        lambda weights: prefixed(named(3.0), "online_model") | prefixed(weights, "ema_model"),
    ],
    ids=["AveragedModel", "module", "shadow", "state_dict", "params", "nested", "prefixed", "both"],
)
def test_averages_are_found_in_what_keeps_them(tmp_path: Path, wrap: Callable[[dict[str, Tensor]], Any]) -> None:
    assert taken({"model": named(1.0), "model_ema": wrap(named(2.0))}, tmp_path / "w.pth") == 2.0


@pytest.mark.parametrize(
    "content",
    [
        lambda raw, averaged: {"checkpoint": {"model": raw, "model_ema": averaged}},
        lambda raw, averaged: {"state_dict": {"model": raw, "model_ema": averaged}},
        lambda raw, averaged: {"model": {"state_dict": raw, "ema_state_dict": averaged}},
        lambda raw, averaged: {"model": prefixed(raw, "module"), "model_ema": prefixed(averaged, "module.module")},
        lambda raw, averaged: {"model": raw, "model_ema": prefixed(averaged, "module._orig_mod")},
        lambda raw, averaged: {"state_dict": prefixed(raw, "model") | prefixed(averaged, "ema_model")},
        lambda raw, averaged: raw | prefixed(averaged, "ema.module"),
        lambda raw, averaged: {"state_dict": raw, "callbacks": {"EMA": {"ema_state_dict": averaged}}},
    ],
    ids=["above", "state_dict", "model", "parallel", "compiled", "lightning", "top", "callback"],
)
def test_averages_are_found_however_deep_they_are(tmp_path: Path, content: Callable[[Any, Any], Any]) -> None:
    assert taken(content(named(1.0), named(2.0)), tmp_path / "w.pth") == 2.0


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"])
def test_wrappers_within_a_name_are_no_part_of_it(tmp_path: Path, wrapper: str) -> None:
    weights = {name.replace("blocks.0.", f"blocks.0.{wrapper}."): tensor for name, tensor in named(3.0).items()}
    assert taken({"model": weights}, tmp_path / "w.pth") == 3.0


def test_an_optimiser_has_no_weights(tmp_path: Path) -> None:
    state = {"state": {0: {"exp_avg": torch.ones(3)}, "exp_avg": {"step": torch.ones(())}}}
    assert taken({"model": named(1.0), "optimizer": state}, tmp_path / "w.pth") == 1.0
    assert Weights.of({"model": named(1.0), "optimizer": state}).empty_averages == ()


def test_of_two_sets_that_are_no_averages_it_is_said_which_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("bitad").propagate = True
    with caplog.at_level(logging.INFO, "bitad"):
        assert taken({"student": named(5.0), "model": named(1.0)}, tmp_path / "w.pth") == 1.0
    assert "using the weights (model), not student" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"model": None},
        {"model": {1: torch.ones(2)}},
        {1: torch.ones(2), "a": torch.ones(2)},
        {"a": [torch.ones(2)]},
    ],
)
def test_a_file_that_names_no_weights_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any
) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert main(["weights", "inspect", str(tmp_path / "w.pth")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"error: {tmp_path / 'w.pth'}: weights of no known project: " in line


@pytest.mark.parametrize(
    "empty", [None, {}, [], {"decay": 0.99, "shadow_params": [torch.ones(2)]}, {"loss": torch.ones(())}]
)
@pytest.mark.parametrize("key", ["ema", "model_ema"])
def test_an_average_without_weights_is_said_and_the_others_are_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], key: str, empty: Any
) -> None:
    logging.getLogger("bitad").propagate = True
    path = tmp_path / "w.pth"
    with caplog.at_level(logging.INFO, "bitad"):
        assert taken({"model": named(1.0), key: empty}, path) == 1.0
    assert f"{path} has no averaged weights in {key}; using others" in caplog.text
    capsys.readouterr()
    main(["weights", "inspect", str(path)])
    out = capsys.readouterr().out
    assert f"no weights in {key}" in out
    assert "in model, not marked as EMA" in out


@pytest.mark.parametrize("setting", [True, 0.9998, "yes", 3])
def test_a_setting_called_ema_is_no_average(setting: object) -> None:
    weights = Weights.of({"model": named(1.0), "ema": setting})
    assert not weights.is_averaged
    assert weights.empty_averages == ()


@pytest.mark.parametrize("mark", [{"message_hub": {}}, {"meta": {"mmengine_version": "0.10.4"}}])
def test_mmengine_keeps_its_average_in_state_dict(tmp_path: Path, mark: dict[str, Any]) -> None:
    trained = {f"module.{name}": tensor for name, tensor in named(1.0).items()} | {"steps": torch.tensor(9)}
    content = {"state_dict": named(2.0), "ema_state_dict": trained, **mark}
    assert taken(content, tmp_path / "w.pth") == 2.0
    assert Weights.of(content).is_averaged
    assert Weights.of(content).others == ("ema_state_dict",)


def test_inspect_and_the_log_say_which_weights_are_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger("bitad").propagate = True
    path = tmp_path / "checkpoint-99.pth"
    content = {"model": named(1.0), "model_ema": named(2.0), "optimizer": {}, "epoch": 99}
    with caplog.at_level(logging.INFO, "bitad"):
        assert taken(content, path) == 2.0
    assert "using the averaged weights (model_ema), not model" in caplog.text
    capsys.readouterr()
    assert main(["weights", "inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "in model_ema, averaged (EMA)" in out
    assert "others     model: not used" in out
    assert main(["weights", "inspect", str(path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["weights"], said["averaged"], said["also"]) == ("model_ema", True, ["model"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_floating_point_weights_become_single_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    content = {name: tensor.to(dtype) for name, tensor in named(0.5).items()}
    assert taken(content, tmp_path / "w.pth") == 0.5
    assert Weights.of(content).is_converted
    assert {tensor.dtype for tensor in Weights.of(content).tensors.values()} == {torch.float32}


def quantized(tensor: Tensor) -> Tensor:
    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensor: tensor.to(torch.int64), "is int64"),
        (lambda tensor: tensor.to(torch.uint8), "is uint8"),
        (lambda tensor: tensor > 0, "is bool"),
        (lambda tensor: tensor.to(torch.complex64), "is complex64"),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), "is float8_e4m3fn"),
        (lambda tensor: tensor.to_sparse(), "is sparse"),
        (quantized, "is quantized"),
        (lambda tensor: tensor * float("nan"), "has 12288 values that are infinite or NaN"),
        (lambda tensor: tensor.double() * 1e300, "has 12288 values that are infinite"),
        (lambda tensor: torch.where(tensor.cumsum(0) > 7, torch.inf, tensor), "has 1536 values that are infinite"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_weights_that_are_no_finite_numbers_are_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Tensor], Tensor], said: str
) -> None:
    weights = named(1.0)
    name = "patch_embed.proj.weight"
    weights[name] = change(weights[name])
    path = tmp_path / "w.pth"
    torch.save({"model": weights}, path)
    for command in (
        ["weights", "inspect", str(path)],
        ["weights", "convert", str(path), str(tmp_path / "o.safetensors")],
    ):
        assert main(command) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert str(path) in line
        assert f"weight patch_embed.weight {said}" in line
    assert not (tmp_path / "o.safetensors").exists()


def test_whole_numbers_that_belong_into_a_network_are_no_fault() -> None:
    counted = {"blocks.0.num_batches_tracked": torch.tensor(3), **named(1.0)}
    assert Weights.of(counted).tensors["blocks.0.num_batches_tracked"].dtype == torch.int64


def test_what_a_network_has_no_use_for_may_be_anything(tmp_path: Path) -> None:
    weights = {
        **named(1.0),
        "head.weight": torch.ones(3, dtype=torch.int64),
        "fc_norm.bias": torch.full((8,), torch.nan),
    }
    assert taken({"model": weights}, tmp_path / "w.pth") == 1.0


def test_converted_weights_are_the_averaged_ones(tmp_path: Path) -> None:
    torch.save({"model": named(1.0), "model_ema": named(2.0)}, tmp_path / "w.pth")
    convert_weights(tmp_path / "w.pth", tmp_path / "o.safetensors")
    network = vit()
    load_backbone(network, tmp_path / "o.safetensors")
    assert network.state_dict()["blocks.0.norm1.weight"].tolist() == [2.0] * 8
