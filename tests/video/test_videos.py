"""Frame-exact reading: every frame shows its own number as a bar code, so that a wrong frame cannot pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from bar_codes import FRAMES, HEIGHT, NTSC, WIDTH, bar_code, numbers_shown, write_bar_codes
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bitad.video import reader as videos
from bitad.video.decoding import PictureStream
from bitad.video.files import find_video
from bitad.video.indexing import index_video
from bitad.video.reader import VideoReader, probe
from bitad.video.writer import write_video


def without_times(video: Path, path: Path) -> Path:
    """The same pictures as a bare H.264 stream, which states no times at all."""
    with av.open(str(video)) as source, av.open(str(path), "w", format="h264") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    return path


def with_wrong_times(video: Path, path: Path) -> Path:
    """The same pictures with presentation times in the order of storage, as some cameras write B-frames."""
    with av.open(str(video)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        first = packets[0].dts
        for packet in packets:
            packet.stream = stream
            packet.pts = packet.dts = packet.dts - first
            target.mux(packet)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bar codes in several containers and structures; all H.264."""
    folder = tmp_path_factory.mktemp("videos")
    plain = write_bar_codes(folder / "b_frames.mp4")
    write_bar_codes(folder / "b_frames.mkv")
    write_bar_codes(folder / "short_groups.mp4", gop=3)
    write_bar_codes(folder / "one_group.mkv", gop=250)
    write_bar_codes(folder / "no_b_frames.mov", b_frames=0)
    without_times(plain, folder / "no_times.h264")
    with_wrong_times(plain, folder / "wrong_times.mp4")
    return folder


NAMES = [
    "b_frames.mp4",
    "b_frames.mkv",
    "short_groups.mp4",
    "one_group.mkv",
    "no_b_frames.mov",
    "no_times.h264",
    "wrong_times.mp4",
]


def test_the_files_have_b_frames_and_other_structures(folder: Path) -> None:
    """The other tests mean something only where frames are stored in another order than they are shown."""
    with av.open(str(folder / "b_frames.mp4")) as container:
        stored = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert stored != sorted(stored)
    assert index_video(folder / "no_times.h264").times is None
    assert index_video(folder / "wrong_times.mp4").times is None
    assert len(index_video(folder / "short_groups.mp4").keyframes) >= 33
    for name in ("b_frames.mp4", "b_frames.mkv", "one_group.mkv"):
        assert index_video(folder / name).times is not None


@pytest.mark.parametrize("name", NAMES)
def test_probe_counts_frames_and_rate(folder: Path, name: str) -> None:
    info = probe(folder / name)
    assert info.frames == FRAMES
    assert (info.height, info.width, info.codec, info.pixel_format) == (HEIGHT, WIDTH, "h264", "yuv420p")
    if name != "no_times.h264":  # a bare stream's rate is a guess
        assert info.fps == pytest.approx(float(NTSC), rel=1e-9)
        assert info.duration_s == pytest.approx(FRAMES / float(NTSC), rel=1e-9)


def test_the_header_is_not_trusted(tmp_path: Path) -> None:
    """A header that states twice the frames (mkv keeps no count; its duration is what readers divide)."""
    path = write_bar_codes(tmp_path / "v.mkv", frames=50)
    data = bytearray(path.read_bytes())
    at = data.index(b"\x44\x89\x88") + 3  # Matroska's Duration: id 4489, 8 bytes of float follow
    data[at : at + 8] = np.array([20_000.0], ">f8").tobytes()
    path.write_bytes(data)
    with av.open(str(path)) as container:
        assert container.duration == 20_000_000
    assert probe(path).frames == 50
    assert probe(path).fps == pytest.approx(float(NTSC), rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=st.lists(st.lists(st.integers(0, FRAMES - 1), max_size=12), min_size=1, max_size=4))
@example(frames=[[0, 24], [44]])  # what the first reading may leave undecoded, after a seek all are decoded
def test_any_frames_in_any_order_are_exact(folder: Path, name: str, frames: list[list[int]]) -> None:
    with VideoReader(folder / name) as reader:
        for request in frames:
            pixels = reader.read(np.array(request, np.int64))
            assert pixels.shape == (len(request), HEIGHT, WIDTH, 3)
            assert pixels.dtype == np.uint8
            assert numbers_shown(pixels) == request


@pytest.mark.parametrize("name", NAMES)
def test_every_single_frame_is_exact_from_anywhere(folder: Path, name: str) -> None:
    order = np.random.default_rng(0).permutation(FRAMES)[:40]
    with VideoReader(folder / name) as reader:
        assert [numbers_shown(reader.read([number]))[0] for number in order] == order.tolist()
        assert numbers_shown(reader.read(range(FRAMES))) == list(range(FRAMES))


def test_colours_come_back(tmp_path: Path) -> None:
    colours = np.array(
        [[255, 0, 0], [0, 255, 0], [0, 0, 255], [250, 250, 5], [20, 20, 20], [255, 255, 255]], np.uint8
    )
    frames = np.broadcast_to(colours[:, None, None], (6, 32, 32, 3))
    write_video(tmp_path / "v.mp4", frames, fps=10, crf=1)
    with VideoReader(tmp_path / "v.mp4") as reader:
        read = reader.read(range(6))
    assert np.abs(read.astype(int) - frames).max() <= 4


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"size": (24, 32)}, (24, 32)),
        ({"size": (96, 16)}, (96, 16)),
        ({"short_side": 24}, (24, 32)),
        ({"short_side": 96}, (96, 128)),
        ({}, (HEIGHT, WIDTH)),
    ],
)
def test_pictures_are_scaled_while_decoding(folder: Path, wanted: dict, expected: tuple[int, int]) -> None:
    with VideoReader(folder / "b_frames.mp4") as reader:
        pixels = reader.read([70, 3], **wanted)
    assert pixels.shape == (2, *expected, 3)
    assert numbers_shown(pixels) == [70, 3]


