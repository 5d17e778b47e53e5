"""What classes look like on reversed playback: a map that is its own inverse, on labels and in windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from builders import CLASSES, config_of, feature_data
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bitad.config.names import UNKNOWN
from bitad.config.schema import DataConfig
from bitad.data.dataset import TrainingWindows
from bitad.data.reversal import Reversal, reversal_in_words
from bitad.data.samples import Batch, Sample, collate
from bitad.data.sources import build_source, read_ground_truth
from bitad.timeline import Grid

NAMES = ("a", "b", "c", "d", "e")
NOTHING: dict[str, str] = {}


def stated(reversal: dict[str, str]) -> dict[str, str]:
    """A map as the configuration reads it."""
    found = DataConfig(annotations=Path("gt.json"), reversal=reversal).reversal
    assert found is not None
    return found


@st.composite
def reversals(draw: st.DrawFn) -> dict[str, str]:
    """Maps with pairs, of which one half may be left out, classes that stay, and unknown ones."""
    order = draw(st.permutations(NAMES))
    found: dict[str, str] = {}
    while order:
        kind = draw(st.sampled_from(["pair", "half", "same", UNKNOWN, "left out"]))
        name, *order = order
        if kind in ("pair", "half") and order:
            other, *order = order
            found |= {name: other} | ({other: name} if kind == "pair" else {})
        elif kind in ("same", UNKNOWN):
            found[name] = name if kind == "same" else UNKNOWN
    return found


@given(reversals(), st.lists(st.integers(0, len(NAMES) - 1), max_size=8))
@settings(deadline=None)
def test_reversing_twice_gives_every_label_again(given_map: dict[str, str], labels: list[int]) -> None:
    reversal = Reversal.of(stated(given_map), NAMES)
    seen = reversal.labels(np.array(labels, np.int64))
    assert reversal.labels(seen).tolist() == labels
    assert reversal.partner[reversal.partner].tolist() == list(range(len(NAMES)))
    both_ways = given_map | {other: name for name, other in given_map.items() if other != UNKNOWN}
    for label, found in zip(labels, seen.tolist(), strict=True):
        other = both_ways.get(NAMES[label], NAMES[label])
        assert found == (~label if other == UNKNOWN else NAMES.index(other))
    assert reversal.keeps_labels == all(name == other for name, other in given_map.items())


@given(reversals())
@settings(deadline=None)
def test_a_map_is_written_with_both_halves_of_its_pairs_and_is_then_read_unchanged(
    given_map: dict[str, str],
) -> None:
    found = stated(given_map)
    assert found.items() >= given_map.items()
    assert all(other == UNKNOWN or found[other] == name for name, other in found.items())
    assert stated(found) == found


@pytest.mark.parametrize(
    ("reversal", "said"),
    [
        (
            {"rise": "fall", "fall": "fall"},
            "rise becomes fall, but fall becomes fall; reversing twice must give rise",
        ),
        (
            {"rise": "fall", "drop": "fall"},
            "drop becomes fall, but fall becomes rise; reversing twice must give drop",
        ),
        ({"rise": "fall", "fall": UNKNOWN}, "rise becomes fall, but fall becomes unknown"),
        ({"a": "b", "b": "c", "c": "a"}, "a becomes b, but b becomes c"),
        ({UNKNOWN: "rise"}, "unknown means no class; rename the class unknown that becomes rise"),
        ({"rise": ""}, "'' is not a name"),
        ({"rise": None}, "null is not a name"),
    ],
)
def test_a_map_that_is_not_its_own_inverse_is_refused(reversal: dict[str, str], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        stated(reversal)


def test_the_log_says_what_reversed_windows_teach() -> None:
    found = reversal_in_words(stated({"a": "b", "d": UNKNOWN}), NAMES)
    assert found == "a is b, b is a; no class is learned of d; other classes keep their labels: c, e"
    assert reversal_in_words(NOTHING, NAMES) == "all classes keep their labels: a, b, c, d, e"


def same(a: Batch, b: Batch) -> None:
    torch.testing.assert_close(a.inputs, b.inputs, rtol=0, atol=0)
    for one, other in (*zip(a.segments, b.segments, strict=True), *zip(a.labels, b.labels, strict=True)):
        assert one.tolist() == other.tolist()


@given(reversals(), st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_a_reversed_batch_is_the_batch_of_reversed_samples_with_their_labels(
    given_map: dict[str, str], seed: int
) -> None:
    reversal = Reversal.of(stated(given_map), NAMES)
    rng = np.random.default_rng(seed)
    samples = []
    for steps in rng.integers(1, 9, 3).tolist():
        labels = rng.integers(len(NAMES), size=int(rng.integers(3)))
        samples.append(
            Sample(
                "v",
                torch.from_numpy(rng.standard_normal((steps, 2))),
                Grid(1.0, 1.0, 0.0, steps),
                segments=np.sort(rng.integers(0, 4 * steps, (len(labels), 2)) / 4, axis=1),
                labels=labels,
                reversed_labels=None if reversal.keeps_labels else reversal.labels(labels),
            )
        )
    batch = collate(samples, 8)
    same(batch.reversed(), collate([sample.reversed() for sample in samples], 8))
    same(batch.reversed().reversed(), batch)
    for sample, seen in zip(samples, batch.reversed().labels, strict=True):
        assert seen.tolist() == reversal.labels(sample.labels).tolist()


# In training windows.


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return feature_data(tmp_path_factory.mktemp("features") / "data", training=8)


def windows_of(path: Path, *overrides: str) -> TrainingWindows:
    config = config_of(path, "training.windows_per_video=10", *overrides)
    windows = TrainingWindows(read_ground_truth(config.data).subset("training"), build_source(config), config)
    windows.set_epoch(3)
    return windows


SWAP = "data.reversal={alpha: beta, gamma: unknown}"


def test_windows_of_both_directions_are_those_of_a_forward_network_half_of_them_reversed(path: Path) -> None:
    forward, both = (windows_of(path, f"direction={name}", SWAP) for name in ("forward", "both"))
    reversal = Reversal.of(both.config.reversal, CLASSES)
    views = []
    for item in range(len(forward)):
        one, other = forward[item], both[item]
        views.append(other.view)
        expected = one if other.view == "forward" else one.reversed()
        assert torch.equal(other.content, expected.content)
        assert other.segments.tolist() == expected.segments.tolist()
        labels = one.labels if other.view == "forward" else reversal.labels(one.labels)
        assert other.labels.tolist() == labels.tolist()
    assert 0.3 < views.count("reverse") / len(views) < 0.7
    again = windows_of(path, "direction=both", SWAP)
    assert [again[item].view for item in reversed(range(len(again)))] == views[::-1]
    for change in ("seed", "epoch"):
        other_windows = windows_of(path, "direction=both", f"seed={int(change == 'seed')}")
        other_windows.set_epoch(3 + (change == "epoch"))
        assert [other_windows[item].view for item in range(len(views))] != views


@pytest.mark.parametrize("how", ["direction=forward", "direction=reverse", "experiment=1"])
def test_a_network_of_one_direction_keeps_its_labels(path: Path, how: str) -> None:
    with_map, without = windows_of(path, how, SWAP), windows_of(path, how)
    for item in range(len(with_map)):
        assert with_map[item].labels.tolist() == without[item].labels.tolist()
        assert with_map[item].reversed_labels is None


def test_time_reversed_copies_are_read_for_reversed_windows_only(path: Path) -> None:
    """The copies hold other numbers, as features of reversed playback do."""
    copies = path.parent / "copies"
    copies.mkdir(exist_ok=True)
    for file in (path.parent / "features").glob("*.npy"):
        np.save(copies / file.name, -np.load(file))
    both, with_copies = (
        windows_of(path, "direction=both", *more) for more in ((), (f"data.reversed_features={copies}",))
    )
    for item in range(len(both)):
        sign = -1 if both[item].view == "reverse" else 1
        assert torch.equal(with_copies[item].content, sign * both[item].content)
