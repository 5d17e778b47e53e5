"""Imports follow the order of the packages, and what needs no PyTorch does not load it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bitad

ROOT = Path(bitad.__file__).parent
# From the bottom to the top: each imports those before it, and none after it.
ORDER = (
    "timeline",
    "runtime",
    "config",
    "video",
    "data",
    "models",
    "weights",
    "evaluation",
    "inference",
    "training",
    "reports",
    "library",
    "demo",
    "cli",
)
# The commands that never load PyTorch, and what their modules share.
WITHOUT_TORCH = (
    "bitad",
    "bitad.cli",
    "bitad.config.loading",
    "bitad.data.check",
    "bitad.data.convert",
    "bitad.data.feature_folder",
    "bitad.evaluation.direction_sensitivity",
    "bitad.evaluation.thumos_kit",
    "bitad.inference.merge",
    "bitad.library",
    "bitad.reports.detections",
    "bitad.reports.diagnosis",
    "bitad.reports.diagnosis_inputs",
    "bitad.reports.ground_truth",
    "bitad.reports.page",
    "bitad.reports.runs",
    "bitad.reports.tables",
    "bitad.reports.tracking",
    "bitad.runtime.locking",
    "bitad.runtime.progress",
    "bitad.runtime.workers",
    "bitad.video.indexing",
    "bitad.video.reverse",
    "bitad.weights.hub",
)


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(ROOT.rglob("*.py")):
        yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path


def imported(path: Path) -> set[str]:
    """The modules of ours that a file imports, anywhere in it, without the leading ``bitad.``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.removeprefix("bitad.") for name in names if name.startswith("bitad.")}
    return found


def against_the_order(package: str, names: set[str]) -> set[str]:
    """Of the imported names those of a package above this one."""
    return {name for name in names if ORDER.index(name.split(".")[0]) > ORDER.index(package)}


def test_every_package_has_a_place_in_the_order() -> None:
    found = {name.split(".")[0] for name, _ in modules()} - {"__init__", "__main__"}
    assert found == set(ORDER)


@pytest.mark.parametrize(("name", "path"), [one for one in modules() if not one[0].startswith("__")])
def test_no_module_imports_one_of_a_package_above_its_own(name: str, path: Path) -> None:
    names = {one for one in imported(path) if one.split(".")[0] != "__version__"}
    assert against_the_order(name.split(".")[0], names) == set()


def test_an_import_against_the_order_is_found(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text("def f():\n    from bitad.cli import main\n    import bitad.models.vit\n", encoding="utf-8")
    assert against_the_order("models", imported(file)) == {"cli.main"}


def test_what_needs_no_torch_does_not_load_it() -> None:
    program = (
        "import importlib, sys\n"
        f"for name in {WITHOUT_TORCH!r}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("command", [(), ("train",), ("annotations", "convert"), ("features",), ("weights",)])
def test_help_imports_only_the_command_line(command: tuple[str, ...]) -> None:
    program = (
        "import sys\n"
        "from bitad.cli import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "except SystemExit:\n"
        "    print(*sorted(sys.modules), file=sys.stderr)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, *command, "--help"],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    loaded = run.stderr.decode().split()
    packages = {name.split(".")[0] for name in loaded}
    assert not packages & {"av", "matplotlib", "numpy", "pydantic", "rich", "safetensors", "torch", "yaml"}
    ours = {name.removeprefix("bitad.") for name in loaded if name.startswith("bitad.")}
    assert {name.split(".")[0] for name in ours} <= {"cli", "config", "data", "runtime", "video"}
    assert {name for name in ours if name.startswith("config.")} == {"config.names"}
