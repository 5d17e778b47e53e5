"""A base install has no package of an extra, all of BiTAD loads with it, and what needs an extra names it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import venv
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from builders import feature_data
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Not for users: for who works on BiTAD, and for its documentation.
OWN_EXTRAS = {"dev", "docs"}
EXTRAS = {name: wanted for name, wanted in PROJECT["optional-dependencies"].items() if name not in OWN_EXTRAS}
# What needs each extra, in a folder with the configuration `data/config.yaml`.
USES = {
    "completion": "--print-completion bash",
    "encoders": "features data --encoder hf:a/b --out features",
    "mlflow": "track RUN --to mlflow",
    "onnx": "export RUN --to onnx --out a.onnx",
    "parquet": "annotations convert data/annotations.json rows.parquet --to parquet",
    "tensorboard": "train data/config.yaml training.tensorboard=true",
    "wandb": "track RUN --to wandb",
}
IMPORTS = """
import importlib, pkgutil
import bitad
for module in pkgutil.walk_packages(bitad.__path__, "bitad."):
    if module.name != "bitad.__main__":
        importlib.import_module(module.name)
"""


def needed(requirements: list[str]) -> dict[str, Distribution]:
    """The installed packages that these need, by name, with what those need in turn."""
    found: dict[str, Distribution] = {}
    left = [(Requirement(text), "") for text in requirements]
    while left:
        requirement, extra = left.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        is_new = name not in found
        try:
            found.setdefault(name, distribution(name))
        except PackageNotFoundError:
            pytest.skip(f"{name}, which the base install needs, is not installed as a package")
        extras = requirement.extras or ({""} if is_new else set())
        left += [(Requirement(text), one) for text in found[name].requires or () for one in extras]
    return found


class Base:
    """An environment of its own that has the packages of a base install, as links, and no others."""

    def __init__(self, folder: Path) -> None:
        self.packages = needed(PROJECT["dependencies"])
        venv.create(folder, with_pip=False)
        (site,) = folder.glob("lib/python*/site-packages")
        for package in self.packages.values():
            for top in {
                file.parts[0] for file in package.files or () if file.parts[0] not in ("..", "__pycache__")
            }:
                place = site / top
                if not place.exists():
                    place.symlink_to(Path(str(package.locate_file(top))))
        (site / "bitad.pth").write_text(f"{ROOT}\n", encoding="utf-8")
        self.python = folder / "bin" / "python"

    def run(self, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [str(self.python), *words]
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    if sys.platform == "win32":
        pytest.skip("links need rights on Windows")
    return Base(tmp_path_factory.mktemp("base") / "venv")


def test_the_base_install_has_no_package_of_an_extra(base: Base) -> None:
    wanted = {canonicalize_name(Requirement(text).name) for texts in EXTRAS.values() for text in texts}
    assert wanted & base.packages.keys() == set()
    assert {"torch", "numpy", "av", "pydantic"} <= base.packages.keys()


@pytest.mark.slow
def test_every_module_loads_in_a_base_install(base: Base, tmp_path: Path) -> None:
    done = base.run("-c", IMPORTS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_every_extra_has_a_use() -> None:
    assert USES.keys() == EXTRAS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("extra", EXTRAS)
def test_what_an_extra_is_for_says_how_it_is_installed(extra: str, base: Base, tmp_path: Path) -> None:
    feature_data(tmp_path / "data")
    (tmp_path / "data" / "clip.mp4").touch()
    done = base.run("-m", "bitad", *USES[extra].split(), cwd=tmp_path)
    assert done.returncode in (1, 2)
    *_, line = done.stderr.splitlines()
    assert f"pip install 'bitad[{extra}]'" in line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data/runs").exists()
