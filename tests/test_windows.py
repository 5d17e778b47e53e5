"""Nothing that BiTAD does needs POSIX: its modules load and its commands run with only what Windows has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from builders import feature_data, video_data

from bitad.cli import _expanded

HERE = Path(__file__).parent


def on_windows(program: str, folder: Path, *, given: str = "") -> str:
    """What a program prints in an interpreter that has only what Windows has (tests/windows/sitecustomize.py)."""
    found = os.pathsep.join(map(str, (HERE / "windows", HERE.parent)))
    env = os.environ | {"PYTHONPATH": found, "PYTHONWARNDEFAULTENCODING": "1", "PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, input=given, cwd=folder, capture_output=True, encoding="cp1252", env=env, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


IMPORTS = """
import importlib, pkgutil
import bitad
for module in pkgutil.walk_packages(bitad.__path__, "bitad."):
    if module.name != "bitad.__main__":
        importlib.import_module(module.name)
    print(module.name)
"""


def test_every_module_loads(tmp_path: Path) -> None:
    names = on_windows(IMPORTS, tmp_path).split()
    assert len(names) > 80
    assert {"bitad.cli", "bitad.demo", "bitad.training.trainer", "bitad.runtime.locking"} <= set(names)


REFUSED = """
import os, pathlib, sys
def refused(code):
    try:
        exec(code, {"__name__": "bitad.probe"})
    except (AttributeError, ImportError, EncodingWarning, OSError) as error:
        return type(error).__name__
    return "allowed"
kept = open("kept", "w", encoding="utf-8")
for code in sys.stdin.read().splitlines():
    print(refused(code))
exec("import os, signal, fcntl; os.fork, signal.SIGKILL", {"__name__": "torch.probe"})  # of other packages
"""


def test_what_is_refused(tmp_path: Path) -> None:
    codes = {
        "import fcntl": "ModuleNotFoundError",
        "import os; os.fork": "AttributeError",
        "from os import sched_getaffinity": "ImportError",
        "from signal import SIGKILL": "ImportError",
        "import time; time.clock_gettime": "AttributeError",
        "import sys, os; assert (sys.platform, os.name) == ('win32', 'nt')": "allowed",
        "import os.path; os.path.join('a'), os.getpid(), os.environ": "allowed",
        "import os; os.replace('kept', 'other')": "PermissionError",
        "import pathlib; pathlib.Path('kept').unlink()": "PermissionError",
        "import shutil; shutil.move('kept', 'other')": "PermissionError",
        "open('a:b', 'w', encoding='utf-8')": "OSError",
        "import pathlib; pathlib.Path('aux.d').mkdir()": "OSError",
        "import pathlib; pathlib.Path('other').write_text('a')": "EncodingWarning",
        "import pathlib; pathlib.Path('other').write_bytes(b'a'); pathlib.Path('other').unlink()": "allowed",
    }
    found = on_windows(REFUSED, tmp_path, given="\n".join(codes)).split()
    assert dict(zip(codes, found, strict=True)) == codes


COMMANDS = """
import shlex, sys
from bitad.cli import main
for line in sys.stdin.read().splitlines():
    print("+", line)
    assert main(shlex.split(line)) == 0, line
"""
ON_FEATURES = """
config --presets
config --schema
init data/annotations.json --features data/features --out my.yaml
config --show my.yaml
plan my.yaml
train data/config.yaml training.epochs=1
train data/config.yaml training.epochs=2 training.schedule_epochs=2 --resume
train data/config.yaml training.epochs=1 direction=reverse
train data/config.yaml training.epochs=1 experiment=3-1 init.forward=F init.reverse=B
test data/runs/tiny-3-1-seed0
watch data/runs/tiny-3-1-seed0 --once
report data/runs/tiny-* --out report
diagnose data/runs/tiny-forward-seed0 --out diagnosis
evaluate --ground-truth data/annotations.json --detections data/runs/tiny-*/detections.json --subset validation
merge data/runs/tiny-*-seed0/detections.json --out late.json
weights inspect data/runs/tiny-forward-seed0/best.pt
weights convert data/runs/tiny-forward-seed0/best.pt best.safetensors
annotations check data/annotations.json --features data/features --page look
annotations convert data/annotations.json other.json
reverse data/annotations.json reversed.json
"""
ON_VIDEOS = """
annotations check data/annotations.json --videos data/videos --page look
train data/config.yaml training.epochs=1 training.workers=2
detect data/videos/test_0.mp4 --checkpoint data/runs/tiny-forward-seed0 --out found
features data/videos --checkpoint data/runs/tiny-forward-seed0 --direction both --out features
reverse data/videos reversed --workers 2
"""


@pytest.mark.slow
def test_commands_run_on_features(tmp_path: Path) -> None:
    feature_data(tmp_path / "data")
    features = ON_FEATURES.strip()
    for short, direction in (("F", "forward"), ("B", "reverse")):
        features = features.replace(f"={short}", f"=data/runs/tiny-{direction}-seed0")
    printed = on_windows(COMMANDS, tmp_path, given=features)
    assert [line[2:] for line in printed.splitlines() if line.startswith("+ ")] == features.splitlines()


@pytest.mark.slow
def test_commands_run_on_videos(tmp_path: Path) -> None:
    video_data(tmp_path / "data")
    printed = on_windows(COMMANDS, tmp_path, given=ON_VIDEOS.strip())
    assert [line[2:] for line in printed.splitlines() if line.startswith("+ ")] == ON_VIDEOS.strip().splitlines()


def test_patterns_are_replaced_as_by_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.json", "a.json", "[x].json"):
        (tmp_path / name).touch()
    assert _expanded(["merge", "?.json", "--out", "c*.json", "data.x=[a]", "[x].json", "--glob=*.json"]) == [
        *("merge", "a.json", "b.json"),
        *("--out", "c*.json", "data.x=[a]", "[x].json", "--glob=*.json"),
    ]


def test_no_name_is_made_of_a_path_with_the_systems_separator() -> None:
    made = re.compile(r"(str|os\.fspath)\([^()]*\.relative_to\(")
    files = (HERE.parent / "bitad").rglob("*.py")
    assert [path.name for path in files if made.search(path.read_text(encoding="utf-8"))] == []
