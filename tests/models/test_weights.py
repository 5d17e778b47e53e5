from __future__ import annotations

import argparse
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bitad.models.vit import TemporalAdapter, VisionTransformer
from bitad.weights.files import _numpy_number, _NumpyType, read_weights, write_safetensors
from bitad.weights.loading import Weights, load_backbone, load_weights


def tiny_vit(adapters: bool = False, **sizes: int) -> VisionTransformer:
    sizes = {"dim": 8, "depth": 1, "heads": 2, "mlp_dim": 16, "image_size": 32} | sizes
    modules = [TemporalAdapter(sizes["dim"]) for _ in range(sizes["depth"])] if adapters else None
    return VisionTransformer(**sizes, adapters=modules)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def assert_one_line(error: pytest.ExceptionInfo[BaseException], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# What is taken.


def test_the_averaged_weights_are_preferred() -> None:
    def checkpoint(value: float) -> dict[str, Tensor]:
        return {"module.projection.stem.0.ln1.weight": torch.full((2,), value)}

    both = {"epoch": 3, "state_dict": checkpoint(1.0), "state_dict_ema": checkpoint(2.0)}
    assert Weights.of(both).tensors["pyramid.stem.0.norm1.weight"].tolist() == [2.0, 2.0]
    del both["state_dict_ema"]
    assert Weights.of(both).tensors["pyramid.stem.0.norm1.weight"].tolist() == [1.0, 1.0]
    assert Weights.of(checkpoint(3.0)).tensors["pyramid.stem.0.norm1.weight"].tolist() == [3.0, 3.0]


@pytest.mark.parametrize("adapters", [False, True])
def test_a_pretrained_backbone_is_loaded_and_adapters_stay(tmp_path: Path, adapters: bool) -> None:
    source, vit = tiny_vit(), tiny_vit(adapters)
    torch.save(layouts.mmaction2(source.state_dict()), tmp_path / "vit.pth")
    down = vit.state_dict().get("blocks.0.adapter.down.weight")
    before = None if down is None else down.clone()
    load_backbone(vit, tmp_path / "vit.pth")
    loaded = vit.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in source.state_dict().items())
    assert before is None or torch.equal(loaded["blocks.0.adapter.down.weight"], before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_taken_as_single_and_said(
    dtype: torch.dtype, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, vit = tiny_vit(), tiny_vit()
    halved = {name: weight.to(dtype) for name, weight in source.state_dict().items()}
    save_file(halved, tmp_path / "half.safetensors")
    with caplog.at_level(logging.INFO, logger="bitad"):
        load_backbone(vit, tmp_path / "half.safetensors")
    assert f"holds {str(dtype).removeprefix('torch.')}; read as float32" in caplog.text
    assert {weight.dtype for weight in vit.state_dict().values()} == {torch.float32}
    assert all(torch.equal(weight, halved[name].float()) for name, weight in vit.state_dict().items())
    assert Weights.of(halved).is_converted


def test_a_file_in_the_old_form_of_pytorch_is_read_too(tmp_path: Path) -> None:
    source, vit = tiny_vit(), tiny_vit()
    path = tmp_path / "pytorch_model.bin"
    torch.save(source.state_dict(), path, _use_new_zipfile_serialization=False)
    load_backbone(vit, path)
    assert same(vit, source)


def test_what_is_loaded_does_not_hang_on_the_file(tmp_path: Path) -> None:
    source, vit = tiny_vit(), tiny_vit()
    torch.save(source.state_dict(), tmp_path / "vit.pth")
    load_backbone(vit, tmp_path / "vit.pth")
    (tmp_path / "vit.pth").write_bytes(b"something else")
    assert same(vit, source)


# What else a file may hold.


def test_the_arguments_of_a_training_and_its_figures_do_no_harm(tmp_path: Path) -> None:
    source, vit = tiny_vit(), tiny_vit()
    content = layouts.videomae_finetuned(source.state_dict())
    content |= {"args": argparse.Namespace(lr=1e-3, device=torch.device("cpu")), "max_accuracy": np.float64(81.5)}
    content |= {"steps": np.int64(7), "done": np.bool_(True)}
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path)
    load_backbone(vit, path)
    assert same(vit, source)
    read = read_weights(path)
    assert (read["max_accuracy"], read["steps"], read["done"]) == (81.5, 7, True)
    assert read["args"].lr == 1e-3


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("code in a weights file was run",))


