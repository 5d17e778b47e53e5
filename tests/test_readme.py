"""The README's commands do what it says, as they are written.

Every command of both READMEs is in one of the groups below, with the place where it is executed.
"""

from __future__ import annotations

import contextlib
import glob
import io
import json
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import layouts
import numpy as np
import pytest
import torch
import yaml
from bar_clips import write_clips, write_table
from builders import feature_data, numbered_picture
from documents import ROOT, Document
from numpy.typing import NDArray

import bitad
from bitad import read_annotations, read_detections
from bitad.cli import main
from bitad.config.loading import load_config, presets
from bitad.models.build import build_network
from bitad.video.writer import write_video
from bitad.weights.files import read_weights

README, KOREAN = Document(ROOT / "README.md"), Document(ROOT / "README.ko.md")
THUMOS = ROOT / "../shared/data/thumos14"

# In a folder of a user's own clips, in this order.
OWN_VIDEOS = (
    "bitad annotations check my.csv --videos my_videos --page look",
    "bitad init my.csv --videos my_videos",
    "bitad train my.yaml",
    "bitad report runs/my-forward-seed0 --out report",
    "bitad detect holiday.mp4 --checkpoint runs/my-forward-seed0",
)
# There, after these.
JUDGE = (
    "bitad diagnose runs/my-forward-seed0",
    "bitad report runs/my-forward-seed0 --out report --bootstrap 1000",
    "bitad evaluate --ground-truth my.json --detections runs/my-forward-seed0/detections.json"
    " --subset validation --metric ar",
)
CALL = 'bitad.load("runs/my-forward-seed0").detect("holiday.mp4")'
# Then; my.yaml then asks for one short epoch.
PLAN, WATCH = "bitad plan my.yaml", "bitad watch runs/my-forward-seed0"
REVERSE = "bitad train my.yaml direction=reverse"
PAIR = (
    "bitad train my.yaml experiment=3-1 init.forward=runs/my-forward-seed0 init.reverse=runs/my-reverse-seed0",
    "bitad test runs/my-3-1-seed0",
    "bitad report runs/my-* --out report",
)
AFTER = (PLAN, WATCH, REVERSE, *PAIR)
# On files in the form of the published ones.
INSPECT = "bitad weights inspect epoch_59.pth --config thumos14/videomae-s"
TEST = "bitad test epoch_59.pth --config thumos14/videomae-s"
FEATURES = "bitad features my_videos --checkpoint vit-huge.pth --direction both --out features"
# Which only show something.
PRESETS, SHOW = "bitad config --presets", "bitad config --show my.yaml"
# With the recorded data, in a folder beside the benchmarks.
MEASURE = (
    "python benchmarks/evaluation_speed.py"
    " --ground-truth thumos14.json.gz --detections actionformer_detections.json.gz --subset Test"
)
EXECUTED = (*OWN_VIDEOS, *JUDGE, CALL, *AFTER, INSPECT, TEST, FEATURES, PRESETS, SHOW, MEASURE)
# Executed with an option, because it takes minutes without.
QUICKER = {"bitad demo": "--smoke"}
# Executed otherwise: why, the test, and what is found in it.
OTHERWISE = {
    "torchrun --nproc_per_node=4 --max-restarts=3 -m bitad train my.yaml": (
        "four processes; with two",
        "tests/training/test_dead_process.py",
        '"torch.distributed.run", "--standalone", "--nproc-per-node=2"',
    ),
    "pip install -c constraints.txt .": (
        "downloads what BiTAD depends on; the built wheel alone",
        "tests/test_install.py",
        '"pip", "install", "--no-deps", "--no-index"',
    ),
}
# Executed by whoever runs this test: how its environment is made, and the command of the tests themselves.
BY_ITS_USER = {
    "python3 -m venv venv",
    ". venv/bin/activate",
    "venv\\Scripts\\activate",
    "uv venv",
    "uv pip install",
    "pip install -c constraints.txt -e '.[dev]'",
    "pytest -n 2",
}
VERIFICATION = re.compile(r"pytest (-m slow )?(tests/\S+ ?)+")  # of chosen tests, which run anyway


def executed(command: str) -> str:
    """Runs a command line of BiTAD as a shell would, and returns what it prints; it must succeed."""
    program, *words = shlex.split(command)
    assert program == "bitad"
    arguments = [found for word in words for found in (sorted(glob.glob(word)) if "*" in word else [word])]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(arguments) == 0, command
    return printed.getvalue()


