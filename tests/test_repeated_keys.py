"""What a document or a table has twice is an error that names it: only one of the two would be read."""

from __future__ import annotations

import json
import struct
import unicodedata
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from bitad.cli import main
from bitad.config.loading import ConfigError, load_config
from bitad.data.check import check_annotations
from bitad.data.clocks import read_clocks
from bitad.data.detections import read_detections
from bitad.data.feature_files import FeatureStore
from bitad.data.feature_folder import read_sidecar
from bitad.data.formats.parsing import ReadOptions
from bitad.data.formats.tables import read_charades, read_epic_kitchens
from bitad.inference.video_scores import read_video_scores
from bitad.runtime.files import parse_json, read_json
from bitad.weights.files import read_weights
from bitad.weights.loading import Weights

VIDEO = '{"subset": "Test", "duration": 9, "annotations": [{"segment": [1, 2], "label": "a"}]}'


def failed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The line of a command that fails."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("database", "said"),
    [
        (f'"v": {VIDEO}, "v": {VIDEO}', "key \"v\" occurs more than once in {'v'"),
        (f'"v": {VIDEO[:-1]}, "duration": 5}}', "key \"duration\" occurs more than once in {'annotations'"),
        (
            VIDEO.join(['"v": ', ""]).replace('"a"', '"a", "label": "b"'),
            "key \"label\" occurs more than once in {'label': 'b', 'segment': [1, 2]}",
        ),
    ],
)
def test_annotations_that_state_a_thing_twice_are_refused_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], database: str, said: str
) -> None:
    path = tmp_path / "truth.json"
    path.write_text(f'{{"database": {{{database}}}}}')
    for arguments in (
        ("annotations", "check", path),
        ("reverse", path, tmp_path / "out.json"),
        ("annotations", "convert", path, tmp_path / "out.json"),
        ("evaluate", "--ground-truth", path, "--detections", path, "--subset", "Test"),
    ):
        line = failed(capsys, *arguments)
        assert said in line
        assert str(path) in line
    assert not (tmp_path / "out.json").exists()


def test_all_repeated_keys_are_named_or_counted(tmp_path: Path) -> None:
    inner = ", ".join(f'"k{i}": 1, "k{i}": 2' for i in range(7))
    with pytest.raises(ValueError, match=r'"k0", "k1", "k2" and 4 more occurs more than once in'):
        parse_json(f'{{"a": [{{}}, {{{inner}}}]}}', "x.json")


def test_a_document_without_repeated_keys_is_read_as_json_reads_it() -> None:
    document = {"a": [{"b": 1, "c": [{}, []]}, {"b": 2}], "d": {"a": {"a": None}}, "": ":"}
    assert parse_json(json.dumps(document), "x") == document


def test_detections_scores_and_sidecars_that_state_a_thing_twice_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"results": {"v": [], "v": [{"segment": [0, 1], "label": "a", "score": 1}]}}')
    for read in (read_detections, read_video_scores, read_clocks):
        with pytest.raises(ValueError, match='key "v" occurs more than once in'):
            read(path)
    (tmp_path / "features.json").write_text('{"format": "bitad features 1", "settings": {}, "settings": {}}')
    with pytest.raises(ValueError, match=r'features\.json: key "settings" occurs more than once in'):
        read_sidecar(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base: playroom\ntraining: {lr: 0.1, lr: 0.2}\n", "key 'lr' occurs twice, in lines 2 and 2"),
        ("base: playroom\nname: a\nname: b\n", "key 'name' occurs twice, in lines 2 and 3"),
        ("base: playroom\nname: a\n? name\n: b\n", "key 'name' occurs twice, in lines 2 and 3"),
        ('base: playroom\nname: a\n"name": b\n', "key 'name' occurs twice"),
    ],
)
def test_a_configuration_that_sets_a_key_twice_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "my.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said) as error:
        load_config(tmp_path / "my.yaml")
    assert str(tmp_path / "my.yaml") in str(error.value)