def test_code_in_a_weights_file_is_never_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pth")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(Bomb()))
    for name in ("bomb.pth", "pickle.pth"):
        with pytest.raises(ValueError) as error:
            read_weights(tmp_path / name)
        assert_one_line(error, name)


def test_what_a_file_needs_beside_weights_is_named_with_a_remedy(tmp_path: Path) -> None:
    content = layouts.mmaction2(tiny_vit().state_dict())
    torch.save({**content, "meta": {"path": Path("x"), "history": np.arange(3)}}, tmp_path / "vit.pth")
    with pytest.raises(ValueError) as error:
        read_weights(tmp_path / "vit.pth")
    assert_one_line(error, "core.multiarray._reconstruct", "pathlib.", "save its weights alone")
    assert "argparse" not in str(error.value)


@pytest.mark.parametrize("code", ["O", "V8", "U4", "i8,O"])
def test_only_numbers_of_numpy_are_read(code: str, tmp_path: Path) -> None:
    class Crafted:
        def __reduce__(self) -> tuple[Any, ...]:
            return np.float64(0).__reduce__()[0], (np.dtype("f8"), b"\0" * 8)

    torch.save({"number": Crafted()}, tmp_path / "number.pth")
    assert read_weights(tmp_path / "number.pth")["number"] == 0
    with pytest.raises(ValueError, match="only numbers are read"):
        _numpy_number(_NumpyType(code), b"\0" * 16)


# What is refused.


def test_unknown_names_are_refused_with_the_first_of_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no known project: tensors 'conv1\.weight'"):
        Weights.of({"conv1.weight": torch.ones(1)})
    with pytest.raises(ValueError, match="it is empty"):
        Weights.of({})
    torch.save({"state_dict": {"conv1.weight": torch.ones(1)}}, tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"resnet\.pth: weights of no known project"):
        load_backbone(tiny_vit(), tmp_path / "resnet.pth")


def test_another_size_is_named_beside_the_wanted_one(tmp_path: Path) -> None:
    torch.save(layouts.videomae_finetuned(tiny_vit(dim=12, depth=2).state_dict()), tmp_path / "vit.pth")
    vit = tiny_vit()
    before = tiny_vit()
    before.load_state_dict(vit.state_dict())
    with pytest.raises(ValueError) as error:
        load_backbone(vit, tmp_path / "vit.pth")
    assert_one_line(
        error,
        "vit.pth do not fit the network: model.backbone.size is a transformer (12 wide, 2 blocks, MLP 16, patch 16) in",
        "a transformer (8 wide, 1 blocks, MLP 16, patch 16) in the configuration",
    )
    assert same(vit, before)


def test_published_sizes_are_called_by_their_names(tmp_path: Path) -> None:
    with torch.device("meta"):
        base, huge = (
            VisionTransformer(**sizes)
            for sizes in (
                {"dim": 768, "depth": 12, "heads": 12, "mlp_dim": 3072},
                {"dim": 1280, "depth": 32, "heads": 16, "mlp_dim": 5120},
            )
        )
    with pytest.raises(ValueError) as error:
        load_weights(huge, base.state_dict(), source="vit.pth")
    assert_one_line(
        error,
        "model.backbone.size is VideoMAE-b (768 wide, 12 blocks",
        "VideoMAE-h (1280 wide, 32 blocks",
    )


def test_other_adapters_are_named_with_the_key_that_fits_them() -> None:
    some = tiny_vit(adapters=True, depth=3).state_dict()
    later = {name: weight for name, weight in some.items() if not name.startswith("blocks.0.adapter.")}
    with pytest.raises(
        ValueError, match=r"model\.backbone\.first_adapter is 1 in the file, 0 in the configuration"
    ):
        load_weights(tiny_vit(adapters=True, depth=3), later, source="vit.pth")
    wide = VisionTransformer(
        dim=8, depth=1, heads=2, mlp_dim=16, image_size=32, adapters=[TemporalAdapter(8, reduction=2)]
    )
    with pytest.raises(
        ValueError, match=r"model\.backbone\.adapter_reduction is 2 in the file, 4 in the configuration"
    ):
        load_weights(tiny_vit(adapters=True), wide.state_dict(), source="vit.pth")


