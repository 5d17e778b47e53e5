"""Which stream of a file is watched: the film, not a cover or a still; and which of two films is said."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import av
import pytest
from av.stream import Disposition
from av.video.stream import VideoStream
from bar_codes import HEIGHT, WIDTH, busy_bar_code, numbers_shown

from bitad.cli import main
from bitad.runtime import log
from bitad.video.reader import VideoReader, probe
from bitad.video.reverse import reverse_video

FRAMES, RATE = 40, 20


@pytest.fixture(autouse=True)
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("bitad"), "propagate", True)
    log._logged_once.clear()
    return caplog


def write(path: Path, streams: Sequence[tuple[int, int, Disposition | None]]) -> Path:
    """A file of several streams, each of so many pictures of a multiple of a bar code's size."""
    with av.open(str(path), "w") as target:
        added: list[tuple[VideoStream, int, int]] = []
        for frames, scale, disposition in streams:
            stream = target.add_stream("libx264", rate=RATE, options={"bf": "2"})
            stream.height, stream.width, stream.pix_fmt = HEIGHT * scale, WIDTH * scale, "yuv420p"
            if disposition is not None:
                stream.disposition = disposition
            added.append((stream, frames, scale))
        for number in range(max(frames for frames, _, _ in streams)):
            for stream, frames, scale in added:
                if number < frames:
                    code = busy_bar_code(number).repeat(scale, axis=0).repeat(scale, axis=1)
                    picture = av.VideoFrame.from_ndarray(code, format="rgb24")
                    picture.pts = number
                    target.mux(stream.encode(picture))
        for stream, _, _ in added:
            target.mux(stream.encode(None))
    return path


COVER = "marked as the cover"
STILL, DEFAULT, NONE = (1, 4, None), Disposition.default, Disposition(0)
STILLS = {
    "before the film": [STILL, (FRAMES, 1, None)],
    "behind the film": [(FRAMES, 1, None), STILL],
    "before the film, and the default": [(1, 4, DEFAULT), (FRAMES, 1, NONE)],
    "of a few pictures": [(3, 4, DEFAULT), (FRAMES, 1, NONE)],
    "before and behind": [STILL, (FRAMES, 1, None), STILL],
    COVER: [(1, 4, Disposition.attached_pic), (FRAMES, 1, NONE)],
}


@pytest.mark.parametrize(
    ("still", "suffix"),
    # FFmpeg writes no H.264 as the cover of an MP4.
    [(still, suffix) for still in STILLS for suffix in ("mkv", "mp4", "ts") if (still, suffix) != (COVER, "mp4")],
)
def test_a_still_is_never_taken_for_the_film(
    tmp_path: Path, still: str, suffix: str, said: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / f"v.{suffix}", STILLS[still])
    with VideoReader(path) as reader:
        assert (reader.info.frames, reader.info.height, reader.info.width) == (FRAMES, HEIGHT, WIDTH)
        assert reader.info.duration_s == pytest.approx(FRAMES / RATE)
        assert numbers_shown(reader.read([0, 31, 5])) == [0, 31, 5]
    assert not said.records, "there is one film only"
    reverse_video(path, tmp_path / "back.mp4")
    with VideoReader(tmp_path / "back.mp4") as reader:
        assert numbers_shown(reader.read(range(FRAMES))) == list(reversed(range(FRAMES)))


FILMS = {
    "the default one": ([(FRAMES, 1, NONE), (FRAMES, 2, DEFAULT)], 1),
    "the default one, behind which stands a preview": ([(FRAMES, 2, DEFAULT), (FRAMES, 1, NONE)], 0),
    "the first of equals": ([(FRAMES, 1, DEFAULT), (FRAMES, 1, DEFAULT)], 0),
}


@pytest.mark.parametrize("films", FILMS)
def test_of_two_films_the_one_that_ffmpeg_chooses_is_used_and_named(
    tmp_path: Path, films: str, said: pytest.LogCaptureFixture
) -> None:
    streams, expected = FILMS[films]
    path = write(tmp_path / "v.mkv", streams)
    with av.open(str(path)) as container:
        best = container.streams.best("video")
        assert best is not None
        assert best.index == expected, "the case is not there"
    assert (probe(path).frames, probe(path).height) == (FRAMES, HEIGHT * streams[expected][1])
    sizes = [f"stream {n} ({WIDTH * scale}x{HEIGHT * scale})" for n, (_, scale, _) in enumerate(streams)]
    assert f"{path}: holds 2 films, {sizes[0]}, {sizes[1]}; stream {expected} is used" in said.text
    assert len(said.records) == 1, "once"


def test_a_file_of_one_picture_is_a_video_of_one_frame(tmp_path: Path) -> None:
    assert probe(write(tmp_path / "v.mkv", [(1, 1, None)])).frames == 1


def test_what_is_said_reaches_the_person(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "v.mkv", FILMS["the default one"][0])
    assert main(["reverse", str(tmp_path / "in"), str(tmp_path / "out"), "--workers", "0"]) == 0
    assert "holds 2 films" in capfd.readouterr().err
