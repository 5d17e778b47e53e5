"""Every block of commands and of Python in docs/ is executed, or marked with the reason why it is not.

The commands of each page are executed in its order, as they are written, in a small project with stand-ins for
the files that they name. The READMEs have tests of their own (test_readme.py).
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import io
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pytest
import torch
import yaml
from bar_clips import write_clips, write_table
from builders import FPS, feature_data, numbered_picture
from documents import ROOT, Document

from bitad import read_annotations
from bitad.cli import main
from bitad.config.loading import load_config
from bitad.video.writer import write_video
from bitad.weights.files import read_weights

DOCS = sorted((ROOT / "docs").glob("*.md"))
CLASSES = ("rise", "fall", "spill")

# Placeholders of the pages, and what stands for them here.
NAMES = {"CONFIG": "my.yaml", "NAME": "my"}

# Pages whose commands have a test of their own, which executes them all.
OWN = {"annotating.md": "tests/test_annotating.py", "thumos14.md": "tests/test_thumos14.py"}

# Not executed here, by the beginning of the command: why, and a test of the same thing with what it finds there.
THUMOS = ("needs THUMOS14", "tests/test_thumos14.py", "research group")
CLUSTER = (
    "needs several GPUs; two processes of a CPU",
    "tests/training/test_dead_process.py",
    '"--nproc-per-node=2"',
)
DEMO = ("takes minutes; with --smoke", "tests/test_readme.py", 'QUICKER = {"bitad demo": "--smoke"}')
PLAYROOM = ("takes minutes, and needs the demo's data", "tests/test_demo.py", "run_demo")
CONTROLS = ("takes minutes, and needs the demo's data", "tests/test_controls.py", "reversed-features")
HUB = ("downloads; from a server in the tests", "tests/models/test_hub.py", "weights")
FILES = (
    "needs a published file; of its names and sizes",
    "tests/test_readme.py",
    "bitad weights inspect epoch_59.pth",
)
PIP = ("downloads", "tests/test_install.py", '"pip", "install"')
FEATURES = (
    "needs VideoMAE; a small one",
    "tests/test_readme.py",
    "bitad features my_videos --checkpoint vit-huge.pth",
)
GTEA = ("needs GTEA's features", "tests/test_gtea.py", "argmax")
BENCHMARK = ("measures for minutes", "tests/test_benchmarks.py", "speed.main")
OTHERWISE = {
    "bitad train thumos14/": THUMOS,
    **dict.fromkeys(("torchrun ", "srun "), CLUSTER),
    "bitad demo ": DEMO,
    "bitad plan thumos14/": ("simulates 1.4 billion parameters; every preset", "tests/test_plan.py", "presets())"),
    "bitad train playroom model.": (
        "needs the demo's data; on features",
        "tests/models/test_tridet.py",
        "trident",
    ),
    "bitad train playroom seed=": (
        "needs the demo's data; on small videos",
        "tests/models/test_adapter_placement.py",
        "adapter_placement=beside",
    ),
    "bitad train playroom direction=": CONTROLS,
    "bitad train playroom-pair ": CONTROLS,
    "bitad weights ": FILES,
    "bitad weights download ": HUB,
    "bitad weights push ": HUB,
    "bitad weights pull ": HUB,
    "bitad detect VIDEO.mp4 ": HUB,
    "bitad features my_videos --encoder ": (
        "needs a published encoder; tiny ones",
        "tests/inference/test_published_encoders.py",
        "--encoder",
    ),
    "bitad train my.yaml model.backbone.type=vjepa2 ": HUB,
    "bitad track runs/my-forward-seed0 --to mlflow ": (
        "needs a server; a local one",
        "tests/test_track_command.py",
        "mlflow",
    ),
    "bitad track runs/my-forward-seed0 --to wandb ": (
        "needs an account; offline",
        "tests/test_track_command.py",
        "wandb",
    ),
    "bitad train my.yaml model.backbone.weights=hub:": HUB,
    "bitad test FILE.pth ": FILES,
    "pip install ": PIP,
    "bitad features raw_data ": FEATURES,
    "bitad train my.yaml data.features=features/h/": FEATURES,
    "bitad train epic-kitchens/": (
        "needs EPIC-KITCHENS' features; every preset",
        "tests/test_plan.py",
        "presets())",
    ),
    "bitad annotations convert epic-kitchens-": (
        "needs EPIC-KITCHENS' annotations; its form",
        "tests/data/test_annotation_forms.py",
        "epic-kitchens-verb",
    ),
    "bitad train my.yaml experiment=3-3 pair.fusion=gated ": (
        "needs the page's fusion",
        "tests/test_extending.py",
        '"pair.fusion=gated"',
    ),
    "bitad train gtea": GTEA,
    "python benchmarks/gtea.py ": GTEA,
    "python benchmarks/heads.py ": PLAYROOM,
    "python benchmarks/pretrain_playroom.py ": ("takes an hour", "tests/data/test_playroom.py", "CLASSES"),
    "python benchmarks/": BENCHMARK,
    "mkdocs build ": (
        "writes the site; into another folder",
        "tests/test_site.py",
        '"mkdocs", "build", "--strict"',
    ),
    ".ci/platforms ": ("downloads 3 GB; with the packages at hand", "tests/test_platforms.py", ".ci/platforms"),
    "docker ": ("needs Docker; the steps of the file", "tests/test_dockerfile.py", "def instructions()"),
    "git clone ": ("downloads", "tests/test_benchmarks.py", "clone"),
}
# Executed with changes that make them shorter, by page and the beginning of the command.
SHORTER = {
    ("own-videos.md", "bitad train my"): "training.epochs=1 training.warmup_epochs=0 training.windows_per_video=1"
}
# Blocks of Python are executed by the tests of these pages.
PYTHON = {"library.md": "tests/test_library.py", "extending.md": "tests/test_extending.py"}


def otherwise(command: str) -> tuple[str, str, str] | None:
    """Of the longest beginning."""
    fitting = [beginning for beginning in OTHERWISE if command.startswith(beginning)]
    return OTHERWISE[max(fitting, key=len)] if fitting else None


def documented(page: Path) -> list[str]:
    return [] if page.name in OWN else Document(page).block_commands


def commands(page: Path) -> list[str]:
    return [command for command in documented(page) if otherwise(command) is None]


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_blocks_of_python_are_on_pages_whose_tests_execute_them(page: Path) -> None:
    languages = {token.info.partition(" ")[0] for token in Document(page).blocks if token.type == "fence"}
    assert languages <= {"python", "sh", ""}
    assert ("python" in languages) == (page.name in PYTHON)


@pytest.mark.parametrize("beginning", OTHERWISE)
def test_what_is_not_executed_is_on_a_page_and_tested_where_it_is_said(beginning: str) -> None:
    assert any(otherwise(command) is OTHERWISE[beginning] for page in DOCS for command in documented(page))
    _, file, content = OTHERWISE[beginning]
    assert content in (ROOT / file).read_text(encoding="utf-8")


@pytest.mark.parametrize(("page", "test"), (OWN | PYTHON).items())
def test_a_page_with_a_test_of_its_own_is_read_there(page: str, test: str) -> None:
    assert page in (ROOT / test).read_text(encoding="utf-8")


# The project.


def write_project(folder: Path) -> None:
    """A project of features whose classes are those of the pages, with two baselines and a pair of them."""
    document = yaml.safe_load(feature_data(folder, training=4, test=3).read_text(encoding="utf-8"))
    truth = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))
    text = json.dumps(truth)
    for old, new in zip(("alpha", "beta", "gamma"), CLASSES, strict=True):
        text = text.replace(f'"{old}"', f'"{new}"')
    truth = json.loads(text)
    for name, subset in (("test_1", "val"), ("test_2", "test")):
        truth["database"][name]["subset"] = subset
    (folder / "my.json").write_text(json.dumps(truth), encoding="utf-8")
    (folder / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    (folder / "features").rename(folder / "my_features")
    document["data"] |= {"annotations": "my.json", "classes": "classes.txt", "features": "my_features"}
    document |= {"name": "my", "output": "runs"}
    document["training"] |= {"epochs": 1, "warmup_epochs": 0, "evaluate_every": 1000}
    for unused in ("annotations.json", "config.yaml"):
        (folder / unused).unlink()
    (folder / "my.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    for name, video in truth["database"].items():
        frames = round(video["duration"] * FPS)
        write_video(folder / f"my_videos/{name}.mp4", map(numbered_picture, range(frames)), fps=FPS, crf=30)
    rows = (
        (name, *one["segment"], one["label"])
        for name, video in truth["database"].items()
        for one in video["annotations"]
    )
    (folder / "my.csv").write_text(
        "\n".join(",".join(map(str, row)) for row in (("video", "start", "end", "label"), *rows)), encoding="utf-8"
    )
    with contextlib.chdir(folder):
        for words in ("", "direction=reverse", "experiment=3-3 init.forward={F} init.reverse={B}"):
            executed(f"bitad train my.yaml {words}".format(F=FORWARD, B="runs/my-reverse-seed0"))
        write_stand_ins(truth)


FORWARD = "runs/my-forward-seed0"


def write_stand_ins(truth: dict[str, Any]) -> None:
    """In the working directory, the files that pages name, of this project's content."""
    database = truth["database"]
    tested = {name: video for name, video in database.items() if name == "test_0"}
    for name, subset in (("thumos14", "Test"), ("multithumos", "test"), ("charades", "test"), ("gtea", "test")):
        own = {"database": {key: video | {"subset": subset} for key, video in tested.items()}}
        Path(f"{name}.json").write_text(json.dumps(own), encoding="utf-8")
    annotations = read_annotations("multithumos.json")
    rng = np.random.default_rng(0)
    arrays = {name: rng.random((40, len(annotations.classes))) for name in tested}
    np.savez("scores.npz", **arrays)  # type: ignore[arg-type]
    Path("Ambiguous_test.txt").write_text("test_0 0.1 0.2\n", encoding="utf-8")
    detections = Path(FORWARD, "detections.json")
    for name in ("found", "merged", "a", "b"):
        shutil.copy(detections, f"{name}.json")
    Path("actionformer_detections.json.gz").write_bytes(gzip.compress(detections.read_bytes()))
    Path("thumos14.json.gz").write_bytes(gzip.compress(Path("thumos14.json").read_bytes()))
    for name in ("forward-seed0", "forward-seed1", "reverse-seed0", "3-3-seed0"):
        run = shutil.copytree(f"runs/my-{name.replace('seed1', 'seed0')}", f"playroom-demo/runs/playroom-{name}")
        config = Path(run, "config.yaml")
        config.write_text(
            config.read_text(encoding="utf-8").replace("seed: 0", f"seed: {name[-1]}"), encoding="utf-8"
        )


