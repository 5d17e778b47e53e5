"""A configuration of someone else's reads no files but configurations, and errors do not print files' content."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from bitad.cli import main
from bitad.config.loading import ConfigError, load_config

SECRET = "s3cr3t-value"


@pytest.mark.parametrize(
    "text",
    [
        f"root:x:0:0:{SECRET}:\nother: a: {SECRET}\n",
        f"KEY={SECRET}\n",
        f"- {SECRET}\n- [",
        f"a: !!int {SECRET}\n",
        f"a: !{SECRET} x\n",
        f"a: *{SECRET}\n",
        f"%{SECRET}\n",
    ],
)
@pytest.mark.parametrize("name", ["passwd", "passwd.yaml", "key.pem", ".env", "link.yaml"])
def test_what_a_base_holds_is_not_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, name: str
) -> None:
    (tmp_path / name.replace("link.yaml", "secrets")).write_text(text)
    if name == "link.yaml":
        (tmp_path / name).symlink_to(tmp_path / "secrets")
    (tmp_path / "evil.yaml").write_text(f"base: {tmp_path / name}\n")
    assert main(["plan", str(tmp_path / "evil.yaml")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert SECRET not in line
    if name != "passwd.yaml":  # which may be a configuration, by its name
        assert f"base {tmp_path / name} is not a .yaml file; give a configuration" in line


@pytest.mark.parametrize(
    "base", ["d.yaml", "/dev/zero", "zero.yaml", "3", "[a]", "{a: b}", "''", ".", '"a\\0b"', "fifo.yaml"]
)
def test_a_base_that_is_no_file_is_refused_at_once_with_the_file_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], base: str
) -> None:
    (tmp_path / "d.yaml").mkdir()
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "evil.yaml").write_text(f"base: {base}\n")
    assert main(["plan", str(tmp_path / "evil.yaml")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'evil.yaml'}: base: " in line


def test_bases_without_end_are_refused(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number}.yaml").write_text(f"base: {number + 1}.yaml\n")
    with pytest.raises(ConfigError, match="more than 30 bases in a chain"):
        load_config(tmp_path / "0.yaml")


def test_a_base_that_is_no_configuration_by_its_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secrets.txt").write_text("name: stolen\n")
    (tmp_path / "evil.yaml").write_text("base: secrets.txt\n")
    with pytest.raises(ConfigError, match=r"base .*secrets\.txt is not a \.yaml file; give a configuration"):
        load_config(tmp_path / "evil.yaml")


def test_a_line_that_is_no_yaml_is_told_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(f"base: playroom\nname: my\ntraining: {{lr: {SECRET}: 3}}\n")
    with pytest.raises(ConfigError, match=r"my\.yaml is not YAML: line 3, column \d+: ") as error:
        load_config(tmp_path / "my.yaml")
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "base: playroom\nname: a\nname: b\n",
        "base: playroom\ntraining: {lr: 0.1, epochs: 3, lr: 0.1}\n",
        "base: playroom\ntraining: &t {lr: 0.1, lr: 0.2}\n",
        "base: playroom\ntraining:\n  <<: {lr: 0.1}\n  <<: {epochs: 3}\n",
        "base: playroom\ntraining: {<<: {lr: 0.1, lr: 0.2}}\n",
        'base: playroom\nname: a\n"na\\x6De": b\n',
    ],
)
def test_a_key_that_a_file_sets_twice_is_refused_with_its_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "my.yaml").write_text(text)
    assert main(["plan", str(tmp_path / "my.yaml")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"my\.yaml is not YAML: key '\S+' occurs twice, in lines \d and \d; keep one", line)
