"""The backbone over a whole video in pieces is the backbone over the whole video at once; only its windows differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import CLASSES, FPS, config_of, video_data
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from runs import OneOfTwo
from torch import Tensor

import bitad.inference.whole_video
from bitad.cli import main
from bitad.config.schema import Config
from bitad.data.annotations import Annotations
from bitad.data.detections import read_detections
from bitad.data.formats.database import read_annotations
from bitad.data.sources import build_source
from bitad.inference.detect import Results, detect
from bitad.inference.whole_video import FeatureStream
from bitad.models.backbone import VideoBackbone
from bitad.models.build import Network, build_network
from bitad.models.vit import TemporalAdapter, VisionTransformer
from bitad.runtime.distributed import Ranks
from bitad.video.reader import VideoReader
from bitad.video.reverse import reverse_folder
from bitad.weights.checkpoint import Checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"))
INIT = ("init.forward=f", "init.reverse=b")  # asked for; nothing here reads them
UNROUNDED = ("test.rounding=false", "test.nms.voting_threshold=0", "test.nms.method=vanilla")


def awake(network: torch.nn.Module, seed: int = 0) -> Any:
    """A network whose adapters and direction embedding do something, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if ".up." in name or ".depthwise." in name or name == "direction_embedding":
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return network.eval()


def backbone_of(adapters: Sequence[bool], second: Sequence[bool], frames_per_step: int, *, kernel: int) -> Any:
    def given_adapters(there: Sequence[bool]) -> list[TemporalAdapter | None]:
        return [TemporalAdapter(16, kernel_size=kernel) if one else None for one in there]

    torch.manual_seed(0)
    vit = VisionTransformer(
        dim=16,
        depth=len(adapters),
        heads=2,
        mlp_dim=32,
        patch_size=4,
        image_size=8,
        adapters=given_adapters(adapters),
        bi_adapters=given_adapters(second),
    )
    return awake(VideoBackbone(vit, frames_per_step=frames_per_step))


def at_once(backbone: VideoBackbone, frames: Tensor, length: int, *, backwards: bool) -> Tensor:
    """The slow obvious way: all frames as one window."""
    view = frames.flip(0) if backwards else frames
    features: Tensor = backbone(torch.cat((view, view[-1:].expand(length - len(view), -1, -1, -1)))[None])[0]
    return features


@given(data=st.data())
@settings(deadline=None, max_examples=30)
@torch.inference_mode()
def test_pieces_of_any_length_give_the_features_of_all_frames_at_once(data: st.DataObject) -> None:
    flags = st.lists(st.booleans(), min_size=3, max_size=3)
    backbone = backbone_of(
        data.draw(flags),
        data.draw(flags),
        data.draw(st.sampled_from((1, 2, 4))),
        kernel=data.draw(st.sampled_from((3, 5, 19))),
    )
    count = data.draw(st.integers(1, 150))
    length = -(-count // 16) * 16 + 16 * data.draw(st.integers(0, 3))
    cuts = data.draw(st.lists(st.integers(1, count), max_size=6))
    backwards = data.draw(st.booleans())
    frames = torch.from_numpy(np.random.default_rng(count).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8))
    stream = FeatureStream(backbone, frames=count, length=length, reverse=backwards)
    for first, stop in zip([0, *sorted(cuts)], [*sorted(cuts), count], strict=True):
        if stop > first:
            stream.push(frames[first:stop])
    expected = at_once(backbone, frames, length, backwards=backwards)
    assert expected.std() > 0.1
    torch.testing.assert_close(stream.finish(), expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_adapters_see_across_pieces() -> None:
    """Else the test above could not fail."""
    backbone = backbone_of([True] * 3, [False] * 3, 1, kernel=3)
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), dtype=np.uint8))
    whole = at_once(backbone, frames, 64, backwards=False)
    apart = torch.cat([at_once(backbone, part, 32, backwards=False) for part in frames.split(32)], dim=1)
    assert (whole - apart).abs().max() > 0.01


