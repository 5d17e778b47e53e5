"""Files of a run directory that are damaged, half written, missing, or something else than files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from builders import config_of, feature_data
from runs import ALONE

from bitad.cli import main
from bitad.training.trainer import Trainer
from bitad.weights.checkpoint import load_checkpoint

QUICK = ("training.epochs=2", "training.warmup_epochs=0")
TRAINING = '{"kind": "training", "epoch": 0, "step": 1, "loss": 3.5}\n'

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a run that has an epoch to go."""
    path = feature_data(tmp_path_factory.mktemp("begun") / "data")
    Trainer(config_of(path, *QUICK), ALONE).run(until=1)
    return path


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    """A copy of its directory."""
    directory = config_of(begun).run_directory
    return Path(shutil.copytree(directory, tmp_path / "runs" / directory.name))


def resume(begun: Path, run: Path) -> int:
    return main(["train", str(begun), *QUICK, f"output={run.parent}", "--resume", "--device", "cpu"])


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


# Records.


def test_a_record_that_is_being_written_is_no_fault_of_a_report(run: Path, tmp_path: Path) -> None:
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(TRAINING[:30].encode())
    assert main(["report", str(run), "--out", str(tmp_path / "report")]) == 0


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe",
        bytes(40),
        b"",
        b'{"kind": "trai',
        b"[1]",
        b'{"step": 3}',
        b'{"kind": "rest", "step": 3}',
        b'{"kind": "training", "step": 3}',
        b'{"kind": "training", "step": "x", "loss": 1}',
        b'{"kind": ["training"], "step": 3, "loss": 1}',
        b'{"kind": "evaluation", "step": 3, "epoch": 1, "average_map": {}}',
    ],
)
def test_a_line_that_is_no_record_is_named(
    begun: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: bytes
) -> None:
    (run / "metrics.jsonl").write_bytes(TRAINING.encode() + line + b"\n" + TRAINING.encode())
    for status in (main(["report", str(run), "--out", str(tmp_path / "report")]), resume(begun, run)):
        assert status == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
    assert len(errors) == 2
    for error in errors:
        assert f"{run / 'metrics.jsonl'}, line 2 is not a record of a run" in error


# Checkpoints.


def test_a_missing_newest_checkpoint_is_in_the_log(begun: Path, run: Path) -> None:
    (run / "last.pt").rename(run / "last-1.pt")
    assert resume(begun, run) == 0
    said = (run / "log.txt").read_text(encoding="utf-8")
    assert f"{run / 'last.pt'} is missing; resuming from {run / 'last-1.pt'}, the one before it" in said
    assert load_checkpoint(run / "last.pt").epoch == 2


# Places of files.


@pytest.mark.parametrize("kind", ["folder", "link"])
@pytest.mark.parametrize(
    "name",
    ["config.yaml", "environment.json", "log.txt", "metrics.jsonl", "last.pt", "best.pt", "detections.json"],
)
def test_a_run_is_refused_at_the_start_where_it_could_not_write_a_file_in_the_end(
    begun: Path, run: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    place = run / name
    (run / "last-1.pt").write_bytes((run / "last.pt").read_bytes())
    place.unlink(missing_ok=True)
    place.mkdir() if kind == "folder" else place.symlink_to("nowhere")
    before = contents(run)
    assert resume(begun, run) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{place} will be written but is a {kind}" in line
    assert contents(run) == before


@pytest.mark.parametrize("name", ["detections.json", "detections.reverse.json", "metrics.json", "bitad.lock"])
def test_a_test_is_refused_at_the_start_where_it_could_not_write_a_file_in_the_end(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    out = tmp_path / "out"
    for kind, make in (("folder", Path.mkdir), ("link", lambda place: place.symlink_to("nowhere"))):
        out.mkdir()
        make(out / name)
        capsys.readouterr()
        assert main(["test", str(run), "--out", str(out), "--device", "cpu"]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{out / name} will be written but is a {kind}" in line
        assert [path.name for path in out.iterdir()] == [name]
        shutil.rmtree(out)


def test_a_place_of_runs_that_is_no_folder_is_refused(
    begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(["train", str(begun), *QUICK, f"output={tmp_path / 'file'}", "--device", "cpu"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'file'} is not a folder; give another one" in line
