"""Dockerfile: what can be checked of it without Docker. Its steps are followed by hand, but for downloads."""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import ROOT, Document

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
INSTRUCTIONS = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "ENTRYPOINT", "CMD"}


def instructions() -> Iterator[tuple[str, str]]:
    """Each instruction of the Dockerfile with what follows it."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            word, _, rest = line.partition(" ")
            yield word, rest.strip()


def copies() -> Iterator[tuple[list[str], str]]:
    """The sources and the target of each COPY."""
    for word, rest in instructions():
        if word == "COPY":
            *sources, target = rest.split()
            yield sources, target


def is_sent(path: str) -> bool:
    """Whether Docker gets a file: the last rule of .dockerignore that fits it or a folder above decides."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = True
    for rule in (line for line in lines if line and not line.startswith("#")):
        pattern = rule.lstrip("!")
        names = [path, *(str(parent) for parent in Path(path).parents if str(parent) != ".")]
        if any(fnmatch.fnmatch(name, pattern.replace("**/", "*")) for name in names):
            sent = rule.startswith("!")
    return sent


def test_every_instruction_is_known_and_every_variable_is_declared_in_its_stage() -> None:
    declared: set[str] = set()
    for word, rest in instructions():
        assert word in INSTRUCTIONS
        assert set(re.findall(r"\$\{(\w+)\}", rest)) <= declared, rest
        assert not re.search(r"\$(?!\{)", rest)
        if word == "FROM":
            declared.clear()  # an ARG before FROM holds for FROM alone
        elif word == "ARG":
            declared.add(rest.partition("=")[0])


def test_its_python_is_one_that_bitad_supports() -> None:
    (version,) = (rest.partition("=")[2] for word, rest in instructions() if rest.startswith("PYTHON_VERSION="))
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]


def test_what_it_copies_exists_and_is_sent() -> None:
    sources = [source for some, _ in copies() for source in some]
    assert {"bitad", "pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists()
        assert is_sent(source)
    assert is_sent("bitad/reports/page.js")
    assert not any(map(is_sent, (".git/config", "runs/a/best.pt", "tests/runs.py", "bitad/__pycache__/a.pyc")))


def test_what_it_installs_was_tested_together() -> None:
    commands = [rest for word, rest in instructions() if word == "RUN"]
    assert len(commands) == 2
    for command in commands:
        assert shlex.split(command)[:5] == ["pip", "install", "--no-cache-dir", "-c", "constraints.txt"]


def test_its_documentation_names_its_arguments() -> None:
    arguments = {rest.partition("=")[0] for word, rest in instructions() if word == "ARG"}
    page = Document(ROOT / "docs/scaling.md")
    shown = [command for command in page.block_commands if command.startswith("docker ")]
    assert sum(command.startswith("docker build ") for command in shown) == 2
    assert set(re.findall(r"--build-arg (\w+)=", " ".join(shown))) <= arguments
    # The comments of the file show the same.
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert all(command in text for command in shown if command.startswith("docker build "))


@pytest.mark.slow
def test_its_steps_make_the_command_that_it_starts(tmp_path: Path) -> None:
    context, target = tmp_path / "context", tmp_path / "installed"
    for sources, place in copies():
        for source in sources:
            found = context / place / (source if place.endswith("/") else "")
            found.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, found, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, found)
    # What it depends on is found where it is for the tests.
    install = ("install", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(target), ".")
    built = subprocess.run(
        [sys.executable, "-m", "pip", *install], cwd=context, capture_output=True, text=True, check=False
    )
    if "No module named" in built.stderr and "hatchling" in built.stderr and not os.environ.get("CI"):
        pytest.skip("no hatchling, which builds the package; pip install -e '.[dev]'")
    assert built.returncode == 0, built.stderr
    (entry,) = (rest for word, rest in instructions() if word == "ENTRYPOINT")
    (words,) = (rest for word, rest in instructions() if word == "CMD")
    (command,), (argument,) = (tomllib.loads(f"words = {text}")["words"] for text in (entry, words))
    env = {**os.environ, "PYTHONPATH": str(target), "HOME": str(tmp_path / "none")}
    run = [sys.executable, str(target / "bin" / command), argument]
    done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: bitad")
