"""What `bitad features` and `bitad reverse` have written is kept while the videos stay as they are."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from builders import FPS, numbered_picture
from numpy.typing import NDArray

from bitad.cli import main
from bitad.inference import extract
from bitad.runtime.files import read_json
from bitad.video.reader import VideoReader
from bitad.video.reverse import reverse_folder
from bitad.video.writer import write_video

FRAMES = 24


pytestmark = pytest.mark.usefixtures("one_thread")


def write(path: Path, first: int = 0) -> Path:
    """A film whose frames show their numbers, from one on."""
    write_video(path, (numbered_picture(first + number) for number in range(FRAMES)), fps=FPS, crf=12, gop=8)
    return path


def damage(path: Path) -> None:
    """Overwrite the pictures in the middle of a file; its table of contents stays as it is."""
    content = bytearray(path.read_bytes())
    begins = content.index(b"mdat") + 4
    length = content.index(b"moov") - begins
    content[begins + length * 2 // 5 : begins + length * 3 // 5] = b"\x00" * (length * 3 // 5 - length * 2 // 5)
    path.write_bytes(content)


def shown(path: Path) -> NDArray[np.uint8]:
    with VideoReader(path) as reader:
        return reader.read(range(reader.info.frames))


class Command:
    """`bitad features` or `bitad reverse` of a folder, and where what it writes of the video `v` is."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.src, self.dst = name, folder / "videos", folder / "out"
        self.src.mkdir()
        self.video = self.src / "v.mp4"
        self.output = self.dst / ("v.npy" if name == "features" else "v.mp4")

    def __call__(self, *options: str, dst: Path | None = None) -> int:
        dst = dst or self.dst
        if self.name == "reverse":
            return main(["reverse", str(self.src), str(dst), "--workers", "0", *options])
        backbone = ("--checkpoint", "package:playroom_backbone.safetensors", "--pixels", "32", "--device", "cpu")
        return main(["features", str(self.src), *backbone, "--out", str(dst), *options])

    def is_fresh(self) -> bool:
        """Whether the output is what a first run would write.

        Videos are compared by their pictures: x264 does not always write the same bytes on processors with AVX-512.
        """
        dst = self.dst.with_name("fresh")
        shutil.rmtree(dst, ignore_errors=True)
        assert self(dst=dst) == 0
        fresh = dst / self.output.name
        if self.output.suffix == ".npy":
            return self.output.read_bytes() == fresh.read_bytes()
        ours, theirs = (shown(path).astype(np.int16) for path in (self.output, fresh))
        return ours.shape == theirs.shape and bool(np.abs(ours - theirs).mean(axis=(1, 2, 3)).max() < 5)


@pytest.fixture(params=["features", "reverse"])
def command(request: pytest.FixtureRequest, tmp_path: Path) -> Command:
    return Command(request.param, tmp_path)


def is_kept(command: Command, *options: str) -> bool:
    """Whether another run keeps the output."""
    before = command.output.stat().st_mtime_ns
    assert command(*options) == 0
    return command.output.stat().st_mtime_ns == before


