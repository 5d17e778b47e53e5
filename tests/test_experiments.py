"""Every experiment is built, trained, kept, gone on with and tested; what it cannot start from is refused."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import CLASSES, config_of, feature_data, video_data
from runs import ALONE, assert_same_run, baseline, both_baselines, records

from bitad.cli import main
from bitad.config.names import EXPERIMENTS
from bitad.data.annotations import AnnotatedVideo
from bitad.data.detections import Detections, read_detections
from bitad.data.formats.database import read_annotations
from bitad.data.sources import Source
from bitad.evaluation.mean_average_precision import evaluate
from bitad.evaluation.operating_points import OperatingPoints
from bitad.inference.detect import detect, run_test
from bitad.inference.merge import merge
from bitad.models.network import Pair
from bitad.timeline import Grid
from bitad.training.trainer import Trainer
from bitad.video.reverse import reverse_folder
from bitad.weights.checkpoint import load_checkpoint, save_checkpoint

TWO_FORWARD = "pair.second=forward"
# An epoch is one step of all training videos.
TWO_STEPS = ("training.epochs=2", "training.evaluate_every=2", "test.candidates=40")
BASES = ("forward basis", "reverse basis")


pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Data:
    """A data set, and the overrides that name its two baselines: of both directions, and both forward."""

    path: Path
    init: tuple[str, str]
    init_forward: tuple[str, str]

    def overrides(self, experiment: str, *more: str) -> tuple[str, ...]:
        """Those that make an experiment of the data set's configuration."""
        if EXPERIMENTS[experiment].starts_from == "backbone":
            return (f"experiment={experiment}", *more)
        return (f"experiment={experiment}", *(self.init_forward if TWO_FORWARD in more else self.init), *more)


