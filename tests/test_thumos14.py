"""The research group's commands, from docs/thumos14.md as written, on small videos in the group's layout."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from builders import FPS, numbered_picture

from bitad.cli import main
from bitad.config.loading import load_config, presets
from bitad.config.names import EXPERIMENTS
from bitad.data.classes import read_classes
from bitad.data.formats.database import read_annotations
from bitad.video.writer import write_video

pytestmark = pytest.mark.timeout(900)

DOCS = Path(__file__).parents[1] / "docs/thumos14.md"
FRAMES = 128
CLASSES = ("BaseballPitch", "CliffDiving", "Diving")
VIDEOS = {
    "val": ["video_validation_0000051", "video_validation_0000052"],
    "test": ["video_test_0000004"],
}
# What makes VideoMAE-H small; everything else is the preset's.
SMALL = {
    "base": "thumos14/videomae-h",
    "window": {"steps": 32, "stride_frames": 2},
    "model": {
        "channels": 16,
        "levels": 3,
        "stem_blocks": 1,
        "heads": 2,
        "backbone": {
            "size": "tiny",
            "weights": "package:playroom_backbone.safetensors",
            "pixels": 32,
            "table_pixels": 64,
        },
    },
    "training": {
        "epochs": 1,
        "schedule_epochs": 2,
        "warmup_epochs": 0.5,
        "evaluate_from": 0,
        "evaluate_every": 1,
        "workers": 0,
    },
}


def commands() -> list[str]:
    """The commands of the documentation's block of them."""
    block = re.search(
        r"<!-- a test runs this block.*?-->\n```sh\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL
    )
    assert block is not None
    return block[1].splitlines()


def official_folder(folder: Path) -> None:
    """Text files as THUMOS14's: a file a class and subset, CliffDiving also in Diving, and ambiguous spans."""
    rng = np.random.default_rng(0)
    for subset, names in VIDEOS.items():
        lines: dict[str, list[str]] = {label: [] for label in (*CLASSES, "Ambiguous")}
        for name in names:
            for label in ("BaseballPitch", "CliffDiving", "Ambiguous"):
                start = rng.uniform(0, FRAMES / FPS - 3)
                line = f"{name}  {start:.1f} {start + rng.uniform(0.5, 3):.1f}"
                lines[label].append(line)
                if label == "CliffDiving":
                    lines["Diving"].append(line)
        place = folder / f"annotations_{subset}"
        place.mkdir(parents=True)
        for label, rows in lines.items():
            (place / f"{label}_{subset}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all of the commands were run."""
    folder = tmp_path_factory.mktemp("group")
    for name in [name for names in VIDEOS.values() for name in names]:
        path = folder / f"data/for_thumos-14/raw_data/{name}.mp4"
        write_video(path, map(numbered_picture, range(FRAMES)), fps=FPS, crf=12, gop=12)
    official_folder(folder / "TH14_annotations")
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in commands():
            program, *arguments = shlex.split(
                command.replace("bitad train thumos14/videomae-h", "bitad train small.yaml")
            )
            assert program == "bitad"
            assert main(arguments) == 0, command
    return folder


@pytest.mark.slow
def test_the_folders_are_the_groups(done: Path) -> None:
    for direction in ("for", "back"):
        annotations = done / f"data/{direction}_thumos-14/annotations"
        assert read_classes(annotations / "category_idx.txt") == CLASSES
        truth = read_annotations(annotations / "thumos_14_anno.json", classes=annotations / "category_idx.txt")
        assert truth.subsets() == {"training": 2, "validation": 1}
        assert {len(video.labels) for video in truth.videos.values()} == {3}
        assert {path.stem for path in (done / f"data/{direction}_thumos-14/raw_data").iterdir()} == set(
            truth.videos
        )
    forward = read_annotations(done / "data/for_thumos-14/annotations/thumos_14_anno.json")
    back = read_annotations(done / "data/back_thumos-14/annotations/thumos_14_anno.json")
    for name, video in forward.reversed().videos.items():
        np.testing.assert_allclose(back.videos[name].segments, video.segments, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["forward", "reverse", "1", "1-1", "2", "3-1", "3-2", "3-3"])
def test_every_experiment_of_the_group_ends_with_detections(done: Path, run: str) -> None:
    folder = done / f"exps/thumos14-videomae-h-{run}-seed0"
    results = json.loads((folder / "detections.json").read_text(encoding="utf-8"))["results"]
    assert list(results) == VIDEOS["test"]
    bases = {"detections.forward.json", "detections.reverse.json"}
    assert bases & {path.name for path in folder.iterdir()} == (bases if run[0] in "123" else set())


@pytest.mark.slow
def test_testing_and_reporting_give_their_tables(done: Path) -> None:
    metrics = json.loads(
        (done / "exps/thumos14-videomae-h-3-1-seed0/test/metrics.json").read_text(encoding="utf-8")
    )
    assert list(metrics) == ["forward basis", "reverse basis", "merged"]
    rows = (done / "report/results.md").read_text(encoding="utf-8")
    assert all(f"| {row} " in rows for row in ("F", "B", "1-1, merged", "3-1, reverse basis"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("preset", [name for name in presets() if name.startswith("thumos14/")])
def test_every_preset_takes_every_experiment_that_it_can(preset: str, experiment: str) -> None:
    what = EXPERIMENTS[experiment]
    init = ["init.forward=f", "init.reverse=b"] if what.starts_from == "baselines" else []
    init += ["init.teacher=t"] if what.teacher else []
    features = preset.endswith("-i3d")
    if features and (what.adds or what.fusion):
        with pytest.raises(
            ValueError, match=f"experiment {experiment} (adds modules|fuses windows of one length)"
        ):
            load_config(preset, [f"experiment={experiment}", *init])
        return
    config = load_config(preset, [f"experiment={experiment}", *init])
    assert config.design is what
    assert config.model.padding == "reference"
