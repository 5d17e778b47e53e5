"""Several `bitad features` into one folder at once: `features.json` has what all of them wrote."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import FPS, numbered_picture
from processes import Running

from bitad.cli import main
from bitad.data.feature_folder import FeatureFolder, FeatureSettings, FeatureVideo, read_sidecar
from bitad.inference import extract
from bitad.video.writer import write_video

TINY = ("--checkpoint", "package:playroom_backbone.safetensors", "--pixels", "32", "--device", "cpu")
SETTINGS = FeatureSettings(
    feature_stride_frames=4,
    feature_offset_frames=7.5,
    feature_channels=8,
    direction="forward",
    model="tiny",
    clip_frames=16,
    window_steps=None,
    window_overlap=None,
    pixels=32,
    precision="float32",
    stored="float32",
    checkpoint="tiny.pth",
    checkpoint_sha256="0" * 64,
)
VIDEO = FeatureVideo(16, 8.0, 1)


def ended(processes: list[Running]) -> list[tuple[int, str]]:
    """The status and the errors of processes that were started."""
    try:
        said = [process.communicate(timeout=200)[1] for process in processes]
        return [(process.returncode, err) for process, err in zip(processes, said, strict=True)]
    finally:
        for process in processes:
            process.kill()


def done(folder: FeatureFolder, name: str) -> None:
    with folder.writing(name, VIDEO) as write:
        write(np.ones((1, SETTINGS.feature_channels), np.float32))
    folder.finish(name, VIDEO)


@pytest.mark.slow  # each process imports PyTorch
def test_commands_that_run_at_once_describe_all_of_their_videos(tmp_path: Path) -> None:
    for number in range(6):
        video = tmp_path / f"part{number % 3}" / f"v{number}.mp4"
        write_video(video, (numbered_picture(frame) for frame in range(400 + number)), fps=FPS)
    out = tmp_path / "out"
    processes = [Running("features", tmp_path / f"part{part}", *TINY, "--out", out) for part in range(3)]
    assert [status for status, _ in ended(processes)] == [0, 0, 0]
    assert sorted(read_sidecar(out).videos) == sorted(path.stem for path in out.glob("*.npy"))
    assert len(read_sidecar(out).videos) == 6


RECORD = """
import sys
from pathlib import Path
from bitad.data.feature_folder import FeatureFolder, read_sidecar
folder, who = Path(sys.argv[1]), sys.argv[2]
features = FeatureFolder(folder, read_sidecar(folder).settings)
features.begin()
for number in range(15):
    features.finish(f"{who}-{number}", read_sidecar(folder).videos["first"])
    features.record()
"""


def test_records_of_several_processes_are_all_kept(tmp_path: Path) -> None:
    first = FeatureFolder(tmp_path, SETTINGS)
    first.begin()
    done(first, "first")
    first.record()
    assert ended([Running(tmp_path, who, program=RECORD) for who in "abc"]) == [(0, "")] * 3
    names = {"first", *(f"{who}-{number}" for who in "abc" for number in range(15))}
    sidecar = read_sidecar(tmp_path)
    assert (sidecar.settings, sidecar.videos) == (SETTINGS, dict.fromkeys(names, VIDEO))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.json", "first.npy"]


def then(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    """Another command runs when the next one has written the features of its first video, and not yet recorded it."""
    one = extract._extract

    def followed(*arguments: Any) -> None:
        monkeypatch.setattr(extract, "_extract", one)
        one(*arguments)
        assert main(command) == 0

    monkeypatch.setattr(extract, "_extract", followed)


def test_what_another_command_has_described_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    commands = {}
    for name in ("a", "b"):
        write_video(tmp_path / name / f"{name}.mp4", (numbered_picture(frame) for frame in range(24)), fps=FPS)
        commands[name] = ["features", str(tmp_path / name), *TINY, "--out", str(tmp_path / "out")]
    then(monkeypatch, commands["b"])
    assert main(commands["a"]) == 0
    assert sorted(read_sidecar(tmp_path / "out").videos) == ["a", "b"]


def test_features_of_a_name_are_those_of_one_command_and_are_recorded_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    for number, part in enumerate(("a", "b")):
        write_video(tmp_path / part / "v.mp4", (numbered_picture(frame + number) for frame in range(24)), fps=FPS)

    def command(part: str, out: str) -> list[str]:
        return ["features", str(tmp_path / part), *TINY, "--out", str(tmp_path / out)]

    def features(part: str, out: str) -> bytes:
        assert main(command(part, out)) == 0
        return (tmp_path / out / "v.npy").read_bytes()

    then(monkeypatch, command("b", "out"))
    both, said = features("a", "out"), capsys.readouterr().err
    assert both == features("b", "alone")
    assert "v.npy: replaced by another process, whose features are kept" in said
    kept = (tmp_path / "out" / "v.npy").stat().st_mtime_ns
    assert features("b", "out") == both
    assert (tmp_path / "out" / "v.npy").stat().st_mtime_ns == kept
    assert features("a", "out") != both


def test_what_a_killed_command_left_is_removed(tmp_path: Path) -> None:
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    (tmp_path / f".v.npy.{killed.pid}.tmp").write_bytes(bytes(64))
    FeatureFolder(tmp_path, SETTINGS).begin()
    assert [path.name for path in tmp_path.iterdir()] == ["features.json"]


def test_what_was_recorded_meanwhile_is_kept(tmp_path: Path) -> None:
    one, other = FeatureFolder(tmp_path, SETTINGS), FeatureFolder(tmp_path, SETTINGS)
    one.begin()
    other.begin()
    done(one, "a")
    one.record()
    done(other, "b")
    other.record()
    one.begin()
    assert sorted(read_sidecar(tmp_path).videos) == ["a", "b"]


def test_features_of_another_sort_that_began_meanwhile_are_refused(tmp_path: Path) -> None:
    one, other = FeatureFolder(tmp_path, SETTINGS), FeatureFolder(tmp_path, replace(SETTINGS, pixels=64))
    one.begin()
    with pytest.raises(ValueError, match="holds other features: pixels was 32, is 64; name another folder"):
        other.begin()
