"""Bad input through the command line: one line with the value and the remedy, status 1, and nothing half-written.

What is not here: the content of video files (tests/video, tests/test_bad_videos.py); runs that were
killed (tests/training/test_killed.py); thresholds, devices, runs that exist and detections that cannot be merged
(tests/test_cli.py); what the annotation commands' own options refuse (tests/data/test_annotation_convert.py).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from builders import feature_data, video_data
from full_disk import files_of_at_most
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import opentad_file

from bitad.cli import main
from bitad.config.loading import load_config
from bitad.data.detections import read_detections
from bitad.data.formats.annotations import FORMATS
from bitad.runtime.files import read_json
from bitad.weights.checkpoint import load_checkpoint
from bitad.weights.loading import read_complete

Refused = Callable[..., str]

QUICK = ("training.epochs=2", "training.evaluate_from=1")


@dataclass(frozen=True)
class World:
    """A data set with a run stopped after its first epoch, and a finished run that watches videos."""

    root: Path
    config: Path
    truth: Path
    run: Path
    video: Path
    video_config: Path
    video_run: Path

    @property
    def found(self) -> Path:
        return self.video_run / "detections.json"


@pytest.fixture(autouse=True)
def threads_restored() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    config, video_config = feature_data(root / "data"), video_data(root / "watched")
    assert main(["train", str(config), *QUICK, "--until", "1", "--device", "cpu"]) == 0
    assert main(["train", str(video_config), "training.epochs=1", "--device", "cpu"]) == 0
    run, video_run = (root / name / "runs" / "tiny-forward-seed0" for name in ("data", "watched"))
    truth, video = root / "data" / "annotations.json", root / "watched" / "videos" / "train_0.mp4"
    return World(root, config, truth, run, video, video_config, video_run)


def contents(*folders: Path) -> dict[Path, tuple[int, int]]:
    """Every file below, hidden ones too, with what changes when it is written."""
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {path: ((stat := path.stat()).st_size, stat.st_mtime_ns) for path in files}


@pytest.fixture
def refused(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must fail with status 1 and one line, and write nothing; that line."""

    def fail(*arguments: object, writes: bool = False) -> str:
        before = contents(world.root, tmp_path)
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        *log, line = err.splitlines()
        start = f"bitad {arguments[0]}: error: "
        assert line.startswith(start)
        assert "--debug" not in line, "an error that nobody foresaw"
        assert not any("error" in line for line in log)
        if not writes:
            assert log == []
            assert contents(world.root, tmp_path) == before
        assert [path.name for path in contents(world.root, tmp_path) if path.name.endswith(".tmp")] == []
        return line.removeprefix(start)

    return fail


def changed(world: World, folder: Path, edit: Callable[[dict[str, Any]], object], name: str = "bad.json") -> Path:
    """The annotations with something changed in their videos."""
    content = read_json(world.truth)
    edit(content["database"])
    (folder / name).write_text(json.dumps(content))
    return folder / name


# No such file.

MISSING = {
    "train-annotations": (
        "train {config} name=x data.annotations={none}.json",
        "correct data.annotations",
    ),
    "train-classes": ("train {config} name=x data.classes={none}.txt", "correct data.classes"),
    "train-features": (
        "train {config} name=x data.features={none}",
        "name the right one, or make it: bitad features",
    ),
    "train-init": (
        "train {config} experiment=1-1 init.forward={none} init.reverse={none}",
        "give a run directory",
    ),
    "train-weights": (
        "train {watched} name=x model.backbone.weights={none}.pth",
        "give a run directory or a file",
    ),
    "train-resume": ("train {config} name=none --resume", "start it without --resume"),
    "test-run": ("test {none}", "give a run directory or a file"),
    "test-config": ("test {run} --config {none}", "neither a file nor a preset"),
    "test-annotations": ("test {run} data.annotations={none}.json", "correct data.annotations"),
    "test-classes": ("test {run} data.classes={none}.txt", "no such file"),
    "test-features": ("test {run} data.features={none}", "name the right one"),
    "detect-video": ("detect {none}.mp4 --checkpoint {video_run} --out {none}", "no such"),
    "detect-checkpoint": ("detect {video} --checkpoint {none} --out {none}-too", "give a run directory or a file"),
    "features-video": ("features {none}.mp4 --checkpoint {video_run} --out {none}", "no such video or folder"),
    "features-checkpoint": ("features {video} --checkpoint {none} --out {none}", "none"),
    "weights-inspect": ("weights inspect {none}.pt", "give a run directory or a file"),
    "weights-convert": ("weights convert {none}.pt {none}.safetensors", "give a run directory or a file"),
    "weights-push": ("weights push {none} owner/name", "give a run directory or a file"),
    "track": ("track {none} --to tensorboard", "give a folder that `bitad train` wrote"),
    "annotations-check": ("annotations check {none}.json", "no such file or folder of annotations"),
    "annotations-classes": ("annotations check {truth} --classes {none}.txt", "a name a line"),
    "annotations-videos": ("annotations check {truth} --videos {none}", "no such folder of videos"),
    "annotations-features": ("annotations check {truth} --features {none}", "no such folder or .npz file"),
    "annotations-info": ("annotations check {truth} --video-info {none}.json", "check its name"),
    "annotations-convert": (
        "annotations convert {none}.json {none}-too.json",
        "no such file or folder of annotations",
    ),
    "convert-info": ("annotations convert {truth} {none}.json --video-info {none}-too.json", "check its name"),
    "reverse": ("reverse {none}.json {none}-too.json", "check its name"),
    "merge": ("merge {found} {none}.json --out {none}-too.json", "check its name"),
    "evaluate-truth": ("evaluate --ground-truth {none}.json --detections {found} --subset x", "check its name"),
    "evaluate-detections": (
        "evaluate --ground-truth {truth} --detections {none}.json --subset validation",
        "check its",
    ),
    "report": ("report {run} {none} --out {none}-too", "give a folder that `bitad train` wrote"),
}


