"""Clocks that disagree: which statements of a video's time agree, and what the annotation commands say of others."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bitad.cli import main
from bitad.data.clocks import Clock, coverage_fault, differences, same_length, same_rate
from bitad.data.formats.database import read_annotations
from bitad.video.writer import write_video

RATES = st.sampled_from([5.0, 15.0, 23.976, 24.0, 25.0, 29.97, 30.0, 59.94])


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs an annotation command that must end with this status; all that it says."""

    def call(*arguments: object, status: int = 0) -> str:
        assert main(["annotations", *map(str, arguments)]) == status
        out, err = capsys.readouterr()
        assert err.count("\n") <= 1
        return out + err

    return call


def save(folder: Path, content: Any, name: str = "gt.json") -> Path:
    (folder / name).write_text(json.dumps(content))
    return folder / name


def annotated(folder: Path, *rows: dict[str, Any], **video: Any) -> Path:
    rows = rows or ({"segment": [1, 2], "label": "x"},)
    return save(folder, {"database": {"v": {"subset": "t", "duration": 8.0, "annotations": list(rows), **video}}})


# What agrees.


def test_nominal_and_true_rates_agree_and_those_of_other_standards_do_not() -> None:
    for fps, other in ((29.97, 30), (23.976, 24), (59.94, 60)):
        assert same_rate(fps, other)
    for fps, other in ((24, 25), (25, 30), (30, 60), (29.97, 25)):
        assert not same_rate(fps, other)
        assert not same_rate(other, fps)


@pytest.mark.parametrize(
    ("duration_s", "most_s"), [(2, 0.2), (9, 0.9), (10, 1), (60, 1), (100, 1), (500, 5), (3600, 36)]
)
def test_lengths_agree_within_the_stated_tolerance(duration_s: float, most_s: float) -> None:
    for sign in (-1, 1):
        assert same_length(duration_s + sign * 0.999 * most_s, duration_s)
        assert not same_length(duration_s + sign * 1.001 * most_s, duration_s)


@given(
    frames=st.integers(1, 60000),
    clip=st.integers(1, 64),
    stride=st.integers(1, 32),
    fps=RATES,
)
def test_features_of_whole_clips_cover_their_video(frames: int, clip: int, stride: int, fps: float) -> None:
    """Whether the centre of a clip is counted from 0 or, as ActionFormer does, is half its length."""
    rows = max(0, frames - clip) // stride + 1
    assume(clip <= frames)
    for offset in (clip / 2, (clip - 1) / 2):
        assert coverage_fault(rows, stride, offset, fps, frames / fps) is None