def tiou(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    shared = min(one[1], other[1]) - max(one[0], other[0])
    return max(0.0, shared) / (one[1] - one[0] + other[1] - other[0] - max(0.0, shared))


def shown_share(truth: Path, found: Path) -> float:
    """The share of the validation videos' segments that a detection shown by default finds at tIoU 0.5."""
    detections = read_detections(found)
    least = detections.details["min_scores"]
    hits = []
    for video in read_annotations(truth).subset("validation").videos.values():
        own = next(one for one in detections if one.name == video.name)
        for segment, label in zip(video.segments, video.labels, strict=True):
            is_shown = (own.labels == label) & (own.scores >= least[label])
            hits.append(max((tiou(segment, other) for other in own.segments[is_shown]), default=0.0) >= 0.5)
    return sum(hits) / len(hits)


# The commands, in both languages.


def test_both_languages_have_the_same_commands() -> None:
    assert KOREAN.block_commands == README.block_commands
    assert sorted(KOREAN.inline_commands) == sorted(README.inline_commands)


@pytest.mark.parametrize("readme", [README, KOREAN], ids=["English", "Korean"])
def test_every_command_is_executed_by_a_test(readme: Document) -> None:
    commands = {*readme.block_commands, *readme.inline_commands}
    chosen = {command for command in commands if VERIFICATION.fullmatch(command)}
    known = (*EXECUTED, *QUICKER, *OTHERWISE, *BY_ITS_USER)
    assert commands - chosen == set(known)
    assert len(known) == len(set(known))
    blocks = readme.block_commands
    assert [command for command in blocks if command in EXECUTED] == [line for line in EXECUTED if line in blocks]


def test_commands_are_found_wherever_they_are(tmp_path: Path) -> None:
    text = """
`bitad init` writes `my.yaml`; so does `X=1 bitad init
my.csv`. | `torchrun` | `bitad.load("a").detect("b")`

```sh
pip install . && bitad demo  # shows
make \\
  all
```

* a

      pytest -n 2

| a | b | c |
| - | - | - |
| `python a.py` | `--out a` | `make it` |
"""
    (tmp_path / "a.md").write_text(text, encoding="utf-8")
    document = Document(tmp_path / "a.md")
    assert document.block_commands == ["pip install .", "bitad demo", "make all", "pytest -n 2"]
    assert document.inline_commands == [
        "X=1 bitad init my.csv",
        'bitad.load("a").detect("b")',
        "python a.py",
        "make it",
    ]
    assert document.names == ["bitad init", "torchrun"]


@pytest.mark.parametrize("name", sorted({name for name in README.names if name.startswith("bitad ")}))
def test_named_commands_exist(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*name.split()[1:], "--help"])
    assert capsys.readouterr().out.startswith(f"usage: {name} ")


@pytest.mark.parametrize("command", OTHERWISE)
def test_what_is_executed_otherwise_is_so_where_it_is_said(command: str) -> None:
    _, file, content = OTHERWISE[command]
    assert content in (ROOT / file).read_text(encoding="utf-8")


# Quick ones.


def test_presets_are_listed() -> None:
    assert [line.split()[0] for line in executed(PRESETS).splitlines()] == presets()


def test_values_are_shown_with_where_they_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feature_data(tmp_path / "data").rename(tmp_path / "my.yaml")
    monkeypatch.chdir(tmp_path)
    shown = executed(SHOW)
    assert re.search(r"^  epochs: 4  # my\.yaml", shown, re.MULTILINE)
    assert re.search(r"^seed: 0  # default", shown, re.MULTILINE)


# A user's own videos.


