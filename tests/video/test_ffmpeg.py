"""Video files are opened as local files, whatever their names and contents say, and nothing else is opened."""

from __future__ import annotations

import ast
import shutil
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from bar_codes import KINDS, numbers_shown, write_bar_codes

import bitad
from bitad.cli import main
from bitad.video.container import FORMATS
from bitad.video.reader import VideoReader, probe
from bitad.video.writer import write_video

FRAMES = 12
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bar_codes(tmp_path_factory.mktemp("plain") / "v.mp4", frames=FRAMES)


class Server:
    """A server that ends every connection at once, so that nobody waits for an answer, and counts them."""

    def __init__(self, listening: socket.socket) -> None:
        self.port, self.connections = listening.getsockname()[1], 0
        self._listening = listening
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listening.accept()
            with connection:
                if connection.recv(4) == b"done":
                    return
                self.connections += 1

    def stop(self) -> None:
        if self._thread.is_alive():
            with socket.create_connection(("127.0.0.1", self.port)) as connection:
                connection.sendall(b"done")
            self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = Server(listening)
        yield server
        server.stop()


def assert_nobody_called(server: Server) -> None:
    server.stop()  # it has then answered all who called before
    assert server.connections == 0


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
    assert main(["reverse", ".", "back", "--workers", "0"]) == 0
    assert (tmp_path / "back" / name).is_file(), "written under its own name too"
    with VideoReader(Path("back") / name) as reader:
        assert numbers_shown(reader.read(range(FRAMES))) == list(reversed(range(FRAMES)))
    write_video(name, [np.zeros((48, 64, 3), np.uint8)] * 3, fps=10)
    assert probe(name).frames == 3


def test_a_name_like_a_network_address_opens_no_connection(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"http:127.0.0.1:{server.port}.mp4"
    shutil.copy(video, tmp_path / name)
    assert main(["reverse", ".", "back", "--workers", "0"]) == 0
    assert probe(Path("back") / name).frames == FRAMES
    assert_nobody_called(server)


PLAYLISTS = {
    "ffconcat": "ffconcat version 1.0\nfile 'v.mp4'\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:8,\nv.ts\n#EXT-X-ENDLIST\n",
    "hls to an address": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:8,\nhttp://127.0.0.1:PORT/v.ts\n#EXT-X-ENDLIST\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" profiles='
    '"urn:mpeg:dash:profile:isoff-live:2011"><Period><BaseURL>http://127.0.0.1:PORT/</BaseURL></Period></MPD>',
    "sdp": "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video PORT RTP/AVP 96\r\n"
    "a=rtpmap:96 H264/90000\r\n",
}


@pytest.mark.parametrize("playlist", PLAYLISTS)
@pytest.mark.parametrize("suffix", ["mp4", "ts", "m3u8", "ffconcat", "mpd", "sdp"])
def test_a_file_that_names_others_is_refused_and_opens_none(
    tmp_path: Path, server: Server, playlist: str, suffix: str
) -> None:
    write_bar_codes(tmp_path / "v.mp4", frames=3)
    KINDS["h264 ts"].write(tmp_path / "v.ts", 3)
    path = tmp_path / f"list.{suffix}"
    path.write_text(PLAYLISTS[playlist].replace("PORT", str(server.port)))
    with pytest.raises(ValueError, match=rf"list\.{suffix}: not a video that FFmpeg can read"):
        probe(path)
    assert_nobody_called(server)


def boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The name and the inside of each box of an MP4 file."""
    at = 0
    while at < len(content):
        length, name = struct.unpack(">I4s", content[at : at + 8])
        yield name, content[at + 8 : at + length]
        at += length


def box(name: bytes, inside: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(inside), name) + inside


def referring(content: bytes, reference: bytes) -> bytes:
    """Boxes of which the list of files that hold the data says something else."""
    rebuilt = b""
    for name, inside in boxes(content):
        if name in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
            inside = referring(inside, reference)
        rebuilt += box(name, struct.pack(">II", 0, 1) + reference if name == b"dref" else inside)
    return rebuilt


def alias(name: str) -> bytes:
    """A reference to a file in the same folder, as QuickTime writes it."""
    path = name.encode() + b"\0" * (len(name) % 2)
    fixed = struct.pack(">14xB27s12xB63s16xhh16x", 3, b"vol", len(name), path, 1, 1)
    return box(b"alis", fixed + struct.pack(">hh", 2, len(path)) + path + struct.pack(">hh", -1, 0))


REFERENCES = {
    "alias": alias("media.mov"),
    "url": box(b"url ", b"\0\0\0\0http://127.0.0.1:PORT/media.mov\0"),
}


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_video_whose_pictures_are_in_another_file_is_refused_and_the_other_not_opened(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], server: Server, reference: str
) -> None:
    folder = tmp_path / "in"
    media = KINDS["h264 mov"].write(tmp_path / "media.mov", 12)
    head = b"".join(box(name, inside) for name, inside in boxes(media.read_bytes()) if name != b"mdat")
    (folder / "v").mkdir(parents=True)
    path = folder / "v.mov"
    path.write_bytes(referring(head, REFERENCES[reference].replace(b"PORT", str(server.port).encode())))
    media.rename(folder / "v" / media.name)
    shutil.copy(folder / "v" / media.name, folder)
    if reference == "alias":
        with av.open(str(path), options={"enable_drefs": "1"}) as container:
            assert sum(packet.size > 0 for packet in container.demux(video=0)) == 12, "the case is not there"
    assert main(["reverse", str(path), str(tmp_path / "back.mp4")]) == 1
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert "v.mov: its pictures are in another file; export one" in error
    assert_nobody_called(server)


@pytest.mark.parametrize("options", [[], ["--on-decode-error", "repeat"]])
def test_what_is_no_video_is_refused_by_name(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], options: list[str]
) -> None:
    contents = {
        "subtitles": b"1\n00:00:01,000 --> 00:00:02,000\nhello\n",
        "picture": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\2\0\0\0",
        "sound": b"RIFF\x2c\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x80\x3e\0\0\2\0\x10\0data\x08" + bytes(11),
        "script": b"ffconcat version 1.0\nfile 'whole.mp4'\n",
    }
    folder = tmp_path / "in"
    folder.mkdir()
    for name, content in contents.items():
        (folder / f"{name}.mp4").write_bytes(content)
    write_bar_codes(folder / "whole.mp4", frames=3)
    assert main(["reverse", str(folder), str(tmp_path / "out"), *options]) == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == len(contents)
    for name, line in zip(sorted(contents), lines, strict=True):
        assert f"{name}.mp4: not a video that FFmpeg can read from this file alone; name a video file" in line
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["whole.mp4"]


def test_every_format_read_is_known_to_ffmpeg_and_names_no_other_files() -> None:
    known = {name for names in av.formats_available for name in names.split(",")}
    assert set(FORMATS) <= known
    assert not set(FORMATS) & {
        "hls",
        "dash",
        "concat",
        "sdp",
        "rtsp",
        "image2",
        "lavfi",
        "imf",
        "vobsub",
        "avisynth",
    }


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
    assert opening == {"bitad/video/container.py"}
