"""``bitad config``, suggestions, completion, and errors of configurations before PyTorch is loaded."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from bitad.cli import main
from bitad.config.loading import _PATHS, load_config, presets
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.formats.database import write_annotations

MINE = """
name: mine
data: {annotations: gt.json, features: features, feature_channels: 8}
window: {steps: 64}
model: {channels: 16, levels: 3}
"""


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command that succeeds prints."""
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The error of a command that fails or is used wrongly."""
    try:
        status: int | str | None = main(list(arguments))
    except SystemExit as ended:
        status = ended.code
    assert status in (1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()[-1]


# bitad config.


def test_presets_are_listed_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "config", "--presets").splitlines()
    assert [line.split()[0] for line in lines] == presets()
    for line in lines:
        name, _, description = line.partition("  ")
        assert len(description.strip()) > 20, name
        assert description.endswith("."), name


def test_show_says_where_each_value_comes_from(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("base: thumos14/videomae-s\nname: mine\ntraining: {epochs: 3}\n")
    shown = printed(capsys, "config", "--show", str(file), "test.nms.sigma=0.5")
    for line in (
        f"name: mine  # {file}",
        "seed: 0  # default",
        "    size: s  # preset thumos14/videomae-s",
        "    pixels: 160  # preset thumos14/adatad",
        f"  epochs: 3  # {file}",
        "    sigma: 0.5  # command line",
    ):
        assert line in shown.splitlines()
    again = tmp_path / "again.yaml"
    again.write_text(shown)
    document = yaml.safe_load(shown)
    assert document == load_config(file, ["test.nms.sigma=0.5"]).model_dump(mode="json")


def test_show_names_a_base_in_another_folder_by_its_shortest_path(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text("base: playroom\ntraining: {epochs: 3}\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my.yaml").write_text("base: ../base.yaml\n")
    assert "  epochs: 3  # base.yaml" in printed(capsys, "config", "--show", "mine/my.yaml").splitlines()


def test_show_tells_a_warm_up_that_was_shortened(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("base: thumos14/videomae-s\nname: mine\ntraining: {epochs: 3, schedule_epochs: 4}\n")
    shown = printed(capsys, "config", "--show", str(file))
    assert "  warmup_epochs: 0.4  # a tenth of the schedule of 4 epochs" in shown.splitlines()


def test_show_does_not_name_a_file_whose_section_was_replaced(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_text("base: playroom\nmodel: {backbone: {first_adapter: 1}}\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\nmodel: {backbone: null}\n")
    (tmp_path / "c.yaml").write_text("base: b.yaml\nmodel: {backbone: {size: tiny, pixels: 64}}\n")
    lines = [line.strip() for line in printed(capsys, "config", "--show", str(tmp_path / "c.yaml")).splitlines()]
    assert f"pixels: 64  # {tmp_path / 'c.yaml'}" in lines
    assert "first_adapter: 0  # default" in lines


def test_a_name_of_a_file_cannot_break_a_comment(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "a\nname: stolen.yaml"
    file.write_text(MINE)
    assert yaml.safe_load(printed(capsys, "config", "--show", str(file)))["name"] == "mine"


def test_the_schema_has_every_key_with_its_comment(capsys: pytest.CaptureFixture[str]) -> None:
    schema = json.loads(printed(capsys, "config", "--schema"))
    found = dict(_properties(schema, schema))
    assert found.pop("base")["type"] == "string"
    assert found.keys() == set(_PATHS)
    assert found["window.overlap"]["description"] == "of neighbouring windows in testing"
    assert found["data.on_decode_error"]["description"].startswith("For frames that cannot be decoded;")
    assert "3-1" in found["experiment"]["enum"]
    assert schema["additionalProperties"] is False
    assert not any("required" in section for section in schema["$defs"].values())  # a base may have the keys


def _properties(schema: dict[str, Any], part: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The keys of a schema by their paths, also those of alternatives."""
    if not isinstance(part, dict):
        return
    if "$ref" in part:
        yield from _properties(schema, schema["$defs"][part["$ref"].rpartition("/")[2]], path)
    for alternative in (*part.get("anyOf", ()), *part.get("oneOf", ())):
        yield from _properties(schema, alternative, path)
    for key, value in part.get("properties", {}).items():
        yield f"{path}{key}", value
        yield from _properties(schema, value, f"{path}{key}.")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("config", "one of the arguments --presets --show --schema is required"),
        ("config --presets --schema", "not allowed with argument"),
        (
            "config --presets training.lr=1",
            "training.lr=1: changes to a configuration only apply to --show SOURCE",
        ),
        ("config --show playroom training.epocs=3", "training.epocs: unknown key; did you mean training.epochs?"),
    ],
)
def test_wrong_uses_of_config_are_refused(command: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(capsys, *command.split())


# Suggestions.


@pytest.mark.parametrize(
    ("command", "meant"),
    [
        ("trian playroom", "train"),
        ("Plan playroom", "plan"),
        ("--verson", "--version"),
        ("train playroom --devcie cpu", "--device"),
        ("train playroom --devcie=cpu", "--device"),
        ("annotations chekc gt.json", "check"),
        ("annotations check gt.json --vidoes raw", "--videos"),
        ("merge a b --out c --method meen", "mean"),
        ("merge a b --ouut=c", "--out"),
        ("config --presest", "--presets"),
        ("train playrom", "playroom"),
        ("train thumos14/videomae_s", "thumos14/videomae-s"),
        ("test run --config thumos14/videomae_s", "thumos14/videomae-s"),
        ("plan playroom experiment=basline", "baseline"),
        ("test run tset.batch=3", "test"),
        ("test run test.nms.sigm=3", "test.nms.sigma"),
    ],
)
def test_the_most_similar_name_is_suggested(command: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, *command.split()).endswith(f"; did you mean {meant}?")


def test_nothing_is_suggested_where_nothing_is_similar(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean" not in refused(capsys, "zzz")
    assert "did you mean" not in refused(capsys, "train", "playroom", "--zzzzz")


def test_a_missing_argument_is_named_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for command, missing in {"test": "run_or_checkpoint", "train": "config", "merge a --rev": "--out"}.items():
        assert refused(capsys, *command.split()).endswith(f": the following arguments are required: {missing}")
    said = refused(capsys, "merge", "a", "--zzzzz", "--zzzzz=3")
    assert said.endswith(": the following arguments are required: --out; there is no option --zzzzz")


def test_a_file_that_names_a_wrong_base_hears_of_the_right_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "my.yaml").write_text("base: playrooms\n")
    assert refused(capsys, "plan", str(tmp_path / "my.yaml")).endswith("; did you mean playroom?")


def test_similar_files_are_suggested(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.yaml").write_text(MINE)
    (tmp_path / "configs" / "top.yaml").write_text("base: mein.yaml\n")
    assert refused(capsys, "train", "configs/mine.yml").endswith("; did you mean configs/mine.yaml?")
    assert refused(capsys, "train", "configs/top.yaml").endswith("; did you mean mine.yaml?")


def test_similar_subsets_and_classes_are_suggested(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    video = AnnotatedVideo("a", "validation", 9.0, np.array([[1.0, 2.0]]), ("High Jump",))
    write_annotations(Annotations({"a": video}, ("High Jump",)), tmp_path / "gt.json")
    rows = [{"segment": [1.0, 2.0], "label": "HighJump", "score": 0.5}]
    (tmp_path / "found.json").write_text(json.dumps({"results": {"a": rows}}))
    (tmp_path / "classes.txt").write_text("High Jump\nLong Jump\n")
    files = f"--ground-truth {tmp_path / 'gt.json'} --detections {tmp_path / 'found.json'}"
    command = f"evaluate {files} --classes {tmp_path / 'classes.txt'} --subset validation"
    assert refused(capsys, *command.split()).endswith("; did you mean High Jump?")
    assert refused(capsys, *f"evaluate {files} --subset VALIDATON".split()).endswith("; did you mean validation?")
    convert = f"annotations convert {tmp_path / 'gt.json'} {tmp_path / 'new.json'} --subsets Validation=test"
    assert refused(capsys, *convert.split()).endswith("; did you mean validation?")


def test_bitad_alone_prints_its_help_as_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Train a detector. Also runs under torchrun" in " ".join(err.split())
    assert "start with: bitad demo" in err


# Completion.


def test_the_shell_completes_commands_options_presets_and_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("shtab")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "found.json").touch()
    with pytest.raises(SystemExit) as ended:
        main(["--print-completion", "bash"])
    assert ended.value.code == 0
    script = tmp_path / "bitad.bash"
    script.write_text(capsys.readouterr().out)

    def completed(*words: str) -> list[str]:
        line = shlex.join(["bitad", *words])
        program = f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words)}; _shtab_bitad; "
        ended = subprocess.run(
            ["bash", "-c", program + 'printf "%s\\n" "${COMPREPLY[@]}"'],
            capture_output=True,
            text=True,
            check=True,
        )
        return ended.stdout.split()

    assert completed("pl") == ["plan"]
    assert completed("train", "playroom", "--dev") == ["--device"]
    assert completed("train", "thumos14/videomae-") == [f"thumos14/videomae-{size}" for size in "bhls"]
    assert completed("merge", "fo") == ["found.json"]


