"""The harder playroom: one part has no direction, the other a known one, and playroom itself is as before."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bitad.config.loading import load_config
from bitad.data.annotations import AnnotatedVideo
from bitad.data.formats.database import read_annotations
from bitad.demo import playroom_hard
from bitad.demo.playroom import (
    CLASSES,
    DISTRACTIONS,
    HIGH,
    LOW,
    REVERSED,
    Action,
    Course,
    Creature,
    render,
    sample_scene,
    states,
)
from bitad.demo.playroom_hard import HARD, PARTS, Part, part_of, recording, write_data_set
from bitad.timeline import IntArray
from bitad.video.reader import VideoReader

NUMBERS = {  # of a scene's creatures and actions, and of four frames
    ((0, 0, 0), 20.0): ("a61c94383fb4d740", [77.8069, 77.6997, 77.9965, 77.7953]),
    ((0, 1, 3), 31.0): ("4dc1b1c0d19bd765", [95.9784, 92.3288, 91.9495, 91.1683]),
}


@pytest.mark.parametrize(("seed", "duration_s"), NUMBERS)
def test_playroom_itself_is_what_it_was(seed: tuple[int, ...], duration_s: float) -> None:
    scene = sample_scene(seed, duration_s)
    numbers: list[float] = []
    for one in scene.creatures:
        looks = (one.x, one.y, one.radius, one.mouth, one.facing, *one.drift, *one.colour)
        numbers += [*looks, *(x for a in one.actions for x in (a.start_s, a.end_s, a.amount, a.cycles))]
    known, brightness = NUMBERS[seed, duration_s]
    assert hashlib.sha256(repr(list(map(float, numbers))).encode()).hexdigest()[:16] == known
    shown = render(scene, np.arange(4, dtype=np.float32) * 4, 48)
    assert shown.mean(axis=(1, 2, 3)) == pytest.approx(brightness, abs=0.002)
    assert {action.course for action in scene.actions} == {"even"}


def test_distractors_and_pillars_come_on_top_of_the_same_scene() -> None:
    plain, more = sample_scene((1, 2), 30.0), sample_scene((1, 2), 30.0, distractors=2, pillars=3)
    assert more.creatures[2:] == plain.creatures
    assert (more.pan, more.noise, more.actions) == (plain.pan, plain.noise, plain.actions)
    assert len(more.pillars) == 3
    for one in more.creatures[:2]:
        assert not one.actions
        assert one.distractions
        assert {motion.label for motion in one.distractions} <= DISTRACTIONS.keys()


@pytest.mark.parametrize("label", DISTRACTIONS)
def test_a_distraction_comes_back_and_looks_the_same_in_reverse_playback(label: str) -> None:
    times = ((np.arange(96) + 0.5) / 16).astype(np.float32)
    motion = Action(label, 1.5, 4.5, 1.0, 2.0)
    for y, mouth in ((LOW, 0.12), (HIGH, 1.0)):
        one = Creature(0.5, y, 0.115, mouth, 0.3, (0.0, 0.5, 0.0, 0.5), (220.0, 180.0, 160.0), (), (motion,))
        moved = np.stack(list(states(one, times).values()))
        away = np.abs(moved - moved[:, :1])
        assert away.max() > 0.02
        assert away[:, (times < 1.5) | (times > 4.5)].max() < 1e-6
        opposite = replace(one, distractions=(replace(motion, amount=-1.0),))
        mirrored = moved[:, ::-1]
        same = [np.abs(mirrored - np.stack(list(states(c, times).values()))).max() for c in (one, opposite)]
        assert min(same) < 1e-4


def test_a_pillar_hides_what_is_behind_it() -> None:
    scene = replace(sample_scene((3, 3), 20.0, distractors=1, pillars=1), noise=0.0)
    pillar = replace(scene.pillars[0], x=0.5, width=0.1, drift=(0.0, 0.1))
    scene = replace(scene, pillars=(pillar,), pan=(0.0, 0.1, 0.0, 0.1))
    shown = render(scene, np.array([0, 5, 9], np.float32), 60)
    assert np.abs(shown[:, :, 29:31].astype(float) - pillar.colour).max() <= 1
    assert np.abs(shown[:, :, 10].astype(float) - pillar.colour).mean() > 5


def seconds(part: Part, count: int, *, played: bool = True) -> list[AnnotatedVideo]:
    """Annotations of a part; not played: of its scenes in their own direction."""
    found = []
    for i in range(count):
        one = recording((5, 0, i), part)
        found.append((one if played else replace(one, is_reversed=False)).annotation("validation_0"))
    return found


def direction(videos: list[AnnotatedVideo]) -> dict[str, float]:
    """Statistics that change their sign under time reversal, in units of their standard error."""
    first = np.array([video.segments[:, 0].min() for video in videos])
    last = np.array([video.duration_s - video.segments[:, 1].max() for video in videos])
    swapped = {label: other for label, other in REVERSED.items() if other and label < other}
    counts = [Counter(video.labels) for video in videos]
    numbers = {"margin": first - last}
    for label, other in swapped.items():
        numbers[label] = np.array([one[label] - one[other] for one in counts], float)
        of = [
            (np.diff(video.segments[np.array(video.labels) == name]).mean() if one[name] else 1.7)
            for video, one in zip(videos, counts, strict=True)
            for name in (label, other)
        ]
        numbers[f"length of {label}"] = np.subtract(of[::2], of[1::2])
    # Which label follows which: a pair counts against the mirrored pair.
    follows = []
    for video in videos:
        labels = [video.labels[i] for i in np.argsort(video.segments[:, 0])]
        pairs = Counter(pairwise(labels))
        follows.append(sum(n for (a, b), n in pairs.items() if (a, b) < (str(REVERSED[b]), str(REVERSED[a]))))
        follows[-1] -= sum(n for (a, b), n in pairs.items() if (a, b) > (str(REVERSED[b]), str(REVERSED[a])))
    numbers["order"] = np.array(follows, float)
    return {name: abs(x.mean()) / (x.std() / np.sqrt(len(x)) + 1e-12) for name, x in numbers.items()}


def test_the_symmetric_part_has_no_direction() -> None:
    assert {label for video in seconds("symmetric", 40) for label in video.labels} == {
        label for label, other in REVERSED.items() if other
    }
    assert max(direction(seconds("symmetric", 200)).values()) < 3.5
    # The scenes themselves have one, which the test finds: the end of a video cuts off what would not fit.
    assert max(direction(seconds("symmetric", 200, played=False)).values()) > 5


def test_the_other_half_of_the_symmetric_part_is_exactly_the_mirrored_scene() -> None:
    """Every scene is as likely in either direction, so no statistic of the part changes under time reversal."""
    one = recording((5, 0, 1), "symmetric")
    assert one.is_reversed
    assert not recording((5, 0, 2), "symmetric").is_reversed
    short = replace(one, scene=replace(one.scene, duration_s=6.0))
    forward = replace(short, is_reversed=False)
    np.testing.assert_array_equal(short.pictures(32), forward.pictures(32)[::-1])
    there, back = one.annotation("train_0"), replace(one, is_reversed=False).annotation("train_0")
    assert there.duration_s == back.duration_s
    np.testing.assert_allclose(there.segments, (back.duration_s - back.segments[:, ::-1])[::-1])
    assert there.labels == tuple(REVERSED[label] for label in back.labels[::-1])
    assert (there.subset, there.frames) == ("training", one.frames)


def test_the_graded_part_begins_or_ends_abruptly_by_class() -> None:
    courses: dict[str, set[Course]] = {}
    for i in range(20):
        one = recording((6, 0, i), "graded")
        assert not one.is_reversed
        for action in one.scene.actions:
            courses.setdefault(action.label, set()).add(action.course)
    assert set(courses) == set(CLASSES)
    assert all(len(of_class) == 1 for of_class in courses.values())
    times = np.linspace(0, 3, 301, dtype=np.float32)
    gathering = []
    for label in CLASSES:
        (course,) = courses[label]
        action = Action(label, 0.5, 2.5, 1.0, 2.0, course)
        high = HIGH if label == "fall" else LOW
        one = Creature(0.5, high, 0.15, 0.5, 0.3, (0.0, 0.5, 0.0, 0.5), (220.0, 180.0, 160.0), (action,))
        speed = np.abs(np.diff(np.stack(list(states(one, times).values())))).sum(axis=0)
        begin = speed[(times[1:] > 0.5) & (times[1:] < 0.8)].sum()
        end = speed[(times[1:] > 2.2) & (times[1:] < 2.5)].sum()
        assert max(begin, end) > 2 * min(begin, end), label
        gathering.append(begin < end)
        assert speed[times[1:] < 0.5].max() < 1e-6
        assert speed[times[:-1] > 2.5].max() < 1e-6
    assert sum(gathering) == len(CLASSES) / 2


def shown(path: Path) -> IntArray:
    with VideoReader(path) as reader:
        return reader.read(range(reader.info.frames)).astype(np.int64)


def test_the_data_set_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(HARD, training=2, validation=1, duration_s=(6, 7))
    monkeypatch.setattr(playroom_hard, "HARD", small)
    monkeypatch.setattr(playroom_hard, "PIXELS", 32)

    def write() -> dict[str, AnnotatedVideo]:
        return write_data_set(tmp_path, seed=1, workers=0, on_progress=lambda *_: None).videos

    first = write()
    assert Counter(part_of(name) for name in first) == {"symmetric": 3, "graded": 3}
    read = read_annotations(
        tmp_path / "annotations" / "playroom.json", classes=tmp_path / "annotations" / "category_idx.txt"
    )
    assert read.subsets() == {"training": 4, "validation": 2}
    for name, video in first.items():
        assert read.videos[name].labels == video.labels
        np.testing.assert_allclose(read.videos[name].segments, video.segments, atol=1e-6)
    files = sorted((tmp_path / "raw_data").iterdir())
    made = {file: file.stat().st_mtime_ns for file in files[1:]}
    lost = shown(files[0])
    files[0].unlink()
    assert write().keys() == first.keys()
    assert {file: file.stat().st_mtime_ns for file in files[1:]} == made
    # Pictures, not bytes: x264 does not always write the same ones on processors with AVX-512.
    assert shown(files[0]).shape == lost.shape
    assert np.abs(shown(files[0]) - lost).mean(axis=(1, 2, 3)).max() < 5


def test_both_directions_see_the_same_files_of_the_preset() -> None:
    config = load_config("playroom-hard", ["direction=reverse"])
    assert config.data.reversed_videos is None
    assert config.data.videos is not None
    assert PARTS == ("symmetric", "graded")
    plain = load_config("playroom", ["direction=reverse"])
    assert config.model == plain.model
    assert config.window == plain.window
    start = ["experiment=3-3", "init.forward=f", "init.reverse=b"]
    pair, of_playroom = load_config("playroom-hard-pair", start), load_config("playroom-pair", start)
    own = {"windows_per_video"}
    assert pair.training.model_dump(exclude=own) == of_playroom.training.model_dump(exclude=own)
    assert pair.model == of_playroom.model
    assert pair.data == config.data
