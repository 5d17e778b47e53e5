from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bitad.models.adapters import TemporalAdapter
from bitad.models.detector import Detector, VideoBackbone
from bitad.models.head import DetectionHead
from bitad.models.pyramid import FeaturePyramid
from bitad.models.sizes import SIZES
from bitad.models.videomae import VisionTransformer
from bitad.models.weights import (
    convert,
    from_opentad,
    from_videomae,
    load_backbone,
    load_weights,
    read_weights,
    recognise,
)

FIXTURES = Path(__file__).parents[2] / "../shared/fixtures"

needs_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason="the key lists of published files, ../shared/fixtures, are not beside this checkout"
)


def tiny_vit(adapters: bool = False) -> VisionTransformer:
    modules = [TemporalAdapter(8)] if adapters else None
    return VisionTransformer(dim=8, depth=1, heads=2, mlp_dim=16, image_size=32, adapters=modules)


def as_mmaction(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights of a transformer without adapters under mmaction2's names, with a classifier."""
    theirs = {
        name.replace("patch_embed.", "patch_embed.projection.")
        .replace(".mlp.0.", ".mlp.layers.0.0.")
        .replace(".mlp.2.", ".mlp.layers.1."): weight
        for name, weight in weights.items()
    }
    return {f"backbone.{name}": weight for name, weight in theirs.items()} | {
        "backbone.fc_norm.weight": torch.ones(8),
        "cls_head.fc_cls.weight": torch.ones(4, 8),
    }


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# Names and shapes of the published files.


def published(size: str) -> dict[str, Any]:
    return json.loads(gzip.decompress((FIXTURES / f"keys_videomae_{size}.json.gz").read_bytes()))


def on_meta(listing: dict[str, Any]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, (shape, _) in listing.items()}


def shapes(weights: dict[str, Tensor], depth: int = 1) -> dict[str, list[int]]:
    """Shapes by name, the transformer's first block repeated ``depth`` times."""
    return {
        name.replace("blocks.0.", f"blocks.{block}."): list(tensor.shape)
        for name, tensor in weights.items()
        for block in range(depth)
    }


@needs_fixtures
@pytest.mark.parametrize("size", ["s", "b", "l", "h"])
def test_published_files_fill_their_networks(size: str) -> None:
    listing, sizes = published(size), SIZES[size]
    # One block has the names and shapes of all of them, and is quickly built.
    dimensions = {"dim": sizes.dim, "depth": 1, "heads": sizes.heads, "mlp_dim": sizes.mlp_dim}
    with torch.device("meta"):
        pyramid = FeaturePyramid(sizes.dim, 512, levels=6, max_length=768)
        head = DetectionHead(512, 20, strides=pyramid.strides, ranges=[(0.0, 1.0)] * 6)
    vit = VisionTransformer(**dimensions, adapters=[TemporalAdapter(sizes.dim)])
    detector = Detector(backbone=VideoBackbone(vit), pyramid=pyramid, head=head)
    checkpoint = convert({"state_dict_ema": on_meta(listing["detector"])})
    assert shapes(checkpoint) == shapes(detector.state_dict(), sizes.depth)
    pretrained = convert({"state_dict": on_meta(listing["pretrained"])})
    without_adapters = {name: w for name, w in vit.state_dict().items() if ".adapter." not in name}
    assert shapes(pretrained) == shapes(without_adapters, sizes.depth)


# Reading.


def test_the_ema_is_preferred_and_wrappers_prefixes_fall() -> None:
    def checkpoint(value: float) -> dict[str, Tensor]:
        return {"module.projection.stem.0.ln1.weight": torch.full((2,), value)}

    both = {"epoch": 3, "state_dict": checkpoint(1.0), "state_dict_ema": checkpoint(2.0)}
    assert from_opentad(both)["pyramid.stem.0.norm1.weight"].tolist() == [2.0, 2.0]
    del both["state_dict_ema"]
    assert from_opentad(both)["pyramid.stem.0.norm1.weight"].tolist() == [1.0, 1.0]
    assert from_opentad(checkpoint(3.0))["pyramid.stem.0.norm1.weight"].tolist() == [3.0, 3.0]


def test_the_levels_scales_become_one_vector_in_their_order() -> None:
    scales = {f"rpn_head.scale.{level}.scale": torch.tensor(float(level)) for level in (10, 2, 0)}
    assert from_opentad(scales)["head.scales"].tolist() == [0.0, 2.0, 10.0]


def test_the_loss_normaliser_is_left_to_the_training() -> None:
    assert from_opentad({"rpn_head.loss_normalizer": torch.tensor(100)}) == {}


@pytest.mark.parametrize("adapters", [False, True])
def test_a_pretrained_backbone_is_loaded_and_adapters_stay(tmp_path: Path, adapters: bool) -> None:
    source, vit = tiny_vit(), tiny_vit(adapters)
    torch.save({"state_dict": as_mmaction(source.state_dict())}, tmp_path / "vit.pth")
    up = vit.state_dict().get("blocks.0.adapter.down.weight")
    before = None if up is None else up.clone()
    load_backbone(vit, tmp_path / "vit.pth")
    loaded = vit.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in source.state_dict().items())
    assert before is None or torch.equal(loaded["blocks.0.adapter.down.weight"], before)


