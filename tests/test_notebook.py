"""examples/own_videos.ipynb: it runs from end to end, in the time that it says."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from documents import ROOT

PATH = ROOT / "examples/own_videos.ipynb"
# Of the CPU, for less than three minutes on two cores, whatever else they do. It takes 45.
MOST_CPU_S = 180.0
# In a process of its own: warnings of Jupyter's packages are no errors of BiTAD.
EXECUTE = """
import sys
import nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def printed(cell: dict[str, Any]) -> str:
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])


def test_it_is_committed_without_outputs() -> None:
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells(PATH, "code"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_leads_from_clips_to_a_page_and_the_kinds_of_errors(tmp_path: Path) -> None:
    missing = [name for name in ("nbclient", "ipykernel") if importlib.util.find_spec(name) is None]
    if missing:
        reason = f"no {' and '.join(missing)}, which execute the notebook; pip install -e '.[dev]'"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    # Its `!bitad` is the command of this environment.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path / ".ipython")}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", EXECUTE, str(PATH), "executed.ipynb"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    code = cells(tmp_path / "executed.ipynb", "code")
    check, init, train, report, diagnose, detect = code[2:]
    assert "5 videos" in printed(check)
    assert "written: my.yaml, my.json" in printed(init)
    found = re.search(r"average mAP on the held-out clip: (\d+\.\d) %", printed(train))
    assert found is not None
    assert float(found[1]) > 40
    page = "".join(report["outputs"][-1]["data"]["text/html"])
    assert page.count("data:video/mp4;base64,") == 1  # of the held-out clip
    assert "&quot;media/" not in page
    assert "Gain without each kind of error" in printed(diagnose)
    assert re.fullmatch(
        r"(clip0: \d+\.\d\d to \d+\.\d\d s, (rise|fall|open|close) \(0\.\d\d\)\n)+", printed(detect)
    )
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < MOST_CPU_S
