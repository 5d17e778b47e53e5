"""A user's own clips: a bar moves left, moves right or stays; mixed rates and sizes, and a table of segments."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitad.video.writer import write_video

LABELS = ("left", "right", "stays")
RATES = (24, 25, 30, 60)
SIZES = ((320, 240), (160, 120), (240, 320), (256, 144))
Action = tuple[float, float, str]


def write_clips(folder: Path, count: int, *, seed: int = 0, seconds: float = 10.0) -> dict[str, list[Action]]:
    """Writes videos, and returns their actions by the name of the file."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    clips = {}
    for number in range(count):
        fps, (width, height) = rng.choice(RATES), rng.choice(SIZES)
        actions: list[Action] = []
        end = 0.0
        while end < seconds:
            start = end + rng.uniform(0.5, 1.2)
            end = start + rng.uniform(0.8, 1.6)
            actions.append((start, end, rng.choice(LABELS)))
        name = f"clip{number:02d}.mp4"
        frames = round((end + 0.6) * fps)
        write_video(folder / name, _pictures(actions, frames, fps, width, height), fps=fps, crf=23)
        clips[name] = actions
    return clips


def write_table(clips: dict[str, list[Action]], path: Path) -> None:
    """Writes a table of the actions, with ends as minutes and seconds."""
    rows = [
        f"{name},{start:.2f},{int(end // 60)}:{end % 60:05.2f},{label}"
        for name, actions in clips.items()
        for start, end, label in actions
    ]
    path.write_text("\n".join(["video,start,end,label", *rows]) + "\n", encoding="utf-8")


def _pictures(
    actions: list[Action], frames: int, fps: int, width: int, height: int
) -> Iterator[NDArray[np.uint8]]:
    for frame in range(frames):
        time = frame / fps
        picture = np.full((height, width, 3), 40, np.uint8)
        for start, end, label in actions:
            if start <= time < end:
                done = (time - start) / (end - start)
                place = {"left": 1 - done, "right": done, "stays": 0.5}[label]
                bar = width // 8
                left = int(place * (width - bar))
                picture[height // 4 : 3 * height // 4, left : left + bar] = (220, 200, 60)
        yield picture
