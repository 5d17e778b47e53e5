"""Playroom: the rendered data set of the demo, in which actions differ only in their motion.

Round creatures with a mouth change their place, their size or the opening of their mouth. The looks and states of all
creatures, idle or not, have one distribution, so a single frame does not reveal an action; the motion does. There are
three kinds of classes, by their appearance in reverse playback:

* symmetric: looks the same (sway, pulse);
* swapping: looks like its partner (rise and fall, open and close, approach and recede);
* irreversible: looks like no class (bounce, whose hops decay; lunge, which is fast outwards and slow back).

A scene is a pure function of (seed, index), and a picture one of (scene, time, size).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.formats.database import write_annotations
from bitad.runtime.workers import in_processes
from bitad.video.writer import write_video

Kind = Literal["symmetric", "swapping", "irreversible"]
Floats = NDArray[np.float32]

# Class -> its time-reversed label; None if it looks like no class.
REVERSED: dict[str, str | None] = {
    "approach": "recede",
    "bounce": None,
    "close": "open",
    "fall": "rise",
    "lunge": None,
    "open": "close",
    "pulse": "pulse",
    "recede": "approach",
    "rise": "fall",
    "sway": "sway",
}
CLASSES = tuple(REVERSED)

# Coordinates run from 0 to 1; a creature rests low or high, small or big, shut or open.
LOW, HIGH = 0.70, 0.36
SMALL, BIG = 0.115, 0.19  # radius
SHUT, OPEN = 0.12, 1.0  # half the mouth's angle in radians


def kind_of(label: str) -> Kind:
    """The kind of a class."""
    partner = REVERSED[label]
    if partner is None:
        return "irreversible"
    return "symmetric" if partner == label else "swapping"


@dataclass(frozen=True)
class Action:
    """One action: ``label`` from ``start_s`` to ``end_s``; ``amount`` and ``cycles`` vary its course."""

    label: str
    start_s: float
    end_s: float
    amount: float
    cycles: float


@dataclass(frozen=True)
class Creature:
    """A disc with a mouth: its state at time 0, a slow drift, and its actions in order of time."""

    x: float
    y: float
    radius: float
    mouth: float
    facing: float  # direction of the mouth, radians
    drift: tuple[float, float, float, float]  # amplitude and angular frequency in x, then in y
    colour: tuple[float, float, float]
    actions: tuple[Action, ...]


@dataclass(frozen=True)
class Scene:
    """The content and appearance of one video."""

    seed: tuple[int, ...]
    duration_s: float
    creatures: tuple[Creature, ...]
    pan: tuple[float, float, float, float]  # the camera's amplitude and angular frequency in x, then in y
    noise: float  # standard deviation, of 255

    @property
    def actions(self) -> list[Action]:
        """Every action of every creature, by start."""
        return sorted((a for c in self.creatures for a in c.actions), key=lambda a: a.start_s)


def smooth_step(u: Floats) -> Floats:
    """0 to 1 with zero speed at both ends."""
    u = np.clip(u, 0, 1)
    return u * u * (3 - 2 * u)


def hops(u: Floats) -> Floats:
    """Height of three decaying hops over u in [0, 1]; the duration of a hop grows with the root of its height."""
    heights = np.array([1.0, 0.5, 0.22], np.float32)
    ends = np.concatenate([[0], np.cumsum(np.sqrt(heights))]) / np.sqrt(heights).sum()
    out = np.zeros_like(u)
    for height, a, b in zip(heights, ends[:-1], ends[1:], strict=True):
        v = np.clip((u - a) / (b - a), 0, 1)
        out += 4 * height * v * (1 - v)
    return out


def lunge_course(u: Floats) -> Floats:
    """Out within the first eighth, back over the rest."""
    return np.where(u < 0.125, smooth_step(u / 0.125), 1 - smooth_step((u - 0.125) / 0.875)).astype(np.float32)


def states(creature: Creature, times_s: Floats) -> dict[str, Floats]:
    """The creature's x, y, radius and mouth at each time, float32 ``[T]`` each."""
    ax, wx, ay, wy = creature.drift
    t = times_s.astype(np.float32)
    x = creature.x + ax * np.sin(wx * t)
    y = creature.y + ay * np.sin(wy * t)
    radius = np.full_like(t, creature.radius)
    mouth = np.full_like(t, creature.mouth)
    for action in creature.actions:
        u = np.clip((t - action.start_s) / (action.end_s - action.start_s), 0, 1).astype(np.float32)
        during = (u > 0) & (u < 1)
        wave = np.sin(2 * np.pi * action.cycles * u) * during
        match action.label:
            case "rise":
                y += (HIGH - LOW) * smooth_step(u)
            case "fall":
                y += (LOW - HIGH) * smooth_step(u)
            case "approach":
                radius += (BIG - SMALL) * smooth_step(u)
            case "recede":
                radius += (SMALL - BIG) * smooth_step(u)
            case "open":
                mouth += (OPEN - SHUT) * smooth_step(u)
            case "close":
                mouth += (SHUT - OPEN) * smooth_step(u)
            case "sway":
                x += 0.09 * action.amount * wave
            case "pulse":
                radius *= 1 + 0.28 * action.amount * wave
            case "bounce":
                y -= 0.22 * abs(action.amount) * hops(u)
            case "lunge":
                x += 0.2 * action.amount * lunge_course(u)
    return {"x": x, "y": y, "radius": radius, "mouth": mouth}