@dataclass(frozen=True)
class Own:
    """The folder in which the lines of "Your own videos" were executed, and how long they took."""

    folder: Path
    seconds: float
    page: str  # of `bitad report`, which a later command writes again


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Own:
    folder = tmp_path_factory.mktemp("own")
    write_table(write_clips(folder / "my_videos", 12), folder / "my.csv")
    write_clips(folder / "new", 1, seed=9)
    (folder / "new/clip00.mp4").rename(folder / "holiday.mp4")
    with contextlib.chdir(folder):
        begin = time.monotonic()
        for command in OWN_VIDEOS:
            executed(command)
        seconds = time.monotonic() - begin
    return Own(folder, seconds, (folder / "report/index.html").read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_five_lines_take_a_user_from_clips_and_a_table_to_a_page(own: Own) -> None:
    assert len(OWN_VIDEOS) == 5
    assert own.seconds < 300
    run = own.folder / "runs/my-forward-seed0"
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(line.get("average_map", 0.0) for line in metrics) > 0.5
    assert shown_share(own.folder / "my.json", run / "detections.json") >= 0.8
    assert "<video" in own.page
    assert (own.folder / "detections/index.html").is_file()
    assert (own.folder / "detections/holiday.srt").read_text(encoding="utf-8").strip()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_user_learns_what_is_wrong_and_how_certain_it_is(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own.folder)
    diagnosed, reported, recalled = map(executed, JUDGE)
    assert "wrong label" in diagnosed
    assert re.search(r"^F .* \d+\.\d \[\d+\.\d, \d+\.\d\]", reported, re.MULTILINE)
    assert "AR@100" in recalled


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_user_goes_on_to_two_networks_and_to_python(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own.folder)
    called, written = eval(CALL, {"bitad": bitad}), read_detections("detections/detections.json")
    np.testing.assert_allclose(called.scores, written.scores, atol=1e-6)
    np.testing.assert_allclose(called.segments, written.segments, atol=1e-6)
    assert "mAP (%)" in executed(WATCH)

    document = yaml.safe_load(Path("my.yaml").read_text(encoding="utf-8"))
    document["training"] |= {"epochs": 1, "windows_per_video": 1, "warmup_epochs": 0}
    Path("my.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    planned = executed(PLAN)
    for said in ("Parameters", "FLOP", "GiB", "steps per epoch", "Learning rate"):
        assert said in planned
    executed(REVERSE)
    train, test, report = PAIR
    executed(train)
    tested, reported = executed(test), executed(report)
    assert re.findall(r"^(forward basis|reverse basis|merged) ", tested, re.MULTILINE) == [
        "forward basis",
        "reverse basis",
        "merged",
    ]
    rows = re.findall(r"^(F|B|late fusion[^0-9]*|3-1, [a-z ]+?)  ", reported, re.MULTILINE)
    assert {"F", "B", "3-1, forward basis", "3-1, reverse basis", "3-1, merged"} <= set(rows)
    assert any(row.startswith("late fusion") for row in rows)
    assert "3-1, reverse basis" in Path("report/index.html").read_text(encoding="utf-8")


# Published files.


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files in the form of the published ones.

    ``epoch_59.pth`` has OpenTAD's names and sizes (test_formats.py compares them with a released file's) and random
    values, THUMOS14 is one short video, and ``vit-huge.pth`` has VideoMAE's names and a tiny size.
    """
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    network = build_network(load_config("thumos14/videomae-s"), 20)
    checkpoint = layouts.opentad_file(network.state_dict())
    torch.save({**checkpoint, "epoch": 59, "state_dict": {}}, folder / "epoch_59.pth")
    tiny = read_weights(ROOT / "bitad/config/presets/playroom_backbone.safetensors")
    torch.save(layouts.videomae_finetuned(tiny), folder / "vit-huge.pth")
    write_clips(folder / "my_videos", 1, seconds=1.0)

    data, name, frames = folder / "data/for_thumos-14", "video_test_0000004", 96
    write_video(data / f"raw_data/{name}.mp4", map(numbered_picture, range(frames)), fps=30, crf=20)
    actions = [{"segment": [0.5, 2.0], "label": "Diving"}]
    video = {"subset": "validation", "duration": frames / 30, "frame": frames, "annotations": actions}
    (data / "annotations").mkdir()
    (data / "annotations/thumos_14_anno.json").write_text(json.dumps({"database": {name: video}}))
    labels = ["Diving", *(f"class{number:02d}" for number in range(19))]
    (data / "annotations/category_idx.txt").write_text("\n".join(labels))
    return folder


@pytest.mark.slow
def test_a_published_detector_is_inspected_and_tested(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(published)
    inspected = executed(INSPECT)
    assert "OpenTAD" in inspected
    assert "epoch 59" in inspected
    assert "nothing missing, nothing unexpected" in inspected
    assert "Ground truth: subset “validation”, 1 video, 1 segment" in executed(TEST)


@pytest.mark.slow
def test_features_of_a_published_backbone_are_written_in_both_directions(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(published)
    executed(FEATURES)
    forward, reverse = (np.load(f"features/{direction}/clip00.npy") for direction in ("forward", "reverse"))
    assert forward.shape == reverse.shape
    assert np.abs(forward - reverse).max() > 1e-3


# The demo, and verification.


@pytest.mark.slow
def test_the_demo_runs_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ((command, option),) = QUICKER.items()
    executed(f"{command} {option}")
    assert "playroom-demo/index.html" in README.inline_code
    assert Path("playroom-demo/index.html").is_file()


def verifications() -> dict[str, list[str]]:
    """The paths of the README's `pytest` commands, by the option of the marker."""
    found: dict[str, list[str]] = {"not slow and not gpu": [], "slow": []}
    for command in filter(VERIFICATION.fullmatch, README.inline_commands):
        words = command.split()
        found["slow" if "slow" in words else "not slow and not gpu"] += [w for w in words if "/" in w]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("marker", "paths"), verifications().items())
def test_the_tests_that_verification_names_are_found(marker: str, paths: list[str]) -> None:
    command = (sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", marker, *paths)
    collected = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert collected.returncode == 0, collected.stdout
    lines = collected.stdout.splitlines()
    assert {path for path in paths if not any(line.startswith(path) for line in lines)} == set()


@pytest.mark.slow
@pytest.mark.skipif(not THUMOS.is_dir(), reason="THUMOS14's files, ../shared/data, are not beside this checkout")
def test_published_detections_are_evaluated_in_half_a_second(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    for name in ("thumos14.json.gz", "actionformer_detections.json.gz"):
        (tmp_path / name).symlink_to(THUMOS.resolve() / name)
    python, *words = shlex.split(MEASURE)
    assert python == "python"
    measured = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert measured.returncode == 0, measured.stderr
    row = next(line for line in measured.stdout.splitlines() if line.startswith("actionformer_detections"))
    assert row.split()[-1] == "66.83"
