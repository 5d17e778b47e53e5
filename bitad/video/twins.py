"""Whether a video is the reverse playback of another: by count, duration and sampled frames.

This module does not import torch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitad.video.frame_index import FrameIndex
from bitad.video.reader import VideoReader

# Frames are compared small and grey: what a codec loses is noise that the shrinking averages out.
_SIZE = (48, 64)
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # BT.601 luma

# Compared are a frame's mirror place and this many to either side of it, so that a shift shows.
_NEAR = 2

# In grey levels of 255. Twins by x264 of a 64 x 48 film, which no shrinking averages, differ by 0.5 at crf 18 and by
# 4.5 at crf 36; another film differs by 20 and more.
_CODEC_LOSS = 6.0


def twin_defect(
    video: str | Path, twin: str | Path, *, samples: int = 8, index: FrameIndex | None = None
) -> str | None:
    """What shows that ``twin`` is not ``video`` played backwards; None where nothing does.

    Counts and frame rates are compared, then at ``samples`` places frame n - 1 - i of the twin with frame i of the
    video and its neighbours. A shift shows only where the picture moves. Memory is that of a few dozen small pictures.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: one of them cannot be decoded.
    """
    with VideoReader(video, index=index) as forward, VideoReader(twin) as backward:
        n, m = forward.info.frames, backward.info.frames
        if n != m:
            return f"{m} frames, where the video has {n}"
        there, back = forward.info.duration_s, backward.info.duration_s
        # A container rounds times to its ticks; half a frame is more than that, and less than what a detector sees.
        if abs(there - back) > 0.5 / forward.info.fps:
            return f"lasts {back:.3f} s, where the video lasts {there:.3f} s"
        near = min(_NEAR, (n - 1) // 2)
        places = np.unique(np.linspace(near, n - 1 - near, samples).round().astype(np.int64))  # [S]
        around = places[:, None] + np.arange(-near, near + 1)  # [S, 2 near + 1]
        shown = _grey(forward, around)  # [S, 2 near + 1, pixels]
        mirrored = _grey(backward, n - 1 - places)[:, None]  # [S, 1, pixels]
        unturned = _grey(backward, places)  # [S, pixels]
    errors = np.abs(shown - mirrored).mean(axis=-1)  # [S, 2 near + 1]
    as_is = np.abs(shown[:, near] - unturned).mean(axis=-1)  # [S]
    return _verdict(errors, as_is, _variation(shown[:, near]), places)


def _verdict(
    errors: NDArray[np.float32], as_is: NDArray[np.float32], variation: float, places: NDArray[np.int64]
) -> str | None:
    """What the differences say: ``errors`` to the mirror place's frames, ``as_is`` to the frame of the same number."""
    near = errors.shape[1] // 2
    mirror = errors[:, near]
    if as_is.mean() < 0.5 * mirror.mean() and mirror.mean() - as_is.mean() > 0.5:
        return "plays forwards, as the video does"
    limit = max(_CODEC_LOSS, variation / 2)
    if errors.min(axis=1).mean() > limit:
        return f"shows something else: its frames differ by {mirror.mean():.1f} of 255 grey levels"
    best = errors.argmin(axis=1)
    # Codec loss is the same for all places, so a truly mirrored frame is never clearly nearer to a neighbour.
    shifted = (errors.min(axis=1) < 0.6 * mirror) & (mirror - errors.min(axis=1) > 0.3)
    if shifted.any():
        first = int(np.flatnonzero(shifted)[0])
        place, found = int(places[first]), int(places[first] + best[first] - near)
        return f"is shifted: the mirror place of frame {place} shows frame {found} ({shifted.sum()} of {len(places)})"
    if mirror.max() > max(2 * _CODEC_LOSS, variation):
        worst = int(mirror.argmax())
        return f"shows something else at frame {places[worst]}: it differs by {mirror[worst]:.1f} of 255 grey levels"
    return None


def _variation(pictures: NDArray[np.float32]) -> float:
    """How much a video's sampled frames ``[S, pixels]`` differ from one to the next: two videos differ by more."""
    return float(np.abs(np.diff(pictures, axis=0)).mean()) if len(pictures) > 1 else 0.0


def _grey(reader: VideoReader, frames: NDArray[np.int64]) -> NDArray[np.float32]:
    """Frames of any shape of numbers, each as a row of grey levels: ``[..., pixels]``."""
    pixels = reader.read(frames.ravel(), size=_SIZE)  # [T, H, W, 3]
    return (pixels @ _GREY).reshape(*frames.shape, -1)
