"""A time-reversed copy passes the comparison with its video, and every way in which a file is none is reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bitad.video.reverse import copy_defect, reverse_video
from bitad.video.writer import write_video

HEIGHT, WIDTH, FRAMES = 48, 64, 50


def scene(number: int, seed: int = 0) -> NDArray[np.uint8]:
    """A quiet background, and a bright square that goes across it, one pixel a frame."""
    rng = np.random.default_rng(seed)
    picture = (
        rng.integers(40, 160, (HEIGHT // 8, WIDTH // 8, 3)).repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)
    )
    left = (number + 7 * seed) % (WIDTH - 12)
    picture[16:32, left : left + 12] = (230, 240, 250)
    return picture


def film(path: Path, numbers: Sequence[int], *, seed: int = 0, fps: float = 25, crf: float = 18) -> Path:
    write_video(path, (scene(number, seed) for number in numbers), fps=fps, crf=crf)
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return film(tmp_path_factory.mktemp("copies") / "video.mp4", range(FRAMES))


def test_a_reversed_video_passes(video: Path, tmp_path: Path) -> None:
    reverse_video(video, tmp_path / "copy.mp4")
    assert copy_defect(video, tmp_path / "copy.mp4") is None


def test_losses_of_a_codec_are_tolerated(video: Path, tmp_path: Path) -> None:
    reverse_video(video, tmp_path / "copy.mp4", crf=36)
    assert copy_defect(video, tmp_path / "copy.mp4") is None


BACKWARDS = list(reversed(range(FRAMES)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: film(path, range(FRAMES)), "plays forwards"),
        (lambda path: film(path, [BACKWARDS[0], *BACKWARDS[:-1]]), "is shifted: the mirror place of frame"),
        (lambda path: film(path, [*BACKWARDS[1:], BACKWARDS[-1]]), "is shifted"),
        (lambda path: film(path, [*BACKWARDS[:20], BACKWARDS[20], *BACKWARDS[20:-1]]), "is shifted"),
        (lambda path: film(path, BACKWARDS, seed=3), "shows something else"),
        (lambda path: film(path, BACKWARDS[1:]), "49 frames, where the video has 50"),
        (lambda path: film(path, BACKWARDS, fps=30), "lasts 1.667 s, where the video lasts 2.000 s"),
    ],
    ids=["not reversed", "one late", "one early", "one late from the middle", "another", "short", "fast"],
)
def test_what_is_no_copy_is_reported(video: Path, tmp_path: Path, make: Callable[[Path], Path], said: str) -> None:
    assert said in str(copy_defect(video, make(tmp_path / "copy.mp4")))


@pytest.mark.parametrize("frames", [1, 2, 4, 6])
def test_the_shortest_videos_have_copies(tmp_path: Path, frames: int) -> None:
    film(tmp_path / "video.mp4", range(frames))
    film(tmp_path / "copy.mp4", range(frames)[::-1])
    assert copy_defect(tmp_path / "video.mp4", tmp_path / "copy.mp4") is None


def test_a_still_video_has_a_copy(tmp_path: Path) -> None:
    film(tmp_path / "video.mp4", [0] * 30)
    film(tmp_path / "copy.mp4", [0] * 30, crf=28)
    assert copy_defect(tmp_path / "video.mp4", tmp_path / "copy.mp4") is None


def test_a_video_of_a_few_other_frames_is_no_copy(video: Path, tmp_path: Path) -> None:
    pictures = [scene(number, seed=5 if number < 4 else 0) for number in BACKWARDS]
    write_video(tmp_path / "copy.mp4", pictures, fps=25)
    assert "shows something else at frame 2" in str(copy_defect(video, tmp_path / "copy.mp4"))
