"""Playroom's classes are told apart by motion, and played backwards each becomes what it is said to become."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bitad.data.formats.database import read_annotations
from bitad.demo import playroom
from bitad.demo.playroom import (
    CLASSES,
    HIGH,
    LOW,
    REVERSED,
    Action,
    Creature,
    Scene,
    kind_of,
    render,
    sample_scene,
    states,
    write_data_set,
    write_video_of,
)
from bitad.video.reader import VideoReader, probe

DURATION_S = 6.0
START_S, END_S = 1.5, 4.0
SWAPPING = [label for label in CLASSES if kind_of(label) == "swapping"]
SYMMETRIC = [label for label in CLASSES if kind_of(label) == "symmetric"]
IRREVERSIBLE = [label for label in CLASSES if kind_of(label) == "irreversible"]


def times(fps: float = 16.0) -> np.ndarray:
    """Times that lie symmetrically in the video."""
    count = round(DURATION_S * fps)
    return ((np.arange(count) + 0.5) / fps).astype(np.float32)


def performer(label: str, start_s: float, end_s: float, *, amount: float = 1.0, cycles: float = 2.0) -> Creature:
    """A creature at rest where ``label`` can begin, that performs nothing else and does not drift."""
    return Creature(
        x=0.5,
        y=HIGH if label == "fall" else LOW,
        radius=playroom.BIG if label == "recede" else playroom.SMALL,
        mouth=playroom.OPEN if label == "close" else playroom.SHUT,
        facing=0.3,
        drift=(0.0, 0.5, 0.0, 0.5),
        colour=(220.0, 180.0, 160.0),
        actions=(Action(label, start_s, end_s, amount, cycles),),
    )


def course(creature: Creature) -> np.ndarray:
    """The creature's states over time, ``[4, T]``."""
    return np.stack(list(states(creature, times()).values()))


def pictures(creature: Creature) -> np.ndarray:
    scene = Scene((7,), DURATION_S, (creature,), pan=(0.0, 0.1, 0.0, 0.1), noise=0.0)
    return render(scene, times(), 48).astype(np.int64)


def mirrored(label: str, **course: float) -> Creature:
    """The partner of ``label``, performed in the mirrored time from the state in which ``label`` ends."""
    partner = REVERSED[label]
    assert partner is not None
    return performer(partner, DURATION_S - END_S, DURATION_S - START_S, **course)


def test_every_class_is_of_one_of_three_kinds() -> None:
    assert len(CLASSES) >= 8
    assert set(SWAPPING) == {"open", "close", "rise", "fall", "approach", "recede"}
    assert set(SYMMETRIC) == {"sway", "pulse"}
    assert set(IRREVERSIBLE) == {"bounce", "lunge"}


def test_a_class_reversed_twice_is_itself() -> None:
    for label, partner in REVERSED.items():
        assert partner is None or REVERSED[partner] == label
        assert (partner == label) == (kind_of(label) == "symmetric")


@pytest.mark.parametrize("label", SWAPPING)
def test_a_swapping_class_played_backwards_is_its_partner(label: str) -> None:
    there, back = performer(label, START_S, END_S), mirrored(label)
    np.testing.assert_allclose(course(there)[:, ::-1], course(back), atol=1e-6)
    assert np.abs(pictures(there)[::-1] - pictures(back)).max() <= 1


@pytest.mark.parametrize("label", SYMMETRIC)
@pytest.mark.parametrize("cycles", [2.0, 2.5])
def test_a_symmetric_class_played_backwards_is_itself_with_the_other_sign_or_the_same(
    label: str, cycles: float
) -> None:
    there = performer(label, START_S, END_S, cycles=cycles)
    # A wave of whole cycles starts the other way when played backwards; one of a half more does not.
    back = mirrored(label, cycles=cycles, amount=1.0 if cycles % 1 else -1.0)
    np.testing.assert_allclose(course(there)[:, ::-1], course(back), atol=2e-6)


@pytest.mark.parametrize("label", SYMMETRIC)
def test_waves_begin_either_way_wherever_the_creature_stands(label: str) -> None:
    begun = {
        (creature.x < 0.4, creature.x > 0.6, action.amount > 0)
        for i in range(60)
        for creature in sample_scene((9, i), 30.0).creatures
        for action in creature.actions
        if action.label == label
    }
    assert len(begun) == 6


