"""The command line: what it does, how it fails in one line, and with which exit status."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import CLASSES, FPS, config_of, feature_data, numbered_picture, video_data

import bitad
from bitad import cli
from bitad.cli import build_parser, main
from bitad.data.detections import Detections, read_detections, write_detections
from bitad.data.formats.database import read_annotations
from bitad.evaluation.mean_average_precision import evaluate
from bitad.evaluation.operating_points import OperatingPoints
from bitad.inference.merge import merge
from bitad.video.reader import probe
from bitad.video.writer import write_video
from bitad.weights.checkpoint import load_checkpoint

COMMANDS = (
    "init",
    "config",
    "demo",
    "train",
    "watch",
    "test",
    "detect",
    "features",
    "plan",
    "weights",
    "reverse",
    "annotations",
    "merge",
    "evaluate",
    "diagnose",
    "report",
)


@pytest.fixture(autouse=True)
def threads_restored() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return feature_data(tmp_path_factory.mktemp("features") / "data")


@pytest.fixture(scope="module")
def run(features: Path) -> Path:
    """A trained run, made by the command itself."""
    assert (
        main(["train", str(features), "training.epochs=1", "training.windows_per_video=5", "--device", "cpu"]) == 0
    )
    return features.parent / "runs" / "tiny-forward-seed0"


@pytest.fixture(scope="module")
def found(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detection file: the ground truth of the test videos, somewhat off, and some more."""
    truth = read_annotations(features.parent / "annotations.json").subset("validation")
    rng = np.random.default_rng(0)
    columns = {}
    for name, video in truth.videos.items():
        segments = np.concatenate([video.segments + rng.normal(0, 0.1, video.segments.shape), [[0.0, 0.5]]])
        labels = np.array([CLASSES.index(label) for label in video.labels] + [1])
        columns[name] = (segments, rng.uniform(0.3, 1, len(labels)), labels)
    durations = {name: video.duration_s for name, video in truth.videos.items()}
    path = tmp_path_factory.mktemp("found") / "found.json"
    write_detections(Detections.from_videos(columns, classes=CLASSES, durations_s=durations), path)
    return path


