"""Files in every known project's layout fill our networks, whole; published names and sizes do so one for one."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import layouts
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bitad.config.loading import parse_config
from bitad.config.names import SIZES
from bitad.config.schema import Config
from bitad.models.build import build_network
from bitad.models.vit import TemporalAdapter, VisionTransformer, is_adapter
from bitad.weights.formats import FORMATS, recognise
from bitad.weights.loading import Weights, load_backbone, load_weights

FIXTURES = Path(__file__).parents[2] / "../shared/fixtures"

needs_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(),
    reason="the key lists of published files, ../shared/fixtures, are not beside this checkout",
)


def vit_of(seed: int, *, adapters: bool = False, table_pixels: int = 224) -> VisionTransformer:
    """A small transformer with no value as at the beginning."""
    torch.manual_seed(seed)
    modules = [TemporalAdapter(24), TemporalAdapter(24)] if adapters else None
    vit = VisionTransformer(dim=24, depth=2, heads=3, mlp_dim=40, image_size=table_pixels, adapters=modules)
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.3)
    return vit.eval()


def tiny_config(**model: Any) -> Config:
    document: dict[str, Any] = {
        "name": "tiny",
        "data": {"annotations": "none", "videos": "none"},
        "window": {"steps": 32},
        "model": {"channels": 16, "levels": 3, "stem_blocks": 1, "heads": 2, **model},
    }
    if "backbone" not in model:
        document["data"] = {"annotations": "none", "features": "none", "feature_channels": 8}
    return parse_config(document, "in this test")


def randomised(config: Config, classes: int = 5) -> nn.Module:
    """A network of which no value is as at the beginning."""
    torch.manual_seed(7)
    network = build_network(config, classes)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.eval()


def assert_same_weights(found: nn.Module, source: nn.Module) -> None:
    ours = found.state_dict()
    assert all(torch.equal(ours[name], weight) for name, weight in source.state_dict().items())


# Backbones.


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors"])
@pytest.mark.parametrize("project", layouts.BACKBONES)
def test_a_backbone_of_every_project_fills_the_transformer(project: str, suffix: str, tmp_path: Path) -> None:
    source, vit = vit_of(0), vit_of(1, adapters=True)
    content, path = layouts.BACKBONES[project](source.state_dict()), tmp_path / f"vit{suffix}"
    if suffix == ".safetensors":
        nested = [value for value in content.values() if isinstance(value, dict) and value]
        save_file({k: w.clone() for k, w in (nested[0] if nested else content).items()}, path)
    else:
        torch.save(content, path)
    adapters = {name: weight.clone() for name, weight in vit.state_dict().items() if is_adapter(name)}
    load_backbone(vit, path)
    assert_same_weights(vit, source)
    assert all(torch.equal(vit.state_dict()[name], weight) for name, weight in adapters.items())


@pytest.mark.parametrize("project", layouts.BACKBONES)
def test_what_is_left_out_has_no_place_in_the_transformer(project: str) -> None:
    weights = Weights.of(layouts.BACKBONES[project](vit_of(0).state_dict()))
    allowed = r"fc_norm|classifier|cls_head|head\.|decoder|mask_token|(^|\.)(layer)?norm\."
    assert all(re.search(allowed, name) for name in weights.unused)
    assert weights.format.kind == "backbone"


def test_a_table_in_the_file_is_used_and_its_size_is_asked_for(tmp_path: Path) -> None:
    source = vit_of(0, table_pixels=64)
    table = source.get_buffer("pos_embed")
    table += 1  # learnt, not the sinusoid
    torch.save(layouts.mmaction2(source.state_dict()), tmp_path / "vit.pth")
    vit = vit_of(1, table_pixels=64)
    load_backbone(vit, tmp_path / "vit.pth")
    assert torch.equal(vit.get_buffer("pos_embed"), table)
    with pytest.raises(ValueError, match=r"model\.backbone\.table_pixels is 64 in the file, 224 in"):
        load_backbone(vit_of(1), tmp_path / "vit.pth")


@pytest.mark.parametrize("pixels", [224, 160])
@torch.no_grad()
def test_the_transformer_equals_hugging_faces(pixels: int, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the oracle, transformers, is not installed")
    torch.manual_seed(3)
    theirs = transformers.VideoMAEModel(
        transformers.VideoMAEConfig(
            image_size=pixels,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=40,
            layer_norm_eps=1e-6,
        )
    ).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path)
    vit = vit_of(0)
    load_backbone(vit, tmp_path / "model.safetensors")
    side = pixels // 16
    theirs.embeddings.position_embeddings = vit.position_table(side, side)  # theirs is not resized, but made anew
    clips = torch.randn(2, 3, 16, pixels, pixels)
    expected = theirs(clips.transpose(1, 2)).last_hidden_state
    found = vit(clips, clips_per_window=1).flatten(1, 3)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_hugging_faces_names_are_those_of_its_classes() -> None:
    transformers = pytest.importorskip("transformers", reason="the oracle, transformers, is not installed")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
    config = transformers.VideoMAEConfig(**sizes, num_labels=400)
    weights = vit_of(0).state_dict()
    for name, layout in (
        ("VideoMAEModel", layouts.huggingface_model),
        ("VideoMAEForVideoClassification", layouts.huggingface_classifier),
    ):
        theirs = getattr(transformers, name)(config).state_dict()
        ours = {re.sub(r"\.([qv])_bias$", _query_or_value, key): w.shape for key, w in layout(weights).items()}
        assert {key: w.shape for key, w in theirs.items() if key != "layernorm.weight"}.items() >= ours.items()


def _query_or_value(found: re.Match[str]) -> str:
    """What transformers 5 calls these biases in memory."""
    return {"q": ".query.bias", "v": ".value.bias"}[found[1]]


# Detectors.


BACKBONE = {"size": {"dim": 24, "depth": 2, "heads": 3, "mlp_dim": 40}, "pixels": 32, "table_pixels": 32}


@pytest.mark.parametrize(
    ("layout", "model"),
    [
        (layouts.opentad_file, {"backbone": BACKBONE}),
        (layouts.opentad_file, {}),
        (layouts.opentad_file, {"layer_scale": None}),
        (layouts.actionformer_file, {}),
        (layouts.actionformer_file, {"layer_scale": None, "stem_blocks": 2, "levels": 4}),
    ],
)
def test_detectors_of_other_projects_fill_ours_with_their_averaged_weights(
    layout: Any, model: dict[str, Any]
) -> None:
    source, network = randomised(tiny_config(**model)), build_network(tiny_config(**model), 5)
    weights = Weights.of(layout(source.state_dict()))
    assert weights.is_averaged
    assert weights.format.kind == "detector"
    load_weights(network, weights.tensors, source="the file")
    assert_same_weights(network, source)


def test_the_backbone_of_a_detector_comes_with_its_adapters(tmp_path: Path) -> None:
    source = randomised(tiny_config(backbone=BACKBONE))
    torch.save(layouts.opentad_file(source.state_dict()), tmp_path / "epoch_73.pth")
    vit = vit_of(1, adapters=True, table_pixels=32)
    load_backbone(vit, tmp_path / "epoch_73.pth")
    assert_same_weights(vit, source.get_submodule("backbone.vit"))
    torch.save(layouts.actionformer_file(randomised(tiny_config()).state_dict()), tmp_path / "epoch_034.pth.tar")
    with pytest.raises(ValueError, match=r"epoch_034\.pth\.tar is a detector on features, without a backbone"):
        load_backbone(vit, tmp_path / "epoch_034.pth.tar")


# Published names and sizes.


def published(size: str) -> dict[str, Any]:
    return json.loads(gzip.decompress((FIXTURES / f"keys_videomae_{size}.json.gz").read_bytes()))


def on_meta(listing: dict[str, Any]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, (shape, _) in listing.items()}


def shapes(weights: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in weights.items()}


def full_size(size: str, classes: int = 20, **backbone: Any) -> nn.Module:
    """The detector on THUMOS14; names and shapes without numbers."""
    document = {
        "name": size,
        "data": {"annotations": "none", "videos": "none"},
        "model": {"backbone": {"size": size, "pixels": 10 * SIZES[size].patch_size, **backbone}},
    }
    with torch.device("meta"):
        return build_network(parse_config(document, "in this test"), classes)


@needs_fixtures
@pytest.mark.parametrize(
    ("size", "millions", "adapters"),
    [("s", 49.6, 1.01), ("b", 117.5, 4.00), ("l", 345.8, 14.22), ("h", 689.3, 29.59)],
)
def test_published_files_fill_their_networks(size: str, millions: float, adapters: float) -> None:
    listing, network = published(size), full_size(size)
    detector = Weights.of({"state_dict_ema": on_meta(listing["detector"])})
    assert shapes(detector.tensors) == shapes(network.state_dict())
    pretrained = Weights.of({"state_dict": on_meta(listing["pretrained"])}).tensors
    vit = network.get_submodule("backbone.vit").state_dict()
    assert shapes(pretrained) == {name: shape for name, shape in shapes(vit).items() if not is_adapter(name)}
    counts = {name: parameter.numel() for name, parameter in network.named_parameters()}
    assert sum(counts.values()) == listing["n_params"] - 2 * SIZES[size].dim  # fc_norm is in the files, unused
    assert sum(counts.values()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert sum(n for name, n in counts.items() if is_adapter(name)) / 1e6 == pytest.approx(adapters, abs=0.005)


@needs_fixtures
@pytest.mark.parametrize("size", ["s", "b"])
def test_the_layouts_of_these_tests_are_the_published_ones(size: str) -> None:
    listing, network = published(size), full_size(size)
    assert shapes(layouts.opentad(network.state_dict())) == {n: s for n, (s, _) in listing["detector"].items()}
    vit = {n: w for n, w in network.get_submodule("backbone.vit").state_dict().items() if not is_adapter(n)}
    assert shapes(layouts.mmaction2(vit)["state_dict"]) == {n: s for n, (s, _) in listing["pretrained"].items()}


def giant() -> dict[str, Tensor]:
    """Names and shapes of vit_g_hybrid_pt_1200e_k710_ft.pth, as VideoMAEv2's code builds them."""
    dim, mlp = 1408, int(1408 * 48 / 11)
    block = {
        "norm1.weight": (dim,),
        "norm1.bias": (dim,),
        "attn.q_bias": (dim,),
        "attn.v_bias": (dim,),
        "attn.qkv.weight": (3 * dim, dim),
        "attn.proj.weight": (dim, dim),
        "attn.proj.bias": (dim,),
        "norm2.weight": (dim,),
        "norm2.bias": (dim,),
        "mlp.fc1.weight": (mlp, dim),
        "mlp.fc1.bias": (mlp,),
        "mlp.fc2.weight": (dim, mlp),
        "mlp.fc2.bias": (dim,),
    }
    names: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (dim, 3, 2, 14, 14),
        "patch_embed.proj.bias": (dim,),
        **{f"blocks.{i}.{name}": shape for i in range(40) for name, shape in block.items()},
        "fc_norm.weight": (dim,),
        "fc_norm.bias": (dim,),
        "head.weight": (710, dim),
        "head.bias": (710,),
    }
    return {name: torch.empty(shape, device="meta") for name, shape in names.items()}


