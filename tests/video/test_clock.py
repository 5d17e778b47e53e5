"""The clock of a video is that of its frames, whatever its container's time base, headers and joins are."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from bar_codes import KINDS, NTSC, Kind, numbers_shown
from numpy.typing import NDArray

from bitad.cli import main
from bitad.config.schema import WindowConfig
from bitad.data.annotations import AnnotatedVideo
from bitad.data.sources import Sampling, VideoFiles
from bitad.runtime import log
from bitad.timeline import Grid
from bitad.video.decoding import PictureStream
from bitad.video.index import average_rate, find_restarts, join_clocks, times_by_position, usual_interval
from bitad.video.indexing import IndexCache, index_video
from bitad.video.reader import VideoReader, probe
from bitad.video.reverse import reverse_video
from bitad.video.writer import write_video

FRAMES = 60


@pytest.fixture(autouse=True)
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """The lines of the log; other tests may have set up one that is not passed on."""
    monkeypatch.setattr(logging.getLogger("bitad"), "propagate", True)
    log._logged_once.clear()
    return caplog


def seconds(path: Path) -> NDArray[np.float64]:
    """When each frame is shown, from the first one on."""
    index = index_video(path)
    return (index.shown - index.shown[0]) * float(index.time_base)


def assert_exact(path: Path, numbers: list[int]) -> None:
    """Every frame shows its number, and from anywhere it is, bit by bit, what reading through gives."""
    index = index_video(path)
    assert index.frames == len(numbers)
    stream = PictureStream(path, index)
    through = [picture.to_rgb().to_ndarray() for _ in numbers if (picture := stream.next()) is not None]
    stream.close()
    assert numbers_shown(np.array(through)) == numbers
    order = np.random.default_rng(0).permutation(len(numbers))[:25]
    with VideoReader(path) as reader:
        for number in order.tolist():
            (pixels,) = (picture.to_rgb().to_ndarray() for picture in reader.pictures([number]))
            np.testing.assert_array_equal(pixels, through[number])


def assert_reverses(path: Path, folder: Path) -> None:
    """Reversed it has as many frames, lasts as long, and shows each as long before its end as this after its start."""
    back = folder / "back.mkv"
    assert reverse_video(path, back) == 0
    there, here = probe(path), probe(back)
    assert here.frames == there.frames
    assert here.duration_s == pytest.approx(there.duration_s, abs=0.002)
    times = seconds(path)
    np.testing.assert_allclose(seconds(back), times[-1] - times[::-1], atol=0.5 / there.fps + 0.001)
    with VideoReader(path) as forward, VideoReader(back) as backward:
        shown = numbers_shown(forward.read(range(there.frames), size=(48, 64)))
        assert numbers_shown(backward.read(range(there.frames), size=(48, 64))) == shown[::-1]


# Positions of chunks: a container without presentation times.


def dropping(number: int) -> int:
    """Of every ten pictures the last three are dropped: their chunks are empty."""
    return 10 * (number // 7) + number % 7


AVI_CODECS = {
    "h264": Kind("avi", "libx264"),
    "h264 with B-frames": Kind("avi", "libx264", b_frames=2),
    "mpeg4": Kind("avi", "mpeg4"),
    "mpeg4 with B-frames": Kind("avi", "mpeg4", b_frames=2),
    "mjpeg": Kind("avi", "mjpeg", pixel_format="yuvj420p"),
}
PACES: dict[str, Callable[[int], int]] = {
    "a time base of half the interval": lambda number: 2 * number,
    "a time base of a fifth of the interval": lambda number: 5 * number,
    "dropped frames": dropping,
    "a pause": lambda number: number + 40 * (number >= 30),
}


@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize("codec", AVI_CODECS)
def test_empty_chunks_are_time(tmp_path: Path, codec: str, pace: str) -> None:
    times, tick = PACES[pace], Fraction(1, 50)
    path = replace(AVI_CODECS[codec], times=times, tick=tick).write(tmp_path / "v.avi", FRAMES)
    expected = np.array([times(number) / 50 for number in range(FRAMES)])
    # An encoder's B-frames take the dropped frames' places in its queue; only the last ones of the file may be off.
    np.testing.assert_allclose(seconds(path)[:-2], expected[:-2], atol=1e-9)
    usual = 1 / 50 * (times(1) - times(0))
    assert probe(path).duration_s == pytest.approx(
        expected[-1] + usual, abs=3.1 * usual if "drop" in pace else 1e-9
    )
    assert_exact(path, list(range(FRAMES)))


def test_a_remuxed_film_with_b_frames_keeps_its_clock_and_reverses(tmp_path: Path) -> None:
    path = replace(AVI_CODECS["h264 with B-frames"], times=lambda n: 2 * n, tick=Fraction(1, 50)).write(
        tmp_path / "v.avi", FRAMES
    )
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 50, "frames / this is half the duration"
    assert probe(path).fps == 25
    assert probe(path).duration_s == pytest.approx(FRAMES / 25)
    assert_reverses(path, tmp_path)


def test_commands_go_by_the_positions_of_chunks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    kind = replace(AVI_CODECS["h264 with B-frames"], times=lambda n: 2 * n, tick=Fraction(1, 50))
    kind.write(tmp_path / "in" / "v.avi", FRAMES)
    assert main(["reverse", str(tmp_path / "in"), str(tmp_path / "out"), "--workers", "0"]) == 0
    back = probe(tmp_path / "out" / "v.mp4")
    assert (back.frames, back.fps, back.duration_s) == (FRAMES, 25, FRAMES / 25)
    database = {"v": {"duration": FRAMES / 25, "frame": FRAMES, "subset": "test", "annotations": []}}
    (tmp_path / "a.json").write_text(json.dumps({"database": database}))
    capsys.readouterr()
    main(["annotations", "check", str(tmp_path / "a.json"), "--videos", str(tmp_path / "in")])
    assert "another duration" not in capsys.readouterr().out


def test_training_and_detecting_read_the_frame_that_is_shown_at_a_second(tmp_path: Path) -> None:
    path = replace(AVI_CODECS["mjpeg"], times=dropping, tick=Fraction(1, 50)).write(tmp_path / "v.avi", FRAMES)
    source = VideoFiles(lambda name: path, pixels=48, sampling=Sampling(WindowConfig(stride_frames=1)))
    video = AnnotatedVideo("v", "test", 1.0, np.zeros((0, 2)), ())
    video_grid = source.grid(video)
    assert video_grid.steps / video_grid.fps == pytest.approx((dropping(FRAMES - 1) + 1) / 50)
    grid = Grid(video_grid.fps, 1.0, 0.0, video_grid.steps)
    shown = numbers_shown(source.read(video, grid).numpy())
    at = grid.to_seconds(np.arange(len(shown)).astype(float))
    times = np.array([dropping(number) / 50 for number in range(FRAMES)])
    off = np.abs(times[shown] - at) - np.abs(times[None] - at[:, None]).min(axis=1)
    assert off.max() < 1e-9, "no other frame is nearer"
    assert shown != list(range(FRAMES)), "a constant rate would pass"


def test_the_first_picture_comes_out_with_the_packet_that_fills_the_decoder() -> None:
    decoded = np.array([0.0, 2, 4, 12, 14, 16])
    assert times_by_position(decoded, 0).tolist() == [0, 2, 4, 12, 14, 16]
    assert times_by_position(decoded, 2).tolist() == [4, 12, 14, 16, 18, 20]
    assert times_by_position(decoded[:1], 2).tolist() == [0]


# Clocks that start again.


def twice(kind: Kind, path: Path, second: Kind | None = None, cut: Callable[[bytes], bytes] = bytes) -> Path:
    """Two recordings in one file, as `cat` joins them."""
    kind.write(path, FRAMES)
    other = (second or kind).write(path.with_name(f"second.{kind.suffix}"), FRAMES)
    path.write_bytes(path.read_bytes() + cut(other.read_bytes()))
    other.unlink()
    return path


def without_header(content: bytes) -> bytes:
    return content[13:]  # an FLV's, with the length that follows it


JOINED = {
    "h264 ts": "ts",
    "open groups ts": "ts",
    "hevc ts": "ts",
    "mpeg2 ts": "ts",
    "late start ts": "ts",
    "mpeg2 mpg": "mpg",
    "mpeg1 mpg": "mpg",
    "h264 mkv": "mkv",
    "h264 flv": "flv",
}


@pytest.mark.parametrize("kind", JOINED)
def test_a_joined_recording_has_all_frames_on_one_clock(
    tmp_path: Path, kind: str, said: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / f"v.{JOINED[kind]}"
    twice(KINDS[kind], path, cut=without_header if kind == "h264 flv" else bytes)
    np.testing.assert_allclose(seconds(path), np.arange(2 * FRAMES) / 30, atol=0.0021)  # of ticks of a millisecond
    assert said.text.count("v." + JOINED[kind] + ": its clock restarts once") == 1
    assert probe(path).fps == pytest.approx(30, rel=1e-3)
    assert probe(path).duration_s == pytest.approx(2 * FRAMES / 30, abs=0.004)
    if kind != "open groups ts":
        assert_exact(path, [*range(FRAMES), *range(FRAMES)])


@pytest.mark.parametrize("kind", ["h264 ts", "mpeg2 mpg", "h264 mkv"])
def test_a_joined_recording_reverses(tmp_path: Path, kind: str) -> None:
    assert_reverses(twice(KINDS[kind], tmp_path / f"v.{KINDS[kind].suffix}"), tmp_path)


def test_an_earlier_clock_behind_a_later_one_is_no_26_hours_ahead(tmp_path: Path) -> None:
    """FFmpeg takes times before the first for ones behind the end of the transport stream's clock."""
    path = twice(replace(KINDS["h264 ts"], times=lambda n: n + 30 * 600), tmp_path / "v.ts", KINDS["h264 ts"])
    assert probe(path).duration_s == pytest.approx(4.0)
    assert_exact(path, [*range(FRAMES), *range(FRAMES)])


