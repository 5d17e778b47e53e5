"""Reversed files hold the same frames in the opposite order, whatever their source is like."""

from __future__ import annotations

import errno
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from full_disk import files_of_at_most
from numpy.typing import NDArray

from bitad.cli import main
from bitad.timeline import mirror_frames
from bitad.video.files import VideosReport
from bitad.video.indexing import index_video
from bitad.video.reader import VideoReader, probe
from bitad.video.reverse import reverse_folder, reverse_video
from bitad.video.writer import write_video

FRAMES, HEIGHT, WIDTH = 95, 72, 96


def scene(number: int) -> NDArray[np.uint8]:
    """A bright disc on its way over shaded ground: no two frames are alike."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
    ground = 90 + 40 * np.sin(x / 9) * np.cos(y / 7)
    disc = np.hypot(x - 8 - 0.8 * number, y - 36 - 20 * np.sin(number / 9)) < 9
    picture = np.where(disc, 220, ground)[..., None] * [1.0, 0.8, 0.9]
    return picture.astype(np.uint8)


def read_all(path: Path) -> NDArray[np.uint8]:
    with VideoReader(path) as reader:
        return reader.read(range(reader.info.frames))


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio in dB of each frame of ``[T, H, W, 3]``."""
    squared_error = np.square(a.astype(np.float64) - b).mean(axis=(1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(squared_error, 1e-9))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "scene.mp4"
    write_video(path, map(scene, range(FRAMES)), fps=Fraction(30000, 1001), crf=12, gop=40, b_frames=3)
    with av.open(str(path)) as container:
        stored = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert stored != sorted(stored), "the test needs B-frames"
    return path


def test_a_reversed_file_holds_the_frames_in_the_opposite_order(source: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    done = reverse_video(source, tmp_path / "back.mp4", on_progress=lambda *step: steps.append(step))
    assert done == 0
    assert steps[-1] == (FRAMES, FRAMES)
    there, back = read_all(source), read_all(tmp_path / "back.mp4")
    assert psnr(there, back[::-1]).min() >= 38
    # Frame i of the source is nearest to frame n - 1 - i of the target, by far.
    frames = np.arange(0, FRAMES, 10)
    distances = np.abs(there[frames, None].astype(int) - back[None]).mean(axis=(2, 3, 4))  # [10, T]
    np.testing.assert_array_equal(distances.argmin(axis=1), mirror_frames(frames, FRAMES))


def test_reversing_twice_changes_nothing(source: Path, tmp_path: Path) -> None:
    reverse_video(source, tmp_path / "back.mkv")
    reverse_video(tmp_path / "back.mkv", tmp_path / "forth.mp4")
    before, after = probe(source), probe(tmp_path / "forth.mp4")
    assert (after.frames, after.fps, after.height, after.width) == (
        before.frames,
        before.fps,
        before.height,
        before.width,
    )
    assert psnr(read_all(source), read_all(tmp_path / "forth.mp4")).min() >= 38


def test_reversed_files_seek_quickly(source: Path, tmp_path: Path) -> None:
    """No B-frames, and a keyframe at least every 30 frames where decoding may really begin."""
    reverse_video(source, tmp_path / "back.mp4")
    index = index_video(tmp_path / "back.mp4")
    with av.open(str(tmp_path / "back.mp4")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        assert [packet.pts for packet in packets] == sorted(packet.pts for packet in packets)
    assert np.diff([*index.keyframes, FRAMES]).max() <= 30
    in_order = read_all(tmp_path / "back.mp4")
    for keyframe in index.keyframes:
        with VideoReader(tmp_path / "back.mp4", index=index) as reader:
            np.testing.assert_array_equal(reader.read([keyframe])[0], in_order[keyframe])


def write_other(path: Path, codec: str, pixel_format: str, size: tuple[int, int]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"qscale": "2", "crf": "8"})
        stream.height, stream.width = size
        stream.pix_fmt = pixel_format
        for number in range(40):
            picture = np.ascontiguousarray(scene(number)[: size[0], : size[1]])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format", "size"),
    [
        ("mpeg4.avi", "mpeg4", "yuv420p", (72, 96)),
        ("full_range.mkv", "libx264", "yuvj420p", (72, 96)),
        ("fine_colours.mkv", "libx264", "yuv422p", (72, 96)),
        ("odd_size.mkv", "libx264", "yuv444p", (71, 95)),
    ],
)
def test_other_codecs_sizes_and_colours_reverse(
    tmp_path: Path, name: str, codec: str, pixel_format: str, size: tuple[int, int]
) -> None:
    write_other(tmp_path / name, codec, pixel_format, size)
    reverse_video(tmp_path / name, tmp_path / "back.mp4")
    there, back = read_all(tmp_path / name), read_all(tmp_path / "back.mp4")
    assert there.shape == back.shape == (40, *size, 3)
    assert probe(tmp_path / "back.mp4").fps == 25
    # Halving the colours' resolution again costs more at the disc's edge than the codec does.
    assert psnr(there, back[::-1]).min() >= 32


def test_what_cannot_be_reversed_is_refused_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="would replace its source"):
        reverse_video(source, source.parent / "." / source.name)
    with pytest.raises(FileNotFoundError, match="no such video file"):
        reverse_video(tmp_path / "missing.mp4", tmp_path / "back.mp4")
    with pytest.raises(ValueError, match=r"suffix '\.webm' is not one for H.264; use "):
        reverse_video(source, tmp_path / "back.webm")
    assert not list(tmp_path.iterdir())