@pytest.mark.parametrize("case", MISSING)
def test_a_missing_file_is_named_with_what_to_do(
    world: World, tmp_path: Path, refused: Refused, case: str
) -> None:
    places = {name: getattr(world, name) for name in ("config", "truth", "run", "video", "video_run", "found")}
    command, remedy = MISSING[case]
    words = command.format(**places, watched=world.video_config, none=tmp_path / "none").split()
    said = refused(*words)
    assert "none" in said
    assert remedy in said


# Ground truth.


def readers(world: World, truth: Path, out: Path) -> list[tuple[object, ...]]:
    """Every command that reads ground truth and does not report on it."""
    return [
        ("train", world.config, f"data.annotations={truth}", "name=never"),
        ("test", world.run, f"data.annotations={truth}", "--out", out),
        ("evaluate", "--ground-truth", truth, "--detections", world.found, "--subset", "validation"),
        ("annotations", "convert", truth, out / "converted.json"),
        ("reverse", truth, out / "reversed.json"),
        ("merge", world.found, world.found, "--reverse-b", "--annotations", truth, "--out", out / "merged.json"),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "not a JSON file"), ("", "not a JSON file"), ("hello", "not a JSON file"), ("[1, 2]", "annotation")],
)
def test_ground_truth_that_is_not_json_is_refused_everywhere(
    world: World, tmp_path: Path, refused: Refused, text: str, said: str
) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text(text)
    for command in [*readers(world, bad, tmp_path / "out"), ("annotations", "check", bad)]:
        line = refused(*command)
        assert str(bad) in line
        assert said in line


def _first(videos: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = videos["train_1"]["annotations"][0]
    return row


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda videos: videos["train_1"].pop("subset"), '"subset" is missing'),
        (lambda videos: _first(videos).pop("label"), "label None is not a name"),
        (lambda videos: _first(videos).pop("segment"), "segment None is not"),
        (
            lambda videos: _first(videos).update(segment=[float("nan"), 2.0]),
            "segment [nan, 2.0] is not [start, end]",
        ),
        (lambda videos: _first(videos).update(segment=["a", 2.0]), "segment ['a', 2.0] is not [start, end]"),
        (lambda videos: videos["train_1"].update(duration=float("nan")), "duration nan is not a positive number"),
    ],
    ids=["subset", "label", "segment", "nan", "word", "nan-duration"],
)
def test_ground_truth_that_lacks_something_or_is_no_number_is_refused_everywhere(
    world: World,
    tmp_path: Path,
    refused: Refused,
    capsys: pytest.CaptureFixture[str],
    edit: Callable[[dict[str, Any]], object],
    said: str,
) -> None:
    bad = changed(world, tmp_path, edit)
    for command in readers(world, bad, tmp_path / "out"):
        line = refused(*command)
        assert f"{bad}: video train_1: " in line
        assert said in line
        assert "bitad annotations check" in line
    assert main(["annotations", "check", str(bad)]) == 1
    out, err = capsys.readouterr()
    assert f"train_1: unreadable: {said}" in out or said in out
    assert err == ""