def test_videomaev2_giant_fills_its_network() -> None:
    vit = full_size("v2-g", first_adapter=20).get_submodule("backbone.vit").state_dict()
    weights = Weights.of({"module": giant()})
    expected = {name: shape for name, shape in shapes(vit).items() if not is_adapter(name) and name != "pos_embed"}
    assert shapes(weights.tensors) == expected
    assert len(weights.unused) == 4
    # Numbers of the paper: 1 billion.
    assert sum(weight.numel() for weight in weights.tensors.values()) / 1e9 == pytest.approx(1.01, abs=0.005)


# Recognition.


@pytest.mark.parametrize(
    ("names", "known"),
    [
        (["rpn_head.scale.0.scale"], "opentad"),
        (["projection.embed.0.conv.weight"], "opentad"),
        (["backbone.model.backbone.patch_embed.projection.weight", "rpn_head.cls_head.bias"], "opentad"),
        (["backbone.embd.0.conv.weight", "cls_head.cls_head.conv.bias"], "actionformer"),
        (["backbone.patch_embed.projection.weight", "backbone.pos_embed"], "mmaction2"),
        (["videomae.embeddings.patch_embeddings.projection.weight"], "huggingface"),
        (["embeddings.patch_embeddings.projection.weight"], "huggingface"),
        (["patch_embed.proj.weight", "head.weight"], "videomae"),
        (["encoder.patch_embed.proj.weight", "decoder.head.weight"], "videomae"),
        (["patch_embed.weight", "pos_embed"], "bitad-backbone"),
        (["head.scales", "pyramid.norms.0.bias"], "bitad"),
        (["backbone.vit.patch_embed.weight", "backbone.vit.pos_embed"], "bitad"),
        (["first.network.head.scales", "second.network.head.scales"], "bitad-pair"),
    ],
)
def test_formats_are_recognised_by_their_names(names: list[str], known: str) -> None:
    assert recognise(names).name == known


def test_no_two_formats_have_the_same_name() -> None:
    assert len({known.name for known in FORMATS}) == len(FORMATS)


@pytest.mark.parametrize("prefix", ["module.", "module.module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_wrappers_prefixes_fall(prefix: str) -> None:
    names = layouts.videomae_finetuned(vit_of(0).state_dict())["module"]
    found = Weights.of({f"{prefix}{name}": weight for name, weight in names.items()}).tensors
    assert found.keys() == Weights.of(names).tensors.keys()


def test_the_levels_scales_become_one_vector_in_their_order() -> None:
    scales = {f"rpn_head.scale.{level}.scale": torch.tensor(float(level)) for level in (10, 2, 0)}
    assert Weights.of(scales).tensors["head.scales"].tolist() == [0.0, 2.0, 10.0]


def test_the_loss_normaliser_is_left_to_the_training() -> None:
    assert Weights.of({"rpn_head.loss_normalizer": torch.tensor(100)}).tensors == {}
