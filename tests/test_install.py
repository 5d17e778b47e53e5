"""The wheel holds the whole package, and what is installed from it works without the sources."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bitad.config.loading import presets

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bitad"
TRUTH = {"a": {"subset": "test", "duration": 9.0, "annotations": [{"segment": [1.0, 4.0], "label": "x"}]}}
FOUND = {"a": [{"segment": [1.0, 4.0], "label": "x", "score": 0.9}]}


def run(*command: object, cwd: Path | None = None) -> str:
    """What a command prints on standard output; it must succeed. It finds the package in ``cwd`` first."""
    env = os.environ | {"PYTHONPATH": str(cwd or "")}
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=cwd, env=env)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("hatchling") is None:
        reason = "no hatchling, which builds the wheel; pip install -e '.[dev]'"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT)
    (wheel,) = folder.iterdir()
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed package alone; what it depends on is found where it is for the tests."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", folder, wheel)
    return folder


def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    files = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == files
    assert {"bitad/py.typed", "bitad/reports/page.js", "bitad/config/presets/thumos14/videomae-s.yaml"} <= files
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_installed_command_needs_no_sources(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "truth.json").write_text(json.dumps({"database": TRUTH}), encoding="utf-8")
    (tmp_path / "found.json").write_text(json.dumps({"results": FOUND}), encoding="utf-8")
    command = installed / "bin" / "bitad"
    assert "usage: bitad" in run(command, "--help", cwd=installed)
    where = "import bitad; print(bitad.__file__)"
    assert Path(run(sys.executable, "-c", where, cwd=installed).strip()).is_relative_to(installed)
    evaluate = ("evaluate", "--ground-truth", tmp_path / "truth.json", "--detections", tmp_path / "found.json")
    assert "100.00" in run(command, *evaluate, "--subset", "test", cwd=installed)
    # The parts of the page, and the presets, are files of the package.
    look = ("annotations", "check", tmp_path / "truth.json", "--page", tmp_path / "page")
    assert "0 defects" in run(command, *look, cwd=installed)
    assert "showMoment" in (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    load = (
        "from bitad.config.loading import load_config, presets\n"
        "print(*(load_config(name) and name for name in presets()))"
    )
    assert run(sys.executable, "-c", load, cwd=installed).split() == presets()
    listed = run(command, "config", "--presets", cwd=installed).splitlines()
    assert [line.split()[0] for line in listed] == presets()
    assert all(line.endswith(".") for line in listed)
    shown = run(command, "config", "--show", "thumos14/videomae-s", cwd=installed)
    assert "name: thumos14-videomae-s  # preset thumos14/videomae-s\n" in shown
    assert "output: exps  # preset thumos14/adatad\n" in shown
