"""Detectors of OpenTAD, tested by the command line: recorded frames and features in, its recorded results out."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from bitad.cli import main

FIXTURES = Path(__file__).parents[1] / "../shared/fixtures"
FPS, STRIDE = Fraction(2997, 100), 4
CLASSES = [f"class{number:02d}" for number in range(20)]

pytestmark = pytest.mark.skipif(
    not FIXTURES.is_dir(),
    reason="the recorded reference tensors, ../shared/fixtures, are not beside this checkout",
)

NUM_CLASSES = {"adatad_tiny": 20, "actionformer_local": 20, "tridet_local": 7}
MODEL = {"channels": 32, "heads": 4, "padding": "reference"}
CONFIGS = {
    "adatad_tiny": {
        "data": {"videos": "videos"},
        "window": {"steps": 64, "stride_frames": STRIDE},
        "model": {
            **MODEL,
            "backbone": {"size": {"dim": 32, "depth": 2, "heads": 2, "mlp_dim": 128}, "pixels": 64},
        },
    },
    "actionformer_local": {
        "data": {"features": "features", "feature_channels": 40, "feature_stride_frames": STRIDE},
        "window": {"steps": 128},
        "model": {**MODEL, "levels": 5, "attention_window": 9},
    },
    "tridet_local": {
        "data": {
            "features": "features",
            "feature_channels": 40,
            "feature_stride_frames": STRIDE,
            "feature_offset_frames": 8,
        },
        "window": {"steps": 128},
        "model": {
            **MODEL,
            "levels": 5,
            "pyramid": {"type": "sgp", "mlp_channels": 48},
            "head": {"type": "trident"},
        },
    },
}


def write_lossless(path: Path, frames: NDArray[np.uint8]) -> None:
    """FFV1, in RGB: the frames ``[T, H, W, 3]`` come back bit by bit."""
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode())


def data_of(recording: Path, folder: Path) -> dict[str, float]:
    """Writes the recorded windows as whole videos, or features of such, and how long they last; their first frames.

    The second window was recorded from frame 256 on; as a video of its own it begins at 0, and ends as much earlier.
    """
    metas = json.loads((recording / "post_sliding.json").read_text())["metas"]
    videos, begins = {}, {}
    with np.load(recording / "inputs.npz") as arrays:
        for i, meta in enumerate(metas):
            name, real = meta["video_name"], int(arrays["in.masks"][i].sum())
            if "in.feats" in arrays:
                (folder / "features").mkdir(exist_ok=True)
                np.save(folder / f"features/{name}.npy", arrays["in.feats"][i, :, :real].T)
            else:
                frames = arrays["in.frames"][i, 0, :, :real].transpose(1, 2, 3, 0)
                write_lossless(folder / f"videos/{name}.avi", frames.repeat(STRIDE, axis=0))
            begins[name] = meta["window_start_frame"] / meta["fps"]
            videos[name] = {
                "subset": "validation",
                "duration": meta["duration"] - begins[name],
                "fps": meta["fps"],
                "annotations": [{"segment": [0.5, 2.5], "label": CLASSES[0]}],  # something to be evaluated against
            }
    (folder / "annotations.json").write_text(json.dumps({"database": videos}))
    (folder / "classes.txt").write_text("\n".join(CLASSES[: NUM_CLASSES[recording.name]]))
    return begins


@pytest.fixture(scope="module", params=CONFIGS)
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict]:
    """A recording, the folder with its data and configuration, and where its windows began, in seconds."""
    recording, folder = FIXTURES / request.param, tmp_path_factory.mktemp(request.param)
    begins = data_of(recording, folder)
    document: dict[str, Any] = {"name": request.param, "threads": 1, **CONFIGS[request.param]}
    document["data"] = {**document["data"], "annotations": "annotations.json", "classes": "classes.txt"}
    document["data"]["allow_clock_mismatch"] = (
        True  # the recorded windows are parts of the videos that lasted so long
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(document))
    return recording, folder, begins


def found_by_the_command(
    recording: Path, folder: Path, patch: pytest.MonkeyPatch, *overrides: str
) -> dict[str, list[dict[str, Any]]]:
    patch.chdir(folder)
    checkpoint = str(recording / "checkpoint.pth")
    assert main(["test", checkpoint, "--config", "config.yaml", "--out", "out", *overrides]) == 0
    return json.loads((folder / "out/detections.json").read_text())["results"]


def assert_same(found: list[dict[str, Any]], recorded: list[dict[str, Any]], begin: float) -> None:
    """Row by row, but for a last decimal here and there and neighbours of equal score changing places."""
    assert len(found) == len(recorded)
    np.testing.assert_allclose([row["score"] for row in found], [row["score"] for row in recorded], atol=1.01e-4)
    mine, theirs = (np.array([row["segment"] for row in rows]) for rows in (found, recorded))
    near = np.abs(mine - np.maximum(theirs - begin, 0)).max(axis=1) < 0.0151  # each was rounded on its own clock
    same = near & np.array([a["label"] == b["label"] for a, b in zip(found, recorded, strict=True)])
    assert same.mean() >= 0.995


def test_candidates_of_sliding_windows(
    recorded: tuple[Path, Path, dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    recording, folder, begins = recorded
    found = found_by_the_command(recording, folder, monkeypatch, "test.nms.method=none")
    for name, rows in json.loads((recording / "post_sliding.json").read_text())["results"].items():
        assert_same(found[name], rows, begins[name])


def test_detections_of_whole_videos(
    recorded: tuple[Path, Path, dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    recording, folder, begins = recorded
    expected = json.loads((recording / "post_padding.json").read_text())
    nms = expected["nms"]
    overrides = (
        "window.layout=whole",
        f"test.nms.sigma={nms['sigma']}",
        f"test.nms.max_segments={nms['max_seg_num']}",
        f"test.nms.min_score={nms['min_score']}",
        f"test.nms.voting_threshold={nms['voting_thresh']}",
    )
    found = found_by_the_command(recording, folder, monkeypatch, *overrides)
    for name, rows in expected["results"].items():
        assert_same(found[name], rows, begins[name])


def test_a_file_that_brings_no_configuration_asks_for_one(
    recorded: tuple[Path, Path, dict[str, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["test", str(recorded[0] / "checkpoint.pth")]) == 1
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bitad test: error: ")]
    assert "--config" in message