@pytest.fixture
def failing(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail with status 1 and one line; that line."""

    def fail(*arguments: str | Path) -> str:
        assert main([str(argument) for argument in arguments]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        start = f"bitad {arguments[0]}: error: "
        assert err.startswith(start)
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert "Traceback" not in err
        return err.removeprefix(start)

    return fail


# Usage.


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples_that_can_be_run(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    _, examples = capsys.readouterr().out.split("examples:\n")
    assert examples.strip()
    for line in examples.strip().splitlines():
        program, *arguments = shlex.split(line)
        assert program == "bitad"
        assert build_parser().parse_args(arguments).command == command


def test_the_list_of_commands_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = capsys.readouterr().out
    assert all(f"    {command}" in listed for command in COMMANDS)


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"bitad {bitad.__version__}\n"


@pytest.mark.parametrize(
    "command",
    [
        "",
        "fly",
        "evaluate",
        "evaluate --subset Test",
        "diagnose",
        "diagnose found.json --bins deciles",
        "train",
        "train playroom --lr 3",
        "train playroom --until soon",
        "merge a.json b.json",
        "merge a.json b.json --out c.json --method best",
        "annotations mend gt.json",
        "test",
        "reverse one.mp4",
    ],
)
def test_wrong_usage_ends_with_status_2(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(command))
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "usage: bitad" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "command",
    [
        "train c.yaml a=1 b.c=2 --resume --device cpu",
        "train c.yaml --resume a=1 b.c=2 --device cpu",
        "train c.yaml a=1 --resume --device cpu b.c=2",
        "train --device cpu --resume c.yaml a=1 b.c=2",
    ],
)
def test_overrides_may_stand_before_between_and_after_options(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, list[str], bool, str]] = []
    monkeypatch.setattr(
        cli.train, "_train", lambda a: seen.append((a.config, a.overrides, a.resume, a.device)) or 0
    )
    assert main(shlex.split(command)) == 0
    assert seen == [("c.yaml", ["a=1", "b.c=2"], True, "cpu")]


def test_python_m_bitad_is_bitad() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "bitad", "merge", "a"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert "usage: bitad merge" in ended.stderr


# Failures.


def test_missing_files_are_named(failing: Callable[..., str], features: Path, found: Path, tmp_path: Path) -> None:
    truth, none = features.parent / "annotations.json", tmp_path / "none.json"
    assert str(none) in failing("evaluate", "--ground-truth", none, "--detections", found, "--subset", "x")
    assert str(none) in failing(
        "evaluate", "--ground-truth", truth, "--detections", none, "--subset", "validation"
    )
    assert str(none) in failing("merge", found, none, "--out", tmp_path / "merged.json")
    assert str(none) in failing("annotations", "check", none)
    assert str(none) in failing("reverse", none, tmp_path / "back.json")
    assert "none.mp4" in failing("reverse", tmp_path / "none.mp4", tmp_path / "back.mp4")
    assert "none.pt" in failing("test", tmp_path / "none.pt")
    assert "none.pt" in failing("detect", found, "--checkpoint", tmp_path / "none.pt")
    assert "none.mp4" in failing("detect", tmp_path / "none.mp4", "--checkpoint", tmp_path / "none.pt")
    assert "nowhere" in failing("train", features, "data.features=nowhere")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_configuration_is_refused_with_ours(failing: Callable[..., str]) -> None:
    said = failing("train", "thumos15")
    assert "'thumos15'" in said
    assert "playroom" in said


def test_a_wrong_subset_is_refused_with_those_there_are(
    failing: Callable[..., str], features: Path, found: Path
) -> None:
    truth = features.parent / "annotations.json"
    said = failing("evaluate", "--ground-truth", truth, "--detections", found, "--subset", "Validation")
    for part in ("'Validation'", "training (4 videos)", "validation (3 videos)"):
        assert part in said
    assert "training (4 videos)" in failing("train", features, "data.training_subset=train", "name=other")


def test_wrong_overrides_are_refused_by_path(failing: Callable[..., str], features: Path) -> None:
    said = failing("train", features, "training.epochz=3", "window.steps=33", "training.lr=fast")
    for part in ("training.epochz: unknown key", "training.lr", "'fast'"):
        assert part in said
    assert "use 36" in failing("train", features, "window.steps=33")
    assert "unknown experiment '4'" in failing("train", features, "experiment=4")
    assert "'lr'" in failing("train", features, "lr")


@pytest.mark.parametrize("tiou", ["a", "0.3:0.7", "0.3:0.7:0", "0.1:x:0.1", "0:inf:0.1", "0.3,,0.5", ""])
def test_thresholds_that_are_none_are_refused_with_the_form(
    failing: Callable[..., str], features: Path, found: Path, tiou: str
) -> None:
    truth = features.parent / "annotations.json"
    said = failing(
        "evaluate", "--ground-truth", truth, "--detections", found, "--subset", "validation", "--tiou", tiou
    )
    assert f"--tiou {tiou}".strip() in said
    assert "first:last:step" in said


@pytest.mark.parametrize("tiou", ["0", "1.5", "nan", "0.7:0.3:0.1"])
def test_thresholds_that_no_overlap_can_have_are_refused(
    failing: Callable[..., str], features: Path, found: Path, tiou: str
) -> None:
    truth = features.parent / "annotations.json"
    failing("evaluate", "--ground-truth", truth, "--detections", found, "--subset", "validation", "--tiou", tiou)


def test_files_of_another_sort_are_refused(
    failing: Callable[..., str], features: Path, found: Path, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.json").write_text("hello")
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "empty").mkdir()
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    truth = features.parent / "annotations.json"
    text = tmp_path / "text.json"
    assert "JSON" in failing("evaluate", "--ground-truth", truth, "--detections", text, "--subset", "validation")
    assert "results" in failing(
        "evaluate", "--ground-truth", truth, "--detections", truth, "--subset", "validation"
    )
    assert "database" in failing(
        "evaluate", "--ground-truth", found, "--detections", found, "--subset", "validation"
    )
    assert "weights of no known project" in failing("test", tmp_path / "other.pt")
    assert "no best.pt or last.pt yet" in failing("test", tmp_path / "empty")
    assert "text.mp4" in failing("reverse", tmp_path / "text.mp4", tmp_path / "back.mp4")
    assert "features, not videos" in failing("detect", tmp_path / "text.mp4", "--checkpoint", run)


def test_runs_are_neither_overwritten_nor_made_up(failing: Callable[..., str], features: Path, run: Path) -> None:
    overrides = ("training.epochs=1", "training.windows_per_video=5")
    assert "--resume" in failing("train", features, *overrides)
    changed = failing("train", features, *overrides, "training.clip_norm=0.1", "--resume")
    assert "training.clip_norm was 1.0, is 0.1" in changed
    assert "start it without --resume" in failing("train", features, "name=never", "--resume")


def test_devices_that_are_not_there_are_refused(
    failing: Callable[..., str], features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "use the device cpu" in failing("train", features, "name=never", "--device", "cuda")
    for device in ("gpu", "meta"):
        assert f"unknown device '{device}'" in failing("train", features, "name=never", "--device", device)
    said = failing("train", features, "name=never", "--device", "mps")
    assert said == "device mps: BiTAD does not compute on Apple's GPUs; use the device cpu\n"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "PyTorch finds 2 GPUs" in failing("train", features, "name=never", "--device", "cuda:2")


def test_detections_that_cannot_be_merged_are_refused(
    failing: Callable[..., str], found: Path, tmp_path: Path
) -> None:
    detections = read_detections(found)
    write_detections(replace(detections, durations_s={}), tmp_path / "timeless.json")
    said = failing("merge", found, tmp_path / "timeless.json", "--reverse-b", "--out", tmp_path / "m.json")
    assert "--annotations" in said
    said = failing("merge", found, found, "--annotations", found, "--out", tmp_path / "m.json")
    assert "only applies with --reverse-b" in said
    assert not (tmp_path / "m.json").exists()


@pytest.mark.parametrize(
    "command",
    [
        "merge {a} {b} --out {a}",
        "merge {a} {b} --out {b}",
        "merge {a} {b} --reverse-b --annotations {truth} --out {truth}",
        "merge {a} {b} --out {link}",
        "evaluate --ground-truth {truth} --detections {a} --subset validation --json {truth}",
        "evaluate --ground-truth {truth} --detections {a} --subset validation --json {a}",
        "annotations convert {truth} {truth}",
        "annotations convert {truth} {there}/other.json --class-list {truth}",
        "annotations convert {truth} {there}/other.json --classes {names} --class-list {names}",
        "reverse {truth} {truth}",
    ],
)
def test_an_output_never_replaces_an_input(
    failing: Callable[..., str], features: Path, found: Path, tmp_path: Path, command: str
) -> None:
    places = {"truth": tmp_path / "truth.json", "a": tmp_path / "a.json", "b": tmp_path / "b.json"}
    shutil.copy(features.parent / "annotations.json", places["truth"])
    for name in "ab":
        shutil.copy(found, places[name])
    places |= {"there": tmp_path, "link": tmp_path / "link.json", "names": tmp_path / "names.txt"}
    places["link"].symlink_to("a.json")
    places["names"].write_text("".join(f"{name}\n" for name in CLASSES))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert "would replace" in failing(*command.format(**places).split())
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_outputs_that_cannot_be_written_are_refused_before_the_work(
    failing: Callable[..., str],
    features: Path,
    found: Path,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("mine")
    # First, as its import takes over merge.
    monkeypatch.setattr("bitad.reports.comparison.compare", lambda *_, **__: pytest.fail("the work began"))
    for name in ("merge.merge", "detect.run_test"):
        monkeypatch.setattr(f"bitad.inference.{name}", lambda *_, **__: pytest.fail("the work began"))
    monkeypatch.setattr("bitad.demo._mark_folder", lambda *_: pytest.fail("the work began"))
    truth = features.parent / "annotations.json"
    evaluate = ("evaluate", "--ground-truth", truth, "--detections", found, "--subset", "validation", "--json")
    assert "is a folder" in failing("merge", found, found, "--out", tmp_path)
    assert "is not a folder" in failing("merge", found, found, "--out", tmp_path / "file" / "merged.json")
    assert "is a folder" in failing(*evaluate, tmp_path)
    assert "is not a folder" in failing(*evaluate, tmp_path / "file" / "figures.json")
    assert "is not a folder" in failing("report", run, "--out", tmp_path / "file")
    assert "is not a folder" in failing("diagnose", run, "--out", tmp_path / "file")
    assert "is a folder" in failing("diagnose", run, "--json", tmp_path)
    assert "is not a folder" in failing("demo", "--out", tmp_path / "file")


@pytest.mark.parametrize("command", ["report", "demo"])
def test_a_page_that_is_not_ours_is_never_replaced(
    failing: Callable[..., str], run: Path, tmp_path: Path, command: str
) -> None:
    page = tmp_path / "index.html"
    page.write_text("<title>My home</title>")
    arguments = (run,) if command == "report" else ()
    assert f"{page} was not written by BiTAD" in failing(command, *arguments, "--out", tmp_path)
    assert list(tmp_path.iterdir()) == [page]
    assert page.read_text() == "<title>My home</title>"


def test_a_report_replaces_its_own_page(run: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert main(["report", str(run), "--out", str(tmp_path)]) == 0


def test_an_error_that_nobody_foresaw_is_one_line_too_and_says_how_to_see_more(
    failing: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(arguments: object) -> int:
        raise RuntimeError("first line\n  second line")

    monkeypatch.setattr(cli.train, "_train", broken)
    assert failing("train", "c.yaml") == "first line second line (RuntimeError; --debug shows the traceback)\n"
    with pytest.raises(RuntimeError, match="first line"):
        main(["train", "c.yaml", "--debug"])


def test_debug_shows_where_an_error_comes_from(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        main(["test", str(tmp_path / "none.pt"), "--debug"])


def test_an_interrupted_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.train, "_train", interrupted)
    assert main(["train", "c.yaml"]) == 130
    assert capsys.readouterr().err == "bitad train: interrupted\n"


# What needs no torch.


def test_commands_on_annotations_and_detections_do_not_load_torch(
    features: Path, found: Path, tmp_path: Path
) -> None:
    truth = features.parent / "annotations.json"
    commands = [
        f"evaluate --ground-truth {truth} --detections {found} --subset validation --per-class",
        f"diagnose {found} --ground-truth {truth} --subset validation --out {tmp_path / 'diagnosis'}",
        f"merge {found} {found} --out {tmp_path / 'merged.json'}",
        f"annotations check {truth} --page {tmp_path / 'page'}",
        f"reverse {truth} {tmp_path / 'back.json'}",
    ]
    program = (
        "import sys; from bitad.cli import main\n"
        f"assert [main(command.split()) for command in {commands!r}] == [0] * {len(commands)}\n"
        "assert 'numpy' in sys.modules and 'torch' not in sys.modules, 'torch was loaded'"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


# What the commands do.


def test_evaluate_prints_and_writes_the_figures(
    features: Path, found: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = features.parent / "annotations.json"
    command = ["evaluate", "--ground-truth", str(truth), "--detections", str(found), "--subset", "validation"]
    assert main([*command, "--json", str(tmp_path / "out" / "figures.json")]) == 0
    expected = evaluate(
        read_annotations(truth).subset("validation"), read_detections(found), tiou=[0.3, 0.4, 0.5, 0.6, 0.7]
    )
    assert json.loads((tmp_path / "out" / "figures.json").read_text()) == expected.to_json()
    printed = capsys.readouterr().out
    assert f"{100 * expected.average_map:.2f}" in printed
    assert "alpha" not in printed
    assert main([*command, "--per-class", "--tiou", "0.5,0.75"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in CLASSES)
    assert "0.75" in printed


@pytest.mark.parametrize(
    ("text", "thresholds"),
    [
        ("0.3:0.7:0.1", [0.3, 0.4, 0.5, 0.6, 0.7]),
        ("0.5:0.95:0.05", [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]),
        ("0.5", [0.5]),
        ("0.5,0.75", [0.5, 0.75]),
        ("0.5:0.5:0.1", [0.5]),
    ],
)
def test_thresholds_are_read_without_rounding_errors(text: str, thresholds: list[float]) -> None:
    assert cli.results._thresholds(text) == thresholds


def test_train_leaves_a_run_that_test_and_evaluate_read(
    features: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {file.name for file in run.iterdir()} >= {
        "best.pt",
        "last.pt",
        "config.yaml",
        "metrics.jsonl",
        "log.txt",
        "environment.json",
        "detections.json",
    }
    assert main(["test", str(run), "--out", str(tmp_path / "tested"), "--device", "cpu"]) == 0
    figures = json.loads((tmp_path / "tested" / "metrics.json").read_text())["forward"]
    assert f"{100 * figures['average_map']:.2f}" in capsys.readouterr().out
    tested = read_detections(tmp_path / "tested" / "detections.json")
    trained = read_detections(run / "detections.json")
    np.testing.assert_array_equal(tested.segments, trained.segments)
    assert trained.min_scores == tested.min_scores
    assert set(tested.min_scores) == set(CLASSES)
    assert read_detections(tmp_path / "tested" / "detections.reverse.json").min_scores == tested.min_scores
    assert main(["weights", "convert", str(run), str(tmp_path / "converted.safetensors")]) == 0
    for checkpoint in (run / "best.pt", run / "last.pt", tmp_path / "converted.safetensors"):
        points = load_checkpoint(checkpoint).operating_points
        assert points is not None
        assert points["subset"] == "validation"
        assert OperatingPoints.from_json(points).scores(CLASSES) == tested.min_scores
    truth = features.parent / "annotations.json"
    command = ["evaluate", "--ground-truth", truth, "--detections", tmp_path / "tested" / "detections.json"]
    command += ["--subset", "validation", "--json", tmp_path / "again.json"]
    assert main([str(argument) for argument in command]) == 0
    assert json.loads((tmp_path / "again.json").read_text()) == figures


def test_test_takes_a_checkpoint_and_overrides_and_writes_beside_it(run: Path) -> None:
    assert main(["test", str(run / "last.pt"), "data.test_subset=training", "test.nms.max_segments=3"]) == 0
    tested = read_detections(run / "test" / "detections.json")
    assert tested.videos == ("train_0", "train_1", "train_2", "train_3")
    assert len(tested) <= 3 * 4


def test_a_run_stopped_by_until_goes_on_with_resume(features: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", str(features), "name=parts", "training.epochs=2"]
    assert main([*command, "--until", "1"]) == 0
    directory = features.parent / "runs" / "parts-forward-seed0"
    assert load_checkpoint(directory / "last.pt").epoch == 1
    assert main([*command, "--resume"]) == 0
    assert load_checkpoint(directory / "last.pt").epoch == 2
    assert str(directory) in capsys.readouterr().out
    log = (directory / "log.txt").read_text()
    assert "epochs 1 to 2" in log
    assert "epochs 2 to 2" in log


@pytest.mark.parametrize("method", ["soft-nms", "mean", "product", "wsf"])
def test_merge_turns_a_reverse_file_round_by_itself_or_when_told(
    features: Path, found: Path, tmp_path: Path, method: str
) -> None:
    a = read_detections(found)
    b = replace(a, scores=a.scores[::-1].copy())
    expected = merge(a, b, method=method)
    reverse = b.reversed()
    write_detections(reverse, tmp_path / "says.json")
    write_detections(replace(reverse, basis="forward"), tmp_path / "silent.json")
    write_detections(replace(reverse, basis="forward", durations_s={}), tmp_path / "timeless.json")
    told = ["--reverse-b", "--annotations", str(features.parent / "annotations.json")]
    for name, options in (("says", []), ("silent", ["--reverse-b"]), ("silent", told), ("timeless", told)):
        out = tmp_path / "merged.json"
        command = ["merge", str(found), str(tmp_path / f"{name}.json"), "--out", str(out), "--method", method]
        assert main([*command, *options]) == 0
        merged = read_detections(out)
        assert merged.basis == "forward"
        np.testing.assert_allclose(merged.segments, expected.segments, atol=1e-6)
        np.testing.assert_allclose(merged.scores, expected.scores, atol=1e-9)


def test_reverse_takes_annotations_a_video_or_a_folder(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = features.parent / "annotations.json"
    assert main(["reverse", str(truth), str(tmp_path / "once.json")]) == 0
    assert main(["reverse", str(tmp_path / "once.json"), str(tmp_path / "twice.json")]) == 0
    for name, video in read_annotations(truth).videos.items():
        np.testing.assert_allclose(
            read_annotations(tmp_path / "twice.json").videos[name].segments, video.segments, atol=1e-6
        )
    folder = tmp_path / "videos"
    for name in ("a", "b"):
        write_video(folder / f"{name}.mp4", map(numbered_picture, range(20)), fps=FPS)
    assert main(["reverse", str(folder / "a.mp4"), str(tmp_path / "a_back.mp4")]) == 0
    assert probe(tmp_path / "a_back.mp4").frames == 20
    (folder / "c.mp4").write_text("no video")
    assert main(["reverse", str(folder), str(tmp_path / "back")]) == 1
    out, err = capsys.readouterr()
    assert out == "2 reversed, 0 kept from before, 1 failed\n"
    assert "bitad reverse: error: c.mp4" in err
    assert {file.name for file in (tmp_path / "back").iterdir()} == {"a.mp4", "b.mp4"}


def test_annotations_check_fails_where_there_are_defects(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = features.parent / "annotations.json"
    assert main(["annotations", "check", str(truth)]) == 0
    out = capsys.readouterr().out
    assert "7 videos" in out
    assert "training 4, validation 3" in out
    assert out.endswith("0 defects\n")
    assert main(["annotations", "check", str(truth), "--videos", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "test_0: no video file" in out
    assert out.endswith("7 defects\n")


def test_detect_finds_something_in_any_video_and_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = video_data(tmp_path / "data", training=2, test=1)
    assert main(["train", str(path), "training.epochs=1"]) == 0
    run = config_of(path).run_directory
    write_video(tmp_path / "holiday.mkv", map(numbered_picture, range(50)), fps=25)
    out = tmp_path / "out"
    command = ["detect", str(tmp_path / "holiday.mkv"), "--checkpoint", str(run), "--out", str(out)]
    assert main([*command, "--min-score", "0.001"]) == 0
    assert str(out / "index.html") in capsys.readouterr().out
    detections = read_detections(out / "detections.json")
    assert detections.videos == ("holiday",)
    assert len(detections) > 0
    assert detections.durations_s["holiday"] == pytest.approx(2.0)
    assert (out / "holiday.srt").read_text().strip()
    assert "holiday" in (out / "index.html").read_text()