def test_lost_frames_are_an_error(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures: Callable[..., Iterator[av.VideoFrame]] = VideoReader.pictures

    def one_short(self: VideoReader, frames: range) -> Iterator[av.VideoFrame]:
        for number, picture in zip(frames, pictures(self, frames), strict=True):
            if number != 50:
                yield picture

    (tmp_path / "back.mp4").write_text("an older file")
    monkeypatch.setattr(VideoReader, "pictures", one_short)
    with pytest.raises(ValueError, match=r"95 frames, but \d+ were written"):
        reverse_video(source, tmp_path / "back.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["back.mp4"]
    assert (tmp_path / "back.mp4").read_text() == "an older file"


def test_a_folder_is_reversed_and_resumed(source: Path, tmp_path: Path) -> None:
    src, dst = tmp_path / "forward", tmp_path / "reverse"
    src.mkdir()
    for name in ("a.mp4", "b.mkv", "c.mp4"):
        write_video(src / name, map(scene, range(20)), fps=25)
    (src / "broken.mp4").write_text("no video")
    (src / "notes.txt").write_text("no video either")
    write_other(src / "d.avi", "mpeg4", "yuv420p", (72, 96))
    reverse_video(src / "a.mp4", dst / "a.mp4")
    kept = (dst / "a.mp4").stat().st_mtime_ns
    write_video(dst / "c.mp4", map(scene, range(7)), fps=25)  # not all its frames: to be made again

    steps: list[tuple[int, int]] = []
    report = reverse_folder(src, dst, workers=2, on_progress=lambda *step: steps.append(step))
    assert report.done == ("b.mkv", "c.mp4", "d.avi")
    assert report.kept == ("a.mp4",)
    assert list(report.failed) == ["broken.mp4"]
    assert "not a video that FFmpeg can read" in report.failed["broken.mp4"]
    assert steps == [(n, 5) for n in range(1, 6)]
    assert sorted(path.name for path in dst.iterdir()) == ["a.mp4", "b.mkv", "c.mp4", "d.mp4"]
    assert probe(dst / "c.mp4").frames == 20
    assert (dst / "a.mp4").stat().st_mtime_ns == kept
    assert reverse_folder(src, dst).kept == ("a.mp4", "b.mkv", "c.mp4", "d.avi")


@pytest.mark.parametrize("world", [2, 4])
def test_several_share_a_folder_and_reverse_each_video_once(tmp_path: Path, world: int) -> None:
    src, dst = tmp_path / "forward", tmp_path / "reverse"
    src.mkdir()
    for name, frames in (("a.mp4", 4), ("b.mp4", 12), ("c.mp4", 8)):
        write_video(src / name, map(scene, range(frames)), fps=25)
    (src / "broken.mp4").write_text("no video")
    parts = [reverse_folder(src, dst, workers=0, rank=rank, world=world) for rank in range(world)]
    assert [len(part.done) + len(part.failed) for part in parts] == ([2, 2] if world == 2 else [1, 1, 1, 1])
    assert "b.mp4" in parts[0].done  # the largest first
    together = VideosReport.together(parts)
    assert together.done == ("a.mp4", "b.mp4", "c.mp4")
    assert list(together.failed) == ["broken.mp4"]
    assert together.kept == ()
    again = VideosReport.together(
        [reverse_folder(src, dst, workers=0, rank=rank, world=world) for rank in range(world)]
    )
    assert again.kept == together.done


def test_folders_that_cannot_be_reversed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        reverse_folder(tmp_path / "missing", tmp_path / "reverse")
    with pytest.raises(FileNotFoundError, match="no videos there"):
        reverse_folder(tmp_path, tmp_path / "reverse")
    for name in ("v.avi", "v.mp4"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"v.avi and v.mp4 would both become v.mp4"):
        reverse_folder(tmp_path, tmp_path / "reverse")
    with pytest.raises(ValueError, match="would replace their sources"):
        reverse_folder(tmp_path, tmp_path)


# VmHWM, the peak of this program: ru_maxrss also holds that of the test process it was started from.
MEASURE = """
import re, sys
from pathlib import Path
from bitad.video.reverse import reverse_video
reverse_video(sys.argv[1], sys.argv[2])
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status is there on Linux only")
@pytest.mark.parametrize("gop", [250, 20_000], ids=["groups of 250", "one group"])
def test_ten_minutes_reverse_twice_in_under_200_megabytes(tmp_path: Path, gop: int) -> None:
    count, bits = 18_000, np.arange(16)
    base = np.random.default_rng(0).integers(0, 256, (12, 40, 3), np.uint8).repeat(40, axis=0).repeat(40, axis=1)

    def numbered(number: int) -> NDArray[np.uint8]:
        picture = base[number % 300 : number % 300 + 180, number % 700 : number % 700 + 320].copy()
        picture[:40] = np.repeat(255 * ((number >> bits) & 1), 20)[None, :, None]  # the number as bars
        return picture

    write_video(
        tmp_path / "0.mp4",
        map(numbered, range(count)),
        fps=30,
        preset="ultrafast",
        crf=30,
        gop=gop,
        b_frames=0 if gop > 250 else 2,
    )
    for turn in (0, 1):
        arguments = [
            sys.executable,
            "-c",
            MEASURE,
            str(tmp_path / f"{turn}.mp4"),
            str(tmp_path / f"{turn + 1}.mp4"),
        ]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
        print(f"peak resident memory {done.stdout.strip()} MiB")
        assert int(done.stdout) < 200
    with VideoReader(tmp_path / "2.mp4") as reader:
        assert reader.info.frames == count
        asked = np.arange(0, count, 97)
        bars = (
            reader.read(asked)[:, :40].mean(axis=(1, 3)).reshape(len(asked), 16, 20).mean(axis=2) > 128
        )  # [T, 16]
        np.testing.assert_array_equal((bars << bits).sum(axis=1), asked)


# A full disk.


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize("full", ["store", "container"])
def test_a_full_disk_is_told_by_the_file_that_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str, suffix: str, share: float
) -> None:
    if full == "container":  # what waits is elsewhere, and only the container meets the full disk
        monkeypatch.setattr("bitad.video.reverse.tempfile.TemporaryFile", lambda **_: io.BytesIO())
    target = tmp_path / "out" / f"back{suffix}"
    with files_of_at_most(int(share * source.stat().st_size)), pytest.raises(OSError) as error:
        reverse_video(source, target)
    assert str(error.value) == f"[Errno {errno.EFBIG}] File too large: '{target}'"
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_full_disk_while_a_folder_is_reversed_is_told_by_its_file(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "scene.mp4").write_bytes(source.read_bytes())
    with files_of_at_most(1000):
        assert main(["reverse", str(tmp_path / "in"), str(tmp_path / "out"), "--workers", workers]) == 1
    said = capsys.readouterr().err
    assert f"error: scene.mp4: [Errno {errno.EFBIG}] File too large: '{tmp_path / 'out' / 'scene.mp4'}'" in said


def test_a_full_disk_while_a_video_is_written_is_told_by_its_file(tmp_path: Path) -> None:
    with files_of_at_most(1000), pytest.raises(OSError, match=r"File too large: .*film\.mp4"):
        write_video(tmp_path / "film.mp4", map(scene, range(60)), fps=25)


# Processes.


def test_no_workers_means_this_process(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a process was begun")

    monkeypatch.setattr("bitad.runtime.workers._Worker", refuse)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "scene.mp4").write_bytes(source.read_bytes())
    (tmp_path / "in" / "torn.mp4").write_bytes(source.read_bytes()[:1000])
    assert main(["reverse", str(tmp_path / "in"), str(tmp_path / "out"), "--workers", "0"]) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["scene.mp4"]


@pytest.mark.parametrize("workers", ["-1", "4097", "many", "1.5", "", "9" * 5000, "\u0663", "1_0"])
def test_another_number_of_workers_is_refused_in_one_line(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: str
) -> None:
    for src, dst in ((source.parent, tmp_path / "out"), (source, tmp_path / "out.mp4")):
        assert main(["reverse", str(src), str(dst), f"--workers={workers}"]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "is not a number of workers" in line
        assert "give 0 (this process) to 4096" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [-1, 5000])
def test_another_number_of_workers_is_refused_by_the_function(source: Path, tmp_path: Path, workers: int) -> None:
    with pytest.raises(ValueError, match="not a number of workers"):
        reverse_folder(source.parent, tmp_path / "out", workers=workers)
