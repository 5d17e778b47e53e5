"""Bad video files through the command line: one line with the file and the remedy, status 1, nothing half-written."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from bar_codes import KINDS, Kind, numbers_shown
from builders import video_data
from processes import of_two_processes
from test_bad_input import contents

from bitad.cli import main
from bitad.video.reader import VideoReader, probe

FRAMES = 60


@pytest.fixture(autouse=True)
def threads_restored() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return KINDS["h264 mp4"].write(tmp_path_factory.mktemp("good") / "good.mp4", FRAMES)


def cut_off(video: Path, path: Path, share: float = 0.7) -> Path:
    content = video.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


def no_video_stream(good: Path, folder: Path) -> Path:
    """Sound alone."""
    path = folder / "sound.mp4"
    with av.open(str(path), "w") as target:
        stream = target.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        target.mux(stream.encode(sound))
        target.mux(stream.encode(None))
    return path


def no_frames(good: Path, folder: Path) -> Path:
    """A video that ends before its first frame."""
    content = good.read_bytes()
    path = folder / "none.mp4"
    path.write_bytes(content[: content.index(b"mdat") + 4])
    return path


def nothing(good: Path, folder: Path) -> Path:
    path = folder / "empty.mp4"
    path.write_bytes(b"")
    return path


def text(good: Path, folder: Path) -> Path:
    path = folder / "text.mp4"
    path.write_text("404 Not Found")
    return path


def of_two_sizes(good: Path, folder: Path) -> Path:
    """Two bare streams, one after the other: the second one's pictures are smaller."""
    path, second = folder / "sizes.h264", folder / "second.h264"
    KINDS["h264 bare"].write(path, FRAMES)
    Kind("h264", "libx264", drops=16).write(second, FRAMES)
    path.write_bytes(path.read_bytes() + second.read_bytes())
    second.unlink()
    return path


def broken_in_the_middle(good: Path, folder: Path) -> Path:
    """A file some of whose pictures are zeros."""
    path = KINDS["h264 mp4"].write(folder / "broken.mp4", FRAMES)
    content = bytearray(path.read_bytes())
    middle, length = len(content) // 2, len(content) // 50
    content[middle : middle + length] = bytes(length)
    path.write_bytes(content)
    return path


def cut_in_two(good: Path, folder: Path) -> Path:
    return cut_off(good, folder / "cut.mp4")


BAD = {
    no_video_stream: "no video stream in it",
    no_frames: "no frame in it can be decoded",
    nothing: "an empty file",
    text: "not a video that FFmpeg can read",
    of_two_sizes: "frame 60 is 48x32 pixels and the first ones 64x48; encode the video again in one size",
    broken_in_the_middle: "cannot be decoded (",
    cut_in_two: "cut off, about ",
}
REMEDY = "repeat the last good frame (data.on_decode_error=repeat or --on-decode-error repeat)"
MENDABLE = (broken_in_the_middle, cut_in_two)


def failing(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Runs a command that must fail with status 1; its last line on standard error."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "--debug" not in err, "an error that nobody foresaw"
    return err.splitlines()[-1]


@pytest.mark.parametrize("make", BAD)
def test_a_bad_video_is_not_reversed_and_nothing_is_left(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path, Path], Path]
) -> None:
    bad = make(good, tmp_path)
    before = contents(tmp_path)
    line = failing(capsys, "reverse", bad, tmp_path / "out.mp4")
    assert line.startswith(f"bitad reverse: error: {bad}: ")
    assert BAD[make] in line
    assert (REMEDY in line) == (make in MENDABLE)
    assert contents(tmp_path) == before