@pytest.mark.parametrize("label", IRREVERSIBLE)
@pytest.mark.parametrize("other", CLASSES)
def test_an_irreversible_class_played_backwards_is_no_class(label: str, other: str) -> None:
    backwards = course(performer(label, START_S, END_S))[:, ::-1]
    for amount in (-1.2, -0.8, 0.8, 1.2):
        for cycles in (1.0, 2.0, 2.5, 3.0):
            again = course(
                performer(other, DURATION_S - END_S, DURATION_S - START_S, amount=amount, cycles=cycles)
            )
            assert np.abs(backwards - again).max() > 0.05


@pytest.mark.parametrize("label", CLASSES)
def test_nothing_moves_before_an_action_and_after_it(label: str) -> None:
    moves = np.abs(np.diff(course(performer(label, START_S, END_S)))).max(axis=0)
    when = times()
    during = (when[1:] > START_S) & (when[:-1] < END_S)
    assert moves[during].max() > 0.002
    assert moves[~during].max() < 1e-6


def test_the_same_seed_gives_the_same_pixels_and_another_seed_others() -> None:
    when = np.arange(0, 5, 0.5, dtype=np.float32)
    first, again, other = (render(sample_scene(seed, 20.0), when, 32) for seed in ((1, 2), (1, 2), (1, 3)))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 5


def test_all_classes_occur_in_about_equal_shares() -> None:
    counts = Counter(action.label for i in range(60) for action in sample_scene((0, i), 30.0).actions)
    assert set(counts) == set(CLASSES)
    assert min(counts.values()) > 0.4 * np.mean(list(counts.values()))


def test_a_scene_shows_one_action_after_another_with_gaps_inside_the_video() -> None:
    for i in range(20):
        actions = sample_scene((1, i), 25.0).actions
        assert len(actions) >= 4
        assert actions[0].start_s >= 0.3
        assert actions[-1].end_s <= 24.7
        gaps = [after.start_s - before.end_s for before, after in pairwise(actions)]
        assert min(gaps) >= 0.6
        assert max(gaps) <= 2.6


def test_a_creature_does_only_what_its_state_allows() -> None:
    """Who is up falls and does not rise: states stay within their two values, so that no single frame tells."""
    for i in range(20):
        scene = sample_scene((2, i), 40.0)
        for creature in scene.creatures:
            still = replace(creature, drift=(0.0, 1.0, 0.0, 1.0))
            ends = np.array([a.end_s + 0.01 for a in creature.actions], np.float32)
            at_rest = states(still, ends)
            for value, (low, high), slack in (
                (at_rest["y"], (HIGH, LOW), 0.05),
                (at_rest["radius"], (playroom.SMALL, playroom.BIG), 0.03),
                (at_rest["mouth"], (playroom.SHUT, playroom.OPEN), 1e-5),
            ):
                nearest = np.minimum(np.abs(value - low), np.abs(value - high))
                assert (nearest <= slack).all()


def test_performers_and_idle_creatures_are_drawn_from_the_same_looks() -> None:
    scenes = [sample_scene((3, i), 30.0) for i in range(150)]
    acting = [c for scene in scenes for c in scene.creatures if c.actions]
    idle = [c for scene in scenes for c in scene.creatures if not c.actions]
    assert len(idle) >= len(scenes)
    for look in (lambda c: c.x, lambda c: c.y, lambda c: c.radius, lambda c: c.mouth, lambda c: c.colour[0]):
        a, b = np.array([look(c) for c in acting]), np.array([look(c) for c in idle])
        assert abs(a.mean() - b.mean()) < 0.3 * np.concatenate([a, b]).std()


def test_pictures_do_not_depend_on_which_others_are_rendered_with_them_but_for_noise() -> None:
    scene = replace(sample_scene((4, 4), 20.0), noise=0.0)
    when = np.arange(70, dtype=np.float32) / 4
    together = render(scene, when, 32)
    assert together.shape == (70, 32, 32, 3)
    # Creatures are drawn inside a box as large as they become among the frames drawn together.
    assert np.abs(render(scene, when[40:45], 32).astype(int) - together[40:45]).max() <= 1


def test_a_video_is_annotated_with_what_happens_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playroom, "PIXELS", 32)
    seed = (0, 0, 5)
    video = write_video_of(tmp_path, "train_0005", seed)
    scene = sample_scene(seed, video.duration_s)
    assert [(a.start_s, a.end_s) for a in scene.actions] == [tuple(s) for s in video.segments.tolist()]
    assert video.labels == tuple(a.label for a in scene.actions)
    info = probe(tmp_path / "train_0005.mp4")
    assert (info.frames, info.fps) == (video.frames, video.fps)
    assert info.duration_s == pytest.approx(video.duration_s)
    assert (20 <= video.duration_s <= 40, video.subset) == (True, "training")
    assert write_video_of(tmp_path, "validation_0005", seed).subset == "validation"
    with VideoReader(tmp_path / "train_0005.mp4") as reader:
        shown = reader.read([0, 100, 300])
    drawn = render(scene, np.arange(info.frames, dtype=np.float32) / 16, 32)[[0, 100, 300]]
    assert np.abs(shown.astype(int) - drawn).mean() < 8