def test_a_merge_may_be_overridden_and_an_override_may_not_repeat(tmp_path: Path) -> None:
    text = "base: playroom\nname: a\ntraining: &t {lr: 0.1, epochs: 3}\n"
    (tmp_path / "my.yaml").write_text(text)
    assert load_config(tmp_path / "my.yaml").training.lr == 0.1
    (tmp_path / "my.yaml").write_text("base: playroom\nname: a\ntraining: {<<: {lr: 0.1, epochs: 3}, lr: 0.2}\n")
    assert load_config(tmp_path / "my.yaml").training.lr == 0.2
    with pytest.raises(ConfigError, match="key 'lr' occurs twice"):
        load_config("playroom", ["training={lr: 0.1, lr: 0.2}"])


def test_tables_that_state_a_thing_twice_are_refused(tmp_path: Path) -> None:
    clocks = tmp_path / "info.csv"
    clocks.write_text("video_id,duration\nv,3\nw,4\nv,5\n")
    with pytest.raises(ValueError, match=r"info\.csv:4: video v is also in an earlier row"):
        read_clocks(clocks)
    clocks.write_text("video_id,duration,duration\nv,3,4\n")
    with pytest.raises(ValueError, match="column 'duration' occurs twice"):
        read_clocks(clocks)
    table = tmp_path / "Charades_v1_train.csv"
    table.write_text("id,actions,length\nv,c000 1 2,9\n")
    (tmp_path / "Charades_v1_classes.txt").write_text("c000 One\nc000 Other\n")
    with pytest.raises(ValueError, match=r"classes\.txt: class c000 occurs 2 times; keep one"):
        read_charades([table], ReadOptions())
    epic = tmp_path / "EPIC_100_train.csv"
    epic.write_text("video_id,start_timestamp,stop_timestamp,verb_class\nP01,00:00:01,00:00:02,0\n")
    (tmp_path / "EPIC_100_verb_classes.csv").write_text("id,key\n0,take\n0,put\n")
    with pytest.raises(ValueError, match="class 0 occurs 2 times; keep one"):
        read_epic_kitchens([epic], ReadOptions(), part="verb")


def test_a_subset_cannot_be_renamed_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "truth.json").write_text(f'{{"database": {{"v": {VIDEO}}}}}')
    line = failed(
        capsys,
        "annotations",
        "convert",
        tmp_path / "truth.json",
        tmp_path / "o.json",
        "--subsets",
        "Test=a,Test=b",
    )
    assert "each subset once" in line


def test_one_name_in_two_forms_of_unicode_is_a_defect(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    (tmp_path / "truth.json").write_text(json.dumps({"database": {name: json.loads(VIDEO) for name in names}}))
    ((defect,),) = check_annotations(tmp_path / "truth.json").defects.values()
    assert defect.kind == "duplicate"
    assert r"'caf\xe9' and 'cafe\u0301'" in defect.detail


def test_an_archive_with_two_arrays_of_a_name_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "all.npz", "w") as archive:
        warnings.simplefilter("ignore")
        for value in range(2):
            with archive.open("v.npy", "w") as file:
                np.lib.format.write_array(file, np.full((3, 2), value, np.float32))
    with pytest.raises(ValueError, match=r"all\.npz: v\.npy occurs 2 times"):
        FeatureStore(tmp_path / "all.npz").read("v")


def test_weights_that_a_file_has_twice_are_refused(tmp_path: Path) -> None:
    tensor = '"patch_embed.bias": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'
    header = f"{{{tensor}, {tensor}}}".encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(ValueError, match=r'key "patch_embed\.bias" occurs more than once'):
        read_weights(tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"x and module\.x are both the weight x"):
        Weights.of({"x": torch.ones(2), "module.x": torch.zeros(2), "patch_embed.bias": torch.ones(2)})
    names = ("patch_embed.proj.bias", "encoder.patch_embed.proj.bias")
    videomae = {"patch_embed.proj.weight": torch.ones(2, 3, 2, 16, 16), **{name: torch.ones(2) for name in names}}
    with pytest.raises(ValueError, match=r"are both the weight patch_embed\.bias"):
        Weights.of(videomae)


def test_half_of_a_character_is_refused_as_before(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(r'{"a": "\ud800"}')
    with pytest.raises(ValueError, match="not a JSON file"):
        read_json(tmp_path / "x.json")
