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

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.formats.database import write_annotations
from bitad.runtime.workers import in_processes
from bitad.video.writer import write_video

Kind = Literal["symmetric", "swapping", "irreversible"]
Course = Literal["even", "gathering", "fading"]
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
    """One action: ``label`` from ``start_s`` to ``end_s``; ``amount`` and ``cycles`` vary its motion.

    A "gathering" course begins gradually and ends abruptly, a "fading" one the other way round.
    """

    label: str
    start_s: float
    end_s: float
    amount: float
    cycles: float
    course: Course = "even"


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
    distractions: tuple[Action, ...] = ()  # motions of no class, whose labels are in DISTRACTIONS


@dataclass(frozen=True)
class Pillar:
    """A vertical bar in front of the creatures."""

    x: float
    width: float
    drift: tuple[float, float]  # amplitude and angular frequency in x
    colour: tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """The content and appearance of one video."""

    seed: tuple[int, ...]
    duration_s: float
    creatures: tuple[Creature, ...]
    pan: tuple[float, float, float, float]  # the camera's amplitude and angular frequency in x, then in y
    noise: float  # standard deviation, of 255
    pillars: tuple[Pillar, ...] = ()

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


def there_and_back(u: Floats) -> Floats:
    """0 to 1 and back to 0 over u in [0, 1], the same in both directions."""
    return np.sin(np.pi * np.clip(u, 0, 1)).astype(np.float32) ** 2


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
        if action.course != "even":
            wave = wave * (u if action.course == "gathering" else 1 - u)
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
                state[quantity] += (after - before) * _PROGRESS[action.course](u)
    for action in creature.distractions:
        u = np.clip((t - action.start_s) / (action.end_s - action.start_s), 0, 1).astype(np.float32)
        DISTRACTIONS[action.label](state, u, action.amount, action.cycles)
    return state


_PROGRESS: dict[Course, Callable[[Floats], Floats]] = {
    "even": smooth_step,
    "gathering": lambda u: u * u,
    "fading": lambda u: u * (2 - u),
}


def _circle(state: dict[str, Floats], u: Floats, amount: float, cycles: float) -> None:
    angle = 2 * np.pi * round(cycles) * u
    state["x"] += (0.06 * amount * np.sin(angle)).astype(np.float32)
    state["y"] += (0.06 * abs(amount) * (1 - np.cos(angle))).astype(np.float32)


def _slide(state: dict[str, Floats], u: Floats, amount: float, cycles: float) -> None:
    state["x"] += 0.13 * amount * there_and_back(u)


def _part_way(quantity: str, low: float, high: float) -> Distraction:
    """Half of the way to the other state, and back."""

    def motion(state: dict[str, Floats], u: Floats, amount: float, cycles: float) -> None:
        away = 0.5 * abs(amount) * (high - low) * there_and_back(u)
        state[quantity] += np.where(abs(state[quantity] - low) < abs(state[quantity] - high), away, -away)

    return motion


Distraction = Callable[[dict[str, Floats], Floats, float, float], None]

# Motions of no class, each of which looks the same in reverse playback: how it changes the state over u in [0, 1].
DISTRACTIONS: dict[str, Distraction] = {
    "circle": _circle,
    "slide": _slide,
    "peek": _part_way("y", LOW, HIGH),
    "swell": _part_way("radius", SMALL, BIG),
    "mumble": _part_way("mouth", SHUT, OPEN),
}


def sample_scene(
    seed: tuple[int, ...],
    duration_s: float,
    *,
    gap_s: tuple[float, float] = (0.6, 2.6),
    classes: Collection[str] = CLASSES,
    courses: Mapping[str, Course] | None = None,
    distractors: int = 0,
    distraction_gap_s: tuple[float, float] = (2.0, 8.0),
    pillars: int = 0,
    pillar_width: tuple[float, float] = (0.04, 0.07),
) -> Scene:
    """Draws a scene: two performers and an idle creature, one action after another with gaps between them.

    Args:
        gap_s: the least and the greatest gap between actions.
        classes: of the actions.
        courses: those of the classes that have another than "even".
        distractors: creatures behind the others, whose motions are of no class and go on beside the actions.
        distraction_gap_s: as ``gap_s``, of each distractor.
        pillars: bars in front of all creatures.
        pillar_width: the least and the greatest.
    """
    rng = np.random.default_rng(seed)
    columns = rng.permutation(np.array([0.24, 0.5, 0.76]))
    rest = rng.random((2, 3)) < 0.5  # high?, big?, open?
    state = rest.copy()
    plans: tuple[list[Action], ...] = ([], [])
    clock = rng.uniform(min(0.3, gap_s[0]), gap_s[1])
    while True:
        who = int(rng.integers(2))
        high, big, wide = state[who]
        # Only actions that the current state allows: a high creature can fall but not rise. The weights give each kind
        # about a third of the time.
        allowed = [
            ("fall" if high else "rise", 2),
            ("recede" if big else "approach", 2),
            ("close" if wide else "open", 2),
            ("sway", 1),
            ("pulse", 1),
            ("lunge", 1),
            ("sway" if high else "bounce", 1),
        ]
        possible = [label for label, _ in allowed if label in classes]
        weights = np.array([weight for label, weight in allowed if label in classes])
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
        course = (courses or {}).get(label, "even")
        plans[who].append(Action(label, clock, clock + length, amount, cycles, course))
        if label in CHANGES:
            state[who, ("y", "radius", "mouth").index(CHANGES[label][0])] ^= True
        clock += length + rng.uniform(*gap_s)
    cast = [
        _creature(rng, columns[0], rest[0], plans[0]),
        _creature(rng, columns[1], rest[1], plans[1]),
        _creature(rng, columns[2], rng.random(3) < 0.5, []),
    ]
    pan = (
        rng.uniform(0, 0.04),
        rng.uniform(0.1, 0.5),
        rng.uniform(0, 0.02),
        rng.uniform(0.1, 0.5),
    )
    creatures = tuple(cast[i] for i in rng.permutation(len(cast)))
    noise = float(rng.uniform(2, 6))
    # Drawn from a generator of their own, so that a scene is the same but for them.
    more = np.random.default_rng((*seed, 2))
    behind = []
    for _ in range(distractors):
        plan = _distractions(more, duration_s, distraction_gap_s)
        one = _creature(more, more.uniform(0.2, 0.8), more.random(3) < 0.5, [])
        behind.append(replace(one, distractions=plan))
    bars = tuple(_pillar(more, pillar_width) for _ in range(pillars))
    return Scene(tuple(seed), duration_s, (*behind, *creatures), pan, noise, bars)


