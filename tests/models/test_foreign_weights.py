"""Weights that are not ours are called what they are; nothing in a file makes a person read a TypeError."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import layouts
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bitad.cli import main
from bitad.models.vit import VisionTransformer
from bitad.weights.checkpoint import load_checkpoint
from bitad.weights.files import FORMAT
from bitad.weights.formats import FOREIGN
from bitad.weights.loading import Weights, load_backbone


def vit() -> VisionTransformer:
    return VisionTransformer(dim=8, depth=1, heads=2, mlp_dim=16, image_size=32)


def weights(*names: str, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """Weights of a few names; ``patch_embed__proj`` stands for ``patch_embed.proj.weight``."""
    shaped = {f"{name.replace('__', '.')}.weight": torch.ones(shape) for name, shape in shapes.items()}
    return shaped | {name: torch.ones(8) for name in names}


IMAGE, CLIP = (8, 3, 16, 16), (8, 3, 2, 16, 16)

# What each kind of weights looks like, and what it is called.
EXAMPLES: list[tuple[str, dict[str, Any]]] = [
    ("a transformer of images", weights("cls_token", "blocks.0.attn.qkv.weight", patch_embed__proj=IMAGE)),
    ("a transformer of images", weights("backbone.cls_token", backbone__patch_embed__projection=IMAGE)),
    (
        "a transformer of images",
        weights("vit.embeddings.cls_token", vit__embeddings__patch_embeddings__projection=IMAGE),
    ),
    ("a transformer of images", weights("encoder.layers.encoder_layer_0.ln_1.weight", conv_proj=IMAGE)),
    ("DINO or DINOv2", weights("blocks.0.ls1.gamma", patch_embed__proj=IMAGE)),
    ("CLIP", weights("logit_scale", "visual.transformer.resblocks.0.ln_1.weight", visual__conv1=IMAGE)),
    ("TimeSformer", weights("blocks.0.temporal_attn.qkv.weight", patch_embed__proj=IMAGE)),
    (
        "Video Swin",
        weights("backbone.layers.0.blocks.0.attn.qkv.weight", backbone__patch_embed__proj=(8, 3, 2, 4, 4)),
    ),
    ("Video Swin", weights("features.1.0.attn.relative_position_bias_table", patch_embed__proj=(8, 3, 2, 4, 4))),
    ("Swin, of images", weights("layers.0.blocks.0.attn.qkv.weight", patch_embed__proj=(8, 3, 4, 4))),
    ("Swin or Video Swin", weights("layers.0.blocks.0.attn.qkv.weight")),
    ("MViT", weights("cls_token", "blocks.0.attn.pool_q.weight", patch_embed__proj=(8, 3, 3, 7, 7))),
    ("UniFormer", weights("blocks1.0.norm1.weight", patch_embed1__proj=CLIP)),
    ("another video transformer", weights("cls_token", patch_embed__proj=CLIP)),
    ("another video transformer", weights("blocks.0.attn.qkv.bias", patch_embed__proj=CLIP)),
    ("VideoMamba", weights("layers.0.mixer.A_log", patch_embed__proj=CLIP)),
    ("I3D", weights("Conv3d_1a_7x7.bn.weight", Conv3d_1a_7x7__conv3d=(8, 3, 7, 7, 7))),
    ("SlowFast", weights(s1__pathway0_stem__conv=(8, 3, 1, 7, 7))),
    ("SlowFast", weights(backbone__slow_path__conv1__conv=(8, 3, 1, 7, 7))),
    ("R(2+1)D", weights("stem.1.weight", stem__0=(8, 3, 1, 7, 7), layer1__0__conv1__0__0=(8, 8, 1, 3, 3))),
    ("a 3-D ResNet", weights(backbone__conv1__conv=(8, 3, 5, 7, 7))),
    ("a 2-D ResNet (TSN", weights("cls_head.fc_cls.weight", backbone__conv1__conv=(8, 3, 7, 7))),
    ("a 2-D ResNet", weights("bn1.weight", conv1=(8, 3, 7, 7))),
    ("BMN", weights("x_1d_b.0.weight", "x_3d_p.0.weight")),
    ("BMN", weights("rpn_head.tem.0.conv.weight", "roi_head.proposal_head.head.0.weight")),
    ("G-TAD", weights("backbone1.0.weight", "regu_s.0.weight", "localization.0.weight")),
    ("BSN's temporal", weights(conv1=(8, 8, 3), conv2=(8, 8, 3), conv3=(3, 8, 1))),
    ("BSN's proposal", weights(fc1=(8, 8), fc2=(1, 8))),
    (
        "TriDet's own release",
        weights(
            "backbone.branch.0.convkw.weight", "reg_head.offset_head.conv.weight", "backbone.embd.0.conv.weight"
        ),
    ),
    ("DyFADet", weights("rpn_head.cls_convs.0.0.kernel_conv.gate_conv.weight", "projection.embed.0.conv.weight")),
    ("a detector on Mamba", weights("projection.stem.0.mamba.A_log", "rpn_head.cls_head.weight")),
    ("a detector of the DETR kind (TadTR", weights("class_embed.0.weight", "segment_embed.0.layers.0.weight")),
    ("AFSD", weights("coarse_pyramid_detection.pyramids.0.0.conv3d.weight")),
    ("TemporalMaxer", weights("projection.embed.0.conv.weight", "rpn_head.scale.1.scale")),
    (
        "fpn_type: fpn",
        weights("neck.fpn_convs.0.conv.weight", "reg_head.scale.0.scale", "backbone.embd.0.conv.weight"),
    ),
    ("use_rel_pe: true", weights("backbone.stem.0.attn.rel_pe", "backbone.embd.0.conv.weight")),
    ("input_dim: a list", weights("backbone.proj.0.conv.weight", "backbone.embd.0.conv.weight")),
    ("embd_with_ln: false", weights("backbone.embd.0.conv.bias", "backbone.embd.0.conv.weight")),
    ("head_with_ln: false", weights("cls_head.head.0.conv.bias", "backbone.embd.0.conv.weight")),
    ("backbone_type: conv", weights("backbone.branch.0.conv1.conv.weight", "backbone.embd.0.conv.weight")),
    ("a classifier's last layers alone", weights("head.weight", "head.bias")),
    ("a classifier's last layers alone", weights("cls_head.fc_cls.weight", "cls_head.fc_cls.bias")),
    ("a classifier's last layers alone", weights("weight", "bias")),
    ("an optimiser's state", {"state": {"blocks.0.weight": weights("exp_avg", "exp_avg_sq", "step")}}),
    ("sharded training", weights("_fsdp_wrapped_module._flat_param", "blocks.0._fsdp_wrapped_module._flat_param")),
    ("LoRA", weights("base_model.blocks.0.attn.qkv.lora_A.weight")),
    ("a language model", weights("embed_tokens.weight", "layers.0.mlp.up_proj.weight")),
]


@pytest.mark.parametrize(
    "wrap", [dict, lambda content: {"state_dict": content, "epoch": 3}], ids=["top", "state_dict"]
)
@pytest.mark.parametrize(("called", "content"), EXAMPLES)
def test_what_is_not_ours_is_called_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], called: str, content: dict[str, Any], wrap: Any
) -> None:
    path = tmp_path / "w.pth"
    torch.save(wrap(content), path)
    assert main(["weights", "inspect", str(path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bitad weights: error: {path}: weights of ")
    assert called in line
    with pytest.raises(ValueError, match="which no network here can load"):
        load_backbone(vit(), path)


def test_every_row_of_the_table_has_an_example() -> None:
    said = []
    for _, content in EXAMPLES:
        with pytest.raises(ValueError) as error:
            Weights.of(content)
        said.append(str(error.value))
    assert [
        row.what for row in FOREIGN if not any(line.startswith(f"weights of {row.what}, as") for line in said)
    ] == []


@pytest.mark.parametrize("project", layouts.BACKBONES)
def test_what_is_ours_is_in_no_row_of_the_table(project: str) -> None:
    content = layouts.BACKBONES[project](vit().state_dict())
    assert Weights.of(content).format.kind == "backbone"


@pytest.mark.parametrize(
    ("content", "called"),
    [
        ([torch.ones(2), {"a": 1}], "it is a list; name the file"),
        ((), "it is a tuple; name the file"),
        (torch.ones(2, 3), "it is one tensor, [2, 3]"),
        (3, "it is a int"),
        ({}, "it is empty"),
        ({"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}, "it is an optimiser's state"),
        (
            {"optimizer": {"state": {0: {"step": torch.ones(())}}}, "epoch": 3},
            "it has none, only 'optimizer', 'epoch'",
        ),
        ({0: torch.ones(2), None: torch.ones(2)}, "it has none, only 0, None"),
        (
            {f"towers.{n}.weight": torch.ones(2) for n in range(62)},
            "tensors 'towers.0.weight', 'towers.1.weight', 'towers.2.weight' and 59 more",
        ),
    ],
)
def test_what_names_no_weights_says_what_it_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, called: str
) -> None:
    path = tmp_path / "w.pth"
    torch.save(content, path)
    assert main(["weights", "inspect", str(path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert called in line
    assert str(path) in line
    assert "--debug" not in line
    with pytest.raises(ValueError, match="weights of no known project"):
        Weights.of(content)


# Names that mean something to us, so that contents at random go further than the first look.
_NAMES = sorted(
    {
        name
        for layout in (*layouts.BACKBONES.values(), layouts.opentad_file)
        for part in layout(vit().state_dict() | {"head.scales": torch.ones(2)}).values()
        if isinstance(part, dict)
        for name in part
    }
)
_KEYS = st.one_of(
    st.sampled_from(
        ["state_dict", "model", "ema", "meta", "format", "config", "state", "param_groups", "pretrained", "a#b"]
    ),
    st.integers(-1, 3),
    st.none(),
    st.text(max_size=3),
)
_TENSORS = st.builds(
    lambda shape, dtype: torch.zeros(shape, dtype=dtype),
    st.lists(st.integers(0, 3), max_size=5),
    st.sampled_from([torch.float32, torch.float32, torch.float16, torch.int64, torch.bool]),
)
_LEAVES = st.one_of(_TENSORS, st.none(), st.integers(), st.floats(), st.just(FORMAT), st.text(max_size=5))
_CONTENTS = st.recursive(
    st.one_of(_LEAVES, st.dictionaries(st.sampled_from(_NAMES), _TENSORS, max_size=8)),
    lambda inner: st.one_of(st.dictionaries(_KEYS, inner, max_size=4), st.lists(inner, max_size=3)),
    max_leaves=8,
)


@given(content=_CONTENTS)
@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_whatever_a_file_holds_is_read_or_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any
) -> None:
    logging.getLogger("bitad").setLevel(logging.ERROR)
    path = tmp_path / "w.pth"
    torch.save(content, path)
    said: list[str] = []
    for read in (lambda: Weights.of(content), lambda: load_backbone(vit(), path), lambda: load_checkpoint(path)):
        try:
            read()
        except ValueError as error:
            said.append(str(error))
    assert not any("\n" in line for line in said)
    capsys.readouterr()
    main(["weights", "inspect", str(path), "--json"])
    err = capsys.readouterr().err
    assert len(err.splitlines()) <= 1
    assert "--debug" not in err


def test_a_damaged_checkpoint_of_ours_is_called_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"format": FORMAT, "model": vit().state_dict()}, tmp_path / "w.pth")
    assert main(["weights", "inspect", str(tmp_path / "w.pth")]) == 1
    assert "is a damaged checkpoint, without a valid config, classes" in capsys.readouterr().err


# Sets of weights.


@pytest.mark.parametrize(
    "nest",
    [
        lambda named: {"model": {"state_dict": named}},
        lambda named: {"model_state_dict": named, "optimizer_state_dict": {}},
        lambda named: {"network": named},
        lambda named: {"params": {"module": named}},
        lambda named: {"weights": named},
        lambda named: {"checkpoint": {"run": {"model": {"state_dict": named}}}},
        lambda named: {"ema": {"module": named}},
        lambda named: {"state_dict": {f"model.{name}": tensor for name, tensor in named.items()}, "hparams": {}},
        lambda named: {f"network.{name}": tensor for name, tensor in named.items()},
        lambda named: {f"_forward_module.module.{name}": tensor for name, tensor in named.items()},
        lambda named: {name.replace("blocks.0.", "blocks.0.module."): tensor for name, tensor in named.items()},
        lambda named: {
            name.replace("attn.", "_orig_mod.attn._orig_mod."): tensor for name, tensor in named.items()
        },
        lambda named: {
            name.replace("blocks.", "_fsdp_wrapped_module.blocks.").replace(
                "mlp.", "_checkpoint_wrapped_module.mlp."
            ): tensor
            for name, tensor in named.items()
        },
    ],
)
def test_weights_are_found_however_they_are_wrapped(tmp_path: Path, nest: Any) -> None:
    source = vit()
    for parameter in source.parameters():
        nn.init.normal_(parameter)
    torch.save(nest(layouts.videomae_finetuned(source.state_dict())["module"]), tmp_path / "w.pth")
    found = vit()
    load_backbone(found, tmp_path / "w.pth")
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in found.state_dict().items())


def test_of_two_sets_of_which_none_is_meant_more_both_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = layouts.videomae_finetuned(vit().state_dict())["module"]
    second = {name: tensor + 1 for name, tensor in first.items()}
    torch.save({"student": first, "teacher": second}, tmp_path / "w.pth")
    assert main(["weights", "inspect", str(tmp_path / "w.pth")]) == 1
    assert (
        f"{tmp_path / 'w.pth'}: it holds 2 sets of weights, student, teacher; save the one"
        in capsys.readouterr().err
    )
    torch.save({"student": first, "copy": first}, tmp_path / "w.pth")
    assert main(["weights", "inspect", str(tmp_path / "w.pth")]) == 0


@pytest.mark.parametrize(
    "named",
    [
        weights(pyramid__embed__0__conv=(0, 4, 3), head__classification__output=(2, 8, 3)),
        weights(pyramid__embed__0__conv=(8, 4, 3), head__classification__output=(0, 8, 3)),
        weights(pyramid__embed__0__conv=(8, 4, 3), head__classification__output=(2, 8, 3)),
        weights(pyramid__embed__0__conv=(8, 4, 3), head__classification__output=(2, 8, 3))
        | {"head.scales": torch.ones(20000)},
        weights(patch_embed__proj=CLIP),
        weights(
            patch_embed__proj=(0, 3, 2, 0, 0), blocks__0__mlp__fc1=(0, 8), blocks__0__adapter__down_proj=(0, 8)
        ),
    ],
)
def test_a_network_that_cannot_be_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], named: dict[str, Tensor]
) -> None:
    torch.save(named, tmp_path / "w.pth")
    assert main(["weights", "inspect", str(tmp_path / "w.pth"), "--config", "thumos14/videomae-s"]) == 1
    out, err = capsys.readouterr()
    assert " in the configuration" in out or "missing: " in out
    assert not err


def test_the_weights_of_two_networks_are_no_backbone(tmp_path: Path) -> None:
    torch.save({"first.network.head.scales": torch.ones(2)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="the weights of two networks, without a configuration"):
        load_checkpoint(tmp_path / "w.pth")


def test_a_sound_file_whose_name_pytorch_cannot_open_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.pth")
    torch.save(vit().state_dict(), tmp_path / "w.pth")
    try:
        (tmp_path / "w.pth").rename(path)
    except OSError:
        pytest.skip("the file system takes only names that are UTF-8")
    with pytest.raises(ValueError, match="PYTHONUTF8=1, or rename it"):
        load_backbone(vit(), path)
