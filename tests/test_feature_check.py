"""`bitad annotations check --features`: names, arrays, widths, numbers of rows, and clocks of features."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import CHANNELS, feature_data

from bitad.cli import main
from bitad.data.check import check_annotations
from bitad.data.feature_folder import FORMAT, SIDECAR, FeatureSettings

DURATIONS_S = {"a": 20.0, "b": 30.0, "c": 45.0, "d": 60.0}
WIDTH, STRIDE, FPS = 6, 4, 30.0
SETTINGS = FeatureSettings(
    feature_stride_frames=STRIDE,
    feature_offset_frames=7.5,
    feature_channels=WIDTH,
    direction="forward",
    model="small",
    clip_frames=16,
    window_steps=None,
    window_overlap=None,
    pixels=160,
    precision="float32",
    stored="float32",
    checkpoint="w.pth",
    checkpoint_sha256="0" * 64,
)


def write_truth(folder: Path, **of_all: Any) -> Path:
    annotations = [{"segment": [1.0, 4.0], "label": "x"}]
    database = {
        name: {"subset": "train", "duration": seconds, "annotations": annotations, **of_all}
        for name, seconds in DURATIONS_S.items()
    }
    path = folder / "truth.json"
    path.write_text(json.dumps({"database": database}), encoding="utf-8")
    return path


def rows_of(seconds: float, fps: float = FPS) -> int:
    """Rows of clips of 16 frames, one every 4."""
    return (round(seconds * fps) - 16) // STRIDE + 1


def write_features(folder: Path, rows: dict[str, int] | None = None, width: int = WIDTH) -> Path:
    folder.mkdir(parents=True)
    for name, seconds in DURATIONS_S.items():
        np.save(folder / f"{name}.npy", np.ones((rows[name] if rows else rows_of(seconds), width), np.float32))
    return folder


def describe(folder: Path, **changes: dict[str, Any]) -> None:
    """Writes a ``features.json``; a video's entry may differ."""
    videos = {}
    for name, seconds in DURATIONS_S.items():
        entry = {"frames": round(seconds * FPS), "fps": FPS, "steps": rows_of(seconds)}
        videos[name] = entry | changes.get(name, {})
    content = {"format": FORMAT, "settings": asdict(SETTINGS), "videos": videos}
    (folder / SIDECAR).write_text(json.dumps(content), encoding="utf-8")


