"""The one place where FFmpeg opens files: local files by their absolute path, and no other files that these name.

FFmpeg takes a name such as ``http:host.mp4`` or ``concat:a|b`` for an address, and some formats (playlists, session
descriptions, scripts) name further files and addresses. A video file must never make the reader open anything else.

This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import av
from av.container import InputContainer, OutputContainer

from bitad.signatures import signature_of

# FFmpeg's names of the formats that are read: they hold video and are read from one file alone.
FORMATS = (
    *("mov", "mp4", "matroska", "webm", "avi", "flv", "live_flv", "kux", "asf", "asf_o", "mpegts", "mpeg", "mpegvideo"),
    *("h261", "h263", "h264", "hevc", "vvc", "evc", "m4v", "av1", "obu", "ivf", "vc1", "vc1test", "dirac", "cavsvideo"),
    *("avs2", "avs3", "mjpeg", "mjpeg_2000", "mpjpeg", "ogg", "nut", "nuv", "nsv", "mxf", "gxf", "lxf", "dv", "wtv"),
    *("rm", "ivr", "ty", "pva", "dhav", "swf", "gif", "apng", "amv", "yuv4mpegpipe", "roq", "smk", "bink", "flic"),
)

# The protocol alone is not enough: a format that is read from several files finds the others by the file protocol, and
# a QuickTime file may refer to another one that holds its pictures.
_READING = {"protocol_whitelist": "file", "format_whitelist": ",".join(FORMATS), "enable_drefs": "0"}


def open_input(path: Path, options: Mapping[str, str] | None = None) -> InputContainer:
    """Open a video file to read.

    Args:
        path: the file.
        options: of FFmpeg's, for its format.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: FFmpeg cannot read it, or its format is not one of ``FORMATS``.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such video file")
    try:
        return av.open(str(path.absolute()), options={**(options or {}), **_READING})
    except av.ArgumentError:
        raise ValueError(
            f"{path}: not a video that FFmpeg can read from this file alone (pictures, sound, subtitles, playlists and "
            "scripts are not read)"
        ) from None
    except av.FFmpegError as error:
        raise ValueError(f"{path}: not a video that FFmpeg can read: {instead(path) or error.strerror}") from None


def open_output(path: Path, container: str, options: Mapping[str, str] | None = None) -> OutputContainer:
    """Open a file to write.

    Args:
        path: the file.
        container: FFmpeg's name of its format.
        options: of that format.
    """
    return av.open(str(path.absolute()), "w", format=container, options=dict(options or {}))


def instead(path: Path) -> str | None:
    """What a file is that should be a video; None where FFmpeg's own message says as much."""
    found = signature_of(path)
    return None if found.kind in ("video", "picture", "text", "unknown", "empty", "zeros") else f"it is {found}"