def sample_scene(seed: tuple[int, ...], duration_s: float, *, gap_s: tuple[float, float] = (0.6, 2.6)) -> Scene:
    """Draws a scene: 2 performers, 1 to 2 idle creatures, one action after another with gaps between them.

    Args:
        seed: any tuple of non-negative integers; the same seed gives the same scene.
        gap_s: shortest and longest pause between two actions.
    """
    rng = np.random.default_rng(seed)
    columns = rng.permutation(np.array([0.24, 0.5, 0.76]))
    performers = 2
    rest = rng.random((performers, 3)) < 0.5  # high?, big?, open?
    state = rest.copy()
    plans: list[list[Action]] = [[] for _ in range(performers)]
    clock = rng.uniform(min(0.3, gap_s[0]), gap_s[1])
    while True:
        who = int(rng.integers(performers))
        high, big, wide = state[who]
        # Only actions that the current state allows: a high creature can fall but not rise.
        possible = ["fall" if high else "rise", "recede" if big else "approach", "close" if wide else "open"]
        possible += ["sway", "pulse", "lunge", "sway" if high else "bounce"]
        weights = np.array([2, 2, 2, 1, 1, 1, 1])  # about a third of the time for each kind
        label = str(rng.choice(possible, p=weights / weights.sum()))
        length = rng.uniform(1.6, 3.2) if label in ("sway", "pulse", "bounce", "lunge") else rng.uniform(1.0, 2.4)
        if clock + length > duration_s - 0.3:
            break
        # A lunge goes towards the middle. A wave begins in either direction: its start does not reveal reversal.
        inwards = 1.0 if columns[who] < 0.4 else -1.0 if columns[who] > 0.6 else None
        sign = inwards if label == "lunge" and inwards else float(rng.choice([-1.0, 1.0]))
        cycles = float(np.round(length * rng.uniform(0.9, 1.4) * 2) / 2)  # about one a second, whole or half
        plans[who].append(Action(label, clock, clock + length, sign * rng.uniform(0.8, 1.2), cycles))
        changed = {"rise": 0, "fall": 0, "approach": 1, "recede": 1, "open": 2, "close": 2}.get(label)
        if changed is not None:
            state[who, changed] = ~state[who, changed]
        clock += length + rng.uniform(*gap_s)

    def creature(column: float, state: NDArray[np.bool_], plan: list[Action]) -> Creature:
        high, big, wide = state
        return Creature(
            x=column + rng.uniform(-0.04, 0.04),
            y=(HIGH if high else LOW) + rng.uniform(-0.04, 0.04),
            radius=(BIG if big else SMALL) * rng.uniform(0.9, 1.1),
            mouth=OPEN if wide else SHUT,
            facing=rng.choice([0.0, np.pi]) + rng.uniform(-0.6, 0.6),
            drift=(rng.uniform(0, 0.02), rng.uniform(0.2, 0.7), rng.uniform(0, 0.015), rng.uniform(0.2, 0.7)),
            colour=tuple(rng.uniform(0.6, 1.0, 3) * 255),
            actions=tuple(plan),
        )

    cast = [creature(columns[i], rest[i], plans[i]) for i in range(performers)]
    cast.append(creature(columns[2], rng.random(3) < 0.5, []))
    pan = (rng.uniform(0, 0.04), rng.uniform(0.1, 0.5), rng.uniform(0, 0.02), rng.uniform(0.1, 0.5))
    order = rng.permutation(len(cast))
    return Scene(tuple(seed), duration_s, tuple(cast[i] for i in order), pan, float(rng.uniform(2, 6)))