def check(truth: Path, features: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """The exit status of the command, and the lines that it prints after the counts."""
    status = main(["annotations", "check", str(truth), "--features", str(features)])
    return status, capsys.readouterr().out.replace(str(features), "DIR").splitlines()[2:]


def test_sound_features_have_no_defect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, folder = write_truth(tmp_path), write_features(tmp_path / "f")
    np.save(folder / "other.npy", np.ones((3, WIDTH), np.float32))
    assert check(truth, folder, capsys) == (
        0,
        [
            "DIR: 1 features of no annotated video: other",
            "DIR: features of 4 of 4 videos, 6 channels, about one row every 0.1347 s (estimated, as there is no "
            "features.json)",
            "0 defects",
        ],
    )
    np.savez(tmp_path / "all.npz", **{path.stem: np.load(path) for path in folder.glob("?.npy")})
    assert check(truth, tmp_path / "all.npz", capsys)[0] == 0
    data = feature_data(tmp_path / "data").parent
    status, lines = check(data / "annotations.json", data / "features", capsys)
    assert status == 0
    assert lines[0].startswith(f"DIR: features of 7 of 7 videos, {CHANNELS} channels, about one row every 4.")
    assert " frames " in lines[0]


def test_every_defect_of_features_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {name: rows_of(seconds) for name, seconds in DURATIONS_S.items()}
    truth, folder = write_truth(tmp_path), write_features(tmp_path / "f", rows | {"b": rows["b"] // 2})
    (folder / "a.npy").unlink()
    odd = np.ones((rows["c"], WIDTH + 1), np.float32)
    np.save(folder / "c.npy", odd)
    status, lines = check(truth, folder, capsys)
    assert status == 1
    assert [line.partition(" (")[0] for line in lines] == [
        "a: no features: none in DIR",
        f"b: another number of rows: {rows['b'] // 2} rows, one every 0.1347 s, cover 14.96 s of 30.00 s",
        "c: another width of features: 7 channels, most others have 6",
        "DIR: features of 3 of 4 videos, 6 channels, about one row every 0.1347 s",
        "3 defects",
    ]
    odd[5, 2] = np.nan
    np.save(folder / "c.npy", odd)
    np.save(folder / "b.npy", np.ones((3, 2, 2), np.float32))
    (folder / "d.npy").write_bytes((folder / "d.npy").read_bytes()[:-8])
    status, lines = check(truth, folder, capsys)
    assert status == 1
    for name, detail in (
        ("b", "float32 of shape [3, 2, 2]; features are numbers [T, C]"),
        ("c", "nan in row 5, channel 2 (1 such values); make finite ones"),
        ("d", "cut off: write it again"),
    ):
        (line,) = [line for line in lines if line.startswith(f"{name}: unreadable features: ")]
        assert detail in line


def test_rows_may_be_even_in_frames_or_in_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = write_truth(tmp_path)
    content = json.loads(truth.read_text())
    rates = dict(zip(DURATIONS_S, (15.0, 60.0, 30.0, 25.0), strict=True))
    for name, fps in rates.items():
        content["database"][name]["fps"] = fps
    truth.write_text(json.dumps(content), encoding="utf-8")
    in_frames = {name: rows_of(seconds, rates[name]) for name, seconds in DURATIONS_S.items()}
    status, lines = check(truth, write_features(tmp_path / "frames", in_frames), capsys)
    assert (status, lines[-1]) == (0, "0 defects")
    assert "one row every 4.0" in lines[0]
    in_seconds = {name: round(2 * seconds) for name, seconds in DURATIONS_S.items()}
    status, lines = check(truth, write_features(tmp_path / "seconds", in_seconds), capsys)
    assert (status, lines[-1]) == (0, "0 defects")
    assert "one row every 0.5 s" in lines[0]


def test_resized_and_transposed_features_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = write_truth(tmp_path)
    resized = write_features(tmp_path / "resized", dict.fromkeys(DURATIONS_S, 100))
    assert check(truth, resized, capsys) == (
        0,
        [
            "DIR: features of 4 of 4 videos, 6 channels, 100 rows for every video, whatever its length: resized "
            "features, whose rows are not compared with durations",
            "0 defects",
        ],
    )
    transposed = tmp_path / "transposed"
    transposed.mkdir()
    for name, seconds in DURATIONS_S.items():
        np.save(transposed / f"{name}.npy", np.ones((WIDTH, rows_of(seconds)), np.float32))
    status, lines = check(truth, transposed, capsys)
    assert status == 1
    assert "all have 6 rows and their widths differ: save them as [T, C], time first" in lines[-2]


def test_a_features_json_states_rows_and_clocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, folder = write_truth(tmp_path, fps=FPS), write_features(tmp_path / "f")
    describe(folder)
    assert check(truth, folder, capsys) == (
        0,
        [
            "DIR: features of 4 of 4 videos, 6 channels, a row every 4 frames, the first at frame 7.5 (features.json)",
            "0 defects",
        ],
    )
    np.save(folder / "d.npy", np.ones((rows_of(60), 9), np.float32))
    describe(folder, a={"steps": 5}, b={"frames": 1200}, c={"fps": 25.0, "frames": 1125})
    status, lines = check(truth, folder, capsys)
    assert status == 1
    assert lines[:4] == [
        f"a: another number of rows: {rows_of(20)}, features.json says 5",
        "b: another duration: features.json says that it lasts 40.00 s, the annotations state 30.00 s",
        "c: another frame rate: features.json says that it has 25 frames a second, the annotations state 30",
        "d: another width of features: 9 channels, features.json says 6",
    ]


def test_features_that_a_killed_command_left_are_incomplete(tmp_path: Path) -> None:
    truth, folder = write_truth(tmp_path), write_features(tmp_path / "f")
    describe(folder)
    content = json.loads((folder / SIDECAR).read_text())
    del content["videos"]["b"]
    (folder / SIDECAR).write_text(json.dumps(content | {"records_all": True}), encoding="utf-8")
    ((name, (defect,)),) = check_annotations(truth, features=folder).defects.items()
    assert (name, defect.kind) == ("b", "unreadable features")
    assert "run `bitad features` again" in defect.detail


def test_no_features_at_all_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = write_truth(tmp_path)
    (tmp_path / "empty").mkdir()
    for path, message in (("nowhere", "no such folder or .npz file of features"), ("empty", "no features in it")):
        assert main(["annotations", "check", str(truth), "--features", str(tmp_path / path)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def test_defects_of_features_are_on_the_page(tmp_path: Path) -> None:
    truth, folder = write_truth(tmp_path), write_features(tmp_path / "f")
    (folder / "c.npy").unlink()
    command = ["annotations", "check", str(truth), "--features", str(folder), "--page", str(tmp_path / "page")]
    assert main(command) == 1
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert f"no features: none in {folder}" in page
    assert "about one row every 0.1342 s" in page
