"""The benchmarks run, measure what they say, and fail in words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
# A clone of OpenTAD, which some tests need.
OPENTAD = Path(os.environ.get("OPENTAD", BENCHMARKS.parents[1] / "OpenTAD"))


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """They find one another as scripts of one folder do."""
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """Work is done here: a new process needs longer to import PyTorch."""
    import kernels
    import measuring
    import speed

    def here(work: Callable[..., measuring.Measured], given: dict[str, Any], *, threads: int) -> measuring.Alone:
        done = work(**given)
        return measuring.Alone(done, measuring.peak_mib(), done.took)

    monkeypatch.setattr(kernels, "alone", here)
    monkeypatch.setattr(speed, "alone", here)


@pytest.mark.usefixtures("in_this_process")
def test_a_quick_row_is_measured_beside_its_floor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import speed

    assert speed.main(["--quick", "--rows", "nms", "--threads", "1", "--json", str(tmp_path / "speed.json")]) == 0
    said, content = capsys.readouterr().out, json.loads((tmp_path / "speed.json").read_text())
    assert "soft-NMS" in said
    assert "small and not comparable with OpenTAD's" in said
    one = content["measured"]["nms"]
    assert 0 < one["floor_cpu_s"] < one["took"]["cpu_s"]
    assert one["amount"] == speed.QUICK.candidates
    assert content["table"]["rows"][0][speed.COLUMNS.index("OpenTAD")] is None
    assert min(content["rates"].values()) > 0


def test_work_is_done_in_a_process_of_its_own_which_measures_itself(tmp_path: Path) -> None:
    import evaluation_speed
    import measuring

    held = np.ones(2**28, np.uint8)  # here, and so not there
    given = evaluation_speed.write_made_up(tmp_path, videos=20, detections=100)
    done = measuring.alone(evaluation_speed.evaluation, given, threads=1)
    assert done.measured.amount == 2000
    assert 0 < done.measured.took.cpu_s < done.process.cpu_s
    assert 10 < done.peak_mib < held.nbytes / 2**20 < measuring.peak_mib()


def test_work_that_fails_says_why_in_a_line(tmp_path: Path) -> None:
    import evaluation_speed
    import measuring

    given = {"truth": str(tmp_path / "none.json"), "found": str(tmp_path / "none.json"), "subset": "test"}
    with pytest.raises(
        measuring.FailedError, match=r"^evaluation ended with status 1: .*none\.json: no such file"
    ):
        measuring.alone(evaluation_speed.evaluation, given, threads=1)


@pytest.mark.usefixtures("one_thread")
def test_the_parts_of_a_step_on_features_are_measured(tmp_path: Path) -> None:
    import feature_step

    feature_step.main(["--quick", "--json", str(tmp_path / "step.json")])
    measured = json.loads((tmp_path / "step.json").read_text())
    assert measured.keys() == {".npz", "folder"}
    for parts in measured.values():
        assert parts["all"] > parts["backward"] > parts["schedule"] > 0


def test_the_exponent_of_a_power_is_found() -> None:
    import growth

    sizes = [192, 384, 768, 1536]
    for power in (-1.0, 0.0, 1.0, 2.0):
        assert growth.exponent(sizes, [3 * size**power for size in sizes]) == pytest.approx(power)


def test_seconds_are_said_with_three_digits() -> None:
    import measuring

    said = [measuring.seconds(value) for value in (0.0047512, 0.142, 0.9996, 21.04, 71.8, 840.0, 12345.6)]
    assert said == ["4.75 ms", "142 ms", "1.00 s", "21.0 s", "71.8 s", "840 s", "12,346 s"]


def test_what_is_no_clone_of_opentad_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import beside_opentad

    assert beside_opentad.main([str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert (
        said == f"error: {tmp_path} is not a clone of OpenTAD: it has no opentad/models/backbones/vit_adapter.py\n"
    )


@pytest.mark.parametrize("missing", ["cv2", "decord"])
def test_what_reads_opentad_s_videos_must_be_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    import beside_opentad

    (tmp_path / beside_opentad.FILE).parent.mkdir(parents=True)
    (tmp_path / beside_opentad.FILE).touch()
    monkeypatch.setitem(sys.modules, missing, None)
    assert beside_opentad.main([str(tmp_path), "--end-to-end"]) == 1
    said = capsys.readouterr().err
    assert said == "error: OpenTAD reads with OpenCV and decord; pip install decord opencv-python-headless\n"


def test_what_is_measured_beside_opentad_is_chosen() -> None:
    import beside_opentad as beside

    parse = beside.parser().parse_args
    options = parse(["clone"])
    assert (options.mode, options.precision) == (beside.ALONE, ["fp32"])
    assert parse(["clone", "--whole", "--precision", "fp32", "bf16"]).precision == ["fp32", "bf16"]
    assert parse(["clone", "--whole"]).mode is beside.WHOLE
    assert parse(["clone", "--end-to-end"]).mode is beside.END_TO_END
    for refused in (["--whole", "--end-to-end"], ["--precision", "fp16"]):
        with pytest.raises(SystemExit):
            parse(["clone", *refused])


def test_costs_are_shares_of_opentad_s_for_the_same_work_in_the_same_precision() -> None:
    import beside_opentad as beside
    from measuring import Alone, Measured, Took

    def cost(cpu_s: float, wall_s: float, peak_mib: float) -> Alone:
        return Alone(Measured(Took(cpu_s, wall_s), 768, "frames"), peak_mib, Took(0.0, 0.0))

    best = {
        beside.Row("fp32", beside.FORWARD, beside.THEIRS): cost(40.0, 20.0, 1000.0),
        beside.Row("fp32", beside.FORWARD, "blocks"): cost(30.0, 16.0, 500.0),
        beside.Row("bf16", beside.FORWARD, beside.THEIRS): cost(10.0, 8.0, 800.0),
        beside.Row("bf16", beside.FORWARD, "beside"): cost(5.0, 2.0, 200.0),
    }
    rows = beside.table_of("both", best, notes=()).rows
    assert [row[2] for row in rows] == ["OpenTAD", "bitad, blocks", "OpenTAD", "bitad, beside"]
    assert [(row[4], row[6], row[9]) for row in rows] == [
        (1.0, 1.0, 1.0),
        (0.75, 0.8, 0.5),
        (1.0, 1.0, 1.0),
        (0.5, 0.25, 0.25),
    ]
    assert [row[7] for row in rows] == ["38.4", "48", "96", "384"]


def test_settings_of_opentad_are_read_with_those_that_they_are_based_on(tmp_path: Path) -> None:
    import opentad_imports

    (tmp_path / "base.py").write_text(
        "model = dict(type='A', head=dict(levels=6, loss=dict(weight=1)))\nsteps = [1]\n"
    )
    (tmp_path / "own.py").write_text(
        "_base_ = ['base.py']\nframes = 32\nmodel = dict(head=dict(loss=dict(weight=2)))\nsteps = [frames]\n"
    )
    settings = opentad_imports.read_settings(tmp_path / "own.py")
    assert settings == {
        "model": {"type": "A", "head": {"levels": 6, "loss": {"weight": 2}}},
        "frames": 32,
        "steps": [32],
    }
    assert settings.model.head.loss.weight == 2
    assert not hasattr(settings.model, "neck")


@pytest.mark.slow
@pytest.mark.skipif(
    not OPENTAD.is_dir(), reason="no clone of OpenTAD beside this checkout, nor named by the variable OPENTAD"
)
@pytest.mark.parametrize("mode", [(), ("--whole",), ("--end-to-end",)])
def test_bitad_is_measured_beside_opentad(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, mode: tuple[str, ...]
) -> None:
    import beside_opentad as beside

    if "--end-to-end" in mode:
        pytest.importorskip("cv2")
        pytest.importorskip("decord")
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS.parent), prepend=os.pathsep)
    out = tmp_path / "beside.json"
    options = ("--quick", "--rounds", "1", "--threads", "1", "--precision", "bf16", "--json", str(out))
    assert beside.main([str(OPENTAD), *options, *mode]) == 0, capsys.readouterr().err
    found = json.loads(out.read_text())
    # Features, segments and scores.
    assert max(found["apart"]["fp32"]["bitad"]) < 1e-5
    for whose in ("OpenTAD", "bitad"):
        assert 1e-5 < max(found["apart"]["bf16"][whose]) < 0.1
    works = (beside.TRAINING,) if mode == ("--end-to-end",) else (beside.FORWARD, beside.STEP)
    assert [*found["measured"]] == [f"bf16, {what}, {whose}" for what in works for whose in beside.WHOSE[what]]
    assert all(one["frames_per_s"] > 0 for one in found["measured"].values())


@pytest.mark.usefixtures("in_this_process")
def test_all_of_a_network_s_operations_are_of_a_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import kernels
    import networks

    assert kernels.main(["--quick", "--threads", "1", "--json", str(tmp_path / "kernels.json")]) == 0
    forward, step = (
        json.loads((tmp_path / "kernels.json").read_text())["measured"][what] for what in kernels.WORK
    )
    config = networks.configuration(tmp_path, size="tiny", frames=96, pixels=64)
    assert sum(forward["flops"].values()) == networks.forward_flops(config)
    # Backwards it is at least as much, and what is recomputed; weights that learn and attention take twice as much.
    for kind, most in (("matrix products", 4), ("attention", 4.5)):
        assert 2 < step["flops"][kind] / forward["flops"][kind] < most
    assert min(min(one["cpu_s"].values()) for one in (forward, step)) > 0
    assert "training step  attention" in capsys.readouterr().out


def test_the_gpu_check_runs_without_a_gpu(tmp_path: Path) -> None:
    script, out = BENCHMARKS / "gpu_check.py", tmp_path / "gpu-check.json"
    # In a process of its own: it limits the time of stages with a signal that pytest-timeout uses too.
    command = [sys.executable, str(script), "--quick", "--device", "cpu", "--out", str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(BENCHMARKS.parent)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    stages = json.loads(out.read_text())["stages"]
    status = {name: one["status"] for name, one in stages.items()}
    assert [status.pop(name) for name in ("synchronisation", "compiled")] == ["skipped", "skipped"]
    assert set(status.values()) == {"ok"}, stages
    # The CPU is compared with itself.
    assert {row[key] for row in stages["parity"]["rows"] for key in ("logits", "losses", "gradients")} == {0.0}
    assert all(row["share_of_peak"] > 0 for row in stages["speed"]["rows"])
    assert all(0.9 < row["measured_over_planned"] < 1.1 for row in stages["memory"]["rows"])
    assert all(row["fits"] for row in stages["fit"]["rows"])
    assert [row["wrapper"] for row in stages["wrappers"]["rows"]] == ["none", "DDP", "FSDP2"]
    assert all(row["equal"] for row in stages["resume"]["rows"])
    assert stages["video"]["steps"] > 0
    shown = subprocess.run(
        [sys.executable, str(script), "--tables", str(out)], env=env, capture_output=True, text=True
    )
    assert "**Bits of a resumed run**" in shown.stdout
    assert "Waits for the GPU" not in shown.stdout  # not measured


def test_the_gpu_check_does_without_pyav(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "found = PathFinder.find_spec\n"
        "hide = lambda name, *rest: None if name.partition('.')[0] == 'av' else found(name, *rest)\n"
        "PathFinder.find_spec = staticmethod(hide)\n"
    )
    out = tmp_path / "gpu-check.json"
    script = str(BENCHMARKS / "gpu_check.py")
    command = [sys.executable, script, "--quick", "--device", "cpu", "--stages", "wrappers", "video"]
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(BENCHMARKS.parent)]),
    }
    done = subprocess.run([*command, "--out", str(out)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    stages = json.loads(out.read_text())["stages"]
    assert stages["wrappers"]["status"] == "ok"
    assert (stages["video"]["status"], stages["video"]["error"]) == ("skipped", "PyAV (av) is not installed")