def test_a_published_detector_with_adapters_is_no_backbone_for_adapters_beside(tmp_path: Path) -> None:
    torch.save(layouts.mmaction2(tiny_vit(adapters=True).state_dict()), tmp_path / "vit.pth")
    beside = VisionTransformer(
        dim=8,
        depth=1,
        heads=2,
        mlp_dim=16,
        image_size=32,
        adapters=[TemporalAdapter(8, placement="beside")],
        placement="beside",
    )
    with pytest.raises(ValueError, match=r"adapter_placement is inside in the file, beside in the configuration$"):
        load_backbone(beside, tmp_path / "vit.pth")


def test_what_does_not_fit_is_named_in_one_line_and_nothing_is_loaded() -> None:
    vit, other = tiny_vit(), tiny_vit()
    weights = {name: weight + 1 for name, weight in vit.state_dict().items()}
    del weights["blocks.0.norm1.weight"]
    weights["head.bias"] = torch.ones(1)
    weights["blocks.0.norm2.weight"] = torch.ones(9)
    other.load_state_dict(vit.state_dict())
    with pytest.raises(ValueError) as error:
        load_weights(vit, weights, source="vit.pth")
    assert_one_line(
        error,
        "weights of vit.pth do not fit",
        "1 missing: blocks.0.norm1.weight",
        "1 not in the network: head.bias",
        "1 of another shape: blocks.0.norm2.weight [9] instead of [8]",
    )
    assert same(vit, other)


def test_a_network_that_ours_is_not_is_refused_by_its_names() -> None:
    """VideoMAEv2's code can build attention by cosine, and BEiT's scaled branches: weights that have no place here."""
    names = layouts.videomae_finetuned(tiny_vit().state_dict())["module"]
    names |= {"blocks.0.attn.scale": torch.ones(2, 1, 1), "blocks.0.gamma_1": torch.ones(8)}
    with pytest.raises(ValueError, match=r"2 not in the network: blocks\.0\.attn\.scale, blocks\.0\.gamma_1"):
        load_weights(tiny_vit(), Weights.of(names).tensors, source="vit.pth", may_lack="^pos_embed$")


def test_only_the_first_names_of_many_are_listed() -> None:
    with pytest.raises(ValueError) as error:
        load_weights(tiny_vit(), {}, source="nothing")
    assert_one_line(error, "16 missing: pos_embed, patch_embed.weight, patch_embed.bias, ...")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights at .*vit\.pth"):
        read_weights(tmp_path / "vit.pth")


@pytest.mark.parametrize("name", ["torn.pth", "torn.safetensors"])
def test_a_damaged_file_is_an_error_of_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(ValueError, match="not a readable checkpoint or file of weights") as error:
        read_weights(tmp_path / name)
    assert_one_line(error, name)


@pytest.mark.parametrize("form", ["zip", "old", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_an_error_of_one_line(form: str, share: float, tmp_path: Path) -> None:
    weights = tiny_vit().state_dict()
    whole, cut = (
        tmp_path / f"{word}.{'safetensors' if form == 'safetensors' else 'pth'}" for word in ("whole", "cut")
    )
    if form == "safetensors":
        save_file(weights, whole)
    else:
        torch.save(weights, whole, _use_new_zipfile_serialization=form == "zip")
    cut.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    with pytest.raises(ValueError, match="not a readable checkpoint or file of weights") as error:
        read_weights(cut)
    assert_one_line(error, "cut.")


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save(torch.ones(3), tmp_path / "tensor.pth")
    with pytest.raises(ValueError, match="holds a Tensor, not named weights"):
        read_weights(tmp_path / "tensor.pth")
    torch.save({"state_dict": [1, 2]}, tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth: weights of no known project"):
        load_backbone(tiny_vit(), tmp_path / "list.pth")


# What is written.


def test_safetensors_are_written_whole_with_what_is_said_of_them(tmp_path: Path) -> None:
    weights = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(())}
    path = tmp_path / "new" / "weights.safetensors"
    write_safetensors(weights, path, metadata={"source": "here", "numbers": json.dumps([1, 2])})
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"source": "here", "numbers": "[1, 2]"}
    assert all(torch.equal(read_weights(path)[name], weight) for name, weight in weights.items())
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_safetensors(weights, path, metadata={"number": 1})  # only texts can be said
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["weights.safetensors"]