def test_ground_truth_without_a_duration_is_refused_where_it_is_needed(
    world: World, tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = changed(world, tmp_path, lambda videos: videos["train_1"].pop("duration"))
    for command in readers(world, bad, tmp_path / "out"):
        if command[0] != "evaluate":
            line = refused(*command)
            assert re.search(f"{bad}: .*(duration of train_1|train_1: its duration) is not ", line)
            assert "--video-info" in line
    evaluate = ("evaluate", "--ground-truth", bad, "--detections", world.found, "--subset", "validation")
    assert main([*map(str, evaluate), "--allow-clock-mismatch"]) == 0
    main(["annotations", "check", str(bad)])
    assert "1 videos have an unknown duration" in capsys.readouterr().out


def test_a_label_outside_the_class_list_is_refused_with_its_video(
    world: World, tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = changed(world, tmp_path, lambda videos: _first(videos).update(label="delta", label_id=3))
    classes = world.root / "data" / "classes.txt"
    for command in (
        ("train", world.config, f"data.annotations={bad}", "name=never"),
        ("test", world.run, f"data.annotations={bad}", "--out", tmp_path / "out"),
        ("annotations", "convert", bad, tmp_path / "out.json", "--classes", classes),
    ):
        assert f"{bad}: video train_1: label 'delta' is not one of the 3 classes" in refused(*command)
    assert main(["annotations", "check", str(bad), "--classes", str(classes)]) == 1
    assert "train_1: label outside the classes: label 'delta'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no class names; write a name a line"),
        (b"alpha\nalpha\n", "class 'alpha' occurs 2 times; name each class once"),
        (bytes(range(256)), "cannot be read as class names, a name a line"),
    ],
)
def test_a_file_that_is_no_class_list_is_refused(
    world: World, tmp_path: Path, refused: Refused, content: bytes, said: str
) -> None:
    names = tmp_path / "names.txt"
    names.write_bytes(content)
    for command in (
        ("train", world.config, f"data.classes={names}", "name=never"),
        ("test", world.run, f"data.classes={names}", "--out", tmp_path / "out"),
        ("annotations", "check", world.truth, "--classes", names),
        ("annotations", "convert", world.truth, tmp_path / "out.json", "--classes", names),
    ):
        assert f"{names}: {said}" in refused(*command)


# A class list that disagrees with a checkpoint.


@pytest.mark.parametrize(
    "names", [("beta", "alpha", "gamma"), ("alpha", "beta", "gamma", "delta"), ("alpha", "beta")]
)
def test_test_wants_the_classes_that_the_network_learnt(
    world: World, tmp_path: Path, refused: Refused, names: tuple[str, ...]
) -> None:
    (tmp_path / "names.txt").write_text("\n".join(names))
    said = refused("test", world.run, f"data.classes={tmp_path / 'names.txt'}", "--out", tmp_path / "out")
    assert f"has the classes {', '.join(names)}, but the detector was trained on alpha, beta, gamma" in said
    assert "name its class list in data.classes" in said


def test_resume_wants_the_classes_that_the_run_learns(world: World, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "names.txt").write_text("beta\nalpha\ngamma\n")
    said = refused("train", world.config, *QUICK, f"data.classes={tmp_path / 'names.txt'}", "--resume")
    assert f"data.classes was {world.root / 'data' / 'classes.txt'}, is {tmp_path / 'names.txt'}" in said
    shutil.copytree(world.root / "data", tmp_path / "data")
    for path in (tmp_path / "data").rglob("*.yaml"):
        path.write_text(path.read_text().replace(str(world.root), str(tmp_path)))
    moved = tmp_path / "data" / "config.yaml"
    # The list itself is another one than when the run began.
    (tmp_path / "data" / "classes.txt").write_text("beta\nalpha\ngamma\n")
    last = tmp_path / "data" / "runs" / "tiny-forward-seed0" / "last.pt"
    content = torch.load(last, weights_only=True)
    content["config"]["data"] |= {
        key: value.replace(str(world.root), str(tmp_path))
        for key, value in content["config"]["data"].items()
        if isinstance(value, str)
    }
    torch.save(content, last)
    said = refused("train", moved, *QUICK, "--resume")
    assert "trained on the classes ('alpha', 'beta', 'gamma'), not ('beta', 'alpha', 'gamma')" in said
    assert "resume with the original class list" in said
    said = refused("train", moved, "experiment=1-1", f"init.forward={world.run}", f"init.reverse={world.run}")
    assert "its classes are alpha, beta, gamma, here beta, alpha, gamma" in said


def test_detect_wants_as_many_classes_as_the_weights_have(world: World, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "names.txt").write_text("alpha\nbeta\n")
    document = yaml.safe_load(world.video_config.read_text())
    document["data"]["classes"] = str(tmp_path / "names.txt")
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(document))
    content = complete(world)
    averaged = {"state_dict_ema": opentad_file(content["model"])["state_dict_ema"]}
    torch.save(averaged, tmp_path / "foreign.pth")
    torch.save(content | {"classes": ["alpha", "beta"]}, tmp_path / "ours.pt")
    out = ("--out", tmp_path / "out")
    said = refused("detect", world.video, "--checkpoint", tmp_path / "ours.pt", *out)
    assert "the number of classes is 3 in the file, 2 in the configuration" in said
    foreign = ("--checkpoint", tmp_path / "foreign.pth", "--config", tmp_path / "two.yaml")
    assert "the number of classes is 3 in the file, 2 in the configuration" in refused(
        "detect", world.video, *foreign, *out
    )


# Subsets.


