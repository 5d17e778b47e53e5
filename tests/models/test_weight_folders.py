"""A folder is the file of weights that it stands for, wherever weights are named."""

from __future__ import annotations

import json
from pathlib import Path

import layouts
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bitad.cli import main
from bitad.models.vit import VisionTransformer
from bitad.weights.files import read_weights, weights_path
from bitad.weights.loading import load_backbone


def vit() -> VisionTransformer:
    return VisionTransformer(dim=8, depth=1, heads=2, mlp_dim=16, image_size=32)


def written(path: Path, value: float = 1.0) -> None:
    """A VideoMAE of one value, as Hugging Face names it."""
    path.parent.mkdir(exist_ok=True)
    named = {name: torch.full_like(w, value) for name, w in layouts.huggingface_model(vit().state_dict()).items()}
    if path.suffix == ".safetensors":
        save_file(named, path)
    else:
        torch.save(named, path)


@pytest.mark.parametrize(
    ("meant", "others"),
    [
        ("model.safetensors", ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "config.json")),
        ("pytorch_model.bin", ("config.json", "rng_state_0.pth")),
        ("vit.pth", ("log.txt", "._vit.pth")),
        ("epoch_034.pth.tar", ("config.txt",)),
        ("Weights.PTH", ()),
    ],
)
def test_a_folder_is_the_file_that_is_meant(tmp_path: Path, meant: str, others: tuple[str, ...]) -> None:
    folder = tmp_path / "vit"
    written(folder / meant, 3.0)
    for other in others:
        (folder / other).write_bytes(b"{}")
    assert weights_path(folder) == folder / meant
    network = vit()
    load_backbone(network, folder)
    assert {tensor.unique().item() for name, tensor in network.state_dict().items() if name != "pos_embed"} == {
        3.0
    }
    assert main(["weights", "inspect", str(folder)]) == 0
    out = tmp_path / "out.safetensors"
    assert main(["weights", "convert", str(folder), str(out)]) == 0
    assert out.is_file()


def test_several_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("epoch_1.pth", "epoch_2.pth"):
        written(tmp_path / name)
    assert main(["weights", "inspect", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path} holds 2 files of weights; name one of them: epoch_1.pth, epoch_2.pth" in line


def test_a_folder_of_shards_is_called_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for shard in shards:
        written(tmp_path / shard)
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict(zip("ab", shards, strict=True))})
    )
    assert main(["weights", "inspect", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "model.safetensors.index.json is an index of shards" in line


def test_a_distributed_checkpoint_is_called_one(tmp_path: Path) -> None:
    for name in (".metadata", "__0_0.distcp"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(
        ValueError, match=r"is a distributed checkpoint of PyTorch; make one file of it: .*dcp_to_torch"
    ):
        read_weights(tmp_path)


def test_a_folder_without_weights_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "tf_model.h5").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match="no other file of weights"):
        read_weights(tmp_path)


def test_a_run_is_its_best_checkpoint(tmp_path: Path) -> None:
    for name in ("best.pt", "last.pt", "older.pt"):
        (tmp_path / name).write_bytes(b"x")
    assert weights_path(tmp_path) == tmp_path / "best.pt"
    (tmp_path / "best.pt").unlink()
    assert weights_path(tmp_path) == tmp_path / "last.pt"


def test_the_output_of_convert_may_not_be_the_file_in_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    written(path)
    before = path.read_bytes()
    assert main(["weights", "convert", str(tmp_path), str(path)]) == 1
    assert path.read_bytes() == before


def test_a_frozen_transformer_may_be_named_by_its_folder(tmp_path: Path) -> None:
    """Whether a network's transformer is that of the configuration is seen where the configuration names a folder."""
    from bitad.weights.loading import is_transformer_of

    written(tmp_path / "hub" / "model.safetensors", 2.0)
    network = nn.ModuleDict({"backbone": nn.ModuleDict({"vit": vit()})})
    load_backbone(network.get_submodule("backbone.vit"), tmp_path / "hub")
    assert is_transformer_of(network.state_dict(), tmp_path / "hub")
    written(tmp_path / "hub" / "model.safetensors", 3.0)
    assert not is_transformer_of(network.state_dict(), tmp_path / "hub")
