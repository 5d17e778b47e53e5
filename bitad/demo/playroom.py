"""Playroom: the rendered data set of the demo, in which actions differ only in their motion.

Round creatures change their place, their size or the opening of their mouth. The looks and states of all creatures,
idle or not, have one distribution, so a single frame does not reveal an action. There are three kinds of classes, by
their appearance in reverse playback:

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

# Actions that change a creature's state: the quantity, and its values before and after.
CHANGES = {
    "rise": ("y", LOW, HIGH),
    "fall": ("y", HIGH, LOW),
    "approach": ("radius", SMALL, BIG),
    "recede": ("radius", BIG, SMALL),
    "open": ("mouth", SHUT, OPEN),
    "close": ("mouth", OPEN, SHUT),
}


def kind_of(label: str) -> Kind:
    if REVERSED[label] is None:
        return "irreversible"
    return "symmetric" if REVERSED[label] == label else "swapping"


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
    """Height of three decaying hops over u in [0, 1], each as long as the root of its height."""
    heights = np.array([1.0, 0.5, 0.22], np.float32)
    ends = np.concatenate([[0], np.cumsum(np.sqrt(heights))]) / np.sqrt(heights).sum()
    out = np.zeros_like(u)
    for height, a, b in zip(heights, ends[:-1], ends[1:], strict=True):
        v = np.clip((u - a) / (b - a), 0, 1)
        out += 4 * height * v * (1 - v)
    return out


def lunge_course(u: Floats) -> Floats:
    """Out within the first eighth, back over the rest."""
    out = smooth_step(u / 0.125)
    back = 1 - smooth_step((u - 0.125) / 0.875)
    return np.where(u < 0.125, out, back).astype(np.float32)


def states(creature: Creature, times_s: Floats) -> dict[str, Floats]:
    """The creature's x, y, radius and mouth at each time, float32 ``[T]`` each."""
    ax, wx, ay, wy = creature.drift
    t = times_s.astype(np.float32)
    state = {
        "x": creature.x + ax * np.sin(wx * t),
        "y": creature.y + ay * np.sin(wy * t),
        "radius": np.full_like(t, creature.radius),
        "mouth": np.full_like(t, creature.mouth),
    }
    for action in creature.actions:
        share = (t - action.start_s) / (action.end_s - action.start_s)
        u = np.clip(share, 0, 1).astype(np.float32)
        during = (u > 0) & (u < 1)
        wave = np.sin(2 * np.pi * action.cycles * u) * during
        match action.label:
            case "sway":
                state["x"] += 0.09 * action.amount * wave
            case "pulse":
                state["radius"] *= 1 + 0.28 * action.amount * wave
            case "bounce":
                state["y"] -= 0.22 * abs(action.amount) * hops(u)
            case "lunge":
                state["x"] += 0.2 * action.amount * lunge_course(u)
            case label:
                quantity, before, after = CHANGES[label]
                state[quantity] += (after - before) * smooth_step(u)
    return state


def sample_scene(
    seed: tuple[int, ...],
    duration_s: float,
    *,
    gap_s: tuple[float, float] = (0.6, 2.6),
) -> Scene:
    """Draws a scene: two performers and an idle creature, one action after another with gaps between them."""
    rng = np.random.default_rng(seed)
    columns = rng.permutation(np.array([0.24, 0.5, 0.76]))
    rest = rng.random((2, 3)) < 0.5  # high?, big?, open?
    state = rest.copy()
    plans: tuple[list[Action], ...] = ([], [])
    clock = rng.uniform(min(0.3, gap_s[0]), gap_s[1])
    while True:
        who = int(rng.integers(2))
        high, big, wide = state[who]
        # Only actions that the current state allows: a high creature can fall but not rise.
        possible = [
            "fall" if high else "rise",
            "recede" if big else "approach",
            "close" if wide else "open",
            "sway",
            "pulse",
            "lunge",
            "sway" if high else "bounce",
        ]
        weights = np.array([2, 2, 2, 1, 1, 1, 1])  # about a third of the time for each kind
        label = str(rng.choice(possible, p=weights / weights.sum()))
        length = rng.uniform(1.0, 2.4) if label in CHANGES else rng.uniform(1.6, 3.2)
        if clock + length > duration_s - 0.3:
            break
        # A lunge goes towards the middle. A wave begins in either direction: its start does not reveal reversal.
        if label == "lunge" and columns[who] != 0.5:
            sign = 1.0 if columns[who] < 0.5 else -1.0
        else:
            sign = float(rng.choice([-1.0, 1.0]))
        cycles = float(np.round(length * rng.uniform(0.9, 1.4) * 2) / 2)  # about one a second, whole or half
        amount = sign * rng.uniform(0.8, 1.2)
        plans[who].append(Action(label, clock, clock + length, amount, cycles))
        if label in CHANGES:
            state[who, ("y", "radius", "mouth").index(CHANGES[label][0])] ^= True
        clock += length + rng.uniform(*gap_s)

    def creature(column: float, state: NDArray[np.bool_], plan: list[Action]) -> Creature:
        high, big, wide = state
        return Creature(
            x=column + rng.uniform(-0.04, 0.04),
            y=(HIGH if high else LOW) + rng.uniform(-0.04, 0.04),
            radius=(BIG if big else SMALL) * rng.uniform(0.9, 1.1),
            mouth=OPEN if wide else SHUT,
            facing=rng.choice([0.0, np.pi]) + rng.uniform(-0.6, 0.6),
            drift=(
                rng.uniform(0, 0.02),
                rng.uniform(0.2, 0.7),
                rng.uniform(0, 0.015),
                rng.uniform(0.2, 0.7),
            ),
            colour=tuple(rng.uniform(0.6, 1.0, 3) * 255),
            actions=tuple(plan),
        )

    cast = [
        creature(columns[0], rest[0], plans[0]),
        creature(columns[1], rest[1], plans[1]),
        creature(columns[2], rng.random(3) < 0.5, []),
    ]
    pan = (
        rng.uniform(0, 0.04),
        rng.uniform(0.1, 0.5),
        rng.uniform(0, 0.02),
        rng.uniform(0.1, 0.5),
    )
    creatures = tuple(cast[i] for i in rng.permutation(len(cast)))
    noise = float(rng.uniform(2, 6))
    return Scene(tuple(seed), duration_s, creatures, pan, noise)