def test_a_clock_that_wraps_goes_on(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    near_end = 30 * 2**33 // 90_000 - FRAMES // 2
    path = replace(KINDS["h264 ts"], times=lambda n: n + near_end).write(tmp_path / "v.ts", FRAMES)
    assert probe(path).duration_s == pytest.approx(2.0)
    assert_exact(path, list(range(FRAMES)))
    assert not said.records


@pytest.mark.parametrize("kind", ["h264 ts", "hevc ts", "mpeg2 ts"])
def test_segments_of_one_clock_join_without_a_damaged_frame(tmp_path: Path, kind: str) -> None:
    """As of a stream in segments: the packets' counters begin anew, which FFmpeg takes for damage."""
    path = twice(KINDS[kind], tmp_path / "v.ts", replace(KINDS[kind], times=lambda n: n + FRAMES))
    with av.open(str(path)) as container:
        assert any(packet.is_corrupt for packet in container.demux(video=0)), "the case is not there"
    assert_exact(path, [*range(FRAMES), *range(FRAMES)])
    assert probe(path).duration_s == pytest.approx(4.0)


def test_a_segment_cut_off_before_a_join_is_still_damaged(tmp_path: Path) -> None:
    kind = KINDS["h264 ts"]
    path, other = kind.write(tmp_path / "v.ts", FRAMES), kind.write(tmp_path / "o.ts", FRAMES)
    with av.open(str(path)) as container:
        last = max(packet.pos for packet in container.demux(video=0) if packet.size and packet.is_keyframe)
    path.write_bytes(path.read_bytes()[: last // 188 * 188 + 3 * 188] + other.read_bytes())
    with VideoReader(path) as reader, pytest.raises(ValueError, match="cannot be decoded"):
        reader.read(range(reader.info.frames))


def test_a_second_part_that_begins_within_a_group_begins_with_its_first_frame_that_can_be_decoded(
    tmp_path: Path,
) -> None:
    def late(content: bytes) -> bytes:
        return content[: 188 * 3] + content[len(content) // 3 // 188 * 188 :]

    path = twice(KINDS["h264 ts"], tmp_path / "v.ts", cut=late)
    with VideoReader(path) as reader:
        shown = numbers_shown(reader.read(range(reader.info.frames)))
        assert reader.info.duration_s == pytest.approx(len(shown) / 30)
    first = shown[FRAMES]
    assert shown == [*range(FRAMES), *range(first, FRAMES)]
    assert 0 < first <= 30


def test_jitter_is_no_restart() -> None:
    keys = np.ones(100, np.bool_)
    jittery = 40.0 * np.arange(100) + np.random.default_rng(0).integers(-30, 30, 100)
    assert find_restarts(jittery, keys) == []
    assert find_restarts(np.concatenate([jittery[:50], jittery[:50]]), keys) == [50]
    assert find_restarts(np.full(100, np.nan), keys) == []


def test_the_second_field_of_a_keyframe_is_no_restart() -> None:
    times = np.repeat([0.0, 80, 40, 120, 200, 160], 2)
    keys = np.repeat([True, False, False, True, False, False], 2)
    assert find_restarts(times, keys) == []
    assert find_restarts(np.concatenate([times, times]), np.concatenate([keys, keys])) == [12]


def test_a_pause_within_reordered_frames_is_no_restart() -> None:
    """A frame behind the pause is stored before ones that are shown before it."""
    times = np.array([0, 80, 40, 9120, 120, 9160, 9280, 9240, 9200, 9320.0])
    keys = np.isin(np.arange(len(times)), [0, 9])
    assert find_restarts(times, keys) == []
    assert find_restarts(np.concatenate([times, times[3:]]), np.concatenate([keys, keys[3:]])) == [len(times) + 1]


def test_parts_follow_one_another() -> None:
    parts = [np.array([100, 140, 180]), np.array([0, 40]), np.array([7])]
    assert [part.tolist() for part in join_clocks(parts)] == [[100, 140, 180], [220, 260], [300]]


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_frames_of_the_same_or_swapped_times_are_all_there(tmp_path: Path, suffix: str) -> None:
    """A tick back, as capture programs write it, is no new clock."""
    path = KINDS["mjpeg mkv"].write(tmp_path / "plain.mkv", FRAMES)
    uneven = tmp_path / f"v.{suffix}"
    with av.open(str(path)) as source, av.open(str(uneven), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            packet.stream = stream
            packet.dts = 33 * number
            packet.pts = packet.dts + (34 if number % 10 == 8 else 0)  # a tick behind that of the next
            packet.time_base = Fraction(1, 1000)
            target.mux(packet)
    assert probe(uneven).frames == FRAMES
    assert probe(uneven).duration_s == pytest.approx(33 * FRAMES / 1000, abs=0.07)
    assert_exact(uneven, list(range(FRAMES)))


@pytest.mark.parametrize(("kind", "copies"), [("h264 mp4", 2), ("h264 flv", 2), ("wmv", 2), ("h264 mkv", 3)])
def test_a_recording_that_ffmpeg_does_not_reach_is_named(
    tmp_path: Path, kind: str, copies: int, said: pytest.LogCaptureFixture
) -> None:
    path = KINDS[kind].write(tmp_path / f"v.{KINDS[kind].suffix}", FRAMES)
    path.write_bytes(path.read_bytes() * copies)
    assert probe(path).frames == FRAMES * (copies - 1)
    assert f"{path}: contains another recording that FFmpeg does not read" in said.text


def test_times_that_stand_still_are_no_clock(tmp_path: Path) -> None:
    """As of MXF files that are joined: FFmpeg gives all packets of the second the last time of the first."""
    path = KINDS["mjpeg mkv"].write(tmp_path / "plain.mkv", FRAMES)
    still = tmp_path / "v.mkv"
    with av.open(str(path)) as source, av.open(str(still), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            packet.stream = stream
            packet.pts = packet.dts = 40 * min(number, FRAMES // 4)
            packet.time_base, packet.duration = Fraction(1, 1000), 40
            target.mux(packet)
    assert probe(still).frames == FRAMES
    assert probe(still).fps == pytest.approx(30, rel=0.3)
    assert (np.diff(seconds(still)) > 0).all()


# Rates.


@pytest.mark.parametrize("interval_s", [2, 45, 1800, 5000, 20_000])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_slow_films_keep_their_clock(tmp_path: Path, interval_s: int, suffix: str) -> None:
    kind = Kind(suffix, "libx264", b_frames=2, times=lambda n: interval_s * n, tick=Fraction(1))
    path = kind.write(tmp_path / f"v.{suffix}", 12)
    assert index_video(path).rate == Fraction(1, interval_s)
    assert probe(path).duration_s == pytest.approx(12 * interval_s)
    assert_reverses(path, tmp_path)


@pytest.mark.parametrize(
    ("frames", "seconds_long"), [(180_000, 7200.36), (7_201, 7200), (36_000, 1201.5), (12, 60_000), (100, 10**7)]
)
def test_a_rate_holds_to_the_last_frame(frames: int, seconds_long: float) -> None:
    tick = Fraction(1, 90_000)
    times = np.round(np.arange(frames) * seconds_long / frames / float(tick)).astype(np.int64)
    rate = average_rate(times, tick, Fraction(0))
    assert float(frames / rate) == pytest.approx(seconds_long, abs=0.01, rel=1e-8)
    assert max(rate.as_integer_ratio()) < 2**31, "encoders take no more"


@pytest.mark.parametrize("fps", [1 / 5000, 0.0003, Fraction(1, 2500), 0.5, 29.97, NTSC])
def test_a_video_is_written_at_the_rate_asked_for(tmp_path: Path, fps: float) -> None:
    path = tmp_path / "v.mp4"
    write_video(path, [np.zeros((48, 64, 3), np.uint8)] * 4, fps=fps)
    assert probe(path).fps == pytest.approx(float(fps), rel=1e-4)


def test_a_pause_of_the_recorder_is_time_and_is_named(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    for suffix in ("mp4", "mkv", "ts"):
        folder = tmp_path / suffix
        folder.mkdir()
        kind = Kind(suffix, "libx264", b_frames=2, times=lambda n: n + 1800 * (n >= 30))
        path = kind.write(folder / f"v.{suffix}", FRAMES)
        assert probe(path).duration_s == pytest.approx(62.0, abs=0.002)
        assert f"v.{suffix}: has no frames for 60.0 s after frame 29;" in said.text
        assert_exact(path, list(range(FRAMES)))
        assert_reverses(path, folder)


def test_the_usual_interval_leaves_gaps_out() -> None:
    assert usual_interval(np.array([0, 40, 80, 5000, 5040])) == 40
    assert usual_interval(np.array([0, 7])) == 7
    assert usual_interval(np.array([0, 0, 0, 9])) == 3


@pytest.mark.parametrize(("codec", "rate"), [("libx264", 12), ("libx264", 50), ("libx265", 12)])
def test_a_bare_stream_has_the_rate_that_it_states(tmp_path: Path, codec: str, rate: int) -> None:
    suffix = "h264" if codec == "libx264" else "hevc"
    options = {"x265-params": "log-level=none:pools=1:frame-threads=1"} if codec == "libx265" else {}
    path = tmp_path / f"v.{suffix}"
    with av.open(str(path), "w") as target:
        stream = target.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number in range(FRAMES):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number, np.uint8), format="rgb24")
            target.mux(stream.encode(picture))
        target.mux(stream.encode(None))
    assert probe(path).fps == rate
    assert probe(path).duration_s == pytest.approx(FRAMES / rate)


def test_a_bare_stream_that_states_no_rate_is_named(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    options = {"x265-params": "log-level=none:pools=1:frame-threads=1:vui-timing-info=0"}
    path = Kind("hevc", "libx265", options).write(tmp_path / "v.hevc", FRAMES)
    assert probe(path).fps == 25
    assert "v.hevc: states no frame rate; 25 frames per second are assumed" in said.text


# Kept on disk.


def test_what_is_unusual_is_kept_and_said_again(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    path = twice(KINDS["h264 ts"], tmp_path / "v.ts")
    caches = [IndexCache(tmp_path / "index") for _ in range(2)]
    for cache in caches:
        cache.begin()
    found = caches[0].index(path)
    said.clear()
    log._logged_once.clear()
    kept = caches[1].index(path)
    assert (kept.notes, kept.sound, kept.stream) == (found.notes, found.sound, found.stream)
    np.testing.assert_array_equal(kept.joins, found.joins)
    np.testing.assert_array_equal(kept.shown, found.shown)
    assert "its clock restarts once" in said.text
    assert reverse_video(path, tmp_path / "back.mp4") == 0
    assert probe(tmp_path / "back.mp4").frames == 2 * FRAMES
