"""Clocks that disagree, and features that are not what a configuration says, through `train`, `test` and `merge`."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import CHANNELS, CLASSES, FEATURE_OFFSET, FEATURE_STRIDE, FPS, config_of, feature_data, video_data

import bitad
from bitad.cli import main
from bitad.data.detections import Detections, read_detections, write_detections
from bitad.models.build import build_network
from bitad.runtime.files import read_json
from bitad.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

QUICK = ("training.epochs=2", "training.evaluate_from=1")
ALLOW = "data.allow_clock_mismatch=true"

Fails = Callable[..., str]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The configuration of a data set of features."""
    return feature_data(tmp_path / "data")


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Fails:
    """Runs a command that must end with one line and write nothing; that line."""

    def fail(*arguments: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert err.startswith(f"bitad {arguments[0]}: error: ")
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return fail


@pytest.fixture
def done(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Runs a command that must succeed; what it logs."""

    def succeed(*arguments: object) -> str:
        capsys.readouterr()
        assert main([*map(str, arguments), "--device", "cpu"]) == 0
        return capsys.readouterr().err

    return succeed


def untrained(config_path: Path, *overrides: str) -> Path:
    """A run directory with a network of this configuration that has learnt nothing."""
    config = config_of(config_path, *overrides)
    network = build_network(config, len(CLASSES))
    path = config.run_directory / "best.pt"
    path.parent.mkdir(parents=True)
    rate_hz = FPS / (FEATURE_STRIDE if config.data.videos is None else config.window.stride_frames)
    save_checkpoint(Checkpoint(config, CLASSES, network.state_dict(), epoch=1, rate_hz=rate_hz), path)
    return path.parent


def changed(data: Path, edit: Callable[[dict[str, Any]], object], name: str = "changed.json") -> str:
    """The override that names annotations with something changed in every video."""
    content = read_json(data.parent / "annotations.json")
    for video in content["database"].values():
        edit(video)
    (data.parent / name).write_text(json.dumps(content))
    return f"data.annotations={data.parent / name}"


def cut(data: Path, rows: int = 20) -> str:
    """The override that names features of which only the first rows are there."""
    folder = data.parent / "cut"
    folder.mkdir()
    for path in (data.parent / "features").iterdir():
        np.save(folder / path.name, np.load(path)[:rows])
    return f"data.features={folder}"


def names(data: Path) -> list[str]:
    return list(read_json(data.parent / "annotations.json")["database"])


# Features and annotations.


@pytest.mark.parametrize("factor", [0.1, 0.25, 0.5, 1.25, 2, 4])
def test_a_stride_that_does_not_span_the_videos_is_refused_before_training(
    data: Path, refused: Fails, factor: float
) -> None:
    said = refused("train", data, f"data.feature_stride_frames={factor * FEATURE_STRIDE}")
    assert "the clocks of 7 of 7 videos disagree" in said
    for name in names(data):
        rows = len(np.load(data.parent / "features" / f"{name}.npy"))
        assert f"{name} (features cover" in said
        assert f"{rows} rows x {factor * FEATURE_STRIDE:g} frames / 16 fps" in said
    assert "data.allow_clock_mismatch=true" in said


def test_a_rate_that_is_off_is_refused_and_a_nominal_one_is_not(data: Path, refused: Fails, done: Fails) -> None:
    assert "7 of 7 videos" in refused("train", data, "data.feature_fps=25")
    assert "7 of 7 videos" in refused("train", data, changed(data, lambda video: video.update(fps=13.3)))
    nominal = changed(data, lambda video: video.update(fps=FPS * 1.001))
    assert "disagree" not in done("train", data, nominal, *QUICK, "--until", "1")


def test_one_video_that_is_off_is_named_alone(data: Path, refused: Fails) -> None:
    path = data.parent / "features" / "test_1.npy"
    np.save(path, np.load(path)[:30])
    said = refused("train", data)
    assert "the clocks of 1 of 7 videos disagree" in said
    assert "test_1 (features cover" in said
    assert "train_0" not in said


def test_clocks_that_may_disagree_are_logged_and_the_training_goes_on(data: Path, done: Fails) -> None:
    said = done("train", data, "data.feature_stride_frames=1", ALLOW, *QUICK, "--until", "1")
    assert "the clocks of 7 of 7 videos disagree" in said
    assert "segments outside their training videos are left out, " in said
    assert "train_0 (" in said


def test_a_run_may_be_resumed_with_clocks_allowed_that_were_not_so_before(
    data: Path, refused: Fails, done: Fails
) -> None:
    short = cut(data, 44)
    done("train", data, short, ALLOW, *QUICK, "--until", "1")
    assert "videos disagree" in refused("train", data, short, *QUICK, "--resume")
    assert "videos disagree" in done("train", data, short, ALLOW, *QUICK, "--resume", "--until", "1")


def test_test_features_that_end_early_are_refused(data: Path, refused: Fails, done: Fails) -> None:
    run = untrained(data)
    said = refused("test", run, cut(data))
    assert "the clocks of 3 of 3 videos disagree" in said
    rows = len(np.load(data.parent / "features" / "test_0.npy"))
    seconds = (rows * FEATURE_STRIDE + 2 * FEATURE_OFFSET) / FPS
    assert f"test_0 (features cover {100 * 5 / seconds:.3g} %: 20 rows x 4 frames / 16 fps = 5.00 s" in said
    assert "the clocks of 3 of 3 videos disagree" in done(
        "test", run, f"data.features={data.parent / 'cut'}", ALLOW
    )


def test_clips_that_lose_the_ends_are_no_mismatch(data: Path, done: Fails) -> None:
    run = untrained(data)
    assert "disagree" not in done("test", run)


@pytest.mark.parametrize("layout", ["resized", "whole"])
def test_features_resized_to_one_length_are_no_mismatch(data: Path, done: Fails, layout: str) -> None:
    folder = data.parent / "resized"
    folder.mkdir()
    for path in (data.parent / "features").iterdir():
        rows = np.load(path)
        np.save(folder / path.name, rows[np.linspace(0, len(rows) - 1, 32).round().astype(int)])

    def resize(video: dict[str, Any]) -> None:
        del video["fps"]
        video["frame"] = 32

    own = (f"data.features={folder}", "data.feature_stride_frames=1", "data.feature_offset_frames=0.5")
    said = done("train", data, changed(data, resize), *own, f"window.layout={layout}", *QUICK, "--until", "1")
    assert "disagree" not in said


def test_annotations_that_contradict_themselves_are_refused(data: Path, refused: Fails) -> None:
    said = refused("train", data, changed(data, lambda video: video.update(frame=50)))
    assert "train_0 (50 frames at 16 a second are 3.12 s, its duration is" in said

    def in_frames(video: dict[str, Any]) -> None:
        for row in video["annotations"]:
            row["segment(frames)"] = [2 * FPS * edge for edge in row["segment"]]

    assert "train_0 (segment(frames): " in refused("train", data, changed(data, in_frames))


def test_segments_in_frames_taken_for_seconds_are_refused(data: Path, refused: Fails, done: Fails) -> None:
    def frames_for_seconds(video: dict[str, Any]) -> None:
        for row in video["annotations"]:
            row["segment"] = [FPS * edge for edge in row["segment"]]

    wrong = changed(data, frames_for_seconds)
    said = refused("train", data, wrong)
    assert "segments start after the end of their video; they must be in seconds, and may be in frames" in said
    run = untrained(data)
    assert "start after the end of their video" in refused("test", run, wrong)
    assert "start after the end of their video" in done("test", run, wrong, ALLOW)


def test_a_segment_outside_its_training_video_is_named(data: Path, done: Fails) -> None:
    content = read_json(data.parent / "annotations.json")
    content["database"]["train_1"]["annotations"].append({"segment": [90, 95], "label": "alpha", "label_id": 0})
    (data.parent / "late.json").write_text(json.dumps(content))
    said = done("train", data, f"data.annotations={data.parent / 'late.json'}", *QUICK, "--until", "1")
    assert "segments outside their training videos are left out, 1: train_1 (1)\n" in said


# Videos.


def test_videos_that_do_not_last_as_long_as_annotated_are_refused(
    tmp_path: Path, refused: Fails, done: Fails
) -> None:
    data = video_data(tmp_path / "watched")
    wrong = changed(data, lambda video: video.update(duration=9.6, frame=150))
    said = refused("train", data, wrong)
    assert "the clocks of 3 of 3 videos disagree" in said
    assert "train_0.mp4 lasts 4.69 s, the annotations state 9.60 s" in said
    run = untrained(data)
    assert "test_0.mp4 lasts 4.69 s" in refused("test", run, wrong)
    assert "test_0.mp4 lasts 4.69 s" in done("test", run, wrong, ALLOW)
    assert "disagree" not in done("test", run)


def test_a_video_that_cannot_be_sampled_at_the_trained_rate_is_named(tmp_path: Path, done: Fails) -> None:
    data = video_data(tmp_path / "watched", frames=50)
    run = untrained(data)
    video = data.parent / "videos" / "test_0.mp4"
    assert "another rate" not in done("detect", video, "--checkpoint", run, "--out", tmp_path / "out")
    faster = replace(load_checkpoint(run), rate_hz=60.0)
    save_checkpoint(faster, run / "best.pt")
    said = done("detect", video, "--checkpoint", run, "--out", tmp_path / "again")
    assert "another rate than in training, 1 of 1: test_0 (16 grid steps a second, 60 in training)" in said


# Features of both playing directions.


def reversed_features(data: Path, rows: slice = slice(None)) -> str:
    folder = data.parent / "back"
    folder.mkdir()
    for path in (data.parent / "features").iterdir():
        np.save(folder / path.name, np.load(path)[rows])
    return f"data.reversed_features={folder}"


@pytest.mark.parametrize("experiment", ["direction=reverse", "experiment=1"])
def test_reversed_features_of_other_lengths_are_refused_before_training(
    data: Path, refused: Fails, experiment: str
) -> None:
    said = refused("train", data, experiment, reversed_features(data, slice(-1)))
    assert "rows of train_0" in said
    assert "bitad features --direction both" in said
    assert said.endswith("; and 6 more of 7 videos\n")


# Our own features.


def described(data: Path, direction: str, folder: Path, **settings: Any) -> Path:
    """The features as `bitad features` would have written them: with a ``features.json``."""
    shutil.copytree(data.parent / "features", folder)
    known = {
        "feature_stride_frames": int(FEATURE_STRIDE),
        "feature_offset_frames": FEATURE_OFFSET,
        "feature_channels": CHANNELS,
        "direction": direction,
        "model": "s",
        "clip_frames": 16,
        "window_steps": None,
        "window_overlap": None,
        "pixels": 224,
        "precision": "float32",
        "stored": "float32",
        "checkpoint": "vit.pth",
        "checkpoint_sha256": "0" * 64,
    }
    videos = {}
    for path in folder.glob("*.npy"):
        steps = len(np.load(path))
        frames = round(steps * FEATURE_STRIDE + 2 * FEATURE_OFFSET)
        videos[path.stem] = {"frames": frames, "fps": FPS, "steps": steps}
    content = {"format": "bitad features 1", "settings": known | settings, "videos": videos}
    (folder / "features.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def both(data: Path, tmp_path: Path) -> tuple[str, str]:
    forward, back = (described(data, view, tmp_path / view) for view in ("forward", "reverse"))
    return f"data.features={forward}", f"data.reversed_features={back}"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "data.feature_stride_frames=8",
            "says feature_stride_frames 4, the configuration data.feature_stride_frames=8",
        ),
        (
            "data.feature_offset_frames=0",
            "says feature_offset_frames 6.0, the configuration data.feature_offset_fram",
        ),
        ("data.feature_channels=9", "says feature_channels 8, the configuration data.feature_channels=9"),
    ],
)
def test_what_features_say_of_themselves_must_be_what_the_configuration_says(
    data: Path, both: tuple[str, str], refused: Fails, override: str, said: str
) -> None:
    line = refused("train", data, both[0], override, ALLOW)
    assert "forward/features.json" in line
    assert said in line


def test_our_features_train_in_every_way_that_makes_sense(data: Path, both: tuple[str, str], done: Fails) -> None:
    forward, back = both
    alone = back.replace("reversed_features", "features")
    for i, overrides in enumerate(
        (
            (forward,),
            (forward, back, "direction=reverse"),
            (forward, "direction=reverse"),
            (alone, "direction=reverse"),
            (forward, back, "experiment=1"),
        )
    ):
        assert "disagree" not in done("train", data, *overrides, f"name=ok{i}", *QUICK, "--until", "1")


@pytest.mark.parametrize("view", ["direction=forward", "direction=reverse", "experiment=1"])
def test_swapped_directions_are_refused(data: Path, both: tuple[str, str], refused: Fails, view: str) -> None:
    forward, back = (override.partition("=")[2] for override in both)
    said = refused("train", data, view, f"data.features={back}", f"data.reversed_features={forward}")
    assert f"{back}/features.json says direction reverse, but data.features must hold features of forward" in said
    assert f"{forward}/features.json says direction forward, but data.reversed_features must hold" in said


@pytest.mark.parametrize("view", ["direction=forward", "experiment=1"])
def test_features_of_reversed_playback_are_not_shown_as_those_of_forward_playback(
    data: Path, both: tuple[str, str], refused: Fails, view: str
) -> None:
    back = both[1].partition("=")[2]
    assert "says direction reverse, but data.features" in refused("train", data, view, f"data.features={back}")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"checkpoint": "other.pth", "checkpoint_sha256": "1" * 64},
            "checkpoint was vit.pth (000000000000), is other",
        ),
        ({"pixels": 160}, "pixels was 224, is 160"),
        ({"clip_frames": 32}, "clip_frames was 16, is 32"),
    ],
)
def test_the_two_folders_of_a_pair_must_be_of_one_kind(
    data: Path, tmp_path: Path, both: tuple[str, str], refused: Fails, settings: dict[str, Any], said: str
) -> None:
    other = described(data, "reverse", tmp_path / "other", **settings)
    line = refused("train", data, "experiment=1", both[0], f"data.reversed_features={other}")
    assert said in line
    assert "forward/features.json and " in line


def test_how_rows_are_rounded_may_differ(data: Path, tmp_path: Path, both: tuple[str, str], done: Fails) -> None:
    other = described(data, "reverse", tmp_path / "other", stored="float16", precision="bfloat16")
    done("train", data, "experiment=1", both[0], f"data.reversed_features={other}", *QUICK, "--until", "1")


def test_our_features_know_their_videos(data: Path, tmp_path: Path, refused: Fails) -> None:
    folder = described(data, "forward", tmp_path / "own")
    own = f"data.features={folder}"
    # By the annotations alone, features of 25 frames a second could well be of 24.
    content = read_json(folder / "features.json")
    for video in content["videos"].values():
        video["fps"] = FPS * 1.04
    (folder / "features.json").write_text(json.dumps(content))
    said = refused("train", data, own)
    assert "train_0 (features of 16.64 frames a second by features.json, placed in time as of 16)" in said
    shutil.rmtree(folder)
    described(data, "forward", folder)
    rows = np.load(folder / "train_0.npy")
    np.save(folder / "train_0.npy", rows[:-2])  # within the tolerance of what clips lose
    assert f"train_0 ({len(rows) - 2} rows of features, features.json says {len(rows)})" in refused(
        "train", data, own
    )


def test_the_videos_of_our_features_must_be_those_that_are_annotated(
    data: Path, tmp_path: Path, refused: Fails, done: Fails
) -> None:
    """Where no frame rate is stated, it is frames over duration, which may count sound after the last picture."""

    def with_frames(factor: float) -> Callable[[dict[str, Any]], None]:
        def edit(video: dict[str, Any]) -> None:
            del video["fps"]
            video["frame"] = round(factor * FPS * video["duration"])

        return edit

    own = f"data.features={described(data, 'forward', tmp_path / 'own')}"
    assert "disagree" not in done("train", data, own, changed(data, with_frames(0.97)), *QUICK, "--until", "1")
    said = refused("train", data, own, changed(data, with_frames(0.9)), "name=other")
    assert "train_0 (features.json says that it has " in said
    assert " frames, the annotations state " in said


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("settings", "feature_stride_frames", "4"),
        ("settings", "direction", "backward"),
        ("v", "fps", math.nan),
        ("v", "steps", True),
        ("v", "frames", 0),
        ("v", "source", "film.mp4"),
    ],
)
def test_a_features_json_with_a_value_that_cannot_be_is_refused(
    data: Path, tmp_path: Path, refused: Fails, section: str, key: str, value: object
) -> None:
    folder = described(data, "forward", tmp_path / "forward")
    content = json.loads((folder / "features.json").read_text())
    name, *_ = content["videos"]
    (content["settings"] if section == "settings" else content["videos"][name])[key] = value
    (folder / "features.json").write_text(json.dumps(content))
    line = refused("train", data, f"data.features={folder}")
    place = "settings" if section == "settings" else f"videos.{name}"
    assert f"{folder / 'features.json'} is damaged: {place}.{key}" in line


def test_a_features_json_of_another_project_is_no_matter(data: Path, done: Fails) -> None:
    (data.parent / "features" / "features.json").write_text('{"extractor": "i3d"}')
    done("train", data, *QUICK, "--until", "1")


def test_features_of_another_network_than_trained_on_are_refused(
    data: Path, tmp_path: Path, both: tuple[str, str], refused: Fails, done: Fails
) -> None:
    run = untrained(data, both[0])
    other = described(data, "forward", tmp_path / "other", checkpoint="b.pth", checkpoint_sha256="1" * 64)
    said = refused("test", run, f"data.features={other}")
    assert f"data.features={other} holds other features than in training" in said
    assert "checkpoint was vit.pth (000000000000), is b.pth (111111111111)" in said
    copied = described(data, "forward", tmp_path / "copied")
    done("test", run, f"data.features={copied}")


# A run and how it is tested.


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("direction=reverse",), "direction was forward, is reverse"),
        (("data.feature_stride_frames=8", ALLOW), "data.feature_stride_frames was 4.0, is 8.0"),
        (("data.feature_offset_frames=0",), "data.feature_offset_frames was 6.0, is 0.0"),
        (("data.feature_fps=25",), "data.feature_fps was None, is 25.0"),
        (("window.layout=resized",), "window.layout was sliding, is resized"),
        (("model.padding=reference",), "model.padding was strict, is reference"),
        (("model.attention_window=9",), "model.attention_window was None, is 9"),
        (("experiment=1",), "experiment was baseline, is 1"),
    ],
)
def test_a_run_is_not_tested_on_what_it_was_not_trained_on(
    data: Path, refused: Fails, overrides: tuple[str, ...], said: str
) -> None:
    run = untrained(data)
    line = refused("test", run, *overrides)
    assert f"{run / 'best.pt'} was trained otherwise: " in line
    assert said in line


def test_all_changes_are_named_at_once(data: Path, refused: Fails) -> None:
    line = refused("test", untrained(data), "direction=reverse", "data.feature_stride_frames=8")
    assert "data.feature_stride_frames was 4.0, is 8.0; direction was forward, is reverse" in line


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("window.stride_frames=4", "window.stride_frames was 2, is 4"),
        ("window.frames_per_step=2", "window.frames_per_step was 1, is 2"),
        ("model.backbone.pixels=48", "model.backbone.pixels was 32, is 48"),
    ],
)
def test_a_run_on_videos_is_tested_at_its_own_strides_and_pixels(
    tmp_path: Path, refused: Fails, override: str, said: str
) -> None:
    assert said in refused("test", untrained(video_data(tmp_path / "watched", frames=50)), override)


def test_what_does_not_change_what_is_seen_may_be_changed(data: Path, done: Fails) -> None:
    done(
        "test",
        untrained(data),
        "data.test_subset=training",
        f"data.features={shutil.copytree(data.parent / 'features', data.parent / 'copied')}",
        "window.steps=64",
        "window.overlap=0.5",
        "model.drop_path=0.3",
        "training.lr=1",
        "training.workers=0",
        "test.batch=1",
        "test.nms.sigma=0.5",
        "threads=1",
        "seed=3",
    )


def test_reversed_features_may_not_come_or_go(data: Path, refused: Fails) -> None:
    run, back = untrained(data, "direction=reverse"), reversed_features(data)
    assert f"data.reversed_features was None, is {back.partition('=')[2]}" in refused("test", run, back)


# Detections.


def test_detections_of_videos_of_another_length_are_refused(data: Path, refused: Fails, done: Fails) -> None:
    run, gt = untrained(data), data.parent / "annotations.json"
    done("test", run)
    found = read_detections(run / "test" / "detections.json")
    other = data.parent / "other.json"

    def lasting(factor: float) -> Detections:
        return replace(found, durations_s={name: factor * s for name, s in found.durations_s.items()})

    evaluate = ("evaluate", "--ground-truth", gt, "--detections", other, "--subset", "validation")
    merge = ("merge", other, other, "--reverse-b", "--annotations", gt, "--out", data.parent / "merged.json")
    write_detections(lasting(1.25), other)
    for command in (evaluate, merge):
        said = refused(*command)
        assert "the clocks of 3 of 3 videos disagree" in said
        assert (
            f"test_0 ({1.25 * found.durations_s['test_0']:g} s there, {found.durations_s['test_0']:g} s annot"
            in said
        )
    with pytest.raises(ValueError, match="the clocks of 3 of 3 videos disagree"):
        bitad.bootstrap(bitad.read_annotations(gt), [lasting(1.25)], subset="validation")
    allowed = "--allow-clock-mismatch", "--bootstrap", "100"
    assert main([*map(str, evaluate), *allowed]) == 0
    write_detections(lasting(1.005), other)
    assert main([*map(str, evaluate)]) == 0