def test_our_own_safetensors_are_loaded_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, vit = tiny_vit(), tiny_vit(adapters=True)
    save_file(source.state_dict(), tmp_path / "vit.safetensors")
    load_backbone(vit, tmp_path / "vit.safetensors")
    assert torch.equal(vit.state_dict()["blocks.0.attn.qkv.weight"], source.state_dict()["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize(
    ("names", "known"),
    [
        (["rpn_head.scale.0.scale"], "opentad"),
        (["projection.embed.0.conv.weight"], "opentad"),
        (["backbone.patch_embed.projection.weight", "backbone.pos_embed"], "videomae"),
        (["patch_embed.weight", "pos_embed"], "bitad"),
        (["head.scales", "pyramid.norms.0.bias"], "bitad"),
    ],
)
def test_formats_are_recognised_by_their_names(names: list[str], known: str) -> None:
    assert recognise(names) == known


def test_unknown_names_are_refused_with_the_first_of_them() -> None:
    with pytest.raises(ValueError, match=r"no known project: the first is 'conv1\.weight'"):
        convert({"conv1.weight": torch.ones(1)})
    with pytest.raises(ValueError, match="the first is 'none'"):
        convert({})
    with pytest.raises(ValueError, match=r"not a checkpoint of OpenTAD.*'patch_embed.weight'"):
        from_opentad({"patch_embed.weight": torch.ones(1)})
    with pytest.raises(ValueError, match=r"not a VideoMAE file.*'rpn_head.cls_head.bias'"):
        from_videomae({"rpn_head.cls_head.bias": torch.ones(1)})


def assert_one_line(error: pytest.ExceptionInfo[BaseException], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


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


def test_only_the_first_names_of_many_are_listed() -> None:
    with pytest.raises(ValueError) as error:
        load_weights(tiny_vit(), {}, source="nothing")
    assert_one_line(error, "16 missing: pos_embed, patch_embed.weight, patch_embed.bias, ...")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights at .*vit\.pth"):
        read_weights(tmp_path / "vit.pth")


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("code in a weights file was run",))


def test_code_in_a_weights_file_is_never_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pth")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(Bomb()))
    for name in ("bomb.pth", "pickle.pth"):
        with pytest.raises(ValueError, match="not a readable file of weights") as error:
            read_weights(tmp_path / name)
        assert_one_line(error)


@pytest.mark.parametrize("name", ["torn.pth", "torn.safetensors"])
def test_a_damaged_file_is_an_error_of_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(ValueError, match="not a readable file of weights") as error:
        read_weights(tmp_path / name)
    assert_one_line(error, name)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save(torch.ones(3), tmp_path / "tensor.pth")
    with pytest.raises(ValueError, match="holds a Tensor, not named weights"):
        read_weights(tmp_path / "tensor.pth")
