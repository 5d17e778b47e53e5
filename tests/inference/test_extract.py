"""Features equal a slow obvious reference, in either direction of playback, and are kept, verified and described."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from builders import CLASSES, FPS, PIXELS, config_of, feature_data, numbered_picture, video_data
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from runs import ALONE
from safetensors.torch import load_file, save_file

from bitad.config.names import SIZES, Precision
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.dataset import TestWindows
from bitad.data.feature_files import FeatureStore
from bitad.data.feature_folder import Stored, read_sidecar
from bitad.data.formats.database import read_annotations, write_annotations
from bitad.data.samples import collate
from bitad.data.sources import build_source
from bitad.inference.encoders import BackboneEncoder, Chunk, ClipEncoder, Encoder, WindowEncoder, load_encoder
from bitad.inference.extract import deal, extract_features, feature_folders, find_videos
from bitad.models.backbone import PIXEL_MEAN, PIXEL_STD
from bitad.models.build import build_network
from bitad.models.network import Detector, Pair
from bitad.models.vit import VisionTransformer, sinusoid_table
from bitad.timeline import Direction
from bitad.video.decoding import PictureStream
from bitad.video.files import VideosReport
from bitad.video.indexing import IndexCache
from bitad.video.reader import VideoReader
from bitad.video.reverse import reverse_video
from bitad.video.writer import write_video
from bitad.weights.checkpoint import Checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

FIXTURES = Path(__file__).parents[2] / "../shared/fixtures"
DIRECTIONS: tuple[Direction, ...] = ("forward", "reverse")


@pytest.fixture(scope="module")
def vit() -> VisionTransformer:
    """A transformer whose position table is for larger pictures than it is given."""
    torch.manual_seed(0)
    size = SIZES["tiny"]
    vit = VisionTransformer(
        dim=size.dim, depth=size.depth, heads=size.heads, mlp_dim=size.mlp_dim, image_size=2 * PIXELS
    )
    with torch.no_grad():
        for parameter in vit.parameters():  # with weights as small as they begin, clips would hardly differ
            parameter += 0.05 * torch.randn_like(parameter)
    return vit.eval()


@pytest.fixture(scope="module")
def backbone(vit: VisionTransformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("backbone") / "tiny.safetensors"
    save_file(vit.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of 9, 16, 43 and 76 frames, wider than high."""
    folder = tmp_path_factory.mktemp("videos")
    for frames in (9, 16, 43, 76):
        pictures = (np.pad(numbered_picture(number), ((0, 0), (8, 8), (0, 0))) for number in range(frames))
        write_video(folder / f"v{frames}.mp4", pictures, fps=FPS, crf=12, gop=12)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of videos of 75 frames, the grid of which has 38 steps; a window has 32."""
    return video_data(tmp_path_factory.mktemp("data") / "data", training=1, test=1)


def untrained(path: Path, file: Path, *overrides: str) -> tuple[Path, Detector | Pair]:
    """A checkpoint of networks that have learnt nothing but whose adapters do something, and the networks."""
    config = config_of(path, *overrides)
    torch.manual_seed(1)
    network = build_network(config, len(CLASSES)).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "adapter" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    save_checkpoint(Checkpoint(config, CLASSES, network.state_dict(), epoch=1, rate_hz=8.0), file)
    return file, network


def extract(
    encoder: Encoder,
    videos: Iterable[Path],
    out: Path,
    directions: tuple[Direction, ...] = ("forward",),
    *,
    precision: Precision = "float32",
    stored: Stored = "float32",
) -> VideosReport:
    folders = feature_folders(encoder, out, directions, precision=precision, stored=stored)
    return extract_features(
        encoder, find_videos(list(videos)), folders, ALONE, IndexCache(Path(os.devnull) / "index")
    )


def tiny_encoder(backbone: Path, *, stride: int = 4, clips: int = 3, length: int | None = None) -> Encoder:
    return load_encoder(backbone, stride_frames=stride, clip_frames=length, pixels=PIXELS, clips=clips)


def clip_reference(
    vit: VisionTransformer, video: Path, stride: int, *, reverse: bool = False, length: int = 16
) -> NDArray[np.float32]:
    """All frames decoded, then the transformer on each clip alone."""
    with VideoReader(video) as reader:
        frames = torch.from_numpy(reader.read(np.arange(reader.info.frames))).float()  # [n, H, W, 3]
    side = (frames.shape[2] - PIXELS) // 2
    frames = (frames[:, :, side : side + PIXELS] - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)
    rows = []
    for start in range(0, max(1, len(frames) - length + 1), stride):
        clip = list(frames[start : start + length])
        if reverse:
            clip.reverse()
        clip += [clip[-1]] * (length - len(clip))
        with torch.no_grad():
            tokens = vit(torch.stack(clip).permute(3, 0, 1, 2)[None], 1)
        rows.append(tokens.reshape(-1, vit.dim).mean(0).numpy())
    return np.stack(rows)


def window_reference(path: Path, network: Detector, *overrides: str) -> dict[str, NDArray[np.float32]]:
    """Every window of the test set, as testing reads it, through the network; each step from the nearest middle."""
    config = config_of(path, *overrides)
    annotations = read_annotations(config.data.annotations, classes=config.data.classes)
    source = build_source(config)
    windows = TestWindows(annotations, source, config)
    found: dict[str, dict[int, tuple[float, NDArray[np.float32]]]] = {}
    for i in range(len(windows)):
        sample = windows[i]
        batch = collate([sample], config.window.steps)
        with torch.no_grad():
            features = network.features(batch.inputs)[0].T[: sample.grid.steps].numpy()  # [V, C]
        if sample.view == "reverse":
            features = features[::-1]
        start = round(sample.grid.first_frame / sample.grid.stride_frames)
        for step, row in enumerate(features):
            distance = abs(step - (config.window.steps - 1) / 2)
            steps = found.setdefault(sample.video, {})
            if distance < steps.get(start + step, (np.inf, row))[0]:
                steps[start + step] = (distance, row)
    return {name: np.stack([steps[i][1] for i in range(len(steps))]) for name, steps in found.items()}


# What features are.


@pytest.mark.parametrize(("stride", "clips"), [(4, 3), (1, 8), (5, 1), (20, 2)])
def test_clip_features_are_the_transformers_on_each_clip_alone(
    vit: VisionTransformer, backbone: Path, videos: Path, tmp_path: Path, stride: int, clips: int
) -> None:
    report = extract(tiny_encoder(backbone, stride=stride, clips=clips), [videos], tmp_path, DIRECTIONS)
    assert report == VideosReport(done=("v16", "v43", "v76", "v9"), kept=(), failed={})
    for name in report.done if stride != 1 else ("v43",):
        for view in DIRECTIONS:
            expected = clip_reference(vit, videos / f"{name}.mp4", stride, reverse=view == "reverse")
            found = FeatureStore(tmp_path / view).read(name)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
            assert expected.std(axis=0).mean() > 100 * np.abs(found - expected).max() or len(expected) == 1


@pytest.mark.parametrize("length", [8, 32])
def test_clips_of_other_lengths_have_the_sinusoid_go_on_or_end_earlier(
    vit: VisionTransformer, backbone: Path, videos: Path, tmp_path: Path, length: int
) -> None:
    size = SIZES["tiny"]
    other = VisionTransformer(
        dim=size.dim,
        depth=size.depth,
        heads=size.heads,
        mlp_dim=size.mlp_dim,
        image_size=2 * PIXELS,
        clip_frames=length,
    )
    weights = {name: tensor for name, tensor in vit.state_dict().items() if name != "pos_embed"}
    other.load_state_dict(weights, strict=False)
    extract(tiny_encoder(backbone, length=length), [videos / "v43.mp4"], tmp_path)
    expected = clip_reference(other.eval(), videos / "v43.mp4", 4, length=length)
    np.testing.assert_allclose(FeatureStore(tmp_path).read("v43"), expected, rtol=1e-4, atol=1e-4)
    assert read_sidecar(tmp_path).settings.feature_offset_frames == (length - 1) / 2


@pytest.mark.parametrize("frames_per_step", [1, 2])
@pytest.mark.parametrize("view", DIRECTIONS)
def test_a_runs_features_are_what_its_pyramid_stands_on(
    data: Path, tmp_path: Path, view: Direction, frames_per_step: int
) -> None:
    overrides = ("window.overlap=0.75", f"direction={view}", f"window.frames_per_step={frames_per_step}")
    file, network = untrained(data, tmp_path / "best.pt", *overrides)
    assert isinstance(network, Detector)
    for frames, name in ((75, "long"), (30, "short")):
        pictures = (numbered_picture(number) for number in range(frames))
        write_video(tmp_path / "videos" / f"{name}.mp4", pictures, fps=FPS, crf=12)
    truth = {
        name: AnnotatedVideo(name, "validation", frames / FPS, np.zeros((0, 2)), (), frames, FPS)
        for name, frames in (("long", 75), ("short", 30))
    }
    write_annotations(Annotations(truth, CLASSES), tmp_path / "annotations.json")
    where = data.read_text().replace(str(data.parent / "videos"), str(tmp_path / "videos"))
    where = where.replace(str(data.parent / "annotations.json"), str(tmp_path / "annotations.json"))
    (tmp_path / "config.yaml").write_text(where)
    encoder = load_encoder(tmp_path)  # a run's directory
    assert encoder.directions[0] == view
    extract(encoder, [tmp_path / "videos"], tmp_path / "out", (view,))
    for name, expected in window_reference(tmp_path / "config.yaml", network, *overrides).items():
        found = FeatureStore(tmp_path / "out").read(name)
        assert len(found) == {"long": 38, "short": 15}[name]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    described = read_sidecar(tmp_path / "out").settings
    assert (described.feature_stride_frames, described.feature_offset_frames) == (2, 0)
    assert (described.window_steps, described.window_overlap, described.direction) == (32, 0.75, view)
    assert described.checkpoint == f"{tmp_path.name}/best.pt"
    assert file.is_file()


def test_a_detectors_file_with_its_configuration_is_as_good_as_a_run(
    data: Path, videos: Path, tmp_path: Path
) -> None:
    run, network = untrained(data, tmp_path / "best.pt")
    save_file(network.state_dict(), tmp_path / "detector.safetensors")
    encoders = (load_encoder(run), load_encoder(tmp_path / "detector.safetensors", config=config_of(data)))
    for encoder, name in zip(encoders, ("run", "file"), strict=True):
        extract(encoder, [videos / "v43.mp4"], tmp_path / name)
    found = [FeatureStore(tmp_path / name).read("v43") for name in ("run", "file")]
    np.testing.assert_array_equal(*found)


def test_each_direction_of_a_pair_has_its_own_network(data: Path, tmp_path: Path) -> None:
    file, pair = untrained(data, tmp_path / "best.pt", "experiment=1")
    assert isinstance(pair, Pair)
    encoder = load_encoder(file)
    assert list(encoder.backbones) == list(DIRECTIONS)
    for view, side in zip(DIRECTIONS, pair.sides, strict=True):
        assert side.network.backbone is not None
        mine, theirs = encoder.backbones[view].state_dict(), side.network.backbone.state_dict()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_the_control_has_no_network_for_reverse_playback(data: Path, tmp_path: Path) -> None:
    file, pair = untrained(data, tmp_path / "best.pt", "experiment=1", "pair.second=forward")
    assert isinstance(pair, Pair)
    assert pair.first.network.backbone is not None
    encoder = load_encoder(file)
    first = pair.first.network.backbone.state_dict()
    assert all(torch.equal(first[k], v) for k, v in encoder.backbones["forward"].state_dict().items())
    with pytest.raises(ValueError, match="no network for reverse playback; only forward"):
        feature_folders(encoder, tmp_path / "out", DIRECTIONS)


@given(
    frames=st.integers(1, 400),
    stride=st.integers(1, 20),
    length=st.integers(1, 12),
    overlap=st.sampled_from([0, 0.9]),
)
@settings(deadline=None, max_examples=60)
def test_every_step_comes_from_the_window_in_whose_middle_it_lies(
    backbone_only: WindowEncoder, frames: int, stride: int, length: int, overlap: float
) -> None:
    encoder = backbone_only
    encoder.stride_frames, encoder.window_steps, encoder.window_overlap = stride, length, overlap
    pieces = list(encoder.chunks(frames))
    assert [row for piece in pieces for row in range(piece.first, piece.stop)] == list(
        range(encoder.steps(frames))
    )
    middles = np.array([piece.frames[0] / stride + (length - 1) / 2 for piece in pieces])
    for i, piece in enumerate(pieces):
        assert piece.frames.max() < frames
        rows = np.arange(piece.first, piece.stop)
        assert (stride * rows >= piece.frames[0]).all()
        assert (stride * rows <= piece.frames[-1]).all()
        assert (np.abs(rows[:, None] - middles).argmin(axis=1) == i).all()  # the first of two equally near


@pytest.fixture(scope="module")
def backbone_only(data: Path, tmp_path_factory: pytest.TempPathFactory) -> WindowEncoder:
    encoder = load_encoder(untrained(data, tmp_path_factory.mktemp("run") / "best.pt")[0])
    assert isinstance(encoder, WindowEncoder)
    return encoder


# Reverse playback.


def reversed_twin(video: Path, folder: Path) -> Path:
    """Lossless copies of a video, one of them played backwards, so that both hold the same pictures; the folder."""
    with VideoReader(video) as reader:
        pictures = reader.read(np.arange(reader.info.frames))
    write_video(folder / "forward" / "v.mp4", pictures, fps=FPS, crf=0)
    reverse_video(folder / "forward" / "v.mp4", _made(folder / "reverse") / "v.mp4", crf=0)
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("name", ["v76", "v16", "v9"])  # clips of these end where their video ends
def test_reverse_features_are_those_of_the_reversed_file(
    backbone: Path, videos: Path, tmp_path: Path, name: str
) -> None:
    reversed_twin(videos / f"{name}.mp4", tmp_path)
    encoder = tiny_encoder(backbone)
    extract(encoder, [tmp_path / "forward"], tmp_path / "a", ("reverse",))
    extract(encoder, [tmp_path / "reverse"], tmp_path / "b", ("forward",))
    flipped, played = FeatureStore(tmp_path / "a").read("v"), FeatureStore(tmp_path / "b").read("v")
    np.testing.assert_allclose(flipped, played[::-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["v43", "v9"]
)  # one window, padded; every 2nd frame from either end is the same one
def test_reverse_features_of_a_run_are_those_of_the_reversed_file(
    data: Path, videos: Path, tmp_path: Path, name: str
) -> None:
    file, _ = untrained(data, tmp_path / "best.pt")
    reversed_twin(videos / f"{name}.mp4", tmp_path)
    extract(load_encoder(file), [tmp_path / "forward"], tmp_path / "a", ("reverse",))
    extract(load_encoder(file), [tmp_path / "reverse"], tmp_path / "b", ("forward",))
    flipped, played = FeatureStore(tmp_path / "a").read("v"), FeatureStore(tmp_path / "b").read("v")
    np.testing.assert_allclose(flipped, played[::-1], rtol=1e-4, atol=1e-5)


def test_reversing_frames_is_not_reversing_features(backbone: Path, videos: Path, tmp_path: Path) -> None:
    extract(tiny_encoder(backbone), [videos / "v76.mp4"], tmp_path, DIRECTIONS)
    forward, reverse = (FeatureStore(tmp_path / view).read("v76") for view in DIRECTIONS)
    assert forward.shape == reverse.shape
    spread = np.linalg.norm(forward - forward.mean(0), axis=1).mean()
    for order in (forward, forward[::-1]):  # neither row for row nor turned round
        assert np.linalg.norm(reverse - order, axis=1).mean() > 0.2 * spread


def test_a_data_set_reads_the_folder_and_turns_windows_of_reverse_features_round(
    backbone: Path, videos: Path, tmp_path: Path
) -> None:
    extract(tiny_encoder(backbone), [videos], tmp_path / "out", DIRECTIONS)
    truth = AnnotatedVideo("v76", "validation", 76 / FPS, np.array([[1.0, 2.0]]), ("alpha",), 76, FPS)
    path = feature_data(tmp_path / "data")
    write_annotations(Annotations({"v76": truth}, CLASSES), path.parent / "annotations.json")
    for view in DIRECTIONS:
        sidecar = read_sidecar(tmp_path / "out" / view)
        described, known = sidecar.settings, sidecar.videos
        config = config_of(
            path, f"direction={view}", f"data.features={tmp_path / 'out' / view}", *described.overrides().split()
        )
        annotations = read_annotations(config.data.annotations, classes=config.data.classes)
        source = build_source(config)
        video_grid = source.grid(annotations.videos["v76"])
        assert (video_grid.stride_frames, video_grid.first_frame) == (4, 7.5)
        assert (video_grid.steps, video_grid.fps) == (known["v76"].steps, known["v76"].fps) == (16, FPS)
        assert video_grid.to_seconds(np.array([15.0])) == (60 + 7.5) / FPS  # the middle of frames 60 to 75
        windows = TestWindows(annotations, source, config)
        rows = FeatureStore(tmp_path / "out" / view).read("v76")
        seen = torch.cat([windows[i].content for i in range(len(windows))]).numpy()
        np.testing.assert_array_equal(seen, rows if view == "forward" else rows[::-1])


# What it costs.


@pytest.mark.parametrize("kind", ["clips", "windows"])
def test_each_frame_is_decoded_once_for_all_clips_and_both_directions(
    backbone: Path, data: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "clips":
        encoder, wanted = tiny_encoder(backbone, stride=3, clips=2), range(76)
    else:
        file, _ = untrained(data, tmp_path / "best.pt", "window.overlap=0.75", "window.stride_frames=1")
        encoder, wanted = load_encoder(file), range(76)
    decoded: Counter[int] = Counter()
    following = PictureStream.next

    def counted(self: PictureStream) -> av.VideoFrame | None:
        decoded[self.position] += 1
        return following(self)

    monkeypatch.setattr(PictureStream, "next", counted)
    extract(encoder, [videos / "v76.mp4"], tmp_path / "out", DIRECTIONS)
    assert decoded == Counter(wanted)


@given(sizes=st.lists(st.integers(1, 100), max_size=20), hands=st.integers(1, 5))
@settings(deadline=None)
def test_work_is_dealt_out_whole_and_nearly_evenly(sizes: list[int], hands: int) -> None:
    work = {f"v{i}": size for i, size in enumerate(sizes)}
    dealt = deal(work, hands)
    assert len(dealt) == hands
    assert sorted(name for hand in dealt for name in hand) == sorted(work)
    loads = [sum(work[name] for name in hand) for hand in dealt]
    assert max(loads) - min(loads) <= max(sizes, default=0)


# What is kept, and what is refused.


def test_what_is_whole_is_kept_and_only_the_rest_is_made_again(
    backbone: Path, videos: Path, tmp_path: Path
) -> None:
    encoder, out = tiny_encoder(backbone), tmp_path / "out"
    extract(encoder, [videos], out, DIRECTIONS)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.glob("*/*.npy")}
    assert len(before) == 8
    (out / "reverse" / "v43.npy").unlink()
    cut = out / "forward" / "v76.npy"
    cut.write_bytes(cut.read_bytes()[:-1])
    report = extract(encoder, [videos], out, DIRECTIONS)
    assert report == VideosReport(done=("v43", "v76"), kept=("v16", "v9"), failed={}, again=("v76",))
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.glob("*/*.npy")}
    again = {f"{path.parent.name}/{path.stem}" for path in before if before[path][1] != after[path][1]}
    assert again == {"forward/v76", "reverse/v43"}
    assert all(before[path][0] == after[path][0] for path in before)


def test_a_video_that_has_changed_is_done_again(backbone: Path, videos: Path, tmp_path: Path) -> None:
    encoder, video = tiny_encoder(backbone), tmp_path / "v.mp4"
    for frames, done in ((40, ("v",)), (40, ()), (41, ("v",))):  # 40 and 41 frames have as many rows
        write_video(video, (numbered_picture(number) for number in range(frames)), fps=FPS)
        assert extract(encoder, [video], tmp_path / "out").done == done
        assert read_sidecar(tmp_path / "out").videos["v"].frames == frames


def test_an_interrupted_extraction_goes_on_where_it_stopped(
    backbone: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, begun = BackboneEncoder.to, []

    def interrupt(self: BackboneEncoder, device: torch.device) -> None:
        begun.append(sorted(path.name for path in tmp_path.iterdir()))
        raise KeyboardInterrupt

    monkeypatch.setattr(BackboneEncoder, "to", interrupt)
    with pytest.raises(KeyboardInterrupt):
        extract(tiny_encoder(backbone), [videos], tmp_path)
    monkeypatch.setattr(BackboneEncoder, "to", encode)
    assert begun == [["features.json"]]  # what will be there is said before anything is
    extract(tiny_encoder(backbone), [videos / "v9.mp4", videos / "v16.mp4"], tmp_path)
    described = json.loads((tmp_path / "features.json").read_text())
    del described["videos"][
        "v16"
    ]  # of a process that was killed, or has not recorded it yet: of which file is it?
    (tmp_path / "features.json").write_text(json.dumps(described))
    report = extract(tiny_encoder(backbone), [videos], tmp_path)
    assert (report.kept, report.again) == (("v9",), ("v16",))
    assert sorted(read_sidecar(tmp_path).videos) == ["v16", "v43", "v76", "v9"]


def test_a_folder_of_other_features_is_refused_with_what_differs(
    backbone: Path, videos: Path, tmp_path: Path
) -> None:
    out, video = tmp_path / "out", videos / "v16.mp4"
    extract(tiny_encoder(backbone), [video], out)
    described = (out / "features.json").read_bytes()
    with pytest.raises(
        ValueError, match=r"feature_stride_frames was 4, is 8, direction was forward, is reverse; name"
    ):
        extract(tiny_encoder(backbone, stride=8), [video], out, ("reverse",))
    with pytest.raises(ValueError, match="stored was float32, is float16"):
        extract(tiny_encoder(backbone), [video], out, stored="float16")
    weights = load_file(backbone)
    save_file(weights | {"patch_embed.bias": weights["patch_embed.bias"] + 1}, tmp_path / "other.safetensors")
    with pytest.raises(
        ValueError, match=r"checkpoint was tiny\S+ \(\w{12}\), is other\S+ \(\w{12}\); name another"
    ):
        extract(tiny_encoder(tmp_path / "other.safetensors"), [video], out)
    assert (out / "features.json").read_bytes() == described
    shutil.copy(backbone, tmp_path / "renamed.safetensors")
    assert extract(tiny_encoder(tmp_path / "renamed.safetensors"), [video], out).kept == ("v16",)


def test_a_folder_that_does_not_say_what_it_holds_is_refused(backbone: Path, videos: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "v16.npy", np.zeros((1, 96), np.float32))
    for content, said in (
        (None, "without a features.json"),
        ("{", "not a JSON file"),
        ("[]", "does not describe features of BiTAD"),
        (json.dumps({"format": "bitad features 1", "settings": {"pixels": 3}}), "damaged"),
    ):
        if content is not None:
            (tmp_path / "features.json").write_text(content)
        with pytest.raises(ValueError, match=said):
            extract(tiny_encoder(backbone), [videos], tmp_path)
    with pytest.raises(ValueError, match=r"v16.npy is a file; name a folder"):
        extract(tiny_encoder(backbone), [videos], tmp_path / "v16.npy")


def test_bad_videos_are_named_at_the_end_and_hold_up_no_other(
    backbone: Path, videos: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    report = extract(tiny_encoder(backbone), [broken, videos / "v16.mp4"], tmp_path / "out")
    assert report.done == ("v16",)
    assert "not a video" in report.failed["broken"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["features.json", "v16.npy"]
    assert list(read_sidecar(tmp_path / "out").videos) == ["v16"]


def test_a_full_disk_ends_the_work_and_leaves_nothing_half_written(
    backbone: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, calls = ClipEncoder.encode, []

    def fail(self: ClipEncoder, pictures: torch.Tensor, piece: Chunk, direction: Direction) -> torch.Tensor:
        calls.append(piece)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return encode(self, pictures, piece, direction)

    monkeypatch.setattr(ClipEncoder, "encode", fail)
    with pytest.raises(OSError, match="No space left"):
        extract(tiny_encoder(backbone), [videos], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["features.json"]
    assert len(calls) == 2


def test_features_too_large_for_half_precision_are_not_written(
    vit: VisionTransformer, videos: Path, tmp_path: Path
) -> None:
    weights = vit.state_dict()
    save_file(weights | {"blocks.3.mlp.2.bias": torch.full((96,), 1e6)}, tmp_path / "large.safetensors")
    encoder = tiny_encoder(tmp_path / "large.safetensors")
    report = extract(encoder, [videos / "v16.mp4"], tmp_path / "out", stored="float16")
    assert "not finite in float16; leave out --half" in report.failed["v16"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["features.json"]


def test_half_precision_is_of_the_file_and_bfloat16_of_the_products(
    backbone: Path, videos: Path, tmp_path: Path
) -> None:
    encoder, video = tiny_encoder(backbone), [videos / "v43.mp4"]
    extract(encoder, video, tmp_path / "whole")
    extract(encoder, video, tmp_path / "half", stored="float16")
    extract(encoder, video, tmp_path / "rough", precision="bfloat16")
    whole, half, rough = (np.load(tmp_path / name / "v43.npy") for name in ("whole", "half", "rough"))
    assert (whole.dtype, half.dtype, rough.dtype) == (np.float32, np.float16, np.float32)
    np.testing.assert_array_equal(half, whole.astype(np.float16))
    error = np.abs(rough - whole).max() / np.abs(whole).max()
    assert 1e-5 < error < 0.05
    assert read_sidecar(tmp_path / "rough").settings.precision == "bfloat16"


# Videos and weights.


def test_videos_are_files_as_given_and_those_of_folders(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "clip.dat").symlink_to(videos / "v9.mp4")
    (tmp_path / "a.MKV").symlink_to(videos / "v16.mp4")
    assert find_videos([tmp_path]) == {"a": tmp_path / "a.MKV"}
    found = find_videos([tmp_path / "clip.dat", videos, videos / "v9.mp4"])  # one of them twice
    assert list(found) == ["clip", "v16", "v43", "v76", "v9"]
    (tmp_path / "v9.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"v9.mp4 and .*v9.mp4 would have the same"):
        find_videos([videos, tmp_path / "v9.mp4"])
    with pytest.raises(FileNotFoundError, match="no such video or folder"):
        find_videos([tmp_path / "none"])
    with pytest.raises(FileNotFoundError, match=r"no videos there \(\.mp4"):
        find_videos([_made(tmp_path / "empty")])


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"pixels": 40}, "40 pixels are not a multiple of the backbone's patch of 16"),
        ({"pixels": 0}, "0 pixels"),
        ({"stride_frames": 0}, "a stride of 0 frames"),
        ({"clips": 0}, "a batch of 0 clips"),
        ({"clip_frames": 15}, "clips of 15 frames; the backbone takes a multiple of 2"),
        ({"clip_frames": 0}, "clips of 0 frames"),
    ],
)
def test_settings_that_do_not_fit_a_backbone_are_refused(backbone: Path, how: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_encoder(backbone, **how)


def test_weights_without_a_backbone_of_known_size_are_refused(
    vit: VisionTransformer, data: Path, tmp_path: Path
) -> None:
    weights, path = vit.state_dict(), tmp_path / "weights.safetensors"

    def refused(content: dict[str, torch.Tensor]) -> str:
        save_file(content, path)
        with pytest.raises(ValueError) as caught:
            load_encoder(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "of no known project" in refused({"conv.weight": torch.zeros(1)})
    assert "no transformer of VideoMAE in it" in refused({"patch_embed.bias": torch.zeros(96)})
    shallow = {name: tensor for name, tensor in weights.items() if not name.startswith("blocks.3.")}
    assert (
        "(96 wide, 3 blocks, MLP 384, patch 16), with unknown attention heads; known sizes are tiny, s, b"
        in refused(shallow)
    )
    assert "1 missing: blocks.3.norm1.bias" in refused(
        {k: v for k, v in weights.items() if k != "blocks.3.norm1.bias"}
    )
    detector = build_network(config_of(data), 3).state_dict()
    assert "is not a checkpoint of BiTAD but a detector" in refused(detector)
    adapted = {name: t for name, t in detector.items() if name.startswith("backbone.vit.")}
    adapted = {name.removeprefix("backbone.vit."): tensor for name, tensor in adapted.items()}
    assert "has adapters, but not the length of their windows" in refused(adapted)
    with pytest.raises(FileNotFoundError):
        load_encoder(tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError, match=r"has no best\.pt or last\.pt yet"):
        load_encoder(_made(tmp_path / "run"))
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="not a readable checkpoint or file of weights"):
        load_encoder(path)


def test_a_backbones_file_needs_no_configuration(backbone: Path, data: Path) -> None:
    with pytest.raises(ValueError, match="needs no configuration; leave out --config"):
        load_encoder(backbone, config=config_of(data))


def test_a_learnt_position_table_is_for_its_own_length_only(vit: VisionTransformer, tmp_path: Path) -> None:
    table = sinusoid_table(128, 96) + 0.1
    save_file(vit.state_dict() | {"pos_embed": table}, tmp_path / "learnt.safetensors")
    load_encoder(tmp_path / "learnt.safetensors", pixels=PIXELS)
    with pytest.raises(ValueError, match="position table is learnt, for clips of 16 frames only"):
        load_encoder(tmp_path / "learnt.safetensors", pixels=PIXELS, clip_frames=32)


def test_runs_that_make_no_features_of_videos_say_why(data: Path, tmp_path: Path) -> None:
    features, _ = untrained(feature_data(tmp_path / "features"), tmp_path / "features.pt")
    with pytest.raises(ValueError, match="detector on features, without a backbone; give one on videos"):
        load_encoder(features)
    init = (f"init.forward={features}", f"init.reverse={features}")
    crossed, _ = untrained(data, tmp_path / "crossed.pt", "experiment=2x", *init)
    with pytest.raises(ValueError, match="experiment 2x neither backbone works alone"):
        load_encoder(crossed)
    run, _ = untrained(data, tmp_path / "run.pt", "window.frames_per_step=2")
    with pytest.raises(ValueError, match="a stride of 3 frames is not a multiple of the run's 2 frames a step"):
        load_encoder(run, stride_frames=3)
    with pytest.raises(ValueError, match="sees windows of 32 steps, not clips of 8 frames"):
        load_encoder(run, clip_frames=8)
    for layout in ("resized", "whole"):
        run, _ = untrained(data, tmp_path / f"{layout}.pt", f"window.layout={layout}")
        with pytest.raises(ValueError, match=rf"has window\.layout={layout}; give a run with"):
            load_encoder(run)


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the key lists of published files are not beside this checkout")
def test_a_published_file_is_recognised_by_its_weights(tmp_path: Path) -> None:
    listing = json.loads(gzip.decompress((FIXTURES / "keys_videomae_s.json.gz").read_bytes()))["pretrained"]
    weights = {name: torch.zeros(shape) for name, (shape, _) in listing.items()}
    torch.save({"state_dict": weights}, tmp_path / "vit-small.pth")
    encoder = load_encoder(tmp_path / "vit-small.pth")
    assert (encoder.model, encoder.vit.dim, encoder.pixels, encoder.stride_frames) == ("s", 384, 224, 4)
    assert encoder.vit.blocks[0].attn.heads == SIZES["s"].heads
    assert encoder.offset_frames == 7.5
