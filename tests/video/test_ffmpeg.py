"""Video files are opened as local files, whatever their names and contents say, and nothing else is opened."""

from __future__ import annotations

import ast
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from bar_codes import KINDS, numbers_shown, write_bar_codes

import bitad
from bitad.cli import main
from bitad.video.ffmpeg import FORMATS
from bitad.video.reader import VideoReader, probe
from bitad.video.writer import write_video

FRAMES = 12
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bar_codes(tmp_path_factory.mktemp("plain") / "v.mp4", frames=FRAMES)


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def assert_nobody_called(server: socket.socket) -> None:
    with pytest.raises(BlockingIOError):
        server.accept()


NAMES = [
    "12:30.mp4",
    "concat:v.mp4",
    "subfile,,start,0,end,9,,:v.mp4",
    "data:v.mp4",
    "pipe:0.mp4",
    "a%03d.mp4",
    "-.mp4",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_relative_name_like_an_address_is_a_file(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(video, tmp_path / name)
    assert main(["reverse", ".", "back"]) == 0
    assert (tmp_path / "back" / name).is_file(), "written under its own name too"
    with VideoReader(Path("back") / name) as reader:
        assert numbers_shown(reader.read(range(FRAMES))) == list(reversed(range(FRAMES)))
    write_video(name, [np.zeros((48, 64, 3), np.uint8)] * 3, fps=10)
    assert probe(name).frames == 3


def test_a_name_like_a_network_address_opens_no_connection(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: socket.socket
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"http:127.0.0.1:{server.getsockname()[1]}.mp4"
    shutil.copy(video, tmp_path / name)
    assert main(["reverse", ".", "back"]) == 0
    assert probe(Path("back") / name).frames == FRAMES
    assert_nobody_called(server)


PLAYLISTS = {
    "ffconcat": "ffconcat version 1.0\nfile 'v.mp4'\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:8,\nv.ts\n#EXT-X-ENDLIST\n",
    "hls to an address": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:8,\nhttp://127.0.0.1:PORT/v.ts\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" profiles='
    '"urn:mpeg:dash:profile:isoff-live:2011"><Period><BaseURL>http://127.0.0.1:PORT/</BaseURL></Period></MPD>',
    "sdp": "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video PORT RTP/AVP 96\r\n"
    "a=rtpmap:96 H264/90000\r\n",
}


@pytest.mark.parametrize("playlist", PLAYLISTS)
@pytest.mark.parametrize("suffix", ["mp4", "ts", "m3u8", "ffconcat", "mpd", "sdp"])
def test_a_file_that_names_others_is_refused_and_opens_none(
    tmp_path: Path, server: socket.socket, playlist: str, suffix: str
) -> None:
    write_bar_codes(tmp_path / "v.mp4", frames=3)
    KINDS["h264 ts"].write(tmp_path / "v.ts", 3)
    path = tmp_path / f"list.{suffix}"
    path.write_text(PLAYLISTS[playlist].replace("PORT", str(server.getsockname()[1])))
    with pytest.raises(ValueError, match=rf"list\.{suffix}: not a video that FFmpeg can read"):
        probe(path)
    assert_nobody_called(server)


def test_every_format_read_is_known_to_ffmpeg_and_names_no_other_files() -> None:
    known = {name for names in av.formats_available for name in names.split(",")}
    assert set(FORMATS) <= known
    assert not set(FORMATS) & {"hls", "dash", "concat", "sdp", "rtsp", "image2", "lavfi", "imf", "vobsub", "avisynth"}


def test_files_are_opened_with_ffmpeg_in_one_place_only() -> None:
    package = Path(bitad.__file__).parent
    opening = {
        path.relative_to(package.parent).as_posix()
        for folder in (package, BENCHMARKS)
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (
            isinstance(node, ast.Attribute)
            and node.attr == "open"
            and isinstance(node.value, ast.Name)
            and node.value.id == "av"
        )
        or (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").split(".")[0] == "av"
            and any(name.name == "open" for name in node.names)
        )
    }
    assert opening == {"bitad/video/ffmpeg.py"}
