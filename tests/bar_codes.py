"""Videos whose frames show their own numbers, in every container and kind of stream that FFmpeg can write here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from bitad.video.writer import write_video

# Linux alone says what its processor has.
_CPU = Path("/proc/cpuinfo")
_HAS_AVX512 = _CPU.is_file() and b"avx512f" in _CPU.read_bytes()

FRAMES, HEIGHT, WIDTH, BITS = 100, 48, 64, 8
NTSC = Fraction(30000, 1001)


def bar_code(number: int) -> NDArray[np.uint8]:
    """A grey picture with the number's bits as black and white bars across its upper half."""
    picture = np.full((HEIGHT, WIDTH, 3), 60 + 3 * number % 100, np.uint8)
    bits = (number >> np.arange(BITS)) & 1
    picture[: HEIGHT // 2] = np.repeat(255 * bits, WIDTH // BITS)[None, :, None]
    return picture


def busy_bar_code(number: int) -> NDArray[np.uint8]:
    """The same with noise that moves in its lower half: pictures that take bytes, so that a cut is in one of them."""
    picture = bar_code(number)
    noise = np.random.default_rng(5).integers(0, 255, (HEIGHT // 2, WIDTH, 3), dtype=np.uint8)
    picture[HEIGHT // 2 :] = np.roll(noise, number, axis=1)
    return picture


def numbers_shown(pixels: NDArray[np.uint8]) -> list[int]:
    """The numbers in the bar codes of uint8 ``[T, H, W, 3]``, of any size."""
    upper = pixels[:, : pixels.shape[1] // 2].mean(axis=(1, 3))  # [T, W]
    bars = upper.reshape(len(pixels), BITS, upper.shape[1] // BITS).mean(axis=2) > 128
    return (bars << np.arange(BITS)).sum(axis=1).tolist()


def write_bar_codes(path: Path, *, gop: int = 12, b_frames: int = 3, frames: int = FRAMES) -> Path:
    write_video(path, map(bar_code, range(frames)), fps=NTSC, gop=gop, b_frames=b_frames)
    return path


@dataclass(frozen=True)
class Kind:
    """A container and a kind of stream.

    Args:
        suffix: of the file; names the container.
        codec: FFmpeg's encoder.
        options: of the encoder.
        b_frames: at most so many B-frames in a row.
        pixel_format: FFmpeg's name of it.
        gop: frames from one keyframe to the next.
        times: frame number -> presentation time in ``tick``; by default a constant rate of 30 frames a second.
        tick: seconds.
        drops: pixels less in height and width than a bar code has, for odd sizes.
        container: options of it.
    """

    suffix: str
    codec: str
    options: Mapping[str, str] = field(default_factory=dict)
    b_frames: int = 0
    pixel_format: str = "yuv420p"
    gop: int = 12
    times: Callable[[int], int] = lambda number: number
    tick: Fraction = Fraction(1, 30)
    drops: int = 0
    container: Mapping[str, str] = field(default_factory=dict)

    def write(self, path: Path, frames: int = 60) -> Path:
        """A video of so many busy bar codes."""
        with av.open(str(path), "w", options=dict(self.container)) as target:
            stream = target.add_stream(self.codec, rate=30, options=self._repeatable_options())
            stream.height, stream.width = HEIGHT - self.drops, WIDTH - self.drops
            stream.pix_fmt = self.pixel_format
            stream.codec_context.time_base = self.tick
            stream.codec_context.gop_size, stream.codec_context.max_b_frames = self.gop, self.b_frames
            stream.codec_context.thread_count = 1
            for number in range(frames):
                code = np.ascontiguousarray(busy_bar_code(number)[: stream.height, : stream.width])
                picture = av.VideoFrame.from_ndarray(code, format="rgb24").reformat(format=self.pixel_format)
                picture.pts, picture.time_base = self.times(number), self.tick
                target.mux(stream.encode(picture))
            target.mux(stream.encode(None))
        return path

    def _repeatable_options(self) -> dict[str, str]:
        """The options, with which x264 gives the same bytes every time: its code for AVX-512 does not always."""
        options = dict(self.options)
        if self.codec == "libx264" and _HAS_AVX512:
            options["x264-params"] = ":".join(filter(None, (options.get("x264-params"), "asm=AVX2")))
        return options


_X265 = {"x265-params": "log-level=none:pools=1:frame-threads=1"}
_AV1 = {"preset": "12", "svtav1-params": "lp=1"}
_VP9 = {"cpu-used": "8", "deadline": "realtime"}
_OPEN = {"x264-params": "open-gop=1:scenecut=0"}
_FAST = {"movflags": "+faststart"}


def uneven(number: int) -> int:
    """Times in milliseconds that go from 20 to 60 a frame and back."""
    return 40 * number + round(150 * np.sin(number / 9))


KINDS = {
    "h264 mp4": Kind("mp4", "libx264", b_frames=2, container=_FAST),
    "h264 mp4 fragments": Kind("mp4", "libx264", b_frames=2, container={"movflags": "frag_keyframe+empty_moov"}),
    "h264 mov": Kind("mov", "libx264", b_frames=2),
    "h264 mkv": Kind("mkv", "libx264", b_frames=2),
    "h264 avi": Kind("avi", "libx264", b_frames=2),
    "h264 flv": Kind("flv", "libx264", b_frames=2),
    "h264 ts": Kind("ts", "libx264", b_frames=2),
    "h264 bare": Kind("h264", "libx264", b_frames=2),
    "open groups mp4": Kind("mp4", "libx264", _OPEN, b_frames=2, container=_FAST),
    "open groups mkv": Kind("mkv", "libx264", _OPEN, b_frames=2),
    "open groups ts": Kind("ts", "libx264", _OPEN, b_frames=2),
    "one group mkv": Kind("mkv", "libx264", b_frames=3, gop=1000),
    "hevc mp4": Kind("mp4", "libx265", _X265, b_frames=2, container=_FAST),
    "hevc mkv": Kind("mkv", "libx265", _X265, b_frames=2),
    "hevc ts": Kind("ts", "libx265", _X265, b_frames=2),
    "vp9 webm": Kind("webm", "libvpx-vp9", _VP9),
    "vp9 hidden frames webm": Kind(
        "webm", "libvpx-vp9", {"cpu-used": "5", "auto-alt-ref": "1", "lag-in-frames": "12"}
    ),
    "vp9 mkv": Kind("mkv", "libvpx-vp9", _VP9),
    "av1 mp4": Kind("mp4", "libsvtav1", _AV1, container=_FAST),
    "av1 webm": Kind("webm", "libsvtav1", _AV1),
    "mpeg4 mp4": Kind("mp4", "mpeg4", b_frames=2, container=_FAST),
    "mpeg4 avi": Kind("avi", "mpeg4", b_frames=2),
    "mpeg4 mkv": Kind("mkv", "mpeg4", b_frames=2),
    "mpeg2 ts": Kind("ts", "mpeg2video", b_frames=2),
    "mpeg2 mpg": Kind("mpg", "mpeg2video", b_frames=2),
    "mpeg1 mpg": Kind("mpg", "mpeg1video", b_frames=2),
    "mjpeg avi": Kind("avi", "mjpeg", pixel_format="yuvj420p"),
    "mjpeg mkv": Kind("mkv", "mjpeg", pixel_format="yuvj420p"),
    "wmv": Kind("wmv", "wmv2"),
    "lossless mkv": Kind("mkv", "ffv1"),
    "ten bits mkv": Kind("mkv", "libx264", b_frames=2, pixel_format="yuv420p10le"),
    "ten bits hevc mp4": Kind("mp4", "libx265", _X265, b_frames=2, pixel_format="yuv420p10le", container=_FAST),
    "odd size mkv": Kind("mkv", "libx264", b_frames=2, pixel_format="yuv444p", drops=1),
    "interlaced ts": Kind("ts", "libx264", {"x264-params": "interlaced=1"}, b_frames=2),
    "interlaced mpg": Kind("mpg", "mpeg2video", {"flags": "+ilme+ildct"}, b_frames=2),
    "variable rate mp4": Kind("mp4", "libx264", b_frames=2, times=uneven, tick=Fraction(1, 1000), container=_FAST),
    "variable rate mkv": Kind("mkv", "libx264", b_frames=2, times=uneven, tick=Fraction(1, 1000)),
    "late start mkv": Kind("mkv", "libx264", b_frames=2, times=lambda number: number + 150),
    "late start ts": Kind("ts", "libx264", b_frames=2, times=lambda number: number + 150),
}