def test_completion_without_its_package_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert "pip install 'bitad[completion]'" in refused(capsys, "--print-completion", "zsh")


# Errors before PyTorch is loaded.


def test_errors_of_configurations_come_before_torch_and_soon(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("base: playroom\ntraining: {epocs: 3}\n")
    commands = [
        f"train {wrong}",
        f"plan {wrong}",
        "plan playroom window.steps=33",
        f"test run --config {wrong}",
        "test run training.epocs=3",
        f"detect one.mp4 --checkpoint run --config {wrong}",
        f"features one.mp4 --checkpoint run --out features --config {wrong}",
        f"weights inspect run --config {wrong}",
        f"config --show {wrong}",
        "train playroom data.annotations=nowhere.json",
    ]
    program = (
        "import sys, time, numpy, pydantic, yaml; libraries = time.process_time()\n"
        "from bitad.cli import main\n"
        f"assert [main(command.split()) for command in {commands!r}] == [1] * {len(commands)}\n"
        "assert 'torch' not in sys.modules, 'torch was loaded'\n"
        "print(time.process_time() / libraries)"
    )
    shares = []
    for _ in range(3):  # the least of three: other processes disturb the time
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert ended.stderr.count("did you mean training.epochs?") == len(commands) - 2
        assert ended.stderr.endswith("nowhere.json: no such file; correct data.annotations\n")
        shares.append(float(ended.stdout))
        if shares[-1] < 3:
            break
    # Of the time that a program needs to import the libraries: 3 on a quiet machine of any speed, 4.5 on a busy one.
    # With PyTorch it would be 7.6.
    assert min(shares) < 6


# docs/configuration.md.


def test_the_configurations_of_the_page_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[1] / "docs" / "configuration.md"
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", page.read_text(encoding="utf-8"), re.MULTILINE)
    configurations = [
        text for text in map(textwrap.dedent, blocks) if re.search("^(name|base): ", text, re.MULTILINE)
    ]
    assert len(configurations) == 3
    for number, text in enumerate(configurations):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text[text.index("# yaml-language-server") :] if "--schema" in text else text)
        assert "  # " in printed(capsys, "config", "--show", str(file))
    shown = printed(capsys, "config", "--show", "thumos14/videomae-s", "training.lr=1e-3").splitlines()
    (example,) = (text for text in blocks if "$ bitad config --show" in text)
    for line in textwrap.dedent(example).splitlines()[2:]:
        assert line == "..." or line in shown