# Testing.


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of more than two windows, and their reversed playback."""
    path = video_data(tmp_path_factory.mktemp("long") / "data", test=2, frames=150)
    reverse_folder(path.parent / "videos", path.parent / "reversed", workers=0)
    return path


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos that fit one window."""
    return video_data(tmp_path_factory.mktemp("short") / "data", test=2, frames=50)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a batch of windows, however short."""
    monkeypatch.setattr(bitad.inference.whole_video, "CHUNK_FRAMES", 16)


def truth_of(config: Config) -> Annotations:
    return read_annotations(config.data.annotations, classes=config.data.classes).subset("validation")


def network_of(config: Config) -> Network:
    torch.manual_seed(0)
    network: Network = awake(build_network(config, len(CLASSES)))
    return network


def results(config: Config, *, ranks: Ranks = ALONE, source: Any = None) -> Results:
    source = build_source(config) if source is None else source
    return detect(network_of(config), truth_of(config), source, config, ranks)


def assert_found_alike(one: Results, other: Results, *, atol: float = 2e-4) -> None:
    assert one.views == other.views
    for basis, found in one.bases.items():
        assert len(found) == len(other.bases[basis]) > 0
        # A rounding error may swap two of nearly equal scores.
        mine, theirs = (in_order(detections) for detections in (found, other.bases[basis]))
        np.testing.assert_allclose(mine, theirs, atol=atol)


def in_order(found: Any) -> NDArray[Any]:
    table = np.column_stack((found.video, found.labels, found.segments, found.scores))
    return table[np.lexsort(table.round(2).T[::-1])]


EXPERIMENTS = {
    "forward": (),
    "reverse": ("direction=reverse",),
    "1-1": ("experiment=1-1", *INIT),
    "1s": ("experiment=1s", "pair.direction_embedding=true"),
    "2": ("experiment=2", *INIT),
    "3-1": ("experiment=3-1", *INIT),
    "two forward": ("experiment=1-1", *INIT, "pair.second=forward"),
    "flipped": ("direction=flipped", "training.augmentation.flip=0"),
    "3-1, flipped": ("experiment=3-1", *INIT, "pair.second=flipped", "training.augmentation.flip=0"),
    "reversed features": ("direction=reversed-features",),
    "3-1, reversed features": ("experiment=3-1", *INIT, "pair.second=reversed-features"),
    "reverse, adapters beside": ("direction=reverse", "model.backbone.adapter_placement=beside"),
    "2, adapters beside": ("experiment=2", *INIT, "model.backbone.adapter_placement=beside"),
}


@pytest.mark.parametrize(("per_step", "padding"), [(1, "strict"), (2, "reference")])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_of_a_video_that_fits_one_window_nothing_changes(
    short: Path, experiment: str, per_step: int, padding: str
) -> None:
    overrides = (
        *EXPERIMENTS[experiment],
        *UNROUNDED,
        f"model.padding={padding}",
        f"window.frames_per_step={per_step}",
    )
    by_window, by_video = (
        results(config_of(short, *overrides, f"test.backbone={how}")) for how in ("window", "video")
    )
    assert_found_alike(by_window, by_video)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(
    ("experiment", "reversed_copies"),
    [*((name, False) for name in EXPERIMENTS), *((name, True) for name in ("reverse", "1-1", "2", "3-1"))],
)
def test_windows_are_cut_out_of_the_features_of_the_whole_video(
    long: Path, experiment: str, reversed_copies: bool
) -> None:
    """A backbone without adapters sees no further than its clips, so on windows of whole clips nothing changes."""
    overrides = (
        *EXPERIMENTS[experiment],
        *UNROUNDED,
        "window.overlap=0.5",
        "window.frames_per_step=2",
        "window.steps=16",
        "test.batch=1",
        *([f"data.reversed_videos={long.parent / 'reversed'}"] if reversed_copies else []),
    )
    found = []
    for how in ("window", "video"):
        config = config_of(long, *overrides, f"test.backbone={how}")
        # 40 steps, so that the last window too begins and ends with a clip; in a full window nothing is padded.
        source = Shortened(build_source(config), 40)
        network = network_of(config)
        for name, parameter in network.named_parameters():
            if ".up." in name:
                parameter.data.zero_()
        found.append(detect(network, truth_of(config), source, config, ALONE))
    assert_found_alike(*found)


class Shortened:
    """A source's videos without what comes after some grid steps, whose reading is recorded."""

    def __init__(self, source: Any, steps: int | None = None) -> None:
        self.source, self.steps = source, steps
        self.lengths: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def grid(self, video: Any) -> Any:
        base = self.source.grid(video)
        return base if self.steps is None else replace(base, steps=self.steps)

    def read(self, video: Any, grid: Any, **keywords: Any) -> Tensor:
        content: Tensor = self.source.read(video, grid, **keywords)
        self.lengths.append(len(content))
        return content


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("experiment", ["forward", "reverse", "1-1", "2"])
def test_a_video_looked_at_whole_is_found_alike_in_pieces(long: Path, experiment: str) -> None:
    overrides = (*EXPERIMENTS[experiment], *UNROUNDED, "window.layout=whole", "window.steps=16", "test.batch=1")
    by_window, by_video = (
        results(config_of(long, *overrides, f"test.backbone={how}")) for how in ("window", "video")
    )
    assert_found_alike(by_window, by_video)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("experiment", ["reverse", "3-1"])