@pytest.mark.parametrize("subset", ["nope", "Validation"])
def test_a_subset_without_videos_is_refused_with_those_there_are(
    world: World, tmp_path: Path, refused: Refused, subset: str
) -> None:
    for command in (
        ("train", world.config, f"data.training_subset={subset}", "name=never"),
        ("train", world.config, f"data.test_subset={subset}", "name=never"),
        ("test", world.run, f"data.test_subset={subset}", "--out", tmp_path / "out"),
        ("evaluate", "--ground-truth", world.truth, "--detections", world.found, "--subset", subset),
    ):
        said = refused(*command)
        assert (
            f"no video is in subset {subset!r}; the subsets are training (4 videos), validation (3 videos)" in said
        )


def test_a_file_without_videos_is_refused(world: World, tmp_path: Path, refused: Refused) -> None:
    empty = changed(world, tmp_path, dict.clear)
    assert "the subsets are none" in refused("train", world.config, f"data.annotations={empty}", "name=never")
    assert "no videos in it" in refused("annotations", "check", empty)


def without_truth(subset: str) -> Callable[[dict[str, Any]], None]:
    def edit(videos: dict[str, Any]) -> None:
        for video in videos.values():
            if video["subset"] == subset:
                video["annotations"] = []

    return edit


def test_training_needs_ground_truth_in_both_subsets_before_it_begins(
    world: World, tmp_path: Path, refused: Refused
) -> None:
    bad = changed(world, tmp_path, without_truth("training"))
    said = refused("train", world.config, f"data.annotations={bad}", "name=never")
    assert "no video of subset 'training' has any ground truth" in said
    bad = changed(world, tmp_path, without_truth("validation"))
    said = refused("train", world.config, f"data.annotations={bad}", "name=never")
    assert "the ground truth of subset 'validation' (3 videos) has no segment to evaluate against" in said
    assert "name a subset that has some" in said


@pytest.mark.parametrize("rule", ["activitynet", "thumos-kit"])
def test_nothing_is_evaluated_against_a_subset_without_ground_truth(
    world: World, tmp_path: Path, refused: Refused, rule: str
) -> None:
    bad = changed(world, tmp_path, without_truth("validation"))
    command = ("evaluate", "--ground-truth", bad, "--detections", world.found, "--subset", "validation")
    said = refused(*command, "--rule", rule, "--json", tmp_path / "figures.json")
    assert "subset 'validation' (3 videos) has no segment to evaluate against" in said


def test_what_was_detected_in_a_subset_without_ground_truth_is_kept(
    world: World, tmp_path: Path, refused: Refused
) -> None:
    out = tmp_path / "out"
    assert main(["test", str(world.run), "--out", str(out)]) == 0
    whole = read_detections(out / "detections.json")
    bad = changed(world, tmp_path, without_truth("validation"))
    said = refused("test", world.run, f"data.annotations={bad}", "--out", out, writes=True)
    assert "subset 'validation' (3 videos) has no segment to evaluate against" in said
    assert f"the detections are in {out / 'detections.json'}" in said
    # Nor do the figures of the earlier test stay beside them.
    assert {path.name for path in out.iterdir()} == {"detections.json", "detections.reverse.json"}
    np.testing.assert_array_equal(read_detections(out / "detections.json").segments, whole.segments)


def test_check_names_subsets_without_ground_truth(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = changed(world, tmp_path, without_truth("validation"))
    assert main(["annotations", "check", str(bad)]) == 1
    out = capsys.readouterr().out
    assert "subset validation: without ground truth: none of its 3 videos has a segment of a class\n" in out
    assert out.endswith("1 defects\n")


def test_check_measures_by_a_list_of_videos_what_the_file_does_not_state(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = changed(world, tmp_path, lambda videos: videos["train_1"].pop("duration"))
    (tmp_path / "info.json").write_text('{"train_1": {"duration": 0.1}}')
    assert main(["annotations", "check", str(bad), "--video-info", str(tmp_path / "info.json")]) == 1
    assert "train_1: segment outside the video" in capsys.readouterr().out


# Configurations.


def test_unknown_keys_and_impossible_combinations_are_refused_at_once_by_path(
    world: World, refused: Refused
) -> None:
    said = refused(
        "train",
        world.config,
        "name=never",
        "training.epochz=3",
        "modle.levels=3",
        "window.steps=33",
        "model.channels=15",
        "training.warmup_epochs=9",
        "data.videos=v",
        "pair.align=naive",
    )
    for fault in (
        f"configuration {world.config}: ",
        "training.epochz: unknown key",
        "modle: unknown key",
        "data: give exactly one of data.videos and data.features",
        "model.channels: 15 channels are not a multiple of 2 heads",
        "training.warmup_epochs: 9 must be less than the 4 epochs",
        "window.steps 33 is not a multiple of the coarsest stride 4; use 36",
        "pair.align=naive has no effect in experiment baseline",
    ):
        assert fault in said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.lr=.inf", "training.lr: Input should be a finite number (is inf)"),
        ("data.feature_offset_frames=nan", "data.feature_offset_frames: Input should be a finite number"),
        ("seed=100000000000000000000", "seed: Input should be less than 9223372036854775808"),
        ("name=../../etc", "name: '../../etc' cannot begin the name of a folder"),
        ('name=""', "name: '' is not a name; give one"),
        ('name="a\\nb"', "cannot begin the name of a folder"),
        ("training.lr=[1", "override 'training.lr=[1': the value is not YAML"),
        ("training.lr=!!int ''", "training.lr: Input should be a valid number"),
        ("window=3", "window: a section of keys (window.steps, window.layout, "),
        ("training.lr=" + "9" * 5000, "training.lr"),
    ],
)
def test_values_that_no_run_can_have_are_refused(world: World, refused: Refused, override: str, said: str) -> None:
    assert said in refused("train", world.config, override)


