"""`bitad features`: its report, its failures in one line, several processes, and training on what it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from builders import feature_data, video_data
from processes import of_two_processes

from bitad.cli import main
from bitad.data.feature_folder import read_sidecar
from bitad.video import indexing as index_cache

TINY = ("--checkpoint", "package:playroom_backbone.safetensors", "--pixels", "32", "--device", "cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a data set of three videos; it trains on two."""
    return video_data(tmp_path_factory.mktemp("data") / "data")


@pytest.fixture(scope="module")
def written(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The features of all its videos in both directions."""
    out = tmp_path_factory.mktemp("features")
    assert main(["features", str(data.parent / "videos"), *TINY, "--out", str(out), "--direction", "both"]) == 0
    return out


def test_it_says_what_it_did_and_how_a_configuration_reads_it(
    data: Path, written: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (written / "reverse" / "test_0.npy").unlink()
    command = ["features", str(data.parent / "videos"), *TINY, "--out", str(written), "--direction", "both"]
    assert main(command) == 0
    report, forward, reverse = capsys.readouterr().out.splitlines()
    assert report == "1 done, 2 kept from before, 0 failed"
    placed = "data.feature_channels=96 data.feature_stride_frames=4 data.feature_offset_frames=7.5"
    assert forward == f"data.features={written / 'forward'} {placed}"
    assert reverse == f"data.features={written / 'reverse'} {placed}"


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_detector_trains_on_what_it_wrote(data: Path, written: Path, tmp_path: Path, direction: str) -> None:
    like = feature_data(tmp_path / "data")
    folder = written / direction
    changes = [
        f"data.annotations={data.parent / 'annotations.json'}",
        f"data.features={folder}",
        *read_sidecar(folder).settings.overrides().split(),
        f"direction={direction}",
        f"output={tmp_path / 'runs'}",
        "window.steps=16",
        "training.epochs=1",
    ]
    assert main(["train", str(like), *changes, "--device", "cpu"]) == 0
    assert (tmp_path / "runs" / f"tiny-{direction}-seed0" / "best.pt").is_file()


def test_a_runs_features_are_in_its_own_direction_unless_asked(data: Path, tmp_path: Path) -> None:
    changes = ("direction=reverse", "training.epochs=1", f"output={tmp_path / 'runs'}", "window.steps=16")
    assert main(["train", str(data), *changes, "--device", "cpu"]) == 0
    run, video = str(tmp_path / "runs" / "tiny-reverse-seed0"), str(data.parent / "videos" / "test_0.mp4")
    for asked, got in (([], "reverse"), (["--direction", "forward"], "forward")):
        out = tmp_path / got
        assert main(["features", video, "--checkpoint", run, "--out", str(out), *asked, "--device", "cpu"]) == 0
        sidecar = read_sidecar(out)
        described, known = sidecar.settings, sidecar.videos
        assert (described.direction, described.pixels, described.window_steps) == (got, 32, 16)
        assert known["test_0"].steps == 38


def test_bad_videos_are_named_and_the_status_is_1(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    good = str(data.parent / "videos" / "test_0.mp4")
    assert main(["features", str(broken), good, *TINY, "--out", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("1 done, 0 kept from before, 1 failed\n")
    assert err.startswith("bitad features: error: broken: ")
    assert err.count("\n") == 1
    assert (tmp_path / "out" / "test_0.npy").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.mp4", *TINY], "nowhere.mp4: no such video or folder of videos"),
        (["{empty}", *TINY], "no videos there"),
        (["{video}", "--checkpoint", "none.pth"], "none.pth"),
        (["{video}", "--checkpoint", "{video}"], "not a readable checkpoint or file of weights"),
        (["{video}", *TINY, "--pixels", "33"], "33 pixels are not a multiple"),
        (["{video}", *TINY, "--device", "gpu"], "unknown device 'gpu'"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    places = {"empty": tmp_path, "video": data.parent / "videos" / "test_0.mp4"}
    command = ["features", *(argument.format(**places) for argument in arguments), "--out", str(tmp_path / "out")]
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("bitad features: error: ")
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_two_processes_write_what_one_writes(data: Path, written: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    out = tmp_path / "out"
    first, second = of_two_processes(
        "features", data.parent / "videos", broken, *TINY, "--out", out, "--direction", "both"
    )
    assert (first[0], second[0]) == (1, 1), (first, second)
    assert first[1].startswith("3 done, 0 kept from before, 1 failed\n")
    assert "broken: " in first[2]
    assert second[1] == ""
    for direction in ("forward", "reverse"):
        assert read_sidecar(out / direction) == read_sidecar(written / direction)
        for path in (written / direction).glob("*.npy"):
            np.testing.assert_array_equal(np.load(out / direction / path.name), np.load(path))
    assert torch.get_num_threads() == 1


def test_who_goes_on_does_not_read_the_videos_through_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["features", str(data.parent / "videos"), *TINY, "--out", str(tmp_path / "out")]
    assert main(command) == 0
    (tmp_path / "out" / "test_0.npy").unlink()
    monkeypatch.setattr(index_cache, "index_video", lambda path: pytest.fail(f"{path} was read through again"))
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[2] == "1 done, 2 kept from before, 0 failed"
