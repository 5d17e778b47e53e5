"""Previews: small, of the same duration, and in the one form that every browser plays."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from bitad.video.reader import VideoReader, probe
from bitad.video.writer import write_pictures, write_preview, write_video


def brightening(frames: int, height: int, width: int) -> list[NDArray[np.uint8]]:
    return [np.full((height, width, 3), 40 + 2 * number, np.uint8) for number in range(frames)]


def write_mpeg4(path: Path, frames: list[NDArray[np.uint8]], rate: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate, options={"qscale": "2"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("rate", "size", "expected_rate", "expected_size"),
    [
        (30, (120, 200), 15, (60, 100)),
        (Fraction(30000, 1001), (90, 66), 15, (60, 44)),
        (20, (40, 60), 15, (40, 60)),
        (10, (61, 40), 10, (60, 38)),
    ],
)
def test_a_preview_is_smaller_and_lasts_as_long(
    tmp_path: Path,
    rate: Fraction | int,
    size: tuple[int, int],
    expected_rate: int,
    expected_size: tuple[int, int],
) -> None:
    source, preview = tmp_path / "v.avi", tmp_path / "out" / "v.mp4"
    write_mpeg4(source, brightening(90, *size), rate)
    info = write_preview(source, preview, max_height=60)
    assert info == probe(preview)
    assert (info.codec, info.pixel_format, info.fps) == ("h264", "yuv420p", expected_rate)
    assert (info.height, info.width) == expected_size
    assert 0 <= info.duration_s - probe(source).duration_s < 1 / info.fps
    with VideoReader(preview) as reader:
        brightness = reader.read(range(info.frames)).mean(axis=(1, 2, 3))
    expected = 40 + 2 * np.floor(np.arange(info.frames) * float(rate) / info.fps)
    np.testing.assert_allclose(brightness, expected, atol=4)


def test_the_table_of_contents_stands_at_the_front(tmp_path: Path) -> None:
    write_mpeg4(tmp_path / "v.avi", brightening(20, 40, 40), 10)
    write_preview(tmp_path / "v.avi", tmp_path / "v.mp4")
    data = (tmp_path / "v.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_what_browsers_play_is_copied_unless_too_large(tmp_path: Path) -> None:
    source, preview = tmp_path / "v.mp4", tmp_path / "preview.mp4"
    write_video(source, brightening(20, 40, 40), fps=10)
    write_preview(source, preview)
    assert preview.read_bytes() == source.read_bytes()
    assert write_preview(source, preview, max_height=20).height == 20
    assert write_preview(source, preview, max_fps=5).fps == 5
    write_video(tmp_path / "v.mkv", brightening(20, 40, 40), fps=10)
    assert "mp4" in write_preview(tmp_path / "v.mkv", preview).container


def test_what_a_cut_off_file_has_lost_is_repeated_where_asked(tmp_path: Path) -> None:
    source, preview = tmp_path / "v.mp4", tmp_path / "preview.mp4"
    pictures = (
        av.VideoFrame.from_ndarray(one, format="rgb24").reformat(format="yuv420p")
        for one in brightening(60, 40, 40)
    )
    write_pictures(source, pictures, rate=Fraction(10), crf=18, gop=10, faststart=True)
    content = source.read_bytes()
    source.write_bytes(content[: content.index(b"mdat") + 2 * (len(content) - content.index(b"mdat")) // 3])
    there = probe(source).frames
    assert 20 < there < 60
    assert write_preview(source, preview).frames == there
    steps: list[tuple[int, int]] = []
    preview_info = write_preview(source, preview, damaged="repeat", on_progress=lambda *step: steps.append(step))
    assert preview_info.frames == 60
    assert steps == [(done, 60) for done in range(1, 61)]


def test_wrong_requests_are_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", brightening(5, 40, 40), fps=10)
    with pytest.raises(ValueError, match="would replace its source"):
        write_preview(tmp_path / "v.mp4", tmp_path / "v.mp4")
    with pytest.raises(ValueError, match=r"a preview must be an \.mp4 file"):
        write_preview(tmp_path / "v.mp4", tmp_path / "v.webm")
    with pytest.raises(FileNotFoundError, match="no such video file"):
        write_preview(tmp_path / "w.mp4", tmp_path / "preview.mp4")