@pytest.mark.parametrize(
    "text", ["", "- 1", "a: [1", "base: nowhere", "{" * 1200, "a: &a {b: *a}", "\0", "a: !!int x"]
)
def test_files_that_are_no_configuration_are_refused(
    world: World, tmp_path: Path, refused: Refused, text: str
) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    said = refused("train", tmp_path / "bad.yaml")
    assert "bad.yaml" in said or "nowhere" in said


# Checkpoints.


def complete(world: World) -> dict[str, Any]:
    """The content of a checkpoint of the run that watches videos, with the frozen transformer in it."""
    return read_complete(world.video_run / "best.pt") | {"backbone": None}


@contextmanager
def damaged(world: World, path: Path) -> Iterator[dict[str, Any]]:
    """The content of the run that watches videos, to be damaged and saved to ``path``."""
    content = complete(world)
    yield content
    torch.save(content, path)


def uses(world: World, checkpoint: Path, out: Path) -> list[tuple[object, ...]]:
    """Every command that takes a checkpoint."""
    return [
        ("test", checkpoint, "--out", out),
        ("detect", world.video, "--checkpoint", checkpoint, "--out", out),
        ("features", world.video, "--checkpoint", checkpoint, "--out", out),
        ("weights", "convert", checkpoint, out / "weights.safetensors"),
    ]


@pytest.mark.parametrize(
    ("name", "content"), [("a.pt", b"hello"), ("a.pt", b""), ("a.pth", b"PK\x03\x04"), ("a.safetensors", b"hello")]
)
def test_a_file_that_is_no_checkpoint_is_refused_everywhere(
    world: World, tmp_path: Path, refused: Refused, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    others: list[tuple[object, ...]] = [
        ("weights", "inspect", tmp_path / name),
        ("train", world.video_config, "name=never", f"model.backbone.weights={tmp_path / name}"),
        ("train", world.config, "experiment=1-1", f"init.forward={tmp_path / name}", f"init.reverse={world.run}"),
    ]
    for command in [*uses(world, tmp_path / name, tmp_path / "out"), *others]:
        assert f"{tmp_path / name} is not a readable checkpoint" in refused(*command)


@pytest.mark.parametrize("key", ["config", "classes", "model", "epoch", "rate_hz"])
@pytest.mark.parametrize("value", [None, 5 + 1j, float("nan")])
def test_a_checkpoint_without_a_part_is_called_damaged(
    world: World, tmp_path: Path, refused: Refused, key: str, value: object
) -> None:
    with damaged(world, tmp_path / "damaged.pt") as content:
        content[key] = value
    for command in uses(world, tmp_path / "damaged.pt", tmp_path / "out")[:2]:
        assert f"{tmp_path / 'damaged.pt'} is a damaged checkpoint, without a valid {key}" in refused(*command)


def test_a_checkpoint_of_another_model_is_refused_with_the_keys_that_differ(
    world: World, tmp_path: Path, refused: Refused
) -> None:
    other = tmp_path / "other.pt"
    with damaged(world, other) as content:
        del content["model"]["head.scales"]
        content["model"]["head.extra"] = torch.zeros(1)
    for command in uses(world, other, tmp_path / "out"):
        said = refused(*command)
        assert f"weights of {other} do not fit the network" in said
        assert "1 missing: head.scales; 1 not in the network: head.extra" in said
    said = refused("test", world.run, "model.channels=32", "--out", tmp_path / "out")
    assert "model.channels was 16, is 32" in said
    said = refused("train", world.config, "experiment=1-1", f"init.forward={other}", f"init.reverse={other}")
    assert f"init.forward={other} does not fit this run" in said
    assert "model.backbone is " in said


def test_weights_that_are_not_finite_are_refused(world: World, tmp_path: Path, refused: Refused) -> None:
    with damaged(world, tmp_path / "nan.pt") as content:
        content["model"]["head.scales"][:] = float("nan")
    for command in uses(world, tmp_path / "nan.pt", tmp_path / "out"):
        assert f"weights of {tmp_path / 'nan.pt'} are not finite: head.scales; use another" in refused(*command)


@pytest.mark.parametrize("what", ["text", "weights", "training"])
def test_a_run_is_not_resumed_from_what_is_no_checkpoint_of_it(
    world: World, tmp_path: Path, refused: Refused, what: str
) -> None:
    directory = tmp_path / "runs" / "tiny-forward-seed0"
    directory.mkdir(parents=True)
    last = directory / "last.pt"
    content = torch.load(world.run / "last.pt", weights_only=True)
    if what == "text":
        last.write_text("hello")
    elif what == "weights":
        del content["model"]["head.scales"]
        torch.save(content, last)
    else:
        torch.save(content | {"training": {"step": 1}}, last)
    said = refused("train", world.config, *QUICK, f"output={tmp_path / 'runs'}", "--resume")
    assert str(last) in said
    reasons = {"text": "not a readable checkpoint", "weights": "1 missing: head.scales", "training": "is damaged"}
    assert reasons[what] in said


# Features.


@pytest.fixture
def own(world: World, tmp_path: Path) -> Path:
    """Features of one's own, to be spoilt."""
    shutil.copytree(world.root / "data" / "features", tmp_path / "features")
    return tmp_path / "features"


@pytest.mark.parametrize("name", ["train_1", "test_1"])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.unlink(), "no features of '{name}' there (.npy or .npz); make them, or leave it out"),
        (lambda path: np.save(path, np.load(path)[:, :5]), "5] read as [T, C]; 8 channels are expected"),
        (lambda path: np.save(path, np.load(path).astype(complex)), "complex128 of shape"),
        (lambda path: np.save(path, np.load(path).astype(str)), "features are numbers [T, C]"),
        (lambda path: np.save(path, np.load(path)[:0]), "features are numbers [T, C]"),
        (lambda path: path.write_bytes(b"hello"), "no array that numpy reads"),
    ],
    ids=["missing", "width", "complex", "text", "empty", "damaged"],
)
def test_features_that_are_missing_or_of_another_sort_are_refused_before_anything_is_done(
    world: World,
    tmp_path: Path,
    refused: Refused,
    own: Path,
    name: str,
    spoil: Callable[[Path], object],
    said: str,
) -> None:
    spoil(own / f"{name}.npy")
    expected = said.format(name=name)
    line = refused("train", world.config, f"data.features={own}", "name=never")
    assert expected in line
    assert str(own) in line
    subset = "training" if name == "train_1" else "validation"
    test = ("test", world.run, f"data.features={own}", f"data.test_subset={subset}", "--out", tmp_path / "out")
    assert expected in refused(*test)


