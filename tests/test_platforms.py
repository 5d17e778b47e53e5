""".ci/platforms: the versions that it installs, and the tests that it runs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

from documents import ROOT
from packaging.requirements import Requirement

SCRIPT = ROOT / ".ci/platforms"
TEXT = SCRIPT.read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DEPENDENCIES = PROJECT["dependencies"]


def wanted(packages: str) -> list[Requirement]:
    """What the script installs, by its own program."""
    (program,) = re.findall(r"<<'PROGRAM'\n(.*?)\nPROGRAM\n", TEXT, re.DOTALL)
    command = [sys.executable, "-c", program, packages]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [Requirement(line) for line in done.stdout.splitlines()]


def test_the_oldest_packages_are_at_the_lower_bounds() -> None:
    for oldest, text in zip(wanted("oldest"), DEPENDENCIES, strict=True):
        declared = Requirement(text)
        (lowest,) = (one.version for one in declared.specifier if one.operator == ">=")
        (chosen,) = oldest.specifier
        assert oldest.name == declared.name
        assert oldest.specifier.contains(lowest)
        assert chosen.operator == "=="
        assert chosen.version.removesuffix(".*") == lowest


def test_the_newest_packages_are_in_the_declared_ranges() -> None:
    assert wanted("newest") == [Requirement(text) for text in DEPENDENCIES]


def test_it_is_a_script_that_runs_tests_that_exist() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    paths = re.findall(r"(?<=\s)tests/[\w/.]+(?:::\w+)?", TEXT)
    assert len(paths) > 5
    for path, _, test in (path.partition("::") for path in paths):
        assert (ROOT / path).exists()
        assert not test or f"def {test}(" in (ROOT / path).read_text(encoding="utf-8")


def test_its_pythons_are_those_that_bitad_supports() -> None:
    versions = re.findall(r"python(3\.\d+) (?:oldest|newest)", TEXT)
    assert len(versions) == 2
    for version in versions:
        assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]
