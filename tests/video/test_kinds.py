"""Every container and kind of stream: each frame exactly, from anywhere, and of a cut-off file no wrong one."""

from __future__ import annotations

import multiprocessing
import struct
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from bar_codes import HEIGHT, KINDS, WIDTH, numbers_shown
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bitad.video import decoding as pictures
from bitad.video.container import is_truncated, open_video
from bitad.video.decoding import PictureStream
from bitad.video.indexing import index_video
from bitad.video.reader import VideoReader, probe
from bitad.video.reverse import reverse_video

FRAMES = 60
SIZE = HEIGHT, WIDTH  # an odd size is scaled so that its bars are where they should be
CASES = pytest.mark.parametrize("kind", KINDS)
Frames = list[NDArray[np.uint8] | None]
ReadThrough = Callable[[str], Frames]
QUICK = partial(settings, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    return {
        name: kind.write(folder / f"{name.replace(' ', '_')}.{kind.suffix}", FRAMES)
        for name, kind in KINDS.items()
    }


@pytest.fixture(scope="module")
def read_through(videos: dict[str, Path]) -> ReadThrough:
    """Kind -> every frame of its video, from the beginning on; nobody changes them."""
    return cache(lambda kind: frames_of(videos[kind]))


def frames_of(path: Path) -> Frames:
    """Every frame from the beginning on; None where one is damaged."""
    index = index_video(path)
    stream = PictureStream(path, index)
    try:
        pictures = [stream.next() for _ in range(index.frames)]
        return [None if picture is None else picture.to_rgb().to_ndarray() for picture in pictures]
    finally:
        stream.close()


@CASES
def test_all_frames_are_counted_and_exact(videos: dict[str, Path], kind: str) -> None:
    with VideoReader(videos[kind]) as reader:
        assert (reader.info.frames, reader.index.lost) == (FRAMES, 0)
        assert numbers_shown(reader.read(np.arange(FRAMES), size=SIZE)) == list(range(FRAMES))
        if kind != "h264 bare":  # such a stream's rate is a guess
            assert reader.info.fps == pytest.approx(25 if "variable" in kind else 30, rel=0.02)


@CASES
@QUICK(max_examples=4)
@given(frames=st.lists(st.integers(0, FRAMES - 1), min_size=1, max_size=8))
def test_any_frame_from_anywhere_is_the_one_that_reading_through_gives(
    videos: dict[str, Path], read_through: ReadThrough, kind: str, frames: list[int]
) -> None:
    """Bit by bit: a bar code alone would pass with a wrong picture below it."""
    through = read_through(kind)
    with VideoReader(videos[kind]) as reader:
        for number in frames:
            (pixels,) = (picture.to_rgb().to_ndarray() for picture in reader.pictures([number]))
            np.testing.assert_array_equal(pixels, through[number])


@CASES
@QUICK(max_examples=6)
@given(share=st.floats(0.3, 1, exclude_max=True))
def test_a_cut_off_file_gives_no_wrong_frame(
    videos: dict[str, Path], read_through: ReadThrough, tmp_path: Path, kind: str, share: float
) -> None:
    content = videos[kind].read_bytes()
    length = int(share * len(content))
    # Cut exactly between two pictures, these two are like whole ones that end there: nothing states more.
    assume(kind != "h264 bare" or b"\x00\x00\x01" not in content[length - 8 : length + 4])
    assume(not kind.endswith("mpg") or length % 2048)
    cut = tmp_path / videos[kind].name
    cut.write_bytes(content[:length])
    try:
        found = frames_of(cut)
    except ValueError:
        return  # nothing in it can be had
    whole = read_through(kind)
    assert len(found) <= FRAMES
    for number, picture in enumerate(found):
        if picture is not None:
            np.testing.assert_array_equal(picture, whole[number], err_msg=f"frame {number} of {len(found)}")


@pytest.mark.parametrize(
    "kind", ["h264 mp4", "h264 mkv", "hevc mp4", "vp9 webm", "av1 mp4", "mpeg4 avi", "h264 ts"]
)
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_what_was_lost_is_counted_where_the_file_states_it(
    videos: dict[str, Path], tmp_path: Path, kind: str, share: float
) -> None:
    content = videos[kind].read_bytes()
    cut = tmp_path / videos[kind].name
    cut.write_bytes(content[: int(share * len(content)) // 188 * 188 + 50])  # within a transport stream's packet
    index = index_video(cut)
    assert 0 < index.frames < FRAMES
    if kind == "h264 ts":  # which states no more than that a packet is missing
        assert index.lost >= 1
    else:
        assert index.frames + index.lost == pytest.approx(FRAMES, abs=1)


@CASES
def test_a_whole_file_does_not_break_off(videos: dict[str, Path], kind: str) -> None:
    container, _ = open_video(videos[kind])
    with container:
        assert not is_truncated(videos[kind], container)


@pytest.mark.parametrize(
    "kind", ["h264 mkv", "h264 ts", "mpeg4 mkv", "mjpeg avi", "hevc mkv", "vp9 webm", "mpeg2 ts"]
)
def test_damage_in_the_middle_costs_its_group_and_no_more(
    videos: dict[str, Path], read_through: ReadThrough, tmp_path: Path, kind: str
) -> None:
    content = bytearray(videos[kind].read_bytes())
    middle, length = len(content) // 2, len(content) // 50
    content[middle : middle + length] = bytes(length)
    damaged = tmp_path / videos[kind].name
    damaged.write_bytes(content)
    whole = {picture.tobytes(): number for number, picture in enumerate(read_through(kind)) if picture is not None}
    found = frames_of(damaged)
    good = [
        number for picture in found if picture is not None and (number := whole.get(picture.tobytes())) is not None
    ]
    assert good == sorted(good)
    # A group is at most 12 frames here, and damage at a group's border costs two.
    assert len(good) >= FRAMES - 30
    wrong = sum(picture is not None and picture.tobytes() not in whole for picture in found)
    # The entropy coders of HEVC and VP9 read any bytes as pictures, and their decoders do not notice.
    assert wrong <= (12 if kind in ("hevc mkv", "vp9 webm") else 0)


@CASES
def test_reversing_twice_gives_every_frame_in_its_place(
    videos: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    suffix = "mp4" if KINDS[kind].drops else "mkv"
    back, there = tmp_path / f"back.{suffix}", tmp_path / f"there.{suffix}"
    assert reverse_video(videos[kind], back, crf=10) == 0
    assert reverse_video(back, there, crf=10) == 0
    with VideoReader(back) as reader:
        assert numbers_shown(reader.read(np.arange(FRAMES), size=SIZE)) == list(reversed(range(FRAMES)))
    with VideoReader(there) as reader:
        assert numbers_shown(reader.read(np.arange(FRAMES), size=SIZE)) == list(range(FRAMES))
        assert reader.info.fps == pytest.approx(probe(videos[kind]).fps, rel=1e-3)


# Clocks.


def test_at_a_variable_rate_a_time_finds_the_frame_shown_then(videos: dict[str, Path]) -> None:
    for kind in ("variable rate mp4", "variable rate mkv"):
        index = index_video(videos[kind])
        shown_s = np.array([KINDS[kind].times(number) / 1000 for number in range(FRAMES)])
        asked = np.arange(FRAMES)
        expected = [int(np.abs(shown_s - shown_s[0] - number / float(index.rate)).argmin()) for number in asked]
        np.testing.assert_array_equal(index.nearest(asked), expected)
        assert (np.array(expected) != asked).any(), "a constant rate would pass"


@CASES
def test_at_a_constant_rate_frames_stand_where_they_are_counted(videos: dict[str, Path], kind: str) -> None:
    if "variable" not in kind:
        np.testing.assert_array_equal(index_video(videos[kind]).nearest(np.arange(FRAMES)), np.arange(FRAMES))


def test_a_reversed_file_keeps_a_variable_rate(videos: dict[str, Path], tmp_path: Path) -> None:
    source = index_video(videos["variable rate mp4"])
    reverse_video(videos["variable rate mp4"], tmp_path / "back.mp4")
    target = index_video(tmp_path / "back.mp4")
    assert source.times is not None
    assert target.times is not None
    before = (source.times[-1] - source.times[::-1]) * float(source.time_base)
    after = (target.times - target.times[0]) * float(target.time_base)
    np.testing.assert_allclose(after, before, atol=1e-3)


# Workers.


def _read_some(path: Path, seed: int) -> bool:
    order = np.random.default_rng(seed).permutation(FRAMES)[:20]
    with VideoReader(path) as reader:
        return numbers_shown(reader.read(order)) == order.tolist()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_several_workers_read_exactly(videos: dict[str, Path], start: str) -> None:
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context(start)) as pool:
        paths = [videos[kind] for kind in ("h264 mp4", "hevc mkv", "vp9 webm", "mpeg2 ts", "av1 mp4", "h264 bare")]
        assert all(pool.map(_read_some, paths * 2, range(2 * len(paths))))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/statm is there on Linux only")
def test_memory_is_flat_over_300_files(videos: dict[str, Path]) -> None:
    def resident_mib() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    paths = [videos[kind] for kind in ("h264 mp4", "h264 mkv", "vp9 webm", "mpeg2 ts", "mpeg4 avi")]
    sizes = []
    for number in range(300):
        with VideoReader(paths[number % len(paths)]) as reader:
            reader.read([5, 40, 20])
        if number in (50, 299):
            sizes.append(resident_mib())
    assert sizes[1] - sizes[0] < 15


# Turned pictures, and streams that begin in the middle.

MATRICES = {  # of an MP4's track header: where x and y go; degrees clockwise
    90: (0, 1, 0, -1, 0, 0),
    180: (-1, 0, 0, 0, -1, 0),
    270: (0, -1, 0, 1, 0, 0),
}


def turned(video: Path, path: Path, clockwise: int) -> Path:
    """The same file with a track header that tells players to turn the pictures, as phones write it."""
    content = bytearray(video.read_bytes())
    matrix = content.index(b"tkhd") + 44
    content[matrix : matrix + 24] = struct.pack(">6i", *(65536 * entry for entry in MATRICES[clockwise]))
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("clockwise", MATRICES)
def test_pictures_are_upright_as_players_show_them(
    videos: dict[str, Path], tmp_path: Path, clockwise: int
) -> None:
    phone = turned(videos["h264 mp4"], tmp_path / "phone.mp4", clockwise)
    with VideoReader(videos["h264 mp4"]) as stored, VideoReader(phone) as reader:
        expected = np.rot90(stored.read([7, 30]), -clockwise // 90, axes=(1, 2))
        assert (reader.info.height, reader.info.width) == expected.shape[1:3]
        np.testing.assert_array_equal(reader.read([7, 30]), expected)
        assert reader.read([7], short_side=24).shape[1:3] == ((24, 32) if clockwise == 180 else (32, 24))
        (picture,) = reader.pictures([30])
        np.testing.assert_array_equal(picture.to_rgb().to_ndarray().shape, expected[1].shape)
    reverse_video(phone, tmp_path / "back.mp4", crf=4)
    with VideoReader(tmp_path / "back.mp4") as reader:
        assert reader.index.rotation == 0
        error = np.abs(reader.read([FRAMES - 31]).astype(int) - expected[1]).mean()
        assert error < 6, "noise is hard to encode, but a wrong turn is worse"


@pytest.mark.parametrize("kind", ["h264 ts", "open groups ts", "hevc ts", "mpeg2 ts"])
def test_a_recording_that_begins_within_a_group_begins_with_its_first_frame_that_can_be_decoded(
    videos: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    content = videos[kind].read_bytes()
    late = tmp_path / "late.ts"
    # The tables that say what the packets hold, then the recording from somewhere in its first third on.
    late.write_bytes(content[: 188 * 3] + content[len(content) // 3 // 188 * 188 :])
    with VideoReader(late) as reader:
        shown = numbers_shown(reader.read(np.arange(reader.info.frames)))
    assert shown == list(range(shown[0], FRAMES))
    assert 0 < shown[0] <= 30


# What nobody wants.


def test_pictures_between_those_wanted_are_not_all_decoded(
    videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those are passed over from which no other is made."""
    given = 0
    following = pictures.decode

    def counting(packet: Packet[VideoStream]) -> tuple[list[VideoFrame], bool]:
        nonlocal given
        found = following(packet)
        given += len(found[0])
        return found

    monkeypatch.setattr(pictures, "decode", counting)
    for kind in ("h264 mp4", "h264 ts", "hevc mkv", "open groups mp4", "mpeg4 mkv", "mpeg2 ts"):
        given = 0
        with VideoReader(videos[kind]) as reader:
            assert numbers_shown(reader.read(np.arange(0, FRAMES, 4))) == list(range(0, FRAMES, 4))
        assert given < 0.8 * FRAMES


def test_pictures_passed_over_in_one_reading_are_there_in_the_next(
    videos: dict[str, Path], read_through: ReadThrough
) -> None:
    for kind in ("h264 mp4", "hevc mkv", "mpeg2 ts"):
        expected = read_through(kind)
        with VideoReader(videos[kind]) as reader:
            for number in range(1, 10):
                reader.read([0, 10])
                (picture,) = reader.pictures([number])
                np.testing.assert_array_equal(picture.to_rgb().to_ndarray(), expected[number])


def test_frames_come_in_the_order_asked_for_forwards_backwards_and_repeated(videos: dict[str, Path]) -> None:
    with VideoReader(videos["h264 mp4"]) as reader:
        for frames in ([3, 4, 9], [9, 4, 3], [9, 3, 9, 9, 4, 3], [5, 5], []):
            assert numbers_shown(reader.read(np.array(frames, int), size=SIZE)) == frames


@CASES
@QUICK(max_examples=3)
@given(
    windows=st.lists(
        st.tuples(st.integers(0, FRAMES - 1), st.integers(1, 7), st.integers(1, 12)), min_size=1, max_size=5
    )
)
def test_windows_at_any_stride_in_any_order_are_exact(
    videos: dict[str, Path], kind: str, windows: list[tuple[int, int, int]]
) -> None:
    with VideoReader(videos[kind]) as reader:
        for start, stride, count in windows:
            frames = np.arange(start, min(FRAMES, start + stride * count), stride)
            assert numbers_shown(reader.read(frames, size=SIZE)) == frames.tolist()