def test_shrinking_averages_areas(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 1), np.uint8).repeat(3, axis=2)
    write_video(tmp_path / "v.mp4", [noise], fps=10, crf=0)
    with VideoReader(tmp_path / "v.mp4") as reader:
        shrunk = reader.read([0], size=(16, 16))[0].astype(float)
        full = reader.read([0])[0].astype(float)
    assert np.abs(shrunk - full.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))).max() <= 3


def test_each_frame_is_decoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading forwards, window after window, decodes the file once and never seeks."""
    decoded = 0
    original = PictureStream.next

    def counting(self: PictureStream) -> av.VideoFrame | None:
        nonlocal decoded
        decoded += 1
        return original(self)

    monkeypatch.setattr(PictureStream, "next", counting)
    with VideoReader(folder / "one_group.mkv") as reader:
        monkeypatch.setattr(PictureStream, "begin", lambda self, keyframe: pytest.fail("it sought"))
        windows = [np.arange(first, first + 40) for first in range(0, 61, 20)]
        for window, pixels in zip(windows, reader.read_windows(windows), strict=True):
            assert numbers_shown(pixels) == window.tolist()
        assert decoded == FRAMES


def test_windows_are_what_reading_each_gives(folder: Path) -> None:
    windows = [[5, 3, 3, 9], [9, 3, 50, 51], [], [51, 0, 99], [99, 0, 51]]
    with VideoReader(folder / "b_frames.mp4") as reader, VideoReader(folder / "b_frames.mp4") as other:
        for window, pixels in zip(windows, reader.read_windows(windows, size=(24, 32)), strict=True):
            np.testing.assert_array_equal(pixels, other.read(window, size=(24, 32)))


def test_a_known_index_is_not_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = index_video(folder / "b_frames.mp4")
    monkeypatch.setattr(videos, "index_video", lambda path: pytest.fail("the index was made again"))
    with VideoReader(folder / "b_frames.mp4", index=index) as reader:
        assert numbers_shown(reader.read([98, 1])) == [98, 1]


def test_wrong_requests_say_what_is_wrong(folder: Path) -> None:
    with VideoReader(folder / "b_frames.mp4") as reader:
        for frames, message in (
            ([0, 100], r"b_frames.mp4: frame 100 is outside the video's frames 0 to 99"),
            ([-1], "frame -1 is outside"),
            ([0.5], r"shape \(1,\) and type float64; give integers"),
            ([[1]], r"shape \(1, 1\)"),
        ):
            with pytest.raises(ValueError, match=message):
                reader.read(frames)
        with pytest.raises(ValueError, match="give one"):
            reader.read([0], size=(8, 8), short_side=8)
        assert numbers_shown(reader.read([5])) == [5]


def test_files_that_are_no_videos_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video at all")
    (tmp_path / "empty.mp4").touch()
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for name, message in (
        ("text.mp4", "not a video that FFmpeg can read"),
        ("empty.mp4", "not a video that FFmpeg can read"),
        ("sound.mp4", "no video stream"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            probe(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    for missing in (tmp_path / "missing.mp4", tmp_path):
        with pytest.raises(FileNotFoundError, match="no such video file"):
            probe(missing)


def test_a_video_is_found_by_its_name(tmp_path: Path) -> None:
    for name in ("a.b.mkv", "c.MP4", "d.mp4", "d.avi", "e.txt"):
        (tmp_path / name).touch()
    assert find_video(tmp_path, "a.b") == tmp_path / "a.b.mkv"
    assert find_video(tmp_path, "c") == tmp_path / "c.MP4"
    assert find_video(tmp_path, "d") == tmp_path / "d.mp4"
    assert find_video(tmp_path, "d.avi") == tmp_path / "d.avi"
    for name in ("a", "e", "e.txt"):
        with pytest.raises(FileNotFoundError, match=f"no video '{name}' there"):
            find_video(tmp_path, name)


def test_one_thread_writes_the_same_file_again(tmp_path: Path) -> None:
    # On processors with AVX-512, x264 encodes one of some thirty files to slightly different bytes.
    files = [write_bar_codes(tmp_path / name, frames=20).read_bytes() for name in ("a.mp4", "b.mp4", "c.mp4")]
    assert len(set(files)) < len(files)


def test_a_failed_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_bar_codes(tmp_path / "v.mp4", frames=5)

    def breaks_off() -> Iterator[NDArray[np.uint8]]:
        yield bar_code(0)
        raise RuntimeError("the renderer failed")

    with pytest.raises(RuntimeError, match="the renderer failed"):
        write_video(path, breaks_off(), fps=10)
    assert probe(path).frames == 5
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "frames", "message"),
    [
        ("v.mp4", [], "no frames to write"),
        ("v.mp4", [bar_code(0), bar_code(1)[:-2]], r"frame 1 is uint8 \(46, 64, 3\)"),
        ("v.mp4", [bar_code(0).astype(np.float32)], "frame 0 is float32"),
        ("v.mp4", [bar_code(0)[:, :-1]], "48x63 pixels: .* even"),
        ("v.webm", [bar_code(0)], "suffix '.webm' is not one for H.264; use .mp4, "),
    ],
)
def test_what_cannot_be_written_is_refused(
    tmp_path: Path, name: str, frames: list[NDArray[np.uint8]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / name, frames, fps=10)
    assert not list(tmp_path.iterdir())


def test_wrong_encoder_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"v\.mp4: cannot be written \(preset 'hasty', crf 18\)"):
        write_video(tmp_path / "v.mp4", [bar_code(0)], fps=10, preset="hasty")
    assert not list(tmp_path.iterdir())
