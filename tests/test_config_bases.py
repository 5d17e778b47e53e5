"""A configuration of someone else's reads no files but configurations, and errors do not print files' content."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitad.cli import main
from bitad.config_files import ConfigError, load_config

SECRET = "s3cr3t-value"


@pytest.mark.parametrize(
    "text",
    [
        f"root:x:0:0:{SECRET}:\nother: a: {SECRET}\n",
        f"KEY={SECRET}\n",
        f"- {SECRET}\n- [",
        f"a: !!int {SECRET}\n",
        f"a: !{SECRET} x\n",
    ],
)
@pytest.mark.parametrize("name", ["passwd", "passwd.yaml", "key.pem", ".env"])
def test_what_a_base_holds_is_not_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, name: str
) -> None:
    (tmp_path / name).write_text(text)
    (tmp_path / "evil.yaml").write_text(f"base: {tmp_path / name}\n")
    assert main(["plan", str(tmp_path / "evil.yaml")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line
    # A tag is part of the syntax that YAML's message names.
    assert SECRET not in line or (name == "passwd.yaml" and f"!{SECRET}" in text)


def test_a_base_that_is_no_configuration_by_its_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secrets.txt").write_text("name: stolen\n")
    (tmp_path / "evil.yaml").write_text("base: secrets.txt\n")
    with pytest.raises(ConfigError, match=r"base .*secrets\.txt is no \.yaml file; name a configuration"):
        load_config(tmp_path / "evil.yaml")


def test_a_line_that_is_no_yaml_is_told_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(f"base: playroom\nname: my\ntraining: {{lr: {SECRET}: 3}}\n")
    with pytest.raises(ConfigError, match=r"my\.yaml is not YAML: line 3, column \d+: ") as error:
        load_config(tmp_path / "my.yaml")
    assert SECRET not in str(error.value)