def with_baselines(path: Path) -> Data:
    forward, backward = both_baselines(path)
    return Data(path, (forward, backward), (forward, f"init.reverse={baseline(path, 'seed=1')}"))


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return with_baselines(feature_data(tmp_path_factory.mktemp("features") / "data"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return with_baselines(video_data(tmp_path_factory.mktemp("videos") / "data"))


@pytest.fixture
def data(request: pytest.FixtureRequest) -> Data:
    """The data set of the parameter's name."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Data)
    return found


# Building, training, keeping, going on, testing.

RUNS = [
    ("features", "1", ()),
    ("features", "1s", ()),
    ("features", "1s", ("pair.direction_embedding=true", "data.reversal={alpha: beta, gamma: unknown}")),
    ("videos", "1s", ()),
    ("features", "1-1", ()),
    ("features", "1x", ()),
    ("videos", "2", ()),
    ("videos", "2x", ("pair.train_detector=true",)),
    ("features", "3-1", ()),
    ("features", "3-2", ()),
    ("features", "3-3", ()),
    ("videos", "3-1", ()),
    ("features", "3-1", (TWO_FORWARD,)),
]


def test_every_experiment_of_two_views_is_run_below() -> None:
    two_views = {name for name, one in EXPERIMENTS.items() if one.networks == 2 or one.shared}
    assert {experiment for _, experiment, _ in RUNS} == two_views


@pytest.mark.parametrize(("data", "experiment", "options"), RUNS, indirect=["data"])
def test_an_experiment_trains_goes_on_to_the_bit_and_is_tested_in_three_ways(
    data: Data, experiment: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    batch = "training.batch=4" if data.path.parent.joinpath("features").exists() else "training.batch=2"
    overrides = (*data.overrides(experiment, *options), *TWO_STEPS, batch, "model.dropout=0.1")
    whole, parts = (config_of(data.path, *overrides, f"output={tmp_path / name}") for name in ("whole", "parts"))
    Trainer(whole, ALONE).run()
    for stop in (1, None):
        torch.manual_seed(99)  # a new process knows nothing of the old one's random numbers
        Trainer(parts, ALONE, resume=stop is None).run(until=stop)
    assert_same_run(whole.run_directory, parts.run_directory)
    saved = load_checkpoint(whole.run_directory / "last.pt")
    assert saved.training is not None
    assert saved.training["step"] == 2
    names = {"first", "second"} if TWO_FORWARD in options else {"forward", "reverse"}
    assert saved.training["learners"].keys() == ({"shared"} if EXPERIMENTS[experiment].shared else names)
    (first,) = records(whole.run_directory, kind="training")
    assert first["losses"].keys() == names
    assert first["loss"] == pytest.approx(sum(first["losses"].values()) + first.get("agreement", 0), rel=1e-5)
    assert ("agreement" in first) == EXPERIMENTS[experiment].agreement
    assert math.isfinite(first["loss"])

    evaluations = run_test(saved, tmp_path / "test", ALONE)
    two_forward = TWO_FORWARD in options
    bases = ("first network", "second network") if two_forward else BASES
    assert list(evaluations) == [*bases, "merged"]
    files = {file.name for file in (tmp_path / "test").iterdir()}
    second = "second" if two_forward else "reverse"
    assert files == {"detections.json", "detections.forward.json", f"detections.{second}.json", "metrics.json"}
    figures = json.loads((tmp_path / "test" / "metrics.json").read_text())
    assert figures == {name: evaluation.to_json() for name, evaluation in evaluations.items()}
    merged, forward, reverse = (
        read_detections(tmp_path / "test" / f"detections{name}.json") for name in ("", ".forward", f".{second}")
    )
    assert (merged.basis, forward.basis) == ("forward", "forward")
    assert reverse.basis == ("forward" if two_forward else "reverse")
    assert len(forward) > 0
    assert len(reverse) > 0
    reverse = reverse.forward()
    again = merge(forward, reverse, method=whole.test.merge, settings=whole.test.nms)
    assert_close(merged, again)
    truth = read_annotations(whole.data.annotations, classes=whole.data.classes).subset("validation")
    for found, evaluation in zip((forward, reverse, merged), evaluations.values(), strict=True):
        average = evaluate(truth, found, tiou=whole.test.tiou).average_map
        assert average == pytest.approx(evaluation.average_map, abs=1e-6)
    # Each file has the scores of best F1 of its own detections, the checkpoint the merged ones' curve.
    for found in (forward, reverse, merged):
        assert found.min_scores == OperatingPoints.of(truth, found).scores(found.classes)
    assert saved.operating_points is not None
    assert OperatingPoints.from_json(saved.operating_points).scores(merged.classes) == merged.min_scores
    # The training has tested the same averaged weights.
    (evaluated,) = records(whole.run_directory, kind="evaluation")
    assert evaluated["average_map"] == evaluations["merged"].average_map
    assert evaluated["average_map_per_basis"] == {name: evaluations[name].average_map for name in bases}


def assert_close(one: Detections, other: Detections) -> None:
    """The same detections, but for rounding in a file and the order of equal scores."""
    assert (one.videos, len(one)) == (other.videos, len(other))
    for name in one.videos:
        a, b = one.of_video(name), other.of_video(name)
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-6)
        for found in (a, b):
            assert (np.diff(found.scores) <= 0).all()
        in_order = [np.lexsort((d.segments[:, 0].round(3), d.labels, -d.scores.round(4))) for d in (a, b)]
        np.testing.assert_allclose(a.segments[in_order[0]], b.segments[in_order[1]], atol=1e-4)


def test_variants_of_an_experiment_have_run_directories_of_their_own(features: Data) -> None:
    runs = [
        config_of(features.path, *features.overrides(experiment)) for experiment in ("baseline", "1", "1-1", "3-2")
    ]
    options = ((), (TWO_FORWARD,), ("pair.align=naive",), ("pair.fusion_init=random",), ("seed=1",))
    runs += [config_of(features.path, *features.overrides("3-1", *more)) for more in options]
    assert len({run.run_directory for run in runs}) == len(runs)


# A window is read once.


class Counting:
    """A source that remembers what was read from it."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.has_reversed_copies, self.repeated = source.has_reversed_copies, 0
        self.windows: list[tuple[str, float, int, str]] = []

    def grid(self, video: AnnotatedVideo) -> Grid:
        return self.source.grid(video)

    def read(
        self, video: AnnotatedVideo, grid: Grid, *, view: str = "forward", margin: float = 1.0
    ) -> torch.Tensor:
        self.windows.append((video.name, grid.first_frame, grid.steps, view))
        return self.source.read(video, grid, view=view, margin=margin)


@pytest.mark.parametrize(
    ("data", "experiment", "options"),
    [
        ("features", "1-1", ()),
        ("features", "3-3", ()),
        ("features", "3-3", (TWO_FORWARD,)),
        ("videos", "3-3", ()),
        ("videos", "2x", ()),
        ("videos", "1", ("data.reversed_videos=reversed",)),
        ("features", "1s", ()),
        ("videos", "1s", ("data.reversed_videos=reversed",)),
    ],
    indirect=["data"],
)
def test_a_window_of_a_pair_is_read_once_in_training_and_in_testing(
    data: Data, experiment: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    with_copies = any("reversed" in option for option in options)
    if with_copies:
        reverse_folder(data.path.parent / "videos", tmp_path / "reversed", workers=0)
        options = (f"data.reversed_videos={tmp_path / 'reversed'}",)
    untested = ("training.windows_per_video=2", "training.evaluate_from=1", f"output={tmp_path}")
    config = config_of(data.path, *data.overrides(experiment, *options), *untested)
    trainer = Trainer(config, ALONE)
    source = Counting(trainer.source)
    trainer.windows.source = source
    trainer.run(until=1)
    views = ["forward", "reverse"] if with_copies else ["forward"]  # each file of a pair once
    assert len(source.windows) == len(trainer.windows) * len(views)
    source.windows.clear()
    detect(trainer.network.eval(), trainer.evaluation_annotations, source, config, ALONE)
    windows = [window[:3] for window in source.windows]
    assert len(windows) == len(set(windows)) * len(views) > 0
    assert sorted({window[3] for window in source.windows}) == views


# What cannot be started from.


def refusal(data: Data, experiment: str, *overrides: str, kind: type[Exception] = ValueError) -> str:
    """The one line with which a run is refused before it begins."""
    config = config_of(data.path, *data.overrides(experiment, *overrides), "name=refused")
    with pytest.raises(kind) as refused:
        Trainer(config, ALONE)
    message = str(refused.value)
    assert "\n" not in message
    assert not config.run_directory.exists()
    return message


@pytest.mark.parametrize("name", ["forward", "reverse"])
@pytest.mark.parametrize("experiment", ["1-1", "3-1"])
def test_a_baseline_that_is_not_there_is_refused(
    features: Data, experiment: str, name: str, tmp_path: Path
) -> None:
    nowhere = tmp_path / "nowhere"
    message = refusal(features, experiment, f"init.{name}={nowhere}", kind=FileNotFoundError)
    assert message.startswith(f"init.{name}: no weights at {nowhere}; give a run directory or a file of weights, ")
    message = refusal(features, experiment, f"init.{name}={tmp_path}", kind=FileNotFoundError)
    assert f"init.{name}: run {tmp_path} has no best.pt or last.pt yet" in message


def test_what_is_no_checkpoint_is_refused(features: Data, tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    message = refusal(features, "1-1", f"init.reverse={tmp_path / 'text.pt'}")
    assert message.startswith(f"init.reverse: {tmp_path / 'text.pt'} is not a readable checkpoint")
    message = refusal(features, "3-1", f"init.forward={tmp_path / 'other.pt'}")
    assert message.startswith(f"init.forward: {tmp_path / 'other.pt'}: weights of no known project")


def test_a_run_of_two_networks_is_no_baseline(features: Data, tmp_path: Path) -> None:
    config = config_of(features.path, *features.overrides("1"), "training.evaluate_from=1", f"output={tmp_path}")
    Trainer(config, ALONE).run(until=1)
    message = refusal(features, "1-1", f"init.forward={config.run_directory}")
    assert f"init.forward={config.run_directory} does not fit this run" in message
    assert "it is a run of experiment 1, give one of the baseline" in message


def test_baselines_that_were_swapped_are_refused(features: Data) -> None:
    forward, backward = (override.partition("=")[2] for override in features.init)
    message = refusal(features, "3-1", f"init.forward={backward}", f"init.reverse={forward}")
    assert f"init.forward={backward}" in message
    assert "it was trained with direction=reverse, this network needs forward" in message
    message = refusal(features, "3-1", f"init.reverse={forward}")
    assert f"init.reverse={forward}" in message
    assert "it was trained with direction=forward, this network needs reverse" in message


def test_the_control_wants_two_forward_baselines(features: Data) -> None:
    message = refusal(features, "3-1", TWO_FORWARD, features.init[1])
    assert "init.reverse=" in message
    assert "it was trained with direction=reverse, this network needs forward" in message


@pytest.mark.parametrize("name", ["forward", "reverse"])
def test_a_baseline_of_other_classes_is_refused_with_both_lists(features: Data, name: str, tmp_path: Path) -> None:
    run = Path(features.init[name == "reverse"].partition("=")[2])
    save_checkpoint(replace(load_checkpoint(run), classes=("alpha", "gamma", "beta")), tmp_path / "other.pt")
    message = refusal(features, "1-1", f"init.{name}={tmp_path / 'other.pt'}")
    assert f"init.{name}={tmp_path / 'other.pt'} does not fit this run" in message
    assert f"its classes are alpha, gamma, beta, here {', '.join(CLASSES)}" in message


@pytest.mark.parametrize(
    ("data", "override", "said"),
    [
        ("features", "window.steps=64", "window.steps is 32 there and 64 here"),
        ("features", "data.feature_stride_frames=8", "data.feature_stride_frames is 4.0 there and 8.0 here"),
        ("features", "data.feature_offset_frames=2", "data.feature_offset_frames is 6.0 there and 2.0 here"),
        ("features", "model.channels=8", "model.channels is 16 there and 8 here"),
        ("features", "model.levels=2", "model.levels is 3 there and 2 here"),
        ("features", "model.padding=reference", "model.padding is strict there and reference here"),
        ("videos", "window.steps=48", "window.steps is 32 there and 48 here"),
        ("videos", "window.stride_frames=1", "window.stride_frames is 2 there and 1 here"),
        (
            "videos",
            "window={stride_frames: 4, steps_per_second: 8}",
            "window.steps_per_second is None there and 8.0 here",
        ),
        ("videos", "model.backbone.pixels=16", "model.backbone.pixels is 32 there and 16 here"),
    ],
    indirect=["data"],
)
@pytest.mark.parametrize("experiment", ["1-1", "3-1"])
def test_baselines_that_saw_other_windows_or_are_another_network_are_refused_with_both_values(
    data: Data, experiment: str, override: str, said: str
) -> None:
    message = refusal(data, experiment, override, "data.allow_clock_mismatch=true")
    assert data.init[0] in message
    assert said in message


def test_a_baseline_may_be_of_another_window_than_its_twin_and_is_then_named(features: Data) -> None:
    longer = baseline(features.path, "direction=reverse", "window.steps=64", "name=longer")
    message = refusal(features, "3-1", f"init.reverse={longer}")
    assert message.startswith(f"init.reverse={longer} does not fit this run: window.steps is 64 there and 32 here")


def test_a_baseline_on_videos_is_none_for_features(features: Data, videos: Data) -> None:
    message = refusal(features, "1-1", *videos.init)
    assert "data.feature_channels is None there and 8 here" in message
    assert "model.backbone is" in message


def test_how_a_baseline_was_trained_may_differ(features: Data, tmp_path: Path) -> None:
    other = ("training.lr=0.5", "training.batch=1", "model.drop_path=0.3", "model.dropout=0.2", "test.merge=wsf")
    trainer = Trainer(config_of(features.path, *features.overrides("3-1", *other), f"output={tmp_path}"), ALONE)
    assert isinstance(trainer.network, Pair)


# On the command line.


def test_the_command_refuses_in_one_line_what_cannot_start(
    features: Data, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    forward, backward = features.init
    cases = {
        "give init.forward and init.reverse": ("experiment=3-1", forward),
        "leave out init.forward and init.reverse": ("experiment=1", forward, backward),
        "init.reverse: no weights at": ("experiment=1-1", forward, f"init.reverse={tmp_path / 'none'}"),
        "but features have no backbone": ("experiment=2", forward, backward),
        "unknown experiment '3-4'": ("experiment=3-4", forward, backward),
    }
    for said, overrides in cases.items():
        assert main(["train", str(features.path), "name=refused", *overrides]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert err.startswith("bitad train: error: ")
        assert said in err
    assert list(features.path.parent.glob("runs/refused*")) == []


@pytest.mark.parametrize("experiment", ["3-1", "3-3"])
def test_a_fusion_is_tested_with_windows_of_the_training_length_only(
    features: Data, experiment: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    short = ("training.epochs=2", "training.evaluate_from=1", f"output={tmp_path}")
    command = [*features.overrides(experiment), *short]
    assert main(["train", str(features.path), *command, "--until", "1", "--device", "cpu"]) == 0
    run = config_of(features.path, *command).run_directory
    capsys.readouterr()
    assert main(["test", str(run), "window.steps=64"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"bitad test: error: {run / 'last.pt'} was trained otherwise: window.steps was 32, is 64; "
        "leave these keys out, or train another run\n"
    )
    assert not (run / "test").exists()
    assert main(["test", str(run), "window.overlap=0.5", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in (*BASES, "merged"))


def test_two_networks_without_a_fusion_may_be_tested_with_other_windows(features: Data, tmp_path: Path) -> None:
    short = ("training.epochs=2", "training.evaluate_from=1", f"output={tmp_path}")
    config = config_of(features.path, *features.overrides("1-1"), *short)
    Trainer(config, ALONE).run(until=1)
    longer = load_checkpoint(config.run_directory).changed(["window.steps=64"])
    assert len(run_test(longer, tmp_path / "test", ALONE)) == 3


def test_runs_are_reported_side_by_side_with_what_reversed_playback_makes_of_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = feature_data(tmp_path / "data")
    common = (f"output={tmp_path / 'runs'}", "training.epochs=1")
    singles = [config_of(path, *common, f"direction={view}") for view in ("forward", "reverse")]
    for config in singles:
        Trainer(config, ALONE).run()
    start = [
        f"init.{key}={config.run_directory}" for key, config in zip(("forward", "reverse"), singles, strict=True)
    ]
    pair = config_of(path, *common, "experiment=3-3", *start)
    Trainer(pair, ALONE).run()
    runs = [str(config.run_directory) for config in (*singles, pair)]
    assert main(["report", *runs, "--sensitivity", "--out", str(tmp_path / "report")]) == 0
    said = capsys.readouterr().out
    for words in (
        "late fusion F + B, product",
        "3-3, reverse basis",
        "Training losses of two networks",
        "F then predicts",
    ):
        assert words in said
    assert {p.name for p in (tmp_path / "report").iterdir()} >= {"index.html", "results.json", "sensitivity.png"}
    assert "difference to the baselines" in (tmp_path / "report" / "results.md").read_text()
    assert main(["report", runs[0], "--sensitivity", "--out", str(tmp_path / "none")]) == 1
    assert "direction sensitivity needs runs of F and of B" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