def test_every_frame_is_read_once_in_pieces_no_longer_than_a_batch(long: Path, experiment: str) -> None:
    config = config_of(long, *EXPERIMENTS[experiment], "test.backbone=video", "window.steps=16", "test.batch=2")
    source = Shortened(build_source(config))
    results(config, source=source)
    assert source.lengths == [32, 32, 11] * 2


@pytest.mark.usefixtures("small_pieces")
def test_every_frame_is_decoded_once(long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: Counter[tuple[str, int]] = Counter()
    read = VideoReader.read

    def counting(self: VideoReader, frames: Any, **keywords: Any) -> Any:
        decoded.update((self.path.name, int(frame)) for frame in frames)
        return read(self, frames, **keywords)

    monkeypatch.setattr(VideoReader, "read", counting)
    results(config_of(long, *EXPERIMENTS["1-1"], "test.backbone=video", "window.steps=16", "test.batch=1"))
    assert decoded == {(f"test_{i}.mp4", frame): 1 for i in range(2) for frame in range(0, 150, 2)}


@pytest.mark.usefixtures("small_pieces")
def test_neither_workers_nor_batches_nor_processes_matter(long: Path) -> None:
    overrides = ("test.backbone=video", "window.steps=16", *UNROUNDED)
    alone = results(config_of(long, *overrides))
    assert_found_alike(alone, results(config_of(long, *overrides, "test.batch=1", "test.workers=1")))
    shares = [results(config_of(long, *overrides), ranks=OneOfTwo(rank)) for rank in range(2)]
    videos = [set(share.merged.of_video(name).scores.tolist()) for share in shares for name in share.merged.videos]
    assert sum(len(share.merged) for share in shares) == len(alone.merged)
    assert [bool(scores) for scores in videos].count(True) == 2  # each video in one process


def test_damaged_frames_are_counted_once(long: Path) -> None:
    config = config_of(long, "test.backbone=video", "window.steps=16", "test.batch=1")
    source = Damaged(build_source(config))
    results(config, source=source)
    assert source.repeated == len(source.lengths) == 2  # a read each video: pieces of 768 frames


class Damaged(Shortened):
    """A source one of whose frames is damaged at every reading."""

    @property
    def repeated(self) -> int:
        return len(self.lengths)


@pytest.mark.parametrize("experiment", ["baseline", "1-1", "3-1"])
def test_a_run_is_tested_with_the_backbone_over_whole_videos(
    long: Path, tmp_path: Path, experiment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [f"experiment={experiment}", *(INIT if experiment != "baseline" else ()), "window.steps=16"]
    config = config_of(long, *overrides)
    network = network_of(config)
    save_checkpoint(
        Checkpoint(config, CLASSES, network.state_dict(), epoch=1, rate_hz=FPS / 2), tmp_path / "best.pt"
    )
    assert main(["test", str(tmp_path / "best.pt"), "test.backbone=video", "--out", str(tmp_path / "video")]) == 0
    assert main(["test", str(tmp_path / "best.pt"), "--out", str(tmp_path / "window")]) == 0
    assert "average" in capsys.readouterr().out
    found = [read_detections(tmp_path / how / "detections.json") for how in ("video", "window")]
    assert found[0].videos == found[1].videos == ("test_0", "test_1")
    assert found[0].scores.tolist() != found[1].scores.tolist()  # adapters see across windows


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("experiment=2x", *INIT),
            r"in experiment 2x the backbones exchange .*leave it out",
        ),
        (("window.layout=resized",), r"test\.backbone=video has no effect with window\.layout=resized"),
        (
            ("model.backbone=null", "data.videos=null", "data.features=f", "data.feature_channels=8"),
            r"test\.backbone=video has no effect on features",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(long: Path, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(long, "test.backbone=video", *overrides)