def test_how_many_features_are_missing_is_said(world: World, refused: Refused, own: Path) -> None:
    for name in ("train_1", "train_3", "test_0"):
        (own / f"{name}.npy").unlink()
    said = refused("train", world.config, f"data.features={own}", "name=never")
    assert "no features of 'train_1' there" in said
    assert said.endswith("; and 2 more of 7 videos")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("spoil", ["nan", "cut"])
def test_features_whose_content_is_bad_are_named_whoever_reads_them(
    world: World, tmp_path: Path, refused: Refused, own: Path, spoil: str, workers: int
) -> None:
    bad = own / "train_1.npy"
    if spoil == "nan":
        features = np.load(bad)
        features[3, 2] = np.nan
        np.save(bad, features)
    else:
        bad.write_bytes(bad.read_bytes()[:-100])
    overrides = (f"data.features={own}", f"output={tmp_path / 'runs'}", f"training.workers={workers}")
    said = refused("train", world.config, *overrides, writes=True)
    assert said.startswith(f"{bad}: ")
    assert ("nan in row 3, channel 2" if spoil == "nan" else "no array that numpy reads") in said
    assert list((tmp_path / "runs").rglob("*.pt")) == []
    test = ("test", world.run, f"data.features={own}", "data.test_subset=training", "--out", tmp_path / "out")
    assert refused(*test).startswith(f"{bad}: ")


# A loss that becomes NaN.


def test_a_loss_that_becomes_nan_names_the_videos_and_keeps_the_last_checkpoint(
    world: World, tmp_path: Path, refused: Refused, own: Path
) -> None:
    overrides = (*QUICK, "training.batch=1", f"data.features={own}", f"output={tmp_path / 'runs'}")
    last = tmp_path / "runs" / "tiny-forward-seed0" / "last.pt"
    bad = own / "train_1.npy"
    good = bad.read_bytes()
    np.save(bad, np.load(bad) + np.float32(1e38))  # finite, but not for long
    said = refused("train", world.config, *overrides, writes=True)
    assert (
        "with a loss of nan (videos train_1); no checkpoint is saved yet; check these videos and start again"
        in said
    )
    assert not last.exists()
    bad.write_bytes(good)
    assert main(["train", str(world.config), *overrides, "--until", "1"]) == 0
    before = last.read_bytes()
    np.save(bad, np.load(bad) + np.float32(1e38))
    said = refused("train", world.config, *overrides, "--resume", "--allow-changed-data", writes=True)
    assert f"(videos train_1); {last} is unchanged; check these videos and resume with --resume" in said
    assert last.read_bytes() == before
    bad.write_bytes(good)
    assert main(["train", str(world.config), *overrides, "--resume"]) == 0
    checkpoint = load_checkpoint(last)
    assert checkpoint.epoch == 2
    assert all(weight.isfinite().all() for weight in checkpoint.model.values())


