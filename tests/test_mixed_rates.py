"""Videos of several frame rates on one rate of grid steps: `window.steps_per_second`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from builders import CLASSES, config_of, feature_data, numbered_picture, video_data

from bitad.cli import main
from bitad.config.loading import ConfigError, load_config
from bitad.config.schema import WindowConfig
from bitad.data.detections import read_detections
from bitad.data.sources import Sampling, build_source, read_ground_truth
from bitad.inference.detect import detect_videos
from bitad.library import checkpoint_of
from bitad.models.build import build_network
from bitad.runtime.distributed import Ranks
from bitad.video.writer import write_video
from bitad.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training videos, of 16 and of 24 frames a second, and a test video of 16."""
    path = video_data(tmp_path_factory.mktemp("data"))
    faster = (numbered_picture(round(n / 1.5) % 75) for n in range(112))
    write_video(path.parent / "videos" / "train_1.mp4", faster, fps=24, crf=12, gop=12)
    annotations = path.parent / "annotations.json"
    annotations.write_text(
        annotations.read_text().replace('"frame": 75', '"frame": null').replace('"fps": 16.0', '"fps": null')
    )
    return path


RATE = ("window.stride_frames=4", "window.steps_per_second=8")


def test_each_video_takes_the_nearest_stride() -> None:
    sampling = Sampling(WindowConfig(steps_per_second=7.5))
    strides = [sampling.grid(fps, 600).stride_frames for fps in (24, 25, 29.97, 30, 50, 60, 5)]
    assert strides == [3, 3, 4, 4, 7, 8, 1]


def test_it_has_priority_over_the_rate_that_training_found() -> None:
    assert Sampling(WindowConfig(steps_per_second=7.5), rate_hz=15.0).grid(30.0, 600).stride_frames == 4


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("window.stride_frames=2",), "window.stride_frames=2 has no effect with window.steps_per_second=8"),
        (("window.layout=resized",), "no effect with window.layout=resized"),
        (("window.frames_per_step=2", "window.steps=32"), "use window.stride_frames, or window.frames_per_step=1"),
        (("window.steps_per_second=0",), "window.steps_per_second"),
    ],
)
def test_combinations_that_contradict_are_refused(data: Path, overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError) as fault:
        config_of(data, *RATE, *overrides)
    assert said in str(fault.value)


def test_features_have_their_own_stride(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no effect on features, whose stride is data\.feature_stride_frames"):
        load_config(feature_data(tmp_path / "data"), ["window.steps_per_second=8"])


def test_a_training_and_its_detections_use_it(data: Path, tmp_path: Path) -> None:
    output = f"output={tmp_path}"
    overrides = [*RATE, output, "training.epochs=1", "training.warmup_epochs=0"]
    assert main(["train", str(data), *overrides, "--device", "cpu"]) == 0
    (run,) = tmp_path.glob("tiny-*")
    trained = load_checkpoint(run)
    assert trained.config.window.steps_per_second == 8
    assert trained.rate_hz == 8  # of strides 2 and 3
    films = sorted((data.parent / "videos").glob("train_*.mp4"))
    out = ["--out", str(tmp_path / "found"), "--device", "cpu"]
    assert main(["detect", *map(str, films), "--checkpoint", str(run), *out]) == 0
    assert set(read_detections(tmp_path / "found" / "detections.json").videos) == {"train_0", "train_1"}


def test_videos_have_grids_of_the_same_rate(data: Path) -> None:
    config = config_of(data, *RATE)
    source = build_source(config)
    grids = [source.grid(video) for video in read_ground_truth(config.data).videos.values()]
    assert [(grid.fps, grid.stride_frames) for grid in grids] == [(16, 2), (24, 3), (16, 2)]


@pytest.fixture(scope="module")
def checkpoint(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = config_of(data, *RATE)
    torch.manual_seed(0)
    weights = build_network(config, len(CLASSES)).state_dict()
    file = tmp_path_factory.mktemp("run") / "best.pt"
    save_checkpoint(Checkpoint(config, CLASSES, weights, 1, rate_hz=16.0), file)
    return file


def test_detecting_takes_it_and_not_the_median(checkpoint: Path, data: Path) -> None:
    film = {"train_1": data.parent / "videos" / "train_1.mp4"}
    same = load_checkpoint(checkpoint)
    same.rate_hz = 8.0
    ranks = Ranks(0, 1, torch.device("cpu"))
    one, other = (detect_videos(saved, film, ranks) for saved in (load_checkpoint(checkpoint), same))
    np.testing.assert_array_equal(one["train_1"].segments, other["train_1"].segments)


def test_a_test_cannot_change_it(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"window\.steps_per_second"):
        checkpoint_of(checkpoint, None, ["window.steps_per_second=4"])


def test_extracting_features_needs_a_stride(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "features"
    film = data.parent / "videos" / "train_1.mp4"
    command = ["features", str(film), "--checkpoint", str(checkpoint), "--out", str(out), "--device", "cpu"]
    assert main(command) == 1
    assert "give --stride FRAMES" in capsys.readouterr().err
    assert not out.exists()
    assert main([*command, "--stride", "3"]) == 0
    assert np.load(out / "train_1.npy").shape[0] == 38  # 112 frames