def test_a_data_set_is_written_in_the_groups_layout_and_repeats_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(playroom, "PIXELS", 32)
    told: list[tuple[int, int]] = []
    annotations = write_data_set(
        tmp_path, training=1, validation=1, seed=3, workers=0, on_progress=lambda *step: told.append(step)
    )
    assert told == [(1, 2), (2, 2)]
    classes = tmp_path / "annotations" / "category_idx.txt"
    assert classes.read_text().split() == list(CLASSES)
    read = read_annotations(tmp_path / "annotations" / "playroom.json", classes=classes)
    assert read.subsets() == {"training": 1, "validation": 1}
    for name, video in read.videos.items():
        contents = [(tmp_path / "raw_data" / f"{name}.mp4").read_bytes()]
        for number in range(4):
            again = write_video_of(tmp_path, f"{name}_{number}", (3, int(video.subset == "validation"), 0))
            np.testing.assert_allclose(video.segments, again.segments)
            assert video.labels == again.labels == annotations.videos[name].labels
            contents.append((tmp_path / f"{name}_{number}.mp4").read_bytes())
        # On processors with AVX-512, x264 encodes one of some thirty files to slightly different bytes.
        assert len(set(contents)) < len(contents)


SIDE = 40
MANY_S = np.arange(35, dtype=np.float32) / 4  # more than are rendered at once


def painted(picture: np.ndarray, creature: Creature, state: dict[str, float], pan: tuple[float, float]) -> None:
    """Draws a creature into ``picture`` ``[S, S, 3]``: a disc with a mouth, a soft edge and a darker rim."""
    x, y, radius = SIDE * (state["x"] + pan[0]), SIDE * (state["y"] + pan[1]), SIDE * state["radius"]
    for row in range(SIDE):
        for column in range(SIDE):
            dx, dy = column + 0.5 - x, row + 0.5 - y
            distance = np.hypot(dx, dy)
            towards = dx * np.cos(creature.facing) + dy * np.sin(creature.facing)
            cover = np.clip(radius - distance + 0.5, 0, 1)
            cover *= np.clip(distance * np.cos(state["mouth"]) - towards + 0.5, 0, 1)
            shade = np.clip((radius - distance) / (0.22 * radius), 0.35, 1)
            picture[row, column] += cover * (shade * np.array(creature.colour) - picture[row, column])


def test_creatures_are_drawn_over_the_backdrop_as_by_an_obvious_painter() -> None:
    scene = replace(sample_scene((5, 1), 12.0), noise=0.0)
    shown = render(scene, MANY_S, SIDE).astype(float) + 0.5  # pixels are truncated
    empty = render(replace(scene, creatures=()), MANY_S, SIDE).astype(float) + 0.5
    expected = empty.copy()
    ax, wx, ay, wy = scene.pan
    for i in (0, 20, 34):
        pan = ax * np.sin(wx * MANY_S[i]), ay * np.sin(wy * MANY_S[i])
        for creature in scene.creatures:
            found = states(creature, MANY_S[i : i + 1])
            painted(expected[i], creature, {name: float(values[0]) for name, values in found.items()}, pan)
        assert np.abs(shown[i] - expected[i]).max() <= 1
        assert np.abs(shown[i] - empty[i]).max() > 20


def test_noise_is_one_of_four_pictures_shifted_cyclically() -> None:
    scene = replace(sample_scene((5, 2), 12.0), creatures=())
    grain = [
        picture.astype(float).mean(-1) - backdrop.astype(float).mean(-1)
        for picture, backdrop in zip(
            render(scene, MANY_S, SIDE), render(replace(scene, noise=0.0), MANY_S, SIDE), strict=True
        )
    ]
    # Cyclic shifts keep the size of each frequency, but for the rounding of pixels.
    spectra = np.array([np.abs(np.fft.fft2(one)).ravel() for one in grain])
    kinds = np.corrcoef(spectra) > 0.9
    assert 2 <= len(np.unique(kinds, axis=0)) <= 4
    assert not np.allclose(grain[0], grain[1])