# A full disk.


FULL = {
    "merge": "merge {found} {found} --out {out}/merged.json",
    "evaluate": "evaluate --ground-truth {watched} --detections {found} --subset validation --json {out}/figures.json",
    "diagnose": "diagnose {found} --ground-truth {watched} --subset validation --out {out}",
    "check": "annotations convert {truth} {out}/converted.json",
    "reverse": "reverse {truth} {out}/reversed.json",
    "test": "test {video_run} --out {out}",
    "report": "report {video_run} --out {out}",
    "detect": "detect {video} --checkpoint {video_run} --out {out}",
    "features": "features {video} --checkpoint {video_run} --out {out}",
    "weights": "weights convert {video_run} {out}/weights.safetensors",
    "train": "train {config} name=full output={out}",
}


@pytest.mark.parametrize("command", FULL)
def test_a_full_disk_is_told_by_the_file_and_leaves_no_part_of_one(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    out = tmp_path / "out"
    places = {name: getattr(world, name) for name in ("config", "truth", "run", "video", "video_run", "found")}
    watched = world.root / "watched" / "annotations.json"
    with files_of_at_most(150):
        status = main(FULL[command].format(**places, watched=watched, out=out).split())
    assert status == 1
    _, err = capsys.readouterr()
    assert "Traceback" not in err
    *_, line = err.splitlines()
    assert line.startswith(f"bitad {FULL[command].split()[0]}: error: ")
    assert "File too large" in line
    assert str(out) in line
    whole = {"log.txt"} if command == "train" else set()  # its last line may be cut
    assert {path.name for path in out.rglob("*") if path.is_file()} <= whole


def test_a_disk_that_fills_up_in_a_run_keeps_its_last_checkpoint(
    world: World, tmp_path: Path, refused: Refused
) -> None:
    run = tmp_path / "runs" / world.run.name
    shutil.copytree(world.run, run)
    command = ("train", world.config, *QUICK, f"output={tmp_path / 'runs'}", "--resume")
    before = (run / "last.pt").read_bytes()
    with files_of_at_most(len(before) // 2):
        said = refused(*command, writes=True)
    assert "File too large" in said
    assert "free some space and run the command again (bitad train resumes with --resume)" in said
    assert (run / "last.pt").read_bytes() == before
    assert main([str(argument) for argument in command]) == 0
    assert load_checkpoint(run / "last.pt").epoch == 2


# Anything.

QUIETLY = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command on whatever; it ends in status 0, or in 1 with at most one line that somebody foresaw."""

    def tell(*arguments: object) -> str:
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert status in (0, 1)
        assert "Traceback" not in out + err
        assert "--debug" not in err
        assert err.count("\n") == (1 if err else 0)
        assert status == 1 or not err
        return err

    return tell


texts = st.text(st.sampled_from("ab:-[]{}#&*!|>'\"%@`,? \n\t0159.e<\0é\ud800"), max_size=30)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.dates()
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)


def leaves(document: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in document.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))


@settings(max_examples=30, **QUIETLY)
@given(text=texts | st.text(max_size=40))
def test_any_text_is_a_configuration_or_refused(tmp_path: Path, told: Callable[..., str], text: str) -> None:
    (tmp_path / "any.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert told("test", tmp_path / "none.pt", "--config", tmp_path / "any.yaml")


@settings(max_examples=30, **QUIETLY)
@given(data=st.data())
def test_any_value_of_any_key_is_taken_or_refused(
    world: World, tmp_path: Path, told: Callable[..., str], data: st.DataObject
) -> None:
    document = load_config(world.video_config).model_dump(mode="json")
    for path in data.draw(st.lists(st.sampled_from(list(leaves(document))), min_size=1, max_size=3)):
        inner: Any = document
        for key in path[:-1]:
            inner = inner[key] if isinstance(inner, dict) and key in inner else {}
        if isinstance(inner, dict):
            inner[path[-1]] = data.draw(anything)
    (tmp_path / "any.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    assert told("test", tmp_path / "none.pt", "--config", tmp_path / "any.yaml")


overridden = st.sampled_from(
    ["training.lr", "model", "model.backbone.size", "name", "base", "a.b", "", "test.tiou", "."]
)


@settings(max_examples=30, **QUIETLY)
@given(override=st.tuples(overridden, texts).map("=".join) | texts.filter(lambda text: text[:1] != "-"))
def test_any_override_is_taken_or_refused(
    world: World, tmp_path: Path, told: Callable[..., str], override: str
) -> None:
    # A terminal shows what is no text by its code; what stands in for it here does not.
    text = override.encode("utf-8", "backslashreplace").decode()
    assert told("test", tmp_path / "none.pt", "--config", world.config, text)


words = st.sampled_from(
    [
        "database",
        "videos",
        "clips",
        "annotations",
        "labels",
        "segment",
        "label",
        "label_id",
        "duration",
        "subset",
        "a",
    ]
) | st.sampled_from(
    [
        "duration_second",
        "duration_frame",
        "clip_uid",
        "video_start_sec",
        "video_end_sec",
        "primary",
        "fps",
        "frame",
    ]
)
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=5),
    max_leaves=20,
)
nearly = st.fixed_dictionaries(
    {},
    optional={
        "subset": words | documents,
        "duration": st.floats() | documents,
        "frame": st.integers() | documents,
        "fps": documents,
        "annotations": st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "segment": st.lists(st.floats() | st.integers(), min_size=2, max_size=2) | documents,
                    "segment(frames)": documents,
                    "label": words | texts | documents,
                    "label_id": st.integers(0, 2) | documents,
                },
            )
            | documents,
            max_size=3,
        )
        | documents,
    },
)
databases = st.dictionaries(words | texts, nearly, max_size=3).map(lambda videos: {"database": videos})
JSON_FORMS = [
    name for name, form in FORMATS.items() if not any(p.endswith((".csv", ".txt")) for p in form.patterns)
]
TEXT_FORMS = [name for name in FORMATS if name not in JSON_FORMS]


@settings(max_examples=30, **QUIETLY)
@given(content=documents | databases, form=st.none() | st.sampled_from(JSON_FORMS), to=st.booleans())
def test_any_json_is_checked_and_converted_or_refused(
    tmp_path: Path, told: Callable[..., str], content: Any, form: str | None, to: bool
) -> None:
    path = tmp_path / "anet_anno_train.json"
    path.write_text(json.dumps(content))
    as_form = () if form is None else ("--from", form)
    told("annotations", "check", path, *as_form)
    told(
        "annotations", "convert", path, tmp_path / "out.json", *as_form, "--to", "actionformer" if to else "native"
    )
    told("reverse", path, tmp_path / "back.json")


cells = st.text(st.sampled_from("c0 1.:;,\"'\nx\t\0é\r\ud800"), max_size=12)
HEADS = {
    "charades": "id,actions,length",
    "epic-kitchens-verb": "video_id,start_timestamp,stop_timestamp,verb_class",
    "epic-kitchens-noun": "video_id,start_timestamp,stop_timestamp,noun_class",
}
ROWS = {"charades": "x,c1 1 2,3", "thumos14": "v 1 2", "multithumos": "video_test_1 1 2"}


@settings(max_examples=30, **QUIETLY)
@given(
    lines=st.lists(cells, max_size=4), form=st.sampled_from(TEXT_FORMS), headed=st.booleans(), row=st.booleans()
)
def test_any_table_is_checked_or_refused(
    tmp_path: Path, told: Callable[..., str], lines: list[str], form: str, headed: bool, row: bool
) -> None:
    path = tmp_path / ("A_val.txt" if "thumos" in form else "train.csv")
    head = [HEADS[form]] if headed and form in HEADS else []
    sound = [ROWS[form]] if row and form in ROWS else []
    path.write_bytes("\n".join([*head, *sound, *lines]).encode("utf-8", "surrogatepass"))
    told("annotations", "check", path, "--from", form)
    told("annotations", "check", path)


@settings(max_examples=15, **QUIETLY)
@given(content=st.binary(max_size=30) | texts.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_a_class_list_or_refused(
    world: World, tmp_path: Path, told: Callable[..., str], content: bytes
) -> None:
    (tmp_path / "names.txt").write_bytes(content)
    told("annotations", "check", world.truth, "--classes", tmp_path / "names.txt")


rows = st.fixed_dictionaries(
    {
        "segment": st.lists(st.floats(0, 9) | st.integers(), min_size=2, max_size=2) | documents,
        "label": words | documents,
        "score": st.floats(0, 1) | documents,
    }
)
found = st.fixed_dictionaries(
    {"results": st.dictionaries(words | texts, st.lists(rows | documents, max_size=3), max_size=3) | documents},
    optional={
        "external_data": st.fixed_dictionaries(
            {},
            optional={
                "basis": words | st.just("reverse"),
                "classes": st.lists(words) | documents,
                "durations_s": documents,
            },
        )
        | documents
    },
)


@settings(max_examples=30, **QUIETLY)
@given(content=found | documents)
def test_any_json_is_merged_and_evaluated_or_refused(
    world: World, tmp_path: Path, told: Callable[..., str], content: Any
) -> None:
    path = tmp_path / "found.json"
    path.write_text(json.dumps(content))
    told("merge", path, path, "--out", tmp_path / "merged.json")
    told("evaluate", "--ground-truth", world.truth, "--detections", path, "--subset", "validation")