def _creature(
    rng: np.random.Generator, column: float, state: NDArray[np.bool_], plan: Sequence[Action]
) -> Creature:
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


def _distractions(rng: np.random.Generator, duration_s: float, gap_s: tuple[float, float]) -> tuple[Action, ...]:
    """The motions of a distractor, one after another."""
    plan = []
    clock = rng.uniform(*gap_s)
    while clock + (length := rng.uniform(1.0, 3.2)) < duration_s - 0.3:
        label = str(rng.choice(tuple(DISTRACTIONS)))
        amount = float(rng.choice([-1.0, 1.0])) * rng.uniform(0.8, 1.2)
        plan.append(Action(label, clock, clock + length, amount, max(1.0, np.round(length))))
        clock += length + rng.uniform(*gap_s)
    return tuple(plan)


def _pillar(rng: np.random.Generator, width: tuple[float, float]) -> Pillar:
    return Pillar(
        x=rng.uniform(0.15, 0.85),
        width=rng.uniform(*width),
        drift=(rng.uniform(0, 0.1), rng.uniform(0.1, 0.4)),
        colour=tuple(rng.uniform(15, 130, 3)),
    )


def _backdrop(rng: np.random.Generator, size: int, margin: int) -> Floats:
    """A cluttered wall, float32 ``[3, size + 2 margin, same]``: soft waves, rectangles and discs."""
    side = size + 2 * margin
    axis = (np.arange(side, dtype=np.float32) - margin) / size
    v, u = axis[:, None], axis[None, :]

    def colour(low: float, high: float) -> Floats:
        return rng.uniform(low, high, 3).astype(np.float32)[:, None, None]

    wall = np.full((3, side, side), colour(35, 95))
    for _ in range(4):
        fx, fy = rng.uniform(-9, 9), rng.uniform(-9, 9)
        phase = rng.uniform(0, 6.3)
        wall += np.cos(fx * u + fy * v + phase) * colour(-10, 10)
    for _ in range(int(rng.integers(5, 10))):
        cx, cy = rng.uniform(-0.1, 1.1), rng.uniform(-0.1, 1.1)
        a, b = rng.uniform(0.03, 0.14, 2)
        paint = colour(15, 130)
        if rng.random() < 0.5:
            inside = (np.abs(u - cx) < a) & (np.abs(v - cy) < b)
        else:
            inside = (u - cx) ** 2 + (v - cy) ** 2 < a * b
        wall = np.where(inside, 0.45 * wall + 0.55 * paint, wall)
    return wall


def _paint(canvas: Floats, creature: Creature, state: dict[str, Floats]) -> None:
    """Draws one creature into all frames of ``canvas`` ``[3, T, S, S]``, within its bounding box."""
    _, count, size, _ = canvas.shape
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
    inside = ((np.arange(count)[:, None] * size + rows) * size)[:, :, None] + columns[:, None, :]
    for channel, colour in zip(canvas.reshape(3, -1), np.array(creature.colour, np.float32), strict=True):
        patch = channel[inside]
        patch += disc * (shade * colour - patch)
        channel[inside] = patch


def _paint_pillar(canvas: Floats, pillar: Pillar, times_s: Floats, pan_x: Floats) -> None:
    """Draws a pillar into all frames, with soft edges of a pixel."""
    size = canvas.shape[-1]
    amplitude, frequency = pillar.drift
    centre = size * (pillar.x + amplitude * np.sin(frequency * times_s) + pan_x)[:, None]
    away = np.abs(np.arange(size) + 0.5 - centre)  # [T, S]
    cover = np.clip(size * pillar.width / 2 - away + 0.5, 0, 1).astype(np.float32)[:, None, :]
    for channel, colour in zip(canvas, np.array(pillar.colour, np.float32), strict=True):
        channel += cover * (colour - channel)