def _backdrop(rng: np.random.Generator, size: int, margin: int) -> Floats:
    """A cluttered wall, float32 ``[size + 2 margin, same, 3]``: soft waves, rectangles and discs."""
    side = size + 2 * margin
    axis = (np.arange(side, dtype=np.float32) - margin) / size
    v, u = axis[:, None, None], axis[None, :, None]
    wall = np.full((side, side, 3), 1.0, np.float32) * rng.uniform(35, 95, 3).astype(np.float32)
    for _ in range(4):
        fx, fy = rng.uniform(-9, 9), rng.uniform(-9, 9)
        phase = rng.uniform(0, 6.3)
        wall += np.cos(fx * u + fy * v + phase) * rng.uniform(-10, 10, 3).astype(np.float32)
    for _ in range(int(rng.integers(5, 10))):
        cx, cy = rng.uniform(-0.1, 1.1), rng.uniform(-0.1, 1.1)
        a, b = rng.uniform(0.03, 0.14, 2)
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

    def along(axis: str) -> tuple[NDArray[np.int64], Floats]:
        """The box's pixels, ``[T, box]``, and their distance to the creature's centre."""
        centre = size * state[axis][:, None]
        first = np.clip(np.round(centre - box / 2), 0, size - box).astype(np.int64)
        pixels = first + np.arange(box)
        return pixels, (pixels + 0.5 - centre).astype(np.float32)

    columns, dx = along("x")
    rows, dy = along("y")
    dx, dy = dx[:, None, :], dy[:, :, None]
    distance = np.sqrt(dx * dx + dy * dy)
    r = (size * state["radius"]).astype(np.float32)[:, None, None]
    disc = np.clip(r - distance + 0.5, 0, 1)
    # Inside the mouth: the angle to the facing direction is less than half the opening.
    facing_x = np.float32(np.cos(creature.facing))
    facing_y = np.float32(np.sin(creature.facing))
    towards = dx * facing_x + dy * facing_y
    lips = np.cos(state["mouth"]).astype(np.float32)[:, None, None]
    disc *= np.clip(distance * lips - towards + 0.5, 0, 1)
    shade = np.clip((r - distance) / (0.22 * r), 0.35, 1)  # a darker rim
    colour = np.array(creature.colour, np.float32)
    inside = np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]
    patch = canvas[inside]
    patch += disc[..., None] * (shade[..., None] * colour - patch)
    canvas[inside] = patch


def render(scene: Scene, times_s: Floats, size: int) -> NDArray[np.uint8]:
    """Renders a scene at the given times: uint8 ``[T, size, size, 3]``, RGB."""
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
            row = margin - round(size * pan_y[begin + i])
            column = margin - round(size * pan_x[begin + i])
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
    segments = np.array([(a.start_s, a.end_s) for a in scene.actions], np.float64).reshape(-1, 2)
    subset = "training" if name.startswith("train") else "validation"
    labels = tuple(a.label for a in scene.actions)
    return AnnotatedVideo(name, subset, duration_s, segments, labels, frames, float(FRAMES_PER_SECOND))


def write_data_set(
    folder: Path,
    *,
    training: int,
    validation: int,
    seed: int,
    workers: int,
    on_progress: Callable[[int, int], None],
) -> Annotations:
    """Renders a data set: ``folder``/raw_data/*.mp4 and ``folder``/annotations/{playroom.json, category_idx.txt}."""
    raw_data = folder / "raw_data"
    annotation_folder = folder / "annotations"
    raw_data.mkdir(parents=True, exist_ok=True)
    jobs = [(raw_data, f"train_{i:04d}", (seed, 0, i)) for i in range(training)]
    jobs += [(raw_data, f"validation_{i:04d}", (seed, 1, i)) for i in range(validation)]
    videos: dict[str, AnnotatedVideo] = {}
    with closing(in_processes(write_video_of, jobs, workers=workers)) as results:
        for _, result in results:
            if isinstance(result, Exception):
                raise result
            videos[result.name] = result
            on_progress(len(videos), len(jobs))
    annotations = Annotations({name: videos[name] for _, name, _ in jobs}, CLASSES)
    annotation_folder.mkdir(exist_ok=True)
    write_annotations(annotations, annotation_folder / "playroom.json")
    (annotation_folder / "category_idx.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    return annotations