def _backdrop(rng: np.random.Generator, size: int, margin: int) -> Floats:
    """A cluttered wall, float32 ``[size + 2 margin, same, 3]``: soft waves, rectangles and discs."""
    side = size + 2 * margin
    axis = (np.arange(side, dtype=np.float32) - margin) / size
    v, u = axis[:, None, None], axis[None, :, None]
    wall = np.full((side, side, 3), 1.0, np.float32) * rng.uniform(35, 95, 3).astype(np.float32)
    for _ in range(4):
        fx, fy, phase = rng.uniform(-9, 9), rng.uniform(-9, 9), rng.uniform(0, 6.3)
        wall += np.cos(fx * u + fy * v + phase) * rng.uniform(-10, 10, 3).astype(np.float32)
    for _ in range(int(rng.integers(5, 10))):
        cx, cy, a, b = rng.uniform(-0.1, 1.1), rng.uniform(-0.1, 1.1), *rng.uniform(0.03, 0.14, 2)
        colour = rng.uniform(15, 130, 3).astype(np.float32)
        if rng.random() < 0.5:
            inside = (np.abs(u - cx) < a) & (np.abs(v - cy) < b)
        else:
            inside = (u - cx) ** 2 + (v - cy) ** 2 < a * b
        wall = np.where(inside, 0.45 * wall + 0.55 * colour, wall)
    return wall


def _paint(canvas: Floats, creature: Creature, state: dict[str, Floats]) -> None:
    """Draws one creature into all frames of ``canvas`` ``[T, S, S, 3]``, within its bounding box."""
    count, size = canvas.shape[:2]
    box = min(size, int(np.ceil(2 * size * float(state["radius"].max()))) + 3)
    cx, cy, radius = (size * state[key] for key in ("x", "y", "radius"))  # pixels, [T]
    left = np.clip(np.round(cx - box / 2), 0, size - box).astype(np.int64)
    top = np.clip(np.round(cy - box / 2), 0, size - box).astype(np.int64)
    pixel = np.arange(box)
    dx = (left[:, None] + pixel + 0.5 - cx[:, None]).astype(np.float32)[:, None, :]  # [T, 1, box]
    dy = (top[:, None] + pixel + 0.5 - cy[:, None]).astype(np.float32)[:, :, None]  # [T, box, 1]
    distance = np.sqrt(dx * dx + dy * dy)
    r = radius.astype(np.float32)[:, None, None]
    disc = np.clip(r - distance + 0.5, 0, 1)
    # Inside the mouth: the angle to the facing direction is less than half the opening.
    towards = dx * np.float32(np.cos(creature.facing)) + dy * np.float32(np.sin(creature.facing))
    lips = np.cos(state["mouth"]).astype(np.float32)[:, None, None]
    disc *= np.clip(distance * lips - towards + 0.5, 0, 1)
    shade = np.clip((r - distance) / (0.22 * r), 0.35, 1)  # a darker rim
    frame = np.arange(count)[:, None, None]
    rows, columns = (top[:, None] + pixel)[:, :, None], (left[:, None] + pixel)[:, None, :]
    patch = canvas[frame, rows, columns]
    colour = np.array(creature.colour, np.float32)
    patch += disc[..., None] * (shade[..., None] * colour - patch)
    canvas[frame, rows, columns] = patch