def with_videos() -> None:
    """The project of a user's own videos, before its first command."""
    for name in ("my.yaml", "my.json"):
        Path(name).unlink()
    shutil.rmtree("runs")
    for folder in ("my_videos", "my_features"):
        shutil.rmtree(folder)
    write_table(write_clips(Path("my_videos"), 4, seconds=4.0), Path("my.csv"))
    tiny = read_weights(ROOT / "bitad/config/presets/playroom_backbone.safetensors")
    torch.save(layouts.videomae_finetuned(tiny), "tiny.pth")
    executed("bitad features my_videos --checkpoint tiny.pth --out my_features")


# What a page needs besides, or instead.
PREPARED: dict[str, Callable[[], None]] = {"own-videos.md": with_videos}


def executed(command: str, page: str = "") -> None:
    """Runs a command line of BiTAD as a shell would; it must succeed. A run of an earlier command is replaced."""
    line, _, target = command.partition(" > ")
    changes = [
        change for (own, beginning), change in SHORTER.items() if own == page and line.startswith(beginning)
    ]
    program, *words = shlex.split(" ".join([line, *changes]))
    assert program == "bitad"
    # As a shell: patterns without quotes; those in quotes are BiTAD's.
    quoted = set(re.findall(r"'([^']*)'", line))
    words = [
        match
        for word in words
        for match in (sorted(glob.glob(word)) if "*" in word and word not in quoted else [word])
    ]
    for old, new in NAMES.items():
        words = [re.sub(rf"\b{old}\b", new, word) for word in words]
    if words[0] == "train" and "--resume" not in words:
        overrides = [word for word in words[2:] if "=" in word]
        shutil.rmtree(load_config(words[1], overrides).run_directory, ignore_errors=True)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            status = main(words)
        except SystemExit as ended:
            status = int(ended.code or 0)
    assert status == 0, command
    if target:
        place = Path(target.strip()).expanduser()
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(printed.getvalue(), encoding="utf-8")
        assert printed.getvalue().strip()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documented") / "project"
    folder.mkdir()
    write_project(folder)
    shutil.copytree(folder, folder.with_name("as_written"))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("page", [page for page in DOCS if commands(page)], ids=lambda page: page.name)
def test_the_commands_of_a_page_are_executed(page: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(project)
    shutil.copytree(project.with_name("as_written"), project)  # in the same place: runs name it
    monkeypatch.chdir(project)
    monkeypatch.setenv("HOME", str(project))
    PREPARED.get(page.name, lambda: None)()
    for command in commands(page):
        executed(command, page.name)