@given(frames=st.integers(1, 60000), stride=st.integers(1, 32), fps=RATES)
def test_features_of_a_padded_video_cover_it(frames: int, stride: int, fps: float) -> None:
    rows = -(-frames // stride)
    assert coverage_fault(rows, stride, 0, fps, frames / fps) is None
    assert coverage_fault(rows, stride, (stride - 1) / 2, fps, frames / fps) is None


@given(
    duration_s=st.floats(20, 3600),
    factor=st.sampled_from([0.1, 0.25, 0.5, 0.8, 24 / 30, 25 / 30, 1.2, 30 / 25, 2, 4]),
    stride=st.integers(1, 8),
    fps=st.sampled_from([24.0, 25.0, 29.97, 30.0]),
)
def test_a_stride_or_a_rate_that_is_off_is_found(
    duration_s: float, factor: float, stride: int, fps: float
) -> None:
    rows = round(duration_s * fps / stride)
    assert coverage_fault(rows, stride, 0, fps, duration_s) is None
    assert f"{rows} rows" in str(coverage_fault(rows, factor * stride, 0, fps, duration_s))
    assert f"{rows} rows" in str(coverage_fault(rows, stride, 0, fps / factor, duration_s))


@pytest.mark.parametrize("offset", [200.0, -60.0])
def test_an_offset_beyond_the_video_is_found(offset: float) -> None:
    assert coverage_fault(50, 4, 0, 25, 8) is None
    assert f"the first at frame {offset:g}" in str(coverage_fault(50, 4, offset, 25, 8))


def test_features_resized_to_one_length_cover_their_video_where_it_is_said_to_have_as_many_frames() -> None:
    for duration_s in (3.5, 20.0, 231.0):
        rate = Clock(duration_s, frames=100).rate
        assert rate is not None
        assert coverage_fault(100, 1, 0.5, rate, duration_s) is None


def test_a_clock_is_compared_in_what_both_state() -> None:
    def kinds(stated: Clock, found: Clock) -> list[str]:
        return [kind for kind, _ in differences(stated, found)]

    video = Clock(8.0, 200, 25.0)
    assert kinds(Clock(8.0), video) == []
    assert kinds(Clock(8.0, 201, 25.1), video) == []
    assert kinds(Clock(8.0, 240, 30.0), video) == ["another frame count", "another frame rate"]
    assert kinds(Clock(8.0, 240), video) == ["another frame count"]
    assert kinds(Clock(9.6, 240, 25.0), video) == ["another duration"]
    assert kinds(Clock(8.0, 240, 30.0), Clock(8.0)) == []


# What annotations alone state.


@pytest.mark.parametrize(
    ("video", "said"),
    [
        ({"fps": 30, "frame": 200}, "200 frames at 30 a second are 6.67 s, its duration is 8 s"),
        ({"fps": 25, "frame": 240}, "240 frames at 25 a second are 9.60 s, its duration is 8 s"),
        ({"fps": 50, "frame": 200, "duration": 8.0}, "200 frames at 50 a second are 4.00 s, its duration is 8 s"),
        (
            {"fps": 25, "frame": 200, "duration": 200.0},
            "200 frames at 25 a second are 8.00 s, its duration is 200 s",
        ),
    ],
)
def test_frames_and_fps_and_duration_must_agree(
    tmp_path: Path, run: Callable[..., str], video: dict[str, Any], said: str
) -> None:
    path = annotated(tmp_path, **video)
    found = run("check", path, status=1)
    assert f"v: contradicting clocks: {said}\n" in found
    assert found.endswith("1 defects\n")
    refused = run("convert", path, tmp_path / "out.json", status=1)
    assert "the clocks of 1 of 1 videos disagree by more than 1 % or 1 s" in refused
    assert f"v ({said})" in refused
    assert "--allow-clock-mismatch" in refused
    assert not (tmp_path / "out.json").exists()
    assert f"v ({said}); used as they are" in run("convert", path, tmp_path / "out.json", "--allow-clock-mismatch")
    assert read_annotations(tmp_path / "out.json").videos["v"].frames == video["frame"]


@pytest.mark.parametrize("clock", [{"fps": 25}, {"frame": 200}])
def test_segments_in_frames_must_agree_with_those_in_seconds(
    tmp_path: Path, run: Callable[..., str], clock: dict[str, Any]
) -> None:
    good = {"segment": [1, 4], "segment(frames)": [26, 99], "label": "x"}
    off = {"segment": [5, 7], "segment(frames)": [150, 210], "label": "x"}
    assert run("check", annotated(tmp_path, good, **clock)).endswith("0 defects\n")
    path = annotated(tmp_path, good, off, **clock)
    said = "segment(frames): frame 150 at 25 a second is 6.00 s, in its segment it is 5 s"
    assert f"v: contradicting clocks: {said}\n" in run("check", path, status=1)
    assert f"v ({said})" in run("convert", path, tmp_path / "out.json", status=1)


@pytest.mark.parametrize("frame", [0, 0.3, -1, True])
def test_a_number_of_frames_is_one_or_more(tmp_path: Path, run: Callable[..., str], frame: object) -> None:
    row = {"segment": [1, 2], "segment(frames)": [1, 2], "label": "x"}
    assert f"frame {frame} is not a positive number" in run(
        "check", annotated(tmp_path, row, frame=frame), status=1
    )
    info = save(tmp_path, {"v": {"num_frame": frame, "duration": 8}}, "info.json")
    for command in ("check", "convert"):
        out = [tmp_path / "out.json"] if command == "convert" else []
        said = run(command, annotated(tmp_path), *out, "--video-info", info, status=1)
        assert str(info) in said
        assert "positive number" in said


@pytest.mark.parametrize(("fps", "frames"), [(30, 240), (29.97, 240), (30, 241), (30, 232)])
def test_rounding_is_no_contradiction(tmp_path: Path, run: Callable[..., str], fps: float, frames: int) -> None:
    row = {"segment": [1, 2], "segment(frames)": [31, 60], "label": "x"}
    assert run("check", annotated(tmp_path, row, fps=fps, frame=frames)).endswith("0 defects\n")


def test_segments_on_two_clocks_are_not_reversed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"segment": [1, 4], "segment(frames)": [25, 100], "label": "x"}
    command = ["reverse", str(annotated(tmp_path, row, fps=25, frame=240)), str(tmp_path / "back.json")]
    assert main(command) == 1
    said = "v (240 frames at 25 a second are 9.60 s, its duration is 8 s); correct the annotations"
    assert said in capsys.readouterr().err
    assert not (tmp_path / "back.json").exists()
    assert main([*command, "--allow-clock-mismatch"]) == 0
    assert "its duration is 8 s); used as they are" in capsys.readouterr().err
    assert main(["reverse", str(annotated(tmp_path, fps=25, frame=240)), str(tmp_path / "seconds.json")]) == 1
    annotated(tmp_path, row, fps=25, frame=200)
    assert main(command) == 0


