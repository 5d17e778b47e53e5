"""The harder playroom: longer videos, creatures that distract, and pillars that hide, in two parts.

* *symmetric*: the statistics of its scenes are invariant under time reversal. It has only classes that look like a
  class in reverse playback, and every second video is a scene in reverse playback, with time-reversed labels. A
  forward and a reverse detector therefore have the same task.
* *graded*: half of the classes begin gradually and end abruptly, the others begin abruptly and end gradually. No video
  is reversed, so a reverse detector sees gradual ends where a forward one sees gradual beginnings.

A picture lies in the middle of its frame's time, so that reverse playback is exactly the scene in mirrored time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.demo.playroom import (
    CLASSES,
    FRAMES_PER_SECOND,
    PIXELS,
    REVERSED,
    Course,
    Scene,
    annotation_of,
    render,
    sample_scene,
    write_frames,
    write_videos,
)

Part = Literal["symmetric", "graded"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class Parameters:
    """All parameters of the data set. They were set with forward detectors only, before any was compared with another.

    Args:
        training: videos of each part; ``validation`` likewise.
        duration_s: the least and the greatest; what follows is as in :func:`~bitad.demo.playroom.sample_scene`.
        courses: of the classes in the graded part; bounce and lunge begin abruptly and end gradually anyway.
    """

    training: int = 24
    validation: int = 16
    duration_s: tuple[int, int] = (50, 80)
    gap_s: tuple[float, float] = (0.6, 3.0)
    distractors: int = 1
    distraction_gap_s: tuple[float, float] = (5.5, 20.0)
    pillars: int = 1
    pillar_width: tuple[float, float] = (0.04, 0.07)
    courses: Mapping[str, Course] = field(
        default_factory=lambda: {
            "rise": "gathering",
            "fall": "gathering",
            "open": "gathering",
            "close": "gathering",
            "sway": "gathering",
            "approach": "fading",
            "recede": "fading",
            "pulse": "fading",
        }
    )


HARD = Parameters()


@dataclass(frozen=True)
class Recording:
    """A scene, and whether its video shows it in reverse playback."""

    scene: Scene
    is_reversed: bool

    @property
    def frames(self) -> int:
        return round(self.scene.duration_s * FRAMES_PER_SECOND)

    def pictures(self, pixels: int) -> NDArray[np.uint8]:
        """The frames of the video, uint8 ``[T, pixels, pixels, 3]``."""
        times_s = ((np.arange(self.frames) + 0.5) / FRAMES_PER_SECOND).astype(np.float32)
        pictures = render(self.scene, times_s, pixels)
        return pictures[::-1] if self.is_reversed else pictures

    def annotation(self, name: str) -> AnnotatedVideo:
        """Its annotation, with the time-reversed labels of a scene in reverse playback."""
        video = annotation_of(name, self.scene, self.frames)
        if not self.is_reversed:
            return video
        return with_reversed_labels(video.reversed())


def with_reversed_labels(video: AnnotatedVideo) -> AnnotatedVideo:
    """The video with the time-reversed label of each segment, which has one."""
    return AnnotatedVideo(
        video.name,
        video.subset,
        video.duration_s,
        video.segments,
        tuple(str(REVERSED[label]) for label in video.labels),
        video.frames,
        video.fps,
    )


def recording(seed: tuple[int, ...], part: Part) -> Recording:
    """The recording of a seed, whose last number is the index of the video in its part."""
    duration_s = float(np.random.default_rng((*seed, 3)).integers(HARD.duration_s[0], HARD.duration_s[1] + 1))
    is_symmetric = part == "symmetric"
    scene = sample_scene(
        seed,
        duration_s,
        gap_s=HARD.gap_s,
        classes=[label for label in CLASSES if REVERSED[label] or not is_symmetric],
        courses={} if is_symmetric else HARD.courses,
        distractors=HARD.distractors,
        distraction_gap_s=HARD.distraction_gap_s,
        pillars=HARD.pillars,
        pillar_width=HARD.pillar_width,
    )
    return Recording(scene, is_reversed=is_symmetric and seed[-1] % 2 == 1)


def part_of(video: str) -> Part:
    """The part of a video, by its name."""
    return next(part for part in PARTS if f"_{part}_" in video)


def write_video_of(folder: Path, name: str, seed: tuple[int, ...], part: Part) -> AnnotatedVideo:
    """Renders one video to ``folder``/``name``.mp4 unless it is there, and returns its annotation."""
    shown = recording(seed, part)
    path = folder / f"{name}.mp4"
    if not path.exists():
        write_frames(path, shown.pictures(PIXELS))
    return shown.annotation(name)


def write_data_set(
    folder: Path, *, seed: int, workers: int, on_progress: Callable[[int, int], None]
) -> Annotations:
    """Renders the data set in the form of ``bitad.demo.playroom.write_data_set``; videos that exist are kept."""
    videos = [
        (f"{subset}_{part}_{i:04d}", (seed, 10 + 2 * number + (subset != "train"), i), part)
        for subset, count in (("train", HARD.training), ("validation", HARD.validation))
        for number, part in enumerate(PARTS)
        for i in range(count)
    ]
    return write_videos(folder, write_video_of, videos, workers=workers, on_progress=on_progress)