def render(scene: Scene, times_s: Floats, size: int) -> NDArray[np.uint8]:
    """Renders a scene at the given times.

    Returns:
        uint8 ``[T, size, size, 3]``, RGB.
    """
    rng = np.random.default_rng((*scene.seed, 1))
    ax, wx, ay, wy = scene.pan
    margin = int(np.ceil(0.06 * size)) + 1
    wall = _backdrop(rng, size, margin)
    pan_x, pan_y = ax * np.sin(wx * times_s), ay * np.sin(wy * times_s)  # relative to the width
    grain = rng.standard_normal((4, size, size, 1), dtype=np.float32) * scene.noise
    shifts = rng.integers(0, size, (len(times_s), 3))
    out = np.empty((len(times_s), size, size, 3), np.uint8)
    for begin in range(0, len(times_s), 32):  # chunks that fit into the cache
        part = slice(begin, min(begin + 32, len(times_s)))
        canvas = np.empty((part.stop - begin, size, size, 3), np.float32)
        for i in range(len(canvas)):
            row, column = margin - round(size * pan_y[begin + i]), margin - round(size * pan_x[begin + i])
            canvas[i] = wall[row : row + size, column : column + size]
        for creature in scene.creatures:
            state = states(creature, times_s[part])
            state["x"] = state["x"] + pan_x[part]
            state["y"] = state["y"] + pan_y[part]
            _paint(canvas, creature, state)
        for i in range(len(canvas)):
            which, row, column = shifts[begin + i]
            canvas[i] += np.roll(grain[which % 4], (row, column), (0, 1))
        out[part] = np.clip(canvas, 0, 255)
    return out


FRAMES_PER_SECOND = 16
PIXELS = 112


def write_video_of(folder: Path, name: str, seed: tuple[int, ...]) -> AnnotatedVideo:
    """Renders one video of 20 to 40 seconds to ``folder``/``name``.mp4, and returns its annotation."""
    duration_s = float(np.random.default_rng((*seed, 3)).integers(20, 41))
    scene = sample_scene(seed, duration_s)
    frames = round(duration_s * FRAMES_PER_SECOND)
    pictures = render(scene, (np.arange(frames) / FRAMES_PER_SECOND).astype(np.float32), PIXELS)
    write_video(folder / f"{name}.mp4", pictures, fps=FRAMES_PER_SECOND, crf=27, gop=32)
    actions = scene.actions
    segments = np.array([(a.start_s, a.end_s) for a in actions], np.float64).reshape(-1, 2)
    subset = "training" if name.startswith("train") else "validation"
    labels = tuple(a.label for a in actions)
    return AnnotatedVideo(name, subset, duration_s, segments, labels, frames, float(FRAMES_PER_SECOND))


def write_data_set(
    folder: Path,
    *,
    training: int,
    validation: int,
    seed: int,
    workers: int = 2,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Annotations:
    """Renders a data set: ``folder``/raw_data/*.mp4 and ``folder``/annotations/{playroom.json, category_idx.txt}.

    Args:
        seed: the same seed gives the same videos.
        workers: number of rendering processes.
        on_progress: called with (videos done, videos in total).
    """
    (folder / "raw_data").mkdir(parents=True, exist_ok=True)
    names = [(f"train_{i:04d}", (seed, 0, i)) for i in range(training)]
    names += [(f"validation_{i:04d}", (seed, 1, i)) for i in range(validation)]
    videos: dict[str, AnnotatedVideo] = {}
    jobs = [(folder / "raw_data", name, key) for name, key in names]
    with closing(in_processes(write_video_of, jobs, workers=workers)) as results:
        for _, result in results:
            if isinstance(result, Exception):
                raise result
            videos[result.name] = result
            on_progress(len(videos), len(names))
    annotations = Annotations({name: videos[name] for name, _ in names}, CLASSES)
    (folder / "annotations").mkdir(exist_ok=True)
    write_annotations(annotations, folder / "annotations" / "playroom.json")
    (folder / "annotations" / "category_idx.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    return annotations