def render(scene: Scene, times_s: Floats, size: int) -> NDArray[np.uint8]:
    """Renders a scene at the given times: uint8 ``[T, size, size, 3]``, RGB."""
    rng = np.random.default_rng((*scene.seed, 1))
    ax, wx, ay, wy = scene.pan
    margin = int(np.ceil(0.06 * size)) + 1
    wall = _backdrop(rng, size, margin)
    pan_x, pan_y = ax * np.sin(wx * times_s), ay * np.sin(wy * times_s)  # relative to the width
    grain = rng.standard_normal((4, size, size), dtype=np.float32) * scene.noise
    grain = np.tile(grain, (1, 2, 2))  # so that each cyclic shift is a slice
    shifts = rng.integers(0, size, (len(times_s), 3))
    out = np.empty((len(times_s), size, size, 3), np.uint8)
    for begin in range(0, len(times_s), 32):  # chunks that fit into the cache
        part = slice(begin, min(begin + 32, len(times_s)))
        # Channels come first: NumPy is faster with long rows than with rows of three values.
        canvas = np.empty((3, part.stop - begin, size, size), np.float32)
        for i in range(part.stop - begin):
            row = margin - round(size * pan_y[begin + i])
            column = margin - round(size * pan_x[begin + i])
            canvas[:, i] = wall[:, row : row + size, column : column + size]
        for creature in scene.creatures:
            state = states(creature, times_s[part])
            state["x"] = state["x"] + pan_x[part]
            state["y"] = state["y"] + pan_y[part]
            _paint(canvas, creature, state)
        for pillar in scene.pillars:
            _paint_pillar(canvas, pillar, times_s[part], pan_x[part])
        for i in range(part.stop - begin):
            which, row, column = shifts[begin + i]
            canvas[:, i] += grain[which % 4, size - row : 2 * size - row, size - column : 2 * size - column]
        np.clip(canvas, 0, 255, out=canvas)
        out[part] = np.moveaxis(canvas.astype(np.uint8), 0, 3)
    return out


FRAMES_PER_SECOND = 16
PIXELS = 112


def write_video_of(folder: Path, name: str, seed: tuple[int, ...]) -> AnnotatedVideo:
    """Renders one video of 20 to 40 seconds to ``folder``/``name``.mp4, and returns its annotation."""
    duration_s = float(np.random.default_rng((*seed, 3)).integers(20, 41))
    scene = sample_scene(seed, duration_s)
    frames = round(duration_s * FRAMES_PER_SECOND)
    write_frames(
        folder / f"{name}.mp4", render(scene, (np.arange(frames) / FRAMES_PER_SECOND).astype(np.float32), PIXELS)
    )
    return annotation_of(name, scene, frames)


def write_frames(path: Path, pictures: NDArray[np.uint8]) -> None:
    """Writes the frames ``[T, H, W, 3]`` of a video."""
    write_video(path, pictures, fps=FRAMES_PER_SECOND, crf=27, gop=32)


def annotation_of(name: str, scene: Scene, frames: int) -> AnnotatedVideo:
    """The annotation of a scene in forward playback; the subset is that of the name."""
    segments = np.array([(a.start_s, a.end_s) for a in scene.actions], np.float64).reshape(-1, 2)
    subset = "training" if name.startswith("train") else "validation"
    labels = tuple(a.label for a in scene.actions)
    return AnnotatedVideo(name, subset, scene.duration_s, segments, labels, frames, float(FRAMES_PER_SECOND))


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
    videos = [(f"train_{i:04d}", (seed, 0, i)) for i in range(training)]
    videos += [(f"validation_{i:04d}", (seed, 1, i)) for i in range(validation)]
    return write_videos(folder, write_video_of, videos, workers=workers, on_progress=on_progress)


def write_videos(
    folder: Path,
    write: Callable[..., AnnotatedVideo],
    videos: Sequence[tuple[object, ...]],
    *,
    workers: int,
    on_progress: Callable[[int, int], None],
) -> Annotations:
    """Writes the videos and annotations of a data set; ``write`` takes the folder, and the name and more of a video."""
    raw_data = folder / "raw_data"
    annotation_folder = folder / "annotations"
    raw_data.mkdir(parents=True, exist_ok=True)
    jobs = [(raw_data, *video) for video in videos]
    made: dict[str, AnnotatedVideo] = {}
    with closing(in_processes(write, jobs, workers=workers)) as results:
        for _, result in results:
            if isinstance(result, Exception):
                raise result
            made[result.name] = result
            on_progress(len(made), len(jobs))
    annotations = Annotations({str(name): made[str(name)] for name, *_ in videos}, CLASSES)
    annotation_folder.mkdir(exist_ok=True)
    write_annotations(annotations, annotation_folder / "playroom.json")
    (annotation_folder / "category_idx.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    return annotations