def test_another_film_of_the_same_length_is_not_taken_for_the_first(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    write(command.video)
    assert command() == 0
    assert is_kept(command)
    write(command.video, first=1)
    capsys.readouterr()
    assert not is_kept(command)
    assert f"bitad {command.name}: v" in (err := capsys.readouterr().err)
    assert " again, " in err
    assert command.is_fresh()
    assert is_kept(command)


def test_a_repaired_file_replaces_what_was_made_of_the_damaged_one(command: Command) -> None:
    whole = write(command.video).read_bytes()
    damage(command.video)
    assert command("--on-decode-error", "repeat") == 0
    assert is_kept(command, "--on-decode-error", "repeat")
    command.video.write_bytes(whole)
    assert not is_kept(command)
    assert command.is_fresh()


def test_repeated_frames_are_no_longer_good_once_they_are_an_error(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    write(command.video)
    damage(command.video)
    assert command("--on-decode-error", "repeat") == 0
    capsys.readouterr()
    assert command() == 1
    err = capsys.readouterr().err
    assert "cannot be decoded" in err
    assert f"; {command.output} was not replaced" in err


def test_what_has_no_damaged_frames_is_the_same_with_either_policy(command: Command) -> None:
    write(command.video)
    assert command("--on-decode-error", "repeat") == 0
    assert is_kept(command)
    assert is_kept(command, "--on-decode-error", "repeat")


def test_a_copy_of_a_data_set_is_not_computed_again(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    write(command.video)
    assert command() == 0
    for path in (command.video, command.output):
        os.utime(path, ns=(10**18, 10**18))
    assert is_kept(command)
    moved = command.src.with_name("elsewhere")
    command.src.rename(moved)
    command.src = moved
    assert is_kept(command)


@pytest.mark.parametrize("how", ["cut short", "of another video", "empty", "damaged", "an archive"])
def test_an_output_that_was_spoilt_is_made_again(command: Command, how: str) -> None:
    write(command.video)
    write(command.src / "w.mp4", first=40)
    assert command() == 0
    content = command.output.read_bytes()
    other = command.output.with_stem("w").read_bytes()
    spoilt = {
        "cut short": content[:-200],
        "of another video": other,
        "empty": b"",
        "damaged": content[:10] + b"{" * 40 + content[50:],  # a header that is no Python
        "an archive": b"PK\x05\x06" + bytes(18),
    }
    command.output.write_bytes(spoilt[how])
    assert not is_kept(command)
    assert command.is_fresh()


def test_outputs_of_earlier_versions_are_kept_if_they_fit_and_named(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    write(command.video)
    assert command() == 0
    forget(command)
    capsys.readouterr()
    assert is_kept(command)
    out, err = capsys.readouterr()
    assert "0 failed" in out
    assert f"bitad {command.name}: kept 1 " in err
    assert "earlier version" in err
    assert "(v" in err


def test_outputs_of_earlier_versions_that_do_not_fit_are_made_again(command: Command) -> None:
    write(command.video)
    assert command() == 0
    forget(command)
    write_video(command.video, (numbered_picture(number) for number in range(FRAMES + 1)), fps=FPS)
    assert not is_kept(command)
    assert command.is_fresh()


def forget(command: Command) -> None:
    """Remove what says from which file an output was made, which earlier versions did not write."""
    if command.name == "reverse":
        write_video(command.output, shown(command.output), fps=FPS, crf=12)
        return
    path = command.dst / "features.json"
    content = read_json(path)
    for video in content["videos"].values():
        for key in ("repeated", "source", "rows"):
            del video[key]
    path.write_text(json.dumps(content))


def test_another_quality_is_another_reversed_file(tmp_path: Path) -> None:
    src, dst = tmp_path / "src", tmp_path / "dst"
    write(src / "v.mp4")
    for crf, is_new in ((18, True), (18, False), (30, True), (30, False)):
        report = reverse_folder(src, dst, crf=crf, workers=0)
        assert (report.done == ("v.mp4",), report.kept == ()) == (is_new, is_new)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".m4v"])
def test_a_video_reversed_alone_is_known_to_its_folder(tmp_path: Path, suffix: str) -> None:
    src = tmp_path / "src" / f"v{suffix}"
    write(src)
    assert main(["reverse", str(src), str(tmp_path / "dst" / src.name)]) == 0
    report = reverse_folder(src.parent, tmp_path / "dst", workers=0)
    assert (report.kept, report.unrecorded) == ((src.name,), ())
    write(src, first=1)
    assert reverse_folder(src.parent, tmp_path / "dst", workers=0).again == (src.name,)


def test_a_video_reversed_alone_is_reversed_as_it_is_now(tmp_path: Path) -> None:
    src, dst = tmp_path / "v.mp4", tmp_path / "back.mp4"
    for first in (0, 1):
        write(src, first=first)
        assert main(["reverse", str(src), str(dst)]) == 0
        assert np.abs(shown(dst)[::-1].astype(int) - shown(src)).mean() < 4


def test_a_video_that_changes_while_it_is_read_is_refused(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(command.video)
    read, windows = VideoReader.pictures, VideoReader.read_windows

    def touched(self: VideoReader) -> None:
        if self.path == command.video:
            os.utime(command.video, ns=(10**18, 10**18))

    monkeypatch.setattr(VideoReader, "pictures", lambda self, *frames: (touched(self), read(self, *frames))[1])
    monkeypatch.setattr(
        VideoReader, "read_windows", lambda self, *some, **how: (touched(self), windows(self, *some, **how))[1]
    )
    assert command() == 1
    assert "changed while it was read" in capsys.readouterr().err
    assert not command.output.exists()


def test_an_interrupted_extraction_has_recorded_what_it_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, begun = Command("features", tmp_path), []
    write(command.video)
    write(command.src / "w.mp4", first=40)
    one = extract._extract

    def interrupted(encoder: object, name: str, *more: object) -> None:
        if begun:
            raise KeyboardInterrupt
        begun.append(name)
        one(encoder, name, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(extract, "_extract", interrupted)
    assert command() == 130
    monkeypatch.undo()
    videos = read_json(command.dst / "features.json")["videos"]
    assert list(videos) == begun
    assert videos[begun[0]]["source"]["size"] == (command.src / f"{begun[0]}.mp4").stat().st_size