def test_of_a_folder_the_good_videos_are_reversed(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    bad = [make(good, source) for make in BAD]
    for name in ("a.mp4", "z.mp4"):
        shutil.copy(good, source / name)
    assert main(["reverse", str(source), str(target), "--workers", "2"]) == 1
    out, err = capsys.readouterr()
    assert f"2 reversed, 0 kept from before, {len(bad)} failed" in out
    assert sorted(path.name for path in target.iterdir()) == ["a.mp4", "z.mp4"]
    for path, said in zip(bad, BAD.values(), strict=True):
        (line,) = (line for line in err.splitlines() if f"error: {path.name}: " in line)
        assert said in line
    # Again: what is done is verified and kept; mended, the rest is done.
    for path, make in zip(bad, BAD, strict=True):
        if make not in MENDABLE:
            path.unlink()
    assert main(["reverse", str(source), str(target), "--workers", "0", "--on-decode-error", "repeat"]) == 0
    out, _ = capsys.readouterr()
    assert "2 reversed, 2 kept from before, 0 failed" in out
    assert "broken.mp4: " in out
    assert " damaged frames, each replaced by the last good one" in out
    for name in ("broken.mp4", "cut.mp4"):
        with VideoReader(target / name) as reader:
            shown = numbers_shown(reader.read(np.arange(reader.info.frames)))[::-1]
        assert len(shown) == FRAMES
        assert shown == np.maximum.accumulate(shown).tolist()  # each its own or the one before
        assert {number for number, place in zip(shown, range(FRAMES), strict=True) if number == place} > set(
            range(20)
        )


def test_a_finished_file_that_is_not_the_reverse_is_made_again(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    target.mkdir()
    shutil.copy(good, source / "a.mp4")
    shutil.copy(good, target / "a.mp4")  # as long, but not turned round
    assert main(["reverse", str(source), str(target), "--workers", "0"]) == 0
    assert "1 reversed" in capsys.readouterr().out
    with VideoReader(target / "a.mp4") as reader:
        assert numbers_shown(reader.read([0])) == [FRAMES - 1]


def test_two_processes_share_a_folder_and_one_of_them_says_what_became_of_it(good: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        shutil.copy(good, source / name)
    command = ("reverse", source, target, "--workers", "0")
    for status, said in (
        (0, "3 reversed, 0 kept from before, 0 failed\n"),
        (1, "1 reversed, 3 kept from before, 1 failed\n"),
    ):
        first, second = of_two_processes(*command)
        assert (first[0], second[0]) == (status, status), (first, second)
        assert first[1] == said
        assert second[1] == ""
        assert first[2].count("bitad reverse: error: broken.mp4: ") == status
        assert second[2].count("error") == 0
        (source / "broken.mp4").write_text("no video")
        shutil.copy(good, source / "d.mp4")
    assert sorted(path.name for path in target.iterdir()) == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]


def test_of_two_processes_one_reverses_a_single_video(good: Path, tmp_path: Path) -> None:
    first, second = of_two_processes("reverse", good, tmp_path / "back.mp4")
    assert (first[0], second[0]) == (0, 0), (first, second)
    assert probe(tmp_path / "back.mp4").frames == FRAMES


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of videos with a run."""
    config = video_data(tmp_path_factory.mktemp("watched"))
    assert main(["train", str(config), "training.epochs=1", "--device", "cpu"]) == 0
    return config


@pytest.fixture
def damaged(trained: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The same data set with one training video cut off, and that video."""
    shutil.copytree(trained.parent / "videos", tmp_path / "videos")
    video = tmp_path / "videos" / "train_0.mp4"
    whole = Kind("mp4", "libx264", container={"movflags": "+faststart"}, tick=Fraction(1, 15)).write(video, 75)
    cut_off(whole, video)
    return trained, video


def test_a_cut_off_video_is_refused_before_training_or_repeated_and_counted(
    damaged: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, video = damaged
    train = ("train", config, "training.epochs=1", f"data.videos={video.parent}", f"output={tmp_path / 'runs'}")
    line = failing(capsys, *train, "--device", "cpu")
    assert f"{video}: cut off, about " in line
    assert REMEDY in line
    assert contents(tmp_path / "runs") == {}
    assert main([str(one) for one in (*train, "data.on_decode_error=repeat", "--device", "cpu")]) == 0
    assert "damaged frames, each replaced by the last good one" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["detect", "features"])
def test_a_cut_off_video_is_refused_or_repeated_and_counted(
    trained: Path,
    damaged: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    _, video = damaged
    run, out = trained.parent / "runs" / "tiny-forward-seed0", tmp_path / "out"
    arguments = (command, video, "--checkpoint", run, "--out", out, "--device", "cpu")
    line = failing(capsys, *arguments)
    assert f"{video}: cut off, about " in line
    assert REMEDY in line
    assert [path for path in contents(out) if path.suffix in (".npy", ".html", ".srt")] == []
    assert main([str(one) for one in (*arguments, "--on-decode-error", "repeat")]) == 0
    assert "damaged frames, each replaced by the last good one" in capsys.readouterr().err


@pytest.mark.parametrize("frames", [1, 2, 9])
def test_a_video_of_hardly_any_frames_is_a_video(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], frames: int
) -> None:
    video = KINDS["h264 mp4"].write(tmp_path / "short.mp4", frames)
    run = trained.parent / "runs" / "tiny-forward-seed0"
    assert main(["detect", str(video), "--checkpoint", str(run), "--out", str(tmp_path / "found")]) == 0
    assert main(["reverse", str(video), str(tmp_path / "back.mp4")]) == 0
    assert probe(tmp_path / "back.mp4").frames == frames