# Annotations and videos.


def black(path: Path, frames: int, fps: float | Fraction) -> None:
    write_video(path, frames * [np.zeros((16, 16, 3), np.uint8)], fps=fps)


def test_the_rate_and_the_frames_of_another_version_of_a_video_are_defects(
    tmp_path: Path, run: Callable[..., str]
) -> None:
    black(tmp_path / "videos/v.mp4", 200, 25)
    path = annotated(tmp_path, fps=30, frame=240)
    assert run("check", path).endswith("0 defects\n")
    found = run("check", path, "--videos", tmp_path / "videos", status=1)
    file = tmp_path / "videos/v.mp4"
    assert f"v: another frame rate: {file} has 25 frames a second, the annotations state 30\n" in found
    assert f"v: another frame count: {file} has 200 frames, the annotations state 240\n" in found
    assert found.endswith("2 defects\n")
    for listed in (["--videos", tmp_path / "videos"], ["--video-info", tmp_path / "info.json"]):
        save(tmp_path, {"v": {"duration": 8.0, "num_frame": 200, "fps": 25}}, "info.json")
        said = run("convert", path, tmp_path / "out.json", *listed, status=1)
        assert "25 frames a second, the annotations state 30" in said
        assert not (tmp_path / "out.json").exists()
    said = run("convert", path, tmp_path / "out.json", *listed, "--allow-clock-mismatch")
    assert "25 frames a second, the annotations state 30" in said
    assert read_annotations(tmp_path / "out.json").videos["v"].fps == 30


def test_a_nominal_rate_is_no_defect(tmp_path: Path, run: Callable[..., str]) -> None:
    black(tmp_path / "videos/v.mp4", 240, Fraction(30000, 1001))
    path = annotated(tmp_path, fps=30, frame=240)
    assert run("check", path, "--videos", tmp_path / "videos").endswith("0 defects\n")
    run("convert", path, tmp_path / "out.json", "--videos", tmp_path / "videos")


def test_a_short_video_that_is_not_as_long_as_stated_is_a_defect(tmp_path: Path, run: Callable[..., str]) -> None:
    black(tmp_path / "videos/v.mp4", 75, 25)
    found = run("check", annotated(tmp_path, duration=3.6), "--videos", tmp_path / "videos", status=1)
    assert "v.mp4 lasts 3.00 s, the annotations state 3.60 s\n" in found


def test_a_list_of_videos_is_compared_with_the_durations_that_are_stated(
    tmp_path: Path, run: Callable[..., str]
) -> None:
    info = save(tmp_path, {"v": {"duration": 20.0}, "w": {"duration": 1.0}}, "info.json")
    found = run("check", annotated(tmp_path), "--video-info", info, status=1)
    assert f"v: another duration: {info} says that it lasts 20.00 s, the annotations state 8.00 s\n" in found


def test_a_list_of_videos_that_contradicts_itself_is_named(tmp_path: Path, run: Callable[..., str]) -> None:
    info = save(tmp_path, {"v": {"duration": 8.0, "num_frame": 240, "fps": 25}}, "info.json")
    said = f"{info} says 240 frames at 25 a second are 9.60 s, its duration is 8 s"
    assert f"v: contradicting clocks: {said}\n" in run(
        "check", annotated(tmp_path), "--video-info", info, status=1
    )
    assert said in run("convert", annotated(tmp_path), tmp_path / "out.json", "--video-info", info, status=1)
